#include "parallel/tensor_parallel.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/groups.h"

static struct group *tensor_group(const struct tape *t) {
    return t->parallel->axis[MESH_TENSOR];
}

/* How many numbers each rank of the group holds of rows * width that are split by rows. */
static int64_t *row_counts(const struct group *g, int64_t rows, int64_t width) {
    int64_t *n = die_alloc(g->size * sizeof *n);
    for (int r = 0; r < g->size; r++)
        n[r] = (part_begin(rows, g->size, r + 1, 1) - part_begin(rows, g->size, r, 1)) * width;
    return n;
}

int64_t own_first(const struct tape *t, int64_t rows) {
    return part_begin(rows, tensor_group(t)->size, tensor_group(t)->rank, 1);
}

static int64_t own_rows(const struct tape *t, int64_t rows) {
    return part_begin(rows, tensor_group(t)->size, tensor_group(t)->rank + 1, 1) -
           own_first(t, rows);
}

int64_t stream_rows(const struct tape *t, int64_t rows) {
    return t->parallel->sequence ? own_rows(t, rows) : rows;
}

/* ---- the exchanges on device memory ---- */

void sum_over(struct tape *t, struct group *g, void *data, int64_t n, enum dtype d) {
    if (g->size == 1) return;
    struct piece *piece;
    struct request r;
    void *scratch = scratch_take(t, comm_sum_scratch(g, n, d), &piece);
    comm_sum_start(g, device_host(t->device, data), n, d, device_host(t->device, scratch), &r);
    comm_wait(&r);
    scratch_give(t, piece);
}

/* all[rows, width] from each rank's own rows. */
static void gather_rows_over(struct tape *t, struct group *g, const void *own, void *all,
                             int64_t rows, int64_t width, enum dtype d) {
    struct request r;
    int64_t *counts = row_counts(g, rows, width);
    comm_gather_start(g, device_host(t->device, own), device_host(t->device, all), counts,
                      dtype_size(d), &r);
    comm_wait(&r);
    free(counts);
}

/* own rows of the sum of everyone's all[rows, width]. */
static void scatter_sum(struct tape *t, struct group *g, const void *all, void *own, int64_t rows,
                        int64_t width, enum dtype d) {
    struct piece *piece;
    struct request r;
    int64_t *counts = row_counts(g, rows, width);
    void *scratch = scratch_take(t, comm_sum_scatter_scratch(g, counts, d), &piece);
    comm_sum_scatter_start(g, device_host(t->device, all), device_host(t->device, own), counts, d,
                           device_host(t->device, scratch), &r);
    comm_wait(&r);
    scratch_give(t, piece);
    free(counts);
}

static size_t bytes_of(const struct tensor *x) {
    return (size_t)tensor_elements(x) * dtype_size(x->dtype);
}

static void copy(struct tape *t, enum dtype d, const void *from, void *to, int64_t n, int add) {
    DEVICE_RUN(t->device, copy, d, .x = from, .y = to, .y_add = add, .T = 1, .W = n, .ldx = n,
               .ldy = n);
}

/* ---- enter ---- */

static void enter_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0], *y = n->out[0];
    struct group *g = tensor_group(t);
    int add;
    if (g->size == 1) {
        tape_grad_pass(t, n, 0, 0, mask);
        return;
    }
    void *dx = tape_grad_in(t, n, 0, mask, &add), *dy = tape_grad_out(n, 0);
    if (!dx) return;
    struct piece *piece = NULL;
    if (x->layout.state[AXIS_TENSOR] == SPLIT) {
        void *own = add ? scratch_take(t, bytes_of(x), &piece) : dx;
        scatter_sum(t, g, dy, own, y->rows, y->width, x->dtype);
        if (add) copy(t, x->dtype, own, dx, tensor_elements(x), 1);
    } else {
        void *sum = add ? scratch_take(t, bytes_of(x), &piece) : dx;
        copy(t, x->dtype, dy, sum, tensor_elements(x), 0);
        sum_over(t, g, sum, tensor_elements(x), x->dtype);
        if (add) copy(t, x->dtype, sum, dx, tensor_elements(x), 1);
    }
    if (piece) scratch_give(t, piece);
}
static const struct tape_op op_enter = {"enter", enter_adjoint, 0, 0, 0, 0};

struct tensor *tensor_enter(struct tape *t, struct tensor *x, int64_t rows) {
    enum state s = x->layout.state[AXIS_TENSOR];
    op_require(s == WHOLE || (s == SPLIT && x->layout.by[AXIS_TENSOR] == BY_ROWS), "enter", x,
               "is neither whole nor split by tokens");
    op_require(!x->missing && x->stride == x->width &&
                   x->rows == (s == SPLIT ? stream_rows(t, rows) : rows),
               "enter", x, "is a view, or not this rank's part of the tokens");
    op_require(x->layout.factoring == DENSE && x->data, "enter", x,
               "is on the experts' axes, or was dropped");
    struct layout l = x->layout;
    l.state[AXIS_TENSOR] = ENTERED;
    struct tensor *y;
    if (s == SPLIT && tensor_group(t)->size > 1) {
        y = tensor_new_of(t, x->dtype, "entered", rows, x->width, &l);
        gather_rows_over(t, tensor_group(t), x->data, y->data, rows, x->width, x->dtype);
    } else {
        y = tensor_alias(t, x, &l);
        y->same = x;
    }
    tape_note(t, &op_enter, 1, &x, 1, &y);
    return y;
}

/* ---- leave ---- */

static void leave_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0], *y = n->out[0];
    int add;
    if (y->layout.state[AXIS_TENSOR] == WHOLE || tensor_group(t)->size == 1) {
        tape_grad_pass(t, n, 0, 0, mask);
        return;
    }
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    if (!dx) return;
    struct piece *piece = NULL;
    void *all = add ? scratch_take(t, bytes_of(x), &piece) : dx;
    gather_rows_over(t, tensor_group(t), tape_grad_out(n, 0), all, x->rows, x->width, x->dtype);
    if (add) copy(t, x->dtype, all, dx, tensor_elements(x), 1);
    if (piece) scratch_give(t, piece);
}
static const struct tape_op op_leave = {"leave", leave_adjoint, 0, 0, 0, 0};

struct tensor *tensor_leave(struct tape *t, struct tensor *x) {
    op_require(x->layout.state[AXIS_TENSOR] == PARTIAL && !x->missing && x->stride == x->width,
               "leave", x, "is not partial");
    op_require(x->layout.factoring == DENSE && x->data, "leave", x,
               "is on the experts' axes, or was dropped");
    struct group *g = tensor_group(t);
    bool sequence = t->parallel->sequence;
    struct layout l = x->layout;
    l.state[AXIS_TENSOR] = sequence ? SPLIT : WHOLE;
    l.by[AXIS_TENSOR] = BY_ROWS;
    struct tensor *y;
    if (t->replaying) {
        y = tensor_over(t, "left", NULL, x->dtype, stream_rows(t, x->rows), x->width, &l);
        y->missing = true;
    } else if (g->size == 1) {
        y = tensor_alias(t, x, &l);
    } else if (sequence) {
        y = tensor_new_of(t, x->dtype, "left", stream_rows(t, x->rows), x->width, &l);
        scatter_sum(t, g, x->data, y->data, x->rows, x->width, x->dtype);
    } else { /* in place: nobody reads the terms of a sum again */
        op_require(x->holds == 1 && (!x->buffer || x->buffer->refs == 1), "leave", x,
                   "will be read by an adjoint and would be overwritten");
        y = tensor_alias(t, x, &l);
        sum_over(t, g, y->data, tensor_elements(x), x->dtype);
    }
    tape_note(t, &op_leave, 1, &x, 1, &y);
    x->missing = true; /* its terms are summed away */
    return y;
}

/* ---- gather, share_sum ---- */

static void gather_adjoint(struct tape *t, struct note *n, unsigned mask) {
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    int64_t own = n->in[0]->rows;
    enum dtype d = n->in[0]->dtype;
    size_t skip = (size_t)(tensor_group(t)->rank * own) * dtype_size(d);
    if (dx) copy(t, d, (char *)tape_grad_out(n, 0) + skip, dx, own, add);
}
static const struct tape_op op_gather_ranks = {"gather", gather_adjoint, 0, 0, 0, 0};

struct tensor *tensor_gather(struct tape *t, struct tensor *x) {
    op_require(x->layout.state[AXIS_TENSOR] == SPLIT && x->layout.by[AXIS_TENSOR] == BY_COLUMNS &&
                   x->width == 1,
               "gather", x, "is not a column split by features");
    op_require(!x->missing && x->data && x->layout.factoring == DENSE, "gather", x,
               "is missing, or on the experts' axes");
    struct group *g = tensor_group(t);
    struct layout l = x->layout;
    l.state[AXIS_TENSOR] = WHOLE;
    l.n_segments = 0;
    for (int a = 0; a < N_AXES; a++)
        if (l.state[a] == SPLIT) l.by[a] = BY_COLUMNS; /* tokens have become columns */
    struct tensor *y = tensor_new_of(t, x->dtype, "gathered", g->size, x->rows, &l);
    struct request r;
    int64_t *counts = die_alloc(g->size * sizeof *counts);
    for (int i = 0; i < g->size; i++) counts[i] = x->rows;
    comm_gather_start(g, device_host(t->device, x->data), device_host(t->device, y->data), counts,
                      dtype_size(x->dtype), &r);
    comm_wait(&r);
    free(counts);
    tape_note(t, &op_gather_ranks, 1, &x, 1, &y);
    return y;
}

static void share_sum_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0];
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    if (!dx) return;
    struct piece *piece;
    void *sum = scratch_take(t, bytes_of(x), &piece);
    copy(t, x->dtype, tape_grad_out(n, 0), sum, tensor_elements(x), 0);
    sum_over(t, parallel_share(t->parallel, (int)n->size[0]), sum, tensor_elements(x), x->dtype);
    copy(t, x->dtype, sum, dx, tensor_elements(x), add);
    scratch_give(t, piece);
}
static const struct tape_op op_share_sum = {"share_sum", share_sum_adjoint, 0, 0, 0, 0};

struct tensor *share_sum(struct tape *t, struct tensor *x, int share) {
    if (share == 1) return x;
    op_require(x->layout.state[AXIS_TENSOR] == SPLIT, "share_sum", x, "is not split");
    struct layout l = x->layout;
    for (int i = 0; i < l.n_segments; i++) l.segment[i].share = 1; /* whole groups from here on */
    struct tensor *y = tensor_new_of(t, x->dtype, "shared sum", x->rows, x->width, &l);
    copy(t, x->dtype, x->data, y->data, tensor_elements(x), 0);
    sum_over(t, parallel_share(t->parallel, share), y->data, tensor_elements(x), x->dtype);
    struct note *n = tape_note(t, &op_share_sum, 1, &x, 1, &y);
    if (n) n->size[0] = share;
    return y;
}

/* ---- own rows ---- */

static void *from_row(void *p, const struct tensor *x, int64_t row) {
    return (char *)p + row * x->width * (int64_t)dtype_size(x->dtype);
}

/* Other ranks' rows get their gradient there: entered gradients are parts. */
static void own_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0], *y = n->out[0];
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    if (!dx) return;
    int64_t first = own_first(t, x->rows), rows[2] = {first, x->rows - first - y->rows},
            begin[2] = {0, first + y->rows};
    for (int i = 0; i < 2 && !add; i++)
        DEVICE_RUN(t->device, fill, x->dtype, .x = from_row(dx, x, begin[i]), .T = 1,
                   .W = rows[i] * x->width, .ld = rows[i] * x->width, .value = 0);
    copy(t, x->dtype, tape_grad_out(n, 0), from_row(dx, x, first), tensor_elements(y), add);
}
static const struct tape_op op_own = {"own", own_adjoint, 0, 0, 0, 0};

struct tensor *tensor_own(struct tape *t, struct tensor *x) {
    op_require(x->layout.state[AXIS_TENSOR] == ENTERED && x->layout.factoring == DENSE, "own", x,
               "was not entered");
    op_require(x->data && !x->missing && x->stride == x->width, "own", x,
               "is a view, was dropped, or left out of a replay");
    struct layout l = x->layout;
    l.state[AXIS_TENSOR] = SPLIT;
    l.by[AXIS_TENSOR] = BY_ROWS;
    struct tensor *y = tensor_alias(t, x, &l);
    y->rows = own_rows(t, x->rows);
    y->data = from_row(x->data, x, own_first(t, x->rows));
    tape_note(t, &op_own, 1, &x, 1, &y);
    return y;
}

static void add_own_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *sums = n->in[0], *own = n->in[1];
    int add;
    void *dy = tape_grad_out(n, 0), *d = tape_grad_in(t, n, 1, mask, &add);
    if (d)
        copy(t, own->dtype, from_row(dy, sums, own_first(t, sums->rows)), d, tensor_elements(own),
             add);
    tape_grad_pass(t, n, 0, 0, mask);
}
static const struct tape_op op_add_own = {"add_own", add_own_adjoint, 0, 0, 0, 0};

struct tensor *tensor_add_own(struct tape *t, struct tensor *sums, struct tensor *own) {
    op_require(sums->layout.state[AXIS_TENSOR] == PARTIAL && sums->layout.factoring == DENSE,
               "add_own", sums, "is not partial");
    op_require(own->layout.state[AXIS_TENSOR] == SPLIT && own->layout.by[AXIS_TENSOR] == BY_ROWS &&
                   own->layout.factoring == DENSE && own->rows == own_rows(t, sums->rows),
               "add_own", own, "is not this rank's part of the tokens");
    op_require(own->dtype == sums->dtype && own->width == sums->width && own->data && sums->data &&
                   own->stride == own->width && sums->stride == sums->width,
               "add_own", own, "is of another format or shape, a view, or was dropped");
    struct tensor *y = tensor_new_of(t, sums->dtype, "sum", sums->rows, sums->width, &sums->layout);
    copy(t, y->dtype, sums->data, y->data, tensor_elements(y), 0);
    copy(t, y->dtype, own->data, from_row(y->data, y, own_first(t, y->rows)), tensor_elements(own),
         1);
    tape_note(t, &op_add_own, 2, (struct tensor *[]){sums, own}, 1, &y);
    return y;
}

struct tensor *tensor_all_rows(struct tape *t, struct tensor *x, int64_t rows) {
    struct layout l = x->layout;
    op_require(l.state[AXIS_TENSOR] == SPLIT && l.by[AXIS_TENSOR] == BY_ROWS && x->data &&
                   x->rows == own_rows(t, rows),
               "all_rows", x, "is not this rank's part of the tokens");
    l.state[AXIS_TENSOR] = ENTERED;
    struct tensor *y = tensor_new_of(t, x->dtype, "all tokens", rows, x->width, &l);
    gather_rows_over(t, tensor_group(t), x->data, y->data, rows, x->width, x->dtype);
    return y;
}
