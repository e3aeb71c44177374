/* Rounding of float32 arrays: what each CPU level gives; `rounding.h` says how. */
#ifndef EPUR_ROUNDING_API_H
#define EPUR_ROUNDING_API_H

#include <stddef.h>
#include <stdint.h>

/* The order of `formats.MODES`. */
enum { NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, STOCHASTIC };
enum { TO_INFINITY, TO_NAN, TO_MAX }; /* what overflow becomes in a float format */
enum { SATURATE, WRAP };              /* and in a fixed-point one */

typedef struct {
    int exponent_bits, mantissa_bits, subnormals, over;
    float max;
} epur_float;

typedef struct {
    int fraction_bits, over;
    float min, max;
} epur_fixed;

/* Random words of stochastic rounding: words[i], or if there are none mix(key ^ (start + i) 0x9e3779b9). */
typedef struct {
    const uint32_t *words;
    uint32_t key, start;
} epur_random;

#define EPUR_ROUNDING_API(level)                                                                                \
    void round_float_##level(const float *, float *, ptrdiff_t, epur_float, int, epur_random, int64_t *);       \
    void round_fixed_##level(const float *, float *, ptrdiff_t, epur_fixed, int, epur_random, int64_t *);       \
    void round_float_blocks_##level(const float *, float *, ptrdiff_t, ptrdiff_t, ptrdiff_t, epur_float, int,   \
                                    int64_t *);                                                                 \
    void round_fixed_blocks_##level(const float *, float *, ptrdiff_t, ptrdiff_t, ptrdiff_t, epur_fixed, int,   \
                                    int64_t *);

EPUR_ROUNDING_API(scalar)
#if defined(__x86_64__)
EPUR_ROUNDING_API(avx2)
EPUR_ROUNDING_API(avx512)
#endif

#endif
