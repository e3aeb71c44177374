/* Dot products where products, tree and accumulator are fp16 to nearest even, of operands that are fp16 values: by the processor's own
 * arithmetic (AVX-512 FP16), which has subnormals whatever its mode. Two rows of 16 neurons side by side.
 */
#include "cpu.h"

#if defined(EPUR_FP16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512fp16,avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512fp16,avx2,f16c,fma")
#endif
#include <immintrin.h>

#include "lstm_api.h"

/* Sub-vectors that are taken for one vector after another, so that two rows of them stay in the first cache. */
#define SOME 32

#define INLINE static inline __attribute__((always_inline))

/* Sixteen codes of one row and of another. */
INLINE __m512i both(const uint16_t *a, const uint16_t *b) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a));
    return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)b), 1);
}

INLINE __m256i codes(const float *v) { return _mm512_cvtps_ph(_mm512_loadu_ps(v), _MM_FROUND_TO_NEAREST_INT); }

/* The products of input j, whose code stands twice in `twice`. */
INLINE __m512h product(const uint16_t *a, const uint16_t *b, const int32_t *twice, int j) {
    return _mm512_mul_ph(_mm512_castsi512_ph(both(a + j * 16, b + j * 16)), _mm512_castsi512_ph(_mm512_set1_epi32(twice[j])));
}

/* A sub-vector's tree. */
INLINE __m512h tree(const uint16_t *a, const uint16_t *b, const int32_t *twice) {
    __m512h sum[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) sum[j] = product(a, b, twice, j);
#pragma GCC unroll 4
    for (int n = 8; n; n /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++) sum[j] = _mm512_add_ph(sum[2 * j], sum[2 * j + 1]);
    return sum[0];
}

/* acc[v] += W x[v], as `lstm_api.h` says. */
void dot_halves(const matrix *m, const int32_t *order, ptrdiff_t count, const float *x, float *acc, ptrdiff_t pitch, const uint8_t *take,
                ptrdiff_t nv) {
    for (ptrdiff_t r = 0; r < count; r += 2) {
        for (ptrdiff_t from = 0; from < m->subs; from += SOME) {
            const ptrdiff_t to = from + SOME < m->subs ? from + SOME : m->subs;
            for (ptrdiff_t v = 0; v < nv; v++) {
                if (!take[v]) continue;
                float *first = acc + v * pitch + order[r] * 16, *second = acc + v * pitch + order[r + 1] * 16;
                __m512i sums = _mm512_inserti64x4(_mm512_castsi256_si512(codes(first)), codes(second), 1);
                for (ptrdiff_t s = from; s < to; s++) {
                    const uint16_t *a = (const uint16_t *)m->w + (order[r] * m->subs + s) * 256;
                    const uint16_t *b = (const uint16_t *)m->w + (order[r + 1] * m->subs + s) * 256;
                    const __m512i wide = _mm512_cvtepu16_epi32(codes(x + (s * nv + v) * 16));
                    int32_t twice[16];
                    _mm512_storeu_si512(twice, _mm512_add_epi32(wide, _mm512_slli_epi32(wide, 16)));
                    __asm__ volatile("" : "+m"(twice)); /* else GCC picks the lanes out of a register, where a load does it for nothing */
                    sums = _mm512_castph_si512(_mm512_add_ph(_mm512_castsi512_ph(sums), tree(a, b, twice)));
                }
                _mm512_storeu_ps(first, _mm512_cvtph_ps(_mm512_castsi512_si256(sums)));
                _mm512_storeu_ps(second, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(sums, 1)));
            }
        }
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_fp16;
#endif
