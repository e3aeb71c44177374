/* All kernels of one CPU level. */
#include "simd.h"

#include "lstm_api.h"

#include "dot_chain.h"
#include "dot_general.h"
#include "mu_narrow.h"
#include "mu_general.h"
#include "underflows.h"
