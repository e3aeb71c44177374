"""Fuzz readers for as long as you like.

    python tests/fuzz/run.py                          every target, half an hour in all
    python tests/fuzz/run.py onnx npz --minutes 5
    python tests/fuzz/run.py onnx --atheris           guided by coverage (pip install atheris)
    python tests/fuzz/run.py onnx --again FILE        one input once more

An input that ends in anything but a file read or one `EpurError`, that takes over `--seconds` or over
`--memory` MiB, is written to a file, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description="fuzz the readers of files from elsewhere")
    parser.add_argument("targets", nargs="*", help="all by default")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all")
    parser.add_argument("--seconds", type=int, default=60, help="that one file may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may take")
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFF)
    parser.add_argument("--atheris", action="store_true", help="let coverage guide")
    parser.add_argument("--again", type=Path, help="an input that was written")
    given = parser.parse_args()
    if given.atheris:
        return _guided(given)
    from targets import TARGETS

    chosen = given.targets or list(TARGETS)
    if unknown := set(chosen) - set(TARGETS):
        parser.error(f"{', '.join(sorted(unknown))}: use {', '.join(TARGETS)}")
    if given.again:
        with tempfile.TemporaryDirectory() as folder:
            taken = TARGETS[chosen[0]].check(given.again.read_bytes(), Path(folder))
        print("read" if taken else "refused")
        return 0
    faults = 0
    for name in chosen:
        faults += _run(name, 60 * given.minutes / len(chosen), given)
    return int(faults > 0)


def _run(name: str, seconds: float, given: Any) -> int:
    """Faults of one target; it runs in a process of its own, which is started anew after each."""
    faults = tried = taken = 0
    end = time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")
    while time.monotonic() < end:
        results = spawn.SimpleQueue()
        tries = spawn.RawArray("Q", 2)
        arguments = (
            name,
            given.seed + tried,
            end - time.monotonic(),
            given.seconds,
            given.memory,
            results,
            tries,
        )
        process = spawn.Process(target=_work, args=arguments)
        process.start()
        process.join(end - time.monotonic() + 2 * given.seconds)
        if process.is_alive():
            process.kill()
            process.join()
        tried, taken = tried + tries[0] + 1, taken + tries[1]
        if process.exitcode == 0 and results.empty():
            break
        faults += 1
        data = _input(given.seed + tried - 1)
        path = Path(f"fault-{name}-{hashlib.sha256(data).hexdigest()[:8]}")
        path.write_bytes(data)
        reason = (
            "took too long" if process.exitcode == -signal.SIGKILL else f"status {process.exitcode}"
        )
        print(
            f"{name}: {reason if results.empty() else results.get()}\n  input: {path}", flush=True
        )
    print(f"{name}: {tried} files, {taken} read, {faults} faults", flush=True)
    return faults


def _input(seed: int) -> bytes:
    chance = random.Random(seed)
    return chance.randbytes(chance.randrange(10, 200))


def _work(
    name: str, seed: int, seconds: float, each: int, memory: int, results: Any, tries: Any
) -> None:
    """Try inputs until one is a fault or the time is over."""
    from targets import TARGETS

    target = TARGETS[name]
    end = time.monotonic() + seconds
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            signal.alarm(each)
            try:
                tries[1] += target.check(_input(seed), Path(folder))
            except BaseException:
                results.put(traceback.format_exc(limit=-4))
                return
            tries[0] += 1
            seed += 1


def _guided(given: Any) -> int:
    import atheris

    with atheris.instrument_imports(include=["epur_emu"]):
        from targets import TARGETS
    (name,) = given.targets or ["onnx"]
    folder = tempfile.mkdtemp(prefix="epur-fuzz-")
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={given.minutes * 60:.0f}", f"-timeout={given.seconds}",
         f"-rss_limit_mb={given.memory}", "-max_len=200"],
        lambda data: TARGETS[name].check(data, Path(folder)),
    )  # fmt: skip
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
