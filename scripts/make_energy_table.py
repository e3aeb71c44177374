"""Write the memories of an energy table anew, from runs of CACTI.

    python scripts/make_energy_table.py epur_emu/data/energy/epur-28nm.toml

The part of the file above the marker line is kept, the part below it is made here: one entry for
each memory of the accelerators, kind of cell and ports, and the leakage of the logic. A bank that misses
the clock is cut into CACTI's own banks until it meets it. The CACTI
program is ``--cacti PATH``, or the one inside the package zigzag-dse where that is installed
(Linux, x86-64).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from epur_emu.accelerator import Accelerator
from epur_emu.energy.sram import PORTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MARKER = (
    "# Below this line: made by scripts/make_energy_table.py from runs of CACTI; not to be edited."
)

# Fields that CACTI reads before it works, even for a plain scratch memory. Those from "dram_type"
# on describe an external memory that the results do not use.
CONFIG = """\
-size (bytes) {size}
-block size (bytes) {block}
-output/input bus width {width}
-UCA bank count {banks}
-technology (u) {technology}
-operating temperature (K) {temperature}
-Data array cell type - "itrs-{cell}"
-Data array peripheral type - "itrs-{periphery}"
-Tag array cell type - "itrs-{cell}"
-Tag array peripheral type - "itrs-{periphery}"
-cache type "ram"
-Cache model (NUCA, UCA) - "UCA"
-associativity 1
-read-write port {read_write}
-exclusive read port {own}
-exclusive write port {own}
-single ended read ports 0
-tag size (b) "default"
-access mode (normal, sequential, fast) - "normal"
-Optimize ED or ED^2 (ED, ED^2, NONE): "ED^2"
-design objective (weight delay, dynamic power, leakage power, cycle time, area) 0:0:0:100:0
-deviate (delay, dynamic power, leakage power, cycle time, area) 20:100000:100000:100000:100000
-NUCAdesign objective (weight delay, dynamic power, leakage power, cycle time, area) 100:100:0:0:100
-NUCAdeviate (delay, dynamic power, leakage power, cycle time, area) 10:10000:10000:10000:10000
-NUCA bank count 0
-Wire signaling (fullswing, lowswing, default) - "Global_30"
-Wire inside mat - "semi-global"
-Wire outside mat - "semi-global"
-Interconnect projection - "conservative"
-Add ECC - "false"
-Array Power Gating - "false"
-WL Power Gating - "false"
-CL Power Gating - "false"
-Bitline floating - "false"
-Interconnect Power Gating - "false"
-Power Gating Performance Loss 0.01
-Force cache config - "false"
-Print level (DETAILED, CONCISE) - "CONCISE"
-Print input parameters - "false"
-Core count 8
-Cache level (L2/L3) - "L3"
-page size (bits) 8192
-burst length 8
-internal prefetch width 8
-dram_type "DDR3"
-io state "WRITE"
-addr_timing 1.0
-mem_density 4 Gb
-bus_freq 800 MHz
-duty_cycle 1.0
-activity_dq 1.0
-activity_ca 0.5
-num_dq 72
-num_dqs 18
-num_ca 25
-num_clk 2
-num_mem_dq 2
-mem_data_width 8
-rtt_value 10000
-ron_value 34
-tflight_value
-num_bobs 1
-capacity 80
-num_channels_per_bob 1
-first metric "Cost"
-second metric "Bandwidth"
-third metric "Energy"
-DIMM model "ALL"
-mirror_in_bob "F"
"""


@dataclass(frozen=True)
class Macro:
    """One CACTI run: bytes, port width in bits, banks, cells and ports as named in the table."""

    size: int
    width: int
    banks: int
    cell: str
    ports: str


@dataclass(frozen=True)
class Result:
    """What CACTI says of one macro; leakage and area of all its banks."""

    read_pj: float
    write_pj: float
    leakage_mw: float
    area_mm2: float
    cycle_ns: float
    access_ns: float
    version: str


def find_cacti(given: str | None) -> Path:
    """The CACTI program: the given one, or that of zigzag-dse.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    if given:
        path = Path(given)
    else:
        spec = importlib.util.find_spec("zigzag")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("no CACTI: give --cacti PATH, or install zigzag-dse")
        path = Path(spec.submodule_search_locations[0]) / "cacti" / "cacti_master" / "cacti"
    if not path.is_file() or not (path.parent / "tech_params").is_dir():
        raise FileNotFoundError(f"{path} is no CACTI program with a folder tech_params beside it")
    return path


def run_cacti(cacti: Path, macro: Macro, technology: float, temperature: int) -> Result:
    """Run CACTI once.

    Parameters
    ----------
    cacti : path
        The program; its folder holds ``tech_params``.
    macro : Macro
    technology : float
        Feature size in micrometres.
    temperature : int
        Kelvin; CACTI knows 300 to 400 in steps of 10.

    Raises
    ------
    RuntimeError
        It failed, or left no result.
    """
    cell, _, periphery = macro.cell.partition("-")
    config = CONFIG.format(
        size=macro.size, block=macro.width // 8, width=macro.width, banks=macro.banks,
        technology=technology, temperature=temperature, cell=cell, periphery=periphery or cell,
        read_write=int(macro.ports == "1rw"), own=int(macro.ports == "1r1w"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # CACTI looks for tech_params in the working directory; in a wheel it is not executable.
        work = Path(folder)
        program = Path(shutil.copy(cacti, work / "cacti"))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (work / "tech_params").symlink_to((cacti.parent / "tech_params").resolve())
        (work / "run.cfg").write_text(config, encoding="ascii")
        command = [str(program), "-infile", "run.cfg"]
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=600, check=False
        )
        out = work / "run.cfg.out"
        if done.returncode or not out.exists():
            raise RuntimeError(
                f"CACTI failed on {macro}: {done.stdout[-200:]} {done.stderr[-200:]}"
            )
        head, *_, last = (line.split(",") for line in out.read_text().strip().splitlines())
    row = dict(zip((name.strip() for name in head), (v.strip() for v in last), strict=True))
    version = re.search(r"CACTI \(version (.*?)\)", done.stdout)
    return Result(
        read_pj=1e3 * float(row["Dynamic read energy (nJ)"]),
        write_pj=1e3 * float(row["Dynamic write energy (nJ)"]),
        leakage_mw=macro.banks * float(row["Standby leakage per bank(mW)"]),
        area_mm2=float(row["Area (mm2)"]),
        cycle_ns=float(row["Random cycle time (ns)"]),
        access_ns=float(row["Access time (ns)"]),
        version=version[1] if version else "unknown",
    )


def memories(accelerators: list[Accelerator]) -> Iterator[tuple[str, int, int, int, int]]:
    """(kind, bytes, port width, banks, macros) of each memory of the accelerators, once each."""
    seen = set()
    for a in accelerators:
        for memory in (
            ("weights", a.weight_buffer_bytes, a.port_bits, a.weight_buffer_banks, 1),
            ("parameters", a.parameter_bank_bytes, a.port_bits, 1, 1),
            ("inputs", a.input_buffer_bytes, a.port_bits, 1, 1),
            ("row", a.row_buffer_bytes, a.port_bits, 1, 1),
            # Its two halves are two macros: as one it misses the clock, at 3 x 2^n bytes.
            ("intermediate", a.intermediate_bytes, a.port_bits, a.intermediate_banks, 2),
        ):
            if memory[1] and memory not in seen:
                seen.add(memory)
                yield memory


def _value(value: float, unit: str, source: str, status: str) -> str:
    return f'{{ value = {value:.6g}, unit = "{unit}", source = "{source}", status = "{status}" }}'


#: Into how many banks of CACTI's each bank of the accelerator may be cut so that it meets the clock.
PARTS = (1, 2, 4, 8)


def fitting(
    cacti: Path, macro: Macro, technology: float, temperature: int, period_ns: float
) -> tuple[int, Result]:
    """The fewest parts of a bank with which a macro meets the clock, else the fastest; its result."""
    tried = []
    for parts in PARTS:
        cut = replace(macro, banks=macro.banks * parts)
        try:
            r = run_cacti(cacti, cut, technology, temperature)
        except RuntimeError:
            break
        print(cut, r, file=sys.stderr)
        tried.append((parts, r))
        if r.cycle_ns <= period_ns:
            return parts, r
    return min(tried, key=lambda one: one[1].cycle_ns)


def generate(
    kept: str, cacti: Path, accelerators: list[Accelerator], technology_nm: int, temperature: int
) -> str:
    """The generated part of a table whose hand-written part is `kept`."""
    hand = tomllib.loads(kept)
    lines: list[str] = []
    densities: dict[str, tuple[int, float]] = {}
    results: dict[Macro, tuple[int, Result]] = {}
    period_ns = 1e9 / max(a.clock_hz for a in accelerators)
    for kind, size, width, banks, macros in memories(accelerators):
        for cell, ports in ((c, p) for c in hand["cells"] for p in PORTS):
            macro = Macro(size // macros, width, max(1, banks // macros), cell, ports)
            if macro not in results:
                results[macro] = fitting(cacti, macro, technology_nm / 1000, temperature, period_ns)
            parts, r = results[macro]
            largest, _ = densities.get(cell, (0, 0.0))
            if (kind, ports) == ("weights", hand["ports"]) and size > largest:
                densities[cell] = (size, r.leakage_mw / r.area_mm2)
            leaks = f"CACTI, per bank, x {macro.banks * parts * macros} banks"
            area = "CACTI" if macros == 1 else f"CACTI, x {macros} macros"
            lines += [
                "",
                "[[memories]]",
                f'kind = "{kind}"',
                f"capacity_bytes = {size}",
                f"width_bits = {width}",
                f"banks = {banks}",
                f"parts = {parts}",
                f"macros = {macros}",
                f'cell = "{cell}"',
                f'ports = "{ports}"',
                f"read_pj = {_value(r.read_pj, 'pJ per access', 'CACTI', 'measured')}",
                f"write_pj = {_value(r.write_pj, 'pJ per access', 'CACTI', 'measured')}",
                f"leakage_mw = {_value(macros * r.leakage_mw, 'mW, all banks', leaks, 'derived')}",
                f"area_mm2 = {_value(macros * r.area_mm2, 'mm2', area, 'measured')}",
                f"cycle_ns = {_value(r.cycle_ns, 'ns', 'CACTI, random cycle', 'measured')}",
                f"access_ns = {_value(r.access_ns, 'ns', 'CACTI', 'measured')}",
            ]
    area_mm2 = hand["logic"]["area_mm2"]["value"]
    for cell, (size, density) in densities.items():
        source = f"the area at the leakage per mm2 of the {size} byte weight buffer of these cells"
        lines += [
            "",
            f"[logic.leakage_mw.{cell}]",
            f"value = {area_mm2 * density:.6g}",
            'unit = "mW, all CUs"',
            f'source = "{source}"',
            'status = "assumed"',
        ]
    version = next(iter(results.values()))[1].version
    config = CONFIG.replace("{technology}", f"{technology_nm / 1000}")
    config = config.replace("{temperature}", f"{temperature}")
    header = [
        MARKER,
        "",
        "[cacti]",
        f'version = "{version}"',
        'command = "cacti -infile run.cfg"',
        f"technology_nm = {technology_nm}",
        f"temperature_k = {temperature}",
        f"clock_ns = {period_ns:g}",
        'objective = "least ED^2"',
        'note = "28 nm lies between the 22 and 32 nm of CACTI, at their voltages, not 0.78 V"',
        f'config = """\n{config}"""',
    ]
    return "\n".join([*header, *lines]) + "\n"


def main() -> None:
    """Rewrite the generated part of a table in place."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("table", type=Path, help="energy table, rewritten in place")
    parser.add_argument("--cacti", help="CACTI program; tech_params stands beside it")
    parser.add_argument(
        "--accelerator", action="append", help="preset or TOML file, may be repeated (all presets)"
    )
    parser.add_argument("--technology", type=int, default=28, help="nm (28)")
    parser.add_argument("--temperature", type=int, default=320, help="K (320)")
    args = parser.parse_args()
    names = args.accelerator or ["epur", "epur-mwl"]
    accelerators = [Accelerator.load(name) for name in names]
    kept = args.table.read_text(encoding="utf-8").split(MARKER)[0].rstrip() + "\n\n"
    made = generate(kept, find_cacti(args.cacti), accelerators, args.technology, args.temperature)
    args.table.write_text(kept + made, encoding="utf-8")


if __name__ == "__main__":
    main()
