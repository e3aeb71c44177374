"""The oracle against numpy, exact decimals, brute force, and cases worked out by hand."""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Case, arithmetics, passes, plain_formats

from epur_emu import oracle
from epur_emu.arithmetic import ARITHMETICS, Override, arithmetic
from epur_emu.errors import AcceleratorError, FormatError, NetworkError
from epur_emu.formats import (
    BF16,
    FP16,
    FP32,
    INT8,
    MODES,
    TF32,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    LinearFormat,
    parse,
)
from epur_emu.network import LstmLayer

NUMPY = {FP16: np.float16, FP32: np.float32}
EPUR = arithmetic("epur-fp16")
KEPT = EPUR.with_partial(FP16)
SINGLE = arithmetic("epur-fp32+fp32")
STEADY = tuple(mode for mode in MODES if mode != "stochastic")


def bits(value):
    """Bit pattern as float64, one for all NaNs."""
    value = math.nan if math.isnan(value) else float(value)
    return np.float64(value).tobytes()


def same(found, wanted):
    return [bits(v) for v in np.ravel(found)] == [bits(v) for v in np.ravel(wanted)]


def unsigned_zero(value):
    return float(value) + 0.0


def random_values(form, count, seed):
    """Random bit patterns of fp16 or fp32, and all pairs of special values."""
    rng = np.random.default_rng(seed)
    kind = NUMPY[form]
    patterns = rng.integers(0, 2**form.bits, (2, count), dtype=np.uint64)
    a, b = patterns.astype(f"uint{form.bits}").view(kind).astype(np.float64)
    near = rng.integers(0, count, count // 2)  # of like magnitude, so that sums cancel
    b[near] = a[near].astype(kind) * kind(-1.25)
    special = [0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    special += [float(form.max), float(form.min_positive), -float(form.min_normal)]
    pairs = [(x, y) for x in special for y in special]
    return [(float(x), float(y)) for x, y in zip(a, b, strict=True)] + pairs


def values_of(form):
    """Every finite value >= 0 of a small format, in order, from the definition of its encoding."""
    found = []
    for code in range(2 ** (form.exponent_bits + form.mantissa_bits)):
        exponent, mantissa = divmod(code, 2**form.mantissa_bits)
        top = exponent == 2**form.exponent_bits - 1
        if top and (
            form.specials == "ieee"
            or (form.specials == "fn" and mantissa == 2**form.mantissa_bits - 1)
        ):
            break
        fraction = Fraction(mantissa, 2**form.mantissa_bits) + (exponent > 0)
        value = fraction * Fraction(2) ** (max(exponent, 1) - form.bias)
        if form.subnormals or exponent or not mantissa:
            found.append(value)
    return found


def unbounded(form):
    """Magnitudes on which a format rounds before its range limits them, to three binades above."""
    places = 2**form.mantissa_bits
    lowest = form.min_exponent - (0 if form.subnormals else 3)
    found = [Fraction(n, places) * Fraction(2) ** lowest for n in range(places)]
    if not form.subnormals:
        found = [Fraction(0)]
    for exponent in range(lowest, form.max_exponent + 4):
        found += [(1 + Fraction(n, places)) * Fraction(2) ** exponent for n in range(places)]
    return found


SMALL = [parse(name) for name in ("e4m3", "e2m1", "e3m2", "e2m0", "e4m3fn", "e3m2fn", "e2m1fn")]
SMALL += [
    parse(name) for name in ("e2m0f", "e2m1f", "e3m2f", "e4m3-nosub", "e3m2fn-sat", "e5m2-sat")
]
SMALL += [parse("e4m3fn-sat-nosub"), parse("e5m0")]


TINY = Fraction(1, 2**90)


class TestRounding:
    @pytest.mark.parametrize("form", [FP16, FP32], ids=str)
    def test_equals_numpy_on_doubles(self, form):
        rng = np.random.default_rng(1)
        exponents = rng.uniform(-30 if form is FP16 else -155, 20 if form is FP16 else 130, 10_000)
        values = rng.choice([-1, 1], 10_000) * 2.0**exponents
        with np.errstate(over="ignore"):
            wanted = values.astype(NUMPY[form])
        for value, want in zip(values, wanted, strict=True):
            got = oracle.round_value(Fraction(float(value)), form)
            assert bits(got) == bits(unsigned_zero(want)), value

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("bf16", "bfloat16"), ("e4m3fn", "float8_e4m3fn"), ("e5m2", "float8_e5m2"),
            ("e4m3", "float8_e4m3"), ("e3m4", "float8_e3m4"), ("e2m1f", "float4_e2m1fn"),
            ("e2m3f", "float6_e2m3fn"), ("e3m2f", "float6_e3m2fn"),
        ],
    )  # fmt: skip
    def test_equals_ml_dtypes(self, name, kind):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        form, dtype = parse(name), getattr(ml_dtypes, kind)
        rng = np.random.default_rng(2)
        low, high = float(form.min_positive) / 4, float(form.max) * 4
        values = rng.choice([-1, 1], 3000) * np.exp(
            rng.uniform(math.log(low), math.log(high), 3000)
        )
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        for value in values[np.isfinite(values)]:
            wanted = float(np.asarray(value).astype(dtype).astype(np.float32))
            assert bits(oracle.round_value(float(value), form)) == bits(unsigned_zero(wanted)), (
                value
            )

    def test_every_fp16_midpoint_and_its_neighbours(self):
        codes = np.arange(0x7C00, dtype=np.uint16)[::7]
        values = codes.view(np.float16).astype(np.float64)
        above = (codes + np.uint16(1)).view(np.float16).astype(np.float64)
        tiny = Fraction(1, 2**90)
        for code, low, high in zip(codes.tolist(), values, above, strict=True):
            middle = (Fraction(float(low)) + Fraction(min(float(high), 65536.0))) / 2
            assert oracle.round_value(middle - tiny, FP16) == low
            assert oracle.round_value(middle + tiny, FP16) == high
            assert oracle.round_value(middle, FP16) == (high if code % 2 else low)
            assert oracle.round_value(-middle, FP16, "nearest-away") == -high

    @pytest.mark.parametrize("form", SMALL, ids=str)
    def test_largest_and_smallest_values(self, form):
        values = values_of(form)
        assert (values[-1], values[1]) == (form.max, form.min_positive)
        assert all(oracle.round_value(v, form, mode) == v for v in values for mode in MODES)

    @pytest.mark.parametrize("mode", STEADY)
    @pytest.mark.parametrize("form", SMALL, ids=str)
    def test_float_equals_brute_force(self, form, mode):
        grid = unbounded(form)
        tests = {v * part for v in grid[1:-4] for part in (1, Fraction(5, 6), Fraction(7, 6))}
        tests |= {(a + b) / 2 for a, b in pairwise(grid[:-4])}
        for exact in tests:
            low = grid[bisect_right(grid, exact) - 1]
            high = grid[bisect_left(grid, exact)]
            for sign in (1, -1):
                outwards = mode == ("up" if sign > 0 else "down")
                inwards = mode in ("zero", "down" if sign > 0 else "up")
                if inwards or outwards:
                    chosen = low if inwards else high
                elif exact != (low + high) / 2:
                    chosen = low if exact - low < high - exact else high
                else:
                    odd = low != high and (low / (high - low)) % 2 == 1
                    chosen = high if odd or mode == "nearest-away" else low
                event = None
                if chosen > form.max:
                    stays = form.saturate or inwards
                    event = oracle.SATURATION if stays else oracle.OVERFLOW
                    beyond = math.inf if form.specials == "ieee" else math.nan
                    chosen = form.max if stays else beyond
                elif exact < form.min_normal:
                    if not form.subnormals or chosen != exact:
                        event = oracle.UNDERFLOW
                    if not form.subnormals and chosen < form.min_normal:
                        chosen = 0
                got = oracle.rounding((sign * exact).as_integer_ratio(), form, mode)
                assert bits(got.value) == bits(unsigned_zero(sign * chosen)), (exact, sign)
                assert got.event == event, (exact, sign)

    @pytest.mark.parametrize("mode", STEADY)
    @pytest.mark.parametrize("name", ["q1.2", "uq2.1", "q0.3-wrap", "uq1.1-wrap", "q3.0-raise"])
    def test_fixed_equals_brute_force(self, name, mode):
        form = parse(name)
        unit = form.epsilon
        lowest = -int(form.max / unit) - 1 if form.signed else 0
        codes = range(lowest, int(form.max / unit) + 1)
        for twelfth in range(-400, 401):
            exact = Fraction(twelfth, 12) * unit
            chosen = {
                "zero": math.trunc, "up": math.ceil, "down": math.floor, "nearest-even": round,
                "nearest-away": lambda v: int(math.copysign(math.floor(abs(v) + Fraction(1, 2)), v)),
            }[mode](exact / unit)  # fmt: skip
            if chosen in codes:
                event = oracle.UNDERFLOW if chosen == 0 != twelfth else None
            else:
                event = oracle.SATURATION
                if form.overflow == "wrap":
                    chosen = next(c for c in codes if (c - chosen) % len(codes) == 0)
                else:
                    chosen = min(max(chosen, codes[0]), codes[-1])
            got = oracle.rounding(exact.as_integer_ratio(), form, mode)
            assert bits(got.value) == bits(float(chosen * unit)), exact
            assert got.event == event, exact

    @pytest.mark.parametrize(
        ("name", "inf", "event"),
        [
            ("fp16", math.inf, None), ("fp16-sat", 65504.0, 2), ("e4m3fn", math.nan, None),
            ("e4m3fn-sat", 448.0, 2), ("e2m1f", 6.0, 2), ("q3.4", 127 / 16, 2),
            ("q3.4-wrap", 0.0, 2), ("q3.4-raise", 127 / 16, 2),
        ],
    )  # fmt: skip
    def test_infinities_and_nan(self, name, inf, event):
        form = parse(name)
        for mode in MODES:
            got = oracle.rounding(math.inf, form, mode, 4095)
            assert (bits(got.value), got.event) == (bits(inf), event)
            fixed = isinstance(form, FixedFormat)
            lowest = -8.0 if fixed and inf else -inf
            assert bits(oracle.round_value(-math.inf, form, mode)) == bits(unsigned_zero(lowest))
            got = oracle.rounding(math.nan, form, mode)
            assert (bits(got.value), got.event) == (bits(0.0 if fixed else math.nan), None)
        assert oracle.rounding(-math.inf, parse("uq3.4")) == (0.0, 2)

    def test_unreduced_ratio(self):
        assert oracle.rounding((-3 * 10**40, 10**40), BF16).value == -3.0

    def test_cases_of_the_design(self):
        """Through the nearest float32 all would come out otherwise."""
        tiny = Fraction(1, 2**24)
        assert oracle.round_value(1 + tiny, FP16, "up") == 1.0009765625
        assert oracle.round_value((1 + Fraction(1, 2**8)) + tiny, BF16) == 1.0078125
        product = Fraction(1, 2**137) * (1 + tiny)
        assert oracle.round_value(product, TF32) == 2.0**-136
        assert oracle.round_value(Fraction(1, 2**137), TF32) == 0.0

    @pytest.mark.parametrize("name", ["fp16", "e4m3fn", "q3.2", "fp16-nosub"])
    def test_stochastic_counts_of_all_random_numbers(self, name):
        form = parse(name)
        low, high = Fraction(3, 2), Fraction(3, 2) + form.epsilon
        rests = Fraction(0), Fraction(1, 3), Fraction(1, 4096), Fraction(1, 5000), 1 - TINY
        for rest, sign in zip(rests, (1, -1, 1, -1, -1), strict=True):
            exact = sign * (low + rest * form.epsilon)
            found = Counter(
                oracle.round_value(exact, form, "stochastic", random) for random in range(4096)
            )
            ups = math.floor(rest * 4096)
            wanted = {float(sign * low): 4096 - ups, float(sign * high): ups}
            assert found == {value: count for value, count in wanted.items() if count}

    @settings(max_examples=100)
    @given(
        plain_formats(raises=True),
        st.fractions() | st.floats(allow_nan=False, allow_infinity=False),
        st.integers(0, 4095),
    )
    def test_modes_enclose(self, form, value, random):
        """Values stay; every mode gives what down or up gives; zeros have no sign."""
        assume(not (isinstance(form, FixedFormat) and form.overflow == "wrap"))
        down, up = (oracle.round_value(value, form, mode) for mode in ("down", "up"))
        assert not down > up
        for mode in MODES:
            found = oracle.round_value(value, form, mode, random)
            assert bits(found) in (bits(down), bits(up))
            assert bits(oracle.round_value(found, form, mode, random)) == bits(found)
            assert found != 0 or math.copysign(1, found) == 1


class TestOperations:
    @pytest.mark.parametrize("form", [FP16, FP32], ids=str)
    @pytest.mark.parametrize("name", ["add", "multiply", "divide"])
    def test_equals_numpy(self, form, name):
        kind = NUMPY[form]
        ufunc = getattr(np, name)
        operation = getattr(oracle, name)
        with np.errstate(all="ignore"):
            for a, b in random_values(form, 4000, 2):
                # A double rounds fp16 results innocuously: 53 >= 2 * 11 + 2.
                wanted = ufunc(kind(a), kind(b)) if form is FP32 else kind(ufunc(a, b))
                if name == "divide" and b == 0 and math.copysign(1, b) < 0:
                    wanted = -wanted
                got = oracle.rounding(operation(a, b), form).value
                assert bits(got) == bits(unsigned_zero(wanted)), (a, b)

    def test_quotients_of_zeros_and_infinities(self):
        inf, nan = math.inf, math.nan
        cases = {
            (3.0, 0.0): inf, (-3.0, 0.0): -inf, (inf, 0.0): inf,
            (0.0, 0.0): nan, (nan, 0.0): nan, (inf, -inf): nan, (-1.0, inf): 0.0, (0.0, -inf): 0.0,
            (-inf, -2.0): inf, (0.5, -0.0): inf,
        }  # fmt: skip
        for (a, b), wanted in cases.items():
            assert bits(oracle.rounding(oracle.divide(a, b), FP16).value) == bits(wanted), (a, b)

    @pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
    @pytest.mark.parametrize(
        "form", [parse(n) for n in ("fp16", "fp32", "q3.12", "e4m3fn-nosub")], ids=str
    )
    def test_functions_equal_decimals(self, form, name):
        rng = np.random.default_rng(3)
        values = rng.uniform(-18, 12, 60).tolist() + (rng.normal(size=40) * 1e-3).tolist()
        values += [*rng.uniform(-105, 89, 40).tolist(), 2.0**-24, -(2.0**-40), 2.0**-149]
        with localcontext() as context:
            context.prec = 160
            for number, value in enumerate(values):
                x = Decimal(oracle.round_value(value, FP32))
                wanted = {
                    "exp": lambda x=x: x.exp(),
                    "sigmoid": lambda x=x: 1 / (1 + (-x).exp()),
                    "tanh": lambda x=x: ((2 * x).exp() - 1) / ((2 * x).exp() + 1),
                }[name]()  # fmt: skip
                for mode in MODES:
                    got = oracle.function(name, float(x), form, mode, 37 * number)
                    ratio = wanted.as_integer_ratio()
                    assert got == oracle.rounding(ratio, form, mode, 37 * number), (x, mode)

    def test_functions_where_they_are_exact_and_at_their_ends(self):
        for mode in MODES:
            for name, wanted in (("exp", 1.0), ("sigmoid", 0.5), ("tanh", 0.0)):
                assert oracle.function(name, 0.0, FP16, mode, 4095) == (wanted, None)
        assert oracle.function("sigmoid", 1e30, FP16, "down").value == 1 - 2.0**-11
        assert oracle.function("sigmoid", math.inf, FP16) == (1.0, None)
        assert oracle.function("sigmoid", -1e30, FP16, "up") == (2.0**-24, oracle.UNDERFLOW)
        assert oracle.function("tanh", -math.inf, FP32, "zero").value == -1 + 2.0**-24
        assert oracle.function("tanh", 2.0**-24, FP16, "zero") == (0.0, oracle.UNDERFLOW)
        assert oracle.function("tanh", 250.0, FP32, "stochastic", 0).value == 1 - 2.0**-24
        assert oracle.function("tanh", 250.0, FP32, "stochastic", 1).value == 1.0
        for name in ("exp", "sigmoid", "tanh"):
            assert bits(oracle.function(name, math.nan, FP16).value) == bits(math.nan)
            assert oracle.function(name, math.nan, parse("q3.12")) == (0.0, None)

    def test_exp_at_the_ends(self):
        assert oracle.exp(-math.inf, FP16) == 0.0
        assert oracle.exp(math.inf, FP16) == math.inf
        assert oracle.exp(11.09375, FP16) == math.inf  # e**x = 65,759, above 65,520
        assert oracle.exp(11.09375, FP16, "zero") == 65504.0
        assert oracle.exp(11.0859375, FP16) == 65248.0  # e**x = 65,247.1
        assert oracle.exp(11.0859375, FP16, "down") == 65216.0
        assert oracle.exp(-1e38, FP32) == 0.0
        assert oracle.exp(-1e38, FP32, "up") == 2.0**-149
        assert oracle.exp(1e38, FP32) == math.inf
        assert oracle.exp(2.0**-149, FP32) == 1.0
        assert oracle.exp(2.0**-149, FP32, "up") == 1.0 + 2.0**-23
        # Half of the smallest subnormal is 2**-25; ln(2**-25) = -17.3287.
        assert oracle.exp(-17.328125, FP16) == 2.0**-24
        assert oracle.exp(-17.34375, FP16) == 0.0

    def test_clamp_passes_nan(self):
        assert oracle.clamp(12.0, 11.0) == 11.0
        assert oracle.clamp(-math.inf, 11.0) == -11.0
        assert math.isnan(oracle.clamp(math.nan, 11.0))

    def test_segments(self):
        """Two segments of tanh on [-4, 4]: slope tanh(4) / 4, through 0 and the ends."""
        slope = float(np.float16(math.tanh(4) / 4))
        for r in (-4.0, -1.0, 0.0, 2.0, 4.0):
            first = r < 0
            got = oracle.segment("tanh", r, 4, 2, FP16)
            assert got == (slope, float(np.float16(-math.tanh(4) + slope * 4)) if first else 0.0)
        # Sixteen of sigmoid on [-8, 8]: 7.5 lies in the last, from 7 to 8, and so does 8.
        f7, f8 = (1 / (1 + math.exp(-v)) for v in (7, 8))
        slope = float(np.float16(f8 - f7))
        wanted = slope, float(np.float16(f7 - 7 * slope))
        assert oracle.segment("sigmoid", 7.5, 8, 16, FP16) == wanted
        assert oracle.segment("sigmoid", 8.0, 8, 16, FP16) == wanted
        assert oracle.segment("sigmoid", 6.99, 8, 16, FP16) != wanted
        assert oracle.segment("sigmoid", 0.0, 8, 16, FP16)[1] == 0.5


class TestRandomNumbers:
    def test_mix_by_hand(self):
        # 1: unchanged by the first shift; times 0x7feb352d; its upper half folded; and so on.
        x = 0x7FEB352D
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        assert oracle.mix(1) == x ^ (x >> 16)
        assert oracle.mix(0) == 0

    def test_are_uniform_and_differ_by_every_argument(self):
        key = oracle.random_key(1, 2, 3, 4, 1)
        others = {
            oracle.random_key(*arguments)
            for arguments in (
                (0, 2, 3, 4, 1), (1, 1, 3, 4, 1), (1, 2, 4, 4, 1), (1, 2, 3, 5, 1), (1, 2, 3, 4, 0),
            )
        }  # fmt: skip
        assert len(others | {key}) == 6
        numbers = np.array([oracle.random_number(key, n) for n in range(20_000)])
        assert (numbers.min() >= 0) & (numbers.max() <= 4095)
        assert abs(numbers.mean() - 2047.5) < 5 * 4096 / math.sqrt(12 * len(numbers))
        assert np.bincount(numbers >> 8, minlength=16).min() > 1100

    @pytest.mark.parametrize("pair", [(0, 1), (0, 16), (14, 23), (31, 63), (0xFFFF0000, 0xFFFFF000)])
    def test_of_two_operations_are_independent(self, pair):
        """Over keys of many neurons, every pair of upper bits is as frequent as any other."""
        count = 2**14
        keys = [oracle.random_key(5, 0, step, neuron, 0) for step in range(64) for neuron in range(256)]
        high = np.array([[oracle.random_number(key, n) >> 8 for n in pair] for key in keys])
        cells = np.bincount(high[:, 0] * 16 + high[:, 1], minlength=256)
        squared = ((cells - count / 256) ** 2).sum() / (count / 256)
        assert 150 < squared < 380  # of 255 degrees of freedom: 5 standard deviations


def layer_of(inputs, cells, seed=0, peepholes=False, reverse=False, scale=0.5):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) * scale).astype(np.float32)

    return LstmLayer(
        "layer", draw(4, cells, inputs), draw(4, cells, cells), draw(4, cells),
        draw(3, cells) if peepholes else None, reverse,
    )  # fmt: skip


def constant_layer(bias, inputs=1, cells=1, peepholes=None):
    """All weights zero; one bias, and one peephole, for each gate."""
    return LstmLayer(
        "constant",
        np.zeros((4, cells, inputs), np.float32),
        np.zeros((4, cells, cells), np.float32),
        np.repeat(np.array(bias, np.float32)[:, None], cells, axis=1),
        None if peepholes is None else np.array(peepholes, np.float32)[:, None],
    )


def gate_layer(w_x, w_h, gate=3, bias=100.0, own_bias=0.0):
    """One cell, whose one gate has these weights; the other gates have but a bias."""
    arrays = np.zeros((4, 1, len(w_x)), np.float32), np.zeros((4, 1, 1), np.float32)
    arrays[0][gate, 0], arrays[1][gate, 0] = w_x, w_h
    biases = np.full((4, 1), bias, np.float32)
    biases[gate] = own_bias
    return LstmLayer("gate", *arrays, biases)


def unit_of(layer, form, gate=3, order="epur", width=16, **alphas):
    """One gate's computation unit."""
    numbers = {"alpha": 1, "alpha_x": 1, "alpha_h": 1} | alphas
    case = oracle._Case(layer, order, width, 0, *map(Fraction, numbers.values()))
    return oracle._Unit(case, gate, form)


# fp16: e = 1392/512, 1/e = 1507/4096; difference and sum round to 1204/512 and 1580/512, the
# quotient to 1561/2048 (the nearest fp16 to tanh 1 is 1560/2048).
TANH_1 = 1561 / 2048
# fp16: e**-2 = 1109/8192, 1 + it = 1163/1024, its inverse 1803/2048.
SIGMOID_2 = 1803 / 2048


class TestHalfPrecision:
    def test_zeros(self):
        h, c, _ = oracle.evaluate_pass(constant_layer([0, 0, 0, 0]), [[1.0]], EPUR, c0=[1.0])
        assert c[0] == 0.5  # forget gate 1/2, candidate (1 - 1) / 2
        # tanh(1/2): 1688/1024 and 1242/2048, then 1067/1024 over 1154/512 (a tie, to even) is
        # 1894/4096; half of it is h.
        assert h[0, 0] == 947 / 4096
        assert h.shape == (1, 1)
        assert h.dtype == np.float32

    def test_saturated_gates_by_hand(self):
        # The clamp makes every bias 11: gates 1, candidate 1, so c = 1 and then 2.
        h, c, _ = oracle.evaluate_pass(constant_layer([100] * 4), [[0.0]], EPUR)
        assert (h[0, 0], c[0]) == (TANH_1, 1.0)
        _, c, _ = oracle.evaluate_pass(constant_layer([100] * 4), [[0.0], [0.0]], EPUR)
        assert c[0] == 2.0

    def sum_layer(self, bias):
        """Output gate 2048 x + h0 + h1 + bias, the other gates 1."""
        w_x, w_h = np.zeros((4, 2, 1), np.float32), np.zeros((4, 2, 2), np.float32)
        w_x[3], w_h[3] = 2048, 1
        biases = np.full((4, 2), 100, np.float32)
        biases[3] = bias
        return LstmLayer("sum", w_x, w_h, biases)

    def test_recurrent_vector_begins_a_sub_vector_of_its_own(self):
        # 2048 + (1 + 1) = 2050 in fp16, but (2048 + 1) + 1 = 2048.
        h, _, _ = oracle.evaluate_pass(self.sum_layer(-2048), [[1.0]], EPUR, h0=[1, 1])
        assert h[0, 0] == h[0, 1] == float(np.float16(SIGMOID_2 * TANH_1))

    def test_mwl_clips_to_alpha(self):
        h, _, counts = oracle.evaluate_pass(
            self.sum_layer(-2000), [[1.0]], EPUR, "epur-mwl", alpha=2000.0, h0=[1, 1]
        )
        assert h[0, 0] == float(np.float16(SIGMOID_2 * TANH_1))
        assert counts["partial"] == [0, 0, 2]

    @pytest.mark.parametrize("form", [EPUR, replace(EPUR, rounding="down")], ids=["even", "down"])
    def test_tree_adds_adjacent_pairs_then_accumulates(self, form):
        unit = unit_of(gate_layer([1.0], [1.0]), form)

        def total(weights, acc=0.0):
            return unit.accumulate(weights + [0.0] * (20 - len(weights)), [1.0] * 20, acc, 0)

        assert total([2048.0, 1.0, 1.0]) == 2048.0  # (2048 + 1) + (1 + 0)
        assert total([1.0, 1.0, 2048.0]) == 2050.0  # (1 + 1) + (2048 + 0)
        assert total([1.0] * 16 + [2048.0]) == 2064.0
        # 3 at once: 2051 lies between 2050 and 2052.
        assert total([1.0] * 3, acc=2048.0) == (2052.0 if form is EPUR else 2050.0)
        assert total([1.0] + [0.0] * 15 + [1.0], acc=2048.0) == 2048.0  # one by one

    def test_width_of_the_tree(self):
        layer = gate_layer([2048.0, 1.0, 1.0], [0.0])
        sums = {
            width: unit_of(layer, EPUR, width=width).accumulate(
                [2048.0, 1.0, 1.0], [1.0] * 3, 0.0, 0
            )
            for width in (1, 2, 4, 32)
        }
        assert sums == {1: 2048.0, 2: 2048.0, 4: 2048.0, 32: 2048.0}
        unit = unit_of(layer, EPUR, width=2)
        assert unit.accumulate([2048.0, 0.0, 1.0, 1.0], [1.0] * 4, 0.0, 0) == 2050.0
        assert unit.accumulate([2048.0, 1.0, 0.0, 1.0], [1.0] * 4, 0.0, 0) == 2048.0

    def test_stored_partials(self):
        unit = unit_of(gate_layer([1.0], [1.0]), EPUR, alpha=127)  # one step is 1
        found = [unit.stored(v) for v in (0.5, 1.5, 2.5, -1.5, 126.75, 200.0)]
        assert found == [0, 2, 2, -2, 127, 127]
        assert bits(unit.stored(-0.25)) == bits(0.0)
        assert (unit.stored(math.inf), unit.stored(-math.inf)) == (127.0, -127.0)
        assert math.isnan(unit.stored(math.nan))
        assert unit.case.counts["partial"] == [0, 2, 3]
        # One step of alpha = 1 is 1/127, here rounded to fp16.
        unit = unit_of(gate_layer([1.0], [1.0]), replace(EPUR, rounding="up"))
        assert unit.stored(0.007) == float(np.float16(1 / 127))
        coarse = unit_of(gate_layer([1.0], [1.0]), EPUR.with_partial(LinearFormat(4)))
        assert coarse.stored(0.007) == 0.0
        assert unit_of(gate_layer([1.0], [1.0]), KEPT).stored(1 + 2.0**-10) == 1 + 2.0**-10

    @pytest.mark.parametrize("order", oracle.ORDERS)
    @pytest.mark.parametrize("peepholes", [False, True])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_near_a_plain_lstm(self, order, peepholes, reverse):
        layer = layer_of(3, 4, 5, peepholes, reverse)
        rng = np.random.default_rng(6)
        x, h, c = rng.normal(size=(3, 3)), rng.normal(size=4) * 0.3, rng.normal(size=4)
        wanted, last = plain_lstm(layer, x, h, c)
        got_h, got_c, _ = oracle.evaluate_pass(layer, x, SINGLE, order, h0=h, c0=c)
        np.testing.assert_allclose(got_h, wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got_c, last, rtol=0, atol=1e-6)

    def test_orders_differ_only_where_they_round(self):
        layer = layer_of(20, 3, 7, scale=1.0)
        x = np.random.default_rng(8).normal(size=(4, 20))
        together = oracle.evaluate_pass(layer, x, EPUR)
        apart = oracle.evaluate_pass(layer, x, KEPT, "epur-mwl")
        coarse = oracle.evaluate_pass(layer, x, EPUR, "epur-mwl", alpha=20.0)
        assert not np.array_equal(together.h, coarse.h)
        np.testing.assert_allclose(together.h, apart.h, atol=0.02)

    def test_nan_is_canonical_and_spreads_no_further_than_its_sums(self):
        layer = layer_of(2, 2, 1)
        h, _, _ = oracle.evaluate_pass(layer, [[1.0, 0.0], [-math.nan, 0.0]], EPUR)
        assert np.isfinite(h[0]).all()
        assert (h[1].view(np.uint32) == 0x7FC00000).all()

    def test_infinite_inputs_are_clamped(self):
        layer = layer_of(1, 1, 2)
        h, _, counts = oracle.evaluate_pass(layer, [[math.inf], [1e9]], EPUR)
        assert np.isfinite(h).all()
        assert counts["input"] == [1, 0, 0]  # 1e9; an infinity stays

    def test_no_steps(self):
        h, c, _ = oracle.evaluate_pass(layer_of(2, 3), np.zeros((0, 2)), EPUR, c0=[1, 2, 1 / 3])
        assert h.shape == (0, 3)
        assert c.tolist() == [1, 2, float(np.float16(1 / 3))]

    @pytest.mark.parametrize("alpha", [None, 0.0, -1.0, math.inf, math.nan, 1e-60, 1e60])
    def test_alphas_are_checked(self, alpha):
        with pytest.raises(AcceleratorError, match="alpha"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, "epur-mwl", alpha)
        with pytest.raises(AcceleratorError, match="alpha_h"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, alpha_h=alpha)
        oracle.evaluate_pass(layer_of(1, 1), [[1.0]], KEPT, "epur-mwl", alpha)

    def test_bad_input_is_refused(self):
        with pytest.raises(NetworkError, match="inputs"):
            oracle.evaluate_pass(layer_of(2, 1), [[1.0]], EPUR)
        with pytest.raises(NetworkError, match="c0"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, c0=[1, 2])
        with pytest.raises(AcceleratorError, match="known"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, "sideways")
        with pytest.raises(FormatError, match="stochastic"):
            oracle.evaluate_pass(
                layer_of(1, 1), [[1.0]], replace(EPUR, rounding="stochastic"), width=8
            )


def plain_lstm(layer, x, h, c):
    """The layer in float64: (T, H) outputs and the last cell state."""

    def sigmoid(r):
        return 1 / (1 + np.exp(-r))

    w_x, w_h, bias = (a.astype(np.float64) for a in (layer.w_x, layer.w_h, layer.bias))
    peep = np.zeros((3, layer.cells)) if layer.peepholes is None else layer.peepholes
    out = np.zeros((len(x), layer.cells))
    for t in reversed(range(len(x))) if layer.reverse else range(len(x)):
        i, f, g, o = w_x @ x[t] + w_h @ h + bias
        c = sigmoid(f + peep[1] * c) * c + sigmoid(i + peep[0] * c) * np.tanh(g)
        out[t] = h = sigmoid(o + peep[2] * c) * np.tanh(c)
    return out, c


def half(value):
    return float(np.float16(value))


class TestIntegers:
    """w_x = (0.4, -1), w_h = 0.25, alpha_x = 2, alpha_h = 1, 127 codes.

    One step is 2 / 127 of the largest |w| alpha. Codes of the weights: 0.8, -2 and 0.25 times 63.5
    are 51, -127, 16. Codes of x = (1, 0.3) and h = 0.5: 63.5 (a tie, to even), 19.05 and 63.5 are
    64, 19, 64. Forward 51 * 64 - 127 * 19 = 851, recurrent 16 * 64 = 1024.
    """

    layer = gate_layer([0.4, -1.0], [0.25])
    scale = 2 / 127 / 127
    int8 = ARITHMETICS["epur-int8"]

    def sum_of(self, form, order="epur", **alphas):
        unit = unit_of(self.layer, form, order=order, alpha_x=2.0, **alphas)
        x = unit.case.vector([1.0, float(np.float32(0.3))], form.input, "input", unit.case.alpha_x)
        h = unit.case.vector([0.5], form.input, "input", unit.case.alpha_h)
        assert (x, h) == ([64, 19], [64])
        assert (unit.w_x, unit.w_h) == ([[51, -127]], [[16]])
        return unit.sum(0, x, h), unit.case.counts

    def test_epur(self):
        assert self.sum_of(self.int8)[0] == half(1875 * self.scale)

    def test_mwl(self):
        forward, recurrent = half(851 * self.scale), half(1024 * self.scale)
        kept = self.int8.with_partial(FP16)
        assert self.sum_of(kept, "epur-mwl")[0] == half(forward + recurrent)
        stored = half(round(forward * 127 / 0.5) * 0.5 / 127)
        assert self.sum_of(self.int8, "epur-mwl", alpha=0.5)[0] == half(stored + recurrent)

    def test_accumulators_that_are_too_narrow(self):
        def narrow(policy):
            wide = FixedFormat(10, 0, overflow=policy)
            return replace(self.int8, product=wide, tree=wide, accumulator=wide)

        found, counts = self.sum_of(narrow("saturate"))
        assert found == half(1023 * self.scale)
        assert counts["accumulator"] == [0, 0, 1]
        found, counts = self.sum_of(narrow("wrap"))
        assert found == half((1875 - 2048) * self.scale)
        assert counts["accumulator"] == [0, 0, 1]
        with pytest.raises(FormatError, match=r"gate: accumulator is out of range of q10\.0-raise"):
            self.sum_of(narrow("raise"))

    def test_the_output_is_a_code(self):
        h, c, _ = oracle.evaluate_pass(
            self.layer, [[1.0, 0.3]], self.int8, h0=[0.5], alpha_x=2.0, alpha_h=1.0
        )
        e = half(1 + half(math.exp(-half(1875 * self.scale))))
        out = half(half(1 / e) * TANH_1)
        assert c[0] == 1.0
        assert h[0, 0] == np.float32(round(out * 127) / 127)

    def test_scales_of_rows_and_gates(self):
        w_x = np.array([[0.5, 0.0], [0.0, 0.0], [-4.0, 1.0]], np.float32)
        layer = LstmLayer(
            "l", np.stack([w_x] * 4), np.zeros((4, 3, 3), np.float32), np.zeros((4, 3), np.float32)
        )
        rows = unit_of(layer, self.int8)
        assert rows.w_x == [[127, 0], [0, 0], [-127, 32]]
        # 1 stands for the row of zeros.
        assert rows.scales == [
            oracle.significant(oracle.significant(step, 21) / 127, 21)
            for step in (0.5 / 127, 1.0, 4 / 127)
        ]
        whole = unit_of(layer, replace(self.int8, weight=INT8))
        assert whole.w_x == [[16, 0], [0, 0], [-127, 32]]
        assert len(set(whole.scales)) == 1

    def test_what_is_not_finite_has_a_code(self):
        layer = gate_layer([0.5, math.inf, math.nan], [-math.inf])
        unit = unit_of(layer, self.int8)
        assert (unit.w_x, unit.w_h) == ([[127, 127, 0]], [[-127]])
        x = unit.case.vector([math.nan, -math.inf, 1e-9], INT8, "input", Fraction(1))
        assert x == [0, -127, 0]
        assert unit.case.counts["weight"] == [0, 0, 2]
        assert unit.case.counts["input"] == [0, 1, 1]

    def test_significant_bits(self):
        assert oracle.significant(1 + 2.0**-21, 21) == 1.0  # ties to even
        assert oracle.significant(1 + 3 * 2.0**-21, 21) == 1 + 2.0**-19
        assert oracle.significant(2.0**-300, 21) == 2.0**-300
        assert oracle.significant(0.0, 21) == 0.0


class TestOperands:
    def test_linear_weights_of_other_inputs(self):
        """Forward and recurrent matrix have scales of their own; codes come back in fp16."""
        layer = gate_layer([1.0, 0.3, math.inf], [0.02])
        form = replace(EPUR, weight=INT8, rounding="up")
        unit = unit_of(layer, form)
        assert unit.w_x == [[1.0, half(38 / 127), 1.0]]
        assert unit.w_h == [[half(float(np.float32(0.02)))]]

    def test_linear_inputs_of_other_weights(self):
        form = replace(EPUR, input=LinearFormat(4), product=FP32)
        unit = unit_of(gate_layer([1.0], [1.0]), form)
        codes = unit.case.vector([0.31, -5.0], form.input, "input", Fraction(2))
        assert codes == [1, -7]  # 0.31 * 3.5 = 1.085
        assert unit.operands(codes, Fraction(2)) == [float(np.float32(2 / 7)), -2.0]
        assert unit.case.counts["input"] == [0, 0, 1]

    def test_blocks(self):
        """Scales 2**(1 - 2), 2**(6 - 2): 6.2 and 0.8 become 6 and 1, 100 / 16 = 6.25 becomes 6."""
        found = oracle.block_values([3.1, -0.4, 100.0], parse("mxfp4/2"))
        assert [value for value, _ in found] == [3.0, -0.5, 96.0]
        # 7.9 / 1 saturates at 6; 0.2 / 1 is below the least normal element, 1, and becomes 0.
        found = oracle.block_values([7.9, 0.2, 0.0], parse("mxfp4"))
        assert found == [(6.0, oracle.SATURATION), (0.0, oracle.UNDERFLOW), (0.0, None)]
        assert oracle.block_values([1.999, -1.0, 0.01], parse("mxint8")) == [
            (127 / 64, oracle.SATURATION), (-1.0, None), (1 / 64, None),
        ]  # fmt: skip
        found = oracle.block_values([1.0, math.inf, 2.0, 0.0], parse("mxfp8/2"))
        assert [bits(v) for v, _ in found] == [bits(v) for v in (math.nan, math.nan, 2.0, 0.0)]
        # The shared scale stops at 2**-127: here are elements of 2**-22 and 2**-24.
        wide = BlockFormat(FloatFormat(5, 10, saturate=True))
        assert oracle.block_values([2.0**-149], wide) == [(2.0**-149, None)]
        narrow = parse("mxfp8e5m2")
        assert oracle.block_values([2.0**-149], narrow) == [(0.0, oracle.UNDERFLOW)]

    def test_vectors_are_cut_apart(self):
        """The recurrent vector begins a block of its own."""
        unit = unit_of(gate_layer([1.0, 100.0, 3.1], [0.4]), replace(EPUR, weight=parse("mxfp4/2")))
        assert unit.w_x == [[0.0, 96.0, 3.0]]
        assert unit.w_h == [[oracle.block_values([float(np.float32(0.4))], parse("mxfp4"))[0][0]]]


class TestMu:
    exact = replace(EPUR, activation="exact")

    def cell_of(self, bias, form, peepholes=None, c0=0.0):
        h, c, counts = oracle.evaluate_pass(
            constant_layer(bias, peepholes=peepholes), [[0.0]], form, c0=[c0]
        )
        return float(h[0, 0]), float(c[0]), counts

    def test_exact_activations(self):
        h, c, _ = self.cell_of([1, 100, 2, 3], self.exact, c0=0.25)
        i, o = half(1 / (1 + math.exp(-1))), half(1 / (1 + math.exp(-3)))
        wanted = half(half(i * half(math.tanh(2))) + 0.25)
        assert (h, c) == (half(o * half(math.tanh(wanted))), wanted)

    def test_segments(self):
        """16 of sigmoid: 1 begins the one up to 2. 4 of tanh: 1 lies in 0 to 2."""
        h, c, _ = self.cell_of([1, -100, 1, 100], replace(EPUR, activation="pwl-16"))
        f1, f2, f7, f8 = (1 / (1 + math.exp(-v)) for v in (1, 2, 7, 8))

        def line(a, f_a, f_b, r, width):
            slope = half((f_b - f_a) / width)
            return half(half(slope * r) + half(f_a - slope * a))

        i, o = line(1, f1, f2, 1, 1), line(7, f7, f8, 8, 1)
        g = line(1, math.tanh(1), math.tanh(1.5), 1, 0.5)
        # sigmoid(-8) of the forget gate meets c = 0.
        assert c == half(i * g)
        k = math.floor(c / 0.5)
        tanh_c = line(k / 2, math.tanh(k / 2), math.tanh(k / 2 + 0.5), c, 0.5)
        assert h == half(o * tanh_c)

    def test_clamp(self):
        narrow = replace(self.exact, clamp=2.0004)  # 2 in fp16
        assert self.cell_of([100, -100, 100, 100], narrow)[1] == half(
            half(1 / (1 + math.exp(-2))) * half(math.tanh(2))
        )
        # e4m3 ends at 240: ln 240 - 1/16 = 5.418, 5 in e4m3.
        assert self.cell_of([100, -100, 100, 100], arithmetic("epur-e4m3"))[1] == 1.0
        assert arithmetic("epur-e4m3").limit == 5.0

    def test_formats_of_the_places(self):
        """Cell and output hold what their formats hold, in the mode."""
        form = replace(
            self.exact, cell=FloatFormat(4, 3), output=FixedFormat(0, 4), rounding="down"
        )
        h, c, _ = self.cell_of([100, -100, 100, 100], form)
        below_1 = 1 - 2.0**-11  # sigmoid(11) and tanh(11) rounded down; so is their product
        assert c == 0.9375
        tanh_c = oracle.function("tanh", 0.9375, FP16, "down").value
        assert h == math.floor(below_1 * tanh_c * 16) / 16

    def test_gates_of_their_own(self):
        """Gate i in 3 significant bits: sigmoid(1) = 0.731 is 0.75."""
        coarse = Override("c*", "i", (("mu", parse("e5m2")), ("activation", "exact")))
        _, c, _ = self.cell_of([1, -100, 1, 1], replace(EPUR, overrides=(coarse,)))
        assert c == half(0.75 * TANH_1)
        _, c, _ = self.cell_of(
            [1, -100, 1, 1], replace(EPUR, overrides=(replace(coarse, layers="d*"),))
        )
        assert c != half(0.75 * TANH_1)

    def test_values_are_rounded_on_their_way_to_another_unit(self):
        """g in 3 significant bits reads i = 0.731 as 0.75, and c_0 as it is."""
        coarse = Override("*", "g", (("mu", parse("e5m2")),))
        _, c, _ = self.cell_of([1, -100, 100, 1], replace(self.exact, overrides=(coarse,)))
        assert c == 0.75
        # f = 0.731 is 0.75 there, and 0.75 * 1.1 = 0.825 is 0.875; c_0 alone would have been 1.
        _, c, _ = self.cell_of([-100, 1, 0, 0], replace(self.exact, overrides=(coarse,)), c0=1.1)
        assert c == 0.875
        wide = replace(self.exact, cell=FP32)
        c_0 = 1 + 2.0**-11  # 1 in fp16, to even
        # p = (1 + 2**-10) c_0 is 1 + 2**-10 if c_0 is rounded first, else 1 + 2**-9; bias -1.
        _, c, _ = self.cell_of([-1, -100, 100, 0], wide, (1 + 2.0**-10, 0, 0), c_0)
        assert c == 0.5
        _, c, _ = self.cell_of([-1, -100, 100, 0], wide, (1 + 2.0**-9, 0, 0), 1.0)
        assert c == 0.5 + 2.0**-11

    def test_peepholes_see_the_right_cell_state(self):
        """i and f see c_0 = 0.5; o sees c_1."""
        _, c, _ = self.cell_of([0, 0, 100, 0], self.exact, (2, 4, 0), 0.5)
        i, f = half(1 / (1 + math.exp(-1))), half(1 / (1 + math.exp(-2)))
        assert c == half(i + half(f * 0.5))
        h, c, _ = self.cell_of([100, 100, 100, 0], self.exact, (0, 0, 2), 0.5)
        assert c == 1.5
        assert h == half(half(1 / (1 + math.exp(-3))) * half(math.tanh(1.5)))

    def test_parameters_go_through_the_weights_format(self):
        e4m3 = parse("e4m3")
        bias = 1.03  # 1 in e4m3
        low, high = (
            self.cell_of([bias, -100, 100, 0], form)[1]
            for form in (replace(self.exact, weight=e4m3), self.exact)
        )
        assert low == half(1 / (1 + math.exp(-1))) != high
        # Linear and block formats are for the matrices alone.
        assert self.cell_of([bias, -100, 100, 0], replace(self.exact, weight=INT8))[1] == high
        assert (
            self.cell_of([bias, -100, 100, 0], replace(self.exact, weight=parse("mxfp4")))[1]
            == high
        )

    def test_fixed_point(self):
        """In steps of 1/16: sigmoid(1) = 11.7/16, tanh(2) = 15.4/16; 12 * 15 / 16 = 11.25."""
        h, c, _ = self.cell_of([1, -100, 2, 100], arithmetic("epur-q3.4"))
        assert c == 11 / 16
        assert h == 10 / 16  # tanh(11/16) = 9.54/16
        _, c, counts = self.cell_of([100, 100, 100, 100], arithmetic("epur-q3.4"), c0=7.5)
        assert c == 127 / 16
        assert counts["mu"] == [0, 0, 1]
        assert counts["weight"] == [0, 0, 4]
        raises = replace(arithmetic("epur-q3.4"), mu=parse("q3.4-raise"))
        with pytest.raises(FormatError, match="constant: weight is out of range"):
            self.cell_of([100] * 4, replace(raises, weight=FP16))
        with pytest.raises(FormatError, match=r"constant: mu is out of range of q3\.4-raise"):
            self.cell_of([7.5] * 4, raises, c0=7.5)


class TestStochastic:
    form = replace(EPUR, activation="exact", rounding="stochastic", seed=5)

    def test_every_operation_of_the_mu_has_its_number(self):
        """The rows of the table, written out, for neuron 0 in pass 3."""
        bias = [0.3, 0.7, 1.1, -0.4]
        layer = constant_layer(bias, peepholes=(0.3, 0.1, 0.2))
        b = [half(np.float32(v)) for v in bias]
        peep = [half(np.float32(v)) for v in (0.3, 0.1, 0.2)]
        c_0 = half(np.float32(0.77))
        for step in range(12):
            found = oracle.evaluate_pass(
                layer, [[0.0]], self.form, c0=[0.77], position=3, first_step=step
            )
            keys = [oracle.random_key(5, 3, step, 0, gate) for gate in range(4)]

            def of(gate, k, exact, keys=keys):
                random = oracle.random_number(keys[gate], 0xFFFF0000 + k)
                return oracle.rounding(exact, FP16, "stochastic", random).value

            def smooth(gate, k, name, r, keys=keys):
                random = oracle.random_number(keys[gate], 0xFFFF0000 + k)
                return oracle.function(name, r, FP16, "stochastic", random).value

            p = [of(gate, 1, oracle.multiply(peep[gate], c_0)) for gate in (0, 1)]
            r = [
                of(gate, 3, oracle.add(of(gate, 2, oracle.exact_of(p[gate])), b[gate]))
                for gate in (0, 1)
            ]
            i, f = (smooth(gate, 4, "sigmoid", r[gate]) for gate in (0, 1))
            r = of(2, 3, oracle.multiply(smooth(2, 2, "tanh", b[2]), i))
            c = of(2, 5, oracle.add(r, of(2, 4, oracle.multiply(f, c_0))))
            tanh_c = smooth(2, 8, "tanh", c)
            r = of(3, 3, oracle.add(b[3], of(3, 2, oracle.multiply(peep[2], c))))
            h = of(3, 5, oracle.multiply(smooth(3, 4, "sigmoid", r), tanh_c))
            assert (found.c[0], found.h[0, 0]) == (c, h)

    def test_time_steps_have_their_own(self):
        """Those of x_t, whichever way they are gone through."""
        x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
        for reverse in (False, True):
            case = Case(layer_of(5, 2, reverse=reverse), x, None)
            rows, last, _ = wanted_steps(case, self.form)
            found = oracle.evaluate_pass(case.layer, x, self.form)
            assert same(found.h, rows)
            assert same(found.c, last)

    def test_every_operation_of_the_dpu_has_its_number(self):
        rng = np.random.default_rng(9)
        w_x, w_h = ([half(v) for v in rng.normal(size=n)] for n in (20, 1))
        x, h = ([half(v) for v in rng.normal(size=n)] for n in (20, 1))
        layer = gate_layer(w_x, w_h)
        for order in oracle.ORDERS:
            unit = unit_of(layer, self.form.with_partial(FP16), order=order)
            unit.begin(7, 0)
            key = oracle.random_key(5, 0, 7, 0, 3)

            def of(n, exact, key=key):
                random = oracle.random_number(key, n)
                return oracle.rounding(exact, FP16, "stochastic", random).value

            acc, parts = 0.0, []
            for s, (w, v) in enumerate(((w_x[:16], x[:16]), (w_x[16:], x[16:]), (w_h, h))):
                pairs = zip(w + [0.0] * (16 - len(w)), v + [0.0] * (16 - len(v)), strict=True)
                sums = [of(32 * s + j, oracle.multiply(a, b)) for j, (a, b) in enumerate(pairs)]
                for begin in (16, 24, 28, 30):
                    sums = [
                        of(32 * s + begin + m, oracle.add(sums[2 * m], sums[2 * m + 1]))
                        for m in range(len(sums) // 2)
                    ]
                if s == 2 and order == "epur-mwl":
                    parts, acc = [acc], 0.0
                acc = of(32 * s + 31, oracle.add(acc, sums[0]))
            if parts:
                acc = of(0xFFFFF000, oracle.add(acc, parts[0]))
            assert unit.sum(0, x, h) == acc
            assert unit.operation == 1

    def test_is_right_on_average(self):
        """1 + 2**-12 in fp16, whose step is 2**-10."""
        unit = unit_of(gate_layer([1.0], [1.0]), self.form)
        found = []
        for step in range(4000):
            unit.begin(step, 0)
            found.append(unit.round(oracle.exact_of(1 + 2.0**-12), "product", 0))
        ups = sum(value > 1 for value in found)
        assert set(found) == {1.0, 1 + 2.0**-10}
        assert abs(ups / 4000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)

    def test_conversions_of_integer_sums_have_numbers_of_their_own(self):
        form = replace(TestIntegers.int8, rounding="stochastic").with_partial(FP16)
        unit = unit_of(TestIntegers.layer, form, order="epur-mwl", alpha_x=2)
        unit.begin(0, 0)
        scale = Fraction(unit.scales[0])

        def of(n, exact):
            random = oracle.random_number(unit.key, n)
            return oracle.round_value(exact, FP16, "stochastic", random)

        forward, recurrent = of(0xFFFFF001, 851 * scale), of(0xFFFF0000, 1024 * scale)
        wanted = of(0xFFFFF000, Fraction(forward) + Fraction(recurrent))
        assert unit.sum(0, [64, 19], [64]) == wanted
        assert unit.operation == 1


class TestCounts:
    def counts(self, layer, x, form=EPUR, **more):
        return oracle.evaluate_pass(layer, x, form, **more).counts

    def test_nothing_happens_to_zeros(self):
        found = self.counts(constant_layer([0] * 4, inputs=20), np.zeros((2, 20)))
        assert set(found) == set(oracle.PLACES)
        assert not any(map(any, found.values()))

    def test_dpu(self):
        """60,000 + 60,000 overflows in the tree; 2**-15 2**-10 is lost, 2**-14 2**-10 exact."""
        found = self.counts(gate_layer([60000.0, 60000.0], [0.0]), [[1.0, 1.0]])
        assert found["tree"] == [1, 0, 0]
        assert found["product"] == found["accumulator"] == [0, 0, 0]
        tiny = self.counts(gate_layer([2.0**-15, 2.0**-14], [0.0]), [[2.0**-10, 2.0**-10]])
        assert tiny["product"] == [0, 1, 0]
        cut = replace(EPUR, rounding="zero")
        assert self.counts(gate_layer([6e4, 6e4], [0.0]), [[1.0, 1.0]], cut)["tree"] == [0, 0, 1]

    def test_operands(self):
        layer = gate_layer([70000.0, 2.0**-24, 2.0**-25], [0.0])
        assert self.counts(layer, np.zeros((1, 3)))["weight"] == [1, 1, 0]
        # Each vector counts once for a format; gates i and o share one, f and g another.
        two = replace(EPUR, overrides=(Override("*", "fg", (("input", BF16),)),))
        found = self.counts(layer, [[70000.0, 2.0**-26, 0.0]], two)
        assert found["input"] == [1, 1, 0]
        clipped = replace(EPUR, output=INT8, input=INT8)
        found = self.counts(constant_layer([100] * 4), [[3.0]], clipped, alpha_h=0.5)
        assert (found["input"], found["output"]) == ([0, 0, 1], [0, 0, 1])

    def test_cell_and_output(self):
        form = replace(EPUR, cell=parse("e2m1f"), output=FixedFormat(0, 2))
        found = self.counts(constant_layer([100] * 4), np.zeros((9, 1)), form)
        # c: 1, 2, 3, 4, then 5 is a tie and stays 4.
        assert found["cell"] == [0, 0, 0]
        assert found["output"] == [0, 0, 8]  # tanh(2) is 1 in steps of 1/4, out of q0.2's range


def wanted_steps(case, form, **alphas):
    """The pass one step at a time, as a decoder has it."""
    cells = case.layer.cells
    h, c = case.state or (np.zeros(cells, np.float32), np.zeros(cells, np.float32))
    forward = replace(case.layer, reverse=False)
    rows = np.zeros((len(case.x), cells), np.float32)
    total = Counter()
    for t in reversed(range(len(case.x))) if case.layer.reverse else range(len(case.x)):
        found = oracle.evaluate_pass(
            forward, case.x[t : t + 1], form, h0=h, c0=c, first_step=t, **alphas
        )
        h, c = rows[t], c = found.h[0], found.c
        for place, events in found.counts.items():
            total.update({(place, n): count for n, count in enumerate(events) if place != "weight"})
    return rows, c, total


class TestAnyArithmetic:
    @settings(max_examples=30)
    @given(passes(), arithmetics(), st.floats(2.0**-10, 1000.0, width=32))
    def test_a_sequence_is_its_steps(self, case, form, alpha_x):
        h, c = case.state or (None, None)
        alphas = {"alpha_x": alpha_x, "alpha_h": 0.75}
        found = oracle.evaluate_pass(case.layer, case.x, form, h0=h, c0=c, **alphas)
        rows, last, total = wanted_steps(case, form, **alphas)
        assert same(found.h, rows)
        if len(case.x):
            assert same(found.c, last)
            counted = {
                (place, n): count
                for place, events in found.counts.items()
                for n, count in enumerate(events)
                if place != "weight"
            }
            assert counted == total

    @settings(max_examples=30)
    @given(passes(), arithmetics(modes=STEADY), st.sampled_from(oracle.ORDERS))
    def test_results_belong_to_their_formats(self, case, form, order):
        h, c = case.state or (None, None)
        found = oracle.evaluate_pass(case.layer, case.x, form, order, 3.0, h, c)
        output, cell = form.at("pass", "o").output, form.at("pass", "g").cell
        if isinstance(output, LinearFormat):
            codes = found.h.astype(np.float64) * output.max
            np.testing.assert_allclose(codes, np.rint(codes), rtol=2.0**-23)
            assert np.abs(found.h).max(initial=0) <= 1
        else:
            assert same(found.h, [oracle.round_value(float(v), output) for v in found.h.flat])
        assert same(found.c, [oracle.round_value(float(v), cell) for v in found.c])
        zeros = np.concatenate([found.h.ravel(), found.c])
        assert not np.signbit(zeros[zeros == 0]).any()

    @settings(max_examples=30)
    @given(passes(), arithmetics(modes=STEADY))
    def test_orders_agree_without_a_recurrent_part(self, case, form):
        form = replace(form, partial=form.sum, overrides=())
        alone = replace(case.layer, w_h=np.zeros_like(case.layer.w_h))
        found, wanted = (
            oracle.evaluate_pass(alone, case.x, form, order) for order in ("epur-mwl", "epur")
        )
        assert same(found.h, wanted.h)

    @pytest.mark.parametrize(
        ("name", "tolerance"),
        [
            ("epur-fp32", 1e-6), ("epur-fp16", 0.004), ("epur-bf16", 0.03), ("epur-q4.12", 0.004),
            ("epur-int8", 0.03), ("epur-int5", 0.2), ("epur-e5m4-nosub", 0.2),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("order", oracle.ORDERS)
    def test_near_a_plain_lstm(self, name, tolerance, order):
        layer = layer_of(9, 2, 5, peepholes=True, scale=0.3)
        rng = np.random.default_rng(6)
        x, h, c = rng.normal(size=(3, 9)), rng.normal(size=2) * 0.3, rng.normal(size=2)
        form = arithmetic(name)
        form = form.with_partial(LinearFormat(16) if form.integer else form.sum)
        wanted, _ = plain_lstm(layer, x, h, c)
        for mode in ("nearest-even", "down", "stochastic"):
            found = oracle.evaluate_pass(
                layer, x, replace(form, rounding=mode), order, 3.0, h, c, alpha_x=3.0
            )
            factor = 1 if mode.startswith("nearest") else 4
            assert np.abs(found.h - wanted).max() < factor * tolerance, mode
