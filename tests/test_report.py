"""Reports: what the page says, that it is whole and asks for nothing, and that a browser shows it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

pytest.importorskip("matplotlib")

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.cli import main
from epur_emu.dataflow import schedule_sequence
from epur_emu.energy import EnergyTable, energy
from epur_emu.errors import EpurError
from epur_emu.network import LayerShape
from epur_emu.plots import report as figures
from epur_emu.plots.results import front
from epur_emu.report import report
from epur_emu.report import trace as trace_report
from epur_emu.streams import AccessStream, Component, Phase
from epur_emu.study.results import Results, energy_of, trace_of
from epur_emu.trace import Trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Elements that HTML closes by themselves.
VOID = {"meta", "link", "br"}


class Reader(HTMLParser):
    """A page's elements, tables and text; elements must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[k]) for k in ("src", "href", "xlink:href") if k in given]
        self.ids += [str(given["id"])] if "id" in given else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        self.text += data


SHAPE = tuple(
    tuple(LayerShape(f"net.{n}.{way}", inputs, 16, False, way == "backward") for way in ways)
    for n, (inputs, ways) in enumerate([(24, ("forward", "backward")), (32, ("forward",))])
)


def a_trace(steps: int = 5, complete: bool = True, name: str = "epur") -> Trace:
    accelerator, numbers = Accelerator.load(name), arithmetic("epur-fp16")
    schedule = schedule_sequence(SHAPE, steps, numbers, accelerator)
    meta = {
        "networks": [{"name": "net", "steps": steps, "weights": "0123"}],
        "arithmetic": numbers.to_dict(),
        "accelerator": accelerator.to_dict(),
        "version": "0.0",
    }
    return Trace(schedule.phases, schedule.components, schedule.cycles, meta, complete=complete)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run.h5"
    a_trace().save(path)
    return path


@pytest.fixture(scope="module")
def html(path: Path) -> str:
    return report(path).html()


def test_the_page_asks_for_nothing_from_outside(html: str) -> None:
    page = Reader(html)
    assert all(address.startswith(("#", "data:,")) for address in page.addresses), page.addresses
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html
    # Names of W3C's namespaces and of file types are no addresses.
    assert set(re.findall(r"\bhttps?://[^\"' <>]+", html)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


def test_anchors_lead_somewhere_and_are_unique(html: str) -> None:
    page = Reader(html)
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)


def test_numbers_are_those_of_the_trace(html: str, path: Path) -> None:
    trace = Trace.open(path)
    cost = energy(trace, EnergyTable.load("epur-28nm"))
    page = Reader(html)
    data = json.loads(page.scripts[0])
    assert data["energy"] == cost.to_dict()
    assert data["info"]["accesses"] == trace.count()
    head, *rows = page.tables[0]
    assert head[:4] == ["component", "reads", "writes", "bytes"]
    shown = {row[0]: row for row in rows}
    assert set(shown) == set(cost.by_component)
    for name, size in trace.bytes_by_component().items():
        assert shown[name][3] == f"{size:,}"
    for name, one in cost.by_component.items():
        assert shown[name][5] == f"{one.dynamic_pj * 1e-6:,.3f}"
    assert sum(float(row[8]) for row in rows) == pytest.approx(100, abs=0.1)
    phases = page.tables[1][1:]
    assert sum(int(row[5].replace(",", "")) for row in phases) == data["info"]["bytes"]
    assert sum(float(row[6]) for row in phases) == pytest.approx(cost.dynamic_pj * 1e-6, abs=0.01)


def test_the_same_trace_gives_the_same_bytes(html: str, path: Path) -> None:
    assert report(path).html() == html


def test_text_of_a_trace_is_only_text(tmp_path: Path) -> None:
    name = "<script>alert(1)<script>&\"'"
    stream = AccessStream(name, "read", 4, 0, 0, ((8, 4, 1),))
    trace = Trace(
        [Phase(name, "load", (stream,))], [Component(name, 64, 32, 1)], 8,
        {"networks": [{"name": name, "steps": "</script><b>", "weights": "0"}], "x": "</script>"},
    )  # fmt: skip
    trace.save(tmp_path / "run.h5")
    page = Reader(report(tmp_path / "run.h5").html())
    assert len(page.scripts) == 2
    assert json.loads(page.scripts[0])["info"]["by_component"][name]["reads"] == 8
    assert any(row[0] == name for table in page.tables for row in table)
    assert "does not say its accelerator and arithmetic" in page.text


def test_an_interrupted_run_is_told(tmp_path: Path, html: str) -> None:
    a_trace(complete=False).save(tmp_path / "run.h5")
    assert "interrupted" in Reader(report(tmp_path / "run.h5").html()).text
    assert "interrupted" not in Reader(html).text


def test_mwl_and_many_accesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is too much to replay whole, lines are sampled, and the page says so."""
    monkeypatch.setattr(trace_report, "MANY", 100)
    a_trace(name="epur-mwl").save(tmp_path / "run.h5")
    page = report(tmp_path / "run.h5")
    assert {"cu.i.row", "cu.i.weights"} <= page.data["lru"].keys()
    assert all(row["sampled"] for row in page.data["lru"].values())
    assert "estimated" in Reader(page.html()).text


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "traces").glob("*.h5")), ids=str
)
def test_golden_traces(path: Path) -> None:
    Reader(report(path).html())


@given(traces())
@settings(deadline=None, max_examples=40)
def test_any_trace_has_a_page_or_is_refused(trace: Trace) -> None:
    def whole(path: Path) -> None:
        try:
            page = report(path)
        except EpurError as error:
            assert "\n" not in str(error)
            return
        Reader(page.html())

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("epur_emu.report.page.Page.figure", lambda *_, **__: None)
        trace.save(Path(folder, "run.h5"))
        whole(Path(folder, "run.h5"))


def test_the_command(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a b.html"
    figures_at = tmp_path / "figures"
    main(["report", str(path), "-o", str(out), "--figures", str(figures_at), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == out.stat().st_size
    assert told["figures"] == [
        str(p) for p in map(Path, told["figures"]) if p.stat().st_size > 1000
    ]
    assert {Path(p).suffix for p in told["figures"]} == {".png", ".svg"}
    assert told["energy"]["total_pj"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.h5"], "missing.h5"),
        (["damaged.h5"], "damaged.h5"),
        (["run.h5", "-o", "no/such/report.html"], "report.html"),
        (["run.h5", "-o", "report.html", "--figures", "damaged.h5"], "damaged.h5"),
        (["run.h5", "-o", "report.html", "--table", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, path: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("run.h5").write_bytes(path.read_bytes())
    Path("damaged.h5").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SystemExit) as left:
        main(["report", *arguments])
    assert left.value.code == 2
    said = capsys.readouterr()
    line = said.err.splitlines()[-1]
    assert line.startswith("epur: ")
    assert told in line
    assert "Traceback" not in said.err


def test_a_report_that_cannot_be_written_leaves_what_was_there(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = report(path)
    target = tmp_path / "report.html"
    target.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EpurError, match="No space left"):
        page.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "before"


def test_without_matplotlib_one_line_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EpurError, match=r"epur_emu\[plot\]"):
        report(path)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_sorts_the_table_and_finds_no_fault(html: str, tmp_path: Path) -> None:
    """Twice on `bytes`, once on `component`; faults of the page and of its policy are collected."""
    watch = """<script>
    const faults = [];
    addEventListener("error", (e) => faults.push(e.message));
    addEventListener("securitypolicyviolation", (e) => faults.push(e.violatedDirective));
    addEventListener("load", () => {
      const table = document.querySelector("table");
      const column = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].textContent);
      const click = (n) => { table.tHead.rows[0].cells[n].firstElementChild.click(); return column(n); };
      const found = {down: click(3), up: click(3), names: click(0)};
      found.sort = table.tHead.rows[0].cells[0].ariaSort;
      found.figures = [...document.querySelectorAll("figure svg")].map((f) => f.clientHeight);
      found.wide = document.documentElement.scrollWidth - innerWidth;
      found.faults = faults;
      document.body.textContent = JSON.stringify(found);
    });
    </script>"""
    page = tmp_path / "page.html"
    page.write_text(html.replace("</title>", "</title>" + watch))
    shown = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=500,800", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
        # What serves the kernels under sanitizers is not for a browser.
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
    ).stdout  # fmt: skip
    found = json.loads(unescape(re.search(r"<body>(.*)</body>", shown, re.DOTALL)[1]))  # type: ignore[index]
    numbers = [int(n.replace(",", "")) for n in found["down"] if n != "-"]
    assert numbers == sorted(numbers, reverse=True)
    assert found["down"][len(numbers) :] == found["up"][len(numbers) :] == ["-"] * 3
    assert found["up"][: len(numbers)] == found["down"][: len(numbers)][::-1]
    assert found["names"] == sorted(found["names"])
    assert found["sort"] == "ascending"
    assert len(found["figures"]) == 6
    assert min(found["figures"]) > 100
    assert found["wide"] <= 0  # the page itself never scrolls sideways
    assert found["faults"] == []


def test_spans_that_lie_close_are_drawn_as_one() -> None:
    spans = [(0, 10), (5, 20), (21, 30), (100, 110)]
    assert figures._joined(spans, 2) == [(0, 30), (100, 110)]
    assert figures._joined(spans, 0) == [(0, 20), (21, 30), (100, 110)]


# --- results of a study


def a_point(
    place: int, model: str, mantissa: int, accelerator: str, **given: Any
) -> dict[str, Any]:
    """A point as `Results` has it; coarser formats score worse and cost less."""
    score = 40.0 - 30.0 * 2.0 ** (1 - mantissa)
    memories = ("cu.weights", "cu.inputs", "intermediate", "dram", "dpu", "mu", "link")
    costs = {
        name: {"dynamic": 1e6 * mantissa / (n + 1), "static": 1e5 / (n + 1), "accesses": 100.0}
        for n, name in enumerate(memories)
    }
    rows = {name: {"reads": 10.0, "writes": 5.0, "bytes": 480.0} for name in memories[:4]}
    point = {
        "point": place, "key": f"{place:08x}", "model": model, "task": "translation",
        "arithmetic": f"epur-e5m{mantissa}", "accelerator": accelerator, "dataflow": accelerator,
        "table": "epur-28nm", "metric": "BLEU", "higher_is_better": True, "float32": 40.0,
        "emulated": score, "loss": 40.0 - score, "n": 100, "same_outputs": 90 + mantissa,
        "metrics": {"float32": {"BLEU": 40.0}, "emulated": {"BLEU": score}},
        "bits": {"weight": 6.0 + mantissa, "input": 16.0}, "weight_bits": 1e6 * (6 + mantissa), "items": 100,
        "cycles": 6e5, "seconds": 1.2e-3, "real_time_factor": None, "energy_pj": energy_of(costs),
        "average_mw": 500.0, "peak_mw": 640.0, "area_mm2": 34.6, "wider": {},
        "layers": [
            {"name": f"encoder.{n}", "max_abs_error": 2.0 ** (-mantissa - n), "rms_error": 1e-4,
             "overflow": 0, "saturation": 0}
            for n in range(3)
        ],
        "trace": trace_of(rows), "stage": "sweep", "chosen": False, "problem": None,
    }  # fmt: skip
    return point | given


def a_study(**given: Any) -> Results:
    places = itertools.count()
    points = [
        a_point(next(places), model, bits, accelerator)
        for model in ("translate", "digits")
        for accelerator in ("epur", "epur-mwl")
        for bits in (2, 4, 6, 8, 10)
    ]
    nothing = {
        "metric": None, "float32": None, "emulated": None, "loss": None, "n": 0, "same_outputs": None,
        "metrics": {"float32": {}, "emulated": {}}, "bits": {}, "cycles": None, "seconds": None,
        "energy_pj": None, "average_mw": None, "peak_mw": None, "area_mm2": None, "layers": [],
        "trace": None, "problem": "does not fit: 9 MiB of weights",
    }  # fmt: skip
    points.append(a_point(next(places), "digits", 3, "epur", **nothing))
    search = {
        "model": "digits",
        "accelerator": "epur",
        "loss": 0.5,
        "evaluations": 30,
        "chosen": 11,
    }
    return Results(
        **{"name": "mantissa", "study": 'models = ["digits"]\n<b>', "points": points,
           "summary": "How many bits?", "software": {"epur_emu": "0.1.0", "numpy": "2"},
           "planned": len(points), "made": "2026-01-31", "searches": [search]} | given
    )  # fmt: skip


@pytest.fixture(scope="module")
def study_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("study") / "results.h5"
    a_study().save(path)
    return report(path).html()


def test_a_study_asks_for_nothing_from_outside(study_html: str) -> None:
    page = Reader(study_html)
    allowed = ("#", "data:,", "data:image/png;base64,")
    assert all(address.startswith(allowed) for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))


def test_a_study_shows_every_point(study_html: str) -> None:
    results, page = a_study(), Reader(study_html)
    assert json.loads(page.scripts[0])["points"] == results.points
    searches, table = page.tables
    assert [row[:5] for row in searches[1:]] == [["digits", "epur", "0.5", "30", "epur-e5m4"]]
    head, *rows = table
    assert len(rows) == len(results.points)
    for row, point in zip(rows, results.points, strict=True):
        shown = dict(zip(head, row, strict=True))
        assert shown["arithmetic"] == point["arithmetic"]
        assert shown["problem"] == (point["problem"] or "-")
        if point["energy_pj"]:
            assert float(shown["energy (uJ)"]) == pytest.approx(
                point["energy_pj"]["total"] * 1e-6, 1e-3
            )
            assert float(shown["emulated"]) == pytest.approx(point["emulated"], 1e-3)
        else:
            assert shown["energy (uJ)"] == shown["emulated"] == "-"
    assert page.text.count("1 without a result") == 1
    assert 'models = ["digits"]\n<b>' in page.text
    assert results.digest in page.text


def test_an_interrupted_study_is_told(tmp_path: Path, study_html: str) -> None:
    a_study(planned=99).save(tmp_path / "results.h5")
    assert "21 of its 99 points" in Reader(report(tmp_path / "results.h5").html()).text
    assert "interrupted" not in Reader(study_html).text


@pytest.mark.parametrize("change", [{"points": [], "searches": []}, {"searches": [{}]}])
def test_a_study_of_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    a_study(**change).save(tmp_path / "results.h5")
    Reader(report(tmp_path / "results.h5").html())


def test_a_metric_of_which_less_is_better_and_many_points(tmp_path: Path) -> None:
    points = [
        a_point(
            n, "digits", 1 + n % 10, "epur", higher_is_better=False, metric="WER", emulated=float(n)
        )
        for n in range(50)
    ]
    a_study(points=points, searches=[]).save(tmp_path / "results.h5")
    html = report(tmp_path / "results.h5").html()
    assert "WER (lower is better)" in html
    assert "the first 40 of 50 points" in html


def test_damaged_results_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.h5"
    a_study().save(path)
    whole = path.read_bytes()
    for damaged in (
        whole[:5000],
        whole[:-1],
        whole[:-99] + bytes([whole[-99] ^ 1]) + whole[-98:],
        whole[:12],
        whole + b" ",
    ):
        path.write_bytes(damaged)
        with pytest.raises(EpurError, match=r"results\.h5: seal does not fit"):
            report(path)
    path.write_bytes(whole.replace(b"epur-study 1.", b"epur-study 2."))
    with pytest.raises(EpurError, match=r"results\.h5: version is 2; use a newer"):
        report(path)
    path.write_bytes(whole.replace(b"epur-study 1.0", b"epur-study 1.7"))
    report(path)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    costs, merits = [c for c, _ in points], [m for _, m in points]
    best = [points[n] for n in front(costs, merits)]
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert best == sorted(set(points) - beaten)
