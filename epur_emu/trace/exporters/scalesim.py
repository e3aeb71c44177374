"""SCALE-Sim's CSV: a row for each cycle, with the addresses of its accesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from epur_emu._kernels.lines import DECIMAL, lines
from epur_emu.streams import Component
from epur_emu.trace.accesses import Accesses
from epur_emu.trace.exporters.base import Lines, longs


class ScaleSim(Lines):
    """``cycle,address,address,...``, both operations alike: choose one by ``--op``."""

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        super().__init__(file, components, about)
        self._last = -1

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""
        columns = [longs(chunk.cycle), longs(chunk.address)]
        kinds = [DECIMAL, DECIMAL]
        self.file.write(lines(columns, kinds, [[], []], b" ,", grouped=True, last=self._last))
        self._last = int(chunk.cycle[-1])

    def close(self) -> None:
        """End the last line."""
        if self._last >= 0:
            self.file.write(b"\n")
