"""Where a sequence's data lies in DRAM and in the intermediate memory, whatever the order of evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epur_emu.dataflow.layout import (
    PEEPHOLE_GATES,
    Builder,
    Given,
    Machine,
    Schedule,
    Shape,
    store,
)
from epur_emu.network import GATES, LayerShape


def row_bursts(m: Machine, shape: LayerShape, subs: int) -> list[int]:
    """DRAM bursts of one neuron's row of so many sub-vectors in each gate."""
    return [m.bursts(subs * size) for size in m.of(shape).sw.values()]


def parameter_bytes(m: Machine, shape: LayerShape) -> dict[str, int]:
    """By gate, bytes of biases and peepholes in the parameter bank."""
    own = m.of(shape)
    return {q: own.nh * size * (2 if shape.peepholes else 1) for q, size in own.sb.items()}


def parameter_bursts(m: Machine, shape: LayerShape) -> int:
    """DRAM bursts of all gates' biases and peepholes."""
    own = m.of(shape)
    held = [*GATES, *(PEEPHOLE_GATES if shape.peepholes else ())]
    return sum(m.bursts(own.nh * own.sb[q]) for q in held)


def state_bursts(m: Machine, shape: LayerShape) -> int:
    """DRAM bursts of a given initial h and c."""
    own = m.of(shape)
    return m.bursts(own.nh * m.sx) + m.bursts(own.nh * own.sc)


def input_pitch(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes from one input row to the next."""
    return m.bursts(m.of(shape).nx * m.sx) * m.burst


def passes(shape: Shape) -> list[LayerShape]:
    """All passes in order."""
    return [p for layer in shape for p in layer]


@dataclass(frozen=True)
class Order:
    """What a dataflow adds to the common plan of a sequence.

    Parameters
    ----------
    weight_bytes : callable
        DRAM bytes of a pass's weights, biases and peepholes.
    check : callable
        Raises `AcceleratorError` where a pass of so many steps does not fit; further arguments are
        the bytes of an input row and of an output row in the intermediate memory.
    run_pass : callable
        Emits a pass, number d of its layer; returns the cycle after its end.
    """

    weight_bytes: Callable[[Machine, LayerShape], int]
    check: Callable[[Machine, LayerShape, int, int, int], None]
    run_pass: Callable[[Builder, LayerShape, Given, int], int]


def sequence(
    order: Order, shape: Shape, steps: int, m: Machine, given_state: bool, cycle: int, dram: int
) -> Schedule:
    """A sequence of `steps` time steps through all layers, from DRAM to DRAM."""
    end = -(-dram // m.burst) * m.burst
    weights, states = {}, {}
    for p in passes(shape):
        weights[p.name] = end
        end += order.weight_bytes(m, p)
    inputs = end
    end += steps * input_pitch(m, shape[0][0])
    for p in passes(shape) if given_state else []:
        states[p.name] = end
        end += state_bursts(m, p) * m.burst
    outputs, final = end, steps * m.pitch(shape[-1])
    end += m.bursts(final) * m.burst
    for number, layer in enumerate(shape):
        pitch = m.pitch(layer)
        m.need(
            steps * pitch, "half of intermediate_bytes", m.half,
            f"the output of {steps} steps of {layer[0].name}", f"give at most {m.half // pitch} steps",
        )  # fmt: skip
        for p in layer:
            m.need(
                max(parameter_bytes(m, p).values()), "parameter_bank_bytes",
                m.accelerator.parameter_bank_bytes,
                f"one gate of {p.name}", "use a smaller layer or format, or a larger bank",
            )  # fmt: skip
            order.check(m, p, steps, m.of(p).nx * (m.sy if number else m.sx), pitch)
    m.need(end, "dram_bytes", m.accelerator.dram_bytes, "the network", "use a shorter sequence")
    if steps == 0:
        return Schedule((), cycle, m.components(), end)
    b = Builder(m)
    for number, layer in enumerate(shape):
        half = place = (number + 1) % 2 * m.half
        for d, p in enumerate(layer):
            given = Given(
                cycle, steps, weights[p.name], "intermediate" if number else "dram",
                number % 2 * m.half if number else inputs, place, half, m.pitch(layer),
                "dram" if given_state else "zero", states.get(p.name, 0),
            )  # fmt: skip
            cycle = order.run_pass(b, p, given, d)
            place += p.cells * m.ye
    cycle = store(b, shape[-1][-1].name, len(shape) % 2 * m.half, outputs, final, cycle)
    return Schedule(b.phases(), cycle, m.components(), end)
