/* Vectors of one CPU level. The file that includes this defines exactly one of LEVEL_SCALAR, LEVEL_AVX2,
 * LEVEL_AVX512; vf holds VW float32 lanes, and a block of 16 neurons takes VN = 16 / VW of them.
 *
 *   vf_madd(a, b, c)  a * b + c, where a * b is exact, so that fused and separate operations agree
 *   vf_msub(a, b, c)  a * b - c, likewise
 *   vf_half(h)        fp16 codes to float32
 *   vf_round(v, code) v rounded to fp16 (nearest even, gradual underflow, overflow to infinity); its codes
 *   vf_top(h)         codes of 16 bits, the upper halves of float32, to float32
 *   vf_fma(a, b, c)   a * b + c, rounded once, whatever a * b
 *   vf_absmax(a, b)   the larger of |a| and b, which is not negative
 *   vf_and, vf_or, vf_xor  of the bits;  vf_topmost(a, b) the larger of two bit patterns without sign
 *   vf_min, vf_max    return the second operand if one is not a number
 *   vf_pick(m, a, b)  a where m is set, else b;  vm_any(m) whether any lane is set
 *   vf_fnma(a, b, c)  c - a * b, rounded once
 *   vf_signed(v, m, l)  the larger of the bits of |v| in m and l, with v's sign
 *   vf_larger(a, b), vf_smaller(a, b)  the one of larger magnitude, and the other one
 *   vf_odd(a, b)      the neighbour of a + b with an odd last bit if that is not exact (AVX-512 only)
 *   vf_random(word, one)  1 + R / 2^12 times the power of two `one`, R the upper 12 bits of a random word
 *   vf_within(a, m, b)  the bits of a in m, and those of b
 *   vk_...            integers of 32 bits; vk_down(a, by) and vk_up shift;  vk_of, vf_of  the same bits as the other kind
 *   vf_normal(v)      v, or 0 where it is subnormal, between `flushing`, whose result goes to `flushing_no_more`, and that
 *   vd_..., ve_...    VD doubles and as many words of 32 bits: vd_load, vd_store from and to floats, vd_get, vd_put as they are;
 *                     vd_flushed(r, least) r, or 0 if |r| is below (not-a-number stays); vd_of(e) of integers; ve_down(a) the upper 12 bits;
 *                     vd_odd(a, b) as vf_odd; vdm, vd_lt, ... masks: vd_pick(m, a, b) a where it is
 *                     vd_whole(a) to the nearest whole number whatever the direction; vd_power(k) 2^k; vd_index(a) of whole numbers;
 *                     vd_gather(p, e) the doubles at p + e; vdm masks; vd_beyond(a, most) where not |a| <= most; vd_only(m, a) a, else 0;
 *                     vd_half, vd_top  of codes, as vf_half, vf_top
 *   vw_...            VD integers of 64 bits, likewise: vw_of, vd_as  the same bits; vw_some(a, bits, mask) a & mask where a has some of `bits`, else 0
 *                     vd_below(v, r, normal, whole) which |v| != |r| are below normal where r's bits in `whole` are 0
 *   vc_add(n, m)      n plus one in each lane set in a mask; vc_sum(n) the sum of the lanes; vn_add, vn_sum likewise of masks vdm
 */
#ifndef EPUR_SIMD_H
#define EPUR_SIMD_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(LEVEL_SCALAR)

typedef float vf;
typedef int vm;
#define VW 1
#define LEVEL(name) name##_scalar
#define TARGET

static inline uint32_t bits_of(float v) {
    uint32_t b;
    memcpy(&b, &v, 4);
    return b;
}
static inline float float_of(uint32_t b) {
    float v;
    memcpy(&v, &b, 4);
    return v;
}
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    /* 2^112 moves fp16's exponents, subnormals included, to float32's */
    return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}
static inline uint16_t float_to_half(float v) {
    const uint32_t b = bits_of(v), sign = b >> 16 & 0x8000u;
    uint32_t magnitude = b & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
    if (magnitude < 0x38800000u) /* below 2^-14: one unit of 0.5's last place is 2^-24 */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

#define vf_load(p) (*(p))
#define vf_store(p, v) (*(p) = (v))
#define vf_set(s) (s)
#define vf_add(a, b) ((a) + (b))
#define vf_sub(a, b) ((a) - (b))
#define vf_mul(a, b) ((a) * (b))
#define vf_abs(a) fabsf(a)
#define vf_neg(a) (-(a))
#define vf_madd(a, b, c) ((a) * (b) + (c))
#define vf_msub(a, b, c) ((a) * (b) - (c))
static inline vf vf_min(vf a, vf b) { return a < b ? a : b; }
static inline vf vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf vf_absmax(vf a, vf b) { return fabsf(a) > b ? fabsf(a) : b; }
#define vf_half(p) half_to_float(*(p))
static inline vf vf_round(vf v, uint16_t *code) {
    *code = float_to_half(v);
    return half_to_float(*code);
}
static inline vf vf_top_of(uint16_t code) { return float_of((uint32_t)code << 16); }
#define vf_top(p) vf_top_of(*(p))
static inline vf vf_and(vf a, vf b) { return float_of(bits_of(a) & bits_of(b)); }
static inline vf vf_or(vf a, vf b) { return float_of(bits_of(a) | bits_of(b)); }
static inline vf vf_xor(vf a, vf b) { return float_of(bits_of(a) ^ bits_of(b)); }
static inline vf vf_topmost(vf a, vf b) { return bits_of(a) > bits_of(b) ? a : b; }
static inline vf vf_pick(vm m, vf a, vf b) { return m ? a : b; }
#define vm_any(m) (m)
/* No matter what the processor can do. */
static inline vf vf_normal(vf v) { return fabsf(v) < 0x1p-126f ? 0.0f : v; }
#define flushing() 0
#define flushing_no_more(before) ((void)(before))
#define vf_eq(a, b) ((a) == (b))
#define vf_ne(a, b) ((a) != (b))
#define vf_lt(a, b) ((a) < (b))
#define vm_and(a, b) ((a) & (b))
#define vm_or(a, b) ((a) | (b))
typedef int64_t vc;
#define vc_zero() 0
#define vc_add(n, m) ((n) + (m))
#define vc_sum(n) (n)

#elif defined(LEVEL_AVX2)

#include <immintrin.h>
typedef __m256 vf;
typedef __m256 vm;
#define VW 8
#define LEVEL(name) name##_avx2
#define vf_load(p) _mm256_loadu_ps(p)
#define vf_store(p, v) _mm256_storeu_ps(p, v)
#define vf_set(s) _mm256_set1_ps(s)
#define vf_add(a, b) _mm256_add_ps(a, b)
#define vf_sub(a, b) _mm256_sub_ps(a, b)
#define vf_mul(a, b) _mm256_mul_ps(a, b)
#define vf_abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define vf_neg(a) _mm256_xor_ps(_mm256_set1_ps(-0.0f), a)
#define vf_madd(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf_msub(a, b, c) _mm256_fmsub_ps(a, b, c)
#define vf_min(a, b) _mm256_min_ps(a, b)
#define vf_max(a, b) _mm256_max_ps(a, b)
#define vf_absmax(a, b) _mm256_max_ps(vf_abs(a), b)
#define vf_half(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
static inline vf vf_round(vf v, uint16_t *code) {
    const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)code, h);
    return _mm256_cvtph_ps(h);
}
#define vf_top(p) \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define vf_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf_fnma(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define vf_signed(v, m, l) vf_or(_mm256_max_ps(vf_and(v, m), l), vf_and(v, _mm256_set1_ps(-0.0f)))
#define vf_larger(a, b) vf_pick(vf_lt(vf_abs(a), vf_abs(b)), b, a)
#define vf_smaller(a, b) vf_pick(vf_lt(vf_abs(a), vf_abs(b)), a, b)
#define vf_and(a, b) _mm256_and_ps(a, b)
#define vf_or(a, b) _mm256_or_ps(a, b)
#define vf_xor(a, b) _mm256_xor_ps(a, b)
#define vf_topmost(a, b) _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)))
#define vf_pick(m, a, b) _mm256_blendv_ps(b, a, m)
#define vm_any(m) _mm256_movemask_ps(m)
typedef __m256i vk;
#define vk_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define vk_store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define vk_set(s) _mm256_set1_epi32((int)(s))
#define vk_add(a, b) _mm256_add_epi32(a, b)
#define vk_mul(a, b) _mm256_mullo_epi32(a, b)
#define vk_and(a, b) _mm256_and_si256(a, b)
#define vk_down(a, by) _mm256_srlv_epi32(a, by)
#define vk_up(a, by) _mm256_slli_epi32(a, by)
#define vk_of(v) _mm256_castps_si256(v)
#define vf_of(v) _mm256_castsi256_ps(v)
#define vf_within(a, m, b) vf_or(vf_and(a, m), b)
#define vf_random(word, one) vf_within(vf_of(_mm256_srli_epi32(word, 9)), vf_of(vk_set(0x7ff800)), vf_set(one))
typedef __m256d vd;
typedef __m128i ve;
#define VD 4
#define vd_load(p) _mm256_cvtps_pd(_mm_loadu_ps(p))
#define vd_store(p, v) _mm_storeu_ps(p, _mm256_cvtpd_ps(v))
#define vd_get(p) _mm256_loadu_pd(p)
#define vd_put(p, v) _mm256_storeu_pd(p, v)
#define vd_set(s) _mm256_set1_pd(s)
#define vd_add(a, b) _mm256_add_pd(a, b)
#define vd_mul(a, b) _mm256_mul_pd(a, b)
#define vd_fma(a, b, c) _mm256_fmadd_pd(a, b, c)
#define vd_fnma(a, b, c) _mm256_fnmadd_pd(a, b, c)
#define vd_max(a, b) _mm256_max_pd(a, b)
#define vd_and(a, b) _mm256_and_pd(a, b)
#define vd_or(a, b) _mm256_or_pd(a, b)
#define vd_abs(a) _mm256_andnot_pd(_mm256_set1_pd(-0.0), a)
#define vd_flushed(r, least) _mm256_and_pd(r, _mm256_cmp_pd(vd_abs(r), least, _CMP_NLT_UQ))
#define vd_of(e) _mm256_cvtepi32_pd(e)
#define vd_half(p) _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(p))))
#define vd_top(p) \
    _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)(p))), 16)))
typedef __m256i vw;
#define vw_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define vw_store(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define vw_set(s) _mm256_set1_epi64x((int64_t)(s))
#define vw_add(a, b) _mm256_add_epi64(a, b)
#define vw_and(a, b) _mm256_and_si256(a, b)
#define vw_up(a, by) _mm256_slli_epi64(a, by)
#define vw_up_by(a, by) _mm256_sllv_epi64(a, by)
#define vw_down(a, by) _mm256_srlv_epi64(a, by)
#define vw_of(v) _mm256_castpd_si256(v)
#define vd_as(a) _mm256_castsi256_pd(a)
static inline vw vw_some(vw a, vw bits, vw mask) {
    return _mm256_andnot_si256(_mm256_cmpeq_epi64(_mm256_and_si256(a, bits), _mm256_setzero_si256()), _mm256_and_si256(a, mask));
}
#define vd_sub(a, b) _mm256_sub_pd(a, b)
#define vd_div(a, b) _mm256_div_pd(a, b)
#define vd_min(a, b) _mm256_min_pd(a, b)
#define vd_whole(a) _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vd_floor(a) _mm256_round_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
#define vd_power(k) \
    _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(_mm256_add_pd(k, _mm256_set1_pd(0x1.8p52 + 1023))), 52))
#define vd_index(a) _mm256_cvttpd_epi32(a)
#define vd_gather(p, e) _mm256_i32gather_pd(p, e, 8)
typedef __m256d vdm;
#define vd_lt(a, b) _mm256_cmp_pd(a, b, _CMP_LT_OQ)
#define vd_ne(a, b) _mm256_cmp_pd(a, b, _CMP_NEQ_UQ)
#define vd_beyond(a, most) _mm256_cmp_pd(vd_abs(a), most, _CMP_NLE_UQ)
#define vd_only(m, a) _mm256_and_pd(m, a)
#define vdm_none() _mm256_setzero_pd()
#define vdm_or(m, n) _mm256_or_pd(m, n)
#define vdm_differ(m, n) _mm256_xor_pd(m, n)
#define vdm_any(m) _mm256_movemask_pd(m)
static inline vdm vd_below(vd v, vd r, vd normal, vd whole) {
    const vd inexact = _mm256_cmp_pd(v, r, _CMP_NEQ_UQ), small = _mm256_cmp_pd(vd_abs(v), normal, _CMP_LT_OQ);
    const vd gone = _mm256_cmp_pd(vd_and(r, whole), _mm256_setzero_pd(), _CMP_EQ_OQ);
    return vd_and(vd_and(inexact, small), gone);
}
#define vd_le(a, b) _mm256_cmp_pd(a, b, _CMP_LE_OQ)
#define vd_eq(a, b) _mm256_cmp_pd(a, b, _CMP_EQ_OQ)
#define vd_neg(a) _mm256_xor_pd(_mm256_set1_pd(-0.0), a)
#define vdm_and(a, b) _mm256_and_pd(a, b)
typedef __m256i vn;
#define vn_zero() _mm256_setzero_si256()
#define vn_add(n, m) _mm256_sub_epi64(n, _mm256_castpd_si256(m))
static inline int64_t vn_sum(vn n) {
    int64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, n);
    return lane[0] + lane[1] + lane[2] + lane[3];
}
#define vd_pick(m, a, b) _mm256_blendv_pd(b, a, m)
/* Where the processor rounds to nearest. */
static inline vd vd_odd(vd a, vd b) {
    const vd s = _mm256_add_pd(a, b), back = _mm256_sub_pd(s, a);
    const vd rest = _mm256_add_pd(_mm256_sub_pd(a, _mm256_sub_pd(s, back)), _mm256_sub_pd(b, back));
    const __m256i bits = _mm256_castpd_si256(s), one = _mm256_set1_epi64x(1);
    const __m256i lost = _mm256_castpd_si256(_mm256_cmp_pd(rest, _mm256_setzero_pd(), _CMP_NEQ_OQ));
    const __m256i even = _mm256_and_si256(_mm256_andnot_si256(bits, one), lost);
    const __m256i apart = _mm256_srli_epi64(_mm256_xor_si256(bits, _mm256_castpd_si256(rest)), 63); /* 1: towards 0 */
    const __m256i back_one = _mm256_slli_epi64(_mm256_and_si256(even, apart), 1);
    return _mm256_castsi256_pd(_mm256_add_epi64(bits, _mm256_sub_epi64(even, back_one)));
}
#define ve_load(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define ve_store(p, e) _mm_storeu_si128((__m128i *)(void *)(p), e)
#define ve_add(a, b) _mm_add_epi32(a, b)
#define ve_down(a) _mm_srli_epi32(a, 20)
#define ve_up(a, by) _mm_slli_epi32(a, by)
#define ve_mul(a, b) _mm_mullo_epi32(a, b)
#define ve_set(s) _mm_set1_epi32((int)(s))
#define vf_le(a, b) _mm256_cmp_ps(a, b, _CMP_LE_OQ)
#define vf_eq(a, b) _mm256_cmp_ps(a, b, _CMP_EQ_OQ)
#define vf_ne(a, b) _mm256_cmp_ps(a, b, _CMP_NEQ_UQ)
#define vf_lt(a, b) _mm256_cmp_ps(a, b, _CMP_LT_OQ)
#define vm_and(a, b) _mm256_and_ps(a, b)
#define vm_or(a, b) _mm256_or_ps(a, b)
typedef __m256i vc;
#define vc_zero() _mm256_setzero_si256()
#define vc_add(n, m) _mm256_sub_epi32(n, _mm256_castps_si256(m))
static inline int64_t vc_sum(vc n) {
    int32_t lane[8];
    int64_t sum = 0;
    _mm256_storeu_si256((__m256i *)lane, n);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

#elif defined(LEVEL_AVX512)

#include <immintrin.h>
typedef __m512 vf;
typedef __mmask16 vm;
#define VW 16
#if defined(VNNI)
#define LEVEL(name) name##_vnni
#else
#define LEVEL(name) name##_avx512
#endif
#define vf_load(p) _mm512_loadu_ps(p)
#define vf_store(p, v) _mm512_storeu_ps(p, v)
#define vf_set(s) _mm512_set1_ps(s)
#define vf_add(a, b) _mm512_add_ps(a, b)
#define vf_sub(a, b) _mm512_sub_ps(a, b)
#define vf_mul(a, b) _mm512_mul_ps(a, b)
#define vf_abs(a) _mm512_abs_ps(a)
#define vf_neg(a) \
    _mm512_castsi512_ps(_mm512_xor_si512(_mm512_set1_epi32(INT32_MIN), _mm512_castps_si512(a)))
#define vf_madd(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_msub(a, b, c) _mm512_fmsub_ps(a, b, c)
#define vf_min(a, b) _mm512_min_ps(a, b)
#define vf_max(a, b) _mm512_max_ps(a, b)
#define vf_absmax(a, b) _mm512_range_ps(a, b, 11) /* the larger magnitude, without sign */
#define vf_half(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
static inline vf vf_round(vf v, uint16_t *code) {
    const __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i *)code, h);
    return _mm512_cvtph_ps(h);
}
#define vf_top(p) \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define vf_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_fnma(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define vf_signed(v, m, l) _mm512_range_ps(vf_and(v, vf_or(m, _mm512_set1_ps(-0.0f))), l, 3)
#define vf_larger(a, b) _mm512_range_ps(a, b, 7)
#define vf_smaller(a, b) _mm512_range_ps(a, b, 6)
#define HAS_ODD 1
#define vk_of(v) _mm512_castps_si512(v)
#define vf_of(v) _mm512_castsi512_ps(v)
#define vf_and(a, b) _mm512_castsi512_ps(_mm512_and_si512(vk_of(a), vk_of(b)))
#define vf_or(a, b) _mm512_castsi512_ps(_mm512_or_si512(vk_of(a), vk_of(b)))
#define vf_xor(a, b) _mm512_castsi512_ps(_mm512_xor_si512(vk_of(a), vk_of(b)))
#define vf_topmost(a, b) _mm512_castsi512_ps(_mm512_max_epi32(vk_of(a), vk_of(b)))
#define vf_pick(m, a, b) _mm512_mask_blend_ps(m, b, a)
#define vm_any(m) ((int)(m))
typedef __m512i vk;
#define vk_load(p) _mm512_loadu_si512(p)
#define vk_store(p, v) _mm512_storeu_si512(p, v)
#define vk_set(s) _mm512_set1_epi32((int)(s))
#define vk_add(a, b) _mm512_add_epi32(a, b)
#define vk_mul(a, b) _mm512_mullo_epi32(a, b)
#define vk_and(a, b) _mm512_and_si512(a, b)
#define vk_down(a, by) _mm512_srlv_epi32(a, by)
#define vk_up(a, by) _mm512_slli_epi32(a, by)
#define vf_within(a, m, b) vf_of(_mm512_ternarylogic_epi32(vk_of(a), vk_of(m), vk_of(b), 0xea))
#define vf_random(word, one) vf_within(vf_of(_mm512_srli_epi32(word, 9)), vf_of(vk_set(0x7ff800)), vf_set(one))
static inline vf vf_odd(vf a, vf b) {
    const vf below = _mm512_add_round_ps(a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const vf above = _mm512_add_round_ps(a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(vk_of(below), _mm512_set1_epi32(1)), above, below);
}
typedef __m512d vd;
typedef __m256i ve;
#define VD 8
#define vd_load(p) _mm512_cvtps_pd(_mm256_loadu_ps(p))
#define vd_store(p, v) _mm256_storeu_ps(p, _mm512_cvtpd_ps(v))
#define vd_get(p) _mm512_loadu_pd(p)
#define vd_put(p, v) _mm512_storeu_pd(p, v)
#define vd_set(s) _mm512_set1_pd(s)
#define vd_add(a, b) _mm512_add_pd(a, b)
#define vd_mul(a, b) _mm512_mul_pd(a, b)
#define vd_fma(a, b, c) _mm512_fmadd_pd(a, b, c)
#define vd_fnma(a, b, c) _mm512_fnmadd_pd(a, b, c)
#define vd_max(a, b) _mm512_max_pd(a, b)
#define vd_and(a, b) _mm512_and_pd(a, b)
#define vd_or(a, b) _mm512_or_pd(a, b)
#define vd_abs(a) _mm512_abs_pd(a)
#define vd_flushed(r, least) _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(vd_abs(r), least, _CMP_NLT_UQ), r)
#define vd_of(e) _mm512_cvtepi32_pd(e)
#define vd_half(p) _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define vd_top(p) \
    _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16)))
typedef __m512i vw;
#define vw_load(p) _mm512_loadu_si512(p)
#define vw_store(p, a) _mm512_storeu_si512(p, a)
#define vw_set(s) _mm512_set1_epi64((int64_t)(s))
#define vw_add(a, b) _mm512_add_epi64(a, b)
#define vw_and(a, b) _mm512_and_si512(a, b)
#define vw_up(a, by) _mm512_slli_epi64(a, by)
#define vw_up_by(a, by) _mm512_sllv_epi64(a, by)
#define vw_down(a, by) _mm512_srlv_epi64(a, by)
#define vw_of(v) _mm512_castpd_si512(v)
#define vd_as(a) _mm512_castsi512_pd(a)
#define vw_some(a, bits, mask) _mm512_maskz_and_epi64(_mm512_test_epi64_mask(a, bits), a, mask)
#define vd_sub(a, b) _mm512_sub_pd(a, b)
#define vd_div(a, b) _mm512_div_pd(a, b)
#define vd_min(a, b) _mm512_min_pd(a, b)
#define vd_whole(a) _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vd_floor(a) _mm512_roundscale_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
#define vd_power(k) \
    _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(_mm512_add_pd(k, _mm512_set1_pd(0x1.8p52 + 1023))), 52))
#define vd_index(a) _mm512_cvttpd_epi32(a)
#define vd_gather(p, e) _mm512_i32gather_pd(e, p, 8)
typedef __mmask8 vdm;
#define vd_lt(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ)
#define vd_ne(a, b) _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ)
#define vd_beyond(a, most) _mm512_cmp_pd_mask(vd_abs(a), most, _CMP_NLE_UQ)
#define vd_only(m, a) _mm512_maskz_mov_pd(m, a)
#define vdm_none() 0
#define vdm_or(m, n) ((vdm)((m) | (n)))
#define vdm_differ(m, n) ((vdm)((m) ^ (n)))
#define vdm_any(m) ((int)(m))
static inline vdm vd_below(vd v, vd r, vd normal, vd whole) {
    const __mmask8 inexact = _mm512_cmp_pd_mask(v, r, _CMP_NEQ_UQ);
    const __mmask8 small = _mm512_mask_cmp_pd_mask(inexact, vd_abs(v), normal, _CMP_LT_OQ);
    return _mm512_mask_cmp_pd_mask(small, vd_and(r, whole), _mm512_setzero_pd(), _CMP_EQ_OQ);
}
#define vd_le(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ)
#define vd_eq(a, b) _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)
#define vd_neg(a) _mm512_xor_pd(_mm512_set1_pd(-0.0), a)
#define vdm_and(a, b) ((vdm)((a) & (b)))
typedef __m512i vn; /* not popcounts: GCC 12 reads a spilled mask's byte as four */
#define vn_zero() _mm512_setzero_si512()
#define vn_add(n, m) _mm512_mask_add_epi64(n, m, n, _mm512_set1_epi64(1))
#define vn_sum(n) ((int64_t)_mm512_reduce_add_epi64(n))
#define vd_pick(m, a, b) _mm512_mask_blend_pd(m, b, a)
static inline vd vd_odd(vd a, vd b) {
    const vd below = _mm512_add_round_pd(a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const vd above = _mm512_add_round_pd(a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const __mmask8 odd = _mm512_test_epi64_mask(_mm512_castpd_si512(below), _mm512_set1_epi64(1));
    return _mm512_mask_blend_pd(odd, above, below);
}
#define ve_load(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define ve_store(p, e) _mm256_storeu_si256((__m256i *)(void *)(p), e)
#define ve_add(a, b) _mm256_add_epi32(a, b)
#define ve_down(a) _mm256_srli_epi32(a, 20)
#define ve_up(a, by) _mm256_slli_epi32(a, by)
#define ve_mul(a, b) _mm256_mullo_epi32(a, b)
#define ve_set(s) _mm256_set1_epi32((int)(s))
#define vf_le(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)
#define vf_eq(a, b) _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)
#define vf_ne(a, b) _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ)
#define vf_lt(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)
#define vm_and(a, b) ((vm)((a) & (b)))
#define vm_or(a, b) ((vm)((a) | (b)))
typedef __m512i vc;
#define vc_zero() _mm512_setzero_si512()
#define vc_add(n, m) _mm512_mask_add_epi32(n, m, n, _mm512_set1_epi32(1))
#define vc_sum(n) ((int64_t)_mm512_reduce_add_epi32(n))

#endif

#if !defined(LEVEL_SCALAR)
/* The processor flushes results that are subnormal once rounded; it does not touch operands. */
#define vf_normal(v) (v)
static inline unsigned flushing(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON);
    return before;
}
#define flushing_no_more(before) _mm_setcsr(before)
#endif

#if !defined(HAS_ODD)
#define HAS_ODD 0
#define vf_odd(a, b) vf_add(a, b) /* not called */
#endif

#define VN (16 / VW)

#endif
