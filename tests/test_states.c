/* What an op is given must be split in a way it can be right for: every op with every state of its
 * tensors, and what is refused by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "parallel/expert_parallel.h"
#include "parallel/tensor_parallel.h"
#include "tests/taping.h"

/* Each op of ops.h and of parallel/ as a function of its inputs' layouts, in the order of its
 * arguments, weights as they come. */

static struct tensor *op_add(struct bench *b, const char *const *in) {
    return add(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), make(b, &b->t, in[1], TOKENS, WIDTH));
}

static struct tensor *op_add_bias(struct bench *b, const char *const *in) {
    return add_bias(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), make_param(b, in[1], WIDTH, 1));
}

static struct tensor *op_relu2(struct bench *b, const char *const *in) {
    return relu2(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH));
}

static struct tensor *op_rms_norm(struct bench *b, const char *const *in) {
    return rms_norm(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), make_param(b, in[1], WIDTH, 1),
                    1e-5);
}

static struct tensor *op_linear(struct bench *b, const char *const *in) {
    return linear(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), make_param(b, in[1], 3, WIDTH));
}

static struct tensor *op_grouped_linear(struct bench *b, const char *const *in) {
    const int32_t offset[] = {0, 3, TOKENS};
    return grouped_linear(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH),
                          make_param(b, in[1], 2 * 3, WIDTH), 2,
                          make_ints(b, &b->t, "rrw", 3, 1, offset));
}

static struct tensor *op_embedding(struct bench *b, const char *const *in) {
    const int32_t ids[TOKENS] = {4, 2, 3, 0, 1, 2, 2, 1};
    return embedding(&b->t, make_ints(b, &b->t, in[0], TOKENS, 1, ids),
                     make_param(b, in[1], 5, WIDTH), 0);
}

/* x, weight, bias, state_in; only the first two need be given. */
static struct tensor *op_conv(struct bench *b, const char *const *in) {
    struct batch batch = make_batch(b, &b->t, LENGTH, -1);
    return conv(&b->t, &batch, make(b, &b->t, in[0], TOKENS, WIDTH), make_param(b, in[1], WIDTH, 3),
                in[2] ? make_param(b, in[2], WIDTH, 1) : NULL,
                in[2] && in[3] ? make(b, &b->t, in[3], ROWS, 2 * WIDTH) : NULL, NULL);
}

/* u, dt, weights, state_in. Two heads of two, one group, three state numbers. */
static const struct scan_shape small_scan = {2, 2, 1, 3, 128, 0, INFINITY};

static struct tensor *op_scan(struct bench *b, const char *const *in) {
    struct batch batch = make_batch(b, &b->t, LENGTH, -1);
    struct tensor *u = make(b, &b->t, in[0], TOKENS, 4 + 2 * 3), *w[3];
    for (int i = 0; i < 3; i++) w[i] = tape_use_real(&b->t, make_param(b, in[2], 2, 1), u);
    return scan(&b->t, &batch, &small_scan, u, make(b, &b->t, in[1], TOKENS, 2), w[0], w[1], w[2],
                in[3] ? make(b, &b->t, in[3], ROWS, 4 * 3) : NULL, NULL);
}

static struct tensor *op_gate_squares(struct bench *b, const char *const *in) {
    return gate_squares(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH),
                        make(b, &b->t, in[1], TOKENS, WIDTH), 2, 1);
}

static struct tensor *op_gate_norm(struct bench *b, const char *const *in) {
    return gate_norm(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH),
                     make(b, &b->t, in[1], TOKENS, WIDTH), make(b, &b->t, in[2], TOKENS, 2),
                     make_param(b, in[3], WIDTH, 1), 2, 1e-5);
}

static struct tensor *op_attention(struct bench *b, const char *const *in) {
    struct batch batch = make_batch(b, &b->t, LENGTH, 0);
    return attention(&b->t, &batch, make(b, &b->t, in[0], TOKENS, WIDTH),
                     make(b, &b->t, in[1], TOKENS, 2), make(b, &b->t, in[2], TOKENS, 2), 2, NULL,
                     NULL);
}

static const struct routing small_routing = {3, 2, 1, 1, true, 1, false, {0, 1, 1, {0, 0}}};

static struct tensor *op_route(struct bench *b, const char *const *in) {
    struct tensor *index;
    struct param *bias = make_param(b, "-", 3, 1);
    return route(&b->t, make(b, &b->t, in[0], TOKENS, 3), bias->value, &small_routing, &index);
}

static const int32_t straight[2 * TOKENS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static struct tensor *op_gather_rows(struct bench *b, const char *const *in) {
    return gather_rows(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH),
                       make_ints(b, &b->t, in[0], 2 * TOKENS, 1, straight),
                       make_ints(b, &b->t, in[0], TOKENS, 2, straight), 2);
}

static struct tensor *op_combine_rows(struct bench *b, const char *const *in) {
    return combine_rows(&b->t, make(b, &b->t, in[0], 2 * TOKENS, WIDTH),
                        make(b, &b->t, in[1], TOKENS, 2),
                        make_ints(b, &b->t, in[1], TOKENS, 2, straight));
}

static struct tensor *op_head(struct bench *b, const char *const *in) {
    const int32_t target[TOKENS] = {4, -1, 3, 0, 1, 2, 2, 1};
    struct tensor *lse, *picked;
    head(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), make_param(b, in[1], 5, WIDTH), 0,
         make_ints(b, &b->t, "rrw", TOKENS, 1, target), &lse, &picked);
    assert_string_equal(layout_text(&lse->layout), in[2] ? in[2] : layout_text(&picked->layout));
    return picked;
}

static struct tensor *op_word_loss(struct bench *b, const char *const *in) {
    struct param *weight = make_param(b, "-", TOKENS, 1);
    return word_loss(&b->t, make(b, &b->t, in[0], 1, TOKENS), make(b, &b->t, in[1], 1, TOKENS),
                     weight->value);
}

static struct tensor *op_enter(struct bench *b, const char *const *in) {
    return tensor_enter(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), TOKENS);
}

static struct tensor *op_leave(struct bench *b, const char *const *in) {
    return tensor_leave(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH));
}

static struct tensor *op_leave_to_tokens(struct bench *b, const char *const *in) {
    b->parallel.sequence = true;
    struct tensor *y = op_leave(b, in);
    b->parallel.sequence = false;
    return y;
}

static struct tensor *op_gather(struct bench *b, const char *const *in) {
    return tensor_gather(&b->t, make(b, &b->t, in[0], TOKENS, 1));
}

static struct tensor *op_share_sum(struct bench *b, const char *const *in) {
    return share_sum(&b->t, make(b, &b->t, in[0], TOKENS, 2), 2);
}

static struct tensor *op_dispatch(struct bench *b, const char *const *in) {
    struct tensor *offset = NULL;
    struct journey *j = expert_dispatch_start(
        &b->t, make(b, &b->t, in[0], TOKENS, WIDTH), NULL,
        &(struct travel){.experts = 1, .chosen = 1, .tokens = TOKENS, .length = TOKENS});
    return expert_dispatch_wait(&b->t, j, &offset);
}

static struct tensor *op_return(struct bench *b, const char *const *in) {
    struct journey *j = expert_dispatch_start(
        &b->t, make(b, &b->t, "rre", TOKENS, WIDTH), NULL,
        &(struct travel){.experts = 1, .chosen = 1, .tokens = TOKENS, .length = TOKENS});
    expert_return_start(&b->t, j, make(b, &b->t, in[0], TOKENS, WIDTH));
    return expert_return_wait(&b->t, j);
}

static struct tensor *op_columns(struct bench *b, const char *const *in) {
    struct tensor *v[2];
    tensor_columns(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH), 1, (int64_t[]){WIDTH}, v);
    return v[0];
}

struct state_case {
    const char *name;
    struct tensor *(*op)(struct bench *b, const char *const *in);
    const char *in[4];
    const char *out; /* NULL: refused */
};

#define LEGAL(op, out, ...)                                                                        \
    { #op, op_##op, {__VA_ARGS__ }, out }
#define REFUSED(op, ...)                                                                           \
    { #op, op_##op, {__VA_ARGS__ }, NULL }

static struct state_case state_cases[] = {
    LEGAL(add, "rrw", "rrw", "rrw"),
    LEGAL(add, "rre", "rre", "rre"),
    LEGAL(add, "rrr", "rrr", "rrr"),
    LEGAL(add, "rrc", "rrc", "rrc"),
    LEGAL(add, "rrs", "rrs", "rrs"),
    LEGAL(add, "rrp", "rrp", "rrp"),
    LEGAL(add, "Xrrp", "Xrrp", "Xrrp"),
    REFUSED(add, "rrw", "rre"),
    REFUSED(add, "rrw", "rrr"),
    REFUSED(add, "rrw", "rrc"),
    REFUSED(add, "rrw", "rrp"),
    REFUSED(add, "rre", "rrp"),
    REFUSED(add, "rre", "rrc"),
    REFUSED(add, "rrr", "rrc"),
    REFUSED(add, "rrr", "rrp"),
    REFUSED(add, "rrc", "rrp"),
    REFUSED(add, "rrc", "rrs"),
    REFUSED(add, "wrw", "rrw"),
    REFUSED(add, "rrw", "Xrrw"),

    LEGAL(add_bias, "rrw", "rrw", "-"),
    LEGAL(add_bias, "rre", "rre", "-"),
    LEGAL(add_bias, "rrr", "rrr", "-"),
    LEGAL(add_bias, "rrc", "rrc", "R"),
    REFUSED(add_bias, "rrp", "-"),
    REFUSED(add_bias, "rrp", "R"),
    REFUSED(add_bias, "rrw", "R"),
    REFUSED(add_bias, "rrr", "R"),

    LEGAL(relu2, "rrw", "rrw"),
    LEGAL(relu2, "rre", "rre"),
    LEGAL(relu2, "rrr", "rrr"),
    LEGAL(relu2, "rrc", "rrc"),
    LEGAL(relu2, "rrs", "rrs"),
    LEGAL(relu2, "Xrrc", "Xrrc"),
    REFUSED(relu2, "rrp"),
    REFUSED(relu2, "rpw"),
    REFUSED(relu2, "?rrw"),

    LEGAL(rms_norm, "rrw", "rrw", "-"),
    LEGAL(rms_norm, "rre", "rre", "-"),
    LEGAL(rms_norm, "rrr", "rrr", "-"),
    REFUSED(rms_norm, "rrc", "-"),
    REFUSED(rms_norm, "rrc", "R"),
    REFUSED(rms_norm, "rrp", "-"),
    REFUSED(rms_norm, "?rrw", "-"),

    LEGAL(linear, "rrw", "rrw", "-"),
    LEGAL(linear, "rre", "rre", "-"),
    LEGAL(linear, "rrr", "rrr", "-"),
    LEGAL(linear, "rrp", "rrp", "-"),
    LEGAL(linear, "rrc", "rre", "R"),
    LEGAL(linear, "rrp", "rrc", "C"),
    REFUSED(linear, "rrc", "-"),
    REFUSED(linear, "rrw", "R"),
    REFUSED(linear, "rrr", "R"),
    REFUSED(linear, "rrc", "R"),
    REFUSED(linear, "rrp", "R"),
    REFUSED(linear, "rrw", "C"),
    REFUSED(linear, "rre", "C"),
    REFUSED(linear, "rrr", "C"),
    REFUSED(linear, "rrp", "C"),
    REFUSED(linear, "rrs", "C"),
    REFUSED(linear, "?rrw", "-"),

    LEGAL(grouped_linear, "Xrrc", "Xrre", "XR"),
    LEGAL(grouped_linear, "Xrrp", "Xrrc", "XC"),
    REFUSED(grouped_linear, "Xrrw", "XR"),
    REFUSED(grouped_linear, "Xrrr", "XR"),
    REFUSED(grouped_linear, "Xrrp", "XR"),
    REFUSED(grouped_linear, "Xrre", "XC"),
    REFUSED(grouped_linear, "Xrrs", "XC"),
    REFUSED(grouped_linear, "Xrwe", "XR"),
    REFUSED(grouped_linear, "Xree", "XR"),
    REFUSED(grouped_linear, "?Xrre", "XR"),

    LEGAL(embedding, "rrp", "rrw", "R"),
    LEGAL(embedding, "rrw", "rrw", "-"),
    LEGAL(embedding, "rrr", "rrr", "-"),

    LEGAL(conv, "rrc", "rrc", "R"),
    LEGAL(conv, "rrc", "rrc", "R", "R", "rrc"),
    LEGAL(conv, "rrs", "rrs", "R", "R", "rrs"),
    LEGAL(conv, "rrw", "rrw", "-", "-", "rrw"),
    REFUSED(conv, "rrw", "R"),
    REFUSED(conv, "rrr", "R"),
    REFUSED(conv, "rrp", "R"),
    REFUSED(conv, "rrp", "-"),
    REFUSED(conv, "rrc", "R", "R", "rrw"),
    REFUSED(conv, "rrc", "R", "R", "rrp"),
    REFUSED(conv, "?rrc", "R"),
    REFUSED(conv, "rrc", "R", "R", "?rrc"),

    LEGAL(scan, "rrc", "rrc", "rrc", "R"),
    LEGAL(scan, "rrc", "rrs", "rrc", "R", "rrc"),
    LEGAL(scan, "rrw", "rrw", "rrw", "-"),
    REFUSED(scan, "rrw", "rrw", "R"),
    REFUSED(scan, "rrw", "rre", "-"),
    REFUSED(scan, "rrp", "rrc", "R"),
    REFUSED(scan, "rrc", "rrp", "R"),
    REFUSED(scan, "rrc", "rrc", "R", "rrw"),
    REFUSED(scan, "rrr", "rrc", "R"),
    REFUSED(scan, "?rrc", "rrc", "R"),
    REFUSED(scan, "rrc", "?rrc", "R"),

    LEGAL(gate_squares, "rrc", "rrc", "rrc"),
    LEGAL(gate_squares, "rrw", "rrw", "rrw"),
    LEGAL(gate_squares, "rre", "rre", "rre"),
    REFUSED(gate_squares, "rrw", "rre"),
    REFUSED(gate_squares, "rrw", "rrc"),
    REFUSED(gate_squares, "rrr", "rrc"),
    REFUSED(gate_squares, "rrp", "rrp"),
    REFUSED(gate_squares, "rrc", "rrp"),
    REFUSED(gate_squares, "?rrc", "rrc"),

    LEGAL(gate_norm, "rrc", "rrc", "rrc", "rrc", "R"),
    LEGAL(gate_norm, "rrw", "rrw", "rrw", "rrw", "-"),
    REFUSED(gate_norm, "rrw", "rrw", "rrw", "R"),
    REFUSED(gate_norm, "rrc", "rrc", "rrp", "R"),
    REFUSED(gate_norm, "rrc", "rrw", "rrc", "R"),
    REFUSED(gate_norm, "rrp", "rrc", "rrc", "R"),
    REFUSED(gate_norm, "rrc", "rrc", "?rrc", "R"),

    LEGAL(attention, "rrc", "rrc", "rrc", "rrc"),
    LEGAL(attention, "rrc", "rrc", "rrs", "rrs"),
    LEGAL(attention, "rrw", "rrw", "rrw", "rrw"),
    REFUSED(attention, "rrw", "rre", "rre"),
    REFUSED(attention, "rrc", "rrw", "rrw"),
    REFUSED(attention, "rrc", "rrr", "rrr"),
    REFUSED(attention, "rrp", "rrc", "rrc"),
    REFUSED(attention, "rrc", "rrc", "rrp"),
    REFUSED(attention, "rrc", "rrc", "?rrc"),

    LEGAL(route, "rrw", "rrw"),
    LEGAL(route, "rrr", "rrr"),
    LEGAL(route, "rre", "rre"),
    REFUSED(route, "rrp"),
    REFUSED(route, "?rrw"),

    LEGAL(gather_rows, "rre", "rre"),
    LEGAL(gather_rows, "rrw", "rrw"),
    REFUSED(gather_rows, "rrp"),
    REFUSED(gather_rows, "?rre"),

    LEGAL(combine_rows, "rrp", "rrp", "rre"),
    LEGAL(combine_rows, "rrc", "rrc", "rre"),
    LEGAL(combine_rows, "rre", "rre", "rre"),
    LEGAL(combine_rows, "rrw", "rrw", "rrw"),
    LEGAL(combine_rows, "rrr", "rrr", "rrr"),
    REFUSED(combine_rows, "rrp", "rrw"),
    REFUSED(combine_rows, "rrw", "rre"),
    REFUSED(combine_rows, "rre", "rrw"),
    REFUSED(combine_rows, "rre", "rrp"),
    REFUSED(combine_rows, "rrp", "rrc"),
    REFUSED(combine_rows, "rre", "rrr"),
    REFUSED(combine_rows, "Xrrp", "rre"),

    LEGAL(head, "rrc", "rre", "R", "rrc"),
    LEGAL(head, "rrw", "rrw", "-", "rrw"),
    LEGAL(head, "rrr", "rrr", "-", "rrr"),
    REFUSED(head, "rrw", "R"),
    REFUSED(head, "rrr", "R"),
    REFUSED(head, "rrc", "R"),
    REFUSED(head, "rrp", "-"),
    REFUSED(head, "rrp", "R"),
    REFUSED(head, "?rre", "R"),

    LEGAL(word_loss, "ccw", "ccw", "ccw"),
    REFUSED(word_loss, "ccw", "cce"),
    REFUSED(word_loss, "ccp", "ccp"),
    REFUSED(word_loss, "ccw", "?ccw"),

    LEGAL(enter, "rre", "rrw"),
    LEGAL(enter, "rre", "rrr"),
    REFUSED(enter, "rre"),
    REFUSED(enter, "rrc"),
    REFUSED(enter, "rrs"),
    REFUSED(enter, "rrp"),
    REFUSED(enter, "?rrw"),

    LEGAL(leave, "rrw", "rrp"),
    LEGAL(leave_to_tokens, "rrr", "rrp"),
    REFUSED(leave, "rrw"),
    REFUSED(leave, "rre"),
    REFUSED(leave, "rrr"),
    REFUSED(leave, "rrc"),
    REFUSED(leave, "?rrp"),

    LEGAL(gather, "ccw", "rrc"),
    REFUSED(gather, "rrw"),
    REFUSED(gather, "rre"),
    REFUSED(gather, "rrp"),

    REFUSED(share_sum, "rrw"),
    REFUSED(share_sum, "rre"),
    REFUSED(share_sum, "rrp"),

    LEGAL(dispatch, "Xrre", "rre"),
    LEGAL(dispatch, "Xrrw", "rrw"),
    LEGAL(return, "rrp", "Xrrp"),
    LEGAL(return, "rrc", "Xrrc"),
    REFUSED(dispatch, "Xrre"),
    REFUSED(return, "rrp"),

    LEGAL(columns, "rrc", "rrc"),
    LEGAL(columns, "rrs", "rrs"),
    LEGAL(columns, "rrw", "rrw"),
    REFUSED(columns, "?rrc"),
};

/* What would be wrong on more than one rank, and must not pass on one. */
static struct state_case wrong_on_many_ranks[] = {
    REFUSED(embedding, "rrr", "R"), /* other tokens on each rank, and a part of the words */
    REFUSED(route, "rrc"),          /* a part of the experts' scores */
    REFUSED(head, "rrc", "-"),      /* a part of the features */
    REFUSED(combine_rows, "rrc", "rrr"),
    REFUSED(combine_rows, "?rrp", "rre"),
    REFUSED(combine_rows, "rrp", "?rre"),
    REFUSED(gather, "rrr"), /* tokens, not words */
    REFUSED(gather, "?rrc"),
    REFUSED(enter, "Xrrw"), /* the experts' axes are not those of the tensor group */
    REFUSED(leave, "Xrrp"),
};

struct attempt {
    struct bench *b;
    const struct state_case *c;
};

static void attempt(void *with) {
    struct attempt *a = with;
    a->c->op(a->b, a->c->in);
}

/* Prints every case that ends otherwise than it should; returns how many. */
static int try_states(const struct state_case *cases, int n) {
    struct bench b;
    int wrong = 0;
    bench_open(&b, F64);
    for (int i = 0; i < n; i++) {
        const struct state_case *c = &cases[i];
        struct attempt a = {&b, c};
        struct ending e = ending_of(attempt, &a);
        char name[64], line[128] = "";
        const char *op = !strncmp(c->name, "leave", 5) ? "leave" : c->name;
        snprintf(name, sizeof name, "op %s,", op);
        for (int k = 0; k < 4 && c->in[k]; k++)
            snprintf(line + strlen(line), sizeof line - strlen(line), " %s", c->in[k]);
        if (e.refused != !c->out || (!c->out && !strstr(e.text, name))) {
            wrong++;
            print_error("%s%s: %s %s\n", c->name, line, e.refused ? "refused:" : "not refused",
                        e.text);
        } else if (c->out) {
            assert_string_equal(layout_text(&c->op(&b, c->in)->layout), c->out);
            tape_clear(&b.t);
            forget_params(&b);
        }
    }
    bench_close(&b);
    return wrong;
}

static void states(void **state) {
    (void)state;
    assert_int_equal(try_states(state_cases, sizeof state_cases / sizeof *state_cases), 0);
}

static void states_wrong_on_many_ranks(void **state) {
    (void)state;
    assert_int_equal(
        try_states(wrong_on_many_ranks, sizeof wrong_on_many_ranks / sizeof *wrong_on_many_ranks),
        0);
}

static void two_states(void *with) {
    struct bench *b = with;
    struct param *p = make_param(b, "-", 3, WIDTH);
    linear(&b->t, make(b, &b->t, "rrw", TOKENS, WIDTH), p);
    linear(&b->t, make(b, &b->t, "rre", TOKENS, WIDTH), p);
}

static void other_factoring(void *with) {
    struct bench *b = with;
    linear(&b->t, make(b, &b->t, "Xrre", TOKENS, WIDTH), make_param(b, "R", 3, WIDTH));
}

static void view_of_view(void *with) {
    struct bench *b = with;
    struct tensor *v[2];
    tensor_columns(&b->t, make(b, &b->t, "rrw", TOKENS, WIDTH), 2, (int64_t[]){3, 1}, v);
    tensor_columns(&b->t, v[0], 1, (int64_t[]){3}, v);
}

static void views_too_narrow(void *with) {
    struct bench *b = with;
    struct tensor *v[2];
    tensor_columns(&b->t, make(b, &b->t, "rrw", TOKENS, WIDTH), 2, (int64_t[]){2, 1}, v);
}

static void segment_cut(void *with) {
    struct bench *b = with;
    struct tensor *v[2], *x = make(b, &b->t, "rrc", TOKENS, WIDTH);
    x->layout.n_segments = 2;
    x->layout.segment[0] = x->layout.segment[1] = (struct segment){2, 1};
    tensor_columns(&b->t, x, 2, (int64_t[]){1, 3}, v);
}

static void overwriting_leave(void *with) {
    struct bench *b = with;
    struct tensor *x = make(b, &b->t, "rrw", TOKENS, WIDTH), *y = relu2(&b->t, x);
    relu2(&b->t, y);
    y->layout.state[AXIS_TENSOR] = PARTIAL;
    tensor_leave(&b->t, y);
}

static void released_twice(void *with) {
    struct bench *b = with;
    struct tensor *x = make(b, &b->t, "rrw", TOKENS, WIDTH);
    tensor_drop(&b->t, x);
    x->in_scope = true;
    tensor_drop(&b->t, x);
}

static void other_refusals(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    refuses(two_states, &b, "parameter weight");
    refuses(other_factoring, &b, "other factoring");
    refuses(view_of_view, &b, "op columns");
    refuses(views_too_narrow, &b, "op columns");
    refuses(segment_cut, &b, "op columns");
    refuses(released_twice, &b, "'input'");
    assert_false(ending_of(overwriting_leave, &b).refused); /* one rank: nothing is overwritten */
    bench_close(&b);
}

/* The states a parameter is used in follow the tensor beside it, axis by axis. */
static void uses(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    static const char *const x[] = {"rrw", "wrw", "rre", "rrr", "rrp"};
    static const char *const want[] = {"eew", "wew", "eee", "eee", "eee"};
    for (int i = 0; i < 5; i++) {
        struct param *p = make_param(&b, "-", 3, WIDTH);
        struct tensor *w = tape_use(&b.t, p, make(&b, &b.t, x[i], TOKENS, WIDTH));
        assert_string_equal(layout_text(&w->layout), want[i]);
        assert_true(p->used && w->needs_grad);
        assert_string_equal(layout_text(&p->layout), want[i]);
    }
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states),
        cmocka_unit_test(states_wrong_on_many_ranks),
        cmocka_unit_test(other_refusals),
        cmocka_unit_test(uses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
