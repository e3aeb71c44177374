"""Beam search over the symbols that a decoder writes one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from epur_emu.tasks.bpe import BOS, EOS

F32 = npt.NDArray[np.float32]
Memory = TypeVar("Memory")

#: Most hypotheses that commands and studies take; a step holds a score of each symbol for each.
MOST = 256


class Beam:
    """The search of one text: `size` rows, of which the first are hypotheses alive."""

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
        """Whether as many texts as rows are complete, or none can go on."""
        return not self._texts or len(self._finished) >= self.size or self.steps >= self.longest

    def advance(self, logp: F32) -> None:
        """Extend the hypotheses, given their next symbols' log probabilities (rows, symbols).

        A hypothesis is complete once its ``</s>`` is among the `size` best extensions. Of rows there
        may be fewer than `size`, where fewer hypotheses are alive.
        """
        self.steps += 1
        self.passes += len(self._texts)
        total = self._scores[: len(logp), None] + logp
        best = total.max(0)
        if np.isnan(best).any():
            total[np.isnan(total)] = -np.inf
            best = total.max(0)
        count = min(2 * self.size, total.size)  # enough, should `size` of them be </s>
        # They are of the `count` symbols whose best rows are best.
        symbols = np.arange(len(best))
        if count < len(best):
            symbols = np.argpartition(best, -count)[-count:]
        rows, words = np.divmod(np.arange(len(logp) * len(symbols)), len(symbols))
        words, values = symbols[words], total[:, symbols].ravel()
        order = np.lexsort((words, rows, -values))[:count]
        texts, self._texts = self._texts, []
        self._scores = np.full(self.size, -np.inf)
        chosen = zip(*(each[order].tolist() for each in (rows, words, values)), strict=True)
        for rank, (row, word, value) in enumerate(chosen):
            if len(self._texts) == self.size or value == -np.inf:
                break
            text = (*texts[row], word)
            if word != EOS:
                n = len(self._texts)
                self._scores[n], self.words[n], self.parents[n] = value, word, row
                self._texts.append(text)
            elif rank < self.size:
                self._finished.append((value, len(text), text[:-1]))

    def best(self, power: float) -> tuple[tuple[int, ...], float]:
        """The best complete text, or where none is, the best that was cut; and its score."""
        cut = [(float(s), len(t), t) for s, t in zip(self._scores, self._texts, strict=False)]
        choices = [(s / n**power, text) for s, n, text in self._finished or cut]
        score, text = max(choices, key=lambda choice: choice[0], default=(-np.inf, ()))
        return text, score


class Followed(Beam):
    """A search that notes each evaluation of the decoder: one for each hypothesis, step by step.

    `alive` holds how many there were in each step, `origins` for each the number of the one whose
    state it went on from, -1 for the initial state.
    """

    def __init__(self, size: int, longest: int) -> None:
        super().__init__(size, longest)
        self.alive: list[int] = []
        self.origins: list[int] = []
        self._next = [-1]

    def advance(self, logp: F32) -> None:
        """As `Beam.advance`."""
        first = len(self.origins)
        self.alive.append(len(self._next))
        self.origins += self._next
        super().advance(logp)
        self._next = [first + int(row) for row in self.parents[: len(self._texts)]]


def search(
    beams: Sequence[Beam],
    memories: Sequence[Memory],
    starts: F32,
    step: Callable[[npt.NDArray[np.intp], list[Memory], F32], tuple[F32, F32]],
) -> None:
    """Run the beams of S items, all of one size k, to their ends.

    Parameters
    ----------
    beams, memories : sequences of S
        What `step` needs of each item stands in its memory.
    starts : float32 array of shape (P, S, H)
        Initial states.
    step : callable
        Takes words (S, k), the memories and states (P, S, k, H) of the items that go on; gives scores
        (S, k, symbols) and the states after. In the first step k is 1: all texts begin alike.
    """
    state = starts[:, :, None]
    alive = list(zip(memories, beams, strict=True))
    while alive:
        words = np.stack([beam.words[: state.shape[2]] for _, beam in alive])
        scores, state = step(words, [memory for memory, _ in alive], state)
        for (_, beam), row in zip(alive, log_softmax(scores), strict=True):
            beam.advance(row)
        going = [n for n, (_, beam) in enumerate(alive) if not beam.ended]
        parents = np.stack([beam.parents for _, beam in alive])[None, going, :, None]
        state = np.take_along_axis(state[:, going], parents, axis=2)
        alive = [alive[n] for n in going]


def softmax(x: F32) -> F32:
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    weights: F32 = e / e.sum(-1, keepdims=True)
    return weights


def log_softmax(x: F32) -> F32:
    """Along the last axis."""
    x = x - x.max(-1, keepdims=True)
    logp: F32 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return logp
