"""Which format each place of the datapath uses, how it rounds, and how activations are computed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

from epur_emu.errors import FormatError
from epur_emu.formats import (
    FP16,
    FP32,
    INT8,
    MODES,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    Format,
    LinearFormat,
    parse,
)
from epur_emu.toml import read_toml

GATES = "ifgo"

#: What keeps a sum of two exponentials below the largest value of the MU's format.
HEADROOM = 0.0625

#: Places of the datapath, in the order in which a value passes them.
PLACES = (
    "weight", "input", "product", "tree", "accumulator", "mu", "cell", "output", "partial",
)  # fmt: skip

#: Places that round the results of operations; the others hold stored operands.
OPERATIONS = ("product", "tree", "accumulator", "mu", "cell")


@dataclass(frozen=True)
class Override:
    """Other formats for some layers and gates.

    Parameters
    ----------
    layers : str
        Pattern of the names of passes, as a shell would match them: ``encoder.*``.
    gates : str
        Letters of the gates' computation units: any of ``ifgo``.
    values : tuple of (str, value)
        Fields of `Arithmetic` and what they become: formats, ``activation``, ``clamp``.
    """

    layers: str
    gates: str
    values: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        if not self.gates or set(self.gates) - set(GATES):
            raise FormatError("override", "gates", f"are {self.gates!r}", f"use letters of {GATES}")
        for key, _ in self.values:
            if key not in (*PLACES, "activation", "clamp"):
                raise FormatError(
                    "override", key, "can't be a gate's own",
                    f"use {', '.join(PLACES)}, activation or clamp",
                )  # fmt: skip


@dataclass(frozen=True)
class Arithmetic:
    """Formats of the places of the datapath; every operation rounds once.

    `docs/arithmetic.md` says what is computed, operation by operation, and why it is exact.

    Parameters
    ----------
    name : str
    weight, input : Format
        Weights, biases and peepholes (biases and peepholes in the MU's format where weights are
        linear or in blocks); x_t and h_{t-1} as the DPU reads them. Both are rounded to nearest even.
    product, tree, accumulator : FloatFormat or FixedFormat
        Products; sums of the adder tree; the DPU's accumulator. Where weight and input are linear,
        products and sums of the tree are exact integers and all three are the one signed ``qN.0``
        whose width is the accumulator's.
    mu, cell : FloatFormat or FixedFormat
        Operations of the multifunctional unit; cell state.
    output : FloatFormat, FixedFormat or LinearFormat
        h_t.
    partial : Format
        How E-PUR+MWL stores forward partial sums: a `LinearFormat` quantises them on a calibrated
        scale; the DPU's result format (`sum`) keeps them.
    rounding : str
        One of `formats.MODES`; of the operations and of cell and output. Weights, inputs and linear
        or block quantisation are rounded to nearest even.
    seed : int
        Of stochastic rounding, 0 to 2**32 - 1.
    activation : str
        ``epur``: exponentials, sums and a quotient, each rounded; ``exact``: sigmoid and tanh rounded
        once; ``pwl-N``: N segments, one product and one sum.
    clamp : float
        The MU's comparator clamps the argument r of an activation to [-clamp, clamp] before any
        exponential, so that no exponential overflows (assumed: the paper does not say).
    bit_exact : bool
        False for ``float32``: ordinary float32 matrix products in numpy's order, the reference.
    overrides : tuple of Override
        Later ones win.

    Raises
    ------
    FormatError
        A place can't take its format.
    """

    name: str
    weight: Format
    input: Format
    product: FloatFormat | FixedFormat
    tree: FloatFormat | FixedFormat
    accumulator: FloatFormat | FixedFormat
    mu: FloatFormat | FixedFormat
    cell: FloatFormat | FixedFormat
    output: FloatFormat | FixedFormat | LinearFormat
    partial: Format
    rounding: str = "nearest-even"
    seed: int = 0
    activation: str = "epur"
    clamp: float = 11.0
    bit_exact: bool = True
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        def bad(field: str, problem: str, remedy: str) -> FormatError:
            return FormatError(f"arithmetic {self.name}", field, problem, remedy)

        plain = FloatFormat | FixedFormat
        for place in OPERATIONS:
            value = getattr(self, place)
            if not isinstance(value, plain):
                raise bad(place, f"is {value}", "use a float or fixed-point format")
        if isinstance(self.output, BlockFormat):
            raise bad("output", f"is {self.output}", "use a float, fixed-point or linear format")
        for place in ("input", "output"):
            value = getattr(self, place)
            if isinstance(value, LinearFormat) and value.per_row:
                raise bad(place, f"is {value}, and a vector has no rows", f"use int{value.bits}")
        if self.integer:
            wide = self.accumulator
            if not isinstance(wide, FixedFormat) or wide.fraction_bits or not wide.signed:
                raise bad("accumulator", f"is {wide} for integer products", "use qN.0, N up to 31")
            if not self.product == self.tree == wide:
                raise bad("product and tree", "are not the accumulator's", f"use {wide} for both")
        own = ("product", "tree", "accumulator") if self.integer else ()
        for place in PLACES:
            value = getattr(self, place)
            if isinstance(value, FixedFormat) and value.bits > 24 and place not in own:
                raise bad(place, f"is {value}, {value.bits} bits", "use at most 24 bits")
        kept = isinstance(self.partial, LinearFormat) or self.partial == self.sum
        if self.bit_exact and not kept:
            raise bad("partial", f"is {self.partial}", f"use intN, or {self.sum} to keep the sums")
        if self.rounding not in MODES:
            raise bad("rounding", f"is {self.rounding!r}", f"use one of {', '.join(MODES)}")
        if not 0 <= self.seed < 2**32:
            raise bad("seed", f"is {self.seed}", "use 0 to 4294967295")
        if not re.fullmatch(r"epur|exact|pwl-\d{1,4}", self.activation) or (
            self.segments is not None and not 2 <= self.segments <= 4096
        ):
            raise bad(
                "activation", f"is {self.activation!r}", "use epur, exact or pwl-N (N 2 to 4096)"
            )
        if not 0.0 < self.clamp < float("inf"):
            raise bad("clamp", f"is {self.clamp}", "use a positive number")
        if self.activation == "epur" and self.mu.max < 4:
            raise bad(
                "mu", f"is {self.mu}, too narrow for exponentials", "use activation exact or pwl-N"
            )
        for override in self.overrides:
            for gate in override.gates:
                self._with(override, gate)

    @property
    def integer(self) -> bool:
        """Whether the DPU computes with integer codes."""
        return isinstance(self.weight, LinearFormat) and isinstance(self.input, LinearFormat)

    @property
    def sum(self) -> FloatFormat | FixedFormat:
        """Format of the DPU's result: the accumulator's, or the MU's after integer sums."""
        return self.mu if self.integer else self.accumulator

    @property
    def limit(self) -> float:
        """Largest argument of an activation, a value of the MU's format."""
        largest = self.clamp
        if self.activation == "epur":
            largest = min(largest, math.log(self.mu.max) - HEADROOM)
        return self.bound(largest)

    def bound(self, largest: float) -> float:
        """The comparator's constant: `largest` cut to a value of the MU's format."""
        if isinstance(self.mu, FixedFormat):
            unit = self.mu.epsilon
        else:
            place = max(math.frexp(largest)[1] - 1, self.mu.min_exponent)
            unit = Fraction(2) ** (place - self.mu.mantissa_bits)
            if not self.mu.subnormals and largest < self.mu.min_normal:
                return 0.0
        return float(min(Fraction(largest) // unit * unit, self.mu.max))

    @property
    def segments(self) -> int | None:
        """N of ``pwl-N``."""
        return int(self.activation[4:]) if self.activation.startswith("pwl-") else None

    def _with(self, override: Override, gate: str) -> Arithmetic:
        values = dict(override.values)
        if "partial" in values or self.partial != self.sum:
            return replace(self, **values, overrides=())
        merged = replace(self, **values, partial=INT8, overrides=())
        return replace(merged, partial=merged.sum)  # sums that are kept stay so

    def at(self, layer: str, gate: str) -> Arithmetic:
        """What one gate's computation unit does in one pass; it has no overrides.

        Parameters
        ----------
        layer : str
            The pass's name.
        gate : {"i", "f", "g", "o"}
        """
        found = replace(self, overrides=()) if self.overrides else self
        for override in self.overrides:
            if gate in override.gates and fnmatchcase(layer, override.layers):
                found = found._with(override, gate)
        return found

    def check_layers(self, names: Iterable[str]) -> None:
        """Refuse overrides of layers that there are not, which would change nothing unseen.

        Parameters
        ----------
        names : iterable of str
            Of all passes that the arithmetic is for.

        Raises
        ------
        FormatError
            An override's pattern fits none of them.
        """
        known = list(dict.fromkeys(names))
        for override in self.overrides:
            if not any(fnmatchcase(name, override.layers) for name in known):
                raise FormatError(
                    f"arithmetic {self.name}", "overrides.layers",
                    f"is {override.layers!r}, which fits no layer",
                    f"use names or patterns of {', '.join(known)}",
                )  # fmt: skip

    def with_partial(self, partial: Format) -> Arithmetic:
        """The same with another format of stored partial sums (the DPU's own keeps them)."""
        return replace(self, name=f"{self.name.split('+')[0]}+{partial}", partial=partial)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the same Arithmetic back."""
        plain = {}
        for field in fields(self):
            value = getattr(self, field.name)
            plain[field.name] = str(value) if field.name in PLACES else value
        plain["overrides"] = [
            {"layers": o.layers, "gates": o.gates}
            | {k: str(v) if k in PLACES else v for k, v in o.values}
            for o in self.overrides
        ]
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Arithmetic:
        """Inverse of `to_dict`; fields with a default may be missing.

        Raises
        ------
        FormatError
            A key is missing or unknown, or a value can't be used.
        """
        known = {field.name for field in fields(cls)}
        needed = {"name", *PLACES}
        source = f"arithmetic {plain['name']}" if plain.get("name") else "arithmetic"
        if odd := sorted(set(plain) - known):
            raise FormatError(source, ", ".join(odd), "unknown", f"use {', '.join(sorted(known))}")
        if missing := sorted(needed - set(plain)):
            raise FormatError(
                source, ", ".join(missing), "missing", 'give all, or base = "epur-fp16"'
            )
        values = {key: _value(key, value) for key, value in plain.items()}
        values["overrides"] = tuple(_override(each) for each in plain.get("overrides", ()))
        return cls(**values)


def _value(key: str, value: Any) -> Any:
    kinds: dict[str, type] = {"seed": int, "clamp": float, "bit_exact": bool, "overrides": list}
    wanted = kinds.get(key, str)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise FormatError("arithmetic", key, f"is {value!r}", f"give a {wanted.__name__}")
    return parse(str(value)) if key in PLACES else value


def _override(plain: Any) -> Override:
    if not isinstance(plain, dict):
        raise FormatError("arithmetic", "overrides", f"hold {plain!r}", "give tables")
    own = {key: value for key, value in plain.items() if key not in ("layers", "gates")}
    for key in own:
        if key not in (*PLACES, "activation", "clamp"):
            raise FormatError(
                "override", key, "can't be a gate's own",
                f"use {', '.join(PLACES)}, activation or clamp",
            )  # fmt: skip
    gates, layers = plain.get("gates", GATES), plain.get("layers", "*")
    if isinstance(gates, list | tuple) and all(isinstance(gate, str) for gate in gates):
        gates = "".join(gates)
    for key, value in (("gates", gates), ("layers", layers)):
        if not isinstance(value, str):
            raise FormatError("override", key, f"is {value!r}", "give strings")
    return Override(layers, gates, tuple((key, _value(key, value)) for key, value in own.items()))


def _uniform(
    name: str, place: FloatFormat | FixedFormat, partial: Format, activation: str = "epur",
    bit_exact: bool = True,
) -> Arithmetic:  # fmt: skip
    return Arithmetic(
        name, place, place, place, place, place, place, place, place, partial,
        activation=activation, bit_exact=bit_exact,
    )  # fmt: skip


def _integer(bits: int) -> Arithmetic:
    """Products of `bits`-bit integers in a 24-bit accumulator (arXiv 1911.04244), fp16 in the MU."""
    code, wide = LinearFormat(bits), FixedFormat(23, 0)
    return Arithmetic(
        f"epur-int{bits}", LinearFormat(bits, per_row=True), code, wide, wide, wide, FP16, FP16, code,
        INT8,
    )  # fmt: skip


ARITHMETICS = {
    a.name: a
    for a in (
        _uniform("float32", FP32, FP32, bit_exact=False),
        _uniform("epur-fp16", FP16, partial=INT8),
        _uniform("epur-fp32", FP32, partial=INT8),
        *(_integer(bits) for bits in (8, 7, 6, 5, 4)),
    )
}


def arithmetic(name: str | os.PathLike[str]) -> Arithmetic:
    """An arithmetic by its preset's name, as ``epur-FORMAT``, or from a TOML file.

    ``NAME+FORMAT`` stores MWL's partial sums in another format; ``epur-FORMAT`` has one float or
    fixed-point format at every place (``epur-bf16``, ``epur-e4m3``, ``epur-q3.12``).

    A TOML file holds fields of `Arithmetic`; with ``base = "NAME"`` only those that differ. Tables
    ``[[overrides]]`` with ``layers``, ``gates`` and further fields give layers and gates their own.

    Raises
    ------
    FormatError
        There is none, or the file can't be used; the message lists the presets.
    """
    text = os.fspath(name)
    if text.endswith(".toml"):
        return _load(Path(text))
    preset, plus, partial = text.partition("+")
    found = ARITHMETICS.get(preset)
    if found is None and preset.startswith("epur-"):
        try:
            place = parse(preset[5:])
        except FormatError:
            place = None
        if isinstance(place, FloatFormat | FixedFormat):
            method = "epur" if isinstance(place, FloatFormat) else "exact"
            found = _uniform(preset, place, INT8, activation=method)
        elif place is not None:
            base = "epur-int8" if isinstance(place, LinearFormat) else "epur-fp16"
            raise FormatError(
                "arithmetic", repr(text), "has a format that can't stand at every place",
                f'write a TOML file: base = "{base}", weight = "{place}", input = "{place}"',
            )  # fmt: skip
    if found is None:
        raise FormatError(
            "arithmetic", repr(text), "is not known",
            f"use one of {', '.join(ARITHMETICS)}, epur-FORMAT (epur-bf16, epur-e4m3...) or a TOML file",
        )  # fmt: skip
    return found.with_partial(parse(partial)) if plus else found


def _load(path: Path) -> Arithmetic:
    plain = read_toml(path, FormatError, "give a TOML file of an arithmetic's fields")
    base = plain.pop("base", None)
    if base is not None:
        start = arithmetic(str(base)).to_dict()
        if "partial" not in plain and start["partial"] == str(arithmetic(str(base)).sum):
            start["partial"] = plain.get("accumulator", start["partial"])
        plain = {**start, "name": path.stem, **plain}
    return Arithmetic.from_dict({"name": path.stem, **plain})
