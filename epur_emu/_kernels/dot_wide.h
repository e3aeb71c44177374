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

/* One sub-vector of VD neurons: acc and word INOUT, h INOUT (3). */
INLINE void wide_sub_vector(float *acc, const float *w, const double *x, const ranged_place *f, const int mode, const int form,
                            const int odd, const uint32_t *key, uint32_t *word, const int watching, happened *h) {
    const int counted = watching & COUNTS, limited = watching & LIMITS, sum = odd ? ODD_SUM_OF : SUM_OF;
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
    vd_store(acc, wide_rounded(ADDED(a, p[0]), a, p[0], sum, f + ACCUMULATOR, mode, form, &next, k, counted, SELDOM, h + ACCUMULATOR));
#undef ADDED
    if (mode == STOCHASTIC) ve_store(word, form == FIXED_SUMS ? ve_add(next, ve_up(k, 4)) : next); /* 16 sums drew none */
}

/* LOCK_ROWS rows in `order` with `used` vectors, the ones at `place` from `first` on. */
INLINE void wide_lock(const general_call *c, const int32_t *order, ptrdiff_t first, const ptrdiff_t *place, ptrdiff_t used,
                      const int mode, const int form, const int odd, const int watching) {
    float wide[16 * LANES] ALIGNED, sums[TILE * LANES] ALIGNED;
    happened h[TILE][3];
    uint32_t key[TILE * LANES] ALIGNED, word[TILE * LANES] ALIGNED;
    ranged_place f[3];
    const fmt *formats = c->u[order[0] & 3].place;
    float *a = c->acc + first * c->pitch;
    for (int p = 0; p < 3; p++) {
        const int tame = form == FIXED_SUMS || (c->flags & TAME && (p < ACCUMULATOR || formats[p].kind == FIXED));
        f[p] = ranged_of(formats + p, mode, tame);
    }
    for (ptrdiff_t u = 0; u < used; u++) {
        gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
        if (mode == STOCHASTIC) lock_words(key + u * LANES, word + u * LANES, c->step_keys[first + place[u]], order, c->first_sub);
        for (int p = 0; p < 3; p++) h[u][p] = NOTHING_HAPPENED;
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
        int near = 1;
        for (int p = 0; p < 3; p++) near &= near_enough(&h[u][p], formats + p);
        if (!near) {
            exactly(c, order, first + place[u]);
            continue;
        }
        scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
        for (int p = 0; p < 3; p++) told(vn_sum(h[u][p].above), vn_sum(h[u][p].below), vn_sum(h[u][p].underflow), formats + p, mode, c->n + p);
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
    WIDE_LOCK(name##_counted, mode, FLUSHING, odd, COUNTS) WIDE_LOCK(name##_limited, mode, FLUSHING, odd, LIMITS)   \
    WIDE_LOCK(name##_watched, mode, FLUSHING, odd, COUNTS | LIMITS)
#define WIDE_FIXED(name, mode)                                                                                      \
    WIDE_LOCK(name##_fixed, mode, FIXED_SUMS, 0, NOTHING) WIDE_LOCK(name##_fixed_counted, mode, FIXED_SUMS, 0, COUNTS) \
    WIDE_LOCK(name##_fixed_limited, mode, FIXED_SUMS, 0, LIMITS)                                                    \
    WIDE_LOCK(name##_fixed_watched, mode, FIXED_SUMS, 0, COUNTS | LIMITS)
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

static lock_of *wide_form(const fmt *f, const general *g, int innocuous, int watching) {
#define FORMS(name)                                                                                                       \
    {{name##_flushing, name##_gradual, name##_fixed}, {name##_counted, name##_counted, name##_fixed_counted},             \
     {name##_limited, name##_limited, name##_fixed_limited}, {name##_watched, name##_watched, name##_fixed_watched}}
    static lock_of *const run[][4][3] = {FORMS(wide_nearest), FORMS(wide_away), FORMS(wide_zero),
                                         FORMS(wide_up), FORMS(wide_down), FORMS(wide_stochastic)};
#undef FORMS
    const int form = form_of(f), flags = (watching & COUNTS ? 1 : 0) + (watching & LIMITS ? 2 : 0);
    if (innocuous && g->mode == NEAREST_EVEN && form != FIXED_SUMS && !flags)
        return form == FLUSHING ? wide_innocuous_flushing : wide_innocuous_gradual;
    return run[g->mode][flags][form];
}

/* Vector v's rows again, wherever they go. */
static void again(const general_call *c, const int32_t *order, ptrdiff_t v) {
    const ptrdiff_t here = 0;
    wide_form(c->u[order[0] & 3].place, c->g, 0, COUNTS | LIMITS)(c, order, v, &here, 1);
}

/* As `dot_general`; g: mode, and whether to nearest even sums may be rounded to float64 first, where nothing is watched; watching: COUNTS
 * underflows, LIMITS where products and tree may leave their ranges. */
void LEVEL(dot_wide)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count, const float *x,
                     float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const uint32_t *step_keys,
                     ptrdiff_t first_sub, int watching, seen *n) {
    const general_call c = {m, g, u, order, count, pitch, nv, first_sub, x, acc, take, step_keys, n, watching & TAME};
    const fmt *f = u[order[0] & 3].place;
    lock_of *const run = wide_form(f, g, g->innocuous, watching);
    rows_of *const drawn = watching ? NULL : drawn_wide(f, g);
    const unsigned before = turned(g->mode);
    if (drawn) drawn(&c);
    for (ptrdiff_t r = 0; r < count && !drawn; r += LOCK_ROWS)
        for (ptrdiff_t first = 0; first < nv; first += TILE) {
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(take, first, nv, place);
            if (used) run(&c, order + r, first, place, used);
        }
    _mm_setcsr(before);
}

#endif
