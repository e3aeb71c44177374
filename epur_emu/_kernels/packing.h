/* Weights from rows to tiles of 16 neurons, in plain C whose loops the compiler makes vectors of where the file that includes this names a
 * CPU's instructions, so that levels can't differ. The file defines LEVEL(name). */
#if defined(__GNUC__) && !defined(__clang__)
/* Else gcc makes branches in the loops; no value depends on these. */
#pragma GCC optimize("no-trapping-math", "no-tree-pre", "no-thread-jumps")
#endif

#include <math.h>
#include <string.h>

#include "lstm_api.h"
#include "lstm_int_api.h"
#include "packing_api.h"

#define INLINE static inline __attribute__((always_inline))
#define INFINITE 0x7f800000
#define SIZE 0x7fffffff /* the bits of a magnitude */
#define TILE 256

INLINE float value(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

INLINE uint32_t bits_of_half(uint32_t h) {
    const uint32_t a = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16, least = 113u << 23;
    const float v = value(least + a) - 0x1p-14f; /* 2^-14 and a subnormal, less 2^-14 */
    uint32_t small;
    memcpy(&small, &v, 4);
    return sign | (a < 1u << 23 ? small : a + (a < 31u << 23 ? 112u << 23 : 224u << 23));
}

void LEVEL(widened)(const uint16_t *codes, float *to, ptrdiff_t n) {
    for (ptrdiff_t k = 0; k < n; k++) to[k] = value(bits_of_half(codes[k]));
}

void LEVEL(magnitudes)(const rows *r, float *top) {
    for (ptrdiff_t n = 0; n < r->count; n++) {
        const ptrdiff_t at = n * r->inputs;
        int32_t most = 0;
        if (r->half) {
            const uint16_t *v = (const uint16_t *)r->values + at;
            int16_t largest = 0;
            for (ptrdiff_t k = 0; k < r->inputs; k++) {
                const int16_t a = (int16_t)(v[k] & 0x7fff), finite = a < 0x7c00 ? a : 0;
                largest = finite > largest ? finite : largest;
            }
            most = (int32_t)bits_of_half((uint16_t)largest);
        } else {
            const uint32_t *v = (const uint32_t *)r->values + at;
            for (ptrdiff_t k = 0; k < r->inputs; k++) {
                const int32_t a = (int32_t)(v[k] & SIZE), finite = a < INFINITE ? a : 0;
                most = finite > most ? finite : most;
            }
        }
        memcpy(top + n, &most, 4);
    }
}

/* Element k of the first half, then that of the second: an index's bits go round by one. Four times, rows become columns. */
#define SHUFFLED(to, from, half) \
    for (int k = 0; k < (half); k++) (to)[2 * k] = (from)[k], (to)[2 * k + 1] = (from)[k + (half)]

#define TRANSPOSED(t, other)        \
    do {                            \
        SHUFFLED(other, t, TILE / 2); \
        SHUFFLED(t, other, TILE / 2); \
        SHUFFLED(other, t, TILE / 2); \
        SHUFFLED(t, other, TILE / 2); \
    } while (0)

/* Neurons and inputs of a tile, transposed: (16 inputs, 16 neurons). Beyond the rows and their ends there are zeros. */
INLINE void tile_of(const rows *r, ptrdiff_t first, ptrdiff_t input, size_t size, void *tile) {
    const ptrdiff_t n = r->count - first < 16 ? r->count - first : 16, wide = r->inputs - input < 16 ? r->inputs - input : 16;
    const char *from = (const char *)r->values + (size_t)(first * r->inputs + input) * size;
    if (n < 16 || wide < 16) memset(tile, 0, TILE * size);
    for (ptrdiff_t l = 0; l < n; l++, from += (size_t)r->inputs * size) {
        char *to = (char *)tile + (size_t)l * 16 * size;
        if (wide == 16)
            memcpy(to, from, 16 * size); /* of known length */
        else
            memcpy(to, from, (size_t)wide * size);
    }
}

INLINE void halves_of(const rows *r, ptrdiff_t first, ptrdiff_t input, uint16_t *t) {
    uint16_t other[TILE];
    tile_of(r, first, input, sizeof *t, t);
    TRANSPOSED(t, other);
}

INLINE void floats_of(const rows *r, ptrdiff_t first, ptrdiff_t input, uint32_t *t) {
    uint32_t other[TILE];
    tile_of(r, first, input, sizeof *t, t);
    TRANSPOSED(t, other);
}

/* Sums of 16 inputs, by halves; 128 sums of two come in. */
INLINE void folded(double *sum) {
    for (int k = 0; k < 64; k++) sum[k] += sum[k + 64];
    for (int k = 0; k < 32; k++) sum[k] += sum[k + 32];
    for (int k = 0; k < 16; k++) sum[k] += sum[k + 16];
}

/* Of 16 neurons. */
typedef struct {
    double norm[16], part[16];
    float low[16];
} extents;

INLINE void look(extents *e, const uint32_t *t) {
    double sum[TILE / 2];
    float low[TILE / 2];
    for (int k = 0; k < TILE / 2; k++) {
        const float one = value(t[k] & SIZE), other = value(t[k + TILE / 2] & SIZE);
        const float first = one > 0 ? one : INFINITY, second = other > 0 ? other : INFINITY;
        sum[k] = (double)one + other;
        low[k] = first < second ? first : second;
    }
    folded(sum);
    for (int k = 0; k < 64; k++) low[k] = low[k] < low[k + 64] ? low[k] : low[k + 64];
    for (int k = 0; k < 32; k++) low[k] = low[k] < low[k + 32] ? low[k] : low[k + 32];
    for (int k = 0; k < 16; k++) low[k] = low[k] < low[k + 16] ? low[k] : low[k + 16];
    for (int l = 0; l < 16; l++) e->low[l] = low[l] < e->low[l] ? low[l] : e->low[l];
    for (int l = 0; l < 16; l++) e->norm[l] += sum[l];
    for (int l = 0; l < 16; l++) e->part[l] = sum[l] > e->part[l] ? sum[l] : e->part[l];
}

/* fp16 codes of float32 values, and whether all are fp16's. */
INLINE int to_halves(const uint32_t *t, uint16_t *codes) {
    uint32_t found[TILE]; /* first all, so that both loops are of vectors */
    int32_t bad = 0;
    for (int k = 0; k < TILE; k++) {
        const int32_t a = (int32_t)(t[k] & SIZE), least = 113 << 23, below = -(a < least);
        const float units = value((uint32_t)(a < least ? a : least)) * 0x1p24f;
        const int32_t small = (int32_t)units, lost = -((float)small != units);
        bad |= (below & lost) | (~below & a & 0x1fff) | (a >= 143 << 23);
        found[k] = (t[k] >> 16 & 0x8000) | (uint32_t)((below & small) | (~below & (a - (112 << 23)) >> 13));
    }
    for (int k = 0; k < TILE; k++) codes[k] = (uint16_t)found[k];
    return !bad;
}

/* The upper halves of float32 values, and whether the lower ones are 0. */
INLINE int to_tops(const uint32_t *t, uint16_t *codes) {
    uint32_t rest = 0;
    for (int k = 0; k < TILE; k++) {
        rest |= t[k] & 0xffff;
        codes[k] = (uint16_t)(t[k] >> 16);
    }
    return !rest;
}

/* Bits of fp16 values, `drop` of their last ones rounded off to nearest even; and whether all are finite. */
INLINE int rounded_halves(const uint16_t *codes, int drop, uint32_t *t) {
    const uint32_t rest = (1u << drop) - 1u, half = rest >> 1, last = drop ? 1 : 0;
    int16_t most = 0;
    for (int k = 0; k < TILE; k++) {
        const int16_t size = (int16_t)(codes[k] & 0x7fff);
        most = size > most ? size : most;
    }
    for (int k = 0; k < TILE; k++) t[k] = bits_of_half(codes[k]);
    for (int k = 0; k < TILE; k++) t[k] = (t[k] + half + (t[k] >> drop & last)) & ~rest;
    return most < 0x7c00;
}

int LEVEL(pack_rows)(const rows *r, int drop, int store, void *codes, bounds *found) {
    const ptrdiff_t subs = (r->inputs + 15) / 16;
    const size_t size = store == WIDE ? 4 : 2;
    for (ptrdiff_t first = 0; first < r->count; first += 16) {
        extents e = {{0}, {0}, {0}};
        for (int l = 0; l < 16; l++) e.low[l] = INFINITY;
        for (ptrdiff_t s = 0; s < subs; s++) {
            uint16_t code[TILE], paired[TILE];
            uint32_t t[TILE];
            int held = 1;
            if (r->half) {
                halves_of(r, first, s * 16, code);
                for (int k = 0; k < TILE; k++) code[k] = code[k] == 0x8000 ? 0 : code[k];
                held = rounded_halves(code, drop, t);
            } else
                floats_of(r, first, s * 16, t);
            if (store == HALF && (drop || !r->half)) held &= to_halves(t, code);
            if (store == TOP || store == PAIRED) held &= to_tops(t, code);
            if (!held) return 0;
            look(&e, t);
            if (!codes) continue;
            for (int p = 0; store == PAIRED && p < 8; p++)
                for (int k = 0; k < 16; k++) memcpy(paired + p * 32 + k * 2, code + k * 16 + p * 2, 4);
            memcpy((char *)codes + (size_t)((first / 4 * subs + s) * TILE) * size,
                   store == WIDE ? (void *)t : store == PAIRED ? paired : code, TILE * size);
        }
        for (int l = 0; l < 16; l++) {
            if (!(e.norm[l] < INFINITY)) { /* not finite */
                if (store != WIDE) return 0;
                e.norm[l] = e.part[l] = INFINITY;
            }
            found->norm = e.norm[l] > found->norm ? e.norm[l] : found->norm;
            found->part = e.part[l] > found->part ? e.part[l] : found->part;
            found->low = e.low[l] < found->low ? e.low[l] : found->low;
        }
    }
    return 1;
}

/* Codes (16 inputs, 16 neurons) to groups of inputs, each (16 neurons, group). */
INLINE void grouped(const int16_t *codes, int narrow, char *to, size_t pitch) {
    if (narrow) {
        int8_t bytes[TILE], t[64], other[64];
        for (int k = 0; k < TILE; k++) bytes[k] = (int8_t)codes[k];
        for (int g = 0; g < 4; g++, to += pitch) {
            SHUFFLED(other, bytes + g * 64, 32);
            SHUFFLED(t, other, 32);
            memcpy(to, t, 64);
        }
    } else
        for (int g = 0; g < 8; g++, to += pitch) {
            int16_t t[32];
            SHUFFLED(t, codes + g * 32, 16);
            memcpy(to, t, 64);
        }
}

void LEVEL(pack_codes)(const rows *r, const double *scale, double alpha, const int_rows *to, int64_t *seen) {
    const ptrdiff_t subs = (r->inputs + 15) / 16;
    const double top = to->largest, magic = 0x1.8p52; /* added and taken away: the nearest integer */
    for (ptrdiff_t first = 0; first < r->count; first += 16) {
        double by[TILE], sum[16] = {0};
        for (int k = 0; k < TILE; k++) by[k] = first + k % 16 < r->count ? scale[first + k % 16] : 1;
        for (ptrdiff_t s = 0; s < subs; s++) {
            uint32_t t[TILE];
            int16_t codes[TILE];
            double square[TILE / 2], all[TILE];
            int clipped = 0, vanished = 0;
            if (r->half) {
                uint16_t half[TILE];
                halves_of(r, first, s * 16, half);
                for (int k = 0; k < TILE; k++) t[k] = bits_of_half(half[k]);
            } else
                floats_of(r, first, s * 16, t);
            for (int k = 0; k < TILE; k++) {
                double q = (double)value(t[k]) * alpha / by[k];
                q = q == q ? q : 0.0;
                q = q < top + 1.0 ? q : top + 1.0;
                q = q > -top - 1.0 ? q : -top - 1.0;
                const double whole = (q + magic) - magic;
                double code = whole < top ? whole : top;
                code = code > -top ? code : -top;
                clipped += code != whole;
                vanished += (whole == 0.0) & (q != 0.0);
                all[k] = code;
            }
            seen[0] += clipped, seen[1] += vanished;
            for (int k = 0; k < TILE; k++) codes[k] = (int16_t)(int32_t)all[k];
            for (int k = 0; k < TILE / 2; k++) square[k] = all[k] * all[k] + all[k + TILE / 2] * all[k + TILE / 2];
            folded(square);
            for (int l = 0; l < 16; l++) sum[l] += square[l];
            if (s % (EPUR_INT_BLOCK / 16) == EPUR_INT_BLOCK / 16 - 1 || s == subs - 1) {
                double *most = to->energy + s / (EPUR_INT_BLOCK / 16) * to->blocks + first / 16;
                for (int l = 0; l < 16; l++) {
                    *most = sum[l] > *most ? sum[l] : *most;
                    sum[l] = 0;
                }
            }
            const ptrdiff_t groups = to->narrow ? 4 : 8;
            grouped(codes, to->narrow, (char *)to->codes + (first / 16 * subs + s) * groups * 256, 256);
        }
    }
}
