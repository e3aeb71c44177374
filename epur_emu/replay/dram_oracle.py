"""The DRAM controller in plain Python, by definition: what `_kernels/controller.c` must equal.

The first clock of a command is looked for among all commands before it, pair by pair. Of banks and
buses no state is carried along but the open rows, so faults of the kernel's bookkeeping show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from epur_emu.replay.standards import Standard

COLUMN = ("RD", "WR", "RDA", "WRA")
NEVER = -(1 << 61)


@dataclass(frozen=True)
class Request:
    """A burst: when it comes (None: as soon as the queue has room), and where it lies."""

    arrival: int | None
    write: bool
    channel: int
    rank: int
    group: int
    bank: int
    row: int
    column: int
    id: int


@dataclass(frozen=True)
class Command:
    """A command at its last clock; what has no bank, row or column has -1 there."""

    clock: int
    kind: str
    channel: int
    rank: int
    group: int
    bank: int
    row: int
    column: int
    request: int


def place(burst: int, mapping: str, standard: Standard) -> dict[str, int]:
    """Where the burst of a number lies; the mapping's fields are from the highest to the lowest."""
    name, plus, _ = mapping.partition("+")
    o = standard.organization
    sizes = {
        "ch": o["channels"], "ra": o["ranks"], "bg": o["bank_groups"], "ba": o["banks"],
        "ro": o["rows"], "co": standard.row_bursts,
    }  # fmt: skip
    found = {}
    for start in range(len(name) - 2, -1, -2):
        key = name[start : start + 2]
        burst, found[key] = divmod(burst, sizes[key])
    if plus:
        both = found["bg"] * sizes["ba"] + found["ba"]
        both ^= found["ro"] % (sizes["bg"] * sizes["ba"])
        found["bg"], found["ba"] = divmod(both, sizes["ba"])
    return found


def requests(
    accesses: Sequence[tuple[int, int, int, bool]],
    standard: Standard,
    mapping: str,
    clocks_per_cycle: Fraction | None,
) -> Iterator[Request]:
    """Bursts of accesses (cycle, address, bytes, write); no clocks per cycle is the closed loop."""
    number = 0
    size = standard.burst_bytes
    for cycle, address, length, write in accesses:
        for burst in range(address // size, (address + length - 1) // size + 1):
            at = place(burst, mapping, standard)
            arrival = None if clocks_per_cycle is None else int(cycle * clocks_per_cycle)
            yield Request(
                arrival, write, at["ch"], at["ra"], at["bg"], at["ba"], at["ro"], at["co"], number
            )
            number += 1


class Channel:
    """One channel of a controller; `run` gives its commands.

    Parameters
    ----------
    standard : Standard
    queue : list of Request
        All requests of the channel, in order.
    scheduler, page, refresh : str
    depth, cap : int
        Requests that the controller sees, and columns of a row before an older request may close it.
    """

    def __init__(
        self,
        standard: Standard,
        queue: Sequence[Request],
        scheduler: str,
        depth: int,
        cap: int,
        page: str,
        refresh: str,
    ) -> None:
        self.t, self.o = standard.timing, standard.organization
        self.burst = standard.burst_clocks
        self.waiting, self.later = list(queue[:0]), list(queue)
        self.scheduler, self.depth, self.cap = scheduler, depth, cap
        self.page, self.refresh = page, refresh
        self.done: list[Command] = []
        self.open: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.refreshes = 0
        self.number = queue[0].channel if queue else 0
        self.freed = 0

    def length(self, kind: str) -> int:
        """Clocks of a command on its bus."""
        names = {"ACT": "act_clocks", "PRE": "pre_clocks"}
        column = "column_clocks" if kind in COLUMN else "refresh_clocks"
        return self.t[names.get(kind, column)]

    def bus(self, kind: str) -> int:
        """The bus that a command takes."""
        return int(kind in COLUMN and self.t["buses"] == 2)

    def first_data(self, kind: str) -> int:
        """Clocks from a column command to its data."""
        return self.t["RL"] + self.t["tDQSCK"] if kind.startswith("RD") else self.t["WL"]

    def recovered(self, command: Command) -> int:
        """Clock at which a column command's row may be closed."""
        t = self.t
        if command.kind.startswith("RD"):
            return command.clock + t["tRTP"]
        return command.clock + t["WL"] + t["tDQSS"] + self.burst + t["tWR"]

    def closes(self, command: Command, opened: int) -> int:
        """Clock at which a column command with precharge closes its row."""
        return max(self.recovered(command), opened + self.t["tRAS"])

    def first(self, kind: str, rank: int, group: int, bank: int) -> int:
        """First clock at which a command keeps its distance to all that were issued."""
        t, at = self.t, 0
        activations = []
        opened = NEVER
        for old in self.done:
            if self.bus(old.kind) == self.bus(kind):
                at = max(at, old.clock + self.length(kind))
            same_rank = old.rank == rank
            same_group = same_rank and old.group == group
            # A refresh of a rank has all its banks.
            whole = kind == "REF" or old.kind == "REF"
            same_bank = same_rank and (whole or (same_group and old.bank == bank))
            if old.kind == "ACT" and same_bank:
                opened = old.clock
            if kind in COLUMN and old.kind in COLUMN:
                apart = 0 if same_rank else t["tRTRS"]
                until = old.clock + self.first_data(old.kind) + self.burst
                at = max(at, until + apart - self.first_data(kind))
            if not same_rank:
                continue
            at = max(at, old.clock + self.distance(old.kind, kind, same_group, same_bank))
            if same_bank:
                if kind == "PRE" and old.kind in COLUMN:
                    at = max(at, self.recovered(old))
                if kind in ("ACT", "REF", "REFPB") and old.kind in ("RDA", "WRA"):
                    row_opened = max(
                        c.clock
                        for c in self.done
                        if c.kind == "ACT" and c.clock <= old.clock
                        and (c.rank, c.group, c.bank) == (old.rank, old.group, old.bank)
                    )  # fmt: skip
                    at = max(at, self.closes(old, row_opened) + t["tRP"])
            if kind == "ACT" and old.kind == "ACT":
                activations.append(old.clock)
        if len(activations) >= 4:
            at = max(at, sorted(activations)[-4] + t["tFAW"])
        return max(at, opened + t["tRAS"] if kind == "PRE" else 0, self.length(kind) - 1)

    def distance(self, old: str, new: str, same_group: bool, same_bank: bool) -> int:
        """Clocks between two commands of a rank, but for what depends on more than the two."""
        t = self.t
        reads = ("RD", "RDA")
        if old in COLUMN and new in COLUMN:
            if (old in reads) == (new in reads):
                return max(t["tCCD_S"], t["tCCD_L"] if same_group else 0)
            if old in reads:
                return t["RL"] + t["tDQSCK"] + self.burst + t["tWPRE"] - t["WL"]
            after = t["WL"] + t["tDQSS"] + self.burst
            return after + max(t["tWTR_S"], t["tWTR_L"] if same_group else 0)
        if old == "ACT":
            if new in COLUMN:
                return t["tRCDRD" if new in reads else "tRCDWR"] if same_bank else NEVER
            if new == "ACT":
                apart = max(t["tRRD_S"], t["tRRD_L"] if same_group else 0)
                return max(apart, t["tRAS"] + t["tRP"] if same_bank else 0)
            if new == "REFPB":
                return max(t["tRRD_S"], t["tRAS"] + t["tRP"] if same_bank else 0)
            if new == "REF":
                return t["tRAS"] + t["tRP"]
        if old == "PRE":
            if new == "PRE":
                return t["tPPD"]
            if new in ("ACT", "REF", "REFPB"):
                return t["tRP"] if same_bank else NEVER
        if old == "REF" and new in ("ACT", "REF", "REFPB"):
            return t["tRFC"]
        if old == "REFPB":
            if new == "REFPB":
                return t["tRFCpb"]
            if new == "ACT":
                return max(t["tRREFD"], t["tRFCpb"] if same_bank else 0)
        return NEVER

    def where(self, q: Request) -> tuple[int, int, int]:
        """A request's bank."""
        return q.rank, q.group, q.bank

    def units(self) -> list[tuple[int, ...]]:
        """What is refreshed in turn: ranks, or banks."""
        o = self.o
        ranks = range(o["ranks"])
        if self.refresh == "all-bank":
            return [(rank,) for rank in ranks]
        return [
            (rank, group, bank)
            for rank in ranks
            for group in range(o["bank_groups"])
            for bank in range(o["banks"])
        ]

    def candidates(self) -> Iterator[tuple[int, int, int, str]]:
        """(clock, 0 for columns, place in the queue, kind) of all that may go next."""
        for number, q in enumerate(self.waiting):
            own = [o for o in self.waiting[:number] if self.where(o) == self.where(q)]
            row, used = self.open.get(self.where(q), (-1, 0))
            if row == q.row:
                kind = ("WR" if q.write else "RD") + ("A" if self.page == "closed" else "")
                if number and self.scheduler == "in-order":
                    continue
                if any(o.row == q.row and o.column == q.column and o.write | q.write for o in own):
                    continue
                if used >= self.cap and any(o.row != q.row for o in own):
                    continue
            else:
                kind = "ACT" if row < 0 else "PRE"
                if own:
                    continue
            clock = self.first(kind, *self.where(q))
            clock = max(clock, (q.arrival or 0) + self.length(kind) - 1)
            if kind == "PRE" and self.scheduler == "fr-fcfs" and used < self.cap:
                arrived = [o for o in self.waiting if (o.arrival or 0) <= clock]
                if any(self.where(o) == self.where(q) and o.row == row for o in arrived):
                    continue
            yield clock, int(kind not in COLUMN), number, kind

    def issue(self, clock: int, kind: str, where: tuple[int, ...], q: Request | None) -> None:
        """Issue a command of a bank or a rank."""
        rank, group, bank = _filled(where)
        row = q.row if q else -1
        if kind == "PRE":
            row = self.open[(rank, group, bank)][0]
        self.done.append(
            Command(
                clock, kind, self.number, rank, group, bank, row,
                q.column if q and kind in COLUMN else -1, q.id if q else -1,
            )
        )  # fmt: skip
        if kind == "ACT" and q:
            self.open[self.where(q)] = (q.row, 0)
        elif kind in ("PRE", "RDA", "WRA"):
            del self.open[(rank, group, bank)]
        elif kind in ("RD", "WR"):
            self.open[(rank, group, bank)] = (row, self.open[(rank, group, bank)][1] + 1)

    def run(self) -> list[Command]:
        """All commands, until the last request is served."""
        while self.waiting or self.later:
            while self.later and len(self.waiting) < self.depth:
                q = self.later.pop(0)
                self.waiting.append(q if q.arrival is not None else replace(q, arrival=self.freed))
            due, unit = 1 << 62, tuple[int, ...]()
            if self.refresh != "none":
                units = self.units()
                due = (self.refreshes + 1) * (self.t["tREFI"] // len(units))
                unit = units[self.refreshes % len(units)]
            found = [
                c
                for c in self.candidates()
                if c[0] < due or self.where(self.waiting[c[2]])[: len(unit)] != unit
            ]
            best = min(found, default=(1 << 62, 0, 0, ""))
            if best[0] >= due:
                still = sorted(bank for bank in self.open if bank[: len(unit)] == unit)
                if still:
                    clock, bank = min((max(due, self.first("PRE", *b)), b) for b in still)
                    if clock <= best[0]:
                        self.issue(clock, "PRE", bank, None)
                        continue
                else:
                    kind = "REF" if self.refresh == "all-bank" else "REFPB"
                    clock = max(due, self.first(kind, *_filled(unit)))
                    if clock <= best[0]:
                        self.issue(clock, kind, unit, None)
                        self.refreshes += 1
                        continue
            clock, _, number, kind = best
            q = self.waiting[number]
            self.issue(clock, kind, self.where(q), q)
            if kind in COLUMN:
                del self.waiting[number]
                self.freed = clock
        return self.done


def _filled(where: tuple[int, ...]) -> tuple[int, int, int]:
    """Rank, group and bank; -1 for all of them."""
    rank, group, bank = (*where, -1, -1)[:3]
    return rank, group, bank


def run(
    accesses: Sequence[tuple[int, int, int, bool]],
    standard: Standard,
    mapping: str,
    clocks_per_cycle: Fraction | None,
    scheduler: str,
    depth: int,
    cap: int,
    page: str,
    refresh: str,
) -> list[list[Command]]:
    """Commands of each channel for accesses (cycle, address, bytes, write)."""
    asked = list(requests(accesses, standard, mapping, clocks_per_cycle))
    found = []
    for channel in range(standard.organization["channels"]):
        own = [q for q in asked if q.channel == channel]
        found.append(Channel(standard, own, scheduler, depth, cap, page, refresh).run())
    return found
