"""Dataflows: from shapes and lengths to a `Schedule` of streams, operations and cycles. No weights are needed.

A new dataflow is one module with a `Dataflow`, and one line in `DATAFLOWS`.
"""

from __future__ import annotations

from collections.abc import Sequence

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import batch, decode, epur, mwl, tiled
from epur_emu.dataflow.layout import Machine, Schedule, Shape
from epur_emu.dataflow.regions import Dataflow
from epur_emu.dataflow.timing import PhaseTiming, Policy
from epur_emu.errors import AcceleratorError
from epur_emu.network import check_joined

__all__ = [
    "DATAFLOWS",
    "Dataflow",
    "PhaseTiming",
    "Policy",
    "Schedule",
    "Shape",
    "dataflow_of",
    "schedule_batch",
    "schedule_decode",
    "schedule_sequence",
]

DATAFLOWS: dict[str, Dataflow] = {
    "epur": epur.DATAFLOW,
    "epur-mwl": mwl.DATAFLOW,
    "epur-batch": batch.DATAFLOW,
    "epur-tiled": tiled.DATAFLOW,
}


def dataflow_of(accelerator: Accelerator) -> Dataflow:
    """The accelerator's dataflow.

    Raises
    ------
    AcceleratorError
        It is unknown; the message lists those that there are.
    """
    if accelerator.dataflow not in DATAFLOWS:
        raise AcceleratorError(
            accelerator.name, "dataflow", f"is {accelerator.dataflow!r}",
            f"use one of {', '.join(DATAFLOWS)}",
        )  # fmt: skip
    return DATAFLOWS[accelerator.dataflow]


def schedule_sequence(
    shape: Shape,
    steps: int,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    given_state: bool = False,
    cycle: int = 0,
    dram: int = 0,
) -> Schedule:
    """Evaluate a sequence whose inputs are all known, in the accelerator's dataflow.

    Parameters
    ----------
    shape : tuple of tuple of LayerShape
        `Network.shape`.
    steps : int
        Time steps.
    arithmetic : Arithmetic
        Its formats' widths count, gate by gate.
    accelerator : Accelerator
    given_state : bool
        Whether the initial states are given (in DRAM) or zero.
    cycle, dram : int
        Where the schedule begins, in time and in DRAM.

    Raises
    ------
    NetworkError
        A layer has no pass, over two, or those of different inputs, or a name stands twice. The widths
        of layers need not agree: a projection may stand between them.
    AcceleratorError
        Something does not fit; the message names it and what would fit.
    """
    check_joined("shape", shape, host_between=True)
    _check_steps(steps)
    machine = Machine(accelerator, arithmetic, shape)
    return dataflow_of(accelerator).run(shape, [steps], machine, given_state, cycle, dram)


def schedule_batch(
    shape: Shape,
    lengths: Sequence[int],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    given_state: bool = False,
    cycle: int = 0,
    dram: int = 0,
) -> Schedule:
    """Evaluate several sequences that share each fetch of the weights; see `schedule_sequence`.

    Parameters
    ----------
    lengths : sequence of int
        Time steps of each sequence.

    Raises
    ------
    AcceleratorError
        Something does not fit, or the accelerator's dataflow takes one sequence at a time.
    """
    dataflow = dataflow_of(accelerator)
    if not dataflow.batches:
        able = ", ".join(name for name, each in DATAFLOWS.items() if each.batches)
        raise AcceleratorError(
            accelerator.name, "dataflow", f"is {accelerator.dataflow}, one sequence at a time",
            f"use {able} for several",
        )  # fmt: skip
    check_joined("shape", shape, host_between=True)
    for steps in lengths:
        _check_steps(steps)
    machine = Machine(accelerator, arithmetic, shape)
    return dataflow.run(shape, lengths, machine, given_state, cycle, dram)


def schedule_decode(
    shape: Shape,
    steps: int,
    arithmetic: Arithmetic,
    accelerator: Accelerator,
    host_between: bool = False,
    given_state: bool = False,
    cycle: int = 0,
    dram: int = 0,
) -> Schedule:
    """Decode `steps` time steps whose inputs become known one by one; see `schedule_sequence`.

    Parameters
    ----------
    host_between : bool
        Whether the host computes between the layers, so that each reads its input from DRAM.
    """
    check_joined("shape", shape, host_between=True)
    _check_steps(steps)
    machine = Machine(accelerator, arithmetic, shape)
    return decode.schedule(shape, steps, machine, host_between, given_state, cycle, dram)


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise AcceleratorError("sequence", "steps", f"are {steps}", "give 0 or more")
