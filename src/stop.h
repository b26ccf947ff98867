/* stop: when a run ends before its time, and how all ranks agree on it.
 *
 * A run is asked to stop by a signal (SIGTERM, SIGINT, SIGUSR1) to any rank, by run.walltime or the
 * end of its Slurm job, or by a file named `stop` in the output folder. Each rank notes what it
 * sees; once a step the largest wish of all decides, so every rank stops at the same step, saves,
 * and leaves with code 3: the same command continues. A second SIGINT leaves at once. */
#ifndef SRC_STOP_H
#define SRC_STOP_H

#include <stdbool.h>

struct comm;
struct deck;
struct mistakes;

enum stop_wish { STOP_NO, STOP_FILE, STOP_WALLTIME, STOP_SIGNAL };

struct stop {
    const char *folder;
    double began,
        ends; /* seconds_now() of the start, and when the run must have ended; 0: no limit */
    double slowest_step, last_save;
};

/* Installs the handlers, and reads run.walltime ([days-]hours:minutes:seconds) and Slurm's end
 * time. -1 after telling m. */
int stop_init(struct stop *s, const struct deck *d, struct mistakes *m);

/* After a step that took so long: what all ranks agree on. Time is short when what is left is less
 * than the slowest step so far plus twice the last save and half a minute (never more than half of
 * the limit). Collective over the world. */
enum stop_wish stop_agree(struct stop *s, struct comm *c, double step_seconds);

/* "asked by a signal (SIGTERM)", ... */
const char *stop_reason(enum stop_wish w);

/* Removes the stop file, so that the next start does not stop again. */
void stop_clear(const struct stop *s);

#endif
