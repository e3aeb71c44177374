#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,f16c,fma,prefer-vector-width=512")
#endif
#define LEVEL(name) name##_avx512
#include "packing.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_avx512;
#endif
