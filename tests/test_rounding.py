"""Rounding against its definition in exact fractions, and against ml_dtypes, gfloat and numpy."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu import rounding
from epur_emu._kernels import rounding as kernels
from epur_emu.errors import FormatError
from epur_emu.formats import (
    MODES,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    LinearFormat,
    parse,
)
from epur_emu.rounding import (
    Counts,
    calibration,
    dequantise,
    quantise,
    random_words,
    round_to,
)

SOURCES = Path(__file__).resolve().parents[1] / "epur_emu" / "_kernels"
LEVELS = kernels.LEVELS
NAMES = (
    "fp16", "bf16", "tf32", "fp32", "fp16-sat", "fp16-nosub", "bf16-nosub", "e4m3", "e4m3fn", "e4m3fn-sat",
    "e5m2", "e5m7", "e3m4", "e2m1f", "e2m3f", "e3m2f", "e8m0", "e8m0-nosub", "e5m0", "e8m22-nosub",
    "fp32-nosub", "e2m23", "e7m16fn", "q3.12", "q0.7", "uq4.4", "uq0.24", "q23.0", "q3.4-wrap",
    "uq8.0-wrap", "q11.12-wrap",
)  # fmt: skip

floats = st.builds(
    FloatFormat,
    st.integers(2, 8), st.integers(1, 23), st.just("ieee"), st.booleans(), st.booleans(),
) | st.builds(
    FloatFormat,
    st.integers(2, 7), st.integers(1, 23), st.sampled_from(["fn", "none"]), st.booleans(), st.booleans(),
)  # fmt: skip
fixed = st.tuples(st.integers(0, 24), st.integers(0, 24)).filter(
    lambda widths: 1 <= sum(widths) <= 23
).flatmap(
    lambda widths: st.builds(
        FixedFormat, *map(st.just, widths), st.booleans(), st.sampled_from(["saturate", "wrap"])
    )
)  # fmt: skip
formats = st.sampled_from(NAMES).map(parse) | floats | fixed


def single(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def near(format):
    """Bits of float32 values on, beside and halfway between values of the format and its ends."""
    element = format.element if isinstance(format, BlockFormat) else format
    ends = [element.max, element.min_positive, getattr(element, "min_normal", Fraction(1))]
    raw = st.integers(0, 2**32 - 1)

    def beside(end, power, step, sign):
        with np.errstate(over="ignore"):
            return int(np.float32(float(end) * 2.0**power * (1 - 2 * sign)).view(np.uint32)) + step

    by_end = st.builds(
        beside,
        st.sampled_from(ends), st.integers(-3, 2), st.integers(-4, 4), st.integers(0, 1),
    )  # fmt: skip
    places = getattr(element, "mantissa_bits", 12)
    halfway = st.builds(
        lambda bits, cut, step: (bits >> cut << cut | (1 << cut >> 1)) + step,
        st.integers(0, 2**32 - 9), st.integers(max(0, 22 - places), 23), st.integers(-1, 1),
    )  # fmt: skip
    inside = st.builds(
        lambda exponent, bits, sign: sign << 31 | exponent << 23 | bits,
        st.integers(100, 140), st.integers(0, 2**23 - 1), st.integers(0, 1),
    )  # fmt: skip
    return (raw | by_end | halfway | inside).map(lambda b: b % 2**32)


def integer(t, negative, mode, R):
    """Round a non-negative Fraction to an integer."""
    n, rest = divmod(t, 1)
    if mode == "nearest-even":
        return n + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and n % 2 == 1))
    if mode == "nearest-away":
        return n + (rest >= Fraction(1, 2))
    if mode == "stochastic":
        return n + (math.floor(rest * 4096) + R >= 4096)
    away = {"zero": False, "up": not negative, "down": negative}[mode]
    return n + (rest > 0 and away)


def define(value, format, mode, R=0):
    """The value of round_F(v) as a float, and which of the three events it is."""
    v = float(value)
    if isinstance(format, FixedFormat):
        if math.isnan(v):
            return 0.0, (0, 0, 0)
        wraps = format.overflow == "wrap"
        if math.isinf(v):
            code = 0 if wraps else format.max_code if v > 0 else format.min_code
            return float(code * format.epsilon), (0, 1, 0)
        t = Fraction(v) / format.epsilon
        code = integer(abs(t), v < 0, mode, R) * (-1 if v < 0 else 1)
        past = not format.min_code <= code <= format.max_code
        if wraps:
            code = (code - format.min_code) % 2**format.bits + format.min_code
        code = max(format.min_code, min(format.max_code, code))
        return float(code * format.epsilon), (0, int(past), int(v != 0 and code == 0 and not past))
    sign = -1.0 if v < 0 else 1.0
    largest = float(format.max)
    outcome = largest if format.saturate else math.nan if format.specials == "fn" else math.inf
    if math.isnan(v):
        return math.nan, (0, 0, 0)
    if math.isinf(v):
        return sign * outcome, (0, int(outcome == largest), 0)
    if v == 0:
        return 0.0, (0, 0, 0)
    a = abs(Fraction(v))
    exponent = a.numerator.bit_length() - a.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > a
    if format.subnormals:
        exponent = max(exponent, format.min_exponent)
    unit = Fraction(2) ** (exponent - format.mantissa_bits)
    result = integer(a / unit, v < 0, mode, R) * unit
    if not format.subnormals and result < format.min_normal:
        result = Fraction(0)
    under = int(a < format.min_normal and result != a)
    if result <= format.max:
        return sign * float(result) + 0.0, (0, 0, under)
    if mode in ("zero", "down" if v > 0 else "up"):
        outcome = largest
    return sign * outcome, (int(outcome != largest), int(outcome == largest), 0)


def same(found, wanted):
    """Equal bits; every not-a-number is one."""
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    nan = np.isnan(found) & np.isnan(wanted)
    return bool(np.all((found.view(np.uint32) == wanted.view(np.uint32)) | nan))


def expected(values, format, mode, R):
    pairs = [define(v, format, mode, int(r)) for v, r in zip(values, R, strict=True)]
    return np.array([p[0] for p in pairs], np.float32), Counts(
        *(sum(c) for c in zip(*(p[1] for p in pairs), strict=True))
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data(), format=formats, mode=st.sampled_from(MODES))
def test_definition(data, format, mode):
    bits = data.draw(st.lists(near(format), min_size=1, max_size=24))
    v = single(bits)
    words = random_words(7, 3, len(v)) if mode == "stochastic" else None
    wanted, events = expected(v, format, mode, [0] * len(v) if words is None else words >> 20)
    for level in LEVELS:
        counts = Counts()
        assert same(round_to(v, format, mode, random=words, counts=counts, level=level), wanted)
        assert counts == events
        assert same(round_to(v, format, mode, random=words, level=level), wanted)
    if words is not None:
        assert same(round_to(v, format, mode, random=(7, 3)), wanted)
    with np.errstate(invalid="ignore"):
        doubles = v.astype(np.float64)
    counts = Counts()
    assert same(round_to(doubles, format, mode, random=words, counts=counts), wanted)
    assert counts == events


@settings(max_examples=80, deadline=None)
@given(data=st.data(), format=formats, mode=st.sampled_from(MODES))
def test_definition_of_float64(data, format, mode):
    """Values that float32 lacks: beside halfway by far less than float32's last place, and beyond its range."""
    bits = data.draw(st.lists(near(format), min_size=1, max_size=12))
    steps = data.draw(st.lists(st.integers(-3, 3), min_size=len(bits), max_size=len(bits)))
    with np.errstate(invalid="ignore"):
        v = single(bits).astype(np.float64)
    v = np.where(np.isfinite(v) & (v != 0), (v.view(np.int64) + steps).view(np.float64), v)
    v = np.append(v, [1e300, -1e300, 1e-300, -1e-300, 5e-324])
    words = random_words(1, 0, len(v)) if mode == "stochastic" else None
    wanted, events = expected(v, format, mode, [0] * len(v) if words is None else words >> 20)
    counts = Counts()
    assert same(round_to(v, format, mode, random=words, counts=counts), wanted)
    assert counts == events


def define_block(values, format):
    if not np.isfinite(values).all():
        return [math.nan] * len(values), Counts()
    largest = max(abs(Fraction(float(v))) for v in values)
    if not largest:
        return [0.0] * len(values), Counts()
    exponent = math.floor(math.frexp(largest)[1] - 1)
    scale = Fraction(2) ** min(127, max(-127, exponent - format.max_exponent))
    results, total = [], np.zeros(3, int)
    for v in values:
        # Fractions, since v / scale may be less than any float.
        t = Fraction(float(v)) / scale
        tiny = t != 0 and abs(t) < Fraction(1, 2**900)
        if tiny:
            results.append(0.0)
            total += (0, 0, 1)
            continue
        r, events = define(float(t), format.element, "nearest-even")
        results.append(float(Fraction(r) * scale))
        total += events
    return results, Counts(*map(int, total))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from(
        [
            "mxfp8",
            "mxfp8e5m2",
            "mxfp6",
            "mxfp6e3m2",
            "mxfp4",
            "mxint8",
            "mxint4/5",
            "mxfp4/3",
            "mx-e5m23-sat/7",
        ]
    ),
    columns=st.integers(1, 40),
)
def test_blocks(data, name, columns):
    format = parse(name)
    middle = data.draw(st.sampled_from([1, 20, 127, 240]))
    one = st.builds(
        lambda e, b, s: s << 31 | max(0, min(254, middle + e)) << 23 | b,
        st.integers(-12, 12), st.integers(0, 2**23 - 1), st.integers(0, 1),
    )  # fmt: skip
    bits = data.draw(
        st.lists(
            one | st.sampled_from([0, 1, 0x80000000]), min_size=2 * columns, max_size=2 * columns
        )
    )
    v = single(bits).reshape(2, columns)
    if data.draw(st.integers(0, 7)) == 0:
        v[1, columns // 2] = data.draw(st.sampled_from([np.inf, -np.inf, np.nan]))
    wanted, events = np.empty_like(v), Counts()
    for row, begin in product(range(2), range(0, columns, format.block)):
        part = slice(begin, begin + format.block)
        wanted[row, part], seen = define_block(v[row, part], format)
        for field, value in vars(seen).items():
            setattr(events, field, getattr(events, field) + value)
    for level in LEVELS:
        counts = Counts()
        assert same(round_to(v, format, level=level, counts=counts), wanted)
        assert counts == events
    counts = Counts()
    with np.errstate(invalid="ignore"):
        assert same(round_to(v.astype(np.float64), format, counts=counts), wanted)
    assert counts == events


# ---------------------------------------------------------------------------------- laws of all formats

HALVES = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def stratified(lows):
    """Every upper half of a float32 with each of some lower halves."""
    return single(
        (np.arange(65536, dtype=np.uint32)[:, None] << 16 | np.asarray(lows, np.uint32)).ravel()
    )


FEW = stratified([0, 1, 0x8000, 0xFFFF])
LAWS = FEW[::7]
MANY = sorted({max(0, (1 << k) + step) for k in range(17) for step in (-1, 0, 1)} - {65536, 65537})
MANY += [int(x) for x in np.random.default_rng(5).integers(2, 65535, 64 - len(MANY))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES[:5])
def test_idempotent_and_monotone(name, mode):
    format = parse(name)
    rounded = round_to(LAWS, format, mode)
    assert same(round_to(rounded, format, mode), rounded)
    if isinstance(format, FixedFormat) and format.overflow == "wrap":
        return
    order = np.argsort(LAWS[np.isfinite(LAWS)], kind="stable")
    in_order = rounded[np.isfinite(LAWS)][order]
    in_order = in_order[~np.isnan(in_order)]  # overflow of fn
    assert np.all(in_order[1:] >= in_order[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_levels_agree(name):
    format = parse(name)
    for mode in MODES:
        random = (9, 4) if mode == "stochastic" else None
        first = round_to(LAWS, format, mode, random=random, level=LEVELS[0])
        for level in LEVELS[1:]:
            assert same(round_to(LAWS, format, mode, random=random, level=level), first)


def test_directed_modes_enclose():
    v = FEW[np.abs(FEW) < 60000]
    up, down, zero = (round_to(v, parse("fp16"), mode) for mode in ("up", "down", "zero"))
    assert np.all((down <= v) & (v <= up))
    assert np.array_equal(zero, np.where(v > 0, down, up))


def test_stochastic_is_fair_and_independent_of_parts():
    v = np.full(200_000, 1 + 0.3 * 2**-10, np.float32)
    r = round_to(v, parse("fp16"), "stochastic", random=(3, 0))
    assert abs((r > 1).mean() - 0.3) < 0.005
    parts = [
        round_to(v[a : a + 777], parse("fp16"), "stochastic", random=(3, a)) for a in (0, 777, 1554)
    ]
    assert np.array_equal(np.concatenate(parts), r[:2331])


def test_random_words_hash_as_documented():
    def mixed(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    start = 2**32 - 2
    wanted = [mixed(mixed(5) ^ n % 2**32 * 0x9E3779B9 % 2**32) for n in range(start, start + 4)]
    assert random_words(5, start, 4).tolist() == wanted


def test_in_place_strided_and_empty():
    v = FEW[:1000].copy()
    wanted = round_to(v, parse("e4m3"))
    assert same(round_to(v[::3], parse("e4m3")), wanted[::3])
    assert same(round_to(v[:999].reshape(3, 333).T, parse("e4m3")), wanted[:999].reshape(3, 333).T)
    shifted = v.copy()
    assert same(round_to(shifted[1:], parse("e4m3"), out=shifted[:-1]), wanted[1:])
    assert round_to(v, parse("e4m3"), out=v) is v
    assert same(v, wanted)
    assert round_to(np.empty((0, 5), np.float32), parse("mxfp4")).shape == (0, 5)
    assert round_to(np.float32(1.3), parse("e2m1f")).shape == ()


def astray(array):
    """A copy whose numbers begin between their machine words, as in a file mapped to memory."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    moved = raw[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_between_words(dtype, monkeypatch):
    """C may not read these as they are; the kernels are shown none."""
    v = FEW[:100].astype(dtype)

    def watched(inner):
        def call(*given):
            assert all(one.flags.aligned for one in given if isinstance(one, np.ndarray))
            return inner(*given)

        return call

    for name in ("_round_single", "_round_double"):
        monkeypatch.setattr(rounding, name, watched(getattr(rounding, name)))
    assert same(round_to(astray(v), parse("e4m3")), round_to(v, parse("e4m3")))
    with pytest.raises(FormatError, match="aligned"):
        round_to(v, parse("e4m3"), out=astray(np.zeros(100, np.float32)))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((np.zeros(2, np.int32), "fp16"), "array"),
        ((np.zeros(2, np.float32), "fp16", "sideways"), "mode"),
        ((np.zeros(2, np.float32), "int8"), "format"),
        ((np.zeros(2, np.float32), "q20.5"), "format"),
        ((np.zeros(2, np.float32), "fp16", "stochastic"), "random"),
        ((np.full(2, 9, np.float32), "q3.4-raise"), "array"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, field):
    array, name, *mode = arguments
    with pytest.raises(FormatError) as error:
        round_to(array, parse(name), *mode)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"random": (1, 2)}, "random"),
        ({"mode": "stochastic", "random": (-1, 2)}, "random"),
        ({"mode": "stochastic", "random": np.zeros(3, np.uint32)}, "random"),
        ({"out": np.zeros(2, np.float64)}, "out"),
        ({"out": np.zeros(3, np.float32)}, "out"),
        ({"level": "mmx"}, "'mmx'"),
    ],
)
def test_bad_options(options, field):
    with pytest.raises(FormatError, match=field):
        round_to(np.zeros(2, np.float32), parse("fp16"), **options)


# ------------------------------------------------------------------------------- other implementations


def peers():
    """(format, rounding of float32 by another implementation, mode, values it can take)."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    table = {
        "bfloat16": "bf16", "float8_e5m2": "e5m2", "float8_e4m3fn": "e4m3fn", "float8_e4m3": "e4m3",
        "float8_e3m4": "e3m4", "float6_e2m3fn": "e2m3f", "float6_e3m2fn": "e3m2f", "float4_e2m1fn": "e2m1f",
    }  # fmt: skip
    for theirs, ours in table.items():
        dtype = getattr(ml_dtypes, theirs)
        yield ours, lambda v, d=dtype: v.astype(d).astype(np.float32)


def agree(values):
    seen = 0
    with np.errstate(all="ignore"):
        assert same(round_to(values, parse("fp16")), values.astype(np.float16) + np.float32(0))
        for name, theirs in peers():
            format = parse(name)
            v = values[~np.isnan(values)] if format.specials == "none" else values
            assert same(round_to(v, format), theirs(v) + np.float32(0)), name
            seen += 1
    return seen


def test_ml_dtypes_and_numpy_on_all_halves():
    assert agree(HALVES) == 8
    assert agree(FEW) == 8


@pytest.mark.slow
def test_ml_dtypes_and_numpy_on_many_values():
    values = stratified(MANY)
    assert len(values) >= 2**22
    assert agree(values) == 8


def gfloat_rounds(values):
    gfloat = pytest.importorskip("gfloat")
    from gfloat.formats import format_info_binary16, format_info_ocp_e4m3

    modes = dict(
        zip(
            MODES,
            ("TiesToEven", "TiesToAway", "TowardZero", "TowardPositive", "TowardNegative", "StochasticFastest"),
            strict=True,
        )
    )  # fmt: skip
    words = random_words(2, 0, values.size)
    seen = 0
    for name, (mode, theirs) in product(
        ["fp16", "e5m7", "bf16", "e4m3", "tf32", "e4m3fn", "e4m3fn-sat", "e2m1f", "fp16-sat", "fp16-nosub"],
        modes.items(),
    ):  # fmt: skip
        f = parse(name)
        finite_only = f.specials == "none"
        base = format_info_ocp_e4m3 if f.specials == "fn" else format_info_binary16
        info = gfloat.FormatInfo(
            name=name, k=f.bits, precision=f.precision, bias=f.bias, is_signed=True,
            domain=gfloat.Domain.Finite if f.specials != "ieee" else base.domain, has_nz=True,
            num_high_nans={"ieee": 2**f.mantissa_bits - 1, "fn": 1, "none": 0}[f.specials],
            has_subnormals=True, is_twos_complement=False,
        )  # fmt: skip
        v = values[np.isfinite(values)] if finite_only else values
        w = words[np.isfinite(values)] if finite_only else words
        if not f.subnormals:  # gfloat keeps them in formats without
            v, w = v[np.abs(v) >= 2.0**-14], w[np.abs(v) >= 2.0**-14]
        random = w if mode == "stochastic" else None
        with np.errstate(all="ignore"):
            wanted = gfloat.round_ndarray(
                info, v.astype(np.float64), getattr(gfloat.RoundMode, theirs), f.saturate,
                (w >> 20).astype(np.int64), 12,
            )  # fmt: skip
        assert same(round_to(v, f, mode, random=random), wanted + 0.0), (name, mode)
        seen += v.size
    return seen


def test_gfloat_on_all_halves():
    assert gfloat_rounds(HALVES) > 50 * 2**15


@pytest.mark.slow
def test_gfloat_on_many_values():
    assert gfloat_rounds(stratified(MANY)) > 40 * 2**22


def operands(count):
    """fp16 values of every exponent and sign, `count` of each: ends, and significands spread between."""
    significands = np.unique(np.linspace(0, 1023, count).round().astype(np.uint16))
    codes = (np.arange(64, dtype=np.uint16)[:, None] << 10 | significands).ravel()
    return codes.view(np.float16)


def products_and_sums(count):
    """fp16 products and sums of all pairs, numpy's beside exact ones (float64) rounded by us."""
    values = operands(count)
    fp16, wide = parse("fp16"), values.astype(np.float64)
    pairs = 0
    with np.errstate(all="ignore"):
        for a in range(0, len(values), 64):
            one, other = values[a : a + 64, None], values
            for operation in (np.multiply, np.add):
                exact = operation(wide[a : a + 64, None], wide)
                # Exact in float64, and the float32 nearest to it loses nothing for fp16 (24 >= 2 * 11 + 2).
                found = round_to(exact.astype(np.float32), fp16)
                assert same(found, operation(one, other).astype(np.float32) + np.float32(0))
                if a % 1024 == 0:
                    assert same(round_to(exact, fp16), found)
            pairs += exact.size
    return pairs


def test_fp16_products_and_sums():
    assert products_and_sums(8) == 512**2


@pytest.mark.slow
def test_fp16_products_and_sums_of_many_pairs():
    assert products_and_sums(128) >= 2**26


# -------------------------------------------------------------------------------------- linear formats


@settings(max_examples=300, deadline=None)
@given(
    x=st.integers(0, 2**32 - 1).map(lambda b: float(single([b])[0])),
    part=st.floats(-1.25, 1.25, width=32),
    alpha=st.floats(2.0**-100, 2.0**100, width=32),
    bits=st.integers(2, 16),
)
def test_codes_of_a_linear_format(x, part, alpha, bits):
    format = LinearFormat(bits)
    top = format.max
    for v in (x, float(np.float32(part * alpha))):
        (code,) = quantise(np.array([v], np.float32), format, alpha)
        if not math.isfinite(v):
            assert code == (0 if math.isnan(v) else math.copysign(top, v))
            continue
        wanted = round(Fraction(v) * top / Fraction(alpha))
        assert code == max(-top, min(top, wanted))
        (value,) = dequantise(np.array([code]), format, alpha)
        exact = Fraction(int(code)) * Fraction(alpha) / top
        below, above = (
            abs(Fraction(float(np.nextafter(value, np.float32(end)))) - exact)
            for end in (-np.inf, np.inf)
        )
        assert abs(Fraction(float(value)) - exact) <= min(below, above)


def test_codes_by_row():
    v = np.array([[1, -2], [0.5, 8]], np.float32)
    alpha = np.array([[2], [8]], np.float32)
    assert quantise(v, LinearFormat(8), alpha).tolist() == [[64, -127], [8, 127]]
    assert quantise(v, LinearFormat(8), alpha).dtype == np.int8
    assert quantise(v, LinearFormat(9), alpha).dtype == np.int16


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_bad_alpha(alpha):
    with pytest.raises(FormatError, match="alpha"):
        quantise(np.ones(2, np.float32), LinearFormat(8), alpha)


def test_calibration():
    rng = np.random.default_rng(0)
    v = rng.normal(size=10_000).astype(np.float32)
    v[:2] = 50, np.nan
    assert calibration(v, 8) == 50
    a = np.sort(np.abs(v[~np.isnan(v)]))
    assert calibration(v, 8, "percentile", 99) == a[math.ceil(0.99 * (len(a) - 1))]
    errors = {}
    for bits in (2, 4, 8):
        best = calibration(v, bits, "mse")
        for method, alpha in (("mse", best), ("max", calibration(v, bits))):
            f = LinearFormat(bits)
            a = v[~np.isnan(v)]
            errors[method] = np.square(dequantise(quantise(a, f, alpha), f, alpha) - a).sum()
        assert errors["mse"] <= errors["max"]
    assert calibration(v, 4, "mse") < 25
    assert calibration(np.zeros(5), 8, "mse") == calibration([], 8, "percentile") == 1
    with pytest.raises(FormatError, match="method"):
        calibration(v, 8, "median")
    with pytest.raises(FormatError, match="percentile"):
        calibration(v, 8, "percentile", 0)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_avx512_source_in_plain_instructions(tmp_path):
    """The AVX-512 file where the CPU has none: it holds no intrinsics, only a target, left out here."""
    source = (SOURCES / "rounding_avx512.c").read_text()
    assert source.count("#pragma GCC target") == 1
    (tmp_path / "plain.c").write_text(source.replace("#pragma GCC target", "#pragma message"))
    library = tmp_path / "plain.so"
    subprocess.run(
        ["gcc", "-O2", "-std=c11", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}",
         tmp_path / "plain.c", "-o", library, "-lm"],
        check=True, capture_output=True,
    )  # fmt: skip

    class Float(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_int) for name in ("exponent_bits", "mantissa_bits", "subnormals", "over")),
            ("max", ctypes.c_float),
        )  # fmt: skip

    class Random(ctypes.Structure):
        _fields_ = (
            ("words", ctypes.c_void_p),
            ("key", ctypes.c_uint32),
            ("start", ctypes.c_uint32),
        )

    function = ctypes.CDLL(str(library)).round_float_avx512
    out, key = np.empty_like(FEW), int(rounding.mix(np.full(1, 9, np.uint32))[0])
    for name, (number, mode) in product(["fp16", "bf16-nosub", "e4m3fn"], enumerate(MODES)):
        f = parse(name)
        function(
            FEW.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_ssize_t(FEW.size),
            Float(f.exponent_bits, f.mantissa_bits, f.subnormals, int(f.specials == "fn"), float(f.max)),
            number, Random(None, key, 4), None,
        )  # fmt: skip
        assert same(out, round_to(FEW, f, mode, random=(9, 4) if mode == "stochastic" else None))


def test_level_from_the_environment(monkeypatch):
    monkeypatch.setenv("EPUR_SIMD", "scalar")
    assert rounding.level_number() == 0
    monkeypatch.setenv("EPUR_SIMD", "mmx")
    with pytest.raises(FormatError, match="scalar"):
        rounding.level_number()
