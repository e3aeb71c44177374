from typing import Final

import numpy as np
import numpy.typing as npt

OPERATIONS: Final[tuple[str, ...]]

_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_U32 = npt.NDArray[np.uint32]
_Counts = npt.NDArray[np.int64]

def operate(
    operation: int, a: _F64, b: _F64, row: _F64, mode: int, r12: _U32, out: _F64, counts: _Counts
) -> None: ...
def dot(
    acc: float, w: _F32, x: _F32, formats: _F64, mode: int, key: int, first: int, counts: _Counts
) -> float: ...
def join(
    recurrent: float, stored: float, formats: _F64, mode: int, key: int, counts: _Counts
) -> float: ...
def mu(
    formats: _F64,
    mode: int,
    method: int,
    limits: _F64,
    slopes: _F64,
    intercepts: _F64,
    sums: _F64,
    bias: _F64,
    peep: _F64 | None,
    c: float,
    keys: _U32,
    counts: _Counts,
) -> tuple[float, float]: ...
