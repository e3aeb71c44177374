/* Integer dot products whose accumulator has a stated width; `lstm_int_api.h` says what is computed.
 *
 * Most additions can't go out of range, and a proof saves looking at each: within one block of inputs no partial sum
 * leaves |acc| by more than |w| |x| (Cauchy and Schwarz, lengths of the parts within the block). Where the accumulators
 * of a block of neurons have that much room the sums are computed in any order, modulo 2^32; else one by one.
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
#define GROUP (ROWS * 64)     /* bytes of a group of inputs */
#define VECTORS 32            /* that stay in the cache together */
#define AHEAD 4096            /* bytes to prefetch: one vector alone waits for its weights */
#define TILE (VW == 16 ? 8 : 4) /* vectors that share one reading of the weights */
#define WORDS (BLOCK / 2)     /* int32 operands of a block of inputs */
#define HALF (WORDS / 2)

/* One block of inputs of some vectors, ready for the multipliers: its int16, or its m and from HALF on its |x| (VNNI: x) as bytes
 * (narrow). */
typedef struct {
    int32_t word[VECTORS][WORDS];
    int32_t offset[VECTORS];
    double energy[VECTORS];
} operands;

typedef struct {
    const int_matrix *w;
    const int_width *width;
    double room;      /* largest value of the narrowest accumulator */
    int small;        /* whether a tree's sum and an accumulator's fit into int32 */
    ptrdiff_t inputs; /* of this block of inputs */
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

static void prepare(operands *to, int v, const int16_t *x, ptrdiff_t n, int narrow) {
    int8_t mask[BLOCK], magnitude[BLOCK];
    int64_t energy = 0;
    for (ptrdiff_t k = 0; k < n; k++) energy += x[k] * x[k];
    to->energy[v] = (double)energy;
    to->offset[v] = narrow ? offset_of(x, n) : 0;
    if (!narrow) {
        memcpy(to->word[v], x, (size_t)n * sizeof *x);
        return;
    }
    for (ptrdiff_t k = 0; k < n; k++) {
        mask[k] = (int8_t)MASK(x[k]);
        magnitude[k] = (int8_t)BYTE(x[k]);
    }
    memcpy(to->word[v], mask, (size_t)n);
    memcpy(to->word[v] + HALF, magnitude, (size_t)n);
}

/* Whether no addition to these ROWS * 16 accumulators can go out of range. */
static inline int has_room(const int32_t *acc, double energy_w, double energy_x, double room) {
    int32_t lane[VW];
    vi top = vi_set(0);
    for (int at = 0; at < ROWS * 16; at += VW) {
        const vi a = vi_load(acc + at);
        top = vi_max(top, vi_fold(a));
    }
    vi_store(lane, top);
    for (int i = 1; i < VW; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    const double rest = room - 1.0 - lane[0];
    /* the factor outweighs the roundings of both products */
    return rest > 0.0 && energy_w * energy_x * (1.0 + 0x1p-50) <= rest * rest;
}

/* Sums of `gates` gates and n vectors in registers; v: the vectors' numbers; acc: of vector 0, others `pitch` apart. */
static inline __attribute__((always_inline)) void sums(const uint8_t *w, const operands *x, const int *v, int32_t *acc,
                                                       ptrdiff_t pitch, ptrdiff_t groups, const int gates, const int n,
                                                       const int narrow) {
    vi sum[TILE][ROWS * VN];
    const int32_t *word[TILE];
    for (int u = 0; u < n; u++) {
        word[u] = x->word[v[u]];
        for (int i = 0; i < gates * VN; i++)
            sum[u][i] = vi_add(vi_load(acc + v[u] * pitch + i * VW), vi_set(x->offset[v[u]]));
    }
    for (ptrdiff_t g = 0; g < groups; g++, w += GROUP) {
        if (n == 1)
            for (int i = 0; i < gates; i++) __builtin_prefetch(w + AHEAD + i * 64);
        for (int u = 0; u < n; u++)
            for (int i = 0; i < gates * VN; i++) {
                const vi codes = vi_load(w + i * VW * 4);
                sum[u][i] = narrow ? vi_fours(sum[u][i], codes, vi_set(word[u][g]), vi_set(word[u][HALF + g]))
                                   : vi_pairs(sum[u][i], codes, vi_set(word[u][g]));
            }
    }
    for (int u = 0; u < n; u++)
        for (int i = 0; i < gates * VN; i++) vi_store(acc + v[u] * pitch + i * VW, sum[u][i]);
}

static int32_t in_range(int64_t sum, int_width width) {
    const int64_t half = (int64_t)1 << (width.bits - 1);
    if (sum >= -half && sum < half) return (int32_t)sum;
    if (width.overflow == WRAP) return (int32_t)(((sum + half) & (2 * half - 1)) - half);
    return (int32_t)(sum < 0 ? -half : half - 1);
}

/* The same for one gate, addition by addition, with int32 for a tree and its addition; offset: of each sub-vector. */
static void exact_small(const job *j, const uint8_t *w, const int32_t *word, const int32_t *offset, int32_t *acc,
                        int_width width, int32_t *out) {
    const int32_t half = (int32_t)1 << (width.bits - 1);
    const int spare = 32 - width.bits, narrow = j->w->narrow, groups = narrow ? 4 : 8;
    for (int i = 0; i < VN; i++) {
        vi sum = vi_load(acc + i * VW), count = vi_set(0);
        const uint8_t *at = w + i * VW * 4;
        for (ptrdiff_t k = 0; k < j->inputs; k += 16) {
            vi s = vi_add(sum, vi_set(offset[k / 16]));
            for (int g = 0; g < groups; g++, at += GROUP) {
                const vi codes = vi_load(at);
                s = narrow ? vi_fours(s, codes, vi_set(word[k / 4 + g]), vi_set(word[HALF + k / 4 + g]))
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
static void exact_large(const job *j, const uint8_t *w, const int16_t *x, int32_t *acc, int_width width, int32_t *out) {
    int64_t sum[16];
    for (int l = 0; l < 16; l++) sum[l] = acc[l];
    for (ptrdiff_t k = 0; k < j->inputs; k += 16) {
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

/* One vector of a block of neurons; place: index of acc[0] in all accumulators. */
static void exact(const job *j, const uint8_t *w, const operands *x, int v, const int16_t *codes, int32_t *acc,
                  int64_t place) {
    int32_t offset[BLOCK / 16] = {0};
    if (j->w->narrow)
        for (ptrdiff_t k = 0; k < j->inputs; k += 16) offset[k / 16] = offset_of(codes + k, 16);
    for (int gate = 0; gate < ROWS; gate++, w += 64, acc += 16, place += 16) {
        const int_width width = j->width[gate];
        int32_t out[16] = {0};
        if (j->small)
            exact_small(j, w, x->word[v], offset, acc, width, out);
        else
            exact_large(j, w, codes, acc, width, out);
        for (int l = 0; l < 16; l++) {
            j->seen[0] += out[l];
            if (out[l] && width.overflow == RAISE && (j->seen[1] < 0 || place + l < j->seen[1])) j->seen[1] = place + l;
        }
    }
}

/* One block of inputs of up to VECTORS vectors; place: index of acc[0] in all accumulators. */
static void block_of_inputs(const job *j, const uint8_t *w, const double *energy, const int16_t *x, int32_t *acc,
                            int nv, int64_t place) {
    const int narrow = j->w->narrow;
    const ptrdiff_t groups = j->inputs / (narrow ? 4 : 2), pitch = j->w->blocks * ROWS * 16;
    operands ready __attribute__((aligned(64)));
    for (int v = 0; v < nv; v++) prepare(&ready, v, x + v * j->w->inputs, j->inputs, narrow);
    for (ptrdiff_t b = 0; b < j->w->blocks; b++, w += groups * GROUP, acc += ROWS * 16, place += ROWS * 16) {
        int safe[VECTORS], used = 0, done = 0;
        for (int v = 0; v < nv; v++) {
            if (has_room(acc + v * pitch, energy[b], ready.energy[v], j->room))
                safe[used++] = v;
            else
                exact(j, w, &ready, v, x + v * j->w->inputs, acc + v * pitch, place + v * pitch);
        }
        for (; done + TILE <= used; done += TILE)
            for (int gate = 0; gate < ROWS; gate++) {
                if (narrow)
                    sums(w + gate * 64, &ready, safe + done, acc + gate * 16, pitch, groups, 1, TILE, 1);
                else
                    sums(w + gate * 64, &ready, safe + done, acc + gate * 16, pitch, groups, 1, TILE, 0);
            }
        for (; done < used; done++) {
            if (narrow)
                sums(w, &ready, safe + done, acc, pitch, groups, ROWS, 1, 1);
            else
                sums(w, &ready, safe + done, acc, pitch, groups, ROWS, 1, 0);
        }
    }
}

void LEVEL(dot_int)(const int_matrix *w, const int16_t *x, int32_t *acc, ptrdiff_t nv, const int_width *width,
                    int64_t *seen) {
    const ptrdiff_t pitch = w->blocks * ROWS * 16;
    job j = {.w = w, .width = width, .room = 0x1p31 - 1.0, .seen = seen};
    j.small = (double)w->largest_w * w->largest_x <= 0x1p26;
    for (int gate = 0; gate < ROWS; gate++) {
        const double top = (double)(((int64_t)1 << (width[gate].bits - 1)) - 1);
        j.room = top < j.room ? top : j.room;
        j.small &= width[gate].bits < 32;
    }
    for (ptrdiff_t first = 0; first < nv; first += VECTORS) {
        const int some = nv - first < VECTORS ? (int)(nv - first) : VECTORS;
        const uint8_t *codes = w->codes;
        const double *energy = w->energy;
        for (ptrdiff_t k = 0; k < w->inputs; k += BLOCK, energy += w->blocks) {
            j.inputs = w->inputs - k < BLOCK ? w->inputs - k : BLOCK;
            block_of_inputs(&j, codes, energy, x + first * w->inputs + k, acc + first * pitch, some, first * pitch);
            codes += j.inputs * pitch * (w->narrow ? 1 : 2);
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
