#include <stddef.h>

#include "kernels/ops.h"
#include "kernels/tape_again.h"
#include "kernels/tape_segment.h"

#define BIT(i) (1u << (i))

/* ---- routing ---- */

static void route_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *logits = n->in[0], *index = n->in[1];
    int add;
    void *dl = tape_grad_in(t, n, 0, mask, &add);
    if (dl)
        DEVICE_RUN(t->device, route_weight_adjoint, logits->dtype, .logits = logits->data,
                   .index = index->data, .dweight = tape_grad_out(n, 0), .dlogits = dl,
                   .dlogits_add = add, .T = logits->rows, .E = logits->width, .K = index->width,
                   .normalise = n->size[0], .scale = n->real[0]);
}
static const struct tape_op op_route = {"route", route_backward, BIT(0) | BIT(1), 0, 0, 0};

struct tensor *route(struct tape *t, struct tensor *logits, void *bias, const struct routing *r,
                     struct tensor **index) {
    struct layout l = layout_join("route", 1, &logits);
    for (int a = 0; a < N_AXES; a++)
        op_require(l.state[a] != SPLIT || l.by[a] == BY_ROWS, "route", logits,
                   "is split by experts");
    op_require(logits->width == r->experts && logits->stride == logits->width, "route", logits,
               "has not a column an expert");
    struct tensor *chosen = tape_kept(t);
    if (!chosen) {
        chosen = tensor_new_ints(t, "chosen experts", logits->rows, r->chosen, &l);
        if (r->evenly)
            DEVICE_RUN(t->device, route_evenly, logits->dtype, .index = chosen->data,
                       .T = logits->rows, .E = r->experts, .K = r->chosen, .first = r->tokens.first,
                       .L = r->tokens.length, .piece = r->tokens.piece, .low = r->tokens.begin[0],
                       .high = r->tokens.begin[1]);
        else
            DEVICE_RUN(t->device, route, logits->dtype, .logits = logits->data, .bias = bias,
                       .index = chosen->data, .T = logits->rows, .E = r->experts, .K = r->chosen,
                       .groups = r->groups, .kept = r->kept_groups);
        tape_keep(t, chosen);
    }
    struct tensor *w =
        tensor_new_of(t, logits->dtype, "expert weights", logits->rows, r->chosen, &l);
    DEVICE_RUN(t->device, route_weight, logits->dtype, .logits = logits->data,
               .index = chosen->data, .weight = w->data, .T = logits->rows, .E = r->experts,
               .K = r->chosen, .normalise = r->normalise, .scale = r->scale);
    struct note *n = tape_note(t, &op_route, 2, (struct tensor *[]){logits, chosen}, 1, &w);
    if (n) n->size[0] = r->normalise, n->real[0] = r->scale;
    *index = chosen;
    return w;
}

void sort_experts(struct tape *t, struct tensor *index, int64_t experts, struct tensor **order,
                  struct tensor **position, struct tensor **offset) {
    int64_t slots = tensor_elements(index);
    *order = tensor_new_ints(t, "expert order", slots, 1, &index->layout);
    *position = tensor_new_ints(t, "expert position", index->rows, index->width, &index->layout);
    *offset = tensor_new_ints(t, "expert offset", experts + 1, 1, &index->layout);
    DEVICE_RUN(t->device, sort_experts, t->real, .index = index->data, .order = (*order)->data,
               .position = (*position)->data, .offset = (*offset)->data, .T = index->rows,
               .K = index->width, .E = experts);
}

/* ---- balance ---- */

struct tensor *count_choices(struct tape *t, struct tensor *index, int64_t experts,
                             const struct documents *d) {
    struct tensor *count = tensor_new_ints(t, "choices", d->groups, experts + 1, &index->layout);
    DEVICE_RUN(t->device, count_choices, t->real, .index = index->data, .document = d->each,
               .count = count->data, .T = index->rows, .K = index->width, .E = experts,
               .G = d->groups, .all = d->all);
    return count;
}

void count_experts(struct tape *t, struct tensor *index, int64_t experts, const void *document,
                   void *load) {
    if (t->replaying) return;
    DEVICE_RUN(t->device, count_experts, t->real, .index = index->data, .document = document,
               .load = load, .T = index->rows, .K = index->width, .E = experts);
}

struct tensor *counts_so_far(struct tape *t, struct tensor *count, void *seen) {
    struct tensor *sum =
        tensor_new_ints(t, "choices so far", count->rows, count->width, &count->layout);
    DEVICE_RUN(t->device, add_counts, t->real, .count = count->data, .seen = seen, .sum = sum->data,
               .n = tensor_elements(count));
    tensor_drop(t, count);
    return sum;
}

struct tensor *drop_choices(struct tape *t, struct tensor *index, struct tensor *weight,
                            const void *document, const struct dropping *d,
                            const struct layout *l) {
    struct tensor *kept = tensor_new_ints(t, "kept choices", d->rows, index->width, l),
                  *order = tensor_new_ints(t, "choices in order", index->rows, index->width,
                                           &index->layout);
    DEVICE_RUN(t->device, drop_choices, weight->dtype, .index = index->data, .weight = weight->data,
               .document = document, .order = order->data, .kept = kept->data, .T = index->rows,
               .K = index->width, .E = d->experts, .L = d->length, .C = d->ranks, .limit = d->limit,
               .first = d->first, .n = d->rows);
    tensor_drop(t, order);
    return kept;
}

/* n equal numbers in scratch. */
static void *constant(struct tape *t, enum dtype d, int64_t n, double value, struct piece **piece) {
    void *x = scratch_take(t, (size_t)n * dtype_size(d), piece);
    DEVICE_RUN(t->device, fill, d, .x = x, .T = 1, .W = n, .ld = n, .value = value);
    return x;
}

/* in: weight, logits, index, count, documents. */
static void balance_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *logits = n->in[1], *index = n->in[2], *count = n->in[3], *each = n->in[4];
    struct piece *piece[2];
    int add;
    tape_grad_pass(t, n, 0, 0, mask);
    void *dl = tape_grad_in(t, n, 1, mask, &add);
    if (!dl) return;
    void *even = constant(t, logits->dtype, logits->rows, n->real[0], &piece[0]),
         *square = constant(t, logits->dtype, logits->rows, n->real[1], &piece[1]);
    DEVICE_RUN(t->device, balance_loss_adjoint, logits->dtype, .logits = logits->data,
               .index = index->data, .document = each ? each->data : NULL,
               .count = count ? count->data : NULL, .deven = even, .dsquare = square, .dlogits = dl,
               .dlogits_add = add, .T = logits->rows, .E = logits->width, .K = index->width,
               .G = n->size[0], .all = n->size[1], .share = n->real[2]);
    scratch_give(t, piece[1]);
    scratch_give(t, piece[0]);
}
static const struct tape_op op_balance = {
    "balance_loss", balance_backward, BIT(1) | BIT(2) | BIT(3) | BIT(4), 0, 0, 0};

static void add_losses(struct tape *t, struct tensor *logits, struct tensor *index,
                       struct tensor *count, const struct documents *d, const struct balancing *b) {
    struct piece *piece[2];
    void *sums[] = {b->even_sum, b->square_sum}, *losses[2];
    for (int i = 0; i < 2; i++)
        losses[i] = scratch_take(t, (size_t)logits->rows * dtype_size(logits->dtype), &piece[i]);
    DEVICE_RUN(t->device, balance_loss, logits->dtype, .logits = logits->data, .index = index->data,
               .document = d->each, .count = count ? count->data : NULL, .even = losses[0],
               .square = losses[1], .T = logits->rows, .E = logits->width, .K = index->width,
               .G = d->groups, .all = d->all, .share = b->share);
    for (int i = 0; i < 2; i++)
        if (sums[i])
            DEVICE_RUN(t->device, exact_sum, logits->dtype, .x = losses[i], .sum = sums[i],
                       .n = logits->rows);
    scratch_give(t, piece[1]);
    scratch_give(t, piece[0]);
}

struct tensor *balance_loss(struct tape *t, struct tensor *weight, struct tensor *logits,
                            struct tensor *index, struct tensor *count, const struct documents *d,
                            const struct balancing *b) {
    struct layout l = layout_join("balance_loss", 2, (struct tensor *[]){weight, logits});
    struct tensor *each = NULL;
    op_require(weight->rows == logits->rows && index->rows == logits->rows, "balance_loss", index,
               "is not of the scores' tokens");
    op_require(count ? count->rows == d->groups && count->width == logits->width + 1 : !d->groups,
               "balance_loss", logits, "has no table of counts that fits");
    if (!t->replaying && (b->even_sum || b->square_sum)) add_losses(t, logits, index, count, d, b);
    if (d->each)
        each = tensor_over(t, "documents", (void *)d->each, I32, logits->rows, 1, &logits->layout);
    struct tensor *y = tensor_alias(t, weight, &l);
    struct note *n = tape_note(t, &op_balance, 5,
                               (struct tensor *[]){weight, logits, index, count, each}, 1, &y);
    if (n) {
        n->size[0] = d->groups, n->size[1] = d->all;
        n->real[0] = b->even, n->real[1] = b->square, n->real[2] = b->share;
    }
    return y;
}

/* ---- rows to experts and back ---- */

static void gather_backward(struct tape *t, struct note *n, unsigned mask) {
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    struct tensor *x = n->in[0];
    if (dx)
        DEVICE_RUN(t->device, gather_rows_adjoint, x->dtype, .dy = tape_grad_out(n, 0),
                   .position = n->in[1]->data, .dx = dx, .dx_add = add, .T = x->rows,
                   .K = n->size[0], .W = x->width);
}
static const struct tape_op op_gather = {"gather_rows",     gather_backward, BIT(1), 0, 0,
                                         AGAIN(gather_rows)};

struct tensor *gather_rows(struct tape *t, struct tensor *x, struct tensor *order,
                           struct tensor *position, int64_t chosen) {
    struct layout l = layout_join("gather_rows", 1, &x);
    op_require(x->stride == x->width, "gather_rows", x, "is a view");
    struct tensor *y =
        tensor_new_of(t, x->dtype, "rows for experts", x->rows * chosen, x->width, &l);
    TAPE_RUN(t, gather_rows, x->dtype, .x = x->data, .order = order->data, .y = y->data,
             .T = x->rows, .K = chosen, .W = x->width);
    struct note *n = tape_note(t, &op_gather, 3, (struct tensor *[]){x, position, order}, 1, &y);
    if (n) n->size[0] = chosen;
    return y;
}

static void combine_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *y = n->in[0], *w = n->in[1];
    int y_add, w_add;
    void *dy = tape_grad_in(t, n, 0, mask, &y_add), *dw = tape_grad_in(t, n, 1, mask, &w_add);
    if (dy || dw)
        DEVICE_RUN(t->device, combine_rows_adjoint, y->dtype, .y = y->data, .weight = w->data,
                   .position = n->in[2]->data, .go = tape_grad_out(n, 0), .dy = dy, .dy_add = y_add,
                   .dweight = dw, .dweight_add = w_add, .T = w->rows, .K = w->width, .W = y->width);
}
static const struct tape_op op_combine = {
    "combine_rows", combine_backward, BIT(0) | BIT(1) | BIT(2), 0, 0, AGAIN(combine_rows)};

/* Linear in y, so y may be partial; then the weights' gradient is a part too, and they must have
 * been entered. */
struct tensor *combine_rows(struct tape *t, struct tensor *y, struct tensor *weight,
                            struct tensor *position) {
    struct layout l = y->layout;
    op_require(weight->layout.factoring == l.factoring, "combine_rows", weight,
               "belongs to the other factoring");
    for (int a = 0; a < N_AXES; a++) {
        enum state ys = l.state[a], ws = weight->layout.state[a];
        op_require(ws != PARTIAL && (ws == WHOLE) == (ys == WHOLE), "combine_rows", weight,
                   "is whole and the rows are not, or the reverse");
        bool like = ys == SPLIT && y->layout.by[a] == weight->layout.by[a];
        op_require(ws != SPLIT || like, "combine_rows", weight,
                   "is split, and the rows are not split alike");
    }
    op_require(y->data && weight->data && !y->missing && !weight->missing, "combine_rows", y,
               "or the weights are missing");
    op_require(weight->dtype == t->real, "combine_rows", weight, "is not of real numbers");
    op_require(y->rows == tensor_elements(weight), "combine_rows", y,
               "has not a row for each choice");
    struct tensor *o = tensor_new_of(t, y->dtype, "experts' sum", weight->rows, y->width, &l);
    TAPE_RUN(t, combine_rows, y->dtype, .y = y->data, .weight = weight->data,
             .position = position->data, .o = o->data, .T = weight->rows, .K = weight->width,
             .W = y->width);
    tape_note(t, &op_combine, 3, (struct tensor *[]){y, weight, position}, 1, &o);
    return o;
}
