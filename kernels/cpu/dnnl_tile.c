/* A product by oneDNN is an object, made for one shape, and making it takes as long as a small
 * product. Shapes come again: every thread keeps those it met last, in a table of fixed size. The
 * library shares the code behind them between threads. Its scratch memory is ours, one piece a
 * thread (kernels/cpu/workspace.h), so nothing is hidden but the objects themselves. */
#include "kernels/cpu/dnnl_tile.h"

#if defined HAVE_DNNL

#if __has_include(<oneapi/dnnl/dnnl.h>)
#include <oneapi/dnnl/dnnl.h>
#else
#include <dnnl.h>
#endif
#include <string.h>

#include "kernels/cpu/workspace.h"
#include "kernels/die.h"

enum { N_SLOTS = 256 };

struct shape {
    int64_t M, N, K, lda, ldb, ldc;
    int32_t ta, tb, add, floats, wide, used;
};

struct slot {
    struct shape shape;
    dnnl_primitive_t product; /* NULL: the library has none */
    dnnl_memory_t a, b, c, scratch;
    size_t scratch_bytes;
};

static _Thread_local struct slot slots[N_SLOTS];
static _Thread_local dnnl_engine_t engine;
static _Thread_local dnnl_stream_t stream;

static void check(dnnl_status_t status) {
    if (status != dnnl_success) die("oneDNN's matrix product failed with status %d", (int)status);
}

/* The two versions name the same things differently. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t description;
typedef const_dnnl_memory_desc_t description_of;
static description describe(int64_t rows, int64_t columns, dnnl_data_type_t type, int64_t down,
                            int64_t across) {
    const dnnl_dims_t sizes = {rows, columns}, strides = {down, across};
    description d;
    check(dnnl_memory_desc_create_with_strides(&d, 2, sizes, type, strides));
    return d;
}
static void forget(description *d) {
    check(dnnl_memory_desc_destroy(*d));
}
static dnnl_memory_t memory(const description *d) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, *d, engine, DNNL_MEMORY_NONE));
    return m;
}
static dnnl_status_t product_of(dnnl_primitive_desc_t *to, const description d[3],
                                const_dnnl_primitive_attr_t attr) {
    return dnnl_matmul_primitive_desc_create(to, engine, d[0], d[1], NULL, d[2], attr);
}
static size_t bytes_of(description_of d) {
    return dnnl_memory_desc_get_size(d);
}
static dnnl_memory_t memory_of(description_of d) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE));
    return m;
}
static void add_sum(dnnl_post_ops_t ops) {
    check(dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef));
}
#else
typedef dnnl_memory_desc_t description;
typedef const dnnl_memory_desc_t *description_of;
static description describe(int64_t rows, int64_t columns, dnnl_data_type_t type, int64_t down,
                            int64_t across) {
    const dnnl_dims_t sizes = {rows, columns}, strides = {down, across};
    description d;
    check(dnnl_memory_desc_init_by_strides(&d, 2, sizes, type, strides));
    return d;
}
static void forget(description *d) {
    (void)d;
}
static dnnl_memory_t memory(const description *d) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE));
    return m;
}
static dnnl_status_t product_of(dnnl_primitive_desc_t *to, const description d[3],
                                const_dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t product;
    check(dnnl_matmul_desc_init(&product, &d[0], &d[1], NULL, &d[2]));
    return dnnl_primitive_desc_create(to, &product, attr, engine, NULL);
}
static size_t bytes_of(description_of d) {
    return dnnl_memory_desc_get_size(d);
}
static dnnl_memory_t memory_of(description_of d) {
    return memory(d);
}
static void add_sum(dnnl_post_ops_t ops) {
    check(dnnl_post_ops_append_sum(ops, 1));
}
#endif

static void empty(struct slot *s) {
    if (s->product) {
        check(dnnl_primitive_destroy(s->product));
        check(dnnl_memory_destroy(s->a));
        check(dnnl_memory_destroy(s->b));
        check(dnnl_memory_destroy(s->c));
        check(dnnl_memory_destroy(s->scratch));
    }
    memset(s, 0, sizeof *s);
}

static void fill(struct slot *s, const struct shape *x) {
    const dnnl_data_type_t in = x->floats ? dnnl_f32 : dnnl_bf16, out = x->wide ? dnnl_f32 : in;
    description d[3] = {describe(x->M, x->K, in, x->ta ? 1 : x->lda, x->ta ? x->lda : 1),
                        describe(x->K, x->N, in, x->tb ? 1 : x->ldb, x->tb ? x->ldb : 1),
                        describe(x->M, x->N, out, x->ldc, 1)};
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t ops;
    dnnl_primitive_desc_t pd;
    check(dnnl_primitive_attr_create(&attr));
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    check(dnnl_post_ops_create(&ops));
    if (x->add) add_sum(ops);
    check(dnnl_primitive_attr_set_post_ops(attr, ops));
    s->shape = *x;
    const dnnl_status_t status = product_of(&pd, d, attr);
    if (status == dnnl_success) {
        check(dnnl_primitive_create(&s->product, pd));
        const description_of scratch =
            dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        s->scratch_bytes = scratch ? bytes_of(scratch) : 0;
        s->scratch = memory_of(scratch);
        s->a = memory(&d[0]);
        s->b = memory(&d[1]);
        s->c = memory(&d[2]);
        check(dnnl_primitive_desc_destroy(pd));
    } else if (status != dnnl_unimplemented) {
        check(status);
    }
    for (int i = 0; i < 3; i++) forget(&d[i]);
    check(dnnl_post_ops_destroy(ops));
    check(dnnl_primitive_attr_destroy(attr));
}

static struct slot *slot_of(const struct shape *x) {
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof *x / 4; i++) {
        uint32_t word;
        memcpy(&word, (const char *)x + 4 * i, sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    struct slot *s = &slots[hash % N_SLOTS];
    if (memcmp(&s->shape, x, sizeof *x) != 0) {
        empty(s);
        fill(s, x);
    }
    return s;
}

bool dnnl_tile(const struct matmul_args *a, bool floats, bool wide) {
    if (!engine) {
        check(dnnl_engine_create(&engine, dnnl_cpu, 0));
        check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    }
    const struct shape x = {a->M,       a->N,       a->K,          a->lda, a->ldb,         a->ldc,
                            a->ta != 0, a->tb != 0, a->c_add != 0, floats, floats || wide, 1};
    struct slot *s = slot_of(&x);
    if (!s->product) return false;
    check(dnnl_memory_set_data_handle(s->a, (void *)a->a));
    check(dnnl_memory_set_data_handle(s->b, (void *)a->b));
    check(dnnl_memory_set_data_handle(s->c, a->c));
    check(dnnl_memory_set_data_handle(s->scratch, cpu_workspace(s->scratch_bytes + 64)));
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, s->a},
                                    {DNNL_ARG_WEIGHTS, s->b},
                                    {DNNL_ARG_DST, s->c},
                                    {DNNL_ARG_SCRATCHPAD, s->scratch}};
    check(dnnl_primitive_execute(s->product, stream, 4, args));
    return true;
}

#else

/* The library is not there. */
bool dnnl_tile(const struct matmul_args *a, bool floats, bool wide) {
    (void)a, (void)floats, (void)wide;
    return false;
}

#endif
