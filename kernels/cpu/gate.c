/* gate: Mamba's gated norm, at once, and in two halves, between which ranks that share a group
 * exchange their sums of squares.
 *   g = y silu(z);  s = sum of g^2 over a group's channels here;
 *   o = w g r,  r = 1/sqrt(s/width + eps).
 */
#include "kernels/cpu/maths.h"

KERNEL(gate_squares) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    real *s = a->s;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
        for (int64_t i = 0; i < G; i++) {
            double sum = 0;
            for (int64_t c = i * group; c < (i + 1) * group; c++) {
                const double g = (double)(y[c] * silu(z[c]));
                sum += g * g;
            }
            s[t * G + i] = (real)sum;
        }
    }
}

/* dg = 2 g ds */
KERNEL(gate_squares_adjoint) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *ds = a->ds;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
        real *dy = a->dy ? (real *)a->dy + t * W : NULL;
        real *dz = a->dz ? (real *)a->dz + t * a->ldz : NULL;
        for (int64_t i = 0; i < G; i++) {
            for (int64_t c = i * group; c < (i + 1) * group; c++) {
                const real gate = silu(z[c]), dg = 2 * (y[c] * gate) * ds[t * G + i];
                if (dy) put(&dy[c], dg * gate, a->dy_add);
                if (dz) put(&dz[c], dg * y[c] * silu_slope(z[c]), a->dz_add);
            }
        }
    }
}

static real group_rstd(real s, int64_t width, double eps) {
    return (real)(1 / sqrt((double)s / (double)width + eps));
}

KERNEL(gate_norm) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *s = a->s, *w = a->w;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
        real *o = (real *)a->o + t * W;
        for (int64_t i = 0; i < G; i++) {
            const real r = group_rstd(s[t * G + i], a->width, a->eps);
            for (int64_t c = i * group; c < (i + 1) * group; c++)
                o[c] = w[c] * (y[c] * silu(z[c]) * r);
        }
    }
}

/* dg = w r go;  dr = sum over the group of go w g;  ds = dr dr/ds = -dr r^3 / (2 width);  dw = sum
 * of go g r. */
static void gate_norm_inputs(const struct gate_norm_adjoint_args *a, int64_t t) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
    const real *go = (const real *)a->go + t * W, *w = a->w;
    real *dy = a->dy ? (real *)a->dy + t * W : NULL;
    real *dz = a->dz ? (real *)a->dz + t * a->ldz : NULL;
    for (int64_t i = 0; i < G; i++) {
        const real r = group_rstd(((const real *)a->s)[t * G + i], a->width, a->eps);
        double dr = 0;
        for (int64_t c = i * group; c < (i + 1) * group; c++) {
            const real gate = silu(z[c]), dg = go[c] * w[c] * r;
            dr += (double)(go[c] * w[c]) * (double)(y[c] * gate);
            if (dy) put(&dy[c], dg * gate, a->dy_add);
            if (dz) put(&dz[c], dg * y[c] * silu_slope(z[c]), a->dz_add);
        }
        const double ds = -dr * (double)r * (double)r * (double)r / (2 * (double)a->width);
        if (a->ds) put_sum((real *)a->ds + t * G + i, ds, a->ds_add);
    }
}

KERNEL(gate_norm_adjoint) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *y = a->y, *z = a->z, *s = a->s, *go = a->go;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) gate_norm_inputs(a, t);
    if (!a->dw) return;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t c0 = 0; c0 < W; c0 += COLUMNS) {
        const int64_t c1 = least(c0 + COLUMNS, W);
        double sum[COLUMNS] = {0};
        for (int64_t t = 0; t < a->T; t++) {
            for (int64_t c = c0; c < c1;) {
                const int64_t i = c / group, end = least(c1, (i + 1) * group);
                const real r = group_rstd(s[t * G + i], a->width, a->eps);
                for (; c < end; c++)
                    sum[c - c0] +=
                        (double)(go[t * W + c] * (y[t * W + c] * silu(z[t * a->ldz + c]) * r));
            }
        }
        for (int64_t c = c0; c < c1; c++) put_sum((real *)a->dw + c, sum[c - c0], a->dw_add);
    }
}

/* ---- at once ---- */

KERNEL(gated_norm) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *w = a->w;
    real *s = a->s;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
        real *o = (real *)a->o + t * W;
        for (int64_t i = 0; i < G; i++) {
            double sum = 0;
            for (int64_t c = i * group; c < (i + 1) * group; c++) {
                const double g = (double)(y[c] * silu(z[c]));
                sum += g * g;
            }
            s[t * G + i] = (real)sum;
            const real r = group_rstd((real)sum, group, a->eps);
            for (int64_t c = i * group; c < (i + 1) * group; c++)
                o[c] = w[c] * (y[c] * silu(z[c]) * r);
        }
    }
}

/* With q = go w: dg = r q - g r^3 mean(q g) */
static void gated_norm_inputs(const struct gated_norm_adjoint_args *a, int64_t t) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *y = (const real *)a->y + t * W, *z = (const real *)a->z + t * a->ldz;
    const real *go = (const real *)a->go + t * W, *w = a->w;
    real *dy = a->dy ? (real *)a->dy + t * W : NULL;
    real *dz = a->dz ? (real *)a->dz + t * a->ldz : NULL;
    for (int64_t i = 0; i < G; i++) {
        const real r = group_rstd(((const real *)a->s)[t * G + i], group, a->eps);
        double sum = 0;
        for (int64_t c = i * group; c < (i + 1) * group; c++)
            sum += (double)(go[c] * w[c]) * (double)(y[c] * silu(z[c]));
        const real along = (real)(sum / (double)group * (double)r * (double)r);
        for (int64_t c = i * group; c < (i + 1) * group; c++) {
            const real gate = silu(z[c]), dg = r * (go[c] * w[c] - y[c] * gate * along);
            if (dy) put(&dy[c], dg * gate, a->dy_add);
            if (dz) put(&dz[c], dg * y[c] * silu_slope(z[c]), a->dz_add);
        }
    }
}

KERNEL(gated_norm_adjoint) {
    const int64_t W = a->W, G = a->G, group = G > 0 ? W / G : 0;
    const real *y = a->y, *z = a->z, *s = a->s, *go = a->go;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t t = 0; t < a->T; t++) gated_norm_inputs(a, t);
    if (!a->dw) return;
#pragma omp parallel for if (a->T * W > SMALL)
    for (int64_t c = 0; c < W; c++) {
        double sum = 0;
        for (int64_t t = 0; t < a->T; t++) {
            const real r = group_rstd(s[t * G + c / group], group, a->eps);
            sum += (double)(go[t * W + c] * (y[t * W + c] * silu(z[t * a->ldz + c]) * r));
        }
        put_sum((real *)a->dw + c, sum, a->dw_add);
    }
}
