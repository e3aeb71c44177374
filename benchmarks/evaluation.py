"""Whole evaluations in fp16, bit for bit, beside the same task with float32 layers of numpy: one thread.

pip install 'epur_emu[evaluate]'
EPUR_DATA=/path/to/data python benchmarks/evaluation.py [--json] [--limit N] [MODEL ...]

Both sides answer the test set in the chunks of `epur evaluate`, chunk by chunk in turn; what is around the LSTM
layers (features, attention, search) is the same code in both. `--rounds` takes the least time of each chunk.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import harness

harness.one_thread()

import numpy as np  # noqa: E402  (after the number of threads is set)

from epur_emu.accelerator import Accelerator  # noqa: E402
from epur_emu.arithmetic import arithmetic  # noqa: E402
from epur_emu.comparison import chunks, load_model, task  # noqa: E402
from epur_emu.passes import level_number, levels  # noqa: E402

MODELS = ("digits-ctc", "translate-en-de", "caption-emoji", "silero-vad")


def evaluation(name: str, limit: int | None, rounds: int, ours: str) -> dict[str, Any]:
    """Items in a second of both sides over a model's test set."""
    model, accelerator = load_model(name), Accelerator.load("epur")
    sides = [task(model, arithmetic(each), accelerator, count=False) for each in (ours, "float32")]
    items, _ = sides[0].test_set(limit)
    beam = sides[0].beam
    for side in sides:
        side.answer(items[:1], beam)
    places = chunks([sides[0].size(item) for item in items])
    least = np.full((len(sides), len(places)), np.inf)
    for turn in range(rounds):
        for n, chunk in enumerate(places):
            for k in (0, 1) if (n + turn) % 2 else (1, 0):
                begin = time.perf_counter()
                sides[k].answer([items[place] for place in chunk], beam)
                least[k, n] = min(least[k, n], time.perf_counter() - begin)
    mine, theirs = len(items) / least.sum(1)
    case = f"{name}, {len(items):,} items, beam {beam}, {ours}"
    return harness.row(case, mine, theirs, "float32 numpy", "items/s")


def main() -> None:
    """Time the models one after another."""
    assert __doc__
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.set_defaults(rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"by default {' '.join(MODELS)}")
    parser.add_argument("--limit", type=int, help="take only so many items, the first")
    parser.add_argument("--arithmetic", default="epur-fp16")
    args = parser.parse_args()
    rows = []
    for name in args.models or MODELS:
        print(name, file=sys.stderr)
        rows.append(evaluation(name, args.limit, args.rounds, args.arithmetic))
    about = {**harness.machine("numpy"), "level": levels()[level_number(None)]}
    harness.report(rows, about, args.json)


if __name__ == "__main__":
    main()
