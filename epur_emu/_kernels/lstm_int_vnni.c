#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512vnni,avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512vnni,avx2,f16c,fma")
#endif
#define LEVEL_AVX512
#define VNNI
#include "lstm_int.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_vnni;
#endif
