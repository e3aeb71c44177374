/* The plain level, and what needs no level. */
#define LEVEL(name) name##_scalar
#include "stack.h"

void epur_stack_free(epur_stack *s) {
    free(s->lines.entries);
    free(s->last);
    free(s->bits);
    free(s->in_super);
    free(s->in_hyper);
    free(s->hypers);
    free(s->owner);
    free(s->counts);
    if (s->sample) free(s->sample->heap);
    free(s->sample);
    if (s->reuse) {
        free(s->reuse->cycle);
        free(s->reuse->seen);
        free(s->reuse->windows);
    }
    free(s->reuse);
}

int epur_cache_start(epur_cache *c) {
    const int table = c->sets > 1 && c->policy != EPUR_FIFO;
    if (table && !(c->table = calloc(c->sets * c->ways, 8))) return EPUR_NO_MEMORY;
    if (!(c->clock = calloc(c->sets, 8))) return EPUR_NO_MEMORY;
    return EPUR_DONE;
}

void epur_cache_free(epur_cache *c) {
    free(c->lines.entries);
    free(c->last);
    free(c->time);
    for (int level = 0; level < 6; level++) free(c->bits[level]);
    free(c->owner);
    free(c->table);
    free(c->clock);
}
