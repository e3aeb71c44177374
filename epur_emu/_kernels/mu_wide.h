/* The multifunctional unit on blocks of 16 neurons in float64 lanes: its places (the MU's own, the cell's, the output's) are any
 * floats of up to 24 bits of significand and signed fixed point of up to 24, in any mode and method.
 *
 * Each operation is rounded to 53 bits and then to its place's as in `dot_wide.h`. Products are exact; sums and quotients of values of
 * the MU's format may be rounded to float64 first. A function's value is known to 2^-47 of itself, see `mu_powers`: where all
 * numbers within 2^-45 round alike, so does the exact one (A. Ziv, "Fast evaluation of elementary mathematical functions with correctly
 * rounded last bit", 1991). A block in which they do not, or in which a result leaves its place's range, is left to the exact path.
 *
 * And sums of integers as values of the MU's format: their products with scales are exact.
 */
#if defined(LEVEL_SCALAR)

int LEVEL(mu_wide)(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    (void)k, (void)block, (void)acc, (void)c, (void)h, (void)step_key, (void)n;
    return 0;
}

int LEVEL(int_values)(const lanes *f, int mode, ptrdiff_t block, const int32_t *acc, const double *scale, float *sums,
                      uint32_t step_key, uint32_t operation, seen *n) {
    (void)f, (void)mode, (void)block, (void)acc, (void)scale, (void)sums, (void)step_key, (void)operation, (void)n;
    return 0;
}

#else

#define PARTS 2 /* vectors side by side: one's operations fill the other's waiting times */
#define PART for (int i = 0; i < PARTS; i++)
typedef struct {
    vd p[PARTS];
} vp;
#define VP (PARTS * VD)

INLINE vp vp_set(double s) {
    vp r;
    PART r.p[i] = vd_set(s);
    return r;
}
INLINE vp vp_load(const float *from) {
    vp r;
    PART r.p[i] = vd_load(from + i * VD);
    return r;
}
INLINE void vp_store(float *to, vp v) { PART vd_store(to + i * VD, v.p[i]); }
#define VP_OPERATION(name)                               \
    INLINE vp vp_##name(vp a, vp b) {                    \
        PART a.p[i] = vd_##name(a.p[i], b.p[i]);         \
        return a;                                        \
    }
VP_OPERATION(add)
VP_OPERATION(sub)
VP_OPERATION(mul)
VP_OPERATION(div)
/* r within [-most, most]; not-a-number stays. */
INLINE vp vp_clamped(vp r, double most) {
    PART r.p[i] = vd_max(vd_set(-most), vd_min(vd_set(most), r.p[i]));
    return r;
}

/* One place: its constants, its largest value, and how often it underflowed. */
typedef struct {
    wide_place f;
    vd max;
    vn below;
} mu_place;

/* A gate's operations on VP cells, one after the other; `left`: lanes that the exact path must do. */
typedef struct {
    mu_place *to;
    vdm *left;
    ve key[PARTS], word[PARTS];
} mu_line;

INLINE mu_place mu_place_of(const lanes *f, const int mode) { return (mu_place){wide_of(f, mode), vd_set(f->max), vn_zero()}; }

/* The random numbers' keys of a block's gates (4, 16), and their words of an operation. */
INLINE void mu_words(uint32_t *key, uint32_t *word, uint32_t step_key, ptrdiff_t block, uint32_t operation) {
    for (uint32_t q = 0; q < 4; q++) block_keys(key + q * 16, word + q * 16, step_key, (uint32_t)block, q);
    for (int l = 0; l < 64; l++) word[l] += key[l] * operation;
}
INLINE void mu_words_at(mu_line *g, const uint32_t *key, const uint32_t *word) {
    PART g->key[i] = ve_load(key + i * VD), g->word[i] = ve_load(word + i * VD);
}

INLINE vp mu_stored(mu_line *g, vp v, mu_place *p, const int mode) {
    vdm small[PARTS], left = *g->left;
    vp r;
    PART {
        r.p[i] = wide_units(v.p[i], &p->f, mode, 0, &g->word[i], g->key[i]);
        left = vdm_or(left, vd_beyond(r.p[i], p->max));
        small[i] = vd_lt(vd_abs(v.p[i]), p->f.normal);
    }
    *g->left = left;
    if (vdm_any(vdm_or(small[0], small[1]))) PART {
            r.p[i] = vd_flushed(r.p[i], p->f.flush);
            p->below = vn_add(p->below, vd_below(v.p[i], r.p[i], p->f.normal, p->f.whole));
        }
    return r;
}
INLINE vp mu_op(mu_line *g, vp v, const int mode) { return mu_stored(g, v, g->to, mode); }

/* A function of x whose value is near v; exact and rational where x is 0, irrational elsewhere. */
INLINE vp mu_function(mu_line *g, vp v, vp x, const int mode) {
    mu_place *p = g->to;
    vdm irrational[PARTS], small[PARTS], left = *g->left;
    vp r, low, high;
    PART {
        irrational[i] = vd_ne(x.p[i], vd_set(0.0));
        const vd doubt = vd_only(irrational[i], vd_mul(v.p[i], vd_set(0x1p-45)));
        low.p[i] = vd_sub(v.p[i], doubt), high.p[i] = vd_add(v.p[i], doubt);
        ve word = g->word[i];
        const vd other = wide_units(low.p[i], &p->f, mode, 0, &word, g->key[i]);
        r.p[i] = wide_units(high.p[i], &p->f, mode, 0, &g->word[i], g->key[i]);
        left = vdm_or(left, vdm_or(vd_ne(other, r.p[i]), vd_beyond(r.p[i], p->max)));
        small[i] = vd_lt(vd_abs(low.p[i]), p->f.normal);
    }
    if (vdm_any(vdm_or(small[0], small[1]))) PART {
            left = vdm_or(left, vdm_differ(small[i], vd_lt(vd_abs(high.p[i]), p->f.normal)));
            r.p[i] = vd_flushed(r.p[i], p->f.flush);
            /* with 53 bits it is no value of the place */
            const vd inexact = vd_or(low.p[i], vd_only(irrational[i], vd_set(0x1p-1074)));
            p->below = vn_add(p->below, vd_below(inexact, r.p[i], p->f.normal, p->f.whole));
        }
    *g->left = left;
    return r;
}

/* e^x = up (even + odd), e^-x = down (even - odd). */
typedef struct {
    vp even, odd, up, down;
} powers;

/* With k the whole number next to x / ln 2 and r = x - k ln 2: cosh r, sinh r and powers of two, for |x| <= 128. Whatever the processor's
 * direction, with u = 2^-52: |r| < 0.3466 is wrong by u / 2 at most (fma; 0 where k = 0), what the series leave out is less than 2^-57 of
 * them, cosh r and sinh r are wrong by 1.4 u and 2.4 u of themselves, e^x by 7 u. */
INLINE powers mu_powers(vp x) {
    static const double cosh_of[] = {1.0 / 479001600, 1.0 / 3628800, 1.0 / 40320, 1.0 / 720, 1.0 / 24, 1.0 / 2, 1.0};
    static const double sinh_of[] = {1.0 / 6227020800, 1.0 / 39916800, 1.0 / 362880, 1.0 / 5040, 1.0 / 120, 1.0 / 6, 1.0};
    powers e;
    vp r, square;
    PART {
        const vd k = vd_whole(vd_mul(x.p[i], vd_set(0x1.71547652b82fep+0)));
        r.p[i] = vd_fnma(k, vd_set(0x1.abc9e3b39803fp-56), vd_fnma(k, vd_set(0x1.62e42fefa39efp-1), x.p[i]));
        e.up.p[i] = vd_power(k), e.down.p[i] = vd_power(vd_sub(vd_set(0.0), k));
        square.p[i] = vd_mul(r.p[i], r.p[i]);
        e.even.p[i] = vd_set(cosh_of[0]), e.odd.p[i] = vd_set(sinh_of[0]);
    }
#pragma GCC unroll 6
    for (int n = 1; n < 7; n++) PART {
            e.even.p[i] = vd_fma(e.even.p[i], square.p[i], vd_set(cosh_of[n]));
            e.odd.p[i] = vd_fma(e.odd.p[i], square.p[i], vd_set(sinh_of[n]));
        }
    e.odd = vp_mul(e.odd, r);
    return e;
}
INLINE vp mu_falling(powers e) { return vp_mul(e.down, vp_sub(e.even, e.odd)); }

/* Segment k of (r + end) count / (2 end): r count is exact, and whole numbers may be floored beforehand. */
INLINE vp mu_pwl(const mu_wides *k, mu_line *g, vp r, const int tangent, const int mode) {
    const double end = tangent ? 4.0 : 8.0, count = k->segments;
    const double *slope = k->slope + tangent * k->segments, *intercept = k->intercept + tangent * k->segments;
    vp a, b;
    r = vp_clamped(r, end);
    PART {
        const vd whole = vd_add(vd_floor(vd_mul(r.p[i], vd_set(count))), vd_set(end * count));
        const vd at = vd_min(vd_floor(vd_mul(whole, vd_set(0.5 / end))), vd_set(count - 1));
        const ve segment = vd_index(vd_max(at, vd_set(0.0))); /* 0 for not-a-number */
        a.p[i] = vd_gather(slope, segment), b.p[i] = vd_gather(intercept, segment);
    }
    return mu_op(g, vp_add(mu_op(g, vp_mul(a, r), mode), b), mode);
}

INLINE vp mu_activated(const mu_wides *k, mu_line *g, vp r, float limit, const int tangent, const int mode) {
    const vp one = vp_set(1.0);
    r = vp_clamped(r, limit);
    if (k->method == PWL) return mu_pwl(k, g, r, tangent, mode);
    const powers e = mu_powers(r);
    if (k->method == EXACT && !tangent) return mu_function(g, vp_div(one, vp_add(one, mu_falling(e))), r, mode);
    if (k->method == EXACT) { /* terms do not cancel: wrong by 21 u at most, where k = 1 and r is least */
        const vp sum = vp_add(e.up, e.down), difference = vp_sub(e.up, e.down);
        const vp upper = vp_add(vp_mul(sum, e.odd), vp_mul(difference, e.even));
        return mu_function(g, vp_div(upper, vp_add(vp_mul(difference, e.odd), vp_mul(sum, e.even))), r, mode);
    }
    if (!tangent) {
        const vp q = mu_function(g, mu_falling(e), r, mode);
        return mu_op(g, vp_div(one, mu_op(g, vp_add(q, one), mode)), mode);
    }
    const vp a = mu_function(g, vp_mul(e.up, vp_add(e.even, e.odd)), r, mode), q = mu_function(g, mu_falling(e), r, mode);
    const vp difference = mu_op(g, vp_sub(a, q), mode);
    return mu_op(g, vp_div(difference, mu_op(g, vp_add(a, q), mode)), mode);
}

INLINE int mu_wide_block(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n,
                         const int mode) {
    const float *bias = k->bias + block * 64, *peep = k->peep ? k->peep + block * 48 : NULL;
    float new_c[16], new_h[16];
    uint32_t key[64], word[64];
    mu_place place[3];
    for (int p = 0; p < 3; p++) place[p] = mu_place_of(&k->place[p], mode);
    if (mode == STOCHASTIC) mu_words(key, word, step_key, block, OP_MU);
    for (int l = 0; l < 16; l += VP) {
        const vp before = vp_load(c + l);
        vdm left = vdm_none();
        mu_line line[4];
        vp gate[4], taken = before;
        if (peep) PART { /* to nearest even; in other modes the MU holds it */
                ve any = ve_load(word);
                taken.p[i] = vd_flushed(wide_units(before.p[i], &place->f, mode, 0, &any, any), place->f.flush);
                left = vdm_or(left, vd_beyond(taken.p[i], place->max));
            }
        for (int q = 0; q < 4; q++) {
            mu_line *g = &line[q];
            *g = (mu_line){.to = place, .left = &left};
            if (mode == STOCHASTIC) mu_words_at(g, key + q * 16 + l, word + q * 16 + l);
            gate[q] = mu_op(g, vp_load(acc + q * 16 + l), mode);
            if (peep && q < 2)
                gate[q] = mu_op(g, vp_add(gate[q], mu_op(g, vp_mul(vp_load(peep + q * 16 + l), taken), mode)), mode);
            gate[q] = mu_op(g, vp_add(gate[q], vp_load(bias + q * 16 + l)), mode);
            if (q < 3) gate[q] = mu_activated(k, g, gate[q], k->clip, q == 2, mode);
        }
        mu_line *cell = &line[2], *out = &line[3];
        const vp fresh = mu_op(cell, vp_mul(gate[2], gate[0]), mode), kept = mu_op(cell, vp_mul(gate[1], before), mode);
        const vp now = mu_stored(cell, mu_op(cell, vp_add(fresh, kept), mode), place + 1, mode);
        const vp back = mu_op(cell, now, mode), t = mu_activated(k, cell, back, k->limit, 1, mode);
        if (peep) gate[3] = mu_op(out, vp_add(gate[3], mu_op(out, vp_mul(vp_load(peep + 32 + l), back), mode)), mode);
        const vp o = mu_activated(k, out, gate[3], k->clip, 0, mode), r = mu_op(out, vp_mul(o, t), mode);
        vp_store(new_c + l, now);
        vp_store(new_h + l, mu_stored(out, r, place + 2, mode));
        if (vdm_any(left)) return 0;
    }
    for (int l = 0; l < 16; l++) c[l] = new_c[l] == 0.0f ? 0.0f : new_c[l], h[l] = new_h[l] == 0.0f ? 0.0f : new_h[l];
    for (int p = 0; p < 3; p++) n[p].underflow += vn_sum(place[p].below);
    return 1;
}

INLINE int mu_integers(const lanes *f, ptrdiff_t block, const int32_t *acc, const double *scale, float *sums, uint32_t step_key,
                       uint32_t operation, seen *n, const int mode) {
    uint32_t key[64], word[64];
    vdm left = vdm_none();
    mu_place place = mu_place_of(f, mode);
    mu_line g = {.to = &place, .left = &left};
    if (mode == STOCHASTIC) mu_words(key, word, step_key, block, operation);
    for (int l = 0; l < 64; l += VP) {
        vp v;
        PART v.p[i] = vd_mul(vd_of(ve_load(acc + l + i * VD)), vd_get(scale + l + i * VD));
        if (mode == STOCHASTIC) mu_words_at(&g, key + l, word + l);
        vp_store(sums + l, mu_op(&g, v, mode));
    }
    n->underflow += vdm_any(left) ? 0 : vn_sum(place.below);
    return !vdm_any(left);
}

#define MU_WIDE(name, mode)                                                                                                   \
    static __attribute__((noinline)) int name(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h,        \
                                              uint32_t step_key, seen *n) {                                                   \
        return mu_wide_block(k, block, acc, c, h, step_key, n, mode);                                                         \
    }                                                                                                                         \
    static __attribute__((noinline)) int name##_integers(const lanes *f, ptrdiff_t block, const int32_t *acc,                 \
                                                         const double *scale, float *sums, uint32_t step_key,                 \
                                                         uint32_t operation, seen *n) {                                       \
        return mu_integers(f, block, acc, scale, sums, step_key, operation, n, mode);                                         \
    }
MU_WIDE(mu_nearest_even, NEAREST_EVEN)
MU_WIDE(mu_nearest_away, NEAREST_AWAY)
MU_WIDE(mu_toward_zero, TOWARD_ZERO)
MU_WIDE(mu_upward, UPWARD)
MU_WIDE(mu_downward, DOWNWARD)
MU_WIDE(mu_stochastic, STOCHASTIC)
#define MU_MODES(form) \
    {mu_nearest_even##form, mu_nearest_away##form, mu_toward_zero##form, mu_upward##form, mu_downward##form, mu_stochastic##form}

int LEVEL(mu_wide)(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    static int (*const run[])(const mu_wides *, ptrdiff_t, const float *, float *, float *, uint32_t, seen *) = MU_MODES();
    const unsigned before = turned(k->mode);
    const int done = run[k->mode](k, block, acc, c, h, step_key, n);
    _mm_setcsr(before);
    return done;
}

int LEVEL(int_values)(const lanes *f, int mode, ptrdiff_t block, const int32_t *acc, const double *scale, float *sums,
                      uint32_t step_key, uint32_t operation, seen *n) {
    static int (*const run[])(const lanes *, ptrdiff_t, const int32_t *, const double *, float *, uint32_t, uint32_t, seen *) =
        MU_MODES(_integers);
    const unsigned before = turned(mode);
    const int done = run[mode](f, block, acc, scale, sums, step_key, operation, n);
    _mm_setcsr(before);
    return done;
}

#endif
