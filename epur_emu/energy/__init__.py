"""What a trace costs: energy tables, and ``energy(trace, table)`` that gives a `Report`."""

from epur_emu.energy.dram import Dram, drams
from epur_emu.energy.model import energy
from epur_emu.energy.report import Cost, PhaseCost, Report
from epur_emu.energy.sram import Grid, Memory, grids
from epur_emu.energy.table import EnergyTable, presets
from epur_emu.energy.timeline import Timeline, timeline

__all__ = [
    "Cost", "Dram", "EnergyTable", "Grid", "Memory", "PhaseCost", "Report", "Timeline", "drams",
    "energy", "grids", "presets", "timeline",
]  # fmt: skip
