"""Probe mode: events, streams and the oracle's log agree access for access; what reads deliver is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import arithmetics
from test_dataflow import machines, stacks, tight_machines

from epur_emu import emulator, oracle_accesses, probe
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.dataflow import (
    DATAFLOWS,
    Schedule,
    schedule_batch,
    schedule_decode,
    schedule_sequence,
)
from epur_emu.emulator import emulate, emulate_batch
from epur_emu.errors import AcceleratorError, TraceError
from epur_emu.network import LayerShape, LstmLayer, Network
from epur_emu.passes import levels
from epur_emu.streams import OPS
from epur_emu.trace import Trace

F32 = npt.NDArray[np.float32]
EPUR = ARITHMETICS["epur-fp16"]


def network_of(shape: Any, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)

    def fill(*size: int) -> F32:
        return rng.uniform(-0.5, 0.5, size).astype(np.float32)

    return Network(
        "drawn",
        tuple(
            tuple(
                LstmLayer(
                    p.name, fill(4, p.cells, p.inputs), fill(4, p.cells, p.cells), fill(4, p.cells),
                    fill(3, p.cells) if p.peepholes else None, p.reverse,
                )
                for p in layer
            )
            for layer in shape
        ),
    )  # fmt: skip


def log(trace: Trace) -> list[tuple[int, str, str, int, int]]:
    names = [c.name for c in trace.components]
    out = []
    for part in trace.expand(777):
        columns = [column.tolist() for column in part.columns().values()]
        out += [(t, names[c], OPS[op], a, b) for t, c, op, a, b in zip(*columns, strict=True)]
    return out


def numbers(rng: np.random.Generator, steps: int, width: int) -> F32:
    return rng.standard_normal((steps, width), np.float32)


def states_of(net: Network, rng: np.random.Generator) -> list[Any]:
    return [tuple(rng.standard_normal((2, p.cells), np.float32)) for p in net.passes]


def run(
    path: Path, net: Network, lengths: Sequence[int], arithmetic: Arithmetic, machine: Accelerator,
    given: bool,
) -> Trace:  # fmt: skip
    """A probe of outputs that are just numbers: accesses do not depend on them."""
    rng = np.random.default_rng(lengths)
    x = [numbers(rng, steps, net.layers[0][0].inputs) for steps in lengths]
    layers = [
        [numbers(rng, steps, sum(p.cells for p in layer)) for layer in net.layers]
        for steps in lengths
    ]
    initial = [states_of(net, rng) for _ in lengths] if given else None
    found = probe.probe_sequences(path, net, x, layers, initial, arithmetic, machine, {"a": 1})
    assert found.totals() == Trace.open(path).totals()
    return found


def decoded(
    path: Path, net: Network, steps: int, arithmetic: Arithmetic, machine: Accelerator,
    between: bool, given: bool, parents: Sequence[int] | None = None,
) -> Trace:  # fmt: skip
    rng = np.random.default_rng(steps)
    passes = net.passes if between else net.passes[:1]
    x = [numbers(rng, steps, p.inputs) for p in passes]
    layers = [numbers(rng, steps, p.cells) for p in net.passes]
    initial = states_of(net, rng) if given else None
    origins = None if parents is None else np.array(parents, np.intp)
    done = probe.Decoded(replace(net, host_between=between), x, layers, initial, origins)
    found = probe.probe_runs(path, [done], arithmetic, machine, {"a": 1})
    assert found.totals() == Trace.open(path).totals()
    return found


def agree(events: Trace, schedule: Schedule, wanted: Any) -> None:
    """Events, streams and the oracle's log are the same accesses."""
    streams = Trace(schedule.phases, schedule.components, schedule.cycles)
    found = log(events)
    assert Counter(found) == Counter(wanted[0]) == Counter(log(streams))
    place = {c.name: n for n, c in enumerate(events.components)}
    order = [(t, place[c], OPS.index(op)) for t, c, op, _, _ in found]
    assert order == sorted(order)
    assert events.cycles == wanted[1]
    assert events.operations() == streams.operations()
    assert events.bytes_by_component() == streams.bytes_by_component()
    assert events.meta == {"a": 1}
    assert events.complete
    events.validate()


ROWS_AT_ONCE = st.sampled_from((1, 40, probe.ENOUGH))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a path for each example, and sets how many rows are handed over at once."""
    before = probe.ENOUGH

    def path(enough: int) -> Path:
        probe.ENOUGH = enough
        return tmp_path / "t.h5"

    yield path
    probe.ENOUGH = before


PROPERTY = settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.filter_too_much],
)  # fmt: skip
FORMATS = st.one_of(st.just(EPUR), arithmetics())
MACHINES = st.one_of(machines(probe.WALKS), tight_machines())


@PROPERTY
@given(stacks(), st.integers(0, 6), MACHINES, FORMATS, st.booleans(), ROWS_AT_ONCE)
def test_events_streams_and_oracle_agree(
    fresh: Any, shape: Any, steps: int, machine: Accelerator, arithmetic: Arithmetic, given: bool,
    enough: int,
) -> None:  # fmt: skip
    try:
        schedule = schedule_sequence(shape, steps, arithmetic, machine, given)
    except AcceleratorError:
        assume(False)
    wanted = oracle_accesses.accesses_sequence(
        shape, steps, arithmetic, machine, machine.dataflow, given
    )
    agree(
        run(fresh(enough), network_of(shape), [steps], arithmetic, machine, given), schedule, wanted
    )


@PROPERTY
@given(
    stacks(), st.lists(st.integers(0, 4), min_size=1, max_size=5), MACHINES, FORMATS, st.booleans(),
    ROWS_AT_ONCE,
)  # fmt: skip
def test_batches_agree(
    fresh: Any, shape: Any, lengths: list[int], machine: Accelerator, arithmetic: Arithmetic,
    given: bool, enough: int,
) -> None:  # fmt: skip
    machine = replace(machine, dataflow="epur-batch")
    try:
        schedule = schedule_batch(shape, lengths, arithmetic, machine, given)
    except AcceleratorError:
        assume(False)
    wanted = oracle_accesses.accesses_batch(shape, lengths, arithmetic, machine, given)
    agree(
        run(fresh(enough), network_of(shape), lengths, arithmetic, machine, given), schedule, wanted
    )


@st.composite
def searches(draw: Any) -> list[int]:
    """The step that each of a search's steps goes on from."""
    return [draw(st.integers(-1, step - 1)) for step in range(draw(st.integers(0, 5)))]


@PROPERTY
@given(stacks(1), searches(), MACHINES, FORMATS, st.booleans(), st.booleans(), ROWS_AT_ONCE)
def test_decoding_agrees(
    fresh: Any, shape: Any, parents: list[int], machine: Accelerator, arithmetic: Arithmetic,
    between: bool, given: bool, enough: int,
) -> None:  # fmt: skip
    steps = len(parents)
    try:
        schedule = schedule_decode(shape, steps, arithmetic, machine, between, given)
    except AcceleratorError:
        assume(False)
    wanted = oracle_accesses.accesses_decode(shape, steps, arithmetic, machine, between, given)
    path = fresh(enough)
    events = decoded(path, network_of(shape), steps, arithmetic, machine, between, given, parents)
    agree(events, schedule, wanted)


#: Machines on which `schedule_shape` follows policies.
POLICIES: list[tuple[set[str], str, dict[str, Any]]] = [
    ({"tiles"}, "epur", {"weight_buffer_bytes": 4000}),
    ({"tiles", "refetch"}, "epur", {"weight_buffer_bytes": 600}),
    ({"spill"}, "epur", {"intermediate_bytes": 512}),
    ({"prefetched"}, "epur", {"double_buffering": True}),
    ({"prefetched", "spill"}, "epur", {"double_buffering": True, "intermediate_bytes": 512}),
    ({"stretches"}, "epur-mwl", {"intermediate_bytes": 2560}),
    ({"refetch"}, "epur-mwl", {"weight_buffer_bytes": 600}),
    (
        {"stretches", "refetch"}, "epur-mwl",
        {"weight_buffer_bytes": 600, "intermediate_bytes": 2560},
    ),
    ({"tiles", "stretches"}, "epur-tiled", {"intermediate_bytes": 2560}),
    ({"tiles", "refetch"}, "epur-tiled", {"weight_buffer_bytes": 600}),
    (
        {"tiles", "stretches", "refetch"}, "epur-tiled",
        {"weight_buffer_bytes": 600, "intermediate_bytes": 2560},
    ),
    ({"prefetched"}, "epur-batch", {"double_buffering": True, "accumulators": 2}),
    ({"sub-batches"}, "epur-batch", {"input_buffer_bytes": 1200}),
    (
        {"sub-batches", "prefetched"}, "epur-batch",
        {"double_buffering": True, "input_buffer_bytes": 1200},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("policies", "preset", "changes"), POLICIES)
@pytest.mark.parametrize("given", [False, True])
def test_policies_agree(
    tmp_path: Path, policies: set[str], preset: str, changes: dict[str, Any], given: bool
) -> None:
    machine, shape = replace(Accelerator.load(preset), **changes), schedule_shape()
    if preset == "epur-batch":
        lengths = [3, 0, 9, 4, 9]
        schedule = schedule_batch(shape, lengths, EPUR, machine, given)
        wanted = oracle_accesses.accesses_batch(shape, lengths, EPUR, machine, given)
    else:
        lengths = [9]
        schedule = schedule_sequence(shape, 9, EPUR, machine, given)
        wanted = oracle_accesses.accesses_sequence(shape, 9, EPUR, machine, preset, given)
    assert {policy.policy for policy in schedule.policies} == policies
    path = tmp_path / "t.h5"
    agree(run(path, network_of(shape), lengths, EPUR, machine, given), schedule, wanted)


@pytest.mark.parametrize("between", [False, True])
def test_decoding_with_layers_that_are_loaded_anew_agrees(tmp_path: Path, between: bool) -> None:
    shape = (LayerShape("0", 21, 18, True),), (LayerShape("1", 18, 33),), (LayerShape("2", 33, 9),)
    machine = replace(Accelerator.load("epur"), weight_buffer_bytes=8000)
    schedule = schedule_decode(shape, 6, EPUR, machine, between)
    assert {policy.policy for policy in schedule.policies} == {"refetch"}
    wanted = oracle_accesses.accesses_decode(shape, 6, EPUR, machine, between)
    path = tmp_path / "t.h5"
    agree(decoded(path, network_of(shape), 6, EPUR, machine, between, False), schedule, wanted)


def test_a_refusal_comes_before_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator.Engine, "sequence", lambda *_: pytest.fail("evaluated"))
    net, x = network_of(schedule_shape(), 5), np.zeros((9, 21), np.float32)
    small = replace(Accelerator.load("epur"), input_buffer_bytes=16)
    with pytest.raises(AcceleratorError, match="input_buffer_bytes"):
        emulate(net, x, EPUR, small)
    monkeypatch.delitem(probe.WALKS, "epur-tiled")
    with pytest.raises(AcceleratorError, match="can't be probed"):
        emulate(net, x, EPUR, Accelerator.load("epur-tiled"), events=tmp_path / "t.h5")


def test_all_dataflows_have_walks() -> None:
    assert probe.WALKS.keys() == DATAFLOWS.keys()


@pytest.mark.parametrize("name", sorted(probe.WALKS))
def test_all_levels_write_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = []
    for level in levels():
        monkeypatch.setenv("EPUR_SIMD", level)
        trace = run(
            tmp_path / "t.h5", network_of(schedule_shape()), [9], EPUR, Accelerator.load(name), False
        )
        found.append([[v.tolist() for v in rows] for c in trace.components for rows in trace.runs(c.name)])
    assert found[0]
    assert all(rows == found[0] for rows in found)


@pytest.mark.parametrize("name", sorted(probe.WALKS))
def test_outputs_keep_their_bits(tmp_path: Path, name: str) -> None:
    shape = schedule_shape()
    net = network_of(shape, 5)
    x = np.random.default_rng(2).standard_normal((9, 21), np.float32)
    machine = Accelerator.load(name)
    alpha = {p.name: 30.0 for p in net.passes}
    plain = emulate(net, x, EPUR, machine, alpha)
    probed = emulate(net, x, EPUR, machine, alpha, events=tmp_path / "t.h5")
    assert plain.outputs.tobytes() == probed.outputs.tobytes()
    assert probed.cycles == plain.cycles
    assert Counter(log(probed.trace)) == Counter(log(plain.trace))
    assert probed.trace.meta == plain.trace.meta
    assert Trace.open(tmp_path / "t.h5") == probed.trace


def test_a_batch_keeps_its_bits(tmp_path: Path) -> None:
    net, rng = network_of(schedule_shape(), 5), np.random.default_rng(2)
    x = [numbers(rng, steps, 21) for steps in (4, 9, 1)]
    plain = emulate_batch(net, x, EPUR)
    probed = emulate_batch(net, x, EPUR, events=tmp_path / "t.h5")
    for a, b in zip(plain.outputs, probed.outputs, strict=True):
        assert a.tobytes() == b.tobytes()
    assert Counter(log(probed.trace)) == Counter(log(plain.trace))
    assert probed.trace.meta == plain.trace.meta


def schedule_shape() -> Any:
    return (
        (LayerShape("0.f", 21, 18, True), LayerShape("0.b", 21, 18, True, True)),
        (LayerShape("1", 36, 33),),
    )


def test_a_read_of_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataflow with a wrong place gives other operands than the arithmetic took."""
    shape = schedule_shape()
    walk = probe.Probe.walk

    def wrong(self: probe.Probe, shape: Any, given: Any, *args: Any, **special: Any) -> Any:
        given = [replace(one, pitch=one.pitch - 32) for one in given]
        return walk(self, shape, given, *args, **special)

    monkeypatch.setattr(probe.Probe, "walk", wrong)
    with pytest.raises(TraceError, match=r"something else|differ"):
        run(tmp_path / "t.h5", network_of(shape), [3], EPUR, Accelerator.load("epur-mwl"), False)
    assert list(tmp_path.iterdir()) == []


def ahead_in_place(item: Any) -> Any:
    """The next pass's weights come to where this one's lie."""
    if item.ahead is None:
        return item
    shape, given = item.ahead
    return replace(item, ahead=(shape, replace(given, matrix=item.given[0].matrix)))


def other_input(item: Any) -> Any:
    given = item.given[0]
    if given.source == "dram":
        return item
    return replace(item, given=(replace(given, source_address=given.source_address + 64),))


def not_loaded(item: Any) -> Any:
    return replace(item, given=tuple(replace(one, load=False) for one in item.given))


def exchanged(item: Any) -> Any:
    """Two sequences read each other's input."""
    a, b = item.given
    if a.source == "dram":
        return item
    return replace(
        item,
        given=(
            replace(a, source_address=b.source_address),
            replace(b, source_address=a.source_address),
        ),
    )


FAULTS: list[tuple[Callable[[Any], Any], str, dict[str, Any]]] = [
    (ahead_in_place, "epur", {"double_buffering": True}),
    (ahead_in_place, "epur-batch", {"double_buffering": True}),
    (other_input, "epur", {}),
    (other_input, "epur-mwl", {}),
    (other_input, "epur-tiled", {}),
    (not_loaded, "epur", {}),
    (not_loaded, "epur-batch", {}),
    (exchanged, "epur-batch", {}),
]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("fault", "preset", "changes"), FAULTS)
def test_faults_of_a_plan_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any], preset: str,
    changes: dict[str, Any], level: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("EPUR_SIMD", level)
    planned = probe._planned

    def wrong(*args: Any) -> Any:
        schedule, found = planned(*args)
        return schedule, [fault(item) for item in found]

    monkeypatch.setattr(probe, "_planned", wrong)
    machine = replace(Accelerator.load(preset), **changes)
    with pytest.raises(TraceError, match="something else"):
        lengths = [9] * (1 + (preset == "epur-batch"))
        run(tmp_path / "t.h5", network_of(schedule_shape()), lengths, EPUR, machine, False)
    assert list(tmp_path.iterdir()) == []


class Forgetful(probe.Walk):
    """The initial state never comes; it is zero, as the buffers are."""

    def state(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("preset", probe.WALKS)
def test_a_forgotten_write_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, level: str
) -> None:
    monkeypatch.setenv("EPUR_SIMD", level)
    monkeypatch.setattr(probe, "Walk", Forgetful)
    machine = Accelerator.load(preset)
    with pytest.raises(TraceError, match="something else"):
        run(tmp_path / "t.h5", network_of(schedule_shape()), [3], EPUR, machine, False)
    assert list(tmp_path.iterdir()) == []


STACK = (LayerShape("0", 21, 18, True),), (LayerShape("1", 18, 33),)

#: A step's pass of a layer whose state, whose input or whose weights are somewhere else.
WRONG_STEPS: dict[str, Callable[[Any], Any]] = {
    "state": lambda given: replace(given, state_address=given.state_address + 32),
    "input": lambda given: replace(given, source_address=given.source_address - 32),
    "output": lambda given: replace(given, out_address=given.out_address + 4),
    "weights": lambda given: replace(given, matrix=dict.fromkeys(given.matrix, 64)),
    "weights beyond": lambda given: replace(given, matrix=dict.fromkeys(given.matrix, 1 << 40)),
    "weights before": lambda given: replace(given, matrix=dict.fromkeys(given.matrix, -(1 << 40))),
}


@pytest.mark.parametrize("what", WRONG_STEPS)
def test_faults_of_a_decoding_plan_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Of the second layer, in all but the first step."""
    run = probe.Probe.run

    def wrong(self: probe.Probe, item: Any, *args: Any, **special: Any) -> Any:
        (given,) = item.given
        if item.shape == STACK[1][0] and given.initial == "intermediate":
            item = replace(item, given=(WRONG_STEPS[what](given),))
        return run(self, item, *args, **special)

    machine = Accelerator.load("epur")
    decoded(tmp_path / "t.h5", network_of(STACK), 3, EPUR, machine, False, True)
    (tmp_path / "t.h5").unlink()
    monkeypatch.setattr(probe.Probe, "run", wrong)
    with pytest.raises(TraceError, match="something else"):
        decoded(tmp_path / "t.h5", network_of(STACK), 3, EPUR, machine, False, True)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_follow_one_another_agree(tmp_path: Path) -> None:
    """An encoder of several passes, then a decoder."""
    machine, rng = Accelerator.load("epur-mwl"), np.random.default_rng(3)
    encoder, decoder = network_of(schedule_shape()), network_of(STACK, 1)
    first = schedule_sequence(encoder.shape, 5, EPUR, machine)
    then = schedule_decode(decoder.shape, 4, EPUR, machine, cycle=first.cycles, dram=first.dram_end)
    read = probe.Sequences(
        encoder, [numbers(rng, 5, 21)],
        [[numbers(rng, 5, sum(p.cells for p in layer)) for layer in encoder.layers]],
    )  # fmt: skip
    written = probe.Decoded(
        decoder, [numbers(rng, 4, 21)], [numbers(rng, 4, p.cells) for p in decoder.passes],
        parents=np.array([-1, 0, 0, 1]),
    )  # fmt: skip
    events = probe.probe_runs(tmp_path / "t.h5", [read, written], EPUR, machine, {"a": 1})
    streams = Trace([*first.phases, *then.phases], then.components, then.cycles)
    assert Counter(log(events)) == Counter(log(streams))
    assert events.operations() == streams.operations()
    assert events.cycles == streams.cycles
    events.validate()


@pytest.mark.parametrize("preset", ["epur", "epur-mwl"])
def test_rows_do_not_grow_with_the_accesses(tmp_path: Path, preset: str) -> None:
    """Accesses of one kind share a row from step to step."""
    shape = ((LayerShape("0", 40, 64, True),),)
    net, machine = network_of(shape), Accelerator.load(preset)
    rows, counts = [], []
    for steps in (100, 200):
        trace = run(tmp_path / "t.h5", net, [steps], EPUR, machine, False)
        counts.append(trace.count())
        rows.append(sum(len(r.op) for c in trace.components for r in trace.runs(c.name)))
    assert counts[1] > 1.9 * counts[0]
    assert rows[1] - rows[0] < 100 * 10


def interrupt_after(accesses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the next probe once it has performed so many."""
    reached = probe._Recorder.reached

    def interrupted(self: Any, cycle: int | None) -> None:
        if cycle is not None and self.log.accesses > accesses:
            raise KeyboardInterrupt
        reached(self, cycle)

    monkeypatch.setattr(probe._Recorder, "reached", interrupted)


def test_an_interrupted_probe_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(20_000, monkeypatch)
    monkeypatch.setattr(probe, "ENOUGH", 10)
    with pytest.raises(KeyboardInterrupt):
        run(
            tmp_path / "t.h5",
            network_of(schedule_shape()),
            [9],
            EPUR,
            Accelerator.load("epur"),
            False,
        )
    assert [file.name for file in tmp_path.iterdir()] == ["t.h5.partial"]
    partial = Trace.open(tmp_path / "t.h5.partial")
    assert not partial.complete
    assert 5_000 < partial.count() < 30_000


def test_outputs_of_another_shape_are_refused(tmp_path: Path) -> None:
    net, machine = network_of(schedule_shape()), Accelerator.load("epur")
    x, layers = np.zeros((3, 21), np.float32), [np.zeros((3, n), np.float32) for n in (36, 33)]
    probe.probe_sequences(tmp_path / "t.h5", net, [x], [layers], None, EPUR, machine, {})
    for wrong in ([layers[0][:2], layers[1]], [layers[0], layers[1][:, 1:]]):
        with pytest.raises(TraceError, match="shapes"):
            probe.probe_sequences(tmp_path / "w.h5", net, [x], [wrong], None, EPUR, machine, {})
    assert [file.name for file in tmp_path.iterdir()] == ["t.h5"]


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        run(
            tmp_path / "absent" / "t.h5", network_of(schedule_shape()), [2], EPUR,
            Accelerator.load("epur"), False,
        )  # fmt: skip
