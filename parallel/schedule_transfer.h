/* schedule_transfer: adds the sends and receives to lists that only compute.
 *
 * A send is started right behind the action that made its data. Receives from a rank are started
 * in the order of its sends, each before the computing that stands ahead of its use and takes at
 * least as long as a transfer, so one action ahead or more. Each is waited for right before its
 * use. When a send can be waited for without standing still is found by timing the lists: before
 * the first action that begins after the message is over and one more action has passed. So few
 * requests are open, and since that place was reached in one run of the lists, it is reached in
 * all. Messages under way have memory: for ranks that lack it there are two steps of less haste. */
#ifndef PARALLEL_SCHEDULE_TRANSFER_H
#define PARALLEL_SCHEDULE_TRANSFER_H

#include "parallel/schedule.h"

enum transfer_haste {
    TRANSFER_AHEAD,
    TRANSFER_NEXT, /* a send is waited for as soon as it is over by the costs */
    TRANSFER_LATE, /* and a receive is started when it is waited for */
    N_HASTES
};

/* Fills `out` (of the same shape, empty) with the actions of `computing` and the transfers.
 * haste: of each rank; NULL: ahead. */
void schedule_transfer(struct schedule *out, const struct schedule *computing,
                       const struct schedule_costs *costs, const enum transfer_haste *haste);

#endif
