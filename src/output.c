#include "src/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/comm.h"
#include "src/deck.h"
#include "src/loads.h"
#include "version.inc"

enum { LOCK_WAIT_S = 30 };

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void print_version(FILE *f) {
    fprintf(f, "mestar %s\n", BUILD_REVISION);
    fprintf(f, "compiler: %s\nflags: %s\nmpi: %s\nproducts: %s\nlibraries: %s\n", BUILD_COMPILER,
            BUILD_FLAGS, BUILD_MPI, BUILD_PRODUCTS, BUILD_LIBRARIES);
}

const char *number_text(double x, char *text) {
    if (!isfinite(x)) return strcpy(text, "null");
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    return text;
}

static void make_folders(const char *path) {
    char *p = die_strdup(path);
    for (char *s = p + 1;; s++) {
        if (*s != '/' && *s) continue;
        char end = *s;
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            die("cannot make the folder %s: %s", p, strerror(errno));
        *s = end;
        if (!end) break;
    }
    free(p);
}

static FILE *open_in(const struct output *o, const char *name, const char *mode) {
    char *path = die_format("%s/%s", o->folder, name);
    FILE *f = fopen(path, mode);
    if (!f) die("cannot write %s: %s", path, strerror(errno));
    free(path);
    return f;
}

static void close_written(FILE *f, const char *name) {
    if (ferror(f) | fclose(f)) die("cannot write %s: %s; is the disk full?", name, strerror(errno));
}

void output_text(const struct output *o, const char *name, const char *text) {
    if (!o->speaks) return;
    char *path = die_format("%s/%s", o->folder, name), *part = die_format("%s.new", path);
    if (file_replace(path, part, text, (int64_t)strlen(text)))
        die("cannot write %s: %s; is the disk full?", path, strerror(errno));
    free(part);
    free(path);
}

void output_remove(const struct output *o, const char *name) {
    if (!o->speaks) return;
    char *path = die_format("%s/%s", o->folder, name);
    unlink(path);
    free(path);
}

/* A file that is written in memory first, and then whole or not at all. */
struct whole {
    char *text;
    size_t bytes;
    FILE *f;
};

static void whole_begin(struct whole *w) {
    if (!(w->f = open_memstream(&w->text, &w->bytes))) die("no memory for a text");
}

static void whole_end(struct whole *w, const struct output *o, const char *name) {
    if (fclose(w->f)) die("no memory for %s", name);
    output_text(o, name, w->text);
    free(w->text);
}

static void used(const struct output *o, const struct deck *d) {
    struct whole w;
    whole_begin(&w);
    deck_write_used(d, w.f);
    whole_end(&w, o, "used.yaml");
}

static void provenance(const struct output *o, const struct comm *c, int argc, char **argv) {
    struct whole w;
    whole_begin(&w);
    FILE *const f = w.f;
    struct utsname u;
    char now[64], cwd[4096];
    time_t t = time(NULL);
    strftime(now, sizeof now, "%Y-%m-%d %H:%M:%S UTC", gmtime(&t));
    uname(&u);
    fprintf(f, "started: %s\nhost: %s, %s %s %s\nfolder: %s\ncommand:", now, u.nodename, u.sysname,
            u.release, u.machine, getcwd(cwd, sizeof cwd) ? cwd : "unknown");
    for (int i = 0; i < argc; i++) fprintf(f, " %s", argv[i]);
    fprintf(f, "\nranks: %d, of which %d on this host with %d cores\n", c->size, c->host_ranks,
            c->host_cores);
    print_version(f);
    static const char *const matters[] = {
        "OMP_NUM_THREADS",  "OMP_PROC_BIND", "OMP_PLACES",         "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",   "SLURM_JOB_ID",  "SLURM_JOB_NODELIST", "SLURM_NTASKS",
        "DNNL_MAX_CPU_ISA", "LD_PRELOAD"};
    for (size_t i = 0; i < sizeof matters / sizeof *matters; i++)
        if (getenv(matters[i])) fprintf(f, "%s=%s\n", matters[i], getenv(matters[i]));
    whole_end(&w, o, "provenance.txt");
}

/* ---- one run at a time ---- */

static int lock_file = -1;

static char *lock_path(const char *folder) {
    return die_format("%s/lock", folder);
}

/* The lock is the kernel's: it goes with the process, however that ends. The text says who holds
 * it. */
static int lock_take(const char *folder, char *holder, size_t size) {
    char *path = lock_path(folder);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666), failed = -1;
    if (fd < 0) die("cannot make %s: %s", path, strerror(errno));
    for (double until = seconds_now() + LOCK_WAIT_S;
         (failed = flock(fd, LOCK_EX | LOCK_NB)) && seconds_now() < until;)
        usleep(200000);
    free(path);
    if (failed) {
        ssize_t n = pread(fd, holder, size - 1, 0);
        holder[n > 0 ? n : 0] = 0;
        holder[strcspn(holder, "\n")] = 0;
        close(fd);
        return -1;
    }
    char host[64] = "?", text[160];
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "process %d on %s\n", (int)getpid(), host);
    if (ftruncate(fd, 0) || pwrite(fd, text, n, 0) != n)
        die("cannot write %s/lock: %s", folder, strerror(errno));
    lock_file = fd;
    return 0;
}

int output_lock(const char *folder, struct comm *c, struct mistakes *m) {
    char holder[160] = "";
    int failed = 0;
    if (c->rank == 0 && lock_file < 0 && !access(folder, F_OK))
        failed = lock_take(folder, holder, sizeof holder);
    if (!comm_max(c->world, failed != 0)) return 0;
    comm_broadcast(c->world, holder, sizeof holder, 0);
    mistake(m, folder, 0,
            "another run (%s) is using this folder; wait for it, or give another run.output",
            holder);
    return -1;
}

/* ---- begin ---- */

/* Cuts a file of one JSON object a step back to the steps that are done. */
static void cut_metrics(const struct output *o, int64_t done) {
    char *path = die_format("%s/metrics.jsonl", o->folder), *line = NULL;
    FILE *f = fopen(path, "r+");
    size_t room = 0;
    off_t keep = 0;
    long step;
    while (f && getline(&line, &room, f) > 0 && sscanf(line, "{\"step\": %ld", &step) == 1 &&
           step <= done && strchr(line, '\n'))
        keep = ftello(f);
    if (f && ftruncate(fileno(f), keep)) die("cannot cut %s: %s", path, strerror(errno));
    if (f) fclose(f);
    free(line);
    free(path);
}

/* Opening a pipe or a device would hold the run or lose what it writes. */
static void refuse_special(const char *folder) {
    DIR *d = opendir(folder);
    struct stat s;
    for (struct dirent *x; d && (x = readdir(d));) {
        char *path = die_format("%s/%s", folder, x->d_name);
        if (!stat(path, &s) && !S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode))
            die("%s is neither file nor folder; remove it, or give another run.output", path);
        free(path);
    }
    if (d) closedir(d);
}

void output_begin(struct output *o, const struct deck *d, struct comm *c, int argc, char **argv,
                  int64_t done) {
    bool trains = !strcmp(d->run.mode, "train"), saves = trains && d->checkpoint.interval > 0;
    char holder[160];
    *o = (struct output){.speaks = c->rank == 0, .folder = d->run.output};
    if (o->speaks) {
        char *checkpoints = die_format("%s/checkpoints", o->folder);
        make_folders(saves ? checkpoints : o->folder);
        free(checkpoints);
        if (lock_file < 0 && lock_take(o->folder, holder, sizeof holder))
            die("another run (%s) has begun to use %s", holder, o->folder);
        char *ranks = die_format("%s/ranks", o->folder);
        refuse_special(o->folder);
        refuse_special(ranks);
        free(ranks);
        used(o, d);
        provenance(o, c, argc, argv);
        if (trains && done >= 0) cut_metrics(o, done);
        o->log = open_in(o, "log.txt", done >= 0 ? "a" : "w");
        if (trains) o->metrics = open_in(o, "metrics.jsonl", done >= 0 ? "a" : "w");
        if (done >= 0)
            fprintf(o->log, "\n---------------------------------------- continued after step %ld\n",
                    (long)done);
    }
    comm_barrier(c->world); /* the folder is there for all */
}

void output_end(struct output *o) {
    if (o->log) close_written(o->log, "log.txt");
    if (o->metrics) close_written(o->metrics, "metrics.jsonl");
    o->log = o->metrics = NULL;
}

void say(const struct output *o, const char *fmt, ...) {
    if (!o->speaks) return;
    FILE *const to[] = {stdout, o->log};
    for (int i = 0; i < 2; i++) {
        if (!to[i]) continue;
        va_list ap;
        va_start(ap, fmt);
        vfprintf(to[i], fmt, ap);
        va_end(ap);
        fputc('\n', to[i]);
        fflush(to[i]);
    }
}

/* "imbalance" is of the worst layer. */
static void put_loads(FILE *f, const struct loads *l, bool each) {
    char text[32];
    fprintf(f, ", \"imbalance\": %s", number_text(loads_worst(l), text));
    for (int i = 0; each && i < l->layers; i++) {
        fputs(i ? ", [" : ", \"loads\": [[", f);
        for (int64_t e = 0; e < l->experts; e++)
            fprintf(f, "%s%ld", e ? ", " : "", (long)l->n[i * l->experts + e]);
        fputs(i == l->layers - 1 ? "]]" : "]", f);
    }
}

void output_metrics(const struct output *o, const struct step_metrics *s) {
    if (!o->metrics) return;
    FILE *f = o->metrics;
    char text[6][32];
    fprintf(f, "{\"step\": %ld, \"loss\": %s", (long)s->step, number_text(s->loss, text[0]));
    if (s->balances) fprintf(f, ", \"loss_balance\": %s", number_text(s->loss_balance, text[0]));
    if (s->squares) fprintf(f, ", \"loss_z\": %s", number_text(s->loss_z, text[0]));
    fprintf(f,
            ", \"grad_norm\": %s, \"learning_rate\": %s, \"tokens\": %ld, "
            "\"tokens_per_second\": %s, \"mfu\": %s, \"step_seconds\": %s, \"peak_bytes\": %ld",
            number_text(s->grad_norm, text[1]), number_text(s->learning_rate, text[2]),
            (long)s->tokens, number_text(s->tokens_per_second, text[3]),
            number_text(s->mfu, text[4]), number_text(s->step_seconds, text[5]),
            (long)s->peak_bytes);
    if (s->loads) put_loads(f, s->loads, s->each_load);
    if (s->validated) fprintf(f, ", \"validation\": %s", number_text(s->validation, text[0]));
    fputs("}\n", f);
    if (fflush(f)) die("cannot write %s/metrics.jsonl: %s", o->folder, strerror(errno));
}

void output_summary(const struct output *o, struct comm *c, const char *why, int code,
                    int64_t peak_bytes, const char *more) {
    int64_t *counts = die_alloc(c->size * sizeof *counts),
            *peak = die_alloc(c->size * sizeof *peak);
    struct request r;
    for (int i = 0; i < c->size; i++) counts[i] = 1;
    peak[c->rank] = peak_bytes;
    comm_gather_start(c->world, &peak[c->rank], peak, counts, sizeof *peak, &r);
    comm_wait(&r);
    if (o->speaks) {
        struct whole w;
        whole_begin(&w);
        FILE *const f = w.f;
        fprintf(f, "stopped: %s\nexit_code: %d\nranks: %d\n%s", why, code, c->size,
                more ? more : "");
        fprintf(f, "peak_bytes:          # of all arenas, by rank\n");
        for (int i = 0; i < c->size; i++) fprintf(f, "  - %ld\n", (long)peak[i]);
        whole_end(&w, o, "summary.yaml");
    }
    free(counts);
    free(peak);
}
