"""Models that decode, their accesses performed one by one: encoder, decoder and search as they went."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_captioning
import test_probe
import test_translation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epur_emu import cli, comparison, probe
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS
from epur_emu.checkpoints.folder import read_folder
from epur_emu.errors import AcceleratorError, EpurError
from epur_emu.tasks import Task
from epur_emu.tasks.beam import Beam, Followed
from epur_emu.trace import Trace
from epur_emu.trace.accesses import Accesses

EPUR = ARITHMETICS["epur-fp16"]
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "translation": partial(test_translation.toy_folder, seed=5, cells=18),
    "captioning": test_captioning.toy_folder,
}
GIVEN = {"translation": "a b b a", "captioning": None}


def task_of(kind: str, folder: Path, machine: Accelerator) -> Task:
    model = read_folder(FOLDERS[kind](folder))
    model.alpha.update(
        dict.fromkeys((p.name for n in model.networks.values() for p in n.passes), 30.0)
    )
    return comparison.task(model, EPUR, machine)


def listed(trace: Trace) -> list[tuple[Any, ...]]:
    columns = Accesses.join(trace.expand()).columns().values()
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("preset", probe.WALKS)
@pytest.mark.parametrize("beam", [1, 3])
def test_events_are_the_streams_of_the_same_run(
    tmp_path: Path, kind: str, preset: str, beam: int
) -> None:
    machine = Accelerator.load(preset)
    task = task_of(kind, tmp_path / "model", machine)
    item = task.read(GIVEN[kind])
    (answer,) = task.answer([item], beam)
    streams = task.trace(item, answer, EPUR, machine)
    events = task.probe(item, answer, beam, EPUR, machine, tmp_path / "t.h5")
    assert listed(events) == listed(streams)
    assert len(events.events) == streams.count() > 10_000
    assert events.meta == streams.meta
    assert events.cycles == streams.cycles
    assert events.operations() == streams.operations()
    assert Trace.open(tmp_path / "t.h5") == events


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_search_is_followed_as_it_went(tmp_path: Path, kind: str, beam: int) -> None:
    """Each evaluation, done again from the one it went on from, gives the outputs that the probe holds."""
    task = task_of(kind, tmp_path, Accelerator.load("epur"))
    item = task.read(GIVEN[kind])
    (answer,) = task.answer([item], beam)
    run = task.runs(item, answer, beam)[-1]
    assert isinstance(run, probe.Decoded)
    assert run.initial is not None
    assert run.parents is not None
    assert len(run.parents) == answer.passes
    assert (beam > 1) == bool((run.parents != np.arange(-1, answer.passes - 1)).any())
    engine = task.engines["decoder"]
    for number, (inputs, outputs) in enumerate(zip(run.inputs, run.layers, strict=True)):
        states = [run.initial[number]]
        for x, wanted, parent in zip(np.asarray(inputs), outputs, run.parents, strict=True):
            h, c = (v[None] for v in states[parent + 1])
            h, c = engine.step(number, x[None], h, c)
            assert h[0].tobytes() == wanted.tobytes()
            states.append((h[0], c[0]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_followed_search_is_the_same_search(size: int, seed: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    plain, followed = Beam(size, longest), Followed(size, longest)
    texts: dict[int, tuple[int, ...]] = {-1: ()}
    rows = 1
    while not plain.ended:
        assert not followed.ended
        logp = rng.standard_normal((rows, 6)).astype(np.float32)
        before = len(followed.origins)
        own = [tuple(text) for text in followed._texts]
        plain.advance(logp)
        followed.advance(logp)
        assert followed.alive[-1] == len(own)
        for number, text in enumerate(own, before):
            assert texts[followed.origins[number]] == text[:-1]
            texts[number] = text
        rows = size
    assert followed.ended
    assert plain.best(1.0) == followed.best(1.0)
    assert plain.passes == followed.passes == len(followed.origins)


@pytest.mark.parametrize("kind", FOLDERS)
def test_another_beam_is_refused(tmp_path: Path, kind: str) -> None:
    task = task_of(kind, tmp_path / "model", Accelerator.load("epur"))
    item = task.read(GIVEN[kind])
    (answer,) = task.answer([item], 3)
    with pytest.raises(EpurError, match="beam"):
        task.probe(item, answer, 1, EPUR, Accelerator.load("epur"), tmp_path / "t.h5")
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_command_line_writes_them(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = FOLDERS[kind](tmp_path / "model"), str(tmp_path / "t.h5")
    given = [GIVEN[kind]] if GIVEN[kind] else []
    cli.main(["run", str(folder), *given, "--beam", "2", "--trace", path, "--trace-mode", "events"])  # type: ignore[list-item]
    out, err = capsys.readouterr()
    assert path in out
    assert "access" in err
    kept = Trace.open(path)
    assert len(kept.events) == kept.count() > 10_000


def test_an_interruption_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_probe.interrupt_after(8_000, monkeypatch)
    folder, path = FOLDERS["translation"](tmp_path / "model"), tmp_path / "t.h5"
    with pytest.raises(SystemExit, match="130"):
        cli.main(["run", str(folder), "a b", "--trace", str(path), "--trace-mode", "events"])
    assert "interrupted" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"model", "t.h5.partial"}
    partial = Trace.open(tmp_path / "t.h5.partial")
    assert not partial.complete
    assert 8_000 < partial.count() < 12_000


def test_a_dataflow_without_a_probe_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(probe.WALKS, "epur-tiled")
    model = read_folder(FOLDERS["captioning"](tmp_path))
    machine = Accelerator.load("epur-tiled")
    monkeypatch.setattr(
        "epur_emu.tasks.captioning.Captioning.answer", lambda *_: pytest.fail("computed")
    )
    with pytest.raises(AcceleratorError, match="can't be probed"):
        comparison.run(
            model, None, EPUR, machine, comparison.EnergyTable.load("epur-28nm"), 1, tmp_path / "t"
        )
