#include "parallel/schedule_check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/schedule_play.h"

/* What has been done with a micro-batch in a stage. */
enum {
    DONE_FORWARD = 1,
    DONE_INPUT = 2,
    DONE_WEIGHT = 4,
    HAS_ACTIVATION = 8, /* received and waited for */
    HAS_GRADIENT = 16,
    /* transfers started: 32 << (kind - ACTION_SEND_ACTIVATION) */
    STARTED = 32,
};

struct check {
    const struct schedule *s;
    const struct schedule_sizes *sizes;
    int *cell;           /* [stage][micro-batch] of the above */
    int *input, *weight; /* [stage] halves done */
    char *why;
};

/* Says what is wrong with an action of a rank; index n is the end of its list. Always -1. */
static int wrong(const struct check *c, int rank, int index, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static int wrong(const struct check *c, int rank, int index, const char *fmt, ...) {
    const struct action_list *l = &c->s->rank[rank];
    int n;
    if (index < l->n)
        n = snprintf(c->why, SCHEDULE_WHY,
                     "rank %d, action %d (%s, chunk %d, micro-batch %d): ", rank, index,
                     action_name(l->action[index].kind), l->action[index].chunk,
                     l->action[index].micro_batch);
    else n = snprintf(c->why, SCHEDULE_WHY, "rank %d, action %d (the end): ", rank, index);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->why + n, (size_t)(SCHEDULE_WHY - n), fmt, ap);
    va_end(ap);
    return -1;
}

static int *cell(const struct check *c, int stage, int micro_batch) {
    return &c->cell[(int64_t)stage * c->s->shape.micro_batches + micro_batch];
}

/* ------------------------------------------------------------------------ one action of a rank */

/* Is the activation of the stage before (or the gradient of the stage behind) on this rank? */
static bool has_input(const struct check *c, int rank, int stage, int i, bool backward) {
    int from = backward ? stage + 1 : stage - 1;
    if (from < 0 || from == schedule_stages(&c->s->shape)) return true;
    if (schedule_rank_of(&c->s->shape, from) == rank)
        return *cell(c, from, i) & (backward ? DONE_INPUT : DONE_FORWARD);
    return *cell(c, stage, i) & (backward ? HAS_GRADIENT : HAS_ACTIVATION);
}

static int check_computing(struct check *c, int rank, int index, int stage) {
    const struct action *a = &c->s->rank[rank].action[index];
    int i = a->micro_batch, *done = cell(c, stage, i);
    int does = a->kind == ACTION_FORWARD          ? DONE_FORWARD
               : a->kind == ACTION_BACKWARD       ? DONE_INPUT | DONE_WEIGHT
               : a->kind == ACTION_BACKWARD_INPUT ? DONE_INPUT
                                                  : DONE_WEIGHT;
    if (a->peer != -1 || a->slot != -1)
        return wrong(c, rank, index, "computing has no peer or slot");
    if (*done & does) return wrong(c, rank, index, "it was done before");
    if (does == DONE_FORWARD) {
        if (!has_input(c, rank, stage, i, false))
            return wrong(c, rank, index, "its input has not been received");
    } else if (does & DONE_INPUT) {
        if (!(*done & DONE_FORWARD)) return wrong(c, rank, index, "its forward comes later");
        if (!has_input(c, rank, stage, i, true))
            return wrong(c, rank, index, "the gradient of its output has not been received");
    } else if (!(*done & DONE_INPUT)) {
        return wrong(c, rank, index, "its input half comes later");
    }
    if (does & DONE_INPUT && i != c->input[stage]++)
        return wrong(
            c, rank, index,
            "the backward of micro-batch %d is due: some gradients of weights come with it",
            c->input[stage] - 1);
    if (does & DONE_WEIGHT) {
        if (i != c->weight[stage])
            return wrong(c, rank, index,
                         "the weight half of micro-batch %d is due: sums must not depend on the "
                         "schedule",
                         c->weight[stage]);
        c->weight[stage]++;
    }
    *done |= does;
    return 0;
}

/* A start or a wait: is it one that this stage has to do with this peer? */
static int check_peer(struct check *c, int rank, int index, int stage) {
    const struct action *a = &c->s->rank[rank].action[index];
    bool next = action_of_gradient(a->kind) == action_receives(a->kind);
    int peer = next ? stage + 1 : stage - 1;
    if (peer < 0 || peer == schedule_stages(&c->s->shape))
        return wrong(c, rank, index, "stage %d has no neighbour there", stage);
    if (a->peer != peer)
        return wrong(c, rank, index, "the peer is stage %d, not %d", peer, a->peer);
    if (schedule_rank_of(&c->s->shape, peer) == rank)
        return wrong(c, rank, index, "stage %d is on the same rank", peer);
    if (a->slot < 0 || a->slot >= c->s->rank[rank].slots)
        return wrong(c, rank, index, "there is no slot %d", a->slot);
    return 0;
}

static int check_start(struct check *c, int rank, int index, int stage, int *open) {
    const struct action *a = &c->s->rank[rank].action[index];
    int *done = cell(c, stage, a->micro_batch);
    int bit = STARTED << (a->kind - ACTION_SEND_ACTIVATION);
    if (*done & bit) return wrong(c, rank, index, "it was started before");
    if (a->kind == ACTION_SEND_ACTIVATION && !(*done & DONE_FORWARD))
        return wrong(c, rank, index, "the forward that makes it comes later");
    if (a->kind == ACTION_SEND_GRADIENT && !(*done & DONE_INPUT))
        return wrong(c, rank, index, "the backward that makes it comes later");
    if (open[a->slot] >= 0)
        return wrong(c, rank, index, "slot %d is taken by action %d", a->slot, open[a->slot]);
    open[a->slot] = index;
    *done |= bit;
    return 0;
}

static int check_wait(struct check *c, int rank, int index, int stage, int *open) {
    const struct action *a = &c->s->rank[rank].action[index];
    const struct action *started =
        open[a->slot] < 0 ? NULL : &c->s->rank[rank].action[open[a->slot]];
    if (!started) return wrong(c, rank, index, "nothing was started in slot %d", a->slot);
    if (started->kind + ACTION_WAIT != a->kind || started->chunk != a->chunk ||
        started->micro_batch != a->micro_batch)
        return wrong(c, rank, index, "slot %d holds action %d, which is something else", a->slot,
                     open[a->slot]);
    open[a->slot] = -1;
    if (action_receives(a->kind))
        *cell(c, stage, a->micro_batch) |=
            action_of_gradient(a->kind) ? HAS_GRADIENT : HAS_ACTIVATION;
    return 0;
}

static int check_action(struct check *c, int rank, int index, int *open) {
    const struct schedule_shape *shape = &c->s->shape;
    const struct action *a = &c->s->rank[rank].action[index];
    if ((unsigned)a->kind >= N_ACTION_KINDS)
        return wrong(c, rank, index, "there is no such action");
    if (a->chunk < 0 || a->chunk >= shape->chunks)
        return wrong(c, rank, index, "there is no such chunk");
    if (a->micro_batch < 0 || a->micro_batch >= shape->micro_batches)
        return wrong(c, rank, index, "there is no such micro-batch");
    int stage = schedule_stage(shape, rank, a->chunk);
    if (action_computes(a->kind)) return check_computing(c, rank, index, stage);
    if (check_peer(c, rank, index, stage)) return -1;
    return action_waits(a->kind) ? check_wait(c, rank, index, stage, open)
                                 : check_start(c, rank, index, stage, open);
}

/* -------------------------------------------------------------------------------- a whole list */

static int check_rank(struct check *c, int rank, struct schedule_held *held) {
    const struct action_list *l = &c->s->rank[rank];
    int *open = die_alloc((unsigned long)l->slots * sizeof *open), bad = 0;
    int64_t count = 0, bytes = 0;
    for (int i = 0; i < l->slots; i++) open[i] = -1;
    *held = (struct schedule_held){0, 0};
    for (int i = 0; i < l->n && !bad; i++) {
        bad = check_action(c, rank, i, open);
        if (bad || !action_computes(l->action[i].kind)) continue;
        int stage = schedule_stage(&c->s->shape, rank, l->action[i].chunk);
        count += schedule_change(NULL, l->action[i].kind, stage);
        bytes += schedule_change(c->sizes, l->action[i].kind, stage);
        if (count > held->most) held->most = count;
        if (bytes > held->most_bytes) held->most_bytes = bytes;
    }
    for (int i = 0; i < l->slots && !bad; i++)
        if (open[i] >= 0) bad = wrong(c, rank, open[i], "it is never waited for");
    free(open);
    return bad;
}

static int check_complete(const struct check *c, int rank) {
    const struct schedule_shape *shape = &c->s->shape;
    static const char *const missing[] = {"forward", "backward", "weight half"};
    for (int chunk = 0; chunk < shape->chunks; chunk++) {
        int stage = schedule_stage(shape, rank, chunk);
        for (int i = 0; i < shape->micro_batches; i++)
            for (int k = 0; k < 3; k++)
                if (!(*cell(c, stage, i) & DONE_FORWARD << k))
                    return wrong(c, rank, c->s->rank[rank].n,
                                 "the %s of chunk %d, micro-batch %d is missing", missing[k], chunk,
                                 i);
    }
    return 0;
}

/* ------------------------------------------------------------------------------- between ranks */

static int check_message(const struct check *c, struct message_end send,
                         struct message_end receive) {
    const struct schedule_shape *shape = &c->s->shape;
    if (receive.rank < 0) return wrong(c, send.rank, send.index, "nobody receives it");
    if (send.rank < 0) return wrong(c, receive.rank, receive.index, "nobody sends it");
    const struct action *a = &c->s->rank[send.rank].action[send.index];
    const struct action *b = &c->s->rank[receive.rank].action[receive.index];
    if (action_of_gradient(a->kind) == action_of_gradient(b->kind) &&
        a->micro_batch == b->micro_batch &&
        a->peer == schedule_stage(shape, receive.rank, b->chunk) &&
        b->peer == schedule_stage(shape, send.rank, a->chunk))
        return 0;
    return wrong(c, receive.rank, receive.index,
                 "it meets another message, action %d of rank %d (%s, chunk %d, micro-batch %d)",
                 send.index, send.rank, action_name(a->kind), a->chunk, a->micro_batch);
}

static int check_messages(const struct check *c) {
    int n = schedule_messages(c->s, NULL, NULL), bad = 0;
    struct message_end *sends = die_alloc((unsigned long)n * 2 * sizeof *sends);
    schedule_messages(c->s, sends, sends + n);
    for (int i = 0; i < n && !bad; i++) bad = check_message(c, sends[i], sends[n + i]);
    free(sends);
    return bad;
}

static int check_live(const struct check *c) {
    int P = c->s->shape.ranks, bad = 0;
    int *at = die_alloc((unsigned long)P * sizeof *at);
    if (!schedule_play(c->s, NULL, NULL, at))
        for (int r = 0; r < P && !bad; r++) {
            const struct action *a = &c->s->rank[r].action[at[r]];
            if (at[r] == c->s->rank[r].n) continue;
            int peer = schedule_rank_of(&c->s->shape, a->peer);
            bad = wrong(c, r, at[r], "it waits for ever: rank %d stands at action %d", peer,
                        at[peer]);
        }
    free(at);
    return bad;
}

int schedule_check(const struct schedule *s, const struct schedule_sizes *sizes,
                   struct schedule_held *held, char why[SCHEDULE_WHY]) {
    const char *refused = schedule_refuses(&s->shape);
    if (refused) {
        snprintf(why, SCHEDULE_WHY, "%s", refused);
        return -1;
    }
    unsigned long stages = (unsigned long)schedule_stages(&s->shape);
    struct check c = {.s = s, .sizes = sizes, .why = why};
    c.cell = die_alloc(stages * (unsigned long)s->shape.micro_batches * sizeof *c.cell);
    c.input = die_alloc(stages * sizeof *c.input);
    c.weight = die_alloc(stages * sizeof *c.weight);
    int bad = 0;
    struct schedule_held unused;
    for (int r = 0; r < s->shape.ranks && !bad; r++)
        bad = check_rank(&c, r, held ? &held[r] : &unused);
    for (int r = 0; r < s->shape.ranks && !bad; r++) bad = check_complete(&c, r);
    if (!bad) bad = check_messages(&c);
    if (!bad) bad = check_live(&c);
    free(c.cell);
    free(c.input);
    free(c.weight);
    return bad;
}
