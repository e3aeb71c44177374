"""Reports: one self-contained HTML file about a trace."""

from __future__ import annotations

import os

from epur_emu.report import trace
from epur_emu.report.page import Page

__all__ = ["Page", "report"]


def report(path: str | os.PathLike[str], table: str = "epur-28nm", progress: bool = False) -> Page:
    """The report of a file that a run left.

    Parameters
    ----------
    path : path
        A trace.
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
    return trace.page(path, table, progress)
