"""Energy: the closed form against a sum over single accesses, and the shipped tables."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NAMES, events, streams

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Override, arithmetic
from epur_emu.cli import main
from epur_emu.dataflow import schedule_sequence
from epur_emu.energy import Dram, EnergyTable, Grid, Report, drams, energy, grids, presets, timeline
from epur_emu.energy.dram import DRAM_IDLE
from epur_emu.energy.events import Tally
from epur_emu.energy.sram import COSTS
from epur_emu.energy.values import STATUSES
from epur_emu.errors import EpurError, TableError, TraceError
from epur_emu.formats import parse
from epur_emu.network import LayerShape
from epur_emu.streams import KINDS, OPS, AccessStream, Component, Phase
from epur_emu.trace import Trace
from epur_emu.trace.accesses import Runs

ROOT = Path(__file__).parents[1]
EPUR = Accelerator.load("epur")
FP16 = arithmetic("epur-fp16")
PRESET = EnergyTable.load("epur-28nm")

# Memories so small that random streams reach over their banks and into the parameter bank.
SMALL = replace(EPUR, weight_buffer_bytes=256, weight_buffer_banks=8, intermediate_banks=4)
COMPONENTS = (
    Component("cu.i.weights", 256 + 8192, 256, 8),
    Component("intermediate", 512, 256, 4),
    Component("dram", None, 512, 1),
)
META = {"accelerator": SMALL.to_dict(), "arithmetic": FP16.to_dict()}


def _small_table() -> EnergyTable:
    memories = []
    for memory in (m for m in PRESET.memories if m.ports == PRESET.ports):
        if memory.kind == "weights" and memory.capacity_bytes == EPUR.weight_buffer_bytes:
            memories.append(replace(memory, capacity_bytes=256, banks=8))
        elif memory.kind == "intermediate":
            memories.append(replace(memory, capacity_bytes=512, banks=4))
        elif memory.kind == "parameters":
            memories.append(memory)
    return replace(PRESET, memories=tuple(memories), sram="", dram=Dram.load("lpddr4"))


TABLE = _small_table()


def phases() -> st.SearchStrategy[Phase]:
    operation = st.sampled_from(
        [("multiply", "dpu"), ("add", "dpu"), ("exp", "mu"), ("divide", "mu"), ("link", "link")]
    )
    operations = st.dictionaries(operation, st.integers(0, 10**6), max_size=4)
    return st.builds(
        Phase,
        st.just("lstm"),
        st.sampled_from(KINDS),
        st.lists(streams(), max_size=4).map(tuple),
        operations.map(lambda counts: tuple((*key, n) for key, n in counts.items())),
    )


def traces() -> st.SearchStrategy[Trace]:
    return st.builds(
        Trace,
        st.lists(phases(), max_size=3),
        st.just(COMPONENTS),
        st.integers(0, 10**9),
        st.just(META),
        events(),
    )


def values(plain: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value of a table in plain form, with its place."""
    if isinstance(plain, dict):
        if "value" in plain:
            yield path, plain
        else:
            for key, inner in plain.items():
                yield from values(inner, f"{path}.{key}")
    elif isinstance(plain, list):
        for number, inner in enumerate(plain):
            yield from values(inner, f"{path}[{number}]")


def scaled(table: EnergyTable, factor: float) -> EnergyTable:
    """All energies and powers times `factor`."""
    plain = table.to_dict()
    for _, value in values(plain):
        if value["unit"].startswith(("pJ", "mW")):
            value["value"] *= factor
    return EnergyTable.from_dict(plain)


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-9)


def one_by_one(trace: Trace, table: EnergyTable) -> tuple[dict[str, float], dict[str, set[int]]]:
    """Dynamic energy by component from single accesses, and the banks touched."""
    kinds = {(m.kind): m for m in table.memories if m.cell == table.cell}
    sums = dict.fromkeys(NAMES, 0.0)
    banks: dict[str, set[int]] = {name: set() for name in NAMES}
    for chunk in trace.expand(chunk=64):
        rows = zip(*(column.tolist() for column in chunk.columns().values()), strict=True)
        for _, component, op, address, size in rows:
            name = NAMES[component]
            if name == "dram":
                dram = table.dram_of(None)
                bits = (dram.read_pj_per_bit, dram.write_pj_per_bit)[op].value
                page = dram.activate_pj.value / dram.page_bytes.value
                sums[name] += size * (8 * bits + page)
                continue
            kind = "weights" if name == "cu.i.weights" else name
            if kind == "weights" and address >= 256:
                kind = "parameters"
            else:
                end = min(address + size, kinds[kind].capacity_bytes)
                width = kinds[kind].capacity_bytes // kinds[kind].banks
                banks[name] |= {at // width for at in range(address, end)}
            memory = kinds[kind]
            pj = (memory.read_pj, memory.write_pj)[op].value
            sums[name] += math.ceil(size * 8 / 256) * pj
    return sums, banks


@given(traces())
def test_closed_form_is_the_sum_over_single_accesses(trace: Trace) -> None:
    report = energy(trace, TABLE)
    sums, _ = one_by_one(trace, TABLE)
    for name, pj in sums.items():
        assert close(report.by_component[name].dynamic_pj, pj), name


@given(traces())
def test_parts_sum_to_the_whole(trace: Trace) -> None:
    report = energy(trace, TABLE)
    costs = report.by_component.values()
    assert close(sum(c.dynamic_pj + c.static_pj for c in costs), report.total_pj)
    assert close(sum(phase.dynamic_pj for phase in report.by_phase), report.dynamic_pj)
    groups = report.groups()
    assert set(groups) == {"weights", "intermediate", "dram", "dpu", "mu", "link"}
    assert close(sum(cost.total_pj for cost in groups.values()), report.total_pj)
    assert sum(g.accesses for g in groups.values()) == sum(c.accesses for c in costs)
    for phase in report.by_phase:
        assert close(sum(phase.by_component.values()), phase.dynamic_pj)
    for name, cost in groups.items():
        assert close(sum(p.by_component.get(name, 0.0) for p in report.by_phase), cost.dynamic_pj)
    assert close(sum(report.by_kind().values()), report.dynamic_pj)
    layers = report.by_layer().values()
    assert close(sum(cost.dynamic_pj for cost in layers), report.dynamic_pj)
    if any(p.products or p.cycles for p in report.by_phase):
        assert close(sum(cost.static_pj for cost in layers), report.static_pj)


@given(traces(), st.integers(1, 50))
def test_a_timeline_holds_the_reports_energy(trace: Trace, parts: int) -> None:
    report = energy(trace, TABLE)
    if not trace.cycles:
        with pytest.raises(TraceError, match="cycles"):
            timeline(trace, TABLE, parts)
        return
    over = timeline(trace, TABLE, parts)
    widths = np.diff(over.cycles)
    assert (widths > 0).all() and widths.sum() == trace.cycles
    seconds = widths * report.seconds / trace.cycles
    held = {name: float(mw @ seconds) * 1e9 for name, mw in over.power_mw.items()}
    assert held.pop("static") == pytest.approx(report.static_pj, rel=1e-9, abs=1e-6)
    wanted = {name: cost.dynamic_pj for name, cost in report.groups().items()}
    assert held.keys() == wanted.keys()
    for name, pj in wanted.items():
        assert held[name] == pytest.approx(pj, rel=1e-9, abs=1e-6), name


def test_a_timeline_puts_accesses_where_they_are() -> None:
    late = AccessStream("cu.i.weights", "read", 32, 0, 90, ((10, 0, 1),))
    even = AccessStream("intermediate", "read", 32, 0, 0, ((50, 0, 2),))
    work = (("multiply", "dpu", 160),)
    trace = Trace([Phase("lstm", "forward", (late, even), work)], COMPONENTS, 100, META)
    power = timeline(trace, TABLE, 10).power_mw
    assert not power["weights"][:9].any() and power["weights"][9] > 0
    assert not power["dpu"][:9].any() and power["dpu"][9] > 0
    assert power["intermediate"] == pytest.approx(power["intermediate"][0])


@given(traces(), st.sampled_from((0.5, 2.0, 3.0, 1e3)))
def test_linear_in_the_table(trace: Trace, factor: float) -> None:
    once, more = energy(trace, TABLE), energy(trace, scaled(TABLE, factor))
    assert close(more.dynamic_pj, factor * once.dynamic_pj)
    assert close(more.static_pj, factor * once.static_pj)
    assert close(more.peak_mw, factor * once.peak_mw)
    assert more.area_mm2 == once.area_mm2


@given(traces())
def test_everything_twice_costs_twice(trace: Trace) -> None:
    twice = Trace([*trace.phases, *trace.phases], COMPONENTS, 2 * trace.cycles, META)
    once = Trace(trace.phases, COMPONENTS, trace.cycles, META)
    assert close(energy(twice, TABLE).dynamic_pj, 2 * energy(once, TABLE).dynamic_pj)
    assert close(energy(twice, TABLE).static_pj, 2 * energy(once, TABLE).static_pj)


@given(st.lists(phases(), max_size=3), st.data())
def test_a_trace_cut_in_two_costs_the_same(parts: list[Phase], data: st.DataObject) -> None:
    cut = []
    for phase in parts:
        pieces = []
        for stream in phase.streams:
            at = data.draw(st.integers(0, len(stream)))
            pieces += [*stream[:at], *stream[at:]]
        cut.append(replace(phase, streams=tuple(pieces)))
    whole, pieced = (energy(Trace(p, COMPONENTS, 100, META), TABLE) for p in (parts, cut))
    for name in NAMES:
        assert close(pieced.by_component[name].dynamic_pj, whole.by_component[name].dynamic_pj)
        assert pieced.by_component[name].accesses == whole.by_component[name].accesses


@given(traces())
def test_no_touched_bank_is_gated(trace: Trace) -> None:
    _, banks = one_by_one(trace, TABLE)
    gated = energy(trace, TABLE).by_component
    on = energy(trace, replace(TABLE, gate_banks=False)).by_component
    seconds = trace.cycles / SMALL.clock_hz
    parameters = TABLE.memory("parameters", 8192, 256, 1).leakage_mw.value * 1e9 * seconds
    for name, count, other in (("cu.i.weights", 8, parameters), ("intermediate", 4, 0.0)):
        full = on[name].static_pj - other
        least = full * len(banks[name]) / count
        assert least * (1 - 1e-9) <= gated[name].static_pj - other + 1e-9
        assert gated[name].static_pj <= on[name].static_pj * (1 + 1e-9)


def test_contiguous_use_gates_exactly_the_rest() -> None:
    stream = AccessStream("cu.i.weights", "read", 32, 0, 0, ((3, 32, 1),))
    trace = Trace([Phase("lstm", "forward", (stream,))], COMPONENTS, 500_000_000, META)
    report = energy(trace, TABLE)
    weights = TABLE.memory("weights", 256, 256, 8).leakage_mw.value
    background = TABLE.dram_of(None).background_mw("standby")
    bank = TABLE.memory("parameters", 8192, 256, 1).leakage_mw.value
    assert close(report.by_component["cu.i.weights"].static_pj, (weights * 3 / 8 + bank) * 1e9)
    assert report.by_component["intermediate"].static_pj == 0
    assert close(report.by_component["dram"].static_pj, background * 1e9)
    assert report.seconds == 1


@pytest.mark.parametrize("idle", DRAM_IDLE)
def test_an_idle_dram_pays_standby_only_while_it_moves(idle: str) -> None:
    stream = AccessStream("dram", "read", 64, 0, 0, ((1000, 64, 1),))
    trace = Trace([Phase("lstm", "load", (stream,))], COMPONENTS, 500_000_000, META)
    report = energy(trace, replace(TABLE, dram_idle=idle))
    dram = Dram.load("lpddr4")
    refresh = dram.refresh_mw.value
    asleep = {
        "standby": dram.standby_mw.value + refresh, "power-down": dram.power_down_mw.value + refresh,
        "self-refresh": dram.self_refresh_mw.value,
    }[idle]  # fmt: skip
    awake = 64_000 / 30e9
    wanted = 4 * ((dram.standby_mw.value + refresh) * awake + asleep * (1 - awake)) * 1e9
    assert close(report.by_component["dram"].static_pj, wanted)


def test_operations_are_priced_in_the_formats_of_their_places() -> None:
    mixed = replace(FP16, accumulator=arithmetic("float32").accumulator)
    phase = Phase(
        "lstm", "forward", (), (("multiply", "dpu", 32), ("add", "dpu", 33), ("exp", "mu", 2))
    )
    meta = {**META, "arithmetic": mixed.to_dict()}
    report = energy(Trace([phase], COMPONENTS, 1, meta), TABLE)
    scale = (28 / 45) * (0.78 / 0.9) ** 2
    # 30 sums in the tree, 3 in the accumulator. A product passes 4 registers, its operands 2; a sum 2.
    wanted = scale * (32 * 1.1 + 30 * 0.4 + 3 * 0.9)
    wanted += 0.00474 * (32 * 6 * 16 + 30 * 2 * 16 + 3 * 2 * 32)
    assert report.by_component["dpu"].dynamic_pj == pytest.approx(wanted, rel=1e-4)
    assert report.by_component["dpu"].accesses == 65
    exponentials = 2 * (scale * 6.0 + 0.00474 * 5 * 16)
    assert report.by_component["mu"].dynamic_pj == pytest.approx(exponentials, rel=1e-4)
    assert (report.products, report.pj_per_step) == (32, None)
    assert report.pj_per_mac == report.total_pj / 32


def test_report_of_no_cycles_is_finite_and_plain() -> None:
    report = energy(Trace([], COMPONENTS, 0, META), TABLE)
    assert (report.total_pj, report.average_mw, report.average_chip_mw) == (0, 0, 0)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert report.peak_mw > 0


@given(traces())
def test_report_round_trip(trace: Trace) -> None:
    report = energy(trace, TABLE)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report.from_dict(plain) == report
    assert plain["total_pj"] == report.total_pj


SHAPE = ((LayerShape("lstm", 64, 48, True),),)


def scheduled(name: str) -> Trace:
    accelerator = Accelerator.load(name)
    schedule = schedule_sequence(SHAPE, 5, FP16, accelerator)
    meta = {"accelerator": accelerator.to_dict(), "arithmetic": FP16.to_dict()}
    return Trace(schedule.phases, schedule.components, schedule.cycles, meta)


@pytest.mark.parametrize("name", ["epur", "epur-mwl"])
@pytest.mark.parametrize("table", presets())
def test_presets_price_the_accelerators(name: str, table: str) -> None:
    trace = scheduled(name)
    chosen = EnergyTable.load(table)
    for cell in chosen.cells:
        report = energy(trace, chosen.varied(cell=cell))
        groups = report.groups()
        assert all(cost.dynamic_pj > 0 for cost in groups.values())
        assert ("row" in groups) == (name == "epur-mwl")
        assert 0 < report.average_chip_mw < report.peak_mw


def test_mwl_halves_the_energy_of_the_weight_buffers() -> None:
    # The paper: half of the accesses, from a buffer of half the size.
    whole, local = (energy(scheduled(n), PRESET).groups()["weights"] for n in ("epur", "epur-mwl"))
    assert local.dynamic_pj < 0.5 * whole.dynamic_pj


def test_unknown_table_lists_the_known() -> None:
    with pytest.raises(TableError, match="epur-28nm"):
        EnergyTable.load("epur-7nm")


def test_cell_by_name_and_by_path(tmp_path: Path) -> None:
    assert EnergyTable.load("epur-28nm:lop") == PRESET.varied(cell="lop")
    path = tmp_path / "own.toml"
    path.write_bytes((ROOT / "epur_emu/data/energy/epur-28nm.toml").read_bytes())
    assert EnergyTable.load(f"{path}:hp") == PRESET.varied(cell="hp")
    assert EnergyTable.load("epur-28nm:lop:1rw") == PRESET.varied(cell="lop", ports="1rw")
    assert EnergyTable.load("epur-28nm:1rw") == PRESET.varied(ports="1rw")
    with pytest.raises(TableError, match="lstp, lop, hp"):
        EnergyTable.load("epur-28nm:mram")


@pytest.mark.parametrize("table", presets())
def test_every_shipped_value_says_where_it_is_from(table: str) -> None:
    plain = EnergyTable.load(table).to_dict()
    found = list(values(plain))
    assert len(found) > 30
    for place, value in found:
        assert set(value) - {"scaled"} == {"value", "unit", "source", "status"}, place
        assert value["unit"] and value["source"], place
        assert value["status"] in STATUSES, place
    for key in ("version", "command", "config", "clock_ns", "technology_nm", "temperature_k"):
        assert plain["cacti"][key], key


@pytest.mark.parametrize("table", presets())
def test_table_round_trip(table: str) -> None:
    loaded = EnergyTable.load(table)
    assert EnergyTable.from_dict(json.loads(json.dumps(loaded.to_dict()))) == loaded


def test_every_memory_meets_the_clock() -> None:
    for memory in PRESET.memories:
        assert memory.cycle_ns.value <= 1e9 / EPUR.clock_hz, memory


def test_operation_scale_is_what_its_source_says() -> None:
    assert PRESET.operation_scale.value == pytest.approx((28 / 45) * (0.78 / 0.9) ** 2, rel=1e-4)


@pytest.mark.parametrize("fmt", ["fp16", "fp32"])
def test_compound_operations_are_what_their_sources_say(fmt: str) -> None:
    pj = {op.name: op.energy.value for op in PRESET.operations if op.format == fmt}
    multiplies, adds = {"fp16": (4, 4), "fp32": (7, 7)}[fmt]
    assert pj["exp"] == pytest.approx(multiplies * pj["multiply"] + adds * pj["add"])
    multiplies, adds = {"fp16": (4, 2), "fp32": (6, 3)}[fmt]
    assert pj["divide"] == pytest.approx(multiplies * pj["multiply"] + adds * pj["add"])
    assert pj["quantise"] == pytest.approx(pj["multiply"] + 0.03)
    bits = int(fmt[2:])
    assert pj["link"] == pytest.approx(bits * 4 * 0.2 * 0.78**2 / 4, rel=2e-3)


def test_a_missing_memory_is_refused_by_name() -> None:
    lacking = replace(TABLE, memories=tuple(m for m in TABLE.memories if m.kind != "intermediate"))
    with pytest.raises(TableError, match="'intermediate' of 512 bytes"):
        energy(Trace([], COMPONENTS, 0, META), lacking)


def test_a_missing_operation_is_refused_by_name() -> None:
    trace = Trace([Phase("lstm", "mu", (), (("sqrt", "mu", 1),))], COMPONENTS, 0, META)
    with pytest.raises(TableError, match="'sqrt' in fp16"):
        energy(trace, TABLE)
    lacking = replace(TABLE, operations=tuple(op for op in TABLE.operations if op.name != "exp"))
    with pytest.raises(TableError, match="'exp' in fp16"):
        energy(Trace([], COMPONENTS, 0, META), lacking)


@pytest.mark.parametrize(
    ("name", "fmt", "priced"),
    [
        ("multiply", "bf16", "fp16"),
        ("add", "e4m3fn-sat", "fp16"),
        ("add", "tf32", "fp32"),
        ("multiply", "int4", "int4"),
        ("multiply", "int5", "int8"),
        ("exp", "int8", "int16"),
        ("add", "int24", "int32"),
        ("add", "int32", "int32"),
    ],
)
def test_a_format_without_a_price_costs_what_the_next_wider_does(
    name: str, fmt: str, priced: str
) -> None:
    assert PRESET.operation(name, fmt).format == priced
    with pytest.raises(TableError, match="'add' in int40"):
        PRESET.operation("add", "int40")


def test_gates_are_priced_in_their_own_formats() -> None:
    """One neuron, one step, 16 inputs: 32 products a gate, 30 sums in the tree, 2 accumulated."""
    values = {"weight": parse("fp16"), "input": parse("fp16"), "partial": parse("fp16")}
    values |= dict.fromkeys(("product", "tree"), parse("bf16"))
    values |= {"accumulator": parse("fp16")}
    mixed = replace(
        arithmetic("epur-int8"), overrides=(Override("lstm", "o", tuple(values.items())),)
    )
    schedule = schedule_sequence(((LayerShape("lstm", 16, 1),),), 1, mixed, EPUR)
    meta = {"accelerator": EPUR.to_dict(), "arithmetic": mixed.to_dict()}
    trace = Trace(schedule.phases, schedule.components, schedule.cycles, meta)
    counts = {name: n for (name, unit), n in trace.operations().items() if unit == "dpu"}
    assert counts == {
        "multiply.int8": 96, "add.int24": 96, "multiply.bf16": 32, "add.bf16": 30, "add.fp16": 2
    }  # fmt: skip
    report = energy(trace, PRESET)
    scale = PRESET.operation_scale.value
    wanted = scale * (96 * (0.2 + 0.1) + 32 * (1.1 + 0.4))
    wanted += 0.00474 * (96 * (6 * 8 + 2 * 24) + 32 * (6 + 2) * 16)
    assert report.by_component["dpu"].dynamic_pj == pytest.approx(wanted)
    assert report.wider == {"multiply.bf16": "fp16", "add.bf16": "fp16", "add.int24": "int32"}


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Component("cache", 64, 256, 1), "component 'cache'"),
        (Component("cu.i.inputs", None, 256, 1), "component 'cu.i.inputs'"),
        (Component("cu.i.weights", 256 + 64, 256, 8), "'parameters' of 64 bytes"),
        (Component("cu.i.weights", 256 + 8192, 128, 8), "'weights' of 256 bytes"),
    ],
)
def test_a_component_no_table_holds_is_refused_by_name(component: Component, message: str) -> None:
    with pytest.raises(TableError, match=message):
        energy(Trace([], [component], 0, META), TABLE)


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ({}, "accelerator"),
        ({"accelerator": SMALL.to_dict()}, "arithmetic"),
        ({**META, "accelerator": {**SMALL.to_dict(), "width": 15}}, "width"),
        ({**META, "arithmetic": {**FP16.to_dict(), "mu": "fp17"}}, "fp17"),
    ],
)
def test_a_trace_that_does_not_say_what_made_it_is_refused(
    meta: dict[str, Any], field: str
) -> None:
    with pytest.raises(TraceError, match=field):
        energy(Trace([], COMPONENTS, 0, meta), TABLE)


def _damaged(plain: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner: Any = plain
    for key in path:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return plain


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("name", None),
        ("name", 3),
        ("surprise", 1),
        ("cell", "mram"),
        ("cells", []),
        ("gate_banks", 1),
        ("dram_idle", "off"),
        ("dram", "core memory"),
        ("dram", {"channels": 1}),
        ("ports", "2rw"),
        ("temperature_k", 0),
        ("sram", "cacti-5nm"),
        ("sram", []),
        ("cacti.temperature_k", "hot"),
        ("register", None),
        ("register.value", -1),
        ("memories", "none"),
        ("memories.0", 7),
        ("memories.0.kind", "tape"),
        ("memories.0.cell", "mram"),
        ("memories.0.banks", 0),
        ("memories.0.read_pj.value", -1.0),
        ("memories.0.read_pj.value", float("nan")),
        ("memories.0.read_pj.value", float("inf")),
        ("memories.0.read_pj.value", True),
        ("memories.0.read_pj.value", 10**400),
        ("memories.0.read_pj.status", "rumoured"),
        ("memories.0.read_pj.source", ""),
        ("memories.0.read_pj.unit", None),
        ("memories.0.cell", "lop"),
        ("operations.add", 1),
        ("operations.add.fp16.scaled", None),
        ("logic.dpu_share.value", 1.5),
        ("logic.leakage_mw.lstp", None),
        ("logic.leakage_mw", 1),
        ("cacti", "none"),
    ],
)
def test_a_damaged_table_is_refused_with_its_place(place: str, value: Any) -> None:
    with pytest.raises(TableError) as caught:
        EnergyTable.from_dict(_damaged(PRESET.to_dict(), place, value), "own.toml")
    text = str(caught.value)
    assert "\n" not in text
    assert place.split(".")[0] in text


@pytest.mark.parametrize("text", [b"name = ", b"\xff", b""])
def test_a_damaged_file_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(text)
    with pytest.raises(EpurError, match=r"own\.toml"):
        EnergyTable.load(path)


def _script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # CACTI's own faults stop it under a sanitizer
    path = ROOT / "scripts" / "make_energy_table.py"
    spec = importlib.util.spec_from_file_location("make_energy_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


needs_cacti = pytest.mark.skipif(
    importlib.util.find_spec("zigzag") is None, reason="needs zigzag-dse (CACTI)"
)


@needs_cacti
def test_the_table_is_what_cacti_says(monkeypatch: pytest.MonkeyPatch) -> None:
    script = _script(monkeypatch)
    cacti, made = script.find_cacti(None), PRESET.cacti
    technology, kelvin = made["technology_nm"] / 1000, made["temperature_k"]
    for number, m in enumerate(PRESET.memories):
        # All as they are used, and of the others some.
        if (m.cell, m.ports) != (PRESET.cell, PRESET.ports) and number % 11:
            continue
        banks = max(1, m.banks // m.macros) * m.parts
        macro = script.Macro(m.capacity_bytes // m.macros, m.width_bits, banks, m.cell, m.ports)
        r = script.run_cacti(cacti, macro, technology, kelvin)
        fresh = (r.read_pj, r.write_pj, m.macros * r.leakage_mw, m.macros * r.area_mm2,
                 r.cycle_ns, r.access_ns)  # fmt: skip
        assert [getattr(m, key).value for key in COSTS] == pytest.approx(fresh, rel=0.01), m
    wanted = script.CONFIG.replace("{technology}", str(technology))
    assert made["config"] == wanted.replace("{temperature}", str(kelvin))


@needs_cacti
@pytest.mark.parametrize("name", grids())
def test_the_grids_are_what_cacti_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, grid = _script(monkeypatch), Grid.load(name)
    cacti = script.find_cacti(None)
    small = [key for key in grid.points if key[-1] <= 1 << 15]
    for cell, ports, width, banks, size in small[:: len(small) // 4]:
        macro = script.Macro(size, width, banks, cell, ports)
        r = script.run_cacti(cacti, macro, grid.technology_nm / 1000, grid.temperature_k)
        fresh = (r.read_pj, r.write_pj, r.leakage_mw, r.area_mm2, r.cycle_ns, r.access_ns)
        assert grid.points[cell, ports, width, banks, size] == pytest.approx(fresh, rel=0.01)


@needs_cacti
def test_a_bank_is_cut_until_it_meets_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    script = _script(monkeypatch)
    macro, found = script.Macro(1 << 16, 64, 1, "lstp", "1rw"), {}

    def run(cacti: object, macro: Any, technology: float, temperature: int) -> Any:
        return found.setdefault(macro.banks, script.Result(1, 1, 1, 1, 8.0 / macro.banks, 1, "v"))

    monkeypatch.setattr(script, "run_cacti", run)
    assert script.fitting(None, macro, 0.028, 320, 2.0) == (4, found[4])
    assert list(found) == [1, 2, 4]
    assert script.fitting(None, macro, 0.028, 320, 0.1) == (8, found[8])


# --- grids of memories

WIDE = st.sampled_from([64, 100, 128, 256, 512, 1000, 1024])


@pytest.mark.parametrize("name", grids())
def test_a_grid_gives_its_points_back_and_is_complete(name: str) -> None:
    grid = Grid.load(name)
    assert grid.name == name == f"cacti-{grid.technology_nm}nm"
    for (cell, ports, width, banks, size), costs in grid.points.items():
        m = grid.memory("weights", size, width, banks, cell, ports)
        assert [getattr(m, key).value for key in COSTS] == pytest.approx(costs, rel=1e-12)
        assert m.read_pj.status == grid.status
    for cell in PRESET.cells:
        for ports in ("1rw", "1r1w"):
            widths, banks, sizes = grid.axes(cell, ports)
            assert sizes == [1 << n for n in range(12, 24)]
            assert {1, 16} <= set(banks) and {64, 256, 1024} == set(widths)


@given(
    st.sampled_from(grids()), st.sampled_from(sorted(PRESET.cells)), st.sampled_from(["1rw", "1r1w"]),
    st.integers(1 << 18, 1 << 23), WIDE, st.integers(1, 16), st.integers(300, 400),
)  # fmt: skip
def test_between_its_points_a_grid_stays_between_their_values(
    name: str, cell: str, ports: str, size: int, width: int, banks: int, kelvin: int
) -> None:
    grid = Grid.load(name)
    m = grid.memory("weights", size, width, banks, cell, ports)
    axes = grid.axes(cell, ports)
    around = [
        (max(v for v in axis if v <= value), min(v for v in axis if v >= value))
        for value, axis in zip((width, banks, size), axes, strict=True)
    ]
    corners = [
        grid.points[cell, ports, w, b, s] for w in around[0] for b in around[1] for s in around[2]
    ]
    for place, key in enumerate(COSTS):
        values = [corner[place] for corner in corners]
        got = getattr(m, key).value
        assert min(values) * (1 - 1e-9) <= got <= max(values) * (1 + 1e-9)
    warm = grid.memory("weights", size, width, banks, cell, ports, kelvin)
    factors = sorted(grid.leakage_factor[cell].items())
    factor = warm.leakage_mw.value / m.leakage_mw.value
    assert min(f for _, f in factors) * 0.999 <= factor <= max(f for _, f in factors) * 1.001
    assert warm.read_pj == m.read_pj


#: Medians; docs/energy.md has the table.
ERRORS = {
    "read_pj": 0.05, "write_pj": 0.05, "leakage_mw": 0.05, "area_mm2": 0.1, "cycle_ns": 0.1,
    "access_ns": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("name", grids())
def test_interpolation_is_near_what_cacti_says_between_the_points(name: str) -> None:
    grid = Grid.load(name)
    assert len(grid.held_out) == 48 and not grid.held_out.keys() & grid.points.keys()
    for key, errors in grid.errors().items():
        assert np.median(errors) <= ERRORS[key], key


@pytest.mark.parametrize(
    ("size", "width", "banks", "cell", "word"),
    [
        (2048, 256, 1, "lstp", "capacity of 2048"),
        (1 << 24, 256, 1, "lstp", "4096 to 8388608"),
        (1 << 20, 32, 1, "lstp", "width of 32"),
        (1 << 20, 256, 128, "lstp", "banks of 128"),
        (1 << 13, 256, 16, "lstp", "too small for 16 banks"),
        (1 << 20, 256, 1, "mram", "no mram cells"),
    ],
)
def test_nothing_is_extrapolated(size: int, width: int, banks: int, cell: str, word: str) -> None:
    with pytest.raises(TableError, match=word):
        Grid.load("cacti-28nm").memory("weights", size, width, banks, cell, "1rw")


def test_a_memory_of_another_size_comes_from_the_grid() -> None:
    between = PRESET.memory("weights", 3 << 20, 256, 16)
    low, high = (PRESET.memory("inputs", n << 20, 256, 16) for n in (2, 4))
    assert low.read_pj.value < between.read_pj.value < high.read_pj.value
    assert "interpolated in cacti-28nm" in between.read_pj.source
    halves = PRESET.memory("intermediate", 4 << 20, 256, 16)
    one = PRESET.memory("weights", 2 << 20, 256, 8)
    assert (halves.macros, halves.read_pj.value) == (2, one.read_pj.value)
    assert halves.area_mm2.value == 2 * one.area_mm2.value


def test_an_accelerator_of_other_sizes_is_priced() -> None:
    own = replace(EPUR, weight_buffer_bytes=96 << 10, intermediate_bytes=768 << 10)
    schedule = schedule_sequence(SHAPE, 5, FP16, own)
    meta = {"accelerator": own.to_dict(), "arithmetic": FP16.to_dict()}
    trace = Trace(schedule.phases, schedule.components, schedule.cycles, meta)
    small, large = energy(trace, PRESET), energy(scheduled("epur"), PRESET)
    assert small.area_mm2 < 0.1 * large.area_mm2
    assert small.groups()["weights"].dynamic_pj < 0.3 * large.groups()["weights"].dynamic_pj


def test_leakage_follows_the_temperature() -> None:
    cool, warm = (
        PRESET.varied(temperature_k=t).memory("weights", 4 << 20, 256, 16) for t in (320, 340)
    )
    factor = Grid.load("cacti-28nm").leakage_factor["lstp"][340]
    assert warm.leakage_mw.value == pytest.approx(factor * cool.leakage_mw.value)
    assert replace(warm, leakage_mw=cool.leakage_mw) == cool
    with pytest.raises(TableError, match="300 to 400"):
        PRESET.varied(temperature_k=500).memory("weights", 4 << 20, 256, 16)
    with pytest.raises(TableError, match="name a grid"):
        PRESET.varied(temperature_k=340, sram="").memory("weights", 4 << 20, 256, 16)


@pytest.mark.parametrize(("kind", "name"), [("weights", "epur"), ("row", "epur-mwl")])
def test_a_memory_is_read_and_written_in_one_cycle(kind: str, name: str) -> None:
    """Why the table's memories have a port for each."""
    chunks = list(scheduled(name).expand())
    names = [c.name for c in scheduled(name).components]
    at = {"read": set(), "write": set()}
    for chunk in chunks:
        own = chunk.component == names.index(f"cu.i.{kind}")
        for code, op in enumerate(("read", "write")):
            at[op] |= set(chunk.cycle[own & (chunk.op == code)].tolist())
    assert at["read"] & at["write"]


def test_a_memory_that_misses_the_clock_is_reported() -> None:
    assert energy(scheduled("epur"), PRESET).warnings == ()
    slow = {**scheduled("epur").meta["accelerator"], "clock_hz": 700_000_000}
    trace = scheduled("epur")
    trace.meta["accelerator"] = slow
    found = energy(trace, PRESET)
    assert any(w.startswith("weights (4194304 bytes") for w in found.warnings)
    assert all("longer than the clock's 1.43 ns" in w for w in found.warnings)
    assert found.to_dict()["warnings"] == list(found.warnings)


# --- DRAM


@pytest.mark.parametrize("name", drams())
def test_every_dram(name: str) -> None:
    dram = Dram.load(name.upper())
    assert Dram.from_dict(json.loads(json.dumps(asdict(dram)))) == dram
    for key, value in asdict(dram).items():
        assert value["value"] > 0 and value["source"] and value["status"] in STATUSES, key
    assert dram.background_mw("power-down") < dram.background_mw("standby")
    assert dram.background_mw("self-refresh") < dram.background_mw("standby")
    bits = dram.read_pj_per_bit.value
    assert dram.pj_per_byte("read") == 8 * bits + dram.activate_pj.value / dram.page_bytes.value


def test_lpddr4_is_what_its_currents_say() -> None:
    """JEDEC's currents (mA) and cycles of 0.625 ns, by hand."""
    dram = Dram.load("lpddr4")
    assert dram.read_pj_per_bit.value == pytest.approx((245 * 1.1 + 150 * 1.1) / 51.2, rel=1e-3)
    assert dram.standby_mw.value == pytest.approx(30.75 * 1.1 + 2.25 * 1.8, rel=1e-3)
    burst = (60 * 1.1 + 7.75 * 1.8) * 448 / 6246
    assert dram.refresh_mw.value == pytest.approx(burst, rel=1e-3)


def test_the_dram_is_the_tables_or_the_accelerators() -> None:
    assert PRESET.dram_of("HBM2") == Dram.load("hbm2")
    assert PRESET.dram_of(None) == Dram.load("lpddr4")
    assert PRESET.varied(dram="ddr4").dram_of("HBM2") == Dram.load("ddr4")
    own = replace(Dram.load("ddr4"), channels=Dram.load("hbm2").channels)
    table = PRESET.varied(dram=own)
    assert table.dram_of("HBM2") == own
    assert EnergyTable.from_dict(table.to_dict()) == table
    with pytest.raises(TableError, match="ddr4, hbm2, lpddr4"):
        PRESET.dram_of("SDRAM")


# --- tables of one's own


def test_a_table_extends_another(tmp_path: Path) -> None:
    value = 'value = 9.0\nunit = "pJ"\nsource = "ours"\nstatus = "measured"'
    path = tmp_path / "own.toml"
    path.write_text(
        f'extends = "epur-28nm"\nname = "own"\ndram = "lpddr5"\n'
        f"[operations.add.fp16]\nscaled = false\n{value}\n",
        encoding="utf-8",
    )
    own = EnergyTable.load(path)
    assert own.operation_pj("add", "fp16") == 9.0
    assert own.operation_pj("multiply", "fp16") == PRESET.operation_pj("multiply", "fp16")
    assert (own.memories, own.name) == (PRESET.memories, "own")
    assert own.dram_of("HBM2") == Dram.load("lpddr5")
    path.write_text(f'extends = "{path}"', encoding="utf-8")
    with pytest.raises(TableError, match="comes back"):
        EnergyTable.load(path)
    path.write_text("extends = 3", encoding="utf-8")
    with pytest.raises(TableError, match="extends"):
        EnergyTable.load(path)


def test_the_page_shows_a_table_that_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        path = tmp_path / f"mine{number}.toml"
        path.write_text(block, encoding="utf-8")
        table = EnergyTable.load(path)
        assert energy(scheduled("epur"), table).total_pj > 0
    # The second stands alone: what it lacks is named.
    with pytest.raises(TableError, match="'weights' of 2097152 bytes"):
        energy(scheduled("epur-mwl"), table)


def test_synthesised_units_are_what_their_sources_say() -> None:
    table = EnergyTable.load("epur-28nm-synthesised")
    scale = (28 / 40) * (0.78 / 0.9) ** 2
    assert table.operation_pj("multiply", "fp32") == pytest.approx(4.941775 * 2 * scale, rel=1e-3)
    assert table.operation_pj("add", "fp32") == pytest.approx(1.837654 * 2 * scale, rel=1e-3)
    ratio = table.operation_pj("multiply", "fp16") / table.operation_pj("multiply", "fp32")
    assert ratio == pytest.approx(1.1 / 3.7, rel=1e-3)
    assert table.registers_pj("fp16", 5) == 0
    assert PRESET.register.value == pytest.approx(0.009011432 * scale, rel=1e-3)


# --- the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    trace = scheduled("epur-mwl")
    trace.meta["networks"] = [{"name": "n", "steps": 5}]
    path = tmp_path_factory.mktemp("energy") / "t.h5"
    trace.save(path)
    return str(path)


def test_command(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["energy", saved])
    text = capsys.readouterr().out
    for word in ("a time step", "a multiply-accumulate", "peak", "mm2", "recurrent", "lstm"):
        assert word in text
    main(["energy", saved, "--json", "--dram", "hbm2", "--temperature", "340"])
    made = json.loads(capsys.readouterr().out)
    report = energy(Trace.open(saved), PRESET.varied(dram="hbm2", temperature_k=340))
    assert made == json.loads(json.dumps(report.to_dict()))
    assert made["pj_per_step"] == pytest.approx(report.total_pj / 5)
    wanted = 5 * 4 * (64 + 48) * 48
    assert made["pj_per_mac"] == pytest.approx(report.total_pj / wanted)


def test_command_draws(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(["energy", saved, "--plot", str(tmp_path / "t.png"), "--json"])
    assert json.loads(capsys.readouterr().out)["total_pj"] > 0
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--table", "nowhere"], "nowhere"), (["--dram", "tape"], "lpddr4x"),
        (["--temperature", "1000"], "300 to 400"), (["--plot", "t.gif"], "gif"),
    ],
)  # fmt: skip
def test_command_refuses(
    saved: str, options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["energy", saved, *options])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert word in err and err.count("\n") == 1 and not out


#: Start of a memory, bytes of a bank, the last bank.
EDGES = ((0, 128, 30), (5000, 64, 7), (9000, 4096, 0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
def test_runs_are_counted_as_their_accesses(seed, rows, loops):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, (2, rows))
    by = rng.choice((0, 1, 16, -16, 64, -96, 300, -700), (2, rows))
    wait = rng.integers(0, 9, (2, rows))
    cycle, address = rng.integers(0, 50, rows), rng.integers(6000, 8000, rows)
    size, op = rng.choice((1, 16, 64), rows), rng.integers(0, len(OPS), rows).astype(np.uint8)
    if loops:
        runs = Runs(cycle, address, size, op, counts, by, wait)
    else:
        runs, counts = Runs(cycle, address, size, op), np.ones((2, rows), np.int64)
    accesses, banks, cycles = Counter(), set(), []
    for k in range(rows):
        for n, m in product(range(counts[0, k]), range(counts[1, k])):
            place = address[k] + n * by[0, k] + m * by[1, k]
            cycles.append(cycle[k] + n * wait[0, k] + m * wait[1, k])
            index = max(i for i, edge in enumerate(EDGES) if edge[0] <= place)
            start, bank, most = EDGES[index]
            accesses[index, op[k], size[k]] += 1
            ends = (min((place + d - start) // bank, most) for d in (0, size[k] - 1))
            first, last = ends
            banks |= {(index, b) for b in range(first, last + 1)}
    tally = Tally()
    tally.add(runs, EDGES)
    assert +tally.accesses == accesses
    assert {(i, b) for i, low, top in tally.banks for b in range(low, top + 1)} == banks
    assert (tally.first, tally.last) == (min(cycles), max(cycles))
