"""The report of a study's results: what each point scored, and what it cost."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from epur_emu.plots import results as figures
from epur_emu.report.page import Column, Page, words
from epur_emu.study.results import Results

#: Rows of a figure that still can be read.
MOST_ROWS = 40

#: What tells points of one model apart.
AXES = ("arithmetic", "accelerator", "dataflow", "table")


def page(path: str | os.PathLike[str]) -> Page:
    """The report of the results in a file.

    Raises
    ------
    StudyError
        The file holds no results, or is damaged.
    EpurError
        matplotlib is missing.
    """
    results = Results.open(path)
    models = list(dict.fromkeys(point["model"] for point in results.points))
    made = Page(
        f"Study {results.name}", results.summary.strip() or "Points of a study.", results.to_dict()
    )
    if not results.complete:
        made.text(
            f"The study was interrupted: {len(results.points)} of its {results.planned} points are here.",
            "warning",
        )
    made.key(_key(results, models))
    for model in models:
        _model(made, model, [point for point in results.points if point["model"] == model])
    if results.searches:
        _searches(made, results)
    _points(made, results.points)
    _reproduce(made, path, results)
    return made


def _key(results: Results, models: Sequence[str]) -> list[tuple[str, str, str]]:
    failed = sum(point["problem"] is not None for point in results.points)
    remark = f"of {results.planned} planned"
    if failed:
        remark += f", {failed} without a result"
    counts = {axis: len({point[axis] for point in results.points}) for axis in AXES}
    return [
        ("points", f"{len(results.points):,}", remark),
        ("models", f"{len(models)}", ", ".join(models)[:60]),
        *((f"{axis}s", f"{counts[axis]}", "") for axis in AXES if counts[axis] > 1),
        ("made", results.made or "-", results.software.get("epur_emu", "")),
    ]


def _names(points: Sequence[dict[str, Any]], axes: Sequence[str] = AXES) -> list[str]:
    """A name for each point: what differs among them."""
    differ = [axis for axis in axes if len({point[axis] for point in points}) > 1]
    return [
        ", ".join(dict.fromkeys(str(point[axis]) for axis in differ or AXES[:1]))
        for point in points
    ]


def _model(made: Page, model: str, points: Sequence[dict[str, Any]]) -> None:
    made.section(model)
    names = dict(zip(map(id, points), _names(points), strict=True))

    def named(some: Sequence[dict[str, Any]]) -> list[str]:
        return [names[id(point)] for point in some]

    scored = [point for point in points if point["emulated"] is not None]
    priced = [point for point in scored if point["energy_pj"]]
    if priced:
        costs = [point["energy_pj"]["total"] * 1e-6 for point in priced]
        _pareto(made, model, priced, costs, "energy of an item (uJ)")
    weighed = [point for point in scored if point["bits"].get("weight")]
    if weighed:
        bits = [point["bits"]["weight"] for point in weighed]
        _pareto(made, model, weighed, bits, "bits of a weight (mean)")
    for kind, rows, draw, caption in (
        ("errors", [p for p in points if p["layers"]], figures.layer_errors,
         "largest error of each layer's outputs, given float32's inputs"),
        ("energy", [p for p in points if p["energy_pj"]], figures.energies,
         "energy of an item by component"),
    ):  # fmt: skip
        if not rows:
            continue
        shown = rows[:MOST_ROWS]
        more = f" (the first {MOST_ROWS} of {len(rows)} points)" if len(rows) > MOST_ROWS else ""
        made.figure(
            f"{model} {kind}", f"{model}: {caption}{more}", partial(draw, shown, named(shown))
        )


def _pareto(
    made: Page, model: str, points: Sequence[dict[str, Any]], costs: Sequence[float], cost: str
) -> None:
    wide = max(costs) > 10 * min(costs) > 0
    # Colours tell the dataflows apart.
    labels = _names(points, [axis for axis in AXES if axis != "dataflow"])
    draw = partial(figures.pareto, points, costs, cost, labels, logarithmic=wide)
    made.figure(f"{model} metric, {cost}", f"{model}: metric against {cost}", draw)


def _searches(made: Page, results: Results) -> None:
    made.section("Searches")
    rows = []
    for search in results.searches:
        place = search.get("chosen")
        point = results.points[place] if isinstance(place, int) else None
        rows.append(
            (
                search.get("model"), search.get("accelerator"), search.get("loss"),
                search.get("evaluations"), point and point["arithmetic"],
                point and point["emulated"], search.get("weight_bits"),
            )
        )  # fmt: skip
    made.table(
        [
            words("model"), words("accelerator"), Column("loss allowed", text="{:g}".format),
            Column("evaluations"), words("chosen"), Column("metric", text="{:.4g}".format),
            Column("bits of all weights"),
        ],
        rows,
    )  # fmt: skip


def _points(made: Page, points: Sequence[dict[str, Any]]) -> None:
    made.section("All points")
    made.text("A click on a column's head sorts by it.", "note")
    with_problems = any(point["problem"] for point in points)
    columns = [
        words("model"), *(words(axis) for axis in AXES), words("metric"),
        *(Column(head, text="{:.4g}".format) for head in ("float32", "emulated", "loss")),
        Column("items"), Column("same outputs"), Column("bits of a weight", text="{:.4g}".format),
        Column("cycles of an item", text="{:,.0f}".format), Column("time (us)", text="{:,.4g}".format),
        Column("energy (uJ)", text="{:,.4g}".format), Column("average (mW)", text="{:,.4g}".format),
        Column("peak (mW)", text="{:,.4g}".format), Column("area (mm2)", text="{:.4g}".format),
        words("stage"),
    ]  # fmt: skip
    rows = []
    for point in points:
        seconds, energy = point["seconds"], point["energy_pj"]
        rows.append(
            [
                point["model"], *(point[axis] for axis in AXES), point["metric"],
                point["float32"], point["emulated"], point["loss"], point["n"],
                point["same_outputs"], point["bits"].get("weight"), point["cycles"],
                None if seconds is None else seconds * 1e6,
                energy["total"] * 1e-6 if energy else None, point["average_mw"], point["peak_mw"],
                point["area_mm2"], point["stage"] + (", chosen" if point["chosen"] else ""),
            ]
        )  # fmt: skip
        if with_problems:
            rows[-1].append(point["problem"])
    made.table([*columns, words("problem")] if with_problems else columns, rows)


def _reproduce(made: Page, path: str | os.PathLike[str], results: Results) -> None:
    made.section("How to reproduce")
    versions = ", ".join(f"{name} {version}" for name, version in results.software.items())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    made.text(f"Made {results.made or 'at an unknown date'} with {versions or 'unknown versions'}.")
    made.text(
        f"Results made again from the same study have the digest {results.digest}, "
        f"which leaves out date and versions. The file's SHA-256 is {digest}."
    )
    quoted = shlex.quote(os.fspath(path))
    made.code(f"epur sweep study.toml -o {quoted}\nepur report {quoted} -o report.html")
    made.code(results.study, "study.toml, whole")
