#include "parallel/schedule_weight.h"

#include <stdlib.h>

#include "kernels/die.h"

struct placing {
    struct schedule *out;
    const struct schedule *order;
    const struct schedule_costs *costs;
    const struct schedule_sizes *sizes;
    int choice;
    int64_t limit;                /* what a rank may hold */
    int64_t *clock, *held, *most; /* [rank] */
    int64_t *ended[2];            /* [stage][micro-batch] of forward and backward, -1: not yet */
    struct action_queue {         /* weight halves put off, oldest first */
        const struct action **action; /* the input halves they belong to */
        int first, n;
    } * queue; /* [rank] */
};

static int stage_of(const struct placing *p, int rank, const struct action *a) {
    return schedule_stage(&p->order->shape, rank, a->chunk);
}

/* When what the action needs is there; -1 if that is not known yet. */
static int64_t ready(const struct placing *p, int rank, const struct action *a) {
    const struct schedule_shape *shape = &p->order->shape;
    int stage = stage_of(p, rank, a), m = shape->micro_batches, i = a->micro_batch;
    int from = a->kind == ACTION_FORWARD ? stage - 1 : stage + 1;
    if (from < 0) return 0;
    if (from == schedule_stages(shape)) return p->ended[0][stage * m + i];
    int64_t t = p->ended[a->kind != ACTION_FORWARD][from * m + i];
    if (t < 0 || schedule_rank_of(shape, from) == rank || !p->costs) return t;
    return t + p->costs->transfer;
}

static void run(struct placing *p, int rank, struct action a, int64_t start) {
    int stage = stage_of(p, rank, &a);
    int64_t most = p->held[rank] + schedule_rise(p->sizes, a.kind, stage);
    if (most > p->most[rank]) p->most[rank] = most;
    p->clock[rank] = start + schedule_cost(p->costs, a.kind, stage);
    p->held[rank] += schedule_change(p->sizes, a.kind, stage);
    schedule_add(p->out, rank, a);
}

static void run_weight(struct placing *p, int rank) {
    struct action_queue *q = &p->queue[rank];
    struct action a = *q->action[q->first++];
    struct action_list *l = &p->out->rank[rank];
    struct action *last = &l->action[l->n - 1];
    int stage = stage_of(p, rank, &a);
    bool awaited = stage > 0 && schedule_rank_of(&p->order->shape, stage - 1) != rank;
    q->n--;
    if (!awaited && last->kind == ACTION_BACKWARD_INPUT && last->chunk == a.chunk &&
        last->micro_batch == a.micro_batch) {
        last->kind = ACTION_BACKWARD;
        p->clock[rank] += schedule_cost(p->costs, ACTION_BACKWARD_WEIGHT, stage);
        p->held[rank] += schedule_change(p->sizes, ACTION_BACKWARD_WEIGHT, stage);
        return;
    }
    a.kind = ACTION_BACKWARD_WEIGHT;
    run(p, rank, a, p->clock[rank]);
}

/* Is the oldest weight half to go before an action that can start at `at`? */
static bool weight_first(const struct placing *p, int rank, const struct action *next, int64_t at) {
    const struct action_queue *q = &p->queue[rank];
    if (!q->n) return false;
    int64_t more = schedule_rise(p->sizes, next->kind, stage_of(p, rank, next));
    if (more > 0 && p->held[rank] + more > p->limit) return true;
    int64_t gap = at - p->clock[rank];
    int64_t cost =
        schedule_cost(p->costs, ACTION_BACKWARD_WEIGHT, stage_of(p, rank, q->action[q->first]));
    switch (p->choice) {
    case WEIGHT_IF_FITS: return gap >= cost;
    case WEIGHT_IF_HALF_FITS: return gap >= cost - gap;
    case WEIGHT_IN_ANY_GAP: return gap > 0;
    default: return true;
    }
}

/* Lets one rank go as far as it can; *at is its next action in the order. */
static bool advance(struct placing *p, int rank, int *at) {
    const struct action_list *l = &p->order->rank[rank];
    struct action_queue *q = &p->queue[rank];
    int m = p->order->shape.micro_batches, began = *at;
    for (; *at < l->n; (*at)++) {
        const struct action *a = &l->action[*at];
        int64_t when = ready(p, rank, a);
        if (when < 0) break;
        while (weight_first(p, rank, a, when)) run_weight(p, rank);
        run(p, rank, *a, when > p->clock[rank] ? when : p->clock[rank]);
        p->ended[a->kind != ACTION_FORWARD][stage_of(p, rank, a) * m + a->micro_batch] =
            p->clock[rank];
        if (a->kind == ACTION_BACKWARD_INPUT) q->action[q->first + q->n++] = a;
    }
    return *at > began;
}

int64_t schedule_weight_none(const struct schedule *order, const struct schedule_sizes *sizes) {
    int64_t most = 0;
    for (int r = 0; r < order->shape.ranks; r++) {
        int64_t held = 0;
        for (int i = 0; i < order->rank[r].n; i++) {
            const struct action *a = &order->rank[r].action[i];
            enum action_kind kind = a->kind == ACTION_FORWARD ? a->kind : ACTION_BACKWARD;
            int stage = schedule_stage(&order->shape, r, a->chunk);
            int64_t rise = held + schedule_rise(sizes, kind, stage);
            if (rise > most) most = rise;
            held += schedule_change(sizes, kind, stage);
        }
    }
    return most;
}

struct weight_result schedule_weight(struct schedule *out, const struct schedule *order,
                                     const struct schedule_costs *costs,
                                     const struct schedule_sizes *sizes, int choice,
                                     int64_t limit) {
    const struct schedule_shape *shape = &order->shape;
    unsigned long P = (unsigned long)shape->ranks;
    unsigned long cells =
        (unsigned long)schedule_stages(shape) * (unsigned long)shape->micro_batches;
    struct placing p = {
        out, order, costs, sizes, choice, limit, .clock = die_alloc(3 * P * sizeof *p.clock)};
    p.held = p.clock + P;
    p.most = p.held + P;
    p.ended[0] = die_alloc(2 * cells * sizeof *p.ended[0]);
    p.ended[1] = p.ended[0] + cells;
    for (unsigned long i = 0; i < 2 * cells; i++) p.ended[0][i] = -1;
    p.queue = die_alloc(P * sizeof *p.queue);
    for (unsigned long r = 0; r < P; r++)
        p.queue[r].action = die_alloc((unsigned long)order->rank[r].n * sizeof *p.queue[r].action);

    int *at = die_alloc(P * sizeof *at);
    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r < shape->ranks; r++) moved |= advance(&p, r, &at[r]);
    }
    struct weight_result result = {0, 0};
    for (int r = 0; r < shape->ranks; r++) {
        if (at[r] < order->rank[r].n) bug("the order of a schedule waits for itself");
        while (p.queue[r].n) run_weight(&p, r);
        if (p.clock[r] > result.length) result.length = p.clock[r];
        if (p.most[r] > result.most_held) result.most_held = p.most[r];
        free(p.queue[r].action);
    }
    free(p.queue);
    free(at);
    free(p.ended[0]);
    free(p.clock);
    return result;
}
