"""Importers without frameworks: weights read rightly; whatever is wrong is told in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoint_files as files
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu import Engine, arithmetic, cli
from epur_emu.checkpoints import isolated, keras, pickles, protobuf
from epur_emu.checkpoints.folder import read_folder
from epur_emu.checkpoints.importers import IMPORTERS, Checkpoint, read_checkpoint
from epur_emu.errors import EpurError, ModelError
from epur_emu.network import LstmLayer

C, D = files.CELLS, files.INPUTS


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: Any) -> None:
    """Valid HDF5 files need no process of their own; tests of damaged ones undo this."""
    monkeypatch.setitem(IMPORTERS, "keras", replace(IMPORTERS["keras"], read=keras.read))


def only(checkpoint: Checkpoint) -> LstmLayer:
    """The one pass of a checkpoint."""
    (network,) = checkpoint.networks.values()
    (layer,) = network.network.passes
    return layer


def refused(path: Path, *prefixes: str, form: str | None = None) -> str:
    with pytest.raises(EpurError) as caught:
        read_checkpoint(path, form, prefixes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_every_importer_is_tried(tmp_path: Path) -> None:
    assert set(IMPORTERS) <= set(files.write_all(tmp_path))


@pytest.mark.parametrize("form", ["pytorch", "legacy", "safetensors", "npz"])
def test_state_dict(tmp_path: Path, form: str) -> None:
    arrays = files.torch_lstm()
    layer = only(read_checkpoint(files.write_all(tmp_path)[form]))
    np.testing.assert_array_equal(layer.w_x.reshape(4 * C, D), arrays["weight_ih_l0"])
    np.testing.assert_array_equal(layer.w_h.reshape(4 * C, C), arrays["weight_hh_l0"])
    bias = np.float64(arrays["bias_ih_l0"]) + arrays["bias_hh_l0"]
    np.testing.assert_array_equal(layer.bias.reshape(-1), bias.astype(np.float32))
    assert (layer.name, layer.reverse, layer.peepholes) == ("lstm.0.forward", False, None)


@pytest.mark.parametrize("form", ["keras", "h5"])
def test_keras(tmp_path: Path, form: str) -> None:
    kernel, recurrent, bias = files.keras_weights()
    layer = only(read_checkpoint(files.write_all(tmp_path)[form]))
    np.testing.assert_array_equal(layer.w_x.reshape(4 * C, D), kernel.T)
    np.testing.assert_array_equal(layer.w_h.reshape(4 * C, C), recurrent.T)
    np.testing.assert_array_equal(layer.bias.reshape(-1), bias)


def test_onnx_order_of_gates(tmp_path: Path) -> None:
    # Each gate's weights are its own number: i 1, o 2, f 3, c 4; peepholes i 5, o 6, f 7.
    gates = np.repeat(np.float32([1, 2, 3, 4]), C)
    constants = {
        "W": np.tile(gates[:, None], (1, 1, D)),
        "R": np.tile(gates[:, None], (1, 1, C)),
        "B": np.concatenate([gates, 10 * gates])[None],
        "P": np.repeat(np.float32([5, 6, 7]), C)[None],
    }
    node = files.onnx_node("LSTM", ["x", "W", "R", "B", "", "", "", "P"], ["y"])
    (tmp_path / "a.onnx").write_bytes(files.onnx_model([node], constants))
    layer = only(read_checkpoint(tmp_path / "a.onnx"))
    assert layer.w_x[:, 0, 0].tolist() == [1, 3, 4, 2]
    assert layer.w_h[:, 0, 0].tolist() == [1, 3, 4, 2]
    assert layer.bias[:, 0].tolist() == [11, 33, 44, 22]
    assert layer.peepholes is not None
    assert layer.peepholes[:, 0].tolist() == [5, 7, 6]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("write", [files.write_pt, files.write_safetensors, files.write_npz])
def test_types(tmp_path: Path, dtype: Any, write: Callable[..., Path]) -> None:
    arrays = {name: array.astype(dtype) for name, array in files.torch_lstm().items()}
    suffix = write.__name__.removeprefix("write_")
    found = read_checkpoint(write(tmp_path / f"a.{suffix}", arrays))
    layer = only(found)
    assert layer.w_x.dtype == (np.float16 if dtype == np.float16 else np.float32)
    np.testing.assert_array_equal(
        layer.w_x.reshape(4 * C, D), arrays["weight_ih_l0"].astype(layer.w_x.dtype)
    )
    assert any("float64" in note for note in found.notes) == (dtype == np.float64)


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    arrays = files.torch_lstm()
    header, data = {}, b""
    for name, array in arrays.items():
        half = (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        place = [len(data), len(data) + len(half)]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": place}
        data += half
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    wanted = (arrays["weight_ih_l0"].view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(only(read_checkpoint(path)).w_x.reshape(4 * C, D), wanted)


def test_tensors_that_are_views_of_one_storage(tmp_path: Path) -> None:
    arrays = dict(files.torch_lstm())
    # Every tensor of the file is the transposed second half of its storage.
    big = {n: np.concatenate([np.zeros_like(a.T), a.T]) for n, a in arrays.items()}
    items = b"".join(
        files.text(name)
        + files.tensor(
            big[name], str(n), shape=array.shape, offset=array.size,
            strides=[1, len(array)] if array.ndim == 2 else [1],
        )
        for n, (name, array) in enumerate(arrays.items())
    )  # fmt: skip
    path = files.write_pt(tmp_path / "a.pt", big, b"\x80\x02}(" + items + b"u.")
    layer = only(read_checkpoint(path))
    np.testing.assert_array_equal(layer.w_x.reshape(4 * C, D), arrays["weight_ih_l0"])


# --- which networks


def test_numbered_networks_are_joined_and_others_are_not(tmp_path: Path) -> None:
    arrays = {
        **files.torch_lstm("rnn1."), **files.torch_lstm("rnn2.", inputs=C),
        **files.torch_lstm("other."),
    }  # fmt: skip
    path = files.write_npz(tmp_path / "a.npz", arrays)
    found = read_checkpoint(path)
    assert {n: len(v.network.layers) for n, v in found.networks.items()} == {"rnn": 2, "other": 1}
    assert "rnn1 -> rnn2" in " ".join(found.notes)
    assert list(read_checkpoint(path, prefixes=["rnn2"]).networks) == ["rnn2"]
    assert "rnn1" in refused(path, "rnn")


@pytest.mark.parametrize(
    "names", [("rnn1.", "rnn3."), ("rnn1.", "other2."), (f"rnn{'9' * 5000}.", "rnn1.")]
)
def test_what_is_not_joined(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = {k: v for name in names for k, v in files.torch_lstm(name, inputs=C).items()}
    found = read_checkpoint(files.write_pt(tmp_path / "a.pt", arrays))
    assert [len(n.network.layers) for n in found.networks.values()] == [1, 1]


@pytest.mark.parametrize("write", ["npz", "onnx", "h5"])
def test_what_is_not_chosen_is_not_read(tmp_path: Path, monkeypatch: Any, write: str) -> None:
    path = tmp_path / f"a.{write}"
    if write == "npz":
        bad = {"bad.weight_ih_l0": np.zeros((7, 3)), "bad.weight_hh_l0": np.zeros((5, 2))}
        files.write_npz(path, {**files.torch_lstm("good."), **bad})
    elif write == "onnx":
        nodes, constants = zip(*(lstm_node(name, "x", D) for name in ("bad", "good")), strict=True)
        del constants[0]["Wbad"]
        path.write_bytes(files.onnx_model(nodes, {**constants[0], **constants[1]}))
    else:
        monkeypatch.undo()
        bad_layer = files.keras_lstm("bad", activation="relu")
        files.write_h5(path, files.keras_lstm(), {"class_name": "Dense", "config": {}}, bad_layer)
    good = {"npz": "good", "onnx": "node/good", "h5": "lstm"}[write]
    assert len(read_checkpoint(path, prefixes=[good]).networks) == 1
    refused(path)
    assert f"use one of: {'node/' * (write == 'onnx')}" in refused(path, "none")


def test_two_networks_with_names_that_become_one(tmp_path: Path) -> None:
    arrays = {**files.torch_lstm("a.b."), **files.torch_lstm("a-b.")}
    found = read_checkpoint(files.write_npz(tmp_path / "a.npz", arrays))
    assert sorted(found.networks) == ["a_b", "a_b_2"]


def test_own_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for place, inputs in (("0.forward", D), ("0.backward", D), ("1.forward", 2 * C)):
        for field, shape in (("w_x", (4, C, inputs)), ("w_h", (4, C, C)), ("bias", (4, C)),
                             ("peepholes", (3, C))):  # fmt: skip
            arrays[f"net.{place}.{field}"] = rng.standard_normal(shape).astype(np.float32)
    found = read_checkpoint(files.write_npz(tmp_path / "a.npz", arrays)).networks["net"]
    assert [p.name for p in found.network.passes] == [
        "net.0.forward", "net.0.backward", "net.1.forward",
    ]  # fmt: skip
    for p in found.network.passes:
        for field in ("w_x", "w_h", "bias", "peepholes"):
            np.testing.assert_array_equal(getattr(p, field), arrays[f"{p.name}.{field}"])


def lstm_node(name: str, given: str, inputs: int) -> tuple[bytes, dict[str, np.ndarray]]:
    constants = {
        f"W{name}": np.full((1, 4 * C, inputs), 0.1, np.float32),
        f"R{name}": np.full((1, 4 * C, C), 0.1, np.float32),
    }
    return files.onnx_node("LSTM", [given, *constants], [name]), constants


@pytest.mark.parametrize(
    ("between", "networks"),
    [
        ([("Squeeze", {})], 1),
        ([("Transpose", {"perm": [0, 2, 1, 3]}), ("Reshape", {})], 1),
        (
            [
                ("Squeeze", {}),
                ("Transpose", {"perm": [1, 0, 2]}),
                ("Transpose", {"perm": [1, 0, 2]}),
            ],
            1,
        ),
        ([("Squeeze", {}), ("Transpose", {"perm": [1, 0, 2]})], 2),
        ([("Squeeze", {}), ("Relu", {})], 2),
        ([("Transpose", {"perm": [3, 2, 1, 0]}), ("Squeeze", {})], 2),
    ],
)
def test_what_joins_nodes_of_onnx(tmp_path: Path, between: Any, networks: int) -> None:
    first, constants = lstm_node("a", "x", D)
    nodes, last = [first], "a"
    for n, (op, attributes) in enumerate(between):
        nodes.append(files.onnx_node(op, [last], [f"t{n}"], **attributes))
        last = f"t{n}"
    second, more = lstm_node("b", last, C)
    (tmp_path / "a.onnx").write_bytes(files.onnx_model([*nodes, second], {**constants, **more}))
    assert len(read_checkpoint(tmp_path / "a.onnx").networks) == networks


def ints(name: str, *values: int) -> bytes:
    """A Constant node of integers."""
    return files.onnx_node("Constant", [], [name], value_ints=list(values))


def test_onnx_weights_made_of_constants(tmp_path: Path) -> None:
    """PyTorch's exporter reorders gates by slices when it does not fold constants."""
    w_x = np.arange(4 * C * D, dtype=np.float32).reshape(4 * C, D)
    constants = {"w": w_x, "R": np.full((1, 4 * C, C), 0.5, np.float32)}
    nodes = [ints("0", 0), ints("3", C), ints("6", 2 * C), ints("9", 3 * C), ints("12", 4 * C)]
    for name, start, end in (("i", "0", "3"), ("fg", "3", "9"), ("o", "9", "12")):
        nodes.append(files.onnx_node("Slice", ["w", start, end, "0"], [name]))
    nodes += [
        files.onnx_node("Concat", ["i", "o", "fg"], ["c"], axis=0),
        files.onnx_node("Unsqueeze", ["c", "0"], ["u"]),
        files.onnx_node("Transpose", ["u"], ["t"], perm=[0, 2, 1]),
        files.onnx_node("Transpose", ["t"], ["v"], perm=[0, 2, 1]),
        files.onnx_node("Cast", ["v"], ["h"], to=10),
        files.onnx_node("Identity", ["h"], ["W"]),
        files.onnx_node("LSTM", ["x", "W", "R"], ["y"]),
    ]
    (tmp_path / "a.onnx").write_bytes(files.onnx_model(nodes, constants))
    layer = only(read_checkpoint(tmp_path / "a.onnx"))
    assert layer.w_x.dtype == np.float16
    np.testing.assert_array_equal(layer.w_x.reshape(4 * C, D), w_x)


def test_onnx_weights_that_are_computed(tmp_path: Path) -> None:
    node, constants = lstm_node("y", "x", D)
    path = tmp_path / "a.onnx"
    for op, names in (("Mul", ["a", "a"]), ("Identity", ["none"]), ("Concat", ["Wy", "Wy"])):
        nodes = [files.onnx_node(op, names, ["Wy"]), node]
        path.write_bytes(files.onnx_model(nodes, {"Ry": constants["Ry"], "a": constants["Wy"]}))
        assert "Wy is no constant" in refused(path)


def test_onnx_constants_that_grow(tmp_path: Path) -> None:
    constants = {"Ry": np.ones((1, 4 * C, C), np.float32)}
    nodes = [files.onnx_node("Concat", ["Ry", "Ry"], ["n0"], axis=0)]
    nodes += [files.onnx_node("Concat", [f"n{n}"] * 2, [f"n{n + 1}"], axis=0) for n in range(38)]
    nodes.append(files.onnx_node("LSTM", ["x", "n38", "Ry"], ["y"]))
    (tmp_path / "a.onnx").write_bytes(files.onnx_model(nodes, constants))
    size, message = peak(tmp_path / "a.onnx")
    assert "far more than the file can hold" in message
    assert size < 10 << 20


@pytest.mark.parametrize("op", ["Unsqueeze", "Squeeze", "Slice", "Transpose", "Reshape", "Cast"])
def test_onnx_operations_that_make_no_sense(tmp_path: Path, op: str) -> None:
    node, constants = lstm_node("y", "x", D)
    nodes = [
        ints("big", 99),
        files.onnx_node(op, ["a", "big", "big", "big"], ["Wy"], perm=[7]),
        node,
    ]
    constants["a"] = constants.pop("Wy")
    (tmp_path / "a.onnx").write_bytes(files.onnx_model(nodes, constants))
    assert "is damaged" in refused(tmp_path / "a.onnx")


def test_onnx_branches(tmp_path: Path) -> None:
    """Nodes in the branches of an If, with weights of the graph around it."""
    nodes, constants = zip(*(lstm_node(name, "x", D) for name in ("a", "b")), strict=True)
    branches = [
        (5, files.proto((1, name), (6, files.proto((1, node))), (20, 5)))
        for name, node in zip(("then_branch", "else_branch"), nodes, strict=True)
    ]
    choice = files.proto((1, "condition"), (2, "y"), (4, "If"), *branches)
    weights = {**constants[0], **constants[1]}
    (tmp_path / "a.onnx").write_bytes(files.onnx_model([choice], weights))
    assert list(read_checkpoint(tmp_path / "a.onnx").networks) == ["node_a", "node_b"]


def test_onnx_graphs_in_graphs(tmp_path: Path) -> None:
    graph = files.proto((1, lstm_node("a", "x", D)[0]))
    for _ in range(40):
        branch = files.proto((1, "body"), (6, graph), (20, 5))
        graph = files.proto((1, files.proto((2, "y"), (4, "Loop"), (5, branch))))
    (tmp_path / "a.onnx").write_bytes(files.proto((7, graph)))
    assert "graphs lie over" in refused(tmp_path / "a.onnx")


def test_onnx_weights_beside_the_model(tmp_path: Path) -> None:
    constants = {"R": np.full((1, 4 * C, C), 0.5, np.float32)}
    w_x = np.arange(4 * C * D, dtype=np.float32)
    (tmp_path / "w.data").write_bytes(b"1234" + w_x.tobytes())

    def model(location: str) -> Path:
        entries = {"location": location, "offset": "4", "length": str(w_x.nbytes)}
        outside = files.proto(
            (1, 1), (1, 4 * C), (1, D), (2, 1), (8, "W"), (14, 1),
            *((13, files.proto((1, k), (2, v))) for k, v in entries.items()),
        )  # fmt: skip
        node = files.onnx_node("LSTM", ["x", "W", "R"], ["y"])
        graph = [(1, node), (5, outside), *((5, files.onnx_tensor(*c)) for c in constants.items())]
        path = tmp_path / "sub" / "a.onnx" if "/" in location else tmp_path / "a.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files.proto((7, files.proto(*graph))))
        return path

    layer = only(read_checkpoint(model("w.data")))
    assert layer.w_x[:, 0, 0].tolist() == [0, 12, 18, 6]
    assert "outside" in refused(model("../w.data"))
    assert "missing.data" in refused(model("missing.data"))


# --- what is not emulated


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"clip": -20.0}, "clips its sums at -20"),
        ({"clip": float("nan")}, "clips its sums at nan"),
        ({"input_forget": 1}, "couples"),
        ({"direction": "sideways"}, "sideways"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "relu"),
    ],
)
def test_onnx_attributes_that_are_not_emulated(tmp_path: Path, attributes: Any, word: str) -> None:
    assert word in refused(files.write_onnx(tmp_path / "a.onnx", **attributes))


def test_a_clip_is_kept(tmp_path: Path) -> None:
    assert only(read_checkpoint(files.write_onnx(tmp_path / "a.onnx", clip=2.5))).clip == 2.5
    assert only(read_checkpoint(files.write_onnx(tmp_path / "b.onnx", clip=0.0))).clip is None


@pytest.mark.parametrize("op", ["GRU", "Gemm"])
def test_onnx_without_lstm(tmp_path: Path, op: str) -> None:
    node = files.onnx_node(op, ["x"], ["y"])
    (tmp_path / "a.onnx").write_bytes(files.onnx_model([node], {}))
    message = refused(tmp_path / "a.onnx")
    assert "holds no LSTM node" in message
    assert ("GRU" in message) == (op == "GRU")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation 'hard_sigmoid'"),
        ({"activation": "relu"}, "activation 'relu'"),
        ({"go_backwards": True}, "backwards"),
        ({"use_bias": False}, "has 3 weights, not 2"),
    ],
)
def test_keras_settings_that_are_not_emulated(tmp_path: Path, changes: Any, word: str) -> None:
    for write in (files.write_h5, files.write_keras):
        path = write(
            tmp_path / f"a.{write.__name__.removeprefix('write_')}", files.keras_lstm(**changes)
        )
        assert word in refused(path)


def test_layers_of_one_name_in_two_models_of_keras(tmp_path: Path) -> None:
    inner = json.loads(files.keras_config(files.keras_lstm()))
    config = files.keras_config(files.keras_lstm(), inner).encode()
    with zipfile.ZipFile(files.write_keras(tmp_path / "a.keras")) as file:
        memory = io.BytesIO(file.read("model.weights.h5"))
    with h5py.File(memory, "r+") as file:
        file.copy("layers/lstm", "layers/sequential/layers/lstm")
    members = {"config.json": config, "model.weights.h5": memory.getvalue()}
    found = read_checkpoint(files.zipped(tmp_path / "b.keras", members))
    assert list(found.networks) == ["lstm", "lstm_2"]


def test_other_layers_of_keras(tmp_path: Path) -> None:
    gru = {"class_name": "GRU", "config": {"name": "mine"}}
    assert "mine (GRU)" in refused(files.write_h5(tmp_path / "a.h5", gru))
    found = read_checkpoint(files.write_h5(tmp_path / "b.h5", files.keras_lstm(), gru))
    assert "mine (GRU)" in " ".join(found.notes)


@pytest.mark.parametrize(("gates", "kind"), [(3, "GRU"), (1, "RNN")])
def test_other_layers_of_pytorch(tmp_path: Path, gates: int, kind: str) -> None:
    arrays = {
        "m.weight_ih_l0": np.zeros((gates * C, D), np.float32),
        "m.weight_hh_l0": np.zeros((gates * C, C), np.float32),
    }
    message = refused(files.write_npz(tmp_path / "a.npz", arrays))
    assert "m (" in message
    assert kind in message
    found = read_checkpoint(
        files.write_npz(tmp_path / "b.npz", {**arrays, **files.torch_lstm("x.")})
    )
    assert list(found.networks) == ["x"]
    assert kind in " ".join(found.notes)


# --- what is wrong


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("weight_ih_l0", (C + 1, 1), "w_x, gate f, index [1, 1] is nan"),
        ("weight_hh_l0", (2 * C, 2), "w_h, gate g, index [0, 2] is nan"),
        ("bias_hh_l0", (4 * C - 1,), f"bias, gate o, index [{C - 1}] is nan"),
    ],
)
def test_nan_is_found(tmp_path: Path, name: str, place: tuple[int, ...], words: str) -> None:
    arrays = files.torch_lstm("net.")
    arrays[f"net.{name}"][place] = np.nan
    message = refused(files.write_pt(tmp_path / "a.pt", arrays))
    assert words in message
    assert "net.l0" in message
    assert "a.pt" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_ih_l0", (4 * C - 1, D)),
        ("weight_hh_l0", (4 * C + 1, C)),
        ("bias_ih_l0", (4 * C - 4,)),
        ("weight_ih_l0", (4 * C,)),
        ("weight_hh_l0", (0, 0)),
    ],
)
def test_gates_of_unequal_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    arrays = {**files.torch_lstm(), name: np.zeros(shape, np.float32)}
    message = refused(files.write_safetensors(tmp_path / "a.safetensors", arrays))
    assert name in message
    assert str(shape) in message


@pytest.mark.parametrize("left", ["weight_ih_l0", "weight_hh_l0"])
def test_a_weight_is_missing(tmp_path: Path, left: str) -> None:
    arrays = {name: a for name, a in files.torch_lstm().items() if name != left}
    assert left.removesuffix("_l0") in refused(files.write_npz(tmp_path / "a.npz", arrays))


def test_a_layer_is_missing(tmp_path: Path) -> None:
    path = files.write_npz(tmp_path / "a.npz", files.torch_lstm(layer=1))
    assert "a pass before it is missing" in refused(path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    arrays = {name: a.astype(np.int64) for name, a in files.torch_lstm().items()}
    assert "int64" in refused(files.write_npz(tmp_path / "a.npz", arrays))
    assert "Long" in refused(files.write_pt(tmp_path / "a.pt", arrays))


def test_no_lstm_unknown_suffix_no_file(tmp_path: Path) -> None:
    path = files.write_npz(tmp_path / "a.npz", {"weights": np.zeros(3, np.float32)})
    assert "hold no LSTM" in refused(path)
    path.rename(tmp_path / "a.xyz")
    assert "'.xyz' is unknown" in refused(tmp_path / "a.xyz")
    assert "hold no LSTM" in refused(tmp_path / "a.xyz", form="npz")
    assert "'tensorflow' is unknown" in refused(tmp_path / "a.xyz", form="tensorflow")
    for suffix in (".pt", ".onnx", ".keras", ".h5", ".safetensors", ".npz"):
        assert "is not there" in refused(tmp_path / f"none{suffix}")
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}")


# --- hostile files


class Shell:
    """Runs a command when a pickle of it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_pickle_is_run(tmp_path: Path, protocol: int, legacy: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.pt"
    pickled = pickle.dumps({"weight_ih_l0": Shell(mark)}, protocol)
    if legacy:
        path.write_bytes(pickled)
    else:
        files.write_pt(path, files.torch_lstm(), pickled)
    message = refused(path)
    assert f"{os.system.__module__}.system, which is not run" in message
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists()


@pytest.mark.parametrize(
    "extra",
    [
        b"cbuiltins\neval\n",
        b"c__builtin__\ngetattr\n",
        b"ctorch.hub\nload\n",
        b"cnumpy\nload\n",
        b"c__torch__.M\nM\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"\x82\x01",
        b"(ios\nsystem\n",
        b"(cos\nsystem\no",
        b"Pname\n",
        b"ctorch\nSize\n)\x81",
        b"ctorch\nfloat32\n)R",
        b"ctorch\nfloat32\n}b",
    ],
)
def test_other_names_and_opcodes_are_refused(tmp_path: Path, extra: bytes) -> None:
    pickled = files.state(files.torch_lstm(), extra=files.text("x") + extra)
    message = refused(files.write_pt(tmp_path / "a.pt", files.torch_lstm(), pickled))
    assert "which is not run" in message


BOMBS = {
    # A memo index that a table would have to reach.
    "memo": b"\x80\x02}r\xff\xff\xff\xff.",
    # Lists of lists, doubled again and again.
    "doubling": b"\x80\x02]q\x00" + b"](h\x00h\x00eq\x00" * 4000 + b".",
    # A key whose hash takes exponential time.
    "hash": b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 400 + b"Ns.",
    # One long list, copied by every call.
    "calls": b"\x80\x02](" + b"(NNt" * 20000 + b"eq\x00("
    + b"ccollections\nOrderedDict\n(h\x00tR" * 20000 + b"l.",
    "deep": b"\x80\x02" + b"(" * 20000 + b"t" * 20000 + b".",
    "long text": b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x00.",
    "long bytes": b"\x80\x02\x8e\x00\x00\x00\x00\x00\xff\x00\x00.",
}  # fmt: skip


def peak(path: Path) -> tuple[int, str]:
    """Most bytes that are held at once until a file is refused, and the refusal."""
    tracemalloc.start()
    try:
        message = refused(path)
        return tracemalloc.get_traced_memory()[1], message
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_of_pickles(tmp_path: Path, bomb: str) -> None:
    begin = time.perf_counter()
    refused(files.write_pt(tmp_path / "a.pt", files.torch_lstm(), BOMBS[bomb]))
    assert time.perf_counter() - begin < 10


def test_a_pickle_of_too_many_opcodes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pickles, "LIMIT", 50_000)
    pickled = b"\x80\x02" + b"]" * (10 << 20) + b"."
    path = files.write_pt(tmp_path / "a.pt", {}, pickled, compression=zipfile.ZIP_DEFLATED)
    size, message = peak(path)
    assert "over 50000 opcodes" in message
    assert size < 3 * len(pickled) + 50_000 * 100


def zip_bomb(path: Path, name: str, start: bytes, size: int, others: dict[str, bytes]) -> Path:
    """An archive with a member of `start` and zeros, compressed to a thousandth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for other, data in others.items():
            file.writestr(other, data)
        with file.open(name, "w") as member:
            member.write(start)
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return path


def test_zip_bombs(tmp_path: Path) -> None:
    size = 80 << 20
    entry = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % (size // 4)
    header = b"\x93NUMPY\x01\x00v\x00" + entry.ljust(117) + b"\n"
    arrays = files.torch_lstm()
    cases = {
        "a.pt": ("archive/data.pkl", b"\x80\x02", {}),
        "b.pt": (
            "archive/data/0",
            b"",
            {"archive/data.pkl": files.state(arrays, length=size // 4)},
        ),
        "a.npz": ("weight_ih_l0.npy", header, {"weight_hh_l0.npy": b""}),
        "a.keras": ("config.json", b"[", {}),
        "b.keras": ("model.weights.h5", b"", {"config.json": files.keras_config().encode()}),
    }
    for name, (inner, start, others) in cases.items():
        path = zip_bomb(tmp_path / name, inner, start, size, others)
        assert path.stat().st_size < size / 100
        taken, message = peak(path)
        assert "bomb" in message, message
        assert taken < size / 4


def test_a_tensor_that_repeats_one_value(tmp_path: Path) -> None:
    """Strides of zero make a tensor of any size from a storage of one value."""
    arrays = files.torch_lstm()
    pickled = files.state(arrays, shape=(4 << 20, 1 << 20), strides=(0, 0))
    message = refused(files.write_pt(tmp_path / "a.pt", arrays, pickled))
    assert "far more than the file can hold" in message


def test_axes_of_length_one_and_zero(tmp_path: Path) -> None:
    arrays = {
        name: a[..., :1] if a.ndim == 2 else a for name, a in files.torch_lstm(cells=1).items()
    }
    matrices = {name: a for name, a in arrays.items() if a.ndim == 2}
    pickled = files.state(matrices, strides=(1, 1 << 61))
    layer = only(read_checkpoint(files.write_pt(tmp_path / "a.pt", matrices, pickled)))
    np.testing.assert_array_equal(layer.w_x.reshape(4, 1), arrays["weight_ih_l0"])
    pickled = files.state(matrices, shape=(0, 1 << 61))
    assert "has shape (0, " in refused(files.write_pt(tmp_path / "b.pt", matrices, pickled))


def test_a_projection_that_would_fill_the_memory(tmp_path: Path) -> None:
    """Folded, it would take 4 million by a million weights."""
    cells = 1_000_000
    arrays = {
        "weight_ih_l0": np.zeros((4 * cells, 1), np.float16),
        "weight_hh_l0": np.zeros((4 * cells, 1), np.float16),
        "weight_hr_l0": np.zeros((1, cells), np.float16),
    }
    size, message = peak(files.write_npz(tmp_path / "a.npz", arrays))
    assert "projects 1000000 cells to 1" in message
    assert size < 200 << 20


def test_a_tensor_that_leaves_its_storage(tmp_path: Path) -> None:
    arrays = files.torch_lstm()
    for odd in ({"offset": 1}, {"strides": (1000, 1)}, {"length": 10**6}, {"length": 10**15}):
        if "strides" in odd:
            arrays = {k: v for k, v in arrays.items() if v.ndim == 2}
        refused(files.write_pt(tmp_path / "a.pt", arrays, files.state(arrays, **odd)))


def test_a_protobuf_of_too_many_fields(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(protobuf, "LIMIT", 20_000)
    (tmp_path / "a.onnx").write_bytes(files.proto((7, b"\x0a\x00" * 500_000)))
    size, message = peak(tmp_path / "a.onnx")
    assert "over 20000 fields" in message
    assert size < (4 << 20) + 20_000 * 500


FORMS = ["pytorch", "legacy", "safetensors", "npz", "onnx", "keras", "h5"]
SPECIAL = [b"\xff" * 4, b"\xff" * 8, bytes(4), b"\x80", b"\x7f\xff\xff\xff", b"(", b".", b"t", b"R"]
#: HDF5 is read in a process of its own, which takes a while to start.
TIMES = dict.fromkeys(FORMS, 60) | {"h5": 2}


@pytest.mark.parametrize("form", FORMS)
def test_files_cut_short(tmp_path: Path, monkeypatch: Any, form: str) -> None:
    if form == "h5":
        monkeypatch.undo()
    path = files.write_all(tmp_path)[form]
    whole = path.read_bytes()
    step = max(1, len(whole) // TIMES[form])
    for size in {*range(0, len(whole), step), len(whole) - 1}:
        path.write_bytes(whole[:size])
        refused(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_damaged_files(monkeypatch: Any, form: str, inside: bool) -> None:
    """Changed, cut out and repeated bytes: a network or a refusal, never anything else.

    Inside: of a member of an archive, which keeps a right checksum.
    """
    if form == "h5":
        monkeypatch.undo()
    with tempfile.TemporaryDirectory() as folder:
        path = files.write_all(Path(folder))[form]
        parts = {"": path.read_bytes()}
        if inside:
            if not zipfile.is_zipfile(path):
                return
            with zipfile.ZipFile(path) as file:
                parts = {n: file.read(n) for n in file.namelist() if not n.endswith(".h5")}
                others = {n: file.read(n) for n in file.namelist() if n.endswith(".h5")}
        change = st.tuples(
            st.sampled_from(sorted(parts)),
            st.floats(0, 1, exclude_max=True),
            st.one_of(st.binary(max_size=4), st.sampled_from(SPECIAL)),
            st.integers(0, 200),
        )

        @settings(max_examples=TIMES[form], deadline=None, database=None)
        @given(st.lists(change, min_size=1, max_size=4))
        def damage(changes: list[tuple[str, float, bytes, int]]) -> None:
            damaged = dict(parts)
            for name, at, new, skip in changes:
                data = damaged[name]
                place = int(at * len(data))
                end = place + (len(new) if skip % 3 else skip % 40)
                damaged[name] = data[:place] + new + data[end:]
            if inside:
                files.zipped(path, {**damaged, **others})
            else:
                path.write_bytes(damaged[""])
            try:
                found = read_checkpoint(path)
            except EpurError as error:
                assert "\n" not in str(error)
            else:
                assert found.networks

        damage()


def test_a_reader_that_hangs_or_dies(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.undo()
    path = files.write_h5(tmp_path / "a.h5")
    assert only(read_checkpoint(path)).cells == C
    monkeypatch.setattr(isolated, "_CHILD", "import os; os.abort()")
    assert "ended its reader with status -6" in refused(path)
    monkeypatch.setattr(isolated, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(isolated, "SECONDS", 0.1)
    assert "is not read in 0 s" in refused(path)


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer reserves terabytes"
)
def test_a_limit_of_memory_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    """The reader's process asks for no more than its parent may have."""
    monkeypatch.undo()
    path = files.write_h5(tmp_path / "a.h5")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from epur_emu.checkpoints.importers import read_checkpoint;"
        "print(len(read_checkpoint(sys.argv[1]).networks))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout == "1\n", done.stderr


def test_a_refusal_comes_from_the_other_process(tmp_path: Path, monkeypatch: Any) -> None:
    path = files.write_keras(tmp_path / "a.keras", files.keras_lstm(activation="relu"))
    message = refused(path)
    monkeypatch.undo()
    assert refused(path) == message


def test_hdf5_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    path = files.write_h5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/lstm/lstm/cell"]
        del group["kernel"]
        group.create_dataset("kernel", (1 << 20, 4 * C), "f4", chunks=(1024, 4 * C))
    size, message = peak(path)
    assert "far more than the file can hold" in message
    assert size < 10 << 20


# --- the command line


def epur(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    status = 0
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def json_of(capsys: Any, *arguments: Any) -> dict[str, Any]:
    status, out, err = epur(capsys, *arguments, "--json")
    assert status == 0, err
    return dict(json.loads(out))


@pytest.mark.parametrize("form", ["pytorch", "legacy", "safetensors", "npz", "onnx", "keras", "h5"])
def test_import_and_run(tmp_path: Path, capsys: Any, form: str) -> None:
    path, folder = files.write_all(tmp_path)[form], tmp_path / "model"
    made = json_of(capsys, "import", path, "-o", folder)
    assert made["from"] == {"legacy": "pytorch", "h5": "keras"}.get(form, form)
    (network,) = made["networks"]
    assert [(p["inputs"], p["cells"]) for p in network["passes"]] == [(D, C)]
    x = np.random.default_rng(0).standard_normal((5, D))
    np.save(tmp_path / "x.npy", x)
    ran = json_of(
        capsys, "run", folder, "--inputs", tmp_path / "x.npy", "--output", tmp_path / "y.npy"
    )
    network = read_folder(folder).networks[network["name"]]
    for name in ("float32", "epur-fp16"):
        wanted = Engine(network, arithmetic(name)).sequence(x)[-1]
        key = "emulated" if name == "epur-fp16" else name
        np.testing.assert_array_equal(np.float32(ran[key]["output"]["values"]), wanted)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)
    assert 0 < ran["layers"][0]["max_abs_error"] < 0.01
    assert ran["cycles"] > 0
    assert ran["energy_pj"]["total"] > 0
    assert ran["accesses"] > 0


def projected(x: np.ndarray, w: files.Arrays) -> np.ndarray:
    """Outputs of an LSTM with a projection, in float64, by definition."""
    w = {name.removesuffix("_l0"): array.astype(np.float64) for name, array in w.items()}
    h, c = np.zeros(len(w["weight_hr"])), np.zeros(C)
    out = []
    for row in x:
        sums = w["weight_ih"] @ row + w["weight_hh"] @ h + w["bias_ih"] + w["bias_hh"]
        i, f, g, o = np.split(sums, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = w["weight_hr"] @ (np.tanh(c) / (1 + np.exp(-o)))
        out.append(h)
    return np.array(out)


def test_run_with_a_projection(tmp_path: Path, capsys: Any) -> None:
    arrays = dict(files.torch_lstm())
    arrays["weight_hh_l0"] = np.ascontiguousarray(arrays["weight_hh_l0"][:, :2])
    arrays["weight_hr_l0"] = np.float32([[1, 2, -1], [0.5, -2, 1]])
    path = files.write_pt(tmp_path / "a.pt", arrays)
    made = json_of(capsys, "import", path, "-o", tmp_path / "m")
    assert "folded" in " ".join(made["notes"])
    x = np.random.default_rng(2).standard_normal((6, D)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    ran = json_of(capsys, "run", tmp_path / "m", "--inputs", tmp_path / "x.npy")
    wanted = projected(x, arrays)
    np.testing.assert_allclose(ran["float32"]["output"]["values"], wanted, rtol=0, atol=3e-6)
    np.testing.assert_allclose(ran["emulated"]["output"]["values"], wanted, rtol=0, atol=3e-2)


@pytest.fixture
def imported(tmp_path: Path, capsys: Any) -> Path:
    arrays = {**files.torch_lstm("a."), **files.torch_lstm("b.", inputs=5)}
    path = files.write_npz(tmp_path / "two.npz", arrays)
    json_of(capsys, "import", path, "-o", tmp_path / "two", "--name", "mine")
    return tmp_path / "two"


def test_run_without_a_task(imported: Path, capsys: Any) -> None:
    assert "a, b; name one" in epur(capsys, "run", imported)[2]
    command = ("run", imported, "--network", "b", "--steps", 7)
    ran = json_of(capsys, *command, "--seed", 3)
    assert ran["model"] == "mine"
    assert ran["emulated"]["output"]["shape"] == [7, C]
    assert json_of(capsys, *command, "--seed", 3, "--threads", 2) == ran
    again = json_of(capsys, *command, "--seed", 4)
    assert again["emulated"] != ran["emulated"]
    status, text, _ = epur(capsys, "run", imported, "--network", "a", "--accelerator", "epur-mwl")
    assert status == 0
    assert "calibrated on these inputs" in text
    for wrong in (
        ["a text", "--network", "a"], ["--network", "c"],
        ["--network", "a", "--inputs", imported / "none.npy"],
        ["--network", "a", "--inputs", imported / "card.toml"],
        ["--network", "a", "--inputs", imported.parent / "two.npz"],
        ["--network", "a", "--inputs", imported / "card.toml", "--steps", 3],
    ):  # fmt: skip
        status, _, error = epur(capsys, "run", imported, *wrong)
        assert (status, error.count("\n")) == (2, 1)


def test_layers_in_integers_are_calibrated_on_the_inputs(imported: Path, capsys: Any) -> None:
    own = imported / "own.toml"
    integers = 'weight = "int8-row", input = "int8", product = "q23.0", tree = "q23.0"'
    rest = f'{integers}, accumulator = "q23.0"'
    own.write_text(f'base = "epur-fp16"\noverrides = [{{layers = "a.*", {rest}}}]')
    ran = json_of(capsys, "run", imported, "--network", "a", "--arithmetic", own)
    assert ran["calibrated"] == "inputs"
    assert 0 < ran["max_abs_error"] < 0.1
    shown = epur(capsys, "run", imported, "--network", "a", "--arithmetic", own)[1]
    assert "Ranges of inputs and partial sums were calibrated on these inputs" in shown
    own.write_text(own.read_text().replace("a.*", "c.*"))
    status, out, error = epur(capsys, "run", imported, "--network", "a", "--arithmetic", own)
    assert (status, out) == (2, "")
    assert "is 'c.*', which fits no layer" in error


def test_saturations_are_shown_where_there_are_any(imported: Path, capsys: Any) -> None:
    arguments = "run", imported, "--network", "a", "--seed", 1, "--arithmetic"
    for name in ("epur-fp16", "epur-q0.12"):
        (layer, *_) = json_of(capsys, *arguments, name)["layers"]
        lines = epur(capsys, *arguments, name)[1].splitlines()
        (row,) = [line.split() for line in lines if line.startswith(f"  {layer['name']}")]
        assert (f"{layer['saturation']:,}" in row[4:]) == (layer["saturation"] > 0)
        assert any("saturations" in line for line in lines) == (name == "epur-q0.12")


def test_outputs_are_not_written_over_inputs(imported: Path, capsys: Any) -> None:
    path = imported / "x.npy"
    np.save(path, np.zeros((2, D), np.float32))
    for option in ("--output", "--trace"):
        status, out, error = epur(
            capsys, "run", imported, "--network", "a", "--inputs", path, option, path
        )
        assert (status, out) == (2, "")
        assert "x.npy is read or written already" in error
    assert np.load(path).shape == (2, D)


def test_more_steps_than_memory_holds(imported: Path, capsys: Any) -> None:
    status, out, error = epur(capsys, "run", imported, "--network", "a", "--steps", 10**12)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "memory: is not enough" in error


def test_inputs_that_do_not_fit(imported: Path, capsys: Any) -> None:
    for array in (np.zeros((3, D + 1)), np.zeros((2, 3, D)), np.zeros((0, D)), np.array(["a"]),
                  np.full((3, D), np.nan), np.full((3, D), 1e300)):  # fmt: skip
        np.save(imported / "x.npy", array)
        status, _, error = epur(
            capsys, "run", imported, "--network", "a", "--inputs", imported / "x.npy"
        )
        assert (status, error.count("\n")) == (2, 1), error


def test_arrays_are_not_for_models_with_a_task(capsys: Any) -> None:
    status, _, error = epur(capsys, "run", "translate-en-de", "--steps", 3)
    assert status == 2
    assert "--steps" in error


def test_calibration(tmp_path: Path, capsys: Any) -> None:
    path = files.write_npz(tmp_path / "a.npz", files.torch_lstm())
    x = np.random.default_rng(1).standard_normal((9, D)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    made = json_of(capsys, "import", path, "-o", tmp_path / "m", "--calibrate", tmp_path / "x.npy")
    assert made["networks"][0]["calibrated"] is True
    model = read_folder(tmp_path / "m")
    w_x = model.networks["lstm"].passes[0].w_x.reshape(4 * C, D)
    assert model.alpha["lstm.0.forward"] == pytest.approx(np.abs(x @ w_x.T).max(), rel=1e-6)
    ran = json_of(capsys, "run", tmp_path / "m", "--accelerator", "epur-mwl")
    assert ran["calibrated"] == "card"


def test_a_hostile_file_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    pickled = pickle.dumps(Shell(tmp_path / "mark"))
    path = files.write_pt(tmp_path / "a.pt", {}, pickled)
    status, out, error = epur(capsys, "import", path, "-o", tmp_path / "m")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("epur: ")
    assert "system, which is not run" in error
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_model_is_not_overwritten(imported: Path, capsys: Any) -> None:
    path = imported.parent / "two.npz"
    assert "is there already" in epur(capsys, "import", path, "-o", imported)[2]


def test_odd_names_are_stored(tmp_path: Path, capsys: Any) -> None:
    arrays = files.torch_lstm('é"\x1b[31m.')
    path = files.write_pt(tmp_path / "a.pt", arrays)
    json_of(capsys, "import", path, "-o", tmp_path / "m")
    card = read_folder(tmp_path / "m").card
    assert card["source"]["passes"] == {"é_31m.0.forward": 'é"?[31m.l0'}


def test_evaluate_says_that_there_is_no_task(imported: Path, capsys: Any) -> None:
    status, _, error = epur(capsys, "evaluate", imported)
    assert status == 2
    assert "task is not there" in error
    assert "epur run MODEL --inputs" in error


def test_surrogates_in_names(tmp_path: Path) -> None:
    text = b"X\x04\x00\x00\x00\xed\xa0\x80." + b"X\x0c\x00\x00\x00weight_ih_l0"
    pickled = b"\x80\x02}" + text[:9] + b"}(" + b"".join(
        files.text(name) + files.tensor(array, str(n))
        for n, (name, array) in enumerate(files.torch_lstm().items())
    ) + b"us."  # fmt: skip
    found = read_checkpoint(files.write_pt(tmp_path / "a.pt", files.torch_lstm(), pickled))
    (network,) = found.networks.values()
    json.dumps(network.origins).encode()
    for origin in network.origins.values():
        origin.encode()


def test_nothing_is_imported_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        read_checkpoint(tmp_path)
