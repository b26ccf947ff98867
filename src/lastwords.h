/* lastwords: what every rank was doing, kept where the survivors and the next start can read it.
 *
 * Each rank writes {step, what it does, whom it waits for, since when} into a small memory-mapped
 * file of the output folder (ranks/NNNNN); that costs a few stores, and the kernel keeps the page
 * when the process is killed. When a rank dies, is killed or hangs, the records say who stopped
 * first and where: a thread of each rank writes a heartbeat, so the oldest heartbeat is the first
 * who died; and if run.watchdog seconds pass in which a rank does not move, it names the ranks that
 * wait for nobody, and ends the run. */
#ifndef SRC_LASTWORDS_H
#define SRC_LASTWORDS_H

#include <stdbool.h>
#include <stdint.h>

/* What the records of an earlier run in this folder say if it did not end by itself; malloc'd
 * lines, NULL if it did or there was none. To be read before lastwords_begin. */
char *lastwords_of_before(const char *folder);

/* Begins this rank's record and its heartbeat. watchdog: seconds, 0 for none. The folder exists. */
void lastwords_begin(const char *folder, int rank, int size, int watchdog);

/* What the rank does from now on: a static string. */
void lastwords_at(int64_t step, const char *what);

/* The same within a step; copied. */
void lastwords_doing(const char *what);

/* The run ended by itself: nothing to tell. */
void lastwords_end(void);

#endif
