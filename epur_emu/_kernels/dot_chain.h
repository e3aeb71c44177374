/* Dot products whose every operation is rounded to nearest even, in float32 lanes without conversions: 16 neurons side by
 * side. For formats that widen along the chain product, tree, accumulator (each holds the values of the one before) and have
 * at most 11 bits of significand, or are float32 itself.
 *
 * Let X be the 24-bit significand of a float32 value v, p the precision, C = 2^(24 - p), r = v rounded to p bits. Adding or
 * subtracting C v leaves r's last place as the last place of the sum:
 *   y = C v -+ v, rounded once;   r = +-(C v - y), exact.
 * A tie has X even, so that y's evenness is r's. Where y leaves its binade downwards (C v - v) its last place halves, but
 * there v lies within 1/8 of a place of r; where it leaves it upwards (C v + v) its last place doubles, which is harmless if
 * X is even, as it is for a product of two values of 11 bits.
 *   sum      s = a + b;  r = C s - round(C s - s)                     for any float32 s
 *   product  p = w x;  t = C max(|p|, 1.5 least normal);  r = round(t + p) - t
 * where below 1.5 least normal the sum has the format's least place as its last. A sum below the normal range is a multiple of
 * that place and exact. C = 1 in the first leaves v as it is: float32; C = 0 in the second stands for products that are exact, or
 * float32. Neither form, nor C x, overflows to infinity, and no product may underflow in float32: the caller proves both beforehand. A
 * zero may come out with either sign.
 *
 * Products and tree without subnormals: v is rounded as if it were normal, and a result below the least normal value becomes 0. All
 * values are multiplied by the power of two that takes that value to float32's, 2^-126 (in the accumulator, to its own place, by its
 * own): then the processor does this by itself, as it flushes what is subnormal in float32. A sum that it flushes was exact.
 *   product  t = C w x;  r = round((1 + 1 / C) t) - t
 * t itself is flushed only where 0 is what becomes of w x.
 */

/* Constants of a call must reach the innermost loop as such. */
#define INLINE static inline __attribute__((always_inline))

/* LOCK vectors of neurons go through the tree side by side, in LOCK_ROWS rows of 16: the chain of one rounding is
 * some ten cycles long, and only independent neighbours in program order fill it. With 16 registers there is room for two. */
#define LOCK (VW == 8 ? 2 : 4)
#define LOCK_ROWS (LOCK / VN ? LOCK / VN : 1)
#define LANES (LOCK * VW)
/* Vectors that share one conversion of the weights. */
#define TILE 48
/* Sub-vectors of a row to prefetch beyond the one in use. */
#define AHEAD 8
#define ALIGNED __attribute__((aligned(64)))
#if defined(__GNUC__)
#define IN_MEMORY(sixteen) __asm__ volatile("" : "+m"(*(float(*)[16])(sixteen)))
#else
#define IN_MEMORY(sixteen)
#endif
#define EACH for (int i = 0; i < LOCK; i++)

INLINE void fetch(vf *a, const float *from) { EACH a[i] = vf_load(from + i * VW); }
INLINE void put(float *to, const vf *a) { EACH vf_store(to + i * VW, a[i]); }

/* Between one vector's rows of `acc` and LANES neighbours. */
INLINE void gather_lanes(float *to, const float *acc, const int32_t *order) {
    EACH vf_store(to + i * VW, vf_load(acc + (ptrdiff_t)order[i / VN] * 16 + i % VN * VW));
}
INLINE void scatter_lanes(float *acc, const float *from, const int32_t *order) {
    EACH vf_store(acc + (ptrdiff_t)order[i / VN] * 16 + i % VN * VW, vf_load(from + i * VW));
}

/* Weights of input j in LOCK vectors: codes of the rows at `at`, or float32 as `widen` lays them. */
typedef struct {
    const uint16_t *row[LOCK_ROWS];
} codes;
INLINE codes codes_at(const matrix *m, const int32_t *order) {
    codes c;
    for (int r = 0; r < LOCK_ROWS; r++) c.row[r] = (const uint16_t *)m->w + order[r] * m->subs * 256;
    return c;
}
INLINE void load_half(vf *w, const codes *at, ptrdiff_t from, int j) {
    EACH w[i] = vf_half(at->row[i / VN] + from + j * 16 + i % VN * VW);
}
INLINE void load_top(vf *w, const codes *at, ptrdiff_t from, int j) {
    EACH w[i] = vf_top(at->row[i / VN] + from + j * 16 + i % VN * VW);
}
INLINE void load_wide(vf *w, const float *at, ptrdiff_t from, int j) { fetch(w, at + from + j * LANES); }

#if VW == 16
/* One sub-vector of PAIRED codes, input by input. */
INLINE void unpaired(uint16_t *to, const uint16_t *from) {
    for (int j = 0; j < 16; j++)
        for (int pair = 0; pair < 8; pair++) memcpy(to + j * 16 + pair * 2, from + pair * 32 + j * 2, 4);
}
#endif

/* One sub-vector of the rows in `order`, from input 16 s, as float32. */
INLINE void widen(float *wide, const matrix *m, const int32_t *order, ptrdiff_t s) {
#if VW == 16
    if (m->store == PAIRED) {
        uint16_t top[256];
        EACH {
            unpaired(top, (const uint16_t *)m->w + (order[i] * m->subs + s) * 256);
            for (int j = 0; j < 16; j++) vf_store(wide + j * LANES + i * VW, vf_top(top + j * 16));
        }
        return;
    }
#endif
    if (m->store == WIDE) {
        EACH {
            const float *from = (const float *)m->w + (order[i / VN] * m->subs + s) * 256 + i % VN * VW;
            for (int j = 0; j < 16; j++) vf_store(wide + j * LANES + i * VW, vf_load(from + j * 16));
        }
        return;
    }
    const codes at = codes_at(m, order);
    vf w[LOCK];
    for (int j = 0; j < 16; j++) {
        if (m->store == HALF)
            load_half(w, &at, s * 256, j);
        else
            load_top(w, &at, s * 256, j);
        put(wide + j * LANES, w);
    }
}

/* x and C x (flushing: in products' domain) of one sub-vector. */
typedef struct {
    const float *x, *scaled;
} inputs;

/* What becomes of results: rounded as above; the same, flushed; products are rounded, while sums are float32 and stay as the processor
 * has them; products are exact, and sums are rounded; all stay. */
enum { ROUNDS, FLUSHES, MULTIPLIES, ADDS, KEEPS };

/* One addition: its C, and what takes the second term to the first one's domain. */
typedef struct {
    float c, by;
} addition;
INLINE addition in_tree(const chain *k) { return (addition){k->tree, 1.0f}; }
INLINE addition in_acc(const chain *k, const int form) { return (addition){k->acc, form == FLUSHES ? k->join : 1.0f}; }

INLINE vf added(vf a, vf b, const addition to, const int form) {
    const vf s = to.by == 1.0f ? vf_add(a, b) : vf_madd(b, vf_set(to.by), a);
    return form == FLUSHES ? vf_normal(s) : s;
}
INLINE void pairs(vf *a, const vf *b, const addition to, const int form) {
    vf y[LOCK];
    EACH a[i] = added(a[i], b[i], to, form);
    if (form == KEEPS || form == MULTIPLIES) return;
    EACH y[i] = vf_mul(a[i], vf_set(to.c - 1.0f));
    EACH a[i] = vf_msub(a[i], vf_set(to.c), y[i]);
}

INLINE void count_below(vc *below, const vf *p, const vf *w, float x, const chain *k) {
    EACH {
        const vf q = vf_mul(w[i], vf_set(x));
        *below = vc_add(*below, vm_and(vf_lt(vf_abs(q), vf_set(k->normal)), vf_ne(p[i], q)));
    }
}

/* s = the sums of the products v x[j] and w x[j + 1]; meanwhile a = a + b, of sums that are ready, so that their operations
 * and those of the products fill each other's waiting times. */
INLINE void products(vf *s, const vf *v, const vf *w, int j, const inputs *in, vf *a, const vf *b, const addition to,
                     const chain *k, const int form, vc *below) {
    const vf least = vf_set(k->least * k->product), up = vf_set(1.0f + 1.0f / k->product);
    const int flushes = form == FLUSHES;
    vf t[LOCK], u[LOCK], p[LOCK], z[LOCK];
    if (form >= ADDS) {
        EACH s[i] = vf_mul(v[i], vf_set(in->x[j]));
        EACH p[i] = vf_mul(w[i], vf_set(in->x[j + 1]));
        if (b) pairs(a, b, to, form);
        pairs(s, p, in_tree(k), form);
        return;
    }
    EACH t[i] = vf_mul(v[i], vf_set(in->scaled[j]));
    EACH u[i] = vf_mul(w[i], vf_set(in->scaled[j + 1]));
    if (b) EACH a[i] = added(a[i], b[i], to, form);
    if (!flushes) EACH t[i] = vf_absmax(t[i], least);
    if (b && form != MULTIPLIES) EACH z[i] = vf_mul(a[i], vf_set(to.c - 1.0f));
    if (!flushes) EACH u[i] = vf_absmax(u[i], least);
    EACH s[i] = flushes ? vf_mul(t[i], up) : vf_madd(v[i], vf_set(in->x[j]), t[i]);
    EACH p[i] = flushes ? vf_mul(u[i], up) : vf_madd(w[i], vf_set(in->x[j + 1]), u[i]);
    EACH s[i] = flushes ? vf_normal(vf_sub(s[i], t[i])) : vf_sub(s[i], t[i]);
    if (b && form != MULTIPLIES) EACH a[i] = vf_msub(a[i], vf_set(to.c), z[i]);
    EACH p[i] = flushes ? vf_normal(vf_sub(p[i], u[i])) : vf_sub(p[i], u[i]);
    if (below) count_below(below, s, v, in->x[j], k), count_below(below, p, w, in->x[j + 1], k);
    pairs(s, p, in_tree(k), form);
}

/* One sub-vector. The last sums of its tree are left to the next one: halves 0 and 1 are the sums of its first and last
 * eight products, and what comes in there goes into acc. */
#define PRODUCTS(load, j, s, a, b, to) \
    load(v, at, from, j), load(w, at, from, (j) + 1), products(s, v, w, j, in, a, b, to, k, form, below);
#define DEFINE_TREE(name, type, load)                                                                          \
    INLINE void name(vf half[2][LOCK], float *acc, const type *at, ptrdiff_t from, const inputs *in, const chain *k, \
                     const int form, vc *below) {                                                              \
        const addition tree = in_tree(k), last = in_acc(k, form);                                              \
        vf v[LOCK], w[LOCK], a[LOCK], b[LOCK], c[LOCK], d[LOCK], sum[LOCK];                                    \
        PRODUCTS(load, 0, a, half[0], half[1], tree)                                                           \
        fetch(sum, acc);                                                                                       \
        PRODUCTS(load, 2, b, sum, half[0], last)                                                               \
        put(acc, sum);                                                                                         \
        PRODUCTS(load, 4, c, a, b, tree)                                                                       \
        PRODUCTS(load, 6, d, NULL, NULL, tree)                                                                 \
        PRODUCTS(load, 8, b, c, d, tree)                                                                       \
        PRODUCTS(load, 10, d, a, c, tree)                                                                      \
        PRODUCTS(load, 12, c, b, d, tree)                                                                      \
        PRODUCTS(load, 14, d, NULL, NULL, tree)                                                                \
        pairs(c, d, tree, form), pairs(b, c, tree, form);                                                      \
        EACH half[0][i] = a[i], half[1][i] = b[i];                                                             \
    }
DEFINE_TREE(tree_half, codes, load_half)
DEFINE_TREE(tree_top, codes, load_top)
DEFINE_TREE(tree_wide, float, load_wide)

/* The last sub-vector's tree into acc. */
INLINE void finish(vf half[2][LOCK], float *acc, const chain *k, const int form) {
    vf sum[LOCK];
    pairs(half[0], half[1], in_tree(k), form);
    fetch(sum, acc), pairs(sum, half[0], in_acc(k, form), form), put(acc, sum);
}

/* `used` vectors' sums into another domain. */
INLINE void rescale(float *sums, ptrdiff_t used, float by) {
    for (ptrdiff_t l = 0; l < used * LANES; l += VW) vf_store(sums + l, vf_mul(vf_load(sums + l), vf_set(by)));
}

INLINE void scale(float *to, const float *x, float by) {
    for (int j = 0; j < 16; j += VW) vf_store(to + j, vf_mul(vf_load(x + j), vf_set(by)));
    IN_MEMORY(to); /* else GCC picks the lanes out of a register, where a load does it for nothing */
}

/* Which of the vectors from `first` on, TILE at most, are to be taken, counted from there; returns how many. */
static inline ptrdiff_t taken_of(const uint8_t *take, ptrdiff_t first, ptrdiff_t nv, ptrdiff_t *place) {
    ptrdiff_t used = 0;
    for (ptrdiff_t v = first; v < nv && v < first + TILE; v++)
        if (take[v]) place[used++] = v - first;
    return used;
}

/* One vector alone waits for its weights, these rows' and at their end those of the next ones (where rows follow each other). */
INLINE void ahead(const codes *at, ptrdiff_t s, ptrdiff_t subs) {
    const ptrdiff_t from = s + AHEAD + (s + AHEAD < subs ? 0 : (LOCK_ROWS - 1) * subs);
    for (int r = 0; r < LOCK_ROWS; r++)
        for (int k = 0; k < 256; k += 32) __builtin_prefetch(at->row[r] + from * 256 + k);
}

/* `counted` and `form` are constants where this is called, so that other forms have no trace of them. */
INLINE void chain_rows(
    const matrix *m, const chain constants, const int32_t *order, ptrdiff_t count, const float *x, float *acc,
    ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, const int counted, const int form, int64_t *underflow) {
    const chain *k = &constants;
    const float domain = k->domain * k->join, factor = form == FLUSHES ? k->product * k->domain : k->product;
    float wide[16 * LANES] ALIGNED, scaled[16] ALIGNED;
    float sums[TILE * LANES] ALIGNED; /* side by side, where rows of `acc` may share one cache set */
    for (ptrdiff_t r = 0; r < count; r += LOCK_ROWS) {
        for (int part = 0; part < LOCK_ROWS * VN; part += LOCK) { /* one, but for the scalar level */
            const ptrdiff_t shift = part * VW;
            matrix shifted = *m; /* the scalar level's part of a row */
            shifted.w = m->store == WIDE ? (const void *)((const float *)m->w + shift)
                                         : (const void *)((const uint16_t *)m->w + shift);
            const codes at = codes_at(&shifted, order + r);
            for (ptrdiff_t first = 0; first < nv; first += TILE) {
                float *a = acc + first * pitch + shift;
                ptrdiff_t place[TILE];
                const ptrdiff_t used = taken_of(take, first, nv, place);
                vc seen_below = vc_zero(), *below = counted ? &seen_below : NULL;
                if (!used) continue;
                for (ptrdiff_t u = 0; u < used; u++) gather_lanes(sums + u * LANES, a + place[u] * pitch, order + r);
                if (form == FLUSHES) rescale(sums, used, domain);
                float *before = sums;
                vf half[2][LOCK]; /* begins with a tree of +0: adds nothing */
                EACH half[0][i] = half[1][i] = vf_set(0.0f);
                const ptrdiff_t next = nv * 16;
                const float *xs = x + first * 16;
                if (used == 1 && (m->store == HALF || m->store == TOP)) {
                    xs += place[0] * 16;
                    for (ptrdiff_t s = 0; s < m->subs; s++, xs += next) {
                        const inputs in = {xs, scaled};
                        if (form < ADDS) scale(scaled, xs, factor);
                        ahead(&at, s, m->subs);
                        if (m->store == HALF)
                            tree_half(half, sums, &at, s * 256, &in, k, form, below);
                        else
                            tree_top(half, sums, &at, s * 256, &in, k, form, below);
                    }
                } else {
                    for (ptrdiff_t s = 0; s < m->subs; s++, xs += next) {
                        widen(wide, &shifted, order + r, s); /* one conversion of the weights serves all vectors */
                        for (ptrdiff_t u = 0; u < used; u++) {
                            const inputs in = {xs + place[u] * 16, scaled};
                            if (form < ADDS) scale(scaled, in.x, factor);
                            tree_wide(half, before, wide, 0, &in, k, form, below);
                            before = sums + u * LANES;
                        }
                    }
                }
                finish(half, before, k, form);
                if (form == FLUSHES) rescale(sums, used, 1.0f / domain);
                for (ptrdiff_t u = 0; u < used; u++) scatter_lanes(a + place[u] * pitch, sums + u * LANES, order + r);
                if (counted) *underflow += vc_sum(seen_below);
            }
        }
    }
}

/* With the processor's own flushing, which the scalar level does without. */
static __attribute__((noinline)) void chain_flushing(
    const matrix *m, const chain *k, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch,
    const uint8_t *take, ptrdiff_t nv) {
    const float c = k->product;
    const chain uniform = {c, c, c, k->least, k->normal, k->domain, 1.0f};
    if (memcmp(k, &uniform, sizeof uniform) == 0)
        chain_rows(m, uniform, order, count, x, acc, pitch, take, nv, 0, FLUSHES, NULL);
    else
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 0, FLUSHES, NULL);
}

#if defined(__GNUC__) && !defined(__clang__)
#define IN_ORDER __attribute__((optimize("no-tree-ter")))
#else
#define IN_ORDER
#endif

/* Sums are float32. What is used but once GCC would compute only there, much later, and run out of registers for what it needs. */
static __attribute__((noinline)) IN_ORDER void chain_keeping(
    const matrix *m, const chain *k, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch,
    const uint8_t *take, ptrdiff_t nv) {
    if (k->product == 0.0f)
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 0, KEEPS, NULL);
    else
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 0, MULTIPLIES, NULL);
}

/* acc[v] += W x[v] for the vectors that are to be taken and the rows in `order`.
 *   order IN    (count, a multiple of 4) rows of W
 *   x     IN    (subs, nv, 16), values of the input's format
 *   acc   INOUT (nv, pitch / 16, 16), values of the accumulator's format
 *   take  IN    (nv)
 *   underflow INOUT of products, or NULL: not counted, nor is it where the chain flushes
 */
void LEVEL(dot_chain)(const matrix *m, const chain *k, const int32_t *order, ptrdiff_t count, const float *x,
                      float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv, int64_t *underflow) {
    /* One constant for all roundings, and known ones for fp16, leave more registers to the sums. */
    const chain half = {8192.0f, 8192.0f, 8192.0f, 0x1.8p-14f, 0x1p-14f, 0.0f, 1.0f};
    const float c = k->product;
    const chain uniform = {c, c, c, k->least, k->normal, 0.0f, 1.0f};
    if (k->domain > 0.0f) {
        const unsigned before = flushing();
        chain_flushing(m, k, order, count, x, acc, pitch, take, nv);
        flushing_no_more(before);
    } else if (underflow)
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 1, ROUNDS, underflow);
    else if (k->tree == 1.0f && k->acc == 1.0f)
        chain_keeping(m, k, order, count, x, acc, pitch, take, nv);
    else if (c == 0.0f)
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 0, ADDS, NULL);
    else if (memcmp(k, &half, sizeof half) == 0)
        chain_rows(m, half, order, count, x, acc, pitch, take, nv, 0, ROUNDS, NULL);
    else if (c == k->tree && c == k->acc)
        chain_rows(m, uniform, order, count, x, acc, pitch, take, nv, 0, ROUNDS, NULL);
    else
        chain_rows(m, *k, order, count, x, acc, pitch, take, nv, 0, ROUNDS, NULL);
}
