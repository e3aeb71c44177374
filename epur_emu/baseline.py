"""Analytic models of general-purpose processors that evaluate an LSTM: bandwidth- and launch-limited."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from epur_emu.errors import EpurError
from epur_emu.network import LayerShape
from epur_emu.toml import Presets

Shape = tuple[tuple[LayerShape, ...], ...]

#: Who says a parameter's value.
STATUSES = ("published", "measured", "derived", "assumed")


@dataclass(frozen=True)
class Baseline:
    """A processor; units and sources of its parameters stand in ``data/baselines/*.toml``.

    Every kernel takes the longest of its floating-point operations at the peak rate, its weights'
    bytes at the reached bandwidth, and a launch; kernels follow one another, as the recurrence has it.
    A matrix that fits in half of the cache is read from DRAM at the first time step alone.

    Raises
    ------
    EpurError
        A field is no positive number.
    """

    name: str
    summary: str
    peak_flops: float
    dram_bandwidth: float
    bandwidth_share: float
    cache_bytes: float
    launch_s: float
    matrix_kernels: float
    pointwise_kernels: float
    element_bytes: float
    power_w: float

    def __post_init__(self) -> None:
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value < math.inf):
                raise EpurError(self.name, field.name, f"is {value!r}", "give a positive number")
        if self.bandwidth_share > 1:
            raise EpurError(
                self.name, "bandwidth_share", f"is {self.bandwidth_share}", "give at most 1"
            )

    def seconds(self, shape: Shape, steps: int, batched_inputs: bool = False) -> float:
        """Time of a sequence.

        Parameters
        ----------
        shape : tuple of tuple of LayerShape
        steps : int
        batched_inputs : bool
            Whether the forward connections of all time steps are one product each, so that their
            weights are read once: MWL's order, in software.
        """
        if steps == 0:
            return 0.0
        total = 0.0
        for p in (p for layer in shape for p in layer):
            half = self.matrix_kernels / 2
            products = 4 / half
            own = self._kernel(p.cells * p.cells * products, steps, 1)
            given = (
                self._kernel(p.cells * p.inputs * products, 1, steps)
                if batched_inputs
                else self._kernel(p.cells * p.inputs * products, steps, 1)
            )
            total += half * (own + given) + self.pointwise_kernels * self.launch_s * steps
        return total

    def _kernel(self, weights: float, calls: int, columns: int) -> float:
        """Time of `calls` products of a matrix of so many weights with `columns` vectors."""
        reading = weights * self.element_bytes / (self.dram_bandwidth * self.bandwidth_share)
        computing = 2 * weights * columns / self.peak_flops
        cached = weights * self.element_bytes <= self.cache_bytes / 2
        first = max(reading, computing, self.launch_s)
        later = max(0.0 if cached else reading, computing, self.launch_s)
        return first + (calls - 1) * later

    def joules(self, seconds: float) -> float:
        """Energy of so long a computation."""
        return self.power_w * seconds

    def varied(self, **values: float) -> Baseline:
        """The same with other parameters."""
        return replace(self, **values)  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, plain: dict[str, Any], source: str | Path = "baseline") -> Baseline:
        """A baseline from its fields, each a value or a table ``{value, unit, source, status}``.

        Raises
        ------
        EpurError
            A field is missing, unknown or out of range.
        """
        known = {field.name for field in fields(cls)}
        for names, problem in ((known - set(plain), "missing"), (set(plain) - known, "unknown")):
            if names:
                raise EpurError(source, ", ".join(sorted(names)), problem, "mend the fields")
        values = {}
        for name, value in plain.items():
            if isinstance(value, dict):
                if set(value) != {"value", "unit", "source", "status"}:
                    raise EpurError(source, name, "lacks value, unit, source or status", "add it")
                if value["status"] not in STATUSES:
                    raise EpurError(
                        source, f"{name}.status", f"is {value['status']!r:.60}",
                        f"use one of {', '.join(STATUSES)}",
                    )  # fmt: skip
                value = value["value"]
            values[name] = value
        return cls(**values)

    @classmethod
    def load(cls, name: str | Path) -> Baseline:
        """A preset by name, or a TOML file by path.

        Raises
        ------
        EpurError
            There is none, or it is damaged.
        """
        return cls.from_dict(_PRESETS.read(str(name)), str(name))


_PRESETS = Presets("baselines", "baseline", EpurError)


def baselines() -> list[str]:
    """Names of the processors that come with the package."""
    return _PRESETS.names()
