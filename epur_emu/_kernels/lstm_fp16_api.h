/* The functions that each CPU level gives; `lstm_fp16.h` says what they do. */
#ifndef EPUR_LSTM_FP16_API_H
#define EPUR_LSTM_FP16_API_H

#include <stddef.h>
#include <stdint.h>

/* No partial sum can reach fp16's overflow while the sum of its terms' magnitudes stays below this: up to 1,024
 * additions, each off by at most 2^-11 of its result, let it grow by less than a factor of 1.65. */
#define EPUR_SAFE_SUM 32768.0

#define EPUR_LEVEL_API(suffix)                                                                                       \
    void dot##suffix(const uint16_t *, const float *, float *, const uint8_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t,     \
                     int64_t *);                                                                                     \
    void mu##suffix(const float *, const float *, const float *, float *, float *, float, const uint16_t *,          \
                    ptrdiff_t, ptrdiff_t, int64_t *);                                                                \
    void recurrent##suffix(const uint16_t *, const float *, const float *, const float *, float *, float *, float *, \
                           float *, const double *, double, float, const uint16_t *, ptrdiff_t, ptrdiff_t, int, int,  \
                           int64_t *);

EPUR_LEVEL_API(_scalar)
#if defined(__x86_64__)
#define EPUR_X86 1
EPUR_LEVEL_API(_avx2)
EPUR_LEVEL_API(_avx512)
#endif

#endif
