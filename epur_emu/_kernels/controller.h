/* A DRAM controller, command by command: what `controller.c` keeps and gives.
 *
 * Times are clocks of the command bus. A command's time is that of its last clock, as JEDEC counts; one of n clocks
 * takes the bus from t - n + 1 to t. Between events nothing changes, so time goes from command to command.
 */
#ifndef EPUR_DRAM_H
#define EPUR_DRAM_H

#include <stddef.h>
#include <stdint.h>

enum { DRAM_DONE, DRAM_NO_MEMORY, DRAM_LOG_FULL };
enum { DRAM_ACT, DRAM_PRE, DRAM_RD, DRAM_WR, DRAM_RDA, DRAM_WRA, DRAM_REF, DRAM_REFPB, DRAM_KINDS };
enum { DRAM_IN_ORDER, DRAM_FR_FCFS };
enum { DRAM_ALL_BANK, DRAM_PER_BANK, DRAM_NO_REFRESH };
enum { DRAM_FINE = 16, DRAM_BINS = DRAM_FINE * 60 };
/* Columns of the log: clock, kind, channel, rank, group, bank in its group, row, column (in bursts), request. */
enum { DRAM_LOG = 9 };

/* All int64, so that Python fills it as an array; the order is that of `TIMING` in dram.pyx. */
typedef struct {
    int64_t channels, ranks, groups, banks; /* banks of a group */
    int64_t burst;                          /* clocks of data */
    int64_t read_latency, write_latency;    /* from a column command to its first data */
    int64_t write_late;                     /* clocks more until what counts from a write's data begins */
    int64_t rcd_read, rcd_write, rp, ras, rtp, wr;
    int64_t rrd_s, rrd_l, faw, ccd_s, ccd_l, wtr_s, wtr_l, rtw, rtrs, ppd;
    int64_t rfc, refi, rfc_bank, rrefd;
    int64_t act_clocks, pre_clocks, column_clocks, refresh_clocks;
    int64_t buses; /* 2 if column commands have a bus of their own */
} dram_timing;

/* Fields of a burst's number, in the order channel, rank, group, bank, row, column. */
enum { DRAM_CHANNEL, DRAM_RANK, DRAM_GROUP, DRAM_BANK, DRAM_ROW, DRAM_COLUMN, DRAM_FIELDS };

typedef struct {
    int64_t shift[DRAM_FIELDS], mask[DRAM_FIELDS];
    int64_t burst_shift; /* from byte address to burst */
    int64_t permuted;    /* whether the bank is changed by the row's lowest bits */
} dram_mapping;

typedef struct {
    int64_t scheduler, queue, cap, closed, refresh;
    int64_t numerator, denominator; /* clocks for each cycle of the trace; 0 is the closed loop */
} dram_policy;

typedef struct {
    int64_t arrival, id, row, column;
    int64_t order;              /* in its channel */
    int32_t rank, group, bank;  /* group and bank count within the channel */
    int32_t write;
    int32_t next;               /* younger request of the bank, or -1 */
} dram_request;

/* Kinds of commands as the timings tell them apart. */
enum { DRAM_READS, DRAM_WRITES, DRAM_OPENS, DRAM_CLOSES, DRAM_SORTS };

/* Clocks before which no such command may go out: of a bank, a group (whose last is not used), a rank. */
typedef struct {
    int64_t ok[DRAM_SORTS];
} dram_ready;

/* A command that a bank's requests need. */
typedef struct {
    int64_t clock;  /* before which neither the request nor the bank allow it */
    uint64_t order; /* of the request; 2**63 more for row commands, which come behind column commands */
    int32_t place;  /* of the request */
    int32_t sort;
} dram_offer;

typedef struct {
    int64_t row; /* -1 is closed */
    int64_t hits;
    dram_ready ok;
    dram_offer offers[3]; /* a read, a write, an activation or precharge, those there are; if `looked` */
    int64_t arrived;      /* when the first of the column commands' requests came; if `looked` */
    int32_t offered, looked;
    int32_t first, last;  /* oldest and youngest request that waits, or -1 */
    int32_t waiting[2];   /* reads and writes */
    int32_t place;        /* in the channel's list of busy banks */
    int32_t rank, group;
} dram_bank;

typedef struct {
    int64_t act, bank_refresh;         /* clocks of the last command */
    int64_t acts[4], next_act;         /* the last four */
    int64_t open, since, until, active;
    dram_ready ok;
} dram_rank;

typedef struct {
    dram_request *queue;
    int32_t *spare, *busy; /* places free in the queue; banks with requests */
    int64_t waiting, banks_busy;
    int64_t taken, served; /* requests so far */
    dram_bank *banks;
    dram_ready *groups;
    dram_rank *ranks;
    int64_t bus[2];              /* last clock taken */
    int64_t data_end, data_rank; /* the data bus is taken before */
    int64_t refreshes;           /* done */
    int64_t freed;               /* clock at which the queue last had room */
    int64_t end;                 /* of the last data */
} dram_channel;

typedef struct {
    dram_timing t;
    dram_mapping m;
    dram_policy p;
    dram_channel *channel;
    int64_t interval; /* clocks between refreshes of one unit and the next */
    uint64_t counts[DRAM_KINDS];
    uint64_t hits[2];                   /* reads and writes to a row that a request before had used */
    uint64_t latency[2][DRAM_BINS];     /* by bin, reads and writes */
    uint64_t latency_low[2], latency_high[2]; /* sums */
    int64_t latency_least[2], latency_most[2];
    uint64_t requests;
    int64_t *log; /* or NULL */
    int64_t log_room, log_used;
    int64_t cycle, clock; /* of the last arrival */
    ptrdiff_t at;   /* next access of a feed */
    int64_t part;   /* next burst of it */
} epur_dram;

/* int64 by access: cycle, address, bytes IN (n); op IN (n) 0 read, 1 write. DRAM_LOG_FULL: empty the log, call again. */
int epur_dram_feed(epur_dram *, const int64_t *cycle, const int64_t *address, const int64_t *bytes, const uint8_t *op,
                   ptrdiff_t n);
/* Serve all that waits. */
int epur_dram_flush(epur_dram *);
int epur_dram_start(epur_dram *);
void epur_dram_free(epur_dram *);
int epur_dram_bin(int64_t latency);

#endif
