# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the DRAM controller: columns of accesses in, counts and commands out.

Cython, because each command depends on the one before. Callers pass columns of equal lengths, addresses within the
memory, and cycles whose clocks lie below 2**60.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np


cdef extern from "controller.h" nogil:
    enum: DRAM_DONE, DRAM_NO_MEMORY, DRAM_LOG_FULL, DRAM_KINDS, DRAM_BINS, DRAM_FINE, DRAM_LOG
    ctypedef struct dram_timing:
        int64_t channels
        int64_t ranks
    ctypedef struct dram_mapping:
        int64_t burst_shift
    ctypedef struct dram_policy:
        int64_t scheduler
    ctypedef struct dram_rank:
        int64_t open
        int64_t since
        int64_t until
        int64_t active
    ctypedef struct dram_channel:
        dram_rank* ranks
        int64_t end
    ctypedef struct epur_dram:
        dram_timing t
        dram_mapping m
        dram_policy p
        dram_channel* channel
        uint64_t counts[DRAM_KINDS]
        uint64_t hits[2]
        uint64_t latency[2][DRAM_BINS]
        uint64_t latency_low[2]
        uint64_t latency_high[2]
        int64_t latency_least[2]
        int64_t latency_most[2]
        uint64_t requests
        int64_t* log
        int64_t log_room
        int64_t log_used
    int epur_dram_feed(epur_dram*, const int64_t*, const int64_t*, const int64_t*, const uint8_t*, ptrdiff_t)
    int epur_dram_flush(epur_dram*)
    int epur_dram_start(epur_dram*)
    void epur_dram_free(epur_dram*)
    int epur_dram_bin(int64_t)


#: What the controller takes, in the order of `dram_timing`, `dram_mapping` and `dram_policy` of controller.h.
TIMING = (
    "channels", "ranks", "groups", "banks", "burst", "read_latency", "write_latency", "write_late", "rcd_read",
    "rcd_write", "rp", "ras", "rtp", "wr", "rrd_s", "rrd_l", "faw", "ccd_s", "ccd_l", "wtr_s", "wtr_l", "rtw", "rtrs",
    "ppd", "rfc", "refi", "rfc_bank", "rrefd", "act_clocks", "pre_clocks", "column_clocks", "refresh_clocks", "buses",
)
FIELDS = ("ch", "ra", "bg", "ba", "ro", "co")
POLICY = ("scheduler", "queue", "cap", "closed", "refresh", "numerator", "denominator")

#: Commands in the order of their kinds.
COMMANDS = ("ACT", "PRE", "RD", "WR", "RDA", "WRA", "REF", "REFPB")


def bin_of(int64_t latency):
    """The bin of the histogram of latencies that holds so many clocks."""
    return epur_dram_bin(latency)


def lower_ends():
    """The fewest clocks of each bin, int64 (bins,)."""
    cdef int64_t fine = DRAM_FINE
    bins = np.arange(DRAM_BINS, dtype=np.int64)
    doubling = np.maximum(bins // fine - 1, 0)
    return (bins - doubling * fine) << doubling


cdef class Dram:
    """One memory of several channels.

    `timing` (in the order of TIMING), `mapping` (shifts and masks of FIELDS, the burst's shift, permuted or not) and
    `policy` (POLICY) are int64 arrays. `log_room` commands are kept until `take_log`; 0 keeps none.
    """

    cdef epur_dram d
    cdef object log

    def __cinit__(self, const int64_t[::1] timing, const int64_t[::1] mapping, const int64_t[::1] policy,
                  int64_t log_room=0):
        memset(&self.d, 0, sizeof(self.d))
        if (timing.shape[0] * 8 != sizeof(dram_timing) or mapping.shape[0] * 8 != sizeof(dram_mapping)
                or policy.shape[0] * 8 != sizeof(dram_policy)):
            raise ValueError("lengths of the parameters")
        memcpy(&self.d.t, &timing[0], sizeof(dram_timing))
        memcpy(&self.d.m, &mapping[0], sizeof(dram_mapping))
        memcpy(&self.d.p, &policy[0], sizeof(dram_policy))
        cdef int64_t[:, ::1] view
        if log_room:
            self.log = np.empty((log_room, DRAM_LOG), np.int64)
            view = self.log
            self.d.log, self.d.log_room = &view[0, 0], log_room
        if epur_dram_start(&self.d) != DRAM_DONE:
            raise MemoryError

    def __dealloc__(self):
        epur_dram_free(&self.d)

    def feed(self, const int64_t[::1] cycle, const int64_t[::1] address, const int64_t[::1] bytes,
             const uint8_t[::1] op):
        """Take accesses; False if the log is full: then take it, and call again with the same."""
        cdef int code = DRAM_DONE
        if cycle.shape[0]:
            with nogil:
                code = epur_dram_feed(&self.d, &cycle[0], &address[0], &bytes[0], &op[0], cycle.shape[0])
        return code == DRAM_DONE

    def flush(self):
        """Serve all that waits; False as in `feed`."""
        cdef int code
        with nogil:
            code = epur_dram_flush(&self.d)
        return code == DRAM_DONE

    def take_log(self):
        """Commands since the last call, int64 (n, 9).

        Columns: clock, kind, channel, rank, group, bank, row, column (in bursts), request; -1 is none.
        """
        taken = self.log[:self.d.log_used].copy()
        self.d.log_used = 0
        return taken

    @property
    def requests(self):
        """Bursts taken."""
        return self.d.requests

    @property
    def counts(self):
        """How many of each of COMMANDS."""
        return dict(zip(COMMANDS, [self.d.counts[n] for n in range(DRAM_KINDS)]))

    @property
    def hits(self):
        """Reads and writes of a row that had been read or written since it was opened."""
        return self.d.hits[0], self.d.hits[1]

    @property
    def latencies(self):
        """For reads and writes: histogram uint64 (bins,), sum, least and most clocks."""
        found = []
        for n in range(2):
            bins = np.array(<uint64_t[:DRAM_BINS]> self.d.latency[n])
            total = (int(self.d.latency_high[n]) << 64) + int(self.d.latency_low[n])
            found.append((bins, total, self.d.latency_least[n], self.d.latency_most[n]))
        return found

    @property
    def clocks(self):
        """Clock after the last data of any channel."""
        cdef int64_t end = 0
        for c in range(self.d.t.channels):
            end = max(end, self.d.channel[c].end)
        return end

    @property
    def active(self):
        """Clocks, up to `clocks`, in which ranks have an open row; of all ranks together."""
        cdef int64_t end = self.clocks, total = 0
        cdef dram_rank* rank
        for c in range(self.d.t.channels):
            for r in range(self.d.t.ranks):
                rank = &self.d.channel[c].ranks[r]
                total += rank.active
                if rank.open:
                    total += max(end, rank.until) - rank.since
        return total
