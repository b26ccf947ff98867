/* plan_tables: the plan of a mesh as people and as programs read it.
 *
 * Three tables: what every rank needs and does in a step, where the work is by operation, and what
 * travels on which group. The time of a step is an estimate from below: every operation at the peak
 * of arithmetic or of memory, whichever takes longer, and every byte sent at the network's. */
#ifndef SRC_PLAN_TABLES_H
#define SRC_PLAN_TABLES_H

#include <stdbool.h>

struct deck;
struct config;
struct mesh_shape;
struct mistakes;

/* Plans all ranks and prints them, as text or as JSON. Returns the exit code. */
int plan_run(const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json,
             struct mistakes *m);

#endif
