/* stop: when a run ends before its time, and how all ranks agree on it.
 *
 * A run is asked to stop by a signal (SIGTERM, SIGINT, SIGUSR1) to any rank, by run.walltime or the
 * end of its Slurm job, or by a file named `stop` in the output folder. Each rank notes what it
 * sees; once a step the largest wish of all decides, so every rank stops at the same step, saves,
 * and leaves with code 3: the same command continues; where checkpoint.interval is 0 there is
 * nothing to go on from, and it leaves with 0. Generation and evaluation, whose steps are tokens
 * and rounds, keep what is finished, and the same command starts over. A second SIGINT leaves at
 * once. */
#ifndef SRC_STOP_H
#define SRC_STOP_H

#include <stdbool.h>

struct comm;
struct deck;

enum stop_wish { STOP_NO, STOP_FILE, STOP_WALLTIME, STOP_SIGNAL };

struct stop {
    const char *folder;
    double began,
        ends; /* seconds_now() of the start, and when the run must have ended; 0: no limit */
    double slowest_step, last_save;
    double looked; /* when the file was looked for last */
};

/* The seconds of a limit written as Slurm writes them: minutes, minutes:seconds,
 * hours:minutes:seconds, or days- before hours[:minutes[:seconds]]. Negative if it is none. */
double stop_seconds(const char *limit);

/* Installs the handlers, and reads run.walltime, which is right, and Slurm's end time. */
void stop_init(struct stop *s, const struct deck *d);

/* After a step (a token, a round of an evaluation) that took so long: what all ranks agree on. Time
 * is short when what is left is less than the slowest step so far plus twice the last save and half
 * a minute (never more than half of the limit). The file is looked for once a second. Collective
 * over the world. */
enum stop_wish stop_agree(struct stop *s, struct comm *c, double step_seconds);

/* "a signal", "the time limit", ... */
const char *stop_reason(enum stop_wish w);

/* Removes the stop file, so that the next start does not stop again. */
void stop_clear(const struct stop *s);

#endif
