"""PyTorch's files: state dicts (zip or legacy) and TorchScript archives, read without PyTorch.

Pickles are interpreted by `pickles`, which runs no code.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from epur_emu.checkpoints import pickles, state_dict
from epur_emu.checkpoints.archives import archive, member
from epur_emu.checkpoints.assembly import Choice, Found
from epur_emu.checkpoints.tensors import Array, Budget, Tensor, bits, opened
from epur_emu.errors import ModelError

#: Longest pickle of an archive, in bytes.
PICKLE_LIMIT = 64 << 20

#: The first two pickles of a legacy file.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SAVE = "save the weights alone: torch.save(model.state_dict(), FILE)"
#: A storage's member may hold so many bytes more than it needs.
_PADDING = 64

_DTYPES = {
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64",
}  # fmt: skip
#: Bytes of a value, by the name of the storage's type.
_BYTES = {
    "Half": 2, "BFloat16": 2, "Float": 4, "Double": 8, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1,
    "QInt32": 4, "Untyped": 1,
}  # fmt: skip

#: Order of bytes.
Order = Literal["<", ">"]
#: Gives the bytes of a storage.
Storages = Callable[[pickles.Storage], bytes]


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of a PyTorch file.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged, asks for code to be run, or holds no LSTM.
    """
    with opened(path) as file:
        start = file.read(4)
        if start[:2] != b"PK":
            return _legacy(path, file, choice)
    with archive(path) as zipped:
        return _zip(path, zipped, choice)


def _load(path: Path, place: str, file: Any, **options: Any) -> Any:
    try:
        return pickles.load(file, **options)
    except pickles.RefusedError as error:
        raise ModelError(path, place, f"asks for {error}, which is not run", _SAVE) from error
    except pickles.DamagedError as error:
        raise ModelError(path, place, f"is damaged ({error})", "restore the file") from error


def _zip(path: Path, zipped: zipfile.ZipFile, choice: Choice) -> Found:
    names = set(zipped.namelist())
    found = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(found) != 1:
        raise ModelError(path, "data.pkl", f"is there {len(found)} times, not once", _SAVE)
    root = found[0].removesuffix("data.pkl")
    order: Order = "<"
    if f"{root}byteorder" in names and member(path, zipped, f"{root}byteorder", 16) == b"big":
        order = ">"

    def storage(wanted: pickles.Storage) -> bytes:
        nbytes = wanted.length * _BYTES[wanted.kind]
        data = member(path, zipped, f"{root}data/{wanted.key}", nbytes + _PADDING)
        if len(data) < nbytes:
            raise ModelError(path, f"data/{wanted.key}", "is cut short", "restore the file")
        return data

    pickled = io.BytesIO(member(path, zipped, found[0], PICKLE_LIMIT))
    top = _load(path, found[0], pickled, scripted=f"{root}constants.pkl" in names)
    budget = Budget(path)
    return state_dict.networks(_tensors(top, budget, storage, order), budget, choice)


def _legacy(path: Path, file: Any, choice: Choice) -> Found:
    budget = Budget(path)
    try:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError) as error:
        raise ModelError(path, "file", f"is damaged ({error})", "restore the file") from error
    with whole:
        for place, wanted in (("first pickle", _MAGIC), ("second pickle", _PROTOCOL)):
            value = _load(path, place, whole)
            if type(value) is not int or value != wanted:
                raise ModelError(path, place, "is not that of a state dict", _SAVE)
        system = _load(path, "third pickle", whole)
        little = not isinstance(system, dict) or system.get("little_endian") is not False
        order: Order = "<" if little else ">"
        known: dict[str, pickles.Storage] = {}
        top = _load(path, "tensors", whole, storages=known)
        keys = _load(path, "keys of storages", whole)
        starts = _starts(path, keys, known, whole, order)

        def storage(wanted: pickles.Storage) -> bytes:
            if wanted.key not in starts:
                raise ModelError(path, f"storage {wanted.key}", "is missing", "restore the file")
            begin = starts[wanted.key]
            return whole[begin : begin + wanted.length * _BYTES[wanted.kind]]

        return state_dict.networks(_tensors(top, budget, storage, order), budget, choice)


def _starts(
    path: Path, keys: Any, known: dict[str, pickles.Storage], whole: mmap.mmap, order: Order
) -> dict[str, int]:
    """Where each storage's values begin in a legacy file that stands behind the list of keys."""
    position = whole.tell()
    starts = {}
    for key in keys if isinstance(keys, list) else []:
        storage = known.get(key) if isinstance(key, str) else None
        if storage is None or storage.kind not in _BYTES:
            raise ModelError(path, "keys of storages", "name an unknown storage", _SAVE)
        end = position + 8 + storage.length * _BYTES[storage.kind]
        if end > len(whole):
            raise ModelError(path, f"storage {key[:40]}", "is cut short", "restore the file")
        (length,) = struct.unpack(f"{order}q", whole[position : position + 8])
        if length != storage.length:
            raise ModelError(
                path, f"storage {key[:40]}", f"has {length} values, not {storage.length}",
                "restore the file",
            )  # fmt: skip
        starts[key] = position + 8
        position = end
    return starts


def _tensors(top: Any, budget: Budget, read: Storages, order: Order) -> dict[str, Tensor]:
    """All tensors in nested containers, by their keys joined with dots."""
    held: dict[pickles.Storage, bytes] = {}

    def storage(wanted: pickles.Storage) -> bytes:
        if wanted not in held:  # weights flattened for a GPU all lie in one
            nbytes = wanted.length * _BYTES[wanted.kind]
            budget.take(f"storage {wanted.key}", nbytes)
            held[wanted] = read(wanted)
        return held[wanted]

    out = {}
    for name, found in _walk(top):
        kind = found.storage.kind
        reader = partial(_values, name, found, budget.source, storage, order)
        out[name] = Tensor(found.shape, _DTYPES.get(kind, kind), reader)
    return out


def _values(
    name: str, tensor: pickles.StoredTensor, source: Path, storage: Storages, order: Order
) -> Array:
    """The values of a tensor, copied from its storage."""
    whole = tensor.storage
    if tensor.offset + tensor.span > whole.length:
        raise ModelError(source, name, "reaches beyond its storage", "restore the file")
    dtype = bits(_DTYPES[whole.kind]).newbyteorder(order)
    values = np.frombuffer(storage(whole), dtype, whole.length)[tensor.offset :]
    # The stride of an axis of length 1 means nothing, and may be anything.
    axes = zip(tensor.shape, tensor.strides, strict=True)
    strides = [stride * dtype.itemsize if n > 1 else 0 for n, stride in axes]
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides).astype(bits(dtype.name))


def _walk(top: Any) -> Iterator[tuple[str, pickles.StoredTensor]]:
    """Tensors with their names; each container is entered once, however often it is referred to."""
    entered = set()
    waiting = [("", top)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, pickles.StoredTensor):
            yield prefix, value
            continue
        if isinstance(value, pickles.Scripted):
            value = value.state
        if not isinstance(value, dict | list | tuple) or id(value) in entered:
            continue
        entered.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [
            (f"{prefix}.{key}" if prefix else str(key), child)
            for key, child in items
            if isinstance(key, str | int)
            and isinstance(child, dict | list | tuple | pickles.Scripted | pickles.StoredTensor)
        ]
