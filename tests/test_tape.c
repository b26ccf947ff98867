/* The tape: memory is given back early, and shared, replayed, split and frozen walks all give the
 * gradients of the plain one. */
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
#include "parallel/tensor_parallel.h"
#include "tests/taping.h"

/* ---------------------------------------------------------------- gradients */

static double slope(double x) { /* of relu(x)^2 */
    return x > 0 ? 2 * x : 0;
}

static void shared_gradients(void **state) {
    (void)state;
    enum { N = TOKENS * WIDTH };
    struct bench b;
    bench_open(&b, F64);
    double *v = random_numbers(N, 1), *u = random_numbers(N, 2), want[N], other[N];
    struct tensor *x = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, v), *z;

    tape_backward(&b.t, add(&b.t, x, x), 3, MASK_ALL);
    for (int i = 0; i < N; i++) want[i] = 6;
    expect_grad(&b, x, want);
    tape_clear(&b.t);

    x = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, v); /* ((x + f(x)) + x) + x */
    struct tensor *sum = add(&b.t, add(&b.t, x, relu2(&b.t, x)), x);
    tape_backward(&b.t, add(&b.t, sum, x), 2, MASK_ALL);
    for (int i = 0; i < N; i++) want[i] = 2 * (3 + slope(v[i]));
    expect_grad(&b, x, want);
    tape_clear(&b.t);

    x = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, v); /* a and c share a gradient; a gets more */
    z = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, u);
    struct tensor *a = add(&b.t, x, x), *c = add(&b.t, z, z), *more = relu2(&b.t, a);
    tape_backward(&b.t, add(&b.t, add(&b.t, a, c), more), 1, MASK_ALL);
    for (int i = 0; i < N; i++) want[i] = 2 * (1 + slope(2 * v[i])), other[i] = 2;
    expect_grad(&b, x, want);
    expect_grad(&b, z, other);
    tape_clear(&b.t);

    x = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, v); /* the last result is also an input */
    a = relu2(&b.t, x);
    struct tensor *unused = relu2(&b.t, a);
    tape_backward(&b.t, a, 1, MASK_ALL);
    for (int i = 0; i < N; i++) want[i] = slope(v[i]);
    expect_grad(&b, x, want);
    assert_false(unused->has_grad);
    bench_close(&b);
    free(v), free(u);
}

/* Views of widths 3, 2 and 1, one of which nobody uses: its columns of the gradient are zeros. */
static void views(void **state) {
    (void)state;
    enum { WIDE = 6 };
    static const int64_t widths[] = {3, 2, 1}, from[] = {0, 3, 5};
    for (int left_out = 0; left_out < 4; left_out++) {
        struct bench b;
        bench_open(&b, F64);
        struct tensor *leaf = make(&b, &b.t, "rrw", TOKENS, WIDE), *v[3], *y = NULL;
        struct tensor *x = add(&b.t, leaf, leaf);
        double want[TOKENS * WIDE] = {0};
        tensor_columns(&b.t, x, 3, widths, v);
        for (int i = 0; i < 3; i++) {
            double w[4 * 3];
            if (i == left_out) continue;
            struct param *p = make_param(&b, "-", 4, widths[i]);
            get(&b, p->value, F64, 4 * widths[i], w);
            for (int uses_of_it = 0; uses_of_it < 2; uses_of_it++) {
                struct tensor *out = linear(&b.t, v[i], p);
                y = y ? add(&b.t, y, out) : out;
            }
            for (int t = 0; t < TOKENS; t++)
                for (int k = 0; k < widths[i]; k++)
                    for (int r = 0; r < 4; r++)
                        want[t * WIDE + from[i] + k] += 2 * 2 * w[r * widths[i] + k];
        }
        for (int i = 0; i < 3; i++) tensor_drop(&b.t, v[i]);
        tensor_drop(&b.t, x);
        tape_backward(&b.t, y, 1, MASK_ALL);
        expect_grad(&b, leaf, want);
        bench_close(&b);
    }
}

/* ---------------------------------------------------------------- memory */

static size_t chain_peak(bool drops, bool learning) {
    struct bench b;
    bench_open(&b, F32);
    b.t.learning = learning;
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, 16), *leaf = x;
    for (int i = 0; i < 20; i++) {
        struct tensor *y = add(&b.t, x, x);
        if (drops && x != leaf) tensor_drop(&b.t, x);
        x = y;
    }
    size_t peak = b.work.peak;
    if (learning) {
        tape_backward(&b.t, x, 1, MASK_ALL);
        double want[TOKENS * 16];
        for (int i = 0; i < TOKENS * 16; i++) want[i] = 1 << 20;
        expect_grad(&b, leaf, want);
        assert_true(b.work.peak <= peak + 3 * TOKENS * 16 * sizeof(float));
    }
    bench_close(&b);
    return peak / (TOKENS * 16 * sizeof(float));
}

static void freed_early(void **state) {
    (void)state;
    assert_int_equal(chain_peak(true, true), 3); /* nothing is read by an adjoint of a sum */
    assert_int_equal(chain_peak(true, false), 3);
    assert_int_equal(chain_peak(false, true), 21);
}

/* A value that an adjoint reads lives until that adjoint ran, and no longer. */
static void lives_until_read(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH), *a = relu2(&b.t, x),
                  *y = relu2(&b.t, a);
    tensor_drop(&b.t, a);
    assert_non_null(a->data);
    tape_backward(&b.t, y, 1, MASK_ALL);
    assert_null(a->data);
    assert_null(a->grad);
    assert_null(y->grad);
    tape_clear(&b.t);
    assert_int_equal(b.work.live, 0);

    int scope = tape_scope_begin(&b.t);
    x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
    b.t.learning = false;
    y = relu2(&b.t, a = relu2(&b.t, x));
    b.t.learning = true;
    tape_scope_end(&b.t, scope, y);
    assert_null(a->data);
    assert_null(x->data);
    assert_non_null(y->data);
    tensor_drop(&b.t, y);
    tensor_drop(&b.t, y); /* as often as one likes */
    assert_int_equal(b.work.live, 0);
    bench_close(&b);
}

/* ---------------------------------------------------------------- a layer to walk in all ways
 *
 * Everything a layer does: norm, routing, experts, a shared expert, biases, enter and leave. */

enum { EXPERTS = 5, CHOSEN = 2, INNER = 3, LAYER_PARAMS = 9 };

struct small_layer {
    struct param *norm, *gate, *bias, *up, *down, *shared_up, *shared_bias, *shared_down, *after;
    void *load;
};

static struct small_layer make_layer(struct bench *b) {
    struct small_layer l = {
        make_param(b, "-", WIDTH, 1),
        make_param(b, "-", EXPERTS, WIDTH),
        make_param(b, "-", EXPERTS, 1),
        make_param(b, "XR", EXPERTS * INNER, WIDTH),
        make_param(b, "XC", EXPERTS * WIDTH, INNER),
        make_param(b, "R", INNER, WIDTH),
        make_param(b, "R", INNER, 1),
        make_param(b, "C", WIDTH, INNER),
        make_param(b, "-", WIDTH, 1),
        NULL,
    };
    l.bias->trained = false;
    arena_take(&b->weights, EXPERTS * sizeof(int64_t), "load", &l.load);
    device_zero(&b->device, l.load, EXPERTS * sizeof(int64_t));
    return l;
}

static struct tensor *layer_forward(struct tape *t, void *context, struct tensor *x) {
    struct small_layer *l = context;
    static const struct routing r = {EXPERTS, CHOSEN, 1, 1, true, 2.5, false, {0, 1, 1, {0, 0}}};
    struct tensor *h = rms_norm(t, x, l->norm, 1e-5), *index, *order, *position, *offset;
    struct tensor *weight = route(t, linear(t, h, l->gate), l->bias->value, &r, &index);
    weight = tensor_enter(t, weight, TOKENS);
    index = tensor_enter(t, index, TOKENS);
    struct tensor *full = tensor_enter(t, h, TOKENS);
    sort_experts(t, index, EXPERTS, &order, &position, &offset);
    count_experts(t, index, EXPERTS, NULL, l->load);
    struct journey *j = expert_dispatch_start(
        t, gather_rows(t, full, order, position, CHOSEN), offset,
        &(struct travel){.experts = EXPERTS, .chosen = CHOSEN, .tokens = TOKENS, .length = LENGTH});
    struct tensor *in = expert_dispatch_wait(t, j, &offset);
    struct tensor *a = relu2(t, grouped_linear(t, in, l->up, EXPERTS, offset));
    tensor_drop(t, in);
    expert_return_start(t, j, grouped_linear(t, a, l->down, EXPERTS, offset));
    struct tensor *y = combine_rows(t, expert_return_wait(t, j), weight, position);
    struct tensor *u = relu2(t, add_bias(t, linear(t, full, l->shared_up), l->shared_bias));
    y = tensor_leave(t, add(t, y, linear(t, u, l->shared_down)));
    return add_bias(t, y, l->after);
}

enum { LAYERS = 3, TAPES = 3, ALL_PARAMS = LAYERS * LAYER_PARAMS };

struct way { /* of computing the same gradients */
    bool recompute, split, sequence;
    const char *change; /* before backward: of "bias" or "gate" of every layer */
};

struct found {
    int n;
    double *grad[ALL_PARAMS];
    double x[TAPES][TOKENS * WIDTH];
    int64_t load[LAYERS][EXPERTS];
    size_t peak;
};

static struct tensor *stack_forward(struct bench *b, struct tape *t, struct small_layer *l,
                                    bool recompute, struct tensor *x) {
    for (int i = 0; i < LAYERS; i++) {
        int scope = tape_scope_begin(t);
        struct tensor *y = recompute ? tape_segment(t, layer_forward, &l[i], x)
                                     : layer_forward(t, &l[i], x),
                      *sum = add(t, x, y);
        tape_scope_end(t, scope, sum);
        if (i) tensor_drop(t, x);
        x = sum;
    }
    (void)b;
    return x;
}

static void walk_stack(const struct way *w, struct found *f) {
    struct bench b;
    struct tape t[TAPES];
    struct small_layer l[LAYERS];
    struct tensor *x[TAPES], *y[TAPES];
    bench_open(&b, F32);
    b.parallel.sequence = w->sequence;
    for (int i = 0; i < LAYERS; i++) l[i] = make_layer(&b);
    for (int k = 0; k < TAPES; k++) open_tape(&b, &t[k], F32);
    for (int k = 0; k < TAPES; k++) {
        x[k] = make(&b, &t[k], w->sequence ? "rrr" : "rrw", TOKENS, WIDTH);
        y[k] = stack_forward(&b, &t[k], l, w->recompute, x[k]);
        if (!w->split && !w->change) tape_backward(&t[k], y[k], 0.5 + k, MASK_ALL);
    }
    for (int i = 0; w->change && i < LAYERS; i++) {
        struct param *p = !strcmp(w->change, "gate") ? l[i].gate : l[i].bias;
        double *v = random_numbers(p->rows * p->width, 99 + (uint64_t)i);
        for (int64_t j = 0; j < p->rows * p->width; j++) v[j] *= 10;
        put(&b, p->value, F32, p->rows * p->width, v);
        free(v);
    }
    for (int k = 0; k < TAPES; k++) {
        if (w->split) tape_backward(&t[k], y[k], 0.5 + k, MASK_INPUT);
        else if (w->change) tape_backward(&t[k], y[k], 0.5 + k, MASK_ALL);
    }
    for (int k = 0; k < TAPES; k++) {
        double *g = grad_of(&b, x[k]);
        memcpy(f->x[k], g, sizeof f->x[k]);
        free(g);
        tape_backward_weights(&t[k]);
    }
    f->peak = b.work.peak;
    f->n = b.n_params;
    for (int i = 0; i < b.n_params; i++) {
        int64_t n = b.param[i]->rows * b.param[i]->width;
        f->grad[i] = die_alloc(n * sizeof(double));
        get(&b, b.param[i]->grad, F32, n, f->grad[i]);
    }
    for (int i = 0; i < LAYERS; i++)
        device_read(&b.device, f->load[i], l[i].load, sizeof f->load[i]);
    for (int k = 0; k < TAPES; k++) tape_free(&t[k]);
    bench_close(&b);
}

static void forget_found(struct found *f) {
    for (int i = 0; i < f->n; i++) free(f->grad[i]);
}

static const int64_t layer_sizes[LAYER_PARAMS] = {
    WIDTH, EXPERTS *WIDTH, EXPERTS, EXPERTS *INNER *WIDTH, EXPERTS *WIDTH *INNER, INNER *WIDTH,
    INNER, WIDTH *INNER,   WIDTH};

static void same_bits(const struct found *a, const struct found *b) {
    assert_memory_equal(a->x, b->x, sizeof a->x);
    assert_int_equal(a->n, ALL_PARAMS);
    for (int i = 0; i < ALL_PARAMS; i++)
        assert_memory_equal(a->grad[i], b->grad[i], layer_sizes[i % LAYER_PARAMS] * sizeof(double));
    assert_memory_equal(a->load, b->load, sizeof a->load);
}

static void ways_of_walking(void **state) {
    (void)state;
    static struct found plain, other;
    static const struct way simple = {0};
    walk_stack(&simple, &plain);
    double largest = 0;
    for (int i = 0; i < ALL_PARAMS; i++)
        for (int64_t j = 0; j < layer_sizes[i % LAYER_PARAMS]; j++) {
            assert_true(isfinite(plain.grad[i][j]));
            largest = fmax(largest, fabs(plain.grad[i][j]));
        }
    assert_true(largest > 0.1);
    for (int i = 0; i < LAYERS; i++) { /* counted once for each tape, in replays not again */
        int64_t sum = 0;
        for (int e = 0; e < EXPERTS; e++) sum += plain.load[i][e];
        assert_int_equal(sum, TAPES * TOKENS * CHOSEN);
    }
    for (int i = 1; i < 8; i++) {
        const struct way w = {i & 1, i & 2, i & 4, NULL};
        walk_stack(&w, &other);
        same_bits(&other, &plain);
        if (i == 1) assert_true(other.peak < plain.peak);
        forget_found(&other);
    }
    forget_found(&plain);
}

/* Between forward and replay the router is moved: what was chosen stays chosen. */
static void kept_routing(void **state) {
    (void)state;
    static struct found plain, other;
    struct way w = {.recompute = true};
    walk_stack(&w, &plain);
    w.change = "bias"; /* enters the choice alone: not a bit may change */
    walk_stack(&w, &other);
    same_bits(&other, &plain);
    forget_found(&other);
    w.change = "gate";
    walk_stack(&w, &other);
    assert_memory_equal(other.load, plain.load, sizeof plain.load);
    for (int i = 0; i < LAYERS; i++) /* the down products of experts that nobody had chosen */
        for (int e = 0; e < EXPERTS; e++) {
            double sum = 0;
            for (int j = 0; j < WIDTH * INNER; j++)
                sum += fabs(other.grad[i * LAYER_PARAMS + 4][e * WIDTH * INNER + j]);
            if (!plain.load[i][e]) assert_true(sum == 0);
        }
    forget_found(&other);
    forget_found(&plain);
}

static struct tensor *choose(struct tape *t, void *context, struct tensor *x) {
    struct small_layer *l = context;
    static const struct routing r = {EXPERTS, CHOSEN, 1, 1, false, 1, false, {0, 1, 1, {0, 0}}};
    struct tensor *index;
    return route(t, linear(t, x, l->gate), l->bias->value, &r, &index);
}

/* The gradient of every score says which experts the replay took, when all routers have turned. */
static void replay_takes_the_kept_experts(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct small_layer l = make_layer(&b);
    double gate[EXPERTS * WIDTH], bias[EXPERTS], x0[TOKENS * WIDTH] = {0}, turned[EXPERTS * WIDTH];
    for (int i = 0; i < EXPERTS * WIDTH; i++) gate[i] = i / WIDTH, turned[i] = -gate[i];
    for (int e = 0; e < EXPERTS; e++) bias[e] = 0;
    for (int t = 0; t < TOKENS; t++) x0[t * WIDTH] = 1;
    put(&b, l.gate->value, F64, EXPERTS * WIDTH, gate);
    put(&b, l.bias->value, F64, EXPERTS, bias);
    struct tensor *x = make_from(&b, &b.t, "rrw", TOKENS, WIDTH, x0);
    struct tensor *y = tape_segment(&b.t, choose, &l, x);
    put(&b, l.gate->value, F64, EXPERTS * WIDTH, turned);
    tape_backward(&b.t, y, 1, MASK_ALL);
    double g[EXPERTS * WIDTH];
    get(&b, l.gate->grad, F64, EXPERTS * WIDTH, g);
    for (int e = 0; e < EXPERTS; e++) /* the two of the highest scores, at the first run */
        assert_true((g[e * WIDTH] != 0) == (e >= EXPERTS - CHOSEN));
    bench_close(&b);
}

static void addresses_repeat(void **state) {
    (void)state;
    for (int recompute = 0; recompute < 2; recompute++) {
        struct bench b;
        struct small_layer l[LAYERS];
        enum { MOST = 1000 };
        static void *first[MOST];
        int n = 0;
        size_t peak = 0, scratch = 0;
        bench_open(&b, F32);
        for (int i = 0; i < LAYERS; i++) l[i] = make_layer(&b);
        for (int step = 0; step < 3; step++) {
            struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
            struct tensor *y = stack_forward(&b, &b.t, l, recompute, x);
            if (!step) n = b.t.n_tensors;
            assert_int_equal(b.t.n_tensors, n);
            for (int i = 0; i < n; i++) {
                if (!step) first[i] = b.t.tensor[i]->data;
                else assert_ptr_equal(b.t.tensor[i]->data, first[i]);
            }
            tape_backward(&b.t, y, 1, MASK_ALL);
            tape_clear(&b.t);
            assert_int_equal(b.work.live, 0);
            arena_check_empty(&b.work);
            arena_check_empty(&b.scratch);
            if (!step) peak = b.work.peak, scratch = b.scratch.peak;
            assert_int_equal(b.work.peak, peak);
            assert_int_equal(b.scratch.peak, scratch);
        }
        bench_close(&b);
    }
}

/* A tape that is cleared in the middle of a step gives everything back too. */
static void cleared_early(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F32);
    for (int stop = 0; stop < 3; stop++) {
        struct small_layer l[LAYERS];
        for (int i = 0; i < LAYERS; i++) l[i] = make_layer(&b);
        struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
        struct tensor *y = stack_forward(&b, &b.t, l, stop == 2, x);
        if (stop) tape_backward(&b.t, y, 1, MASK_INPUT); /* the weights' halves wait */
        tape_clear(&b.t);
        assert_int_equal(b.work.live, 0);
        forget_params(&b);
    }
    bench_close(&b);
}

/* ---------------------------------------------------------------- what is not walked */

static void nothing_upstream(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct param *frozen = make_param(&b, "-", WIDTH, WIDTH), *norm = make_param(&b, "-", WIDTH, 1),
                 *trained = make_param(&b, "-", 3, WIDTH);
    frozen->trained = norm->trained = false;
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
    x->needs_grad = false;
    struct tensor *h = relu2(&b.t, rms_norm(&b.t, linear(&b.t, x, frozen), norm, 1e-5));
    assert_int_equal(b.t.n_notes, 0);
    assert_false(h->needs_grad);
    struct tensor *y = linear(&b.t, h, trained);
    assert_int_equal(b.t.n_notes, 1);
    tape_backward(&b.t, y, 1, MASK_ALL);
    assert_int_equal(b.device.count[OP_matmul].calls, 2);        /* forward */
    assert_int_equal(b.device.count[OP_matmul_weight].calls, 1); /* none for h */
    assert_int_equal(b.device.count[OP_relu2_adjoint].calls, 0);
    assert_int_equal(b.device.count[OP_rms_norm_adjoint].calls, 0);
    double g[WIDTH * WIDTH];
    get(&b, frozen->grad, F64, WIDTH * WIDTH, g);
    for (int i = 0; i < WIDTH * WIDTH; i++) assert_true(g[i] == 0);
    assert_null(h->grad);
    bench_close(&b);
}

/* A frozen weight after a trained one is walked through, and gets nothing. */
static void frozen_between(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct param *first = make_param(&b, "-", 3, WIDTH), *frozen = make_param(&b, "-", 2, 3);
    frozen->trained = false;
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
    x->needs_grad = false;
    struct tensor *y = linear(&b.t, linear(&b.t, x, first), frozen);
    tape_backward(&b.t, y, 1, MASK_ALL);
    double g[3 * WIDTH], w[2 * 3], v[TOKENS * WIDTH], want[3 * WIDTH] = {0};
    get(&b, first->grad, F64, 3 * WIDTH, g);
    get(&b, frozen->value, F64, 2 * 3, w);
    get(&b, x->data, F64, TOKENS * WIDTH, v);
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < 3; r++)
            for (int k = 0; k < WIDTH; k++)
                want[r * WIDTH + k] += (w[r] + w[3 + r]) * v[t * WIDTH + k];
    same(g, want, 3 * WIDTH, "dw");
    get(&b, frozen->grad, F64, 2 * 3, w);
    for (int i = 0; i < 2 * 3; i++) assert_true(w[i] == 0);
    assert_false(x->has_grad);
    bench_close(&b);
}

static struct tensor *one_product(struct tape *t, void *context, struct tensor *x) {
    return linear(t, x, context);
}

/* A segment is walked for the sake of the weights inside it too. */
static void segment_with_first_weight(void **state) {
    (void)state;
    double g[2][3 * WIDTH];
    for (int segment = 0; segment < 2; segment++) {
        struct bench b;
        bench_open(&b, F64);
        struct param *inside = make_param(&b, "-", 3, WIDTH), *after = make_param(&b, "-", 2, 3);
        struct tensor *x = make(&b, &b.t, "rrw", TOKENS, WIDTH);
        x->needs_grad = false;
        struct tensor *y =
            segment ? tape_segment(&b.t, one_product, inside, x) : linear(&b.t, x, inside);
        tape_backward(&b.t, linear(&b.t, y, after), 1, MASK_ALL);
        get(&b, inside->grad, F64, 3 * WIDTH, g[segment]);
        bench_close(&b);
    }
    same(g[1], g[0], 3 * WIDTH, "dw inside");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_gradients),
        cmocka_unit_test(views),
        cmocka_unit_test(freed_early),
        cmocka_unit_test(lives_until_read),
        cmocka_unit_test(ways_of_walking),
        cmocka_unit_test(kept_routing),
        cmocka_unit_test(replay_takes_the_kept_experts),
        cmocka_unit_test(addresses_repeat),
        cmocka_unit_test(cleared_early),
        cmocka_unit_test(nothing_upstream),
        cmocka_unit_test(frozen_between),
        cmocka_unit_test(segment_with_first_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
