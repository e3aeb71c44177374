"""Probe mode: a run's accesses performed one by one on models of the memories, each logged as it happens.

The walk follows the hardware's order by loops of its own (``_kernels/probe.h``); of a schedule it takes
places and the cycles in which passes begin. What its reads deliver is compared with the operands of the
arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from epur_emu._kernels.probe import Log, Walk
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import Schedule, batch, decode, epur, mu, mwl, tiled
from epur_emu.dataflow.layout import Builder, Given, Machine, Run
from epur_emu.dataflow.regions import Order, row_bursts, sequence, state_bursts
from epur_emu.dataflow.stored import matrix_bytes, rows_kept, rows_that_fit
from epur_emu.errors import AcceleratorError, TraceError
from epur_emu.network import GATES, LayerShape, Network
from epur_emu.rounding import level_number
from epur_emu.streams import Phase
from epur_emu.trace import EventWriter, Trace
from epur_emu.trace.accesses import Runs

F32 = npt.NDArray[np.float32]
#: Initial (h, c) of each pass.
States = Sequence[tuple[F32, F32]]

#: Rows that are handed to the writer at once.
ENOUGH = 1 << 15
#: Most time steps, or neurons, that are walked before it is seen whether there are so many.
STRETCH = 64

_INITIAL = ("zero", "dram", "intermediate")
_SOURCES = ("dram", "intermediate", "spilled")


class _Recorder:
    """Hands rows in order of time to a writer in a thread of its own."""

    def __init__(self, writer: EventWriter, log: Log) -> None:
        self._writer, self.log = writer, log
        self._late = np.empty((0, 11), np.int64)
        self._queue: Queue[list[tuple[int, Runs]] | None] = Queue(2)
        self._failed: BaseException | None = None
        self._thread = Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while (parts := self._queue.get()) is not None:
            try:
                for component, runs in parts if self._failed is None else ():
                    self._writer.runs(component, runs)
            except BaseException as error:  # the walk ends with it
                self._failed = error

    def reached(self, cycle: int | None) -> None:
        """All later accesses are in this cycle or behind; None at the end."""
        if self._failed is not None:
            raise self._failed
        if cycle is not None and len(self.log) < ENOUGH:
            return
        rows = np.concatenate([self._late, self.log.take()])
        rows = rows[np.argsort(rows[:, 1], kind="stable")]
        due = len(rows) if cycle is None else int(np.searchsorted(rows[:, 1], cycle))
        self._late, rows = rows[due:], rows[:due]
        parts: list[tuple[int, Runs]] = []
        for component in np.unique(rows[:, 0]).tolist():
            own = rows[rows[:, 0] == component].T.copy()
            op, (count, by, wait) = own[4].astype(np.uint8), own[5:].reshape(3, 2, -1)
            parts.append((component, Runs(own[1], own[2], own[3], op, count, by, wait)))
        self._queue.put(parts)

    def close(self) -> None:
        """Wait for the writer."""
        self._queue.put(None)
        self._thread.join()


@dataclass(frozen=True)
class _Pass:
    """A pass of a plan.

    Parameters
    ----------
    way : {"epur", "mwl", "tiled"}
        How it is walked.
    shape : LayerShape
    given : tuple of Given
        Of each sequence.
    direction : int
        Its number in its layer.
    ahead : (LayerShape, Given), optional
        A pass whose weights come meanwhile.
    period : int
        Cycles from one repetition to the next, when decoding.
    """

    way: str
    shape: LayerShape
    given: tuple[Given, ...]
    direction: int = 0
    ahead: tuple[LayerShape, Given] | None = None
    period: int = 0


@dataclass(frozen=True)
class _Member:
    """What a sequence brings to a pass; see `Walk`."""

    source: F32
    operands: F32
    values: F32
    h: F32
    spilled: F32 | None = None


@dataclass
class Probe:
    """Walks the passes of one run.

    Parameters
    ----------
    machine : Machine
    shape : tuple of tuple of LayerShape
    log : Log
    recorder : _Recorder
    bar : progress bar
    level : int
        Number of the kernel's CPU level.
    """

    machine: Machine
    shape: tuple[tuple[LayerShape, ...], ...]
    log: Log
    recorder: _Recorder
    bar: Any
    level: int

    def __post_init__(self) -> None:
        m, a = self.machine, self.machine.accelerator
        self._place = {c.name: n for n, c in enumerate(m.components())}
        self._held = np.zeros((4, max(1, a.weight_buffer_bytes // a.width)), np.uint32)
        #: By pass, numbers of the first units of its weights, and of W_x alone where it lies apart.
        self._tags: dict[str, tuple[int, int]] = {}
        tag = 1
        for shape in (p for layer in self.shape for p in layer):
            own = m.of(shape)
            unit = max(own.sw.values()) // a.width
            self._tags[shape.name] = tag, tag + shape.cells * own.nh * unit
            tag += shape.cells * (own.nx + own.nh) * unit

    def walk(
        self, shape: LayerShape, given: Sequence[Given], members: Sequence[_Member], out: F32,
        x_base: int = 0, **special: Any,
    ) -> Walk:  # fmt: skip
        """A pass on fresh input and row buffers; `special` numbers replace the usual ones."""
        m, own, a, head = self.machine, self.machine.of(shape), self.machine.accelerator, given[0]
        t = mu.timeline(a, shape.peepholes)
        in_dram = head.source == "dram"
        tag, tag_x = self._tags[shape.name]
        stored = special.pop("stored", 1)
        numbers = {
            "width": a.width, "burst": m.burst, "capacity": a.weight_buffer_bytes,
            "cells": shape.cells, "inputs": shape.inputs, "nx": own.nx, "nh": own.nh,
            "xe": m.xe, "ye": m.ye, "ce": own.ce, "sx": m.sx, "sy": m.sy, "sc": own.sc,
            **{key: [getattr(own, key)[q] for q in GATES] for key in ("sw", "sb", "be", "pe")},
            "weights": [self._place[f"cu.{q}.weights"] for q in GATES],
            "inputs_of": [self._place[f"cu.{q}.inputs"] for q in GATES],
            "row_of": [self._place.get(f"cu.{q}.row", -1) for q in GATES],
            "mid": self._place["intermediate"], "dram": self._place["dram"],
            "reverse": shape.reverse, "peepholes": shape.peepholes, "load": head.load,
            "initial": _INITIAL.index(head.initial),
            "matrix": [head.matrix[q] for q in GATES], "bank": [head.bank[q] for q in GATES],
            "rows": head.dram_weights, "params": head.dram_weights + epur.rows_bytes(m, shape),
            "x_from": _SOURCES.index(head.source), "x_base": x_base,
            "x_pitch": m.bursts(own.nx * m.sx) * m.burst if in_dram else own.nx * m.sy,
            "x_sub": m.sx if in_dram else m.sy, "y_pitch": head.pitch,
            "y_base": head.half_address, "kept": -1, "partials": 0,
            "dpu": a.dpu_latency, "add": 0, "link": a.link_cycles, "quantise": 0, "lookup": 0,
            "p": t.p, "tm": t.tm, "tc": t.tc, "z": t.z, "tag": tag, "tag_x": tag_x,
            "share": a.accumulators, "region": epur.vector_bytes(m, shape), "stay": shape.cells,
            "cell_at": 0,
        }  # fmt: skip
        elements = (own.nx + 2 * own.nh) * a.width
        found = []
        for each, one in zip(given, members, strict=False):
            spilled = each.spill is not None
            shapes = [one.operands.shape, one.values.shape, one.h.shape]
            if shapes != [(each.steps, shape.inputs), (each.steps, shape.cells), (shape.cells,)]:
                raise TraceError(
                    "probe", shape.name, f"has inputs, outputs and initial h of shapes {shapes}",
                    f"give ({each.steps}, {shape.inputs}), ({each.steps}, {shape.cells}) and ({shape.cells},)",
                )  # fmt: skip
            found.append((
                each.steps, special.get("x", each.source_address),
                head.half_address if spilled else each.out_address, each.state_address,
                each.spill or 0, one.source, one.operands, one.values, self.padded(one.h),
                one.spilled, np.zeros(elements, np.float32), np.zeros(elements, np.uint8),
            ))  # fmt: skip
        before = [p for p in self._before(shape) if head.parts]
        parts = [(at, p.cells, subs) for p, (at, subs) in zip(before, head.parts, strict=True)]
        rows = np.zeros((4, max(1, a.row_buffer_bytes // a.width)), np.uint32)
        return Walk(
            self.level, self.log, numbers | special, found, out, self._held, rows, np.zeros(stored, np.uint8),
            np.array(parts, np.int64).reshape(-1, 3),
        )  # fmt: skip

    def _before(self, shape: LayerShape) -> tuple[LayerShape, ...]:
        """The passes of the layer before."""
        (number,) = (n for n, layer in enumerate(self.shape) if shape in layer)
        return self.shape[number - 1] if number else ()

    def padded(self, vector: F32) -> F32:
        """A vector, or rows, in whole sub-vectors."""
        width = self.machine.subs(vector.shape[-1]) * self.machine.accelerator.width
        out = np.zeros((*vector.shape[:-1], width), np.float32)
        out[..., : vector.shape[-1]] = vector
        return out

    def check(self, shape: LayerShape, walk: Walk) -> None:
        """Raise `TraceError` if a read found something else than the arithmetic took."""
        if walk.wrong:
            raise TraceError(
                "probe", shape.name, f"has {walk.wrong} reads of something else than the operands",
                "report it: this is a fault of the dataflow",
            )  # fmt: skip
        self.bar.update(self.log.accesses - self.bar.n)

    def run(
        self, item: _Pass, members: Sequence[_Member], out: F32, x_base: int, **special: Any
    ) -> int:
        """Walk a pass; returns when it ends."""
        self.recorder.reached(item.given[0].cycle)
        how = self._epur if item.way == "epur" else self._stored
        return how(item, members, out, x_base, **special)

    def _epur(
        self, item: _Pass, members: Sequence[_Member], out: F32, x_base: int, **special: Any
    ) -> int:
        m, a, shape, given = self.machine, self.machine.accelerator, item.shape, item.given
        own, head, z = m.of(shape), given[0], mu.timeline(a, shape.peepholes).z
        n, cells = own.nx + own.nh, shape.cells
        walk = self.walk(shape, given, members, out, x_base, **special)
        bursts = walk.parameters(head.cycle) if head.load else 0
        waits = {"zero": len(given) * own.nh, "dram": 0, "intermediate": 2 * own.nh}
        for number in range(len(given)):
            cycle, moved = head.cycle, bursts + number * state_bursts(m, shape)
            if head.initial != "dram":
                cycle += number * own.nh
            walk.state(number, cycle, moved, own.nx * m.sx, (own.nx + 2 * own.nh) * m.sx)
        if head.initial == "dram":
            bursts += len(given) * state_bursts(m, shape)
        loaded = head.cycle + max(m.channel(bursts), waits[head.initial])
        pace, start = len(given) * n, loaded
        if head.load:
            pace = max(pace, m.channel(sum(row_bursts(m, shape, n))))
            start += pace
        elif item.ahead:
            self._prefetch(item.ahead, out)
        end = head.cycle

        def size(number: int, left: int) -> int:
            """Of the group in which a sequence shares weights."""
            share = a.accumulators
            return min(share, left - number // share * share)

        t = 0
        while t < head.steps:
            left, then = (sum(each.steps > step for each in given) for step in (t, t + 1))
            # Steps alike: none is the first, and in none a sequence ends.
            alike = min(each.steps for each in given[:left]) - t - 1
            count = min(alike, max(1, STRETCH // left)) if t and alike > 0 else 1
            every = left * n if t else pace
            tails = (
                (n - 1) * size(k, left) + a.dpu_latency + z + 1 - own.nx * size(k, then) - left * n
                for k in range(then)
            )
            step = (cells - 1) * every + left * n + max(0, 0, *tails)
            end = max(end, walk.epur(t, count, left, start, step, every, loaded) + 1)
            if t == 0 and head.load and item.ahead:
                self._prefetch(item.ahead, out)
            t, start = t + count, start + count * step
            self.recorder.reached(start if then else min(start, end))
        self.check(shape, walk)
        return end if head.spill is None else end + m.channel(m.bursts(own.nh * m.sy))

    def _prefetch(self, ahead: tuple[LayerShape, Given], out: F32) -> None:
        m, (shape, given) = self.machine, ahead
        n = m.of(shape).nx + m.of(shape).nh
        walk = self.walk(shape, [given], [], out)
        begin = given.cycle + m.channel(walk.parameters(given.cycle))
        walk.prefetch(begin, m.channel(sum(row_bursts(m, shape, n))))

    def _stored(self, item: _Pass, members: Sequence[_Member], out: F32, x_base: int) -> int:
        """MWL's order, or tiles: stretches of a forward and a recurrent part."""
        m, a, shape, (given,) = self.machine, self.machine.accelerator, item.shape, item.given
        own, steps, cells, tiles = m.of(shape), given.steps, shape.cells, item.way == "tiled"
        rows = [row_bursts(m, shape, subs) for subs in (own.nx, own.nh)]
        matrices = sum(matrix_bytes(m, shape, subs) for subs in (own.nx, own.nh))
        sums = [(own.ae if tiles else own.pe)[q] for q in GATES]
        longest = min(steps, (m.half - steps * given.pitch) // (cells * sum(sums)))
        stay, both = rows_kept(m, shape), longest < steps or tiles
        h_subs = max(own.nx, own.nh) if both else own.nh
        special: dict[str, Any] = {
            "pe": sums, "stay": stay, "cell_at": h_subs * m.sx, "params": given.dram_weights + matrices,
            "partials": given.half_address + steps * given.pitch, "stored": longest * cells * 4,
        }  # fmt: skip
        quantised = own.quantised and not tiles
        add = 0 if tiles else a.add_cycles
        quantise, lookup = (c if quantised else 0 for c in (a.quantise_cycles, a.lookup_cycles))
        special |= {"add": add, "quantise": quantise, "lookup": lookup}
        staged = given.source == "dram"
        if staged:
            special |= {"x": 0, "x_pitch": own.nx * m.sx, "x_from": _SOURCES.index("intermediate")}
        walk = self.walk(shape, [given], members, out, x_base, **special)
        begin = given.cycle + m.channel(walk.parameters(given.cycle))
        if staged and item.direction == 0:
            size = own.nx * m.sx
            row, wait = m.bursts(size) * m.burst, m.channel(m.bursts(size))
            for t in range(steps):
                walk.stage(begin, given.source_address + t * row, size, t * size)
                begin += wait
        turn = max(own.nh, m.channel(sum(rows[1])))
        tail = a.dpu_latency + lookup + add + mu.timeline(a, shape.peepholes).z
        for first in range(0, steps, longest):
            span = min(longest, steps - first)
            low = steps - first - span if shape.reverse else first
            if tiles:
                walk.stretch(first, span, low, max(own.nx, m.channel(sum(rows[0]))))
                size = min(cells, rows_that_fit(m, shape, own.nx))
                for k in range(0, cells, size):
                    self.recorder.reached(begin)
                    begin = walk.tile(k, min(size, cells - k), begin)
            else:
                moved = sum(rows[0]) + (0 if first else sum(rows[1]))
                pace = max(span * own.nx, m.channel(moved))
                walk.stretch(first, span, low, pace)
                for k in range(0, cells, STRETCH):
                    self.recorder.reached(begin + k * pace)
                    walk.forward(k, min(STRETCH, cells - k), begin + k * pace)
                begin += (cells + 1) * pace
            start = begin + a.dpu_latency + quantise
            self.recorder.reached(begin)
            if first == 0:
                bursts = state_bursts(m, shape) if given.initial == "dram" else 0
                walk.state(0, start, 0, 0, h_subs * m.sx)
                start += max(m.channel(bursts), 0 if bursts else own.nh)
            t, over = first, first + span
            while t < over:
                here = 0 if tiles and t == first else stay
                count = min(STRETCH, over - t) if here == stay else 1
                late = cells - here
                step = here * own.nh + (late * turn + own.nh if late else 0) + tail
                begin = walk.recurrent(t, count, start, step, here, turn, tiles) + 1
                t, start = t + count, start + count * step
                self.recorder.reached(min(start, begin))
        self.check(shape, walk)
        return begin

    def store(self, item: _Pass, out: F32, cycle: int, source: int, size: int, dram: int) -> int:
        """Walk a store of outputs; returns the cycle after."""
        self.recorder.reached(cycle)
        self.walk(item.shape, item.given, [], out).store(cycle, source, size, dram)
        self.bar.update(self.log.accesses - self.bar.n)
        return cycle + self.machine.channel(self.machine.bursts(size))


#: By dataflow, how its passes are walked, and their order.
WALKS: dict[str, tuple[str, Order]] = {
    "epur": ("epur", epur.ORDER),
    "epur-mwl": ("mwl", mwl.ORDER),
    "epur-batch": ("epur", epur.ORDER),
    "epur-tiled": ("tiled", tiled.ORDER),
}


def check_probe(accelerator: Accelerator) -> None:
    """Raise `AcceleratorError` if an accelerator's dataflow can't be probed."""
    if accelerator.dataflow not in WALKS:
        raise AcceleratorError(
            accelerator.name, "dataflow", f"is {accelerator.dataflow!r}, which can't be probed",
            f"use one of {', '.join(WALKS)}, or trace mode streams",
        )  # fmt: skip


@dataclass(frozen=True)
class Sequences:
    """Evaluated sequences of a network, whose inputs were all known.

    Parameters
    ----------
    network : Network
    inputs : sequence of float arrays of shape (T, I)
        One, or several where the dataflow takes batches.
    layers : sequence of sequences of float32 arrays of shape (T, width)
        By sequence, each layer's outputs, as the arithmetic gave them.
    initial : sequence of sequences of (h, c), optional
        By sequence, initial state of each pass; zero by default.
    """

    network: Network
    inputs: Sequence[npt.ArrayLike]
    layers: Sequence[Sequence[F32]]
    initial: Sequence[States] | None = None


@dataclass(frozen=True)
class Decoded:
    """Time steps of a network that were decoded one by one.

    Parameters
    ----------
    network : Network
        Whether the host computes between its layers is its own (`host_between`).
    inputs : sequence of float arrays of shape (T, I)
        What the host gave: the first layer's inputs; all layers' if it computes between them.
    layers : sequence of float32 arrays of shape (T, H)
        Each layer's outputs.
    initial : sequence of (h, c), optional
        Initial state of each layer; zero by default.
    parents : int array of shape (T,), optional
        The step that each continues, -1 the initial state; by default the one before. The accelerator
        keeps one state: where a search goes on with another hypothesis, the host has put that one's
        in place, which is no access of the accelerator.
    """

    network: Network
    inputs: Sequence[npt.ArrayLike]
    layers: Sequence[F32]
    initial: States | None = None
    parents: npt.NDArray[np.intp] | None = None


@dataclass(frozen=True)
class _Part:
    """A run's plan, and what walks it: tells whether the right outputs were stored."""

    machine: Machine
    shape: tuple[tuple[LayerShape, ...], ...]
    schedule: Schedule
    walk: Callable[[Probe], bool]
    sequences: int = 1


def probe_sequences(
    path: str | os.PathLike[str],
    network: Network,
    inputs: Sequence[npt.ArrayLike],
    layers: Sequence[Sequence[F32]],
    initial: Sequence[States] | None,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    meta: dict[str, Any],
    progress: bool = False,
) -> Trace:
    """Log every access of evaluated sequences; see `Sequences` and `probe_runs`."""
    run = Sequences(network, inputs, layers, initial)
    return probe_runs(path, [run], arithmetic, accelerator, meta, progress)


def probe_runs(
    path: str | os.PathLike[str],
    runs: Sequence[Sequences | Decoded],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    meta: dict[str, Any],
    progress: bool = False,
) -> Trace:
    """Log every access of runs that follow one another, and check what the accesses delivered.

    Parameters
    ----------
    path : path-like
        An interruption leaves ``<path>.partial``, marked incomplete.
    runs : sequence of Sequences or Decoded
    arithmetic : Arithmetic
    accelerator : Accelerator
    meta : dict
        What made the trace.
    progress : bool
        Whether to show a bar on the standard error stream.

    Raises
    ------
    AcceleratorError
        Something does not fit, or the dataflow has no probe.
    TraceError
        The file can't be written; or a read found something else than the arithmetic took, which is
        a fault of the dataflow.
    """
    check_probe(accelerator)
    parts: list[_Part] = []
    cycle = dram = 0
    for run in runs:
        m = Machine(accelerator, arithmetic, run.network.shape)
        if isinstance(run, Sequences):
            parts.append(_sequences(run, m, cycle, dram))
        else:
            parts.append(_decoded(run, m, cycle, dram))
        cycle, dram = parts[-1].schedule.cycles, parts[-1].schedule.dram_end
    return _written(path, parts, meta, progress)


def _written(
    path: str | os.PathLike[str], parts: Sequence[_Part], meta: dict[str, Any], progress: bool
) -> Trace:
    """The trace of walks."""
    planned = [phase for part in parts for phase in part.schedule.phases]
    phases = [Phase(p.layer, p.kind, (), p.operations) for p in planned]
    total = sum(len(stream) for phase in planned for stream in phase.streams)
    components, cycles = parts[0].machine.components(), parts[-1].schedule.cycles
    log = Log(len(components), max(part.sequences for part in parts))
    level = level_number()
    with closing(EventWriter(path, components)) as writer:
        recorder = _Recorder(writer, log)
        try:
            with tqdm(total=total, unit="access", unit_scale=True, disable=not progress) as bar:
                right = all(
                    part.walk(Probe(part.machine, part.shape, log, recorder, bar, level))
                    for part in parts
                )
            recorder.reached(None)
        except BaseException as error:
            kept = not isinstance(error, TraceError)
            if kept:
                with suppress(Exception):
                    recorder.reached(None)
            recorder.close()
            if kept:
                writer.partial(phases, cycles, meta)
            raise
        recorder.close()
        if recorder._failed is not None:
            raise recorder._failed
        if log.accesses != total or not right:
            raise TraceError(
                path, "probe", "and schedule differ", "report it: this is a fault of the dataflow"
            )
        return writer.finish_events(phases, cycles, meta)


def _sequences(run: Sequences, m: Machine, cycle: int, dram: int) -> _Part:
    x = [np.ascontiguousarray(one, np.float32) for one in run.inputs]
    lengths = [len(one) for one in x]
    schedule, found = _planned(m, run.network.shape, lengths, run.initial is not None, cycle, dram)

    def walk(probe: Probe) -> bool:
        return _walk_sequences(probe, found, schedule, x, run.layers, run.initial)

    most = max((len(item.given) for item in found), default=1)
    return _Part(m, run.network.shape, schedule, walk, most)


def _decoded(run: Decoded, m: Machine, cycle: int, dram: int) -> _Part:
    x = [np.ascontiguousarray(one, np.float32) for one in run.inputs]
    found: list[_Pass] = []

    def noting(b: Builder, shape: LayerShape, given: Given, *saved: Any) -> Run:
        found.append(_Pass("epur", shape, (given,), period=b.repeat[1]))
        return epur.run_pass(b, shape, given, *saved)

    schedule = decode.schedule(
        run.network.shape, len(x[0]), m, run.network.host_between, run.initial is not None, cycle,
        dram, noting,
    )  # fmt: skip

    def walk(probe: Probe) -> bool:
        return _walk_decode(probe, found, schedule, x, run)

    return _Part(m, run.network.shape, schedule, walk)


def _planned(
    m: Machine, shape: tuple[tuple[LayerShape, ...], ...], lengths: Sequence[int], given: bool,
    cycle: int, dram: int,
) -> tuple[Schedule, list[_Pass]]:  # fmt: skip
    """The schedule, and each pass with its places."""
    found: list[_Pass] = []

    def noted(way: str, order: Order) -> Order:
        """The same order, which notes what it does."""

        def run_pass(b: Builder, shape: LayerShape, placed: Given, direction: int) -> Run:
            found.append(_Pass(way, shape, (placed,), direction))
            return order.run_pass(b, shape, placed, direction)

        def prefetch(b: Builder, shape: LayerShape, placed: Given) -> int:
            found[-1] = replace(found[-1], ahead=(shape, placed))
            return epur.prefetch(b, shape, placed)

        def stand_in(m: Machine, layer: Sequence[LayerShape]) -> Order | None:
            other = epur.stand_in(m, layer)
            return other and noted("tiled", other)

        return replace(
            order, run_pass=run_pass, prefetch=order.prefetch and prefetch,
            stand_in=order.stand_in and stand_in, watched=True,
        )  # fmt: skip

    def batch_pass(b: Builder, shape: LayerShape, placed: Sequence[Given]) -> Run:
        found.append(_Pass("epur", shape, tuple(placed)))
        return batch.run_pass(b, shape, placed)

    plan = noted(*WALKS[m.accelerator.dataflow])
    if m.accelerator.dataflow == "epur-batch":
        schedule = batch.schedule(shape, lengths, m, given, cycle, dram, plan, batch_pass)
    else:
        (steps,) = lengths
        schedule = sequence(plan, shape, steps, m, given, cycle, dram)
    return schedule, found


def _walk_sequences(
    probe: Probe, found: Sequence[_Pass], schedule: Schedule, inputs: Sequence[F32],
    layers: Sequence[Sequence[F32]], initial: Sequence[States] | None,
) -> bool:  # fmt: skip
    """Walk all passes; returns whether the outputs were then stored."""
    m, items = probe.machine, iter(found)
    lengths = [len(x) for x in inputs]
    groups = [[n] for n, steps in enumerate(lengths) if steps]
    if m.accelerator.dataflow == "epur-batch":
        groups = batch.sub_batches(m, probe.shape, lengths)
    row = m.pitch(probe.shape[-1])
    sizes = [m.bursts(steps * row) * m.burst for steps in lengths]
    places = [schedule.dram_end - sum(sizes) + before for before in accumulate(sizes, initial=0)]
    right = True
    for group in groups:
        x = [inputs[n] for n in group]
        sources = [probe.padded(one).reshape(-1) for one in x]
        states = [list(initial[n]) if initial else [] for n in group]
        rows = list(accumulate((lengths[n] for n in group), initial=0))
        at = 0
        for number, layer in enumerate(probe.shape):
            out = np.zeros(rows[-1] * m.pitch(layer) // m.ye + m.accelerator.width, np.float32)
            outputs, kept = [np.ascontiguousarray(layers[n][number]) for n in group], []
            begin = 0
            for shape in layer:
                item = next(items)
                cells = slice(begin, begin + shape.cells)
                spilled = item.given[0].spill is not None
                if spilled:
                    subs = m.of(shape).nh * m.accelerator.width
                    out = np.zeros(2 * subs, np.float32)
                    kept.append(np.zeros((lengths[group[0]], subs), np.float32))
                members = []
                for k, source in enumerate(sources):
                    h = states[k][at][0] if initial else np.zeros(shape.cells, np.float32)
                    values = np.ascontiguousarray(outputs[k][:, cells])
                    members.append(
                        _Member(source, x[k], values, h, kept[-1].reshape(-1) if spilled else None)
                    )
                cycle = probe.run(item, members, out, number % 2 * m.half)
                begin, at = cells.stop, at + 1
            x = outputs
            sources = [out] * len(group)
            if kept:
                sources = [np.concatenate([one.reshape(-1) for one in kept])]
        if kept:
            ends = zip(probe.shape[-1], kept, strict=True)
            stored = np.concatenate([one[:, : p.cells] for p, one in ends], axis=1)
            right &= np.array_equal(stored, layers[0][-1], equal_nan=True)
            continue
        half = len(probe.shape) % 2 * m.half
        for n, before in zip(group, rows, strict=False):
            where = half + before * row
            cycle = probe.store(item, out, cycle, where, lengths[n] * row, places[n])
            width = row // m.ye
            stored = out[before * width :][: lengths[n] * width].reshape(-1, width)
            wanted = layers[n][-1]
            right &= np.array_equal(stored[:, : wanted.shape[1]], wanted, equal_nan=True)
    return right


def _walk_decode(
    probe: Probe, found: Sequence[_Pass], schedule: Schedule, inputs: Sequence[F32], run: Decoded
) -> bool:
    """Walk all layers step by step; returns whether the states then hold the last outputs."""
    m, shapes = probe.machine, [layer[0] for layer in probe.shape]
    steps, count, between = len(inputs[0]), len(shapes), run.network.host_between
    layers, initial = run.layers, run.initial
    parents = np.arange(steps) - 1 if run.parents is None else run.parents
    subs = [m.of(p).nh for p in shapes]
    states = [np.zeros(n * m.accelerator.width, np.float32) for n in subs]
    begun = [
        initial[n][0] if initial else np.zeros(p.cells, np.float32) for n, p in enumerate(shapes)
    ]
    hosted, sent = (range(count),) * 2 if between else (range(1), range(count - 1, count))
    sizes = [m.bursts(subs[n] * m.sy) * m.burst for n in sent]
    ends = accumulate(
        (steps * size for size in sizes), initial=schedule.dram_end - steps * sum(sizes)
    )
    places = dict(zip(sent, ends, strict=False))
    operands = [inputs[n] if n in hosted else layers[n - 1] for n in range(count)]
    padded = [probe.padded(x) for x in operands]
    for step in range(steps):
        parent = int(parents[step])
        for n, shape in enumerate(shapes):
            h = layers[n][parent] if parent >= 0 else begun[n]
            if parent != step - 1:
                states[n][: shape.cells] = h
            item = found[n] if step == 0 else found[n - count]
            (given,) = item.given
            again = max(0, step - 1)
            address = given.source_address
            if n in hosted:
                address += again * m.bursts(m.of(shape).nx * m.sx) * m.burst
            given = replace(given, cycle=given.cycle + again * item.period, source_address=address)
            now = slice(step, step + 1)
            source = padded[n][step] if n in hosted else states[n - 1]
            values = np.ascontiguousarray(layers[n][now])
            member = _Member(source, np.ascontiguousarray(operands[n][now]), values, h)
            kept = given.half_address + subs[n] * m.sy
            item = replace(item, given=(given,))
            cycle = probe.run(item, [member], states[n], address, kept=kept)
            if n in places:
                size = subs[n] * m.sy
                where = places[n] + step * m.bursts(size) * m.burst
                probe.store(item, states[n], cycle, given.half_address, size, where)
    return not steps or all(
        np.array_equal(state[: p.cells], own[-1], equal_nan=True)
        for state, p, own in zip(states, shapes, layers, strict=True)
    )
