#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma")
#endif
#define LEVEL(name) name##_avx2
#include "packing.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_avx2;
#endif
