#include <stddef.h>

#include "kernels/ops.h"
#include "kernels/scan_recent.h"
#include "kernels/tape_again.h"

#define BIT(i) (1u << (i))
/* The most tokens from one saved state to the next: with more the adjoint's scratch leaves the
 * cache, and little memory is left to save. */
enum { MOST_CHUNK = 256 };

static void *data_of(const struct tensor *x) {
    return x ? x->data : NULL;
}

static void require_tokens(const char *op, const struct batch *b, const struct tensor *x) {
    op_require(x->rows == b->rows * b->length, op, x,
               "has not as many rows as the batch has tokens");
}

/* Where a state goes: into the tensor that was given, else into a new one. */
static struct tensor *state_to(struct tape *t, enum dtype d, const char *label, int64_t rows,
                               int64_t width, const struct layout *l, struct tensor *given) {
    if (!given) return tensor_new_of(t, d, label, rows, width, l);
    op_require(!t->learning && given->dtype == d && given->rows == rows && given->width == width,
               label, given, "cannot receive the state");
    return given;
}

/* ---- convolution ---- */

enum { CONV_X, CONV_W, CONV_B, CONV_START, CONV_STATE };

static void conv_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[CONV_X], *w = n->in[CONV_W];
    int x_add, w_add, b_add, s_add;
    void *dx = tape_grad_in(t, n, CONV_X, mask, &x_add),
         *dw = tape_grad_in(t, n, CONV_W, mask, &w_add);
    void *db = tape_grad_in(t, n, CONV_B, mask, &b_add),
         *ds = tape_grad_in(t, n, CONV_STATE, mask, &s_add);
    if (!dx && !dw && !db && !ds) return;
    struct piece *zeros = NULL;
    void *du = tape_grad_out(n, 0);
    struct tensor *u = n->out[0];
    if (!du) { /* only the state was used */
        du = scratch_take(t, tensor_elements(u) * dtype_size(x->dtype), &zeros);
        device_zero(t->device, du, tensor_elements(u) * dtype_size(x->dtype));
    }
    SCRATCH_RUN(t, conv_adjoint, x->dtype, .x = x->data, .w = w->data, .b = data_of(n->in[CONV_B]),
                .start = n->in[CONV_START]->data, .state_in = data_of(n->in[CONV_STATE]), .du = du,
                .dstate_out = tape_grad_out(n, 1), .dx = dx, .dx_add = x_add, .dw = dw,
                .dw_add = w_add, .db = db, .db_add = b_add, .dstate_in = ds, .dstate_in_add = s_add,
                .B = n->size[0], .L = n->size[1], .C = x->width, .K = w->width, .ldx = x->stride);
    if (zeros) scratch_give(t, zeros);
}
static const struct tape_op op_conv = {
    "conv", conv_backward, 31, 0, BIT(CONV_W) | BIT(CONV_B) | TOGETHER, AGAIN(conv)};

struct tensor *conv(struct tape *t, const struct batch *b, struct tensor *x, struct param *weight,
                    struct param *bias, struct tensor *state_in, struct tensor **state_out) {
    return conv_with(t, b, x, tape_use_real(t, weight, x), bias ? tape_use_real(t, bias, x) : NULL,
                     state_in, state_out);
}

struct tensor *conv_with(struct tape *t, const struct batch *b, struct tensor *x, struct tensor *w,
                         struct tensor *c, struct tensor *state_in, struct tensor **state_out) {
    struct layout l = layout_join("conv", 4, (struct tensor *[]){x, w, c, state_in});
    require_tokens("conv", b, x);
    op_require(x->width == w->rows, "conv", x, "has not the weight's channels");
    struct tensor *u = tensor_new_of(t, x->dtype, "conv", x->rows, x->width, &l), *s = NULL;
    if (state_out)
        s = state_to(t, x->dtype, "conv state", b->rows, (w->width - 1) * x->width, &l, *state_out);
    TAPE_RUN(t, conv, x->dtype, .x = x->data, .w = w->data, .b = data_of(c),
             .start = b->start->data, .state_in = data_of(state_in), .u = u->data,
             .state_out = data_of(s), .B = b->rows, .L = b->length, .C = x->width, .K = w->width,
             .ldx = x->stride);
    struct note *n = tape_note(t, &op_conv, 5, (struct tensor *[]){x, w, c, b->start, state_in}, 2,
                               (struct tensor *[]){u, s});
    if (n) n->size[0] = b->rows, n->size[1] = b->length;
    if (state_out) *state_out = s;
    return u;
}

/* ---- scan ---- */

enum { SCAN_U, SCAN_DT, SCAN_A, SCAN_D, SCAN_BIAS, SCAN_START, SCAN_STATES, SCAN_STATE };

/* A block of states is kept every so many tokens; the adjoint recomputes what lies between in
 * bounded scratch. */
static int64_t scan_chunk(int64_t length, int64_t wanted) {
    int64_t q = wanted < MOST_CHUNK ? wanted : MOST_CHUNK;
    if (q < 1) q = 1;
    return q < length ? q : length > 0 ? length : 1;
}

static void scan_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *u = n->in[SCAN_U], *dt = n->in[SCAN_DT];
    int add[5], s_add;
    void *grad[5];
    for (int i = 0; i < 5; i++) grad[i] = tape_grad_in(t, n, i, mask, &add[i]);
    void *ds = tape_grad_in(t, n, SCAN_STATE, mask, &s_add);
    if (!grad[0] && !grad[1] && !grad[2] && !grad[3] && !grad[4] && !ds) return;
    struct tensor *y = n->out[0];
    struct piece *zeros = NULL;
    void *dy = tape_grad_out(n, 0);
    if (!dy) {
        dy = scratch_take(t, tensor_elements(y) * dtype_size(u->dtype), &zeros);
        device_zero(t->device, dy, tensor_elements(y) * dtype_size(u->dtype));
    }
    SCRATCH_RUN(t, scan_adjoint, u->dtype, .u = u->data, .dt = dt->data,
                .a_log = n->in[SCAN_A]->data, .d = n->in[SCAN_D]->data,
                .dt_bias = n->in[SCAN_BIAS]->data, .start = n->in[SCAN_START]->data,
                .states = n->in[SCAN_STATES]->data, .dy = dy, .dstate_out = tape_grad_out(n, 1),
                .du = grad[0], .du_add = add[0], .ddt = grad[1], .ddt_add = add[1],
                .da_log = grad[2], .da_log_add = add[2], .dd = grad[3], .dd_add = add[3],
                .ddt_bias = grad[4], .ddt_bias_add = add[4], .dstate_in = ds,
                .dstate_in_add = s_add, .B = n->size[0], .L = n->size[1], .H = n->size[2],
                .P = n->size[3], .G = n->size[4], .S = n->size[5], .Q = n->size[6],
                .lddt = dt->stride, .dt_min = n->real[0], .dt_max = n->real[1]);
    if (zeros) scratch_give(t, zeros);
}
static const struct tape_op op_scan = {
    "scan",     scan_backward, 127, 0, BIT(SCAN_A) | BIT(SCAN_D) | BIT(SCAN_BIAS) | TOGETHER,
    AGAIN(scan)};

/* The width of y, whose layout becomes l; u and dt must be of this batch and shape. */
static int64_t scan_inner(const char *op, const struct batch *b, const struct scan_shape *s,
                          struct tensor *u, struct tensor *dt, struct layout *l) {
    const int64_t inner = s->heads * s->head_dim;
    require_tokens(op, b, u);
    op_require(u->width == inner + 2 * s->groups * s->state && u->stride == u->width, op, u,
               "is not x | B | C");
    op_require(dt->width == s->heads, op, dt, "has not a column a head");
    op_require(s->groups > 0 && s->heads % s->groups == 0, op, u,
               "has heads that its groups do not divide");
    l->n_segments = 1; /* heads are never shared; B and C may be */
    l->segment[0] = (struct segment){inner, 1};
    return inner;
}

struct tensor *scan(struct tape *t, const struct batch *b, const struct scan_shape *s,
                    struct tensor *u, struct tensor *dt, struct tensor *a, struct tensor *skip,
                    struct tensor *bias, struct tensor *state_in, struct tensor **state_out) {
    struct layout l = layout_join("scan", 6, (struct tensor *[]){dt, u, a, skip, bias, state_in});
    const int64_t inner = scan_inner("scan", b, s, u, dt, &l), state = inner * s->state,
                  q = scan_chunk(b->length, s->chunk);
    struct tensor *y = tensor_new_of(t, u->dtype, "scan", u->rows, inner, &l), *states = NULL,
                  *out = NULL;
    if (t->learning)
        states = tensor_new_real(t, "scan states", b->rows * ((b->length + q - 1) / q), state, &l);
    if (state_out) out = state_to(t, t->real, "scan state", b->rows, state, &l, *state_out);
    TAPE_RUN(t, scan, u->dtype, .u = u->data, .dt = dt->data, .a_log = a->data, .d = skip->data,
             .dt_bias = bias->data, .start = b->start->data, .state_in = data_of(state_in),
             .y = y->data, .states = data_of(states), .state_out = data_of(out), .B = b->rows,
             .L = b->length, .H = s->heads, .P = s->head_dim, .G = s->groups, .S = s->state, .Q = q,
             .lddt = dt->stride, .dt_min = s->dt_min, .dt_max = s->dt_max);
    struct note *n = tape_note(
        t, &op_scan, 8, (struct tensor *[]){u, dt, a, skip, bias, b->start, states, state_in}, 2,
        (struct tensor *[]){y, out});
    if (n) {
        int64_t size[] = {b->rows, b->length, s->heads, s->head_dim, s->groups, s->state, q};
        for (int i = 0; i < 7; i++) n->size[i] = size[i];
        n->real[0] = s->dt_min;
        n->real[1] = s->dt_max;
    }
    tensor_drop(t, states);
    if (state_out) *state_out = out;
    return y;
}

int64_t scan_remembers(const struct scan_shape *s) {
    return scan_recent(s->heads, s->head_dim, s->groups, s->state, SCAN_RECENT).all;
}

struct tensor *scan_next(struct tape *t, const struct batch *b, const struct scan_shape *s,
                         struct tensor *u, struct tensor *dt, struct tensor *a, struct tensor *skip,
                         struct tensor *bias, struct tensor *state, struct tensor *recent,
                         int64_t n) {
    struct layout l =
        layout_join("scan_next", 7, (struct tensor *[]){dt, u, a, skip, bias, state, recent});
    const int64_t inner = scan_inner("scan_next", b, s, u, dt, &l), whole = inner * s->state;
    op_require(!t->learning && b->length == 1, "scan_next", u, "is not a token to generate from");
    op_require(state->rows == b->rows && state->width == whole && state->dtype == t->real,
               "scan_next", state, "is not the state of these rows");
    op_require(recent->rows == b->rows && recent->dtype == t->real &&
                   recent->width == scan_remembers(s),
               "scan_next", recent, "is not what is remembered of these rows");
    struct tensor *y = tensor_new_of(t, u->dtype, "scan", u->rows, inner, &l);
    DEVICE_RUN(t->device, scan_next, u->dtype, .u = u->data, .dt = dt->data, .a_log = a->data,
               .d = skip->data, .dt_bias = bias->data, .start = b->start->data,
               .state = state->data, .recent = recent->data, .y = y->data,
               .state_out = n + 1 == SCAN_RECENT ? state->data : NULL, .B = b->rows, .H = s->heads,
               .P = s->head_dim, .G = s->groups, .S = s->state, .R = SCAN_RECENT, .n = n,
               .lddt = dt->stride, .dt_min = s->dt_min, .dt_max = s->dt_max);
    return y;
}

/* ---- gated norm ---- */

static void squares_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *y = n->in[0], *z = n->in[1], *s = n->out[0];
    int y_add, z_add;
    void *dy = tape_grad_in(t, n, 0, mask, &y_add), *dz = tape_grad_in(t, n, 1, mask, &z_add);
    if (dy || dz)
        DEVICE_RUN(t->device, gate_squares_adjoint, y->dtype, .y = y->data, .z = z->data,
                   .ds = tape_grad_out(n, 0), .dy = dy, .dy_add = y_add, .dz = dz, .dz_add = z_add,
                   .T = y->rows, .W = y->width, .G = s->width, .ldz = z->stride);
}
static const struct tape_op op_squares = {
    "gate_squares", squares_backward, BIT(0) | BIT(1), 0, 0, AGAIN(gate_squares)};

struct tensor *gate_squares(struct tape *t, struct tensor *y, struct tensor *z, int64_t groups,
                            int share) {
    struct layout l = layout_join("gate_squares", 2, (struct tensor *[]){y, z});
    op_require(y->width == z->width && groups > 0 && y->width % groups == 0, "gate_squares", y,
               "and the gate differ in width, or the groups do not divide it");
    op_require(y->stride == y->width, "gate_squares", y, "is a view");
    l.n_segments = 1;
    l.segment[0] = (struct segment){groups, share};
    struct tensor *s = tensor_new_real(t, "gate squares", y->rows, groups, &l);
    TAPE_RUN(t, gate_squares, y->dtype, .y = y->data, .z = z->data, .s = s->data, .T = y->rows,
             .W = y->width, .G = groups, .ldz = z->stride);
    tape_note(t, &op_squares, 2, (struct tensor *[]){y, z}, 1, &s);
    return s;
}

static void gate_norm_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *y = n->in[0], *z = n->in[1], *s = n->in[2];
    int add[4];
    void *grad[4];
    for (int i = 0; i < 4; i++) grad[i] = tape_grad_in(t, n, i, mask, &add[i]);
    if (grad[0] || grad[1] || grad[2] || grad[3])
        DEVICE_RUN(t->device, gate_norm_adjoint, y->dtype, .y = y->data, .z = z->data, .s = s->data,
                   .w = n->in[3]->data, .go = tape_grad_out(n, 0), .dy = grad[0], .dy_add = add[0],
                   .dz = grad[1], .dz_add = add[1], .ds = grad[2], .ds_add = add[2], .dw = grad[3],
                   .dw_add = add[3], .T = y->rows, .W = y->width, .G = s->width, .ldz = z->stride,
                   .width = n->size[0], .eps = n->real[0]);
}
static const struct tape_op op_gate_norm = {"gate_norm", gate_norm_backward, 15,
                                            0,           BIT(3) | TOGETHER,  AGAIN(gate_norm)};

struct tensor *gate_norm(struct tape *t, struct tensor *y, struct tensor *z, struct tensor *squares,
                         struct param *weight, int64_t width, double eps) {
    struct tensor *w = tape_use_real(t, weight, y);
    struct layout l = layout_join("gate_norm", 4, (struct tensor *[]){y, z, squares, w});
    op_require(y->width == weight->rows && y->stride == y->width, "gate_norm", y,
               "has not the weight's width");
    for (int i = 0; i < squares->layout.n_segments; i++)
        op_require(squares->layout.segment[i].share == 1, "gate_norm", squares,
                   "is a part of a shared group's sum: see share_sum");
    struct tensor *o = tensor_new_of(t, y->dtype, "gate norm", y->rows, y->width, &l);
    TAPE_RUN(t, gate_norm, y->dtype, .y = y->data, .z = z->data, .s = squares->data, .w = w->data,
             .o = o->data, .T = y->rows, .W = y->width, .G = squares->width, .ldz = z->stride,
             .width = width, .eps = eps);
    struct note *n = tape_note(t, &op_gate_norm, 4, (struct tensor *[]){y, z, squares, w}, 1, &o);
    if (n) n->size[0] = width, n->real[0] = eps;
    return o;
}

static void gated_norm_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *y = n->in[0], *z = n->in[1], *s = n->in[3];
    int add[3];
    void *grad[3];
    for (int i = 0; i < 3; i++) grad[i] = tape_grad_in(t, n, i, mask, &add[i]);
    if (!grad[0] && !grad[1] && !grad[2]) return;
    SCRATCH_RUN(t, gated_norm_adjoint, y->dtype, .y = y->data, .z = z->data, .w = n->in[2]->data,
                .s = s->data, .go = tape_grad_out(n, 0), .dy = grad[0], .dy_add = add[0],
                .dz = grad[1], .dz_add = add[1], .dw = grad[2], .dw_add = add[2], .T = y->rows,
                .W = y->width, .G = s->width, .ldz = z->stride, .eps = n->real[0]);
}
static const struct tape_op op_gated_norm = {"gated_norm",      gated_norm_backward, 15, 0,
                                             BIT(2) | TOGETHER, AGAIN(gated_norm)};

struct tensor *gated_norm(struct tape *t, struct tensor *y, struct tensor *z, struct param *weight,
                          int64_t groups, double eps) {
    struct tensor *w = tape_use_real(t, weight, y);
    struct layout l = layout_join("gated_norm", 3, (struct tensor *[]){y, z, w});
    op_require(y->width == z->width && groups > 0 && y->width % groups == 0, "gated_norm", y,
               "and the gate differ in width, or the groups do not divide it");
    op_require(y->width == weight->rows && y->stride == y->width, "gated_norm", y,
               "has not the weight's width");
    struct tensor *o = tensor_new_of(t, y->dtype, "gated norm", y->rows, y->width, &l),
                  *s = tensor_new_real(t, "gate squares", y->rows, groups, &l);
    TAPE_RUN(t, gated_norm, y->dtype, .y = y->data, .z = z->data, .w = w->data, .o = o->data,
             .s = s->data, .T = y->rows, .W = y->width, .G = groups, .ldz = z->stride, .eps = eps);
    struct note *n = tape_note(t, &op_gated_norm, 4, (struct tensor *[]){y, z, w, s}, 1, &o);
    if (n) n->real[0] = eps;
    tensor_drop(t, s);
    return o;
}
