"""Streams against plain loops over their accesses."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import nests, streams

from epur_emu.errors import TraceError
from epur_emu.streams import LIMIT, AccessStream, Component, Phase, canonical


def naive(
    loops: tuple[tuple[int, int, int], ...], cycle: int = 0, address: int = 0
) -> list[tuple[int, int]]:
    """(cycle, address) of every access, one at a time."""
    return [
        (
            cycle + sum(d * loop[2] for d, loop in zip(digits, loops, strict=True)),
            address + sum(d * loop[1] for d, loop in zip(digits, loops, strict=True)),
        )
        for digits in itertools.product(*(range(loop[0]) for loop in loops))
    ]


def listed(stream: AccessStream) -> list[tuple[int, int]]:
    return naive(stream.loops, stream.cycle, stream.address)


@given(nests())
def test_canonical_form_keeps_the_accesses(loops: tuple[tuple[int, int, int], ...]) -> None:
    assert naive(canonical(loops)) == naive(loops)


@given(nests(depth=3, count=3), nests(depth=3, count=3))
def test_same_accesses_have_one_form(
    one: tuple[tuple[int, int, int], ...], other: tuple[tuple[int, int, int], ...]
) -> None:
    assert (canonical(one) == canonical(other)) == (naive(one) == naive(other))


@given(nests(), st.data())
def test_a_loop_cut_in_two_merges_again(
    loops: tuple[tuple[int, int, int], ...], data: st.DataObject
) -> None:
    factors = data.draw(st.lists(st.integers(1, 3), min_size=len(loops), max_size=len(loops)))
    cut: list[tuple[int, int, int]] = []
    for (count, address, cycle), factor in zip(loops, factors, strict=True):
        cut += [(count, factor * address, factor * cycle), (factor, address, cycle)]
    whole = [(n * f, a, c) for (n, a, c), f in zip(loops, factors, strict=True)]
    assert canonical(cut) == canonical(whole)


@given(streams())
def test_lengths_and_bounds(stream: AccessStream) -> None:
    accesses = listed(stream)
    assert len(stream) == stream.accesses == len(accesses)
    assert stream.total_bytes == len(accesses) * stream.bytes
    cycles = [cycle for cycle, _ in accesses]
    assert cycles == sorted(cycles)
    assert (cycles[0], cycles[-1]) == (stream.cycle, stream.last_cycle)
    assert stream.span == cycles[-1] - cycles[0]
    assert stream.lowest_address == min(address for _, address in accesses)
    assert stream.end_address == max(address for _, address in accesses) + stream.bytes


_NEAR = st.sampled_from([0, 1, LIMIT - 2, LIMIT, LIMIT + 1, -1, -LIMIT, True]) | st.integers(-3, 9)


@given(
    st.sampled_from(["dram", "x\u00e9", "a\n", "", "x" * 256, 3]), st.sampled_from(["read", "write", "erase"]),
    _NEAR, _NEAR, _NEAR,
    st.lists(
        st.tuples(_NEAR, _NEAR, _NEAR)
        | st.tuples(st.integers(1, 3), st.integers(-2, 3), st.integers(0, 9)),
        max_size=7,
    ),
)  # fmt: skip
def test_plain_integers_are_checked_as_all_others(
    component: Any, op: str, size: Any, address: Any, cycle: Any, loops: list[Any]
) -> None:
    def made(loops: Any) -> tuple[Any, ...]:
        try:
            stream = AccessStream(component, op, size, address, cycle, loops)
        except TraceError as error:
            return str(error), "", 0
        return stream, stream.loops, type(stream.bytes)

    # Lists, as loops or in their places, take the long way.
    assert made(tuple(loops)) == made(loops)


@given(streams())
def test_the_same_accesses_of_another_component(stream: AccessStream) -> None:
    whole = stream.accesses
    other = stream.at("other")
    assert other == AccessStream("other", stream.op, stream.bytes, stream.address, stream.cycle, stream.loops)
    assert (other.accesses, stream.component != "other") == (whole, True)
    with pytest.raises(TraceError, match="component"):
        stream.at("")


@given(streams())
def test_before_counts_earlier_accesses(stream: AccessStream) -> None:
    cycles = [cycle for cycle, _ in listed(stream)]
    for now in range(stream.cycle - 1, stream.last_cycle + 3):
        assert stream.before(now) == sum(cycle < now for cycle in cycles)


@given(streams(), st.data())
def test_slices(stream: AccessStream, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(0, len(stream)))
    wanted = listed(stream)[start:stop]
    parts = stream[start:stop]
    assert [access for part in parts for access in listed(part)] == wanted
    assert len(parts) <= 2 * len(stream.loops) + 1
    cycle, address = stream.expand(start, stop)
    assert cycle.dtype == address.dtype == np.int64
    assert list(zip(cycle.tolist(), address.tolist(), strict=True)) == wanted


def test_python_slices() -> None:
    stream = AccessStream("dram", "read", 64, 0, 0, ((10, 64, 1),))
    assert stream[:] == (stream,)
    assert stream[-3:][0].cycle == 7
    assert stream[4:2] == ()
    cycle, _ = stream.expand()
    assert cycle.tolist() == list(range(10))
    for part in (3, slice(0, 4, 2)):
        with pytest.raises(TypeError, match="cut by"):
            stream[part]  # type: ignore[index]


def test_huge_stream_is_handled_in_closed_form() -> None:
    stream = AccessStream("dram", "read", 1, 0, 0, ((2**20, 0, 2**40), (2**30, 1, 2**5)))
    assert len(stream) == 2**50
    assert stream.before(2**59) == 2**49
    assert stream.before(2**40 + 33) == 2**30 + 2
    cycle, address = stream.expand(2**49 + 5, 2**49 + 7)
    assert cycle.tolist() == [2**59 + 160, 2**59 + 192]
    assert address.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"op": "erase"}, "op"),
        ({"component": ""}, "component"),
        ({"component": "x" * 256}, "component"),
        ({"component": 3}, "component"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"address": -1}, "address"),
        ({"address": LIMIT}, "end of the highest access"),
        ({"cycle": -1}, "cycle"),
        ({"cycle": LIMIT + 1}, "cycle"),
        ({"loops": ((0, 1, 1),)}, "count"),
        ({"loops": ((10**5000, 1, 1),)}, "count"),
        ({"loops": ((-2, 1, 1),)}, "count"),
        ({"loops": ((2, -101, 1),)}, "lowest address"),
        ({"loops": ((2, 1, -1),)}, "cycle stride"),
        ({"loops": ((2, 1, 2), (4, 1, 1))}, "cycle stride"),
        ({"loops": ((2**31, 0, 2**32),)}, "last cycle"),
        ({"loops": ((2**40, 0, 0), (2**30, 1, 0))}, "total bytes"),
        ({"loops": ((2**32, 2**31, 0),)}, "end of the highest access"),
        ({"loops": ((2, 1),)}, "loops"),
        ({"loops": 5}, "loops"),
        ({"loops": tuple((2, 0, 10**n) for n in range(6, -1, -1))}, "loops"),
    ],
)
def test_bad_streams_are_refused(change: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {
        "component": "dram", "op": "read", "bytes": 4, "address": 100, "cycle": 0, "loops": ()
    }  # fmt: skip
    AccessStream(**good)
    with pytest.raises(TraceError) as caught:
        AccessStream(**good | change)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_numpy_integers_become_plain_ones() -> None:
    size, cycle, count = list[Any](np.array([4, 2, 3]))
    stream = AccessStream("dram", "read", size, 0, cycle, ((count, 1, 1),))
    assert stream == AccessStream("dram", "read", 4, 0, 2, ((3, 1, 1),))
    assert type(stream.bytes) is type(stream.loops[0][0]) is int


def test_phase_times() -> None:
    read = AccessStream("dram", "read", 64, 0, 5, ((3, 64, 2),))
    write = AccessStream("intermediate", "write", 32, 0, 7, ())
    phase = Phase("l.0", "load", (read, write))
    assert (phase.first_cycle, phase.cycles) == (5, 5)
    assert (Phase("l.0", "mu").first_cycle, Phase("l.0", "mu").cycles) == (0, 0)


@pytest.mark.parametrize(
    "values",
    [
        ("", "load"),
        ("l.0", "wait"),
        ("l.0", "mu", (), (("add", "cpu", 1),)),
        ("l.0", "mu", (), (("", "mu", 1),)),
        ("l.0", "mu", (), (("add", "mu", -1),)),
    ],
)
def test_bad_phases_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(TraceError):
        Phase(*values)


@pytest.mark.parametrize(
    "values", [("", 1, 8, 1), ("a/b", 1, 8, 1), (".", 1, 8, 1), ("a", -1, 8, 1), ("a", None, 0, 1)]
)
def test_bad_components_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(TraceError):
        Component(*values)

EDGES = st.sampled_from(
    [0, 1, 2, -1, LIMIT - 1, LIMIT, LIMIT + 1, -LIMIT, -LIMIT - 1, 2**63, -(2**64), True, None]
)
NUMBERS = st.integers(-3, 9) | st.integers(-(2**65), 2**65) | EDGES
LOOPS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=7).map(tuple)


@given(
    st.sampled_from(["dram", "", "é" * 127, "é" * 128, "a\n", 3]), st.sampled_from(["read", "write", "Read"]),
    NUMBERS, NUMBERS, NUMBERS, nests(depth=7) | LOOPS,
)  # fmt: skip
def test_quickly_checked_or_in_words_is_the_same(
    component: Any, op: Any, size: Any, address: Any, cycle: Any, loops: Any
) -> None:
    args = component, op, size, address, cycle, loops
    try:
        wanted = AccessStream._checked(*args)
    except TraceError as error:
        with pytest.raises(TraceError, match=f"^{re.escape(str(error))}$"):
            AccessStream(*args)
        return
    stream = AccessStream(*args)
    found = stream.component, stream.op, stream.bytes, stream.address, stream.cycle, stream.loops
    assert found == wanted
    assert stream.accesses == math.prod(n for n, _, _ in stream.loops)
    assert stream.span == sum((n - 1) * wait for n, _, wait in stream.loops)
