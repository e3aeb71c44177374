import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_Rows = npt.NDArray[np.uint16] | _F32
_Bytes = npt.NDArray[np.uint8]

def widened(level: int, codes: npt.NDArray[np.uint16], to: _F32) -> None: ...
def magnitudes(level: int, values: _Rows, top: _F32) -> None: ...
def pack_rows(
    level: int,
    values: _Rows,
    drop: int,
    store: int,
    codes: _Bytes | None,
    bounds: npt.NDArray[np.float64],
) -> bool: ...
def pack_codes(
    level: int,
    values: _Rows,
    scale: npt.NDArray[np.float64],
    alpha: float,
    largest: int,
    narrow: bool,
    codes: _Bytes,
    energy: npt.NDArray[np.float64],
    first: int,
    seen: npt.NDArray[np.int64],
) -> None: ...
