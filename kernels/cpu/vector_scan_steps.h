/* vector_scan_steps: the scan a token at a time. For the one token of generation, where a pass over
 * the state is all there is to do, and for states that are too wide for blocks. */
#ifndef KERNELS_CPU_VECTOR_SCAN_STEPS_H
#define KERNELS_CPU_VECTOR_SCAN_STEPS_H

#include "kernels/cpu/vector_scan.h"

enum { MOST_STATE = 16384 }; /* numbers of state that a thread takes through all tokens */

/* S = decay S + in b, and S . c; n multiples of nothing. */
static inline float step_row(float *s, const stored *b, const stored *c, int64_t n, float decay,
                             float in) {
    vf sum[2] = {{0}, {0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            const int64_t at = i + k * LANES;
            const vf v = decay * load_real(s + at) + in * load(b + at);
            store_real(s + at, v);
            sum[k] += v * load(c + at);
        }
    for (; i < n; i += LANES) {
        const int64_t left = n - i;
        const vf v = decay * load_real_left(s + i, left) + in * load_left(b + i, left);
        store_real_left(s + i, v, left);
        sum[0] += v * load_left(c + i, left);
    }
    return vf_sum(sum[0] + sum[1]);
}

/* Rows p0 to p1 of head h through row b. */
static inline void steps_rows(const struct scan_args *a, int64_t b, int64_t h, int64_t p0,
                              int64_t p1) {
    const int64_t H = a->H, P = a->P, S = a->S, L = a->L, wide = H * P + 2 * a->G * S;
    const int64_t at = ((b * H + h) * P + p0) * S, chunks = (L + a->Q - 1) / a->Q;
    const size_t bytes = (size_t)((p1 - p0) * S) * sizeof(float);
    const struct head_constants constants = {.a = -exp((double)((const float *)a->a_log)[h]),
                                             .dt_bias = ((const float *)a->dt_bias)[h],
                                             .dt_min = (float)a->dt_min,
                                             .dt_max = (float)a->dt_max};
    const float d = ((const float *)a->d)[h], *from = a->state_in;
    float own[MOST_STATE], *state = a->state_out ? (float *)a->state_out + at : own;
    if (!from) memset(state, 0, bytes);
    else if (from + at != state) memcpy(state, from + at, bytes);
    for (int64_t t = 0; t < L; t++) {
        const int64_t token = b * L + t;
        const stored *x = (const stored *)a->u + token * wide + h * P;
        const stored *bt = (const stored *)a->u + token * wide + H * P + h / (H / a->G) * S;
        struct documents document;
        struct paces pace;
        documents_find(&document, a->start + token, t, 1);
        paces_find(&pace, &constants, &document, (const stored *)a->dt + token * a->lddt + h,
                   a->lddt);
        if (a->states && t % a->Q == 0)
            memcpy((float *)a->states + (((b * chunks + t / a->Q) * H + h) * P + p0) * S, state,
                   bytes);
        if (document.first == 0) memset(state, 0, bytes);
        for (int64_t p = p0; p < p1; p++) {
            const float v = get(x + p);
            set((stored *)a->y + (token * H + h) * P + p,
                step_row(state + (p - p0) * S, bt, bt + a->G * S, S, pace.whole,
                         pace.delta[0] * v) +
                    d * v);
        }
    }
}

static inline void scan_steps(const struct scan_args *a) {
    if (a->S > MOST_STATE) bug("a state of %lld", (long long)a->S);
    const int64_t rows = a->S > 0 ? MOST_STATE / a->S : most(a->P, 1);
#pragma omp parallel for collapse(3) if (a->B * a->L * a->H * a->P * a->S > SMALL)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t p = 0; p < a->P; p += rows) steps_rows(a, b, h, p, least(p + rows, a->P));
}

#endif
