/* schedule_build: makes the schedule of a pipeline, in three passes that each do one thing.
 *
 * 1. schedule_order: each rank's forwards and backwards in the order of the published schedule.
 * 2. schedule_weight (zero-bubble, zbv): backwards are input halves, and the weight halves, which
 *    nobody waits for, go where the rank would have been idle, without holding more than a plain
 *    schedule (1f1b) holds on its most burdened rank: to the byte, with all that an action needs on
 *    its way and the messages under way, where the caller knows these sizes.
 * 3. schedule_transfer: what crosses ranks is received ahead of its use, far enough to hide the
 *    transfer; sent at once; and the send is waited for when, by the costs, it is over.
 * Where the papers leave a choice, a few candidates are timed and the shortest is taken, of equals
 * the one that holds least, of equals the first. Costs only move things about: any costs, also
 * wrong ones, give a schedule that is complete and cannot deadlock. */
#ifndef PARALLEL_SCHEDULE_BUILD_H
#define PARALLEL_SCHEDULE_BUILD_H

#include "parallel/schedule.h"

struct schedule_wish {
    struct schedule_shape shape;
    int group; /* interleaved: micro-batches a chunk does in a row; 0: as many as ranks */
    const struct schedule_costs *costs; /* NULL: all alike. Transfers at the same cost model */
    const struct schedule_sizes *sizes; /* what zero-bubble and zbv must not hold too much of */
    /* A schedule (micro_batches: the same) whose most burdened rank sets the limit for all of this
     * one's, where that can be kept with no weight half put off; NULL: this one's, with whole
     * backwards. */
    const struct schedule_wish *like;
};

/* The shape is one that schedule_refuses accepts. schedule_free it. */
void schedule_build(struct schedule *s, const struct schedule_wish *wish);

#endif
