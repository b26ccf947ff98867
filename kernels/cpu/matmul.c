/* matmul: c = op(a) op(b), and the same for each expert's rows. The definition: one sum in double
 * per element, in the order of k. It is cut into tiles so that operands are met in the cache, which
 * changes no bit. */
#include "kernels/cpu/expert_product.h"
#include "kernels/cpu/maths.h"

enum { ROWS = 32, WIDTH = 32, DEPTH = 64 };

/* sum[j] += sum over k of x[k * stride] strip[k][j], for every j, in registers. */
static void add_products(double sum[WIDTH], double strip[][WIDTH], const real *x, int64_t stride,
                         int64_t depth) {
    double s[WIDTH];
    for (int j = 0; j < WIDTH; j++) s[j] = sum[j];
    for (int64_t k = 0; k < depth; k++)
        for (int j = 0; j < WIDTH; j++) s[j] += (double)x[k * stride] * strip[k][j];
    for (int j = 0; j < WIDTH; j++) sum[j] = s[j];
}

/* rows x width of c, from row i0 and column j0 on. */
static void tile(const struct matmul_args *m, int64_t i0, int64_t j0) {
    const real *a = m->a, *b = m->b;
    const int64_t rows = least(ROWS, m->M - i0), width = least(WIDTH, m->N - j0);
    double sum[ROWS][WIDTH] = {{0}};
    double strip[DEPTH][WIDTH]; /* of op(b) */
    for (int64_t k0 = 0; k0 < m->K; k0 += DEPTH) {
        const int64_t depth = least(DEPTH, m->K - k0);
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < WIDTH; j++) {
                if (j >= width) strip[k][j] = 0;
                else if (m->tb) strip[k][j] = (double)b[(j0 + j) * m->ldb + k0 + k];
                else strip[k][j] = (double)b[(k0 + k) * m->ldb + j0 + j];
            }
        for (int64_t i = 0; i < rows; i++) {
            const real *x = a + (m->ta ? k0 * m->lda + i0 + i : (i0 + i) * m->lda + k0);
            add_products(sum[i], strip, x, m->ta ? m->lda : 1, depth);
        }
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++)
            put_sum((real *)m->c + (i0 + i) * m->ldc + j0 + j, sum[i][j], m->c_add);
}

KERNEL(matmul) {
    if (!a->c) return;
#pragma omp parallel for collapse(2) schedule(dynamic) if (a->M * a->N * a->K > SMALL)
    for (int64_t i = 0; i < a->M; i += ROWS)
        for (int64_t j = 0; j < a->N; j += WIDTH) tile(a, i, j);
}

/* Here both formats are the same, and so are the two rows of ops.def. */
KERNEL(matmul_weight) {
    const struct matmul_args m = weight_product(a);
    matmul_body(&m);
}

KERNEL(grouped_matmul) {
    if (!a->y) return;
    for (int64_t e = 0; e < a->E; e++) {
        const struct matmul_args m = expert_rows(a, e);
        matmul_body(&m);
    }
}

KERNEL(grouped_weight) {
    if (!a->dw) return;
    for (int64_t e = 0; e < a->E; e++) {
        const struct matmul_args m = expert_weight(a, e);
        matmul_body(&m);
    }
}
