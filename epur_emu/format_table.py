"""What `epur formats` lists: number formats with their range and the energy of an operation."""

from __future__ import annotations

from typing import Any

from epur_emu.energy import EnergyTable
from epur_emu.formats import BlockFormat, FloatFormat, Format, LinearFormat

#: Formats that are listed when none is asked for; any other name works too.
LISTED = (
    "fp32", "tf32", "fp16", "bf16", "e5m7", "e5m2", "e4m3", "e4m3fn", "e3m4", "e3m2f", "e2m3f", "e2m1f",
    "q3.12", "q7.8", "q1.6", "int16", "int8", "int4", "mxfp8", "mxfp6", "mxfp4", "mxint8",
)  # fmt: skip

#: Bits of a block's shared power of two.
SCALE_BITS = 8


def describe(format: Format, table: EnergyTable) -> dict[str, Any]:
    """One format as plain values.

    Returns
    -------
    dict
        ``name``, ``bits`` (of a block format: per value, its share of the scale included), ``bytes`` (of the
        container in a memory; of blocks without the scale), ``min_positive``, ``min_normal``, ``max``,
        ``epsilon`` (blocks: the element's, times the shared scale; linear formats: codes, times the scale),
        ``multiply_pj``, ``add_pj``. None where a format has no such number or the table no such energy.
    """
    element = format.element if isinstance(format, BlockFormat) else format
    bits = element.bits + (SCALE_BITS / format.block if isinstance(format, BlockFormat) else 0)
    row: dict[str, Any] = {"name": str(format), "bits": bits, "bytes": format.bytes}
    if isinstance(element, LinearFormat):
        row |= {"min_positive": 1, "min_normal": None, "max": element.max, "epsilon": 1}
    else:
        normal = float(element.min_normal) if isinstance(element, FloatFormat) else None
        row |= {
            "min_positive": float(element.min_positive), "min_normal": normal,
            "max": float(element.max), "epsilon": float(element.epsilon),
        }  # fmt: skip
    for operation in ("multiply", "add"):
        row[f"{operation}_pj"] = energy_of(operation, format, table)
    return row


def energy_of(operation: str, format: Format, table: EnergyTable) -> float | None:
    """Energy in pJ of one operation, None if the table has none for the format."""
    known = {(o.name, o.format) for o in table.operations}
    return table.operation_pj(operation, str(format)) if (operation, str(format)) in known else None
