/* Vectors of VW int32 lanes of one CPU level, beside those of `simd.h`. Sums wrap.
 *
 *   vi_pairs(a, w, x)     a plus two int16 products of each lane
 *   vi_fours(a, w, m, x)  a plus the four products of bytes (w ^ m) x of each lane, w ^ m signed, x unsigned and no
 *                         more than 127, so that two products stay below 2^15; with VNNI w ^ m unsigned, x signed
 *   vi_fold(a)            a where it is not negative, -1 - a else
 *   vi_differs(n, a, b)   n plus one in each lane where a and b differ
 */
#ifndef EPUR_SIMD_INT_H
#define EPUR_SIMD_INT_H

#include "simd.h"

#if defined(LEVEL_SCALAR)

typedef int32_t vi;
static inline vi vi_load(const void *p) {
    vi v;
    memcpy(&v, p, 4);
    return v;
}
#define vi_store(p, v) (*(p) = (v))
#define vi_set(s) (s)
#define vi_add(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define vi_min(a, b) ((a) < (b) ? (a) : (b))
#define vi_max(a, b) ((a) > (b) ? (a) : (b))
#define vi_fold(a) ((a) ^ (a) >> 31)
#define vi_differs(n, a, b) ((n) + ((a) != (b)))
#define vi_left(a, by) ((int32_t)((uint32_t)(a) << (by)))
#define vi_right(a, by) ((a) >> (by))
#define vi_pairs(a, w, x) vi_add(a, vi_add((int16_t)(w) * (int16_t)(x), ((w) >> 16) * ((x) >> 16)))
static inline vi vi_fours(vi a, vi w, vi m, vi x) {
    w ^= m;
    return vi_add(a, (int8_t)w * (int8_t)x + (int8_t)(w >> 8) * (int8_t)(x >> 8) +
                         (int8_t)(w >> 16) * (int8_t)(x >> 16) + (w >> 24) * (x >> 24));
}

#elif defined(LEVEL_AVX2)

typedef __m256i vi;
#define vi_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define vi_store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vi_set(s) _mm256_set1_epi32(s)
#define vi_add(a, b) _mm256_add_epi32(a, b)
#define vi_min(a, b) _mm256_min_epi32(a, b)
#define vi_max(a, b) _mm256_max_epi32(a, b)
#define vi_fold(a) _mm256_xor_si256(a, _mm256_srai_epi32(a, 31))
#define vi_differs(n, a, b) \
    _mm256_add_epi32(n, _mm256_add_epi32(_mm256_set1_epi32(1), _mm256_cmpeq_epi32(a, b)))
#define vi_left(a, by) _mm256_slli_epi32(a, by)
#define vi_right(a, by) _mm256_srai_epi32(a, by)
#define vi_pairs(a, w, x) _mm256_add_epi32(a, _mm256_madd_epi16(w, x))
#define vi_fours(a, w, m, x)                                                                                    \
    _mm256_add_epi32(                                                                                           \
        a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_xor_si256(w, m)), _mm256_set1_epi16(1)))

#elif defined(LEVEL_AVX512)

typedef __m512i vi;
#define vi_load(p) _mm512_loadu_si512(p)
#define vi_store(p, v) _mm512_storeu_si512(p, v)
#define vi_set(s) _mm512_set1_epi32(s)
#define vi_add(a, b) _mm512_add_epi32(a, b)
#define vi_min(a, b) _mm512_min_epi32(a, b)
#define vi_max(a, b) _mm512_max_epi32(a, b)
#define vi_fold(a) _mm512_xor_si512(a, _mm512_srai_epi32(a, 31))
#define vi_differs(n, a, b) _mm512_mask_add_epi32(n, _mm512_cmpneq_epi32_mask(a, b), n, _mm512_set1_epi32(1))
#define vi_left(a, by) _mm512_slli_epi32(a, by)
#define vi_right(a, by) _mm512_srai_epi32(a, by)
#define vi_pairs(a, w, x) _mm512_add_epi32(a, _mm512_madd_epi16(w, x))
#if defined(VNNI)
#define vi_fours(a, w, m, x) _mm512_dpbusd_epi32(a, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x)
#else
#define vi_fours(a, w, m, x)                                                                                    \
    _mm512_add_epi32(                                                                                           \
        a, _mm512_madd_epi16(_mm512_maddubs_epi16(x, _mm512_xor_si512(w, m)), _mm512_set1_epi16(1)))
#endif

#endif

#endif
