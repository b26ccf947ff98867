#include "parallel/schedule_transfer.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/schedule_time.h"

/* One message. Places are numbers of actions in the computing lists: `before` n means at the
 * end. */
struct message {
    struct action send, receive;
    int from, to;
    int send_behind;           /* on `from` */
    int send_wait_before;      /* on `from` */
    int receive_start_before;  /* on `to` */
    int receive_wait_before;   /* on `to` */
    int send_index;            /* where the start came to stand in the list of `from` */
    int next_start, next_wait; /* chains of messages of one place, -1 ends */
};

struct transfer {
    const struct schedule *computing;
    const struct schedule_costs *costs;
    const enum transfer_haste *haste;
    struct message *message;
    int n;
    int *place[2];                        /* [stage][micro-batch] place of the forward, backward */
    int **starts, **waits, **use, **sent; /* [rank][place] first of a chain, or message, or -1 */
    int **index;                          /* [rank][place] where the action came to stand */
};

static bool has_input_half(enum action_kind k) {
    return k == ACTION_BACKWARD || k == ACTION_BACKWARD_INPUT;
}

/* The message that an action's result goes out by; false if it stays on the rank. */
static bool message_of(const struct transfer *t, int rank, int place, struct message *m) {
    const struct schedule_shape *shape = &t->computing->shape;
    const struct action *a = &t->computing->rank[rank].action[place];
    bool backward = has_input_half(a->kind);
    if (a->kind != ACTION_FORWARD && !backward) return false;
    int stage = schedule_stage(shape, rank, a->chunk), peer = backward ? stage - 1 : stage + 1;
    if (peer < 0 || peer == schedule_stages(shape)) return false;
    int to = schedule_rank_of(shape, peer), i = a->micro_batch;
    if (to == rank) return false;
    enum action_kind send = backward ? ACTION_SEND_GRADIENT : ACTION_SEND_ACTIVATION;
    enum action_kind receive = backward ? ACTION_RECEIVE_GRADIENT : ACTION_RECEIVE_ACTIVATION;
    *m = (struct message){
        .send = {send, a->chunk, i, peer, -1},
        .receive = {receive, schedule_chunk_of(shape, peer), i, stage, -1},
        .from = rank,
        .to = to,
        .send_behind = place,
        .send_wait_before = t->computing->rank[rank].n,
        .receive_wait_before = t->place[backward][peer * shape->micro_batches + i],
    };
    return true;
}

/* Messages by sender, in the order of its sends. */
static void find_messages(struct transfer *t) {
    const struct schedule *s = t->computing;
    int n = 0, m = s->shape.micro_batches;
    for (int r = 0; r < s->shape.ranks; r++)
        for (int i = 0; i < s->rank[r].n; i++, n++) {
            const struct action *a = &s->rank[r].action[i];
            if (a->kind == ACTION_BACKWARD_WEIGHT) continue;
            int stage = schedule_stage(&s->shape, r, a->chunk);
            t->place[has_input_half(a->kind)][stage * m + a->micro_batch] = i;
        }
    t->message = die_alloc((unsigned long)n * sizeof *t->message);
    for (int r = 0; r < s->shape.ranks; r++)
        for (int i = 0; i < s->rank[r].n; i++)
            if (message_of(t, r, i, &t->message[t->n])) t->n++;
}

/* A receive holds its memory from its start on; actions of empty stages hide nothing, and without a
 * bound it would be started steps ahead. */
enum { MOST_AHEAD = 4 };

/* Far enough ahead to hide the transfer behind computing, but at least one action. */
static int ahead(const struct transfer *t, int rank, int place) {
    const struct action_list *l = &t->computing->rank[rank];
    int64_t needed = t->costs ? t->costs->transfer : 0, hidden = 0;
    int p = place;
    if (t->haste && t->haste[rank] == TRANSFER_LATE) return place;
    while (p > 0 && (p == place || (hidden < needed && place - p < MOST_AHEAD))) {
        const struct action *a = &l->action[--p];
        int stage = schedule_stage(&t->computing->shape, rank, a->chunk);
        hidden += schedule_cost(t->costs, a->kind, stage);
    }
    return p;
}

/* A receive is started no later than those that were sent behind it between the same ranks. */
static void place_receives(struct transfer *t) {
    int P = t->computing->shape.ranks;
    int *latest = die_alloc((unsigned long)P * sizeof *latest);
    for (int i = t->n - 1; i >= 0; i--) {
        struct message *m = &t->message[i];
        if (i == t->n - 1 || m[1].from != m->from)
            for (int r = 0; r < P; r++) latest[r] = t->computing->rank[r].n;
        int p = ahead(t, m->to, m->receive_wait_before);
        if (p < latest[m->to]) latest[m->to] = p;
        m->receive_start_before = latest[m->to];
    }
    free(latest);
}

static void chain(struct transfer *t) {
    for (int r = 0; r < t->computing->shape.ranks; r++)
        for (int i = 0; i <= t->computing->rank[r].n; i++)
            t->starts[r][i] = t->waits[r][i] = t->use[r][i] = t->sent[r][i] = -1;
    for (int i = t->n - 1; i >= 0; i--) {
        struct message *m = &t->message[i];
        int *start = &t->starts[m->to][m->receive_start_before];
        int *wait = &t->waits[m->from][m->send_wait_before];
        m->next_start = *start;
        m->next_wait = *wait;
        *start = *wait = i;
        t->use[m->to][m->receive_wait_before] = i;
        t->sent[m->from][m->send_behind] = i;
    }
}

/* --------------------------------------------------------------------------- writing the lists */

struct slots {
    int n, room, low; /* low: those below are used */
    char *used;
};

static int take_slot(struct slots *s) {
    int i = s->low;
    while (i < s->n && s->used[i]) i++;
    if (i == s->n) {
        if (s->n == s->room) {
            s->room = s->room ? 2 * s->room : 16;
            s->used = die_realloc(s->used, (unsigned long)s->room);
        }
        s->n++;
    }
    s->used[i] = 1;
    s->low = i + 1;
    return i;
}

static void start(struct schedule *out, int rank, struct slots *s, struct action *a) {
    a->slot = take_slot(s);
    schedule_add(out, rank, *a);
}

static void wait(struct schedule *out, int rank, struct slots *s, struct action a) {
    a.kind += ACTION_WAIT;
    s->used[a.slot] = 0;
    if (a.slot < s->low) s->low = a.slot;
    schedule_add(out, rank, a);
}

static void write_lists(struct transfer *t, struct schedule *out) {
    struct message *m = t->message;
    chain(t);
    for (int r = 0; r < t->computing->shape.ranks; r++) {
        const struct action_list *l = &t->computing->rank[r];
        struct slots slots = {0};
        schedule_reserve(out, r, 5 * l->n); /* each sends and receives once at most */
        for (int i = 0; i <= l->n; i++) {
            for (int k = t->starts[r][i]; k >= 0; k = m[k].next_start)
                start(out, r, &slots, &m[k].receive);
            for (int k = t->waits[r][i]; k >= 0; k = m[k].next_wait)
                wait(out, r, &slots, m[k].send);
            if (i == l->n) break;
            if (t->use[r][i] >= 0) wait(out, r, &slots, m[t->use[r][i]].receive);
            t->index[r][i] = out->rank[r].n;
            schedule_add(out, r, l->action[i]);
            if (t->sent[r][i] < 0) continue;
            m[t->sent[r][i]].send_index = out->rank[r].n;
            start(out, r, &slots, &m[t->sent[r][i]].send);
        }
        free(slots.used);
    }
}

/* The first place on the rank whose action starts at `time` or later. */
static int place_from(const struct transfer *t, const struct schedule_times *times, int rank,
                      int64_t time) {
    int low = 0, high = t->computing->rank[rank].n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (times->rank[rank][t->index[rank][middle]].start >= time) high = middle;
        else low = middle + 1;
    }
    return low;
}

static void place_send_waits(struct transfer *t, const struct schedule *s) {
    const struct schedule_shape *shape = &s->shape;
    struct schedule_times times;
    schedule_time(&times, s, t->costs, NULL);
    for (struct message *m = t->message; m < t->message + t->n; m++) {
        int n = t->computing->rank[m->from].n;
        int p = place_from(t, &times, m->from, times.rank[m->from][m->send_index].end);
        p = (p > m->send_behind ? p : m->send_behind + 1) + !(t->haste && t->haste[m->from]);
        if (m->send.kind == ACTION_SEND_ACTIVATION) {
            /* The backward frees what the forward made; the message was over long before. */
            int stage = schedule_stage(shape, m->from, m->send.chunk);
            int own = t->place[1][stage * shape->micro_batches + m->send.micro_batch];
            if (p > own) p = own;
        }
        m->send_wait_before = p < n ? p : n;
    }
    schedule_times_free(&times);
}

static int **tables(const struct schedule *s) {
    int **t = die_alloc((unsigned long)s->shape.ranks * sizeof *t);
    for (int r = 0; r < s->shape.ranks; r++)
        t[r] = die_alloc(((unsigned long)s->rank[r].n + 1) * sizeof **t);
    return t;
}

static void tables_free(int **t, int ranks) {
    for (int r = 0; r < ranks; r++) free(t[r]);
    free(t);
}

void schedule_transfer(struct schedule *out, const struct schedule *computing,
                       const struct schedule_costs *costs, const enum transfer_haste *haste) {
    const struct schedule_shape *shape = &computing->shape;
    unsigned long cells =
        (unsigned long)schedule_stages(shape) * (unsigned long)shape->micro_batches;
    struct transfer t = {.computing = computing, .costs = costs, .haste = haste};
    t.place[0] = die_alloc(2 * cells * sizeof *t.place[0]);
    t.place[1] = t.place[0] + cells;
    int ***all[] = {&t.starts, &t.waits, &t.use, &t.sent, &t.index};
    for (int i = 0; i < 5; i++) *all[i] = tables(computing);
    find_messages(&t);
    place_receives(&t);

    struct schedule draft;
    schedule_init(&draft, shape);
    write_lists(&t, &draft);
    place_send_waits(&t, &draft);
    schedule_free(&draft);
    write_lists(&t, out);

    for (int i = 0; i < 5; i++) tables_free(*all[i], shape->ranks);
    free(t.message);
    free(t.place[0]);
}
