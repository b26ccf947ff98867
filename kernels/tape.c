#include "kernels/tape.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_again.h"
#include "kernels/tape_segment.h"
#include "kernels/tape_values.h"

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
    free(t->run);
    free(t->remembered);
    memset(t, 0, sizeof *t);
}

void *tape_remember(struct tape *t, size_t bytes) {
    if (t->n_remembered == t->max_remembered) {
        t->max_remembered = t->max_remembered ? 2 * t->max_remembered : 64;
        t->remembered = die_realloc(t->remembered, t->max_remembered * sizeof *t->remembered);
    }
    return t->remembered[t->n_remembered++] = die_alloc(bytes);
}

/* ---- notes ---- */

/* The value of input i stays until the note is walked. */
void note_hold(struct note *n, int i) {
    if (n->holds_in >> i & 1) return;
    n->holds_in |= 1u << i;
    n->in[i]->holds++;
}

struct note *note_add(struct tape *t, const struct tape_op *op, bool needs, int n_in,
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
        if (in[i] && op->reads_in >> i & 1) note_hold(n, i);
    }
    for (int i = 0; i < n_out; i++) {
        n->out[i] = out[i];
        if (out[i] && op->reads_out >> i & 1) out[i]->holds++;
    }
    return n;
}

struct note *tape_note(struct tape *t, const struct tape_op *op, int n_in, struct tensor *const *in,
                       int n_out, struct tensor *const *out) {
    bool needs = false;
    for (int i = 0; i < n_in; i++) {
        needs |= in[i] && in[i]->needs_grad;
        op_require(!in[i] || !in[i]->has_views || op == &op_columns, op->name, in[i],
                   "has been split into views, which alone may be used");
    }
    struct note *n = note_add(t, op, needs, n_in, in, n_out, out);
    tape_again_note(t, n);
    return n;
}

static void grad_drop(struct tensor *x) {
    if (x->param) return;
    buffer_drop(x->grad_buffer);
    x->grad_buffer = NULL;
    x->grad = NULL;
    x->has_grad = false;
}

void tape_gradient_drop(struct tensor *x) {
    grad_drop(x);
}

static void note_release(struct note *n) {
    for (int i = 0; i < n->n_in; i++)
        if (n->holds_in >> i & 1) tensor_release(n->in[i]);
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

void grad_make(struct tape *t, struct tensor *x) {
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

/* Whether x, which has no gradient yet, can have y's memory for it; then it has. */
static bool grad_share(struct tensor *x, const struct tensor *y) {
    if (x->has_grad || x->grad || x->of || x->param || !y->grad_buffer) return false;
    x->grad_buffer = y->grad_buffer;
    x->grad_buffer->refs++;
    x->grad = y->grad;
    x->has_grad = true;
    return true;
}

void *tape_grad_in_place(struct tape *t, struct note *n, int out, int in, unsigned mask, int *add) {
    const struct tensor *y = n->out[out];
    struct tensor *x = n->in[in];
    if (!wanted(n, in, mask) || !y->has_grad || !y->grad_buffer || y->grad_buffer->refs != 1 ||
        y->dtype != x->dtype || !grad_share(x, y))
        return tape_grad_in(t, n, in, mask, add);
    *add = 0;
    return x->grad;
}

void tape_grad_pass(struct tape *t, struct note *n, int out, int in, unsigned mask) {
    struct tensor *y = n->out[out], *x = n->in[in];
    if (!wanted(n, in, mask) || !y->has_grad) return;
    op_require(y->dtype == (x->param ? t->real : x->dtype), n->op->name, x,
               "is of another format than what was made of it");
    if (grad_share(x, y)) return;
    int add;
    void *dx = tape_grad_in(t, n, in, mask, &add);
    DEVICE_RUN(t->device, copy, y->dtype, .x = y->grad, .y = dx, .y_add = add, .T = x->rows,
               .W = x->width, .ldx = y->stride, .ldy = x->stride);
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

void tape_walk(struct tape *t, int down_to, unsigned mask) {
    while (t->n_notes > down_to) {
        struct note n = t->note[--t->n_notes]; /* a copy: replays add notes at this place */
        const unsigned half = half_of(&n, mask);
        bool any = n.op == &op_columns;
        for (int i = 0; i < n.n_out; i++) any |= n.out[i] && n.out[i]->has_grad;
        bool later = false;
        if (any) {
            tape_again_read(t, &n);
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
    tape_walk(t, 0, mask);
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
    tape_walk(t, 0, mask);
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
    t->n_notes = t->n_waiting = t->n_kept = t->n_tensors = t->n_runs = t->n_remembered = 0;
}
