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


def timeline(a: Accelerator, peepholes: bool, link: int | None = None) -> Timeline:
    """When the MU's chain of one neuron reads, writes and ends; `link` in place of the links' latency."""
    link = a.link_cycles if link is None else link
    tanh = a.compare_cycles + a.exp_cycles + 1 + a.add_cycles + 1 + a.divide_cycles
    sigmoid = a.compare_cycles + a.exp_cycles + a.add_cycles + a.divide_cycles
    p = a.multiply_cycles + a.add_cycles if peepholes else 0
    tm = max(a.add_cycles + tanh, p + a.add_cycles + sigmoid + link)
    tc = tm + 1 + a.multiply_cycles + a.add_cycles
    biased = a.add_cycles
    if peepholes:
        biased = max(biased, tc + link + a.multiply_cycles) + a.add_cycles
    out = max(biased + sigmoid, tc + tanh + link)
    return Timeline(p, tm, tc, out + a.multiply_cycles + link)


@dataclass(frozen=True)
class Places:
    """Where the MU finds its operands: c in the input buffer, offsets in the banks, c's saved copy."""

    cell: int
    bank: dict[str, int]
    saved_cell: int | None = None


#: Emits one access per neuron: (components, op, bytes, address of neuron 0, stride, cycles after D).
PerNeuron = Callable[[Iterable[str], str, int, int, int, int], None]


def accesses(m: Machine, shape: LayerShape, places: Places, emit: PerNeuron) -> Timeline:
    """The MU's accesses but for h_t, whose places differ from step to step."""
    t, own = timeline(m.accelerator, shape.peepholes), m.of(shape)
    link, ce = m.accelerator.link_cycles, own.ce

    def weight(gate: str, place: int, after: int) -> None:
        address = m.accelerator.weight_buffer_bytes + places.bank[gate]
        address += place * own.nh * own.sb[gate]
        size = own.be[gate]
        emit([f"cu.{gate}.weights"], "read", size, address, size, after)

    for gate in GATES:
        weight(gate, 0, t.p if gate in "if" else 0)
    emit(["cu.g.inputs"], "read", ce, places.cell, ce, t.tm + 1)
    emit(["cu.g.inputs"], "write", ce, places.cell, ce, t.tc)
    if shape.peepholes:
        for gate in PEEPHOLE_GATES:
            weight(gate, 1, t.tc + link if gate == "o" else 0)
        emit(cus("inputs", "if"), "read", ce, places.cell, ce, 0)
        others = [q for q in cell_holders(shape) if q != "g"]
        emit(cus("inputs", others), "write", ce, places.cell, ce, t.tc + link)
    if places.saved_cell is not None:
        emit(["intermediate"], "write", ce, places.saved_cell, ce, t.tc + link)
    return t


#: Operations of each gate's MU for a neuron.
OPERATIONS = {
    "i": {"add": 2, "multiply": 0, "compare": 1, "exp": 1, "divide": 1},
    "f": {"add": 2, "multiply": 0, "compare": 1, "exp": 1, "divide": 1},
    "g": {"add": 6, "multiply": 2, "compare": 2, "exp": 4, "divide": 2},
    "o": {"add": 2, "multiply": 1, "compare": 1, "exp": 1, "divide": 1},
}

#: Values that each gate's MU sends for a neuron, and those that peepholes add.
LINKS = {"i": (1, 0), "f": (1, 0), "g": (2, 2), "o": (1, 0)}


def count(b: Builder, shape: LayerShape, steps: int) -> None:
    """The MU's operations of a pass."""
    times, phase = steps * shape.cells, (shape.name, "mu")
    for q, fixed in OPERATIONS.items():
        fmt, each = b.machine.of(shape).units[q].mu, dict(fixed)
        if shape.peepholes and q in PEEPHOLE_GATES:
            each["multiply"] += 1
            each["add"] += 1
        b.operations(phase, "mu", fmt, {name: n * times for name, n in each.items()})
    for q, (always, peepholes) in LINKS.items():
        fmt = b.machine.of(shape).units[q].mu
        b.operations(phase, "link", fmt, {"link": (always + shape.peepholes * peepholes) * times})


def count_dpu(b: Builder, shape: LayerShape, kind: str, subs: int, steps: int) -> None:
    """The DPUs' operations of a pass, for `subs` sub-vectors a neuron."""
    width, phase = b.machine.accelerator.width, (shape.name, kind)
    times = steps * shape.cells * subs
    for unit in b.machine.of(shape).units.values():
        b.operations(phase, "dpu", unit.multiply, {"multiply": width * times})
        b.operations(phase, "dpu", unit.tree, {"add": (width - 1) * times})
        b.operations(phase, "dpu", unit.accumulator, {"add": times})
