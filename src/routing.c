#include "src/routing.h"

#include <math.h>
#include <stddef.h>

#include "kernels/tape_segment.h"
#include "parallel/context_parallel.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

/* A layer's routing in progress. */
struct decision {
    const struct layer *l;
    const struct expert_rules *rules;
    struct travel travel;
    int64_t tokens; /* of the micro-batch */
    bool home;
    struct token_range all, own; /* of all tokens; of those in h */
};

/* With context ranks a sequence is two rows of the batch: its two pieces. */
struct travel tokens_to_route(const struct layer *l) {
    const struct batch *b = &l->pass->batch;
    const int held = b->dealt ? 1 : context_held(l->mesh->context);
    return (struct travel){.experts = l->config->keys.n_routed_experts,
                           .chosen = l->config->keys.num_experts_per_tok,
                           .tokens = b->rows * b->length,
                           .length = b->length * held,
                           .dealt = b->dealt,
                           .of = l->pass->shares};
}

/* Sequences whose loads are counted apart; all tokens of the micro-batch together count as one. */
static int64_t groups_of(const struct decision *d, struct token_range *range) {
    if (!d->rules->whole_batch) return d->tokens / range->length;
    range->length = d->tokens;
    return 1;
}

static const void *counted_from(const struct decision *d, int64_t first) {
    const char *counted = d->l->pass->counted;
    return counted ? counted + first * (int64_t)sizeof(int32_t) : NULL;
}

/* Counts of what the ranks that share the sequences chose together. index: of all tokens where experts
 * are at home. A replay has them. */
static struct tensor *counts_of(struct tape *t, const struct decision *d, struct tensor *index,
                                bool whole) {
    const struct parallel *p = t->parallel;
    struct token_range range = d->home ? d->all : d->own;
    int64_t groups = groups_of(d, &range);
    struct tensor *kept = whole ? tape_kept(t) : NULL;
    if (kept || (!whole && t->replaying)) return kept;
    struct tensor *count = count_choices(t, index, d->l->config->keys.n_routed_experts, groups,
                                         &range, counted_from(d, range.first));
    if (d->l->pass->count_experts) count_experts(t, count, d->l->load);
    if (!whole) {
        tensor_drop(t, count);
        return NULL;
    }
    sum_over(t, d->home ? p->axis[MESH_CONTEXT] : p->sample, count->data, tensor_elements(count),
             I32);
    return tape_keep(t, count);
}

/* The losses that act on the router: from its scores and everybody's counts. */
static struct tensor *balanced(struct tape *t, const struct decision *d, struct tensor *weight,
                               struct tensor *logits, struct tensor *count) {
    struct balancing b = d->rules->balancing;
    struct token_range range = d->own;
    groups_of(d, &range);
    if (d->rules->whole_batch) b.share *= (double)(d->tokens / d->own.length);
    bool twice = logits->layout.state[AXIS_TENSOR] == WHOLE && t->parallel->at.tensor > 0;
    if (twice) b.even_sum = b.square_sum = NULL; /* every tensor rank has the same */
    struct tensor *counted = NULL;
    void *at = (void *)counted_from(d, range.first);
    if (at) counted = tensor_over(t, "counted", at, I32, logits->rows, 1, &logits->layout);
    return balance_loss(t, weight, logits, count, &range, counted, &b);
}

/* Drops what is beyond the room that each expert has for a sequence. That takes all its tokens. */
static struct tensor *dropped(struct tape *t, const struct decision *d, struct routed *r) {
    const struct deck_model *k = &d->l->config->keys;
    int64_t length = d->travel.length;
    struct tensor *kept = tape_kept(t), *index = r->index, *weight = r->weight;
    if (kept) return kept;
    if (!d->home) {
        index = tensor_all_rows(t, r->index, d->tokens);
        weight = tensor_all_rows(t, r->weight, d->tokens);
    }
    double even = (double)(length * k->num_experts_per_tok) / (double)k->n_routed_experts;
    kept = drop_choices(t, index, weight, k->n_routed_experts, length,
                        (int64_t)ceil(even * d->rules->capacity));
    if (!d->home) {
        tensor_drop(t, index);
        tensor_drop(t, weight);
        kept = tensor_own(t, kept);
    }
    return tape_keep(t, kept);
}

struct routed route_tokens(struct tape *t, const struct layer *l, const struct router *r,
                           struct tensor *h) {
    const struct deck_model *k = &l->config->keys;
    const struct pass *pass = l->pass;
    const struct parallel *p = t->parallel;
    struct decision d = {
        .l = l, .rules = &pass->experts, .travel = tokens_to_route(l), .home = experts_at_home(p)};
    int64_t tokens = d.tokens = d.travel.tokens;
    d.all = own_tokens(&p->shape, &p->at, &d.travel, false);
    d.own = own_tokens(&p->shape, &p->at, &d.travel, h->layout.state[AXIS_TENSOR] == SPLIT);
    struct routing how = {.experts = k->n_routed_experts,
                          .chosen = k->num_experts_per_tok,
                          .groups = k->n_group,
                          .kept_groups = k->topk_group,
                          .normalise = k->norm_topk_prob,
                          .scale = k->routed_scaling_factor,
                          .evenly = d.rules->evenly,
                          .tokens = d.own};
    struct tensor *exact = as_real(t, h); /* rounded scores would choose other experts */
    struct tensor *logits = linear(t, exact, r->gate);
    struct routed out;
    out.weight = route(t, logits, r->correction->value, &how, &out.index);
    if (exact != h) tensor_drop(t, exact);
    if (d.home) out.index = tensor_enter(t, out.index, tokens);
    bool losses = d.rules->balancing.even > 0 || d.rules->balancing.square > 0;
    struct tensor *count = NULL;
    if (losses || pass->count_experts) count = counts_of(t, &d, out.index, losses);
    if (losses) out.weight = balanced(t, &d, out.weight, logits, count);
    if (d.home) out.weight = tensor_enter(t, out.weight, tokens);
    if (d.rules->capacity > 0) out.index = dropped(t, &d, &out);
    return out;
}
