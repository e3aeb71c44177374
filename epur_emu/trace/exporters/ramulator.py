"""Ramulator's memory traces, of version 1 and 2: hexadecimal addresses in order, without cycles."""

from __future__ import annotations

from epur_emu._kernels.lines import HEX, WORD, lines
from epur_emu.trace.accesses import Accesses
from epur_emu.trace.exporters.base import Lines, longs


class Ramulator1(Lines):
    """``0xADDRESS R`` or ``W``."""

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""
        columns = [longs(chunk.address), longs(chunk.op)]
        self.file.write(lines(columns, [HEX, WORD], [[], [b"R", b"W"]], b"  "))


class Ramulator2(Lines):
    """``LD 0xADDRESS`` or ``ST``."""

    def feed(self, chunk: Accesses) -> None:
        """Write the next accesses."""
        columns = [longs(chunk.op), longs(chunk.address)]
        self.file.write(lines(columns, [WORD, HEX], [[b"LD", b"ST"], []], b"  "))
