/* Dot products in any float or fixed-point formats of at most 22 bits of significand (or float32 itself) and any mode, in
 * float32 lanes: 16 neurons side by side. Where an operation's exact result v may not be rounded to float32 first, the way out
 * depends on the mode:
 *   nearest even   product: fma(w, x, M) - M, where M = 1.5 2^23 units of the result: rounded once.
 *                  sum: s = a + b and its error e; s is rounded as (s + M) - M; that is wrong only if s lies half-way
 *                  between two results and e points away from the one that was taken. With AVX-512 s is rounded to odd
 *                  instead, which keeps it on v's side of all results and half-way points.
 *   up, down, zero the processor rounds to float32 in the same direction, and then to units: together that is once.
 *   nearest away   the processor cuts: cut(cut(v) + half a unit); half units are float32 values, so that no cut passes one.
 *   stochastic     likewise cut(cut(v) + (1 + random / 2^12) units) - one unit, up to 11 bits of significand: the one
 *                  unit more makes the random number's bits a float32 of themselves. Where formats widen along
 *                  the chain and nothing is watched, `dot_stochastic.h` does this on the bits.
 * The unit follows from the exponent of v rounded to float32: where that is one too large, v rounds to a power of two anyway.
 *
 * Results beyond the largest value, infinities and not-a-number are not treated here: the largest magnitude met is kept, and
 * a row that leaves the range is computed again by `dot_wide.h`. Products and tree are watched only where underflows are counted:
 * else the caller knows that they keep within it. Products must not underflow in float32: the caller proves it.
 */

#if defined(LEVEL_SCALAR)

void LEVEL(dot_general)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count,
                        const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv,
                        const uint32_t *step_keys, ptrdiff_t first_sub, int watching, seen *n) {
    (void)g, (void)watching;
    for (ptrdiff_t r = 0; r < count; r++)
        for (ptrdiff_t v = 0; v < nv; v++)
            if (take[v] && order[r] < m->rows)
                exact_row(m, u + (order[r] & 3), order[r], x + v * 16, nv * 16, acc + v * pitch + order[r] * 16, step_keys[v],
                          first_sub, n);
}

int LEVEL(join)(const general *g, float *acc, const float *stored, ptrdiff_t n, seen *count) {
    (void)g, (void)acc, (void)stored, (void)n, (void)count;
    return 0;
}

#else

#define SIGN vf_set(-0.0f)

typedef struct {
    vf top;
    vc below;
} watch; /* of one place, over LOCK vectors */

static inline float float_bits(uint32_t b) {
    float v;
    memcpy(&v, &b, 4);
    return v;
}

/* Turn the processor's rounding for a mode; gives the state to go back to. */
static inline unsigned turned(int mode) {
    const unsigned before = _mm_getcsr(), nearest = before & ~(unsigned)_MM_ROUND_MASK;
    _mm_setcsr(nearest | (mode == NEAREST_EVEN ? _MM_ROUND_NEAREST
                          : mode == UPWARD     ? _MM_ROUND_UP
                          : mode == DOWNWARD   ? _MM_ROUND_DOWN
                                               : _MM_ROUND_TOWARD_ZERO));
    return before;
}

/* The power of two that counts for v's unit, with v's sign where the processor cuts. M would overflow beyond 2^100: to
 * infinity, which is found to be out of range, only where the processor rounds to nearest. */
INLINE vf scale_of(vf v, const lanes *f, const int mode, const int watching) {
    const int cuts = mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC;
    const vf mask = vf_set(float_bits(f->mask)), least = vf_set(f->least);
    if (cuts && watching == NOTHING) return vf_signed(v, mask, least);
    vf e = vf_max(vf_and(v, mask), least);
    /* where nothing is watched all is below 2^100 */
    if (mode != NEAREST_EVEN && watching != NOTHING) e = vf_pick(vf_lt(vf_set(0x1p100f), e), vf_set(INFINITY), e);
    return cuts ? vf_or(e, vf_and(v, SIGN)) : e;
}

/* One lane's or vector's two keys, of stochastic rounding. */
typedef struct {
    vk a, b;
} keys;
INLINE keys keys_at(const uint32_t *a, const uint32_t *b) { return (keys){vk_load(a), vk_load(b)}; }

/* What is added to v before it is cut; the products are exact. */
INLINE vf shifted(vf v, vf scale, const lanes *f, const int mode, const keys *key, uint32_t n) {
    if (mode == NEAREST_AWAY) return vf_fma(scale, vf_set(f->half), v);
    if (mode == STOCHASTIC) return vf_fma(scale, vf_random(key->a, key->b, n, f->one), v);
    return v;
}

/* v to units; scale * magic is exact. */
INLINE vf to_units(vf v, const lanes *f, const int mode, const int watching, const keys *key, uint32_t n) {
    const vf scale = scale_of(v, f, mode, watching), magic = vf_set(f->magic);
    const vf back = mode == STOCHASTIC ? vf_set(f->magic + f->one) : magic;
    return vf_fnma(scale, back, vf_fma(scale, magic, shifted(v, scale, f, mode, key, n)));
}

/* Without subnormals what is below `flush` becomes 0. */
INLINE vf flushed(vf r, vf flush, const int flushes) {
    return flushes ? vf_pick(vf_lt(vf_abs(r), flush), vf_set(0.0f), r) : r;
}

INLINE vf watched(vf r, const lanes *f, const int tracked, watch *w) {
    r = flushed(r, vf_set(f->flush), f->flush > 0.0f);
    if (tracked) w->top = vf_topmost(w->top, vf_abs(r));
    return r;
}

INLINE void round_products(vf *p, const vf *w, float factor, const lanes *f, const int mode, const int watching,
                           const keys *key, uint32_t n, watch *seen_here) {
    const vf x = vf_set(factor);
    const int single = f->magic == 0.0f; /* float32 itself */
    EACH {
        const vf near = vf_mul(w[i], x);
        vf r = near;
        if (!single && mode == NEAREST_EVEN) {
            const vf magic = vf_mul(scale_of(near, f, mode, watching), vf_set(f->magic));
            r = vf_sub(vf_fma(w[i], x, magic), magic);
        } else if (!single)
            r = to_units(near, f, mode, watching, key + i, n);
        r = watched(r, f, watching != NOTHING, seen_here);
        if (watching == COUNTS) {
            const vf rest = vf_fma(w[i], x, vf_neg(r)), room = vf_fma(vf_abs(w[i]), vf_abs(x), vf_set(-f->normal));
            const vm below = vm_and(vf_ne(rest, vf_set(0.0f)), vf_lt(room, vf_set(0.0f)));
            seen_here->below = vc_add(seen_here->below, f->mask ? below : vm_and(below, vf_eq(r, vf_set(0.0f))));
        }
        p[i] = r;
    }
}

/* What a + b lost by being rounded, to nearest, to s. */
INLINE vf error_of(vf a, vf b, vf s) {
    const vf back = vf_sub(s, a);
    return vf_add(vf_sub(a, vf_sub(s, back)), vf_sub(b, back));
}

INLINE void round_sums(vf *a, const vf *b, const lanes *f, const int mode, int innocuous, const int watching,
                       const keys *key, uint32_t n, watch *seen_here) {
    const int single = f->magic == 0.0f, odd = HAS_ODD && mode == NEAREST_EVEN && !innocuous && !single;
    const vf zero = vf_set(0.0f);
    vf s[LOCK], e[LOCK], r[LOCK];
    int lost = 0;
    if (odd)
        EACH s[i] = vf_odd(a[i], b[i]);
    else
        EACH s[i] = vf_add(a[i], b[i]);
    if (mode == NEAREST_EVEN && !innocuous && !HAS_ODD)
        EACH {
            e[i] = error_of(a[i], b[i], s[i]);
            lost |= vm_any(vf_ne(e[i], zero));
        }
    EACH r[i] = single ? s[i] : to_units(s[i], f, mode, watching, key + i, n);
    if (lost)
        EACH {
            const vf off = vf_sub(s[i], r[i]), half = vf_mul(scale_of(s[i], f, mode, watching), vf_set(f->half));
            const vm wrong = vm_and(vf_eq(vf_abs(off), half), vf_lt(zero, vf_xor(e[i], vf_and(off, SIGN))));
            r[i] = vf_add(r[i], vf_pick(wrong, vf_add(off, off), zero));
        }
    EACH r[i] = watched(r[i], f, watching != NOTHING, seen_here);
    if (watching == COUNTS)
        EACH {
            const vf normal = vf_set(f->normal), size = vf_abs(s[i]);
            vm inexact, at = vf_eq(size, normal);
            if (odd) { /* on v's side of all values, and r only if v is */
                inexact = vf_ne(s[i], r[i]);
                at = vf_lt(size, normal);
            } else if (mode == NEAREST_EVEN) {
                const vf error = error_of(a[i], b[i], s[i]);
                inexact = vf_ne(error, zero);
                at = vm_and(at, vf_lt(vf_xor(error, vf_and(s[i], SIGN)), zero)); /* rounded up to it */
            } else {
                inexact = vm_or(vf_ne(vf_sub(s[i], a[i]), b[i]), vf_ne(vf_sub(s[i], b[i]), a[i]));
                if (mode == UPWARD)
                    at = vm_and(vm_and(at, vf_lt(zero, s[i])), inexact);
                else if (mode == DOWNWARD)
                    at = vm_and(vm_and(at, vf_lt(s[i], zero)), inexact);
                else
                    at = vm_and(at, vf_ne(s[i], s[i]));
            }
            const vm below = vm_and(vm_or(vf_lt(size, normal), at), vm_or(inexact, vf_ne(s[i], r[i])));
            seen_here->below = vc_add(seen_here->below, f->mask ? below : vm_and(below, vf_eq(r[i], zero)));
        }
    EACH a[i] = r[i];
}

INLINE void one_sub_vector(float *level, float *acc, const float *wide, const float *x, const general *g, const int mode,
                           const int innocuous, const int watching, const uint32_t *key_a, const uint32_t *key_b, uint32_t n,
                           watch *seen_here) {
    const int all = watching == COUNTS ? COUNTS : NOTHING, exact_below = watching == COUNTS && !g->narrows;
    const int in_tree = exact_below ? RANGE : all, in_acc = exact_below ? RANGE : watching;
    keys key[LOCK];
    vf a[LOCK], b[LOCK];
    EACH key[i] = keys_at(key_a + i * VW, key_b + i * VW);
    for (int j = 0; j < 16; j += 2) {
        vf w[LOCK];
        load_wide(w, wide, 0, j), round_products(a, w, x[j], &g->place[PRODUCT], mode, all, key, n + (uint32_t)j, seen_here);
        load_wide(w, wide, 0, j + 1);
        round_products(b, w, x[j + 1], &g->place[PRODUCT], mode, all, key, n + (uint32_t)j + 1, seen_here);
        round_sums(a, b, &g->place[TREE], mode, innocuous || g->within[0], in_tree, key, n + 16 + (uint32_t)j / 2, seen_here + TREE);
        put(level + j / 2 * LANES, a);
    }
    uint32_t op = n + 24;
    for (int width = 4; width; width /= 2)
        for (int j = 0; j < width; j++, op++) {
            fetch(a, level + 2 * j * LANES), fetch(b, level + (2 * j + 1) * LANES);
            round_sums(a, b, &g->place[TREE], mode, innocuous || g->within[1], in_tree, key, op, seen_here + TREE);
            put(level + j * LANES, a);
        }
    fetch(a, acc), fetch(b, level);
    round_sums(a, b, &g->place[ACCUMULATOR], mode, innocuous || g->within[2], in_acc, key, op, seen_here + ACCUMULATOR);
    put(acc, a);
}

/* Keys of the neurons of a block, of one gate. */
INLINE void block_keys(uint32_t *a, uint32_t *b, uint32_t step_key, uint32_t block, uint32_t gate) {
    for (uint32_t l = 0; l < 16; l++) {
        a[l] = neuron_key(step_key, block * 16 + l, gate);
        b[l] = second_key(a[l]);
    }
}

/* Keys of LANES neighbours. */
INLINE void lock_keys(uint32_t *a, uint32_t *b, uint32_t step_key, const int32_t *order) {
    for (int i = 0; i < LOCK_ROWS; i++)
        block_keys(a + i * 16, b + i * 16, step_key, (uint32_t)order[i] / 4, (uint32_t)order[i] % 4);
}

/* The same with each neuron's random word of operation 32 * sub. */
INLINE void lock_words(uint32_t *key, uint32_t *word, uint32_t step_key, const int32_t *order, ptrdiff_t sub) {
    lock_keys(key, word, step_key, order);
    for (int l = 0; l < LANES; l++) word[l] += key[l] * 32 * (uint32_t)sub;
}

/* Whether a place may have left its range. Where the processor cuts, it also cuts at its own largest value. */
static inline int beyond(const watch *w, const lanes *f, int mode) {
    float top[VW];
    vf_store(top, w->top);
    for (int l = 0; l < VW; l++)
        if (mode == NEAREST_EVEN ? !(top[l] <= f->max) : !(top[l] < f->max)) return 1;
    return 0;
}

typedef struct {
    const matrix *m;
    const general *g;
    const unit *u;
    const int32_t *order;
    ptrdiff_t count, pitch, nv, first_sub;
    const float *x;
    float *acc;
    const uint8_t *take;
    const uint32_t *step_keys;
    seen *n;
} general_call;

/* Vector v's rows again: by `dot_wide.h`, and by the exact path. */
static void again(const general_call *c, const int32_t *order, ptrdiff_t v);
static void exactly(const general_call *c, const int32_t *order, ptrdiff_t v) {
    const unsigned before = turned(NEAREST_EVEN);
    for (int q = 0; q < LOCK_ROWS; q++)
        if (order[q] < c->m->rows)
            exact_row(c->m, c->u + (order[q] & 3), order[q], c->x + v * 16, c->nv * 16, c->acc + v * c->pitch + order[q] * 16,
                      c->step_keys[v], c->first_sub, c->n);
    _mm_setcsr(before);
}

INLINE void general_rows(const general_call *c, const int mode, const int innocuous, const int watching) {
    const matrix *m = c->m;
    float wide[16 * LANES] ALIGNED, level[8 * LANES] ALIGNED, sums[TILE * LANES] ALIGNED;
    uint32_t key_a[TILE * LANES] ALIGNED, key_b[TILE * LANES] ALIGNED;
    for (ptrdiff_t r = 0; r < c->count; r += LOCK_ROWS) {
        const int32_t *order = c->order + r;
        for (ptrdiff_t first = 0; first < c->nv; first += TILE) {
            float *a = c->acc + first * c->pitch;
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(c->take, first, c->nv, place);
            watch seen_here[TILE][3];
            if (!used) continue;
            for (ptrdiff_t u = 0; u < used; u++) {
                gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
                for (int p = 0; p < 3; p++) seen_here[u][p] = (watch){vf_set(0.0f), vc_zero()};
                if (mode == STOCHASTIC)
                    lock_keys(key_a + u * LANES, key_b + u * LANES, c->step_keys[first + place[u]], order);
            }
            for (ptrdiff_t s = 0; s < m->subs; s++) {
                const float *xs = c->x + (s * c->nv + first) * 16;
                widen(wide, m, order, s);
                for (ptrdiff_t u = 0; u < used; u++)
                    one_sub_vector(level, sums + u * LANES, wide, xs + place[u] * 16, c->g, mode, innocuous, watching,
                                   key_a + u * LANES, key_b + u * LANES, 32 * (uint32_t)(c->first_sub + s), seen_here[u]);
            }
            for (ptrdiff_t u = 0; u < used; u++) {
                int out = 0;
                for (int p = 0; p < 3 && watching != NOTHING; p++) out |= beyond(&seen_here[u][p], &c->g->place[p], mode);
                if (out) {
                    again(c, order, first + place[u]);
                    continue;
                }
                scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
                if (watching == COUNTS)
                    for (int p = 0; p < 3; p++) c->n[p].underflow += vc_sum(seen_here[u][p].below);
            }
        }
    }
}

/* dot_stochastic.h */
static void rows_drawn(const general_call *c);
static void rows_drawn_flushed(const general_call *c);

#define GENERAL_MODE(name, mode, innocuous)                                                                        \
    static __attribute__((noinline)) void name##_counts(const general_call *c) { general_rows(c, mode, innocuous, COUNTS); } \
    static __attribute__((noinline)) void name##_range(const general_call *c) { general_rows(c, mode, innocuous, RANGE); }   \
    static __attribute__((noinline)) void name##_free(const general_call *c) { general_rows(c, mode, innocuous, NOTHING); }
GENERAL_MODE(rows_nearest, NEAREST_EVEN, 0)
GENERAL_MODE(rows_innocuous, NEAREST_EVEN, 1)
GENERAL_MODE(rows_away, NEAREST_AWAY, 0)
GENERAL_MODE(rows_zero, TOWARD_ZERO, 0)
GENERAL_MODE(rows_up, UPWARD, 0)
GENERAL_MODE(rows_down, DOWNWARD, 0)
GENERAL_MODE(rows_stochastic, STOCHASTIC, 0)

/* exact_row begins again from `acc`, which is why the lanes' sums go there last.
 *   u IN (4) units of the gates; step_keys IN (nv), for stochastic rounding, as is first_sub, the number of the first
 *   sub-vector; n INOUT (3) counts of products, tree, accumulator
 */
void LEVEL(dot_general)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count,
                        const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv,
                        const uint32_t *step_keys, ptrdiff_t first_sub, int watching, seen *n) {
    const general_call c = {m, g, u, order, count, pitch, nv, first_sub, x, acc, take, step_keys, n};
    const unsigned before = turned(g->mode);
#define RUN(name) (watching == COUNTS ? name##_counts : watching == RANGE ? name##_range : name##_free)(&c)
    switch (g->mode) {
    case NEAREST_EVEN:
        if (g->innocuous)
            RUN(rows_innocuous);
        else
            RUN(rows_nearest);
        break;
    case UPWARD: RUN(rows_up); break;
    case DOWNWARD: RUN(rows_down); break;
    case TOWARD_ZERO: RUN(rows_zero); break;
    case NEAREST_AWAY: RUN(rows_away); break;
    default:
        if (watching != COUNTS && !g->narrows)
            rows_drawn(&c);
        else if (watching != COUNTS && g->innocuous && g->place[PRODUCT].mask) /* then all are floats */
            rows_drawn_flushed(&c);
        else
            RUN(rows_stochastic);
    }
#undef RUN
    _mm_setcsr(before);
}

INLINE int join_lanes(const general *g, float *acc, const float *stored, ptrdiff_t n, seen *count, const int mode) {
    watch w = {vf_set(0.0f), vc_zero()};
    const keys none[LOCK] = {0};
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vf a[LOCK], b[LOCK];
        fetch(a, acc + k), fetch(b, stored + k);
        round_sums(a, b, &g->place[ACCUMULATOR], mode, 0, COUNTS, none, 0, &w);
        put(acc + k, a);
    }
    if (beyond(&w, &g->place[ACCUMULATOR], mode)) return 0;
    count->underflow += vc_sum(w.below);
    return 1;
}
#define JOIN_MODE(name, mode)                                                                                          \
    static __attribute__((noinline)) int name(const general *g, float *acc, const float *stored, ptrdiff_t n, seen *c) { \
        return join_lanes(g, acc, stored, n, c, mode);                                                                 \
    }
JOIN_MODE(join_nearest, NEAREST_EVEN)
JOIN_MODE(join_away, NEAREST_AWAY)
JOIN_MODE(join_zero, TOWARD_ZERO)
JOIN_MODE(join_up, UPWARD)
JOIN_MODE(join_down, DOWNWARD)

/* n a multiple of 64; not stochastic. The caller keeps a copy of acc for the exact path. */
int LEVEL(join)(const general *g, float *acc, const float *stored, ptrdiff_t n, seen *count) {
    const unsigned before = turned(g->mode);
    int (*const run)(const general *, float *, const float *, ptrdiff_t, seen *) =
        g->mode == NEAREST_EVEN  ? join_nearest
        : g->mode == UPWARD      ? join_up
        : g->mode == DOWNWARD    ? join_down
        : g->mode == TOWARD_ZERO ? join_zero
                                 : join_away;
    const int done = run(g, acc, stored, n, count);
    _mm_setcsr(before);
    return done;
}

#endif
