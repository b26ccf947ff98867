#include "parallel/transport.h"

/* Messages were counted where they were posted (comm_steps.c) and are there at once. */
static void dry_send(struct group *g, int member, int tag, const void *buf, size_t bytes,
                     struct messages *ms) {
    (void)g, (void)member, (void)tag, (void)buf, (void)bytes, (void)ms;
}

static void dry_receive(struct group *g, int member, int tag, void *buf, size_t bytes,
                        struct messages *ms) {
    (void)g, (void)member, (void)tag, (void)buf, (void)bytes, (void)ms;
}

static bool dry_finished(struct group *g, struct messages *ms) {
    (void)g, (void)ms;
    return true;
}

static void dry_forget(struct messages *ms) {
    (void)ms;
}

static void dry_end(struct comm *c) {
    (void)c;
}

const struct transport transport_dry = {"dry",        false,      dry_send, dry_receive,
                                        dry_finished, dry_forget, dry_end};

void comm_init_dry(struct comm *c, int size, int rank) {
    comm_open_world(c, &transport_dry, size, rank, INT32_MAX);
    c->host_ranks = c->host_cores = c->same_cores = 1;
}
