/* The controller of `controller.h`.
 *
 * A channel's queue holds its next requests, in a list for each bank. Each step finds, for every bank that has any, the
 * commands that its requests need next and the first clock at which all constraints allow them; the earliest goes out,
 * column commands before others, older requests before younger. A command that goes out puts off those behind it, in
 * its bank, group and rank. A refresh that is due keeps its banks from commands until it is done.
 */
#include "controller.h"

#include <stdlib.h>
#include <string.h>

#define NEVER (-(INT64_C(1) << 61))
#define FAR (INT64_C(1) << 62)

static inline int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

/* Units of refresh: ranks, or banks of all ranks, in turn; each has its own after every tREFI. */
static inline int64_t units(const epur_dram *d) {
    return d->t.ranks * (d->p.refresh == DRAM_PER_BANK ? d->t.groups * d->t.banks : 1);
}

int epur_dram_bin(int64_t latency) {
    if (latency < DRAM_FINE) return (int)latency;
    const int doubling = 63 - __builtin_clzll((uint64_t)latency) - 4;
    return doubling * DRAM_FINE + (int)(latency >> doubling);
}

int epur_dram_start(epur_dram *d) {
    const dram_timing *t = &d->t;
    const size_t banks = (size_t)(t->ranks * t->groups * t->banks), groups = (size_t)(t->ranks * t->groups);
    d->channel = calloc((size_t)t->channels, sizeof *d->channel);
    if (!d->channel) return DRAM_NO_MEMORY;
    for (int64_t c = 0; c < t->channels; c++) {
        dram_channel *ch = d->channel + c;
        ch->queue = calloc((size_t)d->p.queue, sizeof *ch->queue);
        ch->banks = calloc(banks, sizeof *ch->banks);
        ch->groups = calloc(groups, sizeof *ch->groups);
        ch->ranks = calloc((size_t)t->ranks, sizeof *ch->ranks);
        ch->spare = calloc((size_t)d->p.queue, sizeof *ch->spare);
        ch->busy = calloc(banks, sizeof *ch->busy);
        if (!ch->queue || !ch->banks || !ch->groups || !ch->ranks || !ch->spare || !ch->busy) return DRAM_NO_MEMORY;
        for (int32_t i = 0; i < d->p.queue; i++) ch->spare[i] = i;
        for (size_t b = 0; b < banks; b++) ch->banks[b].row = ch->banks[b].first = ch->banks[b].last = -1;
        for (int64_t r = 0; r < t->ranks; r++) {
            dram_rank *k = ch->ranks + r;
            k->act = k->bank_refresh = NEVER;
            for (int i = 0; i < 4; i++) k->acts[i] = NEVER;
        }
        ch->bus[0] = ch->bus[1] = -1;
        ch->data_end = NEVER;
    }
    d->interval = d->t.refi / units(d);
    d->latency_least[0] = d->latency_least[1] = FAR;
    return DRAM_DONE;
}

void epur_dram_free(epur_dram *d) {
    for (int64_t c = 0; d->channel && c < d->t.channels; c++) {
        free(d->channel[c].queue);
        free(d->channel[c].banks);
        free(d->channel[c].groups);
        free(d->channel[c].ranks);
        free(d->channel[c].spare);
        free(d->channel[c].busy);
    }
    free(d->channel);
}

static inline int64_t bus_free(const epur_dram *d, const dram_channel *ch, int column, int64_t clocks) {
    return ch->bus[column && d->t.buses > 1] + clocks;
}

static inline void put_off(int64_t *at, int64_t until) {
    if (*at < until) *at = until;
}

static inline int64_t column_time(const epur_dram *d, const dram_channel *ch, const dram_request *q) {
    const dram_timing *t = &d->t;
    const int write = q->write;
    int64_t at = later(bus_free(d, ch, 1, t->column_clocks), q->arrival + t->column_clocks - 1);
    at = later(at, ch->data_end + (ch->data_rank != q->rank ? t->rtrs : 0) -
                       (write ? t->write_latency : t->read_latency));
    at = later(at, ch->banks[q->bank].ok.column[write]);
    at = later(at, ch->groups[q->group].column[write]);
    return later(at, ch->ranks[q->rank].ok.column[write]);
}

static inline int64_t act_time(const epur_dram *d, const dram_channel *ch, const dram_request *q) {
    int64_t at = later(bus_free(d, ch, 0, d->t.act_clocks), q->arrival + d->t.act_clocks - 1);
    at = later(at, ch->banks[q->bank].ok.act);
    at = later(at, ch->groups[q->group].act);
    return later(at, ch->ranks[q->rank].ok.act);
}

static inline int64_t pre_time(const epur_dram *d, const dram_channel *ch, int32_t rank, int32_t bank) {
    int64_t at = bus_free(d, ch, 0, d->t.pre_clocks);
    at = later(at, ch->banks[bank].pre_ok);
    return later(at, ch->ranks[rank].pre_ok);
}

static void note(epur_dram *d, const dram_channel *ch, int64_t at, int kind, int64_t rank, int64_t bank, int64_t row,
                 int64_t column, int64_t id) {
    d->counts[kind]++;
    if (!d->log) return;
    int64_t *line = d->log + DRAM_LOG * d->log_used++;
    const int64_t own = bank < 0 ? -1 : bank % (d->t.groups * d->t.banks);
    line[0] = at;
    line[1] = kind;
    line[2] = ch - d->channel;
    line[3] = rank;
    line[4] = bank < 0 ? -1 : own / d->t.banks;
    line[5] = bank < 0 ? -1 : own % d->t.banks;
    line[6] = row;
    line[7] = column;
    line[8] = id;
}

static void close_bank(const epur_dram *d, dram_channel *ch, int64_t rank, int64_t bank, int64_t at) {
    dram_rank *k = ch->ranks + rank;
    ch->banks[bank].row = -1;
    put_off(&ch->banks[bank].ok.act, at + d->t.rp);
    k->until = later(k->until, at);
    if (--k->open == 0) k->active += k->until - k->since;
}

static void precharge(epur_dram *d, dram_channel *ch, int32_t rank, int32_t bank, int64_t at, int64_t id) {
    note(d, ch, at, DRAM_PRE, rank, bank, ch->banks[bank].row, -1, id);
    close_bank(d, ch, rank, bank, at);
    ch->ranks[rank].pre_ok = at + d->t.ppd;
    ch->bus[0] = at;
}

static void activate(epur_dram *d, dram_channel *ch, const dram_request *q, int64_t at) {
    const dram_timing *t = &d->t;
    dram_bank *bank = ch->banks + q->bank;
    dram_rank *rank = ch->ranks + q->rank;
    note(d, ch, at, DRAM_ACT, q->rank, q->bank, q->row, -1, q->id);
    bank->row = q->row;
    bank->hits = 0;
    bank->looked = 0;
    bank->ok.column[0] = at + t->rcd_read;
    bank->ok.column[1] = at + t->rcd_write;
    bank->pre_ok = at + t->ras;
    bank->ok.act = at + t->ras + t->rp;
    put_off(&ch->groups[q->group].act, at + t->rrd_l);
    rank->act = at;
    rank->acts[rank->next_act] = at;
    rank->next_act = (rank->next_act + 1) % 4;
    put_off(&rank->ok.act, later(at + t->rrd_s, rank->acts[rank->next_act] + t->faw));
    if (rank->open++ == 0) rank->since = later(at, rank->until);
    ch->bus[0] = at;
}

/* Take a request out of its bank's list and the queue. */
static void take_out(dram_channel *ch, dram_bank *bank, int32_t place) {
    const dram_request *q = ch->queue + place;
    int32_t before = -1;
    for (int32_t i = bank->first; i != place; i = ch->queue[i].next) before = i;
    if (before < 0)
        bank->first = q->next;
    else
        ch->queue[before].next = q->next;
    if (bank->last == place) bank->last = before;
    bank->waiting[q->write]--;
    bank->looked = 0;
    if (bank->first < 0) {
        const int32_t moved = ch->busy[--ch->banks_busy];
        ch->busy[bank->place] = moved;
        ch->banks[moved].place = bank->place;
    }
    ch->spare[--ch->waiting] = place;
    ch->served++;
}

static void column(epur_dram *d, dram_channel *ch, int32_t place, int64_t at) {
    const dram_timing *t = &d->t;
    const dram_request q = ch->queue[place];
    dram_bank *bank = ch->banks + q.bank;
    const int write = q.write;
    const int64_t begin = at + (write ? t->write_latency : t->read_latency);
    const int64_t done = begin + t->burst + (write ? t->write_late : 0);
    note(d, ch, at, (write ? DRAM_WR : DRAM_RD) + (d->p.closed ? DRAM_RDA - DRAM_RD : 0), q.rank, q.bank, q.row,
         q.column, q.id);
    d->hits[write] += bank->hits++ > 0;
    bank->pre_ok = later(bank->pre_ok, write ? done + t->wr : at + t->rtp);
    put_off(&ch->groups[q.group].column[write], at + t->ccd_l);
    put_off(&ch->ranks[q.rank].ok.column[write], at + t->ccd_s);
    if (write) {
        put_off(&ch->groups[q.group].column[0], done + t->wtr_l);
        put_off(&ch->ranks[q.rank].ok.column[0], done + t->wtr_s);
    } else {
        put_off(&ch->ranks[q.rank].ok.column[1], at + t->rtw);
    }
    if (d->p.closed) close_bank(d, ch, q.rank, q.bank, bank->pre_ok);
    ch->bus[t->buses > 1] = at;
    ch->data_end = begin + t->burst;
    ch->data_rank = q.rank;
    ch->end = later(ch->end, done);
    const int64_t latency = done - q.arrival;
    d->latency[write][epur_dram_bin(latency)]++;
    d->latency_low[write] += (uint64_t)latency;
    d->latency_high[write] += d->latency_low[write] < (uint64_t)latency;
    if (latency < d->latency_least[write]) d->latency_least[write] = latency;
    if (latency > d->latency_most[write]) d->latency_most[write] = latency;
    take_out(ch, bank, place);
    ch->freed = at;
}

/* The next command of the refresh that is due at `due`, if its clock is not after `limit`; whether it went out. */
static int refresh(epur_dram *d, dram_channel *ch, int64_t due, int64_t limit) {
    const dram_timing *t = &d->t;
    const int64_t each = t->groups * t->banks, unit = ch->refreshes % units(d);
    const int whole = d->p.refresh == DRAM_ALL_BANK;
    const int64_t rank = whole ? unit : unit / each;
    const int64_t first = whole ? unit * each : unit, last = whole ? first + each : first + 1;
    int64_t at = FAR, close = -1, ready = bus_free(d, ch, 0, t->refresh_clocks);
    for (int64_t b = first; b < last; b++) {
        ready = later(ready, ch->banks[b].ok.act);
        if (ch->banks[b].row < 0) continue;
        const int64_t own = pre_time(d, ch, (int32_t)rank, (int32_t)b);
        if (later(own, due) < at) {
            at = later(own, due);
            close = b;
        }
    }
    if (close >= 0) {
        if (at > limit) return 0;
        precharge(d, ch, (int32_t)rank, (int32_t)close, at, -1);
        return 1;
    }
    at = later(ready, due);
    if (!whole) {
        at = later(at, ch->ranks[rank].act + t->rrd_s);
        at = later(at, ch->ranks[rank].bank_refresh + t->rfc_bank);
    }
    if (at > limit) return 0;
    note(d, ch, at, whole ? DRAM_REF : DRAM_REFPB, rank, whole ? -1 : unit, -1, -1, -1);
    for (int64_t b = first; b < last; b++) ch->banks[b].ok.act = at + (whole ? t->rfc : t->rfc_bank);
    if (!whole) {
        ch->ranks[rank].bank_refresh = at;
        put_off(&ch->ranks[rank].ok.act, at + t->rrefd);
    }
    ch->bus[0] = at;
    ch->refreshes++;
    return 1;
}

/* Refreshes that go out in idle time, each at its own clock, without one by one: none if commands are logged. */
static void skip(epur_dram *d, dram_channel *ch, int64_t due, int64_t limit) {
    const int64_t wait = d->interval, left = 2 * units(d) + 2, turns = (limit - due) / wait - left;
    if (d->log || turns < 1 || ch->refreshes < left) return;
    /* Refreshes must be the rule: none late, all banks closed for long. */
    for (int64_t r = 0; r < d->t.ranks; r++)
        if (ch->ranks[r].open) return;
    for (int64_t b = 0; b < d->t.ranks * d->t.groups * d->t.banks; b++)
        if (ch->banks[b].ok.act > due) return;
    if (ch->bus[0] + d->t.refresh_clocks > due) return;
    const int64_t slowest = d->p.refresh == DRAM_PER_BANK ? d->t.rfc_bank : d->t.rfc;
    if (wait < slowest + d->t.refresh_clocks) return;
    d->counts[d->p.refresh == DRAM_PER_BANK ? DRAM_REFPB : DRAM_REF] += (uint64_t)turns;
    ch->refreshes += turns;
}

/* Whether a request's bank is the next to be refreshed. */
static inline int refreshed(const epur_dram *d, const dram_channel *ch, const dram_request *q) {
    return ch->refreshes % units(d) == (d->p.refresh == DRAM_PER_BANK ? q->bank : q->rank);
}

/* The command that goes out next, as far as is known. */
typedef struct {
    int64_t clock, order, due;
    int64_t held; /* clock of the first command that a refresh holds back */
    int32_t place;
    int kind; /* DRAM_RD stands for all column commands */
} dram_choice;

/* Take a command instead of the one chosen, if it goes before it. */
static inline void offer(const epur_dram *d, const dram_channel *ch, dram_choice *best, int32_t place, int kind,
                         int64_t at) {
    const dram_request *q = ch->queue + place;
    if (at >= best->due && refreshed(d, ch, q)) {
        if (at < best->held) best->held = at;
        return;
    }
    if (at > best->clock) return;
    if (at == best->clock) {
        const int row = kind != DRAM_RD, other = best->kind != DRAM_RD;
        if (row != other ? row : q->order > best->order) return;
    }
    best->clock = at;
    best->order = q->order;
    best->place = place;
    best->kind = kind;
}

/* The oldest request of a bank that hits its open row, by direction; the same burst is read and written in order. */
static int32_t oldest_hit(const dram_channel *ch, const dram_bank *bank, int write) {
    const int mixed = bank->waiting[!write] > 0;
    if (!bank->waiting[write]) return -1;
    for (int32_t i = bank->first; i >= 0; i = ch->queue[i].next) {
        const dram_request *q = ch->queue + i;
        if (q->row != bank->row || q->write != write) continue;
        int32_t o = mixed ? bank->first : i;
        for (; o != i; o = ch->queue[o].next)
            if (ch->queue[o].row == q->row && ch->queue[o].column == q->column && ch->queue[o].write != write) break;
        if (o == i) return i;
    }
    return -1;
}

/* Look for the requests that hit a bank's open row; they may pass older ones, but for a row's share. */
static void look(const epur_dram *d, const dram_channel *ch, dram_bank *bank) {
    const int conflict = ch->queue[bank->first].row != bank->row, full = bank->hits >= d->p.cap;
    for (int write = 0; write < 2; write++) {
        int32_t place = full && conflict ? -1 : oldest_hit(ch, bank, write);
        if (full && place >= 0) {
            int32_t o = bank->first;
            while (o != place && ch->queue[o].row == bank->row) o = ch->queue[o].next;
            if (o != place) place = -1;
        }
        bank->hit[write] = place;
    }
    bank->looked = 1;
}

/* What a bank's requests need next, if a row is open. */
static inline void offer_open(const epur_dram *d, const dram_channel *ch, dram_bank *bank, dram_choice *best) {
    int64_t arrived = FAR;
    if (!bank->looked) look(d, ch, bank);
    for (int write = 0; write < 2; write++) {
        if (bank->hit[write] < 0) continue;
        const dram_request *q = ch->queue + bank->hit[write];
        if (q->arrival < arrived) arrived = q->arrival;
        offer(d, ch, best, bank->hit[write], DRAM_RD, column_time(d, ch, q));
    }
    const dram_request *oldest = ch->queue + bank->first;
    if (oldest->row == bank->row) return;
    const int64_t at =
        later(pre_time(d, ch, oldest->rank, oldest->bank), oldest->arrival + d->t.pre_clocks - 1);
    if (arrived > at) offer(d, ch, best, bank->first, DRAM_PRE, at);
}

/* Issue the next command of a channel, for a request or a refresh. */
static void step(epur_dram *d, dram_channel *ch) {
    const int64_t due = d->p.refresh == DRAM_NO_REFRESH ? FAR : (ch->refreshes + 1) * d->interval;
    dram_choice best = {FAR, FAR, due, FAR, -1, DRAM_ACT};
    for (int64_t i = 0; i < ch->banks_busy; i++) {
        dram_bank *bank = ch->banks + ch->busy[i];
        const dram_request *q = ch->queue + bank->first;
        if (bank->row < 0) {
            offer(d, ch, &best, bank->first, DRAM_ACT, act_time(d, ch, q));
        } else if (d->p.scheduler == DRAM_FR_FCFS) {
            offer_open(d, ch, bank, &best);
        } else if (bank->row != q->row) {
            const int64_t at = later(pre_time(d, ch, q->rank, q->bank), q->arrival + d->t.pre_clocks - 1);
            offer(d, ch, &best, bank->first, DRAM_PRE, at);
        } else if (q->order == ch->served) {
            offer(d, ch, &best, bank->first, DRAM_RD, column_time(d, ch, q));
        }
    }
    if (best.clock >= due) {
        skip(d, ch, due, best.clock < best.held ? best.clock : best.held);
        if (refresh(d, ch, (ch->refreshes + 1) * d->interval, best.clock)) return;
    }
    const dram_request *q = ch->queue + best.place;
    if (best.kind == DRAM_RD)
        column(d, ch, best.place, best.clock);
    else if (best.kind == DRAM_PRE)
        precharge(d, ch, q->rank, q->bank, best.clock, q->id);
    else
        activate(d, ch, q, best.clock);
}

static inline int64_t field(const dram_mapping *m, int which, uint64_t burst) {
    return (int64_t)(burst >> m->shift[which]) & m->mask[which];
}

int epur_dram_feed(epur_dram *d, const int64_t *cycle, const int64_t *address, const int64_t *bytes, const uint8_t *op,
                   ptrdiff_t n) {
    const dram_mapping *m = &d->m;
    const int64_t each = d->t.groups * d->t.banks;
    for (; d->at < n; d->at++, d->part = 0) {
        const uint64_t first = (uint64_t)address[d->at] >> m->burst_shift;
        const uint64_t last = ((uint64_t)address[d->at] + (uint64_t)bytes[d->at] - 1) >> m->burst_shift;
        for (; first + (uint64_t)d->part <= last; d->part++) {
            const uint64_t burst = first + (uint64_t)d->part;
            dram_channel *ch = d->channel + field(m, DRAM_CHANNEL, burst);
            while (ch->waiting == d->p.queue) {
                if (d->log && d->log_used == d->log_room) return DRAM_LOG_FULL;
                step(d, ch);
            }
            const int32_t place = ch->spare[ch->waiting++];
            dram_request *q = ch->queue + place;
            q->row = field(m, DRAM_ROW, burst);
            q->column = field(m, DRAM_COLUMN, burst);
            q->rank = (int32_t)field(m, DRAM_RANK, burst);
            int64_t bank = field(m, DRAM_GROUP, burst) * d->t.banks + field(m, DRAM_BANK, burst);
            if (m->permuted) bank ^= q->row & (each - 1);
            q->group = q->rank * (int32_t)d->t.groups + (int32_t)(bank / d->t.banks);
            q->bank = q->rank * (int32_t)each + (int32_t)bank;
            q->write = op[d->at] != 0;
            q->order = ch->taken++;
            q->next = -1;
            dram_bank *own = ch->banks + q->bank;
            own->waiting[q->write]++;
            own->looked = 0;
            if (own->first < 0) {
                own->first = place;
                own->place = (int32_t)ch->banks_busy;
                ch->busy[ch->banks_busy++] = q->bank;
            } else {
                ch->queue[own->last].next = place;
            }
            own->last = place;
            q->id = (int64_t)d->requests++;
            q->arrival = ch->freed;
            if (d->p.numerator)
                q->arrival =
                    (int64_t)((unsigned __int128)cycle[d->at] * (uint64_t)d->p.numerator / (uint64_t)d->p.denominator);
        }
    }
    d->at = 0;
    return DRAM_DONE;
}

int epur_dram_flush(epur_dram *d) {
    for (int64_t c = 0; c < d->t.channels; c++)
        while (d->channel[c].waiting) {
            if (d->log && d->log_used == d->log_room) return DRAM_LOG_FULL;
            step(d, d->channel + c);
        }
    return DRAM_DONE;
}
