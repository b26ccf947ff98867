#include "src/model.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_segment.h"
#include "parallel/context_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

enum { EMBEDDINGS, NORM_F, WORDS };
/* clang-format off */
const struct param_row model_rows[] = {
    /* name                         shape             split      segments         begins       may be                     when    block  meaning */
    {"backbone.embeddings.weight",  {VOCAB, HIDDEN},  ROWS,      {{VOCAB, NONE}}, INIT_NORMAL, DECAY|QUANT|ADAPT|STORED,  ALWAYS, NULL, "a row for each token"},
    {"backbone.norm_f.weight",      {HIDDEN},         WHOLE_ROW, {{0}},           INIT_ONE,    0,                         ALWAYS, NULL, "scale before the head"},
    {"lm_head.weight",              {VOCAB, HIDDEN},  ROWS,      {{VOCAB, NONE}}, INIT_NORMAL, DECAY|QUANT|ADAPT|STORED,  UNTIED, NULL, "a row for each token's score"},
};
const int model_n_rows = sizeof model_rows / sizeof *model_rows;

/* What a multi-token-prediction head has besides its layers: before the first, and
 * after the last. Counted and kept. */
static const struct param_row mtp_first[] = {
    {"enorm.weight",           {HIDDEN},               WHOLE_ROW, {{0}}, INIT_ONE,    0,            ALWAYS, NULL, "scale of the embedding"},
    {"hnorm.weight",           {HIDDEN},               WHOLE_ROW, {{0}}, INIT_ONE,    0,            ALWAYS, NULL, "scale of the hidden state"},
    {"eh_proj.weight",         {HIDDEN, TWICE_HIDDEN}, WHOLE_ROW, {{0}}, INIT_NORMAL, DECAY,        ALWAYS, NULL, "joins the two"},
};
static const struct param_row mtp_last[] = {
    {"final_layernorm.weight", {HIDDEN},               WHOLE_ROW, {{0}}, INIT_ONE,    0,            ALWAYS, NULL, "scale before the shared head"},
};
/* clang-format on */

static void add_mtp(struct model *m) {
    const struct config *c = m->config;
    int depths = (int)c->keys.num_nextn_predict_layers, of_one = depths ? c->n_mtp / depths : 0;
    for (int i = 0; i < c->n_mtp; i++) {
        char *prefix = die_format("mtp.layers.%d.", i);
        const struct layer_kind *k = layer_kind(c->mtp_kinds[i]);
        for (int r = 0; i % of_one == 0 && r < 3; r++)
            params_add_unused(&m->params, &mtp_first[r], prefix, i);
        for (int r = 0; r < k->n_rows; r++) params_add_unused(&m->params, &k->rows[r], prefix, i);
        if (i % of_one == of_one - 1) params_add_unused(&m->params, &mtp_last[0], prefix, i);
        free(prefix);
    }
}

/* Blocks from here on are those of stage number i of n. */
static void place(struct model *m, const struct staging *s, int i) {
    int at = s ? staging_rank(s, i) : m->params.at.pipeline;
    params_place(&m->params, at == m->params.at.pipeline, at);
}

void model_init(struct model *m, const struct config *c, const struct mesh_shape *shape, int rank,
                const struct staging *stages, bool recompute) {
    memset(m, 0, sizeof *m);
    m->config = c;
    m->recompute = recompute;
    params_init(&m->params, c, shape, rank);
    m->layer = die_alloc((c->n_layers + 1) * sizeof *m->layer);
    int top[3], (*of_layer)[LAYER_ROWS] = die_alloc((c->n_layers + 1) * sizeof *of_layer);
    int last = stages ? stages->n - 1 : 0;
    place(m, stages, 0);
    top[EMBEDDINGS] = params_add(&m->params, &model_rows[EMBEDDINGS], "", -1);
    for (int i = 0; i < c->n_layers; i++) {
        struct layer *l = &m->layer[i];
        l->kind = layer_kind(c->kinds[i]);
        if (!l->kind || l->kind->n_rows > LAYER_ROWS) bug("no kind of layer for '%c'", c->kinds[i]);
        l->config = c;
        l->mesh = &m->params.shape;
        l->tensor_rank = m->params.at.tensor;
        l->number = i;
        place(m, stages, stages ? staging_of_layer(stages, i) : 0);
        char *prefix = die_format("backbone.layers.%d.", i);
        for (int r = 0; r < l->kind->n_rows; r++)
            of_layer[i][r] = params_add(&m->params, &l->kind->rows[r], prefix, i);
        free(prefix);
    }
    place(m, stages, last);
    if (c->keys.tie_word_embeddings) m->params.block[top[EMBEDDINGS]].here |= m->params.here;
    for (int r = NORM_F; r <= WORDS; r++) top[r] = params_add(&m->params, &model_rows[r], "", -1);
    add_mtp(m);
    struct param_block *block = m->params.block; /* all are added: their addresses hold now */
    for (int i = 0; i < c->n_layers; i++)
        for (int r = 0; r < m->layer[i].kind->n_rows; r++)
            m->layer[i].p[r] = of_layer[i][r] < 0 ? NULL : &block[of_layer[i][r]].p;
    m->embeddings = &block[top[EMBEDDINGS]].p;
    m->embeddings->twice = c->keys.tie_word_embeddings;
    m->norm_f = &block[top[NORM_F]].p;
    m->words = top[WORDS] < 0 ? m->embeddings : &block[top[WORDS]].p;
    m->first_word = part_begin(c->keys.vocab_size, shape->tensor, m->params.at.tensor, 1);
    free(of_layer);
}

void model_free(struct model *m) {
    params_free(&m->params);
    free(m->layer);
    memset(m, 0, sizeof *m);
}

void model_allocate(struct model *m, struct device *d, struct arena *values, struct arena *grads,
                    struct arena *masters, enum dtype stored) {
    params_allocate(&m->params, values, grads, masters, stored);
    for (int i = 0; i < m->config->n_layers; i++) {
        struct layer *l = &m->layer[i];
        if (l->kind->letter != 'E' || !grads || !((struct param_block *)l->p[0])->here) continue;
        size_t bytes = m->config->keys.n_routed_experts * sizeof(int64_t);
        arena_take(values, bytes, "expert load", &l->load);
        device_zero(d, l->load, bytes);
    }
}

/* ---- the pass ---- */

static struct tensor *layer_forward(struct tape *t, void *layer, struct tensor *x) {
    struct layer *l = layer;
    l->pass = t->pass;
    return l->kind->forward(t, l, x);
}

struct layout model_stream(const struct tape *t) {
    struct layout l = {.state = {SPLIT, SPLIT, t->parallel->sequence ? SPLIT : WHOLE},
                       .by = {BY_ROWS, BY_ROWS, BY_ROWS}};
    return l;
}

/* Tokens and what belongs to each: the same on all tensor ranks. */
static struct layout token_layout(void) {
    return (struct layout){.state = {SPLIT, SPLIT, WHOLE}, .by = {BY_ROWS, BY_ROWS, BY_ROWS}};
}

static struct tensor *embed(struct model *m, struct tape *t, const struct micro_batch *b) {
    struct layout l = token_layout();
    struct tensor *ids = tensor_over(t, "ids", b->ids, I32, b->rows * b->length, 1, &l);
    struct tensor *rows = embedding(t, ids, m->embeddings, m->first_word),
                  *x = tensor_leave(t, rows);
    tensor_drop(t, rows);
    if (m->after_layer) m->after_layer(m->watcher, -1, x);
    return x;
}

static struct tensor *one_layer(struct model *m, struct tape *t, int i, struct tensor *x) {
    int scope = tape_scope_begin(t);
    struct tensor *y = m->recompute && t->learning ? tape_segment(t, layer_forward, &m->layer[i], x)
                                                   : layer_forward(t, &m->layer[i], x);
    struct tensor *sum = add(t, x, y);
    tape_scope_end(t, scope, sum);
    tensor_drop(t, x);
    if (m->after_layer) m->after_layer(m->watcher, i, sum);
    if (t->between) t->between(t->context);
    return sum;
}

/* From the stream to losses or logits. */
static struct tensor *finish(struct model *m, struct tape *t, const struct micro_batch *b,
                             const struct pass *pass, struct tensor *x, enum model_end end) {
    const int held = pass->batch.dealt ? 1 : context_held(t->parallel->shape.context);
    const struct batch sequences = {.rows = b->rows / held, .length = b->length * held};
    int64_t tokens = b->rows * b->length;
    struct tensor *n = rms_norm(t, x, m->norm_f, m->config->keys.layer_norm_epsilon), *lse, *picked;
    tensor_drop(t, x);
    struct tensor *h = tensor_enter(t, n, tokens);
    tensor_drop(t, n);
    if (end == END_LOGITS)
        return linear_real(t, pass->ends_only ? row_ends(t, &sequences, h) : h, m->words);
    struct layout l = {.state = {SPLIT, SPLIT, WHOLE}};
    struct tensor *target = tensor_over(t, "targets", b->target, I32, tokens, 1, &l);
    int scope = tape_scope_begin(t);
    head(t, h, m->words, m->first_word, target, &lse, &picked);
    tensor_drop(t, h);
    struct tensor *y = word_loss(t, tensor_gather(t, lse), tensor_gather(t, picked), b->weight);
    tape_scope_end(t, scope, y);
    return y;
}

void model_batch(struct tape *t, const struct micro_batch *b, struct pass *pass) {
    const int context = t->parallel->shape.context;
    const int64_t rows = b->dealt ? b->all_rows : b->rows / context_held(context),
                  length = b->dealt ? b->length : b->length * context_pieces(context);
    struct layout l = token_layout();
    t->pass = pass;
    pass->batch =
        (struct batch){.rows = b->rows,
                       .length = b->length,
                       .start = tensor_over(t, "start", b->start, I32, b->rows * b->length, 1, &l),
                       .dealt = b->dealt,
                       .all_rows = b->all_rows};
    if (!b->whole_start) return;
    l.by[AXIS_CONTEXT] = BY_COLUMNS;
    pass->whole = (struct batch){
        .rows = rows,
        .length = length,
        .start = tensor_over(t, "whole start", b->whole_start, I32, rows * length, 1, &l)};
}

struct tensor *model_stage(struct model *m, struct tape *t, const struct stage *s,
                           const struct micro_batch *b, struct pass *pass, struct tensor *x,
                           enum model_end end) {
    t->again = m->again;
    model_batch(t, b, pass);
    if (s->embeds) x = embed(m, t, b);
    for (int i = s->first; i < s->end; i++) x = one_layer(m, t, i, x);
    return s->heads ? finish(m, t, b, pass, x, end) : x;
}

static struct stage everything(const struct model *m) {
    return (struct stage){0, m->config->n_layers, true, true};
}

struct tensor *model_losses(struct model *m, struct tape *t, const struct micro_batch *b,
                            struct pass *pass) {
    struct stage all = everything(m);
    return model_stage(m, t, &all, b, pass, NULL, END_LOSSES);
}

struct tensor *model_logits(struct model *m, struct tape *t, const struct micro_batch *b,
                            struct pass *pass) {
    struct stage all = everything(m);
    return model_stage(m, t, &all, b, pass, NULL, END_LOGITS);
}
