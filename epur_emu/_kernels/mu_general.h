/* The multifunctional unit on blocks of 16 neurons where `mu_narrow.h` does not do: all of its places share one format, which is
 *   fixed point of at most 22 bits, in any mode but stochastic: an activation is a table of all codes within its clamp, made by
 *     the exact path, with results and how often each underflowed;
 *   a float of at most 11 bits with codes of 16 bits, in stochastic mode: tables of all codes hold what the random numbers meet,
 *     the function's value (of method `epur`: e^r) cut to float32, which has more than the 12 bits that they decide on.
 * Operations are rounded as in `dot_general.h`. A block that leaves the format's range is left to the exact path.
 *
 * And sums of integers as values of the MU's format.
 */
#if defined(LEVEL_SCALAR)

int LEVEL(mu_general)(const mu_tables *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    (void)k, (void)block, (void)acc, (void)c, (void)h, (void)step_key, (void)n;
    return 0;
}

int LEVEL(int_values)(const lanes *f, const int32_t *acc, const float *scale, float *sums, seen *n) {
    (void)f, (void)acc, (void)scale, (void)sums, (void)n;
    return 0;
}

#else

/* A gate's operations on VW cells, one after the other. */
typedef struct {
    const lanes *f;
    keys key;
    uint32_t next;
    watch w;
} mu_row;

/* r where it is inexact and `small`, below the normal range, counts (fixed point: if lost). */
INLINE vf mu_done(mu_row *g, vf r, vm inexact, vm small) {
    g->w.below = vc_add(g->w.below, vm_and(inexact, g->f->mask ? small : vf_eq(r, vf_set(0.0f))));
    return r;
}
INLINE vf mu_rounding(mu_row *g, vf v, const int mode) {
    return watched(to_units(v, g->f, mode, RANGE, &g->key, g->next++), g->f, 1, &g->w);
}
INLINE vm mu_small(const mu_row *g, vf v) { return vf_lt(vf_abs(v), vf_set(g->f->normal)); }
INLINE vf mu_exact(mu_row *g, vf v, const int mode) {
    const vf r = mu_rounding(g, v, mode);
    return mu_done(g, r, vf_ne(r, v), mu_small(g, v));
}
/* A sum of values: exact in float32 where it is below the normal range, and exact there, unless flushed. */
INLINE vf mu_add(mu_row *g, vf a, vf b, const int mode) {
    const vf sum = vf_add(a, b);
    return g->f->flush > 0.0f ? mu_exact(g, sum, mode) : mu_rounding(g, sum, mode);
}
INLINE vf mu_times(mu_row *g, vf a, vf b, const int mode) {
    const vf near = vf_mul(a, b), zero = vf_set(0.0f);
    vf r;
    if (mode == NEAREST_EVEN) {
        const vf magic = vf_mul(scale_of(near, g->f, mode, RANGE), vf_set(g->f->magic));
        r = watched(vf_sub(vf_fma(a, b, magic), magic), g->f, 1, &g->w);
        g->next++;
    } else
        r = mu_rounding(g, near, mode);
    const vm lost = vm_and(vf_eq(r, zero), vm_and(vf_ne(a, zero), vf_ne(b, zero))); /* where the rest itself may underflow */
    const vf room = vf_fma(vf_abs(a), vf_abs(b), vf_set(-g->f->normal));
    return mu_done(g, r, vm_or(vf_ne(vf_fma(a, b, vf_neg(r)), zero), lost), vf_lt(room, zero));
}
/* Stochastic, as the two below; the quotient's divisor is not 0. */
INLINE vf mu_over(mu_row *g, vf a, vf b) {
    const vf near = vf_div(a, b), r = mu_rounding(g, near, STOCHASTIC);
    return mu_done(g, r, vf_ne(vf_fnma(r, b, a), vf_set(0.0f)), mu_small(g, near));
}
/* A function's value, cut: irrational, but for values that are not below the normal range. */
INLINE vf mu_found(mu_row *g, vf v) {
    const vf r = mu_rounding(g, v, STOCHASTIC);
    return mu_done(g, r, vf_ne(v, vf_set(0.0f)), mu_small(g, v));
}

INLINE vf mu_table(const mu_tables *k, vf v, const float *table) {
    float value[VW], found[VW];
    uint16_t code[16];
    if (k->store == HALF)
        vf_round(v, code); /* a value of fp16; only its code is wanted */
    vf_store(value, v);
    for (int i = 0; i < VW; i++) {
        uint32_t bits;
        memcpy(&bits, value + i, 4);
        found[i] = table[k->store == HALF ? code[i] : bits >> 16];
    }
    return vf_load(found);
}

INLINE vf mu_activation(const mu_tables *k, mu_row *g, vf r, vf limit, const int tangent, const int mode, int64_t *below) {
    r = vf_max(vf_neg(limit), vf_min(limit, r));
    if (mode != STOCHASTIC) {
        float value[VW], found[VW];
        vf_store(value, r);
        for (int i = 0; i < VW; i++) {
            const float v = value[i] == value[i] ? value[i] : 0.0f; /* not-a-number is watched already */
            const int32_t at = k->middle + (int32_t)(v * k->per_unit);
            found[i] = k->function[tangent][at];
            *below += k->lost[tangent][at];
        }
        return vf_load(found);
    }
    if (k->method == EXACT) return mu_found(g, mu_table(k, r, k->function[tangent]));
    const float *e = k->function[0];
    const vf one = vf_set(1.0f);
    if (!tangent) return mu_over(g, one, mu_add(g, mu_found(g, mu_table(k, vf_neg(r), e)), one, mode));
    const vf a = mu_found(g, mu_table(k, r, e)), q = mu_found(g, mu_table(k, vf_neg(r), e));
    const vf difference = mu_add(g, a, vf_neg(q), mode);
    return mu_over(g, difference, mu_add(g, a, q, mode));
}

INLINE int mu_block(const mu_tables *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n,
                    const int mode) {
    const float *bias = k->bias + block * 64, *peep = k->peep ? k->peep + block * 48 : NULL;
    float new_c[16], new_h[16];
    uint32_t key[4][2][16];
    int64_t below = 0, lanes_below = 0;
    int left = 0;
    const vf limit = vf_set(k->limit), clip = vf_set(k->clip);
    for (uint32_t q = 0; mode == STOCHASTIC && q < 4; q++) block_keys(key[q][0], key[q][1], step_key, (uint32_t)block, q);
    for (int l = 0; l < 16; l += VW) {
        const vf before = vf_load(c + l);
        mu_row row[4];
        vf gate[4];
        for (int q = 0; q < 4; q++) {
            mu_row *g = &row[q];
            g->f = &k->format, g->next = OP_MU;
            g->w = (watch){vf_set(0.0f), vc_zero()};
            if (mode == STOCHASTIC) g->key = keys_at(key[q][0] + l, key[q][1] + l);
            gate[q] = vf_load(acc + q * 16 + l);
            if (k->same)
                g->next++;
            else
                gate[q] = mu_exact(g, gate[q], mode);
            if (peep && q < 2) {
                const vf p = mu_times(g, vf_load(peep + q * 16 + l), before, mode);
                gate[q] = mu_add(g, gate[q], p, mode);
            }
            gate[q] = mu_add(g, gate[q], vf_load(bias + q * 16 + l), mode);
        }
        for (int q = 0; q < 3; q++) gate[q] = mu_activation(k, &row[q], gate[q], clip, q == 2, mode, &below);
        mu_row *cell = &row[2], *out = &row[3];
        const vf fresh = mu_times(cell, gate[2], gate[0], mode), kept = mu_times(cell, gate[1], before, mode);
        const vf now = mu_add(cell, fresh, kept, mode);
        cell->next += 2; /* storing it and taking it back */
        const vf t = mu_activation(k, cell, now, limit, 1, mode, &below);
        if (peep) gate[3] = mu_add(out, gate[3], mu_times(out, vf_load(peep + 32 + l), now, mode), mode);
        const vf o = mu_activation(k, out, gate[3], clip, 0, mode, &below);
        vf_store(new_c + l, now);
        vf_store(new_h + l, mu_times(out, o, t, mode));
        for (int q = 0; q < 4; q++) {
            left |= beyond(&row[q].w, &k->format, mode);
            lanes_below += vc_sum(row[q].w.below);
        }
    }
    if (left) return 0;
    for (int l = 0; l < 16; l++) c[l] = new_c[l] == 0.0f ? 0.0f : new_c[l], h[l] = new_h[l] == 0.0f ? 0.0f : new_h[l];
    n->underflow += lanes_below + below;
    return 1;
}

#define MU_BLOCK(name, mode)                                                                                               \
    static __attribute__((noinline)) int name(const mu_tables *k, ptrdiff_t block, const float *acc, float *c, float *h, \
                                              uint32_t step_key, seen *n) {                                                 \
        return mu_block(k, block, acc, c, h, step_key, n, mode);                                                            \
    }
MU_BLOCK(block_nearest, NEAREST_EVEN)
MU_BLOCK(block_away, NEAREST_AWAY)
MU_BLOCK(block_zero, TOWARD_ZERO)
MU_BLOCK(block_up, UPWARD)
MU_BLOCK(block_down, DOWNWARD)
MU_BLOCK(block_stochastic, STOCHASTIC)

int LEVEL(mu_general)(const mu_tables *k, ptrdiff_t block, const float *acc, float *c, float *h, uint32_t step_key, seen *n) {
    int (*const run[])(const mu_tables *, ptrdiff_t, const float *, float *, float *, uint32_t, seen *) = {
        block_nearest, block_away, block_zero, block_up, block_down, block_stochastic};
    const unsigned before = turned(k->mode);
    const int done = run[k->mode](k, block, acc, c, h, step_key, n);
    _mm_setcsr(before);
    return done;
}

/* Sums below 2^24 are float32 values, scales have 21 bits: fma rounds their product once. Nearest even only. */
int LEVEL(int_values)(const lanes *f, const int32_t *acc, const float *scale, float *sums, seen *n) {
    mu_row g = {.f = f, .w = {vf_set(0.0f), vc_zero()}};
    vf top = vf_set(0.0f);
    for (int l = 0; l < 64; l += VW) {
        const vf sum = vf_integers(acc + l);
        top = vf_absmax(sum, top);
        vf_store(sums + l, mu_times(&g, sum, vf_load(scale + l), NEAREST_EVEN));
    }
    const vf most = vf_set(f->max);
    if (vm_any(vf_lt(vf_set(0x1p24f - 1), top)) || vm_any(vf_ne(vf_topmost(g.w.top, most), most))) return 0;
    n->underflow += vc_sum(g.w.below);
    return 1;
}

#endif
