/* Dot products in stochastic rounding that take fewer operations than `dot_general.h` and `dot_wide.h` do, where nothing but the accumulator,
 * which is watched, can leave its range, and sums below a place's normal range are exact. The processor cuts, which passes no 2^-12
 * units; p is a place's precision.
 *
 * In float32, places of at most 11 bits, and float32 itself:
 *   sum      the lower 24 - p bits of a + b are its rest, and the upper 12 of these meet the random number: it is added to them as an
 *            integer, whose carry reaches the result, and its exponent; the rest is cleared.
 *   product  with S the power of two that counts for v's unit, of v's sign, v + 2^(12 - p) S lies in one binade, where float32's last
 *            place is 2^-12 units: the random number is added to the last 12 bits likewise, and what was added to v is taken away.
 *   float32 itself, and fixed-point products, as in `dot_general.h`.
 * In float64, all of at most 21 bits, or a tree and an accumulator in fixed point whose sums, but for those of products, are exact:
 *   sum      likewise: the random word stands in its place from the beginning, and what is left of it is cleared, too.
 *   product  likewise: all values are multiplied by the power of two that takes the products' least normal value to float64's, 2^-1022,
 *            below which their places do not change either. Products without subnormals are rounded as sums are; there the power takes
 *            the least normal value to 2, whose exponent's first bit no smaller value has.
 *   fixed    with M of v's sign, v + M has 2^-12 units as its last place.
 *
 * The 32 operations of a sub-vector stand in the order of their numbers, so that the next random word is one addition away. A
 * tree waits for the next sub-vector's products and is made among them: each fills the other's waiting times.
 */
#if !defined(LEVEL_SCALAR)

/* How products and sums are rounded: by bits, flushed or not; as float32; to fixed point; not at all. */
enum { BY_BITS, FLUSHED_BITS, AS_SINGLE, TO_FIXED, KEPT };

/* Where a random number meets the values of a place, and the mask of a result. */
typedef struct {
    vk down, random, whole;
    vf flush;
} cut;

/* --- float32 --- */

typedef struct {
    vf mask, least, raise, flush, magic, back;
    vk down, whole;
    cut tree, acc;
    float domain, max; /* of all values; the accumulator's */
    int up;
} drawn_cuts_narrow;

static inline cut cut_of(const fmt *f) {
    const uint32_t rest = 0x7fffffU >> f->places, spare = 0x7ffU >> f->places;
    return (cut){vk_set(9 + f->places), vk_set(rest & ~spare), vk_set(~rest), vf_set(f->subnormal ? 0.0f : ldexpf(1.0f, f->min_exp))};
}

INLINE vf single_drawn(vf r, vf rest, vk random) { return single_by(r, rest, vf_random(random, 0x1p-23f), STOCHASTIC); }

#define DRAWN(name) drawn_##name##_narrow
#define DW VW
#define dreal float
#define dword uint32_t
#define dv vf
#define dk vk
#define dv_get vf_load
#define dv_put vf_store
#define dv_set vf_set
#define dv_abs vf_abs
#define dv_topmost vf_topmost
#define dk_load vk_load
#define dk_store vk_store
#define dk_add vk_add
#define dk_up vk_up

INLINE vk DRAWN(drawn)(vk *next, vk key);

INLINE vf DRAWN(product)(vf w, vf x, const drawn_cuts_narrow *k, const int products, vk *next, vk key) {
    const vf v = vf_mul(w, x);
    if (products == KEPT) return v;
    const vk random = DRAWN(drawn)(next, key);
    if (products == AS_SINGLE) return single_drawn(v, vf_fma(w, x, vf_neg(v)), random);
    if (products == TO_FIXED) {
        const vf scale = vf_or(vf_and(v, SIGN), k->least);
        return vf_fnma(scale, k->back, vf_fma(scale, k->magic, vf_fma(scale, vf_random(random, 1.0f), v)));
    }
    const vf scale = vf_signed(v, k->mask, k->least);
    const vk raised = vk_of(vf_fma(scale, k->raise, v));
    const vf whole = vf_of(vk_and(vk_add(raised, vk_down(random, k->down)), k->whole));
    return flushed(vf_fnma(scale, k->raise, whole), k->flush, products == FLUSHED_BITS);
}

INLINE vf DRAWN(sum)(vf a, vf b, const drawn_cuts_narrow *k, const int sums, const int n, vk *next, vk key) {
    const vk random = DRAWN(drawn)(next, key);
    const cut *to = n < 15 ? &k->tree : &k->acc;
    const vf s = vf_add(a, b);
    if (sums == AS_SINGLE) return single_drawn(s, cut_off(a, b, s), random);
    const vk part = vk_and(vk_down(random, to->down), to->random);
    return flushed(vf_of(vk_and(vk_add(vk_of(s), part), to->whole)), to->flush, sums == FLUSHED_BITS);
}

INLINE vf DRAWN(weight)(const void *w, int j, const int store) {
    const uint16_t *code = (const uint16_t *)w + j * 16;
    return store == HALF ? vf_half(code) : store == TOP ? vf_top(code) : vf_load((const float *)w + j * LANES);
}
#define drawn_widen_narrow widen
INLINE const float *DRAWN(inputs)(float *room, const float *x, const drawn_cuts_narrow *k, int *fine) {
    (void)room, (void)k, (void)fine;
    return x;
}
INLINE vk DRAWN(to_tree)(vk drawn, const drawn_cuts_narrow *k, const int sums) {
    (void)k, (void)sums;
    return drawn;
}

#include "dot_drawn.h"

static inline drawn_cuts_narrow cuts_narrow_of(const general_call *c) {
    const lanes *f = c->g->place;
    const fmt *formats = c->u[c->order[0] & 3].place;
    return (drawn_cuts_narrow){vf_set(float_bits(f->mask)), vf_set(f->least), vf_set(f->one * 0x1p11f), vf_set(f->flush), vf_set(f->magic),
                         vf_set(f->magic + 1.0f), vk_set(20), vk_set(0xfffff000U), cut_of(formats + TREE), cut_of(formats + ACCUMULATOR),
                         1.0f, (float)formats[ACCUMULATOR].max, 0};
}

#define DRAWN_ROWS(name, products, sums)                                          \
    static __attribute__((noinline)) void rows_drawn_##name(const general_call *c) { \
        const drawn_cuts_narrow k = cuts_narrow_of(c);                                  \
        drawn_call_narrow(c, &k, products, sums);                                 \
    }
DRAWN_ROWS(bits, BY_BITS, BY_BITS)
DRAWN_ROWS(flushed, FLUSHED_BITS, FLUSHED_BITS)
DRAWN_ROWS(kept, KEPT, AS_SINGLE)
DRAWN_ROWS(single, AS_SINGLE, AS_SINGLE)
DRAWN_ROWS(raised, BY_BITS, AS_SINGLE)
DRAWN_ROWS(fixed, TO_FIXED, AS_SINGLE)
#undef DRAWN_ROWS

static inline int is_single(const fmt *f) {
    return f->kind == FLOAT && f->places == 23 && f->min_exp == -126 && f->subnormal;
}

/* The form that takes the formats, of products and a tree that stay in their ranges, or NULL. */
static rows_of *drawn_narrow(const fmt *f, const general *g) {
    const fmt *product = f + PRODUCT;
    if (g->mode != STOCHASTIC) return NULL;
    if (is_single(f + TREE) && is_single(f + ACCUMULATOR)) {
        if (g->exact_products) return rows_drawn_kept;
        if (is_single(product)) return rows_drawn_single;
        if (product->kind == FIXED) return rows_drawn_fixed;
        return product->subnormal && product->places <= 10 ? rows_drawn_raised : NULL;
    }
    if (!g->narrows) return rows_drawn_bits;
    return g->innocuous && g->place[PRODUCT].mask ? rows_drawn_flushed : NULL; /* then all are floats */
}

#undef DRAWN
#undef DW
#undef dreal
#undef dword
#undef dv
#undef dk
#undef dv_get
#undef dv_put
#undef dv_set
#undef dv_abs
#undef dv_topmost
#undef dk_load
#undef dk_store
#undef dk_add
#undef dk_up

/* --- float64 --- */

typedef struct {
    vw random, whole, seen; /* seen: of what is not to be flushed a bit */
} wide_cut;
typedef struct {
    wide_cut product, tree, acc;
    vw tree_down, tree_up, acc_down;
    vd flush, magic, scale, unscale;
    double domain, max;
    int up;
} drawn_cuts_wide;

#define MOST_DRAWN 21 /* bits: up to there a random word's upper 12 bits stand below a result's last place without being moved down */

#define SELDOM_BELOW -30 /* exponent: products below 2^this are so rare that the processor's slow subnormals cost nothing */

#define DRAWN(name) drawn_##name##_wide
#define DW VD
#define dreal double
#define dword uint64_t
#define dv vd
#define dk vw
#define dv_get vd_get
#define dv_put vd_put
#define dv_set vd_set
#define dv_abs vd_abs
#define dv_topmost(a, b) vd_max(a, b) /* which keeps a last one that is not a number, as all are after the first */
#define dk_load vw_load
#define dk_store vw_store
#define dk_add vw_add
#define dk_up vw_up

INLINE vw DRAWN(drawn)(vw *next, vw key);

INLINE vd cut_wide(vd v, const wide_cut *to, const int how, vw random) {
    const vw sum = vw_add(vw_of(v), vw_and(random, to->random));
    return vd_as(how == FLUSHED_BITS ? vw_some(sum, to->seen, to->whole) : vw_and(sum, to->whole));
}

INLINE vd DRAWN(product)(vd w, vd x, const drawn_cuts_wide *k, const int products, vw *next, vw key) {
    return cut_wide(vd_mul(w, x), &k->product, products, DRAWN(drawn)(next, key));
}

INLINE vd DRAWN(sum)(vd a, vd b, const drawn_cuts_wide *k, const int sums, const int n, vw *next, vw key) {
    const vd s = vd_add(a, b);
    if (sums == TO_FIXED) {
        if (n >= 8) return s;
        const vd magic = vd_or(vd_and(s, vd_set(-0.0)), k->magic);
        const vw random = vw_down(DRAWN(drawn)(next, key), vw_set(52));
        return vd_sub(vd_as(vw_and(vw_add(vw_of(vd_add(s, magic)), random), k->tree.whole)), magic);
    }
    const vw random = DRAWN(drawn)(next, key);
    if (n < 15) return cut_wide(s, &k->tree, sums, random);
    const vd r = cut_wide(s, &k->acc, BY_BITS, vw_down(random, k->acc_down));
    return sums == FLUSHED_BITS ? vd_flushed(r, k->flush) : r;
}

INLINE vd DRAWN(weight)(const void *w, int j, const int store) {
    const uint16_t *code = (const uint16_t *)w + j * 16;
    return store == HALF ? vd_half(code) : store == TOP ? vd_top(code) : vd_get((const double *)w + j * LANES);
}
INLINE void DRAWN(widen)(double *wide, const matrix *m, const int32_t *order, ptrdiff_t s) {
    float narrow[16 * LANES] ALIGNED;
    widen(narrow, m, order, s);
    for (int l = 0; l < 16 * LANES; l += VD) vd_put(wide + l, vd_load(narrow + l));
}
INLINE const double *DRAWN(inputs)(double *room, const float *x, const drawn_cuts_wide *k, int *fine) {
    for (int j = 0; j < 16; j += VD) {
        const vd v = vd_load(x + j), scaled = vd_mul(v, k->scale);
        *fine &= !vdm_any(vd_ne(vd_mul(scaled, k->unscale), v));
        vd_put(room + j, scaled);
    }
    IN_MEMORY(room);
    return room;
}
INLINE vw DRAWN(to_tree)(vw drawn, const drawn_cuts_wide *k, const int sums) {
    return sums == TO_FIXED ? vw_up_by(drawn, k->tree_up) : vw_down(drawn, k->tree_down);
}

#include "dot_drawn.h"

static inline wide_cut wide_cut_of(const fmt *f, int seen) {
    const int rest = 52 - f->places;
    const uint64_t whole = ~(uint64_t)0 << rest;
    return (wide_cut){vw_set((uint64_t)0xfff << (rest - 12)), vw_set(whole), vw_set(seen ? (uint64_t)1 << 62 : ~(uint64_t)0)};
}

static inline drawn_cuts_wide cuts_wide_of(const general_call *c, const int form) {
    const fmt *f = c->u[c->order[0] & 3].place, *acc = f + ACCUMULATOR;
    const int flushes = form == FLUSHED_BITS, fixed = form == TO_FIXED, domain = (flushes ? 1 : -1022) - f[PRODUCT].min_exp;
    const int up = MOST_DRAWN - 1 - f[PRODUCT].places;
    const double scale = ldexp(1.0, domain);
    drawn_cuts_wide k = {.product = wide_cut_of(f + PRODUCT, 1), .scale = vd_set(scale), .unscale = vd_set(1 / scale), .domain = scale,
                   .max = acc->max * scale, .up = up};
    if (fixed) {
        k.tree.whole = vw_set(~(uint64_t)0xfff);
        k.magic = vd_set(ldexp(1.0, 40 - f[TREE].places + domain));
        k.tree_up = vw_set((uint64_t)(32 - up));
        return k;
    }
    k.tree = wide_cut_of(f + TREE, !f[TREE].subnormal), k.acc = wide_cut_of(acc, 0);
    k.tree_down = vw_set((uint64_t)(f[TREE].places - f[PRODUCT].places)), k.acc_down = vw_set((uint64_t)(acc->places - f[TREE].places));
    k.flush = vd_set(acc->subnormal ? 0.0 : ldexp(scale, acc->min_exp));
    return k;
}

#define DRAWN_ROWS(name, products, sums)                                          \
    static __attribute__((noinline)) void rows_drawn_##name(const general_call *c) { \
        const drawn_cuts_wide k = cuts_wide_of(c, sums);                                \
        drawn_call_wide(c, &k, products, sums);                                   \
    }
DRAWN_ROWS(wide_bits, BY_BITS, BY_BITS)
DRAWN_ROWS(wide_flushed, FLUSHED_BITS, FLUSHED_BITS)
DRAWN_ROWS(wide_fixed, BY_BITS, TO_FIXED)
#undef DRAWN_ROWS

/* Whether values of `f`, floats, go on to `to` by bits: what lies below `to`'s normal range is exact, or flushed. */
static inline int goes_on(const fmt *f, const fmt *to) {
    return to->kind == FLOAT && to->places >= f->places && to->places < MOST_DRAWN &&
           (!to->subnormal || to->min_exp - to->places <= f->min_exp - f->places);
}

static rows_of *drawn_wide(const fmt *f, const general *g) {
    const fmt *product = f + PRODUCT, *tree = f + TREE, *acc = f + ACCUMULATOR;
    if (g->mode != STOCHASTIC || product->kind != FLOAT || product->places >= MOST_DRAWN) return NULL;
    if (product->subnormal && product->min_exp > SELDOM_BELOW) return NULL;
    if (tree->kind == FIXED && acc->kind == FIXED)
        return product->subnormal && tree->codes <= 0x1p40 && tree->places <= 40 && acc->places >= tree->places && acc->min < 0
                   ? rows_drawn_wide_fixed
                   : NULL;
    if (!goes_on(product, tree) || !goes_on(tree, acc)) return NULL;
    if (product->subnormal) return tree->subnormal && acc->subnormal ? rows_drawn_wide_bits : NULL;
    return tree->subnormal || tree->min_exp == product->min_exp ? rows_drawn_wide_flushed : NULL;
}

#endif
