#include <sched.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/transport.h"

/* Groups of one never get as far as a message (comm.c). */
static void self_send(struct group *g, int member, int tag, const void *buf, size_t bytes,
                      struct messages *ms) {
    (void)tag, (void)buf, (void)bytes, (void)ms;
    bug("group %s: a message to %d of a world of one", g->name, member);
}

static void self_receive(struct group *g, int member, int tag, void *buf, size_t bytes,
                         struct messages *ms) {
    (void)tag, (void)buf, (void)bytes, (void)ms;
    bug("group %s: a message from %d of a world of one", g->name, member);
}

static bool self_finished(struct group *g, struct messages *ms) {
    (void)g, (void)ms;
    return true;
}

static void self_forget(struct messages *ms) {
    (void)ms;
}

static void self_end(struct comm *c) {
    (void)c;
}

const struct transport transport_self = {"self",        true,        self_send, self_receive,
                                         self_finished, self_forget, self_end};

void comm_core_mask(unsigned long *mask) {
    memset(mask, 0, COMM_MASK_WORDS * sizeof *mask);
    if (sched_getaffinity(0, COMM_MASK_WORDS * sizeof *mask, (cpu_set_t *)mask) != 0) mask[0] = 1;
}

int comm_count_cores(const unsigned long *mask, int words) {
    int n = 0;
    for (int i = 0; i < words; i++) n += __builtin_popcountl(mask[i]);
    return n;
}

void comm_init_self(struct comm *c) {
    unsigned long mask[COMM_MASK_WORDS];
    comm_core_mask(mask);
    comm_open_world(c, &transport_self, 1, 0, INT32_MAX);
    c->host_ranks = 1;
    c->host_cores = comm_count_cores(mask, COMM_MASK_WORDS);
}
