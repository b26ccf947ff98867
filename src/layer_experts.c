/* experts: routed experts and a shared one, one 'E' of the pattern.
 *
 *   choice by sigmoid(gate(h)) + correction bias;
 *   y = fc2(sum of weight * expert(fc1(h))) + shared(h)
 *
 * with h = norm(x), every expert and the shared one a squared-relu MLP, fc1 and fc2 only where
 * there is a latent width. Scores, choice and weights are real numbers whatever h is stored in.
 * Router and fc1 run on the stream, before it is entered; the experts' sums and the shared expert's
 * are both partial, are added, and leave together. */
#include <stddef.h>

#include "kernels/die.h"
#include "parallel/expert_parallel.h"
#include "parallel/tensor_parallel.h"
#include "src/layer.h"

enum {
    NORM,
    GATE,
    CORRECTION,
    FC1,
    FC1_BIAS,
    UP,
    DOWN,
    FC2,
    FC2_BIAS,
    SHARED_UP,
    SHARED_UP_BIAS,
    SHARED_DOWN,
    SHARED_DOWN_BIAS
};
/* clang-format off */
static const struct param_row rows[] = {
    /* name                                 shape                 split      segments              begins         may be                    when              block  meaning */
    {"norm.weight",                         {HIDDEN},             WHOLE_ROW, {{0}},                INIT_ONE,      0,                        ALWAYS,           NULL, "scale before the block"},
    {"mixer.gate.weight",                   {EXPERTS, HIDDEN},    WHOLE_ROW, {{0}},                INIT_NORMAL,   DECAY,                    ALWAYS,           NULL, "scores of the experts"},
    {"mixer.gate.e_score_correction_bias",  {EXPERTS},            WHOLE_ROW, {{0}},                INIT_ZERO,     BUFFER,                   ALWAYS,           NULL, "added to the scores when choosing, to balance the load"},
    {"mixer.fc1_latent_proj.weight",        {LATENT, HIDDEN},     WHOLE_ROW, {{0}},                INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, WITH_LATENT,      NULL, "to the latent width"},
    {"mixer.fc1_latent_proj.bias",          {LATENT},             WHOLE_ROW, {{0}},                INIT_ZERO,     0,                        WITH_LATENT_BIAS, NULL, "bias of fc1"},
    {"mixer.experts.%e.up_proj.weight",     {EXPERT_FFN, LATENT}, ROWS,      {{EXPERT_FFN, NONE}}, INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, ALWAYS,           NULL, "an expert widens"},
    {"mixer.experts.%e.down_proj.weight",   {LATENT, EXPERT_FFN}, COLUMNS,   {{EXPERT_FFN, NONE}}, INIT_RESIDUAL, DECAY|QUANT|ADAPT|STORED, ALWAYS,           NULL, "an expert returns"},
    {"mixer.fc2_latent_proj.weight",        {HIDDEN, LATENT},     WHOLE_ROW, {{0}},                INIT_RESIDUAL, DECAY|QUANT|ADAPT|STORED, WITH_LATENT,      NULL, "from the latent width"},
    {"mixer.fc2_latent_proj.bias",          {HIDDEN},             WHOLE_ROW, {{0}},                INIT_ZERO,     0,                        WITH_LATENT_BIAS, NULL, "bias of fc2"},
    {"mixer.shared_experts.up_proj.weight", {SHARED_FFN, HIDDEN}, ROWS,      {{SHARED_FFN, NONE}}, INIT_NORMAL,   DECAY|QUANT|ADAPT|STORED, ALWAYS,           NULL, "the shared expert widens"},
    {"mixer.shared_experts.up_proj.bias",   {SHARED_FFN},         ROWS,      {{SHARED_FFN, NONE}}, INIT_ZERO,     0,                        WITH_MLP_BIAS,    NULL, "bias of the shared up"},
    {"mixer.shared_experts.down_proj.weight", {HIDDEN, SHARED_FFN}, COLUMNS, {{SHARED_FFN, NONE}}, INIT_RESIDUAL, DECAY|QUANT|ADAPT|STORED, ALWAYS,           NULL, "the shared expert returns"},
    {"mixer.shared_experts.down_proj.bias", {HIDDEN},             WHOLE_ROW, {{0}},                INIT_ZERO,     0,                        WITH_MLP_BIAS,    NULL, "bias of the shared down"},
};
/* clang-format on */

static struct tensor *routed(struct tape *t, struct layer *l, struct tensor *h,
                             struct tensor *weight, struct tensor *index) {
    const struct deck_model *c = &l->config->keys;
    int64_t here = c->n_routed_experts / l->mesh->expert;
    struct tensor *order, *position, *offset;
    sort_experts(t, index, c->n_routed_experts, &order, &position, &offset);
    if (l->pass->count_experts) count_experts(t, offset, l->load);
    struct tensor *rows_in =
        expert_dispatch(t, gather_rows(t, h, order, position, c->num_experts_per_tok));
    struct tensor *u = grouped_linear(t, rows_in, l->p[UP], here, offset);
    tensor_drop(t, rows_in);
    struct tensor *a = relu2(t, u);
    tensor_drop(t, u);
    struct tensor *y = expert_return(t, grouped_linear(t, a, l->p[DOWN], here, offset));
    tensor_drop(t, a);
    return combine_rows(t, y, weight, position); /* [tokens, latent or hidden], partial */
}

static struct tensor *shared(struct tape *t, struct layer *l, struct tensor *h) {
    struct tensor *u = add_after(t, linear(t, h, l->p[SHARED_UP]), l->p[SHARED_UP_BIAS]),
                  *a = relu2(t, u);
    tensor_drop(t, u);
    return linear(t, a, l->p[SHARED_DOWN]); /* [tokens, hidden], partial */
}

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct deck_model *c = &l->config->keys;
    const struct batch *b = &l->pass->batch;
    int64_t tokens = b->rows * b->length;
    struct routing r = {c->n_routed_experts, c->num_experts_per_tok, c->n_group,
                        c->topk_group,       c->norm_topk_prob,      c->routed_scaling_factor};
    struct tensor *h = rms_norm(t, x, l->p[NORM], c->layer_norm_epsilon), *index;
    struct tensor *exact = as_real(t, h); /* rounded scores would choose other experts */
    struct tensor *weight =
        route(t, linear(t, exact, l->p[GATE]), l->p[CORRECTION]->value, &r, &index);
    if (exact != h) tensor_drop(t, exact);
    weight = tensor_enter(t, weight, tokens);
    index = tensor_enter(t, index, tokens);
    struct tensor *full = tensor_enter(t, h, tokens), *in = full;
    if (l->p[FC1])
        in = tensor_enter(t, add_after(t, linear(t, h, l->p[FC1]), l->p[FC1_BIAS]), tokens);
    struct tensor *y = routed(t, l, in, weight, index);
    if (l->p[FC2]) y = linear(t, y, l->p[FC2]);
    y = tensor_leave(t, add(t, y, shared(t, l, full)));
    y = add_after(t, y, l->p[FC2_BIAS]);
    return add_after(t, y, l->p[SHARED_DOWN_BIAS]);
}

static char *describe(const struct deck_model *k) {
    return die_format("%ld of %ld, %ld wide", (long)k->num_experts_per_tok,
                      (long)k->n_routed_experts, (long)k->moe_intermediate_size);
}

const struct layer_kind layer_experts = {
    .letter = 'E',
    .name = "experts",
    .describe = describe,
    .rows = rows,
    .n_rows = sizeof rows / sizeof *rows,
    .forward = forward,
};
