/* host_batch: a micro-batch in host memory, as this rank holds it.
 *
 * Sequences are read or made whole, and of each is kept what is this rank's: everything, or its
 * pieces where sequences lie on several ranks (parallel/context_parallel.h). Then rows are pieces,
 * and starts of documents are counted from the piece's first token. Some layers meet whole
 * sequences even so (parallel/ context_heads.h), and need the starts of all their tokens. */
#ifndef SRC_HOST_BATCH_H
#define SRC_HOST_BATCH_H

#include <stdbool.h>
#include <stdint.h>

struct engine;

/* rows * length of each; weight: 1 where the token's target counts, else 0. whole_start: of all
 * tokens of the sequences, or NULL. document: the number of each token's (src/documents.h), or NULL
 * where the rows are whole sequences and nobody has numbered them. */
struct host_batch {
    int64_t rows, length;
    int32_t *ids, *start, *target, *whole_start, *document;
    double *weight;
};

/* `rows` sequences of `length` tokens as this rank holds them, without memory; with memory. */
struct host_batch host_batch_shape(const struct engine *e, int64_t rows, int64_t length);
struct host_batch host_batch_make(const struct engine *e, int64_t rows, int64_t length);
void host_batch_free(struct host_batch *b);

/* Whether the starts of whole sequences are needed. */
bool host_batch_whole(const struct engine *e);

/* The number of each token's document, to memory for rows * length. Returns how many tokens are no
 * padding. */
int64_t host_batch_documents(const struct engine *e, const struct host_batch *b, int32_t *to);

/* Puts sequence number `row` of a batch there, as far as it is this rank's. start: counted from the
 * sequence's first token. Returns how many targets count. */
int64_t host_batch_put(const struct engine *e, struct host_batch *b, int64_t row,
                       const int32_t *ids, const int32_t *start, const int32_t *target,
                       const double *weight);

#endif
