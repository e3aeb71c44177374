"""Traces, one thread: expansion; probe mode and streams beside plain emulation; tracing beside SCALE-Sim."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness import arguments, in_turn, machine, one_thread, report, row

one_thread()

import numpy as np  # noqa: E402

from epur_emu.accelerator import Accelerator  # noqa: E402
from epur_emu.arithmetic import ARITHMETICS  # noqa: E402
from epur_emu.dataflow import DATAFLOWS, dataflow_of, schedule_sequence  # noqa: E402
from epur_emu.emulator import Engine, trace_of  # noqa: E402
from epur_emu.network import LayerShape, LstmLayer, Network  # noqa: E402
from epur_emu.probe import probe_sequences  # noqa: E402
from epur_emu.trace import Trace  # noqa: E402
from epur_emu.trace.exporters import export  # noqa: E402

EPUR = ARITHMETICS["epur-fp16"]

#: Inputs, cells, peepholes and steps: a pass of EESEN, one of GMAT, and a small one.
CASES = {
    "640 x 320": (640, 320, True, 100), "1024 x 1024": (1024, 1024, False, 25),
    "128 x 128": (128, 128, False, 1000),
}  # fmt: skip


def network(inputs: int, cells: int, peepholes: bool) -> Network:
    """One pass of random weights."""
    rng = np.random.default_rng(1)

    def fill(*shape: int) -> Any:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)

    weights = fill(4, cells, inputs), fill(4, cells, cells), fill(4, cells)
    return Network("one", ((LstmLayer("0", *weights, fill(3, cells) if peepholes else None),),))


def scheduled(shape: Any, steps: int, accelerator: str) -> Trace:
    """A trace of streams."""
    found = schedule_sequence(shape, steps, EPUR, Accelerator.load(accelerator))
    return Trace(found.phases, found.components, found.cycles)


def expansion(trace: Trace, most: int = 40_000_000) -> int:
    """Expand the first accesses; returns how many."""
    done = 0
    for chunk in trace.expand():
        done += len(chunk)
        if done >= most:
            break
    return done


def by_sorting(trace: Trace) -> int:
    """The peer of expansion: all accesses of all streams by numpy, then sorted."""
    columns = [s.expand() for p in trace.phases for s in p.streams]
    cycle = np.concatenate([c for c, _ in columns])
    address = np.concatenate([a for _, a in columns])
    order = np.argsort(cycle, kind="stable")
    return len(cycle[order]) + 0 * len(address[order])


def scale_sim(folder: Path) -> tuple[float, float] | None:
    """Accesses in the traces that SCALE-Sim writes of one matrix product, and seconds."""
    try:
        from scalesim.scale_sim import scalesim
    except ImportError:
        return None
    (folder / "c.cfg").write_text(
        "[general]\nrun_name = run\n[architecture_presets]\nArrayHeight: 16\nArrayWidth: 16\n"
        "IfmapSramSzkB: 64\nFilterSramSzkB: 64\nOfmapSramSzkB: 64\nIfmapOffset: 0\n"
        "FilterOffset: 10000000\nOfmapOffset: 20000000\nDataflow: os\nBandwidth: 10\n"
        "MemoryBanks: 1\nReadRequestBuffer: 32\nWriteRequestBuffer: 32\n"
        "[layout]\nIfmapCustomLayout: False\nIfmapSRAMBankBandwidth: 10\nIfmapSRAMBankNum: 10\n"
        "IfmapSRAMBankPort: 2\nFilterCustomLayout: False\nFilterSRAMBankBandwidth: 10\n"
        "FilterSRAMBankNum: 10\nFilterSRAMBankPort: 2\n[sparsity]\nSparsitySupport: false\n"
        "SparseRep: ellpack_block\nOptimizedMapping: false\nBlockSize: 8\nRandomNumberGeneratorSeed: 40\n"
        "[run_presets]\nInterfaceBandwidth: CALC\nUseRamulatorTrace: False\n"
    )
    (folder / "t.csv").write_text("Layer,M,N,K,\nproduct,100,320,640,\n")
    ones = "1," * 24
    (folder / "l.csv").write_text(f"Layer,{ones}\nproduct,{ones}\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = scalesim(
            save_disk_space=False, verbose=False, config=str(folder / "c.cfg"),
            topology=str(folder / "t.csv"), layout=str(folder / "l.csv"), input_type_gemm=True,
        )  # fmt: skip
        begin = time.perf_counter()
        run.run_scale(top_path=str(folder))
        seconds = time.perf_counter() - begin
    accesses = sum(
        len(line.split(b",")) - 1 - line.count(b"-1")
        for path in folder.rglob("*TRACE*.csv")
        for line in path.read_bytes().splitlines()
    )
    return float(accesses), seconds


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows of rates in millions of accesses a second, unless they say otherwise."""
    rows = []
    eesen = tuple(
        tuple(LayerShape(f"{n}.{d}", 640 if n else 120, 320, True, d == 1) for d in range(2))
        for n in range(5)
    )
    gmat = tuple((LayerShape(str(n), 1024, 1024),) for n in range(17))
    for name, shape, steps, small in (("EESEN", eesen, 20, 1), ("GMAT", gmat, 3, 1)):
        for accelerator in ("epur", "epur-mwl"):
            trace, short = scheduled(shape, steps, accelerator), scheduled(shape[:1], small, accelerator)
            done = expansion(trace)
            seconds = in_turn(
                {"ours": partial(expansion, trace), "peer": partial(by_sorting, short)}, rounds
            )
            rates = done / seconds["ours"] / 1e6, short.count() / seconds["peer"] / 1e6
            rows.append(row(f"expansion, {name}, {accelerator}", *rates, "numpy, sorted", "M/s"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (inputs, cells, peepholes, steps) in CASES.items():
            net = network(inputs, cells, peepholes)
            for accelerator in DATAFLOWS:
                rows += traced(folder, case, net, steps, accelerator, rounds)
        try:
            peer = scale_sim(folder)
        except Exception as error:  # 3.0.0 does not run beside numpy 2.4
            peer = None
            print(f"scalesim fails ({error})", file=sys.stderr)
        if peer is None:
            print("scalesim's row is left out", file=sys.stderr)
        else:
            trace = scheduled(eesen[:1], 20, "epur")
            begin = time.perf_counter()
            count = export(trace, folder / "t.csv", "csv")
            rate = count / (time.perf_counter() - begin) / 1e6
            rows.append(row("accesses as CSV", rate, peer[0] / peer[1] / 1e6, "SCALE-Sim", "M/s"))
    return rows


def traced(
    folder: Path, case: str, net: Network, steps: int, name: str, rounds: int
) -> list[dict[str, Any]]:
    """Emulation with traces beside the same without."""
    accelerator = Accelerator.load(name)
    x = np.random.default_rng(2).standard_normal((steps, net.layers[0][0].inputs), np.float32)
    engine, path = Engine(net, EPUR, dataflow_of(accelerator).rounds, {"0": 30.0}), folder / "t.h5"
    outputs = engine.sequence(x)

    def streams() -> None:
        engine.sequence(x)
        schedule = schedule_sequence(net.shape, steps, EPUR, accelerator)
        trace_of([schedule], [net], [steps], EPUR, accelerator).save(path)

    def events() -> None:
        layers = engine.sequence(x)
        assert layers[-1].tobytes() == outputs[-1].tobytes()
        probe_sequences(path, net, [x], [layers], None, EPUR, accelerator, {})

    sides = {"plain": partial(engine.sequence, x), "streams": streams, "events": events}
    seconds = in_turn(sides, rounds)
    trace = Trace.open(path)
    count, per_access = trace.count(), path.stat().st_size / trace.count()
    assert count == scheduled(net.shape, steps, name).count()
    rates = {side: count / took / 1e6 for side, took in seconds.items()}
    return [
        row(f"{mode}, {case}, {name}", rates[mode], rates["plain"], "no trace", "M/s")
        for mode in ("streams", "events")
    ] + [row(f"events on disk, {case}, {name}", 1e3 * per_access, 2e3, "2 B/access", "B/1000")]


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    report(measure(options.rounds), machine("scalesim", "numpy", "h5py"), options.json)


if __name__ == "__main__":
    main()
