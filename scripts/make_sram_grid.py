"""Write a grid of memories, from runs of CACTI: what `EnergyTable` interpolates between.

    python scripts/make_sram_grid.py 28 epur_emu/data/sram/cacti-28nm.toml --keep /tmp/runs.json

Some hundred runs of half a second each. The CACTI program is found as in make_energy_table.py. With
``--keep`` finished runs are kept in a file, so that an interrupted grid goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from make_energy_table import CONFIG, Macro, Result, find_cacti, run_cacti
from tqdm import tqdm

CELLS = ("lstp", "lop", "hp", "lstp-lop")
PORTS = ("1rw", "1r1w")
WIDTHS = (64, 256, 1024)
SIZES = tuple(1 << n for n in range(12, 24))
#: Banks, and the smallest memory that CACTI divides so; at other nodes than 28 nm only `FEWER`.
BANKS = {1: 1 << 12, 4: 1 << 14, 16: 1 << 16, 64: 1 << 18}
FEWER = (1, 16)
#: Between the grid's points, to know the error: capacity, width, banks.
HELD_OUT = (
    (3 << 12, 256, 1), (3 << 16, 256, 16), (3 << 20, 256, 16),
    (1 << 20, 128, 1), (1 << 20, 512, 16), (1 << 22, 256, 8),
)  # fmt: skip
#: CACTI's leakage depends on it; energies, areas and times do not.
TEMPERATURE, OTHERS = 320, (300, 340, 360, 380, 400)
COLUMNS = {
    "capacity_bytes": "bytes", "read_pj": "pJ per access", "write_pj": "pJ per access",
    "leakage_mw": "mW, all banks", "area_mm2": "mm2", "cycle_ns": "ns", "access_ns": "ns",
}  # fmt: skip


def macros(technology_nm: int) -> Iterator[Macro]:
    """The grid of one technology, row by row."""
    for cell in CELLS:
        for ports in PORTS:
            for width in WIDTHS:
                for banks, least in BANKS.items():
                    if technology_nm == 28 or banks in FEWER:
                        for size in SIZES:
                            if size >= least:
                                yield Macro(size, width, banks, cell, ports)


class Runs:
    """CACTI's results, those of former calls from a file.

    Parameters
    ----------
    keep : path or None
        A JSON file, written anew every few seconds.
    until : float
        When to stop, as `time.monotonic` counts.
    """

    def __init__(self, cacti: Path, technology_nm: int, keep: Path | None, until: float) -> None:
        self.cacti, self.technology_nm, self.keep, self.until = cacti, technology_nm, keep, until
        self.known = json.loads(keep.read_text()) if keep and keep.exists() else {}
        self.saved = time.monotonic()

    def of(self, macro: Macro, temperature: int = TEMPERATURE) -> Result | None:
        """One result; None where CACTI finds no such memory.

        Raises
        ------
        TimeoutError
            It's time to stop; what was run is kept.
        """
        key = f"{self.technology_nm} {temperature} {sorted(asdict(macro).items())}"
        if key not in self.known:
            if time.monotonic() > self.until:
                self.save()
                raise TimeoutError("time is up; call again with the same --keep")
            try:
                r = run_cacti(self.cacti, macro, self.technology_nm / 1000, temperature)
                self.known[key] = asdict(r)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                self.known[key] = None
            if time.monotonic() - self.saved > 5:
                self.save()
        known = self.known[key]
        return Result(**known) if known else None

    def save(self) -> None:
        """Write what is known."""
        if self.keep:
            self.keep.write_text(json.dumps(self.known))
            self.saved = time.monotonic()


def generate(technology_nm: int, runs: Runs) -> str:
    """The file's text."""
    found: dict[str, dict[tuple[str, str, int, int], list[str]]] = {"grid": {}, "held_out": {}}
    version = ""
    held_out = [
        Macro(size, width, banks, cell, ports)
        for cell in CELLS
        for ports in PORTS
        for size, width, banks in HELD_OUT
    ]
    asked = [("grid", m) for m in macros(technology_nm)] + [("held_out", m) for m in held_out]
    for place, m in tqdm(asked, unit="run"):
        r = runs.of(m)
        if r is None:
            continue
        values = (r.read_pj, r.write_pj, r.leakage_mw, r.area_mm2, r.cycle_ns, r.access_ns)
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{m}: CACTI gave {values}")
        line = f"    [{m.size}, {', '.join(f'{v:.5g}' for v in values)}],"
        found[place].setdefault((m.cell, m.ports, m.width, m.banks), []).append(line)
        version = r.version
    config = CONFIG.replace("{technology}", f"{technology_nm / 1000}")
    lines = [
        f"# Memories at {technology_nm} nm by capacity, from runs of CACTI {version}; made by",
        "# scripts/make_sram_grid.py, not to be edited. Leakage is that of all banks together. What is held",
        "# out lies between the grid's points and is not interpolated from: it tells the error.",
        f'name = "cacti-{technology_nm}nm"',
        f"technology_nm = {technology_nm}",
        f"temperature_k = {TEMPERATURE}",
        f'version = "{version}"',
        f'source = "CACTI {version}, least ED^2"',
        'status = "measured"',
        f"columns = {list(COLUMNS)}".replace("'", '"'),
        f"units = {list(COLUMNS.values())}".replace("'", '"'),
        f'config = """\n{config}"""',
        "",
        f"# Leakage at other temperatures (K) over that at {TEMPERATURE} K, of a memory of 1 MiB.",
    ]
    for cell in CELLS:
        macro = Macro(1 << 20, 256, 1, cell, "1rw")
        at = {t: runs.of(macro, t) for t in sorted((TEMPERATURE, *OTHERS))}
        base = at[TEMPERATURE]
        if base is None:
            raise ValueError(f"CACTI has no {macro}")
        lines.append(f"[leakage_factor.{cell}]")
        lines += [f"{t} = {r.leakage_mw / base.leakage_mw:.5g}" for t, r in at.items() if r]
    blocks = [(place, *one) for place, own in found.items() for one in own.items()]
    for place, (cell, ports, width, banks), rows in blocks:
        lines += [
            "", f"[[{place}]]", f'cell = "{cell}"', f'ports = "{ports}"', f"width_bits = {width}",
            f"banks = {banks}", "rows = [", *rows, "]",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make one technology's file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("technology", type=int, help="nm")
    parser.add_argument("path", type=Path)
    parser.add_argument("--cacti", help="CACTI program; tech_params stands beside it")
    parser.add_argument("--keep", type=Path, help="JSON file that keeps finished runs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    runs = Runs(find_cacti(args.cacti), args.technology, args.keep, until)
    try:
        text = generate(args.technology, runs)
    except TimeoutError as error:
        sys.exit(str(error))
    runs.save()
    args.path.parent.mkdir(parents=True, exist_ok=True)
    args.path.write_text(text, encoding="utf-8")
    print(f"{args.path}: {len(text)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
