/* expert_product: the product of one expert's rows, as the matrix product that it is; for the
 * kernels of grouped_matmul and grouped_weight. */
#ifndef KERNELS_CPU_EXPERT_PRODUCT_H
#define KERNELS_CPU_EXPERT_PRODUCT_H

#include "kernels/cpu/kernel.h"

/* y[rows of e] = or += x[rows of e] w[e] */
static inline struct matmul_args expert_rows(const struct grouped_matmul_args *a, int64_t e) {
    const int64_t first = a->offset[e], N = a->N, K = a->K;
    return (struct matmul_args){.a = (const stored *)a->x + first * K,
                                .b = (const stored *)a->w + e * N * K,
                                .c = (stored *)a->y + first * N,
                                .c_add = a->y_add,
                                .M = a->offset[e + 1] - first,
                                .N = N,
                                .K = K,
                                .lda = K,
                                .ldb = a->tb ? K : N,
                                .ldc = N,
                                .tb = a->tb};
}

/* dw[e] = or += dy[rows of e]^T x[rows of e], in real numbers */
static inline struct matmul_args expert_weight(const struct grouped_weight_args *a, int64_t e) {
    const int64_t first = a->offset[e], N = a->N, K = a->K;
    return (struct matmul_args){.a = (const stored *)a->dy + first * N,
                                .b = (const stored *)a->x + first * K,
                                .c = (real *)a->dw + e * N * K,
                                .c_add = a->dw_add,
                                .M = N,
                                .N = K,
                                .K = a->offset[e + 1] - first,
                                .lda = N,
                                .ldb = K,
                                .ldc = K,
                                .ta = 1};
}

#endif
