/* expert_parallel: tokens to the ranks that hold their experts, and back.
 *
 * Experts see the ranks of a pipeline stage as expert-data x expert x expert-tensor: rank (x, e, y)
 * holds part y of the experts of e, and so do the ranks of all other x. Every rank has tokens of
 * its own: those of its place on (data, context), and of these its part along tensor, so that no
 * token is computed twice. Its rows for experts, sorted by expert, travel in two steps:
 *
 *     over the expert group     each rank gets the rows for its own experts from all e of its x
 *                               and y: an all-to-all of exactly these rows, after one of their
 *                               numbers
 *     over the expert-tensor group    the ranks that hold parts of the same experts gather what
 *                               each of them got, and sort it by expert
 *
 * and back the other way: partial results are summed to the rank whose row it is, and sent home.
 * Each way is the other's adjoint. Both are a start and a wait: what is computed between them does
 * not wait for tokens. Numbers of rows are not known before the run; on a dry device they are those
 * of round-robin routing (kernels/ops.def: route_evenly), which is also what it computes if asked
 * to, or in proportion to loads that are given.
 *
 * With one rank along expert, and experts split over the tensor group, every expert is at home:
 * tokens stay where they are, all of them on all tensor ranks, and only the names of the axes
 * change.
 *
 * Ops of a tape; collective over the expert and expert-tensor groups. */
#ifndef PARALLEL_EXPERT_PARALLEL_H
#define PARALLEL_EXPERT_PARALLEL_H

#include "kernels/ops.h"
#include "parallel/mesh.h"

struct journey; /* one dispatch and its return; lives until the tape is cleared */

bool experts_at_home(const struct parallel *p);

/* Tokens of a place on (data, context): all, and of each sequence. */
struct token_share {
    int64_t tokens, length;
};

/* What rows are sent: of a micro-batch of `tokens` tokens on the ranks of a tensor group, `length`
 * of each sequence, each to `chosen` of `experts` experts. */
struct travel {
    int64_t experts, chosen, tokens, length;
    bool dealt; /* along context whole sequences, not pieces */
    /* [data * context], where not all places have as many tokens (src/decoder.h); else NULL. Plans
     * alone read it: a run is told by those who send. */
    const struct token_share *of;
    /* On a dry device: the experts' shares of load_of choices; or instead the choices of each rank
     * of the stage, [ranks][experts]. NULL: even ones. */
    const int64_t *load;
    int64_t load_of;
    const int32_t *known;
    int32_t *note; /* gets this rank's choices of each expert; or NULL */
};

/* Which of these are a rank's own, with tensor ranks that split them or not (then all). Along
 * context a sequence is cut in 2C pieces, of which rank c has number c and number 2C - 1 - c. */
struct token_range own_tokens(const struct mesh_shape *s, const struct mesh_coords *at,
                              const struct travel *v, bool split);

/* Sends x, a row for each choice, sorted by expert; offset[experts + 1]: where each expert's begin.
 * Rows beyond the last are nobody's. The layouts: entered along tensor where experts are at home,
 * else split by tokens. x must not be dropped before the wait, which drops it. */
struct journey *expert_dispatch_start(struct tape *t, struct tensor *x, struct tensor *offset,
                                      const struct travel *v);
/* The rows of this rank's experts, entered along expert-tensor, and where each expert's begin. */
struct tensor *expert_dispatch_wait(struct tape *t, struct journey *j, struct tensor **offset);

/* Sends the experts' results, partial along expert-tensor, back to where their tokens are, in the
 * order they left. y must not be dropped before the wait, which drops it. */
void expert_return_start(struct tape *t, struct journey *j, struct tensor *y);
struct tensor *expert_return_wait(struct tape *t, struct journey *j);

/* Choices of experts from .. from+n-1, each on its own, by rank `rank` of `ranks` with `choices` in
 * all, in proportion to v->load. Together the ranks' are as near to it as whole numbers can be. */
void loaded_choices(const struct travel *v, int rank, int ranks, int64_t choices, int64_t from,
                    int64_t n, int64_t *of_each);

/* Choices of experts from .. from+n-1, each on its own, by `tokens` tokens of this
 * range, if experts are taken in turn. */
void even_choices(const struct travel *v, const struct token_range *r, int64_t tokens, int64_t from,
                  int64_t n, int64_t *choices);

#endif
