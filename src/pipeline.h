/* pipeline: the executor of a schedule: a step's micro-batches through this rank's stages.
 *
 * The schedule (parallel/schedule.h) is a list of actions, and pipeline_do does one of them; there
 * is no other control flow. What a micro-batch holds in a stage between its forward and its last
 * backward half is a `flight`: a tape of its own, its tokens, the stream that came in and what went
 * out. All flights live in the same arenas. A stage's input is received into the tape, or shared
 * with the tape of the stage before where this rank holds that too; the gradient of its output
 * likewise, from behind.
 *
 * Weight halves run in micro-batch order, so neither pipeline nor schedule changes a bit of a
 * gradient. A pass without gradients plays the forwards of the same list. */
#ifndef SRC_PIPELINE_H
#define SRC_PIPELINE_H

#include "parallel/pipeline_parallel.h"
#include "parallel/schedule_store.h"
#include "src/model.h"
#include "src/staging.h"

struct engine;
struct flight;
struct host_batch;

/* What a pass is for. */
struct pipeline_pass {
    enum { PASS_GRADIENTS, PASS_LOSSES, PASS_LOGITS } what;
    int n;
    const struct host_batch *batch; /* [n] */
    double seed;                    /* gradient of each token's loss */
    bool count_experts;
    char *logits; /* host memory of the ranks of the last stage: all batches one after the other */
};

struct pipeline {
    struct engine *engine; /* borrowed */
    const struct staging *stages;
    struct neighbours neighbours;
    struct schedule_store *store;    /* borrowed, of plans of many ranks; or NULL */
    const struct schedule *schedule; /* of as many micro-batches as the last pass had; or NULL */
    struct schedule own;             /* that, unless it is the store's */
    struct request *request;         /* [slots of this rank's list] */
    struct flight **flight; /* [chunk * micro_batches + micro_batch]; NULL: not under way */
    struct flight *spare;
    struct pipeline_pass pass; /* that is running */
};

/* Makes the groups. Collective over the world. */
void pipeline_init(struct pipeline *p, struct engine *e, const struct staging *stages);
void pipeline_free(struct pipeline *p);

/* Collective over the ranks of the pipeline, all with the same n >= 1 and sizes of batches. Sums of
 * losses go to the engine's loss_sum on the last stage, gradients to the parameters. */
void pipeline_run(struct pipeline *p, const struct pipeline_pass *pass);

/* The idle share that the last schedule has by planned time; 0 before there is one. */
double pipeline_idle(const struct pipeline *p);

#endif
