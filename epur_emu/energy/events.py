"""What an energy needs of accesses in no stream: found from their runs, never from single accesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from epur_emu.streams import LIMIT, OPS
from epur_emu.trace.accesses import Runs

#: Of each memory of a component, in order of addresses: first address, bytes of a bank, last bank.
Edges = Sequence[tuple[int, int, int]]


def _memories(edges: Edges) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, first address and end of each memory, bytes of a bank, last bank."""
    ends = [*(start for start, _, _ in edges[1:]), LIMIT + 1]
    for index, ((start, bank, most), end) in enumerate(zip(edges, ends, strict=True)):
        yield index, start, end, bank, most


@dataclass
class Tally:
    """Accesses in no stream of a component: how many, which banks, and when."""

    #: By memory, op and bytes.
    accesses: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    #: Memory, first and last of banks that are all touched.
    banks: set[tuple[int, int, int]] = field(default_factory=set)
    first: int = LIMIT
    last: int = -1

    def add(self, runs: Runs, edges: Edges) -> None:
        """Take in a block; runs are those of `Trace.runs`."""
        cycle, address, size, op = runs[:4]
        counts, by, wait = runs.loops()
        self.first = min(self.first, int(cycle.min()))
        self.last = max(self.last, int((cycle + ((counts - 1) * wait).sum(0)).max()))
        reach, count = (counts - 1) * by, counts[0] * counts[1]
        low, top = address + reach.clip(max=0).sum(0), address + reach.clip(0).sum(0)
        outer, inner = np.where(counts > 1, abs(by), 0)
        # The widest way from one access to the next one above it, or more.
        step = np.maximum(inner, outer - abs(reach[1]))
        left = np.ones(len(op), bool)
        for index, start, end, bank, most in _memories(edges):
            # Steps wider than a bank may pass by some.
            whole = (low >= start) & (top < end) & (step <= bank)
            left &= ~whole
            for code in range(len(OPS)):
                own = whole & (op == code)
                sizes, place = np.unique(size[own], return_inverse=True)
                sums = np.zeros(len(sizes), np.int64)
                np.add.at(sums, place, count[own])
                for one, n in zip(sizes.tolist(), sums.tolist(), strict=True):
                    self.accesses[index, code, one] += n
            begin = np.minimum((low[whole] - start) // bank, most)
            finish = np.minimum((top[whole] + size[whole] - 1 - start) // bank, most)
            # One number for both: unique rows would be sorted as strings of bytes, slowly.
            for both in np.unique(begin * (most + 1) + finish).tolist():
                self.banks.add((index, *divmod(both, most + 1)))
        columns = (
            low[left], outer[left], counts[0, left], inner[left], counts[1, left], size[left], op[left]
        )  # fmt: skip
        for place, far, times, *run in zip(*(column.tolist() for column in columns), strict=True):
            for n in range(times):
                self._spread(edges, place + n * far, *run)

    def _spread(
        self, edges: Edges, low: int, step: int, count: int, size: int, op: int
    ) -> None:
        """Take in a run of several memories, or one that may leave banks out."""
        for index, start, end, bank, most in _memories(edges):
            first, stop = (
                min(count, max(0, -((low - edge) // step))) if step else count * (low < edge)
                for edge in (start, end)
            )
            if first == stop:
                continue
            self.accesses[index, op, size] += stop - first
            places = [low - start + n * step for n in (first, stop - 1)]
            if step <= bank:
                self._touch(index, places[0] // bank, (places[1] + size - 1) // bank, most)
                continue
            # Each is in a bank of its own, until the last.
            places += [places[0] + n * step for n in range(min(stop - first, most + 1))]
            for place in places:
                self._touch(index, place // bank, (place + size - 1) // bank, most)

    def _touch(self, index: int, low: int, high: int, most: int) -> None:
        self.banks.add((index, min(low, most), min(high, most)))
