"""Number formats as frozen values whose names parse back: ``parse(str(f)) == f``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from epur_emu.errors import FormatError


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format with subnormals, infinities and one NaN, as IEEE 754 has them.

    Parameters
    ----------
    exponent_bits : int
        2 to 8.
    mantissa_bits : int
        Stored bits of the significand, 1 to 23.

    Raises
    ------
    FormatError
        A width is out of range.
    """

    exponent_bits: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise FormatError("format", "exponent_bits", f"is {self.exponent_bits}", "use 2 to 8")
        if not 1 <= self.mantissa_bits <= 23:
            raise FormatError("format", "mantissa_bits", f"is {self.mantissa_bits}", "use 1 to 23")

    def __str__(self) -> str:
        name = f"e{self.exponent_bits}m{self.mantissa_bits}"
        return _NAMES.get(name, name)

    @property
    def bits(self) -> int:
        """Width of one value, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bytes(self) -> int:
        """Bytes that one value takes in a memory (8-, 16- or 32-bit containers)."""
        return container_bytes(self.bits)

    @property
    def bias(self) -> int:
        """Exponent bias."""
        return int(2 ** (self.exponent_bits - 1)) - 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value (and of all subnormals)."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite value."""
        return self.bias

    @property
    def max(self) -> Fraction:
        """Largest finite value."""
        return (2 - Fraction(1, 2**self.mantissa_bits)) * Fraction(2) ** self.max_exponent

    @property
    def min_normal(self) -> Fraction:
        """Smallest positive normal value."""
        return Fraction(2) ** self.min_exponent

    @property
    def min_subnormal(self) -> Fraction:
        """Smallest positive value."""
        return Fraction(2) ** (self.min_exponent - self.mantissa_bits)

    @property
    def epsilon(self) -> Fraction:
        """Distance from 1 to the next larger value."""
        return Fraction(1, 2**self.mantissa_bits)


@dataclass(frozen=True)
class LinearFormat:
    """Signed integers on a symmetric scale, ``max|v| / (2**(bits-1) - 1)`` per step.

    Parameters
    ----------
    bits : int
        2 to 16.

    Raises
    ------
    FormatError
        The width is out of range.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise FormatError("format", "bits", f"is {self.bits}", "use 2 to 16")

    def __str__(self) -> str:
        return f"int{self.bits}"

    @property
    def bytes(self) -> int:
        """Bytes that one value takes in a memory (8- or 16-bit containers)."""
        return container_bytes(self.bits)

    @property
    def max(self) -> int:
        """Largest code; the smallest is its negative."""
        return int(2 ** (self.bits - 1)) - 1


Format = FloatFormat | LinearFormat

FP32 = FloatFormat(8, 23)
FP16 = FloatFormat(5, 10)
BF16 = FloatFormat(8, 7)
TF32 = FloatFormat(8, 10)
INT8 = LinearFormat(8)

_NAMES = {"e5m10": "fp16", "e8m23": "fp32", "e8m7": "bf16", "e8m10": "tf32"}
_ALIASES = {name: key for key, name in _NAMES.items()}


def container_bytes(bits: int) -> int:
    """Bytes of the 8-, 16- or 32-bit container that holds `bits` bits."""
    return 1 if bits <= 8 else 2 if bits <= 16 else 4


def parse(name: str) -> Format:
    """Format of a canonical name or alias: ``fp16``, ``bf16``, ``e4m3``, ``int8``.

    Raises
    ------
    FormatError
        The name is unknown or its widths are out of range.
    """
    if match := re.fullmatch(r"e(\d{1,2})m(\d{1,2})", _ALIASES.get(name, name)):
        return FloatFormat(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"int(\d{1,2})", name):
        return LinearFormat(int(match[1]))
    raise FormatError(
        "format", repr(name), "is not known",
        "write fp16, fp32, bf16, tf32, eXmY (2 <= X <= 8, 1 <= Y <= 23) or intN (2 <= N <= 16)",
    )  # fmt: skip
