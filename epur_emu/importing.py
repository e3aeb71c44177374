"""From a file of any framework to a model folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epur_emu import sequences
from epur_emu.checkpoints.folder import CARD, write_folder
from epur_emu.checkpoints.importers import read_checkpoint
from epur_emu.emulator import calibrate
from epur_emu.errors import ModelError
from epur_emu.network import Network


@dataclass(frozen=True)
class Import:
    """What an import made.

    Parameters
    ----------
    name : str
        The model's.
    path : Path
        Its folder.
    form : str
        The importer's name.
    networks : dict of str to Network
    origins : dict of str to str
        By the pass's name, its name in the file.
    calibrated : tuple of str
        Networks with a calibrated range of partial sums.
    notes : tuple of str
        What the user should know.
    """

    name: str
    path: Path
    form: str
    networks: dict[str, Network]
    origins: dict[str, str]
    calibrated: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What ``epur import --json`` prints."""
        return {
            "model": self.name,
            "path": str(self.path),
            "from": self.form,
            "networks": [
                {
                    "name": name,
                    "parameters": network.parameters,
                    "calibrated": name in self.calibrated,
                    "passes": [
                        {
                            "name": p.name,
                            "origin": self.origins[p.name],
                            "inputs": p.inputs,
                            "cells": p.cells,
                            "peepholes": p.peepholes is not None,
                            "dtype": str(p.w_x.dtype),
                        }
                        for p in network.passes
                    ],
                }
                for name, network in self.networks.items()
            ],
            "notes": list(self.notes),
        }


def import_checkpoint(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    form: str | None = None,
    name: str | None = None,
    prefixes: Sequence[str] = (),
    inputs: str | os.PathLike[str] | None = None,
) -> Import:
    """Write the LSTM networks of a file as a model folder.

    Parameters
    ----------
    path : path
        The file.
    folder : path
        Must not hold a model.
    form : str, optional
        The importer; by default the file's suffix tells.
    name : str, optional
        The model's; by default that of the folder.
    prefixes : sequence of str
        Names of networks in the file; by default all.
    inputs : path, optional
        A ``.npy`` file with sample inputs (T, I), to calibrate networks of this input width on.

    Raises
    ------
    EpurError
        The file can't be imported, or the folder can't be written.
    """
    target = Path(folder)
    if (target / CARD).exists():
        raise ModelError(target, CARD, "is there already", "choose another folder, or remove it")
    checkpoint = read_checkpoint(path, form, prefixes)
    networks = {key: found.network for key, found in checkpoint.networks.items()}
    alpha: dict[str, float] = {}
    calibrated = []
    if inputs is not None:
        samples = sequences.read_inputs(inputs)
        widths = {key: network.layers[0][0].inputs for key, network in networks.items()}
        calibrated = [key for key, width in widths.items() if width == samples.shape[1]]
        if not calibrated:
            raise ModelError(
                inputs, "array", f"has {samples.shape[1]} inputs, the networks have {widths}",
                "give samples of a network's inputs",
            )  # fmt: skip
        for key in calibrated:
            found = calibrate(networks[key], [samples])
            # Sums that are all zero need no range.
            alpha |= {name: value for name, value in found.items() if value > 0}
    origins = {k: v for found in checkpoint.networks.values() for k, v in found.origins.items()}
    host = {
        f"{key}.projection": found.projection
        for key, found in checkpoint.networks.items()
        if found.projection is not None
    }
    source = Path(path)
    called = name or target.resolve().name
    card: dict[str, Any] = {
        "name": called,
        "task": sequences.TASK,
        "summary": f"imported from {source.name}",
        "source": {
            "file": source.name,
            "format": checkpoint.form,
            "bytes": source.stat().st_size,
            "sha256": _sha256(source),
            "notes": list(checkpoint.notes),
            "passes": origins,
        },
    }
    if inputs is not None:
        card["calibration"] = {"data": Path(inputs).name}
    write_folder(target, card, networks, host, alpha)
    return Import(
        called, target, checkpoint.form, networks, origins, tuple(calibrated), checkpoint.notes
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
