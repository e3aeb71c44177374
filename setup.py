"""Builds the kernels, and says what the package is and carries.

Each C file of the kernels holds one CPU level; the level is chosen when the program runs.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
KERNELS = "epur_emu/_kernels"
LEVELS = ("scalar", "avx2", "avx512")

# -ffp-contract=off: a fused a * b + c would round once where the arithmetic rounds twice.
FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno"]


def levels(source: str) -> list[str]:
    """One C file for each level."""
    return [f"{source}_{level}.c" for level in LEVELS]


def kernel(name: str, sources: list[str], *headers: str) -> Extension:
    """A kernel's Cython file with its C files."""
    return Extension(
        f"epur_emu._kernels.{name}",
        [f"{KERNELS}/{source}" for source in (f"{name}.pyx", *sources)],
        depends=[f"{KERNELS}/{header}" for header in headers],
        include_dirs=[KERNELS],
        extra_compile_args=FLAGS + os.environ.get("EPUR_CFLAGS", "").split(),
        extra_link_args=os.environ.get("EPUR_LDFLAGS", "").split(),
    )


class SideBySide(build_ext):
    """Compiles an extension's files at once, as many as there are processors."""

    def build_extension(self, extension: Extension) -> None:
        alone = self.compiler.compile

        def compile_all(sources: list[str], output_dir: str, **given: Any) -> list[str]:
            for source in sources:  # else two may make the same folder
                Path(output_dir, source).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: alone([source], output_dir, **given), sources)
                return [name for found in objects for name in found]

        self.compiler.compile = compile_all
        try:
            super().build_extension(extension)
        finally:
            self.compiler.compile = alone


extensions = [
    kernel(
        "lstm",
        [
            *levels("lstm"), *levels("lstm_int"), "lstm_int_vnni.c", "dot_pairs.c", "dot_halves.c", "pass.c",
            "exact.c",
        ],
        "cpu.h",
        "simd.h",
        "simd_int.h",
        "lanes.h",
        "dot_chain.h",
        "dot_places.h",
        "dot_general.h",
        "dot_stochastic.h",
        "dot_wide.h",
        "mu_narrow.h",
        "mu_wide.h",
        "underflows.h",
        "lstm_api.h",
        "lstm_int.h",
        "lstm_int_api.h",
        "datapath.h",
        "exact.h",
        "pass.h",
        "crew.h",
    ),
    kernel("rounding", levels("rounding"), "cpu.h", "rounding.h", "rounding_api.h"),
    kernel(
        "integer",
        [*levels("lstm_int"), "lstm_int_vnni.c"],
        "cpu.h",
        "simd.h",
        "simd_int.h",
        "datapath.h",
        "lstm_int.h",
        "lstm_int_api.h",
    ),
    kernel(
        "packing",
        levels("packing"),
        "cpu.h",
        "packing.h",
        "packing_api.h",
        "lstm_api.h",
        "lstm_int_api.h",
        "datapath.h",
    ),
    kernel("expand", [], "expand.h"),
    kernel("probe", levels("probe"), "probe.h", "probe_api.h"),
    kernel("lines", []),
    kernel("nests", []),
    kernel("operations", ["exact.c"], "datapath.h", "exact.h"),
    kernel(
        "stack",
        ["stack_scalar.c", "stack_avx2.c"],
        "cpu.h",
        "requests.h",
        "stack_api.h",
        "stack.h",
        "caches.h",
    ),
    kernel("dram", ["controller.c"], "controller.h"),
]

version = re.search(r'__version__ = "(.+)"', (ROOT / "epur_emu/version.py").read_text())
assert version, "epur_emu/version.py states no __version__"

evaluate = ["sacrebleu>=2.3", "threadpoolctl>=3.1"]
extras = {
    "evaluate": evaluate,
    "data": ["pooch>=1.7", "requests>=2.28"],
    "image": ["pillow>=9.5"],
    "silero": ["silero-vad>=5"],
    "plot": ["matplotlib>=3.7"],
    "distributed": ["distributed>=2024.1", *evaluate],
    "parquet": ["pyarrow>=14"],
    "train": ["torch>=2.1", "tokenizers>=0.15", "pillow>=9.5", *evaluate],
    "bench": ["torch>=2.1", "onnx>=1.15", "onnxruntime>=1.17", "ml_dtypes>=0.5", "gfloat>=0.5"],
    "frameworks": ["torch>=2.1", "onnx>=1.15", "onnxscript", "onnxruntime>=1.17", "keras>=3"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "matplotlib>=3.7",
        "ml_dtypes>=0.5",
        "gfloat>=0.5",
        *evaluate,
    ],
    # matplotlib and mkdocs for their types
    "lint": ["ruff>=0.6", "mypy>=1.11", "cython-lint>=0.16", "matplotlib>=3.7", "mkdocs>=1.6,<2"],
}

setup(
    name="epur_emu",
    version=version[1],
    description="Quantitative emulator of E-PUR, an energy-efficient accelerator for LSTM networks",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="epur_emu authors",
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.24",
        "h5py>=3.8",
        "tqdm>=4.64",
        "click>=8.1",
        "safetensors>=0.4",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require=extras,
    cmdclass={"build_ext": SideBySide},
    entry_points={"console_scripts": ["epur = epur_emu.cli:main"]},
    # The wheel carries the networks and golden traces of the top level inside the package.
    packages=[
        *find_packages(include=["epur_emu", "epur_emu.*"]),
        "epur_emu._models",
        "epur_emu._traces",
    ],
    package_dir={"epur_emu._models": "models", "epur_emu._traces": "traces"},
    package_data={
        "epur_emu": ["py.typed", "data/**/*.toml", "data/report/*"],
        "epur_emu._models": ["*.md", "*/*"],
        "epur_emu._traces": ["*.md", "*.h5"],
    },
    exclude_package_data={"epur_emu._kernels": ["*.c"]},
    ext_modules=cythonize(extensions, build_dir="build/cython"),
    zip_safe=False,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Cython",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
        "Topic :: System :: Emulators",
    ],
)
