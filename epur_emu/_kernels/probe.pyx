# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the probe: a pass is walked in hardware order, and each access is logged as it is performed.

Cython, because the loops run over single accesses. Callers pass sizes and places of a schedule, and arrays of the
shapes that ``probe.h`` states.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np


cdef extern from * nogil:
    """
    #include "probe_api.h"
    #if defined(__x86_64__)
    #define EPUR_WALKS(level) \\
        ((level) >= 2 ? &epur_walks_avx512 : (level) == 1 ? &epur_walks_avx2 : &epur_walks_scalar)
    #else
    #define EPUR_WALKS(level) (&epur_walks_scalar)
    #endif
    """
    enum: ROLES
    ctypedef struct epur_row:
        int64_t component
    ctypedef struct epur_site:
        ptrdiff_t row
    ctypedef struct epur_log:
        epur_row *rows
        ptrdiff_t size
        epur_site *sites
        int64_t lanes
        int64_t accesses
        int failed
    ctypedef struct epur_member:
        int64_t steps, x, y, state, spill, source_size
        const float *source
        const float *operands
        const float *values
        const float *initial
        float *spilled
        float *buffer
        uint8_t *stamps
    ctypedef struct epur_probe:
        int64_t width, burst, capacity, cells, inputs, nx, nh
        int64_t sw[4]
        int64_t sb[4]
        int64_t be[4]
        int64_t pe[4]
        int64_t xe, ye, ce, sx, sy, sc
        int64_t weights[4]
        int64_t inputs_of[4]
        int64_t row_of[4]
        int64_t mid, dram, reverse, peepholes, load, initial
        int64_t matrix[4]
        int64_t bank[4]
        int64_t rows, params, x_from, x_base, x_pitch, x_sub, y_pitch, y_base, kept, partials
        int64_t dpu, add, link, quantise, lookup, p, tm, tc, z, tag, tag_x, share, region, stay, cell_at
        int64_t low, span, begun, pace, parts, out_size, held_size, row_size
        const int64_t *part
        epur_member *members
        float *out
        uint32_t *held[4]
        uint32_t *row[4]
        uint8_t *stored
        int64_t wrong
        epur_log *log
    ctypedef struct epur_walks:
        int64_t (*parameters)(epur_probe *, int64_t) noexcept nogil
        void (*state)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t) noexcept nogil
        void (*stage)(epur_probe *, int64_t, int64_t, int64_t, int64_t) noexcept nogil
        void (*prefetch)(epur_probe *, int64_t, int64_t) noexcept nogil
        int64_t (*epur)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) noexcept nogil
        void (*forward)(epur_probe *, int64_t, int64_t, int64_t) noexcept nogil
        int64_t (*tile)(epur_probe *, int64_t, int64_t, int64_t) noexcept nogil
        int64_t (*recurrent)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int) noexcept nogil
        void (*store)(epur_probe *, int64_t, int64_t, int64_t, int64_t) noexcept nogil
    const epur_walks *EPUR_WALKS(int)


cdef class Log:
    """Accesses as they are performed, neighbours at equal distances as one row of two nested loops.

    Of so many components, for passes of at most so many sequences.
    """

    cdef epur_log g
    cdef ptrdiff_t sites

    def __cinit__(self, ptrdiff_t components, ptrdiff_t sequences=1):
        memset(&self.g, 0, sizeof(self.g))
        self.g.lanes = sequences * ROLES
        self.sites = components * 2 * self.g.lanes
        self.g.sites = <epur_site *>calloc(self.sites, sizeof(epur_site))
        if self.g.sites == NULL:
            raise MemoryError
        self.reset()

    cdef reset(self):
        cdef ptrdiff_t k
        for k in range(self.sites):
            self.g.sites[k].row = -1
        self.g.size = 0

    def __dealloc__(self):
        free(self.g.sites)
        free(self.g.rows)

    def __len__(self):
        return self.g.size

    @property
    def accesses(self):
        """All so far."""
        return self.g.accesses

    def take(self):
        """The rows since the last call, int64 (n, 11).

        Component, cycle, address, bytes, op, then counts, address and cycle strides, outermost first.
        """
        if self.g.failed:
            raise MemoryError
        cdef int64_t[:, ::1] out = np.empty((self.g.size, 11), np.int64)
        if self.g.size:
            memcpy(&out[0, 0], self.g.rows, self.g.size * sizeof(epur_row))
        self.reset()
        return np.asarray(out)


cdef class Walk:
    """One pass at a CPU level, by number; `numbers` holds the integers of ``epur_probe``, lists of four by gate.

    `members` holds for each sequence the integers of ``epur_member`` and its arrays, INOUT but the first four: source
    float32 (elements,), operands (steps, inputs), values (steps, cells), initial (nh * width,), spilled (elements,) or
    None, buffer (elements,) and stamps uint8 (elements,). `out` is float32 (elements,); held and rows are uint32 (4,
    units), stored is uint8 (sums,), part int64 (parts, 3).
    """

    cdef epur_probe p
    cdef const epur_walks *walks
    cdef list kept

    def __cinit__(self):
        memset(&self.p, 0, sizeof(self.p))

    def __dealloc__(self):
        free(self.p.members)

    def __init__(self, int level, Log log, numbers, members, float[::1] out, uint32_t[:, ::1] held,
                 uint32_t[:, ::1] rows, uint8_t[::1] stored, const int64_t[:, ::1] part):
        cdef int q
        cdef epur_member *m
        cdef const float[::1] source, initial
        cdef const float[:, ::1] operands, values
        cdef float[::1] spilled, buffer
        cdef uint8_t[::1] stamps
        self.walks = EPUR_WALKS(level)
        self.kept = [log, members, out, held, rows, stored, part]
        n = numbers
        self.p.log = &log.g
        self.p.width, self.p.burst, self.p.capacity = n["width"], n["burst"], n["capacity"]
        self.p.cells, self.p.inputs, self.p.nx, self.p.nh = n["cells"], n["inputs"], n["nx"], n["nh"]
        self.p.xe, self.p.ye, self.p.ce, self.p.sx, self.p.sy, self.p.sc = (
            n["xe"], n["ye"], n["ce"], n["sx"], n["sy"], n["sc"])
        self.p.mid, self.p.dram, self.p.reverse, self.p.peepholes = n["mid"], n["dram"], n["reverse"], n["peepholes"]
        self.p.load, self.p.initial, self.p.rows, self.p.params = n["load"], n["initial"], n["rows"], n["params"]
        self.p.x_from, self.p.x_base, self.p.x_pitch, self.p.x_sub = n["x_from"], n["x_base"], n["x_pitch"], n["x_sub"]
        self.p.y_pitch, self.p.y_base = n["y_pitch"], n["y_base"]
        self.p.kept, self.p.partials = n["kept"], n["partials"]
        self.p.dpu, self.p.add, self.p.link, self.p.quantise, self.p.lookup = (
            n["dpu"], n["add"], n["link"], n["quantise"], n["lookup"])
        self.p.p, self.p.tm, self.p.tc, self.p.z = n["p"], n["tm"], n["tc"], n["z"]
        self.p.tag, self.p.tag_x, self.p.share, self.p.region = n["tag"], n["tag_x"], n["share"], n["region"]
        self.p.stay, self.p.cell_at = n["stay"], n["cell_at"]
        for q in range(4):
            self.p.sw[q], self.p.sb[q], self.p.be[q], self.p.pe[q] = n["sw"][q], n["sb"][q], n["be"][q], n["pe"][q]
            self.p.weights[q], self.p.inputs_of[q] = n["weights"][q], n["inputs_of"][q]
            self.p.row_of[q] = n["row_of"][q]
            self.p.matrix[q], self.p.bank[q] = n["matrix"][q], n["bank"][q]
            self.p.held[q], self.p.row[q] = &held[q, 0], &rows[q, 0]
        self.p.held_size, self.p.row_size = held.shape[1], rows.shape[1]
        self.p.parts = len(part)
        self.p.part = &part[0, 0] if len(part) else NULL
        self.p.out, self.p.out_size, self.p.stored = &out[0], out.shape[0], &stored[0]
        self.p.members = <epur_member *>calloc(len(members), sizeof(epur_member))
        if self.p.members == NULL:
            raise MemoryError
        for q, given in enumerate(members):
            m = &self.p.members[q]
            m.steps, m.x, m.y, m.state, m.spill = given[:5]
            source, operands, values, initial, spilled, buffer, stamps = given[5:]
            m.source_size = source.shape[0]
            m.source, m.operands, m.values, m.initial = &source[0], &operands[0, 0], &values[0, 0], &initial[0]
            m.spilled = &spilled[0] if spilled is not None else NULL
            m.buffer, m.stamps = &buffer[0], &stamps[0]

    @property
    def wrong(self):
        """Reads that found something else than the arithmetic took."""
        return self.p.wrong

    def parameters(self, int64_t begin):
        """Fetch biases and peepholes; returns the bursts."""
        return self.walks.parameters(&self.p, begin)

    def state(self, int64_t member, int64_t begin, int64_t bursts, int64_t h_at, int64_t c_at):
        """The initial state of a sequence comes, behind so many bursts on the channel."""
        self.walks.state(&self.p, member, begin, bursts, h_at, c_at)

    def stage(self, int64_t cycle, int64_t source, int64_t size, int64_t target):
        """A row of the network's input to the intermediate memory."""
        self.walks.stage(&self.p, cycle, source, size, target)

    def prefetch(self, int64_t begin, int64_t pace):
        """All rows of weights come, `pace` cycles apart."""
        self.walks.prefetch(&self.p, begin, pace)

    def epur(self, int64_t t, int64_t count, int64_t left, int64_t start, int64_t step, int64_t pace, int64_t loaded):
        """`count` steps from t on in E-PUR's order for the first `left` sequences, `step` cycles apart.

        Returns the cycle of the last write of h.
        """
        cdef int64_t last
        with nogil:
            last = self.walks.epur(&self.p, t, count, left, start, step, pace, loaded)
        return last

    def stretch(self, int64_t begun, int64_t span, int64_t low, int64_t pace):
        """A stretch of `span` steps from `begun` on begins: its lowest true step, cycles between rows of W_x."""
        self.p.begun, self.p.span, self.p.low, self.p.pace = begun, span, low, pace

    def forward(self, int64_t k, int64_t count, int64_t loaded):
        """Forward products of `count` neurons from k on in MWL's order, over the stretch."""
        with nogil:
            self.walks.forward(&self.p, k, count, loaded)

    def tile(self, int64_t k, int64_t count, int64_t cycle):
        """Forward products of `count` neurons from k on, over the stretch; returns the cycle after."""
        cdef int64_t end
        with nogil:
            end = self.walks.tile(&self.p, k, count, cycle)
        return end

    def recurrent(self, int64_t t, int64_t count, int64_t start, int64_t step, int64_t here, int64_t pace, bint early):
        """`count` recurrent steps from t on of an order that stores sums, `step` cycles apart.

        Returns the cycle of the last write of h.
        """
        cdef int64_t last
        with nogil:
            last = self.walks.recurrent(&self.p, t, count, start, step, here, pace, early)
        return last

    def store(self, int64_t cycle, int64_t source, int64_t size, int64_t target):
        """From the intermediate memory to DRAM."""
        self.walks.store(&self.p, cycle, source, size, target)
