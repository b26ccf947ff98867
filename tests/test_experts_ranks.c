/* Tokens to experts and back, on every mesh of the ranks there are, against what one rank would do.
 * The experts here multiply a row by numbers of their own, each of the ranks that share one by a
 * part of these; so what comes back is known row by row, and so is the gradient: both are the row,
 * or its gradient, times the factor of its expert. Routes by chance, all to one expert, none to
 * another, one token in all, fewer tokens than ranks, dropped choices; in turn, where the bytes
 * that are sent are those of a dry run too. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "kernels/tape_segment.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

enum { CHOSEN = 2, WIDTH = 3, LENGTH = 5 };
enum route { BY_CHANCE, TO_ONE, NONE_TO_ONE, SOME_DROPPED, IN_TURN, N_ROUTES };

static struct comm comm;

struct setting {
    struct mesh_shape shape;
    enum route route;
    int64_t experts, tokens; /* of a data rank */
    bool recompute;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A number in [-1, 1) of these four. */
static double number(int64_t a, int64_t b, int64_t c, int64_t d) {
    uint64_t h = mix(mix(mix((uint64_t)a * 31 + (uint64_t)b) + (uint64_t)c) * 7 + (uint64_t)d + 1);
    return (double)(h >> 11) / 4503599627370496.0 - 1;
}

static int64_t expert_of(const struct setting *s, int64_t data, int64_t token, int64_t k) {
    uint64_t h = mix((uint64_t)(data * 1000 + token * 10 + k) + 77);
    switch (s->route) {
    case TO_ONE: return s->experts - 1;
    case NONE_TO_ONE: return s->experts == 1 ? 0 : (int64_t)(h % (uint64_t)(s->experts - 1));
    case SOME_DROPPED: return (int64_t)(h % (uint64_t)(s->experts + 1));
    case IN_TURN: return (token % LENGTH * CHOSEN + k) % s->experts;
    default: return (int64_t)(h % (uint64_t)s->experts);
    }
}

static double factor(int64_t expert, int64_t column) {
    return 1 + 0.5 * number(expert, column, 5, 6);
}

/* ---------------------------------------------------------------- the experts */

static double part_of_factor(const struct parallel *p, int64_t held, int64_t e, int64_t column) {
    int parts = p->shape.expert_tensor, sum = parts * (parts + 1) / 2;
    return factor(p->at.expert * held + e, column) * (p->at.expert_tensor + 1) / sum;
}

/* to = from times the factors, row by row. */
static void multiply(struct tape *t, const struct tensor *offset, const void *from, void *to) {
    const int32_t *at = device_host(t->device, offset->data);
    const double *x = device_host(t->device, from);
    double *y = device_host(t->device, to);
    for (int64_t e = 0; e < offset->rows - 1; e++)
        for (int64_t i = at[e] * WIDTH; i < at[e + 1] * WIDTH; i++)
            y[i] = x[i] * part_of_factor(t->parallel, offset->rows - 1, e, i % WIDTH);
}

static void experts_adjoint(struct tape *t, struct note *n, unsigned mask) {
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    assert_true(dx && !add);
    if (!t->device->dry) multiply(t, n->in[1], tape_grad_out(n, 0), dx);
}
static const struct tape_op op_experts = {"experts", experts_adjoint, 2, 0, 0, 0};

static struct tensor *experts(struct tape *t, struct tensor *x, struct tensor *offset) {
    struct layout l = x->layout;
    l.state[AXIS_EXPERT_TENSOR] = PARTIAL;
    struct tensor *y = tensor_new(t, "experts", x->rows, x->width, &l);
    if (!t->device->dry) multiply(t, offset, x->data, y->data);
    tape_note(t, &op_experts, 2, (struct tensor *[]){x, offset}, 1, &y);
    return y;
}

/* ---------------------------------------------------------------- one journey */

struct room {
    struct device device;
    struct arena work, scratch;
    struct parallel parallel;
    struct tape t;
};

static void room_open(struct room *r, struct comm *c, const struct mesh_shape *shape, bool dry,
                      bool debug) {
    if (dry) device_dry(&r->device);
    else device_cpu(&r->device, 1, debug);
    arena_init(&r->work, "work", &r->device);
    arena_init(&r->scratch, "scratch", &r->device);
    parallel_init(&r->parallel, c, shape, true, 0, NULL);
    tape_init(&r->t, &r->device, &r->work, &r->scratch, F64, &r->parallel);
}

static void room_close(struct room *r) {
    tape_free(&r->t);
    arena_check_empty(&r->work);
    arena_check_empty(&r->scratch);
    arena_free_all(&r->work);
    arena_free_all(&r->scratch);
    parallel_free(&r->parallel);
}

struct visit { /* what the inside of a layer needs */
    const struct setting *s;
    struct tensor *index;
};

static struct tensor *visit_experts(struct tape *t, void *context, struct tensor *x) {
    struct visit *v = context;
    const struct setting *s = v->s;
    const struct travel travel = {
        .experts = s->experts, .chosen = CHOSEN, .tokens = s->tokens, .length = LENGTH};
    struct tensor *order, *position, *offset;
    sort_experts(t, v->index, s->experts, &order, &position, &offset);
    struct journey *j =
        expert_dispatch_start(t, gather_rows(t, x, order, position, CHOSEN), offset, &travel);
    struct tensor *there = expert_dispatch_wait(t, j, &offset);
    expert_return_start(t, j, experts(t, there, offset));
    tensor_drop(t, there);
    struct tensor *back = expert_return_wait(t, j);
    struct tensor *ones = tensor_new_real(t, "ones", x->rows, CHOSEN, &x->layout);
    DEVICE_RUN(t->device, fill, F64, .x = ones->data, .T = 1, .W = x->rows * CHOSEN,
               .ld = x->rows * CHOSEN, .value = 1);
    return combine_rows(t, back, ones, position);
}

/* This rank's tokens to the experts and back, and the gradient. */
static void go(struct room *r, const struct setting *s, double *out, double *grad) {
    struct tape *t = &r->t;
    const struct mesh_coords *at = &r->parallel.at;
    struct layout l = {.state = {SPLIT, SPLIT, experts_at_home(&r->parallel) ? ENTERED : SPLIT}};
    int64_t first = own_first(t, s->tokens), n = stream_rows(t, s->tokens);
    double *x = die_alloc((size_t)(n * WIDTH) * sizeof *x + 1);
    int32_t *index = die_alloc((size_t)(n * CHOSEN) * sizeof *index + 1);
    for (int64_t i = 0; i < n * WIDTH; i++)
        x[i] = number(at->data, first + i / WIDTH, i % WIDTH, 1);
    for (int64_t i = 0; i < n * CHOSEN; i++)
        index[i] = (int32_t)expert_of(s, at->data, first + i / CHOSEN, i % CHOSEN);
    struct tensor *in = tape_input(t, "tokens", n, WIDTH, &l);
    struct visit v = {s, tensor_new_ints(t, "index", n, CHOSEN, &l)};
    device_write(&r->device, in->data, x, (size_t)(n * WIDTH) * sizeof *x);
    device_write(&r->device, v.index->data, index, (size_t)(n * CHOSEN) * sizeof *index);
    struct tensor *y =
        s->recompute ? tape_segment(t, visit_experts, &v, in) : visit_experts(t, &v, in);
    device_read(&r->device, out, y->data, (size_t)(n * WIDTH) * sizeof *out);
    struct tensor *dy = tensor_new(t, "gradient", n, WIDTH, &y->layout);
    for (int64_t i = 0; i < n * WIDTH; i++)
        x[i] = number(at->data, first + i / WIDTH, i % WIDTH, 2);
    device_write(&r->device, dy->data, x, (size_t)(n * WIDTH) * sizeof *x);
    tape_backward_given(t, y, dy, MASK_ALL);
    assert_true(in->has_grad);
    device_read(&r->device, grad, in->grad, (size_t)(n * WIDTH) * sizeof *grad);
    tape_clear(t);
    free(x);
    free(index);
}

static void check(const struct setting *s, const struct room *r, int64_t token, int64_t column,
                  double out, double grad) {
    double sum = 0, want[2];
    for (int64_t k = 0; k < CHOSEN; k++) {
        int64_t e = expert_of(s, r->parallel.at.data, token, k);
        if (e < s->experts) sum += factor(e, column);
    }
    for (int i = 0; i < 2; i++) want[i] = sum * number(r->parallel.at.data, token, column, 1 + i);
    if (!(fabs(out - want[0]) <= 1e-12) || !(fabs(grad - want[1]) <= 1e-12))
        fail_msg(
            "tensor %d, expert %d x %d, route %d, %ld experts, %ld tokens: row %ld is %g, gradient "
            "%g; want %g, %g",
            s->shape.tensor, s->shape.expert, s->shape.expert_tensor, s->route, (long)s->experts,
            (long)s->tokens, (long)token, out, grad, want[0], want[1]);
}

/* A dry run as this rank must count the same bytes, and the same memory. */
static void check_dry(const struct setting *s, const struct room *r, int64_t bytes[2]) {
    struct comm dry;
    struct room d;
    double *none = die_alloc((size_t)(s->tokens * WIDTH) * sizeof *none + 1);
    comm_init_dry(&dry, comm.size, comm.rank);
    room_open(&d, &dry, &s->shape, true, false);
    go(&d, s, none, none);
    assert_int_equal(d.parallel.axis[MESH_EXPERT]->bytes_sent, bytes[0]);
    assert_int_equal(d.parallel.axis[MESH_EXPERT_TENSOR]->bytes_sent, bytes[1]);
    assert_int_equal(d.work.peak, r->work.peak);
    room_close(&d);
    comm_end(&dry);
    free(none);
}

/* What the algorithm sends over the expert group: to each other rank one number an expert it holds,
 * once; rows to other ranks and the results of theirs, forward, again where forward is replayed,
 * and back. */
static int64_t volume(const struct setting *s, const struct parallel *p) {
    int64_t held = s->experts / s->shape.expert, rows = 0, others = s->shape.expert - 1;
    if (experts_at_home(p)) return 0;
    for (int e = 0; e < s->shape.expert; e++) {
        int rank = mesh_rank_expert(&p->shape, 0, p->at.expert_data, e, p->at.expert_tensor);
        struct mesh_coords at = mesh_coords(&p->shape, rank);
        int64_t from = part_begin(s->tokens, s->shape.tensor, at.tensor, 1),
                end = part_begin(s->tokens, s->shape.tensor, at.tensor + 1, 1);
        for (int64_t i = from * CHOSEN; i < end * CHOSEN; i++) {
            int64_t to = expert_of(s, at.data, i / CHOSEN, i % CHOSEN) / held;
            rows += to < s->shape.expert && to != e && (e == p->at.expert || to == p->at.expert);
        }
    }
    return others * held * 4 + (s->recompute ? 3 : 2) * rows * WIDTH * 8;
}

static void try_setting(const struct setting *s) {
    struct room r;
    int64_t n;
    double *out = die_alloc((size_t)(s->tokens * WIDTH) * sizeof *out + 1),
           *grad = die_alloc((size_t)(s->tokens * WIDTH) * sizeof *grad + 1);
    room_open(&r, &comm, &s->shape, false, s->route != IN_TURN); /* guards are not planned */
    struct group *g = r.parallel.axis[MESH_EXPERT], *parts = r.parallel.axis[MESH_EXPERT_TENSOR];
    go(&r, s, out, grad);
    n = stream_rows(&r.t, s->tokens);
    for (int64_t i = 0; i < n * WIDTH; i++)
        check(s, &r, own_first(&r.t, s->tokens) + i / WIDTH, i % WIDTH, out[i], grad[i]);
    assert_int_equal(g->bytes_sent, volume(s, &r.parallel));
    if (s->route == IN_TURN) check_dry(s, &r, (int64_t[]){g->bytes_sent, parts->bytes_sent});
    room_close(&r);
    free(out);
    free(grad);
}

/* All ways to factor the ranks twice, all routes, few tokens and many. */
static void every_mesh(void **state) {
    (void)state;
    static const int64_t tokens[] = {13, 1, 0, 4};
    int n = comm.size, tried = 0;
    for (int tensor = 1; tensor <= n; tensor++)
        for (int expert = 1; expert <= n; expert++)
            for (int parts = 1; parts <= n; parts++) {
                if (n % tensor || n % (expert * parts)) continue;
                if (expert == 1 && parts == tensor && tensor > 1) continue; /* at home: no slices */
                for (int i = 0; i < N_ROUTES * 4; i++) {
                    struct setting s = {
                        .shape = {1, n / tensor, 1, tensor, n / (expert * parts), expert, parts},
                        .route = (enum route)(i % N_ROUTES),
                        .experts = expert * (1 + tried % 3),
                        .tokens = tokens[i / N_ROUTES],
                        .recompute = tried % 2};
                    tried++;
                    try_setting(&s);
                }
            }
    assert_true(tried > 0);
}

/* Shares of experts taken in turn, against counting; sequences of two pieces too. */
static void in_turn(void **state) {
    (void)state;
    for (int64_t i = 0; i < 300; i++) {
        struct travel v = {
            .experts = 1 + i % 7, .chosen = 1 + i % 3, .tokens = 40, .length = 1 + i % 11};
        struct token_range r = {i % 17, v.length, i % 2 ? v.length : v.length / 2, {i % 5, i % 19}};
        int64_t tokens = i % 13, found[8], want[8] = {0};
        even_choices(&v, &r, tokens, 0, v.experts, found);
        for (int64_t t = r.first; t < r.first + tokens; t++)
            for (int64_t k = 0; k < v.chosen; k++) {
                int64_t at = t % r.length,
                        place = at < r.piece ? r.begin[0] + at : r.begin[1] + at - r.piece;
                want[(place * v.chosen + k) % v.experts]++;
            }
        for (int64_t e = 0; e < v.experts; e++) assert_int_equal(found[e], want[e]);
        even_choices(&v, &r, tokens, v.experts - 1, 1, found);
        assert_int_equal(found[0], want[v.experts - 1]);
    }
}

/* Shares in proportion to loads: each rank gives what it has, all of it unless some is dropped; and
 * all ranks together what the proportion says, to a whole number. */
static void by_loads(void **state) {
    (void)state;
    for (int64_t i = 0; i < 200; i++) {
        enum { EXPERTS = 6 };
        int64_t load[EXPERTS], all = 0, dropped = i % 3 ? 0 : 5, total[EXPERTS] = {0},
                               part[EXPERTS];
        const int ranks = (int)(1 + i % 7), choices = (int)(i % 29);
        for (int e = 0; e < EXPERTS; e++)
            all += load[e] = e == i % EXPERTS ? 0 : i * 37 % (e + 11) + 1;
        struct travel v = {.experts = EXPERTS, .load = load, .load_of = all + dropped};
        for (int r = 0; r < ranks; r++) {
            int64_t sum = 0;
            loaded_choices(&v, r, ranks, choices, 0, EXPERTS, part);
            for (int e = 0; e < EXPERTS; e++) {
                int64_t alone;
                loaded_choices(&v, r, ranks, choices, e, 1, &alone);
                assert_int_equal(part[e], alone);
                assert_true(part[e] >= 0 && (load[e] || !part[e]));
                total[e] += part[e];
                sum += part[e];
            }
            assert_true(dropped ? sum <= choices : sum == choices);
        }
        for (int64_t e = 0, before = 0; e < EXPERTS; e++) {
            const int64_t n = (int64_t)ranks * choices, after = before + load[e];
            assert_int_equal(total[e], after * n / v.load_of - before * n / v.load_of);
            before = after;
        }
    }
}

int main(void) {
    struct mistakes *none = NULL;
    if (comm_init(&comm, none)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_mesh), cmocka_unit_test(in_turn),
                                       cmocka_unit_test(by_loads)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_end(&comm);
    return failed != 0;
}
