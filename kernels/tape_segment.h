/* tape_segment: layers that are computed twice, so that only their input is kept.
 *
 * tape_segment notes a whole layer as one op. Its adjoint replays the layer, notes and all, and
 * walks back through it. A replay has no side effects, takes what must not be decided twice
 * (routing) from the first time, and skips the layer's last exchange, whose result nobody reads. */
#ifndef KERNELS_TAPE_SEGMENT_H
#define KERNELS_TAPE_SEGMENT_H

#include "kernels/tape.h"

/* The inside of a replayed layer: y = f(context, x). */
typedef struct tensor *(*segment_fn)(struct tape *t, void *context, struct tensor *x);

/* Runs f on x, keeping only x (and what it keeps by tape_keep), and notes it as one op. f must not
 * drop x, must find the same in `context` when it is replayed (t->pass is put back), and must not
 * begin a segment itself. */
struct tensor *tape_segment(struct tape *t, segment_fn f, void *context, struct tensor *x);
/* Inside f: x holds a decision. The first run keeps it, a replay returns the
 * kept one instead. Integers only. */
struct tensor *tape_keep(struct tape *t, struct tensor *x);
/* Inside a replay: the decision that the first run kept at this
 * place, or NULL if this is no replay. */
struct tensor *tape_kept(struct tape *t);

#endif
