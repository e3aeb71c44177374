"""Where a sequence's data lies in DRAM and in the intermediate memory, whatever the order of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from epur_emu.dataflow.layout import (
    AT_ZERO,
    PEEPHOLE_GATES,
    Builder,
    Given,
    Machine,
    Run,
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


class Check(Protocol):
    """Raises `AcceleratorError` where a pass does not fit."""

    def __call__(
        self, m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int, spilled: bool
    ) -> None:
        """The pitches are the bytes of an input row and of an output row in the intermediate memory."""
        raise NotImplementedError


@dataclass(frozen=True)
class Order:
    """What a dataflow adds to the common plan of a sequence.

    Parameters
    ----------
    weight_bytes : callable
        DRAM bytes of a pass's weights, biases and peepholes.
    check : Check
    run_pass : callable
        Emits a pass, number d of its layer; returns when it ends.
    stand_in : callable, optional
        The order of a layer that does not fit in this one.
    prefetch : callable, optional
        Emits the fetch of all of a pass's weights before it begins; returns the end.
    needs : callable, optional
        By gate, bytes of a pass in the weight buffer: all of it stays there while the pass runs.
    spills : bool
        Whether outputs can go to DRAM step by step.
    watched : bool
        Whether `run_pass` must see every pass, those that equal another included.
    """

    weight_bytes: Callable[[Machine, LayerShape], int]
    check: Check
    run_pass: Callable[[Builder, LayerShape, Given, int], Run]
    stand_in: Callable[[Machine, Sequence[LayerShape]], Order | None] | None = None
    prefetch: Callable[[Builder, LayerShape, Given], int] | None = None
    needs: Callable[[Machine, LayerShape], dict[str, int]] | None = None
    spills: bool = False
    watched: bool = False

    def of(self, m: Machine, layer: Sequence[LayerShape]) -> Order:
        """The order of a layer: this one, or the one that stands in for it."""
        return (self.stand_in and self.stand_in(m, layer)) or self


@dataclass(frozen=True)
class Dataflow:
    """An entry of the registry.

    Parameters
    ----------
    rounds : {"epur", "epur-mwl"}
        Whose roundings its outputs have: those of one accumulation, or of a stored forward sum that is
        added to the recurrent one.
    run : callable
        From shape, lengths of the sequences, machine, whether initial states are given, cycle and DRAM
        address to a Schedule.
    batches : bool
        Whether it takes several sequences together.
    """

    rounds: str
    run: Callable[[Shape, Sequence[int], Machine, bool, int, int], Schedule]
    batches: bool = False

    @classmethod
    def of(cls, order: Order, rounds: str = "epur") -> Dataflow:
        """The dataflow that takes a sequence's passes one by one, in an order."""

        def run(
            shape: Shape, lengths: Sequence[int], m: Machine, given: bool, cycle: int, dram: int
        ) -> Schedule:
            (steps,) = lengths
            return sequence(order, shape, steps, m, given, cycle, dram)

        return cls(rounds, run)


@dataclass
class Buffers:
    """With double buffering: where passes lie in the weight buffers, and the pass before the next.

    Parameters
    ----------
    order : Order
        Of the passes that can be prefetched.
    """

    order: Order
    _before: tuple[LayerShape, bool, int] | None = None

    def place(self, b: Builder, shape: LayerShape, given: Given, order: Order) -> Given:
        """When a pass begins and where its weights lie, once it is prefetched, if it can be."""
        m, before = b.machine, self._before
        fetch, needs = self.order.prefetch, self.order.needs
        if not m.accelerator.double_buffering or fetch is None or needs is None:
            return given
        self._before = None
        if order is not self.order:
            return given
        self._before = shape, False, 0
        if before is None:
            return given
        other, at_end, free = before
        a = m.accelerator
        rooms = ((needs, a.weight_buffer_bytes), (parameter_bytes, a.parameter_bank_bytes))
        places = []
        for need, room in rooms:
            own, others = need(m, shape), need(m, other)
            if any(own[q] + others[q] > room for q in GATES):
                return given
            places.append(AT_ZERO if at_end else {q: room - own[q] for q in GATES})
        matrix, bank = places
        placed = replace(given, load=False, matrix=matrix, bank=bank)
        ready = fetch(b, shape, replace(placed, cycle=free))
        wait = max(0, ready - given.cycle)
        b.time(shape.name, "load", weights=wait)
        b.policy(shape.name, "weights", "prefetched", f"during {other.name}")
        self._before = shape, not at_end, 0
        return replace(placed, cycle=given.cycle + wait)

    def ran(self, given: Given, run: Run) -> None:
        """Tell when the pass that was placed last leaves the channel free."""
        if self._before is not None:
            shape, at_end, _ = self._before
            self._before = shape, at_end, run.loaded if given.load else given.cycle


@dataclass
class Passes:
    """Emits passes one by one; one that equals a pass before, but for its place, is that one moved."""

    builder: Builder
    _made: list[tuple[Order, LayerShape, Given, Run]] = field(default_factory=list)

    def run(self, order: Order, shape: LayerShape, given: Given, direction: int) -> Run:
        """Emit pass number `direction` of a layer; returns when it ends."""
        for other, model, first, run in self._made:
            if other is order and self._equal(model, first, shape, given):
                wait = given.cycle - first.cycle
                self._move(order, model, first, shape, given, wait)
                return Run(run.end + wait, run.loaded + wait)
        run = order.run_pass(self.builder, shape, given, direction)
        if given.load and not order.watched:
            self._made.append((order, shape, given, run))
        return run

    def _equal(self, model: LayerShape, first: Given, shape: LayerShape, given: Given) -> bool:
        m = self.builder.machine
        flip = given.half_address - first.half_address
        there = replace(
            first, cycle=given.cycle, dram_weights=given.dram_weights,
            half_address=given.half_address, out_address=first.out_address + flip,
            source_address=first.source_address - (flip if first.source == "intermediate" else 0),
        )  # fmt: skip
        return there == given and replace(model, name=shape.name) == shape and m.of(model) == m.of(shape)

    def _move(
        self, order: Order, model: LayerShape, first: Given, shape: LayerShape, given: Given, wait: int
    ) -> None:
        m, begin = self.builder.machine, first.dram_weights
        regions = [("dram", begin, begin + order.weight_bytes(m, model), given.dram_weights - begin)]
        if given.half_address != first.half_address:
            regions.append(("intermediate", 0, m.half, m.half))
            regions.append(("intermediate", m.half, 2 * m.half, -m.half))
        self.builder.again(model.name, shape.name, wait, regions)


def check_bank(m: Machine, shape: LayerShape) -> None:
    """Raise `AcceleratorError` unless biases and peepholes fit in the parameter banks."""
    m.need(
        max(parameter_bytes(m, shape).values()), "parameter_bank_bytes",
        m.accelerator.parameter_bank_bytes,
        f"one gate of {shape.name}", "use a smaller layer or format, or a larger bank",
    )  # fmt: skip


def check_output(m: Machine, layer: Sequence[LayerShape], steps: int) -> None:
    """Raise `AcceleratorError` unless a layer's output rows fit in a half of the intermediate memory."""
    pitch = m.pitch(layer)
    m.need(
        steps * pitch, "half of intermediate_bytes", m.half,
        f"the output of {steps} steps of {layer[0].name}", f"give at most {m.half // pitch} steps",
    )  # fmt: skip


def sequence(
    order: Order, shape: Shape, steps: int, m: Machine, given_state: bool, cycle: int, dram: int
) -> Schedule:
    """A sequence of `steps` time steps through all layers, from DRAM to DRAM."""
    orders = [order.of(m, layer) for layer in shape]
    large = any(steps * m.pitch(layer) > m.half for layer in shape)
    spilled = large and all(each.spills for each in orders)
    end = -(-dram // m.burst) * m.burst
    weights, states, spills = {}, {}, {}
    for each, layer in zip(orders, shape, strict=True):
        for p in layer:
            weights[p.name] = end
            end += each.weight_bytes(m, p)
    inputs = end
    end += steps * input_pitch(m, shape[0][0])
    for p in passes(shape) if given_state else []:
        states[p.name] = end
        end += state_bursts(m, p) * m.burst
    outputs, final = end, steps * m.pitch(shape[-1])
    if spilled:
        for p in passes(shape):
            spills[p.name] = end
            end += steps * m.bursts(m.of(p).nh * m.sy) * m.burst
    else:
        end += m.bursts(final) * m.burst
    for number, (each, layer) in enumerate(zip(orders, shape, strict=True)):
        if not spilled:
            check_output(m, layer, steps)
        for p in layer:
            check_bank(m, p)
            x_pitch = m.of(p).nx * (m.sy if number else m.sx)
            each.check(m, p, steps, x_pitch, m.pitch(layer), spilled)
    m.need(end, "dram_bytes", m.accelerator.dram_bytes, "the network", "use a shorter sequence")
    if steps == 0:
        return Schedule((), cycle, m.components(), end)
    b, buffers = Builder(m), Buffers(order)
    emitted = Passes(b)
    if spilled:
        b.policy("", "sequence", "spill", f"outputs of {steps} time steps go to DRAM, step by step")
    for number, (each, layer) in enumerate(zip(orders, shape, strict=True)):
        half = place = (number + 1) % 2 * m.half
        source, address = "dram", inputs
        if number:
            source, address = "spilled" if spilled else "intermediate", number % 2 * m.half
        before = shape[number - 1] if number and spilled else ()
        parts = tuple((spills[p.name], m.of(p).nh) for p in before)
        for d, p in enumerate(layer):
            given = Given(
                cycle, steps, weights[p.name], source, address, place, half, m.pitch(layer),
                "dram" if given_state else "zero", states.get(p.name, 0),
                parts=parts, spill=spills.get(p.name),
            )  # fmt: skip
            given = buffers.place(b, p, given, each)
            run = emitted.run(each, p, given, d)
            buffers.ran(given, run)
            cycle = run.end
            place += p.cells * m.ye
    if not spilled:
        cycle = store(b, shape[-1][-1].name, len(shape) % 2 * m.half, outputs, final, cycle)
    return b.schedule(cycle, end)
