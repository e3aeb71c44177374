"""Speech activity: which 32 ms of a recording hold speech.

The network is Silero VAD's for 16 kHz: spectra and four convolutions below an LSTM layer, one
output above it. All of it but the LSTM layer is computed here, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
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
from epur_emu.tasks.digits import Utterance
from epur_emu.tasks.features import read_wav
from epur_emu.trace import Trace

if TYPE_CHECKING:
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine

F32 = npt.NDArray[np.float32]

NETWORK = "detector"
#: Samples in a second as the network hears them.
RATE = 16000
#: Samples of one time step, and those before it that are heard with it.
STEP, CONTEXT = 512, 64
#: Samples of a spectrum, and between spectra.
WINDOW, HOP = 256, 128
#: Stride of each convolution.
STRIDES = (1, 2, 2, 1)
THRESHOLD = 0.5
#: Samples at 8 kHz on either side from which one between them is made.
REACH = 16
TEST_SOUNDS, TEST_SEED = 100, 20171121
SAMPLE_SOUNDS, SAMPLE_SEED = 50, 1712
#: Digits of a sound, at most.
LONGEST = 5
#: Shortest and longest pause, in samples at 8 kHz: 0.4 to 1.5 s.
PAUSE = (3200, 12000)
#: The largest amplitude of the noise is a power of two below 2**NOISE_BITS.
NOISE_BITS = 9
#: Edges of a recording below this fraction of its peak, -32 dB, are a pause.
AUDIBLE = 40


class SpeechActivity(Task):
    """A voice activity detector whose LSTM layer is evaluated by an engine.

    Parameters
    ----------
    model : Model
        With the network ``detector``, of 128 inputs and cells.
    engines : dict of str to Engine

    Raises
    ------
    ModelError
        The network, the engine or a host array is missing, or does not fit.
    """

    metric: ClassVar[str] = "frame accuracy"

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        if NETWORK not in model.networks or NETWORK not in engines:
            raise ModelError(model.path, f"network {NETWORK!r}", "is missing", "give it")
        super().__init__(model, engines)
        self.engine = engines[NETWORK]
        layers = model.networks[NETWORK].layers
        bins, widths = WINDOW // 2 + 1, (128, 64, 64, layers[0][0].inputs)
        wanted: dict[str, tuple[int, ...]] = {
            "spectrum.weight": (2 * bins, 1, WINDOW),
            "output.weight": (1, sum(p.cells for p in layers[-1]), 1),
            "output.bias": (1,),
        }
        for n, (inputs, outputs) in enumerate(pairwise((bins, *widths))):
            wanted |= {f"conv.{n}.weight": (outputs, inputs, 3), f"conv.{n}.bias": (outputs,)}
        for name, shape in wanted.items():
            found = model.host[name].shape if name in model.host else "no shape, as it is missing"
            if found != shape:
                raise ModelError(model.path, f"host.{name}", f"has {found}", f"give {shape}")
        host = model.host
        self._spectrum = np.ascontiguousarray(host["spectrum.weight"][:, 0].T)
        self._convolutions = [
            (
                np.ascontiguousarray(host[f"conv.{n}.weight"].reshape(width, -1).T),
                host[f"conv.{n}.bias"],
            )
            for n, width in enumerate(widths)
        ]
        self._weight, self._bias = host["output.weight"][0, :, 0], host["output.bias"][0]

    def features(self, samples: npt.ArrayLike) -> F32:
        """What the LSTM layer reads of a sound at 16 kHz.

        Parameters
        ----------
        samples : float array of shape (N,)
            Between -1 and 1; zeros fill the last time step.

        Returns
        -------
        float32 array of shape (T, 128)
            T = N / 512, rounded up.
        """
        sound = np.asarray(samples, np.float32)
        steps = -(-len(sound) // STEP)
        sound = np.pad(sound, (CONTEXT, steps * STEP - len(sound)))
        frames = np.lib.stride_tricks.sliding_window_view(sound, CONTEXT + STEP)[::STEP]
        frames = np.pad(frames, ((0, 0), (0, CONTEXT)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(frames, WINDOW, 1)[:, ::HOP]
        parts = (windows @ self._spectrum).reshape(*windows.shape[:2], 2, -1)
        x: F32 = np.sqrt((parts * parts).sum(2))
        for (weight, bias), stride in zip(self._convolutions, STRIDES, strict=True):
            around = np.pad(x, ((0, 0), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(around, 3, 1)[:, ::stride]
            x = np.maximum(windows.reshape(*windows.shape[:2], -1) @ weight + bias, 0)
        return x[:, 0]

    def probabilities(self, item: Utterance) -> F32:
        """Probability of speech in each time step, (T,)."""
        top = np.asarray(self.engine.sequence(self.features(heard(item)))[-1], np.float32)
        out: F32 = 1 / (1 + np.exp(-(np.maximum(top, 0) @ self._weight + self._bias)))
        return out

    def read(self, given: str | None) -> Utterance:
        """The sound in a WAV file, at 16 or 8 kHz; by default the first of the test set."""
        if given is None:
            found: Utterance = first_of_test_set(self, "a WAV file")
            return found
        try:
            item = Utterance(read_wav(given, RATE), RATE, given)
        except EpurError:
            try:
                item = Utterance(read_wav(given, RATE // 2), RATE // 2, given)
            except EpurError as error:
                raise EpurError(
                    given, error.field, error.problem,
                    f"give a WAV file of 1 channel, 16 bits, at {RATE} or {RATE // 2} Hz",
                ) from None  # fmt: skip
        if not len(item.samples):
            raise EpurError(given, "sound", "has no samples", "give at least one")
        return item

    def describe(self, item: Utterance) -> str:
        """Where the sound comes from, and how long it is."""
        return f"{item.source}, {item.seconds:.2f} s of sound"

    def size(self, item: Utterance) -> int:
        """Samples."""
        return len(item.samples)

    def answer(self, items: Sequence[Utterance], beam: int = 1) -> list[Answer]:
        """Which time steps hold speech; there is nothing to search, so the beam changes nothing."""
        return [self._decide(self.probabilities(item)) for item in items]

    def outputs(self, item: Utterance, answer: Answer) -> dict[str, F32]:
        """Outputs of each pass; there is no decoder, so the answer changes nothing."""
        return outputs_of_passes(self.engine, self.features(heard(item)))

    def trace(
        self, item: Utterance, answer: Answer, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access of one sequence."""
        network, steps = self.engine.network, len(answer.symbols)
        schedule = schedule_sequence(network.shape, steps, arithmetic, accelerator)
        return trace_of([schedule], [network], [steps], arithmetic, accelerator)

    def runs(self, item: Utterance, answer: Answer, beam: int) -> list[Sequences | Decoded]:
        """The sequence."""
        return [evaluated(self.engine, self.features(heard(item)))]

    def duration(self, item: Utterance) -> float | None:
        """Seconds of sound."""
        return item.seconds

    def test_set(self, limit: int | None = None) -> tuple[list[Utterance], list[tuple[int, ...]]]:
        """100 sounds made of recordings that no training of this package has seen, and noise."""
        count = TEST_SOUNDS if limit is None else min(limit, TEST_SOUNDS)
        return sounds(data.folder("fsdd"), digits.TEST, count, TEST_SEED)

    def samples(self) -> Iterator[tuple[Utterance, tuple[int, ...]]]:
        """50 sounds made of recordings that trainings of this package use, and noise."""
        made = sounds(data.folder("fsdd"), digits.TRAINING, SAMPLE_SOUNDS, SAMPLE_SEED)
        return zip(*made, strict=True)

    def score(
        self, answers: Sequence[Answer], references: Sequence[tuple[int, ...]]
    ) -> dict[str, float]:
        """Time steps decided rightly, speech found, and pauses taken for speech, in %."""
        found = np.concatenate([a.symbols for a in answers]).astype(bool)
        wanted = np.concatenate(references).astype(bool)
        return {
            self.metric: 100 * float((found == wanted).mean()),
            "recall": 100 * float(found[wanted].mean()),
            "false alarms": 100 * float(found[~wanted].mean()),
        }

    def _decide(self, probabilities: F32) -> Answer:
        symbols = tuple(int(p >= THRESHOLD) for p in probabilities)
        spans, start = [], 0
        for speech, steps in groupby(symbols):
            end = start + len(list(steps))
            if speech:
                spans.append(f"{start * STEP / RATE:.2f}-{end * STEP / RATE:.2f} s")
            start = end
        plain = "speech at " + ", ".join(spans) if spans else "no speech"
        return Answer(symbols, "".join(map(str, symbols)), plain)


def heard(item: Utterance) -> F32:
    """Samples at 16 kHz between -1 and 1.

    Sound at 8 kHz keeps its samples; one is put between each two, by a sinc of 32 samples under a
    Hann window.

    Raises
    ------
    EpurError
        The rate is another.
    """
    sound = item.samples.astype(np.float64) / 32768
    if item.rate == RATE:
        return sound.astype(np.float32)
    if 2 * item.rate != RATE:
        raise EpurError(item.source, "rate", f"is {item.rate} Hz", f"give {RATE} or {RATE // 2} Hz")
    distance = np.arange(-REACH, REACH) + 0.5
    kernel = np.sinc(distance) * (0.5 + 0.5 * np.cos(np.pi * distance / REACH))
    double = np.empty(2 * len(sound))
    double[::2] = sound
    double[1::2] = np.convolve(sound, kernel)[REACH : REACH + len(sound)]
    return double.astype(np.float32)


def sounds(
    folder: Path, indices: Sequence[int], count: int, seed: int
) -> tuple[list[Utterance], list[tuple[int, ...]]]:
    """Spoken digits between pauses, with noise over all; and which time steps hold speech.

    A time step holds speech if at least half of its samples lie in a recording from its first to
    its last sample of at least 1/`AUDIBLE` of the recording's largest amplitude.

    Parameters
    ----------
    folder : path
        The Free Spoken Digit Dataset's, which holds ``recordings/``.
    indices : sequence of int
        Which recordings of each digit and speaker to choose from.
    count : int
        The first sounds of a seed do not depend on it.
    seed : int

    Raises
    ------
    EpurError
        A recording is not there, or is damaged.
    """
    draws = digits.Draws(seed)
    items, labels = [], []
    step = STEP * digits.RATE // RATE
    for number in range(count):
        speaker = digits.SPEAKERS[draws.below(len(digits.SPEAKERS))]
        parts, speech = [], []
        for last in [False] * (1 + draws.below(LONGEST)) + [True]:
            pause = PAUSE[0] + draws.below(PAUSE[1] - PAUSE[0] + 1)
            parts.append(np.zeros(pause, np.int64))
            speech.append(np.zeros(pause, bool))
            if last:
                continue
            index = indices[draws.below(len(indices))]
            spoken = digits.recording(
                folder, draws.below(len(digits.WORDS)), speaker, index
            ).astype(np.int64)
            loud = np.flatnonzero(AUDIBLE * abs(spoken) >= abs(spoken).max())
            n = np.arange(len(spoken))
            parts.append(spoken)
            speech.append((loud[0] <= n) & (n <= loud[-1]))
        clean = np.concatenate(parts)
        noise = draws.noise(len(clean), 1 << draws.below(NOISE_BITS))
        mixed = np.clip(clean + noise, -32768, 32767).astype(np.int16)
        items.append(Utterance(mixed, digits.RATE, f"sound {number} of seed {seed}, {speaker}"))
        truth = np.concatenate(speech)
        truth = np.pad(truth, (0, -len(truth) % step))
        labels.append(tuple(map(int, 2 * truth.reshape(-1, step).sum(1) >= step)))
    return items, labels
