/* dtype.h: every value of the 16-bit formats there and back, and rounding against its definition.
 * */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/dtype.h"

enum { ALL = 65536 };

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The value of a 16-bit number with e bits of exponent, from its definition; finite ones only. */
static double value16(uint16_t h, int e) {
    int m = 15 - e, bias = (1 << (e - 1)) - 1, field = h >> m & ((1 << e) - 1),
        low = h & ((1 << m) - 1);
    double v = field ? ldexp((1 << m) + low, field - bias - m) : ldexp(low, 1 - bias - m);
    return h >> 15 ? -v : v;
}

static int exponent_bits(enum dtype d) {
    return d == BF16 ? 8 : 5;
}

static uint16_t infinity16(enum dtype d) {
    return d == BF16 ? 0x7f80 : 0x7c00;
}

static void test_round_trip(void **state) {
    (void)state;
    static uint16_t in[ALL], out[ALL];
    static float f32[ALL];
    static double f64[ALL];
    for (int i = 0; i < ALL; i++) in[i] = (uint16_t)i;
    for (int k = 0; k < 2; k++) {
        enum dtype d = k ? F16 : BF16;
        dtype_convert(f32, F32, in, d, ALL);
        memset(out, 0, sizeof out);
        dtype_convert(out, d, f32, F32, ALL);
        assert_memory_equal(in, out, sizeof in);
        dtype_convert(f64, F64, in, d, ALL);
        memset(out, 0, sizeof out);
        dtype_convert(out, d, f64, F64, ALL);
        assert_memory_equal(in, out, sizeof in);
        for (int i = 0; i < ALL; i++) {
            uint16_t a = (uint16_t)(i & 0x7fff);
            if (a > infinity16(d)) {
                assert_true(isnan(f32[i]) && isnan(f64[i]));
            } else if (a == infinity16(d)) {
                assert_true(isinf(f32[i]) && !signbit(f32[i]) == (i < 0x8000));
            } else {
                assert_true(f32[i] == value16(in[i], exponent_bits(d)) &&
                            !signbit(f32[i]) == (i < 0x8000));
                assert_true(f64[i] == f32[i] && !signbit(f64[i]) == (i < 0x8000));
            }
        }
    }
}

static void test_f32_by_f64(void **state) {
    (void)state;
    enum { N = 1 << 16 };
    static uint32_t in[N], out[N];
    static double f64[N];
    for (uint32_t block = 0; block < 64; block++) {
        for (uint32_t i = 0; i < N; i++) in[i] = (block * N + i) * 1021u + block;
        if (block == 0)
            for (uint32_t i = 0; i < 1024; i++)
                in[i] = 0x7f800000 + (i % 512) * 8193 + (i / 512 << 31);
        dtype_convert(f64, F64, in, F32, N);
        dtype_convert(out, F32, f64, F64, N);
        assert_memory_equal(in, out, sizeof in);
    }
}

/* Nearest, ties to the even one, beyond the largest by half a step to infinity: found among the
 * neighbours. */
static void check_rounding(uint32_t u, enum dtype d) {
    float x = from_bits(u);
    uint16_t got, a, inf = infinity16(d);
    dtype_convert(&got, d, &x, F32, 1);
    assert_int_equal(got >> 15, u >> 31);
    a = got & 0x7fff;
    int e = exponent_bits(d);
    double want = fabs((double)x), step = value16(inf - 1, e) - value16(inf - 2, e);
    double largest = value16(inf - 1, e);
    if (a == inf) {
        assert_true(want >= largest + step / 2);
        return;
    }
    assert_true(a < inf);
    double here = value16(a, e), above = a + 1 == inf ? largest + step : value16(a + 1, e);
    double below = a ? value16(a - 1, e) : -above;
    assert_true(fabs(want - here) <= fabs(above - want));
    assert_true(fabs(want - here) <= fabs(want - below));
    if (want - here == above - want || want - here == below - want) assert_int_equal(a & 1, 0);
}

static void test_rounding(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        enum dtype d = k ? F16 : BF16;
        for (uint32_t h = 0; h < ALL; h++) {
            float x;
            uint16_t h16 = (uint16_t)h;
            if ((h & 0x7fff) >= infinity16(d)) continue;
            dtype_convert(&x, F32, &h16, d, 1);
            /* around the value and around the middle to the next one */
            uint32_t u = bits(x), half = d == BF16 ? 0x8000 : 0x1000;
            for (uint32_t off = 0; off < 2; off++)
                for (uint32_t j = 0; j < 3; j++) {
                    uint32_t v = u + off * half + j - 1;
                    if ((v & 0x7fffffff) < 0x7f800000 && v >> 31 == u >> 31) check_rounding(v, d);
                }
        }
        for (uint32_t i = 0; i < 1u << 20; i++) {
            uint32_t v = i * 4099u;
            if ((v & 0x7fffffff) < 0x7f800000) check_rounding(v, d);
        }
        /* the ties below the smallest f16, where one unit of f32 decides */
        for (uint32_t h = 0; h < 1024; h++)
            for (int j = -1; j < 2; j++)
                check_rounding(bits((float)ldexp(2 * h + 1, -25)) + (uint32_t)j, d);
    }
}

static void test_nan(void **state) {
    (void)state;
    /* Payloads that narrowing would cut to nothing stay NaN and become quiet; infinities stay. */
    static const uint32_t in[] = {0x7f800001, 0xff800001, 0x7f801fff,
                                  0x7fc00000, 0x7f800000, 0xff800000};
    uint16_t b[6], h[6];
    dtype_convert(b, BF16, in, F32, 6);
    dtype_convert(h, F16, in, F32, 6);
    static const uint16_t want_b[] = {0x7fc0, 0xffc0, 0x7fc0, 0x7fc0, 0x7f80, 0xff80};
    static const uint16_t want_h[] = {0x7e00, 0xfe00, 0x7e00, 0x7e00, 0x7c00, 0xfc00};
    assert_memory_equal(b, want_b, sizeof b);
    assert_memory_equal(h, want_h, sizeof h);
    uint64_t wide = 0x7ff0000000000001;
    uint32_t narrow;
    dtype_convert(&narrow, F32, &wide, F64, 1);
    assert_int_equal(narrow, 0x7fc00000);
    double big = 1e300, tiny = -1e-300;
    float f;
    dtype_convert(&f, F32, &big, F64, 1);
    assert_true(isinf(f));
    dtype_convert(&f, F32, &tiny, F64, 1);
    assert_true(f == 0 && signbit(f));
}

static void test_places(void **state) {
    (void)state;
    /* Any length and any alignment; nothing beyond the end is touched; formats in between go
     * through F32. */
    static const enum dtype real[] = {F32, F64, BF16, F16};
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++)
            for (size_t n = 0; n < 70; n++)
                for (size_t off = 0; off < 3; off++) {
                    size_t out = n * dtype_size(real[b]);
                    unsigned char from[8 * 70 + 3], to[8 * 70 + 4];
                    float one = 1.5f;
                    for (size_t i = 0; i < n; i++)
                        dtype_convert(from + off + i * dtype_size(real[a]), real[a], &one, F32, 1);
                    memset(to, 0x5a, sizeof to);
                    dtype_convert(to + off, real[b], from + off, real[a], n);
                    for (size_t i = 0; i < n; i++) {
                        float back;
                        dtype_convert(&back, F32, to + off + i * dtype_size(real[b]), real[b], 1);
                        assert_true(back == 1.5f);
                    }
                    assert_int_equal(to[off + out], 0x5a);
                    assert_true(off == 0 || to[off - 1] == 0x5a);
                }
    enum { N = 3000 }; /* more than one block of the way through F32 */
    static double in[N];
    static uint16_t bf16[N];
    for (int i = 0; i < N; i++) in[i] = i;
    dtype_convert(bf16, BF16, in, F64, N);
    for (int i = 0; i < N; i++) {
        float f = (float)i;
        uint16_t want;
        dtype_convert(&want, BF16, &f, F32, 1);
        assert_int_equal(bf16[i], want);
    }
}

static void test_names(void **state) {
    (void)state;
    static const char *const names[N_DTYPES] = {"F32", "F64", "BF16", "F16",     "I32",
                                                "I64", "U8",  "I8",   "I16",     "BOOL",
                                                "U16", "U32", "U64",  "F8_E4M3", "F8_E5M2"};
    static const size_t sizes[N_DTYPES] = {4, 8, 2, 2, 4, 8, 1, 1, 2, 1, 2, 4, 8, 1, 1};
    for (int d = 0; d < N_DTYPES; d++) {
        assert_string_equal(dtype_name(d), names[d]);
        assert_int_equal(dtype_parse(names[d]), d);
        assert_int_equal(dtype_size(d), sizes[d]);
        assert_int_equal(dtype_is_real(d), d < 4);
    }
    assert_int_equal(dtype_parse("f32"), -1);
    assert_int_equal(dtype_parse(""), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_f32_by_f64),
        cmocka_unit_test(test_rounding),   cmocka_unit_test(test_nan),
        cmocka_unit_test(test_places),     cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
