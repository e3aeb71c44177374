"""Traces: expansion against sorting all accesses, files against damage of every kind."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import runpy
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import COMPONENTS, events, traces

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.dataflow import schedule_sequence
from epur_emu.errors import TraceError
from epur_emu.network import LayerShape
from epur_emu.streams import OPS, AccessStream, Component, Phase
from epur_emu.trace import Accesses, EventWriter, Trace, recording
from epur_emu.trace.accesses import Runs
from epur_emu.trace.events import of_rows, to_rows

SEAL_BYTES = 512
HUGE = AccessStream("dram", "read", 2**61, 0, 0)
Row = tuple[int, int, int, int, int]


def sample() -> Trace:
    """A small trace with every kind of content."""
    read = AccessStream("cu.i.weights", "read", 32, 0, 8, ((3, 0, 40), (5, 64, 4), (2, 32, 1)))
    write = AccessStream("intermediate", "write", 2, 64, 30, ((3, -2, 40),))
    fetch = AccessStream("dram", "read", 64, 1 << 30, 0, ((20, 64, 2),))
    phases = (
        Phase("encoder.0.forward", "load", (fetch,)),
        Phase("encoder.0.forward", "recurrent", (read, write), (("multiply", "dpu", 960),)),
        Phase("encoder.0.forward", "mu", (), (("exp", "mu", 12), ("link", "link", 3))),
    )
    single = Accesses.of([9, 2, 9], [2, 0, 2], [1, 0, 0], [5, 0, 7], [64, 32, 64])
    return Trace(phases, COMPONENTS, 130, {"network": "tiny", "steps": [3]}, single)


def naive(trace: Trace) -> list[Row]:
    """All accesses by plain loops, sorted by (cycle, component, op), equals as they come."""
    names = [component.name for component in trace.components]
    rows: list[Row] = []
    for phase in trace.phases:
        for s in phase.streams:
            for digits in itertools.product(*(range(loop[0]) for loop in s.loops)):
                steps = list(zip(digits, s.loops, strict=True))
                cycle = s.cycle + sum(d * loop[2] for d, loop in steps)
                address = s.address + sum(d * loop[1] for d, loop in steps)
                rows.append((cycle, names.index(s.component), OPS.index(s.op), address, s.bytes))
    return sorted(rows + listed(trace.events), key=lambda row: row[:3])


def listed(accesses: Accesses) -> list[Row]:
    return list(zip(*(column.tolist() for column in accesses.columns().values()), strict=True))


@given(traces(), st.sampled_from((1, 2, 3, 7, 50, 1 << 20)))
def test_expansion_equals_sorting_all_accesses(trace: Trace, chunk: int) -> None:
    chunks = list(trace.expand(chunk))
    assert all(1 <= len(part) <= chunk for part in chunks)
    assert [row for part in chunks for row in listed(part)] == naive(trace)


@given(traces(), st.integers(0, 80), st.integers(0, 80), st.sets(st.integers(0, 2)))
def test_expansion_of_a_part(trace: Trace, start: int, stop: int, kept: set[int]) -> None:
    names = [COMPONENTS[index].name for index in kept]
    parts = trace.expand(5, names, start, stop)
    wanted = [row for row in naive(trace) if start <= row[0] < stop and row[1] in kept]
    assert [row for part in parts for row in listed(part)] == wanted


@given(events())
def test_events_in_order(accesses: Accesses) -> None:
    assert listed(accesses.ordered()) == sorted(listed(accesses), key=lambda row: row[:3])


@given(traces())
def test_closed_forms_equal_counting(trace: Trace) -> None:
    rows = naive(trace)
    assert trace.count() == len(rows)
    sizes = {c.name: sum(r[4] for r in rows if r[1] == n) for n, c in enumerate(COMPONENTS)}
    assert trace.bytes_by_component() == sizes
    info = trace.info()
    assert info["accesses"] == len(rows)
    assert info["bytes"] == sum(sizes.values())
    for index, component in enumerate(COMPONENTS):
        found = info["by_component"][component.name]
        assert found["reads"] == sum(r[1] == index and r[2] == 0 for r in rows)
        assert found["writes"] == sum(r[1] == index and r[2] == 1 for r in rows)
        assert found["bytes"] == sizes[component.name]
    assert info["events"] == len(trace.events)
    assert (info["cycles"], info["complete"]) == (trace.cycles, trace.complete)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(traces())
def test_file_gives_the_same_trace_back(tmp_path: Path, trace: Trace) -> None:
    trace.save(tmp_path / "t.h5")
    assert Trace.open(tmp_path / "t.h5") == trace


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.h5")
    time.sleep(1.01)  # HDF5 would note seconds
    sample().save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_events_over_several_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 250_000  # over 65,536 of each component
    rows = Accesses.of(
        rng.integers(0, 2**61, n), rng.integers(0, 3, n), rng.integers(0, 2, n),
        rng.integers(0, 2**61, n), rng.integers(1, 100, n),
    )  # fmt: skip
    trace = Trace((), COMPONENTS, 2**61, {}, rows)
    trace.save(tmp_path / "t.h5")
    again = Trace.open(tmp_path / "t.h5")
    assert again == trace
    assert Accesses.join(again.expand(10_000)) == rows.ordered()


def test_traces_differ_if_any_part_does() -> None:
    trace = sample()
    assert trace == sample()
    others = [
        Trace(trace.phases[:2], COMPONENTS, 130, trace.meta, trace.events),
        Trace(trace.phases, COMPONENTS, 131, trace.meta, trace.events),
        Trace(trace.phases, COMPONENTS, 130, {}, trace.events),
        Trace(trace.phases, COMPONENTS, 130, trace.meta),
        Trace(trace.phases, COMPONENTS, 130, trace.meta, trace.events, complete=False),
        Trace(trace.phases, (*COMPONENTS, Component("l2", 9, 8, 1)), 130, trace.meta, trace.events),
    ]
    assert all(trace != other for other in others)


def test_a_billion_accesses_stay_small(tmp_path: Path) -> None:
    reads = [
        AccessStream(f"cu.{q}.weights", "read", 32, 0, n, ((1000, 0, 40_000), (25_000, 32, 1)))
        for q in "ifgo"
        for n in range(10)
    ]
    components = [Component(f"cu.{q}.weights", 1 << 20, 256, 1) for q in "ifgo"]
    trace = Trace([Phase("l", "recurrent", tuple(reads))], components, 40_000_000)
    trace.save(tmp_path / "t.h5")
    assert (tmp_path / "t.h5").stat().st_size < 50_000
    trace = Trace.open(tmp_path / "t.h5")
    assert trace.count() == trace.info()["accesses"] == 10**9
    tracemalloc.start()
    try:
        for part in itertools.islice(trace.expand(1 << 14), 5):
            assert len(part) <= 1 << 14
        first = next(trace.expand(1 << 14, start=20_000_000))
        assert first.cycle[0] == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_more_accesses_in_one_cycle_than_a_chunk() -> None:
    dense = AccessStream("dram", "read", 1, 0, 7, ((10_000, 1, 0),))
    early = AccessStream("cu.i.weights", "write", 1, 0, 7, ((300, 1, 0),))
    trace = Trace([Phase("l", "load", (dense, early))], COMPONENTS, 8)
    parts = list(trace.expand(64))
    assert {len(part) for part in parts[:-1]} == {64}
    assert [row for part in parts for row in listed(part)] == naive(trace)


def test_long_gaps_are_skipped() -> None:
    gapped = tuple(
        AccessStream("dram", "read", 1, 0, start, ((3, 1, 2**59),)) for start in (0, 2**60)
    )
    trace = Trace([Phase("l", "load", gapped)], COMPONENTS, 2**62)
    assert [row for part in trace.expand(4) for row in listed(part)] == naive(trace)


def test_validate() -> None:
    sample().validate()
    phases = sample().phases
    small = (Component("cu.i.weights", 319, 256, 8), *COMPONENTS[1:])
    with pytest.raises(TraceError, match="reaches address 320 of 319"):
        Trace(phases, small, 130).validate()
    with pytest.raises(TraceError, match="has cycle 110 in a run of 110"):
        Trace(phases, COMPONENTS, 110).validate()
    beyond = Accesses.of([4], [0], [0], [4 << 20], [1])
    with pytest.raises(TraceError, match=r"events, cu\.i\.weights"):
        Trace((), COMPONENTS, 5, {}, beyond).validate()


def test_operations_add_up() -> None:
    phase = Phase("l", "mu", (), (("add", "mu", 2), ("add", "dpu", 3)))
    assert Trace([phase, phase], (), 0).operations() == {("add", "mu"): 4, ("add", "dpu"): 6}


def test_concatenate() -> None:
    trace = sample()
    both = Trace.concatenate([trace, Trace(trace.phases, COMPONENTS, 200, complete=False)])
    assert both.phases == trace.phases * 2
    assert (both.cycles, both.meta, both.complete) == (200, trace.meta, False)
    assert both.events == trace.events
    with pytest.raises(TraceError, match="components differ"):
        Trace.concatenate([trace, Trace((), COMPONENTS[:1], 0)])
    with pytest.raises(TraceError, match="at least one"):
        Trace.concatenate([])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Trace(sample().phases, COMPONENTS[:1], 130),
        lambda: Trace((), COMPONENTS[:1] * 2, 0),
        lambda: Trace((), (), -1),
        lambda: Trace([Phase("l", "load", (HUGE,) * 3)], COMPONENTS, 1),
        lambda: Trace((), (), 0, {"a": float("nan")}),
        lambda: Trace((), (), 0, {"a": object()}),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of([1], [3], [0], [0], [1])),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of([1], [0], [2], [0], [1])),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of([-1], [0], [0], [0], [1])),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of([1], [0], [0], [0], [0])),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of(z := [0, 0], z, z, z, [2**62, 2**62])),
        lambda: Trace((), COMPONENTS, 9, {}, Accesses.of([1], [0], [0], [2**62], [2**62])),
        lambda: Accesses.of([1.5], [0], [0], [0], [1]),
        lambda: Accesses.of([1], [2**40], [0], [0], [1]),
        lambda: Accesses.of([1, 2], [0], [0], [0], [1]),
        lambda: sample().expand(0),
        lambda: sample().expand(components=["l3"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(TraceError) as caught:
        make()
    assert "\n" not in str(caught.value)


# Files of this and other versions

ROOT = Path(__file__).parent.parent
GOLDEN: dict[str, Callable[[], Trace]] = runpy.run_path(f"{ROOT}/traces/make_golden.py")["GOLDEN"]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_traces(name: str) -> None:
    opened = Trace.open(ROOT / "traces" / f"{name}.h5")
    assert opened == GOLDEN[name]()
    opened.validate()


def test_the_reader_in_the_specification(tmp_path: Path) -> None:
    sample().save(tmp_path / "t.h5")
    text = (ROOT / "traces" / "FORMAT.md").read_text(encoding="utf-8")
    found: list[tuple[Any, ...]] = []
    codes = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    names: dict[str, Any] = {"path": tmp_path / "t.h5", "print": lambda *row: found.append(row)}
    exec(codes[0], names)
    wanted = [stream for phase in sample().phases for stream in phase.streams]
    for stream, (name, op, size, *columns) in zip(wanted, found, strict=True):
        assert (name, op, size) == (stream.component, stream.op, stream.bytes)
        assert np.array_equal(columns, stream.expand())
    found.clear()
    exec(codes[1], names)
    by_hand: list[Row] = []
    index = [c.name for c in COMPONENTS].index
    for name, op, size, *columns in found:
        rows = zip(*columns, strict=True)
        by_hand += [(t, index(name), OPS.index(op), a, size) for t, a in rows]
    assert sorted(by_hand) == sorted(listed(sample().events))


# Damaged files


def refuse(path: Path) -> str:
    """The one line with which `Trace.open` refuses the file."""
    with pytest.raises(TraceError) as caught:
        Trace.open(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    sample().save(path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 61), *range(600), *range(len(whole) - 100, len(whole))}:
        path.write_bytes(whole[:length])
        refuse(path)
    path.write_bytes(whole + b"\0")
    assert f"length is {len(whole) - 511} bytes" in refuse(path)


def test_flipped_bits_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    sample().save(path)
    whole = path.read_bytes()
    for place in {*range(600), *range(600, len(whole), 53)}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            opened = Trace.open(path)
        except TraceError as error:
            assert "\n" not in str(error)
        else:
            # Another minor version, or other padding of the seal.
            assert place < SEAL_BYTES
            assert opened == sample()


def seal(path: Path, version: str = "3.0") -> None:
    """Seal anew what a test has changed, as a wrong but undamaged writer would."""
    body = path.read_bytes()[SEAL_BYTES:]
    digest = hashlib.sha256(body).hexdigest()
    lines = f"epur-trace {version}\nbytes {len(body)}\nsha256 {digest}\n"
    path.write_bytes(lines.encode().ljust(SEAL_BYTES, b"\0") + body)


def test_versions(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    sample().save(path)
    seal(path)
    assert Trace.open(path) == sample()
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = np.array([3, 9], "<i4")
        file.attrs["more"] = "of a later version"
        file["more"] = [1, 2]
    seal(path, "3.9")
    assert Trace.open(path) == sample()
    seal(path, "4.0")
    assert "version is 4.0, this reads 1.x to 3.x" in refuse(path)


def replaced(name: str, data: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if data is not None:
            file.create_dataset(name, data=data, chunks=True, maxshape=(None,), **options)

    return change


def edited(name: str, field: str, row: int, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        rows = file[name][...]
        rows[field][row] = value
        file[name][...] = rows

    return change


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def declared(name: str, rows: int) -> Callable[[h5py.File], None]:
    return lambda file: file[name].resize((rows,))


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def contiguous(file: h5py.File) -> None:
    meta = file["meta"][...]
    del file["meta"]
    file["meta"] = meta


def stranger(file: h5py.File) -> None:
    file.move("events/dram", "events/l3")


def group_for_dataset(file: h5py.File) -> None:
    del file["streams"]
    file.create_group("streams")


def events_in_a_group(file: h5py.File) -> None:
    del file["events/dram"]
    file.create_group("events/dram")


def repeated(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        rows = file[name][...]
        file[name].resize((len(rows) + 1,))
        file[name][-1] = rows[0]

    return change


def run_of(row: int = 0, **values: Any) -> Callable[[h5py.File], None]:
    """Events of the DRAM with other values."""

    def change(file: h5py.File) -> None:
        rows = file["events/dram"][...]
        for name, value in values.items():
            rows[name][row] = value
        file["events/dram"][...] = rows

    return change


def column_of(name: str, value: int) -> Callable[[h5py.File], None]:
    """The same in a file of version 2."""

    def change(file: h5py.File) -> None:
        file[f"events/dram/{name}"][0] = value

    return change


DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "attribute complete": attribute("complete", None),
    "attribute cycles": attribute("cycles", "many"),
    "complete, cycles": attribute("cycles", np.int64(-1)),
    "version": attribute("version", np.array([7, 0], "<i4")),
    "meta is missing": replaced("meta", None),
    "meta is float64": replaced("meta", np.zeros(9)),
    "HDF5 is damaged": replaced("meta", np.frombuffer(b"{", np.uint8)),
    "HDF5 is damaged (maximum": replaced("meta", np.frombuffer(b"[" * 10**5, np.uint8)),
    "no JSON object": replaced("meta", np.frombuffer(b"[1]", np.uint8)),
    "meta does not lie in chunks": contiguous,
    "unknown filter": replaced("meta", np.frombuffer(b"{}", np.uint8), compression="lzf"),
    "streams is no dataset": group_for_dataset,
    "streams is int64": replaced("streams", np.zeros(3, np.int64)),
    "streams declares": declared("streams", 2**40),
    "names declares": declared("names", 60_000),
    "totals of phase": declared("totals", 5),
    "totals repeat a row": repeated("totals"),
    "phases is a link": linked("phases", h5py.SoftLink("/streams")),
    "names is a link": linked("names", h5py.ExternalLink("/etc/passwd", "/x")),
    "streams, row 1, phase is 3": edited("streams", "phase", 1, 3),
    "streams, row 0, component is -1": edited("streams", "component", 0, -1),
    "streams, row 0, op is 2": edited("streams", "op", 0, 2),
    "streams, row 0, count": edited("streams", "count", 0, -1),
    "streams, row 0, address": edited("streams", "address", 0, -64),
    "streams, row 1 is not in canonical": edited("streams", "count", 1, [1, 5, 2, 1, 1, 1]),
    "row 1, layer is 9": edited("phases", "layer", 1, 9),
    "row 1, kind is 5": edited("phases", "kind", 1, 5),
    "row 0 has cycles": edited("phases", "cycles", 0, 5),
    "row 0, unit is 3": edited("ops", "unit", 0, 3),
    "row 1, count of multiply": edited("ops", "count", 0, -5),
    "components repeat": edited("components", "name", 1, b"dram"),
    "components, row 0, name": edited("components", "name", 0, b"\xff/"),
    "components, row 0, banks": edited("components", "banks", 0, 0),
    "are (accesses, bytes)": edited("totals", "bytes", 0, 1),
    "events is missing": lambda file: file.pop("events"),
    "events of l3": stranger,
    "dram is a link": linked("events/dram", h5py.SoftLink("/events")),
    "dram is no dataset": events_in_a_group,
    "events/dram is int64": replaced("events/dram", np.zeros(2, np.int64)),
    "events/dram declares": declared("events/dram", 2**50),
    "events, cycle": run_of(cycle=-3),
    "reach beyond 2**62": run_of(count=[1, 2**61]),
    "events of dram reach": run_of(count=[2**50, 1], cycle_stride=[2**50, 0]),
    "events of dram reach beyond": run_of(count=[2, 1], address_stride=[-(2**40), 0]),
    "events of dram reach beyond 2**62": run_of(count=[2**40, 2**40]),
    "events of dram reach beyond 2": run_of(
        count=[2, 2], cycle_stride=[2**62 - 2**61, 2**61], address_stride=[2**61, 2**61]
    ),
    "events of dram reach beyond 2**": run_of(
        count=[3, 2], cycle_stride=[2**62, 2**62], address_stride=[-(2**62), 2**62]
    ),
    "events, count": run_of(count=[0, 1]),
    "events, count of": run_of(count=[1, -(2**63)]),
    "events, cycle_stride": run_of(cycle_stride=[0, -1]),
    "have turns that overlap": run_of(count=[2, 3], cycle_stride=[1, 1]),
    "are not in order": run_of(row=1, cycle=-1),
    "events, bytes": run_of(bytes=0),
}
DAMAGE_OF_2: dict[str, Callable[[h5py.File], None]] = {
    "several lengths": declared("events/dram/op", 1),
    "events/dram/cycle declares": declared("events/dram/cycle", 2**50),
    "reach beyond 2**62": column_of("count", 2**61),
    "events, count": column_of("count", 0),
    "events, cycle_stride": column_of("cycle_stride", -1),
    "count is missing": lambda file: file.pop("events/dram/count"),
}


@pytest.mark.parametrize("message", DAMAGE_OF_2)
def test_wrong_content_of_version_2_is_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "t.h5"
    path.write_bytes((ROOT / "traces" / "format-2.0.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        DAMAGE_OF_2[message](file)
    seal(path, "2.0")
    assert message in refuse(path)


@pytest.mark.parametrize("message", DAMAGE)
def test_wrong_content_is_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "t.h5"
    sample().save(path)
    with h5py.File(path, "r+") as file:
        DAMAGE[message](file)
    seal(path)
    tracemalloc.start()
    try:
        line = refuse(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert message.split(" (")[0] in line


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    assert "cannot be read" in refuse(path)
    assert "is not a file" in refuse(tmp_path)
    with h5py.File(path, "w") as file:
        file["a"] = [1]
    assert "not that of a trace" in refuse(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.h5")
    assert "is not a file" in refuse(tmp_path / "t.h5")


# Failing and interrupted writers


def test_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        sample().save(tmp_path / "absent" / "t.h5")
    with pytest.raises(TraceError, match="cannot be written"):
        sample().save(tmp_path / "nul\0.h5")
    with pytest.raises(TraceError, match="cannot be written"):
        sample().save(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TraceError, match="no plain file"):
        sample().save(pipe)
    assert pipe.is_fifo()


FULL = """
import resource, signal, sys
sys.path[:0] = sys.argv[2:]
from epur_emu.errors import TraceError
from test_trace import sample
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    sample().save(sys.argv[1])
except TraceError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    path.write_text("what stood here")
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", FULL, path, here], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"\S+t\.h5 cannot be written \(.+\); .+\n", run.stdout)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "what stood here"


def test_recording(tmp_path: Path) -> None:
    wanted = sample()
    with recording(tmp_path / "t.h5", COMPONENTS, wanted.meta) as trace:
        for phase in wanted.phases:
            trace.append([phase])
        for row in range(3):
            trace.append((), wanted.events[row : row + 1])
        trace.cycles = 130
        assert not trace.complete
    assert Trace.open(tmp_path / "t.h5") == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["t.h5"]


def test_interrupted_recording_keeps_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recording(tmp_path / "t.h5", COMPONENTS) as trace:
        trace.append(sample().phases[:2])
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["t.h5.partial"]
    partial = Trace.open(tmp_path / "t.h5.partial")
    assert not partial.complete
    assert partial.phases == sample().phases[:2]


# Runs of events


def of_runs(tmp_path: Path, rows: dict[str, Any]) -> Path:
    """A trace of one component with these runs."""
    path = tmp_path / "runs.h5"
    with closing(EventWriter(path, COMPONENTS[2:])) as writer:
        columns = [np.array(rows[n], np.int64) for n in ("cycle", "address", "bytes")]
        loops = [np.array(rows[n], np.int64) for n in ("count", "by", "wait")]
        loops = [v if v.ndim == 2 else np.stack([v, v == -1]) for v in loops]
        loops[0][1] += loops[0][1] == 0
        writer.runs(0, Runs(*columns, np.array(rows["op"], np.uint8), *loops))
        writer.finish_events((), 2**62, {})
    return path


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 12))
    numbers = {"cycle": (0, 30), "address": (400, 500), "bytes": (1, 9), "op": (0, 1)}
    found: dict[str, Any] = {
        name: draw(st.lists(st.integers(*bounds), min_size=n, max_size=n))
        for name, bounds in numbers.items()
    }
    found["cycle"].sort()
    loops = {"count": [], "by": [], "wait": []}
    for _ in range(n):
        count, by, wait = draw(st.integers(1, 12)), draw(st.integers(-9, 9)), draw(st.integers(0, 4))
        loops["count"].append((draw(st.integers(1, 12)), count))
        loops["by"].append((draw(st.integers(-20, 20)), by))
        loops["wait"].append(((count - 1) * wait + draw(st.integers(0, 4)), wait))
    return found | {name: np.array(pairs).T for name, pairs in loops.items()}


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(runs(), st.sampled_from((1, 7, 1 << 20)), st.integers(0, 60), st.integers(0, 60))
def test_runs_expand_to_their_accesses(
    tmp_path: Path, rows: dict[str, Any], chunk: int, start: int, stop: int
) -> None:
    trace = Trace.open(of_runs(tmp_path, rows))
    wanted = []
    loops = (rows[name].T.tolist() for name in ("count", "by", "wait"))
    single = (rows[name] for name in ("cycle", "address", "bytes", "op"))
    for t, a, b, op, count, by, wait in zip(*single, *loops, strict=True):
        for turn, k in itertools.product(range(count[0]), range(count[1])):
            at = t + turn * wait[0] + k * wait[1], a + turn * by[0] + k * by[1]
            wanted.append((at[0], 0, op, at[1], b))
    wanted.sort(key=lambda row: row[:3])
    assert [row for part in trace.expand(chunk) for row in listed(part)] == wanted
    part = [row for row in wanted if start <= row[0] < stop]
    assert [row for p in trace.expand(chunk, None, start, stop) for row in listed(p)] == part


def test_events_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several blocks, some runs reaching across; all in one cycle; and one longer than any memory."""
    monkeypatch.setattr("epur_emu.trace.hdf5._SMALL", 0)
    n = 150_000
    rng = np.random.default_rng(1)
    rows = {
        "cycle": np.sort(rng.integers(0, 50_000, n)), "address": rng.integers(0, 99, n),
        "bytes": np.ones(n), "count": rng.integers(1, 4, n), "by": np.ones(n),
        "wait": rng.integers(0, 3, n), "op": rng.integers(0, 2, n),
    }  # fmt: skip
    rows["count"][5] = 100_000
    trace = Trace.open(of_runs(tmp_path, rows))
    at = np.repeat(np.arange(n), rows["count"])
    k = np.arange(len(at)) - np.repeat(np.cumsum(rows["count"]) - rows["count"], rows["count"])
    wanted = Accesses.of(
        rows["cycle"][at] + k * rows["wait"][at], np.zeros(len(at), int), rows["op"][at],
        rows["address"][at] + k, np.ones(len(at), int),
    ).ordered()  # fmt: skip
    assert Accesses.join(trace.expand(1 << 12)) == wanted
    assert trace.count() == len(wanted)
    trace.save(tmp_path / "again.h5")
    assert Trace.open(tmp_path / "again.h5") == trace
    (tmp_path / "runs.h5").write_bytes(b"other")
    with pytest.raises(TraceError, match="changed since"):
        list(trace.expand())


def test_a_run_length_bomb_takes_no_memory(tmp_path: Path) -> None:
    rows = {"cycle": [0, 0, 0], "address": [0, 0, 0], "bytes": [1, 1, 1], "op": [0, 0, 0],
            "count": np.array([[2**60, 2**60, 2**30], [1, 1, 2**30]]),
            "by": np.array([[1, 0, -1], [0, 0, 1]]),
            "wait": np.array([[0, 1, 2**30], [0, 0, 1]])}  # fmt: skip
    rows["address"][2] = 2**30
    trace = Trace.open(of_runs(tmp_path, rows))
    assert trace.count() == 3 * 2**60
    tracemalloc.start()
    try:
        for part in itertools.islice(trace.expand(), 20):
            assert len(part) == 1 << 18
        late = next(trace.expand(start=2**59))
        assert late.cycle[0] == 2**59
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(TraceError, match="too many for memory"):
        _ = trace.events


def test_loops_without_time_take_no_memory() -> None:
    still = AccessStream("dram", "read", 1, 0, 3, ((2**20, 7, 0), (2**20, 0, 0), (2, 1, 0)))
    other = AccessStream("dram", "write", 1, 0, 3)
    trace = Trace([Phase("l", "load", (still, other))], COMPONENTS, 8)
    part = next(trace.expand(100, start=2))
    assert listed(part)[:3] == [(3, 2, 0, 0, 1), (3, 2, 0, 1, 1), (3, 2, 0, 0, 1)]


def test_a_network_of_the_paper_is_small(tmp_path: Path) -> None:
    """GMAT over 100 steps: over 10**9 accesses in under 1 MB."""
    shape = tuple((LayerShape(str(n), 1024, 1024),) for n in range(17))
    found = schedule_sequence(shape, 100, arithmetic("epur-fp16"), Accelerator.load("epur"))
    Trace(found.phases, found.components, found.cycles).save(tmp_path / "t.h5")
    assert (tmp_path / "t.h5").stat().st_size < 1 << 20
    opened = Trace.open(tmp_path / "t.h5")
    opened.validate()
    assert opened.count() > 10**9


def test_rows_are_taken_aligned():
    """One row is contiguous in its table, but wherever the fields before it end."""
    rows = to_rows(Runs(*(np.array([n]) for n in (3, 64, 16)), np.array([1], np.uint8)))
    for column in of_rows(rows):
        assert column.flags.aligned and column.flags.c_contiguous
