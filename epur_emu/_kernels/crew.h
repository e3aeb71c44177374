/* Threads that share the work of one: it gives out one call after another, and each thread does its part of it. They wait in a
 * loop, as a call takes some microseconds; before long they let others run meanwhile. */
#ifndef EPUR_CREW_H
#define EPUR_CREW_H

#include <stdatomic.h>
#include <stddef.h>

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#define REST() sched_yield()
#else
#define REST() ((void)0)
#endif
#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

#define MOST_PARTS 64 /* threads of a crew */

typedef void part_of(void *call, int part, int parts);

typedef struct {
    _Alignas(64) atomic_uint calls; /* so far */
    atomic_int over;
    int parts; /* threads, the one that gives out included */
    part_of *work;
    void *call;
    _Alignas(64) atomic_int busy; /* that have not done their part */
} crew;

#define PAUSES 2000 /* before others may run */

/* One's own part, too; returns when all are done. c NULL: alone. */
static inline void share(crew *c, part_of *work, void *call) {
    if (!c || c->parts < 2) {
        work(call, 0, 1);
        return;
    }
    c->work = work, c->call = call;
    atomic_store_explicit(&c->busy, c->parts - 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->calls, 1, memory_order_release);
    work(call, 0, c->parts);
    for (int n = 0; atomic_load_explicit(&c->busy, memory_order_acquire); n++)
        if (n < PAUSES)
            PAUSE();
        else
            REST();
}

/* What the others do, until `dismiss`; part 1 and up. */
static inline void assist(crew *c, int part) {
    for (unsigned done = 0;; done++) {
        for (int n = 0; atomic_load_explicit(&c->calls, memory_order_acquire) == done; n++) {
            if (atomic_load_explicit(&c->over, memory_order_relaxed)) return;
            if (n < PAUSES)
                PAUSE();
            else
                REST();
        }
        c->work(c->call, part, c->parts);
        atomic_fetch_sub_explicit(&c->busy, 1, memory_order_release);
    }
}

static inline void dismiss(crew *c) { atomic_store_explicit(&c->over, 1, memory_order_relaxed); }

#endif
