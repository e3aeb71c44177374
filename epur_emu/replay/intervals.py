"""How often each byte of a memory is read and written, in closed form over streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epur_emu.errors import TraceError
from epur_emu.streams import OPS, AccessStream
from epur_emu.trace import Accesses
from epur_emu.trace.accesses import Runs

Longs = npt.NDArray[np.int64]

#: Most ranges of addresses of one memory at a time; 160 MB.
MOST_RANGES = 1 << 22


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges of addresses that don't overlap, rising, each with how often it is read and written.

    Parameters
    ----------
    start, end, reads, writes : int64 arrays of shape (n,)
    """

    start: Longs
    end: Longs
    reads: Longs
    writes: Longs

    @property
    def size(self) -> Longs:
        """Bytes of each."""
        return self.end - self.start

    @property
    def footprint(self) -> int:
        """Bytes of all."""
        return int(self.size.sum())

    @classmethod
    def none(cls) -> Ranges:
        """No range at all."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, empty, empty)

    @classmethod
    def of(cls, parts: Iterable[Ranges]) -> Ranges:
        """Of ranges that may overlap: counts of the same address add up.

        Raises
        ------
        TraceError
            There are too many.
        """
        parts = [part for part in parts if part.start.size]
        if not parts:
            return cls.none()
        if sum(part.start.size for part in parts) > MOST_RANGES:
            raise TraceError(
                "replay", "ranges of addresses", f"are over {MOST_RANGES}", "use memory lru"
            )
        points = np.concatenate([*(p.start for p in parts), *(p.end for p in parts)])
        order = np.argsort(points, kind="stable")
        points = points[order]
        sums = []
        for name in ("reads", "writes"):
            column = np.concatenate([getattr(part, name) for part in parts])
            sums.append(np.cumsum(np.concatenate([column, -column])[order]))
        last = np.flatnonzero(np.append(points[1:] != points[:-1], True))
        start, end = points[last[:-1]], points[last[1:]]
        reads, writes = (total[last[:-1]] for total in sums)
        # Neighbours with the same counts are one.
        begins = np.append(
            True, (reads[1:] != reads[:-1]) | (writes[1:] != writes[:-1]) | (start[1:] != end[:-1])
        )
        groups = np.flatnonzero(begins)
        end = end[np.append(groups[1:], start.size) - 1]
        start, reads, writes = start[groups], reads[groups], writes[groups]
        used = (reads > 0) | (writes > 0)
        return cls(start[used], end[used], reads[used], writes[used])

    @classmethod
    def of_stream(cls, stream: AccessStream) -> Ranges:
        """All accesses of a stream; loops over the same addresses only multiply.

        Raises
        ------
        TraceError
            There are too many separate ranges.
        """
        times, extent, low, outer = 1, stream.bytes, stream.lowest_address, list[tuple[int, int]]()
        for count, stride, _ in sorted(stream.loops, key=lambda loop: abs(loop[1])):
            if not stride:
                times *= count
            elif abs(stride) == extent and not outer:
                extent *= count
            else:
                outer.append((count, abs(stride)))
        number = 1
        for count, _ in outer:
            number *= count
        if number > MOST_RANGES:
            raise TraceError(
                f"stream of {stream.component}", "ranges of addresses", f"are {number}",
                "use memory lru",
            )  # fmt: skip
        start = np.array([low], np.int64)
        for count, stride in outer:
            start = np.add.outer(start, np.arange(count, dtype=np.int64) * stride).reshape(-1)
        counts = np.full(start.size, times, np.int64)
        zeros = np.zeros(start.size, np.int64)
        pair = (counts, zeros) if stream.op == OPS[0] else (zeros, counts)
        return cls.of([cls(start, start + extent, *pair)])

    @classmethod
    def of_accesses(cls, chunk: Accesses) -> Ranges:
        """Single accesses of one component."""
        write = chunk.op.astype(np.int64)
        return cls.of([cls(chunk.address, chunk.address + chunk.bytes, 1 - write, write)])

    @classmethod
    def of_runs(cls, runs: Runs) -> Ranges:
        """Runs of one component, as `Trace.runs` gives them.

        Raises
        ------
        TraceError
            There are too many separate ranges.
        """
        cycle, address, size, op = runs[:4]
        counts, by, wait = runs.loops()
        # Of a run without gaps each byte is accessed once, or as often as loops go round in one place.
        times, extent = np.where(by == 0, counts, 1).prod(0), size.copy()
        solid = np.ones(len(op), bool)
        for count, step in ((counts[1], by[1]), (counts[0], by[0])):
            moves = (count > 1) & (step != 0)
            solid &= ~moves | (abs(step) == extent)
            extent = np.where(moves, extent * count, extent)
        start = address + ((counts - 1) * by).clip(max=0).sum(0)
        write = op.astype(np.int64)
        columns = (start, start + extent, times * (1 - write), times * write)
        parts = [cls.of([cls(*(column[solid] for column in columns))])]
        left = np.flatnonzero(~solid).tolist()
        for row in left:
            loops = tuple(zip(*(c[:, row].tolist() for c in (counts, by, wait)), strict=True))
            bytes_, first, begin = (int(column[row]) for column in (size, address, cycle))
            stream = AccessStream("events", OPS[int(op[row])], bytes_, first, begin, loops)
            parts.append(cls.of_stream(stream))
        return cls.of(parts)

    def at(self, address: Longs) -> Longs:
        """Which range holds each address; -1 for none."""
        if not self.start.size:
            return np.full(address.shape, -1)
        place = np.searchsorted(self.start, address, side="right") - 1
        inside = (place >= 0) & (address < self.end[np.maximum(place, 0)])
        return np.where(inside, place, -1)


def carried(epochs: Sequence[Ranges]) -> list[Ranges]:
    """For each epoch the ranges that it leaves alone and that must outlive it.

    What an epoch touched must be kept for the next epoch that touches it if that one only reads.
    """
    ends = [np.append(epoch.start, epoch.end) for epoch in epochs]
    points = np.unique(np.concatenate([np.empty(0, np.int64), *ends]))
    if points.size < 2:
        return [Ranges.none() for _ in epochs]
    start, end = points[:-1], points[1:]
    kept = np.zeros((len(epochs), start.size), bool)
    wanted = np.zeros(start.size, bool)
    begun = np.zeros(start.size, np.int64)
    places = [epoch.at(start) for epoch in epochs]
    for place in places:
        begun += place >= 0
    left = begun.copy()
    for number in range(len(epochs) - 1, -1, -1):
        touched = places[number] >= 0
        left -= touched
        # Something earlier must have made it.
        kept[number] = wanted & ~touched & (left > 0)
        if epochs[number].start.size:
            only_read = epochs[number].writes[np.maximum(places[number], 0)] == 0
            wanted = np.where(touched, only_read, wanted)
    zeros = np.zeros(start.size, np.int64)
    return [
        Ranges(start[row], end[row], zeros[row], zeros[row]) if row.any() else Ranges.none()
        for row in kept
    ]
