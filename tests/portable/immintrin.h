/* AVX-512 by SIMDe, in plain C, for CPUs without it: what `tests/test_avx512.py` compiles that level's kernel with. */
#ifndef EPUR_PORTABLE_IMMINTRIN_H
#define EPUR_PORTABLE_IMMINTRIN_H

#include_next <immintrin.h>

#define SIMDE_X86_AVX512F_NO_NATIVE
#define SIMDE_X86_AVX512BW_NO_NATIVE
#define SIMDE_X86_AVX512DQ_NO_NATIVE
#define SIMDE_X86_AVX512VL_NO_NATIVE
#define SIMDE_X86_AVX512VNNI_NO_NATIVE
#define SIMDE_X86_AVX512BF16_NO_NATIVE
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#define __m512 simde__m512
#define __m512i simde__m512i
#define __mmask16 simde__mmask16
#define _mm512_loadu_ps(p) simde_mm512_loadu_ps(p)
#define _mm512_storeu_ps(p, v) simde_mm512_storeu_ps(p, v)
#define _mm512_set1_ps(s) simde_mm512_set1_ps(s)
#define _mm512_set1_epi32(s) simde_mm512_set1_epi32(s)
#define _mm512_add_ps(a, b) simde_mm512_add_ps(a, b)
#define _mm512_sub_ps(a, b) simde_mm512_sub_ps(a, b)
#define _mm512_mul_ps(a, b) simde_mm512_mul_ps(a, b)
#define _mm512_xor_si512(a, b) simde_mm512_xor_si512(a, b)
#define _mm512_castps_si512(a) simde_mm512_castps_si512(a)
#define _mm512_castsi512_ps(a) simde_mm512_castsi512_ps(a)
#define _mm512_loadu_si512(p) simde_mm512_loadu_si512(p)
#define _mm512_storeu_si512(p, v) simde_mm512_storeu_si512(p, v)
#define _mm512_set1_epi8(s) simde_mm512_set1_epi8(s)
#define _mm512_dpbusd_epi32(s, a, b) simde_mm512_dpbusd_epi32(s, a, b)
#define _mm512_set1_epi16(s) simde_mm512_set1_epi16(s)
#define _mm512_add_epi32(a, b) simde_mm512_add_epi32(a, b)
#define _mm512_mask_add_epi32(s, k, a, b) simde_mm512_mask_add_epi32(s, k, a, b)
#define _mm512_mask_add_epi64(s, k, a, b) simde_mm512_mask_add_epi64(s, k, a, b)
#define _mm512_min_epi32(a, b) simde_mm512_min_epi32(a, b)
#define _mm512_max_epi32(a, b) simde_mm512_max_epi32(a, b)
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_maddubs_epi16(a, b) simde_mm512_maddubs_epi16(a, b)
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(a, by) simde_mm512_slli_epi32(a, (unsigned)(by))
#define _mm512_cmpneq_epi32_mask(a, b) ((__mmask16)~simde_mm512_cmpeq_epi32_mask(a, b))
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, c) simde_mm512_cmp_ps_mask(a, b, c)

/* SIMDe leaves these to the machine; two halves on AVX and F16C do the same. minps and maxps give the second operand
 * where one is not a number, as Intel's manual has it for all widths. */
#define HALVES(name, call)                                             \
    static inline simde__m512 name(simde__m512 a, simde__m512 b) {     \
        simde__m512_private x = simde__m512_to_private(a), y = simde__m512_to_private(b); \
        for (int i = 0; i < 2; i++) x.m256[i] = call(x.m256[i], y.m256[i]); \
        return simde__m512_from_private(x);                            \
    }
HALVES(portable_min, _mm256_min_ps)
HALVES(portable_max, _mm256_max_ps)
#define _mm512_min_ps(a, b) portable_min(a, b)
#define _mm512_max_ps(a, b) portable_max(a, b)

/* SIMDe's keeps the sign of what is not a number. */
static inline simde__m512 portable_abs(simde__m512 a) {
    simde__m512_private x = simde__m512_to_private(a);
    for (int i = 0; i < 2; i++) x.m256[i] = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.m256[i]);
    return simde__m512_from_private(x);
}
#define _mm512_abs_ps(a) portable_abs(a)

/* The larger magnitude; imm is 11, without sign, or 3, with a's. b is a number and not negative. */
static inline simde__m512 portable_range(simde__m512 a, simde__m512 b, int imm) {
    simde__m512_private x = simde__m512_to_private(portable_max(portable_abs(a), b)), y = simde__m512_to_private(a);
    for (int i = 0; i < 2 && imm == 3; i++)
        x.m256[i] = _mm256_or_ps(x.m256[i], _mm256_and_ps(y.m256[i], _mm256_set1_ps(-0.0f)));
    return simde__m512_from_private(x);
}
/* The one of larger (imm 7) or smaller (6) magnitude. */
static inline simde__m512 portable_sorted(simde__m512 a, simde__m512 b, int imm) {
    simde__m512_private x = simde__m512_to_private(a), y = simde__m512_to_private(b);
    for (int i = 0; i < 2; i++) {
        const __m256 sign = _mm256_set1_ps(-0.0f), p = x.m256[i], q = y.m256[i];
        const __m256 less = _mm256_cmp_ps(_mm256_andnot_ps(sign, p), _mm256_andnot_ps(sign, q), _CMP_LT_OQ);
        x.m256[i] = imm == 7 ? _mm256_blendv_ps(p, q, less) : _mm256_blendv_ps(q, p, less);
    }
    return simde__m512_from_private(x);
}
#undef _mm512_range_ps
#define _mm512_range_ps(a, b, imm) ((imm) == 6 || (imm) == 7 ? portable_sorted(a, b, imm) : portable_range(a, b, imm))

static __attribute__((noinline)) simde__m512 portable_add_round(simde__m512 a, simde__m512 b, int mode) {
    simde__m512_private x = simde__m512_to_private(a), y = simde__m512_to_private(b);
    const unsigned before = _mm_getcsr();
    _mm_setcsr((before & ~(unsigned)_MM_ROUND_MASK) | (unsigned)(mode & 3) << 13);
    for (int i = 0; i < 2; i++) {
        __m256 sum = x.m256[i];
        __asm__ volatile("" : "+x"(sum) : : "memory");
        sum = _mm256_add_ps(sum, y.m256[i]);
        __asm__ volatile("" : "+x"(sum) : : "memory");
        x.m256[i] = sum;
    }
    _mm_setcsr(before);
    return simde__m512_from_private(x);
}
#undef _mm512_add_round_ps
#define _mm512_add_round_ps(a, b, mode) portable_add_round(a, b, mode)
#define _mm512_test_epi32_mask(a, b) simde_mm512_test_epi32_mask(a, b)

/* Rounded once, which SIMDe's are not. */
#define FUSED(name)                                                                                    \
    static inline simde__m512 portable_##name(simde__m512 a, simde__m512 b, simde__m512 c) {            \
        simde__m512_private x = simde__m512_to_private(a), y = simde__m512_to_private(b),              \
                            z = simde__m512_to_private(c);                                             \
        for (int i = 0; i < 2; i++) x.m256[i] = _mm256_##name##_ps(x.m256[i], y.m256[i], z.m256[i]);   \
        return simde__m512_from_private(x);                                                            \
    }
FUSED(fmadd)
FUSED(fmsub)
FUSED(fnmadd)
#define _mm512_fmadd_ps(a, b, c) portable_fmadd(a, b, c)
#define _mm512_fmsub_ps(a, b, c) portable_fmsub(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) portable_fnmadd(a, b, c)

#define INTEGER_HALVES(name, call)                                                                     \
    static inline simde__m512i name(simde__m512i a, simde__m512i b) {                                  \
        simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);           \
        for (int i = 0; i < 2; i++) x.m256i[i] = call(x.m256i[i], y.m256i[i]);                         \
        return simde__m512i_from_private(x);                                                           \
    }
INTEGER_HALVES(portable_and, _mm256_and_si256)
INTEGER_HALVES(portable_or, _mm256_or_si256)
INTEGER_HALVES(portable_mullo, _mm256_mullo_epi32)
INTEGER_HALVES(portable_srlv, _mm256_srlv_epi32)
#define _mm512_and_si512(a, b) portable_and(a, b)
#define _mm512_or_si512(a, b) portable_or(a, b)
#define _mm512_mullo_epi32(a, b) portable_mullo(a, b)
#undef _mm512_srlv_epi32
#define _mm512_srlv_epi32(a, by) portable_srlv(a, by)

static inline simde__m512i portable_srli(simde__m512i a, int by) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 2; i++) x.m256i[i] = _mm256_srli_epi32(x.m256i[i], by);
    return simde__m512i_from_private(x);
}
#undef _mm512_srli_epi32
#define _mm512_srli_epi32(a, by) portable_srli(a, by)

static inline simde__m512i portable_cvtepu16(__m256i a) {
    simde__m512i_private r;
    r.m256i[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a));
    r.m256i[1] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1));
    return simde__m512i_from_private(r);
}
#define _mm512_cvtepu16_epi32(a) portable_cvtepu16(a)
#define _mm512_mask_blend_ps(m, a, b) simde_mm512_mask_blend_ps(m, a, b)

static inline simde__m512i portable_srai(simde__m512i a, int by) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 2; i++) x.m256i[i] = _mm256_srai_epi32(x.m256i[i], by);
    return simde__m512i_from_private(x);
}
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(a, by) portable_srai(a, by)

/* (a & b) | c, the only use */
#undef _mm512_ternarylogic_epi32
#define _mm512_ternarylogic_epi32(a, b, c, imm) portable_or(portable_and(a, b), c)

/* 16-bit codes, 32 at a time. */
#define __mmask32 simde__mmask32
#define _mm512_setzero_si512() simde_mm512_setzero_si512()
#define _mm512_load_si512(p) simde_mm512_loadu_si512(p)
#define _mm512_castsi256_si512(a) simde_mm512_castsi256_si512(a)
#undef _mm512_inserti64x4
#define _mm512_inserti64x4(a, b, at) simde_mm512_inserti64x4(a, b, at)
#define _mm512_add_epi16(a, b) simde_mm512_add_epi16(a, b)
static inline simde__m512i portable_srli16(simde__m512i a, int by) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 2; i++) x.m256i[i] = _mm256_srli_epi16(x.m256i[i], by);
    return simde__m512i_from_private(x);
}
#undef _mm512_srli_epi16
#define _mm512_srli_epi16(a, by) portable_srli16(a, by)
#define WORDS(name, expression)                                                                       \
    static inline simde__mmask32 name(simde__mmask32 k, simde__m512i a, simde__m512i b) {              \
        const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);     \
        simde__mmask32 r = 0;                                                                          \
        for (int i = 0; i < 32; i++) r |= (simde__mmask32)((k >> i & 1) && (expression)) << i;         \
        return r;                                                                                      \
    }
WORDS(portable_below, x.u16[i] < y.u16[i])
WORDS(portable_test, (x.u16[i] & y.u16[i]) != 0)
#undef _mm512_cmplt_epu16_mask
#define _mm512_cmplt_epu16_mask(a, b) portable_below(0xffffffffu, a, b)
#define _mm512_mask_test_epi16_mask(k, a, b) portable_test(k, a, b)
static inline simde__m512i portable_permute(simde__m512i at, simde__m512i a) {
    const simde__m512i_private x = simde__m512i_to_private(at), y = simde__m512i_to_private(a);
    simde__m512i_private r;
    for (int i = 0; i < 32; i++) r.u16[i] = y.u16[x.u16[i] & 31];
    return simde__m512i_from_private(r);
}
#define _mm512_permutexvar_epi16(at, a) portable_permute(at, a)
static inline simde__m512i portable_sub(simde__m512i s, simde__mmask32 k, simde__m512i a, simde__m512i b) {
    const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    simde__m512i_private r = simde__m512i_to_private(s);
    for (int i = 0; i < 32; i++)
        if (k >> i & 1) r.u16[i] = (uint16_t)(x.u16[i] - y.u16[i]);
    return simde__m512i_from_private(r);
}
#define _mm512_mask_sub_epi16(s, k, a, b) portable_sub(s, k, a, b)
static inline int portable_sum(simde__m512i a) {
    const simde__m512i_private x = simde__m512i_to_private(a);
    int sum = 0;
    for (int i = 0; i < 16; i++) sum += x.i32[i];
    return sum;
}
#define _mm512_reduce_add_epi32(a) portable_sum(a)
static inline int64_t portable_long_sum(simde__m512i a) {
    const simde__m512i_private x = simde__m512i_to_private(a);
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += x.i64[i];
    return sum;
}
#define _mm512_reduce_add_epi64(a) portable_long_sum(a)

static inline simde__m512 portable_cvtph(__m256i h) {
    simde__m512_private r;
    r.m256[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
    r.m256[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
    return simde__m512_from_private(r);
}
static inline __m256i portable_cvtps(simde__m512 v) {
    const simde__m512_private x = simde__m512_to_private(v);
    return _mm256_set_m128i(_mm256_cvtps_ph(x.m256[1], 0), _mm256_cvtps_ph(x.m256[0], 0));
}
#define _mm512_cvtph_ps(h) portable_cvtph(h)
#define _mm512_cvtps_ph(v, mode) portable_cvtps(v)

/* float64, two halves as above. */
#define __m512d simde__m512d
#define __mmask8 simde__mmask8
#define EACH_HALF(r, expression)                                          \
    simde__m512d_private r;                                               \
    for (int i = 0; i < 2; i++) r.m256d[i] = (expression);                \
    return simde__m512d_from_private(r)
#define DOUBLES(name, call)                                                                            \
    static inline simde__m512d name(simde__m512d a, simde__m512d b) {                                  \
        const simde__m512d_private x = simde__m512d_to_private(a), y = simde__m512d_to_private(b);     \
        EACH_HALF(r, call(x.m256d[i], y.m256d[i]));                                                    \
    }
DOUBLES(portable_add_pd, _mm256_add_pd)
DOUBLES(portable_mul_pd, _mm256_mul_pd)
DOUBLES(portable_sub_pd, _mm256_sub_pd)
DOUBLES(portable_div_pd, _mm256_div_pd)
DOUBLES(portable_max_pd, _mm256_max_pd)
DOUBLES(portable_min_pd, _mm256_min_pd)
DOUBLES(portable_xor_pd, _mm256_xor_pd)
DOUBLES(portable_and_pd, _mm256_and_pd)
DOUBLES(portable_or_pd, _mm256_or_pd)
#define _mm512_add_pd(a, b) portable_add_pd(a, b)
#define _mm512_mul_pd(a, b) portable_mul_pd(a, b)
#define _mm512_sub_pd(a, b) portable_sub_pd(a, b)
#define _mm512_div_pd(a, b) portable_div_pd(a, b)
#define _mm512_max_pd(a, b) portable_max_pd(a, b)
#define _mm512_min_pd(a, b) portable_min_pd(a, b)
#define _mm512_xor_pd(a, b) portable_xor_pd(a, b)
#define _mm512_and_pd(a, b) portable_and_pd(a, b)
#define _mm512_or_pd(a, b) portable_or_pd(a, b)
#define FUSED_DOUBLES(name)                                                                            \
    static inline simde__m512d portable_##name##_pd(simde__m512d a, simde__m512d b, simde__m512d c) {  \
        const simde__m512d_private x = simde__m512d_to_private(a), y = simde__m512d_to_private(b),     \
                                   z = simde__m512d_to_private(c);                                     \
        EACH_HALF(r, _mm256_##name##_pd(x.m256d[i], y.m256d[i], z.m256d[i]));                          \
    }
FUSED_DOUBLES(fmadd)
FUSED_DOUBLES(fnmadd)
#define _mm512_fmadd_pd(a, b, c) portable_fmadd_pd(a, b, c)
#define _mm512_fnmadd_pd(a, b, c) portable_fnmadd_pd(a, b, c)
static inline simde__m512d portable_set1_pd(double v) { EACH_HALF(r, _mm256_set1_pd(v)); }
static inline simde__m512d portable_load_pd(const double *p) { EACH_HALF(r, _mm256_loadu_pd(p + 4 * i)); }
static inline simde__m512d portable_from_epi32(__m256i v) {
    EACH_HALF(r, _mm256_cvtepi32_pd(i ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v)));
}
static inline simde__m512d portable_from_ps(__m256 v) {
    EACH_HALF(r, _mm256_cvtps_pd(i ? _mm256_extractf128_ps(v, 1) : _mm256_castps256_ps128(v)));
}
static inline __m256 portable_to_ps(simde__m512d a) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    return _mm256_set_m128(_mm256_cvtpd_ps(x.m256d[1]), _mm256_cvtpd_ps(x.m256d[0]));
}
static inline void portable_store_pd(double *p, simde__m512d a) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    for (int i = 0; i < 2; i++) _mm256_storeu_pd(p + 4 * i, x.m256d[i]);
}
static inline simde__m512d portable_some(simde__mmask8 k, simde__m512d a) {
    simde__m512d_private x = simde__m512d_to_private(a);
    for (int i = 0; i < 8; i++)
        if (!(k >> i & 1)) x.u64[i] = 0;
    return simde__m512d_from_private(x);
}
static inline simde__m512d portable_abs_pd(simde__m512d a) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    EACH_HALF(r, _mm256_andnot_pd(_mm256_set1_pd(-0.0), x.m256d[i]));
}
static inline simde__m512d portable_whole(simde__m512d a, int down) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    EACH_HALF(r, down ? _mm256_floor_pd(x.m256d[i])
                      : _mm256_round_pd(x.m256d[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256i portable_cut(simde__m512d a) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    return _mm256_set_m128i(_mm256_cvttpd_epi32(x.m256d[1]), _mm256_cvttpd_epi32(x.m256d[0]));
}
static inline simde__m512d portable_gather(__m256i at, const double *p) {
    EACH_HALF(r, _mm256_i32gather_pd(p, i ? _mm256_extracti128_si256(at, 1) : _mm256_castsi256_si128(at), 8));
}
static __attribute__((noinline)) simde__m512d portable_add_round_pd(simde__m512d a, simde__m512d b, int mode) {
    simde__m512d_private x = simde__m512d_to_private(a), y = simde__m512d_to_private(b);
    const unsigned before = _mm_getcsr();
    _mm_setcsr((before & ~(unsigned)_MM_ROUND_MASK) | (unsigned)(mode & 3) << 13);
    for (int i = 0; i < 2; i++) {
        __m256d sum = x.m256d[i];
        __asm__ volatile("" : "+x"(sum) : : "memory");
        sum = _mm256_add_pd(sum, y.m256d[i]);
        __asm__ volatile("" : "+x"(sum) : : "memory");
        x.m256d[i] = sum;
    }
    _mm_setcsr(before);
    return simde__m512d_from_private(x);
}
static inline simde__m512d portable_bits(simde__m512i a) {
    const simde__m512i_private x = simde__m512i_to_private(a);
    EACH_HALF(r, _mm256_castsi256_pd(x.m256i[i]));
}
static inline simde__m512i portable_of_bits(simde__m512d a) {
    const simde__m512d_private x = simde__m512d_to_private(a);
    simde__m512i_private r;
    for (int i = 0; i < 2; i++) r.m256i[i] = _mm256_castpd_si256(x.m256d[i]);
    return simde__m512i_from_private(r);
}
static inline simde__m512i portable_slli64(simde__m512i a, int by) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 2; i++) x.m256i[i] = _mm256_slli_epi64(x.m256i[i], by);
    return simde__m512i_from_private(x);
}
static inline simde__m512i portable_set64(long long v) {
    simde__m512i_private r;
    for (int i = 0; i < 2; i++) r.m256i[i] = _mm256_set1_epi64x(v);
    return simde__m512i_from_private(r);
}
static inline simde__mmask8 portable_test64(simde__m512i a, simde__m512i b) {
    const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    simde__mmask8 r = 0;
    for (int i = 0; i < 8; i++) r |= (simde__mmask8)((x.u64[i] & y.u64[i]) != 0) << i;
    return r;
}
static inline simde__m512d portable_blend_pd(simde__mmask8 k, simde__m512d a, simde__m512d b) {
    simde__m512d_private x = simde__m512d_to_private(a), y = simde__m512d_to_private(b);
    for (int i = 0; i < 8; i++)
        if (k >> i & 1) x.u64[i] = y.u64[i];
    return simde__m512d_from_private(x);
}
#undef _mm512_roundscale_pd
#define _mm512_roundscale_pd(a, imm) portable_whole(a, ((imm) & 7) == _MM_FROUND_TO_NEG_INF)
#define _mm512_cvttpd_epi32(a) portable_cut(a)
#undef _mm512_i32gather_pd
#define _mm512_i32gather_pd(at, p, by) portable_gather(at, p)
#undef _mm512_add_round_pd
#define _mm512_add_round_pd(a, b, mode) portable_add_round_pd(a, b, mode)
#define _mm512_castsi512_pd(a) portable_bits(a)
#define _mm512_castpd_si512(a) portable_of_bits(a)
#undef _mm512_slli_epi64
#define _mm512_slli_epi64(a, by) portable_slli64(a, by)
#define _mm512_set1_epi64(v) portable_set64(v)
INTEGER_HALVES(portable_add64, _mm256_add_epi64)
INTEGER_HALVES(portable_sllv64, _mm256_sllv_epi64)
INTEGER_HALVES(portable_srlv64, _mm256_srlv_epi64)
static inline simde__m512i portable_and_some64(simde__mmask8 k, simde__m512i a, simde__m512i b) {
    simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    for (int i = 0; i < 8; i++) x.u64[i] = k >> i & 1 ? x.u64[i] & y.u64[i] : 0;
    return simde__m512i_from_private(x);
}
#undef _mm512_add_epi64
#define _mm512_add_epi64(a, b) portable_add64(a, b)
#undef _mm512_sllv_epi64
#define _mm512_sllv_epi64(a, by) portable_sllv64(a, by)
#undef _mm512_srlv_epi64
#define _mm512_srlv_epi64(a, by) portable_srlv64(a, by)
#undef _mm512_maskz_and_epi64
#define _mm512_maskz_and_epi64(k, a, b) portable_and_some64(k, a, b)
#define _mm512_test_epi64_mask(a, b) portable_test64(a, b)
#define _mm512_mask_blend_pd(k, a, b) portable_blend_pd(k, a, b)
#define _mm512_abs_pd(a) portable_abs_pd(a)
#define _mm512_set1_pd(v) portable_set1_pd(v)
#define _mm512_setzero_pd() portable_set1_pd(0.0)
#define _mm512_loadu_pd(p) portable_load_pd(p)
#define _mm512_storeu_pd(p, v) portable_store_pd(p, v)
#define _mm512_cvtepi32_pd(v) portable_from_epi32(v)
#define _mm512_cvtps_pd(v) portable_from_ps(v)
#define _mm512_cvtpd_ps(v) portable_to_ps(v)
#undef _mm512_cmp_pd_mask
#define _mm512_cmp_pd_mask(a, b, c) simde_mm512_cmp_pd_mask(a, b, c)
#undef _mm512_mask_cmp_pd_mask
#define _mm512_mask_cmp_pd_mask(k, a, b, c) ((simde__mmask8)((k) & simde_mm512_cmp_pd_mask(a, b, c)))
#define _mm512_maskz_mov_pd(k, a) portable_some(k, a)

/* bf16, which SIMDe does not round to, nor take subnormals for 0. */
#define __m512bh simde__m512i
#define _mm512_setzero_ps() simde_mm512_setzero_ps()
static inline uint32_t portable_flushed(uint32_t b) { return b & 0x7f800000 ? b : b & 0x80000000; }
static inline simde__m512i portable_to_bf16(simde__m512 high, simde__m512 low) {
    const simde__m512_private v[2] = {simde__m512_to_private(low), simde__m512_to_private(high)};
    simde__m512i_private r;
    for (int i = 0; i < 32; i++) {
        const uint32_t b = portable_flushed(v[i / 16].u32[i % 16]), up = 0x7fff + (b >> 16 & 1);
        r.u16[i] = (uint16_t)((b & 0x7fffffff) > 0x7f800000 ? b >> 16 | 0x40 : (b + up) >> 16);
    }
    return simde__m512i_from_private(r);
}
static inline float portable_half(uint32_t b) {
    float v;
    b = portable_flushed(b);
    memcpy(&v, &b, 4);
    return v;
}
static inline simde__m512 portable_pairs(simde__m512 s, simde__m512i a, simde__m512i b) {
    const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    simde__m512_private r = simde__m512_to_private(s);
    for (int i = 0; i < 16; i++) {
        const uint32_t top = 0xffff0000;
        uint32_t bits;
        float sum = r.f32[i] + portable_half(x.u32[i] & top) * portable_half(y.u32[i] & top);
        sum += portable_half(x.u32[i] << 16) * portable_half(y.u32[i] << 16);
        memcpy(&bits, &sum, 4);
        r.u32[i] = portable_flushed(bits);
    }
    return simde__m512_from_private(r);
}
#define _mm512_cvtne2ps_pbh(high, low) portable_to_bf16(high, low)
#define _mm512_dpbf16_ps(s, a, b) portable_pairs(s, a, b)

/* fp16, which SIMDe leaves to the machine: in float32 first, which is exact for products and innocuous for sums. */
#define __m512h simde__m512i
#define _mm512_castsi512_ph(a) (a)
#define _mm512_castph_si512(a) (a)
#define _mm512_castsi512_si256(a) simde_mm512_castsi512_si256(a)
#define _mm512_extracti64x4_epi64(a, at) simde_mm512_extracti64x4_epi64(a, at)
#define HALVES_OF(name, operation)                                                                  \
    static inline __m512h name(__m512h a, __m512h b) {                                              \
        const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);  \
        simde__m512i_private r;                                                                     \
        for (int i = 0; i < 32; i++)                                                                \
            r.u16[i] = _cvtss_sh(_cvtsh_ss(x.u16[i]) operation _cvtsh_ss(y.u16[i]), 0);             \
        return simde__m512i_from_private(r);                                                        \
    }
HALVES_OF(portable_mul_ph, *)
HALVES_OF(portable_add_ph, +)
#define _mm512_mul_ph(a, b) portable_mul_ph(a, b)
#define _mm512_add_ph(a, b) portable_add_ph(a, b)

#endif
