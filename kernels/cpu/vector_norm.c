/* vector_norm: y = w x rstd with rstd = 1/sqrt(mean(x^2) + eps), a token at a time, and its
 * adjoint: with q = w dy, dx = rstd (q - x rstd^2 mean(q x)), dw = sum over tokens of dy x rstd.
 *
 * The adjoint goes through blocks of tokens that stay in the second-level cache: dx by tokens, then
 * dw by columns, which are summed in float over a block and then over the blocks in order. */
#include "kernels/cpu/vector.h"

enum { TOKENS = 32, ROOM = 8 }; /* of a block; vectors side by side in its sums */

KERNEL(rms_norm) {
    const int64_t H = a->H;
    const float *w = a->w;
    float *rstd = a->rstd;
#pragma omp parallel for if (a->T * H > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const stored *x = (const stored *)a->x + t * H;
        stored *y = (stored *)a->y + t * H;
        vf sum[4] = {{0}};
        int64_t c = 0;
        for (; c + 4 * LANES <= H; c += 4 * LANES)
            for (int i = 0; i < 4; i++) {
                const vf v = load(x + c + i * LANES);
                sum[i] += v * v;
            }
        for (; c < H; c += LANES) {
            const vf v = load_left(x + c, H - c);
            sum[0] += v * v;
        }
        const float squares = vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
        const float r = (float)(1 / sqrt((double)squares / (double)H + a->eps));
        rstd[t] = r;
        for (c = 0; c + LANES <= H; c += LANES) store(y + c, load_real(w + c) * (load(x + c) * r));
        if (c < H) store_n(y + c, load_real_n(w + c, H - c) * (load_n(x + c, H - c) * r), H - c);
    }
}

static void token_gradient(const struct rms_norm_adjoint_args *a, int64_t t) {
    const int64_t H = a->H;
    const stored *x = (const stored *)a->x + t * H, *dy = (const stored *)a->dy + t * H;
    const float *w = a->w, r = ((const float *)a->rstd)[t];
    stored *dx = (stored *)a->dx + t * H;
    vf sum[4] = {{0}};
    int64_t c = 0;
    for (; c + 4 * LANES <= H; c += 4 * LANES)
        for (int i = 0; i < 4; i++) {
            const int64_t at = c + i * LANES;
            sum[i] += load_real(w + at) * load(dy + at) * load(x + at);
        }
    for (; c < H; c += LANES)
        sum[0] += load_real_left(w + c, H - c) * load_left(dy + c, H - c) * load_left(x + c, H - c);
    const float qx = vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    const float along = (float)((double)qx / (double)H * (double)r * (double)r);
    for (c = 0; c < H; c += LANES) {
        const int64_t n = H - c;
        const vf q = load_real_left(w + c, n) * load_left(dy + c, n);
        put_left(dx + c, r * (q - load_left(x + c, n) * along), n, a->dx_add);
    }
}

/* Adds tokens t0 to t1 to columns c0 .. of dw. */
static void column_sums(const struct rms_norm_adjoint_args *a, int64_t c0, int64_t t0, int64_t t1) {
    const int64_t H = a->H;
    const float *rstd = a->rstd;
    const stored *x = a->x, *dy = a->dy;
    float *dw = a->dw;
    vf sum[ROOM] = {{0}};
    if (c0 + ROOM * LANES <= H) {
        for (int64_t t = t0; t < t1; t++)
            for (int i = 0; i < ROOM; i++) {
                const int64_t at = t * H + c0 + i * LANES;
                sum[i] += load(dy + at) * (load(x + at) * rstd[t]);
            }
    } else {
        for (int64_t t = t0; t < t1; t++)
            for (int64_t i = 0, c = c0; c < H; i++, c += LANES)
                sum[i] +=
                    load_left(dy + t * H + c, H - c) * (load_left(x + t * H + c, H - c) * rstd[t]);
    }
    for (int64_t i = 0, c = c0; i < ROOM && c < H; i++, c += LANES)
        put_real_left(dw + c, sum[i], H - c, a->dw_add || t0 > 0);
}

KERNEL(rms_norm_adjoint) {
    const int64_t T = a->T, H = a->H;
#pragma omp parallel if (T * H > SMALL)
    for (int64_t t0 = 0; t0 < most(T, 1); t0 += TOKENS) {
        const int64_t t1 = least(T, t0 + TOKENS);
        if (a->dx) {
#pragma omp for schedule(static) nowait
            for (int64_t t = t0; t < t1; t++) token_gradient(a, t);
        }
        if (a->dw) {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < H; c += ROOM * LANES) column_sums(a, c, t0, t1);
        }
    }
}
