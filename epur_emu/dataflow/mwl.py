"""Maximised weight locality: all forward products of a pass first, row by row, then the recurrent ones.

It rounds once more than E-PUR's order: the forward partial sum of each gate is stored, quantised or in the
accumulator's format, and added to the finished recurrent sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from epur_emu.dataflow import mu
from epur_emu.dataflow.layout import Builder, Given, Machine, cus, load_parameters, load_state
from epur_emu.dataflow.regions import Order, parameter_bursts
from epur_emu.formats import LinearFormat
from epur_emu.network import GATES, LayerShape
from epur_emu.streams import Loop


def matrix_bytes(m: Machine, shape: LayerShape, inputs: int) -> int:
    """DRAM bytes of the rows of W_x or W_h, four gates."""
    return 4 * shape.cells * m.bursts(m.subs(inputs) * m.sw) * m.burst


def dram_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights, biases and peepholes."""
    both = matrix_bytes(m, shape, shape.inputs) + matrix_bytes(m, shape, shape.cells)
    return both + parameter_bursts(m, shape) * m.burst


def check(m: Machine, shape: LayerShape, steps: int, pitch: int) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers."""
    a = m.accelerator
    nx, nh = m.subs(shape.inputs), m.subs(shape.cells)
    remedy = "use a smaller layer or format, or a larger buffer"
    name = shape.name
    m.need(2 * nx * m.sw, "row_buffer_bytes", a.row_buffer_bytes, f"{name} (two rows)", remedy)
    vectors = max(nx * m.sx, nh * (m.sx + m.sc))
    m.need(vectors, "input_buffer_bytes", a.input_buffer_bytes, f"{name} (x, or h and c)", remedy)
    matrix = shape.cells * nh * m.sw
    m.need(matrix, "weight_buffer_bytes", a.weight_buffer_bytes, f"W_h of a gate of {name}", remedy)
    per_step = pitch + shape.cells * len(GATES) * m.pe
    most = m.half // max(per_step, nx * m.sx)
    fewer = f"give at most {most} steps"
    place = "half of intermediate_bytes"
    m.need(
        steps * per_step, place, m.half, f"{name} (output and partial sums, {steps} steps)", fewer
    )
    m.need(steps * nx * m.sx, place, m.half, f"the input of {steps} steps of {name}", fewer)


def run_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> int:
    """Emit one pass, number `direction` of its layer; returns the cycle after its last write of h."""
    m, steps, cells = b.machine, given.steps, shape.cells
    nx, nh = m.subs(shape.inputs), m.subs(cells)
    latency = m.accelerator.dpu_latency
    w_h = given.dram_weights + matrix_bytes(m, shape, shape.inputs)
    params = w_h + matrix_bytes(m, shape, cells)
    cell = nh * m.sx
    begin = given.cycle + m.channel(load_parameters(b, shape, params, given.cycle))
    source = given.source_address if given.source == "intermediate" else 0
    if given.source == "dram" and direction == 0:
        begin = _stage(b, shape, given, begin)

    # Forward: neuron by neuron, each with all time steps.
    x_row, h_row = m.bursts(nx * m.sw), m.bursts(nh * m.sw)
    pace = max(steps * nx, m.channel(4 * x_row + 4 * h_row))
    for g, q in enumerate(GATES):
        phase, at = (shape.name, "load"), begin + g * x_row
        dram = given.dram_weights + g * x_row * m.burst
        b.bursts(phase, "read", dram, at, nx * m.sw, [(cells, 4 * x_row * m.burst, pace)])
        for address, after, outer in _alternating(cells, nx * m.sw, pace):
            b.at_burst_pace(phase, [f"cu.{q}.row"], "write", m.sw, nx, address, at + after, outer)
        at = begin + 4 * x_row + g * h_row
        b.bursts(
            phase,
            "read",
            w_h + g * h_row * m.burst,
            at,
            nh * m.sw,
            [(cells, 4 * h_row * m.burst, pace)],
        )
        outer = [(cells, nh * m.sw, pace)]
        b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", m.sw, nh, 0, at, outer)
    compute, phase = begin + pace, (shape.name, "forward")
    flow = -1 if shape.reverse else 1
    first = steps - 1 if shape.reverse else 0
    for address, after, outer in _alternating(cells, nx * m.sw, pace):
        loops = [*outer, (steps, 0, nx), (nx, m.sw, 1)]
        b.access(phase, cus("row"), "read", m.sw, address, compute + after, loops)
    x_pitch = nx * m.sx
    loops = [(cells, 0, pace), (steps, flow * x_pitch, nx), (nx, m.sx, 1)]
    b.access(phase, ["intermediate"], "read", m.sx, source + first * x_pitch, compute, loops)
    loops = [(cells, 0, pace), (steps, 0, nx), (nx, m.sx, 1)]
    for op in ("write", "read"):
        b.access(phase, cus("inputs"), op, m.sx, 0, compute, loops)
    # Own partial sums lie behind all output rows of the layer's half.
    partials = given.half_address + steps * given.pitch
    per_step = cells * len(GATES) * m.pe
    stored = compute + nx - 1 + latency + m.quantise
    for g in range(len(GATES)):
        loops = [(cells, len(GATES) * m.pe, pace), (steps, flow * per_step, nx)]
        address = partials + first * per_step + g * m.pe
        b.access(phase, ["intermediate"], "write", m.pe, address, stored, loops)
    mu.count_dpu(b, shape, "forward", nx, steps)

    # Recurrent: time step by time step.
    t = mu.timeline(m.accelerator, shape.peepholes)
    begin += (cells + 1) * pace + latency + m.quantise
    begin = load_state(b, shape, replace(given, cycle=begin), 0, 0, cell)
    period = cells * nh + latency + m.lookup + m.accelerator.add_cycles + t.z

    def per_step_access(
        kind: str, where: Iterable[str], op: str, size: int, address: int, step: int, neurons: int,
        after: int, inner: Sequence[Loop] = (),
    ) -> None:  # fmt: skip
        loops = [(steps, step, period), (cells, neurons, nh), *inner]
        b.access((shape.name, kind), where, op, size, address, begin + after, loops)

    out, out_step = given.out_address + first * given.pitch, flow * given.pitch
    back = [(steps - 1, out_step, period), (nh, m.sx, 1)]
    b.access((shape.name, "recurrent"), ["intermediate"], "read", m.sx, out, begin + period, back)
    back = [(steps - 1, 0, period), (nh, m.sx, 1)]
    b.access((shape.name, "recurrent"), cus("inputs"), "write", m.sx, 0, begin + period, back)
    per_step_access("recurrent", cus("weights"), "read", m.sw, 0, 0, nh * m.sw, 0, [(nh, m.sw, 1)])
    per_step_access("recurrent", cus("inputs"), "read", m.sx, 0, 0, 0, 0, [(nh, m.sx, 1)])
    ready = nh - 1 + latency
    for g in range(len(GATES)):
        address = partials + first * per_step + g * m.pe
        per_step_access(
            "recurrent",
            ["intermediate"],
            "read",
            m.pe,
            address,
            flow * per_step,
            len(GATES) * m.pe,
            ready,
        )
    ready += m.lookup + m.accelerator.add_cycles

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        per_step_access("mu", where, op, size, address, 0, stride, ready + after)

    mu.accesses(m, shape, mu.Places(cell), emit)
    per_step_access("mu", ["intermediate"], "write", m.xe, out, out_step, m.xe, ready + t.z)
    mu.count_dpu(b, shape, "recurrent", nh, steps)
    mu.count(b, shape, steps)
    sums = steps * cells * len(GATES)
    b.operations((shape.name, "recurrent"), "dpu", {"add": sums})
    if isinstance(m.arithmetic.partial, LinearFormat):
        b.operations((shape.name, "forward"), "mu", {"quantise": sums})
        b.operations((shape.name, "recurrent"), "mu", {"lookup": sums})
    return begin + (steps - 1) * period + (cells - 1) * nh + ready + t.z + 1


def _alternating(count: int, swing: int, pace: int) -> list[tuple[int, int, list[Loop]]]:
    """(address, cycle, loops) of `count` turns that swap between two slots `swing` bytes apart."""
    pairs, rest = divmod(count, 2)
    return [(0, 0, [(pairs, 0, 2 * pace), (2, swing, pace)]), (0, 2 * pairs * pace, [(rest, 0, 0)])]


def _stage(b: Builder, shape: LayerShape, given: Given, cycle: int) -> int:
    """Copy the network's input to the intermediate memory; returns the cycle after."""
    m, size = b.machine, b.machine.subs(shape.inputs) * b.machine.sx
    row = m.channel(m.bursts(size))
    phase = (shape.name, "load")
    dram = [(given.steps, m.bursts(size) * m.burst, row)]
    b.bursts(phase, "read", given.source_address, cycle, size, dram)
    place = [(given.steps, size, row)]
    b.at_burst_pace(phase, ["intermediate"], "write", m.sx, m.subs(shape.inputs), 0, cycle, place)
    return cycle + given.steps * row


ORDER = Order(dram_bytes, check, run_pass)
