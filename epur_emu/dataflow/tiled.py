"""Weight-stationary tiles, for layers larger than the weight buffers.

Forward products tile by tile, each with all time steps of a stretch; then the recurrent ones. Accumulators are
stored in their own format and put back: it rounds as the datapath does and nowhere else, its bits are E-PUR's.
"""

from __future__ import annotations

from epur_emu.dataflow import stored
from epur_emu.dataflow.layout import AT_ZERO, Builder, Given, Machine, Run, cus, fetch_rows
from epur_emu.dataflow.regions import Dataflow, Order, row_bursts
from epur_emu.dataflow.stored import Stretch, Way, rows_that_fit
from epur_emu.network import LayerShape


def _sizes(m: Machine, shape: LayerShape) -> dict[str, int]:
    return m.of(shape).ae


def _forward(b: Builder, shape: LayerShape, given: Given, part: Stretch, begin: int) -> int:
    """Tile by tile; the first step runs at the pace of the load."""
    m, own, phase = b.machine, b.machine.of(shape), (shape.name, "forward")
    nx, later = own.nx, part.steps - 1
    rows = row_bursts(m, shape, nx)
    pace = max(nx, m.channel(sum(rows)))
    source = given.source_address if given.source == "intermediate" else 0
    x_sub = m.sx if given.source == "dram" else m.sy
    source += part.true * nx * x_sub
    x_step, sums_step = part.flow * nx * x_sub, part.flow * part.per_step
    size = min(shape.cells, rows_that_fit(m, shape, nx))
    full, rest = divmod(shape.cells, size)
    cycle, neuron = begin, 0
    for tiles, k in ((full, size), (1 if rest else 0, rest)):
        period = k * pace + nx + later * k * nx
        turns = [(tiles, k, 0, period), (k, 1, 1, pace)]
        dram = given.dram_weights + neuron * sum(rows) * m.burst
        fetch_rows(b, shape, nx, turns, dram, cycle, AT_ZERO)
        first, second = cycle + pace, cycle + k * pace + nx
        for where, op, sub, at, step in (
            (["intermediate"], "read", x_sub, source, x_step), (cus("inputs"), "write", m.sx, 0, 0)
        ):  # fmt: skip
            inner = (nx, sub, 1)
            b.access(phase, where, op, sub, at, first, [(tiles, 0, period), inner])
            loops = [(tiles, 0, period), (later, step, k * nx), inner]
            b.access(phase, where, op, sub, at + step, second, loops)
        reads = [([f"cu.{q}.weights"], sub, nx * sub) for q, sub in own.sw.items()]
        for where, sub, row in [*reads, (cus("inputs"), m.sx, 0)]:
            inner = (nx, sub, 1)
            loops = [(tiles, 0, period), (k, row, pace), inner]
            b.access(phase, where, "read", sub, 0, first, loops)
            loops = [(tiles, 0, period), (later, 0, k * nx), (k, row, nx), inner]
            b.access(phase, where, "read", sub, 0, second, loops)
        after = nx - 1 + m.accelerator.dpu_latency
        for bytes_, address in part.sums:
            at, own_step = address + neuron * part.per_neuron, part.per_neuron
            tile = (tiles, k * own_step, period)
            loops = [tile, (k, own_step, pace)]
            b.access(phase, ["intermediate"], "write", bytes_, at, first + after, loops)
            loops = [tile, (later, sums_step, k * nx), (k, own_step, nx)]
            b.access(
                phase, ["intermediate"], "write", bytes_, at + sums_step, second + after, loops
            )
        cycle, neuron = cycle + tiles * period, neuron + tiles * k
    count = full + (rest > 0)
    many = f"{count} tile{'s' if count > 1 else ''} of up to {size} of {shape.cells} neurons"
    b.policy(shape.name, "weights", "tiles", many)
    busy, wait = shape.cells * part.steps * nx, m.accelerator.dpu_latency
    b.time(shape.name, "forward", busy, weights=cycle - begin - busy, recurrence=wait)
    return cycle + wait


_WAY = Way(_sizes, _forward, restarts=True)


def check(
    m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int, spilled: bool
) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers."""
    m.need(
        m.of(shape).nx * max(m.of(shape).sw.values()), "weight_buffer_bytes",
        m.accelerator.weight_buffer_bytes, f"a row of W_x of a gate of {shape.name}",
        "use a smaller layer or format, or a larger buffer",
    )  # fmt: skip
    _WAY.check(m, shape, steps, x_pitch, pitch, spilled)


def _run_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> Run:
    return _WAY.run_pass(b, shape, given, direction)


ORDER = Order(stored.dram_bytes, check, _run_pass)

DATAFLOW = Dataflow.of(ORDER)
