/* exact.h: any order and any cut give the same bits, and the one rounding is right. */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/exact.h"

static uint64_t seed = 1;

static uint64_t next(void) {
    seed += 0x9e3779b97f4a7c15;
    uint64_t x = seed;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

static void assert_bits(double got, double want) {
    if (isnan(want)) {
        assert_true(isnan(got));
        return;
    }
    if (memcmp(&got, &want, sizeof got) != 0)
        fail_msg("got %.17g (%a), want %.17g (%a)", got, got, want, want);
}

static double sum_of(const double *x, int n) {
    struct exact s = {0};
    for (int i = 0; i < n; i++) exact_add(&s, x[i]);
    return exact_value(&s);
}

#define SUM(...)                                                                                   \
    sum_of((const double[]){__VA_ARGS__}, sizeof((double[]){__VA_ARGS__}) / sizeof(double))

static void test_known(void **state) {
    (void)state;
    const double tiny = 0x1p-1074, max = DBL_MAX, eps = 0x1p-52;
    struct exact empty = {0};
    assert_bits(exact_value(&empty), 0.0);
    assert_bits(SUM(1e308, 1.0, -1e308), 1.0);
    assert_bits(SUM(tiny, 1e300, -1e300), tiny);
    assert_bits(SUM(-tiny, max, tiny, -max, -tiny), -tiny);
    assert_bits(SUM(max, max, -max), max);
    assert_bits(SUM(max, max), INFINITY);
    assert_bits(SUM(-max, -max), -INFINITY);
    assert_bits(SUM(max, 0x1p969), max);      /* a quarter of the last place */
    assert_bits(SUM(max, 0x1p970), INFINITY); /* half of it: the tie goes to the even one */
    assert_bits(SUM(1.0, eps / 2), 1.0);
    assert_bits(SUM(1.0, eps / 2, tiny), 1.0 + eps);
    assert_bits(SUM(1.0 + eps, eps / 2), 1.0 + 2 * eps);
    assert_bits(SUM(1.0 + eps, eps / 2, -tiny), 1.0 + eps);
    assert_bits(SUM(-1.0, -eps / 2, -tiny), -1.0 - eps);
    assert_bits(SUM(0.1, 0.2, -0.3), 0x1p-55);
    assert_bits(SUM(0x1p-1022, -tiny), 0x0.fffffffffffffp-1022);
    assert_bits(SUM(1.0, INFINITY, max), INFINITY);
    assert_bits(SUM(1.0, -INFINITY), -INFINITY);
    assert_bits(SUM(INFINITY, -INFINITY), NAN);
    assert_bits(SUM(1.0, NAN, INFINITY), NAN);
}

static void test_squares(void **state) {
    (void)state;
    const double one[] = {0x1p-1074, DBL_MAX, 0x1p-537, 1.0 + 0x1p-52, -3.0};
    for (int i = 0; i < 5; i++) {
        struct exact s = {0};
        exact_add_squares_f64(&s, one + i, 1);
        assert_bits(exact_value(&s), one[i] * one[i]);
    }
    /* 4^k smallest doubles squared come to exist again; the sum is of numbers that all vanish in
     * double. */
    struct exact s = {0};
    double small = 0x1p-540;
    for (int i = 0; i < 64; i++) exact_add_squares_f64(&s, &small, 1);
    assert_bits(exact_value(&s), 0x1p-1074);
    /* (1 + e)^2 - 1 - 2e = e^2 is left, with nothing lost. */
    struct exact t = {0};
    double x = 1.0 + 0x1p-52;
    exact_add_squares_f64(&t, &x, 1);
    exact_add(&t, -1.0);
    exact_add(&t, -0x1p-51);
    assert_bits(exact_value(&t), 0x1p-104);
    struct exact u = {0};
    const float f[] = {3.0f, -4.0f, 0x1p-149f, FLT_MAX, -FLT_MAX};
    exact_add_squares_f32(&u, f, 5);
    exact_add(&u, -2.0 * FLT_MAX * FLT_MAX);
    assert_bits(exact_value(&u), 25.0);
    const float special[] = {1, -INFINITY, 2};
    struct exact v = {0};
    exact_add_squares_f32(&v, special, 3);
    assert_bits(exact_value(&v), INFINITY);
    struct exact w = {0};
    exact_add_array_f32(&w, special, 3);
    assert_bits(exact_value(&w), -INFINITY);
}

/* Within reach of __float128 (113 bits) its sum is exact, and the conversion rounds once. */
static void test_against_quad(void **state) {
    (void)state;
    for (int round = 0; round < 2000; round++) {
        struct exact s = {0};
        __float128 want = 0;
        int n = 1 + (int)(next() % 50), spread = 1 + (int)(next() % 50);
        for (int i = 0; i < n; i++) {
            double x =
                ldexp((double)((int64_t)next() >> 11), (int)(next() % (uint64_t)spread) - 80);
            exact_add(&s, x);
            want += x;
        }
        assert_bits(exact_value(&s), (double)want);
        struct exact q = {0};
        want = 0;
        for (int i = 0; i < 20; i++) {
            double x =
                ldexp((double)((int64_t)next() >> 12), (int)(next() % 2) - 600 * (round % 2));
            exact_add_squares_f64(&q, &x, 1);
            want += (__float128)x * x;
        }
        assert_bits(exact_value(&q), (double)want);
    }
    /* results that are subnormal, in all positions of the cut */
    for (int round = 0; round < 5000; round++) {
        double x = ldexp((double)((int64_t)next() >> 11), -1074 - 60 + (int)(next() % 60));
        double y = ldexp((double)((int64_t)next() >> 11), -1074 - 10 + (int)(next() % 10));
        assert_bits(SUM(x, y, 0x1p-1000, -0x1p-1000), x + y);
    }
    for (int round = 0; round < 5000; round++) {
        int e = -1080 + (int)(next() % 20);
        double a = ldexp(1.0 + (double)(next() % 1024) / 1024, e / 2),
               want = ldexp(ldexp(a, 600) * ldexp(a, 600), -1200);
        struct exact s = {0};
        exact_add_squares_f64(&s, &a, 1);
        assert_bits(exact_value(&s), want);
    }
}

static void shuffle(float *x, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(next() % (uint64_t)(i + 1));
        float t = x[i];
        x[i] = x[j];
        x[j] = t;
    }
}

static void assert_same(struct exact *a, struct exact *b) {
    exact_normalise(a);
    exact_normalise(b);
    assert_memory_equal(a, b, sizeof *a);
}

static void test_order(void **state) {
    (void)state;
    enum { N = 300000 };
    float *x = die_alloc(N * sizeof *x);
    double *wide = die_alloc(N * sizeof *wide);
    for (int i = 0; i < N; i++) {
        uint32_t u = (uint32_t)next();
        if ((u >> 23 & 255) == 255) u &= 0xbfffffff; /* finite, all magnitudes */
        memcpy(x + i, &u, sizeof u);
    }
    struct exact plain = {0}, squares = {0};
    for (int i = 0; i < N; i++) {
        double square = (double)x[i] * x[i];
        exact_add(&plain, x[i]);
        exact_add(&squares, square);
    }
    for (int round = 0; round < 6; round++) {
        struct exact a = {0}, b = {0}, c = {0}, d = {0};
        if (round > 0) shuffle(x, N);
        for (int i = 0; i < N; i++) wide[i] = x[i];
        omp_set_num_threads(1 + round % 4);
        exact_add_array_f32(&a, x, N);
        exact_add_squares_f32(&b, x, N);
        exact_add_array_f64(&c, wide, N);
        exact_add_squares_f64(&d, wide, N);
        assert_same(&a, &plain);
        assert_same(&c, &plain);
        assert_same(&b, &squares);
        assert_same(&d, &squares);
        struct exact pieces[7];
        memset(pieces, 0, sizeof pieces);
        for (int at = 0, k = 0; at < N; k++) {
            int n = 1 + (int)(next() % 40000);
            if (n > N - at) n = N - at;
            exact_add_array_f32(&pieces[k % 7], x + at, n);
            at += n;
        }
        for (int k = 1; k < 7; k++) exact_merge(&pieces[0], &pieces[k]);
        assert_same(&pieces[0], &plain);
    }
    x[N / 2] = NAN;
    struct exact s = {0};
    exact_add_array_f32(&s, x, N);
    assert_true(isnan(exact_value(&s)));
    free(x);
    free(wide);
}

/* Carries before limbs overflow: the same number as often as a limb would hold it. */
static void test_many(void **state) {
    (void)state;
    struct exact s = {0}, t = {0};
    exact_add(&s, -0x1.fffffffffffffp+30);
    for (int k = 0; k < 60; k++) { /* s doubles: 2^60 additions */
        t = s;
        exact_merge(&s, &t);
    }
    assert_bits(exact_value(&s), -0x1.fffffffffffffp+90);
    struct exact up = {0};
    for (int i = 0; i < 1 << 20; i++) exact_add(&up, i % 2 ? 0.1 : -0.1);
    assert_bits(exact_value(&up), 0.0);
}

static void test_speed(void **state) {
    (void)state;
    enum { N = 1 << 22 };
    float *x = die_alloc(N * sizeof *x);
    double *wide = die_alloc(N * sizeof *wide);
    for (int i = 0; i < N; i++) wide[i] = x[i] = (float)((double)(int64_t)next() * 0x1p-63);
    omp_set_num_threads(1);
    for (int k = 0; k < 4; k++) {
        struct exact s = {0};
        clock_t t = clock();
        if (k == 0) exact_add_array_f32(&s, x, N);
        else if (k == 1) exact_add_squares_f32(&s, x, N);
        else if (k == 2) exact_add_array_f64(&s, wide, N);
        else exact_add_squares_f64(&s, wide, N);
        static const char *const names[] = {"f32", "squares f32", "f64", "squares f64"};
        print_message("exact %s: %.0f M/s on one thread\n", names[k],
                      N * 1e-6 / ((double)(clock() - t) / CLOCKS_PER_SEC));
    }
    free(x);
    free(wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),        cmocka_unit_test(test_squares),
        cmocka_unit_test(test_against_quad), cmocka_unit_test(test_order),
        cmocka_unit_test(test_many),         cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
