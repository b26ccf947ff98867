/* expert_product: the other products as the matrix products that they are: that of one expert's
 * rows, for the kernels of grouped_matmul and grouped_weight, and that of weights' gradients. */
#ifndef KERNELS_CPU_EXPERT_PRODUCT_H
#define KERNELS_CPU_EXPERT_PRODUCT_H

#include "kernels/cpu/kernel.h"

/* Here c is of real numbers. */
static inline struct matmul_args weight_product(const struct matmul_weight_args *a) {
    return (struct matmul_args){.a = a->a,
                                .b = a->b,
                                .c = a->c,
                                .c_add = a->c_add,
                                .M = a->M,
                                .N = a->N,
                                .K = a->K,
                                .lda = a->lda,
                                .ldb = a->ldb,
                                .ldc = a->ldc,
                                .ta = a->ta,
                                .tb = a->tb};
}

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
