"""Runs a study: its units in any executor, each kept as it is done, and rows made of them."""

from __future__ import annotations

import datetime
import math
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.errors import EpurError, StudyError
from epur_emu.study.executors import executor, lost
from epur_emu.study.journal import Journal, check_plan
from epur_emu.study.plan import Study
from epur_emu.study.results import Results
from epur_emu.study.search import find
from epur_emu.study.units import Unit, compute, table_digest
from epur_emu.study.workloads import Plain, Workload, digest, open_workload
from epur_emu.version import __version__

#: How often a unit is tried whose process is lost.
TRIES = 3


@dataclass(frozen=True)
class Point:
    """One combination: what a row of the results is of."""

    work: int
    arithmetic: Arithmetic
    accelerator: Accelerator
    table: int
    stage: str = "sweep"


def study(
    source: str | os.PathLike[str] | Mapping[str, Any] | Study,
    output: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    dask: str | None = None,
    resume: bool = False,
    limit: int | None = None,
    search: bool = False,
    progress: bool = False,
) -> Results:
    """Run a study: every combination of its models, arithmetics, accelerators and tables.

    Each result is kept in ``OUTPUT.journal`` as soon as it is known, and all of them are written to
    `output` at the end or when the study is interrupted; then the journal stays, and `resume` goes on.

    Parameters
    ----------
    source : path, dict or Study
        A study's TOML file, or what one holds.
    output : path, optional
        HDF5 file of the results; without it nothing is kept.
    jobs : int
        Processes. More than one need ``if __name__ == "__main__"`` in a program, as for any
        `multiprocessing`. Results do not depend on it.
    dask : str, optional
        Address of a Dask scheduler to use instead; its workers need this package, the models and data.
    resume : bool
        Whether to go on with an interrupted study.
    limit : int, optional
        Items of each test set, the first; replaces the study's own.
    search : bool
        Whether to search from each arithmetic instead, as the study's ``[search]`` says.
    progress : bool
        Whether to show a bar on the standard error stream.

    Returns
    -------
    Results

    Raises
    ------
    StudyError
        The study can't be used, or has changed since it was interrupted.
    EpurError
        Something that it needs is missing. What was computed is kept.
    """
    if isinstance(source, Study):
        plan = source
        if limit is not None:
            plan = replace(plan, models=tuple(replace(c, limit=limit) for c in plan.models))
    elif isinstance(source, Mapping):
        plan = Study.of(source, limit=limit)
    else:
        plan = Study.load(source, limit)
    if search and plan.search is None:
        raise StudyError(plan.name, "search", "is missing", "add a table [search] with loss = ...")
    if jobs < 1:
        raise StudyError(plan.name, "jobs", f"are {jobs}", "give 1 or more")
    if output is not None and Path(output).exists() and not resume:
        raise StudyError(output, "file", "exists", "choose another -o, or go on with --resume")
    works = [open_workload(choice) for choice in plan.models]
    for work in works if search else ():
        if work.metric is None:
            raise StudyError(plan.name, f"model {work.name}", "has no metric", "search in others")
    names = [p.name for work in works for p in work.passes]
    for each in plan.arithmetics:
        each.check_layers(names)
    parts = _parts(plan, works, search)
    with ExitStack() as stack:
        if output is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="epur-study-"))
            return _run(
                plan, works, parts, Path(folder) / "results.h5", jobs, dask, False, search, progress
            )
        return _run(plan, works, parts, Path(output), jobs, dask, resume, search, progress)


def _run(
    plan: Study, works: Sequence[Workload], parts: dict[str, str], target: Path, jobs: int,
    dask: str | None, resume: bool, search: bool, progress: bool,
) -> Results:  # fmt: skip
    journal_path = target.with_name(f"{target.name}.journal")
    if target.exists() and not journal_path.exists():
        done = Results.open(target)
        check_plan(target, done.plan, parts)
        if not done.complete:
            raise StudyError(
                journal_path, "journal", f"is missing, and {target.name} is not complete",
                "start anew with another -o",
            )  # fmt: skip
        return done
    with Journal(journal_path, parts, resume) as journal:
        if journal.dropped and progress:
            tqdm.write(
                f"{journal_path}: a line that was cut is dropped, and computed anew", sys.stderr
            )
        state = _State(plan, works, parts, journal)
        try:
            with (
                executor(jobs, dask) as (pool, width),
                tqdm(unit="unit", desc=plan.name, disable=not progress) as bar,
            ):
                runner = Runner(journal, pool, width, bar)
                if search:
                    state.search(runner)
                else:
                    state.sweep(runner)
        except BaseException:
            if not journal.results:
                journal.remove()
            else:
                with suppress(EpurError):
                    _save_part(state, target, progress)
            raise
        found = state.results()
        found.save(target)
        journal.remove()
        return found


def _save_part(state: _State, target: Path, progress: bool) -> None:
    """Write what is complete of an interrupted study."""
    part = state.results()
    part.save(target)
    if progress:
        tqdm.write(
            f"{target}: {len(part.points)} of {part.planned} points; go on with --resume",
            sys.stderr,
        )


class Runner:
    """Computes units in an executor and keeps their results.

    Parameters
    ----------
    journal : Journal
    pool : Executor
    width : int
        Calls that it should have at once.
    bar : tqdm
    """

    def __init__(self, journal: Journal, pool: Executor, width: int, bar: Any) -> None:
        self.journal, self.pool, self.width, self.bar = journal, pool, width, bar
        self.seen: set[str] = set()

    def run(self, units: Iterable[Unit]) -> None:
        """Compute units that are not known, each after the one that it needs, in about this order.

        Raises
        ------
        EpurError
            One can't be computed, and the next could not either.
        """
        known = self.journal.results
        by_key = {unit.key: unit for unit in units}
        self.seen |= by_key.keys()
        waiting = {key: unit for key, unit in by_key.items() if key not in known}
        self.bar.total = len(self.seen)
        self.bar.n = len(self.seen) - len(waiting)
        self.bar.refresh()
        running: dict[Future[tuple[Plain, float]], Unit] = {}
        tries: Counter[str] = Counter()
        try:
            while waiting or running:
                ready = (u for u in waiting.values() if u.needs is None or u.needs in known)
                for unit in list(islice(ready, max(0, self.width - len(running)))):
                    del waiting[unit.key]
                    given = None if unit.needs is None else known[unit.needs]
                    running[self.pool.submit(timed, unit, given, __version__)] = unit
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    unit = running.pop(future)
                    error = future.exception()
                    if error is None:
                        self.keep(unit, future.result())
                    elif lost(error):
                        waiting = {unit.key: unit, **waiting}
                        tries[unit.key] += 1
                        if tries[unit.key] == TRIES:
                            raise StudyError(
                                unit.choice.model, f"{unit.kind} process", f"was lost {TRIES} times",
                                "use fewer --jobs: memory may be short; then --resume",
                            ) from error  # fmt: skip
                    else:
                        raise error
        finally:
            # What was done at the same time is not lost with an error.
            for future, unit in running.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    with suppress(StudyError):
                        self.keep(unit, future.result())

    def keep(self, unit: Unit, found: tuple[Plain, float]) -> None:
        """Store a result."""
        if unit.key not in self.journal.results:
            self.journal.add(unit.key, *found)
            self.bar.update()


def timed(unit: Unit, given: Plain | None, version: str) -> tuple[Plain, float]:
    """`compute`, and its seconds."""
    begin = time.perf_counter()
    found = compute(unit, given, version)
    return found, time.perf_counter() - begin


def _parts(plan: Study, works: Sequence[Workload], search: bool) -> dict[str, str]:
    """Hashes of a study's parts, by what a change of them is called."""
    return {
        "epur_emu's version": __version__,
        "name": plan.name,
        "models or their data": digest([[work.name, work.digest] for work in works]),
        "arithmetics": digest([a.to_dict() for a in plan.arithmetics]),
        "accelerators or dataflows": digest([a.to_dict() for a in plan.accelerators]),
        "tables": digest([[name, table.to_dict()] for name, table in plan.tables]),
        "traced or errors": digest([plan.traced, plan.errors]),
        "search": digest(
            [asdict(plan.search) | {"formats": [str(f) for f in plan.search.formats]}]
            if search and plan.search
            else []
        ),
    }


class _State:
    """Points of a study, and what is known of them."""

    def __init__(
        self, plan: Study, works: Sequence[Workload], parts: dict[str, str], journal: Journal
    ) -> None:
        self.plan, self.works, self.parts, self.known = plan, works, parts, journal.results
        self.prices = [table_digest(table) for _, table in plan.tables]
        self.points: list[Point] = []
        self.chosen: set[Point] = set()
        self.searches: list[dict[str, Any]] = []
        self.searched = True

    # Units

    def reference(self, work: int) -> Unit:
        return Unit("reference", self.plan.models[work], self.works[work].digest)

    def evaluation(self, point: Point) -> Unit:
        return Unit(
            "evaluation", self.plan.models[point.work], self.works[point.work].digest,
            point.arithmetic, point.accelerator, count=self.plan.errors,
        )  # fmt: skip

    def pricing(self, point: Point) -> Unit:
        return Unit(
            "pricing", self.plan.models[point.work], self.works[point.work].digest,
            point.arithmetic, point.accelerator, self.plan.tables[point.table][0],
            self.prices[point.table], self.plan.traced,
        )  # fmt: skip

    def units(self, points: Sequence[Point]) -> list[Unit]:
        """Long ones first; prices last, those of equal traces one behind the other."""
        by_work = sorted(points, key=lambda p: -self.works[p.work].work)
        alike: dict[Any, int] = {}

        def place(point: Point) -> tuple[int, int]:
            work = self.works[point.work]
            key = (point.work, point.accelerator, work.alike(point.arithmetic, point.accelerator))
            return point.work, alike.setdefault(key, len(alike))

        return [
            *(self.reference(p.work) for p in by_work),
            *(self.evaluation(p) for p in by_work),
            *(self.pricing(p) for p in sorted(points, key=place)),
        ]

    # What is done with them

    def sweep(self, runner: Runner) -> None:
        self.points = [
            Point(work, arithmetic, machine, table)
            for work in range(len(self.works))
            for arithmetic in self.plan.arithmetics
            for machine in self.plan.accelerators
            for table in range(len(self.plan.tables))
        ]
        runner.run(self.units(self.points))

    def search(self, runner: Runner) -> None:
        self.searched = False
        for work in range(len(self.works)):
            for base in self.plan.arithmetics:
                for machine in self.plan.accelerators:
                    self._search(runner, work, base, machine)
        self.searched = True

    def _search(self, runner: Runner, number: int, base: Arithmetic, machine: Accelerator) -> None:
        work, search = self.works[number], self.plan.search
        assert search is not None
        assert work.metric is not None
        reference = self.reference(number)

        def evaluate(arithmetics: Sequence[Arithmetic], stage: str) -> list[Plain]:
            points = [Point(number, a, machine, 0, stage) for a in arithmetics]
            units = [self.evaluation(point) for point in points]
            runner.run([reference, *units])
            for point in points:
                self.points += [
                    Point(number, point.arithmetic, machine, table, stage)
                    for table in range(len(self.plan.tables))
                ]
            return [self.known[unit.key] for unit in units]

        def loss(result: Plain) -> float:
            value = (result.get("metrics") or {}).get(work.metric)
            found = self._loss(work, value, self.known[reference.key])
            return math.inf if found is None else found

        first = len(self.points)
        found = find(base, search, work.passes, evaluate, loss)
        runner.run(self.units(self.points[first:]))
        best = [p for p in self.points[first:] if found.best and p.arithmetic == found.best]
        self.chosen |= set(best)
        result = self.known[self.evaluation(best[0]).key] if best else {}
        value = (result.get("metrics") or {}).get(work.metric)
        self.searches.append(
            {
                "model": work.name, "arithmetic": base.name, "accelerator": machine.name,
                "dataflow": machine.dataflow, "place": search.place, "groups": search.groups,
                "metric": work.metric, "loss_allowed": search.loss,
                "float32": self.known[reference.key]["metrics"][work.metric], "emulated": value,
                "loss": loss(result) if best else None,
                "evaluations": found.evaluations, "ended": found.ended,
                "chosen": found.best.name if found.best else None, "formats": found.formats,
                "weight_bits": found.weight_bits, "uniform": found.uniform,
                "uniform_bits": found.uniform_bits,
            }
        )  # fmt: skip

    # Rows

    @staticmethod
    def _loss(work: Workload, value: float | None, reference: Plain) -> float | None:
        if value is None or work.metric is None:
            return None
        worse = reference["metrics"][work.metric] - value
        return float(worse if work.higher_is_better else -worse) + 0.0

    def results(self) -> Results:
        """Rows of all points whose results are known."""
        rows: list[dict[str, Any]] = []
        for point in self.points:
            keys = (self.reference(point.work), self.evaluation(point), self.pricing(point))
            if all(unit.key in self.known for unit in keys):
                found = [self.known[unit.key] for unit in keys]
                rows.append(self._row(len(rows), point, digest([u.key for u in keys]), *found))
        planned = len(self.points) + (not self.searched)
        used = {row["arithmetic"] for row in rows}
        return Results(
            self.plan.name, self.plan.text, rows, self.plan.summary,
            {
                "epur_emu": __version__, "python": platform.python_version(),
                "numpy": np.__version__, "h5py": h5py.__version__,
            },
            planned, datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            {p.arithmetic.name: p.arithmetic.to_dict() for p in self.points if p.arithmetic.name in used},
            {machine.name: machine.to_dict() for machine in self.plan.accelerators},
            self.searches, self.parts,
        )  # fmt: skip

    def _row(
        self,
        place: int,
        point: Point,
        key: str,
        reference: Plain,
        evaluation: Plain,
        pricing: Plain,
    ) -> dict[str, Any]:
        work = self.works[point.work]
        name, cell = self.plan.tables[point.table][1].name, self.plan.tables[point.table][1].cell
        metrics = evaluation.get("metrics") or dict.fromkeys(reference["metrics"])
        emulated = metrics.get(work.metric) if work.metric else None
        bits, weight_bits = work.bits(point.arithmetic)
        problems = [found["problem"] for found in (evaluation, pricing) if found["problem"]]
        return {
            "point": place, "key": key, "model": work.name, "task": work.task,
            "arithmetic": point.arithmetic.name, "accelerator": point.accelerator.name,
            "dataflow": point.accelerator.dataflow, "table": f"{name}:{cell}",
            "metric": work.metric, "higher_is_better": work.higher_is_better,
            "float32": reference["metrics"].get(work.metric or ""), "emulated": emulated,
            "loss": self._loss(work, emulated, reference), "n": reference["n"],
            "same_outputs": evaluation.get("same"),
            "metrics": {"float32": reference["metrics"], "emulated": metrics},
            "bits": bits, "weight_bits": weight_bits, "items": pricing.get("items", 0),
            **{
                field: pricing.get(field)
                for field in (
                    "cycles", "seconds", "real_time_factor", "energy_pj", "average_mw", "peak_mw",
                    "area_mm2", "trace",
                )
            },
            "wider": pricing.get("wider", {}), "layers": evaluation.get("layers", []),
            "stage": point.stage, "chosen": point in self.chosen,
            "problem": "; ".join(dict.fromkeys(problems)) or None,
        }  # fmt: skip
