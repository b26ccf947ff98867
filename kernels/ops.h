/* ops: the operations that layers are written with, as calls on a tape.
 *
 * Each function checks the states of what it is given, makes the result, runs the device's kernel
 * (ops.def has the formulas) and notes how to go back. Weights are given as parameters and come
 * onto the tape by tape_use. Activations are [tokens, features]; tokens of a micro-batch are `rows`
 * rows of `length` each. Every function belongs to the rank alone: exchanges are in parallel/. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include "kernels/tape.h"

/* The tokens of one micro-batch on this rank. */
struct batch {
    int64_t rows, length; /* rows * length tokens */
    struct tensor *start; /* [tokens, 1] integers: see ops.def */
    bool dealt; /* along context rows are not pieces of sequences, but whole ones, dealt out */
    int64_t all_rows; /* so many on all its ranks (parallel/context_parallel.h) */
};

/* ops.c: a + b, of one state (partial sums too); x + bias; y = relu(x)^2; root-mean-square norm. */
struct tensor *add(struct tape *t, struct tensor *a, struct tensor *b);
struct tensor *add_bias(struct tape *t, struct tensor *x, struct param *bias);
struct tensor *relu2(struct tape *t, struct tensor *x);
struct tensor *rms_norm(struct tape *t, struct tensor *x, struct param *weight, double eps);

/* x in real numbers, for what must not be rounded (a router's scores); x itself where it is so. */
struct tensor *as_real(struct tape *t, struct tensor *x);

/* The one door for weights: y[tokens, rows of w] = x w^T. w split by rows takes x entered and gives
 * y split; w split by columns takes x split and gives y partial; a bias is added by add_bias (after
 * leave, where y is partial). */
struct tensor *linear(struct tape *t, struct tensor *x, struct param *weight);
/* The same, of real numbers: not rounded to x's format. No gradient flows through it. */
struct tensor *linear_real(struct tape *t, struct tensor *x, struct param *weight);
/* The same per expert: rows offset[e] .. offset[e+1] of x meet expert e's block of w (`experts`
 * blocks of equal rows). */
struct tensor *grouped_linear(struct tape *t, struct tensor *x, struct param *weight,
                              int64_t experts, struct tensor *offset);

/* Rows of the table; ids[tokens,1] integers; `first`: the id of this rank's first row.
 * Partial if the table is split. */
struct tensor *embedding(struct tape *t, struct tensor *ids, struct param *table, int64_t first);

/* The last token of each row of the batch: x[tokens, width] -> [rows,
 * width]. No gradient flows through it. */
struct tensor *row_ends(struct tape *t, const struct batch *b, struct tensor *x);

/* ops_mamba.c. State: state_in and state_out may be NULL; *state_out is made, or if it is a tensor
 * already written; that may be state_in where nothing is learned. conv: x[tokens, channels] (a
 * view), weight[channels, K]; bias may be NULL; states [rows, (K-1)*channels]. */
struct tensor *conv(struct tape *t, const struct batch *b, struct tensor *x, struct param *weight,
                    struct param *bias, struct tensor *state_in, struct tensor **state_out);

/* The same with weights that are on the tape already. */
struct tensor *conv_with(struct tape *t, const struct batch *b, struct tensor *x, struct tensor *w,
                         struct tensor *bias, struct tensor *state_in, struct tensor **state_out);

/* The sizes of a scan on this rank. */
struct scan_shape {
    int64_t heads, head_dim, groups, state;
    int64_t chunk; /* a state is kept every so many tokens for the adjoint, or oftener: memory and
                      speed only */
    double dt_min, dt_max;
};

/* u[tokens, x|b|c], dt[tokens, heads], real weights [heads], which are on the tape already
 * (kernels/tape.h: tape_use_real); y[tokens, heads*head_dim]. States [rows,
 * heads*head_dim*state]. */
struct tensor *scan(struct tape *t, const struct batch *b, const struct scan_shape *s,
                    struct tensor *u, struct tensor *dt, struct tensor *a_log, struct tensor *d,
                    struct tensor *dt_bias, struct tensor *state_in, struct tensor **state_out);

/* One more token of each row, where the state is brought up to date only once in so many tokens: n
 * of them are remembered since it was, 0 after scan and then one more with each call, and 0 again
 * after SCAN_RECENT - 1 (kernels/scan_recent.h). recent [rows, scan_remembers]. Where nothing is
 * learned. */
int64_t scan_remembers(const struct scan_shape *s);
struct tensor *scan_next(struct tape *t, const struct batch *b, const struct scan_shape *s,
                         struct tensor *u, struct tensor *dt, struct tensor *a_log,
                         struct tensor *d, struct tensor *dt_bias, struct tensor *state,
                         struct tensor *recent, int64_t n);

/* Gated norm in two steps, so that a group may go on at a neighbour: g = y silu(z), sums of g^2 per
 * group [tokens, groups]; then w g / sqrt(sum/width + eps). The sums of a group that goes on at
 * share - 1 neighbours are a part, which share_sum (parallel/tensor_parallel.h) must finish. */
struct tensor *gate_squares(struct tape *t, struct tensor *y, struct tensor *z, int64_t groups,
                            int share);
struct tensor *gate_norm(struct tape *t, struct tensor *y, struct tensor *z, struct tensor *squares,
                         struct param *weight, int64_t width, double eps);

/* Gated norm at once, where every group is whole here. */
struct tensor *gated_norm(struct tape *t, struct tensor *y, struct tensor *z, struct param *weight,
                          int64_t groups, double eps);

/* ops_attention.c: q[tokens, heads*head_dim], k and v[tokens, kv_heads*head_dim] (views); the past:
 * NULL, or [rows * past tokens, kv_heads*head_dim], or [rows, past tokens * kv_heads*head_dim] as a
 * view into rows that have room for more. */
struct tensor *attention(struct tape *t, const struct batch *b, struct tensor *q, struct tensor *k,
                         struct tensor *v, int64_t head_dim, struct tensor *k_past,
                         struct tensor *v_past);
/* The layout of its result; a bug unless the operands fit. */
struct layout attention_layout(const struct batch *b, struct tensor *q, struct tensor *k,
                               struct tensor *v, int64_t head_dim, struct tensor *k_past,
                               struct tensor *v_past);
/* What it runs, without a tape: queries against some of the keys they see (ops.def,
 * `away`). All device addresses. */
struct attention_block {
    const void *q, *k, *v, *start, *k_past, *v_past;
    int64_t rows, length, past, heads, kv, head_dim;
    int64_t ldq, ldk, ldv, ldp, away;
};
struct attention_gradients { /* of q, k, v, k_past, v_past; NULL: not wanted */
    void *p[5];
    int add[5];
};
/* noted: what is run is noted next, and may be run again (tape_again.h). */
void attention_run(struct tape *t, enum dtype d, const struct attention_block *a, void *o,
                   void *lse, bool noted);
void attention_run_adjoint(struct tape *t, enum dtype d, const struct attention_block *a,
                           const void *o, const void *lse, const void *go,
                           const struct attention_gradients *g);
/* Writes x (keys or values, as above) behind the `tokens` that each row of `past` holds: a device
 * array whose rows are `stride` numbers apart. No gradient flows through it. */
void past_append(struct tape *t, const struct batch *b, struct tensor *x, void *past,
                 int64_t tokens, int64_t stride);

/* ops_experts.c. Which tokens of a micro-batch a rank's rows are: number `first` on, each sequence
 * of which has `length` tokens here. */
struct token_range {
    int64_t first, length;
    int64_t piece,
        begin[2]; /* their places in the sequence: of the first `piece` from begin[0] on, of
                                the others from begin[1] on */
};
struct routing {
    int64_t experts, chosen; /* of all; per token */
    int64_t groups, kept_groups;
    bool normalise;
    double scale;
    bool evenly; /* round robin, whatever the scores are (route_evenly) */
    struct token_range tokens;
};
/* logits[tokens, experts] -> index[tokens, chosen] (integers; kept for replays) and weight[tokens,
 * chosen]. bias[experts] is a device array that takes no gradient. */
struct tensor *route(struct tape *t, struct tensor *logits, void *bias, const struct routing *r,
                     struct tensor **index);
/* Order of the tokens*chosen slots by expert: order, position (its inverse),
 * offset[experts + 1]. Integers. */
void sort_experts(struct tape *t, struct tensor *index, int64_t experts, struct tensor **order,
                  struct tensor **position, struct tensor **offset);

/* Whose choices are counted together (ops.def: count_choices). */
struct documents {
    int64_t groups;   /* rows of the table: documents that others have tokens of */
    bool all;         /* one row for all of them */
    const void *each; /* device integers, a token each; or NULL: all are one document */
};
/* Choices and tokens of these documents, of this rank's tokens: [groups, experts + 1] integers. */
struct tensor *count_choices(struct tape *t, struct tensor *index, int64_t experts,
                             const struct documents *d);
/* load[e] += all choices of e but those of padding; not in a replay. load: int64 device array. */
void count_experts(struct tape *t, struct tensor *index, int64_t experts, const void *document,
                   void *load);
/* Adds count to `seen`, an int64 device array, and gives the sums. */
struct tensor *counts_so_far(struct tape *t, struct tensor *count, void *seen);
/* index with the choices beyond `limit` of a sequence and expert, those of least weight, replaced
 * by `experts`: dropped. index, weight and document: of all tokens of the sequences, from `ranks`
 * ranks along context (ops.def: drop_choices). What comes is of `rows` tokens from `first` on, laid
 * out as l. */
struct dropping {
    int64_t experts, length, limit;
    int ranks;
    int64_t first, rows;
};
struct tensor *drop_choices(struct tape *t, struct tensor *index, struct tensor *weight,
                            const void *document, const struct dropping *d, const struct layout *l);

/* Losses that act on the router (ops.def: balance_loss). `weight` goes through unchanged; backward
 * adds even * (gradient of the sum of `even`) + square * (that of `square`) to the gradient of the
 * scores. count: the table, summed over all ranks; NULL where it has no rows. even_sum, square_sum:
 * exact accumulators on the device that the sums are added to, or NULL; not in a replay. */
struct balancing {
    double even, square; /* coefficients */
    double share;        /* of one token in the whole */
    void *even_sum, *square_sum;
};
struct tensor *balance_loss(struct tape *t, struct tensor *weight, struct tensor *logits,
                            struct tensor *index, struct tensor *count, const struct documents *d,
                            const struct balancing *b);
struct tensor *gather_rows(struct tape *t, struct tensor *x, struct tensor *order,
                           struct tensor *position, int64_t chosen);
struct tensor *combine_rows(struct tape *t, struct tensor *y, struct tensor *weight,
                            struct tensor *position);

/* ops_head.c: this rank's words; lse and picked [tokens, 1], split.
 * target[tokens,1] integers, negative: none. */
void head(struct tape *t, struct tensor *x, struct param *words, int64_t first,
          struct tensor *target, struct tensor **lse, struct tensor **picked);
/* lse, picked [ranks, tokens] (gathered); weight[tokens] a device array; loss[1, tokens]. */
struct tensor *word_loss(struct tape *t, struct tensor *lse, struct tensor *picked, void *weight);

#endif
