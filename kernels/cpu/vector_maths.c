/* vector_maths: the functions of vector.h over arrays, so that a test can hold every level's
 * against the exact values (tests/test_vector.c). */
#include "kernels/cpu/vector_transpose.h"

void KERNEL_NAME(vector_maths)(int which, const float *x, float *y, int64_t n);

/* Of each vector of x the sum, one by one or of LANES vectors at once. */
static void sums(bool at_once, const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES * LANES) {
        vf v[LANES];
        for (int k = 0; k < LANES; k++) v[k] = load_real(x + i + k * LANES);
        if (at_once) store_real(y + i / LANES, lane_sums(v));
        else
            for (int k = 0; k < LANES; k++) y[i / LANES + k] = vf_sum(v[k]);
    }
}

/* n is a multiple of LANES. which: 0 exp, 1 log, 2 sigmoid, 3 silu, 4 softplus, 5 through stored;
 * sums of vectors, so many at the beginning of y: 6 one by one, 7 at once (n a multiple of
 * LANES^2). */
void KERNEL_NAME(vector_maths)(int which, const float *x, float *y, int64_t n) {
    if (which > 5) {
        sums(which == 7, x, y, n);
        return;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const vf v = load_real(x + i);
        stored kept[LANES];
        store(kept, v);
        store_real(y + i, which == 0   ? vf_exp(v)
                          : which == 1 ? vf_log(v)
                          : which == 2 ? vf_sigmoid(v)
                          : which == 3 ? vf_silu(v)
                          : which == 4 ? vf_softplus(v)
                                       : load(kept));
    }
}
