"""Single accesses, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, OPS

#: Column names and dtypes, in the order of the fields of `Accesses`.
COLUMNS: dict[str, np.dtype[Any]] = {
    "cycle": np.dtype(np.int64),
    "component": np.dtype(np.int32),
    "op": np.dtype(np.uint8),
    "address": np.dtype(np.int64),
    "bytes": np.dtype(np.int64),
}


class Runs(NamedTuple):
    """Rows of one component, each ``counts[0] * counts[1]`` accesses in two nested loops, outermost first.

    Columns of n rows, int64 but `op` (uint8); `counts`, `by` (address strides) and `wait` (cycle strides) of
    shape (2, n), or None for counts of 1 and strides of 0.
    """

    cycle: npt.NDArray[np.int64]
    address: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    op: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.int64] | None = None
    by: npt.NDArray[np.int64] | None = None
    wait: npt.NDArray[np.int64] | None = None

    def loops(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`counts`, `by` and `wait`, in any case."""
        if self.counts is None or self.by is None or self.wait is None:
            shape = 2, len(self.op)
            return np.ones(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        return self.counts, self.by, self.wait

    def part(self, rows: slice) -> Runs:
        """Some of the rows."""
        found = Runs(self.cycle[rows], self.address[rows], self.bytes[rows], self.op[rows])
        if self.counts is None:
            return found
        count, by, wait = (column[:, rows] for column in self.loops())
        return found._replace(counts=count, by=by, wait=wait)

    @classmethod
    def join(cls, parts: Sequence[Runs]) -> Runs:
        """The parts one behind the other."""
        if len(parts) == 1:
            return parts[0]
        cycle, address, size = (np.concatenate([p[n] for p in parts]) for n in range(3))
        loops = zip(*(p.loops() for p in parts), strict=True)
        count, by, wait = (np.concatenate(own, axis=1) for own in loops)
        op = np.concatenate([p.op for p in parts])
        return cls(cycle, address, size, op, count, by, wait)


@dataclass(frozen=True, eq=False)
class Accesses:
    """Accesses as columns of one length.

    Parameters
    ----------
    cycle : int64 array of shape (n,)
    component : int32 array of shape (n,)
        Index into the trace's components.
    op : uint8 array of shape (n,)
        0 is a read, 1 a write.
    address : int64 array of shape (n,)
        Byte address within the component.
    bytes : int64 array of shape (n,)

    Raises
    ------
    TraceError
        The columns' shapes or dtypes are wrong.
    """

    cycle: npt.NDArray[np.int64]
    component: npt.NDArray[np.int32]
    op: npt.NDArray[np.uint8]
    address: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (self.cycle.size,):
                raise TraceError(
                    "accesses", name, f"is {column.dtype} of shape {column.shape}",
                    f"give {dtype} of shape ({self.cycle.size},)",
                )  # fmt: skip

    @classmethod
    def of(
        cls,
        cycle: npt.ArrayLike,
        component: npt.ArrayLike,
        op: npt.ArrayLike,
        address: npt.ArrayLike,
        bytes: npt.ArrayLike,
    ) -> Accesses:
        """Accesses of any integer sequences, brought to the columns' dtypes."""
        given = (cycle, component, op, address, bytes)
        return cls(*map(_column, COLUMNS, given))

    @classmethod
    def none(cls) -> Accesses:
        """No access at all."""
        return cls(*(np.empty(0, dtype) for dtype in COLUMNS.values()))

    @classmethod
    def join(cls, parts: Iterable[Accesses]) -> Accesses:
        """The parts one behind the other."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.none()
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS))

    def __len__(self) -> int:
        return int(self.cycle.size)

    def __getitem__(self, part: slice | npt.NDArray[Any]) -> Accesses:
        """The accesses of a slice, a boolean mask or an index array."""
        return Accesses(*(getattr(self, name)[part] for name in COLUMNS))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Accesses):
            return NotImplemented
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in COLUMNS)

    __hash__ = None  # type: ignore[assignment]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def ordered(self) -> Accesses:
        """Sorted by (cycle, component, op); equals keep their order."""
        return self[np.lexsort((self.op, self.component, self.cycle))]

    def check(self, source: str, components: int) -> int:
        """Bytes of all accesses together, if they are of so many components and in range.

        Raises
        ------
        TraceError
            A value is out of range; `source` and the column are named.
        """
        if not len(self):
            return 0
        limits = {
            "cycle": (0, LIMIT), "component": (0, components - 1), "op": (0, len(OPS) - 1),
            "address": (0, LIMIT), "bytes": (1, LIMIT),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            column = getattr(self, name)
            for extreme in (int(column.min()), int(column.max())):
                if not least <= extreme <= most:
                    raise TraceError(
                        source, f"events, {name}", f"is {extreme}", f"give {least} to {most}"
                    )
        # The float sum comes first, as the integer one might wrap.
        if (self.address > LIMIT - self.bytes).any() or self.bytes.sum(dtype=np.float64) > LIMIT:
            raise TraceError(source, "events, bytes", "reach beyond 2**62", "split the trace")
        return int(self.bytes.sum())


def _column(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    dtype = COLUMNS[name]
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TraceError(
            "accesses", name, f"is {array.dtype} of {array.ndim} dimensions", "give one of integers"
        )
    bounds = np.iinfo(dtype)
    if array.size and not bounds.min <= int(array.min()) <= int(array.max()) <= bounds.max:
        raise TraceError("accesses", name, "holds a value out of range", f"give {dtype}")
    return np.require(array, dtype, ["C", "A"])
