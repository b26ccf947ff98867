/* vector_relu2: y = relu(x)^2 and its adjoint, waiting for memory only. */
#include "kernels/cpu/vector.h"

KERNEL(relu2) {
    const stored *x = a->x;
    stored *y = a->y;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES) {
        const int64_t n = least(LANES, a->n - i);
        const vf v = n == LANES ? load(x + i) : load_n(x + i, n);
        const vf r = vf_choose(v < 0.0f, vf_all(0), v); /* a NaN stays one */
        if (n == LANES) store(y + i, r * r);
        else store_n(y + i, r * r, n);
    }
}

KERNEL(relu2_adjoint) {
    const stored *x = a->x, *dy = a->dy;
    stored *dx = a->dx;
    if (!dx) return;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES) {
        const int64_t n = least(LANES, a->n - i);
        const vf v = n == LANES ? load(x + i) : load_n(x + i, n);
        const vf g = n == LANES ? load(dy + i) : load_n(dy + i, n);
        const vf r = 2 * vf_choose(v < 0.0f, vf_all(0), v) * g;
        if (n == LANES) put(dx + i, r, a->dx_add);
        else put_n(dx + i, r, n, a->dx_add);
    }
}
