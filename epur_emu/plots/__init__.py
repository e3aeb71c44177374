"""Figures: what every plot shares. Each kind of figure is a module of its own; matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epur_emu.errors import EpurError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers too (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")

#: Suffixes of the files that `save` writes.
SUFFIXES = (".png", ".svg", ".pdf")


def figure(width: float = 7.0, height: float = 4.2, rows: int = 1, columns: int = 1) -> Any:
    """A figure and its axes, without any window.

    Parameters
    ----------
    width, height : float
        Inches.
    rows, columns : int
        Of axes.

    Returns
    -------
    figure, axes : matplotlib Figure, and one Axes or an array of shape (rows, columns)

    Raises
    ------
    EpurError
        matplotlib is missing.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_prop_cycle(color=COLOURS)
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, axis="y", linewidth=0.5, alpha=0.5)
        one.set_axisbelow(True)
    return made, axes if rows * columns > 1 else axes[0, 0]


@contextmanager
def scalable() -> Iterator[None]:
    """Figures that are saved as SVG in this block keep their text as text and are always the same bytes.

    Raises
    ------
    EpurError
        matplotlib is missing.
    """
    with _matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "epur"}):
        yield


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise EpurError(
            "figure", "matplotlib", "is not installed", "pip install 'epur_emu[plot]'"
        ) from None
    return matplotlib


def check(path: str | Path) -> None:
    """Refuse what `save` could not write, before anything is computed for it.

    Raises
    ------
    EpurError
        The suffix is unknown, or matplotlib is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise EpurError(target, "suffix", f"is {target.suffix!r}", f"use {', '.join(SUFFIXES)}")
    _matplotlib()


def save(made: Figure, path: str | Path) -> None:
    """Write a figure; the suffix tells the format.

    Raises
    ------
    EpurError
        The suffix is unknown, or the file can't be written.
    """
    check(path)
    target = Path(path)
    try:
        made.savefig(target, dpi=150)
    except OSError as error:
        raise EpurError(
            target, "file", f"can't be written: {error}", "choose another place"
        ) from error
