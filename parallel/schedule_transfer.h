/* schedule_transfer: adds the sends and receives to lists that only compute.
 *
 * A send is started right behind the action that made its data. Receives from a rank are started
 * in the order of its sends, each before the computing that stands ahead of its use and takes at
 * least as long as a transfer, so one action ahead or more. Each is waited for right before its
 * use. When a send can be waited for without standing still is found by timing the lists: before
 * the first action that begins after the message is over and one more action has passed. So few
 * requests are open, and since that place was reached in one run of the lists, it is reached in
 * all. */
#ifndef PARALLEL_SCHEDULE_TRANSFER_H
#define PARALLEL_SCHEDULE_TRANSFER_H

#include "parallel/schedule.h"

/* Fills `out` (of the same shape, empty) with the actions of `computing` and the transfers. */
void schedule_transfer(struct schedule *out, const struct schedule *computing,
                       const struct schedule_costs *costs);

#endif
