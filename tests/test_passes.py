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

from epur_emu import oracle
from epur_emu import passes as module
from epur_emu.arithmetic import GATES, Override, arithmetic
from epur_emu.emulator import emulate
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP16, FP32, FixedFormat, FloatFormat, parse
from epur_emu.network import LstmLayer, Network
from epur_emu.passes import COUNTED, EVENTS, PackedPass, level_number, levels, stored


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
        case.layer, gates, range(4), (1.0, 1.0), blocks, False, level_number(None), module.Counts()
    )
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


#: What does not grow with the weights: tables of activations, some rows on their way, sums of 32 steps.
FIXED = 3 * 2**19


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("epur-fp16", 1, 1), ("epur-bf16", 1, 1), ("epur-e4m3fn-sat", 1, 1), ("epur-int8", 0.5, 0.75)],
)
def test_no_memory_but_for_the_packed_weights(name, least, most):
    """With the imported weights, 16 bits each, no more than twice as much as these, and the outputs."""
    cells, steps = 768, 40
    matrix = np.full((4, cells, cells), 2.0**-7, np.float16)
    layer = LstmLayer("pass", matrix, matrix.copy(), matrix[:, 0].copy())
    x = np.ones((steps, cells), np.float32)
    tracemalloc.start()
    try:
        emulate(Network("one", ((layer,),)), x, arithmetic(name), alpha=ALPHA)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    weights = 2 * matrix.nbytes
    assert least * weights < peak <= most * weights + x.nbytes + FIXED
