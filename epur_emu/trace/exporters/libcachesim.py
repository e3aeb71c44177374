"""libCacheSim's oracleGeneral: 24 bytes a request, with the number of the next request for the same line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from epur_emu.errors import TraceError
from epur_emu.streams import Component
from epur_emu.trace.accesses import Accesses

#: time, object, its bytes, number of the next request for it (-1: none).
ROW = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])

#: Bytes of a line.
LINE = 64

#: Most lines between the lowest and the highest.
MOST_LINES = 1 << 25


class LibCacheSim:
    """An object is a line of 64 bytes of a component: line number times components plus component."""

    single = False

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        self.file = file
        self._components = len(components)
        self._rows = 0
        self._last: dict[int, np.ndarray[Any, Any]] = {}
        self._base: dict[int, int] = {}

    def feed(self, chunk: Accesses) -> None:
        """Write the next requests, and where earlier ones are followed by them."""
        if int(chunk.cycle[-1]) >= 1 << 32:
            raise TraceError(
                "trace", "cycle", f"is {int(chunk.cycle[-1])}, the format's time has 32 bits",
                "export a window: --start, --stop",
            )  # fmt: skip
        first = chunk.address // LINE
        parts = (chunk.address + chunk.bytes - 1) // LINE - first + 1
        if int(parts.max()) > 1 << 10 or int(parts.sum()) > 1 << 22:
            raise TraceError("trace", "bytes", "are over 64 KiB an access", "use another format")
        if int(parts.max()) > 1:
            at = np.repeat(np.arange(len(chunk)), parts)
            within = np.arange(len(at)) - np.repeat(np.cumsum(parts) - parts, parts)
            line = first[at] + within
        else:
            at, line = np.arange(len(chunk)), first
        rows = np.empty(len(at), ROW)
        rows["time"], rows["size"], rows["next"] = chunk.cycle[at], LINE, -1
        component = chunk.component[at].astype(np.int64)
        rows["id"] = line * self._components + component
        order = np.argsort(rows["id"], kind="stable")
        same = np.diff(rows["id"][order].view(np.int64)) == 0
        rows["next"][order[:-1][same]] = self._rows + order[1:][same]
        firsts, lasts = order[np.r_[True, ~same]], order[np.r_[~same, True]]
        self.file.write(rows.tobytes())
        self._follow(component[firsts], line[firsts], firsts, lasts)
        self._rows += len(rows)

    def _follow(self, component: Any, line: Any, firsts: Any, lasts: Any) -> None:
        """Tell the last requests so far for some lines which come next."""
        earlier, later = [], []
        for one in np.unique(component).tolist():
            own = component == one
            last = self._table(one, line[own])
            places = line[own] - self._base[one]
            before = last[places]
            earlier.append(before[before >= 0])
            later.append(self._rows + firsts[own][before >= 0])
            last[places] = self._rows + lasts[own]
        told, numbers = np.concatenate(earlier), np.concatenate(later)
        if not len(told):
            return
        self.file.flush()
        held = np.memmap(self.file, ROW, "r+", 0, (self._rows,))
        # The file's end brings it to the disk, once.
        held["next"][told] = numbers
        del held
        self.file.seek(0, 2)

    def _table(self, component: int, line: Any) -> Any:
        """Number of the last request for each line of a component, -1 for none, from `_base` on."""
        low, high = int(line.min()), int(line.max()) + 1
        held = self._last.get(component)
        if held is not None:
            base = self._base[component]
            if base <= low and high <= base + len(held):
                return held
            low, high = min(low, base), max(high, base + len(held) + len(held) // 4)
        if high - low > MOST_LINES:
            raise TraceError(
                "trace", "addresses", f"reach over {high - low} lines", "export one component, or a window"
            )
        table = np.full(high - low, -1, np.int64)
        if held is not None:
            table[base - low : base - low + len(held)] = held
        self._last[component], self._base[component] = table, low
        return table

    def close(self) -> None:
        """Nothing is left."""
