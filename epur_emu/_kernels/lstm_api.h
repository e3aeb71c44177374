/* What the kernels of a pass take and give; `dot_chain.h`, `dot_general.h`, `mu_narrow.h`, `mu_wide.h` say what they do. */
#ifndef EPUR_LSTM_API_H
#define EPUR_LSTM_API_H

#include <stddef.h>
#include <stdint.h>

#include "datapath.h"

/* How a weight is stored: an fp16 code, the upper half of a float32, a float32; the second, but with each sub-vector's pairs of
 * neurons one after the other: (8 pairs, 16 inputs, 2), for `dot_pairs`. */
enum { HALF, TOP, WIDE, PAIRED };

/* W_x or W_h of a pass: (rows + 1, subs * 16 inputs, 16 neurons). Row 4 b + g holds gate g of the neurons of block b; the
 * last one is all zero, for groups of rows that are not full. */
typedef struct {
    const void *w;
    int store;
    ptrdiff_t rows, subs;
} matrix;

/* Constants of `dot_chain`: 2^(24 - precision) of products (0: float32 itself), of the tree and of the accumulator
 * (1: float32 itself), 1.5 * least normal product, and least normal product. Without subnormals: what takes products and the
 * tree, and what then takes these to the accumulator, to where float32 has none (0 and 1: does not apply). */
typedef struct {
    float product, tree, acc, least, normal, domain, join;
} chain;

/* Constants of `dot_general`, `dot_wide` and of the MU for one format: the unit of a result is 2^-places times the larger of
 * its power of two (`mask` all of the exponent's bits; 0: fixed point) and `least`. */
typedef struct {
    uint32_t mask;
    float least, half, magic; /* 2^-(places + 1); 1.5 * 2^(23 - places), 0: float32 itself; float64: 1.5 * 2^(52 - places) */
    float max, normal;        /* results beyond max are left to the exact path; least normal value, 0: none */
    float flush;              /* results below become 0 */
    float one;                /* 2^-places */
} lanes;

typedef struct {
    lanes place[3]; /* products, tree, accumulator */
    int mode;
    int innocuous; /* nearest even: whether all sums may be rounded to float32 first; */
    int within[3]; /* those of products, of a tree's sums, in the accumulator */
    int narrows;   /* whether a sum below the normal range may be inexact */
    int exact_products; /* whether their format holds all of them */
} general;

/* What `dot_general` and `dot_wide` look out for, flags: whether the accumulator leaves its range (`dot_wide`: always), underflows, whether
 * products and tree leave theirs. With that: that floats among these do not, nor become infinite; that the accumulator does not. */
enum { NOTHING = 0, RANGE = 1, COUNTS = 2, LIMITS = 4, TAME = 8, LAST_SAFE = 16 };

/* What the MU's fast form takes; tables are indexed by codes and hold results' codes, see `mu_narrow.h`. */
typedef struct {
    lanes format;
    int mode, store, same, infinite; /* same: the DPU's results are values of the format already; infinite: it has infinities */
    float limit, clip; /* of the cell's tanh and of gates */
    const float *bias, *peep; /* (blocks, 4, 16) and (blocks, 3, 16) or NULL */
    const uint32_t *sigmoid, *tanh;
} mu_call;

/* One vector as `underflows` takes it; list IN (inputs), see `underflows.h`. */
typedef struct {
    uint32_t at; /* of the input's weights in a row */
    uint16_t threshold, s;
} column;
typedef struct {
    ptrdiff_t plain, tested;
    column *list;
} columns;

/* What the MU's wide form takes, see `mu_wide.h`; slopes and intercepts as a `unit` has them. */
typedef struct {
    lanes place[3]; /* the MU's, the cell's, the output's, of float64 */
    int mode, method, segments;
    float limit, clip;
    const float *bias, *peep;
    const double *slope, *intercept;
} mu_wides;

/* acc[v] += W x[v] for the vectors that `take` names and the rows in `order`.
 *   order IN    (count, a multiple of 4) rows of W: all of one gate, or of all gates where their formats agree
 *   x     IN    (subs, nv, 16), values of the input's format
 *   acc   INOUT (nv, pitch / 16, 16), values of the accumulator's format
 *   take  IN    (nv)
 * dot_pairs: the same, of weights that are PAIRED; `back`: rows in reverse.
 * dot_halves: the same, of weights that are HALF.
 * columns, underflows: how many products with one vector are inexact below 2^normal, where exact ones are multiples of 2^least. W is
 *            stored as HALF. With AVX-512 only.
 * mu_narrow: acc IN (4, 16) sums of one block, c INOUT (16), h OUT (16); 0 if the block is left to the exact path.
 * extent, to_half: see `lanes.h`.
 * mu_wide: the same; its seen are the MU's, the cell's and the output's.
 * int_values: values OUT of the MU's format (of float64) of integer sums (4, 16) times scales (4, 16); 0 likewise.
 * join:      recurrent sums INOUT (n, a multiple of 16) plus stored ones; 0 likewise.
 */
#define EPUR_DOT_API(suffix)                                                                                          \
    void dot_chain##suffix(const matrix *, const chain *, const int32_t *order, ptrdiff_t count, const float *x,       \
                           float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, int64_t *underflow);        \
    void dot_general##suffix(const matrix *, const general *, const unit *, const int32_t *order, ptrdiff_t count,     \
                             const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv,           \
                             const uint32_t *step_keys, ptrdiff_t first_sub, int watching, seen *);                     \
    void dot_wide##suffix(const matrix *, const general *, const unit *, const int32_t *order, ptrdiff_t count,        \
                          const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv,              \
                          const uint32_t *step_keys, ptrdiff_t first_sub, int watching, seen *);                        \
    void columns##suffix(columns *, const float *x, ptrdiff_t pitch, ptrdiff_t inputs, int normal, int least);         \
    int64_t underflows##suffix(const matrix *, const int32_t *order, ptrdiff_t count, const columns *);                \
    int mu_narrow##suffix(const mu_call *, ptrdiff_t block, const float *acc, float *c, float *h, seen *);              \
    int mu_wide##suffix(const mu_wides *, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *); \
    int int_values##suffix(const lanes *, int mode, ptrdiff_t block, const int32_t *acc, const double *scale, float *sums,   \
                           uint32_t step_key, uint32_t operation, seen *);                                             \
    int join##suffix(const general *, float *acc, const float *stored, ptrdiff_t n, seen *);                           \
    int extent##suffix(const float *x, ptrdiff_t subs, ptrdiff_t pitch, float *top, float *least);                     \
    int to_half##suffix(const float *v, float *to, ptrdiff_t count, int64_t *underflow);

EPUR_DOT_API(_scalar)
#if defined(__x86_64__)
#define EPUR_X86 1
EPUR_DOT_API(_avx2)
EPUR_DOT_API(_avx512)
#endif
void dot_pairs(const matrix *, const chain *, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch,
               const uint8_t *take, ptrdiff_t nv, int back);
void dot_halves(const matrix *, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take,
                ptrdiff_t nv);

/* 16 neurons of one row by the exact path. */
void exact_row(const matrix *m, const unit *u, ptrdiff_t row, const float *x, ptrdiff_t x_pitch, float *acc,
               uint32_t step_key, ptrdiff_t first_sub, seen *n);

#endif
