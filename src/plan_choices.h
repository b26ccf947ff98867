/* plan_choices: what the other ways to share the work would cost, beside the one that is taken.
 *
 * Across context ranks attention goes by a ring or by heads, Mamba by states or by heads; and
 * experts can be shared out over more ranks or fewer, or split. Each way is planned like the
 * deck's own: a step of one rank on the dry device, with that one thing changed. The rank is of
 * the stage that has most of the layers in question, and of the experts that the recorded loads
 * make fullest. */
#ifndef SRC_PLAN_CHOICES_H
#define SRC_PLAN_CHOICES_H

#include <stdio.h>

struct config;
struct deck;
struct mesh_shape;
struct schedule_store;
struct speed;

struct plan_setting {
    const struct deck *deck;
    struct config *config;
    const struct mesh_shape *shape;
    const struct speed *speed;
    double network; /* bytes a second */
    struct schedule_store *schedules;
};

/* Seconds of a step at least: arithmetic and memory, and then messages. */
struct costs;
double plan_seconds(const struct costs *c, double network);

/* As tables; nothing where there is nothing to choose. */
void plan_choices_text(FILE *f, const struct plan_setting *s);

/* The same as members of a JSON object, with a comma before each. */
void plan_choices_json(FILE *f, const struct plan_setting *s);

/* How uneven the recorded loads are, on any mesh and on this one; nothing without plan.routing. */
void plan_loads_text(FILE *f, const struct plan_setting *s);
void plan_loads_json(FILE *f, const struct plan_setting *s);

#endif
