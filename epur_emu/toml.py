"""TOML files to plain values, and errors that say what is wrong with them."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from epur_emu.errors import EpurError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Readable(Protocol):
    """A path, or a file of an installed package."""

    def read_text(self, encoding: str | None = None) -> str:
        """The whole text."""
        raise NotImplementedError


def read_toml(path: Readable, error: type[EpurError], remedy: str) -> dict[str, Any]:
    """Read a file.

    Raises
    ------
    error
        It can't be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as problem:
        raise error(str(path), "file", f"can't be read ({problem})", remedy) from problem
