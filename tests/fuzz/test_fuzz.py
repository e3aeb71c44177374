"""A short run of every target; `run.py` runs them for as long as you like."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import SLOW, TARGETS, Choices, Target, _seeds, of_bytes, of_tables, of_text


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_taken_or_refused(name: str) -> None:
    @settings(max_examples=8 if name in SLOW else 120, deadline=None, database=None)
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        TARGETS[name].check(data, Path(folder))

    with tempfile.TemporaryDirectory() as folder:
        check()


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_taken(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for seed in _seeds(target):
        path = tmp_path / target.name
        path.write_bytes(seed)
        target.read(path)


@pytest.mark.parametrize(
    ("damage", "name"), [(of_bytes, "npz"), (of_text, "energy"), (of_tables, "trace")]
)
def test_damage_is_damage(damage: Callable[[bytes, Choices], bytes], name: str) -> None:
    """The same choices do the same, and most choices change the file."""
    (whole, *_) = _seeds(TARGETS[name])
    draws = [bytes(range(n, n + 60)) for n in range(1, 150, 5)]
    made = [damage(whole, Choices(d)) for d in draws]
    assert made == [damage(whole, Choices(d)) for d in draws]
    assert sum(m != whole for m in made) > len(made) // 2


def test_a_fault_is_found(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if b"\xff" in path.read_bytes():
            raise ValueError("a fault")

    target = Target("a", lambda: [b"0123456789"], read, of_bytes)
    with pytest.raises(ValueError, match="a fault"):
        for n in range(1000):
            target.check(n.to_bytes(3, "little") * 20, tmp_path)
