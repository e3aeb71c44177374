"""Probe mode: the network's accesses performed one by one on models of the memories, each logged as it happens.

The walk follows the hardware's order by loops of its own (``_kernels/probe.h``); of a schedule it takes
places and the cycles in which passes begin. What its reads deliver is compared with the operands of the
arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from epur_emu._kernels.probe import Log, Walk
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import Schedule, epur, mu, mwl
from epur_emu.dataflow.layout import Builder, Given, Machine, Run
from epur_emu.dataflow.regions import row_bursts, sequence
from epur_emu.dataflow.stored import matrix_bytes
from epur_emu.errors import AcceleratorError, TraceError
from epur_emu.network import GATES, LayerShape, Network
from epur_emu.streams import Phase
from epur_emu.trace import EventWriter, Trace
from epur_emu.trace.accesses import Runs

F32 = npt.NDArray[np.float32]

#: Rows that are handed to the writer at once.
ENOUGH = 1 << 15

_INITIAL = ("zero", "dram", "intermediate")


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


class Probe:
    """Walks the passes of one sequence.

    Parameters
    ----------
    network : Network
    arithmetic : Arithmetic
    accelerator : Accelerator
    """

    def __init__(self, network: Network, arithmetic: Arithmetic, accelerator: Accelerator) -> None:
        if accelerator.dataflow not in WALKS:
            raise AcceleratorError(
                accelerator.name, "dataflow", f"is {accelerator.dataflow!r}, which can't be probed",
                f"use one of {', '.join(WALKS)}, or trace mode streams",
            )  # fmt: skip
        self.network, self.arithmetic, self.accelerator = network, arithmetic, accelerator
        self.machine = Machine(accelerator, arithmetic, network.shape)
        self.components = self.machine.components()
        self.log = Log(len(self.components))
        size = accelerator.weight_buffer_bytes // accelerator.width + 1
        self.held = np.zeros((4, size), np.uint32)
        self.tag = 1

    def numbers(self, shape: LayerShape, given: Given) -> dict[str, Any]:
        """What both orders have in common of the kernel's integers."""
        m, own, a = self.machine, self.machine.of(shape), self.accelerator
        place = {c.name: n for n, c in enumerate(self.components)}
        t = mu.timeline(a, shape.peepholes)
        in_dram = given.source == "dram"
        pitch = m.bursts(own.nx * m.sx) * m.burst if in_dram else own.nx * m.sy
        return {
            "width": a.width, "burst": m.burst, "capacity": a.weight_buffer_bytes,
            "cells": shape.cells, "inputs": shape.inputs, "steps": given.steps,
            "nx": own.nx, "nh": own.nh, "xe": m.xe, "ye": m.ye, "ce": own.ce,
            "sx": m.sx, "sy": m.sy, "sc": own.sc,
            **{key: [getattr(own, key)[q] for q in GATES] for key in ("sw", "sb", "be", "pe")},
            "weights": [place[f"cu.{q}.weights"] for q in GATES],
            "inputs_of": [place[f"cu.{q}.inputs"] for q in GATES],
            "row_of": [place.get(f"cu.{q}.row", -1) for q in GATES],
            "mid": place["intermediate"], "dram": place["dram"],
            "reverse": shape.reverse, "peepholes": shape.peepholes, "load": 1,
            "initial": _INITIAL.index(given.initial), "matrix": [0] * 4, "bank": [0] * 4,
            "rows": given.dram_weights, "params": 0, "x": given.source_address, "x_pitch": pitch,
            "x_sub": m.sx if in_dram else m.sy, "x_dram": in_dram,
            "y": given.out_address, "y_pitch": given.pitch, "y_base": given.half_address,
            "state": given.state_address, "kept": -1, "partials": 0, "dpu": a.dpu_latency,
            "add": a.add_cycles, "link": a.link_cycles,
            "quantise": a.quantise_cycles if own.quantised else 0,
            "lookup": a.lookup_cycles if own.quantised else 0,
            "p": t.p, "tm": t.tm, "tc": t.tc, "z": t.z, "pace": 0, "tag": self.tag,
        }  # fmt: skip

    def walk(self, numbers: Mapping[str, Any], source: F32, out: F32, values: F32) -> Walk:
        """A pass on fresh input and row buffers."""
        width, nx, nh = numbers["width"], numbers["nx"], numbers["nh"]
        self.tag += numbers["cells"] * (nx + nh) * max(numbers["sw"]) // width
        buffers = np.zeros((4, (nx + 2 * nh) * width), np.float32)
        latches = np.zeros((4, (nx + nh) * width), np.float32)
        rows = np.zeros((4, self.accelerator.row_buffer_bytes // width + 1), np.uint32)
        stored = np.zeros(max(1, values.size * 4), np.uint8)
        return Walk(self.log, numbers, source, out, buffers, latches, self.held, rows, stored, values)

    def padded(self, vector: F32) -> F32:
        """A vector, or rows, in whole sub-vectors."""
        width = -(-vector.shape[-1] // self.accelerator.width) * self.accelerator.width
        out = np.zeros((*vector.shape[:-1], width), np.float32)
        out[..., : vector.shape[-1]] = vector
        return out


def _state_cycles(probe: Probe, shape: LayerShape, given: Given, bursts: int) -> int:
    """Cycles until parameters of so many bursts and the initial state are there."""
    m, own = probe.machine, probe.machine.of(shape)
    if given.initial == "dram":
        bursts += m.bursts(own.nh * m.sx) + m.bursts(own.nh * own.sc)
    waits = {"zero": own.nh, "dram": 0, "intermediate": 2 * own.nh}
    return max(m.channel(bursts), waits[given.initial])


def _walk_epur(
    probe: Probe, recorder: _Recorder, shape: LayerShape, given: Given, direction: int, x: F32,
    source: F32, out: F32, values: F32, h: F32,
) -> tuple[int, int]:  # fmt: skip
    m, own = probe.machine, probe.machine.of(shape)
    n = own.nx + own.nh
    numbers = probe.numbers(shape, given)
    numbers["params"] = given.dram_weights + epur.rows_bytes(m, shape)
    pace = numbers["pace"] = max(n, m.channel(sum(row_bursts(m, shape, n))))
    walk = probe.walk(numbers, source, out, values)
    bursts = walk.parameters(given.cycle)
    walk.state(given.cycle, bursts, own.nx * m.sx, (own.nx + 2 * own.nh) * m.sx, probe.padded(h))
    loaded = given.cycle + _state_cycles(probe, shape, given, bursts)
    start = loaded + pace
    tail = max(0, numbers["dpu"] + numbers["z"] - own.nx)
    last = 0
    for t in range(given.steps):
        true_t = given.steps - 1 - t if shape.reverse else t
        last = walk.epur(t, start, loaded, x[true_t], h)
        h = values[true_t]
        start += (shape.cells - 1) * (n if t else pace) + n + tail
        recorder.reached(start)
    return last + 1, walk.wrong


def _walk_mwl(
    probe: Probe, recorder: _Recorder, shape: LayerShape, given: Given, direction: int, x: F32,
    source: F32, out: F32, values: F32, h: F32,
) -> tuple[int, int]:  # fmt: skip
    m, own = probe.machine, probe.machine.of(shape)
    numbers = probe.numbers(shape, given)
    staged = given.source == "dram"
    if staged:
        numbers |= {"x": 0, "x_pitch": own.nx * m.sx, "x_dram": 0}
    rows = [row_bursts(m, shape, subs) for subs in (own.nx, own.nh)]
    pace = numbers["pace"] = max(given.steps * own.nx, m.channel(sum(rows[0]) + sum(rows[1])))
    matrices = sum(matrix_bytes(m, shape, subs) for subs in (own.nx, own.nh))
    numbers["params"] = given.dram_weights + matrices
    numbers["partials"] = given.half_address + given.steps * given.pitch
    walk = probe.walk(numbers, source, out, values)
    begin = given.cycle + m.channel(walk.parameters(given.cycle))
    if staged and direction == 0:
        size = own.nx * m.sx
        row, wait = m.bursts(size) * m.burst, m.channel(m.bursts(size))
        for t in range(given.steps):
            walk.stage(begin, given.source_address + t * row, size, t * size)
            begin += wait
    for k in range(shape.cells):
        recorder.reached(begin + k * pace)
        walk.forward(k, begin + k * pace, x)
    start = begin + (shape.cells + 1) * pace + numbers["dpu"] + numbers["quantise"]
    recorder.reached(start)
    walk.state(start, 0, 0, own.nh * m.sx, probe.padded(h))
    start += _state_cycles(probe, shape, given, 0)
    tail = numbers["dpu"] + numbers["lookup"] + numbers["add"] + numbers["z"]
    last = 0
    for t in range(given.steps):
        true_t = given.steps - 1 - t if shape.reverse else t
        last = walk.recurrent(t, start, h)
        h = values[true_t]
        start += shape.cells * own.nh + tail
        recorder.reached(start)
    return last + 1, walk.wrong


#: By dataflow, the order of its passes and how they are walked.
WALKS = {"epur": (epur.ORDER, _walk_epur), "epur-mwl": (mwl.ORDER, _walk_mwl)}


def check_probe(
    network: Network, steps: int, arithmetic: Arithmetic, accelerator: Accelerator, given: bool
) -> None:
    """Raise `AcceleratorError` if a sequence of so many steps can't be probed.

    `given` tells whether the initial states are given.
    """
    Probe(network, arithmetic, accelerator)
    _planned(network, steps, arithmetic, accelerator, given)


def probe_sequence(
    path: str | os.PathLike[str],
    network: Network,
    inputs: npt.ArrayLike,
    layers: Sequence[F32],
    initial: Sequence[tuple[F32, F32]] | None,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    meta: Mapping[str, Any],
    progress: bool = False,
) -> Trace:
    """Log every access of an evaluated sequence to a file, and check what the accesses delivered.

    Parameters
    ----------
    path : path-like
        An interruption leaves ``<path>.partial``, marked incomplete.
    network : Network
    inputs : float array of shape (T, I)
    layers : sequence of float32 arrays of shape (T, width)
        Each layer's outputs, as the arithmetic gave them.
    initial : sequence of (h, c), optional
        Initial state of each pass; zero by default.
    arithmetic : Arithmetic
    accelerator : Accelerator
    meta : mapping
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
    probe = Probe(network, arithmetic, accelerator)
    x = np.ascontiguousarray(inputs, np.float32)
    schedule, found = _planned(network, len(x), arithmetic, accelerator, initial is not None)
    phases = [Phase(p.layer, p.kind, (), p.operations) for p in schedule.phases]
    total = sum(len(stream) for phase in schedule.phases for stream in phase.streams)
    with closing(EventWriter(path, probe.components)) as writer:
        recorder = _Recorder(writer, probe.log)
        try:
            with tqdm(total=total, unit="access", unit_scale=True, disable=not progress) as bar:
                outputs = _walk_all(probe, recorder, found, schedule, x, layers, initial, bar)
                recorder.reached(None)
        except BaseException as error:
            recorder.close()
            if not isinstance(error, TraceError):
                writer.partial(phases, schedule.cycles, dict(meta))
            raise
        recorder.close()
        if recorder._failed is not None:
            raise recorder._failed
        if probe.log.accesses != total or not np.array_equal(outputs, layers[-1], equal_nan=True):
            raise TraceError(
                path, "probe", "and schedule differ", "report it: this is a fault of the dataflow"
            )
        return writer.finish_events(phases, schedule.cycles, dict(meta))


def _planned(
    network: Network, steps: int, arithmetic: Arithmetic, accelerator: Accelerator, given: bool
) -> tuple[Schedule, list[tuple[LayerShape, Given, int]]]:
    """The schedule, and each pass with its places."""
    found = []
    order, _ = WALKS[accelerator.dataflow]

    def noting(b: Builder, shape: LayerShape, placed: Given, direction: int) -> Run:
        found.append((shape, placed, direction))
        return order.run_pass(b, shape, placed, direction)

    machine = Machine(accelerator, arithmetic, network.shape)
    plan = replace(order, run_pass=noting)
    schedule = sequence(plan, network.shape, steps, machine, given, 0, 0)
    if schedule.policies:
        taken = {policy.policy for policy in schedule.policies}
        remedies = ["use trace mode streams"]
        if "prefetched" in taken:
            remedies.append("turn double_buffering off")
        if taken - {"prefetched"}:
            remedies.append("take an accelerator that holds the network and the sequence")
        raise AcceleratorError(
            accelerator.name, "dataflow",
            f"is {accelerator.dataflow!r} with {', '.join(sorted(taken))}, which can't be probed",
            f"{remedies[0]}, or {' and '.join(remedies[1:])}",
        )  # fmt: skip
    return schedule, found


def _walk_all(
    probe: Probe, recorder: _Recorder, found: Sequence[tuple[LayerShape, Given, int]],
    schedule: Schedule, inputs: F32, layers: Sequence[F32],
    initial: Sequence[tuple[F32, F32]] | None, bar: Any,
) -> F32:  # fmt: skip
    """Walk all passes; returns what then lies where the outputs are stored from."""
    m, (_, walk_pass) = probe.machine, WALKS[probe.accelerator.dataflow]
    steps = len(inputs)
    if not steps:
        return np.asarray(layers[-1])
    places = iter(found)
    states = iter(initial or ())
    source, x = probe.padded(inputs).reshape(-1), inputs
    cycle = 0
    for passes, outputs in zip(probe.network.layers, layers, strict=True):
        width = m.pitch([p.shape for p in passes]) // m.ye
        out = np.zeros(steps * width + probe.accelerator.width, np.float32)
        ends = np.cumsum([p.cells for p in passes])[:-1]
        for p, values in zip(passes, np.split(outputs, ends, 1), strict=True):
            shape, given, direction = next(places)
            h, _ = next(states, (np.zeros(shape.cells, np.float32), None))
            recorder.reached(given.cycle)
            cycle, wrong = walk_pass(
                probe, recorder, shape, given, direction, x, source, out,
                np.ascontiguousarray(values), np.ascontiguousarray(h, np.float32),
            )  # fmt: skip
            if wrong:
                raise TraceError(
                    "probe", p.name, f"has {wrong} reads of something else than the operands",
                    "report it: this is a fault of the dataflow",
                )  # fmt: skip
            bar.update(probe.log.accesses - bar.n)
        x = np.ascontiguousarray(outputs)
        source = out
    size = steps * m.pitch(probe.network.shape[-1])
    outputs_at = schedule.dram_end - m.bursts(size) * m.burst
    store = probe.walk(probe.numbers(shape, given), source, source, np.zeros((1, 1), np.float32))
    store.store(cycle, len(probe.network.layers) % 2 * m.half, size, outputs_at)
    bar.update(probe.log.accesses - bar.n)
    rows = source[: size // m.ye].reshape(steps, -1)
    return rows[:, : layers[-1].shape[1]]
