"""What a trace costs: energy tables, and ``energy(trace, table)`` that gives a `Report`."""

from epur_emu.energy.model import energy
from epur_emu.energy.report import Cost, PhaseCost, Report
from epur_emu.energy.table import EnergyTable, presets

__all__ = ["Cost", "EnergyTable", "PhaseCost", "Report", "energy", "presets"]
