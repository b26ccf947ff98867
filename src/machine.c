#include "src/machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "kernels/peak.h"
#include "parallel/comm.h"
#include "src/deck.h"
#include "src/engine.h"
#include "src/units.h"

/* The number in a file of a control group; INT64_MAX without one ("max"). */
static int64_t limit_in(const char *root, const char *path, const char *file) {
    char *name = die_format("%s%s/%s", root, path, file);
    FILE *f = fopen(name, "r");
    long long n;
    int64_t limit = f && fscanf(f, "%lld", &n) == 1 ? n : INT64_MAX;
    if (f) fclose(f);
    free(name);
    return limit;
}

/* A group's limit is that of the tightest group around it. */
static int64_t limit_up(const char *root, char *path, const char *file) {
    int64_t least = INT64_MAX;
    for (;;) {
        int64_t limit = limit_in(root, path, file);
        if (limit < least) least = limit;
        char *slash = strrchr(path, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

int64_t machine_memory(void) {
    int64_t least = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    FILE *f = fopen("/proc/self/cgroup", "r");
    char line[4096];
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        int64_t limit = INT64_MAX;
        if (!strcmp(names, ":")) limit = limit_up("/sys/fs/cgroup", path, "memory.max");
        else if (strstr(names, "memory"))
            limit = limit_up("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
        if (limit > 0 && limit < least) least = limit;
    }
    if (f) fclose(f);
    return least;
}

static void gather(struct machine *h, struct comm *comm, const struct rank_facts *own) {
    int64_t *counts = die_alloc((size_t)comm->size * sizeof *counts);
    struct request r;
    for (int i = 0; i < comm->size; i++) counts[i] = 1;
    comm_gather_start(comm->world, own, h->rank, counts, sizeof *own, &r);
    comm_wait(&r);
    free(counts);
}

int machine_host_ranks(const struct machine *h, int i) {
    int n = 0;
    for (int r = 0; r < h->ranks; r++) n += h->rank[r].host == h->rank[h->first[i]].host;
    return n;
}

int64_t machine_host_bytes(const struct machine *h, int i) {
    int64_t bytes = 0;
    for (int r = 0; r < h->ranks; r++)
        if (h->rank[r].host == h->rank[h->first[i]].host) bytes += plan_bytes(&h->rank[r].plan);
    return bytes;
}

static void find_hosts(struct machine *h) {
    double worst = -1;
    for (int r = 0; r < h->ranks; r++) {
        int known = 0;
        while (known < h->hosts && h->rank[h->first[known]].host != h->rank[r].host) known++;
        if (known < h->hosts) continue;
        h->first[h->hosts++] = r;
        double used = (double)machine_host_bytes(h, known) / (double)h->rank[r].memory;
        if (used > worst) worst = used, h->fullest = known;
    }
}

static void refuse(const struct machine *h, const struct deck *d, const struct mesh_shape *shape,
                   struct mistakes *m) {
    char need[UNIT_TEXT], have[UNIT_TEXT];
    int n = machine_host_ranks(h, h->fullest);
    const struct rank_facts *f = &h->rank[h->first[h->fullest]];
    int64_t bytes = machine_host_bytes(h, h->fullest);
    if (bytes <= f->memory) return;
    mistake(m, NULL, 0,
            "the %d rank%s of host %s need%s %s of memory, and it has %s. What would help:%s%s%s a "
            "shorter train.sequence_length, more hosts. mestar plan shows what it is needed for",
            n, n == 1 ? "" : "s", f->name, n == 1 ? "s" : "", bytes_text((double)bytes, need),
            bytes_text((double)f->memory, have),
            !strcmp(d->memory.recompute, "none")        ? " memory.recompute: selective or full,"
            : !strcmp(d->memory.recompute, "selective") ? " memory.recompute: full,"
                                                        : "",
            d->train.micro_batch > 1 ? " a smaller train.micro_batch," : "",
            shape->data > 1 ? " a larger parallel.tensor or parallel.pipeline," : "");
}

struct speed machine_speed(const struct deck *d, int threads, int wanted, int cores, bool memory) {
    const struct deck_machine *k = &d->machine;
    /* Each thread's best slice is a whole core's, though threads beyond the cores take turns. */
    const double share = wanted > cores ? (double)cores / (double)wanted : 1;
    return (struct speed){
        .fp32 = k->peak_fp32 > 0 ? k->peak_fp32 : share * peak_flops(threads, F32),
        .bf16 = k->peak_bf16 > 0 ? k->peak_bf16 : share * peak_flops(threads, BF16),
        .memory = k->memory_bandwidth > 0 ? k->memory_bandwidth
                  : memory                ? peak_memory(threads, (size_t)128 << 20)
                                          : 0};
}

enum dtype machine_format(const struct deck *d) {
    const char *recipe = d->precision.recipe;
    return !strcmp(recipe, "bf16") ? BF16 : !strcmp(recipe, "fp64") ? F64 : F32;
}

double machine_share(const struct machine *h, double step_seconds) {
    double work = 0, could = 0;
    for (int r = 0; r < h->ranks; r++) {
        work += h->rank[r].plan.work;
        could += h->rank[r].flops * step_seconds;
    }
    return could > 0 ? work / could : NAN;
}

int machine_find(struct machine *h, struct comm *comm, const struct deck *d, struct config *c,
                 const struct mesh_shape *shape, struct mistakes *m) {
    *h = (struct machine){
        .started = wall_now(), .ranks = comm->size, .level = engine_level(d, comm)};
    h->rank = die_alloc((size_t)comm->size * sizeof *h->rank);
    h->first = die_alloc((size_t)comm->size * sizeof *h->first);
    struct rank_facts own = {.host = comm->host,
                             .memory = machine_memory(),
                             .cores = cores_count(&comm->cores),
                             .sharing = comm->same_cores,
                             .host_cores = comm->host_cores,
                             .bound = cores_bound_by_openmp()};
    if (gethostname(own.name, sizeof own.name - 1) || !*own.name) strcpy(own.name, "host");
    own.name[strcspn(own.name, ".")] = '\0';
    own.planned = !plan_rank(d, c, shape, comm->rank, NULL, NULL, &own.plan, NULL, m);
    int threads = engine_threads(d, comm->host_cores, comm->host_ranks);
    struct speed speed =
        machine_speed(d, threads, threads * comm->host_ranks, comm->host_cores, false);
    own.flops = speed_of(&speed, machine_format(d));
    gather(h, comm, &own);
    for (int r = 0; r < h->ranks; r++)
        if (!h->rank[r].planned) return -1;
    find_hosts(h);
    int before = m->n;
    refuse(h, d, shape, m);
    return m->n > before ? -1 : 0;
}

void machine_measure(struct machine *h, struct comm *comm, int64_t peak_bytes) {
    struct rank_facts own = h->rank[comm->rank];
    own.peak = peak_bytes;
    gather(h, comm, &own);
}

void machine_free(struct machine *h) {
    free(h->rank);
    free(h->first);
    *h = (struct machine){0};
}
