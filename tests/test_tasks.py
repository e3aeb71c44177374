"""What all tasks share: data sets found, items answered in processes, scores beside one another."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_speech import sound, toy_folder, write_recordings, write_wav

from epur_emu import cli, comparison
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import read_folder
from epur_emu.energy import EnergyTable
from epur_emu.errors import EpurError, ModelError
from epur_emu.tasks import TASKS, Task, metrics
from epur_emu.tasks.beam import Beam
from epur_emu.tasks.bpe import EOS
from epur_emu.tasks.dense import Dense
from epur_emu.trace import Trace
from epur_emu.trace.accesses import Accesses
from epur_emu.zoo import list_models

EPUR = Accelerator.load("epur")
FP16 = arithmetic("epur-fp16")
WORDS = tuple("abcdefgh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recogniser; EPUR_DATA holds what it is tested on."""
    path = tmp_path_factory.mktemp("tasks")
    write_recordings(path / "data" / "fsdd")
    return toy_folder(path / "model", WORDS)


@pytest.fixture
def recordings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPUR_DATA", str(folder.parent / "data"))
    return folder


# --- the registry


@pytest.mark.parametrize("name", TASKS)
def test_a_task_keeps_the_contract(name: str) -> None:
    kind = TASKS[name]
    assert issubclass(kind, Task)
    assert not kind.__abstractmethods__
    assert kind.metric
    assert kind.beam >= 1


def test_every_models_task_is_known() -> None:
    known = {*TASKS, "sequence"}
    assert {read["task"] for read in comparison.rows(_carried())} <= known


def _carried() -> list[comparison.Model]:
    return [read_folder(p) for p in list_models().values() if (p / "weights.safetensors").exists()]


def test_a_damaged_model_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EPUR_MODELS", str(tmp_path))
    toy_folder(tmp_path / "whole")
    (toy_folder(tmp_path / "cut") / "weights.safetensors").write_bytes(b"")
    cli.main(["models", "--json"])
    out, err = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert rows["toy"]["cells"] == 3
    assert str(tmp_path / "cut") in err
    assert str(tmp_path / "whole") not in err


def test_an_unknown_task_is_told(tmp_path: Path) -> None:
    model = read_folder(toy_folder(tmp_path, task="divination"))
    with pytest.raises(ModelError, match=f"divination.*{', '.join(TASKS)}"):
        comparison.task(model, FP16, EPUR)


# --- one input


def test_a_run_shows_float32_beside_emulated(folder: Path, tmp_path: Path) -> None:
    model = read_folder(folder)
    path = write_wav(tmp_path / "x.wav", sound(8000))
    done = comparison.run(model, str(path), FP16, EPUR, EnergyTable.load("epur-28nm"))
    found = json.loads(json.dumps(done.to_dict()))
    assert found["real_time_factor"] == pytest.approx(1.0 / found["seconds"])
    assert found["seconds"] == pytest.approx(EPUR.seconds(found["cycles"]))
    assert found["energy_pj"]["total"] == pytest.approx(
        sum(found["energy_pj"]["by_component"].values())
    )
    item = comparison.task(model, FP16, EPUR).read(str(path))
    for name, key in (("float32", "float32"), ("epur-fp16", "emulated")):
        one = comparison.task(model, arithmetic(name), EPUR)
        (answer,) = one.answer([item])
        assert found[key]["text"] == answer.plain
        outputs = one.outputs(item, answer)
        if name == "float32":
            wanted = outputs
    for layer in found["layers"]:
        error = np.abs(outputs[layer["name"]] - wanted[layer["name"]]).max()
        assert layer["max_abs_error"] == error > 0


def test_a_run_may_log_its_accesses_as_events(folder: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "x.wav", sound(8000))
    found = {}
    for mode in ("streams", "events"):
        trace = str(tmp_path / f"{mode}.h5")
        cli.main(["run", str(folder), str(path), "--trace", trace, "--trace-mode", mode, "--json"])
        kept = Trace.open(trace)
        assert len(kept.events) == (kept.count() if mode == "events" else 0)
        columns = Accesses.join(kept.expand()).columns().values()
        found[mode] = sorted(zip(*(c.tolist() for c in columns), strict=True))
    assert found["events"] == found["streams"]
    assert len(found["events"]) > 1000


# --- a data set


@given(st.lists(st.integers(0, 50), max_size=300))
def test_chunks_hold_every_item_once_with_those_of_its_size(sizes: list[int]) -> None:
    chunks = comparison.chunks(sizes)
    assert sorted(n for chunk in chunks for n in chunk) == list(range(len(sizes)))
    ordered = [sizes[n] for chunk in chunks for n in chunk]
    assert ordered == sorted(sizes, reverse=True)
    assert all(1 <= len(chunk) <= comparison.CHUNK for chunk in chunks)
    if len(sizes) > 1:
        assert len(chunks) > 1


def test_scores_do_not_depend_on_the_number_of_processes(recordings: Path) -> None:
    model = read_folder(recordings)
    alone = comparison.evaluate(model, FP16, EPUR, limit=20, beam=2)
    many = comparison.evaluate(model, FP16, EPUR, limit=20, beam=2, jobs=2)
    assert (alone.float32, alone.emulated) == (many.float32, many.emulated)
    assert len({answer.symbols for answer in alone.emulated}) > 5
    for name, answers, found in zip(
        ("float32", "epur-fp16"), (alone.float32, alone.emulated), alone.metrics, strict=True
    ):
        one = comparison.task(model, arithmetic(name), EPUR)
        items, references = one.test_set(20)
        assert list(answers) == [one.answer([item], 2)[0] for item in items]
        assert found == one.score(answers, references)
    first, second = alone.to_dict(), many.to_dict()
    assert (first.pop("jobs"), second.pop("jobs")) == (1, 2)
    for result in (first, second):
        assert min(result.pop("seconds").values()) > 0
    assert first == second
    assert first["n"] == 20
    assert first["metric"] == "WER"
    assert first["float32"] == first["metrics"]["float32"]["WER"]
    assert first["emulated"] == first["metrics"]["emulated"]["WER"]
    same = sum(a.text == b.text for a, b in zip(alone.float32, alone.emulated, strict=True))
    assert first["same_outputs"] == same


def test_a_limit_takes_the_first(recordings: Path) -> None:
    model = read_folder(recordings)
    few, more = (comparison.evaluate(model, FP16, EPUR, limit=n, jobs=1) for n in (3, 7))
    assert few.emulated == more.emulated[:3]
    assert comparison.evaluate(model, FP16, EPUR, limit=1, jobs=8).jobs == 1


def test_an_error_in_a_process_is_the_same_error(recordings: Path) -> None:
    model = read_folder(recordings)
    with pytest.raises(EpurError, match="beam is 0"):
        comparison.evaluate(model, FP16, EPUR, limit=4, beam=0, jobs=2)
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told(recordings: Path) -> None:
    model = read_folder(recordings)
    items = comparison.task(model, FP16, EPUR).test_set(4)[0]

    def lose_one() -> None:
        with comparison._workers(model, (FP16,), EPUR, 2) as work:
            multiprocessing.active_children()[0].kill()
            list(work([(0, [item], 1) for item in items] * 50))

    with pytest.raises(EpurError, match="--jobs"):
        lose_one()
    assert not multiprocessing.active_children()


def test_processes_may_end_before_their_pool_is_told(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's thread fails then if anybody has cancelled what it waits for."""
    end = multiprocessing.context.SpawnProcess.terminate

    def at_once(process: multiprocessing.context.SpawnProcess) -> None:
        end(process)
        process.join()
        time.sleep(0.3)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "terminate", at_once)
    model = read_folder(recordings)
    items = comparison.task(model, FP16, EPUR).test_set(12)[0]
    with pytest.raises(KeyboardInterrupt), comparison._workers(model, (FP16,), EPUR, 2) as work:
        answers = work([(0, [item], 99) for item in items * 20])
        next(answers)
        try:
            raise KeyboardInterrupt
        finally:  # as where a loop over them is interrupted
            answers.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("whom", ["all", "the command alone"])
def test_an_interruption_ends_all_processes(recordings: Path, whom: str) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "epur_emu", "evaluate", recordings, "--jobs", "2", "--beam", "256"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0,
    )  # fmt: skip
    assert command.stderr is not None
    shown = b""
    while b"0/300" not in shown:
        shown += command.stderr.read(1)
        assert command.poll() is None, shown
    time.sleep(0.3)  # the processes are now in the midst of it
    (os.killpg if whom == "all" else os.kill)(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 130
    assert out == b""
    assert err.endswith(b"epur: interrupted\n")
    assert b"Traceback" not in err
    deadline = time.monotonic() + 60
    while _group_lives(command.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_starts_never_gets_an_interruption() -> None:
    ask = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = [sys.executable, "-c", ask]
    with comparison._starting_deaf():
        assert subprocess.check_output(command) == b"True\n"
    assert subprocess.check_output(command) == b"False\n"


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_evaluate_for_people(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["evaluate", str(recordings), "--limit", "5", "--jobs", "1"])
    out, err = capsys.readouterr()
    for part in ("toy on epur, 5 items", "WER", "SER", "float32", "epur-fp16", "outputs are the"):
        assert part in out
    assert "5/5" in err


def test_baselines_of_the_card_stand_beside_the_scores(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "beside"
    shutil.copytree(recordings, model)
    with (model / "card.toml").open("a", encoding="utf-8") as file:
        file.write(
            "\n[baseline.silent_guess]\nWER = 98.25\nSER = 100\n[baseline.other]\nBLEU = 3.0\n"
            "[score]\nn = 4\n"
        )
    cli.main(["evaluate", str(model), "--limit", "4", "--jobs", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["baselines"] == {"silent guess": {"WER": 98.25, "SER": 100}}
    cli.main(["evaluate", str(model), "--limit", "4", "--jobs", "1"])
    (line,) = [row for row in capsys.readouterr().out.splitlines() if "silent guess" in row]
    assert line.split()[2:4] == ["98.25", "100.00"]
    cli.main(["evaluate", str(model), "--limit", "3", "--jobs", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["baselines"] == {}


def test_without_data_an_example_asks_for_a_file(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPUR_DATA", str(tmp_path))
    with pytest.raises(EpurError, match=r"give a WAV file.*epur run MODEL FILE; or"):
        comparison.run(read_folder(recordings), None, FP16, EPUR, EnergyTable.load("epur-28nm"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_missing_package_is_told(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(EpurError, match=r"threadpoolctl is not.*epur_emu\[evaluate\]"):
        comparison.evaluate(read_folder(recordings), FP16, EPUR, limit=2, jobs=jobs)


def test_what_a_metric_lacks_is_told_before_all_is_answered(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    answer = TASKS["speech"].answer
    monkeypatch.setattr(TASKS["speech"], "score", lambda self, found, wanted: metrics.bleu([], []))
    monkeypatch.setattr(TASKS["speech"], "answer", lambda *a: asked.extend(a[1]) or answer(*a))
    with pytest.raises(EpurError, match=r"sacrebleu is not.*epur_emu\[evaluate\]"):
        comparison.evaluate(read_folder(recordings), FP16, EPUR, limit=9)
    assert len(asked) == 1


def test_bleu_is_of_words() -> None:
    pytest.importorskip("sacrebleu")
    text = "a dog runs through the snow ."
    assert metrics.bleu([text], [text]) == {"BLEU": pytest.approx(100), "chrF": pytest.approx(100)}
    found = metrics.bleu([text, "a cat sleeps on the mat ."], [text, "the dog is on the mat ."])
    assert 10 < found["BLEU"] < 90


# --- what tasks search and multiply with


@given(
    st.integers(1, 5), st.integers(5, 40), st.integers(1, 4), st.sampled_from((0.0, 0.3, 0.9)),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None)
def test_a_beam_keeps_the_best_extensions(
    size: int, symbols: int, steps: int, lost: float, seed: int
) -> None:
    """All extensions sorted; of none are two scores equal."""
    rng = np.random.default_rng(seed)
    beam = Beam(size, longest=10)
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done = []
    for step in range(steps):
        logp = -rng.permutation(size * symbols).reshape(size, symbols).astype(np.float32)
        logp *= np.float32(1 + step / 7)
        logp[rng.random(logp.shape) < lost] = rng.choice([np.nan, -np.inf])
        if beam.ended:
            break
        beam.advance(logp[: 1 if step == 0 else size])
        found = sorted(
            (
                (score + float(logp[row, word]), (*text, word))
                for row, (score, text) in enumerate(alive)
                for word in range(symbols)
                if logp[row, word] > -np.inf
            ),
            key=lambda each: -each[0],
        )
        if len({score for score, _ in found}) < len(found):
            return
        going = [each for each in found if each[1][-1] != EOS][:size]
        done += [(score, len(text), text[:-1]) for score, text in found[:size] if text[-1] == EOS]
        alive = going
        assert beam._texts == [text for _, text in alive]
        assert beam._scores[: len(alive)].tolist() == [score for score, _ in alive]
        assert beam.words[: len(alive)].tolist() == [text[-1] for _, text in alive]
        assert beam._finished == done


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 3), (300, 1024), (1271, 200)])
def test_products_in_tiles(outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(outputs)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    x = rng.standard_normal((4, 3, inputs)).astype(np.float32)
    found = Dense(weight, bias)(x)
    assert found.dtype == np.float32
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(found, wanted, atol=1e-4 * inputs**0.5)
    for n in range(len(x)):
        np.testing.assert_array_equal(found[n], Dense(weight, bias)(x[n : n + 1])[0])
