"""The AVX-512 levels as a CPU without them runs them: the same source, its intrinsics in plain C by SIMDe."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import test_emulator
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arithmetics, passes

from epur_emu import passes as engine_passes
from epur_emu.passes import levels

HERE = Path(__file__).parent
SOURCES = HERE.parent / "epur_emu" / "_kernels"
FLAGS = [
    "-O1", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-mavx2", "-mf16c", "-mfma", "-fPIC",
    "-w", "-shared",
]  # fmt: skip

#: The levels that a processor may lack.
WIDE = ("avx512", "avx512vnni", "avx512bf16", "avx512fp16")

pytestmark = [
    pytest.mark.skipif("avx512bf16" in levels(), reason="the CPU has what takes long to build"),
    pytest.mark.skipif("avx2" not in levels(), reason="needs AVX2, FMA and F16C underneath"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif(
        not Path("/usr/include/simde/x86/avx512.h").exists(), reason="needs SIMDe (libsimde-dev)"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def portable(tmp_path_factory):
    """The engine with a module whose AVX-512 levels any CPU with AVX2 runs."""
    build = pytest.importorskip("Cython.Build")
    folder = tmp_path_factory.mktemp("avx512")
    for source in (*SOURCES.glob("*.[ch]"), SOURCES / "lstm.pyx"):
        text = source.read_text(encoding="utf-8")
        # Without the target the compiler can't use the instructions behind the program's back.
        (folder / source.name).write_text(text.replace("#pragma GCC target", "#pragma message"))
    names = ", ".join(f'"{name}"' for name in ("scalar", "avx2", *WIDE))
    (folder / "cpu.h").write_text(
        "#define EPUR_BF16 1\n#define EPUR_FP16 1\n"
        f"static const char *const epur_levels[] = {{{names}}};\n"
        "static inline int epur_best(void) { return 5; }\n"
    )
    build.cythonize(str(folder / "lstm.pyx"), quiet=True)
    files = [
        f"lstm{kind}_{level}.c" for kind in ("", "_int") for level in ("scalar", "avx2", "avx512")
    ] + ["lstm_int_vnni.c", "dot_pairs.c", "dot_halves.c"]
    library = folder / f"lstm{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = subprocess.run(
        ["gcc", *FLAGS, f"-I{HERE / 'portable'}", f"-I{folder}",
         f"-I{sysconfig.get_path('include')}", "lstm.c", "pass.c", "exact.c", *files,
         "-o", library, "-lm"],
        cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    loader = importlib.machinery.ExtensionFileLoader("portable.lstm", str(library))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("portable.lstm", loader)
    )
    loader.exec_module(module)
    assert module.LEVELS[2:] == WIDE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_passes, "kernels", module)
        yield


@settings(max_examples=60, deadline=None)
@given(passes(), arithmetics(), st.sampled_from(test_emulator.ORDERS))
def test_equals_the_oracle(case, a, order):
    test_emulator.check(case, a, order, WIDE)


@pytest.mark.parametrize(("a", "path"), test_emulator.FAST, ids=test_emulator.label)
def test_fast_paths(a, path):
    case = test_emulator.usual(11)
    for level in WIDE:
        taken = test_emulator.engine(case.layer, a, level=level)._packed["pass"].paths
        assert taken == (test_emulator.path_at(path, level),)
    for order in test_emulator.ORDERS:
        test_emulator.check(case, a, order, WIDE)


def test_a_larger_layer():
    """Many blocks and time steps, against the scalar level."""
    case = test_emulator.usual(11, inputs=50, cells=70, steps=40, scale=0.2)

    def both(level):
        run = test_emulator.engine(case.layer, test_emulator.EPUR, level=level)
        return run.sequence(case.x)[0], test_emulator.counted(run)

    found, seen = both("avx512")
    wanted, counts = both("scalar")
    assert np.isfinite(wanted).all()
    assert test_emulator.same_bits(found, wanted)
    assert seen == counts
    assert seen["product"][1] > 0
