from typing import Final

import numpy as np
import numpy.typing as npt

LEVELS: Final[tuple[str, ...]]

_F32 = npt.NDArray[np.float32]
_Words = npt.NDArray[np.uint32]
_Counts = npt.NDArray[np.int64]

def round_float(
    level: int,
    v: _F32,
    out: _F32,
    exponent_bits: int,
    mantissa_bits: int,
    subnormals: bool,
    over: int,
    max: float,
    mode: int,
    words: _Words | None,
    key: int,
    start: int,
    seen: _Counts | None,
) -> None: ...
def round_fixed(
    level: int,
    v: _F32,
    out: _F32,
    fraction_bits: int,
    over: int,
    min: float,
    max: float,
    mode: int,
    words: _Words | None,
    key: int,
    start: int,
    seen: _Counts | None,
) -> None: ...
def round_float_blocks(
    level: int,
    v: _F32,
    out: _F32,
    block: int,
    exponent_bits: int,
    mantissa_bits: int,
    over: int,
    max: float,
    top: int,
    seen: _Counts | None,
) -> None: ...
def round_fixed_blocks(
    level: int,
    v: _F32,
    out: _F32,
    block: int,
    fraction_bits: int,
    min: float,
    max: float,
    seen: _Counts | None,
) -> None: ...
