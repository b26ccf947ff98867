/* A schedule played by an executor of one switch, written from schedule.h alone: a model of
 * numbers, with ranks that take turns at random and messages that move when both ends are there.
 * Whatever the kind, every stage ends with the bits that one rank doing everything in order gets.
 * So it is also the second opinion on the checker: what that lets pass, must play. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "parallel/schedule_build.h"
#include "parallel/schedule_check.h"

enum { RANKS = 6, STAGES = 3 * RANKS, BATCHES = 16, OPEN = 512 };

static uint64_t seed = 3;

static uint64_t draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return seed >> 33;
}

/* Neither symmetric nor associative, and never 0, which stands for "not there". */
static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t h = (a ^ 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u + b;
    return ((h ^ h >> 29) * 0x94d049bb133111ebu) | 1;
}

struct link { /* from one rank to another; sends and receives meet in order */
    int sent, received;
    uint64_t *send[OPEN], *receive[OPEN];
};

struct machine {
    const struct schedule *s;
    uint64_t out[STAGES][BATCHES], came[STAGES][BATCHES];      /* activations */
    uint64_t gradient[STAGES][BATCHES], gave[STAGES][BATCHES]; /* of inputs, of outputs */
    uint64_t held[STAGES][BATCHES];                            /* for the weight half */
    uint64_t sum[STAGES];                                      /* gradient of the weights */
    struct link link[RANKS][RANKS];
    struct {
        struct link *link;
        int number;
    } slot[RANKS][OPEN];
    int at[RANKS];
    bool broken; /* something was used before it was there */
};

static uint64_t use(struct machine *m, uint64_t value) {
    m->broken |= value == 0;
    return value;
}

static void forward(struct machine *m, int rank, int stage, int i) {
    uint64_t x = (uint64_t)i + 1;
    if (stage > 0)
        x = schedule_rank_of(&m->s->shape, stage - 1) == rank ? m->out[stage - 1][i]
                                                              : m->came[stage][i];
    m->out[stage][i] = mix(use(m, x), (uint64_t)stage);
}

static void backward_input(struct machine *m, int rank, int stage, int i) {
    uint64_t g = m->out[stage][i];
    if (stage < schedule_stages(&m->s->shape) - 1)
        g = schedule_rank_of(&m->s->shape, stage + 1) == rank ? m->gradient[stage + 1][i]
                                                              : m->gave[stage][i];
    m->held[stage][i] = mix(use(m, g), use(m, m->out[stage][i]));
    m->gradient[stage][i] = mix(m->held[stage][i], (uint64_t)stage);
}

static void backward_weight(struct machine *m, int stage, int i) {
    m->sum[stage] = mix(m->sum[stage], use(m, m->held[stage][i]));
    m->held[stage][i] = 0;
}

static void start(struct machine *m, int rank, const struct action *a, uint64_t *value) {
    int peer = schedule_rank_of(&m->s->shape, a->peer);
    bool in = action_receives(a->kind);
    struct link *l = in ? &m->link[peer][rank] : &m->link[rank][peer];
    int number = in ? l->received++ : l->sent++;
    (in ? l->receive : l->send)[number] = value;
    m->slot[rank][a->slot].link = l;
    m->slot[rank][a->slot].number = number;
}

/* Whether the message is over; it moves when both ends are there. */
static bool over(struct machine *m, int rank, const struct action *a) {
    struct link *l = m->slot[rank][a->slot].link;
    int number = m->slot[rank][a->slot].number;
    if (number >= l->sent || number >= l->received) return false;
    *l->receive[number] = *l->send[number];
    return true;
}

/* The executor. Returns false if the rank has to wait, or is through. */
static bool step(struct machine *m, int rank) {
    const struct action_list *l = &m->s->rank[rank];
    if (m->at[rank] == l->n) return false;
    const struct action *a = &l->action[m->at[rank]];
    int stage = schedule_stage(&m->s->shape, rank, a->chunk), i = a->micro_batch;
    switch (a->kind) {
    case ACTION_FORWARD: forward(m, rank, stage, i); break;
    case ACTION_BACKWARD:
        backward_input(m, rank, stage, i);
        backward_weight(m, stage, i);
        break;
    case ACTION_BACKWARD_INPUT: backward_input(m, rank, stage, i); break;
    case ACTION_BACKWARD_WEIGHT: backward_weight(m, stage, i); break;
    case ACTION_SEND_ACTIVATION: start(m, rank, a, &m->out[stage][i]); break;
    case ACTION_RECEIVE_ACTIVATION: start(m, rank, a, &m->came[stage][i]); break;
    case ACTION_SEND_GRADIENT: start(m, rank, a, &m->gradient[stage][i]); break;
    case ACTION_RECEIVE_GRADIENT: start(m, rank, a, &m->gave[stage][i]); break;
    default:
        if (!over(m, rank, a)) return false;
    }
    m->at[rank]++;
    return true;
}

/* Ranks take turns of random length until none can move. Returns whether all are through. */
static bool play(struct machine *m, const struct schedule *s) {
    memset(m, 0, sizeof *m);
    m->s = s;
    int P = s->shape.ranks, stuck = 0;
    while (stuck < 40 * P) { /* that nobody was only unlucky in the draw is as good as certain */
        int r = (int)(draw() % (uint64_t)P), n = (int)(draw() % 9) + 1;
        bool moved = false;
        while (n-- > 0 && step(m, r)) moved = true;
        stuck = moved ? 0 : stuck + 1;
    }
    bool through = true;
    for (int r = 0; r < P; r++) through &= m->at[r] == s->rank[r].n;
    return through;
}

/* One rank, all stages, one micro-batch after the other. */
static void in_order(int stages, int batches, uint64_t *sum) {
    static struct machine m;
    struct schedule s = {.shape = {SCHEDULE_INTERLEAVED, 1, stages, batches}};
    memset(&m, 0, sizeof m);
    m.s = &s;
    for (int i = 0; i < batches; i++) {
        for (int k = 0; k < stages; k++) forward(&m, 0, k, i);
        for (int k = stages - 1; k >= 0; k--) {
            backward_input(&m, 0, k, i);
            backward_weight(&m, k, i);
        }
    }
    memcpy(sum, m.sum, (size_t)stages * sizeof *sum);
}

static bool same_bits(struct machine *m, const struct schedule *s) {
    uint64_t sum[STAGES];
    int stages = schedule_stages(&s->shape);
    in_order(stages, s->shape.micro_batches, sum);
    return play(m, s) && !m->broken && !memcmp(m->sum, sum, (size_t)stages * sizeof *sum);
}

static struct schedule draw_schedule(int round) {
    enum schedule_kind kind = round % N_SCHEDULE_KINDS;
    int v = kind == SCHEDULE_ZBV ? 2 : kind == SCHEDULE_INTERLEAVED ? 1 + (int)(draw() % 3) : 1;
    int64_t cost[3][STAGES];
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < STAGES; i++) cost[k][i] = (int64_t)(draw() % 9);
    struct schedule_costs costs = {cost[0], cost[1], cost[2], (int64_t)(draw() % 9)};
    struct schedule s;
    schedule_build(&s, &(struct schedule_wish){.shape = {kind, 1 + (int)(draw() % RANKS), v,
                                                         1 + (int)(draw() % BATCHES)},
                                               .group = (int)(draw() % 9),
                                               .costs = draw() % 2 ? &costs : NULL});
    return s;
}

static void test_executor(void **state) {
    (void)state;
    static struct machine m;
    for (int round = 0; round < 600; round++) {
        struct schedule s = draw_schedule(round);
        assert_true(same_bits(&m, &s));
        schedule_free(&s);
    }
}

static void move_action(struct action_list *l, int from, int to) {
    struct action a = l->action[from];
    for (; from < to; from++) l->action[from] = l->action[from + 1];
    for (; from > to; from--) l->action[from] = l->action[from - 1];
    l->action[to] = a;
}

/* An action of the list moves up to 12 places. */
static void move_any(struct action_list *l) {
    int from = (int)(draw() % (uint64_t)l->n), to = from + (int)(draw() % 25) - 12;
    move_action(l, from, to < 0 ? 0 : to >= l->n ? l->n - 1 : to);
}

/* A receive starts right before its wait, or a send is waited for right behind its start: what a
 * careless hand would write, and what can make ranks wait for each other. */
static void shorten(struct action_list *l) {
    int i = (int)(draw() % (uint64_t)l->n), j = i + 1;
    const struct action *a = &l->action[i];
    if (action_computes(a->kind) || action_waits(a->kind)) return;
    while (l->action[j].kind != a->kind + ACTION_WAIT || l->action[j].slot != a->slot) j++;
    if (action_receives(a->kind)) move_action(l, i, j - 1);
    else move_action(l, j, i + 1);
}

/* Many spoilt lists are schedules still, and the checker must know which. */
static void test_second_opinion(void **state) {
    (void)state;
    static struct machine m;
    int passed = 0, refused = 0, stuck = 0;
    for (int round = 0; round < 6000; round++) {
        struct schedule s = draw_schedule(round);
        bool any = draw() % 2;
        for (uint64_t n = draw() % (any ? 3 : 600) + 1; n > 0; n--) {
            struct action_list *l = &s.rank[draw() % (uint64_t)s.shape.ranks];
            if (any) move_any(l);
            else shorten(l);
        }
        char why[SCHEDULE_WHY];
        if (schedule_check(&s, NULL, NULL, why) == 0) {
            if (!same_bits(&m, &s))
                fail_msg("round %d passes the checker and does not play", round);
            passed++;
        } else {
            refused++;
            if (strstr(why, "for ever")) {
                if (play(&m, &s)) fail_msg("round %d plays, but: %s", round, why);
                stuck++;
            }
        }
        schedule_free(&s);
    }
    print_message("%d pass, %d are refused, %d of them because they stand still\n", passed, refused,
                  stuck);
    assert_true(passed > 500 && refused > 500 && stuck > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_executor),
        cmocka_unit_test(test_second_opinion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
