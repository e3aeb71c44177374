/* How one operation of float64 lanes is rounded, and what becomes of results beyond a format's range: of `dot_wide.h`, and of the
 * accumulator in `dot_general.h`, which may leave its range there. */
#if !defined(LEVEL_SCALAR)

/* Forms: any places without subnormals, any others, fixed-point places whose sums are exact. */
enum { FLUSHING, GRADUAL, FIXED_SUMS };

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

/* v to the place's units, but for what is to be flushed; constants: whether all places are fixed-point, whether infinities go through. */
INLINE vd wide_units_of(vd v, const wide_place *f, const int mode, const int fixed, const int infinite, ve *word, ve key) {
    vd scale = fixed ? f->least : vd_max(vd_and(v, f->mask), f->least);
    if (infinite && !fixed) scale = vd_min(scale, vd_set(0x1p300));
    if (mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC) scale = vd_or(scale, vd_and(v, vd_set(-0.0)));
    if (mode == NEAREST_AWAY) v = vd_fma(scale, f->part, v);
    if (mode == STOCHASTIC) {
        v = vd_fma(scale, vd_mul(f->part, vd_of(ve_down(*word))), v);
        *word = ve_add(*word, key);
    }
    return vd_fnma(scale, f->magic, vd_fma(scale, f->magic, v)); /* scale * magic is exact */
}
INLINE vd wide_units(vd v, const wide_place *f, const int mode, const int fixed, ve *word, ve key) {
    return wide_units_of(v, f, mode, fixed, 0, word, key);
}

/* What must be done to keep a place's results in its range: whatever they are; nothing; where all are finite, cut or wrap codes. */
enum { AS_EVER, INSIDE, CLAMPED, WRAPPED };

/* Which of these; tame: results are finite, and floats that don't saturate in their range. Of at most `most` codes that wrap. */
static inline int kind_of(const fmt *f, int tame, double most) {
    if (!tame) return AS_EVER;
    if (f->kind == FLOAT) return f->overflow == SATURATE ? CLAMPED : INSIDE;
    return f->overflow != WRAP ? CLAMPED : f->codes <= most ? WRAPPED : AS_EVER;
}

/* A place with its range. `above` and `below` are what results beyond max and min become, unless they are beyond `edge`; span: of all
 * codes, 0: does not wrap; takes: not-a-number to 0, infinities to not-a-number. WRAPPED: of results +
 * origin the bits `kept` are a code from the least one on, all others those of `base`. */
typedef struct {
    wide_place f;
    vd max, min, above, below, edge, span, near; /* of either sign, what is no farther is in range */
    vd origin, kept, base;
    int wraps, takes_nan, takes_infinity, kind;
} ranged_place;

/* What happened at a place in VD neurons: results above and below the range, underflows, the largest result that was to wrap. */
typedef struct {
    vn above, below, underflow;
    vd far;
} happened;
#define NOTHING_HAPPENED ((happened){vn_zero(), vn_zero(), vn_zero(), vd_set(0.0)})

#define FAR 0x1p50 /* codes that `(v + M) - M` still rounds to integers */

/* The largest magnitude. */
static inline double most_of(const fmt *f) { return fmax(f->max, -f->min); }

/* What results beyond the largest value become, of either sign. */
static inline double beyond_max(const fmt *f, int mode, int negative) {
    const int stops = mode == TOWARD_ZERO || mode == (negative ? UPWARD : DOWNWARD);
    if (f->kind == FIXED || f->overflow == SATURATE || stops) return negative ? f->min : f->max;
    return f->overflow == TO_NAN ? NAN : negative ? -INFINITY : INFINITY;
}

static inline ranged_place ranged_of(const fmt *f, int mode, int tame) {
    const int real = f->kind == FLOAT, places = real ? f->places : 0, wraps = f->overflow == WRAP;
    const float one = ldexpf(1.0f, -places), normal = ldexpf(1.0f, real ? f->min_exp : -f->places);
    const float flush = real && !f->subnormal ? normal : 0.0f;
    const double base = 0x1.8p52 * normal;
    const uint64_t code = wraps ? (uint64_t)f->codes - 1 : 0;
    double kept;
    memcpy(&kept, &code, sizeof kept);
    const lanes constants = {real ? 0x7f800000U : 0, flush > 0.0f ? normal / 2 : normal, one / 2, 0x1.8p52f * one, 0.0f, normal, flush, one};
    return (ranged_place){
        wide_of(&constants, mode), vd_set(f->max), vd_set(f->min), vd_set(beyond_max(f, mode, 0)), vd_set(beyond_max(f, mode, 1)),
        vd_set(!real || f->overflow == SATURATE ? INFINITY : DBL_MAX), vd_set(wraps ? f->codes * normal : 0.0),
        vd_set(fmin(f->max, -f->min)), vd_set(base - f->min), vd_set(kept), vd_set(base),
        wraps, !real, f->overflow == TO_NAN, kind_of(f, tame, 0x1p32)};
}

/* r, beyond the range, as the format has it. */
INLINE vd in_range(vd r, const ranged_place *f, const int form, happened *h) {
    const vd most = vd_set(DBL_MAX), none = vd_set(0.0);
    if (f->kind == INSIDE) return r;
    if (f->kind == CLAMPED) {
        const vd kept = vd_min(f->max, vd_max(f->min, r));
        h->above = vn_add(h->above, vd_ne(kept, r));
        return kept;
    }
    if (f->kind == WRAPPED) {
        const vd code = vd_add(r, f->origin), kept = vd_or(vd_and(code, f->kept), f->base);
        h->above = vn_add(h->above, vd_ne(kept, code));
        h->far = vd_max(vd_abs(r), h->far);
        return vd_sub(kept, f->origin);
    }
    vdm high = vd_lt(f->max, r), low = vd_lt(r, f->min);
    if (form != FIXED_SUMS) {
        high = vdm_and(high, vd_le(r, f->edge));
        low = vdm_and(low, vd_le(vd_neg(f->edge), r));
    }
    h->above = vn_add(h->above, high), h->below = vn_add(h->below, low);
    if (f->wraps) {
        const vd magic = vd_mul(f->span, vd_set(1.5 * 0x1p52)), round = vd_sub(r, vd_sub(vd_add(r, magic), magic));
        const vd down = vd_pick(vd_lt(f->max, round), vd_sub(round, f->span), round);
        h->far = vd_max(vd_abs(r), h->far); /* not-a-number is not far */
        r = vd_pick(vd_lt(down, f->min), vd_add(down, f->span), down);
    } else
        r = vd_pick(high, f->above, vd_pick(low, f->below, r));
    if (form != FIXED_SUMS && f->takes_nan) r = vd_pick(vd_le(r, vd_set(INFINITY)), r, none);
    if (form != FIXED_SUMS && f->takes_infinity) r = vd_pick(vd_le(vd_abs(r), most), r, vd_set(NAN));
    return r;
}

/* The same where that is seldom. */
INLINE vd seldom_out(vd r, const ranged_place *f, const int form, happened *h) {
    return vdm_any(vd_beyond(r, f->near)) ? in_range(r, f, form, h) : r;
}

/* v to the place's units; `sum` a constant: whether v is, of a and b, and by what it was rounded. Other constants: `counted` and
 * `limited`, whether underflows and results out of range are looked for, these as what is SELDOM or not. */
enum { PRODUCT_OF, SUM_OF, ODD_SUM_OF };
enum { SELDOM = 1 };
INLINE vd wide_rounded(vd v, vd a, vd b, const int sum, const ranged_place *to, const int mode, const int form, ve *word, ve key,
                       const int counted, const int limited, happened *h) {
    const wide_place *f = &to->f;
    vd r = v;
    if (form != FIXED_SUMS || sum == PRODUCT_OF) {
        r = wide_units_of(v, f, mode, form == FIXED_SUMS, limited, word, key);
        if (form == FLUSHING) r = vd_flushed(r, f->flush);
        if (counted) {
            vdm inexact = vd_ne(v, r), small = vd_lt(vd_abs(v), f->normal);
            if (sum == SUM_OF && form != FIXED_SUMS) {
                const vdm cut = vdm_or(vd_ne(vd_sub(v, a), b), vd_ne(vd_sub(v, b), a));
                inexact = vdm_or(inexact, cut);
                if (mode == UPWARD) small = vdm_or(small, vdm_and(cut, vd_eq(v, f->normal)));
                if (mode == DOWNWARD) small = vdm_or(small, vdm_and(cut, vd_eq(v, vd_neg(f->normal))));
            }
            h->underflow = vn_add(h->underflow, vdm_and(vdm_and(inexact, small), vd_eq(vd_and(r, f->whole), vd_set(0.0))));
        }
    }
    return limited == SELDOM ? seldom_out(r, to, form, h) : limited ? in_range(r, to, form, h) : r;
}

/* What happened at a place as `n` has it. */
static inline void told(int64_t above, int64_t below, int64_t underflow, const fmt *f, int mode, seen *n) {
    const int64_t part[2] = {above, below};
    n->underflow += underflow;
    for (int negative = 0; negative < 2; negative++) {
        if (fabs(beyond_max(f, mode, negative)) < INFINITY)
            n->saturation += part[negative];
        else
            n->overflow += part[negative];
        if (f->overflow == RAISE) n->raised += part[negative];
    }
}

/* Whether no code was too far out to wrap in lanes. */
static inline int near_enough(const happened *h, const fmt *f) {
    double far[VD];
    vd_put(far, h->far);
    for (int l = 0; l < VD; l++)
        if (!(far[l] <= FAR * ldexp(1.0, -f->places))) return 0;
    return 1;
}

/* Which form the formats of products, tree and accumulator take. */
static inline int form_of(const fmt *f) {
    int fixed = 1, flushes = 0;
    for (int p = PRODUCT; p <= ACCUMULATOR; p++) {
        fixed &= f[p].kind == FIXED && (p == PRODUCT || f[p].places >= f[p - 1].places);
        flushes |= f[p].kind == FLOAT && !f[p].subnormal;
    }
    return fixed ? FIXED_SUMS : flushes ? FLUSHING : GRADUAL;
}

#endif
