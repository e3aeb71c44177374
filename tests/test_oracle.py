"""The oracle against numpy, exact decimals, brute force, and cases worked out by hand."""

import math
from collections import Counter
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from epur_emu import oracle
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.errors import AcceleratorError, NetworkError
from epur_emu.formats import BF16, FP16, FP32, FloatFormat, LinearFormat
from epur_emu.network import LayerShape, LstmLayer

NUMPY = {FP16: np.float16, FP32: np.float32}
EPUR = arithmetic("epur-fp16")
KEPT = EPUR.with_partial(FP16)


def bits(value):
    """Bit pattern as float64, one for all NaNs."""
    value = math.nan if math.isnan(value) else float(value)
    return np.float64(value).tobytes()


def random_values(form, count, seed):
    """Random bit patterns of fp16 or fp32, and all pairs of special values."""
    rng = np.random.default_rng(seed)
    kind = NUMPY[form]
    patterns = rng.integers(0, 2**form.bits, (2, count), dtype=np.uint64)
    a, b = patterns.astype(f"uint{form.bits}").view(kind).astype(np.float64)
    near = rng.integers(0, count, count // 2)  # of like magnitude, so that sums cancel
    b[near] = a[near].astype(kind) * kind(-1.25)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    special += [float(form.max), float(form.min_subnormal), -float(form.min_normal)]
    pairs = [(x, y) for x in special for y in special]
    return [(float(x), float(y)) for x, y in zip(a, b, strict=True)] + pairs


def values_of(form):
    """Every finite value >= 0 of a small format, in order, from the definition of its encoding."""
    found = []
    for code in range((2**form.exponent_bits - 1) * 2**form.mantissa_bits):
        exponent, mantissa = divmod(code, 2**form.mantissa_bits)
        fraction = Fraction(mantissa, 2**form.mantissa_bits) + (exponent > 0)
        found.append(fraction * Fraction(2) ** (max(exponent, 1) - form.bias))
    return found


class TestRounding:
    @pytest.mark.parametrize("form", [FP16, FP32], ids=str)
    def test_equals_numpy_on_doubles(self, form):
        rng = np.random.default_rng(1)
        exponents = rng.uniform(-30 if form is FP16 else -155, 20 if form is FP16 else 130, 20_000)
        values = rng.choice([-1, 1], 20_000) * 2.0**exponents
        with np.errstate(over="ignore"):
            wanted = values.astype(NUMPY[form])
        for value, want in zip(values, wanted, strict=True):
            got = oracle.round_exact(Fraction(float(value)), form)
            assert bits(got) == bits(want), value

    def test_every_fp16_midpoint_and_its_neighbours(self):
        codes = np.arange(0x7C00, dtype=np.uint16)
        values = codes.view(np.float16).astype(np.float64)
        above = np.append(values[1:], 2.0**16)
        tiny = Fraction(1, 2**90)
        for code, low, high in zip(codes.tolist(), values, above, strict=True):
            middle = (Fraction(float(low)) + Fraction(float(high))) / 2
            top = math.inf if high == 2.0**16 else high
            assert oracle.round_exact(middle - tiny, FP16) == low
            assert oracle.round_exact(middle + tiny, FP16) == top
            assert oracle.round_exact(middle, FP16) == (top if code % 2 else low)

    @pytest.mark.parametrize(
        "form", [FloatFormat(4, 3), FloatFormat(2, 1), FloatFormat(3, 2)], ids=str
    )
    def test_equals_brute_force_search(self, form):
        values = values_of(form)
        assert values[-1] == form.max
        overflow = values[-1] + (values[-1] - values[-2])  # the next value, were there one more
        grid = [*values, overflow]
        for step in range(2000):
            exact = Fraction(step, 1500) * overflow
            best = min(abs(v - exact) for v in grid)
            near = [code for code, v in enumerate(grid) if abs(v - exact) == best]
            code = near[0] if len(near) == 1 else next(c for c in near if c % 2 == 0)
            wanted = math.inf if code == len(values) or exact > overflow else float(grid[code])
            assert bits(oracle.round_exact(exact, form)) == bits(wanted)
            assert bits(oracle.round_exact(-exact, form)) == bits(-wanted if exact else 0.0)

    def test_unreduced_ratio(self):
        assert oracle.round_ratio(-3 * 10**40, 10**40, BF16) == -3.0

    def test_convert_keeps_what_is_no_ratio(self):
        assert bits(oracle.convert(-0.0, FP16)) == bits(-0.0)
        assert oracle.convert(-math.inf, FP16) == -math.inf
        assert math.isnan(oracle.convert(math.nan, FP16))
        assert bits(oracle.convert(-(2.0**-26), FP16)) == bits(-0.0)


class TestOperations:
    @pytest.mark.parametrize("form", [FP16, FP32], ids=str)
    @pytest.mark.parametrize("name", ["add", "multiply", "divide"])
    def test_equals_numpy(self, form, name):
        kind = NUMPY[form]
        ufunc = getattr(np, name)
        operation = getattr(oracle, name)
        with np.errstate(all="ignore"):
            for a, b in random_values(form, 6000, 2):
                # A double rounds fp16 results innocuously: 53 >= 2 * 11 + 2.
                wanted = ufunc(kind(a), kind(b)) if form is FP32 else kind(ufunc(a, b))
                assert bits(operation(a, b, form)) == bits(wanted), (a, b)

    def test_mixed_formats_round_once(self):
        # Through the nearest float32 all three would be ties, and fall to 1.
        assert oracle.add(1 + 2.0**-8, 2.0**-24 * 2.0**-8, BF16) == 1 + 2.0**-7
        assert oracle.multiply(1 + 2.0**-12, 1 + 2.0**-12, FP16) == 1 + 2.0**-10
        assert oracle.add(1 + 2.0**-11, 2.0**-40, FP16) == 1 + 2.0**-10

    @pytest.mark.parametrize("form", [FP16, FP32, BF16], ids=str)
    def test_exp_equals_decimal(self, form):
        rng = np.random.default_rng(3)
        values = rng.uniform(-18, 12, 300).tolist() + (rng.normal(size=300) * 1e-3).tolist()
        values += rng.uniform(-105, 89, 200).tolist()
        with localcontext() as context:
            context.prec = 80
            for value in values:
                x = oracle.convert(value, form)
                wanted = oracle.round_exact(Fraction(Decimal(x).exp()), form)
                assert bits(oracle.exp(x, form)) == bits(wanted), x

    def test_exp_at_the_ends(self):
        assert oracle.exp(0.0, FP16) == oracle.exp(-0.0, FP16) == 1.0
        assert bits(oracle.exp(-math.inf, FP16)) == bits(0.0)
        assert oracle.exp(math.inf, FP16) == math.inf
        assert math.isnan(oracle.exp(math.nan, FP16))
        assert oracle.exp(11.09375, FP16) == math.inf  # e**x = 65,759, above 65,520
        assert oracle.exp(11.0859375, FP16) == 65248.0  # e**x = 65,247.1
        assert bits(oracle.exp(-1e38, FP32)) == bits(0.0)
        assert oracle.exp(1e38, FP32) == math.inf
        assert oracle.exp(2.0**-149, FP32) == 1.0
        # Half of the smallest subnormal is 2**-25; ln(2**-25) = -17.3287.
        assert oracle.exp(-17.328125, FP16) == 2.0**-24
        assert bits(oracle.exp(-17.34375, FP16)) == bits(0.0)

    def test_clamp_passes_nan_and_zeros(self):
        assert oracle.clamp(12.0, 11.0) == 11.0
        assert oracle.clamp(-math.inf, 11.0) == -11.0
        assert bits(oracle.clamp(-0.0, 11.0)) == bits(-0.0)
        assert math.isnan(oracle.clamp(math.nan, 11.0))


def layer_of(inputs, cells, seed=0, peepholes=False, reverse=False, scale=0.5):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.normal(size=shape) * scale).astype(np.float32)

    return LstmLayer(
        "layer", draw(4, cells, inputs), draw(4, cells, cells), draw(4, cells),
        draw(3, cells) if peepholes else None, reverse,
    )  # fmt: skip


def constant_layer(bias, inputs=1, cells=1):
    """All weights zero; one bias for each gate i, f, g, o."""
    return LstmLayer(
        "constant",
        np.zeros((4, cells, inputs), np.float32),
        np.zeros((4, cells, cells), np.float32),
        np.repeat(np.array(bias, np.float32)[:, None], cells, axis=1),
    )


# fp16: e = 1392/512, 1/e = 1507/4096; difference and sum round to 1204/512 and 1580/512, the
# quotient to 1561/2048 (the nearest fp16 to tanh 1 is 1560/2048).
TANH_1 = 1561 / 2048
# fp16: e**-2 = 1109/8192, 1 + it = 1163/1024, its inverse 1803/2048.
SIGMOID_2 = 1803 / 2048


class TestPass:
    def test_zeros(self):
        h, c = oracle.evaluate_pass(constant_layer([0, 0, 0, 0]), [[1.0]], EPUR, c0=[1.0])
        assert c[0] == 0.5  # forget gate 1/2, candidate (1 - 1) / 2
        # tanh(1/2): 1688/1024 and 1242/2048, then 1067/1024 over 1154/512 (a tie, to even) is
        # 1894/4096; half of it is h.
        assert h[0, 0] == 947 / 4096
        assert h.shape == (1, 1)
        assert h.dtype == np.float32

    def test_saturated_gates_by_hand(self):
        # The clamp makes every bias 11: gates 1, candidate 1, so c = 1 and then 2.
        h, c = oracle.evaluate_pass(constant_layer([100] * 4), [[0.0]], EPUR)
        assert (h[0, 0], c[0]) == (TANH_1, 1.0)
        _, c = oracle.evaluate_pass(constant_layer([100] * 4), [[0.0], [0.0]], EPUR)
        assert c[0] == 2.0

    def sum_layer(self, bias):
        """Output gate 2048 x + h0 + h1 + bias, the other gates 1."""
        w_x, w_h = np.zeros((4, 2, 1), np.float32), np.zeros((4, 2, 2), np.float32)
        w_x[3], w_h[3] = 2048, 1
        biases = np.full((4, 2), 100, np.float32)
        biases[3] = bias
        return LstmLayer("sum", w_x, w_h, biases)

    def test_recurrent_vector_begins_a_sub_vector_of_its_own(self):
        # 2048 + (1 + 1) = 2050 in fp16, but (2048 + 1) + 1 = 2048.
        h, _ = oracle.evaluate_pass(self.sum_layer(-2048), [[1.0]], EPUR, h0=[1, 1])
        assert h[0, 0] == h[0, 1] == float(np.float16(SIGMOID_2 * TANH_1))

    def test_mwl_clips_to_alpha(self):
        h, _ = oracle.evaluate_pass(
            self.sum_layer(-2000), [[1.0]], EPUR, "epur-mwl", alpha=2000.0, h0=[1, 1]
        )
        assert h[0, 0] == float(np.float16(SIGMOID_2 * TANH_1))

    def test_tree_adds_adjacent_pairs_then_accumulates(self):
        ones = [1.0] * 20

        def total(weights, acc=0.0):
            weights = weights + [0.0] * (20 - len(weights))
            return oracle._accumulate(weights, ones, acc, EPUR, 16)

        assert total([2048.0, 1.0, 1.0]) == 2048.0  # (2048 + 1) + (1 + 0)
        assert total([1.0, 1.0, 2048.0]) == 2050.0  # (1 + 1) + (2048 + 0)
        assert total([1.0] * 16 + [2048.0]) == 2064.0
        assert total([1.0] * 3, acc=2048.0) == 2052.0  # 3 at once: 2051 ties to 2052
        assert total([1.0] + [0.0] * 15 + [1.0], acc=2048.0) == 2048.0  # one by one

    def test_minus_zero_is_lost_in_the_accumulator(self):
        assert bits(oracle._accumulate([-1.0], [0.0], 0.0, EPUR, 16)) == bits(0.0)

    def test_stored_partials(self):
        scale = Fraction(127)  # one step is 1

        def back(value):
            return oracle._stored(value, EPUR, scale)

        assert [back(v) for v in (0.5, 1.5, 2.5, -1.5, 126.75, 200.0)] == [0, 2, 2, -2, 127, 127]
        assert bits(back(-0.25)) == bits(0.0)
        assert (back(math.inf), back(-math.inf)) == (127.0, -127.0)
        assert math.isnan(back(math.nan))
        # One step of alpha = 1 is 1/127, here rounded to fp16.
        assert oracle._stored(0.007, EPUR, Fraction(1)) == float(np.float16(1 / 127))
        assert oracle._stored(0.007, EPUR.with_partial(LinearFormat(4)), Fraction(1)) == 0.0
        assert oracle._stored(1 + 2.0**-10, EPUR.with_partial(BF16), None) == 1.0

    @pytest.mark.parametrize("order", oracle.ORDERS)
    @pytest.mark.parametrize("peepholes", [False, True])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_near_a_plain_lstm(self, order, peepholes, reverse):
        layer = layer_of(3, 4, 5, peepholes, reverse)
        rng = np.random.default_rng(6)
        x, h, c = rng.normal(size=(3, 3)), rng.normal(size=4) * 0.3, rng.normal(size=4)
        single = arithmetic("float32")
        got_h, got_c = oracle.evaluate_pass(layer, x, single, order, h0=h, c0=c)

        def sigmoid(r):
            return 1 / (1 + np.exp(-r))

        w_x, w_h, bias = (a.astype(np.float64) for a in (layer.w_x, layer.w_h, layer.bias))
        peep = np.zeros((3, 4)) if layer.peepholes is None else layer.peepholes
        wanted = np.zeros((3, 4))
        for t in (2, 1, 0) if reverse else (0, 1, 2):
            i, f, g, o = w_x @ x[t] + w_h @ h + bias
            c = sigmoid(f + peep[1] * c) * c + sigmoid(i + peep[0] * c) * np.tanh(g)
            wanted[t] = h = sigmoid(o + peep[2] * c) * np.tanh(c)
        np.testing.assert_allclose(got_h, wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got_c, c, rtol=0, atol=1e-6)

    def test_orders_differ_only_where_they_round(self):
        layer = layer_of(20, 3, 7, scale=1.0)
        x = np.random.default_rng(8).normal(size=(4, 20))
        together = oracle.evaluate_pass(layer, x, EPUR)
        apart = oracle.evaluate_pass(layer, x, KEPT, "epur-mwl")
        coarse = oracle.evaluate_pass(layer, x, EPUR, "epur-mwl", alpha=20.0)
        assert not np.array_equal(together[0], coarse[0])
        np.testing.assert_allclose(together[0], apart[0], atol=0.02)
        # Without a recurrent part there is one sum, and nothing to round differently.
        alone = LstmLayer("alone", layer.w_x, np.zeros((4, 3, 3), np.float32), layer.bias)
        assert np.array_equal(
            oracle.evaluate_pass(alone, x, EPUR)[0],
            oracle.evaluate_pass(alone, x, KEPT, "epur-mwl")[0],
        )

    def test_values_belong_to_their_formats(self):
        mixed = replace(EPUR, output=FloatFormat(4, 3), cell=BF16, accumulator=FP32)
        layer = layer_of(3, 2, 9, peepholes=True)
        h, c = oracle.evaluate_pass(layer, np.ones((2, 3)), mixed, h0=[0.3, 0.3], c0=[0.1, 3e38])
        assert all(bits(oracle.convert(float(v), FloatFormat(4, 3))) == bits(v) for v in h.flat)
        assert all(bits(oracle.convert(float(v), BF16)) == bits(v) for v in c)

    def test_nan_is_canonical_and_spreads_no_further_than_its_sums(self):
        layer = layer_of(2, 2, 1)
        h, _ = oracle.evaluate_pass(layer, [[1.0, 0.0], [-math.nan, 0.0]], EPUR)
        assert np.isfinite(h[0]).all()
        assert (h[1].view(np.uint32) == 0x7FC00000).all()

    def test_infinite_inputs_are_clamped(self):
        layer = layer_of(1, 1, 2)
        h, _ = oracle.evaluate_pass(layer, [[math.inf], [1e9]], EPUR)
        assert np.isfinite(h).all()

    def test_no_steps(self):
        h, c = oracle.evaluate_pass(layer_of(2, 3), np.zeros((0, 2)), EPUR, c0=[1, 2, 1 / 3])
        assert h.shape == (0, 3)
        assert c.tolist() == [1, 2, float(np.float16(1 / 3))]

    @pytest.mark.parametrize("alpha", [None, 0.0, -1.0, math.inf, math.nan, 1e-60, 1e60])
    def test_alpha_is_checked(self, alpha):
        with pytest.raises(AcceleratorError, match="alpha"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, "epur-mwl", alpha)

    def test_shapes_are_checked(self):
        with pytest.raises(NetworkError, match="inputs"):
            oracle.evaluate_pass(layer_of(2, 1), [[1.0]], EPUR)
        with pytest.raises(NetworkError, match="c0"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, c0=[1, 2])
        with pytest.raises(AcceleratorError, match="known"):
            oracle.evaluate_pass(layer_of(1, 1), [[1.0]], EPUR, "sideways")


@pytest.fixture
def machine():
    """A machine with sub-vectors of two, bursts of two sub-vectors, and two cycles to a burst."""
    return replace(
        Accelerator.load("epur"), width=2, clock_hz=1, dram_bandwidth=4, dram_burst_bytes=8,
        add_cycles=1, multiply_cycles=2, exp_cycles=3, divide_cycles=4, compare_cycles=1,
        link_cycles=2, quantise_cycles=3, lookup_cycles=1, weight_buffer_bytes=16,
        parameter_bank_bytes=8, input_buffer_bytes=20, row_buffer_bytes=8, intermediate_bytes=64,
    )  # fmt: skip


def rows(cycle, gates, kind, op, address, size):
    return [(cycle, f"cu.{q}.{kind}", op, address, size) for q in gates]


class TestAccessesByHand:
    def test_epur(self, machine):
        """I = 3, H = 1, T = 2, no peepholes: nx = 2, nh = 1.

        Ld = 4, TANH = 11, SIG = 9, tm = 12, tc = 16, z = 33, tail = 35. DRAM: rows at 0, two bursts
        each; biases at 64; input at 96; output at 112. Input buffers: x at 0, h at 8 and 12, c at
        16.
        """
        log = []
        for n, q in enumerate("ifgo"):  # biases, then C1 = channel(4) = 8
            log.append((n, "dram", "read", 64 + 8 * n, 8))
            log += rows(n, q, "weights", "write", 16, 4)
        log += rows(0, "ifgo", "inputs", "write", 8, 4)
        log += rows(0, "g", "inputs", "write", 16, 4)
        for n, q in enumerate("ifgo"):  # the row, R = channel(8) = 16, S(0) = 24
            log.append((8 + 2 * n, "dram", "read", 16 * n, 8))
            log.append((9 + 2 * n, "dram", "read", 16 * n + 8, 8))
            log += rows(8 + 2 * n, q, "weights", "write", 0, 4)
            log += rows(8 + 2 * n, q, "weights", "write", 4, 4)
            log += rows(9 + 2 * n, q, "weights", "write", 8, 4)
        # S(1) = 24 + 3 + 35 = 62; h is read from slot 0, then from slot 1.
        for start, x, h_from, h_to, y in ((24, 96, 8, 12, 32), (62, 104, 12, 8, 36)):
            log.append((start, "dram", "read", x, 8))
            log += rows(start, "ifgo", "inputs", "write", 0, 4)
            log += rows(start + 1, "ifgo", "inputs", "write", 4, 4)
            for s, operand in enumerate((0, 4, h_from)):
                log += rows(start + s, "ifgo", "weights", "read", 4 * s, 4)
                log += rows(start + s, "ifgo", "inputs", "read", operand, 4)
            done = start + 2 + 4
            log += rows(done, "ifgo", "weights", "read", 16, 2)
            log += rows(done + 13, "g", "inputs", "read", 16, 2)
            log += rows(done + 16, "g", "inputs", "write", 16, 2)
            log += rows(done + 33, "ifgo", "inputs", "write", h_to, 2)
            log.append((done + 33, "intermediate", "write", y, 2))
        log += [(102, "intermediate", "read", 32, 4), (102, "intermediate", "read", 36, 4)]
        log.append((102, "dram", "write", 112, 8))

        got, cycles = oracle.accesses_sequence(
            ((LayerShape("a", 3, 1),),), 2, EPUR, machine, "epur"
        )
        assert got == sorted(log)
        assert cycles == 104

    def test_mwl(self, machine):
        """I = 1, H = 2, T = 2, reverse, with peepholes: nx = nh = 1, partial sums of one byte.

        tm = 15, tc = 19, z = 37, tail = 43. DRAM: W_x at 0, W_h at 64, biases at 128, peepholes at
        160, input at 184, output at 200. Output rows at 32 and 36, partial sums from 40.
        """
        log = []
        for n, q in enumerate("ifgo"):
            log.append((n, "dram", "read", 128 + 8 * n, 8))
            log += rows(n, q, "weights", "write", 16, 4)
        for n, q in enumerate("ifo"):
            log.append((4 + n, "dram", "read", 160 + 8 * n, 8))
            log += rows(4 + n, q, "weights", "write", 20, 4)
        for t in (0, 1):  # staged from C1 = channel(7) = 14, until C2 = 18
            log.append((14 + 2 * t, "dram", "read", 184 + 8 * t, 8))
            log.append((14 + 2 * t, "intermediate", "write", 4 * t, 4))
        for k in (0, 1):  # F = channel(8) = 16
            for n, q in enumerate("ifgo"):
                log.append((18 + 16 * k + n, "dram", "read", 32 * k + 8 * n, 8))
                log += rows(18 + 16 * k + n, q, "row", "write", 4 * k, 4)
                log.append((22 + 16 * k + n, "dram", "read", 64 + 32 * k + 8 * n, 8))
                log += rows(22 + 16 * k + n, q, "weights", "write", 4 * k, 4)
            for t, true_t in ((0, 1), (1, 0)):
                b = 34 + 16 * k + t
                log.append((b, "intermediate", "read", 4 * true_t, 4))
                log += rows(b, "ifgo", "row", "read", 4 * k, 4)
                log += rows(b, "ifgo", "inputs", "write", 0, 4)
                log += rows(b, "ifgo", "inputs", "read", 0, 4)
                for q in range(4):
                    log.append((b + 7, "intermediate", "write", 40 + 8 * true_t + 4 * k + q, 1))
        # The initial state comes at 18 + 3 * 16 + 7 = 73; R0 = 74; S(1) = 74 + 2 + 43 = 119.
        log += rows(73, "ifgo", "inputs", "write", 0, 4)
        log += rows(73, "ifg", "inputs", "write", 4, 4)
        log.append((119, "intermediate", "read", 36, 4))
        log += rows(119, "ifgo", "inputs", "write", 0, 4)
        for a, true_t, k in ((74, 1, 0), (75, 1, 1), (119, 0, 0), (120, 0, 1)):
            log += rows(a, "ifgo", "weights", "read", 4 * k, 4)
            log += rows(a, "ifgo", "inputs", "read", 0, 4)
            for q in range(4):
                log.append((a + 4, "intermediate", "read", 40 + 8 * true_t + 4 * k + q, 1))
            done = a + 6
            bias, peephole, c = 16 + 2 * k, 20 + 2 * k, 4 + 2 * k
            log += rows(done, "if", "weights", "read", peephole, 2)
            log += rows(done, "if", "inputs", "read", c, 2)
            log += rows(done + 3, "if", "weights", "read", bias, 2)
            log += rows(done, "go", "weights", "read", bias, 2)
            log += rows(done + 16, "g", "inputs", "read", c, 2)
            log += rows(done + 19, "g", "inputs", "write", c, 2)
            log += rows(done + 21, "if", "inputs", "write", c, 2)
            log += rows(done + 21, "o", "weights", "read", peephole, 2)
            log.append((done + 37, "intermediate", "write", 32 + 4 * true_t + 2 * k, 2))
        log += [(164, "intermediate", "read", 32, 4), (164, "intermediate", "read", 36, 4)]
        log.append((164, "dram", "write", 200, 8))

        got, cycles = oracle.accesses_sequence(
            ((LayerShape("a", 1, 2, True, True),),), 2, EPUR, machine, "epur-mwl"
        )
        assert got == sorted(log)
        assert cycles == 166

    def test_decode(self, machine):
        """I = H = 1, T = 2: weights loaded once, state kept at 0 (h) and 4 (c) of the intermediate.

        z = 33. DRAM: rows at 0, biases at 32, inputs at 64, outputs at 80. Input buffers: x at 0,
        h at 4 and 8, c at 12.
        """
        log = []
        for n, q in enumerate("ifgo"):
            log.append((n, "dram", "read", 32 + 8 * n, 8))
            log += rows(n, q, "weights", "write", 16, 4)
            log.append((8 + n, "dram", "read", 8 * n, 8))
            log += rows(8 + n, q, "weights", "write", 0, 4)
            log += rows(8 + n, q, "weights", "write", 4, 4)
        log += rows(0, "ifgo", "inputs", "write", 4, 4)
        log += rows(0, "g", "inputs", "write", 12, 4)
        log += [(57, "intermediate", "read", 0, 4), (58, "intermediate", "read", 4, 4)]
        log += rows(57, "ifgo", "inputs", "write", 4, 4)
        log += rows(58, "g", "inputs", "write", 12, 4)
        for step, start in ((0, 16), (1, 59)):
            log.append((start, "dram", "read", 64 + 8 * step, 8))
            log += rows(start, "ifgo", "inputs", "write", 0, 4)
            for s in (0, 1):
                log += rows(start + s, "ifgo", "weights", "read", 4 * s, 4)
                log += rows(start + s, "ifgo", "inputs", "read", 4 * s, 4)
            done = start + 5
            log += rows(done, "ifgo", "weights", "read", 16, 2)
            log += rows(done + 13, "g", "inputs", "read", 12, 2)
            log += rows(done + 16, "g", "inputs", "write", 12, 2)
            log.append((done + 18, "intermediate", "write", 4, 2))
            log += rows(done + 33, "ifgo", "inputs", "write", 8, 2)
            log.append((done + 33, "intermediate", "write", 0, 2))
            log.append((done + 34, "intermediate", "read", 0, 4))
            log.append((done + 34, "dram", "write", 80 + 8 * step, 8))

        got, cycles = oracle.accesses_decode(((LayerShape("a", 1, 1),),), 2, EPUR, machine)
        assert got == sorted(log)
        assert cycles == 100

    def test_decode_through_two_layers(self, machine):
        """I = 5, H = 5 and then H = 2: nx = nh = 3, then nx = 3, nh = 1.

        Rows of 3 and 2 bursts, R = 24 and 16 while loading; the layers end at 179 and 260, and at
        335 and 382; a store takes 2 cycles. States at 0 and 24. In DRAM inputs begin at 704.
        """
        roomy = replace(
            machine, weight_buffer_bytes=152, parameter_bank_bytes=16, input_buffer_bytes=48
        )
        shape = ((LayerShape("a", 5, 5),), (LayerShape("b", 5, 2),))
        log, cycles = oracle.accesses_decode(shape, 2, EPUR, roomy)
        assert cycles == 384
        read = [(t, a) for t, c, op, a, _ in log if (c, op) == ("intermediate", "read")]
        assert read == [
            (203, 0), (204, 4), (205, 8), (260, 24),
            (262, 0), (263, 4), (264, 8), (265, 12), (266, 16), (267, 20),
            (335, 24), (336, 28), (337, 0), (338, 4), (339, 8), (382, 24),
        ]  # fmt: skip
        state = [
            (t, a) for t, c, op, a, size in log
            if 262 <= t < 268 and (c, op, size) == ("cu.g.inputs", "write", 4)
        ]  # fmt: skip
        assert state == [(262, 12), (263, 16), (264, 20), (265, 36), (266, 40), (267, 44)]
        dram = [(t, op, a) for t, c, op, a, _ in log if c == "dram" and a >= 704]
        assert dram == [
            (40, "read", 704), (42, "read", 712), (260, "write", 736),
            (268, "read", 720), (270, "read", 728), (382, "write", 744),
        ]  # fmt: skip

        log, _ = oracle.accesses_decode(shape, 2, EPUR, roomy, host_between=True)
        dram = [(op, a) for _, c, op, a, _ in log if c == "dram" and a >= 704]
        assert dram == [
            *[("read", a) for a in (704, 712)], *[("write", a) for a in (768, 776)],
            *[("read", a) for a in (736, 744)], ("write", 800),
            *[("read", a) for a in (720, 728)], *[("write", a) for a in (784, 792)],
            *[("read", a) for a in (752, 760)], ("write", 808),
        ]  # fmt: skip

    def test_mwl_reads_h_back(self, machine):
        """I = 3, H = 5, T = 2: C2 = 20, F = channel(12) = 24, state from 171, S(1) = 174 + 15 + 39."""
        roomy = replace(
            machine, weight_buffer_bytes=60, parameter_bank_bytes=12, input_buffer_bytes=24,
            row_buffer_bytes=16, intermediate_bytes=128,
        )  # fmt: skip
        log, cycles = oracle.accesses_sequence(
            ((LayerShape("a", 3, 5),),), 2, EPUR, roomy, "epur-mwl"
        )
        read = [
            (t, a) for t, c, op, a, size in log
            if t >= 171 and (c, op, size) == ("intermediate", "read", 4)
        ]  # fmt: skip
        back = [(228, 64), (229, 68), (230, 72)]
        assert read == [*back, *[(282 + s // 2, 64 + 4 * s) for s in range(6)]]
        write = [
            (t, a) for t, c, op, a, size in log
            if t >= 171 and (c, op, size) == ("cu.o.inputs", "write", 4)
        ]  # fmt: skip
        assert write == [(171, 0), (172, 4), (173, 8), (228, 0), (229, 4), (230, 8)]
        assert cycles == 288

    def test_mwl_places(self, machine):
        """I = 3, H = 5, T = 2, peepholes, given state: C1 = channel(14) = 28, F = 24.

        DRAM: W_x at 0, W_h at 160, biases at 480, input at 592, state at 608, output at 640.
        """
        roomy = replace(
            machine, weight_buffer_bytes=60, parameter_bank_bytes=24, input_buffer_bytes=24,
            row_buffer_bytes=16, intermediate_bytes=128,
        )  # fmt: skip
        log, _ = oracle.accesses_sequence(
            ((LayerShape("a", 3, 5, True),),), 2, EPUR, roomy, "epur-mwl", given_state=True
        )

        def pick(component, op, size):
            return [(t, a) for t, c, o, a, s in log if (c, o, s) == (component, op, size)]

        assert [a for _, a in pick("dram", "write", 8)] == [640, 648, 656]
        read = pick("dram", "read", 8)
        assert {a for _, a in read} == set(range(0, 640, 8))
        assert read[:14] == [(t, 480 + 8 * t) for t in range(14)]
        assert read[14:16] == [(28, 592), (30, 600)]
        assert read[-4:] == [(183, 608), (184, 616), (185, 624), (186, 632)]
        # x of neuron 0 from C2 + F = 32 + 24 on; from C2 + 6 F + 7 on h at 0 and, behind it, c.
        state = [(183, 0), (183, 4), (184, 8), (185, 12), (185, 16), (186, 20)]
        written = pick("cu.f.inputs", "write", 4)
        assert written[:2] == [(56, 0), (57, 4)]
        assert [w for w in written if 176 <= w[0] < 190] == state
        assert [w for w in pick("cu.o.inputs", "write", 4) if 176 <= w[0] < 190] == state[:3]
        assert pick("intermediate", "write", 1)[:5] == [
            *[(64, 88 + q) for q in range(4)],
            (66, 108),
        ]
        assert {a for _, a in pick("cu.i.inputs", "read", 2)} == {12, 14, 16, 18, 20}
        assert {a for _, a in pick("cu.o.weights", "read", 2)} == {
            *range(60, 70, 2), *range(72, 82, 2),
        }  # fmt: skip

    def test_halves_alternate(self, machine):
        """Layers of 5, 2 and 1 cells: pitches 12, 4 and 4; the halves begin at 0 and 32."""
        roomy = replace(
            machine, weight_buffer_bytes=100, parameter_bank_bytes=12, input_buffer_bytes=44
        )
        shape = ((LayerShape("a", 3, 5),), (LayerShape("b", 5, 2),), (LayerShape("c", 2, 1),))
        log, _ = oracle.accesses_sequence(shape, 2, EPUR, roomy, "epur")
        read = [a for _, c, op, a, _ in log if (c, op) == ("intermediate", "read")]
        assert read == [32, 36, 40, 44, 48, 52, 0, 4, 32, 36]


TWO_LAYERS = (
    (LayerShape("0f", 20, 17, True), LayerShape("0b", 20, 18, True, True)),
    (LayerShape("1", 35, 9),),
)
STACK = ((LayerShape("0", 20, 17, True),), (LayerShape("1", 17, 9),), (LayerShape("2", 9, 33),))


def assert_reads_follow_writes(log):
    """What is read on chip was written before, or in the same cycle, at its first byte."""
    written = {}
    for cycle, component, op, address, size in log:
        if op == "write":
            for byte in range(address, address + size):
                written.setdefault((component, byte), cycle)
    for cycle, component, op, address, _ in log:
        if op == "read" and component != "dram":
            assert written[component, address] <= cycle, (cycle, component, address)


class TestAccesses:
    @pytest.mark.parametrize("given_state", [False, True])
    @pytest.mark.parametrize("dataflow", oracle.ORDERS)
    def test_sequence_is_causal_and_complete(self, dataflow, given_state):
        accelerator = Accelerator.load(dataflow)
        log, cycles = oracle.accesses_sequence(
            TWO_LAYERS, 3, EPUR, accelerator, dataflow, given_state
        )
        assert_reads_follow_writes(log)
        assert log == sorted(log)
        assert log[0][0] == 0
        assert log[-1][0] < cycles
        count = Counter((component, op, size) for _, component, op, _, size in log)
        forward = 3 * (17 * 2 + 18 * 2 + 9 * 3)  # T H nx of the three passes
        recurrent = 3 * (17 * 2 + 18 * 2 + 9 * 1)
        if dataflow == "epur":
            assert count["cu.o.weights", "read", 32] == forward + recurrent
        else:
            assert count["cu.o.weights", "read", 32] == recurrent
            assert count["cu.o.row", "read", 32] == forward
            assert count["intermediate", "write", 1] == 3 * 4 * (17 + 18 + 9)
        assert count["cu.o.inputs", "read", 32] == forward + recurrent
        assert count["intermediate", "write", 2] == 3 * (17 + 18 + 9)
        assert count["dram", "write", 64] == 2  # three rows of 32 bytes
        dram = [address for _, component, op, address, _ in log if component == "dram"]
        # Every burst of weights, input and state is read, every one of the output written.
        assert set(dram) == set(range(0, max(dram) + 64, 64))

    def test_bidirectional_outputs_lie_side_by_side(self):
        log, _ = oracle.accesses_sequence(TWO_LAYERS, 2, EPUR, Accelerator.load("epur"), "epur")
        half = 6_291_456 // 2
        wrote = {a for _, c, op, a, _ in log if (c, op) == ("intermediate", "write")}
        first = {half + 96 * t + 2 * k for t in range(2) for k in range(35)}
        assert wrote == first | {32 * t + 2 * k for t in range(2) for k in range(9)}

    @pytest.mark.parametrize("host_between", [False, True])
    @pytest.mark.parametrize("given_state", [False, True])
    def test_decoding_is_causal_and_complete(self, host_between, given_state):
        log, cycles = oracle.accesses_decode(
            STACK, 3, EPUR, Accelerator.load("epur"), host_between, given_state
        )
        assert_reads_follow_writes(log)
        assert log == sorted(log)
        assert log[-1][0] < cycles
        dram = Counter((op, a) for _, c, op, a, _ in log if c == "dram")
        assert {a for _, a in dram} == set(range(0, max(a for _, a in dram) + 64, 64))
        assert set(dram.values()) == {1}  # all resident: each burst moves once
        writes = sum(op == "write" for op, _ in dram)
        assert writes == 3 * ((1 + 1 + 2) if host_between else 2)

    def test_layers_that_do_not_fit_are_loaded_at_every_step(self):
        needs = [17 * 4 * 32, 9 * 3 * 32, 33 * 4 * 32]  # 2176, 864, 4224
        small = replace(Accelerator.load("epur"), weight_buffer_bytes=sum(needs) - 1)
        log, _ = oracle.accesses_decode(STACK, 3, EPUR, small)
        base = {0: 0, 1: 4 * 17 * 128, 2: 4 * 17 * 128 + 7 * 64 + 4 * 9 * 128}
        base[1] += 7 * 64
        base[2] += 4 * 64
        reads = Counter(a for _, c, op, a, _ in log if (c, op) == ("dram", "read"))
        # The first stays: 2176 + 4224 fit, with 864 more they do not.
        assert [reads[base[n]] for n in range(3)] == [1, 3, 3]
        to = {a for _, c, op, a, s in log if (c, op, s) == ("cu.i.weights", "write", 32)}
        bank = small.weight_buffer_bytes
        assert max(a for a in to if a < bank) == 2176 + 4224 - 32
        assert max(to) == bank + 128 + 96 - 32  # bias and peepholes of the first, bias of the third

    def test_parameter_bank_bounds_residency_too(self):
        small = replace(Accelerator.load("epur"), parameter_bank_bytes=128 + 32 + 96 - 1)
        log, _ = oracle.accesses_decode(STACK, 2, EPUR, small)
        reads = Counter(a for _, c, op, a, _ in log if (c, op) == ("dram", "read"))
        assert reads[0] == 1
        assert reads[4 * 17 * 128 + 7 * 64] == 2

    def test_no_steps(self):
        accelerator = Accelerator.load("epur")
        for dataflow in oracle.ORDERS:
            assert oracle.accesses_sequence(TWO_LAYERS, 0, EPUR, accelerator, dataflow) == ([], 0)
        assert oracle.accesses_decode(STACK, 0, EPUR, accelerator) == ([], 0)

    @pytest.mark.parametrize(
        "field",
        ["weight_buffer", "parameter_bank", "input_buffer", "row_buffer", "intermediate"],
    )
    @pytest.mark.parametrize("dataflow", oracle.ORDERS)
    def test_what_does_not_fit_is_refused(self, machine, dataflow, field):
        shape = ((LayerShape("a", 3, 5, True),),)
        roomy = {
            "weight_buffer": 100 if dataflow == "epur" else 60, "parameter_bank": 24,
            "input_buffer": 44 if dataflow == "epur" else 24, "row_buffer": 16,
            "intermediate": 48 if dataflow == "epur" else 128,
        }  # fmt: skip
        exact = replace(machine, **{f"{name}_bytes": size for name, size in roomy.items()})
        oracle.accesses_sequence(shape, 2, EPUR, exact, dataflow)
        if (dataflow, field) == ("epur", "row_buffer"):
            return
        less = 16 if field == "intermediate" else 1
        small = replace(exact, **{f"{field}_bytes": roomy[field] - less})
        with pytest.raises(AcceleratorError, match=f"{field}_bytes"):
            oracle.accesses_sequence(shape, 2, EPUR, small, dataflow)

    def test_bad_input_is_refused(self, machine):
        accelerator = Accelerator.load("epur")
        apart = ((LayerShape("a", 1, 2),), (LayerShape("b", 3, 1),))
        with pytest.raises(NetworkError, match="b: inputs"):
            oracle.accesses_sequence(apart, 1, EPUR, accelerator, "epur")
        with pytest.raises(NetworkError, match="b: inputs"):
            oracle.accesses_decode(apart, 1, EPUR, accelerator)
        with pytest.raises(NetworkError, match="direction"):
            oracle.accesses_decode(TWO_LAYERS, 1, EPUR, accelerator)
        with pytest.raises(AcceleratorError, match="steps"):
            oracle.accesses_sequence(apart, -1, EPUR, accelerator, "epur")
        backward = ((LayerShape("a", 1, 2, reverse=True),),)
        with pytest.raises(NetworkError, match="direction"):
            oracle.accesses_decode(backward, 1, EPUR, accelerator)
        # Two input rows of 22 elements take 88 bytes.
        wide = ((LayerShape("a", 21, 1),),)
        other = replace(machine, input_buffer_bytes=44, row_buffer_bytes=88)
        oracle.accesses_sequence(wide, 2, EPUR, replace(other, intermediate_bytes=176), "epur-mwl")
        with pytest.raises(AcceleratorError, match="the input of a"):
            oracle.accesses_sequence(
                wide, 2, EPUR, replace(other, intermediate_bytes=160), "epur-mwl"
            )
        states = replace(accelerator, intermediate_bytes=128)
        with pytest.raises(AcceleratorError, match="intermediate_bytes"):
            oracle.accesses_decode(STACK, 1, EPUR, states)


class TestOperationCounts:
    @pytest.mark.parametrize("peepholes", [False, True])
    @pytest.mark.parametrize("dataflow", oracle.ORDERS)
    def test_are_those_performed(self, monkeypatch, dataflow, peepholes):
        """The evaluation's own calls, counted, beside the totals stated; links do no arithmetic."""
        performed = Counter()
        names = {"add": "add", "multiply": "multiply", "divide": "divide", "exp": "exp"}
        for function, name in {**names, "clamp": "compare", "_stored": "quantise"}.items():
            original = getattr(oracle, function)

            def counted(*args, name=name, original=original):
                performed[name] += 1
                return original(*args)

            monkeypatch.setattr(oracle, function, counted)
        layer = layer_of(18, 3, 4, peepholes)
        oracle.evaluate_pass(layer, np.ones((2, 18)), EPUR, dataflow, alpha=10.0)
        performed["lookup"] = performed["quantise"]
        totals = oracle.operations_sequence(
            ((layer.shape,),), 2, EPUR, Accelerator.load("epur"), dataflow
        )
        assert totals.pop("link") == 2 * 3 * (7 if peepholes else 5)
        assert totals == {name: performed[name] for name in totals}

    def test_unquantised_partials_and_decoding(self):
        accelerator = Accelerator.load("epur")
        kept = oracle.operations_sequence(STACK, 2, KEPT, accelerator, "epur-mwl")
        assert kept["quantise"] == kept["lookup"] == 0
        plain = oracle.operations_sequence(STACK, 2, EPUR, accelerator, "epur")
        assert kept["add"] == plain["add"] + 2 * 4 * (17 + 9 + 33)
        assert oracle.operations_decode(STACK, 2, EPUR, accelerator) == plain
        assert set(plain) == set(oracle.OPERATIONS)
