#include "parallel/timer.h"

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "kernels/die.h"

const char *range_name(enum range r) {
    static const char *const name[N_RANGES] = {
        [RANGE_OTHER] = "other",
        [RANGE_START] = "start-up",
        [RANGE_DATA] = "data",
        [RANGE_FORWARD] = "forward",
        [RANGE_BACKWARD] = "backward",
        [RANGE_EXCHANGE] = "tensor exchange",
        [RANGE_PIPELINE] = "pipeline wait",
        [RANGE_GRADIENTS] = "gradient sum",
        [RANGE_OPTIMISER] = "optimiser",
        [RANGE_VALIDATION] = "validation",
        [RANGE_CHECKPOINT] = "checkpoint",
    };
    return name[r];
}

static int64_t monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void timer_start(struct timer *t) {
    *t = (struct timer){.now = monotonic_ns};
    t->since_ns = t->now();
}

/* Gives the time since the last look to the range that has the clock; returns how much that was. */
static int64_t settle(struct timer *t) {
    int64_t now = t->now(), spent = now - t->since_ns;
    t->spent_ns[t->open[t->depth]] += spent;
    t->since_ns = now;
    return spent;
}

static void push(struct timer *t, enum range r) {
    if (t->depth + 1 == TIMER_DEPTH) bug("%d ranges inside each other", TIMER_DEPTH);
    t->open[++t->depth] = r;
}

static bool keeps_clock(enum range r) {
    return r == RANGE_START || r == RANGE_VALIDATION || r == RANGE_CHECKPOINT;
}

void timer_enter(struct timer *t, enum range r) {
    if (!t) return;
    enum range around = t->open[t->depth];
    settle(t);
    if (keeps_clock(around)) r = around;
    else t->calls[r]++;
    push(t, r);
}

void timer_leave(struct timer *t) {
    if (!t) return;
    if (t->depth == 0) bug("a range is left that was not entered");
    settle(t);
    t->depth--;
}

void timer_wait(struct timer *t) {
    if (!t) return;
    enum range around = t->open[t->depth];
    bool exchange = around == RANGE_FORWARD || around == RANGE_BACKWARD;
    settle(t);
    if (exchange) t->calls[RANGE_EXCHANGE]++;
    push(t, exchange ? RANGE_EXCHANGE : around);
}

void timer_waited(struct timer *t) {
    if (!t) return;
    int64_t spent = settle(t);
    t->waited_ns[t->open[t->depth--]] += spent;
}

int64_t timer_total_ns(struct timer *t) {
    int64_t total = 0;
    settle(t);
    for (int r = 0; r < N_RANGES; r++) total += t->spent_ns[r];
    return total;
}

int64_t timer_waited_ns(const struct timer *t) {
    int64_t waited = 0;
    for (int r = 0; r < N_RANGES; r++) waited += t->waited_ns[r];
    return waited;
}
