"""Figures of reports: energy by component, phases over time, miss ratios of several components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from epur_emu.energy import EnergyTable, Report
from epur_emu.energy import timeline as over_time
from epur_emu.energy.report import PhaseCost
from epur_emu.plots import COLOURS, figure, save
from epur_emu.plots.energy import draw_bars, draw_power
from epur_emu.plots.replay import size_axis
from epur_emu.replay import Result
from epur_emu.streams import KINDS, Phase
from epur_emu.trace import Trace

#: Bars of a timeline that lie closer than this share of the run are drawn as one.
CLOSE = 1 / 2000


def energy_bars(report: Report, path: str | Path) -> None:
    """Dynamic and static energy of each group of components.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(5.6, 0.36 * len(report.groups()) + 1.1)
    draw_bars(axes, report)
    save(made, path)


def power(trace: Trace, table: EnergyTable, report: Report, path: str | Path) -> None:
    """Power of each group of components over a run that has cycles.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(10.0, 3.4)
    draw_power(axes, over_time(trace, table), report)
    save(made, path)


def phase_bars(phases: Sequence[PhaseCost], path: str | Path) -> None:
    """Dynamic energy of each layer, by kind of phase.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    layers = list(dict.fromkeys(phase.layer or "(events)" for phase in phases))
    kinds = list(dict.fromkeys(phase.kind for phase in phases))
    sums = np.zeros((len(kinds), len(layers)))
    for phase in phases:
        place = kinds.index(phase.kind), layers.index(phase.layer or "(events)")
        sums[place] += phase.dynamic_pj * 1e-6
    made, axes = figure(5.6, 0.36 * len(layers) + 1.1)
    left = np.zeros(len(layers))
    for kind, values in zip(kinds, sums, strict=True):
        axes.barh(layers, values, left=left, label=kind, color=_colour(kind), height=0.7)
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("dynamic energy (uJ)")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", linewidth=0.5, alpha=0.5)
    made.legend(frameon=False, loc="outside upper left", ncols=len(kinds), fontsize=9)
    save(made, path)


def _colour(kind: str) -> str:
    return COLOURS[(*KINDS, "events").index(kind)]


def timeline(phases: Sequence[Phase], clock_hz: float | None, path: str | Path) -> None:
    """When each layer's phases run.

    Parameters
    ----------
    phases : sequence of Phase
    clock_hz : float or None
        Cycles of a second; None if it is not known, and time is in cycles.
    path : path
        Its suffix tells the format.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    layers = list(dict.fromkeys(phase.layer for phase in phases if phase.cycles))
    kinds = [kind for kind in KINDS if any(phase.kind == kind for phase in phases)]
    from matplotlib.patches import Patch

    made, axes = figure(10.0, 0.5 * len(layers) + 1.3)
    end = max((phase.first_cycle + phase.cycles for phase in phases), default=1)
    unit, scale = _unit(end, clock_hz)
    height = 0.84 / max(len(kinds), 1)
    for row, layer in enumerate(layers):
        for place, kind in enumerate(kinds):
            spans = [
                (phase.first_cycle, phase.first_cycle + phase.cycles)
                for phase in phases
                if phase.layer == layer and phase.kind == kind and phase.cycles
            ]
            axes.broken_barh(
                [(a * scale, (b - a) * scale) for a, b in _joined(spans, end * CLOSE)],
                (row - 0.42 + place * height, height),
                color=_colour(kind), linewidth=0,
            )  # fmt: skip
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(0, end * scale)
    axes.set_xlabel(f"time ({unit})")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", linewidth=0.5, alpha=0.5)
    made.legend(
        [Patch(color=_colour(kind)) for kind in kinds], kinds,
        frameon=False, loc="outside upper left", ncols=len(KINDS),
    )  # fmt: skip
    save(made, path)


def _unit(cycles: int, clock_hz: float | None) -> tuple[str, float]:
    """A unit of time for a run, and how many of it a cycle takes."""
    if clock_hz is None:
        return "cycles", 1.0
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if cycles / clock_hz * scale >= 1:
            return unit, scale / clock_hz
    return "ns", 1e9 / clock_hz


def _joined(spans: Sequence[tuple[int, int]], gap: float) -> list[tuple[int, int]]:
    """Spans in order; those that overlap, or lie closer than `gap`, as one."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and first - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((first, end))
    return joined


def miss_ratios(results: Mapping[str, Result], path: str | Path) -> None:
    """Miss ratio by size of an LRU cache, one line for each component.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(5.6, 3.9)
    markers = "os^Dvx*P"
    for number, (name, result) in enumerate(results.items()):
        curve = result.curve or ()
        axes.plot(
            [size for size, _ in curve], [ratio for _, ratio in curve], label=name,
            marker=markers[number % len(markers)], markersize=4, color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    sizes = sorted({size for result in results.values() for size, _ in result.curve or ()})
    size_axis(axes, sizes)
    axes.set_ylim(0, 1.05)
    axes.set(xlabel="size of an LRU cache", ylabel="miss ratio")
    axes.legend(frameon=False, fontsize=9)
    save(made, path)


def refetches(result: Result, path: str | Path) -> None:
    """Share of each kind of buffer's bytes that is fetched again, by the buffer's size.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(5.6, 3.9)
    sizes = result.details["sizes"]
    lines: dict[tuple[int, ...], list[str]] = {}
    for row in result.details["components"]:
        # The computation units' buffers of one kind mostly lie on one line.
        if any(row["refetch_bytes"]):
            lines.setdefault(tuple(row["refetch_bytes"]), []).append(row["component"])
    for number, (values, names) in enumerate(lines.items()):
        axes.plot(
            sizes, [value / 1e6 for value in values], label=_names(names), marker="os^Dvx*P"[number % 8],
            markersize=4, color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    size_axis(axes, sizes)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="size of each buffer", ylabel="fetched again (MB)")
    axes.legend(frameon=False, fontsize=9)
    save(made, path)


def _names(names: Sequence[str]) -> str:
    """``cu.*.weights`` for the four computation units' buffers of one kind."""
    kinds = {name.rpartition(".")[2] for name in names}
    return f"cu.*.{kinds.pop()}" if len(names) > 1 and len(kinds) == 1 else ", ".join(names)
