/* output: the folder that a run leaves behind, and what it says on the way.
 *
 * One rank speaks: rank 0 writes the log to standard output and to log.txt, one line of metrics a
 * step to metrics.jsonl, and at the end summary.yaml. Every function may be called on any rank and
 * does nothing on the others, unless it says that it is collective. The folder is made only after
 * everything the person gave has been checked. */
#ifndef SRC_OUTPUT_H
#define SRC_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct deck;
struct comm;
struct loads;
struct mistakes;

struct output {
    bool speaks; /* this is rank 0 */
    const char *folder;
    FILE *log, *metrics;
};

/* Takes the folder's lock, if the folder is there: one run at a time. A newcomer waits 30 s for the
 * one before to end. -1 on every rank after telling m who holds it. Collective over the world. */
int output_lock(const char *folder, struct comm *c, struct mistakes *m);

/* Makes the folder, takes its lock if that has not been done, and writes used.yaml and
 * provenance.txt. Dies if it cannot be written. With done >= 0 an earlier run goes on after that
 * many steps: its metrics are cut back to them, and its log is added to. argc, argv: the command
 * line. Collective over the world. */
void output_begin(struct output *o, const struct deck *d, struct comm *c, int argc, char **argv,
                  int64_t done);
void output_end(struct output *o);

/* A line of the log. */
void say(const struct output *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* One step's metrics; numbers that are not finite become null, all others read back equal. */
struct step_metrics {
    int64_t step, tokens, peak_bytes;
    double loss, grad_norm, learning_rate, tokens_per_second, mfu, step_seconds;
    bool validated;
    double validation; /* if validated */
    bool balances, squares;
    double loss_balance, loss_z; /* if balances; if squares */
    const struct loads *loads;   /* borrowed; of a model with experts */
    bool each_load;              /* write them all */
};
void output_metrics(const struct output *o, const struct step_metrics *s);

/* summary.yaml: why it stopped, the code it leaves with, peak bytes of every rank. `more`: further
 * YAML lines, or NULL. Collective over the world. */
void output_summary(const struct output *o, struct comm *c, const char *why, int code,
                    int64_t peak_bytes, const char *more);

/* Writes a small text file in the folder, whole or not at all. */
void output_text(const struct output *o, const char *name, const char *text);

/* Removes a file of the folder, if it is there. */
void output_remove(const struct output *o, const char *name);

/* The shortest decimal that reads back as x; "null" if it is not finite. At most 32 characters. */
const char *number_text(double x, char *text);

/* Seconds since some moment, and build facts for --version and provenance. */
double seconds_now(void);
void print_version(FILE *f);

#endif
