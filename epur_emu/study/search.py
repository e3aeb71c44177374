"""The cheapest arithmetic that keeps a task's metric: greedy by sensitivity, then local.

Formats of one place, from narrow to wide, are given to groups (passes, gates, or gates of passes). What an
arithmetic costs is the bits of all weights of the network, each counted with its group's format.

1. *Uniform.* Each format everywhere; the cheapest that keeps the loss is the first best.
2. *Sensitivity.* Each group alone in each narrower format, all others in the widest: the distance from
   float32 (share of outputs that differ; of a sequence its relative error) that it brings.
3. *Greedy.* From the widest everywhere, one group after the other becomes narrower by one format: always
   that which adds the least distance for a bit saved, as far as sensitivities add up, and keeps the loss
   alone. On this path the furthest arithmetic that keeps the loss is found by bisection (a loss that rises
   along the path is assumed; what is found has been evaluated).
4. *Local.* From the best so far, each group alone one format narrower; of those that keep the loss, all
   are taken together, or the less distant half of them, and so on until the loss is kept; again until no
   group can become narrower.

It is a heuristic: what it ends in keeps the loss, and no group of it can become narrower by one format
alone; a cheaper arithmetic may exist.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epur_emu.arithmetic import GATES, Arithmetic, Override
from epur_emu.errors import StudyError
from epur_emu.formats import Format
from epur_emu.network import LayerShape
from epur_emu.study.plan import Search
from epur_emu.study.workloads import Plain, bits

#: Place in the list of formats of each group.
Levels = tuple[int, ...]
#: Results of arithmetics, in their order; the second argument says for what part of the search.
Evaluate = Callable[[Sequence[Arithmetic], str], list[Plain]]


@dataclass(frozen=True)
class Group:
    """What has one format: gates of passes.

    Parameters
    ----------
    name : str
    layers, gates : str
        As in `Override`.
    weights : int
    """

    name: str
    layers: str
    gates: str
    weights: int


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Parameters
    ----------
    best : Arithmetic or None
        None if not even one uniform format keeps the loss.
    formats : dict of str to str
        Of each group of `best`.
    weight_bits, uniform_bits : float or None
        What `best` and the cheapest uniform arithmetic cost.
    uniform : str or None
        The format of that one.
    evaluations : int
        Arithmetics that were evaluated.
    ended : {"none narrower", "most evaluations", "nothing keeps the loss"}
    """

    best: Arithmetic | None
    formats: dict[str, str]
    weight_bits: float | None
    uniform_bits: float | None
    uniform: str | None
    evaluations: int
    ended: str


def groups_of(passes: Sequence[LayerShape], kind: str) -> list[Group]:
    """Groups of a network's passes, of one of `plan.GROUPS`."""
    weights = {p.name: p.cells * (p.inputs + p.cells) for p in passes}
    if kind == "gate":
        return [Group(gate, "*", gate, sum(weights.values())) for gate in GATES]
    if kind == "layer":
        return [Group(name, glob.escape(name), GATES, 4 * n) for name, n in weights.items()]
    return [
        Group(f"{name}.{gate}", glob.escape(name), gate, n)
        for name, n in weights.items()
        for gate in GATES
    ]


class _FullError(Exception):
    """As many evaluations as may be."""


@dataclass
class _Search:
    base: Arithmetic
    search: Search
    groups: list[Group]
    evaluate: Evaluate
    loss: Callable[[Plain], float]
    known: dict[Levels, Plain]
    best: Levels | None = None
    uniform: Levels | None = None

    @property
    def formats(self) -> tuple[Format, ...]:
        return self.search.formats

    def cost(self, levels: Levels) -> float:
        pairs = zip(self.groups, levels, strict=True)
        return math.fsum(group.weights * bits(self.formats[n]) for group, n in pairs)

    def arithmetic(self, levels: Levels) -> Arithmetic:
        place = self.search.place
        own: tuple[Override, ...]
        if len(set(levels)) == 1:
            own = (Override("*", GATES, ((place, self.formats[levels[0]]),)),)
        else:
            own = tuple(
                Override(group.layers, group.gates, ((place, self.formats[n]),))
                for group, n in zip(self.groups, levels, strict=True)
            )
        widths = ".".join(f"{bits(self.formats[n]):g}" for n in levels)
        name = f"{self.base.name}/{place}={widths}"
        return replace(self.base, name=name, overrides=(*self.base.overrides, *own))

    def ask(self, wanted: Sequence[Levels], stage: str) -> None:
        """Evaluate what is not known."""
        fresh = [levels for levels in dict.fromkeys(wanted) if levels not in self.known]
        room = self.search.most - len(self.known)
        results = self.evaluate([self.arithmetic(levels) for levels in fresh[:room]], stage)
        self.known |= zip(fresh[:room], results, strict=True)
        if len(fresh) > room:
            raise _FullError

    def kept(self, levels: Levels) -> bool:
        """Whether known levels keep the loss."""
        return self.loss(self.known[levels]) <= self.search.loss

    def distance(self, levels: Levels) -> float:
        found = self.known[levels].get("distance")
        return math.inf if found is None else float(found)

    def take(self, levels: Levels) -> None:
        """The best so far, if it is better."""
        if self.kept(levels) and (self.best is None or self.cost(levels) < self.cost(self.best)):
            self.best = levels

    def lowered(self, levels: Levels, chosen: Sequence[int]) -> Levels:
        return tuple(n - (place in chosen) for place, n in enumerate(levels))

    def run(self) -> str:
        count, top = len(self.groups), len(self.formats) - 1
        uniform = [(n,) * count for n in range(top + 1)]
        self.ask(uniform, "uniform")
        for levels in uniform:
            self.take(levels)
        if self.best is None:
            return "nothing keeps the loss"
        self.uniform = self.best
        if count == 1:
            return "none narrower"
        if self.kept(uniform[top]):
            self.greedy(uniform[top], top)
        self.local()
        return "none narrower"

    def greedy(self, widest: Levels, top: int) -> None:
        places = range(len(self.groups))

        def alone(place: int, n: int) -> Levels:
            return (*widest[:place], n, *widest[place + 1 :])

        self.ask([alone(p, n) for p in places for n in range(top)], "sensitivity")
        path = [widest]
        while moves := [
            (self.rise(alone(p, path[-1][p]), alone(p, path[-1][p] - 1)), p)
            for p in places
            if path[-1][p] and self.kept(alone(p, path[-1][p] - 1))
        ]:
            path.append(self.lowered(path[-1], [min(moves)[1]]))
        low, high = 0, len(path) - 1
        while low < high:
            middle = (low + high + 1) // 2
            self.ask([path[middle]], "greedy")
            low, high = (middle, high) if self.kept(path[middle]) else (low, middle - 1)
        self.take(path[low])

    def rise(self, old: Levels, new: Levels) -> float:
        """Distance that a step adds for each bit that it saves."""
        return (self.distance(new) - self.distance(old)) / (self.cost(old) - self.cost(new))

    def local(self) -> None:
        assert self.best is not None
        while True:
            start = self.best
            steps = {p: self.lowered(start, [p]) for p, n in enumerate(start) if n}
            self.ask(list(steps.values()), "local")
            passing = [p for p, levels in steps.items() if self.kept(levels)]
            passing.sort(key=lambda p: (self.distance(steps[p]), self.cost(steps[p])))
            if not passing:
                return
            while len(passing) > 1:
                together = self.lowered(start, passing)
                self.ask([together], "local")
                if self.kept(together):
                    break
                passing = passing[: len(passing) // 2]
            self.take(self.lowered(start, passing))


def find(
    base: Arithmetic, search: Search, passes: Sequence[LayerShape], evaluate: Evaluate,
    loss: Callable[[Plain], float],
) -> Found:  # fmt: skip
    """The cheapest arithmetic that keeps the loss; the module's text says how.

    Parameters
    ----------
    base : Arithmetic
        All that is not searched.
    search : Search
    passes : sequence of LayerShape
        Of all networks of the model.
    evaluate : callable
        Takes arithmetics and the part of the search, gives their results (``distance``, ``metrics``).
    loss : callable
        How much worse than float32 a result is; infinite where there is none.

    Raises
    ------
    StudyError
        The base is float32, which has no formats.
    """
    if not base.bit_exact:
        raise StudyError(
            "study", f"arithmetic {base.name}", "rounds nothing", "search from epur-fp16, say"
        )
    state = _Search(base, search, groups_of(passes, search.groups), evaluate, loss, {})
    try:
        ended = state.run()
    except _FullError:
        ended = "most evaluations"
        for levels in state.known:
            state.take(levels)
    count = len(state.known)
    if state.best is None:
        return Found(None, {}, None, None, None, count, ended)
    uniform: Any = state.uniform or state.best
    chosen = zip(state.groups, state.best, strict=True)
    return Found(
        state.arithmetic(state.best), {g.name: str(search.formats[n]) for g, n in chosen},
        state.cost(state.best), state.cost(uniform), str(search.formats[uniform[0]]), count, ended,
    )  # fmt: skip
