#include "src/choose_context.h"

#include <string.h>

#include "parallel/groups.h"
#include "src/deck.h"

/* `count` things on `tensor` ranks: how many one of them has. */
static int64_t held(int64_t count, int64_t tensor) {
    return count > tensor ? count / tensor : 1;
}

bool context_has_heads(const struct deck *d, char kind) {
    const struct deck_model *k = &d->model;
    const bool mamba = kind == 'M';
    const int64_t tensor = d->parallel.tensor, context = d->parallel.context;
    const int64_t heads = held(mamba ? k->mamba_num_heads : k->num_attention_heads, tensor),
                  shared = held(mamba ? k->n_groups : k->num_key_value_heads, tensor);
    return heads % context == 0 && (shared % context == 0 || context % shared == 0);
}

static double stored_bytes(const struct deck *d) {
    return strcmp(d->precision.recipe, "bf16") ? 4 : 2;
}

static bool generates(const struct deck *d) {
    return !strcmp(d->run.mode, "generate");
}

static bool walks_back(const struct deck *d) {
    return !generates(d) && strcmp(d->run.mode, "evaluate");
}

/* A replay computes forward once more. */
static double forwards(const struct deck *d) {
    return walks_back(d) && !strcmp(d->memory.recompute, "full") ? 2 : 1;
}

static double own_tokens(const struct deck *d) {
    return (double)d->train.sequence_length / (double)d->parallel.context;
}

double context_attention_sent(const struct deck *d, bool heads) {
    const struct deck_model *k = &d->model;
    const double context = (double)d->parallel.context, stored = stored_bytes(d),
                 forward = forwards(d), back = walks_back(d), tokens = own_tokens(d);
    const double q = (double)held(k->num_attention_heads, d->parallel.tensor),
                 kv = (double)held(k->num_key_value_heads, d->parallel.tensor);
    const double keys = 2 * kv, others = context - 1, dim = (double)k->head_dim;
    if (!heads) return tokens * others * dim * keys * (stored * (forward + back) + 4 * back);
    const double part = 2 * q / context + 2 * (kv > context ? kv / context : 1);
    return tokens * others * dim * part * stored * (forward + back);
}

double context_mamba_sent(const struct deck *d, bool heads) {
    const struct deck_model *k = &d->model;
    const double context = (double)d->parallel.context, others = context - 1, forward = forwards(d),
                 back = walks_back(d), h = (double)held(k->mamba_num_heads, d->parallel.tensor),
                 g = (double)held(k->n_groups, d->parallel.tensor),
                 inner = h * (double)k->mamba_head_dim, state = (double)k->ssm_state_size;
    const double halo =
        2 * (double)(k->conv_kernel - 1) * (inner + 2 * g * state) * stored_bytes(d);
    if (!heads)
        return (forward + back) * (halo + 2 * 2 * inner * state * 4 * others / context) +
               forward * 2 * h * 4 * others;
    const double part = (2 * inner + h) / context + 2 * state * (g > context ? g / context : 1);
    return own_tokens(d) * others * part * stored_bytes(d) * (forward + back);
}

/* With fewer key heads than ranks some would remember the same keys. */
static bool shares_keys(const struct deck *d) {
    return held(d->model.num_key_value_heads, d->parallel.tensor) % d->parallel.context == 0;
}

void context_choose(const struct deck *d, struct parallel *p) {
    const char *attention = d->parallel.context_attention, *mamba = d->parallel.context_mamba;
    bool less = context_has_heads(d, '*') && (!generates(d) || shares_keys(d)) &&
                context_attention_sent(d, true) < context_attention_sent(d, false);
    p->attention_heads =
        p->shape.context > 1 && (strcmp(attention, "auto") ? !strcmp(attention, "heads") : less);
    less = context_has_heads(d, 'M') && context_mamba_sent(d, true) < context_mamba_sent(d, false);
    p->mamba_heads =
        p->shape.context > 1 && (strcmp(mamba, "auto") ? !strcmp(mamba, "heads") : less);
}
