"""Write the tables of docs/validation.md anew, from the code as it is.

python scripts/make_validation.py docs/validation.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from epur_emu.paper import markdown

MARKS = ("figures", "sensitivity")


def filled(text: str) -> str:
    """`text` with its marked tables made anew.

    Raises
    ------
    ValueError
        A mark is missing.
    """
    for name, table in zip(MARKS, markdown(), strict=True):
        head = f"<!-- {name}, made by scripts/make_validation.py -->"
        pattern = re.compile(f"({re.escape(head)}\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no mark {head}")
        text = pattern.sub(lambda found, t=table: f"{found[1]}\n{t}\n\n{found[2]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Fill in the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
