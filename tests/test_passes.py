"""Packed passes: which path an arithmetic takes, stored sums, codes turned back into numbers."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arithmetics, passes, plain_formats
from test_emulator import ALPHA, KEPT, engine, expected, path_at, same_bits, usual

from epur_emu import Accelerator, oracle
from epur_emu import passes as module
from epur_emu.arithmetic import GATES, Override, arithmetic
from epur_emu.emulator import emulate
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP16, FP32, FixedFormat, FloatFormat, parse
from epur_emu.network import LstmLayer, Network
from epur_emu.passes import COUNTED, EVENTS, PackedPass, level_number, levels, stored
from epur_emu.rounding import Counts, round_to


@settings(max_examples=40, deadline=None)
@given(passes(), arithmetics(), st.sampled_from(levels()))
def test_the_last_cell_state(case, a, level):
    packed = PackedPass.of(case.layer, a, ALPHA, 0, level_number(level), True, False)
    h, c = case.state or (None, None)
    counts = np.zeros((len(COUNTED), len(EVENTS)), np.int64)
    out, last = packed.sequence(case.x, h, c, False, counts)
    wanted = expected(case, a)
    assert same_bits(out, wanted.h)
    assert same_bits(last, wanted.c)
    assert not np.signbit(last[last == 0]).any()


def paths(a):
    return engine(usual(1).layer, a)._packed["pass"].paths


def limits(**places):
    """What bounds a vector's way, and the largest magnitude of a sub-vector's products, beside it."""
    case = usual(1, inputs=40)
    a = replace(KEPT, **{place: parse(name) for place, name in places.items()})
    gates = tuple(a.at("l", g) for g in GATES)
    blocks = -(-case.layer.cells // module.LANES)
    group = module._group(
        case.layer, gates, range(4), (1.0, 1.0), blocks, False, level_number(None), module.Counts(), True,
    )  # fmt: skip
    return group, max(w[5] for w in group["w"]) * float(np.abs(case.x).max())


@pytest.mark.parametrize(
    ("places", "wraps", "far"),
    [
        ({"product": "uq5.12"}, False, False), ({"tree": "uq5.12"}, False, False),
        ({"product": "uq5.12-wrap"}, True, False), ({"tree": "q5.12-wrap"}, True, False),
        ({"tree": "uq7.16-wrap"}, True, True),
    ],
)  # fmt: skip
def test_fixed_point_beside_floats_is_cut_in_lanes(places, wraps, far):
    """Floats are proven to stay in their range; unsigned places always leave theirs."""
    group, largest = limits(**places)
    assert (group["wraps"], group["wraps_far"]) == (wraps, far)
    assert largest <= min(group["tame_limit"], group["lanes_limit"])
    if any(name.startswith("u") for name in places.values()):
        assert group["tree_limit"] == 0.0


def test_floats_after_what_wraps_may_leave_their_range():
    assert limits(product="q7.8-wrap", tree="e4m3")[0]["tame_limit"] < 0
    assert limits(product="q3.8-wrap", tree="e5m3")[0]["tame_limit"] > 0


def test_gates_that_share_an_arithmetic_share_a_path():
    assert paths(KEPT) == (path_at("halves"),)
    other = replace(KEPT, overrides=(Override("pass", "g", (("product", FP32),)),))
    assert paths(other) == (path_at("halves"), "general")
    every = tuple(
        Override("pass", gate, (("accumulator", parse(name)),))
        for gate, name in (("i", "q5.10"), ("f", "e8m22"), ("g", "fp32"))
    )
    assert paths(replace(KEPT, overrides=every)) == ("general", "general", "chain", "chain")
    mu = replace(KEPT, overrides=(Override("pass", "o", (("mu", FP32),)),))
    assert paths(mu) == (path_at("halves"),)  # the multifunctional unit is not the DPU's concern
    assert paths(arithmetic("epur-int4")) == ("integers",)


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(2.0**-60, 2.0**60, width=32),
    st.integers(2, 16),
    plain_formats(),
)
def test_stored_sums(value, alpha, bits, target):
    """Both quotients, each rounded once from its exact value."""
    largest = 2 ** (bits - 1) - 1
    counts = np.zeros(3, np.int64)
    found = stored(np.array([value], np.float32), largest, alpha, target, counts)
    exact = Fraction(value) * largest / Fraction(alpha)
    code = max(-largest, min(largest, round(exact)))
    assert same_bits(
        found, [oracle.round_value(Fraction(code) * Fraction(alpha) / largest, target)]
    )
    assert tuple(counts) == (0, round(exact) == 0 and value != 0, abs(round(exact)) > largest)


@given(st.integers(2, 16), st.floats(2.0**-20, 2.0**20, width=32), plain_formats())
def test_codes_turned_back_into_numbers(bits, top, product):
    largest = 2 ** (bits - 1) - 1
    codes = np.unique(np.linspace(-largest, largest, 21).round())
    found = module._dequantised(codes, float(np.float32(top)), largest, product)
    wanted = [
        oracle.round_value(Fraction(int(q)) * Fraction(float(np.float32(top))) / largest, product)
        for q in codes
    ]
    assert same_bits(found, wanted)


@pytest.mark.parametrize("f", [FloatFormat(5, 10), FloatFormat(8, 23), FixedFormat(3, 6)], ids=str)
def test_formats_as_numbers(f):
    kind, places, _, _, _, top, bottom, span = module._numbers(f)
    assert (kind, top) == (isinstance(f, FixedFormat), float(f.max))
    if kind:
        assert bottom == -top - 2.0**-places
        assert span == (top - bottom) * 2**places + 1
    else:
        assert bottom == -top


def test_what_is_not_calibrated_is_refused():
    case = usual(1)
    for name, where, missing in (
        ("epur-int8", "alpha 'pass.input'", "pass.input"),
        ("epur-fp16", "alpha", "pass"),
    ):
        alpha = {k: v for k, v in ALPHA.items() if k != missing}
        with pytest.raises(NetworkError, match=rf"pass: {where} is 0\.0.*; calibrate the network"):
            PackedPass.of(case.layer, arithmetic(name), alpha, 0, 0, True, False).sequence(
                case.x, None, None, True, np.zeros((8, 3), np.int64)
            )
    # what other layers give is at most 1
    PackedPass.of(case.layer, arithmetic("epur-int8"), {}, 1, 0, True, True)
    for wrong in (np.nan, np.inf, -1.0):
        with pytest.raises(NetworkError, match=r"pass\.hidden"):
            PackedPass.of(
                case.layer,
                arithmetic("epur-int8"),
                {**ALPHA, "pass.hidden": wrong},
                0,
                0,
                True,
                False,
            )


def test_levels(monkeypatch):
    assert levels()[0] == "scalar"
    monkeypatch.delenv("EPUR_SIMD", raising=False)
    assert level_number(None) == len(levels()) - 1
    assert level_number("scalar") == 0
    with pytest.raises(FormatError, match=r"'sse' can't run here; use one of scalar"):
        level_number("sse")


def test_stored_sums_of_special_values():
    found = stored(np.array([np.inf, -np.inf, np.nan, -0.0], np.float32), 127, 2.0, FP16)
    assert same_bits(found, [2.0, -2.0, np.nan, 0.0])


def packed_by_numpy(matrix, members, a, store):
    """Codes (blocks, gates, inputs, neurons), bounds and counts, or None if the store can't hold them."""
    _, cells, inputs = matrix.shape
    values = np.zeros((-(-cells // 16) * 16, -(-inputs // 16) * 16), np.float32)
    codes, norm, part, low, counts = [], 0.0, 0.0, np.inf, Counts()
    for n in range(4):
        values[:] = 0
        if n in members:
            values[:cells, :inputs] = round_to(matrix[n], a.weight, counts=counts)
        with np.errstate(all="ignore"):
            half, top = values.astype(np.float16), values.view(np.uint32) >> 16
            back = half.astype(np.float32) if store == module.HALF else (top << 16).view(np.float32)
        finite = np.isfinite(values).all()
        if store != module.WIDE and not (finite and (back == values).all()):
            return None
        one = {module.HALF: half.view(np.uint16), module.WIDE: values}.get(store, top)
        tiles = one.reshape(len(values) // 16, 16, -1).swapaxes(1, 2).copy()
        if store == module.PAIRED:
            pairs = tiles.reshape(len(tiles), -1, 16, 8, 2)
            tiles = pairs.swapaxes(2, 3).reshape(tiles.shape)
        codes.append(tiles)
        sizes = np.abs(values).astype(np.float64).reshape(len(values), -1, 16)
        for fold in (8, 4, 2, 1):  # exact, or in the kernels' order
            sizes = sizes[..., :fold] + sizes[..., fold:]
        sums = np.cumsum(sizes[..., 0], -1)
        norm, part = (max(norm, sums[:, -1].max()), max(part, sizes.max())) if finite else (np.inf, np.inf)
        low = min(low, np.abs(values).min(where=np.abs(values) > 0, initial=np.inf))
    return np.stack(codes, 1).astype(codes[0].dtype), (norm, part, low), counts


WEIGHTS = (
    "fp16", "bf16", "e8m3-sat", "e8m10-nosub", "e4m3fn", "e4m3fn-sat", "e5m2", "fp32", "fp16-nosub",
    "q5.12", "mxfp8",
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(
    st.data(), st.sampled_from(WEIGHTS), st.sampled_from([np.float16, np.float32]), st.sampled_from(levels()),
    st.sampled_from([(0, 1, 2, 3), (1, 3), (2,)]), st.sampled_from([(3, 2), (0, 1, 2)]), st.booleans(),
)  # fmt: skip
def test_packing(data, weight, dtype, level, members, stores, whole):
    """Codes, bounds and counts of any weights, however they are stored."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (4, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50)))
    kind = data.draw(st.sampled_from(["usual", "patterns", "few bits", "tiny", "zeros", "halves"]))
    matrix = rng.normal(size=shape).astype(np.float32)
    if kind in ("patterns", "few bits"):
        bits = rng.integers(0, 2**32, shape, np.uint32) & (0xFFFFFFFF if kind == "patterns" else 0xBF800000)
        matrix = bits.view(np.float32)
    elif kind == "tiny":
        matrix *= np.float32(2.0) ** rng.integers(-150, -10, shape)
    elif kind == "zeros":
        matrix *= rng.choice(np.array([0, -0.0, 1], np.float32), shape)
    with np.errstate(all="ignore"):
        matrix = matrix.astype(dtype)
    if kind == "halves" and dtype == np.float16:
        matrix = rng.integers(0, 2**16, shape, np.uint16).view(np.float16)
        if data.draw(st.booleans()):
            matrix[~np.isfinite(matrix)] = -0.0
    a = replace(KEPT, weight=parse(weight))
    for store in stores:
        wanted = packed_by_numpy(matrix, members, a, store)
        if wanted:
            break
    counts = Counts()
    found = module._packed(matrix, members, a, stores, counts, level_number(level), whole)
    assert found.store == store
    assert found.fields[4:] == wanted[1]
    assert counts == wanted[2]
    blocks = found.blocks
    if whole:
        codes = found.codes
    else:
        assert found.codes is None
        codes = found.room(blocks)
        for begin in range(0, blocks, 2):
            part = found.room(2)
            part[:] = 3
            found.put(part, begin, min(begin + 2, blocks))
            some = min(blocks - begin, 2) * 4
            for n in members:
                codes[begin * 4 + n : begin * 4 + some : 4] = part[n:some:4]
    assert not codes[-1].any()
    wanted = wanted[0].reshape(codes[:-1].shape)
    if store == module.WIDE:
        assert same_bits(codes[:-1], wanted)
        assert not np.signbit(codes[codes == 0]).any()
    else:
        assert np.array_equal(codes[:-1], wanted)


#: What does not grow with the weights: tables of activations, some rows on their way, sums of 32 steps.
FIXED = 3 * 2**19


@pytest.mark.parametrize(
    ("name", "order", "most"),
    [
        *((name, "epur", 1.0) for name in ("epur-fp16", "epur-bf16", "epur-e4m3fn-sat")),
        ("epur-fp16", "epur-mwl", 1.2), ("epur-int8", "epur", 0.9), ("epur-int8", "epur-mwl", 1.05),
    ],
)  # fmt: skip
def test_memory_of_a_run(name, order, most):
    """With the imported weights, 16 bits each, no more than twice as much as these, and the outputs."""
    cells, steps = 768, 400
    matrix = np.full((4, cells, cells), 2.0**-7, np.float16)
    layer = LstmLayer("pass", matrix, matrix.copy(), matrix[:, 0].copy())
    x, accelerator = np.ones((steps, cells), np.float32), Accelerator.load(order)
    run = Network("one", ((layer,),)), x, arithmetic(name), accelerator, ALPHA
    emulate(*run)  # tables of activations stay
    vars(module._kept).clear()
    tracemalloc.start()
    try:
        emulate(*run)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    weights = 2 * matrix.nbytes
    assert weights / 2 < peak <= most * weights + x.nbytes


@pytest.mark.parametrize("name", ["epur-fp16", "epur-bf16", "epur-e4m3fn-sat"])
def test_memory_of_weights_that_are_kept(name):
    """A second copy, and nothing more that grows with the weights."""
    cells = 768
    matrix = np.full((4, cells, cells), 2.0**-7, np.float16)
    layer = LstmLayer("pass", matrix, matrix.copy(), matrix[:, 0].copy())
    tracemalloc.start()
    try:
        engine(layer, arithmetic(name), check_finite=True).sequence(np.ones((40, cells), np.float32))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 * matrix.nbytes < peak <= 2 * matrix.nbytes + FIXED
