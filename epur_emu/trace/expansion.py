"""Streams and events to single accesses in order of time, chunk by chunk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu._kernels.expand import CrowdedError, Expansion
from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, MAX_LOOPS, OPS, AccessStream
from epur_emu.trace.accesses import COLUMNS, Accesses, Runs

#: Most accesses of a chunk, whatever is asked for.
MOST_CHUNK = 1 << 22

#: Places behind the cycle column that the kernel may write to.
_SLACK = 8


def stream_table(streams: Sequence[tuple[int, AccessStream]]) -> npt.NDArray[np.int64]:
    """Streams of components, given by their indices, as the kernel takes them: (n, 22)."""
    table = np.empty((len(streams), 4 + 3 * MAX_LOOPS), np.int64)
    filler = [(1, 0, 0)] * MAX_LOOPS
    for row, (component, s) in enumerate(streams):
        loops = [*s.loops, *filler[len(s.loops) :]]
        table[row, :4] = 2 * component + OPS.index(s.op), s.cycle, s.address, s.bytes
        table[row, 4:] = np.array(loops, np.int64).T.reshape(-1)
    return table


def expand(
    streams: Sequence[tuple[int, AccessStream]],
    lanes: list[tuple[int, Callable[[], Runs | None]]],
    chunk: int,
    start: int,
    stop: int,
) -> Iterator[Accesses]:
    """Single accesses in order of (cycle, component, op); equals in order of streams, then runs.

    Parameters
    ----------
    streams : sequence of (component index, AccessStream)
    lanes : list of (component index, source of runs)
        In order of components; see `Expansion`.
    chunk : int
        Most accesses of a chunk, at least 1.
    start, stop : int
        First cycle, and the cycle after the last.

    Yields
    ------
    Accesses
        Not empty; all but the last of the same length. Memory is proportional to `chunk` and the
        number of streams. Arrays that nobody holds any more are used again.

    Raises
    ------
    TraceError
        Events overlap beyond measure.
    """
    expansion = Expansion(stream_table(streams), lanes, start, min(stop, LIMIT + 1))
    chunk = min(chunk, MOST_CHUNK)
    blocks: list[npt.NDArray[np.uint8]] = []
    while True:
        columns = _columns(_free(blocks, chunk), chunk)
        try:
            size = expansion.fill(*columns.values())
        except CrowdedError:
            raise TraceError(
                "trace", "events", "overlap too much to be followed", "make the trace anew"
            ) from None
        if not size:
            return
        columns["cycle"] = columns["cycle"][:chunk]
        yield Accesses(*(column[:size] for column in columns.values()))
        del columns


def _free(blocks: list[npt.NDArray[np.uint8]], chunk: int) -> npt.NDArray[np.uint8]:
    """Memory for a chunk: a block that no array looks into, or a new one."""
    for number in range(len(blocks)):
        # The list and the argument hold the block; a view would too.
        if sys.getrefcount(blocks[number]) == 2:
            return blocks[number]
    width = sum(dtype.itemsize for dtype in COLUMNS.values())
    block = np.empty(chunk * width + 8 * _SLACK, np.uint8)
    if len(blocks) < 2:
        blocks.append(block)
    return block


def _columns(block: npt.NDArray[np.uint8], chunk: int) -> dict[str, npt.NDArray[Any]]:
    """Columns in a block, the widest first, so that each is aligned."""
    out, at = {}, 0
    for name, dtype in sorted(COLUMNS.items(), key=lambda item: -item[1].itemsize):
        size = chunk + (_SLACK if name == "cycle" else 0)
        out[name] = np.frombuffer(block, dtype, size, at)
        at += size * dtype.itemsize
    return {name: out[name] for name in COLUMNS}
