/* output: the folder that a run leaves behind, and what it says on the way.
 *
 * One rank speaks: rank 0 writes the log to standard output and to log.txt, one line of metrics a step to metrics.jsonl, and at
 * the end summary.yaml. Every function may be called on any rank and does nothing on the others, unless it
 * says that it is collective. The folder is made only after everything the person gave has been checked. */
#ifndef SRC_OUTPUT_H
#define SRC_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct deck;
struct comm;

struct output {
    bool speaks;                /* this is rank 0 */
    const char *folder;
    FILE *log, *metrics;
};

/* Makes the folder and writes used.yaml and provenance.txt. Dies if it cannot be written. arguments: the command line. */
void output_begin(struct output *o, const struct deck *d, const struct comm *c, int argc, char **argv);
void output_end(struct output *o);

/* The same for a run that goes on after step `after`: log.txt and metrics.jsonl are continued, the log behind a ruler. What metrics.jsonl
 * has beyond that step is the caller's to drop before. */
void output_continue(struct output *o, const struct deck *d, const struct comm *c, int argc, char **argv, int64_t after);

/* A line of the log. */
void say(const struct output *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* One step's metrics; numbers that are not finite become null, all others read back equal. */
struct step_metrics {
    int64_t step, tokens, peak_bytes;
    double loss, grad_norm, learning_rate, tokens_per_second, mfu, step_seconds;
    double validation;          /* NAN: not measured after this step */
};
void output_metrics(const struct output *o, const struct step_metrics *s);

/* summary.yaml: why it stopped, the code it leaves with, peak bytes of every rank. `more`: further YAML lines, or NULL. Collective over
 * the world. */
void output_summary(const struct output *o, struct comm *c, const char *why, int code, int64_t peak_bytes, const char *more);

/* Writes a small text file in the folder, whole or not at all. */
void output_text(const struct output *o, const char *name, const char *text);

/* The shortest decimal that reads back as x; "null" if it is not finite. At most 32 characters. */
const char *number_text(double x, char *text);

/* Seconds since some moment, and build facts for --version and provenance. */
double seconds_now(void);
void print_version(FILE *f);

#endif
