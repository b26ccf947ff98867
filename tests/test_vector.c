/* vector.h: its functions at every level of the processor against the exact values, over floats of
 * every sign and exponent: every 251st, or with LONG=1 all of them; and sums of many vectors at
 * once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/table.h"
#include "kernels/dtype.h"

typedef void (*maths)(int which, const float *x, float *y, int64_t n);

/* clang-format off */
#if defined __x86_64__
void vector_maths_v3_f32(int which, const float *x, float *y, int64_t n);
void vector_maths_v4_f32(int which, const float *x, float *y, int64_t n);
void vector_maths_v3_bf16(int which, const float *x, float *y, int64_t n);
void vector_maths_v4_bf16(int which, const float *x, float *y, int64_t n);
void vector_maths_v4bf16_bf16(int which, const float *x, float *y, int64_t n);
static const struct { int level; maths f32, bf16; } levels[] = {
    {CPU_V3, vector_maths_v3_f32, vector_maths_v3_bf16}, {CPU_V4, vector_maths_v4_f32, vector_maths_v4_bf16},
    {CPU_V4_BF16, vector_maths_v4_f32, vector_maths_v4bf16_bf16}};
#else
void vector_maths_native_f32(int which, const float *x, float *y, int64_t n);
void vector_maths_native_bf16(int which, const float *x, float *y, int64_t n);
static const struct { int level; maths f32, bf16; } levels[] = {
    {CPU_NATIVE, vector_maths_native_f32, vector_maths_native_bf16}};
#endif
/* clang-format on */
enum { N_LEVELS = sizeof levels / sizeof *levels, BLOCK = 4096 };

static double exact_log(double x) {
    return log(x);
}
static double exact_exp(double x) {
    return exp(x);
}
static double exact_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double exact_silu(double x) {
    return x / (1 + exp(-x));
}
static double exact_softplus(double x) {
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static const struct {
    const char *name;
    double (*exact)(double);
    double most; /* allowed, in units in the last place of the exact value */
    int lowest;  /* below 2^lowest the unit stays what it is there */
} functions[] = {{"exp", exact_exp, 1.3, -126},
                 {"log", exact_log, 0.9, -126},
                 {"sigmoid", exact_sigmoid, 3.2, -126},
                 {"silu", exact_silu, 3.7, -119}, /* -104 times a sigmoid that is not normal */
                 {"softplus", exact_softplus, 2.4, -126}};

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* |y - exact| in units in the last place of floats near `exact`. */
static double units(float y, double exact, int lowest) {
    if (isnan(exact)) return isnan(y) ? 0 : INFINITY;
    const float nearest = (float)exact;
    if (y == nearest) return 0;
    if (isnan(y) || isinf(y)) return INFINITY;
    int e;
    frexp(exact, &e);
    return fabs((double)y - exact) / ldexp(1, (e <= lowest ? lowest + 1 : e) - 24);
}

/* Floats number i * stride + ... of all, in blocks. */
static void fill(float *x, uint64_t first, uint32_t stride) {
    for (int i = 0; i < BLOCK; i++) {
        const uint64_t u = first + (uint64_t)i * stride;
        x[i] = from_bits(u > UINT32_MAX ? 0x7fc00000 : (uint32_t)u);
    }
}

static uint32_t stride_wanted(void) {
    return getenv("LONG") ? 1 : 251;
}

static void near_the_exact_value(void **state) {
    const int which = *(const int *)*state;
    const uint32_t stride = stride_wanted();
    double worst[N_LEVELS] = {0};
    float at[N_LEVELS] = {0};
    for (uint64_t first = 0; first <= UINT32_MAX; first += (uint64_t)BLOCK * stride) {
        static float x[BLOCK], y[BLOCK];
        static double exact[BLOCK];
        fill(x, first, stride);
        for (int i = 0; i < BLOCK; i++) exact[i] = functions[which].exact((double)x[i]);
        for (int k = 0; k < N_LEVELS; k++) {
            if (levels[k].level > cpu_best_level()) continue;
            levels[k].f32(which, x, y, BLOCK);
            for (int i = 0; i < BLOCK; i++) {
                const double error = units(y[i], exact[i], functions[which].lowest);
                if (error > worst[k]) worst[k] = error, at[k] = x[i];
            }
        }
    }
    for (int k = 0; k < N_LEVELS; k++) {
        printf("%s, %s: %.2f units at %.9g\n", functions[which].name,
               cpu_level_name(levels[k].level), worst[k], (double)at[k]);
        if (worst[k] > functions[which].most)
            fail_msg("%s is off by %g units at %.9g", functions[which].name, worst[k], (double)at[k]);
    }
}

/* To BF16 and back, against dtype.h; the instruction takes denormals to zero. */
static void rounds_to_bf16(void **state) {
    (void)state;
    const uint32_t stride = stride_wanted();
    for (uint64_t first = 0; first <= UINT32_MAX; first += (uint64_t)BLOCK * stride) {
        static float x[BLOCK], y[BLOCK], expected[BLOCK];
        static uint16_t low[BLOCK];
        fill(x, first, stride);
        dtype_convert(low, BF16, x, F32, BLOCK);
        dtype_convert(expected, F32, low, BF16, BLOCK);
        for (int k = 0; k < N_LEVELS; k++) {
            if (levels[k].level > cpu_best_level()) continue;
            levels[k].bf16(5, x, y, BLOCK);
            for (int i = 0; i < BLOCK; i++) {
                const bool both = isnan(y[i]) && isnan(expected[i]);
                const bool flushed = y[i] == 0 && !isnormal(x[i]);
                if (y[i] != expected[i] && !both && !flushed)
                    fail_msg("%.9g became %.9g", (double)x[i], (double)y[i]);
            }
        }
    }
}

/* Sums of many vectors at once have the bits of each alone, and each is about what it should be. */
static void sums_at_once(void **state) {
    (void)state;
    static float x[BLOCK], one[BLOCK], all[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        x[i] = (float)sin(i * 1.7) * (i % 19 ? 1.0f : 1e-4f) * (float)(i + 1);
    for (int k = 0; k < N_LEVELS; k++) {
        if (levels[k].level > cpu_best_level()) continue;
        for (int i = 0; i < BLOCK; i++) one[i] = all[i] = NAN;
        levels[k].f32(6, x, one, BLOCK);
        levels[k].f32(7, x, all, BLOCK);
        int vectors = 0;
        while (vectors < BLOCK && !isnan(one[vectors])) vectors++;
        assert_in_range(vectors, BLOCK / 16, BLOCK / 4);
        assert_memory_equal(one, all, sizeof one);
        for (int v = 0, lanes = BLOCK / vectors; v < vectors; v++) {
            double sum = 0, size = 0;
            for (int i = 0; i < lanes; i++) {
                sum += (double)x[v * lanes + i];
                size += fabs((double)x[v * lanes + i]);
            }
            if (fabs(sum - (double)one[v]) > 1e-6 * size)
                fail_msg("%s: sum %d is %.9g, not %.9g", cpu_level_name(levels[k].level), v,
                         (double)one[v], sum);
        }
    }
}

int main(void) {
    enum { N = sizeof functions / sizeof *functions };
    static int which[N];
    struct CMUnitTest tests[N + 2];
    for (int i = 0; i < N; i++) {
        which[i] = i;
        tests[i] = (struct CMUnitTest){functions[i].name, near_the_exact_value, NULL, NULL, &which[i]};
    }
    tests[N] = (struct CMUnitTest)cmocka_unit_test(rounds_to_bf16);
    tests[N + 1] = (struct CMUnitTest)cmocka_unit_test(sums_at_once);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
