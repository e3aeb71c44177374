"""E-PUR's order: for each time step, for each neuron, forward then recurrent product in one accumulator.

It rounds as the datapath does and nowhere else: sums are never stored before they are complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from epur_emu.dataflow import mu, tiled
from epur_emu.dataflow.layout import (
    Builder,
    Given,
    Machine,
    Run,
    cus,
    fetch_rows,
    load_parameters,
    load_state,
)
from epur_emu.dataflow.regions import Dataflow, Order, parameter_bursts, row_bursts
from epur_emu.network import LayerShape
from epur_emu.streams import Loop


def matrix_bytes(m: Machine, shape: LayerShape) -> dict[str, int]:
    """By gate, bytes of a pass's weights in the weight buffer, without biases and peepholes."""
    own = m.of(shape)
    return {q: shape.cells * (own.nx + own.nh) * size for q, size in own.sw.items()}


def rows_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights without biases and peepholes."""
    own = m.of(shape)
    return shape.cells * sum(row_bursts(m, shape, own.nx + own.nh)) * m.burst


def dram_bytes(m: Machine, shape: LayerShape) -> int:
    """DRAM bytes of a pass's weights, biases and peepholes."""
    return rows_bytes(m, shape) + parameter_bursts(m, shape) * m.burst


def vector_bytes(m: Machine, shape: LayerShape) -> int:
    """Bytes of a sequence's x, two slots of h, and c in an input buffer."""
    own = m.of(shape)
    return (own.nx + 2 * own.nh) * m.sx + own.nh * own.sc


def check_vectors(m: Machine, shape: LayerShape) -> None:
    """Raise `AcceleratorError` unless the pass's vectors fit in the input buffers."""
    m.need(
        vector_bytes(m, shape), "input_buffer_bytes", m.accelerator.input_buffer_bytes,
        f"{shape.name} (x, two slots of h, c)", "use a narrower layer or format, or a larger buffer",
    )  # fmt: skip


def check_matrix(m: Machine, shape: LayerShape) -> None:
    """Raise `AcceleratorError` unless the pass's weights fit in the weight buffers."""
    m.need(
        max(matrix_bytes(m, shape).values()), "weight_buffer_bytes",
        m.accelerator.weight_buffer_bytes, f"one gate of {shape.name}",
        "use a smaller layer or format, a larger buffer, or the dataflow epur-tiled",
    )  # fmt: skip


def stand_in(m: Machine, layer: Sequence[LayerShape]) -> Order | None:
    """The order of a layer that does not fit: tiles, whose bits are the same."""
    a = m.accelerator
    for p in layer:
        large = max(matrix_bytes(m, p).values()) > a.weight_buffer_bytes
        if large or vector_bytes(m, p) > a.input_buffer_bytes:
            return tiled.ORDER
    return None


def check(
    m: Machine, shape: LayerShape, steps: int, x_pitch: int, pitch: int, spilled: bool
) -> None:
    """Raise `AcceleratorError` unless the pass fits in the buffers; `stand_in` has seen to some."""
    if spilled:
        size = 2 * m.of(shape).nh * m.sy
        what = f"two output rows of {shape.name}"
        m.need(size, "half of intermediate_bytes", m.half, what, "use a larger memory")


def prefetch(b: Builder, shape: LayerShape, given: Given) -> int:
    """Bring all weights of a pass before it begins, from `given.cycle` on; returns the end."""
    m, own = b.machine, b.machine.of(shape)
    n = own.nx + own.nh
    params = given.dram_weights + rows_bytes(m, shape)
    begin = given.cycle + m.channel(load_parameters(b, shape, params, given.cycle, given.bank))
    pace = m.channel(sum(row_bursts(m, shape, n)))
    turns = [(shape.cells, 1, 1, pace)]
    fetch_rows(b, shape, n, turns, given.dram_weights, begin, given.matrix)
    return begin + shape.cells * pace


def run_pass(
    b: Builder,
    shape: LayerShape,
    given: Given,
    saved_cell: int | None = None,
    advance: int = 0,
) -> Run:
    """Emit one pass; returns when it ends.

    Parameters
    ----------
    saved_cell : int, optional
        Where c_t is saved in the intermediate memory.
    advance : int
        Bytes by which the DRAM input moves on from one repetition to the next.
    """
    if given.steps == 0:
        return Run(given.cycle, given.cycle)
    matrix, bank = given.matrix, given.bank
    m, steps, cells = b.machine, given.steps, shape.cells
    own = m.of(shape)
    nx, nh = own.nx, own.nh
    n = nx + nh
    row = {q: n * size for q, size in own.sw.items()}
    h_slots, cell = nx * m.sx, (nx + 2 * nh) * m.sx
    slot = nh * m.sx
    bursts, pace, first_row = 0, n, 0
    if given.load:
        params = given.dram_weights + rows_bytes(m, shape)
        bursts = load_parameters(b, shape, params, given.cycle, bank)
    begin = load_state(b, shape, given, bursts, h_slots, cell)
    waits = {"weights": m.channel(bursts)}
    waits["state"] = begin - given.cycle - waits["weights"]
    if given.load:
        pace = first_row = max(n, m.channel(sum(row_bursts(m, shape, n))))
        fetch_rows(b, shape, n, [(cells, 1, 1, pace)], given.dram_weights, begin, matrix)
        waits["weights"] += first_row
    loaded = begin + (cells * pace if given.load else 0)
    begin += first_row
    b.time(shape.name, "load", **waits)

    t = mu.timeline(m.accelerator, shape.peepholes)
    ready = n - 1 + m.accelerator.dpu_latency
    tail = max(0, m.accelerator.dpu_latency + t.z - nx)
    second = begin + (cells - 1) * pace + n + tail
    period = cells * n + tail

    def per_step(
        kind: str, where: Iterable[str], op: str, size: int, address: int, stride: int, after: int,
        inner: list[Loop], neurons: int = 0, move: int = 0,
    ) -> None:  # fmt: skip
        """Step 0 at the pace of the load, then the others; `neurons` is the stride from one to the next."""
        where, phase = list(where), (shape.name, kind)
        first: list[Loop] = [(cells, neurons, pace)] if neurons >= 0 else []
        later: list[Loop] = [(cells, neurons, n)] if neurons >= 0 else []
        b.access(phase, where, op, size, address, begin + after, [*first, *inner], move)
        later = [(steps - 1, stride, period), *later, *inner]
        if steps > 1:
            b.access(phase, where, op, size, address + stride, second + after, later)

    def per_slot(
        kind: str, where: list[str], op: str, size: int, slots: int, slot: int, start: int,
        after: int, inner: list[Loop], neurons: int,
    ) -> None:  # fmt: skip
        """The same where two slots take turns from step to step, beginning with slot `start`."""
        phase = (shape.name, kind)
        address = slots + start * slot
        b.access(phase, where, op, size, address, begin + after, [(cells, neurons, pace), *inner])
        other, swing = slots + (1 - start) * slot, (2 * start - 1) * slot
        turns, rest = divmod(steps - 1, 2)
        loops = [(turns, 0, 2 * period), (2, swing, period), (cells, neurons, n), *inner]
        b.access(phase, where, op, size, other, second + after, loops)
        loops = [(rest, 0, 0), (cells, neurons, n), *inner]
        b.access(phase, where, op, size, other, second + 2 * turns * period + after, loops)

    def weights(kind: str, skip: int, subs: int) -> None:
        """Each gate's weights of a neuron, `subs` sub-vectors behind the first `skip`."""
        others: list[Loop] = [(steps - 1, 0, period)]
        for cycle, outer, wait in ((begin, [], pace), (second, others, n)):
            for q, sub in own.sw.items():
                loops = [*outer, (cells, row[q], wait), (subs, sub, 1)]
                where, at = [f"cu.{q}.weights"], matrix[q] + skip * sub
                b.access((shape.name, kind), where, "read", sub, at, cycle + skip, loops)

    forward, once = [(nx, m.sx, 1)], -1

    def in_time(stride: int) -> tuple[int, int]:
        """Where the first step in order of evaluation lies, and the stride to the next."""
        return ((steps - 1) * stride, -stride) if shape.reverse else (0, stride)

    def from_dram(address: int, subs: int, sub: int, after: int) -> None:
        start, stride = in_time(m.bursts(subs * sub) * m.burst)
        arrive = burst_loops(m, subs * sub, sub)
        where = address + start
        per_step("forward", ["dram"], "read", m.burst, where, stride, after, arrive, once, advance)

    if given.source == "dram":
        from_dram(given.source_address, nx, m.sx, 0)
    elif given.source == "spilled":
        before = 0
        for address, subs in given.parts:
            from_dram(address, subs, m.sy, before)
            before += subs
    else:
        start, stride = in_time(nx * m.sy)
        arrive, where = [(nx, m.sy, 1)], given.source_address + start
        per_step("forward", ["intermediate"], "read", m.sy, where, stride, 0, arrive, once)
    per_step("forward", cus("inputs"), "write", m.sx, 0, 0, 0, forward, once)
    weights("forward", 0, nx)
    per_step("forward", cus("inputs"), "read", m.sx, 0, 0, 0, forward, 0)
    weights("recurrent", nx, nh)
    inner: list[Loop] = [(nh, m.sx, 1)]
    per_slot("recurrent", cus("inputs"), "read", m.sx, h_slots, slot, 0, nx, inner, 0)

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        per_step("mu", where, op, size, address, 0, ready + after, [], stride)

    mu.accesses(m, shape, mu.Places(cell, bank, saved_cell), emit)
    per_slot("mu", cus("inputs"), "write", m.xe, h_slots, slot, 1, ready + t.z, [], m.xe)
    if given.spill is None:
        start, stride = in_time(given.pitch)
        where = given.out_address + start
        per_step("mu", ["intermediate"], "write", m.ye, where, stride, ready + t.z, [], m.ye)
    else:
        slots, size, z = given.half_address, nh * m.sy, t.z
        per_slot("mu", ["intermediate"], "write", m.ye, slots, size, 0, ready + z, [], m.ye)
    mu.count_dpu(b, shape, "forward", nx, steps)
    mu.count_dpu(b, shape, "recurrent", nh, steps)
    mu.count(b, shape, steps)
    last = begin + (cells - 1) * pace
    if steps > 1:
        last = second + (steps - 2) * period + (cells - 1) * n
    end = last + ready + t.z + 1
    unlinked = mu.timeline(m.accelerator, shape.peepholes, link=0).z
    direct = max(0, m.accelerator.dpu_latency + unlinked - nx)
    waits = {
        "weights": (cells - 1) * (pace - n),
        "recurrence": (steps - 1) * direct + m.accelerator.dpu_latency + unlinked,
        "link": (steps - 1) * (tail - direct) + t.z - unlinked,
    }
    if given.spill is not None:
        done = (
            begin + (cells - 1) * pace + ready + t.z + 1,
            second + (cells - 1) * n + ready + t.z + 1,
        )
        start, stride = in_time(m.bursts(nh * m.sy) * m.burst)
        _spill(b, shape, given, done, period, given.spill + start, stride)
        waits["outputs"] = m.channel(m.bursts(nh * m.sy))
        end += waits["outputs"]
    b.time(shape.name, "evaluate", steps * cells * n, **waits)
    return Run(end, loaded)


def _spill(
    b: Builder, shape: LayerShape, given: Given, done: tuple[int, int], period: int, dram: int,
    stride: int,
) -> None:  # fmt: skip
    """Copy each step's row to DRAM: the first two begin at `done`, the others a period later each."""
    m, nh = b.machine, b.machine.of(shape).nh
    slots, size, steps, phase = given.half_address, nh * m.sy, given.steps, (shape.name, "store")
    turns, rest = divmod(steps - 1, 2)
    for address, cycle, outer in (
        (slots, done[0], []),
        (slots + size, done[1], [(turns, 0, 2 * period), (2, -size, period)]),
        (slots + size, done[1] + 2 * turns * period, [(rest, 0, 0)]),
    ):
        b.at_burst_pace(phase, ["intermediate"], "read", m.sy, nh, address, cycle, outer)
    b.bursts(phase, "write", dram, done[0], size)
    b.bursts(phase, "write", dram + stride, done[1], size, [(steps - 1, stride, period)])


def burst_loops(m: Machine, size: int, sub: int) -> list[Loop]:
    """Bursts that deliver an input of sub-vectors of `sub` bytes just as these are used."""
    count = m.bursts(size)
    if m.burst >= sub:
        return [(count, m.burst, m.burst // sub)]
    group = sub // m.burst
    return [(count // group, sub, 1), (group, m.burst, 0)]


def _order_pass(b: Builder, shape: LayerShape, given: Given, direction: int) -> Run:
    return run_pass(b, shape, given)


ORDER = Order(
    dram_bytes, check, _order_pass, stand_in=stand_in, prefetch=prefetch, needs=matrix_bytes,
    spills=True,
)  # fmt: skip

DATAFLOW = Dataflow.of(ORDER)
