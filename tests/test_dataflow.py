"""Schedules against the oracle's own log of accesses: two programs written apart from one text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arithmetics

from epur_emu import ARITHMETICS, Accelerator, Trace
from epur_emu import oracle_accesses as oracle
from epur_emu.arithmetic import Override
from epur_emu.dataflow import DATAFLOWS, schedule_decode, schedule_sequence
from epur_emu.dataflow.decode import resident
from epur_emu.errors import AcceleratorError
from epur_emu.formats import FP16, FP32, INT8, parse
from epur_emu.network import LayerShape

ARITHMETIC = ARITHMETICS["epur-fp16"]
FP32_SUMS = {"product": FP32, "tree": FP32, "accumulator": FP32, "partial": FP32}


@st.composite
def gates_apart(draw):
    """Every gate with bytes of its own, in passes called pass*."""
    wide = replace(ARITHMETIC, input=draw(st.sampled_from([FP16, FP32, INT8])))
    overrides = []
    for gate in "ifgo":
        values = {"weight": draw(st.sampled_from([FP16, FP32, INT8, parse("e4m3")]))}
        values |= {"cell": draw(st.sampled_from([FP16, FP32, parse("e5m2")]))}
        values |= {"output": draw(st.sampled_from([FP16, FP32, INT8]))}
        if values["weight"] == wide.input == INT8:
            values |= dict.fromkeys(("product", "tree", "accumulator"), parse("q23.0"))
            values |= {"partial": draw(st.sampled_from([INT8, FP16]))}
        elif draw(st.booleans()):
            values |= FP32_SUMS
        else:
            values |= {"partial": draw(st.sampled_from([FP16, INT8]))}
        overrides.append(Override("pass*", gate, tuple(values.items())))
    return replace(wide, overrides=tuple(overrides))


PRESETS = [ARITHMETIC, ARITHMETIC.with_partial(FP16), *ARITHMETICS.values()]
CHOICES = st.one_of(st.sampled_from(PRESETS), arithmetics(), gates_apart())


@st.composite
def machines(draw):
    """Every dataflow on its preset, with odd latencies, channels and bursts."""
    preset = Accelerator.load(draw(st.sampled_from(sorted(DATAFLOWS))))
    burst = draw(st.sampled_from([16, 32, 64, 256]))
    return replace(
        preset,
        add_cycles=draw(st.integers(0, 3)),
        multiply_cycles=draw(st.integers(0, 5)),
        divide_cycles=draw(st.integers(0, 20)),
        link_cycles=draw(st.integers(0, 4)),
        quantise_cycles=draw(st.integers(0, 6)),
        dram_burst_bytes=burst,
        dram_bandwidth=burst * preset.clock_hz * draw(st.integers(1, 16)) // 16,
        width=draw(st.sampled_from([4, 16])),
    )


@st.composite
def stacks(draw, directions=2):
    """Layers of odd sizes, one or two passes each."""
    layers, width = [], draw(st.integers(1, 40))
    for n in range(draw(st.integers(1, 3))):
        cells, peepholes = draw(st.integers(1, 19)), draw(st.booleans())
        kind = draw(st.sampled_from(["pass", "own"]))  # overrides are for pass*
        count = draw(st.integers(1, directions))
        reverse = draw(st.booleans()) if directions == 2 else False
        layers.append(
            tuple(
                LayerShape(f"{kind}.{n}.{d}", width, cells, peepholes, reverse != (d == 1))
                for d in range(count)
            )
        )
        width = count * cells
    return tuple(layers)


def log(schedule):
    out = Counter()
    for phase in schedule.phases:
        for stream in phase.streams:
            cycles, addresses = stream.expand()
            out.update(
                (int(t), stream.component, stream.op, int(a), stream.bytes)
                for t, a in zip(cycles, addresses, strict=True)
            )
    return out


def operations(schedule):
    counts = Counter()
    for phase in schedule.phases:
        for name, _, count in phase.operations:
            counts[name.partition(".")[0]] += count
    return +counts


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(0, 5), CHOICES, machines(), st.booleans())
def test_a_sequence_is_the_oracles(shape, steps, arithmetic, machine, given_state):
    found = schedule_sequence(shape, steps, arithmetic, machine, given_state)
    wanted, cycles = oracle.accesses_sequence(
        shape, steps, arithmetic, machine, machine.dataflow, given_state
    )
    assert log(found) == Counter(wanted)
    assert found.cycles == cycles
    counted = oracle.operations_sequence(shape, steps, arithmetic, machine, machine.dataflow)
    assert operations(found) == +Counter(counted)


@settings(max_examples=60, deadline=None)
@given(
    stacks(1),
    st.integers(0, 6),
    CHOICES,
    machines(),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_decoding_is_the_oracles(
    shape, steps, arithmetic, machine, host_between, given_state, data
):
    width = machine.width
    subs = [(-(-p.inputs // width), -(-p.cells // width)) for (p,) in shape]
    own = [{q: arithmetic.at(p.name, q) for q in "ifgo"} for (p,) in shape]
    needs = [
        max(a.weight.bytes for a in own[n].values()) * width * p.cells * sum(subs[n])
        for n, (p,) in enumerate(shape)
    ]
    banks = [nh * width * 8 for _, nh in subs]
    machine = replace(
        machine,
        weight_buffer_bytes=data.draw(st.integers(max(needs), sum(needs)), label="weights"),
        parameter_bank_bytes=data.draw(st.integers(max(banks), sum(banks)), label="banks"),
    )
    found = schedule_decode(shape, steps, arithmetic, machine, host_between, given_state)
    wanted, cycles = oracle.accesses_decode(
        shape, steps, arithmetic, machine, host_between, given_state
    )
    assert log(found) == Counter(wanted)
    assert found.cycles == cycles
    assert operations(found) == +Counter(
        oracle.operations_decode(shape, steps, arithmetic, machine)
    )


@settings(max_examples=15, deadline=None)
@given(stacks(), st.integers(1, 4), machines(), st.integers(1, 5000))
def test_a_trace_expands_to_the_oracles_log(shape, steps, machine, chunk):
    found = schedule_sequence(shape, steps, ARITHMETIC, machine)
    trace = Trace(found.phases, found.components, found.cycles)
    wanted, _ = oracle.accesses_sequence(shape, steps, ARITHMETIC, machine, machine.dataflow)
    place = {c.name: n for n, c in enumerate(found.components)}
    expanded = []
    for part in trace.expand(chunk):
        columns = (part.cycle, part.component, part.op, part.address, part.bytes)
        expanded += zip(*(column.tolist() for column in columns), strict=True)
    order = [row[:3] for row in expanded]
    assert order == sorted(order)
    ops = ("read", "write")
    assert Counter(expanded) == Counter(
        (t, place[c], ops.index(op), a, b) for t, c, op, a, b in wanted
    )
    trace.validate()


@settings(max_examples=30, deadline=None)
@given(stacks(), st.integers(1, 4), machines(), st.integers(0, 10**6), st.integers(0, 10**5))
def test_a_schedule_moves_as_a_whole(shape, steps, machine, cycle, bursts):
    """Begun later and elsewhere in DRAM, all accesses move by as much."""
    dram = bursts * machine.dram_burst_bytes
    here = schedule_sequence(shape, steps, ARITHMETIC, machine)
    there = schedule_sequence(shape, steps, ARITHMETIC, machine, cycle=cycle, dram=dram)
    moved = Counter()
    for (t, component, op, address, size), count in log(here).items():
        moved[t + cycle, component, op, address + (dram if component == "dram" else 0), size] = (
            count
        )
    assert log(there) == moved
    assert there.cycles == here.cycles + cycle


def test_one_more_step_costs_one_period():
    """In the steady state a further time step adds the same cycles and accesses."""
    shape = ((LayerShape("0", 40, 32),),)
    for name in sorted(DATAFLOWS):
        machine = Accelerator.load(name)
        schedules = [schedule_sequence(shape, t, ARITHMETIC, machine) for t in (20, 21, 22)]
        accesses = [sum(len(s) for p in x.phases for s in p.streams) for x in schedules]
        assert accesses[2] - accesses[1] == accesses[1] - accesses[0] > 0


def test_throughput_of_the_paper():
    """The paper's EESEN takes 171,520 DPU cycles a frame; on top come the waits between steps."""
    layers, width = [], 120
    for n in range(5):
        layers.append(tuple(LayerShape(f"{n}.{d}", width, 320, True, d == 1) for d in range(2)))
        width = 640
    machine = Accelerator.load("epur")
    cycles = [schedule_sequence(tuple(layers), t, ARITHMETIC, machine).cycles for t in (100, 200)]
    per_frame = (cycles[1] - cycles[0]) / 100
    assert 171_520 <= per_frame <= 171_520 * 1.01
    assert 29 < 0.01 / machine.seconds(1) / per_frame < 30  # times faster than real time


def test_residency():
    assert resident([3, 4], 7) == 2
    assert resident([3, 4], 6) == 0
    assert resident([2, 4, 3], 6) == 1
    assert resident([5], 4) is None


def test_what_does_not_fit_is_named_with_what_would():
    machine = Accelerator.load("epur")
    wide = ((LayerShape("wide", 1024, 1100),),)
    with pytest.raises(AcceleratorError, match="weight_buffer_bytes"):
        schedule_sequence(wide, 3, ARITHMETIC, replace(machine, input_buffer_bytes=1 << 20))
    with pytest.raises(AcceleratorError, match="input_buffer_bytes holds 8192 bytes, wide"):
        schedule_sequence(wide, 3, ARITHMETIC, machine)
    with pytest.raises(AcceleratorError, match="at most 1536 steps"):
        schedule_sequence(((LayerShape("long", 1024, 1024),),), 1537, ARITHMETIC, machine)
    mwl = Accelerator.load("epur-mwl")
    with pytest.raises(AcceleratorError, match="at most 512 steps"):
        schedule_sequence(((LayerShape("long", 1024, 1024),),), 513, ARITHMETIC, mwl)
    with pytest.raises(AcceleratorError, match="dataflow is 'sideways'"):
        schedule_sequence(wide, 3, ARITHMETIC, replace(machine, dataflow="sideways"))
    backwards = ((LayerShape("back", 8, 8, reverse=True),),)
    with pytest.raises(AcceleratorError, match="backwards"):
        schedule_decode(backwards, 2, ARITHMETIC, machine)
