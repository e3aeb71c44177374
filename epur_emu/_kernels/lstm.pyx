# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the fp16 LSTM kernels: arrays in, arrays out.

Cython, because the loops run over single fp16 operations. Callers pass C-contiguous arrays of the shapes that
``lstm_fp16.h`` states; nothing is checked, allocated or raised here beyond the choice of the level.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint16_t


cdef extern from * nogil:
    """
    #include "lstm_fp16_api.h"
    #if defined(EPUR_X86)
    static int epur_best(void) {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
            return 0;
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") ? 2 : 1;
    }
    #define EPUR_CALL(level, name, ...) \\
        ((level) == 2 ? name##_avx512(__VA_ARGS__) \\
         : (level) == 1 ? name##_avx2(__VA_ARGS__) : name##_scalar(__VA_ARGS__))
    #else
    static int epur_best(void) { return 0; }
    #define EPUR_CALL(level, name, ...) name##_scalar(__VA_ARGS__)
    #endif
    #define epur_dot(level, ...) EPUR_CALL(level, dot, __VA_ARGS__)
    #define epur_mu(level, ...) EPUR_CALL(level, mu, __VA_ARGS__)
    #define epur_recurrent(level, ...) EPUR_CALL(level, recurrent, __VA_ARGS__)
    """
    int epur_best()
    const double EPUR_SAFE_SUM
    void epur_dot(int, const uint16_t*, const float*, float*, const uint8_t*, ptrdiff_t, ptrdiff_t,
                  ptrdiff_t, int64_t*)
    void epur_mu(int, const float*, const float*, const float*, float*, float*, float, const uint16_t*,
                 ptrdiff_t, ptrdiff_t, int64_t*)
    void epur_recurrent(int, const uint16_t*, const float*, const float*, const float*, float*, float*,
                        float*, float*, const double*, double, float, const uint16_t*, ptrdiff_t,
                        ptrdiff_t, int, int, int64_t*)


#: Levels that this CPU has, plainest first; their order is their number.
LEVELS = ("scalar", "avx2", "avx512")[:epur_best() + 1]

#: Bound of the sum of the magnitudes of a dot product's terms below which nothing can overflow.
SAFE_SUM = EPUR_SAFE_SUM

#: Most sub-vectors for which that bound holds.
SAFE_SUBS = 1024


def dot(int level, const uint16_t[:, :, ::1] w, const float[:, :, ::1] x, float[:, :, ::1] acc,
        const uint8_t[::1] safe, int64_t[::1] seen):
    """Add W x[v] to acc[v]: w IN (rows, inputs, 16), x IN (inputs / 16, nv, 16), acc INOUT (nv, rows, 16)."""
    with nogil:
        if acc.shape[0] and w.shape[0] and w.shape[1]:
            epur_dot(level, &w[0, 0, 0], &x[0, 0, 0], &acc[0, 0, 0], &safe[0], w.shape[0],
                     w.shape[1] // 16, acc.shape[0], &seen[0])


def mu(int level, const float[:, :, ::1] acc, const float[:, ::1] bias, const float[:, ::1] peep,
       float[:, ::1] c, float[:, ::1] h, float clamp, const uint16_t[::1] table, int64_t[::1] seen):
    """The MU on acc IN (nv, blocks * 4, 16): c INOUT and h OUT (nv, blocks * 16)."""
    cdef const float* p = NULL if peep is None else &peep[0, 0]
    with nogil:
        if acc.shape[0]:
            epur_mu(level, &acc[0, 0, 0], &bias[0, 0], p, &c[0, 0], &h[0, 0], clamp, &table[0],
                    acc.shape[1] // 4, acc.shape[0], &seen[0])


def recurrent(int level, const uint16_t[:, :, ::1] w, const float[:, :, ::1] forward,
              const float[:, ::1] bias, const float[:, ::1] peep, float[::1] h, float[::1] c,
              float[:, ::1] out, float[::1] scratch, const double[::1] bound, double norm, float clamp,
              const uint16_t[::1] table, bint reverse, bint separate, int64_t[::1] seen):
    """The recurrent part over forward IN (steps, blocks * 4, 16): h, c INOUT, out OUT (steps, blocks * 16).

    scratch has room for 4 times the length of h.
    """
    cdef const float* p = NULL if peep is None else &peep[0, 0]
    with nogil:
        if forward.shape[0]:
            epur_recurrent(level, &w[0, 0, 0], &forward[0, 0, 0], &bias[0, 0], p, &h[0], &c[0], &out[0, 0],
                           &scratch[0], &bound[0], norm, clamp, &table[0],
                           forward.shape[0], h.shape[0] // 16, reverse, separate, &seen[0])
