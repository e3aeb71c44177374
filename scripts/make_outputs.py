"""Make anew the outputs that README.md and docs/ show: `python scripts/make_outputs.py`.

A ```text block shows what the last command of the ```sh block before it prints. The tests run every
block and compare.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from epur_emu.cli import main as epur

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "traces" / "FORMAT.md",
    ROOT / "models" / "README.md",
)

#: Programs that install, or run all tests; they are run when the package is built and tested.
INSTALLS = ("python3", "pip", "tox", "mkdocs")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Parameters
    ----------
    line : int
        Of its first line of code, from 1.
    kind : str
        sh, python, toml or text.
    text : str
    """

    line: int
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """Fenced blocks that name their language, and indented ones that hold epur commands."""
    found: list[Block] = []
    for match in re.finditer(
        r"^```(sh|python|toml|text)\n(.*?)^```$|(?:^ {4}epur [^\n]*\n)+", page, re.M | re.S
    ):
        line = page.count("\n", 0, match.start()) + 1
        if match[1]:
            found.append(Block(line + 1, match[1], match[2]))
        else:
            found.append(Block(line, "sh", re.sub(r"^ {4}", "", match[0], flags=re.M)))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a sh block, split into words, without those that install."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
                words = words[1:]
            if words and Path(words[0]).name not in INSTALLS:
                yield words


def run(words: Sequence[str]) -> str:
    """What an epur command prints on standard output.

    Raises
    ------
    RuntimeError
        The command is none of epur's, or ends with another status than 0.
    """
    if Path(words[0]).name != "epur":
        raise RuntimeError(f"{words[0]} is no command of epur_emu")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            epur(list(words[1:]))
    except SystemExit as left:
        if left.code:
            said = err.getvalue().splitlines()[-1:]
            raise RuntimeError(f"{shlex.join(words)}: {said}") from left
    return out.getvalue()


def shown(page: str) -> list[tuple[Block, list[str]]]:
    """The page's outputs, each with the command that prints it."""
    found = []
    last: list[str] | None = None
    for block in blocks(page):
        if block.kind == "sh":
            last = ([None, *commands(block)])[-1]
        elif block.kind == "text" and last is not None:
            found.append((block, last))
    return found


def main() -> None:
    """Rewrite the pages."""
    os.chdir(ROOT)
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block, words in shown(text):
            text = text.replace(f"```text\n{block.text}```", f"```text\n{run(words)}```", 1)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
