/* elementwise: operations whose every result comes from the operands at the same place. An output
 * may be the same array as an input. */
#include "kernels/cpu/maths.h"

KERNEL(add) {
    const real *x = a->a, *z = a->b;
    real *y = a->y;
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) y[i] = x[i] + z[i];
}

KERNEL(add_scaled) {
    const real *x = a->x, s = (real)a->s;
    real *y = a->y;
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) y[i] += s * x[i];
}

KERNEL(scale) {
    const real *x = a->x, s = (real)a->s;
    real *y = a->y;
    if (!y) return;
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) put(&y[i], s * x[i], a->y_add);
}

/* Here both formats are the same. */
KERNEL(widen) {
    const real *x = a->x;
    real *y = a->y;
    for (int64_t i = 0; y && i < a->n; i++) put(&y[i], x[i], a->y_add);
}

KERNEL(narrow) {
    const real *x = a->x;
    real *y = a->y;
    for (int64_t i = 0; y && i < a->n; i++) put(&y[i], x[i], a->y_add);
}

KERNEL(fill) {
    real *x = a->x, value = (real)a->value;
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t c = 0; c < a->W; c++) x[t * a->ld + c] = value;
}

KERNEL(copy) {
    if (!a->y) return;
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *x = (const real *)a->x + t * a->ldx;
        real *y = (real *)a->y + t * a->ldy;
#pragma omp simd
        for (int64_t c = 0; c < a->W; c++) put(&y[c], x[c], a->y_add);
    }
}

KERNEL(add_bias) {
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *x = (const real *)a->x + t * a->W, *b = a->b;
        real *y = (real *)a->y + t * a->W;
#pragma omp simd
        for (int64_t c = 0; c < a->W; c++) y[c] = x[c] + b[c];
    }
}

KERNEL(add_bias_adjoint) {
    const real *dy = a->dy;
    real *db = a->db;
    if (!db) return;
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t c0 = 0; c0 < a->W; c0 += COLUMNS) {
        const int64_t n = least(COLUMNS, a->W - c0);
        double sum[COLUMNS] = {0};
        for (int64_t t = 0; t < a->T; t++)
            for (int64_t c = 0; c < n; c++) sum[c] += (double)dy[t * a->W + c0 + c];
        for (int64_t c = 0; c < n; c++) put_sum(&db[c0 + c], sum[c], a->db_add);
    }
}

KERNEL(relu2) {
    const real *x = a->x;
    real *y = a->y;
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) {
        const real r = x[i] < 0 ? 0 : x[i]; /* a NaN stays one */
        y[i] = r * r;
    }
}

KERNEL(relu2_adjoint) {
    const real *x = a->x, *dy = a->dy;
    real *dx = a->dx;
    if (!dx) return;
#pragma omp parallel for simd if (parallel : a->n > SMALL)
    for (int64_t i = 0; i < a->n; i++) {
        const real r = x[i] < 0 ? 0 : x[i];
        put(&dx[i], 2 * r * dy[i], a->dx_add);
    }
}
