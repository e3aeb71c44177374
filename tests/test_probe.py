"""Probe mode: events, streams and the oracle's log agree access for access; what reads deliver is checked."""

from __future__ import annotations

from collections import Counter
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
from epur_emu.dataflow import DATAFLOWS, schedule_sequence
from epur_emu.emulator import emulate
from epur_emu.errors import AcceleratorError, TraceError
from epur_emu.network import LstmLayer, Network
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


def run(
    path: Path, net: Network, steps: int, arithmetic: Arithmetic, machine: Accelerator, given: bool
) -> Trace:
    """A probe of outputs that are just numbers: accesses do not depend on them."""
    rng = np.random.default_rng(steps)
    x = rng.standard_normal((steps, net.layers[0][0].inputs), np.float32)
    layers = [
        rng.standard_normal((steps, sum(p.cells for p in layer)), np.float32)
        for layer in net.layers
    ]
    initial = None
    if given:
        initial = [
            tuple(rng.standard_normal((2, p.cells), np.float32)) for p in net.passes
        ]  # fmt: skip
    return probe.probe_sequence(path, net, x, layers, initial, arithmetic, machine, {"a": 1})


@settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    stacks(), st.integers(0, 4), machines(probe.WALKS), st.one_of(st.just(EPUR), arithmetics()),
    st.booleans(), st.sampled_from((1, 40, probe.ENOUGH)),
)  # fmt: skip
def test_events_streams_and_oracle_agree(
    tmp_path: Path, shape: Any, steps: int, machine: Accelerator, arithmetic: Arithmetic,
    given: bool, enough: int,
) -> None:  # fmt: skip
    machine = replace(machine, double_buffering=False)  # prefetched passes have no walk
    wanted, cycles = oracle_accesses.accesses_sequence(
        shape, steps, arithmetic, machine, machine.dataflow, given
    )
    schedule = schedule_sequence(shape, steps, arithmetic, machine, given)
    streams = Trace(schedule.phases, schedule.components, schedule.cycles)
    before, probe.ENOUGH = probe.ENOUGH, enough
    try:
        events = run(tmp_path / "t.h5", network_of(shape), steps, arithmetic, machine, given)
    finally:
        probe.ENOUGH = before
    found = log(events)
    assert Counter(found) == Counter(wanted) == Counter(log(streams))
    place = {c.name: n for n, c in enumerate(events.components)}
    order = [(t, place[c], OPS.index(op)) for t, c, op, _, _ in found]
    assert order == sorted(order)
    assert events.cycles == cycles
    assert events.operations() == streams.operations()
    assert events.bytes_by_component() == streams.bytes_by_component()
    assert events.meta == {"a": 1}
    assert events.complete
    events.validate()


@settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip
@given(stacks(), st.integers(1, 4), st.one_of(machines(), tight_machines()), st.booleans())
def test_what_has_no_walk_is_refused(
    tmp_path: Path, shape: Any, steps: int, machine: Accelerator, given: bool
) -> None:
    """And what has one is walked, however tight the buffers."""
    try:
        schedule = schedule_sequence(shape, steps, EPUR, machine, given)
    except AcceleratorError:
        assume(False)
    path, net = tmp_path / "t.h5", network_of(shape)
    taken = {policy.policy for policy in schedule.policies}
    if machine.dataflow in probe.WALKS and not taken:
        streams = Trace(schedule.phases, schedule.components, schedule.cycles)
        assert Counter(log(run(path, net, steps, EPUR, machine, given))) == Counter(log(streams))
        path.unlink()
        return
    with pytest.raises(AcceleratorError, match="can't be probed") as refused:
        run(path, net, steps, EPUR, machine, given)
    line = str(refused.value)
    assert f"{machine.dataflow!r}" in line
    assert "trace mode streams" in line
    assert "\n" not in line
    if machine.dataflow in probe.WALKS:
        assert all(policy in line for policy in taken)
        assert ("double_buffering" in line) == ("prefetched" in taken)
    else:
        assert all(name in line for name in probe.WALKS)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_comes_before_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator.Engine, "sequence", lambda *_: pytest.fail("evaluated"))
    net, x = network_of(schedule_shape(), 5), np.zeros((9, 21), np.float32)
    with pytest.raises(AcceleratorError, match="can't be probed"):
        emulate(net, x, EPUR, Accelerator.load("epur-tiled"), events=tmp_path / "t.h5")
    small = replace(Accelerator.load("epur"), input_buffer_bytes=16)
    with pytest.raises(AcceleratorError, match="input_buffer_bytes"):
        emulate(net, x, EPUR, small)


def test_walks_are_of_dataflows() -> None:
    assert probe.WALKS.keys() <= DATAFLOWS.keys()


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


def schedule_shape() -> Any:
    from epur_emu.network import LayerShape

    return (
        (LayerShape("0.f", 21, 18, True), LayerShape("0.b", 21, 18, True, True)),
        (LayerShape("1", 36, 33),),
    )


def test_a_read_of_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataflow with a wrong place gives other operands than the arithmetic took."""
    shape = schedule_shape()
    numbers = probe.Probe.numbers

    def wrong(self: probe.Probe, *args: Any) -> dict[str, Any]:
        found = numbers(self, *args)
        return found | {"y_pitch": found["y_pitch"] - 16 * found["ye"]}

    monkeypatch.setattr(probe.Probe, "numbers", wrong)
    with pytest.raises(TraceError, match=r"something else|differ"):
        run(tmp_path / "t.h5", network_of(shape), 3, EPUR, Accelerator.load("epur-mwl"), False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_probe_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = probe._Recorder.reached

    def interrupted(self: Any, cycle: int | None) -> None:
        if cycle is not None and self.log.accesses > 20_000:
            raise KeyboardInterrupt
        reached(self, cycle)

    monkeypatch.setattr(probe._Recorder, "reached", interrupted)
    monkeypatch.setattr(probe, "ENOUGH", 10)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t.h5", network_of(schedule_shape()), 9, EPUR, Accelerator.load("epur"), False)
    assert [file.name for file in tmp_path.iterdir()] == ["t.h5.partial"]
    partial = Trace.open(tmp_path / "t.h5.partial")
    assert not partial.complete
    assert 5_000 < partial.count() < 30_000


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        run(
            tmp_path / "absent" / "t.h5", network_of(schedule_shape()), 2, EPUR,
            Accelerator.load("epur"), False,
        )  # fmt: skip


def test_a_dataflow_without_a_probe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "WALKS", {})
    with pytest.raises(AcceleratorError, match="can't be probed"):
        run(tmp_path / "t", network_of(schedule_shape()), 2, EPUR, Accelerator.load("epur"), False)
