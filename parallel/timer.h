/* timer: where a rank's time goes.
 *
 * The wall-clock time of a run is divided among a few named ranges, and at every moment exactly one
 * of them has the clock: entering a range takes it from the one around, leaving gives it back. So
 * the ranges of a rank add up to its total to the nanosecond; nothing is counted twice, and what is
 * in no range is `other`. Start-up, validation and checkpoints keep the clock whatever happens
 * inside them.
 *
 * Waiting for other ranks is noted beside: each wait in comm (parallel/comm.h) adds to `waited` of
 * the range it happens in. A wait inside forward or backward is an exchange of the tensor axis and
 * has the clock as such; waiting for another stage is `pipeline`. One timer a process, for its main
 * thread; costs two looks at the clock a range. */
#ifndef PARALLEL_TIMER_H
#define PARALLEL_TIMER_H

#include <stdint.h>

enum range {
    RANGE_OTHER,
    RANGE_START,
    RANGE_DATA,
    RANGE_FORWARD,
    RANGE_BACKWARD,
    RANGE_EXCHANGE,
    RANGE_PIPELINE,
    RANGE_GRADIENTS,
    RANGE_OPTIMISER,
    RANGE_VALIDATION,
    RANGE_CHECKPOINT,
    N_RANGES
};

/* "forward", "tensor exchange", ... */
const char *range_name(enum range r);

enum { TIMER_DEPTH = 16 };

struct timer {
    int64_t spent_ns[N_RANGES], waited_ns[N_RANGES], calls[N_RANGES];
    int64_t since_ns; /* up to here the time is given out */
    enum range open[TIMER_DEPTH];
    int depth;            /* open[depth] has the clock */
    int64_t (*now)(void); /* nanoseconds since some moment; tests put theirs here */
};

/* All zero; the clock runs from here, in `other`. */
void timer_start(struct timer *t);

/* Ranges are entered and left like brackets. t may be NULL: then nobody counts. */
void timer_enter(struct timer *t, enum range r);
void timer_leave(struct timer *t);

/* Around a wait for other ranks; for comm. */
void timer_wait(struct timer *t);
void timer_waited(struct timer *t);

/* Brings the table up to this moment, and returns the total so far; and what of it was waiting. */
int64_t timer_total_ns(struct timer *t);
int64_t timer_waited_ns(const struct timer *t);

#endif
