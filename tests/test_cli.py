"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from epur_emu import accelerator, cli
from epur_emu.comparison import load_model
from epur_emu.emulator import Engine

MODEL = "translate-en-de"
PRESETS = Path(accelerator.__file__).parent / "data" / "accelerators"
SENTENCE = "two dogs are playing in the snow ."


@pytest.fixture(scope="module")
def trained():
    return load_model(MODEL)


def epur(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    status = 0
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code or 0
    out = capsys.readouterr()
    return status, out.out, out.err


def json_of(capsys, *arguments):
    status, out, err = epur(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def refused(capsys, *arguments):
    """The one line of error that a command ends in."""
    status, out, err = epur(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("epur: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    done = subprocess.run(
        [sys.executable, "-m", "epur_emu", "run", MODEL, "--json", "--trace", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout), path


def test_models(capsys):
    (row,) = [m for m in json_of(capsys, "models")["models"] if m["name"] == MODEL]
    assert row["task"] == "translation"
    assert row["cells"] == 256
    assert row["score"]["metric"] == "BLEU"
    assert row["score"]["float32"] >= 33
    assert MODEL in epur(capsys, "models")[1]


def test_one_model(capsys):
    found = json_of(capsys, "models", MODEL)
    assert [p["name"] for p in found["passes"]][-1] == "decoder.1.forward"
    assert found["parameters"] > sum(p["parameters"] for p in found["passes"])
    assert found["card"]["score"]["float32"] == found["score"]["float32"]
    out = epur(capsys, "models", MODEL)[1]
    for part in ("Multi30k", "non-commercial", "encoder.0.backward", "BLEU, measured", "epur run"):
        assert part in out
    assert "nothing" in refused(capsys, "models", "nothing")


def test_run(run):
    found, path = run
    assert found["model"] == MODEL
    assert "hunde" in found["float32"]["text"]
    assert "hunde" in found["emulated"]["text"]
    names = [layer["name"] for layer in found["layers"]]
    assert names[:2] == ["encoder.0.forward", "encoder.0.backward"]
    assert names[-1] == "decoder.1.forward"
    for layer in found["layers"]:
        assert 0 < layer["max_abs_error"] < 0.1
        assert layer["overflow"] == 0
    assert found["seconds"] == pytest.approx(found["cycles"] / 500e6)
    assert found["real_time_factor"] > 1
    energy = found["energy_pj"]
    assert energy["total"] == pytest.approx(energy["dynamic"] + energy["static"])
    assert energy["total"] == pytest.approx(sum(energy["by_component"].values()))
    assert found["trace"] == str(path)


def test_outputs_of_a_task_are_written(capsys, tmp_path):
    path = tmp_path / "outputs"
    found = json_of(capsys, "run", MODEL, "a cat sleeps .", "--output", path)
    assert found["emulated"]["path"] == str(path)
    with np.load(path) as arrays:
        assert list(arrays) == [layer["name"] for layer in found["layers"]]
        for array in arrays.values():
            assert array.ndim == 2
            assert array.size
            np.testing.assert_array_equal(array, array.astype(np.float16))
    refused(capsys, "run", MODEL, "a cat sleeps .", "--output", tmp_path / "no" / "such")


def test_run_for_people(capsys):
    status, out, err = epur(capsys, "run", MODEL, SENTENCE)
    assert (status, err) == (0, "")
    for part in (SENTENCE, "hunde", "cycles", "dram", "weights", "overflows"):
        assert part in out


def test_run_takes_an_example_where_no_input_is_given(capsys, run):
    assert json_of(capsys, "run", MODEL, SENTENCE)["cycles"] == run[0]["cycles"]


def test_threads_change_nothing(capsys, run, monkeypatch):
    taken = set()
    made = Engine.__init__

    def noted(engine, *given, **named):
        made(engine, *given, **named)
        taken.add(engine.threads)

    monkeypatch.setattr(Engine, "__init__", noted)
    found = json_of(capsys, "run", MODEL, SENTENCE, "--threads", 3)
    assert taken == {1, 3}  # of float32, and of the emulated networks
    assert found["layers"] == run[0]["layers"]
    assert found["emulated"]["text"] == run[0]["emulated"]["text"]


def test_accelerators_differ_where_they_should(capsys, run):
    mwl = json_of(capsys, "run", MODEL, "--accelerator", "epur-mwl")
    kept = json_of(
        capsys, "run", MODEL, "--accelerator", "epur-mwl", "--arithmetic", "epur-fp16+fp16"
    )
    of = {row["name"]: row["max_abs_error"] for row in mwl["layers"]}
    exact = {row["name"]: row["max_abs_error"] for row in run[0]["layers"]}
    assert of["encoder.1.forward"] > 2 * exact["encoder.1.forward"]
    assert kept["layers"][0]["max_abs_error"] < of["encoder.0.forward"] / 2
    weights = [name for name in mwl["energy_pj"]["by_component"] if name.endswith("weights")]
    assert len(weights) == 4
    assert "cu.i.row" in mwl["energy_pj"]["by_component"]


def test_the_dataflow_is_shown_where_the_accelerator_is_called_otherwise(capsys):
    def head(*options):
        return epur(capsys, "run", MODEL, "a cat sleeps .", *options)[1].splitlines()[0]

    assert f"{MODEL} on epur, " in head()
    assert f"{MODEL} on epur, " in head("--dataflow", "epur")
    assert f"{MODEL} on epur (dataflow epur-tiled), " in head("--dataflow", "epur-tiled")


def test_a_beam_costs_more(capsys, run):
    assert json_of(capsys, "run", MODEL, "--beam", "3")["cycles"] > 1.5 * run[0]["cycles"]


def test_trace_and_energy(capsys, run):
    found, path = run
    info = json_of(capsys, "trace", "info", path)
    assert info["accesses"] == found["accesses"]
    assert info["complete"] is True
    assert info["cycles"] == found["cycles"]
    rows = info["by_component"].values()
    assert sum(row["reads"] + row["writes"] for row in rows) == info["accesses"]
    assert sum(row["bytes"] for row in rows) == info["bytes"]
    assert json_of(capsys, "trace", "validate", path)["valid"] is True
    energy = json_of(capsys, "energy", path)
    assert energy["total_pj"] == pytest.approx(found["energy_pj"]["total"])
    assert energy["dynamic_pj"] + energy["static_pj"] == pytest.approx(energy["total_pj"])
    leaky = json_of(capsys, "energy", path, "--table", "epur-28nm:hp")
    assert leaky["static_pj"] > 2 * energy["static_pj"]
    for command in (("trace", "info"), ("trace", "validate"), ("energy",)):
        status, out, _ = epur(capsys, *command, path)
        assert status == 0
        assert str(path) in out


def test_every_command_helps_with_an_example(capsys):
    commands = ["models", "run", "evaluate", "energy", "trace"]
    for words in ([], *([c] for c in commands), ["trace", "info"], ["trace", "validate"]):
        status, out, _ = epur(capsys, *words, "--help")
        assert status == 0
        assert "Example: epur" in out


@pytest.mark.parametrize("command", [[], ["trace"]])
def test_no_command_shows_the_help_in_lines(capsys, command):
    status, out, err = epur(capsys, *command)
    helped = epur(capsys, *command, "--help")[1]
    if out:  # click before 8.2
        assert (status, out, err) == (0, helped, "")
    else:
        assert (status, err) == (2, helped)


def test_bad_input_is_one_line(capsys, tmp_path):
    assert "known model" in refused(capsys, "run", "translate-en-fr")
    assert "empty" in refused(capsys, "run", MODEL, "")
    assert "empty" in refused(capsys, "run", MODEL, "  \t ")
    assert "epur-fp16" in refused(capsys, "run", MODEL, "--arithmetic", "fp17")
    assert "epur-mwl" in refused(capsys, "run", MODEL, "--accelerator", "tpu")
    broken = tmp_path / "broken.toml"
    preset = (PRESETS / "epur.toml").read_text()
    broken.write_text(preset.replace("value = 16\n", 'value = "16"\n', 1))
    message = refused(capsys, "run", MODEL, "--accelerator", broken)
    assert "broken.toml: width is '16'; give one int" in message
    broken.write_text(preset.replace("value = 16\n", "value = 32\n", 1))
    assert "width is 32" in refused(capsys, "run", MODEL, "--accelerator", broken)
    assert "table" in refused(capsys, "run", MODEL, "--table", "none")
    assert "--help" in refused(capsys, "run", MODEL, "--beam", "0")
    assert "1<=x<=256" in refused(capsys, "run", MODEL, "--beam", "257")
    assert "1<=x<=256" in refused(capsys, "evaluate", MODEL, "--beam", "100000")
    assert "--help" in refused(capsys, "walk")
    assert "No such file" in refused(capsys, "trace", "info", tmp_path / "none.h5")
    assert "No such file" in refused(capsys, "run", MODEL, "--trace", tmp_path / "none" / "t.h5")


def test_outputs_do_not_take_the_place_of_what_is_read_or_of_devices(capsys, run, tmp_path):
    path, table = tmp_path / "t.h5", tmp_path / "t.csv"
    path.write_bytes(run[1].read_bytes())
    assert epur(capsys, "trace", "expand", path, "--stop", 9, "-o", table)[0] == 0
    os.mkfifo(tmp_path / "pipe")
    before = {file: file.read_bytes() for file in (path, table)}
    for command in (["report", path], ["trace", "export", path, "--format", "csv"],
                    ["trace", "expand", path], ["replay", path, "--memory", "lru"],
                    ["trace", "import", table]):  # fmt: skip
        given = next(a for a in command if isinstance(a, Path))
        again = tmp_path / ".." / tmp_path.name / given.name
        assert "is read or written already" in refused(capsys, *command, "-o", again)
        for device in (tmp_path / "pipe", "/dev/null", "/dev/stdout"):
            assert "no plain file" in refused(capsys, *command, "-o", device)
    assert "no plain file" in refused(capsys, "run", MODEL, "--trace", tmp_path / "pipe")
    one = ("--trace", tmp_path / "x", "--output", tmp_path / "x")
    assert "is read or written already" in refused(capsys, "run", MODEL, *one)
    nowhere = tmp_path / "no" / "file.svg"
    for command in (["report", path, "-o"], ["replay", path, "--memory", "lru", "--plot"],
                    ["energy", path, "--plot"], ["paper", "--plot"],
                    ["sweep", tmp_path / "study.toml", "-o", tmp_path / "s", "--csv"]):  # fmt: skip
        assert "No such file or directory" in refused(capsys, *command, nowhere)
    # Before anything is computed, or the bar would be in the error.
    assert "suffix is '.bmp'" in refused(
        capsys, "replay", path, "--memory", "lru", "--plot", tmp_path / "x.bmp"
    )
    assert {file: file.read_bytes() for file in before} == before
    assert (tmp_path / "pipe").is_fifo()


def test_components_by_pattern(capsys, run, tmp_path):
    table = tmp_path / "t.csv"
    wanted = {"cu.i.weights", "cu.g.weights", "cu.o.weights", "cu.f.weights", "dram"}
    chosen = ("--component", "cu.*.weights, dram", "--component", "dram")
    done = json_of(capsys, "trace", "export", run[1], "-o", table, "--format", "csv", *chosen)
    rows = table.read_text().splitlines()[1:]
    assert {row.split(",")[1] for row in rows} == wanted
    counted = json_of(capsys, "trace", "info", run[1])["by_component"]
    assert done["accesses"] == sum(counted[n]["reads"] + counted[n]["writes"] for n in wanted)
    shown = epur(capsys, "trace", "expand", run[1], *chosen, "--stop", 200)[1].splitlines()[1:]
    assert shown == [row for row in rows if int(row.split(",")[0]) < 200]
    assert "cu.*.w is no component" in refused(
        capsys, "trace", "expand", run[1], "--component", "cu.*.w"
    )


# A disk that takes the first 100 bytes of a file.
FULL = """
import resource, sys
from epur_emu import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["run", "replay", "sweep"])
def test_a_full_disk_is_one_line_and_names_the_file(run, tmp_path, command):
    target, study = tmp_path / "target", tmp_path / "study.toml"
    study.write_text('models = ["paper:LDLRNN"]\narithmetics = ["epur-fp16"]')
    arguments = {
        "run": [MODEL, "a cat sleeps .", "--output", target],
        "replay": [run[1], "--memory", "lru", "-o", target],
        "sweep": [study, "-o", target, "--jobs", 1],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", FULL, command, *map(str, arguments)], capture_output=True, text=True
    )
    last = done.stderr.replace("\r", "\n").splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith(f"epur: {target}")
    assert "Traceback" not in done.stderr
    assert "File too large" in last


def test_a_trace_cut_short_at_any_byte(capsys, run, tmp_path):
    whole = run[1].read_bytes()
    path = tmp_path / "cut.h5"
    lengths = {*range(0, 600, 7), *range(600, len(whole), 997), *range(len(whole) - 40, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        for command in (["trace", "info"], ["trace", "validate"], ["energy"]):
            assert "cut.h5" in refused(capsys, *command, path)


def test_a_trace_of_a_newer_version(capsys, run, tmp_path):
    whole = bytearray(run[1].read_bytes())
    place = whole.index(b"1.0")
    whole[place : place + 1] = b"4"
    path = tmp_path / "newer.h5"
    path.write_bytes(whole)
    message = refused(capsys, "trace", "info", path)
    assert "version" in message
    assert "4.0" in message
    whole[place : place + 1] = b"2"
    path.write_bytes(whole)
    message = refused(capsys, "trace", "info", path)
    assert "version is 1 inside, 2 in the seal" in message


def test_a_file_that_is_no_trace(capsys, tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as other:
        other["x"] = np.zeros(3)
    refused(capsys, "trace", "info", path)
    refused(capsys, "trace", "info", tmp_path)


def test_a_network_with_a_weight_that_is_no_number(capsys, trained, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(trained.path, folder)
    weights = folder / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-2:] = b"\x00\x7e"
    weights.write_bytes(raw)
    assert "weights.safetensors" in refused(capsys, "run", folder)
    weights.write_bytes(raw[: len(raw) // 2])
    assert "weights.safetensors" in refused(capsys, "run", folder)


def test_a_full_path_serves_as_well_as_a_name(capsys, trained):
    assert json_of(capsys, "run", Path(trained.path), "a dog runs .")["model"] == MODEL


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{}"], ["run", MODEL, "--arithmetic", "{}"], ["run", MODEL, "--accelerator", "{}"],
        ["run", MODEL, "--table", "{}"], ["trace", "info", "{}"], ["energy", "{}"], ["report", "{}"],
        ["import", "{}.pt", "-o", "x"], ["sweep", "{}", "-o", "x.h5"],
    ],
)  # fmt: skip
def test_a_name_that_no_file_may_have(capsys, arguments):
    refused(capsys, *(argument.format("a" * 5000) for argument in arguments))
