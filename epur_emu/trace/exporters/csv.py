"""CSV: a header, then ``cycle,component,op,address,bytes`` with names as text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from epur_emu._kernels.lines import DECIMAL, WORD, lines
from epur_emu.errors import TraceError
from epur_emu.streams import OPS, Component
from epur_emu.trace.accesses import COLUMNS, Accesses
from epur_emu.trace.exporters.base import Lines, Part, longs

HEADER = ",".join(COLUMNS).encode() + b"\n"

#: Bytes that are read at once; no line is longer.
BLOCK = 1 << 22


class Csv(Lines):
    """Every access a row; component and op by name."""

    single = False

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        super().__init__(file, components, about)
        for c in components:
            if set(c.name) & set(',"'):
                raise TraceError(
                    "trace", f"component {c.name!r}", "can't be written to CSV", "use Parquet"
                )
        file.write(HEADER)

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""
        columns = [longs(column) for column in chunk.columns().values()]
        used, columns[1] = np.unique(columns[1], return_inverse=True)
        if len(used) > 256:
            for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
                self.feed(half)
            return
        names = [self.components[n].name.encode() for n in used]
        words = [[], names, [op.encode() for op in OPS], [], []]
        kinds = [DECIMAL, WORD, WORD, DECIMAL, DECIMAL]
        self.file.write(lines(columns, kinds, words, b" ,,,,"))


def read(path: str | os.PathLike[str]) -> Iterator[Part]:
    """Accesses of a CSV file with this header, in the file's order.

    Raises
    ------
    TraceError
        A line is not as it should be; it is named.
    """
    names: dict[bytes, int] = {}
    with open(path, "rb") as file:
        if file.readline(1 << 10).strip().lower() != HEADER.strip():
            raise TraceError(path, "line 1", "is no header", f"begin with {HEADER.decode().strip()}")
        line, left = 2, b""
        while block := file.read(BLOCK):
            whole, newline, left_over = (left + block).rpartition(b"\n")
            if len(left_over) > BLOCK:
                raise TraceError(path, f"line {line}", "is over 4 MB", "give lines of five fields")
            left = left_over
            if newline:
                part = _parsed(path, whole, line, names)
                yield list(map(bytes.decode, names)), part
                line += whole.count(b"\n") + 1
        if left.strip():
            part = _parsed(path, left, line, names)
            yield list(map(bytes.decode, names)), part


def _parsed(path: str | os.PathLike[str], text: bytes, first: int, names: dict[bytes, int]) -> Accesses:
    rows = text.replace(b"\r", b"").rstrip(b"\n").split(b"\n")
    fields = b",".join(rows).split(b",")
    if len(fields) == 5 * len(rows):
        try:
            for name in dict.fromkeys(fields[1::5]):
                name.decode()
                names.setdefault(name, len(names))
            ops = {op.encode(): code for code, op in enumerate(OPS)}
            numbers = [np.array(fields[n::5]).astype(np.int64) for n in (0, 3, 4)]
            component, op = [names[n] for n in fields[1::5]], [ops[o] for o in fields[2::5]]
            return Accesses.of(numbers[0], component, op, numbers[1], numbers[2])
        except (ValueError, KeyError, OverflowError):
            pass
    for number, row in enumerate(rows, first):
        cycle, name, op_, address, size = (*row.split(b","), *[b""] * 5)[:5]
        good = row.count(b",") == 4 and name and op_.decode(errors="replace") in OPS
        if not (good and all(v.isdigit() and len(v) < 19 for v in (cycle, address, size))):
            shown = row[:60].decode(errors="replace")
            raise TraceError(
                path, f"line {number}", f"is {shown!r}", "give cycle,component,read or write,address,bytes"
            )
    raise TraceError(path, f"lines from {first}", "can't be read", "give UTF-8 names")
