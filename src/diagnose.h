/* diagnose: where the first number that is not finite came from.
 *
 * Called when a loss or a gradient norm is not finite: looks through the weights, then runs the
 * step's micro-batches forward once more and looks at the stream after each layer, then at the
 * gradients. It costs a forward pass and happens once. */
#ifndef SRC_DIAGNOSE_H
#define SRC_DIAGNOSE_H

#include <stdint.h>

struct engine;
struct host_batch;

/* A sentence: which parameter, or which layer, rank and sequence of the step (counted over all
 * ranks from first_sequence on this rank). The gradients of the step must still be there. malloc'd,
 * the same on every rank. Collective over the world. */
char *diagnose(struct engine *e, int n, const struct host_batch *batches, int64_t first_sequence);

#endif
