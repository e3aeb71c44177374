"""Weights of the voice activity detector that the package silero-vad carries.

Only its file of weights is read; the package is not imported, so torch need not be there.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu.checkpoints.protobuf import Message
from epur_emu.errors import ModelError

PACKAGE = "silero-vad"
#: Relative to the package. Its file of safetensors holds another version's weights.
FILE = "data/silero_vad_16k_op15.onnx"
CELLS = 128

_REMEDY = f"pip install --no-deps '{PACKAGE}>=6.2,<7'"
#: Shape of each tensor of the file, and what it is called here.
_TENSORS = {
    "stft.forward_basis_buffer": ((258, 1, 256), "host.spectrum.weight"),
    "encoder.0.reparam_conv.weight": ((128, 129, 3), "host.conv.0.weight"),
    "encoder.0.reparam_conv.bias": ((128,), "host.conv.0.bias"),
    "encoder.1.reparam_conv.weight": ((64, 128, 3), "host.conv.1.weight"),
    "encoder.1.reparam_conv.bias": ((64,), "host.conv.1.bias"),
    "encoder.2.reparam_conv.weight": ((64, 64, 3), "host.conv.2.weight"),
    "encoder.2.reparam_conv.bias": ((64,), "host.conv.2.bias"),
    "encoder.3.reparam_conv.weight": ((128, 64, 3), "host.conv.3.weight"),
    "encoder.3.reparam_conv.bias": ((128,), "host.conv.3.bias"),
    "decoder.rnn.weight_ih": ((4 * CELLS, CELLS), "w_x"),
    "decoder.rnn.weight_hh": ((4 * CELLS, CELLS), "w_h"),
    "decoder.rnn.bias_ih": ((4 * CELLS,), "b_x"),
    "decoder.rnn.bias_hh": ((4 * CELLS,), "b_h"),
    "decoder.decoder.2.weight": ((1, CELLS, 1), "host.output.weight"),
    "decoder.decoder.2.bias": ((1,), "host.output.bias"),
}
# Field numbers and the type float32 of the ONNX schema.
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
_FLOAT = 1


def locate() -> Path:
    """The installed file of the network for 16 kHz.

    Raises
    ------
    ModelError
        The package is not installed, or is too old to carry it.
    """
    spec = find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("weights", f"package {PACKAGE}", "is not installed", _REMEDY)
    path = Path(spec.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise ModelError(path, "file", "is not in the installed package", _REMEDY)
    return path


def read_tensors() -> dict[str, npt.NDArray[Any]]:
    """Tensors as a model folder calls them: of the network ``detector``, and of what surrounds it.

    Raises
    ------
    ModelError
        The package is not installed, or its file is not the known network's.
    """
    path = locate()
    given: dict[str, npt.NDArray[Any]] = {}
    try:
        (graph,) = Message(path.read_bytes()).messages(_GRAPH)
        for tensor in graph.messages(_INITIALIZER):
            known = _TENSORS.get(tensor.text(_NAME).removeprefix("model."))
            (raw,) = tensor.blobs(_RAW)
            shape = tuple(tensor.integers(_DIMS))
            if known and (shape, tensor.integer(_TYPE)) == (known[0], _FLOAT):
                given[known[1]] = np.frombuffer(raw, "<f4", math.prod(shape)).reshape(shape)
    except (OSError, ValueError) as error:
        raise ModelError(
            path, "ONNX", f"can't be read ({error})", f"reinstall {PACKAGE}"
        ) from error
    missing = [name for name, (_, ours) in _TENSORS.items() if ours not in given]
    if missing:
        raise ModelError(
            path, ", ".join(missing[:3]), "are not there in the known shape and type",
            _REMEDY,
        )  # fmt: skip
    bias = given.pop("b_x") + given.pop("b_h")
    return {
        "detector.0.forward.w_x": given.pop("w_x").reshape(4, CELLS, CELLS),
        "detector.0.forward.w_h": given.pop("w_h").reshape(4, CELLS, CELLS),
        "detector.0.forward.bias": bias.reshape(4, CELLS),
        **given,
    }
