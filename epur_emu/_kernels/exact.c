/* `exact.h` says what each function does; `docs/arithmetic.md` says why in this order. */
#include "exact.h"

double out_of_range(double v, const fmt *f, int mode, seen *n) {
    if (isnan(v)) return f->kind == FLOAT ? v : 0;
    const int finite = fabs(v) < INFINITY;
    if (f->kind == FLOAT && f->overflow != SATURATE && !finite) return f->overflow == TO_NAN ? NAN : v;
    const int stops = mode == TOWARD_ZERO || mode == (v < 0 ? UPWARD : DOWNWARD);
    if (f->kind == FIXED || f->overflow == SATURATE || stops) {
        n->saturation++;
        n->raised += f->overflow == RAISE;
        return v < 0 ? f->min : f->max;
    }
    n->overflow++;
    return f->overflow == TO_NAN ? NAN : copysign(INFINITY, v);
}

/* Rounding of v + rest to fixed point that wraps. */
double wrapped(double v, double rest, const fmt *f, int mode, uint32_t r12, seen *n) {
    if (isnan(v)) return out_of_range(v, f, mode, n);
    if (!(fabs(v) < INFINITY)) {
        n->saturation++;
        return 0;
    }
    const double scale = power(f->places), unit = power(-f->places), q = fabs(v) * scale;
    const double r = (v < 0 ? -rest : rest) * scale;
    const int far = q >= 0x1p36;
    /* A carrier of q + r must leave room for 12 bits below the point; `codes` is even, so that parities stay. */
    const double near = far ? sum_of(fmod(q, f->codes) + f->codes, fmod(r, f->codes)) : odd(q, r);
    const double t = whole(near, v < 0, mode, r12);
    double code = v < 0 ? -t : t;
    if (far || code > f->max * scale || code < f->min * scale) {
        n->saturation++;
        code = fmod(code, f->codes);
        if (code > f->max * scale) code -= f->codes;
        if (code < f->min * scale) code += f->codes;
    } else {
        n->underflow += code == 0 && v != 0;
    }
    return code * unit + 0.0;
}

/* Sums of two doubles, about 2^-100 exact: for the few results that lie next to a number of 37 bits. */
typedef struct {
    double hi, lo;
} dd;

static dd dd_of(double hi, double lo) {
    const double s = hi + lo;
    return (dd){s, lo - (s - hi)};
}
static dd dd_add(dd a, dd b) {
    const double s = a.hi + b.hi, t = a.lo + b.lo;
    const dd upper = dd_of(s, lost(a.hi, b.hi, s) + t);
    return dd_of(upper.hi, upper.lo + lost(a.lo, b.lo, t));
}
static dd dd_mul(dd a, dd b) {
    const double p = a.hi * b.hi;
    return dd_of(p, fma(a.hi, b.hi, -p) + (a.hi * b.lo + a.lo * b.hi));
}
static dd dd_div(dd a, dd b) {
    const double q = a.hi / b.hi;
    const dd rest = dd_add(a, dd_mul((dd){-q, 0}, b));
    const double q2 = rest.hi / b.hi;
    const dd last = dd_add(rest, dd_mul((dd){-q2, 0}, b));
    return dd_add(dd_of(q, q2), (dd){last.hi / b.hi, 0});
}

static const dd ONE = {1, 0};

/* e^x - 1, |x| <= 250, by the power series of what remains of x beside a multiple of ln 2. */
static dd dd_expm1(double x) {
    static const dd LN2 = {0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};
    const double k = fabs(x) < 0.35 ? 0 : floor(x * 0x1.71547652b82fep+0 + 0.5);
    const dd r = dd_add((dd){x, 0}, dd_mul((dd){-k, 0}, LN2));
    dd s = ONE;
    for (int n = 25; n > 1; n--) s = dd_add(ONE, dd_div(dd_mul(r, s), (dd){n, 0}));
    s = dd_mul(r, s);
    if (k == 0) return s;
    s = dd_add(ONE, s);
    return dd_add((dd){s.hi * power((int)k), s.lo * power((int)k)}, (dd){-1, 0});
}

static double carrier(dd v) { return odd(v.hi, v.lo); }

/* Whether a double within 2^-50 of the exact result (relative: 8 units of the last place) tells on which side of every
 * number of 37 bits that result lies. libm's functions are assumed to be that good; they are some 4 times better. */
static int tells(double v) { return ((bits_of(v) - 9) & 0x7fff) < 0x7fff - 17; }

#define BELOW_ONE 0x1.fffffffffffffp-1

double exp_of(double x) {
    if (x == 0) return 1;
    if (x > 120) return 0x1p200;
    if (x < -120) return 0x1p-200;
    const double e = exp(x);
    return isnan(e) || tells(e) ? from_bits(bits_of(e) | 1) : carrier(dd_add(ONE, dd_expm1(x)));
}

double sigmoid_of(double x) {
    if (x > 30) return BELOW_ONE;
    if (x < -120) return 0x1p-200;
    if (fabs(x) < 0x1p-17) { /* 1/2 + x/4 - x^3/48: its last term is beyond a double's reach, and maybe dd's */
        const double s = 0.5 + x / 4, rest = lost(0.5, x / 4, s);
        return odd(s, rest != 0 ? rest : -x);
    }
    const double s = 1 / (1 + exp(-x));
    if (isnan(s) || tells(s)) return from_bits(bits_of(s) | 1);
    const dd e = dd_expm1(-x);
    return carrier(dd_div(ONE, dd_add((dd){2, 0}, e)));
}

double tanh_of(double x) {
    if (fabs(x) > 20) return copysign(BELOW_ONE, x);
    if (fabs(x) < 0x1p-22) return odd(x, -x); /* x - x^3/3 */
    const double t = tanh(x);
    if (isnan(t) || tells(t)) return from_bits(bits_of(t) | 1);
    const dd e = dd_expm1(2 * x);
    return carrier(dd_div(e, dd_add((dd){2, 0}, e)));
}

/* Random number of operation `n`, where one is wanted. */
static inline uint32_t chance(const unit *u, uint32_t key, uint32_t n) {
    return u->mode == STOCHASTIC ? random12(key, n) : 0;
}

double exact_dot(double acc, const float *w, ptrdiff_t w_stride, const float *x, ptrdiff_t x_pitch, ptrdiff_t subs,
                 int width, const unit *u, uint32_t key, uint32_t first, seen *n) {
    double p[EXACT_WIDTH];
    const int mode = u->mode;
    for (ptrdiff_t s = 0; s < subs; s++, x += x_pitch, w += width * w_stride) {
        uint32_t at = 32 * (first + (uint32_t)s);
        for (int j = 0; j < width; j++)
            p[j] = rnd((double)w[j * w_stride] * x[j], &u->place[PRODUCT], mode, chance(u, key, at + (uint32_t)j),
                       &n[PRODUCT]);
        at += 16;
        for (int pairs = width / 2; pairs; pairs /= 2) {
            for (int m = 0; m < pairs; m++)
                p[m] = rnd_sum(p[2 * m], p[2 * m + 1], &u->place[TREE], mode, chance(u, key, at + (uint32_t)m),
                               &n[TREE]);
            at += (uint32_t)pairs;
        }
        acc = rnd_sum(acc, p[0], &u->place[ACCUMULATOR], mode, chance(u, key, at), &n[ACCUMULATOR]);
    }
    return acc;
}

double exact_join(double recurrent, double stored, const unit *u, uint32_t key, seen *n) {
    return rnd_sum(recurrent, stored, &u->place[ACCUMULATOR], u->mode, chance(u, key, OP_JOIN), &n[ACCUMULATOR]);
}

/* One gate's row of operations. */
typedef struct {
    const unit *u;
    uint32_t key, next;
    seen *n;
} row;

static double stored(row *g, double v, int place) {
    const uint32_t r12 = chance(g->u, g->key, g->next++);
    return rnd(v, &g->u->place[place], g->u->mode, r12, &g->n[place]);
}
static double op(row *g, double v) { return stored(g, v, MU); }

/* A value of another unit, or of the cell, on its way into this one; counts nothing. */
static double taken(const row *g, double v) {
    seen none = {0};
    return rnd(v, &g->u->place[MU], NEAREST_EVEN, 0, &none);
}

static double clamped(double r, double limit) { return r > limit ? limit : r < -limit ? -limit : r; }

/* `end`: half the interval's width, 8 or 4. */
static double pwl(row *g, double r, int kind, int end) {
    const int count = g->u->segments;
    r = clamped(r, end);
    /* (r + end) count / (2 end): r count is exact, and whole numbers may be floored beforehand. */
    int k = isnan(r) ? 0 : ((int)floor(r * count) + end * count) / (2 * end);
    k = kind * count + (k < count ? k : count - 1);
    return op(g, sum_of(op(g, g->u->slope[k] * r), g->u->intercept[k]));
}

static double sigmoid(row *g, double r) {
    r = clamped(r, g->u->limit);
    if (g->u->method == EXACT) return op(g, sigmoid_of(r));
    if (g->u->method == PWL) return pwl(g, r, 0, 8);
    const double e = op(g, exp_of(-r));
    return op(g, quotient_of(1, op(g, sum_of(e, 1))));
}

static double hyperbolic(row *g, double r) {
    r = clamped(r, g->u->limit);
    if (g->u->method == EXACT) return op(g, tanh_of(r));
    if (g->u->method == PWL) return pwl(g, r, 1, 4);
    const double a = op(g, exp_of(r)), q = op(g, exp_of(-r));
    const double difference = op(g, sum_of(a, -q));
    return op(g, quotient_of(difference, op(g, sum_of(a, q))));
}

/* r + w c, which comes from the cell. */
static double peeped(row *g, double r, double w, double c) {
    const double p = op(g, w * taken(g, c));
    return op(g, sum_of(r, p));
}

void exact_mu(const unit *u, const double *sum, const double *bias, const double *peep, double *c, double *h,
              const uint32_t *keys, seen (*n)[PLACES]) {
    row gate[4];
    double r[4];
    for (int q = 0; q < 4; q++) {
        row *g = &gate[q];
        *g = (row){&u[q], keys[q], OP_MU, n[q]};
        r[q] = op(g, sum[q]);
        if (peep && q < 2) r[q] = peeped(g, r[q], peep[q], *c);
        r[q] = op(g, sum_of(r[q], bias[q]));
        if (q < 3) r[q] = clamped(r[q], u[q].clip);
        if (q < 2) r[q] = sigmoid(g, r[q]);
    }
    row *cell = &gate[2], *out = &gate[3];
    double v = hyperbolic(cell, r[2]);
    v = op(cell, v * taken(cell, r[0]));
    const double kept = op(cell, taken(cell, r[1]) * *c);
    *c = stored(cell, op(cell, sum_of(v, kept)), CELL);
    const double t = hyperbolic(cell, op(cell, *c));
    if (peep) r[3] = peeped(out, r[3], peep[2], *c);
    v = op(out, sigmoid(out, clamped(r[3], out->u->clip)) * taken(out, t));
    *h = stored(out, v, OUTPUT);
}

double exact_activation(const unit *u, int tangent, double r, seen *n) {
    row g = {u, 0, OP_MU, n};
    return tangent ? hyperbolic(&g, r) : sigmoid(&g, r);
}
