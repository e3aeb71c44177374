"""Accelerators from TOML: what is said of each value, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import checkpoint_files as files
import numpy as np
import pytest
from test_cli import epur

from epur_emu.accelerator import STATUSES, Accelerator, preset_text, presets
from epur_emu.dataflow import DATAFLOWS
from epur_emu.errors import AcceleratorError
from epur_emu.importing import import_checkpoint
from epur_emu.toml import tomllib
from epur_emu.trace import Accesses, Trace

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


@pytest.mark.parametrize(("field", "value"), list(nonsense()))
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
        ("[width]\nvalue = 16", "[width]\nvalue = 0", "width is 0; give 1 or more"),
        ("[width]\nvalue", "[width]\nvaleu", "width has no value; give value"),
        ("[width]\nvalue", "[width]\ncolour = 1\nvalue", "width.colour is unknown"),
        ("[width]", "[widht]", "width missing"),
        ('status = "derived"', 'status = "guessed"', "port_bits.status is 'guessed'; use one"),
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network without a task, two layers."""
    folder = tmp_path_factory.mktemp("model")
    arrays = {**files.torch_lstm(layer=0), **files.torch_lstm(layer=1, inputs=files.CELLS)}
    np.savez(folder / "w.npz", **arrays)
    import_checkpoint(folder / "w.npz", folder / "m")
    return folder / "m"


def test_a_preset_is_printed_to_start_from(capsys, tmp_path, model):
    status, out, _ = epur(capsys, "accelerators", "epur-mwl")
    assert (status, out) == (0, preset_text("epur-mwl"))
    path = tmp_path / "mine.toml"
    path.write_text(out.replace("value = 10\n", "value = 20\n", 1))  # the divider
    cycles = {}
    for machine in ("epur-mwl", path):
        _, out, _ = epur(capsys, "run", model, "--accelerator", machine, "--json")
        cycles[machine] = json.loads(out)["cycles"]
    # Twice or thrice a step for each of two layers of 20 steps.
    assert cycles[path] - cycles["epur-mwl"] in (2 * 20 * 20, 3 * 20 * 20)
    status, out, _ = epur(capsys, "accelerators")
    assert status == 0
    assert all(name in out for name in presets())
    listed = json.loads(epur(capsys, "accelerators", "--json")[1])["accelerators"]
    assert [each["name"] for each in listed] == presets()
    status, out, err = epur(capsys, "accelerators", "npu")
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_run_takes_a_dataflow_and_says_where_cycles_went(capsys, model, dataflow):
    chip = "epur-mwl" if dataflow == "epur-mwl" else "epur"
    arguments = ("run", model, "--accelerator", chip, "--dataflow", dataflow)
    found = json.loads(epur(capsys, *arguments, "--json")[1])
    assert found["dataflow"] == dataflow
    assert sum(row["cycles"] for row in found["phases"]) == found["cycles"]
    for row in found["phases"]:
        assert row["cycles"] == row["busy"] + sum(row["stalls"].values())
        assert row["utilisation"] == row["busy"] / row["cycles"]
    assert bool(found["policies"]) == (dataflow == "epur-tiled")
    status, out, err = epur(capsys, *arguments, "--phases")
    assert (status, err) == (0, "")
    assert "recurrence" in out
    assert f"{found['phases'][0]['cycles']:,}" in out
    assert ("tiles (1 tile" in out) == (dataflow == "epur-tiled")


def test_run_takes_a_batch(capsys, model, tmp_path):
    rng = np.random.default_rng(5)
    paths, arguments = [], []
    for n, steps in enumerate((3, 7)):
        paths.append(tmp_path / f"{n}.npy")
        np.save(paths[-1], rng.normal(size=(steps, files.INPUTS)))
        arguments += ["--inputs", paths[-1]]
    output = tmp_path / "y.npy"
    batch = ("run", model, *arguments, "--dataflow", "epur-batch", "--output", output)
    found = json.loads(epur(capsys, *batch, "--json")[1])
    assert found["input"]["lengths"] == [3, 7]
    assert found["input"]["path"] == [str(path) for path in paths]
    alone, cycles = [], 0
    for path in paths:
        one = json.loads(epur(capsys, "run", model, "--inputs", path, "--json")[1])
        alone += one["emulated"]["output"]["values"]
        cycles += one["cycles"]
    np.testing.assert_array_equal(np.load(output), np.float32(alone))
    assert found["cycles"] < cycles
    assert "2 sequences" in epur(capsys, *batch)[1]
    random = epur(capsys, "run", model, "--steps", 3, "--steps", 4, "--accelerator", "epur-batch")
    assert "7 time steps of 2, 2 sequences" in random[1]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_run_probes_every_dataflow(capsys, model, tmp_path, dataflow):
    chip = "epur-mwl" if dataflow == "epur-mwl" else "epur"
    steps = ("--steps", 3, *(("--steps", 5) if dataflow == "epur-batch" else ()))
    arguments = ("run", model, *steps, "--accelerator", chip, "--dataflow", dataflow, "--json")
    totals, accesses = [], []
    for mode in ("streams", "events"):
        path = tmp_path / f"{mode}.h5"
        status, out, _ = epur(capsys, *arguments, "--trace", path, "--trace-mode", mode)
        assert status == 0
        trace = Trace.open(path)
        totals.append((json.loads(out)["accesses"], trace.bytes_by_component(), trace.operations()))
        accesses.append(sorted(zip(*(one.tolist() for one in columns(trace)), strict=True)))
    assert totals[0] == totals[1]
    assert accesses[0] == accesses[1]


def columns(trace):
    return Accesses.join(trace.expand()).columns().values()


def test_run_refuses_dataflows_in_one_line(capsys, model):
    for arguments, part in (
        (("--dataflow", "sideways"), "use one of epur, epur-mwl, epur-batch, epur-tiled"),
        (("--steps", 3, "--steps", 4), "one sequence at a time; use epur-batch"),
    ):
        status, out, err = epur(capsys, "run", model, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert part in err
