/* context_attention: attention by a ring, so that no rank ever holds the keys of a whole sequence.
 *
 * Keys and values of each rank's pieces go round the ranks. Meanwhile each rank lets its queries
 * meet the pieces at hand that lie before them, and adds up what they give, relative to the largest
 * scores so far (Liu et al. 2023, arXiv:2310.01889; pieces in pairs: Brandon et al. 2023,
 * arXiv:2311.09431). Late pieces that are not needed are not computed: of a rank's four pairs with
 * another rank's pieces always two are. Documents are found by the places of their first tokens,
 * wherever the borders of pieces are. The next keys travel while the last are in use.
 *
 * Back, the keys and values go round once more, and behind them the sums of their gradients, in
 * real numbers whatever is stored, which arrive at home after the last rank. Each rank sends (C-1)
 * times its keys and values forward, and back those and as many sums. */
#ifndef PARALLEL_CONTEXT_ATTENTION_H
#define PARALLEL_CONTEXT_ATTENTION_H

#include "parallel/context_cache.h"

/* As `attention` of whole sequences would be. cache: tokens before them, which this rank's are
 * added to; or NULL. Collective over the context group. */
struct tensor *context_attention(struct tape *t, const struct batch *b, struct tensor *q,
                                 struct tensor *k, struct tensor *v, int64_t head_dim,
                                 const struct context_cache *cache);

#endif
