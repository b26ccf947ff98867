/* balance: how the tokens of a sequence are spread over the experts, and what is done about it:
 * counts, choices dropped where an expert has too many, and the losses that draw routers towards
 * even loads (Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, with sigmoid scores) and
 * towards small scores (ST-MoE, Zoph et al. 2022, arXiv:2202.08906). */
#include "kernels/cpu/maths.h"

KERNEL(route_evenly) {
    for (int64_t t = 0; t < a->T; t++) {
        const int64_t at = (a->first + t) % a->L,
                      place = at < a->piece ? a->low + at : a->high + at - a->piece;
        for (int64_t k = 0; k < a->K; k++)
            a->index[t * a->K + k] = (int32_t)((place * a->K + k) % a->E);
    }
}

KERNEL(count_choices) {
    const int64_t E = a->E, K = a->K;
    memset(a->count, 0, (size_t)(a->G * (E + 1)) * sizeof *a->count);
    for (int64_t t = 0; t < a->T; t++) {
        const int32_t document = a->document ? a->document[t] : 0;
        if (document < 0 || (!a->all && document >= a->G)) continue;
        int32_t *count = a->count + (a->all ? 0 : document) * (E + 1);
        count[E]++;
        for (int64_t k = 0; k < K; k++)
            if (a->index[t * K + k] < E) count[a->index[t * K + k]]++;
    }
}

KERNEL(count_experts) {
    for (int64_t t = 0; t < a->T; t++) {
        if (a->document && a->document[t] < 0) continue;
        for (int64_t k = 0; k < a->K; k++)
            if (a->index[t * a->K + k] < a->E) a->load[a->index[t * a->K + k]]++;
    }
}

KERNEL(add_counts) {
    for (int64_t i = 0; i < a->n; i++) a->sum[i] = (int32_t)(a->seen[i] += a->count[i]);
}

/* ---- dropping ---- */

enum { MOST_EXPERTS = 4096 };

/* The place of a token among all of its sequences, one after the other. */
static int64_t place_of(const struct drop_choices_args *a, int64_t t) {
    if (a->C == 1) return t;
    const int64_t C = a->C, of_rank = a->T / C, piece = a->L / (2 * C), rank = t / of_rank,
                  row = t % of_rank / piece;
    return row / 2 * a->L + (row % 2 ? 2 * C - 1 - rank : rank) * piece + t % piece;
}

static bool is_padding(const struct drop_choices_args *a, int32_t i) {
    return a->document && a->document[i / a->K] < 0;
}

/* Whether choice i stays rather than choice j. */
static bool before(const struct drop_choices_args *a, int32_t i, int32_t j) {
    const real *weight = a->weight;
    const bool padding = is_padding(a, i);
    if (padding != is_padding(a, j)) return !padding;
    if (weight[i] != weight[j]) return weight[i] > weight[j];
    return place_of(a, i / a->K) * a->K + i % a->K < place_of(a, j / a->K) * a->K + j % a->K;
}

/* Lets x[i] of a heap of n sink; the root of the heap is the choice that goes first. */
static void sink(const struct drop_choices_args *a, int32_t *x, int64_t i, int64_t n) {
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(a, x[child], x[child + 1])) child++;
        if (!before(a, x[i], x[child])) return;
        const int32_t other = x[i];
        x[i] = x[child];
        x[child] = other;
    }
}

static void drop(const struct drop_choices_args *a, int32_t i) {
    const int64_t t = i / a->K - a->first;
    if (t >= 0 && t < a->n) a->kept[t * a->K + i % a->K] = (int32_t)a->E;
}

/* Drops all but the best `limit` of n choices of an expert. A heap holds the best so far. */
static void keep_best(const struct drop_choices_args *a, int32_t *x, int64_t n) {
    const int64_t limit = a->limit;
    for (int64_t i = limit / 2; i-- > 0;) sink(a, x, i, limit);
    for (int64_t i = limit; i < n; i++) {
        if (limit > 0 && before(a, x[i], x[0])) {
            const int32_t out = x[0];
            x[0] = x[i];
            x[i] = out;
            sink(a, x, 0, limit);
        }
        drop(a, x[i]);
    }
}

KERNEL(drop_choices) {
    int32_t offset[MOST_EXPERTS + 2];
    const int64_t E = a->E, K = a->K, here = a->L / a->C; /* tokens of a sequence on each rank */
    memcpy(a->kept, a->index + a->first * K, (size_t)(a->n * K) * sizeof *a->kept);
    for (int64_t from = 0; from < a->T / a->C; from += here) {
        int32_t *order = a->order + from * a->C * K;
        memset(offset, 0, (size_t)(E + 2) * sizeof *offset);
        for (int pass = 0; pass < 2; pass++) { /* how many; then which */
            for (int64_t c = 0; c < a->C; c++)
                for (int64_t i = (c * (a->T / a->C) + from) * K, end = i + here * K; i < end; i++)
                    if (pass) order[offset[a->index[i]]++] = (int32_t)i;
                    else offset[a->index[i] + 1]++;
            for (int64_t e = 0; e <= E && !pass; e++) offset[e + 1] += offset[e];
        }
        for (int64_t e = 0, begin = 0; e < E; begin = offset[e++])
            if (offset[e] - begin > a->limit) keep_best(a, order + begin, offset[e] - begin);
    }
}

/* ---- losses ---- */

static double logistic(real x) {
    return 1 / (1 + exp(-(double)x));
}

/* What the two kernels below have in common; and the counts of the document that was last met, if
 * it is not in the table: those of its tokens, from `begin` on. */
struct meeting {
    const int32_t *index, *document, *count;
    int64_t T, E, K, G, all;
    int64_t begin, end;
    int32_t own[MOST_EXPERTS + 1];
};
#define MEETING(a)                                                                                 \
    {                                                                                              \
        .index = (a)->index, .document = (a)->document, .count = (a)->count, .T = (a)->T,          \
        .E = (a)->E, .K = (a)->K, .G = (a)->G, .all = (a)->all                                     \
    }

static void count_own(struct meeting *m, int64_t t) {
    const int32_t *document = m->document;
    m->begin = document ? t : 0;
    m->end = document ? t + 1 : m->T;
    while (document && m->begin > 0 && document[m->begin - 1] == document[t]) m->begin--;
    while (document && m->end < m->T && document[m->end] == document[t]) m->end++;
    memset(m->own, 0, (size_t)(m->E + 1) * sizeof *m->own);
    for (int64_t i = m->begin * m->K; i < m->end * m->K; i++)
        if (m->index[i] < m->E) m->own[m->index[i]]++;
    m->own[m->E] = (int32_t)(m->end - m->begin);
}

/* The counts that token t meets; NULL if nobody was counted. */
static const int32_t *counts_of(struct meeting *m, int64_t t) {
    const int32_t document = m->document ? m->document[t] : 0, *count = m->own;
    if (document < 0) return NULL;
    if (m->all || document < m->G) count = m->count + (m->all ? 0 : document) * (m->E + 1);
    else if (t < m->begin || t >= m->end) count_own(m, t);
    return count[m->E] > 0 ? count : NULL;
}

/* What one token has: the sum of its scores, of its scores times the counts, and its log-sum. */
struct scores {
    double sum, met, largest, exponentials;
};

static struct scores scores_of(const real *logits, const int32_t *count, int64_t E) {
    struct scores s = {.sum = 1e-300, .largest = -INFINITY};
    for (int64_t e = 0; e < E; e++) {
        const double p = logistic(logits[e]);
        s.sum += p;
        s.met += p * count[e];
        if (logits[e] > s.largest) s.largest = logits[e];
    }
    for (int64_t e = 0; e < E; e++) s.exponentials += exp((double)logits[e] - s.largest);
    return s;
}

KERNEL(balance_loss) {
    const int64_t E = a->E;
#pragma omp parallel if (a->T * E > SMALL / 8)
    {
        struct meeting m = MEETING(a);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < a->T; t++) {
            const int32_t *count = counts_of(&m, t);
            real *even = (real *)a->even + t, *square = (real *)a->square + t;
            *even = *square = 0;
            if (!count) continue;
            const struct scores s = scores_of((const real *)a->logits + t * E, count, E);
            const double log_sum = s.largest + log(s.exponentials);
            *even = (real)(a->share * (double)E / ((double)a->K * count[E]) * s.met / s.sum);
            *square = (real)(a->share * log_sum * log_sum);
        }
    }
}

/* With c the factor of sum_e count_e s_e:  dp_e = c (count_e - sum_j count_j s_j) / sum of p;
 * the log-sum's derivative is softmax. */
KERNEL(balance_loss_adjoint) {
    const int64_t E = a->E;
    if (!a->dlogits) return;
#pragma omp parallel if (a->T * E > SMALL / 8)
    {
        struct meeting m = MEETING(a);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < a->T; t++) {
            const int32_t *count = counts_of(&m, t);
            const real *logits = (const real *)a->logits + t * E;
            real *dlogits = (real *)a->dlogits + t * E;
            if (!count) {
                if (!a->dlogits_add) memset(dlogits, 0, (size_t)E * sizeof(real));
                continue;
            }
            const struct scores s = scores_of(logits, count, E);
            const double log_sum = s.largest + log(s.exponentials), mean = s.met / s.sum,
                         c = (double)((const real *)a->deven)[t] * a->share * (double)E /
                             ((double)a->K * count[E] * s.sum),
                         z = (double)((const real *)a->dsquare)[t] * a->share * 2 * log_sum;
            for (int64_t e = 0; e < E; e++) {
                const double p = logistic(logits[e]),
                             soft = exp((double)logits[e] - s.largest) / s.exponentials;
                put(&dlogits[e], (real)(c * (count[e] - mean) * p * (1 - p) + z * soft),
                    a->dlogits_add);
            }
        }
    }
}
