/* vector_attention_adjoint: blocks of queries against blocks of keys as in vector_attention.c, the
 * weights computed again from lse (FlashAttention-2, Dao 2023, arXiv:2307.08691, algorithm 2). With
 * s = k q, p = 2^((scale s - lse) / ln 2), dp = v go, delta = go . o, ds = p (dp - delta):
 *
 *   dq = scale ds k,   dk = scale ds q,   dv = p go.
 *
 * dq of a block of queries is complete after its last key. dk and dv have a sum for each of C
 * pieces of the row's queries, in scratch, added up in order at the end: C depends on sizes alone,
 * pieces on the documents, so no result depends on threads.
 *
 * delta is added up in the order of dp: where a token sees only itself, ds is zero exactly. */
#include "kernels/cpu/vector_attention.h"

/* The work of one thread; D1: D in whole vectors. */
struct work {
    unit *q, *go;         /* [units of D][queries] */
    unit *q_row, *go_row; /* [units of queries][D1] */
    float *dq;            /* [D][queries] */
    unit *k, *v, *kt;     /* keys as rows, values as rows, keys as columns, where they are copied */
    _Alignas(64) float score[KEYS * MOST_LANES], dscore[KEYS * MOST_LANES];
#if defined STORED_BF16 && defined __AVX512BF16__
    unit p_row[KEYS * MOST_LANES / 2], ds_row[KEYS * MOST_LANES / 2]; /* [key][units of queries] */
    unit ds[KEYS / 2 * MOST_LANES];                                   /* [units of keys][queries] */
#endif
    float lse[MOST_LANES], delta[MOST_LANES];
};

enum { MOST_PIECES = 16 };

/* Keys that there are before and in a row. */
static int64_t keys_of(const struct attention_adjoint_args *a) {
    return a->P + (a->away > 0 ? 0 : a->L);
}

/* Keys before and in the row, the heads' group g: gradients of piece c. */
static float *sums_of(const struct attention_adjoint_args *a, int64_t b, int64_t g, int64_t c) {
    return (float *)a->scratch + ((b * a->G + g) * a->C + c) * 2 * keys_of(a) * whole(a->D);
}

static int64_t past_of(const struct attention_adjoint_args *a) {
    return a->k_past ? a->P : 0;
}

/* A piece of a row's blocks of queries, and the places of the keys that these see. */
struct piece {
    int64_t from, to, low, high;
};

/* Keys that token i sees, whose document begins at `start`. */
static double seen(const struct attention_adjoint_args *a, int64_t start, int64_t i) {
    return (double)most(0, behind_last(i, a->away) - first_seen(start, past_of(a), a->away));
}

/* Piece c of C of row b: about equal numbers of pairs of a query and a key it sees. */
static struct piece find_piece(const struct attention_adjoint_args *a, int64_t b, int64_t c) {
    const int64_t heads = a->H / a->G, lanes = lanes_of(a->D);
    const int64_t blocks = (a->L * heads + lanes - 1) / lanes;
    const int32_t *start = a->start + b * a->L;
    struct piece piece = {blocks, blocks, 0, 0};
    double all = 0, before = 0;
    for (int64_t u = 0; u < blocks; u++) {
        const int64_t i = (least((u + 1) * lanes, a->L * heads) - 1) / heads;
        all += seen(a, start[i], i);
    }
    for (int64_t u = 0; u < blocks; u++) {
        const int64_t i = (least((u + 1) * lanes, a->L * heads) - 1) / heads;
        const double share = before * (double)a->C;
        if (piece.from == blocks && share >= (double)c * all) piece.from = u;
        if (c + 1 < a->C && piece.to == blocks && share >= (double)(c + 1) * all) piece.to = u;
        before += seen(a, start[i], i);
    }
    if (piece.from == piece.to) return piece;
    piece.high = behind_last((least(piece.to * lanes, a->L * heads) - 1) / heads, a->away);
    piece.low =
        least(piece.high, first_seen(start[piece.from * lanes / heads], past_of(a), a->away));
    return piece;
}

/* to[units of queries][D1]: the queries' rows as they are, pairs of them side by side. Rows of
 * lanes without a query are zero, so that these give nothing to any key. */
static void queries_rows(const struct queries *q, unit *to, const stored *x, int64_t ld,
                         int64_t D) {
    const int64_t D1 = whole(D);
    for (int64_t m = 0; m < q->vectors * LANES; m += PAIR)
        for (int64_t d = 0; d < D1; d += LANES) {
            vf row[PAIR];
            for (int h = 0; h < PAIR; h++) {
                const stored *p = x + q->token[m + h] * ld + q->head[m + h] * D + d;
                if (m + h >= q->n) row[h] = (vf){0};
                else row[h] = load_left(p, D - d);
            }
            store_units(to + m / PAIR * D1 + d, pair_up(row));
        }
}

/* What the block of queries is before it meets keys. */
static void prepare(const struct attention_adjoint_args *a, const struct queries *q,
                    struct work *w) {
    const int64_t D = a->D, ld = q->lanes;
    unit *o = (unit *)w->dq; /* free until then */
    queries_turn(q, w->q, a->q, a->ldq, D);
    queries_turn(q, w->go, a->go, a->H * D, D);
    queries_turn(q, o, a->o, a->H * D, D);
    queries_rows(q, w->q_row, a->q, a->ldq, D);
    queries_rows(q, w->go_row, a->go, a->H * D, D);
    for (int64_t m = 0; m < q->vectors * LANES; m++)
        w->lse[m] = m < q->n ? ((const float *)a->lse)[q->row[m]] : 1e30f;
    for (int v = 0; v < q->vectors; v++) {
        vf delta = {0};
        for (int64_t d = 0; d < units(D); d++)
            delta = multiply_add(delta, load_units(o + d * ld + v * LANES),
                                 load_units(w->go + d * ld + v * LANES));
        store_real(w->delta + v * LANES, delta);
    }
}

/* Scores and dp of n keys to p and ds. */
INLINE void differentiate(const struct attention_adjoint_args *a, const struct queries *q,
                          struct work *w, int64_t j0, int64_t n, const bool masked) {
    const int64_t ld = q->lanes;
    const float scale = (float)a->scale;
    for (int v = 0; v < q->vectors; v++) {
        const vf lse = load_real(w->lse + v * LANES), delta = load_real(w->delta + v * LANES);
        for (int64_t j = 0; j < n; j += PAIR) {
            vf p[PAIR], ds[PAIR];
            for (int h = 0; h < PAIR; h++) {
                const int64_t at = (j + h) * ld + v * LANES;
                if (h && j + h == n) {
                    ds[h] = (vf){0};
                    continue;
                }
                p[h] = power_of_two((load_real(w->score + at) * scale - lse) * log2e);
                if (masked) p[h] = vf_choose(sees(q, v, j0 + j + h), p[h], (vf){0});
                ds[h] = p[h] * (load_real(w->dscore + at) - delta);
#if defined STORED_BF16 && defined __AVX512BF16__
                store((stored *)w->p_row + at, p[h]);
                store((stored *)w->ds_row + at, ds[h]);
#else
                store_real(w->score + at, p[h]);
                store_real(w->dscore + at, ds[h]);
#endif
            }
#if defined STORED_BF16 && defined __AVX512BF16__
            store_units(w->ds + j / 2 * ld + v * LANES, pair_up(ds));
#endif
        }
    }
}

/* dq of the block, complete, to its rows. */
static void give_dq(const struct attention_adjoint_args *a, const struct queries *q,
                    const struct work *w) {
    for (int v = 0; v < q->vectors; v++)
        for (int64_t d = 0; d < a->D; d += LANES) {
            const int64_t width = least(LANES, a->D - d), n = least(LANES, q->n - v * LANES);
            vf x[LANES];
            for (int64_t i = 0; i < LANES; i++)
                x[i] = i < width
                           ? load_real(w->dq + (d + i) * q->lanes + v * LANES) * (float)a->scale
                           : (vf){0};
            transpose(x);
            for (int64_t i = 0; i < n; i++) {
                const int64_t m = v * LANES + i;
                stored *dq = (stored *)a->dq + q->token[m] * a->ldq + q->head[m] * a->D + d;
                put_left(dq, x[i], width, a->dq_add);
            }
        }
}

/* sums[n keys][D1] += a row of weights for each key, times the queries' rows. */
static void add_to_keys(float *sums, const unit *weights, const unit *rows, int64_t n,
                        const struct queries *q, int64_t D1) {
    product_of_rows(&(struct product){.c = sums,
                                      .ldc = D1,
                                      .a = weights,
                                      .lda = units(q->lanes),
                                      .b = rows,
                                      .ldb = D1,
                                      .rows = n,
                                      .depth = units(q->vectors * LANES),
                                      .vectors = D1 / LANES,
                                      .begin = ADDED});
}

/* One block of queries: its dq, and what it gives to sums[key][D1] of dk and dv. */
static void block(const struct attention_adjoint_args *a, int64_t b, int64_t g, int64_t u,
                  float *dk, float *dv, struct work *w) {
    struct queries q;
    struct keys run[2];
    queries_find(&q, b, g, u, a->start, a->L, past_of(a), a->away, a->H, a->G, a->D);
    prepare(a, &q, w);
    const int64_t D = a->D, D1 = whole(D), ld = q.lanes;
    enum begin begin = FRESH;
    KEYS_FIND(run, a, b, g, q.low, q.high);
#if defined STORED_BF16 && defined __AVX512BF16__
    const unit *p_row = w->p_row, *ds_row = w->ds_row, *ds = w->ds;
#else
    const unit *p_row = w->score, *ds_row = w->dscore, *ds = w->dscore;
#endif
    for (const struct keys *r = run; r < run + 2; r++)
        for (int64_t j = r->from; j < r->to; j += KEYS) {
            const int64_t n = least(KEYS, r->to - j), at = (j + a->P) * D1;
            const struct factor k = as_rows(w->k, r->k + j * r->ldk, r->ldk, n, D);
            const struct factor v = as_rows(w->v, r->v + j * r->ldv, r->ldv, n, D);
            meet_keys(w->score, &k, n, w->q, &q, D);
            meet_keys(w->dscore, &v, n, w->go, &q, D);
            if (j >= q.all_low && j + n <= q.all_high) differentiate(a, &q, w, j, n, false);
            else differentiate(a, &q, w, j, n, true);
            if (dk) add_to_keys(dk + at, ds_row, w->q_row, n, &q, D1);
            if (dv) add_to_keys(dv + at, p_row, w->go_row, n, &q, D1);
            if (!a->dq) continue;
            const struct factor kt =
                PAIR == 1 ? k : as_columns(w->kt, r->k + j * r->ldk, r->ldk, n, D);
            product_of_columns(&(struct product){.c = w->dq,
                                                 .ldc = ld,
                                                 .a = kt.p,
                                                 .lda = kt.ld,
                                                 .b = ds,
                                                 .ldb = ld,
                                                 .rows = D,
                                                 .depth = units(n),
                                                 .vectors = q.vectors,
                                                 .begin = begin});
            begin = ADDED;
        }
    if (begin == FRESH) memset(w->dq, 0, (size_t)(D * ld) * sizeof *w->dq); /* no key is seen */
    if (a->dq) give_dq(a, &q, w);
}

/* Piece c of row b, key head g. */
static void piece_gradients(const struct attention_adjoint_args *a, int64_t b, int64_t g, int64_t c,
                            struct work *w) {
    const struct piece piece = find_piece(a, b, c);
    const int64_t D1 = whole(a->D), low = (piece.low + a->P) * D1;
    const size_t bytes = (size_t)((piece.high - piece.low) * D1) * sizeof(float);
    float *dk = sums_of(a, b, g, c), *dv = dk + keys_of(a) * D1;
    if (!a->dk && !a->dk_past) dk = NULL;
    if (!a->dv && !a->dv_past) dv = NULL;
    if (dk) memset(dk + low, 0, bytes);
    if (dv) memset(dv + low, 0, bytes);
    for (int64_t u = piece.from; u < piece.to; u++) block(a, b, g, u, dk, dv, w);
}

/* Adds up the pieces' sums of the key at `place`: to y. */
static void add_pieces(const struct attention_adjoint_args *a, const struct piece *piece,
                       const float *sums, int64_t place, float factor, stored *y, int add) {
    const int64_t D1 = whole(a->D), step = 2 * keys_of(a) * D1;
    for (int64_t d = 0; d < a->D; d += LANES) {
        vf sum = {0};
        for (int64_t c = 0; c < a->C; c++)
            if (place >= piece[c].low && place < piece[c].high)
                sum += load_real(sums + c * step + (place + a->P) * D1 + d);
        put_left(y + d, sum * factor, a->D - d, add);
    }
}

/* dk and dv of the keys of places from..to - 1. */
static void give_keys(const struct attention_adjoint_args *a, int64_t b, int64_t g, int64_t from,
                      int64_t to, const struct piece *piece) {
    const int64_t D = a->D, D1 = whole(D);
    const float *dk = sums_of(a, b, g, 0), *dv = dk + keys_of(a) * D1;
    for (int64_t j = from; j < to; j++) {
        const int64_t old = b * a->ldp + ((j + a->P) * a->G + g) * D, token = b * a->L + j;
        stored *k = j < 0 ? a->dk_past : a->dk, *v = j < 0 ? a->dv_past : a->dv;
        if (k)
            add_pieces(a, piece, dk, j, (float)a->scale, k + (j < 0 ? old : token * a->ldk + g * D),
                       j < 0 ? a->dk_past_add : a->dk_add);
        if (v)
            add_pieces(a, piece, dv, j, 1, v + (j < 0 ? old : token * a->ldv + g * D),
                       j < 0 ? a->dv_past_add : a->dv_add);
    }
}

KERNEL(attention_adjoint) {
    enum { SHARES = 32 }; /* of a row's keys, for the last sweep */
    if (a->B * a->G * keys_of(a) * a->D == 0) return;
    if (a->C < 1 || a->C > MOST_PIECES) bug("%d pieces", (int)a->C);
    const int64_t D = a->D, D1 = whole(D), lanes = lanes_of(D), keys = keys_of(a);
    const int64_t needed = 5 * lanes * D1 + 3 * KEYS * D1;
#pragma omp parallel if (a->B * a->H * a->L * D * (a->L + a->P) > SMALL * 8)
    {
        unit *space = cpu_workspace((size_t)needed * sizeof *space);
        struct work w;
        struct piece piece[MOST_PIECES];
        w.q = carve(&space, lanes * D1);
        w.go = carve(&space, lanes * D1);
        w.q_row = carve(&space, lanes * D1);
        w.go_row = carve(&space, lanes * D1);
        w.dq = (float *)carve(&space, lanes * D1);
        w.k = carve(&space, KEYS * D1);
        w.v = carve(&space, KEYS * D1);
        w.kt = carve(&space, KEYS * D1);
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < a->B; b++)
            for (int64_t g = 0; g < a->G; g++)
                for (int64_t c = 0; c < a->C; c++) piece_gradients(a, b, g, c, &w);
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t b = 0; b < a->B; b++)
            for (int64_t g = 0; g < a->G; g++)
                for (int64_t s = 0; s < SHARES; s++) {
                    for (int64_t c = 0; c < a->C; c++) piece[c] = find_piece(a, b, c);
                    give_keys(a, b, g, keys * s / SHARES - a->P, keys * (s + 1) / SHARES - a->P,
                              piece);
                }
    }
}
