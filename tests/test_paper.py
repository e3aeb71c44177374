"""The paper's networks and figures, the analytic baselines, and the page that shows them."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from epur_emu import paper
from epur_emu.baseline import Baseline, baselines
from epur_emu.cli import main
from epur_emu.errors import EpurError
from epur_emu.network import LayerShape
from epur_emu.streams import AccessStream

ROOT = Path(__file__).parents[1]
BITS = {"BYSDNE": 32, "RLDRADSPR": 16, "EESEN": 32, "LDLRNN": 32, "GMAT": 16}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str, str], paper.Figure]:
    return {(f.name, f.network, f.dataflow): f for f in paper.figures()}


@pytest.mark.parametrize("network", paper.networks(), ids=lambda n: n.name)
def test_shapes_have_the_published_sizes(network: paper.PaperNetwork) -> None:
    size = network.weights * BITS[network.name] / 8 / 2**20
    assert size == pytest.approx(network.published_mb, rel=0.01)


def test_every_figure_is_there(found: dict[tuple[str, str, str], paper.Figure]) -> None:
    assert sum(f.published is not None for f in found.values()) == 29
    assert all(f.ours is not None and math.isfinite(f.ours) and f.ours > 0 for f in found.values())
    for network in paper.networks():
        for dataflow in paper.DATAFLOWS:
            assert ("energy of a sequence", network.name, dataflow) in found


def test_real_time_is_what_the_cycles_say(found: dict[tuple[str, str, str], paper.Figure]) -> None:
    """171,520 cycles of the DPUs a frame of EESEN; loads and the recurrence's wait come on top."""
    subs = 2 * 320 * (math.ceil(120 / 16) + 20) + 4 * 2 * 320 * (40 + 20)
    assert subs == 171_520
    bound = 0.01 / (subs / 500e6)
    ours = found["real time", "EESEN", "epur"].ours
    assert ours is not None
    assert 0.98 * bound < ours < bound


def test_gains_of_mwl_come_from_its_streams(
    found: dict[tuple[str, str, str], paper.Figure],
) -> None:
    settings = paper.Settings()
    network = paper.networks()[0]
    plain, better = (paper.run(network, d, settings) for d in paper.DATAFLOWS)
    # 512 inputs and 512 cells: half of a row is W_h.
    assert (plain.weight_bytes, better.weight_bytes) == (512 * 1024 * 2, 512 * 512 * 2)

    def reads(run: paper.Run) -> int:
        streams = [s for phase in run.trace.phases for s in phase.streams]
        return sum(s.accesses for s in streams if s.component == "cu.i.weights" and s.op == "read")

    def is_matrix(s: AccessStream) -> bool:
        return s.component == "cu.i.weights" and s.op == "read" and s.bytes == 32

    matrix = [
        sum(s.accesses for phase in r.trace.phases for s in phase.streams if is_matrix(s))
        for r in (plain, better)
    ]
    assert matrix == [5 * 30 * 512 * 64, 5 * 30 * 512 * 32]
    assert reads(better) < reads(plain)


def test_a_bound_that_is_kept_is_no_difference() -> None:
    least = paper.Figure("a", "b", "c", "d", 28.0, 50.0, "least")
    assert least.relative == 0
    assert replace(least, ours=14.0).relative == -0.5
    assert replace(least, bound="most").relative == pytest.approx(22 / 28)
    assert replace(least, published=None).relative is None


@pytest.fixture(scope="module")
def rows() -> dict[str, list[float | None]]:
    return dict(paper.sensitivity())


def test_settings_move_what_they_should(rows: dict[str, list[float | None]]) -> None:
    base = paper.Settings()
    plain = rows["as it is"]
    energy, mwl, speed = 0, 1, 2
    watts = base.baseline.power_w
    for text, factor in (("GPU takes 10 W", 10 / watts), ("GPU takes 3.5 W", 3.5 / watts)):
        for column in (energy, mwl):
            assert rows[text][column] == pytest.approx((plain[column] or 0) * factor, rel=1e-12)
        assert rows[text][speed] == plain[speed]
    without = rows["E-PUR's energy without its DRAM"]
    assert (without[energy] or 0) > (plain[energy] or 0)
    assert without[speed] == plain[speed]


def test_the_pages_hold_what_the_code_gives() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_validation.py"))
    for name in ("validation", "energy"):
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert script["filled"](page) == page, f"run scripts/make_validation.py docs/{name}.md"
    with pytest.raises(ValueError, match="no mark"):
        script["filled"]("")


def test_another_baseline_stands_beside_no_figure_of_the_tegra(
    found: dict[tuple[str, str, str], paper.Figure],
) -> None:
    cpu = paper.Settings(baseline=Baseline.load("core-i7-6700k"))
    made = {(f.name, f.network, f.dataflow): f for f in paper.figures(cpu)}
    assert not any(key[2] == "tegra-x1" for key in made)
    for name in ("energy reduction", "speedup"):
        own = made[name, "average", "epur"]
        assert own.published is None and own.unit == "times, against core-i7-6700k"
        assert found[name, "average", "epur"].published
    area = made["area", "chip", "epur"]
    assert (area.published, area.ours) == (64.6, found["area", "chip", "epur"].ours)


def test_assumptions_move_what_they_name(rows: dict[str, list[float | None]]) -> None:
    plain, one = rows["as it is"], rows["memories of one port each"]
    area, peak = 5, 4
    assert (one[area] or 0) < 0.7 * (plain[area] or 0)
    assert (one[peak] or 0) < (plain[peak] or 0)
    units = rows["floating-point units as synthesised (Aladdin)"]
    assert units[area] == plain[area] and (units[peak] or 0) > (plain[peak] or 0)
    assert len(rows) > 20


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["paper", "--json"])
    made = json.loads(capsys.readouterr().out)
    first = made["figures"][0]
    assert {"name", "network", "dataflow", "published", "ours", "relative"} <= set(first)
    assert first["relative"] == pytest.approx(first["ours"] / first["published"] - 1)
    pytest.importorskip("matplotlib")
    main(["paper", "--plot", str(tmp_path / "paper.png")])
    assert "real time" in capsys.readouterr().out
    assert (tmp_path / "paper.png").read_bytes()[:4] == b"\x89PNG"


# --- baselines


def layers(cells: int, inputs: int) -> tuple[tuple[LayerShape, ...], ...]:
    return ((LayerShape("a", inputs, cells),),)


def test_a_baseline_by_hand() -> None:
    """Bandwidth-limited, launch-limited, and with a matrix in the cache."""
    plain = Baseline.load("tegra-x1").varied(
        dram_bandwidth=1e9, bandwidth_share=0.5, launch_s=1e-6, peak_flops=1e12, cache_bytes=2.0,
        element_bytes=4.0, power_w=2.0,
    )  # fmt: skip
    matrix = 1000 * 1000 * 4 / 0.5e9
    assert plain.seconds(layers(1000, 1000), 3) == pytest.approx(3 * (8 * matrix + 6e-6))
    batched = 3 * (4 * matrix + 6e-6) + 4 * matrix
    assert plain.seconds(layers(1000, 1000), 3, batched_inputs=True) == pytest.approx(batched)
    cached = plain.varied(cache_bytes=1e9)
    computed = 2 * 1000 * 1000 / 1e12
    assert cached.seconds(layers(1000, 1000), 3) == pytest.approx(
        8 * (matrix + 2 * computed) + 3 * 6e-6
    )
    assert plain.varied(launch_s=1.0).seconds(layers(4, 4), 2) == pytest.approx(2 * 14)
    assert plain.seconds(layers(4, 4), 0) == 0
    assert plain.joules(3.0) == 6.0


@pytest.mark.parametrize("name", baselines())
def test_every_preset(name: str) -> None:
    one = Baseline.load(name)
    assert one.name == name
    longer = [one.seconds(layers(256, 128), t) for t in (1, 2, 3)]
    assert longer[2] - longer[1] == pytest.approx(longer[1] - longer[0])


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("value = 5.5", "value = -1", "power_w"),
        ("value = 0.8", "value = 1.5", "bandwidth_share"),
        ("value = 8\n", "value = true\n", "matrix_kernels"),
        ("[power_w]", "[watts]", "power_w"),
        ('status = "published"', 'status = "guessed"', "guessed"),
        ("unit = ", "units = ", "lacks"),
        ("[power_w]", "[power_w", "can't be read"),
    ],
)
def test_wrong_baselines(tmp_path: Path, old: str, new: str, word: str) -> None:
    text = (ROOT / "epur_emu/data/baselines/tegra-x1.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "a.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(EpurError, match=word) as caught:
        Baseline.load(path)
    assert "\n" not in str(caught.value)


def test_unknown_baseline() -> None:
    with pytest.raises(EpurError, match="tegra-x1"):
        Baseline.load("cray-1")
