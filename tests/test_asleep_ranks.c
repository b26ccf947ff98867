/* Pipelines on a device that sleeps: the real executor on the real MPI, but every operation,
 * instead of computing, sleeps as long as it took when it was measured. So any number of ranks
 * overlap truly on any number of cores, and the idle share of the clock must be the one that the
 * schedule is said to have at those costs.
 *
 *     mpirun -n N test_asleep_ranks      N: 4 or 8; LONG=1 in the environment: more and longer
 *
 * What the scheduler of a busy machine adds to a sleep does not grow with it, so a try that misses
 * is repeated at twice the pace, some times. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "parallel/schedule_build.h"
#include "parallel/schedule_time.h"
#include "parallel/tensor_parallel.h"
#include "tests/lab.h"

enum { MOST_PRICES = 256, LAYERS = 16, TRIES = 7, LENGTH_OF_ROW = 96 };
static const char *const patterns[2] = {
    "M-*EM-*EM-*EM-*E", /* costs of all kinds */
    "----------------", /* forward and both halves cost the same: two products each */
};
static const char text[] = LAB_PIPELINE_MODEL
                           "  n_routed_experts: 4\n"
                           "  num_experts_per_tok: 2\n"
                           "  moe_intermediate_size: 64\n"
                           "  moe_shared_expert_intermediate_size: 96\n"
                           "run: {threads: 1}\n"
                           "train: {sequence_length: 96}\n";

static struct comm world;
static int failed;

/* ---- prices ---- */

struct price {
    enum op op;
    double work;
    int64_t elements; /* of all operands: with the work, as good as the sizes */
    int64_t ns;
};
static struct {
    struct price price[MOST_PRICES];
    int n;
} book;
static bool equal;     /* instead of the measured prices: work of products alone */
static int64_t pace;   /* times the price */
static int64_t priced; /* ns, since somebody set it to 0 */

static int64_t clock_ns(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct price *price_of(enum op op, const void *args) {
    const struct op_row *row = op_row(op);
    int64_t count[16], all = 0;
    row->counts(args, count);
    for (int i = 0; i < row->n_operands; i++) all += count[i];
    double work = row->work(args);
    for (int i = 0; i < book.n; i++) {
        struct price *p = &book.price[i];
        if (p->op == op && p->work == work && p->elements == all) return p;
    }
    if (book.n == MOST_PRICES) die("more than %d prices", MOST_PRICES);
    struct price *p = &book.price[book.n++];
    *p = (struct price){op, work, all, -1};
    return p;
}

/* Runs the operation and notes the least time that it ever took. */
static void measure(void *device, enum op op, enum dtype stored, const void *args) {
    struct device real = *(struct device *)device;
    struct price *p = price_of(op, args);
    real.instead = NULL;
    int64_t began = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    device_run(&real, op, stored, args);
    int64_t took = clock_ns(CLOCK_THREAD_CPUTIME_ID) - began;
    if (p->ns < 0 || took < p->ns) p->ns = took;
}

static int64_t ask(enum op op, const void *args) {
    double work = op_row(op)->work(args);
    if (equal) return op == OP_matmul || op == OP_matmul_weight ? (int64_t)(work / 20) : 0;
    if (op == OP_exact_sum) return 0; /* of losses: the executor's, not a stage's */
    struct price *p = price_of(op, args);
    if (p->ns < 0) die("no price for %s", op_row(op)->name);
    return p->ns;
}

static void only_add(void *context, enum op op, enum dtype stored, const void *args) {
    (void)context, (void)stored;
    priced += ask(op, args);
}

/* Sleeps are paid in pieces of some size, each for what it really took. */
static int64_t owed;

static void pay(int64_t least) {
    if (owed < least) return;
    int64_t began = clock_ns(CLOCK_MONOTONIC);
    nanosleep(&(struct timespec){owed / 1000000000, owed % 1000000000}, NULL);
    owed -= clock_ns(CLOCK_MONOTONIC) - began;
}

static void sleep_instead(void *context, enum op op, enum dtype stored, const void *args) {
    only_add(context, op, stored, args);
    owed += pace * ask(op, args);
    pay(100000);
}

/* ---- models ---- */

static void open_engine(struct lab *l, struct comm *comm, int n, char **overrides) {
    lab_read_for(l, text, comm->size, n, overrides);
    if (engine_open(&l->e, &l->deck, &l->config, &l->m) ||
        engine_init(&l->e, comm, &l->shape, false, true, false, &l->m))
        die("no engine");
}

static void close_engine(struct lab *l) {
    engine_free(&l->e);
    config_free(&l->config);
    deck_free(&l->deck);
}

static int64_t taken(void) {
    int64_t all = priced;
    priced = 0;
    return all;
}

/* What the operations of one stage's forward and halves cost together. */
static void cost_of(struct engine *e, const struct stage *s, bool parts, int64_t cost[3]) {
    struct tape *t = &e->tape;
    struct pass pass = {0};
    struct micro_batch b = {.rows = 1, .length = LENGTH_OF_ROW};
    void **tokens[] = {&b.ids, &b.start, &b.target, &b.weight};
    struct piece *piece[4];
    struct layout l = model_stream(t);
    int64_t width = e->config->keys.hidden_size;
    for (int i = 0; i < 4; i++) {
        piece[i] = arena_take(&e->work, 4 * LENGTH_OF_ROW, "tokens", tokens[i]);
        device_zero(&e->device, *tokens[i], 4 * LENGTH_OF_ROW);
    }
    for (int whole = 0; whole < (parts ? 1 : 2); whole++) {
        struct tensor *x = s->embeds ? NULL : tape_input(t, "x", LENGTH_OF_ROW, width, &l);
        struct tensor *given = tensor_new(t, "g", LENGTH_OF_ROW, width, &l);
        taken();
        struct tensor *y = model_stage(&e->model, t, s, &b, &pass, x, END_LOSSES);
        cost[0] = taken();
        unsigned mask = whole ? MASK_ALL : MASK_INPUT;
        if (s->heads) tape_backward(t, y, 1, mask);
        else tape_backward_given(t, y, given, mask);
        if (whole) cost[2] = taken() - cost[1];
        else cost[1] = taken();
        tape_backward_weights(t);
        if (!whole) cost[2] = taken();
        tape_clear(t);
    }
    for (int i = 0; i < 4; i++) arena_give(&e->work, piece[i]);
}

/* One rank with the whole model, for prices. */
static void open_whole(struct lab *s, struct comm *one, const char *pattern) {
    char *layers = die_format("model.hybrid_override_pattern=%s", pattern);
    comm_init_dry(one, 1, 0);
    open_engine(s, one, 1, (char *[]){layers});
    free(layers);
    s->e.device.context = &s->e.device;
}

static void close_whole(struct lab *s, struct comm *one) {
    close_engine(s);
    comm_end(one);
}

/* Rank 0 measures, all know. */
static void make_book(void) {
    struct lab s;
    struct comm one;
    int64_t cost[3];
    if (world.rank == 0) {
        open_whole(&s, &one, patterns[0]);
        s.e.device.instead = measure;
        struct stage all = {0, LAYERS, true, true}, tail = {1, LAYERS, false, true},
                     front = {0, LAYERS - 1, true, false};
        for (int round = 0; round < 3; round++) {
            cost_of(&s.e, &all, false, cost);
            cost_of(&s.e, &tail, false, cost);
            cost_of(&s.e, &front, false, cost);
        }
        close_whole(&s, &one);
    }
    comm_broadcast(world.world, &book, sizeof book, 0);
}

/* ---- runs ---- */

struct outcome {
    double planned, measured;
    int64_t held; /* by the rank that holds most, in bytes */
};

static void costs_of_stages(struct engine *e, const char *pattern) {
    struct lab s;
    struct comm one;
    bool parts =
        e->stages.shape.kind == SCHEDULE_ZERO_BUBBLE || e->stages.shape.kind == SCHEDULE_ZBV;
    open_whole(&s, &one, pattern);
    s.e.device.instead = only_add;
    for (int i = 0; i < e->stages.n; i++) {
        int64_t cost[3];
        struct stage g = staging_stage(&e->stages, i);
        cost_of(&s.e, &g, parts, cost);
        e->stages.forward[i] = cost[0];
        e->stages.input[i] = cost[1];
        e->stages.weight[i] = cost[2];
    }
    close_whole(&s, &one);
}

/* The share of all ranks' time from the first action to the last that they did not sleep. */
static double asleep(struct engine *e, int micro_batches, int64_t busy) {
    struct host_batch *b = die_alloc((size_t)micro_batches * sizeof *b);
    for (int i = 0; i < micro_batches; i++) b[i] = lab_batch(1, LENGTH_OF_ROW, 1 + (uint64_t)i);
    device_zero(&e->device, e->loss_sum, sizeof(struct exact));
    owed = 0;
    comm_barrier(world.world);
    int64_t began = clock_ns(CLOCK_MONOTONIC);
    pipeline_run(
        &e->pipeline,
        &(struct pipeline_pass){.what = PASS_GRADIENTS, .n = micro_batches, .batch = b, .seed = 1});
    pay(1);
    int64_t end = comm_max(world.world, clock_ns(CLOCK_MONOTONIC));
    began = -comm_max(world.world, -began);
    for (int i = 0; i < micro_batches; i++) lab_batch_free(&b[i]);
    free(b);
    return 1 - (double)busy / ((double)(end - began) * world.size);
}

static struct outcome run(enum schedule_kind kind, const char *pattern, int micro_batches,
                          bool (*good)(const struct outcome *, double), double bound) {
    struct lab s;
    struct outcome o;
    struct schedule_times t;
    struct schedule plan;
    char *over[4] = {
        die_format("model.hybrid_override_pattern=%s", pattern),
        die_format("parallel.pipeline=%d", world.size),
        die_format("parallel.schedule=%s", schedule_kind_name(kind)),
        die_format("parallel.virtual_stages=%d",
                   kind >= SCHEDULE_INTERLEAVED && kind != SCHEDULE_ZERO_BUBBLE ? 2 : 1)};
    open_engine(&s, &world, 4, over);
    costs_of_stages(&s.e, pattern);
    struct schedule_wish wish = staging_wish(&s.e.stages, micro_batches);
    schedule_build(&plan, &wish);
    schedule_time(&t, &plan, &s.e.stages.costs, NULL);
    o.planned = t.idle;
    double all = 0;
    for (int i = 0; i < s.e.stages.n; i++)
        all += (double)(s.e.stages.forward[i] + s.e.stages.input[i] + s.e.stages.weight[i]);
    s.e.device.instead = sleep_instead;
    pace = 1;
    while (pace * all / s.e.stages.n < 6e6) pace++; /* no less than 6 ms for all of a micro-batch */
    for (int i = 0; i < TRIES; i++, pace *= 2) {    /* whatever disturbs a try makes it longer */
        double idle = asleep(&s.e, micro_batches, (int64_t)((double)pace * all * micro_batches));
        if (i == 0 || idle < o.measured) o.measured = idle;
        o.held = comm_max(world.world, (int64_t)s.e.work.live_most);
        int fine = good(&o, bound); /* rank 0's word: all see the same numbers but for rounding */
        comm_broadcast(world.world, &fine, sizeof fine, 0);
        if (fine) break;
    }
    schedule_times_free(&t);
    schedule_free(&plan);
    for (int i = 0; i < 4; i++) free(over[i]);
    close_engine(&s);
    return o;
}

static bool as_planned(const struct outcome *o, double bound) {
    return fabs(o->measured - o->planned) <= bound;
}

static bool at_most(const struct outcome *o, double bound) {
    return o->measured <= bound;
}

static void promise(bool good, const char *what, const struct outcome *o) {
    failed += !good;
    if (world.rank) return;
    printf("%s %s: idle %.2f %%, by the formula %.2f %%, %.3f MB\n", good ? "ok" : "FAIL", what,
           100 * o->measured, 100 * o->planned, 1e-6 * (double)o->held);
    fflush(stdout);
}

/* Every schedule at measured costs, within 3 points of its formula. */
static void measured_costs(int of_a_stage) {
    equal = false;
    for (enum schedule_kind k = 0; k < N_SCHEDULE_KINDS; k++) {
        struct outcome o = run(k, patterns[0], of_a_stage * world.size, as_planned, 0.03);
        char *name = die_format("%s, %d ranks, %d micro-batches", schedule_kind_name(k), world.size,
                                of_a_stage * world.size);
        promise(as_planned(&o, 0.03), name, &o);
        free(name);
    }
}

/* At equal costs the two that move weight halves idle so much less, and hold no more bytes. */
static void equal_costs(int of_a_stage) {
    static const double shares[] = {[SCHEDULE_ZERO_BUBBLE] = 0.45, [SCHEDULE_ZBV] = 0.3};
    equal = true;
    int m = of_a_stage * world.size;
    struct outcome plain = run(SCHEDULE_1F1B, patterns[1], m, as_planned, 0.015);
    promise(as_planned(&plain, 0.03), "1f1b, equal costs", &plain);
    for (enum schedule_kind k = SCHEDULE_ZERO_BUBBLE; k <= SCHEDULE_ZBV; k++) {
        struct outcome o = run(k, patterns[1], m, at_most, shares[k] * plain.measured);
        char *name = die_format("%s, equal costs, %d micro-batches", schedule_kind_name(k), m);
        promise(o.measured <= shares[k] * plain.measured && o.held <= plain.held, name, &o);
        free(name);
    }
}

int main(void) {
    struct mistakes m = {0};
    const char *wish = getenv("LONG");
    bool more = wish && *wish;
    prctl(PR_SET_TIMERSLACK, 1);
    if (comm_init(&world, &m)) die("no world");
    if (world.size < 4) die("on 4 ranks or 8");
    make_book();
    measured_costs(2);
    equal_costs(2);
    if (more) {
        measured_costs(1);
        measured_costs(4);
        equal_costs(4);
    }
    failed = (int)comm_max(world.world, failed);
    comm_end(&world);
    return failed ? 1 : 0;
}
