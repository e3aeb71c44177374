"""The trace of a run: phases of access streams, single events, and what made them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, OPS, AccessStream, Component, Phase, check_integer
from epur_emu.trace import hdf5
from epur_emu.trace.accesses import Accesses, Runs
from epur_emu.trace.events import (
    Events,
    InFile,
    InMemory,
    count,
    in_memory,
    in_order,
    lanes,
)
from epur_emu.trace.expansion import expand
from epur_emu.trace.hdf5 import Content, Totals


class Trace:
    """Every access of a run, in closed form.

    Parameters
    ----------
    phases : sequence of Phase
    components : sequence of Component
        Memories that the streams and events name.
    cycles : int
        Cycles of the whole run.
    meta : dict of str to plain values
        What made it: network name and weight hash, arithmetic, accelerator, dataflow, sequence
        lengths, package version. Kept as its JSON form.
    events : Accesses, optional
        Accesses that are in no stream, in any order; kept in order of (cycle, component, op).
    complete : bool
        False if the run was interrupted.

    Raises
    ------
    TraceError
        A component is unknown or named twice, or a value is out of range.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        components: Sequence[Component],
        cycles: int,
        meta: dict[str, Any] | None = None,
        events: Accesses | None = None,
        complete: bool = True,
    ) -> None:
        self.components = tuple(components)
        self._place = {c.name: index for index, c in enumerate(self.components)}
        if len(self._place) != len(self.components):
            raise TraceError("trace", "components", "repeat a name", "name each once")
        self.cycles = check_integer("trace", "cycles", cycles, 0)
        self.meta: dict[str, Any] = json.loads(hdf5.meta_bytes(meta or {}))
        self.complete = bool(complete)
        self._phases: list[Phase] = []
        self._events: Events = InMemory(Accesses.none())
        self._added: list[Accesses] = []
        self._bytes = 0
        self.append(phases, events)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases in order."""
        return tuple(self._phases)

    @property
    def events(self) -> Accesses:
        """Accesses that are in no stream, in order of (cycle, component, op), in memory.

        Raises
        ------
        TraceError
            They are over 4 million; `expand` takes any number.
        """
        return in_memory(self._held())

    def single(
        self, chunk: int = 1 << 18, components: Sequence[str] | None = None
    ) -> Iterator[Accesses]:
        """Accesses that are in no stream, as `expand` gives them."""
        return in_order(self._held(), chunk, self._places(components))

    def runs(self, component: str) -> Iterator[Runs]:
        """Accesses of a component that are in no stream, in runs, block by block; never expands."""
        (place,) = self._places([component])
        held = self._held()
        return held.lane(place) if place in held.summaries else iter(())

    def _places(self, components: Sequence[str] | None) -> set[int]:
        """Indices of components, of all by default."""
        wanted = set(self._place if components is None else components)
        if unknown := wanted - set(self._place):
            raise TraceError(
                "trace", ", ".join(sorted(unknown)), "is no component",
                f"use one of {', '.join(self._place)}",
            )  # fmt: skip
        return {self._place[name] for name in wanted}

    def fitting(self, patterns: str) -> tuple[str, ...]:
        """Names of components that patterns (``cu.*.weights``), joined by commas, fit.

        A pattern that fits none stands for itself: a component that there is not.
        """
        found: dict[str, None] = {}
        for pattern in map(str.strip, patterns.split(",")):
            names = [name for name in self._place if fnmatchcase(name, pattern)]
            found |= dict.fromkeys(names or [pattern])
        return tuple(found)

    def _held(self) -> Events:
        """The events, those added last included."""
        if self._added:
            joined = Accesses.join([in_memory(self._events), *self._added])
            self._events, self._added = InMemory(joined.ordered()), []
        return self._events

    def append(self, phases: Sequence[Phase], events: Accesses | None = None) -> None:
        """Add phases behind those already here, and events.

        Raises
        ------
        TraceError
            A component is unknown, or the trace would exceed 2**62 bytes.
        """
        added = 0
        for phase in phases:
            for (component, _), (_, size) in phase.sums.items():
                added += size
                if component not in self._place:
                    raise TraceError(
                        "trace", f"phase {phase.kind} of {phase.layer}",
                        f"has a stream of {component}, which is no component",
                        f"use one of {', '.join(self._place)}",
                    )  # fmt: skip
        if events is not None and len(events):
            added += events.check("trace", len(self.components))
        if self._bytes + added > LIMIT:
            raise TraceError("trace", "bytes", "add up to over 2**62", "split the trace")
        self._bytes += added
        self._phases += phases
        if events is not None and len(events):
            self._added.append(events)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        own, others = self._content(), other._content()
        if own._replace(events=others.events) != others or count(own.events) != count(others.events):
            return False
        pairs = zip(in_order(own.events), in_order(others.events), strict=True)
        return all(a == b for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Trace({len(self.phases)} phases, {self.count()} accesses, {self.cycles} cycles"
            f"{'' if self.complete else ', incomplete'})"
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace from HDF5.

        Raises
        ------
        TraceError
            The file is missing, damaged, of an unknown version, or disagrees with its own totals.
        """
        content = hdf5.read(path)
        try:
            trace = cls(*content[:4], complete=content.complete)
            trace._hold(content.events)
        except TraceError as error:
            raise TraceError(path, error.field, error.problem, "make the trace anew") from error
        totals = trace.totals()
        for key in totals.keys() | content.totals.keys():
            ours, stored = totals.get(key), content.totals.get(key)
            if ours != stored:
                raise TraceError(
                    path, f"totals of phase, component, op {key}",
                    f"are (accesses, bytes) {stored}, the accesses give {ours}",
                    "make the trace anew",
                )  # fmt: skip
        return trace

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to HDF5, under a temporary name that is renamed at the end.

        Raises
        ------
        TraceError
            The file cannot be written (a full disk, say); what stood at `path` is untouched.
        """
        hdf5.save(path, self._content())

    def _hold(self, events: Events) -> None:
        """Take events as they are."""
        self._events = events
        self._bytes += sum(size for s in events.summaries.values() for _, size in s.sums)
        if self._bytes > LIMIT:
            raise TraceError("trace", "bytes", "add up to over 2**62", "split the trace")

    def _content(self) -> Content:
        return Content(
            self.phases, self.components, self.cycles, self.meta, self._held(), self.complete,
            self.totals(),
        )  # fmt: skip

    def count(self) -> int:
        """Number of accesses; never expands."""
        return sum(accesses for accesses, _ in self.totals().values())

    def bytes_by_component(self) -> dict[str, int]:
        """Bytes read and written of each component; never expands."""
        sums = dict.fromkeys(self._place, 0)
        for (_, component, _), (_, size) in self.totals().items():
            sums[component] += size
        return sums

    def totals(self) -> Totals:
        """(accesses, bytes) by (phase index, component, op); never expands.

        Accesses kept as single events count for phase index -1.
        """
        sums: Totals = {}
        for index, phase in enumerate(self.phases):
            for (component, op), both in phase.sums.items():
                sums[index, component, op] = both
        for index, summary in self._held().summaries.items():
            for op, both in zip(OPS, summary.sums, strict=True):
                if both[0]:
                    sums[-1, self.components[index].name, op] = both
        return sums

    def operations(self) -> dict[tuple[str, str], int]:
        """Number of operations by (name, unit)."""
        sums: dict[tuple[str, str], int] = {}
        for phase in self.phases:
            for name, unit, times in phase.operations:
                sums[name, unit] = sums.get((name, unit), 0) + times
        return sums

    def info(self) -> dict[str, Any]:
        """What ``epur trace info`` prints; plain values, never expands."""
        by_component = {n: {"reads": 0, "writes": 0, "bytes": 0} for n in self._place}
        for (_, component, op), (accesses, size) in self.totals().items():
            by_component[component][f"{op}s"] += accesses
            by_component[component]["bytes"] += size
        rows = by_component.values()
        return {
            "accesses": sum(row["reads"] + row["writes"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows),
            "by_component": by_component,
            "phases": len(self.phases),
            "streams": sum(len(phase.streams) for phase in self.phases),
            "events": count(self._held()),
            "cycles": self.cycles,
            "complete": self.complete,
            "meta": self.meta,
        }

    def validate(self) -> None:
        """Check that every access lies in its component's capacity and in the run's cycles.

        A file's totals and names are checked already by `open`.

        Raises
        ------
        TraceError
            One does not; the first such stream is named.
        """
        for phase in self.phases:
            where = f"phase {phase.kind} of {phase.layer}"
            for stream in phase.streams:
                self._check(where, stream.component, stream.end_address, stream.last_cycle)
        for index, summary in self._held().summaries.items():
            self._check("events", self.components[index].name, summary.end, summary.last)

    def _check(self, where: str, component: str, end: int, last: int) -> None:
        capacity = self.components[self._place[component]].capacity
        if capacity is not None and end > capacity:
            raise TraceError(
                "trace", f"{where}, {component}", f"reaches address {end} of {capacity} bytes",
                "mend the dataflow or the component's capacity",
            )  # fmt: skip
        if last >= self.cycles:
            raise TraceError(
                "trace", f"{where}, {component}", f"has cycle {last} in a run of {self.cycles}",
                "mend the dataflow or the run's cycles",
            )  # fmt: skip

    def expand(
        self,
        chunk: int = 1 << 18,
        components: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Accesses]:
        """Single accesses in order of (cycle, component, op).

        Equals stand in order of phases, then of streams, then of their loops; events come last. The
        order does not depend on `chunk`.

        Parameters
        ----------
        chunk : int
            Most accesses of one chunk; memory is proportional to it.
        components : sequence of str, optional
            Only the accesses of these.
        start, stop : int
            Only those in cycles ``start <= cycle < stop``. A later start costs nothing.

        Yields
        ------
        Accesses
            Columns cycle, component (index into `components` of the trace), op (0 read, 1 write),
            address and bytes; never empty.

        Raises
        ------
        TraceError
            A component is unknown, or `chunk` below 1.
        """
        if chunk < 1:
            raise TraceError("trace", "chunk", f"is {chunk}", "give 1 or more")
        wanted = self._places(components)
        streams: list[tuple[int, AccessStream]] = [
            (self._place[stream.component], stream)
            for phase in self.phases
            for stream in phase.streams
            if self._place[stream.component] in wanted
        ]
        found = lanes(self._held(), wanted)
        return expand(streams, found, chunk, max(start, 0), LIMIT + 1 if stop is None else stop)

    @classmethod
    def concatenate(cls, traces: Sequence[Trace]) -> Trace:
        """One trace of several whose cycles already follow one another; phases in order.

        The meta data are those of the first; the run's cycles are the largest.

        Raises
        ------
        TraceError
            There is none, or their components differ.
        """
        if not traces:
            raise TraceError("traces", "", "are none", "give at least one")
        first = traces[0]
        if any(trace.components != first.components for trace in traces):
            raise TraceError("traces", "components", "differ", "join traces of one accelerator")
        return cls(
            [phase for trace in traces for phase in trace.phases],
            first.components,
            max(trace.cycles for trace in traces),
            first.meta,
            Accesses.join(trace.events for trace in traces),
            all(trace.complete for trace in traces),
        )


class EventWriter(hdf5.Writer):
    """A trace of events that is written as they come, in bounded memory; see `hdf5.Writer`."""

    def _content(
        self, phases: Sequence[Phase], cycles: int, meta: dict[str, Any], complete: bool
    ) -> Content:
        trace = Trace(phases, self.components, cycles, meta, complete=complete)
        totals = trace.totals()
        for index, summary in self.summaries.items():
            for op, sums in zip(OPS, summary.sums, strict=True):
                if sums[0]:
                    totals[-1, self.components[index].name, op] = sums
        return trace._content()._replace(totals=totals)

    def finish_events(self, phases: Sequence[Phase], cycles: int, meta: dict[str, Any]) -> Trace:
        """Complete the file with what belongs to the events; returns its trace."""
        content = self._content(phases, cycles, meta, complete=True)
        self.finish(content)
        names = [c.name for c in self.components]
        trace = Trace(*content[:4])
        trace._hold(InFile(str(self.path), names, (), hdf5.WITH_EVENTS[0], self.summaries))
        return trace

    def partial(self, phases: Sequence[Phase], cycles: int, meta: dict[str, Any]) -> None:
        """Keep what there is as ``<path>.partial``, marked incomplete."""
        self.path = self.path.with_name(f"{self.path.name}.partial")
        self.finish(self._content(phases, cycles, meta, complete=False))


@contextmanager
def recording(
    path: str | os.PathLike[str],
    components: Sequence[Component],
    meta: dict[str, Any] | None = None,
) -> Iterator[Trace]:
    """A trace to be appended to; saved at `path` when the block ends.

    If the block is left by an exception, what was appended so far goes to ``<path>.partial``,
    marked incomplete.

    Yields
    ------
    Trace
        Set its `cycles` before the block ends.
    """
    trace = Trace((), components, 0, meta, complete=False)
    try:
        yield trace
    except BaseException:
        trace.save(f"{os.fspath(path)}.partial")
        raise
    trace.complete = True
    trace.save(path)
