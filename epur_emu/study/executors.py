"""Where a study's units are computed: in this process, in several, or on a Dask cluster.

All are `concurrent.futures.Executor`, so that a study does not know which one it has.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait as wait_for
from typing import Any

from epur_emu.errors import StudyError

#: Calls for each thread of a cluster, whose scheduler takes its time between one and the next.
AHEAD = 4


class Here(Executor):
    """Calls in this process, each as it is submitted."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The finished call."""
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


class Processes(Executor):
    """Processes that end with this one; where one dies the others are started anew."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn"), _begin)

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit to a pool that lives."""
        # A process that begins here inherits that it is not interrupted before `_begin` runs.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(call, *args, **kwargs)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._new()
            return self._pool.submit(call, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, with what they are at where `cancel_futures` is given."""
        if cancel_futures:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _begin() -> None:
    """Leave interruptions to the parent, and end when it does, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def executor(jobs: int = 1, dask: str | None = None) -> Iterator[tuple[Executor, int]]:
    """An executor, and how many calls it should have at once so that none of its processes waits.

    Parameters
    ----------
    jobs : int
        Processes; 1 is this one.
    dask : str, optional
        Address of a Dask scheduler, as in ``tcp://host:8786``; `jobs` then does not count.

    Raises
    ------
    StudyError
        The package `distributed` is not installed, or no scheduler answers.
    """
    if dask is not None:
        yield from _cluster(dask)
        return
    pool: Executor = Here() if jobs == 1 else Processes(jobs)
    try:
        yield pool, jobs + (jobs > 1)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _cluster(address: str) -> Iterator[tuple[Executor, int]]:
    try:
        import distributed
    except ImportError as error:
        raise StudyError(
            "--dask", "distributed", "is not installed", "pip install 'epur_emu[distributed]'"
        ) from error
    make: Any = distributed.Client
    try:
        client = make(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            "--dask", repr(address), f"can't be reached ({type(error).__name__})",
            "start one with dask scheduler and dask worker, or use --jobs",
        ) from error  # fmt: skip
    pool = client.get_executor(pure=False)
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise StudyError("--dask", repr(address), "has no worker", "start one: dask worker")
        yield pool, AHEAD * threads
    except BaseException:
        pool.shutdown(wait=False)
        raise
    finally:
        with suppress(OSError):
            client.close()


def lost(error: BaseException) -> bool:
    """Whether a call ended because its process did."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ in (
        "KilledWorker", "CancelledError", "FutureCancelledError",
    )  # fmt: skip
