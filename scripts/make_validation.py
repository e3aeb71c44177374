"""Write the tables of a page of docs/ anew, from the code as it is.

python scripts/make_validation.py docs/validation.md docs/energy.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import median

from epur_emu.energy import Grid, grids
from epur_emu.paper import markdown

PAPER = ("figures", "sensitivity")
COLUMNS = ("read_pj", "write_pj", "leakage_mw", "area_mm2", "cycle_ns", "access_ns")


def errors() -> str:
    """The interpolation's errors at the memories that are held out."""
    heads = " | ".join(key.partition("_")[0] for key in COLUMNS)
    lines = [f"| grid | {heads} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in grids():
        found = Grid.load(name).errors()
        cells = [
            f"{median(found[k]):.1%} ({max(found[k]):.0%})".replace("%", " %") for k in COLUMNS
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with its marked tables made anew.

    Raises
    ------
    ValueError
        It has no mark.
    """
    made = dict(zip(PAPER, markdown(), strict=True)) if "<!-- figures" in text else {}
    if "<!-- errors" in text:
        made["errors"] = errors()
    if not made:
        raise ValueError("no mark of a table")
    for name, table in made.items():
        head = f"<!-- {name}, made by scripts/make_validation.py -->"
        pattern = re.compile(f"({re.escape(head)}\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no mark {head}")
        text = pattern.sub(lambda found, t=table: f"{found[1]}\n{t}\n\n{found[2]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Fill in the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+")
    for path in parser.parse_args().paths:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
