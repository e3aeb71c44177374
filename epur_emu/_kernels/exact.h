/* Exact arithmetic of single operations, for every format and mode; the kernels' path where no fast one is proven.
 *
 * An operation's exact result is carried to its rounding by a double, a carrier: the result itself where a double holds
 * it, else a double with an odd last bit between the same neighbouring doubles with even ones ("rounded to odd"). A
 * format has at most 24 significant bits, a tie one more, the rests of stochastic rounding 12 more: all of them are
 * doubles with an even last bit, so that a carrier stands on the same side of each as the exact result. Exponentials,
 * sigmoids and tangents are as good: carriers on the exact result's side of every number of 37 bits.
 *
 * Operands are values of formats: 24 significant bits at most, magnitude 0 or between 2^-149 and 2^128.
 * Exactness needs rounding to nearest in the processor and -ffp-contract=off.
 */
#ifndef EPUR_EXACT_H
#define EPUR_EXACT_H

#include <math.h>
#include <string.h>

#include "datapath.h"

static inline uint64_t bits_of(double v) {
    uint64_t b;
    memcpy(&b, &v, sizeof b);
    return b;
}
static inline double from_bits(uint64_t b) {
    double v;
    memcpy(&v, &b, sizeof v);
    return v;
}
/* 2^e for a normal exponent. */
static inline double power(int e) { return from_bits((uint64_t)(e + 1023) << 52); }

/* Carrier of v + rest, v being the double nearest to that sum; only the rest's sign matters. */
static inline double odd(double v, double rest) {
    const uint64_t b = bits_of(v);
    if (rest == 0 || !(fabs(v) < INFINITY)) return v; /* sums are mostly exact in a double */
    const uint64_t step = 2 * (uint64_t)((rest > 0) == (v > 0)) - 1;
    return from_bits(b + (b & 1 ? 0 : step));
}

/* What a + b lost by being rounded to s; exact. */
static inline double lost(double a, double b, double s) {
    const double t = s - a;
    return (a - (s - t)) + (b - t);
}

static inline double sum_of(double a, double b) {
    const double s = a + b;
    return odd(s, lost(a, b, s));
}

/* Of two operands, a * b is its own carrier: 48 bits. A quotient by 0 is infinite, with the dividend's sign: zeros have
 * none. */
static inline double quotient_of(double a, double b) {
    const double q = a / (b + 0.0); /* -0 + 0 is 0 */
    if (!(fabs(q) < INFINITY) || !(fabs(b) < INFINITY)) return q;
    const double high = from_bits(bits_of(q) & ~(uint64_t)0x7ffffff); /* 26 bits; times b, and the rest's: exact */
    const double rest = (a - high * b) - (q - high) * b;
    return odd(q, b < 0 ? -rest : rest);
}

/* Carriers of functions; x is an operand, finite or not-a-number. Results outside 2^+-173 become 2^+-200. */
double exp_of(double x);
double sigmoid_of(double x);
double tanh_of(double x);

/* q >= 0 as an integer, the magnitude of a number of the given sign; below 2^52. No branches on data, which would be
 * guessed wrong every other time. */
static inline double whole(double q, int negative, int mode, uint32_t r12) {
    const double t = (q + 0x1p52) - 0x1p52;
    if (mode == NEAREST_EVEN) return t;
    if (mode == NEAREST_AWAY) return t + (q - t == 0.5);
    const int above = t > q, below = t < q;
    if (mode == STOCHASTIC) {
        const double floor_q = t - above;
        return floor_q + (((int)((q - floor_q) * 4096.0) + (int)r12) >> 12);
    }
    const int away = (mode == UPWARD && !negative) | (mode == DOWNWARD && negative);
    return t + ((below & away) - (above & !away));
}

/* Roundings that end outside a format, or begin there; not inline, as they are rare. */
double out_of_range(double v, const fmt *f, int mode, seen *n);
double wrapped(double v, double rest, const fmt *f, int mode, uint32_t r12, seen *n);

static inline double rnd_fixed(double v, const fmt *f, int mode, uint32_t r12, seen *n) {
    const double q = fabs(v) * power(f->places);
    if (!(q < 0x1p52)) return f->overflow == WRAP ? wrapped(v, 0, f, mode, r12, n) : out_of_range(v, f, mode, n);
    const double t = whole(q, v < 0, mode, r12), r = (v < 0 ? -t : t) * power(-f->places);
    if (r > f->max || r < f->min)
        return f->overflow == WRAP ? wrapped(v, 0, f, mode, r12, n) : out_of_range(v, f, mode, n);
    n->underflow += (t == 0) & (v != 0);
    return r + 0.0; /* not -0 */
}

/* The value of f that an exact result, given by its carrier (below 2^900 if finite), is rounded to; r12 is the
 * operation's random number. Where f raises, the result saturates and `saturation` tells the caller. */
static inline double rnd(double v, const fmt *f, int mode, uint32_t r12, seen *n) {
    if (f->kind == FIXED) return rnd_fixed(v, f, mode, r12, n);
    const uint64_t magnitude = bits_of(v) & ~((uint64_t)1 << 63), sign = bits_of(v) ^ magnitude;
    const int exponent = (int)(magnitude >> 52) - 1023;
    if (exponent == 1024) return out_of_range(v, f, mode, n);
    /* Without subnormals the exponent goes on below, where one more is enough: what is less still becomes 0. */
    const int least = f->min_exp - !f->subnormal;
    const int unit = (exponent > least ? exponent : least) - f->places;
    const double q = from_bits(magnitude) * power(-unit), t = whole(q, sign != 0, mode, r12);
    double r = t * power(unit);
    if (r > f->max) return out_of_range(v, f, mode, n);
    if (f->subnormal) {
        n->underflow += (exponent < f->min_exp) & (t != q);
    } else if (exponent < f->min_exp) {
        n->underflow += q != 0;
        if (r < power(f->min_exp)) r = 0;
    }
    return from_bits(bits_of(r) | sign) + 0.0; /* not -0 */
}

/* round(a + b); unlike rnd(sum_of(a, b), ...) also where the sum of large operands wraps. */
static inline double rnd_sum(double a, double b, const fmt *f, int mode, uint32_t r12, seen *n) {
    const double s = a + b, rest = lost(a, b, s);
    if (f->overflow == WRAP && rest != 0) return wrapped(s, rest, f, mode, r12, n);
    return rnd(odd(s, rest), f, mode, r12, n);
}

/* Most elements of a sub-vector. */
#define EXACT_WIDTH 256

/* One gate of one neuron: `acc`, a value of the accumulator's format, goes on over `subs` sub-vectors of `width` (a
 * power of two) elements.
 *   w   IN  element (s, j) at w[(s * width + j) * w_stride];  x  IN  at x[s * x_pitch + j]
 *           operands, rounded; padding is +0 in both
 *   key, first   the neuron's key and the number of the first sub-vector (stochastic rounding, width 16 only)
 *   n   INOUT (PLACES)
 */
double exact_dot(double acc, const float *w, ptrdiff_t w_stride, const float *x, ptrdiff_t x_pitch, ptrdiff_t subs,
                 int width, const unit *u, uint32_t key, uint32_t first, seen *n);

/* MWL's sum of the recurrent and the stored part, in the accumulator's format. */
double exact_join(double recurrent, double stored, const unit *u, uint32_t key, seen *n);

/* The MU's operations on one cell.
 *   u     IN (4) units of the gates i, f, g, o;  keys IN (4) of the neuron's gates
 *   sum   IN (4) the DPUs' results;  bias IN (4), peep IN (3: i, f, o) or NULL: values of the MU's formats
 *   c     INOUT a value of u[2]'s CELL;  h OUT a value of u[3]'s OUTPUT
 *   n     INOUT (4, PLACES)
 */
void exact_mu(const unit *u, const double *sum, const double *bias, const double *peep, double *c, double *h,
              const uint32_t *keys, seen (*n)[PLACES]);

/* An activation of a value of the MU's format, tanh or sigmoid, not stochastic; n INOUT (PLACES). */
double exact_activation(const unit *u, int tangent, double r, seen *n);

#endif
