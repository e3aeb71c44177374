"""Captioning: a convolutional encoder of images, and words around an LSTM decoder.

The image's feature sets the decoder's initial state, and stands beside the last word in each of its
inputs. All of it but the LSTM layer is computed here, in float32.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import schedule_decode
from epur_emu.emulator import trace_of
from epur_emu.errors import EpurError, ModelError
from epur_emu.probe import Decoded, Sequences
from epur_emu.tasks import data
from epur_emu.tasks.base import Answer, Decoder, Steps, Task, check_found
from epur_emu.tasks.beam import Beam, Followed, search
from epur_emu.tasks.bpe import BOS, EOS, SPECIALS, UNK, read_symbols
from epur_emu.tasks.dense import Dense
from epur_emu.tasks.metrics import bleu
from epur_emu.trace import Trace

if TYPE_CHECKING:
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine

F32 = npt.NDArray[np.float32]
#: Width and height in pixels.
SIZE = 72
#: Words after which a caption is cut.
LONGEST = 24

_COLOURS = 3
# A word keeps the space before it, so that joining words restores the text.
_WORD = re.compile(r" ?\w[\w'’.-]*| ?[^\w\s]")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture on a white square.

    Parameters
    ----------
    pixels : uint8 array of shape (72, 72, 3)
        Red, green and blue.
    source : str
        Where it comes from, for a person to read.
    """

    pixels: npt.NDArray[np.uint8]
    source: str


class Words:
    """The words that a network knows.

    Parameters
    ----------
    symbols : sequence of str
        In order of index, each with the space before it; the first four are `SPECIALS`.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._index = {symbol: index for index, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    @staticmethod
    def split(text: str) -> list[str]:
        """Words and punctuation marks of a text."""
        return _WORD.findall(" " + " ".join(text.split()))

    def encode(self, text: str) -> list[int]:
        """Indices of a text's words, closed by ``</s>``."""
        return [self._index.get(word, UNK) for word in self.split(text)] + [EOS]

    def decode(self, indices: Iterable[int]) -> str:
        """The text of words that `encode` gave."""
        return "".join(
            self.symbols[n] if n >= len(SPECIALS) else f" {SPECIALS[n]}"
            for n in indices
            if n not in (BOS, EOS)
        ).strip()

    def save(self, folder: Path) -> None:
        """Write ``symbols.txt``, one word a line."""
        text = "".join(f"{symbol}\n" for symbol in self.symbols)
        (folder / "symbols.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Words:
        """Read what `save` wrote.

        Raises
        ------
        EpurError
            The file is missing or not of this form.
        """
        return cls(read_symbols(folder))


class Captioning(Task):
    """A captioner whose LSTM layer is evaluated by an engine.

    Parameters
    ----------
    model : Model
        With the network ``decoder`` (one forward layer), and the vocabulary in its folder; its card
        gives the convolutions' strides, ``encoder.strides``.
    engines : dict of str to Engine

    Raises
    ------
    ModelError
        The network, the engine, a field of the card or a host array is missing, or does not fit.
    EpurError
        The vocabulary can't be read.
    """

    metric: ClassVar[str] = "exact match"
    beam: ClassVar[int] = 3

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        if "decoder" not in model.networks or "decoder" not in engines:
            raise ModelError(model.path, "network 'decoder'", "is missing", "give it")
        super().__init__(model, engines)
        self.words = Words.load(model.path)
        self.decoder = engines["decoder"]
        self.length_penalty = float(model.card.get("decoding", {}).get("length_penalty", 1.0))
        self.strides, self.cells = _check_shapes(model, len(self.words))
        host = model.host
        # Products with the transposed weights read them in the order in which they lie.
        self._convolutions = [
            (
                np.ascontiguousarray(host[f"conv.{n}.weight"].reshape(len(bias), -1).T),
                bias,
                stride,
            )
            for n, stride in enumerate(self.strides)
            for bias in [host[f"conv.{n}.bias"]]
        ]
        self._feature = np.ascontiguousarray(host["feature.weight"].T)
        self._state = np.ascontiguousarray(host["state.weight"].T)
        self._readout = Dense(host["readout.weight"], host["readout.bias"])
        self._output = Dense(host["words"], host["bias"])
        self._words = host["words"]
        self._biases = {name: host[f"{name}.bias"] for name in ("feature", "state")}

    def read(self, given: str | None) -> Picture:
        """The picture in a PNG file; by default a red heart, drawn here."""
        return heart() if given is None else read_picture(given)

    def describe(self, item: Picture) -> str:
        """Where the picture comes from."""
        return item.source

    def encode(self, item: Picture) -> F32:
        """The feature of a picture, shape (F,)."""
        x = item.pixels.astype(np.float32) / np.float32(127.5) - 1
        for weight, bias, stride in self._convolutions:
            around = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (0, 1))
            windows = windows[::stride, ::stride]
            x = np.maximum(windows.reshape(*windows.shape[:2], -1) @ weight + bias, 0)
        # Channel by channel, as the weights lie.
        values = np.moveaxis(x, -1, 0).ravel()
        out: F32 = np.tanh(values @ self._feature + self._biases["feature"])
        return out

    def start(self, feature: F32) -> F32:
        """Initial h and c of the decoder, shape (2, H)."""
        state: F32 = np.tanh(feature @ self._state + self._biases["state"])
        return state.reshape(2, self.cells)

    def answer(self, items: Sequence[Picture], beam: int = 1) -> list[Answer]:
        """Describe pictures; a beam of 1 takes the likeliest word at each step.

        Raises
        ------
        EpurError
            The beam is less than 1.
        """
        if beam < 1:
            raise EpurError("search", "beam", f"is {beam}", "give 1 or more")
        if not items:
            return []
        features = [self.encode(item) for item in items]
        beams = [Beam(beam, LONGEST) for _ in items]
        starts = np.stack([self.start(feature) for feature in features], 1)
        search(beams, features, starts, partial(self._step, self.decoder))
        return [self._result(each) for each in beams]

    def outputs(self, item: Picture, answer: Answer) -> dict[str, F32]:
        """Outputs (T, H) of the layer while it is given the answer's words."""
        return {self.decoder.network.passes[0].name: self._forced(item, answer.symbols)[1]}

    def logits(self, item: Picture, symbols: Sequence[int]) -> F32:
        """Scores of each next word while the decoder is given the words `symbols`.

        Returns
        -------
        float32 array of shape (len(symbols) + 1, words)
            Row t follows the first t words.
        """
        return self._forced(item, symbols)[0]

    def trace(
        self, item: Picture, answer: Answer, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access of the decoder, hypothesis behind hypothesis at one state's addresses."""
        network = self.decoder.network
        schedule = schedule_decode(
            network.shape, answer.passes, arithmetic, accelerator, network.host_between,
            given_state=True,
        )  # fmt: skip
        return trace_of([schedule], [network], [answer.passes], arithmetic, accelerator)

    def runs(self, item: Picture, answer: Answer, beam: int) -> list[Sequences | Decoded]:
        """The search's evaluations of the decoder."""
        followed, steps = Followed(beam, LONGEST), Steps(self.decoder, 1)
        feature = self.encode(item)
        start = self.start(feature)
        search([followed], [feature], start[:, None], partial(self._step, steps))
        check_found(answer, followed.best(self.length_penalty)[0], followed.passes)
        return [steps.decoded(self.decoder.network, followed, start)]

    def test_set(self, limit: int | None = None) -> tuple[list[Picture], list[str]]:
        """Pictures of the test split and their captions."""
        pairs = read_captions("test")[:limit]
        return [read_picture(path) for path, _ in pairs], [caption for _, caption in pairs]

    def samples(self) -> Iterator[tuple[Picture, str]]:
        """Every twentieth picture of the training split."""
        for path, caption in read_captions("train")[::20]:
            yield read_picture(path), caption

    def score(self, answers: Sequence[Answer], references: Sequence[str]) -> dict[str, float]:
        """Captions equal to the references, in %; then chrF and BLEU."""
        return caption_scores([answer.text for answer in answers], references)

    def _forced(self, item: Picture, symbols: Sequence[int]) -> tuple[F32, F32]:
        """Scores (T, words) and outputs (T, H) while the decoder is given words."""
        feature = self.encode(item)
        state = self.start(feature)[:, None, None]
        scores, outputs = [], []
        for word in (BOS, *symbols):
            row, state = self._step(self.decoder, np.array([[word]]), [feature], state)
            scores.append(row[0, 0])
            outputs.append(state[0, 0, 0])
        return np.stack(scores), np.stack(outputs)

    def _step(
        self, decoder: Decoder, words: npt.NDArray[np.intp], features: list[F32], state: F32
    ) -> tuple[F32, F32]:
        """One step of k hypotheses of each of S pictures.

        Parameters
        ----------
        decoder : Decoder
        words : int array of shape (S, k)
        features : list of S
        state : float32 array of shape (2, S, k, H)

        Returns
        -------
        scores : float32 array of shape (S, k, words)
        state : float32 array of shape (2, S, k, H)
        """
        pictures, rows = words.shape
        beside = np.repeat(np.stack(features)[:, None], rows, 1)
        x = np.concatenate((self._words[words], beside), -1)
        h, c = decoder.step(0, x.reshape(pictures * rows, -1), *state.reshape(2, -1, self.cells))
        seen = np.concatenate((h.reshape(pictures, rows, -1), beside), -1)
        scores = self._output(np.tanh(self._readout(seen)))
        return scores, np.stack((h, c)).reshape(state.shape)

    def _result(self, beam: Beam) -> Answer:
        symbols, score = beam.best(self.length_penalty)
        text = self.words.decode(symbols)
        return Answer(symbols, text, text, score, beam.passes)


def heart() -> Picture:
    """A red heart on white, by the curve (x^2 + y^2 - 1)^3 = x^2 y^3."""
    at = (np.arange(4 * SIZE) + 0.5) / (2 * SIZE) - 1  # four points along a pixel's side
    x, y = 1.3 * at[None, :], -1.3 * at[:, None] + 0.1
    inside = (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
    cover = inside.reshape(SIZE, 4, SIZE, 4).mean((1, 3))[..., None]
    pixels = np.rint(255 - cover * (255 - np.array([244, 67, 54]))).astype(np.uint8)
    return Picture(pixels, "a heart, drawn by the program")


def read_captions(split: str) -> list[tuple[Path, str]]:
    """Image files and captions of the emoji data set.

    Below `EPUR_DATA` it is the folder ``emoji`` with ``captions.tsv`` (file, caption, split) and
    ``png72/``; where the variable is not set, pictures and names are downloaded from their projects.

    Parameters
    ----------
    split : {"train", "val", "test"}

    Raises
    ------
    EpurError
        The data are not there.
    """
    root = data.own("emoji")
    if root:
        path, read = root / "captions.tsv", _read_table
    else:
        path, read = data.downloaded("emojibase-data", "emoji") / "data.json", _read_emojibase
    try:
        with path.open(encoding="utf-8", newline="") as file:
            captions = read(file, split)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EpurError(
            path, "captions", f"can't be read ({error})", "restore the data set",
        ) from error  # fmt: skip
    if root:
        return [(root / "png72" / name, text) for name, text in captions]
    pictures = data.downloaded("noto-emoji", "emoji", split)
    return [(pictures / name, text) for name, text in captions if (pictures / name).is_file()]


def _read_table(file: TextIO, split: str) -> list[tuple[str, str]]:
    """File names and captions of a split, from a table of all."""
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(row["file"], row["caption"]) for row in rows if row["split"] == split]


def _read_emojibase(file: TextIO, split: str) -> list[tuple[str, str]]:
    """File names and captions of all emoji, in Emojibase's order."""
    rows = [each for emoji in json.load(file) for each in (emoji, *emoji.get("skins", ()))]
    codes = [row["hexcode"].lower().split("-") for row in rows]
    names = ["_".join(code for code in parts if code != "fe0f") for parts in codes]
    return [(f"emoji_u{n}.png", row["label"]) for n, row in zip(names, rows, strict=True)]


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """An image file on a white square of `SIZE` pixels.

    Raises
    ------
    EpurError
        Pillow is not installed, or the file can't be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise EpurError(
            "image", "Pillow", "is not installed", "pip install 'epur_emu[image]'"
        ) from error
    try:
        with Image.open(os.fspath(path)) as file:
            picture = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EpurError(
            Path(path), "image", f"can't be read ({error})", "give a PNG file"
        ) from error
    side, (width, height) = max(picture.size), picture.size
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - width) // 2, (side - height) // 2))
    if side != SIZE:
        square = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return Picture(np.array(square.convert("RGB")), os.fspath(path))


def caption_scores(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Exact matches, chrF, and BLEU of words between spaces, all in %.

    Raises
    ------
    EpurError
        sacrebleu is not installed.
    """
    exact = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
    text = bleu(found, wanted)
    return {"exact match": 100 * exact, "chrF": text["chrF"], "BLEU": text["BLEU"]}


def _check_shapes(model: Model, words: int) -> tuple[tuple[int, ...], int]:
    """Strides of the convolutions and cells, once all arrays are known to fit each other."""
    passes = model.networks["decoder"].passes
    if len(passes) != 1 or passes[0].reverse:
        raise ModelError(
            model.path, "networks.decoder", "is not one forward layer", "give one of one pass"
        )
    strides = model.card.get("encoder", {}).get("strides")
    valid = isinstance(strides, list) and all(n in (1, 2, 3) for n in strides)
    if not strides or not valid:
        raise ModelError(
            model.path, "encoder.strides", f"is {strides!r}", "give 1, 2 or 3 for each convolution"
        )
    host, cells = model.host, passes[0].cells
    embedding = host["words"].shape[-1] if "words" in host else 0
    feature = passes[0].inputs - embedding
    widths, side = [_COLOURS], SIZE
    wanted: dict[str, tuple[int, ...]] = {"words": (words, embedding), "bias": (words,)}
    for n in range(len(strides)):
        bias = host.get(f"conv.{n}.bias", np.empty(0))
        wanted[f"conv.{n}.weight"] = (bias.size, widths[-1], 3, 3)
        wanted[f"conv.{n}.bias"] = (bias.size,)
        widths.append(bias.size)
        side = -(-side // strides[n])
    wanted |= {
        "feature.weight": (feature, side**2 * widths[-1]),
        "feature.bias": (feature,),
        "state.weight": (2 * cells, feature),
        "state.bias": (2 * cells,),
        "readout.weight": (embedding, cells + feature),
        "readout.bias": (embedding,),
    }
    for name, shape in wanted.items():
        found = host[name].shape if name in host else "no shape, as it is missing"
        if found != shape:
            raise ModelError(model.path, f"host.{name}", f"has {found}", f"give {shape}")
    return tuple(strides), cells
