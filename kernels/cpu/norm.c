/* norm: y = w x rstd with rstd = 1/sqrt(mean(x^2) + eps), a token at a time. */
#include "kernels/cpu/maths.h"

KERNEL(rms_norm) {
    const int64_t H = a->H;
    const real *w = a->w;
    real *rstd = a->rstd;
#pragma omp parallel for if (a->T * H > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *x = (const real *)a->x + t * H;
        real *y = (real *)a->y + t * H;
        double squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < H; c++) squares += (double)x[c] * (double)x[c];
        const real r = (real)(1 / sqrt(squares / (double)H + a->eps));
        rstd[t] = r;
#pragma omp simd
        for (int64_t c = 0; c < H; c++) y[c] = w[c] * (x[c] * r);
    }
}

/* With q = w dy: dx = rstd (q - x rstd^2 mean(q x)), dw = sum over tokens of dy x rstd. */
KERNEL(rms_norm_adjoint) {
    const int64_t H = a->H;
    const real *w = a->w, *rstd = a->rstd;
    if (a->dx) {
#pragma omp parallel for if (a->T * H > SMALL)
        for (int64_t t = 0; t < a->T; t++) {
            const real *x = (const real *)a->x + t * H, *dy = (const real *)a->dy + t * H;
            real *dx = (real *)a->dx + t * H;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < H; c++) sum += (double)(w[c] * dy[c]) * (double)x[c];
            const real r = rstd[t], along = (real)(sum / (double)H * (double)r * (double)r);
#pragma omp simd
            for (int64_t c = 0; c < H; c++)
                put(&dx[c], r * (w[c] * dy[c] - x[c] * along), a->dx_add);
        }
    }
    if (!a->dw) return;
#pragma omp parallel for if (a->T * H > SMALL)
    for (int64_t c0 = 0; c0 < H; c0 += COLUMNS) {
        const int64_t n = least(COLUMNS, H - c0);
        double sum[COLUMNS] = {0};
        for (int64_t t = 0; t < a->T; t++) {
            const real *x = (const real *)a->x + t * H + c0, *dy = (const real *)a->dy + t * H + c0;
            for (int64_t c = 0; c < n; c++) sum[c] += (double)(dy[c] * (x[c] * rstd[t]));
        }
        for (int64_t c = 0; c < n; c++) put_sum((real *)a->dw + c0 + c, sum[c], a->dw_add);
    }
}
