"""Names, ranges and widths of number formats."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epur_emu import cli
from epur_emu.activations import values
from epur_emu.energy import EnergyTable
from epur_emu.errors import FormatError
from epur_emu.format_table import LISTED, describe
from epur_emu.formats import BlockFormat, FixedFormat, FloatFormat, LinearFormat, parse

floats = st.builds(
    FloatFormat,
    st.integers(2, 8), st.integers(0, 23), st.just("ieee"), st.booleans(), st.booleans(),
) | st.builds(
    FloatFormat,
    st.integers(2, 7), st.integers(1, 23), st.sampled_from(["fn", "none"]), st.booleans(), st.booleans(),
)  # fmt: skip
fixed = st.integers(0, 31).flatmap(
    lambda whole: st.builds(
        FixedFormat, st.just(whole), st.integers(not whole, 31 - whole), st.booleans(),
        st.sampled_from(["saturate", "wrap", "raise"]),
    )
)  # fmt: skip
linear = st.builds(LinearFormat, st.integers(2, 16), st.booleans())
elements = st.builds(
    FloatFormat, st.integers(2, 5), st.integers(1, 23), st.sampled_from(["ieee", "fn", "none"]), st.just(True),
) | st.builds(FixedFormat, st.just(1), st.integers(0, 30))  # fmt: skip
blocks = st.builds(BlockFormat, elements, st.integers(1, 1024))


@given(floats | fixed | linear | blocks)
def test_names_parse_back(format):
    assert parse(str(format)) == format


@pytest.mark.parametrize("name", LISTED)
def test_listed_names_are_canonical(name):
    assert str(parse(name)) == name


@pytest.mark.parametrize(
    ("name", "bits", "largest", "least_normal", "least", "epsilon"),
    [
        ("fp32", 32, (2 - 2**-23) * 2.0**127, 2.0**-126, 2.0**-149, 2.0**-23),
        ("bf16", 16, (2 - 2**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-7),
        ("fp16", 16, 65504, 2.0**-14, 2.0**-24, 2.0**-10),
        ("e5m2", 8, 57344, 2.0**-14, 2.0**-16, 0.25),
        ("e4m3fn", 8, 448, 2.0**-6, 2.0**-9, 0.125),
        ("e4m3", 8, 240, 2.0**-6, 2.0**-9, 0.125),
        ("e3m2f", 6, 28, 0.25, 0.0625, 0.25),
        ("e2m3f", 6, 7.5, 1, 0.125, 0.125),
        ("e2m1f", 4, 6, 1, 0.5, 0.5),
        ("fp16-nosub", 16, 65504, 2.0**-14, 2.0**-14, 2.0**-10),
    ],
)
def test_ranges_of_the_standards(name, bits, largest, least_normal, least, epsilon):
    f = parse(name)
    assert isinstance(f, FloatFormat)
    assert (f.bits, f.max, f.min_normal, f.min_positive, f.epsilon) == (
        bits, Fraction(largest), Fraction(least_normal), Fraction(least), Fraction(epsilon),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["fp17", "e1m3", "e9m2", "e4m24", "e8m7fn", "e4m0fn", "q0.0", "q20.20", "int1", "int17", "mxfp5", "mxfp8/0",
     "mx-e4m3", "mx-q3.4", "mx-e5m2-sat-nosub", "e4m3fn-wrap", "q3.4-sat", "FP16", ""],
)  # fmt: skip
def test_bad_names(name):
    with pytest.raises(FormatError):
        parse(name)


def test_described_by_their_values():
    table = EnergyTable.load("epur-28nm")
    for name in ("fp16", "e4m3fn", "q3.12", "e2m1f", "fp16-nosub"):
        row, found = describe(parse(name), table), values(parse(name))
        finite = found[abs(found) < float("inf")]
        assert row["max"] == finite.max()
        assert row["min_positive"] == finite[finite > 0].min()
        assert row["epsilon"] == finite[finite > 1].min() - 1
    assert describe(parse("mxfp4"), table)["bits"] == 4.25
    assert describe(parse("int8"), table)["max"] == 127


def of_epur(capsys, *arguments):
    try:
        cli.main(["formats", *arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    return status, *capsys.readouterr()


def test_command(capsys):
    status, out, _ = of_epur(capsys, "--json")
    rows = {row["name"]: row for row in json.loads(out)["formats"]}
    assert status == 0
    assert tuple(rows) == LISTED
    table = EnergyTable.load("epur-28nm")
    assert rows["fp16"]["multiply_pj"] == table.operation_pj("multiply", "fp16")
    assert rows["fp32"]["add_pj"] == table.operation_pj("add", "fp32")
    assert rows["e5m7"]["add_pj"] is None
    status, out, _ = of_epur(capsys, "e4m3fn-sat", "uq2.6")
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["e4m3fn-sat", "uq2.6"]


def test_command_on_activations(capsys):
    status, out, _ = of_epur(
        capsys, "--activations", "--format", "e4m3", "--segments", "4,8", "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert found["format"] == "e4m3"
    assert {(a["function"], a["method"]) for a in found["activations"]} == {
        (kind, method)
        for kind in ("sigmoid", "tanh")
        for method in ("epur", "exact", "pwl-4", "pwl-8")
    }
    assert "pwl-8" in of_epur(capsys, "--activations", "--format", "e4m3", "--segments", "8")[1]


@pytest.mark.parametrize(
    "arguments",
    [("fp99",), ("--activations", "--segments", "4,,8"), ("--activations", "--format", "tf32"),
     ("--activations", "--format", "int8"), ("--activations", "--segments", "1")],
)  # fmt: skip
def test_command_refuses(capsys, arguments):
    status, out, err = of_epur(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
