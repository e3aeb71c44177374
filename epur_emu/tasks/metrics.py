"""How good texts are, beside references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epur_emu.errors import EpurError


def bleu(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of texts whose words are separated by spaces, in hundredths.

    Raises
    ------
    EpurError
        sacrebleu is not installed.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise EpurError(
            "evaluate", "sacrebleu", "is not installed", "pip install 'epur_emu[evaluate]'"
        ) from error
    streams = [list(references)]
    return {
        "BLEU": float(sacrebleu.corpus_bleu(texts, streams, tokenize="none", force=True).score),
        "chrF": float(sacrebleu.corpus_chrf(texts, streams).score),
    }


def word_errors(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """Fewest substitutions, insertions and deletions that turn one sequence into the other."""
    row = list(range(len(wanted) + 1))
    for n, ours in enumerate(found, 1):
        diagonal, row[0] = row[0], n
        for m, theirs in enumerate(wanted, 1):
            diagonal, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, diagonal + (ours != theirs))
    return row[-1]
