"""A study's TOML file, and the points that it stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import PLACES, Arithmetic, arithmetic
from epur_emu.checkpoints.folder import CARD
from epur_emu.dataflow import DATAFLOWS
from epur_emu.energy import EnergyTable
from epur_emu.errors import StudyError, TraceError
from epur_emu.formats import Format, parse
from epur_emu.replay.sizes import parse_sizes
from epur_emu.study.ranges import expand, tables
from epur_emu.study.workloads import Choice, bits
from epur_emu.tasks.beam import MOST as MOST_BEAM
from epur_emu.toml import read_toml

T = TypeVar("T", Arithmetic, Accelerator)

_KEYS = {
    "name", "summary", "models", "arithmetics", "accelerators", "dataflows", "tables", "limit",
    "beam", "traced", "errors", "steps", "seed", "search",
}  # fmt: skip
_MODEL_KEYS = {"model", "network", "inputs", "steps", "seed", "limit", "beam"}
_SEARCH_KEYS = {"loss", "place", "formats", "groups", "most"}

#: What may have a format of its own in a search.
GROUPS = ("layer", "gate", "layer-gate")


@dataclass(frozen=True)
class Search:
    """How the cheapest arithmetic is looked for; `search.find` says by which method.

    Parameters
    ----------
    loss : float
        How much worse than float32 the metric may be, in its own unit.
    place : str
        The place of the datapath whose formats are chosen.
    formats : tuple of Format
        From the narrowest to the widest.
    groups : {"layer", "gate", "layer-gate"}
        What has a format of its own: each pass, each gate in all passes, or each gate of each pass.
    most : int
        Evaluations after which a search ends with the best found so far.
    """

    loss: float
    place: str = "weight"
    formats: tuple[Format, ...] = ()
    groups: str = "layer"
    most: int = 500


@dataclass(frozen=True)
class Study:
    """What a study file asks for: all combinations of what it lists.

    Parameters
    ----------
    name, summary : str
    text : str
        The file's.
    models : tuple of Choice
    arithmetics : tuple of Arithmetic
        Of different names; for a search, where it starts from.
    accelerators : tuple of Accelerator
        Of different names; each has its dataflow.
    tables : tuple of (str, EnergyTable)
        By the names under which they are loaded.
    traced : int
        Items of each model whose accesses are counted.
    errors : int
        Items of each model on which errors by layer are measured.
    search : Search, optional
    """

    name: str
    summary: str
    text: str
    models: tuple[Choice, ...]
    arithmetics: tuple[Arithmetic, ...]
    accelerators: tuple[Accelerator, ...]
    tables: tuple[tuple[str, EnergyTable], ...]
    traced: int = 20
    errors: int = 8
    search: Search | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], limit: int | None = None) -> Study:
        """Read a study file; `limit` replaces its own.

        Raises
        ------
        StudyError
            The file can't be read, a key is unknown, a value can't be used, or there is no point.
        EpurError
            A model, an arithmetic, an accelerator or a table is unknown or damaged.
        """
        source = Path(path)
        if not source.is_file():
            raise StudyError(source, "file", "does not exist", "give a study's TOML file")
        plain = read_toml(source, StudyError, "mend the file")
        text = source.read_text(encoding="utf-8")
        return cls.of(plain, source.stem, text, source.parent, limit, str(source))

    @classmethod
    def of(
        cls, plain: Mapping[str, Any], name: str = "study", text: str = "", folder: Path | None = None,
        limit: int | None = None, source: str = "study",
    ) -> Study:  # fmt: skip
        """A study of plain values, the contents of a study file."""
        reader = _Reader(source, folder or Path())
        try:
            return reader.study(plain, name, text, limit)
        except StudyError as error:
            if error.source != "study":
                raise
            raise StudyError(source, error.field, error.problem, error.remedy) from error


@dataclass(frozen=True)
class _Reader:
    source: str
    folder: Path

    def bad(self, field: str, problem: str, remedy: str) -> StudyError:
        return StudyError(self.source, field, problem, remedy)

    def study(self, plain: Mapping[str, Any], name: str, text: str, limit: int | None) -> Study:
        self.keys(plain, _KEYS, "")
        for key in ("models", "arithmetics"):
            if key not in plain:
                raise self.bad(key, "is missing", f'write {key} = ["NAME", ...]')
        options = {
            "limit": limit or self.count(plain, "limit", None),
            "beam": self.count(plain, "beam", None),
            "steps": self.count(plain, "steps", None),
            "seed": self.count(plain, "seed", None, 0),
        }
        machines = self.accelerators(plain.get("accelerators", ["epur"]))
        if "dataflows" in plain:
            machines = self.dataflows(machines, plain["dataflows"])
        search = self.search(plain["search"]) if "search" in plain else None
        return Study(
            self.text(plain.get("name", name), "name"),
            self.text(plain.get("summary", ""), "summary"), text,
            self.models(plain["models"], options), self.arithmetics(plain["arithmetics"]),
            machines, self.tables(plain.get("tables", ["epur-28nm"])),
            self.count(plain, "traced", 20), self.count(plain, "errors", 8), search,
        )  # fmt: skip

    def keys(self, plain: Mapping[str, Any], known: set[str], where: str) -> None:
        if odd := sorted(set(plain) - known):
            raise self.bad(f"{where}{odd[0]}", "is no key of it", f"use {', '.join(sorted(known))}")

    def text(self, value: Any, field: str) -> str:
        if not isinstance(value, str):
            raise self.bad(field, f"is {value!r:.40}", "give a text")
        return value

    def count(self, plain: Mapping[str, Any], field: str, default: Any, least: int = 1) -> Any:
        value = plain.get(field, default)
        if value is not default and not (type(value) is int and value >= least):
            raise self.bad(field, f"is {value!r:.40}", f"give an integer, {least} or more")
        if field == "beam" and value is not None and value > MOST_BEAM:
            raise self.bad(field, f"is {value}", f"give {MOST_BEAM} at most")
        return value

    def entries(self, value: Any, field: str) -> list[Any]:
        """Texts, each expanded, and tables of a list; or of one text or table."""
        out: list[Any] = []
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                out += expand(each, field)
            elif isinstance(each, Mapping):
                out.append(each)
            else:
                raise self.bad(field, f"holds {each!r:.40}", "give names or tables")
        if not out:
            raise self.bad(field, "is empty", "give at least one, or there is no point")
        return out

    def place(self, name: str) -> str:
        """A file or folder beside the study file, as a path; else the name itself."""
        there = self.folder / name
        # os.path has an answer for names that no file may have.
        isfile = os.path.isfile
        found = isfile(there / CARD) or (name.endswith(".toml") and isfile(there))
        return str(there.resolve()) if found else name

    def models(self, value: Any, options: Mapping[str, Any]) -> tuple[Choice, ...]:
        found = []
        for entry in self.entries(value, "models"):
            table = {"model": entry} if isinstance(entry, str) else entry
            self.keys(table, _MODEL_KEYS, "models.")
            if "model" not in table:
                raise self.bad("models.model", "is missing", 'write {model = "NAME"}')
            for fields in tables(table, "models"):
                own = dict(options)
                if "inputs" in fields:  # these are for random inputs
                    own |= {"steps": None, "seed": None}
                for key in own:
                    own[key] = self.count(fields, key, own[key], int(key != "seed"))
                inputs = fields.get("inputs")
                if inputs is not None:
                    inputs = str((self.folder / self.text(inputs, "models.inputs")).resolve())
                network = fields.get("network")
                if network is not None:
                    self.text(network, "models.network")
                model = self.place(self.text(fields["model"], "models.model"))
                found.append(Choice(model, network, inputs, **own))
        return tuple(dict.fromkeys(found))

    def arithmetics(self, value: Any) -> tuple[Arithmetic, ...]:
        def make(entry: Any) -> list[Arithmetic]:
            if isinstance(entry, str):
                return [arithmetic(self.place(entry))]
            return [self.arithmetic(fields) for fields in tables(entry, "arithmetics")]

        return self.named("arithmetics", value, make)

    def arithmetic(self, fields: Mapping[str, Any]) -> Arithmetic:
        own = dict(fields)
        name, base = own.pop("name", None), own.pop("base", None)
        if base is None:
            return Arithmetic.from_dict({"name": name or "arithmetic", **own})
        start = arithmetic(self.place(self.text(base, "arithmetics.base")))
        plain = start.to_dict()
        if "partial" not in own and start.partial == start.sum:
            wide = own.get("mu" if start.integer else "accumulator")
            plain["partial"] = wide or plain["partial"]  # sums that are kept stay so
        label = name or f"{start.name}/{_label(own)}" if own else name or start.name
        return Arithmetic.from_dict({**plain, **own, "name": label})

    def accelerators(self, value: Any) -> tuple[Accelerator, ...]:
        def make(entry: Any) -> list[Accelerator]:
            if isinstance(entry, str):
                return [Accelerator.load(self.place(entry))]
            sized = {k: self.sizes(v, k) if k.endswith("_bytes") else v for k, v in entry.items()}
            return [self.accelerator(fields) for fields in tables(sized, "accelerators")]

        return self.named("accelerators", value, make)

    def sizes(self, value: Any, field: str) -> Any:
        """Bytes that texts such as ``256K:8M`` (doubling) stand for."""
        out: list[int] = []
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str):
                out.append(each)
                continue
            for text in expand(each, f"accelerators.{field}"):
                try:
                    out += parse_sizes(text)
                except TraceError as error:
                    raise self.bad(f"accelerators.{field}", error.problem, error.remedy) from error
        return out

    def accelerator(self, fields: Mapping[str, Any]) -> Accelerator:
        own = dict(fields)
        name, base = own.pop("name", None), own.pop("base", None)
        if base is None:
            return Accelerator.from_dict({"name": name or "accelerator", **own})
        start = Accelerator.load(self.place(self.text(base, "accelerators.base")))
        label = name or (f"{start.name}/{_label(own)}" if own else start.name)
        return Accelerator.from_dict({**start.to_dict(), **own, "name": label})

    def dataflows(self, machines: tuple[Accelerator, ...], value: Any) -> tuple[Accelerator, ...]:
        """Each accelerator in each dataflow; one in another's is called ``NAME:DATAFLOW``."""
        names = self.entries(value, "dataflows")
        for name in names:
            if name not in DATAFLOWS:
                raise self.bad("dataflows", f"hold {name!r}", f"use {', '.join(DATAFLOWS)}")
        return tuple(
            machine if machine.dataflow == name
            else replace(machine, dataflow=name, name=f"{machine.name}:{name}")
            for machine, name in product(machines, dict.fromkeys(names))
        )  # fmt: skip

    def named(self, field: str, value: Any, make: Callable[[Any], list[T]]) -> tuple[T, ...]:
        """Made of entries; what is there twice once, and no two of one name."""
        found: dict[str, T] = {}
        for entry in self.entries(value, field):
            for one in make(entry):
                if found.setdefault(one.name, one) != one:
                    raise self.bad(
                        f"{field}.name", f"{one.name!r} is of two different ones",
                        'tell them apart: name = "..."',
                    )  # fmt: skip
        return tuple(found.values())

    def tables(self, value: Any) -> tuple[tuple[str, EnergyTable], ...]:
        names = [self.place(self.text(name, "tables")) for name in self.entries(value, "tables")]
        return tuple((name, EnergyTable.load(name)) for name in dict.fromkeys(names))

    def search(self, plain: Any) -> Search:
        if not isinstance(plain, Mapping):
            raise self.bad("search", f"is {plain!r:.40}", "give a table: [search]")
        self.keys(plain, _SEARCH_KEYS, "search.")
        loss = plain.get("loss")
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss < 1e9:
            raise self.bad("search.loss", f"is {loss!r:.40}", "give a number, 0 or more")
        place, groups = plain.get("place", "weight"), plain.get("groups", "layer")
        for field, chosen, known in (("place", place, PLACES), ("groups", groups, GROUPS)):
            if chosen not in known:
                raise self.bad(f"search.{field}", f"is {chosen!r:.40}", f"use {', '.join(known)}")
        names = self.entries(plain.get("formats", "int{2..8}-row"), "search.formats")
        formats = [parse(self.text(name, "search.formats")) for name in names]
        if len(formats) < 2 or len(set(map(bits, formats))) < len(formats):
            raise self.bad(
                "search.formats", f"are {', '.join(map(str, formats))}",
                "give two or more of different widths",
            )  # fmt: skip
        most = self.count(plain, "most", 500)
        return Search(float(loss), place, tuple(sorted(formats, key=bits)), groups, most)


def _label(own: Mapping[str, Any]) -> str:
    """Fields that differ from the base, in one word."""
    parts = []
    for key, value in own.items():
        if key == "overrides":
            for each in value:
                where = ":".join(str(each[k]) for k in ("layers", "gates") if k in each)
                fields = {k: v for k, v in each.items() if k not in ("layers", "gates")}
                parts.append(f"{where}:{_label(fields)}" if where else _label(fields))
        elif key.endswith("_bytes") and type(value) is int:
            parts.append(f"{key.removesuffix('_bytes')}={_size(value)}")
        else:
            parts.append(f"{key}={value}")
    return ",".join(parts)


def _size(value: int) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)
