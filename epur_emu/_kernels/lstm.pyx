# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the LSTM kernels: a pass is built from arrays and plain values, then evaluated over arrays.

Cython, because the loops run over single rounded operations. Callers pass C-contiguous arrays of the shapes that
``pass.h`` states; nothing is checked or raised here.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memset

import numpy as np


cdef extern from * nogil:
    """
    #include "cpu.h"
    #include "pass.h"
    """
    int epur_best()
    const char *epur_levels[6]
    ctypedef struct fmt:
        int kind, places, min_exp, overflow, subnormal
        double max, min, codes
    ctypedef struct seen:
        int64_t overflow, underflow, saturation, raised
    ctypedef struct unit:
        fmt place[6]
        int mode, method, segments
        double limit, clip
        const double *slope
        const double *intercept
    ctypedef struct matrix:
        const void *w
        int store
        Py_ssize_t rows, subs
    ctypedef struct chain:
        float product, tree, acc, least, normal, domain, join
    ctypedef struct lanes:
        uint32_t mask
        float least, half, magic, max, normal, flush, one
    ctypedef struct general:
        lanes place[3]
        int mode, innocuous, narrows, exact_products
        int within[3]
    ctypedef struct operand:
        int kind
        fmt format
        int largest
        double alpha
        const float *values
        int block, max_exp
    ctypedef struct int_matrix:
        const void *codes
        const double *energy
        Py_ssize_t blocks, inputs
        int narrow, largest_w, largest_x
    ctypedef struct int_width:
        int bits, overflow
    ctypedef struct group:
        int path
        const int32_t *order
        Py_ssize_t count, real
        chain chain
        general general
        matrix w[2]
        double norm[2]
        double part[2]
        double low[2]
        double limit, tree_limit, tame_limit, lanes_limit, least_product
        bint wraps, wraps_far, far
        operand operand[2]
        int counts_input
        int_matrix codes[2]
        int_width width[4]
        const double *scale
        int in_lanes
        lanes result
    ctypedef struct mu_call:
        lanes format
        int mode, store, same, infinite
        float limit, clip
        const float *bias
        const float *peep
        const uint32_t *sigmoid
        const uint32_t *tanh
    ctypedef struct mu_wides:
        lanes place[3]
        int mode, method, segments
        float limit, clip
        const float *bias
        const float *peep
        const double *slope
        const double *intercept
    ctypedef struct c_pass "pass":
        int level, counted, groups, integers
        Py_ssize_t cells, blocks, subs_x, from_ "from", to
        unit unit[4]
        group group[4]
        const float *bias
        const float *peep
        int narrow_mu, wide_mu, padded
        mu_call mu
        mu_wides wides
        operand output
        uint32_t key
    const int C_MOST "MOST_PARTS"
    void *aligned_alloc(size_t, size_t)
    ctypedef struct c_crew "crew":
        int parts
    void assist(c_crew *, int)
    void dismiss(c_crew *)
    void pass_forward(const c_pass *, const float *, Py_ssize_t, float *, int32_t *, double *, Py_ssize_t, uint32_t,
                      int, seen *, int64_t *, c_crew *, void *)
    void pass_convert(const c_pass *, float *, const int32_t *, Py_ssize_t, uint32_t, seen *)
    void pass_step(const c_pass *, float *, int32_t *, double *, const float *, float *, float *, Py_ssize_t, uint32_t,
                   int, seen *, int64_t *, c_crew *, void *)
    void pass_recurrent(const c_pass *, float *, int32_t *, double *, int, float *, float *, float *, Py_ssize_t, int,
                        uint32_t, seen *, int64_t *, c_crew *, void *)
    int pass_padding(const c_pass *)
    Py_ssize_t pass_mu(const c_pass *, const float *, float *, float *, uint32_t, seen *)
    int pass_table(const unit *, int, int, uint32_t *)
    Py_ssize_t pass_room(const c_pass *, Py_ssize_t, int)


#: Levels that this CPU has, plainest first; their order is their number.
LEVELS = tuple([epur_levels[k].decode() for k in range(epur_best() + 1)])


#: Most threads of a crew.
MOST_PARTS = C_MOST


cdef class Crew:
    """Threads that share the work of one: it calls the passes, the others `assist` until it calls `dismiss`."""

    cdef c_crew *c

    def __cinit__(self, int parts):
        self.c = <c_crew *>aligned_alloc(64, sizeof(c_crew))
        if self.c == NULL:
            raise MemoryError
        memset(self.c, 0, sizeof(c_crew))
        self.c.parts = parts

    def __dealloc__(self):
        free(self.c)

    def assist(self, int part):
        """What each of the others does: parts 1 and up."""
        with nogil:
            assist(self.c, part)

    def dismiss(self):
        """Let the others go."""
        dismiss(self.c)


cdef fmt format_of(values) except *:
    cdef fmt f
    f.kind, f.places, f.min_exp, f.overflow, f.subnormal = (int(v) for v in values[:5])
    f.max, f.min, f.codes = values[5:8]
    return f


cdef lanes lanes_of(values) except *:
    cdef lanes f
    f.mask = int(values[0])
    f.least, f.half, f.magic, f.max, f.normal, f.flush, f.one = values[1:8]
    return f


cdef unit unit_of(values) except *:
    """Points into the arrays of `values`, which the caller keeps."""
    cdef unit u
    cdef const double[::1] f64
    cdef int k
    memset(&u, 0, sizeof(unit))
    formats, u.mode, u.method, u.limit, u.clip, u.segments, slopes, intercepts = values
    for k in range(6):
        u.place[k] = format_of(formats[k])
    if slopes is not None:
        f64 = slopes
        u.slope = &f64[0]
        f64 = intercepts
        u.intercept = &f64[0]
    return u


cdef class Pass:
    """One pass of a layer as the kernels want it; keeps the arrays that it points into.

    Parameters
    ----------
    level, counted, cells, blocks, subs_x, key : int
    units : four of (formats (6 of 8 numbers), mode, method, limit, clip, segments, slopes, intercepts)
        Formats as ``fmt`` has them; slopes and intercepts float64 arrays or None.
    groups : up to four of dict
        Fields of ``group``; arrays for pointers.
    bias, peep : float32 array or None
    mu : dict or None
        Fields of ``mu_call``, or of ``mu_wides`` if it has ``places``.
    output : tuple or None
        An operand's fields.
    """

    cdef c_pass p
    cdef list kept

    def __init__(self, level, counted, cells, blocks, subs_x, key, units, groups, bias, peep, mu, output):
        cdef const float[::1] f32
        cdef const int32_t[::1] i32
        cdef const uint32_t[::1] u32
        cdef group *g
        cdef int n, k
        self.kept = [bias, peep]
        memset(&self.p, 0, sizeof(c_pass))
        self.p.level, self.p.counted, self.p.groups = level, counted, len(groups)
        self.p.cells, self.p.blocks, self.p.subs_x, self.p.key = cells, blocks, subs_x, key
        self.p.from_, self.p.to = 0, blocks
        for n in range(4):
            self.p.unit[n] = unit_of(units[n])
            self.kept.append(units[n])
        f32 = bias
        self.p.bias = &f32[0]
        if peep is not None:
            f32 = peep
            self.p.peep = &f32[0]
        for n, values in enumerate(groups):
            g = &self.p.group[n]
            g.path = values["path"]
            self.kept.append(values)
            i32 = values["order"]
            g.counts_input = values["counts_input"]
            g.order, g.count, g.real = &i32[0], len(values["order"]), values["real"]
            for k in range(2):
                self.operand_of(&g.operand[k], values["operand"][k])
            if "codes" in values:
                self.p.integers = 1
                self.integers(g, values)
            else:
                self.numbers(g, values)
        if mu is not None and "places" in mu:
            self.wide(mu)
        elif mu is not None:
            self.kept.append(mu)
            self.p.narrow_mu = 1
            self.p.mu.format = lanes_of(mu["format"])
            self.p.mu.mode, self.p.mu.store, self.p.mu.same = mu["mode"], mu["store"], mu["same"]
            self.p.mu.infinite = mu["infinite"]
            self.p.mu.limit, self.p.mu.clip = mu["limit"], mu["clip"]
            self.p.mu.bias, self.p.mu.peep = self.p.bias, self.p.peep
            u32 = mu["sigmoid"]
            self.p.mu.sigmoid = &u32[0]
            u32 = mu["tanh"]
            self.p.mu.tanh = &u32[0]
        if output is not None:
            self.operand_of(&self.p.output, output)
        self.p.padded = pass_padding(&self.p)

    cdef wide(self, mu):
        """A MU of `mu_wides`."""
        cdef mu_wides *t = &self.p.wides
        cdef const unit *u = &self.p.unit[0]
        cdef int k
        self.p.wide_mu = 1
        for k in range(3):
            t.place[k] = lanes_of(mu["places"][k])
        t.mode, t.method, t.segments, t.slope, t.intercept = u.mode, u.method, u.segments, u.slope, u.intercept
        t.limit, t.clip = mu["limit"], mu["clip"]
        t.bias, t.peep = self.p.bias, self.p.peep

    cdef operand_of(self, operand *o, values):
        cdef const float[::1] table
        kind, form, largest, alpha, codes, block, max_exp = values
        o.kind, o.largest, o.alpha, o.block, o.max_exp = kind, largest, alpha, block, max_exp
        if form is not None:
            o.format = format_of(form)
        if codes is not None:
            self.kept.append(codes)
            table = codes
            o.values = &table[0]

    cdef numbers(self, group *g, values):
        cdef const uint16_t[::1] codes
        cdef const float[::1] wide
        cdef int k
        c = values["chain"]
        g.chain.product, g.chain.tree, g.chain.acc, g.chain.least, g.chain.normal, g.chain.domain, g.chain.join = c
        for k in range(3):
            g.general.place[k] = lanes_of(values["lanes"][k])
            g.general.within[k] = values["within"][k]
        g.general.mode, g.general.innocuous, g.general.narrows = values["mode"], values["innocuous"], values["narrows"]
        g.general.exact_products = values["exact_products"]
        g.tame_limit, g.wraps, g.wraps_far = values["tame_limit"], values["wraps"], values["wraps_far"]
        g.far = values["far"]
        g.limit, g.tree_limit, g.lanes_limit = values["limit"], values["tree_limit"], values["lanes_limit"]
        g.least_product = values["least_product"]
        for k, (array, store, rows, subs, norm, part, low) in enumerate(values["w"]):
            if array is None:
                pass  # comes later, see `lend`
            elif store == 2:
                wide = array
                g.w[k].w = &wide[0]
            else:
                codes = array
                g.w[k].w = &codes[0]
            g.w[k].store, g.w[k].rows, g.w[k].subs, g.norm[k], g.part[k], g.low[k] = store, rows, subs, norm, part, low

    cdef integers(self, group *g, values):
        cdef const unsigned char[::1] codes
        cdef const double[::1] energy
        cdef const double[::1] scale
        cdef int k
        for k, m in enumerate(values["codes"]):
            codes, energy = m.codes, m.energy
            g.codes[k].codes, g.codes[k].energy = &codes[0], &energy[0]
            g.codes[k].blocks, g.codes[k].inputs, g.codes[k].narrow = m.blocks, m.inputs, m.narrow
            g.codes[k].largest_w, g.codes[k].largest_x = m.largest_w, m.largest_x
        for k in range(4):
            g.width[k].bits, g.width[k].overflow = values["width"][k]
        scale = values["scale"]
        g.scale = &scale[0]
        if values["result"] is not None:
            g.in_lanes, g.result = 1, lanes_of(values["result"])

    def lend(self, arrays, Py_ssize_t begin, Py_ssize_t end):
        """W_x of the neurons of some blocks for `forward`: bytes of each group, which the caller keeps until then."""
        cdef const unsigned char[::1] codes
        cdef matrix *m
        for n, array in enumerate(arrays):
            codes, m = array, &self.p.group[n].w[0]
            m.w = <const void *>(<uintptr_t>&codes[0] - begin * 4 * m.subs * 256 * (4 if m.store == 2 else 2))
        self.p.from_, self.p.to = begin, end

    def room(self, Py_ssize_t nv, int parts=1):
        """Bytes of scratch that a call over nv vectors takes in so many threads."""
        return pass_room(&self.p, nv, parts)

    def forward(self, const float[:, ::1] x, float[:, :, ::1] sums, int32_t[:, :, ::1] isums, double[:, ::1] bound,
                uint32_t first, int stride, int64_t[:, ::1] counts, int64_t[::1] raised, Crew crew, char[::1] room):
        """Forward sums of x IN (nv, I): see ``pass_forward``."""
        cdef c_crew *others = NULL if crew is None else crew.c
        cdef int32_t *integers = NULL if isums is None else &isums[0, 0, 0]
        with nogil:
            if x.shape[0]:
                pass_forward(&self.p, &x[0, 0], x.shape[1], &sums[0, 0, 0], integers, &bound[0, 0], x.shape[0],
                             first, stride, <seen *>&counts[0, 0], &raised[0], others, &room[0])

    def convert(self, float[:, :, ::1] sums, const int32_t[:, :, ::1] isums, uint32_t first, int64_t[:, ::1] counts):
        """Integer forward sums as values: see ``pass_convert``."""
        with nogil:
            if sums.shape[0]:
                pass_convert(&self.p, &sums[0, 0, 0], &isums[0, 0, 0], sums.shape[0], first, <seen *>&counts[0, 0])

    def step(self, float[:, :, ::1] sums, int32_t[:, :, ::1] isums, double[:, ::1] bound, float[:, ::1] h,
             float[:, ::1] c, uint32_t first, int stride, int64_t[:, ::1] counts, int64_t[::1] raised, char[::1] room):
        """One step of nv states: see ``pass_step``."""
        cdef int32_t *integers = NULL if isums is None else &isums[0, 0, 0]
        with nogil:
            if sums.shape[0]:
                pass_step(&self.p, &sums[0, 0, 0], integers, &bound[0, 0], NULL, &h[0, 0], &c[0, 0], sums.shape[0],
                          first, stride, <seen *>&counts[0, 0], &raised[0], NULL, &room[0])

    def multifunctional(self, const float[:, ::1] sums, float[::1] c, float[::1] h, uint32_t first,
                        int64_t[:, ::1] counts):
        """The MU alone: see ``pass_mu``."""
        return pass_mu(&self.p, &sums[0, 0], &c[0], &h[0], first, <seen *>&counts[0, 0])

    def recurrent(self, float[:, :, ::1] sums, int32_t[:, :, ::1] isums, double[:, ::1] bound, bint separate,
                  float[::1] h, float[::1] c, float[:, ::1] out, bint reverse, uint32_t first, int64_t[:, ::1] counts,
                  int64_t[::1] raised, Crew crew, char[::1] room):
        """All steps of a sequence: see ``pass_recurrent``."""
        cdef c_crew *others = NULL if crew is None else crew.c
        cdef int32_t *integers = NULL if isums is None else &isums[0, 0, 0]
        with nogil:
            if sums.shape[0]:
                pass_recurrent(&self.p, &sums[0, 0, 0], integers, &bound[0, 0], separate, &h[0], &c[0], &out[0, 0],
                               sums.shape[0], reverse, first, <seen *>&counts[0, 0], &raised[0], others, &room[0])


def activation_table(one, int tangent, int store):
    """Table (65536) of an activation for ``mu``, or None: see ``pass_table``. `one` as in `Pass`."""
    cdef unit u = unit_of(one)
    cdef uint32_t[::1] table = np.zeros(65536, np.uint32)
    return np.asarray(table) if pass_table(&u, tangent, store, &table[0]) else None
