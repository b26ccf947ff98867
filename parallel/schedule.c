#include "parallel/schedule.h"

#include <stdlib.h>

#include "kernels/die.h"

const char *schedule_kind_name(enum schedule_kind kind) {
    static const char *const names[N_SCHEDULE_KINDS] = {"1f1b", "interleaved", "zero-bubble",
                                                        "zbv"};
    return kind < N_SCHEDULE_KINDS ? names[kind] : "?";
}

const char *action_name(enum action_kind kind) {
    static const char *const names[N_ACTION_KINDS] = {
        "forward",
        "backward",
        "backward input",
        "backward weight",
        "send activation",
        "receive activation",
        "send gradient",
        "receive gradient",
        "wait send activation",
        "wait receive activation",
        "wait send gradient",
        "wait receive gradient",
    };
    return kind < N_ACTION_KINDS ? names[kind] : "?";
}

const char *schedule_refuses(const struct schedule_shape *s) {
    if (s->kind >= N_SCHEDULE_KINDS) return "there is no such kind of schedule";
    if (s->ranks < 1) return "a pipeline has at least one rank";
    if (s->micro_batches < 1) return "a step has at least one micro-batch";
    if (s->chunks < 1) return "a rank has at least one stage";
    if (s->kind == SCHEDULE_ZBV) return s->chunks == 2 ? NULL : "zbv has two stages a rank";
    if (s->kind != SCHEDULE_INTERLEAVED && s->chunks != 1)
        return "only interleaved and zbv have several stages a rank";
    /* Stages and (stage, micro-batch) are counted in int. */
    if ((int64_t)s->ranks * s->chunks * s->micro_batches > INT32_MAX / 8)
        return "more stages and micro-batches than can be counted";
    return NULL;
}

int schedule_stages(const struct schedule_shape *s) {
    return s->ranks * s->chunks;
}

int schedule_stage(const struct schedule_shape *s, int rank, int chunk) {
    if (s->kind == SCHEDULE_ZBV && chunk == 1) return 2 * s->ranks - 1 - rank;
    return chunk * s->ranks + rank;
}

int schedule_rank_of(const struct schedule_shape *s, int stage) {
    if (s->kind == SCHEDULE_ZBV && stage >= s->ranks) return 2 * s->ranks - 1 - stage;
    return stage % s->ranks;
}

int schedule_chunk_of(const struct schedule_shape *s, int stage) {
    return stage / s->ranks;
}

int64_t schedule_cost(const struct schedule_costs *c, enum action_kind kind, int stage) {
    switch (kind) {
    case ACTION_FORWARD: return c ? c->forward[stage] : 1;
    case ACTION_BACKWARD: return c ? c->backward_input[stage] + c->backward_weight[stage] : 2;
    case ACTION_BACKWARD_INPUT: return c ? c->backward_input[stage] : 1;
    case ACTION_BACKWARD_WEIGHT: return c ? c->backward_weight[stage] : 1;
    default: return 0;
    }
}

int64_t schedule_change(const struct schedule_sizes *z, enum action_kind kind, int stage) {
    int64_t kept = z ? z->kept[stage] : 1, between = z ? z->between[stage] : 1;
    switch (kind) {
    case ACTION_FORWARD: return kept;
    case ACTION_BACKWARD: return -kept;
    case ACTION_BACKWARD_INPUT: return between - kept;
    case ACTION_BACKWARD_WEIGHT: return -between;
    default: return 0;
    }
}

int64_t schedule_rise(const struct schedule_sizes *z, enum action_kind kind, int stage) {
    if (z && action_computes(kind) && z->rise[kind]) return z->rise[kind][stage];
    int64_t change = schedule_change(z, kind, stage);
    return change > 0 ? change : 0;
}

void schedule_init(struct schedule *s, const struct schedule_shape *shape) {
    s->shape = *shape;
    s->rank = die_alloc((unsigned long)shape->ranks * sizeof *s->rank);
}

void schedule_reserve(struct schedule *s, int rank, int n) {
    struct action_list *l = &s->rank[rank];
    if (l->n + n <= l->room) return;
    l->room = l->n + n;
    l->action = die_realloc(l->action, (unsigned long)l->room * sizeof *l->action);
}

void schedule_add(struct schedule *s, int rank, struct action a) {
    struct action_list *l = &s->rank[rank];
    if (l->n == l->room) schedule_reserve(s, rank, l->room ? l->room : 64);
    l->action[l->n++] = a;
    if (a.slot >= l->slots) l->slots = a.slot + 1;
}

void schedule_free(struct schedule *s) {
    for (int r = 0; s->rank && r < s->shape.ranks; r++) free(s->rank[r].action);
    free(s->rank);
    s->rank = NULL;
}
