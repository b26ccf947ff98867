/* vector_matmul: the matrix products by kernels of our own (product.h, product_few.h): the result
 * is cut into pieces that threads take in turns. Bits do not depend on the cut, so it may look at
 * the number of threads. */
#include <omp.h>

#include "kernels/cpu/expert_product.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/product_few.h"
#include "kernels/cpu/table.h"

/* Rows and columns of a piece. */
struct cut {
    int64_t rows, columns;
};

static int64_t pieces(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}

/* n in equal parts of at most `size`, each a multiple of `unit`. */
static int64_t part(int64_t n, int64_t size, int64_t unit) {
    const int64_t parts = most(1, pieces(n, size));
    return most(1, pieces(pieces(n, parts), unit)) * unit;
}

/* Large pieces copy less; small ones are shared out more evenly, and so are few if all threads get
 * as many. `products` of this shape come together. */
static struct cut cut(int64_t M, int64_t N, int64_t K, int64_t products) {
    const int64_t threads = omp_get_max_threads(), wanted = threads > 1 ? 2 * threads : 1;
    struct cut c = {part(M, PIECE_ROWS, ROWS), part(N, PIECE_COLUMNS, WIDTH)};
    while (pieces(M, c.rows) * pieces(N, c.columns) * products < wanted &&
           (double)c.rows * (double)c.columns * (double)K > 1e6) {
        if (c.rows >= c.columns && c.rows > ROWS) c.rows = part(M, c.rows / 2, ROWS);
        else if (c.columns > WIDTH) c.columns = part(N, c.columns / 2, WIDTH);
        else break;
    }
    const int64_t down = pieces(M, c.rows), across = pieces(N, c.columns) * products;
    if (down * across < 4 * wanted)
        for (int64_t parts = down; parts < 2 * down; parts++)
            if (parts * across % threads == 0) {
                c.rows = part(M, pieces(M, parts), ROWS);
                break;
            }
    return c;
}

/* Few rows: a piece is worth the taking, and a small matrix is not shared. */
static struct cut cut_few(const struct product *p) {
    enum { WORTH = 1 << 15, COLUMNS = 48 /* a multiple of every FEW_ */ };
    const int64_t bytes = most(1, p->K) * (int64_t)sizeof(stored);
    if (p->N * bytes < 8 * WORTH) return (struct cut){p->M, p->N};
    if (columns_are_short(p)) return (struct cut){p->M, most(8, WORTH / bytes / 8 * 8)};
    return (struct cut){p->M, most(1, WORTH / (COLUMNS * bytes)) * COLUMNS};
}

/* held: as in product_piece, of one thread and one call. */
static void one_piece(const struct product *p, const struct cut *c, int64_t i, int64_t j,
                      const stored **held) {
    const int64_t i0 = i * c->rows, i1 = least(p->M, i0 + c->rows);
    const int64_t j0 = j * c->columns, j1 = least(p->N, j0 + c->columns);
    if (product_is_few(p)) few_piece(p, i0, i1, j0, j1);
    else product_piece(p, i0, i1, j0, j1, held);
}

/* Where a library knows the processor better than we do: matrix units for BF16, and what is no
 * x86-64. */
static bool library_is_better(const struct product *p) {
#if PAIRS
    return !product_is_few(p) && p->K >= 64 && cpu_library_multiplies(CPU_V4_BF16, BF16);
#elif !defined __x86_64__ && (defined HAVE_DNNL || defined HAVE_OPENBLAS)
    return !product_is_few(p) &&
           cpu_library_multiplies(CPU_NATIVE, sizeof(stored) == 2 ? BF16 : F32);
#else
    (void)p;
    return false;
#endif
}

#if defined STORED_BF16
#define LIBRARY_ROOM(name) name##_library_bf16
#else
#define LIBRARY_ROOM(name) name##_library_f32
#endif
void LIBRARY_ROOM(matmul)(const void *args);
void LIBRARY_ROOM(matmul_weight)(const void *args);

static void product(const struct product *p) {
    if (!p->c || p->M < 1 || p->N < 1) return;
    const struct cut c = product_is_few(p) ? cut_few(p) : cut(p->M, p->N, p->K, 1);
    const int64_t down = pieces(p->M, c.rows), across = pieces(p->N, c.columns);
    const stored *held = NULL;
    if (product_is_few(p)) {
        /* Where a thread begins it waits for memory: so pieces that follow each other, many at
         * first. */
#pragma omp parallel for schedule(guided) firstprivate(held) if (across > 1)
        for (int64_t j = 0; j < across; j++) one_piece(p, &c, 0, j, &held);
        return;
    }
#pragma omp parallel for collapse(2) schedule(dynamic) firstprivate(held) if (down * across > 1)
    for (int64_t j = 0; j < across; j++)
        for (int64_t i = 0; i < down; i++) one_piece(p, &c, i, j, &held);
}

#define PRODUCT_OF(a_, wide_)                                                                      \
    {                                                                                              \
        .a = (a_)->a, .b = (a_)->b, .c = (a_)->c, .add = (a_)->c_add, .wide = wide_,               \
        .ta = (a_)->ta != 0, .tb = (a_)->tb != 0, .M = (a_)->M, .N = (a_)->N, .K = (a_)->K,        \
        .lda = (a_)->lda, .ldb = (a_)->ldb, .ldc = (a_)->ldc                                       \
    }

KERNEL(matmul) {
    const struct product p = PRODUCT_OF(a, sizeof(stored) == sizeof(float));
    if (library_is_better(&p)) LIBRARY_ROOM(matmul)(a);
    else product(&p);
}

KERNEL(matmul_weight) {
    const struct product p = PRODUCT_OF(a, true);
    if (library_is_better(&p)) LIBRARY_ROOM(matmul_weight)(a);
    else product(&p);
}

KERNEL(grouped_matmul) {
    const int64_t N = a->N, K = a->K;
    if (!a->y || a->E < 1 || N < 1) return;
    const struct cut c = cut(pieces(a->S, a->E), N, K, a->E);
    const int64_t across = pieces(N, c.columns), down = pieces(a->S, c.rows);
    const stored *held = NULL;
#pragma omp parallel for collapse(3) schedule(dynamic)                                             \
    firstprivate(held) if (a->E * across * down > 1)
    for (int64_t e = 0; e < a->E; e++)
        for (int64_t j = 0; j < across; j++)
            for (int64_t i = 0; i < down; i++) {
                const struct matmul_args m = expert_rows(a, e);
                const struct product p = PRODUCT_OF(&m, sizeof(stored) == sizeof(float));
                if (i * c.rows < m.M) one_piece(&p, &c, i, j, &held);
            }
}

KERNEL(grouped_weight) {
    const int64_t N = a->N, K = a->K;
    if (!a->dw || a->E < 1 || N < 1 || K < 1) return;
    const struct cut c = cut(N, K, pieces(a->S, a->E), a->E);
    const int64_t across = pieces(K, c.columns), down = pieces(N, c.rows);
    const stored *held = NULL;
#pragma omp parallel for collapse(3) schedule(dynamic)                                             \
    firstprivate(held) if (a->E * across * down > 1)
    for (int64_t e = 0; e < a->E; e++)
        for (int64_t j = 0; j < across; j++)
            for (int64_t i = 0; i < down; i++) {
                const struct matmul_args m = expert_weight(a, e);
                const struct product p = PRODUCT_OF(&m, true);
                one_piece(&p, &c, i, j, &held);
            }
}
