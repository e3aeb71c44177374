"""Traces to and from HDF5, as ``traces/FORMAT.md`` says."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from epur_emu._kernels import nests
from epur_emu._kernels.expand import encode
from epur_emu.errors import TraceError
from epur_emu.streams import (
    KINDS,
    LIMIT,
    MAX_LOOPS,
    MAX_NAME,
    OPS,
    UNITS,
    AccessStream,
    Component,
    Phase,
)
from epur_emu.trace.accesses import Runs
from epur_emu.trace.events import (
    BLOCK,
    FORMS,
    NESTED,
    Events,
    InFile,
    InMemory,
    Summary,
    count,
    in_memory,
    to_rows,
)
from epur_emu.trace.files import check_replaceable, written

#: Versions that are written: the first where there are no events. Any minor version of these is read.
WITHOUT_EVENTS = (1, 0)
WITH_EVENTS = (3, 0)

#: Bytes of the HDF5 user block, which holds the seal.
SEAL_BYTES = 512

#: (accesses, bytes) by (phase index, component, op); phase -1 stands for events.
Totals = dict[tuple[int, str, str], tuple[int, int]]

_TEXT = np.dtype(f"S{MAX_NAME}")
_TABLES: dict[str, np.dtype[Any]] = {
    "components": np.dtype(
        [("name", _TEXT), ("capacity", "<i8"), ("width_bits", "<i8"), ("banks", "<i8")]
    ),
    "names": _TEXT,
    "phases": np.dtype(
        [("layer", "<i4"), ("kind", "u1"), ("first_cycle", "<i8"), ("cycles", "<i8")]
    ),
    "streams": np.dtype(
        [
            ("phase", "<i4"), ("component", "<i4"), ("op", "u1"),
            ("bytes", "<i8"), ("address", "<i8"), ("cycle", "<i8"),
            ("count", "<i8", (MAX_LOOPS,)), ("address_stride", "<i8", (MAX_LOOPS,)),
            ("cycle_stride", "<i8", (MAX_LOOPS,)),
        ]
    ),
    "ops": np.dtype([("phase", "<i4"), ("name", "<i4"), ("unit", "u1"), ("count", "<i8")]),
    "totals": np.dtype(
        [
            ("phase", "<i4"), ("component", "<i4"), ("op", "u1"),
            ("accesses", "<i8"), ("bytes", "<i8"),
        ]
    ),
}  # fmt: skip
#: Most rows that a reader accepts: damage must not make it allocate without bound.
_MOST = {
    "meta": 1 << 24, "components": 1 << 12, "names": 1 << 16, "phases": 1 << 16,
    "streams": 1 << 17, "ops": 1 << 18, "totals": 1 << 18, "events": 1 << 32,
}  # fmt: skip
#: Deflate shrinks by at most 1032 to 1; a dataset that declares more is damaged.
_MOST_RATIO = 1100
#: How every HDF5 file begins.
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_REMEDY = "make the trace anew"
#: Accesses that are encoded at once, and those up to which events are kept in memory.
_ENCODED = 1 << 20
_SMALL = 1 << 20


class Content(NamedTuple):
    """All that a file holds."""

    phases: tuple[Phase, ...]
    components: tuple[Component, ...]
    cycles: int
    meta: dict[str, Any]
    events: Events
    complete: bool
    totals: Totals


def meta_bytes(meta: dict[str, Any]) -> bytes:
    """`meta` as canonical JSON.

    Raises
    ------
    TraceError
        It is not a dict of plain finite values, or is over 16 MiB.
    """
    try:
        text = json.dumps(meta, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError(
            "trace", "meta", f"is no JSON ({error})", "give plain finite values"
        ) from None
    if not isinstance(meta, dict) or len(text) > _MOST["meta"]:
        raise TraceError("trace", "meta", "is no dict or over 16 MiB", "give a small dict")
    return text


# Writing


class _Sink(io.FileIO):
    """A file that goes on after a failed write and remembers it: HDF5 does not survive a full disk."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        while len(left) and self.failed is None:
            try:
                left = left[super().write(left) or 0 :]
            except OSError as error:
                self.failed = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = self.failed or error
            return size or 0


class Writer:
    """A trace file in the making, under a temporary name beside its own.

    Parameters
    ----------
    path : path-like
    components : sequence of Component

    Raises
    ------
    TraceError
        The file cannot be written (as all methods do); what stood at `path` is untouched.
    """

    def __init__(self, path: str | os.PathLike[str], components: Sequence[Component]) -> None:
        self.path = Path(path)
        check_replaceable(self.path)
        self.components = tuple(components)
        self.summaries: dict[int, Summary] = {}
        self._waiting: dict[int, list[Runs]] = {}
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.tmp")
        try:
            self._sink = _Sink(self._temporary, "x+b")
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        self._file = h5py.File(self._sink, "w", userblock_size=SEAL_BYTES)
        self._events = self._file.create_group("events")

    def _error(self, error: Exception) -> TraceError:
        reason = getattr(error, "strerror", None) or error
        return TraceError(
            self.path, "", f"cannot be written ({reason})", "choose another place or free space"
        )

    def _check(self) -> None:
        if self._sink.failed is not None:
            raise self._error(self._sink.failed)

    def runs(self, component: int, runs: Runs) -> None:
        """Add events of a component: in range, and no earlier than its events before."""
        if not len(runs[0]):
            return
        self.summaries.setdefault(component, Summary()).add(runs)
        waiting = self._waiting.setdefault(component, [])
        waiting.append(runs)
        if sum(len(one.op) for one in waiting) >= BLOCK:
            joined = Runs.join(waiting)
            whole = len(joined.op) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                self._append(component, joined.part(slice(start, start + BLOCK)))
            self._waiting[component] = [joined.part(slice(whole, None))]
            self._check()

    def _append(self, component: int, runs: Runs) -> None:
        name, rows = self.components[component].name, to_rows(runs)
        if name in self._events:
            held = self._events[name]
            held.resize((len(held) + len(rows),))
            held[-len(rows) :] = rows
        else:
            _put(self._events.id, name, rows)

    def finish(self, content: Content) -> None:
        """Write all but the events, seal the file and give it its name."""
        for component, waiting in self._waiting.items():
            joined = Runs.join(waiting)
            if len(joined.op):
                self._append(component, joined)
        version = WITH_EVENTS if self.summaries else WITHOUT_EVENTS
        _put_all(self._file.id, content, version)
        self._file.close()
        self._check()
        try:
            self._seal(version)
            os.fsync(self._sink.fileno())
            self._sink.close()
            os.replace(self._temporary, self.path)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def _seal(self, version: tuple[int, int]) -> None:
        digest, size = hashlib.sha256(), 0
        self._sink.seek(SEAL_BYTES)
        while piece := self._sink.read(1 << 20):
            digest.update(piece)
            size += len(piece)
        self._sink.seek(0)
        self._sink.write(_seal(version, size, digest.hexdigest()))
        self._check()

    def close(self) -> None:
        """Remove what has not become a file of its own name."""
        self._sink.failed = self._sink.failed or OSError("abandoned")
        with suppress(Exception):
            self._file.close()
        with suppress(OSError, ValueError):
            self._sink.close()
        with suppress(OSError, ValueError):
            self._temporary.unlink(missing_ok=True)


def save(path: str | os.PathLike[str], content: Content) -> None:
    """Write `content` to `path`, or leave whatever is there untouched.

    Raises
    ------
    TraceError
        The file cannot be written; no temporary file is left.
    """
    if not content.events.summaries:
        image = _image(content)
        seal = _seal(WITHOUT_EVENTS, len(image), hashlib.sha256(image).hexdigest())
        with written(path) as target:
            target.write(seal + image)
        return
    with closing(Writer(path, content.components)) as writer:
        for component in sorted(content.events.summaries):
            for runs in content.events.lane(component):
                if runs.counts is None:
                    for start in range(0, len(runs.op), _ENCODED):
                        part = runs.part(slice(start, start + _ENCODED))
                        encoded = encode(part.cycle, part.address, part.bytes, part.op)
                        writer.runs(component, Runs(*encoded))
                else:
                    writer.runs(component, runs)
        writer.finish(content)


def _seal(version: tuple[int, int], size: int, digest: str) -> bytes:
    text = f"epur-trace {version[0]}.{version[1]}\nbytes {size}\nsha256 {digest}\n"
    return text.encode().ljust(SEAL_BYTES, b"\0")


def _image(content: Content) -> bytes:
    """The bytes behind the seal of a file without events, made in memory: fewer and larger writes."""
    place = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    place.set_fapl_core(1 << 16, False)
    form = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    form.set_userblock(SEAL_BYTES)
    file = h5py.h5f.create(b"memory", h5py.h5f.ACC_TRUNC, form, place)
    h5py.h5g.create(file, b"events")
    _put_all(file, content, WITHOUT_EVENTS)
    h5py.h5f.flush(file)
    image: bytes = file.get_file_image()
    file.close()
    return image[image.index(_SIGNATURE) :]


def _put_all(file: h5py.h5f.FileID, content: Content, version: tuple[int, int]) -> None:
    """Write all but the events."""
    for name, value in (
        ("version", np.array(version, "<i4")),
        ("complete", np.array(content.complete, "u1")),
        ("cycles", np.array(content.cycles, "<i8")),
    ):
        space = h5py.h5s.create_simple(value.shape) if value.shape else h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file, name.encode(), _stored(value.dtype), space).write(value)
    _put(file, "meta", np.frombuffer(meta_bytes(content.meta), np.uint8))
    for name, table in _tables(content).items():
        _put(file, name, table)


@cache
def _stored(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    """The type of HDF5; making one takes longer than writing a small table."""
    return h5py.h5t.py_create(dtype, logical=True)


def _put(group: h5py.h5g.GroupID, name: str, rows: npt.NDArray[Any]) -> None:
    if len(rows) > _most(name, rows.dtype):
        raise TraceError("trace", name, f"has {len(rows)} rows", "split the trace")
    # As h5py's create_dataset does, in a third of the time.
    form = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    form.set_obj_track_times(False)
    form.set_chunk((min(max(len(rows), 1), BLOCK),))
    form.set_shuffle()
    form.set_deflate(1)
    form.set_fletcher32()
    kind = _stored(rows.dtype)
    space = h5py.h5s.create_simple(rows.shape, (h5py.h5s.UNLIMITED,))
    made = h5py.h5d.create(group, name.encode(), kind, space, form)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(rows), kind)


def _most(name: str, dtype: np.dtype[Any]) -> int:
    return _MOST["events"] if dtype == NESTED else _MOST.get(name, _MOST["events"])


def _tables(content: Content) -> dict[str, npt.NDArray[Any]]:
    place = {c.name: index for index, c in enumerate(content.components)}
    phases = content.phases
    used = dict.fromkeys(p.layer for p in phases)
    used.update(dict.fromkeys(name for p in phases for name, _, _ in p.operations))
    name_of = {name: index for index, name in enumerate(used)}
    streams, spans = _streams(phases, place)
    rows: dict[str, list[tuple[Any, ...]]] = {
        "components": [
            (c.name.encode(), -1 if c.capacity is None else c.capacity, c.width_bits, c.banks)
            for c in content.components
        ],
        "phases": [
            (name_of[p.layer], KINDS.index(p.kind), begin, end - begin)
            for p, (begin, end) in zip(phases, spans, strict=True)
        ],
        "ops": [
            (index, name_of[name], UNITS.index(unit), count)
            for index, p in enumerate(phases)
            for name, unit, count in p.operations
        ],
        "totals": [
            (phase, place[component], OPS.index(op), *sums)
            for (phase, component, op), sums in content.totals.items()
        ],
    }  # fmt: skip
    tables = {name: np.array(table, _TABLES[name]) for name, table in rows.items()}
    tables["streams"] = streams
    tables["names"] = np.array([name.encode() for name in name_of], _TEXT)
    return tables


def _streams(
    phases: Sequence[Phase], place: dict[str, int]
) -> tuple[npt.NDArray[Any], list[tuple[int, int]]]:
    """The table of streams, and the cycles of each phase, from the first to after the last."""
    table = np.empty(sum(len(p.streams) for p in phases), _TABLES["streams"])
    spans, first = [], 0
    for index, p in enumerate(phases):
        spans.append(nests.table(table, first, index, p.streams, place))
        first += len(p.streams)
    return table, spans


# Reading


def read(path: str | os.PathLike[str]) -> Content:
    """All that the file holds, checked.

    Raises
    ------
    TraceError
        The file is not there, not whole, or not as ``traces/FORMAT.md`` says.
    """
    major = _check_seal(path)
    try:
        with h5py.File(path, "r") as file:
            return _content(str(path), file, major)
    except TraceError:
        raise
    # HDF5 answers damage with many kinds of exception.
    except Exception as error:
        raise TraceError(path, "HDF5", f"is damaged ({error!s:.200})", _REMEDY) from error


def _check_seal(path: str | os.PathLike[str]) -> int:
    """Compare version, length and SHA-256 before HDF5, which trusts its input, sees the file.

    Returns the major version.
    """
    try:
        # Asked of the path, as opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise TraceError(path, "", "is not a file", "give the path of a trace")
        with open(path, "rb") as file:
            seal = file.read(SEAL_BYTES)
            return _compare(path, seal, file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(
            path, "", f"cannot be read ({reason})", "give the path of a trace"
        ) from error


def _compare(path: str | os.PathLike[str], seal: bytes, file: IO[bytes]) -> int:
    version = re.match(rb"epur-trace (\d{1,4})\.(\d{1,4})\n", seal)
    if not version:
        raise TraceError(path, "first line", "is not that of a trace", "give a trace of epur_emu")
    if int(version[1]) not in FORMS:
        raise TraceError(
            path, "version", f"is {int(version[1])}.{int(version[2])}, this reads 1.x to 3.x",
            "read it with the epur_emu that made it, or make it anew",
        )  # fmt: skip
    found = re.fullmatch(rb"bytes (\d{1,19})\nsha256 ([0-9a-f]{64})\n\0*", seal[version.end() :])
    if not found or len(seal) != SEAL_BYTES:
        raise TraceError(path, "seal", "is damaged", _REMEDY)
    size = os.fstat(file.fileno()).st_size - SEAL_BYTES
    if size != int(found[1]):
        raise TraceError(
            path, "length", f"is {size} bytes behind the seal, not {int(found[1])}", _REMEDY
        )
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    if digest.hexdigest() != found[2].decode():
        raise TraceError(path, "SHA-256", "is not that of the seal", _REMEDY)
    return int(version[1])


def _content(path: str, file: h5py.File, sealed: int) -> Content:
    major = int(_attribute(path, file, "version", np.dtype("<i4"), (2,))[0])
    if major != sealed:
        raise TraceError(path, "version", f"is {major} inside, {sealed} in the seal", _REMEDY)
    complete = int(_attribute(path, file, "complete", np.dtype("u1"), ()))
    cycles = int(_attribute(path, file, "cycles", np.dtype("<i8"), ()))
    if complete > 1 or not 0 <= cycles <= LIMIT:
        raise TraceError(path, "complete, cycles", f"are {complete}, {cycles}", _REMEDY)
    meta = json.loads(_table(path, file, "meta", np.dtype("u1")).tobytes())
    if not isinstance(meta, dict):
        raise TraceError(path, "meta", "is no JSON object", _REMEDY)
    tables = {name: _table(path, file, name, dtype) for name, dtype in _TABLES.items()}
    for table, field, names in (
        ("phases", "layer", "names"), ("ops", "name", "names"), ("ops", "phase", "phases"),
        ("streams", "phase", "phases"), ("streams", "component", "components"),
        ("totals", "component", "components"),
    ):  # fmt: skip
        _check_index(path, table, field, tables[table][field], len(tables[names]))
    for table, field, codes in (
        ("phases", "kind", KINDS), ("streams", "op", OPS),
        ("ops", "unit", UNITS), ("totals", "op", OPS),
    ):  # fmt: skip
        _check_index(path, table, field, tables[table][field], len(codes))
    components = tuple(
        _made(
            path, "components", row, Component, _decoded(name), None if size == -1 else size, *rest
        )
        for row, (name, size, *rest) in enumerate(tables["components"].tolist())
    )
    texts = [_decoded(name) for name in tables["names"].tolist()]
    phases = _phases(path, tables, texts, [c.name for c in components])
    totals = {
        (phase, components[component].name, OPS[op]): (accesses, size)
        for phase, component, op, accesses, size in tables["totals"].tolist()
    }
    if len(totals) != len(tables["totals"]):
        raise TraceError(path, "totals", "repeat a row", _REMEDY)
    events = _events(path, file, components, major)
    return Content(phases, components, cycles, meta, events, bool(complete), totals)


def _check_index(path: str, table: str, field: str, column: npt.NDArray[Any], limit: int) -> None:
    if column.size and not 0 <= int(column.min()) <= int(column.max()) < limit:
        row = int(np.argmax((column < 0) | (column >= limit)))
        raise TraceError(
            path,
            f"{table}, row {row}, {field}",
            f"is {column[row]} where {limit} are known",
            _REMEDY,
        )


def _decoded(name: bytes) -> str:
    return name.decode(errors="replace")


def _made(path: str, table: str, row: int, make: Any, *values: Any) -> Any:
    """``make(*values)``, whose error is told with file, table and row."""
    try:
        return make(*values)
    except TraceError as error:
        raise TraceError(
            path, f"{table}, row {row}, {error.field}", error.problem, _REMEDY
        ) from error


def _phases(
    path: str, tables: dict[str, npt.NDArray[Any]], names: Sequence[str], components: Sequence[str]
) -> tuple[Phase, ...]:
    rows = tables["phases"].tolist()
    streams: list[list[AccessStream]] = [[] for _ in rows]
    operations: list[list[tuple[str, str, int]]] = [[] for _ in rows]
    for index, row in enumerate(_rows(tables["streams"])):
        phase, component, op, size, address, cycle, counts, by, wait = row
        loops = tuple(zip(counts, by, wait, strict=True))
        stream = _made(
            path, "streams", index, AccessStream, components[component], OPS[op], size, address,
            cycle, loops,
        )  # fmt: skip
        kept = stream.loops + ((1, 0, 0),) * (MAX_LOOPS - len(stream.loops))
        if kept != loops:
            raise TraceError(path, f"streams, row {index}", "is not in canonical form", _REMEDY)
        streams[phase].append(stream)
    for phase, name, unit, times in tables["ops"].tolist():
        operations[phase].append((names[name], UNITS[unit], times))
    phases = []
    for index, (layer, kind, first, cycles) in enumerate(rows):
        made: Phase = _made(
            path, "phases", index, Phase, names[layer], KINDS[kind], tuple(streams[index]),
            tuple(operations[index]),
        )  # fmt: skip
        if (first, cycles) != (made.first_cycle, made.cycles):
            raise TraceError(
                path, f"phases, row {index}", f"has cycles {first} + {cycles}, its streams "
                f"{made.first_cycle} + {made.cycles}", _REMEDY,
            )  # fmt: skip
        phases.append(made)
    return tuple(phases)


def _rows(table: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows as plain Python values; sub-arrays as lists."""
    return zip(*(table[field].tolist() for field in table.dtype.names or ()), strict=True)


def _events(
    path: str, file: h5py.File, components: Sequence[Component], major: int
) -> Events:
    group = _member(path, file, "events", h5py.Group)
    if len(group) > len(components):
        raise TraceError(path, "events", f"are of {len(group)} components", _REMEDY)
    known = [c.name for c in components]
    held, form = [], FORMS[major]
    for name in group:
        if name not in known:
            raise TraceError(path, f"events of {name!s:.80}", "are of no known component", _REMEDY)
        held.append(name)
        if form is None:
            _dataset(path, group, name, NESTED)
            continue
        own = _member(path, group, name, h5py.Group)
        rows = {_dataset(path, own, field, dtype).shape[0] for field, dtype in form.items()}
        if len(rows) != 1:
            raise TraceError(path, f"events of {name}", "have columns of several lengths", _REMEDY)
    events = InFile(path, known, held, major)
    small = count(events) <= _SMALL
    return InMemory(in_memory(events)) if small else events


def _member(path: str, group: h5py.Group, name: str, kind: type[Any]) -> Any:
    """The dataset or group of this name, if a hard link leads to it."""
    link = group.get(name, getlink=True)
    if link is None:
        raise TraceError(path, name, "is missing", _REMEDY)
    if not isinstance(link, h5py.HardLink):
        raise TraceError(path, name, "is a link to elsewhere", _REMEDY)
    if group.get(name, getclass=True) is not kind:
        raise TraceError(path, name, f"is no {kind.__name__.lower()}", _REMEDY)
    return group[name]


def _attribute(
    path: str, file: h5py.File, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if name not in file.attrs:
        raise TraceError(path, f"attribute {name}", "is missing", _REMEDY)
    found = file.attrs.get_id(name)
    if found.dtype != dtype or found.shape != shape:
        raise TraceError(
            path, f"attribute {name}", f"is {found.dtype} of shape {found.shape}", _REMEDY
        )
    return np.asarray(file.attrs[name])


def _table(path: str, group: h5py.Group, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """All rows of a one-dimensional dataset."""
    return np.asarray(_dataset(path, group, name, dtype)[...])


def _dataset(path: str, group: h5py.Group, name: str, dtype: np.dtype[Any]) -> h5py.Dataset:
    """A one-dimensional dataset whose declared size is sane."""
    found = _member(path, group, name, h5py.Dataset)
    where = f"{group.name.strip('/')}/{name}".strip("/")
    if found.dtype != dtype or len(found.shape or ()) != 1:
        raise TraceError(path, where, f"is {found.dtype} of shape {found.shape}", _REMEDY)
    if found.is_virtual or found.external or not found.chunks:
        raise TraceError(path, where, "does not lie in chunks of this file", _REMEDY)
    filters = found.id.get_create_plist()
    kinds = [filters.get_filter(n)[0] for n in range(filters.get_nfilters())]
    if not set(kinds) <= {
        h5py.h5z.FILTER_SHUFFLE,
        h5py.h5z.FILTER_DEFLATE,
        h5py.h5z.FILTER_FLETCHER32,
    }:
        raise TraceError(path, where, "has an unknown filter", _REMEDY)
    rows = found.shape[0]
    stored = found.id.get_storage_size()
    if (
        rows > _most(name, dtype)
        or found.chunks[0] > BLOCK
        or rows * dtype.itemsize > _MOST_RATIO * stored
    ):
        raise TraceError(path, where, f"declares {rows} rows in {stored} bytes", _REMEDY)
    return found
