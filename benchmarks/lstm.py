"""Bit-exact fp16 LSTM beside PyTorch's float32 LSTM: one thread each, batch 1, same layer, same run.

pip install 'epur_emu[bench]'
python benchmarks/lstm.py [--json]
"""

from __future__ import annotations

import sys
from functools import partial

import harness

harness.one_thread()

import numpy as np  # noqa: E402  (after the number of threads is set)
import torch  # noqa: E402

from epur_emu import ARITHMETICS, Engine, LstmLayer, Network  # noqa: E402
from epur_emu.passes import levels  # noqa: E402

STEPS = {320: 100, 1024: 30, 2048: 12}


def layer(cells: int) -> tuple[torch.nn.LSTM, Network]:
    """The same random layer for both, weights exact in fp16."""
    torch.manual_seed(cells)
    module = torch.nn.LSTM(cells, cells)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.half().float())
        module.bias_hh_l0.zero_()
    arrays = {
        name: weight.detach().numpy().astype(np.float16)
        for name, weight in module.named_parameters()
    }
    ours = LstmLayer(
        f"{cells} cells",
        arrays["weight_ih_l0"].reshape(4, cells, -1),
        arrays["weight_hh_l0"].reshape(4, cells, -1),
        arrays["bias_ih_l0"].reshape(4, cells),
    )
    return module, Network("benchmark", ((ours,),))


def main() -> None:
    """Time both at each size, after a check of the answers."""
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="*", default=list(STEPS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cells in args.cells:
        steps = STEPS.get(cells, 20)
        module, network = layer(cells)
        x = (
            np.random.default_rng(cells)
            .normal(size=(steps, cells))
            .astype(np.float16)
            .astype(np.float32)
        )
        engine = Engine(network, ARITHMETICS["epur-fp16"])
        theirs = torch.from_numpy(x)[:, None]
        with torch.inference_mode():
            ours, peer = harness.paired(
                partial(engine.sequence, x), partial(module, theirs), args.rounds
            )
            reference = module(theirs)[0][:, 0].numpy()
        found = engine.sequence(x)[0]
        plain = Engine(network, ARITHMETICS["epur-fp16"], level=levels()[0]).sequence(x[:2])[0]
        if not np.array_equal(found[:2].view(np.uint32), plain.view(np.uint32)):
            sys.exit(f"{cells} cells: levels {levels()[-1]} and {levels()[0]} differ")
        if np.abs(found - reference).max() > 0.05:
            sys.exit(f"{cells} cells: too far from float32, {np.abs(found - reference).max()}")
        work = steps * 8 * cells**2 / 1e9
        rows.append(
            harness.row(
                f"fp16, {cells} cells, {steps} steps",
                work / ours,
                work / peer,
                "PyTorch float32",
                "GMAC/s",
            )
        )
    harness.report(rows, harness.machine("torch", "numpy"), args.json)


if __name__ == "__main__":
    main()
