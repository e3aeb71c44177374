"""The paper's figures beside ours: bars of (ours / published)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epur_emu.paper import Figure
from epur_emu.plots import COLOURS, figure, save


def plot_paper(figures: Sequence[Figure], path: str | Path) -> None:
    """Draw each published figure's ratio on a logarithmic axis; a band marks 20 % either way.

    Parameters
    ----------
    figures : sequence of Figure
        Those without a published value are left out.
    path : path
        Its suffix tells the format.

    Raises
    ------
    EpurError
        matplotlib is missing, or the file can't be written.
    """
    shown = [f for f in figures if f.published and f.ours]
    made, axes = figure(9.0, 0.32 * len(shown) + 1.2)
    places = range(len(shown))[::-1]
    ratios = [(f.ours or 0.0) / (f.published or 1.0) for f in shown]
    colours = [COLOURS[2] if abs(f.relative or 0.0) <= 0.2 else COLOURS[3] for f in shown]
    axes.axvspan(0.8, 1.2, color="0.9", zorder=0)
    axes.axvline(1.0, color="0.3", linewidth=1)
    faces = [c if c == COLOURS[2] else "white" for c in colours]
    axes.scatter(ratios, places, color=faces, edgecolors=colours, linewidths=1.8, zorder=3)
    axes.hlines(places, 1.0, ratios, color=colours, linewidth=2)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 0.8, 1.0, 1.2, 2.0, 5.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(min(0.45, *ratios) * 0.9, max(2.2, *ratios) * 1.1)
    axes.minorticks_off()
    axes.set_yticks(list(places), [f"{f.name}, {f.network}, {f.dataflow}" for f in shown])
    axes.set_xlabel("ours / published")
    note = "Grey: within 20 %. Filled: within it, or a published bound is kept."
    made.supxlabel(note, fontsize=9)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.grid(True, axis="x", linewidth=0.5, alpha=0.5)
    save(made, path)
