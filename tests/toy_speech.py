"""A small recogniser of random weights, and a data set whose sounds tell what they are."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import numpy as np

from epur_emu.checkpoints.folder import write_folder
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks.digits import RATE, SPEAKERS, TEST
from epur_emu.tasks.speech import NETWORK

FEATURES = {"rate": RATE, "frame": 160, "hop": 80, "bands": 4, "stack": 2}


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.astype(samples.dtype.newbyteorder("<")).tobytes())
    return path


def sound(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tone = np.sin(np.arange(count) ** 1.3 / 40) * np.linspace(200, 8000, count)
    return (tone + rng.normal(0, 60, count)).astype(np.int16)


def write_recordings(folder: Path) -> Path:
    """Recordings of the test set: constant, of a value that tells digit, speaker and index."""
    (folder / "recordings").mkdir(parents=True)
    for digit, (s, speaker), index in itertools.product(range(10), enumerate(SPEAKERS), TEST):
        value = 10000 + 1000 * digit + 100 * s + index
        path = folder / "recordings" / f"{digit}_{speaker}_{index}.wav"
        write_wav(path, np.full(50 + digit, value, np.int16))
    return folder


def toy_folder(path: Path, words: tuple[str, ...] = ("a", "b"), seed: int = 0, **changes) -> Path:
    rng = np.random.default_rng(seed)
    cells = 3

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16)

    def layer(n: int, direction: str, inputs: int) -> LstmLayer:
        weights = draw(4, cells, inputs), draw(4, cells, cells), draw(4, cells)
        reverse = direction == "backward"
        return LstmLayer(f"{NETWORK}.{n}.{direction}", *weights, reverse=reverse)

    layers = [
        tuple(layer(n, d, inputs) for d in ("forward", "backward"))
        for n, inputs in ((0, 8), (1, 6))
    ]
    host = {
        "output.weight": 3 * draw(1 + len(words), 2 * cells),
        "output.bias": draw(1 + len(words)),
    }
    host = {k: v for k, v in (host | changes.pop("host", {})).items() if v is not None}
    card = {"name": "toy", "task": "speech", "features": FEATURES, "decoding": {"words": words}}
    write_folder(path, card | changes, {NETWORK: Network(NETWORK, tuple(layers))}, host, {})
    return path
