# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the rounding kernels: float32 arrays in and out.

Cython, because the loops run over bits of single values. Callers pass C-contiguous arrays of equal shapes (``out``
may be ``v``), formats as the plain numbers of ``rounding_api.h``, the number of the mode in ``formats.MODES``, and
counters (overflow, saturation, underflow) or None. ``words`` are random words, or None for those of (key, start).
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t


cdef extern from * nogil:
    """
    #include "cpu.h"
    #include "rounding_api.h"
    #if defined(__x86_64__)
    #define EPUR_ROUND(level, name, ...) \\
        ((level) >= 2 ? name##_avx512(__VA_ARGS__) \\
         : (level) == 1 ? name##_avx2(__VA_ARGS__) : name##_scalar(__VA_ARGS__))
    #else
    #define EPUR_ROUND(level, name, ...) name##_scalar(__VA_ARGS__)
    #endif
    #define epur_round_float(level, ...) EPUR_ROUND(level, round_float, __VA_ARGS__)
    #define epur_round_fixed(level, ...) EPUR_ROUND(level, round_fixed, __VA_ARGS__)
    #define epur_float_blocks(level, ...) EPUR_ROUND(level, round_float_blocks, __VA_ARGS__)
    #define epur_fixed_blocks(level, ...) EPUR_ROUND(level, round_fixed_blocks, __VA_ARGS__)
    """
    int epur_best()
    const char *epur_levels[6]
    ctypedef struct epur_float:
        int exponent_bits, mantissa_bits, subnormals, over
        float max
    ctypedef struct epur_fixed:
        int fraction_bits, over
        float min, max
    ctypedef struct epur_random:
        const uint32_t* words
        uint32_t key, start
    void epur_round_float(int, const float*, float*, ptrdiff_t, epur_float, int, epur_random, int64_t*)
    void epur_round_fixed(int, const float*, float*, ptrdiff_t, epur_fixed, int, epur_random, int64_t*)
    void epur_float_blocks(int, const float*, float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, epur_float, int, int64_t*)
    void epur_fixed_blocks(int, const float*, float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, epur_fixed, int, int64_t*)


#: Levels that this CPU has, plainest first; their order is their number.
LEVELS = tuple([epur_levels[k].decode() for k in range(epur_best() + 1)])


def round_float(int level, const float[::1] v, float[::1] out, int exponent_bits, int mantissa_bits, bint subnormals,
                int over, float max, int mode, const uint32_t[::1] words, uint32_t key, uint32_t start,
                int64_t[::1] seen):
    """Round v IN (n) to out OUT (n), a float format."""
    cdef epur_float f = epur_float(exponent_bits, mantissa_bits, subnormals, over, max)
    cdef const uint32_t* w = NULL
    if words is not None:
        w = &words[0]
    cdef epur_random r = epur_random(w, key, start)
    cdef int64_t* counters = NULL if seen is None else &seen[0]
    with nogil:
        epur_round_float(level, &v[0], &out[0], v.shape[0], f, mode, r, counters)


def round_fixed(int level, const float[::1] v, float[::1] out, int fraction_bits, int over, float min, float max,
                int mode, const uint32_t[::1] words, uint32_t key, uint32_t start, int64_t[::1] seen):
    """Round v IN (n) to out OUT (n), a fixed-point format."""
    cdef epur_fixed f = epur_fixed(fraction_bits, over, min, max)
    cdef const uint32_t* w = NULL
    if words is not None:
        w = &words[0]
    cdef epur_random r = epur_random(w, key, start)
    cdef int64_t* counters = NULL if seen is None else &seen[0]
    with nogil:
        epur_round_fixed(level, &v[0], &out[0], v.shape[0], f, mode, r, counters)


def round_float_blocks(int level, const float[:, ::1] v, float[:, ::1] out, ptrdiff_t block, int exponent_bits,
                       int mantissa_bits, int over, float max, int top, int64_t[::1] seen):
    """Round v IN (rows, columns) to out OUT in blocks of float elements whose largest exponent is `top`."""
    cdef epur_float f = epur_float(exponent_bits, mantissa_bits, 1, over, max)
    cdef int64_t* counters = NULL if seen is None else &seen[0]
    with nogil:
        epur_float_blocks(level, &v[0, 0], &out[0, 0], v.shape[0], v.shape[1], block, f, top, counters)


def round_fixed_blocks(int level, const float[:, ::1] v, float[:, ::1] out, ptrdiff_t block, int fraction_bits,
                       float min, float max, int64_t[::1] seen):
    """Round v IN (rows, columns) to out OUT in blocks of fixed-point elements q1.F."""
    cdef epur_fixed f = epur_fixed(fraction_bits, 0, min, max)
    cdef int64_t* counters = NULL if seen is None else &seen[0]
    with nogil:
        epur_fixed_blocks(level, &v[0, 0], &out[0, 0], v.shape[0], v.shape[1], block, f, 0, counters)
