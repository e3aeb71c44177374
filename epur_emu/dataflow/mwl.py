"""Maximised weight locality: all forward products of a pass first, row by row, then the recurrent ones.

It rounds once more than E-PUR's order: the forward partial sum of each gate is stored, quantised or in the
accumulator's format, and added to the finished recurrent sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from epur_emu.dataflow import stored
from epur_emu.dataflow.layout import Builder, Given, Machine, Run, Turns, cus
from epur_emu.dataflow.regions import Dataflow, Order, row_bursts
from epur_emu.dataflow.stored import Stretch, Way, alternating, matrix_bytes, rows_kept
from epur_emu.network import GATES, LayerShape
from epur_emu.streams import Loop


def _sizes(m: Machine, shape: LayerShape) -> dict[str, int]:
    return m.of(shape).pe


def _forward(b: Builder, shape: LayerShape, given: Given, part: Stretch, begin: int) -> int:
    """Neuron by neuron, each with all time steps of the stretch."""
    m, cells, own = b.machine, shape.cells, b.machine.of(shape)
    nx, nh, steps = own.nx, own.nh, part.steps
    latency = m.accelerator.dpu_latency
    quantise = m.accelerator.quantise_cycles if own.quantised else 0
    w_h = given.dram_weights + matrix_bytes(m, shape, nx)
    x_rows, h_rows = row_bursts(m, shape, nx), row_bursts(m, shape, nh)
    kept = 0 if part.first else rows_kept(m, shape)
    both = sum(x_rows) + (0 if part.first else sum(h_rows))
    pace = max(steps * nx, m.channel(both))

    def rows(turns: Turns, size: int) -> Sequence[Loop]:
        return [(n, slots * size, wait) for n, _, slots, wait in turns]

    phase, swap = (shape.name, "load"), alternating(cells, pace)
    x_moved, h_moved = 0, 0
    for (q, sub), x_row, h_row in zip(own.sw.items(), x_rows, h_rows, strict=True):
        at, dram = begin + x_moved, given.dram_weights + x_moved * m.burst
        loops: list[Loop] = [(cells, sum(x_rows) * m.burst, pace)]
        b.bursts(phase, "read", dram, at, nx * sub, loops)
        for number, turns in swap:
            outer = rows(turns, nx * sub)
            cycle = at + number * pace
            b.at_burst_pace(phase, [f"cu.{q}.row"], "write", sub, nx, 0, cycle, outer)
        at, dram = begin + sum(x_rows) + h_moved, w_h + h_moved * m.burst
        loops = [(kept, sum(h_rows) * m.burst, pace)]
        b.bursts(phase, "read", dram, at, nh * sub, loops)
        outer = [(kept, nh * sub, pace)]
        b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", sub, nh, 0, at, outer)
        x_moved, h_moved = x_moved + x_row, h_moved + h_row
    compute, phase = begin + pace, (shape.name, "forward")
    for number, turns in swap:
        for q, sub in own.sw.items():
            loops = [*rows(turns, nx * sub), (steps, 0, nx), (nx, sub, 1)]
            b.access(phase, [f"cu.{q}.row"], "read", sub, 0, compute + number * pace, loops)
    source = given.source_address if given.source == "intermediate" else 0
    x_sub = m.sx if given.source == "dram" else m.sy
    x_pitch = nx * x_sub
    loops = [(cells, 0, pace), (steps, part.flow * x_pitch, nx), (nx, x_sub, 1)]
    source += part.true * x_pitch
    b.access(phase, ["intermediate"], "read", x_sub, source, compute, loops)
    loops = [(cells, 0, pace), (steps, 0, nx), (nx, m.sx, 1)]
    for op in ("write", "read"):
        b.access(phase, cus("inputs"), op, m.sx, 0, compute, loops)
    after = compute + nx - 1 + latency + quantise
    for size, address in part.sums:
        loops = [(cells, part.per_neuron, pace), (steps, part.flow * part.per_step, nx)]
        b.access(phase, ["intermediate"], "write", size, address, after, loops)
    busy, wait = cells * steps * nx, latency + quantise
    b.time(shape.name, "forward", busy, weights=(cells + 1) * pace - busy, recurrence=wait)
    return begin + (cells + 1) * pace + wait


_WAY = Way(_sizes, _forward, restarts=False)


def check(
    m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int, spilled: bool
) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers."""
    own = m.of(shape)
    m.need(
        2 * own.nx * max(own.sw.values()), "row_buffer_bytes", m.accelerator.row_buffer_bytes,
        f"{shape.name} (two rows)", "use a smaller layer or format, or a larger buffer",
    )  # fmt: skip
    _WAY.check(m, shape, steps, x_pitch, pitch, spilled)


def run_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> Run:
    """Emit one pass, number `direction` of its layer; returns when it ends."""
    run = _WAY.run_pass(b, shape, given, direction)
    own, sums = b.machine.of(shape), given.steps * shape.cells
    for q in GATES:
        fmt = own.units[q].sum
        b.operations((shape.name, "recurrent"), "dpu", fmt, {"add": sums})
        if q in own.quantised:
            b.operations((shape.name, "forward"), "mu", fmt, {"quantise": sums})
            b.operations((shape.name, "recurrent"), "mu", fmt, {"lookup": sums})
    return run


ORDER = Order(stored.dram_bytes, check, run_pass)

DATAFLOW = Dataflow.of(ORDER, rounds="epur-mwl")
