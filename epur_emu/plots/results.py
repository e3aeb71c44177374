"""Figures of a study's results: Pareto fronts, errors of layers, energy of points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.plots import COLOURS, figure, save
from epur_emu.plots.energy import GROUP_COLOURS

MARKERS = "os^Dvx*P"
#: Names on a front that still can be read.
NAMED = 10
#: Columns of a heat map whose cells still hold a number.
FEW = 10
#: Black and white that stay so on a page that is dark.
BLACK, WHITE = "#000001", "#fffffe"

Point = Mapping[str, Any]


def front(costs: Sequence[float], merits: Sequence[float]) -> list[int]:
    """The Pareto front: places of what nothing else beats, by rising cost and rising merit.

    Of equals in both the first stands for all.
    """
    order = sorted(range(len(costs)), key=lambda n: (costs[n], -merits[n], n))
    best, found = -math.inf, []
    for n in order:
        if merits[n] > best:
            best = merits[n]
            found.append(n)
    return found


def pareto(
    points: Sequence[Point], costs: Sequence[float], xlabel: str, labels: Sequence[str],
    path: str | Path, logarithmic: bool = False,
) -> None:  # fmt: skip
    """Metric against a cost; the front is a line, and its points have names.

    Parameters
    ----------
    points : sequence of points
        Rows of `Results.points` of one model, each with a metric; at least one.
    costs : sequence of float
        Of each point.
    xlabel : str
        What the cost is, with its unit.
    labels : sequence of str
        Names of the points.
    path : path
        Its suffix tells the format.
    logarithmic : bool
        Whether the cost's axis is.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    first = points[0]
    sign = 1.0 if first["higher_is_better"] else -1.0
    values = [point["emulated"] for point in points]
    made, axes = figure(5.6, 4.1)
    groups = list(dict.fromkeys(point["dataflow"] for point in points))
    for number, group in enumerate(groups):
        own = [n for n, point in enumerate(points) if point["dataflow"] == group]
        axes.scatter(
            [costs[n] for n in own], [values[n] for n in own], label=group, s=26, zorder=3,
            color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
        )  # fmt: skip
    best = front(costs, [sign * value for value in values])
    axes.step(
        [costs[n] for n in best], [values[n] for n in best], where="post", color="0.5", linewidth=1,
        label="Pareto front",
    )  # fmt: skip
    if first["float32"] is not None:
        axes.axhline(first["float32"], color="0.5", linewidth=1, linestyle="--", label="float32")
    # Left of a front's point, on the better side, there is nothing.
    for n in best[-NAMED:]:
        axes.annotate(
            labels[n], (costs[n], values[n]), (-4, 3 * sign), textcoords="offset points", fontsize=8,
            ha="right", va="bottom" if sign > 0 else "top",
        )  # fmt: skip
    if logarithmic:
        axes.set_xscale("log")
    axes.margins(x=0.15, y=0.12)
    better = "higher" if first["higher_is_better"] else "lower"
    axes.set(xlabel=xlabel, ylabel=f"{first['metric']} ({better} is better)")
    axes.grid(True, axis="both", linewidth=0.5, alpha=0.5)
    made.legend(frameon=False, loc="outside upper left", ncols=2, fontsize=8)
    save(made, path)


def layer_errors(points: Sequence[Point], labels: Sequence[str], path: str | Path) -> None:
    """Largest error of each layer's outputs: a row for each point, a column for each layer.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    layers = list(dict.fromkeys(layer["name"] for point in points for layer in point["layers"]))
    errors = np.full((len(points), len(layers)), np.nan)
    for row, point in enumerate(points):
        for layer in point["layers"]:
            if layer["max_abs_error"] is not None:
                errors[row, layers.index(layer["name"])] = layer["max_abs_error"]
    made, axes = figure(2.6 + 0.55 * len(layers) + 1.6, 0.26 * len(points) + 1.9)
    above = errors[errors > 0]
    low, high = (
        (math.floor(np.log10(above.min())), math.ceil(np.log10(above.max())))
        if len(above)
        else (-1, 0)
    )
    high = max(high, low + 1)
    bounds = 10.0 ** np.arange(low, high + 0.25, 0.5 if high - low < 7 else 1.0)
    colours = colormaps["cividis"].resampled(len(bounds) - 1)
    shown = axes.pcolormesh(
        np.ma.masked_invalid(np.maximum(errors, bounds[0])), cmap=colours,
        norm=BoundaryNorm(bounds, len(bounds) - 1), edgecolors="none",
    )  # fmt: skip
    if len(layers) <= FEW:
        middle = math.sqrt(bounds[0] * bounds[-1])
        for (row, column), error in np.ndenumerate(errors):
            if math.isfinite(error):
                axes.text(
                    column + 0.5, row + 0.5, f"{error:.0e}".replace("e-0", "e-") if error else "0",
                    ha="center", va="center", fontsize=7, color=WHITE if error < middle else BLACK,
                )  # fmt: skip
    axes.set_xticks(np.arange(len(layers)) + 0.5, layers, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(np.arange(len(points)) + 0.5, labels, fontsize=8)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = made.colorbar(shown, ax=axes, ticks=bounds[:: max(1, len(bounds) // 8)], format="%.0e")
    bar.set_label("largest error of an output", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save(made, path)


def energies(points: Sequence[Point], labels: Sequence[str], path: str | Path) -> None:
    """Energy of an item by component, a bar for each point; the points have an energy.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    costs = [point["energy_pj"]["by_component"] for point in points]
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for row, by_component in enumerate(costs):
        for name, cost in by_component.items():
            group = sums.setdefault(name.rpartition(".")[2], np.zeros(len(points)))
            group[row] += (cost["dynamic"] + cost["static"]) * 1e-6
    made, axes = figure(5.6, 0.26 * len(points) + 1.6)
    left = np.zeros(len(points))
    order = sorted(sums, key=lambda name: -float(sums[name].sum()))
    for number, name in enumerate(order):
        axes.barh(
            range(len(points)), sums[name], left=left, height=0.75, label=name,
            color=GROUP_COLOURS.get(name, COLOURS[number % len(COLOURS)]),
        )  # fmt: skip
        left += sums[name]
    axes.set_yticks(range(len(points)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("energy of an item (uJ)")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", linewidth=0.5, alpha=0.5)
    made.legend(frameon=False, loc="outside upper left", ncols=4, fontsize=8)
    save(made, path)
