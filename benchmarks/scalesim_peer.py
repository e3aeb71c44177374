"""SCALE-Sim 3 on one matrix product: prints the accesses in its traces, and the seconds of the run.

A program of its own, as SCALE-Sim wants an older numpy than ours: ``python scalesim_peer.py FOLDER``.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path

from scalesim.scale_sim import scalesim


def main(folder: Path) -> None:
    """Write its inputs, run it and count."""
    (folder / "c.cfg").write_text(
        "[general]\nrun_name = run\n[architecture_presets]\nArrayHeight: 16\nArrayWidth: 16\n"
        "IfmapSramSzkB: 64\nFilterSramSzkB: 64\nOfmapSramSzkB: 64\nIfmapOffset: 0\n"
        "FilterOffset: 10000000\nOfmapOffset: 20000000\nDataflow: os\nBandwidth: 10\n"
        "MemoryBanks: 1\nReadRequestBuffer: 32\nWriteRequestBuffer: 32\n"
        "[layout]\nIfmapCustomLayout: False\nIfmapSRAMBankBandwidth: 10\nIfmapSRAMBankNum: 10\n"
        "IfmapSRAMBankPort: 2\nFilterCustomLayout: False\nFilterSRAMBankBandwidth: 10\n"
        "FilterSRAMBankNum: 10\nFilterSRAMBankPort: 2\n[sparsity]\nSparsitySupport: false\n"
        "SparseRep: ellpack_block\nOptimizedMapping: false\nBlockSize: 8\nRandomNumberGeneratorSeed: 40\n"
        "[run_presets]\nInterfaceBandwidth: CALC\nUseRamulatorTrace: False\n"
    )
    (folder / "t.csv").write_text("Layer,M,N,K,\nproduct,100,320,640,\n")
    ones = "1," * 24
    (folder / "l.csv").write_text(f"Layer,{ones}\nproduct,{ones}\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = scalesim(
            save_disk_space=False, verbose=False, config=str(folder / "c.cfg"),
            topology=str(folder / "t.csv"), layout=str(folder / "l.csv"), input_type_gemm=True,
        )  # fmt: skip
        begin = time.perf_counter()
        run.run_scale(top_path=str(folder))
        seconds = time.perf_counter() - begin
    accesses = sum(
        len(line.split(b",")) - 1 - line.count(b"-1")
        for path in folder.rglob("*TRACE*.csv")
        for line in path.read_bytes().splitlines()
    )
    print(accesses, seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
