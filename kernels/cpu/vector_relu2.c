/* vector_relu2: y = relu(x)^2 and its adjoint, waiting for memory only. */
#include "kernels/cpu/vector.h"

/* A NaN stays one. */
static inline vf relu(vf x) {
    return vf_choose(x < 0.0f, vf_all(0), x);
}

KERNEL(relu2) {
    const stored *x = a->x;
    stored *y = a->y;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES) {
        const vf r = relu(load_left(x + i, a->n - i));
        store_left(y + i, r * r, a->n - i);
    }
}

KERNEL(relu2_adjoint) {
    const stored *x = a->x, *dy = a->dy;
    stored *dx = a->dx;
    if (!dx) return;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES) {
        const int64_t n = a->n - i;
        put_left(dx + i, 2 * relu(load_left(x + i, n)) * load_left(dy + i, n), n, a->dx_add);
    }
}
