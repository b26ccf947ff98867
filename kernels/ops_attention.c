#include <math.h>
#include <stddef.h>

#include "kernels/ops.h"
#include "kernels/tape_again.h"

enum { Q, K, V, START, K_PAST, V_PAST, LSE };

static void *data_of(const struct tensor *x) {
    return x ? x->data : NULL;
}

/* Into how many pieces long work is cut, so that PARTS threads find some: by sizes alone, so that
 * sums have one order whatever the threads. */
enum { PARTS = 16, LANES = 96, FEW_KEYS = 1024 };

static int64_t pieces(int64_t units, int64_t most) {
    const int64_t n = units > 0 ? (PARTS + units - 1) / units : 1;
    return n < most ? n : most > 1 ? most : 1;
}

/* Blocks of about LANES queries, all heads of a group, that meet the same keys. */
static int64_t query_blocks(int64_t length, int64_t heads, int64_t kv) {
    return (length * (heads / kv) + LANES - 1) / LANES;
}

/* Kernels of a block of queries and keys; ops.def says what they compute. */

void attention_run(struct tape *t, enum dtype d, const struct attention_block *a, void *o,
                   void *lse, bool noted) {
    const int64_t keys = a->past + (a->away ? 0 : a->length);
    const int64_t C =
        pieces(a->rows * a->kv * query_blocks(a->length, a->heads, a->kv), keys / FEW_KEYS);
    struct attention_args args = {
        .q = a->q,
        .k = a->k,
        .v = a->v,
        .start = a->start,
        .k_past = a->k_past,
        .v_past = a->v_past,
        .o = o,
        .lse = lse,
        .B = a->rows,
        .L = a->length,
        .P = a->past,
        .H = a->heads,
        .G = a->kv,
        .D = a->head_dim,
        .ldq = a->ldq,
        .ldk = a->ldk,
        .ldv = a->ldv,
        .ldp = a->ldp,
        .C = C,
        .away = a->away,
        .scale = 1 / sqrt((double)a->head_dim),
    };
    if (noted) tape_run(t, OP_attention, d, &args);
    else scratch_run(t, OP_attention, d, &args);
}

void attention_run_adjoint(struct tape *t, enum dtype d, const struct attention_block *a,
                           const void *o, const void *lse, const void *go,
                           const struct attention_gradients *g) {
    const int64_t B = a->rows, L = a->length, D = a->head_dim;
    const int64_t C = pieces(B * a->kv, query_blocks(L, a->heads, a->kv));
    SCRATCH_RUN(t, attention_adjoint, d, .q = a->q, .k = a->k, .v = a->v, .start = a->start,
                .k_past = a->k_past, .v_past = a->v_past, .o = o, .lse = lse, .go = go,
                .dq = g->p[0], .dq_add = g->add[0], .dk = g->p[1], .dk_add = g->add[1],
                .dv = g->p[2], .dv_add = g->add[2], .dk_past = g->p[3], .dk_past_add = g->add[3],
                .dv_past = g->p[4], .dv_past_add = g->add[4], .B = B, .L = L, .P = a->past,
                .H = a->heads, .G = a->kv, .D = D, .ldq = a->ldq, .ldk = a->ldk, .ldv = a->ldv,
                .ldp = a->ldp, .C = C, .away = a->away, .scale = 1 / sqrt((double)D));
}

static struct attention_block block_of(struct tensor *const *in, const int64_t *size) {
    return (struct attention_block){.q = in[Q]->data,
                                    .k = in[K]->data,
                                    .v = in[V]->data,
                                    .start = in[START]->data,
                                    .k_past = data_of(in[K_PAST]),
                                    .v_past = data_of(in[V_PAST]),
                                    .rows = size[0],
                                    .length = size[1],
                                    .past = size[2],
                                    .heads = size[3],
                                    .kv = size[4],
                                    .head_dim = size[5],
                                    .ldq = in[Q]->stride,
                                    .ldk = in[K]->stride,
                                    .ldv = in[V]->stride,
                                    .ldp = size[6]};
}

static void attention_backward(struct tape *t, struct note *n, unsigned mask) {
    static const int taken[] = {Q, K, V, K_PAST, V_PAST};
    struct attention_gradients g;
    bool any = false;
    for (int i = 0; i < 5; i++) any |= !!(g.p[i] = tape_grad_in(t, n, taken[i], mask, &g.add[i]));
    if (!any) return;
    const struct attention_block a = block_of(n->in, n->size);
    attention_run_adjoint(t, n->in[Q]->dtype, &a, n->out[0]->data, n->in[LSE]->data,
                          tape_grad_out(n, 0), &g);
}
static const struct tape_op op_attention = {"attention", attention_backward, 127, 1,
                                            0,           AGAIN(attention)};

struct layout attention_layout(const struct batch *b, struct tensor *q, struct tensor *k,
                               struct tensor *v, int64_t head_dim, struct tensor *k_past,
                               struct tensor *v_past) {
    struct layout l = layout_join("attention", 5, (struct tensor *[]){q, k, v, k_past, v_past});
    int64_t heads = q->width / head_dim, kv = k->width / head_dim;
    op_require(q->rows == b->rows * b->length, "attention", q,
               "has not as many rows as the batch has tokens");
    op_require(q->width == heads * head_dim && kv > 0 && heads % kv == 0 &&
                   k->width == kv * head_dim && v->width == k->width,
               "attention", k, "does not fit the queries' heads");
    return l;
}

struct tensor *attention(struct tape *t, const struct batch *b, struct tensor *q, struct tensor *k,
                         struct tensor *v, int64_t head_dim, struct tensor *k_past,
                         struct tensor *v_past) {
    struct layout l = attention_layout(b, q, k, v, head_dim, k_past, v_past);
    int64_t heads = q->width / head_dim, kv = k->width / head_dim;
    int64_t past = k_past && b->rows ? k_past->rows * (k_past->width / k->width) / b->rows : 0;
    int64_t ldp = k_past && k_past->rows == b->rows ? k_past->stride : past * k->width;
    op_require(!k_past || (k_past->rows * k_past->width == b->rows * past * k->width &&
                           v_past->rows == k_past->rows && v_past->width == k_past->width &&
                           v_past->stride == k_past->stride),
               "attention", k_past, "is not the past of these rows");
    op_require(!k_past || k_past->rows == b->rows || k_past->stride == k->width, "attention",
               k_past, "has gaps between tokens");
    struct tensor *o = tensor_new_of(t, q->dtype, "attention", q->rows, q->width, &l);
    struct tensor *lse = tensor_new_real(t, "attention sums", q->rows, heads, &l);
    struct tensor *in[] = {q, k, v, b->start, k_past, v_past, lse};
    const int64_t size[] = {b->rows, b->length, past, heads, kv, head_dim, ldp};
    const struct attention_block a = block_of(in, size);
    attention_run(t, q->dtype, &a, o->data, lse->data, true);
    struct note *n = tape_note(t, &op_attention, 7, in, 1, &o);
    if (n)
        for (int i = 0; i < 7; i++) n->size[i] = size[i];
    tensor_drop(t, lse);
    return o;
}

void past_append(struct tape *t, const struct batch *b, struct tensor *x, void *past,
                 int64_t tokens, int64_t stride) {
    op_require(x->rows == b->rows * b->length, "past_append", x,
               "has not as many rows as the batch has tokens");
    op_require((tokens + b->length) * x->width <= stride, "past_append", x,
               "does not fit behind what is there");
    size_t size = dtype_size(x->dtype);
    int64_t copies = b->length == 1 ? 1 : b->rows, rows = b->length == 1 ? b->rows : b->length;
    for (int64_t i = 0; i < copies; i++)
        DEVICE_RUN(t->device, copy, x->dtype, .x = (char *)x->data + i * rows * x->stride * size,
                   .y = (char *)past + (i * stride + tokens * x->width) * size, .T = rows,
                   .W = x->width, .ldx = x->stride, .ldy = b->length == 1 ? stride : x->width);
}
