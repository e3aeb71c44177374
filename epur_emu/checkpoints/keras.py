"""Keras models (``.keras``, HDF5): LSTM and Bidirectional layers, read without Keras."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from epur_emu.checkpoints.archives import archive, member
from epur_emu.checkpoints.assembly import Choice, FileNetwork, FilePass, Found, gates, zero_bias
from epur_emu.checkpoints.tensors import Budget, Tensor, opened
from epur_emu.errors import ModelError

#: Where i, f, g and o stand among Keras' gates i, f, c, o.
_ORDER = (0, 1, 2, 3)
#: Longest configuration that is looked at, in bytes.
_CONFIG_LIMIT = 1 << 24
#: Layers that pass a sequence on as it is when nothing is trained.
_PASSING = {
    "Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization",
}  # fmt: skip
#: Recurrent layers that are recognised and not emulated.
_OTHERS = {
    "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
    "GRUV1", "PeepholeLSTMCell", "ESN",
}  # fmt: skip
_LSTM = {"LSTM", "LSTMV1"}
_NESTED = {"Functional", "Model", "Sequential"}
#: What h5py raises on a damaged file.
_DAMAGES = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)

#: Gives the weights of a layer, those of its forward part first.
Weights = Callable[["Layer"], list[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Layer:
    """One entry of a model's configuration.

    Parameters
    ----------
    name, kind : str
    config : dict
    inputs : tuple of str
        Names of the layers that it reads.
    group : str
        Where ``.keras`` files have its weights.
    nested : bool
        Whether it stands in a model inside the model.
    """

    name: str
    kind: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    group: str
    nested: bool

    @property
    def scope(self) -> str:
        """Place of the model that it stands in; names are unique there."""
        return self.group.rpartition("layers/")[0]


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of a Keras model.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged, or holds no LSTM that can be emulated.
    """
    with opened(path) as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        with archive(path) as opened_zip:
            budget = Budget(path)
            text = member(path, opened_zip, "config.json", _CONFIG_LIMIT)
            limit = path.stat().st_size * 4 + (1 << 20)
            weights = io.BytesIO(member(path, opened_zip, "model.weights.h5", limit))
            with _hdf5(path, weights) as file:
                return _networks(path, _json(path, text), partial(_by_group, file), budget, choice)
    with _hdf5(path, path) as file:
        budget = Budget(path)
        if "model_config" not in file.attrs:
            raise ModelError(
                path, "model_config", "is missing: the file holds weights alone",
                "save the whole model: model.save('FILE.keras')",
            )  # fmt: skip
        config = _json(path, file.attrs["model_config"])
        return _networks(path, config, partial(_by_names, file, path), budget, choice)


@contextmanager
def _hdf5(path: Path, source: Path | io.BytesIO) -> Iterator[h5py.File]:
    """An HDF5 file; whatever h5py raises on a damaged one becomes a ModelError."""
    try:
        with h5py.File(source, "r") as file:
            yield file
    except _DAMAGES as error:
        raise ModelError(
            path, "HDF5", f"is damaged ({type(error).__name__}: {error})"[:200], "restore the file"
        ) from error


def _json(path: Path, text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            path, "configuration", f"is no JSON ({error})", "restore the file"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(path, "configuration", "is no table", "restore the file")
    return value


def _networks(
    path: Path, config: dict[str, Any], weights: Weights, budget: Budget, choice: Choice
) -> Found:
    """Chains of LSTM layers; what stands between must pass sequences on."""
    layers = list(_layers(config, "", False))
    others = [f"{layer.name} ({_inner(layer)})" for layer in layers if _inner(layer) in _OTHERS]
    known = {(layer.scope, layer.name): layer for layer in layers}
    chains: dict[str, list[Layer]] = {}
    for layer in layers:
        if _inner(layer) not in _LSTM:
            continue
        before = _before(layer, known)
        joined = before is not None and _config(before).get("return_sequences")
        chain = chains.pop(before.group, []) if before is not None and joined else []
        chains[layer.group] = [*chain, layer]
    if not chains:
        what = f"but {', '.join(others[:3])}" if others else "none of the layers is one"
        raise ModelError(path, "layers", f"hold no LSTM, {what}", "give a model with LSTM layers")
    networks = []
    for chain in chains.values():
        if not choice.takes(chain[0].name):
            continue
        passes = tuple(_passes(path, layer, weights, budget) for layer in chain)
        notes = []
        if not _config(chain[-1]).get("return_sequences"):
            notes.append(f"{chain[-1].name} gives its last output only; here all are given")
        networks.append(FileNetwork(chain[0].name, passes, tuple(notes)))
    notes_of_file = [f"left out, not emulated: {', '.join(others)}"] if others else []
    if any(layer.kind == "Masking" for layer in layers):
        notes_of_file.append("Masking is left out: no time step is skipped")
    return Found(networks, tuple(notes_of_file))


def _layers(model: dict[str, Any], group: str, nested: bool) -> Iterator[Layer]:
    """Layers of a model and of the models in it, in order; weights are numbered by class."""
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, dict) else config
    seen: dict[str, int] = {}
    sequential, last = model.get("class_name") == "Sequential", ""
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict | list):
            raise ValueError("a layer has no configuration")
        kind = str(entry.get("class_name"))
        inner = entry["config"] if isinstance(entry["config"], dict) else {}
        name = str(inner.get("name") or entry.get("name") or kind)
        stem = _snake(kind)
        seen[stem] = seen.get(stem, -1) + 1
        place = f"{group}layers/{stem}" + (f"_{seen[stem]}" if seen[stem] else "")
        before = ([last] if last else []) if sequential else _sources(entry.get("inbound_nodes"))
        last = name
        yield Layer(name, kind, inner, tuple(before), place, nested)
        if kind in _NESTED:
            yield from _layers(entry, f"{place}/", True)


def _sources(value: Any) -> Iterator[str]:
    """Names of layers in inbound nodes, of Keras 3 (``keras_history``) or 2 (``[name, 0, 0]``)."""
    if isinstance(value, dict):
        history = value.get("keras_history")
        if isinstance(history, list) and history:
            yield str(history[0])
        else:
            for child in value.values():
                yield from _sources(child)
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            yield value[0]
        else:
            for child in value:
                yield from _sources(child)


def _snake(name: str) -> str:
    """A class's name as Keras numbers its weights: ``LayerNormalization``, ``layer_normalization``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _before(layer: Layer, known: dict[tuple[str, str], Layer]) -> Layer | None:
    """The LSTM layer whose outputs a layer reads as they are."""
    entered = set()
    while len(layer.inputs) == 1 and layer.name not in entered:
        entered.add(layer.name)
        source = known.get((layer.scope, layer.inputs[0]))
        if source is None or _inner(source) in _LSTM:
            return source
        if source.kind not in _PASSING:
            return None
        layer = source
    return None


def _inner(layer: Layer) -> str:
    """Class of a layer, or of the one in a Bidirectional."""
    if layer.kind != "Bidirectional":
        return layer.kind
    inner = layer.config.get("layer")
    return str(inner.get("class_name")) if isinstance(inner, dict) else ""


def _config(layer: Layer) -> dict[str, Any]:
    """Configuration of an LSTM, that of the forward part in a Bidirectional."""
    if layer.kind != "Bidirectional":
        return layer.config
    inner = layer.config["layer"].get("config")
    return inner if isinstance(inner, dict) else {}


def _passes(path: Path, layer: Layer, weights: Weights, budget: Budget) -> tuple[FilePass, ...]:
    """The passes of a layer.

    Raises
    ------
    ModelError
        It asks for what the accelerator does not do, or its weights do not fit.
    """
    configs = [_config(layer)]
    if layer.kind == "Bidirectional":
        if layer.config.get("merge_mode") != "concat":
            raise ModelError(
                path, layer.name, f"has merge_mode {layer.config.get('merge_mode')!r}",
                "passes are joined by concat",
            )  # fmt: skip
        other = layer.config.get("backward_layer")
        configs.append(other["config"] if isinstance(other, dict) else configs[0])
    for config in configs:
        for field, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
            if config.get(field) != wanted:
                raise ModelError(
                    path, layer.name, f"has {field} {config.get(field)!r}"[:120],
                    f"E-PUR's unit computes {wanted}",
                )  # fmt: skip
    if configs[0].get("go_backwards"):
        raise ModelError(
            path, layer.name, "goes backwards and gives its outputs in that order",
            "wrap it in Bidirectional, or reverse the input",
        )  # fmt: skip
    tensors = weights(layer)
    each = 3 if configs[0].get("use_bias", True) else 2
    if len(tensors) != each * len(configs):
        raise ModelError(
            path, layer.name, f"has {len(tensors)} weights, not {each * len(configs)}",
            "restore the file",
        )  # fmt: skip
    return tuple(
        _pass(path, layer.name, tensors[n * each : (n + 1) * each], n == 1, budget)
        for n in range(len(configs))
    )


def _pass(
    path: Path, layer: str, tensors: Sequence[tuple[str, Tensor]], reverse: bool, budget: Budget
) -> FilePass:
    """A pass of kernel, recurrent kernel and bias; columns hold the gates."""
    arrays = [tensor.load(name, budget) for name, tensor in tensors]
    w_x, w_h = arrays[:2]
    if w_x.ndim != 2 or w_h.ndim != 2 or 0 in w_x.shape or 0 in w_h.shape:
        raise ModelError(
            path, layer, f"has weights of shape {w_x.shape} and {w_h.shape}", "give matrices"
        )
    split = [
        gates(path, name, array.T, len(w_h), _ORDER)
        for (name, _), array in zip(tensors, arrays, strict=True)
    ]
    bias = split[2] if len(split) > 2 else zero_bias(split[0])
    return FilePass(layer, split[0], split[1], bias, reverse=reverse)


def _by_group(file: h5py.File, layer: Layer) -> list[tuple[str, Tensor]]:
    """Weights of a layer in a ``.keras`` file."""
    parts = [""] if layer.kind != "Bidirectional" else ["forward_layer/", "backward_layer/"]
    out = []
    for part in parts:
        group = file[f"{layer.group}/{part}cell/vars"]
        out += [_dataset(layer, group[str(n)]) for n in range(len(group))]
    return out


def _by_names(file: h5py.File, path: Path, layer: Layer) -> list[tuple[str, Tensor]]:
    """Weights of a layer in an HDF5 model."""
    if layer.nested:
        raise ModelError(
            path, layer.name, "stands in a model inside the model", "save it as a .keras file"
        )
    group = file["model_weights"][layer.name]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
    return [_dataset(layer, group[name]) for name in names]


def _dataset(layer: Layer, dataset: Any) -> tuple[str, Tensor]:
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{layer.name} has no weights")
    dtype = np.dtype(dataset.dtype).name
    tensor = Tensor(tuple(map(int, dataset.shape)), dtype, lambda: np.asarray(dataset[()]))
    return f"{layer.name}: {str(dataset.name).rpartition('/')[2]}", tensor
