#include "parallel/pipeline_parallel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

static struct group *pair(const struct parallel *p, const int *members, const char *name, int from,
                          int to) {
    char text[32];
    snprintf(text, sizeof text, "%s %d to %d", name, from, to);
    return group_new(p->comm, text, 2, (int[]){members[from], members[to]});
}

static void meet(struct neighbours *n, const struct parallel *p, const int *members, int a, int b) {
    int own = p->at.pipeline;
    if (own != a && own != b) return;
    struct group *up = pair(p, members, "stage", a, b), *down = pair(p, members, "stage", b, a);
    n->neighbour[n->n++] =
        own == a ? (struct neighbour){b, up, down} : (struct neighbour){a, down, up};
}

void neighbours_init(struct neighbours *n, const struct parallel *p, const struct schedule_shape *s,
                     bool ends) {
    memset(n, 0, sizeof *n);
    int ranks = s->ranks, *members = die_alloc((unsigned long)ranks * sizeof *members);
    mesh_members(&p->shape, p->comm->rank, MESH_PIPELINE, members);
    /* All ranks in the same order, or they would wait for each other. */
    for (int a = 0; a + 1 < ranks; a++) meet(n, p, members, a, a + 1);
    bool round = s->kind == SCHEDULE_INTERLEAVED && s->chunks > 1 && ranks > 2;
    if (round) meet(n, p, members, ranks - 1, 0);
    int first = schedule_rank_of(s, 0), last = schedule_rank_of(s, schedule_stages(s) - 1);
    bool here = p->at.pipeline == first || p->at.pipeline == last;
    if (ends && first != last && here) n->ends = pair(p, members, "ends", first, last);
    free(members);
}

void neighbours_free(struct neighbours *n) {
    for (int i = 0; i < n->n; i++) {
        group_free(n->neighbour[i].to);
        group_free(n->neighbour[i].of);
    }
    group_free(n->ends);
    memset(n, 0, sizeof *n);
}

static const struct neighbour *find(const struct neighbours *n, int at) {
    for (int i = 0; i < n->n; i++)
        if (n->neighbour[i].at == at) return &n->neighbour[i];
    bug("rank %d of the pipeline is no neighbour", at);
}

void neighbours_send(struct neighbours *n, int at, void *buf, size_t bytes, struct request *r) {
    comm_pass_start(find(n, at)->to, buf, bytes, r);
}

void neighbours_receive(struct neighbours *n, int at, void *buf, size_t bytes, struct request *r) {
    comm_pass_start(find(n, at)->of, buf, bytes, r);
}

int neighbours_traffic(const struct neighbours *n, struct traffic *t, int most) {
    int made = 0;
    for (int i = 0; i <= n->n; i++) {
        const struct group *g = i < n->n ? n->neighbour[i].to : n->ends;
        if (!g || made == most) continue;
        t[made] = (struct traffic){.ranks = g->size, .bytes = g->bytes_sent, .calls = g->calls};
        snprintf(t[made++].name, sizeof t->name, "%s", g->name);
    }
    return made;
}
