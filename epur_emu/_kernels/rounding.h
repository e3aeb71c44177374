/* Rounding of float32 values to float, fixed-point and block formats, in every mode, one definition for all CPU levels:
 * plain C without branches in its loops, which the compiler makes vectors of where the file that includes this names a
 * CPU's instructions. So levels can't differ. The file defines LEVEL(name).
 *
 * Normal values. The bits of |v| as an integer count units of the last place, and carry into the exponent by
 * themselves: adding a bias and cutting the lower bits off rounds. The bias is half a unit less 1 plus the last bit
 * kept (to nearest even), half a unit, nothing, a unit less 1, or the random number.
 * Without mantissa bits the last bit kept is the leading one, 1, not the exponent's last.
 *
 * Multiples of one unit u: subnormals, and fixed point. Below 2^23 u, |v| + 2^23 u has u as its last place, so that the
 * sum rounds to nearest even and the difference brings back a multiple of u, exactly. One unit less where that is more
 * than |v| is |v| rounded towards zero; the rest is exact and decides in the other modes.
 * A format with float32's exponents (8 bits) has float32's subnormals: their bits count units too, nothing is special.
 *
 * Without subnormals, what rounds below the smallest normal value is 0. There float32's own subnormals, with 8 exponent
 * bits, are shifted by one first: only the binade below the smallest normal value can reach it.
 */
#if defined(__GNUC__) && !defined(__clang__)
/* Else gcc keeps or makes branches in the loops; no value depends on these. */
#pragma GCC optimize("no-trapping-math", "no-tree-pre", "no-thread-jumps")
#endif

#include <math.h>
#include <string.h>

#include "rounding_api.h"

#define INLINE static inline __attribute__((always_inline))
#define INFINITE 0x7f800000u
#define NOT_A_NUMBER 0x7fc00000u
#define SIGN 0x80000000u
#define LEAST_NORMAL 0x00800000u /* of float32 */
#define CHUNK 4096               /* values that 32-bit counters can count */

INLINE uint32_t bits_of(float v) {
    uint32_t b;
    memcpy(&b, &v, sizeof b);
    return b;
}
INLINE float float_of(uint32_t b) {
    float v;
    memcpy(&v, &b, sizeof v);
    return v;
}
/* 2^k for -149 <= k <= 127 */
INLINE float power(int k) { return float_of(k >= -126 ? (uint32_t)(k + 127) << 23 : 1u << (k + 149)); }

INLINE uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

enum { EVEN, BIASED, RANDOM };                /* how the modes are computed */
enum { KEPT, ON_GRID, FLUSHED, FLUSHED_8 };   /* values below the smallest normal one */
enum { OVERFLOW, SATURATION, UNDERFLOW };     /* places of the counters */

INLINE int kind_of(int mode) { return mode == NEAREST_EVEN ? EVEN : mode == STOCHASTIC ? RANDOM : BIASED; }

/* Multiples of u: what to_grid needs. */
typedef struct {
    float shift, unit, per_unit;    /* 2^23 u, u, 2^12 / u */
    float threshold[2];             /* a rest from here on rounds away from zero, for v >= 0 and v < 0 */
} grid;

INLINE grid grid_of(int exponent, int mode) {
    const float never = INFINITY, always = 0x1p-149f, half = power(exponent - 1);
    grid g = {power(exponent + 23), power(exponent), power(12 - exponent), {never, never}};
    if (mode == NEAREST_AWAY) g.threshold[0] = g.threshold[1] = half;
    if (mode == UP) g.threshold[0] = always;
    if (mode == DOWN) g.threshold[1] = always;
    return g;
}

/* A magnitude below 2^23 units. */
INLINE float to_grid(float a, uint32_t negative, const grid *g, int kind, uint32_t random) {
    const float even = (a + g->shift) - g->shift;
    if (kind == EVEN) return even;
    const float below = even - (even > a ? g->unit : 0.0f), rest = a - below;
    const float threshold = negative ? g->threshold[1] : g->threshold[0];
    const int32_t part = (int32_t)(rest < g->unit ? rest * g->per_unit : 0.0f) + (int32_t)random;
    const int away = kind == RANDOM ? part >= 4096 : rest >= threshold;
    return below + (away ? g->unit : 0.0f);
}

/* A float format and a mode, as constants of the loop. */
typedef struct {
    uint32_t drop, keep, half, last, cap; /* bits cut off, and the bias of nearest even */
    uint32_t bias[2];                     /* of other modes, for v >= 0 and v < 0 */
    uint32_t left, right;                 /* shifts that take the random number to the bits cut off */
    uint32_t max, over[2], infinite, least;
    grid g;
} rule;

INLINE rule rule_of(const epur_float *f, int mode) {
    const int drop = 23 - f->mantissa_bits, least = 2 - (1 << (f->exponent_bits - 1));
    const uint32_t half = drop ? 1u << (drop - 1) : 0u, rest = (1u << drop) - 1u;
    rule r = {0};
    r.drop = (uint32_t)drop;
    r.keep = ~rest;
    r.half = drop ? half - 1u : 0u;
    r.last = drop ? 1u : 0u;
    r.cap = f->mantissa_bits ? UINT32_MAX : 1u;
    if (mode == NEAREST_AWAY) r.bias[0] = r.bias[1] = half;
    if (mode == UP) r.bias[0] = rest;
    if (mode == DOWN) r.bias[1] = rest;
    r.left = drop > 12 ? (uint32_t)drop - 12u : 0u;
    r.right = drop < 12 ? 12u - (uint32_t)drop : 0u;
    r.max = bits_of(f->max);
    r.infinite = f->over == TO_INFINITY ? INFINITE : f->over == TO_NAN ? NOT_A_NUMBER : r.max;
    r.over[0] = mode == TOWARD_ZERO || mode == DOWN ? r.max : r.infinite;
    r.over[1] = mode == TOWARD_ZERO || mode == UP ? r.max : r.infinite;
    r.least = (uint32_t)(least + 127) << 23;
    if (f->exponent_bits < 8) r.g = grid_of(least - f->mantissa_bits, mode);
    return r;
}

INLINE int below_of(const epur_float *f) {
    const int wide = f->exponent_bits == 8;
    return f->subnormals ? (wide ? KEPT : ON_GRID) : wide ? FLUSHED_8 : FLUSHED;
}

INLINE float float_value(float v, const rule *f, int kind, int below, uint32_t random, uint32_t *seen) {
    const uint32_t b = bits_of(v), a = b & ~SIGN, negative = b >> 31;
    const uint32_t from = below == FLUSHED_8 && a < LEAST_NORMAL ? a * 2u : a;
    uint32_t bias, first = from >> f->drop;
    first = first < f->cap ? first : f->cap;
    if (kind == EVEN) bias = f->half + (first & f->last);
    if (kind == BIASED) bias = negative ? f->bias[1] : f->bias[0];
    if (kind == RANDOM) bias = random << f->left >> f->right;
    uint32_t r = (from + bias) & f->keep;
    if (below == ON_GRID) {
        const uint32_t small = bits_of(to_grid(float_of(a), negative, &f->g, kind, random));
        r = a < f->least ? small : r;
    }
    if (below == FLUSHED) r = r < f->least ? 0u : r;
    if (below == FLUSHED_8) {
        const uint32_t small = r < 2u * LEAST_NORMAL ? 0u : LEAST_NORMAL;
        r = a < LEAST_NORMAL ? small : r;
    }
    const uint32_t past = r > f->max, finite = a < INFINITE;
    const uint32_t over = negative ? f->over[1] : f->over[0];
    r = past ? (finite ? over : f->infinite) : r;
    r = a > INFINITE ? NOT_A_NUMBER : r;
    if (seen) {
        seen[OVERFLOW] += past & finite & (r != f->max);
        seen[SATURATION] += past & (a <= INFINITE) & (r == f->max);
        seen[UNDERFLOW] += (a != 0u) & (a < f->least) & (r != a);
    }
    return float_of(r | (b & SIGN)) + 0.0f; /* a zero has no sign */
}

typedef struct {
    grid g;
    float exact, min, max, codes, per_codes; /* values from `exact` on are multiples of the unit */
} fixed_rule;

INLINE fixed_rule fixed_rule_of(const epur_fixed *f, int mode) {
    const grid g = grid_of(-f->fraction_bits, mode);
    const float codes = f->max - f->min + g.unit; /* a power of two */
    const fixed_rule r = {g, g.shift, f->min, f->max, codes, 1.0f / codes};
    return r;
}

INLINE float fixed_value(float v, const fixed_rule *f, int kind, int over, uint32_t random, uint32_t *seen) {
    const float a = fabsf(v);
    const uint32_t negative = bits_of(v) >> 31;
    const float units = to_grid(a, negative, &f->g, kind, random);
    const float rounded = a < f->exact ? units : a;
    float r = negative ? -rounded : rounded;
    const uint32_t past = (r > f->max) | (r < f->min);
    if (over == SATURATE) {
        r = r > f->max ? f->max : r;
        r = r < f->min ? f->min : r;
    } else { /* every step is exact; infinities become not-a-number here */
        r -= f->codes * floorf(r * f->per_codes);
        r -= r > f->max ? f->codes : 0.0f;
    }
    r = r == r ? r : 0.0f;
    if (seen) {
        seen[SATURATION] += past;
        seen[UNDERFLOW] += (a > 0.0f) & (r == 0.0f) & !past;
    }
    return r + 0.0f;
}

INLINE uint32_t random_at(const epur_random *random, int from_words, ptrdiff_t at) {
    return (from_words ? random->words[at] : mix(random->key ^ (random->start + (uint32_t)at) * 0x9e3779b9u)) >> 20;
}

/* `in` may be `out`: the loops read a value before they write it. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(enable)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

#define EACH_VALUE(call)                                                                                      \
    for (ptrdiff_t begin = 0; begin < n; begin += CHUNK) {                                                    \
        const ptrdiff_t end = begin + CHUNK < n ? begin + CHUNK : n;                                          \
        uint32_t counted[3] = {0, 0, 0}, *const seen = count ? counted : NULL;                                \
        INDEPENDENT for (ptrdiff_t i = begin; i < end; i++) {                                                 \
            const uint32_t R = kind == RANDOM ? random_at(random, from_words, i) : 0u;                        \
            out[i] = call;                                                                                    \
        }                                                                                                     \
        for (int k = 0; count && k < 3; k++) count[k] += counted[k];                                          \
    }

/* The loops, one for each way; every argument past `random` is known when this is compiled. */
INLINE void float_loop(const float *in, float *out, ptrdiff_t n, const rule *f, const epur_random *random,
                       int from_words, int kind, int below, int64_t *count) {
    const rule own = *f;
    EACH_VALUE(float_value(in[i], &own, kind, below, R, seen))
}
INLINE void fixed_loop(const float *in, float *out, ptrdiff_t n, const fixed_rule *f, const epur_random *random,
                       int from_words, int kind, int over, int64_t *count) {
    const fixed_rule own = *f;
    EACH_VALUE(fixed_value(in[i], &own, kind, over, R, seen))
}

#define COUNTED(loop, random, words, kind, way)                                           \
    if (count)                                                                            \
        loop(in, out, n, &f, random, words, kind, way, count);                            \
    else                                                                                  \
        loop(in, out, n, &f, random, words, kind, way, NULL);                             \
    break;
#define OF_KIND(loop, way)                                                                \
    switch (kind_of(mode) + (random.words != NULL && mode == STOCHASTIC)) {               \
    case EVEN: COUNTED(loop, NULL, 0, EVEN, way)                                          \
    case BIASED: COUNTED(loop, NULL, 0, BIASED, way)                                      \
    case RANDOM: COUNTED(loop, &random, 0, RANDOM, way)                                   \
    default: COUNTED(loop, &random, 1, RANDOM, way)                                       \
    }                                                                                     \
    break;

/* in IN, out OUT (n); count INOUT (3: overflow, saturation, underflow) or NULL */
void LEVEL(round_float)(const float *in, float *out, ptrdiff_t n, epur_float format, int mode, epur_random random,
                        int64_t *count) {
    const rule f = rule_of(&format, mode);
    switch (below_of(&format)) {
    case KEPT: OF_KIND(float_loop, KEPT)
    case ON_GRID: OF_KIND(float_loop, ON_GRID)
    case FLUSHED: OF_KIND(float_loop, FLUSHED)
    default: OF_KIND(float_loop, FLUSHED_8)
    }
}

void LEVEL(round_fixed)(const float *in, float *out, ptrdiff_t n, epur_fixed format, int mode, epur_random random,
                        int64_t *count) {
    const fixed_rule f = fixed_rule_of(&format, mode);
    switch (format.over) {
    case SATURATE: OF_KIND(fixed_loop, SATURATE)
    default: OF_KIND(fixed_loop, WRAP)
    }
}

/* Blocks of one scale along rows: in IN, out OUT (rows, columns); `top` is the exponent of the element's largest value.
 * v / scale is exact but where it is far below the element's smallest value, and the result is exact: either v is kept,
 * or the element's unit times the scale is at least float32's least. */
#define EACH_BLOCK(call)                                                                                      \
    for (ptrdiff_t row = 0; row < rows; row++, in += columns, out += columns)                                 \
        for (ptrdiff_t begin = 0; begin < columns; begin += block) {                                          \
            const ptrdiff_t end = begin + block < columns ? begin + block : columns;                          \
            uint32_t largest = 0, seen[3] = {0, 0, 0};                                                        \
            for (ptrdiff_t i = begin; i < end; i++) {                                                         \
                const uint32_t a = bits_of(in[i]) & ~SIGN;                                                    \
                largest = a > largest ? a : largest;                                                          \
            }                                                                                                 \
            if (largest >= INFINITE) {                                                                        \
                for (ptrdiff_t i = begin; i < end; i++) out[i] = NAN;                                         \
                continue;                                                                                     \
            }                                                                                                 \
            const int exponent = largest >= LEAST_NORMAL ? (int)(largest >> 23) - 127                         \
                                                         : (int)(largest ? 31 - __builtin_clz(largest) : 0) - 149; \
            const int k = exponent - top > -127 ? exponent - top : -127;                                      \
            const float scale = power(k), inverse = power(-k);                                                \
            INDEPENDENT for (ptrdiff_t i = begin; i < end; i++) {                                             \
                const float v = in[i] * inverse;                                                              \
                seen[UNDERFLOW] += (v == 0.0f) & (in[i] != 0.0f); /* float32 has no such v */                 \
                out[i] = (call)*scale;                                                                        \
            }                                                                                                 \
            for (int c = 0; count && c < 3; c++) count[c] += seen[c];                                         \
        }

void LEVEL(round_float_blocks)(const float *in, float *out, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t block,
                               epur_float format, int top, int64_t *count) {
    const rule f = rule_of(&format, NEAREST_EVEN);
    EACH_BLOCK(float_value(v, &f, EVEN, ON_GRID, 0, seen))
}

void LEVEL(round_fixed_blocks)(const float *in, float *out, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t block,
                               epur_fixed format, int top, int64_t *count) {
    const fixed_rule f = fixed_rule_of(&format, NEAREST_EVEN);
    EACH_BLOCK(fixed_value(v, &f, EVEN, SATURATE, 0, seen))
}
