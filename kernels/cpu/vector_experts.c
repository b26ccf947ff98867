/* vector_experts: tokens to the slots of their experts and back, and rows of the word table by
 * number (experts.c and embedding.c have the definitions). The K results of a token are added in
 * the order of k, and gradients of a word in the order of the tokens. */
#include <omp.h>

#include "kernels/cpu/vector.h"

KERNEL(gather_rows) {
    const stored *x = a->x;
    stored *y = a->y;
#pragma omp parallel for if (a->T * a->K * a->W > SMALL)
    for (int64_t j = 0; j < a->T * a->K; j++)
        memcpy(y + j * a->W, x + a->order[j] / a->K * a->W, (size_t)a->W * sizeof *y);
}

/* o = or += sum over k of weight[k] y[position[k]]; weight NULL: ones. */
static inline void add_choices(stored *o, int add, const float *weight, const stored *y,
                               const int32_t *position, int64_t K, int64_t W) {
    enum { ROOM = 4 };
    int64_t c = 0;
    for (; c + ROOM * LANES <= W; c += ROOM * LANES) {
        vf sum[ROOM] = {{0}};
        for (int64_t k = 0; k < K; k++) {
            const float s = weight ? weight[k] : 1;
            if (position[k] < 0) continue;
            for (int i = 0; i < ROOM; i++) sum[i] += s * load(y + position[k] * W + c + i * LANES);
        }
        for (int i = 0; i < ROOM; i++) put(o + c + i * LANES, sum[i], add);
    }
    for (; c < W; c += LANES) {
        vf sum = vf_all(0);
        for (int64_t k = 0; k < K; k++)
            if (position[k] >= 0)
                sum += (weight ? weight[k] : 1) * load_left(y + position[k] * W + c, W - c);
        put_left(o + c, sum, W - c, add);
    }
}

KERNEL(gather_rows_adjoint) {
    const int64_t W = a->W, K = a->K;
    if (!a->dx) return;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        add_choices((stored *)a->dx + t * W, a->dx_add, NULL, a->dy, a->position + t * K, K, W);
}

KERNEL(combine_rows) {
    const int64_t W = a->W, K = a->K;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        add_choices((stored *)a->o + t * W, 0, (const float *)a->weight + t * K, a->y,
                    a->position + t * K, K, W);
}

KERNEL(combine_rows_adjoint) {
    const int64_t W = a->W, K = a->K;
    const float *weight = a->weight;
    float *dweight = a->dweight;
#pragma omp parallel for if (a->T * K * W > SMALL)
    for (int64_t i = 0; i < a->T * K; i++) {
        const int64_t slot = a->position[i];
        if (slot < 0) {
            if (dweight) dweight[i] = a->dweight_add ? dweight[i] : 0;
            continue;
        }
        const stored *go = (const stored *)a->go + i / K * W, *y = (const stored *)a->y + slot * W;
        stored *dy = a->dy ? (stored *)a->dy + slot * W : NULL;
        vf sum = vf_all(0);
        for (int64_t c = 0; c < W; c += LANES) {
            const vf g = load_left(go + c, W - c);
            sum += g * load_left(y + c, W - c);
            if (dy) put_left(dy + c, weight[i] * g, W - c, a->dy_add);
        }
        if (dweight) dweight[i] = (a->dweight_add ? dweight[i] : 0) + vf_sum(sum);
    }
}

KERNEL(embedding) {
    const stored *w = a->w;
    stored *y = a->y;
#pragma omp parallel for if (a->T * a->H > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const int64_t v = a->id[t] - a->first;
        const size_t row_bytes = (size_t)a->H * sizeof *y;
        if (v >= 0 && v < a->V) memcpy(y + t * a->H, w + v * a->H, row_bytes);
        else memset(y + t * a->H, 0, row_bytes);
    }
}

/* Threads share out the columns, not the tokens: a word may come up many times. Where it is added
 * to, only the rows of words that came up are touched. */
KERNEL(embedding_adjoint) {
    enum { COLUMNS = 8 * LANES };
    const stored *dy = a->dy;
    const int64_t H = a->H;
    float *dw = a->dw;
    if (!dw) return;
    if (!a->dw_add) {
        /* one call a thread: memset passes the caches by only where it has much to clear */
#pragma omp parallel if (a->V * H > SMALL)
        {
            const int64_t i = omp_get_thread_num(), n = omp_get_num_threads();
            const int64_t from = a->V * i / n, to = a->V * (i + 1) / n;
            memset(dw + from * H, 0, (size_t)((to - from) * H) * sizeof *dw);
        }
    }
#pragma omp parallel for if (a->T * H > SMALL)
    for (int64_t c0 = 0; c0 < H; c0 += COLUMNS)
        for (int64_t t = 0; t < a->T; t++) {
            const int64_t v = a->id[t] - a->first;
            if (v < 0 || v >= a->V) continue;
            for (int64_t c = c0; c < least(c0 + COLUMNS, H); c += LANES)
                put_real_left(dw + v * H + c, load_left(dy + t * H + c, H - c), H - c, true);
        }
}
