"""Parquet: the columns of `Accesses`, component and op by name; the trace's own data as metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from epur_emu.errors import TraceError
from epur_emu.streams import OPS, Component
from epur_emu.trace.accesses import Accesses
from epur_emu.trace.exporters.base import Part

#: Key of the file's metadata under which JSON with components, cycles and meta stands.
KEY = b"epur_emu"

#: Rows that are read at once.
BATCH = 1 << 18


def _arrow(path: object = "Parquet") -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TraceError(
            str(path), "pyarrow", "is not installed", "pip install 'epur_emu[parquet]'"
        ) from error
    return pyarrow


class Parquet:
    """A row group for each chunk."""

    single = False

    def __init__(self, file: IO[bytes], components: Sequence[Component], about: dict[str, Any]) -> None:
        self._pa = pa = _arrow()
        self._names = [c.name for c in components]
        words = pa.dictionary(pa.int32(), pa.string())
        about = about | {"components": [asdict(c) for c in components]}
        schema = pa.schema(
            [("cycle", pa.int64()), ("component", words), ("op", words), ("address", pa.int64()),
             ("bytes", pa.int64())],
            metadata={KEY: json.dumps(about)},
        )  # fmt: skip
        self._schema = schema
        self._writer = pa.parquet.ParquetWriter(file, schema, compression="zstd")

    def feed(self, chunk: Accesses) -> None:
        """Write a row group."""
        pa = self._pa
        component = pa.DictionaryArray.from_arrays(pa.array(chunk.component), self._names)
        op = pa.DictionaryArray.from_arrays(pa.array(chunk.op.astype(np.int32)), list(OPS))
        columns = [pa.array(chunk.cycle), component, op, pa.array(chunk.address), pa.array(chunk.bytes)]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an exported file says of its trace; empty for files of others."""
    found = _arrow(path).parquet.read_schema(path).metadata or {}
    value = json.loads(found.get(KEY, b"{}"))
    return value if isinstance(value, dict) else {}


def read(path: str | os.PathLike[str]) -> Iterator[Part]:
    """Accesses of a Parquet file, in its order.

    Raises
    ------
    TraceError
        pyarrow is missing, or the file is damaged or lacks a column.
    """
    pa = _arrow(path)
    names: dict[str, int] = {}
    try:
        for made in about(path).get("components", []):
            names.setdefault(str(made["name"]), len(names))
        with pa.parquet.ParquetFile(path, memory_map=False) as file:
            for batch in file.iter_batches(BATCH, columns=["cycle", "component", "op", "address", "bytes"]):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                numbers = [columns[n].to_numpy(zero_copy_only=False) for n in ("cycle", "address", "bytes")]
                component, op = (_codes(columns[n]) for n in ("component", "op"))
                for name in component[1]:
                    names.setdefault(name, len(names))
                place = np.array([names[n] for n in component[1]], np.int64)[component[0]]
                code = np.array([OPS.index(o) for o in op[1]], np.int64)[op[0]]
                yield list(names), Accesses.of(numbers[0], place, code, numbers[1], numbers[2])
    except TraceError:
        raise
    except OSError as error:
        raise TraceError(path, "", f"cannot be read ({error!s:.200})", "give a Parquet file") from error
    except Exception as error:  # a damaged file answers with many kinds
        raise TraceError(
            path, "Parquet", f"can't be taken ({error!s:.200})".replace("\n", " "),
            "give columns cycle, component, op (read or write), address and bytes",
        ) from error  # fmt: skip


def _codes(column: Any) -> tuple[Any, list[str]]:
    """Indices and distinct texts of a column."""
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    return column.indices.to_numpy(zero_copy_only=False), column.dictionary.to_pylist()
