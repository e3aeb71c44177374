"""Speech activity: the published network's own numbers, sounds with known boundaries."""

from __future__ import annotations

import os
import re
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS
from epur_emu.checkpoints import silero
from epur_emu.checkpoints.folder import read_folder
from epur_emu.cli import main
from epur_emu.comparison import task
from epur_emu.emulator import Engine
from epur_emu.errors import EpurError, ModelError
from epur_emu.tasks import digits
from epur_emu.tasks.activity import RATE, STEP, SpeechActivity, heard, sounds
from epur_emu.tasks.base import Answer
from epur_emu.tasks.digits import Utterance
from epur_emu.zoo import find

try:
    silero.locate()
    INSTALLED = True
except ModelError:
    INSTALLED = False
needs_package = pytest.mark.skipif(not INSTALLED, reason="silero-vad is not installed")
needs_data = pytest.mark.skipif("EPUR_DATA" not in os.environ, reason="EPUR_DATA is not set")


def detector(arithmetic: str = "float32") -> SpeechActivity:
    model = read_folder(find("silero-vad"))
    found = task(model, ARITHMETICS[arithmetic], Accelerator.load("epur"))
    assert isinstance(found, SpeechActivity)
    return found


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def vowels(seconds: float, rate: int = RATE) -> Utterance:
    """Silence, then a buzz of 120 Hz through three moving resonances, by turns of half a second."""
    n = np.arange(int(seconds * rate))
    sound = np.zeros(len(n))
    for harmonic in range(1, 30):
        hertz = 120 * harmonic
        gain = sum(
            np.exp(-(((hertz - f * (1 + 0.2 * np.sin(n / rate * 5))) / 150) ** 2))
            for f in (500, 1500, 2500)
        )
        sound += gain * np.sin(2 * np.pi * hertz * n / rate)
    sound *= 6000 * (n // (rate // 2) % 2)
    sound += np.random.default_rng(0).normal(0, 20, len(n))
    return Utterance(sound.astype(np.int16), rate, "vowels")


def recordings(folder: Path) -> Path:
    """The data set's files, each its own square wave between silences."""
    (folder / "recordings").mkdir()
    for digit in range(10):
        for number, speaker in enumerate(digits.SPEAKERS):
            n = np.arange(2400)
            tone = np.where(n // (4 + digit) % 2, 3000 + number, -3000)
            tone[:400] = tone[-400:] = 0
            path = folder / "recordings" / f"{digit}_{speaker}_2.wav"
            write_wav(path, tone, digits.RATE)
    return folder


# --- the published network


def onnx_probabilities(sound: np.ndarray) -> np.ndarray:
    """What the package's own network gives, step by step."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(silero.locate().parent / "silero_vad.onnx"))
    steps = -(-len(sound) // STEP)
    frames = np.pad(sound, (0, steps * STEP - len(sound))).reshape(steps, 1, STEP)
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    out = []
    for frame in frames:
        given = {"input": np.concatenate((before, frame), 1), "state": state, "sr": np.array(RATE)}
        probability, state = session.run(None, given)
        before = frame[:, -64:]
        out.append(probability[0, 0])
    return np.array(out)


@needs_package
@pytest.mark.parametrize("samples", [1, STEP - 1, STEP, 3 * RATE + 17])
def test_same_probabilities_as_the_package(samples: int) -> None:
    whole = vowels(3.1)
    item = Utterance(whole.samples[:samples], RATE, "vowels")
    theirs = onnx_probabilities(heard(item))
    np.testing.assert_allclose(detector().probabilities(item), theirs, atol=1e-4, rtol=0)
    if samples > RATE:
        assert theirs.min() < 0.1 < 0.5 < theirs.max()


@needs_package
@needs_data
def test_same_probabilities_as_the_package_on_speech() -> None:
    ours = detector()
    for item in ours.test_set(3)[0]:
        theirs = onnx_probabilities(heard(item))
        assert theirs.max() > 0.9
        np.testing.assert_allclose(ours.probabilities(item), theirs, atol=1e-4, rtol=0)


@needs_package
@needs_data
def test_scores_of_the_card() -> None:
    ours = detector("epur-fp16")
    items, wanted = ours.test_set(20)
    score = ours.score(ours.answer(items), wanted)
    pauses = 100 * (1 - np.mean(np.concatenate(wanted)))
    assert score["frame accuracy"] > 92 > pauses + 10
    assert score["recall"] > 80
    assert score["false alarms"] < 8


@needs_package
def test_an_item_emulated() -> None:
    reference, ours = detector(), detector("epur-fp16")
    item = vowels(2.0)
    (wanted,), (found,) = reference.answer([item]), ours.answer([item])
    assert found == wanted
    assert 0 < sum(found.symbols) < len(found.symbols) == -(-2 * RATE // STEP)
    assert found.plain.startswith("speech at ")
    (name, values), *others = ours.outputs(item, found).items()
    assert name == "detector.0.forward"
    assert not others
    assert (values == values.astype(np.float16)).all()
    exact = reference.outputs(item, found)[name]
    assert 0 < abs(values - exact).max() < 0.02
    arithmetic, accelerator = ARITHMETICS["epur-fp16"], Accelerator.load("epur")
    one, two = (
        ours.trace(i, a, arithmetic, accelerator).cycles
        for i, a in [(item, found), (vowels(4.0), ours.answer([vowels(4.0)])[0])]
    )
    assert two == pytest.approx(2 * one, rel=0.1)


@needs_package
def test_silence_holds_no_speech() -> None:
    (found,) = detector().answer([Utterance(np.zeros(RATE, np.int16), RATE, "silence")])
    assert set(found.symbols) == {0}
    assert found.plain == "no speech"


# --- what is refused


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"^weights: package silero-vad is not .*pip install"):
        read_folder(find("silero-vad"))


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "FILE", "data/missing.onnx")
    with pytest.raises(ModelError, match="pip install"):
        silero.read_tensors()


@needs_package
@pytest.mark.parametrize("damage", ["cut", "other names", "empty", "wider"])
def test_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    whole = silero.locate().read_bytes()
    name = b"decoder.rnn.weight_ih"
    assert name in whole
    data = {
        "cut": whole[: len(whole) // 2],
        "other names": whole.replace(name, name[::-1]),
        "empty": b"",
        "wider": whole.replace(
            b"\x08\x80\x04\x08\x80\x01\x10\x01", b"\x08\x80\x05\x08\x80\x01\x10\x01"
        ),
    }[damage]
    assert data != whole
    path = tmp_path / "weights.onnx"
    path.write_bytes(data)
    monkeypatch.setattr(silero, "locate", lambda: path)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        silero.read_tensors()


@pytest.mark.parametrize("package", ["torch", 3, ["silero-vad"]])
def test_a_card_that_names_another_package(tmp_path: Path, package: object) -> None:
    shutil.copy(find("silero-vad") / "card.toml", tmp_path)
    card = tmp_path / "card.toml"
    text = card.read_text(encoding="utf-8")
    assert 'package = "silero-vad"' in text
    shown = package if isinstance(package, list | int) else f'"{package}"'
    card.write_text(text.replace('package = "silero-vad"', f"package = {shown}"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"package is .*silero-vad"):
        read_folder(tmp_path)


@needs_package
def test_a_model_of_other_shapes() -> None:
    model = read_folder(find("silero-vad"))
    engines = {k: Engine(n, ARITHMETICS["float32"]) for k, n in model.networks.items()}
    with pytest.raises(ModelError, match="detector"):
        SpeechActivity(model, {})
    whole = dict(model.host)
    for name, array in whole.items():
        model.host[name] = array[..., :-1] if array.size > 1 else np.zeros((2, 2), np.float32)
        with pytest.raises(ModelError, match=re.escape(f"host.{name}")):
            SpeechActivity(model, engines)
        model.host[name] = array
        SpeechActivity(model, engines)


# --- sound


@needs_package
@pytest.mark.parametrize("rate", [RATE, RATE // 2])
def test_read_a_file(tmp_path: Path, rate: int) -> None:
    given = vowels(1.0, rate)
    path = write_wav(tmp_path / "a.wav", given.samples, rate)
    item = detector().read(str(path))
    assert (item.samples == given.samples).all()
    assert (item.rate, detector().duration(item)) == (rate, 1.0)
    assert "1.00 s" in detector().describe(item)
    assert len(heard(item)) == RATE


@needs_package
def test_files_that_are_refused(tmp_path: Path) -> None:
    ours = detector()
    empty = write_wav(tmp_path / "empty.wav", np.zeros(0), RATE)
    odd = write_wav(tmp_path / "odd.wav", np.zeros(10), 44100)
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    for path in (empty, odd, text, tmp_path / "missing.wav"):
        with pytest.raises(EpurError, match=path.name):
            ours.read(str(path))
    with pytest.raises(EpurError, match="44100 Hz"):
        heard(Utterance(np.zeros(10, np.int16), 44100, "odd"))


def test_doubling_keeps_a_tone() -> None:
    for hertz in (100, 1000, 3000):
        wanted = 8000 * np.sin(2 * np.pi * hertz * np.arange(4000) / RATE)
        samples = np.rint(wanted[::2]).astype(np.int16)
        found = heard(Utterance(samples, RATE // 2, "tone")) * 32768
        assert (found[::2] == samples).all()
        middle = slice(64, -64)
        assert abs(found - wanted)[middle].max() < 40, hertz


def test_sounds_have_known_boundaries(tmp_path: Path) -> None:
    folder = recordings(tmp_path)
    items, labels = sounds(folder, (2,), 6, 5)
    for item, label in zip(items, labels, strict=True):
        assert len(label) == -(-2 * len(item.samples) // STEP)
        loud = abs(item.samples.astype(int)) > 1000
        steps = np.pad(loud, (0, -len(loud) % (STEP // 2))).reshape(-1, STEP // 2)
        clear = (steps.mean(1) > 0.55) | (steps.mean(1) < 0.45)
        assert (np.array(label, bool) == (steps.mean(1) >= 0.5))[clear].all()
        assert 0 < sum(label) < len(label)
    again, same = sounds(folder, (2,), 3, 5)
    assert same == labels[:3]
    for a, b in zip(again, items, strict=False):
        assert (a.samples == b.samples).all()
    assert sounds(folder, (2,), 3, 6)[1] != same


@needs_package
def test_score() -> None:
    answers = [Answer((0, 1, 1, 0), "", ""), Answer((1, 0), "", "")]
    score = detector().score(answers, [(0, 1, 0, 0), (1, 1)])
    wanted = {"frame accuracy": 100 * 4 / 6, "recall": 100 * 2 / 3, "false alarms": 100 / 3}
    assert score == pytest.approx(wanted)
    assert next(iter(score)) == SpeechActivity.metric


@needs_package
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_wav(tmp_path / "a.wav", vowels(1.5).samples, RATE)
    main(["run", "silero-vad", str(path)])
    assert "speech at" in capsys.readouterr().out


def test_command_line_without_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["run", "silero-vad"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "silero-vad" in line
    assert "pip install" in line
