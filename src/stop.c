#include "src/stop.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/die.h"
#include "parallel/comm.h"
#include "src/deck.h"
#include "src/output.h"

static volatile sig_atomic_t asked;

static void on_signal(int number) {
    if (asked == SIGINT && number == SIGINT) _exit(1);
    asked = number;
}

double stop_seconds(const char *text) {
    static const double unit[3][3] = {{60}, {60, 1}, {3600, 60, 1}};
    long days = 0, part[3] = {0};
    int n = 0;
    size_t digits = strspn(text, "0123456789");
    bool has_days = digits && digits < 10 && text[digits] == '-';
    if (has_days) {
        days = strtol(text, NULL, 10);
        text += digits + 1;
    }
    for (;; text++) {
        digits = strspn(text, "0123456789");
        if (!digits || digits > 9 || n == 3) return -1;
        part[n++] = strtol(text, NULL, 10);
        text += digits;
        if (!*text) break;
        if (*text != ':') return -1;
    }
    double s = 86400.0 * (double)days;
    for (int i = 0; i < n; i++) {
        if (i > 0 && part[i] > 59) return -1;
        s += unit[has_days ? 2 : n - 1][i] * (double)part[i];
    }
    return s > 0 ? s : -1;
}

void stop_init(struct stop *s, const struct deck *d) {
    *s = (struct stop){.folder = d->run.output, .began = seconds_now(), .looked = -1e9};
    double limit = *d->run.walltime ? stop_seconds(d->run.walltime) : 0;
    const char *end = getenv("SLURM_JOB_END_TIME");
    if (end) {
        double left = strtod(end, NULL) - (double)time(NULL);
        if (left > 0 && (limit == 0 || left < limit)) limit = left;
    }
    if (limit > 0) s->ends = s->began + limit;
    struct sigaction a = {.sa_handler = on_signal};
    sigemptyset(&a.sa_mask);
    static const int numbers[] = {SIGTERM, SIGINT, SIGUSR1};
    for (int i = 0; i < 3; i++) sigaction(numbers[i], &a, NULL);
}

enum stop_wish stop_agree(struct stop *s, struct comm *c, double step_seconds) {
    enum stop_wish wish = STOP_NO;
    if (step_seconds > s->slowest_step) s->slowest_step = step_seconds;
    if (c->rank == 0 && seconds_now() - s->looked > 1) {
        s->looked = seconds_now();
        char *path = die_format("%s/stop", s->folder);
        if (!access(path, F_OK)) wish = STOP_FILE;
        free(path);
    }
    if (s->ends > 0) {
        double limit = s->ends - s->began, margin = s->slowest_step + 2 * s->last_save + 30;
        if (margin > 0.5 * limit) margin = 0.5 * limit;
        if (margin < s->slowest_step + s->last_save) margin = s->slowest_step + s->last_save;
        if (seconds_now() > s->ends - margin) wish = STOP_WALLTIME;
    }
    if (asked) wish = STOP_SIGNAL;
    return (enum stop_wish)comm_max(c->world, wish);
}

const char *stop_reason(enum stop_wish w) {
    static const char *const reason[] = {"", "a file named stop", "the time limit", "a signal"};
    return reason[w];
}

void stop_clear(const struct stop *s) {
    char *path = die_format("%s/stop", s->folder);
    unlink(path);
    free(path);
}
