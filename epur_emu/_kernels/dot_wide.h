/* Dot products that float32 lanes can't round (see `dot_general.h`), and all that leave their formats' ranges, in float64 lanes: any
 * formats, in any mode.
 *
 * A product v is exact. With M = 1.5 2^52 units of the result, (v + M) - M is v rounded to units in the processor's direction; the
 * modes that the processor does not have are cuts, of |v| + half a unit and of |v| + R units / 2^12. A sum is rounded to 53 bits
 * first, in the same direction, which is harmless: these units and half units are float64 values. To nearest even it is rounded
 * to odd, unless the caller proves that it is innocuous. Fixed-point places that widen along the chain need none: sums are exact.
 *
 * What is beyond a place's range becomes what the format says, infinite and not-a-number included. Only codes beyond 2^50 that wrap are
 * left to `exact_row`. The 32 operations of a sub-vector stand in the order of their random numbers.
 */
#if defined(LEVEL_SCALAR)

void LEVEL(dot_wide)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count, const float *x,
                     float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const uint32_t *step_keys,
                     ptrdiff_t first_sub, int watching, seen *n) {
    LEVEL(dot_general)(m, g, u, order, count, x, acc, pitch, take, nv, step_keys, first_sub, watching, n);
}

#else

/* Forms: any places without subnormals, any others, fixed-point places whose sums are exact. */
enum { FLUSHING, GRADUAL, FIXED_SUMS };

/* Constants of a place; `whole` all bits for fixed point, of which only what becomes 0 underflows, else none. `above` and `below` are what
 * results beyond max and min become, unless they are beyond `edge`; span: of all codes, 0: does not wrap. */
typedef struct {
    vd mask, least, part, magic, flush, normal, whole, max, min, above, below, edge, span;
    int wraps, takes_nan, takes_infinity; /* takes: to 0, to not-a-number */
} wide_place;

/* What happened at a place in VD neurons: results above and below the range, underflows, the largest result that was to wrap. */
typedef struct {
    int64_t above, below, underflow;
    vd far;
} happened;

#define FAR 0x1p50 /* codes that `(v + M) - M` still rounds to integers */

/* What results beyond the largest value become, of either sign. */
static inline double beyond_max(const fmt *f, int mode, int negative) {
    const int stops = mode == TOWARD_ZERO || mode == (negative ? UPWARD : DOWNWARD);
    if (f->kind == FIXED || f->overflow == SATURATE || stops) return negative ? f->min : f->max;
    return f->overflow == TO_NAN ? NAN : negative ? -INFINITY : INFINITY;
}

static inline wide_place wide_of(const fmt *f, int mode) {
    const int real = f->kind == FLOAT, places = real ? f->places : 0;
    const double one = ldexp(1.0, -places), half = one / 2, normal = ldexp(1.0, real ? f->min_exp : -f->places);
    const double flush = real && !f->subnormal ? normal : 0.0, wraps = f->overflow == WRAP;
    const uint64_t bits = real ? 0 : ~(uint64_t)0;
    double whole;
    memcpy(&whole, &bits, sizeof whole);
    return (wide_place){
        vd_set(real ? INFINITY : 0.0), vd_set(flush > 0.0 ? normal / 2 : normal), vd_set(mode == STOCHASTIC ? one * 0x1p-12 : half),
        vd_set(1.5 * 0x1p52 * one), vd_set(flush), vd_set(normal), vd_set(whole), vd_set(f->max), vd_set(f->min),
        vd_set(beyond_max(f, mode, 0)), vd_set(beyond_max(f, mode, 1)),
        vd_set(!real || f->overflow == SATURATE ? INFINITY : DBL_MAX), vd_set(wraps ? f->codes * normal : 0.0),
        wraps, !real, f->overflow == TO_NAN};
}

/* r, beyond the range, as the format has it. */
INLINE vd in_range(vd r, const wide_place *f, const int form, happened *h) {
    const vd most = vd_set(DBL_MAX), none = vd_set(0.0);
    vdm high = vd_lt(f->max, r), low = vd_lt(r, f->min);
    if (form != FIXED_SUMS) {
        high = vdm_and(high, vd_le(r, f->edge));
        low = vdm_and(low, vd_le(vd_neg(f->edge), r));
    }
    h->above += vdm_count(high), h->below += vdm_count(low);
    if (f->wraps) {
        const vd magic = vd_mul(f->span, vd_set(1.5 * 0x1p52)), round = vd_sub(r, vd_sub(vd_add(r, magic), magic));
        const vd down = vd_pick(vd_lt(f->max, round), vd_sub(round, f->span), round);
        h->far = vd_max(vd_abs(r), h->far); /* not-a-number is not far */
        r = vd_pick(vd_lt(down, f->min), vd_add(down, f->span), down);
    } else
        r = vd_pick(high, f->above, vd_pick(low, f->below, r));
    if (form != FIXED_SUMS && f->takes_nan) r = vd_pick(vd_le(r, vd_set(INFINITY)), r, none);
    if (form != FIXED_SUMS && f->takes_infinity) r = vd_pick(vd_le(vd_abs(r), most), r, vd_set(NAN));
    return r;
}

/* v to the place's units; `sum` a constant: whether v is, of a and b, and by what it was rounded. Other constants: `counted` and
 * `limited`, whether underflows and results out of range are looked for. */
enum { PRODUCT_OF, SUM_OF, ODD_SUM_OF };
INLINE vd wide_rounded(vd v, vd a, vd b, const int sum, const wide_place *f, const int mode, const int form, ve *word, ve key,
                       const int counted, const int limited, happened *h) {
    const vd exact = v;
    vd r = v;
    if (form != FIXED_SUMS || sum == PRODUCT_OF) {
        vd scale = form == FIXED_SUMS ? f->least : vd_max(vd_and(v, f->mask), f->least);
        if (form != FIXED_SUMS && limited) scale = vd_min(scale, vd_set(0x1p300)); /* infinities go through */
        if (mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC) scale = vd_or(scale, vd_and(v, vd_set(-0.0)));
        if (mode == NEAREST_AWAY) v = vd_fma(scale, f->part, v);
        if (mode == STOCHASTIC) {
            v = vd_fma(scale, vd_mul(f->part, vd_of(ve_down(*word))), v);
            *word = ve_add(*word, key);
        }
        r = vd_fnma(scale, f->magic, vd_fma(scale, f->magic, v)); /* scale * magic is exact */
        if (form == FLUSHING) r = vd_flushed(r, f->flush);
        if (counted) {
            vdm inexact = vd_ne(exact, r), small = vd_lt(vd_abs(exact), f->normal);
            if (sum == SUM_OF && form != FIXED_SUMS) {
                const vdm cut = vdm_or(vd_ne(vd_sub(exact, a), b), vd_ne(vd_sub(exact, b), a));
                inexact = vdm_or(inexact, cut);
                if (mode == UPWARD) small = vdm_or(small, vdm_and(cut, vd_eq(exact, f->normal)));
                if (mode == DOWNWARD) small = vdm_or(small, vdm_and(cut, vd_eq(exact, vd_neg(f->normal))));
            }
            h->underflow += vdm_count(vdm_and(vdm_and(inexact, small), vd_eq(vd_and(r, f->whole), vd_set(0.0))));
        }
    }
    return limited ? in_range(r, f, form, h) : r;
}

/* One sub-vector of VD neurons: acc and word INOUT, h INOUT (3). */
INLINE void wide_sub_vector(float *acc, const float *w, const double *x, const wide_place *f, const int mode, const int form,
                            const int odd, const uint32_t *key, uint32_t *word, const int watching, happened *h) {
    const int counted = watching != NOTHING, limited = watching == LIMITS, sum = odd ? ODD_SUM_OF : SUM_OF;
    const vd none = vd_set(0.0);
    const ve k = ve_load(key);
    ve next = ve_load(word);
    vd p[16];
#define ADDED(a, b) (odd ? vd_odd(a, b) : vd_add(a, b))
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++)
        p[j] = wide_rounded(vd_mul(vd_load(w + j * LANES), vd_set(x[j])), none, none, PRODUCT_OF, f + PRODUCT, mode, form, &next, k,
                            counted, limited, h + PRODUCT);
#pragma GCC unroll 4
    for (int width = 8; width; width /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < width; j++) {
            const vd a = p[2 * j], b = p[2 * j + 1];
            p[j] = wide_rounded(ADDED(a, b), a, b, sum, f + TREE, mode, form, &next, k, counted, limited, h + TREE);
        }
    const vd a = vd_load(acc);
    vd_store(acc, wide_rounded(ADDED(a, p[0]), a, p[0], sum, f + ACCUMULATOR, mode, form, &next, k, counted, 1, h + ACCUMULATOR));
#undef ADDED
    if (mode == STOCHASTIC) ve_store(word, form == FIXED_SUMS ? ve_add(next, ve_up(k, 4)) : next); /* 16 sums drew none */
}

/* What happened in one LOCK_ROWS rows with one vector; 0 if a code was too far out. */
static int told(const happened *h, const fmt *formats, int mode, seen *n) {
    for (int p = 0; p < 3; p++) {
        double far[VD];
        vd_put(far, h[p].far);
        for (int l = 0; l < VD; l++)
            if (!(far[l] <= FAR * ldexp(1.0, -formats[p].places))) return 0;
    }
    for (int p = 0; p < 3; p++) {
        const fmt *f = formats + p;
        const int64_t part[2] = {h[p].above, h[p].below};
        n[p].underflow += h[p].underflow;
        for (int negative = 0; negative < 2; negative++) {
            if (fabs(beyond_max(f, mode, negative)) < INFINITY)
                n[p].saturation += part[negative];
            else
                n[p].overflow += part[negative];
            if (f->overflow == RAISE) n[p].raised += part[negative];
        }
    }
    return 1;
}

/* LOCK_ROWS rows in `order` with `used` vectors, the ones at `place` from `first` on. */
INLINE void wide_lock(const general_call *c, const int32_t *order, ptrdiff_t first, const ptrdiff_t *place, ptrdiff_t used,
                      const int mode, const int form, const int odd, const int watching) {
    float wide[16 * LANES] ALIGNED, sums[TILE * LANES] ALIGNED;
    happened h[TILE][3];
    uint32_t key[TILE * LANES] ALIGNED, word[TILE * LANES] ALIGNED;
    wide_place f[3];
    const fmt *formats = c->u[order[0] & 3].place;
    float *a = c->acc + first * c->pitch;
    for (int p = 0; p < 3; p++) f[p] = wide_of(formats + p, mode);
    for (ptrdiff_t u = 0; u < used; u++) {
        gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
        if (mode == STOCHASTIC) lock_words(key + u * LANES, word + u * LANES, c->step_keys[first + place[u]], order, c->first_sub);
        for (int p = 0; p < 3; p++) h[u][p] = (happened){0, 0, 0, vd_set(0.0)};
    }
    for (ptrdiff_t s = 0; s < c->m->subs; s++) {
        widen(wide, c->m, order, s);
        for (ptrdiff_t u = 0; u < used; u++) {
            double x[16];
            for (int j = 0; j < 16; j++) x[j] = c->x[(s * c->nv + first + place[u]) * 16 + j];
            for (int i = 0; i < LANES; i += VD) {
                const ptrdiff_t lane = u * LANES + i;
                wide_sub_vector(sums + lane, wide + i, x, f, mode, form, odd, key + lane, word + lane, watching, h[u]);
            }
        }
    }
    for (ptrdiff_t u = 0; u < used; u++) {
        if (told(h[u], formats, mode, c->n))
            scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
        else
            exactly(c, order, first + place[u]);
    }
}

typedef void lock_of(const general_call *, const int32_t *, ptrdiff_t, const ptrdiff_t *, ptrdiff_t);
#define WIDE_LOCK(name, mode, form, odd, watching)                                                                                \
    static __attribute__((noinline)) void name(const general_call *c, const int32_t *order, ptrdiff_t first, const ptrdiff_t *place, \
                                               ptrdiff_t used) {                                                                  \
        wide_lock(c, order, first, place, used, mode, form, odd, watching);                                                       \
    }
/* What is watched is seldom fast: one form does for floats. */
#define WIDE_MODE(name, mode, odd)                                                                         \
    WIDE_LOCK(name##_flushing, mode, FLUSHING, odd, NOTHING) WIDE_LOCK(name##_gradual, mode, GRADUAL, odd, NOTHING) \
    WIDE_LOCK(name##_counted, mode, FLUSHING, odd, COUNTS) WIDE_LOCK(name##_limited, mode, FLUSHING, odd, LIMITS)
#define WIDE_FIXED(name, mode)                                                                                    \
    WIDE_LOCK(name##_fixed, mode, FIXED_SUMS, 0, NOTHING) WIDE_LOCK(name##_fixed_counted, mode, FIXED_SUMS, 0, COUNTS) \
    WIDE_LOCK(name##_fixed_limited, mode, FIXED_SUMS, 0, LIMITS)
#define WIDE_ALL(name, mode) WIDE_MODE(name, mode, 0) WIDE_FIXED(name, mode)
WIDE_LOCK(wide_innocuous_flushing, NEAREST_EVEN, FLUSHING, 0, NOTHING)
WIDE_LOCK(wide_innocuous_gradual, NEAREST_EVEN, GRADUAL, 0, NOTHING)
WIDE_MODE(wide_nearest, NEAREST_EVEN, 1)
WIDE_FIXED(wide_nearest, NEAREST_EVEN)
WIDE_ALL(wide_away, NEAREST_AWAY)
WIDE_ALL(wide_zero, TOWARD_ZERO)
WIDE_ALL(wide_up, UPWARD)
WIDE_ALL(wide_down, DOWNWARD)
WIDE_ALL(wide_stochastic, STOCHASTIC)

/* Which form the formats of a gate take. */
static lock_of *wide_form(const fmt *f, const general *g, int innocuous, int watching) {
#define FORMS(name) {name##_flushing, name##_gradual, name##_fixed, name##_counted, name##_counted, name##_fixed_counted, \
                     name##_limited, name##_limited, name##_fixed_limited}
    static lock_of *const run[][9] = {FORMS(wide_nearest), FORMS(wide_away), FORMS(wide_zero),
                                      FORMS(wide_up), FORMS(wide_down), FORMS(wide_stochastic)};
#undef FORMS
    int fixed = 1, flushes = 0;
    for (int p = PRODUCT; p <= ACCUMULATOR; p++) {
        fixed &= f[p].kind == FIXED && (p == PRODUCT || f[p].places >= f[p - 1].places);
        flushes |= f[p].kind == FLOAT && !f[p].subnormal;
    }
    const int form = fixed ? FIXED_SUMS : flushes ? FLUSHING : GRADUAL;
    if (innocuous && g->mode == NEAREST_EVEN && !fixed && watching == NOTHING)
        return flushes ? wide_innocuous_flushing : wide_innocuous_gradual;
    return run[g->mode][form + 3 * (watching == COUNTS) + 6 * (watching == LIMITS)];
}

/* Vector v's rows again, wherever they go. */
static void again(const general_call *c, const int32_t *order, ptrdiff_t v) {
    const ptrdiff_t here = 0;
    wide_form(c->u[order[0] & 3].place, c->g, 0, LIMITS)(c, order, v, &here, 1);
}

/* As `dot_general`; g: mode, and whether to nearest even sums may be rounded to float64 first, where nothing is watched; watching: NOTHING
 * where products and tree keep within their ranges, COUNTS there, or LIMITS, which counts too. */
void LEVEL(dot_wide)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count, const float *x,
                     float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const uint32_t *step_keys,
                     ptrdiff_t first_sub, int watching, seen *n) {
    const general_call c = {m, g, u, order, count, pitch, nv, first_sub, x, acc, take, step_keys, n};
    lock_of *const run = wide_form(u[order[0] & 3].place, g, g->innocuous, watching);
    const unsigned before = turned(g->mode);
    for (ptrdiff_t r = 0; r < count; r += LOCK_ROWS)
        for (ptrdiff_t first = 0; first < nv; first += TILE) {
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(take, first, nv, place);
            if (used) run(&c, order + r, first, place, used);
        }
    _mm_setcsr(before);
}

#endif
