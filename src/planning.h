/* planning: what a run will need, known before it runs.
 *
 * A plan is the program itself on the dry device, once as every rank of the mesh: the same model is
 * built, the same step is taken, the same memory is asked for, and nothing is computed. So the
 * planned memory is the measured memory, to the byte. `check` builds the model only, and counts. */
#ifndef SRC_PLANNING_H
#define SRC_PLANNING_H

#include <stdbool.h>
#include <stdint.h>

struct deck;
struct config;
struct mesh_shape;
struct mistakes;

/* Prints parameters, active, tensors and ranks as YAML. Returns the exit code. */
int plan_check(const struct deck *d, struct config *c, const struct mesh_shape *shape,
               struct mistakes *m);

/* What the arenas of one rank will grow to, in bytes. */
struct rank_plan {
    int64_t parameters, gradients, moments, states, activations, scratch;
};
int64_t plan_bytes(const struct rank_plan *p);

/* Plans one rank: a dry step of training, or a dry batch of generation. Nothing is allocated that a
 * run would. -1 after telling m. */
int plan_rank(const struct deck *d, struct config *c, const struct mesh_shape *shape, int rank,
              struct rank_plan *p, struct mistakes *m);

/* Prints the memory of every rank, as a table or as JSON. Returns the exit code. */
int plan_run(const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json,
             struct mistakes *m);

#endif
