"""Strings of spoken digits, joined from the recordings of the Free Spoken Digit Dataset.

The same on every machine: only the raw output of PCG64, which numpy keeps from version to version,
and integers make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epur_emu.errors import EpurError
from epur_emu.tasks.features import Samples, read_wav

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TEST = (2, 3, 4)
VALIDATION = (5, 6)
TRAINING = tuple(range(7, 50))
LONGEST = 7
#: Shortest and longest pause before, between and after digits, in samples: 50 to 400 ms.
PAUSE = (400, 3200)
#: Largest amplitude of the noise in pauses, in units of a 16-bit sample.
NOISE = 16


@dataclass(frozen=True, eq=False)
class Utterance:
    """One string of digits, or any other speech.

    Parameters
    ----------
    samples : int16 array of shape (N,)
    rate : int
        Samples in a second.
    source : str
        Where it comes from, for a person to read.
    """

    samples: Samples
    rate: int
    source: str

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


class Draws:
    """Random integers from a seed, independent of numpy's version."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, bound: int) -> int:
        """One of 0 .. bound - 1 (bound at most 2**32)."""
        return (int(self._bits.random_raw()) >> 32) * bound >> 32

    def noise(self, count: int, largest: int) -> Samples:
        """Samples of noise, each an integer of -largest .. largest."""
        raw = self._bits.random_raw(count) >> np.uint64(32)
        scaled = (raw * np.uint64(2 * largest + 1)) >> np.uint64(32)
        return (scaled.astype(np.int64) - largest).astype(np.int16)


def recording(folder: Path, digit: int, speaker: str, index: int) -> Samples:
    """One recording of the data set, int16 of shape (N,).

    Raises
    ------
    EpurError
        It is not there, or is damaged.
    """
    return read_wav(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", RATE)


def strings(
    folder: Path, indices: Sequence[int], count: int, seed: int
) -> tuple[list[Utterance], list[str]]:
    """Utterances of 1 to 7 digits by one speaker with pauses of faint noise, and their words.

    Parameters
    ----------
    folder : path
        The data set's, which holds ``recordings/``.
    indices : sequence of int
        Which recordings of each digit and speaker to choose from.
    count : int
        The first strings of a seed do not depend on it.
    seed : int

    Raises
    ------
    EpurError
        A recording is not there, or is damaged.
    """
    if not (folder / "recordings").is_dir():
        raise EpurError(folder, "recordings", "is no folder", "give the data set's folder")
    draws = Draws(seed)
    utterances, texts = [], []
    for number in range(count):
        speaker = SPEAKERS[draws.below(len(SPEAKERS))]
        digits = [draws.below(len(WORDS)) for _ in range(1 + draws.below(LONGEST))]
        level = 1 + draws.below(NOISE)
        parts = [_pause(draws, level)]
        for digit in digits:
            index = indices[draws.below(len(indices))]
            parts += recording(folder, digit, speaker, index), _pause(draws, level)
        words = " ".join(WORDS[digit] for digit in digits)
        utterances.append(
            Utterance(np.concatenate(parts), RATE, f"string {number} of seed {seed}, {speaker}")
        )
        texts.append(words)
    return utterances, texts


def _pause(draws: Draws, level: int) -> Samples:
    return draws.noise(PAUSE[0] + draws.below(PAUSE[1] - PAUSE[0] + 1), level)
