"""Write a grid of memories, from runs of CACTI: what `EnergyTable` interpolates between.

    python scripts/make_sram_grid.py 28 epur_emu/data/sram/cacti-28nm.toml

About 300 runs, a quarter of an hour. The CACTI program is found as in make_energy_table.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from make_energy_table import CONFIG, Macro, Result, find_cacti, run_cacti
from tqdm import tqdm

CELLS = ("lstp", "lop", "hp", "lstp-lop")
WIDTHS = (128, 256)
SIZES = tuple(1 << n for n in range(12, 24))
#: Banks, and the smallest memory that CACTI divides so.
BANKS = {1: 1 << 12, 16: 1 << 16}
#: CACTI's leakage depends on it; energies, areas and times do not.
TEMPERATURE, OTHERS = 320, (300, 340, 360, 380, 400)
COLUMNS = (
    "capacity_bytes", "read_pj", "write_pj", "leakage_mw", "area_mm2", "cycle_ns", "access_ns",
)  # fmt: skip


def row(size: int, r: Result) -> str:
    """A line of the grid."""
    values = (r.read_pj, r.write_pj, r.leakage_mw, r.area_mm2, r.cycle_ns, r.access_ns)
    return f"    [{size}, {', '.join(f'{v:.5g}' for v in values)}],"


def generate(technology_nm: int, cacti: Path) -> str:
    """The file's text."""
    macros = [
        (cell, width, banks, size)
        for cell in CELLS
        for width in WIDTHS
        for banks, least in BANKS.items()
        for size in SIZES
        if size >= least
    ]
    found: dict[tuple[str, int, int], list[str]] = {}
    version = ""
    for cell, width, banks, size in tqdm(macros, unit="run"):
        r = run_cacti(cacti, Macro(size, width, banks, cell), technology_nm / 1000, TEMPERATURE)
        found.setdefault((cell, width, banks), []).append(row(size, r))
        version = r.version
    lines = [
        f"# Memories at {technology_nm} nm by capacity, from runs of CACTI {version}; made by",
        "# scripts/make_sram_grid.py, not to be edited. Every number is measured (a run of the program),",
        "# one read-write port, least ED^2; leakage is that of all banks.",
        f"technology_nm = {technology_nm}",
        f"temperature_k = {TEMPERATURE}",
        f'version = "{version}"',
        'source = "CACTI, one read-write port, least ED^2"',
        'status = "measured"',
        f"columns = {list(COLUMNS)}".replace("'", '"'),
        'units = ["bytes", "pJ per access", "pJ per access", "mW", "mm2", "ns", "ns"]',
        f"sizes = {list(SIZES)}",
        f'config = """\n{CONFIG}"""',
        "",
        "# Leakage at other temperatures (K) over that at 320 K, of a memory of 1 MiB.",
    ]
    for cell in CELLS:
        macro = Macro(1 << 20, 256, 1, cell)
        at = {
            t: run_cacti(cacti, macro, technology_nm / 1000, t).leakage_mw
            for t in sorted((TEMPERATURE, *OTHERS))
        }
        lines.append(f"[leakage_factor.{cell}]")
        lines += [f"{t} = {v / at[TEMPERATURE]:.5g}" for t, v in at.items()]
    for (cell, width, banks), rows in found.items():
        lines += [
            "", "[[grid]]", f'cell = "{cell}"', f"width_bits = {width}", f"banks = {banks}",
            "rows = [", *rows, "]",
        ]  # fmt: skip
    if not all(math.isfinite(float(v)) for rows in found.values() for r in rows for v in
               r.strip(" [],").split(",")):  # fmt: skip
        raise ValueError("CACTI gave a value that is not finite")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make one technology's file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("technology", type=int, help="nm")
    parser.add_argument("path", type=Path)
    parser.add_argument("--cacti", help="CACTI program; tech_params stands beside it")
    args = parser.parse_args()
    text = generate(args.technology, find_cacti(args.cacti))
    args.path.parent.mkdir(parents=True, exist_ok=True)
    args.path.write_text(text, encoding="utf-8")
    print(f"{args.path}: {len(text)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
