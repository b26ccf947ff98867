#include "io/progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void bytes_text(double bytes, char text[32]) {
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    int u = 0;
    for (; bytes >= 999.5 && u < 5; u++) bytes /= 1000;
    snprintf(text, 32, bytes < 9.95 && u ? "%.1f %s" : "%.0f %s", bytes, unit[u]);
}

static void time_text(double s, char text[32]) {
    if (s < 100) snprintf(text, 32, "%.0f s", s);
    else if (s < 6000) snprintf(text, 32, "%.0f min", s / 60);
    else snprintf(text, 32, "%.1f h", s / 3600);
}

static void line(struct progress *p, int64_t done, double took) {
    char some[32], all[32], rate[32], left[32];
    double speed = (double)done / took;
    bytes_text((double)done, some);
    bytes_text((double)p->total, all);
    bytes_text(speed, rate);
    time_text(speed > 0 ? (double)(p->total - done) / speed : 0, left);
    fprintf(stderr, "%s%s %3.0f %%: %s of %s, %s/s, %s left%s", p->terminal ? "\r" : "", p->what,
            p->total ? 100.0 * (double)done / (double)p->total : 100.0, some, all, rate, left,
            p->terminal ? "\033[K" : "\n");
    fflush(stderr);
    p->said = true;
}

void progress_begin(struct progress *p, const char *what, int64_t total, bool speaks) {
    *p = (struct progress){.what = what, .total = total, .speaks = speaks};
    p->terminal = isatty(STDERR_FILENO);
    p->began = now();
    p->next = 1;
}

void progress_add(struct progress *p, int64_t bytes) {
    int64_t done = __atomic_add_fetch(&p->done, bytes, __ATOMIC_RELAXED);
    if (!p->speaks || __atomic_exchange_n(&p->writing, 1, __ATOMIC_ACQUIRE)) return;
    double took = now() - p->began;
    if (took >= p->next) {
        line(p, done < p->total ? done : p->total, took);
        if (p->terminal) p->next = took + 0.2;
        else p->next = took < 10 ? 10 : took + 30;
    }
    __atomic_store_n(&p->writing, 0, __ATOMIC_RELEASE);
}

void progress_end(struct progress *p) {
    if (!p->said) return;
    char all[32], took[32];
    bytes_text((double)p->total, all);
    time_text(now() - p->began, took);
    fprintf(stderr, "%s%s done: %s in %s%s\n", p->terminal ? "\r" : "", p->what, all, took,
            p->terminal ? "\033[K" : "");
}
