/* Weights as the kernels of a pass want them, see `matrix` in `lstm_api.h` and `int_matrix` in `lstm_int_api.h`: what each CPU level
 * gives. */
#ifndef EPUR_PACKING_API_H
#define EPUR_PACKING_API_H

#include <stddef.h>
#include <stdint.h>

/* Rows of one gate's weights IN (count, inputs): fp16 codes or float32. */
typedef struct {
    const void *values;
    int half;
    ptrdiff_t count, inputs;
} rows;

/* Of the rows so far: the largest sum of a row's magnitudes, of a sub-vector's; the least magnitude but 0. */
typedef struct {
    double norm, part, low;
} bounds;

/* Where integer codes go: the gate's place in a block of neurons, whose energy is the first of `blocks`. */
typedef struct {
    void *codes;
    double *energy;
    ptrdiff_t blocks;
    int narrow, largest;
} int_rows;

/* widened:     n fp16 codes IN to float32 OUT
 * magnitudes:  OUT (count) the largest finite one of each row, or 0
 * pack_rows:   rows, the first one of a block, into the gate's row of that block and of those that follow; codes OUT, or NULL: for
 *              bounds INOUT alone. 0 if the store can't hold them, or an fp16 code is not finite; codes and bounds are then of no use.
 *              drop: bits of fp16 codes' float32 values that are rounded off (to nearest even)
 * pack_codes:  rows times alpha by their scale IN (count) as codes, rounded to nearest even, clipped to +-largest; 0 for
 *              not-a-number. Energy INOUT; seen INOUT (2): codes clipped; values other than 0 with code 0
 */
#define EPUR_PACKING_API(level)                                                                     \
    void widened_##level(const uint16_t *codes, float *to, ptrdiff_t n);                            \
    void magnitudes_##level(const rows *, float *top);                                              \
    int pack_rows_##level(const rows *, int drop, int store, void *codes, bounds *);                \
    void pack_codes_##level(const rows *, const double *scale, double alpha, const int_rows *, int64_t *seen);

EPUR_PACKING_API(scalar)
#if defined(__x86_64__)
EPUR_PACKING_API(avx2)
EPUR_PACKING_API(avx512)
#endif

#endif
