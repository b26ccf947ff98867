/* schedule.h and its family: every kind on up to 16 ranks and 64 micro-batches is proven, planted
 * faults are caught, and idle shares and peaks are what the papers say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "parallel/schedule_build.h"
#include "parallel/schedule_check.h"
#include "parallel/schedule_picture.h"
#include "parallel/schedule_time.h"

enum { RANKS = 16, STAGES = 4 * RANKS };

static struct schedule build(enum schedule_kind kind, int ranks, int chunks, int micro_batches) {
    struct schedule s;
    schedule_build(&s, &(struct schedule_wish){.shape = {kind, ranks, chunks, micro_batches}});
    return s;
}

/* Fails with what the checker says. Returns the most that any rank holds. */
static int64_t prove(const struct schedule *s, int group) {
    char why[SCHEDULE_WHY];
    struct schedule_held held[RANKS];
    int64_t most = 0;
    if (schedule_check(s, NULL, held, why))
        fail_msg("%s, %d ranks, %d chunks, %d micro-batches, groups of %d: %s",
                 schedule_kind_name(s->shape.kind), s->shape.ranks, s->shape.chunks,
                 s->shape.micro_batches, group, why);
    for (int r = 0; r < s->shape.ranks; r++)
        if (held[r].most > most) most = held[r].most;
    return most;
}

static double idle(const struct schedule *s) {
    struct schedule_times t;
    schedule_time(&t, s, NULL, NULL);
    double share = t.idle;
    schedule_times_free(&t);
    return share;
}

static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* ----------------------------------------------------------------------------------- the stages */

static void test_stages(void **state) {
    (void)state;
    for (int kind = 0; kind < N_SCHEDULE_KINDS; kind++)
        for (int P = 1; P <= RANKS; P++)
            for (int v = 1; v <= 4; v++) {
                struct schedule_shape s = {kind, P, v, 1};
                if (schedule_refuses(&s)) continue;
                int seen[STAGES] = {0};
                for (int r = 0; r < P; r++)
                    for (int c = 0; c < v; c++) {
                        int stage = schedule_stage(&s, r, c);
                        int want = kind == SCHEDULE_ZBV && c ? 2 * P - 1 - r : c * P + r;
                        assert_int_equal(stage, want);
                        assert_int_equal(schedule_rank_of(&s, stage), r);
                        assert_int_equal(schedule_chunk_of(&s, stage), c);
                        assert_int_equal(seen[stage]++, 0);
                    }
                assert_int_equal(schedule_stages(&s), P * v);
            }
    assert_non_null(schedule_refuses(&(struct schedule_shape){SCHEDULE_ZBV, 4, 1, 4}));
    assert_non_null(schedule_refuses(&(struct schedule_shape){SCHEDULE_1F1B, 4, 2, 4}));
    assert_non_null(schedule_refuses(&(struct schedule_shape){SCHEDULE_ZERO_BUBBLE, 4, 1, 0}));
    assert_non_null(schedule_refuses(&(struct schedule_shape){SCHEDULE_INTERLEAVED, 0, 1, 1}));
    assert_non_null(schedule_refuses(
        &(struct schedule_shape){SCHEDULE_INTERLEAVED, 1 << 15, 1 << 15, 1 << 15}));
    assert_non_null(schedule_refuses(&(struct schedule_shape){N_SCHEDULE_KINDS, 1, 1, 1}));
}

/* ------------------------------------------------------------------------ all of them are right */

/* All up to 16, then every few; each with LONG=1. */
static int next_m(int m) {
    return getenv("LONG") || m < 16 || m >= 62 ? m + 1 : m + 1 + m / 16;
}

static void prove_kind(enum schedule_kind kind, int chunks) {
    for (int P = 1; P <= RANKS; P++)
        for (int m = 1; m <= 64; m = next_m(m)) {
            struct schedule s = build(kind, P, chunks, m);
            int64_t most = prove(&s, 0);
            /* 1f1b's peak, in units of a chunk. Interleaved holds more: with groups of P, rank 0's
             * warm-up and one. */
            if (kind != SCHEDULE_INTERLEAVED) assert_true(most <= chunks * smaller(P, m));
            int warm = (chunks > 1 ? 2 : 1) * (P - 1) + (chunks - 1) * P;
            if (kind == SCHEDULE_INTERLEAVED && m % P == 0)
                assert_int_equal(most, smaller(warm + 1, chunks * m));
            /* The published idle shares, for any number of micro-batches from P up. */
            if (kind == SCHEDULE_1F1B || (kind == SCHEDULE_INTERLEAVED && m >= P))
                assert_true(fabs(idle(&s) - (P - 1.0) / (chunks * m + P - 1.0)) < 1e-12);
            schedule_free(&s);
        }
}

static void test_1f1b(void **state) {
    (void)state;
    prove_kind(SCHEDULE_1F1B, 1);
}

static void test_interleaved(void **state) {
    (void)state;
    for (int v = 1; v <= 4; v++) prove_kind(SCHEDULE_INTERLEAVED, v);
}

static void test_zero_bubble(void **state) {
    (void)state;
    prove_kind(SCHEDULE_ZERO_BUBBLE, 1);
}

static void test_zbv(void **state) {
    (void)state;
    prove_kind(SCHEDULE_ZBV, 2);
}

/* Group sizes that published plans refuse: smaller than the pipeline, with any rest. */
static void test_groups(void **state) {
    (void)state;
    for (int P = 1; P <= 6; P++)
        for (int v = 2; v <= 3; v++)
            for (int m = 1; m <= 14; m++)
                for (int group = 1; group <= 2 * P + 1; group++) {
                    struct schedule s;
                    schedule_build(&s,
                                   &(struct schedule_wish){.shape = {SCHEDULE_INTERLEAVED, P, v, m},
                                                           .group = group});
                    prove(&s, group);
                    schedule_free(&s);
                }
}

/* Costs, even senseless ones, move actions about and break nothing; equal wishes give equal lists.
 */
static void test_costs(void **state) {
    (void)state;
    uint64_t seed = 7;
    for (int round = 0; round < 1500; round++) {
        int64_t cost[5][STAGES];
        int kind = round % N_SCHEDULE_KINDS, P = 1 + round / 4 % 8, m = 1 + round / 32 % 17;
        int v = kind == SCHEDULE_ZBV ? 2 : kind == SCHEDULE_INTERLEAVED ? 1 + round % 3 : 1;
        for (int k = 0; k < 5; k++)
            for (int i = 0; i < STAGES; i++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                cost[k][i] = (int64_t)(seed >> 33) % 20;
            }
        struct schedule_costs costs = {cost[0], cost[1], cost[2], round % 7 * 3};
        struct schedule_sizes sizes = {.kept = cost[3], .between = cost[4]};
        struct schedule_wish wish = {.shape = {kind, P, v, m}, .costs = &costs, .sizes = &sizes};
        struct schedule s, again;
        schedule_build(&s, &wish);
        schedule_build(&again, &wish);
        prove(&s, 0);

        struct schedule_times t;
        struct schedule_held held[RANKS];
        char why[SCHEDULE_WHY];
        assert_int_equal(schedule_check(&s, &sizes, held, why), 0);
        schedule_time(&t, &s, &costs, &sizes);
        for (int r = 0; r < P; r++) {
            assert_int_equal(s.rank[r].n, again.rank[r].n);
            assert_memory_equal(s.rank[r].action, again.rank[r].action,
                                (size_t)s.rank[r].n * sizeof(struct action));
            assert_int_equal(t.most_held[r], held[r].most_bytes);
            assert_true(t.idle_of[r] >= 0 && t.idle_of[r] <= 1);
            int64_t now = 0;
            for (int i = 0; i < s.rank[r].n; i++) {
                const struct action_time *at = &t.rank[r][i];
                enum action_kind k = s.rank[r].action[i].kind;
                assert_true(at->start == now && at->end >= now && at->end <= t.length);
                if (action_computes(k) || action_waits(k)) now = at->end;
            }
        }
        schedule_times_free(&t);
        schedule_free(&s);
        schedule_free(&again);
    }
}

/* ---------------------------------------------------------------------------------- the numbers */

/* 1f1b holds less on each further rank. */
static void test_held(void **state) {
    (void)state;
    for (int P = 1; P <= RANKS; P += 3)
        for (int m = 1; m <= 40; m += 3) {
            struct schedule s = build(SCHEDULE_1F1B, P, 1, m);
            char why[SCHEDULE_WHY];
            struct schedule_held held[RANKS];
            assert_int_equal(schedule_check(&s, NULL, held, why), 0);
            for (int r = 0; r < P; r++) assert_int_equal(held[r].most, smaller(P - r, m));
            schedule_free(&s);
        }
}

/* Equal costs: a step of ZB-H1 is 3m + P-1 long (1f1b: 3m + 3(P-1)), one of zbv 6m + P-1 half
 * stages. These are the lengths of the papers with an update that waits for all ranks. */
static void test_bubbles(void **state) {
    (void)state;
    for (int P = 2; P <= RANKS; P++)
        for (int m = 2 * P; m <= 4 * P; m += P / 2) {
            struct schedule plain = build(SCHEDULE_1F1B, P, 1, m);
            struct schedule zero = build(SCHEDULE_ZERO_BUBBLE, P, 1, m);
            struct schedule zbv = build(SCHEDULE_ZBV, P, 2, m);
            double of_plain = idle(&plain), of_zero = idle(&zero), of_zbv = idle(&zbv);
            assert_true(of_zero <= 0.45 * of_plain);
            assert_true(of_zbv <= 0.3 * of_plain);
            assert_true(fabs(of_zero - (P - 1.0) / (3.0 * m + P - 1)) < 1e-12);
            assert_true(fabs(of_zbv - (P - 1.0) / (6.0 * m + P - 1)) < 1e-12);
            assert_int_equal(prove(&zero, 0), prove(&plain, 0));
            assert_int_equal(prove(&zbv, 0), 2 * prove(&plain, 0));
            schedule_free(&plain);
            schedule_free(&zero);
            schedule_free(&zbv);
        }
}

/* ZB-H1's bubble is (P-1)(F + B - W) for any costs with W <= F, B (Qi et al. 2023). */
static void test_unequal(void **state) {
    (void)state;
    static const int of[][3] = {{20, 20, 20}, {20, 20, 12}, {20, 28, 20}, {25, 30, 15}};
    for (int k = 0; k < 4; k++)
        for (int P = 2; P <= 8; P++) {
            int64_t cost[3][8];
            int F = of[k][0], B = of[k][1], W = of[k][2], m = 3 * P;
            for (int i = 0; i < 8; i++) cost[0][i] = F, cost[1][i] = B, cost[2][i] = W;
            struct schedule_costs costs = {cost[0], cost[1], cost[2], 0};
            struct schedule_wish wish = {.shape = {SCHEDULE_ZERO_BUBBLE, P, 1, m}, .costs = &costs};
            struct schedule s;
            struct schedule_times t;
            schedule_build(&s, &wish);
            schedule_time(&t, &s, &costs, NULL);
            assert_int_equal(t.length, m * (F + B + W) + (P - 1) * (F + B - W));
            schedule_times_free(&t);
            schedule_free(&s);
        }
}

/* ------------------------------------------------------------------------------- planted faults */

static bool caught(const struct schedule *s, const char *says) {
    char why[SCHEDULE_WHY] = "nothing";
    bool bad = schedule_check(s, NULL, NULL, why) != 0;
    if (bad && (!says || strstr(why, says))) return true;
    print_message("expected \"%s\", got \"%s\"\n", says ? says : "anything", why);
    return false;
}

static void remove_action(struct schedule *s, int rank, int i) {
    struct action_list *l = &s->rank[rank];
    l->n--;
    memmove(&l->action[i], &l->action[i + 1], (size_t)(l->n - i) * sizeof *l->action);
}

static void move_action(struct schedule *s, int rank, int from, int to) {
    struct action a = s->rank[rank].action[from];
    remove_action(s, rank, from);
    struct action_list *l = &s->rank[rank];
    memmove(&l->action[to + 1], &l->action[to], (size_t)(l->n - to) * sizeof *l->action);
    l->action[to] = a;
    l->n++;
}

static int find(const struct schedule *s, int rank, enum action_kind kind, int micro_batch) {
    for (int i = 0; i < s->rank[rank].n; i++)
        if (s->rank[rank].action[i].kind == kind &&
            s->rank[rank].action[i].micro_batch == micro_batch)
            return i;
    fail_msg("rank %d has no %s of %d", rank, action_name(kind), micro_batch);
    return -1;
}

/* Every action of a schedule, dropped, done twice, or changed in one word. */
static void test_every_action(void **state) {
    (void)state;
    static const struct schedule_shape shapes[] = {{SCHEDULE_1F1B, 3, 1, 4},
                                                   {SCHEDULE_INTERLEAVED, 2, 2, 3},
                                                   {SCHEDULE_ZERO_BUBBLE, 3, 1, 4},
                                                   {SCHEDULE_ZBV, 3, 2, 4}};
    for (int k = 0; k < 4; k++) {
        struct schedule whole;
        schedule_build(&whole, &(struct schedule_wish){.shape = shapes[k]});
        for (int r = 0; r < shapes[k].ranks; r++)
            for (int i = 0; i < whole.rank[r].n; i++)
                for (int fault = 0; fault < 9; fault++) {
                    struct schedule s;
                    schedule_build(&s, &(struct schedule_wish){.shape = shapes[k]});
                    struct action *a = &s.rank[r].action[i];
                    switch (fault) {
                    case 0: remove_action(&s, r, i); break;
                    case 1:
                        schedule_add(&s, r, *a);
                        move_action(&s, r, s.rank[r].n - 1, i);
                        break;
                    case 2: schedule_add(&s, r, *a); break;
                    case 3: a->micro_batch = (a->micro_batch + 1) % shapes[k].micro_batches; break;
                    case 4: a->micro_batch = -1; break;
                    case 5: a->peer = a->peer == 0 ? 1 : 0; break;
                    case 6: a->chunk = a->chunk + 1; break;
                    case 7: a->slot = a->slot < 0 ? 0 : s.rank[r].slots; break;
                    default: a->kind = (a->kind + 1) % N_ACTION_KINDS;
                    }
                    if (fault == 5 && a->peer == whole.rank[r].action[i].peer) fail();
                    if (!caught(&s, "rank ")) fail_msg("fault %d, rank %d, action %d", fault, r, i);
                    schedule_free(&s);
                }
        schedule_free(&whole);
    }
}

static void test_faults(void **state) {
    (void)state;
    char why[SCHEDULE_WHY];
    struct schedule s = build(SCHEDULE_1F1B, 3, 1, 4);
    remove_action(&s, 1, find(&s, 1, ACTION_BACKWARD, 3));
    assert_true(caught(&s, "rank 1, action "));
    assert_true(caught(&s, "the backward that makes it comes later"));
    schedule_free(&s);

    s = build(SCHEDULE_1F1B, 1, 1, 4);
    remove_action(&s, 0, s.rank[0].n - 1);
    assert_int_equal(schedule_check(&s, NULL, NULL, why), -1);
    assert_string_equal(
        why, "rank 0, action 7 (the end): the backward of chunk 0, micro-batch 3 is missing");
    schedule_free(&s);

    s = build(SCHEDULE_1F1B, 3, 1, 4); /* a forward before its input */
    move_action(&s, 1, find(&s, 1, ACTION_FORWARD, 0),
                find(&s, 1, ACTION_WAIT_RECEIVE_ACTIVATION, 0));
    assert_true(caught(&s, "(forward, chunk 0, micro-batch 0): its input has not been received"));
    schedule_free(&s);

    s = build(SCHEDULE_1F1B, 3, 1, 4); /* a backward before its forward */
    move_action(&s, 2, find(&s, 2, ACTION_BACKWARD, 0), find(&s, 2, ACTION_FORWARD, 0));
    assert_true(caught(&s, "its forward comes later"));
    schedule_free(&s);

    s = build(SCHEDULE_1F1B, 3, 1, 4); /* two receives change places, their waits stay */
    int a = find(&s, 1, ACTION_RECEIVE_ACTIVATION, 0);
    int b = find(&s, 1, ACTION_RECEIVE_ACTIVATION, 1);
    struct action kept = s.rank[1].action[a];
    s.rank[1].action[a] = s.rank[1].action[b];
    s.rank[1].action[b] = kept;
    assert_true(caught(&s,
                       "it meets another message, action 1 of rank 0 (send activation, chunk 0, "
                       "micro-batch 0)"));
    schedule_free(&s);

    s = build(SCHEDULE_1F1B, 3, 1, 4); /* a send twice */
    a = find(&s, 0, ACTION_SEND_ACTIVATION, 2);
    kept = s.rank[0].action[a];
    kept.slot = s.rank[0].slots;
    schedule_add(&s, 0, kept);
    assert_true(caught(&s, "it was started before"));
    schedule_free(&s);

    s = build(SCHEDULE_INTERLEAVED, 4, 2, 4); /* to another neighbour */
    s.rank[1].action[find(&s, 1, ACTION_SEND_ACTIVATION, 2)].peer = 3;
    assert_true(caught(&s, "the peer is stage 2, not 3"));
    schedule_free(&s);

    s = build(SCHEDULE_ZBV, 3, 2, 4); /* to itself */
    schedule_add(&s, 2, (struct action){ACTION_SEND_ACTIVATION, 0, 0, 3, 0});
    assert_true(caught(&s, "stage 3 is on the same rank"));
    s.rank[2].action[3].kind = N_ACTION_KINDS;
    assert_true(caught(&s, "there is no such action"));
    s.shape.chunks = 1;
    assert_true(caught(&s, "zbv has two stages a rank"));
    schedule_free(&s);

    s = build(SCHEDULE_ZERO_BUBBLE, 4, 1, 8); /* weight halves in another order */
    a = find(&s, 3, ACTION_BACKWARD_WEIGHT, 5);
    b = find(&s, 3, ACTION_BACKWARD_WEIGHT, 6);
    s.rank[3].action[a].micro_batch = 6;
    s.rank[3].action[b].micro_batch = 5;
    assert_true(caught(&s, "the weight half of micro-batch 5 is due"));
    schedule_free(&s);

    s = build(SCHEDULE_ZERO_BUBBLE, 4, 1, 8); /* a weight half before its input half */
    move_action(&s, 3, find(&s, 3, ACTION_BACKWARD_WEIGHT, 0),
                find(&s, 3, ACTION_BACKWARD_INPUT, 0));
    assert_true(caught(&s, "its input half comes later"));
    schedule_free(&s);
}

/* Lists without a word of communication, and what each is made of. */
static void compute(struct schedule *s, int rank, enum action_kind kind, int i) {
    schedule_add(s, rank, (struct action){kind, 0, i, -1, -1});
}

static void transfer(struct schedule *s, int rank, enum action_kind kind, int i, int slot) {
    schedule_add(s, rank, (struct action){kind, 0, i, 1 - rank, slot});
}

/* Two ranks, two micro-batches. eager: rank 0 starts to receive a gradient before it waits for the
 * activation it sent; if it does not, both wait for a send whose receive comes later. */
static struct schedule two_ranks(bool eager) {
    struct schedule s;
    schedule_init(&s, &(struct schedule_shape){SCHEDULE_1F1B, 2, 1, 2});
    for (int i = 0; i < 2; i++) {
        compute(&s, 0, ACTION_FORWARD, i);
        transfer(&s, 0, ACTION_SEND_ACTIVATION, i, i);
    }
    if (eager) transfer(&s, 0, ACTION_RECEIVE_GRADIENT, 0, 2);
    transfer(&s, 0, ACTION_WAIT_SEND_ACTIVATION, 0, 0);
    transfer(&s, 0, ACTION_WAIT_SEND_ACTIVATION, 1, 1);
    if (!eager) transfer(&s, 0, ACTION_RECEIVE_GRADIENT, 0, 2);
    for (int i = 0; i < 2; i++) {
        if (i == 1) transfer(&s, 0, ACTION_RECEIVE_GRADIENT, 1, 2);
        transfer(&s, 0, ACTION_WAIT_RECEIVE_GRADIENT, i, 2);
        compute(&s, 0, ACTION_BACKWARD, i);

        transfer(&s, 1, ACTION_RECEIVE_ACTIVATION, i, 0);
        transfer(&s, 1, ACTION_WAIT_RECEIVE_ACTIVATION, i, 0);
        compute(&s, 1, ACTION_FORWARD, i);
        compute(&s, 1, ACTION_BACKWARD, i);
        transfer(&s, 1, ACTION_SEND_GRADIENT, i, 0);
        transfer(&s, 1, ACTION_WAIT_SEND_GRADIENT, i, 0);
    }
    return s;
}

static void test_deadlocks(void **state) {
    (void)state;
    char why[SCHEDULE_WHY];
    struct schedule s = two_ranks(true);
    prove(&s, 0);
    schedule_free(&s);
    s = two_ranks(false);
    assert_int_equal(schedule_check(&s, NULL, NULL, why), -1);
    assert_string_equal(why, "rank 0, action 5 (wait send activation, chunk 0, micro-batch 1): it "
                             "waits for ever: rank 1 stands at action 5");
    schedule_free(&s);

    /* Rank 1 wants both forwards first, rank 0 a backward after each. */
    schedule_init(&s, &(struct schedule_shape){SCHEDULE_1F1B, 2, 1, 2});
    for (int i = 0; i < 2; i++) {
        compute(&s, 0, ACTION_FORWARD, i);
        transfer(&s, 0, ACTION_SEND_ACTIVATION, i, 0);
        transfer(&s, 0, ACTION_RECEIVE_GRADIENT, i, 1);
        transfer(&s, 0, ACTION_WAIT_RECEIVE_GRADIENT, i, 1);
        compute(&s, 0, ACTION_BACKWARD, i);
        transfer(&s, 0, ACTION_WAIT_SEND_ACTIVATION, i, 0);
        transfer(&s, 1, ACTION_RECEIVE_ACTIVATION, i, i);
    }
    for (int i = 0; i < 2; i++) {
        transfer(&s, 1, ACTION_WAIT_RECEIVE_ACTIVATION, i, i);
        compute(&s, 1, ACTION_FORWARD, i);
    }
    for (int i = 0; i < 2; i++) {
        compute(&s, 1, ACTION_BACKWARD, i);
        transfer(&s, 1, ACTION_SEND_GRADIENT, i, i);
    }
    for (int i = 0; i < 2; i++) transfer(&s, 1, ACTION_WAIT_SEND_GRADIENT, i, i);
    assert_true(caught(&s, "rank 0, action 3 (wait receive gradient, chunk 0, micro-batch 0): it "
                           "waits for ever: rank 1 stands at action 4"));
    schedule_free(&s);
}

/* ----------------------------------------------------------------------------- time and picture */

static void test_time(void **state) {
    (void)state;
    struct schedule s = build(SCHEDULE_1F1B, 2, 1, 2);
    int64_t forward[] = {10, 20}, input[] = {5, 15}, weight[] = {5, 15};
    int64_t kept[] = {100, 200}, between[] = {1, 2};
    struct schedule_costs costs = {forward, input, weight, 3};
    struct schedule_sizes sizes = {.kept = kept, .between = between};
    struct schedule_times t;
    schedule_time(&t, &s, &costs, &sizes);
    /* 10, a transfer, rank 1 without a gap, a transfer, the last backward. */
    assert_int_equal(t.length, 10 + 3 + 2 * 50 + 3 + 10);
    assert_true(fabs(t.idle_of[1] - (1 - 100.0 / 126)) < 1e-12);
    assert_true(fabs(t.idle - (1 - 140.0 / 252)) < 1e-12);
    assert_true(t.most_held[0] == 200 && t.most_held[1] == 200);
    schedule_times_free(&t);
    schedule_free(&s);

    /* Held in between halves, and no more than the plain schedule's most burdened rank. */
    int64_t one[] = {1, 1, 1, 1}, large[] = {6, 6, 6, 6}, some[] = {2, 2, 2, 2};
    sizes = (struct schedule_sizes){.kept = large, .between = some};
    costs = (struct schedule_costs){one, one, one, 0};
    schedule_build(&s, &(struct schedule_wish){.shape = {SCHEDULE_ZERO_BUBBLE, 4, 1, 8},
                                               .costs = &costs,
                                               .sizes = &sizes});
    schedule_time(&t, &s, &costs, &sizes);
    assert_int_equal(t.length, 3 * 8 + 3);
    for (int r = 0; r < 4; r++) assert_true(t.most_held[r] <= 4 * 6);
    schedule_times_free(&t);
    schedule_free(&s);
}

static void test_picture(void **state) {
    (void)state;
    static const char want[] =
        "rank 0 |ABCD...aaEbbFccGddHeeffgghh| idle 11.1 %\n"
        "rank 1 |.ABC..aDb0Ec1Fd2Ge3Hf4g5h67| idle 11.1 %\n"
        "rank 2 |..AB.aCbDc0Ed1Fe2Gf3Hg4h567| idle 11.1 %\n"
        "rank 3 |...AaBbCcDd0Ee1Ff2Gg3Hh4567| idle 11.1 %\n"
        "zero-bubble: length 27, idle 11.1 %, at most 4 held; A forward, a backward, 0 its weight "
        "half\n";
    struct schedule s = build(SCHEDULE_ZERO_BUBBLE, 4, 1, 8);
    struct schedule_times t;
    char *text = NULL;
    size_t size;
    schedule_time(&t, &s, NULL, NULL);
    FILE *f = open_memstream(&text, &size);
    schedule_picture(f, &s, &t, 80);
    fclose(f);
    assert_string_equal(text, want);
    free(text);

    f = open_memstream(&text, &size);
    schedule_picture(f, &s, &t, 9); /* three ticks a column */
    fclose(f);
    assert_memory_equal(text, "rank 0 |B.abcdefh|", 18);
    free(text);

    f = open_memstream(&text, &size);
    schedule_write_trace(f, &s, &t, 2.5);
    fclose(f);
    json_t *trace = json_loads(text, 0, NULL), *events = json_object_get(trace, "traceEvents");
    double busy = 0;
    for (size_t i = 0; i < json_array_size(events); i++) {
        json_t *e = json_array_get(events, i);
        const char *name = json_string_value(json_object_get(e, "name"));
        if (!strncmp(name, "forward", 7) || !strncmp(name, "backward", 8))
            busy += json_number_value(json_object_get(e, "dur"));
    }
    assert_true(fabs(busy - 2.5 * 4 * 24) < 1e-9);
    json_decref(trace);
    free(text);
    schedule_times_free(&t);
    schedule_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stages),       cmocka_unit_test(test_1f1b),
        cmocka_unit_test(test_interleaved),  cmocka_unit_test(test_zero_bubble),
        cmocka_unit_test(test_zbv),          cmocka_unit_test(test_groups),
        cmocka_unit_test(test_costs),        cmocka_unit_test(test_held),
        cmocka_unit_test(test_bubbles),      cmocka_unit_test(test_unequal),
        cmocka_unit_test(test_every_action), cmocka_unit_test(test_faults),
        cmocka_unit_test(test_deadlocks),    cmocka_unit_test(test_time),
        cmocka_unit_test(test_picture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
