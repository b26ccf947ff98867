/* evaluate: the loss over a text, without learning.
 *
 * Sequences are dealt to the data ranks in rounds; a rank whose part of the last round has run out
 * computes sequences that do not count, so that all take part in every exchange. Losses are summed
 * exactly, so the mesh does not show beyond rounding. */
#ifndef SRC_EVALUATE_H
#define SRC_EVALUATE_H

#include <stdint.h>

#include "src/stop.h"

struct engine;
struct feed;

struct measured_loss {
    double loss;         /* mean over the counted targets */
    int64_t tokens;      /* these */
    int64_t rounds;      /* that were computed */
    enum stop_wish wish; /* why not all were */
};

/* The loss of what the feed measures, or of as many rounds as there are before somebody wishes to
 * stop (NULL: nobody does). Collective over the world. */
struct measured_loss evaluate_loss(struct engine *e, struct feed *f, struct stop *stop);

#endif
