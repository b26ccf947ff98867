#include "kernels/tape.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"

void tape_init(struct tape *t, struct device *d, struct arena *values, struct arena *scratch,
               enum dtype stored, struct parallel *p) {
    memset(t, 0, sizeof *t);
    t->device = d;
    t->arena = values;
    t->scratch = scratch;
    t->stored = stored;
    t->real = dtype_real(stored);
    t->parallel = p;
    t->learning = true;
}

void tape_free(struct tape *t) {
    tape_clear(t);
    for (int i = 0; i < t->max_tensors; i++) free(t->tensor[i]);
    free(t->tensor);
    free(t->note);
    free(t->waiting);
    free(t->kept);
    free(t->remembered);
    memset(t, 0, sizeof *t);
}

void op_require(bool cond, const char *op, const struct tensor *x, const char *what) {
    if (cond) return;
    char states[128] = "";
    for (int i = 0; x && i < N_AXES; i++) {
        strncat(states, i ? ", " : "", sizeof states - strlen(states) - 1);
        strncat(states, axis_name(x->layout.factoring, i), sizeof states - strlen(states) - 1);
        strncat(states, " ", sizeof states - strlen(states) - 1);
        strncat(states, state_name(x->layout.state[i]), sizeof states - strlen(states) - 1);
    }
    if (x)
        bug("op %s, tensor '%s' [%ld, %ld] (%s): %s", op, x->label, (long)x->rows, (long)x->width,
            states, what);
    bug("op %s: %s", op, what);
}

/* ---- memory ---- */

static struct buffer *buffer_new(struct arena *a, size_t bytes, const char *label) {
    struct buffer *b = die_alloc(sizeof *b);
    b->arena = a;
    b->piece = arena_take(a, bytes, label, &b->p);
    b->refs = 1;
    return b;
}

static void buffer_drop(struct buffer *b) {
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

static void tensor_release(struct tensor *x) {
    if (x->holds <= 0) bug("tensor '%s' was released once too often", x->label);
    if (--x->holds) return;
    buffer_drop(x->buffer);
    x->buffer = NULL;
    x->data = NULL;
}

void tensor_drop(struct tape *t, struct tensor *x) {
    (void)t;
    if (!x || !x->in_scope) return;
    x->in_scope = false;
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

void *tape_remember(struct tape *t, size_t bytes) {
    if (t->n_remembered == t->max_remembered) {
        t->max_remembered = t->max_remembered ? 2 * t->max_remembered : 64;
        t->remembered = die_realloc(t->remembered, t->max_remembered * sizeof *t->remembered);
    }
    return t->remembered[t->n_remembered++] = die_alloc(bytes);
}

/* ---- notes ---- */

static struct note *note_add(struct tape *t, const struct tape_op *op, bool needs, int n_in,
                             struct tensor *const *in, int n_out, struct tensor *const *out) {
    for (int i = 0; i < n_out; i++)
        if (out[i] && dtype_is_real(out[i]->dtype)) out[i]->needs_grad = needs;
    if (!needs || !t->learning) return NULL;
    if (n_in > NOTE_IN || n_out > NOTE_OUT) bug("op %s has too many operands", op->name);
    if (t->n_notes == t->max_notes) {
        t->max_notes = t->max_notes ? 2 * t->max_notes : 256;
        t->note = die_realloc(t->note, t->max_notes * sizeof *t->note);
    }
    struct note *n = &t->note[t->n_notes++];
    memset(n, 0, sizeof *n);
    n->op = op;
    n->n_in = n_in;
    n->n_out = n_out;
    for (int i = 0; i < n_in; i++) {
        n->in[i] = in[i];
        if (in[i] && op->reads_in >> i & 1) in[i]->holds++;
    }
    for (int i = 0; i < n_out; i++) {
        n->out[i] = out[i];
        if (out[i] && op->reads_out >> i & 1) out[i]->holds++;
    }
    return n;
}

static const struct tape_op op_columns; /* defined with the views below */

struct note *tape_note(struct tape *t, const struct tape_op *op, int n_in, struct tensor *const *in,
                       int n_out, struct tensor *const *out) {
    bool needs = false;
    for (int i = 0; i < n_in; i++) {
        needs |= in[i] && in[i]->needs_grad;
        op_require(!in[i] || !in[i]->has_views || op == &op_columns, op->name, in[i],
                   "has been split into views, which alone may be used");
    }
    return note_add(t, op, needs, n_in, in, n_out, out);
}

static void grad_drop(struct tensor *x) {
    if (x->param) return;
    buffer_drop(x->grad_buffer);
    x->grad_buffer = NULL;
    x->grad = NULL;
    x->has_grad = false;
}

static void note_release(struct note *n) {
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i] && n->op->reads_in >> i & 1) tensor_release(n->in[i]);
    for (int i = 0; i < n->n_out; i++) {
        if (!n->out[i]) continue;
        if (n->op->reads_out >> i & 1) tensor_release(n->out[i]);
        grad_drop(n->out[i]);
    }
}

static bool wanted(const struct note *n, int i, unsigned mask) {
    const struct tensor *x = n->in[i];
    return x && x->needs_grad && (mask & (n->op->weights >> i & 1 ? MASK_WEIGHT : MASK_INPUT));
}

static void grad_make(struct tape *t, struct tensor *x) {
    if (x->grad) return;
    if (x->of) {
        grad_make(t, x->of);
        x->grad = (char *)x->of->grad + x->of_column * dtype_size(x->dtype);
        return;
    }
    x->grad_buffer =
        buffer_new(t->arena, (size_t)(x->rows * x->stride) * dtype_size(x->dtype), x->label);
    x->grad = x->grad_buffer->p;
}

/* A gradient that is shared with another tensor must not be added to: it gets its own copy. */
static void grad_own(struct tape *t, struct tensor *x) {
    if (!x->grad_buffer || x->grad_buffer->refs == 1) return;
    struct buffer *shared = x->grad_buffer;
    x->grad_buffer = NULL;
    x->grad = NULL;
    grad_make(t, x);
    DEVICE_RUN(t->device, copy, x->dtype, .x = shared->p, .y = x->grad, .T = x->rows, .W = x->width,
               .ldx = x->stride, .ldy = x->stride);
    buffer_drop(shared);
}

void *tape_grad_in(struct tape *t, struct note *n, int i, unsigned mask, int *add) {
    int unused;
    if (!add) add = &unused;
    *add = 0;
    if (!wanted(n, i, mask)) return NULL;
    struct tensor *x = n->in[i];
    if (x->param) {
        *add = 1; /* zeroed at the start of a step */
        return x->param->grad;
    }
    grad_make(t, x);
    if (x->has_grad) grad_own(t, x);
    *add = x->has_grad;
    x->has_grad = true;
    return x->grad;
}

void *tape_grad_out(const struct note *n, int i) {
    return n->out[i] && n->out[i]->has_grad ? n->out[i]->grad : NULL;
}

void tape_grad_pass(struct tape *t, struct note *n, int out, int in, unsigned mask) {
    struct tensor *y = n->out[out], *x = n->in[in];
    if (!wanted(n, in, mask) || !y->has_grad) return;
    op_require(y->dtype == (x->param ? t->real : x->dtype), n->op->name, x,
               "is of another format than what was made of it");
    if (!x->has_grad && !x->grad && !x->of && !x->param && y->grad_buffer) {
        x->grad_buffer = y->grad_buffer;
        x->grad_buffer->refs++;
        x->grad = y->grad;
        x->has_grad = true;
        return;
    }
    int add;
    void *dx = tape_grad_in(t, n, in, mask, &add);
    DEVICE_RUN(t->device, copy, y->dtype, .x = y->grad, .y = dx, .y_add = add, .T = x->rows,
               .W = x->width, .ldx = y->stride, .ldy = x->stride);
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

static const struct tape_op op_columns = {"columns", columns_adjoint, 0, 0, 0};

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

/* ---- parameters ---- */

struct tensor *tape_use(struct tape *t, struct param *p, const struct tensor *x) {
    struct layout l = p->layout;
    op_require(l.factoring == x->layout.factoring, "use", x,
               "meets a parameter of the other factoring");
    for (int a = 0; a < N_AXES; a++) {
        if (p->layout.state[a] == SPLIT) continue;
        enum state s = x->layout.state[a] == WHOLE ? WHOLE : ENTERED;
        if (p->used && p->layout.state[a] != s)
            bug("parameter %s is %s along %s here and was %s elsewhere", p->name, state_name(s),
                axis_name(l.factoring, a), state_name(p->layout.state[a]));
        l.state[a] = s;
    }
    p->layout = l;
    p->used = true;
    struct tensor *w = tensor_over(t, p->name, p->value, p->dtype, p->rows, p->width, &l);
    w->param = p;
    w->needs_grad = p->trained;
    w->has_grad = p->trained;
    w->grad = p->grad;
    return w;
}

struct tensor *tape_use_real(struct tape *t, struct param *p, const struct tensor *x) {
    op_require(p->dtype == t->real, p->name, x, "meets this parameter, which is not kept exact");
    return tape_use(t, p, x);
}

/* ---- backward ---- */

static void wait_for_weights(struct tape *t, const struct note *n) {
    if (t->n_waiting == t->max_waiting) {
        t->max_waiting = t->max_waiting ? 2 * t->max_waiting : 64;
        t->waiting = die_realloc(t->waiting, t->max_waiting * sizeof *t->waiting);
    }
    t->waiting[t->n_waiting++] = *n;
}

/* What of a note's adjoint runs when `mask` is asked for. */
static unsigned half_of(const struct note *n, unsigned mask) {
    if (!(n->op->weights & TOGETHER)) return mask;
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i] && n->in[i]->param && n->in[i]->param->twice) return mask;
    return MASK_ALL;
}

static void walk(struct tape *t, int down_to, unsigned mask) {
    while (t->n_notes > down_to) {
        struct note n = t->note[--t->n_notes]; /* a copy: replays add notes at this place */
        const unsigned half = half_of(&n, mask);
        bool any = n.op == &op_columns;
        for (int i = 0; i < n.n_out; i++) any |= n.out[i] && n.out[i]->has_grad;
        bool later = false;
        if (any) {
            n.op->adjoint(t, &n, half);
            for (int i = 0; i < n.n_in; i++)
                later |= (n.op->weights >> i & 1) && !(half & MASK_WEIGHT) && n.in[i] &&
                         n.in[i]->needs_grad;
        }
        if (later) wait_for_weights(t, &n);
        else note_release(&n);
        if (t->between) t->between(t->context);
    }
}

void tape_backward(struct tape *t, struct tensor *y, double seed, unsigned mask) {
    op_require(t->learning && y->needs_grad, "backward", y, "needs no gradient");
    op_require(t->n_notes > 0, "backward", y, "has been walked back from already");
    grad_make(t, y);
    DEVICE_RUN(t->device, fill, y->dtype, .x = y->grad, .T = y->rows, .W = y->width,
               .ld = y->stride, .value = seed);
    y->has_grad = true;
    walk(t, 0, mask);
}

void tape_backward_given(struct tape *t, struct tensor *y, struct tensor *given, unsigned mask) {
    op_require(given->rows == y->rows && given->width == y->width && given->dtype == y->dtype &&
                   given->buffer && !y->grad,
               "backward", y, "is given a gradient of another shape, or has one");
    if (y->needs_grad) {
        y->grad_buffer = given->buffer;
        y->grad_buffer->refs++;
        y->grad = given->data;
        y->has_grad = true;
    }
    tensor_drop(t, given);
    walk(t, 0, mask);
}

void tape_backward_weights(struct tape *t) {
    for (int i = 0; i < t->n_waiting; i++) {
        t->waiting[i].op->adjoint(t, &t->waiting[i], MASK_WEIGHT);
        note_release(&t->waiting[i]);
        if (t->between) t->between(t->context);
    }
    t->n_waiting = 0;
}

void tape_clear(struct tape *t) {
    for (int i = 0; i < t->n_notes; i++) note_release(&t->note[i]);
    for (int i = 0; i < t->n_waiting; i++) note_release(&t->waiting[i]);
    for (int i = 0; i < t->n_kept; i++)
        if (t->kept[i]) tensor_release(t->kept[i]);
    for (int i = 0; i < t->n_tensors; i++) {
        tensor_drop(t, t->tensor[i]);
        grad_drop(t->tensor[i]);
    }
    for (int i = 0; i < t->n_remembered; i++) free(t->remembered[i]);
    t->n_notes = t->n_waiting = t->n_kept = t->n_tensors = t->n_remembered = 0;
}

/* ---- segments ---- */

static void segment_adjoint(struct tape *t, struct note *n, unsigned mask) {
    segment_fn f = (segment_fn)(intptr_t)n->size[0];
    int base = t->n_notes, scope = tape_scope_begin(t);
    void *pass = t->pass;
    t->replaying = true;
    t->pass = (void *)(intptr_t)n->size[2];
    t->next_kept = (int)n->size[1];
    struct tensor *y = f(t, (void *)n->own, n->in[0]);
    t->replaying = false;
    t->pass = pass;
    tape_scope_end(t, scope, NULL);
    y->grad = n->out[0]->grad;
    y->grad_buffer = n->out[0]->grad_buffer;
    y->grad_buffer->refs++;
    y->has_grad = true;
    walk(t, base, mask);
    for (int i = (int)n->size[1]; i < t->next_kept; i++) { /* decided and replayed: done with */
        tensor_release(t->kept[i]);
        t->kept[i] = NULL;
    }
}

static const struct tape_op op_segment = {"segment", segment_adjoint, 1, 0, 0};

struct tensor *tape_segment(struct tape *t, segment_fn f, void *context, struct tensor *x) {
    bool learning = t->learning;
    int scope = tape_scope_begin(t), kept = t->n_kept;
    op_require(!t->keeping && !t->replaying, "segment", x,
               "is in a segment already; they do not nest");
    t->learning = false;
    t->keeping = learning;
    struct tensor *y = f(t, context, x);
    t->keeping = false;
    t->learning = learning;
    tape_scope_end(t, scope, y);
    /* y may need a gradient for the weights inside alone, when nothing before them is trained. */
    struct note *n = note_add(t, &op_segment, x->needs_grad || y->needs_grad, 1, &x, 1, &y);
    if (n) {
        n->size[0] = (int64_t)(intptr_t)f;
        n->size[1] = kept;
        n->size[2] = (int64_t)(intptr_t)t->pass;
        n->own = context;
    }
    return y;
}

struct tensor *tape_keep(struct tape *t, struct tensor *x) {
    if (!t->keeping) return x;
    if (t->n_kept == t->max_kept) {
        t->max_kept = t->max_kept ? 2 * t->max_kept : 64;
        t->kept = die_realloc(t->kept, t->max_kept * sizeof *t->kept);
    }
    t->kept[t->n_kept++] = x;
    x->holds++;
    return x;
}

struct tensor *tape_kept(struct tape *t) {
    if (!t->replaying) return NULL;
    if (t->next_kept >= t->n_kept) bug("a replay asks for a decision that was not kept");
    return t->kept[t->next_kept++];
}

/* ---- layouts ---- */

struct layout layout_join(const char *op, int n, struct tensor *const *in) {
    for (int i = 0; i < n; i++) {
        if (!in[i]) continue;
        op_require(!in[i]->missing, op, in[i], "was left out of a replay but is read");
        op_require(in[i]->data, op, in[i], "was dropped but is read");
    }
    return layout_join_unread(op, n, in);
}

struct layout layout_join_unread(const char *op, int n, struct tensor *const *in) {
    struct layout l = in[0]->layout;
    for (int a = 0; a < N_AXES; a++) {
        bool whole = false, entered = false, split = false;
        int by = -1;
        for (int i = 0; i < n; i++) {
            const struct tensor *x = in[i];
            if (!x) continue;
            op_require(x->layout.factoring == l.factoring, op, x,
                       "belongs to the other factoring of the ranks");
            op_require(x->layout.state[a] != PARTIAL, op, x,
                       "is partial, and the op is not linear in it");
            whole |= x->layout.state[a] == WHOLE;
            entered |= x->layout.state[a] == ENTERED;
            if (x->layout.state[a] != SPLIT) continue;
            int b = x->param ? BY_COLUMNS : x->layout.by[a]; /* rows of a weight are features */
            op_require(by < 0 || by == b, op, x, "is split another way than the tensors beside it");
            if (by < 0 && b == BY_COLUMNS && !x->param) {
                l.n_segments = x->layout.n_segments;
                for (int s = 0; s < l.n_segments; s++) l.segment[s] = x->layout.segment[s];
            }
            by = b;
            split = true;
        }
        op_require(!whole || !(entered || split), op, in[0],
                   "whole and entered or split tensors meet");
        for (int i = 0; by == BY_COLUMNS && i < n; i++)
            op_require(!in[i] || !in[i]->param || in[i]->layout.state[a] == SPLIT, op, in[i],
                       "is not split as the features beside it are");
        l.state[a] = whole ? WHOLE : split ? SPLIT : ENTERED;
        l.by[a] = by < 0 ? BY_ROWS : by;
    }
    return l;
}
