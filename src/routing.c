#include "src/routing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/tape_segment.h"
#include "parallel/context_parallel.h"
#include "parallel/expert_parallel.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"
#include "src/documents.h"

/* A layer's routing in progress. */
struct decision {
    const struct layer *l;
    const struct expert_rules *rules;
    struct travel travel;
    int64_t tokens; /* of the micro-batch */
    bool home;
    const struct parallel *parallel;
    struct token_range own; /* of the tokens in h */
};

/* With context ranks a sequence is two rows of the batch: its two pieces. */
struct travel tokens_to_route(const struct layer *l) {
    const struct batch *b = &l->pass->batch;
    const int64_t experts = l->config->keys.n_routed_experts, number = l->pass->number,
                  ranks = mesh_stage_ranks(l->mesh),
                  held = b->dealt ? 1 : context_held(l->mesh->context);
    const bool notes = l->choices && l->pass->count_experts; /* of training, as the loads are */
    return (struct travel){.experts = experts,
                           .chosen = l->config->keys.num_experts_per_tok,
                           .tokens = b->rows * b->length,
                           .length = b->length * held,
                           .dealt = b->dealt,
                           .of = l->pass->shares,
                           .load = l->expected,
                           .load_of = l->expected_of,
                           .known = l->known ? l->known + number * ranks * experts : NULL,
                           .note = notes ? l->choices + number * experts : NULL};
}

/* The documents of tokens from `first` on. */
static struct documents documents_from(const struct decision *d, int64_t first) {
    const char *each = d->l->pass->document;
    const bool even = d->rules->balancing.even > 0, all = even && d->rules->of != OF_DOCUMENTS;
    return (struct documents){
        /* the z loss needs no counts */
        .groups = all    ? 1
                  : even ? documents_borders(d->parallel, d->tokens / d->travel.length)
                         : 0,
        .all = all,
        .each = each ? each + first * (int64_t)sizeof(int32_t) : NULL,
    };
}

/* The table of counts that ranks add up; NULL where it has no rows. index: of all tokens where
 * experts are at home. A replay has it. */
static struct tensor *counts_of(struct tape *t, const struct decision *d, struct tensor *index) {
    const struct parallel *p = d->parallel;
    const struct documents of = documents_from(d, d->home ? 0 : d->own.first);
    if (!of.groups) return NULL;
    struct tensor *count = tape_kept(t);
    if (count) return count;
    count = count_choices(t, index, d->travel.experts, &of);
    sum_over(t, d->home ? p->axis[MESH_CONTEXT] : p->sample, count->data, tensor_elements(count),
             I32);
    if (d->rules->of == OF_STEP) {
        sum_over(t, p->axis[MESH_DATA], count->data, tensor_elements(count), I32);
        count = counts_so_far(t, count, d->l->seen);
    }
    return tape_keep(t, count);
}

/* The losses that act on the router: from its scores and everybody's counts. index: of the tokens
 * of weight and logits; all_index: as for counts_of. */
static struct tensor *balanced(struct tape *t, const struct decision *d, struct tensor *weight,
                               struct tensor *logits, struct tensor *index,
                               struct tensor *all_index) {
    struct balancing b = d->rules->balancing;
    struct documents of = documents_from(d, d->own.first);
    struct tensor *count = counts_of(t, d, all_index);
    bool twice = logits->layout.state[AXIS_TENSOR] == WHOLE && d->parallel->at.tensor > 0;
    if (twice) b.even_sum = b.square_sum = NULL; /* every tensor rank has the same */
    return balance_loss(t, weight, logits, index, count, &of, &b);
}

/* x of all tokens of the sequences: rank after rank along context. Dropped if it was made here. */
static struct tensor *all_tokens(struct tape *t, const struct decision *d, struct tensor *x) {
    struct tensor *mine = d->home ? x : tensor_all_rows(t, x, d->tokens);
    struct tensor *all = context_all_rows(t, mine);
    if (mine != x && mine != all) tensor_drop(t, mine);
    return all;
}

/* Drops what is beyond the room that each expert has for a sequence. That takes all its tokens. */
static struct tensor *dropped(struct tape *t, const struct decision *d, const struct routed *r) {
    const struct deck_model *k = &d->l->config->keys;
    const int context = d->parallel->shape.context;
    const int64_t length = d->travel.length * context;
    struct tensor *kept = tape_kept(t), *document = NULL;
    if (kept) return kept;
    struct tensor *index = all_tokens(t, d, r->index), *weight = all_tokens(t, d, r->weight);
    if (d->l->pass->document) {
        struct layout l = r->index->layout;
        struct tensor *mine =
            tensor_over(t, "documents", d->l->pass->document, I32, d->tokens, 1, &l);
        document = context_all_rows(t, mine);
    }
    double even = (double)(length * k->num_experts_per_tok) / (double)k->n_routed_experts;
    kept = drop_choices(t, index, weight, document ? document->data : NULL,
                        &(struct dropping){.experts = k->n_routed_experts,
                                           .length = length,
                                           .limit = (int64_t)ceil(even * d->rules->capacity),
                                           .ranks = context,
                                           .first = d->parallel->at.context * d->tokens +
                                                    (d->home ? 0 : d->own.first),
                                           .rows = r->index->rows},
                        &r->index->layout);
    if (index != r->index) tensor_drop(t, index);
    if (weight != r->weight) tensor_drop(t, weight);
    if (document) tensor_drop(t, document);
    return tape_keep(t, kept);
}

/* Notes what is chosen by those of all tokens at home that are this rank's where they travel. */
static void note_at_home(struct tape *t, const struct decision *d, const struct tensor *index) {
    const int ranks = d->parallel->shape.tensor, rank = d->parallel->at.tensor;
    const int64_t first = part_begin(d->tokens, ranks, rank, 1) * d->travel.chosen,
                  n = part_begin(d->tokens, ranks, rank + 1, 1) * d->travel.chosen - first;
    int32_t *chosen = die_alloc((size_t)n * sizeof *chosen + 1), *note = d->travel.note;
    device_read(t->device, chosen, (const int32_t *)index->data + first,
                (size_t)n * sizeof *chosen);
    memset(note, 0, (size_t)d->travel.experts * sizeof *note);
    for (int64_t i = 0; i < n; i++)
        if (chosen[i] < d->travel.experts) note[chosen[i]]++;
    free(chosen);
}

struct routed route_tokens(struct tape *t, const struct layer *l, const struct router *r,
                           struct tensor *h) {
    const struct deck_model *k = &l->config->keys;
    const struct pass *pass = l->pass;
    const struct parallel *p = t->parallel;
    struct decision d = {.l = l,
                         .rules = &pass->experts,
                         .travel = tokens_to_route(l),
                         .home = experts_at_home(p),
                         .parallel = p};
    int64_t tokens = d.tokens = d.travel.tokens;
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
    struct tensor *own = out.index;
    if (d.home) out.index = tensor_enter(t, own, tokens);
    bool losses = d.rules->balancing.even > 0 || d.rules->balancing.square > 0;
    if (pass->count_experts)
        count_experts(t, out.index, k->n_routed_experts,
                      documents_from(&d, d.home ? 0 : d.own.first).each, l->load);
    if (losses) out.weight = balanced(t, &d, out.weight, logits, own, out.index);
    if (d.home) out.weight = tensor_enter(t, out.weight, tokens);
    if (d.rules->capacity > 0) out.index = dropped(t, &d, &out);
    if (d.home && d.travel.note) note_at_home(t, &d, out.index);
    return out;
}
