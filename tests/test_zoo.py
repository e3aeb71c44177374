"""Model folders: what is written is read, what is damaged is told in one line; models by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu import zoo
from epur_emu.checkpoints.folder import CARD, WEIGHTS, read_card, read_folder, to_toml, write_folder
from epur_emu.errors import EpurError, ModelError, NetworkError
from epur_emu.network import LstmLayer, Network

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def layer(name: str, cells: int, inputs: int, *, peepholes: bool = False) -> LstmLayer:
    rng = np.random.default_rng(len(name))

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16)

    return LstmLayer(
        name,
        draw(4, cells, inputs),
        draw(4, cells, cells),
        draw(4, cells),
        draw(3, cells) if peepholes else None,
        reverse=name.endswith("backward"),
        clip=2.5 if peepholes else None,
    )


def networks() -> dict[str, Network]:
    both = (layer("a.0.forward", 2, 3), layer("a.0.backward", 3, 3))
    return {
        "a": Network("a", (both, (layer("a.1.forward", 2, 5),))),
        "b": Network("b", ((layer("b.0.forward", 1, 2, peepholes=True),),), host_between=True),
    }


HOST = {"table": np.arange(6, dtype=np.float16).reshape(2, 3)}
META = {"name": "small", "task": "translation", "score": {"float32": 1.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    write_folder(path, META, networks(), HOST, {"a.0.backward": 2.25})
    return path


def replace_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Rewrite the weights; a dot in a tensor's name is written as two underscores."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    for key, array in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if array is not None:
            tensors[name] = array
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def test_reads_what_it_wrote(folder: Path) -> None:
    model = read_folder(folder)
    assert model.name == "small"
    assert model.card["score"] == {"float32": 1.5}
    assert model.card["parameters"] == {
        "lstm": sum(n.parameters for n in networks().values()),
        "host": 6,
    }
    assert model.alpha == {"a.0.backward": 2.25}
    assert {name: n.weight_hash for name, n in model.networks.items()} == {
        name: n.weight_hash for name, n in networks().items()
    }
    assert [model.networks[name].host_between for name in "ab"] == [False, True]
    assert [p.reverse for p in model.networks["a"].passes] == [False, True, False]
    assert [p.clip for n in model.networks.values() for p in n.passes] == [None] * 3 + [2.5]
    assert {p.w_x.dtype for p in model.networks["a"].passes} == {np.dtype(np.float16)}
    assert model.host["table"].dtype == np.float32
    np.testing.assert_array_equal(model.host["table"], HOST["table"])


def test_weights_cut_short_are_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in (*range(16), *range(16, len(whole), 7), len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ModelError, match=WEIGHTS):
            read_folder(folder)


def test_card_cut_at_any_byte_gives_no_traceback(folder: Path) -> None:
    whole = (folder / CARD).read_bytes()
    refusals = []
    for size in range(len(whole)):
        (folder / CARD).write_bytes(whole[:size])
        try:
            read_folder(folder)
        except EpurError as error:
            refusals.append(str(error))
    assert len(refusals) > whole.index(b"[networks.b]")
    assert "\n" not in "".join(refusals)


def test_damaged_bytes_give_no_traceback(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for file in (WEIGHTS, CARD):
        whole = (folder / file).read_bytes()
        refusals = []
        for _ in range(400):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            (folder / file).write_bytes(damaged)
            try:
                read_folder(folder)
            except EpurError as error:
                refusals.append(str(error))
        assert refusals
        assert "\n" not in "".join(refusals)
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"a__1__forward__w_h": None}, ModelError, ["a.1.forward.w_h", "missing"]),
        ({"c__0__forward__w_h": np.zeros(3)}, ModelError, ["c.0.forward.w_h", "no network"]),
        (
            {"a__1__forward__w_h": np.zeros((4, 3, 2), np.float16)},
            NetworkError,
            ["a.1.forward.w_h", "(4, 3, 2)", "(4, 2, 2)"],
        ),
        (
            {"a__1__forward__w_x": np.zeros((4, 2, 4), np.float16)},
            NetworkError,
            ["a.1.forward", "4 inputs", "5"],
        ),
        ({"a__1__forward__bias": np.zeros((4, 2))}, NetworkError, ["bias", "float64"]),
        (
            {"a__1__forward__bias": np.full((4, 2), np.nan, np.float16)},
            NetworkError,
            ["a.1.forward.bias", "gate i", "nan"],
        ),
        ({"host__table": np.full(2, np.inf, np.float32)}, ModelError, ["host.table"]),
        ({"host__table": np.zeros(2, np.int32)}, ModelError, ["host.table", "int32"]),
    ],
)
def test_wrong_tensor_is_named(
    folder: Path, change: dict[str, np.ndarray], error: type[EpurError], words: list[str]
) -> None:
    replace_tensors(folder, **change)
    with pytest.raises(error) as caught:
        read_folder(folder)
    for word in [WEIGHTS, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('name = "small"', "", "name"),
        ('task = "translation"', "task = 3", "task"),
        ('"a.0.backward" = 2.25', '"a.7.backward" = 2.25', "calibration.alpha.a.7.backward"),
        ('"a.0.backward" = 2.25', '"a.0.backward" = -1', "calibration.alpha.a.0.backward"),
        ('["forward", "backward"]', '["forward", "up"]', "networks.a.directions"),
        ('["forward", "backward"]', '["forward", "forward"]', "networks.a.directions"),
        ('["forward", "backward"]', "[[], 1]", "networks.a.directions"),
        ("host_between = true", "host_between = 1", "networks.b.host_between"),
        ("host_between = true", "between = true", "networks.b.between"),
        ('"0.forward" = 2.5', '"0.forward" = -2.5', "networks.b.clip.0.forward"),
        ('"0.forward" = 2.5', '"1.forward" = 2.5', "networks.b.clip.1.forward"),
        ('"0.forward" = 2.5', '"0.forward" = "x"', "networks.b.clip.0.forward"),
        ("[networks.b.clip]", "[[networks.b.clip]]", "networks.b.clip"),
        ("[networks.b]", "[networks.host]", "networks.host"),
        ("[networks.b]", "[networks.b.c]", "networks.b"),
    ],
)
def test_wrong_card_is_named(folder: Path, old: str, new: str, field: str) -> None:
    text = (folder / CARD).read_text()
    assert old in text
    (folder / CARD).write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=CARD) as caught:
        read_folder(folder)
    assert caught.value.field.startswith(field)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=CARD):
        read_folder(tmp_path / "nothing")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=WEIGHTS):
        read_folder(folder)


def test_writes_nothing_that_can_not_be_read(tmp_path: Path) -> None:
    misnamed = Network("a", ((layer("elsewhere", 2, 3),),))
    with pytest.raises(NetworkError, match=r"a\.0\.forward"):
        write_folder(tmp_path, META, {"a": misnamed}, {}, {})
    with pytest.raises(ModelError, match=r"host\.t"):
        write_folder(tmp_path, META, networks(), {"t": np.array([np.inf], np.float16)}, {})
    assert list(tmp_path.iterdir()) == []


SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
TABLES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=3),
    lambda inner: st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), TABLES, max_size=4))
def test_toml_reads_back(table: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def make(root: Path, name: str) -> Path:
    write_folder(root / name, {**META, "name": name}, networks(), HOST, {})
    return root / name


def test_finds_models_of_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    a, b, _ = make(first, "a-model"), make(second, "b-model"), make(second, "a-model")
    (first / "no-model").mkdir()
    monkeypatch.setenv(zoo.VARIABLE, os.pathsep.join([str(first), "", str(second), "/nowhere"]))
    models = zoo.list_models()
    assert models["a-model"] == a == zoo.find("a-model")
    assert models["b-model"] == b == zoo.find("b-model")
    assert "no-model" not in models
    assert list(models) == sorted(models)


def test_finds_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, "small")
    assert zoo.find(path) == path
    assert zoo.find(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert zoo.find("small") == Path("small")


@pytest.mark.parametrize("name", ["nothing", "./nothing", "/nothing/at/all", ""])
def test_unknown_name_lists_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make(tmp_path, "known-model")
    monkeypatch.setenv(zoo.VARIABLE, str(tmp_path))
    with pytest.raises(ModelError, match="known-model"):
        zoo.find(name)


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution that offers a folder, a package and something broken."""
    site = tmp_path / "site"
    by_path = make(tmp_path, "by-path")
    make(site, "its_package")
    (site / "its_package" / "__init__.py").write_text("")
    (site / "its_paths.py").write_text(f"folder = {str(by_path)!r}\n")
    info = site / "its-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: its\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{zoo.GROUP}]\nby-path = its_paths:folder\nby-package = its_package\nbroken = no_such\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def test_finds_models_of_other_packages(tmp_path: Path, other_package: Path) -> None:
    with pytest.warns(UserWarning, match="broken"):
        models = zoo.list_models()
    assert models["by-path"] == tmp_path / "by-path"
    assert models["by-package"] == other_package / "its_package"
    assert "broken" not in models


def test_two_models_of_one_name(
    tmp_path: Path, other_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = other_package / "its-1.0.dist-info" / "entry_points.txt"
    entries.write_text(f"[{zoo.GROUP}]\ntranslate-en-de = its_package\n")
    with pytest.raises(ModelError, match="is also in"):
        zoo.list_models()
    mine = make(tmp_path / "mine", "translate-en-de")
    entries.write_text("")
    monkeypatch.setenv(zoo.VARIABLE, str(mine.parent))
    assert zoo.find("translate-en-de") == mine


def test_models_of_this_project_are_whole() -> None:
    cards = sorted((ROOT / "models").glob(f"*/{CARD}"))
    assert cards
    for path in cards:
        assert read_card(path.parent)["name"] == path.parent.name
        if (path.parent / WEIGHTS).exists():
            read_folder(path.parent)


def test_torch_is_never_needed() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import epur_emu, epur_emu.tasks, epur_emu.zoo, epur_emu.checkpoints.folder\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
