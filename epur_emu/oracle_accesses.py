"""The hardware model's definition in plain Python: one access at a time.

Every schedule is tested against this module: its loops over time, neuron and sub-vector are written
from ``docs/dataflow.md`` and share nothing with them. It is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.errors import AcceleratorError, NetworkError
from epur_emu.formats import FixedFormat, FloatFormat, LinearFormat
from epur_emu.network import GATES, LayerShape

Shape = Sequence[Sequence[LayerShape]]

#: Cycle, component, "read" or "write", address, bytes.
Access = tuple[int, str, str, int, int]

DATAFLOWS = ("epur", "epur-mwl", "epur-batch", "epur-tiled")
OPERATIONS = ("multiply", "add", "exp", "divide", "compare", "link", "quantise", "lookup")


class _Machine:
    """Sizes and latencies under the hardware model's names, and the log being written."""

    def __init__(self, arithmetic: Arithmetic, accelerator: Accelerator, shape: Shape) -> None:
        self.accelerator = accelerator
        self.arithmetic = arithmetic
        self.width = accelerator.width
        passes = [one for layer in shape for one in layer]
        self.xe = max(arithmetic.at(one.name, q).input.bytes for one in passes for q in GATES)
        self.ye = max(arithmetic.at(one.name, "o").output.bytes for one in passes)
        self.sx = self.width * self.xe
        self.sy = self.width * self.ye
        self.burst = accelerator.dram_burst_bytes
        self.half = accelerator.intermediate_bytes // 2
        self.capacity = accelerator.weight_buffer_bytes
        self.add = accelerator.add_cycles
        self.link = accelerator.link_cycles
        levels = 0
        while 2**levels < self.width:
            levels += 1
        self.dpu = accelerator.multiply_cycles + levels * self.add + self.add
        self.log: list[Access] = []

    def of_pass(self, shape: LayerShape, rows: int, bias: int) -> _Pass:
        """A pass whose weight rows and biases begin at these addresses of the DRAM."""
        own = {q: self.arithmetic.at(shape.name, q) for q in GATES}
        quantised = any(isinstance(a.partial, LinearFormat) for a in own.values())
        be = {}
        for q, a in own.items():
            plain = isinstance(a.weight, FloatFormat | FixedFormat)
            be[q] = a.weight.bytes if plain else a.mu.bytes
        return _Pass(
            shape,
            self.vectors(shape.inputs),
            self.vectors(shape.cells),
            {q: a.weight.bytes for q, a in own.items()},
            {q: self.width * a.weight.bytes for q, a in own.items()},
            be,
            {q: self.width * size for q, size in be.items()},
            {q: a.partial.bytes for q, a in own.items()},
            {q: a.accumulator.bytes for q, a in own.items()},
            own["g"].cell.bytes,
            self.width * own["g"].cell.bytes,
            self.accelerator.quantise_cycles if quantised else 0,
            self.accelerator.lookup_cycles if quantised else 0,
            rows,
            bias,
        )

    def vectors(self, elements: int) -> int:
        """Sub-vectors of so many elements."""
        return math.ceil(Fraction(elements, self.width))

    def bursts(self, size: int) -> int:
        """Bursts of so many bytes."""
        return math.ceil(Fraction(size, self.burst))

    def burst_bytes(self, size: int) -> int:
        """Bytes of the bursts of so many bytes."""
        return self.bursts(size) * self.burst

    def channel(self, bursts: int) -> int:
        """Cycles in which the DRAM channel moves so many bursts."""
        per_cycle = Fraction(self.accelerator.dram_bandwidth, self.accelerator.clock_hz)
        return math.ceil(bursts * self.burst / per_cycle)

    def read(self, cycle: int, component: str, address: int, size: int) -> None:
        self.log.append((cycle, component, "read", address, size))

    def write(self, cycle: int, component: str, address: int, size: int) -> None:
        self.log.append((cycle, component, "write", address, size))

    def fetch(
        self, cycle: int, source: int, total: int, targets: Sequence[str], address: int, size: int
    ) -> int:
        """Copy `total` bytes from DRAM to each target in units of `size`; gives the bursts."""
        for j in range(self.bursts(total)):
            self.read(cycle + j, "dram", source + j * self.burst, self.burst)
        for s in range(total // size):
            for target in targets:
                self.write(cycle + s * size // self.burst, target, address + s * size, size)
        return self.bursts(total)

    def store(self, cycle: int, source: int, total: int, target: int) -> int:
        """Copy `total` bytes from the intermediate memory to DRAM; gives the cycle of the end."""
        for s in range(total // self.sy):
            self.read(
                cycle + s * self.sy // self.burst, "intermediate", source + s * self.sy, self.sy
            )
        for j in range(self.bursts(total)):
            self.write(cycle + j, "dram", target + j * self.burst, self.burst)
        return cycle + self.channel(self.bursts(total))

    def fits(self, name: str, field: str, need: int) -> None:
        """Refuse what a memory, a field of the accelerator, does not hold."""
        room = getattr(self.accelerator, field) // (2 if field == "intermediate_bytes" else 1)
        if need > room:
            raise AcceleratorError(
                self.accelerator.name, field, f"leaves {room} bytes where {name} needs {need}",
                f"give room for {need} bytes",
            )  # fmt: skip


def _buffers(kind: str, gates: Sequence[str] = GATES) -> list[str]:
    return [f"cu.{q}.{kind}" for q in gates]


@dataclass
class _Pass:
    """Where the data of one pass lies; addresses in bytes.

    Parameters
    ----------
    shape : LayerShape
    nx, nh : int
        Sub-vectors of x and of h.
    we, sw, be, sb, pe, ae : dict of str to int
        By gate: bytes of a weight and of a sub-vector of weights, of a bias or peephole weight and
        of a sub-vector of these, of a stored partial sum, of a stored accumulator.
    ce, sc : int
        Bytes of an element and of a sub-vector of c.
    quantise, lookup : int
        Latencies, 0 where no gate quantises partial sums.
    rows, bias, state : int
        In DRAM: weight rows, biases (peepholes behind them), initial state.
    x_from : {"dram", "intermediate", "spilled"}
    x, x_pitch, x_sub : int
        Input row of time step 0, the distance between rows, bytes of a sub-vector.
    x_parts : list of (int, int)
        Spilled: of each pass of the layer before, its rows in DRAM and its sub-vectors.
    spill : int, optional
        Where the output rows go in DRAM; `y` is then the first of two slots.
    y, y_pitch : int
        Element 0 of the output of time step 0 in the intermediate memory, distance between rows.
    initial : {"zero", "dram", "intermediate"}
        Where the initial state comes from.
    partials : int
        Stored partial sums (MWL).
    load : bool
        Whether the weights are not resident.
    free : int
        The cycle in which its rows have been fetched.
    order : {None, "mwl", "tiles"}
        E-PUR's order, or one that stores forward sums.
    first : int
        The true time step that is evaluated first.
    at_end : bool
        Whether the weights lie at the buffers' ends.
    weights, parameters : dict of str to int
        By gate: offsets in the weight buffer and in the parameter bank.
    state_on_chip : int, optional
        State in the intermediate memory (decoding).
    """

    shape: LayerShape
    nx: int
    nh: int
    we: dict[str, int]
    sw: dict[str, int]
    be: dict[str, int]
    sb: dict[str, int]
    pe: dict[str, int]
    ae: dict[str, int]
    ce: int
    sc: int
    quantise: int
    lookup: int
    rows: int
    bias: int
    state: int = 0
    x_from: str = "intermediate"
    x: int = 0
    x_pitch: int = 0
    x_sub: int = 0
    x_parts: list[tuple[int, int]] = field(default_factory=list)
    spill: int | None = None
    y: int = 0
    y_pitch: int = 0
    initial: str = "zero"
    partials: int = 0
    load: bool = True
    free: int = 0
    order: str | None = None
    first: int = 0
    at_end: bool = False
    weights: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GATES, 0))
    parameters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GATES, 0))
    state_on_chip: int | None = None

    @property
    def cells(self) -> int:
        return self.shape.cells

    @property
    def c_holders(self) -> list[str]:
        return _buffers("inputs", "gif" if self.shape.peepholes else "g")

    def times(self, steps: int) -> list[int]:
        """True time steps in order of evaluation."""
        return [steps - 1 - t if self.shape.reverse else t for t in range(steps)]


@dataclass(frozen=True)
class _Latencies:
    """Cycles of the MU after the DPU's sum: p, tm, tc and z of the hardware model."""

    p: int
    tm: int
    tc: int
    z: int


def _latencies(machine: _Machine, peepholes: bool) -> _Latencies:
    a = machine.accelerator
    add, mul, link = a.add_cycles, a.multiply_cycles, a.link_cycles
    tanh = a.compare_cycles + a.exp_cycles + 1 + add + 1 + a.divide_cycles
    sigmoid = a.compare_cycles + a.exp_cycles + add + a.divide_cycles
    p = mul + add if peepholes else 0
    tm = max(add + tanh, p + add + sigmoid + link)
    tc = tm + 1 + mul + add
    to = (max(add, tc + link + mul) if peepholes else 0) + add + sigmoid
    z = max(to, tc + tanh + link) + mul + link
    return _Latencies(p, tm, tc, z)


def _log_mu(
    machine: _Machine, p: _Pass, k: int, done: int, c_at: int, h_at: int | None, y_at: int
) -> int:
    """Accesses of neuron k in the MUs; gives the cycle in which h is written.

    Parameters
    ----------
    machine : _Machine
    p : _Pass
    k : int
        Neuron.
    done : int
        Cycle in which the DPU's sum is there.
    c_at, h_at : int
        Element k of c and of h in the input buffers; no h_at where h does not go there.
    y_at : int
        Element k of h in the intermediate memory.
    """
    after = _latencies(machine, p.shape.peepholes)
    bias = {q: machine.capacity + p.parameters[q] + k * p.be[q] for q in GATES}
    peephole = {q: bias[q] + p.nh * p.sb[q] for q in GATES}
    for q in "if":
        if p.shape.peepholes:
            machine.read(done, f"cu.{q}.weights", peephole[q], p.be[q])
            machine.read(done, f"cu.{q}.inputs", c_at, p.ce)
        machine.read(done + after.p, f"cu.{q}.weights", bias[q], p.be[q])

    machine.read(done, "cu.g.weights", bias["g"], p.be["g"])
    machine.read(done + after.tm + 1, "cu.g.inputs", c_at, p.ce)
    arrival = done + after.tc + machine.link
    for holder in p.c_holders:
        here = holder == "cu.g.inputs"
        machine.write(done + after.tc if here else arrival, holder, c_at, p.ce)
    if p.state_on_chip is not None:
        c_state = p.state_on_chip + p.nh * machine.sy + k * p.ce
        machine.write(arrival, "intermediate", c_state, p.ce)

    machine.read(done, "cu.o.weights", bias["o"], p.be["o"])
    if p.shape.peepholes:
        machine.read(arrival, "cu.o.weights", peephole["o"], p.be["o"])
    out = done + after.z
    if h_at is not None:
        for buffer in _buffers("inputs"):
            machine.write(out, buffer, h_at, machine.xe)
    machine.write(out, "intermediate", y_at, machine.ye)
    return out


def _log_parameters(machine: _Machine, p: _Pass, begin: int) -> int:
    """Accesses that bring biases and peepholes; gives the bursts on the channel."""
    bursts = 0
    if p.load:
        parts = [(q, 0) for q in GATES]
        if p.shape.peepholes:
            parts += [(q, 1) for q in "ifo"]
        for q, place in parts:
            size = p.nh * p.sb[q]
            address = machine.capacity + p.parameters[q] + place * size
            source = p.bias + bursts * machine.burst
            bursts += machine.fetch(
                begin + bursts, source, size, [f"cu.{q}.weights"], address, p.sb[q]
            )
    return bursts


def _log_state(machine: _Machine, p: _Pass, begin: int, bursts: int, h_at: int, c_at: int) -> int:
    """Accesses that bring the initial state, behind `bursts`; gives the cycle in which it is there."""
    cycles = 0
    size_h, size_c = p.nh * machine.sx, p.nh * p.sc
    if p.initial == "dram":
        bursts += machine.fetch(
            begin + bursts, p.state, size_h, _buffers("inputs"), h_at, machine.sx
        )
        source = p.state + machine.burst_bytes(size_h)
        bursts += machine.fetch(begin + bursts, source, size_c, p.c_holders, c_at, p.sc)
    elif p.initial == "zero":
        cycles = p.nh
        for s in range(p.nh):
            for buffer in _buffers("inputs"):
                machine.write(begin + s, buffer, h_at + s * machine.sx, machine.sx)
            for buffer in p.c_holders:
                machine.write(begin + s, buffer, c_at + s * p.sc, p.sc)
    else:
        assert p.state_on_chip is not None
        cycles = 2 * p.nh
        for s in range(p.nh):
            source = p.state_on_chip + s * machine.sy
            machine.read(begin + s, "intermediate", source, machine.sy)
            for buffer in _buffers("inputs"):
                machine.write(begin + s, buffer, h_at + s * machine.sx, machine.sx)
        for s in range(p.nh):
            source = p.state_on_chip + p.nh * machine.sy + s * p.sc
            machine.read(begin + p.nh + s, "intermediate", source, p.sc)
            for buffer in p.c_holders:
                machine.write(begin + p.nh + s, buffer, c_at + s * p.sc, p.sc)
    return begin + max(machine.channel(bursts), cycles)


def _log_row(
    machine: _Machine, p: _Pass, k: int, begin: int, source: int, subs: int, at: dict[str, int]
) -> None:
    """Accesses that fetch row k of `subs` sub-vectors, gate by gate; rows begin at DRAM `source`."""
    size = {q: subs * p.sw[q] for q in GATES}
    bursts = k * sum(machine.bursts(size[q]) for q in GATES)
    cycle = begin
    for q in GATES:
        where = [f"cu.{q}.weights"]
        moved = machine.fetch(
            cycle, source + bursts * machine.burst, size[q], where, at[q], p.sw[q]
        )
        cycle, bursts = cycle + moved, bursts + moved


def _row_bursts(machine: _Machine, p: _Pass, subs: int) -> int:
    return sum(machine.bursts(subs * p.sw[q]) for q in GATES)


def _log_prefetch(machine: _Machine, p: _Pass, begin: int) -> int:
    """Accesses that bring all weights of a pass before it begins; gives the cycle of the end."""
    n = p.nx + p.nh
    rows = begin + machine.channel(_log_parameters(machine, p, begin))
    each = machine.channel(_row_bursts(machine, p, n))
    for k in range(p.cells):
        at = {q: p.weights[q] + k * n * p.sw[q] for q in GATES}
        _log_row(machine, p, k, rows + k * each, p.rows, n, at)
    return rows + p.cells * each


def _log_epur(machine: _Machine, p: _Pass, steps: int, begin: int) -> int:
    """Accesses of a pass in E-PUR's order; gives the cycle in which it has ended."""
    n = p.nx + p.nh
    slots = p.nx * machine.sx, n * machine.sx
    c_at = (p.nx + 2 * p.nh) * machine.sx
    machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", c_at + p.nh * p.sc)

    loaded = _log_state(machine, p, begin, _log_parameters(machine, p, begin), slots[0], c_at)
    row = {q: n * p.sw[q] for q in GATES}
    pace, start = n, loaded
    if p.load:
        pace = max(n, machine.channel(_row_bursts(machine, p, n)))
        start = loaded + pace
        for k in range(p.cells):
            at = {q: p.weights[q] + k * row[q] for q in GATES}
            _log_row(machine, p, k, loaded + k * pace, p.rows, n, at)
    p.free = start - pace + p.cells * pace  # the channel, once all rows are here

    tail = max(0, machine.dpu + _latencies(machine, p.shape.peepholes).z - p.nx)
    last = 0
    for t, true_t in enumerate(p.times(steps)):
        if p.x_from == "dram":
            _log_input(machine, start, p.x + true_t * p.x_pitch, p.nx, machine.sx)
        if p.x_from == "spilled":
            before = 0
            for rows, subs in p.x_parts:
                source = rows + true_t * machine.burst_bytes(subs * machine.sy)
                _log_input(machine, start + before, source, subs, machine.sy)
                before += subs
        for s in range(p.nx):
            if p.x_from == "intermediate":
                source = p.x + true_t * p.x_pitch + s * p.x_sub
                machine.read(start + s, "intermediate", source, p.x_sub)
            for buffer in _buffers("inputs"):
                machine.write(start + s, buffer, s * machine.sx, machine.sx)
        y_row = p.y + true_t * p.y_pitch
        if p.spill is not None:
            y_row = p.y + t % 2 * p.nh * machine.sy
        for k in range(p.cells):
            neuron = start + k * (pace if t == 0 else n)
            for s in range(n):
                h_vector = slots[t % 2] + (s - p.nx) * machine.sx
                operand = s * machine.sx if s < p.nx else h_vector
                for q in GATES:
                    weight = p.weights[q] + k * row[q] + s * p.sw[q]
                    machine.read(neuron + s, f"cu.{q}.weights", weight, p.sw[q])
                    machine.read(neuron + s, f"cu.{q}.inputs", operand, machine.sx)
            last = _log_mu(
                machine, p, k, neuron + n - 1 + machine.dpu, c_at + k * p.ce,
                slots[(t + 1) % 2] + k * machine.xe, y_row + k * machine.ye,
            )  # fmt: skip
        end = last + 1
        if p.spill is not None:
            size = p.nh * machine.sy
            target = p.spill + true_t * machine.burst_bytes(size)
            end = machine.store(end, y_row, size, target)
        start += (p.cells - 1) * (pace if t == 0 else n) + n + tail
    return end


def _log_input(machine: _Machine, begin: int, source: int, subs: int, size: int) -> None:
    """DRAM accesses of an input of so many sub-vectors, as they are used."""
    for j in range(machine.bursts(subs * size)):
        cycle = begin + j * machine.burst // size
        machine.read(cycle, "dram", source + j * machine.burst, machine.burst)


def _log_stored(
    machine: _Machine, p: _Pass, steps: int, begin: int, stage_from: int | None, tiled: bool
) -> int:
    """Accesses of a pass that stores its forward sums: MWL's, or in tiles.

    `stage_from` is the DRAM address of the network's input where it is still to be copied. Gives the
    cycle in which the pass has ended.
    """
    tau, kept = _stretch(machine, p, steps, tiled), _rows_kept(machine, p)
    c_at = (p.nh if tau == steps and not tiled else max(p.nx, p.nh)) * machine.sx
    x_bytes = p.nx * machine.sx
    need = max(x_bytes, c_at + p.nh * p.sc)
    machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", need)

    cycle = begin + machine.channel(_log_parameters(machine, p, begin))
    if stage_from is not None:
        spacing = machine.channel(machine.bursts(x_bytes))
        for t in range(steps):
            source = stage_from + t * machine.burst_bytes(x_bytes)
            target = p.x + t * p.x_pitch
            machine.fetch(
                cycle + t * spacing, source, x_bytes, ["intermediate"], target, machine.sx
            )
        cycle += steps * spacing

    order = p.times(steps)
    for first in range(0, steps, tau):
        part = order[first : first + tau]
        if tiled:
            cycle = _log_tiles(machine, p, part, cycle)
        else:
            cycle = _log_rows(machine, p, part, cycle, kept if first == 0 else 0)
        if first == 0:
            cycle = _log_state(machine, p, cycle, 0, 0, c_at)
        before = None if first == 0 else order[first - 1]
        cycle = _log_recurrent(machine, p, part, before, cycle, c_at, kept, tiled)
    return cycle


def _stretch(machine: _Machine, p: _Pass, steps: int, tiled: bool) -> int:
    """Time steps of a stretch."""
    own = p.cells * sum((p.ae if tiled else p.pe).values())
    name = f"the output of {p.shape.name}"
    machine.fits(name, "intermediate_bytes", steps * p.y_pitch + own)
    return min(steps, (machine.half - steps * p.y_pitch) // own)


def _rows_kept(machine: _Machine, p: _Pass) -> int:
    """Rows of W_h that stay in the weight buffers."""
    fit = min(machine.capacity // (p.nh * p.sw[q]) for q in GATES)
    if fit >= p.cells:
        return p.cells
    need = 2 * p.nh * max(p.sw.values())
    machine.fits(f"two rows of W_h of {p.shape.name}", "weight_buffer_bytes", need)
    return fit - 2


def _partials(p: _Pass, part: list[int], true_t: int, k: int, tiled: bool) -> list[tuple[int, int]]:
    """Address and bytes of each gate's stored sum."""
    own = p.ae if tiled else p.pe
    sizes = [own[q] for q in GATES]
    address = p.partials + ((true_t - min(part)) * p.cells + k) * sum(sizes)
    out = []
    for size in sizes:
        out.append((address, size))
        address += size
    return out


def _log_rows(machine: _Machine, p: _Pass, part: list[int], forward: int, with_h: int) -> int:
    """MWL's forward part of a stretch, with so many rows of W_h behind; gives the end."""
    row_x, row_h = ({q: n * p.sw[q] for q in GATES} for n in (p.nx, p.nh))
    machine.fits(f"two rows of {p.shape.name}", "row_buffer_bytes", 2 * max(row_x.values()))
    of_x, of_h = _row_bursts(machine, p, p.nx), _row_bursts(machine, p, p.nh)
    first = part[0] == p.first
    pace = max(len(part) * p.nx, machine.channel(of_x + (of_h if first else 0)))
    rows_h = p.rows + p.cells * of_x * machine.burst
    for k in range(p.cells):
        row_at = {q: (k % 2) * row_x[q] for q in GATES}
        bursts = 0
        for q in GATES:
            bursts += machine.fetch(
                forward + k * pace + bursts,
                p.rows + (k * of_x + bursts) * machine.burst,
                row_x[q], [f"cu.{q}.row"], row_at[q], p.sw[q],
            )  # fmt: skip
        if k < with_h:
            at = {q: k * row_h[q] for q in GATES}
            _log_row(machine, p, k, forward + k * pace + of_x, rows_h, p.nh, at)
        for t, true_t in enumerate(part):
            begin = forward + (k + 1) * pace + t * p.nx
            for s in range(p.nx):
                source = p.x + true_t * p.x_pitch + s * p.x_sub
                machine.read(begin + s, "intermediate", source, p.x_sub)
                for q in GATES:
                    machine.read(begin + s, f"cu.{q}.row", row_at[q] + s * p.sw[q], p.sw[q])
                    machine.write(begin + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
                    machine.read(begin + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = begin + p.nx - 1 + machine.dpu + p.quantise
            for address, size in _partials(p, part, true_t, k, tiled=False):
                machine.write(done, "intermediate", address, size)
    return forward + (p.cells + 1) * pace + machine.dpu + p.quantise


def _log_tiles(machine: _Machine, p: _Pass, part: list[int], begin: int) -> int:
    """The tiles' forward part of a stretch; gives the end."""
    fit = min(machine.capacity // (p.nx * p.sw[q]) for q in GATES)
    if fit < 1:
        need = p.nx * max(p.sw.values())
        machine.fits(f"a row of W_x of {p.shape.name}", "weight_buffer_bytes", need)
    pace = max(p.nx, machine.channel(_row_bursts(machine, p, p.nx)))
    for low in range(0, p.cells, fit):
        tile = range(low, min(low + fit, p.cells))
        for j, k in enumerate(tile):
            at = {q: j * p.nx * p.sw[q] for q in GATES}
            _log_row(machine, p, k, begin + j * pace, p.rows, p.nx, at)
        for t, true_t in enumerate(part):
            for j, k in enumerate(tile):
                a = begin + (j + 1) * pace
                if t > 0:
                    a = begin + len(tile) * pace + p.nx
                    a += (t - 1) * len(tile) * p.nx + j * p.nx
                for s in range(p.nx):
                    if j == 0:
                        source = p.x + true_t * p.x_pitch + s * p.x_sub
                        machine.read(a + s, "intermediate", source, p.x_sub)
                    for q in GATES:
                        buffer, weight = f"cu.{q}.inputs", (j * p.nx + s) * p.sw[q]
                        if j == 0:
                            machine.write(a + s, buffer, s * machine.sx, machine.sx)
                        machine.read(a + s, f"cu.{q}.weights", weight, p.sw[q])
                        machine.read(a + s, buffer, s * machine.sx, machine.sx)
                for address, size in _partials(p, part, true_t, k, tiled=True):
                    machine.write(a + p.nx - 1 + machine.dpu, "intermediate", address, size)
        begin += len(tile) * pace + p.nx + (len(part) - 1) * len(tile) * p.nx
    return begin + machine.dpu


def _log_recurrent(
    machine: _Machine, p: _Pass, part: list[int], before: int | None, start: int, c_at: int,
    kept: int, tiled: bool,
) -> int:  # fmt: skip
    """The recurrent part of a stretch; `before` is the time step before. Gives the end."""
    row = {q: p.nh * p.sw[q] for q in GATES}
    of_row = _row_bursts(machine, p, p.nh)
    rows_h = p.rows + p.cells * _row_bursts(machine, p, p.nx) * machine.burst
    pace = max(p.nh, machine.channel(of_row))
    behind = 0 if tiled else p.lookup + machine.add
    z = _latencies(machine, p.shape.peepholes).z
    last = 0
    for t, true_t in enumerate(part):
        if before is not None:
            for s in range(p.nh):
                source = p.y + before * p.y_pitch + s * machine.sy
                machine.read(start + s, "intermediate", source, machine.sy)
                for buffer in _buffers("inputs"):
                    machine.write(start + s, buffer, s * machine.sx, machine.sx)
        here = 0 if tiled and t == 0 else kept
        neuron = start
        for k in range(p.cells):
            slot = k if k < kept else kept + (k - kept) % 2
            at = {q: slot * row[q] for q in GATES}
            neuron = start + k * p.nh
            if k >= here:
                fetched = start + here * p.nh + (k - here) * pace
                _log_row(machine, p, k, fetched, rows_h, p.nh, at)
                neuron = fetched + pace
            for s in range(p.nh):
                for q in GATES:
                    machine.read(neuron + s, f"cu.{q}.weights", at[q] + s * p.sw[q], p.sw[q])
                    machine.read(neuron + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = neuron + p.nh - 1 + machine.dpu
            for address, size in _partials(p, part, true_t, k, tiled):
                machine.read(neuron if tiled else done, "intermediate", address, size)
            last = _log_mu(
                machine, p, k, done + behind, c_at + k * p.ce,
                None, p.y + true_t * p.y_pitch + k * machine.ye,
            )  # fmt: skip
        before = true_t
        start = neuron + p.nh + machine.dpu + behind + z
    return last + 1


def _log_batch(machine: _Machine, group: list[_Pass], lengths: list[int], begin: int) -> int:
    """Accesses of one pass for several sequences, the longest first; gives the end.

    The passes differ in their inputs, outputs and initial states alone.
    """
    p = group[0]
    n = p.nx + p.nh
    region = (p.nx + 2 * p.nh) * machine.sx + p.nh * p.sc
    machine.fits(
        f"{len(group)} inputs of {p.shape.name}", "input_buffer_bytes", len(group) * region
    )
    share = machine.accelerator.accumulators

    bursts, waits = _log_parameters(machine, p, begin), 0
    for m, own in enumerate(group):
        h_at = m * region + p.nx * machine.sx
        c_at = m * region + (p.nx + 2 * p.nh) * machine.sx
        if own.initial == "zero":
            _log_state(machine, own, begin + waits, 0, h_at, c_at)
            waits += p.nh
        else:
            _log_state(machine, own, begin, bursts, h_at, c_at)
            bursts += machine.bursts(p.nh * machine.sx) + machine.bursts(p.nh * p.sc)
    loaded = begin + max(machine.channel(bursts), waits)
    row = {q: n * p.sw[q] for q in GATES}
    pace, start = len(group) * n, loaded
    if p.load:
        pace = max(pace, machine.channel(_row_bursts(machine, p, n)))
        start = loaded + pace
        for k in range(p.cells):
            at = {q: p.weights[q] + k * row[q] for q in GATES}
            _log_row(machine, p, k, loaded + k * pace, p.rows, n, at)
    p.free = start - pace + p.cells * pace

    def left(t: int) -> int:
        return sum(length > t for length in lengths)

    def size(m: int, t: int) -> int:
        """Sequences in the group of sequence m."""
        return min(share, left(t) - m // share * share)

    z = _latencies(machine, p.shape.peepholes).z
    end = 0
    for t in range(lengths[0]):
        neuron = start
        for k in range(p.cells):
            neuron = start + k * (pace if t == 0 else left(t) * n)
            for m in range(left(t)):
                own, w, i = group[m], size(m, t), m % share
                true_t = lengths[m] - 1 - t if p.shape.reverse else t
                first = neuron + m // share * share * n
                x_at = m * region
                slots = x_at + p.nx * machine.sx, x_at + n * machine.sx
                c_at = x_at + (p.nx + 2 * p.nh) * machine.sx
                if k == 0 and own.x_from == "dram":
                    for j in range(machine.bursts(p.nx * machine.sx)):
                        machine.read(
                            first + j * machine.burst // machine.sx * w + i, "dram",
                            own.x + true_t * own.x_pitch + j * machine.burst, machine.burst,
                        )  # fmt: skip
                for s in range(n):
                    cycle = first + s * w + i
                    if k == 0 and s < p.nx:
                        if own.x_from == "intermediate":
                            source = own.x + true_t * own.x_pitch + s * own.x_sub
                            machine.read(cycle, "intermediate", source, own.x_sub)
                        for buffer in _buffers("inputs"):
                            machine.write(cycle, buffer, x_at + s * machine.sx, machine.sx)
                    operand = x_at + s * machine.sx
                    if s >= p.nx:
                        operand = slots[t % 2] + (s - p.nx) * machine.sx
                    for q in GATES:
                        if i == 0:
                            weight = p.weights[q] + k * row[q] + s * p.sw[q]
                            machine.read(cycle, f"cu.{q}.weights", weight, p.sw[q])
                        machine.read(cycle, f"cu.{q}.inputs", operand, machine.sx)
                last = _log_mu(
                    machine, p, k, first + (n - 1) * w + i + machine.dpu, c_at + k * p.ce,
                    slots[(t + 1) % 2] + k * machine.xe,
                    own.y + true_t * own.y_pitch + k * machine.ye,
                )  # fmt: skip
                end = max(end, last + 1)
        tail = 0
        for m in range(left(t + 1)):
            wait = (n - 1) * size(m, t) + machine.dpu + z + 1 - p.nx * size(m, t + 1)
            tail = max(tail, wait - left(t) * n)
        start = neuron + left(t) * n + tail
    return end


def _in_dram(
    machine: _Machine, shape: Shape, apart: str | None, check: bool = False
) -> tuple[list[list[_Pass]], int]:
    """Passes with their weights laid out in DRAM, and the first free address behind them.

    `apart` says which order's rows of W_x and W_h lie apart; in E-PUR's order those of layers do that
    don't fit, unless they are to be refused.
    """
    layers, free = [], 0
    for layer in shape:
        passes = [machine.of_pass(one, 0, 0) for one in layer]
        order = apart
        for p in passes:
            vectors = (p.nx + 2 * p.nh) * machine.sx + p.nh * p.sc
            matrix = max(_matrix_bytes(p, q) for q in GATES)
            if check:
                _check_buffers(machine, p)
                machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", vectors)
            over = matrix > machine.capacity or vectors > machine.accelerator.input_buffer_bytes
            if apart is None and over:
                order = "tiles"
        for p in passes:
            p.order, p.rows = order, free
            parts = (p.nx, p.nh) if order else (p.nx + p.nh,)
            of_neuron = sum(machine.burst_bytes(n * p.sw[q]) for n in parts for q in GATES)
            p.bias = free + p.cells * of_neuron
            held = GATES + (("i", "f", "o") if p.shape.peepholes else ())
            free = p.bias + sum(machine.burst_bytes(p.nh * p.sb[q]) for q in held)
        layers.append(passes)
    return layers, free


def _states_in_dram(machine: _Machine, layers: list[list[_Pass]], free: int) -> int:
    """Give each pass its initial state in DRAM from `free` on; gives the next free address."""
    for passes in layers:
        for p in passes:
            p.initial, p.state = "dram", free
            free += machine.burst_bytes(p.nh * machine.sx) + machine.burst_bytes(p.nh * p.sc)
    return free


def _parameter_bytes(p: _Pass, gate: str) -> int:
    return p.nh * p.sb[gate] * (2 if p.shape.peepholes else 1)


def _matrix_bytes(p: _Pass, gate: str) -> int:
    return p.cells * (p.nx + p.nh) * p.sw[gate]


def _check_buffers(machine: _Machine, p: _Pass) -> None:
    """Refuse a pass that no gate's empty buffer would hold."""
    matrix = max(_matrix_bytes(p, q) for q in GATES)
    machine.fits(f"the matrix of {p.shape.name}", "weight_buffer_bytes", matrix)
    bank = max(_parameter_bytes(p, q) for q in GATES)
    machine.fits(f"bias and peepholes of {p.shape.name}", "parameter_bank_bytes", bank)


def accesses_sequence(
    shape: Shape,
    steps: int,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    dataflow: str,
    given_state: bool = False,
) -> tuple[list[Access], int]:
    """Every access of a sequence whose inputs are all known.

    Parameters
    ----------
    shape : sequence of sequences of LayerShape
        Passes of each layer.
    steps : int
        T, time steps.
    arithmetic : Arithmetic
    accelerator : Accelerator
    dataflow : {"epur", "epur-mwl", "epur-batch", "epur-tiled"}
    given_state : bool
        Whether initial states are given, in DRAM; otherwise they are zero.

    Returns
    -------
    log : list of Access
        Sorted by cycle, component, operation and address.
    cycles : int
        The cycle in which everything has ended.

    Raises
    ------
    AcceleratorError
        A memory is too small, or the dataflow or number of steps makes no sense.
    NetworkError
        A layer's input is not the output before it.
    """
    _check_dataflow(dataflow)
    _check_steps(steps)
    for previous, layer in pairwise(shape):
        width = sum(one.cells for one in previous)
        for one in layer:
            if one.inputs != width:
                raise NetworkError(
                    one.name, "inputs", f"are {one.inputs} where {width} are given",
                    "make the widths agree",
                )  # fmt: skip
    if steps == 0:
        return [], 0
    if dataflow == "epur-batch":
        return accesses_batch(shape, [steps], arithmetic, accelerator, given_state)
    machine = _Machine(arithmetic, accelerator, shape)
    apart = {"epur-mwl": "mwl", "epur-tiled": "tiles"}.get(dataflow)
    layers, free = _in_dram(machine, shape, apart)
    inputs = free
    x_pitch = machine.burst_bytes(layers[0][0].nx * machine.sx)
    free += steps * x_pitch
    if given_state:
        free = _states_in_dram(machine, layers, free)
    outputs = free
    pitches = [machine.vectors(sum(p.cells for p in passes)) * machine.sy for passes in layers]
    spilled = dataflow == "epur" and steps * max(pitches) > machine.half
    tiled = [p.order == "tiles" for passes in layers for p in passes]
    if spilled and any(tiled):
        raise AcceleratorError(
            accelerator.name, "intermediate_bytes", f"leaves {machine.half} bytes where the output "
            f"of a layer in tiles needs {steps * max(pitches)}", "give fewer steps",
        )  # fmt: skip
    if spilled:
        for passes in layers:
            for p in passes:
                p.spill = outputs
                outputs += steps * machine.burst_bytes(p.nh * machine.sy)

    cycle = begin = 0
    pass_before: _Pass | None = None
    for number, passes in enumerate(layers):
        source, target = (number % 2) * machine.half, ((number + 1) % 2) * machine.half
        pitch = pitches[number]
        before = 0
        for p in passes:
            name = p.shape.name
            p.x_sub = machine.sy if number else machine.sx
            p.x, p.x_pitch = source, p.nx * p.x_sub
            p.y, p.y_pitch = target + before * machine.ye, pitch
            p.partials = target + steps * pitch
            p.first = p.times(steps)[0]
            stage_from = inputs if number == 0 and p is passes[0] else None
            if number == 0 and p.order is None:
                p.x_from, p.x, p.x_pitch = "dram", inputs, x_pitch
            if spilled:
                p.y = target
                machine.fits(f"two rows of {name}", "intermediate_bytes", 2 * p.nh * machine.sy)
                if number:
                    p.x_from = "spilled"
                    p.x_parts = [(q.spill or 0, q.nh) for q in layers[number - 1]]
            before += p.cells
            bank = max(_parameter_bytes(p, q) for q in GATES)
            machine.fits(f"bias and peepholes of {name}", "parameter_bank_bytes", bank)
            if p.x_from == "intermediate":
                machine.fits(f"the input of {name}", "intermediate_bytes", steps * p.x_pitch)
            if not spilled:
                machine.fits(f"the output of {name}", "intermediate_bytes", steps * pitch)
            begin = _prefetched(machine, pass_before, begin, p, cycle)
            if p.order is None:
                cycle = _log_epur(machine, p, steps, begin)
            else:
                cycle = _log_stored(machine, p, steps, begin, stage_from, p.order == "tiles")
            pass_before = p
    if not spilled:
        cycle = machine.store(cycle, target, steps * pitch, outputs)
    return sorted(machine.log), cycle


def _prefetched(
    machine: _Machine, previous: _Pass | None, previous_begin: int, p: _Pass, cycle: int
) -> int:
    """With double buffering, bring a pass's weights during the one before, where both fit.

    Gives when the pass begins.
    """
    if not machine.accelerator.double_buffering or previous is None:
        return cycle
    if previous.order is not None or p.order is not None:
        return cycle
    bank = machine.accelerator.parameter_bank_bytes
    for q in GATES:
        if _matrix_bytes(previous, q) + _matrix_bytes(p, q) > machine.capacity:
            return cycle
        if _parameter_bytes(previous, q) + _parameter_bytes(p, q) > bank:
            return cycle
    if not previous.at_end:
        p.at_end = True
        p.weights = {q: machine.capacity - _matrix_bytes(p, q) for q in GATES}
        p.parameters = {q: bank - _parameter_bytes(p, q) for q in GATES}
    ready = _log_prefetch(machine, p, previous.free if previous.load else previous_begin)
    p.load = False
    return max(cycle, ready)


def accesses_batch(
    shape: Shape,
    lengths: Sequence[int],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    given_state: bool = False,
) -> tuple[list[Access], int]:
    """Every access of several sequences that share the fetches of weights; see `accesses_sequence`.

    Parameters
    ----------
    lengths : sequence of int
        Time steps of each sequence.
    """
    for steps in lengths:
        _check_steps(steps)
    machine = _Machine(arithmetic, accelerator, shape)
    layers, free = _in_dram(machine, shape, None, check=True)
    inputs, outputs = [], []
    states: list[dict[str, int]] = []
    x_pitch = machine.burst_bytes(layers[0][0].nx * machine.sx)
    pitches = [machine.vectors(sum(p.cells for p in passes)) * machine.sy for passes in layers]
    for steps in lengths:
        inputs.append(free)
        free += steps * x_pitch
    for _ in lengths if given_state else []:
        free = _states_in_dram(machine, layers, free)
        states.append({p.shape.name: p.state for passes in layers for p in passes})
    for steps in lengths:
        outputs.append(free)
        free += machine.burst_bytes(steps * pitches[-1])

    longest = sorted((n for n in range(len(lengths)) if lengths[n]), key=lambda n: -lengths[n])
    batches: list[list[int]] = []
    for n in longest:
        if batches:
            both = [*batches[-1], n]
            rows = sum(lengths[m] for m in both) * max(pitches)
            widest = max(
                (p.nx + 2 * p.nh) * machine.sx + p.nh * p.sc for passes in layers for p in passes
            )
            fits = len(both) * widest <= accelerator.input_buffer_bytes
            if fits and rows <= machine.half:
                batches[-1] = both
                continue
        batches.append([n])

    cycle = 0
    for batch in batches:
        sizes = [lengths[n] for n in batch]
        previous: _Pass | None = None
        begin = target = 0
        for number, passes in enumerate(layers):
            source, target = (number % 2) * machine.half, ((number + 1) % 2) * machine.half
            before = 0
            for p in passes:
                name = p.shape.name
                bank = max(_parameter_bytes(p, q) for q in GATES)
                machine.fits(f"bias and peepholes of {name}", "parameter_bank_bytes", bank)
                machine.fits(
                    f"the output of {name}", "intermediate_bytes", sum(sizes) * pitches[number]
                )
                p.load, p.at_end = True, False
                p.weights, p.parameters = dict.fromkeys(GATES, 0), dict.fromkeys(GATES, 0)
                begin = _prefetched(machine, previous, begin, p, cycle)
                group = []
                for m, n in enumerate(batch):
                    own = replace(p)
                    if number == 0:
                        own.x_from, own.x, own.x_pitch = "dram", inputs[n], x_pitch
                    else:
                        own.x_sub = machine.sy
                        own.x_pitch = p.nx * machine.sy
                        own.x = source + sum(sizes[:m]) * pitches[number - 1]
                    own.y_pitch = pitches[number]
                    own.y = target + sum(sizes[:m]) * pitches[number] + before * machine.ye
                    if given_state:
                        own.state = states[n][name]
                    group.append(own)
                before += p.cells
                cycle = _log_batch(machine, group, sizes, begin)
                previous = group[0]
        for m, n in enumerate(batch):
            row = pitches[-1]
            cycle = machine.store(cycle, target + sum(sizes[:m]) * row, sizes[m] * row, outputs[n])
    return sorted(machine.log), cycle


def accesses_decode(
    shape: Shape,
    steps: int,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    host_between: bool = False,
    given_state: bool = False,
) -> tuple[list[Access], int]:
    """Every access of autoregressive decoding: each step runs through all layers.

    Parameters
    ----------
    shape : sequence of sequences of LayerShape
        One forward pass in each layer.
    steps : int
        T, time steps.
    arithmetic : Arithmetic
    accelerator : Accelerator
    host_between : bool
        Whether the host computes between the layers, so that it reads and provides every one.
    given_state : bool
        Whether initial states are given, in DRAM; otherwise they are zero.

    Returns
    -------
    log : list of Access
        Sorted by cycle, component, operation and address.
    cycles : int
        The cycle in which everything has ended.

    Raises
    ------
    AcceleratorError
        A memory is too small, or the number of steps makes no sense.
    NetworkError
        A layer is not one forward pass, or its input is not the output before it.
    """
    _check_steps(steps)
    for layer in shape:
        if len(layer) != 1 or layer[0].reverse:
            raise NetworkError(
                layer[0].name, "direction", "needs inputs that decoding does not know yet",
                "decode forward layers only",
            )  # fmt: skip
    for (previous,), (one,) in pairwise(shape):
        if not host_between and one.inputs != previous.cells:
            raise NetworkError(
                one.name, "inputs", f"are {one.inputs} where {previous.cells} are given",
                "make the widths agree",
            )  # fmt: skip
    if steps == 0:
        return [], 0
    machine = _Machine(arithmetic, accelerator, shape)
    layers, free = _in_dram(machine, shape, None, check=True)
    passes = [p for (p,) in layers]
    for number, p in enumerate(passes):
        if number == 0 or host_between:
            p.x_from, p.x, p.x_pitch = "dram", free, machine.burst_bytes(p.nx * machine.sx)
            free += steps * p.x_pitch
    if given_state:
        free = _states_in_dram(machine, layers, free)
    outputs = {}
    for number, p in enumerate(passes):
        if number == len(passes) - 1 or host_between:
            outputs[number] = free
            free += steps * machine.burst_bytes(p.nh * machine.sy)

    state = 0
    for number, p in enumerate(passes):
        p.state_on_chip = p.y = state
        state += p.nh * (machine.sy + p.sc)
        if p.x_from == "intermediate":
            p.x, p.x_sub = passes[number - 1].y, machine.sy
    if state > 2 * machine.half:
        raise AcceleratorError(
            accelerator.name, "intermediate_bytes",
            f"is {2 * machine.half} where the layers' states need {state}",
            f"give room for {state} bytes",
        )  # fmt: skip
    resident = _reside(machine, passes)

    cycle = 0
    for step in range(steps):
        for number, p in enumerate(passes):
            if step > 0:
                p.initial = "intermediate"
                p.load = number >= resident
                if p.x_from == "dram":
                    p.x += p.x_pitch
            cycle = _log_epur(machine, p, 1, cycle)
            if number in outputs:
                size = p.nh * machine.sy
                target = outputs[number] + step * machine.burst_bytes(size)
                cycle = machine.store(cycle, p.y, size, target)
    return sorted(machine.log), cycle


def _reside(machine: _Machine, passes: list[_Pass]) -> int:
    """Place all layers in the weight buffers; gives how many, from the first on, stay there."""
    for p in passes:
        _check_buffers(machine, p)
    needs = [(machine.capacity, [_matrix_bytes(p, q) for p in passes]) for q in GATES] + [
        (machine.accelerator.parameter_bank_bytes, [_parameter_bytes(p, q) for p in passes])
        for q in GATES
    ]
    resident = len(passes)
    while not all(
        sum(sizes[:resident]) + max(sizes[resident:], default=0) <= room for room, sizes in needs
    ):
        resident -= 1
    for number, p in enumerate(passes):
        before = passes[: min(number, resident)]
        for q in GATES:
            p.weights[q] = sum(_matrix_bytes(each, q) for each in before)
            p.parameters[q] = sum(_parameter_bytes(each, q) for each in before)
    return resident


# Operations, counted.


def operations_sequence(
    shape: Shape, steps: int, arithmetic: Arithmetic, accelerator: Accelerator, dataflow: str
) -> dict[str, int]:
    """Operations of a sequence by name (`OPERATIONS`), padding included.

    Raises
    ------
    AcceleratorError
        The dataflow is unknown or the number of steps negative.
    """
    _check_dataflow(dataflow)
    _check_steps(steps)
    totals = dict.fromkeys(OPERATIONS, 0)

    def count(**operations: int) -> None:
        for name, number in operations.items():
            totals[name] += number

    width = accelerator.width
    for layer in shape:
        for one in layer:
            n = math.ceil(Fraction(one.inputs, width)) + math.ceil(Fraction(one.cells, width))
            for _ in range(steps * one.cells):
                for q in GATES:
                    partial = arithmetic.at(one.name, q).partial
                    quantised = isinstance(partial, LinearFormat)
                    count(multiply=n * width, add=n * (width - 1) + n)
                    if dataflow == "epur-mwl":
                        count(add=1, quantise=int(quantised), lookup=int(quantised))
                for _ in "if":
                    count(add=2, compare=1, exp=1, divide=1, link=1)
                    if one.peepholes:
                        count(multiply=1, add=1)
                count(add=6, compare=2, exp=4, divide=2, multiply=2, link=2)
                count(add=2, compare=1, exp=1, divide=1, multiply=1, link=1)
                if one.peepholes:
                    count(multiply=1, add=1, link=2)
    return totals


def operations_decode(
    shape: Shape, steps: int, arithmetic: Arithmetic, accelerator: Accelerator
) -> dict[str, int]:
    """Operations of autoregressive decoding: those of E-PUR's order; see `operations_sequence`."""
    return operations_sequence(shape, steps, arithmetic, accelerator, "epur")


def _check_dataflow(dataflow: str) -> None:
    if dataflow not in DATAFLOWS:
        raise AcceleratorError(
            "dataflow", repr(dataflow), "is not known", f"use one of {', '.join(DATAFLOWS)}"
        )


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise AcceleratorError("sequence", "steps", f"are {steps}", "give 0 or more")
