"""Tables of activations against the oracle's exact enclosures; errors of each method by definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from epur_emu import activations, oracle
from epur_emu.activations import (
    FUNCTIONS,
    errors,
    evaluate,
    exp_table,
    function_table,
    pwl_table,
    values,
)
from epur_emu.arithmetic import arithmetic
from epur_emu.errors import FormatError
from epur_emu.formats import parse
from epur_emu.rounding import round_to

MODES = ("nearest-even", "nearest-away", "zero", "up", "down")
RNG = np.random.default_rng(8)


def same(found, wanted):
    return np.array_equal(
        np.asarray(found, np.float32), np.asarray(wanted, np.float32), equal_nan=True
    )


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "e4m3fn", "e2m1f", "fp16-nosub", "e5m0"])
def test_values_are_the_formats_own(name):
    form = parse(name)
    found = values(form)
    assert len(found) == 2**form.bits
    finite = found[np.isfinite(found)]
    assert same(round_to(finite, form), finite)
    assert finite.max() == float(form.max)
    assert finite[finite > 0].min() == float(form.min_positive)
    assert (
        len(found) - len(finite)
        == {"ieee": 2 * 2**form.mantissa_bits, "fn": 2, "none": 0}[form.specials]
    )
    half = len(found) // 2
    assert same(found[half:], -found[:half] + np.float32(0))
    # As many different values as codes, but for the second zero and codes without a value.
    lost = 2 * (2**form.mantissa_bits - 1) if not form.subnormals else 0
    assert len(np.unique(finite)) == len(finite) - 1 - lost


def test_values_of_numpy_and_of_fixed_point():
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    assert same(values(parse("fp16")), halves)
    assert values(parse("q1.1")).tolist() == [0, 0.5, 1, 1.5, -2, -1.5, -1, -0.5]
    assert values(parse("uq1.1")).tolist() == [0, 0.5, 1, 1.5]


class Unit(oracle._Unit):
    """The oracle's MU alone, without a pass."""

    def __init__(self, rules):
        self.a, self.limit, self.key, self.operation = rules, rules.limit, 0, 0
        self.case = self

    def count(self, *event):
        pass


def picks(form):
    """Codes of every kind: a sample, the ends, values near 0 and where functions saturate."""
    v = values(form)
    near = [
        0,
        1e-30,
        2.0**-40,
        2.0**-31,
        2.0**-30,
        2.0**-17,
        2.0**-16,
        2.0**-12,
        1,
        4,
        8,
        9,
        11,
        15,
        15.1,
        17,
        25,
        25.1,
        40,
        90,
        700,
    ]
    places = [int(np.nanargmin(np.abs(v - s * x))) for x in near for s in (1, -1)]
    return sorted({*places, *map(int, RNG.integers(0, len(v), 60)), 1, 2, len(v) // 2 + 1})


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3fn", "q3.12", "e6m8-nosub"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_tables_are_correctly_rounded(kind, name):
    form = parse(name)
    v = values(form)
    for mode in MODES:
        table = function_table(kind, form, mode)
        for code in picks(form):
            wanted = oracle.function(kind, float(v[code]), form, mode).value
            assert same(table[code], wanted), (v[code], mode)


def test_every_exp_of_fp16_agrees_with_decimal():
    """The exact way of the doubtful values, for all: Ziv's test lets nothing wrong through."""
    form = parse("fp16")
    v = values(form)
    usual = {kind: function_table(kind, form, "up") for kind in FUNCTIONS}
    codes = np.arange(0, 65536, 61)
    codes = codes[np.isfinite(v[codes]) & (np.abs(v[codes]) < 20)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "_TRUSTED", 1.0)
        patch.setattr(
            activations, "_estimate", lambda kind, x: (np.ones_like(x), np.zeros(x.shape, bool))
        )
        for kind in FUNCTIONS:
            slow = activations.correctly_rounded(kind, v[codes], form, "up")
            assert same(slow, usual[kind][codes])


def test_limits():
    table = exp_table(parse("bf16"))
    v = values(parse("bf16"))
    assert table[v == np.inf] == np.inf
    assert table[v == -np.inf] == 0
    assert np.isnan(table[np.isnan(v)]).all()
    up = exp_table(parse("bf16"), "up")
    assert up[v == -float(parse("bf16").max)] == float(parse("bf16").min_positive)
    assert function_table("sigmoid", parse("fp16"))[values(parse("fp16")) == np.inf] == 1
    assert not table.flags.writeable


@pytest.mark.parametrize(
    ("kind", "name", "mode"),
    [
        ("cosh", "fp16", "up"),
        ("exp", "fp16", "stochastic"),
        ("exp", "tf32", "up"),
        ("exp", "int8", "up"),
    ],
)
def test_no_table(kind, name, mode):
    with pytest.raises(FormatError):
        function_table(kind, parse(name), mode)


@pytest.mark.parametrize("name", ["fp16", "fp32", "bf16", "q3.12"])
@pytest.mark.parametrize("segments", [2, 3, 16, 255])
def test_segments(name, segments):
    form = parse(name)
    for kind, high in activations.ENDS.items():
        slopes, intercepts = pwl_table(kind, segments, form)
        assert len(slopes) == len(intercepts) == segments
        for k in {0, 1, segments // 2, segments - 1}:
            middle = (2 * k + 1) * high / segments - high
            assert (slopes[k], intercepts[k]) == oracle.segment(kind, middle, high, segments, form)


def test_no_segments():
    with pytest.raises(FormatError):
        pwl_table("exp", 16, parse("fp16"))
    with pytest.raises(FormatError):
        pwl_table("tanh", 0, parse("fp16"))


@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3-sat", "q3.12"])
@pytest.mark.parametrize("method", ["epur", "exact", "pwl-16", "pwl-7"])
def test_methods_are_the_oracles(name, method):
    form = parse(name)
    rules = replace(arithmetic(f"epur-{name}"), activation=method)
    v = values(form)
    x = v[picks(form)]
    unit = Unit(rules)
    for kind in ("sigmoid", "tanh"):
        found = evaluate(kind, x, rules)
        assert same(found, [getattr(unit, kind)(float(r)) for r in x])


@pytest.mark.parametrize(("method", "top"), [("epur", 2e-3), ("exact", 5e-4), ("pwl-64", 3e-3)])
def test_errors(method, top):
    form = parse("fp16")
    for one in errors(method, form):
        assert one.inputs == 63488
        assert one.mean_abs < one.max_abs < top
        truth = math.tanh(one.worst) if one.function == "tanh" else 1 / (1 + math.exp(-one.worst))
        rules = replace(arithmetic("epur-fp16"), activation=method)
        found = float(evaluate(one.function, np.float32([one.worst]), rules)[0])
        assert abs(abs(found - truth) - one.max_abs) < 1e-12
    assert errors("exact", form)[1].max_ulp <= 0.5


def test_errors_need_a_known_method():
    with pytest.raises(FormatError, match="activation"):
        errors("cordic", parse("fp16"))
