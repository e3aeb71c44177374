"""From passes as a file has them to a `Network`: projections folded, weights checked, names given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from epur_emu.checkpoints.tensors import Array
from epur_emu.errors import ModelError, NetworkError
from epur_emu.network import GATES, LstmLayer, Network


@dataclass(frozen=True)
class FilePass:
    """One direction of one LSTM layer as its file has it, gates in the order i, f, g, o.

    Parameters
    ----------
    origin : str
        Its name in the file.
    w_x : float array of shape (4, H, I)
    w_h : float array of shape (4, H, P)
        P = H where nothing is projected.
    bias : float array of shape (4, H)
    peepholes : float array of shape (3, H), optional
        Gates i, f, o.
    projection : float array of shape (P, H), optional
        The layer's output is its product with o tanh(c).
    reverse : bool
    clip : float, optional
        As in `LstmLayer`.
    """

    origin: str
    w_x: Array
    w_h: Array
    bias: Array
    peepholes: Array | None = None
    projection: Array | None = None
    reverse: bool = False
    clip: float | None = None

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return int(self.w_h.shape[1] if self.projection is None else self.projection.shape[0])


@dataclass(frozen=True)
class FileNetwork:
    """Layers that a file joins into one network.

    Parameters
    ----------
    origin : str
        Name in the file, a prefix of its tensors' names.
    layers : tuple of tuple of FilePass
    notes : tuple of str
        What the user should know.
    """

    origin: str
    layers: tuple[tuple[FilePass, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """Width of the input."""
        return int(self.layers[0][0].w_x.shape[2])

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return sum(p.outputs for p in self.layers[-1])


@dataclass
class Choice:
    """Which networks of a file are wanted; others are not read.

    Parameters
    ----------
    prefixes : tuple of str
        Names, or what names go on behind with a dot or a slash; all networks if empty.
    names : list of str
        Networks that were asked about: all that the file holds.
    """

    prefixes: tuple[str, ...] = ()
    names: list[str] = field(default_factory=list)

    def takes(self, origin: str) -> bool:
        """Whether a network is wanted."""
        self.names.append(origin)
        return not self.prefixes or any(_begins(origin, prefix) for prefix in self.prefixes)

    def check(self, source: Path) -> None:
        """Raise `ModelError` if a prefix is that of no network."""
        for prefix in self.prefixes:
            if not any(_begins(name, prefix) for name in self.names):
                known = ", ".join(printable(name) or "''" for name in self.names[:20])
                raise ModelError(
                    source, f"network {prefix!r}", "is not in the file", f"use one of: {known}"
                )


def _begins(origin: str, prefix: str) -> bool:
    stem = prefix.rstrip("./")
    return origin == prefix or origin.startswith((f"{stem}.", f"{stem}/"))


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Parameters
    ----------
    networks : list of FileNetwork
    notes : tuple of str
        What was left out.
    """

    networks: list[FileNetwork]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Imported:
    """A network of a file, ready to be emulated.

    Parameters
    ----------
    network : Network
        Its passes are called by their place, ``{network}.{layer}.{forward or backward}``.
    projection : float32 array of shape (P, H), optional
        What the host multiplies each output of the last layer by.
    origins : dict of str to str
        By the pass's name, its name in the file.
    notes : tuple of str
    """

    network: Network
    projection: Array | None = None
    origins: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


#: Folded weights may be so many times larger.
_LARGER = 16
_LAST_NUMBER = re.compile(r"\d{1,9}$")


def join_numbered(networks: Sequence[FileNetwork]) -> list[FileNetwork]:
    """Networks whose names end in consecutive numbers, joined where their widths agree.

    For files that hold names and no graph: ``cells.0`` and ``cells.1``, say.
    """
    groups: dict[str, list[FileNetwork]] = {}
    for network in networks:
        groups.setdefault(_LAST_NUMBER.sub("", network.origin), []).append(network)
    out: list[FileNetwork] = []
    for stem, group in groups.items():
        group.sort(key=lambda n: int(n.origin[len(stem) :] or -1))
        numbers = [int(n.origin[len(stem) :] or -1) for n in group]
        fits = all(
            a.outputs == b.inputs and n + 1 == m
            for (a, b), (n, m) in zip(pairwise(group), pairwise(numbers), strict=True)
        )
        if len(group) == 1 or not fits:
            out += group
            continue
        names = " -> ".join(n.origin for n in group)
        note = f"joined {names} by their numbers and widths; --network takes one alone"
        layers = tuple(passes for n in group for passes in n.layers)
        notes = (*(note for n in group for note in n.notes), note)
        out.append(FileNetwork(stem.rstrip("._") or group[0].origin, layers, notes))
    return out


def assemble(source: Path, found: FileNetwork, name: str) -> Imported:
    """The network called `name`.

    A projection W_r of a layer's outputs is folded into the weights that read them: W_h W_r, and
    W_x W_r of the next layer, computed in float64 and rounded once to float32; the last layer's is
    left to the host.

    Raises
    ------
    NetworkError
        A weight is not finite, or shapes disagree; the file, the place in it, gate and index are
        named.
    """
    notes = list(found.notes)
    layers: list[tuple[LstmLayer, ...]] = []
    origins: dict[str, str] = {}
    before: Array | None = None
    folded = any(p.projection is not None for passes in found.layers for p in passes)
    if folded:
        notes.append(
            "projections are folded into the weights that read them (float64, rounded to float32)"
        )
    if any(
        array is not None and array.dtype == np.float64
        for passes in found.layers
        for p in passes
        for array in (p.w_x, p.w_h)
    ):
        notes.append("float64 weights are rounded to float32")
    for n, passes in enumerate(found.layers):
        made = []
        for p in passes:
            _check(source, p)
            full = f"{name}.{n}.{'backward' if p.reverse else 'forward'}"
            w_x = p.w_x if before is None else _product(p.w_x, before)
            w_h = p.w_h if p.projection is None else _product(p.w_h, p.projection)
            peepholes = None if p.peepholes is None else _single(p.peepholes)
            try:
                layer = LstmLayer(
                    full, _single(w_x), _single(w_h), _single(p.bias), peepholes, p.reverse,
                    p.clip,
                )  # fmt: skip
                layer.check_finite()
            except NetworkError as error:
                raise NetworkError(
                    source, f"{p.origin}: {error.field}", error.problem, error.remedy
                ) from error
            made.append(layer)
            origins[full] = printable(p.origin)
        layers.append(tuple(made))
        before = _projection(passes)
    try:
        network = Network(name, tuple(layers))
    except NetworkError as error:
        raise NetworkError(source, error.field, error.problem, error.remedy) from error
    projection = None if before is None else _single(before)
    if projection is not None and not np.isfinite(projection).all():
        raise NetworkError(
            source, found.origin, "projection is not finite in float32", "give finite weights"
        )
    return Imported(network, projection, origins, tuple(notes))


def _single(array: Array) -> Array:
    """float16 and float32 as they are, contiguous and the caller's own; others in float32."""
    dtype = array.dtype if array.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):
        return np.array(array, dtype, order="C")


def _product(weights: Array, projection: Array) -> Array:
    """In float64; what overflows is refused later, by its place."""
    with np.errstate(all="ignore"):
        out: Array = weights.astype(np.float64) @ projection.astype(np.float64)
    return out


def _projection(passes: Sequence[FilePass]) -> Array | None:
    """Block-diagonal projection of a layer's outputs, (P, H) in float64; None without one."""
    if all(p.projection is None for p in passes):
        return None
    blocks = [np.eye(p.outputs) if p.projection is None else p.projection for p in passes]
    out = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        out[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return out


def _check(source: Path, p: FilePass) -> None:
    """Raise, naming gate and index, if a weight of the file is not finite."""
    if p.projection is not None and p.projection.shape[1] > _LARGER * p.projection.shape[0]:
        raise NetworkError(
            source, p.origin, f"projects {p.projection.shape[1]} cells to {p.projection.shape[0]}",
            f"give a projection to at least 1 / {_LARGER}: folded, its weights grow so many times",
        )  # fmt: skip
    for label in ("w_x", "w_h", "bias", "peepholes", "projection"):
        array = getattr(p, label)
        if array is None or np.isfinite(array).all():
            continue
        index = [int(n) for n in np.argwhere(~np.isfinite(array))[0]]
        value = array[tuple(index)]
        place = label
        if label != "projection":
            gates = ("i", "f", "o") if label == "peepholes" else GATES
            place = f"{label}, gate {gates[index.pop(0)]}"
        raise NetworkError(
            source, f"{p.origin}: {place}, index {index}", f"is {value}", "give finite weights"
        )


def printable(name: str) -> str:
    """A name of a file, fit to be shown and stored."""
    return "".join(c if c.isprintable() else "?" for c in name[:200])


def zero_bias(w_x: Array) -> Array:
    """Bias of gates that have none, (4, H)."""
    return np.zeros(w_x.shape[:2], w_x.dtype)


def total(biases: Sequence[Array]) -> Array:
    """Sum of biases of one shape, computed in float64 and rounded once to float32."""
    with np.errstate(all="ignore"):  # what is not finite is refused later, by its place
        out: Array = np.add.reduce(biases, axis=0, dtype=np.float64)
    return _single(out)


def gates(source: Path, name: str, array: Array, cells: int, order: Sequence[int]) -> Array:
    """Split a first axis of four stacked gates and put them in the order i, f, g, o.

    Parameters
    ----------
    array : array of shape (4 H, ...)
    cells : int
        H.
    order : sequence of int
        Where i, f, g and o stand in the file.

    Raises
    ------
    ModelError
        The axis does not hold four gates of H rows.
    """
    if array.shape[:1] != (4 * cells,):
        raise ModelError(
            source, name, f"has shape {array.shape}, not 4 equal gates of {cells} cells",
            "give gates of equal shape",
        )  # fmt: skip
    return array.reshape(4, cells, *array.shape[1:])[list(order)]
