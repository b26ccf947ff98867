/* show: what a person sees of a training run, from its first line to its last.
 *
 * The mode that trains calls this at a handful of moments; everything behind them (the first
 * screen, the line a step, TensorBoard's events, the table of where time went, summary.yaml,
 * report.html) is told from here. In order:
 *
 *     show_open    before anything is allocated: the first lines, the plan, and whether it fits
 *     show_begin   weights and data are there, the output folder is open: the rest of the screen
 *     show_stepped, show_step   after each step: metrics.jsonl and events
 *     show_did     something happened beside the step: a letter for the line's last column
 *     show_line    the line, once all that belongs to the step is done
 *     show_end     the end, however it came: table, summary, report */
#ifndef SRC_SHOW_H
#define SRC_SHOW_H

#include <stdbool.h>
#include <stdint.h>

#include "io/events.h"
#include "src/costs.h"
#include "src/machine.h"
#include "src/output.h"

struct run;
struct feed;
struct mistakes;

struct show {
    const struct run *run;
    struct output *output; /* borrowed, from show_begin on */
    struct machine machine;
    struct events events;
    char *early; /* what was said before there was a log */
    size_t early_size;
    struct output before; /* says it */

    int64_t done, total;      /* steps behind it when it began, and of the whole run */
    double began_s;           /* when it began, by seconds_now */
    struct step_metrics last; /* the newest step */
    struct costs costs;       /* of the newest step on this rank */
    double shares;            /* of the peak, summed over the steps done by this part */
    int64_t steps, skipped;   /* done by this part */
    double validation;        /* the newest, NAN before the first */

    char did[8], words[64];            /* the line in the making: letters, and what they say */
    bool headed;                       /* the column heads have been said */
    int64_t since_step;                /* the last step that had a line */
    double since_s;                    /* seconds in steps since then */
    int64_t begun_ns, begun_waited_ns; /* the timer when the step in progress began */
    int64_t ran_ns, waited_ns;         /* in steps since the last line */
    double reported_s, report_cost_s;  /* when report.html was last made, and how long it took */
};

/* Says the first lines, and plans. -1 after telling m, if a plan fails or a host has too little
 * memory; s may be freed either way. Collective over the world. */
int show_open(struct show *s, const struct run *r, struct mistakes *m);

/* The rest of the screen. done: steps that are behind the run, 0 unless it continues; total: where
 * it ends. */
void show_begin(struct show *s, struct output *o, const struct feed *feed, int64_t done,
                int64_t total);

/* The step proper is over: what follows it (validation, saving) is not counted as waiting in it. */
void show_stepped(struct show *s);

/* A step is done, and validated if it is time. Writes its metrics and events; on rank 0. */
void show_step(struct show *s, const struct step_metrics *k);

/* letter: 'e' evaluated, 'c' checkpoint, 's' skipped. Words, unless fmt is NULL, come after the
 * letters. */
void show_did(struct show *s, char letter, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The step's line, if it is due (log.interval, something happened, the last) or `always`.
 * Collective over the world. */
void show_line(struct show *s, bool always);

/* The end: why it stopped and the code it leaves with. Returns the code. Collective over the world.
 */
int show_end(struct show *s, const char *why, int code);
void show_free(struct show *s);

#endif
