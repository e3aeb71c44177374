/* The order of a pass's work: operands, dot products by the fastest exact path, the multifunctional unit. */
#include "pass.h"

#include "cpu.h"
#include "exact.h"

#if !defined(EPUR_BF16)
#define dot_pairs(...) ((void)0) /* not called */
#endif
#if !defined(EPUR_FP16)
#define dot_halves(...) ((void)0)
#endif
#if defined(EPUR_X86)
/* VNNI is of use to integers only. */
#define AT_INT_LEVEL(level, name) ((level) >= 3 ? name##_vnni : AT_LEVEL(level, name))
#define AT_LEVEL(level, name) ((level) >= 2 ? name##_avx512 : (level) == 1 ? name##_avx2 : name##_scalar)
#else
#define AT_LEVEL(level, name) name##_scalar
#define AT_INT_LEVEL(level, name) name##_scalar
#endif

/* Finite codes only: weights that are not finite are stored as float32. */
static float decoded(int store, uint16_t code) {
    if (store == TOP) {
        const uint32_t b = (uint32_t)code << 16;
        float v;
        memcpy(&v, &b, 4);
        return v;
    }
    const int exponent = code >> 10 & 31, mantissa = code & 1023;
    const double v = exponent ? (1024 + mantissa) * power(exponent - 25) : mantissa * power(-24);
    return (float)(code & 0x8000 ? -v : v);
}

static float weight(const matrix *m, ptrdiff_t at) {
    if (m->store == PAIRED) {
        const ptrdiff_t input = at / 16 % 16, neuron = at % 16;
        return decoded(TOP, ((const uint16_t *)m->w)[at / 256 * 256 + neuron / 2 * 32 + input * 2 + neuron % 2]);
    }
    return m->store == WIDE ? ((const float *)m->w)[at] : decoded(m->store, ((const uint16_t *)m->w)[at]);
}

void exact_row(const matrix *m, const unit *u, ptrdiff_t row, const float *x, ptrdiff_t x_pitch, float *acc,
               uint32_t step_key, ptrdiff_t first_sub, seen *n) {
    float w[256];
    for (ptrdiff_t s = 0; s < m->subs; s++) {
        for (int k = 0; k < 256; k++) w[k] = weight(m, (row * m->subs + s) * 256 + k);
        for (int l = 0; l < 16; l++) {
            const uint32_t key = neuron_key(step_key, (uint32_t)(row / 4 * 16 + l), (uint32_t)(row & 3));
            acc[l] = (float)exact_dot(acc[l], w + l, 16, x + s * x_pitch, x_pitch, 1, 16, u, key, (uint32_t)(first_sub + s), n);
        }
    }
}

static void add_seen(seen *to, const seen *from) {
    to->overflow += from->overflow;
    to->underflow += from->underflow;
    to->saturation += from->saturation;
    to->raised += from->raised;
}

static void add_all(seen to[COUNTED], const seen from[COUNTED]) {
    for (int place = 0; place < COUNTED; place++) add_seen(&to[place], &from[place]);
}

/* --- operands --- */

static inline void blocked(const operand *o, const float *v, float *to, ptrdiff_t count, seen *n) {
    for (ptrdiff_t b = 0; b < count; b += o->block) {
        const ptrdiff_t end = b + o->block < count ? b + o->block : count;
        double largest = 0;
        int odd_ones = 0;
        for (ptrdiff_t k = b; k < end; k++) {
            largest = fabs(v[k]) > largest ? fabs(v[k]) : largest;
            odd_ones |= !(fabsf(v[k]) < INFINITY);
        }
        int e = 0;
        if (largest > 0 && !odd_ones) e = (int)(bits_of(largest) >> 52) - 1023 - o->max_exp;
        e = e < -127 ? -127 : e > 127 ? 127 : e;
        for (ptrdiff_t k = b; k < end; k++)
            to[k] = odd_ones ? NAN : (float)(rnd(v[k] * power(-e), &o->format, NEAREST_EVEN, 0, n) * power(e));
    }
}

static int is_half(const fmt *f) {
    return f->kind == FLOAT && f->places == 10 && f->min_exp == -14 && f->overflow == TO_INFINITY && f->subnormal && f->max == 65504;
}

/* `count` values v to operands; codes stay codes where they are integers for the multiplier. */
static void operands(const operand *o, const float *v, float *to, ptrdiff_t count, int level, int16_t *codes, seen *n) {
    switch (o->kind) {
    case AS_IT_IS: memcpy(to, v, (size_t)count * sizeof *to); return;
    case ROUNDED:
        if (is_half(&o->format)) {
            const ptrdiff_t whole = count & -16;
            if (AT_LEVEL(level, to_half)(v, to, whole, &n->underflow)) v += whole, to += whole, count -= whole;
        }
        for (ptrdiff_t k = 0; k < count; k++) to[k] = (float)rnd(v[k], &o->format, NEAREST_EVEN, 0, n);
        return;
    case BLOCKED: blocked(o, v, to, count, n); return;
    default: {
        int64_t clipped[2] = {0, 0};
        AT_INT_LEVEL(level, input_codes)(v, codes, count, o->largest, o->alpha, clipped);
        n->saturation += clipped[0];
        n->underflow += clipped[1];
        if (o->values)
            for (ptrdiff_t k = 0; k < count; k++) to[k] = o->values[codes[k] + o->largest];
    }
    }
}

static int same_operand(const operand *a, const operand *b) {
    return a->kind == b->kind && a->largest == b->largest && a->alpha == b->alpha && a->values == b->values &&
           a->block == b->block && a->max_exp == b->max_exp && memcmp(&a->format, &b->format, sizeof a->format) == 0;
}

/* The general path where no value can leave its range, where only the accumulator can, where fixed-point products and trees
 * can, where these and the accumulator can, and where all can; the wide one where all can, or fixed point only. */
enum { SAFELY = BY_INTEGERS, RANGED = BY_HALVES + 1, TAMED, TAMED_SUMS, LIMITED, BEYOND, TAMED_BEYOND, WAYS };

/* --- room ---
 * For each call of at most nv vectors: operands (subs, nv, 16), codes (nv, inputs), masks, keys, one row. */
typedef struct {
    float *x, *line;
    int16_t *codes;
    uint8_t *take[WAYS];
    uint32_t *keys;
    ptrdiff_t *twin;
    float *copy, *anew;
    int32_t *own;
    char *integers; /* for each thread */
    columns *columns; /* where underflows are counted: (nv), and their lists (nv, inputs) */
    column *column;
    uintptr_t end;
} room_t;

static ptrdiff_t widest(const pass *p) { return 16 * (p->subs_x > p->blocks ? p->subs_x : p->blocks); }

static room_t rooms(const pass *p, ptrdiff_t nv, int parts, uintptr_t at) {
    const uintptr_t w = (uintptr_t)widest(p), sums = (uintptr_t)p->blocks * 64, count = (uintptr_t)nv;
    room_t r;
    at = (at + 63) & ~(uintptr_t)63;
    r.x = (float *)at, at += count * w * sizeof *r.x;
    r.columns = (columns *)at, at += p->counted ? count * sizeof *r.columns : 0;
    r.column = (column *)at, at += p->counted ? count * w * sizeof *r.column : 0;
    r.line = (float *)at, at += w * sizeof *r.line;
    r.copy = (float *)at, at += sums * sizeof *r.copy;
    r.anew = (float *)at, at += (sums + 16) * sizeof *r.anew;
    r.own = (int32_t *)at, at += (uintptr_t)p->groups * sums * sizeof *r.own;
    r.twin = (ptrdiff_t *)at, at += count * sizeof *r.twin;
    r.keys = (uint32_t *)at, at += count * sizeof *r.keys;
    r.codes = (int16_t *)at, at += count * w * sizeof *r.codes;
    for (int way = 0; way < WAYS; way++) r.take[way] = (uint8_t *)at, at += count;
    r.integers = (char *)at, at += p->integers ? (uintptr_t)parts * (uintptr_t)int_room((ptrdiff_t)w, nv) : 0;
    r.end = at;
    return r;
}

ptrdiff_t pass_room(const pass *p, ptrdiff_t nv, int parts) { return (ptrdiff_t)rooms(p, nv, parts, 0).end + 63; }

static int parts_of(const crew *c) { return c ? c->parts : 1; }

/* --- dot products --- */

#define ROWS_BYTES (1 << 17) /* of weights that stay in the cache */

typedef struct {
    ptrdiff_t nv;
    const room_t *room;
    seen *n;
    int64_t *raised;
    crew *crew;
    int back; /* every other time step reads weights the other way round, so that the last ones are still in a cache */
} work;

/* One way of dot products with a matrix: what the threads of a crew share. */
typedef struct {
    const pass *p;
    const group *q;
    const work *k;
    ptrdiff_t begin, end; /* in the group's order */
    int which, way, underflows; /* the last: whether the chain's are counted */
    float *sums;
    int32_t *isums;
    struct {
        seen n[COUNTED];
        int64_t left[2];
    } own[MOST_PARTS];
} products;

/* Whether underflows are counted by the codes of weights. */
static int by_codes(const products *c) {
    return c->underflows && c->q->w[c->which].store == HALF && c->p->level >= 2;
}

/* Where a thread's rows or blocks of `count` begin. */
static ptrdiff_t share_of(ptrdiff_t count, int part, int parts) { return count * part / parts; }

/* The chain's dot products of some rows; by the processor's own arithmetic where it has the formats. */
static void chained(const products *c, const int32_t *order, ptrdiff_t count, int64_t *underflow) {
    const group *q = c->q;
    const matrix *m = &q->w[c->which];
    const ptrdiff_t pitch = (c->p->blocks * 4 + 1) * 16, nv = c->k->nv;
    const float *x = c->k->room->x;
    const uint8_t *take = c->k->room->take[BY_CHAIN];
    if (q->path == BY_HALVES && m->store == HALF && !underflow)
        dot_halves(m, order, count, x, c->sums, pitch, take, nv);
    else
        AT_LEVEL(c->p->level, dot_chain)(m, &q->chain, order, count, x, c->sums, pitch, take, nv, underflow);
}

/* Those, then their underflows, some rows at a time: their weights come from the cache the second time. */
static void counted_chain(const products *c, ptrdiff_t from, ptrdiff_t to, seen *n) {
    const group *q = c->q;
    const matrix *m = &q->w[c->which];
    const room_t *r = c->k->room;
    const ptrdiff_t nv = c->k->nv, fitting = ROWS_BYTES / (m->subs * 512) & ~(ptrdiff_t)7;
    for (ptrdiff_t at = from, rows; at < to; at += rows) {
        rows = fitting < 8 ? 8 : fitting;
        rows = to - at < rows ? to - at : rows;
        chained(c, q->order + at, rows, NULL);
        for (ptrdiff_t v = 0; v < nv; v++)
            if (r->take[BY_CHAIN][v])
                n[PRODUCT].underflow += AT_LEVEL(c->p->level, underflows)(m, q->order + at, rows, r->columns + v);
    }
}

static void some_rows(void *call, int part, int parts) {
    products *c = call;
    const pass *p = c->p;
    const int counts = p->counted ? COUNTS : NOTHING;
    const int watching[WAYS] = {[BY_GENERAL] = RANGE | TAME | COUNTS, [SAFELY] = LAST_SAFE, [RANGED] = RANGE | TAME,
                                [TAMED] = RANGE | LIMITS | TAME | LAST_SAFE, [TAMED_SUMS] = RANGE | LIMITS | TAME | counts,
                                [LIMITED] = RANGE | LIMITS | counts,
                                [BY_WIDE] = counts, [BEYOND] = LIMITS | counts, [TAMED_BEYOND] = LIMITS | TAME | counts};
    const group *q = c->q;
    const room_t *r = c->k->room;
    const matrix *m = &q->w[c->which];
    const ptrdiff_t all = (c->end - c->begin) / 4, from = c->begin + share_of(all, part, parts) * 4;
    const ptrdiff_t count = c->begin + share_of(all, part + 1, parts) * 4 - from;
    const ptrdiff_t pitch = (p->blocks * 4 + 1) * 16, first_sub = c->which ? p->subs_x : 0, nv = c->k->nv;
    const int32_t *order = q->order + from;
    const uint8_t *take = r->take[c->way];
    seen *n = c->own[part].n;
    memset(n, 0, sizeof c->own[part].n);
    if (!count) return;
    if (c->way == BY_PAIRS)
        dot_pairs(m, &q->chain, order, count, r->x, c->sums, pitch, take, nv, c->k->back);
    else if (by_codes(c))
        counted_chain(c, from, from + count, n);
    else if (c->way == BY_CHAIN)
        chained(c, order, count, c->underflows ? &n[PRODUCT].underflow : NULL);
    else if (c->way == BY_WIDE || c->way == BEYOND || c->way == TAMED_BEYOND)
        AT_LEVEL(p->level, dot_wide)(m, &q->general, p->unit, order, count, r->x, c->sums, pitch, take, nv, r->keys, first_sub,
                                     watching[c->way], n);
    else if (c->way == BY_EXACT)
        dot_general_scalar(m, &q->general, p->unit, order, count, r->x, c->sums, pitch, take, nv, r->keys, first_sub, COUNTS, n);
    else
        AT_LEVEL(p->level, dot_general)(m, &q->general, p->unit, order, count, r->x, c->sums, pitch, take, nv, r->keys, first_sub,
                                        watching[c->way], n);
}

static void some_blocks(void *call, int part, int parts) {
    products *c = call;
    const pass *p = c->p;
    const int_matrix *w = &c->q->codes[c->which];
    char *room = c->k->room->integers + part * int_room(widest(p), c->k->nv);
    int64_t *left = c->own[part].left;
    left[0] = 0, left[1] = -1;
    AT_INT_LEVEL(p->level, dot_int)(w, c->k->room->codes, c->isums, c->k->nv, c->q->width, share_of(w->blocks, part, parts),
                                    share_of(w->blocks, part + 1, parts), c->k->back, left, room);
}

/* Whether the room holds the operands still, from the call for the first blocks. */
static int prepared(const pass *p, int which) { return !which && p->from && p->groups == 1; }

/* Where vector v, of subs sub-vectors of x (subs, nv, 16), stands already among those before it that are taken; else v. */
static ptrdiff_t twin(const float *x, ptrdiff_t subs, ptrdiff_t nv, const uint8_t *take, ptrdiff_t v) {
    for (ptrdiff_t u = 0; u < v; u++) {
        ptrdiff_t s = 0;
        while (take[u] && s < subs && !memcmp(x + (s * nv + u) * 16, x + (s * nv + v) * 16, 16 * sizeof *x)) s++;
        if (s == subs) return u;
    }
    return v;
}

/* The vectors of a way, in all threads; forward equal ones, as words of a beam often are, once where nothing counts them. */
static void multiplied(products *c) {
    const group *q = c->q;
    const matrix *m = &q->w[c->which];
    const room_t *r = c->k->room;
    const ptrdiff_t nv = c->k->nv, pitch = (c->p->blocks * 4 + 1) * 16;
    const int alike = !c->which && nv > 1 && !c->underflows && (c->way == BY_CHAIN || c->way == BY_PAIRS);
    uint8_t *take = r->take[c->way];
    for (ptrdiff_t v = 0; by_codes(c) && v < nv; v++) {
        const int normal = ilogb(q->chain.normal), least = normal - 23 + ilogb(q->chain.product);
        r->columns[v].list = r->column + v * m->subs * 16;
        if (take[v] && !prepared(c->p, c->which))
            AT_LEVEL(c->p->level, columns)(r->columns + v, r->x + v * 16, nv * 16, m->subs * 16, normal, least);
    }
    for (ptrdiff_t v = 0; alike && v < nv; v++) {
        r->twin[v] = take[v] ? twin(r->x, m->subs, nv, take, v) : v;
        take[v] &= r->twin[v] == v;
    }
    share(c->k->crew, some_rows, c);
    for (int part = 0; part < parts_of(c->k->crew); part++)
        add_all(c->k->n, c->own[part].n);
    for (ptrdiff_t v = 0; alike && v < nv; v++)
        for (ptrdiff_t at = c->begin; at < c->end && r->twin[v] != v; at++)
            memcpy(c->sums + v * pitch + q->order[at] * 16, c->sums + r->twin[v] * pitch + q->order[at] * 16, 16 * sizeof *c->sums);
}

/* Whether no operand, product or sum with vectors of this least magnitude is subnormal: sums are multiples of a product's last place. */
static int may_pair(const group *q, int which, float least) {
    return q->w[which].store == PAIRED && q->low[which] >= 0x1p-126 && least >= 0x1p-126f && q->low[which] * least >= 0x1p-119;
}

/* Whether a vector with this least magnitude may go through the flushing chain: C x may be flushed only where all products with
 * x are below half of the least normal value. */
static int may_flush(const group *q, int which, float least) {
    const chain *k = &q->chain;
    return k->domain == 0.0f || 2 * q->norm[which] < k->product || (double)least * k->product * k->domain >= 0x1p-126;
}

/* A vector with an element that is not a number makes all sums of floats such, and nothing else happens where infinite products
 * stay so. */
static void lose(const products *c, float *sums) {
    for (ptrdiff_t at = c->begin; at < c->end; at++)
        for (int l = 0; l < 16; l++) sums[c->q->order[at] * 16 + l] = NAN;
}

/* Adds W v to the sums of all gates; `which`: W_x and x, or W_h and h. */
static void dot(const pass *p, int which, const float *values, ptrdiff_t pitch, float *sums, int32_t *isums,
                double *bound, const work *k) {
    const ptrdiff_t nv = k->nv, rows = p->blocks * 4, length = which ? p->cells : pitch;
    const room_t *r = k->room;
    const operand *held = NULL;
    for (int g = 0; g < p->groups; g++) {
        const group *q = &p->group[g];
        const operand *o = &q->operand[which];
        const int fresh = !held || !same_operand(held, o);
        products call;
        call.p = p, call.q = q, call.k = k, call.which = which, call.sums = sums;
        call.begin = which ? 0 : p->from * (q->real / p->blocks);
        call.end = which || p->to == p->blocks ? q->count : p->to * (q->real / p->blocks);
        seen dropped = {0, 0, 0, 0}, *counted = q->counts_input && (which || !p->from) ? &k->n[INPUT] : &dropped;
        if (q->path == BY_INTEGERS) {
            const ptrdiff_t inputs = q->codes[which].inputs;
            int64_t left[2] = {0, -1};
            for (ptrdiff_t v = 0; v < nv; v++) {
                int16_t *to = r->codes + v * inputs;
                operands(o, values + v * pitch, NULL, length, p->level, to, counted);
                memset(to + length, 0, (size_t)(inputs - length) * sizeof *to);
            }
            held = o;
            call.isums = isums + g * nv * rows * 16;
            share(k->crew, some_blocks, &call);
            for (int part = 0; part < parts_of(k->crew); part++) {
                const int64_t *some = call.own[part].left;
                left[0] += some[0];
                if (some[1] >= 0 && (left[1] < 0 || some[1] < left[1])) left[1] = some[1];
            }
            k->n[ACCUMULATOR].saturation += left[0];
            k->n[ACCUMULATOR].raised += left[1] >= 0;
            if (left[1] >= 0 && *k->raised < 0) {
                const ptrdiff_t at = left[1] % (rows * 16);
                *k->raised = 4 * (at / 64 * 16 + at % 16) + at / 16 % 4;
            }
            continue;
        }
        const matrix *m = &q->w[which];
        /* rows that pad a group have one place, where another group's formats may have left what is none of these */
        for (ptrdiff_t v = 0; v < nv && p->groups > 1; v++) memset(sums + (v * (rows + 1) + rows) * 16, 0, 16 * sizeof *sums);
        if (fresh && !prepared(p, which)) {
            for (ptrdiff_t v = 0; v < nv; v++) {
                memset(r->line, 0, (size_t)m->subs * 16 * sizeof *r->line);
                operands(o, values + v * pitch, r->line, length, p->level, r->codes, counted);
                for (ptrdiff_t s = 0; s < m->subs; s++)
                    memcpy(r->x + (s * nv + v) * 16, r->line + s * 16, 16 * sizeof *r->x);
            }
            held = o;
        }
        int fixed = 0, bounded = 0; /* of the DPU's places */
        for (int place = PRODUCT; place <= ACCUMULATOR; place++) {
            const fmt *f = p->unit[q->order[0] & 3].place + place;
            fixed += f->kind == FIXED, bounded += f->kind == FIXED || f->overflow == SATURATE;
        }
        int any[WAYS] = {0}, exact_products = 1;
        for (ptrdiff_t v = 0; v < nv; v++) {
            float top, least;
            const int kind = AT_LEVEL(p->level, extent)(r->x + v * 16, m->subs, nv * 16, &top, &least), finite = kind > 0;
            double *b = bound + v * p->groups + g;
            const double after = *b + q->norm[which] * top, part = q->part[which] * top;
            const int calm = part <= q->tree_limit, within = finite && calm, tame = finite && part <= q->tame_limit;
            *b = !within && (!tame || q->wraps) ? INFINITY : after; /* the accumulator may be infinite afterwards */
            if (kind < 0 && !bounded && !p->counted && (top == 0 || (calm && after <= q->limit))) {
                lose(&call, sums + v * (rows + 1) * 16);
                for (int way = 0; way < WAYS; way++) r->take[way][v] = 0;
                continue;
            }
            const int lanes = q->low[which] * least >= q->least_product, safe = *b <= q->limit;
            const int narrow = q->path == BY_CHAIN || q->path == BY_PAIRS || q->path == BY_HALVES;
            const int by_chain = finite && narrow && top * q->chain.product < INFINITY && may_flush(q, which, least);
            const int single = q->path != BY_WIDE && lanes && part <= q->lanes_limit;
            const int too_far = !single || (!within && (q->wraps_far || (!tame && q->far)));
            const int path = by_chain && lanes && safe                              ? may_pair(q, which, least) ? BY_PAIRS : BY_CHAIN
                             : fixed == 3 && !(finite && q->part[which] < INFINITY) ? BY_EXACT
                             : within && (q->path == BY_WIDE || !single)            ? BY_WIDE
                             : too_far                                              ? tame ? TAMED_BEYOND : BEYOND
                             : !within && !tame                                     ? LIMITED
                             : !within                                              ? safe && !p->counted ? TAMED : TAMED_SUMS
                             : p->counted                                           ? BY_GENERAL
                             : safe                                                 ? SAFELY
                                                                                    : RANGED;
            for (int way = 0; way < WAYS; way++) r->take[way][v] = path == way;
            exact_products &= path != BY_CHAIN || q->low[which] * least >= q->chain.normal;
            any[path] = 1;
        }
        for (int way = 0; way < WAYS; way++) {
            if (!any[way]) continue;
            call.way = way;
            call.underflows = way == BY_CHAIN && p->counted && !exact_products && q->chain.product > 0;
            multiplied(&call);
        }
    }
}

static void step_keys(const pass *p, const room_t *r, ptrdiff_t nv, uint32_t first, int stride) {
    for (ptrdiff_t v = 0; v < nv; v++) r->keys[v] = mix(p->key ^ (first + (uint32_t)(stride * v)));
}

void pass_forward(const pass *p, const float *x, ptrdiff_t inputs, float *sums, int32_t *isums, double *bound,
                  ptrdiff_t nv, uint32_t first, int stride, seen *n, int64_t *raised, crew *crew, void *room) {
    const room_t r = rooms(p, nv, parts_of(crew), (uintptr_t)room);
    const work k = {nv, &r, n, raised, crew, 0};
    step_keys(p, &r, nv, first, stride);
    const ptrdiff_t pitch = p->blocks * 64 + 16, size = (p->to == p->blocks ? pitch : p->to * 64) - p->from * 64;
    for (ptrdiff_t v = 0; v < nv; v++) memset(sums + v * pitch + p->from * 64, 0, (size_t)size * sizeof *sums);
    if (isums) memset(isums, 0, (size_t)(p->groups * nv * p->blocks * 64) * sizeof *isums);
    for (ptrdiff_t v = 0; v < nv * p->groups; v++) bound[v] = 0;
    dot(p, 0, x, inputs, sums, isums, bound, &k);
}

#define OP_FORWARD 0xfffff001U /* MWL's forward sum, taken into the MU's format */

/* Integer sums of the gates of group g, of one vector, as values of the MU's format. */
static void converted(const pass *p, int g, float *sums, const int32_t *isums, uint32_t step_key, uint32_t operation,
                      seen *n) {
    const group *q = &p->group[g];
    for (ptrdiff_t b = 0; b < p->blocks; b++) {
        float *to = sums + b * 64;
        if (p->groups == 1 && q->in_lanes &&
            AT_LEVEL(p->level, int_values)(&q->result, p->unit[0].mode, b, isums + b * 64, q->scale + b * 64, to, step_key, operation, n))
            continue;
        for (ptrdiff_t at = 0; at < q->real; at++) {
            if (q->order[at] / 4 != b) continue;
            const ptrdiff_t row = q->order[at], gate = row & 3;
            for (int l = 0; l < 16 && b * 16 + l < p->cells; l++) {
                const ptrdiff_t place = row * 16 + l;
                const uint32_t key = neuron_key(step_key, (uint32_t)(b * 16 + l), (uint32_t)gate);
                sums[place] = (float)rnd((double)isums[place] * q->scale[place], &p->unit[gate].place[MU], p->unit[gate].mode,
                                         random12(key, operation), n);
            }
        }
    }
}

void pass_convert(const pass *p, float *sums, const int32_t *isums, ptrdiff_t nv, uint32_t first, seen *n) {
    const ptrdiff_t size = p->blocks * 64;
    for (int g = 0; g < p->groups; g++)
        for (ptrdiff_t v = 0; v < nv && p->group[g].path == BY_INTEGERS; v++)
            converted(p, g, sums + v * (size + 16), isums + (g * nv + v) * size, mix(p->key ^ (first + (uint32_t)v)), OP_FORWARD,
                      &n[ACCUMULATOR]);
}

/* sums + stored, each rounded once, of one vector. */
static void joined(const pass *p, float *sums, const float *stored, const room_t *r, uint32_t step_key, seen *n) {
    const group *q = &p->group[0];
    const ptrdiff_t size = p->blocks * 64;
    if (p->groups == 1 && q->path != BY_INTEGERS && q->general.mode != STOCHASTIC && q->general.place[ACCUMULATOR].least > 0) {
        memcpy(r->copy, sums, (size_t)size * sizeof *sums);
        if (AT_LEVEL(p->level, join)(&q->general, sums, stored, size, &n[ACCUMULATOR])) return;
        memcpy(sums, r->copy, (size_t)size * sizeof *sums);
    }
    for (int g = 0; g < p->groups; g++)
        for (ptrdiff_t at = 0; at < p->group[g].real; at++) {
            const ptrdiff_t row = p->group[g].order[at], gate = row & 3;
            const fmt *f = &p->unit[gate].place[p->group[g].path == BY_INTEGERS ? MU : ACCUMULATOR];
            for (int l = 0; l < 16 && row / 4 * 16 + l < p->cells; l++) {
                const ptrdiff_t place = row * 16 + l;
                const uint32_t key = neuron_key(step_key, (uint32_t)(row / 4 * 16 + l), (uint32_t)gate);
                sums[place] = (float)rnd_sum(sums[place], stored[place], f, p->unit[gate].mode, random12(key, OP_JOIN),
                                             &n[ACCUMULATOR]);
            }
        }
}

int pass_padding(const pass *p) {
    const double zeros[4] = {0};
    const uint32_t keys[4] = {0};
    const seen none[4][PLACES] = {0};
    seen n[4][PLACES] = {0};
    unit u[4];
    double c = 0, h;
    memcpy(u, p->unit, sizeof u);
    for (int g = 0; g < 4; g++) u[g].mode = u[g].mode == STOCHASTIC ? TOWARD_ZERO : u[g].mode; /* 1/2 is lost if it may be */
    exact_mu(u, zeros, zeros, p->peep ? zeros : NULL, &c, &h, keys, n);
    return c == 0 && h == 0 && !memcmp(n, none, sizeof n);
}

/* The MU of one vector: c INOUT, h OUT; and how many blocks the lanes did. */
typedef struct {
    const pass *p;
    const float *sums;
    float *c, *h;
    uint32_t step_key;
    struct {
        seen n[COUNTED];
        ptrdiff_t done;
    } own[MOST_PARTS];
} states;

static void some_states(void *call, int part, int parts) {
    states *s = call;
    const pass *p = s->p;
    const float *sums = s->sums;
    float *c = s->c, *h = s->h;
    const ptrdiff_t from = share_of(p->blocks, part, parts), to = share_of(p->blocks, part + 1, parts);
    seen *n = s->own[part].n;
    memset(&s->own[part], 0, sizeof s->own[part]);
    for (ptrdiff_t b = from; b < to; b++) {
        float *cell = c + b * 16, *out = h + b * 16;
        const int lanes =
            (p->padded || b * 16 + 16 <= p->cells) &&
            ((p->narrow_mu && AT_LEVEL(p->level, mu_narrow)(&p->mu, b, sums + b * 64, cell, out, &n[MU])) ||
             (p->wide_mu && AT_LEVEL(p->level, mu_wide)(&p->wides, b, sums + b * 64, cell, out, s->step_key, &n[MU])));
        s->own[part].done += lanes;
        if (lanes) continue;
        for (int l = 0; l < 16; l++) {
            const ptrdiff_t neuron = b * 16 + l;
            if (neuron >= p->cells) {
                c[neuron] = h[neuron] = 0.0f;
                continue;
            }
            double sum[4], bias[4], peep[3], cell = c[neuron], out;
            uint32_t keys[4];
            seen here[4][PLACES];
            memset(here, 0, sizeof here);
            for (int g = 0; g < 4; g++) {
                sum[g] = sums[b * 64 + g * 16 + l];
                bias[g] = p->bias[b * 64 + g * 16 + l];
                keys[g] = neuron_key(s->step_key, (uint32_t)neuron, (uint32_t)g);
                if (p->peep && g < 3) peep[g] = p->peep[b * 48 + g * 16 + l];
            }
            exact_mu(p->unit, sum, bias, p->peep ? peep : NULL, &cell, &out, keys, here);
            c[neuron] = (float)cell, h[neuron] = (float)out;
            for (int g = 0; g < 4; g++)
                for (int place = MU; place < PLACES; place++) add_seen(&n[place], &here[g][place]);
        }
    }
    if (p->output.kind == CODED) {
        int16_t codes[16];
        for (ptrdiff_t b = from; b < to; b++) operands(&p->output, h + b * 16, h + b * 16, 16, p->level, codes, &n[OUTPUT]);
    }
}

static ptrdiff_t multifunctional(const pass *p, const float *sums, float *c, float *h, uint32_t step_key, crew *crew, seen *n) {
    ptrdiff_t done = 0;
    states s;
    s.p = p, s.sums = sums, s.c = c, s.h = h, s.step_key = step_key;
    share(crew, some_states, &s);
    for (int part = 0; part < parts_of(crew); part++) {
        add_all(n, s.own[part].n);
        done += s.own[part].done;
    }
    return done;
}

ptrdiff_t pass_mu(const pass *p, const float *sums, float *c, float *h, uint32_t first, seen *n) {
    return multifunctional(p, sums, c, h, mix(p->key ^ first), NULL, n);
}

void pass_step(const pass *p, float *sums, int32_t *isums, double *bound, const float *stored, float *h, float *c,
               ptrdiff_t nv, uint32_t first, int stride, seen *n, int64_t *raised, crew *crew, void *room) {
    const ptrdiff_t width = p->blocks * 16, pitch = p->blocks * 64 + 16;
    const room_t r = rooms(p, nv, parts_of(crew), (uintptr_t)room);
    const work k = {nv, &r, n, raised, crew, first & 1};
    step_keys(p, &r, nv, first, stride);
    dot(p, 1, h, width, sums, isums, bound, &k);
    for (ptrdiff_t v = 0; v < nv; v++) {
        for (int g = 0; g < p->groups; g++)
            if (p->group[g].path == BY_INTEGERS)
                converted(p, g, sums + v * pitch, isums + (g * nv + v) * p->blocks * 64, r.keys[v], OP_MU,
                          &n[ACCUMULATOR]);
        if (stored) joined(p, sums + v * pitch, stored + v * pitch, &r, r.keys[v], n);
        multifunctional(p, sums + v * pitch, c + v * width, h + v * width, r.keys[v], crew, n);
    }
}

void pass_recurrent(const pass *p, float *sums, int32_t *isums, double *bound, int separate, float *h, float *c,
                    float *out, ptrdiff_t steps, int reverse, uint32_t first, seen *n, int64_t *raised, crew *crew, void *room) {
    const ptrdiff_t width = p->blocks * 16, pitch = p->blocks * 64 + 16;
    const room_t r = rooms(p, 1, parts_of(crew), (uintptr_t)room);
    float *anew = r.anew;
    int32_t *own = isums ? r.own : NULL;
    for (ptrdiff_t step = 0; step < steps; step++) {
        const ptrdiff_t t = reverse ? steps - 1 - step : step;
        if (separate) memset(anew, 0, (size_t)pitch * sizeof *anew);
        for (int g = 0; isums && g < p->groups; g++) {
            const ptrdiff_t size = p->blocks * 64;
            if (separate)
                memset(own + g * size, 0, (size_t)size * sizeof *own);
            else
                memcpy(own + g * size, isums + (g * steps + t) * size, (size_t)size * sizeof *own);
        }
        if (separate)
            for (int g = 0; g < p->groups; g++) bound[t * p->groups + g] = 0;
        pass_step(p, separate ? anew : sums + t * pitch, own, bound + t * p->groups, separate ? sums + t * pitch : NULL, h, c, 1,
                  first + (uint32_t)t, 1, n, raised, crew, room);
        memcpy(out + t * width, h, (size_t)width * sizeof *out);
    }
}

int pass_table(const unit *u, int tangent, int store, uint32_t *table) {
    for (uint32_t code = 0; code < 65536; code++) {
        const int special = store == HALF ? (code & 0x7c00) == 0x7c00 : (code & 0x7f80) == 0x7f80;
        seen n[PLACES], none = {0, 0, 0, 0};
        memset(n, 0, sizeof n);
        const uint32_t places = store == HALF ? 0x3ff : 0x7f;
        table[code] = special && code & places ? code : 0; /* not-a-number stays so */
        const float v = special ? 0.0f : decoded(store, (uint16_t)code);
        if (special || (float)rnd(v, &u->place[MU], NEAREST_EVEN, 0, &none) != v) continue;
        const float r = (float)exact_activation(u, tangent, v, n);
        uint32_t bits;
        if (!(fabsf(r) < INFINITY) || n[MU].overflow || n[MU].saturation) return 0;
        memcpy(&bits, &r, 4);
        if (store == HALF) {
            const double size = fabsf(r);
            const int exponent = size >= 0x1p-14 ? (int)(bits_of(size) >> 52) - 1023 : -14;
            const uint32_t units = (uint32_t)(size * power(10 - exponent));
            bits = (bits & 0x80000000U) | (size >= 0x1p-14 ? (uint32_t)(exponent + 14) * 1024 + units : units) << 16;
        }
        table[code] = bits >> 16 | (uint32_t)n[MU].underflow << 16;
    }
    return 1;
}
