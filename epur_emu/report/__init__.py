"""Reports: one self-contained HTML file about a trace, or about the results of a study."""

from __future__ import annotations

import os

from epur_emu.report import results, trace
from epur_emu.report.page import Page
from epur_emu.study.results import MARK

__all__ = ["Page", "report"]


def report(path: str | os.PathLike[str], table: str = "epur-28nm", progress: bool = False) -> Page:
    """The report of a file that a run left.

    Parameters
    ----------
    path : path
        A trace, or results of a study.
    table : str
        Energy table for a trace, a preset or a file.
    progress : bool
        Show bars on stderr.

    Returns
    -------
    Page
        `Page.save` writes it; `Page.html` gives its text.

    Raises
    ------
    EpurError
        The file is damaged, or matplotlib is missing.
    """
    return results.page(path) if _is_study(path) else trace.page(path, table, progress)


def _is_study(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as results do; all else is left to the trace's reader."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False
