/* plan_pipeline: what a pipeline's stages do, and how long its ranks stand idle, before it runs.
 *
 * The schedule that a run would play, timed with the planned time of each stage: messages take no
 * time here, so the idle share is what the order of work alone costs. */
#ifndef SRC_PLAN_PIPELINE_H
#define SRC_PLAN_PIPELINE_H

#include <stdio.h>

struct deck;
struct config;
struct mesh_shape;
struct schedule_store;

/* As a table and a picture; nothing where there is one stage. schedules: see plan_rank. */
void plan_pipeline_text(FILE *f, const struct deck *d, const struct config *c,
                        const struct mesh_shape *shape, struct schedule_store *schedules);

/* The same as a member of a JSON object, with a comma before it. */
void plan_pipeline_json(FILE *f, const struct deck *d, const struct config *c,
                        const struct mesh_shape *shape, struct schedule_store *schedules);

/* The idle share alone; 0 where there is one stage. */
double plan_pipeline_idle(const struct deck *d, const struct config *c,
                          const struct mesh_shape *shape);

#endif
