"""The LSTM as data: layers of gate weights, and a network of layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epur_emu.errors import NetworkError

#: Order of the gates wherever four of them stand along one axis.
Rounded = Callable[[int, npt.NDArray[np.float32]], npt.NDArray[np.float32]]

GATES = ("i", "f", "g", "o")

Floats = npt.NDArray[np.floating]

#: Weights that are converted at a time: more would only cost memory.
PART = 2**16


def _largest(values: Floats) -> np.float32:
    """The largest magnitude, or infinity or not-a-number if there are such."""
    if values.dtype != np.float16:
        return np.float32(np.abs(values).max())
    # The order of codes is that of magnitudes; numpy is slow at half precision.
    code = int((np.ascontiguousarray(values).view(np.uint16) & np.uint16(0x7FFF)).max())
    return np.float32(np.nan if code > 0x7C00 else np.uint16(code).view(np.float16))


@dataclass(frozen=True, eq=False)
class LstmLayer:
    """One direction of one LSTM layer.

    Parameters
    ----------
    name : str
        Unique within its network, e.g. ``encoder.0.backward``.
    w_x : float16 or float32 array of shape (4, H, I)
        Weights of the layer's input, gates in the order of `GATES`.
    w_h : float16 or float32 array of shape (4, H, H)
        Weights of the previous output.
    bias : float16 or float32 array of shape (4, H)
    peepholes : float16 or float32 array of shape (3, H), optional
        Weights of the cell state in the gates i, f (previous state) and o (new state).
    reverse : bool
        Whether the layer reads its sequence from the last time step to the first.
    clip : float, optional
        Largest magnitude of the arguments of the gates' functions (not of the cell's tanh), as
        ONNX's LSTM has it.

    Raises
    ------
    NetworkError
        Shapes disagree, a weight is not finite, or `clip` not positive; the place is named.
    """

    name: str
    w_x: Floats
    w_h: Floats
    bias: Floats
    peepholes: Floats | None = None
    reverse: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 < self.clip < np.inf:
            raise NetworkError(self.name, "clip", f"is {self.clip}", "give a positive number")
        if self.w_x.ndim != 3 or self.w_x.shape[0] != 4 or 0 in self.w_x.shape:
            raise NetworkError(
                self.name, "w_x", f"has shape {self.w_x.shape}", "give (4, cells, inputs), none 0"
            )
        cells = self.w_x.shape[1]
        wanted = {"w_h": (4, cells, cells), "bias": (4, cells), "peepholes": (3, cells)}
        for field, shape in wanted.items():
            array = getattr(self, field)
            if array is not None and array.shape != shape:
                raise NetworkError(self.name, field, f"has shape {array.shape}", f"give {shape}")
        for field in ("w_x", *wanted):
            array = getattr(self, field)
            if array is None:
                continue
            if array.dtype not in (np.float16, np.float32):
                raise NetworkError(
                    self.name, field, f"has dtype {array.dtype}", "give float16 or float32"
                )
            array.flags.writeable = False

    def check_finite(self, rounded: Rounded | None = None, what: str = "float32") -> None:
        """Raise `NetworkError`, naming gate and index, if a weight is not finite.

        Parameters
        ----------
        rounded : callable, optional
            Takes a gate's number and its float32 weights, gives them as they will be used.
        what : str
            How the message calls what they are rounded to.
        """
        for field in ("w_x", "w_h", "bias", "peepholes"):
            array = getattr(self, field)
            if array is None:
                continue
            owners = (0, 1, 3) if field == "peepholes" else range(4)
            for gate, values in zip(owners, array, strict=True):
                rows = np.atleast_2d(values)
                some = max(PART // rows.shape[1], 1)  # a few rows: all would take memory
                for start in range(0, len(rows), some):
                    part = rows[start : start + some]
                    top = _largest(part)
                    ends = np.array([-top, top], np.float32)
                    if np.isfinite(ends if rounded is None else rounded(gate, ends)).all():
                        continue  # as no rounding takes a smaller value farther
                    part = part.astype(np.float32)
                    finite = np.isfinite(part if rounded is None else rounded(gate, part))
                    if not finite.all():
                        break
                else:
                    continue
                index = [int(n) for n in np.argwhere(~finite)[0]]
                index = [start + index[0], index[1]] if values.ndim == 2 else index[1:]
                raise NetworkError(
                    self.name,
                    f"{field}, gate {GATES[gate]}, index {index}",
                    f"is {values[tuple(index)]}, not finite in {what}",
                    "give finite weights, or switch the check off to let it propagate",
                )

    @property
    def cells(self) -> int:
        """H, the number of cells."""
        return int(self.w_h.shape[2])

    @property
    def inputs(self) -> int:
        """I, the width of the layer's input."""
        return int(self.w_x.shape[2])

    @property
    def parameters(self) -> int:
        """Number of weights, biases and peepholes."""
        arrays = (self.w_x, self.w_h, self.bias, self.peepholes)
        return sum(a.size for a in arrays if a is not None)

    @property
    def shape(self) -> LayerShape:
        """What a dataflow needs to know of the layer."""
        return LayerShape(
            self.name, self.inputs, self.cells, self.peepholes is not None, self.reverse
        )


@dataclass(frozen=True)
class LayerShape:
    """Shape of one pass: all that timing, accesses and energy depend on, and no weights.

    Raises
    ------
    NetworkError
        Inputs or cells are no integer, or less than 1.
    """

    name: str
    inputs: int
    cells: int
    peepholes: bool = False
    reverse: bool = False

    def __post_init__(self) -> None:
        for key in ("inputs", "cells"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise NetworkError(self.name, key, f"is {value!r}", "give an integer, 1 or more")


def check_joined(
    source: str, layers: Sequence[Sequence[LstmLayer | LayerShape]], host_between: bool = False
) -> None:
    """Raise `NetworkError` unless layers hold one or two passes each, of names and widths that agree."""
    if not layers or any(not 1 <= len(passes) <= 2 for passes in layers):
        raise NetworkError(source, "layers", "are empty or of over two passes", "give 1 or 2")
    names = [p.name for passes in layers for p in passes]
    if len(set(names)) != len(names):
        raise NetworkError(source, "layers", f"repeat a name: {names}", "name each once")
    width = None
    for passes in layers:
        for p in passes:
            if p.inputs != passes[0].inputs or not (host_between or width in (None, p.inputs)):
                raise NetworkError(
                    source, p.name, f"reads {p.inputs} inputs where {width or passes[0].inputs} are given",
                    "make the widths agree",
                )  # fmt: skip
        width = sum(p.cells for p in passes)


@dataclass(frozen=True)
class Network:
    """Layers in order of evaluation; each holds one pass, or two for a bidirectional layer.

    Parameters
    ----------
    name : str
    layers : tuple of tuple of LstmLayer
        ``layers[n]`` are the passes of layer n, which read the same input and whose outputs are
        concatenated, first pass first.

    Raises
    ------
    NetworkError
        A layer's input width is not the width of the output before it, or a name stands twice.
    """

    name: str
    layers: tuple[tuple[LstmLayer, ...], ...]
    #: Whether other computation (attention, say) stands between the layers, so that a layer's
    #: input need not be the output before it.
    host_between: bool = False

    def __post_init__(self) -> None:
        check_joined(self.name, self.layers, self.host_between)

    @property
    def passes(self) -> tuple[LstmLayer, ...]:
        """All passes in order."""
        return tuple(layer for passes in self.layers for layer in passes)

    @property
    def shape(self) -> tuple[tuple[LayerShape, ...], ...]:
        """Shapes of the layers' passes."""
        return tuple(tuple(layer.shape for layer in passes) for passes in self.layers)

    @property
    def parameters(self) -> int:
        """Number of weights, biases and peepholes."""
        return sum(layer.parameters for layer in self.passes)

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 of all weights, 16 hexadecimal digits; weights can't change."""
        digest = hashlib.sha256()
        for layer in self.passes:
            digest.update(f"{layer.shape}{layer.clip or ''}".encode())
            for array in (layer.w_x, layer.w_h, layer.bias, layer.peepholes):
                if array is None:
                    continue
                # Some at a time: as float32 they would take more memory than the weights do.
                parts = np.nditer(
                    array, ["external_loop", "buffered"], ["readonly"], [np.float32],
                    order="C", buffersize=2**16,
                )  # fmt: skip
                for part in parts:
                    digest.update(np.asarray(part).data)
        return digest.hexdigest()[:16]
