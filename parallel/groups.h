/* groups: the named groups of ranks that one rank belongs to.
 *
 * One group per axis of the mesh, the replicas (data and context together, over which dense
 * gradients are summed), and for every sharing of heads that the model needs the sub-group of
 * neighbours that hold the same block. Everything a tape needs to exchange tensors hangs here. */
#ifndef PARALLEL_GROUPS_H
#define PARALLEL_GROUPS_H

#include "parallel/comm.h"
#include "parallel/mesh.h"

enum { MAX_SHARES = 8, TRAFFIC_MOST = MESH_AXES + MAX_SHARES + 5 };

struct parallel {
    struct comm *comm;
    struct mesh_shape shape;
    struct mesh_coords at;
    struct group *axis[MESH_AXES];
    struct group *replicas; /* data * context */
    int n_shares;
    int share[MAX_SHARES]; /* neighbours along tensor */
    struct group *share_group[MAX_SHARES];
    bool sequence; /* the stream is split by tokens along tensor between layers */
    bool attention_heads, mamba_heads; /* ways across the context ranks: by heads */
};

/* Makes the groups of the mesh. shares: the sizes of sub-groups the model needs (1 is ignored).
 * Collective over the world. */
void parallel_init(struct parallel *p, struct comm *c, const struct mesh_shape *shape,
                   bool sequence, int n_shares, const int *shares);
void parallel_free(struct parallel *p);

/* What this rank has sent on each group of more than one rank so far, in a fixed order, the world
 * first. Returns how many. */
struct traffic {
    char name[32];
    int ranks;
    int64_t bytes, calls;
};
int parallel_traffic(const struct parallel *p, struct traffic t[TRAFFIC_MOST]);

/* The sub-group of `share` neighbours along tensor. A bug if it was not made. */
struct group *parallel_share(const struct parallel *p, int share);

#endif
