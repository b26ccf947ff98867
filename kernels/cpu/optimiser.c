/* optimiser: the update of the weights, and the exact sums that its norm is made of. */
#include "kernels/cpu/maths.h"
#include "kernels/exact.h"

/* In double between what is loaded and what is stored: the update waits for memory anyway. */
KERNEL(adamw) {
    real *w = a->w, *m = a->m, *v = a->v, *gradient = a->g, *low = a->low;
    const double keep = 1 - a->rate * a->decay, step = a->rate / a->c1, unbias = 1 / sqrt(a->c2);
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) {
        const double g = a->clip * (double)gradient[i];
        const double mean = a->beta1 * (double)m[i] + (1 - a->beta1) * g;
        const double square = a->beta2 * (double)v[i] + (1 - a->beta2) * (g * g);
        m[i] = (real)mean;
        v[i] = (real)square;
        w[i] = (real)(keep * (double)w[i] - step * mean / (sqrt(square) * unbias + a->eps));
        if (low) low[i] = w[i];
        if (a->clear) gradient[i] = 0;
    }
}

KERNEL(exact_sum) {
    if (a->squares) KERNEL_NAME(exact_add_squares)(a->sum, a->x, a->n);
    else KERNEL_NAME(exact_add_array)(a->sum, a->x, a->n);
}
