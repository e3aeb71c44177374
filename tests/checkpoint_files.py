"""Writes small checkpoints of every format without any framework."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy

Arrays = Mapping[str, np.ndarray]

CELLS, INPUTS = 3, 2
#: Types of PyTorch's storages, by numpy's names.
STORAGES = {"float16": "Half", "float32": "Float", "float64": "Double", "int64": "Long"}


def torch_lstm(
    prefix: str = "", layer: int = 0, inputs: int = INPUTS, cells: int = CELLS
) -> Arrays:
    """Weights of one layer of nn.LSTM, by name."""
    rng = np.random.default_rng([layer, len(prefix)])
    shapes = {
        "weight_ih": (4 * cells, inputs),
        "weight_hh": (4 * cells, cells),
        "bias_ih": (4 * cells,),
        "bias_hh": (4 * cells,),
    }
    return {
        f"{prefix}{name}_l{layer}": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


# --- PyTorch


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(array: np.ndarray, key: str, legacy: bool = False, **odd: Any) -> bytes:
    """Opcodes that make a tensor; `odd` replaces its shape, strides, length or offset."""
    shape = odd.get("shape", array.shape)
    strides = odd.get("strides", [n // array.itemsize for n in array.strides])
    kind = f"ctorch\n{STORAGES[array.dtype.name]}Storage\n".encode()
    identity = text("storage") + kind + text(key) + text("cpu")
    identity += number(odd.get("length", array.size)) + b"N" * legacy
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + identity + b"tQ" + number(odd.get("offset", 0))
        + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def state(arrays: Arrays, legacy: bool = False, extra: bytes = b"", **odd: Any) -> bytes:
    """Pickle of an ordered dict of tensors, then of `extra` keys and values."""
    items = b"".join(
        text(name) + tensor(array, str(n), legacy, **odd)
        for n, (name, array) in enumerate(arrays.items())
    )
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + extra + b"u."


def zipped(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def write_pt(path: Path, arrays: Arrays, pickled: bytes | None = None, **options: Any) -> Path:
    members = {"archive/data.pkl": pickled or state(arrays)}
    for n, array in enumerate(arrays.values()):
        members[f"archive/data/{n}"] = array.tobytes()
    return zipped(path, members, **options)


def write_legacy(path: Path, arrays: Arrays) -> Path:
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + b"".join(text(str(n)) for n in range(len(arrays))) + b"e."
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays.values())
    path.write_bytes(
        magic + b"\x80\x02M\xe9\x03." + system + state(arrays, legacy=True) + keys + data
    )
    return path


# --- safetensors and npz


def write_safetensors(path: Path, arrays: Arrays) -> Path:
    safetensors.numpy.save_file(dict(arrays), path)
    return path


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


# --- ONNX


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = []
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def proto(*fields: tuple[int, Any]) -> bytes:
    """A message of strings, bytes, integers and floats by field number."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += varint(field << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(field << 3 | 5) + struct.pack("<f", value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(field << 3 | 2) + varint(len(data)) + data
    return out


def onnx_tensor(name: str, array: np.ndarray) -> bytes:
    dims = [(1, n) for n in array.shape]
    return proto(*dims, (2, {"f4": 1, "f2": 10, "f8": 11}[array.dtype.str[1:]]), (8, name),
                 (9, array.tobytes()))  # fmt: skip


def onnx_node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> bytes:
    """A node; attributes are text, integers, floats, or lists of integers or texts."""
    fields = [(1, name) for name in inputs] + [(2, name) for name in outputs]
    fields += [(3, f"node/{outputs[0]}"), (4, op)]
    for name, value in attributes.items():
        values = value if isinstance(value, list) else [value]
        # Where a value of this type stands, alone and in a list, and the number of the type.
        alone, listed, kind = {float: (2, 7, 1), int: (3, 8, 2), str: (4, 9, 3)}[type(values[0])]
        if isinstance(value, list):
            alone, kind = listed, kind + 5
        fields.append((5, proto((1, name), (20, kind), *((alone, v) for v in values))))
    return proto(*fields)


def onnx_model(nodes: Sequence[bytes], constants: Arrays) -> bytes:
    graph = [(1, node) for node in nodes]
    graph += [(5, onnx_tensor(name, array)) for name, array in constants.items()]
    return proto((1, 8), (7, proto(*graph)))


def write_onnx(path: Path, **attributes: Any) -> Path:
    """One LSTM of `INPUTS` and `CELLS`."""
    rng = np.random.default_rng(5)
    shapes = {"W": (1, 4 * CELLS, INPUTS), "R": (1, 4 * CELLS, CELLS), "B": (1, 8 * CELLS)}
    constants = {k: rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    node = onnx_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=CELLS, **attributes)
    path.write_bytes(onnx_model([node], constants))
    return path


# --- Keras


def keras_lstm(name: str = "lstm", **changes: Any) -> dict[str, Any]:
    config = {
        "name": name, "units": CELLS, "activation": "tanh", "recurrent_activation": "sigmoid",
        "use_bias": True, "return_sequences": True, "go_backwards": False, **changes,
    }  # fmt: skip
    return {"class_name": "LSTM", "config": config}


def keras_weights(inputs: int = INPUTS) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = [(inputs, 4 * CELLS), (CELLS, 4 * CELLS), (4 * CELLS,)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def keras_config(*layers: dict[str, Any]) -> str:
    return json.dumps({"class_name": "Sequential", "config": {"layers": list(layers)}})


def write_h5(path: Path, *layers: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = keras_config(*(layers or [keras_lstm()]))
        group = file.create_group("model_weights/lstm")
        names = ["kernel", "recurrent_kernel", "bias"]
        group.attrs["weight_names"] = [f"lstm/cell/{name}" for name in names]
        for name, array in zip(names, keras_weights(), strict=True):
            group[f"lstm/cell/{name}"] = array
    return path


def write_keras(path: Path, *layers: dict[str, Any]) -> Path:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for n, array in enumerate(keras_weights()):
            file[f"layers/lstm/cell/vars/{n}"] = array
    config = keras_config(*(layers or [keras_lstm()])).encode()
    return zipped(path, {"config.json": config, "model.weights.h5": memory.getvalue()})


def write_all(folder: Path) -> dict[str, Path]:
    """One small valid file of each format, by the importer's name; legacy PyTorch besides."""
    arrays = torch_lstm()
    return {
        "pytorch": write_pt(folder / "a.pt", arrays),
        "legacy": write_legacy(folder / "b.pt", arrays),
        "safetensors": write_safetensors(folder / "a.safetensors", arrays),
        "npz": write_npz(folder / "a.npz", arrays),
        "onnx": write_onnx(folder / "a.onnx"),
        "keras": write_keras(folder / "a.keras"),
        "h5": write_h5(folder / "a.h5"),
    }
