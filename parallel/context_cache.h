/* context_cache: attention to keys and values that stay shared out over the context ranks.
 *
 * Of a prompt that is read in calls of a few pieces each, every rank keeps the keys and values of
 * its own pieces; of the tokens that follow, dealt one to a rank in turn, those that are its. So a
 * rank holds 1/C of a long prompt, and nothing is ever moved for good. A row of the cache is in the
 * order of the sequence, with gaps where others hold tokens: what comes before a query is all of
 * it, but for the tokens of other documents, and as a row begins with padding and then is one
 * document, those lie in front. So a number for each row and rank tells which keys may be seen,
 * and ops.def's `start` says it to a kernel: places of the cache take the place of those of the
 * sequence.
 *
 *   reading     a call's queries meet their own pieces' keys as in training
 *               (context_attention.h). Then the queries go round, and each rank sends what its
 *               cache gives them, relative to its own largest scores, to the rank they are from
 *   decoding    rows are dealt out. All ranks gather the new tokens' queries, keys and values, one
 *               of them keeps these keys, each asks its cache for all rows, and sends what came of
 *               it to the ranks that have the rows
 *
 * (Partial results as in Flash-Decoding, Dao et al. 2023; queries that go round instead of keys:
 * Yang et al. 2024, arXiv:2411.01783.) Queries of a call are few, keys of what was read many: what
 * is sent does not depend on how long the prompts are.
 *
 * No gradient flows through any of it. Collective over the context group. */
#ifndef PARALLEL_CONTEXT_CACHE_H
#define PARALLEL_CONTEXT_CACHE_H

#include "parallel/context_parallel.h"

/* How the places of rows are shared out: `read` of them in calls of `chunk` (the last may be
 * shorter), both multiples of a sequence's pieces; those behind one by one. */
struct cache_plan {
    int context;
    int64_t chunk, read;
};

/* Places in a row of rank `rank`'s cache when the first `past` of the sequence are computed. */
int64_t cache_held(const struct cache_plan *p, int rank, int64_t past);
/* The most of any rank. */
int64_t cache_room(int context, int64_t places);
/* The rank that keeps place number `place`, behind the prompt. */
int cache_keeper(const struct cache_plan *p, int64_t place);

/* A layer's cache on this rank. */
struct context_cache {
    void *k, *v;    /* device: rows that are `room` tokens long */
    int64_t tokens; /* in each row, before the call */
    int64_t room;
    bool keeps; /* decoding: this rank keeps the new keys */
    const void
        *start; /* device integers, of own tokens, or of all rows where rows are dealt out: as
                          a kernel wants them where the row's cache is the past */
};

/* For context_attention.c: adds to o[own tokens, heads * head_dim] and lse, real numbers, what the
 * cached keys of all ranks give; remembers the call's own keys and values. */
struct ring;
void cache_meet(const struct ring *r, const struct tensor *q, const struct context_cache *c,
                void *o, void *lse);
void cache_append(struct tape *t, const struct batch *b, struct tensor *k, struct tensor *v,
                  const struct context_cache *c);

/* A step of decoding: o[own rows, heads * head_dim] of the own rows'
 * queries, keys and values side by side. */
struct tensor *cache_attention(struct tape *t, const struct batch *b, struct tensor *qkv,
                               int64_t heads, int64_t kv, int64_t head_dim,
                               const struct context_cache *c);

#endif
