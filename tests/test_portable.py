"""What `tests/test_avx512.py` compiles with, checked where that has nothing to do."""

import re
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parent / "epur_emu" / "_kernels"


def test_every_instruction_of_the_kernels_is_there_in_plain_c():
    header = (HERE / "portable" / "immintrin.h").read_text(encoding="utf-8")
    known = set(re.findall(r"^#define (_mm512_\w+)", header, re.MULTILINE))
    used = {
        name
        for pattern in ("simd*.h", "lanes.h", "dot_*", "mu_*.h", "underflows.h", "lstm_int.h")
        for path in KERNELS.glob(pattern)
        for name in re.findall(r"_mm512_\w+", path.read_text(encoding="utf-8"))
    }
    assert len(used) > 50
    assert used <= known
