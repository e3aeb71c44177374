"""Hypothesis strategies, small enough for naive checks: streams, traces, formats, arithmetics, passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from epur_emu.arithmetic import ARITHMETICS, OPERATIONS, PLACES, Arithmetic, Override
from epur_emu.errors import FormatError
from epur_emu.formats import (
    BF16,
    FP16,
    FP32,
    MODES,
    TF32,
    BlockFormat,
    FixedFormat,
    FloatFormat,
    Format,
    LinearFormat,
)
from epur_emu.network import LstmLayer
from epur_emu.streams import KINDS, OPS, UNITS, AccessStream, Component, Phase
from epur_emu.trace import Accesses, Trace

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


@st.composite
def float_formats(draw: st.DrawFn) -> FloatFormat:
    """Any float format, the usual ones often."""
    if draw(st.booleans()):
        return draw(st.sampled_from((FP16, FP32, BF16, TF32, FloatFormat(4, 3, "fn"))))
    exponent = draw(st.integers(2, 8))
    kinds = ["ieee"] if exponent == 8 else ["ieee", "fn", "none"]
    specials = draw(st.sampled_from(kinds))
    mantissa = draw(st.integers(1 if specials == "fn" else 0, 23))
    return FloatFormat(exponent, mantissa, specials, draw(st.booleans()), draw(st.booleans()))


@st.composite
def fixed_formats(draw: st.DrawFn, bits: int = 24, raises: bool = False) -> FixedFormat:
    """Any fixed-point format of at most so many bits."""
    signed = draw(st.booleans())
    total = draw(st.integers(1, min(31, bits - signed)))
    whole = draw(st.integers(0, total))
    overflow = draw(
        st.sampled_from(("saturate", "wrap", "raise") if raises else ("saturate", "wrap"))
    )
    return FixedFormat(whole, total - whole, signed, overflow)


def plain_formats(raises: bool = False) -> st.SearchStrategy[FloatFormat | FixedFormat]:
    """Any format that an operation may round to."""
    return st.one_of(float_formats(), fixed_formats(raises=raises))


@st.composite
def block_formats(draw: st.DrawFn) -> BlockFormat:
    """Any block format, its blocks mostly shorter than the vectors of `passes`."""
    if draw(st.booleans()):
        element: FloatFormat | FixedFormat = FixedFormat(1, draw(st.integers(0, 22)))
    else:
        exponent, specials = draw(st.integers(2, 5)), draw(st.sampled_from(("ieee", "fn", "none")))
        mantissa = draw(st.integers(1 if specials == "fn" else 0, 23))
        element = FloatFormat(exponent, mantissa, specials, saturate=True)
    return BlockFormat(element, draw(st.sampled_from((1, 2, 5, 16, 32, 1024))))


def linear_formats(rows: bool = True) -> st.SearchStrategy[LinearFormat]:
    """Any linear format, with scales of rows too if wanted."""
    return st.builds(LinearFormat, st.integers(2, 16), st.booleans() if rows else st.just(False))


def formats(raises: bool = False, rows: bool = True) -> st.SearchStrategy[Format]:
    """Any format at all."""
    return st.one_of(plain_formats(raises), linear_formats(rows), block_formats())


@st.composite
def arithmetics(
    draw: st.DrawFn, raises: bool = False, overrides: bool = True, modes: tuple[str, ...] = MODES
) -> Arithmetic:
    """Any bit-exact arithmetic: presets, one format throughout, or a format for every place."""
    kind = draw(st.sampled_from(("preset", "one", "mixed", "mixed", "integer")))
    if kind == "preset":
        found = ARITHMETICS[draw(st.sampled_from(sorted(set(ARITHMETICS) - {"float32"})))]
    else:
        if kind == "one":
            places: dict[str, Any] = dict.fromkeys(PLACES, draw(plain_formats(raises)))
        else:
            places = {place: draw(plain_formats(raises)) for place in PLACES}
        if kind == "mixed":
            places["weight"], places["input"] = draw(formats(raises)), draw(formats(raises, False))
            places["output"] = draw(st.one_of(plain_formats(raises), linear_formats(False)))
            integer = all(isinstance(places[p], LinearFormat) for p in ("weight", "input"))
        else:
            integer = kind == "integer"
        if integer:
            if kind == "integer":
                places["weight"], places["input"] = (
                    draw(linear_formats()),
                    draw(linear_formats(False)),
                )
            policy = draw(
                st.sampled_from(("saturate", "wrap", "raise") if raises else ("saturate", "wrap"))
            )
            wide = FixedFormat(draw(st.integers(8, 31)), 0, overflow=policy)
            places |= dict.fromkeys(("product", "tree", "accumulator"), wide)
        places["partial"] = places["mu" if integer else "accumulator"]
        if draw(st.booleans()):
            places["partial"] = draw(linear_formats(False))
        methods = [
            "exact",
            "pwl-2",
            "pwl-16",
            "pwl-255",
            *(["epur"] * 3 if places["mu"].max >= 4 else []),
        ]
        found = Arithmetic("drawn", **places, activation=draw(st.sampled_from(methods)))
    found = replace(
        found,
        rounding=draw(st.sampled_from(modes)),
        seed=draw(st.integers(0, 2**32 - 1)),
        clamp=draw(st.one_of(st.just(11.0), st.floats(0.0625, 100.0))),
    )
    if not overrides or draw(st.integers(0, 3)):
        return found
    other = draw(arithmetics(raises, overrides=False, modes=modes))
    keys = draw(st.sampled_from((PLACES, ("weight", "input"), OPERATIONS, ("mu",), ("output",))))
    values = {key: getattr(other, key) for key in keys}
    if "mu" in keys:
        values |= {"activation": other.activation}
    gates = draw(st.sampled_from(("i", "f", "g", "o", "if", "go", "ifgo")))
    try:
        return replace(found, overrides=(Override("pass*", gates, tuple(values.items())),))
    except FormatError:  # formats that do not go together
        return found


@dataclass(frozen=True)
class Case:
    """A pass, its input of shape (T, I), and maybe its initial state."""

    layer: LstmLayer
    x: npt.NDArray[np.float32]
    state: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None


#: Exponent fields of float32 patterns: all; finite; the neighbourhood of fp16's least and largest
#: values; the size that networks have.
FIELDS = {
    "any": (0, 255),
    "finite": (0, 254),
    "tiny": (95, 115),
    "large": (135, 143),
    "usual": (118, 129),
}


@st.composite
def passes(draw: st.DrawFn, inputs: int = 34, cells: int = 5, steps: int = 3) -> Case:
    """A small pass of bit patterns; its name is ``pass``."""
    n_inputs, n_cells = draw(st.integers(1, inputs)), draw(st.integers(1, cells))
    n_steps = draw(st.integers(0, steps))
    of_weights, of_inputs = (draw(st.sampled_from(("usual", "usual", *FIELDS))) for _ in range(2))
    zeros = draw(st.sampled_from((0.0, 0.0, 0.3)))
    # From one seed: an array of drawn numbers takes far longer than its evaluation.
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def fill(kind: str, *shape: int) -> npt.NDArray[np.float32]:
        low, high = FIELDS[kind]
        field = rng.integers(low, high + 1, shape, dtype=np.uint32)
        # Few bits of significand in half of the values, so that ties occur.
        bits = rng.integers(0, 2**23, shape, dtype=np.uint32)
        bits &= rng.choice(np.array([0x7FFFFF, 0x7C0000], np.uint32), shape)
        bits |= field << 23 | rng.integers(0, 2, shape, dtype=np.uint32) << 31
        values = bits.view(np.float32)
        values[rng.random(shape) < zeros] = 0
        return values

    peepholes = fill(of_weights, 3, n_cells) if draw(st.booleans()) else None
    layer = LstmLayer(
        "pass",
        fill(of_weights, 4, n_cells, n_inputs),
        fill(of_weights, 4, n_cells, n_cells),
        fill(of_weights, 4, n_cells),
        peepholes,
        draw(st.booleans()),
        draw(st.sampled_from((None, None, 1e-30, 0.3, 2.7, 1e30))),
    )
    state = None
    if draw(st.booleans()):
        state = fill(of_inputs, n_cells), fill(of_inputs, n_cells)
    return Case(layer, fill(of_inputs, n_steps, n_inputs), state)
