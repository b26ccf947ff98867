/* dealing: the sequences of a reference, dealt out to the ranks as micro-batches, and which of
 * their logits each rank then has.
 *
 * Data ranks get blocks of sequences, context ranks pieces of each. Tokens that attention_mask
 * leaves out, and what fills a sequence up so that the context ranks can share it, are documents of
 * their own that count for nothing. */
#ifndef SRC_DEALING_H
#define SRC_DEALING_H

#include "kernels/dtype.h"
#include "src/reference.h"

struct host_batch;

struct dealt {
    int n;
    struct host_batch *batch;
    int64_t first, rows; /* this rank's sequences */
    int64_t counted;     /* targets of all ranks */
    int64_t tokens;      /* of all micro-batches */
};

struct dealt dealing_make(const struct reference *r, const struct engine *e);
void dealing_free(struct dealt *w);

/* A run of tokens whose logits a rank has: n of them, the first is number `from` of all and
 * number `at` of its own. Counted by i, from 0 to dealing_runs - 1; n is 0 where all there is
 * is padding. */
struct run_of_tokens {
    int64_t from, at, n;
};
int64_t dealing_runs(const struct engine *e, const struct dealt *w);
struct run_of_tokens dealing_run(const struct reference *r, const struct engine *e,
                                 const struct dealt *w, int64_t i);

/* Tokens whose logits are computed here. */
int64_t dealing_tokens(const struct reference *r, const struct engine *e, const struct dealt *w);

/* Where this rank's logits are in the file's; returns how many boxes
 * were made, at most dealing_runs. */
int dealing_boxes(const struct reference *r, const struct engine *e, const struct dealt *w,
                  void *memory, enum dtype d, struct box *boxes);

#endif
