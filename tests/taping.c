#include "tests/taping.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"

static const struct mesh_shape alone = {1, 1, 1, 1, 1, 1, 1};

void open_tape(struct bench *b, struct tape *t, enum dtype real) {
    tape_init(t, &b->device, &b->work, &b->scratch, real, &b->parallel);
}

void bench_open(struct bench *b, enum dtype real) {
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

void forget_params(struct bench *b) {
    for (int i = 0; i < b->n_params; i++) free(b->param[i]);
    b->n_params = 0;
}

void bench_close(struct bench *b) {
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

double random_number(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 4503599627370496.0 - 1;
}

void put(struct bench *b, void *to, enum dtype d, int64_t n, const double *x) {
    float *f = die_alloc(n * sizeof *f);
    for (int64_t i = 0; i < n; i++) f[i] = (float)x[i];
    device_write(&b->device, to, d == F64 ? (const void *)x : f, n * dtype_size(d));
    free(f);
}

void get(struct bench *b, const void *from, enum dtype d, int64_t n, double *x) {
    float *f = die_alloc(n * sizeof *f);
    device_read(&b->device, d == F64 ? (void *)x : f, from, n * dtype_size(d));
    for (int64_t i = 0; d != F64 && i < n; i++) x[i] = f[i];
    free(f);
}

double *random_numbers(int64_t n, uint64_t seed) {
    double *x = die_alloc(n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = random_number(&seed);
    return x;
}

void same(const double *found, const double *expected, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(found[i] - expected[i]) <= 1e-12 * (1 + fabs(expected[i]))))
            fail_msg("%s[%d]: got %.17g, want %.17g", what, (int)i, found[i], expected[i]);
}

/* ---------------------------------------------------------------- layouts */

struct layout layout_of(const char *text, int64_t width) {
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

const char *layout_text(const struct layout *l) {
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
struct tensor *make(struct bench *b, struct tape *t, const char *layout, int64_t rows,
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

struct tensor *make_from(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                         int64_t width, const double *v) {
    struct layout l = layout_of(layout, width);
    struct tensor *x = tensor_new(t, "input", rows, width, &l);
    put(b, x->data, t->real, rows * width, v);
    x->needs_grad = true;
    return x;
}

struct tensor *make_ints(struct bench *b, struct tape *t, const char *layout, int64_t rows,
                         int64_t width, const int32_t *v) {
    struct layout l = layout_of(layout, width);
    struct tensor *x = tensor_new_ints(t, "integers", rows, width, &l);
    device_write(&b->device, x->data, v, rows * width * sizeof *v);
    return x;
}

struct param *make_param(struct bench *b, const char *split, int64_t rows, int64_t width) {
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

struct batch make_batch(struct bench *b, struct tape *t, int64_t length, int32_t start) {
    int32_t v[TOKENS];
    for (int i = 0; i < ROWS * length; i++) v[i] = start;
    return (struct batch){
        .rows = ROWS, .length = length, .start = make_ints(b, t, "rrw", ROWS * length, 1, v)};
}

/* ---------------------------------------------------------------- ends of children */

static void leave_now(int code) {
    _exit(code);
}

/* How a child that does this ends, and what it says. */
struct ending ending_of(void (*act)(void *), void *with) {
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

void refuses(void (*act)(void *), void *with, const char *name) {
    struct ending e = ending_of(act, with);
    if (!e.refused) fail_msg("not refused: %s %s", name, e.text);
    if (!strstr(e.text, name)) fail_msg("'%s' is not named: %s", name, e.text);
}

/* ---------------------------------------------------------------- gradients */

/* The gradient of a leaf. */
double *grad_of(struct bench *b, const struct tensor *x) {
    double *g = die_alloc(x->rows * x->width * sizeof *g);
    assert_true(x->has_grad);
    for (int64_t r = 0; r < x->rows; r++)
        get(b, (char *)x->grad + r * x->stride * dtype_size(b->t.real), b->t.real, x->width,
            g + r * x->width);
    return g;
}

void expect_grad(struct bench *b, const struct tensor *x, const double *want) {
    double *g = grad_of(b, x);
    same(g, want, x->rows * x->width, x->label);
    free(g);
}
