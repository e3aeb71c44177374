"""Sizes, addresses and the stream builder that all dataflows share; ``docs/dataflow.md`` defines them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.errors import AcceleratorError
from epur_emu.formats import LinearFormat
from epur_emu.network import GATES, LayerShape
from epur_emu.streams import AccessStream, Component, Loop, Phase

Shape = tuple[tuple[LayerShape, ...], ...]

#: CUs whose gates have peephole weights.
PEEPHOLE_GATES = ("i", "f", "o")


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
    """

    phases: tuple[Phase, ...]
    cycles: int
    components: tuple[Component, ...]
    dram_end: int


@dataclass(frozen=True)
class Machine:
    """An accelerator holding an arithmetic's formats: the symbols of ``docs/dataflow.md``."""

    accelerator: Accelerator
    arithmetic: Arithmetic

    @property
    def we(self) -> int:
        """Bytes of a weight."""
        return self.arithmetic.weight.bytes

    @property
    def xe(self) -> int:
        """Bytes of an element of x or h."""
        return self.arithmetic.input.bytes

    @property
    def ce(self) -> int:
        """Bytes of an element of c."""
        return self.arithmetic.cell.bytes

    @property
    def pe(self) -> int:
        """Bytes of a stored partial sum."""
        return self.arithmetic.partial.bytes

    @property
    def sw(self) -> int:
        """Bytes of a sub-vector of weights."""
        return self.accelerator.width * self.we

    @property
    def sx(self) -> int:
        """Bytes of a sub-vector of x or h."""
        return self.accelerator.width * self.xe

    @property
    def sc(self) -> int:
        """Bytes of a sub-vector of c."""
        return self.accelerator.width * self.ce

    @property
    def burst(self) -> int:
        """Bytes of a DRAM burst."""
        return self.accelerator.dram_burst_bytes

    @property
    def half(self) -> int:
        """Bytes of a half of the intermediate memory."""
        return self.accelerator.intermediate_bytes // 2

    @property
    def quantise(self) -> int:
        """Cycles to quantise a partial sum; 0 where it is kept."""
        kept = not isinstance(self.arithmetic.partial, LinearFormat)
        return 0 if kept else self.accelerator.quantise_cycles

    @property
    def lookup(self) -> int:
        """Cycles to look a quantised partial sum up; 0 where it is kept."""
        kept = not isinstance(self.arithmetic.partial, LinearFormat)
        return 0 if kept else self.accelerator.lookup_cycles

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
        return self.subs(sum(p.cells for p in layer)) * self.sx

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
    source : {"dram", "intermediate"}
    source_address, out_address : int
        Row 0 of the input; the pass's own cells in row 0 of the output, in the intermediate memory.
    half_address : int
        Row 0 of the output with all passes' cells.
    pitch : int
        Bytes from an output row to the next.
    initial : {"zero", "dram", "intermediate"}
    state_address : int
        Where a given initial state lies.
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


@dataclass
class Builder:
    """Collects streams and operations by (layer, kind); `repeat` folds equal steps into one loop."""

    machine: Machine
    repeat: tuple[int, int] = (1, 0)
    _streams: dict[tuple[str, str], list[AccessStream]] = field(default_factory=dict)
    _operations: dict[tuple[str, str], dict[tuple[str, str], int]] = field(default_factory=dict)

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
        if any(count == 0 for count, _, _ in loops):
            return
        nest = ((self.repeat[0], advance, self.repeat[1]), *loops)
        for component in components:
            stream = AccessStream(component, op, size, address, cycle, nest)
            self._streams.setdefault(phase, []).append(stream)

    def operations(self, phase: tuple[str, str], unit: str, counts: dict[str, int]) -> None:
        """Count operations of a unit, once for each repetition."""
        known = self._operations.setdefault(phase, {})
        self._streams.setdefault(phase, [])
        for name, count in counts.items():
            known[name, unit] = known.get((name, unit), 0) + count * self.repeat[0]

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


def load_parameters(b: Builder, shape: LayerShape, dram: int, cycle: int, offset: int = 0) -> int:
    """Fetch biases and peepholes to the parameter banks; returns the bursts moved."""
    m = b.machine
    size = m.subs(shape.cells) * m.sw
    bank = m.accelerator.weight_buffer_bytes + offset
    fetches = [(q, 0) for q in GATES]
    if shape.peepholes:
        fetches += [(q, size) for q in PEEPHOLE_GATES]
    moved = 0
    phase = (shape.name, "load")
    for q, at in fetches:
        b.bursts(phase, "read", dram + moved * m.burst, cycle + moved, size)
        b.at_burst_pace(
            phase, [f"cu.{q}.weights"], "write", m.sw, m.subs(shape.cells), bank + at, cycle + moved
        )
        moved += m.bursts(size)
    return moved


def load_state(
    b: Builder, shape: LayerShape, given: Given, bursts: int, h_address: int, c_address: int
) -> int:
    """Initial h and c into the input buffers, behind `bursts` already on the channel; returns C1."""
    m = b.machine
    nh = m.subs(shape.cells)
    phase, holders = (shape.name, "load"), cus("inputs", cell_holders(shape))
    own = 0
    if given.initial == "dram":
        dram = given.state_address
        for where, sub, address in ((cus("inputs"), m.sx, h_address), (holders, m.sc, c_address)):
            b.bursts(phase, "read", dram, given.cycle + bursts, nh * sub)
            b.at_burst_pace(phase, where, "write", sub, nh, address, given.cycle + bursts)
            bursts += m.bursts(nh * sub)
            dram += m.bursts(nh * sub) * m.burst
    else:
        stored = given.initial == "intermediate"
        state = given.state_address
        for where, sub, address in ((cus("inputs"), m.sx, h_address), (holders, m.sc, c_address)):
            begin = given.cycle + (own if stored else 0)
            loops = [(nh, sub, 1)]
            if stored:
                b.access(phase, ["intermediate"], "read", sub, state, begin, loops)
                state += nh * sub
            b.access(phase, where, "write", sub, address, begin, loops)
            own = own + nh if stored else nh
    return given.cycle + max(m.channel(bursts), own)


def store(
    b: Builder, layer: str, address: int, dram: int, size: int, cycle: int, advance: int = 0
) -> int:
    """Copy `size` bytes from the intermediate memory to DRAM; returns the cycle after."""
    m = b.machine
    phase = (layer, "store")
    b.at_burst_pace(phase, ["intermediate"], "read", m.sx, size // m.sx, address, cycle)
    b.bursts(phase, "write", dram, cycle, size, advance=advance)
    return cycle + m.channel(m.bursts(size))
