/* vector_elementwise: sums, scalings and copies, which wait for memory only. An output may be the
 * same array as an input. */
#include <omp.h>

#include "kernels/cpu/vector.h"

KERNEL(add) {
    const stored *x = a->a, *z = a->b;
    stored *y = a->y;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES)
        store_left(y + i, load_left(x + i, a->n - i) + load_left(z + i, a->n - i), a->n - i);
}

KERNEL(add_scaled) {
    const stored *x = a->x;
    stored *y = a->y;
    const float s = (float)a->s;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES)
        store_left(y + i, load_left(y + i, a->n - i) + s * load_left(x + i, a->n - i), a->n - i);
}

KERNEL(scale) {
    const stored *x = a->x;
    stored *y = a->y;
    const float s = (float)a->s;
    if (!y) return;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES)
        put_left(y + i, s * load_left(x + i, a->n - i), a->n - i, a->y_add);
}

KERNEL(widen) {
    const stored *x = a->x;
    float *y = a->y;
    if (!y) return;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES)
        put_real_left(y + i, load_left(x + i, a->n - i), a->n - i, a->y_add);
}

KERNEL(narrow) {
    const float *x = a->x;
    stored *y = a->y;
    if (!y) return;
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES)
        put_left(y + i, load_real_left(x + i, a->n - i), a->n - i, a->y_add);
}

KERNEL(fill) {
    stored *x = a->x;
    const vf value = vf_all((float)a->value);
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t c = 0; c < a->W; c += LANES) store_left(x + t * a->ld + c, value, a->W - c);
}

/* Rows without gaps between them are one row. Few rows are cut, so that all threads have a part. */
KERNEL(copy) {
    const bool gaps = a->T > 1 && (a->ldx != a->W || a->ldy != a->W);
    const int64_t T = gaps ? a->T : 1, W = gaps ? a->W : a->T * a->W;
    const int64_t parts = (omp_get_max_threads() + T - 1) / T;
    if (!a->y || a->T < 1 || W < 1) return;
#pragma omp parallel for collapse(2) if (T * W > SMALL)
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < parts; i++) {
            const int64_t from = W * i / parts, n = W * (i + 1) / parts - from;
            const stored *x = (const stored *)a->x + t * a->ldx + from;
            stored *y = (stored *)a->y + t * a->ldy + from;
            if (!a->y_add) memcpy(y, x, (size_t)n * sizeof *y);
            else
                for (int64_t c = 0; c < n; c += LANES)
                    put_left(y + c, load_left(x + c, n - c), n - c, true);
        }
}

KERNEL(add_bias) {
    const float *b = a->b;
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const stored *x = (const stored *)a->x + t * a->W;
        stored *y = (stored *)a->y + t * a->W;
        for (int64_t c = 0; c < a->W; c += LANES) {
            const int64_t n = a->W - c;
            store_left(y + c, load_left(x + c, n) + load_real_left(b + c, n), n);
        }
    }
}

/* Tokens are added TOKENS at a time, so that float will do; threads share out the columns. */
KERNEL(add_bias_adjoint) {
    enum { ROOM = 8, TOKENS = 64 }; /* vectors side by side */
    const stored *dy = a->dy;
    float *db = a->db;
    if (!db) return;
#pragma omp parallel for if (a->T * a->W > SMALL)
    for (int64_t c0 = 0; c0 < a->W; c0 += ROOM * LANES) {
        vf sum[ROOM] = {{0}};
        for (int64_t t0 = 0; t0 < a->T; t0 += TOKENS) {
            vf part[ROOM] = {{0}};
            for (int64_t t = t0; t < least(t0 + TOKENS, a->T); t++)
                for (int i = 0; i < ROOM; i++) {
                    const int64_t c = c0 + i * LANES;
                    if (c < a->W) part[i] += load_left(dy + t * a->W + c, a->W - c);
                }
            for (int i = 0; i < ROOM; i++) sum[i] += part[i];
        }
        for (int i = 0; i < ROOM; i++) {
            const int64_t c = c0 + i * LANES;
            if (c < a->W) put_real_left(db + c, sum[i], a->W - c, a->db_add);
        }
    }
}
