"""Dataflows: from shapes and lengths to a `Schedule` of streams, operations and cycles. No weights are needed.

A new dataflow is one module with an `Order`, and one line in `DATAFLOWS`.
"""

from __future__ import annotations

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Arithmetic
from epur_emu.dataflow import decode, epur, mwl, regions
from epur_emu.dataflow.layout import Machine, Schedule, Shape
from epur_emu.errors import AcceleratorError

__all__ = ["DATAFLOWS", "Schedule", "Shape", "schedule_decode", "schedule_sequence"]

DATAFLOWS = {"epur": epur.ORDER, "epur-mwl": mwl.ORDER}


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
    AcceleratorError
        Something does not fit; the message names it and what would fit.
    """
    if accelerator.dataflow not in DATAFLOWS:
        raise AcceleratorError(
            accelerator.name, "dataflow", f"is {accelerator.dataflow!r}",
            f"use one of {', '.join(DATAFLOWS)}",
        )  # fmt: skip
    order = DATAFLOWS[accelerator.dataflow]
    machine = Machine(accelerator, arithmetic, shape)
    return regions.sequence(order, shape, steps, machine, given_state, cycle, dram)


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
    machine = Machine(accelerator, arithmetic, shape)
    return decode.schedule(shape, steps, machine, host_between, given_state, cycle, dram)
