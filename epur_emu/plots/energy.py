"""Where a run's energy goes: bars by component, and power over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.energy import EnergyTable, Report, Timeline, timeline
from epur_emu.plots import COLOURS, figure, save
from epur_emu.trace import Trace

#: One colour for each group of components, in every figure; the lowest of a stack first.
GROUP_COLOURS = {
    "static": "0.75", "weights": COLOURS[0], "row": COLOURS[6], "inputs": COLOURS[2],
    "intermediate": COLOURS[5], "dpu": COLOURS[1], "mu": COLOURS[4], "link": COLOURS[7],
    "dram": COLOURS[3],
}  # fmt: skip

#: Prefixes of joule and the power of ten of pJ that each stands for.
_UNITS = ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ"), (1.0, "pJ"))


def plot_energy(trace: Trace, table: EnergyTable, report: Report, path: str | Path) -> None:
    """Draw the energy of each group of components, and power over the run's cycles.

    Parameters
    ----------
    trace : Trace
    table : EnergyTable
    report : Report
        What ``energy(trace, table)`` gave.
    path : path
        Its suffix tells the format.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    TraceError
        The trace has no cycle.
    """
    over_time = timeline(trace, table)
    made, (bars, times) = figure(9.0, 7.0, rows=2)
    bars, times = np.ravel([bars, times])
    draw_bars(bars, report)
    draw_power(times, over_time, report)
    save(made, path)


def draw_power(axes: Any, over_time: Timeline, report: Report) -> None:
    """Power of each group of components over the run's cycles, one upon the other."""
    cycles = over_time.cycles
    bottom = np.zeros(cycles.size - 1)
    for name in GROUP_COLOURS:
        power = over_time.power_mw.get(name, np.zeros(1))
        if not power.any():
            continue
        axes.stairs(
            bottom + power, cycles, baseline=bottom, fill=True, color=GROUP_COLOURS[name],
            label=name, linewidth=0,
        )  # fmt: skip
        bottom = bottom + power
    axes.set_xlim(0, cycles[-1])
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, None)
    axes.set_xlabel(f"cycle   (the run takes {report.seconds * 1e3:.4g} ms)")
    axes.set_ylabel("power (mW)")
    axes.axhline(report.average_mw, color="0.2", linewidth=1, linestyle="--")
    axes.annotate(
        f"average {report.average_mw:.0f} mW", (1, report.average_mw), (0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )


def draw_bars(axes: Any, report: Report) -> None:
    """Bars of dynamic and static energy by group of components, largest first."""
    groups = sorted(report.groups().items(), key=lambda item: item[1].total_pj)
    largest = max((cost.total_pj for _, cost in groups), default=0.0)
    scale, unit = next((u for u in _UNITS if largest >= u[0]), _UNITS[-1])
    dynamic = [cost.dynamic_pj / scale for _, cost in groups]
    static = [cost.static_pj / scale for _, cost in groups]
    places = range(len(groups))
    axes.barh(places, dynamic, color=COLOURS[0], label="dynamic")
    axes.barh(
        places, static, left=dynamic, color=COLOURS[1], hatch="///", edgecolor="white",
        linewidth=0, label="static",
    )  # fmt: skip
    axes.set_yticks(places, [name for name, _ in groups])
    total = report.total_pj or 1.0
    for place, (_, cost) in zip(places, groups, strict=True):
        axes.annotate(
            f"{cost.total_pj / total:.1%}", (cost.total_pj / scale, place), (4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.grid(True, axis="x", linewidth=0.5, alpha=0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"energy ({unit})")
    axes.set_title(f"{report.total_pj / scale:.4g} {unit}, table {report.table}", fontsize=10)
    axes.margins(x=0.08)
    axes.legend(loc="lower right", frameon=False)
