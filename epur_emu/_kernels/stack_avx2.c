#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,popcnt,lzcnt,bmi"))), apply_to = function)
#else
#pragma GCC target("avx2,popcnt,lzcnt,bmi")
#endif
#define LEVEL(name) name##_avx2
#include "stack.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int epur_no_avx2;
#endif
