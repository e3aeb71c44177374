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
    """Dynamic energy in pJ of one phase; accesses in no phase stand under kind ``events``."""

    layer: str
    kind: str
    first_cycle: int
    cycles: int
    dynamic_pj: float


@dataclass(frozen=True)
class Report:
    """Energy, power and area of a run.

    Parameters
    ----------
    table : str
        The energy table, with its kind of cell.
    seconds : float
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
    """

    table: str
    seconds: float
    peak_mw: float
    area_mm2: float
    by_component: dict[str, Cost]
    by_phase: tuple[PhaseCost, ...]
    wider: dict[str, str] = field(default_factory=dict)

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
            members.setdefault(name.rpartition(".")[2], []).append(cost)
        return {
            name: Cost(
                fsum(cost.dynamic_pj for cost in costs),
                fsum(cost.static_pj for cost in costs),
                sum(cost.accesses for cost in costs),
            )
            for name, costs in members.items()
        }

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
            "average_mw": self.average_mw,
            "average_chip_mw": self.average_chip_mw,
            "peak_mw": self.peak_mw,
            "area_mm2": self.area_mm2,
            "by_component": {name: asdict(cost) for name, cost in self.by_component.items()},
            "by_phase": [asdict(phase) for phase in self.by_phase],
            "wider": self.wider,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Report:
        """Inverse of `to_dict`."""
        return cls(
            plain["table"],
            plain["seconds"],
            plain["peak_mw"],
            plain["area_mm2"],
            {name: Cost(**cost) for name, cost in plain["by_component"].items()},
            tuple(PhaseCost(**phase) for phase in plain["by_phase"]),
            plain["wider"],
        )
