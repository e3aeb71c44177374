/* Stack distances and caches: what each CPU level gives; `stack.h` and `caches.h` say how. */
#ifndef EPUR_STACK_API_H
#define EPUR_STACK_API_H

#include "requests.h"

/* Sampled distances are kept in bins: exact below FINE, then FINE for each doubling. */
enum { FINE = 256, BINS = FINE * 57, GROUPS = 8, HASH_BITS = 24, DOUBLINGS = 64 };

typedef struct {
    double counts[GROUPS][BINS]; /* references by group of lines and bin of distance, over their sampling rate */
    double cold[GROUPS];         /* the same, first ones of a line */
    uint32_t threshold;          /* lines whose hash is below are sampled */
    uint64_t most;               /* lines kept at most; 0 is no bound */
    uint64_t *heap;              /* (hash, number) of those kept, largest first; used if there is a bound */
    uint64_t kept;
} epur_sample;

typedef struct {
    uint64_t *cycle; /* by number: of the last access, plus one */
    uint64_t cycle_room;
    uint64_t *seen; /* by number: window of the last access, plus one */
    uint64_t seen_room;
    uint64_t times[DOUBLINGS]; /* references by floor(log2(cycles since the last)), 0 and 1 apart */
    uint64_t *windows;         /* lines touched in each */
    uint64_t window, count;    /* cycles of one, and how many */
} epur_reuse;

typedef struct {
    epur_lines lines;
    uint32_t *last; /* by number: slot of the last access, plus one; 0 is none */
    uint64_t last_room;
    uint64_t *bits; /* by slot: whether it is the last access of a line */
    uint16_t *in_super;
    uint32_t *in_hyper, *hypers;
    uint32_t *owner; /* by slot: number of the line */
    uint64_t axis, now, live;
    uint64_t *counts; /* references by distance */
    uint64_t bins;
    uint64_t cold, requests;
    uint64_t weight; /* what each reference counts for */
    uint64_t most_bytes;
    epur_sample *sample; /* or none */
    epur_reuse *reuse;   /* or none */
} epur_stack;

enum { EPUR_LRU, EPUR_FIFO, EPUR_BELADY };

typedef struct {
    int policy;
    uint64_t sets, ways;
    epur_lines lines;
    uint64_t misses, requests, weight;
    uint64_t most_bytes;
    /* One set: a time axis of slots, as in the stack; FIFO needs only `time`. */
    uint32_t *last;
    uint64_t last_room;
    uint64_t *time; /* by number: FIFO's insertion, or the time within its set for Belady's sets */
    uint64_t time_room;
    uint64_t *bits[6]; /* slots that hold; each level above tells which words of the one below are not empty */
    uint32_t *owner;
    uint64_t axis, now, held, tail;
    /* Many sets: `ways` entries for each, most recent first. */
    uint64_t *table, *clock;
} epur_cache;

#define EPUR_STACK_API(level)                                          \
    int stack_feed_##level(epur_stack *, epur_accesses *);             \
    int cache_feed_##level(epur_cache *, epur_accesses *);

EPUR_STACK_API(scalar)
#if defined(__x86_64__)
EPUR_STACK_API(avx2)
#endif

void epur_stack_free(epur_stack *);
int epur_cache_start(epur_cache *);
void epur_cache_free(epur_cache *);

#endif
