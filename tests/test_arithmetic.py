"""Arithmetics: presets, files, overrides, what is refused and how."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from strategies import PLACES, arithmetics

from epur_emu.arithmetic import ARITHMETICS, GATES, Arithmetic, Override, arithmetic
from epur_emu.errors import FormatError
from epur_emu.formats import FP16, FP32, INT8, FixedFormat, LinearFormat, parse
from epur_emu.rounding import round_to

EPUR = ARITHMETICS["epur-fp16"]


@given(arithmetics(raises=True))
def test_plain_values_give_the_same_arithmetic(a):
    plain = a.to_dict()
    assert all(isinstance(plain[place], str) for place in PLACES)
    assert Arithmetic.from_dict(plain) == a


@given(arithmetics())
def test_the_limit_is_a_value_of_the_mu(a):
    assert float(round_to([a.limit], a.mu)[0]) == a.limit
    assert 0 <= a.limit <= a.clamp
    if a.activation == "epur":
        assert math.exp(a.limit) < a.mu.max


def test_limits_worked_out_by_hand():
    assert EPUR.limit == 11.0
    assert arithmetic("epur-e4m3fn").limit == 6.0  # ln 448 - 1/16 = 6.04
    assert replace(EPUR, clamp=3.3).limit == 3.298828125
    assert replace(EPUR, activation="exact", clamp=1e9).limit == 65504.0
    assert replace(EPUR, mu=parse("q3.2"), activation="exact").limit == 7.75
    # 0.5 lies below the least normal value, which is 1.
    assert replace(EPUR, mu=parse("e2m1"), activation="exact", clamp=0.5).limit == 0.5
    assert replace(EPUR, mu=parse("e2m1-nosub"), activation="exact", clamp=0.5).limit == 0.0


def test_presets():
    for name, a in ARITHMETICS.items():
        assert arithmetic(name) is a
        assert a.name == name
    assert {getattr(EPUR, place) for place in PLACES[:-1]} == {FP16}
    assert EPUR.partial == INT8
    eight = arithmetic("epur-int8")
    assert eight.integer
    assert eight.weight == LinearFormat(8, per_row=True)
    assert eight.sum == FP16
    assert eight.accumulator == FixedFormat(23, 0)
    assert not ARITHMETICS["float32"].bit_exact


def test_names_of_formats():
    assert arithmetic("epur-q3.12").activation == "exact"  # exponentials of up to 8 in all
    assert arithmetic("epur-bf16").mu == parse("bf16")
    kept = arithmetic("epur-bf16+bf16")
    assert kept.partial == kept.sum
    assert kept.name == "epur-bf16+bf16"
    for name in ("fp16", "epur-int3.5", "epur-e9m3", ""):
        with pytest.raises(FormatError, match=r"is not known; use one of float32, epur-fp16"):
            arithmetic(name)
    for name, base in (("mxfp8", "epur-fp16"), ("int9", "epur-int8")):
        with pytest.raises(FormatError, match=f'place; .* base = "{base}", weight = "{name}"'):
            arithmetic(f"epur-{name}")
    with pytest.raises(FormatError, match=r"partial is bfloat16|partial is bf16"):
        arithmetic("epur-fp16+bf16")


REFUSED = (
    ({"product": INT8}, r"product is int8; use a float or fixed-point format"),
    ({"output": parse("mxfp8")}, r"output is mxfp8.*; use a float, fixed-point or linear format"),
    ({"input": LinearFormat(8, True)}, r"input is int8-row, and a vector has no rows; use int8"),
    ({"weight": INT8, "input": INT8}, r"accumulator is .* for integer products; use qN\.0"),
    ({"tree": FixedFormat(20, 9)}, r"tree is q20\.9, 30 bits; use at most 24 bits"),
    ({"input": FixedFormat(20, 9)}, r"input is q20\.9, 30 bits; use at most 24 bits"),
    ({"partial": FP32}, r"partial is .*; use intN, or .* to keep the sums"),
    ({"rounding": "odd"}, r"rounding is 'odd'; use one of nearest-even"),
    ({"seed": 2**32}, r"seed is 4294967296; use 0 to 4294967295"),
    ({"activation": "pwl-1"}, r"activation is 'pwl-1'; use epur, exact or pwl-N"),
    ({"activation": "relu"}, r"activation is 'relu'"),
    ({"clamp": 0.0}, r"clamp is 0\.0; use a positive number"),
    ({"clamp": math.inf}, r"clamp is inf"),
    ({"clamp": math.nan}, r"clamp is nan"),
    ({"mu": parse("q1.9")}, r"mu is q1\.9, too narrow for exponentials; use activation exact"),
)


@pytest.mark.parametrize(
    ("values", "message"), REFUSED, ids=lambda v: "-".join(v) if isinstance(v, dict) else ""
)
def test_what_is_refused_names_field_and_remedy(values, message):
    with pytest.raises(FormatError, match=message):
        replace(EPUR, **values)


def test_integer_products_want_one_wide_format():
    with pytest.raises(
        FormatError, match=r"product and tree are not the accumulator's; use q23\.0"
    ):
        replace(arithmetic("epur-int8"), tree=FixedFormat(20, 0))
    with pytest.raises(FormatError, match=r"accumulator is uq23\.0"):
        replace(arithmetic("epur-int8"), accumulator=FixedFormat(23, 0, signed=False))


def test_overrides():
    a = replace(
        EPUR,
        overrides=(
            Override("encoder.*", "if", (("product", FP32), ("accumulator", FP32))),
            Override("*.0", "i", (("product", parse("bf16")), ("clamp", 2.0))),
        ),
    )
    assert a.at("decoder.1", "i") == EPUR
    assert a.at("encoder.1", "g") == EPUR
    assert a.at("encoder.1", "f").accumulator == FP32
    later = a.at("encoder.0", "i")
    assert (later.product, later.accumulator, later.clamp) == (parse("bf16"), FP32, 2.0)
    assert a.at("encoder.0", "f").product == FP32
    assert all(not a.at("encoder.0", gate).overrides for gate in GATES)
    kept = replace(
        EPUR.with_partial(FP16), overrides=(Override("*", "o", (("accumulator", FP32),)),)
    )
    assert kept.at("x", "o").partial == FP32  # sums that are kept are kept in their own format
    assert kept.at("x", "i").partial == FP16


def test_overrides_that_are_refused():
    with pytest.raises(FormatError, match=r"override: gates are 'x'; use letters of ifgo"):
        Override("*", "x", ())
    with pytest.raises(FormatError, match="gates are ''"):
        Override("*", "", ())
    with pytest.raises(FormatError, match=r"rounding can't be a gate's own; use weight"):
        Override("*", "i", (("rounding", "up"),))
    with pytest.raises(FormatError, match="product is int8"):
        replace(EPUR, overrides=(Override("*", "i", (("product", INT8),)),))


def write(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file(tmp_path):
    path = write(
        tmp_path,
        'base = "epur-fp16+fp16"\nrounding = "stochastic"\nseed = 3\nclamp = 8\naccumulator = "fp32"\n'
        '[[overrides]]\nlayers = "encoder.*"\ngates = ["i", "f"]\nproduct = "bf16"\n'
        '[[overrides]]\nactivation = "exact"\n',
    )
    a = arithmetic(path)
    assert (a.name, a.rounding, a.seed, a.clamp) == ("own", "stochastic", 3, 8.0)
    assert a.partial == a.accumulator == FP32
    assert a.weight == FP16
    assert a.overrides[0] == Override("encoder.*", "if", (("product", parse("bf16")),))
    assert a.overrides[1] == Override("*", "ifgo", (("activation", "exact"),))
    whole = write(tmp_path, "\n".join(f'{place} = "fp32"' for place in PLACES))
    assert arithmetic(str(whole)).mu == FP32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", r"own\.toml: file can't be read .*; give a TOML file"),
        ('base = "epur-fp17"', "'epur-fp17' is not known"),
        ('base = "epur-fp16"\nwidth = 3', "arithmetic own: width unknown; use .*weight"),
        ('mu = "fp16"', "arithmetic own: accumulator, cell, input, output.* missing; .* base"),
        ('base = "epur-fp16"\nseed = 1.5', "seed is 1.5; give a int"),
        ('base = "epur-fp16"\nseed = true', "seed is True"),
        ('base = "epur-fp16"\nmu = 16', "mu is 16; give a str"),
        ('base = "epur-fp16"\nmu = "fp15"', "'fp15' is not known"),
        ('base = "epur-fp16"\noverrides = [3]', "overrides hold 3; give tables"),
        ('base = "epur-fp16"\n[[overrides]]\nseed = 3', "seed can't be a gate's own"),
        ('base = "epur-fp16"\n[[overrides]]\ngates = "xyz"', "gates are 'xyz'"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        arithmetic(write(tmp_path, text))


def test_overrides_of_layers_that_there_are_not(tmp_path):
    own = arithmetic(write(tmp_path, '''
        base = "epur-fp16"
        overrides = [{layers = "encoder.*", weight = "e4m3"}, {gates = "i", weight = "e5m2"}]
    '''))  # fmt: skip
    own.check_layers(["decoder.0.forward", "encoder.0.forward"])
    arithmetic("epur-fp16").check_layers([])
    with pytest.raises(FormatError, match=r"own: overrides\.layers is 'encoder\.\*', .* of a, b$"):
        own.check_layers(["a", "b", "a"])


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FormatError, match=r"none\.toml: file can't be read"):
        arithmetic(tmp_path / "none.toml")
