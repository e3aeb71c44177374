/* Dot products of values of at most 8 bits of significand, where products and tree are bf16 to nearest even: by the processor's
 * conversion to bf16 and its sums of pairs (AVX-512 BF16).
 *
 * The tree lies along the lanes: 16 products of one neuron are 16 lanes of float32, two neurons' become one vector of bf16, and a sum
 * of pairs, each times one, adds the neighbours of both in float32:
 *   16 products of a and of b -> 8 sums of a, 8 of b -> (with c, d) 4 of each -> 2 of each of eight -> one of each of 16
 * Sums are rounded to float32 first, which is innocuous: 24 >= 2 * 8 + 2. The instructions take subnormals for 0: the caller proves that
 * no operand, product or sum is one. A zero may come out with either sign.
 */
#include "cpu.h"

#if defined(EPUR_BF16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,f16c,fma")
#endif
#include <immintrin.h>

#include "lstm_api.h"

/* Sub-vectors to prefetch beyond the one in use, for matrices of more bytes than are likely to stay in a cache. */
#define AHEAD 32
#define FAR (1 << 24)

#define INLINE static inline __attribute__((always_inline))

/* The upper and the lower half of each lane times those of w, of which one's x are 0. */
INLINE __m512 product(__m512i w, __m512i x) {
    return _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh)w, (__m512bh)x);
}

/* Sums of neighbours of a, then of b, each rounded to bf16 beforehand. */
INLINE __m512 pairs(__m512 a, __m512 b) {
    const __m512i ones = _mm512_set1_epi32(0x3f803f80);
    return _mm512_dpbf16_ps(_mm512_setzero_ps(), _mm512_cvtne2ps_pbh(b, a), (__m512bh)ones);
}

/* The sixteen sums of the trees whose sums of first pairs are in `first`, while those of the next products come in there: so that
 * operations that wait for each other are some way apart. */
INLINE __m512 trees(__m512 first[8], const uint16_t *w, __m512i low, __m512i high) {
    __m512 a[8], b[8], four[4], eight[2], all = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int q = 0; q < 8; q++) {
        const __m512i codes = _mm512_loadu_si512(w + q * 32);
        a[q] = product(codes, low), b[q] = product(codes, high);
        if (q < 4)
            four[q] = pairs(first[2 * q], first[2 * q + 1]);
        else if (q < 6)
            eight[q - 4] = pairs(four[2 * (q - 4)], four[2 * (q - 4) + 1]);
        else if (q == 7)
            all = pairs(eight[0], eight[1]);
        if (q) first[q - 1] = pairs(a[q - 1], b[q - 1]);
    }
    first[7] = pairs(a[7], b[7]);
    return all;
}

/* v rounded to the precision that c stands for: `dot_chain.h` says how. */
INLINE __m512 rounded(__m512 v, __m512 c, __m512 less) { return _mm512_fmsub_ps(v, c, _mm512_mul_ps(v, less)); }

/* A row's sub-vectors. `far`, a constant: weights wait for memory and are asked for early, at the end those of `after`, the next row. */
INLINE __m512 row_sum(__m512 sum, const uint16_t *row, const uint16_t *after, const float *x, ptrdiff_t pitch, ptrdiff_t subs,
                      const chain *k, const int far) {
    const __m512 tree = _mm512_set1_ps(k->tree), below = _mm512_set1_ps(k->tree - 1.0f);
    const __m512 last = _mm512_set1_ps(k->acc), under = _mm512_set1_ps(k->acc - 1.0f);
    const uint16_t *const end = row + subs * 256;
    __m512 first[8], all;
    for (int q = 0; q < 8; q++) first[q] = _mm512_setzero_ps(); /* a tree of +0: adds nothing */
    after += AHEAD * 256 - subs * 256;
    for (; row != end; row += 256, after += 256, x += pitch) {
        const __m512i high = _mm512_loadu_si512(x), low = _mm512_srli_epi32(high, 16);
        const uint16_t *ahead = end - row > AHEAD * 256 ? row + AHEAD * 256 : after;
        for (int q = 0; far && q < 8; q++) __builtin_prefetch(ahead + q * 32);
        all = trees(first, row, low, high);
        sum = rounded(_mm512_add_ps(sum, rounded(all, tree, below)), last, under);
    }
    all = trees(first, end - 256, _mm512_setzero_si512(), _mm512_setzero_si512());
    return rounded(_mm512_add_ps(sum, rounded(all, tree, below)), last, under);
}

/* acc[v] += W x[v], as `lstm_api.h` says; with `back` in the reverse order of rows. */
void dot_pairs(const matrix *m, const chain *k, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch,
               const uint8_t *take, ptrdiff_t nv, int back) {
    const ptrdiff_t size = m->subs * 256;
    const int far = nv == 1 && m->rows * size * 2 > FAR;
    for (ptrdiff_t r = 0; r < count; r++) {
        const ptrdiff_t later = r + 1 < count ? r + 1 : r;
        const ptrdiff_t at = order[back ? count - 1 - r : r], next = order[back ? count - 1 - later : later];
        const uint16_t *row = (const uint16_t *)m->w + at * size, *after = (const uint16_t *)m->w + next * size;
        for (ptrdiff_t v = 0; v < nv; v++) {
            if (!take[v]) continue;
            float *to = acc + v * pitch + at * 16;
            const __m512 sum = _mm512_loadu_ps(to);
            _mm512_storeu_ps(to, far ? row_sum(sum, row, after, x, 16, m->subs, k, 1)
                                     : row_sum(sum, row, after, x + v * 16, nv * 16, m->subs, k, 0));
        }
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_bf16;
#endif
