# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the integer kernels: codes in, sums out.

Cython, because the loops run over single integer operations. Callers pass C-contiguous arrays of the shapes that
``lstm_int_api.h`` states; nothing is checked or raised here.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t


cdef extern from * nogil:
    """
    #include "cpu.h"
    #include "lstm_int_api.h"
    #if defined(__x86_64__)
    #define EPUR_INT(level, name, ...) \\
        ((level) >= 3 ? name##_vnni(__VA_ARGS__) \\
         : (level) == 2 ? name##_avx512(__VA_ARGS__) \\
         : (level) == 1 ? name##_avx2(__VA_ARGS__) : name##_scalar(__VA_ARGS__))
    #else
    #define EPUR_INT(level, name, ...) name##_scalar(__VA_ARGS__)
    #endif
    #define epur_dot_int(level, ...) EPUR_INT(level, dot_int, __VA_ARGS__)
    #define epur_input_codes(level, ...) EPUR_INT(level, input_codes, __VA_ARGS__)
    """
    int epur_best()
    const char *epur_levels[6]
    const int EPUR_INT_BLOCK, C_SATURATE "SATURATE", C_WRAP "WRAP", C_RAISE "RAISE"
    ctypedef struct int_matrix:
        const void* codes
        const double* energy
        ptrdiff_t blocks, inputs
        int narrow, largest_w, largest_x
    ctypedef struct int_width:
        int bits, overflow
    void epur_dot_int(int, const int_matrix*, const int16_t*, int32_t*, ptrdiff_t, const int_width*, ptrdiff_t,
                      ptrdiff_t, bint, int64_t*, void*)
    ptrdiff_t int_room(ptrdiff_t, ptrdiff_t)
    void epur_input_codes(int, const float*, int16_t*, ptrdiff_t, int, double, int64_t*)


#: Levels that this CPU has, plainest first; their order is their number.
LEVELS = tuple([epur_levels[k].decode() for k in range(epur_best() + 1)])

#: Inputs of a block of packed weights.
BLOCK = EPUR_INT_BLOCK

#: Numbers of what becomes of a sum out of range, by the name that ``FixedFormat.overflow`` has.
OVERFLOW = {"saturate": C_SATURATE, "wrap": C_WRAP, "raise": C_RAISE}


def dot(int level, const uint8_t[::1] codes, const double[::1] energy, bint narrow, int largest_w, int largest_x,
        const int16_t[:, ::1] x, int32_t[:, :, ::1] acc, const int32_t[:, ::1] widths, bint back, int64_t[::1] seen):
    """Add W x[v] to acc[v]: x IN (nv, inputs), acc INOUT (nv, blocks * 4, 16), widths IN (4, 2): bits, overflow."""
    cdef int_matrix w
    cdef int_width width[4]
    cdef char[::1] room = bytearray(int_room(x.shape[1], x.shape[0]))
    if not (acc.shape[0] and acc.shape[1] and x.shape[1]):
        return
    w.codes, w.energy = &codes[0], &energy[0]
    w.blocks, w.inputs = acc.shape[1] // 4, x.shape[1]
    w.narrow, w.largest_w, w.largest_x = narrow, largest_w, largest_x
    for gate in range(4):
        width[gate].bits, width[gate].overflow = widths[gate, 0], widths[gate, 1]
    with nogil:
        epur_dot_int(level, &w, &x[0, 0], &acc[0, 0, 0], x.shape[0], width, 0, w.blocks, back, &seen[0], &room[0])


def input_codes(int level, const float[::1] x, int16_t[::1] codes, int largest, double alpha, int64_t[::1] seen):
    """Codes OUT (n) of x IN (n)."""
    if x.shape[0]:
        with nogil:
            epur_input_codes(level, &x[0], &codes[0], x.shape[0], largest, alpha, &seen[0])
