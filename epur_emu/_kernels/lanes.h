/* All kernels of one CPU level. */
#include "simd.h"

#include "lstm_api.h"

#include "dot_chain.h"
#include "dot_places.h"
#include "dot_general.h"
#include "dot_stochastic.h"
#include "dot_wide.h"
#include "mu_narrow.h"
#include "mu_wide.h"
#include "underflows.h"

/* The largest and the least finite magnitude but 0 (0, infinity: there is none) of 16 subs values; 0 if one is not finite. */
int LEVEL(extent)(const float *x, ptrdiff_t subs, ptrdiff_t pitch, float *top, float *least) {
    const vf infinity = vf_set(INFINITY), zero = vf_set(0.0f);
    vf highest = zero, largest = zero, smallest = infinity;
    for (ptrdiff_t s = 0; s < subs; s++)
        for (int j = 0; j < 16; j += VW) {
            const vf size = vf_abs(vf_load(x + s * pitch + j));
            highest = vf_topmost(highest, size);
            largest = vf_max(vf_pick(vf_lt(size, infinity), size, zero), largest);
            smallest = vf_min(vf_pick(vf_eq(size, zero), infinity, size), smallest);
        }
    float lane[3][VW];
    vf_store(lane[0], highest), vf_store(lane[1], largest), vf_store(lane[2], smallest);
    int finite = 1;
    *top = 0, *least = INFINITY;
    for (int j = 0; j < VW; j++) {
        finite &= lane[0][j] < INFINITY;
        *top = lane[1][j] > *top ? lane[1][j] : *top;
        *least = lane[2][j] < *least ? lane[2][j] : *least;
    }
    return finite;
}

/* `count` values v, a multiple of VW, to fp16 (nearest even); 0 if some are left to the exact path: infinite then, or not numbers. */
int LEVEL(to_half)(const float *v, float *to, ptrdiff_t count, int64_t *underflow) {
    const vf normal = vf_set(0x1p-14f), infinity = vf_set(INFINITY);
    vf largest = vf_set(0.0f);
    vc below = vc_zero();
    for (ptrdiff_t k = 0; k < count; k += VW) {
        uint16_t codes[VW];
        const vf a = vf_load(v + k), r = vf_round(a, codes);
        largest = vf_topmost(largest, vf_abs(r));
        below = vc_add(below, vm_and(vf_lt(vf_abs(a), normal), vf_ne(a, r)));
        vf_store(to + k, r);
    }
    float lane[VW];
    vf_store(lane, vf_sub(infinity, largest));
    for (int j = 0; j < VW; j++)
        if (!(lane[j] > 0)) return 0;
    *underflow += vc_sum(below);
    return 1;
}
