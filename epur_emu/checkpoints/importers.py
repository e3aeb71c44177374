"""The importers by name, and reading any checkpoint.

To add one: a module with ``read(path, choice) -> Found``, and one line in `IMPORTERS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epur_emu.checkpoints import isolated, npz, onnx, pytorch, safetensors
from epur_emu.checkpoints.assembly import (
    Choice,
    Found,
    Imported,
    assemble,
    join_numbered,
    printable,
)
from epur_emu.errors import ModelError


@dataclass(frozen=True)
class Importer:
    """How files of one format are read.

    Parameters
    ----------
    read : callable
        From a path and a choice to what the file holds of it.
    suffixes : tuple of str
        Of the files' names.
    graph : bool
        Whether the files say how layers are joined; else names and widths are gone by.
    """

    read: Callable[[Path, Choice], Found]
    suffixes: tuple[str, ...]
    graph: bool


IMPORTERS = {
    "pytorch": Importer(pytorch.read, (".pt", ".pth", ".ckpt", ".bin", ".jit", ".ts"), False),
    "onnx": Importer(onnx.read, (".onnx",), True),
    "keras": Importer(isolated.read, (".keras", ".h5", ".hdf5"), True),
    "safetensors": Importer(safetensors.read, (".safetensors",), False),
    "npz": Importer(npz.read, (".npz",), False),
}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of a file.

    Parameters
    ----------
    form : str
        The importer's name.
    networks : dict of str to Imported
        By the network's name.
    notes : tuple of str
        What the user should know.
    """

    form: str
    networks: dict[str, Imported]
    notes: tuple[str, ...]


def read_checkpoint(
    path: str | os.PathLike[str], form: str | None = None, prefixes: Sequence[str] = ()
) -> Checkpoint:
    """The LSTM networks of a file of any known format; no code in it is run.

    Parameters
    ----------
    path : path
    form : str, optional
        A name in `IMPORTERS`; by default the file's suffix tells.
    prefixes : sequence of str
        Take only networks of these names, or whose names go on behind them with a dot or a slash.

    Raises
    ------
    ModelError, NetworkError
        The file is damaged, of an unknown format, or holds no LSTM that can be emulated; the
        message names the place.
    """
    source = Path(path)
    form = form or _form(source)
    if form not in IMPORTERS:
        raise ModelError("--from", repr(form), "is unknown", f"use one of {', '.join(IMPORTERS)}")
    if not source.is_file():
        raise ModelError(source, "file", "is not there", "give a checkpoint")
    choice = Choice(tuple(prefixes))
    found = IMPORTERS[form].read(source, choice)
    choice.check(source)
    chosen = found.networks
    if not IMPORTERS[form].graph:
        chosen = join_numbered(chosen)
    networks: dict[str, Imported] = {}
    for network in chosen:
        name = _name(network.origin, networks)
        networks[name] = assemble(source, network, name)
    notes = [*found.notes, *(note for n in networks.values() for note in n.notes)]
    return Checkpoint(form, networks, tuple(dict.fromkeys(map(printable, notes))))


def _form(source: Path) -> str:
    for name, importer in IMPORTERS.items():
        if source.suffix.lower() in importer.suffixes:
            return name
    known = ", ".join(suffix for importer in IMPORTERS.values() for suffix in importer.suffixes)
    raise ModelError(
        source, "suffix", f"{source.suffix!r} is unknown", f"use one of {known}, or --from FORMAT"
    )


def _name(origin: str, taken: dict[str, Imported]) -> str:
    """A name for a model folder's table, made from the name in the file."""
    stem = re.sub(r"\W+", "_", origin).strip("_")[:80] or "lstm"
    stem = "lstm_host" if stem == "host" else stem
    name, n = stem, 2
    while name in taken:
        name, n = f"{stem}_{n}", n + 1
    return name
