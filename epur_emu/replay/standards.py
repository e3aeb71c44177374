"""DRAM standards: organisation, timings and currents, each value with its source, from ``data/dram``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from epur_emu.energy.table import STATUSES
from epur_emu.errors import TableError
from epur_emu.toml import Presets

#: Organisation of the memory; all but `channels`, `ranks` and `devices` are powers of two.
ORGANIZATION = (
    "channels", "ranks", "bank_groups", "banks", "rows", "columns", "device_bits", "devices",
    "burst_length", "transfers_per_clock",
)  # fmt: skip

#: Names of JEDEC, and the clocks that commands take on their bus.
TIMING = (
    "tCK", "RL", "WL", "tDQSCK", "tDQSS", "tWPRE", "tRCDRD", "tRCDWR", "tRP", "tRAS", "tRTP", "tWR",
    "tRRD_S", "tRRD_L", "tFAW", "tCCD_S", "tCCD_L", "tWTR_S", "tWTR_L", "tRTRS", "tPPD", "tRFC",
    "tREFI", "tRFCpb", "tRREFD", "act_clocks", "pre_clocks", "column_clocks", "refresh_clocks",
    "buses",
)  # fmt: skip

#: Timings that only standards with refreshes of single banks have.
OPTIONAL = ("tRFCpb", "tRREFD")

#: Supply voltage and currents of one device.
CURRENTS = ("volts", "IDD0", "IDD2N", "IDD3N", "IDD4R", "IDD4W", "IDD5B", "IDD5PB")

_PRESETS = Presets("dram", "DRAM standard", TableError)

#: Most of any timing, so that sums of them can't overflow.
_MOST = 1 << 40


@dataclass(frozen=True)
class Standard:
    """A DRAM: JEDEC's timings in clocks, the organisation, and currents.

    Parameters
    ----------
    name : str
    organization : dict of str to int
        See `ORGANIZATION`; banks are those of a group, columns those of a row.
    clock_fs : int
        Femtoseconds of a clock of the command bus.
    timing : dict of str to int
        See `TIMING`, in clocks; without tCK.
    rails : dict of str to dict of str to float
        `CURRENTS` in V and mA of one device, by supply; empty if they are not known.

    Raises
    ------
    TableError
        A value is out of range; it is named.
    """

    name: str
    organization: dict[str, int]
    clock_fs: int
    timing: dict[str, int]
    rails: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def burst_bytes(self) -> int:
        """Bytes of one burst of one channel."""
        o = self.organization
        return o["burst_length"] * o["device_bits"] * o["devices"] // 8

    @property
    def burst_clocks(self) -> int:
        """Clocks for which a burst takes the data bus."""
        o = self.organization
        return o["burst_length"] // o["transfers_per_clock"]

    @property
    def row_bursts(self) -> int:
        """Bursts of a row."""
        return self.organization["columns"] // self.organization["burst_length"]

    @property
    def bytes(self) -> int:
        """Bytes of all channels."""
        o = self.organization
        banks = o["channels"] * o["ranks"] * o["bank_groups"] * o["banks"]
        return banks * o["rows"] * self.row_bursts * self.burst_bytes

    @property
    def peak_bytes_per_s(self) -> float:
        """Bytes per second of all channels' data buses."""
        channels = self.organization["channels"]
        return channels * self.burst_bytes / (self.burst_clocks * self.seconds(1))

    def seconds(self, clocks: int) -> float:
        """Time of so many clocks."""
        return float(Fraction(clocks * self.clock_fs, 10**15))

    def energies(self) -> dict[str, float] | None:
        """What commands and a clock of a rank cost, in pJ; None if the currents are not known.

        ``activate`` is an activation with its precharge, above standby; ``refresh`` and
        ``refresh_bank`` are above precharged standby; ``read`` and ``write`` are a burst's, above
        active standby; ``active`` and ``precharged`` are one clock of standby. V mA ns is pJ.
        """
        if not self.rails:
            return None
        t, o = self.timing, self.organization
        ns = self.clock_fs / 1e6
        banks = o["bank_groups"] * o["banks"]
        sums = dict.fromkeys(
            ("activate", "read", "write", "refresh", "refresh_bank", "active", "precharged"), 0.0
        )
        for rail in self.rails.values():
            active, idle = rail["IDD3N"], rail["IDD2N"]
            charges = {
                "activate": rail["IDD0"] * (t["tRAS"] + t["tRP"])
                - active * t["tRAS"] - idle * t["tRP"],
                "read": (rail["IDD4R"] - active) * self.burst_clocks,
                "write": (rail["IDD4W"] - active) * self.burst_clocks,
                "refresh": (rail["IDD5B"] - idle) * t["tRFC"],
                # An average over all time, in which one refresh of a bank falls.
                "refresh_bank": (rail.get("IDD5PB", idle) - idle) * (t["tREFI"] // banks),
                "active": active,
                "precharged": idle,
            }  # fmt: skip
            for name, charge in charges.items():
                sums[name] += rail["volts"] * charge * ns * o["devices"]
        return sums

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], source: str | Path = "DRAM standard") -> Standard:
        """Of the tables of a TOML file, all values given.

        Raises
        ------
        TableError
            A field is missing, unknown or out of range; it is named.
        """
        return _Reader(str(source)).standard(plain)

    @classmethod
    def load(cls, name: str | Path) -> Standard:
        """A preset by name, or a TOML file by path; ``base`` in it names what it changes.

        Raises
        ------
        TableError
            No preset and no file is called so, or the file is damaged.
        """
        return _preset(str(name)) or cls._of_file(str(name))

    @classmethod
    def _of_file(cls, name: str) -> Standard:
        plain = _PRESETS.read(name)
        seen = [name]
        while "base" in plain:
            base = str(plain["base"])
            if base in seen:
                raise TableError(seen[-1], "base", f"is {base!r:.40} again", "name another")
            seen.append(base)
            below = _PRESETS.read(base, seen[-2])
            own = {key: value for key, value in plain.items() if key != "base"}
            plain = _over(below, own)
        return cls.from_dict(plain, name)


@cache
def _preset(name: str) -> Standard | None:
    """A preset is read and checked once, which takes as long as a short replay."""
    return Standard._of_file(name) if name in presets() else None


def presets() -> list[str]:
    """Names of the standards that come with the package."""
    return _PRESETS.names()


def _over(below: Any, own: Any) -> Any:
    """The tables of `below` with the values of `own` in their places."""
    if not isinstance(below, dict) or not isinstance(own, dict) or "value" in own:
        return own
    return below | {key: _over(below.get(key), value) for key, value in own.items()}


@dataclass(frozen=True)
class _Reader:
    source: str

    def fail(self, place: str, problem: str, remedy: str) -> TableError:
        return TableError(self.source, place, problem, remedy)

    def table(self, plain: Any, place: str, known: tuple[str, ...], optional: tuple[str, ...] = ()
              ) -> Mapping[str, Any]:  # fmt: skip
        if not isinstance(plain, Mapping):
            raise self.fail(place, f"is {plain!r:.40}", "give a table")
        for odd, problem in (
            (set(known) - set(plain) - set(optional), "is missing"),
            (set(plain) - set(known), "is unknown"),
        ):
            if odd:
                where = ", ".join(f"{place}.{key}" if place else key for key in sorted(odd))
                raise self.fail(where, problem, "mend the fields")
        return plain

    def number(self, plain: Any, place: str, units: tuple[str, ...] = ()) -> float:
        """The value of an entry with unit, source and status."""
        entry = self.table(plain, place, ("value", "unit", "source", "status", "least"), ("least",))
        value = entry["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
            raise self.fail(f"{place}.value", f"is {value!r:.40}", "give a number, 0 or more")
        if units and entry["unit"] not in units:
            raise self.fail(
                f"{place}.unit", f"is {entry['unit']!r:.40}", f"use {' or '.join(units)}"
            )
        if not isinstance(entry["source"], str) or not entry["source"]:
            raise self.fail(f"{place}.source", f"is {entry['source']!r:.40}", "say where it is from")
        if entry["status"] not in STATUSES:
            raise self.fail(
                f"{place}.status", f"is {entry['status']!r:.40}", f"use one of {STATUSES}"
            )
        return value

    def whole(self, plain: Any, place: str, least: int = 0) -> int:
        value = self.number(plain, place)
        if value != int(value) or value < least:
            raise self.fail(f"{place}.value", f"is {value}", f"give an integer from {least}")
        return int(value)

    def clocks(self, plain: Any, place: str, clock_fs: int) -> int:
        """Clocks of a timing: ns are rounded up, the refresh interval down."""
        value = self.number(plain, place, ("ns", "tCK", "command buses"))
        if plain["unit"] != "ns":
            return self.whole(plain, place)
        exact = Fraction(str(value)) * 10**6 / clock_fs
        least = plain.get("least", 0)
        if not isinstance(least, int) or not 0 <= least < _MOST:
            raise self.fail(f"{place}.least", f"is {least!r:.40}", "give an integer, 0 or more")
        return max(least, math.floor(exact) if place.endswith("tREFI") else math.ceil(exact))

    def standard(self, plain: Mapping[str, Any]) -> Standard:
        given = self.table(plain, "", ("name", "organization", "timing", "rails"), ("rails",))
        if not isinstance(given["name"], str) or not given["name"]:
            raise self.fail("name", f"is {given['name']!r:.40}", "give a text")
        own = self.table(given["organization"], "organization", ORGANIZATION)
        organization = {
            key: self.whole(own[key], f"organization.{key}", 1) for key in ORGANIZATION
        }
        for key, value in organization.items():
            if value & (value - 1) or value > 1 << 24:
                raise self.fail(f"organization.{key}.value", f"is {value}", "give a power of two")
        if organization["burst_length"] > organization["columns"]:
            raise self.fail("organization.burst_length.value", "is over a row", "mend the columns")
        if organization["transfers_per_clock"] > organization["burst_length"]:
            raise self.fail(
                "organization.transfers_per_clock.value", "is over a burst", "mend the burst"
            )
        if organization["device_bits"] * organization["devices"] % 8:
            raise self.fail("organization.device_bits.value", "is no whole byte", "mend the width")
        raw = self.table(given["timing"], "timing", TIMING, OPTIONAL)
        clock_fs = round(self.number(raw["tCK"], "timing.tCK", ("ns",)) * 10**6)
        if not 1 <= clock_fs <= 10**9:
            raise self.fail("timing.tCK.value", f"is {clock_fs} fs", "give 0.000001 to 1000 ns")
        timing = {
            key: self.clocks(raw[key], f"timing.{key}", clock_fs)
            for key in TIMING
            if key in raw and key != "tCK"
        }
        for key in ("act_clocks", "pre_clocks", "column_clocks", "refresh_clocks", "buses"):
            if not 1 <= timing[key] <= (2 if key == "buses" else 64):
                raise self.fail(f"timing.{key}.value", f"is {timing[key]}", "give 1 or a few")
        banks = organization["ranks"] * organization["bank_groups"] * organization["banks"]
        whole = timing["tRFC"] + timing["tRP"] + timing["tRAS"] + timing["tWR"] + 64
        for busy, parts in ((whole, organization["ranks"]), (timing.get("tRFCpb", 0) + 64, banks)):
            if timing["tREFI"] // parts <= busy and (parts != banks or "tRFCpb" in timing):
                raise self.fail(
                    "timing.tREFI.value", f"is {timing['tREFI']} clocks, for refreshes of {busy}",
                    "give more",
                )  # fmt: skip
        rails = {
            name: {
                key: self.number(rail[key], f"rails.{name}.{key}", ("V", "mA"))
                for key in self.table(rail, f"rails.{name}", CURRENTS, ("IDD5PB",))
            }
            for name, rail in self._rails(given.get("rails", {})).items()
        }
        return Standard(given["name"], organization, clock_fs, timing, rails)

    def _rails(self, plain: Any) -> Mapping[str, Any]:
        if not isinstance(plain, Mapping):
            raise self.fail("rails", f"is {plain!r:.40}", "give a table for each supply")
        return plain


