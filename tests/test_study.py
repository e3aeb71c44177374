"""Studies: what a file stands for, every point against direct calls, and nothing lost on the way."""

from __future__ import annotations

import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arithmetics
from toy_speech import toy_folder, write_recordings

from epur_emu import cli, comparison, sequences, version
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, arithmetic
from epur_emu.checkpoints.folder import read_folder, write_folder
from epur_emu.dataflow import schedule_sequence
from epur_emu.energy import EnergyTable, energy
from epur_emu.errors import EpurError, FormatError, StudyError
from epur_emu.formats import parse
from epur_emu.network import LayerShape, LstmLayer, Network
from epur_emu.study import Results, Study, executors, study, sweep, units
from epur_emu.study.journal import Journal
from epur_emu.study.plan import Search
from epur_emu.study.ranges import expand, tables
from epur_emu.study.search import find, groups_of
from epur_emu.study.workloads import Choice, ShapeWork, digest, open_workload, spread
from epur_emu.toml import read_toml

ROOT = Path(__file__).parents[1]
EPUR, TABLE = Accelerator.load("epur"), EnergyTable.load("epur-28nm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network without a task, of two layers, beside studies of it."""
    path = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(3)

    def layer(n: int, inputs: int, cells: int, reverse: bool = False) -> LstmLayer:
        shapes = (4, cells, inputs), (4, cells, cells), (4, cells)
        arrays = (rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes)
        name = f"net.{n}.{'backward' if reverse else 'forward'}"
        return LstmLayer(name, *arrays, reverse=reverse)

    layers = ((layer(0, 6, 5), layer(0, 6, 5, True)), (layer(1, 10, 7),))
    card = {"name": "small", "task": sequences.TASK}
    write_folder(path / "small", card, {"net": Network("net", layers)}, {}, {})
    return path


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    """Forty points, and a search."""
    path = folder / "plan.toml"
    path.write_text(
        """
        summary = "Some formats."
        models = [{ model = "small", steps = 7, seed = 1 }]
        arithmetics = ["epur-e5m{2..9}", { base = "epur-fp16", weight = ["int3", "e4m{1..3}"] }]
        accelerators = ["epur", "epur-mwl", { base = "epur", input_buffer_bytes = "16" }]
        tables = ["epur-28nm:{lstp,lop}"]
        [search]
        loss = 0.25
        formats = "int{2..8}"
        """,
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def whole(plan: Path) -> Results:
    """The study, uninterrupted."""
    return study(plan)


def keep(folder: Path, **given: Any) -> dict[str, Any]:
    return {"models": [str(folder / "small")], "arithmetics": ["epur-fp16"], "steps": 3, **given}


def test_an_override_has_to_fit_a_layer_of_some_model(folder: Path, tmp_path: Path) -> None:
    def plan(layers: str) -> dict[str, Any]:
        override = {"layers": layers, "weight": "e4m3"}
        own = {"base": "epur-fp16", "overrides": [override]}
        return keep(folder, models=[str(folder / "small"), "paper:LDLRNN"], arithmetics=[own], limit=1)

    assert len(study(plan("net.1.*")).points) == 2
    with pytest.raises(FormatError, match=r"is 'nat\.\*', which fits no layer; .* net\.1\.forward"):
        study(plan("nat.*"), tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


# --- what texts and tables stand for


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fp16", ["fp16"]),
        ("e5m{1..3}", ["e5m1", "e5m2", "e5m3"]),
        ("int{8..2..3}", ["int8", "int5", "int2"]),
        ("{fp16,bf16}", ["fp16", "bf16"]),
        ("e{4..5}m{1..2}", ["e4m1", "e4m2", "e5m1", "e5m2"]),
        ("t:{a, b}", ["t:a", "t:b"]),
        ("{-1..1}", ["-1", "0", "1"]),
    ],
)
def test_braces(text: str, wanted: list[str]) -> None:
    assert expand(text) == wanted


@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 50))
def test_a_range_counts_from_first_to_last(first: int, last: int, step: int) -> None:
    found = [int(text[1:]) for text in expand(f"n{{{first}..{last}..{step}}}")]
    assert found[0] == first
    assert {abs(b - a) for a, b in itertools.pairwise(found)} <= {step}
    assert 0 <= abs(last - found[-1]) < step
    assert (found[-1] - first) * (last - first) >= 0


@pytest.mark.parametrize(
    "text",
    ["e5m{1..3", "e5m1}", "{{1..2},3}", "{}", "{1..2..0}", "{n}", "{1..9}" * 6, "{1..999999}"],
)
def test_bad_braces_are_refused(text: str) -> None:
    with pytest.raises(StudyError):
        expand(text)


def test_tables_combine_alternatives_and_vary_together() -> None:
    found = tables(
        {
            "name": "w{n}{rounding}", "vary": {"n": "{2..3}"}, "weight": "int{n}-row", "input": "int{n}",
            "rounding": ["up", "down"], "clamp": 8.0,
        },
        "arithmetics",
    )  # fmt: skip
    assert found == [
        {"name": f"w{n}{way}", "weight": f"int{n}-row", "input": f"int{n}", "rounding": way, "clamp": 8.0}
        for n in (2, 3) for way in ("up", "down")
    ]  # fmt: skip
    inner = tables({"overrides": [{"gates": "g", "weight": "e4m{1..2}"}, {"input": "fp16"}]}, "x")
    assert [t["overrides"][0]["weight"] for t in inner] == ["e4m1", "e4m2"]
    assert all(t["overrides"][1] == {"input": "fp16"} for t in inner)


# --- study files


def test_a_study_is_all_combinations(plan: Path) -> None:
    found = Study.load(plan)
    assert (found.name, found.summary) == ("plan", "Some formats.")
    assert [a.name for a in found.arithmetics] == [
        *(f"epur-e5m{n}" for n in range(2, 10)),
        *(f"epur-fp16/weight={f}" for f in ("int3", "e4m1", "e4m2", "e4m3")),
    ]
    assert found.arithmetics[-1].weight == parse("e4m3")
    assert found.arithmetics[-1].product == parse("fp16")
    assert [m.name for m in found.accelerators] == ["epur", "epur-mwl", "epur/input_buffer=16"]
    assert found.accelerators[2].input_buffer_bytes == 16
    assert [(name, table.cell) for name, table in found.tables] == [
        ("epur-28nm:lstp", "lstp"), ("epur-28nm:lop", "lop"),
    ]  # fmt: skip
    assert found.models == (Choice(str(plan.parent / "small"), steps=7, seed=1),)
    assert found.text == plan.read_text(encoding="utf-8")


def test_each_layer_and_gate_may_have_its_own(folder: Path) -> None:
    found = Study.of(
        keep(
            folder,
            arithmetics=[
                {
                    "base": "epur-fp16",
                    "overrides": [{"layers": "net.0.*", "gates": "g", "weight": "e4m{1..2}"}],
                }
            ],
        )
    )
    assert [a.name for a in found.arithmetics] == [
        f"epur-fp16/net.0.*:g:weight=e4m{n}" for n in (1, 2)
    ]
    own = found.arithmetics[1]
    assert own.at("net.0.backward", "g").weight == parse("e4m2")
    assert (
        own.at("net.1.forward", "g").weight == own.at("net.0.forward", "o").weight == parse("fp16")
    )


def test_sizes_double_and_dataflows_are_exchanged(folder: Path) -> None:
    found = Study.of(
        keep(
            folder,
            accelerators=["epur", {"base": "epur", "weight_buffer_bytes": "256K:1M"}],
            dataflows=["epur", "epur-mwl"],
        )
    )
    names = ["epur", *(f"epur/weight_buffer={size}" for size in ("256K", "512K", "1M"))]
    assert [(m.name, m.dataflow) for m in found.accelerators] == [
        pair for name in names for pair in ((name, "epur"), (f"{name}:epur-mwl", "epur-mwl"))
    ]


def test_sums_that_are_kept_stay_so(folder: Path) -> None:
    (found,) = Study.of(
        keep(folder, arithmetics=[{"base": "epur-fp16+fp16", "accumulator": "e6m12"}])
    ).arithmetics
    assert found.partial == found.sum == parse("e6m12")


def test_what_is_twice_there_is_taken_once(folder: Path) -> None:
    found = Study.of(
        keep(folder, arithmetics=["epur-fp16", "epur-{fp16,bf16}"], tables=["epur-28nm"] * 2)
    )
    assert [a.name for a in found.arithmetics] == ["epur-fp16", "epur-bf16"]
    assert len(found.tables) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speed": 3}, "speed is no key of it; use accelerators,"),
        ({"models": []}, "models is empty"),
        ({"models": None}, "models is missing"),
        ({"arithmetics": []}, "arithmetics is empty"),
        ({"arithmetics": ["epur-e5m99"]}, "e5m99' is not known"),
        ({"arithmetics": [7]}, "arithmetics holds 7"),
        ({"arithmetics": [{"base": "epur-fp16", "wieght": "e4m3"}]}, "wieght unknown; use"),
        (
            {"arithmetics": [{"base": "epur-fp16", "weight": "e4m{3..}"}]},
            "arithmetics.weight has {3..}",
        ),
        (
            {"arithmetics": [{"name": "a", "base": "epur-fp16", "weight": ["e4m3", "e4m2"]}]},
            "'a' is of two different ones",
        ),
        ({"accelerators": ["epurr"]}, "neither a preset nor a file"),
        ({"accelerators": [{"base": "epur", "weight_buffer_bytes": "4X"}]}, "is '4X'"),
        ({"dataflows": ["mwl"]}, "use epur, epur-mwl"),
        ({"tables": ["epur-29nm"]}, "neither a preset nor a file"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": True}, "limit is True"),
        ({"beam": 257}, "beam is 257; give 256 at most"),
        ({"models": [{"model": "paper:LDLRNN", "beam": 10**9}]}, "give 256 at most"),
        ({"traced": "all"}, "traced is 'all'"),
        ({"models": [{"modle": "small"}]}, "models.modle is no key"),
        ({"models": [{"steps": 3}]}, "models.model is missing"),
        ({"search": 1}, "search is 1"),
        ({"search": {}}, "search.loss is None"),
        ({"search": {"loss": 1, "place": "dram"}}, "search.place is 'dram'"),
        ({"search": {"loss": 1, "groups": "net"}}, "search.groups is 'net'"),
        ({"search": {"loss": 1, "formats": ["int8", "int8-row"]}}, "of different widths"),
    ],
)
def test_a_bad_study_is_refused_in_one_line(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    plain = {k: v for k, v in keep(folder, **changes).items() if v is not None}
    with pytest.raises(EpurError) as caught:
        Study.of(plain)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smal", "known model"),
        ("paper:EPUR", "paper:EESEN"),
        ({"model": "small", "inputs": "none.npy"}, "can't be read"),
        ({"model": "small", "network": "nit"}, "network 'nit' is unknown"),
    ],
)
def test_models_are_looked_for_before_anything_is_computed(
    folder: Path, tmp_path: Path, model: Any, words: str
) -> None:
    plain = keep(folder, models=[model])
    with pytest.raises(EpurError, match=words):
        study(Study.of(plain, folder=folder), tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_the_worked_studies_can_be_read(path: Path) -> None:
    found = Study.load(path)
    assert found.name == path.stem
    assert found.summary
    assert len(found.arithmetics) * len(found.accelerators) > 1 or found.search


# --- what is computed


def test_points_are_what_a_run_finds(plan: Path, whole: Results) -> None:
    loaded = read_folder(plan.parent / "small")
    found = Study.load(plan)
    x = sequences.inputs(loaded.networks["net"], steps=7, seed=1)
    assert len(whole.points) == whole.planned == 72
    assert whole.complete
    points = iter(whole.points)
    for place, (each, machine, (_, table)) in enumerate(
        itertools.product(found.arithmetics, found.accelerators, found.tables)
    ):
        row = next(points)
        assert row["point"] == place
        assert (row["model"], row["arithmetic"], row["accelerator"]) == (
            "small",
            each.name,
            machine.name,
        )
        assert row["table"] == f"{table.name}:{table.cell}"
        if machine.input_buffer_bytes == 16:
            assert "input_buffer_bytes holds 16 bytes" in row["problem"]
            assert row["cycles"] is row["energy_pj"] is row["trace"] is None
            assert row["emulated"] is not None
            continue
        ran = sequences.run(loaded, x, each, machine, table)
        assert row["problem"] is None
        assert row["cycles"] == ran.cycles
        assert row["seconds"] == ran.seconds
        assert row["area_mm2"] == ran.report.area_mm2
        assert row["peak_mw"] == ran.report.peak_mw
        assert row["energy_pj"]["total"] == pytest.approx(ran.report.total_pj, rel=1e-12)
        assert {k: c["accesses"] for k, c in row["energy_pj"]["by_component"].items()} == {
            k: c.accesses for k, c in ran.report.groups().items()
        }
        assert row["trace"]["accesses"] == ran.trace.count()
        assert row["trace"]["bytes"] == sum(ran.trace.bytes_by_component().values())
        assert row["wider"] == ran.report.wider
        assert [(r["name"], r["overflow"], r["saturation"]) for r in row["layers"]] == [
            (r.name, r.overflow, r.saturation) for r in ran.layers
        ]
        assert [r["max_abs_error"] for r in row["layers"]] == pytest.approx(
            [r.max_abs_error for r in ran.layers], rel=1e-6
        )
        a, b = ran.emulated.astype(float), ran.float32.astype(float)
        assert row["emulated"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
        assert row["loss"] == row["emulated"]
        assert not row["higher_is_better"]
    assert len({p["emulated"] for p in whole.points}) > 12


def test_a_tasks_points_are_what_evaluate_finds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recordings(tmp_path / "fsdd")
    monkeypatch.setenv("EPUR_DATA", str(tmp_path))
    path = toy_folder(tmp_path / "model", tuple("abcdefgh"))
    model = read_folder(path)
    names = ("epur-e5m4", "epur-e4m3")
    done = study(
        {"models": [str(path)], "arithmetics": list(names), "limit": 12, "traced": 3, "errors": 2}
    )
    assert len(done.points) == 2
    plan = Study.of({"models": [str(path)], "arithmetics": [names[0]], "limit": 99})
    assert study(plan, limit=5).points[0]["n"] == 5
    for row, name in zip(done.points, names, strict=True):
        wanted = comparison.evaluate(model, arithmetic(name), EPUR, limit=12)
        assert row["metrics"] == dict(zip(("float32", "emulated"), wanted.metrics, strict=True))
        assert row["n"] == 12
        assert row["same_outputs"] == wanted.to_dict()["same_outputs"]
        assert row["loss"] == wanted.metrics[1]["WER"] - wanted.metrics[0]["WER"]
        ours = comparison.task(model, arithmetic(name), EPUR)
        theirs = comparison.task(model, ARITHMETICS["float32"], EPUR)
        items, _ = ours.test_set(12)
        errors = {
            n: max(
                abs(ours.outputs(items[k], a)[n] - theirs.outputs(items[k], a)[n]).max()
                for k, a in ((k, wanted.float32[k]) for k in (0, 6))
            )
            for n in (r["name"] for r in row["layers"])
        }
        assert {r["name"]: r["max_abs_error"] for r in row["layers"]} == errors
        traces = [
            ours.trace(items[k], wanted.float32[k], arithmetic(name), EPUR) for k in (0, 4, 8)
        ]
        reports = [energy(trace, TABLE) for trace in traces]
        assert row["items"] == 3
        assert row["cycles"] == sum(t.cycles for t in traces) / 3
        assert row["energy_pj"]["total"] == pytest.approx(sum(r.total_pj for r in reports) / 3)
        spoken = sum(items[k].seconds for k in (0, 4, 8))
        assert row["real_time_factor"] == pytest.approx(spoken / sum(r.seconds for r in reports))
    assert done.points[0]["emulated"] != done.points[1]["emulated"]


def test_a_shape_has_cycles_and_energy_and_no_metric() -> None:
    (row,) = study({"models": ["paper:LDLRNN"], "arithmetics": ["epur-fp16"]}).points
    work = ShapeWork("LDLRNN", Choice("paper:LDLRNN"))
    wanted = schedule_sequence(work.network.shape, work.steps, arithmetic("epur-fp16"), EPUR)
    assert row["cycles"] == wanted.cycles
    assert row["metric"] is row["emulated"] is row["loss"] is row["problem"] is None
    assert row["energy_pj"]["total"] > 0
    assert row["bits"]["weight"] == 16
    assert row["weight_bits"] == 16 * work.network.weights


def test_an_arithmetic_that_can_not_evaluate_is_a_point_with_a_reason(folder: Path) -> None:
    path = folder / "small"
    done = study(keep(folder, arithmetics=["epur-q0.4-raise", "epur-fp16"], models=[str(path)]))
    assert "out of q0.4-raise's range" in done.points[0]["problem"]
    assert done.points[0]["emulated"] is None
    assert done.points[0]["cycles"] > 0
    assert done.points[1]["problem"] is None


def test_bits_are_means_over_weights(folder: Path) -> None:
    override = {"layers": "net.1.*", "weight": "mxfp4"}
    own = {"base": "epur-fp16", "weight": "int4", "overrides": [override]}
    (row,) = study(keep(folder, arithmetics=[own])).points
    first, second = 2 * 4 * 5 * 11, 4 * 7 * 17
    assert row["weight_bits"] == first * 4 + second * 4.25
    assert row["bits"]["weight"] == row["weight_bits"] / (first + second)
    assert row["bits"]["mu"] == 16


SHAPE = ((LayerShape("pass", 18, 5), LayerShape("other", 18, 4)), (LayerShape("pass2", 9, 17),))


@settings(deadline=None, max_examples=60)
@given(arithmetics(), arithmetics(), st.sampled_from(["epur", "epur-mwl"]))
def test_arithmetics_that_are_alike_have_one_schedule(a: Any, b: Any, name: str) -> None:
    machine = Accelerator.load(name)
    work = SimpleNamespace(shapes=(SHAPE,))
    alike = [ShapeWork.alike(work, each, machine) for each in (a, b)]  # type: ignore[arg-type]
    found = [schedule_sequence(SHAPE, 2, each, machine).phases for each in (a, b)]
    if alike[0] == alike[1]:
        assert found[0] == found[1]
    # A key that tells more apart than it must would share nothing.
    if all(getattr(a, p) == getattr(b, p) for p in ("weight", "input", "product", "mu", "partial")):
        assert (found[0] == found[1]) == (alike[0] == alike[1]) or a.overrides or b.overrides


def test_equal_widths_share_their_traces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    work = open_workload(Choice("paper:LDLRNN", steps=5))
    real = work.schedule
    monkeypatch.setattr(work, "schedule", lambda *given: made.append(1) or real(*given))
    study({"models": [{"model": "paper:LDLRNN", "steps": 5}], "arithmetics": ["epur-e5m{1..10}"],
           "tables": ["epur-28nm:{lstp,lop}"]})  # fmt: skip
    assert len(made) == 2  # of one byte, and of two


@given(st.integers(0, 300), st.integers(1, 40))
def test_spread_is_even(count: int, most: int) -> None:
    found = spread(count, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert all(0 <= n < count for n in found)
    gaps = {b - a for a, b in itertools.pairwise([*found, count])}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


# --- nothing twice


def counted(monkeypatch: pytest.MonkeyPatch) -> list[units.Unit]:
    calls: list[units.Unit] = []
    real = units.compute

    def compute(unit: units.Unit, *given: Any) -> Any:
        calls.append(unit)
        return real(unit, *given)

    monkeypatch.setattr(sweep, "compute", compute)
    return calls


def test_the_same_is_never_computed_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    done = study(
        keep(
            folder,
            arithmetics=["epur-fp16", {"name": "twin", "base": "epur-fp16"}],
            accelerators=["epur", {"base": "epur", "weight_buffer_banks": [8, 32]}],
            tables=["epur-28nm:{lstp,lop}"],
        )
    )
    assert len(done.points) == 12
    kinds = [unit.kind for unit in calls]
    # One evaluation, as neither names, banks nor tables change values; twins are priced once.
    assert [kinds.count(kind) for kind in ("reference", "evaluation", "pricing")] == [1, 1, 6]


def test_keys_are_of_the_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(str(folder / "small"), steps=3)
    source = open_workload(choice).digest
    fp16, mwl = arithmetic("epur-fp16"), Accelerator.load("epur-mwl")

    def key(kind: str = "evaluation", a: Any = fp16, m: Any = EPUR, **given: Any) -> str:
        return units.Unit(kind, choice, given.pop("source", source), a, m, **given).key

    assert key() == key(a=replace(fp16, name="x"), m=replace(EPUR, name="y", add_cycles=9))
    others = [
        key(), key(a=replace(fp16, clamp=10.0)), key(m=mwl), key(source="0"), key(count=1),
        key("pricing"), key("pricing", m=replace(EPUR, add_cycles=9)), key("pricing", prices="p"),
        key("pricing", m=mwl),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    units._key.cache_clear()
    monkeypatch.setattr(units, "__version__", "9.9")
    assert key() not in others
    units._key.cache_clear()


def test_a_workloads_digest_is_of_weights_and_inputs(folder: Path, tmp_path: Path) -> None:
    base = Choice(str(folder / "small"), steps=3)
    x = np.ones((3, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    x[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    np.save(tmp_path / "y.npy", x)
    model = read_folder(folder / "small")
    (net,) = model.networks.values()
    (first, *rest), *others = net.layers
    w = np.array(first.w_h)
    w[3, 4, 4] += np.float32(2**-20)
    changed = LstmLayer(first.name, first.w_x, w, first.bias, reverse=first.reverse)
    twin = Network("net", ((changed, *rest), *others))
    write_folder(tmp_path / "twin", {"name": "small", "task": "sequence"}, {"net": twin}, {}, {})
    choices = [
        base, Choice(base.model, steps=4), Choice(base.model, steps=3, seed=1),
        Choice(base.model, inputs=str(tmp_path / "x.npy")),
        Choice(base.model, inputs=str(tmp_path / "y.npy")), Choice(str(tmp_path / "twin"), steps=3),
    ]  # fmt: skip
    assert len({open_workload(choice).digest for choice in choices}) == len(choices)


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_digests_differ_where_values_do(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    pairs = [sorted(v.items()) if isinstance(v, dict) else v for v in (a, b)]
    if same:
        assert digest(a) == digest(b)
    elif pairs[0] != pairs[1]:
        assert digest(a) != digest(b)


def test_a_worker_of_another_version_or_with_other_data_is_refused(folder: Path) -> None:
    choice = Choice(str(folder / "small"), steps=3)
    unit = units.Unit("reference", choice, open_workload(choice).digest)
    with pytest.raises(StudyError, match="install the same"):
        units.compute(unit, None, "0.0.0")
    with pytest.raises(StudyError, match="same files"):
        units.compute(units.Unit("reference", choice, "else"), None, version.__version__)


# --- the results file


def test_results_come_back_as_they_were(whole: Results, tmp_path: Path) -> None:
    whole.save(tmp_path / "x.h5")
    assert Results.open(tmp_path / "x.h5") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["points/cycles"].attrs["unit"] == "cycle"
        assert file["energy/dynamic_pj"].shape[0] > 72

        def no_variable_length(name: str, each: Any) -> None:
            assert not isinstance(each, h5py.Dataset) or each.dtype.kind != "O", name

        file.visititems(no_variable_length)


def test_a_damaged_file_is_refused_or_read_rightly(whole: Results, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    whole.save(path)
    data = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        place = rng.randrange(len(data))
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            found = Results.open(path)
        except StudyError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert found.digest == whole.digest
    assert refused
    for kept in (0, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:kept])
        with pytest.raises(StudyError, match=r"first line|seal"):
            Results.open(path)


def test_other_files_are_refused(whole: Results, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not exist"):
        Results.open(tmp_path / "none.h5")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "else"
    with pytest.raises(StudyError, match="first line is not that"):
        Results.open(path)
    whole.save(path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = "2.0"
    with pytest.raises(StudyError, match="seal does not fit"):
        Results.open(path)


def test_a_file_that_can_not_be_written_is_told(whole: Results, tmp_path: Path) -> None:
    for call in (whole.save, whole.to_csv):
        with pytest.raises(StudyError, match="can't be written"):
            call(tmp_path / "no" / "x")
    with pytest.raises(StudyError, match="No space left"):
        whole.to_csv("/dev/full")


# --- the journal


PARTS = {"arithmetics": "1", "models": "2"}


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_cut_or_damaged_journal_keeps_what_comes_before(tmp_path_factory: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    ends = []
    with Journal(path, PARTS, False) as journal:
        for n in range(4):
            ends.append(path.stat().st_size)
            journal.add(f"k{n}", {"value": [n, 0.1, None, "é"]}, 0.5)
    ends.append(path.stat().st_size)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    kept = sum(end <= place for end in ends[1:])
    with Journal(path, PARTS, True) as journal:
        assert list(journal.results) == [f"k{n}" for n in range(kept)]
        journal.add("new", {}, 0.0)
    with Journal(path, PARTS, True) as journal:
        assert list(journal.results) == [*(f"k{n}" for n in range(kept)), "new"]
        assert not journal.dropped


def test_a_journal_has_one_owner_and_one_study(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PARTS, False), pytest.raises(StudyError, match="in use by another process"):
        Journal(path, PARTS, True)
    with pytest.raises(StudyError, match="--resume"):
        Journal(path, PARTS, False)
    with pytest.raises(StudyError, match="changed since: models;"):
        Journal(path, PARTS | {"models": "3"}, True)
    path.write_bytes(b"another file's text\n" * 1000)
    with pytest.raises(StudyError, match="is none"):
        Journal(path, PARTS, True)
    assert path.stat().st_size == 20000


def test_a_full_disk_loses_nothing_that_is_there(
    plan: Path, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    count = 0

    def full(number: int) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudyError, match="No space left"):
        study(plan, path)
    monkeypatch.undo()
    calls = counted(monkeypatch)
    done = study(plan, path, resume=True)
    assert done.digest == whole.digest
    # 19 were kept, and one was written all the same.
    assert len(calls) + 20 == _units_of(plan)


# --- interruptions


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[..., Any]:
    """Interrupt the computation of a unit, the one of this number; gives what computes."""
    real, count = units.compute, 0

    def interrupted(unit: units.Unit, *given: Any) -> Any:
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt
        return real(unit, *given)

    monkeypatch.setattr(sweep, "compute", interrupted)
    return real


def test_a_study_goes_on_where_it_was(
    plan: Path, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    real = interrupt(monkeypatch, 60)
    with pytest.raises(KeyboardInterrupt):
        study(plan, path)
    part = Results.open(path)
    assert not part.complete
    assert 0 < len(part.points) < part.planned == 72
    by_key = {p["key"]: p for p in whole.points}
    for p in part.points:
        assert {**p, "point": 0} == {**by_key[p["key"]], "point": 0}

    with pytest.raises(StudyError, match="exists; choose another -o, or go on with --resume"):
        study(plan, path)
    with pytest.raises(StudyError, match="changed since: arithmetics;"):
        study({**_plain(plan), "arithmetics": ["epur-fp16"]}, path, resume=True)
    monkeypatch.setattr(sweep, "compute", real)
    calls = counted(monkeypatch)
    done = study(plan, path, resume=True)
    assert len(calls) + 59 == _units_of(plan)
    assert done == whole
    assert Results.open(path) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]

    calls.clear()
    assert study(plan, path, resume=True) == whole
    assert calls == []
    with pytest.raises(StudyError, match="changed since: traced or errors;"):
        study({**_plain(plan), "traced": 3}, path, resume=True)


def _plain(plan: Path) -> dict[str, Any]:
    plain = read_toml(plan, StudyError, "")
    return {
        **plain,
        "name": plan.stem,
        "models": [{"model": str(plan.parent / "small"), "steps": 7, "seed": 1}],
    }


def _units_of(plan: Path) -> int:
    """One reference; values depend on the dataflow, prices on all."""
    found = Study.load(plan)
    return 1 + 2 * len(found.arithmetics) + 6 * len(found.arithmetics)


SWEEP = "from epur_emu.cli import main; main()"


def start(*arguments: Any, **given: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SWEEP, "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **given
    )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_killed_ten_times_it_ends_as_if_it_were_not(
    plan: Path, whole: Results, tmp_path: Path
) -> None:
    path, journal = tmp_path / "x.h5", tmp_path / "x.h5.journal"
    rng = random.Random(17)
    for kill in range(10):
        size = size_of(journal) + rng.randrange(200, 3000)
        command = start(plan, "-o", path, "--resume", "--jobs", 1 if kill else 2)
        while size_of(journal) < size:
            time.sleep(0.001)
            assert command.poll() is None
        time.sleep(rng.random() * 0.004)
        command.kill()
        command.communicate()
        assert command.returncode == -signal.SIGKILL
        wait_for_group(command.pid)  # the processes of the first end with it
    assert study(plan, path, resume=True) == whole
    assert Results.open(path).digest == whole.digest
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def wait_for_group(group: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_keeps_what_is_done(plan: Path, whole: Results, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    command = start(plan, "-o", path, "--jobs", "2")
    while size_of(tmp_path / "x.h5.journal") < 4000:
        time.sleep(0.002)
        assert command.poll() is None
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert out == b""
    assert err.endswith(b"epur: interrupted\n")
    assert b"Traceback" not in err, err.decode()
    assert b"go on with --resume" in err
    assert not Results.open(path).complete
    assert study(plan, path, resume=True) == whole


# --- executors


def test_a_process_that_dies_is_replaced(plan: Path, whole: Results, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set():
            if size_of(tmp_path / "x.h5.journal") > 3000:
                for process in multiprocessing.active_children()[:1]:
                    process.kill()
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert study(plan, path, jobs=2) == whole
    finally:
        stop.set()
        killer.join()
    assert not multiprocessing.active_children()


class Losing(executors.Here):
    """Loses the first calls."""

    def __init__(self, times: int) -> None:
        self.times = times

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.times -= 1
        if self.times < 0:
            return super().submit(call, *args, **kwargs)
        done: Future[Any] = Future()
        done.set_exception(BrokenProcessPool("lost"))
        return done


@pytest.mark.parametrize("times", [2, 3])
def test_what_is_lost_is_tried_again(folder: Path, tmp_path: Path, times: int) -> None:
    choice = Choice(str(folder / "small"), steps=3)
    unit = units.Unit("reference", choice, open_workload(choice).digest)
    with Journal(tmp_path / "j", PARTS, False) as journal, sweep.tqdm(disable=True) as bar:
        runner = sweep.Runner(journal, Losing(times), 1, bar)
        if times == sweep.TRIES:
            with pytest.raises(StudyError, match="was lost 3 times"):
                runner.run([unit])
        else:
            runner.run([unit])
            assert unit.key in journal.results


def test_a_dask_cluster_finds_the_same(plan: Path, whole: Results) -> None:
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cluster's own
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster:
            assert study(plan, dask=cluster.scheduler_address) == whole


def test_a_cluster_that_is_not_there_is_told(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StudyError, match=r"pip install 'epur_emu\[distributed\]'"):
        study(plan, tmp_path / "x.h5", dask="tcp://127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


# --- the search


PASSES = [LayerShape("a", 10, 4), LayerShape("b[0]", 20, 4), LayerShape("c", 6, 8)]
LADDER = tuple(parse(f"int{n}") for n in range(2, 9))


def _losing(sensitivity: dict[str, float], asked: list[str]) -> Any:
    """A network whose loss is a sum over its passes' gates: sensitivity times 4**-bits."""

    def evaluate(arithmetics: Sequence[Any], stage: str) -> list[dict[str, Any]]:
        out = []
        for each in arithmetics:
            asked.append(each.name)
            loss = math.fsum(
                sensitivity[p.name] * 4.0 ** -each.at(p.name, g).weight.bits
                for p in PASSES
                for g in "ifgo"
            )
            out.append({"distance": loss})
        return out

    return evaluate


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*(st.floats(0.001, 1000.0) for _ in PASSES)), st.floats(0.0001, 10.0),
    st.sampled_from(["layer", "gate", "layer-gate"]),
)  # fmt: skip
def test_a_search_ends_where_nothing_can_be_narrower(
    weights: tuple[float, ...], allowed: float, groups: str
) -> None:
    sensitivity = {p.name: w for p, w in zip(PASSES, weights, strict=True)}
    asked: list[str] = []
    evaluate = _losing(sensitivity, asked)
    search = Search(allowed, "weight", LADDER, groups, 10_000)
    found = find(arithmetic("epur-fp16"), search, PASSES, evaluate, lambda r: r["distance"])
    assert found.evaluations == len(asked) == len(set(asked))
    widest = math.fsum(4 * w for w in weights) * 4.0**-8
    if widest > allowed:
        assert found.best is None
        assert found.ended == "nothing keeps the loss"
        return
    assert found.best is not None
    assert found.ended == "none narrower"
    assert found.weight_bits <= found.uniform_bits
    members = groups_of(PASSES, groups)

    def format_of(g: Any) -> Any:
        name = "a" if g.layers == "*" else g.name.removesuffix(f".{g.gates}")
        return found.best.at(name, g.gates[0]).weight

    forms = {g.name: format_of(g) for g in members}
    assert {k: str(v) for k, v in forms.items()} == found.formats
    assert found.weight_bits == sum(g.weights * forms[g.name].bits for g in members)
    (kept,) = evaluate([found.best], "")
    assert kept["distance"] <= allowed
    for g in members:
        if forms[g.name].bits > 2:
            narrower = found.best.overrides[-1].__class__(
                g.layers, g.gates, (("weight", parse(f"int{forms[g.name].bits - 1}")),)
            )
            lower = replace(found.best, overrides=(*found.best.overrides, narrower))
            assert evaluate([lower], "")[0]["distance"] > allowed


@pytest.mark.parametrize("most", [1, 5, 12, 20])
def test_a_search_stops_after_most_evaluations(most: int) -> None:
    asked: list[str] = []
    evaluate = _losing({p.name: 1.0 for p in PASSES}, asked)
    search = Search(0.01, "weight", LADDER, "layer", most)
    found = find(arithmetic("epur-fp16"), search, PASSES, evaluate, lambda r: r["distance"])
    assert found.evaluations == len(asked) == most
    assert found.ended == "most evaluations"
    assert (found.best is None) == (most < 4)


def test_a_search_of_a_network(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {**_plain(plan), "arithmetics": ["epur-fp16"], "accelerators": ["epur"]}
    path = tmp_path / "x.h5"
    done = study(plain, path, search=True)
    (found,) = done.searches
    assert found["chosen"] is not None
    assert found["evaluations"] * 2 == len(done.points) == done.planned
    assert found["loss"] == found["emulated"] <= 0.25
    best = [p for p in done.points if p["chosen"]]
    assert [p["arithmetic"] for p in best] == [found["chosen"]] * 2
    assert {p["stage"] for p in done.points} <= {"uniform", "sensitivity", "greedy", "local"}
    assert best[0]["emulated"] == found["emulated"]
    assert best[0]["weight_bits"] == found["weight_bits"]
    assert done.arithmetics[found["chosen"]]["name"] == found["chosen"]
    uniform = [p for p in done.points if p["stage"] == "uniform" and p["loss"] <= 0.25]
    assert min(p["weight_bits"] for p in uniform) == found["uniform_bits"]

    # Interrupted, it takes the same way.
    real = interrupt(monkeypatch, 20)
    other = tmp_path / "y.h5"
    with pytest.raises(KeyboardInterrupt):
        study(plain, other, search=True)
    monkeypatch.setattr(sweep, "compute", real)
    with pytest.raises(StudyError, match="changed since: search;"):
        study(plain, other, resume=True)
    assert study(plain, other, search=True, resume=True) == done


def test_a_search_needs_a_metric_and_formats(folder: Path) -> None:
    search = {"search": {"loss": 1}}
    with pytest.raises(StudyError, match="search is missing"):
        study(keep(folder), search=True)
    with pytest.raises(StudyError, match="has no metric"):
        study({"models": ["paper:LDLRNN"], "arithmetics": ["epur-fp16"], **search}, search=True)
    with pytest.raises(StudyError, match="rounds nothing"):
        study(keep(folder, arithmetics=["float32"], **search), search=True)


# --- the command


def epur(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    status = 0
    try:
        cli.main(["sweep", *map(str, arguments)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_sweep(
    plan: Path, whole: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = epur(
        capsys, plan, "-o", tmp_path / "x.h5", "--jobs", 1, "--csv", tmp_path / "x.csv", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert found["points"] == whole.points
    assert "97/97" in err or "unit" in err
    lines = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 73
    names = lines[0].split(",")
    assert {"arithmetic", "emulated", "energy_pj.total", "bits.weight", "energy_pj.dram"} <= set(
        names
    )
    assert lines[1].split(",")[names.index("cycles")] == str(whole.points[0]["cycles"])

    status, out, _ = epur(capsys, plan, "-o", tmp_path / "x.h5", "--resume")
    assert status == 0
    assert "small on epur-mwl, epur-28nm:lop: relative error" in out
    assert "[1] epur/input_buffer=16: input_buffer_bytes holds 16 bytes" in out
    status, out, err = epur(capsys, plan, "-o", tmp_path / "x.h5")
    assert (status, out) == (2, "")
    assert err == f"epur: {tmp_path}/x.h5: file exists; choose another -o, or go on with --resume\n"
    status, out, err = epur(capsys, tmp_path / "none.toml", "-o", tmp_path / "y.h5")
    assert (status, out) == (2, "")
    assert err.endswith("none.toml: file does not exist; give a study's TOML file\n")


def test_sweep_search(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan.read_text(encoding="utf-8").replace('"epur-e5m{2..9}", ', "")
    text = text.replace('weight = ["int3", "e4m{1..3}"]', 'input = "e5m9"')
    own = plan.with_name("search.toml")
    own.write_text(text.replace('"epur-mwl", ', ""), encoding="utf-8")
    path = tmp_path / "x.h5"
    status, out, _ = epur(capsys, own, "-o", path, "--jobs", 1, "--search", "--limit", 1, "--json")
    assert status == 0
    assert len(json.loads(out)["searches"]) == 2
    status, out, _ = epur(capsys, own, "-o", path, "--search", "--resume")
    assert status == 0
    assert "relative error may lose 0.25;" in out
    assert "less than int" in out
