/* recompute: what the deck wants computed again in backward instead of kept (section memory).
 *
 * Not a bit depends on it: layers are replayed whole (kernels/tape_segment.h), or chosen ops are
 * run again (kernels/tape_again.h). */
#ifndef SRC_RECOMPUTE_H
#define SRC_RECOMPUTE_H

#include <stdbool.h>

struct deck;
struct mistakes;

/* Whole layers; and the chosen ops as bits of tape.again. */
bool recompute_layers(const struct deck *d);
unsigned recompute_ops(const struct deck *d);

void recompute_check(const struct deck *d, struct mistakes *m);

#endif
