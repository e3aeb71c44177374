"""The algebra of affine access streams: loop nests that stand for single accesses, without loss."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu._kernels import nests
from epur_emu.errors import TraceError

#: (count, address stride in bytes, cycle stride).
Loop = tuple[int, int, int]

#: Operations in the order of their codes.
OPS = ("read", "write")

#: Kinds of a phase in the order of their codes.
KINDS = ("load", "forward", "recurrent", "mu", "store")

#: Units that perform operations, in the order of their codes.
UNITS = ("dpu", "mu", "link")

#: Most loops of a stream in canonical form.
MAX_LOOPS = nests.MAX_LOOPS

#: Bound of every address, cycle and total, so that 64-bit sums and differences cannot overflow.
LIMIT = nests.BOUND

#: Most bytes of a name in UTF-8.
MAX_NAME = nests.MAX_NAME

Longs = npt.NDArray[np.int64]


def check_name(source: str, field: str, name: str) -> str:
    """`name` itself if a trace can hold it: 1 to 255 bytes of UTF-8, no control characters.

    Raises
    ------
    TraceError
        It cannot; `source` and `field` are named.
    """
    try:
        fits = 1 <= len(name.encode()) <= MAX_NAME and name.isprintable()
    except (AttributeError, UnicodeEncodeError):
        fits = False
    if not fits:
        raise TraceError(source, field, f"is {name!r:.80}", f"give 1 to {MAX_NAME} printable bytes")
    return name


def check_integer(source: str, field: str, value: object, least: int) -> int:
    """`value` as a plain int if it is an integer from `least` to `LIMIT`.

    Raises
    ------
    TraceError
        It is not; `source` and `field` are named.
    """
    try:
        number = int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise TraceError(source, field, f"is {value!r:.80}", "give an integer") from None
    if not least <= number <= LIMIT:
        # Python refuses to print integers of thousands of digits.
        shown = number if number.bit_length() < 100 else f"of {number.bit_length()} bits"
        raise TraceError(source, field, f"is {shown}", f"give {least} to {LIMIT}")
    return number


@dataclass(frozen=True)
class Component:
    """A memory whose accesses a trace holds.

    Parameters
    ----------
    name : str
        Such as ``cu.i.weights``.
    capacity : int or None
        Bytes; addresses lie below. None if unbounded.
    width_bits : int
        Width of one port.
    banks : int

    Raises
    ------
    TraceError
        The name is empty, over 255 bytes or no HDF5 name, or a number out of range.
    """

    name: str
    capacity: int | None
    width_bits: int
    banks: int

    def __post_init__(self) -> None:
        check_name("component", "name", self.name)
        if "/" in self.name or self.name == ".":
            raise TraceError(
                "component", "name", f"is {self.name!r}", "use no slash, nor a lone dot"
            )
        if self.capacity is not None:
            capacity = check_integer(self.name, "capacity", self.capacity, 0)
            object.__setattr__(self, "capacity", capacity)
        for name in ("width_bits", "banks"):
            value = check_integer(self.name, name, getattr(self, name), 1)
            object.__setattr__(self, name, value)


def canonical(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    """The loops without those of count 1, and with neighbours merged where both strides agree.

    Two nests that give the same accesses in the same order have the same canonical form: the inner
    loop is the longest run of equal differences, and so on outwards.

    Parameters
    ----------
    loops : iterable of (count, address stride, cycle stride)
        Outermost first; counts at least 1.
    """
    kept: list[Loop] = []
    for count, address, cycle in reversed(list(loops)):
        if count == 1:
            continue
        if kept:
            inner = kept[-1]
            if address == inner[0] * inner[1] and cycle == inner[0] * inner[2]:
                kept[-1] = (count * inner[0], inner[1], inner[2])
                continue
        kept.append((count, address, cycle))
    return tuple(reversed(kept))


class AccessStream(nests.Stream):
    """Accesses of one component in one affine loop nest, in order of time.

    ``stream.at(component)`` gives the same accesses of another component.

    Access number k, written in the mixed radix of the loops' counts with digits d, happens at
    ``cycle + sum(d * cycle stride)`` on ``address + sum(d * address stride)``. Loops are brought to
    canonical form at creation, so equal streams compare equal.

    Parameters
    ----------
    component : str
    op : {'read', 'write'}
    bytes : int
        Bytes of each access.
    address : int
        Byte address of the first access.
    cycle : int
        Cycle of the first access.
    loops : tuple of (count, address stride, cycle stride)
        Outermost first, at most 6 in canonical form. An address stride may be 0 or negative; a
        cycle stride is at least the span of the loops inside: the stream is sorted in time.

    Attributes
    ----------
    accesses : int
        How many there are; the same as ``len(stream)``.
    span : int
        Cycles from the first access to the last.

    Raises
    ------
    TraceError
        A count is below 1, an address or cycle negative or beyond 2**62, a cycle stride too small,
        or more than 6 loops are left.
    """

    __slots__ = ()

    @staticmethod
    def _checked(
        component: object, op: object, size: object, address: object, cycle: object, loops: Any
    ) -> tuple[Any, ...]:
        """The arguments as plain values that are in order, or the error that names what is not."""
        source = f"stream of {component!s:.80}"
        check_name("stream", "component", component)  # type: ignore[arg-type]
        if op not in OPS:
            raise TraceError(source, "op", f"is {op!r:.80}", "give 'read' or 'write'")
        size = check_integer(source, "bytes", size, 1)
        address = low = high = check_integer(source, "address", address, 0)
        cycle = check_integer(source, "cycle", cycle, 0)
        try:
            given = [(c, a, t) for c, a, t in loops]
        except (TypeError, ValueError):
            raise TraceError(
                source, "loops", f"are {loops!r:.80}",
                "give (count, address stride, cycle stride) for each",
            ) from None  # fmt: skip
        nest = canonical(
            (
                check_integer(source, "count", count, 1),
                check_integer(source, "address stride", by, -LIMIT),
                check_integer(source, "cycle stride", wait, -LIMIT),
            )
            for count, by, wait in given
        )
        if len(nest) > MAX_LOOPS:
            raise TraceError(
                source, "loops", f"are {len(nest)} deep", f"split it into nests of {MAX_LOOPS}"
            )
        span, accesses = 0, 1
        for count, by, wait in reversed(nest):
            if wait < span:
                raise TraceError(
                    source, "cycle stride", f"is {wait}, less than the {span} of the loops inside",
                    "split the stream where it goes back in time",
                )  # fmt: skip
            span += (count - 1) * wait
            low += min(0, (count - 1) * by)
            high += max(0, (count - 1) * by)
            accesses *= count
        check_integer(source, "lowest address", low, 0)
        check_integer(source, "end of the highest access", high + size, 0)
        check_integer(source, "last cycle", cycle + span, 0)
        check_integer(source, "total bytes", accesses * size, 0)
        return str(component), str(op), size, address, cycle, nest

    def __len__(self) -> int:
        return self.accesses

    @property
    def last_cycle(self) -> int:
        """Cycle of the last access."""
        return self.cycle + self.span

    @property
    def total_bytes(self) -> int:
        """Bytes of all accesses together."""
        return self.accesses * self.bytes

    @property
    def lowest_address(self) -> int:
        """The smallest address of any access."""
        return self.address + sum(min(0, (n - 1) * address) for n, address, _ in self.loops)

    @property
    def end_address(self) -> int:
        """The address after the last byte of the access that reaches furthest."""
        reach = sum(max(0, (n - 1) * address) for n, address, _ in self.loops)
        return self.address + reach + self.bytes

    def __getitem__(self, part: slice) -> tuple[AccessStream, ...]:
        """The accesses ``part.start`` to ``part.stop`` as streams, in order; cost O(depth)."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError("a stream is cut by s[i:j] only")
        start, stop, _ = part.indices(self.accesses)
        return tuple(
            AccessStream(self.component, self.op, self.bytes, address, cycle, loops)
            for address, cycle, loops in _cut(self.loops, self.address, self.cycle, start, stop)
        )

    def before(self, cycle: int) -> int:
        """How many accesses happen in a cycle before `cycle`; cost O(depth)."""
        left, span, inner, done = cycle - self.cycle, self.span, self.accesses, 0
        for count, _, stride in self.loops:
            if left <= 0:
                break
            span -= (count - 1) * stride
            inner //= count
            # Turns wholly before `cycle`; later ones than the next begin no earlier than `cycle`.
            turns = min(count, max(0, -((span - left) // stride))) if stride else count
            done += turns * inner
            if turns == count:
                return done
            left -= turns * stride
        return done + (left > 0)

    def expand(self, start: int = 0, stop: int | None = None) -> tuple[Longs, Longs]:
        """Single accesses ``start`` to ``stop``.

        Returns
        -------
        cycle, address : int64 arrays of shape (accesses,)
            In the order of the stream.
        """
        start, stop, _ = slice(start, stop).indices(self.accesses)
        cycles, addresses = np.empty((2, max(0, stop - start)), np.int64)
        done = 0
        for address, cycle, loops in _cut(self.loops, self.address, self.cycle, start, stop):
            size = _fill(cycles[done:], cycle, [(n, wait) for n, _, wait in loops])
            done += _fill(addresses[done : done + size], address, [(n, by) for n, by, _ in loops])
        return cycles, addresses


def _fill(out: Longs, base: int, loops: list[tuple[int, int]]) -> int:
    """Write the values of a nest of (count, stride) to the front of `out`; returns how many."""
    grid = np.full(1, base, np.int64)
    for count, stride in reversed(loops):
        # From the inside out, so that each pass is at least twice the one before.
        grid = np.add.outer(np.arange(count, dtype=np.int64) * stride, grid).reshape(-1)
    out[: grid.size] = grid
    return grid.size


def _cut(
    loops: tuple[Loop, ...], address: int, cycle: int, start: int, stop: int
) -> Iterator[tuple[int, int, tuple[Loop, ...]]]:
    """Nests (address, cycle, loops) that make up the accesses `start` to `stop`, in order."""
    if start >= stop:
        return
    if not loops:
        yield address, cycle, ()
        return
    (_, by, wait), rest = loops[0], loops[1:]
    inner = 1
    for count, _, _ in rest:
        inner *= count
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if first == last:
        yield from _cut(rest, address + first * by, cycle + first * wait, head, tail)
        return
    if head:
        yield from _cut(rest, address + first * by, cycle + first * wait, head, inner)
        first += 1
    if first < last:
        whole = ((last - first, by, wait), *rest)
        yield address + first * by, cycle + first * wait, whole
    yield from _cut(rest, address + last * by, cycle + last * wait, 0, tail)


@dataclass(frozen=True)
class Phase:
    """What one pass does in one of its parts.

    Parameters
    ----------
    layer : str
        Name of the `LstmLayer`, such as ``encoder.0.forward``.
    kind : {'load', 'forward', 'recurrent', 'mu', 'store'}
    streams : tuple of AccessStream
    operations : tuple of (name, unit, count)
        Arithmetic performed, such as ``("multiply", "dpu", 4096)``; units are dpu, mu and link.

    Raises
    ------
    TraceError
        A kind, unit, name or count is not valid.
    """

    layer: str
    kind: str
    streams: tuple[AccessStream, ...] = ()
    operations: tuple[tuple[str, str, int], ...] = ()

    def __post_init__(self) -> None:
        check_name("phase", "layer", self.layer)
        source = f"phase of {self.layer}"
        if self.kind not in KINDS:
            raise TraceError(
                source, "kind", f"is {self.kind!r:.80}", f"use one of {', '.join(KINDS)}"
            )
        object.__setattr__(self, "streams", tuple(self.streams))
        operations = []
        for name, unit, count in self.operations:
            check_name(source, "operation", name)
            if unit not in UNITS:
                raise TraceError(
                    source, f"unit of {name}", f"is {unit!r:.80}", f"use one of {', '.join(UNITS)}"
                )
            operations.append((name, unit, check_integer(source, f"count of {name}", count, 0)))
        object.__setattr__(self, "operations", tuple(operations))

    @cached_property
    def sums(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(accesses, bytes) by (component, op), in the order in which they come."""
        return nests.sums(self.streams)

    @property
    def first_cycle(self) -> int:
        """Cycle of the first access; 0 if there is none."""
        return min((stream.cycle for stream in self.streams), default=0)

    @property
    def cycles(self) -> int:
        """Cycles from the first access to after the last; 0 if there is none."""
        last = max((stream.last_cycle for stream in self.streams), default=-1)
        return last + 1 - self.first_cycle
