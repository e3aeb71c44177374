/* One LSTM pass in fp16, 16 neurons side by side: every operation rounded to fp16, computed in float32.
 *
 * Rounding without conversions. Let X be the 24-bit significand of a float32 value v, r = v rounded to 11
 * significant bits, nearest even. Adding or subtracting 2^13 v leaves r's last place as the last place of the sum:
 *   y = 2^13 v -+ v, rounded once;   r = +-(2^13 v - y), exact.
 * A tie has X even, so that y's evenness is r's. Where y leaves its binade downwards (2^13 v - v, X < 2^23 + 2^10) its
 * last place halves, but there v lies within 1/8 of a place of r; where it leaves it upwards (2^13 v + v,
 * X > 2^24 - 2^11) its last place doubles, which is harmless if X is even, as it is for a product of two fp16 values.
 *   sum      s = a + b;  r = 2^13 s - round(2^13 s - s)                  for any float32 s
 *   product  p = w x;  t = max(|p|, 1.5 * 2^-14);  r = round(2^13 t + p) - 2^13 t
 * where below 1.5 * 2^-14 the sum 0.75 + p has 2^-24, fp16's least place, as its last.
 * A sum below 2^-14 is a multiple of 2^-24 and exact. Neither form overflows to infinity: the caller proves
 * beforehand that no partial sum can reach 2^15 (`safe`), or takes the form with conversions.
 * A zero may come out with the other sign inside the tree; the accumulator begins at +0 and sums to nearest never give
 * -0 from it, so that no result shows it.
 */
#include "simd.h"

#include <stddef.h>

#include "lstm_fp16_api.h"

typedef struct {
    vc overflow, underflow;
} counts;

static inline counts none_seen(void) {
    const counts n = {vc_zero(), vc_zero()};
    return n;
}

/* LOCK vectors of neurons go through the tree side by side, in LOCK_ROWS rows of 16: the chain of one rounding is
 * some ten cycles long, and only independent neighbours in program order fill it. */
#define LOCK 4
#define LOCK_ROWS (LOCK / VN ? LOCK / VN : 1)
#define LANES (LOCK * VW)
/* Vectors that share one conversion of the weights. */
#define TILE 32
#define ALIGNED __attribute__((aligned(64)))
#define EACH for (int i = 0; i < LOCK; i++)

static inline void fetch(vf *a, const float *from) { EACH a[i] = vf_load(from + i * VW); }
static inline void put(float *to, const vf *a) { EACH vf_store(to + i * VW, a[i]); }

static inline void copy_lanes(float *to, const float *from) {
    vf a[LOCK];
    fetch(a, from);
    put(to, a);
}

static inline void products(vf *p, const vf *w, float x) {
    vf t[LOCK];
    EACH p[i] = vf_mul(w[i], vf_set(x));
    EACH t[i] = vf_max(vf_abs(p[i]), vf_set(0x1.8p-14f));
    EACH p[i] = vf_madd(t[i], vf_set(8192.0f), p[i]);
    EACH p[i] = vf_nmadd(t[i], vf_set(8192.0f), p[i]);
}

static inline void pairs(vf *a, const vf *b) {
    vf y[LOCK];
    EACH a[i] = vf_add(a[i], b[i]);
    EACH y[i] = vf_mul(a[i], vf_set(8191.0f));
    EACH a[i] = vf_msub(a[i], vf_set(8192.0f), y[i]);
}

static inline void stored_pairs(float *to, const float *from) {
    vf a[LOCK], b[LOCK];
    fetch(a, to);
    fetch(b, from);
    pairs(a, b);
    put(to, a);
}

/* The upper levels of a tree whose eight sums of adjacent products lie in `level`, and the accumulator: eight steps. */
static inline void upper(int step, float *level, float *acc) {
    switch (step) {
    case 0: stored_pairs(level, level + LANES); break;
    case 1: stored_pairs(level + 2 * LANES, level + 3 * LANES); break;
    case 2: stored_pairs(level + 4 * LANES, level + 5 * LANES); break;
    case 3: stored_pairs(level + 6 * LANES, level + 7 * LANES); break;
    case 4: stored_pairs(level, level + 2 * LANES); break;
    case 5: stored_pairs(level + 4 * LANES, level + 6 * LANES); break;
    case 6: stored_pairs(level, level + 4 * LANES); break;
    default: stored_pairs(acc, level);
    }
}

static inline void finish(float *level, float *acc) {
    for (int step = 0; step < 8; step++) upper(step, level, acc);
}

/* Weights of input j in LOCK vectors: fp16 codes whose rows lie `pitch` apart, or float32 as `widen` lays them. */
static inline void load_half(vf *w, const uint16_t *at, ptrdiff_t pitch, int j) {
    EACH w[i] = vf_half(at + i / VN * pitch + j * 16 + i % VN * VW);
}
static inline void load_wide(vf *w, const float *at, ptrdiff_t pitch, int j) {
    (void)pitch;
    fetch(w, at + j * LANES);
}
static inline void widen(float *wide, const uint16_t *at, ptrdiff_t pitch) {
    for (int j = 0; j < 16; j++) {
        vf w[LOCK];
        load_half(w, at, pitch, j);
        put(wide + j * LANES, w);
    }
}

/* One sub-vector, pipelined: its products and their adjacent sums go to `now`, while the tree of the sub-vector before,
 * in `was`, is finished into `acc`, so that every operand is ready by the time it is wanted. */
#define TWO_PAIRS(load, g)                                      \
    load(w, at, pitch, 4 * (g)), products(a, w, x[4 * (g)]);     \
    upper(2 * (g), was, acc);                                   \
    if (g) pairs(c, d), put(now + (2 * (g)-1) * LANES, c);      \
    load(w, at, pitch, 4 * (g) + 1), products(b, w, x[4 * (g) + 1]); \
    load(w, at, pitch, 4 * (g) + 2), products(c, w, x[4 * (g) + 2]); \
    upper(2 * (g) + 1, was, acc);                               \
    pairs(a, b), put(now + 2 * (g)*LANES, a);                   \
    load(w, at, pitch, 4 * (g) + 3), products(d, w, x[4 * (g) + 3]);
#define DEFINE_TREE(name, type, load)                                                                             \
    static inline void name(float *now, float *was, float *acc, const type *at, ptrdiff_t pitch, const float *x) { \
        vf w[LOCK], a[LOCK], b[LOCK], c[LOCK], d[LOCK];                                                           \
        TWO_PAIRS(load, 0)                                                                                        \
        TWO_PAIRS(load, 1)                                                                                        \
        TWO_PAIRS(load, 2)                                                                                        \
        TWO_PAIRS(load, 3)                                                                                        \
        pairs(c, d), put(now + 7 * LANES, c);                                                                     \
    }
DEFINE_TREE(tree_half, uint16_t, load_half)
DEFINE_TREE(tree_wide, float, load_wide)

static inline vf round_counted(vf v, uint16_t *code, counts *n) {
    const vf r = vf_round(v, code), magnitude = vf_abs(v), infinite = vf_set(INFINITY);
    n->overflow = vc_add(n->overflow, vm_and(vf_eq(vf_abs(r), infinite), vf_lt(magnitude, infinite)));
    n->underflow = vc_add(n->underflow, vm_and(vf_lt(magnitude, vf_set(0x1p-14f)), vf_ne(r, v)));
    return r;
}

/* The same tree with a full rounding of every operation: overflow, infinities, not-a-number. */
static vf tree_any(const uint16_t *w, const float *x, counts *n) {
    uint16_t code[16];
    vf level[16];
    for (int j = 0; j < 16; j++) level[j] = round_counted(vf_mul(vf_half(w + j * 16), vf_set(x[j])), code, n);
    for (int width = 8; width; width /= 2)
        for (int j = 0; j < width; j++)
            level[j] = round_counted(vf_add(level[2 * j], level[2 * j + 1]), code, n);
    return level[0];
}

/* LOCK_ROWS rows with that tree, sub-vectors of x `pitch` apart; the number of overflows. */
static int64_t dot_any(const uint16_t *w, const float *x, ptrdiff_t pitch, float *acc, ptrdiff_t subs) {
    counts n = none_seen();
    for (int at = 0; at < LOCK_ROWS * 16; at += VW) {
        const uint16_t *row = w + at / 16 * subs * 256 + at % 16;
        vf sum = vf_load(acc + at);
        for (ptrdiff_t s = 0; s < subs; s++) {
            uint16_t code[16];
            sum = round_counted(vf_add(sum, tree_any(row + s * 256, x + s * pitch, &n)), code, &n);
        }
        vf_store(acc + at, sum);
    }
    return vc_sum(n.overflow);
}

/* acc[v] += W x[v] for nv vectors x and all rows of W.
 *   w      IN    rows (a multiple of 4) blocks of (subs * 16 inputs, 16 neurons), fp16 codes
 *   x      IN    (subs, nv, 16), fp16 values
 *   acc    INOUT (nv, rows, 16), fp16 values
 *   safe   IN    (nv), whether overflow is ruled out; overflow INOUT counts those seen
 */
void LEVEL(dot)(const uint16_t *w, const float *x, float *acc, const uint8_t *safe, ptrdiff_t rows, ptrdiff_t subs,
                ptrdiff_t nv, int64_t *overflow) {
    const ptrdiff_t inputs = subs * 16, pitch = rows * 16;
    float wide[16 * LANES] ALIGNED, level[2][8 * LANES] ALIGNED;
    float sums[TILE * LANES] ALIGNED; /* side by side, where rows of `acc` may share one cache set */
    for (ptrdiff_t row = 0; row < rows; row += LOCK_ROWS, w += inputs * 16 * LOCK_ROWS) {
        for (ptrdiff_t v = 0; v < nv; v++)
            if (!safe[v]) *overflow += dot_any(w, x + v * 16, nv * 16, acc + v * pitch + row * 16, subs);
        for (int part = 0; part < LOCK_ROWS * VN; part += LOCK) { /* one, but for the scalar level */
            const uint16_t *at = w + part * VW;
            for (ptrdiff_t first = 0; first < nv; first += TILE) {
                float *a = acc + first * pitch + row * 16 + part * VW;
                ptrdiff_t place[TILE], used = 0;
                for (ptrdiff_t v = first; v < nv && v < first + TILE; v++)
                    if (safe[v]) place[used++] = v - first;
                if (!used) continue;
                for (ptrdiff_t u = 0; u < used; u++) copy_lanes(sums + u * LANES, a + place[u] * pitch);
                float *before = sums;
                int now = 0;
                memset(level[1], 0, sizeof level[1]); /* begins with a tree of +0: adds nothing */
                for (ptrdiff_t s = 0; s < subs; s++) {
                    const float *xs = x + (s * nv + first) * 16;
                    if (used == 1) {
                        tree_half(level[now], level[now ^ 1], before, at + s * 256, inputs * 16, xs + place[0] * 16);
                        before = sums;
                        now ^= 1;
                        continue;
                    }
                    widen(wide, at + s * 256, inputs * 16); /* one conversion of the weights serves all vectors */
                    for (ptrdiff_t u = 0; u < used; u++, now ^= 1) {
                        tree_wide(level[now], level[now ^ 1], before, wide, 0, xs + place[u] * 16);
                        before = sums + u * LANES;
                    }
                }
                finish(level[now ^ 1], before);
                for (ptrdiff_t u = 0; u < used; u++) copy_lanes(a + place[u] * pitch, sums + u * LANES);
            }
        }
    }
}

/* exp of fp16 values: a look at every code's correctly rounded result. */
static inline vf exp_of(vf v, const uint16_t *table, counts *n) {
    uint16_t code[16];
    vf_round(v, code); /* v is an fp16 value; only its code is wanted */
    for (int i = 0; i < VW; i++) code[i] = table[code[i]];
    const vf e = vf_half(code), infinite = vf_set(INFINITY);
    n->overflow = vc_add(n->overflow, vm_and(vf_eq(e, infinite), vf_lt(v, infinite)));
    n->underflow = vc_add(n->underflow, vm_and(vf_lt(e, vf_set(0x1p-14f)), vf_lt(vf_neg(infinite), v)));
    return e;
}

#define ROUND(e) round_counted(e, code, n)

static inline vf clamped(vf r, vf clamp) { return vf_max(vf_neg(clamp), vf_min(clamp, r)); }

static inline vf sigmoid(vf r, vf clamp, const uint16_t *table, counts *n) {
    uint16_t code[16];
    const vf one = vf_set(1.0f);
    const vf e = exp_of(vf_neg(clamped(r, clamp)), table, n);
    return ROUND(vf_div(one, ROUND(vf_add(e, one))));
}

static inline vf tanh_of(vf r, vf clamp, const uint16_t *table, counts *n) {
    uint16_t code[16];
    r = clamped(r, clamp);
    const vf a = exp_of(r, table, n), q = exp_of(vf_neg(r), table, n);
    const vf difference = ROUND(vf_sub(a, q));
    return ROUND(vf_div(difference, ROUND(vf_add(a, q))));
}

/* The MU's operations on one block of 16 neurons.
 *   acc    IN    (4, 16) sums of the DPUs, gates i, f, g, o
 *   bias   IN    (4, 16); peep IN (3, 16) or NULL: i, f, o
 *   c      INOUT (16);  h OUT (16)
 */
static void mu_block(const float *acc, const float *bias, const float *peep, float *c, float *h, float clamp_at,
                     const uint16_t *table, counts *n) {
    uint16_t code[16];
    const vf clamp = vf_set(clamp_at);
    for (int l = 0; l < 16; l += VW) {
        const vf before = vf_load(c + l);
        vf gate[2];
        for (int q = 0; q < 2; q++) {
            vf r = vf_load(acc + q * 16 + l);
            if (peep) r = ROUND(vf_add(r, ROUND(vf_mul(vf_load(peep + q * 16 + l), before))));
            gate[q] = sigmoid(ROUND(vf_add(r, vf_load(bias + q * 16 + l))), clamp, table, n);
        }
        const vf g = tanh_of(ROUND(vf_add(vf_load(acc + 32 + l), vf_load(bias + 32 + l))), clamp, table, n);
        const vf kept = ROUND(vf_mul(gate[1], before));
        const vf now = ROUND(vf_add(ROUND(vf_mul(g, gate[0])), kept));
        vf r = ROUND(vf_add(vf_load(acc + 48 + l), vf_load(bias + 48 + l)));
        if (peep) r = ROUND(vf_add(r, ROUND(vf_mul(vf_load(peep + 32 + l), now))));
        const vf o = sigmoid(r, clamp, table, n);
        vf_store(c + l, now);
        vf_store(h + l, ROUND(vf_mul(o, tanh_of(now, clamp, table, n))));
    }
}

/* The MU on nv independent states.
 *   acc IN (nv, blocks, 4, 16); bias IN (blocks, 4, 16); peep IN (blocks, 3, 16) or NULL
 *   c INOUT (nv, blocks, 16); h OUT (nv, blocks, 16); seen INOUT (2) overflows, underflows
 */
void LEVEL(mu)(const float *acc, const float *bias, const float *peep, float *c, float *h, float clamp,
               const uint16_t *table, ptrdiff_t blocks, ptrdiff_t nv, int64_t *seen) {
    counts n = none_seen();
    for (ptrdiff_t v = 0; v < nv; v++)
        for (ptrdiff_t b = 0; b < blocks; b++)
            mu_block(acc + (v * blocks + b) * 64, bias + b * 64, peep ? peep + b * 48 : NULL, c + (v * blocks + b) * 16,
                     h + (v * blocks + b) * 16, clamp, table, &n);
    seen[0] += vc_sum(n.overflow);
    seen[1] += vc_sum(n.underflow);
}

/* The recurrent part of a pass, time step by time step.
 *   w      IN    (blocks * 4) rows of W_h
 *   forward IN   (steps, blocks, 4, 16): forward sums, which the accumulator goes on from (separate = 0) or which are
 *                added to the finished recurrent sum (separate = 1)
 *   bound  IN    (steps) upper bound of |forward|'s partial sums, infinite if unknown; norm: of a row of |W_h|
 *   h, c   INOUT (blocks, 16) state; out OUT (steps, blocks, 16); reverse: from the last step to the first
 *   acc    scratch of (blocks, 4, 16)
 */
void LEVEL(recurrent)(const uint16_t *w, const float *forward, const float *bias, const float *peep, float *h, float *c,
                      float *out, float *acc, const double *bound, double norm, float clamp,
                      const uint16_t *table, ptrdiff_t steps, ptrdiff_t blocks, int reverse, int separate,
                      int64_t *seen) {
    const ptrdiff_t width = blocks * 16;
    for (ptrdiff_t step = 0; step < steps; step++) {
        const ptrdiff_t t = reverse ? steps - 1 - step : step;
        const float *sums = forward + t * width * 4;
        float largest = 0.0f;
        int finite = 1;
        for (ptrdiff_t k = 0; k < width; k++) {
            const float magnitude = fabsf(h[k]);
            finite &= magnitude <= 65504.0f;
            largest = magnitude > largest ? magnitude : largest;
        }
        const uint8_t safe = finite && bound[t] + norm * (double)largest <= EPUR_SAFE_SUM;
        if (separate)
            memset(acc, 0, (size_t)width * 4 * sizeof *acc);
        else
            memcpy(acc, sums, (size_t)width * 4 * sizeof *acc);
        LEVEL(dot)(w, h, acc, &safe, blocks * 4, blocks, 1, seen);
        if (separate) {
            counts n = none_seen();
            uint16_t code[16];
            for (ptrdiff_t k = 0; k < width * 4; k += VW)
                vf_store(acc + k, round_counted(vf_add(vf_load(acc + k), vf_load(sums + k)), code, &n));
            seen[0] += vc_sum(n.overflow);
        }
        LEVEL(mu)(acc, bias, peep, c, h, clamp, table, blocks, 1, seen);
        memcpy(out + t * width, h, (size_t)width * sizeof *out);
    }
}
