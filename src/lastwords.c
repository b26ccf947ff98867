#include "src/lastwords.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernels/die.h"
#include "parallel/comm.h"

/* The layout of a record file; a version in the magic, because the next start may be of another
 * build. */
struct record {
    char magic[8];
    int32_t rank, size, pid, ended;
    int64_t step;
    char host[64], what[64], group[32], text[512];
    double since, heartbeat; /* seconds of the clock on the wall */
    int32_t waiting;         /* in a group's exchange */
};
static const char magic[8] = "mestar2";
enum { BEAT_MS = 500, MOST_TOLD = 64 };

static struct record *mine, unmapped;
static char *folder_of_all;
static int watchdog_seconds;
static pthread_t beater;
static volatile bool beating;

static double wall_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void copy_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

static char *record_path(const char *folder, int rank) {
    return die_format("%s/ranks/%05d", folder, rank);
}

static bool read_record(const char *folder, int rank, struct record *r) {
    char *path = record_path(folder, rank);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    bool good = fd >= 0 && read(fd, r, sizeof *r) == (ssize_t)sizeof *r &&
                !memcmp(r->magic, magic, sizeof magic);
    if (fd >= 0) close(fd);
    free(path);
    r->host[sizeof r->host - 1] = r->what[sizeof r->what - 1] = r->group[sizeof r->group - 1] =
        r->text[sizeof r->text - 1] = 0;
    return good;
}

static void describe(FILE *f, const struct record *r, double now) {
    fprintf(f, "  rank %d (pid %d on %s): step %ld, %s", r->rank, r->pid, r->host, (long)r->step,
            *r->what ? r->what : "starting");
    if (r->waiting) fprintf(f, ", waiting for group '%s'", r->group);
    fprintf(f, ", since %.1f s\n", now - r->since);
    if (*r->text) fprintf(f, "    it said: %s\n", r->text);
}

static bool beside(const struct record *r, const struct record *first) {
    return r->heartbeat - first->heartbeat < BEAT_MS / 1000.0;
}

/* Whether another rank's heart stopped with the first one's. */
static bool within_a_beat(const char *folder, int size, const struct record *first) {
    struct record r;
    for (int i = 0; i < size && i < 1 << 20; i++)
        if (i != first->rank && read_record(folder, i, &r) && !r.ended && beside(&r, first))
            return true;
    return false;
}

/* All ranks' records, those that fit `only_first` (the one who stopped first) or all. */
char *lastwords_of_before(const char *folder) {
    struct record first = {0}, r;
    char *text = NULL;
    size_t bytes;
    if (!read_record(folder, 0, &first) && !read_record(folder, 1, &first)) return NULL;
    int size = first.size, unended = 0;
    double newest = 0;
    bool found = false;
    for (int i = 0; i < size && i < 1 << 20; i++) {
        if (!read_record(folder, i, &r) || r.ended) continue;
        unended++;
        if (r.heartbeat > newest) newest = r.heartbeat;
        bool earlier = !found || (*r.text && !*first.text) ||
                       (!!*r.text == !!*first.text && r.heartbeat < first.heartbeat);
        if (earlier) first = r;
        found = true;
    }
    if (!found) return NULL;
    /* A launcher ends the others at once: then several hearts stopped within a beat. */
    FILE *f = open_memstream(&text, &bytes);
    int told = 0;
    double now = newest > first.heartbeat ? newest : first.heartbeat;
    bool alone = *first.text || !within_a_beat(folder, size, &first);
    fprintf(
        f, "the earlier run here did not end by itself (%d of %d ranks); the first to stop was%s\n",
        unended, size, alone ? "" : " one of");
    if (alone) describe(f, &first, now);
    for (int i = 0; !alone && i < size && told < MOST_TOLD; i++)
        if (read_record(folder, i, &r) && !r.ended && beside(&r, &first)) {
            describe(f, &r, now > r.since ? now : r.since);
            told++;
        }
    fclose(f);
    text[strlen(text) - 1] = 0; /* without the last newline */
    return text;
}

/* ---- the watchdog ---- */

/* Who waits for nobody is who the others wait for. One rank speaks: the first to make the file. */
static void tell_hang(void) {
    char *path = die_format("%s/ranks/hung.txt", folder_of_all);
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0666);
    if (fd >= 0) {
        double now = wall_now();
        FILE *to = fdopen(fd, "w");
        fprintf(stderr,
                "mestar: nothing moved for %d s (run.watchdog); where the ranks that wait for "
                "nobody, or do not answer, are:\n",
                watchdog_seconds);
        fprintf(to, "nothing moved for %d s; the ranks then:\n", watchdog_seconds);
        for (int i = 0; i < mine->size; i++) {
            struct record r;
            if (!read_record(folder_of_all, i, &r)) continue;
            /* A process that is stopped has no heartbeat, whatever it was doing. */
            if (!r.waiting || now - r.heartbeat > 4 * BEAT_MS / 1000.0) describe(stderr, &r, now);
            describe(to, &r, now);
        }
        fclose(to);
        fprintf(stderr, "mestar: all ranks are in %s\n", path);
    } else {
        usleep(300000); /* the speaker finishes its sentence */
    }
    free(path);
}

static void *beat(void *unused) {
    (void)unused;
    while (beating) {
        struct timespec pause = {0, BEAT_MS * 1000000};
        nanosleep(&pause, NULL);
        double now = wall_now();
        mine->heartbeat = now;
        if (watchdog_seconds && beating && now - mine->since > watchdog_seconds) {
            tell_hang();
            if (mine->size > 1) comm_abort(1);
            _exit(1);
        }
    }
    return NULL;
}

/* ---- writing ---- */

static void on_wait(const struct group *g) {
    if (g) copy_text(mine->group, sizeof mine->group, g->name);
    mine->waiting = g != NULL;
    mine->since = wall_now();
}

static void on_death(const char *text) {
    copy_text(mine->text, sizeof mine->text, text);
}

void lastwords_begin(const char *folder, int rank, int size, int watchdog) {
    char *ranks = die_format("%s/ranks", folder), *path = record_path(folder, rank);
    mine = &unmapped;
    folder_of_all = die_strdup(folder);
    watchdog_seconds = watchdog;
    mkdir(ranks, 0777);
    if (rank == 0) {
        char *hung = die_format("%s/hung.txt", ranks);
        unlink(hung);
        free(hung);
    }
    int fd = open(path, O_CREAT | O_RDWR, 0666);
    if (fd >= 0 && !ftruncate(fd, sizeof *mine)) {
        void *p = mmap(NULL, sizeof *mine, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED) mine = p;
    }
    if (mine == &unmapped)
        fprintf(stderr, "mestar: cannot keep last words in %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
    memset(mine, 0, sizeof *mine);
    mine->rank = rank;
    mine->size = size;
    mine->pid = getpid();
    gethostname(mine->host, sizeof mine->host - 1);
    mine->since = mine->heartbeat = wall_now();
    memcpy(mine->magic, magic, sizeof magic);
    comm_on_wait = on_wait;
    die_set_hooks(on_death, size > 1 ? comm_abort : NULL);
    beating = true;
    if (pthread_create(&beater, NULL, beat, NULL)) beating = false;
    free(ranks);
    free(path);
}

void lastwords_at(int64_t step, const char *what) {
    if (!mine) return;
    mine->step = step;
    copy_text(mine->what, sizeof mine->what, what);
    mine->since = wall_now();
}

void lastwords_doing(const char *what) {
    if (mine) lastwords_at(mine->step, what);
}

void lastwords_end(void) {
    if (!mine) return;
    if (beating) {
        beating = false;
        pthread_join(beater, NULL);
    }
    comm_on_wait = NULL;
    mine->ended = 1;
    if (mine != &unmapped) munmap(mine, sizeof *mine);
    mine = NULL;
    free(folder_of_all);
}
