"""Evaluate a network in an arithmetic on an accelerator: outputs bit for bit, trace and cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.dataflow import Schedule, schedule_sequence
from epur_emu.engine_fp16 import LANES, PackedPass, level_number
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP16, LinearFormat
from epur_emu.network import LstmLayer, Network
from epur_emu.trace import Trace
from epur_emu.version import __version__

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerStats:
    """What happened in one pass, summed over all its evaluations.

    Parameters
    ----------
    name : str
    overflow : int
        Operations with a finite exact result that became infinite.
    underflow : int
        Operations of the MU whose result below the smallest normal value is not exact.
    """

    name: str
    overflow: int = 0
    underflow: int = 0


@dataclass
class Engine:
    """A network ready to be evaluated in one arithmetic.

    Parameters
    ----------
    network : Network
    arithmetic : Arithmetic
    order : {"epur", "epur-mwl"}
        Where sums are rounded: MWL finishes and stores the forward partial sums of a sequence first.
    alpha : mapping of str to float, optional
        Largest forward partial sum of each pass, by the pass's name; needed where MWL quantises.
    level : str, optional
        CPU level of the kernel: ``scalar``, ``avx2``, ``avx512``; by default the best, or `EPUR_SIMD`.
    check_finite : bool
        Whether weights and inputs that are not finite in the arithmetic's formats are refused.
    width : int
        DPU width: how many products an adder tree takes.

    Raises
    ------
    NetworkError
        A weight is not finite.
    FormatError
        The arithmetic or the width has no kernel, or the level can't run here.
    """

    network: Network
    arithmetic: Arithmetic
    order: str = "epur"
    alpha: Mapping[str, float] | None = None
    level: str | None = None
    check_finite: bool = True
    width: int = LANES

    def __post_init__(self) -> None:
        self._seen = {p.name: np.zeros(2, np.int64) for p in self.network.passes}
        self._level = level_number(self.level)
        a = self.arithmetic
        places = {a.weight, a.input, a.product, a.tree, a.accumulator, a.mu, a.cell, a.output}
        if a.bit_exact and (places != {FP16} or a.partial not in (FP16, LinearFormat(8))):
            raise FormatError(
                "arithmetic",
                a.name,
                "mixes formats that no kernel has",
                f"use {', '.join(ARITHMETICS)}",
            )
        if a.bit_exact and self.width != LANES:
            raise FormatError(
                "accelerator", "width", f"is {self.width}, no kernel has such an adder tree",
                f"use {LANES}, or arithmetic float32 for accesses and energy alone",
            )  # fmt: skip
        self._dtype = np.float16 if a.bit_exact else np.float32
        if self.check_finite:
            for layer in self.network.passes:
                layer.check_finite(self._dtype)

    @property
    def stats(self) -> dict[str, LayerStats]:
        """What was counted so far, by the pass's name."""
        return {name: LayerStats(name, *map(int, seen)) for name, seen in self._seen.items()}

    def _checked(self, layer: LstmLayer, values: npt.ArrayLike, what: str, axes: int) -> F32:
        array = np.asarray(values, np.float32)
        width = layer.inputs if what.startswith("input") else layer.cells
        if array.ndim != axes or array.shape[-1] != width:
            raise NetworkError(
                layer.name, what, f"has shape {array.shape}",
                f"give {'(T, ' if axes == 2 else '('}{width})",
            )  # fmt: skip
        if not self.check_finite:
            return array
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(self._dtype, copy=False))
        if not finite.all():
            index = [int(n) for n in np.argwhere(~finite)[0]]
            raise NetworkError(
                layer.name, f"{what}, index {index}",
                f"is {array[tuple(index)]}, not finite in {np.dtype(self._dtype)}",
                "give finite values, or switch the check off to let it propagate",
            )  # fmt: skip
        return array

    def sequence(
        self, inputs: npt.ArrayLike, initial: Sequence[tuple[F32, F32]] | None = None
    ) -> list[F32]:
        """Evaluate a sequence whose inputs are all known.

        Parameters
        ----------
        inputs : float array of shape (T, I)
        initial : sequence of (h, c), float arrays of shape (H,), optional
            Initial state of each pass, in order of passes; zero by default.

        Returns
        -------
        list of float32 arrays of shape (T, width)
            The output of each layer, the network's own last; values of the output format.

        Raises
        ------
        NetworkError
            A shape is wrong, a value is not finite, or MWL's scale of a pass is not known.
        """
        out: list[F32] = []
        x = np.asarray(inputs)
        states = iter(initial or ())
        for layer in self.network.layers:
            outputs = []
            for p in layer:
                checked = self._checked(
                    p, x, "input" if not out else "input from the layer before", 2
                )
                h = c = None
                if initial is not None:
                    h, c = next(states)
                    h, c = self._checked(p, h, "initial h", 1), self._checked(p, c, "initial c", 1)
                outputs.append(self._pass(p, checked, h, c))
            x = np.concatenate(outputs, -1)
            out.append(x)
        return out

    def _pass(self, p: LstmLayer, x: F32, h: F32 | None, c: F32 | None) -> F32:
        if not self.arithmetic.bit_exact:
            return self.floats[p.name].sequence(x, h, c)
        largest = alpha = None
        if self.order == "epur-mwl":
            largest = 0
            if isinstance(self.arithmetic.partial, LinearFormat):
                largest, alpha = self.arithmetic.partial.max, self._alpha(p)
        seen = self._seen[p.name]
        out, _ = self._packed[p.name].sequence(self._level, x, h, c, largest, alpha, seen)
        return out

    def _alpha(self, p: LstmLayer) -> float:
        alpha = (self.alpha or {}).get(p.name, 0.0)
        if not 0.0 < alpha < np.inf:
            raise NetworkError(
                p.name, "alpha", f"is {alpha}, MWL can't scale its partial sums",
                "calibrate the network on sample inputs, or keep them: arithmetic epur-fp16+fp16",
            )  # fmt: skip
        return alpha

    def step(self, layer: int, x: F32, h: F32, c: F32) -> tuple[F32, F32]:
        """One time step of one (unidirectional) layer for a batch of independent states.

        Always in E-PUR's order, as decoding is on either machine.

        Parameters
        ----------
        layer : int
        x : float32 array of shape (N, I)
        h, c : float32 arrays of shape (N, H)

        Returns
        -------
        h, c : float32 arrays of shape (N, H)
        """
        (p,) = self.network.layers[layer]
        x = self._checked(p, x, "input", 2)
        if not self.arithmetic.bit_exact:
            return self.floats[p.name].step(x, h, c)
        return self._packed[p.name].step(self._level, x, h, c, self._seen[p.name])

    @cached_property
    def _packed(self) -> dict[str, PackedPass]:
        return {p.name: PackedPass.of(p, self.arithmetic.clamp) for p in self.network.passes}

    @cached_property
    def floats(self) -> dict[str, FloatPass]:
        """The float32 reference of each pass, by its name."""
        return {p.name: FloatPass(p) for p in self.network.passes}


class FloatPass:
    """The float32 reference of one pass: ordinary matrix products, exp and tanh of numpy."""

    def __init__(self, layer: LstmLayer) -> None:
        cells = layer.cells
        self.reverse = layer.reverse
        self.w_x = layer.w_x.astype(np.float32).reshape(4 * cells, -1).T
        self.w_h = layer.w_h.astype(np.float32).reshape(4 * cells, -1).T
        self.bias = layer.bias.astype(np.float32).reshape(-1)
        self.peepholes = None if layer.peepholes is None else layer.peepholes.astype(np.float32)

    def forward(self, x: F32) -> F32:
        """Forward partial sums of all gates, (T, 4 H)."""
        out: F32 = x @ self.w_x
        return out

    def cell(self, sums: F32, c: F32) -> tuple[F32, F32]:
        """Gates, cell state and output from the finished sums (N, 4 H)."""
        i, f, g, o = np.split(sums + self.bias, 4, -1)
        if self.peepholes is not None:
            i, f = i + self.peepholes[0] * c, f + self.peepholes[1] * c
        with np.errstate(over="ignore"):
            c = np.tanh(g) / (1 + np.exp(-i)) + c / (1 + np.exp(-f))
            if self.peepholes is not None:
                o = o + self.peepholes[2] * c
            return np.tanh(c) / (1 + np.exp(-o)), c

    def sequence(self, x: F32, h: F32 | None, c: F32 | None) -> F32:
        """All time steps; (T, H)."""
        cells = len(self.w_h)
        h = np.zeros(cells, np.float32) if h is None else h
        c = np.zeros(cells, np.float32) if c is None else c
        forward = self.forward(x)
        out = np.empty((len(x), cells), np.float32)
        for t in reversed(range(len(x))) if self.reverse else range(len(x)):
            h, c = self.cell(forward[t] + h @ self.w_h, c)
            out[t] = h
        return out

    def step(self, x: F32, h: F32, c: F32) -> tuple[F32, F32]:
        """One time step of N states."""
        return self.cell(self.forward(x) + h @ self.w_h, c)


def calibrate(network: Network, sequences: Iterable[npt.ArrayLike]) -> dict[str, float]:
    """Largest magnitude of each pass's forward partial sums in float32, over sample inputs.

    Parameters
    ----------
    network : Network
    sequences : iterable of float arrays of shape (T, I)

    Returns
    -------
    dict of str to float
        By the pass's name: MWL's alpha.
    """
    engine = Engine(network, ARITHMETICS["float32"])
    alpha = {p.name: 0.0 for p in network.passes}
    for sequence in sequences:
        x = np.asarray(sequence, np.float32)
        inputs = [x, *engine.sequence(x)[:-1]]
        for layer, given in zip(network.layers, inputs, strict=True):
            for p in layer:
                sums = engine.floats[p.name].forward(given)
                alpha[p.name] = max(alpha[p.name], float(np.abs(sums).max(initial=0.0)))
    return alpha


@dataclass(frozen=True)
class Result:
    """What `emulate` gives.

    Parameters
    ----------
    outputs : float32 array of shape (T, width)
        The last layer's output, values of the output format.
    layers : tuple of float32 arrays of shape (T, width)
        Every layer's output.
    trace : Trace
    cycles : int
    stats : tuple of LayerStats
    """

    outputs: F32
    layers: tuple[F32, ...]
    trace: Trace
    cycles: int
    stats: tuple[LayerStats, ...]


def emulate(
    network: Network,
    inputs: npt.ArrayLike,
    arithmetic: Arithmetic = ARITHMETICS["epur-fp16"],
    accelerator: Accelerator | None = None,
    alpha: Mapping[str, float] | None = None,
    initial: Sequence[tuple[F32, F32]] | None = None,
    level: str | None = None,
    check_finite: bool = True,
) -> Result:
    """Run a sequence whose inputs are all known through a network on an accelerator.

    Parameters
    ----------
    network : Network
    inputs : float array of shape (T, I)
    arithmetic : Arithmetic
    accelerator : Accelerator, optional
        The preset ``epur`` by default; its dataflow decides where sums are rounded.
    alpha, initial, level, check_finite
        As for `Engine` and `Engine.sequence`.

    Returns
    -------
    Result

    Raises
    ------
    NetworkError, FormatError, AcceleratorError
        The input, the arithmetic or the sizes can't be used; the message says how to mend it.
    """
    accelerator = accelerator or Accelerator.load("epur")
    engine = Engine(
        network, arithmetic, accelerator.dataflow, alpha, level, check_finite, accelerator.width
    )
    layers = engine.sequence(inputs, initial)
    steps = len(layers[-1])
    schedule = schedule_sequence(network.shape, steps, arithmetic, accelerator, initial is not None)
    trace = trace_of([schedule], [network], [steps], arithmetic, accelerator)
    return Result(layers[-1], tuple(layers), trace, schedule.cycles, tuple(engine.stats.values()))


def trace_of(
    schedules: Sequence[Schedule],
    networks: Sequence[Network],
    steps: Sequence[int],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
) -> Trace:
    """The trace of schedules that follow one another, with what made it in its metadata."""
    meta = {
        "networks": [
            {"name": network.name, "weights": network.weight_hash, "steps": t}
            for network, t in zip(networks, steps, strict=True)
        ],
        "arithmetic": arithmetic.to_dict(),
        "accelerator": accelerator.to_dict(),
        "dataflow": accelerator.dataflow,
        "version": __version__,
    }  # fmt: skip
    phases = [phase for schedule in schedules for phase in schedule.phases]
    return Trace(phases, schedules[-1].components, schedules[-1].cycles, meta)
