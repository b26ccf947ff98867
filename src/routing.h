/* routing: one decision about which experts see a token, and all that follows from it.
 *
 * The router of a layer scores the experts for each of this rank's tokens and chooses. From that
 * one choice come the rows that are sent, the counts of tokens by expert, the losses that act on
 * the router, and the choices that are dropped where an expert has no room; a replay finds it
 * again. What is counted over sequences is summed over the ranks that share them, and leaves out
 * padding.
 *
 * The balance loss of a layer is a mean over tokens, each held against the loads of its document,
 * of its micro-batch, or of all micro-batches of the step so far on all ranks (deck.def:
 * moe.aux_kind); the room of an expert (moe.capacity) is that for a whole sequence, so where it
 * lies on several ranks each of them sees the choices and weights of all. */
#ifndef SRC_ROUTING_H
#define SRC_ROUTING_H

#include "parallel/expert_parallel.h"
#include "src/layer.h"

/* What of a layer's parameters routing uses. */
struct router {
    struct param *gate, *correction;
};

/* weight[tokens, chosen] and index alike, of the tokens whose rows this rank gives to experts: all
 * of the micro-batch, entered, where experts are at home, else its own, split by tokens. A choice
 * that is dropped has the number of experts as its index. h: the tokens as they are before that. */
struct routed {
    struct tensor *weight, *index;
};
/* The tokens that are routed, by layer. */
struct travel tokens_to_route(const struct layer *l);

struct routed route_tokens(struct tape *t, const struct layer *l, const struct router *r,
                           struct tensor *h);

#endif
