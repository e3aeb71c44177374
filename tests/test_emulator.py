"""The kernels against the oracle, bit for bit, on every level that this CPU has."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from epur_emu import (
    ARITHMETICS,
    Accelerator,
    Engine,
    LstmLayer,
    Network,
    calibrate,
    emulate,
    oracle,
)
from epur_emu.engine_fp16 import exp_table, level_number, levels
from epur_emu.errors import FormatError, NetworkError
from epur_emu.formats import FP16

FP16_ARITHMETIC = ARITHMETICS["epur-fp16"]
KEPT = FP16_ARITHMETIC.with_partial(FP16)

#: Bit patterns: anything; finite; subnormal and barely normal; of the size that networks have.
RANGES = {"any": (0, 0xFFFF), "finite": (0, 0x7BFF), "tiny": (0, 0x17FF), "usual": (0x2000, 0x43FF)}


@st.composite
def codes(draw, shape, kind):
    low, high = RANGES[kind]
    array = draw(hnp.arrays(np.uint16, shape, elements=st.integers(low, high), fill=st.nothing()))
    if kind != "any":
        array ^= draw(
            hnp.arrays(np.uint16, shape, elements=st.sampled_from([0, 0x8000]), fill=st.nothing())
        )
    return array.view(np.float16)


@st.composite
def cases(draw):
    """A pass, its input and maybe its initial state."""
    inputs, cells = draw(st.integers(1, 34)), draw(st.integers(1, 18))
    steps = draw(st.integers(0, 3))
    kind, of_inputs = draw(st.sampled_from(sorted(RANGES))), draw(st.sampled_from(sorted(RANGES)))
    # Whole arrays from one seed where there are many weights: still bit patterns, but quick to draw.
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def fill(shape):
        if np.prod(shape) <= 64:
            return draw(codes(shape, kind))
        low, high = RANGES[kind]
        bits = rng.integers(low, high + 1, shape).astype(np.uint16)
        if kind != "any":
            bits ^= rng.choice(np.array([0, 0x8000], np.uint16), shape)
        return bits.view(np.float16)

    peepholes = fill((3, cells)) if draw(st.booleans()) else None
    layer = LstmLayer(
        "pass",
        fill((4, cells, inputs)),
        fill((4, cells, cells)),
        fill((4, cells)),
        peepholes,
        draw(st.booleans()),
    )
    x = draw(codes((steps, inputs), of_inputs))
    state = None
    if draw(st.booleans()):
        state = draw(codes((cells,), of_inputs)), draw(codes((cells,), of_inputs))
    return layer, x, state


def same_bits(found, wanted):
    found, wanted = (
        np.ascontiguousarray(found, np.float32),
        np.ascontiguousarray(wanted, np.float32),
    )
    return found.shape == wanted.shape and np.array_equal(
        found.view(np.uint32), wanted.view(np.uint32)
    )


def run(layer, x, state, arithmetic, order, alpha, level):
    engine = Engine(
        Network("n", ((layer,),)), arithmetic, order, {"pass": alpha}, level, check_finite=False
    )
    initial = None if state is None else [tuple(s.astype(np.float32) for s in state)]
    return engine.sequence(x, initial)[0]


@settings(max_examples=150, deadline=None)
@given(
    case=cases(),
    order=st.sampled_from(["epur", "epur-mwl"]),
    arithmetic=st.sampled_from([FP16_ARITHMETIC, KEPT]),
    alpha=st.floats(2.0**-10, 1000.0, width=32),
)
def test_every_level_equals_the_oracle(case, order, arithmetic, alpha):
    layer, x, state = case
    h, c = (None, None) if state is None else state
    wanted, last_c = oracle.evaluate_pass(layer, x, arithmetic, order, alpha, h, c)
    for level in levels():
        note(f"level {level}")
        assert same_bits(run(layer, x, state, arithmetic, order, alpha, level), wanted)
        if order == "epur" and not layer.reverse and len(x):
            engine = Engine(Network("n", ((layer,),)), arithmetic, level=level, check_finite=False)
            zeros = np.zeros((2, layer.cells), np.float32)
            rows = (
                (zeros, zeros)
                if state is None
                else [np.stack([s, s]).astype(np.float32) for s in state]
            )
            for t in range(len(x)):
                rows = engine.step(0, np.stack([x[t], x[t]]).astype(np.float32), *rows)
            for n in range(2):
                assert same_bits(rows[0][n], wanted[-1])
                assert same_bits(rows[1][n], last_c)


@pytest.mark.parametrize("level", levels())
def test_overflow_and_its_neighbourhood(level):
    """Sums around the bound below which the kernels take the short rounding, and beyond 65,504."""
    rng = np.random.default_rng(7)
    for scale in (2000.0, 2047.0, 2048.0, 4000.0, 4094.0, 65504.0):
        weights = rng.choice([-1.0, 1.0, 0.5], (4, 3, 33)).astype(np.float16)
        layer = LstmLayer(
            "pass", weights, np.zeros((4, 3, 3), np.float16), np.zeros((4, 3), np.float16)
        )
        x = np.full((2, 33), scale, np.float16)
        x[1, ::2] *= -1
        wanted, _ = oracle.evaluate_pass(layer, x, FP16_ARITHMETIC)
        assert same_bits(run(layer, x, None, FP16_ARITHMETIC, "epur", 1.0, level), wanted)


@pytest.mark.parametrize("level", levels())
def test_an_infinite_step_beside_a_finite_one(level):
    """Steps that take the long and the short rounding share one reading of the weights."""
    w_x = np.full((4, 2, 3), 62688.0, np.float16)
    layer = LstmLayer("pass", w_x, np.zeros((4, 2, 2), np.float16), np.zeros((4, 2), np.float16))
    x = np.array([[0, 0, 1.046], [0, 0, 0], [0, 0, 0.5]], np.float16)
    wanted, _ = oracle.evaluate_pass(layer, x, FP16_ARITHMETIC)
    assert np.isfinite(wanted).all()
    assert same_bits(run(layer, x, None, FP16_ARITHMETIC, "epur", 1.0, level), wanted)


@pytest.mark.parametrize("level", levels())
def test_every_product_of_two_binades(level):
    """All pairs of a binade's 1,024 significands, where products round up, down and tie."""
    m = (np.arange(1024, dtype=np.uint16) | 0x3C00).view(np.float16)
    for exponent in (0, -7, -13, -14, -24):  # down to where every product is subnormal
        w = np.zeros((4, 256, 1), np.float16)
        for block in range(4):
            w[0, :, 0] = m[block * 256 : block * 256 + 256]
            layer = LstmLayer(
                "pass",
                w.copy(),
                np.zeros((4, 256, 256), np.float16),
                np.zeros((4, 256), np.float16),
            )
            x = (m.astype(np.float64) * 2.0**exponent).astype(np.float16)
            engine = Engine(Network("n", ((layer,),)), FP16_ARITHMETIC, level=level)
            packed = engine._packed["pass"]
            padded = np.zeros((1024, 16), np.float32)
            padded[:, 0] = x
            sums, _ = packed.forward(level_number(level), padded, np.zeros(2, np.int64))
            found = sums.reshape(1024, 16, 4, 16)[:, :, 0].reshape(1024, 256)
            wanted = (x.astype(np.float32)[:, None] * w[0, :, 0].astype(np.float32)).astype(
                np.float16
            )
            assert np.array_equal(found.astype(np.float16).view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("level", levels())
def test_sums_of_far_and_near_values(level):
    """a + b over exponents apart by 0 to 25 places, significands at the edges of ties and binades."""
    edge = np.array([0, 1, 2, 511, 512, 513, 1022, 1023], np.uint16)
    values = (edge[None, :] | (np.arange(1, 31, dtype=np.uint16)[:, None] << 10)).reshape(-1)
    values = np.concatenate([values[values < 0x7400], edge]).view(np.float16)
    values = np.concatenate([values, -values])
    weights = np.zeros((4, 16, 16), np.float16)
    for start in range(0, len(values) - 15, 16):
        b = values[start : start + 16]
        weights[0, :, 0], weights[0, :, 1] = 1.0, b
        layer = LstmLayer(
            "pass", weights.copy(), np.zeros((4, 16, 16), np.float16), np.zeros((4, 16), np.float16)
        )
        packed = Engine(Network("n", ((layer,),)), FP16_ARITHMETIC, level=level)._packed["pass"]
        x = np.zeros((len(values), 16), np.float32)
        x[:, 0], x[:, 1] = values, 1.0
        sums, _ = packed.forward(level_number(level), x, np.zeros(2, np.int64))
        found = sums.reshape(len(values), 4, 16)[:, 0].astype(np.float16)
        wanted = (values.astype(np.float64)[:, None] + b.astype(np.float64)).astype(np.float16)
        assert np.array_equal(found, wanted)  # zeros' signs do not leave the adder tree


def test_exp_of_every_code():
    table = exp_table()
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    for code, value in enumerate(values):
        wanted = np.float16(oracle.exp(float(value), FP16))
        if np.isnan(wanted):
            assert table[code] == 0x7E00
        else:
            assert table[code] == wanted.view(np.uint16), (code, value)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.booleans())
def test_blocks_of_time_steps_do_not_show(seed, steps, reverse):
    """Longer than the block that shares a reading of the weights, against one step at a time."""
    rng = np.random.default_rng(seed)
    arrays = [
        (rng.normal(size=shape) * 0.3).astype(np.float16)
        for shape in ((4, 5, 7), (4, 5, 5), (4, 5))
    ]
    x = rng.normal(size=(steps, 7)).astype(np.float32)
    whole = Engine(
        Network("n", ((LstmLayer("p", *arrays, reverse=reverse),),)), FP16_ARITHMETIC
    ).sequence(x)[0]
    engine = Engine(Network("n", ((LstmLayer("p", *arrays),),)), FP16_ARITHMETIC)
    h, c = np.zeros((1, 5), np.float32), np.zeros((1, 5), np.float32)
    for t in reversed(range(steps)) if reverse else range(steps):
        h, c = engine.step(0, x[t : t + 1], h, c)
        assert same_bits(h[0], whole[t])


def stacked(rng, cells=(5, 4), inputs=6):
    layers, width = [], inputs
    for n, count in enumerate(cells):
        passes = []
        for d in ("forward", "backward"):
            arrays = [
                (rng.normal(size=shape) * 0.4).astype(np.float16)
                for shape in ((4, count, width), (4, count, count), (4, count))
            ]
            passes.append(LstmLayer(f"{n}.{d}", *arrays, reverse=d == "backward"))
        layers.append(tuple(passes))
        width = 2 * count
    return Network("stack", tuple(layers))


@pytest.mark.parametrize("name", ["epur", "epur-mwl"])
def test_a_bidirectional_stack(name):
    rng = np.random.default_rng(3)
    network, x = stacked(rng), rng.normal(size=(9, 6)).astype(np.float32)
    alpha = calibrate(network, [x])
    result = emulate(network, x, FP16_ARITHMETIC, Accelerator.load(name), alpha)
    given_x = x
    for layer, found in zip(network.layers, result.layers, strict=True):
        wanted = [
            oracle.evaluate_pass(p, given_x, FP16_ARITHMETIC, name, alpha[p.name])[0] for p in layer
        ]
        given_x = np.concatenate(wanted, -1)
        assert same_bits(found, given_x)
    float32 = emulate(network, x, ARITHMETICS["float32"]).outputs
    assert 0 < np.abs(result.outputs - float32).max() < (0.02 if name == "epur" else 0.1)
    assert result.cycles == result.trace.cycles > 0


def test_float32_reference_equals_the_definition():
    rng = np.random.default_rng(5)
    layer = LstmLayer(
        "p",
        *(
            (rng.normal(size=s) * 0.5).astype(np.float32)
            for s in ((4, 3, 4), (4, 3, 3), (4, 3), (3, 3))
        ),
    )
    x = rng.normal(size=(6, 4))
    found = Engine(Network("n", ((layer,),)), ARITHMETICS["float32"]).sequence(x)[0]
    h, c = np.zeros(3), np.zeros(3)
    w_x, w_h, b, p = (
        a.astype(np.float64) for a in (layer.w_x, layer.w_h, layer.bias, layer.peepholes)
    )
    for t in range(6):
        i, f, g, o = w_x @ x[t] + w_h @ h + b
        c = np.tanh(g) / (1 + np.exp(-i - p[0] * c)) + c / (1 + np.exp(-f - p[1] * c))
        h = np.tanh(c) / (1 + np.exp(-o - p[2] * c))
        np.testing.assert_allclose(found[t], h, rtol=1e-5, atol=1e-6)


def test_overflow_and_underflow_are_counted():
    big = LstmLayer(
        "p",
        np.full((4, 1, 2), 60000.0, np.float16),
        *[np.zeros(s, np.float16) for s in ((4, 1, 1), (4, 1))],
    )
    engine = Engine(Network("n", ((big,),)), FP16_ARITHMETIC)
    engine.sequence(np.ones((1, 2)))
    assert engine.stats["p"].overflow == 4  # 120,000 in each gate
    calm = LstmLayer("p", *[np.zeros(s, np.float16) for s in ((4, 1, 2), (4, 1, 1), (4, 1))])
    engine = Engine(Network("n", ((calm,),)), FP16_ARITHMETIC)
    engine.sequence(np.ones((3, 2)))
    assert (engine.stats["p"].overflow, engine.stats["p"].underflow) == (0, 0)


def test_bad_input_is_named():
    network = stacked(np.random.default_rng(0))
    with pytest.raises(NetworkError, match=r"0\.forward: input has shape \(2, 5\); give \(T, 6\)"):
        Engine(network, FP16_ARITHMETIC).sequence(np.zeros((2, 5)))
    x = np.zeros((2, 6))
    x[1, 3] = np.nan
    with pytest.raises(NetworkError, match=r"input, index \[1, 3\] is nan"):
        Engine(network, FP16_ARITHMETIC).sequence(x)
    x[1, 3] = 65520.0
    Engine(network, ARITHMETICS["float32"]).sequence(x)
    with pytest.raises(NetworkError, match=r"index \[1, 3\] is 65520.0, not finite in float16"):
        Engine(network, FP16_ARITHMETIC).sequence(x)
    with pytest.raises(NetworkError, match="alpha is 0"):
        Engine(network, FP16_ARITHMETIC, "epur-mwl").sequence(np.zeros((2, 6)))
    with pytest.raises(FormatError, match="one of"):
        Engine(network, FP16_ARITHMETIC, level="mmx")
    wide = replace(Accelerator.load("epur"), width=32)
    with pytest.raises(FormatError, match="width is 32"):
        emulate(network, np.zeros((2, 6)), FP16_ARITHMETIC, wide)
    assert emulate(network, np.zeros((2, 6)), ARITHMETICS["float32"], wide).cycles > 0
    with pytest.raises(NetworkError, match=r"w_x, gate f, index \[2, 1\] is inf"):
        weights = np.zeros((4, 3, 2), np.float16)
        weights[1, 2, 1] = np.inf
        layer = LstmLayer(
            "l", weights, np.zeros((4, 3, 3), np.float16), np.zeros((4, 3), np.float16)
        )
        Engine(Network("n", ((layer,),)), FP16_ARITHMETIC)


def test_a_level_is_forced_by_the_environment(monkeypatch):
    monkeypatch.setenv("EPUR_SIMD", "scalar")
    assert level_number(None) == 0
    monkeypatch.setenv("EPUR_SIMD", "nonsense")
    with pytest.raises(FormatError, match="nonsense"):
        level_number(None)


def test_importing_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import epur_emu.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
