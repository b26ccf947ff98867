/* scan: the Mamba-2 recurrence, a state S [P,N] for each head,
 *   S_t = decay_t S_{t-1} + D_t x_t b_t^T,   y_t = S_t c_t + d x_t,
 *   decay_t = exp(A D_t),   A = -exp(a_log),
 * computed a token at a time. The rows p of a state do not see each other, so a thread takes a few
 * of them, small enough to stay in its cache, through all tokens of a row. A document's first token
 * finds a zero state.
 *
 * Adjoint: with g_t the gradient of S_t, from the last token to the first and row p by row p,
 *   g_t = dy_t c_t + decay_{t+1} g_{t+1},   dx_t = D_t (g_t . b_t) + d dy_t,
 *   db_t += D_t x_t g_t,   dc_t += dy_t S_t,
 *   dD_t = sum over p of x_t (g_t . b_t) + A decay_t (g_t . S_{t-1}),
 *   dA = sum over p and t of D_t decay_t (g_t . S_{t-1}).
 * S_t is computed once more, Q tokens at a time, from the states saved at their beginnings: a
 * division by decay_t would lose everything where it is tiny.
 *
 * The two ends of a row by themselves: from no state, the state behind the row is the sum of
 * after_t D_t x_t b_t^T over its last document, after_t the product of the decays behind t; and the
 * gradient of the state before it is the sum of before_t dy_t c_t^T over the tokens of the document
 * that it belongs to, before_t the product of the decays up to and with t's. */
#include <stdlib.h>

#include "kernels/cpu/maths.h"
#include "kernels/scan_recent.h"

enum { IN_CACHE = 4096, MOST_STATE = 16384 };

/* What a token's dt does to a head's state. In double: there is one for P*S numbers of state. */
struct pace {
    double delta, decay, slope; /* slope: d delta / d dt, 0 where clamped */
};

static struct pace pace(double dt, double a_log, double dt_min, double dt_max) {
    const double soft = dt > 20 ? dt : log1p(exp(dt));
    const double delta = soft < dt_min ? dt_min : soft > dt_max ? dt_max : soft;
    return (struct pace){.delta = delta,
                         .decay = exp(-exp(a_log) * delta),
                         .slope = delta != soft ? 0
                                  : dt > 20     ? 1
                                                : 1 / (1 + exp(-dt))};
}

/* Rows p0 to p1 of head h through row b. */
static void scan_rows(const struct scan_args *a, int64_t b, int64_t h, int64_t p0, int64_t p1) {
    const int64_t H = a->H, P = a->P, S = a->S, L = a->L, n = (p1 - p0) * S;
    const int64_t wide = H * P + 2 * a->G * S, group = h / (H / a->G);
    const int64_t at = ((b * H + h) * P + p0) * S; /* of our rows in [B,H,P,S] */
    const int64_t chunks = (L + a->Q - 1) / a->Q;
    const real d = ((const real *)a->d)[h];
    const double a_log = (double)((const real *)a->a_log)[h];
    const double bias = (double)((const real *)a->dt_bias)[h];
    real state[MOST_STATE];
    if (a->state_in) memcpy(state, (const real *)a->state_in + at, (size_t)n * sizeof(real));
    else memset(state, 0, (size_t)n * sizeof(real));
    for (int64_t t = 0; t < L; t++) {
        const int64_t token = b * L + t;
        const real *x = (const real *)a->u + token * wide + h * P;
        const real *bt = (const real *)a->u + token * wide + H * P + group * S;
        const real *ct = bt + a->G * S;
        real *y = (real *)a->y + (token * H + h) * P;
        const double dt = (double)((const real *)a->dt)[token * a->lddt + h] + bias;
        const struct pace step = pace(dt, a_log, a->dt_min, a->dt_max);
        const real decay = (real)step.decay, delta = (real)step.delta;
        if (a->states && t % a->Q == 0) {
            const int64_t to = (((b * chunks + t / a->Q) * H + h) * P + p0) * S;
            memcpy((real *)a->states + to, state, (size_t)n * sizeof(real));
        }
        if (a->start[token] == t) memset(state, 0, (size_t)n * sizeof(real));
        for (int64_t p = p0; p < p1; p++) {
            real *s = state + (p - p0) * S, sum = 0;
            const real in = delta * x[p];
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < S; i++) {
                s[i] = decay * s[i] + in * bt[i];
                sum += s[i] * ct[i];
            }
            y[p] = sum + d * x[p];
        }
    }
    if (a->state_out) memcpy((real *)a->state_out + at, state, (size_t)n * sizeof(real));
}

KERNEL(scan) {
    if (a->S > MOST_STATE) bug("a state of %lld", (long long)a->S);
    if (a->L > 0 && a->Q < 1) bug("chunks of %lld tokens", (long long)a->Q);
    const int64_t rows = most(1, a->S > 0 ? IN_CACHE / a->S : a->P);
#pragma omp parallel for collapse(3) if (a->B * a->L * a->H * a->P * a->S > SMALL)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t p = 0; p < a->P; p += rows) scan_rows(a, b, h, p, least(p + rows, a->P));
}

/* One more token of row b, head h. What a group's heads share is remembered by the first of
 * them. */
static void next_head(const struct scan_next_args *a, int64_t b, int64_t h) {
    const int64_t H = a->H, P = a->P, S = a->S, n = a->n, heads = H / a->G, at = (b * H + h) * P;
    const struct scan_recent r = scan_recent(H, P, a->G, S, a->R);
    const real *u = (const real *)a->u + b * (H * P + 2 * a->G * S), *x = u + h * P;
    const real *bt = u + H * P + h / heads * S, *ct = bt + a->G * S;
    const real *state = (const real *)a->state + at * S, d = ((const real *)a->d)[h];
    real *recent = (real *)a->recent + b * r.all, *in = recent + h * r.in;
    real *kept = recent + r.b_at + h / heads * r.b, *weight = recent + r.w_at + h * r.weight;
    real *y = (real *)a->y + at, *to = a->state_out ? (real *)a->state_out + at * S : NULL;
    const double dt = (double)((const real *)a->dt)[b * a->lddt + h];
    const struct pace step = pace(dt + (double)((const real *)a->dt_bias)[h],
                                  (double)((const real *)a->a_log)[h], a->dt_min, a->dt_max);
    real seen[SCAN_RECENT_MOST] = {0}; /* w_i (b_i . c) */
    if (n == 0) weight[0] = 1;
    for (int64_t i = 0; i <= n; i++)
        weight[i] = a->start[b] == 0 ? 0 : weight[i] * (real)step.decay;
    weight[n + 1] = 1;
    for (int64_t p = 0; p < P; p++) in[n * P + p] = (real)step.delta * x[p];
    if (h % heads == 0) memcpy(kept + n * S, bt, (size_t)S * sizeof(real));
    for (int64_t i = 0; i <= n; i++) {
        const real *bi = i == n ? bt : kept + i * S;
        if (weight[i + 1] == 0) continue;
        for (int64_t j = 0; j < S; j++) seen[i] += bi[j] * ct[j];
        seen[i] *= weight[i + 1];
    }
    for (int64_t p = 0; p < P; p++) {
        const real *s = state + p * S;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < (weight[0] != 0 ? S : 0); j++) sum += s[j] * ct[j];
        sum = weight[0] * sum + d * x[p];
        for (int64_t i = 0; i <= n; i++)
            if (weight[i + 1] != 0) sum += seen[i] * in[i * P + p];
        y[p] = sum;
        for (int64_t j = 0; to && j < S; j++) {
            real v = weight[0] != 0 ? weight[0] * s[j] : 0;
            for (int64_t i = 0; i <= n; i++)
                if (weight[i + 1] != 0)
                    v += weight[i + 1] * in[i * P + p] * (i == n ? bt : kept + i * S)[j];
            to[p * S + j] = v;
        }
    }
}

KERNEL(scan_next) {
    if (a->n < 0 || a->n >= a->R || a->R > SCAN_RECENT_MOST || !a->state_out != (a->n + 1 < a->R))
        bug("token %lld of %lld", (long long)a->n, (long long)a->R);
#pragma omp parallel for collapse(2) if (a->B * a->H * a->P * a->S > SMALL)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++) next_head(a, b, h);
}

/* One thread's scratch, and what it has found for the head and chunk in hand. */
struct adjoint {
    real *carry;        /* [P,S] decay_{t+1} g_{t+1} */
    real *state;        /* [Q+1,S] one row's states: before the chunk, after each token */
    real *zero;         /* [S] */
    real *db, *dc;      /* [Q,S] sums over the head's rows */
    double *ddelta;     /* [Q] */
    struct pace *paces; /* [Q] */
};

/* Sums over the tokens of a row. */
struct head_sums {
    double a_log, d, dt_bias;
};

static void adjoint_init(struct adjoint *w, const struct scan_adjoint_args *a) {
    const uint64_t real_bytes = sizeof(real), P = (uint64_t)a->P, S = (uint64_t)a->S;
    const uint64_t Q = (uint64_t)least(a->Q, a->L);
    w->carry = die_alloc(P * S * real_bytes);
    w->state = die_alloc((Q + 1) * S * real_bytes);
    w->zero = die_alloc(S * real_bytes);
    w->db = die_alloc(Q * S * real_bytes);
    w->dc = die_alloc(Q * S * real_bytes);
    w->ddelta = die_alloc(Q * sizeof *w->ddelta);
    w->paces = die_alloc(Q * sizeof *w->paces);
}

static void adjoint_free(struct adjoint *w) {
    free(w->carry);
    free(w->state);
    free(w->zero);
    free(w->db);
    free(w->dc);
    free(w->ddelta);
    free(w->paces);
}

/* Where token t of row b keeps its x of head h, and its b and c of the head's group. */
static int64_t x_at(const struct scan_adjoint_args *a, int64_t token, int64_t h) {
    return token * (a->H * a->P + 2 * a->G * a->S) + h * a->P;
}

static int64_t b_at(const struct scan_adjoint_args *a, int64_t token, int64_t h) {
    return x_at(a, token, 0) + a->H * a->P + h / (a->H / a->G) * a->S;
}

/* The states of row p, head h over the tokens t0 to t1 of row b. */
static void states_again(const struct scan_adjoint_args *a, struct adjoint *w, int64_t b, int64_t h,
                         int64_t p, int64_t t0, int64_t t1) {
    const int64_t S = a->S, chunks = (a->L + a->Q - 1) / a->Q;
    const int64_t from = (((b * chunks + t0 / a->Q) * a->H + h) * a->P + p) * S;
    memcpy(w->state, (const real *)a->states + from, (size_t)S * sizeof(real));
    for (int64_t t = t0; t < t1; t++) {
        const int64_t token = b * a->L + t;
        const real *before = a->start[token] == t ? w->zero : w->state + (t - t0) * S;
        real *after = w->state + (t - t0 + 1) * S;
        const real *bt = (const real *)a->u + b_at(a, token, h);
        const real decay = (real)w->paces[t - t0].decay;
        const real in = (real)w->paces[t - t0].delta * ((const real *)a->u)[x_at(a, token, h) + p];
#pragma omp simd
        for (int64_t i = 0; i < S; i++) after[i] = decay * before[i] + in * bt[i];
    }
}

/* Row p of head h, tokens t1-1 down to t0. */
static void adjoint_rows(const struct scan_adjoint_args *a, struct adjoint *w, int64_t b, int64_t h,
                         int64_t p, int64_t t0, int64_t t1, struct head_sums *sums) {
    const int64_t S = a->S, G = a->G;
    const double A = -exp((double)((const real *)a->a_log)[h]);
    const real d = ((const real *)a->d)[h];
    real *g = w->carry + p * S;
    states_again(a, w, b, h, p, t0, t1);
    for (int64_t t = t1 - 1; t >= t0; t--) {
        const int64_t token = b * a->L + t;
        const bool first = a->start[token] == t;
        const struct pace *step = &w->paces[t - t0];
        const real x = ((const real *)a->u)[x_at(a, token, h) + p];
        const real dy = ((const real *)a->dy)[(token * a->H + h) * a->P + p];
        const real *bt = (const real *)a->u + b_at(a, token, h), *ct = bt + G * S;
        const real *before = first ? w->zero : w->state + (t - t0) * S;
        const real *after = w->state + (t - t0 + 1) * S;
        const real decay = first ? 0 : (real)step->decay, in = (real)step->delta * x;
        real *db = w->db + (t - t0) * S, *dc = w->dc + (t - t0) * S;
        real along_b = 0, along_state = 0;
#pragma omp simd reduction(+ : along_b, along_state)
        for (int64_t i = 0; i < S; i++) {
            const real gi = g[i] + dy * ct[i];
            along_b += gi * bt[i];
            along_state += gi * before[i];
            db[i] += in * gi;
            dc[i] += dy * after[i];
            g[i] = decay * gi;
        }
        const double ddecay = first ? 0 : (double)along_state * step->decay;
        w->ddelta[t - t0] += (double)x * (double)along_b + A * ddecay;
        sums->a_log += A * step->delta * ddecay;
        sums->d += (double)x * (double)dy;
        if (a->du)
            put((real *)a->du + x_at(a, token, h) + p, (real)step->delta * along_b + d * dy,
                a->du_add);
    }
}

/* Head h over the tokens t0 to t1. The heads of a group add to the same db and dc, one after
 * another. */
static void adjoint_chunk(const struct scan_adjoint_args *a, struct adjoint *w, int64_t b,
                          int64_t h, int64_t t0, int64_t t1, struct head_sums *sums) {
    const int64_t S = a->S, n = t1 - t0;
    const bool add = a->du_add || h % (a->H / a->G) != 0;
    memset(w->db, 0, (size_t)(n * S) * sizeof(real));
    memset(w->dc, 0, (size_t)(n * S) * sizeof(real));
    for (int64_t t = t0; t < t1; t++) {
        const double dt = (double)((const real *)a->dt)[(b * a->L + t) * a->lddt + h] +
                          (double)((const real *)a->dt_bias)[h];
        w->paces[t - t0] = pace(dt, (double)((const real *)a->a_log)[h], a->dt_min, a->dt_max);
        w->ddelta[t - t0] = 0;
    }
    for (int64_t p = 0; p < a->P; p++) adjoint_rows(a, w, b, h, p, t0, t1, sums);
    for (int64_t t = t0; t < t1; t++) {
        const int64_t token = b * a->L + t;
        const double ddt = w->ddelta[t - t0] * w->paces[t - t0].slope;
        sums->dt_bias += ddt;
        if (a->ddt) put_sum((real *)a->ddt + token * a->lddt + h, ddt, a->ddt_add);
        if (!a->du) continue;
        real *db = (real *)a->du + b_at(a, token, h), *dc = db + a->G * S;
        for (int64_t i = 0; i < S; i++) {
            put(&db[i], w->db[(t - t0) * S + i], add);
            put(&dc[i], w->dc[(t - t0) * S + i], add);
        }
    }
}

static void adjoint_head(const struct scan_adjoint_args *a, struct adjoint *w, int64_t b, int64_t h,
                         struct head_sums *sums) {
    const int64_t n = a->P * a->S, at = (b * a->H + h) * n;
    const real *last = a->dstate_out;
    for (int64_t i = 0; i < n; i++) w->carry[i] = last ? last[at + i] : 0;
    const int64_t last_chunk = a->L > 0 ? (a->L - 1) / a->Q * a->Q : -1;
    for (int64_t t0 = last_chunk; t0 >= 0; t0 -= a->Q)
        adjoint_chunk(a, w, b, h, t0, least(t0 + a->Q, a->L), sums);
    real *dstate_in = a->dstate_in;
    for (int64_t i = 0; dstate_in && i < n; i++)
        put(&dstate_in[at + i], w->carry[i], a->dstate_in_add);
}

/* A group of a row is one thread's. Sums over rows are added in row order afterwards. */
KERNEL(scan_adjoint) {
    const int64_t B = a->B, H = a->H, heads = a->G > 0 ? H / a->G : 0;
    if (a->L > 0 && a->Q < 1) bug("chunks of %lld tokens", (long long)a->Q);
    if (H == 0 && a->du && !a->du_add)
        memset(a->du, 0, (size_t)(B * a->L * 2 * a->G * a->S) * sizeof(real));
    struct head_sums *sums = die_alloc((uint64_t)(B * H) * sizeof *sums);
#pragma omp parallel if (B * a->L * H * a->P * a->S > SMALL)
    {
        struct adjoint scratch;
        adjoint_init(&scratch, a);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < B; b++)
            for (int64_t group = 0; group < a->G; group++)
                for (int64_t h = group * heads; h < (group + 1) * heads; h++)
                    adjoint_head(a, &scratch, b, h, &sums[b * H + h]);
        adjoint_free(&scratch);
    }
    for (int64_t h = 0; h < H; h++) {
        struct head_sums all = {0};
        for (int64_t b = 0; b < B; b++) {
            all.a_log += sums[b * H + h].a_log;
            all.d += sums[b * H + h].d;
            all.dt_bias += sums[b * H + h].dt_bias;
        }
        if (a->da_log) put_sum((real *)a->da_log + h, all.a_log, a->da_log_add);
        if (a->dd) put_sum((real *)a->dd + h, all.d, a->dd_add);
        if (a->ddt_bias) put_sum((real *)a->ddt_bias + h, all.dt_bias, a->ddt_bias_add);
    }
    free(sums);
}

/* Rows p0 to p1 of head h of row b: state += weight of each token times its two vectors, one of P
 * and one of S numbers. at_end: x and b, weighed by what is left of them behind the row; else dy
 * and c, by what they see of the state before it. Returns the decay of the whole row. */
struct ends {
    const real *u, *dt, *dy; /* dy: NULL where at_end */
    const int32_t *start;
    double a_log, bias, dt_min, dt_max;
    int64_t b, h, L, H, P, G, S, lddt;
};

static double end_of_row(const struct ends *e, int64_t p0, int64_t p1, real *state) {
    const int64_t S = e->S, P = e->P, wide = e->H * P + 2 * e->G * S;
    const int64_t b_at = e->H * P + e->h / (e->H / e->G) * S;
    const bool at_end = !e->dy;
    double all = 1;
    memset(state, 0, (size_t)((p1 - p0) * S) * sizeof(real));
    for (int64_t i = 0; i < e->L; i++) {
        const int64_t t = at_end ? e->L - 1 - i : i, token = e->b * e->L + t;
        const real *u = e->u + token * wide;
        const bool first = e->start[token] == t;
        const struct pace step =
            pace((double)e->dt[token * e->lddt + e->h] + e->bias, e->a_log, e->dt_min, e->dt_max);
        if (!at_end && first) return 0; /* of another document from here on */
        if (!at_end) all *= step.decay;
        const real weight = (real)(at_end ? all * step.delta : all);
        const real *left = at_end ? u + e->h * P : e->dy + (token * e->H + e->h) * P;
        const real *right = at_end ? u + b_at : u + b_at + e->G * S;
        for (int64_t p = p0; p < p1; p++) {
            const real in = weight * left[p];
#pragma omp simd
            for (int64_t j = 0; j < S; j++) state[(p - p0) * S + j] += in * right[j];
        }
        if (at_end && first) return 0;
        if (at_end) all *= step.decay;
    }
    return all;
}

/* All heads of all rows. */
static void row_ends(const struct ends *all, int64_t B, const real *a_log, const real *bias,
                     real *state, real *decay) {
    const int64_t H = all->H, P = all->P, S = all->S, rows = most(1, S > 0 ? IN_CACHE / S : P);
#pragma omp parallel for collapse(3) if (B * all->L * H * P * S > SMALL)
    for (int64_t b = 0; b < B; b++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t p = 0; p < P; p += rows) {
                struct ends e = *all;
                e.b = b, e.h = h, e.a_log = (double)a_log[h], e.bias = (double)bias[h];
                const double d =
                    end_of_row(&e, p, least(p + rows, P), state + ((b * H + h) * P + p) * S);
                if (p == 0) decay[b * H + h] = (real)d;
            }
}

/* A call of either row. */
#define ENDS(a, gradient, to)                                                                      \
    row_ends(&(struct ends){.u = (a)->u,                                                           \
                            .dt = (a)->dt,                                                         \
                            .dy = gradient,                                                        \
                            .start = (a)->start,                                                   \
                            .dt_min = (a)->dt_min,                                                 \
                            .dt_max = (a)->dt_max,                                                 \
                            .L = (a)->L,                                                           \
                            .H = (a)->H,                                                           \
                            .P = (a)->P,                                                           \
                            .G = (a)->G,                                                           \
                            .S = (a)->S,                                                           \
                            .lddt = (a)->lddt},                                                    \
             (a)->B, (a)->a_log, (a)->dt_bias, to, (a)->decay)

KERNEL(scan_end) {
    ENDS(a, NULL, a->state);
}

KERNEL(scan_begin) {
    ENDS(a, a->dy, a->dstate);
}

/* A number at a time through all rows; in may be s. */
KERNEL(scan_chain) {
    const int64_t N = a->N, row = a->B * a->W;
#pragma omp parallel for if (N * row > SMALL)
    for (int64_t w = 0; w < row; w++) {
        const int64_t head = w / a->W * a->H + (a->first + w % a->W) / most(1, a->each);
        real carried = 0;
        for (int64_t k = 0; k < N; k++) {
            const int64_t i = a->backward ? N - 1 - k : k;
            const real s = ((const real *)a->s)[i * row + w];
            ((real *)a->in)[i * row + w] = carried;
            carried = ((const real *)a->decay)[i * a->B * a->H + head] * carried + s;
        }
    }
}
