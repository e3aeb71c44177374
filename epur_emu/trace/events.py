"""Accesses that are in no stream: in memory, or left in the file that holds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, OPS
from epur_emu.trace.accesses import Accesses, Runs
from epur_emu.trace.expansion import expand

#: Rows of a block: the cycles and addresses of each begin anew.
BLOCK = 1 << 16

#: Rows of events in a file, by major version: columns of single accesses, columns of runs, rows of two
#: loops.
SINGLE: dict[str, np.dtype[Any]] = {
    "cycle": np.dtype("<i8"),
    "address": np.dtype("<i8"),
    "op": np.dtype("u1"),
    "bytes": np.dtype("<i8"),
}
RUN = SINGLE | dict.fromkeys(("count", "address_stride", "cycle_stride"), np.dtype("<i8"))
NESTED = np.dtype(
    [
        ("op", "u1"), ("bytes", "<i8"), ("address", "<i8"), ("cycle", "<i8"),
        ("count", "<i8", (2,)), ("address_stride", "<i8", (2,)), ("cycle_stride", "<i8", (2,)),
    ]
)  # fmt: skip
FORMS: dict[int, dict[str, np.dtype[Any]] | None] = {1: SINGLE, 2: RUN, 3: None}

#: Most accesses that are read into memory at once.
MOST_IN_MEMORY = 1 << 22

Longs = npt.NDArray[np.int64]
Lane = tuple[int, Callable[[], Runs | None]]


class Summary:
    """Of one component: (accesses, bytes) by op, and which addresses and cycles they reach."""

    def __init__(self) -> None:
        self.sums = [(0, 0)] * len(OPS)
        self.end = 0
        self.first, self.last = LIMIT, -1

    def add(self, runs: Runs) -> None:
        """Take in runs that are in range."""
        cycle, address, size, op = runs[:4]
        end, last, times = address + size, cycle, np.ones(len(op), np.int64)
        if runs.counts is not None:
            count, by, wait = runs.loops()
            turns, times = count - 1, count[0] * count[1]
            end = end + (turns * by.clip(0)).sum(0)
            last = last + (turns * wait).sum(0)
        for code in range(len(OPS)):
            own = op == code
            before = self.sums[code]
            moved = int((times[own] * size[own]).sum())
            self.sums[code] = before[0] + int(times[own].sum()), before[1] + moved
        self.first = min(self.first, int(cycle.min()))
        self.end, self.last = max(self.end, int(end.max())), max(self.last, int(last.max()))


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
            yield Runs(own.cycle, own.address, own.bytes, own.op)


class InFile:
    """Events that stay in a file; they are read when they are asked for.

    Parameters
    ----------
    path : str
    names : sequence of str
        Of the trace's components.
    held : sequence of str
        Names of those that have events.
    major : int
        The file's version.
    summaries : dict, optional
        What the events amount to, where they were just written; otherwise all are read and checked.

    Raises
    ------
    TraceError
        A value is out of range or out of order, or the file has changed since.
    """

    def __init__(
        self, path: str, names: Sequence[str], held: Sequence[str], major: int,
        summaries: dict[int, Summary] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self._names = tuple(names)
        self._form = FORMS[major]
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
                held = file["events"][name]
                for start in range(0, len(held if self._form is None else held["op"]), BLOCK):
                    part = slice(start, start + BLOCK)
                    if self._form is None:
                        yield of_rows(held[part])
                    else:
                        yield _of_columns({key: held[key][part] for key in self._form})
        except (OSError, KeyError, RuntimeError) as error:
            raise self._error(name, f"can't be read ({error!s:.200})") from error

    def _check(self, name: str, runs: Runs, before: int) -> int:
        """Refuse a block with values out of range; returns its last run's cycle."""
        cycle, address, size, op = runs[:4]
        count, by, wait = runs.loops()
        for field, column, least, most in (
            ("cycle", cycle, 0, LIMIT), ("address", address, 0, LIMIT), ("op", op, 0, len(OPS) - 1),
            ("bytes", size, 1, LIMIT), ("count", count, 1, LIMIT),
            ("cycle_stride", wait, 0, LIMIT), ("address_stride", by, -LIMIT, LIMIT),
        ):  # fmt: skip
            for extreme in (int(column.min()), int(column.max())):
                if not least <= extreme <= most:
                    raise TraceError(
                        self.path, f"events, {field}", f"of {name} are {extreme}",
                        "make the trace anew",
                    )  # fmt: skip
        if _too_far(cycle, address, size, count, by, wait):
            raise self._error(name, "reach beyond 2**62")
        if ((count[0] > 1) & (wait[0] < (count[1] - 1) * wait[1])).any():
            raise self._error(name, "have turns that overlap")
        if int(cycle[0]) < before or (np.diff(cycle) < 0).any():
            raise self._error(name, "are not in order")
        single = runs.counts is None
        if single and ((np.diff(cycle) == 0) & (np.diff(op.astype(np.int8)) < 0)).any():
            raise self._error(name, "are not in order")
        return int(cycle[-1])


def _too_far(
    cycle: Longs, address: Longs, size: Longs, count: Longs, by: Longs, wait: Longs
) -> bool:
    """Whether values, each in range, give accesses that are not; no sum here may wrap."""
    turns, many = count - 1, np.maximum(count - 1, 1)
    if ((turns > 0) & (np.maximum(wait, abs(by)) > LIMIT // many)).any():
        return True
    if (count[0] > LIMIT // count[1]).any() or (size > LIMIT // (count[0] * count[1])).any():
        return True
    ahead, later = turns * by.clip(0), turns * wait
    if (ahead[0] > LIMIT - ahead[1]).any() or (later[0] > LIMIT - later[1]).any():
        return True
    back = address + (turns * by).clip(max=0).sum(0)
    beyond = (back < 0) | (ahead.sum(0) > LIMIT - size - address) | (later.sum(0) > LIMIT - cycle)
    return bool(beyond.any()) or float((count[0] * (count[1] * 1.0) * size).sum()) > LIMIT


def of_rows(rows: npt.NDArray[Any]) -> Runs:
    """Runs of rows of a file, whose cycles and addresses are differences."""
    # Copies: the only row of a table is contiguous where it lies, but not aligned.
    size, op = (np.array(rows[name]) for name in ("bytes", "op"))
    names = "count", "address_stride", "cycle_stride"
    strides = (np.array(rows[name].T, order="C") for name in names)
    return Runs(np.cumsum(rows["cycle"]), np.cumsum(rows["address"]), size, op, *strides)


def to_rows(runs: Runs) -> npt.NDArray[Any]:
    """The other way round."""
    rows = np.empty(len(runs.op), NESTED)
    rows["cycle"], rows["address"] = (np.diff(v, prepend=0) for v in (runs.cycle, runs.address))
    rows["bytes"], rows["op"] = runs.bytes, runs.op
    strides = zip(("count", "address_stride", "cycle_stride"), runs.loops(), strict=True)
    for name, column in strides:
        rows[name] = column.T
    return rows


def _of_columns(found: dict[str, npt.NDArray[Any]]) -> Runs:
    """Runs of columns of a file of version 1 or 2."""
    runs = Runs(
        np.cumsum(found["cycle"]), np.cumsum(found["address"]), found["bytes"], found["op"]
    )
    if "count" not in found:
        return runs
    count, by, wait = runs.loops()
    count[0], by[0], wait[0] = found["count"], found["address_stride"], found["cycle_stride"]
    return runs._replace(counts=count, by=by, wait=wait)


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
