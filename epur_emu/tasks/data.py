"""Finds a data set: in the folder that EPUR_DATA names, else downloaded once and verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from epur_emu.errors import EpurError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Names the folder that holds a folder for each data set.
VARIABLE = "EPUR_DATA"

#: Files that are downloaded at once.
CONNECTIONS = 8

_CATALOGUE = Path(__file__).resolve().parents[1] / "data" / "datasets.toml"


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Data sets that can be downloaded, by name: the contents of ``data/datasets.toml``."""
    return tomllib.loads(_CATALOGUE.read_text(encoding="utf-8"))


def own(name: str) -> Path | None:
    """The folder of a data set below the one that `EPUR_DATA` names; None where that is not set.

    Raises
    ------
    EpurError
        It is not there.
    """
    root = os.environ.get(VARIABLE)
    if not root:
        return None
    path = Path(root) / name
    if not path.is_dir():
        raise EpurError(
            path, "data set", "is no folder", f"make it, or let {VARIABLE} name another folder"
        )
    return path


def folder(name: str) -> Path:
    """The folder of a data set: the user's `own`, or else that of `downloaded`.

    Parameters
    ----------
    name : str
        The folder's, e.g. ``fsdd``.

    Raises
    ------
    EpurError
        It is not there, or could not be downloaded whole.
    """
    return own(name) or downloaded(name, name)


def downloaded(name: str, called: str, part: str = "") -> Path:
    """The folder of a data set in the user's cache, into which the package pooch downloads it once.

    What an interrupted download has fetched is kept for the next one.

    Parameters
    ----------
    name : str
        As the catalogue has it.
    called : str
        The folder below `EPUR_DATA` that would be taken instead, for messages.
    part : str
        Which part, of a data set that has parts.

    Raises
    ------
    EpurError
        It could not be downloaded whole.
    """
    by_hand = f"set {VARIABLE} to the folder that holds {called}/"
    entry = catalogue().get(name)
    if entry is None:
        raise EpurError("data set", name, "is not found", by_hand)
    try:
        import pooch
    except ImportError as error:
        raise EpurError(
            "data set", name, "is not found",
            f"{by_hand}, or let it be downloaded: pip install 'epur_emu[data]'",
        ) from error  # fmt: skip
    target: Path = Path(pooch.os_cache("epur_emu")) / name / entry["revision"] / part
    if not target.is_dir():
        scratch = target.with_name(target.name + ".part")
        try:
            (scratch / "whole").mkdir(parents=True, exist_ok=True)
            _download(entry, part, scratch)
            _verify(scratch, entry["parts"][part] if part else entry["sha256"])
            (scratch / "whole").replace(target)
            shutil.rmtree(scratch, ignore_errors=True)
        # Whatever the network, the archive or the disk does ends here.
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            if target.is_dir():  # another process was first
                return target
            cause: BaseException = error
            while cause.__context__ is not None:
                cause = cause.__context__
            raise EpurError(
                entry.get("archive", entry["source"]), "download", f"failed ({cause})",
                f"{by_hand}, or try again",
            ) from error  # fmt: skip
    return target


def digest(path: Path) -> str:
    """SHA-256 of the lines ``SHA-256  name`` of all files below a folder, sorted by name."""
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for name in names:
        own = hashlib.sha256((path / name).read_bytes()).hexdigest()
        total.update(f"{own}  {name}\n".encode())
    return total.hexdigest()


def _download(entry: dict[str, Any], part: str, scratch: Path) -> None:
    """Download a data set into the folder `scratch`, whole as its folder `whole`."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    bar, whole = sys.stderr.isatty(), scratch / "whole"
    if "archive" in entry:
        path = pooch.retrieve(entry["archive"], None, "archive", scratch, progressbar=bar)
        try:
            unpack(Path(path), entry["members"], whole)
        except zipfile.BadZipFile:
            Path(path).unlink()
            raise
        return
    names = entry.get("files", ())
    if part:
        text = (_CATALOGUE.parent / entry["names"]).read_text(encoding="utf-8")
        names = [entry["file"].format(name) for name in tomllib.loads(text)[part].split()]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        calls = [
            pool.submit(pooch.retrieve, entry["base"] + name, None, name, whole) for name in names
        ]
        try:
            for call in tqdm(as_completed(calls), "download", len(calls), disable=not bar):
                call.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _verify(scratch: Path, wanted: str) -> None:
    """Refuse a data set other than the pinned one, and remove it."""
    found = digest(scratch / "whole")
    if found != wanted:
        shutil.rmtree(scratch, ignore_errors=True)
        raise ValueError(f"the files' SHA-256 is {found}, not {wanted}")


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
