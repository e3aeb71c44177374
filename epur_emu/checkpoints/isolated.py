"""Reads a Keras file in a process of its own.

The HDF5 library may loop for ever, crash or take any memory on a damaged file. The process is stopped
after a time, its memory is limited where the system can, and what it found comes back as plain arrays.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from epur_emu.checkpoints import keras
from epur_emu.checkpoints.assembly import Choice, FileNetwork, FilePass, Found
from epur_emu.checkpoints.tensors import Array
from epur_emu.errors import EpurError, ModelError, NetworkError

#: Seconds that any file may take, and bytes that are read in a second at least.
SECONDS, PACE = 30.0, 2e6
#: Bytes of memory that the process may take, and so many for each byte of the file.
MEMORY, RATIO = 2 << 30, 40

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from epur_emu.checkpoints.isolated import child
child(sys.argv[2], json.loads(sys.argv[3]))
"""
_ARRAYS = ("w_x", "w_h", "bias")
_ERRORS = {kind.__name__: kind for kind in (ModelError, NetworkError)}


def read(path: Path, choice: Choice) -> Found:
    """The LSTMs of a Keras model.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged, or holds no LSTM that can be emulated.
    """
    arguments = [json.dumps(sys.path), str(path.resolve()), json.dumps(choice.prefixes)]
    seconds = SECONDS + path.stat().st_size / PACE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *arguments], capture_output=True, timeout=seconds,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            path, "HDF5", f"is not read in {seconds:.0f} s, it seems damaged", "restore the file"
        ) from error
    try:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
            told = json.loads(str(arrays["told"]))
            if "error" not in told:
                choice.names += told["names"]
                return _found(told, arrays)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            path, "HDF5", f"ended its reader with status {done.returncode}, it seems damaged",
            "restore the file",
        ) from error  # fmt: skip
    kind, *parts = told["error"]
    raise _ERRORS.get(kind, ModelError)(path, *parts)


def child(path: str, prefixes: list[str]) -> None:
    """Read a file and write what it holds, or why it is refused, to the standard output."""
    _limit(MEMORY + RATIO * Path(path).stat().st_size)
    arrays: dict[str, Array] = {}
    told: dict[str, Any]
    choice = Choice(tuple(prefixes))
    try:
        told = {**_told(keras.read(Path(path), choice), arrays), "names": choice.names}
    except EpurError as error:
        told = {"error": [type(error).__name__, error.field, error.problem, error.remedy]}
    except MemoryError:
        told = {"error": ["ModelError", "HDF5", "takes too much memory", "restore the file"]}
    write: Any = np.savez
    write(sys.stdout.buffer, told=np.array(json.dumps(told)), **arrays)


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # a system without limits
        return
    if "libasan" in os.environ.get("LD_PRELOAD", ""):  # it reserves terabytes of addresses
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _told(found: Found, arrays: dict[str, Array]) -> dict[str, Any]:
    """Names and notes; the weights are put into `arrays`, in the same order."""
    networks = []
    for network in found.networks:
        layers = []
        for passes in network.layers:
            layers.append(
                [{"origin": p.origin, "reverse": p.reverse, "clip": p.clip} for p in passes]
            )
            for p in passes:
                for name in _ARRAYS:
                    arrays[f"a{len(arrays)}"] = getattr(p, name)
        networks.append({"origin": network.origin, "layers": layers, "notes": network.notes})
    return {"networks": networks, "notes": found.notes}


def _found(told: dict[str, Any], arrays: Any) -> Found:
    """Inverse of `_told`."""
    count = 0
    networks = []
    for network in told["networks"]:
        layers: list[tuple[FilePass, ...]] = []
        for passes in network["layers"]:
            made = []
            for p in passes:
                taken = {name: arrays[f"a{count + n}"] for n, name in enumerate(_ARRAYS)}
                made.append(FilePass(**p, **taken))
                count += len(_ARRAYS)
            layers.append(tuple(made))
        networks.append(FileNetwork(network["origin"], tuple(layers), tuple(network["notes"])))
    return Found(networks, tuple(told["notes"]))
