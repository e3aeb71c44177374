"""Runs an array of inputs through a network, float32 beside emulated, without any task."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.checkpoints.folder import CARD, Model
from epur_emu.comparison import SEQUENCE, Layer, check_layers
from epur_emu.dataflow import dataflow_of
from epur_emu.emulator import Result, calibrate, emulate, emulate_batch
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import ModelError, NetworkError
from epur_emu.formats import LinearFormat
from epur_emu.network import GATES, Network
from epur_emu.trace import Trace

F32 = npt.NDArray[np.float32]

#: What a card calls a network without a task.
TASK = SEQUENCE
#: Time steps of random inputs.
STEPS = 20
#: Longest output that is shown value by value.
SHOWN = 4096


@dataclass(frozen=True, eq=False)
class SequenceRun:
    """One array of inputs in float32 and emulated.

    Parameters
    ----------
    model, network, arithmetic, accelerator : str
    inputs : float32 array of shape (T, I)
        A batch's one after another, as the outputs are.
    lengths : tuple of int
        Time steps of each sequence.
    float32, emulated : float32 array of shape (T, width)
        Outputs, the host's projection included.
    layers : tuple of Layer
        Each pass; in float32 a layer reads the float32 outputs of the one before.
    cycles : int
    seconds : float
        On the accelerator.
    calibrated : {"card", "inputs", None}
        Where the range of stored partial sums is from, None where it is not needed.
    report : Report
    trace : Trace
    probed : bool
        Whether the trace is of single events, in its file already.
    """

    model: str
    network: str
    arithmetic: str
    accelerator: str
    inputs: F32
    lengths: tuple[int, ...]
    float32: F32
    emulated: F32
    layers: tuple[Layer, ...]
    cycles: int
    seconds: float
    calibrated: str | None
    report: Report
    trace: Trace
    probed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What ``epur run --json`` prints."""
        return {
            "model": self.model,
            "network": self.network,
            "arithmetic": self.arithmetic,
            "accelerator": self.accelerator,
            "input": {"shape": self.inputs.shape, "lengths": self.lengths},
            "float32": {"output": _shown(self.float32)},
            "emulated": {"output": _shown(self.emulated)},
            "max_abs_error": _largest(self.emulated - self.float32),
            "layers": [vars(layer) for layer in self.layers],
            "calibrated": self.calibrated,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "real_time_factor": None,
            "accesses": self.trace.count(),
            "energy_pj": self.report.totals(),
        }


def choose(model: Model, name: str | None) -> Network:
    """A model's network of this name, or its only one.

    Raises
    ------
    ModelError
        There is none, or there are several and none is named.
    """
    known = ", ".join(model.networks)
    if name is None and len(model.networks) > 1:
        raise ModelError(
            model.path, "networks", f"are {known}", "name one: --network NAME"
        )  # fmt: skip
    name = name or next(iter(model.networks))
    if name not in model.networks:
        raise ModelError(model.path, f"network {name!r}", "is unknown", f"use one of {known}")
    return model.networks[name]


def read_inputs(path: str | os.PathLike[str]) -> F32:
    """A sequence of shape (T, I) from a ``.npy`` file.

    Raises
    ------
    ModelError
        The file is missing or damaged, or holds no matrix of numbers.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates headers: anything may come of a damaged one
        raise ModelError(
            path, "array", f"can't be read ({error})", "give a file made by numpy.save"
        ) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ModelError(
            path, "array", f"has shape {array.shape} and dtype {array.dtype}",
            "give one sequence of numbers, of shape (T, I)",
        )  # fmt: skip
    with np.errstate(over="ignore"):  # what is not finite is refused later, by its place
        return np.array(array, np.float32)


def write_outputs(path: str | os.PathLike[str], outputs: F32 | Mapping[str, F32]) -> None:
    """Write an array to a ``.npy`` file, or several to an ``.npz`` file, of exactly this name.

    Raises
    ------
    ModelError
        It can't be written.
    """
    content = io.BytesIO()  # numpy's own errors of a full disk don't say so
    if isinstance(outputs, Mapping):
        np.savez(content, **cast("dict[str, Any]", dict(outputs)))
    else:
        np.save(content, outputs)
    try:
        Path(path).write_bytes(content.getbuffer())
    except OSError as error:
        raise ModelError(
            path, "file", f"can't be written ({error.strerror})", "choose another place"
        ) from error


def inputs(
    network: Network, path: str | None = None, steps: int | None = None, seed: int | None = None
) -> F32:
    """A sequence from a file, or else of normally distributed numbers, (T, I).

    Raises
    ------
    ModelError
        The file can't be read, or steps or a seed are given with it.
    """
    if path is None:
        rng = np.random.default_rng(seed or 0)
        size = (steps or STEPS, network.layers[0][0].inputs)
        return rng.standard_normal(size, np.float32)
    if steps is not None or seed is not None:
        raise ModelError(path, "--steps and --seed", "are for random inputs", "leave them out")
    return read_inputs(path)


def batch(
    network: Network, paths: Sequence[str], steps: Sequence[int], seed: int | None
) -> list[F32]:
    """Sequences from files, or else random ones of so many steps each; one where nothing is said.

    Raises
    ------
    ModelError
        As for `inputs`.
    """
    if paths:
        return [inputs(network, path, steps[0] if steps else None, seed) for path in paths]
    return [inputs(network, None, each, (seed or 0) + n) for n, each in enumerate(steps or [STEPS])]


def run(
    model: Model,
    inputs: npt.ArrayLike | list[F32],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    table: EnergyTable,
    name: str | None = None,
    events: str | os.PathLike[str] | None = None,
    threads: int = 1,
) -> SequenceRun:
    """Run a sequence through one of a model's networks in float32 and on an accelerator.

    Parameters
    ----------
    model : Model
    inputs : float array of shape (T, I), or a list of such
        Several sequences run as a batch.
    arithmetic : Arithmetic
    accelerator : Accelerator
    table : EnergyTable
    name : str, optional
        The network's, where the model has several.
    events : path-like, optional
    threads : int
        As for `emulate`.

    Raises
    ------
    EpurError
        There is no such network, or something does not fit.
    """
    network = choose(model, name)
    check_layers(model, arithmetic)
    if network.host_between:
        raise ModelError(
            model.path / CARD, f"network {network.name}", "is joined by computation of its task",
            "give an input of the task instead of an array",
        )  # fmt: skip
    parts = [np.asarray(x, np.float32) for x in (inputs if isinstance(inputs, list) else [inputs])]
    for x in parts:
        if x.ndim != 2 or not len(x):
            raise NetworkError("inputs", "shape", f"is {x.shape}", "give (T, I), at least one step")
    alpha, calibrated = dict(model.alpha), None
    gates = [arithmetic.at(p.name, gate) for p in network.passes for gate in GATES]
    linear = any(isinstance(f, LinearFormat) for a in gates for f in (a.input, a.output))
    if dataflow_of(accelerator).rounds == "epur-mwl" or linear:
        calibrated = "card"
        if any(key not in alpha for p in network.passes for key in (p.name, f"{p.name}.input")):
            alpha, calibrated = calibrate(network, parts), "inputs"
    theirs = _emulate(network, parts, ARITHMETICS["float32"], accelerator, alpha)
    ours = _emulate(network, parts, arithmetic, accelerator, alpha, events, threads)
    layers = []
    stats = {found.name: found for found in ours.stats}
    for passes, a, b in zip(network.layers, ours.layers, theirs.layers, strict=True):
        ends = np.cumsum([p.cells for p in passes])[:-1]
        for p, difference in zip(passes, np.split(a - b, ends, -1), strict=True):
            seen = stats[p.name]
            layers.append(Layer.of(seen, _largest(difference)))
    projection = model.host.get(f"{network.name}.projection")
    wanted, found = (
        y.outputs if projection is None else y.outputs @ projection.T for y in (theirs, ours)
    )
    return SequenceRun(
        model.name, network.name, arithmetic.name, accelerator.name, np.concatenate(parts),
        tuple(map(len, parts)), wanted, found, tuple(layers), ours.cycles,
        accelerator.seconds(ours.cycles), calibrated, energy(ours.trace, table), ours.trace,
        events is not None,
    )  # fmt: skip


def _emulate(
    network: Network, parts: list[F32], arithmetic: Arithmetic, accelerator: Accelerator,
    alpha: dict[str, float], events: str | os.PathLike[str] | None = None, threads: int = 1,
) -> Result:  # fmt: skip
    """Run one sequence, or several as a batch whose outputs stand one after another."""
    if len(parts) == 1:
        return emulate(
            network, parts[0], arithmetic, accelerator, alpha, threads=threads, events=events
        )
    done = emulate_batch(
        network, parts, arithmetic, accelerator, alpha, threads=threads, events=events
    )
    layers = tuple(np.concatenate(same) for same in zip(*done.layers, strict=True))
    return Result(
        layers[-1], layers, done.trace, done.cycles, done.stats, done.timing, done.policies
    )


def _largest(differences: F32) -> float:
    return float(np.abs(differences).max(initial=0.0))


def _shown(array: F32) -> dict[str, Any]:
    values = array.tolist() if array.size <= SHOWN else None
    return {"shape": array.shape, "values": values}
