"""The arithmetic's definition in plain Python: one operation at a time, on exact rationals.

Every kernel is tested against this module, so it shares neither roundings nor tables with them: it
is written from ``docs/arithmetic.md``. Results are exact ratios, or bounds that are narrowed until
the rounding is decided. It is slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epur_emu.arithmetic import GATES, PLACES, Arithmetic
from epur_emu.errors import AcceleratorError, FormatError, NetworkError
from epur_emu.formats import (
    FP32,
    STOCHASTIC_BITS,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    Format,
    LinearFormat,
)
from epur_emu.network import LstmLayer

F32 = npt.NDArray[np.float32]

#: A format that single values are rounded to.
Plain = FloatFormat | FixedFormat

#: A result before it is rounded: numerator and positive denominator, or an infinity or NaN.
Exact = tuple[int, int] | float

#: What a rounding counts as: a position in ``[overflow, underflow, saturation]``, or None.
Event = int | None

#: Events by place: ``{place: [overflow, underflow, saturation]}``.
Counts = dict[str, list[int]]

ORDERS = ("epur", "epur-mwl", "epur-batch", "epur-tiled")
OVERFLOW, UNDERFLOW, SATURATION = range(3)

#: Random numbers of operations outside the DPU's trees; see ``docs/arithmetic.md``.
RANDOM_MU = 0xFFFF0000
RANDOM_STORED_SUM = 0xFFFFF000
RANDOM_FORWARD_RESULT = 0xFFFFF001

#: Significant bits of the scales of integer sums.
SCALE_BITS = 21

#: Beyond, exponentials lie outside all formats, and sigmoid and tanh within no unit of their ends.
FAR = 200


# Rounding. A Python float holds every value of every format (at most 31 bits of significand); it
# only holds them: all arithmetic is done on exact integers.


class Rounded(NamedTuple):
    """A value of a format, and what its rounding counts as."""

    value: float
    event: Event


def rounding(exact: Exact, form: Plain, mode: str = "nearest-even", random: int = 0) -> Rounded:
    """Round an exact result to a format.

    Parameters
    ----------
    exact : (int, int) or float
        Numerator and positive denominator, not necessarily coprime; or an infinity or NaN.
    form : FloatFormat or FixedFormat
        Fixed point that raises on overflow saturates here.
    mode : str
        One of `epur_emu.formats.MODES`.
    random : int
        Of 12 bits, for ``stochastic``.
    """
    if not isinstance(exact, tuple):
        return _round_special(exact, form)
    numerator, denominator = exact
    if numerator == 0:
        return Rounded(0.0, None)
    if isinstance(form, FloatFormat):
        return _round_float(numerator, denominator, form, mode, random)
    return _round_fixed(numerator, denominator, form, mode, random)


def _round_special(value: float, form: Plain) -> Rounded:
    """Rounding of an infinity or NaN."""
    if isinstance(form, FixedFormat):
        if math.isnan(value):
            return Rounded(0.0, None)
        if form.overflow == "wrap":
            return Rounded(0.0, SATURATION)
        code = form.max_code if value > 0 else form.min_code
        return Rounded(math.ldexp(code, -form.fraction_bits), SATURATION)
    if math.isnan(value):
        return Rounded(math.nan, None)
    if form.saturate:
        return Rounded(math.copysign(float(form.max), value), SATURATION)
    return Rounded(value if form.specials == "ieee" else math.nan, None)


def _to_integer(numerator: int, denominator: int, mode: str, random: int) -> int:
    """A ratio rounded to an integer in a mode."""
    negative = numerator < 0
    whole, rest = divmod(abs(numerator), denominator)
    away = False
    if mode == "nearest-even":
        away = 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1)
    elif mode == "nearest-away":
        away = 2 * rest >= denominator
    elif mode == "up":
        away = rest > 0 and not negative
    elif mode == "down":
        away = rest > 0 and negative
    elif mode == "stochastic":
        away = (rest << STOCHASTIC_BITS) // denominator + random >= 1 << STOCHASTIC_BITS
    whole += away
    return -whole if negative else whole


def _round_float(
    numerator: int, denominator: int, form: FloatFormat, mode: str, random: int
) -> Rounded:
    negative = numerator < 0
    magnitude = abs(numerator)
    exponent = magnitude.bit_length() - denominator.bit_length()  # of the ratio, or one too large
    if magnitude << max(0, -exponent) < denominator << max(0, exponent):
        exponent -= 1
    lowest = form.min_exponent
    tiny = exponent < lowest
    unit = (max(exponent, lowest) if form.subnormals else exponent) - form.mantissa_bits
    numerator <<= max(0, -unit)
    denominator <<= max(0, unit)
    significand = _to_integer(numerator, denominator, mode, random)

    if abs(significand) > _largest(form, unit):
        inwards = mode == "zero" or mode == ("up" if negative else "down")
        if form.saturate or inwards:
            return Rounded(math.copysign(float(form.max), significand), SATURATION)
        if form.specials == "ieee":
            return Rounded(math.copysign(math.inf, significand), OVERFLOW)
        return Rounded(math.nan, OVERFLOW)
    value = math.ldexp(significand, unit)
    if not tiny:
        return Rounded(value, None)
    if not form.subnormals:
        return Rounded(value if abs(value) == form.min_normal else 0.0, UNDERFLOW)
    exact = significand * denominator == numerator
    return Rounded(value, None if exact else UNDERFLOW)


def _largest(form: FloatFormat, unit: int) -> int:
    """Largest significand, counted in 2**unit, that does not exceed the format."""
    places = form.max_exponent - form.mantissa_bits - unit
    top = 2 ** (form.mantissa_bits + 1) - (2 if form.specials == "fn" else 1)
    return top << places if places >= 0 else 0


def _round_fixed(
    numerator: int, denominator: int, form: FixedFormat, mode: str, random: int
) -> Rounded:
    code = _to_integer(numerator << form.fraction_bits, denominator, mode, random)
    event = UNDERFLOW if code == 0 else None
    if not form.min_code <= code <= form.max_code:
        event = SATURATION
        if form.overflow == "wrap":
            codes = form.max_code - form.min_code + 1
            code = (code - form.min_code) % codes + form.min_code
        else:
            code = form.max_code if code > 0 else form.min_code
    return Rounded(math.ldexp(code, -form.fraction_bits), event)


def exact_of(value: Fraction | float) -> Exact:
    """A number as a ratio; infinities and NaN as they are."""
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return value.as_integer_ratio()


def round_value(
    value: Fraction | float, form: Plain, mode: str = "nearest-even", random: int = 0
) -> float:
    """A number rounded to a format, as a float; see `rounding`."""
    return rounding(exact_of(value), form, mode, random).value


# Operations, exactly.


def add(a: float, b: float) -> Exact:
    """a + b."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a + b  # the other one, or NaN
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return n * e + m * d, d * e


def multiply(a: float, b: float) -> Exact:
    """A product; infinity times 0 is NaN."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return n * m, d * e


def divide(a: float, b: float) -> Exact:
    """A quotient; a number other than 0 over 0 is an infinity of its sign, 0 over 0 NaN."""
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
    if not (math.isfinite(a) and math.isfinite(b)):
        return (0, 1) if math.isfinite(a) and math.isinf(b) else a / b
    (n, d), (m, e) = a.as_integer_ratio(), b.as_integer_ratio()
    return (n * e, d * m) if m > 0 else (-n * e, -d * m)


def clamp(value: float, limit: float) -> float:
    """The comparator: `value` held within [-limit, limit]; NaN passes."""
    if value > limit:
        return limit
    if value < -limit:
        return -limit
    return value


# Exponentials and what is made of them: irrational for every rational argument but 0, so that bounds
# that are narrowed decide every rounding.

Bounds = tuple[Fraction, Fraction]


@lru_cache(maxsize=4096)
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


def exp_bounds(value: Fraction, bits: int) -> Bounds:
    """Bounds of e to the power of `value`; the more `bits`, the closer."""
    if value == 0:
        return Fraction(1), Fraction(1)
    one = 1 << bits
    low, high = _exp_bounds(*abs(value).as_integer_ratio(), bits)
    if value > 0:
        return Fraction(low, one), Fraction(high, one)
    return Fraction(one, high), Fraction(one, low)


def sigmoid_bounds(value: Fraction, bits: int) -> Bounds:
    """Bounds of 1 / (1 + exp(-value))."""
    if abs(value) > FAR:
        tiny = Fraction(1, 2**FAR)
        return (1 - tiny, 1 - tiny / 2) if value > 0 else (tiny / 2, tiny)
    low, high = exp_bounds(value, bits)
    return low / (1 + low), high / (1 + high)


def tanh_bounds(value: Fraction, bits: int) -> Bounds:
    """Bounds of (exp(2 value) - 1) / (exp(2 value) + 1)."""
    if abs(value) > FAR:
        tiny = Fraction(1, 2**FAR)
        return (1 - tiny, 1 - tiny / 2) if value > 0 else (tiny / 2 - 1, tiny - 1)
    low, high = exp_bounds(2 * value, bits)
    return (low - 1) / (low + 1), (high - 1) / (high + 1)


def _narrowed(
    bounds: Callable[[int], Bounds], form: Plain, mode: str = "nearest-even", random: int = 0
) -> Rounded:
    """Rounding of what lies within bounds, which are narrowed until both ends round alike."""
    bits = 64
    while True:
        low, high = (rounding(end.as_integer_ratio(), form, mode, random) for end in bounds(bits))
        if low == high:
            return low
        bits *= 2


FUNCTIONS = {"exp": exp_bounds, "sigmoid": sigmoid_bounds, "tanh": tanh_bounds}


@lru_cache(maxsize=65536)
def function(
    name: str, value: float, form: Plain, mode: str = "nearest-even", random: int = 0
) -> Rounded:
    """A function of `FUNCTIONS`, correctly rounded.

    Parameters
    ----------
    name : {"exp", "sigmoid", "tanh"}
    value : float
        Above 200 exp counts as infinite, below -200 as less than any value.
    form, mode, random
        As for `rounding`.
    """
    if math.isnan(value):
        return rounding(math.nan, form)
    if name == "exp" and abs(value) > FAR:
        far = (2**FAR, 1) if value > 0 else (1, 2**FAR)
        return rounding(far if math.isfinite(value) else math.exp(value), form, mode, random)
    if math.isinf(value):
        value = math.copysign(2 * FAR, value)
    return _narrowed(lambda bits: FUNCTIONS[name](Fraction(value), bits), form, mode, random)


def exp(value: float, form: Plain, mode: str = "nearest-even", random: int = 0) -> float:
    """e to the power of `value`, correctly rounded; see `function`."""
    return function("exp", value, form, mode, random).value


# Random numbers of stochastic rounding.


def mix(x: int) -> int:
    """Scramble a 32-bit word."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def random_key(seed: int, position: int, step: int, neuron: int, gate: int) -> int:
    """What the operations of one gate of one neuron at one time step have in common."""
    return mix(mix(mix(mix(seed) ^ position) ^ step) ^ (neuron * 4 + gate))


def random_number(key: int, operation: int) -> int:
    """12 random bits of an operation."""
    return (key * operation + mix(key ^ 0x9E3779B9)) % 2**32 >> 32 - STOCHASTIC_BITS


# Operands.


def to_code(quotient: Fraction | float, largest: int) -> tuple[int, Event]:
    """Integer nearest to a quotient, ties to even, clipped to +-largest; NaN becomes 0."""
    if isinstance(quotient, float) and not math.isfinite(quotient):
        if math.isnan(quotient):
            return 0, None
        return (largest if quotient > 0 else -largest), SATURATION
    code = round(quotient)
    if abs(code) > largest:
        return (largest if code > 0 else -largest), SATURATION
    return code, UNDERFLOW if code == 0 and quotient != 0 else None


def linear_code(value: float, form: LinearFormat, alpha: Fraction) -> tuple[int, Event]:
    """Code of a value on the scale on which `alpha` is the largest code."""
    return to_code(Fraction(value) * form.max / alpha if math.isfinite(value) else value, form.max)


def block_values(values: Sequence[float], form: BlockFormat) -> list[tuple[float, Event]]:
    """Elements times their block's scale, and what each element's rounding counts as."""
    found: list[tuple[float, Event]] = []
    for begin in range(0, len(values), form.block):
        block = values[begin : begin + form.block]
        if not all(map(math.isfinite, block)):
            found += [(math.nan, None)] * len(block)
            continue
        largest = max(map(abs, block))
        scale = math.frexp(largest)[1] - 1 - form.max_exponent if largest else 0
        scale = max(-127, min(127, scale))
        for value in block:
            element, event = rounding(exact_of(math.ldexp(value, -scale)), form.element)
            found.append((math.ldexp(element, scale), event))
    return found


def significant(value: float, bits: int) -> float:
    """`value` rounded to so many significant bits, ties to even."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)


# One pass, operation by operation.


class PassResult(NamedTuple):
    """What `evaluate_pass` gives.

    Parameters
    ----------
    h : float32 array of shape (T, H)
        Outputs, each at its true time step.
    c : float32 array of shape (H,)
        Cell state after the step evaluated last.
    counts : dict
        ``{place: [overflow, underflow, saturation]}`` for every place, weights included.
    """

    h: F32
    c: F32
    counts: Counts


@dataclass
class _Case:
    """What all gates of a pass have in common."""

    layer: LstmLayer
    order: str
    width: int
    position: int
    alpha: Fraction
    alpha_x: Fraction
    alpha_h: Fraction
    counts: Counts = field(default_factory=lambda: {place: [0, 0, 0] for place in PLACES})

    def count(self, place: str, form: Format, event: Event) -> None:
        if event is None:
            return
        self.counts[place][event] += 1
        if event == SATURATION and isinstance(form, FixedFormat) and form.overflow == "raise":
            raise FormatError(
                self.layer.name, place, f"is out of range of {form}",
                "give it more integer bits, or let it saturate",
            )  # fmt: skip

    def vector(
        self, values: Sequence[float], form: Format, place: str, alpha: Fraction
    ) -> list[float]:
        """Operands of a format: codes of a linear one, else values; to nearest even."""
        found: Sequence[tuple[float, Event]]
        if isinstance(form, LinearFormat):
            found = [linear_code(value, form, alpha) for value in values]
        elif isinstance(form, BlockFormat):
            found = block_values(values, form)
        else:
            found = [rounding(exact_of(value), form) for value in values]
        for _, event in found:
            self.count(place, form, event)
        return [value for value, _ in found]


class _Unit:
    """The computation unit of one gate during a pass: its operands, roundings and counters."""

    def __init__(self, case: _Case, gate: int, arithmetic: Arithmetic) -> None:
        self.case = case
        self.gate = gate
        self.a = arithmetic
        self.limit = arithmetic.limit
        clip = case.layer.clip
        self.clip = None if clip is None else arithmetic.bound(clip)
        self.key = self.operation = 0
        layer = case.layer
        w_x, w_h = ([[float(w) for w in row] for row in m[gate]] for m in (layer.w_x, layer.w_h))
        self.scales: list[float] = []
        if arithmetic.integer:
            self.w_x, self.w_h = self._integer_rows(w_x, w_h)
        else:
            self.w_x, self.w_h = self._rows(w_x), self._rows(w_h)
        self.bias = self._parameters(layer.bias[gate])
        self.peepholes = None
        if layer.peepholes is not None and GATES[gate] != "g":
            self.peepholes = self._parameters(layer.peepholes["ifo".index(GATES[gate])])

    def _integer_rows(
        self, w_x: list[list[float]], w_h: list[list[float]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Codes of both matrices, and the scale of each row's sum, all in float64 as the text has it."""
        form, inputs = self.a.weight, self.a.input
        assert isinstance(form, LinearFormat)
        assert isinstance(inputs, LinearFormat)
        alphas = float(self.case.alpha_x), float(self.case.alpha_h)
        rows = [
            [abs(w) * alpha for row, alpha in zip(pair, alphas, strict=True) for w in row]
            for pair in zip(w_x, w_h, strict=True)
        ]
        largest = [max((w for w in row if math.isfinite(w)), default=0.0) for row in rows]
        if not form.per_row:
            largest = [max(largest)] * len(largest)
        found: tuple[list[list[float]], list[list[float]]] = [], []
        for k, peak in enumerate(largest):
            scale = significant(peak / form.max, SCALE_BITS) or 1.0
            for row, alpha, codes in zip((w_x[k], w_h[k]), alphas, found, strict=True):
                pairs = [to_code(w * alpha / scale, form.max) for w in row]
                for _, event in pairs:
                    self.case.count("weight", form, event)
                codes.append([code for code, _ in pairs])
            self.scales.append(significant(scale / inputs.max, SCALE_BITS))
        return found

    def _rows(self, matrix: list[list[float]]) -> list[list[float]]:
        """Operands of one matrix in the format of the weights."""
        form = self.a.weight
        if not isinstance(form, LinearFormat):
            return [self.case.vector(row, form, "weight", Fraction(1)) for row in matrix]
        largest = [max((abs(w) for w in row if math.isfinite(w)), default=0.0) for row in matrix]
        if not form.per_row:
            largest = [max(largest)] * len(largest)
        operands = []
        for row, peak in zip(matrix, largest, strict=True):
            scale = Fraction(peak or 1)
            codes = self.case.vector(row, form, "weight", scale)
            operands.append(self._numbers(codes, form, scale))
        return operands

    def _numbers(self, codes: list[float], form: LinearFormat, alpha: Fraction) -> list[float]:
        """Codes turned back into numbers, before the multiplier."""
        return [round_value(Fraction(code) * alpha / form.max, self.a.product) for code in codes]

    def _parameters(self, row: npt.NDArray[np.floating]) -> list[float]:
        """Biases or peephole weights, in the MU's format."""
        values = [float(value) for value in row]
        if isinstance(self.a.weight, FloatFormat | FixedFormat):
            values = self.case.vector(values, self.a.weight, "weight", Fraction(1))
        return self.case.vector(values, self.a.mu, "weight", Fraction(1))

    def operands(self, vector: list[float], alpha: Fraction) -> list[float]:
        """An input vector in this gate's format, as it enters the multipliers."""
        form = self.a.input
        if isinstance(form, LinearFormat) and not self.a.integer:
            return self._numbers(vector, form, alpha)
        return vector

    # Operations.

    def begin(self, step: int, neuron: int) -> None:
        """Go on to another neuron or time step."""
        if self.a.rounding == "stochastic":
            self.key = random_key(self.a.seed, self.case.position, step, neuron, self.gate)
        self.operation = 0

    def random(self, operation: int) -> int:
        return random_number(self.key, operation) if self.a.rounding == "stochastic" else 0

    def round(self, exact: Exact, place: str, operation: int, form: Plain | None = None) -> float:
        """Round the result of an operation in the mode; to `form` if that is not the place's."""
        form = form or getattr(self.a, place)
        value, event = rounding(exact, form, self.a.rounding, self.random(operation))
        self.case.count(place, form, event)
        return value

    def _next(self) -> int:
        self.operation += 1
        return RANDOM_MU + self.operation - 1

    def mu(self, exact: Exact, place: str = "mu") -> float:
        """Result of the MU's next operation."""
        return self.round(exact, place, self._next())

    def function(self, name: str, value: float) -> float:
        """A correctly rounded function, the MU's next operation."""
        random = self.random(self._next())
        value, event = function(name, value, self.a.mu, self.a.rounding, random)
        self.case.count("mu", self.a.mu, event)
        return value

    def receive(self, value: float) -> float:
        """What another unit sent, in this one's format."""
        return round_value(value, self.a.mu)

    # The DPU.

    def accumulate(
        self, weights: list[float], values: list[float], acc: float, first: int
    ) -> float:
        """Add a dot product to `acc`, sub-vector by sub-vector, the first numbered `first`."""
        width = self.case.width
        padding = [0.0] * (-len(weights) % width)
        weights, values = weights + padding, values + padding
        for s in range(len(weights) // width):
            part = slice(s * width, (s + 1) * width)
            number = 32 * (first + s)
            if self.a.integer:
                tree = self.integer_tree(weights[part], values[part])
            else:
                tree = self.tree(weights[part], values[part], number)
            acc = self.round(add(acc, tree), "accumulator", number + 31)
        return acc

    def integer_tree(self, weights: list[float], values: list[float]) -> float:
        """Sum of products of codes, exact."""
        return float(sum(int(w) * int(x) for w, x in zip(weights, values, strict=True)))

    def tree(self, weights: list[float], values: list[float], number: int) -> float:
        """Sum of a sub-vector's products."""
        sums = [
            self.round(multiply(w, x), "product", number + j)
            for j, (w, x) in enumerate(zip(weights, values, strict=True))
        ]
        number += 16
        while len(sums) > 1:
            sums = [
                self.round(add(a, b), "tree", number + m)
                for m, (a, b) in enumerate(zip(sums[::2], sums[1::2], strict=True))
            ]
            number += len(sums)
        return sums[0]

    def result(self, acc: float, k: int) -> Exact:
        """Number that the accumulated sum of row k stands for."""
        if not self.a.integer:
            return exact_of(acc)
        return (Fraction(acc) * Fraction(self.scales[k])).as_integer_ratio()

    def sum(self, k: int, x: list[float], h: list[float]) -> float:
        """The sum of neuron k, as it comes to the MU: its first operation."""
        behind = math.ceil(Fraction(len(x), self.case.width))
        form = self.a.mu
        if self.case.order != "epur-mwl":
            acc = self.accumulate(self.w_x[k], x, 0.0, 0)
            if self.case.order == "epur-tiled":  # stored, and put back
                acc = round_value(acc, self.a.accumulator)
            acc = self.accumulate(self.w_h[k], h, acc, behind)
            if self.a.integer:
                return self.round(self.result(acc, k), "accumulator", self._next(), form)
            return self.mu(exact_of(acc))
        forward = self.accumulate(self.w_x[k], x, 0.0, 0)
        if self.a.integer:
            exact = self.result(forward, k)
            forward = self.round(exact, "accumulator", RANDOM_FORWARD_RESULT, form)
        stored = self.stored(forward)
        recurrent = self.accumulate(self.w_h[k], h, 0.0, behind)
        if self.a.integer:
            exact = self.result(recurrent, k)
            recurrent = self.round(exact, "accumulator", self._next(), form)
        both = self.round(add(recurrent, stored), "accumulator", RANDOM_STORED_SUM, self.a.sum)
        return both if self.a.integer else self.mu(exact_of(both))

    def stored(self, partial: float) -> float:
        """What comes back of a forward partial sum that was stored; NaN stays."""
        form = self.a.partial
        if not isinstance(form, LinearFormat) or math.isnan(partial):
            return partial
        code, event = linear_code(partial, form, self.case.alpha)
        self.case.count("partial", form, event)
        return round_value(code * self.case.alpha / form.max, self.a.sum)

    # The MU.

    def clipped(self, r: float) -> float:
        """A function's argument, limited where the layer has a clip."""
        return r if self.clip is None else clamp(r, self.clip)

    def sigmoid(self, r: float) -> float:
        """Sigmoid by the arithmetic's method."""
        r = clamp(r, self.limit)
        if self.a.activation == "exact":
            return self.function("sigmoid", r)
        if self.a.segments:
            return self.line("sigmoid", r, 8)
        e = self.function("exp", -r)
        e = self.mu(add(e, 1.0))
        return self.mu(divide(1.0, e))

    def tanh(self, r: float) -> float:
        """Hyperbolic tangent by the arithmetic's method."""
        r = clamp(r, self.limit)
        if self.a.activation == "exact":
            return self.function("tanh", r)
        if self.a.segments:
            return self.line("tanh", r, 4)
        a = self.function("exp", r)
        q = self.function("exp", -r)
        difference = self.mu(add(a, -q))
        return self.mu(divide(difference, self.mu(add(a, q))))

    def line(self, name: str, r: float, high: int) -> float:
        """A function by segments of straight lines on [-high, high]."""
        assert self.a.segments
        r = clamp(r, high)
        slope, intercept = segment(name, r, high, self.a.segments, self.a.mu)
        return self.mu(add(self.mu(multiply(slope, r)), intercept))


@lru_cache(maxsize=65536)
def segment(name: str, r: float, high: int, segments: int, form: Plain) -> tuple[float, float]:
    """Slope and intercept of the segment of [-high, high] in which r lies; any for NaN."""
    width = Fraction(2 * high, segments)
    k = 0 if math.isnan(r) else min(segments - 1, math.floor((Fraction(r) + high) / width))
    bounds = FUNCTIONS[name]
    a = k * width - high

    def rise(bits: int) -> Bounds:
        (low_a, high_a), (low_b, high_b) = bounds(a, bits), bounds(a + width, bits)
        return (low_b - high_a) / width, (high_b - low_a) / width

    slope = _narrowed(rise, form).value

    def start(bits: int) -> Bounds:
        low, high = bounds(a, bits)
        return low - Fraction(slope) * a, high - Fraction(slope) * a

    return slope, _narrowed(start, form).value


def evaluate_pass(
    layer: LstmLayer,
    inputs: npt.ArrayLike,
    arithmetic: Arithmetic,
    order: str = "epur",
    alpha: float | None = None,
    h0: npt.ArrayLike | None = None,
    c0: npt.ArrayLike | None = None,
    width: int = 16,
    alpha_x: float = 1.0,
    alpha_h: float = 1.0,
    position: int = 0,
    first_step: int = 0,
) -> PassResult:
    """Evaluate one pass over a sequence, or one step of a decoder (T = 1, order ``epur``).

    Parameters
    ----------
    layer : LstmLayer
    inputs : float array of shape (T, I)
        Taken as float32, then rounded to the arithmetic's input format.
    arithmetic : Arithmetic
    order : {"epur", "epur-mwl", "epur-batch", "epur-tiled"}
        Whether forward and recurrent products share one accumulation, which tiles store and put back,
        or forward sums are stored.
    alpha : float, optional
        Largest forward partial sum, needed where MWL quantises; taken as float32, as the next two.
    h0, c0 : float arrays of shape (H,), optional
        Initial state, rounded to the formats of output and cell; +0 by default.
    width : int
        Width of the DPU, a power of two.
    alpha_x, alpha_h : float
        Largest |x| and |h|, on which linear formats have their scale.
    position : int
        Of the pass in its network, and
    first_step : int
        the number of time step 0: both for stochastic rounding alone.

    Returns
    -------
    PassResult
        h, c and counts.

    Raises
    ------
    NetworkError
        A shape does not suit the layer.
    AcceleratorError
        The order is unknown, or an alpha is missing or not positive and finite.
    FormatError
        Fixed point that raises overflowed, or the DPU's width has no stochastic mode.
    """
    with np.errstate(over="ignore"):
        x = np.asarray(inputs).astype(np.float32)
    if x.ndim != 2 or x.shape[1] != layer.inputs:
        raise NetworkError(
            layer.name, "inputs", f"have shape {x.shape}", f"give (steps, {layer.inputs})"
        )
    if order not in ORDERS:
        raise AcceleratorError(
            "dataflow", repr(order), "is not known", f"use one of {', '.join(ORDERS)}"
        )
    gates = [arithmetic.at(layer.name, gate) for gate in GATES]
    if arithmetic.rounding == "stochastic" and width != 16:
        raise FormatError(
            "arithmetic", "rounding", f"is stochastic with sub-vectors of {width}", "use 16"
        )
    stores = order == "epur-mwl" and any(isinstance(a.partial, LinearFormat) for a in gates)
    case = _Case(
        layer,
        order,
        width,
        position,
        _largest_number(layer, "alpha", alpha if stores else 1.0),
        _largest_number(layer, "alpha_x", alpha_x),
        _largest_number(layer, "alpha_h", alpha_h),
    )
    i, f, g, o = units = [_Unit(case, gate, a) for gate, a in enumerate(gates)]
    h = _state(case, "h0", h0, o.a.output)
    c = _state(case, "c0", c0, g.a.cell)
    forms = {unit.a.input for unit in units}

    outputs = np.zeros((len(x), layer.cells), np.float32)
    for t in reversed(range(len(x))) if layer.reverse else range(len(x)):
        x_t = [float(value) for value in x[t]]
        read_x = {form: case.vector(x_t, form, "input", case.alpha_x) for form in forms}
        read_h = {form: case.vector(h, form, "input", case.alpha_h) for form in forms}
        operands = [
            (
                unit.operands(read_x[unit.a.input], case.alpha_x),
                unit.operands(read_h[unit.a.input], case.alpha_h),
            )
            for unit in units
        ]
        h_new, c_new = [], []
        for k in range(layer.cells):
            sums = []
            for unit, (x_operands, h_operands) in zip(units, operands, strict=True):
                unit.begin(first_step + t, k)
                sums.append(unit.sum(k, x_operands, h_operands))
            h_k, c_k = _cell(i, f, g, o, k, sums, c[k])
            h_new.append(h_k)
            c_new.append(c_k)
        h, c = h_new, c_new
        outputs[t] = h
    return PassResult(outputs, np.array(c, np.float32), case.counts)


def _cell(
    i: _Unit, f: _Unit, g: _Unit, o: _Unit, k: int, sums: list[float], c_before: float
) -> tuple[float, float]:
    """Neuron k in the four multifunctional units, from the DPUs' sums: (h_t, c_t)."""
    gates = []
    for unit, r in ((i, sums[0]), (f, sums[1])):
        if unit.peepholes:
            p = unit.mu(multiply(unit.peepholes[k], unit.receive(c_before)))
            r = unit.mu(add(r, p))
        r = unit.mu(add(r, unit.bias[k]))
        gates.append(g.receive(unit.sigmoid(unit.clipped(r))))

    r = g.mu(add(sums[2], g.bias[k]))
    r = g.tanh(g.clipped(r))
    r = g.mu(multiply(r, gates[0]))
    q = g.mu(multiply(gates[1], c_before))
    r = g.mu(add(r, q))
    c = g.mu(exact_of(r), "cell")
    tanh_c = g.tanh(g.mu(exact_of(c)))

    r = o.mu(add(sums[3], o.bias[k]))
    if o.peepholes:
        p = o.mu(multiply(o.peepholes[k], o.receive(c)))
        r = o.mu(add(r, p))
    r = o.sigmoid(o.clipped(r))
    r = o.mu(multiply(r, o.receive(tanh_c)))
    output = o.a.output
    if not isinstance(output, LinearFormat):
        return o.mu(exact_of(r), "output"), c
    code, event = linear_code(r, output, o.case.alpha_h)
    o.case.count("output", output, event)
    return round_value(code * o.case.alpha_h / output.max, FP32), c


def _largest_number(layer: LstmLayer, name: str, value: float | None) -> Fraction:
    """The number on which a scale rests, as an exact value."""
    with np.errstate(over="ignore"):
        single = math.nan if value is None else float(np.float32(value))
    if not 0 < single < math.inf:
        raise AcceleratorError(layer.name, name, f"is {value}", "give a positive finite float32")
    return Fraction(single)


def _state(
    case: _Case, name: str, given: npt.ArrayLike | None, form: Plain | LinearFormat
) -> list[float]:
    cells = case.layer.cells
    if given is None:
        return [0.0] * cells
    with np.errstate(over="ignore"):
        array = np.asarray(given).astype(np.float32)
    if array.shape != (cells,):
        raise NetworkError(case.layer.name, name, f"has shape {array.shape}", f"give ({cells},)")
    values = [float(value) for value in array]
    if isinstance(form, LinearFormat):
        codes = [linear_code(value, form, case.alpha_h)[0] for value in values]
        return [round_value(code * case.alpha_h / form.max, FP32) for code in codes]
    return [round_value(value, form) for value in values]
