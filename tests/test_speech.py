"""The recogniser: features as they are defined, strings of digits, CTC, and what was trained."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import math
import os
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_speech import FEATURES, sound, toy_folder, write_recordings, write_wav

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import WEIGHTS, Model, read_folder
from epur_emu.comparison import task
from epur_emu.emulator import Engine, calibrate
from epur_emu.errors import EpurError, ModelError
from epur_emu.tasks.ctc import greedy, prefix_search
from epur_emu.tasks.digits import (
    LONGEST,
    NOISE,
    PAUSE,
    RATE,
    SPEAKERS,
    TEST,
    TRAINING,
    VALIDATION,
    WORDS,
    Draws,
    Utterance,
    strings,
)
from epur_emu.tasks.features import FLOOR, LogMel, read_wav
from epur_emu.tasks.metrics import word_errors
from epur_emu.tasks.speech import NETWORK, TEST_SEED, Speech
from epur_emu.zoo import find

ROOT = Path(__file__).resolve().parents[1]
MODEL = "digits-ctc"
GOLDEN_DRAWS = [178, 639, 467, 370, 354, 790]
GOLDEN_TEST_SET = "ec83a754aa60bd25"
needs_data = pytest.mark.skipif("EPUR_DATA" not in os.environ, reason="no EPUR_DATA")


# --- features


def defined(samples: np.ndarray, f: LogMel) -> np.ndarray:
    """The features by their definition, one frame, one frequency, one band at a time."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    x = [s / 32768 for s in samples.tolist()]
    x = [x[0], *(b - 0.97 * a for a, b in itertools.pairwise(x))]
    step = (mel(f.rate / 2) - mel(60)) / (f.bands + 1)
    rows = []
    for start in range(0, len(x) - f.frame + 1, f.hop):
        bands = [0.0] * f.bands
        for k in range(f.size // 2 + 1):
            point = sum(
                x[start + n]
                * (0.5 - 0.5 * math.cos(2 * math.pi * (n + 0.5) / f.frame))
                * complex(math.cos(2 * math.pi * k * n / f.size), math.sin(2 * math.pi * k * n / f.size))
                for n in range(f.frame)
            )  # fmt: skip
            for b in range(f.bands):
                away = abs(mel(k * f.rate / f.size) - mel(60) - (b + 1) * step) / step
                bands[b] += abs(point) ** 2 * max(0.0, 1 - away)
        rows.append([math.log(max(value, FLOOR)) for value in bands])
    full = np.array(rows[: len(rows) // f.stack * f.stack])
    full = (full - full.mean(0)) / np.maximum(full.std(0), 0.1)
    return full.reshape(-1, f.width)


@pytest.mark.parametrize("f", [LogMel(8000, 50, 20, 5, 3), LogMel(16000, 64, 31, 4, 1)], ids=str)
def test_features_are_as_defined(f: LogMel) -> None:
    samples = sound(400)
    found = f(samples)
    assert found.dtype == np.float32
    assert found.shape == (f.steps(400), f.width)
    np.testing.assert_allclose(found, defined(samples, f), atol=2e-5, rtol=0)


@given(st.integers(360, 3000))
def test_time_steps_of_a_length(count: int) -> None:
    f = LogMel()
    frames = len(range(0, count - f.frame + 1, f.hop))
    assert f.steps(count) == frames // f.stack == len(f(np.ones(count, np.int16)))


def test_silence_is_zero_and_too_little_is_refused() -> None:
    f = LogMel()
    assert f.shortest == 360
    assert not f(np.zeros(f.shortest, np.int16)).any()
    with pytest.raises(EpurError, match="360"):
        f(np.zeros(f.shortest - 1, np.int16))
    with pytest.raises(EpurError, match="one channel"):
        f(np.zeros((1000, 2), np.int16))


def test_loudness_changes_nothing_above_the_floor() -> None:
    samples = np.random.default_rng(0).normal(0, 3000, 4000)
    np.testing.assert_allclose(LogMel()(3 * samples), LogMel()(samples), atol=1e-5)


@pytest.mark.parametrize("field", ["rate", "frame", "hop", "bands", "stack"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "8"])
def test_wrong_numbers_of_the_features_are_named(field: str, value: object) -> None:
    with pytest.raises(ModelError, match=field):
        LogMel(**{field: value})


# --- WAV files


def test_a_wav_file_is_read(tmp_path: Path) -> None:
    samples = np.array([0, 1, -1, 32767, -32768, 300], np.int16)
    found = read_wav(write_wav(tmp_path / "a.wav", samples), RATE)
    assert found.dtype == np.int16
    assert found.tolist() == samples.tolist()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"rate": 16000}, r"1 channel\(s\) of 16 bits at 16000 Hz; .* at 8000 Hz: ffmpeg"),
        ({"channels": 2}, r"2 channel\(s\)"),
        ({"samples": np.zeros(8, np.uint8)}, "of 8 bits"),
    ],
)
def test_another_kind_of_sound_is_refused(tmp_path: Path, kind: dict, told: str) -> None:
    path = write_wav(tmp_path / "a.wav", **{"samples": np.zeros(8, np.int16), **kind})
    with pytest.raises(EpurError, match=told):
        read_wav(path, RATE)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all" * 9, None])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EpurError, match=r"bad\.wav") as caught:
        read_wav(path, RATE)
    assert "\n" not in str(caught.value)
    assert "()" not in str(caught.value)


# --- strings of digits


def test_draws_are_those_of_pcg64() -> None:
    draws = Draws(7)
    raw = [int(n) >> 32 for n in np.random.PCG64(7).random_raw(3 + 2000)]
    assert [draws.below(n) for n in (10, 1, 2**32)] == [raw[0] * 10 >> 32, 0, raw[2]]
    noise = draws.noise(2000, 3)
    assert noise.tolist() == [(n * 7 >> 32) - 3 for n in raw[3:]]
    assert set(noise.tolist()) == set(range(-3, 4))


def test_draws_do_not_depend_on_the_version_of_numpy() -> None:
    draws = Draws(2026)
    assert [draws.below(1000) for _ in range(6)] == GOLDEN_DRAWS


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("data") / "fsdd")


def test_strings_hold_what_their_words_say(recordings: Path) -> None:
    sounds, texts = strings(recordings, TEST, 60, 3)
    assert len({*texts}) > 50
    lengths, speakers, indices = set(), set(), set()
    for utterance, text in zip(sounds, texts, strict=True):
        runs = [(k, len(list(g))) for k, g in itertools.groupby(utterance.samples // 100 >= 99)]
        digits = []
        place = 0
        own = set()
        for speech, length in runs:
            part = utterance.samples[place : place + length]
            place += length
            if speech:
                (value,) = set(part.tolist())
                digits.append(value // 1000 - 10)
                assert length == 50 + digits[-1]
                own.add(value // 100 % 10)
                indices.add(value % 100)
            else:
                assert PAUSE[0] <= length <= PAUSE[1]
                assert 1 <= abs(part).max() <= NOISE
        assert not runs[0][0]
        assert not runs[-1][0]
        assert [WORDS[d] for d in digits] == text.split()
        assert len(own) == 1
        speakers |= own
        lengths.add(len(digits))
    assert lengths == set(range(1, LONGEST + 1))
    assert indices == set(TEST)
    assert speakers == set(range(len(SPEAKERS)))


def test_first_strings_do_not_depend_on_their_number(recordings: Path) -> None:
    few, more = (strings(recordings, TEST, count, 5) for count in (3, 9))
    assert few[1] == more[1][:3] != strings(recordings, TEST, 3, 6)[1]
    for a, b in zip(few[0], more[0], strict=False):
        assert a.samples.tobytes() == b.samples.tobytes()


def test_no_recording_serves_two_purposes() -> None:
    assert not {*TEST} & {*VALIDATION}
    assert not {*TRAINING} & {*TEST, *VALIDATION}


def test_missing_recordings_are_named(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(EpurError, match=r"_40\.wav"):
        strings(recordings, [40], 1, 0)
    with pytest.raises(EpurError, match="recordings"):
        strings(tmp_path, TEST, 1, 0)


@needs_data
def test_the_test_set_is_the_same_everywhere() -> None:
    sounds, texts = strings(Path(os.environ["EPUR_DATA"]) / "fsdd", TEST, 300, TEST_SEED)
    digest = hashlib.sha256("\n".join(texts).encode())
    for utterance in sounds:
        digest.update(utterance.samples.astype("<i2").tobytes())
    assert sum(len(text.split()) for text in texts) == 1330
    assert digest.hexdigest()[:16] == GOLDEN_TEST_SET


# --- CTC


def texts_of_paths(logp: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of each text: the sum over all its paths."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(logp.shape[1]), repeat=len(logp)):
        text = tuple(s for s, _ in itertools.groupby(path) if s)
        total[text] += math.exp(sum(float(logp[t, s]) for t, s in enumerate(path)))
    return total


def draw_logp(seed: int, steps: int, symbols: int) -> np.ndarray:
    scores = 2 * np.random.default_rng(seed).standard_normal((steps, symbols))
    return (scores - np.log(np.exp(scores).sum(-1, keepdims=True))).astype(np.float32)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 4))
def test_a_wide_search_finds_the_likeliest_text(seed: int, steps: int, symbols: int) -> None:
    logp = draw_logp(seed, steps, symbols)
    total = texts_of_paths(logp)
    text, score = prefix_search(logp, 10**6)
    assert total[text] == pytest.approx(max(total.values()), rel=1e-5)
    assert score == pytest.approx(math.log(total[text]), abs=1e-5)


def test_a_search_finds_what_the_likeliest_path_does_not() -> None:
    logp = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert greedy(logp) == ()
    assert prefix_search(logp, 2)[0] == (1,)


def test_lost_probabilities_end_in_a_score_of_minus_infinity() -> None:
    logp = np.full((3, 4), np.nan, np.float32)
    assert prefix_search(logp, 3)[1] == -np.inf


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([0, 0], ()),
        ([1, 1, 0, 1], (1, 1)),
        ([0, 2, 2, 1, 0, 0, 1, 1], (2, 1, 1)),
        ([3], (3,)),
    ],
)
def test_repetitions_are_merged_and_blanks_dropped(path: list[int], text: tuple) -> None:
    assert greedy(np.eye(4, dtype=np.float32)[path]) == text


WORD_LISTS = st.lists(st.sampled_from("abc"), max_size=5)


@given(WORD_LISTS, WORD_LISTS)
def test_word_errors_are_the_fewest(found: list[str], wanted: list[str]) -> None:
    def fewest(a: tuple, b: tuple) -> int:
        if not a or not b:
            return len(a) + len(b)
        other = fewest(a[1:], b[1:]) + (a[0] != b[0])
        return min(other, fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1)

    assert word_errors(found, wanted) == fewest(tuple(found), tuple(wanted))


# --- the task, on a small model of random weights


def speech(folder: Path, name: str = "float32") -> Speech:
    found = task(read_folder(folder), arithmetic(name), Accelerator.load("epur"))
    assert isinstance(found, Speech)
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_scores_are_those_of_the_definition(tmp_path: Path) -> None:
    model = read_folder(toy_folder(tmp_path))
    item = Utterance(sound(4000), RATE, "a sound")
    x = LogMel(**FEATURES)(item.samples).astype(np.float64)
    for passes in model.networks[NETWORK].layers:
        rows = []
        for p in passes:
            h = c = np.zeros(p.cells)
            out = np.zeros((len(x), p.cells))
            for t in range(len(x))[:: -1 if p.reverse else 1]:
                i, f, g, o = (p.w_x[q] @ x[t] + p.w_h[q] @ h + p.bias[q] for q in range(4))
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                out[t] = h = sigmoid(o) * np.tanh(c)
            rows.append(out)
        x = np.concatenate(rows, 1)
    wanted = x @ model.host["output.weight"].T + model.host["output.bias"]
    found = speech(tmp_path).scores(item)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_answers_do_not_depend_on_what_is_asked_with_them(tmp_path: Path) -> None:
    folder = toy_folder(tmp_path, tuple("abcdefgh"))
    items = [Utterance(sound(n, n), RATE, "") for n in (900, 4000, 2500)]
    for name in ("float32", "epur-fp16"):
        recogniser = speech(folder, name)
        for beam in (1, 4):
            together = recogniser.answer(items, beam)
            assert together == [recogniser.answer([item], beam)[0] for item in items]
    assert len(together[1].symbols) > 1
    assert together[1].text.split() == ["abcdefgh"[s - 1] for s in together[1].symbols]
    with pytest.raises(EpurError, match="beam"):
        recogniser.answer(items, 0)


def test_outputs_and_trace_are_those_of_the_sequence(tmp_path: Path) -> None:
    recogniser = speech(toy_folder(tmp_path), "epur-fp16")
    item = Utterance(sound(3000), RATE, "")
    (answer,) = recogniser.answer([item])
    layers = recogniser.engine.sequence(recogniser.features(item.samples))
    outputs = recogniser.outputs(item, answer)
    for n, layer in enumerate(layers):
        parts = [outputs[f"{NETWORK}.{n}.{d}"] for d in ("forward", "backward")]
        np.testing.assert_array_equal(np.concatenate(parts, 1), layer)
    accelerator = Accelerator.load("epur")
    longer = Utterance(sound(6000), RATE, "")
    traces = [
        recogniser.trace(i, answer, arithmetic("epur-fp16"), accelerator) for i in (item, longer)
    ]
    assert traces[0].meta["networks"][0]["steps"] == len(layers[0])
    assert 1.5 < traces[1].cycles / traces[0].cycles < 2.5


def test_speech_is_read_from_a_file(tmp_path: Path) -> None:
    recogniser = speech(toy_folder(tmp_path))
    item = recogniser.read(str(write_wav(tmp_path / "long.wav", sound(4000))))
    assert recogniser.duration(item) == 0.5
    assert "long.wav, 0.50 s" in recogniser.describe(item)
    with pytest.raises(EpurError, match=r"short\.wav: sound has 239 samples; give at least 240"):
        recogniser.read(str(write_wav(tmp_path / "short.wav", sound(239))))


def test_score_counts_words_and_strings(tmp_path: Path) -> None:
    recogniser = speech(toy_folder(tmp_path))
    (answer,) = recogniser.answer([Utterance(sound(4000), RATE, "")])
    wrong = " ".join([answer.text, "c"])
    words = len(wrong.split())
    assert recogniser.score([answer, answer], [answer.text, wrong]) == {
        "WER": pytest.approx(100 / (2 * words - 1)),
        "SER": 50.0,
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"host": {"output.bias": None}}, "host.output.bias"),
        ({"host": {"output.weight": np.zeros((4, 6), np.float16)}}, "host.output.weight"),
        ({"decoding": {}}, "host.output.weight"),
        ({"features": {**FEATURES, "bands": 5}}, "are 10 a time step; the network reads 8"),
        ({"features": {"bend": 5}}, "features are wrong .*bend"),
        ({"features": {"bands": 0}}, "bands"),
    ],
)
def test_a_model_that_does_not_fit_is_told(tmp_path: Path, change: dict, told: str) -> None:
    folder = toy_folder(tmp_path, **change)
    with pytest.raises(ModelError, match=told):
        speech(folder)


def test_a_missing_network_is_told(tmp_path: Path) -> None:
    model = read_folder(toy_folder(tmp_path))
    with pytest.raises(ModelError, match=NETWORK):
        Speech(model, {})


# --- the trained network


@pytest.fixture(scope="module")
def trained() -> Model:
    folder = find(MODEL)
    if not (folder / WEIGHTS).exists():
        pytest.skip("not trained yet")
    return read_folder(folder)


def test_the_card_gives_a_score_that_serves(trained: Model) -> None:
    score = trained.card["score"]
    assert score["metric"] == Speech.metric
    assert 0 <= score["float32"] <= 1
    assert 0 <= score["epur-fp16"] <= 1
    names = {p.name for p in trained.networks[NETWORK].passes}
    assert set(trained.alpha) == {n + end for n in names for end in ("", ".input", ".hidden")}


@needs_data
def test_strings_are_recognised(trained: Model) -> None:
    recogniser = speech(trained.path, "epur-fp16")
    items, references = recogniser.test_set(25)
    assert recogniser.read(None).samples.tobytes() == items[0].samples.tobytes()
    metrics = recogniser.score(recogniser.answer(items), references)
    assert metrics["WER"] <= 3
    sample, text = next(iter(recogniser.samples()))
    assert recogniser.answer([sample], 4)[0].text == text


@pytest.fixture(scope="module")
def train() -> ModuleType:
    pytest.importorskip("torch")
    path = ROOT / "models" / MODEL / "train.py"
    spec = importlib.util.spec_from_file_location("train_digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch.set_num_threads(1)
    return module


def test_same_numbers_as_torch(train: ModuleType, tmp_path: Path) -> None:
    train.torch.manual_seed(3)
    theirs = train.Recogniser()
    with train.torch.no_grad():
        for weight in theirs.parameters():  # the trained weights are larger than the first ones
            weight.mul_(2.0)
    theirs = train.rounded(theirs)
    networks, host = train.arrays(theirs)
    x = train.FEATURES(sound(9000))
    inputs = train.torch.from_numpy(x)[None]
    wanted = theirs(inputs)[0].detach().numpy()
    top = Engine(networks[NETWORK], arithmetic("float32")).sequence(x)[-1]
    found = top @ host["output.weight"].T.astype(np.float32) + host["output.bias"]
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
    alpha = calibrate(networks[NETWORK], [x])
    first = networks[NETWORK].layers[0][0]
    sums = x @ first.w_x.reshape(-1, x.shape[1]).T.astype(np.float32)
    assert alpha[first.name] == pytest.approx(float(abs(sums).max()), rel=1e-5)
