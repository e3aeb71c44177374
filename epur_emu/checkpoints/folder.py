"""A model folder: ``card.toml``, ``weights.safetensors`` and the files of its task.

Tensors are called ``{network}.{layer}.{pass}.{w_x, w_h, bias or peepholes}``, e.g.
``encoder.0.backward.w_x`` of shape (4, H, I) with the gates in the order i, f, g, o; arrays that
the host uses around the LSTM are called ``host.{name}``. The card's table ``networks`` tells which
layers and passes there are. A card that names a ``package`` takes its weights from there, and no
``weights.safetensors`` is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from epur_emu.checkpoints import silero
from epur_emu.errors import ModelError, NetworkError
from epur_emu.network import LstmLayer, Network

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CARD = "card.toml"
WEIGHTS = "weights.safetensors"
F32 = npt.NDArray[np.float32]

#: Readers of the weights that installed packages carry, by the package that a card names.
PACKAGES = {silero.PACKAGE: silero.read_tensors}

_DIRECTIONS = ("forward", "backward")
_FIELDS = ("w_x", "w_h", "bias", "peepholes")


@dataclass(frozen=True, eq=False)
class Model:
    """A network, or several, with all that its task needs.

    Parameters
    ----------
    name : str
    path : Path
        The folder.
    card : dict
        The contents of ``card.toml``.
    networks : dict of str to Network
        Evaluated by the accelerator.
    host : dict of str to float32 array
        Weights of what surrounds the LSTM: embeddings, attention and so on.
    alpha : dict of str to float
        Calibrated magnitudes, as `emulator.calibrate` gives them: by a pass's name, and by its name
        followed by ``.input`` and ``.hidden``.
    """

    name: str
    path: Path
    card: dict[str, Any]
    networks: dict[str, Network]
    host: dict[str, F32]
    alpha: dict[str, float]


def read_folder(path: str | os.PathLike[str]) -> Model:
    """Read a model folder.

    Raises
    ------
    ModelError
        A file is missing or damaged, or card and tensors disagree; file and place are named.
    NetworkError
        A tensor of a network has a wrong shape or type, or holds a value that is not finite.
    """
    folder = Path(path)
    card = read_card(folder)
    if "package" in card:
        source = folder / CARD
        tensors = PACKAGES[card["package"]]()
    else:
        source = folder / WEIGHTS
        tensors = _read_tensors(source)
    networks = {}
    for name, table in card["networks"].items():
        layers = []
        clip = dict(table.get("clip", {}))
        for n, directions in enumerate(table["directions"]):
            passes = (
                _take_layer(source, tensors, f"{name}.{n}.{d}", clip.pop(f"{n}.{d}", None))
                for d in directions
            )
            layers.append(tuple(passes))
        try:
            networks[name] = Network(name, tuple(layers), table.get("host_between", False))
        except NetworkError as error:
            raise _in_file(source, error) from error
    host = {}
    for name in [name for name in tensors if name.startswith("host.")]:
        array = tensors.pop(name)
        if array.dtype not in (np.float16, np.float32) or not np.isfinite(array).all():
            raise ModelError(
                source, name, f"of dtype {array.dtype} is not all finite floats", "restore the file"
            )
        host[name.removeprefix("host.")] = array.astype(np.float32)
    if tensors:
        raise ModelError(
            source, ", ".join(sorted(tensors)[:3]), "is in no network of the card",
            f"name its network and pass in {CARD}, or drop it",
        )  # fmt: skip
    alpha = card.get("calibration", {}).get("alpha", {})
    known = {layer.name for network in networks.values() for layer in network.passes}
    for name in alpha:
        if name.removesuffix(".input").removesuffix(".hidden") not in known:
            raise ModelError(
                folder / CARD, f"calibration.alpha.{name}", "is no pass of a network",
                f"use {', '.join(sorted(known))}",
            )  # fmt: skip
    return Model(
        card["name"], folder, card, networks, host, {k: float(v) for k, v in alpha.items()}
    )


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a model folder's card, its structure checked.

    Raises
    ------
    ModelError
        The card is missing or damaged, or lacks a name, a task or the networks' passes.
    """
    source = Path(path) / CARD
    try:
        card = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            source, "file", f"can't be read ({error.strerror})", "give a model's folder"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelError(source, "TOML", f"is damaged ({error})", "restore the file") from error
    for field in ("name", "task"):
        if not isinstance(card.get(field), str):
            raise ModelError(source, field, f"is {card.get(field)!r}", "give a string")
    package = card.get("package")
    if package is not None and (not isinstance(package, str) or package not in PACKAGES):
        raise ModelError(source, "package", f"is {package!r}", f"use one of {', '.join(PACKAGES)}")
    networks = card.get("networks")
    if not isinstance(networks, dict) or not networks:
        raise ModelError(source, "networks", "is no table", "give one table for each network")
    for name, table in networks.items():
        if name == "host" or not re.fullmatch(r"\w+", name):
            raise ModelError(
                source, f"networks.{name}", "is no name", "use letters, and not 'host'"
            )
        _check_network(source, f"networks.{name}", table)
    calibration = card.get("calibration", {})
    alpha = calibration.get("alpha", {}) if isinstance(calibration, dict) else None
    if not isinstance(alpha, dict):
        raise ModelError(source, "calibration.alpha", "is no table", "give a number for each pass")
    for name, value in alpha.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise ModelError(
                source, f"calibration.alpha.{name}", f"is {value!r}", "give a positive number"
            )
    return card


def write_folder(
    path: str | os.PathLike[str],
    card: Mapping[str, Any],
    networks: Mapping[str, Network],
    host: Mapping[str, npt.NDArray[np.floating]],
    alpha: Mapping[str, float],
) -> None:
    """Write card and weights; `read_folder` gives them back. Files of the task are the task's.

    Parameters
    ----------
    path : path
        Made if it does not exist.
    card : dict
        Strings, numbers, lists and tables. ``networks``, ``calibration.alpha`` and ``parameters``
        are set here, from the other arguments.
    networks : dict of str to Network
        Weights are stored in the type that they have.
    host : dict of str to float16 or float32 array
        Stored in the type that they have.
    alpha : dict of str to float

    Raises
    ------
    ModelError, NetworkError
        A weight is not finite, a layer is not called by its place (``encoder.0.forward``), or the
        folder can't be written.
    """
    folder = Path(path)
    tensors: dict[str, npt.NDArray[Any]] = {f"host.{name}": array for name, array in host.items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise ModelError(
                folder, name, "holds a value that is not finite", "give finite weights"
            )
    tables = {}
    for name, network in networks.items():
        directions = []
        clip = {p.name.removeprefix(f"{name}."): p.clip for p in network.passes if p.clip}
        for n, passes in enumerate(network.layers):
            directions.append(["backward" if layer.reverse else "forward" for layer in passes])
            for layer, direction in zip(passes, directions[n], strict=True):
                if layer.name != f"{name}.{n}.{direction}":
                    raise NetworkError(
                        layer.name, "name", "is not the pass's place in its network",
                        f"call it {name}.{n}.{direction}",
                    )  # fmt: skip
                layer.check_finite()
                for field in _FIELDS:
                    array = getattr(layer, field)
                    if array is not None:
                        tensors[f"{layer.name}.{field}"] = array
        tables[name] = {"host_between": network.host_between, "directions": directions}
        if clip:
            tables[name]["clip"] = clip
    parameters = {
        "lstm": sum(network.parameters for network in networks.values()),
        "host": sum(array.size for array in host.values()),
    }
    calibration = {**card.get("calibration", {}), "alpha": dict(alpha)}
    full = {**card, "networks": tables, "parameters": parameters, "calibration": calibration}
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / WEIGHTS, safetensors.numpy.save(contiguous))
        _replace(folder / CARD, to_toml(full).encode())
    except OSError as error:
        raise ModelError(
            folder, "folder", f"can't be written ({error.strerror})", "choose a writable folder"
        ) from error


def write_calibration(path: str | os.PathLike[str], alpha: Mapping[str, float], how: str) -> None:
    """Replace the calibration in a folder's card.

    Parameters
    ----------
    path : path
    alpha : dict of str to float
        By pass, as in `Model`.
    how : str
        What it was made of.

    Raises
    ------
    ModelError
        The card is damaged, or can't be written.
    """
    folder = Path(path)
    card = read_card(folder)
    card["calibration"] = {"data": how, "alpha": dict(alpha)}
    try:
        _replace(folder / CARD, to_toml(card).encode())
    except OSError as error:
        raise ModelError(
            folder, "card", f"can't be written ({error.strerror})", "choose a writable folder"
        ) from error


def to_toml(table: Mapping[str, Any], above: str = "") -> str:
    """TOML of strings, numbers, truth values, lists of these, and tables; None is left out."""
    lines = []
    tables = []
    for key, value in table.items():
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)
        if isinstance(value, Mapping):
            full = f"{above}{name}"
            bare = value and all(isinstance(v, Mapping) for v in value.values())
            header = "" if bare else f"\n[{full}]\n"
            tables.append(header + to_toml(value, full + "."))
        elif value is not None:
            lines.append(f"{name} = {_toml_value(value)}\n")
    return "".join(lines + tables)


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, except for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_tensors(source: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return dict(safetensors.numpy.load(source.read_bytes()))
    except OSError as error:
        raise ModelError(
            source, "file", f"can't be read ({error.strerror})", "restore it, or train the model"
        ) from error
    # Types that numpy does not have give a KeyError or an AttributeError, by version.
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            source,
            "safetensors",
            f"is damaged ({type(error).__name__}: {error})",
            "restore the file",
        ) from error


def _take_layer(
    source: Path, tensors: dict[str, npt.NDArray[Any]], name: str, clip: float | None
) -> LstmLayer:
    """The layer called `name`; its tensors are taken out of `tensors`."""
    arrays = {field: tensors.pop(f"{name}.{field}", None) for field in _FIELDS}
    for field in ("w_x", "w_h", "bias"):
        if arrays[field] is None:
            raise ModelError(
                source, f"{name}.{field}", "is missing", f"restore the file, or mend {CARD}"
            )
    try:
        layer = LstmLayer(name, **arrays, reverse=name.endswith(".backward"), clip=clip)  # type: ignore[arg-type]
        layer.check_finite()
    except NetworkError as error:
        raise _in_file(source, error) from error
    return layer


def _in_file(source: Path, error: NetworkError) -> NetworkError:
    return NetworkError(source, f"{error.source}.{error.field}", error.problem, error.remedy)


def _check_network(source: Path, field: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise ModelError(source, field, "is no table", "give host_between and directions")
    if odd := set(table) - {"host_between", "directions", "clip"}:
        raise ModelError(
            source, f"{field}.{min(odd)}", "is unknown", "give host_between, directions and clip"
        )
    if not isinstance(table.get("host_between", False), bool):
        raise ModelError(source, f"{field}.host_between", "is no truth value", "give true or false")
    directions = table.get("directions")
    valid = isinstance(directions, list) and all(
        isinstance(passes, list) and passes and all(d in _DIRECTIONS for d in passes)
        for passes in directions
    )
    if not valid or not directions or any(len(set(p)) != len(p) for p in directions):
        raise ModelError(
            source, f"{field}.directions", f"is {directions!r}",
            'give each layer\'s passes, e.g. [["forward", "backward"], ["forward"]]',
        )  # fmt: skip
    clip = table.get("clip", {})
    if not isinstance(clip, dict):
        raise ModelError(source, f"{field}.clip", "is no table", "give a number for each pass")
    known = [f"{n}.{d}" for n, passes in enumerate(directions) for d in passes]
    for name, value in clip.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in known or not (number and 0 < value < math.inf):
            raise ModelError(
                source, f"{field}.clip.{name}", f"is {value!r}",
                f"give a positive number for one of {', '.join(known)}",
            )  # fmt: skip
