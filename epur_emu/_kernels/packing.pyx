# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The boundary of the packing kernels: rows of weights in, what the LSTM's kernels multiply out.

Cython, because the loops run over bits of single values. Callers pass C-contiguous rows (count, inputs), uint16
for fp16 codes or float32, and flat bytes from a gate's place on; nothing is checked or raised here.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint16_t

ctypedef fused number:
    uint16_t
    float


cdef extern from * nogil:
    """
    #include "cpu.h"
    #include "packing_api.h"
    /* A level that is emulated elsewhere is none of this CPU's. */
    #define NATIVE(level) ((level) < epur_best() ? (level) : epur_best())
    #if defined(__x86_64__)
    #define EPUR_PACK(level, name, ...) \\
        ((level) >= 2 ? name##_avx512(__VA_ARGS__) \\
         : (level) == 1 ? name##_avx2(__VA_ARGS__) : name##_scalar(__VA_ARGS__))
    #else
    #define EPUR_PACK(level, name, ...) name##_scalar(__VA_ARGS__)
    #endif
    #define epur_widened(level, ...) EPUR_PACK(NATIVE(level), widened, __VA_ARGS__)
    #define epur_magnitudes(level, ...) EPUR_PACK(NATIVE(level), magnitudes, __VA_ARGS__)
    #define epur_pack_rows(level, ...) EPUR_PACK(NATIVE(level), pack_rows, __VA_ARGS__)
    #define epur_pack_codes(level, ...) EPUR_PACK(NATIVE(level), pack_codes, __VA_ARGS__)
    """
    ctypedef struct c_rows "rows":
        const void *values
        int half
        ptrdiff_t count, inputs
    ctypedef struct c_bounds "bounds":
        double norm, part, low
    ctypedef struct int_rows:
        void *codes
        double *energy
        ptrdiff_t blocks
        int narrow, largest
    void epur_widened(int, const uint16_t *, float *, ptrdiff_t)
    void epur_magnitudes(int, const c_rows *, float *)
    int epur_pack_rows(int, const c_rows *, int, int, void *, c_bounds *)
    void epur_pack_codes(int, const c_rows *, const double *, double, const int_rows *, int64_t *)


def widened(int level, const uint16_t[::1] codes, float[::1] to):
    """fp16 codes IN (n) to float32 OUT (n)."""
    with nogil:
        epur_widened(level, &codes[0], &to[0], codes.shape[0])


def magnitudes(int level, const number[:, ::1] values, float[::1] top):
    """Largest finite magnitude of each row OUT (count)."""
    cdef c_rows r = c_rows(&values[0, 0], number is uint16_t, values.shape[0], values.shape[1])
    with nogil:
        epur_magnitudes(level, &r, &top[0])


def pack_rows(int level, const number[:, ::1] values, int drop, int store, unsigned char[::1] codes,
              double[::1] bounds):
    """Rows into codes OUT or None, in a store of ``lstm_api.h``; bounds INOUT (3).

    Of fp16 codes the values' last `drop` bits as float32 are rounded off. False if the store can't hold them.
    """
    cdef c_rows r = c_rows(&values[0, 0], number is uint16_t, values.shape[0], values.shape[1])
    cdef void *to = NULL if codes is None else &codes[0]
    cdef int held
    with nogil:
        held = epur_pack_rows(level, &r, drop, store, to, <c_bounds *>&bounds[0])
    return bool(held)


def pack_codes(int level, const number[:, ::1] values, const double[::1] scale, double alpha, int largest, bint narrow,
               unsigned char[::1] codes, double[:, ::1] energy, ptrdiff_t first, int64_t[::1] seen):
    """Rows as integer codes OUT; energy INOUT (ceil(inputs / 256), blocks), from block `first` on; seen INOUT (2)."""
    cdef c_rows r = c_rows(&values[0, 0], number is uint16_t, values.shape[0], values.shape[1])
    cdef int_rows to = int_rows(&codes[0], &energy[0, first], energy.shape[1], narrow, largest)
    with nogil:
        epur_pack_codes(level, &r, &scale[0], alpha, &to, &seen[0])
