"""The journal of a study: each result is on disk as soon as it is known, whatever happens next.

Lines of ``CRC-32 JSON``, appended and synchronised one by one; the first says of which study they are. A
line that was cut by a crash does not fit its checksum: it and what follows are dropped when the journal
is opened again, and computed anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from epur_emu.errors import StudyError

FORMAT = "epur-study-journal 1"


class Journal:
    """Results by key, kept in a file.

    Parameters
    ----------
    path : path
    plan : dict of str to str
        Hashes of the parts of the study, by what they are called.
    resume : bool
        Whether to go on with what the file holds, which must be of an equal plan.

    Raises
    ------
    StudyError
        The file is in use or can't be written, there is one already (without `resume`), or it is of
        another study; the message says in which parts.
    """

    def __init__(self, path: str | os.PathLike[str], plan: dict[str, str], resume: bool) -> None:
        self.path = Path(path)
        self.results: dict[str, dict[str, Any]] = {}
        #: Seconds that the results took, by key.
        self.seconds: dict[str, float] = {}
        #: Bytes at the end of the file that were dropped.
        self.dropped = 0
        if self.path.exists() and not resume:
            raise StudyError(
                self.path, "journal", "of an interrupted study is there",
                "go on with --resume, remove it, or choose another -o",
            )  # fmt: skip
        try:
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            self._read(plan)
        except BaseException:
            with suppress(OSError):  # what a full disk did not take is told already
                self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyError(
                self.path, "journal", "is in use by another process", "wait for it, or end it"
            ) from error

    def _read(self, plan: dict[str, str]) -> None:
        self._file.seek(0)
        whole = self._file.read()
        end = 0
        records = []
        while (stop := whole.find(b"\n", end)) >= 0:
            record = _record(whole[end:stop])
            if record is None:
                break
            records.append(record)
            end = stop + 1
        self.dropped = len(whole) - end
        if not records:
            if whole and self.dropped > 4096 + len(_line({"format": FORMAT, "plan": plan})):
                raise StudyError(
                    self.path, "journal", "is none, or damaged from its beginning", "move it away"
                )
            self._truncate(0)
            self._append({"format": FORMAT, "plan": plan})
            return
        head = records[0]
        if head.get("format") != FORMAT:
            raise StudyError(
                self.path,
                "format",
                f"is {head.get('format')!r:.40}",
                "use the epur_emu that made it",
            )
        check_plan(self.path, head["plan"], plan)
        for record in records[1:]:
            self.results[record["key"]] = record["result"]
            self.seconds[record["key"]] = record["seconds"]
        if self.dropped:
            self._truncate(end)

    def add(self, key: str, result: dict[str, Any], seconds: float) -> None:
        """Keep a result: on disk when this returns.

        Raises
        ------
        StudyError
            It can't be written (a full disk, say); what was kept before stays.
        """
        self._append({"key": key, "seconds": seconds, "result": result})
        self.results[key] = result
        self.seconds[key] = seconds

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(_line(record))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _truncate(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StudyError:
        return StudyError(
            self.path, "journal", f"can't be written ({error.strerror})",
            "mend that, and go on with --resume if there are results",
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self) -> None:
        """Remove the file: its results are elsewhere."""
        self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def check_plan(path: str | os.PathLike[str], old: dict[str, str], new: dict[str, str]) -> None:
    """Refuse to go on with a study that has changed.

    Raises
    ------
    StudyError
        The parts that differ are named.
    """
    changed = [part for part in {**old, **new} if old.get(part) != new.get(part)]
    if changed:
        raise StudyError(
            path, "study", f"has changed since: {', '.join(changed)}",
            "take the changes back, or start anew with another -o",
        )  # fmt: skip


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    if line[:9] != b"%08x " % zlib.crc32(line[9:]):
        return None
    try:
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
