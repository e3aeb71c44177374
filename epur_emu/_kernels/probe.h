/* A pass in hardware order through models of its memories: every access is performed and logged where it happens.
 *
 * The models hold values: of x, h and the outputs the numbers themselves, of weights and stored sums which ones they are.
 * What each read of the DPUs delivers is compared with what the arithmetic took; `wrong` counts the differences.
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
enum { FROM_DRAM, FROM_MEMORY, FROM_SPILLED };

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

/* One sequence of a pass. */
typedef struct {
    int64_t steps, x, y, state, spill; /* places: input row 0, own cells in output row 0, given state, spilled row 0 */
    int64_t source_size;   /* numbers */
    const float *source;   /* what holds x: rows, a half of the intermediate memory, or spilled rows part by part */
    const float *operands; /* x as the arithmetic took it (steps, inputs) */
    const float *values;   /* h as the arithmetic gave it (steps, cells) */
    const float *initial;  /* h (nh * width) */
    float *spilled;        /* own rows in DRAM (steps, nh * width), or NULL */
    float *buffer;         /* input buffer, the same in all CUs: x, two slots of h */
    uint8_t *stamps;       /* of which step each element of the buffer is */
} epur_member;

typedef struct {
    int64_t width, burst, capacity; /* DPU width; bytes */
    int64_t cells, inputs, nx, nh;
    int64_t sw[4], sb[4], be[4], pe[4];
    int64_t xe, ye, ce, sx, sy, sc;
    int64_t weights[4], inputs_of[4], row_of[4], mid, dram; /* component numbers */
    int64_t reverse, peepholes, load, initial;
    int64_t matrix[4], bank[4], rows, params; /* places */
    int64_t x_from, x_base, x_pitch, x_sub, y_pitch, y_base, kept, partials;
    int64_t dpu, add, link, quantise, lookup, p, tm, tc, z;
    int64_t tag, tag_x; /* of the first unit of weights, one byte for each multiplier of a DPU; of W_x that lies apart */
    int64_t share, region;          /* sequences that share a read of weights; bytes of one's part of an input buffer */
    int64_t stay, cell_at;          /* with stored sums: rows of W_h that stay, where c lies */
    int64_t low, span, begun, pace; /* of a stretch: lowest true step, steps, the first, cycles between rows of W_x */
    int64_t parts;                  /* of a spilled input */
    const int64_t *part;            /* (parts, 3): row 0 in DRAM, cells, sub-vectors */
    epur_member *members;
    int64_t out_size;  /* numbers */
    float *out;        /* half of the intermediate memory where outputs go */
    uint32_t *held[4]; /* weight buffers: number of each unit */
    uint32_t *row[4];  /* row buffers */
    uint8_t *stored;   /* partial sums of a stretch (steps, cells, 4): of which step */
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

/* Accesses k < count at cycle + floor(k size / pace) every, those of one cycle together. */
static void paced(epur_log *g, int64_t component, int op, int role, int64_t cycle, int64_t address, int64_t size,
                  int64_t count, int64_t pace, int64_t every) {
    for (int64_t k = 0, many; k < count; k += many) {
        const int64_t turn = k * size / pace;
        for (many = 1; k + many < count && (k + many) * size / pace == turn;) many++;
        events(g, component, op, role, cycle + turn * every, address + k * size, size, many, size, 0);
    }
}

static inline int64_t bursts_of(const epur_probe *p, int64_t bytes) { return (bytes + p->burst - 1) / p->burst; }

/* Bursts of a row of so many sub-vectors in all gates. */
static int64_t row_bursts(const epur_probe *p, int64_t subs) {
    int64_t sum = 0;
    for (int q = 0; q < 4; q++) sum += bursts_of(p, subs * p->sw[q]);
    return sum;
}

/* From DRAM to a buffer in sub-vectors; returns the bursts. */
static int64_t fetch(epur_probe *p, int64_t cycle, int64_t source, int64_t total, const int64_t *targets, int count,
                     int role, int64_t address, int64_t size) {
    const int64_t bursts = bursts_of(p, total);
    events(p->log, p->dram, READ, FETCHED, cycle, source, p->burst, bursts, p->burst, 1);
    for (int k = 0; k < count; k++) paced(p->log, targets[k], WRITE, role, cycle, address, size, total / size, p->burst, 1);
    return bursts;
}

static inline int64_t time_of(const epur_probe *p, const epur_member *m, int64_t t) {
    return p->reverse ? m->steps - 1 - t : t;
}

/* The mark of step t in order of evaluation; the initial state is of step -1. */
static inline uint8_t mark(int64_t t) { return (uint8_t)(1 + (t + 1) % 255); }

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

/* `count` numbers from `from` on come out of a memory of so many; none where a plan leads beyond it. */
static void taken(epur_probe *p, float *to, const float *memory, int64_t size, int64_t from, int64_t count) {
    if (from < 0 || from > size - count)
        p->wrong++;
    else
        memcpy(to, memory + from, (size_t)count * sizeof *to);
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
    if (p->initial == INITIAL_DRAM) {
        const int64_t size = p->nh * p->sx;
        bursts += fetch(p, begin + bursts, m->state, size, p->inputs_of, 4, OF_H, h_at, p->sx);
        fetch(p, begin + bursts, m->state + bursts_of(p, size) * p->burst, p->nh * p->sc, holders, count, CELL, c_at, p->sc);
        return;
    }
    if (kept) events(g, p->mid, READ, OF_H, begin, m->state, p->sy, p->nh, p->sy, 1);
    for (int q = 0; q < 4; q++) events(g, p->inputs_of[q], WRITE, OF_H, begin, h_at, p->sx, p->nh, p->sx, 1);
    if (kept) begin += p->nh, events(g, p->mid, READ, CELL, begin, m->state + p->nh * p->sy, p->sc, p->nh, p->sc, 1);
    for (int k = 0; k < count; k++) events(g, holders[k], WRITE, CELL, begin, c_at, p->sc, p->nh, p->sc, 1);
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
    if (p->kept >= 0) event(g, p->mid, WRITE, CELL, arrival, p->kept + k * p->ce, p->ce);
    event(g, p->mid, WRITE, OUTPUT_H, out, y_at, p->ye);
    const int64_t place = (y_at - p->y_base) / p->ye;
    if (place < 0 || place >= p->out_size)
        p->wrong++;
    else
        p->out[place] = h;
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

/* One gate's row k of `subs` sub-vectors of weights, which lies in slot `lies`, is read, a sub-vector every `wait`. */
static inline void read_weights(epur_probe *p, int q, int64_t tag, int64_t k, int64_t lies, int64_t subs, int64_t cycle,
                                int64_t wait) {
    const int64_t size = p->sw[q], address = p->matrix[q] + lies * subs * size;
    events(p->log, p->weights[q], READ, OF_X, cycle, address, size, subs, size, wait);
    check(p, p->held[q] + address / p->width, tag, k, subs * size / p->width);
}

/* Row k of a matrix comes from DRAM to slot `lies`, gate by gate; returns the bursts. */
static int64_t fetch_row(epur_probe *p, int64_t cycle, int64_t source, int64_t tag, int64_t k, int64_t lies, int64_t subs) {
    int64_t moved = 0;
    for (int q = 0; q < 4; q++) {
        const int64_t size = subs * p->sw[q], address = p->matrix[q] + lies * size;
        put(p->held[q] + address / p->width, tag, k, size / p->width);
        moved += fetch(p, cycle + moved, source + moved * p->burst, size, &p->weights[q], 1, FETCHED, address, p->sw[q]);
    }
    return moved;
}

/* An operand's sub-vectors at `from` (of a sequence's part of the buffers) are read by all CUs. */
static inline void read_operand(epur_probe *p, int64_t member, int64_t cycle, int64_t from, int64_t subs, int64_t wait,
                                int role, int64_t elements, uint8_t expected) {
    const epur_member *m = &p->members[member];
    const uint8_t *stamps = m->stamps + from / p->xe;
    uint8_t wrong = 0;
    for (int q = 0; q < 4; q++)
        events(p->log, p->inputs_of[q], READ, role, cycle, member * p->region + from, p->sx, subs, p->sx, wait);
    for (int64_t e = 0; e < elements; e++) wrong |= stamps[e] ^ expected;
    p->wrong += wrong != 0;
}

/* Whether the buffer holds the numbers that the arithmetic took. */
static void compare(epur_probe *p, const epur_member *m, int64_t from, const float *wanted, int64_t count) {
    p->wrong += memcmp(m->buffer + from / p->xe, wanted, (size_t)count * sizeof *wanted) != 0;
}

/* x of a true time step leaves where it lies and comes to the input buffers, a sub-vector every `wait` cycles. */
static void bring_x(epur_probe *p, int64_t member, int64_t t, int64_t true_t, int64_t cycle, int64_t wait) {
    epur_member *m = &p->members[member];
    epur_log *g = p->log;
    const int64_t address = m->x + true_t * p->x_pitch;
    if (p->x_from == FROM_MEMORY) {
        events(g, p->mid, READ, OF_X, cycle, address, p->x_sub, p->nx, p->x_sub, wait);
        taken(p, m->buffer, m->source, m->source_size, (address - p->x_base) / (p->x_sub / p->width), p->nx * p->width);
    } else if (p->x_from == FROM_DRAM) {
        paced(g, p->dram, READ, OF_X, cycle, address, p->burst, bursts_of(p, p->nx * p->sx), p->sx, wait);
        const float *from = m->source + true_t * p->nx * p->width;
        memcpy(m->buffer, from, (size_t)(p->nx * p->width) * sizeof *from);
    } else {
        const float *rows = m->source;
        int64_t before = 0, at = 0;
        for (int64_t k = 0; k < p->parts; k++) {
            const int64_t *part = p->part + 3 * k, size = part[2] * p->sy, bursts = bursts_of(p, size);
            const int64_t row = part[0] + true_t * bursts * p->burst;
            paced(g, p->dram, READ, OF_X, cycle + before * wait, row, p->burst, bursts, p->sy, wait);
            memcpy(m->buffer + at, rows + true_t * part[2] * p->width, (size_t)part[1] * sizeof *rows);
            rows += m->steps * part[2] * p->width, before += part[2], at += part[1];
        }
    }
    memset(m->stamps, mark(t), (size_t)(p->nx * p->width));
    for (int q = 0; q < 4; q++)
        events(g, p->inputs_of[q], WRITE, OF_X, cycle, member * p->region, p->sx, p->nx, p->sx, wait);
}

/* Step t of a pass in E-PUR's order, for the first `left` sequences; begun at `start`, neurons `pace` cycles apart, the
 * load of step 0 at `loaded`. Returns the last cycle in which an h is written.
 *
 * Within the step, what does not depend on one another is walked kind by kind. */
static int64_t probe_epur(epur_probe *p, int64_t t, int64_t left, int64_t start, int64_t pace, int64_t loaded) {
    const int64_t n = p->nx + p->nh, h_at = p->nx * p->sx, swing = p->nh * p->sx;
    const int64_t slot = h_at + t % 2 * swing, other = h_at + (t + 1) % 2 * swing;
    const int64_t of_neuron = row_bursts(p, n) * p->burst;
    int64_t last = 0;
    if (t == 0 && p->load)
        for (int64_t k = 0; k < p->cells; k++) fetch_row(p, loaded + k * pace, p->rows + k * of_neuron, p->tag, k, k, n);
    for (int64_t first = 0; first < left; first += p->share) {
        const int64_t together = left - first < p->share ? left - first : p->share;
        for (int q = 0; q < 4; q++)
            for (int64_t k = 0; k < p->cells; k++) read_weights(p, q, p->tag, k, k, n, start + first * n + k * pace, together);
    }
    for (int64_t member = 0; member < left; member++) {
        epur_member *m = &p->members[member];
        const int64_t group = member / p->share * p->share, true_t = time_of(p, m, t);
        const int64_t wait = left - group < p->share ? left - group : p->share;
        const int64_t begin = start + group * n + member - group, base = member * p->region;
        const float *h = t ? m->values + time_of(p, m, t - 1) * p->cells : m->initial;
        bring_x(p, member, t, true_t, begin, wait);
        compare(p, m, 0, m->operands + true_t * p->inputs, p->inputs);
        compare(p, m, slot, h, p->cells);
        for (int64_t k = 0; k < p->cells; k++) {
            const int64_t a = begin + k * pace, y_at = m->y + (m->spilled ? t % 2 * p->nh * p->sy : true_t * p->y_pitch);
            const float value = m->values[true_t * p->cells + k];
            read_operand(p, member, a, 0, p->nx, wait, OF_X, p->inputs, mark(t));
            read_operand(p, member, a + p->nx * wait, slot, p->nh, wait, OF_H, p->cells, mark(t - 1));
            const int64_t done = a + (n - 1) * wait + p->dpu;
            const int64_t written = multifunction(p, k, done, base + h_at + 2 * swing, y_at + k * p->ye, value);
            for (int q = 0; q < 4; q++) event(p->log, p->inputs_of[q], WRITE, OUTPUT_H, written, base + other + k * p->xe, p->xe);
            m->buffer[other / p->xe + k] = value, m->stamps[other / p->xe + k] = mark(t);
            if (written > last) last = written;
        }
        if (!m->spilled) continue;
        const int64_t from = m->y + t % 2 * p->nh * p->sy, size = p->nh * p->sy, bursts = bursts_of(p, size);
        taken(p, m->spilled + true_t * p->nh * p->width, p->out, p->out_size, (from - p->y_base) / p->ye, p->cells);
        paced(p->log, p->mid, READ, FETCHED, last + 1, from, p->sy, p->nh, p->burst, 1);
        events(p->log, p->dram, WRITE, FETCHED, last + 1, m->spill + true_t * bursts * p->burst, p->burst, bursts, p->burst, 1);
    }
    return last;
}

/* All rows of a pass come before it begins. */
static void probe_prefetch(epur_probe *p, int64_t begin, int64_t pace) {
    const int64_t n = p->nx + p->nh, of_neuron = row_bursts(p, n) * p->burst;
    for (int64_t k = 0; k < p->cells; k++) fetch_row(p, begin + k * pace, p->rows + k * of_neuron, p->tag, k, k, n);
}

/* A neuron's forward sums go to the intermediate memory, or come back. */
static void sums(epur_probe *p, int op, int64_t t, int64_t k, int64_t cycle) {
    const int64_t row = (time_of(p, p->members, t) - p->low) * p->cells + k;
    int64_t address = p->partials + row * (p->pe[0] + p->pe[1] + p->pe[2] + p->pe[3]);
    for (int q = 0; q < 4; q++) {
        event(p->log, p->mid, op, PARTIAL + q, cycle, address, p->pe[q]);
        if (op == WRITE)
            p->stored[row * 4 + q] = mark(t);
        else
            p->wrong += p->stored[row * 4 + q] != mark(t);
        address += p->pe[q];
    }
}

/* x of step t comes from the intermediate memory. */
static void stored_x(epur_probe *p, int64_t t, int64_t cycle) {
    epur_member *m = p->members;
    const int64_t true_t = time_of(p, m, t);
    bring_x(p, 0, t, true_t, cycle, 1);
    compare(p, m, 0, m->operands + true_t * p->inputs, p->inputs);
}

/* MWL: neuron k's forward products over a stretch, its rows fetched at `loaded`. */
static void probe_forward(epur_probe *p, int64_t k, int64_t loaded) {
    const int64_t of_x = row_bursts(p, p->nx), of_h = row_bursts(p, p->nh), tag = p->tag_x;
    int64_t moved = 0;
    for (int q = 0; q < 4; q++) {
        const int64_t size = p->nx * p->sw[q], address = k % 2 * size;
        put(p->row[q] + address / p->width, tag, k, size / p->width);
        moved += fetch(p, loaded + moved, p->rows + (k * of_x + moved) * p->burst, size, &p->row_of[q], 1, FETCHED, address,
                       p->sw[q]);
    }
    if (p->begun == 0 && k < p->stay)
        fetch_row(p, loaded + of_x, p->rows + (p->cells * of_x + k * of_h) * p->burst, p->tag, k, k, p->nh);
    for (int64_t t = p->begun; t < p->begun + p->span; t++) {
        const int64_t first = loaded + p->pace + (t - p->begun) * p->nx;
        stored_x(p, t, first);
        for (int q = 0; q < 4; q++) {
            const int64_t size = p->nx * p->sw[q], address = k % 2 * size;
            events(p->log, p->row_of[q], READ, OF_X, first, address, p->sw[q], p->nx, p->sw[q], 1);
            check(p, p->row[q] + address / p->width, tag, k, size / p->width);
        }
        read_operand(p, 0, first, 0, p->nx, 1, OF_X, p->inputs, mark(t));
        sums(p, WRITE, t, k, first + p->nx - 1 + p->dpu + p->quantise);
    }
}

/* Tiles: forward products of the `count` neurons from k on over a stretch; returns the cycle after. */
static int64_t probe_tile(epur_probe *p, int64_t k, int64_t count, int64_t cycle) {
    const int64_t tag = p->tag_x, of_x = row_bursts(p, p->nx) * p->burst;
    int64_t first = cycle + p->pace;
    for (int64_t t = p->begun; t < p->begun + p->span; t++) {
        const int64_t wait = t == p->begun ? p->pace : p->nx;
        stored_x(p, t, first);
        for (int64_t j = 0; j < count; j++, first += wait) {
            if (t == p->begun) fetch_row(p, first - p->pace, p->rows + (k + j) * of_x, tag, k + j, j, p->nx);
            for (int q = 0; q < 4; q++) read_weights(p, q, tag, k + j, j, p->nx, first, 1);
            read_operand(p, 0, first, 0, p->nx, 1, OF_X, p->inputs, mark(t));
            sums(p, WRITE, t, k + j, first + p->nx - 1 + p->dpu);
        }
        first += p->nx - wait;
    }
    return first;
}

/* MWL and tiles: recurrent step t, begun at `start` with `here` rows of W_h in the buffers, the others `pace` cycles
 * apart; sums come back with the DPU's result, or (`early`) before. Returns the cycle of the last h. */
static int64_t probe_recurrent(epur_probe *p, int64_t t, int64_t start, int64_t here, int64_t pace, int early) {
    epur_member *m = p->members;
    const int64_t true_t = time_of(p, m, t), of_x = row_bursts(p, p->nx), of_h = row_bursts(p, p->nh);
    const float *h = t ? m->values + time_of(p, m, t - 1) * p->cells : m->initial;
    int64_t last = 0;
    if (t) {
        const int64_t address = m->y + time_of(p, m, t - 1) * p->y_pitch;
        events(p->log, p->mid, READ, OF_H, start, address, p->sy, p->nh, p->sy, 1);
        taken(p, m->buffer, p->out, p->out_size, (address - p->y_base) / p->ye, p->nh * p->width);
        memset(m->stamps, mark(t - 1), (size_t)(p->nh * p->width));
        for (int q = 0; q < 4; q++) events(p->log, p->inputs_of[q], WRITE, OF_H, start, 0, p->sx, p->nh, p->sx, 1);
    }
    compare(p, m, 0, h, p->cells);
    for (int64_t k = 0; k < p->cells; k++) {
        const int64_t a = start + (k < here ? k * p->nh : here * p->nh + (k - here + 1) * pace);
        const int64_t done = a + p->nh - 1 + p->dpu, lies = k < p->stay ? k : p->stay + (k - p->stay) % 2;
        if (k >= here) fetch_row(p, a - pace, p->rows + (p->cells * of_x + k * of_h) * p->burst, p->tag, k, lies, p->nh);
        for (int q = 0; q < 4; q++) read_weights(p, q, p->tag, k, lies, p->nh, a, 1);
        read_operand(p, 0, a, 0, p->nh, 1, OF_H, p->cells, mark(t - 1));
        sums(p, READ, t, k, early ? a : done);
        last = multifunction(p, k, done + p->lookup + p->add, p->cell_at, m->y + true_t * p->y_pitch + k * p->ye,
                             m->values[true_t * p->cells + k]);
    }
    return last;
}

/* From the intermediate memory to DRAM. */
static void probe_store(epur_probe *p, int64_t cycle, int64_t source, int64_t total, int64_t target) {
    const int64_t bursts = bursts_of(p, total);
    paced(p->log, p->mid, READ, FETCHED, cycle, source, p->sy, total / p->sy, p->burst, 1);
    events(p->log, p->dram, WRITE, FETCHED, cycle, target, p->burst, bursts, p->burst, 1);
}

#endif
