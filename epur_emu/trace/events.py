"""Accesses that are in no stream: in memory, or left in the file that holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import h5py
import numpy as np

from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, OPS
from epur_emu.trace.accesses import Accesses, Runs
from epur_emu.trace.expansion import expand

#: Rows of a block: the cycles and addresses of each begin anew.
BLOCK = 1 << 16

#: Columns of events in a file, those of version 1 and all; a row of version 2 is a run.
SINGLE: dict[str, np.dtype[Any]] = {
    "cycle": np.dtype("<i8"),
    "address": np.dtype("<i8"),
    "op": np.dtype("u1"),
    "bytes": np.dtype("<i8"),
}
RUN = SINGLE | {
    "count": np.dtype("<i8"),
    "address_stride": np.dtype("<i8"),
    "cycle_stride": np.dtype("<i8"),
}

#: Most accesses that are read into memory at once.
MOST_IN_MEMORY = 1 << 22

Lane = tuple[int, Callable[[], Runs | None]]


class Summary:
    """Of one component: (accesses, bytes) by op, and which addresses and cycles they reach."""

    def __init__(self) -> None:
        self.sums = [(0, 0)] * len(OPS)
        self.end = 0
        self.first, self.last = LIMIT, -1

    def add(self, runs: Runs) -> None:
        """Take in runs that are in range."""
        cycle, address, size, count, by, wait, op = runs
        for code in range(len(OPS)):
            own = op == code
            sizes = size[own]
            times = np.ones(len(sizes), np.int64) if count is None else count[own]
            before = self.sums[code]
            self.sums[code] = before[0] + int(times.sum()), before[1] + int((times * sizes).sum())
        self.first = min(self.first, int(cycle.min()))
        reach, turns = address + size, (1 if count is None else count) - 1
        self.end = max(self.end, int((reach if by is None else reach + turns * by.clip(0)).max()))
        self.last = max(self.last, int((cycle if wait is None else cycle + turns * wait).max()))


class Events(Protocol):
    """Accesses by component, each in order of (cycle, op)."""

    #: By component index, of those that have events.
    summaries: dict[int, Summary]

    def lane(self, component: int) -> Iterator[Runs]:
        """Runs of a component in order of their first cycles, block by block."""


class InMemory:
    """Events of columns in order of (cycle, component, op)."""

    def __init__(self, accesses: Accesses) -> None:
        self.accesses = accesses
        self.summaries: dict[int, Summary] = {}
        for component in np.unique(accesses.component).tolist():
            self.summaries[component] = Summary()
            for runs in self.lane(component):
                self.summaries[component].add(runs)

    def lane(self, component: int) -> Iterator[Runs]:
        """As single accesses."""
        own = self.accesses[self.accesses.component == component]
        if len(own):
            yield own.cycle, own.address, own.bytes, None, None, None, own.op


class InFile:
    """Events that stay in a file; they are read when they are asked for.

    Parameters
    ----------
    path : str
    names : sequence of str
        Of the trace's components.
    held : sequence of str
        Names of those that have events.
    columns : dict
        `SINGLE` or `RUN`.
    summaries : dict, optional
        What the events amount to, where they were just written; otherwise all are read and checked.

    Raises
    ------
    TraceError
        A value is out of range or out of order, or the file has changed since.
    """

    def __init__(
        self, path: str, names: Sequence[str], held: Sequence[str], columns: dict[str, Any],
        summaries: dict[int, Summary] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self._names = tuple(names)
        self._columns = columns
        self._state = self._now()
        self.summaries: dict[int, Summary] = dict(summaries or {})
        for name in held if summaries is None else ():
            component = self._names.index(name)
            summary, before = Summary(), 0
            for runs in self.lane(component):
                before = self._check(name, runs, before)
                summary.add(runs)
                if max(sum(pair) for pair in zip(*summary.sums, strict=True)) > LIMIT:
                    raise self._error(name, "are over 2**62 bytes")
            if summary.last >= 0:
                self.summaries[component] = summary

    def _now(self) -> tuple[int, ...]:
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _error(self, name: str, problem: str) -> TraceError:
        return TraceError(self.path, f"events of {name}", problem, "make the trace anew")

    def lane(self, component: int) -> Iterator[Runs]:
        """Runs of a component, block by block."""
        name = self._names[component]
        try:
            if self._now() != self._state:
                raise TraceError(self.path, "", "has changed since it was opened", "open it again")
            with h5py.File(self.path, "r") as file:
                group = file["events"][name]
                for start in range(0, len(group["cycle"]), BLOCK):
                    part = slice(start, start + BLOCK)
                    found = {key: group[key][part] for key in self._columns}
                    yield (
                        np.cumsum(found["cycle"]), np.cumsum(found["address"]), found["bytes"],
                        found.get("count"), found.get("address_stride"), found.get("cycle_stride"),
                        found["op"],
                    )  # fmt: skip
        except (OSError, KeyError, RuntimeError) as error:
            raise self._error(name, f"can't be read ({error!s:.200})") from error

    def _check(self, name: str, runs: Runs, before: int) -> int:
        """Refuse a block with values out of range; returns its last run's cycle."""
        cycle, address, size, count, by, wait, op = runs
        turns = np.zeros(len(cycle), np.int64) if count is None else count - 1
        by, wait = (np.zeros(len(cycle), np.int64) if v is None else v for v in (by, wait))
        for field, column, least, most in (
            ("cycle", cycle, 0, LIMIT), ("address", address, 0, LIMIT), ("op", op, 0, len(OPS) - 1),
            ("bytes", size, 1, LIMIT), ("count", turns + 1, 1, LIMIT),
            ("cycle_stride", wait, 0, LIMIT), ("address_stride", by, -LIMIT, LIMIT),
        ):  # fmt: skip
            for extreme in (int(column.min()), int(column.max())):
                if not least <= extreme <= most:
                    raise TraceError(
                        self.path, f"events, {field}", f"of {name} are {extreme}",
                        "make the trace anew",
                    )  # fmt: skip
        many = np.maximum(turns, 1)
        too_far = (turns > 0) & ((wait > (LIMIT - cycle) // many) | (abs(by) > LIMIT // many))
        too_far |= size > LIMIT // (turns + 1)
        if not too_far.any():
            reach = turns * by
            too_far = (address + reach < 0) | (address + reach.clip(0) > LIMIT - size)
        if too_far.any() or float(((turns + 1.0) * size).sum()) > LIMIT:
            raise self._error(name, "reach beyond 2**62")
        if int(cycle[0]) < before or (np.diff(cycle) < 0).any():
            raise self._error(name, "are not in order")
        if count is None and ((np.diff(cycle) == 0) & (np.diff(op.astype(np.int8)) < 0)).any():
            raise self._error(name, "are not in order")
        return int(cycle[-1])


def count(events: Events) -> int:
    """How many accesses."""
    return sum(n for summary in events.summaries.values() for n, _ in summary.sums)


def lanes(events: Events, components: Collection[int]) -> list[Lane]:
    """What `expand` takes of these components."""
    found: list[Lane] = []
    for component in sorted(events.summaries.keys() & set(components)):
        source = events.lane(component)
        found.append((component, partial(next, source, None)))
    return found


def in_order(
    events: Events, chunk: int = BLOCK, components: Collection[int] | None = None
) -> Iterator[Accesses]:
    """The events alone, of all or of some components, in order of (cycle, component, op)."""
    chosen = events.summaries.keys() if components is None else components
    return expand((), lanes(events, chosen), chunk, 0, LIMIT + 1)


def in_memory(events: Events) -> Accesses:
    """All events as columns.

    Raises
    ------
    TraceError
        They are over `MOST_IN_MEMORY`.
    """
    if isinstance(events, InMemory):
        return events.accesses
    if (found := count(events)) > MOST_IN_MEMORY:
        raise TraceError(
            "trace", "events", f"are {found}, too many for memory at once", "take them by expand()"
        )
    return Accesses.join(in_order(events))
