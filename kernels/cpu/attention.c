/* attention: o_i = sum over the keys j that i sees of p_ij v_j, p_ij = exp(s_ij - lse_i), s_ij =
 * scale q_i . k_j. Token i of a row sees the tokens start_i .. i of its row, and those before the
 * row (k_past; number j of P is at place j - P) if its document began that early. No array of
 * tokens by tokens: keys come a block at a time, and what was summed so far is scaled down whenever
 * a larger score turns up (Milakov and Gimelshein 2018, arXiv:1805.02867). Sums over keys are
 * rounded block by block, which keeps long ones accurate.
 *
 * Adjoint: with delta_i = go_i . o_i and ds_ij = p_ij (go_i . v_j - delta_i),
 *   dq_i = scale sum of ds_ij k_j,
 *   dk_j = scale sum over i of ds_ij q_i,   dv_j = sum over i of p_ij go_i.
 * Two sweeps, one over queries and one over keys, so that every result has one thread.
 *
 * Where the past ends some tokens before the row (away), places are counted from its end instead of
 * from the row's beginning; the row's own keys are not met then. */
#include "kernels/cpu/maths.h"

enum { BLOCK = 64, PIECE = 64, KEYS = 16 };

static real dot(const real *x, const real *y, int64_t n) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* y[0..D) += sum over j < n of weight[j] x_j, the rows x_j being ld apart. */
static void add_rows(real *y, const real *weight, const real *x, int64_t ld, int64_t n, int64_t D) {
    for (int64_t c0 = 0; c0 < D; c0 += PIECE) {
        const int64_t width = least(PIECE, D - c0);
        real sum[PIECE] = {0};
        for (int64_t j = 0; j < n; j++) {
            const real *row = x + j * ld + c0, s = weight[j];
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += s * row[c];
        }
        for (int64_t c = 0; c < width; c++) y[c0 + c] += sum[c];
    }
}

/* A run of keys and values that follow each other in memory, `n` of them, rows ldk and ldv apart.
 */
struct keys {
    const real *k, *v;
    int64_t n, ldk, ldv;
};

/* The place where a document begins, counted from the end of the past. */
static int64_t begins(int64_t start, int64_t away) {
    return start + most(0, away - 1);
}

/* The keys of head-group g that a token of row b sees: from the past, and from the row. */
static void visible(struct keys run[2], const real *k, const real *v, const real *k_past,
                    const real *v_past, int64_t b, int64_t i, int64_t start, int64_t g, int64_t L,
                    int64_t P, int64_t G, int64_t D, int64_t ldk, int64_t ldv, int64_t ldp,
                    int64_t away) {
    run[0] = run[1] = (struct keys){NULL, NULL, 0, 0, 0};
    const int64_t early = least(P, most(0, -begins(start, away))), from = most(0, start);
    if (k_past && early > 0) {
        const int64_t at = b * ldp + ((P - early) * G + g) * D;
        run[0] = (struct keys){k_past + at, v_past + at, early, G * D, G * D};
    }
    if (away > 0) return;
    run[1] = (struct keys){k + (b * L + from) * ldk + g * D, v + (b * L + from) * ldv + g * D,
                           i + 1 - from, ldk, ldv};
}

static void attend(const struct attention_args *a, int64_t b, int64_t i, int64_t h) {
    const int64_t token = b * a->L + i, D = a->D;
    const real *q = (const real *)a->q + token * a->ldq + h * D, scale = (real)a->scale;
    real *o = (real *)a->o + (token * a->H + h) * D;
    real largest = -(real)INFINITY;
    double sum = 0;
    struct keys runs[2];
    visible(runs, a->k, a->v, a->k_past, a->v_past, b, i, a->start[token], h / (a->H / a->G), a->L,
            a->P, a->G, D, a->ldk, a->ldv, a->ldp, a->away);
    for (int64_t c = 0; c < D; c++) o[c] = 0;
    for (const struct keys *r = runs; r < runs + 2; r++)
        for (int64_t j0 = 0; j0 < r->n; j0 += BLOCK) {
            const int64_t n = least(BLOCK, r->n - j0);
            real score[BLOCK], old = largest;
            for (int64_t j = 0; j < n; j++) {
                score[j] = scale * dot(q, r->k + (j0 + j) * r->ldk, D);
                if (score[j] > largest) largest = score[j];
            }
            if (largest > old && sum > 0) {
                const real shrink = exp(old - largest);
                sum *= (double)shrink;
                for (int64_t c = 0; c < D; c++) o[c] *= shrink;
            }
            for (int64_t j = 0; j < n; j++) {
                score[j] = exp(score[j] - largest);
                sum += (double)score[j];
            }
            add_rows(o, score, r->v + j0 * r->ldv, r->ldv, n, D);
        }
    const real inverse = (real)(sum > 0 || isnan(sum) ? 1 / sum : 0);
    for (int64_t c = 0; c < D; c++) o[c] *= inverse;
    ((real *)a->lse)[token * a->H + h] = (real)((double)largest + log(sum));
}

/* Neighbouring units of work share keys; later tokens see more of them, so units are handed out as
 * they are asked for. */
KERNEL(attention) {
#pragma omp parallel for collapse(3)                                                               \
    schedule(dynamic, 16) if (a->B * a->H * a->L * a->D > SMALL / 8)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t h = 0; h < a->H; h++)
            for (int64_t i = 0; i < a->L; i++) attend(a, b, i, h);
}

static void query_gradient(const struct attention_adjoint_args *a, int64_t b, int64_t i,
                           int64_t h) {
    const int64_t token = b * a->L + i, D = a->D, at = (token * a->H + h) * D;
    const real *q = (const real *)a->q + token * a->ldq + h * D, scale = (real)a->scale;
    const real *o = (const real *)a->o + at, *go = (const real *)a->go + at;
    const real lse = ((const real *)a->lse)[token * a->H + h], delta = dot(go, o, D);
    real *dq = (real *)a->dq + token * a->ldq + h * D;
    struct keys runs[2];
    visible(runs, a->k, a->v, a->k_past, a->v_past, b, i, a->start[token], h / (a->H / a->G), a->L,
            a->P, a->G, D, a->ldk, a->ldv, a->ldp, a->away);
    if (!a->dq_add) memset(dq, 0, (size_t)D * sizeof(real));
    for (const struct keys *r = runs; r < runs + 2; r++)
        for (int64_t j0 = 0; j0 < r->n; j0 += BLOCK) {
            const int64_t n = least(BLOCK, r->n - j0);
            real ds[BLOCK];
            for (int64_t j = 0; j < n; j++) {
                const real p = exp(scale * dot(q, r->k + (j0 + j) * r->ldk, D) - lse);
                ds[j] = scale * p * (dot(go, r->v + (j0 + j) * r->ldv, D) - delta);
            }
            add_rows(dq, ds, r->k + j0 * r->ldk, r->ldk, n, D);
        }
}

/* A key and its value, with the places where their gradients go (NULL: not wanted). */
struct key {
    const real *k, *v;
    real *dk, *dv;
    int64_t place;
};

/* Key j of row b, counted from the first of the past. */
static struct key find_key(const struct attention_adjoint_args *a, int64_t b, int64_t j,
                           int64_t g) {
    const int64_t D = a->D;
    if (j < a->P) {
        const int64_t at = b * a->ldp + (j * a->G + g) * D;
        return (struct key){a->k_past ? (const real *)a->k_past + at : NULL,
                            a->v_past ? (const real *)a->v_past + at : NULL,
                            a->dk_past ? (real *)a->dk_past + at : NULL,
                            a->dv_past ? (real *)a->dv_past + at : NULL, j - a->P};
    }
    const int64_t token = b * a->L + j - a->P;
    return (struct key){(const real *)a->k + token * a->ldk + g * D,
                        (const real *)a->v + token * a->ldv + g * D,
                        a->dk ? (real *)a->dk + token * a->ldk + g * D : NULL,
                        a->dv ? (real *)a->dv + token * a->ldv + g * D : NULL, j - a->P};
}

/* The first token of row b that does not see the key at `place`: its document's end. */
static int64_t document_end(const int32_t *start, int64_t L, int64_t place, int64_t away) {
    int64_t i = most(0, place);
    while (i < L && begins(start[i], away) <= place) i++;
    return i;
}

/* Adds what the n queries from i0 on, of head h, give to one key. delta: of each query. */
static void key_gradient(const struct attention_adjoint_args *a, const struct key *key, int64_t b,
                         int64_t h, int64_t i0, int64_t n, const real *delta) {
    const int64_t D = a->D, token = b * a->L + i0;
    const real *q = (const real *)a->q + token * a->ldq + h * D, scale = (real)a->scale;
    const real *go = (const real *)a->go + (token * a->H + h) * D;
    const real *lse = (const real *)a->lse + token * a->H + h;
    real p[BLOCK], ds[BLOCK];
    for (int64_t i = 0; i < n; i++) {
        p[i] = exp(scale * dot(q + i * a->ldq, key->k, D) - lse[i * a->H]);
        if (key->dk) ds[i] = scale * p[i] * (dot(go + i * a->H * D, key->v, D) - delta[i]);
    }
    if (key->dk) add_rows(key->dk, ds, q, a->ldq, n, D);
    if (key->dv) add_rows(key->dv, p, go, a->H * D, n, D);
}

/* The keys j0 to j1 of row b, all heads of group g. Keys in a block share the queries and their
 * deltas. */
static void keys_gradient(const struct attention_adjoint_args *a, int64_t b, int64_t g, int64_t j0,
                          int64_t j1) {
    const int64_t D = a->D, H = a->H, heads = H / a->G, past = a->k_past ? 0 : a->P;
    const int32_t *start = a->start + b * a->L;
    struct key keys[KEYS];
    int64_t end[KEYS];
    for (int64_t j = j0; j < j1; j++) {
        struct key *key = &keys[j - j0];
        *key = find_key(a, b, j, g);
        end[j - j0] = j < past ? 0 : document_end(start, a->L, key->place, a->away);
        const bool old = j < a->P;
        if (key->dk && !(old ? a->dk_past_add : a->dk_add))
            memset(key->dk, 0, (size_t)D * sizeof(real));
        if (key->dv && !(old ? a->dv_past_add : a->dv_add))
            memset(key->dv, 0, (size_t)D * sizeof(real));
    }
    int64_t last = 0;
    for (int64_t j = 0; j < j1 - j0; j++) last = most(last, end[j]);
    for (int64_t h = g * heads; h < (g + 1) * heads; h++)
        for (int64_t i0 = most(0, keys[0].place); i0 < last; i0 += BLOCK) {
            const int64_t i1 = least(i0 + BLOCK, last);
            real delta[BLOCK];
            for (int64_t i = i0; i < i1; i++) {
                const int64_t at = ((b * a->L + i) * H + h) * D;
                delta[i - i0] = dot((const real *)a->go + at, (const real *)a->o + at, D);
            }
            for (int64_t j = 0; j < j1 - j0; j++) {
                const int64_t from = most(i0, keys[j].place), to = least(i1, end[j]);
                if (from < to && (keys[j].dk || keys[j].dv))
                    key_gradient(a, &keys[j], b, h, from, to - from, delta + from - i0);
            }
        }
}

KERNEL(attention_adjoint) {
    const bool wide = a->B * a->H * a->L * a->D > SMALL / 8;
    if (a->dq) {
#pragma omp parallel for collapse(3) schedule(dynamic, 16) if (wide)
        for (int64_t b = 0; b < a->B; b++)
            for (int64_t h = 0; h < a->H; h++)
                for (int64_t i = 0; i < a->L; i++) query_gradient(a, b, i, h);
    }
    /* Blocks of keys do not cross the end of the past: its gradients may be wanted where the row's
     * are not. */
    if (a->dk_past || a->dv_past) {
#pragma omp parallel for collapse(3) schedule(dynamic) if (wide)
        for (int64_t b = 0; b < a->B; b++)
            for (int64_t g = 0; g < a->G; g++)
                for (int64_t j = 0; j < a->P; j += KEYS)
                    keys_gradient(a, b, g, j, least(j + KEYS, a->P));
    }
    if ((!a->dk && !a->dv) || a->away > 0) return;
#pragma omp parallel for collapse(3) schedule(dynamic) if (wide)
    for (int64_t b = 0; b < a->B; b++)
        for (int64_t g = 0; g < a->G; g++)
            for (int64_t j = a->P; j < a->P + a->L; j += KEYS)
                keys_gradient(a, b, g, j, least(j + KEYS, a->P + a->L));
}

KERNEL(attention_merge) {
    const int64_t D = a->D;
#pragma omp parallel for if (a->T * a->H * D > SMALL)
    for (int64_t t = 0; t < a->T * a->H; t++) {
        const real *more = (const real *)a->more + t * D;
        real *o = (real *)a->o + t * D, *lse = (real *)a->lse + t;
        const real old = *lse, other = ((const real *)a->lse_more)[t],
                   m = old > other ? old : other;
        if (other == -(real)INFINITY) continue; /* nothing was seen there */
        const double kept = exp((double)(old - m)), taken = exp((double)(other - m)),
                     sum = kept + taken;
        const real p = (real)(kept / sum), q = (real)(taken / sum);
#pragma omp simd
        for (int64_t c = 0; c < D; c++) o[c] = p * o[c] + q * more[c];
        *lse = (real)((double)m + log(sum));
    }
}
