/* context_parallel: one sequence on several ranks, cut along its tokens.
 *
 * With C ranks along context every sequence is cut into 2C pieces of equal length, and rank c holds
 * the pieces c and 2C-1-c, in this order: under a causal mask late pieces have much to look back on
 * and early ones little, so that every pair is the same work (the "zigzag" of ring attention). It
 * is the one order of a run: what passes states on pays 2C short hand-overs instead of C for it,
 * and no tensor is ever sorted between layers.
 *
 * To everything else a piece is a row of a micro-batch: row b*2+i holds piece i of sequence b, and
 * its document starts are counted from its own first token. So they are negative where a document
 * began in a piece before, wherever that is. Layers that look at a token alone need to know
 * nothing. Those that look back have two ways each:
 *
 *   attention   ring: keys and values go round, each rank adds up what they give
 *               (context_attention.h)
 *               heads: an exchange gives each rank all tokens of some heads (context_heads.h)
 *   Mamba       state: pieces are computed from the states before them, a prefix over what each
 *               piece does to a state: traffic that does not grow with the sequence
 *               (context_mamba.h)
 *               heads: as above
 *
 * Continuing prompts (src/decoder.h) reads them in such pieces, with what was read before
 * remembered where it came to be: keys and values by the rank that computed them, so that a long
 * prompt takes its share of memory on each rank. Then every sequence is one token, and the rows of
 * a batch are dealt out to the ranks, whole ones: each computes layers for its rows, and keeps what
 * Mamba layers remember of them, from the first call on; in attention all ranks' keys are asked
 * (context_cache.h). Where ranks take heads, each remembers its heads' of all rows instead.
 *
 * Gradients of weights are sums over data and context together. Which way is taken is a function of
 * deck and model (src/choose_context.h), the same on every rank. */
#ifndef PARALLEL_CONTEXT_PARALLEL_H
#define PARALLEL_CONTEXT_PARALLEL_H

#include "kernels/ops.h"

struct group;

/* Pieces of a sequence that a rank holds (1 while there is one rank), and all of them. */
int context_held(int context);
int context_pieces(int context);

/* The number of the i-th piece that rank `rank` along context holds. */
int context_piece(int context, int rank, int i);

/* A micro-batch of `rows` sequences of `length` tokens as a rank holds it. */
int64_t context_rows(int context, int64_t rows);
int64_t context_length(int context, int64_t length);

/* The first of `rows` whole rows that are dealt to this rank: the first ranks get one more. */
int64_t context_dealt(int context, int rank, int64_t rows);

/* For the exchanges: rows of `width` numbers, ldx and ldy apart, copied or added on the device. */
void copy_rows(struct tape *t, enum dtype d, const void *from, int64_t ldx, void *to, int64_t ldy,
               int64_t rows, int64_t width, int add);

/* The group of the ranks along context. */
struct group *context_group(const struct tape *t);

/* Bytes to and from each member of the group; between start and wait the arrays may go. */
void context_exchange(struct tape *t, const void *send, const int64_t *send_bytes, void *recv,
                      const int64_t *recv_bytes);

/* All rows of x that the ranks have, which is as many each: rank after rank; x itself where there
 * is one rank. No gradient flows through it. Collective. */
struct tensor *context_all_rows(struct tape *t, struct tensor *x);

/* `p` moved on by n numbers of format d. */
static inline void *moved(const void *p, int64_t n, enum dtype d) {
    return (void *)((uintptr_t)p + (uintptr_t)(n * (int64_t)dtype_size(d)));
}

#endif
