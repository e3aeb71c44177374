"""Streams and events to single accesses in order of time, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epur_emu.streams import LIMIT, OPS, AccessStream
from epur_emu.trace.accesses import Accesses

Longs = npt.NDArray[np.int64]

#: Code of (component, op), stream, and the accesses of it that are due: first, and after the last.
Part = tuple[int, AccessStream, int, int]

#: Longest window in cycles, so that the sort key of a window fits 64 bits.
_LONGEST = 2**48

#: A window is good if it holds this share of a chunk; a fuller one would not repay the search.
_FULL = 0.7


class StreamTable:
    """Streams as arrays, so that `AccessStream.before` runs over all of them at once."""

    def __init__(self, streams: Sequence[AccessStream]) -> None:
        depth = max((len(s.loops) for s in streams), default=0)
        self.cycle = np.array([s.cycle for s in streams], np.int64)
        shape = (depth, len(streams))
        self._count = np.ones(shape, np.int64)
        self._stride = np.zeros(shape, np.int64)
        self._span = np.zeros(shape, np.int64)
        self._inner = np.ones(shape, np.int64)
        for row, stream in enumerate(streams):
            span, inner = 0, 1
            for level in range(depth):
                # Level 0 is outermost here; a missing loop turns once, within the span inside.
                place = depth - 1 - level
                missing = level >= len(stream.loops)
                loop = (1, 0, span) if missing else stream.loops[-1 - level]
                self._count[place, row], self._stride[place, row] = loop[0], loop[2]
                self._span[place, row], self._inner[place, row] = span, inner
                span += (loop[0] - 1) * loop[2]
                inner *= loop[0]

    def before(self, rows: Longs, cycle: int) -> Longs:
        """How many accesses of each stream of `rows` happen before `cycle`."""
        left = cycle - self.cycle[rows]
        done = np.zeros(rows.size, np.int64)
        alive = left > 0
        for level in range(len(self._count)):
            count, stride = self._count[level, rows], self._stride[level, rows]
            turns = -((self._span[level, rows] - left) // np.maximum(stride, 1))
            turns = np.where(stride > 0, np.clip(turns, 0, count), count)
            done += alive * turns * self._inner[level, rows]
            # Times below the present turn no longer matter once a stream is counted in full.
            left -= np.where(alive, turns * stride, 0)
            alive &= (turns < count) & (left > 0)
        done += alive
        return done


def expand(
    streams: Sequence[tuple[int, AccessStream]], events: Accesses, chunk: int, start: int, stop: int
) -> Iterator[Accesses]:
    """Single accesses in order of (cycle, component, op); equals in order of streams, then events.

    Parameters
    ----------
    streams : sequence of (component index, AccessStream)
    events : Accesses
        In order of (cycle, component, op).
    chunk : int
        Most accesses of a chunk, at least 1.
    start, stop : int
        First cycle, and the cycle after the last.

    Yields
    ------
    Accesses
        Not empty; of at most `chunk` accesses. Memory is proportional to `chunk` and the number
        of streams.
    """
    nests = [stream for _, stream in streams]
    codes = [2 * component + OPS.index(stream.op) for component, stream in streams]
    sizes = np.array([stream.accesses for stream in nests], np.int64)
    table = StreamTable(nests)
    entry = np.argsort(table.cycle, kind="stable")
    entries = table.cycle[entry]
    entered = int(np.searchsorted(entries, start))
    active = entry[:entered]
    done = np.zeros(len(nests), np.int64)
    done[active] = table.before(active, start)
    active = active[done[active] < sizes[active]]
    happened = int(np.searchsorted(events.cycle, start))
    now, length, stop = start, 1024, min(stop, LIMIT + 1)

    def measure(until: int) -> _Window:
        reach = int(np.searchsorted(entries, until))
        rows = np.concatenate([active, entry[entered:reach]])
        upto = table.before(rows, until)
        last = int(np.searchsorted(events.cycle, until))
        total = int((upto - done[rows]).sum()) + last - happened
        return _Window(until, reach, rows, upto, last, total)

    while True:
        if not active.size:
            upcoming = [int(entries[entered])] if entered < entry.size else []
            upcoming += [int(events.cycle[happened])] if happened < len(events) else []
            now = max(now, min(upcoming, default=stop))
        if now >= stop:
            return
        least, most, best = 0, 0, None
        while True:
            window = measure(min(now + length, stop))
            if window.total > chunk:
                most = length
                if length == 1:
                    break
            else:
                least, best = length, window
                if window.total >= _FULL * chunk or window.until == stop or length == _LONGEST:
                    break
            if not most:
                length = min(2 * length, _LONGEST)
            elif best is not None and most - least == 1:
                length, window = least, best
                break
            else:
                length = (least + most) // 2
        parts = [
            (codes[row], nests[row], int(done[row]), upto)
            for row, upto in sorted(zip(window.rows.tolist(), window.upto.tolist(), strict=True))
            if upto > done[row]
        ]
        found = events[happened : window.happened]
        if window.total > chunk:
            yield from _batches(_in_order_of_code(parts, found, chunk), chunk)
        elif window.total:
            yield _merged(parts, found, now)
        done[window.rows] = window.upto
        active = window.rows[window.upto < sizes[window.rows]]
        entered, happened, now = window.entered, window.happened, window.until


class _Window(NamedTuple):
    """What happens up to a cycle: the streams begun (rows), how far each is then, the events."""

    until: int
    entered: int
    rows: Longs
    upto: Longs
    happened: int
    total: int


def _piece(part: Part, start: int, stop: int) -> Accesses:
    code, stream, _, _ = part
    cycle, address = stream.expand(start, stop)
    n = cycle.size
    return Accesses(
        cycle, np.full(n, code >> 1, np.int32), np.full(n, code & 1, np.uint8), address,
        np.full(n, stream.bytes, np.int64),
    )  # fmt: skip


def _merged(parts: list[Part], events: Accesses, first: int) -> Accesses:
    """The parts and events of a window that begins at cycle `first`, in order."""
    joined = Accesses.join([*(_piece(part, part[2], part[3]) for part in parts), events])
    codes = 2 * (int(joined.component.max()) + 1)
    key = (joined.cycle - first) * codes + 2 * joined.component + joined.op
    return joined[np.argsort(key, kind="stable")]


def _in_order_of_code(parts: list[Part], events: Accesses, chunk: int) -> Iterator[Accesses]:
    """The parts and events of a single cycle in pieces of at most `chunk`."""
    event_codes = 2 * events.component.astype(np.int64) + events.op
    for code in sorted({part[0] for part in parts} | set(event_codes.tolist())):
        for part in parts:
            if part[0] == code:
                for start in range(part[2], part[3], chunk):
                    yield _piece(part, start, min(start + chunk, part[3]))
        yield events[event_codes == code]


def _batches(pieces: Iterator[Accesses], chunk: int) -> Iterator[Accesses]:
    """The pieces joined and cut to batches of `chunk`, the last perhaps smaller."""
    kept: list[Accesses] = []
    room = chunk
    for piece in pieces:
        while len(piece) >= room:
            yield Accesses.join([*kept, piece[:room]])
            piece, kept, room = piece[room:], [], chunk
        kept, room = [*kept, piece], room - len(piece)
    if room < chunk:
        yield Accesses.join(kept)
