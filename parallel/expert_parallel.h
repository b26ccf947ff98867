/* expert_parallel: tokens to the ranks that hold their experts, and back.
 *
 * Between dispatch and return a tensor lives on the second factoring of the ranks (expert-data,
 * expert, expert-tensor): its rows are sorted by expert, and each rank of the expert group has
 * those of its own experts. With one rank along expert, which is what the deck can ask for today,
 * every expert is at home and both are the identity: only the names of the axes change. Ops of a
 * tape; collective over the expert group. */
#ifndef PARALLEL_EXPERT_PARALLEL_H
#define PARALLEL_EXPERT_PARALLEL_H

#include "kernels/tape.h"

/* Rows sorted by expert, on (data, context, tensor) axes -> the same rows at their experts. */
struct tensor *expert_dispatch(struct tape *t, struct tensor *x);

/* The experts' rows back to where their tokens are, in the order they left. */
struct tensor *expert_return(struct tape *t, struct tensor *x);

#endif
