"""Bit-exact LSTM in several number formats beside frameworks' in float32 and int8: one thread each, batch 1.

pip install 'epur_emu[bench]'
python benchmarks/arithmetic.py [--json] [--cpfloat FOLDER]     (CPFloat's source tree, compiled with gcc)

Same layer, same input, same run: all sides are called in turn. Further rows have the fp16 LSTM with every
operation rounded by numpy float16, and its sums by CPFloat; other formats and modes stand beside fp16.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness

harness.one_thread()

import numpy as np  # noqa: E402  (after the number of threads is set)
import numpy.typing as npt  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from cpfloat import CPFloat, laid  # noqa: E402
from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402

from epur_emu import Engine, LstmLayer, Network  # noqa: E402
from epur_emu.arithmetic import Arithmetic, arithmetic  # noqa: E402
from epur_emu.formats import FP32, MODES, FloatFormat, parse  # noqa: E402

F32 = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]

#: Places of the datapath.
PLACES = ("weight", "input", "product", "tree", "accumulator", "mu", "cell", "output")

STEPS = {320: 300, 1024: 100, 2048: 100}
FORMATS = ("fp16", "bf16", "e4m3fn-sat", "int8")

#: Changes of fp16; most of them take the general path, q7.16 and stochastic q5.12 float64 lanes.
OTHERS: dict[str, dict[str, Any]] = {
    "q5.12": dict.fromkeys(PLACES, parse("q5.12")),
    "products in fp32": {"product": FP32},
    "sums in fp32": dict.fromkeys(("tree", "accumulator"), FP32),
    "e4m3 operands": dict.fromkeys(("weight", "input"), parse("e4m3")),
    "DPU in fp32": dict.fromkeys(("product", "tree", "accumulator"), FP32),
    "DPU in e6m14": dict.fromkeys(("product", "tree", "accumulator"), parse("e6m14")),
    **{mode: {"rounding": mode} for mode in MODES[1:]},
    "without subnormals": dict.fromkeys(PLACES, parse("fp16-nosub")),
    "without subnormals, zero": dict.fromkeys(PLACES, parse("fp16-nosub")) | {"rounding": "zero"},
    "e4m3, stochastic": dict.fromkeys(PLACES, parse("e4m3")) | {"rounding": "stochastic"},
    "q7.16": dict.fromkeys(PLACES, parse("q7.16")),
    "q5.12, stochastic": dict.fromkeys(PLACES, parse("q5.12")) | {"rounding": "stochastic"},
    "MU in fp32": dict.fromkeys(("mu", "cell"), FP32),
}

#: Farthest that an output in a format may lie from float32's: a wrong answer is not worth timing.
FAR = {"fp16": 0.02, "bf16": 0.1, "e4m3fn-sat": 1.0, "int8": 0.05}

#: Cells and time steps of the LSTM in numpy float16.
SLOW = (320, 20)


def layer(cells: int) -> tuple[torch.nn.LSTM, LstmLayer]:
    """The same random layer for both, weights exact in fp16."""
    torch.manual_seed(cells)
    module = torch.nn.LSTM(cells, cells)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.half().float())
        module.bias_hh_l0.zero_()
    arrays = {name: weight.detach().numpy() for name, weight in module.named_parameters()}
    ours = LstmLayer(
        f"{cells} cells",
        arrays["weight_ih_l0"].reshape(4, cells, -1),
        arrays["weight_hh_l0"].reshape(4, cells, -1),
        arrays["bias_ih_l0"].reshape(4, cells),
    )
    return module, ours


def onnx_sessions(
    ours: LstmLayer, folder: Path
) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    """ONNX Runtime's LSTM in float32, and with weights and inputs quantised to int8."""
    order = [0, 3, 1, 2]  # its gates are i, o, f, g
    cells = ours.cells
    bias = np.concatenate([ours.bias[order].reshape(1, -1), np.zeros((1, 4 * cells))], 1)
    weights = {
        "w": ours.w_x[order].reshape(1, 4 * cells, -1),
        "r": ours.w_h[order].reshape(1, 4 * cells, -1),
        "b": bias,
    }
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=cells)],
        "lstm",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 1, ours.inputs])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 1, 1, cells])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, folder / "float.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # it advises steps that change nothing here
    # Its AVX2 products of bytes saturate unless weights keep to 7 bits.
    quantize_dynamic(
        folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, reduce_range=True
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    float32, int8 = (
        onnxruntime.InferenceSession(
            folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for name in ("float", "int8")
    )
    return float32, int8


def peers(
    module: torch.nn.LSTM, ours: LstmLayer, x: F32, folder: Path
) -> dict[str, Callable[[], F32]]:
    """Functions that give all time steps' outputs, by the peer's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a future move of this function
        # It replaces what lies in a module, not the module itself.
        (quantised,) = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(module), {torch.nn.LSTM}, torch.qint8
        )
    batch = torch.from_numpy(x)[:, None]

    def by_torch(model: torch.nn.Module) -> F32:
        with torch.inference_mode():
            out: F32 = model(batch)[0][:, 0].numpy()
        return out

    def by_onnx(session: onnxruntime.InferenceSession) -> F32:
        out: F32 = session.run(None, {"x": x[:, None]})[0][:, 0, 0]
        return out

    float32, int8 = onnx_sessions(ours, folder)
    return {
        "PyTorch float32": partial(by_torch, module),
        "PyTorch dynamic int8": partial(by_torch, quantised),
        "ONNX Runtime float32": partial(by_onnx, float32),
        "ONNX Runtime dynamic int8": partial(by_onnx, int8),
    }


def engine_of(network: Network, a: Arithmetic, threads: int = 1, count: bool = False) -> Engine:
    """An engine for inputs of at most 1, by default without counting underflows, as `epur evaluate` has it."""
    alpha = {f"{p.name}.input": 1.0 for p in network.passes}
    return Engine(network, a, alpha=alpha, count=count, threads=threads)


def of_size(cells: int, steps: int, formats: list[str], rounds: int) -> list[dict[str, Any]]:
    """Each format beside each peer, in billions of multiply-accumulates a second."""
    module, ours = layer(cells)
    x = np.random.default_rng(cells).uniform(-1, 1, (steps, cells)).astype(np.float16)
    network = Network("benchmark", ((ours,),))
    engines = {f: engine_of(network, arithmetic(f"epur-{f}")) for f in formats}
    sides: dict[str, Callable[[], object]] = {
        f: partial(engine.sequence, x) for f, engine in engines.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs = peers(module, ours, x.astype(np.float32), Path(folder))
        wanted = theirs["PyTorch float32"]()
        for name, peer in theirs.items():
            close(name, cells, peer(), wanted, 0.05)
        for f, engine in engines.items():
            close(f, cells, engine.sequence(x)[0], wanted, FAR[f])
        seconds = harness.in_turn({**sides, **theirs}, rounds)
    work = steps * 8 * cells**2 / 1e9
    return [
        harness.row(
            f"{f}, {cells} cells, {steps} steps", work / seconds[f], work / seconds[name], name, "GMAC/s"
        )
        for f in formats
        for name in theirs
    ]  # fmt: skip


def close(name: str, cells: int, found: F32, wanted: F32, far: float) -> None:
    """End the benchmark where an output is wrong."""
    distance = float(np.abs(found - wanted).max())
    if not distance <= far:
        sys.exit(f"{name}, {cells} cells: {distance} off float32")


def in_numpy(ours: LstmLayer, x: Half, clamp: float) -> Half:
    """E-PUR's LSTM with numpy float16, operation by operation, all rows side by side."""
    cells = ours.cells
    w_x, w_h = (w.astype(np.float16).reshape(4 * cells, -1, 16) for w in (ours.w_x, ours.w_h))
    bias = ours.bias.astype(np.float16)
    limit, one = np.float16(clamp), np.float16(1)
    h, c, out = np.zeros(cells, np.float16), np.zeros(cells, np.float16), []

    def exp(v: Half) -> Half:
        return np.exp(v.astype(np.float64)).astype(np.float16)

    def sigmoid(r: Half) -> Half:
        return one / (exp(-r.clip(-limit, limit)) + one)

    def tanh(r: Half) -> Half:
        r = r.clip(-limit, limit)
        a, q = exp(r), exp(-r)
        return (a - q) / (a + q)

    for inputs in x:
        acc = np.zeros(4 * cells, np.float16)
        for w, vector in ((w_x, inputs), (w_h, h)):
            for s, part in enumerate(vector.reshape(-1, 16)):
                level = w[:, s] * part
                while level.shape[1] > 1:
                    level = level[:, ::2] + level[:, 1::2]
                acc = acc + level[:, 0]
        i, f, g, o = acc.reshape(4, cells) + bias
        c = tanh(g) * sigmoid(i) + sigmoid(f) * c
        h = sigmoid(o) * tanh(c)
        out.append(h)
    return np.array(out)


def beside_numpy(rounds: int) -> dict[str, Any]:
    """The fp16 LSTM beside numpy float16's."""
    cells, steps = SLOW
    _, ours = layer(cells)
    x = np.random.default_rng(0).uniform(-1, 1, (steps, cells)).astype(np.float16)
    fp16 = arithmetic("epur-fp16")
    engine = engine_of(Network("benchmark", ((ours,),)), fp16)
    theirs = partial(in_numpy, ours, x, fp16.clamp)
    if not np.array_equal(engine.sequence(x)[0], theirs()):
        sys.exit("numpy's float16 gives other bits")
    mine, peer = harness.paired(partial(engine.sequence, x), theirs, rounds)
    work = steps * 8 * cells**2 / 1e9
    return harness.row(
        f"fp16, {cells} cells, {steps} steps", work / mine, work / peer, "numpy float16", "GMAC/s"
    )


def beside_cpfloat(folder: Path, rounds: int) -> dict[str, Any]:
    """The fp16 LSTM beside its dot products, each operation rounded by CPFloat."""
    cells, steps = 320, 100
    _, ours = layer(cells)
    x = np.random.default_rng(0).uniform(-1, 1, (steps, cells)).astype(np.float16)
    fp16 = arithmetic("epur-fp16")
    engine = engine_of(Network("benchmark", ((ours,),)), fp16)
    h = engine.sequence(x)[0]
    w = np.concatenate((ours.w_x, ours.w_h), 2).astype(np.float16).reshape(4 * cells, -1)
    vectors = np.zeros((steps, 2 * cells), np.float32)
    vectors[:, :cells], vectors[1:, cells:] = x, h[:-1]
    theirs, matrix, room = CPFloat(folder), laid(w), np.empty(32 * len(w), np.float32)
    form = parse("fp16")
    assert isinstance(form, FloatFormat)
    acc = np.zeros(len(w), np.float16)
    parts = w.reshape(len(w), -1, 16).swapaxes(0, 1)
    for part, inputs in zip(parts, vectors[1].astype(np.float16).reshape(-1, 16), strict=True):
        level = part * inputs
        while level.shape[1] > 1:
            level = level[:, ::2] + level[:, 1::2]
        acc = acc + level[:, 0]
    if not np.array_equal(theirs.dots(form, matrix, vectors[1], room), acc.astype(np.float32)):
        sys.exit("CPFloat gives other bits than numpy's float16")

    def all_steps() -> None:
        for vector in vectors:
            theirs.dots(form, matrix, vector, room)

    mine, peer = harness.paired(partial(engine.sequence, x), all_steps, rounds)
    work = steps * 8 * cells**2 / 1e9
    return harness.row(
        f"fp16, {cells} cells, {steps} steps", work / mine, work / peer, "CPFloat, sums alone", "GMAC/s"
    )


def beside_fp16(cells: int, rounds: int) -> list[dict[str, Any]]:
    """Other formats and modes beside fp16, and fp16 with its underflows counted."""
    steps = {320: 100, 1024: 20}.get(cells, 10)
    _, ours = layer(cells)
    x = np.random.default_rng(0).uniform(-1, 1, (steps, cells)).astype(np.float16)
    network, fp16 = Network("benchmark", ((ours,),)), arithmetic("epur-fp16")
    engines = {
        name: engine_of(network, replace(fp16, **changes))
        for name, changes in {"fp16": {}, **OTHERS}.items()
    }
    engines["underflows counted"] = engine_of(network, fp16, count=True)
    sides: dict[str, Callable[[], object]] = {
        name: partial(engine.sequence, x) for name, engine in engines.items()
    }
    seconds = harness.in_turn(sides, rounds)
    work = steps * 8 * cells**2 / 1e9
    return [
        harness.row(
            f"{name}, {cells} cells, {steps} steps",
            work / seconds[name], work / seconds["fp16"], "fp16", "GMAC/s",
        )
        for name in engines
        if name != "fp16"
    ]  # fmt: skip


def two_threads(steps: int, count: int, rounds: int) -> dict[str, Any]:
    """Sequences in two threads beside the same in one."""
    cells = 320
    _, ours = layer(cells)
    network = Network("benchmark", ((ours,),))
    xs = np.random.default_rng(0).uniform(-1, 1, (count, steps, cells)).astype(np.float32)
    calls = [partial(engine_of(network, arithmetic("epur-fp16"), n).sequences, list(xs)) for n in (2, 1)]
    for a, b in zip(*(call() for call in calls), strict=True):
        if not np.array_equal(a[0], b[0]):
            sys.exit("two threads give other bits than one")
    both, alone = harness.paired(*calls, rounds)
    work = count * steps * 8 * cells**2 / 1e9
    return harness.row(
        f"fp16, {cells} cells, {count} x {steps} steps, two threads",
        work / both, work / alone, "one thread", "GMAC/s",
    )  # fmt: skip


def main() -> None:
    """Time all of them at each size, after a check of the answers."""
    assert __doc__
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="*", default=list(STEPS))
    parser.add_argument("--cpfloat", type=Path, help="CPFloat's source tree")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cells in args.cells:
        rows += of_size(cells, STEPS.get(cells, 100), args.formats, args.rounds)
    rows.append(beside_numpy(args.rounds))
    if args.cpfloat:
        rows.append(beside_cpfloat(args.cpfloat, args.rounds))
    for cells in args.cells:
        rows += beside_fp16(cells, args.rounds)
    rows += [two_threads(100, 64, args.rounds), two_threads(3000, 1, args.rounds)]
    harness.report(rows, harness.machine("torch", "onnxruntime", "numpy"), args.json)


if __name__ == "__main__":
    main()
