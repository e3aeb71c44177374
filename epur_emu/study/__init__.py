"""Studies: many models, arithmetics, accelerators, dataflows and energy tables, point by point."""

from epur_emu.study.results import Results

__all__ = ["Results"]
