"""Several sequences share each fetch of the weights: in each step, for each neuron, all that have not ended.

Each sequence's sums are E-PUR's: it rounds as the datapath does and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from epur_emu.dataflow import epur, mu
from epur_emu.dataflow.epur import burst_loops, check_matrix, check_vectors, vector_bytes
from epur_emu.dataflow.layout import (
    Builder,
    Given,
    Machine,
    Run,
    Schedule,
    Shape,
    cus,
    fetch_rows,
    load_parameters,
    load_state,
    store,
)
from epur_emu.dataflow.regions import (
    Buffers,
    Dataflow,
    Order,
    check_bank,
    check_output,
    input_pitch,
    passes,
    row_bursts,
    state_bursts,
)
from epur_emu.network import LayerShape
from epur_emu.streams import Loop


def sub_batches(m: Machine, shape: Shape, lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the sequences that run together, the longest first; those of no steps are left out."""
    most = m.accelerator.input_buffer_bytes // max(vector_bytes(m, p) for p in passes(shape))
    rows = m.half // max(m.pitch(layer) for layer in shape)
    out: list[list[int]] = []
    left = 0
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if not lengths[n]:
            continue
        if not out or len(out[-1]) >= most or lengths[n] > left:
            out.append([])
            left = rows
        out[-1].append(n)
        left -= lengths[n]
    return out


@dataclass(frozen=True)
class _Span:
    """Steps after the first in which the same sequences are left, or the first.

    Parameters
    ----------
    first, steps : int
        The first step; how many.
    left : int
        Sequences.
    cycle, period, pace : int
        When it begins; from one step and from one neuron to the next.
    """

    first: int
    steps: int
    left: int
    cycle: int
    period: int
    pace: int


@dataclass(frozen=True)
class _Seat:
    """A sequence's place among those that are left: its group's size, and when it begins."""

    size: int
    member: int
    offset: int

    @classmethod
    def of(cls, number: int, left: int, share: int, n: int) -> _Seat:
        """Sequence `number` of `left`, in groups of up to `share`, n sub-vectors each."""
        group, member = divmod(number, share)
        return cls(min(share, left - group * share), member, group * share * n + member)


def _plan(
    m: Machine, shape: LayerShape, lengths: Sequence[int], begin: int, pace: int
) -> tuple[list[_Span], list[int]]:
    """Spans of a pass; and the waits between its steps, with links of no latency and what links add."""
    own, share = m.of(shape), m.accelerator.accumulators
    n = own.nx + own.nh
    latency = m.accelerator.dpu_latency

    def tail(left: int, then: int, z: int) -> int:
        """Cycles until `then` sequences can go on after a step of `left`."""
        waits = [0]
        for number in range(then):
            before, after = (_Seat.of(number, b, share, n).size for b in (left, then))
            waits.append((n - 1) * before + latency + z + 1 - own.nx * after - left * n)
        return max(waits)

    z = mu.timeline(m.accelerator, shape.peepholes).z
    direct = mu.timeline(m.accelerator, shape.peepholes, link=0).z
    # Steps change character after the first, and where a sequence ends.
    edges = sorted({1, *lengths})
    spans, waits, first = [], [0, 0], 0
    for edge in edges:
        left = sum(length > first for length in lengths)
        steps, every = edge - first, pace if first == 0 else left * n
        busy = (shape.cells - 1) * every + left * n
        wait, unlinked = tail(left, left, z), tail(left, left, direct)
        spans.append(_Span(first, steps, left, begin, busy + wait, every))
        then = sum(length > edge for length in lengths)
        last, last_unlinked = (tail(left, then, v) if then else 0 for v in (z, direct))
        waits[0] += (steps - 1) * unlinked + last_unlinked
        waits[1] += (steps - 1) * (wait - unlinked) + last - last_unlinked
        begin += steps * busy + (steps - 1) * wait + last
        first = edge
    return spans, waits


def run_pass(b: Builder, shape: LayerShape, given: Sequence[Given]) -> Run:
    """Emit one pass of several sequences, the longest first; returns when it ends."""
    m, cells, own, head = b.machine, shape.cells, b.machine.of(shape), given[0]
    nx, nh = own.nx, own.nh
    n, share = nx + nh, m.accelerator.accumulators
    region = vector_bytes(m, shape)
    h_at, c_at = nx * m.sx, (nx + 2 * nh) * m.sx
    row = {q: n * size for q, size in own.sw.items()}
    bursts, first_row = 0, 0
    if head.load:
        params = head.dram_weights + epur.rows_bytes(m, shape)
        bursts = load_parameters(b, shape, params, head.cycle, head.bank)
    weights, begin = m.channel(bursts), head.cycle
    for number, each in enumerate(given):
        at, cycle, moved = number * region, head.cycle, 0
        if each.initial == "dram":
            moved = bursts + number * state_bursts(m, shape)
        else:
            cycle += number * nh
        begin = load_state(b, shape, replace(each, cycle=cycle), moved, at + h_at, at + c_at)
    begin = max(begin, head.cycle + weights)
    waits = {"state": begin - head.cycle - weights}
    pace = len(given) * n
    if head.load:
        pace = first_row = max(pace, m.channel(sum(row_bursts(m, shape, n))))
        fetch_rows(b, shape, n, [(cells, 1, 1, pace)], head.dram_weights, begin, head.matrix)
    loaded = begin + (cells * pace if head.load else 0)
    begin += first_row
    b.time(shape.name, "load", weights=weights + first_row, **waits)

    spans, tails = _plan(m, shape, [each.steps for each in given], begin, pace)
    for span in spans:
        for group in range(-(-span.left // share)):
            seat = _Seat.of(group * share, span.left, share, n)
            for kind, skip, subs in (("forward", 0, nx), ("recurrent", nx, nh)):
                cycle = span.cycle + seat.offset + skip * seat.size
                for q, sub in own.sw.items():
                    at = head.matrix[q] + skip * sub
                    loops = [
                        (span.steps, 0, span.period), (cells, row[q], span.pace),
                        (subs, sub, seat.size),
                    ]  # fmt: skip
                    b.access((shape.name, kind), [f"cu.{q}.weights"], "read", sub, at, cycle, loops)
    for number, each in enumerate(given):
        for span in spans:
            if number < span.left:
                seat = _Seat.of(number, span.left, share, n)
                _member(b, shape, each, number * region, span, seat)

    def last_write() -> Iterator[int]:
        t = mu.timeline(m.accelerator, shape.peepholes)
        for number, each in enumerate(given):
            (span,) = (s for s in spans if s.first < each.steps <= s.first + s.steps)
            seat = _Seat.of(number, span.left, share, n)
            cycle = span.cycle + (each.steps - 1 - span.first) * span.period
            cycle += (cells - 1) * span.pace + seat.offset + (n - 1) * seat.size
            yield cycle + m.accelerator.dpu_latency + t.z

    end = max(last_write()) + 1
    steps = sum(each.steps for each in given)
    mu.count_dpu(b, shape, "forward", nx, steps)
    mu.count_dpu(b, shape, "recurrent", nh, steps)
    mu.count(b, shape, steps)
    busy = steps * cells * n
    slow = (cells - 1) * (pace - len(given) * n)
    drain = end - begin - busy - slow - sum(tails)
    t, direct = (mu.timeline(m.accelerator, shape.peepholes, link).z for link in (None, 0))
    linked = min(drain, t - direct)
    b.time(
        shape.name, "evaluate", busy, weights=slow, recurrence=tails[0] + drain - linked,
        link=tails[1] + linked,
    )  # fmt: skip
    return Run(end, loaded)


def _member(b: Builder, shape: LayerShape, given: Given, at: int, span: _Span, seat: _Seat) -> None:
    """What one sequence does in the steps of a span; its input buffer's part begins at `at`."""
    m, cells, own = b.machine, shape.cells, b.machine.of(shape)
    nx, nh = own.nx, own.nh
    n, width = nx + nh, seat.size
    h_at, c_at, slot = at + nx * m.sx, at + (nx + 2 * nh) * m.sx, nh * m.sx
    begin = span.cycle + seat.offset
    ready = (n - 1) * width + m.accelerator.dpu_latency

    def in_time(stride: int) -> tuple[int, int]:
        """Where the span's first step lies, and the stride to the next."""
        if shape.reverse:
            return (given.steps - 1 - span.first) * stride, -stride
        return span.first * stride, stride

    def access(
        kind: str, where: Iterable[str], op: str, size: int, address: int, step: int, after: int,
        inner: Sequence[Loop],
    ) -> None:  # fmt: skip
        loops = [(span.steps, step, span.period), *inner]
        b.access((shape.name, kind), where, op, size, address, begin + after, loops)

    def swapped(
        kind: str, op: str, size: int, parity: int, after: int, inner: Sequence[Loop]
    ) -> None:
        """Where the slot of h changes from step to step, beginning with that of `parity`."""
        start = (span.first + parity) % 2
        turns, rest = divmod(span.steps, 2)
        phase, where, swing = (shape.name, kind), cus("inputs"), (1 - 2 * start) * slot
        address, cycle = h_at + start * slot, begin + after
        loops = [(turns, 0, 2 * span.period), (2, swing, span.period), *inner]
        b.access(phase, where, op, size, address, cycle, loops)
        cycle += 2 * turns * span.period
        b.access(phase, where, op, size, address, cycle, [(rest, 0, 0), *inner])

    if given.source == "dram":
        start, stride = in_time(m.bursts(nx * m.sx) * m.burst)
        arrive = [(k, by, wait * width) for k, by, wait in burst_loops(m, nx * m.sx, m.sx)]
        where = given.source_address + start
        access("forward", ["dram"], "read", m.burst, where, stride, 0, arrive)
    else:
        start, stride = in_time(nx * m.sy)
        where = given.source_address + start
        access("forward", ["intermediate"], "read", m.sy, where, stride, 0, [(nx, m.sy, width)])
    vector = [(nx, m.sx, width)]
    access("forward", cus("inputs"), "write", m.sx, at, 0, 0, vector)
    access("forward", cus("inputs"), "read", m.sx, at, 0, 0, [(cells, 0, span.pace), *vector])
    inner = [(cells, 0, span.pace), (nh, m.sx, width)]
    swapped("recurrent", "read", m.sx, 0, nx * width, inner)

    def emit(
        where: Iterable[str], op: str, size: int, address: int, stride: int, after: int
    ) -> None:
        access("mu", where, op, size, address, 0, ready + after, [(cells, stride, span.pace)])

    t = mu.accesses(m, shape, mu.Places(c_at, given.bank), emit)
    swapped("mu", "write", m.xe, 1, ready + t.z, [(cells, m.xe, span.pace)])
    start, stride = in_time(given.pitch)
    where = given.out_address + start
    inner = [(cells, m.ye, span.pace)]
    access("mu", ["intermediate"], "write", m.ye, where, stride, ready + t.z, inner)


def schedule(
    shape: Shape, lengths: Sequence[int], m: Machine, given_state: bool, cycle: int, dram: int,
    order: Order = epur.ORDER, emit: Callable[[Builder, LayerShape, Sequence[Given]], Run] = run_pass,
) -> Schedule:  # fmt: skip
    """Several sequences through all layers, sub-batch by sub-batch, each pass emitted by `emit`."""
    end = -(-dram // m.burst) * m.burst
    weights: dict[str, int] = {}
    for p in passes(shape):
        weights[p.name] = end
        end += epur.dram_bytes(m, p)
    inputs: list[int] = []
    states: list[dict[str, int]] = []
    outputs: list[int] = []
    for steps in lengths:
        inputs.append(end)
        end += steps * input_pitch(m, shape[0][0])
    for _ in lengths if given_state else []:
        states.append({})
        for p in passes(shape):
            states[-1][p.name] = end
            end += state_bursts(m, p) * m.burst
    for steps in lengths:
        outputs.append(end)
        end += m.bursts(steps * m.pitch(shape[-1])) * m.burst
    for layer in shape:
        check_output(m, layer, max(lengths, default=0))
        for p in layer:
            check_bank(m, p)
            check_vectors(m, p)
            check_matrix(m, p)
    m.need(end, "dram_bytes", m.accelerator.dram_bytes, "the batch", "use shorter sequences")
    groups = sub_batches(m, shape, lengths)
    if not groups:
        return Schedule((), cycle, m.components(), end)
    b = Builder(m)
    if len(groups) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        b.policy("", "batch", "sub-batches", f"of {sizes} sequences; each loads the weights anew")
    for group in groups:
        before = [0, *accumulate(lengths[n] for n in group[:-1])]
        buffers, place = Buffers(order), 0
        for number, layer in enumerate(shape):
            source, half = number % 2 * m.half, (number + 1) % 2 * m.half
            place, pitch = half, m.pitch(layer)
            pitch_in = m.pitch(shape[number - 1]) if number else 0
            for p in layer:
                given = [
                    Given(
                        cycle, lengths[n], weights[p.name], "intermediate" if number else "dram",
                        source + rows * pitch_in if number else inputs[n],
                        place + rows * pitch, half, pitch,
                        "dram" if given_state else "zero",
                        states[n][p.name] if given_state else 0,
                    )
                    for n, rows in zip(group, before, strict=True)
                ]  # fmt: skip
                head = buffers.place(b, p, given[0], order)
                placed = [
                    replace(
                        each, cycle=head.cycle, load=head.load, matrix=head.matrix, bank=head.bank
                    )
                    for each in given
                ]
                run = emit(b, p, placed)
                buffers.ran(head, run)
                cycle = run.end
                place += p.cells * m.ye
        for n, rows in zip(group, before, strict=True):
            size, at = lengths[n] * m.pitch(shape[-1]), len(shape) % 2 * m.half
            address = at + rows * m.pitch(shape[-1])
            cycle = store(b, shape[-1][-1].name, address, outputs[n], size, cycle)
    return b.schedule(cycle, end)


DATAFLOW = Dataflow("epur", schedule, batches=True)
