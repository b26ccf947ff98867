#include <stddef.h>

#include "kernels/ops.h"

#define BIT(i) (1u << (i))
enum { LOGITS_AT_A_TIME = 1 << 22, FEWEST = 128 };

static int64_t head_chunk(int64_t tokens, int64_t words) {
    int64_t c = LOGITS_AT_A_TIME / (words > 0 ? words : 1);
    if (c < FEWEST) c = FEWEST;
    return c < tokens ? c : tokens > 0 ? tokens : 1;
}

enum { X, W, TARGET, LSE };

static void head_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[X], *w = n->in[W], *picked = n->out[1];
    int x_add, w_add;
    void *dx = tape_grad_in(t, n, X, mask, &x_add), *dw = tape_grad_in(t, n, W, mask, &w_add);
    if (!dx && !dw) return;
    op_require(tape_grad_out(n, 0) && tape_grad_out(n, 1), "head", picked,
               "and the log sum must both be used");
    int64_t chunk = head_chunk(x->rows, w->rows);
    struct piece *piece;
    void *scratch = scratch_take(t, (size_t)(chunk * w->rows) * dtype_size(t->real), &piece);
    DEVICE_RUN(t->device, head_adjoint, x->dtype, .x = x->data, .w = w->data,
               .target = n->in[TARGET]->data, .lse = n->out[0]->data, .dlse = tape_grad_out(n, 0),
               .dpicked = tape_grad_out(n, 1), .dx = dx, .dx_add = x_add, .dw = dw, .dw_add = w_add,
               .scratch = scratch, .T = x->rows, .H = x->width, .V = w->rows, .first = n->size[0],
               .C = chunk);
    scratch_give(t, piece);
}
static const struct tape_op op_head = {"head", head_backward,     BIT(X) | BIT(W) | BIT(TARGET),
                                       1,      BIT(W) | TOGETHER, 0};

void head(struct tape *t, struct tensor *x, struct param *words, int64_t first,
          struct tensor *target, struct tensor **lse, struct tensor **picked) {
    struct tensor *w = tape_use(t, words, x);
    struct layout l = x->layout;
    for (int a = 0; a < N_AXES; a++) {
        bool split = w->layout.state[a] == SPLIT;
        op_require(x->layout.state[a] != PARTIAL && !x->missing, "head", x,
                   "is partial or missing");
        op_require(!split || x->layout.state[a] == ENTERED, "head", x,
                   "was not entered, and the words are split");
        op_require(x->layout.state[a] != SPLIT || x->layout.by[a] == BY_ROWS, "head", x,
                   "is split by features");
        if (split) l.state[a] = SPLIT, l.by[a] = BY_COLUMNS, l.n_segments = 0;
    }
    op_require(w->dtype == x->dtype, "head", x, "is of another format than the weight");
    op_require(x->width == words->width && x->stride == x->width, "head", x,
               "has not the words' width");
    int64_t chunk = head_chunk(x->rows, words->rows);
    struct piece *piece;
    *lse = tensor_new_real(t, "log sums", x->rows, 1, &l);
    *picked = tensor_new_real(t, "targets' logits", x->rows, 1, &l);
    void *scratch = scratch_take(t, (size_t)(chunk * words->rows) * dtype_size(t->real), &piece);
    DEVICE_RUN(t->device, head, x->dtype, .x = x->data, .w = w->data, .target = target->data,
               .lse = (*lse)->data, .picked = (*picked)->data, .scratch = scratch, .T = x->rows,
               .H = x->width, .V = words->rows, .first = first, .C = chunk);
    scratch_give(t, piece);
    struct note *n = tape_note(t, &op_head, 3, (struct tensor *[]){x, w, target}, 2,
                               (struct tensor *[]){*lse, *picked});
    if (n) n->size[0] = first;
}

static void word_loss_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *lse = n->in[0], *picked = n->in[1];
    int l_add, p_add;
    void *dl = tape_grad_in(t, n, 0, mask, &l_add), *dp = tape_grad_in(t, n, 1, mask, &p_add);
    if (dl || dp)
        DEVICE_RUN(t->device, word_loss_adjoint, lse->dtype, .lse = lse->data,
                   .picked = picked->data, .weight = n->own, .dloss = tape_grad_out(n, 0),
                   .dlse = dl, .dlse_add = l_add, .dpicked = dp, .dpicked_add = p_add,
                   .T = lse->width, .R = lse->rows);
}
static const struct tape_op op_word_loss = {
    "word_loss", word_loss_backward, BIT(0) | BIT(1), 0, 0, 0};

struct tensor *word_loss(struct tape *t, struct tensor *lse, struct tensor *picked, void *weight) {
    struct layout l = layout_join("word_loss", 2, (struct tensor *[]){lse, picked});
    struct tensor *loss = tensor_new_of(t, lse->dtype, "losses", 1, lse->width, &l);
    DEVICE_RUN(t->device, word_loss, lse->dtype, .lse = lse->data, .picked = picked->data,
               .weight = weight, .loss = loss->data, .T = lse->width, .R = lse->rows);
    struct note *n = tape_note(t, &op_word_loss, 2, (struct tensor *[]){lse, picked}, 1, &loss);
    if (n) n->own = weight;
    return loss;
}
