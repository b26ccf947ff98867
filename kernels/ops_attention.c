#include <math.h>
#include <stddef.h>

#include "kernels/ops.h"
#include "kernels/tape_again.h"

enum { Q, K, V, START, K_PAST, V_PAST, LSE };

static void *data_of(const struct tensor *x) {
    return x ? x->data : NULL;
}

/* Into how many pieces long work is cut, so that PARTS threads find some: by sizes alone, so that sums
 * have one order whatever the threads. */
enum { PARTS = 16, LANES = 96, FEW_KEYS = 1024 };

static int64_t pieces(int64_t units, int64_t most) {
    const int64_t n = units > 0 ? (PARTS + units - 1) / units : 1;
    return n < most ? n : most > 1 ? most : 1;
}

/* Blocks of about LANES queries, all heads of a group, that meet the same keys. */
static int64_t query_blocks(int64_t length, int64_t heads, int64_t kv) {
    return (length * (heads / kv) + LANES - 1) / LANES;
}

static size_t forward_scratch(int64_t rows, int64_t length, int64_t heads, int64_t kv, int64_t D,
                              int64_t n) {
    return n > 1 ? (size_t)(rows * kv * n * ((length * (heads / kv) + 15) / 16 * 16) * (D + 2)) : 0;
}

static void attention_backward(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V];
    static const int taken[] = {Q, K, V, K_PAST, V_PAST};
    int add[5];
    void *grad[5];
    bool any = false;
    for (int i = 0; i < 5; i++) any |= !!(grad[i] = tape_grad_in(t, n, taken[i], mask, &add[i]));
    if (!any) return;
    const int64_t B = n->size[0], L = n->size[1], P = n->size[2], G = n->size[4], D = n->size[5];
    const int64_t C = pieces(B * G, query_blocks(L, n->size[3], G));
    struct piece *piece;
    void *scratch = scratch_take(
        t, (size_t)(B * G * C * 2 * (P + L) * ((D + 15) / 16 * 16)) * dtype_size(t->real), &piece);
    DEVICE_RUN(t->device, attention_adjoint, q->dtype, .q = q->data, .k = k->data, .v = v->data,
               .start = n->in[START]->data, .k_past = data_of(n->in[K_PAST]),
               .v_past = data_of(n->in[V_PAST]), .o = n->out[0]->data, .lse = n->in[LSE]->data,
               .go = tape_grad_out(n, 0), .dq = grad[0], .dq_add = add[0], .dk = grad[1],
               .dk_add = add[1], .dv = grad[2], .dv_add = add[2], .dk_past = grad[3],
               .dk_past_add = add[3], .dv_past = grad[4], .dv_past_add = add[4], .scratch = scratch,
               .B = B, .L = L, .P = P, .H = n->size[3], .G = G, .D = D, .ldq = q->stride,
               .ldk = k->stride, .ldv = v->stride, .ldp = n->size[6], .C = C, .scale = n->real[0]);
    scratch_give(t, piece);
}
static const struct tape_op op_attention = {"attention", attention_backward, 127, 1,
                                            0,           AGAIN(attention)};

struct tensor *attention(struct tape *t, const struct batch *b, struct tensor *q, struct tensor *k,
                         struct tensor *v, int64_t head_dim, struct tensor *k_past,
                         struct tensor *v_past) {
    struct layout l = layout_join("attention", 5, (struct tensor *[]){q, k, v, k_past, v_past});
    int64_t heads = q->width / head_dim, kv = k->width / head_dim;
    int64_t past = k_past && b->rows ? k_past->rows * (k_past->width / k->width) / b->rows : 0;
    int64_t ldp = k_past && k_past->rows == b->rows ? k_past->stride : past * k->width;
    op_require(q->rows == b->rows * b->length, "attention", q,
               "has not as many rows as the batch has tokens");
    op_require(q->width == heads * head_dim && kv > 0 && heads % kv == 0 &&
                   k->width == kv * head_dim && v->width == k->width,
               "attention", k, "does not fit the queries' heads");
    op_require(!k_past || (k_past->rows * k_past->width == b->rows * past * k->width &&
                           v_past->rows == k_past->rows && v_past->width == k_past->width &&
                           v_past->stride == k_past->stride),
               "attention", k_past, "is not the past of these rows");
    op_require(!k_past || k_past->rows == b->rows || k_past->stride == k->width, "attention",
               k_past, "has gaps between tokens");
    struct tensor *o = tensor_new_of(t, q->dtype, "attention", q->rows, q->width, &l);
    struct tensor *lse = tensor_new_real(t, "attention sums", q->rows, heads, &l);
    double scale = 1 / sqrt((double)head_dim);
    const int64_t C =
        pieces(b->rows * kv * query_blocks(b->length, heads, kv), (past + b->length) / FEW_KEYS);
    const size_t needed = forward_scratch(b->rows, b->length, heads, kv, head_dim, C);
    struct piece *piece = NULL;
    void *scratch = needed ? scratch_take(t, needed * dtype_size(t->real), &piece) : NULL;
    TAPE_RUN(t, attention, q->dtype, .q = q->data, .k = k->data, .v = v->data,
             .start = b->start->data, .k_past = data_of(k_past), .v_past = data_of(v_past),
             .o = o->data, .lse = lse->data, .scratch = scratch, .B = b->rows, .L = b->length,
             .P = past, .H = heads, .G = kv, .D = head_dim, .ldq = q->stride, .ldk = k->stride,
             .ldv = v->stride, .ldp = ldp, .C = C, .scale = scale);
    if (piece) scratch_give(t, piece);
    struct note *n = tape_note(t, &op_attention, 7,
                               (struct tensor *[]){q, k, v, b->start, k_past, v_past, lse}, 1, &o);
    if (n) {
        int64_t size[] = {b->rows, b->length, past, heads, kv, head_dim, ldp};
        for (int i = 0; i < 7; i++) n->size[i] = size[i];
        n->real[0] = scale;
    }
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
