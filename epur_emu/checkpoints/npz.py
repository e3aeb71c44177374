"""Numpy's archives (``numpy.savez``), with the names of `state_dict`."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.checkpoints import state_dict
from epur_emu.checkpoints.archives import archive, member
from epur_emu.checkpoints.assembly import Choice, Found
from epur_emu.checkpoints.tensors import WEIGHT_BYTES, Array, Budget, Tensor
from epur_emu.errors import ModelError

#: Longest header of an array that is looked at.
_HEADER = 4096


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of an npz file.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged or holds no LSTM.
    """
    with archive(path) as zipped:
        budget = Budget(path)
        tensors = {
            name.removesuffix(".npy"): _tensor(path, zipped, name)
            for name in zipped.namelist()
            if name.endswith(".npy")
        }
        return state_dict.networks(tensors, budget, choice)


def _tensor(path: Path, zipped: zipfile.ZipFile, name: str) -> Tensor:
    try:
        with zipped.open(name) as file:
            start = io.BytesIO(file.read(_HEADER))
        shape, fortran, dtype = _header(start)
    except Exception as error:  # numpy evaluates headers: anything may come of a damaged one
        raise ModelError(path, name, f"is damaged ({error})", "restore the file") from error
    if not all(0 <= n < 1 << 48 for n in shape):
        raise ModelError(path, name, f"has shape {shape}", "restore the file")
    reader = partial(_values, path, zipped, name, shape, fortran, dtype, start.tell())
    return Tensor(shape, dtype.name, reader)


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype


def _values(
    path: Path, zipped: zipfile.ZipFile, name: str, shape: tuple[int, ...], fortran: bool,
    dtype: np.dtype[Any], start: int,
) -> Array:  # fmt: skip
    nbytes = math.prod(shape) * WEIGHT_BYTES[dtype.name]
    data = member(path, zipped, name, start + nbytes)
    if len(data) != start + nbytes:
        raise ModelError(path, name, "is cut short", "restore the file")
    array = np.frombuffer(data, dtype, offset=start)
    return array.reshape(shape, order="F" if fortran else "C")
