"""In which format each operation of a gate is performed, and how a trace names it.

A trace names an operation ``multiply.int8``, or ``multiply`` alone where the arithmetic has one float
format for all operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from epur_emu.arithmetic import OPERATIONS, Arithmetic
from epur_emu.formats import FixedFormat, FloatFormat, LinearFormat


def unit_format(fmt: FloatFormat | FixedFormat) -> str:
    """What a unit computes in: a float format by name; ``intN`` for fixed point of N bits."""
    return f"int{fmt.bits}" if isinstance(fmt, FixedFormat) else str(fmt)


def one_format(arithmetic: Arithmetic) -> bool:
    """Whether all operations of all gates are performed in one float format."""
    places = {getattr(arithmetic, place) for place in OPERATIONS if place != "cell"}
    return (
        not arithmetic.overrides
        and places == {arithmetic.mu}
        and isinstance(arithmetic.mu, FloatFormat)
    )


@dataclass(frozen=True)
class UnitFormats:
    """Formats of the operations of one gate's computation unit, by name.

    Parameters
    ----------
    multiply, tree, accumulator : str
        Of the DPU: the format of the result; for integer products the wider operand's.
    sum : str
        Of the DPU's result: partial sums are quantised from it, looked up and added in it.
    mu : str
        Of the multifunctional unit and of the links that leave it.
    """

    multiply: str
    tree: str
    accumulator: str
    sum: str
    mu: str

    @classmethod
    def of(cls, arithmetic: Arithmetic) -> UnitFormats:
        """Those of one gate: `Arithmetic.at` gives its arithmetic."""
        a = arithmetic
        multiply = unit_format(a.product)
        if isinstance(a.weight, LinearFormat) and isinstance(a.input, LinearFormat):
            multiply = f"int{max(a.weight.bits, a.input.bits)}"
        tree, accumulator = unit_format(a.tree), unit_format(a.accumulator)
        return cls(multiply, tree, accumulator, unit_format(a.sum), unit_format(a.mu))
