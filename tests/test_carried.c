/* States that rows carry from one call to the next: convolution, scan and attention in two parts
 * give the numbers and gradients of the whole. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "parallel/expert_parallel.h"
#include "parallel/tensor_parallel.h"
#include "tests/taping.h"

/* Rows of 2 * CUT tokens, whole and in two halves with the state handed on. The halves' results
 * are squared and added, so that both get gradients that depend on the values. */

enum { CUT = 4, CHANNELS = 3, TAPS = 4, HEADS = 2, DEPTH = 2, STATE = 3, MOST_WIDE = 16 };
enum { WIDE_SCAN = HEADS * DEPTH + 2 * STATE };

/* Tokens from..from+n of each row of x[ROWS][2 * CUT][width]. */
static struct tensor *part(struct bench *b, const double *x, int64_t width, int from, int n) {
    double v[ROWS * 2 * CUT * MOST_WIDE];
    for (int r = 0; r < ROWS; r++)
        memcpy(v + r * n * width, x + (r * 2 * CUT + from) * width, n * width * sizeof *x);
    return make_from(b, &b->t, "rrw", ROWS * n, width, v);
}

static struct batch part_batch(struct bench *b, int from, int n) {
    int32_t v[ROWS * 2 * CUT];
    for (int i = 0; i < ROWS * n; i++) v[i] = (i / n ? 1 : -2) - from; /* a cut document each */
    for (int i = 0; i < n; i++)
        if (from + i == 0) v[n + i] = 0;
    return (struct batch){
        .rows = ROWS, .length = n, .start = make_ints(b, &b->t, "rrw", ROWS * n, 1, v)};
}

/* Puts the gradient of a part into its place in the whole. */
static void gather_grad(struct bench *b, const struct tensor *x, int from, int n, double *whole) {
    double *g = grad_of(b, x);
    for (int r = 0; r < ROWS; r++)
        memcpy(whole + (r * 2 * CUT + from) * x->width, g + r * n * x->width,
               n * x->width * sizeof *g);
    free(g);
}

struct cut_found {
    double input[4][ROWS * 2 * CUT * MOST_WIDE], weight[4][64];
};

enum { CONV, SCAN, ATTENTION };

static void run_cut(int which, bool cut, struct cut_found *f) {
    struct bench b;
    static const int64_t widths[3][3] = {
        {CHANNELS}, {WIDE_SCAN, HEADS}, {HEADS * DEPTH, DEPTH, DEPTH}};
    struct tensor *in[2][4] = {{0}}, *state = NULL, *y = NULL;
    int parts = cut ? 2 : 1, n = 2 * CUT / parts;
    bench_open(&b, F64);
    struct param *w[3];
    static const int64_t rows[3][3] = {{CHANNELS, CHANNELS}, {HEADS, HEADS, HEADS}},
                         columns[3][3] = {{TAPS, 1}, {1, 1, 1}};
    for (int i = 0; i < 3 && rows[which][i]; i++)
        w[i] = make_param(&b, "-", rows[which][i], columns[which][i]);
    for (int p = 0; p < parts; p++) {
        struct batch batch = part_batch(&b, p * n, n);
        for (int i = 0; i < 3 && widths[which][i]; i++) {
            double *v = random_numbers(ROWS * 2 * CUT * widths[which][i], 50 + (uint64_t)i);
            in[p][i] = part(&b, v, widths[which][i], p * n, n);
            free(v);
        }
        struct tensor *u, *after = NULL;
        if (which == CONV) {
            u = conv(&b.t, &batch, in[p][0], w[0], w[1], state, &after);
        } else if (which == SCAN) {
            const struct scan_shape s = {HEADS, DEPTH, 1, STATE, 128, 0, INFINITY};
            struct tensor *real[3];
            for (int i = 0; i < 3; i++) real[i] = tape_use_real(&b.t, w[i], in[p][0]);
            u = scan(&b.t, &batch, &s, in[p][0], in[p][1], real[0], real[1], real[2], state,
                     &after);
        } else {
            u = attention(&b.t, &batch, in[p][0], in[p][1], in[p][2], DEPTH, p ? in[0][1] : NULL,
                          p ? in[0][2] : NULL);
        }
        state = after;
        u = relu2(&b.t, u);
        y = y ? add(&b.t, y, u) : u;
    }
    tape_backward(&b.t, y, 1, MASK_ALL);
    for (int i = 0; i < 3 && widths[which][i]; i++)
        for (int p = 0; p < parts; p++) gather_grad(&b, in[p][i], p * n, n, f->input[i]);
    for (int i = 0; i < 3 && rows[which][i]; i++)
        get(&b, w[i]->grad, F64, rows[which][i] * columns[which][i], f->weight[i]);
    bench_close(&b);
}

static void cut_rows(void **state) {
    (void)state;
    static const char *const name[] = {"conv", "scan", "attention"};
    for (int which = 0; which < 3; which++) {
        static struct cut_found whole, parts;
        memset(&whole, 0, sizeof whole);
        memset(&parts, 0, sizeof parts);
        run_cut(which, false, &whole);
        run_cut(which, true, &parts);
        for (int i = 0; i < 4; i++) {
            same(parts.input[i], whole.input[i], ROWS * 2 * CUT * MOST_WIDE, name[which]);
            same(parts.weight[i], whole.weight[i], 64, name[which]);
        }
        double sum = 0;
        for (int i = 0; i < ROWS * 2 * CUT; i++) sum += fabs(whole.input[0][i]);
        assert_true(sum > 0);
    }
}

/* A state that alone is used: its gradient comes through state_out. */
static void state_only(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct batch batch = make_batch(&b, &b.t, LENGTH, 0);
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, CHANNELS), *after = NULL;
    struct param *w = make_param(&b, "-", CHANNELS, TAPS);
    conv(&b.t, &batch, x, w, NULL, NULL, &after);
    tape_backward(&b.t, after, 1, MASK_ALL);
    double want[TOKENS * CHANNELS], dw[CHANNELS * TAPS];
    for (int i = 0; i < TOKENS * CHANNELS; i++) /* the last TAPS - 1 tokens of each row are kept */
        want[i] = i / CHANNELS % LENGTH >= LENGTH - (TAPS - 1);
    expect_grad(&b, x, want);
    get(&b, w->grad, F64, CHANNELS * TAPS, dw);
    for (int i = 0; i < CHANNELS * TAPS; i++) assert_true(dw[i] == 0);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cut_rows),
        cmocka_unit_test(state_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
