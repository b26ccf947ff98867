/* vector_optimiser: the update of the weights, in one pass over w, g, m and v, and the exact sum of
 * squares that its norm is made of. Both are to wait for memory only. */
#include "kernels/cpu/vector.h"
#include "kernels/exact.h"

/* w -= (rate decay) w + ...: the two small terms are added first, because 1 - rate decay is not a
 * float. */
KERNEL(adamw) {
    float *w = a->w, *m = a->m, *v = a->v, *gradient = a->g;
    stored *low = a->low;
    const float clip = (float)a->clip, beta1 = (float)a->beta1, beta2 = (float)a->beta2;
    const float rest1 = (float)(1 - a->beta1), rest2 = (float)(1 - a->beta2), eps = (float)a->eps;
    const float fade = (float)(a->rate * a->decay), step = (float)(a->rate / a->c1);
    const float unbias = (float)(1 / sqrt(a->c2));
#pragma omp parallel for if (a->n > SMALL)
    for (int64_t i = 0; i < a->n; i += LANES) {
        const int64_t n = a->n - i;
        const vf g = clip * load_real_left(gradient + i, n), old = load_real_left(w + i, n);
        const vf mean = beta1 * load_real_left(m + i, n) + rest1 * g;
        const vf square = beta2 * load_real_left(v + i, n) + rest2 * (g * g);
        const vf x = old - (fade * old + step * mean / (vf_sqrt(square) * unbias + eps));
        store_real_left(m + i, mean, n);
        store_real_left(v + i, square, n);
        store_real_left(w + i, x, n);
        if (low) store_left(low + i, x, n);
        if (a->clear) store_real_left(gradient + i, vf_all(0), n);
    }
}

/* ---- the exact sum of squares ----
 *
 * The square of a float is exact in double. A double that begins at 1.5 * 2^k takes additions
 * rounded to multiples of its unit 2^(k-52), exactly, while the sum stays below 2^(k-1); what an
 * addition lost is exact too, and goes to the next double, and from there to a third. Let a block
 * have 2^B squares of numbers below 2^E. With
 *   k1 = 2E + B + 1,  k2 = k1 - 52 + B  (a loss is at most half a unit),
 * all sums of the first two are exact; the third's are if 2^B halves of the second's unit are at
 * most 2^53 units 2^(2e-46) of the smallest square, of a number of exponent e. Then three doubles
 * hold the block, and only they go into the long sum. Other blocks go there number by number. */
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef float vhalf __attribute__((vector_size(2 * LANES)));
enum { LOG_BLOCK = 13, BLOCK = 1 << LOG_BLOCK, SETS = 4, HALF = LANES / 2 };

/* Adds the squares of SETS * HALF numbers. */
static inline void add_squares(const float *x, vd one[SETS], vd two[SETS], vd three[SETS]) {
    for (int s = 0; s < SETS; s++) {
        vhalf h;
        memcpy(&h, x + s * HALF, sizeof h);
        const vd v = __builtin_convertvector(h, vd), square = v * v;
        const vd sum1 = one[s] + square, rest1 = square - (sum1 - one[s]);
        const vd sum2 = two[s] + rest1, rest2 = rest1 - (sum2 - two[s]);
        one[s] = sum1;
        two[s] = sum2;
        three[s] += rest2;
    }
}

/* The three sums of a block that fits the formulas; first, second: where two of them begin. */
static void three_parts(const float *x, int64_t n, double first, double second, double part[3]) {
    vd one[SETS], two[SETS], three[SETS];
    for (int s = 0; s < SETS; s++)
        one[s] = (vd){0} + first, two[s] = (vd){0} + second, three[s] = (vd){0};
    int64_t i = 0;
    for (; i + SETS * HALF <= n; i += SETS * HALF) add_squares(x + i, one, two, three);
    float rest[SETS * HALF] = {0};
    memcpy(rest, x + i, (size_t)(n - i) * sizeof *x);
    add_squares(rest, one, two, three);
    part[0] = part[1] = part[2] = 0;
    for (int s = 0; s < SETS; s++)
        for (int k = 0; k < HALF; k++) {
            part[0] += one[s][k] - first;
            part[1] += two[s][k] - second;
            part[2] += three[s][k];
        }
}

static void add_block(struct exact *sum, const float *x, int64_t n) {
    uint32_t largest = 0, smallest = UINT32_MAX; /* of what is not zero, less one */
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        u &= 0x7fffffff;
        largest = u > largest ? u : largest;
        smallest = u - 1 < smallest ? u - 1 : smallest;
    }
    if (largest == 0) return;
    const int top = (int)(largest >> 23) - 126, low = (int)((smallest + 1) >> 23);
    const int e = (low > 0 ? low : 1) - 127, E = top > -125 ? top : -125;
    const int k1 = 2 * E + LOG_BLOCK + 1, k2 = k1 - 52 + LOG_BLOCK;
    if (largest >= 0x7f800000 || k2 - 53 + LOG_BLOCK > 53 + 2 * e - 46) {
        exact_add_squares_f32(sum, x, n);
        return;
    }
    double part[3];
    three_parts(x, n, ldexp(1.5, k1), ldexp(1.5, k2), part);
    for (int i = 0; i < 3; i++) exact_add(sum, part[i]);
}

KERNEL(exact_sum) {
    const float *x = a->x;
    if (!a->squares) {
        exact_add_array_f32(a->sum, x, a->n);
        return;
    }
#pragma omp parallel if (a->n > SMALL)
    {
        struct exact own = {0};
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < a->n; i += BLOCK) add_block(&own, x + i, least(BLOCK, a->n - i));
#pragma omp critical(exact_merging)
        exact_merge(a->sum, &own);
    }
}
