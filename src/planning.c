#include "src/planning.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"
#include "io/yaml.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/costs.h"
#include "src/deck_rules.h"
#include "src/generate.h"
#include "src/loads.h"
#include "src/recorded.h"

int plan_check(const struct deck *d, struct config *c, const struct mesh_shape *shape,
               struct mistakes *m) {
    struct engine e;
    struct model model;
    if (vocabulary_only(d)) {
        printf("tokenizer: %s\nids: %d\n", c->vocabulary.name,
               tokenizer_size(c->vocabulary.tokenizer));
        return 0;
    }
    int bad = engine_open(&e, d, c, m);
    if (bad) return 2;
    if (!strcmp(d->run.mode, "generate") && strcmp(d->generate.prompts, "-")) {
        struct generation g;
        bad = generation_prepare(&g, &e, NULL, m);
        generation_free(&g);
    }
    if (!bad && *d->plan.routing) {
        struct recorded r;
        bad = recorded_read(&r, d, c, shape, m);
        if (!bad) recorded_free(&r);
    }
    model_init(&model, c, shape, 0, NULL, false);
    if (!bad && e.has_weights) bad = weights_match(&e.weights, &model.params, m);
    struct param_counts n = params_count(&model.params);
    if (!bad) {
        printf("parameters: %ld\n", (long)n.all);
        if (n.mtp)
            printf("parameters_without_mtp: %ld\nparameters_mtp: %ld   # counted and kept, not "
                   "computed\n",
                   (long)(n.all - n.mtp), (long)n.mtp);
        printf("active: %ld   # that a token meets, without the input table\n", (long)n.active);
        printf("active_with_embedding: %ld\n",
               (long)(n.active + (c->keys.tie_word_embeddings ? 0 : n.embedding)));
        printf("tensors: %d\n", n.tensors);
        printf("layers: \"%s\"\n", c->kinds);
        printf("ranks: %d\nmesh: {pipeline: %d, data: %d, context: %d, tensor: %d}\n",
               mesh_ranks(shape), shape->pipeline, shape->data, shape->context, shape->tensor);
        if (strchr(c->kinds, 'E'))
            printf("mesh_of_experts: {expert_data: %d, expert: %d, expert_tensor: %d}\n",
                   shape->expert_data, shape->expert, shape->expert_tensor);
        char *output = yaml_deck_quote(d->run.output);
        printf("output: %s\n", output);
        free(output);
        if (e.has_weights) printf("unused_tensors: %d   # in %s\n", e.weights.n_unused, c->folder);
        for (int i = 0; e.has_weights && i < e.weights.n_unused && i < 20; i++)
            printf("  # %s\n", e.weights.checkpoint.tensor[e.weights.unused[i]].name);
        if (c->keys.tie_word_embeddings || c->keys.attention_bias)
            printf("# NOTE transformers (5.23) ignores %s: its logits will differ\n",
                   c->keys.tie_word_embeddings ? "tie_word_embeddings" : "attention_bias");
    }
    model_free(&model);
    engine_free(&e);
    return bad ? 2 : 0;
}

/* Forward and backward of n micro-batches on the dry device; what the tokens are does not matter
 * there. */
static void dry_gradients(struct engine *e, int n) {
    const struct deck *d = e->deck;
    struct host_batch *b = die_alloc((size_t)n * sizeof *b);
    for (int i = 0; i < n; i++)
        b[i] = host_batch_shape(e, d->train.micro_batch, d->train.sequence_length);
    comm_total(e->parallel.replicas, 1);
    e->model.params.cleared = true; /* by the update before: the first step alone finds none */
    engine_gradients(e, n, b, 1, true);
    engine_router_losses(e);
    free(b);
}

static void dry_update(struct engine *e) {
    const struct deck *d = e->deck;
    optimiser_norm(&e->optimiser, &e->parallel);
    optimiser_step(&e->optimiser, 1, 0, 0);
    struct loads loads;
    loads_init(&loads, e);
    loads_take(&loads, e);
    if (!strcmp(d->moe.balance, "bias")) loads_correct(&loads, e, d->moe.bias_rate);
    loads_free(&loads);
}

/* What a part of a step takes. */
static struct costs cost_of(struct engine *e, int micro_batches) {
    struct costs before, after;
    costs_read(&before, e);
    if (micro_batches) dry_gradients(e, micro_batches);
    else dry_update(e);
    costs_read(&after, e);
    costs_add(&after, &before, -1);
    return after;
}

/* A step. Where one stage does all, micro-batches come one after the other and cost the same: two
 * tell what each further one does. In a pipeline the schedule decides what is held at once. */
static struct costs dry_step(struct engine *e) {
    int64_t n = deck_micro_batches(e->deck, &e->shape);
    bool alone = e->stages.n == 1 && !e->expected.choices; /* recorded ones differ */
    struct costs all = cost_of(e, alone ? 1 : (int)n), first = all;
    if (alone && n > 1) {
        struct costs two = cost_of(e, 2);
        costs_add(&all, &two, (double)(n - 1));
        costs_add(&all, &first, (double)(1 - n));
    }
    struct costs update = cost_of(e, 0);
    costs_add(&all, &update, 1);
    return all;
}

int64_t plan_bytes(const struct rank_plan *p) {
    return p->parameters + p->gradients + p->moments + p->states + p->activations + p->scratch;
}

static int plan_engine(const struct deck *d, struct config *c, const struct mesh_shape *shape,
                       int rank, const struct speed *speed, struct schedule_store *schedules,
                       struct rank_plan *p, struct costs *costs, struct mistakes *m) {
    struct engine e;
    struct comm comm;
    struct generation g = {0};
    bool generates = !strcmp(d->run.mode, "generate");
    comm_init_dry(&comm, mesh_ranks(shape), rank);
    bool prepared =
        !engine_open(&e, d, c, m) && (!generates || !generation_prepare(&g, &e, NULL, m));
    bool bad = !prepared || engine_init(&e, &comm, shape, true, !generates, !generates, m);
    memset(costs, 0, sizeof *costs);
    if (speed) e.device.speed = *speed;
    e.pipeline.store = schedules;
    if (!bad && generates) generation_plan(&g);
    else if (!bad) *costs = dry_step(&e);
    generation_free(&g);
    *p = (struct rank_plan){(int64_t)e.values.peak, (int64_t)e.grads.peak, (int64_t)e.moments.peak,
                            (int64_t)e.states.peak, (int64_t)e.work.peak,  (int64_t)e.scratch.peak,
                            costs_total(costs).work};
    engine_free(&e);
    comm_end(&comm);
    return bad ? -1 : 0;
}

int plan_rank(const struct deck *d, struct config *c, const struct mesh_shape *shape, int rank,
              const struct speed *speed, struct schedule_store *schedules, struct rank_plan *p,
              struct costs *costs, struct mistakes *m) {
    struct costs own;
    if (plan_engine(d, c, shape, rank, speed, schedules, p, costs ? costs : &own, m)) return -1;
    if (!strcmp(d->memory.recompute, "none")) return 0;
    /* The work of the model is what would be done if nothing were computed twice. */
    struct deck once = *d;
    struct rank_plan without;
    once.memory.recompute = "none";
    if (plan_engine(&once, c, shape, rank, speed, schedules, &without, &own, m)) return -1;
    p->work = without.work;
    return 0;
}
