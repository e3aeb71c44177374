"""What DRAM traffic and DRAM that waits cost: one TOML file for each standard."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from epur_emu.energy.values import Reader, Value
from epur_emu.errors import TableError
from epur_emu.toml import Presets

#: What the DRAM may do in cycles in which it moves nothing.
DRAM_IDLE = ("standby", "power-down", "self-refresh")


@dataclass(frozen=True)
class Dram:
    """Energy and background power of the DRAM; the powers are those of one channel.

    Refresh is added to standby and power-down; a self-refreshing channel refreshes itself within
    its own power.
    """

    read_pj_per_bit: Value
    write_pj_per_bit: Value
    activate_pj: Value
    page_bytes: Value
    standby_mw: Value
    power_down_mw: Value
    self_refresh_mw: Value
    refresh_mw: Value
    channels: Value

    def pj_per_byte(self, op: str) -> float:
        """A byte read or written, with its share of a page's activation."""
        move = self.read_pj_per_bit if op == "read" else self.write_pj_per_bit
        return 8 * move.value + self.activate_pj.value / self.page_bytes.value

    def background_mw(self, state: str) -> float:
        """Power of all channels in one of `DRAM_IDLE`, refresh included."""
        if state == "self-refresh":
            return self.channels.value * self.self_refresh_mw.value
        one = self.standby_mw if state == "standby" else self.power_down_mw
        return self.channels.value * (one.value + self.refresh_mw.value)

    @classmethod
    def from_dict(cls, plain: Any, source: str = "energy table", field: str = "dram") -> Dram:
        """A DRAM from its fields, each ``{value, unit, source, status}``.

        Raises
        ------
        TableError
            A field is missing, unknown or out of range.
        """
        reader, known = Reader(source), {f.name for f in fields(cls)}
        given = reader.keys(plain, field, known)
        prefix = f"{field}." if field else ""
        return cls(
            **{key: reader.value(given[key], prefix + key, key == "page_bytes") for key in known}
        )

    @classmethod
    def load(cls, name: str) -> Dram:
        """A standard by name, in either case: ``LPDDR4``.

        Raises
        ------
        TableError
            There is none of this name.
        """
        if (key := name.lower()) not in drams():
            raise TableError(
                "energy table", "dram", f"{name!r} is unknown", f"use one of {', '.join(drams())}"
            )
        return cls.from_dict(_PRESETS.own(key), key, "")


_PRESETS = Presets("dram_power", "DRAM", TableError)


def drams() -> list[str]:
    """Names of the standards that come with the package."""
    return _PRESETS.names()
