/* conv: the short causal convolution of each channel by itself, then SiLU.
 *   pre[t,c] = b[c] + sum over k of w[c,k] x[t-K+1+k,c];  u = silu(pre).
 * A column before the row lies in state_in; a column before the token's document does not count.
 * Threads share out the channels, so that the adjoint can add to the columns before a token without
 * meeting another thread. */
#include "kernels/cpu/maths.h"

enum {
    LONGEST = 1024
}; /* kernel length times channels at a time, so that scratch fits the stack */

static int64_t channels_at_a_time(int64_t K) {
    if (K < 1 || K > LONGEST) bug("convolution over %lld tokens", (long long)K);
    return least(COLUMNS, LONGEST / K);
}

/* The column at `place` of row b (negative: from the state), from channel c0 on; NULL where it is
 * zero. */
static const real *column(const real *x, const real *state, int64_t b, int64_t place, int64_t c0,
                          int64_t L, int64_t C, int64_t K, int64_t ldx) {
    if (place >= 0) return x + (b * L + place) * ldx + c0;
    return state ? state + (b * (K - 1) + K - 1 + place) * C + c0 : NULL;
}

/* w[c0.., K] turned into rows of channels. */
static void turn(real *wt, const real *w, int64_t c0, int64_t n, int64_t K) {
    for (int64_t k = 0; k < K; k++)
        for (int64_t c = 0; c < n; c++) wt[k * n + c] = w[(c0 + c) * K + k];
}

/* pre[0..n) of one token at place t of row b. */
static void before_silu(real *pre, const real *wt, const real *bias, const real *x,
                        const real *state, int64_t b, int64_t t, int64_t start, int64_t c0,
                        int64_t n, int64_t L, int64_t C, int64_t K, int64_t ldx) {
    for (int64_t c = 0; c < n; c++) pre[c] = bias ? bias[c0 + c] : 0;
    for (int64_t k = most(0, start - (t - K + 1)); k < K; k++) {
        const real *from = column(x, state, b, t - K + 1 + k, c0, L, C, K, ldx);
        if (!from) continue;
#pragma omp simd
        for (int64_t c = 0; c < n; c++) pre[c] += wt[k * n + c] * from[c];
    }
}

static void last_columns(const struct conv_args *a, int64_t b, int64_t c0, int64_t n) {
    const int64_t K = a->K, C = a->C;
    for (int64_t i = 0; i < K - 1; i++) {
        real *to = (real *)a->state_out + (b * (K - 1) + i) * C + c0;
        const real *from = column(a->x, a->state_in, b, a->L - (K - 1) + i, c0, a->L, C, K, a->ldx);
        for (int64_t c = 0; c < n; c++) to[c] = from ? from[c] : 0;
    }
}

KERNEL(conv) {
    const int64_t C = a->C, K = a->K, L = a->L, step = channels_at_a_time(K);
#pragma omp parallel for collapse(2) if (a->B * L * C > SMALL / 8)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t c0 = 0; c0 < C; c0 += step) {
            const int64_t n = least(step, C - c0);
            real wt[LONGEST], pre[COLUMNS];
            turn(wt, a->w, c0, n, K);
            for (int64_t t = 0; t < L; t++) {
                before_silu(pre, wt, a->b, a->x, a->state_in, b, t, a->start[b * L + t], c0, n, L,
                            C, K, a->ldx);
                real *u = (real *)a->u + (b * L + t) * C + c0;
                for (int64_t c = 0; c < n; c++) u[c] = silu(pre[c]);
            }
            if (a->state_out) last_columns(a, b, c0, n);
        }
}

/* The gradient of the column at `place`: in dx, in dstate_in, or wanted by nobody (NULL). */
static real *column_gradient(const struct conv_adjoint_args *a, int64_t b, int64_t place,
                             int64_t c0) {
    if (place >= 0) return a->dx ? (real *)a->dx + (b * a->L + place) * a->ldx + c0 : NULL;
    if (!a->dstate_in) return NULL;
    return (real *)a->dstate_in + (b * (a->K - 1) + a->K - 1 + place) * a->C + c0;
}

static void clear(real *to, int64_t n, int add) {
    if (to && !add) memset(to, 0, (size_t)n * sizeof *to);
}

/* Row b, n channels from c0 on; adds to the sums dw [K,n] and db [n]. */
static void adjoint_row(const struct conv_adjoint_args *a, const real *wt, int64_t b, int64_t c0,
                        int64_t n, double *dw, double *db) {
    const int64_t C = a->C, K = a->K, L = a->L;
    real pre[COLUMNS], dpre[COLUMNS];
    for (int64_t i = 1 - K; i < 0; i++) clear(column_gradient(a, b, i, c0), n, a->dstate_in_add);
    for (int64_t t = 0; t < L; t++) {
        const int64_t start = a->start[b * L + t];
        const real *du = (const real *)a->du + (b * L + t) * C + c0;
        before_silu(pre, wt, a->b, a->x, a->state_in, b, t, start, c0, n, L, C, K, a->ldx);
        for (int64_t c = 0; c < n; c++) {
            dpre[c] = du[c] * silu_slope(pre[c]);
            db[c] += (double)dpre[c];
        }
        clear(column_gradient(a, b, t, c0), n,
              a->dx_add); /* the first to add to it is this token */
        for (int64_t k = most(0, start - (t - K + 1)); k < K; k++) {
            const int64_t place = t - K + 1 + k;
            const real *from = column(a->x, a->state_in, b, place, c0, L, C, K, a->ldx);
            real *to = column_gradient(a, b, place, c0);
            if (from)
                for (int64_t c = 0; c < n; c++) dw[k * n + c] += (double)dpre[c] * (double)from[c];
            if (to)
                for (int64_t c = 0; c < n; c++) to[c] += wt[k * n + c] * dpre[c];
        }
    }
    if (!a->dstate_out) return;
    for (int64_t i = 0; i < K - 1; i++) {
        const real *from = (const real *)a->dstate_out + (b * (K - 1) + i) * C + c0;
        real *to = column_gradient(a, b, L - (K - 1) + i, c0);
        if (to)
            for (int64_t c = 0; c < n; c++) to[c] += from[c];
    }
}

KERNEL(conv_adjoint) {
    const int64_t K = a->K, step = channels_at_a_time(K);
#pragma omp parallel for if (a->B * a->L * a->C > SMALL / 8)
    for (int64_t c0 = 0; c0 < a->C; c0 += step) {
        const int64_t n = least(step, a->C - c0);
        real wt[LONGEST];
        double dw[LONGEST] = {0}, db[COLUMNS] = {0};
        turn(wt, a->w, c0, n, K);
        for (int64_t b = 0; b < a->B; b++) adjoint_row(a, wt, b, c0, n, dw, db);
        for (int64_t c = 0; c < n; c++) {
            if (a->db) put_sum((real *)a->db + c0 + c, db[c], a->db_add);
            for (int64_t k = 0; a->dw && k < K; k++)
                put_sum((real *)a->dw + (c0 + c) * K + k, dw[k * n + c], a->dw_add);
        }
    }
}
