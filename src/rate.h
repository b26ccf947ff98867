/* rate: the learning rate of each step, a pure function of the deck.
 *
 * A linear rise over the warm-up, then one of
 *   constant       the highest rate
 *   linear, cosine from the highest to the lowest at decay_steps
 *   inverse-sqrt   highest * sqrt(warmup / step), never below the lowest
 *   wsd            the highest, and over the last wsd_decay_steps down to the lowest, by wsd_shape:
 * with x from 0 to 1, linear 1-x, cosine (1+cos(pi x))/2, exponential 2 * 0.5^x - 1, minus-sqrt 1 -
 * sqrt(x) */
#ifndef SRC_RATE_H
#define SRC_RATE_H

#include <stdint.h>

struct deck;

/* Of a step counted from 1, in a run of `steps`. */
double rate_at(const struct deck *d, int64_t steps, int64_t step);

/* The length of the warm-up: warmup_steps, or warmup_fraction of the steps. */
int64_t rate_warmup(const struct deck *d, int64_t steps);

#endif
