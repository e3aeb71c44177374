"""What is fuzzed: readers of files from elsewhere, each with whole files to start from.

A reader may take a damaged file or refuse it with one `EpurError` of one line; anything else is a fault.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
import tempfile
import wave
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import CARD, read_card
from epur_emu.checkpoints.importers import read_checkpoint
from epur_emu.energy import EnergyTable
from epur_emu.errors import EpurError
from epur_emu.study.plan import Study
from epur_emu.study.results import Results, energy_of, trace_of
from epur_emu.tasks.features import read_wav
from epur_emu.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
import checkpoint_files  # noqa: E402

SEAL = 512
#: Accesses of a damaged trace that are expanded.
WINDOW = 20_000


class Choices:
    """Decisions drawn from bytes: the same bytes decide the same; past their end all are 0."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def number(self, end: int) -> int:
        """From 0 to `end` - 1."""
        size = (max(end - 1, 1).bit_length() + 7) // 8
        piece = self.data[self.place : self.place + size]
        self.place += size
        return int.from_bytes(piece, "little") % max(end, 1)

    def bytes(self, most: int) -> bytes:
        """Up to `most` of them."""
        size = self.number(most + 1)
        self.place += size
        return self.data[self.place - size : self.place]


@dataclass(frozen=True)
class Target:
    """A reader.

    Parameters
    ----------
    name : str
        Of the file that it reads.
    seeds : callable
        Makes whole files.
    read : callable
        Reads the file at a path.
    damage : callable
        From a whole file and choices to a damaged one.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    damage: Callable[[bytes, Choices], bytes]

    def check(self, data: bytes, folder: Path) -> bool:
        """Damage a seed as `data` decide and read it; whether it was taken."""
        choices = Choices(data)
        seeds = _seeds(self)
        path = folder / self.name
        path.write_bytes(self.damage(seeds[choices.number(len(seeds))], choices))
        try:
            self.read(path)
        except EpurError as error:
            assert "\n" not in str(error), str(error)
            return False
        return True


@cache
def _seeds(target: Target) -> list[bytes]:
    return target.seeds()


# --- damage

SPECIAL = [
    b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\xff\xff\xff\x7f",
    b"(", b"]", b"{", b"9" * 20, b"-1",
]  # fmt: skip
VALUES = [
    b"nan", b"inf", b"-1", b"0", b"1e400", b"1e-400", b"-0.5", b"9" * 25, b"true", b'""', b'"x"', b"[]",
    b"{}", b"[[[]]]", b'["epur"]', b"2020-01-01", b'"' + b"a" * 5000 + b'"', b'"\\u0000"', b'"../x"',
    b"{a=1}", b"[1, 'a']",
]  # fmt: skip


def of_bytes(whole: bytes, choices: Choices) -> bytes:
    """Bytes changed, cut out, repeated, moved, the end cut off."""
    for _ in range(1 + choices.number(4)):
        place, size = choices.number(len(whole)), choices.number(64)
        kind = choices.number(6)
        other = choices.number(len(whole))
        piece = {
            0: choices.bytes(8),
            1: SPECIAL[choices.number(len(SPECIAL))],
            2: b"",
            3: whole[place : place + size] * (1 + choices.number(40)),
            4: whole[other : other + size],
        }.get(kind)
        if piece is None:
            whole = whole[:place]
        else:
            whole = whole[:place] + piece + whole[place + (size if kind != 1 else len(piece)) :]
    return whole


def of_text(whole: bytes, choices: Choices) -> bytes:
    """A TOML file with values, keys or lines replaced, repeated or left out; or bytes, as above."""
    lines = whole.split(b"\n")
    for _ in range(1 + choices.number(3)):
        place = choices.number(len(lines))
        key, equals, _value = lines[place].partition(b" = ")
        kind = choices.number(5)
        if kind == 0:
            del lines[place]
        elif kind == 1:
            lines.insert(place, lines[choices.number(len(lines))])
        elif equals and kind == 2:
            lines[place] = b"x" + lines[place]
        elif equals:
            lines[place] = key + equals + VALUES[choices.number(len(VALUES))]
        if not lines:
            return b""
    text = b"\n".join(lines)
    return of_bytes(text, choices) if text and not choices.number(4) else text


def of_tables(whole: bytes, choices: Choices) -> bytes:
    """Values of a trace's tables replaced by others that are likely to be wrong; the seal is right."""
    path = _scratch(whole)
    with h5py.File(path, "r+") as file:
        found: list[h5py.Dataset] = []
        file.visititems(
            lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None
        )
        for _ in range(1 + choices.number(3)):
            dataset = found[choices.number(len(found))]
            rows = dataset[:]
            if not rows.size:
                continue
            index = choices.number(len(rows))
            column = rows
            if rows.dtype.names:
                column = rows[rows.dtype.names[choices.number(len(rows.dtype.names))]]
            cell = column[index : index + 1].reshape(-1)
            n = choices.number(cell.size)
            if column.dtype.kind in "iu":
                limits = np.iinfo(column.dtype)
                near = (0, 1, -1, 2, int(cell[n]) + 1, int(cell[n]) - 1, 1 << 31, 1 << 62)
                wanted = (limits.min, limits.max, *near)[choices.number(10)]
                value = np.array(min(max(wanted, limits.min), limits.max), column.dtype)
            else:
                value = np.array(choices.bytes(column.dtype.itemsize), column.dtype)
            column[(index, *np.unravel_index(n, column.shape[1:]))] = value
            with suppress(OSError, RuntimeError):  # what damage before has made of the file
                dataset[:] = rows
        for name in ("version", "complete", "cycles"):
            if name in file.attrs and not choices.number(8):
                dtype = file.attrs[name].dtype
                file.attrs[name] = np.full(
                    file.attrs[name].shape, choices.number(200) - 100
                ).astype(dtype)
    return sealed(path.read_bytes())


def of_image(whole: bytes, choices: Choices) -> bytes:
    """Bytes of the HDF5 image damaged, and the seal made right again."""
    return sealed(whole[:SEAL] + of_bytes(whole[SEAL:], choices))


def sealed(file: bytes) -> bytes:
    """A trace with the seal that its bytes ask for."""
    head = file.split(b"\n", 1)[0]
    body = file[SEAL:]
    seal = head + f"\nbytes {len(body)}\nsha256 {hashlib.sha256(body).hexdigest()}\n".encode()
    return seal.ljust(SEAL, b"\0") + body


_folder: list[Path] = []


def _scratch(data: bytes) -> Path:
    if not _folder:
        _folder.append(Path(tempfile.mkdtemp(prefix="epur-fuzz-")))
    path = _folder[0] / "scratch"
    path.write_bytes(data)
    return path


# --- readers


def _trace(path: Path) -> None:
    trace = Trace.open(path)
    trace.validate()
    for chunk in itertools.islice(trace.expand(chunk=WINDOW), 1):
        assert len(chunk.cycle) <= WINDOW


def _golden() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "traces").glob("*.h5"))]


def _checkpoint(form: str) -> Target:
    def seeds() -> list[bytes]:
        path = _scratch(b"")
        with suppress(FileExistsError):
            (path.parent / "files").mkdir()
        return [checkpoint_files.write_all(path.parent / "files")[form].read_bytes()]

    suffix = "pt" if form in ("pytorch", "legacy") else form
    return Target(f"a.{suffix}", seeds, read_checkpoint, of_bytes)


def _presets(folder: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        return [p.read_bytes() for p in sorted((ROOT / "epur_emu/data" / folder).glob("*.toml"))]

    return seeds


def _arithmetics() -> list[bytes]:
    return [
        b'base = "epur-fp16"\nrounding = "stochastic"\nseed = 7\nactivation = "pwl-64"\n\n[[overrides]]\n'
        b'layers = "encoder.*"\ngates = ["g"]\nweight = "e4m3"\n',
        b'base = "epur-int8"\nweight = "int6-row"\naccumulator = "q23.0"\nmu = "fp16"\ncell = "bf16"\n'
        b'partial = "int8"\nactivation = "exact"\nclamp = 8.0\n',
    ]


def _cards() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "models").glob("*/card.toml"))]


def _waves() -> list[bytes]:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(400, dtype="<i2").tobytes())
    return [out.getvalue()]


def _results() -> list[bytes]:
    layer = {"name": "a", "max_abs_error": 1e-3, "rms_error": 1e-4, "overflow": 0, "saturation": 0}
    cost = {"dram": {"dynamic": 2.0, "static": 1.0, "accesses": 3.0}}
    moved = {"dram": {"reads": 2.0, "writes": 1.0, "bytes": 192.0}}
    point = {
        "point": 0, "key": "0" * 16, "model": "m", "task": "t", "arithmetic": "fp16",
        "accelerator": "epur", "dataflow": "epur", "table": "epur-28nm", "metric": "BLEU",
        "higher_is_better": True, "float32": 30.0, "emulated": 29.5, "loss": 0.5, "n": 4,
        "same_outputs": 3, "metrics": {"float32": {"BLEU": 30.0}, "emulated": {"BLEU": 29.5}},
        "bits": {"weight": 16.0}, "weight_bits": 1e6, "items": 4, "cycles": 1e5, "seconds": 2e-4,
        "real_time_factor": None, "energy_pj": energy_of(cost), "average_mw": 1.0, "peak_mw": 2.0,
        "area_mm2": 30.0, "wider": {"add.bf16": "fp16"}, "layers": [layer], "trace": trace_of(moved),
        "stage": "sweep", "chosen": False, "problem": None,
    }  # fmt: skip
    path = _scratch(b"")
    Results("a", "models = []", [point, {**point, "point": 1}], planned=2).save(path)
    return [path.read_bytes()]


def _studies() -> list[bytes]:
    return [
        b'name = "a"\nsummary = "b"\nmodels = ["paper:{LDLRNN,BYSDNE}"]\n'
        b'arithmetics = ["epur-fp16", { base = "epur-fp16", weight = "e5m{2..10}" }]\n'
        b'accelerators = ["epur", { base = "epur-mwl", weight_buffer_bytes = "1M:4M" }]\n'
        b'tables = ["epur-28nm"]\nlimit = 3\ntraced = 2\nerrors = 1\n\n[search]\nloss = 0.5\n'
        b'place = "weight"\nformats = "int{2..8}"\ngroups = "layer"\n',
    ]


FORMS = ("pytorch", "legacy", "onnx", "safetensors", "npz", "keras", "h5")
#: Read in a process of their own, which takes its time.
SLOW = ("keras", "h5")

TARGETS = {
    "trace": Target("a.h5", _golden, _trace, of_bytes),
    "trace-tables": Target("a.h5", _golden, _trace, of_tables),
    "trace-image": Target("a.h5", _golden, _trace, of_image),
    **{form: _checkpoint(form) for form in FORMS},
    "study": Target("a.toml", _studies, Study.load, of_text),
    "results": Target("a.h5", _results, Results.open, of_bytes),
    "accelerator": Target("a.toml", _presets("accelerators"), Accelerator.load, of_text),
    "energy": Target("a.toml", _presets("energy"), EnergyTable.load, of_text),
    "arithmetic": Target("a.toml", _arithmetics, arithmetic, of_text),
    "card": Target(CARD, _cards, lambda path: read_card(path.parent), of_text),
    "wav": Target("a.wav", _waves, lambda path: read_wav(path, 8000), of_bytes),
}
