/* A pass in hardware order through models of its memories: every access is performed and logged where it happens.
 *
 * The models hold values: of h and the outputs the numbers themselves, of weights and stored sums which ones they are, of
 * x in the input buffers of which step it is, once it has left its memory with the right numbers. What each read of the DPUs
 * delivers is compared with what the arithmetic took; `wrong` counts the differences.
 */
#include <stdlib.h>
#include <string.h>

#include "probe_api.h"

static epur_row *log_new(epur_log *g, epur_site *s) {
    if (g->size == g->room) {
        const ptrdiff_t room = g->room ? 2 * g->room : 4096;
        epur_row *made = realloc(g->rows, (size_t)room * sizeof *made);
        if (!made) {
            g->failed = 1;
            g->size = 0;
            return g->rows;
        }
        g->rows = made, g->room = room;
    }
    s->row = g->size;
    return &g->rows[g->size++];
}

static int same(epur_loop a, epur_loop b) { return a.count == b.count && a.by == b.by && a.wait == b.wait; }

/* Accesses as they were performed, in two nested loops; turns of the outer one do not overlap. Turns of one kind that follow
 * one another share a row, whoever performed them. `lane` is a role, ROLES further for each sequence. */
static void accesses(epur_log *g, int64_t component, int op, int64_t lane, int64_t cycle, int64_t address, int64_t bytes,
                     epur_loop outer, epur_loop inner) {
    if (inner.count == 1 || (outer.by == inner.count * inner.by && outer.wait == inner.count * inner.wait)) {
        if (inner.count == 1) inner.by = outer.by, inner.wait = outer.wait;
        inner.count *= outer.count, outer.count = 1;
    }
    if (inner.count == 1) inner.by = inner.wait = 0;
    if (outer.count == 1) outer.by = outer.wait = 0;
    epur_site *s = &g->sites[(component * 2 + op) * g->lanes + lane];
    const epur_loop next = {2, address - s->address, cycle - s->cycle};
    g->accesses += outer.count * inner.count;
    s->cycle = cycle + (outer.count - 1) * outer.wait, s->address = address + (outer.count - 1) * outer.by;
    if (s->row >= 0) {
        epur_row *r = &g->rows[s->row];
        const epur_loop turn = {r->count[1], r->by[1], r->wait[1]}, before = {2, r->by[0], r->wait[0]};
        const epur_loop own = {2, outer.by, outer.wait};
        if (r->bytes == bytes && same(turn, inner) && next.wait >= (inner.count - 1) * inner.wait &&
            (r->count[0] == 1 || same(before, next)) && (outer.count == 1 || same(own, next))) {
            r->count[0] += outer.count, r->by[0] = next.by, r->wait[0] = next.wait;
            return;
        }
    }
    epur_row *made = log_new(g, s);
    if (g->failed) return;
    *made = (epur_row){component, cycle, address, bytes, op, {outer.count, inner.count}, {outer.by, inner.by},
                       {outer.wait, inner.wait}};
}

/* The same in one loop. */
static inline void events(epur_log *g, int64_t component, int op, int64_t lane, int64_t cycle, int64_t address,
                          int64_t bytes, int64_t count, int64_t by, int64_t wait) {
    accesses(g, component, op, lane, cycle, address, bytes, (epur_loop){1, 0, 0}, (epur_loop){count, by, wait});
}

/* Accesses k < count at cycle + floor(k size / pace) every. */
static void paced(epur_log *g, int64_t component, int op, int64_t lane, int64_t cycle, int64_t address, int64_t size,
                  int64_t count, int64_t pace, int64_t every) {
    if (size % pace == 0) {
        events(g, component, op, lane, cycle, address, size, count, size, size / pace * every);
        return;
    }
    /* Several in a cycle, as many in each but the last if they are a burst. */
    const int64_t together = pace / size, full = pace % size ? 0 : count / together * together;
    if (full)
        accesses(g, component, op, lane, cycle, address, size, (epur_loop){full / together, pace, every},
                 (epur_loop){together, size, 0});
    for (int64_t k = full, many; k < count; k += many) {
        const int64_t turn = k * size / pace;
        for (many = 1; k + many < count && (k + many) * size / pace == turn;) many++;
        events(g, component, op, lane, cycle + turn * every, address + k * size, size, many, size, 0);
    }
}

static inline int64_t bursts_of(const epur_probe *p, int64_t bytes) { return (bytes + p->burst - 1) / p->burst; }

/* Bursts of a row of so many sub-vectors in all gates. */
static int64_t row_bursts(const epur_probe *p, int64_t subs) {
    int64_t sum = 0;
    for (int q = 0; q < 4; q++) sum += bursts_of(p, subs * p->sw[q]);
    return sum;
}

/* From DRAM to a buffer in sub-vectors; `turn` tells fetches that take turns apart. Returns the bursts. */
static int64_t fetch(epur_probe *p, int64_t cycle, int64_t source, int64_t total, const int64_t *targets, int count,
                     int role, int64_t address, int64_t size, int turn) {
    const int64_t bursts = bursts_of(p, total);
    events(p->log, p->dram, READ, FETCHED + turn, cycle, source, p->burst, bursts, p->burst, 1);
    for (int k = 0; k < count; k++)
        paced(p->log, targets[k], WRITE, role, cycle, address, size, total / size, p->burst, 1);
    return bursts;
}

static inline int64_t time_of(const epur_probe *p, const epur_member *m, int64_t t) {
    return p->reverse ? m->steps - 1 - t : t;
}

/* The mark of step t in order of evaluation; the initial state is of step -1. */
static inline uint8_t mark(int64_t t) { return (uint8_t)(1 + (t + 1) % 255); }

static inline int marked(const uint8_t *marks, int64_t count, uint8_t expected) {
    uint8_t wrong = 0;
    for (int64_t e = 0; e < count; e++) wrong |= marks[e] ^ expected;
    return wrong == 0;
}

static int holds_cell(const epur_probe *p, int gate) { return gate == 2 || (p->peepholes && gate < 2); }

/* Biases and peepholes; returns the bursts. */
static int64_t probe_parameters(epur_probe *p, int64_t begin) {
    int64_t moved = 0;
    for (int part = 0; part < (p->peepholes ? 2 : 1); part++)
        for (int q = 0; q < 4; q++) {
            if (part && q == 2) continue;
            const int64_t size = p->nh * p->sb[q], address = p->capacity + p->bank[q] + part * size;
            moved += fetch(p, begin + moved, p->params + moved * p->burst, size, &p->weights[q], 1, FETCHED, address,
                           p->sb[q], q);
        }
    return moved;
}

/* Whether a memory of `size` numbers has `count` of them from `from` on; a plan may lead beyond it. */
static inline int within(int64_t size, int64_t from, int64_t count) { return from >= 0 && from <= size - count; }

/* `count` numbers from `from` on come out of a memory of so many; none where a plan leads beyond it. */
static void taken(epur_probe *p, float *to, const float *memory, int64_t size, int64_t from, int64_t count) {
    if (within(size, from, count))
        memcpy(to, memory + from, (size_t)count * sizeof *to);
    else
        p->wrong++;
}

/* Whether these are the numbers that the arithmetic took. */
static inline void compare(epur_probe *p, const float *found, const float *wanted, int64_t count) {
    p->wrong += memcmp(found, wanted, (size_t)count * sizeof *wanted) != 0;
}

/* The initial state of a sequence, behind `bursts` on the channel; h goes to `h_at`, c to `c_at`. */
static void probe_state(epur_probe *p, int64_t member, int64_t begin, int64_t bursts, int64_t h_at, int64_t c_at) {
    epur_member *m = &p->members[member];
    epur_log *g = p->log;
    int64_t holders[4];
    int count = 0;
    for (int q = 0; q < 4; q++)
        if (holds_cell(p, q)) holders[count++] = p->inputs_of[q];
    const int kept = p->initial == INITIAL_KEPT;
    const int64_t numbers = p->nh * p->width;
    if (kept)
        taken(p, m->buffer + h_at / p->xe, p->out, p->out_size, (m->state - p->y_base) / p->ye, numbers);
    else
        memcpy(m->buffer + h_at / p->xe, m->initial, (size_t)numbers * sizeof *m->initial);
    memset(m->stamps + h_at / p->xe, mark(-1), (size_t)(p->nh * p->width));
    h_at += member * p->region, c_at += member * p->region;
    const int64_t lane = member * ROLES;
    if (p->initial == INITIAL_DRAM) {
        const int64_t size = p->nh * p->sx;
        bursts += fetch(p, begin + bursts, m->state, size, p->inputs_of, 4, OF_H, h_at, p->sx, 0);
        fetch(p, begin + bursts, m->state + bursts_of(p, size) * p->burst, p->nh * p->sc, holders, count, CELL, c_at, p->sc, 0);
        return;
    }
    if (kept) events(g, p->mid, READ, lane + OF_H, begin, m->state, p->sy, p->nh, p->sy, 1);
    for (int q = 0; q < 4; q++) events(g, p->inputs_of[q], WRITE, lane + OF_H, begin, h_at, p->sx, p->nh, p->sx, 1);
    if (kept) begin += p->nh, events(g, p->mid, READ, lane + CELL, begin, m->state + p->nh * p->sy, p->sc, p->nh, p->sc, 1);
    for (int k = 0; k < count; k++) events(g, holders[k], WRITE, lane + CELL, begin, c_at, p->sc, p->nh, p->sc, 1);
}

/* The MUs' accesses for `count` neurons from k on, their sums there at `done` and every `every` cycles, but for h's way to
 * the input buffers; returns the cycle in which the first h is written. */
static int64_t multifunction(epur_probe *p, int64_t member, int64_t k, int64_t count, int64_t done, int64_t every,
                             int64_t c_at, int64_t y_at, const float *h, int turn) {
    epur_log *g = p->log;
    const int64_t arrival = done + p->tc + p->link, out = done + p->z, c = c_at + k * p->ce, y = y_at + k * p->ye;
    const int64_t lane = member * ROLES;
    for (int q = 0; q < 4; q++) {
        const int64_t be = p->be[q], bias = p->capacity + p->bank[q] + k * be, peephole = bias + p->nh * p->sb[q];
        if (p->peepholes && q < 2) {
            events(g, p->weights[q], READ, lane + PEEPHOLE, done, peephole, be, count, be, every);
            events(g, p->inputs_of[q], READ, lane + CELL, done, c, p->ce, count, p->ce, every);
        }
        events(g, p->weights[q], READ, lane + BIAS, done + (q < 2 ? p->p : 0), bias, be, count, be, every);
        if (p->peepholes && q == 3)
            events(g, p->weights[q], READ, lane + PEEPHOLE, arrival, peephole, be, count, be, every);
        if (q == 2) events(g, p->inputs_of[q], READ, lane + CELL, done + p->tm + 1, c, p->ce, count, p->ce, every);
        if (holds_cell(p, q))
            events(g, p->inputs_of[q], WRITE, lane + CELL, q == 2 ? done + p->tc : arrival, c, p->ce, count, p->ce, every);
    }
    if (p->kept >= 0)
        events(g, p->mid, WRITE, lane + CELL, arrival, p->kept + k * p->ce, p->ce, count, p->ce, every);
    events(g, p->mid, WRITE, lane + OUTPUT_H + turn, out, y, p->ye, count, p->ye, every);
    const int64_t place = (y - p->y_base) / p->ye;
    if (within(p->out_size, place, count))
        memcpy(p->out + place, h, (size_t)count * sizeof *h);
    else
        p->wrong++;
    return out;
}

/* Units of row k of a matrix are written to a buffer of `size` units, or read. */
static inline void put(epur_probe *p, uint32_t *held, int64_t size, int64_t at, int64_t tag, int64_t k, int64_t units) {
    if (!within(size, at, units)) {
        p->wrong++;
        return;
    }
    for (int64_t u = 0; u < units; u++) held[at + u] = (uint32_t)(tag + k * units + u);
}

static inline void check(epur_probe *p, const uint32_t *held, int64_t size, int64_t at, int64_t tag, int64_t k,
                         int64_t units) {
    const uint32_t first = (uint32_t)(tag + k * units);
    uint32_t wrong = 0;
    if (!within(size, at, units)) {
        p->wrong++;
        return;
    }
    for (int64_t u = 0; u < units; u++) wrong |= held[at + u] ^ (first + (uint32_t)u);
    p->wrong += wrong != 0;
}

/* Rows of one gate's weights, `count` from row k on which lie from slot `lies` on, are read: `subs` sub-vectors of each, one
 * every `wait` cycles, a row every `every`. */
static void read_weights(epur_probe *p, int q, int64_t lane, int64_t tag, int64_t k, int64_t lies, int64_t count,
                         int64_t subs, int64_t cycle, int64_t every, int64_t wait) {
    const int64_t size = p->sw[q], row = subs * size, address = p->matrix[q] + lies * row;
    for (int64_t j = 0; j < count; j++)
        check(p, p->held[q], p->held_size, (address + j * row) / p->width, tag, k + j, row / p->width);
    accesses(p->log, p->weights[q], READ, lane, cycle, address, size, (epur_loop){count, row, every},
             (epur_loop){subs, size, wait});
}

/* Row k of a matrix comes from DRAM to slot `lies`, gate by gate; returns the bursts. */
static int64_t fetch_row(epur_probe *p, int64_t cycle, int64_t source, int64_t tag, int64_t k, int64_t lies, int64_t subs) {
    int64_t moved = 0;
    for (int q = 0; q < 4; q++) {
        const int64_t size = subs * p->sw[q], address = p->matrix[q] + lies * size;
        put(p, p->held[q], p->held_size, address / p->width, tag, k, size / p->width);
        moved += fetch(p, cycle + moved, source + moved * p->burst, size, &p->weights[q], 1, FETCHED, address, p->sw[q], q);
    }
    return moved;
}

/* An operand's sub-vectors at `from` (of a sequence's part of the buffers) are read by all CUs, `times` times. */
static void log_operand(epur_probe *p, int64_t member, int role, int64_t cycle, int64_t from, int64_t times, int64_t every,
                        int64_t subs, int64_t wait) {
    for (int q = 0; q < 4; q++)
        accesses(p->log, p->inputs_of[q], READ, member * ROLES + role, cycle, member * p->region + from, p->sx,
                 (epur_loop){times, 0, every}, (epur_loop){subs, p->sx, wait});
}

/* What one such read finds. */
static inline void read_operand(epur_probe *p, const epur_member *m, int64_t from, int64_t elements, uint8_t expected) {
    p->wrong += !marked(m->stamps + from / p->xe, elements, expected);
}

/* x of a true time step leaves a memory, and the buffers have it. */
static void receive_x(epur_probe *p, epur_member *m, const float *memory, int64_t size, int64_t from, int64_t t) {
    const int64_t numbers = p->nx * p->width;
    if (within(size, from, numbers))
        compare(p, memory + from, m->operands + time_of(p, m, t) * p->inputs, p->inputs);
    else
        p->wrong++;
    memset(m->stamps, mark(t), (size_t)numbers);
}

/* x of step t comes to the input buffers, a sub-vector every `wait` cycles. */
static void bring_x(epur_probe *p, int64_t member, int64_t t, int64_t cycle, int64_t wait) {
    epur_member *m = &p->members[member];
    epur_log *g = p->log;
    const int64_t lane = member * ROLES, true_t = time_of(p, m, t), address = m->x + true_t * p->x_pitch;
    const int64_t numbers = p->nx * p->width;
    if (p->x_from == FROM_MEMORY) {
        events(g, p->mid, READ, lane + OF_X, cycle, address, p->x_sub, p->nx, p->x_sub, wait);
        receive_x(p, m, m->source, m->source_size, (address - p->x_base) / (p->x_sub / p->width), t);
    } else if (p->x_from == FROM_DRAM) {
        paced(g, p->dram, READ, lane + OF_X, cycle, address, p->burst, bursts_of(p, p->nx * p->sx), p->sx, wait);
        receive_x(p, m, m->source, m->source_size, true_t * numbers, t);
    } else {
        const float *rows = m->source;
        int64_t before = 0, at = 0;
        for (int64_t k = 0; k < p->parts; k++) {
            const int64_t *part = p->part + 3 * k, size = part[2] * p->sy, bursts = bursts_of(p, size);
            const int64_t row = part[0] + true_t * bursts * p->burst;
            paced(g, p->dram, READ, lane + OF_X, cycle + before * wait, row, p->burst, bursts, p->sy, wait);
            memcpy(m->buffer + at, rows + true_t * part[2] * p->width, (size_t)part[1] * sizeof *rows);
            rows += m->steps * part[2] * p->width, before += part[2], at += part[1];
        }
        receive_x(p, m, m->buffer, numbers, 0, t);
    }
    for (int q = 0; q < 4; q++)
        events(g, p->inputs_of[q], WRITE, lane + OF_X, cycle, member * p->region, p->sx, p->nx, p->sx, wait);
}

/* All rows of a pass come, `pace` cycles apart: while its first step goes on, or before. */
static void probe_prefetch(epur_probe *p, int64_t begin, int64_t pace) {
    const int64_t n = p->nx + p->nh, of_neuron = row_bursts(p, n) * p->burst;
    for (int64_t k = 0; k < p->cells; k++) fetch_row(p, begin + k * pace, p->rows + k * of_neuron, p->tag, k, k, n);
}

/* Steps of a pass in E-PUR's order, `count` from t on for the first `left` sequences; the first is begun at `start`, the others
 * `step` cycles apart, neurons `pace`, and the load of step 0 at `loaded`. Returns the last cycle in which an h is written.
 *
 * Within a step, what does not depend on one another is walked kind by kind. */
static int64_t probe_epur(epur_probe *p, int64_t t, int64_t count, int64_t left, int64_t start, int64_t step, int64_t pace,
                          int64_t loaded) {
    const int64_t n = p->nx + p->nh, h_at = p->nx * p->sx, swing = p->nh * p->sx;
    const int64_t of_row = p->nh * p->sy, cells = p->cells;
    int64_t last = 0;
    if (t == 0 && p->load) probe_prefetch(p, loaded, pace);
    for (const int64_t end = t + count; t < end; t++, start += step) {
        const int turn = t % 2;
        const int64_t slot = h_at + turn * swing, other = h_at + !turn * swing;
        for (int64_t first = 0; first < left; first += p->share) {
            const int64_t together = left - first < p->share ? left - first : p->share;
            for (int q = 0; q < 4; q++)
                read_weights(p, q, first * ROLES + OF_X, p->tag, 0, 0, cells, n, start + first * n, pace, together);
        }
        for (int64_t member = 0; member < left; member++) {
            epur_member *m = &p->members[member];
            const int64_t group = member / p->share * p->share, true_t = time_of(p, m, t);
            const int64_t wait = left - group < p->share ? left - group : p->share;
            const int64_t begin = start + group * n + member - group, base = member * p->region;
            const float *h = t ? m->values + time_of(p, m, t - 1) * cells : m->initial, *made = m->values + true_t * cells;
            bring_x(p, member, t, begin, wait);
            compare(p, m->buffer + slot / p->xe, h, cells);
            for (int64_t k = 0; k < cells; k++) {
                read_operand(p, m, 0, p->inputs, mark(t));
                read_operand(p, m, slot, cells, mark(t - 1));
                m->buffer[other / p->xe + k] = made[k], m->stamps[other / p->xe + k] = mark(t);
            }
            log_operand(p, member, OF_X, begin, 0, cells, pace, p->nx, wait);
            log_operand(p, member, OF_H, begin + p->nx * wait, slot, cells, pace, p->nh, wait);
            const int64_t done = begin + (n - 1) * wait + p->dpu, row = m->spilled ? turn * of_row : true_t * p->y_pitch;
            const int64_t written = multifunction(p, member, 0, cells, done, pace, base + h_at + 2 * swing, m->y + row, made,
                                                  m->spilled ? turn : 0);
            for (int q = 0; q < 4; q++)
                events(p->log, p->inputs_of[q], WRITE, member * ROLES + OUTPUT_H + turn, written, base + other, p->xe, cells,
                       p->xe, pace);
            if (written + (cells - 1) * pace > last) last = written + (cells - 1) * pace;
            if (!m->spilled) continue;
            const int64_t bursts = bursts_of(p, of_row);
            taken(p, m->spilled + true_t * p->nh * p->width, p->out, p->out_size, (m->y + row - p->y_base) / p->ye, cells);
            paced(p->log, p->mid, READ, FETCHED + turn, last + 1, m->y + row, p->sy, p->nh, p->burst, 1);
            events(p->log, p->dram, WRITE, FETCHED, last + 1, m->spill + true_t * bursts * p->burst, p->burst, bursts,
                   p->burst, 1);
        }
    }
    return last;
}

/* A row of the network's input comes from DRAM to the intermediate memory. */
static void probe_stage(epur_probe *p, int64_t cycle, int64_t source, int64_t size, int64_t target) {
    fetch(p, cycle, source, size, &p->mid, 1, FETCHED, target, p->sx, 0);
}

/* Place of the forward sums of step t and neuron k. */
static inline int64_t sums_at(const epur_probe *p, int64_t t, int64_t k) {
    return (time_of(p, p->members, t) - p->low) * p->cells + k;
}

/* Forward sums go to the intermediate memory, or come back: of one neuron at a time, `count` times. */
static void log_sums(epur_probe *p, int op, int64_t row, int64_t cycle, int64_t count, int64_t rows, int64_t every) {
    const int64_t size = p->pe[0] + p->pe[1] + p->pe[2] + p->pe[3];
    int64_t address = p->partials + row * size;
    for (int q = 0; q < 4; q++) {
        events(p->log, p->mid, op, PARTIAL + q, cycle, address, p->pe[q], count, rows * size, every);
        address += p->pe[q];
    }
}

/* MWL: forward products of `count` neurons from k on over a stretch, the first's rows fetched at `loaded`. */
static void probe_forward(epur_probe *p, int64_t k, int64_t count, int64_t loaded) {
    epur_member *m = p->members;
    const int64_t of_x = row_bursts(p, p->nx), of_h = row_bursts(p, p->nh), tag = p->tag_x;
    const int64_t back = p->reverse ? -1 : 1;
    for (const int64_t end = k + count; k < end; k++, loaded += p->pace) {
        const int64_t first = loaded + p->pace;
        const int slot = k % 2;
        int64_t moved = 0;
        for (int q = 0; q < 4; q++) {
            const int64_t size = p->nx * p->sw[q], address = slot * size;
            put(p, p->row[q], p->row_size, address / p->width, tag, k, size / p->width);
            moved += fetch(p, loaded + moved, p->rows + (k * of_x + moved) * p->burst, size, &p->row_of[q], 1,
                           FETCHED + slot, address, p->sw[q], 4 + q);
        }
        if (p->begun == 0 && k < p->stay)
            fetch_row(p, loaded + of_x, p->rows + (p->cells * of_x + k * of_h) * p->burst, p->tag, k, k, p->nh);
        for (int64_t t = p->begun; t < p->begun + p->span; t++) {
            receive_x(p, m, m->source, m->source_size,
                      (m->x + time_of(p, m, t) * p->x_pitch - p->x_base) / (p->x_sub / p->width), t);
            for (int q = 0; q < 4; q++) {
                const int64_t units = p->nx * p->sw[q] / p->width;
                check(p, p->row[q], p->row_size, slot * units, tag, k, units);
            }
            read_operand(p, m, 0, p->inputs, mark(t));
            memset(p->stored + sums_at(p, t, k) * 4, mark(t), 4);
        }
        const epur_loop steps = {p->span, 0, p->nx}, subs = {p->nx, p->sx, 1}, rows = {p->span, back * p->x_pitch, p->nx};
        const int64_t x = m->x + time_of(p, m, p->begun) * p->x_pitch;
        accesses(p->log, p->mid, READ, OF_X, first, x, p->x_sub, rows, (epur_loop){p->nx, p->x_sub, 1});
        for (int q = 0; q < 4; q++) {
            accesses(p->log, p->inputs_of[q], WRITE, OF_X, first, 0, p->sx, steps, subs);
            accesses(p->log, p->row_of[q], READ, OF_X, first, slot * p->nx * p->sw[q], p->sw[q], steps,
                     (epur_loop){p->nx, p->sw[q], 1});
        }
        log_operand(p, 0, OF_X, first, 0, p->span, p->nx, p->nx, 1);
        log_sums(p, WRITE, sums_at(p, p->begun, k), first + p->nx - 1 + p->dpu + p->quantise, p->span, back * p->cells, p->nx);
    }
}

/* Tiles: forward products of the `count` neurons from k on over a stretch; returns the cycle after. */
static int64_t probe_tile(epur_probe *p, int64_t k, int64_t count, int64_t cycle) {
    const int64_t tag = p->tag_x, of_x = row_bursts(p, p->nx) * p->burst;
    int64_t first = cycle + p->pace;
    for (int64_t t = p->begun; t < p->begun + p->span; t++) {
        const int64_t wait = t == p->begun ? p->pace : p->nx;
        bring_x(p, 0, t, first, 1);
        if (t == p->begun)
            for (int64_t j = 0; j < count; j++)
                fetch_row(p, cycle + j * p->pace, p->rows + (k + j) * of_x, tag, k + j, j, p->nx);
        for (int q = 0; q < 4; q++) read_weights(p, q, OF_X, tag, k, 0, count, p->nx, first, wait, 1);
        for (int64_t j = 0; j < count; j++) read_operand(p, p->members, 0, p->inputs, mark(t));
        log_operand(p, 0, OF_X, first, 0, count, wait, p->nx, 1);
        memset(p->stored + sums_at(p, t, k) * 4, mark(t), (size_t)count * 4);
        log_sums(p, WRITE, sums_at(p, t, k), first + p->nx - 1 + p->dpu, count, 1, wait);
        first += (count - 1) * wait + p->nx;
    }
    return first;
}

/* Neurons of a recurrent step whose rows are there when it begins, or come one by one; see below. */
static int64_t recurrent_part(epur_probe *p, int64_t t, int64_t k, int64_t count, int64_t lies, int64_t cycle, int64_t every,
                              int early) {
    epur_member *m = p->members;
    const int64_t true_t = time_of(p, m, t), done = cycle + p->nh - 1 + p->dpu, row = sums_at(p, t, k);
    for (int q = 0; q < 4; q++) read_weights(p, q, OF_H, p->tag, k, lies, count, p->nh, cycle, every, 1);
    for (int64_t j = 0; j < count; j++) read_operand(p, m, 0, p->cells, mark(t - 1));
    log_operand(p, 0, OF_H, cycle, 0, count, every, p->nh, 1);
    p->wrong += !marked(p->stored + row * 4, count * 4, mark(t));
    log_sums(p, READ, row, early ? cycle : done, count, 1, every);
    return multifunction(p, 0, k, count, done + p->lookup + p->add, every, p->cell_at, m->y + true_t * p->y_pitch,
                         m->values + true_t * p->cells + k, 0) + (count - 1) * every;
}

/* MWL and tiles: `count` recurrent steps from t on, the first begun at `start`, the others `step` cycles apart, with `here`
 * rows of W_h in the buffers, the others `pace` cycles apart; sums come back with the DPU's result, or (`early`) before.
 * Returns the cycle of the last h. */
static int64_t probe_recurrent(epur_probe *p, int64_t t, int64_t count, int64_t start, int64_t step, int64_t here,
                               int64_t pace, int early) {
    epur_member *m = p->members;
    const int64_t of_x = row_bursts(p, p->nx), of_h = row_bursts(p, p->nh);
    int64_t last = 0;
    for (const int64_t end = t + count; t < end; t++, start += step) {
        const float *h = t ? m->values + time_of(p, m, t - 1) * p->cells : m->initial;
        if (t) {
            const int64_t address = m->y + time_of(p, m, t - 1) * p->y_pitch;
            events(p->log, p->mid, READ, OF_H, start, address, p->sy, p->nh, p->sy, 1);
            taken(p, m->buffer, p->out, p->out_size, (address - p->y_base) / p->ye, p->nh * p->width);
            memset(m->stamps, mark(t - 1), (size_t)(p->nh * p->width));
            for (int q = 0; q < 4; q++) events(p->log, p->inputs_of[q], WRITE, OF_H, start, 0, p->sx, p->nh, p->sx, 1);
        }
        compare(p, m->buffer, h, p->cells);
        if (here) last = recurrent_part(p, t, 0, here, 0, start, p->nh, early);
        for (int64_t k = here; k < p->cells; k++) {
            const int64_t a = start + here * p->nh + (k - here + 1) * pace;
            const int64_t lies = k < p->stay ? k : p->stay + (k - p->stay) % 2;
            fetch_row(p, a - pace, p->rows + (p->cells * of_x + k * of_h) * p->burst, p->tag, k, lies, p->nh);
            last = recurrent_part(p, t, k, 1, lies, a, pace, early);
        }
    }
    return last;
}

/* From the intermediate memory to DRAM. */
static void probe_store(epur_probe *p, int64_t cycle, int64_t source, int64_t total, int64_t target) {
    const int64_t bursts = bursts_of(p, total);
    paced(p->log, p->mid, READ, FETCHED, cycle, source, p->sy, total / p->sy, p->burst, 1);
    events(p->log, p->dram, WRITE, FETCHED, cycle, target, p->burst, bursts, p->burst, 1);
}

const epur_walks LEVEL(epur_walks) = {
    probe_parameters, probe_state, probe_stage, probe_prefetch, probe_epur, probe_forward, probe_tile, probe_recurrent,
    probe_store,
};
