/* Stack distances by counting bits on the axis of time.
 *
 * Each request takes the next slot. A slot's bit is set while it is the last access of its line (Bennett and
 * Kruskal 1975), so a line's distance is the number of bits behind its last slot. Counts of the bits before a block
 * of 256 slots within its super of 32 blocks, before a super within its hyper of 32 supers, and before a hyper make
 * that one population count and three loads; a cleared bit lowers the counts behind it in short vectors. New
 * bits only come at the end of the axis, where no count is behind them. When the axis is full, the live slots move to
 * its front in their order (as in Olken 1981), and it grows unless they fill less than a quarter.
 *
 * Sampling (SHARDS: Waldspurger et al., FAST 2015) takes the lines whose hash lies below a threshold T of 2^24: a
 * distance d among them stands for d 2^24 / T, a reference for 2^24 / T of them. With a bound on the lines kept, T
 * falls to the largest hash kept, and what has that hash is dropped.
 */
#include "stack_api.h"

enum { WORDS = 4, BLOCK = 64 * WORDS, BLOCKS = 32, SUPER = BLOCK * BLOCKS, SUPERS = 32, HYPER = SUPER * SUPERS };
enum { HYPERS = 8, FIRST_AXIS = HYPER, FITS = 1 << 16 };

static inline uint32_t LEVEL(block_bits)(const uint64_t *w) {
    uint32_t sum = 0;
    for (int i = 0; i < WORDS; i++) sum += (uint32_t)__builtin_popcountll(w[i]);
    return sum;
}

/* The axis, apart from the state: stores to the arrays could change it, as far as a compiler knows. */
typedef struct {
    uint64_t *bits;
    uint16_t *in_super;
    uint32_t *in_hyper, *hypers;
} LEVEL(axis);

static inline LEVEL(axis) LEVEL(axis_of)(const epur_stack *s) {
    return (LEVEL(axis)){s->bits, s->in_super, s->in_hyper, s->hypers};
}

/* Words of a block before the one of a slot. */
static const uint64_t LEVEL(words)[WORDS][WORDS - 1] = {{0, 0, 0}, {~UINT64_C(0), 0, 0},
    {~UINT64_C(0), ~UINT64_C(0), 0}, {~UINT64_C(0), ~UINT64_C(0), ~UINT64_C(0)}};

/* Set bits in slots up to `slot`, itself included. */
static inline uint64_t LEVEL(rank)(LEVEL(axis) x, uint64_t slot) {
    const uint64_t *w = x.bits + slot / BLOCK * WORDS, *use = LEVEL(words)[slot / 64 % WORDS];
    uint64_t sum = (uint64_t)x.hypers[slot / HYPER] + x.in_hyper[slot / SUPER] + x.in_super[slot / BLOCK];
    for (int i = 0; i < WORDS - 1; i++) sum += (uint64_t)__builtin_popcountll(w[i] & use[i]);
    return sum + (uint64_t)__builtin_popcountll(w[slot / 64 % WORDS] << (63 - slot % 64));
}

/* Clear the bits of `length` slots of one block, all of them set. */
static inline void LEVEL(clear)(LEVEL(axis) x, uint64_t slot, uint32_t length, uint64_t now) {
    const uint64_t end = slot + length - 1;
    for (uint64_t word = slot / 64; word <= end / 64; word++) {
        uint64_t mask = ~UINT64_C(0);
        if (word == slot / 64) mask <<= slot % 64;
        if (word == end / 64) mask &= ~UINT64_C(0) >> (63 - end % 64);
        x.bits[word] &= ~mask;
    }
    uint16_t *in_super = x.in_super + slot / SUPER * BLOCKS;
    const uint16_t block = (uint16_t)(slot / BLOCK % BLOCKS);
    for (uint16_t i = 0; i < BLOCKS; i++) in_super[i] = (uint16_t)(in_super[i] - (i > block ? length : 0));
    uint32_t *in_hyper = x.in_hyper + slot / HYPER * SUPERS;
    const uint32_t super = (uint32_t)(slot / SUPER % SUPERS);
    for (uint32_t i = 0; i < SUPERS; i++) in_hyper[i] -= i > super ? length : 0;
    const uint32_t hyper = (uint32_t)(slot / HYPER);
    for (uint32_t group = hyper / HYPERS * HYPERS; group <= now / HYPER; group += HYPERS)
        for (uint32_t i = 0; i < HYPERS; i++) x.hypers[group + i] -= group + i > hyper ? length : 0;
}

/* Counts before the block that begins with slot `now`. */
static inline void LEVEL(enter)(epur_stack *s, uint64_t now) {
    const uint64_t b = now / BLOCK;
    uint32_t sum = 0;
    if (b) sum = s->in_super[b - 1] + LEVEL(block_bits)(s->bits + (b - 1) * WORDS);
    s->in_super[b] = b % BLOCKS ? (uint16_t)sum : 0;
    if (b % BLOCKS) return;
    const uint64_t super = b / BLOCKS;
    if (super) sum += s->in_hyper[super - 1];
    s->in_hyper[super] = super % SUPERS ? sum : 0;
    if (super % SUPERS) return;
    const uint64_t hyper = super / SUPERS;
    s->hypers[hyper] = hyper ? s->hypers[hyper - 1] + sum : 0;
}

/* Bytes of the state, on an axis of so many slots. */
static inline uint64_t LEVEL(state)(const epur_stack *s, uint64_t axis) {
    const uint64_t numbers = s->lines.pages * PAGE, each = sizeof *s->last + (s->reuse ? 16 : 0);
    return numbers * each + s->lines.room * sizeof(epur_entry) + axis * 5 + s->bins * sizeof *s->counts;
}

/* Move the live slots to the front, on an axis at least four times as long. */
static int LEVEL(compact)(epur_stack *s) {
    uint64_t axis = s->axis ? s->axis : FIRST_AXIS, kept = 0;
    while (axis < 4 * s->live) axis *= 2;
    if (axis >> 32 || LEVEL(state)(s, axis) > s->most_bytes) return EPUR_TOO_LARGE;
    if (axis > s->axis) {
        /* One hyper more, as a full axis has one begun. */
        void *bits = realloc(s->bits, axis / 8), *owner, *in_super, *in_hyper, *hypers;
        if (bits) s->bits = bits;
        if ((owner = realloc(s->owner, axis * sizeof *s->owner))) s->owner = owner;
        if ((in_super = realloc(s->in_super, axis / BLOCK * sizeof *s->in_super))) s->in_super = in_super;
        if ((in_hyper = realloc(s->in_hyper, axis / SUPER * sizeof *s->in_hyper))) s->in_hyper = in_hyper;
        if ((hypers = realloc(s->hypers, (axis / HYPER + HYPERS) * sizeof *s->hypers))) s->hypers = hypers;
        if (!bits || !owner || !in_super || !in_hyper || !hypers) return EPUR_NO_MEMORY;
    }
    for (uint64_t word = 0; word < (s->now + 63) / 64; word++)
        for (uint64_t w = s->bits[word]; w; w &= w - 1) {
            const uint32_t number = s->owner[64 * word + (uint64_t)__builtin_ctzll(w)];
            s->owner[kept++] = number;
            s->last[number] = (uint32_t)kept;
        }
    s->axis = axis;
    memset(s->bits, 0, axis / 8);
    memset(s->in_super, 0, axis / BLOCK * sizeof *s->in_super);
    memset(s->in_hyper, 0, axis / SUPER * sizeof *s->in_hyper);
    memset(s->bits, 0xff, kept / 64 * 8);
    if (kept % 64) s->bits[kept / 64] = (UINT64_C(1) << kept % 64) - 1;
    /* The slot that comes next enters its own block, if it begins one. */
    for (uint64_t slot = 0; slot < kept; slot += BLOCK) LEVEL(enter)(s, slot);
    s->now = kept;
    return EPUR_DONE;
}

static int LEVEL(room)(epur_stack *s, const epur_batch *b) {
    const uint64_t numbers = s->lines.pages * PAGE;
    if (LEVEL(state)(s, s->axis) > s->most_bytes) return EPUR_TOO_LARGE;
    int failed = epur_grow((void **)&s->last, &s->last_room, numbers, sizeof *s->last);
    if (!s->sample) failed |= epur_grow((void **)&s->counts, &s->bins, s->live + (uint64_t)b->size + 1, 8);
    if (s->reuse) {
        failed |= epur_grow((void **)&s->reuse->cycle, &s->reuse->cycle_room, numbers, 8);
        failed |= epur_grow((void **)&s->reuse->seen, &s->reuse->seen_room, numbers, 8);
    }
    return failed;
}

/* murmur3's finaliser, so that lines at regular strides are sampled alike. */
static inline uint64_t LEVEL(mix)(uint64_t x) {
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    x *= UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

static inline int LEVEL(bin)(uint64_t distance) {
    if (distance < FINE) return (int)distance;
    const int doubling = 63 - __builtin_clzll(distance) - 8;
    return doubling * FINE + (int)(distance >> doubling);
}

/* Keep the sampled lines of a batch. */
static void LEVEL(choose)(const epur_sample *p, epur_batch *b) {
    int kept = 0;
    for (int i = 0; i < b->size; i++) {
        if ((LEVEL(mix)(b->line[i]) & ((1 << HASH_BITS) - 1)) >= p->threshold) continue;
        b->line[kept] = b->line[i];
        b->again[kept++] = b->again[i];
    }
    b->size = kept;
}

static void LEVEL(push)(epur_sample *p, uint64_t entry) {
    uint64_t at = p->kept++;
    for (; at && p->heap[(at - 1) / 2] < entry; at = (at - 1) / 2) p->heap[at] = p->heap[(at - 1) / 2];
    p->heap[at] = entry;
}

static void LEVEL(pop)(epur_sample *p) {
    const uint64_t entry = p->heap[--p->kept];
    uint64_t at = 0;
    for (uint64_t child; (child = 2 * at + 1) < p->kept; at = child) {
        if (child + 1 < p->kept && p->heap[child + 1] > p->heap[child]) child++;
        if (p->heap[child] <= entry) break;
        p->heap[at] = p->heap[child];
    }
    p->heap[at] = entry;
}

/* Drop the lines with the largest hash until no more than `most` are kept. */
static void LEVEL(shrink)(epur_stack *s) {
    epur_sample *p = s->sample;
    while (p->kept > p->most) {
        p->threshold = (uint32_t)(p->heap[0] >> 32);
        while (p->kept && p->heap[0] >> 32 >= p->threshold) {
            const uint32_t number = (uint32_t)p->heap[0];
            LEVEL(clear)(LEVEL(axis_of)(s), s->last[number] - 1, 1, s->now);
            s->last[number] = 0;
            s->live--;
            LEVEL(pop)(p);
        }
    }
}

static inline void LEVEL(look)(epur_reuse *r, uint32_t number, int64_t cycle) {
    const uint64_t next = (uint64_t)cycle + 1, window = (uint64_t)cycle / r->window;
    if (r->cycle[number]) {
        const uint64_t since = next - r->cycle[number];
        r->times[since ? 64 - __builtin_clzll(since) : 0]++;
    }
    r->cycle[number] = next;
    if (window < r->count && r->seen[number] != window + 1) {
        r->seen[number] = window + 1;
        r->windows[window]++;
    }
}

/* The requests of a batch, none of them sampled or timed.
 *
 * If a line's last slot is the one behind that of the request before, its distance is the same: it no longer counts
 * itself, and it counts the line before, which has moved behind it. So requests in an old order need no counting, and
 * their bits are cleared together, block by block.
 */
static int LEVEL(count)(epur_stack *s, const epur_batch *b) {
    LEVEL(axis) x = LEVEL(axis_of)(s);
    uint32_t *const last = s->last, *owner = s->owner;
    uint64_t *const counts = s->counts, weight = s->weight, seen = s->live;
    uint64_t now = s->now, live = seen, distance = 0, next = 0;
    uint32_t pending = 0; /* slots before `next` that are still to be cleared */
    for (int i = 0; i < b->size; i++) {
        if (now % BLOCK == 0) {
            if (pending) LEVEL(clear)(x, next - pending, pending, now);
            pending = 0;
            next = 0;
            if (now == s->axis) {
                s->now = now;
                s->live = live;
                const int failed = LEVEL(compact)(s);
                if (failed) return failed;
                x = LEVEL(axis_of)(s);
                owner = s->owner;
                now = s->now;
            }
            if (now % BLOCK == 0) LEVEL(enter)(s, now);
        }
        const uint32_t number = b->number[i], before = last[number];
        if (before && before == next + 1 && next % BLOCK && pending) {
            counts[distance] += weight;
            pending++;
            next++;
        } else {
            if (pending) LEVEL(clear)(x, next - pending, pending, now);
            pending = 0;
            if (before) {
                distance = live - LEVEL(rank)(x, before - 1);
                counts[distance] += weight;
                pending = 1;
                next = before;
            } else {
                live++;
            }
        }
        x.bits[now / 64] |= UINT64_C(1) << now % 64;
        owner[now] = number;
        last[number] = (uint32_t)++now;
    }
    if (pending) LEVEL(clear)(x, next - pending, pending, now);
    s->now = now;
    s->live = live;
    s->cold += (live - seen) * weight;
    for (int i = 0; i < b->size; i++) counts[0] += b->again[i] * weight;
    return EPUR_DONE;
}

/* The same, sampled or timed. */
static int LEVEL(sample)(epur_stack *s, const epur_batch *b) {
    epur_sample *p = s->sample;
    for (int i = 0; i < b->size; i++) {
        const uint32_t number = b->number[i], last = s->last[number];
        const uint64_t mixed = LEVEL(mix)(b->line[i]);
        const uint32_t hash = (uint32_t)(mixed & ((1 << HASH_BITS) - 1));
        uint64_t distance = 0;
        /* The threshold may have fallen since the batch was chosen. */
        if (p && hash >= p->threshold) continue;
        if (s->now == s->axis) {
            const int failed = LEVEL(compact)(s);
            if (failed) return failed;
            i--;
            continue;
        }
        if (s->now % BLOCK == 0) LEVEL(enter)(s, s->now);
        if (last) {
            distance = s->live - LEVEL(rank)(LEVEL(axis_of)(s), last - 1);
            LEVEL(clear)(LEVEL(axis_of)(s), last - 1, 1, s->now);
        } else {
            s->live++;
        }
        s->bits[s->now / 64] |= UINT64_C(1) << s->now % 64;
        s->owner[s->now] = number;
        s->last[number] = (uint32_t)++s->now;
        if (s->reuse) LEVEL(look)(s->reuse, number, b->cycle[i]);
        if (!p) {
            if (last)
                s->counts[distance] += s->weight;
            else
                s->cold += s->weight;
            s->counts[0] += s->weight * b->again[i];
            continue;
        }
        const double scale = (double)(1 << HASH_BITS) / p->threshold, worth = (double)s->weight * scale;
        const int group = (int)(mixed >> 61);
        if (last)
            p->counts[group][LEVEL(bin)((uint64_t)((double)distance * scale))] += worth;
        else
            p->cold[group] += worth;
        p->counts[group][0] += worth * (double)b->again[i];
        if (!last && p->most) {
            LEVEL(push)(p, (uint64_t)hash << 32 | number);
            LEVEL(shrink)(s);
        }
    }
    return EPUR_DONE;
}

int LEVEL(stack_feed)(epur_stack *s, epur_accesses *a) {
    epur_batch b;
    int failed = s->axis ? EPUR_DONE : LEVEL(compact)(s);
    if (!failed && !s->lines.room) failed = epur_lines_grow(&s->lines);
    while (!failed) {
        epur_next(a, &b, !s->reuse);
        if (!b.size) return EPUR_DONE;
        for (int i = 0; i < b.size; i++) s->requests += s->weight * (1 + b.again[i]);
        if (s->sample) LEVEL(choose)(s->sample, &b);
        failed = epur_number(&s->lines, &b);
        if (!failed) failed = LEVEL(room)(s, &b);
        if (failed) break;
        if (s->last_room > FITS)
            for (int i = 0; i < b.size; i++) __builtin_prefetch(&s->last[b.number[i]], 1);
        failed = s->sample || s->reuse ? LEVEL(sample)(s, &b) : LEVEL(count)(s, &b);
    }
    return failed;
}

#include "caches.h"
