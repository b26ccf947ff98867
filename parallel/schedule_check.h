/* schedule_check: proves of any set of lists that it is a schedule.
 *
 * Complete: every stage does every micro-batch forward once and backward once, in one piece or two
 * halves. In order: nothing is computed or sent before what it needs is there. Matched: the k-th
 * send from a rank to another carries what the k-th receive there expects. Closed: every request is
 * started in a free slot and waited for once. Live: the lists, played against each other with sends
 * that move nothing before their receive is started, all come to their end (schedule_play.h). And
 * the same sums: both halves of a stage come in the order of micro-batches, so no bit of a
 * gradient depends on the schedule. Nothing here looks at how the lists were made. */
#ifndef PARALLEL_SCHEDULE_CHECK_H
#define PARALLEL_SCHEDULE_CHECK_H

#include <stdint.h>

#include "parallel/schedule.h"

enum { SCHEDULE_WHY = 400 };

struct schedule_held {
    int64_t most;       /* micro-batches of a stage, until their weight half */
    int64_t most_bytes; /* the same in the caller's sizes */
};

/* Returns 0 and sets held[ranks] (may be NULL) to the peaks, or -1 and says in `why` what is wrong:
 * "rank 1, action 7 (forward, chunk 0, micro-batch 3): its input has not been received". */
int schedule_check(const struct schedule *s, const struct schedule_sizes *sizes,
                   struct schedule_held *held, char why[SCHEDULE_WHY]);

#endif
