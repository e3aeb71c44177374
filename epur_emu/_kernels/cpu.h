/* The best CPU level of this machine: 0 scalar, 1 AVX2 with F16C and FMA, 2 AVX-512, 3 that with VNNI. */
#ifndef EPUR_CPU_H
#define EPUR_CPU_H

static inline int epur_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) return 0;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#else
    return 0;
#endif
}

#endif
