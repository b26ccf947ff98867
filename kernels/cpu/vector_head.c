/* vector_head: the products with the word table and the loss over them, C tokens at a time (head.c
 * has the formulas). The logits of a chunk are real numbers in scratch. One pass over them gives
 * the largest and the sum of exponentials, one more their gradients; beside BF16 those are rounded
 * in place, each row to the front of its own memory, so that both products of the adjoint read
 * BF16. The products are the best ones of this level (kernels/cpu/fast.def). */
#include <float.h>

#include "kernels/cpu/head_word.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/vector.h"

#if !defined __x86_64__
enum { LEVEL = CPU_NATIVE };
#elif defined __AVX512BF16__
enum { LEVEL = CPU_V4_BF16 };
#elif defined __AVX512F__
enum { LEVEL = CPU_V4 };
#else
enum { LEVEL = CPU_V3 };
#endif
#if defined STORED_BF16
static const enum dtype STORED = BF16;
#else
static const enum dtype STORED = F32;
#endif

static void run(enum op op, const void *args) {
    kernel_fn f = cpu_fast_kernel(LEVEL, STORED, op);
    if (!f) bug("head without a fast product");
    f(args);
}

/* logits[n,V] = x[n,H] w[V,H]^T for the n tokens from t0 on. */
static void chunk_logits(float *logits, const stored *x, const stored *w, int64_t t0, int64_t n,
                         int64_t V, int64_t H) {
    run(OP_matmul_weight, &(struct matmul_weight_args){.a = x + t0 * H,
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

/* log of the sum of exponentials. Each lane keeps the largest it has met and the sum below it, and
 * looks at RUN vectors before it moves: e^(old - new) is rare then. */
static float log_sum(const float *x, int64_t n) {
    enum { RUN = 8 };
    vf largest = vf_all(-FLT_MAX), sum = vf_all(0); /* finite: no difference of infinities */
    int64_t i = 0;
    for (; i + RUN * LANES <= n; i += RUN * LANES) {
        vf v[RUN], top = largest, part[2] = {{0}};
        for (int k = 0; k < RUN; k++) v[k] = load_real(x + i + k * LANES);
        for (int k = 0; k < RUN; k++) top = vf_max(top, v[k]);
        for (int k = 0; k < RUN; k++) part[k % 2] += vf_exp(v[k] - top);
        sum = sum * vf_exp(largest - top) + (part[0] + part[1]);
        largest = top;
    }
    float most_of_all = vf_largest(largest);
    for (int64_t k = i; k < n; k++) most_of_all = x[k] > most_of_all ? x[k] : most_of_all;
    vf rest = vf_all(0);
    if (i > 0) rest = sum * vf_exp(largest - most_of_all);
    for (; i < n; i += LANES) {
        const vf e = vf_exp(load_real_left(x + i, n - i) - most_of_all);
        float lane[LANES];
        store_real(lane, e);
        rest += n - i >= LANES ? e : load_real_n(lane, n - i);
    }
    return most_of_all + logf(vf_sum(rest));
}

KERNEL(head) {
    const int64_t V = a->V;
    const float *scratch = a->scratch;
    if (a->T > 0 && a->C < 1) bug("chunks of %lld tokens", (long long)a->C);
    for (int64_t t0 = 0; t0 < a->T; t0 += a->C) {
        const int64_t n = least(a->C, a->T - t0);
        chunk_logits(a->scratch, a->x, a->w, t0, n, V, a->H);
#pragma omp parallel for if (n * V > SMALL)
        for (int64_t i = 0; i < n; i++) {
            const int64_t v = word_here(a->target[t0 + i], a->first, V);
            ((float *)a->lse)[t0 + i] = log_sum(scratch + i * V, V);
            ((float *)a->picked)[t0 + i] = v >= 0 ? scratch[i * V + v] : 0;
        }
    }
}

/* exp(logits - lse) dlse, and dpicked added at word v, stored at the front of the row. */
static void row_gradient(float *row, int64_t V, int64_t v, float lse, float dlse, float dpicked) {
    stored *to = (stored *)(void *)row;
    const float at = v >= 0 ? expf(row[v] - lse) * dlse + dpicked : 0;
    for (int64_t j = 0; j < V; j += LANES)
        store_left(to + j, vf_exp(load_real_left(row + j, V - j) - lse) * dlse, V - j);
    if (v >= 0) set(to + v, at);
}

/* Without tokens dw is zero, by a chunk of none. */
KERNEL(head_adjoint) {
    const int64_t V = a->V, H = a->H, wide = (int64_t)(sizeof(float) / sizeof(stored)) * V;
    const float *lse = a->lse, *dlse = a->dlse, *dpicked = a->dpicked;
    const stored *x = a->x;
    float *scratch = a->scratch;
    if (a->T > 0 && a->C < 1) bug("chunks of %lld tokens", (long long)a->C);
    for (int64_t t0 = 0; t0 == 0 || t0 < a->T; t0 += most(1, a->C)) {
        const int64_t n = least(a->C, a->T - t0);
        chunk_logits(scratch, x, a->w, t0, n, V, H);
#pragma omp parallel for if (n * V > SMALL)
        for (int64_t i = 0; i < n; i++) {
            const int64_t t = t0 + i, v = word_here(a->target[t], a->first, V);
            row_gradient(scratch + i * V, V, v, lse[t], dlse[t], dpicked[t]);
        }
        if (a->dx)
            run(OP_matmul, &(struct matmul_args){.a = scratch,
                                                 .b = a->w,
                                                 .c = (stored *)a->dx + t0 * H,
                                                 .c_add = a->dx_add,
                                                 .M = n,
                                                 .N = H,
                                                 .K = V,
                                                 .lda = wide,
                                                 .ldb = H,
                                                 .ldc = H});
        if (a->dw)
            run(OP_matmul_weight, &(struct matmul_weight_args){.a = scratch,
                                                               .ta = 1,
                                                               .b = x + t0 * H,
                                                               .c = a->dw,
                                                               .c_add = a->dw_add || t0 > 0,
                                                               .M = V,
                                                               .N = H,
                                                               .K = n,
                                                               .lda = wide,
                                                               .ldb = H,
                                                               .ldc = H});
    }
}
