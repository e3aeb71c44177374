"""The captioner: the numbers of the network that was trained, pictures read and words joined."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS
from epur_emu.checkpoints.folder import WEIGHTS, Model, read_folder, write_folder
from epur_emu.emulator import Engine
from epur_emu.errors import EpurError, ModelError
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks.bpe import BOS, EOS, SPECIALS, UNK
from epur_emu.tasks.captioning import (
    LONGEST,
    SIZE,
    Captioning,
    Picture,
    Words,
    caption_scores,
    heart,
    read_captions,
    read_picture,
)
from epur_emu.zoo import find

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = ("a red car", "a: b-c, d’s “e”", "Mrs. F")
STRIDES = [3, 2]


def captioner(model: Model, arithmetic: str = "float32") -> Captioning:
    engines = {k: Engine(n, ARITHMETICS[arithmetic]) for k, n in model.networks.items()}
    return Captioning(model, engines)


def toy_folder(path: Path, seed: int = 0, **changes: object) -> Path:
    """A model of random weights: two convolutions, 16 cells."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    words = Words([*SPECIALS, *dict.fromkeys(w for c in CAPTIONS for w in Words.split(c))])
    cells, embedding, feature = 16, 5, 11
    layer = LstmLayer(
        "decoder.0.forward",
        draw(4, cells, embedding + feature),
        draw(4, cells, cells),
        draw(4, cells),
    )
    host = {
        "words": draw(len(words), embedding),
        "bias": draw(len(words)),
        "conv.0.weight": draw(4, 3, 3, 3, scale=0.3),
        "conv.0.bias": draw(4),
        "conv.1.weight": draw(6, 4, 3, 3, scale=0.3),
        "conv.1.bias": draw(6),
        "feature.weight": draw(feature, 6 * 144, scale=0.02),
        "feature.bias": draw(feature),
        "state.weight": draw(2 * cells, feature),
        "state.bias": draw(2 * cells),
        "readout.weight": draw(embedding, cells + feature),
        "readout.bias": draw(embedding),
    }
    card = {"name": "toy", "task": "captioning", "encoder": {"strides": STRIDES}} | changes
    write_folder(path, card, {"decoder": Network("decoder", ((layer,),))}, host, {})
    words.save(path)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Model:
    return read_folder(toy_folder(tmp_path / "toy"))


def pictures(count: int) -> list[Picture]:
    rng = np.random.default_rng(count)
    return [
        Picture(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), f"picture {n}")
        for n in range(count)
    ]


# --- words


@given(st.text("aB’.:,-“” é1\t", max_size=30))
def test_words_restore_a_text(text: str) -> None:
    words = Words([*SPECIALS, *dict.fromkeys(Words.split(text))])
    indices = words.encode(text)
    assert indices[-1] == EOS
    assert UNK not in indices
    assert words.decode(indices) == " ".join(text.split())


def test_words() -> None:
    text = "woman: medium-dark skin tone, “red” hair"
    parts = [" woman", ":", " medium-dark", " skin", " tone", ",", " “", "red", "”", " hair"]
    assert Words.split(text) == parts
    words = Words([*SPECIALS, *parts])
    assert words.encode("red hair, hair") == [UNK, 13, 9, 13, EOS]
    assert words.decode([BOS, 4, UNK, 5, EOS]) == "woman <unk>:"


def test_words_of_a_folder(tmp_path: Path) -> None:
    words = Words([*SPECIALS, " a", "’s", " “"])
    words.save(tmp_path)
    assert Words.load(tmp_path).symbols == words.symbols
    path = tmp_path / "symbols.txt"
    for damage in (b"\xff\xfe", b"a\nb\n", b""):
        path.write_bytes(damage)
        with pytest.raises(EpurError, match=r"symbols\.txt"):
            Words.load(tmp_path)
    path.unlink()
    with pytest.raises(EpurError, match=r"symbols\.txt"):
        Words.load(tmp_path)


# --- the network


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """By definition, in float64: (H, W, C) to (H / stride, W / stride, O)."""
    height, width, _ = x.shape
    out = np.empty((-(-height // stride), -(-width // stride), len(bias)))
    for i, j in np.ndindex(out.shape[:2]):
        total = bias.astype(np.float64)
        for dy, dx in np.ndindex(3, 3):
            y, z = i * stride + dy - 1, j * stride + dx - 1
            if 0 <= y < height and 0 <= z < width:
                total = total + weight[:, :, dy, dx].astype(np.float64) @ x[y, z]
        out[i, j] = np.maximum(total, 0)
    return out


def test_feature_by_definition(toy: Model) -> None:
    host = toy.host
    (item,) = pictures(1)
    x = item.pixels / 127.5 - 1
    for n, stride in enumerate(STRIDES):
        x = convolved(x, host[f"conv.{n}.weight"], host[f"conv.{n}.bias"], stride)
    assert x.shape == (12, 12, 6)
    values = [x[i, j, channel] for channel in range(6) for i in range(12) for j in range(12)]
    wanted = np.tanh(host["feature.weight"] @ values + host["feature.bias"])
    found = captioner(toy).encode(item)
    assert wanted.std() > 0.3
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_likeliest_words(toy: Model) -> None:
    task = captioner(toy)
    items = pictures(5)
    answers = task.answer(items)
    assert len({answer.symbols for answer in answers}) > 1
    for item, answer in zip(items, answers, strict=True):
        scores = task.logits(item, answer.symbols)
        path = (*answer.symbols, EOS)[: answer.passes]
        assert tuple(scores.argmax(-1)[: len(path)]) == path
        assert len(answer.symbols) <= LONGEST
        assert answer.text == answer.plain == task.words.decode(answer.symbols)


@pytest.mark.parametrize("beam", [1, 3])
def test_emulated_answers_do_not_depend_on_each_other(toy: Model, beam: int) -> None:
    task = captioner(toy, "epur-fp16")
    items = pictures(4)
    together = task.answer(items, beam)
    assert together == [task.answer([item], beam)[0] for item in items]
    assert all(answer.passes >= len(answer.symbols) for answer in together)
    assert task.answer([]) == []


def test_a_wider_beam_finds_no_worse(toy: Model) -> None:
    task = captioner(toy)
    task.length_penalty = 0.0
    for item in pictures(5):
        narrow, wide = (task.answer([item], beam)[0].score for beam in (1, 50))
        assert wide >= narrow - 1e-4
    with pytest.raises(EpurError, match="beam"):
        task.answer(pictures(1), 0)


def test_outputs_and_trace(toy: Model) -> None:
    task, rough = captioner(toy), captioner(toy, "epur-fp16")
    (item,) = pictures(1)
    (answer,) = task.answer([item])
    (exact,), (found,) = task.outputs(item, answer).items(), rough.outputs(item, answer).items()
    assert exact[0] == found[0] == "decoder.0.forward"
    assert exact[1].shape == (len(answer.symbols) + 1, 16)
    assert 0 < abs(exact[1] - found[1]).max() < 0.05
    layer = toy.networks["decoder"].passes[0]
    h, c = task.start(task.encode(item))
    x = np.concatenate((toy.host["words"][BOS], task.encode(item)))
    h, c = task.decoder.step(0, x[None], h[None], c[None])
    np.testing.assert_array_equal(exact[1][0], h[0])
    assert layer.cells == 16
    accelerator = Accelerator.load("epur")
    traces = [
        task.trace(item, task.answer([item], beam)[0], ARITHMETICS["epur-fp16"], accelerator)
        for beam in (1, 4)
    ]
    assert 0 < traces[0].cycles < traces[1].cycles


def test_models_that_do_not_fit(toy: Model) -> None:
    engines = {k: Engine(n, ARITHMETICS["float32"]) for k, n in toy.networks.items()}
    with pytest.raises(ModelError, match="decoder"):
        Captioning(toy, {})
    for name, array in dict(toy.host).items():
        toy.host[name] = np.zeros((*array.shape, 2), np.float32)
        with pytest.raises(ModelError, match=r"host\."):
            Captioning(toy, engines)
        del toy.host[name]
        with pytest.raises(ModelError, match=r"host\."):
            Captioning(toy, engines)
        toy.host[name] = array
    for strides in (None, [], [2, 0], "32", [2, 2, 2]):
        toy.card["encoder"] = {"strides": strides}
        with pytest.raises(ModelError, match=r"strides|host\.conv"):
            Captioning(toy, engines)


# --- pictures


def test_heart() -> None:
    item = heart()
    red, green, blue = np.moveaxis(item.pixels.astype(int), -1, 0)
    assert item.pixels.shape == (SIZE, SIZE, 3)
    assert (item.pixels == item.pixels[:, ::-1]).all()
    assert item.pixels[0, 0].tolist() == [255, 255, 255]
    assert red[SIZE // 2, SIZE // 2] > green[SIZE // 2, SIZE // 2] + 100
    filled = blue < 128
    assert 0.25 < filled.mean() < 0.75
    assert filled[:, 0].sum() == filled[:, -1].sum() == filled[0].sum() == filled[-1].sum() == 0
    # Two lobes above, one point below.
    top, bottom = (np.flatnonzero(filled.any(1))[n] for n in (0, -1))
    assert np.abs(np.diff(filled[top].astype(int))).sum() == 4
    assert filled[bottom].sum() < 8


def save_png(path: Path, pixels: np.ndarray) -> Path:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels).save(path)
    return path


def test_read_a_picture(tmp_path: Path, toy: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    item = read_picture(save_png(tmp_path / "a.png", pixels))
    alpha = pixels[..., 3:] / 255
    wanted = alpha * pixels[..., :3] + (1 - alpha) * 255
    assert abs(item.pixels - wanted).max() <= 1.0
    assert captioner(toy).describe(item).endswith("a.png")
    assert captioner(toy).read(None).source == heart().source
    black = save_png(tmp_path / "b.png", np.zeros((40, 2 * SIZE, 3), np.uint8))
    scaled = captioner(toy).read(str(black)).pixels
    assert scaled.shape == (SIZE, SIZE, 3)
    assert (scaled[20:-20].mean(), scaled[:20].mean(), scaled[-20:].mean()) == pytest.approx(
        (96, 255, 255), abs=16
    )


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    whole = save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8)).read_bytes()
    damaged = tmp_path / "b.png"
    for data in (b"", b"no picture", whole[:40], whole[: len(whole) // 2]):
        damaged.write_bytes(data)
        with pytest.raises(EpurError, match=r"b\.png"):
            read_picture(damaged)
    with pytest.raises(EpurError, match=r"c\.png"):
        read_picture(tmp_path / "c.png")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EpurError, match=r"Pillow is not installed.*pip install"):
        read_picture(tmp_path / "a.png")


def test_read_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPUR_DATA", str(tmp_path))
    folder = tmp_path / "emoji"
    with pytest.raises(EpurError, match="emoji"):
        read_captions("test")
    (folder / "png72").mkdir(parents=True)
    with pytest.raises(EpurError, match=r"captions\.tsv"):
        read_captions("test")
    table = folder / "captions.tsv"
    rows = ['1.png\tcat’s "eye"\ttest', "2.png\tdog\ttrain", "3.png\tcow\ttest"]
    table.write_text("\n".join(["file\tcaption\tsplit", *rows]), encoding="utf-8")
    wanted = [(folder / "png72/1.png", 'cat’s "eye"'), (folder / "png72/3.png", "cow")]
    assert read_captions("test") == wanted
    table.write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(EpurError, match=r"captions\.tsv"):
        read_captions("test")


def test_scores() -> None:
    pytest.importorskip("sacrebleu")
    score = caption_scores(["red heart", "a dog"], ["red heart", "a cat"])
    assert list(score) == ["exact match", "chrF", "BLEU"]
    assert score["exact match"] == 50
    assert 0 < score["chrF"] < 100
    assert caption_scores(["a b c d e"], ["a b c d e"]) == pytest.approx(
        {"exact match": 100, "chrF": 100, "BLEU": 100}
    )


# --- the trained network


@pytest.fixture(scope="module")
def train() -> ModuleType:
    pytest.importorskip("torch")
    path = ROOT / "models" / "caption-emoji" / "train.py"
    spec = importlib.util.spec_from_file_location("train_caption_emoji", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch.set_num_threads(1)
    return module


def test_same_numbers_as_torch(train: ModuleType, tmp_path: Path) -> None:
    torch = train.torch
    torch.manual_seed(0)
    words = Words([*SPECIALS, *(f" {n}" for n in range(40))])
    model = train.Captioner(len(words))
    with torch.no_grad():
        for norm in model.norm:
            for value in (norm.weight, norm.running_var):
                value.uniform_(0.5, 2)
            for value in (norm.bias, norm.running_mean):
                value.normal_(0, 0.3)
        for weight in (model.words.weight, model.bias):
            weight.normal_(0, 0.3)
        for conv in model.conv:
            train.nn.init.kaiming_normal_(conv.weight)
    model.eval()
    half = train.rounded(model)
    networks, host = train.arrays(half)
    card = {"name": "a", "task": "captioning"}
    card["encoder"] = {"strides": [stride for _, stride in train.CONVOLUTIONS]}
    write_folder(tmp_path, card, networks, host, {})
    words.save(tmp_path)
    task = captioner(read_folder(tmp_path))
    items = [heart(), *pictures(2)]
    images = train.scaled(np.stack([item.pixels for item in items]))
    symbols = np.random.default_rng(1).integers(4, len(words), (3, 6))
    given = torch.tensor(np.concatenate((np.full((3, 1), BOS), symbols), 1))
    with torch.no_grad():
        feature, whole = half.encode(images), model.encode(images)
        logits, _ = half.decode(given, feature, half.start(feature))
    assert logits.std() > 0.3
    assert abs(feature - whole).max() < 0.05
    assert whole.std(0).max() > 0.1
    for n, item in enumerate(items):
        np.testing.assert_allclose(task.encode(item), feature[n], atol=1e-4, rtol=0)
        np.testing.assert_allclose(task.logits(item, symbols[n]), logits[n], atol=1e-4, rtol=0)
    greedy = [tuple(row) for row in half.greedy(images)]
    assert [answer.symbols for answer in task.answer(items)] == greedy


def test_the_example_is_named() -> None:
    folder = find("caption-emoji")
    if not (folder / WEIGHTS).exists():
        pytest.skip("not trained yet")
    task = captioner(read_folder(folder), "epur-fp16")
    (answer,) = task.answer([task.read(None)], Captioning.beam)
    assert answer.text == "red heart"


@pytest.mark.skipif("EPUR_DATA" not in os.environ, reason="EPUR_DATA is not set")
def test_pictures_seen_in_training() -> None:
    pytest.importorskip("PIL.Image")
    folder = find("caption-emoji")
    if not (folder / WEIGHTS).exists():
        pytest.skip("not trained yet")
    task = captioner(read_folder(folder))
    items, captions = zip(*itertools.islice(task.samples(), 0, None, 6), strict=True)
    score = task.score(task.answer(items), captions)
    assert score["exact match"] > 50
