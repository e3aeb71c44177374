"""The one base error: each error names the file (or source), the field and the remedy."""

from __future__ import annotations

import os


class EpurError(Exception):
    """Bad input, told in one line.

    Parameters
    ----------
    source : str or path
        The file, or the argument, at fault.
    field : str
        The place in it.
    problem : str
        What is wrong there, values included.
    remedy : str
        What the user can do.
    """

    def __init__(
        self, source: str | os.PathLike[str], field: str, problem: str, remedy: str
    ) -> None:
        self.source = str(source)
        self.field = field
        self.problem = problem
        self.remedy = remedy
        where = f"{self.source}: {field}" if field else self.source
        super().__init__(" ".join(f"{where} {problem}; {remedy}".split()))

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.source, self.field, self.problem, self.remedy)


class FormatError(EpurError):
    """A number format's name or parameters are not valid."""


class NetworkError(EpurError):
    """A network's weights or shapes are not valid."""


class AcceleratorError(EpurError):
    """An accelerator's or an arithmetic's parameters are not valid."""


class TraceError(EpurError):
    """A trace is damaged, incomplete or of an unknown version."""


class TableError(EpurError):
    """An energy table is damaged or lacks a component."""


class ModelError(EpurError):
    """A model folder is missing, unknown or damaged."""


class StudyError(EpurError):
    """A study file can't be used, or its results are damaged or of another study."""
