"""Reads protocol buffers' wire format, by field number; knows no schema."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator

#: Lengths of values of fixed width, by wire type.
_FIXED = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2
#: A model has fewer fields; each takes a few hundred bytes at most.
LIMIT = 500_000


class Message:
    """A message's fields, each a list in the order of the file; messages inside are bytes.

    Parameters
    ----------
    data : memoryview or bytes
    outer : Message, optional
        The message that this one lies in; their fields are counted together.

    Raises
    ------
    ValueError
        The data are cut short, no message, or of too many fields.
    """

    def __init__(self, data: memoryview | bytes, outer: Message | None = None) -> None:
        self._fields: dict[int, list[int | memoryview]] = defaultdict(list)
        self._count: list[int] = outer._count if outer else [0]
        view = memoryview(data)
        position = 0
        while position < len(view):
            tag, position = _varint(view, position)
            number, wire = tag >> 3, tag & 7
            value: int | memoryview
            if wire == _VARINT:
                value, position = _varint(view, position)
            else:
                if wire == _BYTES:
                    size, position = _varint(view, position)
                elif wire in _FIXED:
                    size = _FIXED[wire]
                else:
                    raise ValueError(f"wire type {wire}")
                if size > len(view) - position:
                    raise ValueError("a field is cut short")
                value, position = view[position : position + size], position + size
            self._fields[number].append(value)
            self._count[0] += 1
            if self._count[0] > LIMIT:
                raise ValueError(f"it has over {LIMIT} fields")

    def blobs(self, number: int) -> list[memoryview]:
        """All values of a field of bytes."""
        values = self._fields.get(number, [])
        blobs = [value for value in values if isinstance(value, memoryview)]
        if len(blobs) != len(values):
            raise ValueError(f"field {number} is of another type")
        return blobs

    def messages(self, number: int) -> Iterator[Message]:
        """All messages of a field."""
        return (Message(blob, self) for blob in self.blobs(number))

    def texts(self, number: int) -> list[str]:
        """All strings of a field."""
        return [str(blob, "utf-8") for blob in self.blobs(number)]

    def text(self, number: int) -> str:
        """The last string of a field, empty if there is none."""
        return (self.texts(number) or [""])[-1]

    def integers(self, number: int, limit: int = 100) -> list[int]:
        """All signed 64-bit integers of a field, packed or not; at most `limit`."""
        out = []
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                out.append(value)
                continue
            position = 0
            while position < len(value):
                one, position = _varint(value, position)
                out.append(one)
                if len(out) > limit:
                    raise ValueError(f"field {number} has over {limit} integers")
        return [value - (1 << 64) if value >> 63 else value for value in out]

    def integer(self, number: int, default: int = 0) -> int:
        """The last integer of a field."""
        return (self.integers(number) or [default])[-1]

    def float(self, number: int, default: float = 0.0) -> float:
        """The last 32-bit float of a field."""
        blobs = self.blobs(number)
        return float(struct.unpack("<f", blobs[-1])[0]) if blobs else default


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """An unsigned 64-bit integer and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise ValueError("a number is cut short")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise ValueError("a number is too long")
