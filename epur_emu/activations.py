"""Tables of the activation functions, correctly rounded, and the error of each method of computing them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu.arithmetic import Arithmetic, arithmetic
from epur_emu.errors import FormatError
from epur_emu.formats import FixedFormat, FloatFormat, Format, unraising
from epur_emu.rounding import F32, F64, round_to

#: Functions that have tables.
FUNCTIONS = ("sigmoid", "tanh", "exp")

#: The interval [-end, end] that ``pwl-N`` divides into N segments.
ENDS = {"sigmoid": 8, "tanh": 4}

#: Most bits of a format whose codes are all tried.
TABLE_BITS = 16

#: Digits of exact evaluations; float32 has 7, and these functions come no nearer to a boundary by chance.
_EXACT = Context(prec=60, Emin=-999999, Emax=999999)

#: Relative error that float64 evaluations stay below.
_TRUSTED = 2.0**-48


def values(format: Format) -> F32:
    """Value of every code of a float or fixed-point format, in the codes' order.

    Returns
    -------
    float32 array of ``2**format.bits``
        Fixed-point codes are two's complement; zeros are +0.

    Raises
    ------
    FormatError
        The format has more than 16 bits, or is linear or in blocks.
    """
    if not isinstance(format, FloatFormat | FixedFormat) or format.bits > TABLE_BITS:
        raise FormatError(
            "tables", "format", f"is {format}",
            f"use a float or fixed-point format of at most {TABLE_BITS} bits",
        )  # fmt: skip
    codes = np.arange(2**format.bits, dtype=np.int64)
    if isinstance(format, FixedFormat):
        signed = np.where(codes > format.max_code, codes - len(codes), codes)
        numbers: F32 = np.ldexp(signed.astype(np.float32), -format.fraction_bits)
        return numbers
    m = format.mantissa_bits
    field, significand = codes >> m & (2**format.exponent_bits - 1), codes & (2**m - 1)
    magnitude = np.ldexp(
        np.where(field > 0, significand + 2**m, significand * format.subnormals).astype(np.float64),
        np.maximum(field, 1) - format.bias - m,
    )
    if format.specials == "ieee":
        special = field == 2**format.exponent_bits - 1
        magnitude = np.where(special, np.where(significand > 0, np.nan, np.inf), magnitude)
    if format.specials == "fn":
        magnitude = np.where(magnitude > float(format.max), np.nan, magnitude)
    negative = codes >> (format.bits - 1) > 0
    found: F32 = np.where(negative, -magnitude, magnitude).astype(np.float32)
    return found + np.float32(0)


def _exact(kind: str, x: Decimal) -> Decimal:
    """The function in the current context's digits; exact where its result is rational."""
    if kind == "exp":
        return x.exp()
    if kind == "sigmoid":
        return 1 / (1 + (-x).exp())
    e = (2 * abs(x)).exp()
    return ((e - 1) / (e + 1)).copy_sign(x)


def _to_odd(exact: Decimal | Fraction) -> float:
    """Round to odd: towards zero, last bit set if inexact. Rounded again, it gives what `exact` does."""
    wanted = Fraction(exact)
    found = float(wanted)
    if Fraction(found) == wanted:
        return found
    if abs(Fraction(found)) > abs(wanted):
        found = float(np.nextafter(found, 0.0))
    return (
        found
        if int(np.float64(found).view(np.int64)) & 1
        else float(np.nextafter(found, found * 2))
    )


def _estimate(kind: str, x: F64) -> tuple[F64, npt.NDArray[np.bool_]]:
    """The function in float64 of finite x, and where that rounds as the function itself does.

    Elsewhere the relative error is below `_TRUSTED`. Where the function is nearer to a value v that every
    format has than formats of 16 bits can tell, the result is the float64 beside v on the function's side.
    """
    a = np.abs(x)
    e = np.exp(x if kind == "exp" else -a)
    if kind == "tanh":
        y = np.where(a > 15, np.copysign(1.0, x), np.where(a < 2.0**-16, x, np.tanh(x)))
        beside = (a > 15) | ((a < 2.0**-16) & (a > 0))
        return np.where(beside, np.nextafter(y, 0.0), y), beside | (x == 0)
    small = a < 2.0**-30
    if kind == "exp":
        y = np.where(small, 1.0, np.clip(e, 5e-324, np.finfo(np.float64).max))
        end = np.sign(x) * np.inf
        extreme = (y < 1e-300) | (y > 1e300)
    else:
        y = np.where(small, 0.5, np.where(x < 0, np.maximum(e, 5e-324), 1.0) / (1.0 + e))
        y = np.where(x > 25, 1.0, y)
        small |= x > 25
        end = np.where(x > 25, 0.0, np.sign(x) * np.inf)
        extreme = y < 1e-300
    return np.where(small & (x != 0), np.nextafter(y, end), y), small | extreme


def correctly_rounded(
    kind: str, x: npt.ArrayLike, format: Format, mode: str = "nearest-even"
) -> F32:
    """A function of values of a format of at most 16 bits, rounded once.

    In float64 first; where the error of that could matter (Ziv's test), in 60 decimal digits.

    Parameters
    ----------
    kind : {"sigmoid", "tanh", "exp"}
    x : float array
    format : Format
        Of the results; up to 16 bits.
    mode : str
        One of `formats.MODES` but ``stochastic``.

    Returns
    -------
    float32 array of x's shape

    Raises
    ------
    FormatError
        The function or mode has no table.
    """
    if kind not in FUNCTIONS:
        raise FormatError(
            "tables", "function", f"is {kind!r}", f"use one of {', '.join(FUNCTIONS)}"
        )
    if mode == "stochastic":
        raise FormatError("tables", "mode", "is 'stochastic', different each time", "use another")
    arguments = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        finite = np.isfinite(arguments)
        y, sure = _estimate(kind, np.where(finite, arguments, 0.0))
        # At infinities and not-a-number numpy's functions are exact.
        limits = np.tanh(arguments) if kind == "tanh" else np.exp(arguments)
        limits = 1.0 / (1.0 + np.exp(-arguments)) if kind == "sigmoid" else limits
        y, sure = np.where(finite, y, limits), sure | ~finite
        found = round_to(np.where(sure, y, y * (1 - _TRUSTED)), format, mode)
        other = round_to(np.where(sure, y, y * (1 + _TRUSTED)), format, mode)
        doubtful = np.flatnonzero(~sure & (found != other))
    if doubtful.size:
        with localcontext(_EXACT):
            exact = [_to_odd(_exact(kind, Decimal(float(v)))) for v in arguments.flat[doubtful]]
        found.flat[doubtful] = round_to(np.array(exact), format, mode)
    return found


@lru_cache(maxsize=32)
def function_table(kind: str, format: Format, mode: str = "nearest-even") -> F32:
    """The function of every code of a format of at most 16 bits, rounded once to the format.

    Parameters
    ----------
    kind : {"sigmoid", "tanh", "exp"}
    format : FloatFormat or FixedFormat
    mode : str
        One of `formats.MODES` but ``stochastic``.

    Returns
    -------
    float32 array of ``2**format.bits``, read-only
        In the order of `values`; not-a-number where the argument is.

    Raises
    ------
    FormatError
        The function, format or mode has no table.
    """
    table = correctly_rounded(kind, values(format), format, mode)
    table.flags.writeable = False
    return table


def exp_table(format: Format, mode: str = "nearest-even") -> F32:
    """``function_table("exp", format, mode)``."""
    return function_table("exp", format, mode)


@lru_cache(maxsize=64)
def pwl_table(kind: str, segments: int, mu_format: FloatFormat | FixedFormat) -> tuple[F32, F32]:
    """Slope and intercept of each segment of ``pwl-N``, as `docs/arithmetic.md` defines them.

    Parameters
    ----------
    kind : {"sigmoid", "tanh"}
    segments : int
        N, 1 or more.
    mu_format : FloatFormat or FixedFormat of up to 24 bits

    Returns
    -------
    (slopes, intercepts) : float32 arrays of N, read-only

    Raises
    ------
    FormatError
        The function or number of segments can't be used.
    """
    if kind not in ENDS:
        raise FormatError("tables", "function", f"is {kind!r}", f"use one of {', '.join(ENDS)}")
    if segments < 1:
        raise FormatError("tables", "segments", f"are {segments}", "use 1 or more")
    end = ENDS[kind]
    knots = [Fraction(2 * end * k, segments) - end for k in range(segments + 1)]
    with localcontext(_EXACT):
        heights = [Fraction(_exact(kind, Decimal(k.numerator) / k.denominator)) for k in knots]
    width = Fraction(2 * end, segments)
    rises = [_to_odd((b - a) / width) for a, b in pairwise(heights)]
    slopes = round_to(np.array(rises), unraising(mu_format))
    starts = [
        _to_odd(height - Fraction(float(slope)) * knot)
        for height, slope, knot in zip(heights, slopes, knots, strict=False)
    ]
    intercepts = round_to(np.array(starts), unraising(mu_format))
    slopes.flags.writeable = intercepts.flags.writeable = False
    return slopes, intercepts


def evaluate(kind: str, x: F32, rules: Arithmetic) -> F32:
    """An activation as the MU computes it, to nearest even, in a format of at most 16 bits.

    Float64 does every operation: its second rounding is innocuous, since it has more than twice the
    bits of the format and two.

    Parameters
    ----------
    kind : {"sigmoid", "tanh"}
    x : float32 array
        Values of the MU's format.
    rules : Arithmetic
        Its ``mu``, ``activation`` and ``clamp`` say how.

    Returns
    -------
    float32 array of x's shape
    """
    mu = rules.mu

    def once(exact: F64) -> F64:
        return round_to(exact, mu).astype(np.float64)

    def exponential(v: F64) -> F64:
        return correctly_rounded("exp", v, mu).astype(np.float64)

    limit = rules.limit
    r = np.clip(x.astype(np.float64), -limit, limit)
    with np.errstate(all="ignore"):
        if rules.activation == "exact":
            return correctly_rounded(kind, r, mu)
        if rules.segments is not None:
            end = ENDS[kind]
            r = np.clip(r, -end, end)
            slopes, intercepts = pwl_table(kind, rules.segments, mu)
            whole = np.floor(np.nan_to_num(r * rules.segments)).astype(np.int64)
            k = np.minimum((whole + end * rules.segments) // (2 * end), rules.segments - 1)
            product = once(slopes[k].astype(np.float64) * r)
            return round_to(product + intercepts[k], mu)
        if kind == "sigmoid":
            return round_to(1.0 / once(exponential(-r) + 1.0), mu)
        a, b = exponential(r), exponential(-r)
        return round_to(once(a - b) / once(a + b), mu)


@dataclass(frozen=True)
class Errors:
    """Error of one method over every finite input of a format.

    `max_abs` and `mean_abs` are absolute; `max_ulp` and `mean_ulp` in units of the format's last place at
    the exact value; `worst` is the input of the largest absolute error.
    """

    function: str
    method: str
    format: str
    inputs: int
    max_abs: float
    mean_abs: float
    max_ulp: float
    mean_ulp: float
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def errors(method: str, format: Format) -> tuple[Errors, Errors]:
    """Errors of sigmoid and tanh by one method, over every finite input of a format.

    Parameters
    ----------
    method : str
        ``epur``, ``exact`` or ``pwl-N``.
    format : FloatFormat or FixedFormat of at most 16 bits
        Of the MU.

    Raises
    ------
    FormatError
        The method is unknown, or the format can't be used with it.
    """
    inputs = values(format)
    rules = replace(arithmetic(f"epur-{format}"), activation=method)
    x = inputs[np.isfinite(inputs)]
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact: dict[str, F64] = {"sigmoid": 1.0 / (1.0 + np.exp(-wide)), "tanh": np.tanh(wide)}
    found = []
    for kind, truth in exact.items():
        off = np.abs(evaluate(kind, x, rules) - truth)
        places = off / _unit(truth, rules.mu)
        found.append(
            Errors(
                kind, method, str(format), len(x), float(off.max()), float(off.mean()),
                float(places.max()), float(places.mean()), float(x[off.argmax()]),
            )
        )  # fmt: skip
    return found[0], found[1]


def _unit(truth: F64, format: FloatFormat | FixedFormat) -> F64:
    """Unit of the last place of the format at each value."""
    if isinstance(format, FixedFormat):
        return np.full(truth.shape, float(format.epsilon))
    exponent = np.maximum(np.frexp(truth)[1] - 1, format.min_exponent)
    units: F64 = np.ldexp(1.0, exponent - format.mantissa_bits)
    return units
