"""What `energy` found, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one component cost: energies in pJ; accesses of its port, or operations."""

    dynamic_pj: float
    static_pj: float
    accesses: int

    @property
    def total_pj(self) -> float:
        """Dynamic and static energy."""
        return self.dynamic_pj + self.static_pj


@dataclass(frozen=True)
class PhaseCost:
    """Dynamic energy in pJ of one phase; accesses in no phase stand under kind ``events``.

    ``by_component`` is by groups of components, see `Report.groups`; ``products`` are the DPUs'
    multiplications.
    """

    layer: str
    kind: str
    first_cycle: int
    cycles: int
    dynamic_pj: float
    by_component: dict[str, float] = field(default_factory=dict)
    products: int = 0


def group(component: str) -> str:
    """The group of a component: ``weights`` of ``cu.i.weights``."""
    return component.rpartition(".")[2]


@dataclass(frozen=True)
class Report:
    """Energy, power and area of a run.

    Parameters
    ----------
    table : str
        The energy table, with its kind of cell and ports.
    seconds : float
    cycles : int
    steps : int
        Time steps of all sequences; 0 if the trace does not say.
    peak_mw : float
        Highest power of the chip, DRAM excluded: in every cycle one access of every on-chip memory
        (read or write, whichever costs more), every multiplier and adder of the DPUs, and one
        operation of each kind in every MU; nothing power-gated.
    area_mm2 : float
        All on-chip memories and the computation units' logic.
    by_component : dict of str to Cost
        The memories by name, and ``dpu``, ``mu``, ``link``.
    by_phase : tuple of PhaseCost
    wider : dict of str to str
        Operations that the table does not hold in their own format, such as ``multiply.bf16``, and
        the nearest wider format in which they were priced (assumed).
    warnings : tuple of str
        Memories whose cycle does not meet the clock.
    """

    table: str
    seconds: float
    cycles: int
    steps: int
    peak_mw: float
    area_mm2: float
    by_component: dict[str, Cost]
    by_phase: tuple[PhaseCost, ...]
    wider: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def dynamic_pj(self) -> float:
        """Energy of accesses and operations."""
        return fsum(cost.dynamic_pj for cost in self.by_component.values())

    @property
    def static_pj(self) -> float:
        """Energy of leakage and of the DRAM's background power."""
        return fsum(cost.static_pj for cost in self.by_component.values())

    @property
    def total_pj(self) -> float:
        """Dynamic and static energy."""
        return self.dynamic_pj + self.static_pj

    @property
    def average_mw(self) -> float:
        """Total energy over time; 0 for a run of no cycles."""
        return self.total_pj / self.seconds * 1e-9 if self.seconds else 0.0

    @property
    def average_chip_mw(self) -> float:
        """As `average_mw`, without the DRAM: what compares with `peak_mw`."""
        chip = [cost.total_pj for name, cost in self.by_component.items() if name != "dram"]
        return fsum(chip) / self.seconds * 1e-9 if self.seconds else 0.0

    def groups(self) -> dict[str, Cost]:
        """Sums over the computation units: weights, inputs, row; all else as it is."""
        members: dict[str, list[Cost]] = {}
        for name, cost in self.by_component.items():
            members.setdefault(group(name), []).append(cost)
        return {
            name: Cost(
                fsum(cost.dynamic_pj for cost in costs),
                fsum(cost.static_pj for cost in costs),
                sum(cost.accesses for cost in costs),
            )
            for name, costs in members.items()
        }

    @property
    def products(self) -> int:
        """Multiplications of the DPUs, padding included."""
        return sum(phase.products for phase in self.by_phase)

    @property
    def pj_per_step(self) -> float | None:
        """Total energy of a time step; None if the trace does not say how many there are."""
        return self.total_pj / self.steps if self.steps else None

    @property
    def pj_per_mac(self) -> float | None:
        """Total energy of a multiplication with its accumulation; None if there is none."""
        return self.total_pj / self.products if self.products else None

    def by_layer(self) -> dict[str, Cost]:
        """What each layer costs; accesses in no phase stand under an empty name.

        Static energy is shared out by the DPUs' multiplications, that is by the time for which a
        layer keeps them busy; by the phases' cycles where there are none.
        """
        phases: dict[str, list[PhaseCost]] = {}
        for phase in self.by_phase:
            phases.setdefault(phase.layer, []).append(phase)
        work = {layer: sum(p.products for p in own) for layer, own in phases.items()}
        if not any(work.values()):
            work = {layer: sum(p.cycles for p in own) for layer, own in phases.items()}
        whole = sum(work.values()) or 1
        return {
            layer: Cost(
                fsum(p.dynamic_pj for p in own), self.static_pj * work[layer] / whole, work[layer]
            )
            for layer, own in phases.items()
        }

    def by_kind(self) -> dict[str, float]:
        """Dynamic energy (pJ) of each kind of phase."""
        kinds: dict[str, list[float]] = {}
        for phase in self.by_phase:
            kinds.setdefault(phase.kind, []).append(phase.dynamic_pj)
        return {kind: fsum(pj) for kind, pj in kinds.items()}

    def totals(self) -> dict[str, Any]:
        """Energy (pJ) in all, dynamic and static, and of each component: what ``epur run --json`` prints."""
        return {
            "total": self.total_pj,
            "dynamic": self.dynamic_pj,
            "static": self.static_pj,
            "by_component": {name: cost.total_pj for name, cost in self.by_component.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """What ``epur energy --json`` prints."""
        return {
            "table": self.table,
            "total_pj": self.total_pj,
            "dynamic_pj": self.dynamic_pj,
            "static_pj": self.static_pj,
            "seconds": self.seconds,
            "cycles": self.cycles,
            "steps": self.steps,
            "pj_per_step": self.pj_per_step,
            "pj_per_mac": self.pj_per_mac,
            "average_mw": self.average_mw,
            "average_chip_mw": self.average_chip_mw,
            "peak_mw": self.peak_mw,
            "area_mm2": self.area_mm2,
            "by_component": {name: asdict(cost) for name, cost in self.by_component.items()},
            "by_phase": [asdict(phase) for phase in self.by_phase],
            "by_layer": {
                layer: {"dynamic_pj": cost.dynamic_pj, "static_pj": cost.static_pj}
                for layer, cost in self.by_layer().items()
            },
            "wider": self.wider,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Report:
        """Inverse of `to_dict`."""
        return cls(
            table=plain["table"],
            seconds=plain["seconds"],
            cycles=plain["cycles"],
            steps=plain["steps"],
            peak_mw=plain["peak_mw"],
            area_mm2=plain["area_mm2"],
            by_component={name: Cost(**cost) for name, cost in plain["by_component"].items()},
            by_phase=tuple(PhaseCost(**phase) for phase in plain["by_phase"]),
            wider=plain["wider"],
            warnings=tuple(plain["warnings"]),
        )
