/* Streams and runs of events to single accesses in order of (cycle, component, op), window by window.
 *
 * A window is a stretch of cycles. Its accesses are collected as segments (stretches of constant strides) in order of
 * (component, op, stream or run), then placed by a stable counting sort on the cycle.
 */
#ifndef EPUR_EXPAND_H
#define EPUR_EXPAND_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { EXPAND_DONE, EXPAND_NO_MEMORY, EXPAND_CROWDED };
enum {
    LOOPS = 6,
    CYCLES = 1 << 14,   /* longest window */
    ENOUGH = 1 << 14,   /* accesses that a window should hold: its columns stay in the cache */
    SEGMENTS = 1 << 15, /* most segments of a window */
    OVERLAPPING = 1 << 20, /* most runs of a component under way at once */
    SLACK = 8           /* places behind the cycle column that may be written to */
};

typedef struct {
    int64_t cycle, address; /* of the next access */
    int64_t bytes, rank;
    int64_t left[LOOPS]; /* turns left, innermost loop first; accesses left of the innermost */
    int64_t count[LOOPS], by[LOOPS], wait[LOOPS];
    int64_t by_carry[LOOPS], wait_carry[LOOPS]; /* from the last access of the loops inside to the next turn */
    int64_t code; /* 2 component + op */
    int depth, ended;
} epur_nest;

typedef struct {
    int64_t cycle, address, bytes;        /* of the next access */
    int64_t left, turns;                  /* accesses left of this turn, 0 at the end; turns left, this one included */
    int64_t count, by, wait, jump, pause; /* of a turn; from turn to turn, first access to first */
    uint8_t op;
} epur_run;

/* Runs of one component, sorted by first cycle; count, by and wait by loop, outermost first, or NULL: single accesses. */
typedef struct {
    const int64_t *cycle, *address, *bytes, *count[2], *by[2], *wait[2];
    const uint8_t *op;
    int64_t component;
    ptrdiff_t size, at; /* runs before `at` have begun */
    epur_run *active;
    ptrdiff_t running, room;
    int more; /* whether runs behind these are still to come, none before the last one's cycle */
} epur_lane;

typedef struct {
    int64_t cycle, address, bytes, by, wait, count, code;
} epur_segment;

typedef struct {
    epur_nest *nests; /* sorted by first cycle */
    ptrdiff_t size, at;
    epur_nest *active, *saved; /* sorted by (code, rank) */
    ptrdiff_t running, room;
    epur_lane *lanes; /* sorted by component */
    ptrdiff_t lane_count;
    epur_segment *segments;
    ptrdiff_t segment_count;
    int64_t *counts; /* by cycle of the window, then where its next access goes */
    int64_t now, stop, length, total;
    int64_t *cycle, *address, *bytes;
    int32_t *component;
    uint8_t *op;
} epur_expansion;

/* Move a nest to its first access not before `cycle`. */
static void nest_seek(epur_nest *n, int64_t cycle) {
    int64_t left = cycle - n->cycle, span = 0;
    for (int l = 0; l < n->depth; l++) span += (n->count[l] - 1) * n->wait[l];
    for (int l = n->depth - 1; l >= 0 && left > 0; l--) {
        span -= (n->count[l] - 1) * n->wait[l];
        int64_t turns = n->count[l];
        if (n->wait[l]) {
            const int64_t before = left > span ? (left - span - 1) / n->wait[l] + 1 : 0;
            turns = before < turns ? before : turns;
        }
        if (turns == n->count[l]) {
            n->ended = 1;
            return;
        }
        n->left[l] -= turns;
        n->cycle += turns * n->wait[l];
        n->address += turns * n->by[l];
        left -= turns * n->wait[l];
    }
}

static inline int64_t within(int64_t cycle, int64_t wait, int64_t left, int64_t until) {
    if (cycle >= until) return 0;
    const int64_t most = until - cycle;
    if (wait == 1) return left < most ? left : most;
    if (wait == 0 || left == 1) return left;
    const int64_t reach = (most - 1) / wait + 1;
    return left < reach ? left : reach;
}

/* Behind `taken` accesses of the innermost loop. */
static inline void nest_advance(epur_nest *n, int64_t taken) {
    if (taken < n->left[0]) {
        n->left[0] -= taken;
        n->cycle += taken * n->wait[0];
        n->address += taken * n->by[0];
        return;
    }
    n->cycle += (taken - 1) * n->wait[0];
    n->address += (taken - 1) * n->by[0];
    n->left[0] = n->count[0];
    int l = 1;
    while (l < n->depth && --n->left[l] == 0) {
        n->left[l] = n->count[l];
        l++;
    }
    if (l >= n->depth) {
        n->ended = 1;
        return;
    }
    n->cycle += n->wait_carry[l];
    n->address += n->by_carry[l];
}

/* Add a segment that begins in the window; 0 if there are too many. */
static inline int segment_add(epur_expansion *e, int64_t code, int64_t cycle, int64_t address, int64_t bytes,
                              int64_t by, int64_t wait, int64_t count) {
    if (e->segment_count == SEGMENTS || count > 4 * ENOUGH - e->total) return 0;
    epur_segment *s = &e->segments[e->segment_count++];
    s->cycle = cycle, s->address = address, s->bytes = bytes;
    s->by = by, s->wait = wait, s->count = count, s->code = code;
    e->total += count;
    int64_t *c = e->counts + (cycle - e->now);
    if (wait == 0)
        *c += count;
    else
        for (int64_t k = 0; k < count; k++) c[k * wait]++;
    return 1;
}

/* Run i of a lane, as it begins. */
static inline epur_run run_of(const epur_lane *a, ptrdiff_t i) {
    epur_run r = {a->cycle[i], a->address[i], a->bytes[i], 1, 1, 1, 0, 0, 0, 0, a->op[i]};
    if (!a->count[0]) return r;
    r.turns = a->count[0][i], r.jump = a->by[0][i], r.pause = a->wait[0][i];
    r.count = a->count[1][i], r.by = a->by[1][i], r.wait = a->wait[1][i];
    if (r.count == 1) r.count = r.turns, r.by = r.jump, r.wait = r.pause, r.turns = 1;
    r.left = r.count;
    return r;
}

/* Behind `taken` accesses of this turn. */
static inline void run_advance(epur_run *r, int64_t taken) {
    if (taken < r->left || r->turns == 1) {
        r->left -= taken, r->cycle += taken * r->wait, r->address += taken * r->by;
        return;
    }
    const int64_t done = r->count - r->left;
    r->cycle += r->pause - done * r->wait, r->address += r->jump - done * r->by;
    r->left = r->count, r->turns--;
}

/* To the first access not before `until`. */
static inline void run_seek(epur_run *r, int64_t until) {
    if (r->turns > 1 && r->cycle < until) {
        run_advance(r, within(r->cycle, r->wait, r->left, until));
        if (r->cycle >= until) return;
        /* A turn begins here. Those whose successor begins before `until` are over, as turns do not overlap. */
        const int64_t begun = within(r->cycle, r->pause, r->turns, until), over = begun - 1;
        r->cycle += over * r->pause, r->address += over * r->jump, r->turns -= over;
    }
    while (r->left && r->cycle < until) run_advance(r, within(r->cycle, r->wait, r->left, until));
}

/* Accesses of one run before `until`. */
static inline int run_collect(epur_expansion *e, int64_t code, epur_run r, int64_t until) {
    while (r.left && r.cycle < until) {
        const int64_t count = within(r.cycle, r.wait, r.left, until);
        if (!segment_add(e, code, r.cycle, r.address, r.bytes, r.by, r.wait, count)) return 0;
        run_advance(&r, count);
    }
    return 1;
}

/* Accesses of a component's runs with this op before `until`; the runs stay as they are. */
static int lane_collect(epur_expansion *e, const epur_lane *a, int op, int64_t until) {
    const int64_t code = 2 * a->component + op;
    for (ptrdiff_t i = 0; i < a->running; i++)
        if (a->active[i].op == op && !run_collect(e, code, a->active[i], until)) return 0;
    for (ptrdiff_t i = a->at; i < a->size && a->cycle[i] < until; i++)
        if (a->op[i] == op && !run_collect(e, code, run_of(a, i), until)) return 0;
    return 1;
}

/* Make room for one more run under way. */
static int room_for_one(epur_lane *a) {
    if (a->running < a->room) return EXPAND_DONE;
    if (a->room == OVERLAPPING) return EXPAND_CROWDED;
    const ptrdiff_t room = a->room ? 4 * a->room : 64;
    epur_run *made = realloc(a->active, (size_t)room * sizeof *made);
    if (!made) return EXPAND_NO_MEMORY;
    a->active = made, a->room = room;
    return EXPAND_DONE;
}

/* Forget what was before `until`; runs that have begun and not ended become active. */
static int lane_commit(epur_lane *a, int64_t until) {
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < a->running; i++) {
        epur_run r = a->active[i];
        run_seek(&r, until);
        if (r.left) a->active[kept++] = r;
    }
    a->running = kept;
    for (; a->at < a->size && a->cycle[a->at] < until; a->at++) {
        if (!a->count[0]) continue;
        epur_run r = run_of(a, a->at);
        run_seek(&r, until);
        if (!r.left) continue;
        const int failed = room_for_one(a);
        if (failed) return failed;
        a->active[a->running++] = r;
    }
    return EXPAND_DONE;
}

static inline int nest_before(const epur_nest *a, const epur_nest *b) {
    return a->code != b->code ? a->code < b->code : a->rank < b->rank;
}

static int nest_compare(const void *a, const void *b) { return nest_before(a, b) ? -1 : 1; }

static void nests_copy(epur_nest *to, const epur_nest *from, ptrdiff_t count) {
    if (count) memcpy(to, from, (size_t)count * sizeof *to);
}

/* Nests that begin before `until` become active. */
static int nests_enter(epur_expansion *e, int64_t until) {
    const ptrdiff_t before = e->running;
    for (; e->at < e->size && e->nests[e->at].cycle < until; e->at++) {
        if (e->running == e->room) {
            const ptrdiff_t room = e->room ? 2 * e->room : 64;
            epur_nest *made = realloc(e->active, (size_t)room * sizeof *made);
            if (made) e->active = made;
            epur_nest *also = realloc(e->saved, (size_t)room * sizeof *also);
            if (also) e->saved = also;
            if (!made || !also) return EXPAND_NO_MEMORY;
            e->room = room;
        }
        e->active[e->running++] = e->nests[e->at];
    }
    if (e->running > before) qsort(e->active, (size_t)e->running, sizeof *e->active, nest_compare);
    return EXPAND_DONE;
}

/* Segments of all accesses before `until`, counted by cycle; 0 if there are too many. Nests move on. */
static int collect(epur_expansion *e, int64_t until) {
    memset(e->counts, 0, (size_t)(until - e->now) * sizeof *e->counts);
    e->segment_count = 0, e->total = 0;
    ptrdiff_t lane = 0, i = 0;
    int op = 0;
    while (i < e->running || lane < e->lane_count) {
        const int64_t of_nest = i < e->running ? e->active[i].code : INT64_MAX;
        const int64_t of_lane = lane < e->lane_count ? 2 * e->lanes[lane].component + op : INT64_MAX;
        if (of_nest <= of_lane) {
            epur_nest *n = &e->active[i++];
            while (!n->ended) {
                const int64_t count = within(n->cycle, n->wait[0], n->left[0], until);
                if (!count) break;
                if (!segment_add(e, n->code, n->cycle, n->address, n->bytes, n->by[0], n->wait[0], count)) return 0;
                nest_advance(n, count);
            }
        } else {
            if (!lane_collect(e, &e->lanes[lane], op, until)) return 0;
            lane += op;
            op = 1 - op;
        }
    }
    return 1;
}

/* Write the window's accesses from place `at` on. */
static void place(epur_expansion *e, int64_t until, ptrdiff_t at) {
    int64_t *restrict next = e->counts, *restrict address = e->address, *restrict bytes = e->bytes;
    int64_t *restrict cycle = e->cycle;
    int32_t *restrict component = e->component;
    uint8_t *restrict op = e->op;
    int64_t to = at;
    for (int64_t c = 0; c < until - e->now; c++) {
        const int64_t count = next[c];
        next[c] = to;
        int64_t *row = cycle + to;
        /* Overshoots by less than SLACK; the cycles behind write over it. */
        for (int64_t k = 0; k < count; k += SLACK)
            for (int j = 0; j < SLACK; j++) row[k + j] = e->now + c;
        to += count;
    }
    for (ptrdiff_t i = 0; i < e->segment_count; i++) {
        const epur_segment s = e->segments[i];
        const int32_t which = (int32_t)(s.code >> 1);
        const uint8_t what = (uint8_t)(s.code & 1);
        int64_t *c = next + (s.cycle - e->now);
        if (s.wait == 0) {
            const int64_t p = *c;
            *c += s.count;
            for (int64_t k = 0; k < s.count; k++) {
                address[p + k] = s.address + k * s.by;
                bytes[p + k] = s.bytes;
                component[p + k] = which;
                op[p + k] = what;
            }
            continue;
        }
        int64_t here = s.address;
        for (int64_t k = 0; k < s.count; k++, c += s.wait, here += s.by) {
            const int64_t p = (*c)++;
            address[p] = here;
            bytes[p] = s.bytes;
            component[p] = which;
            op[p] = what;
        }
    }
}

static inline ptrdiff_t one_stretch(epur_expansion *e, int64_t code, int64_t address, int64_t by, int64_t bytes,
                                    int64_t count, ptrdiff_t at, ptrdiff_t room) {
    const ptrdiff_t taken = count < room - at ? count : room - at;
    for (ptrdiff_t k = 0; k < taken; k++) {
        e->cycle[at + k] = e->now;
        e->address[at + k] = address + k * by;
        e->bytes[at + k] = bytes;
        e->component[at + k] = (int32_t)(code >> 1);
        e->op[at + k] = (uint8_t)(code & 1);
    }
    return taken;
}

/* Accesses of the cycle `now` alone, in order, up to `room`; the cycle is done if it is not full. */
static ptrdiff_t one_cycle(epur_expansion *e, ptrdiff_t at, ptrdiff_t room) {
    ptrdiff_t lane = 0, i = 0;
    int op = 0;
    while ((i < e->running || lane < e->lane_count) && at < room) {
        const int64_t of_nest = i < e->running ? e->active[i].code : INT64_MAX;
        const int64_t of_lane = lane < e->lane_count ? 2 * e->lanes[lane].component + op : INT64_MAX;
        if (of_nest <= of_lane) {
            epur_nest *n = &e->active[i++];
            while (!n->ended && n->cycle == e->now && at < room) {
                const int64_t count = within(n->cycle, n->wait[0], n->left[0], e->now + 1);
                const ptrdiff_t taken = one_stretch(e, n->code, n->address, n->by[0], n->bytes, count, at, room);
                nest_advance(n, taken);
                at += taken;
            }
            continue;
        }
        epur_lane *a = &e->lanes[lane];
        for (ptrdiff_t k = 0; k < a->running && at < room; k++) {
            epur_run *r = &a->active[k];
            while (r->op == op && r->cycle == e->now && r->left && at < room) {
                const int64_t count = within(r->cycle, r->wait, r->left, e->now + 1);
                const ptrdiff_t taken = one_stretch(e, of_lane, r->address, r->by, r->bytes, count, at, room);
                run_advance(r, taken);
                at += taken;
            }
        }
        lane += op;
        op = 1 - op;
    }
    return at;
}

/* Single accesses that begin in the cycle `now` become runs, so that they can be taken one by one. */
static int lanes_open(epur_expansion *e) {
    for (ptrdiff_t lane = 0; lane < e->lane_count; lane++) {
        epur_lane *a = &e->lanes[lane];
        for (; a->at < a->size && a->cycle[a->at] <= e->now; a->at++) {
            const int failed = room_for_one(a);
            if (failed) return failed;
            a->active[a->running++] = run_of(a, a->at);
        }
    }
    return EXPAND_DONE;
}

/* The cycle of the next access, or `stop`. */
static int64_t upcoming(const epur_expansion *e) {
    int64_t next = e->stop;
    if (e->at < e->size && e->nests[e->at].cycle < next) next = e->nests[e->at].cycle;
    for (ptrdiff_t i = 0; i < e->running; i++)
        if (!e->active[i].ended && e->active[i].cycle < next) next = e->active[i].cycle;
    for (ptrdiff_t lane = 0; lane < e->lane_count; lane++) {
        const epur_lane *a = &e->lanes[lane];
        if (a->at < a->size && a->cycle[a->at] < next) next = a->cycle[a->at];
        for (ptrdiff_t i = 0; i < a->running; i++)
            if (a->active[i].left && a->active[i].cycle < next) next = a->active[i].cycle;
    }
    return next;
}

static void nests_drop(epur_expansion *e) {
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < e->running; i++)
        if (!e->active[i].ended) {
            if (kept < i) e->active[kept] = e->active[i];
            kept++;
        }
    e->running = kept;
}

static int commit(epur_expansion *e, int64_t until) {
    nests_drop(e);
    for (ptrdiff_t lane = 0; lane < e->lane_count; lane++) {
        const int failed = lane_commit(&e->lanes[lane], until);
        if (failed) return failed;
    }
    e->now = until;
    return EXPAND_DONE;
}

/* The next window's accesses, from place *at on, at most up to `room`. Nothing is known of cycles from `known` on. */
static int window(epur_expansion *e, ptrdiff_t *at, ptrdiff_t room, int64_t known) {
    int failed;
    const int64_t next = upcoming(e);
    if (next >= known) {
        e->now = known;
        return EXPAND_DONE;
    }
    if (next > e->now) e->now = next;
    int64_t length = e->length < known - e->now ? e->length : known - e->now;
    int64_t until = e->now + length;
    if ((failed = nests_enter(e, until))) return failed;
    nests_copy(e->saved, e->active, e->running);
    int whole;
    while (!(whole = collect(e, until)) && until > e->now + 1) {
        nests_copy(e->active, e->saved, e->running);
        e->length = length = (length + 3) / 4;
        until = e->now + length;
    }
    const int64_t total = e->total;
    if (whole && total > room - *at) {
        int64_t sum = 0, cut = e->now;
        while (sum + e->counts[cut - e->now] <= room - *at) sum += e->counts[cut++ - e->now];
        nests_copy(e->active, e->saved, e->running);
        until = cut;
        if (cut > e->now) collect(e, until);
    } else if (!whole) {
        nests_copy(e->active, e->saved, e->running);
        until = e->now;
    } else if (total < ENOUGH / 2 && length == e->length) {
        e->length = 2 * e->length < CYCLES ? 2 * e->length : CYCLES;
    } else if (total > ENOUGH && length > 1) {
        e->length = length / 2;
    }
    if (until == e->now) { /* more in one cycle than there is room for */
        if ((failed = lanes_open(e))) return failed;
        *at = one_cycle(e, *at, room);
        nests_drop(e);
        return *at == room ? EXPAND_DONE : commit(e, e->now + 1);
    }
    place(e, until, *at);
    *at += e->total;
    return commit(e, until);
}

static void expansion_free(epur_expansion *e) {
    for (ptrdiff_t lane = 0; lane < e->lane_count; lane++) free(e->lanes[lane].active);
    free(e->lanes), free(e->nests), free(e->active), free(e->saved), free(e->segments), free(e->counts);
}

#endif
