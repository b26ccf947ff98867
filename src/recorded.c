#include "src/recorded.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "parallel/mesh.h"
#include "src/config.h"
#include "src/deck.h"
#include "src/deck_rules.h"
#include "src/engine.h"
#include "src/output.h"

#define FILE_NAME "routing.json"
enum { MOST_BYTES = 1 << 28 };

/* ---- writing ---- */

void recorded_begin(struct engine *e) {
    const int64_t numbers =
        deck_micro_batches(e->deck, &e->shape) * e->config->keys.n_routed_experts;
    if (!e->deck->log.routing) return;
    for (int i = 0; i < e->config->n_layers; i++)
        if (e->config->kinds[i] == 'E')
            e->model.layer[i].choices = die_alloc((size_t)numbers * sizeof(int32_t));
}

void recorded_end(struct engine *e) {
    for (int i = 0; e->model.layer && i < e->config->n_layers; i++) {
        free(e->model.layer[i].choices);
        e->model.layer[i].choices = NULL;
    }
}

/* Of what run it is: the mesh, the tokens of its ranks, and room for what they choose. */
static void print_mesh(FILE *f, const struct deck *d, const struct mesh_shape *s) {
    fprintf(f,
            "\"mesh\": {\"pipeline\": %d, \"data\": %d, \"context\": %d, \"tensor\": %d, "
            "\"expert\": %d, \"expert_tensor\": %d, \"global_batch\": %ld, \"micro_batch\": "
            "%ld, \"sequence_length\": %ld, \"capacity\": %.17g}, ",
            s->pipeline, s->data, s->context, s->tensor, s->expert, s->expert_tensor,
            (long)d->train.global_batch, (long)d->train.micro_batch, (long)d->train.sequence_length,
            d->moe.capacity);
}

static void print_numbers(FILE *f, const int32_t *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) fprintf(f, "%s%d", i ? ", " : "[", x[i]);
    fputc(']', f);
}

/* The choices of a layer, on rank 0: of those ranks that have it, which
 * have chosen something. Collective. */
static int32_t *gather_choices(const struct engine *e, const struct layer *l) {
    const int64_t numbers =
        deck_micro_batches(e->deck, &e->shape) * e->config->keys.n_routed_experts;
    const int ranks = mesh_stage_ranks(&e->shape),
              first = staging_rank(&e->stages, staging_of_layer(&e->stages, l->number)) * ranks,
              rank = e->comm->rank;
    int64_t *send = die_alloc((size_t)e->comm->size * sizeof *send),
            *come = die_alloc((size_t)e->comm->size * sizeof *come);
    int32_t *all = rank ? NULL : die_alloc((size_t)(ranks * numbers) * sizeof *all);
    struct request r;
    for (int i = first; i < first + ranks; i++) {
        const int64_t bytes = numbers * (int64_t)sizeof *all;
        if (i == rank) send[0] = bytes;
        if (rank == 0) come[i] = bytes;
    }
    comm_exchange_start(e->comm->world, l->choices, send, all, come, &r);
    comm_wait(&r);
    free(send);
    free(come);
    return all;
}

static void print_choices(FILE *f, const struct engine *e, const int32_t *all) {
    const int64_t experts = e->config->keys.n_routed_experts,
                  batches = deck_micro_batches(e->deck, &e->shape);
    for (int64_t b = 0; b < batches; b++) {
        fputs(b ? ",\n    [" : ", \"choices\": [\n    [", f);
        for (int i = 0; i < mesh_stage_ranks(&e->shape); i++) {
            if (i) fputs(", ", f);
            print_numbers(f, all + (i * batches + b) * experts, experts);
        }
        fputc(']', f);
    }
    fputc(']', f);
}

void recorded_write(const struct engine *e, const struct loads *s, int64_t step,
                    const struct output *o) {
    char *text = NULL;
    size_t bytes;
    if (!s->layers) return;
    FILE *f = o->speaks ? open_memstream(&text, &bytes) : NULL;
    if (o->speaks && !f) die("no memory for %s", FILE_NAME);
    const bool each = e->model.layer[s->layer[0]].choices;
    if (f)
        fprintf(f, "{\"step\": %ld, \"experts\": %ld, \"chosen\": %ld, ", (long)step,
                (long)s->experts, (long)e->config->keys.num_experts_per_tok);
    if (f && each) print_mesh(f, e->deck, &e->shape);
    if (f) fputs("\"layers\": [", f);
    for (int i = 0; i < s->layers; i++) {
        if (f) fprintf(f, "%s\n  {\"layer\": %d, \"loads\": ", i ? "," : "", s->layer[i]);
        for (int64_t k = 0; f && k < s->experts; k++)
            fprintf(f, "%s%ld", k ? ", " : "[", (long)s->n[i * s->experts + k]);
        if (f) fputc(']', f);
        int32_t *all = each ? gather_choices(e, &e->model.layer[s->layer[i]]) : NULL;
        if (f && all) print_choices(f, e, all);
        free(all);
        if (f) fputc('}', f);
    }
    if (!f) return;
    fputs("\n]}\n", f);
    fclose(f);
    output_text(o, FILE_NAME, text);
    free(text);
}

/* ---- reading ---- */

/* A whole number of this object, or -1. */
static int64_t whole(const json_t *object, const char *key) {
    const json_t *v = json_object_get(object, key);
    return json_is_integer(v) && json_integer_value(v) >= 0 ? json_integer_value(v) : -1;
}

/* The loads of the i-th layer of s from its entry, or what is wrong with it: malloc'd. */
static char *take_layer(struct loads *s, int i, const json_t *entry) {
    const json_t *list = json_object_get(entry, "loads");
    const int layer = s->layer[i];
    int64_t sum = 0;
    if ((int64_t)json_array_size(list) != s->experts)
        return die_format("layer %d has %ld loads, and the model %ld experts", layer,
                          (long)json_array_size(list), (long)s->experts);
    for (int64_t e = 0; e < s->experts; e++) {
        const json_t *v = json_array_get(list, (size_t)e);
        const int64_t n = json_is_integer(v) ? json_integer_value(v) : -1;
        if (n < 0 || n > INT64_MAX / 4 / s->experts)
            return die_format("layer %d: the load of expert %ld is no number of tokens", layer,
                              (long)e);
        s->n[i * s->experts + e] = n;
        sum += n;
    }
    return sum ? NULL : die_format("layer %d has no token at all", layer);
}

/* Whether the choices are of ranks that have the same tokens, as many for a token, and with as much
 * room: where the layers and the experts lie changes none. */
static bool same_tokens(const json_t *root, const struct deck *d, const struct mesh_shape *s) {
    const json_t *mesh = json_object_get(root, "mesh");
    const struct {
        const char *key;
        int64_t value;
    } all[] = {{"data", s->data},
               {"context", s->context},
               {"tensor", s->tensor},
               {"global_batch", d->train.global_batch},
               {"micro_batch", d->train.micro_batch},
               {"sequence_length", d->train.sequence_length}};
    if (strcmp(d->run.mode, "train")) return false; /* other passes have other tokens */
    if (whole(root, "chosen") != d->model.num_experts_per_tok ||
        json_number_value(json_object_get(mesh, "capacity")) != d->moe.capacity)
        return false;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (whole(mesh, all[i].key) != all[i].value) return false;
    return true;
}

/* A rank's choices in a micro-batch: no more than its tokens make. */
static bool take_rank(int32_t *to, const json_t *list, int64_t experts, int64_t most) {
    int64_t sum = 0;
    if ((int64_t)json_array_size(list) != experts) return false;
    for (int64_t e = 0; e < experts; e++) {
        const json_t *v = json_array_get(list, (size_t)e);
        const int64_t n = json_is_integer(v) ? json_integer_value(v) : -1;
        if (n < 0 || n > most) return false;
        to[e] = (int32_t)n;
        sum += n;
    }
    return sum <= most;
}

static bool take_choices(int32_t *to, const json_t *layer, const struct deck *d,
                         const struct mesh_shape *s, int64_t experts) {
    const json_t *list = json_object_get(layer, "choices");
    const int64_t batches = deck_micro_batches(d, s),
                  tokens = d->train.micro_batch * d->train.sequence_length / s->context;
    const int ranks = mesh_stage_ranks(s);
    if ((int64_t)json_array_size(list) != batches) return false;
    for (int64_t b = 0; b < batches; b++) {
        const json_t *of_ranks = json_array_get(list, (size_t)b);
        if ((int)json_array_size(of_ranks) != ranks) return false;
        for (int r = 0; r < ranks; r++, to += experts) {
            const int t = mesh_coords(s, r).tensor;
            const int64_t own =
                part_begin(tokens, s->tensor, t + 1, 1) - part_begin(tokens, s->tensor, t, 1);
            if (!take_rank(to, json_array_get(of_ranks, (size_t)r), experts,
                           own * d->model.num_experts_per_tok))
                return false;
        }
    }
    return true;
}

/* What is wrong with the record, or NULL: malloc'd. */
static char *take(struct recorded *r, const json_t *root, const struct deck *d,
                  const struct mesh_shape *shape) {
    const json_t *list = json_object_get(root, "layers");
    struct loads *s = &r->loads;
    if (!json_is_array(list)) return die_strdup("has no list \"layers\"");
    if ((int64_t)json_array_size(list) != s->layers)
        return die_format("has %ld layers with experts, and the model %d",
                          (long)json_array_size(list), s->layers);
    const bool each = same_tokens(root, d, shape);
    const int64_t numbers = deck_micro_batches(d, shape) * mesh_stage_ranks(shape) * s->experts;
    if (each) r->choices = die_alloc((size_t)(s->layers * numbers) * sizeof *r->choices);
    for (int i = 0; i < s->layers; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        char *problem;
        if (whole(entry, "layer") != s->layer[i])
            return die_format("entry %d of \"layers\" must be of layer %d", i + 1, s->layer[i]);
        problem = take_layer(s, i, entry);
        if (problem) return problem;
        if (each && !take_choices(r->choices + i * numbers, entry, d, shape, s->experts))
            return die_format("the choices of layer %d are not what %d ranks make of %ld "
                              "micro-batches",
                              s->layer[i], mesh_stage_ranks(shape),
                              (long)deck_micro_batches(d, shape));
    }
    r->step = whole(root, "step");
    return r->step < 0 ? die_strdup("has no number \"step\"") : NULL;
}

int recorded_read(struct recorded *r, const struct deck *d, const struct config *c,
                  const struct mesh_shape *shape, struct mistakes *m) {
    const bool folder = file_is_folder(d->plan.routing);
    char *path = die_format(folder ? "%s/" FILE_NAME : "%s", d->plan.routing), why[WHY_BYTES],
         *text = NULL, *problem = NULL;
    int64_t bytes;
    json_t *root = NULL;
    *r = (struct recorded){.step = -1};
    loads_of_model(&r->loads, c);
    if (folder && !file_exists(path))
        problem = die_strdup("has no " FILE_NAME ", which training with experts leaves there");
    else if (!(text = file_text(path, MOST_BYTES, &bytes, why)) ||
             !(root = json_read(text, (size_t)bytes, why)))
        problem = die_strdup(why);
    else problem = take(r, root, d, shape);
    if (problem) deck_mistake(d, m, "plan.routing", "%.200s: %s", d->plan.routing, problem);
    const int result = problem ? -1 : 0;
    json_decref(root);
    free(text);
    free(path);
    if (problem) recorded_free(r);
    free(problem);
    return result;
}

void recorded_free(struct recorded *r) {
    loads_free(&r->loads);
    free(r->choices);
    *r = (struct recorded){0};
}
