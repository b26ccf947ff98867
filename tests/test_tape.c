/* Arenas, tensor states and the tape: that memory is the same everywhere and given back early, that
 * an op refuses what it cannot be right for, and that shared, cut, replayed and split walks all
 * give the gradients of the plain one. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

enum { ROWS = 2, LENGTH = 4, TOKENS = ROWS * LENGTH, WIDTH = 4 };

struct bench {
    struct device device;
    struct arena work, scratch, weights;
    struct comm comm;
    struct parallel parallel;
    struct tape t;
    uint64_t seed;
    struct param *param[64];
    int n_params;
};

static const struct mesh_shape alone = {1, 1, 1, 1, 1, 1, 1};

static void open_tape(struct bench *b, struct tape *t, enum dtype real) {
    tape_init(t, &b->device, &b->work, &b->scratch, real, &b->parallel);
}

static void bench_open(struct bench *b, enum dtype real) {
    memset(b, 0, sizeof *b);
    device_cpu(&b->device, 1, true);
    arena_init(&b->work, "work", &b->device);
    arena_init(&b->scratch, "scratch", &b->device);
    arena_init(&b->weights, "weights", &b->device);
    struct mistakes *none = NULL;
    assert_int_equal(comm_init(&b->comm, none), 0);
    parallel_init(&b->parallel, &b->comm, &alone, false, 0, NULL);
    open_tape(b, &b->t, real);
}

static void forget_params(struct bench *b) {
    for (int i = 0; i < b->n_params; i++) free(b->param[i]);
    b->n_params = 0;
}

static void bench_close(struct bench *b) {
    tape_free(&b->t);
    arena_check_empty(&b->work);
    arena_check_empty(&b->scratch);
    assert_int_equal(b->work.live, 0);
    forget_params(b);
    arena_free_all(&b->work);
    arena_free_all(&b->scratch);
    arena_free_all(&b->weights);
    parallel_free(&b->parallel);
    comm_end(&b->comm);
}

/* ---------------------------------------------------------------- numbers */

static double random_number(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 4503599627370496.0 - 1;
}

static void put(struct bench *b, void *to, enum dtype d, int64_t n, const double *x) {
    float *f = die_alloc(n * sizeof *f);
    for (int64_t i = 0; i < n; i++) f[i] = (float)x[i];
    device_write(&b->device, to, d == F64 ? (const void *)x : f, n * dtype_size(d));
    free(f);
}

static void get(struct bench *b, const void *from, enum dtype d, int64_t n, double *x) {
    float *f = die_alloc(n * sizeof *f);
    device_read(&b->device, d == F64 ? (void *)x : f, from, n * dtype_size(d));
    for (int64_t i = 0; d != F64 && i < n; i++) x[i] = f[i];
    free(f);
}

static double *random_numbers(int64_t n, uint64_t seed) {
    double *x = die_alloc(n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = random_number(&seed);
    return x;
}

static void same(const double *found, const double *expected, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(found[i] - expected[i]) <= 1e-12 * (1 + fabs(expected[i]))))
            fail_msg("%s[%d]: got %.17g, want %.17g", what, (int)i, found[i], expected[i]);
}

/* ---------------------------------------------------------------- layouts, spelled
 *
 * A letter for data, context and tensor: w whole, e entered, r split by rows, c split by columns,
 * s the same shared by two neighbours, p partial. Before them X: the experts' factoring; ?: the
 * value was left out of a replay. Weights: - not split, R by rows, C by columns, before it X. */

static struct layout layout_of(const char *text, int64_t width) {
    struct layout l = {.factoring = DENSE};
    for (; *text == '?' || *text == 'X'; text++)
        if (*text == 'X') l.factoring = EXPERT;
    for (int a = 0; a < N_AXES; a++) {
        char s = text[a];
        l.state[a] = s == 'w' ? WHOLE : s == 'e' ? ENTERED : s == 'p' ? PARTIAL : SPLIT;
        l.by[a] = s == 'c' || s == 's' ? BY_COLUMNS : BY_ROWS;
        if (a == AXIS_TENSOR && l.by[a] == BY_COLUMNS) {
            l.n_segments = 1;
            l.segment[0] = (struct segment){width, s == 's' ? 2 : 1};
        }
    }
    return l;
}

static const char *layout_text(const struct layout *l) {
    static char text[N_AXES + 2];
    char *p = text;
    if (l->factoring == EXPERT) *p++ = 'X';
    for (int a = 0; a < N_AXES; a++) {
        bool columns = l->by[a] == BY_COLUMNS, shared = false;
        for (int i = 0; i < l->n_segments; i++) shared |= l->segment[i].share > 1;
        *p++ = l->state[a] == WHOLE         ? 'w'
               : l->state[a] == ENTERED     ? 'e'
               : l->state[a] == PARTIAL     ? 'p'
               : !columns                   ? 'r'
               : a == AXIS_TENSOR && shared ? 's'
                                            : 'c';
    }
    *p = 0;
    return text;
}

/* A tensor of random numbers that wants a gradient. */
static struct tensor *make(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                           int64_t width) {
    struct layout l = layout_of(layout, width);
    struct tensor *x = tensor_new(t, "input", rows, width, &l);
    double *v = random_numbers(rows * width, ++b->seed);
    put(b, x->data, t->real, rows * width, v);
    free(v);
    x->needs_grad = true;
    x->missing = *layout == '?';
    return x;
}

static struct tensor *make_from(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                                int64_t width, const double *v) {
    struct layout l = layout_of(layout, width);
    struct tensor *x = tensor_new(t, "input", rows, width, &l);
    put(b, x->data, t->real, rows * width, v);
    x->needs_grad = true;
    return x;
}

static struct tensor *make_ints(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                                int64_t width, const int32_t *v) {
    struct layout l = layout_of(layout, width);
    struct tensor *x = tensor_new_ints(t, "integers", rows, width, &l);
    device_write(&b->device, x->data, v, rows * width * sizeof *v);
    return x;
}

static struct param *make_param(struct bench *b, const char *split, int64_t rows, int64_t width) {
    struct param *p = die_alloc(sizeof *p);
    b->param[b->n_params++] = p;
    p->name = "weight";
    p->rows = rows;
    p->width = width;
    p->dtype = b->t.real;
    p->trained = true;
    if (*split == 'X') {
        p->layout.factoring = EXPERT;
        p->layout.state[AXIS_EXPERT] = SPLIT;
        split++;
    }
    if (*split != '-') {
        p->layout.state[AXIS_TENSOR] = SPLIT;
        p->layout.by[AXIS_TENSOR] = *split == 'R' ? BY_ROWS : BY_COLUMNS;
        p->layout.n_segments = 1;
        p->layout.segment[0] = (struct segment){*split == 'R' ? rows : width, 1};
    }
    size_t bytes = rows * width * dtype_size(b->t.real);
    arena_take(&b->weights, bytes, "value", &p->value);
    arena_take(&b->weights, bytes, "gradient", &p->grad);
    double *v = random_numbers(rows * width, ++b->seed);
    put(b, p->value, b->t.real, rows * width, v);
    device_zero(&b->device, p->grad, bytes);
    free(v);
    return p;
}

static struct batch make_batch(struct bench *b, struct tape *t, int64_t length, int32_t start) {
    int32_t v[TOKENS];
    for (int i = 0; i < ROWS * length; i++) v[i] = start;
    return (struct batch){ROWS, length, make_ints(b, t, "rrw", ROWS * length, 1, v)};
}

/* ---------------------------------------------------------------- ends of children */

struct ending {
    bool refused;
    char text[2048];
};

static void leave_now(int code) {
    _exit(code);
}

/* How a child that does this ends, and what it says. */
static struct ending ending_of(void (*act)(void *), void *with) {
    struct ending e = {0};
    int pipes[2], status = 0;
    assert_int_equal(pipe(pipes), 0);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], 2);
        close(pipes[0]);
        die_set_hooks(NULL, leave_now);
        act(with);
        _exit(0);
    }
    close(pipes[1]);
    size_t n = 0;
    for (ssize_t got; (got = read(pipes[0], e.text + n, sizeof e.text - 1 - n)) > 0;)
        n += (size_t)got;
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    e.refused = WIFEXITED(status) && WEXITSTATUS(status) == 1;
    if (!e.refused && status) snprintf(e.text + n, sizeof e.text - n, " (status %d)", status);
    return e;
}

static void refuses(void (*act)(void *), void *with, const char *name) {
    struct ending e = ending_of(act, with);
    if (!e.refused) fail_msg("not refused: %s %s", name, e.text);
    if (!strstr(e.text, name)) fail_msg("'%s' is not named: %s", name, e.text);
}

/* ---------------------------------------------------------------- arenas */

enum { STEPS = 3000, HELD = 60 };

struct history {
    size_t at[STEPS], top[STEPS], peak, live;
};

/* Takes and gives at random, the same on every device. Returns with nothing in use. */
static void take_and_give(struct device *d, struct history *h) {
    struct arena a;
    struct piece *piece[HELD] = {0};
    size_t from[HELD] = {0}, size[HELD] = {0};
    uint64_t seed = 7;
    size_t spread = d->debug && !d->dry ? 2 : 1;
    arena_init(&a, "history", d);
    for (int i = 0; i < STEPS; i++) {
        int k = (int)((random_number(&seed) + 1) / 2 * HELD) % HELD;
        h->at[i] = 0;
        if (piece[k]) {
            arena_give(&a, piece[k]);
            piece[k] = NULL;
        } else {
            void *p;
            size_t bytes = (size_t)(exp(5 * (random_number(&seed) + 1)) - 1);
            piece[k] = arena_take(&a, bytes, "piece", &p);
            h->at[i] = from[k] = (size_t)((char *)p - a.base) / spread;
            size[k] = arena_round(bytes);
            assert_true(size[k] >= bytes && size[k] % 64 == 0 && size[k] > 0);
            assert_int_equal(from[k] % 64, 0);
            for (int j = 0; j < HELD; j++)
                if (j != k && piece[j])
                    assert_true(from[j] + size[j] <= from[k] || from[k] + size[k] <= from[j]);
        }
        h->top[i] = a.top;
        size_t end = 0, live = 0;
        for (int j = 0; j < HELD; j++)
            if (piece[j]) end = from[j] + size[j] > end ? from[j] + size[j] : end, live += size[j];
        assert_int_equal(a.top, end);
        assert_int_equal(a.live, live);
        assert_true(a.peak >= end);
    }
    h->peak = a.peak;
    h->live = a.live;
    for (int k = 0; k < HELD; k++)
        if (piece[k]) arena_give(&a, piece[k]);
    arena_check_empty(&a);
    assert_int_equal(a.top, 0);
    assert_int_equal(a.live, 0);
    assert_null(a.first);
    arena_free_all(&a);
}

static void same_addresses(void **state) {
    (void)state;
    static struct history h[4];
    for (int i = 0; i < 4; i++) {
        struct device d;
        if (i < 2) device_cpu(&d, 1, i == 1);
        else device_dry(&d);
        if (i == 3) d.debug = true;
        take_and_give(&d, &h[i]);
        assert_memory_equal(&h[i], &h[0], sizeof h[0]);
    }
}

/* The smallest hole that is large enough, of equal ones the lowest; neighbours become one hole. */
static void best_fit(void **state) {
    (void)state;
    static const size_t bytes[] = {256, 64, 128, 64, 128, 64, 192, 64};
    struct device d;
    struct arena a;
    struct piece *piece[8];
    void *at[8], *p;
    device_dry(&d);
    arena_init(&a, "holes", &d);
    for (int i = 0; i < 8; i++) piece[i] = arena_take(&a, bytes[i], "piece", &at[i]);
    for (int i = 0; i < 8; i += 2) arena_give(&a, piece[i]);
    arena_take(&a, 100, "first of two equal holes", &p);
    assert_ptr_equal(p, at[2]);
    arena_take(&a, 128, "second", &p);
    assert_ptr_equal(p, at[4]);
    arena_take(&a, 65, "next larger", &p);
    assert_ptr_equal(p, at[6]);
    arena_take(&a, 64, "what was left of it", &p);
    assert_ptr_equal(p, (char *)at[6] + 128);
    arena_give(&a, piece[1]);
    arena_take(&a, 320, "two holes in one", &p);
    assert_ptr_equal(p, at[0]);
    assert_int_equal(a.peak, 960);
    arena_free_all(&a);
}

struct overrun {
    size_t bytes, at;
};

static void overrun(void *with) {
    const struct overrun *o = with;
    struct device d;
    struct arena a;
    void *p;
    device_cpu(&d, 1, true);
    arena_init(&a, "small", &d);
    struct piece *piece = arena_take(&a, o->bytes, "overrun piece", &p);
    ((char *)device_host(&d, p))[o->at] = 1;
    arena_give(&a, piece);
}

static void give_twice(void *with) {
    (void)with;
    struct device d;
    struct arena a;
    void *p;
    device_cpu(&d, 1, false);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 64, "given twice", &p);
    arena_take(&a, 64, "other", &p);
    arena_give(&a, one);
    arena_give(&a, one);
}

static void leak(void *with) {
    (void)with;
    struct device d;
    struct arena a;
    void *p;
    device_dry(&d);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 64, "given back", &p);
    arena_take(&a, 64, "leaked piece", &p);
    arena_give(&a, one);
    arena_check_empty(&a);
}

static void arena_mistakes(void **state) {
    (void)state;
    static struct overrun past[] = {{128, 128}, {128, 200}, {64, 64}, {1 << 16, (1 << 16) + 5}};
    for (int i = 0; i < 4; i++) refuses(overrun, &past[i], "overrun piece");
    struct overrun inside = {128, 127};
    assert_false(ending_of(overrun, &inside).refused);
    refuses(give_twice, NULL, "given twice");
    refuses(leak, NULL, "leaked piece");
}

/* On a debug device fresh memory and memory given back are NaN. */
static void poisoned(void **state) {
    (void)state;
    struct device d;
    struct arena a;
    void *p, *q;
    device_cpu(&d, 1, true);
    arena_init(&a, "small", &d);
    struct piece *one = arena_take(&a, 800, "one", &p);
    arena_take(&a, 64, "two", &q);
    double *v = device_host(&d, p);
    for (int i = 0; i < 100; i++) {
        assert_true(isnan(v[i]) && isnan(((float *)v)[2 * i + 1]));
        v[i] = 1;
    }
    arena_give(&a, one);
    for (int i = 0; i < 100; i++) assert_true(isnan(v[i]));
    arena_free_all(&a);
}

/* ---------------------------------------------------------------- states
 *
 * Each op of ops.h and of parallel/ as a function of its inputs' layouts, in the order of its
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
    return scan(&b->t, &batch, &small_scan, make(b, &b->t, in[0], TOKENS, 4 + 2 * 3),
                make(b, &b->t, in[1], TOKENS, 2), make_param(b, in[2], 2, 1),
                make_param(b, in[2], 2, 1), make_param(b, in[2], 2, 1),
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

static const struct routing small_routing = {3, 2, 1, 1, true, 1};

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
    return expert_dispatch(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH));
}

static struct tensor *op_return(struct bench *b, const char *const *in) {
    return expert_return(&b->t, make(b, &b->t, in[0], TOKENS, WIDTH));
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

/* ---------------------------------------------------------------- gradients */

/* The gradient of a leaf. */
static double *grad_of(struct bench *b, const struct tensor *x) {
    double *g = die_alloc(x->rows * x->width * sizeof *g);
    assert_true(x->has_grad);
    for (int64_t r = 0; r < x->rows; r++)
        get(b, (char *)x->grad + r * x->stride * dtype_size(b->t.real), b->t.real, x->width,
            g + r * x->width);
    return g;
}

static void expect_grad(struct bench *b, const struct tensor *x, const double *want) {
    double *g = grad_of(b, x);
    same(g, want, x->rows * x->width, x->label);
    free(g);
}

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
    static const struct routing r = {EXPERTS, CHOSEN, 1, 1, true, 2.5};
    struct tensor *h = rms_norm(t, x, l->norm, 1e-5), *index, *order, *position, *offset;
    struct tensor *weight = route(t, linear(t, h, l->gate), l->bias->value, &r, &index);
    weight = tensor_enter(t, weight, TOKENS);
    index = tensor_enter(t, index, TOKENS);
    struct tensor *full = tensor_enter(t, h, TOKENS);
    sort_experts(t, index, EXPERTS, &order, &position, &offset);
    count_experts(t, offset, l->load);
    struct tensor *in = expert_dispatch(t, gather_rows(t, full, order, position, CHOSEN));
    struct tensor *a = relu2(t, grouped_linear(t, in, l->up, EXPERTS, offset));
    tensor_drop(t, in);
    struct tensor *y = expert_return(t, grouped_linear(t, a, l->down, EXPERTS, offset));
    y = combine_rows(t, y, weight, position);
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
    static const struct routing r = {EXPERTS, CHOSEN, 1, 1, false, 1};
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

/* ---------------------------------------------------------------- states in and out
 *
 * Rows of 2 * CUT tokens, whole and in two halves with the state handed on. The halves' results
 * are squared and added, so that both get gradients that depend on the values. */

enum { CUT = 4, CHANNELS = 3, TAPS = 4, HEADS = 2, DEPTH = 2, STATE = 3, MOST_WIDE = 16 };
enum { WIDE_SCAN = HEADS * DEPTH + 2 * STATE };

/* Tokens from..from+n of each row of x[ROWS][2 * CUT][width]. */
static struct tensor *part(struct bench *b, const double *x, int64_t width, int from, int n) {
    double v[ROWS * 2 * CUT * MOST_WIDE];
    for (int r = 0; r < ROWS; r++)
        memcpy(v + r * n * width, x + (r * 2 * CUT + from) * width, n * width * sizeof *x);
    return make_from(b, &b->t, "rrw", ROWS * n, width, v);
}

static struct batch part_batch(struct bench *b, int from, int n) {
    int32_t v[ROWS * 2 * CUT];
    for (int i = 0; i < ROWS * n; i++) v[i] = (i / n ? 1 : -2) - from; /* a cut document each */
    for (int i = 0; i < n; i++)
        if (from + i == 0) v[n + i] = 0;
    return (struct batch){ROWS, n, make_ints(b, &b->t, "rrw", ROWS * n, 1, v)};
}

/* Puts the gradient of a part into its place in the whole. */
static void gather_grad(struct bench *b, const struct tensor *x, int from, int n, double *whole) {
    double *g = grad_of(b, x);
    for (int r = 0; r < ROWS; r++)
        memcpy(whole + (r * 2 * CUT + from) * x->width, g + r * n * x->width,
               n * x->width * sizeof *g);
    free(g);
}

struct cut_found {
    double input[4][ROWS * 2 * CUT * MOST_WIDE], weight[4][64];
};

enum { CONV, SCAN, ATTENTION };

static void run_cut(int which, bool cut, struct cut_found *f) {
    struct bench b;
    static const int64_t widths[3][3] = {
        {CHANNELS}, {WIDE_SCAN, HEADS}, {HEADS * DEPTH, DEPTH, DEPTH}};
    struct tensor *in[2][4] = {{0}}, *state = NULL, *y = NULL;
    int parts = cut ? 2 : 1, n = 2 * CUT / parts;
    bench_open(&b, F64);
    struct param *w[3];
    static const int64_t rows[3][3] = {{CHANNELS, CHANNELS}, {HEADS, HEADS, HEADS}},
                         columns[3][3] = {{TAPS, 1}, {1, 1, 1}};
    for (int i = 0; i < 3 && rows[which][i]; i++)
        w[i] = make_param(&b, "-", rows[which][i], columns[which][i]);
    for (int p = 0; p < parts; p++) {
        struct batch batch = part_batch(&b, p * n, n);
        for (int i = 0; i < 3 && widths[which][i]; i++) {
            double *v = random_numbers(ROWS * 2 * CUT * widths[which][i], 50 + (uint64_t)i);
            in[p][i] = part(&b, v, widths[which][i], p * n, n);
            free(v);
        }
        struct tensor *u, *after = NULL;
        if (which == CONV) {
            u = conv(&b.t, &batch, in[p][0], w[0], w[1], state, &after);
        } else if (which == SCAN) {
            const struct scan_shape s = {HEADS, DEPTH, 1, STATE, 128, 0, INFINITY};
            u = scan(&b.t, &batch, &s, in[p][0], in[p][1], w[0], w[1], w[2], state, &after);
        } else {
            u = attention(&b.t, &batch, in[p][0], in[p][1], in[p][2], DEPTH, p ? in[0][1] : NULL,
                          p ? in[0][2] : NULL);
        }
        state = after;
        u = relu2(&b.t, u);
        y = y ? add(&b.t, y, u) : u;
    }
    tape_backward(&b.t, y, 1, MASK_ALL);
    for (int i = 0; i < 3 && widths[which][i]; i++)
        for (int p = 0; p < parts; p++) gather_grad(&b, in[p][i], p * n, n, f->input[i]);
    for (int i = 0; i < 3 && rows[which][i]; i++)
        get(&b, w[i]->grad, F64, rows[which][i] * columns[which][i], f->weight[i]);
    bench_close(&b);
}

static void cut_rows(void **state) {
    (void)state;
    static const char *const name[] = {"conv", "scan", "attention"};
    for (int which = 0; which < 3; which++) {
        static struct cut_found whole, parts;
        memset(&whole, 0, sizeof whole);
        memset(&parts, 0, sizeof parts);
        run_cut(which, false, &whole);
        run_cut(which, true, &parts);
        for (int i = 0; i < 4; i++) {
            same(parts.input[i], whole.input[i], ROWS * 2 * CUT * MOST_WIDE, name[which]);
            same(parts.weight[i], whole.weight[i], 64, name[which]);
        }
        double sum = 0;
        for (int i = 0; i < ROWS * 2 * CUT; i++) sum += fabs(whole.input[0][i]);
        assert_true(sum > 0);
    }
}

/* A state that alone is used: its gradient comes through state_out. */
static void state_only(void **state) {
    (void)state;
    struct bench b;
    bench_open(&b, F64);
    struct batch batch = make_batch(&b, &b.t, LENGTH, 0);
    struct tensor *x = make(&b, &b.t, "rrw", TOKENS, CHANNELS), *after = NULL;
    struct param *w = make_param(&b, "-", CHANNELS, TAPS);
    conv(&b.t, &batch, x, w, NULL, NULL, &after);
    tape_backward(&b.t, after, 1, MASK_ALL);
    double want[TOKENS * CHANNELS], dw[CHANNELS * TAPS];
    for (int i = 0; i < TOKENS * CHANNELS; i++) /* the last TAPS - 1 tokens of each row are kept */
        want[i] = i / CHANNELS % LENGTH >= LENGTH - (TAPS - 1);
    expect_grad(&b, x, want);
    get(&b, w->grad, F64, CHANNELS * TAPS, dw);
    for (int i = 0; i < CHANNELS * TAPS; i++) assert_true(dw[i] == 0);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_addresses),
        cmocka_unit_test(best_fit),
        cmocka_unit_test(arena_mistakes),
        cmocka_unit_test(poisoned),
        cmocka_unit_test(states),
        cmocka_unit_test(states_wrong_on_many_ranks),
        cmocka_unit_test(other_refusals),
        cmocka_unit_test(uses),
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
        cmocka_unit_test(cut_rows),
        cmocka_unit_test(state_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
