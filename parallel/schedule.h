/* schedule: the order in which the stages of a pipeline work, as data.
 *
 * A model cut into stages is spread over the ranks of the pipeline axis, one or more stages
 * (chunks) a rank, and a step's micro-batches pass through all of them forward and back. Who does
 * what when is a list of actions for each rank, made before the first step from four numbers and
 * then simply obeyed: an executor is one switch over the kinds below. Because it is data, a
 * schedule can be proven (schedule_check.h), timed (schedule_time.h) and drawn (schedule_picture.h)
 * without a model; schedule_build.h makes them. Nothing here knows tensors or MPI, all numbers are
 * integers, and all ranks compute the same lists.
 *
 * Where stages live, for P ranks:
 *     1f1b, zero-bubble   stage = rank
 *     interleaved         stage = chunk * P + rank: round and round
 *     zbv                 stage = rank, and 2P - 1 - rank: there and back, so rank 0 has both ends
 * Neighbouring stages on one rank hand over in memory; there is no action for that: the input of
 * a forward is the tokens in stage 0, else what the stage before made where it is on the same
 * rank, else what was received; the gradient into a backward likewise from behind. Everything
 * else that crosses a stage boundary is sent: a start (`send`, `receive`) and later a wait, each
 * start naming one of the rank's request slots, which its wait frees. Messages have no tags: the
 * k-th send from rank a to rank b meets the k-th receive on b from a, activations and gradients
 * together. */
#ifndef PARALLEL_SCHEDULE_H
#define PARALLEL_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

enum schedule_kind {
    SCHEDULE_1F1B,
    SCHEDULE_INTERLEAVED,
    SCHEDULE_ZERO_BUBBLE,
    SCHEDULE_ZBV,
    N_SCHEDULE_KINDS
};

struct schedule_shape {
    enum schedule_kind kind;
    int ranks, chunks, micro_batches; /* chunks: 1, interleaved any, zbv 2 */
};

/* What a rank does with (chunk, micro-batch). A wait is its start + 4. */
enum action_kind {
    ACTION_FORWARD,
    ACTION_BACKWARD,        /* both halves at once */
    ACTION_BACKWARD_INPUT,  /* the gradient of the stage's input */
    ACTION_BACKWARD_WEIGHT, /* the gradients of its weights, from what the input half held */

    ACTION_SEND_ACTIVATION, /* to the next stage: what the forward made */
    ACTION_RECEIVE_ACTIVATION,
    ACTION_SEND_GRADIENT, /* to the stage before: what the input half made */
    ACTION_RECEIVE_GRADIENT,

    ACTION_WAIT_SEND_ACTIVATION, /* the buffer is free again */
    ACTION_WAIT_RECEIVE_ACTIVATION,
    ACTION_WAIT_SEND_GRADIENT,
    ACTION_WAIT_RECEIVE_GRADIENT,
    N_ACTION_KINDS
};
enum { N_COMPUTING = ACTION_BACKWARD_WEIGHT + 1 };
enum { ACTION_WAIT = ACTION_WAIT_SEND_ACTIVATION - ACTION_SEND_ACTIVATION };

struct action {
    enum action_kind kind;
    int chunk, micro_batch;
    int peer; /* stage at the other end of a transfer, -1 for computing */
    int slot; /* of a start and its wait: which request, from 0; -1 for computing */
};

struct action_list {
    int n, room;
    int slots; /* requests open at once, at most */
    struct action *action;
};

struct schedule {
    struct schedule_shape shape;
    struct action_list *rank; /* [ranks], owned */
};

/* "1f1b", ... and "forward", "wait receive gradient", ... */
const char *schedule_kind_name(enum schedule_kind kind);
const char *action_name(enum action_kind kind);

/* NULL, or why there is no such schedule ("zbv has two stages a rank"). */
const char *schedule_refuses(const struct schedule_shape *s);

int schedule_stages(const struct schedule_shape *s);
int schedule_stage(const struct schedule_shape *s, int rank, int chunk);
int schedule_rank_of(const struct schedule_shape *s, int stage);
int schedule_chunk_of(const struct schedule_shape *s, int stage);

static inline bool action_computes(enum action_kind k) {
    return k <= ACTION_BACKWARD_WEIGHT;
}
static inline bool action_waits(enum action_kind k) {
    return k >= ACTION_WAIT_SEND_ACTIVATION;
}
/* Of a start or its wait. */
static inline bool action_receives(enum action_kind k) {
    return k == ACTION_RECEIVE_ACTIVATION || k == ACTION_RECEIVE_GRADIENT ||
           k == ACTION_WAIT_RECEIVE_ACTIVATION || k == ACTION_WAIT_RECEIVE_GRADIENT;
}
static inline bool action_of_gradient(enum action_kind k) {
    return k == ACTION_SEND_GRADIENT || k == ACTION_RECEIVE_GRADIENT ||
           k == ACTION_WAIT_SEND_GRADIENT || k == ACTION_WAIT_RECEIVE_GRADIENT;
}

/* What computing costs: ticks of whatever length the caller likes, a number a stage. NULL in place
 * of the whole: each half and each forward one tick, transfers none. */
struct schedule_costs {
    const int64_t *forward, *backward_input, *backward_weight; /* [stages] */
    int64_t transfer; /* between two ranks, activation or gradient */
};

/* What a micro-batch holds in a stage: `kept` from its forward to its backward (or input half),
 * `between` from the input half to the weight half. NULL: each 1, which counts micro-batches.
 * For bytes: what computing needs on its way above what the rank held before it (NULL: what it
 * leaves), and what crosses a boundary, an activation (the stage behind counts it in `kept`) or
 * a gradient. */
struct schedule_sizes {
    const int64_t *kept, *between;    /* [stages] */
    const int64_t *rise[N_COMPUTING]; /* [stages] by kind of action */
    int64_t stream;
};

int64_t schedule_cost(const struct schedule_costs *c, enum action_kind kind, int stage);

/* How the action changes what its rank holds (0 for transfers); a forward's counts from its start,
 * a backward's from its end. */
int64_t schedule_change(const struct schedule_sizes *z, enum action_kind kind, int stage);
/* The most that computing adds to what its rank holds, on its way or at its end. */
int64_t schedule_rise(const struct schedule_sizes *z, enum action_kind kind, int stage);

void schedule_init(struct schedule *s, const struct schedule_shape *shape); /* empty lists */
void schedule_reserve(struct schedule *s, int rank, int n);                 /* room for n more */
void schedule_add(struct schedule *s, int rank, struct action a);
void schedule_free(struct schedule *s);

#endif
