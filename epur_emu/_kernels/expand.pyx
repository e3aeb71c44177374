# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the expansion kernel: streams and runs of events in, columns of single accesses out.

Cython, because each access is placed by its cycle. Callers pass streams that ``AccessStream`` has checked and runs in
range, sorted by first cycle.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, malloc, qsort
from libc.string cimport memset

import numpy as np


cdef extern from "expand.h" nogil:
    enum: EXPAND_DONE, EXPAND_NO_MEMORY, EXPAND_CROWDED, LOOPS, CYCLES, SEGMENTS
    ctypedef struct epur_nest:
        int64_t cycle, address, bytes, rank
        int64_t left[LOOPS]
        int64_t count[LOOPS]
        int64_t by[LOOPS]
        int64_t wait[LOOPS]
        int64_t by_carry[LOOPS]
        int64_t wait_carry[LOOPS]
        int64_t code
        int depth, ended
    ctypedef struct epur_run:
        int64_t left
    ctypedef struct epur_lane:
        const int64_t *cycle
        const int64_t *address
        const int64_t *bytes
        const int64_t *count[2]
        const int64_t *by[2]
        const int64_t *wait[2]
        const uint8_t *op
        int64_t component
        ptrdiff_t size, at
        ptrdiff_t running
        int more
    ctypedef struct epur_segment:
        int64_t cycle
    ctypedef struct epur_expansion:
        epur_nest *nests
        ptrdiff_t size, at
        epur_lane *lanes
        ptrdiff_t lane_count
        epur_segment *segments
        int64_t *counts
        int64_t now, stop, length
        int64_t *cycle
        int64_t *address
        int64_t *bytes
        int32_t *component
        uint8_t *op
    void nest_seek(epur_nest *, int64_t)
    int lane_commit(epur_lane *, int64_t)
    int window(epur_expansion *, ptrdiff_t *, ptrdiff_t, int64_t)
    void expansion_free(epur_expansion *)


class CrowdedError(Exception):
    """More runs of one component overlap than an expansion follows."""


cdef int by_cycle(const void *a, const void *b) noexcept nogil:
    cdef const epur_nest *one = <const epur_nest *>a
    cdef const epur_nest *other = <const epur_nest *>b
    if one.cycle != other.cycle:
        return -1 if one.cycle < other.cycle else 1
    return -1 if one.rank < other.rank else 1


cdef class Expansion:
    """Accesses from cycle `start` to before `stop`.

    Parameters
    ----------
    streams : int64 array of shape (n, 22)
        Code (2 component + op), cycle, address, bytes, then six counts, address strides and cycle strides, outermost
        first, missing ones with count 1.
    lanes : sequence of (component, callable)
        Rising components. Each call gives None, or the next runs, not empty: cycle, address, bytes, op, and None or
        contiguous arrays of shape (2, runs), outermost first: count, address and cycle stride. All are int64 but op.
    """

    cdef epur_expansion e
    cdef list held, source

    def __cinit__(self, const int64_t[:, ::1] streams, lanes, int64_t start, int64_t stop):
        cdef ptrdiff_t row, kept = 0
        cdef epur_nest *n
        cdef int k, depth
        cdef int64_t by, wait
        memset(&self.e, 0, sizeof(self.e))
        self.e.now, self.e.stop, self.e.length = start, stop, 64
        self.e.nests = <epur_nest *>calloc(streams.shape[0] + 1, sizeof(epur_nest))
        self.e.lanes = <epur_lane *>calloc(len(lanes) + 1, sizeof(epur_lane))
        self.e.segments = <epur_segment *>malloc(SEGMENTS * sizeof(epur_segment))
        self.e.counts = <int64_t *>malloc(CYCLES * sizeof(int64_t))
        if self.e.nests == NULL or self.e.lanes == NULL or self.e.segments == NULL or self.e.counts == NULL:
            raise MemoryError
        for row in range(streams.shape[0]):
            n = &self.e.nests[kept]
            memset(n, 0, sizeof(epur_nest))
            n.code, n.cycle, n.address, n.bytes = streams[row, 0], streams[row, 1], streams[row, 2], streams[row, 3]
            n.rank, depth = row, 0
            by = wait = 0
            for k in range(LOOPS - 1, -1, -1):
                if streams[row, 4 + k] == 1:
                    continue
                n.count[depth] = n.left[depth] = streams[row, 4 + k]
                n.by[depth], n.wait[depth] = streams[row, 10 + k], streams[row, 16 + k]
                n.by_carry[depth], n.wait_carry[depth] = n.by[depth] - by, n.wait[depth] - wait
                by += (n.count[depth] - 1) * n.by[depth]
                wait += (n.count[depth] - 1) * n.wait[depth]
                depth += 1
            if not depth:
                n.count[0] = n.left[0] = 1
            n.depth = depth or 1
            nest_seek(n, start)
            kept += not n.ended and n.cycle < stop
        self.e.size = kept
        qsort(self.e.nests, kept, sizeof(epur_nest), by_cycle)
        self.held, self.source = [None] * len(lanes), []
        self.e.lane_count = len(lanes)
        for k, (component, source) in enumerate(lanes):
            self.e.lanes[k].component = component
            self.e.lanes[k].more = 1
            self.source.append(source)

    def __dealloc__(self):
        expansion_free(&self.e)

    cdef int load(self, int k) except -1:
        """Take the next runs of a lane behind those that have not begun."""
        cdef epur_lane *lane = &self.e.lanes[k]
        cdef const int64_t[::1] cycle, address, bytes
        cdef const int64_t[:, ::1] count, by, wait
        cdef const uint8_t[::1] ops
        cdef int j
        runs = self.source[k]()
        if runs is None:
            lane.more = 0
            return 0
        if lane.at < lane.size:
            runs = tuple(
                None if new is None else np.concatenate((before[..., lane.at:lane.size], new), axis=-1)
                for before, new in zip(self.held[k], runs)
            )
            if len(runs[0]) > 1 << 21:
                raise CrowdedError
        self.held[k] = runs
        cycle, address, bytes, ops = runs[:4]
        lane.cycle, lane.address, lane.bytes, lane.op = &cycle[0], &address[0], &bytes[0], &ops[0]
        if runs[4] is not None:
            count, by, wait = runs[4:]
            for j in range(2):
                lane.count[j], lane.by[j], lane.wait[j] = &count[j, 0], &by[j, 0], &wait[j, 0]
        lane.at, lane.size = 0, cycle.shape[0]
        return 0

    def fill(self, int64_t[::1] cycle, int32_t[::1] component, uint8_t[::1] op, int64_t[::1] address,
             int64_t[::1] bytes):
        """Write the next accesses; returns how many, fewer than there is room only at the end.

        `cycle` OUT has 8 places more than the others.
        """
        cdef ptrdiff_t at = 0, room = address.shape[0]
        cdef int64_t known
        cdef int code, k
        cdef epur_lane *lane
        self.e.cycle, self.e.address, self.e.bytes = &cycle[0], &address[0], &bytes[0]
        self.e.component, self.e.op = &component[0], &op[0]
        while at < room and self.e.now < self.e.stop:
            known = self.e.stop
            for k in range(self.e.lane_count):
                lane = &self.e.lanes[k]
                while lane.more and (not lane.size or lane.cycle[lane.size - 1] <= self.e.now):
                    self.load(k)
                    self.check(lane_commit(lane, self.e.now))
                if lane.more and lane.cycle[lane.size - 1] < known:
                    known = lane.cycle[lane.size - 1]
            with nogil:
                code = window(&self.e, &at, room, known)
            self.check(code)
        return at

    cdef int check(self, int code) except -1:
        if code == EXPAND_NO_MEMORY:
            raise MemoryError
        if code == EXPAND_CROWDED:
            raise CrowdedError
        return 0


def encode(const int64_t[::1] cycle, const int64_t[::1] address, const int64_t[::1] bytes, const uint8_t[::1] op):
    """Accesses of one component, in order, as few runs of neighbours; columns as those of a lane."""
    cdef ptrdiff_t i, n = 0, size = cycle.shape[0]
    out, loops = np.empty((3, size), np.int64), np.empty((3, 2, size), np.int64)
    ops = np.empty(size, np.uint8)
    cdef int64_t[:, ::1] o = out
    cdef int64_t[:, :, ::1] p = loops
    cdef uint8_t[::1] what = ops
    p[0, 1, :] = 1
    p[1:, 1, :] = 0
    with nogil:
        for i in range(size):
            if n and op[i] == what[n - 1] and bytes[i] == o[2, n - 1]:
                if p[0, 0, n - 1] == 1:
                    p[1, 0, n - 1], p[2, 0, n - 1] = address[i] - address[i - 1], cycle[i] - cycle[i - 1]
                    p[0, 0, n - 1] = 2
                    continue
                if address[i] - address[i - 1] == p[1, 0, n - 1] and cycle[i] - cycle[i - 1] == p[2, 0, n - 1]:
                    p[0, 0, n - 1] += 1
                    continue
            o[0, n], o[1, n], o[2, n], what[n] = cycle[i], address[i], bytes[i], op[i]
            p[0, 0, n], p[1, 0, n], p[2, 0, n] = 1, 0, 0
            n += 1
    return (*out[:, :n], ops[:n], *np.ascontiguousarray(loops[..., :n]))
