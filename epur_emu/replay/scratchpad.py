"""Capacity sweep of software-managed buffers: what each size would fetch again, and its energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np

from epur_emu.energy import EnergyTable
from epur_emu.errors import TableError, TraceError
from epur_emu.replay.base import Advance, Result, Source
from epur_emu.replay.intervals import Ranges, carried
from epur_emu.replay.sizes import check_sizes
from epur_emu.streams import OPS, AccessStream, Component
from epur_emu.trace import Accesses, Trace

#: Smallest size of a sweep, if none are given.
SMALLEST = 1 << 10

#: Kinds of buffers that bring in what they hold; others are written by the chip.
FETCHED = ("weights", "row")

#: The component that stands for the memory outside.
DRAM = "dram"

#: 1 mW over 1 s.
PJ_PER_MW_SECOND = 1e9


@dataclass
class _Buffer:
    """Accesses of one component: ranges by epoch, and port accesses by operation."""

    component: Component
    epochs: list[Ranges]
    ports: dict[str, int]
    accesses: int = 0
    bytes: int = 0

    def count(self, op: str, size: int, accesses: int) -> None:
        self.accesses += accesses
        self.bytes += accesses * size
        self.ports[op] += accesses * -(-8 * size // self.component.width_bits)


class Scratchpad:
    """What buffers of each size would have to fetch again.

    An epoch is the time of one pass, or of several that overlap. In each epoch a buffer of S bytes
    keeps the S bytes whose absence would cost most, and the others go past it: that is the least
    traffic of any fixed choice of bytes. A byte that is read r times and written w times costs
    r - w bytes in buffers that are filled from outside (the first fetch is in the trace), r + w in
    those that the chip writes. A byte that must outlive an epoch without being touched costs 2, for
    its way out and back. Single events of a trace are one epoch of their own.

    Parameters
    ----------
    source : Source
    sizes : sequence of int, optional
        Bytes; by default doubling from 1 KiB until nothing is fetched again.
    table : str
        Energy table, a preset or a file. Energy is given if the trace tells its accelerator and
        the table has, or can interpolate, the size.

    Raises
    ------
    TraceError
        An option is not valid.
    TableError
        The table is unknown or damaged.
    """

    def __init__(
        self, source: Source, sizes: Sequence[int] | None = None, table: str = "epur-28nm"
    ) -> None:
        self._source = source
        self._sizes = None if sizes is None else check_sizes(sizes, 1)
        # Loading takes longer than a small sweep.
        self._table = EnergyTable.load(table) if source.accelerator else None
        self._dram_bytes = 0
        self._buffers = {
            place: _Buffer(source.components[place], [], dict.fromkeys(OPS, 0))
            for place in source.chosen
            if source.components[place].capacity is not None
            and source.components[place].name != DRAM
        }
        if not self._buffers:
            raise TraceError(
                "replay",
                "component",
                "is no buffer: it is the DRAM, or has no capacity",
                "choose a buffer",
            )
        self._fed = {place: Ranges.none() for place in self._buffers}

    def feed(self, chunk: Accesses) -> None:
        """Take the next accesses; all that is fed is one epoch."""
        for place, buffer in self._buffers.items():
            own = chunk[chunk.component == place]
            if not len(own):
                continue
            self._fed[place] = Ranges.of([self._fed[place], Ranges.of_accesses(own)])
            for code, op in enumerate(OPS):
                sizes, counts = np.unique(own.bytes[own.op == code], return_counts=True)
                for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
                    buffer.count(op, size, count)

    def take(self, trace: Trace, advance: Advance) -> bool:
        """Take all of a trace in closed form."""
        self._dram_bytes = sum(
            size for name, size in trace.bytes_by_component().items() if name == DRAM
        )
        places = {c.name: place for place, c in enumerate(trace.components)}
        for epoch in _epochs(trace):
            parts: dict[int, list[Ranges]] = {place: [] for place in self._buffers}
            for stream in epoch:
                place = places[stream.component]
                if place in parts:
                    parts[place].append(Ranges.of_stream(stream))
                    self._buffers[place].count(stream.op, stream.bytes, stream.accesses)
                    advance(stream.accesses)
            for place, ranges in parts.items():
                self._buffers[place].epochs.append(Ranges.of(ranges))
        names = [buffer.component.name for buffer in self._buffers.values()]
        for chunk in trace.single(components=names):
            self.feed(chunk)
            advance(len(chunk))
        return True

    def result(self) -> Result:
        """For each buffer the smallest size without re-fetch, and a sweep."""
        sweeps = []
        for place, buffer in self._buffers.items():
            if self._fed[place].start.size:
                buffer.epochs.append(self._fed[place])
            sweeps.append(_Sweep(buffer))
        smallest = max((sweep.smallest for sweep in sweeps), default=0)
        top = max(1, -(-smallest // SMALLEST)) - 1
        sizes = self._sizes or tuple(SMALLEST << n for n in range(top.bit_length() + 1))
        rows = [self._row(sweep, sizes) for sweep in sweeps]
        total = sum(sweep.buffer.bytes for sweep in sweeps)
        again = [sum(row["refetch_bytes"][n] for row in rows) for n in range(len(sizes))]
        return Result(
            "scratchpad",
            ",".join(buffer.component.name for buffer in self._buffers.values()),
            sum(sweep.buffer.accesses for sweep in sweeps),
            tuple((s, n / total if total else 0.0) for s, n in zip(sizes, again, strict=True)),
            {"table": self._table and f"{self._table.name}:{self._table.cell}", "sizes": list(sizes),
             "components": rows},
        )  # fmt: skip

    def _row(self, sweep: _Sweep, sizes: Sequence[int]) -> dict[str, Any]:
        component = sweep.buffer.component
        again = [sweep.refetched(size) for size in sizes]
        outside = component.name.rpartition(".")[2] != "inputs"
        return {
            "component": component.name,
            "capacity_bytes": component.capacity,
            "smallest_bytes": sweep.smallest,
            "epochs": len(sweep.buffer.epochs),
            "accesses": sweep.buffer.accesses,
            "bytes": sweep.buffer.bytes,
            "refetched_from": DRAM if outside else "intermediate",
            "refetch_bytes": again,
            "dram_bytes": [self._dram_bytes + n * outside for n in again],
            "energy_pj": [
                self._energy(sweep.buffer, size, n) for size, n in zip(sizes, again, strict=True)
            ],
        }

    def _energy(self, buffer: _Buffer, size: int, again: int) -> float | None:
        """Of the buffer itself, and of what is fetched again and written to it; pJ."""
        component, table, accelerator = buffer.component, self._table, self._source.accelerator
        kind = component.name.rpartition(".")[2]
        width = component.width_bits
        if table is None or accelerator is None:
            return None
        try:
            memory = table.memory(kind, size, width, component.banks)
            if kind == "inputs":
                shared = next(c for c in self._source.components if c.name == "intermediate")
                outer = table.memory(
                    "intermediate", shared.capacity or 0, shared.width_bits, shared.banks
                )
                fetch = outer.read_pj.value * 8 / outer.width_bits
            else:
                fetch = table.dram_of(None).pj_per_byte("read")
        except (StopIteration, TableError):
            return None
        seconds = accelerator.seconds(self._source.cycles)
        return fsum(
            [
                buffer.ports["read"] * memory.read_pj.value,
                buffer.ports["write"] * memory.write_pj.value,
                memory.leakage_mw.value * PJ_PER_MW_SECOND * seconds,
                again * (fetch + memory.write_pj.value * 8 / width),
            ]
        )


class _Sweep:
    """What a buffer would fetch again at any size."""

    def __init__(self, buffer: _Buffer) -> None:
        self.buffer, self.smallest = buffer, 0
        filled = buffer.component.name.rpartition(".")[2] in FETCHED
        self._epochs = []
        for epoch, kept in zip(buffer.epochs, carried(buffer.epochs), strict=True):
            cost = epoch.reads - epoch.writes if filled else epoch.reads + epoch.writes
            cost = np.concatenate([np.maximum(cost, 0), np.full(kept.start.size, 2)])
            size = np.concatenate([epoch.size, kept.size])
            self.smallest = max(self.smallest, int(size[cost > 0].sum()))
            order = np.argsort(-cost, kind="stable")
            size, cost = size[order], cost[order]
            # What is left to fetch if the first bytes are kept, at the end of each range.
            ends = np.concatenate([[0], np.cumsum(size)])
            left = np.concatenate([np.cumsum((size * cost)[::-1])[::-1], [0]])
            self._epochs.append((ends, left, np.append(cost, 0)))

    def refetched(self, size: int) -> int:
        """Bytes that a buffer of `size` bytes fetches again, or writes out early."""
        total = 0
        for ends, left, cost in self._epochs:
            place = int(np.searchsorted(ends, size, side="right")) - 1
            total += int(left[place]) - (size - int(ends[place])) * int(cost[place])
        return total


def _epochs(trace: Trace) -> list[list[AccessStream]]:
    """The streams of each pass, those of passes that overlap together, in order of time."""
    spans: dict[str, tuple[int, int, list[AccessStream]]] = {}
    for phase in trace.phases:
        if not phase.streams:
            continue
        first, end, streams = spans.get(phase.layer, (phase.first_cycle, 0, []))
        streams += phase.streams
        end = max(end, phase.first_cycle + phase.cycles)
        spans[phase.layer] = (min(first, phase.first_cycle), end, streams)
    joined: list[list[AccessStream]] = []
    last = 0
    for first, end, streams in sorted(spans.values(), key=lambda span: span[:2]):
        if joined and first < last:
            joined[-1] += streams
        else:
            joined.append(list(streams))
        last = max(last, end)
    return joined
