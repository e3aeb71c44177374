"""Translation: embeddings, attention and output words around an LSTM encoder and decoder.

The decoder's first layer sees the words written so far; its output asks the attention for a
context, and the second layer sees both. All of it but the LSTM layers is computed here, in float32.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import schedule_decode, schedule_sequence
from epur_emu.emulator import trace_of
from epur_emu.errors import EpurError, ModelError
from epur_emu.tasks.bpe import BOS, EOS, Bpe
from epur_emu.trace import Trace

if TYPE_CHECKING:
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine

F32 = npt.NDArray[np.float32]

#: Names the folder that holds ``multi30k/``.
VARIABLE = "EPUR_DATA"

#: The data set's spelling of three characters; the ampersand is replaced first.
_ESCAPES = (("&", "&amp;"), ('"', "&quot;"), ("'", "&apos;"))
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


@dataclass(frozen=True)
class Translated:
    """A translation and what it took.

    Parameters
    ----------
    symbols : tuple of int
        Indices of the vocabulary, without the closing ``</s>``.
    text : str
        Words as the data set writes them, separated by spaces.
    plain : str
        The same without escapes.
    score : float
        Sum of the symbols' log probabilities over their number to the power of the length penalty;
        -inf if every probability was lost, as a NaN in the network's outputs makes it.
    steps : int
        Decoder steps until the search ended.
    passes : int
        Evaluations of the decoder: one for each hypothesis alive at each step.
    """

    symbols: tuple[int, ...]
    text: str
    plain: str
    score: float
    steps: int
    passes: int


@dataclass(frozen=True)
class Evaluation:
    """A metric over a data set, and the translations it was computed from."""

    metric: str
    score: float
    outputs: tuple[Translated, ...]


class Translation:
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

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        for name in ("encoder", "decoder"):
            for kind, there in (("network", model.networks), ("engine", engines)):
                if name not in there:
                    raise ModelError(
                        model.path, f"{kind} {name!r}", "is missing", "give encoder and decoder"
                    )
        self.bpe = Bpe.load(model.path)
        self.encoder, self.decoder = engines["encoder"], engines["decoder"]
        self.length_penalty = float(model.card.get("decoding", {}).get("length_penalty", 1.0))
        self.cells = _check_shapes(model, len(self.bpe))
        host = model.host
        self._source, self._target = host["source"], host["target"]
        # Products with the transposed weights read them in the order in which they lie.
        self._bridge = np.ascontiguousarray(host["bridge.weight"].T)
        self._key = np.ascontiguousarray(host["key.weight"].T)
        self._readout = np.ascontiguousarray(host["readout.weight"].T)
        self._output = np.ascontiguousarray(host["target"].T)
        self._bridge_bias, self._readout_bias = host["bridge.bias"], host["readout.bias"]
        self._output_bias = host["bias"]
        self._scale = np.float32(self.cells**-0.5)

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
            scores, state = self._step(np.array([[word]]), [memory], state)
            rows.append(scores[0, 0])
        return np.stack(rows)

    def outputs(self, source: Sequence[int], target: Sequence[int]) -> dict[str, F32]:
        """Outputs of each pass, shape (T, H), while the decoder is given the words of `target`."""
        out: dict[str, F32] = {}
        layers = self.encoder.sequence(self.embed(source))
        for passes, values in zip(self.encoder.network.layers, layers, strict=True):
            ends = np.cumsum([p.cells for p in passes])[:-1]
            out |= {p.name: v for p, v in zip(passes, np.split(values, ends, -1), strict=True)}
        memory = self.encode(source)
        state = memory.state[:, None, None]
        states = []
        for word in (BOS, *target):
            _, state = self._step(np.array([[word]]), [memory], state)
            states.append(state[:, 0, 0])
        for n, (p,) in enumerate(self.decoder.network.layers):
            out[p.name] = np.stack([state[2 * n] for state in states])
        return out

    def trace(
        self, symbols: int, passes: int, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access of one translation: the encoder's sequence, then the decoder step by step.

        Parameters
        ----------
        symbols : int
            Source symbols.
        passes : int
            Evaluations of the decoder. The hypotheses of a beam are logged one behind another, at
            one state's addresses.

        Raises
        ------
        AcceleratorError
            Something does not fit.
        """
        encoder, decoder = self.encoder.network, self.decoder.network
        first = schedule_sequence(encoder.shape, symbols, arithmetic, accelerator)
        then = schedule_decode(
            decoder.shape, passes, arithmetic, accelerator, decoder.host_between,
            given_state=True, cycle=first.cycles, dram=first.dram_end,
        )  # fmt: skip
        return trace_of(
            [first, then], [encoder, decoder], [symbols, passes], arithmetic, accelerator
        )

    def translate(self, text: str, beam: int = 1) -> Translated:
        """Translate a sentence; a beam of 1 takes the likeliest symbol at each step."""
        return self.search([self.source(text)], beam)[0]

    def search(
        self,
        sources: Sequence[Sequence[int]],
        beam: int,
        *,
        length_penalty: float | None = None,
        longest: int = 60,
        batch: int = 16,
        progress: bool = False,
    ) -> list[Translated]:
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
        progress : bool
            Whether to show a bar on the standard error stream.

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
        out: dict[int, Translated] = {}
        # Sentences of one length end at about the same step.
        order = sorted(range(len(sources)), key=lambda n: len(sources[n]))
        with tqdm(total=len(order), unit="sentence", disable=not progress) as bar:
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                beams = [_Beam(beam, longest) for _ in chosen]
                self._search([self.encode(sources[n]) for n in chosen], beams)
                out |= {n: self._result(b, power) for n, b in zip(chosen, beams, strict=True)}
                bar.update(len(chosen))
        return [out[n] for n in range(len(sources))]

    def evaluate(
        self,
        sources: Sequence[str] | None = None,
        references: Sequence[str] | None = None,
        *,
        beam: int = 5,
        limit: int | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """BLEU over sentence pairs, by default those of the test set.

        Parameters
        ----------
        sources, references : list of str, optional
            As `read_pairs` gives them.
        beam : int
        limit : int, optional
            Take only so many pairs, the first.
        progress : bool
            Whether to show a bar on the standard error stream.

        Raises
        ------
        EpurError
            sacrebleu or the data set is missing, or there is no pair.
        """
        try:
            import sacrebleu
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise EpurError(
                "evaluate", str(error.name), "is not installed", "pip install 'epur_emu[evaluate]'"
            ) from error
        if sources is None or references is None:
            sources, references = read_pairs("test_2016_flickr")
        sources, references = sources[:limit], references[:limit]
        if not sources or len(sources) != len(references):
            raise EpurError(
                "evaluate", "sources", f"are {len(sources)} for {len(references)} references",
                "give as many, and at least one",
            )  # fmt: skip
        # A sentence's matrices are small: further threads of numpy's would only wait for each other.
        with threadpool_limits(1):
            outputs = self.search([self.source(text) for text in sources], beam, progress=progress)
        bleu = sacrebleu.corpus_bleu(
            [o.text for o in outputs], [list(references)], tokenize="none", force=True
        )
        return Evaluation(self.metric, float(bleu.score), tuple(outputs))

    def _search(self, memories: list[Memory], beams: list[_Beam]) -> None:
        """Run the beams of some sentences, one for each memory, to their ends."""
        states = np.stack([memory.state for memory in memories], 1)[:, :, None]
        state = np.repeat(states, beams[0].size, axis=2)
        alive = list(zip(memories, beams, strict=True))
        while alive:
            words = np.stack([beam.words for _, beam in alive])
            scores, state = self._step(words, [memory for memory, _ in alive], state)
            for (_, beam), row in zip(alive, _log_softmax(scores), strict=True):
                beam.advance(row)
            going = [n for n, (_, beam) in enumerate(alive) if not beam.ended]
            parents = np.stack([beam.parents for _, beam in alive])[None, going, :, None]
            state = np.take_along_axis(state[:, going], parents, axis=2)
            alive = [alive[n] for n in going]

    def _step(
        self, words: npt.NDArray[np.intp], memories: list[Memory], state: F32
    ) -> tuple[F32, F32]:
        """One decoder step of k hypotheses of each of S sentences.

        Each product takes one sentence's k rows at a time, so that a float32 sum does not depend on
        which other sentences are there.

        Parameters
        ----------
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
        h1, c1 = self.decoder.step(0, x.reshape(len(flat[0]), -1), flat[0], flat[1])
        context = np.stack(
            [
                _softmax(asks @ memory.keys.T * self._scale) @ memory.values
                for asks, memory in zip(h1.reshape(shape), memories, strict=True)
            ]
        )
        both = np.concatenate((h1, context.reshape(len(h1), -1)), 1)
        h2, c2 = self.decoder.step(1, both, flat[2], flat[3])
        seen = np.concatenate((h2.reshape(shape), context, x), 2)
        read = np.tanh(seen @ self._readout + self._readout_bias)
        return read @ self._output + self._output_bias, np.stack((h1, c1, h2, c2)).reshape(
            4, *shape
        )

    def _result(self, beam: _Beam, power: float) -> Translated:
        symbols, score = beam.best(power)
        text = self.bpe.decode(symbols)
        return Translated(symbols, text, _unescape(text), score, beam.steps, beam.passes)


class _Beam:
    """The search of one sentence: `size` rows, of which the first are hypotheses alive."""

    def __init__(self, size: int, longest: int) -> None:
        self.size = size
        self.longest = longest
        self.words = np.full(size, BOS)
        self.parents = np.zeros(size, np.intp)
        self.steps = self.passes = 0
        self._scores = np.full(size, -np.inf)
        self._scores[0] = 0.0
        self._texts: list[tuple[int, ...]] = [()]
        self._finished: list[tuple[float, int, tuple[int, ...]]] = []

    @property
    def ended(self) -> bool:
        """Whether as many translations as rows are complete, or none can go on."""
        return not self._texts or len(self._finished) >= self.size or self.steps >= self.longest

    def advance(self, logp: F32) -> None:
        """Extend the hypotheses, given their next symbols' log probabilities (size, symbols).

        A hypothesis is complete once its ``</s>`` is among the `size` best extensions.
        """
        self.steps += 1
        self.passes += len(self._texts)
        symbols = logp.shape[1]
        total = (self._scores[:, None] + logp).ravel()
        total[np.isnan(total)] = -np.inf
        count = min(2 * self.size, len(total))  # enough, should `size` of them be </s>
        top = np.argpartition(-total, count - 1)[:count]
        top = top[np.lexsort((top, -total[top]))]
        texts, self._texts = self._texts, []
        scores, self._scores = total, np.full(self.size, -np.inf)
        for rank, place in enumerate(top):
            row, word = divmod(int(place), symbols)
            if len(self._texts) == self.size or scores[place] == -np.inf:
                break
            text = (*texts[row], word)
            if word != EOS:
                n = len(self._texts)
                self._scores[n], self.words[n], self.parents[n] = scores[place], word, row
                self._texts.append(text)
            elif rank < self.size:
                self._finished.append((float(scores[place]), len(text), text[:-1]))

    def best(self, power: float) -> tuple[tuple[int, ...], float]:
        """The best complete translation, or where none is, the best that was cut; and its score."""
        cut = [(float(s), len(t), t) for s, t in zip(self._scores, self._texts, strict=False)]
        choices = [(s / n**power, text) for s, n, text in self._finished or cut]
        score, text = max(choices, key=lambda choice: choice[0], default=(-np.inf, ()))
        return text, score


def read_pairs(
    split: str, data: str | os.PathLike[str] | None = None
) -> tuple[list[str], list[str]]:
    """English and German sentences of the data set Multi30k.

    Parameters
    ----------
    split : {"train", "val", "test_2016_flickr"}
    data : path, optional
        The folder that holds ``multi30k/``; by default what the variable `EPUR_DATA` names.

    Raises
    ------
    EpurError
        The data are not there, or the two files are not of one length.
    """
    data = data or os.environ.get(VARIABLE)
    if not data:
        raise EpurError(
            "Multi30k",
            "data",
            "are not found",
            f"set {VARIABLE} to the folder that holds multi30k/",
        )
    texts = []
    for language in ("en", "de"):
        path = Path(data) / "multi30k" / f"{split}.lc.norm.tok.{language}"
        try:
            texts.append(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise EpurError(
                path, "text", f"can't be read ({error})",
                f"set {VARIABLE} to the folder that holds multi30k/, as its project publishes it",
            ) from error  # fmt: skip
    if len(texts[0]) != len(texts[1]):
        raise EpurError(
            Path(data) / "multi30k", split, f"has {len(texts[0])} and {len(texts[1])} lines",
            "restore the files",
        )  # fmt: skip
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


def _softmax(x: F32) -> F32:
    e = np.exp(x - x.max(-1, keepdims=True))
    weights: F32 = e / e.sum(-1, keepdims=True)
    return weights


def _log_softmax(x: F32) -> F32:
    x = x - x.max(-1, keepdims=True)
    logp: F32 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return logp


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
