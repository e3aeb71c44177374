"""Results of a study: plain rows, to and from HDF5 and CSV.

The file (HDF5, format 1.0) begins with a seal in its user block of 512 bytes: the lines ``epur-study 1.0``
and ``sha256`` with that of all behind it, then zeros. HDF5 may crash or loop for ever on damage, so that a
reader compares it first. The file holds no type of variable length; every text is UTF-8 in a fixed length,
every missing number is not-a-number in the file and None in a row. A group is a table, each of its datasets a
column of one length; the column ``point`` counts rows of ``points`` from 0, attribute ``unit`` says what
a column is measured in.

==============  =================================================================================
place           what
==============  =================================================================================
attributes      ``format`` ("epur-study"), ``version`` ("1.0"), ``name``, ``complete``, ``planned``
                (points that the study has), ``made`` (date), ``digest`` (SHA-256 of the content)
``study``       the study's TOML text, bytes
``summary``     what the study says of itself, bytes
``software``    versions that made it: JSON, bytes
``plan``        hashes of the study's parts: JSON, bytes
``points``      a row for each point: model, arithmetic, accelerator, dataflow, table and numbers
``metrics``     ``point``, ``name``, ``float32``, ``emulated``: all metrics of the task
``bits``        ``point``, ``place``, ``mean``: bits of a value at each place of the datapath
``layers``      ``point``, ``name``, ``max_abs_error``, ``rms_error``, ``overflow``, ``saturation``
``energy``      ``point``, ``component``, ``dynamic_pj``, ``static_pj``, ``accesses``
``trace``       ``point``, ``component``, ``reads``, ``writes``, ``bytes``
``wider``       ``point``, ``operation``, ``format``: priced in a wider format than its own
``arithmetics`` ``name``, ``fields``: each arithmetic as JSON (`Arithmetic.to_dict`)
``accelerators``  ``name``, ``fields``: each accelerator as JSON (`Accelerator.to_dict`)
``searches``    ``fields``: what each search found, JSON
==============  =================================================================================

A row of `Results.points` is a dict with these keys:

===================  ============================================================================
key                  value
===================  ============================================================================
point                int, its place
key                  str, hash of all that it depends on
model, task          str
arithmetic, accelerator, dataflow, table   str, names
metric               str or None, the task's own
higher_is_better     bool
float32, emulated    float or None, the metric in float32 and emulated
loss                 float or None, how much worse than float32; positive is worse
n                    int, items scored
same_outputs         int or None, outputs that equal float32's
metrics              {"float32": {name: float}, "emulated": {name: float}}
bits                 {place: float}: mean over the network's weights (cells for ``mu``, ``cell``...)
weight_bits          float, bits of all weights of the LSTM networks
items                int, items whose accesses were counted (of the work that float32 finds)
cycles, seconds      float or None, mean of an item on the accelerator
real_time_factor     float or None
energy_pj            None, or {"total", "dynamic", "static": float, "by_component":
                     {name: {"dynamic", "static": float, "accesses": float}}}, mean of an item
average_mw, peak_mw, area_mm2   float or None
wider                {operation: format}, see `epur_emu.energy.Report`
layers               [{"name", "max_abs_error", "rms_error", "overflow", "saturation"}]
trace                None, or {"accesses", "bytes": float, "by_component": {name: {"reads",
                     "writes", "bytes": float}}}, mean of an item; weights, inputs and row are sums
                     over the four computation units
stage                str: "sweep", or the part of a search that asked for it
chosen               bool, whether a search ended here
problem              str or None, why there is no result (something does not fit, say)
===================  ============================================================================
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from epur_emu.errors import StudyError

FORMAT, VERSION = "epur-study", (1, 0)
#: How a file begins, and bytes of its user block.
MARK, SEAL_BYTES = b"epur-study ", 512

#: Columns of ``points``: name, type ("text", "integer", "float" or "flag") and unit.
COLUMNS = (
    ("key", "text", ""), ("model", "text", ""), ("task", "text", ""), ("arithmetic", "text", ""),
    ("accelerator", "text", ""), ("dataflow", "text", ""), ("table", "text", ""),
    ("metric", "text", ""), ("higher_is_better", "flag", ""), ("float32", "float", "metric"),
    ("emulated", "float", "metric"), ("loss", "float", "metric"), ("n", "integer", "items"),
    ("same_outputs", "float", "items"), ("weight_bits", "float", "bit"),
    ("items", "integer", "items"), ("cycles", "float", "cycle"), ("seconds", "float", "s"),
    ("real_time_factor", "float", "1"), ("average_mw", "float", "mW"), ("peak_mw", "float", "mW"),
    ("area_mm2", "float", "mm2"), ("stage", "text", ""), ("chosen", "flag", ""),
    ("problem", "text", ""),
)  # fmt: skip

#: Tables of several rows a point, beside ``point``: columns as in `COLUMNS`.
_TABLES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "metrics": (
        ("name", "text", ""), ("float32", "float", "metric"), ("emulated", "float", "metric"),
    ),
    "bits": (("place", "text", ""), ("mean", "float", "bit")),
    "layers": (
        ("name", "text", ""), ("max_abs_error", "float", "1"), ("rms_error", "float", "1"),
        ("overflow", "integer", "results"), ("saturation", "integer", "results"),
    ),
    "energy": (
        ("component", "text", ""), ("dynamic_pj", "float", "pJ"), ("static_pj", "float", "pJ"),
        ("accesses", "float", "accesses"),
    ),
    "trace": (
        ("component", "text", ""), ("reads", "float", "accesses"), ("writes", "float", "accesses"),
        ("bytes", "float", "B"),
    ),
    "wider": (("operation", "text", ""), ("format", "text", "")),
}  # fmt: skip
_NAMED = ("arithmetics", "accelerators")
_TEXTS = ("study", "summary", "software", "plan")
_MOST_ROWS = 1 << 24
_REMEDY = "make the results anew with epur sweep"


@dataclass(frozen=True)
class Results:
    """What a study found.

    Parameters
    ----------
    name : str
        The study's.
    study : str
        Its TOML text.
    points : list of dict
        See the module's text.
    summary : str
        What the study says of itself.
    software : dict of str to str
        Versions of this package and of what it computes with.
    planned : int
        Points that the study has; more than `points` if it was interrupted.
    made : str
        Date, as in ``2026-01-31``.
    arithmetics, accelerators : dict of str to dict
        By name, all their fields.
    searches : list of dict
        Of each search: model, arithmetic (where it began), accelerator, dataflow, place, groups,
        metric, loss_allowed, float32, emulated, loss, evaluations, ended (why), chosen (an arithmetic's
        name, or None), formats (by group), weight_bits, uniform (the narrowest format that everywhere
        keeps the loss), uniform_bits.
    plan : dict of str to str
        Hashes of the study's parts: whether it has changed since.
    """

    name: str
    study: str
    points: list[dict[str, Any]]
    summary: str = ""
    software: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    made: str = ""
    arithmetics: dict[str, dict[str, Any]] = field(default_factory=dict)
    accelerators: dict[str, dict[str, Any]] = field(default_factory=dict)
    searches: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all planned points are here."""
        return len(self.points) >= self.planned

    @property
    def digest(self) -> str:
        """SHA-256 of all that does not depend on when and how it was made."""
        content = [
            self.name, self.study, self.summary, self.points, self.planned, self.arithmetics,
            self.accelerators, self.searches,
        ]  # fmt: skip
        return hashlib.sha256(_json(content)).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to HDF5, under a temporary name that is renamed at the end.

        Raises
        ------
        StudyError
            The file can't be written; what stood at `path` is untouched.
        """
        target = Path(path)
        # HDF5 meets a full disk in ways of its own: it writes to memory, and a plain file follows.
        memory = io.BytesIO()
        with h5py.File(memory, "w", userblock_size=SEAL_BYTES) as file:
            self._write(file)
        body = memory.getvalue()[SEAL_BYTES:]
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with scratch.open("wb") as out:
                out.write(_seal(body) + body)
                out.flush()
                os.fsync(out.fileno())
            scratch.replace(target)
        except OSError as error:
            with suppress(OSError):
                scratch.unlink()
            raise StudyError(
                target, "file", f"can't be written ({error.strerror})", "choose another place"
            ) from error

    def _write(self, file: h5py.File) -> None:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = ".".join(map(str, VERSION))
        for key in ("name", "complete", "planned", "made", "digest"):
            file.attrs[key] = getattr(self, key)
        texts = (self.study, self.summary, _text(self.software), _text(self.plan))
        for key, text in zip(_TEXTS, texts, strict=True):
            file[key] = np.frombuffer(text.encode(), np.uint8)
        _put(file, "points", COLUMNS, self.points)
        for name, columns in _TABLES.items():
            rows = [
                {"point": place, **row}
                for place, point in enumerate(self.points)
                for row in _SPREAD[name](point)
            ]
            _put(file, name, (("point", "integer", ""), *columns), rows)
        for name in _NAMED:
            rows = [{"name": n, "fields": _text(f)} for n, f in getattr(self, name).items()]
            _put(file, name, (("name", "text", ""), ("fields", "text", "")), rows)
        rows = [{"fields": _text(each)} for each in self.searches]
        _put(file, "searches", (("fields", "text", ""),), rows)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Results:
        """Read a results file.

        Raises
        ------
        StudyError
            It is missing, damaged, of another kind or of an unknown version.
        """
        if not Path(path).is_file():
            raise StudyError(path, "file", "does not exist", "make it with epur sweep")
        try:
            sealed = Path(path).read_bytes()
            if not sealed.startswith(MARK):
                raise StudyError(path, "first line", "is not that of a study's results", _REMEDY)
            major, _, _ = sealed[len(MARK) : SEAL_BYTES].partition(b".")
            if major.isdigit() and int(major) != VERSION[0]:
                raise StudyError(
                    path, "version", f"is {int(major)}", "use a newer epur_emu to read it"
                )
            # All behind the version's line.
            mine = _seal(sealed[SEAL_BYTES:]).partition(b"\n")[2]
            if not sealed[:SEAL_BYTES].rstrip(b"\0").endswith(b"\n" + mine.rstrip(b"\0")):
                raise StudyError(path, "seal", "does not fit: the file is damaged", _REMEDY)
            with h5py.File(io.BytesIO(sealed), "r") as file:
                return cls._read(os.fspath(path), file)
        except StudyError:
            raise
        except Exception as error:  # damage shows in h5py as any of its exceptions
            raise StudyError(
                path, "results", f"can't be read ({type(error).__name__}: {error})", _REMEDY
            ) from error

    @classmethod
    def _read(cls, path: str, file: h5py.File) -> Results:
        if file.attrs.get("format") != FORMAT:
            raise StudyError(path, "format", "is not that of a study's results", _REMEDY)
        version = str(file.attrs["version"])
        if version.partition(".")[0] != str(VERSION[0]):
            raise StudyError(path, "version", f"is {version}", "use a newer epur_emu to read it")
        texts = [bytes(file[key][()]).decode() for key in _TEXTS]
        points = _get(file, "points", COLUMNS)
        tables: dict[str, list[list[dict[str, Any]]]] = {}
        for name, columns in _TABLES.items():
            of: list[list[dict[str, Any]]] = [[] for _ in points]
            for row in _get(file, name, (("point", "integer", ""), *columns)):
                of[row.pop("point")].append(row)
            tables[name] = of
        rows = [
            _row(place, point, {name: of[place] for name, of in tables.items()})
            for place, point in enumerate(points)
        ]
        named = {
            name: {
                row["name"]: json.loads(row["fields"])
                for row in _get(file, name, (("name", "text", ""), ("fields", "text", "")))
            }
            for name in _NAMED
        }
        searches = [
            json.loads(r["fields"]) for r in _get(file, "searches", (("fields", "text", ""),))
        ]
        found = cls(
            str(file.attrs["name"]), texts[0], rows, texts[1], json.loads(texts[2]),
            int(file.attrs["planned"]), str(file.attrs["made"]), **named, searches=searches,
            plan=json.loads(texts[3]),
        )  # fmt: skip
        if found.digest != file.attrs["digest"]:
            raise StudyError(path, "digest", "does not fit the content", _REMEDY)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What ``epur sweep --json`` prints."""
        return {
            "study": self.name,
            "complete": self.complete,
            "planned": self.planned,
            "made": self.made,
            "software": self.software,
            "points": self.points,
            "searches": self.searches,
        }

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line a point: its plain columns, bits by place and energies by component in pJ.

        Raises
        ------
        StudyError
            The file can't be written.
        """
        rows = [_flat(point) for point in self.points]
        names = list(dict.fromkeys(name for row in rows for name in row))
        target = Path(path)
        try:
            with target.open("w", encoding="utf-8", newline="") as out:
                table = csv.DictWriter(out, names, restval="")
                table.writeheader()
                table.writerows(rows)
        except OSError as error:
            raise StudyError(
                target, "file", f"can't be written ({error.strerror})", "choose another place"
            ) from error


def _seal(body: bytes) -> bytes:
    """The user block of a file with this behind it."""
    version = ".".join(map(str, VERSION)).encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    return (MARK + version + b"\nsha256 " + digest + b"\n").ljust(SEAL_BYTES, b"\0")


def finite(value: Any) -> Any:
    """The same with None for each number that is not finite, and plain Python numbers for numpy's."""
    if isinstance(value, Mapping):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()


def _text(value: Any) -> str:
    # The order of keys is kept: overrides and their fields are read by people.
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _energy(point: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name, cost in ((point["energy_pj"] or {}).get("by_component") or {}).items():
        yield {
            "component": name, "dynamic_pj": cost["dynamic"], "static_pj": cost["static"],
            "accesses": cost["accesses"],
        }  # fmt: skip


def _metrics(point: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    both = point["metrics"]
    for name in both["float32"]:
        yield {
            "name": name, "float32": both["float32"][name], "emulated": both["emulated"].get(name),
        }  # fmt: skip


#: The rows of each table that a point has.
_SPREAD: dict[str, Any] = {
    "metrics": _metrics,
    "bits": lambda p: ({"place": k, "mean": v} for k, v in p["bits"].items()),
    "layers": lambda p: p["layers"],
    "energy": _energy,
    "trace": lambda p: (
        {"component": name, **row}
        for name, row in ((p["trace"] or {}).get("by_component") or {}).items()
    ),
    "wider": lambda p: ({"operation": k, "format": v} for k, v in p["wider"].items()),
}


def _row(
    place: int, point: dict[str, Any], tables: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """A point as a plain dict again; sums are formed as they were when it was made."""
    row = {"point": place, **point}
    for key in ("metric", "problem"):
        row[key] = row[key] or None
    if row["same_outputs"] is not None:
        row["same_outputs"] = int(row["same_outputs"])
    row["metrics"] = {
        which: {m["name"]: m[which] for m in tables["metrics"]} for which in ("float32", "emulated")
    }
    row["bits"] = {b["place"]: b["mean"] for b in tables["bits"]}
    costs = {
        e["component"]: {
            "dynamic": e["dynamic_pj"], "static": e["static_pj"], "accesses": e["accesses"],
        }
        for e in tables["energy"]
    }  # fmt: skip
    row["energy_pj"] = energy_of(costs) if costs else None
    row["wider"] = {w["operation"]: w["format"] for w in tables["wider"]}
    row["layers"] = tables["layers"]
    accesses = {t.pop("component"): t for t in tables["trace"]}
    row["trace"] = trace_of(accesses) if accesses else None
    return row


def energy_of(costs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """``energy_pj`` of a point: components and their sums."""
    dynamic = math.fsum(cost["dynamic"] for cost in costs.values())
    static = math.fsum(cost["static"] for cost in costs.values())
    return {
        "total": dynamic + static, "dynamic": dynamic, "static": static, "by_component": costs,
    }  # fmt: skip


def trace_of(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """``trace`` of a point: components and their sums."""
    return {
        "accesses": math.fsum(row["reads"] + row["writes"] for row in rows.values()),
        "bytes": math.fsum(row["bytes"] for row in rows.values()),
        "by_component": rows,
    }


def _flat(point: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: point[name] for name, _, _ in COLUMNS}
    row |= {f"bits.{place}": mean for place, mean in point["bits"].items()}
    energy, trace = point["energy_pj"], point["trace"]
    if energy:
        row |= {f"energy_pj.{key}": energy[key] for key in ("total", "dynamic", "static")}
        for name, cost in energy["by_component"].items():
            row[f"energy_pj.{name}"] = cost["dynamic"] + cost["static"]
    if trace:
        row |= {f"trace.{key}": trace[key] for key in ("accesses", "bytes")}
    for layer in point["layers"]:
        row[f"max_abs_error.{layer['name']}"] = layer["max_abs_error"]
    return row


def _put(
    file: h5py.File, name: str, columns: Sequence[tuple[str, str, str]],
    rows: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    group = file.create_group(name)
    for column, kind, unit in columns:
        values = [row[column] for row in rows]
        array: npt.NDArray[Any]
        if kind == "text":
            array = np.array([(v or "").encode() for v in values] or [b""], "S")[: len(values)]
            if array.dtype.itemsize == 0:
                array = array.astype("S1")
        elif kind == "float":
            array = np.array([math.nan if v is None else v for v in values], "<f8")
        else:
            array = np.array(values, "<i8" if kind == "integer" else "u1")
        options: dict[str, Any] = {}
        if len(array):
            options = {"chunks": True, "shuffle": True, "compression": "gzip", "fletcher32": True}
        stored = group.create_dataset(column, data=array, **options)
        if unit:
            stored.attrs["unit"] = unit


def _get(
    file: h5py.File, name: str, columns: Sequence[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    group = file[name]
    found: dict[str, list[Any]] = {}
    for column, kind, _ in columns:
        stored = group[column]
        if stored.ndim != 1 or stored.shape[0] > _MOST_ROWS:
            raise ValueError(f"{name}/{column} has shape {stored.shape}")
        values = stored[()].tolist()
        if kind == "text":
            values = [v.decode() for v in values]
        elif kind == "float":
            values = [None if math.isnan(v) else v for v in values]
        elif kind == "flag":
            values = [bool(v) for v in values]
        found[column] = values
    if len({len(values) for values in found.values()}) > 1:
        raise ValueError(f"columns of {name} are not of one length")
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
