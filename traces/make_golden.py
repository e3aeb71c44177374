"""Make the golden traces beside this file: ``python traces/make_golden.py [NAME ...]``.

They are compared by content. Make one anew only where the hardware model of ``docs/dataflow.md`` is
meant to change; ``format-1.0``, ``2.0`` and ``3.0`` never: they are read, not written, for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.dataflow import Schedule, schedule_batch, schedule_decode, schedule_sequence
from epur_emu.network import LayerShape
from epur_emu.streams import AccessStream, Component, Phase
from epur_emu.trace import Accesses, EventWriter, Trace
from epur_emu.trace.accesses import Runs

#: Cycle, address, bytes, counts, address strides, cycle strides.
LOOPS = 70, 640, 32, (4, 6), (-128, 32), (9, 1)

FOLDER = Path(__file__).parent


def by_hand() -> Trace:
    """Every kind of content that the format knows."""
    components = (
        Component("cu.i.weights", 4 << 20, 256, 8),
        Component("intermediate", 6 << 20, 256, 16),
        Component("dram", None, 512, 1),
    )
    fetch = AccessStream("dram", "read", 64, 1 << 40, 0, ((20, 64, 2),))
    six = AccessStream(
        "cu.i.weights", "read", 32, 7, 8,
        ((2, 0, 900), (2, 7, 400), (2, -7, 150), (3, 64, 40), (4, 0, 9), (5, 32, 2)),
    )  # fmt: skip
    same_cycle = AccessStream("intermediate", "write", 2, 64, 30, ((3, -2, 0),))
    single = AccessStream("intermediate", "read", 2, 6, 1 << 50)
    phases = (
        Phase("encoder.0.forward", "load", (fetch,), (("link", "link", 0),)),
        Phase("encoder.0.forward", "forward", (six, same_cycle), (("multiply", "dpu", 1 << 60),)),
        Phase("encoder.0.forward", "recurrent", (single,)),
        Phase("décodeur", "mu", (), (("exp", "mu", 12), ("add", "dpu", 3))),
        Phase("décodeur", "store"),
    )
    events = Accesses.of(
        [5, 5, 2, 1 << 55], [2, 0, 2, 2], [1, 0, 0, 1], [640, 3, 64, 0], [64, 32, 64, 1]
    )
    meta = {"network": "by hand", "lengths": [1, 2], "nested": {"ä": None, "x": 1.5}}
    return Trace(phases, components, 1 << 56, meta, events, complete=False)


def with_loops() -> Trace:
    """The same, with events in two loops."""
    trace = by_hand()
    cycle, address, _, count, by, wait = LOOPS
    outer, inner = np.indices(count).reshape(2, -1)
    more = Accesses.of(
        cycle + outer * wait[0] + inner * wait[1], np.zeros(len(outer), int),
        np.zeros(len(outer), int), address + outer * by[0] + inner * by[1], np.full(len(outer), 32),
    )  # fmt: skip
    trace.append((), more)
    return trace


def save_with_loops(path: Path) -> None:
    """Write `with_loops`; `Trace.save` would give each turn a row."""
    trace = by_hand()
    cycle, address, size, count, by, wait = LOOPS
    first = (np.array([number]) for number in (cycle, address, size))
    loops = (np.array([pair]).T.copy() for pair in (count, by, wait))
    with closing(EventWriter(path, trace.components)) as writer:
        for component in range(3):
            own = trace.events[trace.events.component == component]
            if len(own):
                writer.runs(component, Runs(own.cycle, own.address, own.bytes, own.op))
        writer.runs(0, Runs(*first, np.zeros(1, np.uint8), *loops))
        writer.finish(writer._content(trace.phases, trace.cycles, trace.meta, complete=False))


def of_schedule(
    make: Callable[..., Schedule], accelerator: str, layers: str, steps: int | list[int] = 3
) -> Trace:
    """A few steps of a small network; cells and inputs that are no multiples of the DPU's width."""
    first = [LayerShape("0.forward", 20, 18, peepholes=True)]
    if layers == "bidirectional":
        first.append(LayerShape("0.backward", 20, 18, peepholes=True, reverse=True))
    second = LayerShape("1.forward", sum(layer.cells for layer in first), 33)
    schedule = make(
        (tuple(first), (second,)), steps, arithmetic("epur-fp16"), Accelerator.load(accelerator)
    )
    meta = {
        "network": layers,
        "steps": steps,
        "arithmetic": "epur-fp16",
        "accelerator": accelerator,
    }
    return Trace(schedule.phases, schedule.components, schedule.cycles, meta)


GOLDEN: dict[str, Callable[[], Trace]] = {
    "format-1.0": by_hand,
    "format-2.0": by_hand,
    "format-3.0": with_loops,
    "epur-sequence": lambda: of_schedule(schedule_sequence, "epur", "bidirectional"),
    "epur-mwl-sequence": lambda: of_schedule(schedule_sequence, "epur-mwl", "bidirectional"),
    "epur-batch-sequences": lambda: of_schedule(
        schedule_batch, "epur-batch", "bidirectional", [2, 4, 3]
    ),
    "epur-tiled-sequence": lambda: of_schedule(schedule_sequence, "epur-tiled", "bidirectional"),
    "epur-decode": lambda: of_schedule(schedule_decode, "epur", "unidirectional"),
}


if __name__ == "__main__":
    for name in sys.argv[1:] or GOLDEN:
        path = FOLDER / f"{name}.h5"
        if name == "format-3.0":
            save_with_loops(path)
        else:
            GOLDEN[name]().save(path)
