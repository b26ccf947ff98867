/* vector_conv: the short causal convolution of each channel, then SiLU, and its adjoint (conv.c has
 * the formulas).
 *
 * A piece of work is a block of tokens; within it one vector of channels goes down the tokens, so
 * that its weights and sums stay in registers, and each token's line for the next vector is asked
 * for ahead of time. The adjoint computes pre and dpre once more for the K-1 tokens behind its
 * block, whose gradients reach into it; its sums for dw and db go to `parts`, a row a block, which
 * are added in the order of the blocks. Where rows have one token, as in generation, a piece is a
 * vector of channels of all rows instead. */
#include "kernels/cpu/vector_transpose.h"

enum { TOKENS = 64, LONGEST = 1024 };

/* One row of the batch, as both directions read it. */
struct row {
    const stored *x, *state;
    const int32_t *start;
    int64_t b, L, C, ldx;
};

INLINE struct row row_of(const void *x, const void *state, const int32_t *start, int64_t b,
                         int64_t L, int64_t C, int64_t K, int64_t ldx) {
    return (struct row){(const stored *)x + b * L * ldx,
                        state ? (const stored *)state + b * (K - 1) * C : NULL,
                        start + b * L,
                        b,
                        L,
                        C,
                        ldx};
}

/* Channels c .. c+n of the column at `place`; before the row: from the state, or zeros. */
INLINE vf column(const struct row *r, int64_t place, int64_t c, int64_t n, int K) {
    if (place >= 0) return load_left(r->x + place * r->ldx + c, n);
    return r->state ? load_left(r->state + (K - 1 + place) * r->C + c, n) : vf_all(0);
}

/* w[k]: tap k of channels c .. c+n. */
INLINE void taps(vf *w, const float *from, int64_t c, int64_t n, int K) {
    if (K == 4 && n >= LANES) {
        const float *p = from + c * 4;
        const vf a = load_real(p), b = load_real(p + LANES), d = load_real(p + 2 * LANES),
                 e = load_real(p + 3 * LANES);
        for (int k = 0; k < 2; k++) {
            const vf low = every_other(a, b, k), high = every_other(d, e, k);
            w[k] = every_other(low, high, 0);
            w[k + 2] = every_other(low, high, 1);
        }
        return;
    }
    for (int k = 0; k < K; k++) {
        float lane[LANES] = {0};
        for (int64_t i = 0; i < least(n, LANES); i++) lane[i] = from[(c + i) * K + k];
        w[k] = load_real(lane);
    }
}

/* The first tap of token t that meets a column of its document. */
INLINE int64_t first_tap(const struct row *r, int64_t t, int K) {
    return most(0, r->start[t] - (t - K + 1));
}

INLINE vf before_silu(const struct row *r, const vf *w, vf bias, int64_t t, int64_t c, int64_t n,
                      int K) {
    vf pre = bias;
    const int64_t first = first_tap(r, t, K);
    if (first == 0 && t >= K - 1) {
        for (int k = 0; k < K; k++) pre += w[k] * load_left(r->x + (t - K + 1 + k) * r->ldx + c, n);
    } else {
        for (int64_t k = first; k < K; k++) pre += w[k] * column(r, t - K + 1 + k, c, n, K);
    }
    return pre;
}

INLINE void forward(const struct row *r, const struct conv_args *a, int64_t t0, int64_t t1,
                    int64_t c, int64_t n, int K, vf *w) {
    const vf bias = a->b ? load_real_left((const float *)a->b + c, n) : vf_all(0);
    stored *u = (stored *)a->u + r->b * r->L * r->C + c;
    taps(w, a->w, c, n, K);
    for (int64_t t = t0; t < t1; t++) {
        __builtin_prefetch((const char *)(r->x + t * r->ldx + c) + 64);
        store_left(u + t * r->C, vf_silu(before_silu(r, w, bias, t, c, n, K)), n);
    }
}

static void forward_few(const struct row *r, const struct conv_args *a, int64_t t0, int64_t t1,
                        int64_t c, int64_t n) {
    vf w[4];
    if (n >= LANES) forward(r, a, t0, t1, c, LANES, 4, w);
    else forward(r, a, t0, t1, c, n, 4, w);
}

static void forward_many(const struct row *r, const struct conv_args *a, int64_t t0, int64_t t1,
                         int64_t c, int64_t n) {
    vf w[LONGEST];
    forward(r, a, t0, t1, c, n, (int)a->K, w);
}

/* In order, because state_out may be state_in. */
static void last_columns(const struct conv_args *a, const struct row *r) {
    for (int64_t i = 0; i < a->K - 1; i++)
        for (int64_t c = 0; c < a->C; c += LANES)
            store_left((stored *)a->state_out + (r->b * (a->K - 1) + i) * a->C + c,
                       column(r, a->L - (a->K - 1) + i, c, a->C - c, (int)a->K), a->C - c);
}

/* Rows of one token (generation), channels c .. c+n: taps are read once for all rows, and a state
 * moves on as soon as it was seen. */
INLINE void next_token(const struct conv_args *a, int64_t c, int64_t n, const int K, vf *w) {
    enum { AHEAD = 64 };
    const vf bias = a->b ? load_real_left((const float *)a->b + c, n) : vf_all(0);
    taps(w, a->w, c, n, K);
    for (int64_t b = 0; b < a->B; b++) {
        const struct row r = row_of(a->x, a->state_in, a->start, b, 1, a->C, K, a->ldx);
        const int64_t first = r.state ? first_tap(&r, 0, K) : K - 1;
        stored *to = a->state_out ? (stored *)a->state_out + b * (K - 1) * a->C + c : NULL;
        const vf x = load_left(r.x + c, n);
        vf pre = bias;
        for (int k = 0; k < K - 1; k++) {
            const vf seen = r.state ? load_left(r.state + k * a->C + c, n) : vf_all(0);
            if (r.state) __builtin_prefetch(r.state + k * a->C + c + AHEAD, 0, 2);
            if (k >= first) pre += w[k] * seen;
            if (to && k) store_left(to + (k - 1) * a->C, seen, n);
        }
        if (to && K > 1) store_left(to + (K - 2) * a->C, x, n);
        store_left((stored *)a->u + b * a->C + c, vf_silu(pre + w[K - 1] * x), n);
    }
}

static void next_few(const struct conv_args *a, int64_t c, int64_t n) {
    vf w[4];
    if (n >= LANES) next_token(a, c, LANES, 4, w);
    else next_token(a, c, n, 4, w);
}

static void next_many(const struct conv_args *a, int64_t c, int64_t n) {
    vf w[LONGEST];
    next_token(a, c, n, (int)a->K, w);
}

KERNEL(conv) {
    const int64_t B = a->B, L = a->L, C = a->C, K = a->K;
    if (K < 1 || K > LONGEST) bug("convolution over %lld tokens", (long long)K);
    if (L == 1) {
#pragma omp parallel for if (B * C > SMALL / 8)
        for (int64_t c = 0; c < C; c += LANES)
            if (K == 4) next_few(a, c, C - c);
            else next_many(a, c, C - c);
        return;
    }
#pragma omp parallel for collapse(2) if (B * L * C > SMALL / 8)
    for (int64_t b = 0; b < B; b++)
        for (int64_t t0 = 0; t0 < L; t0 += TOKENS) {
            const struct row r = row_of(a->x, a->state_in, a->start, b, L, C, K, a->ldx);
            const int64_t t1 = least(L, t0 + TOKENS);
            for (int64_t c = 0; c < C; c += LANES) {
                if (K == 4) forward_few(&r, a, t0, t1, c, C - c);
                else forward_many(&r, a, t0, t1, c, C - c);
            }
        }
    for (int64_t b = 0; a->state_out && b < B; b++) {
        const struct row r = row_of(a->x, a->state_in, a->start, b, L, C, K, a->ldx);
        last_columns(a, &r);
    }
}

/* ---- adjoint ---- */

/* Gives the gradient of the column at place p, from dpre of the tokens t0 on. */
INLINE void column_gradient(const struct row *r, const struct conv_adjoint_args *a, const vf *w,
                            const vf *dpre, int64_t t0, int64_t p, int64_t c, int64_t n, int K) {
    const int64_t L = r->L, last = p + K - 1;
    vf sum = vf_all(0);
    if (p >= 0 && last < L && r->start[last] <= p) {
        for (int j = 0; j < K; j++) sum += w[K - 1 - j] * dpre[p - t0 + j];
    } else {
        for (int64_t t = most(0, p); t < least(L, last + 1); t++)
            if (r->start[t] <= p) sum += w[K - 1 - (t - p)] * dpre[t - t0];
    }
    if (a->dstate_out && p >= L - (K - 1)) {
        const stored *from = a->dstate_out;
        sum += load_left(from + (r->b * (K - 1) + p - L + K - 1) * r->C + c, n);
    }
    if (p >= 0) put_left((stored *)a->dx + (r->b * L + p) * r->ldx + c, sum, n, a->dx_add);
    else
        put_left((stored *)a->dstate_in + (r->b * (K - 1) + K - 1 + p) * r->C + c, sum, n,
                 a->dstate_in_add);
}

/* Tokens t0 to t1, channels c .. c+n; w and dw have K places, dpre that of the block and K-1. */
INLINE void backward(const struct row *r, const struct conv_adjoint_args *a, int64_t t0, int64_t t1,
                     int64_t c, int64_t n, int K, vf *w, vf *dw, vf *dpre) {
    const vf bias = a->b ? load_real_left((const float *)a->b + c, n) : vf_all(0);
    const stored *du = (const stored *)a->du + r->b * r->L * r->C + c;
    vf db = vf_all(0);
    taps(w, a->w, c, n, K);
    for (int k = 0; k < K; k++) dw[k] = vf_all(0);
    for (int64_t t = t0; t < least(r->L, t1 + K - 1); t++) {
        __builtin_prefetch((const char *)(r->x + t * r->ldx + c) + 64);
        __builtin_prefetch((const char *)(du + t * r->C) + 64);
        const vf pre = before_silu(r, w, bias, t, c, n, K);
        const vf d = load_left(du + t * r->C, n) * vf_silu_slope(pre, vf_sigmoid(pre));
        dpre[t - t0] = d;
        if (t >= t1) continue;
        db += d;
        const int64_t first = first_tap(r, t, K);
        if (first == 0 && t >= K - 1) {
            for (int k = 0; k < K; k++)
                dw[k] += d * load_left(r->x + (t - K + 1 + k) * r->ldx + c, n);
        } else {
            for (int64_t k = first; k < K; k++) dw[k] += d * column(r, t - K + 1 + k, c, n, K);
        }
    }
    if (t0 == 0 && a->dstate_in)
        for (int64_t p = 1 - K; p < 0; p++) column_gradient(r, a, w, dpre, t0, p, c, n, K);
    if (a->dx)
        for (int64_t p = t0; p < t1; p++) column_gradient(r, a, w, dpre, t0, p, c, n, K);
    if (t1 == t0) return;
    float *part = (float *)a->parts +
                  (r->b * ((r->L + TOKENS - 1) / TOKENS) + t0 / TOKENS) * (K + 1) * r->C + c;
    for (int k = 0; k < K; k++) store_real_left(part + k * r->C, dw[k], n);
    store_real_left(part + K * r->C, db, n);
}

static void backward_few(const struct row *r, const struct conv_adjoint_args *a, int64_t t0,
                         int64_t t1, int64_t c, int64_t n) {
    vf w[4], dw[4], dpre[TOKENS + 3];
    if (n >= LANES) backward(r, a, t0, t1, c, LANES, 4, w, dw, dpre);
    else backward(r, a, t0, t1, c, n, 4, w, dw, dpre);
}

static void backward_many(const struct row *r, const struct conv_adjoint_args *a, int64_t t0,
                          int64_t t1, int64_t c, int64_t n) {
    vf w[LONGEST], dw[LONGEST], dpre[TOKENS + LONGEST];
    backward(r, a, t0, t1, c, n, (int)a->K, w, dw, dpre);
}

/* The sums over all blocks for channels c .. c+LANES. */
static void add_parts(const struct conv_adjoint_args *a, int64_t c) {
    const int64_t blocks = a->B * ((a->L + TOKENS - 1) / TOKENS), n = a->C - c, K = a->K;
    for (int64_t k = 0; k <= K; k++) {
        const float *part = (const float *)a->parts + k * a->C + c;
        vf sum = vf_all(0);
        for (int64_t i = 0; i < blocks; i++) sum += load_real_left(part + i * (K + 1) * a->C, n);
        if (k == K && a->db) put_real_left((float *)a->db + c, sum, n, a->db_add);
        for (int64_t i = 0; k < K && a->dw && i < least(n, LANES); i++) {
            float *dw = (float *)a->dw + (c + i) * K + k;
            *dw = a->dw_add ? *dw + sum[i] : sum[i];
        }
    }
}

KERNEL(conv_adjoint) {
    const int64_t B = a->B, L = a->L, C = a->C, K = a->K;
    if (K < 1 || K > LONGEST) bug("convolution over %lld tokens", (long long)K);
#pragma omp parallel if (B * L * C > SMALL / 8)
    {
#pragma omp for collapse(2)
        for (int64_t b = 0; b < B; b++)
            for (int64_t t0 = 0; t0 < most(L, 1); t0 += TOKENS) {
                const struct row r = row_of(a->x, a->state_in, a->start, b, L, C, K, a->ldx);
                const int64_t t1 = least(L, t0 + TOKENS);
                for (int64_t c = 0; c < C; c += LANES) {
                    if (K == 4) backward_few(&r, a, t0, t1, c, C - c);
                    else backward_many(&r, a, t0, t1, c, C - c);
                }
            }
#pragma omp for
        for (int64_t c = 0; c < C; c += LANES) add_parts(a, c);
    }
}
