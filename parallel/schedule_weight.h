/* schedule_weight: puts the weight halves of backwards where a rank would be idle.
 *
 * Only the input half of a backward is waited for by another stage; the weight half may run any
 * time later (Qi et al. 2023, arXiv:2401.10241). The lists are played with costs. Whenever a rank's
 * next forward or input half is not there yet, weight halves that wait go first, in the order of
 * their input halves; which gaps they are put in is the one free choice (enum below), and the
 * builder tries each. A rank may put off weight halves until it holds as much as `limit`, say what
 * the order without them makes the most burdened rank hold: there is room for that, since all ranks
 * are of one kind. Before something that would hold more, they run. The weight halves of a stage
 * come in the order of micro-batches, so its gradients are the same bits in every schedule.
 *
 * A weight half directly behind its input half, where no other rank waits for that, is joined
 * with it again: the whole backward needs no operands held in between. */
#ifndef PARALLEL_SCHEDULE_WEIGHT_H
#define PARALLEL_SCHEDULE_WEIGHT_H

#include "parallel/schedule.h"

enum { WEIGHT_IF_FITS, WEIGHT_IF_HALF_FITS, WEIGHT_IN_ANY_GAP, WEIGHT_AT_ONCE, N_WEIGHT_CHOICES };

struct weight_result {
    int64_t length;    /* ticks of the whole */
    int64_t most_held; /* by any rank, in sizes */
};

/* Fills `out` (of the same shape, empty) with the actions of `order` and the weight halves. Where
 * `order` has whole backwards it is only copied and timed. */
struct weight_result schedule_weight(struct schedule *out, const struct schedule *order,
                                     const struct schedule_costs *costs,
                                     const struct schedule_sizes *sizes, int choice, int64_t limit);

/* What the most burdened rank of `order` holds if every backward is whole. */
int64_t schedule_weight_none(const struct schedule *order, const struct schedule_sizes *sizes);

#endif
