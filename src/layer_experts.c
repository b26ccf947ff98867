/* experts: routed experts and a shared one, one 'E' of the pattern.
 *
 *   choice by sigmoid(gate(h)) + correction bias;
 *   y = fc2(sum of weight * expert(fc1(h))) + shared(h)
 *
 * with h = norm(x), every expert and the shared one a squared-relu MLP, fc1 and fc2 only where
 * there is a latent width. Scores, choice and weights are real numbers whatever h is stored in.
 *
 * Where experts are at home (parallel/expert_parallel.h), router and fc1 run on the stream,
 * before it is entered, and the experts' sums are partial, as the shared expert's are: both are
 * added, and leave together. Else router, fc1, experts and fc2 work on this rank's own tokens,
 * and what comes of it is added to the shared expert's partial sums, or to what is left of them
 * where the stream is split by tokens: so a token travels once, and nothing more is exchanged
 * over the tensor ranks. */
#include <stddef.h>

#include "kernels/die.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"
#include "src/layer.h"
#include "src/routing.h"

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

/* What the shared expert does while tokens travel; they need to be seen to now and then. */
static struct tensor *shared_inner(struct tape *t, struct layer *l, struct tensor *h) {
    struct tensor *u = add_after(t, linear(t, h, l->p[SHARED_UP]), l->p[SHARED_UP_BIAS]),
                  *a = relu2(t, u);
    tensor_drop(t, u);
    if (t->between) t->between(t->context);
    return a;
}

/* The experts' sums [tokens, latent or hidden], partial or of this rank's own tokens;
 * and the shared expert's, partial. */
static struct tensor *visit(struct tape *t, struct layer *l, struct tensor *in,
                            const struct routed *r, struct tensor *full, struct tensor **shared) {
    const struct deck_model *c = &l->config->keys;
    int64_t here = c->n_routed_experts / l->mesh->expert;
    struct travel v = tokens_to_route(l);
    struct tensor *order, *position, *offset;
    sort_experts(t, r->index, c->n_routed_experts, &order, &position, &offset);
    struct journey *j = expert_dispatch_start(
        t, gather_rows(t, in, order, position, c->num_experts_per_tok), offset, &v);
    struct tensor *inner = shared_inner(t, l, full);
    struct tensor *rows_in = expert_dispatch_wait(t, j, &offset);
    struct tensor *u = grouped_linear(t, rows_in, l->p[UP], here, offset);
    tensor_drop(t, rows_in);
    struct tensor *a = relu2(t, u);
    tensor_drop(t, u);
    expert_return_start(t, j, grouped_linear(t, a, l->p[DOWN], here, offset));
    tensor_drop(t, a);
    *shared = linear(t, inner, l->p[SHARED_DOWN]); /* [tokens, hidden], partial */
    tensor_drop(t, inner);
    struct tensor *y = expert_return_wait(t, j), *sum = combine_rows(t, y, r->weight, position);
    tensor_drop(t, y);
    return l->p[FC2] ? linear(t, sum, l->p[FC2]) : sum;
}

static struct tensor *forward(struct tape *t, struct layer *l, struct tensor *x) {
    const struct deck_model *c = &l->config->keys;
    int64_t tokens = l->pass->batch.rows * l->pass->batch.length;
    bool home = experts_at_home(t->parallel), sequence = t->parallel->sequence;
    struct router router = {l->p[GATE], l->p[CORRECTION]};
    struct tensor *h = rms_norm(t, x, l->p[NORM], c->layer_norm_epsilon), *shared, *in = h;
    struct tensor *full = home || sequence ? NULL : tensor_enter(t, h, tokens);
    struct tensor *mine = full ? tensor_own(t, full) : h;
    struct routed r = route_tokens(t, l, &router, mine);
    if (!full) full = tensor_enter(t, h, tokens);
    if (l->p[FC1]) in = add_after(t, linear(t, mine, l->p[FC1]), l->p[FC1_BIAS]);
    else in = mine;
    if (home) in = l->p[FC1] ? tensor_enter(t, in, tokens) : full;
    struct tensor *y = visit(t, l, in, &r, full, &shared);
    if (home) y = tensor_leave(t, add(t, y, shared));
    else if (sequence) y = add(t, tensor_leave(t, shared), y);
    else y = tensor_leave(t, tensor_add_own(t, shared, y));
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
