#include "tests/library.h"

#include <stdlib.h>

#include "kernels/die.h"

#if defined HAVE_DNNL
#if __has_include(<oneapi/dnnl/dnnl.h>)
#include <oneapi/dnnl/dnnl.h>
#else
#include <dnnl.h>
#endif

struct library_product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arg[3];
};

const char *library_name(void) {
    return "oneDNN";
}

static void must(dnnl_status_t status) {
    if (status != dnnl_success) die("oneDNN: status %d", (int)status);
}

/* Two ways of saying the same: a description is a struct before
 * version 3, a handle from then on. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t matrix;
#define OF(m) (m)
static matrix describe(int64_t rows, int64_t columns, int64_t ld, bool turned, enum dtype d) {
    matrix m;
    const dnnl_dims_t dims = {rows, columns}, strides = {turned ? 1 : ld, turned ? ld : 1};
    must(dnnl_memory_desc_create_with_strides(&m, 2, dims, d == BF16 ? dnnl_bf16 : dnnl_f32,
                                              strides));
    return m;
}
static dnnl_status_t prepare(struct library_product *p, matrix a, matrix b, matrix c) {
    return dnnl_matmul_primitive_desc_create(&p->description, p->engine, a, b, NULL, c, NULL);
}
static void forget(matrix m) {
    dnnl_memory_desc_destroy(m);
}
#else
typedef dnnl_memory_desc_t matrix;
#define OF(m) (&(m))
static matrix describe(int64_t rows, int64_t columns, int64_t ld, bool turned, enum dtype d) {
    matrix m;
    const dnnl_dims_t dims = {rows, columns}, strides = {turned ? 1 : ld, turned ? ld : 1};
    must(dnnl_memory_desc_init_by_strides(&m, 2, dims, d == BF16 ? dnnl_bf16 : dnnl_f32, strides));
    return m;
}
static dnnl_status_t prepare(struct library_product *p, matrix a, matrix b, matrix c) {
    dnnl_matmul_desc_t m;
    must(dnnl_matmul_desc_init(&m, &a, &b, NULL, &c));
    return dnnl_primitive_desc_create(&p->description, &m, NULL, p->engine, NULL);
}
static void forget(matrix m) {
    (void)m;
}
#endif

struct library_product *library_product_new(const struct matmul_args *m, enum dtype stored,
                                            enum dtype result) {
    struct library_product *p = die_alloc(sizeof *p);
    must(dnnl_engine_create(&p->engine, dnnl_cpu, 0));
    must(dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
    matrix of[3] = {describe(m->M, m->K, m->lda, m->ta, stored),
                    describe(m->K, m->N, m->ldb, m->tb, stored),
                    describe(m->M, m->N, m->ldc, false, result)};
    void *const at[3] = {(void *)m->a, (void *)m->b, m->c};
    const int argument[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    const bool able = prepare(p, of[0], of[1], of[2]) == dnnl_success;
    if (able) must(dnnl_primitive_create(&p->primitive, p->description));
    for (int i = 0; i < 3; i++) {
        p->arg[i].arg = argument[i];
        must(dnnl_memory_create(&p->arg[i].memory, OF(of[i]), p->engine, at[i]));
        forget(of[i]);
    }
    if (able) return p;
    library_product_free(p);
    return NULL;
}

void library_product_run(struct library_product *p) {
    must(dnnl_primitive_execute(p->primitive, p->stream, 3, p->arg));
    must(dnnl_stream_wait(p->stream));
}

void library_product_free(struct library_product *p) {
    for (int i = 0; i < 3; i++) dnnl_memory_destroy(p->arg[i].memory);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->description) dnnl_primitive_desc_destroy(p->description);
    dnnl_stream_destroy(p->stream);
    dnnl_engine_destroy(p->engine);
    free(p);
}

#elif defined HAVE_OPENBLAS
#include <cblas.h>

struct library_product {
    struct matmul_args m;
};

const char *library_name(void) {
    return "OpenBLAS";
}

struct library_product *library_product_new(const struct matmul_args *m, enum dtype stored,
                                            enum dtype result) {
    if (stored != F32 || result != F32) return NULL;
    struct library_product *p = die_alloc(sizeof *p);
    p->m = *m;
    return p;
}

void library_product_run(struct library_product *p) {
    const struct matmul_args *a = &p->m;
    cblas_sgemm(CblasRowMajor, a->ta ? CblasTrans : CblasNoTrans, a->tb ? CblasTrans : CblasNoTrans,
                (int)a->M, (int)a->N, (int)a->K, 1, a->a, (int)a->lda, a->b, (int)a->ldb, 0, a->c,
                (int)a->ldc);
}

void library_product_free(struct library_product *p) {
    free(p);
}

#else

const char *library_name(void) {
    return NULL;
}

struct library_product *library_product_new(const struct matmul_args *m, enum dtype stored,
                                            enum dtype result) {
    (void)m, (void)stored, (void)result;
    return NULL;
}

void library_product_run(struct library_product *p) {
    (void)p;
}

void library_product_free(struct library_product *p) {
    (void)p;
}

#endif
