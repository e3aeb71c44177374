"""Rounding 10 million float32 values to fp16, e5m7 and e4m3, beside other libraries: one thread, same run.

pip install 'epur_emu[bench]'; peers that are not installed are left out
python benchmarks/rounding.py [--json] [--cpfloat FOLDER]    (FOLDER: CPFloat's source tree, compiled with gcc)

Every peer rounds to nearest even into a new array, as `round_to` does; CPFloat writes to an old one, and so do
we beside it. ml_dtypes and numpy only convert to codes. The values that each gives are compared first: a row's
`differ` counts those that differ (qtorch and pychop don't round every value as the format's definition has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import harness

harness.one_thread()

import numpy as np  # noqa: E402  (after the number of threads is set)
import numpy.typing as npt  # noqa: E402
from cpfloat import CPFloat  # noqa: E402

from epur_emu.formats import FloatFormat, parse  # noqa: E402
from epur_emu.rounding import round_to  # noqa: E402

F32 = npt.NDArray[np.float32]
Peer = tuple[str, Callable[[], Any], bool]

FORMATS = ("fp16", "e5m7", "e4m3")
VALUES = 10_000_000

def peers(name: str, v: F32) -> Iterator[Peer]:
    """Name, rounding, and whether it takes seconds, of what is installed and has the format."""
    format = parse(name)
    assert isinstance(format, FloatFormat)
    e, m = format.exponent_bits, format.mantissa_bits
    if name == "fp16":
        yield "numpy float16", partial(v.astype, np.float16), False
    with suppress(ImportError):
        import ml_dtypes

        if name == "e4m3":
            yield "ml_dtypes float8_e4m3", partial(v.astype, ml_dtypes.float8_e4m3), False
    with suppress(ImportError):
        import torch
        from qtorch.quant import float_quantize

        torch.set_num_threads(1)
        yield "qtorch", partial(float_quantize, torch.from_numpy(v), e, m, "nearest"), False
    with suppress(ImportError):
        import pychop

        pychop.backend("numpy")
        yield "pychop", partial(pychop.Chop(exp_bits=e, sig_bits=m, rmode=1), v), True
    with suppress(ImportError):
        import gfloat
        from gfloat.formats import format_info_binary16 as ieee

        info = gfloat.FormatInfo(
            name=name, k=format.bits, precision=format.precision, bias=format.bias, is_signed=True,
            domain=ieee.domain, has_nz=True, num_high_nans=2**m - 1, has_subnormals=True,
            is_twos_complement=False,
        )  # fmt: skip
        yield "gfloat", lambda: gfloat.round_ndarray(info, v), True


def rows(rounds: int, library: CPFloat | None) -> Iterator[dict[str, Any]]:
    """One row for each format and peer."""
    v = np.random.default_rng(0).standard_normal(VALUES).astype(np.float32)
    out, other = np.empty_like(v), np.empty_like(v)
    for name in FORMATS:
        format = parse(name)
        assert isinstance(format, FloatFormat)
        fresh: Callable[[], Any] = partial(round_to, v, format)
        cases = [(peer, fresh, theirs, slow) for peer, theirs, slow in peers(name, v)]
        if library is not None:
            old = partial(round_to, v, format, out=out)
            cases.append(("CPFloat", old, partial(library.round, format, v, other), False))
        for peer, ours, theirs, slow in cases:
            differ = int((np.asarray(theirs()).astype(np.float32) != ours()).sum())
            seconds = harness.paired(ours, theirs, 1 if slow else rounds)
            rates = (VALUES / s / 1e9 for s in seconds)
            yield harness.row(f"round to {name}", *rates, peer, "G/s") | {"differ": differ}


def main() -> None:
    """Print the table."""
    parser = harness.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--cpfloat", type=Path, help="CPFloat's source tree")
    options = parser.parse_args()
    library = CPFloat(options.cpfloat) if options.cpfloat else None
    found = list(rows(options.rounds, library))
    about = harness.machine("numpy", "ml_dtypes", "gfloat", "pychop", "qtorch", "torch")
    harness.report(found, about, options.json)


if __name__ == "__main__":
    main()
