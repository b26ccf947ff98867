#include "parallel/comm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "kernels/mistakes.h"
#include "parallel/transport.h"

static struct group *group_make(struct comm *c, const char *name, int size, const int *members) {
    struct group *g = die_alloc(sizeof *g);
    g->comm = c;
    g->size = size;
    g->rank = -1;
    snprintf(g->name, sizeof g->name, "%s", name);
    g->members = die_alloc((size_t)size * sizeof *g->members);
    for (int i = 0; i < size; i++) {
        g->members[i] = members ? members[i] : i;
        if (g->members[i] == c->rank) g->rank = i;
    }
    if (g->rank < 0) bug("group %s: rank %d makes it and is not in it", name, c->rank);
    return g;
}

void comm_open_world(struct comm *c, const struct transport *t, int size, int rank,
                     int64_t largest_tag) {
    *c = (struct comm){.transport = t, .size = size, .rank = rank};
    c->groups_most =
        (int)((largest_tag < INT32_MAX ? largest_tag + 1 : INT32_MAX) / TRANSPORT_SLOTS) - 1;
    c->world = group_make(c, "world", size, NULL);
    c->world->id = c->groups_made = 1; /* 0 is for groups in the making */
}

/* A launcher that is killed leaves its ranks computing for nobody. */
static void die_with_launcher(void) {
    pid_t launcher = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) raise(SIGKILL); /* it ended while we asked */
}

int comm_init(struct comm *c, struct mistakes *m) {
    struct launch l;
    launch_find(&l);
    if (l.by) die_with_launcher();
    int result = 0;
    if (l.size == 1) comm_init_self(c);
    else result = comm_init_mpi(c, &l, m);
    die_set_rank(c->rank);
    die_set_hooks(NULL, comm_abort);
    return result;
}

void comm_end(struct comm *c) {
    if (c->world) {
        if (c->transport->moves) comm_barrier(c->world);
        group_free(c->world);
    }
    if (c->under_way) bug("the transport ends with operations under way");
    steps_end(c);
    c->transport->end(c);
    *c = (struct comm){0};
}

void comm_abort(int code) {
    /* Should anything below hang, the alarm ends us and the launcher the others. */
    signal(SIGALRM, SIG_DFL);
    alarm(5);
    fflush(NULL);
    /* A launcher that hears of an abort drops what it has not yet read of our standard
     * error: it gets the time to read why. */
    usleep(200000);
    comm_abort_mpi(code);
}

struct group *group_new(struct comm *c, const char *name, int size, const int *members) {
    struct group *g = group_make(c, name, size, members);
    if (size > 1) {
        struct request r;
        steps_max(g, c->groups_made + 1, true, &r);
        g->id = (int)steps_wait_max(&r);
        c->groups_made = g->id;
        if (g->id > c->groups_most)
            die("group %s is number %d; this MPI has tags for %d groups", name, g->id,
                c->groups_most);
        g->operations = 0;
        g->bytes_sent = g->calls = 0;
    }
    return g;
}

void group_free(struct group *g) {
    if (!g) return;
    if (g->under_way) bug("group %s is freed with %d operations under way", g->name, g->under_way);
    free(g->members);
    free(g);
}

/* True for a group of one, where there is nothing to wait for. */
static bool counted_alone(struct group *g, struct request *r) {
    g->calls++;
    *r = (struct request){g, NULL};
    return g->size == 1;
}

static void copy_alone(const struct group *g, void *to, const void *from, size_t bytes) {
    if (g->comm->transport->moves && bytes > 0 && to != from) memmove(to, from, bytes);
}

void (*comm_on_wait)(const struct group *g);
void (*comm_on_waited)(const struct group *g, int64_t from);
int64_t (*comm_clock)(void);

void comm_wait(struct request *r) {
    const struct group *g = r->state ? r->group : NULL;
    const bool told = g && comm_on_waited;
    const int64_t from = told ? comm_clock() : 0;
    if (g && comm_on_wait) comm_on_wait(g);
    steps_wait(r);
    if (told) comm_on_waited(g, from);
    if (g && comm_on_wait) comm_on_wait(NULL);
}

void comm_gather_start(struct group *g, const void *send, void *recv, const int64_t *counts,
                       size_t size, struct request *r) {
    if (counted_alone(g, r)) copy_alone(g, recv, send, (size_t)counts[0] * size);
    else steps_gather(g, send, recv, counts, size, r);
}

static void check_summable(const struct group *g, enum dtype d) {
    if (d != F32 && d != F64 && d != BF16 && d != I32 && d != I64)
        bug("group %s: sums of %s", g->name, dtype_name(d));
}

void comm_sum_start(struct group *g, void *buf, int64_t n, enum dtype d, void *scratch,
                    struct request *r) {
    check_summable(g, d);
    if (!counted_alone(g, r)) steps_sum(g, buf, n, d, scratch, r);
}

size_t comm_sum_scratch(const struct group *g, int64_t n, enum dtype d) {
    return g->size == 1 ? 0 : steps_sum_scratch(g, n, d);
}

void comm_sum_scatter_start(struct group *g, const void *send, void *recv, const int64_t *counts,
                            enum dtype d, void *scratch, struct request *r) {
    check_summable(g, d);
    if (counted_alone(g, r)) copy_alone(g, recv, send, (size_t)counts[0] * dtype_size(d));
    else steps_sum_scatter(g, send, recv, counts, d, scratch, r);
}

size_t comm_sum_scatter_scratch(const struct group *g, const int64_t *counts, enum dtype d) {
    return g->size == 1 ? 0 : steps_sum_scatter_scratch(g, counts, d);
}

void comm_exchange_start(struct group *g, const void *send, const int64_t *send_bytes, void *recv,
                         const int64_t *recv_bytes, struct request *r) {
    if (send_bytes[g->rank] != recv_bytes[g->rank])
        bug("group %s: %lld bytes to itself, %lld expected", g->name,
            (long long)send_bytes[g->rank], (long long)recv_bytes[g->rank]);
    if (counted_alone(g, r)) copy_alone(g, recv, send, (size_t)send_bytes[0]);
    else steps_exchange(g, send, send_bytes, recv, recv_bytes, r);
}

void comm_pass_start(struct group *g, void *buf, size_t bytes, struct request *r) {
    if (g->size != 2) bug("group %s: a message between %d members", g->name, g->size);
    g->calls++;
    steps_pass(g, buf, bytes, r);
}

void comm_progress(struct comm *c) {
    steps_progress(c);
}

void comm_barrier(struct group *g) {
    struct request r;
    if (counted_alone(g, &r)) return;
    steps_max(g, 0, false, &r);
    steps_wait(&r);
}

int64_t comm_max(struct group *g, int64_t value) {
    struct request r;
    if (counted_alone(g, &r)) return value;
    steps_max(g, value, true, &r);
    return steps_wait_max(&r);
}

int64_t comm_total(struct group *g, int64_t value) {
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(g, 1, I64));
    comm_sum_start(g, &value, 1, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
    return value;
}

void comm_broadcast(struct group *g, void *buf, size_t bytes, int root) {
    struct request r;
    if (counted_alone(g, &r) || bytes == 0) return;
    steps_broadcast(g, buf, bytes, root, &r);
    steps_wait(&r);
}

void comm_sum_exact(struct group *g, struct exact *sum) {
    enum { WORDS = sizeof *sum / sizeof(int64_t) };
    exact_normalise(sum);
    void *scratch = die_alloc(comm_sum_scratch(g, WORDS, I64));
    struct request r;
    comm_sum_start(g, sum, WORDS, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
}
