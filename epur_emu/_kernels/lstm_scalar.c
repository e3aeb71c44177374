/* The plain level: reference, fallback and baseline; kept scalar on purpose. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-vectorize")
#endif
#define LEVEL_SCALAR
#include "lanes.h"
