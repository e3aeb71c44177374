/* What the kernels know of an arithmetic: plain C values, filled in by the caller (`lstm.pyx` from arrays of float64). */
#ifndef EPUR_DATAPATH_H
#define EPUR_DATAPATH_H

#include <stddef.h>
#include <stdint.h>

enum { NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UPWARD, DOWNWARD, STOCHASTIC };
enum { TO_INFINITY, TO_NAN, SATURATE, WRAP, RAISE }; /* what becomes of a result out of range */
enum { EPUR_EXP, EXACT, PWL };                        /* how activations are computed */
enum { FLOAT, FIXED };

/* A float or fixed-point format. A fixed-point value is a code times 2^-places. */
typedef struct {
    int kind;
    int places;    /* mantissa bits, or bits after the point */
    int min_exp;   /* float: exponent of the smallest normal value */
    int overflow;  /* one of the above; infinities go the same way, but for TO_INFINITY */
    int subnormal; /* float: whether there are values below the smallest normal one */
    double max, min; /* largest and smallest (fixed: 0 or negative; float: -max) values */
    double codes;  /* fixed: number of codes, for WRAP */
} fmt;

/* Counts of one place: finite results that became infinite or not-a-number, inexact results below the normal range,
 * saturated (or wrapped) ones; and those of the latter that a format with RAISE does not allow. */
typedef struct {
    int64_t overflow, underflow, saturation, raised;
} seen;

enum { PRODUCT, TREE, ACCUMULATOR, MU, CELL, OUTPUT, PLACES };

/* One gate's computation unit. */
typedef struct {
    fmt place[PLACES]; /* OUTPUT: float or fixed; a linear output has the MU's format here */
    int mode, method;
    double limit;  /* largest argument of an activation */
    double clip;   /* of a gate's, beforehand; infinite where there is none */
    int segments;  /* PWL */
    const double *slope, *intercept; /* PWL: of sigmoid (i, f, o), then of tanh, `segments` each: slope[kind * segments + k] */
} unit;

/* Where an operation stands, for stochastic rounding: key = mix(mix(mix(seed) ^ pass) ^ step); see docs/arithmetic.md. */
static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ x >> 16;
}
static inline uint32_t neuron_key(uint32_t step_key, uint32_t neuron, uint32_t gate) {
    return mix(step_key ^ (neuron * 4 + gate));
}
static inline uint32_t second_key(uint32_t key) { return mix(key ^ 0x9e3779b9U); }
static inline uint32_t random12(uint32_t key, uint32_t n) { return (key * n + second_key(key)) >> 20; }

#define OP_JOIN 0xfffff000U /* MWL's sum of recurrent and stored part */
#define OP_MU 0xffff0000U   /* the MU's first operation */

#endif
