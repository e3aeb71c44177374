/* A pass in hardware order through models of its memories: every access is performed and logged where it happens.
 *
 * The models hold values: of x, h and the outputs the numbers themselves, of weights and stored partial sums which ones
 * they are. What the DPU reads is compared with what the arithmetic took; `wrong` counts the differences.
 */
#ifndef EPUR_PROBE_H
#define EPUR_PROBE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { READ, WRITE };
/* Places in a component that are accessed in patterns of their own. */
enum { FETCHED, OF_X, OF_H, BIAS, PEEPHOLE, CELL, OUTPUT_H, PARTIAL, ROLES = PARTIAL + 4 };
enum { INITIAL_ZERO, INITIAL_DRAM, INITIAL_KEPT };

/* Accesses of one component in two nested loops, outermost first. */
typedef struct {
    int64_t component, cycle, address, bytes, op, count[2], by[2], wait[2];
} epur_row;

typedef struct {
    ptrdiff_t row;          /* under way, or -1 */
    int64_t cycle, address; /* at which its last turn began */
} epur_site;

typedef struct {
    epur_row *rows;
    ptrdiff_t size, room;
    epur_site *sites; /* (components, 2, ROLES) */
    int64_t accesses;
    int failed;
} epur_log;

typedef struct {
    int64_t width, burst, capacity; /* DPU width; bytes */
    int64_t cells, inputs, steps, nx, nh;
    int64_t sw[4], sb[4], be[4], pe[4];
    int64_t xe, ye, ce, sx, sy, sc;
    int64_t weights[4], inputs_of[4], row_of[4], mid, dram; /* component numbers */
    int64_t reverse, peepholes, load, initial;
    int64_t matrix[4], bank[4], rows, params; /* places */
    int64_t x, x_pitch, x_sub, x_dram, y, y_pitch, y_base, state, kept, partials;
    int64_t dpu, add, link, quantise, lookup, p, tm, tc, z, tail, pace;
    int64_t tag; /* of the first unit of weights, one byte for each multiplier of a DPU */
    /* models */
    float *source;          /* rows of x where they come from */
    float *out;             /* outputs where they go */
    float *buffer[4];       /* input buffers: x, two slots of h */
    float *latch[4];        /* what each DPU has read: x, h */
    uint32_t *held[4];      /* weight buffers: number of each unit */
    uint32_t *row[4];       /* row buffers */
    uint8_t *stored;        /* partial sums (steps, cells, 4) */
    const float *values;    /* h of all steps (steps, cells) */
    int64_t wrong;
    epur_log *log;
} epur_probe;

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

/* Accesses that were performed one behind the other at equal distances; neighbours of one kind share a row. */
static inline void events(epur_log *g, int64_t component, int op, int role, int64_t cycle, int64_t address, int64_t bytes,
                          int64_t count, int64_t by, int64_t wait) {
    epur_site *s = &g->sites[(component * 2 + op) * ROLES + role];
    const int64_t jump = address - s->address, pause = cycle - s->cycle;
    g->accesses += count;
    s->cycle = cycle, s->address = address;
    if (s->row >= 0) {
        epur_row *r = &g->rows[s->row];
        if (r->bytes == bytes && r->count[1] == count && (count == 1 || (r->by[1] == by && r->wait[1] == wait))) {
            if (r->count[0] > 1 ? jump == r->by[0] && pause == r->wait[0] : pause >= (count - 1) * wait) {
                r->count[0]++, r->by[0] = jump, r->wait[0] = pause;
                return;
            }
        }
    }
    if (count == 1) by = wait = 0;
    epur_row *made = log_new(g, s);
    if (!g->failed) *made = (epur_row){component, cycle, address, bytes, op, {1, count}, {0, by}, {0, wait}};
}

/* One access, as it happens. */
static inline void event(epur_log *g, int64_t component, int op, int role, int64_t cycle, int64_t address, int64_t bytes) {
    events(g, component, op, role, cycle, address, bytes, 1, 0, 0);
}

static inline int64_t bursts_of(const epur_probe *p, int64_t bytes) { return (bytes + p->burst - 1) / p->burst; }

/* From DRAM to a buffer in sub-vectors; returns the bursts. */
static int64_t fetch(epur_probe *p, int64_t cycle, int64_t source, int64_t total, const int64_t *targets, int count,
                     int role, int64_t address, int64_t size) {
    const int64_t bursts = bursts_of(p, total), subs = total / size;
    events(p->log, p->dram, READ, FETCHED, cycle, source, p->burst, bursts, p->burst, 1);
    for (int64_t s = 0, at = 0; s < subs; s += at) { /* those that arrive in one cycle */
        const int64_t arrived = s * size / p->burst;
        for (at = 1; s + at < subs && (s + at) * size / p->burst == arrived;) at++;
        for (int k = 0; k < count; k++)
            events(p->log, targets[k], WRITE, role, cycle + arrived, address + s * size, size, at, size, 0);
    }
    return bursts;
}

static int64_t time_of(const epur_probe *p, int64_t t) { return p->reverse ? p->steps - 1 - t : t; }

static int holds_cell(const epur_probe *p, int gate) { return gate == 2 || (p->peepholes && gate < 2); }

/* Biases and peepholes; returns the bursts. */
static int64_t probe_parameters(epur_probe *p, int64_t begin) {
    int64_t moved = 0;
    for (int part = 0; part < (p->peepholes ? 2 : 1); part++)
        for (int q = 0; q < 4; q++) {
            if (part && q == 2) continue;
            const int64_t size = p->nh * p->sb[q], address = p->capacity + p->bank[q] + part * size;
            moved += fetch(p, begin + moved, p->params + moved * p->burst, size, &p->weights[q], 1, FETCHED, address, p->sb[q]);
        }
    return moved;
}

/* The initial state, behind `bursts` on the channel; h (nh * width) goes to slot 0. */
static void probe_state(epur_probe *p, int64_t begin, int64_t bursts, int64_t h_at, int64_t c_at, const float *h) {
    int64_t holders[4];
    int count = 0;
    for (int q = 0; q < 4; q++)
        if (holds_cell(p, q)) holders[count++] = p->inputs_of[q];
    for (int q = 0; q < 4; q++) memcpy(p->buffer[q] + h_at / p->xe, h, (size_t)(p->nh * p->width) * sizeof *h);
    if (p->initial == INITIAL_DRAM) {
        const int64_t size = p->nh * p->sx;
        bursts += fetch(p, begin + bursts, p->state, size, p->inputs_of, 4, OF_H, h_at, p->sx);
        fetch(p, begin + bursts, p->state + bursts_of(p, size) * p->burst, p->nh * p->sc, holders, count, CELL, c_at, p->sc);
        return;
    }
    const int kept = p->initial == INITIAL_KEPT;
    for (int64_t s = 0; s < p->nh; s++) {
        if (kept) event(p->log, p->mid, READ, OF_H, begin + s, p->state + s * p->sy, p->sy);
        for (int q = 0; q < 4; q++) event(p->log, p->inputs_of[q], WRITE, OF_H, begin + s, h_at + s * p->sx, p->sx);
    }
    const int64_t after = begin + (kept ? p->nh : 0);
    for (int64_t s = 0; s < p->nh; s++) {
        if (kept) event(p->log, p->mid, READ, CELL, after + s, p->state + p->nh * p->sy + s * p->sc, p->sc);
        for (int k = 0; k < count; k++) event(p->log, holders[k], WRITE, CELL, after + s, c_at + s * p->sc, p->sc);
    }
}

/* The MUs' accesses for neuron k but for h's way to the input buffers; returns the cycle in which h is written. */
static int64_t multifunction(epur_probe *p, int64_t k, int64_t done, int64_t c_at, int64_t y_at, float h) {
    epur_log *g = p->log;
    const int64_t arrival = done + p->tc + p->link, out = done + p->z, c = c_at + k * p->ce;
    for (int q = 0; q < 4; q++) {
        const int64_t bias = p->capacity + p->bank[q] + k * p->be[q], peephole = bias + p->nh * p->sb[q];
        if (p->peepholes && q < 2) {
            event(g, p->weights[q], READ, PEEPHOLE, done, peephole, p->be[q]);
            event(g, p->inputs_of[q], READ, CELL, done, c, p->ce);
        }
        event(g, p->weights[q], READ, BIAS, done + (q < 2 ? p->p : 0), bias, p->be[q]);
        if (p->peepholes && q == 3) event(g, p->weights[q], READ, PEEPHOLE, arrival, peephole, p->be[q]);
        if (q == 2) event(g, p->inputs_of[q], READ, CELL, done + p->tm + 1, c, p->ce);
        if (holds_cell(p, q)) event(g, p->inputs_of[q], WRITE, CELL, q == 2 ? done + p->tc : arrival, c, p->ce);
    }
    if (p->kept >= 0) event(g, p->mid, WRITE, CELL, arrival, p->kept + p->nh * p->sy + k * p->ce, p->ce);
    event(g, p->mid, WRITE, OUTPUT_H, out, y_at, p->ye);
    p->out[(y_at - p->y_base) / p->ye] = h;
    return out;
}

/* Units of row k of a matrix are written, or read. */
static inline void put(uint32_t *held, int64_t tag, int64_t k, int64_t units) {
    for (int64_t u = 0; u < units; u++) held[u] = (uint32_t)(tag + k * units + u);
}

static inline void check(epur_probe *p, const uint32_t *held, int64_t tag, int64_t k, int64_t units) {
    const uint32_t first = (uint32_t)(tag + k * units);
    uint32_t wrong = 0;
    for (int64_t u = 0; u < units; u++) wrong |= held[u] ^ (first + (uint32_t)u);
    p->wrong += wrong != 0;
}

/* A row of `subs` sub-vectors of weights is read. */
static inline void read_weights(epur_probe *p, int64_t k, int64_t subs, int64_t cycle) {
    for (int q = 0; q < 4; q++) {
        const int64_t size = p->sw[q], address = p->matrix[q] + k * subs * size;
        events(p->log, p->weights[q], READ, OF_X, cycle, address, size, subs, size, 1);
        check(p, p->held[q] + address / p->width, p->tag, k, subs * size / p->width);
    }
}

/* Sub-vectors of the operand at `from` are read for neuron k; they reach the latch at `to`. */
static inline void read_operand(epur_probe *p, int64_t k, int64_t subs, int64_t cycle, int64_t from, int64_t to, int role) {
    for (int q = 0; q < 4; q++) {
        events(p->log, p->inputs_of[q], READ, role, cycle, from, p->sx, subs, p->sx, 1);
        if (k == 0) memcpy(p->latch[q] + to, p->buffer[q] + from / p->xe, (size_t)(subs * p->width) * sizeof(float));
    }
}

/* Rows of weights from DRAM, gate by gate; returns the bursts. */
static int64_t fetch_row(epur_probe *p, int64_t cycle, int64_t source, int64_t k, int64_t subs) {
    int64_t moved = 0;
    for (int q = 0; q < 4; q++) {
        const int64_t size = subs * p->sw[q], address = p->matrix[q] + k * size;
        put(p->held[q] + address / p->width, p->tag, k, size / p->width);
        moved += fetch(p, cycle + moved, source + moved * p->burst, size, &p->weights[q], 1, FETCHED, address, p->sw[q]);
    }
    return moved;
}

static void compare(epur_probe *p, int64_t at, const float *wanted, int64_t count) {
    for (int q = 0; q < 4; q++) p->wrong += memcmp(p->latch[q] + at, wanted, (size_t)count * sizeof *wanted) != 0;
}

/* Step t of a pass in E-PUR's order, begun at `start`, the load of step 0 at `loaded`; returns the cycle of the last h.
 * x and h: the operands that the arithmetic took. */
static int64_t probe_epur(epur_probe *p, int64_t t, int64_t start, int64_t loaded, const float *x, const float *h) {
    epur_log *g = p->log;
    const int64_t n = p->nx + p->nh, true_t = time_of(p, t), x_row = p->x + true_t * p->x_pitch;
    const int64_t slot = (p->nx + t % 2 * p->nh) * p->sx, other = (p->nx + (t + 1) % 2 * p->nh) * p->sx;
    const int64_t c_at = (p->nx + 2 * p->nh) * p->sx;
    int64_t of_neuron = 0, last = 0;
    for (int q = 0; q < 4; q++) of_neuron += bursts_of(p, n * p->sw[q]);
    if (p->x_dram)
        for (int64_t j = 0; j < bursts_of(p, p->nx * p->sx); j++)
            event(g, p->dram, READ, OF_X, start + j * p->burst / p->sx, x_row + j * p->burst, p->burst);
    for (int64_t s = 0; s < p->nx; s++) {
        const int64_t address = x_row + s * p->x_sub;
        if (!p->x_dram) event(g, p->mid, READ, OF_X, start + s, address, p->x_sub);
        const float *from = p->source + (address - p->x) / (p->x_sub / p->width);
        if (p->x_dram) from = p->source + true_t * p->nx * p->width + s * p->width;
        for (int q = 0; q < 4; q++) {
            event(g, p->inputs_of[q], WRITE, OF_X, start + s, s * p->sx, p->sx);
            memcpy(p->buffer[q] + s * p->width, from, (size_t)p->width * sizeof *from);
        }
    }
    for (int64_t k = 0; k < p->cells; k++) {
        if (t == 0 && p->load) fetch_row(p, loaded + k * p->pace, p->rows + k * of_neuron * p->burst, k, n);
        const int64_t a = start + k * (t == 0 ? p->pace : n);
        read_weights(p, k, n, a);
        read_operand(p, k, p->nx, a, 0, 0, OF_X);
        read_operand(p, k, p->nh, a + p->nx, slot, p->nx * p->width, OF_H);
        const float value = p->values[true_t * p->cells + k];
        const int64_t y_at = p->y + true_t * p->y_pitch + k * p->ye;
        last = multifunction(p, k, a + n - 1 + p->dpu, c_at, y_at, value);
        for (int q = 0; q < 4; q++) {
            event(g, p->inputs_of[q], WRITE, OUTPUT_H, last, other + k * p->xe, p->xe);
            p->buffer[q][other / p->xe + k] = value;
        }
    }
    compare(p, 0, x, p->inputs);
    compare(p, p->nx * p->width, h, p->cells);
    return last;
}

/* MWL: neuron k's forward products over all time steps, its rows fetched at `loaded`, x (steps, inputs). */
static void probe_forward(epur_probe *p, int64_t k, int64_t loaded, const float *x) {
    epur_log *g = p->log;
    int64_t moved = 0, of_x = 0, of_h = 0, per_neuron = 0;
    for (int q = 0; q < 4; q++) {
        of_x += bursts_of(p, p->nx * p->sw[q]), of_h += bursts_of(p, p->nh * p->sw[q]);
        per_neuron += p->pe[q];
    }
    for (int q = 0; q < 4; q++) {
        const int64_t size = p->nx * p->sw[q], address = k % 2 * size;
        put(p->row[q] + address / p->width, 0, k, size / p->width);
        moved += fetch(p, loaded + moved, p->rows + (k * of_x + moved) * p->burst, size, &p->row_of[q], 1, FETCHED, address,
                       p->sw[q]);
    }
    fetch_row(p, loaded + of_x, p->rows + (p->cells * of_x + k * of_h) * p->burst, k, p->nh);
    for (int64_t t = 0; t < p->steps; t++) {
        const int64_t true_t = time_of(p, t), first = loaded + p->pace + t * p->nx;
        const int64_t x_row = p->x + true_t * p->x_pitch;
        events(g, p->mid, READ, OF_X, first, x_row, p->x_sub, p->nx, p->x_sub, 1);
        for (int64_t s = 0; s < p->nx; s++) {
            const int64_t address = x_row + s * p->x_sub;
            const float *from = p->source + (address - p->x) / (p->x_sub / p->width);
            for (int q = 0; q < 4; q++) memcpy(p->buffer[q] + s * p->width, from, (size_t)p->width * sizeof *from);
        }
        for (int q = 0; q < 4; q++) {
            const int64_t own = k % 2 * p->nx * p->sw[q];
            events(g, p->row_of[q], READ, OF_X, first, own, p->sw[q], p->nx, p->sw[q], 1);
            check(p, p->row[q] + own / p->width, 0, k, p->nx * p->sw[q] / p->width);
            events(g, p->inputs_of[q], WRITE, OF_X, first, 0, p->sx, p->nx, p->sx, 1);
            events(g, p->inputs_of[q], READ, OF_X, first, 0, p->sx, p->nx, p->sx, 1);
            memcpy(p->latch[q], p->buffer[q], (size_t)(p->nx * p->width) * sizeof(float));
        }
        compare(p, 0, x + true_t * p->inputs, p->inputs);
        int64_t address = p->partials + (true_t * p->cells + k) * per_neuron;
        for (int q = 0; q < 4; q++) {
            event(g, p->mid, WRITE, PARTIAL + q, first + p->nx - 1 + p->dpu + p->quantise, address, p->pe[q]);
            p->stored[(true_t * p->cells + k) * 4 + q] = 1;
            address += p->pe[q];
        }
    }
}

/* MWL: recurrent step t, begun at `start`; returns the cycle of the last h. `h`: what the arithmetic took. */
static int64_t probe_recurrent(epur_probe *p, int64_t t, int64_t start, const float *h) {
    epur_log *g = p->log;
    const int64_t true_t = time_of(p, t), before = t ? time_of(p, t - 1) : 0;
    int64_t per_neuron = 0, last = 0;
    for (int q = 0; q < 4; q++) per_neuron += p->pe[q];
    for (int64_t s = 0; t && s < p->nh; s++) {
        const int64_t address = p->y + before * p->y_pitch + s * p->sy;
        event(g, p->mid, READ, OF_H, start + s, address, p->sy);
        const float *from = p->out + (address - p->y_base) / p->ye;
        for (int q = 0; q < 4; q++) {
            event(g, p->inputs_of[q], WRITE, OF_H, start + s, s * p->sx, p->sx);
            memcpy(p->buffer[q] + s * p->width, from, (size_t)p->width * sizeof *from);
        }
    }
    for (int64_t k = 0; k < p->cells; k++) {
        const int64_t a = start + k * p->nh, done = a + p->nh - 1 + p->dpu;
        read_weights(p, k, p->nh, a);
        read_operand(p, k, p->nh, a, 0, 0, OF_H);
        int64_t address = p->partials + (true_t * p->cells + k) * per_neuron;
        for (int q = 0; q < 4; q++) {
            event(g, p->mid, READ, PARTIAL + q, done, address, p->pe[q]);
            p->wrong += !p->stored[(true_t * p->cells + k) * 4 + q];
            address += p->pe[q];
        }
        last = multifunction(p, k, done + p->lookup + p->add, p->nh * p->sx, p->y + true_t * p->y_pitch + k * p->ye,
                             p->values[true_t * p->cells + k]);
    }
    compare(p, 0, h, p->cells);
    return last;
}

/* From the intermediate memory to DRAM. */
static void probe_store(epur_probe *p, int64_t cycle, int64_t source, int64_t total, int64_t target) {
    for (int64_t s = 0; s < total / p->sy; s++)
        event(p->log, p->mid, READ, FETCHED, cycle + s * p->sy / p->burst, source + s * p->sy, p->sy);
    for (int64_t j = 0; j < bursts_of(p, total); j++)
        event(p->log, p->dram, WRITE, FETCHED, cycle + j, target + j * p->burst, p->burst);
}

#endif
