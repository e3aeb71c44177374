"""Safetensors files: a JSON header and the tensors' bytes."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.checkpoints import state_dict
from epur_emu.checkpoints.assembly import Choice, Found
from epur_emu.checkpoints.tensors import Array, Budget, Tensor, bits, opened
from epur_emu.errors import ModelError

#: Longest header that is looked at, in bytes.
_HEADER = 1 << 24
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of a safetensors file; bfloat16, which numpy lacks, is read as well.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged or holds no LSTM.
    """
    budget = Budget(path)
    with opened(path) as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(size) if size <= _HEADER else b""
    if len(text) != size or not size:
        raise _damaged(path, "header", f"of {size} bytes is not all there")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "header", f"is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "header", "is no table")
    tensors = {
        name: _tensor(path, name, entry, 8 + size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return state_dict.networks(tensors, budget, choice)


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = (entry.get(k) for k in ("shape", "data_offsets", "dtype"))
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise _damaged(path, name, "has no shape or no place")
    known = _DTYPES.get(str(dtype), str(dtype))
    return Tensor(tuple(shape), known, partial(_values, path, name, shape, known, start, offsets))


def _values(
    path: Path, name: str, shape: list[int], dtype: str, start: int, offsets: list[int]
) -> Array:
    kind = bits(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    with opened(path) as file:
        file.seek(start + offsets[0])
        data = file.read(nbytes)
    if offsets[1] - offsets[0] != nbytes or len(data) != nbytes:
        raise _damaged(path, name, f"of shape {tuple(shape)} does not fill its place in the file")
    return np.frombuffer(data, kind).reshape(shape)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _damaged(path: Path, field: str, problem: str) -> ModelError:
    return ModelError(path, field, problem, "restore the file")
