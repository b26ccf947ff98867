#include "kernels/ops.h"
#include "kernels/tape_again.h"

#include <stddef.h>

/* What backward needs of an op is written beside it: reads_in, reads_out and weights are bits by
 * operand number. */
#define BIT(i) (1u << (i))

static struct layout layout_linear(const char *op, struct tensor *x, struct tensor *w,
                                   bool grouped) {
    struct layout l = x->layout;
    op_require(!x->missing && x->data, op, x, "was dropped, or left out of a replay, but is read");
    for (int a = 0; a < N_AXES; a++) {
        enum state xs = x->layout.state[a], ws = w->layout.state[a];
        int xby = x->layout.by[a], wby = w->layout.by[a];
        if (ws == SPLIT && grouped && a == AXIS_EXPERT) {
            op_require(xs == SPLIT && xby == BY_ROWS, op, x,
                       "is not split by experts as the weight is");
        } else if (ws == SPLIT && wby == BY_ROWS) {
            op_require(xs == ENTERED, op, x, "meets a weight split by rows but was not entered");
            l.state[a] = SPLIT;
            l.by[a] = BY_COLUMNS;
            l.n_segments = w->layout.n_segments;
            for (int s = 0; s < l.n_segments; s++) l.segment[s] = w->layout.segment[s];
        } else if (ws == SPLIT) {
            op_require(xs == SPLIT && xby == BY_COLUMNS, op, x,
                       "meets a weight split by columns but is not split so");
            for (int s = 0; s < x->layout.n_segments; s++)
                op_require(x->layout.segment[s].share == 1, op, x,
                           "is shared by neighbours: a sum would count it twice");
            l.state[a] = PARTIAL;
            l.n_segments = 0;
        } else {
            op_require(xs != SPLIT || xby == BY_ROWS, op, x,
                       "is split by features but the weight is not");
            op_require((xs == WHOLE) == (ws == WHOLE), op, x,
                       "is whole and the weight is entered, or the reverse");
        }
    }
    return l;
}

/* ---- sums ---- */

static void add_adjoint(struct tape *t, struct note *n, unsigned mask) {
    tape_grad_pass(t, n, 0, 0, mask);
    tape_grad_pass(t, n, 0, 1, mask);
}
static const struct tape_op op_add = {"add", add_adjoint, 0, 0, 0, 0};

struct tensor *add(struct tape *t, struct tensor *a, struct tensor *b) {
    op_require(layout_equal(&a->layout, &b->layout) && a->dtype == b->dtype, "add", b,
               "is in another state or format than what it is added to");
    op_require(a->rows == b->rows && a->width == b->width, "add", b, "has another shape");
    op_require(a->stride == a->width && b->stride == b->width, "add", b, "is a view");
    struct tensor *y;
    if (a->missing || b->missing) {
        y = tensor_over(t, "sum", NULL, a->dtype, a->rows, a->width, &a->layout);
        y->missing = true;
    } else {
        y = tensor_new_of(t, a->dtype, "sum", a->rows, a->width, &a->layout);
        DEVICE_RUN(t->device, add, a->dtype, .a = a->data, .b = b->data, .y = y->data,
                   .n = tensor_elements(a));
    }
    tape_note(t, &op_add, 2, (struct tensor *[]){a, b}, 1, &y);
    return y;
}

static void add_bias_adjoint(struct tape *t, struct note *n, unsigned mask) {
    int more;
    void *db = tape_grad_in(t, n, 1, mask, &more);
    if (db)
        DEVICE_RUN(t->device, add_bias_adjoint, n->out[0]->dtype, .dy = tape_grad_out(n, 0),
                   .db = db, .db_add = more, .T = n->out[0]->rows, .W = n->out[0]->width);
    tape_grad_pass(t, n, 0, 0, mask);
}
static const struct tape_op op_add_bias = {"add_bias", add_bias_adjoint, 0,
                                           0,          BIT(1),           AGAIN(add_bias)};

struct tensor *add_bias(struct tape *t, struct tensor *x, struct param *bias) {
    struct tensor *b = tape_use_real(t, bias, x), *y;
    bool missing = x->missing;
    struct tensor *both[] = {x, b};
    struct layout l =
        missing ? layout_join_unread("add_bias", 2, both) : layout_join("add_bias", 2, both);
    op_require(x->width == bias->rows && x->stride == x->width, "add_bias", x,
               "has not the bias's width");
    if (missing) {
        y = tensor_over(t, "biased", NULL, x->dtype, x->rows, x->width, &l);
        y->missing = true;
    } else {
        y = tensor_new_of(t, x->dtype, "biased", x->rows, x->width, &l);
        TAPE_RUN(t, add_bias, x->dtype, .x = x->data, .b = b->data, .y = y->data, .T = x->rows,
                 .W = x->width);
    }
    tape_note(t, &op_add_bias, 2, (struct tensor *[]){x, b}, 1, &y);
    return y;
}

/* ---- relu2 ---- */

static void relu2_backward(struct tape *t, struct note *n, unsigned mask) {
    int more;
    void *dx = tape_grad_in_place(t, n, 0, 0, mask, &more);
    if (dx)
        DEVICE_RUN(t->device, relu2_adjoint, n->in[0]->dtype, .x = n->in[0]->data,
                   .dy = tape_grad_out(n, 0), .dx = dx, .dx_add = more,
                   .n = tensor_elements(n->in[0]));
}
static const struct tape_op op_relu2 = {"relu2", relu2_backward, BIT(0), 0, 0, AGAIN(relu2)};

struct tensor *relu2(struct tape *t, struct tensor *x) {
    struct layout l = layout_join("relu2", 1, &x);
    op_require(x->stride == x->width, "relu2", x, "is a view");
    struct tensor *y = tensor_new_of(t, x->dtype, "relu2", x->rows, x->width, &l);
    TAPE_RUN(t, relu2, x->dtype, .x = x->data, .y = y->data, .n = tensor_elements(x));
    tape_note(t, &op_relu2, 1, &x, 1, &y);
    return y;
}

/* ---- formats ---- */

static void widen_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0];
    int more;
    void *dx = tape_grad_in(t, n, 0, mask, &more);
    if (dx)
        DEVICE_RUN(t->device, narrow, x->dtype, .x = tape_grad_out(n, 0), .y = dx, .y_add = more,
                   .n = tensor_elements(x));
}
static const struct tape_op op_widen = {"widen", widen_backward, 0, 0, 0, AGAIN(widen)};

struct tensor *as_real(struct tape *t, struct tensor *x) {
    if (x->dtype == t->real) return x;
    struct layout l = layout_join("widen", 1, &x);
    op_require(x->stride == x->width, "widen", x, "is a view");
    struct tensor *y = tensor_new_real(t, "widened", x->rows, x->width, &l);
    TAPE_RUN(t, widen, x->dtype, .x = x->data, .y = y->data, .n = tensor_elements(x));
    tape_note(t, &op_widen, 1, &x, 1, &y);
    return y;
}

/* ---- norm ---- */

static void rms_norm_backward(struct tape *t, struct note *n, unsigned mask) {
    int dx_add, dw_add;
    struct tensor *x = n->in[0];
    void *dx = tape_grad_in(t, n, 0, mask, &dx_add), *dw = tape_grad_in(t, n, 1, mask, &dw_add);
    if (dx || dw)
        DEVICE_RUN(t->device, rms_norm_adjoint, x->dtype, .x = x->data, .w = n->in[1]->data,
                   .rstd = n->in[2]->data, .dy = tape_grad_out(n, 0), .dx = dx, .dx_add = dx_add,
                   .dw = dw, .dw_add = dw_add, .T = x->rows, .H = x->width);
}
static const struct tape_op op_rms_norm = {"rms_norm", rms_norm_backward, BIT(0) | BIT(1) | BIT(2),
                                           0,          BIT(1) | TOGETHER, AGAIN(rms_norm)};

struct tensor *rms_norm(struct tape *t, struct tensor *x, struct param *weight, double eps) {
    struct tensor *w = tape_use_real(t, weight, x);
    struct layout l = layout_join("rms_norm", 2, (struct tensor *[]){x, w});
    for (int a = 0; a < N_AXES; a++)
        op_require(l.state[a] != SPLIT || l.by[a] == BY_ROWS, "rms_norm", x,
                   "is split by features");
    op_require(x->width == weight->rows && x->stride == x->width, "rms_norm", x,
               "has not the weight's width");
    struct tensor *y = tensor_new_of(t, x->dtype, "norm", x->rows, x->width, &l),
                  *rstd = tensor_new_real(t, "rstd", x->rows, 1, &l);
    TAPE_RUN(t, rms_norm, x->dtype, .x = x->data, .w = w->data, .y = y->data, .rstd = rstd->data,
             .T = x->rows, .H = x->width, .eps = eps);
    tape_note(t, &op_rms_norm, 3, (struct tensor *[]){x, w, rstd}, 1, &y);
    tensor_drop(t, rstd);
    return y;
}

/* ---- linear ---- */

static void linear_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0], *w = n->in[1], *y = n->out[0];
    int add;
    void *dy = tape_grad_out(n, 0), *dx = tape_grad_in(t, n, 0, mask, &add);
    if (dx)
        DEVICE_RUN(t->device, matmul, x->dtype, .a = dy, .b = w->data, .c = dx, .c_add = add,
                   .M = x->rows, .N = x->width, .K = y->width, .lda = y->stride, .ldb = w->stride,
                   .ldc = x->stride);
    void *dw = tape_grad_in(t, n, 1, mask, &add);
    if (dw)
        DEVICE_RUN(t->device, matmul_weight, x->dtype, .a = dy, .ta = 1, .b = x->data, .c = dw,
                   .c_add = add, .M = y->width, .N = x->width, .K = x->rows, .lda = y->stride,
                   .ldb = x->stride, .ldc = w->stride);
}
static const struct tape_op op_linear = {"linear", linear_backward, BIT(0) | BIT(1),
                                         0,        BIT(1),          AGAIN(linear)};

struct tensor *linear(struct tape *t, struct tensor *x, struct param *weight) {
    struct tensor *w = tape_use(t, weight, x);
    struct layout l = layout_linear("linear", x, w, false);
    op_require(w->dtype == x->dtype, "linear", x, "is of another format than the weight");
    op_require(x->width == weight->width, "linear", x, "has not the weight's width");
    struct tensor *y = tensor_new_of(t, x->dtype, weight->name, x->rows, weight->rows, &l);
    TAPE_RUN(t, matmul, x->dtype, .a = x->data, .b = w->data, .tb = 1, .c = y->data, .M = x->rows,
             .N = weight->rows, .K = x->width, .lda = x->stride, .ldb = w->stride,
             .ldc = y->stride);
    tape_note(t, &op_linear, 2, (struct tensor *[]){x, w}, 1, &y);
    return y;
}

struct tensor *linear_real(struct tape *t, struct tensor *x, struct param *weight) {
    struct tensor *w = tape_use(t, weight, x);
    struct layout l = layout_linear("linear_real", x, w, false);
    op_require(!t->learning || !x->needs_grad, "linear_real", x, "needs a gradient");
    op_require(w->dtype == x->dtype && x->width == weight->width, "linear_real", x,
               "has not the weight's format, or width");
    struct tensor *y = tensor_new_real(t, weight->name, x->rows, weight->rows, &l);
    DEVICE_RUN(t->device, matmul_weight, x->dtype, .a = x->data, .b = w->data, .tb = 1,
               .c = y->data, .M = x->rows, .N = weight->rows, .K = x->width, .lda = x->stride,
               .ldb = w->stride, .ldc = y->stride);
    return y;
}

static void grouped_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0], *w = n->in[1], *y = n->out[0];
    int64_t experts = n->size[0];
    int add;
    void *dy = tape_grad_out(n, 0), *dx = tape_grad_in(t, n, 0, mask, &add);
    if (dx)
        DEVICE_RUN(t->device, grouped_matmul, x->dtype, .x = dy, .w = w->data,
                   .offset = n->in[2]->data, .y = dx, .y_add = add, .S = x->rows, .N = x->width,
                   .K = y->width, .E = experts);
    void *dw = tape_grad_in(t, n, 1, mask, &add);
    if (dw)
        DEVICE_RUN(t->device, grouped_weight, x->dtype, .dy = dy, .x = x->data,
                   .offset = n->in[2]->data, .dw = dw, .dw_add = add, .S = x->rows, .N = y->width,
                   .K = x->width, .E = experts);
}
static const struct tape_op op_grouped = {
    "grouped_linear", grouped_backward, BIT(0) | BIT(1) | BIT(2), 0, BIT(1), AGAIN(grouped_linear)};

struct tensor *grouped_linear(struct tape *t, struct tensor *x, struct param *weight,
                              int64_t experts, struct tensor *offset) {
    struct tensor *w = tape_use(t, weight, x);
    struct layout l = layout_linear("grouped_linear", x, w, true);
    op_require(w->dtype == x->dtype, "grouped_linear", x, "is of another format than the weight");
    op_require(x->width == weight->width && x->stride == x->width, "grouped_linear", x,
               "has not the weight's width");
    int64_t width = experts ? weight->rows / experts : 0;
    struct tensor *y = tensor_new_of(t, x->dtype, weight->name, x->rows, width, &l);
    TAPE_RUN(t, grouped_matmul, x->dtype, .x = x->data, .w = w->data, .offset = offset->data,
             .y = y->data, .S = x->rows, .N = width, .K = x->width, .E = experts, .tb = 1);
    struct note *n = tape_note(t, &op_grouped, 3, (struct tensor *[]){x, w, offset}, 1, &y);
    if (n) n->size[0] = experts;
    return y;
}

/* ---- embedding ---- */

static void embedding_backward(struct tape *t, struct note *n, unsigned mask) {
    int add;
    struct tensor *y = n->out[0], *w = n->in[1];
    void *dw = tape_grad_in(t, n, 1, mask, &add);
    if (dw)
        DEVICE_RUN(t->device, embedding_adjoint, y->dtype, .id = n->in[0]->data,
                   .dy = tape_grad_out(n, 0), .dw = dw, .dw_add = add, .T = y->rows, .H = y->width,
                   .V = w->rows, .first = n->size[0]);
}
static const struct tape_op op_embedding = {"embedding", embedding_backward, BIT(0),
                                            0,           BIT(1) | TOGETHER,  0};

struct tensor *embedding(struct tape *t, struct tensor *ids, struct param *table, int64_t first) {
    struct tensor *w = tape_use(t, table, ids);
    struct layout l = ids->layout;
    for (int a = 0; a < N_AXES; a++) {
        if (w->layout.state[a] != SPLIT) continue;
        op_require(l.state[a] != SPLIT, "embedding", ids,
                   "is split along the axis that splits the table");
        l.state[a] = PARTIAL;
    }
    struct tensor *x = tensor_new_of(t, w->dtype, "embedding", ids->rows, table->width, &l);
    DEVICE_RUN(t->device, embedding, x->dtype, .w = w->data, .id = ids->data, .y = x->data,
               .T = ids->rows, .H = table->width, .V = table->rows, .first = first);
    struct note *n = tape_note(t, &op_embedding, 2, (struct tensor *[]){ids, w}, 1, &x);
    if (n) n->size[0] = first;
    return x;
}

struct tensor *row_ends(struct tape *t, const struct batch *b, struct tensor *x) {
    struct layout l = layout_join("row_ends", 1, &x);
    op_require(x->rows == b->rows * b->length, "row_ends", x,
               "has not as many rows as the batch has tokens");
    op_require(!t->learning || !x->needs_grad, "row_ends", x, "needs a gradient");
    struct tensor *y = tensor_new_of(t, x->dtype, "last tokens", b->rows, x->width, &l);
    DEVICE_RUN(t->device, copy, x->dtype,
               .x = (char *)x->data + (b->length - 1) * x->stride * dtype_size(x->dtype),
               .y = y->data, .T = b->rows, .W = x->width, .ldx = b->length * x->stride,
               .ldy = x->width);
    return y;
}
