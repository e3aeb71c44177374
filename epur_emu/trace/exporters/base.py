"""What exporters and importers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from epur_emu.streams import Component
from epur_emu.trace.accesses import Accesses

#: What an importer yields: names of the components so far, and accesses that name them by index.
Part = tuple[Sequence[str], Accesses]


class Exporter(Protocol):
    """Writes accesses to an open file.

    `feed` gets them in order of (cycle, component, op), cut anywhere; `close` comes behind the last.
    """

    #: Whether the format has no place for components, so that only one can be written.
    single: bool

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        """`about`: cycles and meta of the trace."""

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""

    def close(self) -> None:
        """Write what is left; the file stays open."""


class Lines:
    """An exporter of one line for each access."""

    single = True

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        self.file, self.components = file, components

    def close(self) -> None:
        """Nothing is left."""


def longs(column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """A column as the kernel of lines takes it."""
    return np.ascontiguousarray(column, np.int64)
