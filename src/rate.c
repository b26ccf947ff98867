#include "src/rate.h"

#include <math.h>
#include <string.h>

#include "src/deck.h"

int64_t rate_warmup(const struct deck *d, int64_t steps) {
    const struct deck_schedule *s = &d->schedule;
    return s->warmup_steps ? s->warmup_steps : (int64_t)llround(s->warmup_fraction * (double)steps);
}

/* From 1 at x = 0 to 0 at x = 1. */
static double fall(const char *shape, double x) {
    if (!strcmp(shape, "linear")) return 1 - x;
    if (!strcmp(shape, "cosine")) return 0.5 * (1 + cos(M_PI * x));
    if (!strcmp(shape, "exponential")) return 2 * pow(0.5, x) - 1;
    return 1 - sqrt(x);
}

double rate_at(const struct deck *d, int64_t steps, int64_t step) {
    const struct deck_schedule *s = &d->schedule;
    double high = d->optimizer.learning_rate, low = d->optimizer.min_learning_rate;
    int64_t warmup = rate_warmup(d, steps), end = s->decay_steps ? s->decay_steps : steps;
    if (step <= warmup) return high * (double)step / (double)warmup;
    if (!strcmp(s->kind, "constant")) return high;
    if (!strcmp(s->kind, "inverse-sqrt"))
        return fmax(low, high * sqrt((double)(warmup > 1 ? warmup : 1) / (double)step));
    bool wsd = !strcmp(s->kind, "wsd");
    int64_t begin = wsd ? end - s->wsd_decay_steps : warmup;
    if (begin < warmup) begin = warmup;
    if (step <= begin) return high;
    if (step >= end) return low;
    double x = (double)(step - begin) / (double)(end - begin);
    return low + (high - low) * fall(wsd ? s->wsd_shape : s->kind, x);
}
