"""Connectionist temporal classification: from scores of each time step to symbols."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import numpy.typing as npt

BLANK = 0

F32 = npt.NDArray[np.float32]


def greedy(scores: F32) -> tuple[int, ...]:
    """Symbols of the likeliest path: repetitions merged, blanks dropped.

    Parameters
    ----------
    scores : float32 array of shape (T, symbols)
        Log probabilities or unnormalised scores; index 0 is the blank.
    """
    path = scores.argmax(-1).tolist()
    return tuple(symbol for symbol, _ in groupby(path) if symbol != BLANK)


def prefix_search(logp: F32, beam: int) -> tuple[tuple[int, ...], float]:
    """Symbols of the likeliest text, whose probability is summed over its paths.

    Parameters
    ----------
    logp : float32 array of shape (T, symbols)
        Log probabilities; index 0 is the blank.
    beam : int
        Texts kept after each time step.

    Returns
    -------
    symbols : tuple of int
    logp : float
        Log probability of the paths that were kept; -inf where all were lost.
    """
    rows = np.where(np.isnan(logp), -np.inf, logp).astype(np.float64).tolist()
    # Log probabilities of each text: of its paths that end in a blank, and of those that don't.
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in rows:
        new: dict[tuple[int, ...], tuple[float, float]] = {}
        for text, (blank, other) in kept.items():
            both = _log_sum(blank, other)
            last = text[-1] if text else BLANK
            repeated = other + row[last] if text else -math.inf
            _add(new, text, both + row[BLANK], repeated)
            for symbol in range(1, len(row)):
                before = blank if symbol == last else both
                _add(new, (*text, symbol), -math.inf, before + row[symbol])
        best = sorted(new, key=lambda text: -_log_sum(*new[text]))[:beam]
        kept = {text: new[text] for text in best}
    first = next(iter(kept))
    return first, _log_sum(*kept[first])


def _add(
    texts: dict[tuple[int, ...], tuple[float, float]],
    text: tuple[int, ...],
    blank: float,
    other: float,
) -> None:
    """Add paths of a text to those there are."""
    old = texts.get(text, (-math.inf, -math.inf))
    texts[text] = _log_sum(old[0], blank), _log_sum(old[1], other)


def _log_sum(a: float, b: float) -> float:
    """Logarithm of the sum of two numbers whose logarithms are given."""
    small, large = min(a, b), max(a, b)
    return large if small == -math.inf else large + math.log1p(math.exp(small - large))
