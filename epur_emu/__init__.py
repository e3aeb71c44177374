"""Emulator of E-PUR: LSTM networks in its arithmetic, every access of its memories, their energy."""

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic, arithmetic
from epur_emu.comparison import load_model
from epur_emu.emulator import BatchResult, Engine, Result, calibrate, emulate, emulate_batch
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import EpurError
from epur_emu.network import LstmLayer, Network
from epur_emu.study import Results, Study, study
from epur_emu.trace import Trace
from epur_emu.version import __version__

__all__ = [
    "ARITHMETICS",
    "Accelerator",
    "Arithmetic",
    "BatchResult",
    "EnergyTable",
    "Engine",
    "EpurError",
    "LstmLayer",
    "Network",
    "Report",
    "Result",
    "Results",
    "Study",
    "Trace",
    "__version__",
    "arithmetic",
    "calibrate",
    "emulate",
    "emulate_batch",
    "energy",
    "load_model",
    "study",
]
