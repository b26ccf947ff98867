#include "parallel/schedule_time.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/schedule_play.h"

struct message {
    int64_t ready;             /* when its later end was started */
    int64_t over;              /* when it had moved */
    struct action_time *other; /* of the end started first */
};

struct timing {
    struct schedule_times *t;
    const struct schedule *s;
    const struct schedule_costs *costs;
    const struct schedule_sizes *sizes;
    int64_t *clock, *held, *busy; /* [ranks] */
    int64_t *link;                /* [from][to] when the last message was over */
    struct message *message;
};

static int64_t later(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* One end of a message is started; with the second it moves. */
static void start_message(struct timing *g, int rank, const struct action *a, struct message *m,
                          struct action_time *at) {
    int P = g->s->shape.ranks, q = schedule_rank_of(&g->s->shape, a->peer);
    int64_t *link = &g->link[action_receives(a->kind) ? q * P + rank : rank * P + q];
    m->ready = later(m->ready, at->start);
    if (!m->other) {
        m->other = at;
        return;
    }
    m->over = later(m->ready, *link) + (g->costs ? g->costs->transfer : 0);
    *link = at->end = m->other->end = m->over;
}

static void visit(void *ctx, int rank, int index, int message) {
    struct timing *g = ctx;
    const struct action *a = &g->s->rank[rank].action[index];
    struct action_time *at = &g->t->rank[rank][index];
    int stage = schedule_stage(&g->s->shape, rank, a->chunk);
    at->start = at->end = g->clock[rank];
    if (action_computes(a->kind)) {
        int64_t cost = schedule_cost(g->costs, a->kind, stage);
        g->clock[rank] = at->end = at->start + cost;
        g->busy[rank] += cost;
        g->held[rank] += schedule_change(g->sizes, a->kind, stage);
        g->t->most_held[rank] = later(g->t->most_held[rank], g->held[rank]);
        g->t->length = later(g->t->length, at->end);
    } else if (action_waits(a->kind)) {
        g->clock[rank] = at->end = later(at->start, g->message[message].over);
        g->t->length = later(g->t->length, at->end);
    } else {
        start_message(g, rank, a, &g->message[message], at);
    }
    at->held = g->held[rank];
}

void schedule_time(struct schedule_times *t, const struct schedule *s,
                   const struct schedule_costs *costs, const struct schedule_sizes *sizes) {
    unsigned long P = (unsigned long)s->shape.ranks;
    *t = (struct schedule_times){.ranks = s->shape.ranks};
    t->idle_of = die_alloc(P * sizeof *t->idle_of);
    t->most_held = die_alloc(P * sizeof *t->most_held);
    t->rank = die_alloc(P * sizeof *t->rank);
    for (unsigned long r = 0; r < P; r++)
        t->rank[r] = die_alloc((unsigned long)s->rank[r].n * sizeof *t->rank[r]);

    struct timing g = {.t = t, .s = s, .costs = costs, .sizes = sizes};
    g.clock = die_alloc((3 + P) * P * sizeof *g.clock);
    g.held = g.clock + P;
    g.busy = g.held + P;
    g.link = g.busy + P;
    g.message = die_alloc((unsigned long)schedule_messages(s, NULL, NULL) * sizeof *g.message);
    if (!schedule_play(s, visit, &g, NULL)) bug("a schedule that waits for itself was timed");

    double busy = 0;
    for (unsigned long r = 0; r < P; r++) {
        busy += (double)g.busy[r];
        t->idle_of[r] = t->length ? 1 - (double)g.busy[r] / (double)t->length : 0;
    }
    t->idle = t->length ? 1 - busy / ((double)t->length * (double)P) : 0;
    free(g.clock);
    free(g.message);
}

void schedule_times_free(struct schedule_times *t) {
    for (int r = 0; t->rank && r < t->ranks; r++) free(t->rank[r]);
    free(t->rank);
    free(t->idle_of);
    free(t->most_held);
    *t = (struct schedule_times){0};
}
