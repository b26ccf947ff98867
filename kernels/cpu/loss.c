/* loss: the loss of each token from what the R ranks that split the words found: log of the whole
 * sum, less the target's logit, which all ranks but one give as 0. A rank without words gives a
 * log-sum of -inf. */
#include "kernels/cpu/maths.h"

static double whole_lse(const real *lse, int64_t t, int64_t T, int64_t R) {
    double largest = -(double)INFINITY, sum = 0;
    for (int64_t r = 0; r < R; r++)
        if ((double)lse[r * T + t] > largest) largest = (double)lse[r * T + t];
    const double from =
        isinf(largest) && largest < 0 ? 0 : largest; /* -inf - -inf is not a number */
    for (int64_t r = 0; r < R; r++) sum += exp((double)lse[r * T + t] - from);
    return from + log(sum);
}

KERNEL(word_loss) {
    const real *lse = a->lse, *picked = a->picked, *weight = a->weight;
    real *loss = a->loss;
    for (int64_t t = 0; t < a->T; t++) {
        double sum = 0;
        for (int64_t r = 0; r < a->R; r++) sum += (double)picked[r * a->T + t];
        loss[t] = (real)((double)weight[t] * (whole_lse(lse, t, a->T, a->R) - sum));
    }
}

KERNEL(word_loss_adjoint) {
    const int64_t T = a->T;
    const real *lse = a->lse, *weight = a->weight, *dloss = a->dloss;
    real *dlse = a->dlse, *dpicked = a->dpicked;
    for (int64_t t = 0; t < T; t++) {
        const double g = (double)weight[t] * (double)dloss[t], whole = whole_lse(lse, t, T, a->R);
        for (int64_t r = 0; r < a->R; r++) {
            const double own = (double)lse[r * T + t];
            const double share = isinf(own) && own < 0 ? 0 : exp(own - whole);
            if (dlse) put_sum(&dlse[r * T + t], g * share, a->dlse_add);
            if (dpicked) put_sum(&dpicked[r * T + t], -g, a->dpicked_add);
        }
    }
}
