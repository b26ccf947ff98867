/* schedule_time: when each action of a schedule begins and ends, and what is held meanwhile.
 *
 * A rank does one thing after the other. Computing takes what the caller says, starts take nothing,
 * a wait lasts until its message is over. A message moves when both ends have started it and the
 * one before it between the same two ranks, in the same direction, is over; so a receive started
 * late costs time here as it does on a machine. From this come the length of the step, each rank's
 * idle share and the memory curve; the planner adds the rest of the step to it. */
#ifndef PARALLEL_SCHEDULE_TIME_H
#define PARALLEL_SCHEDULE_TIME_H

#include <stdint.h>

#include "parallel/schedule.h"

struct action_time {
    int64_t start, end; /* of a start: until the message is over */
    int64_t held;       /* by the rank, while a forward runs and after any other action */
};

struct schedule_times {
    int64_t length;            /* ticks, from the first action to the last */
    double idle;               /* share of all ranks' time without computing */
    double *idle_of;           /* [ranks] */
    int64_t *most_held;        /* [ranks] peak, in the caller's sizes */
    struct action_time **rank; /* [ranks][action] */
    int ranks;
};

/* s has been checked, or comes from the builder. costs and sizes may be NULL. */
void schedule_time(struct schedule_times *t, const struct schedule *s,
                   const struct schedule_costs *costs, const struct schedule_sizes *sizes);
void schedule_times_free(struct schedule_times *t);

#endif
