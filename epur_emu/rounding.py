"""Rounding of arrays to a number format: ``round_to(array, format, mode)``.

`docs/arithmetic.md` says what a rounding is; float32 goes through the compiled kernels, float64 through numpy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from epur_emu._kernels import rounding as kernels
except ImportError as error:
    raise ImportError(
        f"the kernels are not built in {__package__} at {os.path.dirname(__file__)}: "
        "in the source tree, pip install -e . builds them"
    ) from error
from epur_emu.errors import FormatError
from epur_emu.formats import (
    MODES,
    STOCHASTIC_BITS,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    Format,
    LinearFormat,
)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8] | npt.NDArray[np.int16]
Words = npt.NDArray[np.uint32]

#: How the random words of a stochastic rounding are given: an array, or (seed, counter of the first).
Random = Words | tuple[int, int]

#: Ways to choose the largest magnitude that a linear format's codes reach.
CALIBRATIONS = ("max", "percentile", "mse")

#: Most bits of a fixed-point format whose values float32 holds.
FIXED_BITS = 24

#: Largest magnitudes, as parts of the samples' largest, that ``mse`` tries.
CANDIDATES = np.linspace(0.01, 1.0, 100)

_OVERFLOW = {"ieee": 0, "fn": 1, "none": 2}
_SATURATED = 2


@dataclass
class Counts:
    """What roundings did, summed over calls; `docs/arithmetic.md` defines the three events."""

    overflow: int = 0
    saturation: int = 0
    underflow: int = 0


def level_number(name: str | None = None, known: Sequence[str] = kernels.LEVELS) -> int:
    """Number of a CPU level by name; by default the one in ``EPUR_SIMD``, or else the best.

    Parameters
    ----------
    name : str, optional
    known : sequence of str
        Levels that can be had, plainest first.

    Raises
    ------
    FormatError
        The level is unknown or not to be had on this CPU.
    """
    name = name or os.environ.get("EPUR_SIMD") or known[-1]
    if name not in known:
        raise FormatError(
            "EPUR_SIMD", repr(name), "can't run here", f"use one of {', '.join(known)}"
        )
    return list(known).index(name)


def mix(x: Words) -> Words:
    """The hash of the random words, of each uint32 of an array."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def random_words(seed: int, start: int, count: int) -> Words:
    """Random words of a seed: word n is ``mix(mix(seed) ^ n * 0x9e3779b9)``, n from `start` on.

    Returns
    -------
    uint32 array of `count`
    """
    n = np.arange(start, start + count, dtype=np.int64).astype(np.uint32)
    return mix(mix(np.full(1, seed, np.uint32)) ^ n * np.uint32(0x9E3779B9))


def round_to(
    array: npt.ArrayLike,
    format: Format,
    mode: str = "nearest-even",
    *,
    random: Random | None = None,
    counts: Counts | None = None,
    out: F32 | None = None,
    level: str | None = None,
) -> F32:
    """Round every value to a float, fixed-point or block format, once.

    Parameters
    ----------
    array : float32 or float64 array
        Half-precision arrays are taken as float32.
    format : FloatFormat, FixedFormat of up to 24 bits, or BlockFormat
        Blocks lie along the last axis.
    mode : str
        One of `formats.MODES`; blocks are rounded to nearest even, whatever it is.
    random : uint32 array of the array's shape, or (seed, start)
        For ``stochastic`` only. The upper 12 bits of a word are its value's random number R; with
        (seed, start) value k of the flattened array has word ``start + k`` of `random_words`, so
        that parts of an array rounded apart give what the whole does.
    counts : Counts
        Added to.
    out : float32 array of the array's shape, C-contiguous
        Where the result goes; it may be `array` itself.
    level : {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512fp16"}
        All give the same bits.

    Returns
    -------
    float32 array of the array's shape
        Values of the format; zeros are +0.

    Raises
    ------
    FormatError
        The format or mode can't be used, `random` doesn't fit, or a ``-raise`` format overflows.
    """
    values = np.asarray(array)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.dtype not in (np.float32, np.float64):
        raise FormatError("round_to", "array", f"is {values.dtype}", "give float32 or float64")
    if mode not in MODES:
        raise FormatError("round_to", "mode", f"is {mode!r}", f"use one of {', '.join(MODES)}")
    if isinstance(format, LinearFormat):
        raise FormatError("round_to", "format", f"is {format}", "use quantise and dequantise")
    element = format.element if isinstance(format, BlockFormat) else format
    if isinstance(element, FixedFormat) and element.bits > FIXED_BITS:
        raise FormatError(
            "round_to", "format", f"is {format}, {element.bits} bits", f"use at most {FIXED_BITS}"
        )
    if isinstance(format, BlockFormat):
        mode, random = "nearest-even", None
    words, seed, start = _random(random, mode, values.shape)
    result = np.empty(values.shape, np.float32) if out is None else out
    if result.shape != values.shape or result.dtype != np.float32 or not result.flags.carray:
        raise FormatError(
            "round_to", "out", f"is {result.dtype} {result.shape}",
            f"give a C-contiguous, aligned float32 array {values.shape}",
        )  # fmt: skip
    values = np.ascontiguousarray(np.require(values, requirements=["A"]))
    if values is not out and np.may_share_memory(values, result):
        values = values.copy()
    if not values.size:
        return result
    seen = np.zeros(3, np.int64)
    watched = isinstance(element, FixedFormat) and element.overflow == "raise"
    counted = seen if counts is not None or watched else None
    if values.dtype == np.float64:
        _round_double(values, result, format, mode, words, (seed, start), seen)
    else:
        number = level_number(level)
        key = int(mix(np.full(1, seed, np.uint32))[0]) if random is not None else 0
        _round_single(
            number, values, result, format, MODES.index(mode), words, (key, start), counted
        )
    if watched and seen[1]:
        raise FormatError(
            "round_to", "array", f"has {seen[1]} values out of {format}'s range",
            "scale them or let the format saturate",
        )  # fmt: skip
    if counts is not None:
        counts.overflow += int(seen[0])
        counts.saturation += int(seen[1])
        counts.underflow += int(seen[2])
    return result


def _random(
    random: Random | None, mode: str, shape: tuple[int, ...]
) -> tuple[Words | None, int, int]:
    if (random is None) == (mode == "stochastic"):
        raise FormatError(
            "round_to", "random", f"is {'missing' if random is None else 'given'} with mode {mode!r}",
            "give it with stochastic rounding, and only there",
        )  # fmt: skip
    if random is None:
        return None, 0, 0
    if isinstance(random, tuple):
        seed, start = random
        if not 0 <= seed < 2**32 or not 0 <= start < 2**32:
            raise FormatError("round_to", "random", f"is {random}", "use 0 to 4294967295")
        return None, seed, start
    if random.dtype != np.uint32 or random.shape != shape:
        raise FormatError(
            "round_to", "random", f"is {random.dtype} {random.shape}", f"give uint32 {shape}"
        )
    return np.require(random, requirements=["C", "A"]).ravel(), 0, 0


def _overflow(format: FloatFormat) -> int:
    return _SATURATED if format.saturate else _OVERFLOW[format.specials]


def _range(format: FixedFormat) -> tuple[float, float]:
    return float(format.min_code * format.epsilon), float(format.max)


def _round_single(
    level: int,
    values: F32,
    result: F32,
    format: FloatFormat | FixedFormat | BlockFormat,
    mode: int,
    words: Words | None,
    counter: tuple[int, int],
    seen: npt.NDArray[np.int64] | None,
) -> None:
    if isinstance(format, BlockFormat):
        columns = values.shape[-1] if values.ndim else 1
        v, r, e = values.reshape(-1, columns), result.reshape(-1, columns), format.element
        if isinstance(e, FloatFormat):
            kernels.round_float_blocks(
                level, v, r, format.block, e.exponent_bits, e.mantissa_bits, _overflow(e),
                float(e.max), format.max_exponent, seen,
            )  # fmt: skip
        else:
            kernels.round_fixed_blocks(level, v, r, format.block, e.fraction_bits, *_range(e), seen)
        return
    flat, out = values.reshape(-1), result.reshape(-1)
    if isinstance(format, FloatFormat):
        kernels.round_float(
            level, flat, out, format.exponent_bits, format.mantissa_bits, format.subnormals,
            _overflow(format), float(format.max), mode, words, *counter, seen,
        )  # fmt: skip
    else:
        kernels.round_fixed(
            level, flat, out, format.fraction_bits, format.overflow == "wrap", *_range(format),
            mode, words, *counter, seen,
        )  # fmt: skip


def _round_double(
    values: F64,
    result: F32,
    format: FloatFormat | FixedFormat | BlockFormat,
    mode: str,
    words: Words | None,
    counter: tuple[int, int],
    seen: npt.NDArray[np.int64],
) -> None:
    """Round float64: every step but the rounding to an integer is exact."""
    with np.errstate(all="ignore"):
        if isinstance(format, BlockFormat):
            _round_double_blocks(values, result, format, seen)
            return
        if mode == "stochastic":
            words = random_words(*counter, values.size) if words is None else words
        shift = np.uint32(32 - STOCHASTIC_BITS)
        random = None if words is None else words.reshape(values.shape) >> shift
        result[...] = _rounded(values, format, mode, random, seen)


def _integer(t: F64, negative: npt.NDArray[np.bool_], mode: str, random: Words | None) -> F64:
    """Round non-negative t, a magnitude in units, to an integer."""
    if mode == "nearest-even":
        return np.rint(t)
    below = np.floor(t)
    rest = t - below
    if mode == "stochastic" and random is not None:
        whole = 2.0**STOCHASTIC_BITS
        return below + (np.floor(rest * whole) + random >= whole)
    if mode == "nearest-away":
        return below + (rest >= 0.5)
    away = {"zero": np.zeros_like(negative), "up": ~negative, "down": negative}[mode]
    return below + ((rest > 0) & away)


def _rounded(
    values: F64,
    format: FloatFormat | FixedFormat,
    mode: str,
    random: Words | None,
    seen: npt.NDArray[np.int64],
) -> F64:
    a, negative, finite = np.abs(values), np.signbit(values), np.isfinite(values)
    nan = np.isnan(values)
    if isinstance(format, FixedFormat):
        f = format.fraction_bits
        t = np.ldexp(a, f)
        codes = np.where(np.isfinite(t), _integer(t, negative, mode, random), t)
        codes = np.where(negative, -codes, codes)
        past = (codes > format.max_code) | (codes < format.min_code)
        seen[1] += int(past.sum())
        if format.overflow == "wrap":
            codes = np.mod(codes, 2.0**format.bits)
            codes = np.where(codes > format.max_code, codes - 2.0**format.bits, codes)
        codes = np.where(np.isnan(codes), 0, np.clip(codes, format.min_code, format.max_code))
        seen[2] += int(((a > 0) & (codes == 0) & ~past).sum())
        return np.ldexp(codes, -f) + 0.0
    largest, least = float(format.max), float(format.min_normal)
    exponent = np.frexp(a)[1] - 1
    if format.subnormals:
        exponent = np.maximum(exponent, format.min_exponent)
    places = format.mantissa_bits - exponent
    kept = np.where(finite, a, 1.0)
    rounded = np.where(
        finite, np.ldexp(_integer(np.ldexp(kept, places), negative, mode, random), -places), a
    )
    if not format.subnormals:
        rounded = np.where(rounded < least, 0.0, rounded)
    past = rounded > largest
    outcome = (np.inf, np.nan, largest)[_overflow(format)]
    stops = {"zero": np.ones_like(negative), "up": negative, "down": ~negative}.get(mode)
    over = np.full(values.shape, outcome)
    if stops is not None:
        over = np.where(stops & finite, largest, over)
    rounded = np.where(past, over, rounded)
    seen[0] += int((past & finite & (rounded != largest)).sum())
    seen[1] += int((past & (rounded == largest)).sum())
    seen[2] += int(((a > 0) & (a < least) & (rounded != a)).sum())
    return np.where(nan, np.nan, np.where(negative, -rounded, rounded)) + 0.0


def _round_double_blocks(
    values: F64, result: F32, format: BlockFormat, seen: npt.NDArray[np.int64]
) -> None:
    columns = values.shape[-1] if values.ndim else 1
    v, r = values.reshape(-1, columns), result.reshape(-1, columns)
    for begin in range(0, columns, format.block):
        part = v[:, begin : begin + format.block]
        largest = np.abs(part).max(axis=1, keepdims=True)
        # Not even the largest scale brings what float32 can't hold into the element's range.
        bad = ~(largest <= np.finfo(np.float32).max)
        exponent = np.frexp(np.where(bad | (largest == 0), 1.0, largest))[1] - 1
        k = np.maximum(exponent - format.max_exponent, -127)
        scaled = np.ldexp(np.where(bad, 0.0, part), -k)
        rounded = np.ldexp(_rounded(scaled, format.element, "nearest-even", None, seen), k)
        r[:, begin : begin + format.block] = np.where(bad, np.nan, rounded)


def quantise(
    array: npt.ArrayLike, format: LinearFormat, alpha: Any, counts: Counts | None = None
) -> Codes:
    """Codes of values on a symmetric scale: ``rne(v L / alpha)``, clipped to +-L.

    Parameters
    ----------
    array : float32 array
        Not-a-number becomes 0.
    format : LinearFormat
        L is its `max`.
    alpha : float32, or array that broadcasts against `array`
        The magnitude whose code is L; of a matrix by rows, alpha has shape (rows, 1).
    counts : Counts, optional
        Added to.

    Returns
    -------
    int8 array, or int16 beyond 8 bits

    Notes
    -----
    The quotient in float64 is rounded twice without harm: one that is not a tie lies at least
    2**-40 of its size off every tie.

    Raises
    ------
    FormatError
        alpha is not positive and finite.
    """
    top = format.max
    scale = _alpha(alpha)
    exact = np.asarray(array, np.float32).astype(np.float64) * top / scale
    exact = np.where(np.isnan(exact), 0.0, exact)
    whole = np.rint(exact)
    codes = np.clip(whole, -top, top)
    if counts is not None:
        counts.underflow += int(np.count_nonzero((whole == 0) & (exact != 0)))
        counts.saturation += int(np.count_nonzero(codes != whole))
    return codes.astype(np.int8) if format.bits <= 8 else codes.astype(np.int16)


def dequantise(codes: npt.NDArray[np.integer[Any]], format: LinearFormat, alpha: Any) -> F32:
    """Values of codes, ``q alpha / L`` rounded once to float32.

    Raises
    ------
    FormatError
        alpha is not positive and finite.
    """
    products: F64 = codes.astype(np.float64) * _alpha(alpha)
    return (products / format.max).astype(np.float32)


def _alpha(alpha: Any) -> F64:
    scale = np.asarray(alpha, np.float32).astype(np.float64)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise FormatError("linear format", "alpha", f"is {alpha}", "give positive finite numbers")
    return scale


def calibration(
    values: npt.ArrayLike, bits: int, method: str = "max", percentile: float = 99.99
) -> np.float32:
    """The magnitude that the largest code of a linear format should stand for.

    Parameters
    ----------
    values : float array
        Samples; those that are not finite are left out.
    bits : int
        Of the linear format; only ``mse`` looks at it.
    method : {"max", "percentile", "mse"}
        The largest magnitude; the magnitude that `percentile` per cent of the samples don't exceed;
        or that of 100 parts of the largest (1 %, 2 %, ...) with the least mean squared error.
    percentile : float
        More than 0, at most 100.

    Returns
    -------
    float32
        1 if there is no sample but 0.

    Raises
    ------
    FormatError
        The method, percentile or bits can't be used.
    """
    if method not in CALIBRATIONS:
        raise FormatError(
            "calibration", "method", f"is {method!r}", f"use one of {', '.join(CALIBRATIONS)}"
        )
    if not 0 < percentile <= 100:
        raise FormatError("calibration", "percentile", f"is {percentile}", "use 0 to 100")
    format = LinearFormat(bits)
    a = np.abs(np.asarray(values, np.float32)).ravel()
    a = a[np.isfinite(a)]
    largest = a.max(initial=np.float32(0))
    if not largest:
        return np.float32(1)
    if method == "percentile":
        found = np.float32(np.percentile(a, percentile, method="higher"))
        return found if found > 0 else largest
    if method == "mse":
        tries = [np.float32(largest * part) for part in CANDIDATES]
        tries = [alpha for alpha in tries if alpha > 0]
        # The last of equals: the largest range.
        return min(reversed(tries), key=lambda alpha: _squared_error(a, format, alpha))
    return np.float32(largest)


def _squared_error(a: F32, format: LinearFormat, alpha: np.float32) -> float:
    error = dequantise(quantise(a, format, alpha), format, alpha).astype(np.float64) - a
    return float(error @ error)
