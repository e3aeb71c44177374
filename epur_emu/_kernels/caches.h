/* Caches of one size: least recently used, first in first out, Belady's optimum; one set or many.
 *
 * LRU in one set: requests take slots of an axis of time, as in `stack.h`; the line to evict is the owner of the first
 * slot held. FIFO needs no order at all: a line is in if fewer than `ways` were brought into its set since it was.
 *
 * Belady without the future: a request hits in an optimal cache of C lines, which always takes in what is requested,
 * exactly if the time since its line's last request can be given to one of C - 1 holders, each of which holds one line
 * at a time. Times come in the order of their ends, so giving each to the free holder that was busy last, if there is
 * one, serves the most (Carlisle and Lloyd 1995; the view of optimal caching by intervals is that of Jain and Lin,
 * ISCA 2016). A holder is a bit on the axis: the slot up to which it was busy; the one to take is the nearest bit not
 * behind the line's last slot.
 */
#include "stack_api.h"

enum { LEVELS = 6, FIRST_SLOTS = 1 << 16 };

static inline void LEVEL(hold)(epur_cache *c, uint64_t slot) {
    for (int level = 0; level < LEVELS; level++, slot /= 64) {
        const uint64_t before = c->bits[level][slot / 64];
        c->bits[level][slot / 64] = before | UINT64_C(1) << slot % 64;
        if (before) return;
    }
}

static inline void LEVEL(release)(epur_cache *c, uint64_t slot) {
    for (int level = 0; level < LEVELS; level++, slot /= 64)
        if ((c->bits[level][slot / 64] &= ~(UINT64_C(1) << slot % 64))) return;
}

/* The last slot held up to `slot`, plus one; 0 if there is none. */
static inline uint64_t LEVEL(before)(const epur_cache *c, uint64_t slot) {
    for (int level = 0; level < LEVELS; level++) {
        const uint64_t word = slot / 64, found = c->bits[level][word] << (63 - slot % 64);
        if (found) {
            uint64_t at = slot - (uint64_t)__builtin_clzll(found);
            while (level--) at = 64 * at + 63 - (uint64_t)__builtin_clzll(c->bits[level][at]);
            return at + 1;
        }
        if (!word) return 0;
        slot = word - 1;
    }
    return 0;
}

static inline int LEVEL(held)(const epur_cache *c, uint64_t slot) {
    return (int)(c->bits[0][slot / 64] >> slot % 64 & 1);
}

/* Whether a later request can still depend on a slot. */
static inline int LEVEL(needed)(const epur_cache *c, uint64_t slot, uint64_t first) {
    if (LEVEL(held)(c, slot)) return 1;
    return c->policy == EPUR_BELADY && slot >= first && c->last[c->owner[slot]] == slot + 1;
}

/* Move the slots still needed to the front, on an axis at least four times as long. */
static int LEVEL(pack)(epur_cache *c) {
    uint64_t first = 0, kept = 0, axis = c->axis ? c->axis : FIRST_SLOTS;
    /* Times that began before all holders were busy last can't be given to any. */
    if (c->policy == EPUR_BELADY && c->held == c->ways - 1) {
        first = c->now;
        for (uint64_t word = 0; word < (c->now + 63) / 64; word++)
            if (c->bits[0][word]) {
                first = 64 * word + (uint64_t)__builtin_ctzll(c->bits[0][word]);
                break;
            }
        /* A line hits directly behind itself. */
        if (c->now && first == c->now) first--;
    }
    for (uint64_t slot = 0; slot < c->now; slot++) {
        const uint32_t owner = c->owner[slot];
        const int own = c->last[owner] == slot + 1, held = LEVEL(held)(c, slot);
        if (!LEVEL(needed)(c, slot, first)) {
            if (own) c->last[owner] = 0;
            continue;
        }
        if (own) c->last[owner] = (uint32_t)kept + 1;
        /* Slots only move to the front, so nothing is overwritten before it is read. */
        c->bits[0][slot / 64] &= ~(UINT64_C(1) << slot % 64);
        if (held) c->bits[0][kept / 64] |= UINT64_C(1) << kept % 64;
        c->owner[kept++] = owner;
    }
    const uint64_t old = c->axis;
    while (axis < 4 * kept) axis *= 2;
    if (axis >> 32 || 5 * axis > c->most_bytes) return EPUR_TOO_LARGE;
    if (axis > old) {
        uint32_t *owner = realloc(c->owner, axis * sizeof *owner);
        if (!owner) return EPUR_NO_MEMORY;
        c->owner = owner;
        uint64_t *bits = realloc(c->bits[0], axis / 8);
        if (!bits) return EPUR_NO_MEMORY;
        memset(bits + old / 64, 0, (axis - old) / 8);
        c->bits[0] = bits;
    }
    for (int level = 1; level < LEVELS; level++) {
        const uint64_t below = (axis >> 6 * level) ? (axis >> 6 * level) : 1;
        uint64_t *bits = realloc(c->bits[level], (below / 64 + 1) * 8);
        if (!bits) return EPUR_NO_MEMORY;
        c->bits[level] = bits;
        memset(bits, 0, (below / 64 + 1) * 8);
        for (uint64_t word = 0; word < below; word++)
            if (c->bits[level - 1][word]) bits[word / 64] |= UINT64_C(1) << word % 64;
    }
    c->axis = axis;
    c->now = kept;
    c->tail = 0;
    return EPUR_DONE;
}

/* One request in one set; whether it misses. The line becomes the owner of the next slot. */
static inline int LEVEL(lru)(epur_cache *c, uint32_t number) {
    const uint32_t last = c->last[number];
    if (last) {
        c->bits[0][(last - 1) / 64] &= ~(UINT64_C(1) << (last - 1) % 64);
    } else if (c->held == c->ways) {
        uint64_t word = c->tail;
        while (!c->bits[0][word]) word++;
        c->last[c->owner[64 * word + (uint64_t)__builtin_ctzll(c->bits[0][word])]] = 0;
        c->bits[0][word] &= c->bits[0][word] - 1;
        c->tail = word;
    } else {
        c->held++;
    }
    c->bits[0][c->now / 64] |= UINT64_C(1) << c->now % 64;
    return !last;
}

static inline int LEVEL(belady)(epur_cache *c, uint32_t number) {
    const uint32_t last = c->last[number];
    if (!last) return 1;
    if (last == c->now) return 0;
    const uint64_t taken = LEVEL(before)(c, last - 1);
    if (taken)
        LEVEL(release)(c, taken - 1);
    else if (c->held < c->ways - 1)
        c->held++;
    else
        return 1;
    LEVEL(hold)(c, c->now - 1);
    return 0;
}

/* The same in one of many sets. */
static inline int LEVEL(lru_set)(uint64_t *way, uint64_t ways, uint64_t line) {
    uint64_t moved = line + 1;
    for (uint64_t i = 0; i < ways; i++) {
        const uint64_t here = way[i];
        way[i] = moved;
        if (here == line + 1) return 0;
        moved = here;
    }
    return 1;
}

static inline int LEVEL(fifo)(epur_cache *c, uint64_t set, uint32_t number) {
    if (c->time[number] && c->clock[set] - c->time[number] < c->ways) return 0;
    c->time[number] = ++c->clock[set];
    return 1;
}

static inline int LEVEL(belady_set)(epur_cache *c, uint64_t set, uint32_t number) {
    uint64_t *holder = c->table + set * c->ways, *taken = NULL;
    const uint64_t now = ++c->clock[set], last = c->time[number];
    c->time[number] = now;
    if (!last || last + 1 == now) return !last;
    for (uint64_t i = 0; i < c->ways - 1; i++)
        if (holder[i] <= last && (!taken || holder[i] > *taken)) taken = holder + i;
    if (taken) *taken = now - 1;
    return !taken;
}

static inline uint64_t LEVEL(set)(const epur_cache *c, uint64_t line) {
    return c->sets & (c->sets - 1) ? line % c->sets : line & (c->sets - 1);
}

int LEVEL(cache_feed)(epur_cache *c, epur_accesses *a) {
    const int axis = c->sets == 1 && c->policy != EPUR_FIFO, plain = c->sets > 1 && c->policy == EPUR_LRU;
    epur_batch b;
    int failed = axis && !c->axis ? LEVEL(pack)(c) : EPUR_DONE;
    if (!failed && !c->lines.room) failed = epur_lines_grow(&c->lines);
    if (failed) return failed;
    for (;;) {
        epur_next(a, &b, 1);
        if (!b.size) return EPUR_DONE;
        for (int i = 0; i < b.size; i++) c->requests += c->weight * (1 + b.again[i]);
        if (plain) {
            for (int i = 0; i < b.size; i++)
                if (LEVEL(lru_set)(c->table + LEVEL(set)(c, b.line[i]) * c->ways, c->ways, b.line[i]))
                    c->misses += c->weight;
            continue;
        }
        failed = epur_number(&c->lines, &b);
        const uint64_t numbers = c->lines.pages * PAGE, each = axis ? sizeof *c->last : sizeof *c->time;
        if (numbers * each + c->lines.room * sizeof(epur_entry) + 5 * c->axis > c->most_bytes)
            failed = EPUR_TOO_LARGE;
        if (failed) return failed;
        if (axis)
            failed = epur_grow((void **)&c->last, &c->last_room, numbers, sizeof *c->last);
        else
            failed = epur_grow((void **)&c->time, &c->time_room, numbers, sizeof *c->time);
        if (failed) return failed;
        if (axis) {
            for (int i = 0; i < b.size; i++) __builtin_prefetch(&c->last[b.number[i]], 1);
        } else {
            for (int i = 0; i < b.size; i++) __builtin_prefetch(&c->time[b.number[i]], 1);
        }
        for (int i = 0; i < b.size; i++) {
            const uint32_t number = b.number[i];
            int missed;
            if (axis) {
                if (c->now == c->axis && (failed = LEVEL(pack)(c))) return failed;
                missed = c->policy == EPUR_LRU ? LEVEL(lru)(c, number) : LEVEL(belady)(c, number);
                c->owner[c->now] = number;
                c->last[number] = (uint32_t)++c->now;
            } else if (c->policy == EPUR_FIFO) {
                missed = LEVEL(fifo)(c, LEVEL(set)(c, b.line[i]), number);
            } else {
                missed = LEVEL(belady_set)(c, LEVEL(set)(c, b.line[i]), number);
            }
            c->misses += missed ? c->weight : 0;
        }
    }
}
