"""The emulator's definition in plain Python: one operation and one access at a time.

Everything else is tested against this module, so it shares neither rounding nor schedule with
anything: results are exact ratios of integers rounded by definition, and the accesses come from
loops over time, neuron and sub-vector, written from ``docs/dataflow.md``. It is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.errors import AcceleratorError, NetworkError
from epur_emu.formats import FloatFormat, LinearFormat
from epur_emu.network import GATES, LayerShape, LstmLayer

F32 = npt.NDArray[np.float32]
Shape = Sequence[Sequence[LayerShape]]

#: Cycle, component, "read" or "write", address, bytes.
Access = tuple[int, str, str, int, int]

ORDERS = ("epur", "epur-mwl")
OPERATIONS = ("multiply", "add", "exp", "divide", "compare", "link", "quantise", "lookup")


# Numbers. A Python float holds every value of every FloatFormat (at most 24 bits of significand and
# 8 of exponent) with its zeros' signs, infinities and NaN; it only holds them: all arithmetic is
# done on exact integers.


def round_ratio(numerator: int, denominator: int, form: FloatFormat) -> float:
    """Value of `form` nearest to a ratio, ties to the even significand.

    Parameters
    ----------
    numerator : int
        Zero gives +0; a negative ratio that rounds to zero gives -0.
    denominator : int
        Positive; need not be coprime to the numerator.
    form : FloatFormat

    Returns
    -------
    float
        Infinite if the rounded value exceeds the format's largest.
    """
    if numerator == 0:
        return 0.0
    sign = -1.0 if numerator < 0 else 1.0
    numerator = abs(numerator)
    exponent = numerator.bit_length() - denominator.bit_length()  # of the ratio, or one too large
    if numerator << max(0, -exponent) < denominator << max(0, exponent):
        exponent -= 1
    if exponent > form.max_exponent:
        return sign * math.inf
    unit = max(exponent, form.min_exponent) - form.mantissa_bits  # of the last place
    numerator <<= max(0, -unit)
    denominator <<= max(0, unit)
    significand, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and significand % 2 == 1):
        significand += 1
    if significand.bit_length() - 1 + unit > form.max_exponent:
        return sign * math.inf
    return sign * math.ldexp(significand, unit)


def round_exact(value: Fraction, form: FloatFormat) -> float:
    """Value of `form` nearest to an exact one, ties to even; see `round_ratio`."""
    return round_ratio(value.numerator, value.denominator, form)


def convert(value: float, form: FloatFormat) -> float:
    """`value` rounded to `form`; zeros and infinities keep their sign, every NaN becomes one."""
    if math.isnan(value):
        return math.nan
    if value == 0 or math.isinf(value):
        return value
    return round_ratio(*value.as_integer_ratio(), form)


def add(a: float, b: float, form: FloatFormat) -> float:
    """a + b, rounded once."""
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b) and a != b):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        return a if math.isinf(a) else b
    if a == 0 and b == 0:
        return -0.0 if math.copysign(1, a) < 0 and math.copysign(1, b) < 0 else 0.0
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return round_ratio(n * e + m * d, d * e, form)


def multiply(a: float, b: float, form: FloatFormat) -> float:
    """a * b, rounded once."""
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        return math.nan if a == 0 or b == 0 else sign * math.inf
    if a == 0 or b == 0:
        return sign * 0.0
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return round_ratio(n * m, d * e, form)


def divide(a: float, b: float, form: FloatFormat) -> float:
    """a / b, rounded once."""
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if math.isinf(a):
        return math.nan if math.isinf(b) else sign * math.inf
    if b == 0:
        return math.nan if a == 0 else sign * math.inf
    if a == 0 or math.isinf(b):
        return sign * 0.0
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return round_ratio(n * e if m > 0 else -n * e, d * abs(m), form)


def exp(value: float, form: FloatFormat) -> float:
    """e to the power of `value`, correctly rounded."""
    if math.isnan(value):
        return math.nan
    if value == 0:
        return 1.0
    # e**x lies beyond 2**x on either side of 0, which settles overflow and underflow.
    if value >= form.max_exponent + 1:
        return math.inf
    if value <= form.min_exponent - form.mantissa_bits - 1:
        return 0.0
    return _exp_finite(value, form)


@cache
def _exp_finite(value: float, form: FloatFormat) -> float:
    numerator, denominator = abs(value).as_integer_ratio()
    bits = 64
    while True:  # ends: e**x is irrational for a rational x other than 0, so it is never a tie
        low, high = _exp_bounds(numerator, denominator, bits)
        one = 1 << bits
        if value > 0:
            ends = round_ratio(low, one, form), round_ratio(high, one, form)
        else:
            ends = round_ratio(one, high, form), round_ratio(one, low, form)
        if ends[0] == ends[1]:
            return ends[0]
        bits *= 2


def _exp_bounds(numerator: int, denominator: int, bits: int) -> tuple[int, int]:
    """Integers around ``2**bits * exp(numerator / denominator)`` of a positive ratio."""
    halvings = max(0, numerator.bit_length() - denominator.bit_length() + 2)
    denominator <<= halvings  # the ratio is below 1/2 now
    low = high = term_low = term_high = 1 << bits
    k = 0
    while term_high > 1:
        k += 1
        term_low = term_low * numerator // (denominator * k)
        term_high = -(-term_high * numerator // (denominator * k))
        low += term_low
        high += term_high
    high += 1  # all further terms together are less than the last one
    for _ in range(halvings):
        low = low * low >> bits
        high = -(-high * high >> bits)
    return low, high


def clamp(value: float, limit: float) -> float:
    """The comparator: `value` held within [-limit, limit]; NaN passes."""
    if value > limit:
        return limit
    if value < -limit:
        return -limit
    return value


# One pass, operation by operation.


def evaluate_pass(
    layer: LstmLayer,
    inputs: npt.ArrayLike,
    arithmetic: Arithmetic,
    order: str = "epur",
    alpha: float | None = None,
    h0: npt.ArrayLike | None = None,
    c0: npt.ArrayLike | None = None,
    width: int = 16,
) -> tuple[F32, F32]:
    """Evaluate one pass over a sequence.

    Parameters
    ----------
    layer : LstmLayer
    inputs : float array of shape (T, I)
        Rounded to the arithmetic's input format first.
    arithmetic : Arithmetic
    order : {"epur", "epur-mwl"}
        Whether forward and recurrent products share one accumulation, or forward sums are stored.
    alpha : float, optional
        Largest forward partial sum, needed where MWL quantises; taken as float32.
    h0, c0 : float arrays of shape (H,), optional
        Initial state, rounded to the formats of output and cell; +0 by default.
    width : int
        Width of the DPU, a power of two.

    Returns
    -------
    h : float32 array of shape (T, H)
        Outputs, each at its true time step.
    c : float32 array of shape (H,)
        Cell state after the step evaluated last.

    Raises
    ------
    NetworkError
        A shape does not suit the layer.
    AcceleratorError
        The order is unknown, or alpha is missing or not positive and finite.
    """
    cells = layer.cells
    x = np.asarray(inputs)
    if x.ndim != 2 or x.shape[1] != layer.inputs:
        raise NetworkError(
            layer.name, "inputs", f"have shape {x.shape}", f"give (steps, {layer.inputs})"
        )
    _check_order(order)
    scale = _scale(arithmetic, order, alpha)
    w_x = [_rounded(gate, arithmetic.weight) for gate in layer.w_x]
    w_h = [_rounded(gate, arithmetic.weight) for gate in layer.w_h]
    bias = _rounded(layer.bias, arithmetic.mu)
    peepholes = None
    if layer.peepholes is not None:
        peepholes = _rounded(layer.peepholes, arithmetic.mu)
    h = _state(layer, "h0", h0, arithmetic.output)
    c = _state(layer, "c0", c0, arithmetic.cell)

    outputs = np.zeros((len(x), cells), np.float32)
    for t in reversed(range(len(x))) if layer.reverse else range(len(x)):
        (x_t,) = _rounded(x[t : t + 1], arithmetic.input)
        h_operand = [convert(value, arithmetic.input) for value in h]
        h_new, c_new = [], []
        for k in range(cells):
            sums = []
            for q in range(4):
                if order == "epur":
                    total = _accumulate(w_x[q][k], x_t, 0.0, arithmetic, width)
                    total = _accumulate(w_h[q][k], h_operand, total, arithmetic, width)
                else:
                    partial = _accumulate(w_x[q][k], x_t, 0.0, arithmetic, width)
                    partial = _stored(partial, arithmetic, scale)
                    total = _accumulate(w_h[q][k], h_operand, 0.0, arithmetic, width)
                    total = add(total, partial, arithmetic.accumulator)
                sums.append(convert(total, arithmetic.mu))
            h_k, c_k = _mu(
                sums,
                [bias[q][k] for q in range(4)],
                [peepholes[q][k] for q in range(3)] if peepholes else None,
                c[k],
                arithmetic,
            )
            h_new.append(h_k)
            c_new.append(c_k)
        h, c = h_new, c_new
        outputs[t] = h
    return outputs, np.array(c, np.float32)


def _rounded(array: npt.NDArray[np.floating], form: FloatFormat) -> list[list[float]]:
    return [[convert(float(value), form) for value in row] for row in array]


def _state(
    layer: LstmLayer, field: str, given: npt.ArrayLike | None, form: FloatFormat
) -> list[float]:
    if given is None:
        return [0.0] * layer.cells
    array = np.asarray(given)
    if array.shape != (layer.cells,):
        raise NetworkError(layer.name, field, f"has shape {array.shape}", f"give ({layer.cells},)")
    return [convert(float(value), form) for value in array]


def _scale(arithmetic: Arithmetic, order: str, alpha: float | None) -> Fraction | None:
    """Largest partial sum as an exact value, None where none is quantised."""
    if order == "epur" or not isinstance(arithmetic.partial, LinearFormat):
        return None
    with np.errstate(over="ignore"):
        value = math.nan if alpha is None else float(np.float32(alpha))
    if not 0 < value < math.inf:
        raise AcceleratorError(
            arithmetic.name, "alpha", f"is {alpha}", "give a positive finite float32"
        )
    return Fraction(value)


def _accumulate(
    weights: list[float], values: list[float], acc: float, arithmetic: Arithmetic, width: int
) -> float:
    """Add a dot product to `acc` as the DPU does, sub-vector by sub-vector."""
    for begin in range(0, len(weights), width):
        products = []
        for j in range(begin, begin + width):
            if j < len(weights):
                products.append(multiply(weights[j], values[j], arithmetic.product))
            else:
                products.append(multiply(0.0, 0.0, arithmetic.product))
        while len(products) > 1:
            products = [
                add(products[j], products[j + 1], arithmetic.tree)
                for j in range(0, len(products), 2)
            ]
        acc = add(acc, products[0], arithmetic.accumulator)
    return acc


def _stored(partial: float, arithmetic: Arithmetic, scale: Fraction | None) -> float:
    """What comes back of a forward partial sum that was stored."""
    form = arithmetic.partial
    if isinstance(form, FloatFormat):
        return convert(partial, form)
    assert scale is not None
    largest = 2 ** (form.bits - 1) - 1
    if math.isnan(partial):
        return math.nan
    if math.isinf(partial):
        code = largest if partial > 0 else -largest
    else:
        # Python rounds a Fraction half to even.
        code = max(-largest, min(largest, round(Fraction(partial) * largest / scale)))
    return round_exact(code * scale / largest, arithmetic.accumulator)


def _mu(
    sums: list[float],
    bias: list[float],
    peepholes: list[float] | None,
    c_before: float,
    arithmetic: Arithmetic,
) -> tuple[float, float]:
    """One cell in the four multifunctional units, from the DPUs' sums: (h_t, c_t)."""
    form = arithmetic.mu
    limit = convert(arithmetic.clamp, form)

    def sigmoid(r: float) -> float:
        r = clamp(r, limit)
        r = -r
        r = exp(r, form)
        r = add(r, 1.0, form)
        return divide(1.0, r, form)

    def tanh(r: float) -> float:
        r = clamp(r, limit)
        a = exp(r, form)
        q = exp(-r, form)
        return divide(add(a, -q, form), add(a, q, form), form)

    gates = []
    for q in (0, 1):  # i, f
        r = sums[q]
        if peepholes:
            r = add(r, multiply(peepholes[q], c_before, form), form)
        r = add(r, bias[q], form)
        gates.append(sigmoid(r))
    i, f = gates

    r = tanh(add(sums[2], bias[2], form))
    r = multiply(r, i, form)
    c = convert(add(r, multiply(f, c_before, form), form), arithmetic.cell)
    tanh_c = tanh(c)

    r = add(sums[3], bias[3], form)
    if peepholes:
        r = add(r, multiply(peepholes[2], c, form), form)
    o = sigmoid(r)
    return convert(multiply(o, tanh_c, form), arithmetic.output), c


# Accesses, one at a time.


class _Machine:
    """Sizes and latencies under the hardware model's names, and the log being written."""

    def __init__(self, arithmetic: Arithmetic, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.width = accelerator.width
        self.we = arithmetic.weight.bytes
        self.xe = arithmetic.input.bytes
        self.ce = arithmetic.cell.bytes
        self.pe = arithmetic.partial.bytes
        self.sw = self.width * self.we
        self.sx = self.width * self.xe
        self.sc = self.width * self.ce
        self.burst = accelerator.dram_burst_bytes
        self.half = accelerator.intermediate_bytes // 2
        self.capacity = accelerator.weight_buffer_bytes
        self.add = accelerator.add_cycles
        self.link = accelerator.link_cycles
        quantised = isinstance(arithmetic.partial, LinearFormat)
        self.quantise = accelerator.quantise_cycles if quantised else 0
        self.lookup = accelerator.lookup_cycles if quantised else 0
        levels = 0
        while 2**levels < self.width:
            levels += 1
        self.dpu = accelerator.multiply_cycles + levels * self.add + self.add
        self.log: list[Access] = []

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
        for s in range(total // self.sx):
            self.read(
                cycle + s * self.sx // self.burst, "intermediate", source + s * self.sx, self.sx
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
    rows, bias, state : int
        In DRAM: weight rows, biases (peepholes behind them), initial state.
    x_from : {"dram", "intermediate"}
    x, x_pitch : int
        Input row of time step 0, and the distance between rows.
    y, y_pitch : int
        Element 0 of the output of time step 0 in the intermediate memory, distance between rows.
    initial : {"zero", "dram", "intermediate"}
        Where the initial state comes from.
    partials : int
        Stored partial sums (MWL).
    load : bool
        Whether the weights are not resident.
    weights, parameters : int
        Offsets in the weight buffer and in the parameter bank.
    state_on_chip : int, optional
        State in the intermediate memory (decoding).
    """

    shape: LayerShape
    nx: int
    nh: int
    rows: int
    bias: int
    state: int = 0
    x_from: str = "intermediate"
    x: int = 0
    x_pitch: int = 0
    y: int = 0
    y_pitch: int = 0
    initial: str = "zero"
    partials: int = 0
    load: bool = True
    weights: int = 0
    parameters: int = 0
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
    bias = machine.capacity + p.parameters + k * machine.we
    peephole = bias + p.nh * machine.sw
    for q in "if":
        if p.shape.peepholes:
            machine.read(done, f"cu.{q}.weights", peephole, machine.we)
            machine.read(done, f"cu.{q}.inputs", c_at, machine.ce)
        machine.read(done + after.p, f"cu.{q}.weights", bias, machine.we)

    machine.read(done, "cu.g.weights", bias, machine.we)
    machine.read(done + after.tm + 1, "cu.g.inputs", c_at, machine.ce)
    arrival = done + after.tc + machine.link
    for holder in p.c_holders:
        here = holder == "cu.g.inputs"
        machine.write(done + after.tc if here else arrival, holder, c_at, machine.ce)
    if p.state_on_chip is not None:
        c_state = p.state_on_chip + p.nh * machine.sx + k * machine.ce
        machine.write(arrival, "intermediate", c_state, machine.ce)

    machine.read(done, "cu.o.weights", bias, machine.we)
    if p.shape.peepholes:
        machine.read(arrival, "cu.o.weights", peephole, machine.we)
    out = done + after.z
    if h_at is not None:
        for buffer in _buffers("inputs"):
            machine.write(out, buffer, h_at, machine.xe)
    machine.write(out, "intermediate", y_at, machine.xe)
    return out


def _log_parameters(machine: _Machine, p: _Pass, begin: int) -> int:
    """Accesses that bring biases and peepholes; gives the bursts on the channel."""
    bursts = 0
    bank = machine.capacity + p.parameters
    size = p.nh * machine.sw
    if p.load:
        parts = [(q, bank) for q in GATES]
        if p.shape.peepholes:
            parts += [(q, bank + size) for q in "ifo"]
        for number, (q, address) in enumerate(parts):
            source = p.bias + number * machine.burst_bytes(size)
            bursts += machine.fetch(
                begin + bursts, source, size, [f"cu.{q}.weights"], address, machine.sw
            )
    return bursts


def _log_state(machine: _Machine, p: _Pass, begin: int, bursts: int, h_at: int, c_at: int) -> int:
    """Accesses that bring the initial state, behind `bursts`; gives the cycle in which it is there."""
    cycles = 0
    size_h, size_c = p.nh * machine.sx, p.nh * machine.sc
    if p.initial == "dram":
        bursts += machine.fetch(
            begin + bursts, p.state, size_h, _buffers("inputs"), h_at, machine.sx
        )
        source = p.state + machine.burst_bytes(size_h)
        bursts += machine.fetch(begin + bursts, source, size_c, p.c_holders, c_at, machine.sc)
    elif p.initial == "zero":
        cycles = p.nh
        for s in range(p.nh):
            for buffer in _buffers("inputs"):
                machine.write(begin + s, buffer, h_at + s * machine.sx, machine.sx)
            for buffer in p.c_holders:
                machine.write(begin + s, buffer, c_at + s * machine.sc, machine.sc)
    else:
        assert p.state_on_chip is not None
        cycles = 2 * p.nh
        for s in range(p.nh):
            source = p.state_on_chip + s * machine.sx
            machine.read(begin + s, "intermediate", source, machine.sx)
            for buffer in _buffers("inputs"):
                machine.write(begin + s, buffer, h_at + s * machine.sx, machine.sx)
        for s in range(p.nh):
            source = p.state_on_chip + size_h + s * machine.sc
            machine.read(begin + p.nh + s, "intermediate", source, machine.sc)
            for buffer in p.c_holders:
                machine.write(begin + p.nh + s, buffer, c_at + s * machine.sc, machine.sc)
    return begin + max(machine.channel(bursts), cycles)


def _log_epur(machine: _Machine, p: _Pass, steps: int, begin: int) -> int:
    """Accesses of a pass in E-PUR's order; gives the cycle in which it has ended."""
    n = p.nx + p.nh
    slots = p.nx * machine.sx, n * machine.sx
    c_at = (p.nx + 2 * p.nh) * machine.sx
    machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", c_at + p.nh * machine.sc)

    loaded = _log_state(machine, p, begin, _log_parameters(machine, p, begin), slots[0], c_at)
    row = n * machine.sw
    pace, start = n, loaded
    if p.load:
        pace = max(n, machine.channel(4 * machine.bursts(row)))
        start = loaded + pace
        for k in range(p.cells):
            for gate, q in enumerate(GATES):
                machine.fetch(
                    loaded + k * pace + gate * machine.bursts(row),
                    p.rows + (4 * k + gate) * machine.burst_bytes(row),
                    row, [f"cu.{q}.weights"], p.weights + k * row, machine.sw,
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
                machine.read(start + s, "intermediate", x_row + s * machine.sx, machine.sx)
            for buffer in _buffers("inputs"):
                machine.write(start + s, buffer, s * machine.sx, machine.sx)
        for k in range(p.cells):
            neuron = start + k * (pace if t == 0 else n)
            for s in range(n):
                weight = p.weights + k * row + s * machine.sw
                h_vector = slots[t % 2] + (s - p.nx) * machine.sx
                operand = s * machine.sx if s < p.nx else h_vector
                for q in GATES:
                    machine.read(neuron + s, f"cu.{q}.weights", weight, machine.sw)
                    machine.read(neuron + s, f"cu.{q}.inputs", operand, machine.sx)
            last = _log_mu(
                machine, p, k, neuron + n - 1 + machine.dpu, c_at + k * machine.ce,
                slots[(t + 1) % 2] + k * machine.xe,
                p.y + true_t * p.y_pitch + k * machine.xe,
            )  # fmt: skip
        start += (p.cells - 1) * (pace if t == 0 else n) + n + tail
    return last + 1


def _log_mwl(machine: _Machine, p: _Pass, steps: int, begin: int, stage_from: int | None) -> int:
    """Accesses of a pass in MWL's order; gives the cycle in which it has ended.

    `stage_from` is the DRAM address of the network's input where it is still to be copied.
    """
    x_bytes, row_x, row_h = p.nx * machine.sx, p.nx * machine.sw, p.nh * machine.sw
    c_at = p.nh * machine.sx
    need = max(x_bytes, c_at + p.nh * machine.sc)
    machine.fits(f"an input of {p.shape.name}", "input_buffer_bytes", need)
    machine.fits(f"two rows of {p.shape.name}", "row_buffer_bytes", 2 * row_x)

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

    def partial(true_t: int, k: int, gate: int) -> int:
        return p.partials + ((true_t * p.cells + k) * 4 + gate) * machine.pe

    bursts_x, bursts_h = machine.bursts(row_x), machine.bursts(row_h)
    pace = max(steps * p.nx, machine.channel(4 * bursts_x + 4 * bursts_h))
    rows_h = p.rows + 4 * p.cells * bursts_x * machine.burst
    for k in range(p.cells):
        row_at = (k % 2) * row_x
        for gate, q in enumerate(GATES):
            machine.fetch(
                forward + k * pace + gate * bursts_x,
                p.rows + (4 * k + gate) * bursts_x * machine.burst,
                row_x, [f"cu.{q}.row"], row_at, machine.sw,
            )  # fmt: skip
        for gate, q in enumerate(GATES):
            machine.fetch(
                forward + k * pace + 4 * bursts_x + gate * bursts_h,
                rows_h + (4 * k + gate) * bursts_h * machine.burst,
                row_h, [f"cu.{q}.weights"], k * row_h, machine.sw,
            )  # fmt: skip
        for t, true_t in enumerate(p.times(steps)):
            first = forward + (k + 1) * pace + t * p.nx
            for s in range(p.nx):
                source = p.x + true_t * p.x_pitch + s * machine.sx
                machine.read(first + s, "intermediate", source, machine.sx)
                for q in GATES:
                    machine.read(first + s, f"cu.{q}.row", row_at + s * machine.sw, machine.sw)
                    machine.write(first + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
                    machine.read(first + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = first + p.nx - 1 + machine.dpu + machine.quantise
            for gate in range(4):
                machine.write(done, "intermediate", partial(true_t, k, gate), machine.pe)

    recurrent = forward + (p.cells + 1) * pace + machine.dpu + machine.quantise
    recurrent = _log_state(machine, p, recurrent, 0, 0, c_at)
    tail = machine.dpu + machine.lookup + machine.add
    tail += _latencies(machine, p.shape.peepholes).z
    last = before = 0
    for t, true_t in enumerate(p.times(steps)):
        start = recurrent + t * (p.cells * p.nh + tail)
        if t > 0:
            for s in range(p.nh):
                source = p.y + before * p.y_pitch + s * machine.sx
                machine.read(start + s, "intermediate", source, machine.sx)
                for buffer in _buffers("inputs"):
                    machine.write(start + s, buffer, s * machine.sx, machine.sx)
        for k in range(p.cells):
            neuron = start + k * p.nh
            for s in range(p.nh):
                weight = k * row_h + s * machine.sw
                for q in GATES:
                    machine.read(neuron + s, f"cu.{q}.weights", weight, machine.sw)
                    machine.read(neuron + s, f"cu.{q}.inputs", s * machine.sx, machine.sx)
            done = neuron + p.nh - 1 + machine.dpu
            for gate in range(4):
                machine.read(done, "intermediate", partial(true_t, k, gate), machine.pe)
            last = _log_mu(
                machine, p, k, done + machine.lookup + machine.add, c_at + k * machine.ce,
                None, p.y + true_t * p.y_pitch + k * machine.xe,
            )  # fmt: skip
        before = true_t
    return last + 1


def _in_dram(machine: _Machine, shape: Shape, mwl: bool) -> tuple[list[list[_Pass]], int]:
    """Passes with their weights laid out in DRAM, and the first free address behind them."""
    layers, free = [], 0
    for layer in shape:
        passes = []
        for one in layer:
            nx, nh = machine.vectors(one.inputs), machine.vectors(one.cells)
            rows = free
            if mwl:
                row = machine.burst_bytes(nx * machine.sw) + machine.burst_bytes(nh * machine.sw)
            else:
                row = machine.burst_bytes((nx + nh) * machine.sw)
            bias = rows + 4 * one.cells * row
            free = bias + (7 if one.peepholes else 4) * machine.burst_bytes(nh * machine.sw)
            passes.append(_Pass(one, nx, nh, rows, bias))
        layers.append(passes)
    return layers, free


def _states_in_dram(machine: _Machine, layers: list[list[_Pass]], free: int) -> int:
    """Give each pass its initial state in DRAM from `free` on; gives the next free address."""
    for passes in layers:
        for p in passes:
            p.initial, p.state = "dram", free
            free += machine.burst_bytes(p.nh * machine.sx) + machine.burst_bytes(p.nh * machine.sc)
    return free


def _parameter_bytes(machine: _Machine, p: _Pass) -> int:
    return p.nh * machine.sw * (2 if p.shape.peepholes else 1)


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
    _check_order(dataflow)
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
    machine = _Machine(arithmetic, accelerator)
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
        pitch = machine.vectors(sum(p.cells for p in passes)) * machine.sx
        before = 0
        for p in passes:
            p.x, p.x_pitch = source, p.nx * machine.sx
            p.y, p.y_pitch = target + before * machine.xe, pitch
            p.partials = target + steps * pitch
            before += p.cells
            stage_from = None
            if number == 0 and not mwl:
                p.x_from, p.x, p.x_pitch = "dram", inputs, x_pitch
            elif number == 0 and p is passes[0]:
                stage_from = inputs
            name, row = p.shape.name, (p.nh if mwl else p.nx + p.nh) * machine.sw
            machine.fits(f"the matrix of {name}", "weight_buffer_bytes", p.cells * row)
            machine.fits(
                f"bias and peepholes of {name}",
                "parameter_bank_bytes", _parameter_bytes(machine, p),
            )  # fmt: skip
            if p.x_from == "intermediate":
                machine.fits(f"the input of {name}", "intermediate_bytes", steps * p.x_pitch)
            size = steps * pitch + (steps * p.cells * 4 * machine.pe if mwl else 0)
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
    machine = _Machine(arithmetic, accelerator)
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
            free += steps * machine.burst_bytes(p.nh * machine.sx)

    state = 0
    for number, p in enumerate(passes):
        p.state_on_chip = p.y = state
        state += p.nh * (machine.sx + machine.sc)
        if p.x_from == "intermediate":
            p.x = passes[number - 1].y
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
                size = p.nh * machine.sx
                target = outputs[number] + step * machine.burst_bytes(size)
                cycle = machine.store(cycle, p.y, size, target)
    return sorted(machine.log), cycle


def _reside(machine: _Machine, passes: list[_Pass]) -> int:
    """Place all layers in the weight buffers; gives how many, from the first on, stay there."""
    matrices = [p.cells * (p.nx + p.nh) * machine.sw for p in passes]
    parameters = [_parameter_bytes(machine, p) for p in passes]
    for p, matrix, bank in zip(passes, matrices, parameters, strict=True):
        machine.fits(f"the matrix of {p.shape.name}", "weight_buffer_bytes", matrix)
        machine.fits(f"bias and peepholes of {p.shape.name}", "parameter_bank_bytes", bank)
    resident = len(passes)
    while not all(
        sum(sizes[:resident]) + max(sizes[resident:], default=0) <= room
        for sizes, room in (
            (matrices, machine.capacity),
            (parameters, machine.accelerator.parameter_bank_bytes),
        )
    ):
        resident -= 1
    for number, p in enumerate(passes):
        p.weights = sum(matrices[: min(number, resident)])
        p.parameters = sum(parameters[: min(number, resident)])
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
    _check_order(dataflow)
    _check_steps(steps)
    quantised = isinstance(arithmetic.partial, LinearFormat)
    totals = dict.fromkeys(OPERATIONS, 0)

    def count(**operations: int) -> None:
        for name, number in operations.items():
            totals[name] += number

    width = accelerator.width
    for layer in shape:
        for one in layer:
            n = math.ceil(Fraction(one.inputs, width)) + math.ceil(Fraction(one.cells, width))
            for _ in range(steps * one.cells):
                for _ in GATES:
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


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise AcceleratorError(
            "dataflow", repr(order), "is not known", f"use one of {', '.join(ORDERS)}"
        )


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise AcceleratorError("sequence", "steps", f"are {steps}", "give 0 or more")
