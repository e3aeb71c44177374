/* The plain level. */
#define LEVEL(name) name##_scalar
#include "probe.h"
