"""The engine against the oracle, bit for bit and count for count, on every level that this CPU has."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from threading import active_count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import PLACES, Case, arithmetics, passes

from epur_emu import (
    ARITHMETICS,
    Accelerator,
    Engine,
    LstmLayer,
    Network,
    calibrate,
    emulate,
    emulator,
    oracle,
)
from epur_emu import passes as emulator_passes
from epur_emu.arithmetic import Override, arithmetic
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP16, FP32, MODES, FixedFormat, parse
from epur_emu.passes import BLOCK, COUNTED, EVENTS, PackedPass, level_number, levels

EPUR = ARITHMETICS["epur-fp16"]
KEPT = EPUR.with_partial(FP16)
ORDERS = ("epur", "epur-mwl")
ALPHA = {"pass": 9.5, "pass.input": 3.25, "pass.hidden": 0.875}


def engine(layer, a, order="epur", level=None, **options):
    options.setdefault("check_finite", False)
    return Engine(Network("n", ((layer,),)), a, order, ALPHA, level, **options)


def expected(case, a, order="epur", **options):
    h, c = case.state or (None, None)
    return oracle.evaluate_pass(
        case.layer, case.x, a, order, ALPHA["pass"], h, c,
        alpha_x=ALPHA["pass.input"], alpha_h=ALPHA["pass.hidden"], **options,
    )  # fmt: skip


def patterns(values):
    """Bit patterns, one for all NaNs."""
    values = np.array(values, np.float32)
    values[np.isnan(values)] = np.nan
    return values.view(np.uint32)


def same_bits(found, wanted):
    return np.array_equal(patterns(found), patterns(wanted))


def counted(run):
    """What an engine counted, as the oracle says it."""
    return {
        place: [row[e] for e in EVENTS]
        for stats in run.stats.values()
        for place, row in stats.places.items()
    }


def check(case, a, order="epur", every=None, wanted=None):
    """One case on the levels given, with counts and without."""
    wanted = wanted or expected(case, a, order)
    state = None if case.state is None else [case.state]
    for level in every or levels():
        run = engine(case.layer, a, order, level)
        assert same_bits(run.sequence(case.x, state)[0], wanted.h)
        assert counted(run) == {place: list(row) for place, row in wanted.counts.items()}
        blind = engine(case.layer, a, order, level, count=False)
        assert same_bits(blind.sequence(case.x, state)[0], wanted.h)
        for place, (overflow, underflow, saturation) in counted(blind).items():
            row = wanted.counts[place]
            assert (overflow, saturation) == (row[0], row[2])
            assert underflow <= row[1]


def usual(
    seed, inputs=18, cells=17, steps=2, scale=0.5, peepholes=True, reverse=False, x_scale=1.0
):
    """Sizes that networks have; by default a block of 16 neurons, and one that is not full."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.normal(size=shape) * scale).astype(np.float32)

    layer = LstmLayer(
        "pass", normal(4, cells, inputs), normal(4, cells, cells), normal(4, cells),
        normal(3, cells) if peepholes else None, reverse,
    )  # fmt: skip
    x = (rng.normal(size=(steps, inputs)) * x_scale).astype(np.float32)
    return Case(layer, x, (normal(cells), normal(cells)))


@settings(max_examples=120, deadline=None)
@given(passes(), arithmetics(), st.sampled_from(ORDERS))
def test_every_level_equals_the_oracle(case, a, order):
    check(case, a, order)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(passes(cells=18, steps=4), arithmetics(), st.sampled_from(ORDERS))
def test_every_level_equals_the_oracle_in_many_cases(case, a, order):
    check(case, a, order)


@settings(max_examples=40, deadline=None)
@given(
    passes(steps=3), st.lists(st.integers(0, 5), max_size=3), arithmetics(),
    st.integers(0, 2**32 - 1), st.sampled_from(levels()), st.integers(1, 2), st.booleans(),
)  # fmt: skip
def test_steps_of_several_states(case, again, a, index, level, threads, count):
    """A decoder's step: N states, some with equal inputs, are N sequences of one time step."""
    if n := len(case.x):
        case = replace(case, x=case.x[[*range(n), *(k % n for k in again)]])
    n = len(case.x)
    rng = np.random.default_rng(n)
    h, c = ((rng.normal(size=(n, case.layer.cells)) * 2).astype(np.float32) for _ in range(2))
    run = engine(case.layer, a, "epur-mwl", level, threads=threads, count=count)
    found_h, found_c = run.step(0, case.x, h, c, index)
    assert found_h.shape == found_c.shape == h.shape
    total = {place: [0, 0, 0] for place in counted(run)}
    for k in range(n):
        alone = Case(case.layer, case.x[k : k + 1], (h[k], c[k]))
        wanted = expected(alone, a, first_step=index)
        assert same_bits(found_h[k], wanted.h[0])
        assert same_bits(found_c[k], wanted.c)
        for place, row in wanted.counts.items():
            once = place == "weight" and k  # rounded once for all
            total[place] = [x + y * (not once) for x, y in zip(total[place], row, strict=True)]
            if not count and place in COUNTED[: COUNTED.index("mu")]:
                total[place][EVENTS.index("underflow")] = 0
    if n:
        assert counted(run) == total


@pytest.mark.parametrize("level", levels())
def test_equal_inputs_of_a_step(level):
    """They are multiplied once; other ones are not taken for them."""
    case = usual(3, steps=3)
    rng = np.random.default_rng(4)
    x = case.x[[0, 1, 0, 2, 1, 1]]
    x[3, :-1] = x[1, :-1]  # differs in its last element alone
    h, c = (rng.normal(size=(len(x), case.layer.cells)).astype(np.float32) for _ in range(2))
    found = engine(case.layer, EPUR, "epur", level, count=False).step(0, x, h, c)
    for k in range(len(x)):
        wanted = expected(Case(case.layer, x[k : k + 1], (h[k], c[k])), EPUR)
        assert same_bits(found[0][k], wanted.h[0]) and same_bits(found[1][k], wanted.c)


@settings(max_examples=40, deadline=None)
@given(passes(steps=2), arithmetics(raises=True), st.sampled_from(ORDERS))
def test_formats_that_raise(case, a, order):
    """The engine ends where the oracle ends, and is the same where it does not."""
    try:
        wanted = expected(case, a, order)
    except FormatError:
        wanted = None
    if wanted is not None:
        check(case, a, order, wanted=wanted)
        return
    for level in levels():
        with pytest.raises((NetworkError, FormatError), match="raise"):
            engine(case.layer, a, order, level).sequence(
                case.x, None if case.state is None else [case.state]
            )


def test_what_raised_is_named():
    w_x = np.zeros((4, 20, 1), np.float32)
    w_x[2, 18] = 3
    layer = LstmLayer("pass", w_x, np.zeros((4, 20, 20), np.float32), np.zeros((4, 20), np.float32))
    a = replace(
        arithmetic("epur-fp32+fp32"), accumulator=parse("q2.8-raise"), partial=parse("q2.8-raise")
    )
    with pytest.raises(
        NetworkError,
        match=r"pass: accumulator.* left the range of q2\.8-raise; use more bits, .*saturate: q2\.8$",
    ):
        engine(layer, a).sequence(np.full((1, 1), 2.0))
    engine(layer, a).sequence(np.full((1, 1), 1.0))


#: Arithmetics whose fast paths must be taken, and which one.
FORMS = {
    "epur-fp16": "halves", "epur-bf16": "pairs", "epur-tf32": "chain", "epur-fp32+fp32": "chain",
    "epur-e4m3fn-sat": "chain", "epur-e5m7": "chain", "epur-fp16-nosub": "general",
    "epur-e8m21": "general", "epur-q5.12": "general", "epur-q3.6-wrap": "general",
    "epur-e8m22": "wide", "epur-uq5.9": "general", "epur-int8": "integers",
}  # fmt: skip


def mixed(**places):
    """An fp16 arithmetic with other formats in some places."""
    values = {place: parse(name) for place, name in places.items()}
    if "accumulator" in values:
        values.setdefault("partial", values["accumulator"])
    return replace(KEPT, name="mixed", **values)


def path_at(path, level=None):
    """The path of a level, by default the one in use: only the last ones have instructions for some."""
    level = level or levels()[level_number(None)]
    having = {"pairs": ("avx512bf16", "avx512fp16"), "halves": ("avx512fp16",)}
    return path if level in having.get(path, (level,)) else "chain"


#: Formats that narrow along the chain, widen, or have operands of their own kind.
MIXED = (
    (mixed(product="fp32"), "general"),
    (mixed(weight="e4m3fn", product="e5m7", accumulator="fp32"), "chain"),
    (mixed(product="fp32", tree="bf16", accumulator="q6.9"), "general"),
    (mixed(weight="int8-row", product="bf16", tree="bf16", accumulator="fp32"), "chain"),
    (mixed(weight="int8-row", input="e4m3", product="bf16", tree="bf16", accumulator="e8m9"), "pairs"),
    (mixed(weight="bf16", input="mxfp6/16", product="bf16", tree="bf16", accumulator="fp32"), "pairs"),
    (mixed(input="mxfp8/16", mu="bf16", cell="bf16", output="bf16"), "chain"),
    (mixed(tree="e5m9", accumulator="e5m8", mu="e5m8", cell="e5m8", output="int12"), "general"),
    (mixed(product="e8m19", tree="fp32", accumulator="fp32"), "general"),
    (mixed(product="e5m7-nosub", tree="fp16-nosub", accumulator="fp32"), "general"),
    (mixed(product="e4m3-nosub", tree="e4m7-nosub", accumulator="bf16-nosub"), "general"),
    (mixed(product="e4m3", tree="e5m7-nosub", accumulator="fp16-nosub"), "chain"),
    # sums alone are float32; products alone are exact; both
    (mixed(tree="fp32", accumulator="fp32"), "chain"),
    (mixed(weight="e4m3", input="e3m2", accumulator="fp32"), "chain"),
    (mixed(weight="q1.3", input="e4m3", product="e5m7", tree="fp32", accumulator="fp32"), "chain"),
)  # fmt: skip
FAST = [
    *((arithmetic(name), path) for name, path in FORMS.items()),
    *MIXED,
    *(
        (replace(arithmetic(name), rounding=mode), "general")
        for name in ("epur-fp16", "epur-bf16", "epur-e4m3fn-sat", "epur-q5.12")
        for mode in MODES[1:5]
    ),
    *((replace(a, rounding=mode), "general") for a, _ in MIXED[:2] for mode in MODES[2:5]),
    *(
        (replace(arithmetic(name), rounding="stochastic", seed=7), path)
        for name, path in (("epur-fp16", "general"), ("epur-bf16", "general"),
                           ("epur-e5m7", "general"), ("epur-q3.6", "general"), ("epur-fp32", "general"),
                           ("epur-fp16-nosub", "general"))
    ),
    (replace(EPUR, rounding="stochastic", activation="exact"), "general"),
    *(
        (replace(mixed(**places), rounding="stochastic", seed=8), "general")
        for places in (
            {"weight": "e4m3fn", "product": "e5m7", "tree": "e5m9"},
            {"product": "e4m3fn", "tree": "e8m10", "accumulator": "e8m10"},
            {"weight": "e2m1", "product": "e3m0", "tree": "e4m5"},
            {"tree": "e5m8"},
            {"product": "e5m7-nosub", "tree": "fp16-nosub", "accumulator": "e5m10"},
        )
    ),
    *((replace(arithmetic("epur-q5.12"), activation=method), "general") for method in ("exact", "pwl-16")),
]  # fmt: skip


def label(value):
    return value if isinstance(value, str) else f"{value.name}-{value.rounding}-{value.activation}"


@pytest.mark.parametrize(("a", "path"), FAST, ids=label)
def test_fast_paths_at_usual_magnitudes(a, path):
    for order in ORDERS:
        case = usual(3, peepholes=order == "epur", reverse=order == "epur")
        assert engine(case.layer, a, order)._packed["pass"].paths == (path_at(path),)
        check(case, a, order)


@pytest.mark.parametrize(("a", "path"), FAST, ids=label)
def test_near_the_largest_value(a, path):
    """Sums that some rows, or steps, carry out of range: those alone go the long way."""
    rng = np.random.default_rng(7)
    top = 2.0**15 if a.integer else min(float(getattr(a, p).max) for p in PLACES[2:5])
    root = 2.0 ** (np.frexp(top)[1] // 2)
    weights = (rng.choice([-1.0, 1.0, 0.5], (4, 3, 33)) * root).astype(np.float32)
    weights[:, 0] = 0
    layer = LstmLayer(
        "pass", weights, np.full((4, 3, 3), 0.5, np.float32), np.full((4, 3), 0.25, np.float32)
    )
    parts = np.array([1, 2, 7.97, 15.9, 16, 33, 40, 1e4])
    x = (top / root / parts)[:, None] * np.ones(33)
    x[::2, ::2] *= -1
    for order in ORDERS:
        check(Case(layer, x.astype(np.float32), None), a, order, levels()[-1:])


@pytest.mark.parametrize(("a", "path"), FAST, ids=label)
def test_near_the_least_value(a, path):
    """Products and sums around the least normal value, or the least place of fixed point."""
    product = a.product
    fixed = isinstance(product, FixedFormat)
    least = float(1 if a.integer else product.epsilon if fixed else product.min_normal)
    root = 2.0 ** (np.frexp(least)[1] // 2)
    case = usual(5, cells=3, inputs=33, scale=root, x_scale=least / root * 2)
    for order in ORDERS:
        check(case, a, order, levels()[-1:])


@pytest.mark.parametrize("weight", [2.0**-126, 2.0**-128, 2.0**-62, 1.0, 2.0**10])
@pytest.mark.parametrize("a", [a for a, path in FAST if path == "pairs"], ids=label)
def test_pairs_with_subnormals(a, weight):
    """Operands, products and sums on both sides of the least normal value, step by step."""
    rng = np.random.default_rng(12)
    cells, inputs = 19, 37
    exponents = np.array([-139, -128, -126, -122, -119, -118, -117, -112, -60, 0])
    x = rng.choice([-1.0, 1.0, 1.25], (len(exponents), inputs)) * 2.0 ** exponents[:, None]
    with np.errstate(over="ignore"):
        x = np.minimum(x / weight, 2.0**100).astype(np.float32)
    signs = rng.choice([-1.0, 1.0, 1.0078125], (4, cells, inputs)) * weight
    layer = LstmLayer(
        "pass", signs.astype(np.float32), np.zeros((4, cells, cells), np.float32),
        np.zeros((4, cells), np.float32),
    )  # fmt: skip
    for order in ORDERS:
        check(Case(layer, x, None), a, order, levels()[-1:])


def end_to_end(a, w, x, bias):
    """A cell that shows gate g's sum: h is 0 exactly where the sum and its bias are."""
    w_x = np.zeros((4, 1, len(w)), np.float32)
    w_x[2, 0] = w
    layer = LstmLayer(
        "pass", w_x, np.zeros((4, 1, 1), np.float32),
        np.array([[4.0], [0.0], [bias], [4.0]], np.float32),
    )  # fmt: skip
    case = Case(layer, np.array([x], np.float32), None)
    check(case, a)
    return float(expected(case, a).h[0, 0])


def test_sums_that_float32_would_round_wrongly():
    up = replace(KEPT, rounding="up")
    assert end_to_end(up, [1.0, 2.0**-24], [1.0, 1.0], -1.0) > 0
    assert end_to_end(KEPT, [1.0, 2.0**-24], [1.0, 1.0], -1.0) == 0
    narrow = mixed(product="fp32", tree="bf16", accumulator="bf16", mu="bf16", cell="bf16")
    assert end_to_end(narrow, [1.0 + 2.0**-8, 2.0**-24], [1.0, 1.0], -1.0) > 0
    assert end_to_end(narrow, [1.0 + 2.0**-8, 0.0], [1.0, 1.0], -1.0) == 0


def test_products_that_need_rounding_although_their_bits_fit():
    """fp8 times fp8 is exact in fp16, but for e5m2's smallest ones; in e5m7, but where it has no subnormals."""
    a = mixed(weight="e5m2", input="e5m2", **dict.fromkeys(("mu", "cell", "output"), "fp32"))
    assert end_to_end(a, [1.25 * 2.0**-12], [2.0**-13], 0.0) > 0
    assert end_to_end(a, [2.0**-12], [2.0**-13], 0.0) == 0
    for name in ("e5m7", "e5m7-nosub"):
        places = dict.fromkeys(("product", "tree", "accumulator", "partial"), parse(name))
        b = replace(a, weight=parse("e4m3"), input=parse("e4m3"), **places)
        assert engine(usual(1).layer, b, count=False)._packed["pass"].paths == ("chain",)
        assert (end_to_end(b, [2.0**-9], [2.0**-9], 0.0) > 0) == (name == "e5m7")
    short = replace(a, weight=parse("e4m3"), input=parse("e4m3"), product=parse("e5m4"))
    assert end_to_end(short, [1.875, 1.0], [1.875, -3.5], 0.0) == 0  # 3.515625 takes 8 bits
    assert end_to_end(replace(short, product=FP16), [1.875, 1.0], [1.875, -3.5], 0.0) > 0


def test_a_product_that_float32_would_lose():
    """Just above half of the least value of e8m10, nearer to it than float32's least place."""
    a = replace(arithmetic("epur-tf32+tf32"), activation="exact")
    p, q = next(
        (p, q) for p in range(1025, 2048) for q in [-(-(2**21) // p)] if 0 < p * q - 2**21 < 256
    )
    w, x = np.ldexp(p, -79), np.ldexp(q, -79)
    assert 2.0**-137 < w * x < 2.0**-137 + 2.0**-150
    assert float(np.float32(w) * np.float32(x)) == 2.0**-137
    assert end_to_end(a, [w], [x], 0.0) == 2.0**-136
    assert end_to_end(a, [2.0**-69], [2.0**-68], 0.0) == 0


def test_a_product_with_more_bits_than_the_chain_keeps():
    """An odd 20-bit result whose multiple leaves its binade: the chain's form would make it even."""
    wide = dict.fromkeys(("tree", "accumulator", "mu", "cell", "output"), "fp32")
    a = replace(mixed(product="e8m19", **wide), activation="exact")
    assert end_to_end(a, [2043 / 2048], [2041 / 2048], -(2.0**-1)) > 0


#: What the chain takes where nothing is counted, as it flushes; and what it must leave.
FLUSHING = (
    *((arithmetic(f"epur-{name}-nosub"), True) for name in ("fp16", "bf16", "e4m3", "e5m7", "tf32")),
    (mixed(product="fp16-nosub", tree="fp16-nosub", accumulator="fp32"), True),
    (mixed(product="e5m7-nosub", tree="fp16-nosub", accumulator="e8m10-nosub"), True),
    (mixed(product="fp16-nosub", tree="fp16", accumulator="fp16"), False),
    (mixed(product="fp16", tree="fp16-nosub", accumulator="fp16-nosub"), False),
    (mixed(product="e5m7", tree="e5m9", accumulator="fp16-nosub"), False),
    (mixed(product="e4m3-nosub", tree="fp16-nosub", accumulator="fp16-nosub"), False),
    (mixed(weight="bf16", input="bf16", product="bf16-nosub", tree="bf16-nosub", accumulator="fp32"), False),
    (replace(arithmetic("epur-fp16-nosub"), rounding="up"), False),
)  # fmt: skip


@pytest.mark.parametrize(("a", "flushes"), FLUSHING)
@pytest.mark.parametrize("scale", [1.0, 2.0**-4])
def test_the_chain_without_subnormals(a, flushes, scale):
    """It is taken, it is right where results are near the least normal value, and it counts nothing."""
    if a.product.min_normal < 2.0**-100 and scale < 1:
        scale = 2.0**-62
    elif a.product.min_normal > 2.0**-10:
        scale = scale**0.5
    case = usual(11, inputs=40, scale=scale, x_scale=2 * scale)
    paths = [engine(case.layer, a, count=count)._packed["pass"].paths[0] for count in (False, True)]
    fast = path_at("pairs" if a.name == "epur-bf16-nosub" else "chain")
    assert paths == [fast if flushes else "general", "general"]
    for order in ORDERS:
        check(case, a, order)


def every(*names, modes=MODES):
    """Arithmetics with these formats in all of the DPU's places, in these modes."""
    places = ("product", "tree", "accumulator")
    return [
        replace(mixed(**dict.fromkeys(places, name)), rounding=mode, seed=9)
        for name in names
        for mode in modes
    ]


#: What float64 lanes take, and float32 lanes, with the accumulator in float64, where codes wrap or saturate.
RANGES = (
    *((a, "wide") for a in every("e8m22", "uq0.24", modes=("nearest-even", "up"))),
    *((a, "general") for a in every("fp32", modes=("nearest-away", "stochastic"))),
    *((a, "wide") for a in every("e8m20-nosub", "e6m14", "uq7.17", modes=("stochastic",))),
    *((a, "general") for a in every("q7.16", "uq3.4")),
    *((a, "general") for a in every("q5.12", "q3.4-wrap", "uq4.6-wrap", modes=MODES[::3])),
    *((a, "general") for a in every("e3m2", "e4m3fn", modes=MODES[2:])),
    *((a, "general") for a in every("e4m3fn-sat", "e2m1", "e5m2-nosub", modes=("nearest-away", "stochastic"))),
    (replace(mixed(product="e4m3", tree="q5.12", accumulator="fp32"), rounding="stochastic"), "general"),
    (replace(mixed(tree="q7.16", accumulator="e8m22"), rounding="stochastic"), "general"),
    (replace(mixed(tree="fp32", accumulator="e4m3"), rounding="stochastic"), "general"),
    (replace(mixed(product="q5.12", tree="fp32", accumulator="fp32"), rounding="stochastic"), "general"),
    (replace(mixed(product="e8m9-nosub", tree="fp32"), rounding="nearest-away"), "general"),
    (mixed(tree="e2m1"), "general"),
    (mixed(product="e4m3", tree="fp16", accumulator="q7.16"), "general"),
    (mixed(product="bf16", tree="q7.16", accumulator="bf16"), "general"),
    (mixed(product="q7.16", tree="bf16", accumulator="q7.16-wrap"), "general"),
    *(
        (replace(mixed(**places), rounding=mode, seed=10), "general")
        for places in (
            {"product": "uq5.12"}, {"tree": "uq5.12"}, {"product": "uq3.4", "tree": "uq5.12"},
            {"product": "q5.12-wrap"}, {"product": "uq5.12-wrap"}, {"tree": "uq3.8-wrap"},
            {"product": "q3.4-wrap", "tree": "q4.6-wrap", "accumulator": "fp32"},
            {"product": "q3.4-wrap", "accumulator": "uq3.4-wrap"},
            {"product": "q7.16-wrap", "tree": "e4m3"}, {"product": "uq7.16-wrap"}, {"tree": "uq7.16-wrap"},
            {"product": "q2.20", "tree": "q2.20", "accumulator": "q2.20"},
        )
        for mode in ("nearest-even", "nearest-away", "down")
    ),
    (replace(mixed(product="uq5.12-wrap"), rounding="stochastic"), "wide"),
    (replace(mixed(tree="q5.12-wrap"), rounding="stochastic"), "wide"),
    (replace(mixed(tree="q2.20", accumulator="e6m1"), rounding="nearest-away"), "general"),
    (mixed(product="e4m3", tree="e4m3fn", accumulator="fp16-sat"), "chain"),
    (mixed(product="fp16", tree="bf16-sat", accumulator="q5.12"), "general"),
    (replace(mixed(product="e3m2-sat", tree="e4m3fn-sat"), rounding="up"), "general"),
    (mixed(product="e4m3fn-sat", tree="q3.4-wrap", accumulator="e5m2-sat"), "general"),
    (mixed(product="fp32", tree="e8m22", accumulator="e8m22"), "wide"),
    (mixed(product="fp32", tree="e5m20", accumulator="e8m22"), "general"),
)  # fmt: skip


#: Stochastic mixes by bits in lanes of either width, the tree and accumulator beside the product.
DRAWN = (
    *((name, name, name, path) for name, path in (
        ("e6m14", "wide"), ("e6m14-nosub", "wide"), ("e8m20", "wide"), ("e8m20-nosub", "wide"),
        ("e5m12", "wide"), ("fp32", "general"),
    )),
    *((name, "fp32", "fp32", "general") for name in ("fp16", "bf16", "tf32", "q5.12", "e4m3", "fp16-nosub")),
    ("bf16", "q7.16", "q7.16", "general"), ("fp16", "q7.16", "q7.16", "general"),
    ("e6m14", "q3.8", "q7.16", "wide"),
    ("bf16", "e8m14", "e8m18", "wide"), ("e6m10-nosub", "e6m14-nosub", "e8m18-nosub", "wide"),
    ("e6m14-nosub", "e8m20", "e8m20", "wide"),
)  # fmt: skip


@pytest.mark.parametrize(("product", "tree", "accumulator", "path"), DRAWN)
@pytest.mark.parametrize("operand", ["fp16", "fp32"])
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 70), scale=st.sampled_from([2.0**-7, 0.1, 1.0]),
       x_scale=st.sampled_from([1e-12, 0.01, 1.0, 30.0]), order=st.sampled_from(ORDERS))  # fmt: skip
def test_stochastic_by_bits(product, tree, accumulator, path, operand, seed, inputs, scale, x_scale, order):
    """Products, trees and sums of all forms that add the random number to bits."""
    places = {"product": product, "tree": tree, "accumulator": accumulator, "partial": accumulator}
    a = replace(mixed(weight=operand, input=operand, **places), rounding="stochastic", seed=seed)
    case = usual(seed, inputs=inputs, scale=scale, x_scale=x_scale)
    assert engine(case.layer, a, count=False)._packed["pass"].paths == (path,)
    check(case, a, order)


@pytest.mark.parametrize(("a", "path"), RANGES)
@pytest.mark.parametrize("scale", [2.0**-6, 4.0])
def test_results_beyond_the_range(a, path, scale):
    """Where results are small, and often leave the range."""
    case = usual(11, inputs=40, scale=scale, x_scale=2 * scale)
    assert engine(case.layer, a, count=False)._packed["pass"].paths == (path,)
    check(case, a, ORDERS[scale > 1])


@pytest.mark.parametrize("where", ["x", "h", "w_x", "w_h"])
@pytest.mark.parametrize(
    "a",
    [
        *every("fp16", "e4m3fn", "e8m22", modes=MODES),
        *every("q5.12", "q3.4-wrap", "fp16-nosub", modes=MODES[::3]),
        mixed(product="q5.12"), mixed(tree="q3.4-wrap", accumulator="fp32"), mixed(accumulator="uq7.8"),
        mixed(product="e4m3fn-sat", tree="fp32", accumulator="fp32"),
        mixed(product="fp16", tree="bf16-sat", accumulator="q5.12"),
        mixed(product="q7.16", tree="q7.16", accumulator="fp32"),
        mixed(product="e2m5", tree="q7.16", accumulator="uq3.4"),
        *every("fp32", modes=("nearest-away", "stochastic")),
        replace(KEPT, overrides=(Override("pass", "i", tuple((p, parse("q23.0")) for p in PLACES[2:5])),)),
    ],
    ids=label,
)  # fmt: skip
def test_operands_that_are_not_finite(a, where):
    """Infinities and not-a-number, beside weights that are 0 and such that are not."""
    plain = usual(13, inputs=20, steps=3, scale=0.5, x_scale=2.0)
    w_x, w_h, x, h = (np.array(v) for v in (plain.layer.w_x, plain.layer.w_h, plain.x, plain.state[0]))
    w_x[:, :9, 3] = w_h[:, :9, 3] = 0
    rows = {"x": x, "h": [h], "w_x": w_x[:, 12], "w_h": w_h[:, 12]}[where]
    for row, odd in zip(rows, ([np.nan, -np.inf], [np.inf], [-np.inf, np.inf]), strict=False):
        row[3 : 3 + len(odd)] = odd
    layer = replace(plain.layer, w_x=w_x, w_h=w_h)
    check(Case(layer, x, (h, plain.state[1])), a, every=levels()[1:])


def test_products_too_large_for_the_random_bits_of_float32():
    """Beyond 2^12 units float32 lanes must hold the products. A fine MU shows each unit of a sum."""
    fine = dict.fromkeys(("mu", "cell", "output"), FP32)
    for a in every("q7.16", "q5.16-wrap", modes=("stochastic",)):
        for operand in (FP16, FP32):
            b = replace(a, weight=operand, input=operand, **fine)
            assert engine(usual(1).layer, b)._packed["pass"].paths == ("general",)
            check(usual(12, inputs=40, scale=0.5, x_scale=0.5), b)


@pytest.mark.parametrize("mode", ["nearest-away", "stochastic"])
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 18), st.sampled_from([2.0**-13, 2.0**-110, 2.0**-126]),
    st.booleans(),
)  # fmt: skip
def test_what_float32_cuts_off(mode, seed, inputs, scale, short):
    """Products and sums at half places and beside them; g's sum is so small that its tanh shows each place."""
    odd = 1 + 2.0**-23
    near = [1.0, 1.5, odd, 2 - 2.0**-23, 2.0**-23, 2.0**-24, 3 * 2.0**-25, 2.0**-24 - 2.0**-48, 2.0**-60]
    rng = np.random.default_rng(seed)
    w = rng.choice([0.0, *near, *(-v for v in near)], (4, 17, inputs)) * scale
    x = rng.choice([1.0, -1.0] if short else [1.0, 1.5, -1.0, odd, 0.0], (1, inputs))
    none = np.zeros((4, 17, 17), np.float32)
    layer = LstmLayer("pass", w.astype(np.float32), none, none[:, 0])
    a = replace(arithmetic("epur-fp32"), rounding=mode, seed=3, activation="exact")
    assert engine(layer, a)._packed["pass"].paths == ("general",)
    check(Case(layer, x.astype(np.float32), None), a)


def test_products_and_sums_just_below_the_normal_range():
    """The least normal value is 2**-14, and the places below it end at 2**-25."""
    wide = dict.fromkeys(("mu", "cell", "output"), "fp32")
    a = mixed(product="fp16-nosub", tree="fp16-nosub", accumulator="fp16-nosub", **wide)
    assert engine(usual(1).layer, a, count=False)._packed["pass"].paths == ("chain",)
    half = 2.0**-14 - 2.0**-26
    assert half == (63 * 2.0**-13) * (65 * 2.0**-13)
    # nearest to it from below
    pairs = ((p, 2096639 // p) for p in range(1025, 2048))
    p, q = max(pairs, key=lambda pair: pair[0] * pair[1])
    assert half - 2.0**-32 < np.ldexp(p * q, -35) < half
    for sign in (1, -1):
        assert sign * end_to_end(a, [63 * 2.0**-13], [sign * 65 * 2.0**-13], 0.0) > 0
        # 2**-14 (1 - 2**-10) is 0, although 2**-14 is nearer by far
        assert end_to_end(a, [1023 * 2.0**-14], [sign * 2.0**-10], 0.0) == 0
        assert end_to_end(a, [np.ldexp(p, -12)], [sign * np.ldexp(q, -23)], 0.0) == 0
        # two products that cancel to less than the least normal value, and to no less
        assert end_to_end(a, [1.0, 1.0], [sign * 1.5 * 2.0**-13, -sign * 1.25 * 2.0**-13], 0.0) == 0
        assert sign * end_to_end(a, [1.0, 1.0], [sign * 2.0**-13, -sign * 2.0**-14], 0.0) > 0
        # in the accumulator
        x = [sign * 1.5 * 2.0**-13, *[0.0] * 15, -sign * 1.25 * 2.0**-13]
        assert end_to_end(a, [1.0] * 17, x, 0.0) == 0
        # where the accumulator has subnormals, it keeps what its own sums leave
        kept = mixed(product="fp16-nosub", tree="fp16-nosub", accumulator="fp32", **wide)
        assert sign * end_to_end(kept, [1.0] * 17, x, 0.0) > 0
    # zeros of either sign: -0 + -0, and -tiny
    assert end_to_end(a, [-1.0, 0.5, 2.0**-14], [0.0, -0.0, -(2.0**-14)], 0.0) == 0


@pytest.mark.parametrize("level", levels())
def test_inputs_that_only_large_weights_lift(level):
    """The chain's own inputs are subnormal in float32 here, while products are not small."""
    places = dict.fromkeys(("product", "tree", "accumulator"), "fp16-nosub")
    a = mixed(weight="bf16", input="bf16", **places)
    for weight, x in ((2.0**60, 1.5 * 2.0**-70), (1.5 * 2.0**-10, 2.0**-3), (2.0**5, 2.0**-27)):
        case = Case(
            LstmLayer("pass", np.full((4, 1, 2), weight, np.float32), np.zeros((4, 1, 1), np.float32),
                      np.ones((4, 1), np.float32)),
            np.full((1, 2), x, np.float32), None,
        )  # fmt: skip
        assert engine(case.layer, a, count=False)._packed["pass"].paths == ("chain",)
        check(case, a, every=[level])


@pytest.mark.parametrize("steps", [BLOCK - 1, BLOCK + 1, 2 * BLOCK + 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_of_time_steps_do_not_show(steps, reverse):
    """Longer than the block that shares a reading of the weights."""
    case = usual(steps, 4, 3, steps, reverse=reverse)
    for a in (
        EPUR,
        ARITHMETICS["epur-int8"],
        replace(EPUR, rounding="stochastic", seed=5),
        replace(arithmetic("epur-e8m22"), activation="exact"),
    ):
        for order in ORDERS:
            check(case, a, order, levels()[-1:])


SEVERAL = [
    *FAST[::2],
    (replace(KEPT, overrides=(Override("pass", "f", (("accumulator", FP32), ("mu", FP32))),)), "gates"),
]


@pytest.mark.parametrize(("a", "path"), SEVERAL, ids=label)
def test_threads_that_share_neurons(a, path):
    """Rows in fours, blocks that are no multiple of the threads, and more threads than blocks."""
    case = usual(13, cells=70, steps=3)
    for order in ORDERS:
        for count in (True, False):
            one = engine(case.layer, a, order, count=count)
            wanted = one.sequence(case.x, [case.state])[0]
            for threads in (2, 3, 9):
                run = engine(case.layer, a, order, count=count, threads=threads)
                assert same_bits(run.sequence(case.x, [case.state])[0], wanted)
                assert run.stats == one.stats


STREAMED = [
    *FAST[::3], *MIXED[3:6], *SEVERAL[-1:],
    (replace(KEPT, overrides=(Override("pass", "g", (("input", parse("e4m3")),)),)), "inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "path"), STREAMED, ids=label)
@pytest.mark.parametrize("reverse", [False, True])
def test_forward_weights_packed_in_portions(a, path, reverse, monkeypatch):
    """The same bits and counts as with all weights packed: some blocks of steps, the last portion short."""
    monkeypatch.setattr(emulator, "SMALL", 0)
    monkeypatch.setattr(emulator_passes, "BLOCK", 4)
    case = usual(13, inputs=40, cells=83, steps=21, reverse=reverse)
    if reverse:
        w = (case.layer.w_x.astype(np.float16), case.layer.w_h.astype(np.float16))
        case = replace(case, layer=replace(case.layer, w_x=w[0], w_h=w[1]))
    for order in ORDERS:
        for count, threads in ((True, 1), (False, 1), (True, 3)):
            options = {"count": count, "threads": threads}
            kept = engine(case.layer, a, order, **options)
            streams = engine(case.layer, a, order, keep=False, **options)
            packed = streams._packed_pass(case.layer)
            assert len(packed.streamed) == (path != "integers") * packed.groups
            assert path == "integers" or 4 <= packed._block(21, 1) < 21
            wanted = kept.sequence(case.x, [case.state])[0]
            assert same_bits(streams.sequence(case.x, [case.state])[0], wanted)
            assert streams.stats == kept.stats


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_threads_are_let_go(error, monkeypatch):
    case, before = usual(13, cells=70), active_count()

    def fails(*_):
        assert active_count() == before + 2
        raise error

    monkeypatch.setattr(PackedPass, "_store", fails)
    with pytest.raises(error):
        engine(case.layer, EPUR, "epur-mwl", threads=3).sequence(case.x)
    assert active_count() == before


@pytest.mark.parametrize("order", ORDERS)
def test_threads_over_several_blocks_of_time_steps(order):
    rng = np.random.default_rng(11)
    network, x = stacked(rng, (21, 18)), rng.normal(size=(3 * BLOCK + 5, 6)).astype(np.float32)
    alpha = calibrate(network, [x]) | {f"{p.name}.input": 3.0 for p in network.passes}
    for a in (EPUR, ARITHMETICS["epur-int8"]):
        one, two, many = (Engine(network, a, order, alpha, threads=n) for n in (1, 2, 5))
        wanted = one.sequence(x)
        for run in (two, many):
            for found, layer in zip(run.sequence(x), wanted, strict=True):
                assert same_bits(found, layer)
            assert run.stats == one.stats


def test_a_sum_left_its_range_in_a_thread():
    """The first place that raised is named, whichever thread was there."""
    layer = usual(0, 4, 40, steps=2).layer
    x = np.zeros((3 * BLOCK, 4), np.float32)
    x[BLOCK // 2 :] = 1.0
    narrow = FixedFormat(9, 0, overflow="raise")
    a = replace(ARITHMETICS["epur-int8"], product=narrow, tree=narrow, accumulator=narrow)
    messages = set()
    for threads in (1, 2, 3):
        with pytest.raises(NetworkError) as caught:
            engine(layer, a, threads=threads).sequence(x)
        messages.add(str(caught.value))
    assert len(messages) == 1


@settings(max_examples=40)
@given(st.sampled_from(["fp16", "e4m3", "e5m2", "e4m3fn-sat", "e5m7"]), st.integers(0, 2**32 - 1))
def test_underflows_of_products_at_every_level(name, seed):
    """Weights and inputs of every exponent and every number of last zeros."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        significand = rng.integers(-2047, 2048, shape) >> rng.integers(0, 11, shape)
        return np.ldexp(significand, rng.integers(-34, -8, shape)).astype(np.float32)

    cells, inputs = int(rng.integers(1, 50)), int(rng.integers(1, 40))
    layer = LstmLayer("pass", drawn(4, cells, inputs), drawn(4, cells, cells), drawn(4, cells))
    x = drawn(3, inputs) * np.float32(2.0 ** rng.integers(0, 12))
    a = arithmetic(f"epur-{name}")
    runs = [engine(layer, a, level=level) for level in levels()]
    for run in runs:
        run.sequence(x)
        assert counted(run) == counted(runs[0])  # the scalar kernel makes all products


@pytest.mark.parametrize("away", [False, True])
def test_sums_up_to_the_bound_of_a_long_accumulation(away):
    """However many additions, one to the nearest value adds at most twice its term."""
    a = arithmetic("epur-e4m3fn-sat")
    a = replace(a, rounding="nearest-away") if away else a
    rng = np.random.default_rng(2)
    for size in (1.0, 3.0, 12.0):  # surely within, by the way it takes, and beyond
        w_x = (rng.uniform(0.1, 0.14, (4, 16, 16 * 40)) * size).astype(np.float32)
        layer = LstmLayer(
            "pass", w_x, np.zeros((4, 16, 16), np.float32), np.zeros((4, 16), np.float32)
        )
        x = rng.uniform(0.4, 0.7, (2, 16 * 40)).astype(np.float32)
        check(Case(layer, x, None), a)


def test_a_short_and_a_long_way_side_by_side():
    """Steps that overflow and steps that do not share one reading of the weights."""
    w_x = np.full((4, 2, 3), 62688.0, np.float32)
    layer = LstmLayer("pass", w_x, np.zeros((4, 2, 2), np.float32), np.zeros((4, 2), np.float32))
    x = np.array([[0, 0, 1.046], [0, 0, 0], [0, 0, 0.5]], np.float32)
    wanted = expected(Case(layer, x, None), EPUR)
    assert np.isfinite(wanted.h).all()
    assert wanted.counts["product"][0] > 0
    check(Case(layer, x, None), EPUR)


def as_a_pass(weights):
    """A pass of 16 k neurons whose gate i has these weights (16 k, I); the rest is 0."""
    cells, inputs = weights.shape
    w_x = np.zeros((4, cells, inputs), np.float32)
    w_x[0] = weights
    return LstmLayer(
        "pass", w_x, np.zeros((4, cells, cells), np.float32), np.zeros((4, cells), np.float32)
    )


def forward(layer, x, a, level):
    """Forward sums of gate i, (T, cells)."""
    packed = engine(layer, a, level=level)._packed["pass"]
    sums, _, bound = packed._arrays(len(x))
    room = np.empty(packed.compiled.room(len(x)), np.uint8).view(np.int8)
    packed.compiled.forward(
        np.ascontiguousarray(x, np.float32), sums, None, bound, 0, 1, np.zeros((8, 4), np.int64),
        np.full(1, -1, np.int64), None, room,
    )  # fmt: skip
    return sums[:, :-1].reshape(len(x), -1, 4, 16)[:, :, 0].reshape(len(x), -1)


@pytest.mark.parametrize("level", levels())
def test_every_product_of_two_binades(level):
    """All pairs of a binade's 1,024 significands, where products round up, down and tie."""
    m = (np.arange(1024, dtype=np.uint16) | 0x3C00).view(np.float16)
    for exponent in (0, -7, -13, -14, -24):  # down to where every product is subnormal
        x = (m.astype(np.float64) * 2.0**exponent).astype(np.float16).astype(np.float32)
        w = m.astype(np.float32)
        found = forward(as_a_pass(w[:, None]), x[:, None], EPUR, level)
        assert np.array_equal(found, (x[:, None] * w).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("level", levels())
def test_sums_of_far_and_near_values(level):
    """a + b over exponents apart by 0 to 25 places, significands at the edges of ties and binades."""
    edge = np.array([0, 1, 2, 511, 512, 513, 1022, 1023], np.uint16)
    values = (edge[None, :] | (np.arange(1, 31, dtype=np.uint16)[:, None] << 10)).reshape(-1)
    values = np.concatenate([values[values < 0x7400], edge]).view(np.float16).astype(np.float32)
    values = np.concatenate([values, -values])
    b = values[: len(values) // 16 * 16]
    x = np.stack([values, np.ones_like(values)], 1)
    found = forward(as_a_pass(np.stack([np.ones_like(b), b], 1)), x, EPUR, level)
    wanted = (values.astype(np.float64)[:, None] + b.astype(np.float64)).astype(np.float16)
    assert np.array_equal(found, wanted)  # zeros' signs do not leave the adder tree


def stacked(rng, cells=(5, 4), inputs=6):
    layers, width = [], inputs
    for n, count in enumerate(cells):
        passes = []
        for d in ("forward", "backward"):
            arrays = [
                (rng.normal(size=shape) * 0.4).astype(np.float16)
                for shape in ((4, count, width), (4, count, count), (4, count))
            ]
            passes.append(LstmLayer(f"{n}.{d}", *arrays, reverse=d == "backward"))
        layers.append(tuple(passes))
        width = 2 * count
    return Network("stack", tuple(layers))


@pytest.mark.parametrize("name", ["epur", "epur-mwl"])
def test_a_bidirectional_stack(name):
    rng = np.random.default_rng(3)
    network, x = stacked(rng), rng.normal(size=(9, 6)).astype(np.float32)
    alpha = calibrate(network, [x])
    result = emulate(network, x, EPUR, Accelerator.load(name), alpha)
    given_x = x
    for layer, found in zip(network.layers, result.layers, strict=True):
        wanted = [oracle.evaluate_pass(p, given_x, EPUR, name, alpha[p.name])[0] for p in layer]
        given_x = np.concatenate(wanted, -1)
        assert same_bits(found, given_x)
    float32 = emulate(network, x, ARITHMETICS["float32"]).outputs
    assert 0 < np.abs(result.outputs - float32).max() < (0.02 if name == "epur" else 0.1)
    assert result.cycles == result.trace.cycles > 0


def test_float32_reference_equals_the_definition():
    rng = np.random.default_rng(5)
    layer = LstmLayer(
        "p",
        *(
            (rng.normal(size=s) * 0.5).astype(np.float32)
            for s in ((4, 3, 4), (4, 3, 3), (4, 3), (3, 3))
        ),
    )
    x = rng.normal(size=(6, 4))
    found = Engine(Network("n", ((layer,),)), ARITHMETICS["float32"]).sequence(x)[0]
    h, c = np.zeros(3), np.zeros(3)
    w_x, w_h, b, p = (
        a.astype(np.float64) for a in (layer.w_x, layer.w_h, layer.bias, layer.peepholes)
    )
    for t in range(6):
        i, f, g, o = w_x @ x[t] + w_h @ h + b
        c = np.tanh(g) / (1 + np.exp(-i - p[0] * c)) + c / (1 + np.exp(-f - p[1] * c))
        h = np.tanh(c) / (1 + np.exp(-o - p[2] * c))
        np.testing.assert_allclose(found[t], h, rtol=1e-5, atol=1e-6)


def test_overflow_and_underflow_are_counted():
    big = LstmLayer(
        "p",
        np.full((4, 1, 2), 60000.0, np.float16),
        *[np.zeros(s, np.float16) for s in ((4, 1, 1), (4, 1))],
    )
    engine = Engine(Network("n", ((big,),)), EPUR)
    engine.sequence(np.ones((1, 2)))
    assert engine.stats["p"].overflow == 4  # 120,000 in each gate
    calm = LstmLayer("p", *[np.zeros(s, np.float16) for s in ((4, 1, 2), (4, 1, 1), (4, 1))])
    engine = Engine(Network("n", ((calm,),)), EPUR)
    engine.sequence(np.ones((3, 2)))
    assert (engine.stats["p"].overflow, engine.stats["p"].underflow) == (0, 0)


def test_bad_input_is_named():
    network = stacked(np.random.default_rng(0))
    with pytest.raises(NetworkError, match=r"0\.forward: input has shape \(2, 5\); give \(T, 6\)"):
        Engine(network, EPUR).sequence(np.zeros((2, 5)))
    for odd in (np.zeros((2, 6), complex), np.full((2, 6), "1")):
        with pytest.raises(NetworkError, match="real numbers"):
            emulate(network, odd, EPUR)
    x = np.zeros((2, 6))
    x[1, 3] = np.nan
    with pytest.raises(NetworkError, match=r"input, index \[1, 3\] is nan"):
        Engine(network, EPUR).sequence(x)
    x[1, 3] = 65520.0
    Engine(network, ARITHMETICS["float32"]).sequence(x)
    with pytest.raises(NetworkError, match=r"index \[1, 3\] is 65520.0, not finite in fp16"):
        Engine(network, EPUR).sequence(x)
    with pytest.raises(NetworkError, match="alpha is 0"):
        Engine(network, EPUR, "epur-mwl").sequence(np.zeros((2, 6)))
    with pytest.raises(FormatError, match="one of"):
        Engine(network, EPUR, level="mmx")
    wide = replace(Accelerator.load("epur"), width=32)
    with pytest.raises(FormatError, match="width is 32"):
        emulate(network, np.zeros((2, 6)), EPUR, wide)
    assert emulate(network, np.zeros((2, 6)), ARITHMETICS["float32"], wide).cycles > 0
    with pytest.raises(NetworkError, match=r"w_x, gate f, index \[2, 1\] is inf"):
        weights = np.zeros((4, 3, 2), np.float16)
        weights[1, 2, 1] = np.inf
        layer = LstmLayer(
            "l", weights, np.zeros((4, 3, 3), np.float16), np.zeros((4, 3), np.float16)
        )
        Engine(Network("n", ((layer,),)), EPUR)
    weights = np.zeros((4, 300, 300), np.float32)
    weights[3, 299, 7] = 65520.0
    with pytest.raises(NetworkError, match=r"w_h, gate o, index \[299, 7\] is 65520.0, not finite in fp16"):
        layer = LstmLayer("l", weights[..., :2].copy(), weights, weights[..., 0].copy())
        Engine(Network("n", ((layer,),)), EPUR)


def test_a_level_is_forced_by_the_environment(monkeypatch):
    monkeypatch.setenv("EPUR_SIMD", "scalar")
    assert level_number(None) == 0
    monkeypatch.setenv("EPUR_SIMD", "nonsense")
    with pytest.raises(FormatError, match="nonsense"):
        level_number(None)


def test_importing_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import epur_emu.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [1e-3, 0.13])
@pytest.mark.parametrize("mode", ["nearest-even", "nearest-away", "up"])
@pytest.mark.parametrize("place", ["q1.2", "q1.2-wrap", "e2m1fn", "e2m2-nosub", "e2m4"])
def test_small_values_that_round_away_leave_the_range(place, mode, size):
    """Each product may grow to a unit of the format, far beyond what its magnitude tells."""
    weights = np.full((4, 2, 60), size, np.float32)
    layer = LstmLayer("pass", weights, weights[:, :, :2], weights[:, :, 0])
    case = Case(layer, np.ones((2, 60), np.float32), None)
    form = parse(place)
    a = replace(
        EPUR, product=form, tree=form, accumulator=form, partial=form, rounding=mode
    )  # fmt: skip
    for order in ORDERS:
        check(case, a, order)


@pytest.mark.parametrize("name", ["epur-fp16", "epur-int8"])
def test_a_single_sequence_keeps_one_pass_packed(name):
    """With the imported weights, 16 bits each, less than twice as much as these, and the outputs."""
    cells, rng = 256, np.random.default_rng(3)

    def weights():
        return rng.uniform(-0.1, 0.1, (4, cells, cells)).astype(np.float16)

    network = Network(
        "four",
        tuple(
            (LstmLayer(str(n), weights(), weights(), np.zeros((4, cells), np.float16)),) for n in range(4)
        ),
    )
    x, a = rng.uniform(-1, 1, (33, cells)).astype(np.float32), arithmetic(name)
    alpha = {f"{n}.{what}": 1.0 for n in range(4) for what in ("input", "hidden")}
    emulate(network, x, a, alpha=alpha)  # what is kept for good: tables, rooms
    tracemalloc.start()
    try:
        found = emulate(network, x, a, alpha=alpha)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(p.w_x.nbytes + p.w_h.nbytes for p in network.passes)
    assert size / 8 < peak < size + sum(layer.nbytes for layer in found.layers)
    kept = Engine(network, a, alpha=alpha)
    for ours, theirs in zip(found.layers, kept.sequence(x), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert found.stats == tuple(kept.stats.values())
