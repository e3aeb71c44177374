/* Dot products in stochastic rounding where formats, floats of at most 11 bits, widen along the chain, and nothing but the
 * accumulator, which is watched, can leave its range. The processor cuts, which passes no 2^-12 units (see `dot_general.h`); with p the precision:
 *   sum      exact below the normal range. Above (and below, without subnormals) the lower 24 - p bits of a + b in float32 are its
 *            rest, and the upper 12 of these meet the random number: it is added to them as an integer, whose carry reaches the
 *            result, and its exponent; the rest is cleared.
 *   product  with S the power of two that counts for v's unit, of v's sign, v + 2^(12 - p) S lies in one binade, where float32's last
 *            place is 2^-12 units: the random number is added to the last 12 bits likewise, and what was added to v is taken away.
 * The 32 operations of a sub-vector stand in the order of their numbers, so that the next random word is one addition away. A
 * tree waits for the next sub-vector's products and is made among them: each fills the other's waiting times.
 */
#if !defined(LEVEL_SCALAR)

/* Constants: of products, and of sums in the tree and in the accumulator. */
typedef struct {
    vk down, random, whole; /* shift and mask of a random number in its place; mask of the result */
    vf flush;
} cut;
typedef struct {
    vf mask, least, raise, flush;
    vk down, whole;
    cut tree, acc;
} cuts;

static inline cut cut_of(const lanes *f) {
    const int places = -ilogbf(f->one);
    const uint32_t rest = 0x7fffffU >> places, spare = 0x7ffU >> places;
    return (cut){vk_set(9 + places), vk_set(rest & ~spare), vk_set(~rest), vf_set(f->flush)};
}

/* Where VW neurons' sums stand, their largest magnitudes, and their random words. */
typedef struct {
    float *acc, *top;
    const uint32_t *key;
    uint32_t *word;
} drawing;

INLINE vk next_word(vk *word, vk key) {
    const vk now = *word;
    *word = vk_add(now, key);
    return now;
}

INLINE vf drawn_product(vf w, vf x, const cuts *k, const int flushes, vk random) {
    const vf v = vf_mul(w, x), scale = vf_signed(v, k->mask, k->least);
    const vk raised = vk_of(vf_fma(scale, k->raise, v));
    const vf whole = vf_of(vk_and(vk_add(raised, vk_down(random, k->down)), k->whole));
    return flushed(vf_fnma(scale, k->raise, whole), k->flush, flushes);
}

INLINE vf drawn_sum(vf a, vf b, const cut *k, const int flushes, vk random) {
    const vk drawn = vk_and(vk_down(random, k->down), k->random);
    return flushed(vf_of(vk_and(vk_add(vk_of(vf_add(a, b)), drawn), k->whole)), k->flush, flushes);
}

/* Operation 16 + n of a sub-vector with the products t: level by level, and at last into the accumulator. */
INLINE void drawn_tree(vf t[16], const int n, const drawing *to, const cuts *k, const int flushes, vk random) {
    static const int at[15] = {0, 2, 4, 6, 8, 10, 12, 14, 0, 4, 8, 12, 0, 8, 0};
    const int apart = n < 8 ? 1 : n < 12 ? 2 : n < 14 ? 4 : 8;
    if (n < 15)
        t[at[n]] = drawn_sum(t[at[n]], t[at[n] + apart], &k->tree, flushes, random);
    else {
        const vf sum = drawn_sum(vf_load(to->acc), t[0], &k->acc, flushes, random);
        vf_store(to->acc, sum);
        vf_store(to->top, vf_topmost(vf_load(to->top), vf_abs(sum)));
    }
}

/* A sub-vector's products, and among them the tree of t, the products before. `store` is a constant: HALF and TOP where w holds
 * codes, WIDE where `widen` laid it. */
INLINE void drawn_step(vf t[16], const drawing *before, const drawing *now, const int store, const void *w, const float *x,
                       const cuts *k, const int flushes) {
    const vk key = vk_load(now->key), key_before = vk_load(before->key);
    vk word = vk_load(now->word), word_before = vk_load(before->word);
    vf p[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        const uint16_t *code = (const uint16_t *)w + j * 16;
        drawn_tree(t, j, before, k, flushes, next_word(&word_before, key_before));
        const vf v = store == HALF ? vf_half(code) : store == TOP ? vf_top(code) : vf_load((const float *)w + j * LANES);
        p[j] = drawn_product(v, vf_set(x[j]), k, flushes, next_word(&word, key));
    }
    vk_store(before->word, word_before);
    vk_store(now->word, word);
    for (int j = 0; j < 16; j++) t[j] = p[j];
}

/* The vectors of one LOCK_ROWS rows that are to be taken: sums, tops and words INOUT, keys IN (used, LANES). */
INLINE void drawn_rows(const general_call *c, const int32_t *order, const float *x, const ptrdiff_t *place, ptrdiff_t used,
                       float *sums, float *top, const uint32_t *key, uint32_t *word, const int store, const cuts *k, const int flushes) {
    const matrix *m = c->m;
    float wide[16 * LANES] ALIGNED, no_sum[VW] ALIGNED = {0}, no_top[VW] ALIGNED = {0};
    uint32_t no_word[VW] ALIGNED = {0};
    drawing before = {no_sum, no_top, no_word, no_word};
    vf t[16];
    for (int j = 0; j < 16; j++) t[j] = vf_set(0.0f);
    const codes at = codes_at(m, order);
    for (ptrdiff_t s = 0; s < m->subs; s++) {
        if (store == WIDE)
            widen(wide, m, order, s);
        else
            ahead(&at, s, m->subs);
        for (ptrdiff_t u = 0; u < used; u++)
            for (int i = 0; i < LOCK; i++) {
                const ptrdiff_t lane = u * LANES + i * VW;
                const drawing now = {sums + lane, top + lane, key + lane, word + lane};
                const void *w = store == WIDE ? (const void *)(wide + i * VW) : at.row[i / VN] + s * 256 + i % VN * VW;
                drawn_step(t, &before, &now, store, w, x + (s * c->nv + place[u]) * 16, k, flushes);
                before = now;
            }
    }
    const vk last = vk_load(before.key);
    vk random = vk_load(before.word);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) drawn_tree(t, j, &before, k, flushes, next_word(&random, last));
}

INLINE void drawn_call(const general_call *c, const int flushes) {
    const lanes *f = c->g->place;
    const cuts k = {vf_set(float_bits(f->mask)), vf_set(f->least), vf_set(f->one * 0x1p11f), vf_set(f->flush),
                    vk_set(20), vk_set(0xfffff000U), cut_of(f + TREE), cut_of(f + ACCUMULATOR)};
    float sums[TILE * LANES] ALIGNED, top[TILE * LANES] ALIGNED;
    uint32_t key[TILE * LANES] ALIGNED, word[TILE * LANES] ALIGNED;
    for (ptrdiff_t r = 0; r < c->count; r += LOCK_ROWS) {
        const int32_t *order = c->order + r;
        for (ptrdiff_t first = 0; first < c->nv; first += TILE) {
            const float *x = c->x + first * 16;
            float *a = c->acc + first * c->pitch;
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(c->take, first, c->nv, place);
            for (ptrdiff_t u = 0; u < used; u++) {
                gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
                lock_words(key + u * LANES, word + u * LANES, c->step_keys[first + place[u]], order, c->first_sub);
                for (ptrdiff_t l = u * LANES; l < (u + 1) * LANES; l++) top[l] = 0.0f;
            }
            if (used == 1 && c->m->store == HALF)
                drawn_rows(c, order, x, place, used, sums, top, key, word, HALF, &k, flushes);
            else if (used == 1 && c->m->store == TOP)
                drawn_rows(c, order, x, place, used, sums, top, key, word, TOP, &k, flushes);
            else if (used)
                drawn_rows(c, order, x, place, used, sums, top, key, word, WIDE, &k, flushes);
            for (ptrdiff_t u = 0; u < used; u++) {
                watch here = {vf_set(0.0f), vc_zero()};
                EACH here.top = vf_topmost(here.top, vf_load(top + u * LANES + i * VW));
                if (beyond(&here, f + ACCUMULATOR, STOCHASTIC))
                    again(c, order, first + place[u]);
                else
                    scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
            }
        }
    }
}

static __attribute__((noinline)) void rows_drawn(const general_call *c) { drawn_call(c, 0); }
static __attribute__((noinline)) void rows_drawn_flushed(const general_call *c) { drawn_call(c, 1); }

#endif
