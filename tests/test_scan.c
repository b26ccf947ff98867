/* The scan by blocks where tests/test_ops.c does not reach: dt that is chosen, so that decays of 0
 * and of almost 1 stand side by side, documents at chosen places, rows of many blocks. The float
 * versions by vectors against the definition in double; that in float has sums of a row of tokens,
 * and is not as exact. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/table.h"
#include "kernels/die.h"
#include "kernels/scan_split.h"
#include "tests/operands.h"

enum { L = 333, H = 4, P = 10, G = 2, S = 20, Q = 72, CHUNKS = (L + Q - 1) / Q };
enum { WIDE = H * P + 2 * G * S, STATE = H * P * S };
/* Operands, inputs first. */
enum { U, DT, A_LOG, D, BIAS, BEFORE, DY, DAFTER, N_IN };
enum { Y = N_IN, STATES, AFTER, DU, DDT, DA_LOG, DD, DBIAS, DBEFORE, N_ALL };
static const int64_t size[N_ALL] = {
    L * WIDE,      L *H,  H,       H,    H, STATE, L *H *P, STATE, L *H *P,
    CHUNKS *STATE, STATE, L *WIDE, L *H, H, H,     H,       STATE};
static const char *const name[N_ALL] = {
    "u",      "dt",        "a_log", "d",   "dt_bias", "state_in", "dy",       "dstate_out", "y",
    "states", "state_out", "du",    "ddt", "da_log",  "dd",       "ddt_bias", "dstate_in"};

struct numbers {
    enum dtype real;
    void *of[N_ALL];
};

static void numbers_make(struct numbers *x, enum dtype real, double *const *in) {
    x->real = real;
    for (int i = 0; i < N_ALL; i++) {
        x->of[i] = die_alloc((uint64_t)size[i] * dtype_size(real));
        if (i < N_IN) dtype_convert(x->of[i], real, in[i], F64, (size_t)size[i]);
    }
}

static void numbers_free(struct numbers *x) {
    for (int i = 0; i < N_ALL; i++) free(x->of[i]);
}

static void forward(struct device *d, struct numbers *x, const int32_t *start, void *y,
                    void *states) {
    void **of = x->of;
    DEVICE_RUN(d, scan, x->real, .u = of[U], .dt = of[DT], .a_log = of[A_LOG], .d = of[D],
               .dt_bias = of[BIAS], .start = start, .state_in = of[BEFORE], .y = y,
               .states = states, .state_out = of[AFTER], .B = 1, .L = L, .H = H, .P = P, .G = G,
               .S = S, .Q = Q, .lddt = H, .dt_max = INFINITY);
}

static void both_ways(struct device *d, struct numbers *x, const int32_t *start) {
    void **of = x->of, *y = die_alloc((uint64_t)size[Y] * dtype_size(x->real));
    forward(d, x, start, y, NULL);
    forward(d, x, start, of[Y], of[STATES]);
    if (memcmp(y, of[Y], (size_t)size[Y] * dtype_size(x->real)) != 0)
        fail_msg("%s: other bits where states are kept", cpu_level_name(d->level));
    free(y);
    void *scratch = die_alloc((uint64_t)scan_split(1, L, H, P, G, S, Q).all * dtype_size(x->real));
    DEVICE_RUN(d, scan_adjoint, x->real, .u = of[U], .dt = of[DT], .a_log = of[A_LOG], .d = of[D],
               .dt_bias = of[BIAS], .start = start, .states = of[STATES], .dy = of[DY],
               .dstate_out = of[DAFTER], .du = of[DU], .ddt = of[DDT], .da_log = of[DA_LOG],
               .dd = of[DD], .ddt_bias = of[DBIAS], .dstate_in = of[DBEFORE], .scratch = scratch,
               .B = 1, .L = L, .H = H, .P = P, .G = G, .S = S, .Q = Q, .lddt = H,
               .dt_max = INFINITY);
    free(scratch);
}

/* The largest difference, relative to the largest entry. */
static double error(const double *exact, const float *found, int64_t n) {
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs(exact[i] - (double)found[i]);
        largest = fmax(largest, fabs(exact[i]));
        worst = isfinite((double)found[i]) ? fmax(worst, d) : INFINITY;
    }
    return worst / (largest + 1e-30);
}

static void compare(double *const *in, const int32_t *start) {
    struct numbers exact, fast;
    struct device d;
    device_cpu(&d, 2, false);
    numbers_make(&exact, F64, in);
    both_ways(&d, &exact, start);
    for (int level = cpu_best_level(); level > CPU_PLAIN; level--) {
        d.level = level;
        numbers_make(&fast, F32, in);
        both_ways(&d, &fast, start);
        for (int i = N_IN; i < N_ALL; i++) {
            const double e = error(exact.of[i], fast.of[i], size[i]);
            if (getenv("SHOW")) printf("%s %s %.1e\n", cpu_level_name(level), name[i], e);
            if (!(e < 1e-5)) fail_msg("%s of %s: %.3g", name[i], cpu_level_name(level), e);
        }
        numbers_free(&fast);
    }
    numbers_free(&exact);
}

/* dt[t,h] by a rule, numbers else; documents begin where the rule says. */
static void with_rule(double (*dt)(int t, int h), bool (*begins)(int t)) {
    double *in[N_IN];
    int32_t start[L];
    for (int i = 0; i < N_IN; i++) in[i] = random_reals(size[i], (uint64_t)i + 1);
    for (int t = 0; t < L; t++) {
        start[t] = begins(t) ? t : t > 0 ? start[t - 1] : -3;
        for (int h = 0; h < H; h++) in[DT][t * H + h] = dt(t, h);
    }
    /* Numbers that float holds, for both. */
    for (int i = 0; i < N_IN; i++)
        for (int64_t j = 0; j < size[i]; j++) in[i][j] = (double)(float)in[i][j];
    compare(in, start);
    for (int i = 0; i < N_IN; i++) free(in[i]);
}

static double tiny(int t, int h) {
    return -12 - t % 3 - h;
}

static double usual(int t, int h) {
    return -3 + 2 * random_real(9, t * H + h);
}

static double huge(int t, int h) {
    return 1e6 + t + h;
}

/* The sum of what came before is large and the next decay is almost 1. */
static double side_by_side(int t, int h) {
    return t % 7 == h ? 300 : t % 5 == 0 ? -20 : -4;
}

static bool never(int t) {
    return t < 0;
}

static bool always(int t) {
    return t >= 0;
}

/* First and last places of blocks and chunks, and within. */
static bool here_and_there(int t) {
    return t == 31 || t == 32 || t == 72 || t == 80 || t == 81 || t == 143 || t == 200 || t == 332;
}

static void decays(void **state) {
    (void)state;
    double (*const rules[])(int, int) = {tiny, usual, huge, side_by_side};
    for (int i = 0; i < 4; i++) {
        with_rule(rules[i], never);
        with_rule(rules[i], here_and_there);
        with_rule(rules[i], always);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(decays)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("%d passed, %d failed\n", 1 - failed, failed);
    return failed != 0;
}
