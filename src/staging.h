/* staging: which layers each stage of the pipeline computes, and what that costs.
 *
 * The line embedding, layers, norm and head is cut into stages (parallel/stages.h): as the deck
 * draws it (parallel.stages), else so that the slowest stage is as fast as can be. For that the
 * time of a layer is counted: each kind that the model has runs once, forward and back, on the dry
 * device, with this deck's micro-batch and mesh. The counts also order and time the schedule.
 * Everything here is a function of deck, model and mesh, the same on every rank; so nothing is
 * measured. */
#ifndef SRC_STAGING_H
#define SRC_STAGING_H

#include "parallel/schedule_build.h"

struct config;
struct deck;
struct mesh_shape;

/* What a stage computes: layers first to end - 1, after the embedding, before the head. */
struct stage {
    int first, end;
    bool embeds, heads;
};

/* Of a part of the model on one micro-batch: work, multiply-adds as two; the time it takes, by the
 * roofline of a machine with the deck's speeds or usual ones; and what each kind of action does to
 * the bytes that its rank holds, the stream that comes in and the one that goes on included. */
struct stage_share {
    double work, seconds;
};
struct stage_span {
    int64_t change, rise; /* from its beginning to its end; at most on its way */
};
struct stage_work {
    struct stage_share forward, input, weight;
    struct stage_span span[N_COMPUTING];
};

struct staging {
    struct schedule_shape shape; /* micro_batches: 0, the step's business */
    int group;                   /* of micro-batches, or 0 (parallel/schedule_build.h) */
    int n, n_layers;
    int *first;                        /* [n] layer each begins with */
    struct stage_work *work;           /* [n]; NULL where there is one stage */
    int64_t *forward, *input, *weight; /* [n] the same in ticks, a part of the slowest stage's */
    struct schedule_costs costs;       /* of these three */
    int64_t *kept, *between;           /* [n] bytes of a micro-batch */
    int64_t *rise[N_COMPUTING];
    struct schedule_sizes sizes; /* of these */
    struct staging *plain;       /* zbv: 1f1b of the same ranks; zero-bubble: NULL, these */
    struct schedule_wish like;   /* of that */
};

/* How many stages a rank has, and the schedule, as the deck says. */
struct schedule_shape staging_shape(const struct deck *d, int pipeline);

/* The schedule that these stages ask for. */
struct schedule_wish staging_wish(const struct staging *s, int micro_batches);

void staging_init(struct staging *s, const struct deck *d, const struct config *c,
                  const struct mesh_shape *shape);
void staging_free(struct staging *s);

struct stage staging_stage(const struct staging *s, int i);
int staging_of_layer(const struct staging *s, int layer);
/* The pipeline coordinate of stage i. */
int staging_rank(const struct staging *s, int i);

/* The stages as a pattern with bars; malloc'd. */
char *staging_text(const struct staging *s, const struct config *c);

#endif
