/* evaluate: the loss over a text, without learning.
 *
 * Sequences are dealt to the data ranks in rounds; a rank whose round has run out computes one that does not count, so
 * that all take part in every exchange. Losses are summed exactly, so the mesh does not show beyond rounding. */
#ifndef SRC_EVALUATE_H
#define SRC_EVALUATE_H

#include <stdint.h>

struct corpus;
struct engine;

/* Mean loss of the counted targets of the first `samples` sequences of the corpus (0: one pass, all of them); *tokens, if not NULL, gets how many counted.
 * Collective over the world. */
double evaluate_loss(struct engine *e, const struct corpus *c, int64_t samples, int64_t *tokens);

#endif
