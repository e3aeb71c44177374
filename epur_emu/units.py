"""Numbers with units, as people read them."""

from __future__ import annotations

import math


def si(value: float, unit: str) -> str:
    """A number with a metric prefix, four digits: ``12.35 uJ``."""
    if not value:
        return f"0 {unit}"
    power = max(-4, min(3, math.floor(math.log10(abs(value)) / 3)))
    return f"{value / 1000.0**power:.4g} {['p', 'n', 'u', 'm', '', 'k', 'M', 'G'][power + 4]}{unit}"
