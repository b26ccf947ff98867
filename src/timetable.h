/* timetable: where the time of all ranks went, as one table.
 *
 * At the end every rank's timer (parallel/timer.h) is gathered. A row is a range, its columns calls
 * of a rank, the least, mean and most over ranks, the share of the total, how much of the mean was
 * waiting for other ranks, and the rank that spent most. Means add up to the mean total in the
 * digits that are printed too: they are rounded together. */
#ifndef SRC_TIMETABLE_H
#define SRC_TIMETABLE_H

#include <stdio.h>

#include "parallel/timer.h"

struct comm;
struct output;
struct machine;

struct rank_time {
    int64_t spent_ns[N_RANGES], waited_ns[N_RANGES], calls[N_RANGES];
};

struct timetable {
    int ranks;
    struct rank_time *rank; /* by rank */
};

/* Gathers the timers of all ranks. Collective over the world. */
void timetable_gather(struct timetable *t, struct comm *c, struct timer *own);
void timetable_free(struct timetable *t);

/* One row. Times in ns, share in thousandths of the total; means and shares of all rows add up. */
struct time_row {
    const char *name;
    int64_t calls, min_ns, mean_ns, max_ns, waited_ns;
    int share;
    int slowest;
};

/* The rows with any time in them, the longest mean first and `other` last; then the total. Means
 * are rounded to multiples of `unit` ns. rows has room for N_RANGES + 1; returns how many. */
int timetable_rows(const struct timetable *t, int64_t unit, struct time_row *rows);

/* The table on the terminal, and as YAML below the key `time` of summary.yaml. */
void timetable_say(const struct timetable *t, const struct output *o, const struct machine *h);
void timetable_yaml(const struct timetable *t, FILE *f);

#endif
