"""Hypothesis strategies for streams and traces, kept small enough for naive checks."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from epur_emu.streams import KINDS, OPS, UNITS, AccessStream, Component, Phase
from epur_emu.trace import Accesses, Trace

# A busy machine must not fail a test.
settings.register_profile("epur", deadline=None)
settings.load_profile("epur")

NAMES = ("cu.i.weights", "intermediate", "dram")
COMPONENTS = (
    Component("cu.i.weights", 4 << 20, 256, 8),
    Component("intermediate", 6 << 20, 256, 16),
    Component("dram", None, 512, 1),
)


@st.composite
def nests(draw: st.DrawFn, depth: int = 5, count: int = 4) -> tuple[tuple[int, int, int], ...]:
    """Loops, outermost first, whose cycle strides do not go back in time."""
    loops: list[tuple[int, int, int]] = []
    span = size = 0
    for _ in range(draw(st.integers(0, depth))):
        turns = draw(st.integers(1, count))
        cycle = span + draw(st.integers(0, 3))
        # The stride that continues the loop inside is drawn often: merging must be tested.
        address = draw(st.one_of(st.integers(-40, 40), st.just(size)))
        loops.insert(0, (turns, address, cycle))
        span += (turns - 1) * cycle
        size = turns * address
    return tuple(loops)


@st.composite
def streams(draw: st.DrawFn, latest: int = 50) -> AccessStream:
    """Any small stream of one of `NAMES`."""
    loops = draw(nests(depth=4, count=3))
    lowest = -sum(min(0, (turns - 1) * address) for turns, address, _ in loops)
    return AccessStream(
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(OPS)),
        draw(st.sampled_from((1, 2, 32, 64))),
        lowest + draw(st.integers(0, 100)),
        draw(st.integers(0, latest)),
        loops,
    )


def phases() -> st.SearchStrategy[Phase]:
    """Any small phase."""
    operations = st.tuples(
        st.sampled_from(("multiply", "add", "exp")), st.sampled_from(UNITS), st.integers(0, 2**62)
    )
    return st.builds(
        Phase,
        st.sampled_from(("encoder.0.forward", "Schicht ä")),
        st.sampled_from(KINDS),
        st.lists(streams(), max_size=4).map(tuple),
        st.lists(operations, max_size=3).map(tuple),
    )


@st.composite
def events(draw: st.DrawFn) -> Accesses:
    """A few single accesses in any order."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 60), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2**40),
                st.integers(1, 64),
            ),
            max_size=12,
        )
    )  # fmt: skip
    return Accesses.of(*zip(*rows, strict=True)) if rows else Accesses.none()


def traces() -> st.SearchStrategy[Trace]:
    """Any small trace."""
    meta: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
        st.text(max_size=4),
        st.one_of(st.integers(), st.text(max_size=4), st.booleans()),
        max_size=3,
    )
    return st.builds(
        Trace,
        st.lists(phases(), max_size=4),
        st.just(COMPONENTS),
        st.integers(0, 2**62),
        meta,
        events(),
        st.booleans(),
    )
