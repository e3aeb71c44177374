/* Dot products that float32 lanes can't round (see `dot_general.h`), in float64 lanes: floats of up to 24 bits of significand and
 * signed fixed point of up to 24, in any mode.
 *
 * A product v is exact. With M = 1.5 2^52 units of the result, (v + M) - M is v rounded to units in the processor's direction; the
 * modes that the processor does not have are cuts, of |v| + half a unit and of |v| + R units / 2^12. A sum is rounded to 53 bits
 * first, in the same direction, which is harmless: these units and half units are float64 values. To nearest even the caller
 * proves that it is innocuous.
 *
 * Products and tree can't leave their range, as the caller proves; a row whose accumulator does is computed again by `exact_row`.
 * The 32 operations of a sub-vector stand in the order of their random numbers.
 */
#if defined(LEVEL_SCALAR)

void LEVEL(dot_wide)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count, const float *x,
                     float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const uint32_t *step_keys,
                     ptrdiff_t first_sub, int counted, seen *n) {
    (void)counted;
    LEVEL(dot_general)(m, g, u, order, count, x, acc, pitch, take, nv, step_keys, first_sub, COUNTS, n);
}

#else

/* Constants of a place; `whole` all bits for fixed point, of which only what becomes 0 underflows, else none. */
typedef struct {
    vd mask, least, part, magic, flush, normal, whole;
} wide_place;

static inline wide_place wide_of(const lanes *f, int mode) {
    const double part = mode == STOCHASTIC ? f->one * 0x1p-12 : f->half;
    const uint64_t bits = f->mask ? 0 : ~(uint64_t)0;
    double whole;
    memcpy(&whole, &bits, sizeof whole);
    return (wide_place){vd_set(f->mask ? INFINITY : 0.0), vd_set(f->least), vd_set(part), vd_set(f->magic), vd_set(f->flush),
                        vd_set(f->normal), vd_set(whole)};
}

/* v to the place's units, but for what is to be flushed. `fixed` is a constant: whether all places are fixed-point. */
INLINE vd wide_units(vd v, const wide_place *f, const int mode, const int fixed, ve *word, ve key) {
    vd scale = fixed ? f->least : vd_max(vd_and(v, f->mask), f->least);
    if (mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC) scale = vd_or(scale, vd_and(v, vd_set(-0.0)));
    if (mode == NEAREST_AWAY) v = vd_fma(scale, f->part, v);
    if (mode == STOCHASTIC) {
        v = vd_fma(scale, vd_mul(f->part, vd_of(ve_down(*word))), v);
        *word = ve_add(*word, key);
    }
    return vd_fnma(scale, f->magic, vd_fma(scale, f->magic, v)); /* scale * magic is exact */
}

/* v to the place's format; `below` NULL or a count. */
INLINE vd wide_rounded(vd v, const wide_place *f, const int mode, const int fixed, ve *word, ve key, int64_t *below) {
    vd r = wide_units(v, f, mode, fixed, word, key);
    if (!fixed) r = vd_flushed(r, f->flush);
    if (below) *below += vd_below(v, r, f->normal, f->whole);
    return r;
}

/* One sub-vector of VD neurons: acc and word INOUT, top INOUT the largest magnitude, below INOUT (3) underflows or NULL. */
INLINE void wide_sub_vector(float *acc, double *top, const float *w, const double *x, const wide_place *f, const int mode,
                            const int fixed, const uint32_t *key, uint32_t *word, int64_t *below) {
#define BELOW(place) (below ? below + (place) : NULL)
    const ve k = ve_load(key);
    ve next = ve_load(word);
    vd p[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++)
        p[j] = wide_rounded(vd_mul(vd_load(w + j * LANES), vd_set(x[j])), f + PRODUCT, mode, fixed, &next, k,
                            BELOW(PRODUCT));
#pragma GCC unroll 4
    for (int width = 8; width; width /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < width; j++)
            p[j] = wide_rounded(vd_add(p[2 * j], p[2 * j + 1]), f + TREE, mode, fixed, &next, k, BELOW(TREE));
    const vd sum = wide_rounded(vd_add(vd_load(acc), p[0]), f + ACCUMULATOR, mode, fixed, &next, k,
                                BELOW(ACCUMULATOR));
#undef BELOW
    vd_put(top, vd_max(vd_get(top), vd_abs(sum))); /* the second one if that is not a number */
    vd_store(acc, sum);
    if (mode == STOCHASTIC) ve_store(word, next);
}

INLINE void wide_rows(const general_call *c, const int mode, const int fixed, const int counted) {
    float wide[16 * LANES] ALIGNED, sums[TILE * LANES] ALIGNED;
    double top[TILE * LANES] ALIGNED;
    int64_t below[TILE][3];
    uint32_t key[TILE * LANES] ALIGNED, word[TILE * LANES] ALIGNED;
    wide_place f[3];
    for (int p = 0; p < 3; p++) f[p] = wide_of(&c->g->place[p], mode);
    const float most = c->g->place[ACCUMULATOR].max;
    for (ptrdiff_t r = 0; r < c->count; r += LOCK_ROWS) {
        const int32_t *order = c->order + r;
        for (ptrdiff_t first = 0; first < c->nv; first += TILE) {
            float *a = c->acc + first * c->pitch;
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(c->take, first, c->nv, place);
            if (!used) continue;
            for (ptrdiff_t u = 0; u < used; u++) {
                gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
                if (mode == STOCHASTIC)
                    lock_words(key + u * LANES, word + u * LANES, c->step_keys[first + place[u]], order, c->first_sub);
                for (int p = 0; p < 3; p++) below[u][p] = 0;
                for (ptrdiff_t l = u * LANES; l < (u + 1) * LANES; l++) top[l] = 0.0;
            }
            for (ptrdiff_t s = 0; s < c->m->subs; s++) {
                widen(wide, c->m, order, s);
                for (ptrdiff_t u = 0; u < used; u++) {
                    double x[16];
                    for (int j = 0; j < 16; j++) x[j] = c->x[(s * c->nv + first + place[u]) * 16 + j];
                    for (int i = 0; i < LANES; i += VD) {
                        const ptrdiff_t lane = u * LANES + i;
                        wide_sub_vector(sums + lane, top + lane, wide + i, x, f, mode, fixed, key + lane, word + lane,
                                        counted ? below[u] : NULL);
                    }
                }
            }
            for (ptrdiff_t u = 0; u < used; u++) {
                int out = 0;
                for (int l = 0; l < LANES; l++)
                    out |= mode == NEAREST_EVEN ? !(top[u * LANES + l] <= most) : !(top[u * LANES + l] < most);
                if (out) {
                    again(c, order, first + place[u]);
                    continue;
                }
                scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
                for (int p = 0; p < 3; p++) c->n[p].underflow += below[u][p];
            }
        }
    }
}

#define WIDE_FORM(name, mode, fixed, counted) \
    static __attribute__((noinline)) void name(const general_call *c) { wide_rows(c, mode, fixed, counted); }
#define WIDE_MODE(name, mode)                                                                  \
    WIDE_FORM(name, mode, 0, 0) WIDE_FORM(name##_fixed, mode, 1, 0)                            \
    WIDE_FORM(name##_counted, mode, 0, 1) WIDE_FORM(name##_fixed_counted, mode, 1, 1)
WIDE_MODE(wide_nearest, NEAREST_EVEN)
WIDE_MODE(wide_away, NEAREST_AWAY)
WIDE_MODE(wide_zero, TOWARD_ZERO)
WIDE_MODE(wide_up, UPWARD)
WIDE_MODE(wide_down, DOWNWARD)
WIDE_MODE(wide_stochastic, STOCHASTIC)

/* As `dot_general`; counted: whether underflows are. */
void LEVEL(dot_wide)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count, const float *x,
                     float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const uint32_t *step_keys,
                     ptrdiff_t first_sub, int counted, seen *n) {
#define FORMS(name) {name, name##_fixed, name##_counted, name##_fixed_counted}
    static void (*const run[][4])(const general_call *) = {FORMS(wide_nearest), FORMS(wide_away), FORMS(wide_zero),
                                                           FORMS(wide_up), FORMS(wide_down), FORMS(wide_stochastic)};
#undef FORMS
    const general_call c = {m, g, u, order, count, pitch, nv, first_sub, x, acc, take, step_keys, n};
    const int fixed = !(g->place[PRODUCT].mask | g->place[TREE].mask | g->place[ACCUMULATOR].mask);
    const unsigned before = turned(g->mode);
    run[g->mode][fixed + 2 * !!counted](&c);
    _mm_setcsr(before);
}

#endif
