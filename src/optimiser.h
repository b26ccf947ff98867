/* optimiser: from gradients to new weights.
 *
 * AdamW over the blocks of a model, with moments in real numbers; one pass over memory updates the
 * weight (its master), its rounded copy and the moments, and clears the gradient; the gradient's
 * norm is that of the whole model, every number counted once, its squares summed exactly, so it
 * does not depend on the mesh beyond the gradients' own rounding. */
#ifndef SRC_OPTIMISER_H
#define SRC_OPTIMISER_H

#include "src/params.h"

struct parallel;

struct optimiser {
    const struct deck *deck;
    struct params *params;
    struct device *device;
    enum dtype real;
    int n_runs;
    struct {
        void *p;
        int64_t n;
    } * run;   /* owned gradients, as contiguous runs */
    void *sum; /* struct exact on the device */
};

/* Memory for the moments (from `arena`), zeroed. */
void optimiser_init(struct optimiser *o, const struct deck *deck, struct params *s,
                    struct device *d, struct arena *arena, enum dtype real);
void optimiser_free(struct optimiser *o);

/* Norm of the gradient of the whole model. Collective over the world. 0 on dry. */
double optimiser_norm(struct optimiser *o, struct parallel *p);

/* One update; step counts from 1. norm: for clipping. The gradients are zeros afterwards. */
void optimiser_step(struct optimiser *o, int64_t step, double rate, double norm);

#endif
