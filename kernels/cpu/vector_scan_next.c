/* vector_scan_next: one more token of a row, where the state is only read (kernels/cpu/scan.c has the
 * formulas). Nearly all time goes into fetching states, so the one pass over a head's state has
 * everything that needs it, and asks for lines some way ahead: pages end after a few rows, and
 * processors do not guess beyond them. */
#include "kernels/cpu/vector_scan.h"
#include "kernels/scan_recent.h"

enum { MOST_STATE = 16384, AT_ONCE = 64, AHEAD = 1024 /* numbers */ };

/* A head and its token: what has weight, the token itself among it. */
struct seen {
    int64_t n;
    float state;                                           /* weight of the state */
    float weight[SCAN_RECENT_MOST], met[SCAN_RECENT_MOST]; /* w_i; w_i (b_i . c) */
    const float *in[SCAN_RECENT_MOST], *b[SCAN_RECENT_MOST];
    _Alignas(64) float own[MOST_STATE], c[MOST_STATE]; /* b and c of the token */
};

static void widen_row(float *to, const stored *from, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        store_real_left(to + i, load_left(from + i, n - i), n - i);
}

static float dot(const float *x, const float *y, int64_t n) {
    vf sum = vf_all(0);
    for (int64_t i = 0; i < n; i += LANES)
        sum += load_real_left(x + i, n - i) * load_real_left(y + i, n - i);
    return vf_sum(sum);
}

/* S . c, of a row of the state. */
static float state_dot(const float *s, const float *c, int64_t n) {
    vf sum[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) {
            __builtin_prefetch(s + i + k * LANES + AHEAD);
            sum[k] += load_real(s + i + k * LANES) * load_real(c + i + k * LANES);
        }
    for (; i < n; i += LANES) sum[0] += load_real_left(s + i, n - i) * load_real_left(c + i, n - i);
    return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* The same, and the row after all tokens that are seen: `to` may be s. by: w_i D_i x_i of this row. */
static float state_next(float *to, const float *s, const struct seen *seen, const float *by,
                        int64_t n) {
    vf sum = vf_all(0);
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t left = n - i;
        vf v = vf_all(0);
        if (seen->state != 0) {
            __builtin_prefetch(s + i + AHEAD);
            v = load_real_left(s + i, left);
            sum += v * load_real_left(seen->c + i, left);
            v *= seen->state;
        }
        for (int64_t k = 0; k < seen->n; k++) v += by[k] * load_real_left(seen->b[k] + i, left);
        store_real_left(to + i, v, left);
    }
    return vf_sum(sum);
}

/* Remembers the token of row b and head h, and finds what it sees. */
static void seen_find(struct seen *s, const struct scan_next_args *a, int64_t b, int64_t h) {
    const int64_t H = a->H, P = a->P, S = a->S, n = a->n, heads = H / a->G;
    const struct scan_recent r = scan_recent(H, P, a->G, S, a->R);
    const struct head_constants constants = {.a = -exp((double)((const float *)a->a_log)[h]),
                                             .dt_bias = ((const float *)a->dt_bias)[h],
                                             .dt_min = (float)a->dt_min,
                                             .dt_max = (float)a->dt_max};
    const stored *u = (const stored *)a->u + b * (H * P + 2 * a->G * S), *x = u + h * P;
    const stored *own = u + H * P + h / heads * S;
    float *recent = (float *)a->recent + b * r.all, *in = recent + h * P;
    float *kept = recent + r.b_at + h / heads * S, *weight = recent + r.w_at + h * r.weight;
    vi clamped;
    const vf dt = vf_all(get((const stored *)a->dt + b * a->lddt + h) + constants.dt_bias);
    const float delta = vf_delta(&constants, dt, &clamped)[0];
    const float decay =
        a->start[b] == 0 ? 0 : vf_exp(vf_all((float)head_exponent(&constants, delta)))[0];
    for (int64_t p = 0; p < P; p += LANES)
        store_real_left(in + n * r.in + p, delta * load_left(x + p, P - p), P - p);
    widen_row(s->own, own, S);
    widen_row(s->c, own + a->G * S, S);
    /* Other heads of the group read their own copy: threads write it down but once. */
    if (h % heads == 0) memcpy(kept + n * r.b, s->own, (size_t)S * sizeof(float));
    weight[0] = n ? weight[0] * decay : decay;
    weight[n + 1] = 1;
    s->state = weight[0];
    s->n = 0;
    for (int64_t i = 0; i <= n; i++) {
        if (i < n) weight[i + 1] *= decay;
        const float w = weight[i + 1];
        if (w == 0) continue;
        s->in[s->n] = in + i * r.in;
        s->b[s->n] = i == n ? s->own : kept + i * r.b;
        s->met[s->n] = w * dot(s->b[s->n], s->c, S);
        s->weight[s->n++] = w;
    }
}

/* Row b, head h. */
static void next_head(const struct scan_next_args *a, int64_t b, int64_t h) {
    const int64_t H = a->H, P = a->P, S = a->S, at = (b * H + h) * P;
    const float *state = (const float *)a->state + at * S, d = ((const float *)a->d)[h];
    const stored *x = (const stored *)a->u + b * (H * P + 2 * a->G * S) + h * P;
    float *to = a->state_out ? (float *)a->state_out + at * S : NULL;
    struct seen seen;
    seen_find(&seen, a, b, h);
    for (int64_t p0 = 0; p0 < P; p0 += AT_ONCE) {
        const int64_t rows = least(AT_ONCE, P - p0);
        _Alignas(64) float from_state[AT_ONCE] = {0};
        for (int64_t p = 0; p < rows; p++) {
            const int64_t row = (p0 + p) * S;
            float by[SCAN_RECENT_MOST];
            if (to) {
                for (int64_t k = 0; k < seen.n; k++) by[k] = seen.weight[k] * seen.in[k][p0 + p];
                from_state[p] = state_next(to + row, state + row, &seen, by, S);
            } else if (seen.state != 0) {
                from_state[p] = state_dot(state + row, seen.c, S);
            }
        }
        for (int64_t p = 0; p < rows; p += LANES) {
            const int64_t left = rows - p;
            vf v = seen.state * load_real(from_state + p) + d * load_left(x + p0 + p, left);
            for (int64_t k = 0; k < seen.n; k++)
                v += seen.met[k] * load_real_left(seen.in[k] + p0 + p, left);
            store_left((stored *)a->y + at + p0 + p, v, left);
        }
    }
}

KERNEL(scan_next) {
    if (a->n < 0 || a->n >= a->R || a->R > SCAN_RECENT_MOST || !a->state_out != (a->n + 1 < a->R))
        bug("token %lld of %lld", (long long)a->n, (long long)a->R);
    if (a->S > MOST_STATE) bug("a state of %lld", (long long)a->S);
#pragma omp parallel for collapse(2) if (a->B * a->H * a->P * a->S > SMALL)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++) next_head(a, b, h);
}
