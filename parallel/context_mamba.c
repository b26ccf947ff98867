#include "parallel/context_mamba.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/groups.h"

/* Where rows are dealt out to the ranks: the first of rank r's. */
static int64_t dealt(const struct group *g, int64_t rows, int r) {
    return context_dealt(g->size, r, rows / context_held(g->size));
}

/* ---- halo ---- */

/* carried: of this rank's dealt rows the columns before all pieces, where those behind
 * them go; NULL: there are none. */
struct halo {
    struct tape *t;
    const struct group *g;
    enum dtype d;
    int C, me;
    int64_t rows, length, columns, width;
    void *carried;
};

/* What piece s has of the columns before piece d: n tokens from `token` on of s are column `column`
 * on. The piece in front of all is as long as the columns. */
struct overlap {
    int64_t token, column, n;
};

static struct overlap overlap_of(const struct halo *h, int s, int d) {
    const int64_t first = d * h->length - h->columns, begin = s < 0 ? -h->columns : s * h->length,
                  from = begin > first ? begin : first, end = s < 0 ? 0 : begin + h->length;
    if (s >= d || end <= from) return (struct overlap){0};
    return (struct overlap){from - begin, from - first, end - from};
}

/* The i-th thing that a rank has: its pieces of every sequence, and then what is carried of the
 * sequences dealt to it. */
struct place {
    int piece;
    int64_t first, end; /* sequences */
};

static struct place place_of(const struct halo *h, int rank, int i, bool source) {
    const int held = context_held(h->C);
    if (i < held) return (struct place){context_piece(h->C, rank, i), 0, h->rows / held};
    return (struct place){source ? -1 : context_pieces(h->C), dealt(h->g, h->rows, rank),
                          dealt(h->g, h->rows, rank + 1)};
}

/* Where it lies: `own` is x for a source's pieces, the halo for a destination's. */
static void *address_of(const struct halo *h, void *own, int64_t ldx, bool source, int i,
                        int64_t sequence, const struct overlap *o, int64_t *ld) {
    const int held = context_held(h->C);
    const int64_t row = sequence * held + i;
    *ld = source && i < held ? ldx : h->width;
    if (i == held) {
        const int64_t mine = sequence - dealt(h->g, h->rows, h->me);
        return moved(h->carried, (mine * h->columns + (source ? o->token : o->column)) * h->width,
                     h->d);
    }
    if (source) return moved(own, (row * h->length + o->token) * ldx, h->d);
    return moved(own, (row * h->columns + o->column) * h->width, h->d);
}

/* One side of the halo's way: x (of sources) or the halo (of destinations), and a buffer with what
 * goes between this rank and each other, one after the other. NULL as buffer only counts. */
static void halo_side(const struct halo *h, bool source, bool gather, void *own, int64_t ldx,
                      void *buffer, int64_t *bytes) {
    const int things = context_held(h->C) + !!h->carried;
    int64_t at = 0;
    for (int other = 0; other < h->C; other++) {
        const int64_t before = at;
        for (int to = 0; to < things; to++)
            for (int from = 0; from < things; from++) {
                const struct place s = place_of(h, source ? h->me : other, from, true),
                                   d = place_of(h, source ? other : h->me, to, false);
                const struct overlap o = overlap_of(h, s.piece, d.piece);
                const int64_t first = s.first > d.first ? s.first : d.first,
                              end = s.end < d.end ? s.end : d.end;
                for (int64_t row = first; o.n && row < end; row++) {
                    int64_t ld;
                    void *there = moved(buffer, at, h->d);
                    void *here = address_of(h, own, ldx, source, source ? from : to, row, &o, &ld);
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

static struct halo halo_of(struct tape *t, const struct tensor *x, int64_t rows, int64_t columns,
                           void *carried) {
    const struct group *g = context_group(t);
    return (struct halo){.t = t,
                         .g = g,
                         .d = x->dtype,
                         .C = g->size,
                         .me = g->rank,
                         .rows = rows,
                         .length = rows ? x->rows / rows : 0,
                         .columns = columns,
                         .width = x->width,
                         .carried = carried};
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
    const struct halo h = halo_of(t, x, n->size[0], n->size[1], NULL);
    if (!add) zero_rows(t, x->dtype, dx, x->rows, x->width, x->stride);
    halo_run(&h, dx, x->stride, tape_grad_out(n, 0), false);
}
static const struct tape_op op_halo = {"halo", halo_adjoint, 0, 0, 0, 0};

struct tensor *context_halo(struct tape *t, const struct batch *b, struct tensor *x,
                            int64_t columns, struct tensor *carried) {
    struct layout l = layout_join("halo", 1, &x);
    op_require(x->rows == b->rows * b->length && l.state[AXIS_CONTEXT] == SPLIT &&
                   l.by[AXIS_CONTEXT] == BY_ROWS,
               "halo", x, "is not split by tokens along context");
    struct tensor *y = tensor_new_of(t, x->dtype, "halo", b->rows, columns * x->width, &l);
    op_require(!carried || !t->learning, "halo", carried, "is learned from");
    const struct halo h = halo_of(t, x, b->rows, columns, carried ? carried->data : NULL);
    zero_rows(t, x->dtype, y->data, y->rows, y->width, y->width);
    halo_run(&h, x->data, x->stride, y->data, true);
    struct note *n = tape_note(t, &op_halo, 1, &x, 1, &y);
    if (n) n->size[0] = b->rows, n->size[1] = columns;
    return y;
}

/* ---- states ---- */

/* Sizes of the hand-over of states: `rows` of the batch, each a matrix [heads * head_dim, state].
 * carried: of this rank's dealt rows the states before all pieces, where those behind them go;
 * NULL: there are none. */
struct handover {
    struct tape *t;
    struct group *g;
    int64_t rows, heads, head_dim, state;
    void *carried;
};

/* Sequences of which rank r carries the states. */
static int64_t carried_by(const struct handover *h, int r) {
    return h->carried ? dealt(h->g, h->rows, r + 1) - dealt(h->g, h->rows, r) : 0;
}

/* Pieces in the chain: with what is carried, one before and one behind. */
static int64_t links(const struct handover *h) {
    return context_pieces(h->g->size) + (h->carried ? 2 : 0);
}

/* The first of a state's rows that rank r makes the prefix of. */
static int64_t share_begin(const struct handover *h, int r) {
    return part_begin(h->heads * h->head_dim, h->g->size, r, 1);
}

/* Between [ranks][their rows][width] and the order of the chain, [links][sequences][width]. */
static void order_pieces(const struct handover *h, void *by_rank, void *by_piece, int64_t width,
                         bool sort) {
    const int C = h->g->size, held = context_held(C);
    const int64_t sequences = h->rows / held, before = h->carried ? sequences : 0;
    const enum dtype d = h->t->real;
    for (int r = 0; r < C; r++)
        for (int i = 0; i < held; i++) {
            void *a = moved(by_rank, (r * h->rows + i) * width, d);
            void *b = moved(by_piece, (before + context_piece(C, r, i) * sequences) * width, d);
            if (sort) copy_rows(h->t, d, a, held * width, b, width, sequences, width, 0);
            else copy_rows(h->t, d, b, width, a, held * width, sequences, width, 0);
        }
}

/* Everyone's decays in the order of the chain. What is carried is all there is before it, and
 * nothing comes behind the last, so that any number would do for their decays. */
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
    if (h->carried) {
        const int64_t ends = h->rows / context_held(C) * h->heads;
        zero_rows(h->t, h->t->real, all, 1, ends, ends);
        zero_rows(h->t, h->t->real, moved(all, (links(h) - 1) * ends, h->t->real), 1, ends, ends);
    }
    scratch_give(h->t, piece);
    free(counts);
}

/* A rank's share of the rows of its own states <-> what each rank's share is, one after the other:
 * those of pieces, and behind them of what is carried. */
static void share_rows(const struct handover *h, void *own, void *buffer, bool gather) {
    const enum dtype d = h->t->real;
    const int64_t S = h->state, all = h->heads * h->head_dim * S, more = carried_by(h, h->g->rank);
    void *const mine[] = {own, h->carried};
    const int64_t rows[] = {h->rows, more};
    int64_t at = 0;
    for (int r = 0; r < h->g->size; r++) {
        const int64_t first = share_begin(h, r) * S, n = share_begin(h, r + 1) * S - first;
        for (int i = 0; i < 2; at += rows[i++] * n) {
            void *here = mine[i] ? moved(mine[i], first, d) : NULL, *there = moved(buffer, at, d);
            if (gather) copy_rows(h->t, d, here, all, there, n, rows[i], n, 0);
            else copy_rows(h->t, d, there, n, here, all, rows[i], n, 0);
        }
    }
}

/* Between what came from the ranks, each its pieces and then what it carries, and the chain's
 * order. Back, what lies behind the last piece is carried on. n: numbers of this rank's share. */
static void order_links(const struct handover *h, void *by_rank, void *chain, int64_t n,
                        bool sort) {
    const enum dtype d = h->t->real;
    const int64_t sequences = h->rows / context_held(h->g->size), link = sort ? 0 : links(h) - 1;
    struct piece *piece;
    if (!h->carried) {
        order_pieces(h, by_rank, chain, n, sort);
        return;
    }
    void *pieces = scratch_take(h->t, (size_t)(h->g->size * h->rows * n) * dtype_size(d), &piece);
    if (!sort) order_pieces(h, pieces, chain, n, false);
    int64_t at = 0;
    for (int r = 0; r < h->g->size; r++) {
        const int64_t own = h->rows * n, more = carried_by(h, r) * n;
        void *of = moved(pieces, r * own, d), *there = moved(by_rank, at, d),
             *carried = moved(by_rank, at + own, d),
             *ends = moved(chain, (link * sequences + dealt(h->g, h->rows, r)) * n, d);
        copy_rows(h->t, d, sort ? there : of, own, sort ? of : there, own, 1, own, 0);
        copy_rows(h->t, d, sort ? carried : ends, more, sort ? ends : carried, more, 1, more, 0);
        at += own + more;
    }
    if (sort) order_pieces(h, pieces, chain, n, true);
    scratch_give(h->t, piece);
}

/* to: the states before the pieces (or, backward, the gradients of the states behind them), given
 * what each piece ends with from none. Every rank does its share of the rows of all states. */
static void chain(const struct handover *h, void *own, void *to, const void *decays,
                  bool backward) {
    struct tape *t = h->t;
    const int C = h->g->size, me = h->g->rank;
    const size_t real = dtype_size(t->real);
    const int64_t S = h->state, first = share_begin(h, me),
                  n = (share_begin(h, me + 1) - first) * S, sequences = h->rows / context_held(C),
                  carried = h->carried ? sequences : 0; /* of all ranks together */
    const int64_t mine_rows = h->rows + carried_by(h, me);
    int64_t *out = die_alloc(2 * (unsigned long)C * sizeof *out), *in = out + C;
    struct piece *piece[3];
    void *mine =
             scratch_take(t, (size_t)(mine_rows * h->heads * h->head_dim * S) * real, &piece[0]),
         *theirs = scratch_take(t, (size_t)((C * h->rows + carried) * n) * real, &piece[1]),
         *sorted = scratch_take(t, (size_t)(links(h) * sequences * n) * real, &piece[2]);
    for (int r = 0; r < C; r++) {
        out[r] = mine_rows * (share_begin(h, r + 1) - share_begin(h, r)) * S * (int64_t)real;
        in[r] = (h->rows + carried_by(h, r)) * n * (int64_t)real;
    }
    share_rows(h, own, mine, true);
    context_exchange(t, mine, out, theirs, in);
    order_links(h, theirs, sorted, n, true);
    if (h->carried) {
        void *last = moved(sorted, (links(h) - 1) * sequences * n, t->real);
        zero_rows(t, t->real, last, 1, sequences * n, sequences * n);
    }
    if (n * sequences > 0)
        DEVICE_RUN(t->device, scan_chain, t->real, .s = sorted, .decay = decays, .in = sorted,
                   .N = links(h), .B = sequences, .W = n, .H = h->heads, .first = first * S,
                   .each = h->head_dim * S, .backward = backward);
    order_links(h, theirs, sorted, n, false);
    context_exchange(t, theirs, in, mine, out);
    share_rows(h, to, mine, false);
    for (int i = 2; i >= 0; i--) scratch_give(t, piece[i]);
    free(out);
}

enum { Y, OUT, U, DT, A_LOG, DT_BIAS, START, DECAYS };

/* What a row of the scan is to the others: its end from none (dy
 * NULL), or its beginning's gradient. */
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
    const struct batch b = {.rows = n->size[0], .length = n->size[1]};
    const struct scan_shape s = {n->size[2], n->size[3], n->size[4], n->size[5],
                                 0,          n->real[0], n->real[1]};
    const struct handover h = {t, context_group(t), b.rows, s.heads, s.head_dim, s.state, NULL};
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
                            struct param *d, struct param *dt_bias, struct tensor *carried) {
    struct tensor *a = tape_use_real(t, a_log, u), *skip = tape_use_real(t, d, u),
                  *bias = tape_use_real(t, dt_bias, u), *out = NULL;
    struct layout l = layout_join("context_scan", 4, (struct tensor *[]){dt, u, a, bias});
    const struct handover h = {t,
                               context_group(t),
                               b->rows,
                               s->heads,
                               s->head_dim,
                               s->state,
                               carried ? carried->data : NULL};
    const int64_t width = s->heads * s->head_dim * s->state;
    op_require(l.state[AXIS_CONTEXT] == SPLIT && l.by[AXIS_CONTEXT] == BY_ROWS, "context_scan", u,
               "is not split by tokens along context");
    l.n_segments = 1;
    l.segment[0] = (struct segment){width, 1};
    struct tensor *state = tensor_new_real(t, "state before", b->rows, width, &l);
    op_require(!carried || !t->learning, "context_scan", carried, "is learned from");
    struct tensor *decays =
        tensor_new_real(t, "decays", links(&h) * (b->rows / context_held(h.g->size)), s->heads, &l);
    struct tensor *in[] = {NULL, NULL, u, dt, a, bias, b->start, decays};
    struct piece *piece[2];
    void *own = scratch_take(t, (size_t)(b->rows * width) * dtype_size(t->real), &piece[0]);
    void *decay = scratch_take(t, (size_t)(b->rows * s->heads) * dtype_size(t->real), &piece[1]);
    row_end(t, b, s, in, NULL, own, decay);
    gather_decays(&h, decay, decays->data);
    chain(&h, own, state->data, decays->data, false);
    scratch_give(t, piece[1]);
    scratch_give(t, piece[0]);
    struct tensor *y = scan(t, b, s, u, dt, a, skip, bias, state, t->learning ? &out : NULL);
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
