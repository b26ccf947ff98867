#include "kernels/exact.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* An addition puts less than 2^32 into a limb. */
#define MOST_ADDITIONS ((int64_t)1 << 29)

/* Elements added into bins before the bins go to the limbs: 2^14 squares of 48 bits stay below
 * 2^63. */
enum { BLOCK = 1 << 14, FEW = 64, THREADS_FROM = 1 << 17, SETS = 4 };

typedef unsigned __int128 wide;

void exact_clear(struct exact *sum) {
    memset(sum, 0, sizeof *sum);
}

void exact_normalise(struct exact *sum) {
    for (int i = 0; i < EXACT_LIMBS - 1; i++) {
        sum->limb[i + 1] += sum->limb[i] >> 32;
        sum->limb[i] &= 0xffffffff;
    }
    sum->additions = 1;
}

/* Adds magnitude * 2^exponent, or takes it away. */
static inline void put(struct exact *sum, bool minus, uint64_t magnitude, int exponent) {
    int at = exponent - EXACT_LOWEST;
    int64_t sign = -(int64_t)minus;
    wide v = (wide)magnitude << (at & 31);
    int64_t *limb = sum->limb + (at >> 5);
    limb[0] += ((int64_t)(v & 0xffffffff) ^ sign) - sign;
    limb[1] += ((int64_t)(v >> 32 & 0xffffffff) ^ sign) - sign;
    limb[2] += ((int64_t)(v >> 64) ^ sign) - sign;
    if (++sum->additions >= MOST_ADDITIONS) exact_normalise(sum);
}

static void put_special(struct exact *sum, bool nan, bool minus) {
    if (nan) sum->nans++;
    else if (minus) sum->minus_infinities++;
    else sum->plus_infinities++;
}

static inline void put_f64(struct exact *sum, double x, bool square) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    bool minus = u >> 63;
    int field = (int)(u >> 52 & 2047);
    uint64_t m = u & 0xfffffffffffff;
    if (field == 2047) {
        put_special(sum, m != 0, minus && !square);
        return;
    }
    m |= (uint64_t)(field > 0) << 52;
    int exponent = (field > 0 ? field : 1) - 1075;
    if (square) {
        wide v = (wide)m * m;
        put(sum, false, (uint64_t)v, 2 * exponent);
        put(sum, false, (uint64_t)(v >> 64), 2 * exponent + 64);
    } else {
        put(sum, minus, m, exponent);
    }
}

void exact_add(struct exact *sum, double x) {
    put_f64(sum, x, false);
}

/* Numbers of one exponent are added as integers in one bin. Several sets of bins, because
 * neighbours often have the same exponent and would wait for each other. */
static void bin_f32(struct exact *sum, const float *x, int64_t n, bool square) {
    int64_t bins[SETS][256] = {{0}};
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        uint32_t a = u & 0x7fffffff, field = a >> 23;
        int64_t m = (a & 0x7fffff) | (uint32_t)(field > 0) << 23, sign = -(int64_t)(u >> 31);
        largest = a > largest ? a : largest;
        bins[i % SETS][field] += square ? m * m : (m ^ sign) - sign;
    }
    for (int e = 0; e < 255; e++) {
        int64_t v = 0;
        for (int k = 0; k < SETS; k++) v += bins[k][e];
        int exponent = (e > 0 ? e : 1) - 150;
        if (v != 0)
            put(sum, v < 0, v < 0 ? -(uint64_t)v : (uint64_t)v, square ? 2 * exponent : exponent);
    }
    if (largest < 0x7f800000) return;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) put_special(sum, isnan(x[i]), x[i] < 0 && !square);
}

static void add_block(struct exact *sum, const void *x, bool f64, int64_t from, int64_t n,
                      bool square) {
    if (f64) {
        for (int64_t i = from; i < from + n; i++) put_f64(sum, ((const double *)x)[i], square);
    } else if (n < FEW) {
        for (int64_t i = from; i < from + n; i++) put_f64(sum, ((const float *)x)[i], square);
    } else if (square) {
        bin_f32(sum, (const float *)x + from, n, true);
    } else {
        bin_f32(sum, (const float *)x + from, n, false);
    }
}

static void add_array(struct exact *sum, const void *x, bool f64, int64_t n, bool square) {
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
    if (n < THREADS_FROM) {
        for (int64_t b = 0; b < blocks; b++)
            add_block(sum, x, f64, b * BLOCK, b == blocks - 1 ? n - b * BLOCK : BLOCK, square);
        return;
    }
#pragma omp parallel
    {
        struct exact own = {0};
#pragma omp for schedule(static) nowait
        for (int64_t b = 0; b < blocks; b++)
            add_block(&own, x, f64, b * BLOCK, b == blocks - 1 ? n - b * BLOCK : BLOCK, square);
#pragma omp critical(exact_merging)
        exact_merge(sum, &own);
    }
}

void exact_add_array_f32(struct exact *sum, const float *x, int64_t n) {
    add_array(sum, x, false, n, false);
}

void exact_add_array_f64(struct exact *sum, const double *x, int64_t n) {
    add_array(sum, x, true, n, false);
}

void exact_add_squares_f32(struct exact *sum, const float *x, int64_t n) {
    add_array(sum, x, false, n, true);
}

void exact_add_squares_f64(struct exact *sum, const double *x, int64_t n) {
    add_array(sum, x, true, n, true);
}

void exact_merge(struct exact *into, const struct exact *from) {
    for (int i = 0; i < EXACT_LIMBS; i++) into->limb[i] += from->limb[i];
    into->additions += from->additions;
    into->nans += from->nans;
    into->plus_infinities += from->plus_infinities;
    into->minus_infinities += from->minus_infinities;
    if (into->additions >= MOST_ADDITIONS) exact_normalise(into);
}

double exact_value(const struct exact *sum) {
    struct exact s = *sum;
    if (s.nans || (s.plus_infinities && s.minus_infinities)) return NAN;
    if (s.plus_infinities || s.minus_infinities) return s.plus_infinities ? INFINITY : -INFINITY;
    exact_normalise(&s);
    bool minus = s.limb[EXACT_LIMBS - 1] < 0;
    if (minus) {
        for (int i = 0; i < EXACT_LIMBS; i++) s.limb[i] = -s.limb[i];
        exact_normalise(&s);
    }
    int top = EXACT_LIMBS - 1;
    while (top >= 0 && s.limb[top] == 0) top--;
    if (top < 0) return 0;

    /* The three highest limbs hold at least 65 bits; of what is below only whether it is zero
     * matters. */
    wide v = 0;
    bool below = false;
    for (int i = top; i > top - 3; i--) v = v << 32 | (i >= 0 ? (uint32_t)s.limb[i] : 0);
    for (int i = 0; i < top - 2; i++) below |= s.limb[i] != 0;
    int lowest = 32 * (top - 2) + EXACT_LOWEST;              /* exponent of v's bit 0 */
    int highest = 95 - __builtin_clz((uint32_t)s.limb[top]); /* v's highest bit */
    int unit = highest + lowest - 52 > -1074 ? highest + lowest - 52 : -1074;
    int cut = unit - lowest;
    if (cut > highest + 1) return minus ? -0.0 : 0.0; /* less than half the smallest double */
    uint64_t q = (uint64_t)(v >> cut);
    wide rest = v & (((wide)1 << cut) - 1), half = (wide)1 << (cut - 1);
    if (rest > half || (rest == half && (below || q & 1))) q++;
    double value = ldexp((double)q, unit);
    return minus ? -value : value;
}
