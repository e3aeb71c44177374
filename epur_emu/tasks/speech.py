"""Recognition of spoken digits: log-mel features below a stack of LSTM layers, CTC above it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import schedule_sequence
from epur_emu.emulator import trace_of
from epur_emu.errors import EpurError, ModelError
from epur_emu.probe import Decoded, Sequences
from epur_emu.tasks import data, digits
from epur_emu.tasks.base import Answer, Task, evaluated, first_of_test_set, outputs_of_passes
from epur_emu.tasks.beam import log_softmax
from epur_emu.tasks.ctc import greedy, prefix_search
from epur_emu.tasks.digits import Utterance
from epur_emu.tasks.features import LogMel, read_wav
from epur_emu.tasks.metrics import word_errors
from epur_emu.trace import Trace

if TYPE_CHECKING:
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine

F32 = npt.NDArray[np.float32]

NETWORK = "recogniser"
TEST_STRINGS, TEST_SEED = 300, 20171120
SAMPLE_STRINGS, SAMPLE_SEED = 100, 1711


class Speech(Task):
    """A recogniser whose LSTM layers are evaluated by an engine.

    Parameters
    ----------
    model : Model
        With the network ``recogniser``; its card gives ``features`` (as `LogMel` takes them) and
        ``decoding.words``, the word of each symbol but the blank.
    engines : dict of str to Engine

    Raises
    ------
    ModelError
        The network, the engine, a field of the card or a host array is missing, or does not fit.
    """

    metric: ClassVar[str] = "WER"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        if NETWORK not in model.networks or NETWORK not in engines:
            raise ModelError(model.path, f"network {NETWORK!r}", "is missing", "give it")
        super().__init__(model, engines)
        self.engine = engines[NETWORK]
        network = model.networks[NETWORK]
        try:
            self.features = LogMel(**model.card.get("features", {}))
        except TypeError as error:
            raise ModelError(
                model.path, "features", f"are wrong ({error})", "mend the card"
            ) from error
        self.words = tuple(map(str, model.card.get("decoding", {}).get("words", ())))
        width = sum(p.cells for p in network.layers[-1])
        wanted = {
            "output.weight": (1 + len(self.words), width),
            "output.bias": (1 + len(self.words),),
        }
        for name, shape in wanted.items():
            found = model.host[name].shape if name in model.host else "no shape, as it is missing"
            if found != shape:
                raise ModelError(model.path, f"host.{name}", f"has {found}", f"give {shape}")
        inputs = network.layers[0][0].inputs
        if inputs != self.features.width:
            raise ModelError(
                model.path, "features", f"are {self.features.width} a time step",
                f"the network reads {inputs}",
            )  # fmt: skip
        self._weight = np.ascontiguousarray(model.host["output.weight"].T)
        self._bias = model.host["output.bias"]

    def read(self, given: str | None) -> Utterance:
        """The speech in a WAV file; by default the first string of the test set."""
        if given is None:
            found: Utterance = first_of_test_set(self, "a WAV file of spoken words")
            return found
        rate = self.features.rate
        item = Utterance(read_wav(given, rate), rate, given)
        if len(item.samples) < self.features.shortest:
            raise EpurError(
                given, "sound", f"has {len(item.samples)} samples",
                f"give at least {self.features.shortest}",
            )  # fmt: skip
        return item

    def describe(self, item: Utterance) -> str:
        """Where the speech comes from, and how long it is."""
        return f"{item.source}, {item.seconds:.2f} s of speech"

    def size(self, item: Utterance) -> int:
        """Samples."""
        return len(item.samples)

    def scores(self, item: Utterance) -> F32:
        """Scores of each symbol (the blank first) at each time step, (T, symbols)."""
        top = self.engine.sequence(self.features(item.samples))[-1]
        out: F32 = np.asarray(top, np.float32) @ self._weight + self._bias
        return out

    def answer(self, items: Sequence[Utterance], beam: int = 1) -> list[Answer]:
        """Transcribe; a beam of 1 takes the likeliest path, a larger one searches for the likeliest text.

        Raises
        ------
        EpurError
            The beam is less than 1, or an item is too short.
        """
        if beam < 1:
            raise EpurError("search", "beam", f"is {beam}", "give 1 or more")
        return [self._decode(self.scores(item), beam) for item in items]

    def outputs(self, item: Utterance, answer: Answer) -> dict[str, F32]:
        """Outputs of each pass; there is no decoder, so the answer changes nothing."""
        return outputs_of_passes(self.engine, self.features(item.samples))

    def trace(
        self, item: Utterance, answer: Answer, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access of one sequence through all layers."""
        network, steps = self.engine.network, self.features.steps(len(item.samples))
        schedule = schedule_sequence(network.shape, steps, arithmetic, accelerator)
        return trace_of([schedule], [network], [steps], arithmetic, accelerator)

    def runs(self, item: Utterance, answer: Answer, beam: int) -> list[Sequences | Decoded]:
        """The sequence."""
        return [evaluated(self.engine, self.features(item.samples))]

    def duration(self, item: Utterance) -> float | None:
        """Seconds of speech."""
        return item.seconds

    def test_set(self, limit: int | None = None) -> tuple[list[Utterance], list[str]]:
        """300 strings of 1 to 7 digits, made of recordings that no training has seen."""
        count = TEST_STRINGS if limit is None else min(limit, TEST_STRINGS)
        return digits.strings(data.folder("fsdd"), digits.TEST, count, TEST_SEED)

    def samples(self) -> Iterator[tuple[Utterance, str]]:
        """100 strings of the recordings that trainings use."""
        folder = data.folder("fsdd")
        made = digits.strings(folder, digits.TRAINING, SAMPLE_STRINGS, SAMPLE_SEED)
        return zip(*made, strict=True)

    def score(self, answers: Sequence[Answer], references: Sequence[str]) -> dict[str, float]:
        """Word error rate and sentence error rate (strings with any error), in %."""
        pairs = [(a.text.split(), r.split()) for a, r in zip(answers, references, strict=True)]
        errors = [word_errors(found, wanted) for found, wanted in pairs]
        words = sum(len(wanted) for _, wanted in pairs)
        return {
            self.metric: 100 * sum(errors) / words,
            "SER": 100 * sum(map(bool, errors)) / len(errors),
        }

    def _decode(self, scores: F32, beam: int) -> Answer:
        symbols, score = greedy(scores), None
        if beam > 1:
            symbols, score = prefix_search(log_softmax(scores), beam)
        text = " ".join(self.words[symbol - 1] for symbol in symbols)
        return Answer(symbols, text, text, score)
