/* The plain level. */
#define LEVEL(name) name##_scalar
#include "packing.h"
