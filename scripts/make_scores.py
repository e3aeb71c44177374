"""Measure all models' scores anew; write them into their cards and into the READMEs' tables.

    EPUR_DATA=/path/to/data python scripts/make_scores.py [--jobs N] [MODEL ...]

Each run scores float32 beside an arithmetic on an accelerator. The tables are made from all cards,
so that one model can be measured alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
from pathlib import Path
from typing import Any

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, arithmetic
from epur_emu.checkpoints.folder import CARD, read_card, to_toml
from epur_emu.comparison import evaluate, load_model
from epur_emu.errors import EpurError
from epur_emu.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
#: Accelerator, arithmetic, and the table's heading of each run.
RUNS = (
    ("epur", "epur-fp16", "E-PUR, fp16"),
    ("epur", "epur-int8", "E-PUR, int8"),
    ("epur-mwl", "epur-fp16", "MWL, fp16, sums in 8 bits"),
    ("epur-mwl", "epur-fp16+fp16", "MWL, fp16, sums kept"),
)
TABLES = (ROOT / "README.md", ROOT / "models" / "README.md")
BEGIN, END = "<!-- scores, made by scripts/make_scores.py -->", "<!-- end of scores -->"


def measure(folder: Path, jobs: int) -> None:
    """Score one model in all runs; the card keeps what it says of the data.

    The arithmetics on the accelerator ``epur`` stand in the table ``score`` itself, those on another
    one in a table of its name; ``same`` counts the outputs that equal float32's.
    """
    card = read_card(folder)
    score: dict[str, Any] = {
        key: card["score"][key] for key in ("metric", "data") if key in card.get("score", {})
    }
    for machine, name, _ in RUNS:
        if name.partition("+")[0] not in ARITHMETICS:
            continue
        found = evaluate(
            load_model(folder),
            arithmetic(name),
            Accelerator.load(machine),
            jobs=jobs,
            progress=True,
        ).to_dict()
        score |= {
            "metric": found["metric"],
            "beam": found["beam"],
            "n": found["n"],
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "float32": round(found["float32"], 2),
        }
        place = score if machine == "epur" else score.setdefault(machine, {})
        place[name] = round(found["emulated"], 2)
        place.setdefault("same", {})[name] = found["same_outputs"]
        print(f"{folder.name}, {machine}, {name}: {found['metric']} {place[name]:.2f}", flush=True)
    (folder / CARD).write_text(to_toml({**card, "score": score}), encoding="utf-8")


def table(cards: list[dict[str, Any]]) -> str:
    """A line for each model, a column for each run; in brackets the outputs equal to float32's."""
    heads = ["model", "metric", "items", "float32", *(head for _, _, head in RUNS), "measured"]
    lines = [heads, ["---"] * len(heads)]
    for card in cards:
        score = card["score"]
        items = f"{score['n']:,}" if "n" in score else ""
        cells = [card["name"], score["metric"], items, f"{score['float32']:.2f}"]
        for machine, name, _ in RUNS:
            place = score if machine == "epur" else score.get(machine, {})
            same = place.get("same", {}).get(name)
            value = f"{place[name]:.2f}" if name in place else ""
            cells.append(value if same is None else f"{value} ({same:,})")
        lines.append([*cells, score.get("date", "")])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_table(path: Path, text: str) -> None:
    """Replace what stands between the marks of a file."""
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(old):
        raise EpurError(path, "marks", "are missing", f"put {BEGIN} and {END} around the table")
    new = pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", old)
    path.write_text(new, encoding="utf-8")


def main() -> None:
    """Measure, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="by default all that have a task")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tables", action="store_true", help="only make the tables from the cards")
    args = parser.parse_args()
    folders = {
        path.parent.name: path.parent for path in sorted((ROOT / "models").glob(f"*/{CARD}"))
    }
    if unknown := set(args.models) - set(folders):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(folders)}")
    failed = False
    for name, folder in folders.items():
        wanted = name in args.models or not args.models
        if wanted and not args.tables and read_card(folder)["task"] in TASKS:
            try:
                measure(folder, args.jobs)
            except EpurError as error:
                failed = True
                print(f"{name}: {error}", file=sys.stderr)
    cards = [read_card(folder) for folder in folders.values()]
    text = table([card for card in cards if "float32" in card.get("score", {})])
    for path in TABLES:
        write_table(path, text)
    sys.exit(failed)


if __name__ == "__main__":
    main()
