/* data_parallel: once a step, gradients are summed over the ranks that used the same weights.
 *
 * Nothing is listed by hand: a parameter knows the state of its use. Along an axis where it was
 * entered its gradient is a part, and the parts are added; along one where it is whole or split
 * there is nothing to do; rows that neighbours share are added over those neighbours. */
#ifndef PARALLEL_DATA_PARALLEL_H
#define PARALLEL_DATA_PARALLEL_H

#include "kernels/tape.h"

/* Adds up the gradient of p over all ranks that hold a part of it. Collective over the groups of
 * the axes concerned; to be called for the same parameters in the same order on all ranks, each of
 * which must have used them. */
void data_sum_gradient(struct tape *t, struct param *p);

#endif
