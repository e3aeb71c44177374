/* Integer dot products whose accumulator has a stated width; `lstm_int_api.h` says what is computed.
 *
 * Most additions can't go out of range, and a proof saves looking at each: within one block of inputs no partial sum
 * leaves |acc| by more than |w| |x| (Cauchy and Schwarz, lengths of the parts within the block). Where the accumulators
 * of a block of neurons have that much room the sums are computed in any order, modulo 2^32; else one by one.
 *
 * A block of neurons is finished before the next: its accumulators stay in the cache. One vector alone waits for its
 * weights: a time step that begins with the block with which the last one ended finds some of them in the nearer cache.
 *
 * Signed bytes. The instruction multiplies unsigned bytes by signed ones. With m = -1 where x < 0, else 0:
 *   w x = (w ^ m) |x| + (x < 0 ? |x| : 0)
 * since w ^ -1 = -w - 1. The last term does not depend on w: one `offset` for all rows. VNNI's instruction can't
 * saturate and takes its signed bytes from x: w x = (w + 128) x - 128 x, where w + 128 is w ^ 128 as an unsigned byte.
 */
#include "lstm_int_api.h"
#include "simd_int.h"

#define BLOCK EPUR_INT_BLOCK
#define ROWS 4                /* gates, whose rows lie together */
#define SUMS (ROWS * 16)      /* of a block of neurons */
#define GROUP (ROWS * 64)     /* bytes of a group of inputs */
#define VECTORS 32            /* whose sums stay in the cache together */
#define AHEAD 4096            /* bytes to prefetch: one vector alone waits for its weights */
#define TILE 4                /* vectors, and the gates whose sums for them fit into registers: */
#define GATES (VW == 16 ? ROWS : 1)

/* Some vectors, ready for the multipliers: their int16, or their m and from `half` on their |x| (VNNI: x) as bytes (narrow).
 * `length`, `offset`: of each vector's part in a block of inputs. */
typedef struct {
    int32_t *word, *offset;
    double *length;
    ptrdiff_t pitch, half; /* int32 from vector to vector, and to |x| */
    ptrdiff_t blocks;      /* of inputs */
} operands;

typedef struct {
    const int_matrix *w;
    const int_width *width;
    double room;      /* largest value of the narrowest accumulator */
    int small;        /* whether a tree's sum and an accumulator's fit into int32 */
    int64_t *seen;
} job;

#if defined(VNNI)
#define MASK(x) 0 /* not read */
#define BYTE(x) (x)
#define OFFSET(x) (-128 * (x))
#else
#define MASK(x) ((x) >> 15)
#define BYTE(x) ((x) < 0 ? -(x) : (x))
#define OFFSET(x) (-((x) & (x) >> 15))
#endif

static inline int32_t offset_of(const int16_t *x, ptrdiff_t n) {
    int32_t sum = 0;
    for (ptrdiff_t k = 0; k < n; k++) sum += OFFSET(x[k]);
    return sum;
}

/* Vectors of n inputs, to `room` of the size that `int_room` states. */
static operands prepared(const int_matrix *w, const int16_t *x, ptrdiff_t nv, void *room) {
    const ptrdiff_t n = w->inputs, blocks = (n + BLOCK - 1) / BLOCK;
    operands to = {.pitch = EPUR_INT_PITCH(n), .half = n / 4, .blocks = blocks};
    to.word = (int32_t *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
    to.length = (double *)(to.word + nv * to.pitch);
    to.offset = (int32_t *)(to.length + nv * blocks);
    for (ptrdiff_t v = 0; v < nv; v++, x += n) {
        for (ptrdiff_t b = 0; b < blocks; b++) {
            const ptrdiff_t first = b * BLOCK, count = n - first < BLOCK ? n - first : BLOCK;
            int64_t energy = 0;
            for (ptrdiff_t k = first; k < first + count; k++) energy += x[k] * x[k];
            to.length[v * blocks + b] = sqrt((double)energy);
            to.offset[v * blocks + b] = w->narrow ? offset_of(x + first, count) : 0;
        }
        if (w->narrow) {
            int8_t *mask = (int8_t *)(to.word + v * to.pitch), *magnitude = mask + n;
            for (ptrdiff_t k = 0; k < n; k++) {
                mask[k] = (int8_t)MASK(x[k]);
                magnitude[k] = (int8_t)BYTE(x[k]);
            }
        } else
            memcpy(to.word + v * to.pitch, x, (size_t)n * sizeof *x);
    }
    return to;
}

/* A bound of |a| for SUMS accumulators a. */
static inline double largest(const int32_t *acc) {
    int32_t lane[VW];
    vi top = vi_set(0);
    for (int at = 0; at < SUMS; at += VW) {
        const vi a = vi_load(acc + at);
        top = vi_max(top, vi_fold(a));
    }
    vi_store(lane, top);
    for (int i = 1; i < VW; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0] + 1.0;
}

/* Sums of `gates` gates and n vectors in registers, over `groups` groups of inputs; word: of vector v[0] ..., acc: likewise. */
static inline __attribute__((always_inline)) void sums(const uint8_t *w, const int32_t *const *word, ptrdiff_t half,
                                                       const int32_t *offset, int32_t *const *acc, ptrdiff_t groups,
                                                       const int gates, const int n, const int narrow) {
    vi sum[TILE][ROWS * VN];
    for (int u = 0; u < n; u++)
        for (int i = 0; i < gates * VN; i++) sum[u][i] = vi_add(vi_load(acc[u] + i * VW), vi_set(offset[u]));
    for (ptrdiff_t g = 0; g < groups; g++, w += GROUP) {
        for (int i = 0; i < gates * VN; i++) {
            const vi codes = vi_load(w + i * VW * 4);
            for (int u = 0; u < n; u++)
                sum[u][i] = narrow ? vi_fours(sum[u][i], codes, vi_set(word[u][g]), vi_set(word[u][half + g]))
                                   : vi_pairs(sum[u][i], codes, vi_set(word[u][g]));
        }
    }
    for (int u = 0; u < n; u++)
        for (int i = 0; i < gates * VN; i++) vi_store(acc[u] + i * VW, sum[u][i]);
}

/* All gates of one vector; two groups at a time, whose sums don't wait for each other. next: the weights to be read after these. */
static inline __attribute__((always_inline)) void sums_alone(const uint8_t *w, const int32_t *word, ptrdiff_t half,
                                                             int32_t offset, int32_t *acc, ptrdiff_t groups,
                                                             const uint8_t *next, const int narrow) {
    const uint8_t *ahead = w + AHEAD, *end = w + groups * GROUP;
    vi sum[2][ROWS * VN];
    for (int i = 0; i < ROWS * VN; i++) {
        sum[0][i] = vi_add(vi_load(acc + i * VW), vi_set(offset));
        sum[1][i] = vi_set(0);
    }
    for (ptrdiff_t g = 0; g < groups; g += 2, w += 2 * GROUP, ahead += 2 * GROUP) {
        if (ahead == end) ahead = next;
        for (int k = 0; k < 2; k++) {
            for (int i = 0; i < ROWS; i++) __builtin_prefetch(ahead + k * GROUP + i * 64);
            const vi first = vi_set(word[g + k]), second = vi_set(narrow ? word[half + g + k] : 0);
            for (int i = 0; i < ROWS * VN; i++) {
                const vi codes = vi_load(w + k * GROUP + i * VW * 4);
                sum[k][i] = narrow ? vi_fours(sum[k][i], codes, first, second) : vi_pairs(sum[k][i], codes, first);
            }
        }
    }
    for (int i = 0; i < ROWS * VN; i++) vi_store(acc + i * VW, vi_add(sum[0][i], sum[1][i]));
}

static int32_t in_range(int64_t sum, int_width width) {
    const int64_t half = (int64_t)1 << (width.bits - 1);
    if (sum >= -half && sum < half) return (int32_t)sum;
    if (width.overflow == WRAP) return (int32_t)(((sum + half) & (2 * half - 1)) - half);
    return (int32_t)(sum < 0 ? -half : half - 1);
}

/* The same for one gate, addition by addition, with int32 for a tree and its addition; offset: of each sub-vector. */
static void exact_small(const job *j, const uint8_t *w, const int32_t *word, ptrdiff_t half_word, const int32_t *offset,
                        ptrdiff_t inputs, int32_t *acc, int_width width, int32_t *out) {
    const int32_t half = (int32_t)1 << (width.bits - 1);
    const int spare = 32 - width.bits, narrow = j->w->narrow, groups = narrow ? 4 : 8;
    for (int i = 0; i < VN; i++) {
        vi sum = vi_load(acc + i * VW), count = vi_set(0);
        const uint8_t *at = w + i * VW * 4;
        for (ptrdiff_t k = 0; k < inputs; k += 16) {
            vi s = vi_add(sum, vi_set(offset[k / 16]));
            for (int g = 0; g < groups; g++, at += GROUP) {
                const vi codes = vi_load(at);
                s = narrow ? vi_fours(s, codes, vi_set(word[k / 4 + g]), vi_set(word[half_word + k / 4 + g]))
                           : vi_pairs(s, codes, vi_set(word[k / 2 + g]));
            }
            if (width.overflow == WRAP)
                sum = vi_right(vi_left(s, spare), spare);
            else {
                sum = vi_max(s, vi_set(-half));
                sum = vi_min(sum, vi_set(half - 1));
            }
            count = vi_differs(count, s, sum);
        }
        vi_store(acc + i * VW, sum);
        vi_store(out + i * VW, count);
    }
}

/* The same with int64; x: the vector's codes. Two products of int16 codes fit into int32, as none is -32768. */
static void exact_large(const job *j, const uint8_t *w, const int16_t *x, ptrdiff_t inputs, int32_t *acc, int_width width,
                        int32_t *out) {
    int64_t sum[16];
    for (int l = 0; l < 16; l++) sum[l] = acc[l];
    for (ptrdiff_t k = 0; k < inputs; k += 16) {
        if (j->w->narrow)
            for (int i = 0; i < 16; i++)
                for (int l = 0; l < 16; l++) sum[l] += (int8_t)w[i / 4 * GROUP + l * 4 + i % 4] * x[k + i];
        else
            for (int i = 0; i < 16; i += 2) {
                int16_t codes[32];
                memcpy(codes, w + i / 2 * GROUP, sizeof codes);
                for (int l = 0; l < 16; l++) sum[l] += codes[2 * l] * x[k + i] + codes[2 * l + 1] * x[k + i + 1];
            }
        w += (j->w->narrow ? 4 : 8) * GROUP;
        for (int l = 0; l < 16; l++) {
            const int64_t s = sum[l];
            sum[l] = in_range(s, width);
            out[l] += sum[l] != s;
        }
    }
    for (int l = 0; l < 16; l++) acc[l] = (int32_t)sum[l];
}

/* One vector, one block of neurons, some inputs, whose codes are x; place: index of acc[0] in all accumulators. */
static void exact(const job *j, const uint8_t *w, const int32_t *word, ptrdiff_t half, const int16_t *x, ptrdiff_t inputs,
                  int32_t *acc, int64_t place) {
    int32_t offset[BLOCK / 16] = {0};
    if (j->w->narrow)
        for (ptrdiff_t k = 0; k < inputs; k += 16) offset[k / 16] = offset_of(x + k, 16);
    for (int gate = 0; gate < ROWS; gate++, w += 64, acc += 16, place += 16) {
        const int_width width = j->width[gate];
        int32_t out[16] = {0};
        if (j->small)
            exact_small(j, w, word, half, offset, inputs, acc, width, out);
        else
            exact_large(j, w, x, inputs, acc, width, out);
        for (int l = 0; l < 16; l++) {
            j->seen[0] += out[l];
            if (out[l] && width.overflow == RAISE && (j->seen[1] < 0 || place + l < j->seen[1])) j->seen[1] = place + l;
        }
    }
}

/* One block of neurons with nv of the vectors x, from number `from`; acc: of the first, others `pitch` apart; place: index of
 * acc[0] in all. */
static void neurons(const job *j, const uint8_t *w, const double *energy, const operands *ready, ptrdiff_t from,
                    const int16_t *x, int32_t *acc, ptrdiff_t pitch, int nv, int64_t place) {
    const int narrow = j->w->narrow;
    const ptrdiff_t codes = narrow ? 4 : 2; /* in a word */
    int32_t own[VECTORS][SUMS] __attribute__((aligned(64)));
    double top[VECTORS];
    for (int v = 0; v < nv; v++) {
        memcpy(own[v], acc + v * pitch, sizeof own[v]);
        top[v] = largest(own[v]);
    }
    for (ptrdiff_t b = 0; b < ready->blocks; b++) {
        const ptrdiff_t first = b * BLOCK, left = j->w->inputs - first, inputs = left < BLOCK ? left : BLOCK;
        const ptrdiff_t groups = inputs / codes, at = first / codes;
        const double length = sqrt(energy[b * j->w->blocks]) * (1.0 + 0x1p-48); /* outweighs the roundings */
        const int32_t *word[VECTORS];
        int32_t *to[VECTORS], offset[VECTORS];
        int used = 0, done = 0;
        for (int v = 0; v < nv; v++) {
            const ptrdiff_t n = from + v, part = n * ready->blocks + b;
            const double reach = length * ready->length[part];
            const int32_t *mine = ready->word + n * ready->pitch + at;
            if (top[v] + reach > j->room) top[v] = largest(own[v]);
            if (top[v] + reach > j->room) {
                exact(j, w, mine, ready->half, x + n * j->w->inputs + first, inputs, own[v], place + v * pitch);
                top[v] = INFINITY;
                continue;
            }
            top[v] += reach;
            word[used] = mine, to[used] = own[v], offset[used++] = ready->offset[part];
        }
        for (; done + TILE <= used; done += TILE)
            for (int gate = 0; gate < ROWS; gate += GATES) {
                int32_t *rows[TILE];
                for (int u = 0; u < TILE; u++) rows[u] = to[done + u] + gate * 16;
                if (narrow)
                    sums(w + gate * 64, word + done, ready->half, offset + done, rows, groups, GATES, TILE, 1);
                else
                    sums(w + gate * 64, word + done, ready->half, offset + done, rows, groups, GATES, TILE, 0);
            }
        for (; done < used; done++) {
            if (narrow)
                sums_alone(w, word[done], ready->half, offset[done], to[done], groups, w + groups * GROUP, 1);
            else
                sums_alone(w, word[done], ready->half, offset[done], to[done], groups, w + groups * GROUP, 0);
        }
        w += groups * GROUP;
    }
    for (int v = 0; v < nv; v++) memcpy(acc + v * pitch, own[v], sizeof own[v]);
}

/* One block of neurons with one vector over all of its inputs, unless accumulators may go out of range. */
static int whole_vector(const job *j, const uint8_t *w, const uint8_t *next, const double *energy, const operands *ready,
                        int32_t *acc) {
    double reach = 0;
    for (ptrdiff_t b = 0; b < ready->blocks; b++) reach += sqrt(energy[b * j->w->blocks]) * ready->length[b];
    if (!(largest(acc) + reach * (1.0 + 0x1p-40) <= j->room)) return 0;
    uint32_t offset = 0;
    for (ptrdiff_t b = 0; b < ready->blocks; b++) offset += (uint32_t)ready->offset[b];
    if (j->w->narrow)
        sums_alone(w, ready->word, ready->half, (int32_t)offset, acc, j->w->inputs / 4, next, 1);
    else
        sums_alone(w, ready->word, ready->half, (int32_t)offset, acc, j->w->inputs / 2, next, 0);
    return 1;
}

void LEVEL(dot_int)(const int_matrix *w, const int16_t *x, int32_t *acc, ptrdiff_t nv, const int_width *width,
                    ptrdiff_t from, ptrdiff_t to, int back, int64_t *seen, void *room) {
    const ptrdiff_t pitch = w->blocks * SUMS, bytes = w->inputs * SUMS * (w->narrow ? 1 : 2);
    job j = {.w = w, .width = width, .room = 0x1p31 - 1.0, .seen = seen};
    j.small = (double)w->largest_w * w->largest_x <= 0x1p26;
    for (int gate = 0; gate < ROWS; gate++) {
        const double top = (double)(((int64_t)1 << (width[gate].bits - 1)) - 1);
        j.room = top < j.room ? top : j.room;
        j.small &= width[gate].bits < 32;
    }
    const operands ready = prepared(w, x, nv, room);
    const ptrdiff_t ahead = back ? -1 : 1;
    for (ptrdiff_t b = back ? to - 1 : from; b >= from && b < to; b += ahead) {
        const uint8_t *codes = (const uint8_t *)w->codes + b * bytes;
        if (nv == 1 && whole_vector(&j, codes, codes + ahead * bytes, w->energy + b, &ready, acc + b * SUMS)) continue;
        for (ptrdiff_t first = 0; first < nv; first += VECTORS) {
            const int some = nv - first < VECTORS ? (int)(nv - first) : VECTORS;
            const ptrdiff_t at = first * pitch + b * SUMS;
            neurons(&j, codes, w->energy + b, &ready, first, x, acc + at, pitch, some, at);
        }
    }
}

void LEVEL(input_codes)(const float *x, int16_t *codes, ptrdiff_t n, int largest, double alpha, int64_t *seen) {
    /* x * largest is exact in float64; its quotient by alpha, if no tie, is 2^-40 of itself or more off any tie, so
     * that rounding it to float64 first changes nothing. 1.5 * 2^52 added and taken away rounds to an integer. */
    const double top = largest, magic = 0x1.8p52;
    int64_t clipped = 0, vanished = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double q = (double)x[i] * top / alpha;
        q = q == q ? q : 0.0;
        q = q < top + 1.0 ? q : top + 1.0;
        q = q > -top - 1.0 ? q : -top - 1.0;
        const double whole = (q + magic) - magic;
        double code = whole < top ? whole : top;
        code = code > -top ? code : -top;
        clipped += code != whole;
        vanished += (whole == 0.0) & (q != 0.0);
        codes[i] = (int16_t)(int32_t)code;
    }
    seen[0] += clipped;
    seen[1] += vanished;
}
