"""On-chip memories: grids of CACTI's results, and what lies between their points."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from epur_emu.energy.values import Reader, Value
from epur_emu.errors import TableError
from epur_emu.toml import Presets

#: What a memory may be for.
MEMORY_KINDS = ("weights", "parameters", "inputs", "row", "intermediate")

#: Ports of a memory: one that reads or writes, or one that reads and one that writes.
PORTS = ("1rw", "1r1w")

#: Macros that a memory of a kind is made of: the intermediate memory's halves are two.
MACROS = {"intermediate": 2}

#: What is known of a memory beside its size.
COSTS = ("read_pj", "write_pj", "leakage_mw", "area_mm2", "cycle_ns", "access_ns")
_SUMMED = ("leakage_mw", "area_mm2")


@dataclass(frozen=True)
class Memory:
    """An on-chip memory of one capacity, port width, number of banks, ports and kind of cell.

    ``read_pj`` and ``write_pj`` are for one access of the whole port; leakage and area are of all
    banks and macros together. ``parts`` is how many banks of its own CACTI gives each bank, so that
    the memory meets its clock.
    """

    kind: str
    capacity_bytes: int
    width_bits: int
    banks: int
    parts: int
    macros: int
    cell: str
    ports: str
    read_pj: Value
    write_pj: Value
    leakage_mw: Value
    area_mm2: Value
    cycle_ns: Value
    access_ns: Value


_Key = tuple[str, str, int, int, int]


@dataclass(frozen=True)
class _Point:
    """A request on one axis: the points around it, and how far it is from the lower one (0 to 1)."""

    low: int
    high: int
    share: float


def _around(value: int, axis: list[int]) -> _Point:
    """`value` between its neighbours on an axis, in logarithms; it lies within the axis."""
    at = max(1, min(bisect_right(axis, value), len(axis) - 1))
    low, high = axis[at - 1], axis[at]
    return _Point(low, high, math.log(value / low) / math.log(high / low))


@dataclass(frozen=True)
class Grid:
    """Memories of one technology by capacity, width, banks, cells and ports.

    Between its points every value is interpolated piecewise linearly in logarithms: first along the
    capacity, then the number of banks, then the width. Nothing is extrapolated.

    Parameters
    ----------
    name : str
    technology_nm : int
    temperature_k : int
    source, status : str
        Of its values.
    units : tuple of str
        Of `COSTS`.
    leakage_factor : dict of str to dict of int to float
        By cell and temperature (K), leakage over that at `temperature_k`.
    points, held_out : dict of (cell, ports, width_bits, banks, capacity) to tuple of float
        `COSTS` of each; what is held out is not interpolated from.
    """

    name: str
    technology_nm: int
    temperature_k: int
    source: str
    status: str
    units: tuple[str, ...]
    leakage_factor: dict[str, dict[int, float]]
    points: dict[_Key, tuple[float, ...]]
    held_out: dict[_Key, tuple[float, ...]]

    def axes(self, cell: str, ports: str) -> tuple[list[int], list[int], list[int]]:
        """Widths (bits), numbers of banks and capacities (bytes) of one kind of memory."""
        own = [key[2:] for key in self.points if key[:2] == (cell, ports)]
        return tuple(sorted(set(axis)) for axis in zip(*own, strict=True)) if own else ([], [], [])  # type: ignore[return-value]

    def memory(
        self, kind: str, capacity: int, width_bits: int, banks: int, cell: str, ports: str,
        temperature_k: int | None = None,
    ) -> Memory:  # fmt: skip
        """A memory between the grid's points.

        Parameters
        ----------
        kind : str
            One of `MEMORY_KINDS`; the intermediate memory is two macros, each of half the bytes.
        capacity : int
            Bytes.
        width_bits, banks : int
        cell, ports : str
        temperature_k : int, optional
            Kelvin, for leakage; the grid's own unless given.

        Raises
        ------
        TableError
            It lies outside the grid; the range is named.
        """
        macros = min(MACROS.get(kind, 1), banks)
        each, own_banks = capacity // macros, max(1, banks // macros)
        widths, counts, sizes = self.axes(cell, ports)
        what = f"memory {kind!r} of {capacity} bytes"
        if not sizes:
            raise TableError(
                self.name, what, f"has no {cell} cells with {ports} ports in the grid",
                "use other cells or ports",
            )  # fmt: skip
        for name, value, axis in (
            ("capacity", each, sizes), ("width", width_bits, widths), ("banks", own_banks, counts)
        ):  # fmt: skip
            if not axis[0] <= value <= axis[-1]:
                raise TableError(
                    self.name, what,
                    f"has, in each macro, {name} of {value}, outside the grid's {axis[0]} to {axis[-1]}",
                    "change the accelerator, or add it with scripts/make_energy_table.py --accelerator",
                )  # fmt: skip
        logs = self._between(cell, ports, width_bits, own_banks, each)
        if logs is None:
            raise TableError(
                self.name, what, f"is too small for {own_banks} banks a macro in the grid",
                "use fewer banks",
            )  # fmt: skip
        exact = (cell, ports, width_bits, own_banks, each) in self.points
        values = dict(zip(COSTS, (math.exp(v) for v in logs), strict=True))
        if temperature_k is not None:
            values["leakage_mw"] *= self.leakage_factor_at(cell, temperature_k)
        for key in _SUMMED:
            values[key] *= macros
        source = f"{self.source}{'' if exact else f', interpolated in {self.name}'}"
        status = self.status if exact and macros == 1 else "derived"
        costs = {
            key: Value(values[key], unit, source, status)
            for key, unit in zip(COSTS, self.units, strict=True)
        }
        return Memory(kind, capacity, width_bits, banks, 1, macros, cell, ports, **costs)

    def _between(
        self, cell: str, ports: str, width: int, banks: int, size: int
    ) -> list[float] | None:
        """Logarithms of `COSTS`; None if the memory is too small for its banks."""
        widths, counts, sizes = self.axes(cell, ports)
        axes = (_around(width, widths), _around(banks, counts), _around(size, sizes))
        total = [0.0] * len(COSTS)
        for corner in range(8):
            weight, key = 1.0, []
            for axis, point in enumerate(axes):
                upper = corner >> axis & 1
                weight *= point.share if upper else 1 - point.share
                key.append(point.high if upper else point.low)
            if not weight:
                continue
            found = self.points.get((cell, ports, *key))  # type: ignore[arg-type]
            if found is None:
                return None
            total = [t + weight * math.log(v) for t, v in zip(total, found, strict=True)]
        return total

    def leakage_factor_at(self, cell: str, temperature_k: int) -> float:
        """Leakage at a temperature over that at the grid's own, linear in its logarithm.

        Raises
        ------
        TableError
            The temperature is outside the grid's, or the cell is unknown.
        """
        if cell not in self.leakage_factor:
            raise TableError(
                self.name, f"leakage of {cell} cells", "is not known at other temperatures",
                f"use one of {', '.join(self.leakage_factor)}",
            )  # fmt: skip
        factors = self.leakage_factor[cell]
        known = sorted(factors)
        if not known[0] <= temperature_k <= known[-1]:
            raise TableError(
                self.name, "temperature_k", f"is {temperature_k}", f"give {known[0]} to {known[-1]}"
            )
        at = max(1, min(bisect_right(known, temperature_k), len(known) - 1))
        low, high = known[at - 1], known[at]
        share = (temperature_k - low) / (high - low)
        return math.exp((1 - share) * math.log(factors[low]) + share * math.log(factors[high]))

    def errors(self) -> dict[str, list[float]]:
        """By value of `COSTS`, relative errors of the interpolation at what is held out."""
        out: dict[str, list[float]] = {key: [] for key in COSTS}
        for (cell, ports, width, banks, size), costs in self.held_out.items():
            found = self.memory("weights", size, width, banks, cell, ports)
            for key, wanted in zip(COSTS, costs, strict=True):
                out[key].append(abs(getattr(found, key).value / wanted - 1))
        return out

    @classmethod
    def load(cls, name: str) -> Grid:
        """A grid that comes with the package, such as ``cacti-28nm``.

        Raises
        ------
        TableError
            None is called so.
        """
        if name not in grids():
            raise TableError(
                "energy table", "sram", f"{name!r} is unknown", f"use one of {', '.join(grids())}"
            )
        return _read(name)


@cache
def _read(name: str) -> Grid:
    plain = _PRESETS.own(name)
    return Grid(
        plain["name"], plain["technology_nm"], plain["temperature_k"], plain["source"],
        plain["status"], tuple(plain["units"][1:]),
        {cell: {int(t): v for t, v in by.items()} for cell, by in plain["leakage_factor"].items()},
        _points(plain["grid"]),
        _points(plain["held_out"]),
    )  # fmt: skip


def _points(parts: list[dict[str, Any]]) -> dict[_Key, tuple[float, ...]]:
    return {
        (part["cell"], part["ports"], part["width_bits"], part["banks"], size): tuple(costs)
        for part in parts
        for size, *costs in part["rows"]
    }


_PRESETS = Presets("sram", "grid", TableError)


def grids() -> list[str]:
    """Names of the grids that come with the package."""
    return _PRESETS.names()


def read_memory(reader: Reader, plain: Any, field: str, cells: tuple[str, ...]) -> Memory:
    """A `Memory` from its fields in a table.

    Raises
    ------
    TableError
        A field is missing, unknown or out of range.
    """
    given = reader.keys(plain, field, {f.name for f in fields(Memory)})
    checked: dict[str, Any] = dict(given)
    for key, known in (("kind", MEMORY_KINDS), ("cell", cells), ("ports", PORTS)):
        reader.choice(given[key], f"{field}.{key}", known)
    for key in ("capacity_bytes", "width_bits", "banks", "parts", "macros"):
        checked[key] = reader.count(given[key], f"{field}.{key}")
    for key in COSTS:
        checked[key] = reader.value(given[key], f"{field}.{key}")
    return Memory(**checked)
