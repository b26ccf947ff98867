/* feed: which tokens each rank works on in each step.
 *
 * The samples of a step are numbers, (step - 1) * global_batch onwards, dealt to the data ranks in
 * order and cut into micro-batches; the corpus says what a number means. So a step's tokens depend
 * on the deck and the step alone: the mesh changes only who reads which, and a run that continues
 * needs to know nothing but its step. */
#ifndef SRC_FEED_H
#define SRC_FEED_H

#include <stdbool.h>
#include <stdint.h>

#include "io/corpora.h"

struct comm;
struct deck;
struct engine;
struct host_batch;
struct mesh_shape;
struct mistakes;
struct token_pool;

struct feed {
    struct token_pool *pool; /* of a tokenizer other than bytes; else NULL */
    struct corpus corpus;
    struct corpus measured;  /* by validation and evaluation: what is held out, or everything */
    int64_t validation;      /* its samples that are measured */
    int micro_batches, rows; /* of this rank in a step; sequences of one */
    int64_t length, global_batch;
    int64_t first;            /* this rank's first sequence within a step */
    struct host_batch *batch; /* [micro_batches], filled anew by each of the functions below */
    int32_t *tokens, *start, *target; /* of one sequence */
    double *weight;
    bool *counts;
    const struct engine *engine;
};

/* Is there memory on every host for the tables of a step's tokens? To be asked before anything is
 * made. -1 after telling m, on every rank. Collective over the world. */
int feed_fits(const struct deck *d, const struct mesh_shape *shape, struct comm *c,
              struct mistakes *m);

/* Opens the data of the deck. Collective over the world. -1 after telling m, on every rank. */
int feed_init(struct feed *f, const struct engine *e, struct mistakes *m);
void feed_free(struct feed *f);

/* Fills f->batch with step number `step` (from 1). Returns the counted targets of this rank. */
int64_t feed_step(struct feed *f, int64_t step);

/* The measured samples come in feed_rounds(f) rounds of global_batch each, the same every time; in
 * the last one, what is beyond their number has no counted targets. round: from 0. Returns the
 * counted targets of this rank. */
int64_t feed_rounds(const struct feed *f);
int64_t feed_validation(struct feed *f, int64_t round);

/* Steps that read so many passes over the data (a blend's pass is as many samples as its sources
 * have together), rounded up; mock data has no passes: -1. */
int64_t feed_steps(const struct feed *f, double epochs);

#endif
