#include "src/planning.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/mistakes.h"
#include "kernels/die.h"
#include "src/generate.h"

int plan_check(const struct deck *d, struct config *c, const struct mesh_shape *shape, struct mistakes *m) {
    struct engine e;
    struct model model;
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
        if (n.mtp) printf("parameters_without_mtp: %ld\nparameters_mtp: %ld   # counted and kept, not computed\n", (long)(n.all - n.mtp), (long)n.mtp);
        printf("active: %ld   # that a token meets, without the input table\n", (long)n.active);
        printf("active_with_embedding: %ld\n",
               (long)(n.active + (c->keys.tie_word_embeddings ? 0 : n.embedding)));
        printf("tensors: %d\n", n.tensors);
        printf("layers: \"%s\"\n", c->kinds);
        printf("ranks: %d\nmesh: {data: %d, tensor: %d}\n", mesh_ranks(shape), shape->data, shape->tensor);
        if (e.has_weights) printf("unused_tensors: %d   # in %s\n", e.weights.n_unused, c->folder);
    }
    model_free(&model);
    engine_free(&e);
    return bad ? 2 : 0;
}

/* A step on the dry device; what the tokens are does not matter there. */
static void dry_step(struct engine *e) {
    const struct deck *d = e->deck;
    int64_t rows = d->train.micro_batch, length = d->train.sequence_length;
    struct host_batch b = {rows, length, NULL, NULL, NULL, die_alloc(rows * length * sizeof(double))};
    engine_gradients(e, 1, &b, 1, !strcmp(d->moe.balance, "bias"));
    optimiser_norm(&e->optimiser, &e->parallel);
    optimiser_step(&e->optimiser, 1, 0, 0);
    free(b.weight);
}

static void print_rank(FILE *f, const struct engine *e, int rank, bool json, bool last) {
    const struct mesh_coords *c = &e->parallel.at;
    if (json)
        fprintf(f, "    {\"rank\": %d, \"data\": %d, \"tensor\": %d, \"arena_bytes\": %ld, \"parameters_bytes\": %ld, "
               "\"gradients_bytes\": %ld, \"moments_bytes\": %ld, \"states_bytes\": %ld, \"activations_bytes\": %ld, \"scratch_bytes\": %ld}%s\n",
               rank, c->data, c->tensor, (long)engine_peak_bytes(e), (long)e->values.peak, (long)e->grads.peak,
               (long)e->moments.peak, (long)e->states.peak, (long)e->work.peak, (long)e->scratch.peak, last ? "" : ",");
    else
        fprintf(f, "%6d %6d %7d %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f %12.1f\n", rank, c->data, c->tensor, (double)e->values.peak / 1048576,
               (double)e->grads.peak / 1048576, (double)e->moments.peak / 1048576, (double)e->states.peak / 1048576,
               (double)e->work.peak / 1048576,
               (double)e->scratch.peak / 1048576, (double)engine_peak_bytes(e) / 1048576);
}

/* This rank's arenas, as a run of the deck's mode fills them. */
static void plan_rank(struct engine *e, const struct deck *d, struct config *c, struct comm *comm, const struct mesh_shape *shape,
                      struct mistakes *m) {
    bool trains = !strcmp(d->run.mode, "train");
    struct generation g = {0};
    if (engine_open(e, d, c, m) || (!trains && generation_prepare(&g, e, NULL, m)) ||
        engine_init(e, comm, shape, true, trains, trains, m)) {
        generation_free(&g);
        return;
    }
    if (trains) dry_step(e);
    else generation_plan(&g);
    generation_free(&g);
}

/* The whole plan, or nothing if m has mistakes. */
static void plan_ranks(FILE *f, const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json, struct mistakes *m) {
    int ranks = mesh_ranks(shape);
    if (json) fprintf(f, "{\n  \"ranks\": [\n");
    else fprintf(f, "memory in MiB\n%6s %6s %7s %12s %12s %12s %12s %12s %12s %12s\n", "rank", "data", "tensor", "parameters", "gradients",
                 "moments", "states", "activations", "scratch", "all");
    for (int r = 0; r < ranks && !m->n; r++) {
        struct engine e;
        struct comm comm;
        comm_init_dry(&comm, ranks, r);
        plan_rank(&e, d, c, &comm, shape, m);
        if (!m->n) print_rank(f, &e, r, json, r == ranks - 1);
        engine_free(&e);
        comm_end(&comm);
    }
    if (json) fprintf(f, "  ]\n}\n");
}

int plan_run(const struct deck *d, struct config *c, const struct mesh_shape *shape, bool json, struct mistakes *m) {
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
