"""Integer codes of weights and inputs on shared scales, and their dot products in accumulators of stated width.

`docs/arithmetic.md`, section "Integers", says what is computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from epur_emu._kernels import integer as kernels
    from epur_emu._kernels import packing
except ImportError as error:
    raise ImportError(
        f"the kernels are not built in {__package__} at {os.path.dirname(__file__)}: "
        "in the source tree, pip install -e . builds them"
    ) from error
from epur_emu.errors import FormatError
from epur_emu.formats import FixedFormat, LinearFormat
from epur_emu.network import PART
from epur_emu.rounding import Counts, level_number

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int16]

#: Gates; neurons side by side in a block; inputs of a sub-vector.
GATES, LANES, SUB_VECTOR = 4, 16, 16

#: Significant bits of a scale, so that 32 bits times it are exact in float64.
SCALE_BITS = 21

#: Largest code of weights and inputs that the kernel multiplies as bytes.
NARROW = 127

#: Bytes of a line of the processor's caches, and of its longest vectors.
CACHE_LINE = 64


def round_scale(values: npt.ArrayLike) -> F64:
    """Values rounded to `SCALE_BITS` significant bits, to nearest even."""
    fraction, exponent = np.frexp(np.asarray(values, np.float64))
    rounded: F64 = np.ldexp(np.rint(np.ldexp(fraction, SCALE_BITS)), exponent - SCALE_BITS)
    return rounded


def scales(
    w_x: npt.ArrayLike,
    w_h: npt.ArrayLike,
    format: LinearFormat,
    alpha_x: float = 1.0,
    alpha_h: float = 1.0,
) -> F64:
    """What one step of each row's integer products stands for, times the input's largest code.

    Parameters
    ----------
    w_x : float array of shape (4, H, I)
    w_h : float array of shape (4, H, H)
        Taken as float32; weights that are not finite don't count.
    format : LinearFormat
        Of the weights.
    alpha_x, alpha_h : float
        Largest magnitudes of x and h, taken as float32.

    Returns
    -------
    float64 array of shape (4, H)
        s_k; one value in a gate's rows unless the format is per row.

    Raises
    ------
    FormatError
        An alpha is not positive and finite.
    """
    largest = np.maximum(
        _magnitudes(w_x) * _alpha("alpha_x", alpha_x), _magnitudes(w_h) * _alpha("alpha_h", alpha_h)
    )
    if not format.per_row:
        largest = np.broadcast_to(largest.max(-1, keepdims=True, initial=0.0), largest.shape)
    return np.where(largest == 0.0, 1.0, round_scale(largest / format.max))


def _magnitudes(w: npt.ArrayLike) -> F64:
    return np.stack([magnitudes(gate, level_number()) for gate in np.asarray(w)]).astype(np.float64)


def magnitudes(values: npt.NDArray[Any], level: int) -> F32:
    """Largest finite magnitude of each row (rows, I), taken as float32; 0 if there is none."""
    top = np.zeros(len(values), np.float32)
    if values.size:
        packing.magnitudes(level, _numbers(values), top)
    return top


def some_rows(matrix: npt.NDArray[Any]) -> list[slice]:
    """Some rows at a time, of whole blocks."""
    rows, inputs = matrix.shape
    some = max(PART // inputs // LANES, 1) * LANES
    return [slice(k, min(k + some, rows)) for k in range(0, rows, some)]


def halves(values: npt.NDArray[np.float16]) -> npt.NDArray[np.uint16]:
    """The codes of float16 values, contiguous."""
    return np.require(values, requirements=["C", "A"]).view(np.uint16)


def _numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows as the kernels take them: float16's codes, or float32."""
    if values.dtype == np.float16:
        return halves(values)
    return np.require(values, np.float32, ["C", "A"])


def _alpha(name: str, value: float) -> float:
    alpha = float(np.float32(value))
    if not 0.0 < alpha < np.inf:
        raise FormatError("linear format", name, f"is {value}", "give a positive finite number")
    return alpha


def input_codes(
    x: npt.ArrayLike,
    format: LinearFormat,
    alpha: float = 1.0,
    counts: Counts | None = None,
    level: str | None = None,
) -> Codes:
    """Codes of inputs: ``rne(x L / alpha)``, clipped to +-L; 0 for not-a-number.

    Parameters
    ----------
    x : float32 array
    format : LinearFormat
    alpha : float
        Largest magnitude, taken as float32.
    counts : Counts, optional
        Added to.
    level : {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512fp16"}, optional
        All give the same codes.

    Returns
    -------
    int16 array of the shape of x

    Raises
    ------
    FormatError
        alpha is not positive and finite, or the level can't run here.
    """
    values = np.require(x, np.float32, ["C", "A"])
    codes = np.empty(values.shape, np.int16)
    seen = np.zeros(2, np.int64)
    kernels.input_codes(
        level_number(level), values.reshape(-1), codes.reshape(-1), format.max, _alpha("alpha", alpha), seen
    )  # fmt: skip
    if counts is not None:
        counts.saturation += int(seen[0])
        counts.underflow += int(seen[1])
    return codes


def multipliers(scale: F64, format: LinearFormat) -> F64:
    """What one unit of the integer sums is worth: ``s / L`` of the input's format, to 21 bits."""
    return round_scale(scale / format.max)


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros that begins with a cache line: a vector of the kernels then never lies in two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    return room[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class IntegerMatrix:
    """A weight matrix's codes as the kernels want them.

    Parameters
    ----------
    codes : uint8 array
        Packed as ``lstm_int_api.h`` states.
    energy : float64 array of shape (ceil(inputs / 256) * blocks,)
        Largest sum of squares of a row's codes, of each block of inputs and neurons.
    cells, inputs : int
        Neurons, and inputs padded to a multiple of 16.
    largest_w, largest_x : int
        No code of a weight or an input is larger.
    """

    codes: npt.NDArray[np.uint8]
    energy: F64
    cells: int
    inputs: int
    largest_w: int
    largest_x: int

    @classmethod
    def pack(
        cls, codes: npt.NDArray[np.integer[Any]], weight: LinearFormat, input: LinearFormat
    ) -> IntegerMatrix:
        """Rearrange codes of shape (4, H, I) for inputs of a format.

        Raises
        ------
        FormatError
            A code is beyond the weight's format, or the shape is another.
        """
        _check_codes("weight codes", codes, weight.max)
        if codes.ndim != 3 or len(codes) != GATES:
            raise FormatError("weight codes", "shape", f"is {codes.shape}", "give (4, H, I)")
        return cls.of(codes.astype(np.float32), weight, input, np.ones(codes.shape[:2]))

    @classmethod
    def of(
        cls, w: npt.NDArray[Any], weight: LinearFormat, input: LinearFormat, scale: F64, alpha: float = 1.0,
        members: Sequence[int] = range(GATES), counts: Counts | None = None, level: int | None = None,
    ) -> IntegerMatrix:  # fmt: skip
        """Codes of a weight matrix: ``rne(w alpha / s)``, clipped to +-L; 0 for not-a-number.

        Parameters
        ----------
        w : float array of shape (4, H, I)
            Taken as float32.
        weight, input : LinearFormat
        scale : float64 array of shape (4, H)
            As `scales` gives it.
        alpha : float
            Largest magnitude of the matrix's inputs, taken as float32.
        members : sequence of int
            Gates to take; the others' codes are 0.
        counts : Counts, optional
            Added to.
        level : int, optional
            Number of a CPU level; all give the same codes.

        Notes
        -----
        ``w alpha`` has 48 bits and is exact in float64; its quotient by the 21 bits of s, if not a tie, lies at
        least 2**-49 of its size off every tie, so that rounding it to float64 first changes nothing.

        Raises
        ------
        FormatError
            alpha is not positive and finite.
        """
        _, cells, inputs = w.shape
        blocks, padded = -(-cells // LANES), -(-inputs // SUB_VECTOR) * SUB_VECTOR
        narrow = max(weight.max, input.max) <= NARROW
        packed = aligned_zeros((blocks * padded * GATES * LANES * (1 if narrow else 2),), np.uint8)
        energy = np.zeros((-(-padded // kernels.BLOCK), blocks))
        seen, factor = np.zeros(2, np.int64), _alpha("alpha", alpha)
        number = level_number() if level is None else level
        some = len(packed) // blocks
        scale = np.require(scale, np.float64, ["C", "A"])
        for gate in members:
            whole = w.dtype == np.float16  # nothing is converted
            for part in [slice(0, cells)] if whole else some_rows(w[gate]):
                block = part.start // LANES
                packing.pack_codes(
                    number, _numbers(w[gate, part]), scale[gate, part], factor, weight.max, narrow,
                    packed[block * some + gate * CACHE_LINE :], energy, block, seen,
                )  # fmt: skip
        if counts is not None:
            counts.saturation += int(seen[0])
            counts.underflow += int(seen[1])
        return cls(packed, energy.reshape(-1), cells, padded, weight.max, input.max)

    @property
    def blocks(self) -> int:
        """Blocks of 16 neurons, the last one padded."""
        return -(-self.cells // LANES)

    @property
    def narrow(self) -> bool:
        """Whether weights are packed as int8."""
        return max(self.largest_w, self.largest_x) <= NARROW

    def dot(
        self,
        x: Codes,
        acc: npt.NDArray[np.int32],
        accumulators: FixedFormat | Sequence[FixedFormat],
        level: str | None = None,
        back: bool = False,
    ) -> tuple[int, tuple[int, int, int] | None]:
        """Add the products with each vector to accumulators, one sub-vector of 16 inputs after another.

        Parameters
        ----------
        x : int16 array of shape (N, inputs), C-contiguous
            IN: codes of the inputs; padding holds 0.
        acc : int32 array of shape (N, blocks * 4, 16), C-contiguous
            INOUT: row ``block * 4 + gate``, within the accumulator's range.
        accumulators : FixedFormat, or one for each gate
            Signed, without fraction bits: the width, and what a sum out of range does. Under ``raise`` it
            saturates here, and the caller raises.
        level : {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512fp16"}, optional
            All give the same sums.
        back : bool, default False
            Take the last block of neurons first: the same sums, too.

        Returns
        -------
        count : int
            Additions that went out of range.
        place : (vector, gate, neuron) or None
            The first of them under ``raise``, by vector, block of neurons and gate.

        Raises
        ------
        FormatError
            A shape, a code, an accumulator's format or the level can't be used.
        """
        shape = (len(x), self.blocks * GATES, LANES)
        for name, array, wanted, kind in (
            ("x", x, (len(x), self.inputs), np.int16), ("acc", acc, shape, np.int32),
        ):  # fmt: skip
            if array.shape != wanted or array.dtype != kind:
                raise FormatError(
                    "integer dot product", name, f"has shape {array.shape} and type {array.dtype}",
                    f"give {wanted}, {np.dtype(kind)}",
                )  # fmt: skip
        _check_codes("x", x, self.largest_x)
        formats = (accumulators,) * 4 if isinstance(accumulators, FixedFormat) else accumulators
        for form in formats:
            if form.fraction_bits or not form.signed:
                raise FormatError("accumulator", "", f"is {form}", "use qN.0, N up to 31")
        widths = np.array([(f.bits, kernels.OVERFLOW[f.overflow]) for f in formats], np.int32)
        seen = np.array([0, -1], np.int64)
        kernels.dot(
            level_number(level), self.codes, self.energy, self.narrow, self.largest_w, self.largest_x,
            x, acc, widths, back, seen,
        )  # fmt: skip
        if seen[1] < 0:
            return int(seen[0]), None
        vector, block, gate, lane = (
            int(n) for n in np.unravel_index(int(seen[1]), (len(x), self.blocks, GATES, LANES))
        )
        return int(seen[0]), (vector, gate, block * LANES + lane)


def _check_codes(what: str, codes: npt.NDArray[np.integer[Any]], largest: int) -> None:
    if codes.size and not -largest <= codes.min() <= codes.max() <= largest:
        raise FormatError(
            what,
            "",
            f"hold codes from {codes.min()} to {codes.max()}",
            f"keep them within +-{largest}",
        )
