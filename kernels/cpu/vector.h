/* vector: what kernels by vectors are written with: LANES floats at a time, loads and stores of
 * stored numbers (float or BF16), and exponentials and logarithms without calls.
 *
 * Vectors are those of gcc and clang (v[i], +, *, comparisons), so one text serves AVX-512, AVX2
 * and processors that are neither. Every vector_*.c is compiled several times: see
 * kernels/cpu/table.h for the levels. Sums of lanes are added in one order, so results do not
 * depend on threads; they do differ between levels, to rounding.
 *
 * Errors in units in the last place, at most, over all floats and all levels, measured by
 * tests/test_vector.c: exp 1.3, log 0.9, sigmoid 3.2, silu 3.7, softplus 2.4. */
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H

#include <string.h>

#if defined __AVX512F__
#include <immintrin.h>
#endif

#include "kernels/cpu/kernel.h"
#include "kernels/die.h"

#if defined __AVX512F__
enum { LANES = 16 };
#define COUNTING ((vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif defined __AVX__
enum { LANES = 8 };
#define COUNTING ((vi){0, 1, 2, 3, 4, 5, 6, 7})
#else
enum { LANES = 4 };
#define COUNTING ((vi){0, 1, 2, 3})
#endif

/* Where a size is a constant for the callers, and vectors are to stay in registers. */
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

static inline vf vf_all(float x) {
    return x - (vf){0}; /* x + 0 is not x where x is -0, and would be computed */
}

/* ---- between vectors and memory, any alignment ---- */

static inline vf load_real(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store_real(float *p, vf v) {
    memcpy(p, &v, sizeof v);
}

/* The first n lanes, 0 <= n < LANES; the others are zero. */
static inline vf load_real_n(const float *p, int64_t n) {
#if defined __AVX512F__
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v = {0};
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
#endif
}

static inline void store_real_n(float *p, vf v, int64_t n) {
#if defined __AVX512F__
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    memcpy(p, &v, (size_t)n * sizeof *p);
#endif
}

static inline vf vf_of_bf16(vh h) {
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

/* To nearest, ties to even; a NaN stays one. (The BF16 instruction
 * also takes denormals to zero.) */
static inline vh bf16_of_vf(vf v) {
#if defined __AVX512BF16__
    __m256bh b = _mm512_cvtneps_pbh((__m512)v);
    vh h;
    memcpy(&h, &b, sizeof h);
    return h;
#else
    vu u = (vu)v;
    vu r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    vi nan = v != v;
    r = ((vu)nan & (u >> 16 | 0x40)) | (~(vu)nan & r);
    return __builtin_convertvector(r, vh);
#endif
}

#if defined STORED_BF16

static inline vf load(const stored *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return vf_of_bf16(h);
}

static inline void store(stored *p, vf v) {
    vh h = bf16_of_vf(v);
    memcpy(p, &h, sizeof h);
}

static inline vf load_n(const stored *p, int64_t n) {
#if defined __AVX512BW__ && defined __AVX512VL__
    return vf_of_bf16((vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
#else
    vh h = {0};
    memcpy(&h, p, (size_t)n * sizeof *p);
    return vf_of_bf16(h);
#endif
}

static inline void store_n(stored *p, vf v, int64_t n) {
    vh h = bf16_of_vf(v);
#if defined __AVX512BW__ && defined __AVX512VL__
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)h);
#else
    memcpy(p, &h, (size_t)n * sizeof *p);
#endif
}

static inline float get(const stored *p) {
    uint32_t u = (uint32_t)p->bits << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline void set(stored *p, float x) {
    store_n(p, vf_all(x), 1);
}

#else

static inline vf load(const stored *p) {
    return load_real(p);
}

static inline void store(stored *p, vf v) {
    store_real(p, v);
}

static inline vf load_n(const stored *p, int64_t n) {
    return load_real_n(p, n);
}

static inline void store_n(stored *p, vf v, int64_t n) {
    store_real_n(p, v, n);
}

static inline float get(const stored *p) {
    return *p;
}

static inline void set(stored *p, float x) {
    *p = x;
}

#endif

/* To an ADD operand: what was there is read only if it is added to. */
static inline void put(stored *p, vf v, int add) {
    store(p, add ? load(p) + v : v);
}

static inline void put_n(stored *p, vf v, int64_t n, int add) {
    store_n(p, add ? load_n(p, n) + v : v, n);
}

static inline void put_real(float *p, vf v, int add) {
    store_real(p, add ? load_real(p) + v : v);
}

static inline void put_real_n(float *p, vf v, int64_t n, int add) {
    store_real_n(p, add ? load_real_n(p, n) + v : v, n);
}

/* The next LANES numbers of n that are left, or all of these. */
static inline vf load_left(const stored *p, int64_t n) {
    return n >= LANES ? load(p) : load_n(p, n);
}

static inline vf load_real_left(const float *p, int64_t n) {
    return n >= LANES ? load_real(p) : load_real_n(p, n);
}

static inline void store_left(stored *p, vf v, int64_t n) {
    if (n >= LANES) store(p, v);
    else store_n(p, v, n);
}

static inline void store_real_left(float *p, vf v, int64_t n) {
    if (n >= LANES) store_real(p, v);
    else store_real_n(p, v, n);
}

static inline void put_left(stored *p, vf v, int64_t n, int add) {
    if (n >= LANES) put(p, v, add);
    else put_n(p, v, n, add);
}

static inline void put_real_left(float *p, vf v, int64_t n, int add) {
    if (n >= LANES) put_real(p, v, add);
    else put_real_n(p, v, n, add);
}

/* ---- arithmetic ---- */

static inline vf vf_choose(vi mask, vf yes, vf no) {
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

static inline vf vf_abs(vf x) {
    return (vf)((vi)x & 0x7fffffff);
}

static inline vf vf_minus_abs(vf x) {
    return (vf)((vi)x | INT32_MIN);
}

/* A NaN in b gives a, in a gives a NaN: put the number that may be one first. */
static inline vf vf_max(vf a, vf b) {
#if defined __AVX512F__
    return (vf)_mm512_max_ps((__m512)b, (__m512)a);
#else
    return vf_choose(b > a, b, a);
#endif
}

static inline vf vf_min(vf a, vf b) {
#if defined __AVX512F__
    return (vf)_mm512_min_ps((__m512)b, (__m512)a);
#else
    return vf_choose(b < a, b, a);
#endif
}

static inline vf vf_sqrt(vf x) {
#if defined __AVX512F__
    return (vf)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* Halves are added until one lane is left: the same order for every call. */
static inline float vf_sum(vf v) {
#if defined __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
#endif
}

static inline float vf_largest(vf v) {
#if defined __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float x[LANES], most_of_all;
    memcpy(x, &v, sizeof x);
    most_of_all = x[0];
    for (int i = 1; i < LANES; i++) most_of_all = x[i] > most_of_all ? x[i] : most_of_all;
    return most_of_all;
#endif
}

/* e^x. x = k ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial; 2^k by an instruction, or in two
 * factors, so that results that are not normal come out right. Below -104: 0; above 88.73:
 * infinity; a NaN stays one. */
static inline vf vf_exp(vf x) {
    const vf clamped = vf_max(vf_min(x, vf_all(89)), vf_all(-104));
#if defined __AVX512F__
    const vf k = (vf)_mm512_roundscale_ps((__m512)(clamped * 1.44269504088896341f), 0);
#else
    const vf shift = vf_all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    const vf k = (clamped * 1.44269504088896341f + shift) - shift;
#endif
    const vf r = (clamped - k * 0.693145751953125f) - k * 1.42860682030941723e-6f;
    vf p = vf_all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
#if defined __AVX512F__
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
    const vi n = __builtin_convertvector(k, vi), half = n >> 1;
    const vf a = (vf)((half + 127) << 23), b = (vf)((n - half + 127) << 23);
    return vf_choose(x != x, x, p * a * b);
#endif
}

/* ln x. 0 gives -infinity, less a NaN, infinity itself. */
static inline vf vf_log(vf x) {
    const vi tiny = vf_abs(x) < 1.17549435e-38f; /* not normal: scaled up first */
    const vi bits = (vi)vf_choose(tiny, x * 8388608.0f, x);
    /* x = 2^k m with m in [1/sqrt 2, sqrt 2) */
    const vi k = (bits - 0x3f3504f3) >> 23;
    const vf m = (vf)(bits - (k << 23)) - 1.0f;
    vf p = vf_all(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const vf kf = __builtin_convertvector(k - (tiny & 23), vf), z = m * m;
    vf y = m * z * p + kf * -2.12194440e-4f;
    y = y - 0.5f * z + m + kf * 0.693359375f;
    y = vf_choose(x == 0.0f, vf_all(-INFINITY), y);
    y = vf_choose(x == INFINITY, x, y);
    return vf_choose((x < 0.0f) | (x != x), vf_all(NAN), y);
}

/* 1 / x for 2^-60 < |x| < 2^60, or a NaN. */
static inline vf vf_reciprocal(vf x) {
#if defined __AVX512F__
    const vf y = (vf)_mm512_rcp14_ps((__m512)x); /* 14 bits, doubled by one step of Newton's */
    return y + y * (1.0f - x * y);
#else
    return 1.0f / x;
#endif
}

/* 1 / (1 + e^-x), for x < 0 as e^x / (1 + e^x): nothing overflows,
 * and what is small is exact too. */
static inline vf vf_sigmoid(vf x) {
    const vf e = vf_exp(vf_minus_abs(x)), s = vf_reciprocal(1.0f + e);
    return s * vf_choose(x < 0.0f, e, vf_all(1));
}

/* x sigmoid(x); -infinity gives a NaN, as x / (1 + e^-x) does. */
static inline vf vf_silu(vf x) {
    return x * vf_sigmoid(x);
}

/* The slope of silu at x, given s = sigmoid(x). */
static inline vf vf_silu_slope(vf x, vf s) {
    return s * (1.0f + x * (1.0f - s));
}

/* ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|). What 1 + e loses to rounding is given back. */
static inline vf vf_softplus(vf x) {
    const vf e = vf_exp(vf_minus_abs(x)), u = 1.0f + e;
    return vf_max(x, vf_all(0)) + (vf_log(u) + (e - (u - 1.0f)) * vf_reciprocal(u));
}

#endif
