"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from epur_emu.errors import TraceError

# Names there are links to what may be a plain file.
DEVICES = ("/dev", "/dev/fd")


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise `TraceError` if what stands at `path` is no plain file, or is a device's name."""
    device = os.path.dirname(os.path.abspath(path)) in DEVICES
    if os.path.exists(path) and (device or not os.path.isfile(path)):
        raise TraceError(path, "", "cannot be written (it is no plain file)", "choose another place")


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new binary file that gets its name when the block ends well.

    Raises
    ------
    TraceError
        It cannot be written; what stood at `path` is untouched. No device or folder is replaced.
    """
    target = Path(path)
    check_replaceable(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
        os.replace(temporary, target)
    except (OSError, ValueError) as error:
        if isinstance(error, TraceError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise TraceError(
            path, "", f"cannot be written ({reason})", "choose another place or free space"
        ) from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
