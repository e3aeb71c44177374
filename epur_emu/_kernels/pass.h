/* One pass of a layer, ready to be evaluated: packed weights, formats, and which kernel each gate's products go through. */
#ifndef EPUR_PASS_H
#define EPUR_PASS_H

#include "crew.h"
#include "lstm_api.h"
#include "lstm_int_api.h"

/* How a vector of float32 values becomes operands of the DPU. */
enum { AS_IT_IS, ROUNDED, CODED, BLOCKED };
typedef struct {
    int kind;
    fmt format;          /* ROUNDED; BLOCKED: of the elements */
    int largest;         /* CODED: largest code, */
    double alpha;        /* the value that it stands for, */
    const float *values; /* and what the codes -largest ... largest are for the multiplier, or NULL: integers */
    int block, max_exp;  /* BLOCKED */
} operand;

enum { BY_CHAIN, BY_GENERAL, BY_EXACT, BY_INTEGERS, BY_WIDE, BY_PAIRS, BY_HALVES };

enum { PARTIAL = PLACES, INPUT, COUNTED }; /* further places that are counted */

/* Gates whose DPUs have the same arithmetic. */
typedef struct {
    int path;
    const int32_t *order; /* rows, padded to a multiple of 4 with the matrix's last one */
    ptrdiff_t count, real;
    chain chain;
    general general;
    matrix w[2]; /* W_x, W_h */
    double norm[2], part[2], low[2]; /* largest sum of a row's, of a sub-vector's magnitudes; least magnitude but 0 */
    double limit, tree_limit; /* sums of magnitudes up to these can't overflow: of a row, of a sub-vector */
    double tame_limit; /* likewise, but of floats that don't saturate only: of a sub-vector; */
    int wraps, wraps_far; /* whether products or trees wrap, and whether float32 lanes then can't go on; */
    int far; /* whether they can't after what was infinite, as fixed point or a tree that saturates has it */
    double lanes_limit;   /* of a sub-vector: up to this float32 lanes round exactly, */
    double least_product; /* and down to this product */
    operand operand[2];  /* of x and h */
    int counts_input;    /* whether their rounding counts: once for each format */
    int_matrix codes[2]; /* BY_INTEGERS */
    int_width width[4];
    const double *scale; /* (blocks, 4, 16): what an integer sum is multiplied by */
    int in_lanes; /* whether `int_values` can take them into the MU's format, */
    lanes result; /* of float64 */
} group;

typedef struct {
    int level, counted, groups, integers; /* integers: whether some group is BY_INTEGERS */
    ptrdiff_t cells, blocks, subs_x;
    ptrdiff_t from, to; /* blocks whose W_x is there: `pass_forward` makes their sums; from > 0: with the room of the call for 0 */
    unit unit[4];
    group group[4];
    const float *bias, *peep; /* (blocks, 4, 16); (blocks, 3, 16) or NULL: i, f, o */
    int narrow_mu, wide_mu; /* whether one of these is to be used: */
    int padded; /* whether they may do a block that is padded, as `pass_padding` says */
    mu_call mu;
    mu_wides wides;
    operand output;           /* CODED, or AS_IT_IS */
    uint32_t key;             /* mix(mix(seed) ^ pass) */
} pass;

/* Time steps or states that are evaluated side by side.
 *   x     IN   (nv, inputs)
 *   sums  OUT  (nv, blocks * 4 + 1, 16) forward sums; isums OUT (groups, nv, blocks * 64) of integers, or NULL
 *   bound OUT  (nv, groups) bounds of their terms' sums
 *   first: number of the first time step; each one's is `stride` on
 *   n     INOUT (COUNTED); raised INOUT: gate and neuron of an integer sum that left its width (4 neuron + gate), or -1
 *   crew: threads that share the work, or NULL; room: bytes as pass_room says for so many
 */
void pass_forward(const pass *p, const float *x, ptrdiff_t inputs, float *sums, int32_t *isums, double *bound,
                  ptrdiff_t nv, uint32_t first, int stride, seen *n, int64_t *raised, crew *crew, void *room);

/* Integer forward sums as values of the MU's format, into `sums`. */
void pass_convert(const pass *p, float *sums, const int32_t *isums, ptrdiff_t nv, uint32_t first, seen *n);

/* One step of nv states: h and c INOUT (nv, blocks * 16); sums, isums, bound INOUT as `pass_forward` left them. `stored`
 * NULL: the recurrent part goes on in them; else (like sums) it begins anew and is added to these. */
void pass_step(const pass *p, float *sums, int32_t *isums, double *bound, const float *stored, float *h, float *c,
               ptrdiff_t nv, uint32_t first, int stride, seen *n, int64_t *raised, crew *crew, void *room);

/* Whether cells that pad a block, all zero, stay so in the MU and count nothing. */
int pass_padding(const pass *p);

/* The MU of one vector alone: sums IN (blocks * 4, 16), c INOUT and h OUT (blocks * 16), n INOUT (COUNTED). How many blocks were not left to
 * the exact path. */
ptrdiff_t pass_mu(const pass *p, const float *sums, float *c, float *h, uint32_t first, seen *n);

/* All time steps of a sequence: h and c INOUT (blocks * 16), out OUT (steps, blocks * 16). */
void pass_recurrent(const pass *p, float *sums, int32_t *isums, double *bound, int separate, float *h, float *c,
                    float *out, ptrdiff_t steps, int reverse, uint32_t first, seen *n, int64_t *raised, crew *crew, void *room);

/* `mu_call`'s table (65536) of an activation; codes without a value of the MU's format hold 0. 0 if some
 * argument leaves the format's range, so that there is no such table. */
int pass_table(const unit *u, int tangent, int store, uint32_t *table);

ptrdiff_t pass_room(const pass *p, ptrdiff_t nv, int parts);

#endif
