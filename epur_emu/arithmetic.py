"""Which format each place of the datapath uses, and how activations are computed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from epur_emu.errors import FormatError
from epur_emu.formats import FP16, FP32, INT8, FloatFormat, Format, parse


@dataclass(frozen=True)
class Arithmetic:
    """Formats of the places of the datapath; every operation rounds once, to nearest even.

    ``epur-fp16`` uses fp16 at every place. Its kernels compute in float32 vectors, which is exact
    there: two 11-bit significands have a 22-bit product, so a product is exact before it is rounded;
    and since 24 >= 2 * 11 + 2, rounding a sum or a quotient of fp16 values to float32 first and to
    fp16 then equals rounding it once (Figueroa, "When is double rounding innocuous?", 1995). An fp16
    result below 2**-14 is a multiple of 2**-24: a sum there is exact; for a quotient a / b the
    distance to a midpoint is at least 2**-11 of the last place, more than float32's error.

    Parameters
    ----------
    name : str
    weight, input, product, tree, accumulator, mu, cell, output : FloatFormat
        Weights; x_t and h_{t-1}; products; sums of the adder tree; the DPU's accumulator; the MU's
        operations; cell state; h_t.
    partial : LinearFormat or FloatFormat
        How E-PUR+MWL stores forward partial sums: a `LinearFormat` quantises them on a calibrated
        scale; the accumulator's format keeps them.
    clamp : float
        The MU's comparator clamps the argument r of an activation to [-clamp, clamp] before any
        exponential, so that no exponential overflows (assumed: the paper does not say).
    bit_exact : bool
        False for ``float32``: ordinary float32 matrix products in numpy's order, the reference.
    """

    name: str
    weight: FloatFormat
    input: FloatFormat
    product: FloatFormat
    tree: FloatFormat
    accumulator: FloatFormat
    mu: FloatFormat
    cell: FloatFormat
    output: FloatFormat
    partial: Format
    clamp: float = 11.0
    bit_exact: bool = True

    def with_partial(self, partial: Format) -> Arithmetic:
        """The same with another format of stored partial sums (the accumulator's own keeps them)."""
        return replace(self, name=f"{self.name.split('+')[0]}+{partial}", partial=partial)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the same Arithmetic back."""
        plain = {}
        for field in fields(self):
            value = getattr(self, field.name)
            plain[field.name] = value if isinstance(value, str | float | bool) else str(value)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Arithmetic:
        """Inverse of `to_dict`."""
        known = {field.name for field in fields(cls)}
        if set(plain) != known:
            odd = sorted(set(plain) ^ known)
            raise FormatError("arithmetic", ", ".join(odd), "missing or unknown", "mend the keys")
        own = {"name", "clamp", "bit_exact"}
        values: dict[str, Any] = {k: v if k in own else parse(v) for k, v in plain.items()}
        return cls(**values)


def _uniform(name: str, place: FloatFormat, partial: Format, bit_exact: bool = True) -> Arithmetic:
    return Arithmetic(
        name, place, place, place, place, place, place, place, place, partial, bit_exact=bit_exact
    )


ARITHMETICS = {
    a.name: a
    for a in (
        _uniform("float32", FP32, partial=FP32, bit_exact=False),
        _uniform("epur-fp16", FP16, partial=INT8),
    )
}


def arithmetic(name: str) -> Arithmetic:
    """The preset of this name; ``NAME+FORMAT`` stores MWL's partial sums in another format.

    Raises
    ------
    FormatError
        There is none; the message lists them.
    """
    preset, plus, partial = name.partition("+")
    if preset not in ARITHMETICS:
        raise FormatError(
            "arithmetic", repr(name), "is not known", f"use one of {', '.join(ARITHMETICS)}"
        )
    found = ARITHMETICS[preset]
    return found.with_partial(parse(partial)) if plus else found
