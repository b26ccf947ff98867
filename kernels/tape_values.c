#include "kernels/tape_values.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_again.h"

struct buffer *buffer_new(struct arena *a, size_t bytes, const char *label) {
    struct buffer *b = die_alloc(sizeof *b);
    b->arena = a;
    b->piece = arena_take(a, bytes, label, &b->p);
    b->refs = 1;
    return b;
}

void buffer_drop(struct buffer *b) {
    if (!b || --b->refs) return;
    arena_give(b->arena, b->piece);
    free(b);
}

static struct tensor *tensor_blank(struct tape *t, const char *label, int64_t rows, int64_t width,
                                   enum dtype d, const struct layout *l) {
    if (t->n_tensors == t->max_tensors) {
        int n = t->max_tensors ? 2 * t->max_tensors : 256;
        t->tensor = die_realloc(t->tensor, n * sizeof *t->tensor);
        for (int i = t->max_tensors; i < n; i++) t->tensor[i] = die_alloc(sizeof **t->tensor);
        t->max_tensors = n;
    }
    struct tensor *x = t->tensor[t->n_tensors++];
    memset(x, 0, sizeof *x);
    x->label = label;
    x->rows = rows;
    x->width = x->stride = width;
    x->dtype = d;
    x->layout = *l;
    return x;
}

static void in_scope(struct tensor *x) {
    x->in_scope = true;
    x->holds = 1;
}

struct tensor *tensor_over(struct tape *t, const char *label, void *data, enum dtype d,
                           int64_t rows, int64_t width, const struct layout *l) {
    struct tensor *x = tensor_blank(t, label, rows, width, d, l);
    x->data = data;
    in_scope(x);
    return x;
}

struct tensor *tensor_new_of(struct tape *t, enum dtype d, const char *label, int64_t rows,
                             int64_t width, const struct layout *l) {
    struct tensor *x = tensor_blank(t, label, rows, width, d, l);
    x->buffer = buffer_new(t->arena, (size_t)(rows * width) * dtype_size(d), label);
    x->data = x->buffer->p;
    in_scope(x);
    return x;
}

struct tensor *tensor_new(struct tape *t, const char *label, int64_t rows, int64_t width,
                          const struct layout *l) {
    return tensor_new_of(t, t->stored, label, rows, width, l);
}

struct tensor *tensor_new_real(struct tape *t, const char *label, int64_t rows, int64_t width,
                               const struct layout *l) {
    return tensor_new_of(t, t->real, label, rows, width, l);
}

struct tensor *tensor_new_ints(struct tape *t, const char *label, int64_t rows, int64_t width,
                               const struct layout *l) {
    return tensor_new_of(t, I32, label, rows, width, l);
}

struct tensor *tensor_alias(struct tape *t, struct tensor *x, const struct layout *l) {
    struct tensor *y = tensor_over(t, x->label, x->data, x->dtype, x->rows, x->width, l);
    y->stride = x->stride;
    y->missing = x->missing;
    y->buffer = x->buffer;
    if (y->buffer) y->buffer->refs++;
    return y;
}

struct tensor *tape_input(struct tape *t, const char *label, int64_t rows, int64_t width,
                          const struct layout *l) {
    struct tensor *x = tensor_new(t, label, rows, width, l);
    x->needs_grad = t->learning;
    return x;
}

struct tensor *tape_input_from(struct tape *t, struct tensor *y) {
    op_require(y->data && !y->missing, "input", y, "was dropped");
    struct tensor *x = tensor_alias(t, y, &y->layout);
    x->needs_grad = t->learning;
    return x;
}

struct tensor *tape_gradient_of(struct tape *t, const struct tensor *x) {
    op_require(x->grad_buffer && x->has_grad, "gradient", x, "has none");
    struct tensor *g = tensor_over(t, x->label, x->grad, x->dtype, x->rows, x->width, &x->layout);
    g->buffer = x->grad_buffer;
    g->buffer->refs++;
    return g;
}

void tensor_forget(struct tensor *x) {
    buffer_drop(x->buffer);
    x->buffer = NULL;
    x->data = NULL;
}

void tensor_release(struct tensor *x) {
    if (x->holds <= 0) bug("tensor '%s' was released once too often", x->label);
    if (--x->holds == 0) tensor_forget(x);
}

void tensor_drop(struct tape *t, struct tensor *x) {
    (void)t;
    if (!x || !x->in_scope) return;
    x->in_scope = false;
    if (x->holds > 1 && tape_again_can(x)) tensor_forget(x);
    tensor_release(x);
}

int tape_scope_begin(struct tape *t) {
    return t->n_tensors;
}

void tape_scope_end(struct tape *t, int scope, struct tensor *keep) {
    for (int i = scope; i < t->n_tensors; i++)
        if (t->tensor[i] != keep) tensor_drop(t, t->tensor[i]);
}

void *scratch_take(struct tape *t, size_t bytes, struct piece **piece) {
    void *p;
    *piece = arena_take(t->scratch, bytes, "scratch", &p);
    return p;
}

void scratch_give(struct tape *t, struct piece *piece) {
    arena_give(t->scratch, piece);
}

/* ---- views ---- */

static void columns_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0];
    if (!(mask & MASK_INPUT) || !x->grad) return;
    for (int i = 0; i < n->n_out; i++) {
        struct tensor *v = n->out[i];
        if (v->has_grad) continue;
        grad_make(t, v);
        DEVICE_RUN(t->device, fill, v->dtype, .x = v->grad, .T = v->rows, .W = v->width,
                   .ld = v->stride, .value = 0);
    }
    x->has_grad = true;
}

const struct tape_op op_columns = {"columns", columns_adjoint, 0, 0, 0, 0};

void tensor_columns(struct tape *t, struct tensor *x, int n, const int64_t *widths,
                    struct tensor **views) {
    op_require(!x->of && !x->missing && n <= NOTE_OUT, "columns", x,
               "is a view itself, or has too many views");
    int64_t column = 0;
    bool segments = x->layout.n_segments > 0;
    int s = 0;
    for (int i = 0; i < n; i++) {
        struct tensor *v = tensor_blank(t, x->label, x->rows, widths[i], x->dtype, &x->layout);
        v->stride = x->stride;
        v->of = x;
        v->of_column = column;
        v->data = (char *)x->data + column * dtype_size(x->dtype);
        v->buffer = x->buffer;
        if (v->buffer) v->buffer->refs++;
        in_scope(v);
        column += widths[i];
        if (segments) { /* the segments that lie in these columns */
            v->layout.n_segments = 0;
            for (int64_t w = 0; w < widths[i]; w += x->layout.segment[s++].width) {
                op_require(s < x->layout.n_segments, "columns", x,
                           "has segments that the widths cut");
                v->layout.segment[v->layout.n_segments++] = x->layout.segment[s];
            }
        }
        views[i] = v;
    }
    op_require(column == x->width, "columns", x, "is not covered by the widths");
    tape_note(t, &op_columns, 1, &x, n, views);
    x->has_views = true;
}
