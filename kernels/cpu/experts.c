/* experts: tokens to the slots of their experts and back. order[j] is the pair t*K+k in slot j,
 * position its inverse; the K results of a token are always added in the order of k. */
#include "kernels/cpu/maths.h"

KERNEL(gather_rows) {
    const real *x = a->x;
    real *y = a->y;
#pragma omp parallel for if (a->T * a->K * a->W > SMALL)
    for (int64_t j = 0; j < a->T * a->K; j++)
        memcpy(y + j * a->W, x + a->order[j] / a->K * a->W, (size_t)a->W * sizeof(real));
}

/* o[c0..c0+n) = or += sum over k of weight[k] y[position[k]]; weight NULL: ones. */
static void add_choices(real *o, int add, const real *weight, const real *y,
                        const int32_t *position, int64_t K, int64_t W, int64_t c0, int64_t n) {
    double sum[COLUMNS] = {0};
    for (int64_t k = 0; k < K; k++) {
        if (position[k] < 0) continue;
        const real *row = y + position[k] * W + c0;
        const double s = weight ? (double)weight[k] : 1;
        for (int64_t c = 0; c < n; c++) sum[c] += s * (double)row[c];
    }
    for (int64_t c = 0; c < n; c++) put_sum(&o[c0 + c], sum[c], add);
}

KERNEL(gather_rows_adjoint) {
    const int64_t W = a->W, K = a->K;
    if (!a->dx) return;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t c0 = 0; c0 < W; c0 += COLUMNS)
            add_choices((real *)a->dx + t * W, a->dx_add, NULL, a->dy, a->position + t * K, K, W,
                        c0, least(COLUMNS, W - c0));
}

KERNEL(combine_rows) {
    const int64_t W = a->W, K = a->K;
    const real *weight = a->weight;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t c0 = 0; c0 < W; c0 += COLUMNS)
            add_choices((real *)a->o + t * W, 0, weight + t * K, a->y, a->position + t * K, K, W,
                        c0, least(COLUMNS, W - c0));
}

KERNEL(combine_rows_adjoint) {
    const int64_t W = a->W, K = a->K;
    const real *weight = a->weight;
    real *dweight = a->dweight;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t i = 0; i < a->T * K; i++) {
        const int64_t slot = a->position[i];
        if (slot < 0) {
            if (dweight) put_sum(&dweight[i], 0, a->dweight_add);
            continue;
        }
        const real *go = (const real *)a->go + i / K * W, *y = (const real *)a->y + slot * W;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < W; c++) sum += (double)go[c] * (double)y[c];
        if (dweight) put_sum(&dweight[i], sum, a->dweight_add);
        if (!a->dy) continue;
        real *dy = (real *)a->dy + slot * W;
        for (int64_t c = 0; c < W; c++) put(&dy[c], weight[i] * go[c], a->dy_add);
    }
}
