/* embedding: rows of the word table by number. Where the table is split over ranks, each holds V
 * rows from number `first` on and gives zeros for the rest, so that the ranks' results add up to
 * the whole. */
#include "kernels/cpu/maths.h"

KERNEL(embedding) {
    const real *w = a->w;
    real *y = a->y;
#pragma omp parallel for if (a->T * a->H > SMALL)
    for (int64_t t = 0; t < a->T; t++) {
        const int64_t v = a->id[t] - a->first;
        const size_t row_bytes = (size_t)a->H * sizeof(real);
        if (v >= 0 && v < a->V) memcpy(y + t * a->H, w + v * a->H, row_bytes);
        else memset(y + t * a->H, 0, row_bytes);
    }
}

/* Threads share out the columns, not the tokens: a word may come up many times. */
KERNEL(embedding_adjoint) {
    const real *dy = a->dy;
    real *dw = a->dw;
    if (!dw) return;
    if (!a->dw_add) {
#pragma omp parallel for if (a->V * a->H > SMALL)
        for (int64_t i = 0; i < a->V * a->H; i++) dw[i] = 0;
    }
#pragma omp parallel for if (a->T * a->H > SMALL)
    for (int64_t c0 = 0; c0 < a->H; c0 += COLUMNS) {
        const int64_t c1 = least(c0 + COLUMNS, a->H);
        for (int64_t t = 0; t < a->T; t++) {
            const int64_t v = a->id[t] - a->first;
            if (v < 0 || v >= a->V) continue;
#pragma omp simd
            for (int64_t c = c0; c < c1; c++) dw[v * a->H + c] += dy[t * a->H + c];
        }
    }
}
