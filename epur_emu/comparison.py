"""One model, float32 beside emulated: the task's output or score, errors, cycles, energy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.checkpoints.folder import Model, read_folder
from epur_emu.emulator import Engine
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import ModelError
from epur_emu.tasks import TASKS
from epur_emu.tasks.translation import Evaluation, Translated, Translation
from epur_emu.trace import Trace
from epur_emu.zoo import find


def load_model(name: str | os.PathLike[str]) -> Model:
    """Read a model by its name in the zoo, or by its folder's path.

    Raises
    ------
    ModelError, NetworkError
        It is unknown or damaged.
    """
    return read_folder(find(name))


def task(
    model: Model, arithmetic: Arithmetic, accelerator: Accelerator, level: str | None = None
) -> Translation:
    """A model's task with its networks evaluated in an arithmetic, in the accelerator's dataflow.

    Raises
    ------
    ModelError
        No task is called as the card says.
    """
    name = model.card["task"]
    if name not in TASKS:
        raise ModelError(model.path, "task", f"is {name!r}", f"use one of {', '.join(TASKS)}")
    engines = {
        key: Engine(
            network, arithmetic, accelerator.dataflow, model.alpha, level, width=accelerator.width
        )
        for key, network in model.networks.items()
    }
    return TASKS[name](model, engines)


@dataclass(frozen=True)
class Layer:
    """How far one pass's outputs lie from float32's, given the same input words, and what was counted."""

    name: str
    max_abs_error: float
    overflow: int
    underflow: int


@dataclass(frozen=True)
class Run:
    """One input in float32 and emulated.

    Parameters
    ----------
    model, arithmetic, accelerator : str
    text : str
        The input.
    float32, emulated : Translated
    layers : tuple of Layer
    cycles : int
    seconds : float
        On the accelerator.
    real_time_factor : float or None
        Time that a speaker takes for the input over `seconds`; None if the card gives no pace.
    report : Report
    trace : Trace
    """

    model: str
    arithmetic: str
    accelerator: str
    text: str
    float32: Translated
    emulated: Translated
    layers: tuple[Layer, ...]
    cycles: int
    seconds: float
    real_time_factor: float | None
    report: Report
    trace: Trace

    def to_dict(self) -> dict[str, Any]:
        """What ``epur run --json`` prints."""
        r = self.report
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
            "energy_pj": {
                "total": r.total_pj,
                "dynamic": r.dynamic_pj,
                "static": r.static_pj,
                "by_component": {name: cost.total_pj for name, cost in r.by_component.items()},
            },
        }


def run(
    model: Model,
    text: str | None,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    table: EnergyTable,
    beam: int = 1,
) -> Run:
    """Run one input through a model in float32 and in an arithmetic on an accelerator.

    Parameters
    ----------
    model : Model
    text : str, optional
        By default the task's own example.
    beam : int
        Hypotheses of the decoder; each is one evaluation a step, as E-PUR's batch is one.

    Raises
    ------
    EpurError
        The input is empty, or something does not fit.
    """
    reference = task(model, ARITHMETICS["float32"], accelerator)
    emulated = task(model, arithmetic, accelerator)
    text = reference.example if text is None else text
    source = emulated.source(text)
    (wanted,) = reference.search([source], beam)
    (found,) = emulated.search([source], beam)
    stats = emulated.encoder.stats | emulated.decoder.stats
    theirs, ours = (t.outputs(source, found.symbols) for t in (reference, emulated))
    layers = tuple(
        Layer(name, float(abs(ours[name] - theirs[name]).max()), s.overflow, s.underflow)
        for name, s in stats.items()
    )
    trace = emulated.trace(len(source), found.passes, arithmetic, accelerator)
    seconds = accelerator.seconds(trace.cycles)
    pace = model.card.get("real_time", {}).get("words_per_second")
    return Run(
        model.name, arithmetic.name, accelerator.name, text, wanted, found, layers, trace.cycles, seconds,
        len(emulated.prepare(text)) / float(pace) / seconds if pace else None,
        energy(trace, table), trace,
    )  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """A task's metric over a data set, in float32 and emulated."""

    model: str
    arithmetic: str
    accelerator: str
    float32: Evaluation
    emulated: Evaluation
    seconds: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """What ``epur evaluate --json`` prints."""
        return {
            "model": self.model,
            "metric": self.float32.metric,
            "n": len(self.float32.outputs),
            "float32": self.float32.score,
            "emulated": self.emulated.score,
            "arithmetic": self.arithmetic,
            "accelerator": self.accelerator,
            "same_outputs": sum(
                a.symbols == b.symbols
                for a, b in zip(self.float32.outputs, self.emulated.outputs, strict=True)
            ),
            "seconds": {"float32": self.seconds[0], "emulated": self.seconds[1]},
        }


def evaluate(
    model: Model,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    limit: int | None = None,
    beam: int = 5,
    progress: bool = False,
) -> Scores:
    """A model's metric over its data set, float32 beside emulated.

    Raises
    ------
    EpurError
        The data set or a package is missing; the message says how to get it.
    """
    results: list[Evaluation] = []
    seconds: list[float] = []
    for each in (ARITHMETICS["float32"], arithmetic):
        prepared = task(model, each, accelerator)
        begin = time.perf_counter()
        results.append(prepared.evaluate(beam=beam, limit=limit, progress=progress))
        seconds.append(time.perf_counter() - begin)
    return Scores(
        model.name,
        arithmetic.name,
        accelerator.name,
        results[0],
        results[1],
        (seconds[0], seconds[1]),
    )


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
                "score": {key: score.get(key) for key in ("metric", "float32", *sorted(score))},
            }
        )
    return out
