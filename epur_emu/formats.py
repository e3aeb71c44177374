"""Number formats as frozen values whose names parse back: ``parse(str(f)) == f``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from epur_emu.errors import FormatError

#: How an operation's exact result becomes a value of a format.
MODES = ("nearest-even", "nearest-away", "zero", "up", "down", "stochastic")

#: Random bits of a stochastic rounding: it rounds |v| up by comparing the rest with so many bits.
STOCHASTIC_BITS = 12


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    Parameters
    ----------
    exponent_bits : int
        2 to 8.
    mantissa_bits : int
        Stored bits of the significand, 0 to 23.
    specials : {"ieee", "fn", "none"}
        ``ieee`` keeps the largest exponent for infinities and not-a-number; ``fn`` keeps one code, all
        ones, for not-a-number and has no infinity (OCP 8-bit floating point, E4M3); ``none`` has
        finite values only (OCP MX elements of 6 and 4 bits).
    saturate : bool
        Whether a result beyond the largest value (infinity included) becomes that value; else it is
        infinite (``ieee``) or not a number (``fn``). ``none`` always saturates.
    subnormals : bool
        Whether values below the smallest normal one exist; else results there become zero.

    Notes
    -----
    Not-a-number goes through every operation, even where ``none`` has no code for it. A zero has no
    sign.

    Raises
    ------
    FormatError
        A width is out of range, or a combination has no values.
    """

    exponent_bits: int
    mantissa_bits: int
    specials: str = "ieee"
    saturate: bool = False
    subnormals: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise FormatError("format", "exponent_bits", f"is {self.exponent_bits}", "use 2 to 8")
        if not 0 <= self.mantissa_bits <= 23:
            raise FormatError("format", "mantissa_bits", f"is {self.mantissa_bits}", "use 0 to 23")
        if self.specials not in _SPECIALS:
            raise FormatError("format", "specials", f"is {self.specials!r}", "use ieee, fn or none")
        if self.specials != "ieee" and self.exponent_bits == 8:
            raise FormatError(
                "format", "specials",
                f"are {self.specials!r}, whose largest values float32 does not hold",
                "use at most 7 exponent bits",
            )  # fmt: skip
        if self.specials == "fn" and self.mantissa_bits == 0:
            raise FormatError(
                "format", "specials", "are 'fn' without a mantissa", "give at least 1 mantissa bit"
            )
        if self.specials == "none" and not self.saturate:
            object.__setattr__(self, "saturate", True)

    def __str__(self) -> str:
        name = f"e{self.exponent_bits}m{self.mantissa_bits}"
        name = _NAMES.get(name, name) + _SPECIALS[self.specials]
        if self.saturate and self.specials != "none":
            name += "-sat"
        return name if self.subnormals else name + "-nosub"

    @property
    def bits(self) -> int:
        """Width of one value, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bytes(self) -> int:
        """Bytes that one value takes in a memory (8-, 16- or 32-bit containers)."""
        return container_bytes(self.bits)

    @property
    def precision(self) -> int:
        """Bits of the significand, the leading one included."""
        return self.mantissa_bits + 1

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
        return self.bias + (self.specials != "ieee")

    @cached_property
    def max(self) -> Fraction:
        """Largest finite value."""
        lost = 2 if self.specials == "fn" else 1
        return (2 - Fraction(lost, 2**self.mantissa_bits)) * Fraction(2) ** self.max_exponent

    @cached_property
    def min_normal(self) -> Fraction:
        """Smallest positive normal value."""
        return Fraction(2) ** self.min_exponent

    @property
    def min_positive(self) -> Fraction:
        """Smallest positive value."""
        return self.min_normal / (2**self.mantissa_bits if self.subnormals else 1)

    @cached_property
    def epsilon(self) -> Fraction:
        """Distance from 1 to the next larger value."""
        return Fraction(1, 2**self.mantissa_bits)


@dataclass(frozen=True)
class FixedFormat:
    """Fixed point: an integer code times ``2**-fraction_bits``.

    Parameters
    ----------
    integer_bits, fraction_bits : int
        Bits before and after the point, 0 to 31 each, at least 1 and at most 31 together. The sign
        bit of a signed format (two's complement) comes on top: ``q3.12`` has 16 bits.
    signed : bool
    overflow : {"saturate", "wrap", "raise"}
        A code out of range becomes the nearest in range, is taken modulo the number of codes, or ends
        the evaluation with an error that names the place.

    Notes
    -----
    Not-a-number becomes 0; an infinity becomes the largest or smallest value, or 0 where it would wrap.

    Raises
    ------
    FormatError
        A width is out of range.
    """

    integer_bits: int
    fraction_bits: int
    signed: bool = True
    overflow: str = "saturate"

    def __post_init__(self) -> None:
        if min(self.integer_bits, self.fraction_bits) < 0 or not (
            1 <= self.integer_bits + self.fraction_bits <= 31
        ):
            raise FormatError(
                "format", "integer_bits and fraction_bits",
                f"are {self.integer_bits} and {self.fraction_bits}", "use 1 to 31 bits together",
            )  # fmt: skip
        if self.overflow not in ("saturate", "wrap", "raise"):
            raise FormatError(
                "format", "overflow", f"is {self.overflow!r}", "use saturate, wrap or raise"
            )

    def __str__(self) -> str:
        name = f"{'' if self.signed else 'u'}q{self.integer_bits}.{self.fraction_bits}"
        return name if self.overflow == "saturate" else f"{name}-{self.overflow}"

    @property
    def bits(self) -> int:
        """Width of one value, sign included."""
        return self.integer_bits + self.fraction_bits + self.signed

    @property
    def bytes(self) -> int:
        """Bytes that one value takes in a memory (8-, 16- or 32-bit containers)."""
        return container_bytes(self.bits)

    @property
    def max_code(self) -> int:
        """Largest integer code."""
        return int(2 ** (self.integer_bits + self.fraction_bits)) - 1

    @property
    def min_code(self) -> int:
        """Smallest integer code."""
        return -self.max_code - 1 if self.signed else 0

    @cached_property
    def max(self) -> Fraction:
        """Largest value."""
        return self.max_code * self.epsilon

    @property
    def min_positive(self) -> Fraction:
        """Smallest positive value."""
        return self.epsilon

    @cached_property
    def epsilon(self) -> Fraction:
        """Distance between neighbouring values."""
        return Fraction(1, 2**self.fraction_bits)


@dataclass(frozen=True)
class LinearFormat:
    """Signed integers on a symmetric scale, ``max|v| / (2**(bits-1) - 1)`` per step.

    Parameters
    ----------
    bits : int
        2 to 16.
    per_row : bool
        Whether each row of a weight matrix (one neuron's weights of one gate) has its own scale; else
        each gate has one.

    Raises
    ------
    FormatError
        The width is out of range.
    """

    bits: int
    per_row: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise FormatError("format", "bits", f"is {self.bits}", "use 2 to 16")

    def __str__(self) -> str:
        return f"int{self.bits}" + ("-row" if self.per_row else "")

    @property
    def bytes(self) -> int:
        """Bytes that one value takes in a memory (8- or 16-bit containers)."""
        return container_bytes(self.bits)

    @property
    def max(self) -> int:
        """Largest code; the smallest is its negative."""
        return int(2 ** (self.bits - 1)) - 1


@dataclass(frozen=True)
class BlockFormat:
    """Block floating point: elements of a block share one power of two (OCP Microscaling, v1.0).

    The shared scale of a block is ``2**(floor(log2(max|v|)) - emax)``, where emax is the exponent of the
    element's largest value, limited to 2**-127 ... 2**127; elements are ``v / scale`` rounded to nearest
    even, saturating. A block with a value that is not finite is not a number throughout.

    Parameters
    ----------
    element : FloatFormat or FixedFormat
    block : int
        Elements of a block, along a row of weights or along an input vector, from its beginning.

    Raises
    ------
    FormatError
        The element does not saturate, or the block is empty.
    """

    element: FloatFormat | FixedFormat
    block: int = 32

    def __post_init__(self) -> None:
        e = self.element
        if isinstance(e, FixedFormat):
            if e.integer_bits != 1 or not e.signed or e.overflow != "saturate":
                raise FormatError("format", "element", f"is {e}", "use q1.F, as mxint8 has q1.6")
        elif not (e.saturate and e.subnormals and e.exponent_bits <= 5):
            raise FormatError(
                "format", "element", f"is {e}",
                "use a saturating format with subnormals and at most 5 exponent bits",
            )  # fmt: skip
        if not 1 <= self.block <= 1024:
            raise FormatError("format", "block", f"is {self.block}", "use 1 to 1024")

    def __str__(self) -> str:
        known = {element: name for name, element in reversed(_MX.items())}
        e = self.element
        name = f"mxint{e.bits}" if isinstance(e, FixedFormat) else known.get(e, f"mx-{e}")
        return name if self.block == 32 else f"{name}/{self.block}"

    @property
    def max_exponent(self) -> int:
        """Exponent of the element's largest value, emax."""
        return 0 if isinstance(self.element, FixedFormat) else self.element.max_exponent

    @property
    def bytes(self) -> int:
        """Bytes that one element takes in a memory; the shared scale is not counted."""
        return self.element.bytes


Format = FloatFormat | FixedFormat | LinearFormat | BlockFormat

_SPECIALS = {"ieee": "", "fn": "fn", "none": "f"}
_NAMES = {"e5m10": "fp16", "e8m23": "fp32", "e8m7": "bf16", "e8m10": "tf32"}
_ALIASES = {name: key for key, name in _NAMES.items()}

FP32 = FloatFormat(8, 23)
FP16 = FloatFormat(5, 10)
BF16 = FloatFormat(8, 7)
TF32 = FloatFormat(8, 10)
INT8 = LinearFormat(8)

#: Elements of the OCP Microscaling formats, the specification's first choice under the short name.
_MX: dict[str, FloatFormat | FixedFormat] = {
    "mxfp8": FloatFormat(4, 3, "fn", saturate=True),
    "mxfp8e5m2": FloatFormat(5, 2, saturate=True),
    "mxfp6": FloatFormat(2, 3, "none"),
    "mxfp6e3m2": FloatFormat(3, 2, "none"),
    "mxfp4": FloatFormat(2, 1, "none"),
}

_FLOAT = re.compile(r"e(\d{1,2})m(\d{1,2})(fn|f)?(-sat)?(-nosub)?")
_FIXED = re.compile(r"(u?)q(\d{1,2})\.(\d{1,2})(?:-(wrap|raise))?")
_LINEAR = re.compile(r"int(\d{1,2})(-row)?")
_BLOCK = re.compile(r"(mxint(\d{1,2})|mx-(.+)|mxfp\w+)")


def unraising(form: FloatFormat | FixedFormat) -> FloatFormat | FixedFormat:
    """The format, but that it saturates where it would raise: for roundings that nothing counts."""
    if isinstance(form, FixedFormat) and form.overflow == "raise":
        return replace(form, overflow="saturate")
    return form


def container_bytes(bits: int) -> int:
    """Bytes of the 8-, 16- or 32-bit container that holds `bits` bits."""
    return 1 if bits <= 8 else 2 if bits <= 16 else 4


def parse(name: str) -> Format:
    """Format of a canonical name or alias: ``fp16``, ``e4m3fn-sat``, ``q3.12``, ``int8``, ``mxfp4``.

    Raises
    ------
    FormatError
        The name is unknown or its widths are out of range.
    """
    base, dash, rest = name.partition("-")
    short = re.fullmatch(r"(fp16|fp32|bf16|tf32)(fn|f)?", base)
    full = _ALIASES[short[1]] + (short[2] or "") + dash + rest if short else name
    if match := _FLOAT.fullmatch(full):
        specials = {None: "ieee", "fn": "fn", "f": "none"}[match[3]]
        return FloatFormat(int(match[1]), int(match[2]), specials, bool(match[4]), match[5] is None)
    if match := _FIXED.fullmatch(name):
        return FixedFormat(int(match[2]), int(match[3]), not match[1], match[4] or "saturate")
    if match := _LINEAR.fullmatch(name):
        return LinearFormat(int(match[1]), match[2] is not None)
    if block := _parse_block(name):
        return block
    raise FormatError(
        "format", repr(name), "is not known",
        "write fp16, fp32, bf16, tf32, eXmY (X 2 to 8, Y 0 to 23; then fn or f, -sat, -nosub), "
        "qI.F or uqI.F (-wrap, -raise), intN (N 2 to 16; -row) or mxfp8, mxfp6, mxfp4, mxintN (/BLOCK)",
    )  # fmt: skip


def _parse_block(name: str) -> BlockFormat | None:
    base, slash, size = name.partition("/")
    match = _BLOCK.fullmatch(base)
    if match is None or (slash and not re.fullmatch(r"\d{1,4}", size)):
        return None
    block = int(size) if slash else 32
    if match[2]:
        return BlockFormat(FixedFormat(1, int(match[2]) - 2), block)
    if match[3]:
        element = parse(match[3])
        if not isinstance(element, FloatFormat):
            raise FormatError("format", repr(name), "has no float elements", "write mx-eXmY...")
        return BlockFormat(element, block)
    return BlockFormat(_MX[base], block) if base in _MX else None
