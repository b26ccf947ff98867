/* vector_attention: a block of queries meets the keys it sees a block at a time (FlashAttention-2,
 * Dao 2023, arXiv:2307.08691): scores, weights relative to the largest score so far, what was
 * summed before scaled down where a larger one turned up, and division by the sum of weights at the
 * very end. Exponentials are powers of two: weight = 2^(c (s - m)), c = scale / ln 2, m the largest
 * s, so that the largest weight is 1 exactly and a token that sees only itself gets its value
 * unchanged.
 *
 * Where there are few blocks of queries and many keys (decoding), the keys are cut into C pieces,
 * which depend on sizes alone; each leaves its sums in scratch, and these are merged in order. */
#include "kernels/cpu/vector_attention.h"
#include "kernels/cpu/vector_attention_few.h"

/* The work of one thread. */
struct work {
    unit *q;     /* [units of D][queries] */
    float *o;    /* [D][queries] */
    unit *k, *v; /* keys as rows, values as columns, where they are copied */
    float *few;  /* [FEW][D in whole vectors] */
    _Alignas(64) float score[KEYS * MOST_LANES]; /* [key][queries] */
    unit weight[KEYS / PAIR * MOST_LANES];       /* [units of keys][queries] */
    float largest[MOST_LANES], sum[MOST_LANES], shrink[MOST_LANES];
};

/* Scores of n keys, from place j0 on, to weights, with sums and largest brought up to date. */
INLINE void weigh(struct work *w, const struct queries *q, int64_t j0, int64_t n, float c,
                  const bool masked) {
    const int64_t ld = q->lanes;
    for (int v = 0; v < q->vectors; v++) {
        float *score = w->score + v * LANES;
        const vf before = load_real(w->largest + v * LANES);
        vf most_of_all[2] = {vf_all(-INFINITY), vf_all(-INFINITY)};
        for (int64_t j = 0; j < n; j++) {
            vf s = load_real(score + j * ld);
            if (masked) {
                s = vf_choose(sees(q, v, j0 + j), s, vf_all(-INFINITY));
                store_real(score + j * ld, s);
            }
            most_of_all[j & 1] = vf_max(most_of_all[j & 1], s);
        }
        const vf m = vf_max(before, vf_max(most_of_all[0], most_of_all[1]));
        const vf shrink = power_of_two((before - m) * c);
        vf sum = {0};
        for (int64_t j = 0; j < n; j += PAIR) {
            vf p[PAIR];
            for (int h = 0; h < PAIR; h++) {
                if (h && j + h == n) { /* half a unit */
                    p[h] = (vf){0};
                    continue;
                }
                p[h] = power_of_two((load_real(score + (j + h) * ld) - m) * c);
                if (masked) p[h] = vf_choose(sees(q, v, j0 + j + h), p[h], (vf){0});
                sum += p[h];
            }
            store_units(w->weight + j / PAIR * ld + v * LANES, pair_up(p));
        }
        store_real(w->largest + v * LANES, m);
        store_real(w->shrink + v * LANES, shrink);
        store_real(w->sum + v * LANES, load_real(w->sum + v * LANES) * shrink + sum);
    }
}

/* The same, with keys along the lanes. */
static void attend_few(const struct queries *q, const struct keys run[2], int64_t D, float c,
                       struct work *w) {
    struct few f = {w->q, w->few, w->v, w->score, w->weight, {0}, {{0}}};
    few_attend(&f, q, run, D, c);
    for (int64_t m = 0; m < q->vectors * LANES; m++) {
        const bool there = m < q->n;
        w->largest[m] = there ? f.largest[m] : 0;
        w->sum[m] = there ? vf_sum(f.sum[m]) : 1;
    }
    for (int v = 0; v < q->vectors; v++)
        for (int64_t d = 0; d < D; d += LANES) {
            vf x[LANES];
            for (int64_t i = 0; i < LANES; i++)
                x[i] = v * LANES + i < q->n ? load_real(f.o + (v * LANES + i) * whole(D) + d)
                                            : (vf){0};
            transpose(x);
            for (int64_t i = 0; i < least(LANES, D - d); i++)
                store_real(w->o + (d + i) * q->lanes + v * LANES, x[i]);
        }
}

/* w->o, sum and largest of the queries, over the keys of places low..high - 1. */
static void attend(const struct attention_args *a, const struct queries *q, int64_t low,
                   int64_t high, struct work *w) {
    const int64_t D = a->D, ld = q->lanes;
    const float c = (float)a->scale * log2e;
    struct keys run[2];
    KEYS_FIND(run, a, q->b, q->g, low, high);
    if (q->n <= FEW) {
        attend_few(q, run, D, c, w);
        return;
    }
    for (int64_t m = 0; m < q->vectors * LANES; m++) {
        w->largest[m] = -1e30f; /* finite: no difference of infinities */
        w->sum[m] = 0;
    }
    memset(w->o, 0, (size_t)(D * ld) * sizeof *w->o);
    for (const struct keys *r = run; r < run + 2; r++)
        for (int64_t j = r->from; j < r->to; j += KEYS) {
            const int64_t n = least(KEYS, r->to - j);
            const struct factor k = as_rows(w->k, r->k + j * r->ldk, r->ldk, n, D);
            const struct factor v = as_columns(w->v, r->v + j * r->ldv, r->ldv, n, D);
            meet_keys(w->score, &k, n, w->q, q, D);
            if (j >= q->all_low && j + n <= q->all_high) weigh(w, q, j, n, c, false);
            else weigh(w, q, j, n, c, true);
            product_of_columns(&(struct product){.c = w->o,
                                                 .ldc = ld,
                                                 .a = v.p,
                                                 .lda = v.ld,
                                                 .b = w->weight,
                                                 .ldb = ld,
                                                 .rows = D,
                                                 .depth = units(n),
                                                 .vectors = q->vectors,
                                                 .factor = w->shrink,
                                                 .begin = SCALED});
        }
}

/* Divides by the sums and writes the queries' results. */
static void give(const struct attention_args *a, const struct queries *q, const struct work *w) {
    const int64_t D = a->D;
    for (int v = 0; v < q->vectors; v++) {
        const int64_t n = least(LANES, q->n - v * LANES);
        const int64_t *row = q->row + v * LANES;
        const vf sum = load_real(w->sum + v * LANES);
        const vi none = sum == 0.0f; /* keys seen, which happens where the row is not met */
        const vf inverse = vf_choose(none, vf_all(0), 1.0f / sum);
        const vf all = load_real(w->largest + v * LANES) * (float)a->scale + vf_log(sum);
        float lse[LANES];
        store_real(lse, vf_choose(none, vf_all(-INFINITY), all));
        for (int64_t i = 0; i < n; i++) ((float *)a->lse)[row[i]] = lse[i];
        for (int64_t d = 0; d < D; d += LANES) {
            const int64_t width = least(LANES, D - d);
            vf x[LANES];
            for (int64_t i = 0; i < LANES; i++)
                x[i] = i < width ? load_real(w->o + (d + i) * q->lanes + v * LANES) * inverse
                                 : (vf){0};
            transpose(x);
            for (int64_t i = 0; i < n; i++) {
                store_left((stored *)a->o + row[i] * D + d, x[i], D - d);
            }
        }
    }
}

/* What piece c of C leaves in scratch for the block u: o, then largest and sum, [D +
 * 2][queries]. */
static float *left_by(const struct attention_args *a, int64_t b, int64_t g, int64_t u, int64_t c) {
    const int64_t lanes = lanes_of(a->D), blocks = (a->L * (a->H / a->G) + lanes - 1) / lanes;
    /* of the last block's lanes only those in use count, in steps of 16 */
    const int64_t last = (a->L * (a->H / a->G) - (blocks - 1) * lanes + 15) / 16 * 16;
    const int64_t all = (blocks - 1) * lanes + last, width = u == blocks - 1 ? last : lanes;
    return (float *)a->scratch +
           ((b * a->G + g) * a->C * all + u * lanes * a->C + c * width) * (a->D + 2);
}

/* The place where piece c of C of the keys begins: pieces are whole blocks of keys. */
static int64_t cut(const struct queries *q, int64_t c, int64_t C) {
    const int64_t blocks = (q->high - q->low + KEYS - 1) / KEYS;
    return least(q->high, q->low + blocks * c / C * KEYS);
}

static void block(const struct attention_args *a, int64_t b, int64_t g, int64_t u, int64_t c,
                  struct work *w) {
    struct queries q;
    queries_find(&q, b, g, u, a->start, a->L, a->k_past ? a->P : 0, a->away, a->H, a->G, a->D);
    queries_turn(&q, w->q, a->q, a->ldq, a->D);
    attend(a, &q, cut(&q, c, a->C), cut(&q, c + 1, a->C), w);
    if (a->C == 1) {
        give(a, &q, w);
        return;
    }
    float *left = left_by(a, b, g, u, c);
    const int64_t width = q.vectors * LANES;
    const size_t bytes = (size_t)width * sizeof *left;
    for (int64_t d = 0; d < a->D; d++) memcpy(left + d * width, w->o + d * q.lanes, bytes);
    memcpy(left + a->D * width, w->largest, bytes);
    memcpy(left + (a->D + 1) * width, w->sum, bytes);
}

/* The pieces' sums, each relative to its largest score, to those of all keys. */
static void merge(const struct attention_args *a, int64_t b, int64_t g, int64_t u, struct work *w) {
    struct queries q;
    queries_find(&q, b, g, u, a->start, a->L, a->k_past ? a->P : 0, a->away, a->H, a->G, a->D);
    const int64_t D = a->D, width = q.vectors * LANES;
    const float scale = (float)a->scale * log2e;
    for (int v = 0; v < q.vectors; v++) {
        vf largest = vf_all(-1e30f), sum = {0};
        for (int64_t c = 0; c < a->C; c++)
            largest = vf_max(largest, load_real(left_by(a, b, g, u, c) + D * width + v * LANES));
        for (int64_t c = 0; c < a->C; c++) {
            const float *left = left_by(a, b, g, u, c) + v * LANES;
            const vf shrink = power_of_two((load_real(left + D * width) - largest) * scale);
            sum += load_real(left + (D + 1) * width) * shrink;
            for (int64_t d = 0; d < D; d++)
                put_real(w->o + d * q.lanes + v * LANES, load_real(left + d * width) * shrink,
                         c > 0);
        }
        store_real(w->largest + v * LANES, largest);
        store_real(w->sum + v * LANES, sum);
    }
    give(a, &q, w);
}

KERNEL(attention) {
    if (a->B * a->L * a->H * a->D == 0) return;
    if (a->C < 1) bug("%d pieces", (int)a->C);
    const int64_t lanes = lanes_of(a->D), D1 = whole(a->D), C = a->C;
    const int64_t blocks = (a->L * (a->H / a->G) + lanes - 1) / lanes;
#pragma omp parallel if (a->B * a->H * a->L * a->D * (a->L + a->P) > SMALL * 8)
    {
        const int64_t needed = (2 * lanes + 2 * KEYS + FEW) * D1;
        unit *space = cpu_workspace((size_t)needed * sizeof *space);
        struct work w;
        w.q = carve(&space, lanes * D1);
        w.o = (float *)carve(&space, lanes * D1);
        w.k = carve(&space, KEYS * D1);
        w.v = carve(&space, KEYS * D1);
        w.few = (float *)carve(&space, FEW * D1);
        /* later blocks see more keys: the longest work first */
#pragma omp for collapse(4) schedule(dynamic)
        for (int64_t u = blocks - 1; u >= 0; u--)
            for (int64_t b = 0; b < a->B; b++)
                for (int64_t g = 0; g < a->G; g++)
                    for (int64_t c = 0; c < C; c++) block(a, b, g, u, c, &w);
        if (C > 1) {
#pragma omp for collapse(3) schedule(dynamic)
            for (int64_t u = 0; u < blocks; u++)
                for (int64_t b = 0; b < a->B; b++)
                    for (int64_t g = 0; g < a->G; g++) merge(a, b, g, u, &w);
        }
    }
}

KERNEL(attention_merge) {
    const int64_t D = a->D;
#pragma omp parallel for if (a->T * a->H * D > SMALL)
    for (int64_t t = 0; t < a->T * a->H; t++) {
        const stored *more = (const stored *)a->more + t * D;
        float *o = (float *)a->o + t * D, *lse = (float *)a->lse + t;
        const float old = *lse, other = ((const float *)a->lse_more)[t],
                    m = old > other ? old : other;
        if (other == -INFINITY) continue; /* nothing was seen there */
        const float kept = expf(old - m), taken = expf(other - m), sum = kept + taken;
        for (int64_t d = 0; d < D; d += LANES) {
            const vf x = kept / sum * load_real_left(o + d, D - d) +
                         taken / sum * load_left(more + d, D - d);
            store_real_left(o + d, x, D - d);
        }
        *lse = m + logf(sum);
    }
}
