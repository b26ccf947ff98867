/* evaluate: the loss over a text, without learning.
 *
 * Sequences are dealt to the data ranks in rounds; a rank whose part of the last round has run out
 * computes sequences that do not count, so that all take part in every exchange. Losses are summed
 * exactly, so the mesh does not show beyond rounding. */
#ifndef SRC_EVALUATE_H
#define SRC_EVALUATE_H

#include <stdint.h>

struct engine;
struct feed;

/* Mean loss of the counted targets of what the feed measures; *tokens, if not NULL, gets how many
 * there are. Collective over the world. */
double evaluate_loss(struct engine *e, struct feed *f, int64_t *tokens);

#endif
