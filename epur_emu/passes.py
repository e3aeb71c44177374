"""A pass as the compiled kernels take it: weights packed, formats as numbers, the fastest exact path."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from epur_emu._kernels import lstm as kernels
    from epur_emu._kernels import packing
except ImportError as error:
    raise ImportError(
        f"the kernels are not built in {__package__} at {os.path.dirname(__file__)}: "
        "in the source tree, pip install -e . builds them"
    ) from error
from epur_emu import rounding
from epur_emu.activations import pwl_table
from epur_emu.arithmetic import GATES, Arithmetic
from epur_emu.errors import NetworkError
from epur_emu.formats import (
    BF16,
    FP16,
    FP32,
    MODES,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    Format,
    LinearFormat,
    unraising,
)
from epur_emu.integers import (
    IntegerMatrix,
    aligned_zeros,
    halves,
    magnitudes,
    multipliers,
    scales,
    some_rows,
)
from epur_emu.network import LstmLayer
from epur_emu.rounding import Counts, mix, quantise, round_to

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Plain = FloatFormat | FixedFormat
_Sums = tuple[F32, npt.NDArray[np.int32] | None, F64]

#: Neurons side by side in a block, and inputs in a sub-vector.
LANES = 16

#: Time steps whose forward products share one reading of the weights; most of them for integers, whose
#: products take less time than a reading.
BLOCK, MOST = 32, 128

#: Parts of W_x that are packed one after the other where it is not kept.
PORTIONS = 8

#: Sums of a gate that MWL stores at a time: more would only cost memory.
STORED = 2**14

#: Places in the order in which the kernels count them.
COUNTED = (
    "product", "tree", "accumulator", "mu", "cell", "output", "partial", "input",
)  # fmt: skip

#: Columns of the counts.
EVENTS = ("overflow", "underflow", "saturation")

BY_CHAIN, BY_GENERAL, BY_EXACT, BY_INTEGERS, BY_WIDE, BY_PAIRS, BY_HALVES = range(7)
PATHS = ("chain", "general", "exact", "integers", "wide", "pairs", "halves")
HALF, TOP, WIDE, PAIRED = range(4)
AS_IT_IS, ROUNDED, CODED, BLOCKED = range(4)
_TO_INFINITY, _TO_NAN, _SATURATE, _WRAP, _RAISE = range(5)
_FIXED = {"saturate": _SATURATE, "wrap": _WRAP, "raise": _RAISE}

#: Most bits of a significand for which sums may be rounded to float32 first: 24 >= 2 p + 2.
NARROW = 11
#: Most bits of a significand whose unit's multiples the general lanes can add and cut.
WIDEST = 22
#: Largest argument of an activation in float64 lanes.
FARTHEST = 128
#: Magnitudes beyond which the lanes' constants would leave float32's range.
SAFE = 2.0**100


def levels() -> tuple[str, ...]:
    """CPU levels that this machine can run, plainest first."""
    return tuple(kernels.LEVELS)


def level_number(name: str | None) -> int:
    """Number of a level by name; by default the one in ``EPUR_SIMD``, or else the best.

    Raises
    ------
    FormatError
        The level is unknown or not to be had on this CPU.
    """
    return rounding.level_number(name, levels())


# --- formats as numbers -----------------------------------------------------------------------


def _numbers(f: Plain) -> tuple[float, ...]:
    """``fmt`` of `datapath.h`."""
    if isinstance(f, FixedFormat):
        smallest = float(f.min_code * f.epsilon)
        return (1, f.fraction_bits, 0, _FIXED[f.overflow], 1, float(f.max), smallest, 2.0**f.bits)
    overflow = _SATURATE if f.saturate else _TO_NAN if f.specials == "fn" else _TO_INFINITY
    largest = float(f.max)
    return (
        0, f.mantissa_bits, f.min_exponent, overflow, f.subnormals, largest, -largest, 0,
    )  # fmt: skip


def _unit(f: Plain) -> float:
    """Least place of a format's values."""
    if isinstance(f, FixedFormat):
        return float(f.epsilon)
    return float(f.min_normal / 2**f.mantissa_bits)


def _least(f: Plain) -> float:
    """Of which a multiple is a value of the format, if that has the bits and the range."""
    return float(f.min_normal) if isinstance(f, FloatFormat) and not f.subnormals else _unit(f)


def _precision(f: Format) -> int:
    """Most bits of a value's significand."""
    if isinstance(f, FixedFormat):
        return f.bits
    if isinstance(f, FloatFormat):
        return f.precision
    return _precision(f.element) if isinstance(f, BlockFormat) else 24


def _lanes(f: Plain, terms: bool = False) -> tuple[float, ...] | None:
    """``lanes`` of `lstm_api.h`, or None where float32 lanes can't round to the format.

    With `terms`, products and sums of known magnitudes: any fixed point of which float32 holds the sums.
    """
    exponent = 0x7F800000
    if isinstance(f, FixedFormat):
        if (f.max_code >= 2**23) if terms else (not f.signed or f.bits > WIDEST):
            return None
        unit = float(f.epsilon)
        return (0, unit, 0.5, 1.5 * 2.0**23, float(f.max), unit, 0.0, 1.0)
    normal = float(f.min_normal)
    if f == FP32:
        return (exponent, normal, 0.0, 0.0, float(f.max), normal, 0.0, 0.0)
    if f.precision > WIDEST:
        return None
    m = f.mantissa_bits
    least, flush = (normal, 0.0) if f.subnormals else (normal / 2, normal)
    return (
        exponent, least, 2.0 ** -(m + 1), 1.5 * 2.0 ** (23 - m), min(float(f.max), SAFE), normal,
        flush, 2.0**-m,
    )  # fmt: skip


def _wide_lanes(f: Plain) -> tuple[float, ...] | None:
    """``lanes`` of float64, or None where they can't round to the format."""
    if isinstance(f, FixedFormat):
        unit = float(f.epsilon)
        narrow = f.signed and f.bits <= 24
        return (0, unit, 0.5, 1.5 * 2.0**52, float(f.max), unit, 0.0, 1.0) if narrow else None
    normal, m = float(f.min_normal), f.mantissa_bits
    least, flush = (normal, 0.0) if f.subnormals else (normal / 2, normal)
    return (
        0x7F800000, least, 2.0 ** -(m + 1), 1.5 * 2.0 ** (52 - m), float(f.max), normal, flush, 2.0**-m,
    )  # fmt: skip


def _holds(f: Plain, g: Plain) -> bool:
    """Whether all values of g are values of f."""
    finer = _precision(g) <= _precision(f) and _unit(g) >= _least(f)
    return f == g or (finer and g.max <= f.max)


def _double(a: Plain, b: Plain) -> bool:
    """Whether sums of values of a and b, rounded to b, may be rounded to float64 first."""
    top, unit = max(float(a.max), float(b.max)), min(_unit(a), _unit(b))
    if 2 * top <= 2.0**53 * unit:  # they are float64 values
        return True
    return isinstance(a, FloatFormat) and isinstance(b, FloatFormat) and a.precision <= b.precision


def _within(a: Plain, b: Plain) -> bool:
    """Whether sums of values of a and b, rounded to b, may be rounded to float32 first."""
    if b == FP32:
        return True
    if isinstance(a, FixedFormat) and isinstance(b, FixedFormat):
        places = max(a.fraction_bits, b.fraction_bits)
        return max(a.integer_bits, b.integer_bits) + places < 23
    return (
        isinstance(a, FloatFormat) and isinstance(b, FloatFormat)
        and a.precision <= b.precision <= NARROW and _unit(a) >= _unit(b)
    )  # fmt: skip


# --- weights ----------------------------------------------------------------------------------


@dataclass
class _Matrix:
    """W_x or W_h (4, H, I) of the gates `members`, on its way to ``matrix`` of `lstm_api.h`."""

    matrix: npt.NDArray[Any]
    members: Sequence[int]
    arithmetic: Arithmetic
    store: int
    drop: int | None  # bits to round off imported float16, or None: by `round_to`
    level: int
    tops: list[F32 | None]
    bounds: F64
    codes: npt.NDArray[Any] | None = None

    @property
    def subs(self) -> int:
        """Sub-vectors of a row."""
        return -(-int(self.matrix.shape[2]) // LANES)

    @property
    def blocks(self) -> int:
        """Blocks of neurons."""
        return -(-int(self.matrix.shape[1]) // LANES)

    def room(self, blocks: int) -> npt.NDArray[Any]:
        """Zeros for the codes of so many blocks, and for the row after them."""
        dtype = np.float32 if self.store == WIDE else np.uint16
        return aligned_zeros((blocks * 4 + 1, self.subs * LANES, LANES), dtype)

    def put(
        self, codes: npt.NDArray[Any] | None, begin: int, end: int, counts: Counts | None = None
    ) -> bool:
        """Rows of some blocks into codes, or only looked at; False if the store can't hold them."""
        a = self.arithmetic
        for n, top in zip(self.members, self.tops, strict=True):
            gate = self.matrix[n, begin * LANES : end * LANES]
            for part in some_rows(gate) if self.drop is None else [slice(0, len(gate))]:
                rows, to = gate[part], None
                direct = self.drop is not None
                values = halves(rows) if direct else _weights(rows, a, top, counts, self.level)
                if codes is not None:
                    to = codes[part.start // LANES * 4 + n :].reshape(-1).view(np.uint8)
                if not packing.pack_rows(
                    self.level, values, self.drop or 0, self.store, to, self.bounds
                ):
                    return False
        return True

    @property
    def fields(self) -> tuple[Any, ...]:
        """Flat array or None, store, rows, sub-vectors, and the bounds."""
        flat = None if self.codes is None else self.codes.reshape(-1)
        return flat, self.store, self.blocks * 4, self.subs, *self.bounds.tolist()


def _dropped(f: Format) -> int | None:
    """How many bits of finite float16 values, as float32, are rounded off; None if that is not all."""
    if not isinstance(f, FloatFormat):
        return None
    if _holds(f, FP16):
        return 0
    return 23 - f.mantissa_bits if f.exponent_bits == 8 and f.mantissa_bits else None


def _packed(
    matrix: npt.NDArray[Any], members: Sequence[int], a: Arithmetic, stores: Sequence[int], counts: Counts,
    level: int, whole: bool,
) -> _Matrix:  # fmt: skip
    """The gates `members` of a matrix (4, H, I) in the first of `stores` that holds them; others are 0.

    Unless `whole`, there are no codes yet, only bounds and counts.
    """
    tops = [_top(matrix[n], a, level) for n in members]
    drop = _dropped(a.weight) if matrix.dtype == np.float16 else None
    drops = (None,) if drop is None else (drop, None)
    for way, store in [(way, store) for way in drops for store in stores]:
        bounds, seen = np.array([0.0, 0.0, np.inf]), Counts()
        packed = _Matrix(matrix, members, a, store, way, level, tops, bounds)
        packed.codes = packed.room(packed.blocks) if whole else None
        if packed.put(packed.codes, 0, packed.blocks, seen):
            break
    for event in EVENTS:
        setattr(counts, event, getattr(counts, event) + getattr(seen, event))
    return packed


def _blocked(vectors: npt.NDArray[Any], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """(G, H) to (blocks * G, 16), flat: each block's vectors together."""
    gates, cells = vectors.shape
    blocks = -(-cells // LANES)
    padded = np.zeros((gates, blocks * LANES), dtype)
    padded[:, :cells] = vectors
    return np.ascontiguousarray(padded.reshape(gates, blocks, LANES).swapaxes(0, 1)).reshape(-1)


def _dequantised(codes: F64, top: Any, largest: int, product: Plain) -> F32:
    """``codes * top / largest`` in the product's format.

    The quotient in float64 is too exact to be rounded twice (see `stored`), unless all of its places
    count, as where large values wrap.
    """
    scaled = codes * top
    out = round_to(scaled / largest, unraising(product))
    if isinstance(product, FixedFormat) and product.overflow == "wrap":
        unit, span = Fraction(1, product.epsilon), int(product.max_code - product.min_code + 1)
        for at in zip(*np.nonzero(np.abs(scaled) > float(product.max)), strict=True):
            code = round(Fraction(float(scaled[at])) / largest * unit) - product.min_code
            out[at] = float((code % span + product.min_code) * product.epsilon)
    return out


def _top(matrix: npt.NDArray[Any], a: Arithmetic, level: int) -> F32 | None:
    """A gate's largest magnitude where its rows' codes share one."""
    if not isinstance(a.weight, LinearFormat) or a.weight.per_row:
        return None
    top: F32 = magnitudes(matrix, level).max(keepdims=True)
    return top[:, None]


def _weights(
    values: npt.NDArray[Any], a: Arithmetic, top: F32 | None, counts: Counts | None, level: int
) -> F32:
    """Rows of one gate (rows, I) as the multiplier takes them; top: as `_top` has it."""
    v = _scratch("weights", values.shape, np.float32)
    if values.dtype == np.float16:
        packing.widened(level, halves(values).reshape(-1), v.reshape(-1))
    else:
        v[...] = values
    if not isinstance(a.weight, LinearFormat):
        return round_to(v, a.weight, counts=counts, out=v)
    top = magnitudes(v, level)[:, None] if top is None else top
    top = np.where(top > 0, top, np.float32(1))
    with np.errstate(invalid="ignore"):
        codes = quantise(v, a.weight, top, counts).astype(np.float64)
    return _dequantised(codes, top.astype(np.float64), a.weight.max, a.product)


def _side(values: npt.NDArray[Any], a: Arithmetic, counts: Counts) -> F32:
    """Biases or peepholes of one gate (H,) as the MU takes them."""
    v = np.asarray(values, np.float32)
    if isinstance(a.weight, FloatFormat | FixedFormat):
        v = round_to(v, a.weight, counts=counts)
    return round_to(v, a.mu, counts=counts)


# --- a gate's unit ------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _units(a: Arithmetic, clip: float | None) -> tuple[Any, ...]:
    """``unit`` of `datapath.h`."""
    output = a.mu if isinstance(a.output, LinearFormat) else a.output
    places = (a.product, a.tree, a.accumulator, a.mu, a.cell, output)
    method = {"epur": 0, "exact": 1}.get(a.activation, 2)
    slopes = intercepts = None
    if a.segments is not None:
        tables = [pwl_table(kind, a.segments, a.mu) for kind in ("sigmoid", "tanh")]
        slopes, intercepts = (
            np.concatenate([t[n] for t in tables]).astype(np.float64) for n in (0, 1)
        )
    numbers = tuple(_numbers(f) for f in places)
    return (
        numbers, MODES.index(a.rounding), method, a.limit, a.bound(clip) if clip else np.inf,
        a.segments or 0, slopes, intercepts,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _multifunctional(a: Arithmetic) -> dict[str, Any] | None:
    """What ``mu_call`` or ``mu_wides`` need of a gate's arithmetic, or None where neither form applies."""
    output = a.mu if isinstance(a.output, LinearFormat) else a.output
    places = (a.mu, a.cell, output)
    found = _of_narrow(a) if places == (a.mu,) * 3 else None
    if found is None:
        wide = [_wide_lanes(f) for f in places]
        found = None if None in wide or a.limit > FARTHEST else {"places": wide}
    return found and found | {"limit": a.limit}


def _store(f: FloatFormat) -> int | None:
    """Which 16 bits are codes of a format's values."""
    if f.precision > NARROW:
        return None
    if _unit(f) >= 2.0**-24 and f.max <= 65504:
        return HALF
    return TOP if f.mantissa_bits <= 7 else None


def _of_narrow(a: Arithmetic) -> dict[str, Any] | None:
    f, lanes = a.mu, _lanes(a.mu)
    store = _store(f) if isinstance(f, FloatFormat) else None
    if lanes is None or store is None or a.rounding == "stochastic":
        return None
    tables = [kernels.activation_table(_units(a, None), tangent, store) for tangent in (0, 1)]
    if any(t is None for t in tables):
        return None
    return {
        "format": lanes, "mode": MODES.index(a.rounding), "store": store,
        "infinite": isinstance(f, FloatFormat) and f.specials == "ieee" and not f.saturate,
        "sigmoid": tables[0], "tanh": tables[1],
    }  # fmt: skip


def _operand(
    f: Format, source: Format | None, product: Plain, alpha: float | None
) -> tuple[Any, ...]:
    """``operand`` of `pass.h`: how values (of the format `source`, if known) reach the multiplier."""
    if isinstance(f, LinearFormat):
        assert alpha is not None
        codes, top = np.arange(-f.max, f.max + 1, dtype=np.float64), float(np.float32(alpha))
        return (CODED, None, f.max, top, _dequantised(codes, top, f.max, product), 0, 0)
    if isinstance(f, BlockFormat):
        return (BLOCKED, _numbers(f.element), 0, 0.0, None, f.block, f.max_exponent)
    if f in (FP32, source):
        return (AS_IT_IS, None, 0, 0.0, None, 0, 0)
    return (ROUNDED, _numbers(f), 0, 0.0, None, 0, 0)


def _codes(f: LinearFormat, alpha: float) -> tuple[Any, ...]:
    """The operand of integer products."""
    return (CODED, None, f.max, float(np.float32(alpha)), None, 0, 0)


_kept = local()


def _scratch(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array that holds anything, the thread's own: fresh pages for every call would take time to clear."""
    size = math.prod(shape)
    kept: npt.NDArray[Any] | None = getattr(_kept, name, None)
    if kept is None or len(kept) < size:
        setattr(_kept, name, None)  # freed before the new one is there
        kept = np.empty(size, dtype)
        setattr(_kept, name, kept)
    return kept[:size].reshape(shape)


@contextmanager
def _crew(threads: int) -> Iterator[tuple[kernels.Crew | None, int]]:
    """Threads for a pass, and how many they are with one's own; none if that is alone."""
    parts = min(threads, kernels.MOST_PARTS)
    if parts < 2:
        yield None, 1
        return
    crew = kernels.Crew(parts)
    with ThreadPoolExecutor(parts - 1) as others:
        try:
            for part in range(1, parts):
                others.submit(crew.assist, part)
            yield crew, parts
        finally:
            crew.dismiss()


@dataclass
class PackedPass:
    """One pass, packed.

    Use `of`; `sequence` and `step` evaluate.
    """

    layer: LstmLayer
    arithmetic: Arithmetic
    alpha: Mapping[str, float]
    compiled: Any
    paths: tuple[str, ...]
    groups: int
    integers: bool
    counted: bool
    weight_counts: Counts
    gates: tuple[Arithmetic, ...]
    streamed: tuple[_Matrix, ...] = ()  # each group's W_x, if it is packed only as it is needed

    @classmethod
    def of(
        cls, layer: LstmLayer, arithmetic: Arithmetic, alpha: Mapping[str, float], index: int, level: int,
        counted: bool, reads_layer: bool, whole: bool = True,
    ) -> PackedPass:  # fmt: skip
        """Round and rearrange a layer's weights.

        Parameters
        ----------
        alpha : mapping of str to float
            Calibrated magnitudes, see `emulator.calibrate`.
        index : int
            Position of the pass in its network.
        level : int
        counted : bool
            Whether underflows in the DPU are counted.
        reads_layer : bool
            Whether the pass reads another layer's outputs only.
        whole : bool
            Whether W_x is packed once and kept. Else `sequence` packs some neurons at a time, again for
            every block of time steps, and there is no `step`; integers are kept all the same.

        Raises
        ------
        NetworkError
            The range of the inputs is not known where they are quantised.
        """
        gates = tuple(arithmetic.at(layer.name, g) for g in GATES)
        counts = Counts()
        blocks, subs = -(-layer.cells // LANES), -(-layer.inputs // LANES)
        ranges = _ranges(layer.name, gates, alpha, reads_layer)
        distinct = list(dict.fromkeys(_dpu(a) for a in gates))
        whole |= any(a.integer for a in gates)
        groups = []
        for key in distinct:
            members = [n for n, a in enumerate(gates) if _dpu(a) == key]
            group = _group(layer, gates, members, ranges, blocks, counted, level, counts, whole)
            form = gates[members[0]].input
            group["counts_input"] = form not in [gates[k].input for k in range(members[0])]
            groups.append(group)
        units = [_units(a, layer.clip) for a in gates]
        mu = _multifunctional(gates[0]) if len({_mu(a) for a in gates}) == 1 else None
        # In lanes c_t for a peephole is rounded in the mode.
        nearest = gates[0].rounding == "nearest-even"
        if layer.peepholes is not None and not nearest and not _holds(gates[0].mu, gates[0].cell):
            mu = None
        if mu is not None:
            same = all(a.integer or a.accumulator == a.mu for a in gates)
            mu = mu | {"same": same, "clip": min(units[0][4], gates[0].limit)}
        bias = np.stack([_side(layer.bias[n], a, counts) for n, a in enumerate(gates)])
        peep = None
        if layer.peepholes is not None:
            owners = (gates[0], gates[1], gates[3])
            peep = _blocked(
                np.stack(
                    [_side(w, a, counts) for w, a in zip(layer.peepholes, owners, strict=True)]
                )
            )
        out = gates[3].output
        output = None
        if isinstance(out, LinearFormat):
            output = _operand(out, None, FP32, ranges[1])
        stream = mix(mix(np.full(1, arithmetic.seed, np.uint32)) ^ np.uint32(index))
        compiled = kernels.Pass(
            level, counted, layer.cells, blocks, subs, int(stream[0]), units, groups, _blocked(bias), peep,
            mu, output,
        )  # fmt: skip
        return cls(
            layer, arithmetic, alpha, compiled, tuple(PATHS[g["path"]] for g in groups), len(groups),
            any("codes" in g for g in groups), counted, counts, gates,
            () if whole else tuple(g["w_x"] for g in groups),
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Cells, padded to whole blocks."""
        return -(-self.layer.cells // LANES) * LANES

    def state(self, values: npt.ArrayLike | None, what: Plain | LinearFormat) -> F32:
        """A new array: a state rounded and padded, or one state of zeros."""
        if values is None:
            return np.zeros(self.width, np.float32)
        cells = self.layer.cells
        v = np.asarray(values, np.float32)
        if cells == self.width and not isinstance(what, LinearFormat):
            return round_to(v, unraising(what))
        out = np.zeros((*v.shape[:-1], self.width), np.float32)
        if isinstance(what, LinearFormat):
            out[..., :cells] = stored(
                v, what.max, float(self.alpha.get(f"{self.layer.name}.hidden", 1.0)), FP32
            )
        else:
            out[..., :cells] = round_to(v, unraising(what))
        return out

    def _arrays(self, count: int) -> _Sums:
        rows = self.width // LANES * 4
        sums = _scratch("sums", (count, rows + 1, LANES), np.float32)
        isums = None
        if self.integers:
            isums = _scratch("integers", (self.groups, count, rows * LANES), np.int32)
        return sums, isums, np.empty((count, self.groups))

    def sequence(
        self, inputs: npt.ArrayLike, h: npt.ArrayLike | None, c: npt.ArrayLike | None, separate: bool,
        counts: I64, threads: int = 1,
    ) -> tuple[F32, F32]:  # fmt: skip
        """All time steps; returns h (T, cells) and the last c (cells,).

        Parameters
        ----------
        separate : bool
            Whether forward sums are finished and stored first (MWL), or go on (E-PUR).
        counts : int64 array of shape (8, 3)
            Of `COUNTED` places and `EVENTS`; added to.
        threads : int
            They share the neurons of each time step.
        """
        x = np.require(inputs, np.float32, ["C", "A"])
        out = np.empty((len(x), self.width), np.float32)
        state = self.state(h, self.gates[3].output)
        cell = self.state(c, self.gates[2].cell)
        seen, raised = np.zeros((len(COUNTED), len(EVENTS) + 1), np.int64), np.full(1, -1, np.int64)
        with _crew(min(threads, self.width // LANES)) as (crew, parts):
            block = self._block(len(x), parts)
            part = min(block, BLOCK) if self.streamed else block
            rooms = _scratch("room", (-(-block // part), self.compiled.room(part, parts)), np.int8)
            starts = list(range(0, len(x), block))
            if self.layer.reverse:
                starts.reverse()
            codes = self._portion()
            for start in starts:
                values, results = x[start : start + block], out[start : start + block]
                sums, isums, bound = self._arrays(len(values))
                some = [slice(k, k + part) for k in range(0, len(values), part)]
                for _ in self._forward_weights(codes):
                    for k, room in zip(some, rooms, strict=False):
                        self.compiled.forward(
                            values[k], sums[k], isums, bound[k], start + k.start, 1, seen, raised, crew, room
                        )  # fmt: skip
                if separate:
                    if isums is not None:
                        self.compiled.convert(sums, isums, start, seen)
                    few = max(STORED // self.width, 1)
                    for first in range(0, len(values), few):
                        self._store(sums[first : first + few], seen)
                self.compiled.recurrent(
                    sums, isums, bound, separate, state, cell, results, self.layer.reverse, start, seen,
                    raised, crew, rooms[0],
                )  # fmt: skip
        self._taken(seen, int(raised[0]), counts)
        cells = self.layer.cells
        return out[:, :cells], cell[:cells]

    def _portion(self) -> list[npt.NDArray[Any]]:
        """Room for the part of each group's W_x that is packed at a time: fours of blocks, padded by no row."""
        return [m.room(-(-m.blocks // PORTIONS // 4) * 4) for m in self.streamed]

    def _forward_weights(self, codes: list[npt.NDArray[Any]]) -> Iterator[None]:
        """W_x in the kernels' hands: the whole, or some blocks of neurons after others, in `_portion`."""
        if not codes:
            yield
            return
        blocks, some = self.width // LANES, len(codes[0]) // 4
        for begin in range(0, blocks, some):
            end = min(begin + some, blocks)
            for m, to in zip(self.streamed, codes, strict=True):
                m.put(to, begin, end)
                to[(end - begin) * 4] = 0
            self.compiled.lend([to.reshape(-1).view(np.uint8) for to in codes], begin, end)
            yield

    def _block(self, steps: int, parts: int) -> int:
        """Time steps of a block: equal parts.

        Sums of integers take no more than a quarter of 16-bit weights. Where W_x is packed anew for each
        block, this has as many steps as take, with their rooms, three quarters of a 16-bit W_x.
        """
        cells, inputs, most = self.layer.cells, self.layer.inputs, BLOCK
        if self.integers:
            most = min(max((inputs + cells) // 16, BLOCK), MOST)
        elif self.streamed:
            each = BLOCK * 16 * self.width + self.compiled.room(BLOCK, parts)
            most = max(6 * cells * inputs // each, 1) * BLOCK
        return -(-steps // -(-steps // most)) if steps else 1

    def step(
        self, x: npt.ArrayLike, h: npt.ArrayLike, c: npt.ArrayLike, counts: I64, index: int
    ) -> tuple[F32, F32]:
        """One time step of N independent states: x (N, I), h and c (N, H) to h and c."""
        assert not self.streamed
        x = np.require(x, np.float32, ["C", "A"])
        sums, isums, bound = self._arrays(len(x))
        seen, raised = np.zeros((len(COUNTED), len(EVENTS) + 1), np.int64), np.full(1, -1, np.int64)
        room = _scratch("room", (self.compiled.room(max(len(x), 1)),), np.int8)
        state = self.state(h, self.gates[3].output)
        cell = self.state(c, self.gates[2].cell)
        self.compiled.forward(x, sums, isums, bound, index, 0, seen, raised, None, room)
        self.compiled.step(sums, isums, bound, state, cell, index, 0, seen, raised, room)
        self._taken(seen, int(raised[0]), counts)
        cells = self.layer.cells
        return state[:, :cells], cell[:, :cells]

    def _store(self, sums: F32, seen: I64) -> None:
        """MWL's storing of forward sums (T, rows + 1, 16) and their reading back, in place."""
        row = seen[COUNTED.index("partial")]
        for n, a in enumerate(self.gates):
            if not isinstance(a.partial, LinearFormat):
                continue
            alpha = _partial_alpha(self.layer.name, self.alpha)
            real = sums[:, n:-1:4].reshape(len(sums), -1)[:, : self.layer.cells]
            padded = np.zeros((len(sums), self.width), np.float32)
            padded[:, : self.layer.cells] = stored(real, a.partial.max, alpha, a.sum, row)
            sums[:, n:-1:4] = padded.reshape(len(sums), -1, LANES)

    def _taken(self, seen: I64, raised: int, counts: I64) -> None:
        """Add what an evaluation counted to `counts`; end where a format that raises was left."""
        for n in np.flatnonzero(seen[:, len(EVENTS)]):
            where = COUNTED[n]
            # Results of integer sums are counted with the accumulator, but have the MU's format.
            formats = [getattr(a, place) for place in (where, "mu") for a in self.gates]
            f = next(f for f in formats if isinstance(f, FixedFormat) and f.overflow == "raise")
            if raised >= 0:
                where += f", gate {GATES[raised % 4]}, neuron {raised // 4}"
            raise NetworkError(
                self.layer.name, where, f"left the range of {f}",
                f"use more bits, or let it saturate: {str(f).removesuffix('-raise')}",
            )  # fmt: skip
        if not self.counted:  # the exact path has counted some
            seen[: COUNTED.index("mu"), EVENTS.index("underflow")] = 0
        counts += seen[:, : len(EVENTS)]


def _dpu(a: Arithmetic) -> tuple[Any, ...]:
    return (
        a.weight,
        a.input,
        a.product,
        a.tree,
        a.accumulator,
        a.rounding,
        a.mu if a.integer else None,
    )


def _mu(a: Arithmetic) -> tuple[Any, ...]:
    return (a.mu, a.cell, a.output, a.rounding, a.activation, a.clamp)


def _ranges(
    name: str, gates: Sequence[Arithmetic], alpha: Mapping[str, float], reads_layer: bool
) -> tuple[float, float]:
    """Largest |x| and |h| that codes stand for."""
    hidden = float(alpha.get(f"{name}.hidden", 1.0))
    given = float(alpha.get(f"{name}.input", 1.0 if reads_layer else 0.0))
    linear = any(isinstance(f, LinearFormat) for a in gates for f in (a.input, a.output))
    for what, value in ((f"{name}.input", given), (f"{name}.hidden", hidden)):
        if linear and not 0.0 < value < np.inf:
            raise NetworkError(
                name, f"alpha {what!r}", f"is {value}, so that inputs can't be quantised",
                "calibrate the network on sample inputs, or use a float format for inputs",
            )  # fmt: skip
    return given, hidden


def _partial_alpha(name: str, alpha: Mapping[str, float]) -> float:
    found = float(alpha.get(name, 0.0))
    if not 0.0 < found < np.inf:
        raise NetworkError(
            name, "alpha", f"is {found}, MWL can't scale its partial sums",
            "calibrate the network on sample inputs, or keep them: arithmetic epur-fp16+fp16",
        )  # fmt: skip
    return found


def _group(
    layer: LstmLayer, gates: Sequence[Arithmetic], members: Sequence[int], ranges: tuple[float, float],
    blocks: int, counted: bool, level: int, counts: Counts, whole: bool,
) -> dict[str, Any]:  # fmt: skip
    """Fields of ``group`` of `pass.h` for the gates `members`, which share their DPU's arithmetic."""
    a = gates[members[0]]
    rows = [b * 4 + g for b in range(blocks) for g in members]
    order = np.array(rows + [blocks * 4] * (-len(rows) % 4), np.int32)
    group: dict[str, Any] = {"order": order, "real": len(rows)}
    if a.integer:
        return group | _integer_group(layer, a, members, ranges, level, counts)
    places = (a.product, a.tree, a.accumulator)
    steps = [_within(a.product, a.tree), _within(a.tree, a.tree), _within(a.tree, a.accumulator),
             _within(a.accumulator, a.accumulator)]  # fmt: skip
    nearest = a.rounding == "nearest-even"
    cut = NARROW if a.rounding == "stochastic" else WIDEST if a.rounding == "nearest-away" else 24
    lanes = [_lanes(a.product, True), _lanes(a.tree, True), _lanes(a.accumulator)]
    if _precision(a.accumulator) > cut:
        lanes[2] = None  # float64 lanes then have it
    innocuous = all(steps) and all(lanes)
    operands = (_multiplicand(a.weight, a.product), _multiplicand(a.input, a.product))
    bits = sum(_precision(f) for f in operands)
    flushes = not all(isinstance(f, FloatFormat) and f.subnormals for f in places)
    path, domains = BY_WIDE, None
    if all(lanes[:2]) and _in_lanes(a, cut):
        path = BY_GENERAL
        short = a.product == FP32 or (_precision(a.product) <= NARROW and bits <= 23)
        if nearest and innocuous and short:
            domains = _domains(a, math.prod(map(_lowest, operands)))
        if domains is not None and not (counted and domains[0]):
            path = BY_CHAIN
    if path == BY_WIDE:
        sums = ((a.product, a.tree), (a.tree, a.tree), (a.tree, a.accumulator))
        innocuous = all(_double(*pair) for pair in sums)
    if path == BY_CHAIN and _pairs(a, operands, level):
        path = BY_PAIRS
    if path == BY_CHAIN and _halves(a, operands, level):
        path = BY_HALVES
    stores = (PAIRED, WIDE) if path == BY_PAIRS else (HALF, TOP, WIDE)
    packed = [
        _packed(matrix, members, a, stores, counts, level, kept)
        for matrix, kept in ((layer.w_x, whole), (layer.w_h, True))
    ]
    order_of = [2.0 ** (24 - _precision(f)) for f in places]
    subs = sum(p.subs for p in packed)
    # Near zero a rounding adds up to a unit, however small the value; without subnormals it is a relative one.
    units = [0.0 if isinstance(f, FloatFormat) and not f.subnormals else _unit(f) for f in places]
    step = 1 + 2.0 ** ((not a.rounding.startswith("nearest")) - min(map(_precision, places)))
    if a.rounding == "zero":  # adds nothing
        step, units = 1.0, [0.0] * 3
    growth = step ** (subs + 5) if (subs + 5) * math.log2(step) < 1000 else math.inf
    # Nothing but 0 is sure to lie in an unsigned format's range.
    tops = [min(float(f.max), SAFE) if getattr(f, "signed", True) else 0.0 for f in places]
    near_zero = 16 * units[0] + 15 * units[1]
    limit, tree_limit = 0.0, min(tops[:2]) / step**5 - near_zero
    if a.rounding.startswith("nearest"):
        # The nearest value is no farther than the accumulator before: it grows by twice what is added at most.
        growth = min(growth, 2 * step**5)
        # A sum of products is at most doubled, and later ones near zero are exact.
        tree_limit = max(tree_limit, min(tops[:2]) / (2 * step**5) - 16 * units[0])
        if _unit(a.product) >= _unit(a.tree):
            # A product is at most doubled, and sums near zero are exact.
            limit, tree_limit = tops[2] / (4 * step**5), max(tree_limit, min(tops[:2]) / (2 * step**5))
    limit = max(limit, tops[2] / growth - subs * (near_zero + units[2])) if lanes[2] else -1.0
    least_product = 0.0
    if min(_lowest(f) for f in operands) ** 2 < 2.0**-149:
        least_product = 2.0 ** (bits - 2 - 149)
    normal = float(getattr(a.product, "min_normal", 0))
    exact_pairs = 2 * float(a.product.max) <= 2.0**24 * _unit(a.product)  # sums of two are float32 values
    exact_products = _exact_products(a, operands)
    product = 0.0 if a.product == FP32 or exact_products else order_of[0]
    return group | {
        "path": path, "w": [p.fields for p in packed], "w_x": packed[0],
        "lanes": [f or (0.0,) * 8 for f in lanes],
        "mode": MODES.index(a.rounding), "innocuous": innocuous,
        "within": (steps[0] or exact_pairs, steps[1], steps[2] and steps[3]),
        "narrows": not innocuous or flushes, "exact_products": exact_products,
        "limit": limit, "tree_limit": max(tree_limit, 0.0), "tame_limit": _tame_limit(a, step, near_zero),
        "wraps": any(map(_wraps, places[:2])), "wraps_far": not _near(a),
        "far": any(isinstance(f, FixedFormat) and f.max_code >= 2**22 - 1 for f in places[:2])
        or (a.tree.max > SAFE and getattr(a.tree, "saturate", False) and a.product.max <= SAFE),
        "lanes_limit": _lanes_limit(a) / step**5 - near_zero, "least_product": least_product,
        "chain": (product, *order_of[1:], 1.5 * normal, normal, *(domains or (0.0, 1.0))),
        "operand": (
            _operand(a.input, None, a.product, ranges[0]),
            _operand(a.input, gates[3].output, a.product, ranges[1]),
        ),
    }  # fmt: skip


def _exact_products(a: Arithmetic, operands: Sequence[Format]) -> bool:
    """Whether the product's format holds all products within its range."""
    bits, unit = sum(map(_precision, operands)), math.prod(map(_lowest, operands))
    return bits <= _precision(a.product) and unit >= _least(a.product)


def _exact_sums(a: Arithmetic) -> bool:
    """Whether all sums of the DPU are exact but for their range: fixed point that widens along the chain."""
    fraction = [f.fraction_bits for f in (a.product, a.tree, a.accumulator) if isinstance(f, FixedFormat)]
    return len(fraction) == 3 and fraction == sorted(fraction)


def _in_lanes(a: Arithmetic, cut: int) -> bool:
    """Whether float32 lanes round products and trees to formats that have lanes of at most `cut` bits."""
    if _exact_sums(a):
        return True
    pair = (a.product, a.tree)
    if cut == NARROW and any(map(_wraps, pair)):
        return False  # 2^-12 units of a result that wraps count,
    return all(_precision(f) <= cut or f == FP32 for f in pair if isinstance(f, FloatFormat))


def _tame_limit(a: Arithmetic, step: float, near_zero: float) -> float:
    """Largest magnitude of a sub-vector's sums of which floats that don't saturate stay in their range.

    Values cut to a range are no larger than before; wrapped ones are at most the largest of their format.
    """
    floats = [f for f in (a.product, a.tree) if isinstance(f, FloatFormat) and not f.saturate]
    limit = min([SAFE, *(float(f.max) for f in floats)])
    if floats == [a.tree] and isinstance(a.product, FixedFormat) and _wraps(a.product):
        return SAFE if (16 * _most(a.product) + near_zero) * step**5 <= limit else -1.0
    return limit / step**5 - near_zero


def _wraps(f: Plain) -> bool:
    return isinstance(f, FixedFormat) and f.overflow == "wrap"


def _most(f: FixedFormat) -> float:
    """Largest magnitude."""
    return float(max(f.max_code, -f.min_code) * f.epsilon)


def _near(a: Arithmetic) -> bool:
    """Whether float32 lanes also round a tree's sums of what has wrapped."""
    fixed = [f for f in (a.product, a.tree) if isinstance(f, FixedFormat)]
    if _exact_sums(a):  # farther ones are found
        return all(f.signed or f.bits <= WIDEST for f in fixed if _wraps(f))
    if not isinstance(a.tree, FixedFormat) or not any(map(_wraps, fixed)):
        return True
    return 2 * max(map(_most, fixed)) <= 2.0**21 * _unit(a.tree)


def _lanes_limit(a: Arithmetic) -> float:
    """Largest magnitude of a sub-vector's sums that float32 lanes round rightly."""
    limit = 2.0**90
    for f in (a.product, a.tree):
        if isinstance(f, FixedFormat) and (f.max_code >= 2**22 - 1 or _wraps(f)):
            limit = min(limit, 2.0 ** (21 if _wraps(f) else 22) * _unit(f))
    if a.rounding == "stochastic":
        # 2^-12 units must be float32 values, or else the product, whose last place then decides.
        if isinstance(a.product, FixedFormat) and (_wraps(a.product) or _precision(a.product) > NARROW):
            bits = sum(_precision(_multiplicand(f, a.product)) for f in (a.weight, a.input))
            limit = min(limit, (2.0 ** (22 if bits <= 24 else 12) - 2) * _unit(a.product))
        if isinstance(a.tree, FixedFormat) and _precision(a.tree) > NARROW and not _exact_sums(a):
            # Sums of products are float32 values up to 2^24 places of these, sums of sums in any case.
            limit = min(limit, max((2.0**12 - 2) * _unit(a.tree), 2.0**24 * _unit(a.product)))
    return limit


def _domains(a: Arithmetic, lowest: float) -> tuple[float, float] | None:
    """``domain`` and ``join`` of the chain, of operands whose products are multiples of `lowest`, or None.

    A place without subnormals flushes nothing where all that comes in is a multiple of a normal value.
    """
    unit = max(lowest, _unit(a.product))
    flush = [
        0.0 if f.subnormals or least >= f.min_normal else float(f.min_normal)
        for f, least in ((a.product, lowest), (a.tree, unit), (a.accumulator, unit))
        if isinstance(f, FloatFormat)
    ]
    if flush == [0.0] * 3:
        return 0.0, 1.0
    least = float(FP32.min_normal)
    # The accumulator's values must not be flushed where it has subnormals.
    if len(flush) < 3 or not flush[0] == flush[1] > 0 or not (flush[2] or unit >= least):
        return None
    domain = least / flush[0]
    return domain, (least / flush[2] if flush[2] else 1.0) / domain


def _pairs(a: Arithmetic, operands: Sequence[Format], level: int) -> bool:
    """Whether `dot_pairs` is there for a chain: products and tree are rounded as bf16 is."""
    like = [(f.exponent_bits, f.mantissa_bits) for f in (a.product, a.tree) if isinstance(f, FloatFormat)]
    narrow = max(map(_precision, operands)) <= BF16.precision
    return (
        "avx512bf16" in levels()[: level + 1] and narrow
        and like == [(BF16.exponent_bits, BF16.mantissa_bits)] * 2
    )  # fmt: skip


def _halves(a: Arithmetic, operands: Sequence[Format], level: int) -> bool:
    """Whether `dot_halves` is there for a chain: the DPU's formats are fp16, which holds the operands."""
    return (
        "avx512fp16" in levels()[: level + 1] and {a.product, a.tree, a.accumulator} == {FP16}
        and all(not isinstance(f, BlockFormat | LinearFormat) and _holds(FP16, f) for f in operands)
    )  # fmt: skip


def _multiplicand(f: Format, product: Plain) -> Format:
    """The format of an operand's values at the multiplier."""
    return product if isinstance(f, LinearFormat) else f


def _lowest(f: Format) -> float:
    if isinstance(f, BlockFormat):
        return 0.0
    assert isinstance(f, FloatFormat | FixedFormat)
    return _unit(f)


def _integer_group(
    layer: LstmLayer, a: Arithmetic, members: Sequence[int], ranges: tuple[float, float], level: int,
    counts: Counts,
) -> dict[str, Any]:  # fmt: skip
    weight, given, wide = a.weight, a.input, a.accumulator
    assert isinstance(weight, LinearFormat)
    assert isinstance(given, LinearFormat)
    assert isinstance(wide, FixedFormat)
    s = scales(layer.w_x, layer.w_h, weight, *ranges)
    codes = [
        IntegerMatrix.of(matrix, weight, given, s, alpha, members, counts, level)
        for matrix, alpha in zip((layer.w_x, layer.w_h), ranges, strict=True)
    ]
    scale = _blocked(multipliers(s, given), np.float64)
    return {
        "path": BY_INTEGERS, "codes": codes, "width": [(wide.bits, _FIXED[wide.overflow])] * 4, "scale": scale,
        "result": _wide_lanes(a.mu),
        "operand": (_codes(given, ranges[0]), _codes(given, ranges[1])),
    }  # fmt: skip


def stored(sums: F32, largest: int, alpha: float, target: Plain, counts: I64 | None = None) -> F32:
    """Partial sums as MWL's table gives them back.

    q = round(sum * largest / alpha), clipped to +-largest, then q * alpha / largest rounded to `target`.
    float64 is exact enough: a sum and alpha have 24 bits, largest 15, so that neither quotient comes
    nearer to a rounding boundary than 2**-41 of itself without lying on it.

    Parameters
    ----------
    counts : int64 array of shape (3,), optional
        Of `EVENTS`; added to.
    """
    scale = float(np.float32(alpha))
    with np.errstate(all="ignore"):
        q = np.rint(sums.astype(np.float64) * largest / scale)
        clipped = q.clip(-largest, largest)
    if counts is not None:
        counts[1] += np.count_nonzero((q == 0) & (np.abs(sums) > 0))
        counts[2] += np.count_nonzero(np.abs(q) > largest)
    return _dequantised(clipped, scale, largest, target)
