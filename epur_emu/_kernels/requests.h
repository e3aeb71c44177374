/* From accesses to requests for lines, and from lines to small numbers.
 *
 * A line is (address >> shift) * components + rank of the component, so that the components' addresses stay apart.
 * Numbers are dense: a directory (open addressing) maps 64 neighbouring lines to a page, and a line's number is
 * 64 page + its place in it. Memory follows the footprint, not the number of accesses.
 */
#ifndef EPUR_REQUESTS_H
#define EPUR_REQUESTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { EPUR_DONE, EPUR_NO_MEMORY, EPUR_TOO_LARGE };
enum { PAGE = 64, BATCH = 256 };

typedef struct {
    const int64_t *address, *bytes, *cycle;
    const int32_t *component;
    const int64_t *rank; /* by component */
    int64_t components;  /* how many ranks */
    int shift;
    ptrdiff_t size;
    ptrdiff_t at;  /* next access */
    uint64_t part; /* next line of that access, counted from its first */
} epur_accesses;

typedef struct {
    uint64_t line[BATCH];
    uint64_t again[BATCH]; /* further requests for the same line, one behind the other */
    int64_t cycle[BATCH];
    uint32_t number[BATCH];
    int size;
} epur_batch;

typedef struct {
    uint64_t page; /* line / 64 + 1; 0 is empty */
    uint32_t place;
} epur_entry;

typedef struct {
    epur_entry *entries;
    uint64_t room, pages; /* room is a power of two */
    int shift;
} epur_lines;

static inline uint64_t epur_slot(const epur_lines *l, uint64_t page) {
    return (page * UINT64_C(0x9e3779b97f4a7c15)) >> l->shift;
}

/* The next requests; `fold` joins neighbours for one line. */
static inline void epur_next(epur_accesses *a, epur_batch *b, int fold) {
    const int shift = a->shift;
    const uint64_t components = (uint64_t)a->components;
    ptrdiff_t at = a->at;
    uint64_t part = a->part;
    int n = 0;
    for (; at < a->size; at++) {
        const uint64_t address = (uint64_t)a->address[at];
        const uint64_t last = (address + (uint64_t)a->bytes[at] - 1) >> shift;
        const uint64_t rank = (uint64_t)a->rank[a->component[at]];
        uint64_t first = (address >> shift) + part;
        for (; first <= last; first++, part++) {
            const uint64_t line = first * components + rank;
            if (fold && n && b->line[n - 1] == line) {
                b->again[n - 1]++;
                continue;
            }
            if (n == BATCH) goto full;
            b->line[n] = line;
            b->again[n] = 0;
            if (a->cycle) b->cycle[n] = a->cycle[at];
            n++;
        }
        part = 0;
    }
full:
    a->at = at;
    a->part = part;
    b->size = n;
}

static inline int epur_lines_grow(epur_lines *l) {
    const epur_lines old = *l;
    const uint64_t room = old.room ? 2 * old.room : 1024;
    epur_entry *made = calloc(room, sizeof *made);
    if (!made) return EPUR_NO_MEMORY;
    l->entries = made;
    l->room = room;
    l->shift = 64 - __builtin_ctzll(room);
    for (uint64_t i = 0; i < old.room; i++) {
        if (!old.entries[i].page) continue;
        uint64_t at = epur_slot(l, old.entries[i].page);
        while (made[at].page) at = (at + 1) & (room - 1);
        made[at] = old.entries[i];
    }
    free(old.entries);
    return EPUR_DONE;
}

/* The number of each line of a batch; new pages get the next places. */
static inline int epur_number(epur_lines *l, epur_batch *b) {
    uint64_t before = 0;
    uint32_t place = 0;
    if (l->room > 4096)
        for (int i = 0; i < b->size; i++)
            __builtin_prefetch(&l->entries[epur_slot(l, b->line[i] / PAGE + 1)]);
    for (int i = 0; i < b->size; i++) {
        const uint64_t page = b->line[i] / PAGE + 1;
        if (page != before) {
            if (2 * l->pages >= l->room && epur_lines_grow(l)) return EPUR_NO_MEMORY;
            uint64_t at = epur_slot(l, page);
            while (l->entries[at].page && l->entries[at].page != page) at = (at + 1) & (l->room - 1);
            if (!l->entries[at].page) {
                if (l->pages == UINT32_MAX / PAGE) return EPUR_TOO_LARGE;
                l->entries[at].page = page;
                l->entries[at].place = (uint32_t)l->pages++;
            }
            place = l->entries[at].place;
            before = page;
        }
        b->number[i] = place * PAGE + (uint32_t)(b->line[i] % PAGE);
    }
    return EPUR_DONE;
}

/* Make room for `need` elements in an array of `*room`, the new ones zero. */
static inline int epur_grow(void **array, uint64_t *room, uint64_t need, size_t each) {
    if (need <= *room) return EPUR_DONE;
    uint64_t more = *room + *room / 4;
    if (more < need) more = need;
    if (more < 1024) more = 1024;
    void *made = realloc(*array, more * each);
    if (!made) return EPUR_NO_MEMORY;
    memset((char *)made + *room * each, 0, (more - *room) * each);
    *array = made;
    *room = more;
    return EPUR_DONE;
}

#endif
