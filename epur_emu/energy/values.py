"""Numbers that say where they are from, and the checks on their way in from a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from epur_emu.errors import TableError

#: What is known of a value: stated by its source, a run of a program, our arithmetic, our choice.
STATUSES = ("published", "measured", "derived", "assumed")


@dataclass(frozen=True)
class Value:
    """A number with its unit, where it is from, and how far to trust it (one of `STATUSES`)."""

    value: float
    unit: str
    source: str
    status: str


@dataclass(frozen=True)
class Reader:
    """Checks plain values; `source` names the file in errors."""

    source: str

    def fail(self, field: str, problem: str, remedy: str) -> TableError:
        """The error to raise of a field."""
        return TableError(self.source, field, problem, remedy)

    def mapping(self, plain: Any, field: str) -> Mapping[str, Any]:
        """`plain` if it is a table with any names."""
        if not isinstance(plain, Mapping):
            raise self.fail(field, f"is {plain!r:.60}", "give a table")
        return plain

    def keys(self, plain: Any, field: str, known: set[str]) -> Mapping[str, Any]:
        """`plain` if it is a table with exactly these keys."""
        self.mapping(plain, field)
        for odd, problem in ((known - set(plain), "missing"), (set(plain) - known, "unknown")):
            if odd:
                where = ", ".join(f"{field}.{key}" if field else str(key) for key in sorted(odd))
                remedy = "add it" if problem == "missing" else "remove it"
                raise self.fail(where, f"is {problem}", remedy)
        return cast("Mapping[str, Any]", plain)

    def text(self, plain: Any, field: str) -> str:
        """`plain` if it is a text that is not empty."""
        if not isinstance(plain, str) or not plain:
            raise self.fail(field, f"is {plain!r:.60}", "give a text")
        return plain

    def choice(self, plain: Any, field: str, known: tuple[str, ...]) -> str:
        """`plain` if it is one of these texts."""
        if plain not in known:
            raise self.fail(field, f"is {plain!r:.60}", f"use one of {', '.join(known)}")
        return cast("str", plain)

    def flag(self, plain: Any, field: str) -> bool:
        """`plain` if it is true or false."""
        if not isinstance(plain, bool):
            raise self.fail(field, f"is {plain!r:.60}", "give true or false")
        return plain

    def count(self, plain: Any, field: str) -> int:
        """`plain` if it is an integer from 1."""
        if not isinstance(plain, int) or isinstance(plain, bool) or plain < 1:
            raise self.fail(field, f"is {plain!r:.60}", "give an integer, 1 or more")
        return plain

    def number(self, plain: Any, field: str, positive: bool = False) -> float:
        """`plain` if it is a finite number, 0 or more, or above 0."""
        least = "above 0" if positive else "0 or more"
        if (
            not isinstance(plain, int | float)
            or isinstance(plain, bool)
            or not 0 <= plain <= sys.float_info.max
            or (positive and not plain)
        ):
            raise self.fail(field, f"is {plain!r:.60}", f"give a number, {least}")
        return float(plain)

    def value(self, plain: Any, field: str, positive: bool = False) -> Value:
        """A `Value` from its four fields."""
        given = self.keys(plain, field, {f.name for f in fields(Value)})
        number = self.number(given["value"], f"{field}.value", positive)
        status = self.choice(given["status"], f"{field}.status", STATUSES)
        unit = self.text(given["unit"], f"{field}.unit")
        return Value(number, unit, self.text(given["source"], f"{field}.source"), status)
