"""Builds the kernels. Each C file holds one CPU level; the level is chosen when the program runs."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
KERNELS = "epur_emu/_kernels"
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno"]

extensions = [
    Extension(
        "epur_emu._kernels.lstm",
        [f"{KERNELS}/lstm.pyx", *(f"{KERNELS}/lstm_fp16_{level}.c" for level in ("scalar", "avx2", "avx512"))],
        depends=[f"{KERNELS}/{name}" for name in ("simd.h", "lstm_fp16.h", "lstm_fp16_api.h")],
        include_dirs=[KERNELS],
        extra_compile_args=FLAGS,
    )
]  # fmt: skip

# The wheel carries the models and the golden traces inside the package; in the tree they are at the top level.
carried = {"epur_emu._models": "models", "epur_emu._traces": "traces"}
packages = find_packages(include=["epur_emu", "epur_emu.*"])

setup(ext_modules=cythonize(extensions))
