"""Figures of a replay: miss ratio by size, capacity sweep, reuse, DRAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.plots import COLOURS, figure, save
from epur_emu.replay import Result

KIB = 1024

#: Values further apart than this factor are drawn on a logarithmic axis.
WIDE = 20


def label(size: float) -> str:
    """Bytes in short: ``64 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < KIB or unit == "GiB":
            break
        size /= KIB
    return f"{size:.4g} {unit}"


def size_axis(axes: Any, sizes: list[int]) -> None:
    """Make x an axis of bytes, doubling from tick to tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes[:: max(1, -(-len(sizes) // 10))])
    axes.xaxis.set_major_formatter(lambda size, _: label(size))
    axes.minorticks_off()
    axes.tick_params(axis="x", rotation=30)


def miss_ratio(result: Result, path: str | Path) -> None:
    """Miss ratio by size of cache, with the sample's error as a band.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure()
    sizes = [size for size, _ in result.curve or ()]
    ratios = np.array([ratio for _, ratio in result.curve or ()])
    axes.plot(sizes, ratios, marker="o", markersize=3)
    if "error" in result.details:
        error = np.array(result.details["error"])
        axes.fill_between(
            sizes, ratios - error, ratios + error, alpha=0.25, label="2 standard errors"
        )
        axes.legend(frameon=False)
    size_axis(axes, sizes)
    axes.set_ylim(0, 1.02)
    axes.set(xlabel="size", ylabel="miss ratio")
    axes.set_title(
        f"{result.component}: {result.details['policy'].upper()}", loc="left", fontsize=10
    )
    save(made, path)


def capacity(result: Result, path: str | Path) -> None:
    """Bytes fetched again, and energy where the table has it, by size of each buffer.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(height=6.4, rows=2)
    traffic, energy = axes[:, 0]
    sizes = result.details["sizes"]
    drawn: dict[str, str] = {}
    for row in result.details["components"]:
        # The four computation units' buffers of one kind mostly lie on one line.
        key = repr((row["refetch_bytes"], row["energy_pj"]))
        drawn[key] = f"{drawn[key]}, {row['component']}" if key in drawn else row["component"]
    shown = {repr((r["refetch_bytes"], r["energy_pj"])): r for r in result.details["components"]}
    for number, (key, names) in enumerate(drawn.items()):
        style = {"marker": "o", "markersize": 3, "color": COLOURS[number % len(COLOURS)]}
        traffic.plot(sizes, shown[key]["refetch_bytes"], label=names, **style)
        known = [(s, pj) for s, pj in zip(sizes, shown[key]["energy_pj"], strict=True) if pj]
        if known:
            energy.plot([s for s, _ in known], [pj * 1e-6 for _, pj in known], **style)
    for one in (traffic, energy):
        size_axis(one, sizes)
        one.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    traffic.set_yscale("symlog", linthresh=1)
    traffic.set_ylim(bottom=0)
    energy.set_yscale("log")
    traffic.set(ylabel="bytes fetched again")
    traffic.legend(frameon=False, fontsize=8)
    energy.set(xlabel="size of each buffer", ylabel="energy of it and its re-fetches (uJ)")
    save(made, path)


def reuse(result: Result, path: str | Path) -> None:
    """Shares of requests by distance and by time, and the working set over the run.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    made, axes = figure(height=8.0, rows=3)
    rows = [row for row in result.details["components"] if row["requests"]]
    for number, row in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        dash = ("-", "--", ":")[number // len(COLOURS) % 3]
        for one, key in ((axes[0, 0], "distance"), (axes[1, 0], "time")):
            lows = [low for low, _ in row[key]]
            shares = [count / row["requests"] for _, count in row[key]]
            one.plot(lows, shares, dash, marker=".", color=colour, label=row["component"])
        sets = result.arrays[f"working_set_bytes/{row['component']}"]
        cycles = np.arange(sets.size) * result.details["window_cycles"]
        axes[2, 0].step(cycles, sets / KIB, dash, where="post", color=colour)
    for one in axes[:2, 0]:
        one.set_xscale("symlog", base=2, linthresh=1)
        one.set_ylabel("share of requests")
    axes[0, 0].set_xlabel(f"reuse distance (lines of {result.details['line']} bytes)")
    axes[1, 0].set_xlabel("reuse time (cycles)")
    axes[2, 0].set_xlabel("cycle")
    axes[2, 0].set_ylabel("working set (KiB)")
    axes[2, 0].set_yscale("symlog", linthresh=1)
    if rows:
        axes[0, 0].legend(frameon=False, fontsize=7, ncols=2)
    save(made, path)


def dram(result: Result, path: str | Path) -> None:
    """Distribution of latencies, and energy by cause where it is known.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    energy = result.details["energy_pj"]
    made, axes = figure(height=6.4 if energy else 4.2, rows=2 if energy else 1)
    latency = axes[0, 0] if energy else axes
    lower, reach = result.arrays["latency/lower_end_ns"], list[float]()
    for name in ("read", "write"):
        bins = result.arrays[f"latency/{name}"]
        if bins.size:
            sums = np.cumsum(bins) / bins.sum()
            first = int(np.flatnonzero(bins)[0])
            # From 0, so that a single bin shows too.
            steps = np.append(lower[first], lower[first : bins.size])
            latency.step(steps, np.append(0, sums[first:]), where="post", label=f"{name}s")
            reach += [lower[first], lower[bins.size - 1]]
    if reach:
        latency.legend(frameon=False, loc="lower right")
        if max(reach) > WIDE * min(reach):
            latency.set_xscale("log")
    latency.set_ylim(0, 1.02)
    latency.set(xlabel="latency (ns)", ylabel="share of requests")
    latency.set_title(
        f"{result.details['standard']}, {result.details['scheduler']}, "
        f"{result.details['page']} page",
        loc="left", fontsize=10,
    )  # fmt: skip
    if energy:
        parts = {name: pj for name, pj in energy.items() if name != "total"}
        axes[1, 0].barh(
            [name.replace("_", " ") for name in reversed(parts)],
            [pj * 1e-6 for pj in reversed(parts.values())],
        )
        axes[1, 0].grid(visible=False, axis="y")
        axes[1, 0].set_xlabel("energy (uJ)")
    save(made, path)
