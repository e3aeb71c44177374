"""Sizes, addresses and the stream builder that all dataflows share; ``docs/dataflow.md`` defines them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from epur_emu._kernels import nests
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow.operations import UnitFormats, one_format
from epur_emu.dataflow.timing import CAUSES, PhaseTiming, Policy, total
from epur_emu.errors import AcceleratorError
from epur_emu.formats import FixedFormat, FloatFormat, LinearFormat
from epur_emu.network import GATES, LayerShape
from epur_emu.streams import AccessStream, Component, Loop, Phase

Shape = tuple[tuple[LayerShape, ...], ...]

#: CUs whose gates have peephole weights.
PEEPHOLE_GATES = ("i", "f", "o")

#: A stretch of a memory and by how much it moves: component, first address, address behind, bytes.
Region = tuple[str, int, int, int]

#: Places at the beginning of the CUs' buffers.
AT_ZERO = dict.fromkeys(GATES, 0)


@dataclass(frozen=True)
class Schedule:
    """What a dataflow makes of a network: phases with their streams and operations.

    Parameters
    ----------
    phases : tuple of Phase
    cycles : int
        The cycle at which all has ended (counted from 0, the origin included).
    components : tuple of Component
    dram_end : int
        First DRAM address behind this schedule's regions.
    timing : tuple of PhaseTiming
        Where the cycles went; one for each (layer, phase), in order.
    policies : tuple of Policy
        What was done where something did not fit.
    """

    phases: tuple[Phase, ...]
    cycles: int
    components: tuple[Component, ...]
    dram_end: int
    timing: tuple[PhaseTiming, ...] = ()
    policies: tuple[Policy, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Of one pass, the symbols of ``docs/dataflow.md``; a dict goes by gate, sizes are bytes.

    Parameters
    ----------
    nx, nh : int
        Sub-vectors of x and of h.
    sw : dict of str to int
        A sub-vector of weights.
    be, sb : dict of str to int
        A bias or peephole weight, and a sub-vector of these.
    pe, ae : dict of str to int
        A stored partial sum, a stored accumulator.
    ce, sc : int
        An element and a sub-vector of c.
    quantised : tuple of str
        Gates whose partial sums are quantised.
    units : dict of str to UnitFormats
    """

    nx: int
    nh: int
    sw: dict[str, int]
    be: dict[str, int]
    sb: dict[str, int]
    pe: dict[str, int]
    ae: dict[str, int]
    ce: int
    sc: int
    quantised: tuple[str, ...]
    units: dict[str, UnitFormats]

    @classmethod
    def of(cls, shape: LayerShape, arithmetic: Arithmetic, width: int) -> Sizes:
        """Sizes of a pass on DPUs of so many elements."""
        own = {q: arithmetic.at(shape.name, q) for q in GATES}
        be = {
            q: (a.weight if isinstance(a.weight, FloatFormat | FixedFormat) else a.mu).bytes
            for q, a in own.items()
        }
        ce = own["g"].cell.bytes
        return cls(
            nx=-(-shape.inputs // width),
            nh=-(-shape.cells // width),
            sw={q: width * a.weight.bytes for q, a in own.items()},
            be=be,
            sb={q: width * size for q, size in be.items()},
            pe={q: a.partial.bytes for q, a in own.items()},
            ae={q: a.accumulator.bytes for q, a in own.items()},
            ce=ce,
            sc=width * ce,
            quantised=tuple(q for q, a in own.items() if isinstance(a.partial, LinearFormat)),
            units={q: UnitFormats.of(a) for q, a in own.items()},
        )


class Machine:
    """An accelerator that holds a network in an arithmetic's formats.

    Parameters
    ----------
    accelerator : Accelerator
    arithmetic : Arithmetic
    shape : tuple of tuple of LayerShape

    Attributes
    ----------
    xe, sx : int
        Bytes of an element and of a sub-vector of x or h in the input buffers.
    ye, sy : int
        The same of h in the intermediate memory.
    one_format : bool
        Whether operations go by their names alone.
    """

    def __init__(self, accelerator: Accelerator, arithmetic: Arithmetic, shape: Shape) -> None:
        self.accelerator = accelerator
        self.one_format = one_format(arithmetic)
        passes = [p for layer in shape for p in layer]
        width = accelerator.width
        self.xe = max(arithmetic.at(p.name, q).input.bytes for p in passes for q in GATES)
        self.ye = max(arithmetic.at(p.name, "o").output.bytes for p in passes)
        self.sx, self.sy = width * self.xe, width * self.ye
        self._sizes: dict[str, Sizes] = {}
        known: dict[object, Sizes] = {}
        for p in passes:
            key = p.name if arithmetic.overrides else (p.inputs, p.cells)
            if key not in known:
                known[key] = Sizes.of(p, arithmetic, width)
            self._sizes[p.name] = known[key]

    def of(self, shape: LayerShape) -> Sizes:
        """Sizes of one of the network's passes."""
        return self._sizes[shape.name]

    @property
    def burst(self) -> int:
        """Bytes of a DRAM burst."""
        return self.accelerator.dram_burst_bytes

    @property
    def half(self) -> int:
        """Bytes of a half of the intermediate memory."""
        return self.accelerator.intermediate_bytes // 2

    def subs(self, elements: int) -> int:
        """Sub-vectors of a vector."""
        return -(-elements // self.accelerator.width)

    def bursts(self, size: int) -> int:
        """Bursts of so many bytes."""
        return -(-size // self.burst)

    def channel(self, bursts: int) -> int:
        """Cycles in which the DRAM channel moves so many bursts."""
        return self.accelerator.channel_cycles(bursts)

    def pitch(self, layer: Sequence[LayerShape]) -> int:
        """Bytes of a layer's output row in the intermediate memory."""
        return self.subs(sum(p.cells for p in layer)) * self.sy

    def need(self, size: int, place: str, capacity: int, what: str, remedy: str) -> None:
        """Raise `AcceleratorError` unless `size` bytes fit in a place."""
        if size > capacity:
            raise AcceleratorError(
                self.accelerator.name, place, f"holds {capacity} bytes, {what} needs {size}", remedy
            )

    def components(self) -> tuple[Component, ...]:
        """The memories, in the order of the trace's component table."""
        a = self.accelerator
        weights = a.weight_buffer_bytes + a.parameter_bank_bytes
        out = []
        for q in GATES:
            out.append(Component(f"cu.{q}.weights", weights, a.port_bits, a.weight_buffer_banks))
            out.append(Component(f"cu.{q}.inputs", a.input_buffer_bytes, a.port_bits, 1))
            if a.row_buffer_bytes:
                out.append(Component(f"cu.{q}.row", a.row_buffer_bytes, a.port_bits, 1))
        out.append(
            Component("intermediate", a.intermediate_bytes, a.port_bits, a.intermediate_banks)
        )
        out.append(Component("dram", a.dram_bytes, 8 * a.dram_burst_bytes, 1))
        return tuple(out)


@dataclass(frozen=True)
class Given:
    """Where a pass finds and leaves its data.

    Parameters
    ----------
    cycle : int
        C0, where the pass begins.
    steps : int
        T.
    dram_weights : int
        DRAM address of the pass's weights.
    source : {"dram", "intermediate", "spilled"}
    source_address, out_address : int
        Row 0 of the input; the pass's own cells in row 0 of the output, in the intermediate memory.
    half_address : int
        Row 0 of the output with all passes' cells.
    pitch : int
        Bytes from an output row to the next.
    initial : {"zero", "dram", "intermediate"}
    state_address : int
        Where a given initial state lies.
    load : bool
        Whether the weights are fetched, or resident already.
    matrix, bank : dict of str to int
        By gate, where the layer lies in the weight buffer and in the parameter bank.
    parts : tuple of (int, int)
        Of a spilled input: row 0 in DRAM and sub-vectors of each pass of the layer before.
    spill : int, optional
        Where row 0 of the output goes in DRAM; `half_address` is then the first of two slots.
    """

    cycle: int
    steps: int
    dram_weights: int
    source: str
    source_address: int
    out_address: int
    half_address: int
    pitch: int
    initial: str = "zero"
    state_address: int = 0
    load: bool = True
    matrix: dict[str, int] = field(default_factory=lambda: AT_ZERO)
    bank: dict[str, int] = field(default_factory=lambda: AT_ZERO)
    parts: tuple[tuple[int, int], ...] = ()
    spill: int | None = None


@dataclass(frozen=True)
class Run:
    """When a pass has ended, and when all its rows of weights had been fetched."""

    end: int
    loaded: int


@dataclass
class Builder:
    """Collects streams, operations and cycles by (layer, kind); `repeat` folds equal steps into one loop."""

    machine: Machine
    repeat: tuple[int, int] = (1, 0)
    _streams: dict[tuple[str, str], list[AccessStream]] = field(default_factory=dict)
    _operations: dict[tuple[str, str], dict[tuple[str, str], int]] = field(default_factory=dict)
    _timing: list[PhaseTiming] = field(default_factory=list)
    _policies: dict[tuple[str, str, str], Policy] = field(default_factory=dict)
    _kinds: dict[str, list[str]] = field(default_factory=dict)

    def _phase(self, phase: tuple[str, str]) -> list[AccessStream]:
        """Streams of a (layer, kind)."""
        if phase not in self._streams:
            self._streams[phase] = []
            self._kinds.setdefault(phase[0], []).append(phase[1])
        return self._streams[phase]

    def access(
        self,
        phase: tuple[str, str],
        components: Iterable[str],
        op: str,
        size: int,
        address: int,
        cycle: int,
        loops: Sequence[Loop] = (),
        advance: int = 0,
    ) -> None:
        """One stream for each component; `advance` moves the address from one repetition to the next."""
        names = list(components)
        for count, _, _ in loops:
            if count == 0:
                return
        if not names:
            return
        nest = tuple(loops)
        if self.repeat[0] != 1:
            nest = ((self.repeat[0], advance, self.repeat[1]), *nest)
        stream = AccessStream(names[0], op, size, address, cycle, nest)
        streams = self._phase(phase)
        streams.append(stream)
        streams += map(stream.at, names[1:])

    def operations(
        self, phase: tuple[str, str], unit: str, fmt: str, counts: dict[str, int]
    ) -> None:
        """Count operations of a unit in a format, once for each repetition."""
        known = self._operations.setdefault(phase, {})
        self._phase(phase)
        for name, count in counts.items():
            key = (name if self.machine.one_format else f"{name}.{fmt}", unit)
            known[key] = known.get(key, 0) + count * self.repeat[0]

    def time(self, layer: str, phase: str, busy: int = 0, **stalls: int) -> None:
        """Cycles of a phase: those of busy DPUs, the others by their cause."""
        times = self.repeat[0]
        own = tuple((c, stalls[c] * times) for c in CAUSES if stalls.get(c))
        self._timing.append(PhaseTiming(layer, phase, busy * times, own))

    def policy(self, layer: str, what: str, policy: str, detail: str) -> None:
        """Say what is done where something does not fit; the same again says nothing more."""
        self._policies[layer, what, policy] = Policy(layer, what, policy, detail)

    def schedule(self, cycles: int, dram_end: int) -> Schedule:
        """All that was collected."""
        return Schedule(
            self.phases(), cycles, self.machine.components(), dram_end, total(self._timing),
            tuple(self._policies.values()),
        )  # fmt: skip

    def bursts(
        self, phase: tuple[str, str], op: str, address: int, cycle: int, size: int,
        outer: Sequence[Loop] = (), advance: int = 0,
    ) -> None:  # fmt: skip
        """DRAM bursts of `size` bytes, one a cycle."""
        m = self.machine
        loops = [*outer, (m.bursts(size), m.burst, 1)]
        self.access(phase, ["dram"], op, m.burst, address, cycle, loops, advance)

    def at_burst_pace(
        self, phase: tuple[str, str], components: Iterable[str], op: str, sub: int, count: int,
        address: int, cycle: int, outer: Sequence[Loop] = (), advance: int = 0,
    ) -> None:  # fmt: skip
        """Sub-vector s < count at cycle + floor(s sub / burst), as bursts deliver or take them."""
        components = list(components)
        burst = self.machine.burst
        if sub >= burst:
            loops = [*outer, (count, sub, sub // burst)]
            self.access(phase, components, op, sub, address, cycle, loops, advance)
            return
        group = burst // sub
        whole, rest = divmod(count, group)
        loops = [*outer, (whole, burst, 1), (group, sub, 0)]
        self.access(phase, components, op, sub, address, cycle, loops, advance)
        loops = [*outer, (rest, sub, 0)]
        self.access(
            phase, components, op, sub, address + whole * burst, cycle + whole, loops, advance
        )

    def again(self, model: str, layer: str, cycles: int, regions: list[Region]) -> None:
        """All that was collected of pass `model`, once more as pass `layer`, so many cycles later.

        Streams that begin in one of the `regions` move with it.
        """
        for kind in self._kinds[model]:
            streams = self._phase((layer, kind))
            streams += nests.moved(self._streams[model, kind], regions, cycles)
            if (model, kind) in self._operations:
                self._operations[layer, kind] = dict(self._operations[model, kind])
        self._timing += [replace(row, layer=layer) for row in self._timing if row.layer == model]
        for row in [row for row in self._policies.values() if row.layer == model]:
            self.policy(layer, row.what, row.policy, row.detail)

    def phases(self) -> tuple[Phase, ...]:
        """The phases in the order in which they were begun."""
        return tuple(
            Phase(
                layer,
                kind,
                tuple(streams),
                tuple(
                    (name, unit, count)
                    for (name, unit), count in self._operations.get((layer, kind), {}).items()
                    if count
                ),
            )
            for (layer, kind), streams in self._streams.items()
        )


def cus(buffer: str, gates: Iterable[str] = GATES) -> list[str]:
    """Component names of one buffer in several computation units."""
    return [f"cu.{q}.{buffer}" for q in gates]


def cell_holders(shape: LayerShape) -> list[str]:
    """Gates whose input buffer keeps the cell state."""
    return ["i", "f", "g"] if shape.peepholes else ["g"]


def load_parameters(
    b: Builder, shape: LayerShape, dram: int, cycle: int, offsets: dict[str, int]
) -> int:
    """Fetch biases and peepholes to these places of the parameter banks; returns the bursts moved."""
    m, own = b.machine, b.machine.of(shape)
    fetches = [(q, 0) for q in GATES]
    if shape.peepholes:
        fetches += [(q, 1) for q in PEEPHOLE_GATES]
    moved = 0
    phase = (shape.name, "load")
    for q, place in fetches:
        sub, size = own.sb[q], own.nh * own.sb[q]
        at = m.accelerator.weight_buffer_bytes + offsets[q] + place * size
        b.bursts(phase, "read", dram + moved * m.burst, cycle + moved, size)
        b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", sub, own.nh, at, cycle + moved)
        moved += m.bursts(size)
    return moved


def load_state(
    b: Builder, shape: LayerShape, given: Given, bursts: int, h_address: int, c_address: int
) -> int:
    """Initial h and c into the input buffers, behind `bursts` already on the channel; returns C1."""
    m, sizes = b.machine, b.machine.of(shape)
    nh, sc = sizes.nh, sizes.sc
    phase, holders = (shape.name, "load"), cus("inputs", cell_holders(shape))
    own = 0
    parts = ((cus("inputs"), m.sx, m.sy, h_address), (holders, sc, sc, c_address))
    if given.initial == "dram":
        dram = given.state_address
        for where, sub, _, address in parts:
            b.bursts(phase, "read", dram, given.cycle + bursts, nh * sub)
            b.at_burst_pace(phase, where, "write", sub, nh, address, given.cycle + bursts)
            bursts += m.bursts(nh * sub)
            dram += m.bursts(nh * sub) * m.burst
    else:
        stored = given.initial == "intermediate"
        state = given.state_address
        for where, sub, kept, address in parts:
            begin = given.cycle + (own if stored else 0)
            if stored:
                b.access(phase, ["intermediate"], "read", kept, state, begin, [(nh, kept, 1)])
                state += nh * kept
            b.access(phase, where, "write", sub, address, begin, [(nh, sub, 1)])
            own = own + nh if stored else nh
    return given.cycle + max(m.channel(bursts), own)


def store(
    b: Builder, layer: str, address: int, dram: int, size: int, cycle: int, advance: int = 0
) -> int:
    """Copy `size` bytes from the intermediate memory to DRAM; returns the cycle after."""
    m = b.machine
    phase = (layer, "store")
    b.at_burst_pace(phase, ["intermediate"], "read", m.sy, size // m.sy, address, cycle)
    b.bursts(phase, "write", dram, cycle, size, advance=advance)
    wait = m.channel(m.bursts(size))
    b.time(layer, "store", outputs=wait)
    return cycle + wait


#: Turns of a loop over rows: (count, rows of the DRAM, slots of the buffer, cycles) from one to the next.
Turns = Sequence[tuple[int, int, int, int]]


def fetch_rows(
    b: Builder, shape: LayerShape, subs: int, turns: Turns, dram: int, cycle: int,
    place: dict[str, int], outer: Sequence[Loop] = (),
) -> None:  # fmt: skip
    """Fetch rows of `subs` sub-vectors to the weight buffers, gate by gate.

    Parameters
    ----------
    dram, cycle : int
        Of the first row.
    place : dict of str to int
        By gate, the slot of the first row.
    outer : sequence of Loop
        Loops that repeat all of it from the same DRAM addresses.
    """
    m, own, moved = b.machine, b.machine.of(shape), 0
    every = sum(m.bursts(subs * sub) for sub in own.sw.values()) * m.burst
    for q, sub in own.sw.items():
        at, phase = cycle + moved, (shape.name, "load")
        loops = [*outer, *((n, rows * every, wait) for n, rows, _, wait in turns)]
        b.bursts(phase, "read", dram + moved * m.burst, at, subs * sub, loops)
        loops = [*outer, *((n, slots * subs * sub, wait) for n, _, slots, wait in turns)]
        b.at_burst_pace(phase, [f"cu.{q}.weights"], "write", sub, subs, place[q], at, loops)
        moved += m.bursts(subs * sub)
