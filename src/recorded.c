#include "src/recorded.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config.h"
#include "src/deck.h"
#include "src/loads.h"
#include "src/output.h"

#define FILE_NAME "routing.json"
enum { MOST_BYTES = 1 << 28 };

void recorded_write(const struct loads *s, int64_t chosen, int64_t step, const struct output *o) {
    char *text;
    size_t bytes;
    if (!s->layers || !o->speaks) return;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) die("no memory for %s", FILE_NAME);
    fprintf(f, "{\"step\": %ld, \"experts\": %ld, \"chosen\": %ld, \"layers\": [", (long)step,
            (long)s->experts, (long)chosen);
    for (int i = 0; i < s->layers; i++) {
        fprintf(f, "%s\n  {\"layer\": %d, \"loads\": [", i ? "," : "", s->layer[i]);
        for (int64_t e = 0; e < s->experts; e++)
            fprintf(f, "%s%ld", e ? ", " : "", (long)s->n[i * s->experts + e]);
        fputs("]}", f);
    }
    fputs("\n]}\n", f);
    fclose(f);
    output_text(o, FILE_NAME, text);
    free(text);
}

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

/* What is wrong with the record, or NULL: malloc'd. */
static char *take(struct loads *s, const json_t *root) {
    const json_t *list = json_object_get(root, "layers");
    if (!json_is_array(list)) return die_strdup("has no list \"layers\"");
    if ((int64_t)json_array_size(list) != s->layers)
        return die_format("has %ld layers with experts, and the model %d",
                          (long)json_array_size(list), s->layers);
    for (int i = 0; i < s->layers; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        char *problem;
        if (whole(entry, "layer") != s->layer[i])
            return die_format("entry %d of \"layers\" must be of layer %d", i + 1, s->layer[i]);
        problem = take_layer(s, i, entry);
        if (problem) return problem;
    }
    return NULL;
}

int recorded_read(struct loads *s, const struct deck *d, const struct config *c, int64_t *step,
                  struct mistakes *m) {
    const bool folder = file_is_folder(d->plan.routing);
    char *path = die_format(folder ? "%s/" FILE_NAME : "%s", d->plan.routing), why[WHY_BYTES],
         *text = NULL, *problem = NULL;
    int64_t bytes;
    json_t *root = NULL;
    loads_of_model(s, c);
    if (folder && !file_exists(path))
        problem = die_strdup("has no " FILE_NAME ", which training with experts leaves there");
    else if (!(text = file_text(path, MOST_BYTES, &bytes, why)) ||
             !(root = json_read(text, (size_t)bytes, why)))
        problem = die_strdup(why);
    else problem = take(s, root);
    if (problem) deck_mistake(d, m, "plan.routing", "%.200s: %s", d->plan.routing, problem);
    else if (step) *step = whole(root, "step");
    json_decref(root);
    free(text);
    free(path);
    if (problem) loads_free(s);
    const int result = problem ? -1 : 0;
    free(problem);
    return result;
}
