"""DRAMSim3's traces: ``0xADDRESS READ CYCLE`` or ``WRITE``."""

from __future__ import annotations

from epur_emu._kernels.lines import DECIMAL, HEX, WORD, lines
from epur_emu.trace.accesses import Accesses
from epur_emu.trace.exporters.base import Lines, longs


class DramSim3(Lines):
    """Cycles are those of the accelerator's clock."""

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""
        columns = [longs(chunk.address), longs(chunk.op), longs(chunk.cycle)]
        kinds = [HEX, WORD, DECIMAL]
        self.file.write(lines(columns, kinds, [[], [b"READ", b"WRITE"], []], b"   "))
