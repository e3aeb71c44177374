"""The DRAM: its controller against the plain twin, its commands against JEDEC's rules, its sums by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epur_emu._kernels import dram as kernel
from epur_emu.cli import main
from epur_emu.errors import EpurError
from epur_emu.replay import dram_oracle, replay
from epur_emu.replay.base import Source
from epur_emu.replay.dram import MAPPINGS, PAGES, REFRESHES, SCHEDULERS, Dram, check_mapping
from epur_emu.replay.dram_oracle import Command
from epur_emu.replay.standards import OPTIONAL, TIMING, Standard, presets
from epur_emu.streams import AccessStream, Component, Phase
from epur_emu.trace import Accesses, Trace

few = settings(max_examples=60, deadline=None)

DRAM = Component("dram", None, 512, 1)
SOURCE = Source((DRAM,), (0,), 1 << 40, {})

Access = tuple[int, int, int, bool]


def columns(accesses: list[Access]) -> Accesses:
    cycle, address, size, write = zip(*accesses, strict=True) if accesses else ((), (), (), ())
    zeros = [0] * len(accesses)
    return Accesses.of(cycle, zeros, [int(w) for w in write], address, size)


@st.composite
def models(draw: st.DrawFn) -> Dram:
    """A controller of a small memory with any timings, so that each of them may be what counts."""
    standard = Standard.load("lpddr4-3200")
    size = st.sampled_from([1, 2, 4])
    organization = standard.organization | {
        "channels": draw(st.sampled_from([1, 2])), "ranks": draw(st.sampled_from([1, 2])),
        "bank_groups": draw(size), "banks": draw(size), "rows": 1 << 24,
        "columns": draw(st.sampled_from([16, 64])),
    }  # fmt: skip
    short = st.integers(0, 40)
    timing = {name: draw(short) for name in TIMING if name != "tCK"}
    for name in ("act_clocks", "pre_clocks", "column_clocks", "refresh_clocks"):
        timing[name] = draw(st.integers(1, 4))
    timing["buses"] = draw(st.sampled_from([1, 2]))
    timing["tFAW"] = draw(st.integers(0, 120))
    refresh = draw(st.sampled_from(REFRESHES))
    units = organization["ranks"]
    if refresh == "per-bank":
        units *= organization["bank_groups"] * organization["banks"]
    timing["tREFI"] = units * draw(st.sampled_from([400, 1500, 20_000]))
    made = replace(standard, organization=organization, timing=timing)
    model = Dram(
        SOURCE,
        mapping=draw(st.sampled_from([*MAPPINGS, "rorabgbacoch+xor"])),
        page=draw(st.sampled_from(PAGES)),
        scheduler=draw(st.sampled_from(SCHEDULERS)),
        queue=draw(st.sampled_from([1, 2, 5, 32])),
        cap=draw(st.sampled_from([1, 2, 4])),
        arrivals="closed-loop",
    )
    model.standard = made
    model.refresh = refresh
    if draw(st.booleans()):
        model.clocks_per_cycle = Fraction(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    return model


@st.composite
def accesses(draw: st.DrawFn, most: int = 40) -> list[Access]:
    n = draw(st.integers(0, most))
    reach = draw(st.sampled_from([3, 6, 12, 24]))
    late = draw(st.sampled_from([0, 300, 6000]))
    cycles = sorted(draw(st.lists(st.integers(0, late), min_size=n, max_size=n)))
    made = []
    for cycle in cycles:
        burst, size = draw(st.integers(0, (1 << reach) - 1)), draw(st.sampled_from([1, 32, 64, 90]))
        made.append((cycle, 32 * burst, size, draw(st.integers(0, 3)) == 0))
    return made


def commands(model: Dram, asked: list[Access], room: int, cut: int) -> list[list[Command]]:
    """What the kernel issues in each channel, with a log so small and the accesses cut there."""
    controller = model.controller(room)
    lines = []
    chunk = columns(asked)
    for part in (chunk[:cut], chunk[cut:]):
        while not controller.feed(part.cycle, part.address, part.bytes, part.op):
            lines += controller.take_log().tolist()
    while not controller.flush():
        lines += controller.take_log().tolist()
    lines += controller.take_log().tolist()
    found: list[list[Command]] = [[] for _ in range(model.standard.organization["channels"])]
    for clock, kind, channel, *rest in lines:
        found[channel].append(Command(clock, kernel.COMMANDS[kind], channel, *rest))
    return found


@few
@given(models(), accesses(), st.integers(1, 60), st.integers(0, 40))
def test_commands_are_those_of_the_twin(
    model: Dram, asked: list[Access], room: int, cut: int
) -> None:
    want = dram_oracle.run(
        asked, model.standard, model.mapping, model.clocks_per_cycle, model.scheduler, model.queue,
        model.cap, model.page, model.refresh,
    )  # fmt: skip
    assert commands(model, asked, room, cut) == want


class Checker:
    """JEDEC's rules over the commands of one channel, each as its text has it."""

    def __init__(self, standard: Standard, issued: list[Command]) -> None:
        self.s, self.t, self.issued = standard, standard.timing, issued

    def of(self, *kinds: str) -> list[Command]:
        return [c for c in self.issued if c.kind in kinds]

    def apart(self, earlier: Command, later: Command, clocks: int, rule: str) -> None:
        assert later.clock - earlier.clock >= clocks, f"{rule}: {earlier} {later}"

    def bank(self, c: Command) -> tuple[int, int, int]:
        return c.rank, c.group, c.bank

    def data(self, c: Command) -> tuple[int, int]:
        t = self.t
        first = c.clock + (t["RL"] + t["tDQSCK"] if c.kind[0] == "R" else t["WL"])
        return first, first + self.s.burst_clocks

    def check(self) -> None:
        self.order_and_buses()
        self.banks()
        for rank in range(self.s.organization["ranks"]):
            self.rank(rank)

    def order_and_buses(self) -> None:
        t = self.t
        clocks = {"ACT": "act_clocks", "PRE": "pre_clocks", "REF": "refresh_clocks"}
        buses: dict[bool, int] = {}
        for c in self.issued:
            column = c.kind[:2] in ("RD", "WR")
            length = t["column_clocks"] if column else t[clocks[c.kind[:3]]]
            bus = column and t["buses"] == 2
            assert c.clock - length >= buses.get(bus, -1), f"command bus: {c}"
            buses[bus] = c.clock
        bursts = self.of("RD", "WR", "RDA", "WRA")
        for one, two in itertools.pairwise(bursts):
            gap = self.data(two)[0] - self.data(one)[1]
            assert gap >= (t["tRTRS"] if one.rank != two.rank else 0), f"data bus: {one} {two}"

    def banks(self) -> None:
        """States of banks, and the distances within one."""
        t = self.t
        opened: dict[Any, Command] = {}
        may_open: dict[Any, int] = {}
        last: dict[Any, list[Command]] = {}
        for c in self.issued:
            bank = self.bank(c)
            if c.kind == "ACT":
                assert bank not in opened, f"open already: {c}"
                assert c.clock >= may_open.get(bank, 0), f"tRP, tRC or tRFC: {c}"
                opened[bank], last[bank] = c, []
                may_open[bank] = c.clock + t["tRAS"] + t["tRP"]
            elif c.kind[:2] in ("RD", "WR"):
                act = opened[bank]
                assert act.row == c.row, f"row: {c}"
                self.apart(act, c, t["tRCDRD" if c.kind[0] == "R" else "tRCDWR"], "tRCD")
                last[bank].append(c)
                if c.kind[2:] == "A":
                    begin = max(act.clock + t["tRAS"], *(self.recovered(x) for x in last[bank]))
                    may_open[bank] = max(may_open[bank], begin + t["tRP"])
                    del opened[bank]
            elif c.kind == "PRE":
                act = opened.pop(bank)
                self.apart(act, c, t["tRAS"], "tRAS")
                for x in last[bank]:
                    assert c.clock >= self.recovered(x), f"tRTP or tWR: {x} {c}"
                may_open[bank] = max(may_open[bank], c.clock + t["tRP"])
            else:
                own = [b for b in {*opened, *may_open} if b == bank or (c.bank < 0 and b[0] == c.rank)]
                assert not {*own} & {*opened}, f"refresh of an open bank: {c}"
                time = t["tRFC" if c.kind == "REF" else "tRFCpb"]
                o = self.s.organization
                everything = [
                    (c.rank, g, b) for g in range(o["bank_groups"]) for b in range(o["banks"])
                ]
                for b in everything if c.bank < 0 else [bank]:
                    assert c.clock >= may_open.get(b, 0), f"tRP before a refresh: {c}"
                    may_open[b] = c.clock + time

    def recovered(self, c: Command) -> int:
        if c.kind[0] == "R":
            return c.clock + self.t["tRTP"]
        return self.data(c)[1] + self.t["tDQSS"] + self.t["tWR"]

    def rank(self, rank: int) -> None:
        t = self.t
        own = [c for c in self.issued if c.rank == rank]
        acts = [c for c in own if c.kind == "ACT"]
        for one, two in itertools.pairwise(acts):
            self.apart(one, two, t["tRRD_S"], "tRRD_S")
        for first, fifth in zip(acts, acts[4:], strict=False):
            self.apart(first, fifth, t["tFAW"], "tFAW")
        for one, two in itertools.combinations(acts, 2):
            if one.group == two.group:
                self.apart(one, two, t["tRRD_L"], "tRRD_L")
        for one, two in itertools.pairwise([c for c in own if c.kind == "PRE"]):
            self.apart(one, two, t["tPPD"], "tPPD")
        columns = [c for c in own if c.kind[:2] in ("RD", "WR")]
        for one, two in itertools.combinations(columns, 2):
            near = one.group == two.group
            if one.kind == two.kind:
                self.apart(one, two, t["tCCD_L" if near else "tCCD_S"], "tCCD")
                self.apart(one, two, t["tCCD_S"], "tCCD_S")
            elif one.kind[0] == "W":
                since = two.clock - self.data(one)[1] - t["tDQSS"]
                assert since >= t["tWTR_S"], f"tWTR_S: {one} {two}"
                assert not near or since >= t["tWTR_L"], f"tWTR_L: {one} {two}"
            else:
                assert self.data(two)[0] - self.data(one)[1] >= t["tWPRE"], f"turn: {one} {two}"
        for one, two in itertools.pairwise([c for c in own if c.kind == "REFPB"]):
            self.apart(one, two, t["tRFCpb"], "tRFCpb")
        for one, two in itertools.pairwise([c for c in own if c.kind in ("REFPB", "ACT")]):
            if one.kind == "REFPB" and two.kind == "ACT":
                self.apart(one, two, t["tRREFD"], "tRREFD")
            elif one.kind == "ACT" and two.kind == "REFPB":
                self.apart(one, two, t["tRRD_S"], "tRRD before a refresh")

    def refreshes(self, kind: str) -> None:
        """Every unit is refreshed in turn, each time soon after it is due."""
        t, o = self.t, self.s.organization
        units = o["ranks"] * (1 if kind == "REF" else o["bank_groups"] * o["banks"])
        interval = t["tREFI"] // units
        slack = t["tRFC"] + t["tRFCpb"] + t["tRAS"] + t["tRP"] + t["tWR"] + t["WL"] + 16 * 44
        own = self.of(kind)
        for number, c in enumerate(own):
            place = (c.rank * o["bank_groups"] + max(c.group, 0)) * o["banks"] + max(c.bank, 0)
            assert number % units == (c.rank if kind == "REF" else place)
            assert 0 <= c.clock - (number + 1) * interval <= slack
        end = max((c.clock for c in self.issued), default=0)
        assert len(own) * interval >= end - interval - slack


@few
@given(models(), accesses(60))
def test_commands_keep_jedecs_rules(model: Dram, asked: list[Access]) -> None:
    wanted = list(
        dram_oracle.requests(asked, model.standard, model.mapping, model.clocks_per_cycle)
    )
    issued = commands(model, asked, 1000, 0)
    served = {}
    for channel, own in enumerate(issued):
        checker = Checker(model.standard, own)
        checker.check()
        # Few rows wait in one bank, so that a refresh is never late by much.
        if model.refresh == "all-bank" and model.standard.timing["tREFI"] > 5000:
            checker.refreshes("REF")
        for c in checker.of("RD", "WR", "RDA", "WRA"):
            assert c.request not in served
            served[c.request] = c
            q = wanted[c.request]
            assert (q.channel, q.rank, q.group, q.bank) == (channel, c.rank, c.group, c.bank)
            assert (q.row, q.column, q.write) == (c.row, c.column, c.kind[0] == "W")
            assert q.arrival is None or c.clock >= q.arrival
        order = [c.request for c in checker.of("RD", "WR", "RDA", "WRA")]
        if model.scheduler == "in-order":
            assert order == sorted(order)
        for one, two in itertools.combinations(order, 2):
            a, b = wanted[one], wanted[two]
            same = (a.rank, a.group, a.bank, a.row, a.column) == (
                b.rank, b.group, b.bank, b.row, b.column,
            )  # fmt: skip
            # What is written stays in order with what is read of the same place.
            assert one < two or not same or not (a.write or b.write)
    assert len(served) == len(wanted)


def broken(kind: str, move: int) -> list[Command]:
    """A run's commands of which one of a kind comes sooner."""
    model = Dram(SOURCE, "lpddr4-3200", 1, arrivals="closed-loop")
    asked = [(0, 2048 * 37 * n, 64, n % 3 == 0) for n in range(400)]
    [issued] = commands(model, asked, 9999, 0)
    Checker(model.standard, issued).check()
    place = [n for n, c in enumerate(issued) if c.kind == kind][-1]
    issued[place] = replace(issued[place], clock=issued[place].clock + move)
    return issued


@pytest.mark.parametrize("kind", ["ACT", "PRE", "RD", "WR", "REF"])
def test_the_checker_finds_a_command_that_comes_too_soon(kind: str) -> None:
    with pytest.raises(AssertionError):
        Checker(Standard.load("lpddr4-3200"), broken(kind, -500)).check()


@few
@given(models(), accesses())
def test_sums_are_those_of_the_commands(model: Dram, asked: list[Access]) -> None:
    issued = [c for own in commands(model, asked, 1000, 0) for c in own]
    controller = model.controller(0)
    chunk = columns(asked)
    assert controller.feed(chunk.cycle, chunk.address, chunk.bytes, chunk.op)
    assert controller.flush()
    kinds = [c.kind for c in issued]
    # Without a log, refreshes of idle time are counted, not made.
    assert controller.counts == {name: kinds.count(name) for name in kernel.COMMANDS}
    assert controller.requests == sum(kinds.count(k) for k in ("RD", "WR", "RDA", "WRA"))
    used: dict[Any, int] = {}
    hits = [0, 0]
    t, burst = model.standard.timing, model.standard.burst_clocks
    ends = []
    for c in issued:
        bank = (c.channel, c.rank, c.group, c.bank)
        if c.kind == "ACT":
            used[bank] = 0
        elif c.kind[:2] in ("RD", "WR"):
            write = c.kind[0] == "W"
            hits[write] += used[bank] > 0
            used[bank] += 1
            late = t["WL"] + t["tDQSS"] if write else t["RL"] + t["tDQSCK"]
            ends.append((write, c.clock + late + burst, c.request))
    assert controller.hits == tuple(hits)
    assert controller.clocks == max((end for _, end, _ in ends), default=0)
    if model.clocks_per_cycle is None:
        return
    wanted = list(
        dram_oracle.requests(asked, model.standard, model.mapping, model.clocks_per_cycle)
    )
    for write, (bins, total, least, most) in enumerate(controller.latencies):
        own = [end - (wanted[n].arrival or 0) for w, end, n in ends if w == write]
        assert int(bins.sum()) == len(own)
        assert total == sum(own)
        if own:
            assert (least, most) == (min(own), max(own))
        lower = kernel.lower_ends()
        for value in own:
            place = kernel.bin_of(value)
            assert lower[place] <= value < lower[place + 1]
            assert bins[place] > 0


def test_rows_are_open_for_as_long_as_the_commands_say() -> None:
    for page in PAGES:
        model = Dram(SOURCE, "lpddr4-3200", 1, page=page, arrivals="closed-loop")
        asked = [(0, 2048 * 37 * (n // 2), 64, n % 3 == 0) for n in range(300)]
        [issued] = commands(model, asked, 9999, 0)
        controller = model.controller(0)
        chunk = columns(asked)
        controller.feed(chunk.cycle, chunk.address, chunk.bytes, chunk.op)
        controller.flush()
        checker = Checker(model.standard, issued)
        begin: dict[Any, int] = {}
        spans = []
        for c in issued:
            if c.kind == "ACT":
                begin[checker.bank(c)] = c.clock
            elif c.kind == "PRE":
                spans.append((begin.pop(checker.bank(c)), c.clock))
            elif c.kind in ("RDA", "WRA"):
                opened = begin.pop(checker.bank(c))
                spans.append(
                    (opened, max(opened + model.standard.timing["tRAS"], checker.recovered(c)))
                )
        spans += [(opened, controller.clocks) for opened in begin.values()]
        clocks = {clock for opened, closed in spans for clock in range(opened, closed)}
        assert controller.active == len(clocks)


def test_idle_time_costs_refreshes_but_no_time() -> None:
    far = 1 << 45
    model = Dram(SOURCE, "lpddr4-3200", 1, clock=1.6e9)
    model.feed(columns([(0, 0, 32, False), (far, 64, 32, False)]))
    found = model.result().details
    interval = model.standard.timing["tREFI"]
    assert abs(found["commands"]["REF"] - far // interval) <= 1
    assert found["commands"]["ACT"] == 2
    # The second finds a closed row, as the first did, and no queue.
    assert found["read_latency_ns"]["most"] < 250 + found["read_latency_ns"]["least"]


def test_energies_by_hand() -> None:
    """DRAMSim3 has the same sums without the clock: V mA clocks, not pJ."""
    found = Standard.load("lpddr4-2400").energies()
    assert found is not None
    clock, devices, volts = 0.83, 4, 1.2
    assert found["activate"] == pytest.approx(
        volts * (80 * (32 + 15) - 47 * 32 - 34 * 15) * clock * devices
    )
    assert found["read"] == pytest.approx(volts * (243 - 47) * 8 * clock * devices)
    assert found["write"] == pytest.approx(volts * (228 - 47) * 8 * clock * devices)
    assert found["refresh"] == pytest.approx(volts * (280 - 34) * 392 * clock * devices)
    assert found["active"] == pytest.approx(volts * 47 * clock * devices)


def test_energy_of_a_run_is_that_of_its_parts() -> None:
    model = Dram(SOURCE, "lpddr4-3200", 2, arrivals="closed-loop")
    model.feed(columns([(0, 64 * n, 64, n % 2 == 0) for n in range(20_000)]))
    found = model.result().details
    costs = model.standard.energies() or {}
    energy = found["energy_pj"]
    assert energy["total"] == pytest.approx(sum(v for k, v in energy.items() if k != "total"))
    assert energy["read"] == pytest.approx(costs["read"] * 20_000)
    assert energy["activate"] == pytest.approx(costs["activate"] * found["commands"]["ACT"])
    standby = energy["active_standby"] / costs["active"]
    standby += energy["precharged_standby"] / costs["precharged"]
    assert standby == pytest.approx(2 * found["clocks"])
    # I/O included: 8.5 pJ for a bit read.
    assert costs["read"] / 256 == pytest.approx(8.5, rel=0.01)


def test_a_stream_of_reads_takes_the_whole_bus() -> None:
    model = Dram(SOURCE, "lpddr4-3733", arrivals="closed-loop", refresh="none")
    n = 64_000
    model.feed(columns([(0, 64 * k, 64, False) for k in range(n)]))
    found = model.result().details
    assert found["bytes_moved"] == found["bytes_asked"] == 64 * n
    assert found["utilization"] > 0.99
    assert found["commands"]["ACT"] == 64 * n // 2048
    assert model.standard.peak_bytes_per_s == pytest.approx(29.87e9, rel=1e-3)


@pytest.mark.parametrize("name", presets())
def test_standards(name: str) -> None:
    found = Standard.load(name)
    assert found.bytes & (found.bytes - 1) == 0
    assert {*found.timing} | {*OPTIONAL, "tCK"} == {*TIMING}
    assert found.burst_clocks >= 1
    assert found.timing["tREFI"] > 5 * found.timing["tRFC"]
    energies = found.energies()
    assert energies is None or min(energies.values()) >= 0
    model = Dram(SOURCE, name, arrivals="closed-loop")
    model.feed(columns([(0, 4096 * k, 64, k % 5 == 0) for k in range(500)]))
    assert model.result().requests == 500 * max(1, 64 // found.burst_bytes)
    with pytest.raises(EpurError, match="beyond"):
        model.feed(columns([(0, found.bytes - 8, 16, False)]))


LPDDR4 = '''name = "mine"
base = "lpddr4-3200"
[timing]
RL = {{ value = {}, unit = "tCK", source = "mine", status = "assumed" }}
'''


def test_a_standard_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LPDDR4.format(99))
    found, base = Standard.load(path), Standard.load("lpddr4-3200")
    assert found.timing == base.timing | {"RL": 99}
    assert (found.name, found.rails) == ("mine", base.rails)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LPDDR4.format(-1), "timing.RL.value"),
        (LPDDR4.format('"x"'), "timing.RL.value"),
        (LPDDR4.format("nan"), "timing.RL.value"),
        (LPDDR4.format(5).replace("tCK", "miles"), "timing.RL.unit"),
        (LPDDR4.format(5).replace("assumed", "true"), "status"),
        (LPDDR4.format(5).replace("RL", "XL"), "timing.XL is unknown"),
        (LPDDR4.format(5).replace("RL", "tREFI"), "timing.tREFI"),
        (LPDDR4.format(5).replace('"lpddr4-3200"', '"lpddr9"'), "lpddr9"),
        ('name = "x"', "organization"),
        ("name = ", "can't be read"),
    ],
)
def test_a_bad_standard_is_told_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EpurError, match=said) as told:
        Standard.load(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"component": "cu.i.weights"}, "no DRAM"),
        ({"component": "*"}, "choose one"),
        ({"standard": "sdram"}, "use one of ddr4-2400"),
        ({"mapping": "rochrababg"}, "use channels-first"),
        ({"mapping": "rochrababgco+and"}, "use channels-first"),
        ({"mapping": "rororababgco"}, "use channels-first"),
        ({"page": "half"}, "open, closed"),
        ({"scheduler": "lifo"}, "in-order"),
        ({"queue": 0}, "1 to 256"),
        ({"cap": 0}, "1 or more"),
        ({"channels": 3}, "1, 2, 4"),
        ({"refresh": "per-bank", "standard": "ddr4-2400"}, "no timings"),
        ({"arrivals": "late"}, "timed"),
        ({"arrivals": "timed"}, "give --clock"),
        ({"clock": 0.0}, "1 to 1e12"),
        ({"clock": float("nan")}, "1 to 1e12"),
        ({"commands": "/nowhere/c.csv"}, "can't be written"),
    ],
)
def test_bad_options_are_told_in_one_line(options: dict[str, Any], said: str) -> None:
    components = (DRAM, Component("cu.i.weights", 1024, 256, 1))
    stream = AccessStream("dram", "read", 64, 0, 0, ((10, 64, 1),))
    trace = Trace([Phase("layer", "load", (stream,))], components, 10)
    with pytest.raises(EpurError, match=said) as told:
        replay(trace, "dram", **options)
    assert "\n" not in str(told.value)


def test_mappings() -> None:
    assert check_mapping("rows-first") == "rochrababgco"
    assert check_mapping("channels-first+xor") == "rorabgbacoch+xor"


def test_files_of_commands_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = AccessStream("memory", "read", 64, 0, 0, ((100, 64, 1),))
    own = Component("memory", None, 512, 1)
    Trace([Phase("layer", "load", (stream,))], (own,), 100).save(tmp_path / "t.h5")
    arguments = [
        "replay", str(tmp_path / "t.h5"), "--memory", "dram", "--component", "memory",
        "--channels", "2", "--commands", str(tmp_path / "c.csv"), "-o", str(tmp_path / "r.h5"),
    ]  # fmt: skip
    main([*arguments, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["arrivals"] == "closed-loop"
    assert shown["reads"] == 200
    counts = dict.fromkeys(shown["commands"], 0)
    for channel in range(2):
        lines = [
            line.split(",")
            for line in (tmp_path / f"c.{channel}.csv").read_text().splitlines()
        ]
        assert lines[-1] == [str(shown["clocks"]), "END", "0", "0", "0", "0", "0"]
        clocks = [int(line[0]) for line in lines]
        assert clocks == sorted(clocks)
        for line in lines[:-1]:
            counts[line[1]] += 1
            assert len(line) == (8 if line[1] == "RD" else 7)
            assert line[1] != "RD" or (len(line[7]) == 64 and int(line[6]) % 16 == 0)
    assert counts == shown["commands"]
    main(arguments)
    assert "% of the peak" in capsys.readouterr().out


def test_latency_bins() -> None:
    lower = kernel.lower_ends()
    assert np.array_equal(lower[:34], [*range(32), 32, 34])
    for value in [0, 1, 15, 16, 31, 32, 33, 1000, (1 << 50) + 12345]:
        place = kernel.bin_of(value)
        assert lower[place] <= value < lower[place + 1]
