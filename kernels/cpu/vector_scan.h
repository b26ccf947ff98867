/* vector_scan: a block of tokens as the scan and its adjoint see it: where documents begin in it,
 * and what the tokens' dt do to the state of a head.
 *
 * With s_i the sum of A D_k over the block's tokens k <= i (none is positive), the token j reaches
 * token i >= j with weight exp(s_i - s_j), if no document begins between. Sums are kept as two
 * floats, high + low: a difference of large sums is then as exact as one of small ones, and a tiny
 * decay after a strong one is not lost. Nothing is ever divided by a decay. */
#ifndef KERNELS_CPU_VECTOR_SCAN_H
#define KERNELS_CPU_VECTOR_SCAN_H

#include <omp.h>

#include "kernels/cpu/vector_products.h"
#include "kernels/scan_split.h"

enum { BLOCK = SCAN_BLOCK, PAD = SCAN_PAD };

static inline int64_t padded(int64_t n) {
    return scan_padded(n);
}

/* The documents of a block's n tokens. */
struct documents {
    int n;
    int first, last; /* the first and the last place where one begins; n and -1 where none does */
    int32_t end[BLOCK]; /* the place after j where the next one begins, or n */
};

/* start: of the block's first token, whose place in its row is t. */
static inline void documents_find(struct documents *d, const int32_t *start, int64_t t, int64_t n) {
    *d = (struct documents){.n = (int)n, .first = (int)n, .last = -1};
    int32_t end = (int32_t)n;
    for (int32_t i = (int32_t)n - 1; i >= 0; i--) {
        d->end[i] = end;
        if (start[i] != t + i) continue;
        end = d->first = i;
        if (d->last < 0) d->last = i;
    }
}

/* A head over a block. Tokens after the n-th are harmless: their D is 0. */
struct paces {
    _Alignas(64) float delta[BLOCK],
        slope[BLOCK];                           /* D, and its derivative by dt; 0 where clamped */
    _Alignas(64) float high[BLOCK], low[BLOCK]; /* s */
    _Alignas(64) float before[BLOCK]; /* weight of the state before the block in token i's */
    _Alignas(64) float after[BLOCK];  /* weight of token j in the state after the block */
    float whole;                      /* of the state before in that after; 0: a document begins */
};

struct head_constants {
    double a; /* A */
    float dt_bias, dt_min, dt_max;
};

/* D of x = dt + dt_bias, and where it is clamped. */
static inline vf vf_delta(const struct head_constants *h, vf x, vi *clamped) {
    const vf soft = vf_softplus(x);
    const vi low = soft<h->dt_min, high = soft> h->dt_max;
    *clamped = low | high;
    return vf_choose(low, vf_all(h->dt_min), vf_choose(high, vf_all(h->dt_max), soft));
}

/* A D. e^-1000 is 0 as well as any; so sums stay finite where D is not. */
static inline double head_exponent(const struct head_constants *h, float delta) {
    const double e = h->a * (double)delta;
    return e < -1000 ? -1000 : e;
}

/* dt: of the head and the block's first token, rows lddt apart. */
static inline void paces_find(struct paces *p, const struct head_constants *h,
                              const struct documents *d, const stored *dt, int64_t lddt) {
    float raw[BLOCK] = {0};
    for (int i = 0; i < d->n; i++) raw[i] = get(dt + i * lddt);
    for (int i = 0; i < d->n; i += LANES) {
        const vf x = load_real(raw + i) + h->dt_bias;
        const vf slope = vf_choose(x > 20.0f, vf_all(1), vf_sigmoid(x));
        vi clamped;
        store_real(p->delta + i, vf_delta(h, x, &clamped));
        store_real(p->slope + i, vf_choose(clamped, vf_all(0), slope));
    }
    double sum = 0;
    float high = 0, low = 0;
    for (int i = 0; i < d->n; i++) {
        sum += head_exponent(h, p->delta[i]);
        p->high[i] = high = (float)sum;
        p->low[i] = low = (float)(sum - (double)high);
    }
    for (int i = d->n; i < BLOCK; i++)
        p->delta[i] = p->slope[i] = 0, p->high[i] = high, p->low[i] = low;
    for (int i = 0; i < BLOCK; i += LANES) {
        const vi at = COUNTING + i;
        const vf sums = load_real(p->high + i), rest = load_real(p->low + i);
        const vf before = vf_exp(sums + rest), after = vf_exp((high - sums) + (low - rest));
        store_real(p->before + i, vf_choose(at < d->first, before, vf_all(0)));
        store_real(p->after + i, vf_choose((at >= d->last) & (at < d->n), after, vf_all(0)));
    }
    p->whole = d->last < 0 ? p->before[d->n - 1] : 0;
}

/* How many of a group's heads, at most `most`, a thread takes together: as many as leave all
 * threads about the same work, since what heads share is then made once. units: of one head of each
 * group. */
static inline int64_t heads_together(int64_t heads, int64_t most, int64_t units) {
    const int64_t threads = omp_get_max_threads();
    for (int64_t n = least(heads, most); n > 1; n--) {
        const int64_t all = units * (heads / n), turns = (all + threads - 1) / threads;
        if (heads % n == 0 && turns * threads * 9 <= all * 10) return n;
    }
    return 1;
}

/* exp(s_i - s_j) for a token i and the tokens j from `at` on, or the other way round where sign is
 * -1. */
static inline vf vf_decay(const struct paces *p, int i, int at, float sign) {
    return vf_exp(sign *
                  ((p->high[i] - load_real(p->high + at)) + (p->low[i] - load_real(p->low + at))));
}

/* Rows of stored numbers as padded rows of floats. `to` has padded(rows) rows of `width`, a
 * multiple of PAD; what is beyond n columns and `rows` rows becomes zero. */
static inline void widen_rows(float *to, int64_t width, const stored *from, int64_t ld,
                              int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t j = 0;
        for (; j + LANES <= n; j += LANES) store_real(to + i * width + j, load(from + i * ld + j));
        for (; j < width; j += LANES)
            store_real(to + i * width + j, j < n ? load_n(from + i * ld + j, n - j) : vf_all(0));
    }
    memset(to + rows * width, 0, (size_t)((padded(rows) - rows) * width) * sizeof *to);
}

/* to[i,:] = by[i] from[i,:], padded rows. */
static inline void scale_rows(float *to, const float *from, const float *by, int64_t rows,
                              int64_t width) {
    for (int64_t i = 0; i < padded(rows); i++)
        for (int64_t j = 0; j < width; j += LANES)
            store_real(to + i * width + j, by[i] * load_real(from + i * width + j));
}

/* Asks for rows that will be widened soon: they lie too far apart for the processor to guess. */
static inline void expect_rows(const stored *from, int64_t ld, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j += (int64_t)(64 / sizeof *from))
            __builtin_prefetch(from + i * ld + j);
}

#endif
