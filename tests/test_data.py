"""Data sets: found where EPUR_DATA says, or downloaded once, piece by piece, and verified."""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import shutil
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from epur_emu.errors import EpurError
from epur_emu.tasks import data
from epur_emu.tasks.captioning import read_captions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(data.__file__).parents[1] / "data"


def test_a_data_set_is_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPUR_DATA", str(tmp_path))
    with pytest.raises(EpurError, match=r"fsdd.*is no folder"):
        data.folder("fsdd")
    (tmp_path / "fsdd").mkdir()
    assert data.folder("fsdd") == tmp_path / "fsdd"


@pytest.mark.parametrize("name", ["fsdd", "multi30k", "nothing-known"])
def test_a_data_set_that_can_not_be_had_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("EPUR_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(EpurError, match=f"set EPUR_DATA to the folder that holds {name}/"):
        data.folder(name)


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What addresses give, through a stand-in for pooch; by address."""
    answers: dict[str, bytes] = {}

    def retrieve(
        url: str, known_hash: None, fname: str, path: Path, progressbar: bool = False
    ) -> str:
        file = Path(path) / fname
        if not file.exists():
            if url not in answers:
                raise OSError(f"no route to {url}")
            file.write_bytes(answers[url])
        return str(file)

    pooch = types.SimpleNamespace(
        retrieve=retrieve,
        os_cache=lambda name: str(tmp_path / name),
        get_logger=lambda: types.SimpleNamespace(setLevel=lambda level: None),
    )
    monkeypatch.setitem(sys.modules, "pooch", pooch)
    monkeypatch.delenv("EPUR_DATA", raising=False)
    return answers


def _known(monkeypatch: pytest.MonkeyPatch, **entry: object) -> None:
    full = {"source": "http://here", "revision": "r1", **entry}
    monkeypatch.setattr(data, "catalogue", lambda: {"small": full})


def _files(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = tmp_path / "wanted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "wanted"


def test_files_are_downloaded_once_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: dict[str, bytes]
) -> None:
    wanted = _files(tmp_path, {"a.txt": b"A", "b.txt": b"B"})
    _known(monkeypatch, base="http://here/", files=["a.txt", "b.txt"], sha256=data.digest(wanted))
    upstream |= {"http://here/a.txt": b"A", "http://here/b.txt": b"damaged"}
    with pytest.raises(EpurError, match="SHA-256"):
        data.folder("small")
    del upstream["http://here/b.txt"]
    with pytest.raises(EpurError, match=r"no route to .*set EPUR_DATA"):
        data.folder("small")
    del upstream["http://here/a.txt"]  # it is there from the attempt before
    upstream["http://here/b.txt"] = b"B"
    path = data.folder("small")
    assert path == tmp_path / "epur_emu" / "small" / "r1"
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a.txt": b"A", "b.txt": b"B"}
    upstream.clear()
    assert data.folder("small") == path
    assert [p.name for p in path.parent.iterdir()] == ["r1"]


def test_an_archive_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream: dict[str, bytes]
) -> None:
    wanted = _files(tmp_path, {"sounds/1.wav": b"one", "sounds/2.wav": b"two"})
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("sounds/1.wav", "sounds/2.wav"):
            file.writestr(f"set-r1/{name}", (wanted / name).read_bytes())
        file.writestr("set-r1/README.md", "read me")
        file.writestr("set-r1/sounds/../../../escaped.wav", "gone")
    _known(
        monkeypatch, archive="http://here/all.zip", members=r"[^/]+/(sounds/.*\.wav)",
        sha256=data.digest(wanted),
    )  # fmt: skip
    upstream["http://here/all.zip"] = b"no archive"
    with pytest.raises(EpurError, match=r"http://here/all\.zip: download failed"):
        data.folder("small")
    upstream["http://here/all.zip"] = archive.read_bytes()
    path = data.folder("small")
    assert sorted(p.name for p in path.rglob("*")) == ["1.wav", "2.wav", "sounds"]
    assert not list(tmp_path.rglob("escaped.wav"))


class _Upstream(SimpleHTTPRequestHandler):
    """Serves a folder; names of `gone` are not found."""

    gone: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.asked.append(name)
        if name in self.gone:
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of the folder ``upstream``."""
    (tmp_path / "upstream").mkdir()
    _Upstream.gone, _Upstream.asked = set(), []
    handler = functools.partial(_Upstream, directory=str(tmp_path / "upstream"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        gc.collect()
        server.shutdown()
        thread.join()


# Pooch leaves the connection of a refused answer open until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_pictures_and_their_names_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    pooch = pytest.importorskip("pooch")
    pytest.importorskip("requests")
    monkeypatch.delenv("EPUR_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    emoji = [
        {"hexcode": "263A-FE0F", "label": "smiling face"},
        {"hexcode": "1F44D", "label": "thumbs up", "skins": [
            {"hexcode": "1F44D-1F3FB", "label": "thumbs up: light skin tone"}]},
        {"hexcode": "1F4A4", "label": "ZZZ"},
    ]  # fmt: skip
    (tmp_path / "upstream" / "data.json").write_text(json.dumps(emoji), encoding="utf-8")
    names = ["emoji_u263a.png", "emoji_u1f44d.png", "emoji_u1f44d_1f3fb.png"]
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in names:
        for folder in (whole, tmp_path / "upstream"):
            (folder / name).write_bytes(name.encode())
    data_json = tmp_path / "json"
    data_json.mkdir()
    shutil.copy(tmp_path / "upstream" / "data.json", data_json)
    (tmp_path / "splits.toml").write_text(
        'test = "263a 1f44d 1f44d_1f3fb"\nval = "1f4a4"', encoding="utf-8"
    )
    both = {"source": server, "revision": "r1", "base": server}
    catalogue = {
        "noto-emoji": {
            **both, "file": "emoji_u{}.png", "names": str(tmp_path / "splits.toml"),
            "parts": {"test": data.digest(whole), "val": "0" * 64},
        },
        "emojibase-data": {**both, "files": ["data.json"], "sha256": data.digest(data_json)},
    }  # fmt: skip
    monkeypatch.setattr(data, "catalogue", lambda: catalogue)
    _Upstream.gone = {names[1]}
    with pytest.raises(EpurError, match=r"download failed \(404 .*set EPUR_DATA .*emoji/"):
        read_captions("test")
    _Upstream.gone = set()
    found = read_captions("test")
    assert [(path.name, text) for path, text in found] == [
        (names[0], "smiling face"), (names[1], "thumbs up"), (names[2], "thumbs up: light skin tone"),
    ]  # fmt: skip
    assert all(path.read_bytes() == path.name.encode() for path, _ in found)
    assert len(_Upstream.asked) <= 5  # of four files, one of them asked for twice
    assert read_captions("test") == found
    assert len(_Upstream.asked) <= 5
    (tmp_path / "upstream" / "emoji_u1f4a4.png").write_bytes(b"another")
    with pytest.raises(EpurError, match="SHA-256"):
        read_captions("val")
    folders = (tmp_path / "cache" / "epur_emu" / "noto-emoji" / "r1").iterdir()
    assert [path.name for path in folders] == ["test"]


def test_no_route_upstream_is_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooch = pytest.importorskip("pooch")
    pytest.importorskip("requests")
    monkeypatch.delenv("EPUR_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    _known(monkeypatch, base="http://127.0.0.1:9/", files=["a.txt"], sha256="0" * 64)
    with pytest.raises(EpurError, match=r"download failed \(.*refused\); set EPUR_DATA") as told:
        data.folder("small")
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("name", sorted(data.catalogue()))
def test_a_data_set_is_pinned_and_has_a_licence(name: str) -> None:
    entry = data.catalogue()[name]
    assert {"title", "source", "revision", "licence", "status"} <= set(entry)
    sums = [*entry.get("parts", {}).values(), *filter(None, [entry.get("sha256")])]
    assert sums
    assert all(len(each) == 64 for each in sums)
    assert re.fullmatch(r"[0-9a-f]{40}|\d+\.\d+\.\d+", entry["revision"])
    assert entry["revision"] in entry.get("archive", entry.get("base"))


@pytest.mark.skipif("EPUR_DATA" not in os.environ, reason="no EPUR_DATA")
@pytest.mark.parametrize("name", ["fsdd", "multi30k"])
def test_a_local_data_set_is_the_pinned_one(name: str) -> None:
    path = Path(os.environ["EPUR_DATA"]) / name
    if not path.is_dir():
        pytest.skip(f"no {name} there")
    assert data.digest(path) == data.catalogue()[name]["sha256"]


@pytest.mark.skipif("EPUR_DATA" not in os.environ, reason="no EPUR_DATA")
@pytest.mark.parametrize("split", ["test", "train", "val"])
def test_local_pictures_are_the_pinned_ones(tmp_path: Path, split: str) -> None:
    if not (Path(os.environ["EPUR_DATA"]) / "emoji").is_dir():
        pytest.skip("no emoji there")
    paths = [path for path, _ in read_captions(split)]
    names = tomllib.loads((DATA / "emoji_splits.toml").read_text(encoding="utf-8"))[split].split()
    assert {path.name for path in paths} == {f"emoji_u{name}.png" for name in names}
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    assert data.digest(tmp_path) == data.catalogue()["noto-emoji"]["parts"][split]
