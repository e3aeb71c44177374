"""Run the studies in ``studies/``, and write what they find into docs/studies.md.

    EPUR_DATA=/path/to/data python scripts/make_studies.py [--jobs N] [--results DIR] [STUDY ...]

Results files that are complete and of the same study are not made again; interrupted ones go on.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from epur_emu.cli.shared import si
from epur_emu.errors import EpurError
from epur_emu.study import Results, Study, study

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "studies.md"
Row = dict[str, Any]


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash; no negative zero."""
    return "-" if value is None else format(round(value, 6) + 0.0, form)


def energy(point: Row | None) -> str:
    """Of an item, with its unit."""
    if point is None or point["energy_pj"] is None:
        return "-"
    return si(point["energy_pj"]["total"] * 1e-12, "J").replace("u", "µ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def models(done: Results) -> list[str]:
    """Models in their order."""
    return list(dict.fromkeys(point["model"] for point in done.points))


def by_model(done: Results, labels: Callable[[Row], list[str]], cells: Callable[[Row], list[str]],
             first: Sequence[str], heads: Callable[[Row], list[str]]) -> str:  # fmt: skip
    """A row for each arithmetic, some columns for each model."""
    names = models(done)
    found: dict[str, dict[str, Row]] = {}
    for point in done.points:
        found.setdefault(point["arithmetic"], {})[point["model"]] = point
    one = next(iter(found.values()))
    rows = [
        [*labels(next(iter(own.values()))), *(c for name in names for c in cells(own[name]))]
        for own in found.values()
    ]
    return table([*first, *(h for name in names for h in heads(one[name]))], rows)


def precision(done: Results) -> str:
    """Metric and energy of each format."""
    return by_model(
        done,
        lambda p: [p["arithmetic"], number(p["bits"]["weight"], "g")],
        lambda p: [number(p["emulated"]), energy(p)],
        ["arithmetic", "bits of a weight"],
        lambda p: [f"{p['model']}: {p['metric']} (float32 {number(p['float32'])})", "energy"],
    )


def partial_sums(done: Results) -> str:
    """Metric, outputs that equal float32's, and energy, for each width of a partial sum."""

    def heads(p: Row) -> list[str]:
        if p["metric"] is None:
            return [f"{p['model']}: energy"]
        return [
            f"{p['model']}: {p['metric']} (float32 {number(p['float32'])})",
            "same outputs",
            "energy",
        ]

    def cells(p: Row) -> list[str]:
        if p["metric"] is None:
            return [energy(p)]
        return [number(p["emulated"]), f"{p['same_outputs']} of {p['n']}", energy(p)]

    return by_model(
        done,
        lambda p: [p["arithmetic"].partition("+")[2] or "int8"],
        cells,
        ["partial sums"],
        heads,
    )


def buffers(done: Results) -> str:
    """For each model and size: time, energy and DRAM traffic on both machines."""
    sizes = {n: m["weight_buffer_bytes"] for n, m in done.accelerators.items()}
    found = {(p["model"], p["dataflow"], sizes[p["accelerator"]]): p for p in done.points}
    rows = []
    for model in models(done):
        for size in sorted(set(sizes.values())):
            row = [model, f"{size >> 10:,} KiB"]
            for dataflow in ("epur", "epur-mwl"):
                p = found[model, dataflow, size]
                dram = p["trace"] and p["trace"]["by_component"]["dram"]["bytes"]
                if dram is None:
                    row += ["does not fit", "", ""]
                    continue
                time = si(p["seconds"], "s").replace("u", "µ")
                row += [time, energy(p), f"{dram / 1e6:.2f} MB"]
            rows.append(row)
    heads = [f"{name}: {what}" for name in ("E-PUR", "MWL") for what in ("time", "energy", "DRAM")]
    return table(["model", "weight buffer, each of four", *heads], rows)


def mixed(done: Results) -> str:
    """What each search ended in."""
    rows = []
    for found in done.searches:
        formats = found["formats"]
        width = {
            name: form.removeprefix("int").removesuffix("-row") for name, form in formats.items()
        }
        saved = "-"
        if found["chosen"] is not None:
            saved = f"{100 * (1 - found['weight_bits'] / found['uniform_bits']):.0f} %"
        rows.append(
            [
                found["model"], f"{found['metric']} {number(found['float32'])}",
                number(found["loss"]), str(found["evaluations"]), str(found["uniform"]),
                ", ".join(f"{name} {n}" for name, n in width.items()),
                "-" if found["weight_bits"] is None else f"{found['weight_bits'] / 8e6:.3f} MB", saved,
            ]
        )  # fmt: skip
    return table(
        ["model", "float32", "loss", "evaluations", "one format everywhere", "bits of each pass",
         "weights", "less than one format"], rows,
    )  # fmt: skip


#: How the results of each study are shown.
SHOWN: dict[str, Callable[[Results], str]] = {
    "precision": precision,
    "buffers": buffers,
    "partial-sums": partial_sums,
    "mixed": mixed,
}


def problems(done: Results) -> str:
    """Why points have no result, where it is not that something does not fit."""
    told = {p["problem"] for p in done.points if p["problem"] and "holds" not in p["problem"]}
    return "".join(f"\n\n{problem}" for problem in sorted(told))


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", help="by default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "studies")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(SHOWN):
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(SHOWN)}")
    args.results.mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text(encoding="utf-8")
    for name in args.studies or SHOWN:
        plan = Study.load(ROOT / "studies" / f"{name}.toml")
        begin = time.perf_counter()
        try:
            done = study(
                plan, args.results / f"{name}.h5", jobs=args.jobs, resume=True,
                search=plan.search is not None, progress=True,
            )  # fmt: skip
        except EpurError as error:
            sys.exit(f"{name}: {error}")
        print(f"{name}: {len(done.points)} points, {time.perf_counter() - begin:.0f} s", flush=True)
        marks = f"<!-- {name}, made by scripts/make_studies.py -->", f"<!-- end of {name} -->"
        made = f"Made on {done.made} with epur_emu {done.software['epur_emu']}: {len(done.points)} points."
        text = f"{marks[0]}\n\n{made}\n\n{SHOWN[name](done)}{problems(done)}\n\n{marks[1]}"
        pattern = f"{re.escape(marks[0])}.*?{re.escape(marks[1])}"
        place = re.search(pattern, page, re.DOTALL)
        if not place:
            sys.exit(f"{PAGE}: the marks of {name} are missing; put {' and '.join(marks)} there")
        page = page[: place.start()] + text + page[place.end() :]
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
