"""LSTMs among named tensors: the names of ``nn.LSTM``, ``nn.LSTMCell`` and of this package."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping

from epur_emu.checkpoints.assembly import (
    Choice,
    FileNetwork,
    FilePass,
    Found,
    gates,
    total,
    zero_bias,
)
from epur_emu.checkpoints.tensors import Array, Budget, Tensor
from epur_emu.errors import ModelError

# weight_ih_l0, weight_hr_l1_reverse, bias_hh_l0; without _l0 for a cell.
_TORCH = re.compile(
    r"(?:(?P<module>.*)\.)?(?P<field>weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)"
    r"(?:_l(?P<layer>\d{1,4})(?P<reverse>_reverse)?)?"
)
# encoder.0.backward.w_x
_OWN = re.compile(
    r"(?:(?P<module>.*)\.)?(?P<layer>\d{1,4})\.(?P<direction>forward|backward)\."
    r"(?P<field>w_x|w_h|bias|peepholes)"
)
#: Recurrent layers that are no LSTM, by rows of their weights for each cell.
_OTHERS = {3: "GRU", 1: "plain RNN"}

#: Tensors of one pass by field, with their names.
Fields = dict[str, tuple[str, Tensor]]
#: By layer and direction (reverse or not).
Passes = dict[tuple[int, bool], Fields]


def networks(tensors: Mapping[str, Tensor], budget: Budget, choice: Choice) -> Found:
    """The LSTMs among the tensors of a file, one network for each module.

    Raises
    ------
    ModelError
        There is none, or one is incomplete, or its gates are of unequal shape.
    """
    torch: dict[str, Passes] = defaultdict(lambda: defaultdict(dict))
    own: dict[str, Passes] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        if match := _TORCH.fullmatch(name):
            place = (int(match["layer"] or 0), match["reverse"] is not None)
            torch[match["module"] or ""][place][match["field"]] = (name, tensor)
        elif match := _OWN.fullmatch(name):
            place = (int(match["layer"]), match["direction"] == "backward")
            own[match["module"] or ""][place][match["field"]] = (name, tensor)
    found, others = [], []
    for module, passes in torch.items():
        if kind := _other(passes):
            others.append(f"{module or 'the top'} ({kind})")
        elif choice.takes(module):
            found.append(_network(module, passes, budget, _torch_pass))
    found += [
        _network(module, passes, budget, _own_pass)
        for module, passes in own.items()
        if choice.takes(module)
    ]
    if others and not choice.names:
        raise ModelError(
            budget.source, ", ".join(others[:3]), "is no LSTM", "give a network of LSTM layers"
        )
    if not choice.names:
        raise ModelError(
            budget.source, "tensors", "hold no LSTM: none is called as those of nn.LSTM are",
            "name them like weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0",
        )  # fmt: skip
    notes = (f"left out, no LSTM: {', '.join(others)}",) if others else ()
    return Found(sorted(found, key=lambda n: n.origin), notes)


def _other(passes: Passes) -> str | None:
    """What kind of recurrent layer it is, if no LSTM."""
    fields = next(iter(passes.values()))
    if not {"weight_ih", "weight_hh"} <= set(fields) or "weight_hr" in fields:
        return None
    shapes = [fields[field][1].shape for field in ("weight_ih", "weight_hh")]
    if any(len(shape) != 2 for shape in shapes) or not shapes[1][1]:
        return None
    rows = {divmod(shape[0], shapes[1][1]) for shape in shapes}
    return next((kind for n, kind in _OTHERS.items() if rows == {(n, 0)}), None)


def _network(
    module: str,
    passes: Passes,
    budget: Budget,
    make: Callable[[str, Fields, bool, Budget], FilePass],
) -> FileNetwork:
    """The layers of one module, in order."""
    layers: list[tuple[FilePass, ...]] = []
    for n, reverse in sorted(passes):
        field, (name, _) = next(iter(passes[n, reverse].items()))
        head, _, tail = name.rpartition(field)
        origin = (head + tail.lstrip("_")).rstrip(".") or "lstm"
        if n == len(layers):
            layers.append(())
        elif n != len(layers) - 1:
            raise ModelError(
                budget.source, origin, f"is of layer {n}, but a pass before it is missing",
                "give all layers",
            )  # fmt: skip
        layers[n] += (make(origin, passes[n, reverse], reverse, budget),)
    return FileNetwork(module, tuple(layers))


def _take(fields: Fields, wanted: str, origin: str, budget: Budget) -> Array:
    if wanted not in fields:
        raise ModelError(
            budget.source,
            origin,
            f"stands alone, without {wanted}",
            "give all weights of the layer",
        )
    name, tensor = fields[wanted]
    return tensor.load(name, budget)


def _torch_pass(origin: str, fields: Fields, reverse: bool, budget: Budget) -> FilePass:
    """A pass of nn.LSTM or nn.LSTMCell; PyTorch's order of gates is ours."""
    w_x = _take(fields, "weight_ih", origin, budget)
    w_h = _take(fields, "weight_hh", origin, budget)
    projection = _take(fields, "weight_hr", origin, budget) if "weight_hr" in fields else None
    for field, array in (("weight_ih", w_x), ("weight_hh", w_h), ("weight_hr", projection)):
        if array is not None and (array.ndim != 2 or 0 in array.shape):
            raise ModelError(
                budget.source, fields[field][0], f"has shape {array.shape}", "give a matrix"
            )
    outputs = w_h.shape[1]
    cells = outputs if projection is None else projection.shape[1]
    if projection is not None and len(projection) != outputs:
        raise ModelError(
            budget.source, fields["weight_hr"][0], f"has shape {projection.shape}",
            f"give ({outputs}, cells)",
        )  # fmt: skip

    def split(field: str, array: Array) -> Array:
        return gates(budget.source, fields[field][0], array, cells, range(4))

    w_x, w_h = split("weight_ih", w_x), split("weight_hh", w_h)
    biases = [
        split(field, _take(fields, field, origin, budget).reshape(-1))
        for field in ("bias_ih", "bias_hh")
        if field in fields
    ]
    bias = total(biases) if biases else zero_bias(w_x)
    return FilePass(origin, w_x, w_h, bias, projection=projection, reverse=reverse)


def _own_pass(origin: str, fields: Fields, reverse: bool, budget: Budget) -> FilePass:
    """A pass as model folders name it; gates stand apart, in the order i, f, g, o."""
    arrays = {field: _take(fields, field, origin, budget) for field in ("w_x", "w_h", "bias")}
    if "peepholes" in fields:
        arrays["peepholes"] = _take(fields, "peepholes", origin, budget)
    return FilePass(origin, **arrays, reverse=reverse)  # type: ignore[arg-type]
