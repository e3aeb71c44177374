"""TOML files to plain values, and errors that say what is wrong with them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
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


@dataclass(frozen=True)
class Presets:
    """TOML files of one folder of the package's data; users give their own by path.

    Parameters
    ----------
    folder : str
        In ``epur_emu/data``.
    what : str
        What a file describes, as errors call it.
    error : type of EpurError
    """

    folder: str
    what: str
    error: type[EpurError]

    def names(self) -> list[str]:
        """Those that come with the package."""
        found = (resources.files("epur_emu") / "data" / self.folder).iterdir()
        return sorted(p.name.removesuffix(".toml") for p in found if p.name.endswith(".toml"))

    def file(self, name: str) -> Readable:
        """The file of one that comes with the package."""
        return resources.files("epur_emu") / "data" / self.folder / f"{name}.toml"

    def own(self, name: str) -> dict[str, Any]:
        """Values of one that comes with the package."""
        return read_toml(self.file(name), self.error, "install the package anew")

    def read(self, name: str, source: str | None = None) -> dict[str, Any]:
        """Values of one by name, or of a file by path; `source` is the file that names it, if any.

        Raises
        ------
        error
            No preset and no file is called so, or the file is damaged.
        """
        if name in self.names():
            return self.own(name)
        if not os.path.isfile(name):
            raise self.error(
                source or self.what, repr(name), "is neither a preset nor a file",
                f"use one of {', '.join(self.names())} or the path of a TOML file",
            )  # fmt: skip
        return read_toml(Path(name), self.error, "mend the file")
