/* vector_scan_next: one more token of a row, where the state is only read (kernels/cpu/scan.c has
 * the formulas). Nearly all time goes into fetching states, so there is one pass over a head's
 * state, also where it is written, and states are called for ahead, into the second cache: the
 * first has room for few lines on their way. */
#include "kernels/cpu/vector_scan.h"
#include "kernels/scan_recent.h"

enum { MOST_STATE = 16384, AT_ONCE = 64, AHEAD = 2048 /* numbers */ };

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
            __builtin_prefetch(s + i + k * LANES + AHEAD, 0, 2);
            sum[k] += load_real(s + i + k * LANES) * load_real(c + i + k * LANES);
        }
    for (; i < n; i += LANES) sum[0] += load_real_left(s + i, n - i) * load_real_left(c + i, n - i);
    return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* `vectors` vectors of a row after all tokens that are seen, from numbers s, of which `left` are
 * left; sums of s c go to sum. by: w_i D_i x_i of this row. */
INLINE void state_vectors(float *to, const float *s, const float *c, const struct seen *seen,
                          const float *by, int64_t i, int vectors, int64_t left, vf *sum) {
    const bool live = seen->state != 0;
    vf v[4];
    for (int j = 0; j < vectors; j++) {
        const int64_t at = i + j * LANES;
        __builtin_prefetch(s + at + AHEAD, 0, 2);
        v[j] = live ? load_real_left(s + at, left) : vf_all(0);
        sum[j] += v[j] * load_real_left(c + at, left);
        v[j] *= seen->state;
    }
    for (int64_t k = 0, n = seen->n; k < n; k++) {
        const float *b = seen->b[k] + i;
        const vf w = vf_all(by[k]);
        for (int j = 0; j < vectors; j++) v[j] += w * load_real_left(b + j * LANES, left);
    }
    for (int j = 0; j < vectors; j++) store_real_left(to + i + j * LANES, v[j], left);
}

/* The same as state_dot, and the row as it is after this token: `to` may be s. */
static float state_next(float *to, const float *s, const struct seen *seen, const float *by,
                        int64_t n) {
    vf sum[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        state_vectors(to, s, seen->c, seen, by, i, 4, LANES, sum);
    for (; i < n; i += LANES) state_vectors(to, s, seen->c, seen, by, i, 1, n - i, sum);
    return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
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
    float *recent = (float *)a->recent + b * r.all, *in = recent + h * r.in;
    float *kept = recent + r.b_at + h / heads * r.b, *weight = recent + r.w_at + h * r.weight;
    vi clamped;
    const vf dt = vf_all(get((const stored *)a->dt + b * a->lddt + h) + constants.dt_bias);
    const float delta = vf_delta(&constants, dt, &clamped)[0];
    const float decay = vf_exp(vf_all((float)head_exponent(&constants, delta)))[0];
    const bool begins = a->start[b] == 0; /* nothing before is seen, also what is no number */
    for (int64_t p = 0; p < P; p += LANES)
        store_real_left(in + n * P + p, delta * load_left(x + p, P - p), P - p);
    widen_row(s->own, own, S);
    widen_row(s->c, own + a->G * S, S);
    /* Other heads of the group read their own copy: threads write it down but once. */
    if (h % heads == 0) memcpy(kept + n * S, s->own, (size_t)S * sizeof(float));
    /* What the next head remembers lies apart from ours, and would be waited for. */
    for (int64_t i = 0; i < n * P; i += 64 / (int64_t)sizeof(float))
        __builtin_prefetch(in + r.in + i);
    weight[0] = begins ? 0 : n ? weight[0] * decay : decay;
    weight[n + 1] = 1;
    s->state = weight[0];
    s->n = 0;
    for (int64_t i = 0; i <= n; i++) {
        if (i < n) weight[i + 1] = begins ? 0 : weight[i + 1] * decay;
        const float w = weight[i + 1];
        if (w == 0) continue;
        s->in[s->n] = in + i * P;
        s->b[s->n] = i == n ? s->own : kept + i * S;
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
