"""Finds a data set: in the folder that EPUR_DATA names, else downloaded once and verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from epur_emu.errors import EpurError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Names the folder that holds a folder for each data set.
VARIABLE = "EPUR_DATA"

_CATALOGUE = Path(__file__).resolve().parents[1] / "data" / "datasets.toml"


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Data sets that can be downloaded, by name: the contents of ``data/datasets.toml``."""
    return tomllib.loads(_CATALOGUE.read_text(encoding="utf-8"))


def folder(name: str) -> Path:
    """The folder of a data set.

    Where `EPUR_DATA` is set, nothing is downloaded. Where it is not, the data set is downloaded by
    the package pooch into the user's cache, unless it is there.

    Parameters
    ----------
    name : str
        The folder's, e.g. ``fsdd``.

    Raises
    ------
    EpurError
        It is not there, or could not be downloaded whole.
    """
    root = os.environ.get(VARIABLE)
    if root:
        path = Path(root) / name
        if not path.is_dir():
            raise EpurError(
                path, "data set", "is no folder", f"make it, or let {VARIABLE} name another folder"
            )
        return path
    entry = catalogue().get(name)
    by_hand = f"set {VARIABLE} to the folder that holds {name}/"
    if entry is None:
        raise EpurError("data set", name, "is not found", by_hand)
    try:
        import pooch
    except ImportError as error:
        raise EpurError(
            "data set", name, "is not found",
            f"{by_hand}, or let it be downloaded: pip install 'epur_emu[data]'",
        ) from error  # fmt: skip
    target: Path = Path(pooch.os_cache("epur_emu")) / name / entry["revision"]
    if not target.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as part:
                whole = Path(part) / "whole"
                _download(entry, Path(part), whole)
                whole.replace(target)
        # Whatever the network, the archive or the disk does ends here.
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise EpurError(
                entry.get("archive", entry["source"]), "download", f"failed ({error})", by_hand
            ) from error
    return target


def digest(path: Path) -> str:
    """SHA-256 of the lines ``SHA-256  name`` of all files below a folder, sorted by name."""
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for name in names:
        own = hashlib.sha256((path / name).read_bytes()).hexdigest()
        total.update(f"{own}  {name}\n".encode())
    return total.hexdigest()


def _download(entry: dict[str, Any], scratch: Path, target: Path) -> None:
    """Download a data set into the folder `target`, and verify it."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    target.mkdir()
    bar = sys.stderr.isatty()
    if "archive" in entry:
        path = pooch.retrieve(entry["archive"], None, "archive", scratch, progressbar=bar)
        unpack(Path(path), entry["members"], target)
    for name in entry.get("files", ()):
        pooch.retrieve(entry["base"] + name, None, name, target, progressbar=bar)
    found = digest(target)
    if found != entry["sha256"]:
        raise ValueError(f"the files' SHA-256 is {found}, not {entry['sha256']}")


def unpack(archive: Path, members: str, target: Path) -> None:
    """Unpack those members of a zip file that a regular expression matches as a whole.

    Parameters
    ----------
    archive : path
    members : str
        Its first group is the name that a file gets below `target`; one that leads elsewhere is not
        unpacked.
    target : path

    Raises
    ------
    OSError, zipfile.BadZipFile
        The archive can't be read.
    """
    with zipfile.ZipFile(archive) as file:
        for member in file.namelist():
            match = re.fullmatch(members, member)
            if match is None or ".." in Path(match[1]).parts:
                continue
            path = target / match[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
