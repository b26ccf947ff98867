/* schedule_store: schedules that are made once, for all who wish for the same.
 *
 * A schedule is the lists of all ranks, and a function of its wish alone. A run makes it once on
 * every rank; a plan is one process that is every rank in turn, and would make as many times what
 * is larger the more ranks there are. Wishes are the same where all their numbers are. */
#ifndef PARALLEL_SCHEDULE_STORE_H
#define PARALLEL_SCHEDULE_STORE_H

#include "parallel/schedule_build.h"

struct schedule_store {
    struct stored_schedule *first; /* owned */
};

/* What schedule_build makes of the wish; the store's, until it is freed. */
const struct schedule *schedule_store_get(struct schedule_store *s, const struct schedule_wish *w);
void schedule_store_free(struct schedule_store *s);

#endif
