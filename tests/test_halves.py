"""Dot products by AVX-512 FP16 on any CPU: the source, its intrinsics in plain C, beside numpy's float16."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu.passes import HALF, levels

HERE = Path(__file__).parent
KERNELS = HERE.parent / "epur_emu" / "_kernels"

pytestmark = [
    pytest.mark.skipif("avx2" not in levels(), reason="needs AVX2, FMA and F16C underneath"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif(
        not Path("/usr/include/simde/x86/avx512.h").exists(), reason="needs SIMDe (libsimde-dev)"
    ),
]


class Matrix(ctypes.Structure):
    """`matrix` of `lstm_api.h`."""

    _fields_ = (
        ("w", ctypes.c_void_p), ("store", ctypes.c_int), ("rows", ctypes.c_ssize_t), ("subs", ctypes.c_ssize_t),
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    text = (KERNELS / "dot_halves.c").read_text(encoding="utf-8")
    # Without the target the compiler can't use the instructions behind the program's back.
    (folder / "dot_halves.c").write_text(text.replace("#pragma GCC target", "#pragma message"))
    library = folder / "halves.so"
    built = subprocess.run(
        ["gcc", "-O1", "-std=gnu11", "-ffp-contract=off", "-mavx2", "-mf16c", "-mfma", "-fPIC", "-w", "-shared",
         "-DEPUR_FP16=1", f"-I{HERE / 'portable'}", f"-I{KERNELS}", "dot_halves.c", "-o", library],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(library)).dot_halves


def run(kernel, weights, order, x, acc, take):
    """acc (nv, rows + 1, 16) with W x added for the vectors that are taken."""
    rows, inputs, _ = weights.shape
    nv = len(x)
    w, order, take = (np.ascontiguousarray(v) for v in (weights, order.astype(np.int32), take))
    laid = np.ascontiguousarray(x.reshape(nv, -1, 16).swapaxes(0, 1), np.float32)
    out = np.ascontiguousarray(acc, np.float32)
    matrix = Matrix(w.ctypes.data, HALF, rows - 1, inputs // 16)
    pointers = [ctypes.c_void_p(v.ctypes.data) for v in (order, laid, out, take)]
    kernel(
        ctypes.byref(matrix), pointers[0], ctypes.c_ssize_t(len(order)), pointers[1], pointers[2],
        ctypes.c_ssize_t(out[0].size), pointers[3], ctypes.c_ssize_t(nv),
    )  # fmt: skip
    return out


def wanted(weights, order, x, acc, take):
    """The same, operation by operation."""
    out = acc.copy()
    for v in np.flatnonzero(take):
        for row in dict.fromkeys(order):
            total = out[v, row]
            for first in range(0, x.shape[1], 16):
                part = weights[row, first : first + 16] * x[v, first : first + 16, None]
                while len(part) > 1:
                    part = part[::2] + part[1::2]
                total = total + part[0]
            assert total.dtype == np.float16
            out[v, row] = total
    return out.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([1, 2, 31, 32, 33, 65]), st.integers(1, 3),
    st.integers(0, 30), st.booleans(),
)  # fmt: skip
def test_equals_numpys_float16(kernel, seed, blocks, subs, nv, width, ties):
    rng = np.random.default_rng(seed)

    def halves(*shape):
        """Bit patterns whose exponents lie in a range, few of their places set where there are to be ties."""
        exponent = np.minimum(rng.integers(0, width + 1, shape), 30) << 10
        places = rng.integers(0, 1024, shape) & (0x3C0 if ties else 0x3FF)
        sign = rng.integers(0, 2, shape) << 15
        return (sign | exponent | places).astype(np.uint16).view(np.float16)

    weights, x = halves(blocks * 4 + 1, subs * 16, 16), halves(nv, subs * 16)
    acc = halves(nv, blocks * 4 + 1, 16)
    order, take = rng.permutation(blocks * 4), rng.integers(0, 2, nv).astype(np.uint8)
    with np.errstate(all="ignore"):
        case = (weights, order, x, acc, take)
        found, expected = run(kernel, *case), wanted(*case)
    # What overflowed may have become not-a-number in either place.
    assert np.array_equal(found, expected, equal_nan=True)


def test_subnormals_count(kernel):
    """2**-24 times one is there, and half of it rounds to even: to nothing, and to 2**-23."""
    weights = np.zeros((5, 16, 16), np.float16)
    weights[:, 0] = 2.0**-24
    acc = np.zeros((1, 5, 16), np.float16)
    x = np.zeros((1, 16), np.float16)
    for value, result in ((1.0, 2.0**-24), (0.5, 0.0), (1.5, 2.0**-23), (-2.5, -(2.0**-23))):
        x[0, 0] = value
        found = run(kernel, weights, np.arange(4), x, acc, np.ones(1, np.uint8))
        assert (found[0, :4] == result).all()
        assert (found[0, 4] == 0).all()
