"""A study in one process beside several, a Dask cluster, and a loop that shares nothing.

    EPUR_DATA=/path/to/data python benchmarks/study.py [--limit N] [--jobs N] [--dask] [--loop]

Rates are points a second, starting of processes included. All results must be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

STUDY = Path(__file__).resolve().parents[1] / "studies" / "precision.toml"


def loop(limit: int) -> list[float]:
    """The metric of each point by `epur evaluate`, and its energy by item, point after point."""
    from epur_emu.comparison import evaluate, load_model, task
    from epur_emu.energy import energy
    from epur_emu.study import Study
    from epur_emu.study.workloads import spread

    plan = Study.load(STUDY, limit)
    (machine,), ((_, table),) = plan.accelerators, plan.tables
    found = []
    for choice in plan.models:
        model = load_model(choice.model)
        for arithmetic in plan.arithmetics:
            scores = evaluate(model, arithmetic, machine, limit)
            found.append(scores.metrics[1][scores.metric])
            prepared = task(model, arithmetic, machine)
            items, _ = prepared.test_set(limit)
            for n in spread(len(items), plan.traced):
                energy(prepared.trace(items[n], scores.float32[n], arithmetic, machine), table)
    return found


def main() -> None:
    """Print the table."""
    parser = harness.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, default=20, help="items of each task")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--dask", action="store_true", help="a local cluster of JOBS workers too")
    parser.add_argument("--loop", action="store_true", help="a loop of epur evaluate too")
    options = parser.parse_args()
    harness.one_thread()
    from epur_emu.study import Results, study

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        begin = time.perf_counter()
        found = call()
        return found, time.perf_counter() - begin

    def ours(**given: Any) -> tuple[Results, float]:
        found, seconds = timed(lambda: study(STUDY, limit=options.limit, **given))
        return found, len(found.points) / seconds

    several, rate = ours(jobs=options.jobs)
    # After the processes, which find nothing that this one has loaded.
    alone, one = ours()
    assert several.digest == alone.digest
    rows = [harness.row(f"{options.jobs} jobs", rate, one, "one job", "points/s")]
    if options.dask:
        import distributed

        cluster: Any = distributed.LocalCluster
        with cluster(options.jobs, threads_per_worker=1, dashboard_address=None) as made:
            there, rate = ours(dask=made.scheduler_address)
        assert there.digest == alone.digest
        rows.append(harness.row(f"{options.jobs} Dask workers", rate, one, "one job", "points/s"))
    if options.loop:
        metrics, seconds = timed(lambda: loop(options.limit))
        assert metrics == [point["emulated"] for point in alone.points]
        peer = len(metrics) / seconds
        rows.append(harness.row("one job", one, peer, "loop of epur evaluate", "points/s"))
    harness.report(rows, harness.machine("numpy", "distributed"), options.json)


if __name__ == "__main__":
    main()
