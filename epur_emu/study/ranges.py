"""Texts that stand for several: ``e5m{1..10}``, ``{fp16,bf16}``, and names of what varies together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from epur_emu.errors import StudyError

#: Most texts, or tables of fields, that one entry may stand for.
MOST = 100_000

_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.(\d{1,9}))?")


def expand(text: str, where: str = "text") -> list[str]:
    """All texts that a text with braces stands for, the last brace running fastest.

    ``{A..B}`` counts from A to B, ``{A..B..S}`` in steps of S; ``{x,y}`` takes one after the other.

    Raises
    ------
    StudyError
        A brace is not closed or holds no range, or there are too many.
    """
    parts = _GROUP.split(text)
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise StudyError(
            "study", where, f"is {text!r:.60}", "close each brace, without another in it"
        )
    choices = [
        _choices(part, text, where) if place % 2 else [part] for place, part in enumerate(parts)
    ]
    return ["".join(chosen) for chosen in _product(choices, where)]


def _choices(inside: str, text: str, where: str) -> list[str]:
    if "," in inside:
        return [part.strip() for part in inside.split(",")]
    match = _RANGE.fullmatch(inside.strip())
    if match is None:
        raise StudyError(
            "study", where, f"has {{{inside:.40}}} in {text!r:.60}", "write {1..10} or {fp16,bf16}"
        )
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if not step or abs(last - first) // step >= MOST:
        raise StudyError("study", where, f"has the range {{{inside}}}", f"give 1 to {MOST} values")
    way = step if last >= first else -step
    return [str(n) for n in range(first, last + (1 if way > 0 else -1), way)]


def _product(choices: list[list[Any]], where: str) -> Iterable[tuple[Any, ...]]:
    count = 1
    for values in choices:
        count *= len(values)
    if count > MOST:
        raise StudyError("study", where, f"stands for {count} entries", f"give at most {MOST}")
    return itertools.product(*choices)


def tables(plain: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """All tables that a table of fields stands for.

    Each text is expanded, each list (but ``overrides``, whose tables are expanded inside) holds
    alternatives; all combinations are made. ``vary = {n = "{2..8}"}`` names what varies together:
    ``{n}`` in any text becomes the same value throughout. ``{n}`` or ``{weight}`` in the field
    ``name`` is what has been chosen there.

    Raises
    ------
    StudyError
        A text or list can't be expanded, or there are too many combinations.
    """
    given = dict(plain)
    vary, name = given.pop("vary", {}), given.pop("name", None)
    if not isinstance(vary, Mapping):
        raise StudyError("study", f"{where}.vary", f"is {vary!r:.40}", 'write {n = "{2..8}"}')
    values = [_alternatives(each, f"{where}.vary.{key}") for key, each in vary.items()]
    out: list[dict[str, Any]] = []
    for chosen in _product(values, where):
        bound = {f"{{{key}}}": str(value) for key, value in zip(vary, chosen, strict=True)}
        for fields in _fields(_bind(given, bound), where):
            if name is not None:
                fields["name"] = _bind(
                    name, bound | {f"{{{k}}}": str(v) for k, v in fields.items()}
                )
            out.append(fields)
        if len(out) > MOST:
            raise StudyError("study", where, "stands for too many", f"give at most {MOST}")
    return out


def _fields(plain: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    values = [
        _alternatives(value, f"{where}.{name}", name == "overrides")
        for name, value in plain.items()
    ]
    for chosen in _product(values, where):
        yield dict(zip(plain, chosen, strict=True))


def _alternatives(value: Any, where: str, whole: bool = False) -> list[Any]:
    """Values that one value of a TOML file stands for."""
    if isinstance(value, str):
        return list(expand(value, where))
    if isinstance(value, list) and whole:
        inner = [
            list(_fields(each, where))
            if isinstance(each, Mapping) else [each] for each in value
        ]  # fmt: skip
        return [list(chosen) for chosen in _product(inner, where)]
    if isinstance(value, list):
        found = [one for each in value for one in _alternatives(each, where)]
        if not found:
            raise StudyError("study", where, "is empty", "give at least one value")
        return found
    return [value]


def _bind(value: Any, bound: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in bound.items():
            value = value.replace(name, text)
        return value
    if isinstance(value, list):
        return [_bind(each, bound) for each in value]
    if isinstance(value, Mapping):
        return {key: _bind(each, bound) for key, each in value.items()}
    return value
