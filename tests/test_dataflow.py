"""Schedules against the oracle's own log of accesses: two programs written apart from one text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from strategies import arithmetics

from epur_emu import ARITHMETICS, Accelerator, Trace
from epur_emu import oracle_accesses as oracle
from epur_emu.arithmetic import Override
from epur_emu.dataflow import (
    DATAFLOWS,
    epur,
    mwl,
    schedule_batch,
    schedule_decode,
    schedule_sequence,
    tiled,
)
from epur_emu.dataflow.decode import resident
from epur_emu.dataflow.layout import Machine
from epur_emu.dataflow.regions import sequence
from epur_emu.emulator import calibrate, emulate, emulate_batch
from epur_emu.errors import AcceleratorError, NetworkError
from epur_emu.formats import FP16, FP32, INT8, parse
from epur_emu.network import LayerShape, LstmLayer, Network
from epur_emu.oracle import ORDERS, evaluate_pass

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
def machines(draw, dataflows=DATAFLOWS):
    """Dataflows on their presets, with odd latencies, channels and bursts."""
    preset = Accelerator.load(draw(st.sampled_from(sorted(dataflows))))
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
        accumulators=draw(st.integers(1, 4)),
        double_buffering=draw(st.booleans()),
    )


@st.composite
def tight_machines(draw):
    """Buffers in which small networks do not all fit, or not at once."""
    machine = draw(machines())
    tight = {
        "weight_buffer_bytes": st.integers(64, 1500),
        "parameter_bank_bytes": st.sampled_from([64, 128, 256]),
        "input_buffer_bytes": st.sampled_from([128, 256, 512, 1024]),
        "intermediate_bytes": st.integers(32, 1000).map(
            lambda half: -(-half // machine.dram_burst_bytes) * 2 * machine.dram_burst_bytes
        ),
        "row_buffer_bytes": st.sampled_from([128, 256]),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(tight)), min_size=1, max_size=3))
    return replace(machine, **{name: draw(tight[name]) for name in sorted(chosen)})


@st.composite
def stacks(draw, directions=2):
    """Layers of odd sizes, one or two passes each; some are like the one before but for their inputs."""
    layers, width = [], draw(st.integers(1, 40))
    for n in range(draw(st.integers(1, 4))):
        if n == 0 or draw(st.booleans()):
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


def refused(call, *arguments):
    """What a call returns, or None if something does not fit."""
    try:
        return call(*arguments)
    except AcceleratorError:
        return None


def check_timing(found, log):
    """All cycles are in one phase, and the DPUs are busy in those that read a matrix."""
    assert sum(row.cycles for row in found.timing) == found.cycles
    for row in found.timing:
        assert row.busy >= 0
        assert all(count > 0 for _, count in row.stalls)
    reads = sum(
        count for (_, component, op, _, size), count in log.items()
        if (component, op) == ("cu.o.inputs", "read")
    )  # fmt: skip
    assert sum(row.busy for row in found.timing) == reads


def agree(found, wanted):
    """A schedule, or None where it was refused, and what the oracle says."""
    assert (found is None) == (wanted is None)
    if found is None:
        return
    for policy in found.policies:
        event(policy.policy)
    assert log(found) == Counter(wanted[0])
    assert found.cycles == wanted[1]
    check_timing(found, log(found))


@settings(max_examples=80, deadline=None)
@given(stacks(), st.integers(1, 6), CHOICES, tight_machines(), st.booleans())
def test_what_does_not_fit_is_done_as_the_oracle_does(
    shape, steps, arithmetic, machine, given_state
):
    arguments = shape, steps, arithmetic, machine
    found = refused(schedule_sequence, *arguments, given_state)
    wanted = refused(oracle.accesses_sequence, *arguments, machine.dataflow, given_state)
    agree(found, wanted)


@settings(max_examples=40, deadline=None)
@given(
    stacks(),
    st.lists(st.integers(0, 4), max_size=5).map(lambda lengths: [*lengths, 2]),
    CHOICES,
    tight_machines(),
    st.booleans(),
)
def test_a_batch_is_the_oracles(shape, lengths, arithmetic, machine, given_state):
    machine = replace(machine, dataflow="epur-batch")
    arguments = shape, lengths, arithmetic, machine, given_state
    found = refused(schedule_batch, *arguments)
    wanted = refused(oracle.accesses_batch, *arguments)
    agree(found, wanted)


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


def test_cycles_by_phase_by_hand():
    """I = H = 16, T = 3 at the preset's latencies: nx = nh = 1, Ld = 14, z = 57, tail = 70."""
    shape = ((LayerShape("0", 16, 16),),)
    found = {
        row.phase: row.to_dict() for row in
        schedule_sequence(shape, 3, ARITHMETIC, Accelerator.load("epur")).timing
    }  # fmt: skip
    # Ld = 4 + 5 * 2; TANH = 1 + 5 + 1 + 2 + 1 + 10, SIG = 18: tm = 22, tc = 29, z = 29 + 20 + 2 + 4 + 2.
    # Biases: 4 bursts in 5 cycles; a row: 4 gates of 64 bytes, 4 bursts, R = 5.
    no = dict.fromkeys(("weights", "state", "staging", "recurrence", "link", "outputs"), 0)
    assert found["load"]["stalls"] == {**no, "weights": 5 + 5}
    link = 4  # from g to o, and to the input buffers
    waits = 2 * (14 + 57 - link - 1) + 14 + 57 - link
    assert found["evaluate"]["stalls"] == {
        **no, "weights": 15 * (5 - 2), "recurrence": waits, "link": 3 * link
    }  # fmt: skip
    assert found["evaluate"]["busy"] == 3 * 16 * 2
    assert found["store"]["stalls"] == {**no, "outputs": 3}


def test_the_registry_is_the_oracles():
    """Each entry says how it rounds, and the oracle knows it."""
    assert tuple(DATAFLOWS) == oracle.DATAFLOWS == ORDERS
    assert {name for name, each in DATAFLOWS.items() if each.rounds == "epur-mwl"} == {"epur-mwl"}
    assert [name for name, each in DATAFLOWS.items() if each.batches] == ["epur-batch"]


def test_residency():
    assert resident([3, 4], 7) == 2
    assert resident([3, 4], 6) == 0
    assert resident([2, 4, 3], 6) == 1
    assert resident([5], 4) is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((), "layers are empty"),
        (((LayerShape("a", 3, 5), LayerShape("b", 7, 5)),), "b reads 7 inputs where 3 are given"),
        (((LayerShape("a", 3, 5),), (LayerShape("a", 5, 5),)), "repeat a name"),
    ],
)
def test_layers_that_there_can_not_be(shape, message):
    machine = Accelerator.load("epur-batch")
    for schedule, steps in ((schedule_sequence, 2), (schedule_batch, [2]), (schedule_decode, 2)):
        with pytest.raises(NetworkError, match=message):
            schedule(shape, steps, ARITHMETIC, machine)


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (-3, 5), (3.0, 5), (True, 5), ("3", 5)])
def test_shapes_that_no_layer_has(sizes):
    with pytest.raises(NetworkError, match=r"a: (inputs|cells) is .*; give an integer, 1 or more"):
        LayerShape("a", *sizes)
    assert LayerShape("a", np.int64(3), 5) == LayerShape("a", 3, 5)


def test_what_does_not_fit_is_named_with_what_would():
    machine = Accelerator.load("epur")
    wide = ((LayerShape("wide", 1024, 1100),),)
    batch = replace(machine, dataflow="epur-batch")
    with pytest.raises(AcceleratorError, match="weight_buffer_bytes"):
        schedule_sequence(wide, 3, ARITHMETIC, replace(batch, input_buffer_bytes=1 << 20))
    with pytest.raises(AcceleratorError, match="input_buffer_bytes holds 8192 bytes, wide"):
        schedule_sequence(wide, 3, ARITHMETIC, batch)
    long = ((LayerShape("long", 1024, 1024),),)
    with pytest.raises(AcceleratorError, match="at most 1536 steps"):
        schedule_sequence(long, 1537, ARITHMETIC, batch)
    mwl = Accelerator.load("epur-mwl")
    with pytest.raises(AcceleratorError, match="at most 1534 steps"):
        schedule_sequence(long, 1535, ARITHMETIC, mwl)
    assert schedule_sequence(long, 1400, ARITHMETIC, mwl).cycles > 0
    with pytest.raises(AcceleratorError, match="dataflow is 'sideways'"):
        schedule_sequence(wide, 3, ARITHMETIC, replace(machine, dataflow="sideways"))
    with pytest.raises(AcceleratorError, match="one sequence at a time; use epur-batch"):
        schedule_batch(long, [3, 4], ARITHMETIC, machine)
    for wrong in (
        lambda: schedule_sequence(long, -1, ARITHMETIC, machine),
        lambda: schedule_batch(long, [3, -1], ARITHMETIC, batch),
        lambda: schedule_decode(long, -1, ARITHMETIC, machine),
    ):
        with pytest.raises(AcceleratorError, match="steps are -1; give 0 or more"):
            wrong()
    backwards = ((LayerShape("back", 8, 8, reverse=True),),)
    with pytest.raises(AcceleratorError, match="backwards"):
        schedule_decode(backwards, 2, ARITHMETIC, machine)


def policies(schedule):
    return [(policy.layer, policy.what, policy.policy) for policy in schedule.policies]


def test_policies_are_told():
    """What does not fit in the presets is done all the same, and said."""
    epur, mwl, batch, tiled = map(Accelerator.load, DATAFLOWS)
    wide = ((LayerShape("wide", 1024, 1100),),)
    found = schedule_sequence(wide, 3, ARITHMETIC, epur)
    assert policies(found) == [("wide", "weights", "tiles")]
    assert found.policies[0].detail == "1 tile of up to 1100 of 1100 neurons"
    larger = ((LayerShape("larger", 2048, 2048),),)
    found = schedule_sequence(larger, 3, ARITHMETIC, tiled)
    assert policies(found) == [("larger", "weights", "refetch"), ("larger", "weights", "tiles")]
    assert found.policies[0].detail.startswith("1022 of 2048 rows of W_h stay")
    assert found.policies[1].detail == "2 tiles of up to 1024 of 2048 neurons"
    long = ((LayerShape("long", 1024, 1024),),)
    assert policies(schedule_sequence(long, 512, ARITHMETIC, mwl)) == []
    found = schedule_sequence(long, 513, ARITHMETIC, mwl)
    assert policies(found) == [("long", "sequence", "stretches")]
    assert found.policies[0].detail == "2 stretches of up to 511 of 513 time steps"
    assert policies(schedule_sequence(long, 1536, ARITHMETIC, epur)) == []
    assert policies(schedule_sequence(long, 1537, ARITHMETIC, epur)) == [("", "sequence", "spill")]
    small = ((LayerShape("0", 320, 320),), (LayerShape("1", 320, 320),))
    assert policies(schedule_batch(small, [9] * 3, ARITHMETIC, batch)) == []
    found = schedule_batch(small, [9] * 7, ARITHMETIC, batch)
    assert found.policies[0].detail.startswith("of 3, 3, 1 sequences")
    double = replace(epur, double_buffering=True)
    assert policies(schedule_sequence(small, 9, ARITHMETIC, epur)) == []
    found = schedule_sequence(small, 9, ARITHMETIC, double)
    assert policies(found) == [("1", "weights", "prefetched")]
    stack = tuple((LayerShape(str(n), 1024, 1024),) for n in range(2))
    found = schedule_decode(stack, 2, ARITHMETIC, epur)
    assert policies(found) == [(name, "weights", "refetch") for name in "01"]


@settings(max_examples=40, deadline=None)
@given(stacks(), st.integers(2, 6), machines())
def test_twice_the_steps_add_as_many_periods(shape, steps, machine):
    """In the steady state each of the further T steps adds the same cycles and accesses."""
    machine = replace(machine, dram_bandwidth=machine.dram_burst_bytes * machine.clock_hz)
    if machine.dataflow == "epur-mwl" or machine.double_buffering:
        # From here on no row of MWL, and no pass, waits for the channel.
        steps += 1000

    def run(count):
        found = schedule_sequence(shape, count, ARITHMETIC, machine)
        assert {policy.policy for policy in found.policies} <= {"tiles", "prefetched"}
        stored = sum(row.cycles for row in found.timing if row.phase == "store")
        counts = Counter()
        for phase in found.phases:
            for stream in phase.streams:
                counts[phase.layer, phase.kind, stream.component, stream.op] += len(stream)
        rows = sum(n for (_, kind, *_), n in counts.items() if kind == "store")
        return found.cycles - stored, counts.total() - rows

    once, more, twice = run(steps), run(steps + 1), run(2 * steps)
    for here, then, there in zip(once, more, twice, strict=True):
        assert there - here == steps * (then - here)


@settings(max_examples=30, deadline=None)
@given(stacks(), st.integers(0, 6), CHOICES, machines(), st.booleans())
def test_a_batch_of_one_is_epurs_order(shape, steps, arithmetic, machine, given_state):
    plain = replace(machine, dataflow="epur")
    batch = replace(machine, dataflow="epur-batch")
    found = schedule_batch(shape, [steps], arithmetic, batch, given_state)
    wanted = schedule_sequence(shape, steps, arithmetic, plain, given_state)
    assert log(found) == log(wanted)
    assert (found.cycles, found.timing) == (wanted.cycles, wanted.timing)


def test_a_batch_shares_fetches():
    """Weights come from DRAM once, and with accumulators from the weight buffers once for a group."""
    shape = ((LayerShape("0", 64, 96),),)
    batch = Accelerator.load("epur-batch")

    def reads(schedule, component):
        streams = [s for p in schedule.phases for s in p.streams if p.kind != "mu"]
        return sum(len(s) for s in streams if (s.component, s.op) == (component, "read"))

    one = schedule_batch(shape, [10], ARITHMETIC, batch)
    four = schedule_batch(shape, [10] * 4, ARITHMETIC, batch)
    alone = schedule_batch(shape, [10] * 4, ARITHMETIC, replace(batch, accumulators=1))
    assert reads(four, "cu.i.weights") == reads(one, "cu.i.weights")
    assert reads(alone, "cu.i.weights") == 4 * reads(one, "cu.i.weights")
    inputs = 10 * 64 * 2 // 64
    assert reads(four, "dram") - 4 * inputs == reads(one, "dram") - inputs
    assert four.cycles < 4 * one.cycles


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("name", ["epur-fp16", "epur-int8", "float32"])
def test_bits_are_the_oracles(dataflow, name):
    """The emulator's outputs in each dataflow; all but MWL's are E-PUR's."""
    rng = np.random.default_rng(7)

    def layer(number, inputs, cells, reverse):
        arrays = [rng.normal(size=s) for s in ((4, cells, inputs), (4, cells, cells), (4, cells))]
        peepholes = rng.normal(size=(3, cells)).astype(np.float32)
        return LstmLayer(number, *(a.astype(np.float32) for a in arrays), peepholes, reverse)

    network = Network("net", ((layer("0f", 21, 5, False), layer("0b", 21, 5, True)),))
    x = [rng.normal(size=(t, 21)).astype(np.float32) for t in (4, 2, 5)]
    arithmetic = ARITHMETICS[name]
    machine = Accelerator.load(dataflow)
    alpha = calibrate(network, x)
    results = [emulate(network, each, arithmetic, machine, alpha) for each in x]
    if arithmetic.bit_exact:
        for each, result in zip(x, results, strict=True):
            found = [
                evaluate_pass(
                    p, each, arithmetic, dataflow, alpha[p.name],
                    alpha_x=alpha[f"{p.name}.input"], alpha_h=alpha[f"{p.name}.hidden"],
                ).h
                for p in network.passes
            ]  # fmt: skip
            np.testing.assert_array_equal(result.outputs, np.concatenate(found, -1))
    if dataflow == "epur-batch":
        together = emulate_batch(network, x, arithmetic, machine, alpha)
        for one, other in zip(together.outputs, results, strict=True):
            np.testing.assert_array_equal(one, other.outputs)
        assert together.cycles == sum(row.cycles for row in together.timing)
        assert together.trace.meta["networks"][0]["steps"] == [4, 2, 5]
    plain = emulate(network, x[0], arithmetic, Accelerator.load("epur"), alpha)
    same = np.array_equal(plain.outputs, results[0].outputs)
    assert same == (dataflow != "epur-mwl" or not arithmetic.bit_exact)
    assert results[0].trace.meta["phases"] == [row.to_dict() for row in results[0].timing]


@pytest.mark.parametrize(
    ("module", "name"), [(epur, "epur"), (mwl, "epur-mwl"), (tiled, "epur-tiled")]
)
def test_equal_passes_are_made_once(module, name):
    """A layer like one before is that one moved; `test_a_sequence_is_the_oracles` draws such layers."""
    made = []

    def spy(b, p, *rest):
        made.append(p.name)
        return module.ORDER.run_pass(b, p, *rest)

    shape = tuple(
        tuple(LayerShape(f"{n}.{d}", 16 if n else 5, 8, True, d == 1) for d in range(2)) for n in range(6)
    )
    m = Machine(Accelerator.load(name), ARITHMETICS["epur-fp16"], shape)
    found = sequence(replace(module.ORDER, run_pass=spy), shape, 3, m, False, 0, 0)
    assert made == ["0.0", "0.1", "1.0", "1.1"]
    assert len({p.layer for p in found.phases}) == 12
