"""One model, float32 beside emulated: the task's output or score, errors, cycles, energy."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.checkpoints.folder import Model, read_folder
from epur_emu.dataflow import dataflow_of
from epur_emu.emulator import Engine, LayerStats, Observer
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import EpurError, ModelError
from epur_emu.probe import check_probe
from epur_emu.tasks import TASKS, Answer, Task
from epur_emu.trace import Trace
from epur_emu.zoo import find

F32 = npt.NDArray[np.float32]

#: What a card calls a network without a task.
SEQUENCE = "sequence"


def load_model(name: str | os.PathLike[str]) -> Model:
    """Read a model by its name in the zoo, or by its folder's path.

    Raises
    ------
    ModelError, NetworkError
        It is unknown or damaged.
    """
    return read_folder(find(name))


def check_layers(model: Model, arithmetic: Arithmetic) -> None:
    """Refuse overrides of layers that a model does not have, see `Arithmetic.check_layers`."""
    arithmetic.check_layers(p.name for n in model.networks.values() for p in n.passes)


def task(
    model: Model, arithmetic: Arithmetic, accelerator: Accelerator, level: str | None = None,
    count: bool = True, observer: Observer | None = None, threads: int = 1,
) -> Task:  # fmt: skip
    """A model's task with its networks evaluated in an arithmetic, in the accelerator's dataflow.

    Parameters
    ----------
    model, arithmetic, accelerator
    level, count, observer, threads
        As for `Engine`.

    Raises
    ------
    ModelError
        No task is called as the card says.
    """
    name = model.card["task"]
    if name == SEQUENCE:
        raise ModelError(
            model.path, "task", "is not there: there are no data to score or calibrate it on",
            "give arrays: epur run MODEL --inputs X.npy, epur import FILE --calibrate X.npy",
        )  # fmt: skip
    if name not in TASKS:
        raise ModelError(model.path, "task", f"is {name!r}", f"use one of {', '.join(TASKS)}")
    engines = {
        key: Engine(
            network,
            arithmetic,
            dataflow_of(accelerator).rounds,
            model.alpha,
            level,
            width=accelerator.width,
            count=count,
            observer=observer,
            threads=threads,
        )
        for key, network in model.networks.items()
    }
    return TASKS[name](model, engines)


@dataclass(frozen=True)
class Layer:
    """How far one pass's outputs lie from float32's, given the same symbols, and what was counted."""

    name: str
    max_abs_error: float
    overflow: int
    underflow: int
    saturation: int
    places: dict[str, dict[str, int]]

    @classmethod
    def of(cls, stats: LayerStats, difference: float) -> Layer:
        """A layer's counts beside its largest error."""
        return cls(
            stats.name, difference, stats.overflow, stats.underflow, stats.saturation, stats.places
        )


@dataclass(frozen=True)
class Run:
    """One input in float32 and emulated.

    Parameters
    ----------
    model, arithmetic, accelerator : str
    text : str
        The input, in one line.
    float32, emulated : Answer
    layers : tuple of Layer
    cycles : int
    seconds : float
        On the accelerator.
    real_time_factor : float or None
        Time that the input lasts in the world over `seconds`; None where it has no duration.
    report : Report
    trace : Trace
    outputs : dict of str to float32 array of shape (T, H)
        Emulated outputs of each pass while the decoder is given the emulated answer.
    """

    model: str
    arithmetic: str
    accelerator: str
    text: str
    float32: Answer
    emulated: Answer
    layers: tuple[Layer, ...]
    cycles: int
    seconds: float
    real_time_factor: float | None
    report: Report
    trace: Trace
    outputs: dict[str, F32]

    @property
    def same(self) -> bool:
        """Whether both found the same."""
        return self.float32.symbols == self.emulated.symbols

    def to_dict(self) -> dict[str, Any]:
        """What ``epur run --json`` prints."""
        return {
            "model": self.model,
            "arithmetic": self.arithmetic,
            "accelerator": self.accelerator,
            "input": self.text,
            "float32": {"text": self.float32.plain, "score": self.float32.score},
            "emulated": {"text": self.emulated.plain, "score": self.emulated.score},
            "layers": [vars(layer) for layer in self.layers],
            "cycles": self.cycles,
            "seconds": self.seconds,
            "real_time_factor": self.real_time_factor,
            "accesses": self.trace.count(),
            "energy_pj": self.report.totals(),
        }


def run(
    model: Model,
    given: str | None,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    table: EnergyTable,
    beam: int = 1,
    events: str | os.PathLike[str] | None = None,
    threads: int = 1,
) -> Run:
    """Run one input through a model in float32 and in an arithmetic on an accelerator.

    Parameters
    ----------
    model : Model
    given : str, optional
        As the task reads it: a text, a file's path; by default an example of the task's own.
    arithmetic : Arithmetic
    accelerator : Accelerator
    table : EnergyTable
    beam : int
        Hypotheses of the decoder; each is one evaluation a step, as E-PUR's batch is one.
    events : path-like, optional
        Where each access goes as an event (`Task.probe`); the trace is that file's then.
    threads : int
        As for `Engine`.

    Raises
    ------
    EpurError
        The input is empty, or something does not fit.
    """
    check_layers(model, arithmetic)
    reference = task(model, ARITHMETICS["float32"], accelerator)
    emulated = task(model, arithmetic, accelerator, threads=threads)
    if events is not None:
        check_probe(accelerator)
    item = emulated.read(given)
    with one_thread():
        (wanted,) = reference.answer([item], beam)
        (found,) = emulated.answer([item], beam)
        stats = {k: v for engine in emulated.engines.values() for k, v in engine.stats.items()}
        theirs, ours = (t.outputs(item, found) for t in (reference, emulated))
        if events is None:
            trace = emulated.trace(item, found, arithmetic, accelerator)
        else:
            trace = emulated.probe(item, found, beam, arithmetic, accelerator, events)
    layers = tuple(
        Layer.of(s, float(abs(ours[name] - theirs[name]).max())) for name, s in stats.items()
    )
    seconds, duration = accelerator.seconds(trace.cycles), emulated.duration(item)
    return Run(
        model.name, arithmetic.name, accelerator.name, emulated.describe(item), wanted, found, layers,
        trace.cycles, seconds, None if duration is None else duration / seconds,
        energy(trace, table), trace, ours,
    )  # fmt: skip


def calibrate(
    model: Model, limit: int = 200, bits: int = 8, method: str = "max", progress: bool = False
) -> dict[str, float]:
    """What the passes of a model reach in float32 over training items of its task.

    Parameters
    ----------
    model : Model
    limit : int
        Items to take, the first.
    bits, method
        As for `Observer.alpha`.
    progress : bool
        Whether to show a bar on the standard error stream.

    Raises
    ------
    EpurError
        The data are not there, or the task is unknown.
    """
    observer = Observer()
    observed = task(model, ARITHMETICS["float32"], Accelerator.load("epur"), observer=observer)
    with one_thread():
        items = [item for item, _ in itertools.islice(observed.samples(), limit)]
        for item in tqdm(items, unit="item", desc="calibration", disable=not progress):
            observed.answer([item])
    return observer.alpha(bits, method)


@dataclass(frozen=True)
class Scores:
    """A task's metrics over a data set, in float32 and emulated.

    Parameters
    ----------
    model, arithmetic, accelerator : str
    metric : str
        The task's own.
    higher_is_better : bool
        Of this metric.
    beam, jobs : int
    float32, emulated : tuple of Answer
        In the order of the data set.
    metrics : pair of dict of str to float
        All metrics, in float32 and emulated.
    seconds : pair of float
        Wall-clock time of all answers, in float32 and emulated.
    baselines : dict of str to dict of str to float
        Metrics of simpler ways on the whole data set, by the way's name, as the card gives them.
    """

    model: str
    arithmetic: str
    accelerator: str
    metric: str
    higher_is_better: bool
    beam: int
    jobs: int
    float32: tuple[Answer, ...]
    emulated: tuple[Answer, ...]
    metrics: tuple[dict[str, float], dict[str, float]]
    seconds: tuple[float, float]
    baselines: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """What ``epur evaluate --json`` prints."""
        pairs = zip(self.float32, self.emulated, strict=True)
        return {
            "model": self.model,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "n": len(self.float32),
            "float32": self.metrics[0][self.metric],
            "emulated": self.metrics[1][self.metric],
            "arithmetic": self.arithmetic,
            "accelerator": self.accelerator,
            "beam": self.beam,
            "jobs": self.jobs,
            "metrics": dict(zip(("float32", "emulated"), self.metrics, strict=True)),
            "baselines": self.baselines,
            "same_outputs": sum(a.symbols == b.symbols for a, b in pairs),
            "seconds": dict(zip(("float32", "emulated"), self.seconds, strict=True)),
        }


#: Most items that are answered in one call of a task.
CHUNK = 16


def evaluate(
    model: Model,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    limit: int | None = None,
    beam: int | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Scores:
    """A model's metrics over its data set, float32 beside emulated.

    Parameters
    ----------
    model : Model
    arithmetic : Arithmetic
    accelerator : Accelerator
    limit : int, optional
        Take only so many items, the first.
    beam : int, optional
        Hypotheses of the decoder; by default the task's own choice.
    jobs : int
        Processes. The answers do not depend on it: which items are answered together does not.
    progress : bool
        Whether to show bars on the standard error stream.

    Raises
    ------
    EpurError
        The data set or a package is missing; the message says how to get it. Or a process died.
    """
    both = (ARITHMETICS["float32"], arithmetic)
    check_layers(model, arithmetic)
    prepared = [task(model, each, accelerator, count=False) for each in both]
    items, references = prepared[0].test_set(limit)
    beam = prepared[0].beam if beam is None else beam
    together = chunks([prepared[0].size(item) for item in items])
    jobs = max(1, min(jobs, len(together)))
    answers: list[tuple[Answer, ...]] = []
    seconds = []
    processes = _workers(model, both, accelerator, jobs) if jobs > 1 else _alone(prepared)
    with one_thread(needed=True), processes as work:
        # What the metrics need is found missing now, not after all answers.
        prepared[0].score(prepared[0].answer(items[:1]), references[:1])
        for number, each in enumerate(both):
            begin = time.perf_counter()
            found: dict[int, Answer] = {}
            with tqdm(total=len(items), unit="item", desc=each.name, disable=not progress) as bar:
                calls = [(number, [items[n] for n in chunk], beam) for chunk in together]
                for chunk, part in zip(together, work(calls), strict=True):
                    found |= zip(chunk, part, strict=True)
                    bar.update(len(chunk))
            seconds.append(time.perf_counter() - begin)
            answers.append(tuple(found[n] for n in range(len(items))))
    wanted, ours = (prepared[0].score(each, references) for each in answers)
    return Scores(
        model.name, arithmetic.name, accelerator.name, prepared[0].metric,
        prepared[0].higher_is_better, beam, jobs, answers[0], answers[1], (wanted, ours),
        (seconds[0], seconds[1]), _baselines(model, tuple(wanted), len(items)),
    )  # fmt: skip


def answer_all(prepared: Task, items: Sequence[Any], beam: int) -> tuple[Answer, ...]:
    """Answers of one task in this process; items of about one size are answered together."""
    found: dict[int, Answer] = {}
    with one_thread(needed=True):
        for chunk in chunks([prepared.size(item) for item in items]):
            found |= zip(chunk, prepared.answer([items[n] for n in chunk], beam), strict=True)
    return tuple(found[n] for n in range(len(items)))


def _baselines(model: Model, metrics: Sequence[str], count: int) -> dict[str, dict[str, float]]:
    """Scores of simpler ways in the card, where they have the task's metrics on as many items."""
    out: dict[str, dict[str, float]] = {}
    ways, score = (model.card.get(key) for key in ("baseline", "score"))
    if not (isinstance(ways, dict) and isinstance(score, dict) and score.get("n") == count):
        return out
    for way, values in ways.items():
        given = values if isinstance(values, dict) else {}
        found = {metric: given.get(metric.replace(" ", "_")) for metric in metrics}
        numbers = {m: value for m, value in found.items() if isinstance(value, int | float)}
        if len(numbers) == len(metrics):
            out[way.replace("_", " ")] = numbers
    return out


def chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Places of the items that are answered together: of about one size, the largest first."""
    order = sorted(range(len(sizes)), key=lambda n: (-sizes[n], n))
    most = max(1, min(CHUNK, math.ceil(len(order) / CHUNK)))
    return [order[n : n + most] for n in range(0, len(order), most)]


#: Answers of some items: which task (float32 or emulated), the items, the beam.
Call = tuple[int, list[Any], int]
#: Answers calls, in their order.
Work = Callable[[Sequence[Call]], Iterator[list[Answer]]]


@contextmanager
def _alone(tasks: Sequence[Task]) -> Iterator[Work]:
    """Answer calls in this process."""
    yield lambda calls: (tasks[number].answer(items, beam) for number, items, beam in calls)


@contextmanager
def _workers(
    model: Model, arithmetics: tuple[Arithmetic, ...], accelerator: Accelerator, jobs: int
) -> Iterator[Work]:
    """Answer calls in processes, each of which loads the model once."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _prepare, (model.path, arithmetics, accelerator)
    )
    try:
        with _starting_deaf():  # the processes start at the first call
            first = [pool.submit(_ready, n) for n in range(jobs)]
        for future in first:  # they load the model before time is taken
            future.result()
        yield lambda calls: _results([pool.submit(_answer, call) for call in calls])
    except BrokenProcessPool as error:
        _stop_sending(pool)
        raise EpurError(
            "evaluate", "process", "ended before its time", "use fewer --jobs: memory may be short"
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        _stop_sending(pool)
        raise
    finally:
        pool.shutdown()


def _results(futures: Sequence[Future[list[Answer]]]) -> Iterator[list[Answer]]:
    """In order; unlike `map` it cancels none at the end: a pool whose processes end stumbles over such."""
    for future in futures:
        yield future.result()


def _stop_sending(pool: ProcessPoolExecutor) -> None:
    """Before CPython 3.11.5 (gh-94777) a pool's end waits for ever to send what nobody will read."""
    if sys.version_info < (3, 11, 5):
        pool._call_queue._reader.close()  # type: ignore[attr-defined]


@contextmanager
def _starting_deaf() -> Iterator[None]:
    """Processes that start meanwhile never get an interruption, not even while they load."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_tasks: list[Task] = []


def _prepare(
    path: os.PathLike[str], arithmetics: Sequence[Arithmetic], accelerator: Accelerator
) -> None:
    """Load the model into a new process, which leaves interruptions to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread().__enter__()
    model = read_folder(path)
    _tasks.extend(task(model, each, accelerator, count=False) for each in arithmetics)


def _ready(number: int) -> int:
    return number


def _answer(call: Call) -> list[Answer]:
    number, items, beam = call
    return _tasks[number].answer(items, beam)


def one_thread(needed: bool = False) -> AbstractContextManager[Any]:
    """Keep numpy's matrix products to one thread: they are small, so more would wait for each other."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        if not needed:
            return nullcontext()
        raise EpurError(
            "evaluate", "threadpoolctl", "is not installed", "pip install 'epur_emu[evaluate]'"
        ) from error
    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


#: Arithmetics that a card gives a score for.
SCORED = ("float32", "epur-fp16", "epur-int8")


def rows(models: Sequence[Model]) -> list[dict[str, Any]]:
    """What ``epur models --json`` prints of each model."""
    out = []
    for model in models:
        passes = [p for network in model.networks.values() for p in network.passes]
        score = model.card.get("score", {})
        out.append(
            {
                "name": model.name,
                "task": model.card["task"],
                "layers": sum(len(network.layers) for network in model.networks.values()),
                "passes": len(passes),
                "cells": max(p.cells for p in passes),
                "parameters": sum(n.parameters for n in model.networks.values())
                + sum(array.size for array in model.host.values()),
                "licence": model.card.get("licence"),
                "score": {key: score.get(key) for key in ("metric", *SCORED, *sorted(score))},
            }
        )
    return out
