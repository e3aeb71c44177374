"""Members of zip archives, read within bounds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epur_emu.errors import ModelError

#: What the zip module raises on a damaged archive.
DAMAGES = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError,
    OverflowError, KeyError, IndexError,
)  # fmt: skip


@contextmanager
def archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive, opened to be read.

    Raises
    ------
    ModelError
        It is damaged.
    """
    try:
        opened = zipfile.ZipFile(path)
    except DAMAGES as error:
        raise ModelError(path, "zip", f"is damaged ({error})", "restore the file") from error
    with opened:
        yield opened


def member(path: Path, opened: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member's bytes, at most `limit`.

    Raises
    ------
    ModelError
        It is missing, damaged or longer.
    """
    try:
        size = opened.getinfo(name).file_size
    except KeyError as error:
        raise ModelError(path, name, "is missing in the archive", "restore the file") from error
    if size > limit:
        raise ModelError(
            path, name, f"is declared to hold {size} bytes, over {limit}",
            "give a file that is no decompression bomb",
        )  # fmt: skip
    try:
        with opened.open(name) as file:
            data = file.read(size)
    except DAMAGES as error:
        raise ModelError(path, name, f"is damaged ({error})", "restore the file") from error
    if len(data) != size:
        raise ModelError(path, name, "is cut short", "restore the file")
    return data
