/* The best CPU level of this machine, and what the levels are called. */
#ifndef EPUR_CPU_H
#define EPUR_CPU_H

/* Whether the compiler knows the last levels. */
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define EPUR_BF16 1
#endif
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 12)
#define EPUR_FP16 1
#endif

/* AVX2 with F16C and FMA; AVX-512; that with VNNI; that with BF16; that with FP16. */
static const char *const epur_levels[] = {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512fp16"};

static inline int epur_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) return 0;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")))
        return 1;
    if (!__builtin_cpu_supports("avx512vnni")) return 2;
#if defined(EPUR_BF16)
    if (!__builtin_cpu_supports("avx512bf16")) return 3;
#if defined(EPUR_FP16)
    if (__builtin_cpu_supports("avx512fp16")) return 5;
#endif
    return 4;
#else
    return 3;
#endif
#else
    return 0;
#endif
}

#endif
