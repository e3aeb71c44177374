"""README and docs: every command and every block of code is run, and printed outputs are compared."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from types import ModuleType

import checkpoint_files
import numpy as np
import pytest

from epur_emu.study import Study

pytest.importorskip("matplotlib", reason="pages draw figures")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def _outputs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_outputs", ROOT / "scripts/make_outputs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_outputs"] = module
    spec.loader.exec_module(module)
    return module


outputs = _outputs()
PAGES = [path.relative_to(ROOT).as_posix() for path in outputs.PAGES]

#: Commands that take long on whole data are run on less; what is left out needs data sets.
LESS = {"--limit": "2", "--sizes": "64K:128K"}
SLOW = ("paper",)  # tests/test_paper.py runs it in all its forms
NEEDS_DATA = ("evaluate", "calibrate")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages speak of."""
    shelf = tmp_path_factory.mktemp("shelf")
    chance = np.random.default_rng(0)
    with wave.open(str(shelf / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((chance.normal(0, 3000, 4000)).astype("<i2").tobytes())
    (shelf / "small.toml").write_text(
        'models = ["paper:LDLRNN"]\narithmetics = ["epur-fp16"]\naccelerators = ["epur"]\n'
    )
    checkpoint_files.write_all(shelf)
    (shelf / "a.pt").rename(shelf / "checkpoint.pt")
    array = chance.normal(size=(7, checkpoint_files.INPUTS)).astype(np.float32)
    for name in ("x.npy", "X.npy"):
        np.save(shelf / name, array)
    outputs.run(["epur", "run", "translate-en-de", "a man .", "--trace", str(shelf / "run.h5")])
    return shelf


def _less(words: list[str]) -> list[str]:
    """The command on less; a study of the tree is read, and a small one is run in its place."""
    less = [LESS.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    if words[1] != "sweep":
        return less
    for n, word in enumerate(less):
        if word.startswith("studies/"):
            Study.load(word)
            less[n] = "small.toml"
    # Processes take longer to start than the small study takes.
    return [*less, "--jobs", "1"]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_works(
    name: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in shelf.iterdir():
        shutil.copy(file, tmp_path)
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    if name != "docs/reports.md":  # once is enough, and drawing takes its time
        monkeypatch.setattr("epur_emu.report.page.Page.figure", lambda *_, **__: None)
    golden = ROOT / "traces" / "epur-sequence.h5"
    names = {"__name__": "page", "path": golden}
    found = outputs.blocks((ROOT / name).read_text(encoding="utf-8"))
    for block in found:
        if block.kind == "toml":
            tomllib.loads(block.text)
            if file := re.match(r"# ([\w-]+\.toml)\n", block.text):
                Path(file[1]).write_text(block.text, encoding="utf-8")
    for block in found:
        if block.kind == "python":
            exec(compile(block.text, f"{name}, line {block.line}", "exec"), names)
        elif block.kind == "sh":
            for words in outputs.commands(block):
                if words[1] in SLOW or (words[1] in NEEDS_DATA and "EPUR_DATA" not in os.environ):
                    continue
                less = _less(words)
                if "--search" not in less:  # tests/test_study.py searches
                    outputs.run(less)


@pytest.mark.parametrize("name", PAGES)
def test_printed_outputs_are_what_commands_print(name: str) -> None:
    for block, words in outputs.shown((ROOT / name).read_text(encoding="utf-8")):
        assert outputs.run(words) == block.text, "make it anew: python scripts/make_outputs.py"


def test_blocks_are_found() -> None:
    """And a wrong command is a fault."""
    page = (
        "```sh\nA=b .venv/bin/epur models  # list\npip install x && epur run x\n```\nIt prints:\n\n"
        "```text\nout\n```\n\n    epur formats\n    epur paper\n\n```toml\n# a.toml\nb = 1\n```\n"
    )
    found = outputs.blocks(page)
    assert [(block.line, block.kind) for block in found] == [
        (2, "sh"), (8, "text"), (11, "sh"), (15, "toml"),
    ]  # fmt: skip
    assert list(outputs.commands(found[0])) == [
        [".venv/bin/epur", "models"], ["epur", "run", "x"],
    ]  # fmt: skip
    assert list(outputs.commands(found[2])) == [["epur", "formats"], ["epur", "paper"]]
    assert [(block.text, words) for block, words in outputs.shown(page)] == [
        ("out\n", ["epur", "run", "x"])
    ]
    with pytest.raises(RuntimeError, match="no-such-command"):
        outputs.run(["epur", "no-such-command"])
    with pytest.raises(RuntimeError, match="no command of epur_emu"):
        outputs.run(["rm", "-r", "x"])


def test_every_command_is_on_a_page() -> None:
    from epur_emu.cli import COMMANDS

    text = "".join(path.read_text(encoding="utf-8") for path in outputs.PAGES)
    missing = [c.name for c in COMMANDS if not re.search(rf"\bepur {c.name}\b", text)]
    assert missing == []


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "models/README.md", "traces/FORMAT.md", *PAGES]
)
def test_links_lead_somewhere(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    page = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", page):
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            slugs = [
                re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads
            ]
            assert anchor in slugs, target


def test_the_site_builds(tmp_path: Path) -> None:
    """Without network or warning; nothing in it is fetched from elsewhere."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9",
             "https_proxy": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in (tmp_path / "site").glob("*.html"):
        assert not re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="?https?:', page.read_text()
        ), page
    assert (tmp_path / "site/source/epur_emu/dataflow/mwl.py").is_file()
