"""Traces, one thread: expansion; probe mode and streams beside plain emulation; tracing beside SCALE-Sim.

Streams are shown twice: as what they add to whole commands, and to the engine alone on weights that are packed
already; there the fixed cost of a file, some milliseconds, is all of it.
"""

from __future__ import annotations

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


#: Layers of passes: EESEN, of 300 to 700 frames, and GMAT, of 50 to 100 words.
EESEN = tuple(
    tuple(LayerShape(f"{n}.{d}", 640 if n else 120, 320, True, d == 1) for d in range(2))
    for n in range(5)
)
GMAT = tuple((LayerShape(str(n), 1024, 1024),) for n in range(17))

#: Models that come along, each with the example that its command takes by default.
MODELS = ("translate-en-de", "caption-emoji", "digits-ctc", "silero-vad")

#: Time steps of one pass whose streams' share is shown.
LENGTHS = (25, 100, 400, 1600)


def network(shape: tuple[tuple[LayerShape, ...], ...]) -> Network:
    """Random weights."""
    rng = np.random.default_rng(1)

    def fill(*shape: int) -> Any:
        return np.float32(0.05) * rng.standard_normal(shape, np.float32)

    def layer(s: LayerShape) -> LstmLayer:
        weights = fill(4, s.cells, s.inputs), fill(4, s.cells, s.cells), fill(4, s.cells)
        return LstmLayer(s.name, *weights, fill(3, s.cells) if s.peepholes else None, reverse=s.reverse)

    return Network("random", tuple(tuple(map(layer, passes)) for passes in shape))


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


def scale_sim(folder: Path, python: str) -> tuple[float, float] | None:
    """Accesses in the traces that SCALE-Sim writes of one matrix product, and seconds; None if it can't."""
    program = Path(__file__).with_name("scalesim_peer.py")
    run = subprocess.run([python, program, folder], capture_output=True, text=True)
    if run.returncode:
        print(f"scalesim fails ({run.stderr.strip().splitlines()[-1]})", file=sys.stderr)
        return None
    accesses, seconds = map(float, run.stdout.split())
    return accesses, seconds


def measure(rounds: int, python: str) -> list[dict[str, Any]]:
    """Rows of rates in millions of accesses a second, unless they say otherwise."""
    rows = []
    for name, shape, steps, small in (("EESEN", EESEN, 20, 1), ("GMAT", GMAT, 3, 1)):
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
            net = network(one(inputs, cells, peepholes))
            for accelerator in DATAFLOWS:
                rows += traced(folder, case, net, steps, accelerator, rounds)
        for model in MODELS:
            rows += command(folder, model, 2 * rounds)
        single = network(one(640, 320, True))
        for steps in LENGTHS:
            rows += shares(folder, f"640 x 320, {steps} steps", single, steps, rounds)
        for name, shape, lengths in (("EESEN", EESEN, (300, 700)), ("GMAT", GMAT, (50, 100))):
            net = network(shape)
            for steps in lengths:
                rows += shares(folder, f"{name}, {steps} steps", net, steps, min(rounds, 3))
        peer = scale_sim(folder, python)
        if peer is None:
            print("scalesim's row is left out", file=sys.stderr)
        else:
            trace = scheduled(EESEN[:1], 20, "epur")
            begin = time.perf_counter()
            count = export(trace, folder / "t.csv", "csv")
            rate = count / (time.perf_counter() - begin) / 1e6
            theirs = peer[0] / peer[1] / 1e6
            rows.append(row("accesses as CSV", rate, theirs, "SCALE-Sim", "M/s"))
            probed = next(r["ours"] for r in rows if r["case"] == "events, 640 x 320, epur")
            rows.append(row("emulation with events", probed, theirs, "SCALE-Sim", "M/s"))
    return rows


def one(inputs: int, cells: int, peepholes: bool) -> tuple[tuple[LayerShape, ...], ...]:
    """A network of one pass."""
    return ((LayerShape("0", inputs, cells, peepholes),),)


def log(net: Network, steps: int, accelerator: Accelerator, path: Path) -> None:
    """All that a trace of streams costs a run: its schedule, and the file."""
    schedule = schedule_sequence(net.shape, steps, EPUR, accelerator)
    trace_of([schedule], [net], [steps], EPUR, accelerator).save(path)


def command(folder: Path, model: str, rounds: int) -> list[dict[str, Any]]:
    """What ``--trace`` adds to the time of ``epur run MODEL``; none if the model's example can't be had."""
    run = [sys.executable, "-m", "epur_emu", "run", model]
    if subprocess.run(run, capture_output=True).returncode:
        print(f"epur run {model} fails; its row is left out", file=sys.stderr)
        return []
    sides = {
        name: partial(subprocess.run, [*run, *more], stdout=subprocess.DEVNULL, check=True)
        for name, more in (("plain", []), ("traced", ["--trace", folder / "t.h5"]))
    }
    seconds = in_turn(sides, rounds)
    share = 100 * (seconds["traced"] / seconds["plain"] - 1)
    return [row(f"--trace adds to epur run {model}", share, 2.0, "2 %", "%")]


def shares(
    folder: Path, case: str, net: Network, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """What a trace of streams adds to the time of a run; weights are packed and hashed once before."""
    accelerator = Accelerator.load("epur")
    inputs = net.layers[0][0].inputs
    x = np.random.default_rng(2).standard_normal((steps, inputs), np.float32)
    engine = Engine(net, EPUR)
    sides = {
        "plain": partial(engine.sequence, x),
        "log": partial(log, net, steps, accelerator, folder / "t.h5"),
    }
    seconds = in_turn(sides, rounds)
    share = 100 * seconds["log"] / seconds["plain"]
    print(f"{case}: {1e3 * seconds['plain']:.1f} ms, its trace {1e3 * seconds['log']:.2f} ms", file=sys.stderr)
    return [row(f"streams add, {case}", share, 2.0, "2 %", "%")]


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
        log(net, steps, accelerator, path)

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
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--scalesim", default=os.environ.get("SCALESIM", sys.executable), metavar="PYTHON",
        help="Python that has scalesim, with a numpy below 2 [the environment's SCALESIM, or this one]",
    )  # fmt: skip
    options = parser.parse_args()
    report(measure(options.rounds, options.scalesim), machine("scalesim", "numpy", "h5py"), options.json)


if __name__ == "__main__":
    main()
