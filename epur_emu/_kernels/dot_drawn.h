/* The frame of `dot_stochastic.h`, which includes this for lanes of either width. It defines
 *   DRAWN(name)         a name of this width;  DW lanes of values dv, `dreal` in memory, and of integers dk, `dword` in memory
 *   DRAWN(product), DRAWN(sum)  one operation, with its random word; the sum's number among the tree's is a constant
 *   DRAWN(inputs)       a sub-vector's inputs, in the domain of the lanes' values; whether they are exact there
 *   DRAWN(weight)       codes or values to lanes
 *   DRAWN(to_tree)      keys and words of products to those of the tree
 */

/* Where DW neurons' sums stand, their largest magnitudes, and their random words. */
typedef struct {
    dreal *acc, *top;
    const dword *key;
    dword *next;
} DRAWN(drawing);

INLINE dk DRAWN(drawn)(dk *next, dk key) {
    const dk now = *next;
    *next = dk_add(now, key);
    return now;
}

/* Operation 16 + n of a sub-vector with the products t: level by level, and at last into the accumulator. */
INLINE void DRAWN(tree)(dv t[16], const int n, const DRAWN(drawing) *to, const DRAWN(cuts) *k, const int sums, dk *next, dk key) {
    static const int at[15] = {0, 2, 4, 6, 8, 10, 12, 14, 0, 4, 8, 12, 0, 8, 0};
    const int apart = n < 8 ? 1 : n < 12 ? 2 : n < 14 ? 4 : 8;
    if (n < 15)
        t[at[n]] = DRAWN(sum)(t[at[n]], t[at[n] + apart], k, sums, n, next, key);
    else {
        const dv sum = DRAWN(sum)(dv_get(to->acc), t[0], k, sums, n, next, key);
        dv_put(to->acc, sum);
        dv_put(to->top, dv_topmost(dv_get(to->top), dv_abs(sum)));
    }
}

/* A sub-vector's products, and among them the tree of t, the products before. Constants: `store`, HALF and TOP where w holds codes, WIDE
 * where it holds values of all lanes; `products` and `sums`, how these are rounded. */
INLINE void DRAWN(step)(dv t[16], const DRAWN(drawing) *before, const DRAWN(drawing) *now, const int store, const void *w, const dreal *x,
                        const DRAWN(cuts) *k, const int products, const int sums) {
    const dk key = dk_load(now->key), key_before = dk_load(before->key), word_before = dk_load(before->next);
    const dk tree_key = DRAWN(to_tree)(key_before, k, sums);
    dk next = dk_load(now->next), tree_next = DRAWN(to_tree)(word_before, k, sums);
    dv p[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
        DRAWN(tree)(t, j, before, k, sums, &tree_next, tree_key);
        p[j] = DRAWN(product)(DRAWN(weight)(w, j, store), dv_set(x[j]), k, products, &next, key);
    }
    dk_store(before->next, dk_add(word_before, dk_up(key_before, 4)));
    dk_store(now->next, products == KEPT ? dk_add(next, dk_up(key, 4)) : next);
    for (int j = 0; j < 16; j++) t[j] = p[j];
}

/* The vectors of one LOCK_ROWS rows that are to be taken: sums, tops and words INOUT, keys IN (used, LANES); fine OUT (used), whether their
 * inputs are exact. */
INLINE void DRAWN(rows)(const general_call *c, const int32_t *order, const float *x, const ptrdiff_t *place, ptrdiff_t used,
                        dreal *sums, dreal *top, const dword *key, dword *next, int *fine, const int store, const DRAWN(cuts) *k,
                        const int products, const int tree) {
    const matrix *m = c->m;
    dreal wide[16 * LANES] ALIGNED, room[16] ALIGNED, no_sum[DW] ALIGNED = {0}, no_top[DW] ALIGNED = {0};
    dword no_word[DW] ALIGNED = {0};
    DRAWN(drawing) before = {no_sum, no_top, no_word, no_word};
    dv t[16];
    for (int j = 0; j < 16; j++) t[j] = dv_set(0);
    const codes at = codes_at(m, order);
    for (ptrdiff_t s = 0; s < m->subs; s++) {
        if (store == WIDE)
            DRAWN(widen)(wide, m, order, s);
        else
            ahead(&at, s, m->subs);
        for (ptrdiff_t u = 0; u < used; u++) {
            const dreal *inputs = DRAWN(inputs)(room, x + (s * c->nv + place[u]) * 16, k, fine + u);
            for (int l = 0; l < LANES; l += DW) {
                const ptrdiff_t lane = u * LANES + l;
                const DRAWN(drawing) now = {sums + lane, top + lane, key + lane, next + lane};
                const void *w = store == WIDE ? (const void *)(wide + l) : at.row[l / 16] + s * 256 + l % 16;
                DRAWN(step)(t, &before, &now, store, w, inputs, k, products, tree);
                before = now;
            }
        }
    }
    const dk last = DRAWN(to_tree)(dk_load(before.key), k, tree);
    dk random = DRAWN(to_tree)(dk_load(before.next), k, tree);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) DRAWN(tree)(t, j, &before, k, tree, &random, last);
}

INLINE void DRAWN(call)(const general_call *c, const DRAWN(cuts) *k, const int products, const int tree) {
    dreal sums[TILE * LANES] ALIGNED, top[TILE * LANES] ALIGNED;
    dword key[TILE * LANES] ALIGNED, next[TILE * LANES] ALIGNED;
    for (ptrdiff_t r = 0; r < c->count; r += LOCK_ROWS) {
        const int32_t *order = c->order + r;
        for (ptrdiff_t first = 0; first < c->nv; first += TILE) {
            const float *x = c->x + first * 16;
            float *a = c->acc + first * c->pitch;
            ptrdiff_t place[TILE];
            int fine[TILE];
            const ptrdiff_t used = taken_of(c->take, first, c->nv, place);
            for (ptrdiff_t u = 0; u < used; u++) {
                float row[LANES] ALIGNED;
                uint32_t keys[LANES], words[LANES];
                gather_lanes(row, a + place[u] * c->pitch, order);
                lock_words(keys, words, c->step_keys[first + place[u]], order, c->first_sub);
                fine[u] = 1;
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    const ptrdiff_t lane = u * LANES + l;
                    sums[lane] = row[l] * k->domain, top[lane] = 0;
                    fine[u] &= sums[lane] / k->domain == row[l];
                    key[lane] = (dword)keys[l] << k->up, next[lane] = (dword)words[l] << k->up;
                }
            }
            if (used == 1 && c->m->store == HALF)
                DRAWN(rows)(c, order, x, place, used, sums, top, key, next, fine, HALF, k, products, tree);
            else if (used == 1 && c->m->store == TOP && DW == VW && tree != AS_SINGLE) /* others are as fast widened, nearly */
                DRAWN(rows)(c, order, x, place, used, sums, top, key, next, fine, TOP, k, products, tree);
            else if (used)
                DRAWN(rows)(c, order, x, place, used, sums, top, key, next, fine, WIDE, k, products, tree);
            for (ptrdiff_t u = 0; u < used; u++) {
                float row[LANES] ALIGNED;
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    fine[u] &= top[u * LANES + l] < k->max;
                    row[l] = (float)(sums[u * LANES + l] / k->domain);
                }
                if (fine[u])
                    scatter_lanes(a + place[u] * c->pitch, row, order);
                else
                    again(c, order, first + place[u]);
            }
        }
    }
}
