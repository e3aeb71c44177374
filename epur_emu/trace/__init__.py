"""Traces: every memory access of a run, as affine streams and as single events, in HDF5."""

from epur_emu.trace.accesses import Accesses
from epur_emu.trace.trace import EventWriter, Trace, recording

__all__ = ["Accesses", "EventWriter", "Trace", "recording"]
