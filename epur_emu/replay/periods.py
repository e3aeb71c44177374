"""Repetitions of a trace, found in its streams: two turns of each are enough for an LRU order.

Let accesses A be followed by the same A again, k times in all. After the first turn the most recent
lines are those of A, in the order of their last access in A, whatever came before; every later turn
leaves that order as it is. An access of turn 2 or later finds its line's last access in its own
turn or in the one before, and both hold A. So all turns but the first have the same stack
distances, and leave the same state: the second stands for k - 1.

The streams tell where that happens. A loop of address stride 0 and cycle stride p repeats its
inside every p cycles for as long as it runs, so all accesses repeat with period P while every
stream either is in such a loop whose p divides P, or is silent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from epur_emu.streams import LIMIT, AccessStream, Phase
from epur_emu.trace import Accesses, Trace

#: Accesses that a jump must save to repay its search.
WORTH = 1 << 17

#: Accesses expanded between one search and the next, at first and at most.
SHORTEST, LONGEST = 1 << 14, 1 << 20

#: Most accesses of a chunk.
CHUNK = 1 << 20

#: Most single events among which jumps are looked for; they are held in memory, some 30 MB.
MOST_SINGLE = 1 << 20


def repeated(
    trace: Trace, names: Sequence[str], worth: int = WORTH
) -> Iterator[tuple[Accesses, int]]:
    """All accesses of some components, equal turns given twice instead of every time.

    Parameters
    ----------
    trace : Trace
    names : sequence of str
        Components.
    worth : int
        Accesses that a jump must save.

    Yields
    ------
    chunk, weight : Accesses, int
        The weights of all chunks times their sizes add up to the number of accesses. A weight
        above 1 stands for that many turns in a row like this one.
    """
    wanted = set(names)
    streams = [s for phase in trace.phases for s in phase.streams if s.component in wanted]
    single = sum(
        n for (phase, name, _), (n, _) in trace.totals().items() if phase < 0 and name in wanted
    )
    if single > MOST_SINGLE or not streams:
        for chunk in trace.expand(CHUNK, list(names)):
            yield chunk, 1
        return
    own = Accesses.join(trace.single(components=list(names)))
    # Every window is looked for among these streams only.
    trace = Trace([Phase("all", "forward", tuple(streams))], trace.components, 0, events=own)
    streams.sort(key=lambda s: s.cycle)
    starts, events = [s.cycle for s in streams], own.cycle
    entered, active = 0, list[AccessStream]()
    now, patience = 0, SHORTEST
    while entered < len(streams) or active:
        reach = bisect_right(starts, now)
        if entered < reach:
            active += streams[entered:reach]
            entered, patience = reach, SHORTEST
        active = [s for s in active if s.last_cycle >= now]
        begin = starts[entered] if entered < len(starts) else LIMIT + 1
        behind = int(np.searchsorted(events, now))
        event = int(events[behind]) if behind < events.size else LIMIT + 1
        if not active:
            yield from _once(trace, now, begin)
            now = begin
            continue
        period, turns = _best(active, now, min(begin, event), worth)
        if turns:
            yield from _once(trace, now, now + period)
            for chunk, _ in _once(trace, now + period, now + 2 * period):
                yield chunk, turns - 1
            now, patience = now + turns * period, SHORTEST
            continue
        until = _after(active, now, patience)
        yield from _once(trace, now, until)
        now, patience = until, min(2 * patience, LONGEST)
    yield from _once(trace, now, None)


def _once(trace: Trace, start: int, stop: int | None) -> Iterator[tuple[Accesses, int]]:
    for chunk in trace.expand(CHUNK, start=start, stop=stop):
        yield chunk, 1


def _best(active: Sequence[AccessStream], now: int, until: int, worth: int) -> tuple[int, int]:
    """The period from cycle `now` on that saves most, and its turns before `until`; 0 if none."""
    loops = [_repeats(stream, now) for stream in active]
    best, saved = (0, 0), worth - 1
    for period in {stride for _, own in loops for stride, _ in own}:
        end = until
        for silent, own in loops:
            ends = [stop for stride, stop in own if period % stride == 0]
            end = min(end, max([silent, *ends]))
        turns = (end - now) // period
        if turns < 3:
            continue
        first, last = now + 2 * period, now + turns * period
        saves = sum(s.before(last) - s.before(first) for s in active)
        if saves > saved:
            best, saved = (period, turns), saves
    return best


def _repeats(stream: AccessStream, now: int) -> tuple[int, list[tuple[int, int]]]:
    """Cycle of a stream's next access, and of each loop that repeats then its period and its end."""
    left, inner, cycle, found = stream.before(now), stream.accesses, stream.cycle, []
    if left == inner:
        return LIMIT + 1, []
    # A loop may begin anew, in the next turn of those around it, before its last turn is over.
    span, anew = stream.span, LIMIT + 1
    for count, address, stride in stream.loops:
        inner //= count
        span -= (count - 1) * stride
        # What a turn before the first would still do from `now` on would be missing.
        if address == 0 and stride and cycle - stride + span < now:
            found.append((stride, min(cycle + count * stride, anew)))
        turn, left = divmod(left, inner)
        cycle += turn * stride
        if turn + 1 < count:
            anew = cycle + stride
    return cycle, found


def _after(active: Sequence[AccessStream], now: int, accesses: int) -> int:
    """A cycle before which so many more accesses happen, or all that there are."""
    done, step = sum(s.before(now) for s in active), 64
    end = max(s.last_cycle for s in active) + 1
    while now + step < end and sum(s.before(now + step) for s in active) - done < accesses:
        step *= 2
    return min(now + step, end)
