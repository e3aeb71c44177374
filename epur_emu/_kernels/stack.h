/* Stack distances by counting bits on the axis of time.
 *
 * Each request takes the next slot. A slot's bit is set while it is the last access of its line (Bennett and
 * Kruskal 1975), so a line's distance is the number of bits behind its last slot. Counts of the bits before a block
 * of 256 slots within its super of 32 blocks, before a super within its hyper of 32 supers, and before a hyper make
 * that one population count and three loads; a cleared bit lowers the counts behind it in three short vectors. New
 * bits only come at the end of the axis, where no count is behind them. When the axis is full, the live slots move to
 * its front in their order (as in Olken 1981), and it grows unless they fill less than a quarter.
 *
 * Sampling (SHARDS: Waldspurger et al., FAST 2015) takes the lines whose hash lies below a threshold T of 2^24: a
 * distance d among them stands for d 2^24 / T, a reference for 2^24 / T of them. With a bound on the lines kept, T
 * falls to the largest hash kept, and what has that hash is dropped.
 */
#include "stack_api.h"

enum { WORDS = 4, BLOCK = 64 * WORDS, FAN = 32, SUPER = BLOCK * FAN, HYPER = SUPER * FAN, FIRST_AXIS = HYPER };

static inline uint32_t LEVEL(block_bits)(const uint64_t *w) {
    uint32_t sum = 0;
    for (int i = 0; i < WORDS; i++) sum += (uint32_t)__builtin_popcountll(w[i]);
    return sum;
}

/* Set bits in slots up to `slot`, itself included. */
static inline uint64_t LEVEL(rank)(const epur_stack *s, uint64_t slot) {
    const uint64_t *w = s->bits + slot / BLOCK * WORDS;
    const int word = (int)(slot / 64 % WORDS);
    uint64_t sum = (uint64_t)s->hypers[slot / HYPER] + s->in_hyper[slot / SUPER] + s->in_super[slot / BLOCK];
    for (int i = 0; i < WORDS - 1; i++) sum += (uint64_t)__builtin_popcountll(w[i] & (i < word ? ~UINT64_C(0) : 0));
    return sum + (uint64_t)__builtin_popcountll(w[word] << (63 - slot % 64));
}

static inline void LEVEL(clear)(epur_stack *s, uint64_t slot) {
    s->bits[slot / 64] &= ~(UINT64_C(1) << slot % 64);
    uint16_t *in_super = s->in_super + slot / SUPER * FAN;
    const uint16_t block = (uint16_t)(slot / BLOCK % FAN);
    for (uint16_t i = 0; i < FAN; i++) in_super[i] = (uint16_t)(in_super[i] - (i > block));
    uint32_t *in_hyper = s->in_hyper + slot / HYPER * FAN;
    const uint32_t super = (uint32_t)(slot / SUPER % FAN);
    for (uint32_t i = 0; i < FAN; i++) in_hyper[i] -= i > super;
    for (uint64_t i = slot / HYPER + 1; i <= s->now / HYPER; i++) s->hypers[i]--;
}

/* Counts before the block that begins with slot `now`. */
static inline void LEVEL(enter)(epur_stack *s, uint64_t now) {
    const uint64_t b = now / BLOCK;
    uint32_t sum = 0;
    if (b) sum = s->in_super[b - 1] + LEVEL(block_bits)(s->bits + (b - 1) * WORDS);
    s->in_super[b] = b % FAN ? (uint16_t)sum : 0;
    if (b % FAN) return;
    const uint64_t super = b / FAN;
    if (super) sum += s->in_hyper[super - 1];
    s->in_hyper[super] = super % FAN ? sum : 0;
    if (super % FAN) return;
    const uint64_t hyper = super / FAN;
    s->hypers[hyper] = hyper ? s->hypers[hyper - 1] + sum : 0;
}

/* Move the live slots to the front, on an axis at least four times as long. */
static int LEVEL(compact)(epur_stack *s) {
    uint64_t axis = s->axis ? s->axis : FIRST_AXIS, kept = 0;
    while (axis < 4 * s->live) axis *= 2;
    if (axis >> 32) return EPUR_TOO_LARGE;
    if (axis > s->axis) {
        /* One hyper more, as a full axis has one begun. */
        void *bits = realloc(s->bits, axis / 8), *owner, *in_super, *in_hyper, *hypers;
        if (bits) s->bits = bits;
        if ((owner = realloc(s->owner, axis * sizeof *s->owner))) s->owner = owner;
        if ((in_super = realloc(s->in_super, axis / BLOCK * sizeof *s->in_super))) s->in_super = in_super;
        if ((in_hyper = realloc(s->in_hyper, axis / SUPER * sizeof *s->in_hyper))) s->in_hyper = in_hyper;
        if ((hypers = realloc(s->hypers, (axis / HYPER + 1) * sizeof *s->hypers))) s->hypers = hypers;
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
    const uint64_t each = sizeof *s->last + (s->reuse ? 16 : 0);
    if (numbers * each + s->lines.room * sizeof(epur_entry) + s->axis * 5 + s->bins * 8 > s->most_bytes)
        return EPUR_TOO_LARGE;
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
            LEVEL(clear)(s, s->last[number] - 1);
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

int LEVEL(stack_feed)(epur_stack *s, epur_accesses *a) {
    epur_batch b;
    epur_sample *p = s->sample;
    if (!s->axis && LEVEL(compact)(s)) return EPUR_NO_MEMORY;
    if (!s->lines.room && epur_lines_grow(&s->lines)) return EPUR_NO_MEMORY;
    for (;;) {
        epur_next(a, &b, !s->reuse);
        if (!b.size) return EPUR_DONE;
        for (int i = 0; i < b.size; i++) s->requests += s->weight * (1 + b.again[i]);
        if (p) LEVEL(choose)(p, &b);
        int failed = epur_number(&s->lines, &b);
        if (!failed) failed = LEVEL(room)(s, &b);
        if (failed) return failed;
        for (int i = 0; i < b.size; i++) __builtin_prefetch(&s->last[b.number[i]], 1);
        for (int i = 0; i < b.size; i++) {
            const uint32_t number = b.number[i];
            if (s->now == s->axis && (failed = LEVEL(compact)(s))) return failed;
            if (s->now % BLOCK == 0) LEVEL(enter)(s, s->now);
            const uint32_t last = s->last[number];
            uint64_t distance = 0;
            uint32_t hash = 0;
            if (p) {
                hash = (uint32_t)(LEVEL(mix)(b.line[i]) & ((1 << HASH_BITS) - 1));
                /* The threshold may have fallen since the batch was chosen. */
                if (hash >= p->threshold) continue;
            }
            if (last) {
                distance = s->live - LEVEL(rank)(s, last - 1);
                LEVEL(clear)(s, last - 1);
            } else {
                s->live++;
            }
            s->bits[s->now / 64] |= UINT64_C(1) << s->now % 64;
            s->owner[s->now] = number;
            s->last[number] = (uint32_t)++s->now;
            if (s->reuse) LEVEL(look)(s->reuse, number, b.cycle[i]);
            if (!p) {
                if (last)
                    s->counts[distance] += s->weight;
                else
                    s->cold += s->weight;
                s->counts[0] += s->weight * b.again[i];
                continue;
            }
            const double scale = (double)(1 << HASH_BITS) / p->threshold, worth = (double)s->weight * scale;
            const int group = (int)(LEVEL(mix)(b.line[i]) >> 61);
            if (last)
                p->counts[group][LEVEL(bin)((uint64_t)((double)distance * scale))] += worth;
            else
                p->cold[group] += worth;
            p->counts[group][0] += worth * (double)b.again[i];
            if (!last && p->most) {
                LEVEL(push)(p, (uint64_t)hash << 32 | number);
                LEVEL(shrink)(s);
            }
        }
    }
}

#include "caches.h"
