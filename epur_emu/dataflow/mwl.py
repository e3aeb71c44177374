"""Maximised weight locality: all forward products of a pass first, row by row, then the recurrent ones.

It rounds once more than E-PUR's order: the forward partial sum of each gate is stored, quantised or in the
accumulator's format, and added to the finished recurrent sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

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
from epur_emu.network import GATES, LayerShape
from epur_emu.streams import Loop


def matrix_bytes(m: Machine, shape: LayerShape, subs: int) -> int:
    """DRAM bytes of the rows of W_x or W_h, of so many sub-vectors, four gates."""
    return shape.cells * sum(row_bursts(m, shape, subs)) * m.burst


def dram_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights, biases and peepholes."""
    own = m.of(shape)
    both = matrix_bytes(m, shape, own.nx) + matrix_bytes(m, shape, own.nh)
    return both + parameter_bursts(m, shape) * m.burst


def check(m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers."""
    a, own, name = m.accelerator, m.of(shape), shape.name
    remedy = "use a smaller layer or format, or a larger buffer"
    widest = max(own.sw.values())
    rows = 2 * own.nx * widest
    m.need(rows, "row_buffer_bytes", a.row_buffer_bytes, f"{name} (two rows)", remedy)
    vectors = max(own.nx * m.sx, own.nh * (m.sx + own.sc))
    m.need(vectors, "input_buffer_bytes", a.input_buffer_bytes, f"{name} (x, or h and c)", remedy)
    matrix = shape.cells * own.nh * widest
    m.need(matrix, "weight_buffer_bytes", a.weight_buffer_bytes, f"W_h of a gate of {name}", remedy)
    per_step = pitch + shape.cells * sum(own.pe.values())
    most = m.half // max(per_step, x_pitch)
    fewer = f"give at most {most} steps"
    place = "half of intermediate_bytes"
    m.need(
        steps * per_step, place, m.half, f"{name} (output and partial sums, {steps} steps)", fewer
    )
    m.need(steps * x_pitch, place, m.half, f"the input of {steps} steps of {name}", fewer)


def run_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> int:
    """Emit one pass, number `direction` of its layer; returns the cycle after its last write of h."""
    m, steps, cells = b.machine, given.steps, shape.cells
    own = m.of(shape)
    nx, nh = own.nx, own.nh
    latency = m.accelerator.dpu_latency
    quantise = m.accelerator.quantise_cycles if own.quantised else 0
    lookup = m.accelerator.lookup_cycles if own.quantised else 0
    w_h = given.dram_weights + matrix_bytes(m, shape, nx)
    params = w_h + matrix_bytes(m, shape, nh)
    cell = nh * m.sx
    begin = given.cycle + m.channel(load_parameters(b, shape, params, given.cycle, AT_ZERO))
    source = given.source_address if given.source == "intermediate" else 0
    if given.source == "dram" and direction == 0:
        begin = _stage(b, shape, given, begin)

    # Forward: neuron by neuron, each with all time steps.
    x_rows, h_rows = row_bursts(m, shape, nx), row_bursts(m, shape, nh)
    pace = max(steps * nx, m.channel(sum(x_rows) + sum(h_rows)))
    phase, swap = (shape.name, "load"), _alternating(cells, pace)
    x_moved, h_moved = 0, 0
    for (q, sub), x_row, h_row in zip(own.sw.items(), x_rows, h_rows, strict=True):
        at, dram = begin + x_moved, given.dram_weights + x_moved * m.burst
        loops = [(cells, sum(x_rows) * m.burst, pace)]
        b.bursts(phase, "read", dram, at, nx * sub, loops)
        for after, turns in swap:
            outer = turns(nx * sub)
            b.at_burst_pace(phase, [f"cu.{q}.row"], "write", sub, nx, 0, at + after, outer)
        at, dram = begin + sum(x_rows) + h_moved, w_h + h_moved * m.burst
        loops = [(cells, sum(h_rows) * m.burst, pace)]
        b.bursts(phase, "read", dram, at, nh * sub, loops)
        outer = [(cells, nh * sub, pace)]
        b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", sub, nh, 0, at, outer)
        x_moved, h_moved = x_moved + x_row, h_moved + h_row
    compute, phase = begin + pace, (shape.name, "forward")
    flow = -1 if shape.reverse else 1
    first = steps - 1 if shape.reverse else 0
    for after, turns in swap:
        for q, sub in own.sw.items():
            loops = [*turns(nx * sub), (steps, 0, nx), (nx, sub, 1)]
            b.access(phase, [f"cu.{q}.row"], "read", sub, 0, compute + after, loops)
    x_sub = m.sx if given.source == "dram" else m.sy
    x_pitch = nx * x_sub
    loops = [(cells, 0, pace), (steps, flow * x_pitch, nx), (nx, x_sub, 1)]
    b.access(phase, ["intermediate"], "read", x_sub, source + first * x_pitch, compute, loops)
    loops = [(cells, 0, pace), (steps, 0, nx), (nx, m.sx, 1)]
    for op in ("write", "read"):
        b.access(phase, cus("inputs"), op, m.sx, 0, compute, loops)
    # Own partial sums lie behind all output rows of the layer's half.
    partials = given.half_address + steps * given.pitch
    per_neuron = sum(own.pe.values())
    per_step = cells * per_neuron
    places, address = [], partials + first * per_step
    for size in own.pe.values():
        places.append((size, address))
        address += size
    stored = compute + nx - 1 + latency + quantise
    for size, address in places:
        loops = [(cells, per_neuron, pace), (steps, flow * per_step, nx)]
        b.access(phase, ["intermediate"], "write", size, address, stored, loops)
    mu.count_dpu(b, shape, "forward", nx, steps)

    # Recurrent: time step by time step.
    t = mu.timeline(m.accelerator, shape.peepholes)
    begin += (cells + 1) * pace + latency + quantise
    begin = load_state(b, shape, replace(given, cycle=begin), 0, 0, cell)
    period = cells * nh + latency + lookup + m.accelerator.add_cycles + t.z

    def per_step_access(
        kind: str, where: Iterable[str], op: str, size: int, address: int, step: int, neurons: int,
        after: int, inner: Sequence[Loop] = (),
    ) -> None:  # fmt: skip
        loops = [(steps, step, period), (cells, neurons, nh), *inner]
        b.access((shape.name, kind), where, op, size, address, begin + after, loops)

    out, out_step = given.out_address + first * given.pitch, flow * given.pitch
    back = [(steps - 1, out_step, period), (nh, m.sy, 1)]
    b.access((shape.name, "recurrent"), ["intermediate"], "read", m.sy, out, begin + period, back)
    back = [(steps - 1, 0, period), (nh, m.sx, 1)]
    b.access((shape.name, "recurrent"), cus("inputs"), "write", m.sx, 0, begin + period, back)
    for q, sub in own.sw.items():
        where = [f"cu.{q}.weights"]
        per_step_access("recurrent", where, "read", sub, 0, 0, nh * sub, 0, [(nh, sub, 1)])
    per_step_access("recurrent", cus("inputs"), "read", m.sx, 0, 0, 0, 0, [(nh, m.sx, 1)])
    ready = nh - 1 + latency
    where, step = ["intermediate"], flow * per_step
    for size, address in places:
        per_step_access("recurrent", where, "read", size, address, step, per_neuron, ready)
    ready += lookup + m.accelerator.add_cycles

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        per_step_access("mu", where, op, size, address, 0, stride, ready + after)

    mu.accesses(m, shape, mu.Places(cell, AT_ZERO), emit)
    per_step_access("mu", ["intermediate"], "write", m.ye, out, out_step, m.ye, ready + t.z)
    mu.count_dpu(b, shape, "recurrent", nh, steps)
    mu.count(b, shape, steps)
    sums = steps * cells
    for q in GATES:
        fmt = own.units[q].sum
        b.operations((shape.name, "recurrent"), "dpu", fmt, {"add": sums})
        if q in own.quantised:
            b.operations((shape.name, "forward"), "mu", fmt, {"quantise": sums})
            b.operations((shape.name, "recurrent"), "mu", fmt, {"lookup": sums})
    return begin + (steps - 1) * period + (cells - 1) * nh + ready + t.z + 1


def _alternating(count: int, pace: int) -> list[tuple[int, Callable[[int], list[Loop]]]]:
    """(cycle, loops by the slots' distance) of `count` turns that swap between two slots."""
    pairs, rest = divmod(count, 2)
    return [
        (0, lambda swing: [(pairs, 0, 2 * pace), (2, swing, pace)]),
        (2 * pairs * pace, lambda _: [(rest, 0, 0)]),
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


ORDER = Order(dram_bytes, check, run_pass)
