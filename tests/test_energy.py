"""Energy: the closed form against a sum over single accesses, and the shipped tables."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NAMES, events, streams

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Override, arithmetic
from epur_emu.dataflow import schedule_sequence
from epur_emu.energy import EnergyTable, Report, energy, presets
from epur_emu.energy.table import STATUSES
from epur_emu.errors import EpurError, TableError, TraceError
from epur_emu.formats import parse
from epur_emu.network import LayerShape
from epur_emu.streams import KINDS, AccessStream, Component, Phase
from epur_emu.trace import Trace

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
    for memory in PRESET.memories:
        if memory.kind == "weights" and memory.capacity_bytes == EPUR.weight_buffer_bytes:
            memories.append(replace(memory, capacity_bytes=256, banks=8))
        elif memory.kind == "intermediate":
            memories.append(replace(memory, capacity_bytes=512, banks=4))
        elif memory.kind == "parameters":
            memories.append(memory)
    return replace(PRESET, memories=tuple(memories))


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
                bits = (table.dram.read_pj_per_bit, table.dram.write_pj_per_bit)[op].value
                page = table.dram.activate_pj.value / table.dram.page_bytes.value
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
    bank = TABLE.memory("parameters", 8192, 256, 1).leakage_mw.value
    assert close(report.by_component["cu.i.weights"].static_pj, (weights * 3 / 8 + bank) * 1e9)
    assert report.by_component["intermediate"].static_pj == 0
    assert close(report.by_component["dram"].static_pj, 4 * 34.0 * 1e9)
    assert report.seconds == 1


def test_self_refresh_pays_standby_only_while_the_channel_moves() -> None:
    stream = AccessStream("dram", "read", 64, 0, 0, ((1000, 64, 1),))
    trace = Trace([Phase("lstm", "load", (stream,))], COMPONENTS, 500_000_000, META)
    report = energy(trace, replace(TABLE, dram_idle="self-refresh"))
    awake = 64_000 / 30e9
    wanted = 4 * (34.0 * awake + 1.2 * (1 - awake)) * 1e9
    assert close(report.by_component["dram"].static_pj, wanted)


def test_operations_are_priced_in_the_formats_of_their_places() -> None:
    mixed = replace(FP16, accumulator=arithmetic("float32").accumulator)
    phase = Phase(
        "lstm", "forward", (), (("multiply", "dpu", 32), ("add", "dpu", 33), ("exp", "mu", 2))
    )
    meta = {**META, "arithmetic": mixed.to_dict()}
    report = energy(Trace([phase], COMPONENTS, 1, meta), TABLE)
    scale = (28 / 45) * (0.78 / 0.9) ** 2
    # 30 sums in the tree, 3 in the accumulator.
    wanted = scale * (32 * 1.1 + 30 * 0.4 + 3 * 0.9)
    assert report.by_component["dpu"].dynamic_pj == pytest.approx(wanted, rel=1e-4)
    assert report.by_component["dpu"].accesses == 65
    assert report.by_component["mu"].dynamic_pj == pytest.approx(2 * scale * 6.0, rel=1e-4)


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
        report = energy(trace, chosen.with_cell(cell))
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
    assert EnergyTable.load("epur-28nm:lop") == PRESET.with_cell("lop")
    path = tmp_path / "own.toml"
    path.write_bytes((ROOT / "epur_emu/data/energy/epur-28nm.toml").read_bytes())
    assert EnergyTable.load(f"{path}:hp") == PRESET.with_cell("hp")
    with pytest.raises(TableError, match="lstp, lop, hp"):
        EnergyTable.load("epur-28nm:mram")


@pytest.mark.parametrize("table", presets())
def test_every_shipped_value_says_where_it_is_from(table: str) -> None:
    plain = EnergyTable.load(table).to_dict()
    found = list(values(plain))
    assert len(found) > 100
    for place, value in found:
        assert set(value) - {"scaled"} == {"value", "unit", "source", "status"}, place
        assert value["unit"] and value["source"], place
        assert value["status"] in STATUSES, place
    for key in ("version", "command", "config", "ports", "technology_nm", "temperature_k"):
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
        ("multiply", "int4", "int8"),
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
        ("dram.page_bytes.value", 0),
        ("dram.channels", None),
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
    path = ROOT / "scripts" / "make_energy_table.py"
    spec = importlib.util.spec_from_file_location("make_energy_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("zigzag") is None, reason="needs zigzag-dse (CACTI)")
def test_the_committed_table_is_what_cacti_says(monkeypatch: pytest.MonkeyPatch) -> None:
    script = _script(monkeypatch)
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # CACTI's own faults stop it under a sanitizer
    path = ROOT / "epur_emu" / "data" / "energy" / "epur-28nm.toml"
    kept, committed = path.read_text(encoding="utf-8").split(script.MARKER)
    machines = [Accelerator.load("epur"), Accelerator.load("epur-mwl")]
    cacti = PRESET.cacti
    made = script.generate(
        kept, script.find_cacti(None), machines, cacti["technology_nm"], cacti["temperature_k"]
    )
    fresh = EnergyTable.from_dict(script.tomllib.loads(kept + made))
    assert fresh.cacti["config"] == cacti["config"]
    ours = dict(values(PRESET.to_dict()))
    theirs = dict(values(fresh.to_dict()))
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        assert value["value"] == pytest.approx(theirs[place]["value"], rel=0.01), place
    assert committed.count("[[memories]]") == len(PRESET.memories)
