/* The speed of every row of ops.def on sizes of a small model: 512 tokens, hidden 1024, Mamba 16
 * heads of 64 with state 128, attention 8 heads of 64 over 2, 16 experts of 512 of which 2 see a
 * token, 16384 words; and the products of the configurations of make bench (bench/README.md).
 *
 * "% of best" is the time that the row's work takes at the peak of arithmetic, or its bytes at the
 * speed at which as many bytes can be copied here (a cache's, if they fit), whichever is longer,
 * over the time it took. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/table.h"
#include "kernels/exact.h"
#include "kernels/peak.h"
#include "tests/harness.h"
#include "tests/library.h"
#include "tests/operands.h"

enum {
    T = 512,
    HIDDEN = 1024,
    HEADS = 16,
    HEAD = 64,
    GROUPS = 2,
    STATE = 128,
    INNER = HEADS * HEAD
};
enum {
    CHANNELS = INNER + 2 * GROUPS * STATE,
    Q_HEADS = 8,
    KV = 2,
    FFN = 4096,
    EXPERTS = 16,
    WIDTH = 512,
    CHOSEN = 2
};
enum { WORDS = 16384 };

/* clang-format off */
#define SCAN .B = 1, .L = T, .H = HEADS, .P = HEAD, .G = GROUPS, .S = STATE, .Q = 64, .lddt = HEADS, .dt_max = 100
#define SCAN_END .B = 1, .L = T, .H = HEADS, .P = HEAD, .G = GROUPS, .S = STATE, .lddt = HEADS, .dt_max = 100
#define ATTENTION .B = 1, .L = T, .H = Q_HEADS, .G = KV, .D = HEAD, .ldq = Q_HEADS * HEAD, .ldk = KV * HEAD, \
    .ldv = KV * HEAD, .C = 1, .scale = 0.125
#define ROUTE .T = T, .E = EXPERTS, .K = CHOSEN
#define GROUPED .S = T * CHOSEN, .N = WIDTH, .K = HIDDEN, .E = EXPERTS
#define GATE .T = T, .W = INNER, .G = GROUPS, .ldz = INNER
#define ONE(label, name, ...) {label, OP_##name, &(struct name##_args){__VA_ARGS__}}
/* y[t,n] = x[t,k] w[n,k]^T, and its two adjoints. */
#define FORWARD(label, t, n, k) ONE(label, matmul, .M = t, .N = n, .K = k, .lda = k, .ldb = k, .ldc = n, .tb = 1)
#define INPUT(label, t, n, k) ONE(label "-dx", matmul, .M = t, .N = k, .K = n, .lda = n, .ldb = k, .ldc = k)
#define WEIGHT(label, t, n, k) ONE(label "-dw", matmul_weight, .M = n, .N = k, .K = t, .lda = n, .ldb = k, .ldc = k, .ta = 1)
#define PRODUCTS(label, t, n, k) FORWARD(label, t, n, k), INPUT(label, t, n, k), WEIGHT(label, t, n, k)

static const struct bench_row {
    const char *label;
    enum op op;
    const void *args;
} rows[] = {
    ONE("", add, .n = T * HIDDEN),
    ONE("", add_scaled, .n = T * HIDDEN, .s = 0.5),
    ONE("", scale, .n = T * HIDDEN, .s = 0.5),
    ONE("", widen, .n = T * HIDDEN),
    ONE("", narrow, .n = T * HIDDEN),
    ONE("", fill, .T = T, .W = HIDDEN, .ld = HIDDEN),
    ONE("", copy, .T = T, .W = HIDDEN, .ldx = HIDDEN, .ldy = HIDDEN),
    ONE("", add_bias, .T = T, .W = HIDDEN),
    ONE("", add_bias_adjoint, .T = T, .W = HIDDEN),
    ONE("", embedding, .T = T, .H = HIDDEN, .V = WORDS),
    ONE("", embedding_adjoint, .T = T, .H = HIDDEN, .V = WORDS),
    ONE("", rms_norm, .T = T, .H = HIDDEN, .eps = 1e-5),
    ONE("", rms_norm_adjoint, .T = T, .H = HIDDEN),
    FORWARD("mlp-up", T, FFN, HIDDEN),
    FORWARD("decode", 1, FFN, HIDDEN),
    FORWARD("decode-8", 8, FFN, HIDDEN),
    FORWARD("router", T, EXPERTS, HIDDEN),
    INPUT("mlp-up", T, FFN, HIDDEN),
    WEIGHT("mlp-up", T, FFN, HIDDEN),
    PRODUCTS("a-in", 2048, 1288, 256),
    PRODUCTS("a-out", 2048, 256, 512),
    PRODUCTS("a-up", 2048, 1024, 256),
    PRODUCTS("b-in", 2048, 2576, 512),
    PRODUCTS("b-up", 2048, 2816, 512),
    PRODUCTS("b-down", 2048, 512, 2816),
    PRODUCTS("c-shared", 2048, 512, 256),
    ONE("", grouped_matmul, GROUPED, .tb = 1),
    ONE("", grouped_weight, GROUPED),
    ONE("", relu2, .n = T * FFN),
    ONE("", relu2_adjoint, .n = T * FFN),
    ONE("", conv, .B = 1, .L = T, .C = CHANNELS, .K = 4, .ldx = CHANNELS),
    ONE("", conv_adjoint, .B = 1, .L = T, .C = CHANNELS, .K = 4, .ldx = CHANNELS),
    ONE("", scan, SCAN),
    ONE("", scan_next, .B = 8, .H = HEADS, .P = HEAD, .G = GROUPS, .S = STATE, .R = 8, .n = 7, .lddt = HEADS, .dt_max = 100),
    ONE("", scan_adjoint, SCAN),
    ONE("", scan_end, SCAN_END),
    ONE("", scan_begin, SCAN_END),
    ONE("", scan_chain, .N = 8, .B = 1, .W = INNER * STATE, .H = HEADS, .each = HEAD * STATE),
    ONE("", gate_squares, GATE),
    ONE("", gate_squares_adjoint, GATE),
    ONE("", gate_norm, GATE, .width = INNER / GROUPS, .eps = 1e-5),
    ONE("", gate_norm_adjoint, GATE, .width = INNER / GROUPS, .eps = 1e-5),
    ONE("", gated_norm, GATE, .eps = 1e-5),
    ONE("", gated_norm_adjoint, GATE, .eps = 1e-5),
    ONE("", attention, ATTENTION),
    ONE("", attention_adjoint, ATTENTION),
    ONE("", attention_merge, .T = T, .H = Q_HEADS, .D = HEAD),
    ONE("", route, ROUTE, .groups = 1, .kept = 1),
    ONE("", route_weight, ROUTE, .normalise = 1, .scale = 2.5),
    ONE("", route_weight_adjoint, ROUTE, .normalise = 1, .scale = 2.5),
    ONE("", sort_experts, ROUTE),
    ONE("", route_evenly, ROUTE, .L = T, .piece = T),
    ONE("", count_choices, ROUTE, .G = 1),
    ONE("", count_experts, ROUTE),
    ONE("", add_counts, .n = EXPERTS + 1),
    ONE("", drop_choices, ROUTE, .L = T, .C = 1, .limit = T / 8, .n = T),
    ONE("", balance_loss, ROUTE, .G = 1, .share = 1),
    ONE("", balance_loss_adjoint, ROUTE, .G = 1, .share = 1),
    ONE("", gather_rows, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE("", gather_rows_adjoint, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE("", combine_rows, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE("", combine_rows_adjoint, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE("", head, .T = T, .H = HIDDEN, .V = WORDS, .C = 128),
    ONE("", head_adjoint, .T = T, .H = HIDDEN, .V = WORDS, .C = 128),
    ONE("", word_loss, .T = T, .R = 2),
    ONE("", word_loss_adjoint, .T = T, .R = 2),
    ONE("", exact_sum, .n = T * HIDDEN, .squares = 1),
    ONE("", adamw, .n = FFN * HIDDEN, .clip = 1, .rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .c1 = 1, .c2 = 1),
};
/* clang-format on */

/* On one thread the time that the processor gave us, which other programs disturb less; that is the
 * time on the wall where there are none. */
static clockid_t used_clock = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(used_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Integers that any row can live with: tokens of one document, slots in order, equal shares.
 * Nothing reaches across the beginning of a document, so it began before where that is all there is
 * to do. */
static int32_t integer(enum op op, const char *name, int64_t i) {
    if (strcmp(name, "start") == 0) return op == OP_scan_begin || op == OP_scan_next ? -1 : 0;
    if (strcmp(name, "offset") == 0) return (int32_t)(i * T * CHOSEN / EXPERTS);
    if (strcmp(name, "index") == 0) return (int32_t)(i % EXPERTS);
    return (int32_t)i;
}

static void fill_operand(struct device *d, enum op op, const struct operand_row *r, void *p,
                         int64_t n, enum dtype stored) {
    unsigned char *host = device_host(d, p);
    if (r->type == OPERAND_REAL || r->type == OPERAND_STORED) {
        const enum dtype d1 = r->type == OPERAND_STORED ? stored : dtype_real(stored);
        double *x = random_reals(n < 65536 ? n : 65536, 1);
        for (int64_t i = 0; i < (n < 65536 ? n : 65536); i++) x[i] += 1.5;
        for (int64_t i = 0; i < n; i += 65536)
            dtype_convert(host + (size_t)i * dtype_size(d1), d1, x, F64,
                          (size_t)(n - i < 65536 ? n - i : 65536));
        free(x);
    } else if (r->type == OPERAND_I32) {
        for (int64_t i = 0; i < n; i++) ((int32_t *)(void *)host)[i] = integer(op, r->name, i);
    }
}

/* One call made ready: operands filled. */
struct call {
    enum op op;
    _Alignas(16) unsigned char args[512];
    void *p[MOST_OPERANDS];
    size_t bytes[MOST_OPERANDS];
};

static void call_init(struct call *c, struct device *d, enum op op, const void *sizes,
                      enum dtype stored) {
    const struct op_row *row = op_row(op);
    int64_t counts[MOST_OPERANDS];
    c->op = op;
    memcpy(c->args, sizes, row->args_size);
    row->counts(sizes, counts);
    for (int i = 0; i < row->n_operands; i++) {
        c->bytes[i] = (size_t)counts[i] * operand_size(row->operands[i].type, stored);
        c->p[i] = device_reserve(d, c->bytes[i]);
        fill_operand(d, op, &row->operands[i], c->p[i], counts[i], stored);
        memcpy(c->args + row->operands[i].at, &c->p[i], sizeof c->p[i]);
    }
}

static void call_free(struct call *c, struct device *d) {
    for (int i = 0; i < op_row(c->op)->n_operands; i++) device_release(d, c->p[i], c->bytes[i]);
}

/* The bytes that the call meets. */
static size_t call_bytes(const struct call *c, enum dtype stored) {
    struct device dry;
    device_dry(&dry);
    device_run(&dry, c->op, stored, c->args);
    return (size_t)dry.count[c->op].bytes;
}

/* Seconds of one call: the best of those that begin within `most` seconds, after one that does not
 * count unless it is long. */
static double time_call(struct device *d, const struct call *c, enum dtype stored,
                        struct library_product *library, double most) {
    double best = 1e9;
    const double end = now() + most;
    for (int i = 0; i < 2 || (now() < end && i < 1000); i++) {
        const double t = now();
        if (library) library_product_run(library);
        else device_run(d, c->op, stored, c->args);
        const double took = now() - t;
        if ((i > 0 || took > 5) && took < best) best = took;
        if (took > 5) break;
    }
    return best;
}

/* The library's time for the same product; 0 where there is none. */
static double time_library(struct device *d, const struct call *c, enum dtype stored) {
    struct matmul_args m;
    if (c->op != OP_matmul && c->op != OP_matmul_weight) return 0;
    _Static_assert(sizeof m == sizeof(struct matmul_weight_args), "the same operands and sizes");
    memcpy(&m, c->args, sizeof m);
    struct library_product *p =
        library_product_new(&m, stored, c->op == OP_matmul ? stored : dtype_real(stored));
    if (!p) return 0;
    omp_set_num_threads(d->threads);
    const double seconds = time_call(d, c, stored, p, 0.1);
    library_product_free(p);
    return seconds;
}

/* Bytes a second of a copy as large as that, to the next power of two. */
static double copy_speed(int threads, size_t bytes) {
    static double known[64];
    int power = 14;
    while (power < 28 && (size_t)1 << power < bytes) power++;
    if (!known[power]) known[power] = peak_memory(threads, (size_t)1 << power);
    return known[power];
}

/* One row of the table. */
static void bench_row(struct device *d, const char *label, enum op op, const void *sizes,
                      enum dtype stored) {
    struct call c;
    char name[48];
    call_init(&c, d, op, sizes, stored);
    d->speed.memory = copy_speed(d->threads, call_bytes(&c, stored));
    memset(d->count, 0, sizeof d->count);
    const double seconds = time_call(d, &c, stored, NULL, 0.1);
    const struct op_count *k = &d->count[op];
    const double calls = (double)k->calls, library = time_library(d, &c, stored);
    snprintf(name, sizeof name, "%s%s%s", op_row(op)->name, *label ? ":" : "", label);
    printf("%-26s %10.4f %9.1f %8.1f %9.0f", name, 1e3 * seconds, 1e-9 * k->work / calls / seconds,
           1e-9 * k->bytes / calls / seconds, 100 * k->least_s / calls / seconds);
    if (library > 0) printf(" %11.4f %9.2f", 1e3 * library, library / seconds);
    printf("\n");
    fflush(stdout);
    call_free(&c, d);
}

static void bench_begin(struct device *d, enum dtype stored) {
    const char *threads = getenv("OMP_NUM_THREADS");
    device_cpu(d, threads && atoi(threads) > 0 ? atoi(threads) : 1, false);
    if (d->threads == 1) used_clock = CLOCK_THREAD_CPUTIME_ID;
    d->speed = peak_measure(d->threads);
    printf("%d thread%s (OMP_NUM_THREADS), %s, %s; %.1f GFLOP/s at best, %.1f GB/s of memory\n",
           d->threads, d->threads > 1 ? "s" : "", cpu_level_name(d->level), dtype_name(stored),
           1e-9 * speed_of(&d->speed, stored), 1e-9 * d->speed.memory);
}

bool bench_has(enum op op) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].op == op) return true;
    return false;
}

int bench(enum dtype stored) {
    struct device d;
    bench_begin(&d, stored);
    printf("%-26s %10s %9s %8s %9s %11s %9s\n", "operation", "ms", "GFLOP/s", "GB/s", "% of best",
           library_name() ? library_name() : "", library_name() ? "times it" : "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        bench_row(&d, rows[i].label, rows[i].op, rows[i].args, stored);
    return 0;
}

/* ---------------------------------------------------------------- lengths */

/* The same tokens as rows of every length: what is read and written, and so what lies in caches,
 * stays the same, and only what a longer sequence costs is seen. */
enum { SHORTEST = 512, LONGEST = 131072 };

/* clang-format off */
#define SEQUENCE(name, ...) bench_length(&d, OP_##name, &(struct name##_args){__VA_ARGS__}, stored)
/* clang-format on */

/* Microseconds a token. */
static void bench_length(struct device *d, enum op op, const void *sizes, enum dtype stored) {
    struct call c;
    call_init(&c, d, op, sizes, stored);
    printf(" %12.4f", 1e6 * time_call(d, &c, stored, NULL, 1) / LONGEST);
    fflush(stdout);
    call_free(&c, d);
}

int bench_lengths(enum dtype stored) {
    struct device d;
    bench_begin(&d, stored);
    printf("microseconds a token, %d tokens in rows of a length: hidden 512; Mamba 8 heads of 64, "
           "state 64; attention 1 head of 64\n%10s %12s %12s %12s %12s %12s %12s %12s\n",
           LONGEST, "length", "rms_norm", "gated_norm", "conv", "conv_adjoint", "scan",
           "scan_adjoint", "attention");
    for (int64_t length = SHORTEST; length <= LONGEST; length *= 2) {
        const int64_t many = LONGEST / length;
        printf("%10lld", (long long)length);
        SEQUENCE(rms_norm, .T = LONGEST, .H = 512, .eps = 1e-5);
        SEQUENCE(gated_norm, .T = LONGEST, .W = 512, .G = 2, .ldz = 512, .eps = 1e-5);
        SEQUENCE(conv, .B = many, .L = length, .C = 768, .K = 4, .ldx = 768);
        SEQUENCE(conv_adjoint, .B = many, .L = length, .C = 768, .K = 4, .ldx = 768);
        SEQUENCE(scan, .B = many, .L = length, .H = 8, .P = 64, .G = 2, .S = 64, .Q = 64, .lddt = 8,
                 .dt_max = 100);
        SEQUENCE(scan_adjoint, .B = many, .L = length, .H = 8, .P = 64, .G = 2, .S = 64, .Q = 64,
                 .lddt = 8, .dt_max = 100);
        SEQUENCE(attention, .B = many, .L = length, .H = 1, .G = 1, .D = 64, .ldq = 64, .ldk = 64,
                 .ldv = 64, .C = 1, .scale = 0.125);
        printf("\n");
    }
    return 0;
}
