/* balance: how the tokens of a sequence are spread over the experts, and what is done about it: counts,
 * choices dropped where an expert has too many, and the losses that draw routers towards even loads
 * (Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, with sigmoid scores) and towards small
 * scores (ST-MoE, Zoph et al. 2022, arXiv:2202.08906). */
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
        int32_t *count = a->count + (a->first + t) / a->L * (E + 1);
        if (a->counted && !a->counted[t]) continue;
        count[E]++;
        for (int64_t k = 0; k < K; k++)
            if (a->index[t * K + k] < E) count[a->index[t * K + k]]++;
    }
}

KERNEL(count_experts) {
    for (int64_t g = 0; g < a->G; g++)
        for (int64_t e = 0; e < a->E; e++) a->load[e] += a->count[g * (a->E + 1) + e];
}

/* ---- dropping ---- */

/* Whether choice i stays rather than choice j. */
static bool before(const real *weight, int32_t i, int32_t j) {
    return weight[i] > weight[j] || (weight[i] == weight[j] && i < j);
}

/* Lets x[i] of a heap of n sink; the root of the heap is the choice that goes first. */
static void sink(int32_t *x, int64_t i, int64_t n, const real *weight) {
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(weight, x[child], x[child + 1])) child++;
        if (!before(weight, x[i], x[child])) return;
        const int32_t other = x[i];
        x[i] = x[child];
        x[child] = other;
    }
}

/* All but the best `limit` of n choices of an expert become E. A heap holds the best so far. */
static void keep_best(const struct drop_choices_args *a, int32_t *x, int64_t n) {
    const int64_t limit = a->limit;
    for (int64_t i = limit / 2; i-- > 0;) sink(x, i, limit, a->weight);
    for (int64_t i = limit; i < n; i++) {
        if (limit > 0 && before(a->weight, x[i], x[0])) {
            const int32_t out = x[0];
            x[0] = x[i];
            x[i] = out;
            sink(x, 0, limit, a->weight);
        }
        a->kept[x[i]] = (int32_t)a->E;
    }
}

KERNEL(drop_choices) {
    enum { MOST_EXPERTS = 4096 };
    int32_t offset[MOST_EXPERTS + 2];
    const int64_t E = a->E, slots = a->L * a->K;
    for (int64_t from = 0; from < a->T * a->K; from += slots) {
        const int64_t n = least(slots, a->T * a->K - from);
        memset(offset, 0, (size_t)(E + 2) * sizeof *offset);
        for (int64_t i = from; i < from + n; i++) offset[a->index[i] + 1]++;
        for (int64_t e = 0; e <= E; e++) offset[e + 1] += offset[e];
        for (int64_t i = from; i < from + n; i++) {
            a->kept[i] = a->index[i];
            a->order[from + offset[a->index[i]]++] = (int32_t)i;
        }
        for (int64_t e = 0, begin = 0; e < E; begin = offset[e++])
            if (offset[e] - begin > a->limit)
                keep_best(a, a->order + from + begin, offset[e] - begin);
    }
}

/* ---- losses ---- */

static double logistic(real x) {
    return 1 / (1 + exp(-(double)x));
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
#pragma omp parallel for if (a->T * E > SMALL / 8)
    for (int64_t t = 0; t < a->T; t++) {
        const int32_t *count = a->count + (a->first + t) / a->L * (E + 1);
        real *even = (real *)a->even + t, *square = (real *)a->square + t;
        const double n = count[E];
        *even = *square = 0;
        if (n <= 0 || (a->counted && !a->counted[t])) continue;
        const struct scores s = scores_of((const real *)a->logits + t * E, count, E);
        const double log_sum = s.largest + log(s.exponentials);
        *even = (real)(a->share * (double)E / ((double)a->K * n * n) * s.met / s.sum);
        *square = (real)(a->share / n * log_sum * log_sum);
    }
}

/* With c the factor of sum_e count_e s_e:  dp_e = c (count_e - sum_j count_j s_j) / sum of p;  the log-sum's
 * derivative is softmax. */
KERNEL(balance_loss_adjoint) {
    const int64_t E = a->E;
    if (!a->dlogits) return;
#pragma omp parallel for if (a->T * E > SMALL / 8)
    for (int64_t t = 0; t < a->T; t++) {
        const int32_t *count = a->count + (a->first + t) / a->L * (E + 1);
        const real *logits = (const real *)a->logits + t * E;
        real *dlogits = (real *)a->dlogits + t * E;
        const double n = count[E];
        if (n <= 0 || (a->counted && !a->counted[t])) {
            if (!a->dlogits_add) memset(dlogits, 0, (size_t)E * sizeof(real));
            continue;
        }
        const struct scores s = scores_of(logits, count, E);
        const double log_sum = s.largest + log(s.exponentials), mean = s.met / s.sum,
                     c = (double)((const real *)a->deven)[t] * a->share * (double)E /
                         ((double)a->K * n * n * s.sum),
                     z = (double)((const real *)a->dsquare)[t] * a->share / n * 2 * log_sum;
        for (int64_t e = 0; e < E; e++) {
            const double p = logistic(logits[e]),
                         soft = exp((double)logits[e] - s.largest) / s.exponentials;
            put(&dlogits[e], (real)(c * (count[e] - mean) * p * (1 - p) + z * soft),
                a->dlogits_add);
        }
    }
}
