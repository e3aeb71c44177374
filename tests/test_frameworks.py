"""Imported networks compute what their frameworks compute: PyTorch, onnxruntime, Keras."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint_files as files
import numpy as np
import pytest

from epur_emu import Engine, arithmetic
from epur_emu.checkpoints.importers import read_checkpoint
from epur_emu.errors import EpurError

STEPS = 11
TOLERANCE = 3e-6

# Frameworks warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("ignore")


def inputs(width: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((STEPS, width)).astype(np.float32)


def outputs(path: Path, x: np.ndarray, *prefixes: str) -> np.ndarray:
    """What the imported network gives in float32, the host's projection included."""
    (found,) = read_checkpoint(path, prefixes=prefixes).networks.values()
    y = Engine(found.network, arithmetic("float32")).sequence(x)[-1]
    return y if found.projection is None else y @ found.projection.T


def close(ours: np.ndarray, theirs: Any, tolerance: float = TOLERANCE) -> None:
    theirs = np.asarray(theirs)
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


# --- PyTorch


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(4)
    with torch.no_grad():
        yield torch


def scaled(module: Any) -> Any:
    """The module with larger weights, so that its gates are exercised."""
    for parameter in module.parameters():
        parameter.mul_(2)
    return module.eval()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"bias": False},
        {"bidirectional": True, "num_layers": 2},
        {"proj_size": 3},
        {"proj_size": 3, "num_layers": 3, "bidirectional": True},
    ],
    ids=str,
)
def test_torch_lstm(torch: Any, tmp_path: Path, options: Any, zipped: bool) -> None:
    lstm = scaled(torch.nn.LSTM(5, 7, **options))
    torch.save(lstm.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    x = inputs(5)
    close(outputs(tmp_path / "a.pt", x), lstm(torch.from_numpy(x))[0])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_torch_types(torch: Any, tmp_path: Path, dtype: str, zipped: bool) -> None:
    lstm = scaled(torch.nn.LSTM(5, 7)).to(getattr(torch, dtype))
    torch.save(lstm.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    x = inputs(5)
    close(outputs(tmp_path / "a.pt", x), lstm.double()(torch.from_numpy(x).double())[0])


def test_torch_cells(torch: Any, tmp_path: Path) -> None:
    cells = torch.nn.ModuleList([torch.nn.LSTMCell(5, 7), torch.nn.LSTMCell(7, 4)])
    scaled(cells)
    torch.save({"model": {"cells": cells.state_dict()}, "epoch": 3}, tmp_path / "a.pt")
    x = inputs(5)
    first, second = (tuple(torch.zeros(2, 1, n)) for n in (7, 4))
    wanted = []
    for row in torch.from_numpy(x)[:, None]:
        first = cells[0](row, first)
        second = cells[1](first[0], second)
        wanted.append(second[0][0])
    close(outputs(tmp_path / "a.pt", x), torch.stack(wanted))


def whole_model(torch: Any) -> Any:
    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(3, 5)
            self.encoder = torch.nn.LSTM(5, 7, 2, bidirectional=True)
            self.gru = torch.nn.GRU(5, 7)
            self.register_buffer("steps", torch.tensor(4))

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.encoder(x)[0]

    return scaled(Model())


@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript(torch: Any, tmp_path: Path, way: str) -> None:
    model, x = whole_model(torch), inputs(5)
    given = torch.from_numpy(x)[:, None]
    made = torch.jit.script(model) if way == "script" else torch.jit.trace(model, given)
    made.save(tmp_path / "a.pt")
    close(outputs(tmp_path / "a.pt", x), model(given)[:, 0])


def test_checkpoint_with_optimizer(torch: Any, tmp_path: Path) -> None:
    model, x = whole_model(torch), inputs(5)
    optimizer = torch.optim.Adam(model.parameters())
    with torch.enable_grad():
        model(torch.from_numpy(x)[:, None]).sum().backward()
    optimizer.step()
    content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save({**content, "loss": 0.5, "names": ["a"], "best": None}, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert list(found.networks) == ["state_dict_encoder"]
    assert "state_dict.gru (GRU)" in " ".join(found.notes)
    close(outputs(tmp_path / "a.ckpt", x, "state_dict.encoder"), model(torch.from_numpy(x)))


def test_parameters_and_shared_weights(torch: Any, tmp_path: Path) -> None:
    lstm, x = scaled(torch.nn.LSTM(5, 5)), inputs(5)
    tied = {f"{name}.{k}": v for name in ("a", "b") for k, v in lstm.named_parameters()}
    torch.save(tied, tmp_path / "a.pt")
    for prefix in ("a", "b"):
        close(outputs(tmp_path / "a.pt", x, prefix), lstm(torch.from_numpy(x))[0])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_flattened_for_a_gpu(torch: Any, tmp_path: Path, zipped: bool) -> None:
    """All lie in one storage, which the file has once."""
    lstm, x = scaled(torch.nn.LSTM(5, 64, 5, bidirectional=True)), inputs(5)
    flat = torch.cat([p.reshape(-1) for p in lstm.parameters()])
    state, start = {}, 0
    for name, parameter in lstm.named_parameters():
        state[name] = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert (tmp_path / "a.pt").stat().st_size < 4.2 * len(flat)
    close(outputs(tmp_path / "a.pt", x), lstm(torch.from_numpy(x))[0])


def test_pickled_module_is_refused_by_name(torch: Any, tmp_path: Path) -> None:
    torch.save(torch.nn.LSTM(2, 2), tmp_path / "a.pt")
    with pytest.raises(EpurError, match=r"torch\.nn\.modules\.rnn\.LSTM, which is not run"):
        read_checkpoint(tmp_path / "a.pt")


def test_safetensors_of_torch(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    lstm, x = scaled(torch.nn.LSTM(5, 7)).bfloat16(), inputs(5)
    save_file(lstm.state_dict(), tmp_path / "a.safetensors")
    close(outputs(tmp_path / "a.safetensors", x), lstm.double()(torch.from_numpy(x).double())[0])


# --- ONNX


def onnx_run(path: Path, **given: np.ndarray) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dims = [(1, files.proto((1, n))) for n in shape]
    tensor = files.proto((1, 1), (2, files.proto(*dims)))
    return files.proto((1, name), (2, files.proto((1, tensor))))


def onnx_file(
    path: Path, nodes: list[bytes], constants: files.Arrays, given: tuple[int, ...]
) -> None:
    """A whole model, valid to onnxruntime; its first tensor is ``x``, its last ``y``."""
    graph = [(1, node) for node in nodes]
    graph += [(5, files.onnx_tensor(*item)) for item in constants.items()]
    output = files.proto(
        (1, "y"), (2, files.proto((1, files.proto((1, 1))))),
    )  # fmt: skip
    graph += [(2, "g"), (11, value_info("x", given)), (12, output)]
    opset = files.proto((1, ""), (2, 14))
    path.write_bytes(files.proto((1, 8), (7, files.proto(*graph)), (8, opset)))


def onnx_weights(name: str, directions: int, width: int, cells: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(cells)
    shapes = {
        "W": (directions, 4 * cells, width), "R": (directions, 4 * cells, cells),
        "B": (directions, 8 * cells), "P": (directions, 3 * cells),
    }  # fmt: skip
    return {k + name: rng.standard_normal(v).astype(np.float32) / 2 for k, v in shapes.items()}


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_onnx(tmp_path: Path, direction: str, peepholes: bool) -> None:
    weights = onnx_weights("", 2 if direction == "bidirectional" else 1, 5, 7)
    names = ["x", "W", "R", "B", "", "", "", "P"] if peepholes else ["x", "W", "R", "B"]
    node = files.onnx_node("LSTM", names, ["y"], hidden_size=7, direction=direction)
    onnx_file(tmp_path / "a.onnx", [node], weights, (STEPS, 1, 5))
    x = inputs(5)
    y = onnx_run(tmp_path / "a.onnx", x=x[:, None])  # (T, directions, 1, H)
    close(outputs(tmp_path / "a.onnx", x), y[:, :, 0].reshape(STEPS, -1))


def test_onnx_clip(tmp_path: Path) -> None:
    """Inputs' weights large enough to reach the clip."""
    weights = onnx_weights("", 1, 5, 7)
    weights["W"] *= 12
    weights["P"] = np.linspace(-9, 9, 21, dtype=np.float32)[None]
    inputs_of = ["x", "W", "R", "B", "", "", "", "P"]
    node = files.onnx_node("LSTM", inputs_of, ["y"], hidden_size=7, clip=0.75)
    onnx_file(tmp_path / "a.onnx", [node], weights, (STEPS, 1, 5))
    x = inputs(5)
    close(outputs(tmp_path / "a.onnx", x), onnx_run(tmp_path / "a.onnx", x=x[:, None])[:, 0, 0])


def test_onnx_stack(tmp_path: Path) -> None:
    constants = {
        **onnx_weights("1", 2, 5, 7), **onnx_weights("2", 1, 14, 4),
        "h": np.zeros((1, 1, 4), np.float32),
    }  # fmt: skip
    shape = files.proto((1, 3), (2, 7), (8, "s"), (9, np.int64([0, 0, -1]).tobytes()))
    nodes = [
        files.onnx_node(
            "LSTM", ["x", "W1", "R1", "B1"], ["a"], hidden_size=7, direction="bidirectional"
        ),
        files.onnx_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        files.proto((2, "s"), (4, "Constant"), (5, files.proto((1, "value"), (5, shape), (20, 4)))),
        files.onnx_node("Reshape", ["b", "s"], ["c"]),
        files.onnx_node("Identity", ["W2"], ["w"]),
        files.onnx_node("LSTM", ["c", "w", "R2", "", "", "h", "h"], ["y"], hidden_size=4),
    ]
    onnx_file(tmp_path / "a.onnx", nodes, constants, (STEPS, 1, 5))
    x = inputs(5)
    close(outputs(tmp_path / "a.onnx", x), onnx_run(tmp_path / "a.onnx", x=x[:, None])[:, 0, 0])


@pytest.mark.parametrize(
    ("batch_first", "options"),
    [
        (False, {"dynamo": True}),
        (True, {"dynamo": True}),
        (False, {"dynamo": False}),
        (True, {"dynamo": False}),
        (False, {"dynamo": False, "do_constant_folding": False}),
    ],
    ids=str,
)
def test_onnx_of_torch(torch: Any, tmp_path: Path, batch_first: bool, options: Any) -> None:
    pytest.importorskip("onnx")
    if options["dynamo"]:
        pytest.importorskip("onnxscript")

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(5, 7, 2, bidirectional=True, batch_first=batch_first)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.lstm(x)[0]

    model, x = scaled(Model()), inputs(5)
    given = torch.from_numpy(x[None] if batch_first else x[:, None])
    torch.onnx.export(model, (given,), tmp_path / "a.onnx", **options)
    close(outputs(tmp_path / "a.onnx", x), model(given).reshape(STEPS, -1))


# --- Keras


@pytest.fixture(scope="module")
def keras() -> Any:
    if "KERAS_BACKEND" not in os.environ:
        pytest.importorskip("torch")
        os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("functional", [False, True])
def test_keras(keras: Any, tmp_path: Path, functional: bool, suffix: str) -> None:
    keras.utils.set_random_seed(5)
    options = {"return_sequences": True, "bias_initializer": "random_normal"}
    layers = [
        keras.layers.LSTM(7, name="first one", **options),
        keras.layers.Dropout(0.5),
        keras.layers.Bidirectional(keras.layers.LSTM(4, **options)),
        keras.layers.LSTM(3, use_bias=False, return_sequences=True),
    ]
    given = keras.Input((None, 5))
    if functional:
        y = given
        for layer in layers:
            y = layer(y)
        model = keras.Model(given, y)
    else:
        model = keras.Sequential([given, *layers])
    for layer in (layers[0], layers[2], layers[3]):
        layer.set_weights([2 * w for w in layer.get_weights()])
    model.save(tmp_path / f"a.{suffix}")
    x = inputs(5)
    wanted = keras.ops.convert_to_numpy(model(x[None], training=False))[0]
    close(outputs(tmp_path / f"a.{suffix}", x), wanted)


def test_keras_with_other_layers_between_and_models_inside(keras: Any, tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((None, 5)), keras.layers.LSTM(5, return_sequences=True)])
    given = keras.Input((None, 5))
    y = keras.layers.LSTM(5, return_sequences=True, name="before")(given)
    y = keras.layers.LayerNormalization()(inner(y))
    model = keras.Model(given, keras.layers.LSTM(4, name="after")(y))
    model.save(tmp_path / "a.keras")
    found = read_checkpoint(tmp_path / "a.keras")
    assert {name: len(v.network.layers) for name, v in found.networks.items()} == {
        "before": 1, inner.layers[-1].name: 1, "after": 1,
    }  # fmt: skip
    x = inputs(5)
    wanted = inner(x[None])
    close(
        outputs(tmp_path / "a.keras", x, inner.layers[-1].name),
        keras.ops.convert_to_numpy(wanted)[0],
    )
    assert any("last output only" in note for note in found.notes)
