/* route: which experts see a token, and with what weight; and the order of the (token, choice)
 * pairs by expert.
 *   p = sigmoid(logits), choice = p + bias; whole groups of experts drop out by the sum of their
 *   two largest choices; the K largest choices that are left are taken; their weights are p,
 *   without the bias.
 * Of equal numbers the one with the lower index comes first. A NaN counts as the smallest number:
 * then the indices are still K different experts, and the loss tells of the NaN. */
#include "kernels/cpu/maths.h"

enum { MOST_EXPERTS = 4096 };

static double logistic(real x) {
    return 1 / (1 + exp(-(double)x));
}

/* The indices of the k largest of n, by falling value. */
static void pick(int32_t *index, const real *x, int64_t n, int64_t k) {
    bool taken[MOST_EXPERTS] = {false};
    for (int64_t i = 0; i < k; i++) {
        int64_t best = -1;
        for (int64_t e = 0; e < n; e++)
            if (!taken[e] && (best < 0 || x[e] > x[best])) best = e;
        taken[best] = true;
        index[i] = (int32_t)best;
    }
}

/* Sets the choices of all but the `kept` best groups to -inf. */
static void drop_groups(real *choice, int64_t E, int64_t groups, int64_t kept) {
    const int64_t size = E / groups;
    real score[MOST_EXPERTS];
    int32_t best[MOST_EXPERTS];
    bool stays[MOST_EXPERTS] = {false};
    for (int64_t g = 0; g < groups; g++) {
        pick(best, choice + g * size, size, least(2, size));
        score[g] = choice[g * size + best[0]];
        if (size > 1) score[g] += choice[g * size + best[1]];
    }
    pick(best, score, groups, kept);
    for (int64_t g = 0; g < kept; g++) stays[best[g]] = true;
    for (int64_t e = 0; e < E; e++)
        if (!stays[e / size]) choice[e] = -(real)INFINITY;
}

static void route_token(const struct route_args *a, int64_t t) {
    const int64_t E = a->E;
    const real *logits = (const real *)a->logits + t * E, *bias = a->bias;
    real choice[MOST_EXPERTS];
    for (int64_t e = 0; e < E; e++) {
        choice[e] = (real)logistic(logits[e]) + bias[e];
        if (isnan(choice[e])) choice[e] = -(real)INFINITY;
    }
    if (a->groups > 1) drop_groups(choice, E, a->groups, a->kept);
    pick(a->index + t * a->K, choice, E, a->K);
}

KERNEL(route) {
    if (a->K > a->E || a->E > MOST_EXPERTS ||
        (a->groups > 1 && (a->E % a->groups != 0 || a->kept > a->groups)))
        bug("routing to %lld of %lld experts", (long long)a->K, (long long)a->E);
#pragma omp parallel for if (a->T * a->E > SMALL / 8)
    for (int64_t t = 0; t < a->T; t++) route_token(a, t);
}

KERNEL(route_weight) {
    const int64_t K = a->K;
#pragma omp parallel for if (a->T * K > SMALL / 8)
    for (int64_t t = 0; t < a->T; t++) {
        const real *logits = (const real *)a->logits + t * a->E;
        const int32_t *index = a->index + t * K;
        real *weight = (real *)a->weight + t * K;
        double sum = 1e-20;
        for (int64_t k = 0; k < K; k++) sum += logistic(logits[index[k]]);
        /* Divided before it is scaled: the one expert of a token has exactly weight `scale`, and
         * who gets room (drop_choices) is not decided by rounding. */
        if (!a->normalise) sum = 1;
        for (int64_t k = 0; k < K; k++)
            weight[k] = (real)(logistic(logits[index[k]]) / sum * a->scale);
    }
}

/* w_k = scale p_k / s, s = sum p + 1e-20:  dp_k = scale (dw_k - sum_j dw_j p_j / s) / s;  without
 * `normalise`, dp_k = scale dw_k. Experts not chosen get nothing. */
KERNEL(route_weight_adjoint) {
    const int64_t E = a->E, K = a->K;
    if (!a->dlogits) return;
#pragma omp parallel for if (a->T * E > SMALL / 8)
    for (int64_t t = 0; t < a->T; t++) {
        const real *logits = (const real *)a->logits + t * E;
        const real *dweight = (const real *)a->dweight + t * K;
        const int32_t *index = a->index + t * K;
        real *dlogits = (real *)a->dlogits + t * E;
        double sum = 1e-20, along = 0;
        for (int64_t k = 0; k < K; k++) {
            sum += logistic(logits[index[k]]);
            along += (double)dweight[k] * logistic(logits[index[k]]);
        }
        if (!a->dlogits_add) memset(dlogits, 0, (size_t)E * sizeof(real));
        for (int64_t k = 0; k < K; k++) {
            const double p = logistic(logits[index[k]]);
            const double dp =
                a->normalise ? ((double)dweight[k] - along / sum) / sum : (double)dweight[k];
            dlogits[index[k]] += (real)(a->scale * dp * p * (1 - p));
        }
    }
}

/* A counting sort. While the slots are given out, offset[e] is the next one of expert e. */
KERNEL(sort_experts) {
    const int64_t n = a->T * a->K, E = a->E;
    int32_t *offset = a->offset;
    memset(offset, 0, (size_t)(E + 1) * sizeof *offset);
    for (int64_t i = 0; i < n; i++) {
        const int32_t e = a->index[i];
        if (e < 0 || e > E) bug("expert %d of %lld", (int)e, (long long)E);
        if (e < E) offset[e + 1]++;
    }
    for (int64_t e = 0; e < E; e++) offset[e + 1] += offset[e];
    int32_t dropped = offset[E];
    for (int64_t i = 0; i < n; i++) {
        const bool kept = a->index[i] < E;
        const int32_t slot = kept ? offset[a->index[i]]++ : dropped++;
        a->order[slot] = (int32_t)i;
        a->position[i] = kept ? slot : -1;
    }
    for (int64_t e = E; e > 0; e--) offset[e] = offset[e - 1];
    offset[0] = 0;
}
