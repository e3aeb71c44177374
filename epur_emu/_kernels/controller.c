/* The controller of `controller.h`.
 *
 * A channel's queue holds its next requests, in a list for each bank. A bank knows the commands that its requests need
 * next, and finds them anew when it or they have changed. Each step finds the first clock at which all constraints allow
 * them; the earliest goes out, column commands before others, older requests before younger. A command that goes out
 * puts off those behind it, in its bank, group and rank. A refresh that is due keeps its banks from commands until it is
 * done.
 */
#include "controller.h"

#include <stdlib.h>
#include <string.h>

#define NEVER (-(INT64_C(1) << 61))
#define INLINE static inline __attribute__((always_inline))
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
        for (size_t b = 0; b < banks; b++) {
            ch->banks[b].row = ch->banks[b].first = ch->banks[b].last = -1;
            ch->banks[b].group = (int32_t)(b / (size_t)t->banks);
            ch->banks[b].rank = ch->banks[b].group / (int32_t)t->groups;
        }
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

static inline int64_t pre_time(const epur_dram *d, const dram_channel *ch, int32_t rank, int32_t bank) {
    int64_t at = bus_free(d, ch, 0, d->t.pre_clocks);
    at = later(at, ch->banks[bank].ok.ok[DRAM_CLOSES]);
    return later(at, ch->ranks[rank].ok.ok[DRAM_CLOSES]);
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
    ch->banks[bank].looked = 0;
    put_off(&ch->banks[bank].ok.ok[DRAM_OPENS], at + d->t.rp);
    k->until = later(k->until, at);
    if (--k->open == 0) k->active += k->until - k->since;
}

static void precharge(epur_dram *d, dram_channel *ch, int32_t rank, int32_t bank, int64_t at, int64_t id) {
    note(d, ch, at, DRAM_PRE, rank, bank, ch->banks[bank].row, -1, id);
    close_bank(d, ch, rank, bank, at);
    ch->ranks[rank].ok.ok[DRAM_CLOSES] = at + d->t.ppd;
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
    bank->ok.ok[DRAM_READS] = at + t->rcd_read;
    bank->ok.ok[DRAM_WRITES] = at + t->rcd_write;
    bank->ok.ok[DRAM_CLOSES] = at + t->ras;
    bank->ok.ok[DRAM_OPENS] = at + t->ras + t->rp;
    put_off(&ch->groups[q->group].ok[DRAM_OPENS], at + t->rrd_l);
    rank->act = at;
    rank->acts[rank->next_act] = at;
    rank->next_act = (rank->next_act + 1) % 4;
    put_off(&rank->ok.ok[DRAM_OPENS], later(at + t->rrd_s, rank->acts[rank->next_act] + t->faw));
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
    bank->ok.ok[DRAM_CLOSES] = later(bank->ok.ok[DRAM_CLOSES], write ? done + t->wr : at + t->rtp);
    put_off(&ch->groups[q.group].ok[write], at + t->ccd_l);
    put_off(&ch->ranks[q.rank].ok.ok[write], at + t->ccd_s);
    if (write) {
        put_off(&ch->groups[q.group].ok[DRAM_READS], done + t->wtr_l);
        put_off(&ch->ranks[q.rank].ok.ok[DRAM_READS], done + t->wtr_s);
    } else {
        put_off(&ch->ranks[q.rank].ok.ok[DRAM_WRITES], at + t->rtw);
    }
    if (d->p.closed) close_bank(d, ch, q.rank, q.bank, bank->ok.ok[DRAM_CLOSES]);
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
        ready = later(ready, ch->banks[b].ok.ok[DRAM_OPENS]);
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
    for (int64_t b = first; b < last; b++) {
        ch->banks[b].ok.ok[DRAM_OPENS] = at + (whole ? t->rfc : t->rfc_bank);
        ch->banks[b].looked = 0;
    }
    if (!whole) {
        ch->ranks[rank].bank_refresh = at;
        put_off(&ch->ranks[rank].ok.ok[DRAM_OPENS], at + t->rrefd);
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
        if (ch->banks[b].ok.ok[DRAM_OPENS] > due) return;
    if (ch->bus[0] + d->t.refresh_clocks > due) return;
    const int64_t slowest = d->p.refresh == DRAM_PER_BANK ? d->t.rfc_bank : d->t.rfc;
    if (wait < slowest + d->t.refresh_clocks) return;
    d->counts[d->p.refresh == DRAM_PER_BANK ? DRAM_REFPB : DRAM_REF] += (uint64_t)turns;
    ch->refreshes += turns;
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

/* What a request needs, as far as it and its bank are concerned. */
static inline dram_offer need(const epur_dram *d, const dram_channel *ch, const dram_bank *bank, int32_t place, int sort) {
    const int64_t clocks[DRAM_SORTS] = {d->t.column_clocks, d->t.column_clocks, d->t.act_clocks, d->t.pre_clocks};
    const dram_request *q = ch->queue + place;
    return (dram_offer){later(q->arrival + clocks[sort] - 1, bank->ok.ok[sort]),
                        (uint64_t)q->order + ((uint64_t)(sort >= DRAM_OPENS) << 63), place, sort};
}

/* Find what a bank's requests need next. Hits may pass older requests, but for a row's share. */
static void look(const epur_dram *d, const dram_channel *ch, dram_bank *bank) {
    const dram_request *oldest = ch->queue + bank->first;
    const int conflict = oldest->row != bank->row, full = bank->hits >= d->p.cap;
    const int sort = bank->row < 0 ? DRAM_OPENS : conflict ? DRAM_CLOSES : oldest->write;
    bank->looked = 1;
    bank->arrived = FAR;
    bank->offered = 1;
    if (d->p.scheduler == DRAM_IN_ORDER || bank->row < 0) {
        bank->offers[0] = need(d, ch, bank, bank->first, sort);
        return;
    }
    dram_offer *o = bank->offers;
    for (int write = 0; write < 2; write++) {
        int32_t place = full && conflict ? -1 : oldest_hit(ch, bank, write);
        if (full && place >= 0) {
            int32_t other = bank->first;
            while (other != place && ch->queue[other].row == bank->row) other = ch->queue[other].next;
            if (other != place) place = -1;
        }
        if (place < 0) continue;
        *o++ = need(d, ch, bank, place, write);
        if (ch->queue[place].arrival < bank->arrived) bank->arrived = ch->queue[place].arrival;
    }
    if (conflict) {
        *o = need(d, ch, bank, bank->first, DRAM_CLOSES);
        /* A row stays open for requests that are there. */
        o += bank->arrived > o->clock;
    }
    bank->offered = (int32_t)(o - bank->offers);
}

/* The command that goes out next, as far as is known. */
typedef struct {
    int64_t clock;
    uint64_t order;
    int64_t held; /* clock of the first command that a refresh holds back */
    const dram_offer *offer;
} dram_choice;

/* One or the other as all bits of the mask are set or not; compilers make branches of `?:`. */
static inline uint64_t pick(uint64_t mask, uint64_t one, uint64_t other) { return other ^ ((one ^ other) & mask); }

/* Groups up to which what they wait for is found once for all their banks. */
enum { DRAM_FEW = 4 };

/* The command that goes out next; `unit`, if not -1, must be refreshed at `due` before it gets more commands. */
INLINE dram_choice choose(const epur_dram *d, dram_channel *ch, const int few, int64_t unit, int64_t due) {
    const dram_timing *t = &d->t;
    const int64_t row_bus = ch->bus[0], column_bus = ch->bus[t->buses > 1] + t->column_clocks;
    const int64_t data[2] = {ch->data_end - t->read_latency, ch->data_end - t->write_latency};
    /* What all commands of a sort wait for: in each group if they are few, or on the rank that had the data bus last and
     * on others. */
    int64_t bus[DRAM_FEW][DRAM_SORTS];
    for (int n = 0; n < (few ? t->ranks * t->groups : 2); n++) {
        const int64_t rank = few ? n / t->groups : 0, turn = few ? ch->data_rank != rank : n;
        for (int write = 0; write < 2; write++) bus[n][write] = later(column_bus, data[write] + turn * t->rtrs);
        bus[n][DRAM_OPENS] = row_bus + t->act_clocks;
        bus[n][DRAM_CLOSES] = row_bus + t->pre_clocks;
        for (int sort = 0; sort < DRAM_SORTS && few; sort++)
            bus[n][sort] = later(later(bus[n][sort], ch->groups[n].ok[sort]), ch->ranks[rank].ok.ok[sort]);
    }
    const int in_order = d->p.scheduler == DRAM_IN_ORDER, whole = d->p.refresh == DRAM_ALL_BANK;
    dram_choice best = {FAR, UINT64_MAX, FAR, NULL};
    for (int64_t i = 0; i < ch->banks_busy; i++) {
        const int32_t number = ch->busy[i];
        dram_bank *bank = ch->banks + number;
        if (!bank->looked) look(d, ch, bank);
        const int64_t *shared = bus[few ? bank->group : ch->data_rank != bank->rank];
        const dram_offer *o = bank->offers, *end = o + bank->offered;
        for (; o != end; o++) {
            if (in_order && o->sort < DRAM_OPENS && o->order != (uint64_t)ch->served) continue;
            int64_t at = later(o->clock, shared[o->sort]);
            if (!few)
                at = later(later(at, ch->groups[bank->group].ok[o->sort]), ch->ranks[bank->rank].ok.ok[o->sort]);
            if (o->sort == DRAM_CLOSES && bank->arrived <= at) continue;
            if (unit >= 0 && at >= due && unit == (whole ? bank->rank : number)) {
                if (at < best.held) best.held = at;
                continue;
            }
            if (!best.offer) {
                best.clock = at;
                best.order = o->order;
                best.offer = o;
                continue;
            }
            /* Which bank is first is hard to foretell: no branch depends on it. */
            const uint64_t before = -(uint64_t)((at < best.clock) | ((at == best.clock) & (o->order < best.order)));
            best.clock = (int64_t)pick(before, (uint64_t)at, (uint64_t)best.clock);
            best.order = pick(before, o->order, best.order);
            best.offer = (const dram_offer *)pick(before, (uintptr_t)o, (uintptr_t)best.offer);
        }
    }
    return best;
}

/* Issue the next command of a channel, for a request or a refresh. */
static void step(epur_dram *d, dram_channel *ch) {
    const int64_t due = d->p.refresh == DRAM_NO_REFRESH ? FAR : (ch->refreshes + 1) * d->interval;
    const int64_t groups = d->t.ranks * d->t.groups;
    const int few = groups <= DRAM_FEW && ch->banks_busy >= 2 * groups;
    dram_choice best = few ? choose(d, ch, 1, -1, due) : choose(d, ch, 0, -1, due);
    if (best.clock >= due) {
        best = choose(d, ch, 0, ch->refreshes % units(d), due);
        skip(d, ch, due, best.clock < best.held ? best.clock : best.held);
        if (refresh(d, ch, (ch->refreshes + 1) * d->interval, best.clock)) return;
    }
    const int32_t place = best.offer->place;
    const dram_request *q = ch->queue + place;
    if (best.offer->sort < DRAM_OPENS)
        column(d, ch, place, best.clock);
    else if (best.offer->sort == DRAM_CLOSES)
        precharge(d, ch, q->rank, q->bank, best.clock, q->id);
    else
        activate(d, ch, q, best.clock);
}

/* The clock of a cycle of the trace. */
static inline int64_t clock_of(const dram_policy *p, uint64_t cycle) {
    const uint64_t numerator = (uint64_t)p->numerator, denominator = (uint64_t)p->denominator;
    uint64_t product;
    if (__builtin_mul_overflow(cycle, numerator, &product))
        return (int64_t)((unsigned __int128)cycle * numerator / denominator);
    return (int64_t)(product / denominator);
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
            /* Behind others, only one more hit changes what they need. */
            if (own->first < 0 || own->row == q->row) own->looked = 0;
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
            if (!d->p.numerator) continue;
            if (cycle[d->at] != d->cycle) {
                d->cycle = cycle[d->at];
                d->clock = clock_of(&d->p, (uint64_t)d->cycle);
            }
            q->arrival = d->clock;
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
