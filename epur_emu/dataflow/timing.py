"""Where a schedule's cycles go, and what was done where something did not fit; see ``docs/dataflow.md``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

#: Why DPUs stand still.
CAUSES = ("weights", "state", "staging", "recurrence", "link", "outputs")

#: Phases that time is split into.
PHASES = ("load", "evaluate", "forward", "recurrent", "store")


@dataclass(frozen=True)
class PhaseTiming:
    """Cycles of one phase of a pass.

    Parameters
    ----------
    layer : str
        Name of the pass.
    phase : {"load", "evaluate", "forward", "recurrent", "store"}
    busy : int
        Cycles in which the DPUs take a sub-vector.
    stalls : tuple of (str, int)
        The other cycles by cause, in the order of `CAUSES`, without zeros.
    """

    layer: str
    phase: str
    busy: int
    stalls: tuple[tuple[str, int], ...]

    @property
    def cycles(self) -> int:
        """All of them."""
        return self.busy + sum(count for _, count in self.stalls)

    @property
    def utilisation(self) -> float:
        """Share of the cycles in which the DPUs are busy; 0 of none."""
        return self.busy / self.cycles if self.cycles else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What ``epur run --json`` prints of it."""
        return {
            "layer": self.layer,
            "phase": self.phase,
            "cycles": self.cycles,
            "busy": self.busy,
            "utilisation": self.utilisation,
            "stalls": {**dict.fromkeys(CAUSES, 0), **dict(self.stalls)},
        }


def total(timing: Iterable[PhaseTiming]) -> tuple[PhaseTiming, ...]:
    """One for each (layer, phase), summed, in the order in which they come first."""
    busy: dict[tuple[str, str], int] = {}
    stalls: dict[tuple[str, str], dict[str, int]] = {}
    for row in timing:
        key = row.layer, row.phase
        busy[key] = busy.get(key, 0) + row.busy
        own = stalls.setdefault(key, dict.fromkeys(CAUSES, 0))
        for cause, count in row.stalls:
            own[cause] += count
    return tuple(
        PhaseTiming(*key, count, tuple((c, n) for c, n in stalls[key].items() if n))
        for key, count in busy.items()
    )


@dataclass(frozen=True)
class Policy:
    """What was done where something did not fit, or what a parameter of the accelerator asked for.

    Parameters
    ----------
    layer : str
        Name of the pass, or ``""`` for all.
    what : str
        What did not fit: ``weights``, ``sequence`` or ``batch``.
    policy : str
        Its name in ``docs/dataflow.md``.
    detail : str
        How far it goes, in words.
    """

    layer: str
    what: str
    policy: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Plain values for a trace's meta data."""
        return asdict(self)
