"""The floors: a module imports only from floors below; inside a package, modules are free."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "epur_emu"
FOLDER = Path(__file__).parents[1] / PACKAGE

# Lowest first. A name is a module of epur_emu, or a package with all that it holds.
FLOORS = (
    {"errors", "version"},
    {"_kernels"},
    {"formats", "streams", "toml", "units"},
    {"rounding", "network", "arithmetic", "accelerator"},
    {"activations", "baseline", "integers"},
    {"checkpoints", "dataflow", "passes", "trace"},
    {"probe"},
    {"emulator", "energy", "oracle", "oracle_accesses"},
    {"replay", "tasks", "zoo"},
    {"comparison", "format_table"},
    {"sequences"},
    {"importing"},
    {"paper"},
    {"study"},
    {"plots"},
    {"report"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# It would be blind to the faults of what it shares.
ORACLE = {"accelerator", "arithmetic", "errors", "formats", "network"}

SOURCES = sorted(
    path.relative_to(FOLDER).as_posix()
    for suffix in ("py", "pyx", "pxd", "pxi")
    for path in FOLDER.rglob(f"*.{suffix}")
)


def owner(module: str) -> str:
    """The name in the table of a dotted module, ``epur_emu.trace.hdf5`` say."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def dotted(source: str) -> str:
    """The dotted name of a source file, its package's for ``__init__``."""
    parts = [PACKAGE, *source.rpartition(".")[0].split("/")]
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 2 else parts[:-1])


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of ours, and not a name in one."""
    path = FOLDER.parent / name.replace(".", "/")
    return path.is_dir() or any(
        path.with_suffix(f".{end}").exists() for end in ("py", "pyx", "pxd")
    )


def targets(base: str, names: list[str]) -> Iterator[str]:
    """Modules that ``from base import names`` imports."""
    if base.split(".")[0] != PACKAGE:
        return
    for name in names:
        yield f"{base}.{name}" if is_module(f"{base}.{name}") else base


def absolute(source: str, level: int, module: str) -> str:
    """The module that a relative import in a source file names."""
    if not level:
        return module
    folder = [PACKAGE, *source.split("/")[:-1]]
    parts = folder[: len(folder) - (level - 1)]
    return ".".join([*parts, module] if module else parts)


def python_imports(source: str, text: str) -> Iterator[str]:
    """Our modules that a Python file imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if owns(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = absolute(source, node.level, node.module or "")
            yield from targets(base, [alias.name for alias in node.names])


def owns(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def cython_imports(source: str, text: str) -> Iterator[str]:
    """Our modules that a Cython file imports or cimports, line by line."""
    for line in text.splitlines():
        if match := re.match(r"\s*from\s+(\.*)([\w.]*)\s+c?import\s+(.+)", line):
            base = absolute(source, len(match[1]), match[2])
            yield from targets(base, re.findall(r"(\w+)(?:\s+as\s+\w+)?", match[3]))
        elif match := re.match(r"\s*c?import\s+([\w., ]+)", line):
            yield from (name for name in re.findall(r"[\w.]+", match[1]) if owns(name))


def faults(source: str, text: str) -> list[str]:
    """Imports of a file that its floor forbids."""
    find = python_imports if source.endswith(".py") else cython_imports
    own = owner(dotted(source))
    found = []
    for module in find(source, text):
        other = owner(module)
        if other != own and FLOOR[other] >= FLOOR[own]:
            found.append(f"{own} (floor {FLOOR[own]}) imports {module} (floor {FLOOR[other]})")
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_every_module_has_a_floor(source: str) -> None:
    assert owner(dotted(source)) in FLOOR, "add the module to FLOORS"


@pytest.mark.parametrize("source", SOURCES)
def test_imports_go_down(source: str) -> None:
    assert faults(source, (FOLDER / source).read_text(encoding="utf-8")) == []


def test_no_name_has_two_floors() -> None:
    assert len(FLOOR) == sum(map(len, FLOORS))


@pytest.mark.parametrize("source", ["oracle.py", "oracle_accesses.py"])
def test_oracle_shares_nothing_that_it_checks(source: str) -> None:
    text = (FOLDER / source).read_text(encoding="utf-8")
    assert {owner(module) for module in python_imports(source, text)} <= ORACLE


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("streams.py", "from epur_emu.trace import Trace"),
        ("streams.py", "import epur_emu.trace.hdf5"),
        ("formats.py", "from epur_emu import streams"),
        ("formats.py", "def f():\n    from epur_emu import Engine"),
        ("energy/model.py", "from epur_emu.emulator import Engine"),
        ("energy/model.py", "from ..oracle import run"),
        ("energy/model.py", "from .. import cli"),
        ("_kernels/lstm.pyx", "from epur_emu.network cimport Layer"),
        ("_kernels/lstm.pyx", "from ..network import Layer"),
        ("_kernels/lstm.pyx", "cimport numpy, epur_emu.network"),
        ("cli.py", "from . import __main__"),
    ],
)
def test_an_import_upward_or_sideways_is_found(source: str, text: str) -> None:
    assert len(faults(source, text)) == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("energy/model.py", "from epur_emu.energy.table import EnergyTable\nfrom . import report"),
        ("energy/__init__.py", "from .model import energy"),
        ("energy/model.py", "from epur_emu.trace import Trace\nimport numpy as np"),
        ("_kernels/lstm.pyx", "from libc.stdint cimport int64_t\nfrom epur_emu.errors import E"),
        ("__init__.py", "from epur_emu.cli import main"),
    ],
)
def test_an_import_downward_or_within_is_let_pass(source: str, text: str) -> None:
    assert faults(source, text) == []
