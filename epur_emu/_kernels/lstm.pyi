from typing import Any, Final

import numpy as np
import numpy.typing as npt

LEVELS: Final[tuple[str, ...]]
SAFE_SUM: Final[float]
SAFE_SUBS: Final[int]

_F32 = npt.NDArray[np.float32]
_Codes = npt.NDArray[np.uint16]
_Counts = npt.NDArray[np.int64]

def dot(
    level: int, w: _Codes, x: _F32, acc: _F32, safe: npt.NDArray[np.uint8], seen: _Counts
) -> None: ...
def mu(
    level: int,
    acc: _F32,
    bias: _F32,
    peep: _F32 | None,
    c: _F32,
    h: _F32,
    clamp: float,
    table: npt.NDArray[Any],
    seen: _Counts,
) -> None: ...
def recurrent(
    level: int,
    w: _Codes,
    forward: _F32,
    bias: _F32,
    peep: _F32 | None,
    h: _F32,
    c: _F32,
    out: _F32,
    scratch: _F32,
    bound: npt.NDArray[np.float64],
    norm: float,
    clamp: float,
    table: npt.NDArray[Any],
    reverse: bool,
    separate: bool,
    seen: _Counts,
) -> None: ...
