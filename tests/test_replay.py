"""Replay: every model against a plain one by definition, and streams against their expansion."""

from __future__ import annotations

import heapq
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu._kernels import stack
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.cli import main
from epur_emu.dataflow import schedule_sequence
from epur_emu.errors import EpurError, TraceError
from epur_emu.network import LayerShape
from epur_emu.replay import MEMORIES, replay
from epur_emu.replay.base import Source
from epur_emu.replay.lru import Lru
from epur_emu.replay.periods import repeated
from epur_emu.replay.reuse import Reuse
from epur_emu.replay.scratchpad import Scratchpad
from epur_emu.replay.sizes import parse_sizes
from epur_emu.streams import AccessStream, Component, Phase
from epur_emu.trace import Accesses, Trace

few = settings(max_examples=30)

LINE = 16
COMPONENTS = (Component("a", None, 64, 2), Component("b", 1 << 20, 128, 4))


def source(*chosen: int) -> Source:
    return Source(COMPONENTS, chosen or (0, 1), 1 << 40, {})


@st.composite
def accesses(draw: st.DrawFn, most: int = 120) -> Accesses:
    """Accesses of few lines, some of several lines each, in order of time."""
    n = draw(st.integers(0, most))
    reach = draw(st.sampled_from([3, 12, 40, 1 << 40])) * LINE

    def column(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    return Accesses.of(
        sorted(column(0, 50)), column(0, 1), column(0, 1), column(0, reach), column(1, 3 * LINE)
    )


def lines(chunk: Accesses, line: int = LINE) -> list[tuple[int, int]]:
    """The lines that accesses ask for, one by one."""
    return [
        (component, number)
        for component, address, size in zip(
            chunk.component.tolist(), chunk.address.tolist(), chunk.bytes.tolist(), strict=True
        )
        for number in range(address // line, (address + size - 1) // line + 1)
    ]


def distances(asked: list[tuple[int, int]]) -> list[int | None]:
    """Other lines since the last request for the same, by definition; None for the first."""
    found: list[int | None] = []
    for at, line in enumerate(asked):
        before = [place for place in range(at) if asked[place] == line]
        found.append(len(set(asked[before[-1] + 1 : at])) if before else None)
    return found


def lru_misses(asked: list[tuple[int, int]], capacity: int) -> int:
    held: list[tuple[int, int]] = []
    misses = 0
    for line in asked:
        if line in held:
            held.remove(line)
        else:
            misses += 1
        held = [*held, line][-capacity:]
    return misses


def fifo_misses(asked: list[tuple[int, int]], capacity: int) -> int:
    held: list[tuple[int, int]] = []
    misses = 0
    for line in asked:
        if line not in held:
            misses += 1
            held = [*held, line][-capacity:]
    return misses


def belady_misses(asked: list[tuple[int, int]], capacity: int) -> int:
    """MIN: evict what is asked for furthest in the future."""
    held: set[tuple[int, int]] = set()
    misses = 0
    for at, line in enumerate(asked):
        if line in held:
            continue
        misses += 1
        if len(held) == capacity:
            rest = asked[at + 1 :]
            held.remove(max(held, key=lambda h: rest.index(h) if h in rest else len(asked)))
        held.add(line)
    return misses


PLAIN = {"lru": lru_misses, "fifo": fifo_misses, "belady": belady_misses}


def fed(model: Lru, chunk: Accesses, cut: int) -> dict[str, object]:
    model.feed(chunk[:cut])
    model.feed(chunk[cut:])
    return model.result().to_dict()


@few
@given(accesses(), st.integers(0, 120))
def test_distances_are_those_of_the_definition(chunk: Accesses, cut: int) -> None:
    model = Lru(source(), line=LINE)
    model.feed(chunk[:cut])
    model.feed(chunk[cut:])
    result = model.result()
    known = distances(lines(chunk))
    assert result.requests == len(known)
    assert result.details["first_requests"] == known.count(None)
    counts = dict(
        zip(result.arrays["distance"].tolist(), result.arrays["references"].tolist(), strict=True)
    )
    assert counts == {d: known.count(d) for d in set(known) - {None}}


@pytest.mark.parametrize("policy", list(PLAIN))
@few
@given(accesses(), st.integers(0, 120), st.integers(1, 9))
def test_one_set_equals_the_plain_cache(
    policy: str, chunk: Accesses, cut: int, capacity: int
) -> None:
    got = fed(Lru(source(), [capacity * LINE], LINE, policy=policy), chunk, cut)
    assert got["misses"] == [PLAIN[policy](lines(chunk), capacity)]


@pytest.mark.parametrize("policy", list(PLAIN))
@few
@given(accesses(), st.integers(0, 120), st.integers(1, 4), st.integers(1, 5))
def test_sets_equal_plain_caches(
    policy: str, chunk: Accesses, cut: int, ways: int, sets: int
) -> None:
    got = fed(
        Lru(source(0), [sets * ways * LINE], LINE, ways, policy), chunk[chunk.component == 0], cut
    )
    asked = lines(chunk[chunk.component == 0])
    misses = [
        PLAIN[policy]([line for line in asked if line[1] % sets == own], ways)
        for own in range(sets)
    ]
    assert got["misses"] == [sum(misses)]


def random_accesses(seed: int, n: int, footprint: int, skew: float = 1.0) -> Accesses:
    """Single lines of component a, popular ones first if `skew` is above 1."""
    rng = np.random.default_rng(seed)
    number = (footprint * rng.random(n) ** skew).astype(np.int64)
    zeros = np.zeros(n, np.int64)
    return Accesses.of(np.arange(n), zeros, zeros, number * LINE, zeros + 4)


def sweeps(seed: int, n: int, footprint: int) -> Accesses:
    """Runs of neighbouring lines, begun anywhere, mostly repeated some times."""
    rng = np.random.default_rng(seed)
    parts, size = [], 0
    while size < n:
        length = int(rng.integers(1, 3000))
        run = int(rng.integers(footprint)) + np.arange(length)
        parts += [run] * int(rng.integers(1, 5))
        size += length * 4
    number = np.concatenate(parts) % footprint
    zeros = np.zeros(number.size, np.int64)
    return Accesses.of(np.arange(number.size), zeros, zeros, number * LINE, zeros + 4)


@pytest.mark.parametrize("level", ["scalar", "avx2"])
@pytest.mark.parametrize("kind", ["random", "sweeps"])
def test_long_runs_move_their_slots(level: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPUR_SIMD", level)
    random = kind == "random"
    chunk = random_accesses(1, 700_000, 90_000, 2.0) if random else sweeps(1, 900_000, 90_000)
    exact = Lru(source(0), [1 << n for n in range(4, 22)], LINE)
    exact.feed(chunk)
    curve = dict(exact.result().curve or ())
    for size in (1 << n for n in range(4, 22, 3)):
        one = Lru(source(0), [size], LINE)
        best = Lru(source(0), [size], LINE, policy="belady")
        one.feed(chunk)
        best.feed(chunk)
        assert dict(one.result().curve or ())[size] == curve[size]
        assert dict(best.result().curve or ())[size] <= curve[size]


def heap_misses(asked: list[int], capacity: int) -> int:
    """MIN with a heap of next requests."""
    later: dict[int, int] = {}
    following = [0] * len(asked)
    for at in range(len(asked) - 1, -1, -1):
        following[at] = later.get(asked[at], len(asked))
        later[asked[at]] = at
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    misses = 0
    for at, line in enumerate(asked):
        if line not in held:
            misses += 1
            while len(held) >= capacity:
                next_use, other = heapq.heappop(heap)
                if held.get(other) == -next_use:
                    del held[other]
        held[line] = following[at]
        heapq.heappush(heap, (-following[at], line))
    return misses


def test_belady_over_a_long_run_equals_min() -> None:
    chunk = random_accesses(2, 200_000, 20_000, 1.5)
    asked = (chunk.address // LINE).tolist()
    for capacity in (1, 50, 3000, 30_000):
        model = Lru(source(0), [capacity * LINE], LINE, policy="belady")
        model.feed(chunk)
        assert model.result().details["misses"] == [heap_misses(asked, capacity)]


@st.composite
def repeating(draw: st.DrawFn) -> Trace:
    """Streams of which many repeat for long, some with a period that others share, and events."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        unit = draw(st.sampled_from([6, 12, 12, 18]))
        turns = draw(st.integers(1, 30))
        inner = draw(st.integers(1, 4))
        step = draw(st.sampled_from([0, 0, 0, 8, 32]))
        outer = draw(st.sampled_from([(), ((3, 0, unit * turns + 5),), ((2, 64, unit * turns),)]))
        made.append(
            AccessStream(
                draw(st.sampled_from(["a", "a", "b"])),
                draw(st.sampled_from(["read", "write"])),
                draw(st.integers(1, 20)),
                draw(st.integers(0, 100)),
                draw(st.integers(0, 60)),
                (*outer, (turns, step, unit), (inner, draw(st.sampled_from([4, 16])), 1)),
            )
        )
    extra = draw(st.one_of(st.just(Accesses.none()), accesses(3)))
    return Trace([Phase("layer", "forward", tuple(made))], COMPONENTS, 1 << 20, {}, extra)


@few
@given(repeating())
def test_two_turns_stand_for_all(trace: Trace) -> None:
    short, whole = (Lru(source(), line=LINE) for _ in range(2))
    cached, full = (Lru(source(), [4 * LINE, 8 * LINE], LINE, 2) for _ in range(2))
    for chunk, weight in repeated(trace, ["a", "b"], worth=1):
        for model in (short, cached):
            model._columns.feed(model._kernels(), chunk, weight)
    for chunk in trace.expand():
        whole.feed(chunk)
        full.feed(chunk)
    assert short.result().to_dict() == whole.result().to_dict()
    assert cached.result().to_dict() == full.result().to_dict()
    for name, array in whole.result().arrays.items():
        np.testing.assert_array_equal(array, short.result().arrays[name])


@few
@given(repeating())
def test_many_events_are_replayed_in_bounded_memory(trace: Trace) -> None:
    """As if they were too many to be held: in order of time, and from a file."""
    wanted = {memory: replay(trace, memory, "a,b").to_dict() for memory in MEMORIES if memory != "dram"}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("epur_emu.trace.hdf5._SMALL", -1)
        patch.setattr("epur_emu.trace.events.MOST_IN_MEMORY", -1)
        patch.setattr("epur_emu.replay.periods.MOST_SINGLE", 0)
        trace.save(f"{folder}/t.h5")
        opened = Trace.open(f"{folder}/t.h5")
        with pytest.raises(TraceError, match="too many for memory"):
            _ = opened.events
        for memory, found in wanted.items():
            assert replay(opened, memory, "a,b").to_dict() == found


def test_equal_turns_are_not_expanded() -> None:
    stream = AccessStream("a", "read", 4, 0, 0, ((1 << 40, 0, 100), (100, 16, 1)))
    result = replay(
        Trace([Phase("layer", "forward", (stream,))], COMPONENTS, 1 << 47), "lru", "a", line=16
    )
    assert result.requests == 100 << 40
    assert result.details["misses"][0] > 100
    assert result.details["misses"][-1] == 100


@few
@given(accesses(60), st.integers(0, 60), st.integers(1, 8))
def test_reuse_is_that_of_the_definition(chunk: Accesses, cut: int, windows: int) -> None:
    cycles = 51
    model = Reuse(Source(COMPONENTS, (0, 1), cycles, {}), LINE, windows)
    model.feed(chunk[:cut])
    model.feed(chunk[cut:])
    result = model.result()
    for place, row in enumerate(result.details["components"]):
        own = chunk[chunk.component == place]
        asked = lines(own)
        assert row["requests"] == len(asked)
        assert row["distance"] == histogram([d for d in distances(asked) if d is not None])
        when = [
            cycle
            for cycle, access in zip(own.cycle.tolist(), range(len(own)), strict=True)
            for _ in lines(own[access : access + 1])
        ]
        times = []
        for at, line in enumerate(asked):
            before = [when[n] for n in range(at) if asked[n] == line]
            times += [when[at] - before[-1]] if before else []
        assert row["time"] == histogram(times)
        width = -(-cycles // windows)
        touched = [
            len({line for line, cycle in zip(asked, when, strict=True) if cycle // width == window})
            for window in range(-(-cycles // width))
        ]
        name = COMPONENTS[place].name
        assert result.arrays[f"working_set_bytes/{name}"].tolist() == [n * LINE for n in touched]


def histogram(values: list[int]) -> list[list[int]]:
    """[lower end, number] of bins that begin at 0, 1, 2, 4, ..."""
    low = [0 if value == 0 else 1 << (value.bit_length() - 1) for value in values]
    return [[start, low.count(start)] for start in sorted(set(low))]


@pytest.mark.parametrize(("banking", "conflicts"), [("contiguous", 2), ("interleaved", 1)])
def test_banks_that_meet_in_a_cycle(banking: str, conflicts: int) -> None:
    # b has 4 banks of 256 KiB, or of every fourth 16 bytes.
    bank = 1 << 18
    chunk = Accesses.of(
        [0, 0, 0, 1, 1, 2], [1] * 6, [0] * 6, [0, 16, bank + 32, 0, 64, 32], [16] * 6
    )
    model = Reuse(source(1), LINE, banking=banking)
    model.feed(chunk)
    assert model.result().details["components"][0]["bank_conflicts"] == conflicts


def least_traffic(chunk: Accesses, size: int, filled: bool) -> int:
    """Bytes past a buffer that keeps the `size` bytes whose absence costs most, byte by byte."""
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for op, address, bytes_ in zip(
        chunk.op.tolist(), chunk.address.tolist(), chunk.bytes.tolist(), strict=True
    ):
        for byte in range(address, address + bytes_):
            counts = writes if op else reads
            counts[byte] = counts.get(byte, 0) + 1
    sign = -1 if filled else 1
    cost = [max(0, reads.get(byte, 0) + sign * writes.get(byte, 0)) for byte in {*reads, *writes}]
    return sum(sorted(cost, reverse=True)[size:])


BUFFERS = (Component("cu.i.weights", 1 << 20, 64, 2), Component("intermediate", 1 << 20, 128, 4))


@few
@given(st.data())
def test_a_scratchpad_keeps_what_costs_most(data: st.DataObject) -> None:
    nests = st.lists(st.tuples(*[st.integers(0, 30)] * 3), max_size=3)
    streams = [
        AccessStream(
            data.draw(st.sampled_from([b.name for b in BUFFERS])),
            data.draw(st.sampled_from(["read", "write"])),
            data.draw(st.integers(1, 9)),
            200,
            0,
            tuple(
                (1 + count % 4, address - 15, 100 ** (3 - level))
                for level, (count, address, _) in enumerate(data.draw(nests))
            ),
        )
        for _ in range(data.draw(st.integers(0, 4)))
    ]
    trace = Trace([Phase("layer", "forward", tuple(streams))], BUFFERS, 1 << 30)
    sizes = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=3, unique=True))
    closed = replay(trace, "scratchpad", sizes=sizes).to_dict()
    fed = Scratchpad(Source(BUFFERS, (0, 1), 1 << 30, {}), sizes)
    for chunk in trace.expand(7):
        fed.feed(chunk)
    for row, other in zip(closed["components"], fed.result().details["components"], strict=True):
        assert row["refetch_bytes"] == other["refetch_bytes"]
        assert row["smallest_bytes"] == other["smallest_bytes"]
        own = Accesses.join(trace.expand(components=[row["component"]]))
        filled = row["component"] == "cu.i.weights"
        want = [least_traffic(own, size, filled) for size in sorted(sizes)]
        assert row["refetch_bytes"] == want
        assert least_traffic(own, row["smallest_bytes"], filled) == 0
        if row["smallest_bytes"]:
            assert least_traffic(own, row["smallest_bytes"] - 1, filled) > 0


def test_what_outlives_an_epoch_takes_room() -> None:
    def pass_(layer: str, op: str, address: int, cycle: int) -> Phase:
        stream = AccessStream("intermediate", op, 16, address, cycle, ((10, 16, 1),))
        return Phase(layer, "mu", (stream,))

    phases = [
        pass_("first", "write", 0, 0), pass_("second", "write", 160, 100),
        pass_("third", "read", 0, 200),
    ]  # fmt: skip
    row = replay(
        Trace(phases, BUFFERS, 1000), "scratchpad", "intermediate", sizes=[1, 160, 320]
    ).details["components"][0]
    assert row["epochs"] == 3
    assert row["smallest_bytes"] == 320
    # 160 bytes go out and come back, if 160 others fill the buffer while they wait.
    assert row["refetch_bytes"][1:] == [160, 0]


def test_an_epoch_may_leave_a_buffer_alone() -> None:
    """And who made the trace may tell of the accelerator what is no accelerator."""
    phases = [
        Phase(name, "load", (AccessStream(name, "read", 1, 0, cycle, ()),))
        for cycle, name in enumerate(("intermediate", "cu.i.weights"))
    ]
    trace = Trace(phases, BUFFERS, 2, {"accelerator": "mine"})
    rows = replay(trace, "scratchpad", sizes=[1]).details["components"]
    assert [row["refetch_bytes"] for row in rows] == [[0], [0]]
    assert [row["energy_pj"] for row in rows] == [[None], [None]]


@pytest.mark.parametrize("sampling", [0.05, 4000])
@pytest.mark.parametrize(("seed", "skew"), [(1, 1.0), (2, 2.0), (3, 3.0)])
def test_sampled_curve_is_within_its_error(sampling: float, seed: int, skew: float) -> None:
    chunk = random_accesses(seed, 300_000, 40_000, skew)
    sizes = [LINE * n for n in (500, 1000, 2000, 5000, 10_000, 20_000, 40_000)]
    exact, sampled = Lru(source(0), sizes, LINE), Lru(source(0), sizes, LINE, sampling=sampling)
    exact.feed(chunk)
    sampled.feed(chunk)
    right = np.array([ratio for _, ratio in exact.result().curve or ()])
    result = sampled.result()
    off = np.abs(np.array([ratio for _, ratio in result.curve or ()]) - right)
    error = np.array(result.details["error"])
    assert result.details["sampled_lines"] <= max(4000, 1.2 * sampling * 40_000)
    # Two standard errors, each of which is estimated from eight groups only.
    assert (off <= 1.5 * error + 1e-3).all(), (off, error)
    assert error.max() < 0.1


def test_sampling_all_lines_is_exact_in_its_bins() -> None:
    chunk = random_accesses(4, 5000, 200)
    sizes = [LINE * n for n in (1, 50, 150, 199, 200)]
    exact = Lru(source(0), sizes, LINE)
    sampled = Lru(source(0), sizes, LINE, sampling=100_000)
    exact.feed(chunk)
    sampled.feed(chunk)
    np.testing.assert_allclose(exact.result().curve, sampled.result().curve, atol=1e-12)


def small_trace(path: Path) -> Trace:
    accelerator = Accelerator.load("epur")
    shape = ((LayerShape("layer", 40, 32),),)
    made = schedule_sequence(shape, 6, arithmetic("epur-fp16"), accelerator)
    meta = {"accelerator": accelerator.to_dict()}
    trace = Trace(made.phases, made.components, made.cycles, meta)
    trace.save(path)
    return trace


@pytest.mark.parametrize("memory", ["scratchpad", "lru", "reuse", "dram"])
def test_command(memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    trace = small_trace(tmp_path / "t.h5")
    component = "dram" if memory == "dram" else "cu.*"
    want = replay(trace, memory, component)
    arguments = ["replay", str(tmp_path / "t.h5"), "--memory", memory, "--component", component]
    main([*arguments, "--json", "-o", str(tmp_path / "r.h5"), "--plot", str(tmp_path / "r.png")])
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(want.to_dict()))
    assert (tmp_path / "r.png").stat().st_size > 10_000
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["requests"] == want.requests
        for name, array in want.arrays.items():
            np.testing.assert_array_equal(file[name][...], array)
        if want.curve:
            np.testing.assert_array_equal(file["curve"][...], want.curve)
    main(arguments)
    assert f"{want.requests:,} requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("memory", "options", "said"),
    [
        ("tape", {}, "use one of scratchpad"),
        ("lru", {"component": "cu.x"}, "'cu.x'"),
        ("lru", {"size": 3}, "is no option"),
        ("lru", {"line": 48}, "power of two"),
        ("lru", {"sizes": [100], "policy": "fifo"}, "multiples of"),
        ("lru", {"sizes": []}, "at least one"),
        ("lru", {"ways": 0}, "1 or more"),
        ("lru", {"sampling": 3}, "share below 1"),
        ("lru", {"sampling": 0.5, "policy": "fifo"}, "LRU of one set"),
        ("reuse", {"windows": 0}, "windows"),
        ("scratchpad", {"component": "dram"}, "buffer"),
        ("scratchpad", {"table": "none"}, "none"),
    ],
)
def test_bad_options_are_told_in_one_line(
    memory: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(EpurError, match=said) as told:
        replay(small_trace(tmp_path / "t.h5"), memory, **options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "x", "8M:64K", "0", "-1", "3T", "64K:", "1,,2"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(EpurError):
        parse_sizes(text)


def test_sizes() -> None:
    assert parse_sizes("64K:256k") == (65536, 131072, 262144)
    assert parse_sizes("1MiB, 96,96") == (96, 1 << 20)


def test_a_footprint_beyond_the_bound_is_refused() -> None:
    model = Lru(source(0), line=1)
    model._stack = stack.Stack(0, 4 << 20)
    with pytest.raises(EpurError, match="footprint"):
        model.feed(random_accesses(5, 300_000, 1 << 40))


def test_the_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = small_trace(tmp_path / "run.h5")
    text = (Path(__file__).parents[1] / "docs" / "replay.md").read_text()
    [example] = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/replay.md", "exec"), {})
    one_way = replay(trace, "lru", "cu.i.weights", sizes=[65536], ways=1)
    # No access of these weights goes over the end of a line.
    assert float(capsys.readouterr().out) == dict(one_way.curve or ())[65536]
