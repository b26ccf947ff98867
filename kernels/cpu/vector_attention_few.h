/* vector_attention_few: attention of a few queries (decoding), which waits for keys and values to
 * come from memory: so every one is read once, for all heads of its group, in as few instructions
 * as may be.
 *
 * With few queries the lanes hold keys: LANES rows of keys are turned around in registers and meet
 * the numbers of the queries one by one. Values have their features in the lanes: they are taken as
 * they lie, or where BF16 is multiplied by pairs two rows of them are laced in registers. */
#ifndef KERNELS_CPU_VECTOR_ATTENTION_FEW_H
#define KERNELS_CPU_VECTOR_ATTENTION_FEW_H

#include "kernels/cpu/vector_attention.h"

/* With more, lanes of queries are as fast (measured with 16). */
enum { FEW = 8 };

struct few {
    const unit *q; /* [units of D][lanes of the block] */
    float *o;      /* [queries][D in whole vectors] */
    unit *v;       /* values, where they are copied */
    float *score;  /* [queries][KEYS] */
    unit *weight;  /* [queries][units of KEYS] */
    float largest[FEW];
    vf sum[FEW]; /* over every LANES-th key */
};

/* Scores of LANES keys from row k on, of which n are there. */
static void few_scores(const struct few *f, const struct queries *q, const stored *k, int64_t ld,
                       int64_t n, int64_t D, float *score) {
    enum { TOGETHER = 4 }; /* queries: sums that do not wait for each other */
    for (int64_t d = 0; d < units(D); d += LANES) {
        const int64_t width = least(LANES, units(D) - d);
        vf x[LANES];
        if (n == LANES && D - d * PAIR >= PAIR * LANES) {
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) x[i] = row_units(k + i * ld + d * PAIR, PAIR * LANES);
        } else {
            for (int64_t i = 0; i < LANES; i++)
                x[i] = row_units(k + least(i, n - 1) * ld + d * PAIR, D - d * PAIR);
        }
        transpose(x);
        for (int64_t m = 0; m < q->n; m += TOGETHER) {
            vf sum[TOGETHER];
            for (int h = 0; h < TOGETHER; h++)
                sum[h] = d ? load_real(score + (m + h) * KEYS) : (vf){0};
            if (width == LANES) {
#pragma GCC unroll 16
                for (int i = 0; i < LANES; i++)
#pragma GCC unroll 4
                    for (int h = 0; h < TOGETHER; h++)
                        sum[h] =
                            multiply_add(sum[h], spread(f->q + (d + i) * q->lanes + m + h), x[i]);
            } else {
                for (int64_t i = 0; i < width; i++)
                    for (int h = 0; h < TOGETHER; h++)
                        sum[h] =
                            multiply_add(sum[h], spread(f->q + (d + i) * q->lanes + m + h), x[i]);
            }
            for (int h = 0; h < TOGETHER; h++) store_real(score + (m + h) * KEYS, sum[h]);
        }
    }
}

/* Scores of query m with n keys from place j0 on to weights. */
static void few_weigh(struct few *f, const struct queries *q, int64_t m, int64_t j0, int64_t n,
                      float c, int64_t D1) {
    float *score = f->score + m * KEYS;
    /* of these keys it sees from..to - 1 */
    const int32_t from = (int32_t)most(0, q->first[m] - j0);
    const int32_t to = (int32_t)least(n, q->last[m] + 1 - j0);
    vf best = vf_all(f->largest[m]);
    for (int32_t j = 0; j < n; j += LANES) {
        const vi seen = (COUNTING + j >= from) & (COUNTING + j < to);
        const vf s = vf_choose(seen, load_real(score + j), vf_all(-INFINITY));
        store_real(score + j, s);
        best = vf_max(best, s);
    }
    const float largest = vf_largest(best);
    const vf shrink = power_of_two(vf_all((f->largest[m] - largest) * c));
    f->sum[m] *= shrink;
    if (largest != f->largest[m])
        for (int64_t d = 0; d < D1; d += LANES)
            store_real(f->o + m * D1 + d, load_real(f->o + m * D1 + d) * shrink);
    f->largest[m] = largest;
    for (int32_t j = 0; j < n; j += LANES) {
        const vi seen = (COUNTING + j >= from) & (COUNTING + j < to);
        const vf p = vf_choose(seen, power_of_two((load_real(score + j) - largest) * c), (vf){0});
        f->sum[m] += p;
#if defined STORED_BF16 && defined __AVX512BF16__
        store((stored *)(f->weight + m * KEYS / 2) + j, p);
#else
        store_real((float *)f->weight + m * KEYS + j, p);
#endif
    }
}

#if defined STORED_BF16 && defined __AVX512BF16__
/* o += weights times values, `wide` vectors of features from d on and TOGETHER queries from m on.
 * Two rows of values are laced in registers; where the last has no other its weight is zero. */
INLINE void few_laced(struct few *f, int64_t m, const stored *v, int64_t ld, int64_t n, int64_t d,
                      int64_t D1, const int wide) {
    enum { TOGETHER = 4 };
    static const uint16_t order[2][32] = {
        {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
         8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
         24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    const __m512i low = _mm512_loadu_si512(order[0]), high = _mm512_loadu_si512(order[1]);
    float *o = f->o + m * D1 + d;
    vf sum[TOGETHER][4];
#pragma GCC unroll 4
    for (int h = 0; h < TOGETHER; h++)
#pragma GCC unroll 4
        for (int w = 0; w < wide; w++) sum[h][w] = load_real(o + h * D1 + w * LANES);
    for (int64_t j = 0; j < n; j += 2) {
        const stored *first = v + j * ld + d, *second = v + least(j + 1, n - 1) * ld + d;
        vf x[4];
#pragma GCC unroll 2
        for (int w = 0; w < wide; w += 2) {
            const __m512i a = _mm512_loadu_si512(first + w * LANES),
                          b = _mm512_loadu_si512(second + w * LANES);
            x[w] = (vf)_mm512_permutex2var_epi16(a, low, b);
            x[w + 1] = (vf)_mm512_permutex2var_epi16(a, high, b);
        }
#pragma GCC unroll 4
        for (int h = 0; h < TOGETHER; h++) {
            const vf weight = spread(f->weight + (m + h) * KEYS / PAIR + j / PAIR);
#pragma GCC unroll 4
            for (int w = 0; w < wide; w++) sum[h][w] = multiply_add(sum[h][w], weight, x[w]);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < TOGETHER; h++)
#pragma GCC unroll 4
        for (int w = 0; w < wide; w++) store_real(o + h * D1 + w * LANES, sum[h][w]);
}
#endif

/* o[queries][D] += weights times n values. */
static void few_meet_values(struct few *f, const struct queries *q, const stored *v, int64_t ld,
                            int64_t n, int64_t D, int64_t D1) {
    struct factor values = {f->v, D};
#if defined STORED_BF16 && defined __AVX512BF16__
    if (D % 32 == 0) {
        for (int64_t m = 0; m < q->n; m += 4)
            for (int64_t d = 0; d < D; d += 64) {
                if (D - d >= 64) few_laced(f, m, v, ld, n, d, D1, 4);
                else few_laced(f, m, v, ld, n, d, D1, 2);
            }
        return;
    }
#endif
#if defined STORED_BF16
    values = as_columns(f->v, v, ld, n, D);
#else
    if (D % LANES == 0) values = (struct factor){v, ld};
    else
        for (int64_t j = 0; j < n; j++) memcpy(f->v + j * D, v + j * ld, (size_t)D * sizeof *v);
#endif
    product_of_rows(&(struct product){.c = f->o,
                                      .ldc = D1,
                                      .a = f->weight,
                                      .lda = KEYS / PAIR,
                                      .b = values.p,
                                      .ldb = values.ld,
                                      .rows = q->n,
                                      .depth = units(n),
                                      .vectors = D1 / LANES,
                                      .begin = ADDED});
}

/* Rows of one head are short and far apart, which no processor takes for a stream: so they are
 * called for, AHEAD rows before they are read. Into the second cache: the first has room for few
 * lines on their way, and waiting for room takes twice the time. */
enum { AHEAD = 32 };
static void call_for_rows(const stored *p, int64_t ld, int64_t n, int64_t D) {
    for (int64_t j = 0; j < n; j++)
        for (int64_t d = 0; d < D; d += 64 / (int64_t)sizeof *p)
            __builtin_prefetch(p + j * ld + d, 0, 2);
}

/* o, largest and sum of at most FEW queries over the keys of two runs. */
static void few_attend(struct few *f, const struct queries *q, const struct keys run[2], int64_t D,
                       float c) {
    const int64_t D1 = whole(D);
    memset(f->o, 0, (size_t)(FEW * D1) * sizeof *f->o);
    for (int m = 0; m < FEW; m++) {
        f->largest[m] = -1e30f; /* finite: no difference of infinities */
        f->sum[m] = (vf){0};
    }
    for (const struct keys *r = run; r < run + 2; r++)
        for (int64_t j = r->from; j < r->to; j += KEYS) {
            const int64_t n = least(KEYS, r->to - j);
            for (int64_t i = 0; i < n; i += LANES) {
                const int64_t next = j + i + AHEAD, more = least(LANES, r->to - next);
                call_for_rows(r->k + next * r->ldk, r->ldk, more, D);
                call_for_rows(r->v + next * r->ldv, r->ldv, more, D);
                few_scores(f, q, r->k + (j + i) * r->ldk, r->ldk, least(LANES, n - i), D,
                           f->score + i);
            }
            for (int64_t m = 0; m < q->n; m++) few_weigh(f, q, m, j, n, c, D1);
            few_meet_values(f, q, r->v + j * r->ldv, r->ldv, n, D, D1);
        }
}

#endif
