/* vector_maths: the functions of vector.h over arrays, so that a test can hold every level's
 * against the exact values (tests/test_vector.c). */
#include "kernels/cpu/vector.h"

void KERNEL_NAME(vector_maths)(int which, const float *x, float *y, int64_t n);

/* n is a multiple of LANES. which: 0 exp, 1 log, 2 sigmoid, 3
 * silu, 4 softplus, 5 through stored. */
void KERNEL_NAME(vector_maths)(int which, const float *x, float *y, int64_t n) {
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
