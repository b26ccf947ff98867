#include "src/timetable.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/comm.h"
#include "src/machine.h"
#include "src/output.h"

void timetable_gather(struct timetable *t, struct comm *c, struct timer *own) {
    struct rank_time mine;
    struct request r;
    int64_t *counts = die_alloc((size_t)c->size * sizeof *counts);
    *t = (struct timetable){c->size, die_alloc((size_t)c->size * sizeof *t->rank)};
    timer_total_ns(own);
    memcpy(mine.spent_ns, own->spent_ns, sizeof mine.spent_ns);
    memcpy(mine.waited_ns, own->waited_ns, sizeof mine.waited_ns);
    memcpy(mine.calls, own->calls, sizeof mine.calls);
    for (int i = 0; i < c->size; i++) counts[i] = 1;
    comm_gather_start(c->world, &mine, t->rank, counts, sizeof mine, &r);
    comm_wait(&r);
    free(counts);
}

void timetable_free(struct timetable *t) {
    free(t->rank);
    *t = (struct timetable){0};
}

/* ---------------------------------------------------------------- rows */

/* A range over ranks; N_RANGES: all of them. The mean is still the sum. */
static struct time_row row_of(const struct timetable *t, int range) {
    struct time_row row = {.name = range < N_RANGES ? range_name((enum range)range) : "total",
                           .min_ns = INT64_MAX};
    for (int r = 0; r < t->ranks; r++) {
        int64_t ns = 0;
        for (int i = 0; i < N_RANGES; i++) {
            if (range < N_RANGES && i != range) continue;
            ns += t->rank[r].spent_ns[i];
            row.waited_ns += t->rank[r].waited_ns[i];
            if (range < N_RANGES && t->rank[r].calls[i] > row.calls)
                row.calls = t->rank[r].calls[i];
        }
        if (ns < row.min_ns) row.min_ns = ns;
        if (ns > row.max_ns || r == 0) row.max_ns = ns, row.slowest = r;
        row.mean_ns += ns;
    }
    row.waited_ns /= t->ranks;
    return row;
}

static int by_time(const void *a, const void *b) {
    const struct time_row *x = a, *y = b;
    int last = !strcmp(x->name, "other") - !strcmp(y->name, "other");
    if (last) return last;
    return x->mean_ns < y->mean_ns ? 1 : x->mean_ns > y->mean_ns ? -1 : strcmp(x->name, y->name);
}

/* n parts, whose sum is `whole`, as whole multiples of 1/`steps` of it that sum to `steps`: each is
 * rounded down, and the largest remainders are rounded up. */
static void round_together(int n, const int64_t *part, int64_t whole, int64_t steps, int64_t *to) {
    double remainder[N_RANGES];
    int64_t left = steps;
    for (int i = 0; i < n; i++) {
        double exact = whole ? (double)part[i] / (double)whole * (double)steps : 0;
        to[i] = (int64_t)exact;
        remainder[i] = exact - (double)to[i];
        left -= to[i];
    }
    for (; n && whole && left > 0; left--) {
        int most = 0;
        for (int i = 1; i < n; i++)
            if (remainder[i] > remainder[most]) most = i;
        to[most]++;
        remainder[most] = -1;
    }
}

int timetable_rows(const struct timetable *t, int64_t unit, struct time_row *rows) {
    struct time_row total = row_of(t, N_RANGES);
    int64_t sums[N_RANGES] = {0}, means[N_RANGES], shares[N_RANGES];
    int n = 0;
    for (int i = 0; i < N_RANGES; i++) {
        rows[n] = row_of(t, i);
        if (rows[n].mean_ns > 0) n++;
    }
    qsort(rows, (size_t)n, sizeof *rows, by_time);
    for (int i = 0; i < n; i++) sums[i] = rows[i].mean_ns;
    int64_t whole = total.mean_ns, of = (int64_t)t->ranks * unit, steps = (whole + of / 2) / of;
    round_together(n, sums, whole, steps, means);
    round_together(n, sums, whole, 1000, shares);
    for (int i = 0; i < n; i++) {
        rows[i].mean_ns = means[i] * unit;
        rows[i].share = (int)shares[i];
        if (rows[i].min_ns > rows[i].mean_ns || t->ranks == 1) rows[i].min_ns = rows[i].mean_ns;
        if (rows[i].max_ns < rows[i].mean_ns || t->ranks == 1) rows[i].max_ns = rows[i].mean_ns;
    }
    total.mean_ns = steps * unit;
    total.share = 1000;
    rows[n] = total;
    return n + 1;
}

/* ---------------------------------------------------------------- what is shown */

static int64_t unit_for(const struct timetable *t) {
    return row_of(t, N_RANGES).max_ns < 1000 * (int64_t)1000000000 ? 1000000 : 100000000;
}

void timetable_say(const struct timetable *t, const struct output *o, const struct machine *h) {
    struct time_row rows[N_RANGES + 1];
    int64_t unit = unit_for(t);
    int n = timetable_rows(t, unit, rows), digits = unit == 1000000 ? 3 : 1;
    say(o, "%-22s %10s %10s %10s %10s %8s %9s%s", "Where the time went (s)", "calls", "min", "mean",
        "max", "%", "waiting", t->ranks > 1 ? "  slowest" : "");
    for (int i = 0; i < n; i++) {
        const struct time_row *r = &rows[i];
        char calls[24] = "", slowest[96] = "";
        if (r->calls) snprintf(calls, sizeof calls, "%lld", (long long)r->calls);
        if (t->ranks > 1 && i < n - 1)
            snprintf(slowest, sizeof slowest, "  rank %d %.12s", r->slowest,
                     h->rank[r->slowest].name);
        say(o, "  %-21s %10s %10.*f %10.*f %10.*f %8.1f %9.*f%s", r->name, calls, digits,
            (double)r->min_ns * 1e-9, digits, (double)r->mean_ns * 1e-9, digits,
            (double)r->max_ns * 1e-9, r->share / 10.0, digits, (double)r->waited_ns * 1e-9,
            slowest);
    }
}

void timetable_yaml(const struct timetable *t, FILE *f) {
    struct time_row rows[N_RANGES + 1];
    int n = timetable_rows(t, 1000000, rows);
    fprintf(f, "time:                # seconds over ranks; the means add up to the total\n");
    for (int i = 0; i < n; i++) {
        const struct time_row *r = &rows[i];
        char name[32];
        snprintf(name, sizeof name, "%s", r->name);
        for (char *c = name; *c; c++)
            if (*c == ' ' || *c == '-') *c = '_';
        fprintf(f,
                "  %s: {calls: %lld, min: %.3f, mean: %.3f, max: %.3f, percent: %.1f, waiting: "
                "%.3f, slowest_rank: %d}\n",
                name, (long long)r->calls, (double)r->min_ns * 1e-9, (double)r->mean_ns * 1e-9,
                (double)r->max_ns * 1e-9, r->share / 10.0, (double)r->waited_ns * 1e-9, r->slowest);
    }
}
