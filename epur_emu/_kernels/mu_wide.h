/* The multifunctional unit on blocks of 16 neurons in float64 lanes: its places (the MU's own, the cell's, the output's) are any
 * floats of up to 24 bits of significand and signed fixed point of up to 24, in any mode and method.
 *
 * Each operation is rounded to 53 bits and then to its place's as in `dot_wide.h`. Products are exact; sums and quotients of values of
 * the MU's format may be rounded to float64 first. A function's value is known to 2^-47 of itself, see `mu_powers`: where all
 * numbers within 2^-45 round alike, so does the exact one (A. Ziv, "Fast evaluation of elementary mathematical functions with correctly
 * rounded last bit", 1991). A block in which they do not, or in which a result leaves its place's range, is left to the exact path.
 */
#if defined(LEVEL_SCALAR)

int LEVEL(mu_wide)(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    (void)k, (void)block, (void)acc, (void)c, (void)h, (void)step_key, (void)n;
    return 0;
}

#else

/* One place: its constants, its largest value, and how often it underflowed. */
typedef struct {
    wide_place f;
    vd max;
    int64_t below;
} mu_place;

/* A gate's operations on VD cells, one after the other; `left`: lanes that the exact path must do. */
typedef struct {
    mu_place *to;
    vdm *left;
    ve key, word;
} mu_line;

INLINE vd mu_stored(mu_line *g, vd v, mu_place *p, const int mode) {
    const vd r = wide_rounded(v, &p->f, mode, 0, &g->word, g->key, NULL);
    *g->left = vdm_or(*g->left, vd_beyond(r, p->max));
    if (vdm_any(vd_lt(vd_abs(v), p->f.normal))) p->below += vd_below(v, r, p->f.normal, p->f.whole);
    return r;
}
INLINE vd mu_op(mu_line *g, vd v, const int mode) { return mu_stored(g, v, g->to, mode); }

/* A function of x whose value is near v; exact and rational where x is 0, irrational elsewhere. */
INLINE vd mu_function(mu_line *g, vd v, vd x, const int mode) {
    mu_place *p = g->to;
    const vdm irrational = vd_ne(x, vd_set(0.0));
    const vd doubt = vd_only(irrational, vd_mul(v, vd_set(0x1p-45))), low = vd_sub(v, doubt), high = vd_add(v, doubt);
    ve word = g->word;
    const vd one = wide_rounded(low, &p->f, mode, 0, &word, g->key, NULL);
    const vd r = wide_rounded(high, &p->f, mode, 0, &g->word, g->key, NULL);
    *g->left = vdm_or(*g->left, vdm_or(vd_ne(one, r), vd_beyond(r, p->max)));
    const vdm small = vd_lt(vd_abs(low), p->f.normal);
    if (vdm_any(small)) {
        *g->left = vdm_or(*g->left, vdm_differ(small, vd_lt(vd_abs(high), p->f.normal)));
        /* with 53 bits it is no value of the place */
        const vd inexact = vd_or(low, vd_only(irrational, vd_set(0x1p-1074)));
        p->below += vd_below(inexact, r, p->f.normal, p->f.whole);
    }
    return r;
}

/* e^x = up (even + odd), e^-x = down (even - odd). */
typedef struct {
    vd even, odd, up, down;
} powers;

/* With k the whole number next to x / ln 2 and r = x - k ln 2: cosh r, sinh r and powers of two, for |x| <= 128. Whatever the processor's
 * direction, with u = 2^-52: |r| < 0.3466 is wrong by u / 2 at most (fma; 0 where k = 0), what the series leave out is less than 2^-57 of
 * them, cosh r and sinh r are wrong by 1.4 u and 2.4 u of themselves, e^x by 7 u. */
INLINE powers mu_powers(vd x) {
    static const double cosh_of[] = {1.0 / 479001600, 1.0 / 3628800, 1.0 / 40320, 1.0 / 720, 1.0 / 24, 1.0 / 2, 1.0};
    static const double sinh_of[] = {1.0 / 6227020800, 1.0 / 39916800, 1.0 / 362880, 1.0 / 5040, 1.0 / 120, 1.0 / 6, 1.0};
    const vd k = vd_whole(vd_mul(x, vd_set(0x1.71547652b82fep+0)));
    const vd r = vd_fnma(k, vd_set(0x1.abc9e3b39803fp-56), vd_fnma(k, vd_set(0x1.62e42fefa39efp-1), x)), square = vd_mul(r, r);
    vd even = vd_set(cosh_of[0]), odd = vd_set(sinh_of[0]);
    for (int n = 1; n < 7; n++) {
        even = vd_fma(even, square, vd_set(cosh_of[n]));
        odd = vd_fma(odd, square, vd_set(sinh_of[n]));
    }
    return (powers){even, vd_mul(odd, r), vd_power(k), vd_power(vd_sub(vd_set(0.0), k))};
}
INLINE vd mu_falling(powers e) { return vd_mul(e.down, vd_sub(e.even, e.odd)); }

/* Segment k of (r + end) count / (2 end): r count is exact, and whole numbers may be floored beforehand. */
INLINE vd mu_pwl(const mu_wides *k, mu_line *g, vd r, const int tangent, const int mode) {
    const double end = tangent ? 4.0 : 8.0, count = k->segments;
    r = vd_max(vd_set(-end), vd_min(vd_set(end), r));
    const vd at = vd_floor(vd_mul(vd_add(vd_floor(vd_mul(r, vd_set(count))), vd_set(end * count)), vd_set(0.5 / end)));
    const ve segment = vd_index(vd_max(vd_min(at, vd_set(count - 1)), vd_set(0.0))); /* 0 for not-a-number */
    const ptrdiff_t first = tangent * k->segments;
    const vd p = mu_op(g, vd_mul(vd_gather(k->slope + first, segment), r), mode);
    return mu_op(g, vd_add(p, vd_gather(k->intercept + first, segment)), mode);
}

INLINE vd mu_activated(const mu_wides *k, mu_line *g, vd r, float most, const int tangent, const int mode) {
    const vd one = vd_set(1.0), limit = vd_set(most);
    r = vd_max(vd_sub(vd_set(0.0), limit), vd_min(limit, r));
    if (k->method == PWL) return mu_pwl(k, g, r, tangent, mode);
    const powers e = mu_powers(r);
    if (k->method == EXACT && !tangent) return mu_function(g, vd_div(one, vd_add(one, mu_falling(e))), r, mode);
    if (k->method == EXACT) { /* no sum of terms that cancel: wrong by 21 u at most, where k = 1 and r is least */
        const vd sum = vd_add(e.up, e.down), difference = vd_sub(e.up, e.down);
        const vd upper = vd_fma(sum, e.odd, vd_mul(difference, e.even)), lower = vd_fma(difference, e.odd, vd_mul(sum, e.even));
        return mu_function(g, vd_div(upper, lower), r, mode);
    }
    if (!tangent) {
        const vd q = mu_function(g, mu_falling(e), r, mode);
        return mu_op(g, vd_div(one, mu_op(g, vd_add(q, one), mode)), mode);
    }
    const vd a = mu_function(g, vd_mul(e.up, vd_add(e.even, e.odd)), r, mode), q = mu_function(g, mu_falling(e), r, mode);
    const vd difference = mu_op(g, vd_sub(a, q), mode);
    return mu_op(g, vd_div(difference, mu_op(g, vd_add(a, q), mode)), mode);
}

INLINE int mu_wide_block(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n,
                         const int mode) {
    const float *bias = k->bias + block * 64, *peep = k->peep ? k->peep + block * 48 : NULL;
    float new_c[16], new_h[16];
    uint32_t key[4][16], word[4][16];
    mu_place place[3];
    for (int p = 0; p < 3; p++) place[p] = (mu_place){wide_of(&k->place[p], mode), vd_set(k->place[p].max), 0};
    for (uint32_t q = 0; mode == STOCHASTIC && q < 4; q++) {
        block_keys(key[q], word[q], step_key, (uint32_t)block, q);
        for (int l = 0; l < 16; l++) word[q][l] += key[q][l] * OP_MU;
    }
    for (int l = 0; l < 16; l += VD) {
        const vd before = vd_load(c + l);
        vdm left = vdm_none();
        mu_line line[4];
        vd gate[4], taken = before;
        if (peep) { /* to nearest even; in other modes the MU holds it */
            ve any = ve_load(word[0]);
            taken = wide_rounded(before, &place->f, mode, 0, &any, any, NULL);
            left = vd_beyond(taken, place->max);
        }
        for (int q = 0; q < 4; q++) {
            mu_line *g = &line[q];
            *g = (mu_line){.to = place, .left = &left};
            if (mode == STOCHASTIC) g->key = ve_load(key[q] + l), g->word = ve_load(word[q] + l);
            gate[q] = mu_op(g, vd_load(acc + q * 16 + l), mode);
            if (peep && q < 2) {
                const vd p = mu_op(g, vd_mul(vd_load(peep + q * 16 + l), taken), mode);
                gate[q] = mu_op(g, vd_add(gate[q], p), mode);
            }
            gate[q] = mu_op(g, vd_add(gate[q], vd_load(bias + q * 16 + l)), mode);
            if (q < 3) gate[q] = mu_activated(k, g, gate[q], k->clip, q == 2, mode);
        }
        mu_line *cell = &line[2], *out = &line[3];
        const vd fresh = mu_op(cell, vd_mul(gate[2], gate[0]), mode), kept = mu_op(cell, vd_mul(gate[1], before), mode);
        const vd now = mu_stored(cell, mu_op(cell, vd_add(fresh, kept), mode), place + 1, mode);
        const vd back = mu_op(cell, now, mode), t = mu_activated(k, cell, back, k->limit, 1, mode);
        if (peep) {
            const vd p = mu_op(out, vd_mul(vd_load(peep + 32 + l), back), mode);
            gate[3] = mu_op(out, vd_add(gate[3], p), mode);
        }
        const vd o = mu_activated(k, out, gate[3], k->clip, 0, mode), r = mu_op(out, vd_mul(o, t), mode);
        vd_store(new_c + l, now);
        vd_store(new_h + l, mu_stored(out, r, place + 2, mode));
        if (vdm_any(left)) return 0;
    }
    for (int l = 0; l < 16; l++) c[l] = new_c[l] == 0.0f ? 0.0f : new_c[l], h[l] = new_h[l] == 0.0f ? 0.0f : new_h[l];
    for (int p = 0; p < 3; p++) n[p].underflow += place[p].below;
    return 1;
}

#define MU_WIDE(name, mode)                                                                                                   \
    static __attribute__((noinline)) int name(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h,        \
                                              uint32_t step_key, seen *n) {                                                   \
        return mu_wide_block(k, block, acc, c, h, step_key, n, mode);                                                         \
    }
MU_WIDE(mu_wide_nearest, NEAREST_EVEN)
MU_WIDE(mu_wide_away, NEAREST_AWAY)
MU_WIDE(mu_wide_zero, TOWARD_ZERO)
MU_WIDE(mu_wide_up, UPWARD)
MU_WIDE(mu_wide_down, DOWNWARD)
MU_WIDE(mu_wide_stochastic, STOCHASTIC)

int LEVEL(mu_wide)(const mu_wides *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    int (*const run[])(const mu_wides *, ptrdiff_t, const float *, float *, float *, uint32_t, seen *) = {
        mu_wide_nearest, mu_wide_away, mu_wide_zero, mu_wide_up, mu_wide_down, mu_wide_stochastic};
    const unsigned before = turned(k->mode);
    const int done = run[k->mode](k, block, acc, c, h, step_key, n);
    _mm_setcsr(before);
    return done;
}

#endif
