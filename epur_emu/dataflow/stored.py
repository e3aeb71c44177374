"""Passes that store their forward sums: stretches of time steps, each a forward and then a recurrent part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from epur_emu.dataflow import mu
from epur_emu.dataflow.layout import (
    AT_ZERO,
    Builder,
    Given,
    Machine,
    Run,
    Turns,
    cus,
    fetch_rows,
    load_parameters,
    load_state,
)
from epur_emu.dataflow.regions import parameter_bursts, row_bursts
from epur_emu.network import LayerShape
from epur_emu.streams import Loop


def matrix_bytes(m: Machine, shape: LayerShape, subs: int) -> int:
    """DRAM bytes of the rows of W_x or W_h, of so many sub-vectors, four gates."""
    return shape.cells * sum(row_bursts(m, shape, subs)) * m.burst


def dram_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights, biases and peepholes."""
    own = m.of(shape)
    both = matrix_bytes(m, shape, own.nx) + matrix_bytes(m, shape, own.nh)
    return both + parameter_bursts(m, shape) * m.burst


def rows_that_fit(m: Machine, shape: LayerShape, subs: int) -> int:
    """Rows of so many sub-vectors that every gate's weight buffer holds."""
    return min(m.accelerator.weight_buffer_bytes // (subs * sub) for sub in m.of(shape).sw.values())


def rows_kept(m: Machine, shape: LayerShape) -> int:
    """Rows of W_h that stay in the weight buffers; the others take turns in two more slots."""
    fit = rows_that_fit(m, shape, m.of(shape).nh)
    return shape.cells if fit >= shape.cells else max(0, fit - 2)


@dataclass(frozen=True)
class Stretch:
    """Time steps that are evaluated together.

    Parameters
    ----------
    first : int
        The first step, in order of evaluation.
    steps : int
    flow : {1, -1}
        From one step to the next in true time.
    true : int
        The true time step of the first.
    sums : tuple of (int, int)
        By gate, bytes of a stored sum and the address of neuron 0's of the first step.
    per_step, per_neuron : int
        Bytes of the sums of a step and of a neuron.
    """

    first: int
    steps: int
    flow: int
    true: int
    sums: tuple[tuple[int, int], ...]
    per_step: int
    per_neuron: int


@dataclass(frozen=True)
class Way:
    """How a dataflow stores forward sums.

    Parameters
    ----------
    sizes : callable
        Of a pass: bytes of each gate's stored sum.
    forward : callable
        Emits the forward part of a stretch from a cycle on; gives the cycle in which its sums are stored.
    restarts : bool
        Whether a stretch overwrites W_h, and its accumulators go on from the stored sums.
    """

    sizes: Callable[[Machine, LayerShape], dict[str, int]]
    forward: Callable[[Builder, LayerShape, Given, Stretch, int], int]
    restarts: bool

    def longest(self, m: Machine, shape: LayerShape, steps: int, pitch: int) -> int:
        """Time steps of a stretch; 0 if not one fits."""
        of_step = shape.cells * sum(self.sizes(m, shape).values())
        return max(0, min(steps, (m.half - steps * pitch) // of_step))

    def cell(self, m: Machine, shape: LayerShape, whole: bool) -> int:
        """Where c lies in the input buffers."""
        own = m.of(shape)
        return (own.nh if whole and not self.restarts else max(own.nx, own.nh)) * m.sx

    def check(
        self, m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int, spilled: bool
    ) -> None:
        """Raise `AcceleratorError` unless the pass fits in the buffers."""
        a, own, name = m.accelerator, m.of(shape), shape.name
        remedy, place = (
            "use a smaller layer or format, or a larger buffer",
            "half of intermediate_bytes",
        )
        of_step = shape.cells * sum(self.sizes(m, shape).values())
        most = max(0, min((m.half - of_step) // pitch, m.half // x_pitch))
        fewer = f"give at most {most} steps" if most else remedy
        what = f"{name} (output of {steps} steps, sums of one)"
        m.need(steps * pitch + of_step, place, m.half, what, fewer)
        m.need(steps * x_pitch, place, m.half, f"the input of {steps} steps of {name}", fewer)
        whole = self.longest(m, shape, steps, pitch) == steps
        vectors = max(own.nx * m.sx, self.cell(m, shape, whole) + own.nh * own.sc)
        what = f"{name} (x, or h and c)"
        m.need(vectors, "input_buffer_bytes", a.input_buffer_bytes, what, remedy)
        rows = min(2, shape.cells) * own.nh * max(own.sw.values())
        what = f"two rows of W_h of a gate of {name}"
        m.need(rows, "weight_buffer_bytes", a.weight_buffer_bytes, what, remedy)

    def run_pass(self, b: Builder, shape: LayerShape, given: Given, direction: int) -> Run:
        """Emit one pass, number `direction` of its layer; returns when it ends."""
        m, steps = b.machine, given.steps
        longest, kept = self.longest(m, shape, steps, given.pitch), rows_kept(m, shape)
        sizes, cell = self.sizes(m, shape), self.cell(m, shape, longest == steps)
        if longest < steps:
            many = f"{-(-steps // longest)} stretches of up to {longest} of {steps} time steps"
            b.policy(shape.name, "sequence", "stretches", many)
        if kept < shape.cells:
            rows = f"{kept} of {shape.cells} rows of W_h stay, the others are fetched at every step"
            b.policy(shape.name, "weights", "refetch", rows)
        params = given.dram_weights
        params += sum(matrix_bytes(m, shape, n) for n in (m.of(shape).nx, m.of(shape).nh))
        begin = given.cycle + m.channel(load_parameters(b, shape, params, given.cycle, AT_ZERO))
        waits = {"weights": begin - given.cycle}
        if given.source == "dram" and direction == 0:
            begin = _stage(b, shape, given, begin)
            waits["staging"] = begin - given.cycle - waits["weights"]
        b.time(shape.name, "load", **waits)
        # Sums lie behind all output rows of the layer's half.
        behind, per_neuron = given.half_address + steps * given.pitch, sum(sizes.values())
        for first in range(0, steps, longest):
            count = min(longest, steps - first)
            address, sums = behind + (count - 1) * shape.reverse * shape.cells * per_neuron, []
            for size in sizes.values():
                sums.append((size, address))
                address += size
            part = Stretch(
                first, count, -1 if shape.reverse else 1,
                steps - 1 - first if shape.reverse else first,
                tuple(sums), shape.cells * per_neuron, per_neuron,
            )  # fmt: skip
            begin = self.forward(b, shape, given, part, begin)
            if first == 0:
                there = load_state(b, shape, replace(given, cycle=begin), 0, 0, cell)
                b.time(shape.name, "recurrent", state=there - begin)
                begin = there
            begin = _recurrent(b, shape, given, part, begin, cell, kept, self.restarts)
        mu.count_dpu(b, shape, "forward", m.of(shape).nx, steps)
        mu.count_dpu(b, shape, "recurrent", m.of(shape).nh, steps)
        mu.count(b, shape, steps)
        return Run(begin, begin)


def alternating(count: int, pace: int) -> list[tuple[int, Turns]]:
    """(number of the first, turns) of `count` rows that take turns in two slots."""
    pairs, rest = divmod(count, 2)
    return [
        (0, [(pairs, 2, 0, 2 * pace), (2, 1, 1, pace)]),
        (2 * pairs, [(rest, 1, 0, pace)]),
    ]


def _stage(b: Builder, shape: LayerShape, given: Given, cycle: int) -> int:
    """Copy the network's input to the intermediate memory; returns the cycle after."""
    m, size = b.machine, b.machine.of(shape).nx * b.machine.sx
    row = m.channel(m.bursts(size))
    phase = (shape.name, "load")
    dram = [(given.steps, m.bursts(size) * m.burst, row)]
    b.bursts(phase, "read", given.source_address, cycle, size, dram)
    place = [(given.steps, size, row)]
    b.at_burst_pace(phase, ["intermediate"], "write", m.sx, size // m.sx, 0, cycle, place)
    return cycle + given.steps * row


@dataclass(frozen=True)
class _Band:
    """Steps of a stretch that find the same number of rows in the weight buffers.

    Parameters
    ----------
    first, steps : int
        Number of the first in the stretch; how many.
    cycle, period : int
        When the first begins, and from one to the next.
    here : int
        Rows that are there.
    """

    first: int
    steps: int
    cycle: int
    period: int
    here: int


def _recurrent(
    b: Builder, shape: LayerShape, given: Given, part: Stretch, begin: int, cell: int, kept: int,
    restarts: bool,
) -> int:  # fmt: skip
    """Emit the recurrent part of a stretch; returns the cycle after its last write of h."""
    m, cells, own = b.machine, shape.cells, b.machine.of(shape)
    nh, latency = own.nh, m.accelerator.dpu_latency
    added = 0 if restarts else m.accelerator.add_cycles
    added += m.accelerator.lookup_cycles if own.quantised and not restarts else 0
    t = mu.timeline(m.accelerator, shape.peepholes)
    tail = latency + added + t.z
    rows = row_bursts(m, shape, nh)
    pace = max(nh, m.channel(sum(rows)))

    def length(here: int) -> int:
        """Cycles from a step's begin until its last sub-vector is taken."""
        return cells * nh + (cells > here) * ((cells - here) * (pace - nh) + nh)

    bands, first = [], 0
    for steps, here in ((1, 0), (part.steps - 1, kept)) if restarts else ((part.steps, kept),):
        band = _Band(first, steps, begin, length(here) + tail, here)
        bands.append(band)
        begin, first = begin + steps * band.period, first + steps
    end = begin

    def per_neuron(
        kind: str, where: Iterable[str], op: str, size: int, address: int, step: int, neurons: int,
        after: int, inner: Sequence[Loop] = (),
    ) -> None:  # fmt: skip
        where = list(where)
        for band in bands:
            here = band.here
            for k, count, wait, every in (
                (0, here, 0, nh), (here, cells - here, here * nh + pace, pace)
            ):  # fmt: skip
                at = address + band.first * step + k * neurons
                loops = [(band.steps, step, band.period), (count, neurons, every), *inner]
                b.access((shape.name, kind), where, op, size, at, band.cycle + wait + after, loops)

    out, out_step = given.out_address + part.true * given.pitch, part.flow * given.pitch
    for where, op, sub, row, step in (
        (["intermediate"], "read", m.sy, out, out_step), (cus("inputs"), "write", m.sx, 0, 0)
    ):  # fmt: skip
        for band in bands:
            skip = int(part.first + band.first == 0)
            loops = [(band.steps - skip, step, band.period), (nh, sub, 1)]
            before = row + (band.first + skip - 1) * step
            at = band.cycle + skip * band.period
            b.access((shape.name, "recurrent"), where, op, sub, before, at, loops)

    w_h = given.dram_weights + matrix_bytes(m, shape, own.nx)
    groups: list[tuple[_Band, int, int, Turns, int]] = []  # band, first row, slot, turns, wait
    for band in bands:
        here, wait = band.here, band.here * nh + pace
        groups.append((band, 0, 0, [(here, 1, 1, nh)], 0))
        groups.append((band, here, here, [(kept - here, 1, 1, pace)], wait))
        wait += (kept - here) * pace
        for number, turns in alternating(cells - kept, pace):
            groups.append((band, kept + number, kept, turns, wait + number * pace))
    for q, sub in own.sw.items():
        for band, _, slot, turns, wait in groups:
            row_loops = [(n, slots * nh * sub, every) for n, _, slots, every in turns]
            loops = [(band.steps, 0, band.period), *row_loops, (nh, sub, 1)]
            phase, where, at = (shape.name, "recurrent"), [f"cu.{q}.weights"], slot * nh * sub
            b.access(phase, where, "read", sub, at, band.cycle + wait, loops)
    for band, first, slot, turns, wait in groups:
        if wait:
            fetch_rows(
                b, shape, nh, turns, w_h + first * sum(rows) * m.burst, band.cycle + wait - pace,
                {q: slot * nh * sub for q, sub in own.sw.items()}, [(band.steps, 0, band.period)],
            )  # fmt: skip
    per_neuron("recurrent", cus("inputs"), "read", m.sx, 0, 0, 0, 0, [(nh, m.sx, 1)])
    ready = nh - 1 + latency
    where, step = ["intermediate"], part.flow * part.per_step
    for size, address in part.sums:
        after = 0 if restarts else ready
        per_neuron("recurrent", where, "read", size, address, step, part.per_neuron, after)
    ready += added

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        per_neuron("mu", where, op, size, address, 0, stride, ready + after)

    mu.accesses(m, shape, mu.Places(cell, AT_ZERO), emit)
    per_neuron("mu", ["intermediate"], "write", m.ye, out, out_step, m.ye, ready + t.z)

    unlinked = mu.timeline(m.accelerator, shape.peepholes, link=0).z
    b.time(
        shape.name, "recurrent", part.steps * cells * nh,
        weights=sum(band.steps * (length(band.here) - cells * nh) for band in bands),
        recurrence=part.steps * (tail - t.z + unlinked), link=part.steps * (t.z - unlinked),
    )  # fmt: skip
    return end
