#include "parallel/schedule_play.h"

#include <stdlib.h>

#include "kernels/die.h"

struct play {
    const struct schedule *s;
    int *at;    /* [rank] next action */
    int *first; /* [from][to] number of the pair's first message */
    int *sent;  /* [from][to] sends started, and receives started */
    int *received;
    int **slot; /* [rank][slot] message */
    char *ends; /* [message] ends started */
    schedule_visit *visit;
    void *ctx;
};

static unsigned long ints(long n) {
    return (unsigned long)n * sizeof(int);
}

/* Numbers the messages of each pair; a pair that does not match has as many as the larger side. */
static int number(const struct schedule *s, int *first, int *sent, int *received) {
    int P = s->shape.ranks, n = 0;
    for (int r = 0; r < P; r++)
        for (int i = 0; i < s->rank[r].n; i++) {
            const struct action *a = &s->rank[r].action[i];
            if (action_computes(a->kind) || action_waits(a->kind)) continue;
            int q = schedule_rank_of(&s->shape, a->peer);
            if (action_receives(a->kind)) received[q * P + r]++;
            else sent[r * P + q]++;
        }
    for (int p = 0; p < P * P; p++) {
        first[p] = n;
        n += sent[p] > received[p] ? sent[p] : received[p];
        sent[p] = received[p] = 0;
    }
    return n;
}

int schedule_messages(const struct schedule *s, struct message_end *sends,
                      struct message_end *receives) {
    int P = s->shape.ranks;
    long pairs = (long)P * P;
    int *first = die_alloc(ints(3 * pairs)), *sent = first + pairs, *received = sent + pairs;
    int n = number(s, first, sent, received);
    for (int i = 0; sends && i < n; i++) sends[i].rank = receives[i].rank = -1;
    for (int r = 0; sends && r < P; r++)
        for (int i = 0; i < s->rank[r].n; i++) {
            const struct action *a = &s->rank[r].action[i];
            if (action_computes(a->kind) || action_waits(a->kind)) continue;
            int q = schedule_rank_of(&s->shape, a->peer);
            int pair = action_receives(a->kind) ? q * P + r : r * P + q;
            if (action_receives(a->kind))
                receives[first[pair] + received[pair]++] = (struct message_end){r, i};
            else sends[first[pair] + sent[pair]++] = (struct message_end){r, i};
        }
    free(first);
    return n;
}

/* Lets one rank go as far as it can; returns whether it moved. */
static bool advance(struct play *p, int rank) {
    const struct action_list *l = &p->s->rank[rank];
    int P = p->s->shape.ranks, began = p->at[rank];
    for (; p->at[rank] < l->n; p->at[rank]++) {
        const struct action *a = &l->action[p->at[rank]];
        int message = -1;
        if (action_waits(a->kind)) {
            message = p->slot[rank][a->slot];
            if (p->ends[message] < 2) break;
        } else if (!action_computes(a->kind)) {
            int q = schedule_rank_of(&p->s->shape, a->peer);
            int pair = action_receives(a->kind) ? q * P + rank : rank * P + q;
            int *count = action_receives(a->kind) ? p->received : p->sent;
            message = p->first[pair] + count[pair]++;
            p->slot[rank][a->slot] = message;
            p->ends[message]++;
        }
        if (p->visit) p->visit(p->ctx, rank, p->at[rank], message);
    }
    return p->at[rank] > began;
}

bool schedule_play(const struct schedule *s, schedule_visit *visit, void *ctx, int *at) {
    int P = s->shape.ranks;
    long pairs = (long)P * P;
    int *table = die_alloc(ints(3 * pairs));
    struct play p = {.s = s, .visit = visit, .ctx = ctx};
    p.first = table;
    p.sent = table + pairs;
    p.received = table + 2 * pairs;
    p.at = die_alloc(ints(P));
    p.ends = die_alloc((unsigned long)number(s, p.first, p.sent, p.received));
    p.slot = die_alloc((unsigned long)P * sizeof *p.slot);
    for (int r = 0; r < P; r++) p.slot[r] = die_alloc(ints(s->rank[r].slots));

    for (bool moved = true; moved;) {
        moved = false;
        for (int r = 0; r < P; r++) moved |= advance(&p, r);
    }

    bool through = true;
    for (int r = 0; r < P; r++) {
        through &= p.at[r] == s->rank[r].n;
        if (at) at[r] = p.at[r];
        free(p.slot[r]);
    }
    free(p.slot);
    free(p.ends);
    free(p.at);
    free(table);
    return through;
}
