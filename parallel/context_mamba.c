#include "parallel/context_mamba.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/groups.h"

/* ---- halo ---- */

struct halo {
    struct tape *t;
    enum dtype d;
    int C, me;
    int64_t rows, length, columns, width;
};

/* What piece s has of the columns before piece d: n tokens from `token` on of s are column `column`
 * on. */
struct overlap {
    int64_t token, column, n;
};

static struct overlap overlap_of(const struct halo *h, int s, int d) {
    const int64_t first = d * h->length - h->columns, begin = s * h->length;
    const int64_t from = begin > first ? begin : first, end = begin + h->length;
    if (s >= d || end <= from) return (struct overlap){0};
    return (struct overlap){from - begin, from - first, end - from};
}

/* One side of the halo's way: x (of sources) or the halo (of destinations), and a buffer with what
 * goes between this rank and each other, one after the other. NULL as buffer only counts. */
static void halo_side(const struct halo *h, bool source, bool gather, void *own, int64_t ldx,
                      void *buffer, int64_t *bytes) {
    const int held = context_held(h->C);
    int64_t at = 0;
    for (int other = 0; other < h->C; other++) {
        const int64_t before = at;
        for (int to = 0; to < held; to++)
            for (int from = 0; from < held; from++) {
                const int s = context_piece(h->C, source ? h->me : other, from);
                const int d = context_piece(h->C, source ? other : h->me, to);
                const struct overlap o = overlap_of(h, s, d);
                for (int64_t row = 0; o.n && row < h->rows; row += held) {
                    const int64_t token = (row + from) * h->length + o.token;
                    const int64_t column = ((row + to) * h->columns + o.column) * h->width;
                    void *there = moved(buffer, at, h->d);
                    void *here = moved(own, source ? token * ldx : column, h->d);
                    const int64_t ld = source ? ldx : h->width;
                    at += o.n * h->width;
                    if (!buffer) continue;
                    if (gather) copy_rows(h->t, h->d, here, ld, there, h->width, o.n, h->width, 0);
                    else copy_rows(h->t, h->d, there, h->width, here, ld, o.n, h->width, source);
                }
            }
        bytes[other] = (at - before) * (int64_t)dtype_size(h->d);
    }
}

static int64_t sum_of(const int64_t *x, int n) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* forward: from x to the halo; else the halo's gradient is added to that of x. */
static void halo_run(const struct halo *h, void *x, int64_t ldx, void *halo, bool forward) {
    int64_t *sources = die_alloc(2 * (unsigned long)h->C * sizeof *sources), *ends = sources + h->C;
    struct piece *piece[2];
    halo_side(h, true, true, x, ldx, NULL, sources);
    halo_side(h, false, true, halo, ldx, NULL, ends);
    void *mine = scratch_take(h->t, (size_t)sum_of(sources, h->C), &piece[0]);
    void *theirs = scratch_take(h->t, (size_t)sum_of(ends, h->C), &piece[1]);
    if (forward) {
        halo_side(h, true, true, x, ldx, mine, sources);
        context_exchange(h->t, mine, sources, theirs, ends);
        halo_side(h, false, false, halo, ldx, theirs, ends);
    } else {
        halo_side(h, false, true, halo, ldx, theirs, ends);
        context_exchange(h->t, theirs, ends, mine, sources);
        halo_side(h, true, false, x, ldx, mine, sources);
    }
    scratch_give(h->t, piece[1]);
    scratch_give(h->t, piece[0]);
    free(sources);
}

static struct halo halo_of(struct tape *t, const struct tensor *x, int64_t rows, int64_t columns) {
    const struct group *g = context_group(t);
    return (struct halo){t, x->dtype, g->size, g->rank, rows, x->rows / rows, columns, x->width};
}

static void zero_rows(struct tape *t, enum dtype d, void *x, int64_t rows, int64_t width,
                      int64_t ld) {
    if (rows * width > 0)
        DEVICE_RUN(t->device, fill, d, .x = x, .T = rows, .W = width, .ld = ld, .value = 0);
}

static void halo_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *x = n->in[0];
    int add;
    void *dx = tape_grad_in(t, n, 0, mask, &add);
    if (!dx) return;
    const struct halo h = halo_of(t, x, n->size[0], n->size[1]);
    if (!add) zero_rows(t, x->dtype, dx, x->rows, x->width, x->stride);
    halo_run(&h, dx, x->stride, tape_grad_out(n, 0), false);
}
static const struct tape_op op_halo = {"halo", halo_adjoint, 0, 0, 0, 0};

struct tensor *context_halo(struct tape *t, const struct batch *b, struct tensor *x,
                            int64_t columns) {
    struct layout l = layout_join("halo", 1, &x);
    op_require(x->rows == b->rows * b->length && l.state[AXIS_CONTEXT] == SPLIT &&
                   l.by[AXIS_CONTEXT] == BY_ROWS,
               "halo", x, "is not split by tokens along context");
    struct tensor *y = tensor_new_of(t, x->dtype, "halo", b->rows, columns * x->width, &l);
    const struct halo h = halo_of(t, x, b->rows, columns);
    zero_rows(t, x->dtype, y->data, y->rows, y->width, y->width);
    halo_run(&h, x->data, x->stride, y->data, true);
    struct note *n = tape_note(t, &op_halo, 1, &x, 1, &y);
    if (n) n->size[0] = b->rows, n->size[1] = columns;
    return y;
}

/* ---- states ---- */

/* Sizes of the hand-over of states: `rows` of the batch, each a matrix [heads * head_dim, state].
 * */
struct handover {
    struct tape *t;
    struct group *g;
    int64_t rows, heads, head_dim, state;
};

/* The first of a state's rows that rank r makes the prefix of. */
static int64_t share_begin(const struct handover *h, int r) {
    return part_begin(h->heads * h->head_dim, h->g->size, r, 1);
}

/* Between [ranks][their rows][width] and the order of the pieces, [pieces][sequences][width]. */
static void order_pieces(const struct handover *h, void *by_rank, void *by_piece, int64_t width,
                         bool sort) {
    const int C = h->g->size, held = context_held(C);
    const int64_t sequences = h->rows / held;
    const enum dtype d = h->t->real;
    for (int r = 0; r < C; r++)
        for (int i = 0; i < held; i++) {
            void *a = moved(by_rank, (r * h->rows + i) * width, d);
            void *b = moved(by_piece, context_piece(C, r, i) * sequences * width, d);
            if (sort) copy_rows(h->t, d, a, held * width, b, width, sequences, width, 0);
            else copy_rows(h->t, d, b, width, a, held * width, sequences, width, 0);
        }
}

/* Everyone's decays in the order of the pieces. */
static void gather_decays(const struct handover *h, const void *own, void *all) {
    const int C = h->g->size;
    int64_t *counts = die_alloc((unsigned long)C * sizeof *counts);
    struct piece *piece;
    struct request r;
    const int64_t n = h->rows * h->heads;
    void *raw = scratch_take(h->t, (size_t)(C * n) * dtype_size(h->t->real), &piece);
    for (int i = 0; i < C; i++) counts[i] = n;
    comm_gather_start(h->g, device_host(h->t->device, own), device_host(h->t->device, raw), counts,
                      dtype_size(h->t->real), &r);
    comm_wait(&r);
    order_pieces(h, raw, all, h->heads, true);
    scratch_give(h->t, piece);
    free(counts);
}

/* A rank's share of the rows of its own states <-> what each rank's share is, one after the other.
 * */
static void share_rows(const struct handover *h, void *own, void *buffer, bool gather) {
    const int64_t S = h->state, all = h->heads * h->head_dim * S;
    for (int r = 0; r < h->g->size; r++) {
        const int64_t first = share_begin(h, r) * S, n = share_begin(h, r + 1) * S - first;
        void *mine = moved(own, first, h->t->real),
             *there = moved(buffer, h->rows * first, h->t->real);
        if (gather) copy_rows(h->t, h->t->real, mine, all, there, n, h->rows, n, 0);
        else copy_rows(h->t, h->t->real, there, n, mine, all, h->rows, n, 0);
    }
}

/* to: the states before the pieces (or, backward, the gradients of the states behind them), given
 * what each piece ends with from none. Every rank does its share of the rows of all states. */
static void chain(const struct handover *h, void *own, void *to, const void *decays,
                  bool backward) {
    struct tape *t = h->t;
    const int C = h->g->size, me = h->g->rank, pieces = context_pieces(C);
    const size_t real = dtype_size(t->real);
    const int64_t S = h->state, first = share_begin(h, me),
                  n = (share_begin(h, me + 1) - first) * S;
    int64_t *out = die_alloc(2 * (unsigned long)C * sizeof *out), *in = out + C;
    struct piece *piece[3];
    const size_t whole = (size_t)(h->rows * h->heads * h->head_dim * S) * real;
    const size_t share = (size_t)(C * h->rows * n) * real;
    void *mine = scratch_take(t, whole, &piece[0]), *theirs = scratch_take(t, share, &piece[1]),
         *sorted = scratch_take(t, share, &piece[2]);
    for (int r = 0; r < C; r++) {
        out[r] = h->rows * (share_begin(h, r + 1) - share_begin(h, r)) * S * (int64_t)real;
        in[r] = h->rows * n * (int64_t)real;
    }
    share_rows(h, own, mine, true);
    context_exchange(t, mine, out, theirs, in);
    order_pieces(h, theirs, sorted, n, true);
    if (n)
        DEVICE_RUN(t->device, scan_chain, t->real, .s = sorted, .decay = decays, .in = sorted,
                   .N = pieces, .B = h->rows / context_held(C), .W = n, .H = h->heads,
                   .first = first * S, .each = h->head_dim * S, .backward = backward);
    order_pieces(h, theirs, sorted, n, false);
    context_exchange(t, theirs, in, mine, out);
    share_rows(h, to, mine, false);
    for (int i = 2; i >= 0; i--) scratch_give(t, piece[i]);
    free(out);
}

enum { Y, OUT, U, DT, A_LOG, DT_BIAS, START, DECAYS };

/* What a row of the scan is to the others: its end from none (dy NULL), or its beginning's
 * gradient. */
static void row_end(struct tape *t, const struct batch *b, const struct scan_shape *s,
                    struct tensor *const *in, const void *dy, void *state, void *decay) {
    const struct tensor *u = in[U], *dt = in[DT];
    if (dy)
        DEVICE_RUN(t->device, scan_begin, u->dtype, .u = u->data, .dt = dt->data,
                   .a_log = in[A_LOG]->data, .dt_bias = in[DT_BIAS]->data, .start = in[START]->data,
                   .dy = dy, .dstate = state, .decay = decay, .B = b->rows, .L = b->length,
                   .H = s->heads, .P = s->head_dim, .G = s->groups, .S = s->state,
                   .lddt = dt->stride, .dt_min = s->dt_min, .dt_max = s->dt_max);
    else
        DEVICE_RUN(t->device, scan_end, u->dtype, .u = u->data, .dt = dt->data,
                   .a_log = in[A_LOG]->data, .dt_bias = in[DT_BIAS]->data, .start = in[START]->data,
                   .state = state, .decay = decay, .B = b->rows, .L = b->length, .H = s->heads,
                   .P = s->head_dim, .G = s->groups, .S = s->state, .lddt = dt->stride,
                   .dt_min = s->dt_min, .dt_max = s->dt_max);
}

/* Before the scan's own adjoint: the gradient of the states behind the pieces. */
static void state_adjoint(struct tape *t, struct note *n, unsigned mask) {
    const struct batch b = {n->size[0], n->size[1], NULL};
    const struct scan_shape s = {n->size[2], n->size[3], n->size[4], n->size[5],
                                 0,          n->real[0], n->real[1]};
    const struct handover h = {t, context_group(t), b.rows, s.heads, s.head_dim, s.state};
    const size_t real = dtype_size(t->real);
    struct piece *piece[2];
    void *dout = tape_grad_in(t, n, OUT, mask, NULL);
    if (dout) {
        void *own =
            scratch_take(t, (size_t)(b.rows * s.heads * s.head_dim * s.state) * real, &piece[0]);
        void *decay = scratch_take(t, (size_t)(b.rows * s.heads) * real, &piece[1]);
        row_end(t, &b, &s, n->in, tape_grad_out(n, 0), own, decay);
        chain(&h, own, dout, n->in[DECAYS]->data, true);
        scratch_give(t, piece[1]);
        scratch_give(t, piece[0]);
    }
    tape_grad_pass(t, n, 0, Y, mask);
}
static const struct tape_op op_state = {"context state",
                                        state_adjoint,
                                        1u << U | 1u << DT | 1u << A_LOG | 1u << DT_BIAS |
                                            1u << START | 1u << DECAYS,
                                        0,
                                        0,
                                        0};

struct tensor *context_scan(struct tape *t, const struct batch *b, const struct scan_shape *s,
                            struct tensor *u, struct tensor *dt, struct param *a_log,
                            struct param *d, struct param *dt_bias) {
    struct tensor *a = tape_use_real(t, a_log, u), *skip = tape_use_real(t, d, u),
                  *bias = tape_use_real(t, dt_bias, u), *out = NULL;
    struct layout l = layout_join("context_scan", 4, (struct tensor *[]){dt, u, a, bias});
    const struct handover h = {t, context_group(t), b->rows, s->heads, s->head_dim, s->state};
    const int64_t width = s->heads * s->head_dim * s->state;
    op_require(l.state[AXIS_CONTEXT] == SPLIT && l.by[AXIS_CONTEXT] == BY_ROWS, "context_scan", u,
               "is not split by tokens along context");
    l.n_segments = 1;
    l.segment[0] = (struct segment){width, 1};
    struct tensor *state = tensor_new_real(t, "state before", b->rows, width, &l);
    struct tensor *decays = tensor_new_real(
        t, "decays", context_pieces(h.g->size) * b->rows / context_held(h.g->size), s->heads, &l);
    struct tensor *in[] = {NULL, NULL, u, dt, a, bias, b->start, decays};
    struct piece *piece[2];
    void *own = scratch_take(t, (size_t)(b->rows * width) * dtype_size(t->real), &piece[0]);
    void *decay = scratch_take(t, (size_t)(b->rows * s->heads) * dtype_size(t->real), &piece[1]);
    row_end(t, b, s, in, NULL, own, decay);
    gather_decays(&h, decay, decays->data);
    chain(&h, own, state->data, decays->data, false);
    scratch_give(t, piece[1]);
    scratch_give(t, piece[0]);
    struct tensor *y = scan_with(t, b, s, u, dt, a, skip, bias, state, t->learning ? &out : NULL);
    tensor_drop(t, state);
    if (out) {
        in[Y] = y;
        in[OUT] = out;
        struct tensor *z = tensor_alias(t, y, &y->layout);
        struct note *n = tape_note(t, &op_state, 8, in, 1, &z);
        if (n) {
            const int64_t size[] = {b->rows, b->length, s->heads, s->head_dim, s->groups, s->state};
            for (int i = 0; i < 6; i++) n->size[i] = size[i];
            n->real[0] = s->dt_min;
            n->real[1] = s->dt_max;
        }
        tensor_drop(t, out); /* only its gradient is of use */
        tensor_drop(t, y);
        y = z;
    }
    tensor_drop(t, decays);
    return y;
}
