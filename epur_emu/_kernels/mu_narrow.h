/* The multifunctional unit on blocks of 16 neurons, where all of its places share one format whose values have codes of 16
 * bits (fp16's, or the upper half of a float32's) and at most 11 bits of significand, and the mode is not stochastic.
 *
 * An activation is a function of one such value: a table of all codes, made by the exact path, holds its result's code (bits 0
 * to 15) and how often it underflowed (bits 16 to 23). Sums to nearest even may be rounded to float32 first, as 24 >= 2 * 11 + 2;
 * a product is rounded once (see `dot_general.h`). A block that leaves the format's range is left to the exact path; one whose sums or
 * states are infinite or not numbers already takes a form of its own.
 */
#if defined(LEVEL_SCALAR)

int LEVEL(mu_narrow)(const mu_call *call, ptrdiff_t block, const float *acc, float *c, float *h, seen *n) {
    (void)call, (void)block, (void)acc, (void)c, (void)h, (void)n;
    return 0;
}

#else

/* v's result r; `odd`, a constant: whether v may not be finite, and then stays what it is. */
INLINE vf mu_watched(vf v, vf r, const lanes *f, const int odd, watch *w) {
    const vm finite = vf_lt(vf_abs(v), vf_set(INFINITY));
    r = watched(odd ? vf_pick(finite, r, vf_set(0.0f)) : r, f, w);
    return odd ? vf_pick(finite, r, v) : r;
}

/* v rounded; below `normal` an inexact result counts. */
INLINE vf mu_rounded(vf v, float normal, const lanes *f, const int mode, const int odd, watch *w) {
    const vf scale = scale_of(v, f, mode, RANGE), magic = vf_mul(scale, vf_set(f->magic));
    const vf r = mu_watched(v, vf_sub(vf_add(shifted(v, scale, f, mode, NULL), magic), magic), f, odd, w);
    w->below = vc_add(w->below, vm_and(vf_lt(vf_abs(v), vf_set(normal)), vf_ne(r, v)));
    return r;
}

INLINE vf mu_sum(vf a, vf b, const lanes *f, const int mode, const int odd, watch *w) {
    return mu_rounded(vf_add(a, b), f->flush, f, mode, odd, w); /* exact below the normal range, unless flushed */
}

INLINE vf mu_product(vf a, vf b, const lanes *f, const int mode, const int odd, watch *w) {
    const vf near = vf_mul(a, b), scale = scale_of(near, f, mode, RANGE), magic = vf_mul(scale, vf_set(f->magic));
    vf r = mode == NEAREST_EVEN ? vf_fma(a, b, magic)
                                : vf_add(shifted(near, scale, f, mode, NULL), magic);
    r = mu_watched(near, vf_sub(r, magic), f, odd, w);
    const vf zero = vf_set(0.0f), rest = vf_fma(a, b, vf_neg(r)), room = vf_fma(vf_abs(a), vf_abs(b), vf_set(-f->normal));
    const vm lost = vm_and(vf_eq(r, zero), vm_and(vf_ne(a, zero), vf_ne(b, zero))); /* rest itself may underflow */
    w->below = vc_add(w->below, vm_and(vm_or(vf_ne(rest, zero), lost), vf_lt(room, zero)));
    return r;
}

INLINE vf looked_up(vf v, const uint32_t *table, int store, int64_t *below) {
    uint16_t code[16];
    uint32_t bits[VW];
    if (store == HALF)
        vf_round(v, code); /* a value of fp16; only its code is wanted */
    else
        vf_store((float *)bits, v);
    for (int i = 0; i < VW; i++) {
        const uint32_t found = table[store == HALF ? code[i] : bits[i] >> 16];
        code[i] = (uint16_t)found;
        *below += found >> 16;
    }
    return store == HALF ? vf_half(code) : vf_top(code);
}

INLINE int mu_lanes(const mu_call *k, ptrdiff_t block, const float *acc, float *c, float *h, seen *n, const int mode,
                     const int odd) {
    const lanes *f = &k->format;
    const float *bias = k->bias + block * 64, *peep = k->peep ? k->peep + block * 48 : NULL;
    float new_c[16], new_h[16];
    watch w = {vf_set(0.0f), vc_zero()};
    int64_t below = 0;
    const vf limit = vf_set(k->limit), clip = vf_set(k->clip);
#define CLAMPED(r, limit) vf_max(vf_neg(limit), vf_min(limit, r))
    for (int l = 0; l < 16; l += VW) {
        const vf before = vf_load(c + l);
        vf gate[4];
        for (int q = 0; q < 4; q++) {
            gate[q] = vf_load(acc + q * 16 + l);
            if (!k->same) gate[q] = mu_rounded(gate[q], f->normal, f, mode, odd, &w);
            if (peep && q < 2)
                gate[q] = mu_sum(gate[q], mu_product(vf_load(peep + q * 16 + l), before, f, mode, odd, &w), f, mode, odd, &w);
            gate[q] = mu_sum(gate[q], vf_load(bias + q * 16 + l), f, mode, odd, &w);
        }
        const vf i = looked_up(CLAMPED(gate[0], clip), k->sigmoid, k->store, &below);
        const vf keep = looked_up(CLAMPED(gate[1], clip), k->sigmoid, k->store, &below);
        const vf g = looked_up(CLAMPED(gate[2], clip), k->tanh, k->store, &below);
        const vf r = mu_product(g, i, f, mode, odd, &w);
        const vf now = mu_sum(r, mu_product(keep, before, f, mode, odd, &w), f, mode, odd, &w);
        if (peep) gate[3] = mu_sum(gate[3], mu_product(vf_load(peep + 32 + l), now, f, mode, odd, &w), f, mode, odd, &w);
        const vf o = looked_up(CLAMPED(gate[3], clip), k->sigmoid, k->store, &below);
        const vf out = mu_product(o, looked_up(CLAMPED(now, limit), k->tanh, k->store, &below), f, mode, odd, &w);
        vf_store(new_c + l, now);
        vf_store(new_h + l, out);
    }
    if (beyond(&w, f, mode)) return 0;
    for (int l = 0; l < 16; l++) c[l] = new_c[l] == 0.0f ? 0.0f : new_c[l], h[l] = new_h[l] == 0.0f ? 0.0f : new_h[l];
    n->underflow += vc_sum(w.below) + below;
    return 1;
}

typedef int mu_of(const mu_call *, ptrdiff_t, const float *, float *, float *, seen *);
#define MU_FORM(name, mode, odd)                                                                                       \
    static __attribute__((noinline)) int name(const mu_call *k, ptrdiff_t block, const float *acc, float *c, float *h, \
                                              seen *n) {                                                               \
        return mu_lanes(k, block, acc, c, h, n, mode, odd);                                                            \
    }
#define MU_MODE(name, mode) MU_FORM(name, mode, 0) MU_FORM(name##_odd, mode, 1)
MU_MODE(mu_nearest, NEAREST_EVEN)
MU_MODE(mu_away, NEAREST_AWAY)
MU_MODE(mu_zero, TOWARD_ZERO)
MU_MODE(mu_up, UPWARD)
MU_MODE(mu_down, DOWNWARD)

int LEVEL(mu_narrow)(const mu_call *call, ptrdiff_t block, const float *acc, float *c, float *h, seen *n) {
    static mu_of *const run[][2] = {[NEAREST_EVEN] = {mu_nearest, mu_nearest_odd}, [NEAREST_AWAY] = {mu_away, mu_away_odd},
                                    [TOWARD_ZERO] = {mu_zero, mu_zero_odd}, [UPWARD] = {mu_up, mu_up_odd},
                                    [DOWNWARD] = {mu_down, mu_down_odd}};
    const unsigned before = turned(call->mode);
    const int done = run[call->mode][0](call, block, acc, c, h, n) || (call->infinite && run[call->mode][1](call, block, acc, c, h, n));
    _mm_setcsr(before);
    return done;
}

#endif
