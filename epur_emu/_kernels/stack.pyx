# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the stack-distance and cache kernels: columns of accesses in, counts out.

Cython, because each request looks a line up and moves it. Callers pass columns of equal lengths, ranks of components
(or -1 for those that don't come), and addresses and bytes below 2**62.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset

import numpy as np


cdef extern from * nogil:
    """
    #include "cpu.h"
    #include "stack_api.h"
    #if defined(__x86_64__)
    #define epur_stack_feed(level, ...) ((level) ? stack_feed_avx2(__VA_ARGS__) : stack_feed_scalar(__VA_ARGS__))
    #define epur_cache_feed(level, ...) ((level) ? cache_feed_avx2(__VA_ARGS__) : cache_feed_scalar(__VA_ARGS__))
    #else
    #define epur_stack_feed(level, ...) stack_feed_scalar(__VA_ARGS__)
    #define epur_cache_feed(level, ...) cache_feed_scalar(__VA_ARGS__)
    #endif
    """
    int epur_best()
    enum: EPUR_NO_MEMORY, EPUR_TOO_LARGE, BINS, GROUPS, HASH_BITS, DOUBLINGS, PAGE
    ctypedef struct epur_accesses:
        const int64_t *address
        const int64_t *bytes
        const int64_t *cycle
        const int32_t *component
        const int64_t *rank
        int64_t components
        int shift
        ptrdiff_t size
        ptrdiff_t at
        uint64_t part
    ctypedef struct epur_lines:
        uint64_t pages
    ctypedef struct epur_sample:
        double counts[GROUPS][BINS]
        double cold[GROUPS]
        uint32_t threshold
        uint64_t most
        uint64_t* heap
        uint64_t kept
    ctypedef struct epur_reuse:
        uint64_t times[DOUBLINGS]
        uint64_t* windows
        uint64_t window
        uint64_t count
    ctypedef struct epur_stack:
        epur_lines lines
        uint64_t live
        uint64_t* counts
        uint64_t bins
        uint64_t cold
        uint64_t requests
        uint64_t weight
        uint64_t most_bytes
        epur_sample* sample
        epur_reuse* reuse
    ctypedef struct epur_cache:
        int policy
        uint64_t sets
        uint64_t ways
        uint64_t misses
        uint64_t requests
        uint64_t weight
        uint64_t most_bytes
    int epur_stack_feed(int, epur_stack*, epur_accesses*)
    int epur_cache_feed(int, epur_cache*, epur_accesses*)
    void epur_stack_free(epur_stack*)
    int epur_cache_start(epur_cache*)
    void epur_cache_free(epur_cache*)


#: Levels that this CPU has, plainest first; their order is their number.
LEVELS = ("scalar", "avx2")[:min(epur_best(), 1) + 1]


cdef int failed(int code) except -1:
    if code == EPUR_NO_MEMORY:
        raise MemoryError
    if code == EPUR_TOO_LARGE:
        raise OverflowError
    return 0


cdef epur_accesses accesses(const int64_t[::1] cycle, const int32_t[::1] component, const int64_t[::1] address,
                            const int64_t[::1] bytes, const int64_t[::1] rank, int shift) noexcept:
    cdef epur_accesses a
    memset(&a, 0, sizeof(a))
    a.size = address.shape[0]
    a.shift = shift
    a.rank = &rank[0]
    for i in range(rank.shape[0]):
        a.components += rank[i] >= 0
    if a.size:
        a.address, a.bytes, a.component = &address[0], &bytes[0], &component[0]
        a.cycle = &cycle[0]
    return a


cdef class Stack:
    """References by stack distance, exact or sampled.

    `most_bytes` bounds the memory, beyond which `feed` raises OverflowError. `threshold` of 2**24 samples lines, at
    most `most_lines` at a time unless that is 0; 0 is no sampling. `window` of cycles and their number ask for the
    histogram of times and for the working set.
    """

    cdef epur_stack s
    cdef int level

    def __cinit__(self, int level, uint64_t most_bytes, uint32_t threshold=0, uint64_t most_lines=0,
                  uint64_t window=0, uint64_t windows=0):
        self.level = level
        self.s.weight, self.s.most_bytes = 1, most_bytes
        if threshold:
            self.s.sample = <epur_sample*> calloc(1, sizeof(epur_sample))
            if self.s.sample == NULL:
                raise MemoryError
            self.s.sample.threshold, self.s.sample.most = threshold, most_lines
            if most_lines:
                self.s.sample.heap = <uint64_t*> calloc(most_lines + 1, 8)
                if self.s.sample.heap == NULL:
                    raise MemoryError
        if window:
            self.s.reuse = <epur_reuse*> calloc(1, sizeof(epur_reuse))
            if self.s.reuse == NULL:
                raise MemoryError
            self.s.reuse.window, self.s.reuse.count = window, windows
            self.s.reuse.windows = <uint64_t*> calloc(windows + 1, 8)
            if self.s.reuse.windows == NULL:
                raise MemoryError

    def __dealloc__(self):
        epur_stack_free(&self.s)

    def feed(self, const int64_t[::1] cycle, const int32_t[::1] component, const int64_t[::1] address,
             const int64_t[::1] bytes, const int64_t[::1] rank, int shift, uint64_t weight):
        """Take accesses, each of its lines counted `weight` times."""
        cdef epur_accesses a = accesses(cycle, component, address, bytes, rank, shift)
        cdef int code
        self.s.weight = weight
        with nogil:
            code = epur_stack_feed(self.level, &self.s, &a)
        failed(code)

    @property
    def requests(self):
        """All references."""
        return self.s.requests

    @property
    def cold(self):
        """First references to a line; those by group if sampled."""
        if self.s.sample != NULL:
            return np.array(<double[:GROUPS]> self.s.sample.cold)
        return self.s.cold

    @property
    def live(self):
        """Lines referred to; those kept if sampled."""
        return self.s.live

    @property
    def rate(self):
        """Share of the lines that are sampled now."""
        return self.s.sample.threshold / float(1 << HASH_BITS)

    @property
    def counts(self):
        """References by distance, uint64 (distances,); float64 (groups, bins) if sampled."""
        if self.s.sample != NULL:
            return np.array(<double[:GROUPS, :BINS]> &self.s.sample.counts[0][0])
        if not self.s.live:
            return np.zeros(0, np.uint64)
        return np.array(<uint64_t[:self.s.live]> self.s.counts)

    @property
    def times(self):
        """References by number of bits of the cycles since the line's last, uint64 (64,)."""
        return np.array(<uint64_t[:DOUBLINGS]> self.s.reuse.times)

    @property
    def windows(self):
        """Lines touched in each window, uint64 (windows,)."""
        return np.array(<uint64_t[:self.s.reuse.count + 1]> self.s.reuse.windows)[:self.s.reuse.count]


cdef class Cache:
    """Misses of one cache; `policy` is 0 LRU, 1 FIFO, 2 Belady."""

    cdef epur_cache c
    cdef int level

    def __cinit__(self, int level, uint64_t most_bytes, int policy, uint64_t sets, uint64_t ways):
        self.level = level
        self.c.policy, self.c.sets, self.c.ways = policy, sets, ways
        self.c.most_bytes = most_bytes
        failed(epur_cache_start(&self.c))

    def __dealloc__(self):
        epur_cache_free(&self.c)

    def feed(self, const int64_t[::1] cycle, const int32_t[::1] component, const int64_t[::1] address,
             const int64_t[::1] bytes, const int64_t[::1] rank, int shift, uint64_t weight):
        """Take accesses, each of its lines counted `weight` times."""
        cdef epur_accesses a = accesses(cycle, component, address, bytes, rank, shift)
        cdef int code
        self.c.weight = weight
        with nogil:
            code = epur_cache_feed(self.level, &self.c, &a)
        failed(code)

    @property
    def requests(self):
        """All references."""
        return self.c.requests

    @property
    def misses(self):
        """References that were not in the cache."""
        return self.c.misses


def bank_conflicts(const int64_t[::1] cycle, const int32_t[::1] component, const int64_t[::1] address,
                   const int64_t[::1] bytes, const int64_t[::1] unit, const int64_t[::1] banks,
                   const int64_t[::1] first, int64_t[::1] last, int64_t[::1] conflicts):
    """Add to conflicts INOUT (components) the banks asked for more than once in a cycle.

    Bank b of component c holds the units of unit[c] bytes whose number is b modulo banks[c]; last[first[c] + b]
    INOUT is the cycle in which it was last asked, -1 for never.
    """
    cdef ptrdiff_t i
    cdef int64_t at, number, end, c
    with nogil:
        for i in range(cycle.shape[0]):
            c = component[i]
            number = address[i] // unit[c]
            end = (address[i] + bytes[i] - 1) // unit[c]
            while number <= end:
                at = first[c] + number % banks[c]
                conflicts[c] += last[at] == cycle[i]
                last[at] = cycle[i]
                number += 1
