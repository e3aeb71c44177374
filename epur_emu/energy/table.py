"""Energy tables: what an access, an operation and time cost, each value with its source."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from epur_emu.errors import FormatError, TableError
from epur_emu.formats import FloatFormat, parse
from epur_emu.toml import read_toml

#: What is known of a value: stated by its source, a run of a program, our arithmetic, our choice.
STATUSES = ("published", "measured", "derived", "assumed")

#: What a memory may be for.
MEMORY_KINDS = ("weights", "parameters", "inputs", "row", "intermediate")

#: What the DRAM may do in cycles in which it moves nothing.
DRAM_IDLE = ("standby", "self-refresh")


@dataclass(frozen=True)
class Value:
    """A number with its unit, where it is from, and how far to trust it (one of `STATUSES`)."""

    value: float
    unit: str
    source: str
    status: str


@dataclass(frozen=True)
class Memory:
    """An on-chip memory of one capacity, port width, number of banks and kind of cell.

    ``read_pj`` and ``write_pj`` are for one access of the whole port; leakage and area are of all
    banks and macros together.
    """

    kind: str
    capacity_bytes: int
    width_bits: int
    banks: int
    macros: int
    cell: str
    read_pj: Value
    write_pj: Value
    leakage_mw: Value
    area_mm2: Value
    cycle_ns: Value
    access_ns: Value


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
class Dram:
    """Energy and background power of the DRAM; the powers are those of one channel."""

    read_pj_per_bit: Value
    write_pj_per_bit: Value
    activate_pj: Value
    page_bytes: Value
    standby_mw: Value
    self_refresh_mw: Value
    channels: Value

    def pj_per_byte(self, op: str) -> float:
        """A byte read or written, with its share of a page's activation."""
        move = self.read_pj_per_bit if op == "read" else self.write_pj_per_bit
        return 8 * move.value + self.activate_pj.value / self.page_bytes.value


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
    gate_banks : bool
        Whether banks that a run never touches are power-gated, in weight buffers and the
        intermediate memory.
    dram_idle : {'standby', 'self-refresh'}
        Background power of the DRAM in cycles in which it moves nothing.
    cells : dict of str to str
        Kinds of cell, and what they are.
    operation_scale : Value
    memories : tuple of Memory
    operations : tuple of Operation
    dram : Dram
    logic : Logic
    cacti : dict of str to plain values
        How the memories' values were made.

    Raises
    ------
    TableError
        A field is missing, unknown or out of range; it is named.
    """

    name: str
    cell: str
    gate_banks: bool
    dram_idle: str
    cells: dict[str, str]
    operation_scale: Value
    memories: tuple[Memory, ...]
    operations: tuple[Operation, ...]
    dram: Dram
    logic: Logic
    cacti: dict[str, Any]

    def __post_init__(self) -> None:
        if self.cell not in self.cells:
            raise TableError(
                self.name, "cell", f"is {self.cell!r}", f"use one of {', '.join(self.cells)}"
            )
        if self.dram_idle not in DRAM_IDLE:
            raise TableError(
                self.name, "dram_idle", f"is {self.dram_idle!r}",
                f"use one of {', '.join(DRAM_IDLE)}",
            )  # fmt: skip
        if self.cell not in self.logic.leakage_mw:
            raise TableError(self.name, f"logic.leakage_mw.{self.cell}", "is missing", "add it")

    def with_cell(self, cell: str) -> EnergyTable:
        """The same with memories of another kind of cell."""
        return replace(self, cell=cell)

    def memory(self, kind: str, capacity: int, width_bits: int, banks: int) -> Memory:
        """The memory of this kind and size, in the table's cells.

        Raises
        ------
        TableError
            There is none; the message lists those of the kind.
        """
        own = [m for m in self.memories if m.kind == kind and m.cell == self.cell]
        for m in own:
            if (m.capacity_bytes, m.width_bits, m.banks) == (capacity, width_bits, banks):
                return m
        have = ", ".join(f"{m.capacity_bytes} bytes x{m.banks}" for m in own) or "none"
        raise TableError(
            self.name, f"memory {kind!r} of {capacity} bytes",
            f"in {banks} banks, {width_bits}-bit port, {self.cell} cells is missing (has: {have})",
            "add it with scripts/make_energy_table.py --accelerator",
        )  # fmt: skip

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form of the TOML file; `from_dict` gives the same table back."""
        plain = asdict(self)
        plain["memories"] = [asdict(m) for m in self.memories]
        operations: dict[str, dict[str, Any]] = {}
        for op in self.operations:
            entry = {**asdict(op.energy), "scaled": op.scaled}
            operations.setdefault(op.name, {})[op.format] = entry
        plain["operations"] = operations
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
        """A preset by name, or a TOML file by path; ``NAME:CELL`` chooses the kind of cell.

        Raises
        ------
        TableError
            No preset and no file is called so, or the file is damaged.
        """
        text = str(name)
        base, colon, cell = text.rpartition(":")
        if text in presets() or Path(text).is_file() or not colon:
            return cls._read(text)
        return cls._read(base).with_cell(cell)

    @classmethod
    def _read(cls, text: str) -> EnergyTable:
        path = _PRESETS / f"{text}.toml" if text in presets() else Path(text)
        if not path.is_file():
            raise TableError(
                "energy table", repr(text), "is neither a preset nor a file",
                f"use one of {', '.join(presets())} or the path of a TOML file",
            )  # fmt: skip
        plain = read_toml(path, TableError, "mend the file")
        return cls.from_dict(plain, text)


def _width(fmt: str) -> tuple[str, int]:
    """Kind of a format (float, int, or none that is known) and its bits."""
    if match := re.fullmatch(r"int(\d{1,2})", fmt):
        return "int", int(match[1])
    try:
        found = parse(fmt)
    except FormatError:
        return "", 0
    return ("float", found.bits) if isinstance(found, FloatFormat) else ("", 0)


_PRESETS = resources.files("epur_emu") / "data" / "energy"


def presets() -> list[str]:
    """Names of the tables that come with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in _PRESETS.iterdir() if p.name.endswith(".toml")
    )


@dataclass(frozen=True)
class _Reader:
    """Checks plain values on their way into a table; `source` names the file in errors."""

    source: str

    def fail(self, field: str, problem: str, remedy: str) -> TableError:
        return TableError(self.source, field, problem, remedy)

    def mapping(self, plain: Any, field: str) -> Mapping[str, Any]:
        """`plain` if it is a table with any names."""
        if not isinstance(plain, Mapping):
            raise self.fail(field, f"is {plain!r:.60}", "give a table")
        return plain

    def keys(self, plain: Any, field: str, known: set[str]) -> Mapping[str, Any]:
        """`plain` if it is a table with exactly these keys."""
        self.mapping(plain, field)
        for odd, problem in ((known - set(plain), "missing"), (set(plain) - known, "unknown")):
            if odd:
                where = ", ".join(f"{field}.{key}" if field else str(key) for key in sorted(odd))
                raise self.fail(where, f"is {problem}", "mend the fields")
        return cast("Mapping[str, Any]", plain)

    def text(self, plain: Any, field: str) -> str:
        if not isinstance(plain, str) or not plain:
            raise self.fail(field, f"is {plain!r:.60}", "give a text")
        return plain

    def flag(self, plain: Any, field: str) -> bool:
        if not isinstance(plain, bool):
            raise self.fail(field, f"is {plain!r:.60}", "give true or false")
        return plain

    def count(self, plain: Any, field: str) -> int:
        if not isinstance(plain, int) or isinstance(plain, bool) or plain < 1:
            raise self.fail(field, f"is {plain!r:.60}", "give an integer, 1 or more")
        return plain

    def value(self, plain: Any, field: str, positive: bool = False) -> Value:
        given = self.keys(plain, field, {f.name for f in fields(Value)})
        number = given["value"]
        least = "above 0" if positive else "0 or more"
        if (
            not isinstance(number, int | float)
            or isinstance(number, bool)
            or not 0 <= number <= sys.float_info.max
            or (positive and not number)
        ):
            raise self.fail(f"{field}.value", f"is {number!r:.60}", f"give a number, {least}")
        if given["status"] not in STATUSES:
            raise self.fail(
                f"{field}.status", f"is {given['status']!r:.60}",
                f"use one of {', '.join(STATUSES)}",
            )  # fmt: skip
        unit = self.text(given["unit"], f"{field}.unit")
        source = self.text(given["source"], f"{field}.source")
        return Value(float(number), unit, source, given["status"])

    def memory(self, plain: Any, field: str, cells: Mapping[str, str]) -> Memory:
        given = self.keys(plain, field, {f.name for f in fields(Memory)})
        if given["kind"] not in MEMORY_KINDS:
            raise self.fail(
                f"{field}.kind",
                f"is {given['kind']!r:.60}",
                f"use one of {', '.join(MEMORY_KINDS)}",
            )
        if given["cell"] not in cells:
            raise self.fail(
                f"{field}.cell", f"is {given['cell']!r:.60}", f"use one of {', '.join(cells)}"
            )
        checked: dict[str, Any] = dict(given)
        for key in ("capacity_bytes", "width_bits", "banks", "macros"):
            checked[key] = self.count(given[key], f"{field}.{key}")
        for key in ("read_pj", "write_pj", "leakage_mw", "area_mm2", "cycle_ns", "access_ns"):
            checked[key] = self.value(given[key], f"{field}.{key}")
        return Memory(**checked)

    def operation(self, plain: Any, name: str, fmt: str) -> Operation:
        field = f"operations.{name}.{fmt}"
        given = self.keys(plain, field, {f.name for f in fields(Value)} | {"scaled"})
        scaled = self.flag(given["scaled"], f"{field}.scaled")
        value = {key: given[key] for key in given if key != "scaled"}
        return Operation(name, fmt, self.value(value, field), scaled)

    def dram(self, plain: Any) -> Dram:
        known = {f.name for f in fields(Dram)}
        given = self.keys(plain, "dram", known)
        return Dram(
            **{key: self.value(given[key], f"dram.{key}", key == "page_bytes") for key in known}
        )

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
            self.memory(m, f"memories[{n}]", cells) for n, m in enumerate(given["memories"])
        )
        keys = [(m.kind, m.capacity_bytes, m.width_bits, m.banks, m.cell) for m in memories]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise self.fail("memories", f"has {min(twice)} twice", "keep one")
        operations = tuple(
            self.operation(entry, name, fmt)
            for name, formats in self.mapping(given["operations"], "operations").items()
            for fmt, entry in self.mapping(formats, f"operations.{name}").items()
        )
        return EnergyTable(
            name=self.text(given["name"], "name"),
            cell=self.text(given["cell"], "cell"),
            gate_banks=self.flag(given["gate_banks"], "gate_banks"),
            dram_idle=self.text(given["dram_idle"], "dram_idle"),
            cells=cells,
            operation_scale=self.value(given["operation_scale"], "operation_scale"),
            memories=memories,
            operations=operations,
            dram=self.dram(given["dram"]),
            logic=self.logic(given["logic"]),
            cacti=dict(self.mapping(given["cacti"], "cacti")),
        )
