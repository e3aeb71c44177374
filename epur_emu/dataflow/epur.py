"""E-PUR's order: for each time step, for each neuron, forward then recurrent product in one accumulator.

It rounds as the datapath does and nowhere else: sums are never stored before they are complete.
"""

from __future__ import annotations

from collections.abc import Iterable

from epur_emu.dataflow import mu
from epur_emu.dataflow.layout import (
    AT_ZERO,
    Builder,
    Given,
    Machine,
    cus,
    load_parameters,
    load_state,
)
from epur_emu.dataflow.regions import Order, parameter_bursts, row_bursts
from epur_emu.network import LayerShape
from epur_emu.streams import Loop


def matrix_bytes(m: Machine, shape: LayerShape) -> dict[str, int]:
    """By gate, bytes of a pass's weights in the weight buffer, without biases and peepholes."""
    own = m.of(shape)
    return {q: shape.cells * (own.nx + own.nh) * size for q, size in own.sw.items()}


def rows_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights without biases and peepholes."""
    own = m.of(shape)
    return shape.cells * sum(row_bursts(m, shape, own.nx + own.nh)) * m.burst


def dram_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights, biases and peepholes."""
    return rows_bytes(m, shape) + parameter_bursts(m, shape) * m.burst


def check_vectors(m: Machine, shape: LayerShape) -> None:
    """Raise `AcceleratorError` unless the pass's vectors fit in the input buffers."""
    own = m.of(shape)
    m.need(
        (own.nx + 2 * own.nh) * m.sx + own.nh * own.sc, "input_buffer_bytes", m.accelerator.input_buffer_bytes,
        f"{shape.name} (x, two slots of h, c)", "use a narrower layer or format, or a larger buffer",
    )  # fmt: skip


def check(m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers."""
    check_vectors(m, shape)
    m.need(
        max(matrix_bytes(m, shape).values()), "weight_buffer_bytes",
        m.accelerator.weight_buffer_bytes, f"one gate of {shape.name}",
        "use a smaller layer or format, or a larger buffer",
    )  # fmt: skip


def run_pass(
    b: Builder,
    shape: LayerShape,
    given: Given,
    load: bool = True,
    matrix: dict[str, int] = AT_ZERO,
    bank: dict[str, int] = AT_ZERO,
    saved_cell: int | None = None,
    advance: int = 0,
) -> int:
    """Emit one pass; returns the cycle after its last write of h.

    Parameters
    ----------
    load : bool
        Whether the weights are fetched, or resident already.
    matrix, bank : dict of str to int
        By gate, where the layer lies in the weight buffer and in the parameter bank.
    saved_cell : int, optional
        Where c_t is saved in the intermediate memory.
    advance : int
        Bytes by which the DRAM input moves on from one repetition to the next.
    """
    if given.steps == 0:
        return given.cycle
    m, steps, cells = b.machine, given.steps, shape.cells
    own = m.of(shape)
    nx, nh = own.nx, own.nh
    n = nx + nh
    row = {q: n * size for q, size in own.sw.items()}
    h_slots, cell = nx * m.sx, (nx + 2 * nh) * m.sx
    slot = nh * m.sx
    bursts, pace = 0, n
    if load:
        params = given.dram_weights + rows_bytes(m, shape)
        bursts = load_parameters(b, shape, params, given.cycle, bank)
    begin = load_state(b, shape, given, bursts, h_slots, cell)
    if load:
        of_neuron = row_bursts(m, shape, n)
        pace, moved = max(n, m.channel(sum(of_neuron))), 0
        for (q, sub), bursts in zip(own.sw.items(), of_neuron, strict=True):
            at, phase = begin + moved, (shape.name, "load")
            dram = given.dram_weights + moved * m.burst
            outer = [(cells, sum(of_neuron) * m.burst, pace)]
            b.bursts(phase, "read", dram, at, row[q], outer)
            outer = [(cells, row[q], pace)]
            b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", sub, n, matrix[q], at, outer)
            moved += bursts
        begin += pace

    t = mu.timeline(m.accelerator, shape.peepholes)
    ready = n - 1 + m.accelerator.dpu_latency
    tail = max(0, m.accelerator.dpu_latency + t.z - nx)
    second = begin + (cells - 1) * pace + n + tail
    period = cells * n + tail

    def per_step(
        kind: str, where: Iterable[str], op: str, size: int, address: int, stride: int, after: int,
        inner: list[Loop], neurons: int = 0, move: int = 0,
    ) -> None:  # fmt: skip
        """Step 0 at the pace of the load, then the others; `neurons` is the stride from one to the next."""
        where, phase = list(where), (shape.name, kind)
        first: list[Loop] = [(cells, neurons, pace)] if neurons >= 0 else []
        later: list[Loop] = [(cells, neurons, n)] if neurons >= 0 else []
        b.access(phase, where, op, size, address, begin + after, [*first, *inner], move)
        later = [(steps - 1, stride, period), *later, *inner]
        if steps > 1:
            b.access(phase, where, op, size, address + stride, second + after, later)

    def per_slot(
        kind: str, op: str, size: int, start: int, after: int, inner: list[Loop], neurons: int
    ) -> None:
        """The same where the slot of h changes from step to step, beginning with slot `start`."""
        phase, where = (shape.name, kind), cus("inputs")
        address = h_slots + start * slot
        b.access(phase, where, op, size, address, begin + after, [(cells, neurons, pace), *inner])
        other, swing = h_slots + (1 - start) * slot, (2 * start - 1) * slot
        turns, rest = divmod(steps - 1, 2)
        loops = [(turns, 0, 2 * period), (2, swing, period), (cells, neurons, n), *inner]
        b.access(phase, where, op, size, other, second + after, loops)
        loops = [(rest, 0, 0), (cells, neurons, n), *inner]
        b.access(phase, where, op, size, other, second + 2 * turns * period + after, loops)

    def weights(kind: str, skip: int, subs: int) -> None:
        """Each gate's weights of a neuron, `subs` sub-vectors behind the first `skip`."""
        others: list[Loop] = [(steps - 1, 0, period)]
        for cycle, outer, wait in ((begin, [], pace), (second, others, n)):
            for q, sub in own.sw.items():
                loops = [*outer, (cells, row[q], wait), (subs, sub, 1)]
                where, at = [f"cu.{q}.weights"], matrix[q] + skip * sub
                b.access((shape.name, kind), where, "read", sub, at, cycle + skip, loops)

    x_sub = m.sx if given.source == "dram" else m.sy
    forward, once = [(nx, m.sx, 1)], -1
    source, out, out_step = given.source_address, given.out_address, given.pitch
    x_step = m.bursts(nx * m.sx) * m.burst if given.source == "dram" else nx * x_sub
    if shape.reverse:
        source, out = source + (steps - 1) * x_step, out + (steps - 1) * out_step
        x_step, out_step = -x_step, -out_step
    if given.source == "dram":
        arrive = _burst_loops(m, nx * m.sx)
        per_step("forward", ["dram"], "read", m.burst, source, x_step, 0, arrive, once, advance)
    else:
        arrive = [(nx, x_sub, 1)]
        per_step("forward", ["intermediate"], "read", x_sub, source, x_step, 0, arrive, once)
    per_step("forward", cus("inputs"), "write", m.sx, 0, 0, 0, forward, once)
    weights("forward", 0, nx)
    per_step("forward", cus("inputs"), "read", m.sx, 0, 0, 0, forward, 0)
    weights("recurrent", nx, nh)
    per_slot("recurrent", "read", m.sx, 0, nx, [(nh, m.sx, 1)], 0)

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        per_step("mu", where, op, size, address, 0, ready + after, [], stride)

    mu.accesses(m, shape, mu.Places(cell, bank, saved_cell), emit)
    per_slot("mu", "write", m.xe, 1, ready + t.z, [], m.xe)
    per_step("mu", ["intermediate"], "write", m.ye, out, out_step, ready + t.z, [], m.ye)
    mu.count_dpu(b, shape, "forward", nx, steps)
    mu.count_dpu(b, shape, "recurrent", nh, steps)
    mu.count(b, shape, steps)
    last = begin + (cells - 1) * pace
    if steps > 1:
        last = second + (steps - 2) * period + (cells - 1) * n
    return last + ready + t.z + 1


def _burst_loops(m: Machine, size: int) -> list[Loop]:
    """Bursts that deliver an input just as its sub-vectors are used."""
    count = m.bursts(size)
    if m.burst >= m.sx:
        return [(count, m.burst, m.burst // m.sx)]
    group = m.sx // m.burst
    return [(count // group, m.sx, 1), (group, m.burst, 0)]


def _order_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> int:
    return run_pass(b, shape, given)


ORDER = Order(dram_bytes, check, _order_pass)
