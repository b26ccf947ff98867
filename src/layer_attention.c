/* attention: causal grouped-query attention without positions, one '*' of the pattern.
 *
 *   q, k, v = norm(x) W^T;  o = softmax(q k^T / sqrt(head_dim)) v;  y = o_proj(o)
 *
 * q, k and v are one stored block and one product. Query heads are split over the tensor ranks;
 * where the ranks outnumber the key heads, neighbours hold the same one. */
#include "kernels/die.h"
#include "parallel/tensor_parallel.h"
#include "src/layer.h"

enum { NORM, Q, K, V, Q_BIAS, K_BIAS, V_BIAS, O, O_BIAS };
/* clang-format off */
static const struct param_row rows[] = {
    /* name                  shape             split      segments              begins         may be                    when                 block            meaning */
    {"norm.weight",          {HIDDEN},         WHOLE_ROW, {{0}},                INIT_ONE,      0,                        ALWAYS,              NULL,            "scale before the block"},
    {"mixer.q_proj.weight",  {QUERIES, HIDDEN}, ROWS,     {{QUERIES, HEADS}},   INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, ALWAYS,              "mixer.qkv",     "queries"},
    {"mixer.k_proj.weight",  {KEYS, HIDDEN},   ROWS,      {{KEYS, KV_HEADS}},   INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, ALWAYS,              "mixer.qkv",     "keys"},
    {"mixer.v_proj.weight",  {KEYS, HIDDEN},   ROWS,      {{KEYS, KV_HEADS}},   INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, ALWAYS,              "mixer.qkv",     "values"},
    {"mixer.q_proj.bias",    {QUERIES},        ROWS,      {{QUERIES, HEADS}},   INIT_ZERO,     0,                        WITH_ATTENTION_BIAS, "mixer.qkv_bias", "bias of the queries"},
    {"mixer.k_proj.bias",    {KEYS},           ROWS,      {{KEYS, KV_HEADS}},   INIT_ZERO,     0,                        WITH_ATTENTION_BIAS, "mixer.qkv_bias", "bias of the keys"},
    {"mixer.v_proj.bias",    {KEYS},           ROWS,      {{KEYS, KV_HEADS}},   INIT_ZERO,     0,                        WITH_ATTENTION_BIAS, "mixer.qkv_bias", "bias of the values"},
    {"mixer.o_proj.weight",  {HIDDEN, QUERIES}, COLUMNS,  {{QUERIES, HEADS}},   INIT_RESIDUAL, DECAY|QUANT|ADAPT|STORED, ALWAYS,              NULL,            "returns to the stream"},
    {"mixer.o_proj.bias",    {HIDDEN},         WHOLE_ROW, {{0}},                INIT_ZERO,     0,                        WITH_ATTENTION_BIAS, NULL,            "bias of o_proj"},
};
/* clang-format on */

/* Keys and values of every token; query heads that share them share the memory too. */
static void state_size(const struct layer *l, int64_t capacity, int64_t n[LAYER_STATES]) {
    const struct segment *s = l->p[Q]->layout.segment;
    n[0] = capacity * s[1].width;
    n[1] = capacity * s[2].width;
}

/* Remembers keys (i = 0) or values (1) and gives those of earlier calls; NULL where there are none.
 */
static struct tensor *past_of(struct tape *t, const struct layer *l, int i, struct tensor *x) {
    const struct pass *p = l->pass;
    if (!p->state) return NULL;
    void *at = p->state[l->number].p[i];
    past_append(t, &p->batch, x, at, p->past, p->capacity * x->width);
    if (!p->past) return NULL;
    struct tensor *past =
        tensor_over(t, "past", at, x->dtype, p->batch.rows, p->past * x->width, &x->layout);
    past->stride = p->capacity * x->width;
    return past;
}

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct deck_model *c = &l->config->keys;
    const struct batch *b = &l->pass->batch;
    struct tensor *h = rms_norm(t, x, l->p[NORM], c->layer_norm_epsilon), *v[3];
    h = tensor_enter(t, h, b->rows * b->length);
    struct tensor *qkv = add_after(t, linear(t, h, l->p[Q]), l->p[Q_BIAS]);
    tensor_drop(t, h);
    const struct segment *s = l->p[Q]->layout.segment; /* this rank's widths of q, k and v */
    tensor_columns(t, qkv, 3, (int64_t[]){s[0].width, s[1].width, s[2].width}, v);
    struct tensor *o = attention(t, b, v[0], v[1], v[2], c->head_dim, past_of(t, l, 0, v[1]),
                                 past_of(t, l, 1, v[2]));
    for (int i = 0; i < 3; i++) tensor_drop(t, v[i]);
    tensor_drop(t, qkv);
    struct tensor *y = tensor_leave(t, linear(t, o, l->p[O]));
    return add_after(t, y, l->p[O_BIAS]);
}

static char *describe(const struct deck_model *k) {
    return die_format("%ld heads of %ld, %ld of keys", (long)k->num_attention_heads,
                      (long)k->head_dim, (long)k->num_key_value_heads);
}

const struct layer_kind layer_attention = {.letter = '*',
                                           .name = "attention",
                                           .describe = describe,
                                           .rows = rows,
                                           .n_rows = sizeof rows / sizeof *rows,
                                           .forward = forward,
                                           .state_size = state_size};
