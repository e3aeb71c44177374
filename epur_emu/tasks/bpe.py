"""Byte-pair encoding of words, as a translation network's vocabulary needs it.

Segmentation only: merges are learned where a network is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from epur_emu.errors import EpurError

#: Marks the last symbol of a word, so that joining symbols restores the spaces.
END_OF_WORD = "</w>"
PAD, BOS, EOS, UNK = range(4)
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


class Bpe:
    """Ranked merges and the symbols that a network knows.

    Parameters
    ----------
    merges : sequence of (str, str)
        Pairs of adjacent symbols, first learned first; ``</w>`` ends a word.
    symbols : sequence of str
        The vocabulary in order of index; the first four are `SPECIALS`.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], symbols: Sequence[str]) -> None:
        self.merges = list(merges)
        self.symbols = list(symbols)
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._index = {symbol: index for index, symbol in enumerate(self.symbols)}
        self._cache: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.symbols)

    def split(self, word: str) -> list[str]:
        """Cut one word into symbols, the lowest-ranked merge first."""
        if word in self._cache:
            return self._cache[word]
        parts = [*word[:-1], word[-1] + END_OF_WORD]
        while len(parts) > 1:
            ranked = [
                (self._rank[pair], i)
                for i, pair in enumerate(pairwise(parts))
                if pair in self._rank
            ]
            if not ranked:
                break
            _, i = min(ranked)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        self._cache[word] = parts
        return parts

    def encode(self, words: Iterable[str]) -> list[int]:
        """Indices of a sentence's symbols, closed by ``</s>``."""
        symbols = [symbol for word in words for symbol in self.split(word)]
        return [self._index.get(symbol, UNK) for symbol in symbols] + [EOS]

    def decode(self, indices: Iterable[int]) -> str:
        """Words of a sentence, up to the first ``</s>``, separated by spaces."""
        text = ""
        for index in indices:
            if index == EOS:
                break
            if index == UNK:
                text += SPECIALS[UNK] + " "
            elif index >= len(SPECIALS):
                text += self.symbols[index].replace(END_OF_WORD, " ")
        return text.strip()

    def save(self, folder: Path) -> None:
        """Write ``merges.txt`` and ``symbols.txt``, one entry a line."""
        lines = [" ".join(pair) for pair in self.merges]
        (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / "symbols.txt").write_text("\n".join(self.symbols) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Bpe:
        """Read what `save` wrote.

        Raises
        ------
        EpurError
            A file is missing or not of this form.
        """
        merges: list[tuple[str, str]] = []
        path = folder / "merges.txt"
        try:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                pair = line.split(" ")
                if len(pair) != 2:
                    raise EpurError(
                        path, f"line {number}", "is not two symbols", "restore the file"
                    )
                merges.append((pair[0], pair[1]))
        except (OSError, UnicodeDecodeError) as error:
            raise EpurError(path, "text", f"can't be read ({error})", "restore the file") from error
        return cls(merges, read_symbols(folder))


def read_symbols(folder: Path) -> list[str]:
    """Lines of a vocabulary, ``symbols.txt``.

    Raises
    ------
    EpurError
        The file is missing, or does not begin with `SPECIALS`.
    """
    path = folder / "symbols.txt"
    try:
        symbols = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise EpurError(path, "text", f"can't be read ({error})", "restore the file") from error
    if tuple(symbols[: len(SPECIALS)]) != SPECIALS:
        raise EpurError(path, "first lines", f"are not {', '.join(SPECIALS)}", "restore the file")
    return symbols
