/* Integer dot products and codes: the functions that each CPU level gives, and the C types that they take.
 *
 * A matrix is packed by `epur_emu.integers.IntegerMatrix`: rows are blocks of 16 neurons times 4 gates (row = block * 4
 * + gate), inputs are padded to 16 with codes of 0. In this order: block of neurons, group of inputs, gate, neuron, input of the
 * group. A group is 4 inputs in int8 (narrow: no code of weight or input beyond +-127) or 2 in int16.
 */
#ifndef EPUR_LSTM_INT_API_H
#define EPUR_LSTM_INT_API_H

#include <stddef.h>
#include <stdint.h>

#include "datapath.h"

/* Inputs for which one bound of the sums is made. */
#define EPUR_INT_BLOCK 256
/* int32 for one vector of n codes, at places that share no cache set with its neighbours'. */
#define EPUR_INT_PITCH(n) ((n) / 2 + 16)

typedef struct {
    const void *codes;    /* packed */
    const double *energy; /* (ceil(inputs / EPUR_INT_BLOCK), blocks): largest sum of squares of a row's codes there */
    ptrdiff_t blocks, inputs;
    int narrow;
    int largest_w, largest_x; /* of the codes, 1 to 32767 */
} int_matrix;

/* Accumulator of one gate: two's complement of 2 to 32 bits; overflow: SATURATE, WRAP or RAISE. */
typedef struct {
    int bits, overflow;
} int_width;

/* Bytes of scratch that `dot_int` takes for nv vectors. */
static inline ptrdiff_t int_room(ptrdiff_t inputs, ptrdiff_t nv) {
    return 64 + nv * (4 * EPUR_INT_PITCH(inputs) + 12 * ((inputs + EPUR_INT_BLOCK - 1) / EPUR_INT_BLOCK));
}

/* dot_int: acc[v] = acc[v] + W x[v], one addition for each sub-vector of 16 inputs, in order.
 *   w      IN
 *   x      IN    (nv, inputs) codes
 *   acc    INOUT (nv, blocks, 4, 16), in range of its gate's width
 *   width  IN    (4)
 *   from, to IN  blocks of neurons
 *   back   IN    whether the last block of neurons comes first
 *   seen   INOUT (2): additions that went out of range (under RAISE, the result saturates); of those under RAISE the
 *                lowest index into acc, -1 before the first
 *   room         bytes as `int_room` says
 *
 * input_codes: q = x * largest / alpha, rounded to nearest even, clipped to +-largest; 0 for not-a-number.
 *   x      IN    (n)
 *   codes  OUT   (n)
 *   alpha  IN    a positive float32
 *   seen   INOUT (2): codes clipped; values other than 0 with code 0
 */
#define EPUR_INT_API(suffix)                                                                                          \
    void dot_int##suffix(const int_matrix *w, const int16_t *x, int32_t *acc, ptrdiff_t nv, const int_width *width,   \
                         ptrdiff_t from, ptrdiff_t to, int back, int64_t *seen, void *room);                                                        \
    void input_codes##suffix(const float *x, int16_t *codes, ptrdiff_t n, int largest, double alpha, int64_t *seen);

EPUR_INT_API(_scalar)
#if defined(__x86_64__)
EPUR_INT_API(_avx2)
EPUR_INT_API(_avx512)
EPUR_INT_API(_vnni)
#endif

#endif
