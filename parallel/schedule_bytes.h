/* schedule_bytes: what each rank of a schedule holds at most, messages included.
 *
 * A stage's activations are only part of it: an action needs more on its way than it leaves, what
 * was computed stays until its message is over, and a receive has its memory before anything comes.
 * All of that follows from a rank's list alone, whatever the time. In the executor's order: a
 * forward turns the stream that came into what is kept and the stream that goes on; a backward the
 * same with gradients; a received stream begins with its receive, and one that was sent ends with
 * its wait. Between stages of one rank a stream is handed over as it is. */
#ifndef PARALLEL_SCHEDULE_BYTES_H
#define PARALLEL_SCHEDULE_BYTES_H

#include "parallel/schedule.h"

/* Of the rank that holds most; most[ranks] (may be NULL) gets each rank's. */
int64_t schedule_bytes(const struct schedule *s, const struct schedule_sizes *z, int64_t *most);

#endif
