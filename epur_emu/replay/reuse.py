"""Reuse by component: distances, times, working set, and requests that meet in one bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu._kernels import stack
from epur_emu.errors import TraceError
from epur_emu.replay.base import Result, Source
from epur_emu.replay.columns import MOST_BYTES, Columns, level
from epur_emu.streams import Component
from epur_emu.trace import Accesses

#: How a component's addresses go to its banks.
BANKINGS = ("contiguous", "interleaved")

#: Most banks of all components together.
MOST_BANKS = 1 << 20

#: Most windows of the working set.
MOST_WINDOWS = 1 << 20


class Reuse:
    """How soon each component's lines are asked for again.

    Distance is the number of other lines since the line's last request (Mattson et al. 1970), time
    the number of cycles. The working set is the lines touched in one window of time (Denning
    1968). A bank conflict is a request for a bank that was asked already in the same cycle. State
    is bounded by the footprint.

    Parameters
    ----------
    source : Source
    line : int
        Bytes of a line, a power of two.
    windows : int
        Windows into which the run is cut.
    banking : {'contiguous', 'interleaved'}
        Whether a bank is one range of addresses, as the energy model takes it, or gets every so
        manieth port's width. Components without a capacity are interleaved.

    Raises
    ------
    TraceError
        An option is not valid.
    """

    def __init__(
        self, source: Source, line: int = 64, windows: int = 256, banking: str = "contiguous"
    ) -> None:
        if not 1 <= windows <= MOST_WINDOWS:
            raise TraceError("replay", "windows", f"is {windows}", f"give 1 to {MOST_WINDOWS}")
        if banking not in BANKINGS:
            raise TraceError("replay", "banking", f"is {banking!r}", f"use one of {BANKINGS}")
        self._source, self._line = source, line
        self._window = max(1, -(-source.cycles // windows))
        self._windows = max(1, -(-source.cycles // self._window))
        chosen = [source.components[place] for place in source.chosen]
        # A capacity bounds the footprint; the others share what there is.
        unbounded = sum(component.capacity is None for component in chosen)
        most = MOST_BYTES // max(1, unbounded)
        self._stacks = {
            place: stack.Stack(level(), most, window=self._window, windows=self._windows)
            for place in source.chosen
        }
        self._columns = {
            place: Columns(Source(source.components, (place,), source.cycles, {}), line)
            for place in source.chosen
        }
        banks = np.array([c.banks for c in source.components], np.float64)
        if banks.sum() > MOST_BANKS:
            raise TraceError("replay", "banks", f"are {banks.sum():.0f}", f"use up to {MOST_BANKS}")
        self._banks = banks.astype(np.int64)
        self._unit = np.array([_unit(c, banking) for c in source.components], np.int64)
        self._first = np.cumsum(self._banks) - self._banks
        self._asked = np.full(int(self._banks.sum()), -1, np.int64)
        self._conflicts = np.zeros(len(source.components), np.int64)

    def feed(self, chunk: Accesses) -> None:
        """Take the next accesses."""
        present = np.bincount(chunk.component, minlength=len(self._banks))
        for place, kernel in self._stacks.items():
            if present[place]:
                own = chunk if present[place] == len(chunk) else chunk[chunk.component == place]
                self._columns[place].feed([kernel], own)
        stack.bank_conflicts(
            chunk.cycle, chunk.component, chunk.address, chunk.bytes,
            self._unit, self._banks, self._first, self._asked, self._conflicts,
        )  # fmt: skip

    def result(self) -> Result:
        """Histograms whose bins begin at 0, 1 and then at powers of two, with their lower ends."""
        rows: list[dict[str, Any]] = []
        arrays: dict[str, npt.NDArray[Any]] = {}
        for place, kernel in self._stacks.items():
            name, windows = self._source.components[place].name, kernel.windows * self._line
            rows.append(
                {
                    "component": name,
                    "requests": kernel.requests,
                    "footprint_bytes": kernel.live * self._line,
                    "largest_working_set_bytes": int(windows.max()),
                    "bank_conflicts": int(self._conflicts[place]),
                    "distance": _pairs(_doublings(np.asarray(kernel.counts, np.uint64))),
                    "time": _pairs(kernel.times),
                }
            )
            arrays[f"working_set_bytes/{name}"] = windows
        details = {"line": self._line, "window_cycles": self._window, "components": rows}
        requests = sum(row["requests"] for row in rows)
        return Result("reuse", ",".join(self._source.names), requests, None, details, arrays)


def _unit(component: Component, banking: str) -> int:
    """Bytes that go to one bank before the next comes."""
    if banking == "contiguous" and component.capacity is not None:
        return max(1, component.capacity // component.banks)
    return max(1, component.width_bits // 8)


def _doublings(counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """References by number of bits of their distance."""
    low = [0, *(1 << n for n in range(counts.size.bit_length()))]
    low = [start for start in low if start < counts.size]
    return np.add.reduceat(counts, low) if low else np.zeros(0, np.uint64)


def _pairs(counts: npt.NDArray[np.uint64]) -> list[list[int]]:
    """[lower end, references] of each bin that holds any."""
    return [[1 << bits >> 1, int(n)] for bits, n in enumerate(counts.tolist()) if n]
