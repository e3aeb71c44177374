"""Reports: one self-contained HTML file about a trace, or about the results of a study."""

from __future__ import annotations

import os

from epur_emu.report import results, trace
from epur_emu.report.page import Page

__all__ = ["Page", "report"]

#: How an HDF5 file begins.
HDF5 = b"\x89HDF\r\n\x1a\n"


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
    return results.page(path) if _is_hdf5(path) else trace.page(path, table, progress)


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as HDF5 does; a trace begins with its seal."""
    try:
        with open(path, "rb") as file:
            return file.read(len(HDF5)) == HDF5
    except OSError:  # the reader tells
        return False
