"""ONNX models: ``LSTM`` nodes and the graph that joins them, read without the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from epur_emu.checkpoints.assembly import (
    Choice,
    FileNetwork,
    FilePass,
    Found,
    gates,
    total,
    zero_bias,
)
from epur_emu.checkpoints.onnx_graph import Graph, Node
from epur_emu.checkpoints.protobuf import Message
from epur_emu.checkpoints.tensors import Array, Budget, opened
from epur_emu.errors import ModelError

#: Where i, f, g and o stand among ONNX's gates i, o, f, c; and i, f, o among its peepholes i, o, f.
_ORDER = (0, 2, 3, 1)
_PEEPHOLES = (0, 2, 1)
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_ACTIVATIONS = ["sigmoid", "tanh", "tanh"]
#: Operators that pass a sequence on as it is, or only rearrange its axes.
_PASSING = {"Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Transpose"}
#: Orders of axes that keep time steps first, or swap them with the batch.
_KEEPS = ([0, 2, 1, 3], [0, 1, 2])
_SWAPS = ([1, 0, 2], [1, 0, 2, 3])


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of an ONNX model.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged, or holds no LSTM that can be emulated.
    """
    with opened(path) as file:
        data = file.read()
    try:
        graphs = list(Message(data).messages(7))
        if len(graphs) != 1:
            raise ValueError("it holds no graph")
        return _found(Graph(Budget(path), graphs[0]), choice)
    except ValueError as error:
        raise ModelError(path, "ONNX", f"is damaged ({error})", "restore the file") from error


def _found(main: Graph, choice: Choice) -> Found:
    """One network for each chain of LSTM nodes, in the main graph and in its branches and loops."""
    networks, others = [], []
    for graph in main.all():
        reader = _Reader(graph)
        networks += reader.networks(choice)
        others += [f"{_origin(n)} ({n.op})" for n in graph.nodes if n.op in ("GRU", "RNN")]
    if not choice.names:
        raise ModelError(
            main.path, "graph", f"holds no LSTM node{', but ' * bool(others)}{', '.join(others[:3])}",
            "give a model with LSTM nodes",
        )  # fmt: skip
    return Found(networks, (f"left out, no LSTM: {', '.join(others)}",) if others else ())


class _Reader:
    """The LSTM nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.path = graph.path

    def networks(self, choice: Choice) -> list[FileNetwork]:
        """One for each chain of nodes that is wanted."""
        chains: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            if node.op == "LSTM":
                before = self.before(node)
                chain = [] if before is None else chains.pop(id(before), [])
                chains[id(node)] = [*chain, node]
        networks = []
        for chain in chains.values():
            if not choice.takes(_origin(chain[0])):
                continue
            made = [self.layer(node) for node in chain]
            notes = tuple(note for _, more in made for note in more)
            layers = tuple(passes for passes, _ in made)
            networks.append(FileNetwork(_origin(chain[0]), layers, notes))
        return networks

    def before(self, node: Node) -> Node | None:
        """The LSTM whose outputs a node reads as they are, all of them."""
        name, swapped, entered = node.given(0), False, set()
        while name in self.graph.makers and name not in entered:
            entered.add(name)
            maker = self.graph.makers[name]
            if maker.op == "LSTM":
                return None if swapped or name != maker.outputs[0] else maker
            if maker.op not in _PASSING:
                return None
            if maker.op == "Transpose":
                axes = maker.integers("perm")
                if axes in _SWAPS:
                    swapped = not swapped
                elif axes not in _KEEPS:
                    return None
            name = maker.given(0)
        return None

    def layer(self, node: Node) -> tuple[tuple[FilePass, ...], list[str]]:
        """The passes of a node, and what the user should know."""
        origin = _origin(node)
        directions = self.check(node, origin)
        arrays = [self.array(node, origin, n) for n in (1, 2, 3, 7)]
        w_x, w_h, bias, peepholes = arrays
        if w_x is None or w_h is None:
            raise ModelError(self.path, origin, "has no W or no R", "give a valid model")
        if w_h.ndim != 3 or w_x.ndim != 3 or 0 in w_h.shape or 0 in w_x.shape:
            raise ModelError(
                self.path, origin, f"has W of shape {w_x.shape} and R of shape {w_h.shape}",
                "give (directions, 4 cells, inputs) and (directions, 4 cells, cells)",
            )  # fmt: skip
        cells = w_h.shape[2]
        sizes = {"W": w_x, "R": w_h, "B": bias, "P": peepholes}
        for label, array in sizes.items():
            if array is not None and array.shape[:1] != (len(directions),):
                raise ModelError(
                    self.path, f"{origin}: {label}", f"has shape {array.shape}",
                    f"give {len(directions)} on the first axis",
                )  # fmt: skip
        passes = []
        for n, reverse in enumerate(directions):
            label = f"{origin}: W[{n}]"
            x = gates(self.path, label, w_x[n], cells, _ORDER)
            h = gates(self.path, f"{origin}: R[{n}]", w_h[n], cells, _ORDER)
            b = zero_bias(x)
            if bias is not None:
                sums = total(np.split(bias[n].reshape(-1), 2))
                b = gates(self.path, f"{origin}: B[{n}]", sums, cells, _ORDER)
            p = None
            if peepholes is not None:
                if peepholes[n].size != 3 * cells:
                    raise ModelError(
                        self.path, f"{origin}: P", f"has shape {peepholes.shape}",
                        f"give 3 x {cells} for each direction",
                    )  # fmt: skip
                p = peepholes[n].reshape(3, cells)[list(_PEEPHOLES)]
            passes.append(FilePass(origin, x, h, b, p, reverse=reverse, clip=_clip(node)))
        return tuple(passes), self.notes(node, origin)

    def check(self, node: Node, origin: str) -> tuple[bool, ...]:
        """A node's directions.

        Raises
        ------
        ModelError
            An attribute asks for what the accelerator does not do.
        """
        direction = node.text("direction", "forward")
        if direction not in _DIRECTIONS:
            raise ModelError(
                self.path, origin, f"has direction {direction!r}", "give a valid model"
            )
        if "activations" in node.attributes:
            names = [name.lower() for name in node.attributes["activations"].texts(9)]
            if names and names != _ACTIVATIONS * len(_DIRECTIONS[direction]):
                raise ModelError(
                    self.path, origin, f"has activations {', '.join(names)[:80]}",
                    "E-PUR's unit computes sigmoid, tanh and tanh",
                )  # fmt: skip
        clip = _clip(node)
        if clip is not None and not 0 < clip < np.inf:
            raise ModelError(self.path, origin, f"clips its sums at {clip:g}", "give a valid model")
        if node.integer("input_forget"):
            raise ModelError(
                self.path, origin, "couples the input and forget gates", "E-PUR has four gates"
            )
        return _DIRECTIONS[direction]

    def notes(self, node: Node, origin: str) -> list[str]:
        """What is left out of a node."""
        out = []
        if node.given(4):
            out.append(f"{origin}: lengths of sequences are left out, all time steps are taken")
        for n, label in ((5, "initial h"), (6, "initial c")):
            name = node.given(n)
            if not name:
                continue
            constant = self.graph.constant(name)
            if constant is None:
                out.append(f"{origin}: {label} is computed or given; zero is taken")
            elif np.any(constant):
                raise ModelError(
                    self.path, origin, f"has an {label} that is not zero", "export it as an input"
                )
        return out

    def array(self, node: Node, origin: str, n: int) -> Array | None:
        """A constant input of a node; None if it is left out."""
        name = node.given(n)
        if not name:
            return None
        constant = self.graph.constant(name)
        if constant is None:
            raise ModelError(
                self.path, f"{origin}: {name}", "is no constant of the graph",
                "fold its constants first (onnxsim, or the exporter's option)",
            )  # fmt: skip
        if constant.dtype.kind != "f":
            raise ModelError(
                self.path, f"{origin}: {name}", f"has dtype {constant.dtype}", "give floats"
            )
        return constant


def _clip(node: Node) -> float | None:
    """Where a node clips the arguments of its gates."""
    return (node.attributes["clip"].float(2) or None) if "clip" in node.attributes else None


def _origin(node: Node) -> str:
    return node.name.strip("/") or (node.outputs or ("LSTM",))[0]
