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

/* [days-]hours:minutes:seconds, minutes:seconds, or minutes, as Slurm writes limits. */
static int parse_walltime(const char *text, double *seconds) {
    long days = 0, part[3] = {0};
    int n = 0, used = 0;
    if (sscanf(text, "%ld-%n", &days, &used) == 1 && used) text += used;
    else days = 0;
    for (const char *p = text; n < 3; p++) {
        char *end;
        part[n++] = strtol(p, &end, 10);
        if (end == p || part[n - 1] < 0) return -1;
        if (!*end) break;
        if (*end != ':' || n == 3) return -1;
        p = end;
    }
    double s = n == 1   ? 60.0 * (double)part[0]
               : n == 2 ? 60.0 * (double)part[0] + (double)part[1]
                        : 3600.0 * (double)part[0] + 60.0 * (double)part[1] + (double)part[2];
    *seconds = s + 86400.0 * (double)days;
    return days < 0 || *seconds <= 0 ? -1 : 0;
}

int stop_init(struct stop *s, const struct deck *d, struct mistakes *m) {
    *s = (struct stop){.folder = d->run.output, .began = seconds_now()};
    double limit = 0;
    if (*d->run.walltime && parse_walltime(d->run.walltime, &limit)) {
        deck_mistake(d, m, "run.walltime",
                     "'%s' is no time; write hours:minutes:seconds, or days-hours:minutes:seconds",
                     d->run.walltime);
        return -1;
    }
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
    return 0;
}

enum stop_wish stop_agree(struct stop *s, struct comm *c, double step_seconds) {
    enum stop_wish wish = STOP_NO;
    if (step_seconds > s->slowest_step) s->slowest_step = step_seconds;
    if (c->rank == 0) {
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
