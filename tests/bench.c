/* The speed of every row of ops.def on sizes of a small model: 512 tokens, hidden 1024, Mamba 16
 * heads of 64 with state 128, attention 8 heads of 64 over 2, 16 experts of 512 of which 2 see a
 * token, 16384 words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/exact.h"
#include "tests/harness.h"
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
enum { WORDS = 16384, MOST_OPERANDS = 16 };

/* clang-format off */
#define SCAN .B = 1, .L = T, .H = HEADS, .P = HEAD, .G = GROUPS, .S = STATE, .Q = 64, .lddt = HEADS, .dt_max = 100
#define ATTENTION .B = 1, .L = T, .H = Q_HEADS, .G = KV, .D = HEAD, .ldq = Q_HEADS * HEAD, .ldk = KV * HEAD, \
    .ldv = KV * HEAD, .scale = 0.125
#define ROUTE .T = T, .E = EXPERTS, .K = CHOSEN
#define GROUPED .S = T * CHOSEN, .N = WIDTH, .K = HIDDEN, .E = EXPERTS
#define GATE .T = T, .W = INNER, .G = GROUPS, .ldz = INNER
#define ONE(name, ...) {OP_##name, &(struct name##_args){__VA_ARGS__}}

static const struct {
    enum op op;
    const void *args;
} rows[] = {
    ONE(add, .n = T * HIDDEN),
    ONE(add_scaled, .n = T * HIDDEN, .s = 0.5),
    ONE(scale, .n = T * HIDDEN, .s = 0.5),
    ONE(fill, .T = T, .W = HIDDEN, .ld = HIDDEN),
    ONE(copy, .T = T, .W = HIDDEN, .ldx = HIDDEN, .ldy = HIDDEN),
    ONE(add_bias, .T = T, .W = HIDDEN),
    ONE(add_bias_adjoint, .T = T, .W = HIDDEN),
    ONE(embedding, .T = T, .H = HIDDEN, .V = WORDS),
    ONE(embedding_adjoint, .T = T, .H = HIDDEN, .V = WORDS),
    ONE(rms_norm, .T = T, .H = HIDDEN, .eps = 1e-5),
    ONE(rms_norm_adjoint, .T = T, .H = HIDDEN),
    ONE(matmul, .M = T, .N = FFN, .K = HIDDEN, .lda = HIDDEN, .ldb = HIDDEN, .ldc = FFN, .tb = 1),
    ONE(matmul, .M = T, .N = HIDDEN, .K = FFN, .lda = FFN, .ldb = HIDDEN, .ldc = HIDDEN),
    ONE(matmul, .M = FFN, .N = HIDDEN, .K = T, .lda = FFN, .ldb = HIDDEN, .ldc = HIDDEN, .ta = 1),
    ONE(matmul, .M = 1, .N = FFN, .K = HIDDEN, .lda = HIDDEN, .ldb = HIDDEN, .ldc = FFN, .tb = 1),
    ONE(matmul, .M = T, .N = EXPERTS, .K = HIDDEN, .lda = HIDDEN, .ldb = HIDDEN, .ldc = EXPERTS, .tb = 1),
    ONE(grouped_matmul, GROUPED, .tb = 1),
    ONE(grouped_weight, GROUPED),
    ONE(relu2, .n = T * FFN),
    ONE(relu2_adjoint, .n = T * FFN),
    ONE(conv, .B = 1, .L = T, .C = CHANNELS, .K = 4, .ldx = CHANNELS),
    ONE(conv_adjoint, .B = 1, .L = T, .C = CHANNELS, .K = 4, .ldx = CHANNELS),
    ONE(scan, SCAN),
    ONE(scan_adjoint, SCAN),
    ONE(gate_squares, GATE),
    ONE(gate_squares_adjoint, GATE),
    ONE(gate_norm, GATE, .width = INNER / GROUPS, .eps = 1e-5),
    ONE(gate_norm_adjoint, GATE, .width = INNER / GROUPS, .eps = 1e-5),
    ONE(attention, ATTENTION),
    ONE(attention_adjoint, ATTENTION),
    ONE(route, ROUTE, .groups = 1, .kept = 1),
    ONE(route_weight, ROUTE, .normalise = 1, .scale = 2.5),
    ONE(route_weight_adjoint, ROUTE, .normalise = 1, .scale = 2.5),
    ONE(sort_experts, ROUTE),
    ONE(count_experts, .E = EXPERTS),
    ONE(gather_rows, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE(gather_rows_adjoint, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE(combine_rows, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE(combine_rows_adjoint, .T = T, .K = CHOSEN, .W = HIDDEN),
    ONE(head, .T = T, .H = HIDDEN, .V = WORDS, .C = 128),
    ONE(head_adjoint, .T = T, .H = HIDDEN, .V = WORDS, .C = 128),
    ONE(word_loss, .T = T, .R = 2),
    ONE(word_loss_adjoint, .T = T, .R = 2),
    ONE(exact_sum, .n = T * HIDDEN, .squares = 1),
    ONE(adamw, .n = FFN * HIDDEN, .clip = 1, .rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .c1 = 1, .c2 = 1),
};
/* clang-format on */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Integers that any row can live with: tokens of one document, slots in order, equal shares. */
static int32_t integer(const char *name, int64_t i) {
    if (strcmp(name, "start") == 0) return 0;
    if (strcmp(name, "offset") == 0) return (int32_t)(i * T * CHOSEN / EXPERTS);
    if (strcmp(name, "index") == 0) return (int32_t)(i % EXPERTS);
    return (int32_t)i;
}

static void fill_operand(struct device *d, const struct operand_row *r, void *p, int64_t n,
                         enum dtype stored) {
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
        for (int64_t i = 0; i < n; i++) ((int32_t *)(void *)host)[i] = integer(r->name, i);
    }
}

/* Seconds of one call: the best of several, after one that does not count. */
static double time_row(struct device *d, enum op op, const void *sizes, enum dtype stored) {
    const struct op_row *row = op_row(op);
    int64_t counts[MOST_OPERANDS];
    size_t bytes[MOST_OPERANDS];
    void *p[MOST_OPERANDS];
    _Alignas(16) unsigned char args[512];
    memcpy(args, sizes, row->args_size);
    row->counts(sizes, counts);
    for (int i = 0; i < row->n_operands; i++) {
        bytes[i] = (size_t)counts[i] * operand_size(row->operands[i].type, stored);
        p[i] = device_reserve(d, bytes[i]);
        fill_operand(d, &row->operands[i], p[i], counts[i], stored);
        memcpy(args + row->operands[i].at, &p[i], sizeof p[i]);
    }
    double best = 1e9;
    const double end = now() + 0.2;
    for (int i = 0; i < 2 || (now() < end && i < 1000); i++) {
        const double t = now();
        device_run(d, op, stored, args);
        if (i > 0 && now() - t < best) best = now() - t;
    }
    for (int i = 0; i < row->n_operands; i++) device_release(d, p[i], bytes[i]);
    return best;
}

int bench(enum dtype stored) {
    const char *threads = getenv("OMP_NUM_THREADS");
    struct device d;
    device_cpu(&d, threads && atoi(threads) > 0 ? atoi(threads) : 1, false);
    printf("%d thread%s (OMP_NUM_THREADS); %s; the work and traffic that ops.def counts\n",
           d.threads, d.threads > 1 ? "s" : "", dtype_name(stored));
    printf("%-22s %10s %10s %10s %10s\n", "operation", "ms", "GFLOP/s", "GB/s", "plain ms");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct op_row *row = op_row(rows[i].op);
        d.plain = false;
        memset(d.count, 0, sizeof d.count);
        const double fast = time_row(&d, rows[i].op, rows[i].args, stored);
        const struct op_count *count = &d.count[rows[i].op];
        const double calls = (double)count->calls, work = count->work / calls,
                     bytes = count->bytes / calls;
        d.plain = true;
        const double plain = time_row(&d, rows[i].op, rows[i].args, stored);
        printf("%-22s %10.3f %10.2f %10.2f %10.3f\n", row->name, 1e3 * fast, 1e-9 * work / fast,
               1e-9 * bytes / fast, 1e3 * plain);
        fflush(stdout);
    }
    return 0;
}
