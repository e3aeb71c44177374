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


cdef extern from "probe.h" nogil:
    enum: ROLES
    ctypedef struct epur_row:
        int64_t component
    ctypedef struct epur_site:
        ptrdiff_t row
    ctypedef struct epur_log:
        epur_row *rows
        ptrdiff_t size
        epur_site *sites
        int64_t accesses
        int failed
    ctypedef struct epur_probe:
        int64_t width, burst, capacity, cells, inputs, steps, nx, nh
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
        int64_t rows, params, x, x_pitch, x_sub, x_dram, y, y_pitch, y_base, state, kept, partials
        int64_t dpu, add, link, quantise, lookup, p, tm, tc, z, tail, pace, tag
        float *source
        float *out
        float *buffer[4]
        float *latch[4]
        uint32_t *held[4]
        uint32_t *row[4]
        uint8_t *stored
        const float *values
        int64_t wrong
        epur_log *log
    int64_t fetch(epur_probe *, int64_t, int64_t, int64_t, const int64_t *, int, int, int64_t, int64_t)
    int64_t probe_parameters(epur_probe *, int64_t)
    void probe_state(epur_probe *, int64_t, int64_t, int64_t, int64_t, const float *)
    int64_t probe_epur(epur_probe *, int64_t, int64_t, int64_t, const float *, const float *)
    void probe_forward(epur_probe *, int64_t, int64_t, const float *)
    int64_t probe_recurrent(epur_probe *, int64_t, int64_t, const float *)
    void probe_store(epur_probe *, int64_t, int64_t, int64_t, int64_t)


cdef class Log:
    """Accesses as they are performed, neighbours at equal distances as one row of two nested loops."""

    cdef epur_log g
    cdef ptrdiff_t sites

    def __cinit__(self, ptrdiff_t components):
        memset(&self.g, 0, sizeof(self.g))
        self.sites = components * 2 * ROLES
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
    """One pass; `numbers` holds the integers of ``epur_probe``, lists of four by gate.

    Arrays, INOUT but values: source and out float32 (elements,), buffers and latches float32 (4, elements), held and
    rows uint32 (4, sub-vectors), stored uint8 (steps * cells * 4), values float32 (steps, cells).
    """

    cdef epur_probe p
    cdef list kept

    def __init__(self, Log log, numbers, float[::1] source, float[::1] out, float[:, ::1] buffers,
                 float[:, ::1] latches, uint32_t[:, ::1] held, uint32_t[:, ::1] rows, uint8_t[::1] stored,
                 const float[:, ::1] values):
        cdef int q
        memset(&self.p, 0, sizeof(self.p))
        self.kept = [log, source, out, buffers, latches, held, rows, stored, values]
        n = numbers
        self.p.log = &log.g
        self.p.width, self.p.burst, self.p.capacity = n["width"], n["burst"], n["capacity"]
        self.p.cells, self.p.inputs, self.p.steps = n["cells"], n["inputs"], n["steps"]
        self.p.nx, self.p.nh = n["nx"], n["nh"]
        self.p.xe, self.p.ye, self.p.ce, self.p.sx, self.p.sy, self.p.sc = (
            n["xe"], n["ye"], n["ce"], n["sx"], n["sy"], n["sc"])
        self.p.mid, self.p.dram, self.p.reverse, self.p.peepholes = n["mid"], n["dram"], n["reverse"], n["peepholes"]
        self.p.load, self.p.initial, self.p.rows, self.p.params = n["load"], n["initial"], n["rows"], n["params"]
        self.p.x, self.p.x_pitch, self.p.x_sub, self.p.x_dram = n["x"], n["x_pitch"], n["x_sub"], n["x_dram"]
        self.p.y, self.p.y_pitch, self.p.y_base, self.p.state = n["y"], n["y_pitch"], n["y_base"], n["state"]
        self.p.kept, self.p.partials, self.p.dpu, self.p.add = n["kept"], n["partials"], n["dpu"], n["add"]
        self.p.link, self.p.quantise, self.p.lookup = n["link"], n["quantise"], n["lookup"]
        self.p.p, self.p.tm, self.p.tc, self.p.z, self.p.tag = n["p"], n["tm"], n["tc"], n["z"], n["tag"]
        self.p.pace = n["pace"]
        for q in range(4):
            self.p.sw[q], self.p.sb[q], self.p.be[q], self.p.pe[q] = n["sw"][q], n["sb"][q], n["be"][q], n["pe"][q]
            self.p.weights[q], self.p.inputs_of[q] = n["weights"][q], n["inputs_of"][q]
            self.p.row_of[q] = n["row_of"][q]
            self.p.matrix[q], self.p.bank[q] = n["matrix"][q], n["bank"][q]
            self.p.buffer[q], self.p.latch[q] = &buffers[q, 0], &latches[q, 0]
            self.p.held[q], self.p.row[q] = &held[q, 0], &rows[q, 0]
        self.p.source, self.p.out = &source[0], &out[0]
        self.p.stored, self.p.values = &stored[0], &values[0, 0]

    @property
    def wrong(self):
        """Reads that found something else than the arithmetic took."""
        return self.p.wrong

    def parameters(self, int64_t begin):
        """Fetch biases and peepholes; returns the bursts."""
        return probe_parameters(&self.p, begin)

    def state(self, int64_t begin, int64_t bursts, int64_t h_at, int64_t c_at, const float[::1] h):
        """The initial state comes; h (nh * width,)."""
        probe_state(&self.p, begin, bursts, h_at, c_at, &h[0])

    def stage(self, int64_t cycle, int64_t source, int64_t size, int64_t target):
        """A row of the network's input to the intermediate memory."""
        fetch(&self.p, cycle, source, size, &self.p.mid, 1, 0, target, self.p.sx)

    def epur(self, int64_t t, int64_t start, int64_t loaded, const float[::1] x, const float[::1] h):
        """Step t in E-PUR's order; returns the cycle of its last write of h."""
        cdef int64_t last
        with nogil:
            last = probe_epur(&self.p, t, start, loaded, &x[0], &h[0])
        return last

    def forward(self, int64_t k, int64_t loaded, const float[:, ::1] x):
        """Forward products of neuron k in MWL's order."""
        with nogil:
            probe_forward(&self.p, k, loaded, &x[0, 0])

    def recurrent(self, int64_t t, int64_t start, const float[::1] h):
        """Recurrent step t in MWL's order; returns the cycle of its last write of h."""
        cdef int64_t last
        with nogil:
            last = probe_recurrent(&self.p, t, start, &h[0])
        return last

    def store(self, int64_t cycle, int64_t source, int64_t size, int64_t target):
        """From the intermediate memory to DRAM."""
        probe_store(&self.p, cycle, source, size, target)
