"""The hardware model's definition in plain Python: one access at a time.

Every schedule is tested against this module: its loops over time, neuron and sub-vector are written
from ``docs/dataflow.md`` and share nothing with them. It is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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

DATAFLOWS = ("epur", "epur-mwl")
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
    we, sw, be, sb, pe : dict of str to int
        By gate: bytes of a weight and of a sub-vector of weights, of a bias or peephole weight and
        of a sub-vector of these, of a stored partial sum.
    ce, sc : int
        Bytes of an element and of a sub-vector of c.
    quantise, lookup : int
        Latencies, 0 where no gate quantises partial sums.
    rows, bias, state : int
        In DRAM: weight rows, biases (peepholes behind them), initial state.
    x_from : {"dram", "intermediate"}
    x, x_pitch, x_sub : int
        Input row of time step 0, the distance between rows, bytes of a sub-vector.
    y, y_pitch : int
        Element 0 of the output of time step 0 in the intermediate memory, distance between rows.
    initial : {"zero", "dram", "intermediate"}
        Where the initial state comes from.
    partials : int
        Stored partial sums (MWL).
    load : bool
        Whether the weights are not resident.
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
    y: int = 0
    y_pitch: int = 0
    initial: str = "zero"
    partials: int = 0
    load: bool = True
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
        of_neuron = sum(machine.bursts(row[q]) for q in GATES)
        pace = max(n, machine.channel(of_neuron))
        start = loaded + pace
        for k in range(p.cells):
            bursts = 0
            for q in GATES:
                bursts += machine.fetch(
                    loaded + k * pace + bursts,
                    p.rows + (k * of_neuron + bursts) * machine.burst,
                    row[q], [f"cu.{q}.weights"], p.weights[q] + k * row[q], p.sw[q],
                )  # fmt: skip

    tail = max(0, machine.dpu + _latencies(machine, p.shape.peepholes).z - p.nx)
    last = 0
    for t, true_t in enumerate(p.times(steps)):
        x_row = p.x + true_t * p.x_pitch
        if p.x_from == "dram":
            for j in range(machine.bursts(p.nx * machine.sx)):
                cycle = start + j * machine.burst // machine.sx
                machine.read(cycle, "dram", x_row + j * machine.burst, machine.burst)
        for s in range(p.nx):
            if p.x_from == "intermediate":
                machine.read(start + s, "intermediate", x_row + s * p.x_sub, p.x_sub)
            for buffer in _buffers("inputs"):
                machine.write(start + s, buffer, s * machine.sx, machine.sx)
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
                slots[(t + 1) % 2] + k * machine.xe,
                p.y + true_t * p.y_pitch + k * machine.ye,
            )  # fmt: skip
        start += (p.cells - 1) * (pace if t == 0 else n) + n + tail
    return last + 1


def _log_mwl(machine: _Machine, p: _Pass, steps: int, begin: int, stage_from: int | None) -> int:
    """Accesses of a pass in MWL's order; gives the cycle in which it has ended.

    `stage_from` is the DRAM address of the network's input where it is still to be copied.
    """
    x_bytes = p.nx * machine.sx
    row_x, row_h = ({q: n * p.sw[q] for q in GATES} for n in (p.nx, p.nh))
    c_at = p.nh * machine.sx
    need = max(x_bytes, c_at + p.nh * p.sc)
    machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", need)
    machine.fits(f"two rows of {p.shape.name}", "row_buffer_bytes", 2 * max(row_x.values()))

    forward = begin + machine.channel(_log_parameters(machine, p, begin))
    if stage_from is not None:
        spacing = machine.channel(machine.bursts(x_bytes))
        for t in range(steps):
            source = stage_from + t * machine.burst_bytes(x_bytes)
            target = p.x + t * p.x_pitch
            machine.fetch(
                forward + t * spacing, source, x_bytes, ["intermediate"], target, machine.sx
            )
        forward += steps * spacing

    def partials(true_t: int, k: int) -> list[tuple[int, int]]:
        """Address and bytes of each gate's partial sum."""
        sizes = [p.pe[q] for q in GATES]
        first = p.partials + (true_t * p.cells + k) * sum(sizes)
        return [(first + sum(sizes[:gate]), size) for gate, size in enumerate(sizes)]

    of_neuron = [sum(machine.bursts(row[q]) for q in GATES) for row in (row_x, row_h)]
    pace = max(steps * p.nx, machine.channel(sum(of_neuron)))
    rows_h = p.rows + p.cells * of_neuron[0] * machine.burst
    for k in range(p.cells):
        row_at = {q: (k % 2) * row_x[q] for q in GATES}
        bursts = 0
        for q in GATES:
            bursts += machine.fetch(
                forward + k * pace + bursts,
                p.rows + (k * of_neuron[0] + bursts) * machine.burst,
                row_x[q], [f"cu.{q}.row"], row_at[q], p.sw[q],
            )  # fmt: skip
        bursts = 0
        for q in GATES:
            bursts += machine.fetch(
                forward + k * pace + of_neuron[0] + bursts,
                rows_h + (k * of_neuron[1] + bursts) * machine.burst,
                row_h[q], [f"cu.{q}.weights"], k * row_h[q], p.sw[q],
            )  # fmt: skip
        for t, true_t in enumerate(p.times(steps)):
            first = forward + (k + 1) * pace + t * p.nx
            for s in range(p.nx):
                source = p.x + true_t * p.x_pitch + s * p.x_sub
                machine.read(first + s, "intermediate", source, p.x_sub)
                for q in GATES:
                    machine.read(first + s, f"cu.{q}.row", row_at[q] + s * p.sw[q], p.sw[q])
                    machine.write(first + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
                    machine.read(first + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = first + p.nx - 1 + machine.dpu + p.quantise
            for address, size in partials(true_t, k):
                machine.write(done, "intermediate", address, size)

    recurrent = forward + (p.cells + 1) * pace + machine.dpu + p.quantise
    recurrent = _log_state(machine, p, recurrent, 0, 0, c_at)
    tail = machine.dpu + p.lookup + machine.add
    tail += _latencies(machine, p.shape.peepholes).z
    last = before = 0
    for t, true_t in enumerate(p.times(steps)):
        start = recurrent + t * (p.cells * p.nh + tail)
        if t > 0:
            for s in range(p.nh):
                source = p.y + before * p.y_pitch + s * machine.sy
                machine.read(start + s, "intermediate", source, machine.sy)
                for buffer in _buffers("inputs"):
                    machine.write(start + s, buffer, s * machine.sx, machine.sx)
        for k in range(p.cells):
            neuron = start + k * p.nh
            for s in range(p.nh):
                for q in GATES:
                    weight = k * row_h[q] + s * p.sw[q]
                    machine.read(neuron + s, f"cu.{q}.weights", weight, p.sw[q])
                    machine.read(neuron + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = neuron + p.nh - 1 + machine.dpu
            for address, size in partials(true_t, k):
                machine.read(done, "intermediate", address, size)
            last = _log_mu(
                machine, p, k, done + p.lookup + machine.add, c_at + k * p.ce,
                None, p.y + true_t * p.y_pitch + k * machine.ye,
            )  # fmt: skip
        before = true_t
    return last + 1


def _in_dram(machine: _Machine, shape: Shape, mwl: bool) -> tuple[list[list[_Pass]], int]:
    """Passes with their weights laid out in DRAM, and the first free address behind them."""
    layers, free = [], 0
    for layer in shape:
        passes = []
        for one in layer:
            p = machine.of_pass(one, free, 0)
            parts = (p.nx, p.nh) if mwl else (p.nx + p.nh,)
            of_neuron = sum(machine.burst_bytes(n * p.sw[q]) for n in parts for q in GATES)
            p.bias = free + one.cells * of_neuron
            held = GATES + (("i", "f", "o") if one.peepholes else ())
            free = p.bias + sum(machine.burst_bytes(p.nh * p.sb[q]) for q in held)
            passes.append(p)
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


def _matrix_bytes(p: _Pass, gate: str, mwl: bool) -> int:
    return p.cells * (p.nh if mwl else p.nx + p.nh) * p.sw[gate]


def _check_buffers(machine: _Machine, p: _Pass, mwl: bool) -> None:
    """Refuse a pass that no gate's empty buffer would hold."""
    matrix = max(_matrix_bytes(p, q, mwl) for q in GATES)
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
    dataflow : {"epur", "epur-mwl"}
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
    mwl = dataflow == "epur-mwl"
    machine = _Machine(arithmetic, accelerator, shape)
    layers, free = _in_dram(machine, shape, mwl)
    inputs = free
    x_pitch = machine.burst_bytes(layers[0][0].nx * machine.sx)
    free += steps * x_pitch
    if given_state:
        free = _states_in_dram(machine, layers, free)
    outputs = free

    cycle = 0
    for number, passes in enumerate(layers):
        source, target = (number % 2) * machine.half, ((number + 1) % 2) * machine.half
        pitch = machine.vectors(sum(p.cells for p in passes)) * machine.sy
        before = 0
        for p in passes:
            p.x_sub = machine.sy if number else machine.sx
            p.x, p.x_pitch = source, p.nx * p.x_sub
            p.y, p.y_pitch = target + before * machine.ye, pitch
            p.partials = target + steps * pitch
            before += p.cells
            stage_from = None
            if number == 0 and not mwl:
                p.x_from, p.x, p.x_pitch = "dram", inputs, x_pitch
            elif number == 0 and p is passes[0]:
                stage_from = inputs
            name = p.shape.name
            _check_buffers(machine, p, mwl)
            if p.x_from == "intermediate":
                machine.fits(f"the input of {name}", "intermediate_bytes", steps * p.x_pitch)
            size = steps * pitch + (steps * p.cells * sum(p.pe.values()) if mwl else 0)
            machine.fits(f"the output of {name}", "intermediate_bytes", size)
            if mwl:
                cycle = _log_mwl(machine, p, steps, cycle, stage_from)
            else:
                cycle = _log_epur(machine, p, steps, cycle)
    cycle = machine.store(cycle, target, steps * pitch, outputs)
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
    layers, free = _in_dram(machine, shape, mwl=False)
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
        _check_buffers(machine, p, mwl=False)
    needs = [
        (machine.capacity, [_matrix_bytes(p, q, mwl=False) for p in passes]) for q in GATES
    ] + [
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
            p.weights[q] = sum(_matrix_bytes(each, q, mwl=False) for each in before)
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
