/* staging_count: the work of the parts of a model, counted by running them.
 *
 * A model is made that has each kind of layer once, every part of it is a stage of its own, and one
 * micro-batch passes through it forward and back on the dry device: nothing is computed, and what
 * the ops say they would do is added up. So the counts know of recomputing, of the split over
 * tensor ranks, and of every layer there will ever be. */
#ifndef SRC_STAGING_COUNT_H
#define SRC_STAGING_COUNT_H

#include "src/staging.h"

enum { COUNTED_KINDS = 8 };

struct counted {
    int64_t stream, tokens, ids,
        targets; /* bytes of a micro-batch: at a boundary; of each stage, the first, the last */
    struct stage_work embedding, head;
    char kinds[COUNTED_KINDS + 1];
    struct stage_work layer[COUNTED_KINDS]; /* by place in kinds */
};

void staging_count(struct counted *k, const struct deck *d, const struct config *c,
                   const struct mesh_shape *shape);
const struct stage_work *counted_layer(const struct counted *k, char kind);

#endif
