"""From chunks of accesses to the columns that the replay kernels take."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np

from epur_emu._kernels import stack
from epur_emu.errors import TraceError
from epur_emu.replay.base import Source
from epur_emu.streams import LIMIT
from epur_emu.trace import Accesses

#: Bytes that the state of one model may take.
MOST_BYTES = 272 << 20


class Feeder(Protocol):
    """A kernel's object."""

    def feed(self, *columns: Any) -> None:
        """Take columns, ranks, the binary logarithm of the line and the weight."""


class Columns:
    """Feeds kernels with requests for lines.

    Parameters
    ----------
    source : Source
    line : int
        Bytes of a line, a power of two.

    Raises
    ------
    TraceError
        The line is no power of two up to 2**30.
    """

    def __init__(self, source: Source, line: int) -> None:
        if not 1 <= line <= 1 << 30 or line & (line - 1):
            raise TraceError("replay", "line", f"is {line}", "give a power of two, such as 64")
        self.shift = line.bit_length() - 1
        self._rank = np.full(max(1, len(source.components)), -1, np.int64)
        self._rank[list(source.chosen)] = np.arange(len(source.chosen))
        self._most = min(LIMIT, ((1 << 62) // max(1, len(source.chosen))) << self.shift)

    def feed(self, kernels: list[Feeder], chunk: Accesses, weight: int = 1) -> None:
        """Give a chunk to each kernel, each access counted `weight` times.

        Raises
        ------
        TraceError
            An address is too large, or a kernel's state would outgrow `MOST_BYTES`.
        """
        if not len(chunk):
            return
        if self._most < LIMIT and int(chunk.address.max()) >= self._most:
            raise TraceError(
                "replay", "address", f"is {int(chunk.address.max())}", "use a larger line"
            )
        columns = (chunk.cycle, chunk.component, chunk.address, chunk.bytes)
        try:
            for kernel in kernels:
                kernel.feed(*columns, self._rank, self.shift, weight)
        except OverflowError:
            raise TraceError(
                "replay", "footprint", f"needs over {MOST_BYTES >> 20} MiB of state",
                "use sampling, a larger line or one component",
            ) from None  # fmt: skip


def level() -> int:
    """Number of the kernels' CPU level: the best, or what ``EPUR_SIMD`` names."""
    name = os.environ.get("EPUR_SIMD", stack.LEVELS[-1])
    return stack.LEVELS.index(name) if name in stack.LEVELS else len(stack.LEVELS) - 1
