"""Evaluate a network in an arithmetic on an accelerator: outputs bit for bit, trace and cycles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.dataflow import (
    PhaseTiming,
    Policy,
    Schedule,
    dataflow_of,
    schedule_batch,
    schedule_sequence,
)
from epur_emu.dataflow.timing import total
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP32, FloatFormat, Format, LinearFormat
from epur_emu.network import GATES, LstmLayer, Network
from epur_emu.passes import COUNTED, EVENTS, LANES, PackedPass, level_number
from epur_emu.probe import check_probe, probe_sequences
from epur_emu.rounding import Counts, calibration, round_to
from epur_emu.trace import Trace
from epur_emu.version import __version__

F32 = npt.NDArray[np.float32]
R = TypeVar("R")

#: Weights of a network that is packed whole, whatever it takes: half a megabyte.
SMALL = 2**18


@dataclass(frozen=True)
class LayerStats:
    """What happened in one pass, summed over all its evaluations; `docs/arithmetic.md` says what counts.

    Parameters
    ----------
    name : str
    places : dict of str to dict of str to int
        ``overflow``, ``underflow`` and ``saturation`` of each place of the datapath.
    """

    name: str
    places: dict[str, dict[str, int]]

    def total(self, event: str) -> int:
        """Sum of one event over the places, weights apart."""
        return sum(row[event] for place, row in self.places.items() if place != "weight")

    @property
    def overflow(self) -> int:
        """Operations with a finite exact result that became infinite or not-a-number."""
        return self.total("overflow")

    @property
    def underflow(self) -> int:
        """Operations whose result below the normal range is not exact."""
        return self.total("underflow")

    @property
    def saturation(self) -> int:
        """Results that became the largest or smallest value, or wrapped."""
        return self.total("saturation")


@dataclass
class Engine:
    """A network ready to be evaluated in one arithmetic.

    Parameters
    ----------
    network : Network
    arithmetic : Arithmetic
    order : {"epur", "epur-mwl"}
        A dataflow's `rounds`, where sums are rounded: MWL finishes and stores the forward partial sums
        of a sequence first.
    alpha : mapping of str to float, optional
        Calibrated magnitudes, as `calibrate` gives them: by a pass's name its largest forward partial
        sum, needed where MWL quantises; by ``NAME.input`` and ``NAME.hidden`` those of x_t and
        h_{t-1}, needed where inputs are linear (1 by default for h, and for outputs of other layers).
    level : str, optional
        CPU level of the kernel: ``scalar``, ``avx2``, ``avx512``, ``avx512vnni``, ``avx512bf16``,
        ``avx512fp16``; by default the best, or `EPUR_SIMD`.
    check_finite : bool
        Whether weights and inputs that are not finite in the arithmetic's formats are refused.
    width : int
        DPU width: how many products an adder tree takes.
    count : bool
        Whether underflows in the DPU are counted; the other events always are.
    threads : int
        Sequences, passes of a layer, neurons of a pass, or parts of a batch of states evaluated at
        once; results do not depend on it.
    observer : Observer, optional
        Is shown what goes through the passes; float32 only.
    keep : bool
        Whether weights stay packed for further sequences; else those of a pass are there only while it
        runs, and of a layer that is most of its network W_x only in part, which takes less memory and
        suits a single sequence.

    Raises
    ------
    NetworkError
        A weight is not finite.
    FormatError
        The width has no kernel, or the level can't run here.
    """

    network: Network
    arithmetic: Arithmetic
    order: str = "epur"
    alpha: Mapping[str, float] | None = None
    level: str | None = None
    check_finite: bool = True
    width: int = LANES
    count: bool = True
    threads: int = 1
    observer: Observer | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        self._weight_counts: dict[str, Counts] = {}
        self._seen = {
            p.name: np.zeros((len(COUNTED), len(EVENTS)), np.int64) for p in self.network.passes
        }
        self._lock = Lock()
        self._level = level_number(self.level)
        a = self.arithmetic
        if a.bit_exact and self.width != LANES:
            raise FormatError(
                "accelerator", "width", f"is {self.width}, no kernel has such an adder tree",
                f"use {LANES}, or arithmetic float32 for accesses and energy alone",
            )  # fmt: skip
        if self.threads < 1:
            raise FormatError("engine", "threads", f"is {self.threads}", "give 1 or more")
        for layer in self.network.passes if self.check_finite else ():
            if not a.bit_exact:
                layer.check_finite()
                continue
            gates = [a.at(layer.name, gate).weight for gate in GATES]

            def rounded(gate: int, values: F32, gates: list[Format] = gates) -> F32:
                f = gates[gate]
                return values if isinstance(f, LinearFormat) else round_to(values, f)

            layer.check_finite(rounded, "/".join(dict.fromkeys(map(str, gates))))

    @property
    def stats(self) -> dict[str, LayerStats]:
        """What was counted so far, by the pass's name."""
        out = {}
        for p in self.network.passes:
            seen = self._seen[p.name]
            places = {
                place: dict(zip(EVENTS, map(int, row), strict=True))
                for place, row in zip(COUNTED, seen, strict=True)
            }
            if self.arithmetic.bit_exact:
                if p.name not in self._weight_counts:
                    self._packed_pass(p)
                places["weight"] = {e: getattr(self._weight_counts[p.name], e) for e in EVENTS}
            out[p.name] = LayerStats(p.name, places)
        return out

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Which path each pass's dot products take, by groups of gates; see `docs/arithmetic.md`."""
        return {name: packed.paths for name, packed in self._packed.items()}

    def _checked(self, layer: LstmLayer, values: npt.ArrayLike, what: str, axes: int) -> F32:
        given = np.asarray(values)
        if given.dtype.kind in "cmMSU":
            raise NetworkError(layer.name, what, f"is of dtype {given.dtype}", "give real numbers")
        array = given.astype(np.float32, copy=False)
        is_input = what.startswith("input")
        width = layer.inputs if is_input else layer.cells
        if array.ndim != axes or array.shape[-1] != width:
            raise NetworkError(
                layer.name, what, f"has shape {array.shape}",
                f"give {'(T, ' if axes == 2 else '('}{width})",
            )  # fmt: skip
        if not self.check_finite:
            return array
        finite = np.isfinite(array)
        formats = (
            [FP32] if not self.arithmetic.bit_exact or not is_input else self._inputs[layer.name]
        )
        for f in formats:
            if isinstance(f, FloatFormat) and f != FP32:
                finite &= np.abs(array) <= float(f.max)
                if not finite.all():  # near the largest value the rounding decides
                    finite = np.isfinite(array) & np.isfinite(round_to(array, f))
        if not finite.all():
            index = [int(n) for n in np.argwhere(~finite)[0]]
            raise NetworkError(
                layer.name, f"{what}, index {index}",
                f"is {array[tuple(index)]}, not finite in {'/'.join(map(str, formats))}",
                "give finite values, or switch the check off to let it propagate",
            )  # fmt: skip
        return array

    @cached_property
    def _inputs(self) -> dict[str, list[Format]]:
        """Formats of each pass's inputs."""
        return {
            p.name: list(dict.fromkeys(self.arithmetic.at(p.name, g).input for g in GATES))
            for p in self.network.passes
        }

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
            A shape is wrong, a value is not finite, or the calibration of a pass is not known.
        """
        return self._sequence(inputs, initial, self.threads)

    def _sequence(
        self,
        inputs: npt.ArrayLike,
        initial: Sequence[tuple[F32, F32]] | None,
        threads: int,
    ) -> list[F32]:
        out: list[F32] = []
        x = np.asarray(inputs)
        states = iter(initial or ())
        for layer in self.network.layers:
            what = "input from the layer before" if out else "input"
            jobs = []
            for p in layer:
                checked = self._checked(p, x, what, 2)
                h = c = None
                if initial is not None:
                    h, c = next(states)
                    h, c = self._checked(p, h, "initial h", 1), self._checked(p, c, "initial c", 1)
                jobs.append((p, checked, h, c, -(-threads // len(layer))))
            found = self._in_threads(self._pass, jobs, threads)
            x = np.concatenate(found, -1) if len(found) > 1 else np.ascontiguousarray(found[0])
            out.append(x)
        return out

    def sequences(self, inputs: Sequence[npt.ArrayLike]) -> list[list[F32]]:
        """Evaluate several sequences, `threads` of them at once; each as `sequence` does."""
        if self.arithmetic.bit_exact and self.keep:
            _ = self._packed  # once, before there are threads
        together = 1 if len(inputs) > 1 else self.threads
        return self._in_threads(self._sequence, [(x, None, together) for x in inputs], self.threads)

    @staticmethod
    def _in_threads(
        call: Callable[..., R], jobs: Sequence[tuple[Any, ...]], threads: int
    ) -> list[R]:
        if threads == 1 or len(jobs) < 2:
            return [call(*job) for job in jobs]
        with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
            return list(pool.map(lambda job: call(*job), jobs))

    def _pass(
        self, p: LstmLayer, x: F32, h: F32 | None, c: F32 | None, threads: int
    ) -> F32:
        if not self.arithmetic.bit_exact:
            reference = self.floats[p.name] if self.keep else FloatPass(p)
            out = reference.sequence(x, h, c)
            if self.observer is not None:
                self.observer.see(p.name, x, out, reference.forward(x))
            return out
        seen = np.zeros((len(COUNTED), len(EVENTS)), np.int64)
        out, _ = self._packed_pass(p).sequence(x, h, c, self.order == "epur-mwl", seen, threads)
        with self._lock:
            self._seen[p.name] += seen
        return out

    def step(self, layer: int, x: F32, h: F32, c: F32, index: int = 0) -> tuple[F32, F32]:
        """One time step of one (unidirectional) layer for a batch of independent states.

        Always in E-PUR's order, as decoding is on either machine.

        Parameters
        ----------
        layer : int
        x : float32 array of shape (N, I)
        h, c : float32 arrays of shape (N, H)
        index : int
            Number of the time step: random numbers of stochastic rounding depend on it.

        Returns
        -------
        h, c : float32 arrays of shape (N, H)
        """
        (p,) = self.network.layers[layer]
        x = self._checked(p, x, "input", 2)
        if not self.arithmetic.bit_exact:
            found = self.floats[p.name].step(x, h, c)
            if self.observer is not None:
                self.observer.see(p.name, x, np.concatenate((h, found[0])), None)
            return found
        part = -(-len(x) // self.threads) or 1
        jobs = [
            (p, *(v[n : n + part] for v in (x, h, c)), index) for n in range(0, len(x) or 1, part)
        ]
        results = self._in_threads(self._step, jobs, self.threads)
        if len(results) == 1:
            return results[0]
        return np.concatenate([r[0] for r in results]), np.concatenate([r[1] for r in results])

    def _step(self, p: LstmLayer, x: F32, h: F32, c: F32, index: int) -> tuple[F32, F32]:
        seen = np.zeros((len(COUNTED), len(EVENTS)), np.int64)
        found = self._packed[p.name].step(x, h, c, seen, index)
        with self._lock:
            self._seen[p.name] += seen
        return found

    @cached_property
    def _packed(self) -> dict[str, PackedPass]:
        return {p.name: self._pack(p) for p in self.network.passes}

    def _packed_pass(self, p: LstmLayer) -> PackedPass:
        return self._packed[p.name] if self.keep else self._pack(p, p.name not in self._large)

    @cached_property
    def _large(self) -> set[str]:
        """Passes of layers that are most of a network, unless that is small."""
        weights = [sum(p.w_x.size + p.w_h.size for p in layer) for layer in self.network.layers]
        most = max(sum(weights) / 2, SMALL)
        layers = zip(self.network.layers, weights, strict=True)
        return {p.name for layer, size in layers if size > most for p in layer}

    def _pack(self, p: LstmLayer, whole: bool = True) -> PackedPass:
        fed = not self.network.host_between and p not in self.network.layers[0]
        number = self.network.passes.index(p)
        packed = PackedPass.of(
            p, self.arithmetic, self.alpha or {}, number, self._level, self.count, fed, whole
        )
        self._weight_counts[p.name] = packed.weight_counts
        return packed

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
        self.clip = None if layer.clip is None else np.float32(layer.clip)
        self.peepholes = None if layer.peepholes is None else layer.peepholes.astype(np.float32)

    def forward(self, x: F32) -> F32:
        """Forward partial sums of all gates, (T, 4 H)."""
        out: F32 = x @ self.w_x
        return out

    def cell(self, sums: F32, c: F32) -> tuple[F32, F32]:
        """Gates, cell state and output from the finished sums (N, 4 H)."""
        sums = sums + self.bias
        i, f, g, o = (
            sums[..., n : n + len(self.w_h)] for n in range(0, sums.shape[-1], len(self.w_h))
        )
        if self.peepholes is not None:
            i, f = i + self.peepholes[0] * c, f + self.peepholes[1] * c
        i, f, g = self._clipped(i), self._clipped(f), self._clipped(g)
        with np.errstate(over="ignore"):
            c = np.tanh(g) / (1 + np.exp(-i)) + c / (1 + np.exp(-f))
            if self.peepholes is not None:
                o = o + self.peepholes[2] * c
            return np.tanh(c) / (1 + np.exp(-self._clipped(o))), c

    def _clipped(self, v: F32) -> F32:
        return v if self.clip is None else np.clip(v, -self.clip, self.clip)

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


class Observer:
    """What went through a network's passes in float32: samples of magnitudes, to calibrate on.

    Parameters
    ----------
    room : int
        Samples kept of each quantity; beyond, every second one is dropped, again and again.
    """

    def __init__(self, room: int = 2**20) -> None:
        self.room = room
        self._kept: dict[str, list[F32]] = {}
        self._stride: dict[str, int] = {}
        self._largest: dict[str, float] = {}

    def see(self, name: str, x: F32, h: F32, forward: F32 | None) -> None:
        """Take in a pass's inputs, outputs and forward sums."""
        for key, values in ((name, forward), (f"{name}.input", x), (f"{name}.hidden", h)):
            if values is None:
                continue
            sizes = np.abs(values).ravel()
            self._largest[key] = max(self._largest.get(key, 0.0), float(sizes.max(initial=0.0)))
            kept = self._kept.setdefault(key, [])
            kept.append(sizes[:: self._stride.setdefault(key, 1)])
            if sum(map(len, kept)) > self.room:
                self._kept[key] = [np.concatenate(kept)[::2]]
                self._stride[key] *= 2

    def alpha(self, bits: int = 8, method: str = "max") -> dict[str, float]:
        """Magnitudes that linear formats' largest codes should stand for.

        Parameters
        ----------
        bits : int
            Of the inputs' format, for ``mse``.
        method : {"max", "percentile", "mse"}
            How inputs are calibrated; see `rounding.calibration`. Of forward sums it is the largest.

        Returns
        -------
        dict of str to float
            ``NAME``, ``NAME.input`` and ``NAME.hidden`` of each pass.
        """
        out = {}
        for key, largest in self._largest.items():
            out[key] = largest
            if key.endswith((".input", ".hidden")) and method != "max":
                out[key] = float(calibration(np.concatenate(self._kept[key]), bits, method))
        return {key: value for key, value in out.items() if value > 0.0}


def calibrate(
    network: Network, sequences: Iterable[npt.ArrayLike], bits: int = 8, method: str = "max"
) -> dict[str, float]:
    """What quantities of a network reach in float32, over sample inputs.

    Parameters
    ----------
    network : Network
    sequences : iterable of float arrays of shape (T, I)
    bits, method
        As for `Observer.alpha`.

    Returns
    -------
    dict of str to float
        By a pass's name its largest forward partial sum (MWL's alpha), by ``NAME.input`` and
        ``NAME.hidden`` the magnitudes of x_t and h_{t-1} for linear formats.
    """
    observer = Observer()
    engine = Engine(network, ARITHMETICS["float32"], observer=observer)
    for sequence in sequences:
        engine.sequence(np.asarray(sequence, np.float32))
    return observer.alpha(bits, method)


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
    timing : tuple of PhaseTiming
        Where the cycles went.
    policies : tuple of Policy
        What was done where something did not fit.
    """

    outputs: F32
    layers: tuple[F32, ...]
    trace: Trace
    cycles: int
    stats: tuple[LayerStats, ...]
    timing: tuple[PhaseTiming, ...] = ()
    policies: tuple[Policy, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """What `emulate_batch` gives.

    Parameters
    ----------
    outputs : tuple of float32 arrays of shape (T, width)
        The last layer's output of each sequence.
    layers : tuple of tuples of such arrays
        Every layer's output, by sequence.
    trace, cycles, stats, timing, policies
        Of all sequences together; see `Result`.
    """

    outputs: tuple[F32, ...]
    layers: tuple[tuple[F32, ...], ...]
    trace: Trace
    cycles: int
    stats: tuple[LayerStats, ...]
    timing: tuple[PhaseTiming, ...]
    policies: tuple[Policy, ...]


def emulate(
    network: Network,
    inputs: npt.ArrayLike,
    arithmetic: Arithmetic = ARITHMETICS["epur-fp16"],
    accelerator: Accelerator | None = None,
    alpha: Mapping[str, float] | None = None,
    initial: Sequence[tuple[F32, F32]] | None = None,
    level: str | None = None,
    check_finite: bool = True,
    threads: int = 1,
    events: str | os.PathLike[str] | None = None,
) -> Result:
    """Run a sequence whose inputs are all known through a network on an accelerator.

    Parameters
    ----------
    network : Network
    inputs : float array of shape (T, I)
    arithmetic : Arithmetic
    accelerator : Accelerator, optional
        The preset ``epur`` by default; its dataflow decides where sums are rounded.
    alpha, initial, level, check_finite, threads
        As for `Engine` and `Engine.sequence`.
    events : path-like, optional
        Probe mode: every access is performed on models of the memories, and logged to this file as
        a single event; the trace of the result is that of the file.

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
        network, arithmetic, dataflow_of(accelerator).rounds, alpha, level, check_finite,
        accelerator.width, threads=threads, keep=False,
    )  # fmt: skip
    # What does not fit is refused before anything is computed; another shape of inputs, by the engine.
    steps = len(np.asarray(inputs)) if np.ndim(inputs) == 2 else 0
    given = initial is not None
    schedule = schedule_sequence(network.shape, steps, arithmetic, accelerator, given)
    if events is not None:
        check_probe(accelerator)
    layers = engine.sequence(inputs, initial)
    trace = trace_of([schedule], [network], [steps], arithmetic, accelerator)
    if events is not None:
        trace = probe_sequences(
            events, network, [inputs], [layers], [initial] if initial is not None else None,
            arithmetic, accelerator, trace.meta,
        )  # fmt: skip
    return Result(
        layers[-1], tuple(layers), trace, schedule.cycles, tuple(engine.stats.values()),
        schedule.timing, schedule.policies,
    )  # fmt: skip


def emulate_batch(
    network: Network,
    inputs: Sequence[npt.ArrayLike],
    arithmetic: Arithmetic = ARITHMETICS["epur-fp16"],
    accelerator: Accelerator | None = None,
    alpha: Mapping[str, float] | None = None,
    level: str | None = None,
    check_finite: bool = True,
    threads: int = 1,
    events: str | os.PathLike[str] | None = None,
) -> BatchResult:
    """Run several sequences that share each fetch of the weights; each one's bits are those it has alone.

    Parameters
    ----------
    network : Network
    inputs : sequence of float arrays of shape (T, I)
        T may differ.
    arithmetic : Arithmetic
    accelerator : Accelerator, optional
        The preset ``epur-batch`` by default.
    alpha, level, check_finite, threads
        As for `Engine`.
    events : path-like, optional
        As for `emulate`.

    Raises
    ------
    NetworkError, FormatError, AcceleratorError
        An input, the arithmetic or the sizes can't be used, or the dataflow takes no batches.
    """
    accelerator = accelerator or Accelerator.load("epur-batch")
    engine = Engine(
        network, arithmetic, dataflow_of(accelerator).rounds, alpha, level, check_finite,
        accelerator.width, threads=threads,
    )  # fmt: skip
    lengths = [len(np.asarray(x)) for x in inputs]
    schedule = schedule_batch(network.shape, lengths, arithmetic, accelerator)
    if events is not None:
        check_probe(accelerator)
    layers = tuple(tuple(found) for found in engine.sequences(inputs))
    trace = trace_of([schedule], [network], [lengths], arithmetic, accelerator)
    if events is not None:
        trace = probe_sequences(
            events, network, inputs, layers, None, arithmetic, accelerator, trace.meta
        )
    return BatchResult(
        tuple(found[-1] for found in layers), layers, trace, schedule.cycles,
        tuple(engine.stats.values()), schedule.timing, schedule.policies,
    )  # fmt: skip


def trace_of(
    schedules: Sequence[Schedule],
    networks: Sequence[Network],
    steps: Sequence[int | list[int]],
    arithmetic: Arithmetic,
    accelerator: Accelerator,
) -> Trace:
    """The trace of schedules that follow one another, with what made it in its metadata.

    `steps` has one entry for each network: its time steps, or a list of them for a batch.
    """
    meta = {
        "networks": [
            {"name": network.name, "weights": network.weight_hash, "steps": t}
            for network, t in zip(networks, steps, strict=True)
        ],
        "arithmetic": arithmetic.to_dict(),
        "accelerator": accelerator.to_dict(),
        "dataflow": accelerator.dataflow,
        "policies": [policy.to_dict() for s in schedules for policy in s.policies],
        "phases": [row.to_dict() for row in total(row for s in schedules for row in s.timing)],
        "version": __version__,
    }  # fmt: skip
    phases = [phase for schedule in schedules for phase in schedule.phases]
    return Trace(phases, schedules[-1].components, schedules[-1].cycles, meta)
