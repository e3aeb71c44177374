"""Studies: many models, arithmetics, accelerators, dataflows and energy tables, point by point."""

from epur_emu.study.plan import Study
from epur_emu.study.results import Results
from epur_emu.study.sweep import study

__all__ = ["Results", "Study", "study"]
