#include "parallel/context_heads.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/groups.h"

/* Where rank r's part of a segment begins, in numbers from the segment's first, how many it has,
 * and how many neighbours have the same. */
struct part {
    int64_t first, n;
    int share;
};

static struct part part_of(const struct heads_segment *s, int context, int r) {
    struct part p = {0};
    int64_t unit = s->units ? s->width / s->units : 0, held;
    if (part_heads(s->units, context, r, &p.first, &held, &p.share))
        bug("%ld units on %d ranks", (long)s->units, context);
    p.first *= unit;
    p.n = held * unit;
    return p;
}

int64_t heads_width(int context, int n, const struct heads_segment *s) {
    int64_t sum = 0;
    for (int k = 0; k < n; k++) sum += part_of(&s[k], context, 0).n;
    return sum;
}

/* An exchange in either direction: own is [own tokens, segments], rows `ld`
 * apart; all is [all tokens, width]. */
struct swap {
    struct tape *t;
    struct group *g;
    enum dtype d;
    int64_t rows, length, tokens, width; /* of this rank's batch */
    bool dealt;
    int64_t all; /* tokens of all ranks */
    int n;
    const struct heads_segment *s;
};

/* Own columns <-> a buffer [ranks][own tokens][width]. */
static void own_side(const struct swap *w, void *own, int64_t ld, void *buffer, bool gather,
                     int add) {
    const int64_t block = w->tokens * w->width;
    for (int r = 0; r < w->g->size; r++) {
        int64_t column = 0, at = 0;
        for (int k = 0; k < w->n; k++) {
            const struct part p = part_of(&w->s[k], w->g->size, r);
            void *mine = moved(own, column + p.first, w->d),
                 *there = moved(buffer, r * block + at, w->d);
            if (gather) copy_rows(w->t, w->d, mine, ld, there, w->width, w->tokens, p.n, 0);
            else
                copy_rows(w->t, w->d, there, w->width, mine, ld, w->tokens, p.n,
                          add || r % p.share);
            column += w->s[k].width;
            at += p.n;
        }
    }
}

static int64_t tokens_of(const struct swap *w, int r) {
    const int C = w->g->size;
    return w->dealt ? context_dealt(C, r + 1, w->all) - context_dealt(C, r, w->all) : w->tokens;
}

/* All tokens in order <-> a buffer [ranks][their tokens][width]: the
 * same where rows are dealt out. */
static void all_side(const struct swap *w, void *all, void *buffer, bool gather) {
    const int C = w->g->size, held = context_held(C);
    const int64_t piece = w->length * w->width, n = w->all * w->width;
    if (w->dealt) {
        copy_rows(w->t, w->d, gather ? all : buffer, n, gather ? buffer : all, n, 1, n, 0);
        return;
    }
    for (int r = 0; r < C; r++)
        for (int64_t row = 0; row < w->rows; row++) {
            const int64_t sequence = row / held;
            const int number = context_piece(C, r, (int)(row % held));
            void *there = moved(buffer, (r * w->rows + row) * piece, w->d);
            void *here = moved(all, (sequence * context_pieces(C) + number) * piece, w->d);
            copy_rows(w->t, w->d, gather ? here : there, piece, gather ? there : here, piece, 1,
                      piece, 0);
        }
}

/* to_heads: own to all; else all to own, which is added to if `add`. */
static void swap_run(const struct swap *w, void *own, int64_t ld, void *all, bool to_heads,
                     int add) {
    const int C = w->g->size;
    const int64_t token = w->width * (int64_t)dtype_size(w->d);
    int64_t *mine = die_alloc(2 * (unsigned long)C * sizeof *mine), *theirs = mine + C;
    struct piece *piece[2];
    void *by_token = scratch_take(w->t, (size_t)(C * w->tokens * token), &piece[0]);
    void *by_head = scratch_take(w->t, (size_t)(w->all * token), &piece[1]);
    for (int r = 0; r < C; r++) {
        mine[r] = w->tokens * token;
        theirs[r] = tokens_of(w, r) * token;
    }
    if (to_heads) {
        own_side(w, own, ld, by_token, true, 0);
        context_exchange(w->t, by_token, mine, by_head, theirs);
        all_side(w, all, by_head, false);
    } else {
        all_side(w, all, by_head, true);
        context_exchange(w->t, by_head, theirs, by_token, mine);
        own_side(w, own, ld, by_token, false, add);
    }
    scratch_give(w->t, piece[1]);
    scratch_give(w->t, piece[0]);
    free(mine);
}

enum { MOST_PARTS = 4 };

/* A note's sizes: rows, length, segments. */
static void remember(struct note *n, const struct batch *b, int k, const struct heads_segment *s) {
    if (!n) return;
    n->size[0] = b->rows;
    n->size[1] = b->length;
    for (int i = 0; i < k; i++) n->size[2 + 2 * i] = s[i].width, n->size[3 + 2 * i] = s[i].units;
}

static struct swap swap_of(struct tape *t, enum dtype d, const struct batch *b, int n,
                           const struct heads_segment *s) {
    struct group *g = context_group(t);
    const int64_t tokens = b->rows * b->length;
    return (struct swap){.t = t,
                         .g = g,
                         .d = d,
                         .rows = b->rows,
                         .length = b->length,
                         .tokens = tokens,
                         .width = heads_width(g->size, n, s),
                         .dealt = b->dealt,
                         .all = b->dealt ? b->all_rows : g->size * tokens,
                         .n = n,
                         .s = s};
}

/* The batch of a note; what is learned from was cut in pieces. */
static struct batch batch_of(const struct note *n) {
    return (struct batch){.rows = n->size[0], .length = n->size[1]};
}

static int recall(const struct note *n, struct heads_segment *s) {
    int k = 0;
    for (; k < MOST_PARTS && n->size[2 + 2 * k]; k++)
        s[k] = (struct heads_segment){n->size[2 + 2 * k], n->size[3 + 2 * k]};
    return k;
}

static void to_heads_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct heads_segment s[MOST_PARTS];
    struct tensor *x = n->in[0];
    int add, k = recall(n, s);
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    if (!dx) return;
    const struct batch b = batch_of(n);
    const struct swap w = swap_of(t, x->dtype, &b, k, s);
    swap_run(&w, dx, x->stride, tape_grad_out(n, 0), false, add);
}
static const struct tape_op op_to_heads = {"to_heads", to_heads_adjoint, 0, 0, 0, 0};

struct tensor *context_to_heads(struct tape *t, const struct batch *b, struct tensor *x, int n,
                                const struct heads_segment *s) {
    struct layout l = layout_join("to_heads", 1, &x);
    int64_t width = 0;
    op_require(l.state[AXIS_CONTEXT] == SPLIT && l.by[AXIS_CONTEXT] == BY_ROWS, "to_heads", x,
               "is not split by tokens along context");
    for (int k = 0; k < n; k++) {
        width += s[k].width;
        if (k < l.n_segments) l.segment[k].width = heads_width(context_group(t)->size, 1, &s[k]);
    }
    op_require(n <= MOST_PARTS && width == x->width && x->rows == b->rows * b->length &&
                   (l.state[AXIS_TENSOR] != SPLIT || l.n_segments == n),
               "to_heads", x, "is not these segments");
    l.by[AXIS_CONTEXT] = BY_COLUMNS;
    op_require(!b->dealt || !t->learning, "to_heads", x, "is dealt out and learned from");
    const struct swap w = swap_of(t, x->dtype, b, n, s);
    struct tensor *y = tensor_new_of(t, x->dtype, x->label, w.all, w.width, &l);
    swap_run(&w, x->data, x->stride, y->data, true, 0);
    remember(tape_note(t, &op_to_heads, 1, &x, 1, &y), b, n, s);
    return y;
}

static void from_heads_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct heads_segment s[MOST_PARTS];
    struct tensor *y = n->in[0], *x = n->out[0];
    struct piece *piece = NULL;
    int add, k = recall(n, s);
    void *dy = tape_grad_in(t, n, 0, mask, &add);
    if (!dy) return;
    const int64_t numbers = y->rows * y->width;
    void *all = add ? scratch_take(t, (size_t)numbers * dtype_size(y->dtype), &piece) : dy;
    const struct batch b = batch_of(n);
    const struct swap w = swap_of(t, x->dtype, &b, k, s);
    swap_run(&w, tape_grad_out(n, 0), x->stride, all, true, 0);
    if (!piece) return;
    copy_rows(t, y->dtype, all, numbers, dy, numbers, 1, numbers, 1);
    scratch_give(t, piece);
}
static const struct tape_op op_from_heads = {"from_heads", from_heads_adjoint, 0, 0, 0, 0};

struct tensor *context_from_heads(struct tape *t, const struct batch *b, struct tensor *y) {
    struct layout l = layout_join("from_heads", 1, &y);
    const int context = context_group(t)->size;
    const struct heads_segment s = {y->width * context, context};
    const struct swap w = swap_of(t, y->dtype, b, 1, &s);
    op_require(l.state[AXIS_CONTEXT] == SPLIT && l.by[AXIS_CONTEXT] == BY_COLUMNS &&
                   l.n_segments <= 1 && y->stride == y->width && y->rows == w.all,
               "from_heads", y, "is not all tokens of some heads");
    l.by[AXIS_CONTEXT] = BY_ROWS;
    if (l.n_segments) l.segment[0].width *= context;
    struct tensor *x = tensor_new_of(t, y->dtype, y->label, b->rows * b->length, s.width, &l);
    swap_run(&w, x->data, x->stride, y->data, false, 0);
    remember(tape_note(t, &op_from_heads, 1, &y, 1, &x), b, 1, &s);
    return x;
}

/* Rows of the weight p, or of its gradient, <-> those of this rank's units. */
static void weight_rows(struct tape *t, void *p, void *part, int64_t width, int n,
                        const struct heads_segment *s, bool gather) {
    int64_t row = 0, at = 0;
    for (int k = 0; k < n; k++) {
        const struct part r = part_of(&s[k], context_group(t)->size, context_group(t)->rank);
        const int64_t numbers = r.n * width;
        void *whole = moved(p, (row + r.first) * width, t->real),
             *mine = moved(part, at * width, t->real);
        if (gather) copy_rows(t, t->real, whole, numbers, mine, numbers, 1, numbers, 0);
        else copy_rows(t, t->real, mine, numbers, whole, numbers, 1, numbers, 1);
        row += s[k].width;
        at += r.n;
    }
}

static void weight_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct heads_segment s[MOST_PARTS];
    const int k = recall(n, s);
    void *dw = tape_grad_in(t, n, 0, mask, NULL);
    if (dw) weight_rows(t, dw, tape_grad_out(n, 0), n->in[0]->width, k, s, false);
}
static const struct tape_op op_weight = {"heads_weight", weight_adjoint, 0, 0, 1, 0};

struct tensor *context_heads_weight(struct tape *t, struct param *p, struct tensor *x, int n,
                                    const struct heads_segment *s) {
    struct tensor *w = tape_use_real(t, p, x);
    struct layout l = w->layout;
    int64_t rows = 0;
    for (int k = 0; k < n; k++) rows += s[k].width;
    op_require(x->layout.by[AXIS_CONTEXT] == BY_COLUMNS && rows == p->rows && n <= MOST_PARTS,
               "heads_weight", x, "has not been exchanged, or is not the weight's");
    l.state[AXIS_CONTEXT] = SPLIT;
    l.by[AXIS_CONTEXT] = l.by[AXIS_TENSOR] = BY_COLUMNS; /* rows of a weight are features */
    for (int k = 0; k < n && k < l.n_segments; k++)
        l.segment[k].width = heads_width(context_group(t)->size, 1, &s[k]);
    struct tensor *y =
        tensor_new_real(t, p->name, heads_width(context_group(t)->size, n, s), p->width, &l);
    weight_rows(t, w->data, y->data, p->width, n, s, true);
    remember(tape_note(t, &op_weight, 1, &w, 1, &y), &(struct batch){0}, n, s);
    return y;
}
