"""Miss ratios of caches: LRU at all sizes in one pass, sampled, set-associative, FIFO, Belady."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epur_emu._kernels import stack
from epur_emu.errors import TraceError
from epur_emu.replay.base import Advance, Result, Source
from epur_emu.replay.columns import MOST_BYTES, Columns, Feeder, level
from epur_emu.replay.periods import repeated
from epur_emu.replay.sizes import check_sizes
from epur_emu.trace import Accesses, Trace

#: In the order of the kernel's numbers.
POLICIES = ("lru", "fifo", "belady")

#: Sizes of caches that must be chosen before the replay, if none are given.
SIZES = tuple(1 << n for n in range(12, 25))

_HASHES = 1 << 24


class Lru:
    """Miss ratio by size; a request is an access's part in one line, reads and writes alike.

    LRU of one set: all sizes in one pass by stack distances (Mattson et al. 1970): a cache of n
    lines hits if fewer than n other lines came since the line's last request. Other policies, and
    sets, are simulated at each size. Belady takes in what is requested too (Belady 1966, MIN).
    State is bounded by the footprint, or by the sample.

    Parameters
    ----------
    source : Source
    sizes : sequence of int, optional
        Bytes. By default, for LRU of one set, doubling from one line to the whole footprint.
    line : int
        Bytes of a line, a power of two.
    ways : int, optional
        Lines of a set; by default all lines are one set.
    policy : {'lru', 'fifo', 'belady'}
    sampling : float, optional
        Below 1 the share of lines, from 64 on the number of lines that SHARDS keeps (Waldspurger
        et al. 2015). Only for LRU of one set.

    Raises
    ------
    TraceError
        An option is not valid.
    """

    def __init__(
        self,
        source: Source,
        sizes: Sequence[int] | None = None,
        line: int = 64,
        ways: int | None = None,
        policy: str = "lru",
        sampling: float | None = None,
    ) -> None:
        self._columns = Columns(source, line)
        self._names, self._line, self._ways, self._policy = source.names, line, ways, policy
        if policy not in POLICIES:
            raise TraceError("replay", "policy", f"is {policy!r}", f"use one of {POLICIES}")
        if ways is not None and ways < 1:
            raise TraceError("replay", "ways", f"is {ways}", "give 1 or more")
        self._sizes = None if sizes is None else check_sizes(sizes, line)
        self._stack: stack.Stack | None = None
        self._sampled = sampling is not None
        self._caches: dict[int, stack.Cache] = {}
        one_set = policy == "lru" and ways is None
        if self._sampled and not one_set:
            raise TraceError("replay", "sampling", "is for LRU of one set", "leave it out")
        if sampling is not None:
            self._stack = stack.Stack(level(), MOST_BYTES, *_sample(sampling))
        elif one_set and (self._sizes is None or len(self._sizes) > 1):
            self._stack = stack.Stack(level(), MOST_BYTES)
        else:
            self._simulate(self._sizes or self._fitting(SIZES))

    def _fitting(self, sizes: Sequence[int]) -> tuple[int, ...]:
        unit = self._line * (self._ways or 1)
        return tuple(s for s in sizes if s % unit == 0) or (unit,)

    def _simulate(self, sizes: Sequence[int]) -> None:
        for size in sizes:
            lines = size // self._line
            ways = self._ways or lines
            if lines % ways or size % self._line:
                raise TraceError(
                    "replay", "sizes", f"hold {size} bytes",
                    f"give multiples of {self._line * ways}, {ways} lines of {self._line} bytes",
                )  # fmt: skip
            if lines // ways > 1 and 8 * lines > MOST_BYTES // len(sizes):
                raise TraceError("replay", "sizes", f"hold {size} bytes", "give smaller ones")
            self._caches[size] = stack.Cache(
                level(), MOST_BYTES // len(sizes), POLICIES.index(self._policy), lines // ways, ways
            )

    def _kernels(self) -> list[Feeder]:
        return [self._stack] if self._stack is not None else list(self._caches.values())

    def feed(self, chunk: Accesses) -> None:
        """Take the next accesses."""
        self._columns.feed(self._kernels(), chunk)

    def take(self, trace: Trace, advance: Advance) -> bool:
        """Take all of a trace, equal turns of its streams twice only; LRU alone allows that."""
        if self._policy != "lru":
            return False
        for chunk, weight in repeated(trace, self._names):
            self._columns.feed(self._kernels(), chunk, weight)
            advance(weight * len(chunk))
        return True

    def result(self) -> Result:
        """The curve; with sampling the details hold two standard errors of each of its points."""
        details: dict[str, Any] = {
            "policy": self._policy, "line": self._line, "ways": self._ways, "sampled": self._sampled,
        }  # fmt: skip
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self._stack is None:
            requests = next(iter(self._caches.values())).requests
            points = [
                (s, c.misses / requests if requests else 0.0) for s, c in self._caches.items()
            ]
            details["misses"] = [cache.misses for cache in self._caches.values()]
        elif self._sampled:
            requests, curve = self._stack.requests, SampledCurve(self._stack)
            footprint = max(1, round(self._stack.live / self._stack.rate))
            sizes = self._sizes or self._doubling(footprint)
            points = [(s, curve.miss_ratio(s // self._line)) for s in sizes]
            details |= {"rate": self._stack.rate, "sampled_lines": self._stack.live}
            details["footprint_bytes"] = footprint * self._line
            details["error"] = [curve.error(s // self._line) for s in sizes]
        else:
            requests, counts = self._stack.requests, self._stack.counts
            # misses[n] of a cache of n lines: what came back from n or further, and first requests.
            hits = np.concatenate([[0], np.cumsum(counts, dtype=np.uint64)]).astype(np.int64)
            sizes = self._sizes or self._doubling(max(1, self._stack.live))
            points, missed = [], []
            for size in sizes:
                missed.append(requests - int(hits[min(size // self._line, hits.size - 1)]))
                points.append((size, missed[-1] / requests if requests else 0.0))
            details["misses"] = missed
            details["footprint_bytes"] = self._stack.live * self._line
            details["first_requests"] = self._stack.cold
            seen = np.flatnonzero(counts)
            arrays = {"distance": seen.astype(np.int64), "references": counts[seen]}
        return Result("lru", ",".join(self._names), requests, tuple(points), details, arrays)

    def _doubling(self, lines: int) -> tuple[int, ...]:
        return tuple(self._line << n for n in range((lines - 1).bit_length() + 1))


def _sample(sampling: float) -> tuple[int, int]:
    """(threshold of the hash, lines kept at most) of an option's value."""
    if 0 < sampling < 1:
        return max(1, round(sampling * _HASHES)), 0
    if sampling >= 64 and sampling == int(sampling) and sampling < 1 << 24:
        return _HASHES, int(sampling)
    raise TraceError(
        "replay", "sampling", f"is {sampling}", "give a share below 1, or 64 lines or more"
    )


class SampledCurve:
    """The miss ratio that sampled distances estimate.

    Groups of lines, by hash, are estimates of their own. References that the sample lacks, as
    against its share of all, are counted as those of distance 0 (SHARDS-adj): hot lines, in or out
    of the sample by chance, are what they come from.
    """

    def __init__(self, sampled: stack.Stack) -> None:
        self._rate, requests = sampled.rate, max(1, sampled.requests)
        counts, cold = np.asarray(sampled.counts, np.float64), np.asarray(sampled.cold, np.float64)
        places = np.arange(counts.shape[1])
        doubling = np.maximum(places // 256 - 1, 0)
        self._low = (places - 256 * doubling).astype(np.float64) * 2.0**doubling
        self._width = 2.0**doubling
        behind = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] + cold[:, None]
        share = requests / len(counts)
        self._misses, self._in_bin, self._cold = behind / share, counts / share, cold / share

    def _groups(self, lines: float) -> npt.NDArray[np.float64]:
        """Miss ratio of a cache of so many lines, by group."""
        if lines <= 0:
            return np.ones(len(self._cold))
        at = int(np.searchsorted(self._low, lines, side="right")) - 1
        # Distances lie evenly in their bin.
        below = min(1.0, (lines - self._low[at]) / self._width[at])
        return np.asarray(self._misses[:, at] - below * self._in_bin[:, at])

    def miss_ratio(self, lines: float) -> float:
        """Of a cache of so many lines."""
        return float(np.clip(self._groups(lines).mean(), 0, 1))

    def error(self, lines: float) -> float:
        """Two standard errors of `miss_ratio`.

        Two independent parts, added as squares: which lines are in the sample (the spread of the
        groups' means), and which lines lie in between a line's requests: a distance d is known
        from a binomial number of d samples, so to ``sqrt((1 - rate) / (rate d))`` of itself.
        """
        groups = self._groups(lines)
        spread = 2 * float(groups.std(ddof=1)) / len(groups) ** 0.5
        reach = 2 * ((1 - self._rate) * lines / self._rate) ** 0.5
        slope = (self.miss_ratio(lines - reach) - self.miss_ratio(lines + reach)) / 2
        return float(np.hypot(spread, slope))
