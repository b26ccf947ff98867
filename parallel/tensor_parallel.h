/* tensor_parallel: the exchanges that let several ranks compute one layer.
 *
 * A layer says where its parallel part begins and ends; what that costs, forward and backward, is
 * here and nowhere else. The pairs, each the other's adjoint (Shoeybi et al. 2019,
 * arXiv:1909.08053; by tokens: Korthikanti et al. 2022, arXiv:2205.05198):
 *
 *                 the stream whole                    the stream split by tokens
 *                                                     (parallel.sequence)
 *     enter       nothing;                            all-gather;
 *                 backward adds over the ranks        backward reduce-scatter
 *     leave       adds over the ranks;                reduce-scatter;
 *                 backward nothing                    backward all-gather
 *
 *     gather      split -> whole: all-gather; backward takes this rank's part
 *     share_sum   sums over the neighbours that share a block, forward and backward
 *
 * All sums are in rank order (parallel/comm.h). Ops of a tape: collective over the tensor group
 * (share_sum: over the sub-group), in the same order on all its ranks; the tape's `parallel` says
 * which groups. */
#ifndef PARALLEL_TENSOR_PARALLEL_H
#define PARALLEL_TENSOR_PARALLEL_H

#include "kernels/tape.h"

struct group;

/* Stream (whole, or split by tokens) -> entered. rows: the tokens
 * of the micro-batch, all of them. */
struct tensor *tensor_enter(struct tape *t, struct tensor *x, int64_t rows);

/* Partial -> the stream's state. In a replay nothing is exchanged
 * and the result must not be read. */
struct tensor *tensor_leave(struct tape *t, struct tensor *x);

/* [tokens, 1], split by features -> [ranks, tokens], whole. */
struct tensor *tensor_gather(struct tape *t, struct tensor *x);

/* Sums over the `share` neighbours that hold parts of the same groups;
 * the same tensor if share is 1. */
struct tensor *share_sum(struct tape *t, struct tensor *x, int share);

/* Where a part of a layer works on this rank's tokens alone, whole features of them: entered -> its
 * own rows, split by tokens, without copying; and own rows, split so, back into partial sums of all
 * tokens, to leave with them. Neither exchanges anything. */
struct tensor *tensor_own(struct tape *t, struct tensor *x);
struct tensor *tensor_add_own(struct tape *t, struct tensor *sums, struct tensor *own);

/* All `rows` tokens' rows of x, which is split by tokens; no
 * gradient flows through it. Collective. */
struct tensor *tensor_all_rows(struct tape *t, struct tensor *x, int64_t rows);

/* The first of the micro-batch's `rows` tokens that is this rank's own, where they are split. */
int64_t own_first(const struct tape *t, int64_t rows);

/* Tokens of the micro-batch's `rows` that this rank holds of the
 * stream: all, or its part by tokens. */
int64_t stream_rows(const struct tape *t, int64_t rows);

/* Sums n elements of format d at a device address over a group, in place, with scratch from the
 * tape's arena. Collective. */
void sum_over(struct tape *t, struct group *g, void *data, int64_t n, enum dtype d);

#endif
