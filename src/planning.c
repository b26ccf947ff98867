#include "src/planning.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer.h"
#include "io/yaml.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/generate.h"

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
    model_init(&model, c, shape, 0, false);
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
        printf("ranks: %d\nmesh: {data: %d, tensor: %d}\n", mesh_ranks(shape), shape->data,
               shape->tensor);
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

/* A step on the dry device; what the tokens are does not matter there. */
static void dry_step(struct engine *e) {
    const struct deck *d = e->deck;
    int64_t rows = d->train.micro_batch, length = d->train.sequence_length;
    struct host_batch b = {rows, length, NULL, NULL, NULL, NULL};
    engine_gradients(e, 1, &b, 1, !strcmp(d->moe.balance, "bias"));
    optimiser_norm(&e->optimiser, &e->parallel);
    optimiser_step(&e->optimiser, 1, 0, 0);
}

int64_t plan_bytes(const struct rank_plan *p) {
    return p->parameters + p->gradients + p->moments + p->states + p->activations + p->scratch;
}

int plan_rank(const struct deck *d, struct config *c, const struct mesh_shape *shape, int rank,
              struct rank_plan *p, struct mistakes *m) {
    struct engine e;
    struct comm comm;
    struct generation g = {0};
    bool generates = !strcmp(d->run.mode, "generate");
    comm_init_dry(&comm, mesh_ranks(shape), rank);
    bool prepared =
        !engine_open(&e, d, c, m) && (!generates || !generation_prepare(&g, &e, NULL, m));
    bool bad = !prepared || engine_init(&e, &comm, shape, true, !generates, !generates, m);
    if (!bad && generates) generation_plan(&g);
    else if (!bad) dry_step(&e);
    generation_free(&g);
    *p = (struct rank_plan){(int64_t)e.values.peak, (int64_t)e.grads.peak, (int64_t)e.moments.peak,
                            (int64_t)e.states.peak, (int64_t)e.work.peak,  (int64_t)e.scratch.peak};
    engine_free(&e);
    comm_end(&comm);
    return bad ? -1 : 0;
}

static void print_rank(FILE *f, const struct rank_plan *p, const struct mesh_coords *c, int rank,
                       bool json, bool last) {
    const double mib = 1048576;
    if (json)
        fprintf(f,
                "    {\"rank\": %d, \"data\": %d, \"tensor\": %d, \"arena_bytes\": %ld, "
                "\"parameters_bytes\": %ld, "
                "\"gradients_bytes\": %ld, \"moments_bytes\": %ld, \"states_bytes\": %ld, "
                "\"activations_bytes\": %ld, "
                "\"scratch_bytes\": %ld}%s\n",
                rank, c->data, c->tensor, (long)plan_bytes(p), (long)p->parameters,
                (long)p->gradients, (long)p->moments, (long)p->states, (long)p->activations,
                (long)p->scratch, last ? "" : ",");
    else
        fprintf(f, "%6d %6d %7d %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f\n", rank, c->data,
                c->tensor, (double)p->parameters / mib, (double)p->gradients / mib,
                (double)p->moments / mib, (double)p->states / mib, (double)p->activations / mib,
                (double)p->scratch / mib, (double)plan_bytes(p) / mib);
}

/* The whole plan, or nothing if m has mistakes. */
static void plan_ranks(FILE *f, const struct deck *d, struct config *c,
                       const struct mesh_shape *shape, bool json, struct mistakes *m) {
    int ranks = mesh_ranks(shape);
    if (json) fprintf(f, "{\n  \"ranks\": [\n");
    else
        fprintf(f, "memory in MiB\n%6s %6s %7s %12s %12s %12s %12s %12s %12s %12s\n", "rank",
                "data", "tensor", "parameters", "gradients", "moments", "states", "activations",
                "scratch", "all");
    for (int r = 0; r < ranks && !m->n; r++) {
        struct rank_plan p;
        struct mesh_coords at = mesh_coords(shape, r);
        if (!plan_rank(d, c, shape, r, &p, m)) print_rank(f, &p, &at, r, json, r == ranks - 1);
    }
    if (json) fprintf(f, "  ]\n}\n");
}

int plan_run(const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json,
             struct mistakes *m) {
    char *text;
    size_t bytes;
    if (strcmp(d->run.mode, "train") && strcmp(d->run.mode, "generate")) {
        deck_mistake(d, m, "run.mode", "is %s; plans are made of train and generate", d->run.mode);
        return 2;
    }
    FILE *f = open_memstream(&text, &bytes);
    plan_ranks(f, d, c, shape, json, m);
    fclose(f);
    if (!m->n) fwrite(text, 1, bytes, stdout);
    free(text);
    return m->n ? 2 : 0;
}
