"""Log-mel features of speech, as a recogniser reads them; and the WAV files that hold speech."""

from __future__ import annotations

import os
import wave
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epur_emu.errors import EpurError, ModelError

F32 = npt.NDArray[np.float32]
Samples = npt.NDArray[np.int16]

LOWEST_HZ = 60.0
PRE_EMPHASIS = 0.97
#: Mel power below which nothing is heard: about that of 16-bit rounding noise.
FLOOR = 1e-6


@dataclass(frozen=True)
class LogMel:
    """Logarithms of the power in mel bands, each band with mean 0 and variance 1 over an utterance.

    Parameters
    ----------
    rate : int
        Samples in a second.
    frame, hop : int
        Samples of a (Hann) window, and between windows.
    bands : int
        Triangular filters between 60 Hz and half the rate, equally wide in mel.
    stack : int
        Neighbouring windows that make one time step.

    Raises
    ------
    ModelError
        A number is out of range.
    """

    rate: int = 8000
    frame: int = 200
    hop: int = 80
    bands: int = 32
    stack: int = 3

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ModelError("features", field, f"is {value!r}", "give a positive integer")

    @property
    def width(self) -> int:
        """Features of one time step."""
        return self.bands * self.stack

    @property
    def shortest(self) -> int:
        """Samples that one time step takes."""
        return self.frame + (self.stack - 1) * self.hop

    def steps(self, samples: int) -> int:
        """T, the time steps of so many samples; what is left over at the end is not used."""
        return (1 + (samples - self.frame) // self.hop) // self.stack

    @property
    def size(self) -> int:
        """Points of the Fourier transform: the power of two that holds a window."""
        return 1 << (self.frame - 1).bit_length()

    @cached_property
    def filters(self) -> npt.NDArray[np.float64]:
        """Weights of the bands, shape (size / 2 + 1, bands)."""
        edges = np.linspace(_mel(LOWEST_HZ), _mel(self.rate / 2), self.bands + 2)
        bins = _mel(np.fft.rfftfreq(self.size, 1 / self.rate))[:, None]
        rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        weights: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rise, fall))
        return weights

    @cached_property
    def window(self) -> npt.NDArray[np.float64]:
        """Hann window."""
        n = np.arange(self.frame)
        shape: npt.NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * (n + 0.5) / self.frame)
        return shape

    def __call__(self, samples: npt.ArrayLike) -> F32:
        """Features of an utterance.

        Computed in float64 and rounded once, so that versions of numpy differ as little as can be.

        Parameters
        ----------
        samples : int16 or float array of shape (N,)
            In units of a 16-bit sample.

        Returns
        -------
        float32 array of shape (T, width)

        Raises
        ------
        EpurError
            There are less samples than one time step takes.
        """
        sound = np.asarray(samples, np.float64) / 32768
        if sound.ndim != 1 or len(sound) < self.shortest:
            raise EpurError(
                "speech", "samples", f"have shape {sound.shape}, too short for a time step",
                f"give one channel of at least {self.shortest} samples",
            )  # fmt: skip
        sound = np.append(sound[0], sound[1:] - PRE_EMPHASIS * sound[:-1])
        steps = self.steps(len(sound))
        starts = self.hop * np.arange(steps * self.stack)
        frames = np.lib.stride_tricks.sliding_window_view(sound, self.frame)[starts]
        power = np.abs(np.fft.rfft(frames * self.window, self.size)) ** 2
        bands = np.log(np.maximum(power @ self.filters, FLOOR))
        bands -= bands.mean(0)
        bands /= np.maximum(bands.std(0), 0.1)
        return bands.reshape(steps, self.width).astype(np.float32)


def read_wav(path: str | os.PathLike[str], rate: int) -> Samples:
    """Samples of a mono WAV file of 16 bits; nothing is resampled.

    Parameters
    ----------
    path : path
    rate : int
        Samples in a second that the file must have.

    Returns
    -------
    int16 array of shape (N,)

    Raises
    ------
    EpurError
        The file can't be read, or is of another kind.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            kind = file.getnchannels(), file.getsampwidth() * 8, file.getframerate()
            data = file.readframes(file.getnframes())
    # A chunk that ends beyond the file gives a RuntimeError.
    except (OSError, EOFError, RuntimeError, wave.Error) as error:
        raise EpurError(
            path,
            "file",
            f"can't be read ({getattr(error, 'strerror', None) or str(error) or 'it is too short'})",
            "give a WAV file of 16-bit PCM",
        ) from error
    if kind != (1, 16, rate):
        raise EpurError(
            path, "sound", "has {} channel(s) of {} bits at {} Hz".format(*kind),
            f"convert it to 1 channel of 16 bits at {rate} Hz: "
            f"ffmpeg -i IN -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav",
        )  # fmt: skip
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.int16)


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    mel: npt.NDArray[np.float64] = 2595 * np.log10(1 + np.asarray(hertz, np.float64) / 700)
    return mel
