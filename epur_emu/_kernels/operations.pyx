# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary through which tests reach the exact arithmetic of ``exact.h``: arrays in, arrays out.

A format is a row of 8 float64, the fields of ``fmt`` in ``datapath.h`` in their order. Nothing is checked.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset


cdef extern from "exact.h" nogil:
    ctypedef struct fmt:
        int kind, places, min_exp, overflow, subnormal
        double max, min, codes
    ctypedef struct seen:
        int64_t overflow, underflow, saturation, raised
    ctypedef struct unit:
        fmt place[6]
        int mode, method
        double limit, clip
        int segments
        const double* slope
        const double* intercept
    double rnd(double, const fmt*, int, uint32_t, seen*)
    double rnd_sum(double, double, const fmt*, int, uint32_t, seen*)
    double quotient_of(double, double)
    double exp_of(double)
    double sigmoid_of(double)
    double tanh_of(double)
    double exact_dot(double, const float*, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t, int,
                     const unit*, uint32_t, uint32_t, seen*)
    double exact_join(double, double, const unit*, uint32_t, seen*)
    void exact_mu(const unit*, const double*, const double*, const double*, double*, double*,
                  const uint32_t*, seen (*)[6])


#: Operations of `operate`, their order is their number.
OPERATIONS = ("none", "multiply", "add", "divide", "exp", "sigmoid", "tanh")


cdef fmt _format(const double[::1] row) noexcept nogil:
    cdef fmt f
    f.kind, f.places, f.min_exp = <int>row[0], <int>row[1], <int>row[2]
    f.overflow, f.subnormal = <int>row[3], <int>row[4]
    f.max, f.min, f.codes = row[5], row[6], row[7]
    return f


cdef unit _unit(const double[:, ::1] formats, int mode) noexcept nogil:
    cdef unit u
    cdef int i
    for i in range(6):
        u.place[i] = _format(formats[i])
    u.mode = mode
    return u


cdef void _add(int64_t* counts, const seen* n, int places) noexcept nogil:
    cdef int i
    for i in range(places):
        counts[3 * i] += n[i].overflow
        counts[3 * i + 1] += n[i].underflow
        counts[3 * i + 2] += n[i].saturation


def operate(int operation, const double[::1] a, const double[::1] b, const double[::1] row, int mode,
            const uint32_t[::1] r12, double[::1] out, int64_t[::1] counts):
    """Round an operation's exact results: a, b IN and out OUT (n); counts INOUT (3): overflow, underflow, saturation.

    Operations of one operand read only `a`; "none" rounds `a` itself.
    """
    cdef fmt f = _format(row)
    cdef seen n
    cdef double v = 0
    cdef ptrdiff_t i
    memset(&n, 0, sizeof(n))
    with nogil:
        for i in range(a.shape[0]):
            if operation == 2:
                out[i] = rnd_sum(a[i], b[i], &f, mode, r12[i], &n)
                continue
            elif operation == 0:
                v = a[i]
            elif operation == 1:
                v = a[i] * b[i]
            elif operation == 3:
                v = quotient_of(a[i], b[i])
            elif operation == 4:
                v = exp_of(a[i])
            elif operation == 5:
                v = sigmoid_of(a[i])
            else:
                v = tanh_of(a[i])
            out[i] = rnd(v, &f, mode, r12[i], &n)
    _add(&counts[0], &n, 1)


def dot(double acc, const float[:, ::1] w, const float[:, ::1] x, const double[:, ::1] formats, int mode,
        uint32_t key, uint32_t first, int64_t[:, ::1] counts):
    """The accumulator after sub-vectors w, x IN (subs, width); formats IN (6, 8), counts INOUT (6, 3)."""
    cdef unit u = _unit(formats, mode)
    cdef seen[6] n
    memset(n, 0, sizeof(n))
    acc = exact_dot(acc, &w[0, 0], 1, &x[0, 0], x.shape[1], x.shape[0], <int>x.shape[1], &u, key, first, n)
    _add(&counts[0, 0], n, 6)
    return acc


def join(double recurrent, double stored, const double[:, ::1] formats, int mode, uint32_t key,
         int64_t[:, ::1] counts):
    """MWL's sum; formats IN (6, 8), counts INOUT (6, 3)."""
    cdef unit u = _unit(formats, mode)
    cdef seen[6] n
    memset(n, 0, sizeof(n))
    recurrent = exact_join(recurrent, stored, &u, key, n)
    _add(&counts[0, 0], n, 6)
    return recurrent


def mu(const double[:, :, ::1] formats, int mode, int method, const double[::1] limits,
       const double[:, :, ::1] slopes, const double[:, :, ::1] intercepts, const double[::1] sums,
       const double[::1] bias, const double[::1] peep, double c, const uint32_t[::1] keys,
       int64_t[:, :, ::1] counts):
    """(c_t, h_t) of one cell whose state was c.

    Gates i, f, g, o first: formats IN (4, 6, 8), limits, sums, bias, keys IN (4), slopes and intercepts IN
    (4, 2, segments), counts INOUT (4, 6, 3); peep IN (3) or None.
    """
    cdef unit[4] units
    cdef seen[4][6] n
    cdef const double* p = NULL
    cdef double h = 0
    cdef int q
    if peep is not None:
        p = &peep[0]
    for q in range(4):
        units[q] = _unit(formats[q], mode)
        units[q].method, units[q].limit, units[q].segments = method, limits[q], <int>slopes.shape[2]
        units[q].clip = limits[q]
        units[q].slope, units[q].intercept = &slopes[q, 0, 0], &intercepts[q, 0, 0]
    memset(n, 0, sizeof(n))
    exact_mu(units, &sums[0], &bias[0], p, &c, &h, &keys[0], n)
    _add(&counts[0, 0, 0], n[0], 24)
    return c, h
