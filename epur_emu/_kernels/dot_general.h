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
 * What is beyond a place's range becomes what the format says, where the caller does not know that nothing is: in products and tree as
 * they are; the accumulator then goes in float64 (`dot_places.h`), unless sums are exact and short. Codes that wrap from beyond 2^21, of
 * more than 2^22 codes from beyond 2^22, are left to `dot_wide.h`. No finite result must leave 2^100, nor one of fixed point of 23 bits and
 * more 2^22 units, and no product may underflow in float32: the caller proves it.
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

/* Of one place, where what leaves the range is done again elsewhere: the largest magnitudes, and underflows. */
typedef struct {
    vf top;
    vc below;
} watch;

/* What happened at one place, as `happened` has it. */
typedef struct {
    vc above, below, underflow;
    vf far;
} events;
#define NO_EVENTS ((events){vc_zero(), vc_zero(), vc_zero(), vf_set(0.0f)})

/* Constants of a place's range, as `ranged_place` has them; `far` as FAR, and whether WRAPPED codes may be there. */
typedef struct {
    float max, min, above, below, edge, span, far, origin, kept, base;
    int wraps, takes_nan, takes_infinity, kind, may_be_far;
} range;

static inline float float_bits(uint32_t b) {
    float v;
    memcpy(&v, &b, 4);
    return v;
}

static inline range range_of(const fmt *f, int mode, int tame) {
    const int real = f->kind == FLOAT, wraps = f->overflow == WRAP, simple = wraps && f->codes <= 0x1p22;
    const double unit = ldexp(1.0, -f->places), base = 0x1.8p23 * unit;
    return (range){(float)f->max, (float)f->min, (float)beyond_max(f, mode, 0), (float)beyond_max(f, mode, 1),
                   !real || f->overflow == SATURATE ? INFINITY : FLT_MAX, wraps ? (float)(f->codes * unit) : 0.0f,
                   wraps ? (float)((simple ? 0x1p21 : 0x1p22) * unit) : INFINITY, (float)(base - f->min),
                   float_bits(simple ? (uint32_t)f->codes - 1 : 0), (float)base, wraps, !real, f->overflow == TO_NAN, kind_of(f, tame, 0x1p22), 0};
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
/* The same where finite values are below 2^100, and with LIMITS infinities go through; all but v and f constants. */
INLINE vf scale_in(vf v, const lanes *f, const int mode, const int form, const int watching) {
    const int cuts = mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC;
    const vf mask = vf_set(float_bits(f->mask)), least = vf_set(f->least);
    if (form == FIXED_SUMS) return cuts ? vf_or(least, vf_and(v, SIGN)) : least;
    if (!(watching & LIMITS)) return scale_of(v, f, mode, NOTHING);
    const vf e = vf_min(vf_max(vf_and(v, mask), least), vf_set(0x1p100f));
    return cuts ? vf_or(e, vf_and(v, SIGN)) : e;
}

/* Of stochastic rounding: a vector's keys, and the random words of its next operation. */
typedef struct {
    vk key, word;
} drawer;
INLINE vf draw(drawer *d, float one) {
    const vk word = d->word;
    d->word = vk_add(word, d->key);
    return vf_random(word, one);
}

/* What is added to v before it is cut; the products are exact. */
INLINE vf shifted(vf v, vf scale, const lanes *f, const int mode, drawer *d) {
    if (mode == NEAREST_AWAY) return vf_fma(scale, vf_set(f->half), v);
    if (mode == STOCHASTIC) return vf_fma(scale, draw(d, f->one), v);
    return v;
}

/* v to units; scale * magic is exact. */
INLINE vf scaled_to_units(vf v, vf scale, const lanes *f, const int mode, drawer *d) {
    const vf magic = vf_set(f->magic), back = mode == STOCHASTIC ? vf_set(f->magic + f->one) : magic;
    return vf_fnma(scale, back, vf_fma(scale, magic, shifted(v, scale, f, mode, d)));
}

/* What a + b lost by being cut to s. */
INLINE vf cut_off(vf a, vf b, vf s) { return vf_add(vf_sub(vf_larger(a, b), s), vf_smaller(a, b)); }

/* To float32 itself, of r, which the processor cut from v, and v - r, which it cut too: that, and half or a random part (one place too
 * much) of r's last place, make one more place if they reach one. Only where r is normal is v - r not 0. */
INLINE vf single_by(vf r, vf rest, vf part, const int mode) {
    const vf scale = vf_and(r, vf_set(-INFINITY)), more = vf_fma(scale, part, rest); /* exponent and sign */
    return vf_add(r, mode == NEAREST_AWAY ? more : vf_fnma(scale, vf_set(0x1p-23f), more));
}
/* With LIMITS r may not be finite, and then stays as it is. */
INLINE vf single_of(vf r, vf rest, const int mode, const int watching, drawer *d) {
    const vf next = single_by(r, rest, mode == NEAREST_AWAY ? vf_set(0x1p-24f) : draw(d, 0x1p-23f), mode);
    return watching & LIMITS ? vf_pick(vf_le(vf_abs(r), vf_set(FLT_MAX)), next, r) : next;
}

/* The same of all, which may be the operands themselves. */
INLINE void to_units(vf *r, const vf *v, const lanes *f, const int mode, const int form, const int watching, drawer *d) {
    if (form == FIXED_SUMS || !f->mask)
        EACH r[i] = scaled_to_units(v[i], scale_in(v[i], f, mode, FIXED_SUMS, watching), f, mode, d + i);
    else
        EACH r[i] = scaled_to_units(v[i], scale_in(v[i], f, mode, form, watching), f, mode, d + i);
}

/* Without subnormals what is below `flush` becomes 0. */
INLINE vf flushed(vf r, vf flush, const int flushes) {
    return flushes ? vf_pick(vf_lt(vf_abs(r), flush), vf_set(0.0f), r) : r;
}

INLINE void all_flushed(vf *r, const lanes *f) {
    if (f->flush > 0.0f) EACH r[i] = flushed(r[i], vf_set(f->flush), 1);
}

INLINE vf watched(vf r, const lanes *f, watch *w) {
    r = flushed(r, vf_set(f->flush), f->flush > 0.0f);
    w->top = vf_topmost(w->top, vf_abs(r));
    return r;
}

/* r, beyond the range, as the format has it: as `in_range`. */
INLINE void in_narrow_range(vf *r, const range *f, const int form, events *h) {
    const vf max = vf_set(f->max), min = vf_set(f->min), above = vf_set(f->above), below = vf_set(f->below);
    const vf edge = vf_set(f->edge), span = vf_set(f->span);
    if (f->wraps) {
        const vf magic = vf_mul(span, vf_set(1.5f * 0x1p23f));
        EACH {
            const vf round = vf_sub(r[i], vf_sub(vf_add(r[i], magic), magic));
            const vf down = vf_pick(vf_lt(max, round), vf_sub(round, span), round);
            h->above = vc_add(h->above, vf_lt(max, r[i])), h->below = vc_add(h->below, vf_lt(r[i], min));
            h->far = vf_max(vf_abs(r[i]), h->far);
            r[i] = vf_pick(vf_lt(down, min), vf_add(down, span), down);
        }
    } else if (form != FIXED_SUMS && f->edge < INFINITY)
        EACH {
            const vm high = vm_and(vf_lt(max, r[i]), vf_le(r[i], edge)), low = vm_and(vf_lt(r[i], min), vf_le(vf_neg(edge), r[i]));
            h->above = vc_add(h->above, high), h->below = vc_add(h->below, low);
            r[i] = vf_pick(high, above, vf_pick(low, below, r[i]));
        }
    else
        EACH {
            const vm high = vf_lt(max, r[i]), low = vf_lt(r[i], min);
            h->above = vc_add(h->above, high), h->below = vc_add(h->below, low);
            r[i] = vf_pick(high, above, vf_pick(low, below, r[i]));
        }
    if (form != FIXED_SUMS && f->takes_nan) EACH r[i] = vf_pick(vf_le(r[i], vf_set(INFINITY)), r[i], vf_set(0.0f));
    if (form != FIXED_SUMS && f->takes_infinity) EACH r[i] = vf_pick(vf_le(vf_abs(r[i]), vf_set(FLT_MAX)), r[i], vf_set(NAN));
}

INLINE void ranged(vf *r, const range *f, const int form, const int watching, events *h) {
    if (!(watching & LIMITS) || f->kind == INSIDE) return;
    if (f->kind == CLAMPED)
        EACH {
            const vf kept = vf_min(vf_set(f->max), vf_max(vf_set(f->min), r[i]));
            h->above = vc_add(h->above, vf_ne(kept, r[i]));
            r[i] = kept;
        }
    else if (f->kind == WRAPPED)
        EACH {
            const vf origin = vf_set(f->origin), code = vf_add(r[i], origin);
            const vf kept = vf_within(code, vf_set(f->kept), vf_set(f->base));
            h->above = vc_add(h->above, vf_ne(kept, code));
            if (f->may_be_far) h->far = vf_absmax(r[i], h->far);
            r[i] = vf_sub(kept, origin);
        }
    else
        in_narrow_range(r, f, form, h);
}

INLINE void round_products(vf *p, const vf *w, float factor, const lanes *f, const range *limit, const int mode, const int form,
                           const int watching, drawer *d, events *seen_here) {
    const vf x = vf_set(factor);
    const int single = form != FIXED_SUMS && f->magic == 0.0f; /* float32 itself */
    if (mode == NEAREST_EVEN && (form == FIXED_SUMS || !f->mask)) {
        const vf magic = vf_mul(vf_set(f->least), vf_set(f->magic));
        EACH p[i] = vf_sub(vf_fma(w[i], x, magic), magic);
    } else {
        EACH p[i] = vf_mul(w[i], x);
        if (single && (mode == NEAREST_AWAY || mode == STOCHASTIC))
            EACH p[i] = single_of(p[i], vf_fma(w[i], x, vf_neg(p[i])), mode, watching, d + i);
        else if (!single && mode == NEAREST_EVEN)
            EACH {
                const vf magic = vf_mul(scale_in(p[i], f, mode, form, watching), vf_set(f->magic));
                p[i] = vf_sub(vf_fma(w[i], x, magic), magic);
            }
        else if (!single)
            to_units(p, p, f, mode, form, watching, d);
    }
    if (form != FIXED_SUMS) all_flushed(p, f);
    if (watching & COUNTS)
        EACH {
            const vf rest = vf_fma(w[i], x, vf_neg(p[i])), room = vf_fma(vf_abs(w[i]), vf_abs(x), vf_set(-f->normal));
            const vm below = vm_and(vf_ne(rest, vf_set(0.0f)), vf_lt(room, vf_set(0.0f)));
            seen_here->underflow = vc_add(seen_here->underflow, f->mask ? below : vm_and(below, vf_eq(p[i], vf_set(0.0f))));
        }
    ranged(p, limit, form, watching, seen_here);
}

/* What a + b lost by being rounded, to nearest, to s. */
INLINE vf error_of(vf a, vf b, vf s) {
    const vf back = vf_sub(s, a);
    return vf_add(vf_sub(a, vf_sub(s, back)), vf_sub(b, back));
}

INLINE void round_sums(vf *a, const vf *b, const lanes *f, const range *limit, const int mode, const int form, int innocuous,
                       const int watching, drawer *d, events *seen_here) {
    if (form == FIXED_SUMS) { /* exact */
        EACH a[i] = vf_add(a[i], b[i]);
        ranged(a, limit, form, watching, seen_here);
        return;
    }
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
    if (single && (mode == NEAREST_AWAY || mode == STOCHASTIC))
        EACH r[i] = single_of(s[i], cut_off(a[i], b[i], s[i]), mode, watching, d + i);
    else if (single)
        EACH r[i] = s[i];
    else
        to_units(r, s, f, mode, form, watching, d);
    if (lost)
        EACH {
            const vf off = vf_sub(s[i], r[i]), half = vf_mul(scale_in(s[i], f, mode, form, watching), vf_set(f->half));
            const vm wrong = vm_and(vf_eq(vf_abs(off), half), vf_lt(zero, vf_xor(e[i], vf_and(off, SIGN))));
            r[i] = vf_add(r[i], vf_pick(wrong, vf_add(off, off), zero));
        }
    all_flushed(r, f);
    if (watching & COUNTS)
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
            seen_here->underflow = vc_add(seen_here->underflow, f->mask ? below : vm_and(below, vf_eq(r[i], zero)));
        }
    EACH a[i] = r[i];
    ranged(a, limit, form, watching, seen_here);
}

/* What the operations of one call share. */
typedef struct {
    lanes place[3];
    range limit[3];
    ranged_place last; /* the accumulator */
    int mode, innocuous, within[3], exact_below, exact_last; /* exact: sums below the normal range; in the accumulator */
    int last_safe, last_narrow; /* the accumulator stays in its range; leaves it, all in float32 */
} operations;

/* What happened to one vector's rows; the accumulator's: `last`, unless that is narrow. */
typedef struct {
    events place[3];
    happened last;
} passed;

/* acc += sum in float64: for accumulators that may leave their range, or that float32 lanes don't have. */
INLINE void accumulate(float *acc, const float *sum, const operations *o, const int mode, const int form, const int watching,
                       const uint32_t *key_a, const uint32_t *key_b, uint32_t n, happened *h) {
    for (int l = 0; l < LANES; l += VD) {
        const vd a = vd_load(acc + l), b = vd_load(sum + l);
        ve word = ve_load(key_a + l);
        if (mode == STOCHASTIC) word = ve_add(ve_mul(word, ve_set(n)), ve_load(key_b + l));
        if (form == FIXED_SUMS || o->exact_last)
            vd_store(acc + l, seldom_out(vd_add(a, b), &o->last, form, h));
        else
            vd_store(acc + l, wide_rounded(mode == NEAREST_EVEN ? vd_odd(a, b) : vd_add(a, b), a, b,
                                           mode == NEAREST_EVEN ? ODD_SUM_OF : SUM_OF, &o->last, mode, FLUSHING, &word, word,
                                           watching & COUNTS, SELDOM, h));
    }
}

/* One sub-vector of a vector, whose tree waits for the next one: its products' sums `level` (8), and what they go into. */
typedef struct {
    float *acc, *level;
    const uint32_t *key_a, *key_b;
    uint32_t n;
    passed *seen_here;
} waiting;

/* Random words of the operations of a sub-vector from `first` on. */
INLINE void draw_from(drawer *d, const waiting *of, uint32_t first) {
    EACH d[i].key = vk_load(of->key_a + i * VW);
    EACH d[i].word = vk_add(vk_mul(d[i].key, vk_set(of->n + first)), vk_load(of->key_b + i * VW));
}

/* The products of `now`, if there are any, and their first sums, among these the tree of `before` above them: each fills the other's
 * waiting times. */
INLINE void one_sub_vector(const waiting *before, const waiting *now, const float *wide, const float *x, const operations *o,
                           const int mode, const int form, const int innocuous, const int watching) {
    drawer products[LOCK], sums[LOCK], tree[LOCK];
    vf a[LOCK], b[LOCK], c[LOCK], d[LOCK], w[LOCK];
    if (now) draw_from(products, now, 0), draw_from(sums, now, 16);
    draw_from(tree, before, 24);
#define PRODUCTS_OF(to, j)                                                                                                 \
    load_wide(w, wide, 0, j), round_products(to, w, x[j], &o->place[PRODUCT], &o->limit[PRODUCT], mode, form, watching,     \
                                             products, now->seen_here->place)
#define SUMS_WATCHING(of, a, b, d, within, watching)                                                                       \
    round_sums(a, b, &o->place[TREE], &o->limit[TREE], mode, form, innocuous || (within), watching, d, (of)->seen_here->place + TREE)
#define SUMS_OF(of, a, b, d, within)                                        \
    if (watching & COUNTS && !o->exact_below)                               \
        SUMS_WATCHING(of, a, b, d, within, watching);                       \
    else                                                                    \
        SUMS_WATCHING(of, a, b, d, within, watching & ~COUNTS)
    for (int j = 0; j < 8; j++) {
        const int at = j < 4 ? j : j < 6 ? j - 4 : 0;
        if (now) {
            PRODUCTS_OF(a, 2 * j);
            PRODUCTS_OF(b, 2 * j + 1);
        }
        if (j < 7) {
            fetch(c, before->level + 2 * at * LANES), fetch(d, before->level + (2 * at + 1) * LANES);
            SUMS_OF(before, c, d, tree, o->within[1]);
            put(before->level + at * LANES, c);
        }
        if (now) {
            SUMS_OF(now, a, b, sums, o->within[0]);
            put(now->level + j * LANES, a);
        }
    }
#undef PRODUCTS_OF
#undef SUMS_WATCHING
#undef SUMS_OF
    if (form == FIXED_SUMS && o->last_narrow) {
        fetch(c, before->acc), fetch(d, before->level);
        round_sums(c, d, NULL, &o->limit[ACCUMULATOR], mode, form, 1, LIMITS, NULL, before->seen_here->place + ACCUMULATOR);
        put(before->acc, c);
        return;
    }
    if (watching && !o->last_safe) {
        accumulate(before->acc, before->level, o, mode, form, watching, before->key_a, before->key_b, before->n + 31, &before->seen_here->last);
        return;
    }
    fetch(c, before->acc), fetch(d, before->level);
    round_sums(c, d, &o->place[ACCUMULATOR], NULL, mode, form, innocuous || o->within[2], NOTHING, tree, before->seen_here->place);
    put(before->acc, c);
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
    int flags; /* TAME and LAST_SAFE */
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

/* Whether no code was too far out to wrap in lanes. */
static inline int close_enough(const passed *h, const operations *o, const fmt *formats) {
    for (int p = PRODUCT; p <= TREE; p++) {
        float far[VW];
        vf_store(far, h->place[p].far);
        for (int l = 0; l < VW; l++)
            if (!(far[l] <= o->limit[p].far)) return 0;
    }
    return near_enough(&h->last, formats + ACCUMULATOR);
}

INLINE void general_rows(const general_call *c, const int mode, const int form, const int innocuous, const int watching) {
    const matrix *m = c->m;
    const fmt *formats = c->u[c->order[0] & 3].place;
    float wide[16 * LANES] ALIGNED, level[2][8 * LANES] ALIGNED, sums[TILE * LANES] ALIGNED, no_sum[LANES] ALIGNED;
    uint32_t key_a[TILE * LANES] ALIGNED, key_b[TILE * LANES] ALIGNED;
    operations o = {.last = ranged_of(formats + ACCUMULATOR, mode, c->flags & TAME && formats[ACCUMULATOR].kind == FIXED),
                    .exact_below = !c->g->narrows, .last_safe = c->flags & LAST_SAFE};
    o.exact_last = formats[TREE].kind == FIXED && formats[ACCUMULATOR].kind == FIXED &&
                   formats[ACCUMULATOR].places >= formats[TREE].places;
    for (int p = 0; p < 3; p++)
        o.place[p] = c->g->place[p], o.within[p] = c->g->within[p], o.limit[p] = range_of(formats + p, mode, c->flags & TAME);
    const double room = ldexp(1.0, -formats[ACCUMULATOR].places) * (formats[ACCUMULATOR].overflow == WRAP ? 0x1p22 : 0x1p23);
    o.last_narrow = !o.last_safe && o.limit[ACCUMULATOR].kind != AS_EVER && 2 * fmax(most_of(formats + TREE), most_of(formats + ACCUMULATOR)) <= room;
    /* the caller keeps products near, and sums of floats */
    const double most = fmax(most_of(formats + PRODUCT), most_of(formats + TREE));
    o.limit[TREE].may_be_far = form_of(formats) == FIXED_SUMS && 2 * most > o.limit[TREE].far;
    for (ptrdiff_t r = 0; r < c->count; r += LOCK_ROWS) {
        const int32_t *order = c->order + r;
        for (ptrdiff_t first = 0; first < c->nv; first += TILE) {
            float *a = c->acc + first * c->pitch;
            ptrdiff_t place[TILE];
            const ptrdiff_t used = taken_of(c->take, first, c->nv, place);
            passed seen_here[TILE];
            if (!used) continue;
            for (ptrdiff_t u = 0; u < used; u++) {
                gather_lanes(sums + u * LANES, a + place[u] * c->pitch, order);
                seen_here[u] = (passed){{NO_EVENTS, NO_EVENTS, NO_EVENTS}, NOTHING_HAPPENED};
                if (mode == STOCHASTIC)
                    lock_keys(key_a + u * LANES, key_b + u * LANES, c->step_keys[first + place[u]], order);
            }
            /* begins with sums of +0, in which nothing happens */
            memset(level, 0, sizeof level), memset(no_sum, 0, sizeof no_sum);
            waiting before = {no_sum, level[0], key_a, key_b, 0, seen_here};
            int turn = 0;
            for (ptrdiff_t s = 0; s < m->subs; s++) {
                const float *xs = c->x + (s * c->nv + first) * 16;
                widen(wide, m, order, s);
                for (ptrdiff_t u = 0; u < used; u++) {
                    const waiting now = {sums + u * LANES, level[turn ^= 1], key_a + u * LANES, key_b + u * LANES,
                                         32 * (uint32_t)(c->first_sub + s), seen_here + u};
                    one_sub_vector(&before, &now, wide, xs + place[u] * 16, &o, mode, form, innocuous, watching);
                    before = now;
                }
            }
            one_sub_vector(&before, NULL, NULL, NULL, &o, mode, form, innocuous, watching);
            for (ptrdiff_t u = 0; u < used; u++) {
                const passed *h = seen_here + u;
                if (watching && !close_enough(h, &o, formats)) {
                    again(c, order, first + place[u]);
                    continue;
                }
                scatter_lanes(a + place[u] * c->pitch, sums + u * LANES, order);
                if (!watching) continue;
                for (int p = PRODUCT; p <= ACCUMULATOR; p++)
                    told(vc_sum(h->place[p].above), vc_sum(h->place[p].below), vc_sum(h->place[p].underflow), formats + p, mode, c->n + p);
                told(vn_sum(h->last.above), vn_sum(h->last.below), vn_sum(h->last.underflow), formats + ACCUMULATOR, mode, c->n + ACCUMULATOR);
            }
        }
    }
}

typedef void rows_of(const general_call *);
/* dot_stochastic.h */
static rows_of *drawn_narrow(const fmt *f, const general *g);
static rows_of *drawn_wide(const fmt *f, const general *g);

#define GENERAL_ROWS(name, mode, form, innocuous, watching) \
    static __attribute__((noinline)) void name(const general_call *c) { general_rows(c, mode, form, innocuous, watching); }
#define GENERAL_MODE(name, mode)                                                                                                 \
    GENERAL_ROWS(name##_free, mode, GRADUAL, 0, NOTHING) GENERAL_ROWS(name##_ranged, mode, GRADUAL, 0, RANGE)                    \
    GENERAL_ROWS(name##_counted, mode, GRADUAL, 0, RANGE | COUNTS) GENERAL_ROWS(name##_limited, mode, GRADUAL, 0, RANGE | LIMITS) \
    GENERAL_ROWS(name##_watched, mode, GRADUAL, 0, RANGE | COUNTS | LIMITS)                                                      \
    GENERAL_ROWS(name##_fixed, mode, FIXED_SUMS, 0, RANGE) GENERAL_ROWS(name##_fixed_limited, mode, FIXED_SUMS, 0, RANGE | LIMITS) \
    GENERAL_ROWS(name##_fixed_watched, mode, FIXED_SUMS, 0, RANGE | COUNTS | LIMITS)
GENERAL_MODE(rows_nearest, NEAREST_EVEN)
GENERAL_MODE(rows_away, NEAREST_AWAY)
GENERAL_MODE(rows_zero, TOWARD_ZERO)
GENERAL_MODE(rows_up, UPWARD)
GENERAL_MODE(rows_down, DOWNWARD)
GENERAL_MODE(rows_stochastic, STOCHASTIC)
GENERAL_ROWS(rows_innocuous_free, NEAREST_EVEN, GRADUAL, 1, NOTHING)
GENERAL_ROWS(rows_innocuous_ranged, NEAREST_EVEN, GRADUAL, 1, RANGE)
GENERAL_ROWS(rows_innocuous_counted, NEAREST_EVEN, GRADUAL, 1, RANGE | COUNTS)

/* `dot_wide` begins again from `acc`, which is why the lanes' sums go there last.
 *   u IN (4) units of the gates; step_keys IN (nv), for stochastic rounding, as is first_sub, the number of the first
 *   sub-vector; n INOUT (3) counts of products, tree, accumulator
 */
void LEVEL(dot_general)(const matrix *m, const general *g, const unit *u, const int32_t *order, ptrdiff_t count,
                        const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take, ptrdiff_t nv,
                        const uint32_t *step_keys, ptrdiff_t first_sub, int watching, seen *n) {
    const int looking = watching & (RANGE | COUNTS | LIMITS), flags = (watching & (COUNTS | LIMITS)) / COUNTS;
    const general_call c = {m, g, u, order, count, pitch, nv, first_sub, x, acc, take, step_keys, n, watching & ~looking};
    /* by COUNTS and LIMITS; fixed point is always watched somewhat */
#define FORMS(name)                                                                      \
    {{name##_ranged, name##_counted, name##_limited, name##_watched},                    \
     {name##_fixed, name##_fixed_watched, name##_fixed_limited, name##_fixed_watched}}
    static rows_of *const run[][2][4] = {FORMS(rows_nearest), FORMS(rows_away), FORMS(rows_zero),
                                         FORMS(rows_up), FORMS(rows_down), FORMS(rows_stochastic)};
#undef FORMS
    static rows_of *const free_run[] = {rows_nearest_free, rows_away_free, rows_zero_free, rows_up_free, rows_down_free, rows_stochastic_free};
    static rows_of *const innocuous[] = {rows_innocuous_ranged, rows_innocuous_counted};
    const fmt *f = u[order[0] & 3].place;
    const int fixed = form_of(f) == FIXED_SUMS;
    rows_of *const drawn = flags ? NULL : drawn_narrow(f, g);
    const unsigned before = turned(g->mode);
    if (drawn)
        drawn(&c);
    else if (g->mode == NEAREST_EVEN && g->innocuous && !fixed && !(watching & LIMITS))
        (looking ? innocuous[flags] : rows_innocuous_free)(&c);
    else if (looking || fixed)
        run[g->mode][fixed][flags](&c);
    else
        free_run[g->mode](&c);
    _mm_setcsr(before);
}

INLINE int join_lanes(const general *g, float *acc, const float *stored, ptrdiff_t n, seen *count, const int mode) {
    events happened_here = NO_EVENTS;
    watch w = {vf_set(0.0f), vc_zero()};
    drawer none[LOCK] = {0};
    for (ptrdiff_t k = 0; k < n; k += LANES) {
        vf a[LOCK], b[LOCK];
        fetch(a, acc + k), fetch(b, stored + k);
        round_sums(a, b, &g->place[ACCUMULATOR], NULL, mode, GRADUAL, 0, COUNTS, none, &happened_here);
        EACH w.top = vf_topmost(w.top, vf_abs(a[i]));
        put(acc + k, a);
    }
    if (beyond(&w, &g->place[ACCUMULATOR], mode)) return 0;
    count->underflow += vc_sum(happened_here.underflow);
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
