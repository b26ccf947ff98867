/* context_heads: from some tokens of all heads to all tokens of some heads, and back.
 *
 * One exchange gives every rank along context the whole sequences for its share of the heads, so
 * that what looks back is computed as on one rank (Jacobs et al. 2023, arXiv:2309.14509); another
 * brings the results home. The features of a token are segments of heads, groups or other
 * indivisible units: where a segment has fewer units than there are ranks, neighbours get the same
 * one, and its gradient is the sum of theirs. Weights that belong to heads are used in part. A
 * rank's tokens are pieces of sequences, or rows that were dealt out. Ops of a tape; collective
 * over the context group. */
#ifndef PARALLEL_CONTEXT_HEADS_H
#define PARALLEL_CONTEXT_HEADS_H

#include "parallel/context_parallel.h"

/* Neighbouring columns of a tensor, or rows of a weight: so many on this rank, of so many units. */
struct heads_segment {
    int64_t width, units;
};

/* What is left of the width on one rank. */
int64_t heads_width(int context, int n, const struct heads_segment *s);

/* x[own tokens, segments] (maybe a view) -> [all tokens of the
 * sequences in order, this rank's units]. */
struct tensor *context_to_heads(struct tape *t, const struct batch *b, struct tensor *x, int n,
                                const struct heads_segment *s);

/* y[all tokens, width] -> [own tokens, width * ranks]. */
struct tensor *context_from_heads(struct tape *t, const struct batch *b, struct tensor *y);

/* The rows of a weight that belong to this rank's units, to meet x, which has been exchanged. */
struct tensor *context_heads_weight(struct tape *t, struct param *p, struct tensor *x, int n,
                                    const struct heads_segment *s);

#endif
