"""Energy tables: what an access, an operation and time cost, each value with its source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from epur_emu.energy.dram import DRAM_IDLE, Dram
from epur_emu.energy.sram import PORTS, Grid, Memory, grids, read_memory
from epur_emu.energy.values import STATUSES, Reader, Value
from epur_emu.errors import FormatError, TableError
from epur_emu.formats import FloatFormat, parse
from epur_emu.toml import Presets

__all__ = ["STATUSES", "EnergyTable", "Logic", "Operation", "Value", "presets"]

#: ``dram`` of a table that takes the accelerator's type.
OF_ACCELERATOR = "accelerator"

#: What a trace of an accelerator without a type of DRAM is priced with.
USUAL_DRAM = "lpddr4"

#: A table that starts from another has more in the other's place.
EXTENDS = "extends"


@dataclass(frozen=True)
class Operation:
    """Energy in pJ of one operation in one format: a float format, or ``intN`` for N-bit integers.

    Those that are `scaled` are multiplied by the table's operation scale.
    """

    name: str
    format: str
    energy: Value
    scaled: bool


@dataclass(frozen=True)
class Logic:
    """Leakage and area of the DPUs and MUs of all computation units."""

    area_mm2: Value
    dpu_share: Value
    leakage_mw: dict[str, Value]


@dataclass(frozen=True)
class EnergyTable:
    """All that `energy` needs besides a trace.

    Parameters
    ----------
    name : str
    cell : str
        Which of `cells` the memories are made of.
    ports : {'1rw', '1r1w'}
        Ports of the memories.
    temperature_k : int
        Kelvin; leakage depends on it.
    gate_banks : bool
        Whether banks that a run never touches are power-gated, in weight buffers and the
        intermediate memory.
    dram_idle : {'standby', 'power-down', 'self-refresh'}
        Background power of the DRAM in cycles in which it moves nothing.
    cells : dict of str to str
        Kinds of cell, and what they are.
    operation_scale : Value
    register : Value
        A bit of a pipeline register that takes a new value, in pJ.
    sram : str
        A `Grid` by name, where a memory is looked for that is not among `memories`; may be empty.
    memories : tuple of Memory
        They come before the grid's.
    operations : tuple of Operation
    dram : str or Dram
        A standard by name, ``accelerator`` for the accelerator's own type, or a DRAM of one's own.
    logic : Logic
    cacti : dict of str to plain values
        How `memories` were made; ``temperature_k`` is theirs.

    Raises
    ------
    TableError
        A field is missing, unknown or out of range; it is named.
    """

    name: str
    cell: str
    ports: str
    temperature_k: int
    gate_banks: bool
    dram_idle: str
    cells: dict[str, str]
    operation_scale: Value
    register: Value
    sram: str
    memories: tuple[Memory, ...]
    operations: tuple[Operation, ...]
    dram: str | Dram
    logic: Logic
    cacti: dict[str, Any]

    def __post_init__(self) -> None:
        if self.cell not in self.cells:
            raise TableError(
                self.name, "cell", f"is {self.cell!r}", f"use one of {', '.join(self.cells)}"
            )
        Reader(self.name).choice(self.dram_idle, "dram_idle", DRAM_IDLE)
        Reader(self.name).choice(self.ports, "ports", PORTS)
        if self.sram:
            Grid.load(self.sram)
        if isinstance(self.dram, str) and self.dram != OF_ACCELERATOR:
            Dram.load(self.dram)
        if self.cell not in self.logic.leakage_mw:
            raise TableError(self.name, f"logic.leakage_mw.{self.cell}", "is missing", "add it")

    def varied(self, **values: Any) -> EnergyTable:
        """The same with other fields."""
        return replace(self, **values)

    def memory(self, kind: str, capacity: int, width_bits: int, banks: int) -> Memory:
        """The memory of this kind and size, in the table's cells: its own, or the grid's.

        Raises
        ------
        TableError
            There is none; the message lists those of the kind, or the grid's range.
        """
        own = [
            m for m in self.memories
            if (m.kind, m.cell, m.ports) == (kind, self.cell, self.ports)
        ]  # fmt: skip
        for m in own:
            if (m.capacity_bytes, m.width_bits, m.banks) == (capacity, width_bits, banks):
                return self._at_temperature(m)
        if self.sram:
            return Grid.load(self.sram).memory(
                kind, capacity, width_bits, banks, self.cell, self.ports, self.temperature_k
            )
        have = ", ".join(f"{m.capacity_bytes} bytes x{m.banks}" for m in own) or "none"
        raise TableError(
            self.name, f"memory {kind!r} of {capacity} bytes",
            f"in {banks} banks, {width_bits}-bit port, {self.cell} cells, {self.ports} is missing "
            f"(has: {have})",
            f"add it, or name a grid: sram = {grids()[-1]!r}" if grids() else "add it",
        )  # fmt: skip

    def _at_temperature(self, memory: Memory) -> Memory:
        """One of the table's own memories with its leakage at the table's temperature."""
        made_at = self.cacti.get("temperature_k", self.temperature_k)
        if made_at == self.temperature_k:
            return memory
        if not self.sram:
            raise TableError(
                self.name, "temperature_k", f"is {self.temperature_k}, its memories' {made_at}",
                f"name a grid that knows leakage by temperature: sram = {grids()[-1]!r}",
            )  # fmt: skip
        grid = Grid.load(self.sram)
        factor = grid.leakage_factor_at(memory.cell, self.temperature_k)
        factor /= grid.leakage_factor_at(memory.cell, made_at)
        leakage = replace(
            memory.leakage_mw, value=memory.leakage_mw.value * factor, status="derived",
            source=f"{memory.leakage_mw.source}, x {factor:.4g} for {self.temperature_k} K",
        )  # fmt: skip
        return replace(memory, leakage_mw=leakage)

    def dram_of(self, accelerator_type: str | None) -> Dram:
        """The DRAM's costs, for an accelerator with this type of DRAM (None: it has none)."""
        if isinstance(self.dram, Dram):
            return self.dram
        if self.dram == OF_ACCELERATOR:
            return Dram.load(accelerator_type or USUAL_DRAM)
        return Dram.load(self.dram)

    def operation(self, name: str, fmt: str) -> Operation:
        """An operation in a format: its own entry, or that of the nearest wider format.

        A float format stands for narrower floats, an integer for narrower integers (assumed: the
        width in bits sets the energy).

        Parameters
        ----------
        name : str
            Such as ``multiply``.
        fmt : str
            A float format by name, or ``intN``.

        Raises
        ------
        TableError
            The table has none so wide; the message lists the formats that it has for the operation.
        """
        own = {op.format: op for op in self.operations if op.name == name}
        if fmt in own:
            return own[fmt]
        kind, bits = _width(fmt)
        widths = {have: _width(have) for have in own}
        wider = [(n, have) for have, (k, n) in widths.items() if k == kind and n >= bits]
        if kind and wider:
            return own[min(wider)[1]]
        have = ", ".join(own) or "none"
        raise TableError(
            self.name, f"operation {name!r} in {fmt}", f"is missing (has: {have})",
            f"add [operations.{name}.{fmt}] to the table",
        )  # fmt: skip

    def operation_pj(self, name: str, fmt: str) -> float:
        """Energy of `operation` at the table's technology and voltage, in pJ."""
        found = self.operation(name, fmt)
        return found.energy.value * (self.operation_scale.value if found.scaled else 1.0)

    def registers_pj(self, fmt: str, times: int) -> float:
        """Energy of so many pipeline registers of a format's bits taking a new value."""
        return times * _width(fmt)[1] * self.register.value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of the TOML file; `from_dict` gives the same table back."""
        plain = asdict(self)
        plain["memories"] = [asdict(m) for m in self.memories]
        operations: dict[str, dict[str, Any]] = {}
        for op in self.operations:
            entry = {**asdict(op.energy), "scaled": op.scaled}
            operations.setdefault(op.name, {})[op.format] = entry
        plain["operations"] = operations
        plain["dram"] = self.dram if isinstance(self.dram, str) else asdict(self.dram)
        return plain

    @classmethod
    def from_dict(
        cls, plain: Mapping[str, Any], source: str | Path = "energy table"
    ) -> EnergyTable:
        """Inverse of `to_dict`.

        Raises
        ------
        TableError
            A field is missing, unknown or of a wrong kind; it is named.
        """
        return _Reader(str(source)).table(plain)

    @classmethod
    def load(cls, name: str | Path) -> EnergyTable:
        """A preset by name, or a TOML file by path; ``NAME:CELL`` and ``NAME:PORTS`` choose others.

        A file that has ``extends = "NAME"`` takes from that table what it does not have itself.

        Raises
        ------
        TableError
            No preset and no file is called so, or the file is damaged.
        """
        text, chosen = str(name), {}
        while text not in presets() and not os.path.isfile(text) and ":" in text:
            text, _, choice = text.rpartition(":")
            chosen["ports" if choice in PORTS else "cell"] = choice
        found = cls.from_dict(_plain(text, ()), text)
        return found.varied(**chosen) if chosen else found


def _plain(text: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A file's plain values, upon those of the table that it extends."""
    own = _PRESETS.read(text)
    if EXTENDS not in own:
        return own
    base = Reader(text).text(own.pop(EXTENDS), EXTENDS)
    if base in seen:
        raise TableError(text, EXTENDS, f"comes back to {base!r}", "start from another table")
    return _laid_over(_plain(base, (*seen, text)), own)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` where it says something, else `below`; a value is taken whole.

    Memories are added to those below, or take the place of the same; an empty list leaves none.
    """
    out = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if key == "memories" and value and isinstance(value, list) and isinstance(old, list):
            size = ("kind", "capacity_bytes", "width_bits", "banks", "cell", "ports")
            new = [tuple(m.get(k) for k in size) for m in value if isinstance(m, dict)]
            out[key] = [m for m in old if tuple(m.get(k) for k in size) not in new] + value
        elif isinstance(value, dict) and isinstance(old, dict) and "value" not in (*value, *old):
            out[key] = _laid_over(old, value)
        else:
            out[key] = value
    return out


def _width(fmt: str) -> tuple[str, int]:
    """Kind of a format (float, int, or none that is known) and its bits."""
    if match := re.fullmatch(r"int(\d{1,2})", fmt):
        return "int", int(match[1])
    try:
        found = parse(fmt)
    except FormatError:
        return "", 0
    return ("float", found.bits) if isinstance(found, FloatFormat) else ("", 0)


_PRESETS = Presets("energy", "energy table", TableError)


def presets() -> list[str]:
    """Names of the tables that come with the package."""
    return _PRESETS.names()


class _Reader(Reader):
    """Checks plain values on their way into a table."""

    def operation(self, plain: Any, name: str, fmt: str) -> Operation:
        field = f"operations.{name}.{fmt}"
        given = self.keys(plain, field, {f.name for f in fields(Value)} | {"scaled"})
        scaled = self.flag(given["scaled"], f"{field}.scaled")
        value = {key: given[key] for key in given if key != "scaled"}
        return Operation(name, fmt, self.value(value, field), scaled)

    def dram(self, plain: Any) -> str | Dram:
        return plain if isinstance(plain, str) else Dram.from_dict(plain, self.source)

    def logic(self, plain: Any) -> Logic:
        given = self.keys(plain, "logic", {f.name for f in fields(Logic)})
        share = self.value(given["dpu_share"], "logic.dpu_share")
        if share.value > 1:
            raise self.fail("logic.dpu_share.value", f"is {share.value}", "give 0 to 1")
        leakage = self.mapping(given["leakage_mw"], "logic.leakage_mw")
        return Logic(
            self.value(given["area_mm2"], "logic.area_mm2"),
            share,
            {cell: self.value(v, f"logic.leakage_mw.{cell}") for cell, v in leakage.items()},
        )

    def table(self, plain: Mapping[str, Any]) -> EnergyTable:
        given = self.keys(plain, "", {f.name for f in fields(EnergyTable)})
        listed = self.mapping(given["cells"], "cells")
        cells = {key: self.text(text, f"cells.{key}") for key, text in listed.items()}
        if not isinstance(given["memories"], list | tuple):
            raise self.fail("memories", "are no list", "write [[memories]]")
        memories = tuple(
            read_memory(self, m, f"memories[{n}]", tuple(cells))
            for n, m in enumerate(given["memories"])
        )
        keys = [
            (m.kind, m.capacity_bytes, m.width_bits, m.banks, m.cell, m.ports) for m in memories
        ]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise self.fail("memories", f"has {min(twice)} twice", "keep one")
        operations = tuple(
            self.operation(entry, name, fmt)
            for name, formats in self.mapping(given["operations"], "operations").items()
            for fmt, entry in self.mapping(formats, f"operations.{name}").items()
        )
        cacti = dict(self.mapping(given["cacti"], "cacti"))
        if "temperature_k" in cacti:
            self.count(cacti["temperature_k"], "cacti.temperature_k")
        return EnergyTable(
            name=self.text(given["name"], "name"),
            cell=self.text(given["cell"], "cell"),
            ports=self.text(given["ports"], "ports"),
            temperature_k=self.count(given["temperature_k"], "temperature_k"),
            gate_banks=self.flag(given["gate_banks"], "gate_banks"),
            dram_idle=self.text(given["dram_idle"], "dram_idle"),
            cells=cells,
            operation_scale=self.value(given["operation_scale"], "operation_scale"),
            register=self.value(given["register"], "register"),
            sram="" if given["sram"] == "" else self.text(given["sram"], "sram"),
            memories=memories,
            operations=operations,
            dram=self.dram(given["dram"]),
            logic=self.logic(given["logic"]),
            cacti=cacti,
        )
