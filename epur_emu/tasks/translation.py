"""Translation: embeddings, attention and output words around an LSTM encoder and decoder.

The decoder's first layer sees the words written so far; its output asks the attention for a
context, and the second layer sees both. All of it but the LSTM layers is computed here, in float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import schedule_decode, schedule_sequence
from epur_emu.emulator import trace_of
from epur_emu.errors import EpurError, ModelError
from epur_emu.probe import Decoded, Sequences
from epur_emu.tasks import data, metrics
from epur_emu.tasks.base import (
    Answer,
    Decoder,
    Steps,
    Task,
    check_found,
    evaluated,
    outputs_of_passes,
)
from epur_emu.tasks.beam import Beam, Followed, search, softmax
from epur_emu.tasks.bpe import BOS, Bpe
from epur_emu.tasks.dense import Dense
from epur_emu.trace import Trace

if TYPE_CHECKING:
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine

F32 = npt.NDArray[np.float32]

#: The data set's spelling of three characters; the ampersand is replaced first.
_ESCAPES = (("&", "&amp;"), ('"', "&quot;"), ("'", "&apos;"))
#: Symbols after which a translation is cut.
LONGEST = 60
_ABBREVIATIONS = ("dr", "mr", "mrs", "ms", "st")


@dataclass(frozen=True)
class Memory:
    """A sentence as the encoder leaves it.

    Parameters
    ----------
    values : float32 array of shape (T, 2 H)
        The encoder's outputs.
    keys : float32 array of shape (T, H)
        What the attention compares with the decoder's first layer.
    state : float32 array of shape (4, H)
        Initial h and c of the decoder's first layer, then of its second.
    """

    values: F32
    keys: F32
    state: F32


class Translation(Task):
    """A translator whose LSTM layers are evaluated by engines.

    Parameters
    ----------
    model : Model
        With networks ``encoder`` and ``decoder`` (two layers), and the vocabulary in its folder.
    engines : dict of str to Engine
        One for each network.

    Raises
    ------
    ModelError
        A network, an engine or a host array is missing, or its shape does not fit.
    EpurError
        The vocabulary can't be read.
    """

    #: A sentence to try a translator with.
    example: ClassVar[str] = "two dogs are playing in the snow ."
    metric: ClassVar[str] = "BLEU"
    beam: ClassVar[int] = 5

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        for name in ("encoder", "decoder"):
            for kind, there in (("network", model.networks), ("engine", engines)):
                if name not in there:
                    raise ModelError(
                        model.path, f"{kind} {name!r}", "is missing", "give encoder and decoder"
                    )
        self.bpe = Bpe.load(model.path)
        super().__init__(model, engines)
        self.encoder, self.decoder = engines["encoder"], engines["decoder"]
        self.length_penalty = float(model.card.get("decoding", {}).get("length_penalty", 1.0))
        self._pace = model.card.get("real_time", {}).get("words_per_second")
        self.cells = _check_shapes(model, len(self.bpe))
        host = model.host
        self._source, self._target = host["source"], host["target"]
        # Products with the transposed weights read them in the order in which they lie.
        self._bridge = np.ascontiguousarray(host["bridge.weight"].T)
        self._key = np.ascontiguousarray(host["key.weight"].T)
        self._readout = Dense(host["readout.weight"], host["readout.bias"])
        self._output = Dense(host["target"], host["bias"])
        self._bridge_bias = host["bridge.bias"]
        self._scale = np.float32(self.cells**-0.5)

    def read(self, given: str | None) -> str:
        """A sentence; by default `example`."""
        text = self.example if given is None else given
        self.prepare(text)
        return text

    def describe(self, item: str) -> str:
        """The sentence itself, in one line."""
        return " ".join(item.split())

    def size(self, item: str) -> int:
        """Symbols of the sentence."""
        return len(self.source(item))

    def answer(self, items: Sequence[str], beam: int = 1) -> list[Answer]:
        """Translate sentences; a beam of 1 takes the likeliest symbol at each step."""
        return self.search([self.source(text) for text in items], beam)

    def duration(self, item: str) -> float | None:
        """Seconds that a speaker takes, at the pace that the card gives."""
        return len(self.prepare(item)) / float(self._pace) if self._pace else None

    def test_set(self, limit: int | None = None) -> tuple[list[str], list[str]]:
        """Sentences of ``test_2016_flickr`` and their translations."""
        sources, references = read_pairs("test_2016_flickr")
        return sources[:limit], references[:limit]

    def samples(self) -> list[tuple[str, str]]:
        """Sentence pairs of the training data, in their order."""
        return list(zip(*read_pairs("train"), strict=True))

    def score(self, answers: Sequence[Answer], references: Sequence[str]) -> dict[str, float]:
        """BLEU and chrF over words as the data set writes them."""
        return metrics.bleu([answer.text for answer in answers], references)

    @staticmethod
    def prepare(text: str) -> list[str]:
        """Words of a sentence as the data set writes them.

        Lower-cases, takes punctuation off the words and escapes quotes and ampersands; a sentence
        that already has this form stays as it is.

        Raises
        ------
        EpurError
            There is no word.
        """
        chunks = text.translate(_QUOTES).split()
        if not chunks:
            raise EpurError("input", "sentence", "is empty", "give at least one word")
        words: list[str] = []
        for chunk, following in zip(chunks, [*chunks[1:], ""], strict=True):
            if any(escape in chunk for _, escape in _ESCAPES):
                words.append(chunk.lower())
            else:
                parts = _split(chunk.lower(), full_stop=not following[:1].islower())
                words += map(_escape, parts)
        return words

    def source(self, text: str) -> list[int]:
        """Indices of a sentence's symbols, as the encoder reads them."""
        return self.bpe.encode(self.prepare(text))

    def embed(self, source: Sequence[int]) -> F32:
        """The encoder's input of a sentence, shape (T, E)."""
        rows: F32 = self._source[np.asarray(source)]
        return rows

    def encode(self, source: Sequence[int]) -> Memory:
        """Read a sentence of symbols."""
        values = np.asarray(self.encoder.sequence(self.embed(source))[-1], np.float32)
        state = np.tanh(values.mean(0) @ self._bridge + self._bridge_bias)
        return Memory(values, values @ self._key, state.reshape(4, self.cells))

    def logits(self, source: Sequence[int], target: Sequence[int]) -> F32:
        """Scores of each next symbol while the decoder is given the words of `target`.

        Returns
        -------
        float32 array of shape (len(target) + 1, symbols)
            Row t follows the first t symbols.
        """
        memory = self.encode(source)
        state = memory.state[:, None, None]
        rows = []
        for word in (BOS, *target):
            scores, state = self._step(self.decoder, np.array([[word]]), [memory], state)
            rows.append(scores[0, 0])
        return np.stack(rows)

    def outputs(self, item: str, answer: Answer) -> dict[str, F32]:
        """Outputs of each pass, shape (T, H), while the decoder is given the answer's symbols."""
        source = self.source(item)
        out = outputs_of_passes(self.encoder, self.embed(source))
        memory = self.encode(source)
        state = memory.state[:, None, None]
        states = []
        for word in (BOS, *answer.symbols):
            _, state = self._step(self.decoder, np.array([[word]]), [memory], state)
            states.append(state[:, 0, 0])
        for n, (p,) in enumerate(self.decoder.network.layers):
            out[p.name] = np.stack([state[2 * n] for state in states])
        return out

    def trace(
        self, item: str, answer: Answer, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access of one translation: the encoder's sequence, then the decoder step by step.

        The hypotheses of a beam are logged one behind another, at one state's addresses.

        Raises
        ------
        AcceleratorError
            Something does not fit.
        """
        symbols, passes = len(self.source(item)), answer.passes
        encoder, decoder = self.encoder.network, self.decoder.network
        first = schedule_sequence(encoder.shape, symbols, arithmetic, accelerator)
        then = schedule_decode(
            decoder.shape, passes, arithmetic, accelerator, decoder.host_between,
            given_state=True, cycle=first.cycles, dram=first.dram_end,
        )  # fmt: skip
        return trace_of(
            [first, then], [encoder, decoder], [symbols, passes], arithmetic, accelerator
        )

    def runs(self, item: str, answer: Answer, beam: int) -> list[Sequences | Decoded]:
        """The encoder's sequence, then the search's evaluations of the decoder."""
        source = self.source(item)
        followed, steps = Followed(beam, LONGEST), Steps(self.decoder, 2)
        memory = self.encode(source)
        search([followed], [memory], memory.state[:, None], partial(self._step, steps))
        check_found(answer, followed.best(self.length_penalty)[0], followed.passes)
        decoded = steps.decoded(self.decoder.network, followed, memory.state)
        return [evaluated(self.encoder, self.embed(source)), decoded]

    def search(
        self,
        sources: Sequence[Sequence[int]],
        beam: int,
        *,
        length_penalty: float | None = None,
        longest: int = LONGEST,
        batch: int = 16,
    ) -> list[Answer]:
        """Beam search over sentences of symbols.

        Parameters
        ----------
        sources : list of list of int
        beam : int
            Hypotheses kept of each sentence.
        length_penalty : float, optional
            Power of the number of symbols by which a sum of log probabilities is divided before
            translations are compared; by default the card's, or 1.
        longest : int
            Symbols after which a translation is cut.
        batch : int
            Sentences in one call of the engine; the host's arithmetic does not depend on it.

        Returns
        -------
        list of Answer
            Their scores are those of `Beam.best`.

        Raises
        ------
        EpurError
            A number is out of range, or a sentence has no symbol.
        """
        for name, number in (("beam", beam), ("longest", longest), ("batch", batch)):
            if number < 1:
                raise EpurError("search", name, f"is {number}", "give 1 or more")
        if not all(sources):
            raise EpurError("search", "sources", "hold an empty sentence", "leave it out")
        power = self.length_penalty if length_penalty is None else length_penalty
        out: dict[int, Answer] = {}
        # Sentences of one length end at about the same step.
        order = sorted(range(len(sources)), key=lambda n: len(sources[n]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            beams = [Beam(beam, longest) for _ in chosen]
            memories = [self.encode(sources[n]) for n in chosen]
            step = partial(self._step, self.decoder)
            search(beams, memories, np.stack([m.state for m in memories], 1), step)
            out |= {n: self._result(b, power) for n, b in zip(chosen, beams, strict=True)}
        return [out[n] for n in range(len(sources))]

    def _step(
        self, decoder: Decoder, words: npt.NDArray[np.intp], memories: list[Memory], state: F32
    ) -> tuple[F32, F32]:
        """One decoder step of k hypotheses of each of S sentences.

        As in `Dense`, no sum on the host depends on which other sentences are there.

        Parameters
        ----------
        decoder : Decoder
        words : int array of shape (S, k)
        memories : list of S
        state : float32 array of shape (4, S, k, H)

        Returns
        -------
        scores : float32 array of shape (S, k, symbols)
        state : float32 array of shape (4, S, k, H)
        """
        shape = state.shape[1:]
        flat = state.reshape(4, -1, self.cells)
        x = self._target[words]
        h1, c1 = decoder.step(0, x.reshape(len(flat[0]), -1), flat[0], flat[1])
        context = np.stack(
            [
                softmax(asks @ memory.keys.T * self._scale) @ memory.values
                for asks, memory in zip(h1.reshape(shape), memories, strict=True)
            ]
        )
        both = np.concatenate((h1, context.reshape(len(h1), -1)), 1)
        h2, c2 = decoder.step(1, both, flat[2], flat[3])
        seen = np.concatenate((h2.reshape(shape), context, x), 2)
        scores = self._output(np.tanh(self._readout(seen)))
        return scores, np.stack((h1, c1, h2, c2)).reshape(4, *shape)

    def _result(self, beam: Beam, power: float) -> Answer:
        symbols, score = beam.best(power)
        text = self.bpe.decode(symbols)
        return Answer(symbols, text, _unescape(text), score, beam.passes)


def read_pairs(split: str) -> tuple[list[str], list[str]]:
    """English and German sentences of the data set Multi30k, which `data.folder` finds.

    Parameters
    ----------
    split : {"train", "val", "test_2016_flickr"}

    Raises
    ------
    EpurError
        The data are not there, or the two files are not of one length.
    """
    folder = data.folder("multi30k")
    texts = []
    for language in ("en", "de"):
        path = folder / f"{split}.lc.norm.tok.{language}"
        try:
            texts.append(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise EpurError(
                path,
                "text",
                f"can't be read ({error})",
                "restore the file as its project publishes it",
            ) from error
    if len(texts[0]) != len(texts[1]):
        raise EpurError(
            folder, split, f"has {len(texts[0])} and {len(texts[1])} lines", "restore the files"
        )
    return texts[0], texts[1]


_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u201e", "''" + '"""')
_WORD = re.compile(
    r"""
    (?P<front> (?: ["(\[{] | '(?=\w{3}) )* )
    (?P<core> .*? )
    (?P<clitic> (?: (?<=\w) '\w{1,2} )? )
    (?P<back> ["')\]},;:!?.]* )
    """,
    re.VERBOSE,
)


def _split(chunk: str, *, full_stop: bool) -> list[str]:
    """Take the punctuation off a chunk without spaces; `full_stop`: a sentence may end here."""
    match = _WORD.fullmatch(chunk)
    if match is None:
        return [chunk]
    front, core, clitic, back = match.groups()
    if back.startswith(".") and not back.startswith(".."):
        initials = re.fullmatch(r"\w(\.\w)*", core)
        if initials or core in _ABBREVIATIONS or not full_stop:
            core, back = core + ".", back[1:]
    return [part for part in (*front, core, clitic, *re.findall(r"\.{2,}|.", back)) if part]


def _escape(word: str) -> str:
    for plain, escape in _ESCAPES:
        word = word.replace(plain, escape)
    return word


def _unescape(text: str) -> str:
    for plain, escape in reversed(_ESCAPES):
        text = text.replace(escape, plain)
    return text


def _check_shapes(model: Model, symbols: int) -> int:
    """Cells of the decoder, once all arrays are known to fit each other."""
    layers = model.networks["decoder"].layers
    if len(layers) != 2 or any(len(passes) != 1 or passes[0].reverse for passes in layers):
        raise ModelError(
            model.path,
            "networks.decoder",
            "is not of two forward layers",
            "give two of one pass each",
        )
    (first,), (second,) = layers
    cells, width = first.cells, sum(p.cells for p in model.networks["encoder"].layers[-1])
    embedding = first.inputs
    wanted = {
        "source": (symbols, model.networks["encoder"].layers[0][0].inputs),
        "target": (symbols, embedding),
        "bias": (symbols,),
        "bridge.weight": (4 * cells, width),
        "bridge.bias": (4 * cells,),
        "key.weight": (cells, width),
        "readout.weight": (embedding, cells + width + embedding),
        "readout.bias": (embedding,),
    }
    for name, shape in wanted.items():
        found = model.host[name].shape if name in model.host else "no shape, as it is missing"
        if found != shape:
            raise ModelError(model.path, f"host.{name}", f"has {found}", f"give {shape}")
    if (second.inputs, second.cells) != (cells + width, cells):
        raise ModelError(
            model.path, second.name, f"has {second.inputs} inputs and {second.cells} cells",
            f"give {cells + width} and {cells}",
        )  # fmt: skip
    return cells
