"""CPFloat as a peer: rounding, and dot products whose every operation it rounds."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu.formats import FloatFormat

F32 = npt.NDArray[np.float32]

#: Around CPFloat's header. dots: x (subs, 16), w (subs, 16, rows), both with a tree's pairs as halves.
SHIM = """
#include "cpfloat_binary32.h"
#include <stdlib.h>
static optstruct *options(int precision, int emin, int emax) {
    optstruct *o = init_optstruct();
    o->precision = precision, o->emin = emin, o->emax = emax, o->round = CPFLOAT_RND_NE;
    o->subnormal = CPFLOAT_SUBN_USE, o->explim = CPFLOAT_EXPRANGE_TARG, o->infinity = CPFLOAT_INF_USE;
    o->flip = CPFLOAT_SOFTERR_NO;
    return o;
}
int round_all(float *out, const float *in, size_t n, int precision, int emin, int emax) {
    optstruct *o = options(precision, emin, emax);
    const int status = cpfloatf(out, in, n, o);
    free(o);
    return status;
}
int dots(float *acc, const float *w, const float *x, float *room, size_t rows, size_t subs,
         int precision, int emin, int emax) {
    optstruct *o = options(precision, emin, emax);
    float *many = room, *sums = room + 16 * rows;
    int status = 0;
    for (size_t s = 0; s < subs; s++) {
        for (size_t k = 0; k < 16; k++)
            for (size_t r = 0; r < rows; r++) many[k * rows + r] = x[s * 16 + k];
        status |= cpf_mulf(sums, w + s * 16 * rows, many, 16 * rows, o);
        for (size_t width = 8 * rows; width >= rows; width /= 2)
            status |= cpf_addf(sums, sums, sums + width, width, o);
        status |= cpf_addf(acc, acc, sums, rows, o);
    }
    free(o);
    return status;
}
"""

#: Where each input of a sub-vector lies, so that a tree's pairs are halves: its number's 4 bits in reverse.
PLACES = [int(f"{n:04b}"[::-1], 2) for n in range(16)]


class CPFloat:
    """CPFloat's source tree, compiled as its own makefile does, without OpenMP."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as build:
            (Path(build) / "shim.c").write_text(SHIM)
            library = Path(build) / "cpfloat.so"
            subprocess.run(
                [shutil.which("gcc") or "gcc", "-O3", "-march=native", "-std=gnu99", "-w", "-shared",
                 "-fPIC", f"-I{folder / 'src'}", Path(build) / "shim.c", "-o", library, "-lm"],
                check=True,
            )  # fmt: skip
            self._library = ctypes.CDLL(str(library))

    def _call(self, name: str, format: FloatFormat, arrays: list[F32], *sizes: int) -> None:
        status = getattr(self._library, name)(
            *(ctypes.c_void_p(a.ctypes.data) for a in arrays), *(ctypes.c_size_t(n) for n in sizes),
            format.precision, format.min_exponent, format.max_exponent,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"CPFloat's {name} returns {status}")

    def round(self, format: FloatFormat, v: F32, out: F32) -> F32:
        """Round v into `out`, to nearest even."""
        self._call("round_all", format, [out, v], v.size)
        return out

    def dots(self, format: FloatFormat, w: F32, x: F32, room: F32) -> F32:
        """W x of a matrix as `laid` gives it, in E-PUR's tree, sub-vector by sub-vector."""
        acc, placed = np.zeros(w.shape[2], np.float32), x.reshape(-1, 16)[:, PLACES]
        self._call("dots", format, [acc, w, np.ascontiguousarray(placed), room], w.shape[2], len(w))
        return acc


def laid(w: npt.NDArray[Any]) -> F32:
    """A matrix (rows, inputs) as `CPFloat.dots` takes it, (subs, 16, rows)."""
    parts = w.astype(np.float32).reshape(len(w), -1, 16).transpose(1, 2, 0)
    return np.ascontiguousarray(parts[:, PLACES])
