"""What all benchmarks share: paired timing, the machine's description, the printed table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from epur_emu.passes import levels


def one_thread() -> None:
    """Keep BLAS and OpenMP libraries that are not loaded yet to one thread."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of functions called in turn, after one call of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for timed in range(rounds + 1):
        for name, function in sides.items():
            begin = time.perf_counter()
            function()
            if timed:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def paired(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Median seconds of two functions called in turn, after one call of each that does not count."""
    seconds = in_turn({"ours": ours, "peer": peer}, rounds)
    return seconds["ours"], seconds["peer"]


def machine(*packages: str) -> dict[str, Any]:
    """Processor, level of the kernels and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": name,
        "level": levels()[-1],
        "python": platform.python_version(),
        **versions,
    }


def row(case: str, ours: float, peer: float, peer_name: str, unit: str) -> dict[str, Any]:
    """A row of a table of rates; a ratio above 1 means ours is faster."""
    return {
        "case": case, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ours / peer,
    }  # fmt: skip


def arguments(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each side")
    return parser


def report(rows: list[dict[str, Any]], about: dict[str, Any], as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        json.dump({"machine": about, "rows": rows}, sys.stdout, indent=1)
        print()
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for r in rows:
        print(
            f"{r['case']:<44}{r['ours']:>9.2f}{r['peer']:>9.2f} {r['unit']:<8}"
            f"{r['ratio']:>7.2f} x {r['peer_name']}"
        )
