/* trace: what every rank did in chosen steps, as a picture for chrome://tracing or Perfetto.
 *
 * trace.json in the output folder has a row a rank: the actions of the schedule, what lies around
 * them in a step, and inside those every wait for other ranks with the name of the group. An arrow
 * goes from each send between stages to the wait that ends its receive. The
 * clocks of hosts are set to zero at a common barrier before a traced step; an untraced one pays a
 * test of a pointer for each span. */
#ifndef SRC_TRACE_H
#define SRC_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct action;
struct deck;
struct engine;
struct output;

/* Begins the step if log.trace_steps has it. Collective over the world. */
void trace_begin(const struct engine *e, int64_t step);

/* Nanoseconds to give to trace_span later; 0 while nothing is traced. */
int64_t trace_now(void);

/* Micro-batches pass through the stages, from the first on. Alike on all ranks. */
void trace_pass(void);

/* From then until now. `group`: who was waited for, or NULL. */
void trace_span(const char *name, const char *group, int64_t from);
/* The same for an action of that stage, and the end of an arrow. */
void trace_action(const struct action *a, int stage, int64_t from);

/* Ends the step and writes the file anew. Collective over the world. */
void trace_end(const struct engine *e, const struct output *o);

/* Forgets all steps. */
void trace_free(void);

#endif
