/* attention: causal grouped-query attention without positions, one '*' of the pattern.
 *
 *   q, k, v = norm(x) W^T;  o = softmax(q k^T / sqrt(head_dim)) v;  y = o_proj(o)
 *
 * q, k and v are one stored block and one product. Query heads are split over the tensor ranks;
 * where the ranks outnumber the key heads, neighbours hold the same one. */
#include "kernels/die.h"
#include "parallel/context_attention.h"
#include "parallel/context_cache.h"
#include "parallel/context_heads.h"
#include "parallel/groups.h"
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

/* This rank's queries, keys and values, of a batch's tokens or,
 * with heads along context, of all. */
static void parts(const struct layer *l, struct heads_segment part[3]) {
    const struct segment *s = l->p[Q]->layout.segment;
    for (int i = 0; i < 3; i++)
        part[i] = (struct heads_segment){s[i].width, s[i].width / l->config->keys.head_dim};
}

/* Keys and values of every token, or along context of some; query heads that
 * share them share the memory too. */
static void state_size(const struct layer *l, const struct parallel *p, int64_t sequences,
                       int64_t capacity, int64_t n[LAYER_STATES]) {
    const int context = p->shape.context;
    struct heads_segment part[3];
    parts(l, part);
    for (int i = 0; i < 2; i++)
        n[i] = sequences * (p->attention_heads ? capacity * heads_width(context, 1, &part[1 + i])
                                               : cache_room(context, capacity) * part[1 + i].width);
}

/* Remembers keys (i = 0) or values (1) and gives those of earlier calls; NULL where there are none.
 */
static struct tensor *past_of(struct tape *t, const struct layer *l, const struct batch *b, int i,
                              struct tensor *x) {
    const struct pass *p = l->pass;
    if (!p->state) return NULL;
    void *at = p->state[l->number].p[i];
    past_append(t, b, x, at, p->past, p->capacity * x->width);
    if (!p->past) return NULL;
    struct tensor *past =
        tensor_over(t, "past", at, x->dtype, b->rows, p->past * x->width, &x->layout);
    past->stride = p->capacity * x->width;
    return past;
}

/* Attention of a whole batch, to what is remembered too. */
static struct tensor *attend_here(struct tape *t, struct layer *l, const struct batch *b,
                                  struct tensor *const *v) {
    return attention(t, b, v[0], v[1], v[2], l->config->keys.head_dim, past_of(t, l, b, 0, v[1]),
                     past_of(t, l, b, 1, v[2]));
}

/* From queries, keys and values side by side. Where sequences lie on several ranks: round the ring,
 * or with all tokens of some of the heads. */
static struct tensor *attend(struct tape *t, struct layer *l, struct tensor *qkv) {
    const struct batch *b = &l->pass->batch;
    const int64_t dim = l->config->keys.head_dim;
    const int context = t->parallel->shape.context;
    const bool heads = context > 1 && t->parallel->attention_heads, ring = context > 1 && !heads;
    struct tensor *v[3], *o, *all = qkv;
    struct context_cache cache = l->pass->cache;
    int64_t width[3];
    struct heads_segment part[3];
    parts(l, part);
    if (l->pass->state) {
        cache.k = l->pass->state[l->number].p[0];
        cache.v = l->pass->state[l->number].p[1];
    }
    if (ring && b->dealt)
        return cache_attention(t, b, qkv, part[0].units, part[1].units, dim, &cache);
    for (int i = 0; i < 3; i++)
        width[i] = heads ? heads_width(context, 1, &part[i]) : part[i].width;
    if (heads) all = context_to_heads(t, b, qkv, 3, part);
    tensor_columns(t, all, 3, width, v);
    if (ring) o = context_attention(t, b, v[0], v[1], v[2], dim, l->pass->state ? &cache : NULL);
    else o = attend_here(t, l, heads ? &l->pass->whole : b, v);
    for (int i = 0; i < 3; i++) tensor_drop(t, v[i]);
    tensor_drop(t, all);
    if (!heads) return o;
    struct tensor *y = context_from_heads(t, b, o);
    tensor_drop(t, o);
    return y;
}

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct deck_model *c = &l->config->keys;
    const struct batch *b = &l->pass->batch;
    struct tensor *h = rms_norm(t, x, l->p[NORM], c->layer_norm_epsilon);
    h = tensor_enter(t, h, b->rows * b->length);
    struct tensor *qkv = add_after(t, linear(t, h, l->p[Q]), l->p[Q_BIAS]);
    tensor_drop(t, h);
    struct tensor *o = attend(t, l, qkv);
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
