#include "parallel/groups.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

void parallel_init(struct parallel *p, struct comm *c, const struct mesh_shape *shape,
                   bool sequence, int n_shares, const int *shares) {
    memset(p, 0, sizeof *p);
    p->comm = c;
    p->shape = *shape;
    p->at = mesh_coords(shape, c->rank);
    p->sequence = sequence;
    int *members = die_alloc(mesh_ranks(shape) * sizeof *members);
    for (int a = 0; a < MESH_AXES; a++) {
        int n = mesh_members(shape, c->rank, a, members);
        p->axis[a] = group_new(c, mesh_axis_name(a), n, members);
    }
    p->replicas = group_new(c, "replicas", mesh_replica_members(shape, c->rank, members), members);
    p->sample = p->axis[shape->context == 1 ? MESH_TENSOR : MESH_CONTEXT];
    if (shape->context > 1 && shape->tensor > 1)
        p->sample = group_new(c, "sample", mesh_sample_members(shape, c->rank, members), members);
    for (int i = 0; i < n_shares; i++) {
        bool known = shares[i] <= 1;
        for (int j = 0; j < p->n_shares; j++) known |= p->share[j] == shares[i];
        if (known) continue;
        if (p->n_shares == MAX_SHARES) bug("too many ways of sharing heads");
        char name[32];
        snprintf(name, sizeof name, "share of %d", shares[i]);
        int n = mesh_share_members(shape, c->rank, MESH_TENSOR, shares[i], members);
        p->share[p->n_shares] = shares[i];
        p->share_group[p->n_shares++] = group_new(c, name, n, members);
    }
    free(members);
}

static bool own_sample(const struct parallel *p) {
    return p->sample != p->axis[MESH_TENSOR] && p->sample != p->axis[MESH_CONTEXT];
}

void parallel_free(struct parallel *p) {
    if (own_sample(p)) group_free(p->sample);
    for (int a = 0; a < MESH_AXES; a++) group_free(p->axis[a]);
    group_free(p->replicas);
    for (int i = 0; i < p->n_shares; i++) group_free(p->share_group[i]);
    memset(p, 0, sizeof *p);
}

struct group *parallel_share(const struct parallel *p, int share) {
    for (int i = 0; i < p->n_shares; i++)
        if (p->share[i] == share) return p->share_group[i];
    bug("no sub-group of %d neighbours was made", share);
}

static int add_traffic(const struct group *g, int n, struct traffic *t) {
    if (g->size == 1) return n;
    t[n] = (struct traffic){.ranks = g->size, .bytes = g->bytes_sent, .calls = g->calls};
    snprintf(t[n].name, sizeof t[n].name, "%s", g->name);
    return n + 1;
}

int parallel_traffic(const struct parallel *p, struct traffic t[TRAFFIC_MOST]) {
    int n = add_traffic(p->comm->world, 0, t);
    for (int a = 0; a < MESH_AXES; a++) n = add_traffic(p->axis[a], n, t);
    n = add_traffic(p->replicas, n, t);
    if (own_sample(p)) n = add_traffic(p->sample, n, t);
    for (int i = 0; i < p->n_shares; i++) n = add_traffic(p->share_group[i], n, t);
    return n;
}
