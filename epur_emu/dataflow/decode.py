"""Autoregressive decoding: the input of a step is known only after the step before.

Each step runs through all layers in E-PUR's order, one time step a layer, on either machine's buffers: with one
time step there is nothing to reorder, and no partial sum is stored.
"""

from __future__ import annotations

from collections.abc import Callable

from epur_emu.dataflow.epur import check_vectors, dram_bytes, matrix_bytes, run_pass
from epur_emu.dataflow.layout import AT_ZERO, Builder, Given, Machine, Run, Schedule, Shape, store
from epur_emu.dataflow.regions import input_pitch, parameter_bytes, state_bursts
from epur_emu.errors import AcceleratorError
from epur_emu.network import GATES, LayerShape


def resident(needs: list[int], capacity: int) -> int | None:
    """How many layers of these sizes stay in a buffer for good; None if the rest cannot take turns."""
    if sum(needs) <= capacity:
        return len(needs)
    for count in range(len(needs) - 1, -1, -1):
        if sum(needs[:count]) + max(needs[count:]) <= capacity:
            return count
    return None


def _places(sizes: list[dict[str, int]], stay: int) -> list[dict[str, int]]:
    """By gate, where each layer lies behind those of the first `stay` that come before it."""
    places = [AT_ZERO]
    for own in sizes[:stay]:
        places.append({q: place + own[q] for q, place in places[-1].items()})
    return [places[min(number, stay)] for number in range(len(sizes))]


def schedule(
    shape: Shape,
    steps: int,
    m: Machine,
    host_between: bool,
    given_state: bool,
    cycle: int,
    dram: int,
    emit: Callable[[Builder, LayerShape, Given, int, int], Run] = run_pass,
) -> Schedule:
    """`steps` time steps, each through all layers; the host gives each step's input.

    `emit` makes each pass: all of the first step's, then all of the later ones' twice, at last repeated.
    """
    if any(len(layer) != 1 or layer[0].reverse for layer in shape):
        raise AcceleratorError(
            "network", "layers", "read their sequence backwards", "decode with forward layers only"
        )
    layers = [layer[0] for layer in shape]
    a = m.accelerator
    needs = [matrix_bytes(m, p) for p in layers]
    banks = [parameter_bytes(m, p) for p in layers]
    kept = []
    for held, place in ((needs, "weight_buffer_bytes"), (banks, "parameter_bank_bytes")):
        for q in GATES:
            sizes = [own[q] for own in held]
            count = resident(sizes, getattr(a, place))
            if count is None:
                m.need(max(sizes), place, getattr(a, place), f"gate {q} of the largest layer",
                       "use a smaller layer or format, or a larger buffer")  # fmt: skip
            kept.append(count or 0)
    stay = min(kept)
    matrices, offsets = (_places(held, stay) for held in (needs, banks))
    for p in layers:
        check_vectors(m, p)

    end = -(-dram // m.burst) * m.burst
    weights, inputs, given, outputs = [], {}, [], {}
    for p in layers:
        weights.append(end)
        end += dram_bytes(m, p)
    for number, p in enumerate(layers):
        if number == 0 or host_between:
            inputs[number] = end
            end += steps * input_pitch(m, p)
    for p in layers if given_state else []:
        given.append(end)
        end += state_bursts(m, p) * m.burst
    for number, p in enumerate(layers):
        if number == len(layers) - 1 or host_between:
            outputs[number] = end
            end += steps * m.bursts(m.of(p).nh * m.sy) * m.burst
    states, state = [], 0
    for p in layers:
        states.append(state)
        state += m.of(p).nh * (m.sy + m.of(p).sc)
    m.need(
        state, "intermediate_bytes", a.intermediate_bytes, "the layers' states", "use fewer cells"
    )
    m.need(end, "dram_bytes", a.dram_bytes, "the network", "decode fewer steps")

    def step(b: Builder, cycle: int, first: bool) -> int:
        for number, p in enumerate(layers):
            h = m.of(p).nh * m.sy
            initial = ("dram" if given_state else "zero") if first else "intermediate"
            if number in inputs:
                pitch = input_pitch(m, p)
                source, address, move = "dram", inputs[number] + (0 if first else pitch), pitch
            else:
                source, address, move = "intermediate", states[number - 1], 0
            where = given[number] if first and given_state else states[number]
            placed = Given(
                cycle, 1, weights[number], source, address, states[number], states[number], h,
                initial, where, first or number >= stay, matrices[number], offsets[number],
            )  # fmt: skip
            cycle = emit(b, p, placed, states[number] + h, move).end
            if number in outputs:
                row = m.bursts(h) * m.burst
                at = outputs[number] + (0 if first else row)
                cycle = store(b, p.name, states[number], at, h, cycle, row)
        return cycle

    if steps == 0:
        return Schedule((), cycle, m.components(), end)
    b = Builder(m)
    cycle = step(b, cycle, first=True)
    if steps > 1:
        # Later steps are alike: measure one, then fold all into one loop.
        period = step(Builder(m), cycle, first=False) - cycle
        b.repeat = (steps - 1, period)
        step(b, cycle, first=False)
        cycle += (steps - 1) * period
        for p in layers[stay:]:
            b.policy(p.name, "weights", "refetch", "the layer is loaded at every step")
    return b.schedule(cycle, end)
