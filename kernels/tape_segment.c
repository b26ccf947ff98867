#include "kernels/tape_segment.h"

#include "kernels/die.h"
#include "kernels/tape_values.h"

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
    tape_walk(t, base, mask);
    for (int i = (int)n->size[1]; i < t->next_kept; i++) { /* decided and replayed: done with */
        tensor_release(t->kept[i]);
        t->kept[i] = NULL;
    }
}

static const struct tape_op op_segment = {"segment", segment_adjoint, 1, 0, 0, 0};

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
