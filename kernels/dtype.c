#include "kernels/dtype.h"

#include <string.h>

#include "kernels/die.h"

static const struct {
    const char *name;
    unsigned char size, real;
} formats[N_DTYPES] = {
    [F32] = {"F32", 4, 1},   [F64] = {"F64", 8, 1},         [BF16] = {"BF16", 2, 1},
    [F16] = {"F16", 2, 1},   [I32] = {"I32", 4, 0},         [I64] = {"I64", 8, 0},
    [U8] = {"U8", 1, 0},     [I8] = {"I8", 1, 0},           [I16] = {"I16", 2, 0},
    [BOOL] = {"BOOL", 1, 0}, [U16] = {"U16", 2, 0},         [U32] = {"U32", 4, 0},
    [U64] = {"U64", 8, 0},   [F8_E4M3] = {"F8_E4M3", 1, 0}, [F8_E5M2] = {"F8_E5M2", 1, 0},
};

/* Conversions work on bits: a load into a floating register may quiet a signalling NaN, and then a
 * tensor would not be written back as it was read. */
enum {
    F32_INF = 0x7f800000,
    F32_QUIET = 0x00400000,
    F16_TINY = 0x38800000, /* 2^-14, the smallest normal f16, as f32 */
    F16_OVER = 0x47800000, /* 2^16, above every f16 */
    F16_ALIGN = 0x3f000000 /* 0.5: adding it leaves a subnormal f16 in the low bits, rounded */
};

static inline uint32_t f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_from(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t bf16_of(uint32_t u) {
    uint32_t nan = u >> 16, value = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    nan |= (u & 0x007f0000) == 0 ? F32_QUIET >> 16
                                 : 0; /* a payload of low bits alone is no infinity */
    return (uint16_t)((u & 0x7fffffff) > F32_INF ? nan : value);
}

static inline uint32_t f32_of_bf16(uint16_t h) {
    return (uint32_t)h << 16;
}

/* One of two by a mask: with floating arithmetic in a branch, compilers do not vectorise. */
static inline uint32_t either(int condition, uint32_t yes, uint32_t no) {
    uint32_t mask = -(uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

static inline uint64_t either64(int condition, uint64_t yes, uint64_t no) {
    uint64_t mask = -(uint64_t)condition;
    return (yes & mask) | (no & ~mask);
}

static inline uint16_t f16_of(uint32_t u) {
    uint32_t sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
    uint32_t payload = (a >> 13) & 0x3ff;
    uint32_t special = a > F32_INF ? 0x7c00 | (payload ? payload : 0x200) : 0x7c00;
    uint32_t small =
        f32_bits(f32_from(either(a < F16_TINY, a, 0)) + f32_from(F16_ALIGN)) - F16_ALIGN;
    uint32_t normal = (a - ((127 - 15) << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
    return (uint16_t)(sign | either(a >= F16_OVER, special, either(a < F16_TINY, small, normal)));
}

static inline uint32_t f32_of_f16(uint16_t h) {
    uint32_t a = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t normal = a + ((127 - 15) << 23), special = a + ((255 - 31) << 23);
    uint32_t small = f32_bits(f32_from((a & 0x007fffff) + F16_TINY) - f32_from(F16_TINY));
    return sign | either(a >= (31u << 23), special, either(a < (1u << 23), small, normal));
}

static inline uint64_t f64_of(uint32_t u) {
    double v = f32_from(either((u & 0x7fffffff) > F32_INF, 0, u));
    uint64_t b, nan = (uint64_t)(u & 0x80000000) << 32 | 0x7ff0000000000000 |
                      (uint64_t)(u & 0x7fffff) << 29;
    memcpy(&b, &v, sizeof b);
    return either64((u & 0x7fffffff) > F32_INF, nan, b);
}

static inline uint32_t f32_of_f64(uint64_t b) {
    uint64_t a = b & 0x7fffffffffffffff, v = either64(a > 0x7ff0000000000000, 0, b);
    uint32_t payload = (uint32_t)(a >> 29) & 0x7fffff;
    uint32_t nan = (uint32_t)(b >> 32) & 0x80000000;
    nan |= F32_INF | (payload ? payload : F32_QUIET);
    double d;
    memcpy(&d, &v, sizeof d);
    return either(a > 0x7ff0000000000000, nan, f32_bits((float)d));
}

#define CONVERT(function, From, To, expression)                                                    \
    static void function(unsigned char *dst, const unsigned char *src, size_t n) {                 \
        _Pragma("omp simd") for (size_t i = 0; i < n; i++) {                                       \
            From x;                                                                                \
            memcpy(&x, src + i * sizeof x, sizeof x);                                              \
            To y = expression;                                                                     \
            memcpy(dst + i * sizeof y, &y, sizeof y);                                              \
        }                                                                                          \
    }

CONVERT(f32_to_bf16, uint32_t, uint16_t, bf16_of(x))
CONVERT(bf16_to_f32, uint16_t, uint32_t, f32_of_bf16(x))
CONVERT(f32_to_f16, uint32_t, uint16_t, f16_of(x))
CONVERT(f16_to_f32, uint16_t, uint32_t, f32_of_f16(x))
CONVERT(f32_to_f64, uint32_t, uint64_t, f64_of(x))
CONVERT(f64_to_f32, uint64_t, uint32_t, f32_of_f64(x))

typedef void (*convert_f)(unsigned char *dst, const unsigned char *src, size_t n);

static const convert_f to_f32[N_DTYPES] = {
    [F64] = f64_to_f32, [BF16] = bf16_to_f32, [F16] = f16_to_f32};
static const convert_f from_f32[N_DTYPES] = {
    [F64] = f32_to_f64, [BF16] = f32_to_bf16, [F16] = f32_to_f16};

size_t dtype_size(enum dtype d) {
    return formats[d].size;
}

const char *dtype_name(enum dtype d) {
    return formats[d].name;
}

int dtype_parse(const char *name) {
    for (int d = 0; d < N_DTYPES; d++)
        if (strcmp(name, formats[d].name) == 0) return d;
    return -1;
}

int dtype_is_real(enum dtype d) {
    return formats[d].real;
}

void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, size_t n) {
    unsigned char *out = dst;
    const unsigned char *in = src;
    if (to == from) {
        if (n) memcpy(out, in, n * dtype_size(to));
        return;
    }
    if (!dtype_is_real(to) || !dtype_is_real(from))
        bug("no conversion from %s to %s", dtype_name(from), dtype_name(to));
    if (from == F32) {
        from_f32[to](out, in, n);
    } else if (to == F32) {
        to_f32[from](out, in, n);
    } else {
        float middle[1024]; /* small enough to stay in the nearest cache */
        enum { BLOCK = sizeof middle / sizeof middle[0] };
        for (size_t i = 0; i < n; i += BLOCK) {
            size_t m = n - i < BLOCK ? n - i : BLOCK;
            to_f32[from]((unsigned char *)middle, in + i * dtype_size(from), m);
            from_f32[to](out + i * dtype_size(to), (const unsigned char *)middle, m);
        }
    }
}
