"""Accelerators from TOML: what is said of each value, and what is refused."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace

import pytest

from epur_emu.accelerator import STATUSES, Accelerator, preset_text, presets
from epur_emu.dataflow import DATAFLOWS
from epur_emu.errors import AcceleratorError

EPUR = Accelerator.load("epur")
PLAIN = {"name", "dataflow"}


@pytest.mark.parametrize("name", presets())
def test_presets_say_where_each_value_is_from(name):
    plain = tomllib.loads(preset_text(name))
    assert set(plain) == {field.name for field in fields(Accelerator)}
    for field in set(plain) - PLAIN:
        assert set(plain[field]) == {"value", "unit", "source", "status"}
        assert plain[field]["status"] in STATUSES
        assert plain[field]["unit"] and plain[field]["source"]
    accelerator = Accelerator.load(name)
    assert accelerator.name == name
    assert accelerator.dataflow in DATAFLOWS
    assert Accelerator.from_dict(accelerator.to_dict()) == accelerator


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_every_dataflow_has_a_preset(dataflow):
    assert Accelerator.load(dataflow).dataflow == dataflow


def nonsense():
    """Values that each field refuses."""
    zero = [name for name in EPUR.to_dict() if name.endswith("_cycles")]
    for field in fields(Accelerator):
        yield field.name, [1, 2]
        if field.type == "int":
            yield field.name, -1
            yield field.name, 2**62
            yield field.name, 1.5
            yield field.name, True
            if field.name not in (*zero, "row_buffer_bytes"):
                yield field.name, 0
        elif field.type == "float":
            yield from ((field.name, value) for value in (0.0, -1.0, float("nan"), float("inf")))
        elif field.type == "bool":
            yield field.name, 1
        else:
            yield field.name, 7
    yield "computation_units", 3
    yield "width", 12
    yield "dram_burst_bytes", 48
    yield "dram_bandwidth", EPUR.clock_hz * EPUR.dram_burst_bytes + 1
    yield "intermediate_bytes", EPUR.intermediate_bytes + EPUR.dram_burst_bytes
    for buffer in ("weight_buffer", "parameter_bank", "input_buffer", "row_buffer"):
        yield f"{buffer}_bytes", EPUR.width - 1


@pytest.mark.parametrize(("field", "value"), nonsense())
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(AcceleratorError) as caught:
        replace(EPUR, **{field: value})
    assert caught.value.field == field
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", [field.name for field in fields(Accelerator)])
def test_a_field_that_is_missing_is_named(tmp_path, field):
    plain = tomllib.loads(preset_text("epur"))
    del plain[field]
    with pytest.raises(AcceleratorError, match=f"mine: {field} missing"):
        Accelerator.from_dict(plain, "mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[width]\nvalue = 16", "[width]\nvalue = 0", "width is 0: give 1 or more"),
        ("[width]\nvalue", "[width]\nvaleu", "width has no value: give value"),
        ("[width]\nvalue", "[width]\ncolour = 1\nvalue", "width.colour is unknown"),
        ("[width]", "[widht]", "width missing"),
        ('status = "derived"', 'status = "guessed"', "port_bits.status is 'guessed': use one of"),
        ("[width]", "[width", "can't be read"),
    ],
)
def test_a_file_of_ones_own(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    text = preset_text("epur")
    path.write_text(text)
    assert Accelerator.load(path) == EPUR
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(AcceleratorError, match=message) as caught:
        Accelerator.load(path)
    assert str(path) in str(caught.value)


def test_a_preset_that_is_none():
    with pytest.raises(AcceleratorError, match="is no preset; use one of epur, epur-batch"):
        preset_text("npu")
