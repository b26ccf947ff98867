/* context_ring: keys and values on their way round the ranks along context.
 *
 * What a rank gives is packed, keys before values, and passed on by every rank to the next, so that
 * after s turns rank r has what rank r - s gave. A turn starts before the keys at hand are used and
 * is waited for after. Used by context_attention.c (a micro-batch's own keys) and by
 * context_cache.c (those of tokens read before). */
#ifndef PARALLEL_CONTEXT_RING_H
#define PARALLEL_CONTEXT_RING_H

#include "parallel/context_parallel.h"
#include "parallel/groups.h"

struct ring {
    struct tape *t;
    struct group *g;
    enum dtype d;
    int C, me, held;
    int64_t rows, length, tokens, heads, kv, head_dim;
    int64_t q, k; /* numbers of a token's queries, of its keys */
    const void *start;
};

/* size: rows, length, query heads, key heads, head_dim. */
struct ring ring_of(struct tape *t, enum dtype d, const int64_t *size, const void *start);

/* To the rank behind goes `out`, from the rank before comes `in`. */
void ring_turn_start(const struct ring *r, struct request *w, const void *out, void *in,
                     int64_t bytes);

/* The rank whose keys are here after s turns. */
int ring_source(const struct ring *r, int s);

/* Own queries from token `first` on, row by row of `a`, against the keys of `a`: what comes of it
 * is added to o and lse, which are real numbers of all tokens. part, part_lse: room for as many. */
void ring_meet(const struct ring *r, const struct attention_block *a, int64_t first, void *o,
               void *lse, void *part, void *part_lse);

#endif
