/* The probe's memories, its log, and what each CPU level gives; `probe.h` says how. */
#ifndef EPUR_PROBE_API_H
#define EPUR_PROBE_API_H

#include <stddef.h>
#include <stdint.h>

enum { READ, WRITE };
/* Places in a component that are accessed in patterns of their own; of fetches those that take turns. */
enum { FETCHED, OF_X = FETCHED + 8, OF_H, BIAS, PEEPHOLE, CELL, OUTPUT_H, PARTIAL = OUTPUT_H + 2, ROLES = PARTIAL + 4 };
enum { INITIAL_ZERO, INITIAL_DRAM, INITIAL_KEPT };
enum { FROM_DRAM, FROM_MEMORY, FROM_SPILLED };

typedef struct {
    int64_t count, by, wait; /* turns; address and cycles from one to the next */
} epur_loop;

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
    epur_site *sites; /* (components, 2, lanes) */
    int64_t lanes;    /* ROLES for each sequence of a pass */
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
    int64_t held_size, row_size; /* units */
    uint32_t *held[4]; /* weight buffers: number of each unit */
    uint32_t *row[4];  /* row buffers */
    uint8_t *stored;   /* partial sums of a stretch (steps, cells, 4): of which step */
    int64_t wrong;
    epur_log *log;
} epur_probe;

/* What can be walked; `probe.h` says what the arguments are. */
typedef struct {
    int64_t (*parameters)(epur_probe *, int64_t);
    void (*state)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t);
    void (*stage)(epur_probe *, int64_t, int64_t, int64_t, int64_t);
    void (*prefetch)(epur_probe *, int64_t, int64_t);
    int64_t (*epur)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
    void (*forward)(epur_probe *, int64_t, int64_t, int64_t);
    int64_t (*tile)(epur_probe *, int64_t, int64_t, int64_t);
    int64_t (*recurrent)(epur_probe *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
    void (*store)(epur_probe *, int64_t, int64_t, int64_t, int64_t);
} epur_walks;

extern const epur_walks epur_walks_scalar;
#if defined(__x86_64__)
extern const epur_walks epur_walks_avx2, epur_walks_avx512;
#endif

#endif
