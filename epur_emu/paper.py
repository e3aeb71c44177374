"""The networks of the E-PUR paper (arXiv 1711.07480) and its figures beside ours.

Only shapes matter here: cycles, accesses and energy follow from schedules, in closed form, and from the
energy table. MWL's gains come out of its schedule and its memories; there is no formula for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, Arithmetic
from epur_emu.baseline import Baseline, Shape
from epur_emu.dataflow import schedule_sequence
from epur_emu.energy import EnergyTable, Report, energy
from epur_emu.errors import EpurError
from epur_emu.network import LayerShape
from epur_emu.toml import read_toml
from epur_emu.trace import Trace

_DATA = resources.files("epur_emu") / "data" / "paper"

#: Components whose accesses the paper calls those of scratchpads.
SCRATCHPADS = ("weights", "inputs", "row", "intermediate")
DATAFLOWS = ("epur", "epur-mwl")

#: What the paper compares with; figures of it, or against it, have a published value.
PUBLISHED_BASELINE = "tegra-x1"
_AGAINST = "times, against tegra-x1"


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the paper.

    Parameters
    ----------
    name, task : str
    shape : tuple of tuple of LayerShape
    steps : int
        Time steps of the sequence that stands for its data set.
    frame_seconds : float or None
        Time between time steps where its task is in real time.
    published_mb : float
        The size that the paper states.
    """

    name: str
    task: str
    shape: Shape
    steps: int
    frame_seconds: float | None
    published_mb: float

    @property
    def weights(self) -> int:
        """Number of weights of the connections."""
        return sum(layer_weights(layer) for layer in self.shape)


def layer_weights(layer: tuple[LayerShape, ...]) -> int:
    """Number of weights of the connections of a layer."""
    return sum(4 * p.cells * (p.inputs + p.cells) for p in layer)


@cache
def networks() -> tuple[PaperNetwork, ...]:
    """The five networks, from ``data/paper/networks.toml``."""
    listed = read_toml(_DATA / "networks.toml", EpurError, "install the package anew")["networks"]
    return tuple(
        PaperNetwork(
            each["name"],
            each["task"],
            tuple(
                tuple(
                    LayerShape(f"{n}.{way}", inputs, cells, each["peepholes"], way == "backward")
                    for way in ("forward", "backward")[: 1 + each["bidirectional"]]
                )
                for n, (inputs, cells) in enumerate(each["layers"])
            ),
            each["steps"],
            each.get("frame_seconds"),
            each["published_mb"],
        )
        for each in listed
    )


@dataclass(frozen=True)
class Settings:
    """Under which assumptions the figures are made.

    Parameters
    ----------
    table : EnergyTable
    baseline : Baseline
        What E-PUR is compared with.
    accelerators : dict of str to Accelerator
        By dataflow.
    arithmetic : Arithmetic
    length : float
        Factor of all sequence lengths.
    dram : bool
        Whether E-PUR's energy holds that of its DRAM.
    """

    table: EnergyTable = field(default_factory=lambda: EnergyTable.load("epur-28nm"))
    baseline: Baseline = field(default_factory=lambda: Baseline.load("tegra-x1"))
    accelerators: Mapping[str, Accelerator] = field(
        default_factory=lambda: {name: Accelerator.load(name) for name in DATAFLOWS}
    )
    arithmetic: Arithmetic = ARITHMETICS["epur-fp16"]
    length: float = 1.0
    dram: bool = True


@dataclass(frozen=True)
class Run:
    """One network on one accelerator.

    Parameters
    ----------
    network : PaperNetwork
    steps : int
    trace : Trace
    report : Report
    dram : bool
        See `Settings`.
    """

    network: PaperNetwork
    steps: int
    trace: Trace
    report: Report
    dram: bool

    @property
    def seconds(self) -> float:
        """Of the sequence."""
        return self.report.seconds

    def pj(self, kinds: Iterable[str] | None = None, what: str = "total_pj") -> float:
        """Energy of components of these kinds, or of all that counts."""
        groups = self.report.groups()
        chosen = set(groups if kinds is None else kinds) - ({"dram"} if not self.dram else set())
        return math.fsum(getattr(cost, what) for kind, cost in groups.items() if kind in chosen)

    def accesses(self, kind: str) -> int:
        """Accesses of the ports of the components of a kind."""
        return self.report.groups()[kind].accesses

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight buffer that the run needs: the end of the highest address of a matrix."""
        capacity = Accelerator.from_dict(self.trace.meta["accelerator"]).weight_buffer_bytes
        return max(
            s.end_address
            for phase in self.trace.phases
            for s in phase.streams
            if s.component.endswith(".weights") and s.end_address <= capacity
        )


@cache
def _trace(shape: Shape, steps: int, arithmetic: Arithmetic, accelerator: Accelerator) -> Trace:
    """Most assumptions change prices alone, so that schedules serve again."""
    schedule = schedule_sequence(shape, steps, arithmetic, accelerator)
    meta = {"arithmetic": arithmetic.to_dict(), "accelerator": accelerator.to_dict()}
    return Trace(schedule.phases, schedule.components, schedule.cycles, meta)


def run(network: PaperNetwork, dataflow: str, settings: Settings) -> Run:
    """Schedule a network and price it."""
    accelerator = settings.accelerators[dataflow]
    steps = max(1, round(network.steps * settings.length))
    trace = _trace(network.shape, steps, settings.arithmetic, accelerator)
    return Run(network, steps, trace, energy(trace, settings.table), settings.dram)


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, or one that stands beside them, and ours.

    Parameters
    ----------
    name, network, dataflow, unit : str
    published : float or None
    ours : float or None
        None if a network does not fit.
    bound : {"", "least", "most"}
        Whether the published figure is a bound.
    """

    name: str
    network: str
    dataflow: str
    unit: str
    published: float | None
    ours: float | None
    bound: str = ""

    @property
    def relative(self) -> float | None:
        """(ours - published) / published; 0 if a bound is kept."""
        if self.published is None or self.ours is None:
            return None
        difference = (self.ours - self.published) / self.published
        if (self.bound == "least" and difference > 0) or (self.bound == "most" and difference < 0):
            return 0.0
        return difference

    def to_dict(self) -> dict[str, Any]:
        """What ``epur paper --json`` prints of it."""
        return {
            "name": self.name, "network": self.network, "dataflow": self.dataflow, "unit": self.unit,
            "published": self.published, "ours": self.ours, "relative": self.relative,
            "bound": self.bound,
        }  # fmt: skip


@dataclass(frozen=True)
class _Runs:
    """All runs under one set of assumptions."""

    settings: Settings
    found: dict[tuple[str, str], Run]

    def of(self, dataflow: str) -> list[Run]:
        return [self.found[network.name, dataflow] for network in networks()]

    def pairs(self) -> list[tuple[Run, Run]]:
        return list(zip(*(self.of(name) for name in DATAFLOWS), strict=True))

    def gpu(self, each: Run, batched: bool = False) -> float:
        return self.settings.baseline.seconds(each.network.shape, each.steps, batched)

    def fused(self, each: Run) -> float:
        """Time with one product for all gates and one pointwise kernel, as cuDNN has it."""
        merged = self.settings.baseline.varied(matrix_kernels=2, pointwise_kernels=1)
        return merged.seconds(each.network.shape, each.steps)

    def speedup(self, each: Run) -> float:
        return self.gpu(each) / each.seconds

    def saving(self, each: Run) -> float:
        return self.settings.baseline.joules(self.gpu(each)) / (each.pj() * 1e-12)

    def outputs_in_dram(self, each: Run) -> tuple[float, float]:
        """(energy, share of DRAM bytes avoided) were the intermediate memory's accesses the DRAM's.

        An account over the trace: the same bytes at the DRAM's price; nothing is scheduled anew.
        """
        moved = dict.fromkeys(("read", "write"), 0)
        for phase in each.trace.phases:
            for s in phase.streams:
                if s.component == "intermediate":
                    moved[s.op] += s.total_bytes
        dram = self.settings.table.dram_of(None)
        extra = math.fsum(dram.pj_per_byte(op) * size for op, size in moved.items())
        there = each.trace.bytes_by_component()["dram"]
        size = sum(moved.values())
        return each.pj() - each.pj(["intermediate"]) + extra, size / (size + there)


#: From all runs and a dataflow to a figure that stands for the five networks.
_AVERAGES: dict[str, Callable[[_Runs, str], float]] = {
    "energy reduction": lambda runs, d: fmean(map(runs.saving, runs.of(d))),
    "speedup": lambda runs, d: fmean(map(runs.speedup, runs.of(d))),
    "power reduction": lambda runs, d: fmean(
        runs.settings.baseline.power_w / (r.pj() * 1e-12 / r.seconds) for r in runs.of(d)
    ),
    "on-chip memories' dynamic share": lambda runs, d: fmean(
        r.pj(SCRATCHPADS, "dynamic_pj") / r.pj() for r in runs.of(d)
    ),
    "operations' share": lambda runs, d: fmean(r.pj(("dpu", "mu", "link")) / r.pj() for r in runs.of(d)),
    "weight-buffer accesses": lambda runs, _: fmean(
        b.accesses("weights") / a.accesses("weights") for a, b in runs.pairs()
    ),
    "scratchpads' dynamic energy": lambda runs, _: fmean(
        b.pj(SCRATCHPADS, "dynamic_pj") / a.pj(SCRATCHPADS, "dynamic_pj") for a, b in runs.pairs()
    ),
    "scratchpads' leakage": lambda runs, _: fmean(
        b.pj(SCRATCHPADS, "static_pj") / a.pj(SCRATCHPADS, "static_pj") for a, b in runs.pairs()
    ),
    "energy": lambda runs, _: fmean(b.pj() / a.pj() for a, b in runs.pairs()),
    "weight memory needed": lambda runs, _: fmean(
        b.weight_bytes / a.weight_bytes for a, b in runs.pairs()
    ),
    "a layer's weights": lambda runs, d: fmean(
        r.network.weights / max(map(layer_weights, r.network.shape)) for r in runs.of(d)
    ),
    "energy with outputs of layers in DRAM": lambda runs, d: fmean(
        runs.outputs_in_dram(r)[0] / r.pj() for r in runs.of(d)
    ),
    "DRAM accesses avoided by the intermediate memory": lambda runs, d: fmean(
        runs.outputs_in_dram(r)[1] for r in runs.of(d)
    ),
    "energy of Tegra X1 with MWL in software": lambda runs, _: fmean(
        runs.gpu(r) / runs.gpu(r, True) for r in runs.of("epur")
    ),
    "speed of Tegra X1 with MWL in software": lambda runs, _: fmean(
        runs.gpu(r) / runs.gpu(r, True) for r in runs.of("epur")
    ),
    "speed of Tegra X1 with cuDNN": lambda runs, _: fmean(
        runs.gpu(r) / runs.fused(r) for r in runs.of("epur")
    ),
}  # fmt: skip

#: From a run to a figure of one network.
_SINGLE: dict[str, Callable[[_Runs, Run], float]] = {
    "energy reduction": lambda runs, r: runs.saving(r),
    "speedup": lambda runs, r: runs.speedup(r),
    "real time": lambda runs, r: r.steps * (r.network.frame_seconds or math.nan) / r.seconds,
    "real time of Tegra X1": lambda runs, r: (
        r.steps * (r.network.frame_seconds or math.nan) / runs.gpu(r)
    ),
}

#: From a report of any run to a figure of the chip.
_CHIP: dict[str, Callable[[Report], float]] = {
    "area": lambda report: report.area_mm2,
    "peak power": lambda report: report.peak_mw,
}


def figures(settings: Settings | None = None) -> list[Figure]:
    """The paper's figures with ours, then each network's own.

    Raises
    ------
    EpurError
        A network does not fit in an accelerator, or the table lacks something.
    """
    settings = settings or Settings()
    runs = _Runs(
        settings, {(n.name, d): run(n, d, settings) for n in networks() for d in DATAFLOWS}
    )
    against = f"times, against {settings.baseline.name}"
    out = []
    for each in read_toml(_DATA / "figures.toml", EpurError, "install the package anew")["figures"]:
        name, network, dataflow = each["name"], each["network"], each["dataflow"]
        unit, published = each["unit"], each["published"]
        if settings.baseline.name != PUBLISHED_BASELINE:
            # What the paper measured on a Tegra X1 stands beside no other processor.
            if dataflow == PUBLISHED_BASELINE:
                continue
            if unit == _AGAINST:
                unit, published = against, None
        if network == "chip":
            ours = _CHIP[name](runs.of(dataflow)[0].report)
        elif network == "average":
            ours = _AVERAGES[name](runs, dataflow)
        elif network == "least":
            ours = min(_SINGLE[name](runs, r) for r in runs.of(dataflow))
        else:
            one = runs.found[network, dataflow if dataflow in DATAFLOWS else DATAFLOWS[0]]
            ours = _SINGLE[name](runs, one)
        bound = next((b for b in ("least", "most") if each.get(b) and published is not None), "")
        out.append(Figure(name, network, dataflow, unit, published, ours, bound))
    known = {(f.name, f.network, f.dataflow) for f in out}
    for (network, dataflow), r in runs.found.items():
        own = (
            ("energy reduction", against, runs.saving(r)),
            ("speedup", against, runs.speedup(r)),
            ("energy of a sequence", "uJ", r.pj() * 1e-6),
            ("time of a sequence", "ms", r.seconds * 1e3),
            ("average power", "mW", r.pj() / r.seconds * 1e-9),
            ("weight buffer needed", "KiB", r.weight_bytes / 1024),
        )
        out += [
            Figure(name, network, dataflow, unit, None, value)
            for name, unit, value in own
            if (name, network, dataflow) not in known
        ]
    return out


def variations(base: Settings) -> Iterable[tuple[str, Settings]]:
    """Assumptions that the paper leaves open, each varied alone."""
    table, gpu = base.table, base.baseline

    def of_gpu(**values: float) -> Settings:
        return replace(base, baseline=gpu.varied(**values))

    def of_table(**values: Any) -> Settings:
        return replace(base, table=table.varied(**values))

    for cell, text in table.cells.items():
        if cell != table.cell:
            yield f"memories of {text}", of_table(cell=cell)
    for ports, text in (("1rw", "one port each"), ("1r1w", "a port to read and one to write")):
        if ports != table.ports:
            yield f"memories of {text}", of_table(ports=ports)
    yield "memories at 340 K", of_table(temperature_k=340)
    yield "no bank is power-gated", of_table(gate_banks=False)
    synthesised = EnergyTable.load("epur-28nm-synthesised")
    yield (
        "floating-point units as synthesised (Aladdin)",
        of_table(operations=synthesised.operations, register=synthesised.register),
    )
    yield (
        "operations without pipeline registers",
        of_table(register=replace(table.register, value=0.0)),
    )
    yield "DRAM powers down while idle", of_table(dram_idle="power-down")
    yield "DRAM refreshes itself while idle", of_table(dram_idle="self-refresh")
    for dram in ("lpddr4x", "lpddr5"):
        yield f"DRAM is {dram.upper()}", of_table(dram=dram)
    yield "E-PUR's energy without its DRAM", replace(base, dram=False)
    yield "sequences half as long", replace(base, length=0.5)
    yield "sequences a quarter longer", replace(base, length=1.25)
    yield "GPU takes 3.5 W", of_gpu(power_w=3.5)
    yield "GPU takes 10 W", of_gpu(power_w=10.0)
    yield "a kernel takes 5 us at least", of_gpu(launch_s=5e-6)
    yield "a kernel takes 20 us at least", of_gpu(launch_s=20e-6)
    yield "GPU reaches 60 % of its bandwidth", of_gpu(bandwidth_share=0.6)
    yield "GPU's weights in fp16", of_gpu(element_bytes=2)


#: Figures that the sensitivity table follows: name, network, dataflow.
FOLLOWED = (
    ("energy reduction", "average", "epur"),
    ("energy reduction", "average", "epur-mwl"),
    ("speedup", "average", "epur"),
    ("energy", "average", "epur-mwl"),
    ("peak power", "chip", "epur"),
    ("area", "chip", "epur"),
)


#: By assumption, the values of the `FOLLOWED` figures.
Rows = list[tuple[str, list[float | None]]]


def sensitivity(base: Settings | None = None) -> Rows:
    """The `FOLLOWED` figures as each assumption is varied alone; the first row is the default's."""
    base = base or Settings()
    rows: Rows = []
    for text, settings in [("as it is", base), *variations(base)]:
        found = {(f.name, f.network, f.dataflow): f.ours for f in figures(settings)}
        rows.append((text, [found[key] for key in FOLLOWED]))
    return rows


def markdown(settings: Settings | None = None) -> tuple[str, str]:
    """The tables of ``docs/validation.md``: the paper's figures beside ours, and their sensitivity."""
    settings = settings or Settings()
    lines = [
        "| figure | network | dataflow | published | ours | difference |",
        "|---|---|---|---|---|---|",
    ]
    for f in figures(settings):
        if f.published is None:
            continue
        sign = {"least": "at least ", "most": "under "}.get(f.bound, "")
        kept = f.bound and f.relative == 0
        lines.append(
            f"| {f.name} ({f.unit}) | {f.network} | {f.dataflow} | {sign}{f.published:.4g} "
            f"| {_number(f.ours)} | {'kept' if kept else _percent(f.relative)} |"
        )
    heads = [f"{name}, {dataflow}" for name, _, dataflow in FOLLOWED]
    first, *rest = sensitivity(settings)
    varied = [f"| assumption varied alone | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    varied.append(f"| none | {' | '.join(map(_number, first[1]))} |")
    for text, values in rest:
        moves = [
            "" if a is None or b is None or round(a / b, 3) == 1 else _percent(a / b - 1)
            for a, b in zip(values, first[1], strict=True)
        ]
        varied.append(f"| {text} | {' | '.join(moves)} |")
    return "\n".join(lines), "\n".join(varied)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}".replace("%", " %")
