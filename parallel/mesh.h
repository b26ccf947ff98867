/* mesh: which rank does what, as arithmetic.
 *
 * The ranks of a run are factored twice. Dense layers see
 *     rank = ((pipeline * data + d) * context + c) * tensor + t
 * and the layers of experts see the same ranks of a pipeline stage as
 *     rank = ((pipeline * expert_data + x) * expert + e) * expert_tensor + y,
 * so data * context * tensor = expert_data * expert * expert_tensor. Tensor ranks are neighbours,
 * because they talk most. Everything here is a pure function of the shape: no MPI, no state, any
 * rank can compute what any other rank does.
 *
 * Where heads outnumber what they share (KV heads, SSM groups) and ranks outnumber those, `share`
 * neighbouring tensor ranks hold the same block and form a sub-group. */
#ifndef PARALLEL_MESH_H
#define PARALLEL_MESH_H

#include <stdbool.h>
#include <stdint.h>

struct mistakes;

struct mesh_shape {
    int pipeline, data, context, tensor;    /* product: the number of ranks */
    int expert_data, expert, expert_tensor; /* product: data * context * tensor */
};

struct mesh_coords {
    int pipeline, data, context, tensor;
    int expert_data, expert, expert_tensor;
};

/* The axes along which a group of ranks can be taken. */
enum mesh_axis {
    MESH_PIPELINE,
    MESH_DATA,
    MESH_CONTEXT,
    MESH_TENSOR,
    MESH_EXPERT_DATA,
    MESH_EXPERT,
    MESH_EXPERT_TENSOR,
    MESH_AXES
};

/* "pipeline", "data", ... */
const char *mesh_axis_name(enum mesh_axis axis);

/* Completes a shape: data 0 becomes what ranks leave, expert_tensor 0 becomes tensor if expert is 1
 * and else 1, expert_data what is left of the stage. Returns 0, or -1 after telling `m` what does
 * not divide and which values near would (keys named parallel.tensor etc.). ranks is the number
 * started. */
int mesh_complete(struct mesh_shape *s, int ranks, struct mistakes *m);

int mesh_ranks(const struct mesh_shape *s);
int mesh_stage_ranks(const struct mesh_shape *s); /* of one pipeline stage: neighbours */
int mesh_extent(const struct mesh_shape *s, enum mesh_axis axis);
int mesh_coordinate(const struct mesh_coords *c, enum mesh_axis axis);

/* rank -> both factorings, and back from either one. */
struct mesh_coords mesh_coords(const struct mesh_shape *s, int rank);
int mesh_rank(const struct mesh_shape *s, int pipeline, int data, int context, int tensor);
int mesh_rank_expert(const struct mesh_shape *s, int pipeline, int expert_data, int expert,
                     int expert_tensor);

/* Whether ranks that share out experts have different data coordinates, which then
 * exchange tokens equally often. */
bool mesh_experts_join_data(const struct mesh_shape *s);

/* The ranks that differ from `rank` in this axis alone (within its factoring), by coordinate;
 * `rank` is member number mesh_coordinate(...). members has room for mesh_extent ranks. Returns how
 * many. */
int mesh_members(const struct mesh_shape *s, int rank, enum mesh_axis axis, int *members);

/* The sub-group of `share` neighbours along the axis that hold the same block as `rank`:
 * coordinates share*floor(x/share) .. +share-1. share divides the extent. Returns share. */
int mesh_share_members(const struct mesh_shape *s, int rank, enum mesh_axis axis, int share,
                       int *members);

/* The ranks of one pipeline stage that hold replicas along data and context together (dense
 * tensors' gradients are summed over these), in rank order. Returns data * context. */
int mesh_replica_members(const struct mesh_shape *s, int rank, int *members);

/* The ranks that share out the tokens of the same sequences, in rank
 * order. Returns context * tensor.
 */
int mesh_sample_members(const struct mesh_shape *s, int rank, int *members);

/* First unit that part r of n holds of a width that need not divide: floor(r*w/n), in whole units
 * of `unit` (the last part also takes what is left of an incomplete unit). part_begin(w, n, n, u)
 * == w. */
int64_t part_begin(int64_t width, int n, int r, int64_t unit);

/* `count` indivisible things (heads, groups) over n ranks: a multiple or a divisor of n. Sets the
 * first one that rank r holds, how many, and the share (how many neighbours hold the same). Returns
 * -1 if count is neither. */
int part_heads(int64_t count, int n, int r, int64_t *first, int64_t *held, int *share);

#endif
