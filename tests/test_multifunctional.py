"""The multifunctional unit alone: its lanes give what the exact path and the oracle do, and are taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Case, plain_formats
from test_emulator import ALPHA, check, patterns, usual

from epur_emu.arithmetic import arithmetic
from epur_emu.formats import FP32, MODES, parse
from epur_emu.network import LstmLayer
from epur_emu.passes import COUNTED, EVENTS, PackedPass, level_number, levels
from epur_emu.rounding import round_to

METHODS = ("epur", "exact", "pwl-16")
LANES = levels()[1:]


def unit(mu, cell=None, output=None, rounding="nearest-even", activation="epur", **fields):
    """An arithmetic whose sums are any float32 values."""
    return replace(
        arithmetic("epur-fp32"), mu=parse(mu), cell=parse(cell or mu), output=parse(output or cell or mu),
        rounding=rounding, activation=activation, seed=3, **fields,
    )  # fmt: skip


def outcome(a, sums, bias, c, level, peepholes=None):
    """h, c and counts of steps of the unit, and how many blocks its lanes did.

    sums (N, 4, H), bias (4, H), c (N, H), peepholes (3, H) or None.
    """
    cells = bias.shape[1]
    zeros = np.zeros((4, cells, cells), np.float32)
    layer = LstmLayer("pass", zeros[:, :, :1], zeros, bias, peepholes)
    packed = PackedPass.of(layer, a, ALPHA, 0, level_number(level), True, False)
    cell, h = round_to(c, a.cell), np.zeros(c.shape, np.float32)
    counts = np.zeros((len(COUNTED), len(EVENTS) + 1), np.int64)
    done = 0
    for n, step in enumerate(sums):
        rows = np.ascontiguousarray(step.reshape(4, -1, 16).swapaxes(0, 1)).reshape(-1, 16)
        done += packed.compiled.multifunctional(rows, cell[n], h[n], n, counts)
    for values in (h, cell):
        assert not np.signbit(values[values == 0]).any()
    return patterns(h), patterns(cell), counts, done


def agreed(a, sums, bias, c, peepholes=None):
    """Blocks that the lanes did, at least; all levels give what the exact path of the plainest one gives."""
    *wanted, none = outcome(a, sums, bias, c, "scalar", peepholes)
    assert none == 0
    fewest = c.size // 16
    for level in LANES:
        *found, done = outcome(a, sums, bias, c, level, peepholes)
        assert all(map(np.array_equal, found, wanted))
        fewest = min(fewest, done)
    return fewest


def normal(rng, *shapes):
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


#: The MU's, the cell's and the output's formats, and whether the MU holds the cell's values.
PLACES = (
    (("fp32",), True), (("fp32", "fp32", "fp16"), True), (("fp32", "bf16", "e4m3fn-sat"), True),
    (("tf32",), True), (("e6m14", "e6m14", "bf16"), True), (("e5m20-nosub", "fp16", "fp16"), False),
    (("e8m23-nosub",), True), (("e5m17-sat",), True), (("bf16", "fp32", "fp16"), False),
    (("fp16", "fp32", "fp16"), False), (("q5.12",), True), (("q5.18", "q5.18", "fp16"), True),
    (("fp32", "q3.12"), True), (("q7.16", "fp32", "q1.14"), False),
)  # fmt: skip


@pytest.mark.parametrize("activation", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("places", "holds"), PLACES, ids=str)
def test_lanes_are_taken_at_usual_magnitudes(places, holds, mode, activation):
    a, rng = unit(*places, rounding=mode, activation=activation), np.random.default_rng(1)
    sums, bias, c, peepholes = normal(rng, (2, 4, 48), (4, 48), (2, 48), (3, 48))
    c, peepholes, blocks = c / 2, peepholes / 2, len(LANES) and 6
    assert agreed(a, sums, bias, c) == blocks
    taken = mode == "nearest-even" or holds
    assert agreed(a, sums, bias, c, peepholes) == (blocks if taken else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ["epur", "exact"])
@pytest.mark.parametrize("mu", ["fp32", "e8m17-nosub", "q5.18"])
def test_functions_of_all_magnitudes(mu, activation, mode):
    """Functions of small arguments lie next to values, or half-way between those of fixed point: left."""
    rng = np.random.default_rng(2)
    a = unit(mu, rounding=mode, activation=activation, clamp=40.0)
    highest = 5.5 if mu[0] == "e" or mu == "fp32" else 1.0

    def drawn(lowest, *shape):
        """A block's values are of one size."""
        blocks = (*shape[:-1], shape[-1] // 16)
        sizes = 2.0 ** rng.uniform(lowest, highest, (*blocks, 1)) * rng.uniform(0.5, 1, (*blocks, 16))
        return (sizes.reshape(shape) * rng.choice([-1, 1], shape)).astype(np.float32)

    steps, cells = 40, 128
    sums, c = drawn(-30, steps, 4, cells), drawn(-60, steps, cells)
    done = agreed(a, sums, np.zeros((4, cells), np.float32), c)
    most = highest > 1 and mode.startswith("nearest")
    assert not LANES or done > steps * cells // 16 * (0.95 if most else 0.1)


def values():
    """float32 values: usual ones, those near which functions are rational, and any."""
    ends = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 11.0, 2.0**-12, 2.0**-23, 2.0**-24, 2.0**-126, 2.0**-149]
    return st.one_of(
        st.floats(-4, 4, width=32),
        st.tuples(st.sampled_from(ends), st.integers(-2, 2), st.booleans()).map(
            lambda t: float(_neighbour(t[0], t[1]) * (-1) ** t[2])
        ),
        st.floats(-(2.0**-10), 2.0**-10, width=32),
        st.floats(width=32, allow_nan=False),
    )


def _neighbour(value, by):
    return np.array(max(int(np.float32(value).view(np.int32)) + by, 0), np.int32).view(np.float32)


@st.composite
def units(draw):
    """Any arithmetic of the MU."""
    places = [draw(plain_formats()) for _ in range(3)]
    if draw(st.booleans()):
        places[1] = places[0]
    methods = (*METHODS, "pwl-7")[places[0].max < 4 :]
    return replace(
        arithmetic("epur-fp32"), mu=places[0], cell=places[1], output=places[2],
        rounding=draw(st.sampled_from(MODES)), activation=draw(st.sampled_from(methods)),
        clamp=draw(st.sampled_from((11.0, 3.0, 60.0))), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(units(), st.data())
def test_the_unit_equals_the_oracle(a, data):
    """A block of neurons whose sums are one weight each."""
    kind = data.draw(st.sampled_from((values(), st.floats(-2, 2, width=32))))

    def drawn(*shape):
        return np.array(data.draw(st.lists(kind, min_size=8, max_size=8)), np.float32)[
            rng.integers(8, size=shape)
        ]

    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    peepholes = drawn(3, 16) if data.draw(st.booleans()) else None
    layer = LstmLayer(
        "pass", drawn(4, 16, 1), np.zeros((4, 16, 16), np.float32), drawn(4, 16), peepholes,
        clip=data.draw(st.sampled_from((None, 2.5))),
    )  # fmt: skip
    case = Case(layer, np.ones((2, 1), np.float32), (np.zeros(16, np.float32), drawn(16)))
    check(case, a)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mu", ["fp32", "tf32", "q3.20", "fp16"])
@pytest.mark.parametrize("order", ["epur", "epur-mwl"])
def test_integer_sums_in_the_units_format(mu, mode, order):
    a = replace(arithmetic("epur-int8"), mu=parse(mu), cell=FP32, rounding=mode, seed=4)
    a = a.with_partial(a.mu)
    check(usual(6, cells=33, peepholes=False), a, order)


@pytest.mark.parametrize(("mu", "done"), [("fp32", 2), ("e5m15", 1), ("q7.15", 2)])
def test_blocks_out_of_range_are_left(mu, done):
    """Blocks 0 and 2 hold sums that are not finite, block 3 a cell that e5m15 has not."""
    a, rng = unit(mu), np.random.default_rng(3)
    sums, bias, c = normal(rng, (1, 4, 64), (4, 64), (1, 64))
    sums[0, 2, 5], sums[0, 0, 40], c[0, 55] = np.inf, np.nan, 3e37
    bias[:2, 55] = 8.0  # keeps it
    assert agreed(a, sums, bias, c) == (len(LANES) and done)


@pytest.mark.parametrize(
    ("a", "done"),
    [
        (arithmetic("epur-fp16"), 2), (unit("fp32"), 2), (unit("fp32", rounding="stochastic"), 2),
        (unit("q5.12"), 2), (unit("fp32", activation="pwl-16"), 2), (unit("fp32", activation="pwl-7"), 1),
        (unit("q5.0"), 1), (unit("q5.0", rounding="stochastic"), 1), (unit("e3m4-nosub"), 2),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else f"{v.mu}-{v.rounding}-{v.activation}",
)  # fmt: skip
def test_padding(a, done):
    """Lanes do a block that is not full unless its padding, all zero, would become something or count."""
    case = usual(9, inputs=3, cells=19, peepholes=True)
    check(case, a)
    rng = np.random.default_rng(4)
    sums, bias, c = normal(rng, (1, 4, 32), (4, 19), (1, 32))
    sums[..., 19:] = c[..., 19:] = 0
    assert agreed(a, sums / 4, bias / 4, c / 4) == (len(LANES) and done)
