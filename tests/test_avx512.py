"""The AVX-512 level where the CPU has none: the same source, its intrinsics in plain C by SIMDe."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import test_emulator
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu import engine_fp16, oracle
from epur_emu._kernels import lstm
from epur_emu.engine_fp16 import levels

HERE = Path(__file__).parent
SOURCES = HERE.parent / "epur_emu" / "_kernels"

pytestmark = [
    pytest.mark.skipif("avx512" in levels(), reason="the CPU has AVX-512: tested as it is"),
    pytest.mark.skipif("avx2" not in levels(), reason="needs AVX2 and F16C underneath"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif(
        not Path("/usr/include/simde/x86/avx512.h").exists(), reason="needs SIMDe (libsimde-dev)"
    ),
]


def pointer(array):
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


class Portable:
    """Stands in for the compiled module; every level is the portable AVX-512 one."""

    LEVELS, SAFE_SUM, SAFE_SUBS = lstm.LEVELS, lstm.SAFE_SUM, lstm.SAFE_SUBS

    def __init__(self, library):
        self.c = library
        self.calls = 0

    def dot(self, level, w, x, acc, safe, seen):
        self.calls += 1
        if acc.size:
            self.c.dot_avx512(
                pointer(w), pointer(x), pointer(acc), pointer(safe),
                *map(ctypes.c_ssize_t, (len(w), w.shape[1] // 16, len(acc))), pointer(seen),
            )  # fmt: skip

    def mu(self, level, acc, bias, peep, c, h, clamp, table, seen):
        self.c.mu_avx512(
            pointer(acc), pointer(bias), pointer(peep), pointer(c), pointer(h),
            ctypes.c_float(clamp), pointer(table),
            *map(ctypes.c_ssize_t, (acc.shape[1] // 4, len(acc))), pointer(seen),
        )  # fmt: skip

    def recurrent(self, level, w, forward, bias, peep, h, c, out, scratch, bound, *rest):
        norm, clamp, table, reverse, separate, seen = rest
        self.c.recurrent_avx512(
            pointer(w), pointer(forward), pointer(bias), pointer(peep), pointer(h), pointer(c),
            pointer(out), pointer(scratch), pointer(bound), ctypes.c_double(norm),
            ctypes.c_float(clamp), pointer(table),
            *map(ctypes.c_ssize_t, (len(forward), len(h) // 16)),
            ctypes.c_int(reverse), ctypes.c_int(separate), pointer(seen),
        )  # fmt: skip


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avx512")
    source = (SOURCES / "lstm_fp16_avx512.c").read_text()
    assert source.count("#pragma GCC target") == 1
    # Without the target the compiler can't use the instructions behind the program's back.
    source = source.replace("#pragma GCC target", "#pragma message")
    (folder / "portable.c").write_text(source)
    flags = [
        "-O2",
        "-std=gnu11",
        "-ffp-contract=off",
        "-mavx2",
        "-mf16c",
        "-mfma",
        "-shared",
        "-fPIC",
    ]
    includes = [f"-I{HERE / 'portable'}", f"-I{SOURCES}"]
    library = folder / "portable.so"
    built = subprocess.run(
        ["gcc", *flags, *includes, "portable.c", "-o", library, "-lm"],
        cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return Portable(ctypes.CDLL(str(library)))


@settings(max_examples=60, deadline=None)
@given(
    case=test_emulator.cases(),
    order=st.sampled_from(["epur", "epur-mwl"]),
    arithmetic=st.sampled_from([test_emulator.FP16_ARITHMETIC, test_emulator.KEPT]),
)
def test_equals_the_oracle(portable, case, order, arithmetic):
    layer, x, state = case
    h, c = (None, None) if state is None else state
    wanted, _, _ = oracle.evaluate_pass(layer, x, arithmetic, order, 9.5, h, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_fp16, "kernels", portable)
        before = portable.calls
        found = test_emulator.run(layer, x, state, arithmetic, order, 9.5, "scalar")
        assert portable.calls > before or not len(x)
    assert test_emulator.same_bits(found, wanted)


def test_counts_and_bits_of_a_larger_layer(portable):
    """Many blocks and time steps, against the scalar level."""
    rng = np.random.default_rng(11)
    arrays = [
        (rng.normal(size=s) * 0.2).astype(np.float16)
        for s in ((4, 70, 50), (4, 70, 70), (4, 70), (3, 70))
    ]
    layer = test_emulator.LstmLayer("pass", *arrays)
    x = rng.normal(size=(40, 50)).astype(np.float16)

    def both():
        engine = test_emulator.Engine(
            test_emulator.Network("n", ((layer,),)), test_emulator.FP16_ARITHMETIC, level="scalar"
        )
        return engine.sequence(x)[0], vars(engine.stats["pass"])

    wanted, counts = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_fp16, "kernels", portable)
        found, seen = both()
    assert test_emulator.same_bits(found, wanted)
    assert seen == counts
    assert seen["underflow"] > 0
