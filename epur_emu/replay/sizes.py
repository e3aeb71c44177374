"""Sizes of memories as text, and their check."""

from __future__ import annotations

from collections.abc import Sequence

from epur_emu.errors import TraceError


def parse_size(text: str) -> int:
    """Bytes of ``4096``, ``64K``, ``8M`` or ``1G`` (powers of 1024).

    Raises
    ------
    TraceError
        It is none of them, or is below 1.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = units.get(digits[-1:], 1)
    number = digits[:-1] if unit > 1 else digits
    if not number.isdecimal() or not 1 <= int(number) * unit <= 1 << 62:
        raise TraceError("replay", "size", f"is {text!r:.40}", "give one such as 4096, 64K or 8M")
    return int(number) * unit


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes of ``64K:8M`` (doubling from the first to the last) or ``64K,96K,1M``.

    Raises
    ------
    TraceError
        A size is not valid, or the range is empty.
    """
    first, colon, last = text.partition(":")
    if not colon:
        return tuple(sorted({parse_size(one) for one in text.split(",")}))
    low, high = parse_size(first), parse_size(last)
    if low > high:
        raise TraceError("replay", "sizes", f"are {text!r:.40}", "give the smaller one first")
    return tuple(low << n for n in range((high // low).bit_length()))


def check_sizes(sizes: Sequence[int], least: int) -> tuple[int, ...]:
    """Rising sizes without repetition, each at least `least` bytes.

    Raises
    ------
    TraceError
        One is smaller, or there is none.
    """
    rising = tuple(sorted(set(sizes)))
    if not rising or rising[0] < least:
        raise TraceError(
            "replay", "sizes", f"are {list(rising)[:4]}", f"give at least one, from {least} bytes"
        )
    return rising
