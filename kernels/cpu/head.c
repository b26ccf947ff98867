/* head: the products with the word table and the loss over them, C tokens at a time, so that tokens
 * x words is never held. Where the words are split over ranks, each gives its own log-sum and the
 * target's logit if it has it; word_loss combines them. */
#include "kernels/cpu/head_word.h"
#include "kernels/cpu/maths.h"

void KERNEL_NAME(matmul)(const void *args);

/* logits[n,V] = x[n,H] w[V,H]^T for the n tokens from t0 on. */
static void chunk_logits(real *logits, const real *x, const real *w, int64_t t0, int64_t n,
                         int64_t V, int64_t H) {
    KERNEL_NAME(matmul)
    (&(struct matmul_args){.a = x + t0 * H,
                           .b = w,
                           .c = logits,
                           .M = n,
                           .N = V,
                           .K = H,
                           .lda = H,
                           .ldb = H,
                           .ldc = V,
                           .tb = 1});
}

KERNEL(head) {
    const int64_t V = a->V;
    const real *scratch = a->scratch;
    if (a->T > 0 && a->C < 1) bug("chunks of %lld tokens", (long long)a->C);
    for (int64_t t0 = 0; t0 < a->T; t0 += a->C) {
        const int64_t n = least(a->C, a->T - t0);
        chunk_logits(a->scratch, a->x, a->w, t0, n, V, a->H);
#pragma omp parallel for if (n * V > SMALL / 8)
        for (int64_t i = 0; i < n; i++) {
            const real *logits = scratch + i * V;
            const int64_t v = word_here(a->target[t0 + i], a->first, V);
            real largest = -(real)INFINITY;
            double sum = 0;
            for (int64_t j = 0; j < V; j++) largest = logits[j] > largest ? logits[j] : largest;
            for (int64_t j = 0; j < V; j++) sum += (double)exp(logits[j] - largest);
            ((real *)a->lse)[t0 + i] = (real)((double)largest + log(sum));
            ((real *)a->picked)[t0 + i] = v >= 0 ? logits[v] : 0;
        }
    }
}

/* dlogits = exp(logits - lse) dlse, and dpicked added at the target. Without tokens dw is zero, by
 * a chunk of none. */
KERNEL(head_adjoint) {
    const int64_t V = a->V, H = a->H;
    const real *lse = a->lse, *dlse = a->dlse, *dpicked = a->dpicked, *x = a->x;
    real *scratch = a->scratch;
    if (a->T > 0 && a->C < 1) bug("chunks of %lld tokens", (long long)a->C);
    for (int64_t t0 = 0; t0 == 0 || t0 < a->T; t0 += most(1, a->C)) {
        const int64_t n = least(a->C, a->T - t0);
        chunk_logits(scratch, x, a->w, t0, n, V, H);
#pragma omp parallel for if (n * V > SMALL / 8)
        for (int64_t i = 0; i < n; i++) {
            real *dlogits = scratch + i * V;
            const int64_t t = t0 + i, v = word_here(a->target[t], a->first, V);
            for (int64_t j = 0; j < V; j++) dlogits[j] = exp(dlogits[j] - lse[t]) * dlse[t];
            if (v >= 0) dlogits[v] += dpicked[t];
        }
        struct matmul_args product = {.a = scratch, .lda = V, .ldb = H, .ldc = H, .N = H};
        if (a->dx) {
            product.b = a->w;
            product.c = (real *)a->dx + t0 * H;
            product.c_add = a->dx_add;
            product.M = n;
            product.K = V;
            KERNEL_NAME(matmul)(&product);
        }
        if (a->dw) {
            product.b = x + t0 * H;
            product.c = a->dw;
            product.c_add = a->dw_add || t0 > 0;
            product.M = V;
            product.K = n;
            product.ta = 1;
            KERNEL_NAME(matmul)(&product);
        }
    }
}
