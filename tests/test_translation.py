"""The translator: the numbers of the network that was trained, and a search that finds the best."""

from __future__ import annotations

import importlib.util
import itertools
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epur_emu.arithmetic import ARITHMETICS
from epur_emu.checkpoints.folder import WEIGHTS, Model, read_folder, write_folder
from epur_emu.emulator import Engine, calibrate
from epur_emu.errors import EpurError, ModelError
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks import TASKS
from epur_emu.tasks.bpe import BOS, END_OF_WORD, EOS, SPECIALS, UNK, Bpe
from epur_emu.tasks.translation import Translation, read_pairs
from epur_emu.zoo import find

ROOT = Path(__file__).resolve().parents[1]


class RowByRow(Engine):
    """The LSTM's definition in float32, each row for itself: no sum depends on the batch."""

    @staticmethod
    def cell(layer: LstmLayer, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple:
        w_x, w_h, bias = (w.astype(np.float32) for w in (layer.w_x, layer.w_h, layer.bias))
        i, f, g, o = (w_x[q] @ x + w_h[q] @ h + bias[q] for q in range(4))
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        return o * np.tanh(c), c

    def sequence(self, inputs, initial=None):
        outputs = []
        for passes in self.network.layers:
            rows = []
            for layer in passes:
                h = c = np.zeros(layer.cells, np.float32)
                out = np.empty((len(inputs), layer.cells), np.float32)
                steps = range(len(inputs))
                for t in reversed(steps) if layer.reverse else steps:
                    h, c = self.cell(layer, inputs[t], h, c)
                    out[t] = h
                rows.append(out)
            inputs = np.concatenate(rows, 1)
            outputs.append(inputs)
        return outputs

    def step(self, layer, x, h, c):
        (only,) = self.network.layers[layer]
        new = [self.cell(only, *row) for row in zip(x, h, c, strict=True)]
        return tuple(np.stack(part) for part in zip(*new, strict=True))


def translation(model: Model, engine: type[Engine] = RowByRow) -> Translation:
    engines = {k: engine(network, ARITHMETICS["float32"]) for k, network in model.networks.items()}
    return Translation(model, engines)


# --- a small model of random weights


def toy_folder(path: Path, seed: int = 0, cells: int = 4, extra: str = "ab", **changes) -> Path:
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def layer(name: str, inputs: int) -> LstmLayer:
        weights = draw(4, cells, inputs), draw(4, cells, cells), draw(4, cells)
        return LstmLayer(name, *weights, reverse=name.endswith("backward"))

    embedding, symbols = 3, [*SPECIALS, *(letter + END_OF_WORD for letter in extra)]
    both = (layer("encoder.0.forward", embedding), layer("encoder.0.backward", embedding))
    decoder = (layer("decoder.0.forward", embedding),), (layer("decoder.1.forward", 3 * cells),)
    host = {
        "source": draw(len(symbols), embedding),
        "target": draw(len(symbols), embedding, scale=2),
        "bias": draw(len(symbols)),
        "bridge.weight": draw(4 * cells, 2 * cells),
        "bridge.bias": draw(4 * cells),
        "key.weight": draw(cells, 2 * cells),
        "readout.weight": draw(embedding, 3 * cells + embedding),
        "readout.bias": draw(embedding),
    }
    networks = {
        "encoder": Network("encoder", (both,)),
        "decoder": Network("decoder", decoder, host_between=True),
    }
    card = {"name": "toy", "task": "translation"}
    host = {name: array for name, array in {**host, **changes}.items() if array is not None}
    write_folder(path, card, networks, host, {})
    Bpe([("x", "y")], symbols).save(path)
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Translation:
    return translation(read_folder(toy_folder(tmp_path)))


def log_probabilities(task: Translation, source: list[int], target: tuple[int, ...]) -> np.ndarray:
    scores = task.logits(source, target).astype(np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_the_best_of_all(tmp_path: Path, seed: int, penalty: float) -> None:
    task = translation(read_folder(toy_folder(tmp_path, seed)))
    longest, symbols = 3, len(task.bpe)
    for source in ([4, EOS], [5, 4, 4, EOS]):
        found = {}
        others = [s for s in range(symbols) if s != EOS]
        for length in range(longest):
            for text in itertools.product(others, repeat=length):
                logp = log_probabilities(task, source, text)
                total = sum(logp[t, s] for t, s in enumerate((*text, EOS)))
                found[text] = total / (length + 1) ** penalty
        best = max(found, key=found.__getitem__)
        out = task.search([source], symbols**longest, longest=longest, length_penalty=penalty)[0]
        assert out.symbols == best
        assert out.score == pytest.approx(found[best], abs=1e-5)
        assert out.passes == sum(len(others) ** n for n in range(longest))


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(tmp_path: Path, seed: int) -> None:
    task = translation(read_folder(toy_folder(tmp_path, seed, extra="abcdefgh")))
    rng = np.random.default_rng(seed)
    for length in range(1, 9):
        source = [*rng.integers(4, 12, length).tolist(), EOS]
        text: list[int] = []
        while len(text) < 20:
            word = int(task.logits(source, text)[-1].argmax())
            if word == EOS:
                break
            text.append(word)
        out = task.search([source], 1, longest=20)[0]
        assert list(out.symbols) == text
        assert out.passes == min(20, len(text) + 1)


def test_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    task = translation(read_folder(toy_folder(tmp_path, 3, cells=16, extra="abcdefgh")))
    rng = np.random.default_rng(0)
    sources = [[*rng.integers(4, 12, n).tolist(), EOS] for n in rng.integers(1, 12, 23)]
    alone = [task.search([source], 4, longest=15)[0] for source in sources]
    assert len({out.symbols for out in alone}) > 5
    for batch in (2, 16, 23):
        assert task.search(sources, 4, longest=15, batch=batch) == alone


def test_lost_probabilities_end_the_search(tmp_path: Path) -> None:
    model = read_folder(toy_folder(tmp_path))

    class Nan(RowByRow):
        def step(self, layer, x, h, c):
            return np.full_like(h, np.nan), np.full_like(c, np.nan)

    (out,) = translation(model, Nan).answer(["a b"], beam=3)
    assert (out.text, out.symbols, out.score, out.passes) == ("", (), -np.inf, 1)


@pytest.mark.parametrize("field", ["beam", "longest", "batch"])
def test_numbers_of_the_search_are_checked(toy: Translation, field: str) -> None:
    with pytest.raises(EpurError, match=field):
        toy.search([[4, EOS]], **{"beam": 1, field: 0})
    with pytest.raises(EpurError, match="empty"):
        toy.search([[4, EOS], []], 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"key.weight": None}, "host.key.weight"),
        ({"target": np.zeros((7, 3), np.float32)}, "host.target"),
        ({"readout.weight": np.zeros((3, 14), np.float32)}, "host.readout.weight"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, change: dict, name: str) -> None:
    model = read_folder(toy_folder(tmp_path, **change))
    with pytest.raises(ModelError, match=name):
        translation(model)


def test_a_missing_engine_is_named(toy: Translation, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="decoder"):
        Translation(read_folder(tmp_path), {"encoder": toy.encoder})


def test_the_task_is_registered() -> None:
    assert TASKS["translation"] is Translation


# --- text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two dogs are playing in the snow.", "two dogs are playing in the snow ."),
        ("A woman's dog doesn\u2019t bark!", "a woman &apos;s dog doesn &apos;t bark !"),
        ("\u201cStop\u201d, she said (loudly).", "&quot; stop &quot; , she said ( loudly ) ."),
        ("A man runs. A dog barks.", "a man runs . a dog barks ."),
        ("at St. Mary's, at 3.5 or 2,000 m", "at st. mary &apos;s , at 3.5 or 2,000 m"),
        ("R&B ...", "r&amp;b ..."),
        ("a woman &apos;s shoulders .", "a woman &apos;s shoulders ."),
        ("the u.s. army , mr. smith &amp; a t-shirt", "the u.s. army , mr. smith &amp; a t-shirt"),
    ],
)
def test_ordinary_english_becomes_the_data_sets(toy: Translation, text: str, words: str) -> None:
    assert " ".join(toy.prepare(text)) == words
    assert " ".join(toy.prepare(words)) == words


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
def test_no_word_is_an_error(toy: Translation, text: str) -> None:
    with pytest.raises(EpurError, match="sentence is empty"):
        toy.read(text)


@given(st.text())
def test_any_text_gives_words(text: str) -> None:
    words = Translation.prepare(text) if text.split() else []
    assert all(word.split() == [word] for word in words)
    assert bool(words) == bool(text.split())


def test_data_set_passes_unchanged(toy: Translation) -> None:
    if "EPUR_DATA" not in os.environ:
        pytest.skip("no EPUR_DATA")
    sources, references = toy.test_set()
    assert len(sources) == len(references) == 1000
    assert [" ".join(toy.prepare(line)) for line in sources] == sources
    assert toy.test_set(7) == (sources[:7], references[:7])
    assert toy.samples()[0][0].startswith("two young , white males")


def test_missing_data_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPUR_DATA", str(tmp_path))
    with pytest.raises(EpurError, match="multi30k"):
        read_pairs("val")
    folder = tmp_path / "multi30k"
    folder.mkdir()
    with pytest.raises(EpurError, match=r"val\.lc\.norm\.tok\.en"):
        read_pairs("val")
    (folder / "val.lc.norm.tok.en").write_text("a\nb\n", encoding="utf-8")
    (folder / "val.lc.norm.tok.de").write_text("a\n", encoding="utf-8")
    with pytest.raises(EpurError, match="2 and 1 lines"):
        read_pairs("val")


def test_a_sentence_lasts_as_long_as_a_speaker_takes(tmp_path: Path) -> None:
    model = read_folder(toy_folder(tmp_path))
    assert translation(model).duration("a b a") is None
    model.card["real_time"] = {"words_per_second": 2.5}
    assert translation(model).duration("a b a") == pytest.approx(3 / 2.5)


# --- byte-pair encoding

LETTERS = "abcäß&;'"
MERGES = [("a", "b"), ("ab", "c</w>"), ("&", "a"), ("a", "a"), ("ä", "ß"), ("b", "a</w>")]
SYMBOLS = [
    *SPECIALS,
    *(letter + end for letter in LETTERS for end in ("", END_OF_WORD)),
    *("".join(pair) for pair in MERGES),
]
WORDS = st.lists(st.text(LETTERS, min_size=1), min_size=1)


@given(WORDS)
def test_bpe_decodes_what_it_encodes(words: list[str]) -> None:
    bpe = Bpe(MERGES, SYMBOLS)
    indices = bpe.encode(words)
    assert indices[-1] == EOS
    assert UNK not in indices
    assert bpe.decode(indices) == " ".join(words)
    assert bpe.decode([*indices, 7, 8]) == " ".join(words)


@given(st.text(LETTERS, min_size=1))
def test_bpe_applies_all_merges_in_rank(word: str) -> None:
    parts = Bpe(MERGES, SYMBOLS).split(word)
    assert "".join(parts) == word + END_OF_WORD
    wanted = [*word[:-1], word[-1] + END_OF_WORD]
    while pairs := set(itertools.pairwise(wanted)) & set(MERGES):
        first = min(pairs, key=MERGES.index)
        n = next(n for n, pair in enumerate(itertools.pairwise(wanted)) if pair == first)
        wanted[n : n + 2] = ["".join(first)]
    assert parts == wanted


def test_bpe_marks_unknown_symbols_and_reads_its_files(tmp_path: Path) -> None:
    bpe = Bpe(MERGES, SYMBOLS)
    assert bpe.encode(["axb"]) == [SYMBOLS.index("a"), UNK, SYMBOLS.index("b</w>"), EOS]
    bpe.save(tmp_path)
    again = Bpe.load(tmp_path)
    assert (again.merges, again.symbols) == (MERGES, SYMBOLS)


# --- the trained network


@pytest.fixture(scope="module")
def train() -> ModuleType:
    for name in ("torch", "sacrebleu"):
        pytest.importorskip(name)
    path = ROOT / "models" / "translate-en-de" / "train.py"
    spec = importlib.util.spec_from_file_location("train_en_de", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch.set_num_threads(1)
    return module


@pytest.fixture(scope="module")
def random_folder(train: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random")
    train.torch.manual_seed(5)
    bpe = Bpe([("x", "y")], [*SPECIALS, *(letter + END_OF_WORD for letter in "abcdefghijklmnop")])
    model = train.Translator(len(bpe))
    with train.torch.no_grad():
        for weight in model.parameters():  # the trained weights are larger than the first ones
            weight.mul_(2.5)
    networks, host = train.arrays(train.rounded(model))
    alpha = train.calibrate(train.rounded(model), [[4, 5, 6, EOS], [7, EOS]])
    write_folder(path, {"name": "random", "task": "translation"}, networks, host, alpha)
    bpe.save(path)
    return path


def torch_model(train: ModuleType, model: Model):
    """The training program's network with the weights of a folder."""
    translator = train.Translator(len(model.host["bias"])).eval()
    state = {name: train.torch.from_numpy(array.copy()) for name, array in model.host.items()}
    for name in ("source", "target"):
        state[f"{name}.weight"] = state.pop(name)
    for network in model.networks.values():
        for layer in network.passes:
            kind, number, direction = layer.name.split(".")
            suffix = "_reverse" if direction == "backward" else ""
            bias = layer.bias.reshape(-1)
            for part, array in (
                ("weight_ih", layer.w_x.reshape(len(bias), -1)),
                ("weight_hh", layer.w_h.reshape(len(bias), -1)),
                ("bias_ih", bias),
                ("bias_hh", np.zeros_like(bias)),
            ):
                state[f"{kind}.{number}.{part}_l0{suffix}"] = train.torch.tensor(
                    array.astype(np.float32)
                )
    translator.load_state_dict(state)
    return translator


@pytest.mark.parametrize("engine", [RowByRow, Engine])
@pytest.mark.parametrize("which", ["random", "translate-en-de"])
def test_same_numbers_as_torch(
    train: ModuleType, random_folder: Path, which: str, engine: type[Engine]
) -> None:
    folder = random_folder if which == "random" else find(which)
    if not (folder / WEIGHTS).exists():
        pytest.skip("not trained yet")
    model = read_folder(folder)
    task, translator = translation(model, engine), torch_model(train, model)
    rng = np.random.default_rng(1)
    for length in (1, 4, 11):
        source = [*rng.integers(4, len(task.bpe), length).tolist(), EOS]
        target = rng.integers(4, len(task.bpe), length + 1).tolist()
        memory, keys, state = translator.encode(train.torch.tensor([source]))
        read, _ = translator.decode(train.torch.tensor([[BOS, *target]]), memory, keys, state)
        ours = task.encode(source)
        theirs = translator.logits(read)[0].detach().numpy()
        assert theirs.std() > 0.3
        np.testing.assert_allclose(ours.values, memory[0].detach(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(ours.keys, keys[0].detach(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(task.logits(source, target), theirs, atol=1e-4, rtol=0)
        (greedy,) = translator.greedy(train.torch.tensor([source]))
        symbols = task.search([source], 1)[0].symbols
        assert symbols == tuple(itertools.takewhile(lambda s: s != EOS, greedy))


def test_calibration_is_the_largest_forward_partial_sum(
    random_folder: Path, train: ModuleType
) -> None:
    model = read_folder(random_folder)
    inputs = [model.host["source"][source] for source in ([4, 5, 6, EOS], [7, EOS])]
    found = calibrate(model.networks["encoder"], inputs)
    wanted = {p.name: found[p.name] for p in model.networks["encoder"].passes}
    assert min(wanted.values()) > 0
    assert model.alpha == pytest.approx(wanted, rel=1e-4)


def test_the_example_is_translated() -> None:
    folder = find("translate-en-de")
    if not (folder / WEIGHTS).exists():
        pytest.skip("not trained yet")
    (out,) = translation(read_folder(folder)).answer([Translation.example], beam=5)
    assert "hunde" in out.text.split()
    assert "schnee" in out.text.split()
