"""Integer dot products and codes: every level against plain Python integers and fractions."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from epur_emu import integers
from epur_emu.errors import FormatError
from epur_emu.formats import FixedFormat, LinearFormat
from epur_emu.integers import (
    IntegerMatrix,
    input_codes,
    multipliers,
    round_scale,
    scales,
)
from epur_emu.rounding import Counts, quantise

HERE = Path(__file__).parent
SOURCES = HERE.parent / "epur_emu" / "_kernels"
LEVELS = integers.kernels.LEVELS


def accumulate(codes, x, acc, accumulators):
    """The definition: sub-vector by sub-vector, each sum brought into range; acc (N, 4, H)."""
    out, where = 0, None
    acc = [[[int(a) for a in row] for row in vector] for vector in acc]
    for v, vector in enumerate(x.tolist()):
        for gate, rows in enumerate(codes.tolist()):
            form = accumulators[gate]
            low, high = form.min_code, form.max_code
            for neuron, row in enumerate(rows):
                a = acc[v][gate][neuron]
                for k in range(0, len(row), 16):
                    a += sum(
                        p * q for p, q in zip(row[k : k + 16], vector[k : k + 16], strict=True)
                    )
                    if not low <= a <= high:
                        out += 1
                        if form.overflow == "raise":
                            key = (v, neuron // 16, gate, neuron)
                            where = key if where is None else min(where, key)
                        if form.overflow == "wrap":
                            a = (a - low) % (high - low + 1) + low
                        else:
                            a = min(max(a, low), high)
                acc[v][gate][neuron] = a
    return acc, out, None if where is None else (where[0], where[2], where[3])


def weight_codes(w, format, scale, alpha=1.0, counts=None):
    """The definition in float64, which is exact enough: ``rne(w alpha / s)``, clipped, not-a-number as 0."""
    with np.errstate(invalid="ignore"):
        values = w.astype(np.float64) * float(np.float32(alpha)) / scale[..., None]
    values[np.isnan(values)] = 0.0
    whole = np.rint(values)
    codes = whole.clip(-format.max, format.max)
    if counts is not None:
        counts.saturation += int(np.count_nonzero(codes != whole))
        counts.underflow += int(np.count_nonzero((whole == 0.0) & (values != 0.0)))
    return codes.astype(np.int16)


def unpacked(matrix, inputs):
    """Codes (4, H, I) of a packed matrix, and the sums of squares that its energy bounds."""
    kind, group = (np.int8, 4) if matrix.narrow else (np.int16, 2)
    packed = matrix.codes.view(kind).reshape(matrix.blocks, -1, 4, 16, group)
    codes = packed.transpose(2, 0, 3, 1, 4).reshape(4, matrix.blocks * 16, -1)
    assert not codes[:, matrix.cells :].any() and not codes[:, :, inputs:].any()
    squares = np.square(codes.astype(np.float64)).reshape(4, matrix.blocks, 16, -1)
    tops = [squares[..., k : k + 256].sum(-1).max((0, 2)) for k in range(0, matrix.inputs, 256)]
    assert np.concatenate(tops).tolist() == matrix.energy.tolist()
    return codes[:, : matrix.cells, :inputs]


def to_rows(acc, blocks):
    """(N, 4, H) to the kernel's (N, blocks * 4, 16)."""
    n, _, cells = np.shape(acc)
    full = np.zeros((n, 4, blocks * 16), np.int32)
    full[:, :, :cells] = acc
    return np.ascontiguousarray(
        full.reshape(n, 4, blocks, 16).swapaxes(1, 2).reshape(n, blocks * 4, 16)
    )


@st.composite
def problems(draw):
    """Codes, inputs, accumulators and their first values; extremes as likely as small codes."""
    weight = LinearFormat(draw(st.sampled_from([2, 4, 7, 8, 9, 12, 16])))
    input = LinearFormat(draw(st.sampled_from([2, 4, 7, 8, 9, 13, 16])))
    cells, n = (
        draw(st.sampled_from([1, 15, 16, 17, 33])),
        draw(st.sampled_from([0, 1, 3, 4, 7, 37])),
    )
    if n > 7:
        cells = min(cells, 17)
    width = draw(st.sampled_from([1, 15, 16, 40] if n > 7 else [1, 16, 33, 256, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.05, 0.4, 10.0]))

    def codes(shape, top):
        return np.rint(rng.normal(size=shape) * top * spread).clip(-top, top).astype(np.int16)

    accumulators = tuple(
        FixedFormat(bits - 1, 0, True, overflow)
        for bits, overflow in draw(
            st.lists(
                st.tuples(
                    st.sampled_from([2, 8, 12, 16, 20, 24, 31, 32]),
                    st.sampled_from(["saturate", "wrap", "raise"]),
                ),
                min_size=4, max_size=4,
            )
        )
    )  # fmt: skip
    if draw(st.booleans()):
        accumulators = (accumulators[0],) * 4
    w, x = codes((4, cells, width), weight.max), codes((n, width), input.max)
    start = np.zeros((n, 4, cells), np.int64)
    if draw(st.booleans()):
        for gate, form in enumerate(accumulators):
            start[:, gate] = rng.integers(form.min_code, form.max_code + 1, (n, cells))
    return weight, input, w, x, accumulators, start


def solve(problem, level, back=False):
    weight, input, w, x, accumulators, start = problem
    matrix = IntegerMatrix.pack(w, weight, input)
    acc = to_rows(start, matrix.blocks)
    padded = np.zeros((len(x), matrix.inputs), np.int16)
    padded[:, : x.shape[1]] = x
    return (acc, *matrix.dot(padded, acc, accumulators, level, back))


def check(problem, level, back=False):
    _, _, w, x, accumulators, start = problem
    acc, count, where = solve(problem, level, back)
    wanted, wanted_count, wanted_where = accumulate(w, x, start, accumulators)
    blocks = -(-w.shape[1] // 16)
    shaped = np.array(wanted, np.int64).reshape(start.shape)
    assert np.array_equal(acc, to_rows(shaped, blocks))
    assert (count, where) == (wanted_count, wanted_where)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(problem=problems(), back=st.booleans())
def test_dot_is_its_definition(level, problem, back):
    check(problem, level, back)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n", [1, 4])
def test_extreme_codes(level, bits, n):
    """Every code at its limit: no product of bytes saturates, no pair of products overflows."""
    form = LinearFormat(bits)
    for sign_w, sign_x in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        w = np.full((4, 16, 32), sign_w * form.max, np.int16)
        x = np.full((n, 32), sign_x * form.max, np.int16)
        accumulators = (FixedFormat(31, 0, True, "wrap"),) * 4
        check((form, form, w, x, accumulators, np.zeros((n, 4, 16), np.int64)), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("overflow", ["saturate", "wrap", "raise"])
def test_room_to_the_last_unit(level, overflow):
    """Sums that reach the largest value count nothing; one more does."""
    w = np.zeros((4, 16, 16), np.int16)
    w[:, :, 0] = 1
    for start, count in ((126, 0), (127, 64)):
        form = FixedFormat(7, 0, True, overflow)
        x = np.zeros((1, 16), np.int16)
        x[0, 0] = 1
        begin = np.full((1, 4, 16), start, np.int64)
        problem = (LinearFormat(8), LinearFormat(8), w, x, (form,) * 4, begin)
        assert solve(problem, level)[1] == count
        check(problem, level)


@pytest.mark.parametrize("level", LEVELS)
def test_forward_then_recurrent_in_one_accumulator(level):
    """Two matrices one after the other are one of both, though blocks of 256 inputs cut elsewhere."""
    rng = np.random.default_rng(3)
    form, wide = LinearFormat(8), FixedFormat(14, 0)
    w = rng.integers(-127, 128, (4, 20, 656)).astype(np.int16)
    x = rng.integers(-127, 128, (5, 656)).astype(np.int16)
    both = IntegerMatrix.pack(w, form, form)
    one = np.zeros((5, 8, 16), np.int32)
    count, _ = both.dot(x, one, wide, level)
    two = np.zeros_like(one)
    parts = 0
    for part in (slice(320), slice(320, None)):
        matrix = IntegerMatrix.pack(w[:, :, part], form, form)
        parts += matrix.dot(np.ascontiguousarray(x[:, part]), two, wide, level)[0]
    assert np.array_equal(one, two)
    assert count == parts > 0


def test_a_vector_alone_gives_what_it_gives_in_a_batch():
    rng = np.random.default_rng(4)
    form = LinearFormat(8)
    matrix = IntegerMatrix.pack(rng.integers(-127, 128, (4, 40, 300)).astype(np.int16), form, form)
    x = rng.integers(-127, 128, (70, matrix.inputs)).astype(np.int16)
    x[:, 300:] = 0
    x[::3] //= 16
    # Wide enough for the small vectors alone, so that a batch mixes both ways of summing.
    wide = FixedFormat(17, 0)
    batch = np.zeros((70, 12, 16), np.int32)
    count, _ = matrix.dot(x, batch, wide)
    alone = np.zeros_like(batch)
    counts = [matrix.dot(x[n : n + 1], alone[n : n + 1], wide)[0] for n in range(70)]
    assert np.array_equal(batch, alone)
    assert count == sum(counts) > 0
    assert not any(counts[::3])


def floats(width=32):
    return st.floats(width=width, allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=80, deadline=None)
@given(
    x=hnp.arrays(np.float32, st.integers(0, 20), elements=floats()),
    bits=st.integers(2, 16),
    alpha=st.floats(2.0**-100, 2.0**100, width=32),
    halves=st.booleans(),
)
def test_input_codes(level, x, bits, alpha, halves):
    form = LinearFormat(bits)
    if halves:  # near ties and the ends
        with np.errstate(over="ignore", invalid="ignore"):
            x = (np.rint(x % (form.max + 2)) + 0.5).astype(np.float32) * np.float32(
                alpha / form.max
            )
    wanted, clipped, vanished = [], 0, 0
    for value in x:
        if np.isnan(value):
            wanted.append(0)
            continue
        if np.isinf(value):
            code = form.max + 1 if value > 0 else -form.max - 1
        else:
            code = round(Fraction(float(value)) * form.max / Fraction(float(np.float32(alpha))))
        vanished += code == 0 and value != 0
        clipped += abs(code) > form.max
        wanted.append(min(max(code, -form.max), form.max))
    counts = Counts()
    assert input_codes(x, form, alpha, counts, level).tolist() == wanted
    assert counts == Counts(0, clipped, vanished)
    assert np.array_equal(quantise(x, form, alpha), wanted)


@pytest.mark.parametrize("level", LEVELS)
def test_input_codes_of_many(level):
    x = np.random.default_rng(0).normal(size=(3, 1003)).astype(np.float32) * 40
    codes = input_codes(x, LinearFormat(8), 100.0, None, level)
    assert codes.shape == x.shape
    assert np.array_equal(codes, quantise(x, LinearFormat(8), 100.0))


def nearest(value, bits):
    """A positive fraction rounded to so many significant bits."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - bits
    unit = Fraction(2) ** exponent
    while value / unit >= 2**bits:
        unit *= 2
    while value / unit < 2 ** (bits - 1):
        unit /= 2
    return round(value / unit) * unit


@given(v=st.floats(2.0**-200, 2.0**200))
def test_round_scale(v):
    assert Fraction(float(round_scale(v))) == nearest(Fraction(v), 21)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    bits=st.integers(2, 16),
    per_row=st.booleans(),
    alpha_x=st.floats(2.0**-20, 2.0**20, width=32),
    alpha_h=st.floats(0.25, 4, width=32),
)
def test_scales_and_weight_codes(data, bits, per_row, alpha_x, alpha_h):
    form = LinearFormat(bits, per_row)
    values = st.floats(-4, 4, width=32)
    w_x = data.draw(hnp.arrays(np.float32, (4, 2, 3), elements=values))
    w_h = data.draw(hnp.arrays(np.float32, (4, 2, 2), elements=values))
    s = scales(w_x, w_h, form, alpha_x, alpha_h)
    a = {"x": Fraction(float(np.float32(alpha_x))), "h": Fraction(float(np.float32(alpha_h)))}
    counts, clipped, vanished = Counts(), 0, 0
    found = {
        key: unpacked(IntegerMatrix.of(w, form, form, s, alpha, counts=counts), w.shape[2])
        for key, w, alpha in (("x", w_x, alpha_x), ("h", w_h, alpha_h))
    }
    for gate in range(4):
        for row in range(2):
            rows = [row] if per_row else [0, 1]
            products = [
                abs(Fraction(float(v))) * a[key]
                for key, w in (("x", w_x), ("h", w_h))
                for v in w[gate, rows].reshape(-1)
            ]
            largest = max(products)
            quotient = Fraction(float(largest) / form.max)
            scale = nearest(quotient, 21) if largest else Fraction(1)
            assert Fraction(s[gate, row]) == scale
            for key, w in (("x", w_x), ("h", w_h)):
                codes = [round(Fraction(float(v)) * a[key] / scale) for v in w[gate, row]]
                vanished += sum(c == 0 and v != 0 for c, v in zip(codes, w[gate, row], strict=True))
                clipped += sum(abs(c) > form.max for c in codes)
                codes = [min(max(c, -form.max), form.max) for c in codes]
                assert found[key][gate, row].tolist() == codes
    assert counts == Counts(0, clipped, vanished)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([1, 15, 16, 33, 256, 300, 530]),
    st.integers(2, 16), st.sampled_from([np.float16, np.float32]), st.booleans(),
    st.sampled_from([range(4), (1, 3), (2,)]), st.sampled_from(range(len(LEVELS))),
)  # fmt: skip
def test_packed_codes(seed, cells, inputs, bits, dtype, patterns, members, level):
    """Any weights and shapes, at every level: the definition's codes, energies and counts."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(4, cells, inputs)).astype(dtype)
    if patterns:
        whole = np.uint16 if dtype == np.float16 else np.uint32
        w = rng.integers(0, 2 ** (8 * w.itemsize), w.shape, whole).view(dtype)
    form = LinearFormat(bits, True)
    s, alpha, counts, wanted = scales(w, w[:, :, :1], form, 0.7), 0.9, Counts(), Counts()
    s *= rng.choice([0.25, 1.0, 2.0], s.shape)
    found = IntegerMatrix.of(w, form, form, s, alpha, members, counts, level)
    used = np.zeros_like(w)
    used[list(members)] = w[list(members)]
    assert np.array_equal(unpacked(found, inputs), weight_codes(used, form, s, alpha, wanted))
    assert counts == wanted


def test_weights_that_are_not_finite():
    w = np.array([np.nan, np.inf, -np.inf, 2.0, -0.5], np.float32) * np.ones((4, 1, 1), np.float32)
    s = scales(w, w[:, :, :1], LinearFormat(8))
    assert np.array_equal(s, np.full((4, 1), float(round_scale(2 / 127))))
    counts = Counts()
    form = LinearFormat(8)
    codes = unpacked(IntegerMatrix.of(w, form, form, s, 1.0, counts=counts), 5)
    assert codes[0, 0].tolist() == [0, 127, -127, 127, -32]
    assert counts == Counts(0, 8, 0)


def test_a_sum_times_its_multiplier_is_exact():
    m = multipliers(
        scales(np.full((4, 1, 1), 0.3), np.zeros((4, 1, 1)), LinearFormat(7)), LinearFormat(8)
    )
    sum_ = -(2**31) + 1
    assert Fraction(sum_ * float(m[0, 0])) == sum_ * Fraction(float(m[0, 0]))
    assert float(m[0, 0]) == pytest.approx(0.3 / 63 / 127, rel=2**-20)


MATRIX = IntegerMatrix.pack(np.ones((4, 3, 5), np.int16), LinearFormat(8), LinearFormat(8))
X, ACC = np.zeros((2, 16), np.int16), np.zeros((2, 4, 16), np.int32)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: IntegerMatrix.pack(np.ones((3, 2, 2), int), LinearFormat(8), LinearFormat(8)), "shape"),
        (lambda: IntegerMatrix.pack(np.full((4, 2, 2), 128), LinearFormat(8), LinearFormat(8)), "128"),
        (lambda: MATRIX.dot(X[:, :5], ACC, FixedFormat(23, 0)), "x has"),
        (lambda: MATRIX.dot(X, ACC[:1], FixedFormat(23, 0)), "acc has"),
        (lambda: MATRIX.dot(X, ACC.astype(np.int64), FixedFormat(23, 0)), "acc has"),
        (lambda: MATRIX.dot(X - 128, ACC, FixedFormat(23, 0)), "-128"),
        (lambda: MATRIX.dot(X, ACC, FixedFormat(23, 1)), "accumulator"),
        (lambda: MATRIX.dot(X, ACC, FixedFormat(23, 0, False)), "accumulator"),
        (lambda: MATRIX.dot(X, ACC, FixedFormat(23, 0), "sse9"), "sse9"),
        (lambda: input_codes(np.zeros(3), LinearFormat(8), 0.0), "alpha"),
        (lambda: scales(np.ones((4, 1, 1)), np.ones((4, 1, 1)), LinearFormat(8), np.inf), "alpha_x"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, field):
    with pytest.raises(FormatError, match=field):
        call()


class Portable:
    """Stands in for the compiled module; every level is the AVX-512 source, in plain C by SIMDe."""

    class Matrix(ctypes.Structure):
        _fields_ = [
            ("codes", ctypes.c_void_p), ("energy", ctypes.c_void_p), ("blocks", ctypes.c_ssize_t),
            ("inputs", ctypes.c_ssize_t), ("narrow", ctypes.c_int), ("largest_w", ctypes.c_int),
            ("largest_x", ctypes.c_int),
        ]  # fmt: skip

    BLOCK, OVERFLOW = integers.kernels.BLOCK, integers.kernels.OVERFLOW

    def __init__(self, library):
        self.c = library
        self.calls = 0

    def dot(self, level, codes, energy, narrow, largest_w, largest_x, x, acc, widths, back, seen):
        self.calls += 1
        matrix = self.Matrix(
            codes.ctypes.data, energy.ctypes.data, acc.shape[1] // 4, x.shape[1], narrow, largest_w, largest_x
        )  # fmt: skip
        self.c.dot_int_avx512(
            ctypes.byref(matrix), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(acc.ctypes.data),
            ctypes.c_ssize_t(len(x)), ctypes.c_void_p(widths.ctypes.data),
            ctypes.c_int(back), ctypes.c_void_p(seen.ctypes.data),
            ctypes.create_string_buffer(16 * x.size + 4096 * (len(x) + 1)),
        )  # fmt: skip


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integer")
    source = (SOURCES / "lstm_int_avx512.c").read_text()
    assert source.count("#pragma GCC target") == 1
    # Without the target the compiler can't use the instructions behind the program's back.
    (folder / "portable.c").write_text(source.replace("#pragma GCC target", "#pragma message"))
    library = folder / "portable.so"
    built = subprocess.run(
        [
            "gcc", "-O2", "-std=gnu11", "-ffp-contract=off", "-mavx2", "-mf16c", "-mfma", "-shared", "-fPIC",
            f"-I{HERE / 'portable'}", f"-I{SOURCES}", "portable.c", "-o", library, "-lm",
        ],
        cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return Portable(ctypes.CDLL(str(library)))


@pytest.mark.skipif("avx512" in LEVELS, reason="the CPU has AVX-512: tested as it is")
@pytest.mark.skipif("avx2" not in LEVELS, reason="needs AVX2 underneath")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.skipif(
    not Path("/usr/include/simde/x86/avx512.h").exists(), reason="needs SIMDe (libsimde-dev)"
)
@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_portable_avx512(portable, problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers, "kernels", portable)
        before = portable.calls
        check(problem, "scalar")
        assert portable.calls == before + 1
