/* fast_matmul: the matrix products by a library: oneDNN (-DHAVE_DNNL, 2.6 and 3), OpenBLAS
 * (-DHAVE_OPENBLAS, floats only), or, where there is none, a small product of our own.
 *
 * A library that shares one product out among threads may add in an order that depends on their
 * number. So the output is cut here, into tiles that depend on the sizes alone, and each tile is
 * one call of the library on one thread. The contraction is never cut: a tile has its whole sum. */
#include "kernels/cpu/dnnl_tile.h"

#include <omp.h>

#include "kernels/cpu/expert_product.h"
#include "kernels/cpu/maths.h"

#if defined HAVE_OPENBLAS && !defined HAVE_DNNL && !defined STORED_BF16
#define BY_OPENBLAS 1
#include <cblas.h>
#else
#define BY_OPENBLAS 0
#endif

/* ---- a small product of our own ---- */

#if !BY_OPENBLAS

enum { ROWS = 64, WIDTH = 32, DEPTH = 128 };

static float widened(stored x) {
#if defined STORED_BF16
    const uint32_t u = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
#else
    return x;
#endif
}

static void put_stored(stored *to, float x, int add) {
#if defined STORED_BF16
    const float sum = add ? widened(*to) + x : x;
    dtype_convert(to, BF16, &sum, F32, 1);
#else
    put(to, x, add);
#endif
}

/* sum[j] += sum over k of x[k * stride] strip[k][j], for every j, in registers. */
static void add_products(float sum[WIDTH], float strip[][WIDTH], const stored *x, int64_t stride,
                         int64_t depth) {
    float s[WIDTH];
    for (int j = 0; j < WIDTH; j++) s[j] = sum[j];
    for (int64_t k = 0; k < depth; k++) {
        const float f = widened(x[k * stride]);
        for (int j = 0; j < WIDTH; j++) s[j] += f * strip[k][j];
    }
    for (int j = 0; j < WIDTH; j++) sum[j] = s[j];
}

/* As the plain definition, but with float sums. */
static void small_product(const struct matmul_args *m, bool wide, int64_t i0, int64_t j0) {
    const stored *a = m->a, *b = m->b;
    const int64_t rows = least(ROWS, m->M - i0), width = least(WIDTH, m->N - j0);
    float sum[ROWS][WIDTH] = {{0}}, strip[DEPTH][WIDTH] = {{0}};
    for (int64_t k0 = 0; k0 < m->K; k0 += DEPTH) {
        const int64_t depth = least(DEPTH, m->K - k0);
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < width; j++)
                strip[k][j] =
                    widened(m->tb ? b[(j0 + j) * m->ldb + k0 + k] : b[(k0 + k) * m->ldb + j0 + j]);
        for (int64_t i = 0; i < rows; i++) {
            const stored *x = a + (m->ta ? k0 * m->lda + i0 + i : (i0 + i) * m->lda + k0);
            add_products(sum[i], strip, x, m->ta ? m->lda : 1, depth);
        }
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) {
            const int64_t at = (i0 + i) * m->ldc + j0 + j;
            if (wide) ((float *)m->c)[at] = (m->c_add ? ((float *)m->c)[at] : 0) + sum[i][j];
            else put_stored((stored *)m->c + at, sum[i][j], m->c_add);
        }
}

static void plain_product(const struct matmul_args *a, bool wide) {
    for (int64_t j = 0; j < a->N; j += WIDTH)
        for (int64_t i = 0; i < a->M; i += ROWS) small_product(a, wide, i, j);
}

#endif

/* ---- one tile; M, N and K at least 1 ---- */

#if defined HAVE_DNNL

static void tile_product(const struct matmul_args *a, bool wide) {
    if (!dnnl_tile(a, sizeof(stored) == sizeof(float), wide)) plain_product(a, wide);
}

#elif BY_OPENBLAS

static void tile_product(const struct matmul_args *a, bool wide) {
    (void)wide;
    cblas_sgemm(CblasRowMajor, a->ta ? CblasTrans : CblasNoTrans, a->tb ? CblasTrans : CblasNoTrans,
                (int)a->M, (int)a->N, (int)a->K, 1, a->a, (int)a->lda, a->b, (int)a->ldb,
                a->c_add ? 1 : 0, a->c, (int)a->ldc);
}

#else

static void tile_product(const struct matmul_args *a, bool wide) {
    plain_product(a, wide);
}

#endif

/* Called by each thread before its tiles. A team of one is no parallel region to oneDNN, which
 * would then start threads of its own; what is set here is forgotten at the end of the region. */
static void one_thread_each(void) {
    omp_set_num_threads(1);
}

/* Called before the region: OpenBLAS has one number for the whole program. */
static void library_alone(void) {
#if BY_OPENBLAS
    openblas_set_num_threads(1);
#endif
}

/* Tiles are large enough for the library to be quick, and as many as a host has cores where the
 * product is large enough to be worth it. */
enum { TILE_ROWS = 192, TILE_COLUMNS = 384, WANTED_TILES = 32 };
static const double least_tile_work = 4e6;

static int64_t pieces(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

struct cut {
    int64_t rows, columns; /* of a tile */
    int64_t down, across;  /* tiles */
};

static struct cut cut(int64_t M, int64_t N, int64_t K) {
    int64_t rows = TILE_ROWS, columns = TILE_COLUMNS;
    while (pieces(M, rows) * pieces(N, columns) < WANTED_TILES &&
           (double)least(M, rows) * (double)least(N, columns) * (double)K > least_tile_work &&
           (least(N, columns) > 96 || least(M, rows) > 48)) {
        if (least(N, columns) >= 2 * least(M, rows) || least(M, rows) <= 48) columns /= 2;
        else rows /= 2;
    }
    return (struct cut){rows, columns, pieces(M, rows), pieces(N, columns)};
}

/* Tile (i, j) of the product. */
static void one_tile(const struct matmul_args *a, bool wide, const struct cut *cut, int64_t i,
                     int64_t j) {
    const int64_t row = i * cut->rows, column = j * cut->columns;
    struct matmul_args tile = *a;
    tile.M = least(cut->rows, a->M - row);
    tile.N = least(cut->columns, a->N - column);
    const size_t size = wide ? sizeof(float) : sizeof(stored);
    tile.a = (const stored *)a->a + row * (a->ta ? 1 : a->lda);
    tile.b = (const stored *)a->b + column * (a->tb ? a->ldb : 1);
    tile.c = (char *)a->c + (size_t)(row * a->ldc + column) * size;
    if (tile.M < 1 || tile.N < 1) return;
    if (a->K > 0) {
        tile_product(&tile, wide);
    } else if (!a->c_add) {
        for (int64_t r = 0; r < tile.M; r++)
            memset((char *)tile.c + (size_t)(r * a->ldc) * size, 0, (size_t)tile.N * size);
    }
}

/* wide: c holds real numbers, else stored ones. */
static void product(const struct matmul_args *a, bool wide) {
    if (!a->c || a->M < 1 || a->N < 1) return;
    const struct cut c = cut(a->M, a->N, a->K);
    library_alone();
#pragma omp parallel if (c.down * c.across > 1)
    {
        one_thread_each();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t j = 0; j < c.across; j++)
            for (int64_t i = 0; i < c.down; i++) one_tile(a, wide, &c, i, j);
    }
}

KERNEL(matmul) {
    product(a, sizeof(stored) == sizeof(float));
}

KERNEL(matmul_weight) {
    const struct matmul_args m = weight_product(a);
    product(&m, true);
}

/* The tiles of all experts are shared out together. An expert's share is uneven, so the cut is that
 * of the average. */
KERNEL(grouped_matmul) {
    if (!a->y || a->E < 1 || a->N < 1) return;
    const int64_t N = a->N, K = a->K;
    const struct cut c = cut(pieces(a->S, a->E), N * a->E, K);
    const int64_t across = pieces(N, c.columns), down = pieces(a->S, c.rows);
    library_alone();
#pragma omp parallel if (a->E * across * down > 1)
    {
        one_thread_each();
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t e = 0; e < a->E; e++)
            for (int64_t j = 0; j < across; j++)
                for (int64_t i = 0; i < down; i++) {
                    const struct matmul_args m = expert_rows(a, e);
                    if (i * c.rows < m.M) one_tile(&m, sizeof(stored) == sizeof(float), &c, i, j);
                }
    }
}

KERNEL(grouped_weight) {
    if (!a->dw || a->E < 1 || a->N < 1 || a->K < 1) return;
    const int64_t N = a->N, K = a->K;
    const struct cut c = cut(N, K * a->E, pieces(a->S, a->E));
    const int64_t across = pieces(K, c.columns), down = pieces(N, c.rows);
    library_alone();
#pragma omp parallel if (a->E * across * down > 1)
    {
        one_thread_each();
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t e = 0; e < a->E; e++)
            for (int64_t j = 0; j < across; j++)
                for (int64_t i = 0; i < down; i++) {
                    const struct matmul_args m = expert_weight(a, e);
                    one_tile(&m, true, &c, i, j);
                }
    }
}
