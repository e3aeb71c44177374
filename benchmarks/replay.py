"""Replay beside its peers, one thread: LRU and libCacheSim, exact curves and a Fenwick tree, DRAM and others'.

DRAMSim3 is compared if its folder (sources, and libdramsim3 built) is given, Ramulator 1 if its program is.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness import arguments, in_turn, machine, one_thread, report, row

one_thread()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from epur_emu.accelerator import Accelerator  # noqa: E402
from epur_emu.replay import replay  # noqa: E402
from epur_emu.replay.base import Source  # noqa: E402
from epur_emu.replay.dram import Dram  # noqa: E402
from epur_emu.replay.lru import Lru  # noqa: E402
from epur_emu.replay.standards import Standard  # noqa: E402
from epur_emu.streams import AccessStream, Component, Phase  # noqa: E402
from epur_emu.trace import Accesses, Trace  # noqa: E402
from epur_emu.trace.exporters import export  # noqa: E402

LINE = 64
MEMORY = Component("memory", None, 512, 1)
SOURCE = Source((MEMORY,), (0,), 1 << 40, {})

Longs = npt.NDArray[np.int64]


def zipf(n: int, lines: int, skew: float, seed: int = 1) -> Longs:
    """Lines by a bounded Zipf law, popular ones anywhere."""
    rng = np.random.default_rng(seed)
    weight = np.arange(1, lines + 1, dtype=np.float64) ** -skew
    drawn = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(n))
    return rng.permutation(lines)[np.minimum(drawn, lines - 1)].astype(np.int64)


def weights_trace(steps: int = 300) -> Trace:
    """Reads of one gate's weight buffer: 320 cells, 960 inputs in fp16, as E-PUR does in EESEN."""
    accelerator = Accelerator.load("epur")
    cells, subs, sub = 320, 60, 2 * accelerator.width
    loops = ((steps, 0, cells * subs), (cells * subs, sub, 1))
    stream = AccessStream("memory", "read", sub, 0, 0, loops)
    return Trace([Phase("layer", "forward", (stream,))], (MEMORY,), steps * cells * subs)


def events(lines: Longs) -> Accesses:
    """One access of 64 bytes for each line."""
    zeros = np.zeros(lines.size, np.int64)
    return Accesses.of(np.arange(lines.size), zeros, zeros, lines * LINE, zeros + LINE)


class Fenwick:
    """The peer in C, compiled here."""

    def __init__(self, folder: Path) -> None:
        target = folder / "fenwick.so"
        source = Path(__file__).with_name("fenwick.c")
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", target, source], check=True)  # noqa: S607
        self._call = ctypes.CDLL(str(target)).fenwick_distances
        self._call.restype = ctypes.c_int64

    def __call__(self, lines: Longs, most: int) -> tuple[int, Longs]:
        """First references, and references by distance; `most` lines are different."""
        counts = np.zeros(most + 1, np.int64)
        pointer = ctypes.POINTER(ctypes.c_int64)
        cold = self._call(
            lines.ctypes.data_as(pointer), ctypes.c_int64(lines.size), ctypes.c_int64(most),
            counts.ctypes.data_as(pointer),
        )  # fmt: skip
        return int(cold), counts


def libcachesim_misses(lines: Longs, path: Path, most: int) -> tuple[float, float]:
    """Miss ratio and seconds of libCacheSim's LRU, its trace in its own binary format."""
    import libcachesim

    if not path.exists():
        rows = np.zeros(
            lines.size, [("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]
        )
        rows["id"], rows["size"], rows["next"] = lines + 1, 1, -1
        rows.tofile(path)
    reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = libcachesim.LRU(most)
    begin = time.perf_counter()
    missed, _ = cache.process_trace(reader)
    return float(missed), time.perf_counter() - begin


def ours(chunk: Accesses, **options: Any) -> Any:
    """A replay of events."""
    model = Lru(SOURCE, line=LINE, **options)
    for at in range(0, len(chunk), 1 << 20):
        model.feed(chunk[at : at + (1 << 20)])
    return model.result()


def measure(rounds: int, n: int) -> list[dict[str, Any]]:
    """Rows; each side's counts are compared before its time."""
    rows = []
    trace = weights_trace(max(3, n // 19200))
    cases = {
        "cyclic, 8 MiB": np.arange(n, dtype=np.int64) % (1 << 17),
        "cyclic, 128 KiB": np.arange(n, dtype=np.int64) % (1 << 11),
        "zipf 1.0, 64 MiB": zipf(n, 1 << 20, 1.0),
        "zipf 0.8, 4 MiB": zipf(n, 1 << 16, 0.8),
        "E-PUR weights": np.concatenate([c.address // LINE for c in trace.expand()]),
    }
    with tempfile.TemporaryDirectory() as folder:
        fenwick = Fenwick(Path(folder))
        for name, lines in cases.items():
            chunk, most = events(lines), int(np.unique(lines).size)
            size = most // 2
            cold, counts = fenwick(lines, most)
            exact = ours(chunk)
            assert exact.details["first_requests"] == cold
            seen = np.flatnonzero(counts)
            assert np.array_equal(exact.arrays["distance"], seen)
            assert np.array_equal(exact.arrays["references"], counts[seen])
            seconds = in_turn(
                {"ours": partial(ours, chunk), "peer": partial(fenwick, lines, most)}, rounds
            )
            rate = {side: lines.size / took / 1e6 for side, took in seconds.items()}
            rows.append(
                row(f"exact curve, {name}", rate["ours"], rate["peer"], "Fenwick tree", "M/s")
            )
            path = Path(folder) / f"{len(rows)}.bin"
            try:
                missed, _ = libcachesim_misses(lines, path, size)
            except ImportError:
                print("libcachesim is not installed: its rows are left out", file=sys.stderr)
                continue
            one = ours(chunk, sizes=[size * LINE])
            assert abs(one.curve[0][1] - missed) < 1e-9, (one.curve, missed)
            took = [libcachesim_misses(lines, path, size)[1] for _ in range(rounds)]
            own = in_turn({"ours": partial(ours, chunk, sizes=[size * LINE])}, rounds)["ours"]
            rate = {
                "ours": lines.size / own / 1e6,
                "peer": lines.size / float(np.median(took)) / 1e6,
            }
            rows.append(
                row(f"LRU of one size, {name}", rate["ours"], rate["peer"], "libCacheSim", "M/s")
            )
            path.unlink()
        # The same accesses as streams: equal turns are replayed twice.
        lines = cases["E-PUR weights"]
        replay(trace, "lru", "memory")
        sides = {
            "ours": lambda: replay(trace, "lru", "memory"),
            "peer": partial(fenwick, lines, np.unique(lines).size),
        }
        seconds = in_turn(sides, rounds)
        rate = {side: lines.size / took / 1e6 for side, took in seconds.items()}
        rows.append(
            row(
                "exact curve, E-PUR weights, streams",
                rate["ours"],
                rate["peer"],
                "Fenwick tree",
                "M/s",
            )
        )
    return rows


#: What makes DRAMSim3's configuration of LPDDR4-2400 one of a strictly ordered queue.
IN_ORDER = {
    "queue_structure": "PER_RANK", "cmd_queue_size": "1", "trans_queue_size": "1", "unified_queue": "true",
}  # fmt: skip


def dramsim3(folder: Path, work: Path, changes: dict[str, str], lines: Longs, writes: Longs) -> Any:
    """Statistics, cycles and seconds of DRAMSim3 on requests of 128 bytes, in a closed loop."""
    program = work / "dramsim3"
    if not program.exists():
        source = Path(__file__).with_name("dramsim3.cc")
        [library, *_] = [*folder.rglob("libdramsim3.so")]
        subprocess.run(
            ["c++", "-O2", "-std=c++17", f"-I{folder / 'src'}", source, library,  # noqa: S607
             f"-Wl,-rpath,{library.parent}", "-o", program], check=True,
        )  # fmt: skip
    changes = {"channel_size": "4096", "output_level": "0", "epoch_period": "2000000000", **changes}
    text = (folder / "configs" / "LPDDR4_8Gb_x16_2400.ini").read_text()
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in changes]
    place = kept.index("[system]") + 1
    own = {key: changes.pop(key) for key in ("output_level", "epoch_period")}
    kept[place:place] = [f"{key} = {value}" for key, value in changes.items()]
    kept += ["[other]", *(f"{key} = {value}" for key, value in own.items())]
    (work / "dram.ini").write_text("\n".join(kept) + "\n")
    np.stack([lines * 128, writes], 1).astype(np.uint64).tofile(work / "dram.bin")
    said = subprocess.run(
        [program, "dram.ini", "dram.bin"], cwd=work, check=True, capture_output=True, text=True
    ).stdout.split()
    return json.loads((work / "dramsim3.json").read_text())["0"], int(said[-2]), float(said[-1])


def dram_cases(n: int) -> dict[str, tuple[Longs, Longs]]:
    """Bursts, and which are written."""
    rng = np.random.default_rng(1)
    order = np.arange(n, dtype=np.int64)
    mixed = (rng.random(n) < 0.3).astype(np.int64)
    # Without repetition, as DRAMSim3 joins requests for one burst.
    shuffled = rng.permutation(np.arange(0, 1 << 25, (1 << 25) // n, dtype=np.int64)[:n])
    return {
        "reads in a row": (order, 0 * mixed),
        "reads and writes in a row": (order, mixed),
        "random reads": (shuffled, 0 * mixed),
        "random reads and writes": (shuffled, mixed),
    }


#: One channel of LPDDR4-2400; Ramulator's address mapping and its FR-FCFS queues of 32 are its own.
RAMULATOR = (
    "standard = LPDDR4\nchannels = 1\nranks = 1\nspeed = LPDDR4_2400\norg = LPDDR4_8Gb_x16\n"
    "record_cmd_trace = off\nprint_cmd_trace = off\ntranslation = None\n"
)


def ramulator(program: Path, work: Path, lines: Longs, writes: Longs) -> tuple[int, float]:
    """Clocks and seconds of Ramulator 1 on requests of one burst; its times include reading the trace."""
    (work / "r.cfg").write_text(RAMULATOR)
    zeros = np.zeros(lines.size, np.int64)
    # A request is 64 bytes.
    chunk = Accesses.of(zeros, zeros, writes, lines * 64, zeros + 64)
    export(Trace([], (MEMORY,), 1, events=chunk), work / "r.trace", "ramulator1", [MEMORY.name])
    command = [program.resolve(), "r.cfg", "--mode=dram", "--stats", "r.stats", "r.trace"]
    begin = time.perf_counter()
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    words = (line.split() for line in (work / "r.stats").read_text().splitlines())
    told = {line[0]: line[1] for line in words if len(line) > 1}
    done = sum(int(told[f"ramulator.{kind}_transaction_bytes_0"]) for kind in ("read", "write"))
    assert done == 64 * lines.size, done
    return int(told["ramulator.dram_cycles"]), seconds


def measure_ramulator(program: Path, rounds: int, n: int) -> list[dict[str, Any]]:
    """Rows of the DRAM beside Ramulator 1: the same requests, of one burst each, in a closed loop."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, (lines, writes) in dram_cases(n).items():
            zeros = np.zeros(n, np.int64)
            standard = Standard.load("lpddr4-2400")
            size = standard.burst_bytes
            chunk = Accesses.of(zeros, zeros, writes, lines * size, zeros + size)

            def ours(chunk: Accesses = chunk) -> Any:
                model = Dram(SOURCE, "lpddr4-2400", queue=32, arrivals="closed-loop")
                model.feed(chunk)
                return model.result()

            clocks, _ = ramulator(program, Path(work), lines, writes)
            print(f"{name}: {ours().details['clocks']} clocks, Ramulator {clocks}", file=sys.stderr)
            seconds = in_turn({"ours": ours}, rounds)["ours"]
            took = float(np.median([
                ramulator(program, Path(work), lines, writes)[1] for _ in range(min(rounds, 3))
            ]))  # fmt: skip
            case = f"DRAM fr-fcfs, {name}"
            rows.append(row(case, n / seconds / 1e6, n / took / 1e6, "Ramulator 1", "M/s"))
    return rows


def measure_dram(folder: Path, rounds: int, n: int) -> list[dict[str, Any]]:
    """Rows of the DRAM; counts and cycles are compared before times."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for scheduler, queue, changes in (("in-order", 1, IN_ORDER), ("fr-fcfs", 32, {})):
            for name, (lines, writes) in dram_cases(n).items():
                peer, cycles, _ = dramsim3(folder, Path(work), changes, lines, writes)
                zeros = np.zeros(n, np.int64)
                # Its first command goes out in cycle 1.
                chunk = Accesses.of(zeros + 1, zeros, writes, lines * 128, zeros + 128)

                def ours(chunk: Accesses = chunk, scheduler: str = scheduler, queue: int = queue) -> Any:
                    model = Dram(
                        SOURCE, "lpddr4-2400", mapping="rows-first", scheduler=scheduler, queue=queue,
                        arrivals="timed", clock=1e9 / 0.83,
                    )  # fmt: skip
                    model.feed(chunk)
                    return model.result()

                found = ours().details
                if scheduler == "in-order":
                    assert found["commands"]["RD"] == peer["num_read_cmds"]
                    assert found["commands"]["ACT"] == peer["num_act_cmds"]
                    assert abs(found["clocks"] - cycles) <= 0.05 * cycles
                off = found["clocks"] / cycles - 1
                print(f"{scheduler}, {name}: clocks {off:+.3%} of DRAMSim3's", file=sys.stderr)
                seconds = in_turn({"ours": ours}, rounds)["ours"]
                took = float(np.median([
                    dramsim3(folder, Path(work), changes, lines, writes)[2] for _ in range(min(rounds, 3))
                ]))  # fmt: skip
                case = f"DRAM {scheduler}, {name}"
                rows.append(row(case, n / seconds / 1e6, n / took / 1e6, "DRAMSim3", "M/s"))
    return rows


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--dramsim3", type=Path, default=os.environ.get("DRAMSIM3"),
        help="folder of DRAMSim3 [the environment's DRAMSIM3]",
    )  # fmt: skip
    parser.add_argument(
        "--ramulator", type=Path, default=os.environ.get("RAMULATOR"),
        help="program of Ramulator 1 [the environment's RAMULATOR]",
    )  # fmt: skip
    parser.add_argument("--only-dram", action="store_true", help="leave out the caches")
    parser.add_argument("--requests", type=int, default=10_000_000, help="of each case")
    options = parser.parse_args()
    rows = [] if options.only_dram else measure(options.rounds, options.requests)
    if options.dramsim3:
        rows += measure_dram(Path(options.dramsim3), options.rounds, 50_000)
    else:
        print("DRAMSim3's folder is not given: its rows are left out", file=sys.stderr)
    if options.ramulator:
        rows += measure_ramulator(Path(options.ramulator), options.rounds, 50_000)
    else:
        print("Ramulator's program is not given: its rows are left out", file=sys.stderr)
    report(rows, machine("libcachesim", "numpy"), options.json)


if __name__ == "__main__":
    main()
