/* schedule_picture: a schedule as people and trace viewers see it.
 *
 * The picture has a row a rank and time to the right: A B C ... forwards of micro-batches 0 1 2
 * ..., a b c ... their backwards (or input halves), 0 1 2 ... weight halves, a dot where the
 * rank is idle. Letters repeat after 26, digits after 10. */
#ifndef PARALLEL_SCHEDULE_PICTURE_H
#define PARALLEL_SCHEDULE_PICTURE_H

#include <stdio.h>

#include "parallel/schedule.h"
#include "parallel/schedule_time.h"

/* One column a tick, or a tick's multiple or fraction so that all actions are whole columns; if
 * that is wider than `width` columns, each shows what is done in its middle. Ends with a line
 * that says length, idle share and the most any rank holds. */
void schedule_picture(FILE *f, const struct schedule *s, const struct schedule_times *t, int width);

/* Chrome's trace format (chrome://tracing, Perfetto): a process a rank, with a row for computing
 * and waiting and one for messages on their way in. us is the length of a tick in microseconds. */
void schedule_write_trace(FILE *f, const struct schedule *s, const struct schedule_times *t,
                          double us);

#endif
