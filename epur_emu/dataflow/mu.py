"""The MU's part of a neuron: when it touches the buffers, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from epur_emu.accelerator import Accelerator
from epur_emu.dataflow.layout import PEEPHOLE_GATES, Builder, Machine, cell_holders, cus
from epur_emu.network import GATES, LayerShape


@dataclass(frozen=True)
class Timeline:
    """Cycles after the DPU's sum is there; names as in ``docs/dataflow.md``."""

    p: int
    tm: int
    tc: int
    z: int


def timeline(a: Accelerator, peepholes: bool) -> Timeline:
    """When the MU's chain of one neuron reads, writes and ends."""
    tanh = a.compare_cycles + a.exp_cycles + 1 + a.add_cycles + 1 + a.divide_cycles
    sigmoid = a.compare_cycles + a.exp_cycles + a.add_cycles + a.divide_cycles
    p = a.multiply_cycles + a.add_cycles if peepholes else 0
    tm = max(a.add_cycles + tanh, p + a.add_cycles + sigmoid + a.link_cycles)
    tc = tm + 1 + a.multiply_cycles + a.add_cycles
    biased = a.add_cycles
    if peepholes:
        biased = max(biased, tc + a.link_cycles + a.multiply_cycles) + a.add_cycles
    out = max(biased + sigmoid, tc + tanh + a.link_cycles)
    return Timeline(p, tm, tc, out + a.multiply_cycles + a.link_cycles)


@dataclass(frozen=True)
class Places:
    """Where the MU finds its operands: parameter bank offset, c in the input buffer, c's saved copy."""

    cell: int
    bank: int = 0
    saved_cell: int | None = None


#: Emits one access per neuron: (components, op, bytes, address of neuron 0, stride, cycles after D).
PerNeuron = Callable[[Iterable[str], str, int, int, int, int], None]


def accesses(m: Machine, shape: LayerShape, places: Places, emit: PerNeuron) -> Timeline:
    """The MU's accesses but for h_t, whose places differ from step to step."""
    t = timeline(m.accelerator, shape.peepholes)
    link = m.accelerator.link_cycles
    bias = m.accelerator.weight_buffer_bytes + places.bank
    peephole = bias + m.subs(shape.cells) * m.sw

    def weight(gate: str, address: int, after: int) -> None:
        emit([f"cu.{gate}.weights"], "read", m.we, address, m.we, after)

    for gate in GATES:
        weight(gate, bias, t.p if gate in "if" else 0)
    emit(["cu.g.inputs"], "read", m.ce, places.cell, m.ce, t.tm + 1)
    emit(["cu.g.inputs"], "write", m.ce, places.cell, m.ce, t.tc)
    if shape.peepholes:
        for gate in PEEPHOLE_GATES:
            weight(gate, peephole, t.tc + link if gate == "o" else 0)
        emit(cus("inputs", "if"), "read", m.ce, places.cell, m.ce, 0)
        others = [q for q in cell_holders(shape) if q != "g"]
        emit(cus("inputs", others), "write", m.ce, places.cell, m.ce, t.tc + link)
    if places.saved_cell is not None:
        emit(["intermediate"], "write", m.ce, places.saved_cell, m.ce, t.tc + link)
    return t


def count(b: Builder, shape: LayerShape, steps: int) -> None:
    """The MU's operations of a pass."""
    peep = int(shape.peepholes)
    each = {
        "add": 12 + 3 * peep,
        "multiply": 3 + 3 * peep,
        "compare": 5,
        "exp": 7,
        "divide": 5,
    }
    times = steps * shape.cells
    phase = (shape.name, "mu")
    b.operations(phase, "mu", {name: n * times for name, n in each.items()})
    b.operations(phase, "link", {"link": (5 + 2 * peep) * times})


def count_dpu(b: Builder, shape: LayerShape, kind: str, subs: int, steps: int) -> None:
    """The DPUs' operations of a pass, for `subs` sub-vectors a neuron."""
    width = b.machine.accelerator.width
    times = steps * shape.cells * len(GATES) * subs
    b.operations((shape.name, kind), "dpu", {"multiply": width * times, "add": width * times})
