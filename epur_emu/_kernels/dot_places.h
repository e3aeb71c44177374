/* How one operation of float64 lanes is rounded, and what becomes of results beyond a format's range: of `dot_wide.h`, and of the
 * accumulator in `dot_general.h`, which may leave its range there. */
#if !defined(LEVEL_SCALAR)

/* Forms: any places without subnormals, any others, fixed-point places whose sums are exact. */
enum { FLUSHING, GRADUAL, FIXED_SUMS };

/* Constants of a place; `whole` all bits for fixed point, of which only what becomes 0 underflows, else none. `above` and `below` are what
 * results beyond max and min become, unless they are beyond `edge`; span: of all codes, 0: does not wrap. */
typedef struct {
    vd mask, least, part, magic, flush, normal, whole, max, min, above, below, edge, span;
    int wraps, takes_nan, takes_infinity; /* takes: to 0, to not-a-number */
} wide_place;

/* What happened at a place in VD neurons: results above and below the range, underflows, the largest result that was to wrap. */
typedef struct {
    int64_t above, below, underflow;
    vd far;
} happened;

#define FAR 0x1p50 /* codes that `(v + M) - M` still rounds to integers */

/* What results beyond the largest value become, of either sign. */
static inline double beyond_max(const fmt *f, int mode, int negative) {
    const int stops = mode == TOWARD_ZERO || mode == (negative ? UPWARD : DOWNWARD);
    if (f->kind == FIXED || f->overflow == SATURATE || stops) return negative ? f->min : f->max;
    return f->overflow == TO_NAN ? NAN : negative ? -INFINITY : INFINITY;
}

static inline wide_place wide_of(const fmt *f, int mode) {
    const int real = f->kind == FLOAT, places = real ? f->places : 0;
    const double one = ldexp(1.0, -places), half = one / 2, normal = ldexp(1.0, real ? f->min_exp : -f->places);
    const double flush = real && !f->subnormal ? normal : 0.0, wraps = f->overflow == WRAP;
    const uint64_t bits = real ? 0 : ~(uint64_t)0;
    double whole;
    memcpy(&whole, &bits, sizeof whole);
    return (wide_place){
        vd_set(real ? INFINITY : 0.0), vd_set(flush > 0.0 ? normal / 2 : normal), vd_set(mode == STOCHASTIC ? one * 0x1p-12 : half),
        vd_set(1.5 * 0x1p52 * one), vd_set(flush), vd_set(normal), vd_set(whole), vd_set(f->max), vd_set(f->min),
        vd_set(beyond_max(f, mode, 0)), vd_set(beyond_max(f, mode, 1)),
        vd_set(!real || f->overflow == SATURATE ? INFINITY : DBL_MAX), vd_set(wraps ? f->codes * normal : 0.0),
        wraps, !real, f->overflow == TO_NAN};
}

/* r, beyond the range, as the format has it. */
INLINE vd in_range(vd r, const wide_place *f, const int form, happened *h) {
    const vd most = vd_set(DBL_MAX), none = vd_set(0.0);
    vdm high = vd_lt(f->max, r), low = vd_lt(r, f->min);
    if (form != FIXED_SUMS) {
        high = vdm_and(high, vd_le(r, f->edge));
        low = vdm_and(low, vd_le(vd_neg(f->edge), r));
    }
    h->above += vdm_count(high), h->below += vdm_count(low);
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

/* v to the place's units; `sum` a constant: whether v is, of a and b, and by what it was rounded. Other constants: `counted` and
 * `limited`, whether underflows and results out of range are looked for. */
enum { PRODUCT_OF, SUM_OF, ODD_SUM_OF };
INLINE vd wide_rounded(vd v, vd a, vd b, const int sum, const wide_place *f, const int mode, const int form, ve *word, ve key,
                       const int counted, const int limited, happened *h) {
    const vd exact = v;
    vd r = v;
    if (form != FIXED_SUMS || sum == PRODUCT_OF) {
        vd scale = form == FIXED_SUMS ? f->least : vd_max(vd_and(v, f->mask), f->least);
        if (form != FIXED_SUMS && limited) scale = vd_min(scale, vd_set(0x1p300)); /* infinities go through */
        if (mode == TOWARD_ZERO || mode == NEAREST_AWAY || mode == STOCHASTIC) scale = vd_or(scale, vd_and(v, vd_set(-0.0)));
        if (mode == NEAREST_AWAY) v = vd_fma(scale, f->part, v);
        if (mode == STOCHASTIC) {
            v = vd_fma(scale, vd_mul(f->part, vd_of(ve_down(*word))), v);
            *word = ve_add(*word, key);
        }
        r = vd_fnma(scale, f->magic, vd_fma(scale, f->magic, v)); /* scale * magic is exact */
        if (form == FLUSHING) r = vd_flushed(r, f->flush);
        if (counted) {
            vdm inexact = vd_ne(exact, r), small = vd_lt(vd_abs(exact), f->normal);
            if (sum == SUM_OF && form != FIXED_SUMS) {
                const vdm cut = vdm_or(vd_ne(vd_sub(exact, a), b), vd_ne(vd_sub(exact, b), a));
                inexact = vdm_or(inexact, cut);
                if (mode == UPWARD) small = vdm_or(small, vdm_and(cut, vd_eq(exact, f->normal)));
                if (mode == DOWNWARD) small = vdm_or(small, vdm_and(cut, vd_eq(exact, vd_neg(f->normal))));
            }
            h->underflow += vdm_count(vdm_and(vdm_and(inexact, small), vd_eq(vd_and(r, f->whole), vd_set(0.0))));
        }
    }
    return limited ? in_range(r, f, form, h) : r;
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
