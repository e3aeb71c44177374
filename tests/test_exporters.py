"""Traces to and from other tools' formats."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import COMPONENTS, traces
from test_trace import listed, sample

from epur_emu.cli import main
from epur_emu.errors import TraceError
from epur_emu.streams import OPS, AccessStream, Component, Phase
from epur_emu.trace import Accesses, Trace
from epur_emu.trace.exporters import EXPORTERS, IMPORTERS, export, import_accesses
from epur_emu.trace.exporters import csv as csv_format
from epur_emu.trace.exporters.libcachesim import ROW

Row = tuple[int, str, str, int, int]


def named(trace: Trace) -> list[Row]:
    names = [c.name for c in trace.components]
    return [
        (t, names[c], OPS[op], a, b) for part in trace.expand() for t, c, op, a, b in listed(part)
    ]


def available(form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("form", IMPORTERS)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trace=traces())
def test_round_trip(tmp_path: Path, form: str, trace: Trace) -> None:
    available(form)
    assert export(trace, tmp_path / "t", form) == trace.count()
    again = import_accesses(tmp_path / "t", tmp_path / "t.h5", form)
    assert Counter(named(again)) == Counter(named(trace))
    cycles = [row[0] for row in named(again)]
    assert cycles == sorted(cycles)
    if form == "parquet":  # it keeps the rest too
        assert list(again.expand(1 << 20)) == list(trace.expand(1 << 20))
        assert (again.components, again.meta) == (trace.components, trace.meta)


def test_csv_is_what_the_csv_module_reads(tmp_path: Path) -> None:
    export(sample(), tmp_path / "t.csv", "csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [
        (int(r["cycle"]), r["component"], r["op"], int(r["address"]), int(r["bytes"])) for r in rows
    ]
    assert found == named(sample())


def test_large_numbers_and_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Accesses.of([0, 5, 2**62 - 1], [0, 2, 2], [1, 0, 1], [2**61, 0, 17], [1, 2**61, 9])
    trace = Trace((), COMPONENTS, 2**62, {}, rows)
    monkeypatch.setattr(csv_format, "BLOCK", 80)
    export(trace, tmp_path / "t.csv", "csv")
    assert named(import_accesses(tmp_path / "t.csv", tmp_path / "t.h5", "csv")) == named(trace)


def test_lines_of_simulators(tmp_path: Path) -> None:
    trace = sample()
    dram = [row for row in named(trace) if row[1] == "dram"]

    def lines(form: str) -> list[str]:
        export(trace, tmp_path / form, form)
        text = (tmp_path / form).read_text()
        assert text.endswith("\n")
        return text.splitlines()

    assert lines("ramulator1") == [f"{a:#x} {'RW'[op == 'write']}" for _, _, op, a, _ in dram]
    assert lines("ramulator2") == [
        f"{'ST' if op == 'write' else 'LD'} {a:#x}" for _, _, op, a, _ in dram
    ]
    assert lines("dramsim3") == [f"{a:#x} {op.upper()} {t}" for t, _, op, a, _ in dram]
    by_cycle: dict[int, list[int]] = {}
    for t, _, _, a, _ in dram:
        by_cycle.setdefault(t, []).append(a)
    assert lines("scale-sim") == [",".join(map(str, (t, *a))) for t, a in by_cycle.items()]


def test_lines_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = AccessStream("dram", "read", 64, 0, 7, ((40, 0, 30), (90, 64, 0)))
    trace = Trace([Phase("l", "load", (dense,))], COMPONENTS, 2000)
    whole = {}
    for chunk in (1 << 16, 7):
        monkeypatch.setattr("epur_emu.trace.exporters.window.__defaults__", (chunk,))
        for form in set(EXPORTERS) - {"parquet"}:
            export(trace, tmp_path / form, form)
            data = (tmp_path / form).read_bytes()
            assert whole.setdefault(form, data) == data


def test_libcachesim_rows(tmp_path: Path) -> None:
    wide = AccessStream("dram", "write", 130, 60, 3, ((3, 40, 2), (2, 0, 1)))
    trace = Trace([Phase("l", "load", (wide,))], COMPONENTS, 200)
    export(trace, tmp_path / "t.bin", "libcachesim")
    rows = np.fromfile(tmp_path / "t.bin", ROW)
    wanted = [
        (t, line * 3 + 2) for t, _, _, a, b in named(trace) for line in range(a // 64, (a + b - 1) // 64 + 1)
    ]
    assert list(zip(rows["time"].tolist(), rows["id"].tolist(), strict=True)) == wanted
    for number, one in enumerate(rows["id"].tolist()):
        later = [k for k in range(number + 1, len(rows)) if rows["id"][k] == one]
        assert rows["next"][number] == (later[0] if later else -1)


def test_libcachesim_reads_it(tmp_path: Path) -> None:
    libcachesim = pytest.importorskip("libcachesim")
    again = AccessStream("dram", "read", 64, 0, 0, ((5, 0, 100), (100, 64, 1)))
    trace = Trace([Phase("l", "load", (again,))], COMPONENTS, 600)
    path = tmp_path / "t.oracleGeneral.bin"
    export(trace, path, "libcachesim")

    def missed(cache: Any) -> float:
        kind = libcachesim.TraceType.ORACLE_GENERAL_TRACE
        return float(cache.process_trace(libcachesim.TraceReader(str(path), kind))[0])

    assert missed(libcachesim.LRU(100 * 64)) == pytest.approx(0.2)
    assert missed(libcachesim.LRU(50 * 64)) == pytest.approx(1.0)
    # Belady's policy needs the numbers of next requests.
    assert missed(libcachesim.Belady(50 * 64)) < 0.7


@pytest.mark.parametrize("form", EXPORTERS)
def test_windows_and_components(tmp_path: Path, form: str) -> None:
    available(form)
    trace = sample()
    wanted = [
        row for row in named(trace)
        if row[1] == "cu.i.weights" and row[2] == "read" and 20 <= row[0] < 60
    ]  # fmt: skip
    done = export(trace, tmp_path / "t", form, ["cu.i.weights"], "read", 20, 60)
    assert done == len(wanted) > 0


BAD_CSV = {
    "line 1 is no header": b"a,b\n",
    "line 2 is '1,x,read,5'": b"1,x,read,5\n",
    "line 3 is '2,x,steal,5,1'": b"1,x,read,5,1\n2,x,steal,5,1\n",
    "events, cycle is -1": b"-1,x,read,5,1\n",
    "line 2 is '99999999999999999999,x,read,5,1'": b"99999999999999999999,x,read,5,1\n",
    "component: name is ''": b"1,,read,5,1\n",
    "events, bytes is 0": b"1,x,read,5,0\n",
    "not in order of cycles": b"5,x,read,5,1\n4,x,read,5,1\n",
    "is 'a/b'": b"5,a/b,read,5,1\n",
    "can't be read": b"5,\xff,read,5,1\n",
}


@pytest.mark.parametrize("message", BAD_CSV)
def test_bad_csv_is_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "t.csv"
    header = b"" if message.startswith("line 1") else csv_format.HEADER
    path.write_bytes(header + BAD_CSV[message])
    with pytest.raises(TraceError) as caught:
        import_accesses(path, tmp_path / "t.h5", "csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(TraceError, match=r"t\.parquet"):
        import_accesses(path, tmp_path / "t.h5", "parquet")
    columns = {"cycle": [1], "component": ["x"], "op": ["read"], "address": [3], "bytes": [4]}
    for wrong in ({"op": ["steal"]}, {"cycle": ["a"]}, {"address": [None]}, {"component": [1]}, {"bytes": [0]}):
        parquet.write_table(pa.table(columns | wrong), path)
        with pytest.raises(TraceError):
            import_accesses(path, tmp_path / "t.h5", "parquet")
    parquet.write_table(pa.table({"cycle": [1]}), path)
    with pytest.raises(TraceError):
        import_accesses(path, tmp_path / "t.h5", "parquet")
    parquet.write_table(pa.table(columns), path)  # of others, with plain text columns
    assert named(import_accesses(path, tmp_path / "t.h5", "parquet")) == [(1, "x", "read", 3, 4)]


def test_refusals(tmp_path: Path) -> None:
    trace = sample()
    late = Trace((), COMPONENTS, 2**40, {}, Accesses.of([2**33], [2], [0], [0], [1]))
    far = Trace((), COMPONENTS, 9, {}, Accesses.of([1, 1], [2, 2], [0, 0], [0, 2**50], [1, 1]))
    comma = Trace((), [Component("a,b", 9, 8, 1)], 9)
    for message, call in {
        "format is 'xls'": lambda: export(trace, tmp_path / "t", "xls"),
        "name one": lambda: export(trace, tmp_path / "t", "dramsim3", ["dram", "intermediate"]),
        "is no component": lambda: export(trace, tmp_path / "t", "csv", ["l3"]),
        "32 bits": lambda: export(late, tmp_path / "t", "libcachesim"),
        "export one component": lambda: export(far, tmp_path / "t", "libcachesim"),
        "can't be written to CSV": lambda: export(comma, tmp_path / "t", "csv"),
        "cannot be written": lambda: export(trace, tmp_path / "absent" / "t", "csv"),
        "format is ''": lambda: import_accesses(tmp_path / "t", tmp_path / "t.h5", ""),
        "cannot be read": lambda: import_accesses(tmp_path / "t", tmp_path / "t.h5", "csv"),
    }.items():
        with pytest.raises(TraceError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
sys.path[:0] = sys.argv[2:3]
from epur_emu.errors import TraceError
from epur_emu.trace.exporters import export
from epur_emu.streams import AccessStream, Phase
from epur_emu.trace import Trace
from strategies import COMPONENTS
dense = AccessStream("dram", "read", 64, 0, 0, ((20_000, 64, 1),))
trace = Trace([Phase("l", "load", (dense,))], COMPONENTS, 20_000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export(trace, sys.argv[1], sys.argv[3])
except TraceError as error:
    print(error)
"""


@pytest.mark.parametrize("form", EXPORTERS)
def test_full_disk(tmp_path: Path, form: str) -> None:
    available(form)
    here = str(Path(__file__).parent)
    path = tmp_path / "t.out"
    path.write_text("what stood here")
    run = subprocess.run(
        [sys.executable, "-c", FULL, path, here, form], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1
    assert "t.out cannot be written (" in run.stdout
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "what stood here"


def test_commands(tmp_path: Path, capfdbinary: Any) -> None:
    path = tmp_path / "t.h5"
    sample().save(path)

    def run(*args: object) -> str:
        main(["trace", *map(str, args)])
        return capfdbinary.readouterr().out.decode()

    out = run("expand", path, "--component", "dram", "--start", 4, "--stop", 8)
    assert out == "cycle,component,op,address,bytes\n" + "".join(
        f"{t},dram,read,{(1 << 30) + 32 * t},64\n" for t in (4, 6)
    )
    csv_path, again = tmp_path / "t.csv", tmp_path / "again.h5"
    found = json.loads(run("export", path, "-o", csv_path, "--format", "csv", "--json"))
    assert found == {
        "path": str(csv_path), "format": "csv", "accesses": sample().count(),
        "bytes": csv_path.stat().st_size,
    }  # fmt: skip
    assert json.loads(run("import", csv_path, "-o", again, "--json"))["accesses"] == sample().count()
    assert "accesses of 3 components" in run("import", csv_path, "-o", again)
    assert Counter(named(Trace.open(again))) == Counter(named(sample()))
    run("expand", path, "-o", csv_path, "--op", "write")
    assert csv_path.read_text().count("write") == csv_path.read_text().count("\n") - 1


MEMORY = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from epur_emu.streams import AccessStream, Phase
from epur_emu.trace import Trace
from epur_emu.trace.exporters import export
from strategies import COMPONENTS
path = sys.argv[1]
dense = AccessStream("dram", "read", 64, 0, 0, ((1000, 0, 4000), (4000, 64, 1)))
trace = Trace([Phase("l", "load", (dense,))], COMPONENTS, 4_000_000)
trace.save(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trace = Trace.open(path)
trace.validate()
assert sum(map(len, trace.expand())) == 4_000_000
export(trace, path + ".bin", "ramulator1")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "t.h5"), here], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    scale = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * scale < 100 << 20  # as columns they would be 116 MB, as text 40 MB
