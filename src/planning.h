/* planning: what a run will need, known before it runs.
 *
 * A plan is the program itself on the dry device, once as every rank of the mesh: the same model is
 * built, the same step is taken, the same memory is asked for, and nothing is computed. So the
 * planned memory is the measured memory, to the byte, and so are work and traffic (src/costs.h).
 * `check` builds the model only, and counts. src/plan_tables.h prints plans. */
#ifndef SRC_PLANNING_H
#define SRC_PLANNING_H

#include <stdbool.h>
#include <stdint.h>

struct deck;
struct config;
struct costs;
struct mesh_shape;
struct mistakes;
struct schedule_store;
struct speed;

/* Prints parameters, active, tensors and ranks as YAML. Returns the exit code. */
int plan_check(const struct deck *d, struct config *c, const struct mesh_shape *shape,
               struct mistakes *m);

/* What the arenas of one rank will grow to, in bytes; and the work of a step of training, without
 * what memory.recompute repeats. */
struct rank_plan {
    int64_t parameters, gradients, moments, states, activations, scratch;
    double work;
};
int64_t plan_bytes(const struct rank_plan *p);

/* Plans one rank: a dry step of training, or a dry batch of generation. Nothing is allocated that a
 * run would. costs (or NULL): of a whole step of training, at that speed (or NULL). schedules: what
 * plans of other ranks left and find there; NULL for a single one. -1 after telling m. */
int plan_rank(const struct deck *d, struct config *c, const struct mesh_shape *shape, int rank,
              const struct speed *speed, struct schedule_store *schedules, struct rank_plan *p,
              struct costs *costs, struct mistakes *m);

#endif
