"""Graphs of ONNX models: nodes, constants, and what can be computed of constants alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from epur_emu.checkpoints.protobuf import Message
from epur_emu.checkpoints.tensors import WEIGHT_BYTES, Array, Budget, Tensor, bits, opened
from epur_emu.errors import ModelError

_DTYPES = {
    1: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip
#: Fields of TensorProto that hold values when they are not raw, by type.
_FLOAT_DATA, _INT32_DATA, _INT64_DATA, _DOUBLE_DATA = 4, 5, 7, 10
#: Values that may be stored one by one; more are raw.
_MANY = 1 << 22
#: Graphs may lie in graphs so deep.
_DEPTH = 16
#: Longest chain of operations on constants.
_CHAIN = 40


@dataclass(frozen=True)
class Node:
    """One operation of a graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Message]

    def given(self, n: int) -> str:
        """Name of an input, empty if it is left out."""
        return self.inputs[n] if n < len(self.inputs) else ""

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute."""
        return self.attributes[name].integer(3) if name in self.attributes else default

    def integers(self, name: str) -> list[int]:
        """An attribute."""
        return self.attributes[name].integers(8) if name in self.attributes else []

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        return self.attributes[name].text(4) if name in self.attributes else default

    def graphs(self) -> Iterator[Message]:
        """The graphs in its attributes: branches, bodies of loops."""
        for attribute in self.attributes.values():
            yield from attribute.messages(6)
            yield from attribute.messages(11)


class Graph:
    """A graph's nodes and constants.

    Parameters
    ----------
    budget : Budget
    message : Message
        GraphProto.
    outer : Graph, optional
        The one that it lies in, whose values it may read.

    Raises
    ------
    ValueError
        It is damaged.
    """

    def __init__(self, budget: Budget, message: Message, outer: Graph | None = None) -> None:
        self.path: Path = budget.source
        self.budget = budget
        self.outer = outer
        self.depth: int = outer.depth + 1 if outer else 0
        if self.depth > _DEPTH:
            raise ValueError(f"graphs lie over {_DEPTH} deep")
        self.nodes = [_node(node) for node in message.messages(1)]
        self.makers = {name: node for node in self.nodes for name in node.outputs if name}
        self._tensors = {m.text(8): self._tensor(m) for m in message.messages(5)}
        self._known: dict[str, Array | None] = {}

    def all(self) -> Iterator[Graph]:
        """The graph itself and all that lie in it."""
        yield self
        for node in self.nodes:
            for message in node.graphs():
                yield from Graph(self.budget, message, self).all()

    def constant(self, name: str, depth: int = 0) -> Array | None:
        """The value of a name, if it is made of constants by operations that only rearrange them.

        Raises
        ------
        ModelError, ValueError
            It is damaged, or too large for the file.
        """
        if name not in self._known:
            self._known[name] = None  # met again on the way, it would be made of itself
            self._known[name] = self._evaluate(name, depth)
        return self._known[name]

    def _evaluate(self, name: str, depth: int) -> Array | None:
        node = self.makers.get(name)
        if name in self._tensors:
            return self._load(name, self._tensors[name])
        if node is None:
            return self.outer.constant(name, depth) if self.outer else None
        if node.op == "Constant":
            return self._value(node)
        if node.op not in OPERATIONS or depth >= _CHAIN:
            return None
        given = [self.constant(i, depth + 1) for i in node.inputs if i]
        whole = [array for array in given if array is not None]
        if len(whole) != len(given):
            return None
        if node.op not in _VIEWS:
            self.budget.take(name, 2 * sum(array.nbytes for array in whole))
        try:
            return OPERATIONS[node.op](node, whole)
        except (IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"{node.op} {name!r}: {error}") from error

    def _value(self, node: Node) -> Array | None:
        """Of a Constant."""
        for attribute in ("value_ints", "value_int"):
            if attribute in node.attributes:
                return np.array(node.integers(attribute) or node.integer(attribute))
        if "value" not in node.attributes:
            return None
        (value,) = node.attributes["value"].messages(5)
        return self._load(node.outputs[0], self._tensor(value))

    def _load(self, name: str, tensor: Tensor) -> Array:
        if tensor.dtype not in ("int32", "int64"):
            return tensor.load(name, self.budget)
        self.budget.take(name, 8 * math.prod(tensor.shape))
        return np.asarray(tensor.read()).reshape(tensor.shape)

    def _tensor(self, message: Message) -> Tensor:
        """A TensorProto."""
        shape = tuple(message.integers(1))
        if any(not 0 <= n < 1 << 48 for n in shape):
            raise ValueError(f"a tensor has shape {shape}"[:100])
        kind = message.integer(2)
        dtype = _DTYPES.get(kind, f"number {kind} of ONNX")
        return Tensor(shape, dtype, partial(self._values, message, shape, dtype))

    def _values(self, message: Message, shape: tuple[int, ...], dtype: str) -> Array:
        """The values of a TensorProto: raw, in a field of their type, or in a file beside."""
        count = math.prod(shape)
        kind = bits(dtype)
        raw = message.blobs(9)
        array: Array
        if message.integer(14) == 1:
            array = np.frombuffer(self._external(message, count * kind.itemsize), kind)
        elif raw:
            array = np.frombuffer(raw[-1], kind)
        elif dtype == "float32":
            array = np.frombuffer(b"".join(message.blobs(_FLOAT_DATA)), "<f4")
        elif dtype == "float64":
            array = np.frombuffer(b"".join(message.blobs(_DOUBLE_DATA)), "<f8")
        elif dtype == "int64":
            array = np.array(message.integers(_INT64_DATA, _MANY), kind)
        elif dtype == "int32":
            array = np.array(message.integers(_INT32_DATA, _MANY)).astype(kind)
        else:  # 16-bit types lie in 32-bit integers, by their bits
            array = np.array(message.integers(_INT32_DATA, _MANY)).astype(np.uint16).view(kind)
        if array.size != count:
            raise ValueError(f"{message.text(8)!r} holds {array.size} values, not {count}")
        return array

    def _external(self, message: Message, nbytes: int) -> bytes:
        """Values in a file beside the model."""
        entries = {entry.text(1): entry.text(2) for entry in message.messages(13)}
        location = entries.get("location", "")
        path = self.path.parent / location
        if not location or not path.resolve().is_relative_to(self.path.parent.resolve()):
            raise ModelError(
                self.path, message.text(8), f"lies in {location[:80]!r}, outside the model's folder",
                "give a file beside the model",
            )  # fmt: skip
        with opened(path) as file:
            file.seek(int(entries.get("offset", 0)))
            data = file.read(nbytes)
        if len(data) != nbytes:
            raise ModelError(path, message.text(8), "is cut short", "restore the file")
        return data


def _node(message: Message) -> Node:
    return Node(
        message.text(3),
        message.text(4),
        tuple(message.texts(1)),
        tuple(message.texts(2)),
        {attribute.text(1): attribute for attribute in message.messages(5)},
    )


def _cast(node: Node, inputs: Sequence[Array]) -> Array:
    dtype = _DTYPES.get(node.integer("to"), "")
    if dtype == "bfloat16" or dtype not in WEIGHT_BYTES:
        raise ValueError(f"weights are cast to type {node.integer('to')}")
    with np.errstate(over="ignore"):
        return inputs[0].astype(dtype)


def _axes(node: Node, inputs: Sequence[Array], name: str, n: int) -> list[int]:
    """Integers that are an attribute of old models and an input of new ones."""
    values = inputs[n].reshape(-1)[:100].tolist() if n < len(inputs) else node.integers(name)
    return [int(value) for value in values]


def _unsqueeze(node: Node, inputs: Sequence[Array]) -> Array:
    return np.expand_dims(inputs[0], tuple(_axes(node, inputs, "axes", 1)))


def _squeeze(node: Node, inputs: Sequence[Array]) -> Array:
    return np.squeeze(inputs[0], tuple(_axes(node, inputs, "axes", 1)) or None)


def _slice(node: Node, inputs: Sequence[Array]) -> Array:
    starts, ends = _axes(node, inputs, "starts", 1), _axes(node, inputs, "ends", 2)
    axes = _axes(node, inputs, "axes", 3) or list(range(len(starts)))
    steps = _axes(node, inputs, "steps", 4) or [1] * len(starts)
    places = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise ValueError("a slice goes backwards")
        places[axis] = slice(start, end, step)
    return inputs[0][tuple(places)]


def _concat(node: Node, inputs: Sequence[Array]) -> Array:
    return np.concatenate(inputs, node.integer("axis"))


def _transpose(node: Node, inputs: Sequence[Array]) -> Array:
    return np.transpose(inputs[0], node.integers("perm") or None)


def _reshape(node: Node, inputs: Sequence[Array]) -> Array:
    shape = _axes(node, inputs, "shape", 1)
    return inputs[0].reshape([inputs[0].shape[k] if n == 0 else n for k, n in enumerate(shape)])


#: Those whose result lies in their input's memory.
_VIEWS = {"Identity", "Unsqueeze", "Squeeze", "Slice", "Transpose"}
#: Operations on constants, as ONNX defines them.
OPERATIONS: dict[str, Callable[[Node, Sequence[Array]], Array]] = {
    "Identity": lambda node, inputs: inputs[0],
    "Cast": _cast,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
