"""``energy(trace, table)``: closed form over streams and operations; nothing is expanded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow.operations import UnitFormats
from epur_emu.energy.dram import Dram
from epur_emu.energy.events import Tally
from epur_emu.energy.report import Cost, PhaseCost, Report, group
from epur_emu.energy.sram import Memory
from epur_emu.energy.table import EnergyTable
from epur_emu.errors import AcceleratorError, FormatError, TableError, TraceError
from epur_emu.streams import LIMIT, OPS, UNITS, AccessStream, Component, Loop, Phase
from epur_emu.trace import Trace

#: Kinds whose untouched banks are power-gated.
GATED = ("weights", "intermediate")

#: 1 mW over 1 s.
PJ_PER_MW_SECOND = 1e9


def energy(trace: Trace, table: EnergyTable) -> Report:
    """What a trace costs.

    An access of b bytes through a port of w bits costs ``ceil(8 b / w)`` accesses of the table. A
    byte of DRAM traffic costs its bits and its share of one page's activation. An operation costs
    that of its format and a pipeline register of its bits for each cycle of its latency; the DPUs'
    multiplications have registers for their two operands too. Leakage runs for all of the trace's
    cycles, but for the banks that the run never touches if the table gates them.

    Parameters
    ----------
    trace : Trace
        Its meta data hold the accelerator and the arithmetic (as their `to_dict`).
    table : EnergyTable

    Raises
    ------
    TableError
        The table lacks a memory or an operation that the trace has.
    TraceError
        The trace lacks, or has damaged, the accelerator or the arithmetic.
    """
    return Priced(trace, table).report()


class Priced:
    """A trace with the cost of each of its parts.

    Parameters
    ----------
    trace : Trace
    table : EnergyTable

    Raises
    ------
    TableError, TraceError
        See `energy`.
    """

    def __init__(self, trace: Trace, table: EnergyTable) -> None:
        self.trace, self.table = trace, table
        self.accelerator, self.arithmetic = _made_by(trace)
        dram = table.dram_of(getattr(self.accelerator, "dram_type", None))
        self.places = [_place(c, self.accelerator, table, dram) for c in trace.components]
        by_name = {place.name: place for place in self.places}
        self.units = {unit: _Unit() for unit in UNITS}
        self.pricing = _Pricing(table, self.arithmetic, self.accelerator)
        #: By phase, energy (pJ) of each stream and of each unit's operations.
        self.streams: list[list[float]] = []
        self.operations: list[dict[str, float]] = []
        for phase in trace.phases:
            self.streams.append([by_name[s.component].stream(s) for s in phase.streams])
            parts: dict[str, list[float]] = {}
            for unit, n, pj in self.pricing.phase(phase):
                parts.setdefault(unit, []).append(self.units[unit].add(n, pj))
            self.operations.append({unit: fsum(pj) for unit, pj in parts.items()})
        #: By component, energy (pJ) of accesses in no stream; their first and last cycle.
        self.events = {place.name: 0.0 for place in self.places}
        self.event_cycles: tuple[int, int] | None = None
        for place in self.places:
            tally = Tally()
            for runs in trace.runs(place.name):
                tally.add(runs, place.edges)
            if tally.last < 0:
                continue
            self.events[place.name] = place.events(tally)
            first, last = self.event_cycles or (tally.first, tally.last)
            self.event_cycles = (min(first, tally.first), max(last, tally.last))

    def report(self) -> Report:
        """The sums."""
        trace, table, phases = self.trace, self.table, []
        for phase, parts, units in zip(trace.phases, self.streams, self.operations, strict=True):
            by: dict[str, list[float]] = {}
            for stream, pj in zip(phase.streams, parts, strict=True):
                by.setdefault(group(stream.component), []).append(pj)
            sums = {name: fsum(pj) for name, pj in by.items()} | units
            work = sum(n for name, unit, n in phase.operations if _is_product(name, unit))
            phases.append(
                PhaseCost(
                    phase.layer, phase.kind, phase.first_cycle, phase.cycles,
                    fsum(sums.values()), sums, work,
                )
            )  # fmt: skip
        if self.event_cycles:
            first, last = self.event_cycles
            loose: dict[str, list[float]] = {}
            for name, pj in self.events.items():
                loose.setdefault(group(name), []).append(pj)
            sums = {name: fsum(pj) for name, pj in loose.items()}
            phases.append(
                PhaseCost("", "events", first, last + 1 - first, fsum(sums.values()), sums, 0)
            )

        seconds = self.accelerator.seconds(trace.cycles)
        costs = {place.name: place.cost(seconds) for place in self.places}
        logic = table.logic
        leakage = logic.leakage_mw[table.cell].value * PJ_PER_MW_SECOND * seconds
        shares = {"dpu": logic.dpu_share.value, "mu": 1 - logic.dpu_share.value, "link": 0.0}
        for name, unit in self.units.items():
            costs[name] = Cost(fsum(unit.parts), leakage * shares[name], unit.count)
        chip = [place for place in self.places if isinstance(place, _Chip)]
        area = [memory.area_mm2.value for place in chip for _, memory in place.memories]
        return Report(
            table=f"{table.name}:{table.cell}:{table.ports}",
            seconds=seconds,
            cycles=trace.cycles,
            steps=_steps(trace),
            peak_mw=_peak_mw(chip, table, self.pricing, trace, self.accelerator),
            area_mm2=fsum([*area, logic.area_mm2.value]),
            by_component=costs,
            by_phase=tuple(phases),
            wider=self.pricing.wider,
            warnings=_too_slow(chip, self.accelerator),
        )


def _is_product(name: str, unit: str) -> bool:
    return unit == "dpu" and name.partition(".")[0] == "multiply"


def _steps(trace: Trace) -> int:
    """Time steps of all networks, 0 if the trace does not say."""
    networks = trace.meta.get("networks")
    if not isinstance(networks, list):
        return 0
    steps = [n.get("steps") for n in networks if isinstance(n, dict)]
    return sum(t for t in steps if isinstance(t, int) and not isinstance(t, bool) and t > 0)


def _too_slow(chip: list[_Chip], accelerator: Accelerator) -> tuple[str, ...]:
    """Memories whose cycle is longer than the clock's, once each."""
    period, found = 1e9 / accelerator.clock_hz, {}
    for place in chip:
        for _, m in place.memories:
            if m.cycle_ns.value > period:
                found[m.kind, m.capacity_bytes] = (
                    f"{m.kind} ({m.capacity_bytes} bytes, {m.banks} banks, {m.cell}, {m.ports}): its "
                    f"cycle of {m.cycle_ns.value:.2f} ns is longer than the clock's {period:.2f} ns; "
                    "use more banks or faster cells"
                )
    return tuple(found.values())


def _made_by(trace: Trace) -> tuple[Accelerator, Arithmetic]:
    for name in ("accelerator", "arithmetic"):
        if not isinstance(trace.meta.get(name), dict):
            raise TraceError("trace", f"meta, {name}", "is missing", "make the trace anew")
    try:
        return (
            Accelerator.from_dict(trace.meta["accelerator"]),
            Arithmetic.from_dict(trace.meta["arithmetic"]),
        )
    except (AcceleratorError, FormatError) as error:
        field = f"meta, {error.source} {error.field}"
        raise TraceError("trace", field, error.problem, "make the trace anew") from error


def _below(address: int, loops: Sequence[Loop], limit: int) -> int:
    """How many addresses of a loop nest are less than `limit`."""
    times, nest = 1, []
    for count, stride, _ in loops:
        if stride == 0:
            times *= count
            continue
        address += min(0, (count - 1) * stride)
        nest.append((abs(stride), count))
    return times * _count(address, sorted(nest, reverse=True), limit)


def _count(address: int, nest: list[tuple[int, int]], limit: int) -> int:
    """`_below` for (stride, count), strides positive and falling."""
    if not nest:
        return int(address < limit)
    (stride, count), inner = nest[0], nest[1:]
    reach = sum(s * (n - 1) for s, n in inner)
    # Turns wholly below, and the first turn wholly above; only those between need a look inside.
    whole = min(count, max(0, -(-(limit - address - reach) // stride)))
    above = min(count, max(0, -(-(limit - address) // stride)))
    turn = 1
    for _, n in inner:
        turn *= n
    return whole * turn + sum(
        _count(address + d * stride, inner, limit) for d in range(whole, above)
    )


@dataclass
class _Unit:
    """Operations of the DPUs, of the MUs or of the links, so far."""

    parts: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, count: int, pj: float) -> float:
        self.parts.append(count * pj)
        self.count += count
        return count * pj


@dataclass
class _Chip:
    """An on-chip component: memories from these addresses on, lowest first."""

    name: str
    memories: tuple[tuple[int, Memory], ...]
    gate: bool
    parts: list[float] = field(default_factory=list)
    accesses: int = 0
    touched: set[tuple[int, int]] = field(default_factory=set)

    def _regions(self) -> list[tuple[int, int, int, Memory]]:
        ends = [start for start, _ in self.memories[1:]] + [LIMIT + 1]
        return [
            (index, start, end, memory)
            for index, ((start, memory), end) in enumerate(zip(self.memories, ends, strict=True))
        ]

    def stream(self, stream: AccessStream) -> float:
        parts, done = [], 0
        for index, start, end, memory in self._regions():
            upto = stream.accesses
            if stream.end_address > end:
                upto = _below(stream.address, stream.loops, end)
            if upto > done:
                parts.append(self._access(memory, stream.op, stream.bytes, upto - done))
                low, high = max(stream.lowest_address, start), min(stream.end_address, end)
                self._touch(index, memory, low - start, high - start)
            done = upto
        return fsum(parts)

    @property
    def edges(self) -> tuple[tuple[int, int, int], ...]:
        """First address, bytes of a bank and last bank of each memory."""
        return tuple(
            (start, memory.capacity_bytes // memory.banks or 1, memory.banks - 1)
            for start, memory in self.memories
        )

    def events(self, tally: Tally) -> float:
        parts = [
            self._access(self.memories[index][1], OPS[op], size, n)
            for (index, op, size), n in sorted(tally.accesses.items())
        ]
        for index, low, high in tally.banks:
            self.touched.update((index, number) for number in range(low, high + 1))
        return fsum(parts)

    def _access(self, memory: Memory, op: str, size: int, count: int) -> float:
        count *= -(-8 * size // memory.width_bits)
        pj = count * (memory.read_pj if op == "read" else memory.write_pj).value
        self.accesses += count
        self.parts.append(pj)
        return pj

    def _touch(self, index: int, memory: Memory, low: int, high: int) -> None:
        """Banks are taken as equal contiguous ranges of addresses."""
        bank = memory.capacity_bytes // memory.banks or 1
        last = min((high - 1) // bank, memory.banks - 1)
        self.touched.update((index, number) for number in range(low // bank, last + 1))

    def cost(self, seconds: float) -> Cost:
        powers = []
        for index, (_, memory) in enumerate(self.memories):
            used = memory.banks
            if self.gate and memory.kind in GATED:
                used = sum(number == index for number, _ in self.touched)
            powers.append(memory.leakage_mw.value * used / memory.banks)
        static = fsum(powers) * PJ_PER_MW_SECOND * seconds
        return Cost(fsum(self.parts), static, self.accesses)


@dataclass
class _Dram:
    """The DRAM: energy by the byte, background power by time."""

    name: str
    dram: Dram
    idle: str
    bandwidth: int
    parts: list[float] = field(default_factory=list)
    accesses: int = 0
    bytes: int = 0

    def stream(self, stream: AccessStream) -> float:
        return self._access(stream.op, stream.accesses, stream.total_bytes)

    #: One memory, whose banks don't matter.
    edges = ((0, LIMIT, 0),)

    def events(self, tally: Tally) -> float:
        found = sorted(tally.accesses.items())
        return fsum([self._access(OPS[op], n, n * size) for (_, op, size), n in found])

    def _access(self, op: str, count: int, size: int) -> float:
        pj = size * self.dram.pj_per_byte(op)
        self.accesses += count
        self.bytes += size
        self.parts.append(pj)
        return pj

    def cost(self, seconds: float) -> Cost:
        awake = min(seconds, self.bytes / self.bandwidth)
        energy = self.dram.background_mw("standby") * awake
        energy += self.dram.background_mw(self.idle) * (seconds - awake)
        return Cost(fsum(self.parts), energy * PJ_PER_MW_SECOND, self.accesses)


def _place(
    component: Component, accelerator: Accelerator, table: EnergyTable, dram: Dram
) -> _Chip | _Dram:
    kind = component.name.rpartition(".")[2]
    width, banks = component.width_bits, component.banks
    if kind == "dram":
        return _Dram(component.name, dram, table.dram_idle, accelerator.dram_bandwidth)
    if kind not in ("weights", "inputs", "row", "intermediate") or component.capacity is None:
        raise TableError(
            table.name, f"component {component.name!r}", "is no memory that a table can hold",
            "name it cu.q.weights, cu.q.inputs, cu.q.row, intermediate or dram, with a capacity",
        )  # fmt: skip
    own = component.capacity
    if kind == "weights":
        # The parameter bank begins where the weight buffer ends.
        own = min(own, accelerator.weight_buffer_bytes)
    memories = [(0, table.memory(kind, own, width, banks))]
    if rest := component.capacity - own:
        memories.append((own, table.memory("parameters", rest, width, 1)))
    return _Chip(component.name, tuple(memories), table.gate_banks)


@dataclass
class _Pricing:
    """Prices of operations, and which were priced in a wider format than their own."""

    table: EnergyTable
    arithmetic: Arithmetic
    accelerator: Accelerator
    wider: dict[str, str] = field(default_factory=dict)

    def pj(self, name: str, fmt: str, operands: int = 0) -> float:
        """One operation with its pipeline registers, and those of so many operands."""
        priced = self.table.operation(name, fmt).format
        if priced != fmt:
            self.wider[f"{name}.{fmt}"] = priced
        stages = getattr(self.accelerator, f"{name}_cycles", 0) + operands
        return self.table.operation_pj(name, fmt) + self.table.registers_pj(fmt, stages)

    def phase(self, phase: Phase) -> list[tuple[str, int, float]]:
        """(unit, count, pJ each) of each operation.

        A name without a format is in the arithmetic's own; a DPU's additions are then at the mean
        price of tree and accumulator.
        """
        counts = {(name, unit): n for name, unit, n in phase.operations}
        products, sums = (counts.get((name, "dpu"), 0) for name in ("multiply", "add"))
        # W products make W - 1 sums in the tree; what is over is the accumulator's.
        width = self.accelerator.width
        tree = min(1.0, products * (width - 1) / width / sums) if sums else 0.0
        own, out = UnitFormats.of(self.arithmetic), []
        for full, unit, count in phase.operations:
            name, _, fmt = full.partition(".")
            operands = 2 * _is_product(name, unit)
            if fmt:
                pj = self.pj(name, fmt, operands)
            elif (name, unit) == ("add", "dpu"):
                pj = tree * self.pj(name, own.tree) + (1 - tree) * self.pj(name, own.accumulator)
            else:
                pj = self.pj(name, own.multiply if unit == "dpu" else own.mu, operands)
            out.append((unit, count, pj))
        return out

    def peak(self, layer: str, gate: str) -> float:
        """All that one gate's computation unit can do in a cycle of a layer, in pJ."""
        own = UnitFormats.of(self.arithmetic.at(layer, gate))
        width = self.accelerator.width
        dpu = width * self.pj("multiply", own.multiply, 2) + self.pj("add", own.accumulator)
        dpu += (width - 1) * self.pj("add", own.tree)
        kinds = ("multiply", "add", "exp", "divide", "compare", "link")
        return dpu + fsum(self.pj(name, own.mu) for name in kinds)


def _peak_mw(
    chip: list[_Chip], table: EnergyTable, pricing: _Pricing, trace: Trace, accelerator: Accelerator
) -> float:
    """See `Report.peak_mw`."""
    gates = [place.name.split(".")[1] for place in chip if place.name.endswith(".weights")]
    layers = {phase.layer for phase in trace.phases} or {""}
    cycle = [max(pricing.peak(layer, gate) for layer in layers) for gate in gates]
    leakage = [table.logic.leakage_mw[table.cell].value]
    for place in chip:
        for _, memory in place.memories:
            cycle.append(max(memory.read_pj.value, memory.write_pj.value))
            leakage.append(memory.leakage_mw.value)
    return fsum(cycle) * 1e-9 * accelerator.clock_hz + fsum(leakage)
