"""The compiled fp16 evaluation of a network's layers: packs weights and calls the kernels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

try:
    from epur_emu._kernels import lstm as kernels
except ImportError as error:
    raise ImportError(
        f"the kernels are not built in {__package__} at {os.path.dirname(__file__)}: "
        "in the source tree, pip install -e . builds them"
    ) from error
from epur_emu.errors import FormatError
from epur_emu.network import LstmLayer

F32 = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

#: Neurons side by side in a block, and inputs in a sub-vector.
LANES = 16

#: Time steps whose forward products share one reading of the weights.
BLOCK = 32


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
    name = name or os.environ.get("EPUR_SIMD") or levels()[-1]
    if name not in levels():
        raise FormatError(
            "EPUR_SIMD", repr(name), "can't run here", f"use one of {', '.join(levels())}"
        )
    return levels().index(name)


@cache
def exp_table() -> Codes:
    """Codes of exp, rounded to nearest even, of every fp16 code.

    Computed in float64 and rounded once: no exp of an fp16 value but exp(0) lies within 2**-28 of a
    rounding boundary relative to its size, far more than float64's error (a test tries them all).
    """
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(all="ignore"):
        return canonical(np.exp(values).astype(np.float16)).view(np.uint16)


def canonical(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The same values with every not-a-number the one quiet one."""
    odd = np.isnan(values)
    if odd.any():
        values[odd] = np.nan
    return values


def to_fp16(values: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """Values rounded once to fp16, nearest even."""
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(np.float16)


def _padded(values: npt.ArrayLike, width: int) -> F32:
    """fp16-rounded values as float32, the last axis padded with +0 to `width`."""
    rounded = to_fp16(values).astype(np.float32)
    out = np.zeros((*rounded.shape[:-1], width), np.float32)
    out[..., : rounded.shape[-1]] = rounded
    return out


def _pack(weights: npt.NDArray[np.floating]) -> tuple[Codes, float]:
    """Codes of shape (blocks * 4, inputs, 16) and the largest sum of a row's magnitudes."""
    half = to_fp16(weights)
    _, cells, inputs = half.shape
    blocks, subs = -(-cells // LANES), -(-inputs // LANES)
    wide = np.zeros((4, blocks * LANES, subs * LANES), np.float16)
    wide[:, :cells, :inputs] = half
    lanes_last = wide.reshape(4, blocks, LANES, -1).transpose(1, 0, 3, 2)
    packed = np.ascontiguousarray(lanes_last).reshape(blocks * 4, -1, LANES)
    with np.errstate(all="ignore"):
        norm = float(np.abs(half).sum(-1, dtype=np.float64).max())
    return packed.view(np.uint16), norm


def _blocked(vectors: npt.NDArray[np.floating]) -> F32:
    """(G, H) to (blocks * G, 16): each block's vectors together."""
    gates, cells = vectors.shape
    blocks = -(-cells // LANES)
    padded = _padded(vectors, blocks * LANES)
    return np.ascontiguousarray(padded.reshape(gates, blocks, LANES).swapaxes(0, 1)).reshape(
        -1, LANES
    )


def _by_sub_vector(vectors: F32) -> F32:
    """(N, elements) to (elements / 16, N, 16): what the kernel reads together lies together."""
    return np.ascontiguousarray(vectors.reshape(len(vectors), -1, LANES).swapaxes(0, 1))


@dataclass
class PackedPass:
    """One pass with its weights as the kernels want them, 16 bits each."""

    cells: int
    reverse: bool
    w_x: Codes
    w_h: Codes
    norm_x: float
    norm_h: float
    bias: F32
    peepholes: F32 | None
    clamp: float

    @classmethod
    def of(cls, layer: LstmLayer, clamp: float) -> PackedPass:
        """Round and rearrange a layer's weights."""
        w_x, norm_x = _pack(layer.w_x)
        w_h, norm_h = _pack(layer.w_h)
        if (w_x.shape[1] + w_h.shape[1]) // LANES > kernels.SAFE_SUBS:
            norm_x = norm_h = np.inf
        peepholes = None if layer.peepholes is None else _blocked(layer.peepholes)
        return cls(
            layer.cells, layer.reverse, w_x, w_h, norm_x, norm_h, _blocked(layer.bias), peepholes,
            float(to_fp16(clamp)),
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Cells, padded to whole blocks."""
        return int(self.w_h.shape[1])

    def state(self, values: npt.ArrayLike | None) -> F32:
        """A new array: a state rounded and padded, or one state of zeros."""
        return _padded(np.zeros(self.cells) if values is None else values, self.width)

    def forward(
        self, level: int, x: F32, seen: npt.NDArray[np.int64]
    ) -> tuple[F32, npt.NDArray[np.float64]]:
        """Forward sums (T, rows, 16) of padded inputs (T, inputs), and bounds of their terms (T,)."""
        sums = np.zeros((len(x), len(self.w_x), LANES), np.float32)
        with np.errstate(all="ignore"):
            bound = self.norm_x * np.abs(x).max(-1, initial=0.0).astype(np.float64)
            bound[np.isnan(bound)] = np.inf
        safe = (bound <= kernels.SAFE_SUM).astype(np.uint8)
        kernels.dot(level, self.w_x, _by_sub_vector(x), sums, safe, seen)
        return sums, bound

    def sequence(
        self, level: int, inputs: npt.ArrayLike, h: npt.ArrayLike | None, c: npt.ArrayLike | None,
        largest: int | None, alpha: float | None, seen: npt.NDArray[np.int64],
    ) -> tuple[F32, F32]:  # fmt: skip
        """All time steps; returns h (T, cells) and the last c (cells,).

        Parameters
        ----------
        largest : int, optional
            None adds on in one accumulator (E-PUR); 0 keeps forward sums apart in fp16; else they
            are quantised to codes up to this one (MWL).
        alpha : float, optional
            The sum that the largest code stands for.
        """
        x = _padded(inputs, self.w_x.shape[1])
        out = np.empty((len(x), self.width), np.float32)
        state, cell = self.state(h), self.state(c)
        scratch = np.empty(4 * self.width, np.float32)
        table = exp_table()
        starts = list(range(0, len(x), BLOCK))
        for start in reversed(starts) if self.reverse else starts:
            part = slice(start, start + BLOCK)
            sums, bound = self.forward(level, x[part], seen)
            if largest is not None:
                bound = np.zeros_like(bound)
                if largest:
                    sums = stored(sums, largest, alpha or 0.0)
            kernels.recurrent(
                level, self.w_h, sums, self.bias, self.peepholes, state, cell, out[part], scratch, bound,
                self.norm_h, self.clamp, table, self.reverse, largest is not None, seen,
            )  # fmt: skip
        return canonical(out[:, : self.cells]), canonical(cell[: self.cells])

    def step(
        self,
        level: int,
        x: npt.ArrayLike,
        h: npt.ArrayLike,
        c: npt.ArrayLike,
        seen: npt.NDArray[np.int64],
    ) -> tuple[F32, F32]:
        """One time step of N independent states: x (N, I), h and c (N, H) to h and c."""
        sums, bound = self.forward(level, _padded(x, self.w_x.shape[1]), seen)
        before, cell = self.state(h), self.state(c)
        with np.errstate(all="ignore"):
            bound = bound + self.norm_h * np.abs(before).max(-1, initial=0.0)
            safe = (bound <= kernels.SAFE_SUM).astype(np.uint8)
        kernels.dot(level, self.w_h, _by_sub_vector(before), sums, safe, seen)
        out = np.empty_like(before)
        kernels.mu(level, sums, self.bias, self.peepholes, cell, out, self.clamp, exp_table(), seen)
        return canonical(out[:, : self.cells]), canonical(cell[:, : self.cells])


def stored(sums: F32, largest: int, alpha: float) -> F32:
    """Partial sums as MWL's 256-entry table gives them back.

    q = round(sum * largest / alpha), clipped to +-largest, then q * alpha / largest rounded to fp16.
    float64 is exact enough: a sum has 11 bits, alpha 24, so that neither quotient can come nearer to a
    rounding boundary than 2**-40 of itself without lying on it.
    """
    scale = float(np.float32(alpha))
    with np.errstate(all="ignore"):
        q = np.rint(sums.astype(np.float64) * largest / scale).clip(-largest, largest)
        # + 0.0 turns -0 into the table's one zero.
        return to_fp16((q + 0.0) * scale / largest).astype(np.float32)
