"""The oracle's accesses against cases worked out by hand, and its operations against its own."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from epur_emu import oracle
from epur_emu import oracle_accesses as model
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import Override, arithmetic
from epur_emu.errors import AcceleratorError, NetworkError
from epur_emu.formats import FP16, parse
from epur_emu.network import LayerShape, LstmLayer

EPUR = arithmetic("epur-fp16")
KEPT = EPUR.with_partial(FP16)


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

        got, cycles = model.accesses_sequence(((LayerShape("a", 3, 1),),), 2, EPUR, machine, "epur")
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

        got, cycles = model.accesses_sequence(
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

        got, cycles = model.accesses_decode(((LayerShape("a", 1, 1),),), 2, EPUR, machine)
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
        log, cycles = model.accesses_decode(shape, 2, EPUR, roomy)
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

        log, _ = model.accesses_decode(shape, 2, EPUR, roomy, host_between=True)
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
        log, cycles = model.accesses_sequence(
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
        log, _ = model.accesses_sequence(
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

    def test_gates_with_weights_of_their_own(self, machine):
        """`test_epur` with one byte for each weight of gate o: its row is one burst, R = 14, S(0) = 22.

        DRAM: rows of 2, 2, 2 and 1 bursts, biases at 56, input at 88.
        """
        narrow = replace(EPUR, overrides=(Override("a", "o", (("weight", parse("e4m3")),)),))
        shape = ((LayerShape("a", 3, 1),),)
        log, _ = model.accesses_sequence(shape, 2, narrow, machine, "epur")

        def of(component, op, before):
            return [(t, a, n) for t, c, o, a, n in log if (c, o) == (component, op) and t < before]

        assert of("dram", "read", 23) == [
            *[(n, 56 + 8 * n, 8) for n in range(4)], *[(8 + n, 8 * n, 8) for n in range(7)],
            (22, 88, 8),
        ]  # fmt: skip
        assert of("cu.o.weights", "write", 99) == [(3, 16, 2), (14, 0, 2), (14, 2, 2), (14, 4, 2)]
        assert of("cu.o.weights", "read", 30) == [(22, 0, 2), (23, 2, 2), (24, 4, 2), (28, 16, 1)]
        assert of("cu.i.weights", "read", 30) == [(22, 0, 4), (23, 4, 4), (24, 8, 4), (28, 16, 2)]
        assert of("cu.o.inputs", "read", 25) == of("cu.i.inputs", "read", 25)
        other = replace(narrow, overrides=(replace(narrow.overrides[0], layers="b"),))
        assert model.accesses_sequence(shape, 2, other, machine, "epur") == (
            model.accesses_sequence(shape, 2, EPUR, machine, "epur")
        )

    def test_sizes_of_biases_and_outputs(self, machine):
        """`test_epur` in 8-bit integers and float32 outputs: biases take the MU's two bytes."""
        mixed = replace(arithmetic("epur-int8"), output=parse("fp32"))
        log, _ = model.accesses_sequence(((LayerShape("a", 3, 1),),), 2, mixed, machine, "epur")

        def of(component, op):
            return {(a, n) for _, c, o, a, n in log if (c, o) == (component, op)}

        # A row of three sub-vectors of two bytes, behind it the bank: one sub-vector of four.
        assert of("cu.f.weights", "write") == {(0, 2), (2, 2), (4, 2), (16, 4)}
        assert of("cu.f.weights", "read") == {(0, 2), (2, 2), (4, 2), (16, 2)}
        # x at 0, two slots of h at 4 and 6, c in fp16 at 8; only g keeps c.
        assert of("cu.o.inputs", "read") == {(0, 2), (2, 2), (4, 2), (6, 2)}
        assert of("cu.o.inputs", "write") == {(0, 2), (2, 2), (4, 2), (4, 1), (6, 1)}
        # Output rows of one sub-vector of eight bytes.
        assert of("intermediate", "write") == {(32, 4), (40, 4)}
        assert of("intermediate", "read") == {(32, 8), (40, 8)}

    def test_gates_with_partial_sums_of_their_own(self, machine):
        """`test_mwl` with two bytes for each partial sum of gate f: five for a neuron."""
        mixed = replace(EPUR, overrides=(Override("*", "f", (("partial", FP16),)),))
        shape = ((LayerShape("a", 1, 2, True, True),),)
        log, _ = model.accesses_sequence(shape, 2, mixed, machine, "epur-mwl")
        for op in ("read", "write"):
            found = {(a, n) for _, c, o, a, n in log if (c, o) == ("intermediate", op) and a >= 40}
            assert found == {
                (40 + 5 * m + a, n) for m in range(4) for a, n in ((0, 1), (1, 2), (3, 1), (4, 1))
            }
        counted = model.operations_sequence(shape, 2, mixed, machine, "epur-mwl")
        assert counted["quantise"] == counted["lookup"] == 2 * 2 * 3

    def test_layers_in_decoding_with_weights_of_their_own(self, machine):
        """Gate o of layer a takes 40 bytes where the others take 80; there b's rows begin."""
        narrow = replace(EPUR, overrides=(Override("a", "o", (("weight", parse("e4m3")),)),))
        roomy = replace(
            machine, weight_buffer_bytes=152, parameter_bank_bytes=16, input_buffer_bytes=48
        )
        shape = ((LayerShape("a", 5, 4),), (LayerShape("b", 4, 2),))
        log, _ = model.accesses_decode(shape, 1, narrow, roomy)
        # nx + nh = 5 and then 3 sub-vectors, of 4 bytes, or of 2.
        first = {q: 4 * 5 * size for q, size in (("i", 4), ("o", 2))}
        for q, size in (("i", 4), ("o", 2)):
            written = {a for _, c, o, a, _ in log if (c, o) == (f"cu.{q}.weights", "write")}
            of_a, bank = set(range(0, first[q], size)), 152 + 2 * size
            of_b = set(range(first[q], first[q] + 2 * 3 * 4, 4))
            assert written == of_a | of_b | set(range(152, bank, size)) | {bank}
        with pytest.raises(AcceleratorError, match="the matrix of a needs 80"):
            model.accesses_decode(shape, 1, narrow, replace(roomy, weight_buffer_bytes=79))

    def test_tiles(self, machine):
        """I = 5, H = 3, T = 3: nx = 3, nh = 2. A weight buffer of 16 bytes holds one row of W_x, so K = 1,
        and two rows of W_h, of which none stays. Ld = 4, z = 33, tail = 37.

        DRAM: rows of W_x at 0, two bursts a gate, of W_h at 192, biases at 288. Halves of 88 bytes: output
        rows take 24, accumulators 24 a step, so stretches have two steps.
        """
        small = replace(
            machine, weight_buffer_bytes=16, parameter_bank_bytes=8, intermediate_bytes=2 * 88
        )
        shape = ((LayerShape("a", 5, 3),),)
        log, cycles = model.accesses_sequence(shape, 3, EPUR, small, "epur-tiled")

        def pick(component, op, size=None):
            return [
                (t, a) for t, c, o, a, s in log
                if (c, o) == (component, op) and size in (None, s)
            ]  # fmt: skip

        # Biases until 8, input staged until 8 + 3 * 4 = 20. R = channel(8) = 16 for W_x: a tile takes
        # 16 + 3 + 3 = 22, and the last ends at 86.
        x = [
            (begin + 16 + 3 * t + s, 12 * t + 4 * s)
            for begin in (20, 42, 64) for t in range(2) for s in range(3)
        ]  # fmt: skip
        accumulators = 88 + 24
        read = pick("intermediate", "read", 4)
        assert read[:18] == x
        stored = pick("intermediate", "write", 2)
        assert stored[:4] == [(42, accumulators + 2 * q) for q in range(4)]
        assert stored[4:8] == [(45, accumulators + 24 + 2 * q) for q in range(4)]
        assert stored[8:12] == [(64, accumulators + 8 + 2 * q) for q in range(4)]
        # State from 86 + 4 on, two cycles: R0 = 92. R = channel(4) = 8: neurons at 100, 108, 116.
        put_back = [(t, a) for t, a in pick("intermediate", "read", 2)]
        assert put_back[:12] == [
            (100 + 8 * k, accumulators + 8 * k + 2 * q) for k in range(3) for q in range(4)
        ]
        assert [t for t, a in pick("cu.i.weights", "write") if 92 <= t < 116 and a < 16] == [
            t for t in (92, 100, 108) for _ in range(2)
        ]
        assert [a for t, a in pick("cu.i.weights", "write") if 92 <= t < 116 and a < 16] == [
            0, 4, 8, 12, 0, 4,
        ]  # fmt: skip
        # The step ends at 116 + 2 + 37 = 155: h of step 0 read back, and its last element written before.
        assert (155, 88) in read
        assert (
            max(t for t, a in pick("intermediate", "write") if a < accumulators and t < 155) == 154
        )
        # Step 1 takes 8 * 3 + 2 + 37 = 63; the second stretch, of one step, begins at 218.
        assert (218 + 16, 24) in read
        assert min(t for t, a in pick("dram", "read") if a < 192 and t >= 218) == 218
        # Three tiles of 16 + 3, sums until 279; h of step 1 is read back; 63 for the step; a store of 3 bursts.
        assert (279, 96) in read
        assert cycles == 279 + 63 + 6

    def test_a_batch(self, machine):
        """I = H = 1, T = 1 and 2, one accumulator: nx = nh = 1, n = 2, sequence 1 is the longer.

        Ld = 4, z = 33. Input buffers of 16 bytes a sequence. DRAM: rows at 0, biases at 32, inputs at 64
        (8 bytes) and 72 (16), outputs at 88 (8) and 96 (8). R = channel(4) = 8, S(0) = 16.
        """
        roomy = replace(machine, input_buffer_bytes=32)
        shape = ((LayerShape("a", 1, 1),),)
        log, cycles = model.accesses_batch(shape, [1, 2], EPUR, roomy)

        def pick(component, op, size=None):
            return [
                (t, a) for t, c, o, a, s in log
                if (c, o) == (component, op) and size in (None, s)
            ]  # fmt: skip

        # Both states, one behind the other: 2 cycles, less than the 8 of the biases.
        assert pick("cu.g.inputs", "write", 4)[:4] == [(0, 4), (0, 12), (1, 20), (1, 28)]
        assert [(t, a) for t, a in pick("dram", "read") if a >= 64] == [
            (16, 72),
            (18, 64),
            (54, 80),
        ]
        # Each weight is read for each sequence; the tail is 1 + 4 + 33 + 1 - 1 - 4 = 34 behind 16 + 4.
        assert pick("cu.i.weights", "read", 4) == [
            (16, 0), (17, 4), (18, 0), (19, 4), (54, 0), (55, 4),
        ]  # fmt: skip
        assert pick("cu.i.inputs", "read", 4) == [
            (16, 0), (17, 4), (18, 16), (19, 20), (54, 0), (55, 8),
        ]  # fmt: skip
        assert [t for t, _ in pick("intermediate", "write", 2)] == [54, 56, 92]
        assert cycles == 93 + 2 + 2

        # Two accumulators: one read of a weight for both, the sequences a cycle apart.
        log, cycles = model.accesses_batch(shape, [1, 2], EPUR, replace(roomy, accumulators=2))
        assert pick("cu.i.weights", "read", 4) == [(16, 0), (18, 4), (55, 0), (56, 4)]
        assert pick("cu.i.inputs", "read", 4) == [
            (16, 0), (17, 16), (18, 4), (19, 20), (55, 0), (56, 8),
        ]  # fmt: skip

    def test_what_is_spilled(self, machine):
        """I = 1, H = 3, then H = 1, T = 3: three rows of 8 bytes do not fit in a half of 16.

        nx = 1, nh = 2, Ld = 4, z = 33, tail = 36. DRAM: rows at 0 (four gates of two bursts), biases at
        192; b's rows from 224, biases at 288; input at 320; outputs of a at 344, of b at 368.
        """
        roomy = replace(
            machine, weight_buffer_bytes=100, input_buffer_bytes=48, intermediate_bytes=32
        )
        shape = ((LayerShape("a", 1, 3),), (LayerShape("b", 3, 1, reverse=True),))
        log, cycles = model.accesses_sequence(shape, 3, EPUR, roomy, "epur")
        # R = channel(8) = 16, S(0) = 24; the last neuron of step 0 begins at 56: h at 56 + 2 + 4 + 33.
        first = 96
        period = 3 * 3 + 36
        stored = [(t, a) for t, c, op, a, _ in log if (c, op) == ("dram", "write")]
        assert stored[:3] == [(first + n * period, 344 + 8 * n) for n in range(3)]
        read = [(t, a) for t, c, op, a, _ in log if (c, op) == ("intermediate", "read")]
        assert read[:6] == [
            (first + n * period, 16 + 8 * (n % 2) + 4 * s) for n in range(3) for s in range(2)
        ]
        # b begins at 96 + 90 + 2 = 188; its first step, the last in time, at 188 + 8 + 16.
        back = [(t, a) for t, c, op, a, _ in log if (c, op) == ("dram", "read") and a >= 344]
        assert back[0] == (212, 360)
        assert [a for _, a in back] == [360, 352, 344]
        assert [a for _, a in stored[3:]] == [384, 376, 368]
        assert cycles == stored[-1][0] + 2

    def test_double_buffering(self, machine):
        """I = H = 1 twice, T = 1: both layers' 8 bytes of weights fit in 16, and both biases in 8.

        a: biases until 8, its row until 16, S(0) = 16; ends at 16 + 2 + 4 + 33 = 55. b meanwhile: biases from
        16, its row from 24, to the buffer's end; it begins at 55 and does not wait.
        """
        shape = ((LayerShape("a", 1, 1),), (LayerShape("b", 1, 1),))
        plain, slow = model.accesses_sequence(shape, 1, EPUR, machine, "epur")
        double = replace(machine, double_buffering=True)
        log, fast = model.accesses_sequence(shape, 1, EPUR, double, "epur")
        # What remains of b's load is its initial state, one cycle.
        assert slow == 55 + 16 + 39 + 2
        assert fast == 55 + 1 + 39 + 2
        written = [(t, a) for t, c, op, a, _ in log if (c, op) == ("cu.i.weights", "write")]
        assert written == [(0, 16), (8, 0), (8, 4), (16, 20), (24, 8), (24, 12)]
        assert len(log) == len(plain)
        small = replace(double, weight_buffer_bytes=15)
        assert model.accesses_sequence(shape, 1, EPUR, small, "epur")[1] == slow

    def test_halves_alternate(self, machine):
        """Layers of 5, 2 and 1 cells: pitches 12, 4 and 4; the halves begin at 0 and 32."""
        roomy = replace(
            machine, weight_buffer_bytes=100, parameter_bank_bytes=12, input_buffer_bytes=44
        )
        shape = ((LayerShape("a", 3, 5),), (LayerShape("b", 5, 2),), (LayerShape("c", 2, 1),))
        log, _ = model.accesses_sequence(shape, 2, EPUR, roomy, "epur")
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
    @pytest.mark.parametrize("dataflow", model.DATAFLOWS)
    def test_sequence_is_causal_and_complete(self, dataflow, given_state):
        accelerator = Accelerator.load(dataflow)
        log, cycles = model.accesses_sequence(
            TWO_LAYERS, 3, EPUR, accelerator, dataflow, given_state
        )
        assert_reads_follow_writes(log)
        assert log == sorted(log)
        assert log[0][0] == 0
        assert log[-1][0] < cycles
        count = Counter((component, op, size) for _, component, op, _, size in log)
        forward = 3 * (17 * 2 + 18 * 2 + 9 * 3)  # T H nx of the three passes
        recurrent = 3 * (17 * 2 + 18 * 2 + 9 * 1)
        sums = 0
        if dataflow == "epur-mwl":
            assert count["cu.o.weights", "read", 32] == recurrent
            assert count["cu.o.row", "read", 32] == forward
            assert count["intermediate", "write", 1] == 3 * 4 * (17 + 18 + 9)
        else:
            assert count["cu.o.weights", "read", 32] == forward + recurrent
            sums = 4 if dataflow == "epur-tiled" else 0
        assert count["cu.o.inputs", "read", 32] == forward + recurrent
        assert count["intermediate", "write", 2] == 3 * (17 + 18 + 9) * (1 + sums)
        assert count["dram", "write", 64] == 2  # three rows of 32 bytes
        dram = [address for _, component, op, address, _ in log if component == "dram"]
        # Every burst of weights, input and state is read, every one of the output written.
        assert set(dram) == set(range(0, max(dram) + 64, 64))

    def test_bidirectional_outputs_lie_side_by_side(self):
        log, _ = model.accesses_sequence(TWO_LAYERS, 2, EPUR, Accelerator.load("epur"), "epur")
        half = 6_291_456 // 2
        wrote = {a for _, c, op, a, _ in log if (c, op) == ("intermediate", "write")}
        first = {half + 96 * t + 2 * k for t in range(2) for k in range(35)}
        assert wrote == first | {32 * t + 2 * k for t in range(2) for k in range(9)}

    @pytest.mark.parametrize("host_between", [False, True])
    @pytest.mark.parametrize("given_state", [False, True])
    def test_decoding_is_causal_and_complete(self, host_between, given_state):
        log, cycles = model.accesses_decode(
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
        log, _ = model.accesses_decode(STACK, 3, EPUR, small)
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
        log, _ = model.accesses_decode(STACK, 2, EPUR, small)
        reads = Counter(a for _, c, op, a, _ in log if (c, op) == ("dram", "read"))
        assert reads[0] == 1
        assert reads[4 * 17 * 128 + 7 * 64] == 2

    def test_no_steps(self):
        accelerator = Accelerator.load("epur")
        for dataflow in model.DATAFLOWS:
            assert model.accesses_sequence(TWO_LAYERS, 0, EPUR, accelerator, dataflow) == ([], 0)
        assert model.accesses_decode(STACK, 0, EPUR, accelerator) == ([], 0)

    @pytest.mark.parametrize(
        ("dataflow", "roomy"),
        [
            ("epur", {"parameter_bank": 24, "intermediate": 48}),
            (
                "epur-mwl",
                {"weight_buffer": 24, "parameter_bank": 24, "input_buffer": 24, "row_buffer": 16,
                 "intermediate": 96},
            ),
            (
                "epur-batch",
                {"weight_buffer": 100, "parameter_bank": 24, "input_buffer": 44, "intermediate": 48},
            ),
            (
                "epur-tiled",
                {"weight_buffer": 24, "parameter_bank": 24, "input_buffer": 24, "intermediate": 128},
            ),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused(self, machine, dataflow, roomy):
        """I = 3, H = 5, T = 2: at these sizes all runs, a little below nothing does."""
        shape = ((LayerShape("a", 3, 5, True),),)
        enough = {"weight_buffer": 100, "input_buffer": 44, "row_buffer": 16} | roomy
        exact = replace(machine, **{f"{name}_bytes": size for name, size in enough.items()})
        model.accesses_sequence(shape, 2, EPUR, exact, dataflow)
        for field, size in roomy.items():
            less = 16 if field == "intermediate" else 1
            small = replace(exact, **{f"{field}_bytes": size - less})
            with pytest.raises(AcceleratorError, match=f"{field}_bytes"):
                model.accesses_sequence(shape, 2, EPUR, small, dataflow)

    def test_bad_input_is_refused(self, machine):
        accelerator = Accelerator.load("epur")
        apart = ((LayerShape("a", 1, 2),), (LayerShape("b", 3, 1),))
        with pytest.raises(NetworkError, match="b: inputs"):
            model.accesses_sequence(apart, 1, EPUR, accelerator, "epur")
        with pytest.raises(NetworkError, match="b: inputs"):
            model.accesses_decode(apart, 1, EPUR, accelerator)
        with pytest.raises(NetworkError, match="direction"):
            model.accesses_decode(TWO_LAYERS, 1, EPUR, accelerator)
        with pytest.raises(AcceleratorError, match="steps"):
            model.accesses_sequence(apart, -1, EPUR, accelerator, "epur")
        backward = ((LayerShape("a", 1, 2, reverse=True),),)
        with pytest.raises(NetworkError, match="direction"):
            model.accesses_decode(backward, 1, EPUR, accelerator)
        # Two input rows of 22 elements take 88 bytes.
        wide = ((LayerShape("a", 21, 1),),)
        other = replace(machine, input_buffer_bytes=44, row_buffer_bytes=88)
        model.accesses_sequence(wide, 2, EPUR, replace(other, intermediate_bytes=176), "epur-mwl")
        with pytest.raises(AcceleratorError, match="the input of a"):
            model.accesses_sequence(
                wide, 2, EPUR, replace(other, intermediate_bytes=160), "epur-mwl"
            )
        states = replace(accelerator, intermediate_bytes=128)
        with pytest.raises(AcceleratorError, match="intermediate_bytes"):
            model.accesses_decode(STACK, 1, EPUR, states)


class TestOperationCounts:
    @pytest.mark.parametrize("peepholes", [False, True])
    @pytest.mark.parametrize("dataflow", model.DATAFLOWS)
    def test_are_those_performed(self, monkeypatch, dataflow, peepholes):
        """The evaluation's own calls, counted, beside the totals stated; links do no arithmetic."""
        performed = Counter()

        def watch(owner, function, name):
            original = getattr(owner, function)

            def counted(*args):
                performed[name] += 1
                return original(*args)

            monkeypatch.setattr(owner, function, counted)

        for name in ("add", "multiply", "divide"):
            watch(oracle, name, name)
        watch(oracle._Unit, "function", "exp")
        watch(oracle, "clamp", "compare")
        watch(oracle._Unit, "stored", "quantise")
        rng = np.random.default_rng(4)
        peep = rng.normal(size=(3, 3)).astype(np.float32) if peepholes else None
        arrays = [rng.normal(size=s).astype(np.float32) for s in ((4, 3, 18), (4, 3, 3), (4, 3))]
        layer = LstmLayer("layer", *arrays, peep)
        oracle.evaluate_pass(layer, np.ones((2, 18)), EPUR, dataflow, alpha=10.0)
        performed["lookup"] = performed["quantise"]
        totals = model.operations_sequence(
            ((layer.shape,),), 2, EPUR, Accelerator.load("epur"), dataflow
        )
        assert totals.pop("link") == 2 * 3 * (7 if peepholes else 5)
        assert totals == {name: performed[name] for name in totals}

    def test_unquantised_partials_and_decoding(self):
        accelerator = Accelerator.load("epur")
        kept = model.operations_sequence(STACK, 2, KEPT, accelerator, "epur-mwl")
        assert kept["quantise"] == kept["lookup"] == 0
        plain = model.operations_sequence(STACK, 2, EPUR, accelerator, "epur")
        assert kept["add"] == plain["add"] + 2 * 4 * (17 + 9 + 33)
        assert model.operations_decode(STACK, 2, EPUR, accelerator) == plain
        assert set(plain) == set(model.OPERATIONS)
