"""A DRAM behind a controller: commands, row hits, latencies, bandwidth and energy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from epur_emu._kernels import dram as kernel
from epur_emu.errors import TraceError
from epur_emu.replay.base import Result, Source
from epur_emu.replay.standards import Standard
from epur_emu.trace import Accesses

Longs = npt.NDArray[np.int64]

SCHEDULERS = ("in-order", "fr-fcfs")
PAGES = ("open", "closed")
REFRESHES = ("all-bank", "per-bank", "none")
ARRIVALS = ("timed", "closed-loop")

#: Fields of a burst's number from the highest to the lowest, by what is neighbours' first.
MAPPINGS = {
    "channels-first": "rorabgbacoch",
    "groups-first": "roracochbabg",
    "rows-first": "rochrababgco",
    "banks-apart": "chrabgbaroco",
}

#: The component that the model stands for.
DRAM = "dram"

#: Most requests that a controller's queue holds.
DEEPEST = 256

#: Clocks beyond which a trace is too long.
_MOST = 1 << 60

#: Commands kept before they are written.
_LOG = 1 << 16

#: Names of the commands in DRAMPower's files.
_DRAMPOWER = {"REF": "REFA", "REFPB": "REFB"}


class Dram:
    """A DRAM of one standard, its controller, and what it costs.

    Each channel has a queue of its own; channels don't wait for each other. The next command is
    the one that the timings allow first, a read or write before others, older requests before
    younger ones. ``in-order`` reads and writes in the order of requests, and opens rows for later
    ones meanwhile; ``fr-fcfs`` lets requests for open rows pass others.

    Parameters
    ----------
    source : Source
    standard : str
        A preset or a TOML file.
    channels : int, optional
        Instead of the standard's.
    mapping : str
        A name of `MAPPINGS`, or the fields ch, ra, bg, ba, ro, co from the highest to the lowest,
        ``rochrababgco`` say; ``+xor`` at its end permutes banks by the row (Zhang et al., MICRO
        2000).
    page : {'open', 'closed'}
        Whether rows stay open, or close with each read or write.
    scheduler : {'fr-fcfs', 'in-order'}
    queue : int
        Requests of a channel that the controller sees.
    cap : int
        Reads and writes of an open row before an older request may close it.
    refresh : {'all-bank', 'per-bank', 'none'}
    arrivals : {'timed', 'closed-loop'}, optional
        Whether requests come in the trace's cycles, or each as soon as the queue has room. By
        default timed if the clock is known.
    clock : float, optional
        Cycles of the trace per second; by default those of the trace's accelerator.
    commands : str or path, optional
        Write the commands to this CSV file, as DRAMPower 5 reads them; of several channels each to
        its own.

    Raises
    ------
    TraceError
        An option is not valid, or the component is no DRAM.
    TableError
        The standard is unknown or damaged.
    """

    def __init__(
        self,
        source: Source,
        standard: str = "lpddr4-3733",
        channels: int | None = None,
        mapping: str = "channels-first",
        page: str = "open",
        scheduler: str = "fr-fcfs",
        queue: int = 32,
        cap: int = 4,
        refresh: str = "all-bank",
        arrivals: str | None = None,
        clock: float | None = None,
        commands: str | os.PathLike[str] | None = None,
    ) -> None:
        self.component = _component(source)
        found = Standard.load(standard)
        if channels is not None:
            if not 1 <= channels <= 256 or channels & (channels - 1):
                raise TraceError("replay", "channels", f"are {channels}", "give 1, 2, 4, ... 256")
            found = replace(found, organization=found.organization | {"channels": channels})
        self.standard = found
        self.mapping = check_mapping(mapping)
        for name, value, known in (
            ("page", page, PAGES),
            ("scheduler", scheduler, SCHEDULERS),
            ("refresh", refresh, REFRESHES),
            ("arrivals", arrivals or ARRIVALS[0], ARRIVALS),
        ):
            if value not in known:
                raise TraceError(
                    "replay", name, f"is {value!r:.40}", f"use one of {', '.join(known)}"
                )
        if not 1 <= queue <= DEEPEST:
            raise TraceError("replay", "queue", f"is {queue}", f"give 1 to {DEEPEST}")
        if not 1 <= cap <= 1 << 30:
            raise TraceError("replay", "cap", f"is {cap}", "give 1 or more")
        if refresh == "per-bank" and "tRFCpb" not in found.timing:
            raise TraceError(
                "replay", "refresh", f"is per bank, which {found.name} has no timings for",
                "use all-bank",
            )  # fmt: skip
        self.page, self.scheduler, self.queue, self.cap = page, scheduler, queue, cap
        self.refresh = refresh
        self.clocks_per_cycle = self._ratio(source, arrivals, clock)
        ratio = self.clocks_per_cycle or Fraction(0)
        if ratio.numerator >= 1 << 62 or ratio.denominator >= 1 << 62:
            raise TraceError("replay", "clock", f"is {clock}", "give one of at most 9 digits")
        self._files = None if commands is None else _CommandFiles(Path(commands), found)
        self._kernel = self.controller(0 if self._files is None else _LOG)
        self._bytes = 0

    def controller(self, log_room: int) -> kernel.Dram:
        """A fresh controller that keeps up to so many commands until they are taken."""
        ratio = self.clocks_per_cycle or Fraction(0)
        policy = [
            SCHEDULERS.index(self.scheduler), self.queue, self.cap, PAGES.index(self.page),
            REFRESHES.index(self.refresh), ratio.numerator, ratio.denominator,
        ]  # fmt: skip
        return kernel.Dram(
            np.array(_timing(self.standard), np.int64),
            np.array(list(_fields(self.mapping, self.standard)), np.int64),
            np.array(policy, np.int64),
            log_room,
        )

    def _ratio(self, source: Source, arrivals: str | None, clock: float | None) -> Fraction | None:
        """Clocks of the DRAM for each cycle of the trace; None for the closed loop."""
        if arrivals == "closed-loop":
            return None
        hertz = clock
        if hertz is None and (accelerator := source.accelerator):
            hertz = accelerator.clock_hz
        if hertz is None:
            if arrivals == "timed":
                raise TraceError(
                    "replay", "clock", "is not told by the trace", "give --clock, 500e6 say"
                )
            return None
        if not 1 <= hertz <= 1e12:
            raise TraceError("replay", "clock", f"is {hertz}", "give 1 to 1e12 cycles per second")
        return Fraction(10**15) / (Fraction(str(hertz)) * self.standard.clock_fs)

    def feed(self, chunk: Accesses) -> None:
        """Take the next accesses.

        Raises
        ------
        TraceError
            One lies beyond the memory, or is too late.
        """
        if not len(chunk):
            return
        end = int((chunk.address + chunk.bytes).max())
        if end > self.standard.bytes:
            raise TraceError(
                "replay", "address",
                f"{end - 1} is beyond the {self.standard.bytes} bytes of {self.standard.name}",
                "use more channels or another standard",
            )  # fmt: skip
        if int(chunk.cycle.max()) * (self.clocks_per_cycle or 0) > _MOST:
            raise TraceError(
                "replay", "cycle", f"is {int(chunk.cycle.max())}", "use closed-loop arrivals"
            )
        self._bytes += int(chunk.bytes.sum())
        cycle, address, size = map(
            np.ascontiguousarray, (chunk.cycle, chunk.address, chunk.bytes)
        )
        op = np.ascontiguousarray(chunk.op)
        while not self._kernel.feed(cycle, address, size, op):
            self._write()

    def _write(self) -> None:
        if self._files is not None:
            self._files.write(self._kernel.take_log())

    def result(self) -> Result:
        """Counts, rates, latencies and energies; all that is still waiting is served first."""
        while not self._kernel.flush():
            self._write()
        if self._files is not None:
            self._write()
            self._files.close(self._kernel.clocks)
        s, k = self.standard, self._kernel
        counts, clocks = k.counts, k.clocks
        reads, writes = counts["RD"] + counts["RDA"], counts["WR"] + counts["WRA"]
        served = reads + writes
        seconds = s.seconds(clocks)
        moved = served * s.burst_bytes
        rate = moved / seconds if seconds else 0.0
        ns = s.clock_fs / 1e6
        found: dict[str, Any] = {
            "standard": s.name,
            "channels": s.organization["channels"],
            "mapping": self.mapping,
            "page": self.page,
            "scheduler": self.scheduler,
            "queue": self.queue,
            "cap": self.cap,
            "refresh": self.refresh,
            "arrivals": ARRIVALS[self.clocks_per_cycle is None],
            "reads": reads,
            "writes": writes,
            "commands": counts,
            "row_hits": {"read": k.hits[0], "write": k.hits[1]},
            "row_hit_rate": sum(k.hits) / served if served else 0.0,
            "clocks": clocks,
            "seconds": seconds,
            "bytes_moved": moved,
            "bytes_asked": self._bytes,
            "bandwidth_bytes_per_s": rate,
            "peak_bytes_per_s": s.peak_bytes_per_s,
            "utilization": rate / s.peak_bytes_per_s,
        }
        lower = kernel.lower_ends()
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (bins, total, least, most) in zip(
            ("read", "write"), k.latencies, strict=True
        ):
            number = int(bins.sum())
            found[f"{name}_latency_ns"] = None if not number else {
                "least": least * ns,
                "mean": total / number * ns,
                **{f"p{p}": _percentile(bins, lower, p) * ns for p in (50, 90, 99)},
                "most": most * ns,
            }  # fmt: skip
            last = int(np.flatnonzero(bins)[-1]) + 1 if number else 0
            arrays[f"latency/{name}"] = bins[:last]
        arrays["latency/lower_end_ns"] = (
            lower[: max(a.size for a in arrays.values())].astype(np.float64) * ns
        )
        found["energy_pj"] = self._energy(counts, reads, writes, clocks)
        return Result("dram", self.component, served, None, found, arrays)

    def _energy(
        self, counts: dict[str, int], reads: int, writes: int, clocks: int
    ) -> dict[str, float] | None:
        """By cause, and in all; None if the standard has no currents."""
        costs = self.standard.energies()
        if costs is None:
            return None
        o = self.standard.organization
        # A row that closes by itself after the last data stays out of the run's time.
        ranks = o["channels"] * o["ranks"]
        active = min(self._kernel.active, ranks * clocks)
        energy = {
            "activate": costs["activate"] * counts["ACT"],
            "read": costs["read"] * reads,
            "write": costs["write"] * writes,
            "refresh": costs["refresh"] * counts["REF"] + costs["refresh_bank"] * counts["REFPB"],
            "active_standby": costs["active"] * active,
            "precharged_standby": costs["precharged"] * (ranks * clocks - active),
        }
        return {"total": math.fsum(energy.values()), **energy}


def _component(source: Source) -> str:
    names = [component.name for component in source.components]
    if len(source.names) != 1:
        raise TraceError(
            "replay", "component", f"are {', '.join(source.names)}", "choose one, the DRAM"
        )
    # Traces of other programs may call theirs as they like.
    if DRAM in names and source.names[0] != DRAM:
        raise TraceError(
            "replay", "component", f"is {source.names[0]}, which is no DRAM", f"use {DRAM}"
        )
    return source.names[0]


def check_mapping(text: str) -> str:
    """The fields of a mapping's name or string.

    Raises
    ------
    TraceError
        It does not have each field once.
    """
    name, plus, rest = text.partition("+")
    fields = MAPPINGS.get(name, name)
    if (
        sorted(re.findall("..", fields)) != sorted(kernel.FIELDS)
        or len(fields) != 2 * len(kernel.FIELDS)
        or (plus and rest != "xor")
    ):
        raise TraceError(
            "replay", "mapping", f"is {text!r:.40}",
            f"use {', '.join(MAPPINGS)} or an order of {' '.join(kernel.FIELDS)} without blanks, "
            "perhaps with +xor",
        )  # fmt: skip
    return fields + ("+xor" if plus else "")


def _fields(mapping: str, standard: Standard) -> Iterator[int]:
    """Shifts and masks of the kernel's fields, the burst's shift, and whether banks are permuted."""
    name, plus, _ = mapping.partition("+")
    o = standard.organization
    sizes = dict(
        zip(
            kernel.FIELDS,
            (
                o["channels"], o["ranks"], o["bank_groups"], o["banks"], o["rows"],
                standard.row_bursts,
            ),
            strict=True,
        )
    )  # fmt: skip
    shifts, shift = {}, 0
    for key in reversed(re.findall("..", name)):
        shifts[key] = shift
        shift += sizes[key].bit_length() - 1
    yield from (shifts[key] for key in kernel.FIELDS)
    yield from (sizes[key] - 1 for key in kernel.FIELDS)
    yield standard.burst_bytes.bit_length() - 1
    yield int(bool(plus))


def _timing(standard: Standard) -> list[int]:
    """The kernel's timings, in its order."""
    t, o = standard.timing, standard.organization
    latency = t["RL"] + t["tDQSCK"]
    values = {
        "channels": o["channels"],
        "ranks": o["ranks"],
        "groups": o["bank_groups"],
        "banks": o["banks"],
        "burst": standard.burst_clocks,
        "read_latency": latency,
        "write_latency": t["WL"],
        "write_late": t["tDQSS"],
        "rcd_read": t["tRCDRD"],
        "rcd_write": t["tRCDWR"],
        "rtw": latency + standard.burst_clocks + t["tWPRE"] - t["WL"],
        "rfc_bank": t.get("tRFCpb", 0),
        "rrefd": t.get("tRREFD", 0),
    }
    jedec = {
        name.lower().removeprefix("t") if name[0] == "t" else name: value
        for name, value in t.items()
    }
    return [values.get(name, jedec.get(name, 0)) for name in kernel.TIMING]


def _percentile(bins: npt.NDArray[np.uint64], lower: Longs, percent: int) -> int:
    """Lower end of the bin in which so many percent of all are reached."""
    sums = np.cumsum(bins)
    rank = -(-int(sums[-1]) * percent // 100)
    return int(lower[int(np.searchsorted(sums, np.uint64(rank)))])


class _CommandFiles:
    """Commands as DRAMPower 5 reads them: clock, command, rank, bank group, bank, row, column, data.

    A trace tells no data, so they are zeros; they matter to DRAMPower's interface, not to its core.
    """

    def __init__(self, path: Path, standard: Standard) -> None:
        self._path = path
        self._data = "0" * (2 * standard.burst_bytes)
        self._banks = standard.organization["banks"]
        self._burst = standard.organization["burst_length"]
        channels = standard.organization["channels"]
        paths = [path]
        if channels > 1:
            paths = [path.with_suffix(f".{n}{path.suffix}") for n in range(channels)]
        self._files: list[IO[str]] = []
        with self._guard():
            for one in paths:
                self._files.append(one.open("w", encoding="ascii"))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Tells an error of the file system in one line."""
        try:
            yield
        except OSError as error:
            for file in self._files:
                # What is buffered can't be written either.
                with suppress(OSError):
                    file.close()
            raise TraceError(
                self._path, "", f"can't be written ({error})", "choose another place or free space"
            ) from error

    def write(self, log: Longs) -> None:
        """Add commands of the kernel's log."""
        with self._guard():
            for clock, kind, channel, rank, group, bank, row, column, _ in log.tolist():
                name = kernel.COMMANDS[kind]
                data = f",{self._data}" if name[:2] in ("RD", "WR") else ""
                place = max(group, 0) * self._banks + max(bank, 0)
                self._files[channel].write(
                    f"{clock},{_DRAMPOWER.get(name, name)},{rank},{max(group, 0)},{place},"
                    f"{max(row, 0)},{max(column, 0) * self._burst}{data}\n"
                )

    def close(self, clock: int) -> None:
        """End the files."""
        with self._guard():
            for file in self._files:
                file.write(f"{clock},END,0,0,0,0,0\n")
                file.close()
