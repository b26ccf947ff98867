#include "src/vocabulary.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/tokenizer.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config.h"
#include "src/config_json.h"

enum { LARGEST = 16 << 20 };

static bool is(const char *a, const char *b) {
    return !strcmp(a, b);
}

static bool has_file(const char *folder, const char *name) {
    char *path = die_format("%s/%s", folder, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

/* A folder's config.json as far as it can be read; others complain about it. */
static json_t *config_of(const char *folder) {
    char why[WHY_BYTES], *path = die_format("%s/config.json", folder);
    int64_t bytes;
    json_error_t error;
    char *text = file_exists(path) ? file_text(path, LARGEST, &bytes, why) : NULL;
    json_t *root = text ? config_json_parse(text, (size_t)bytes, &error) : NULL;
    free(text);
    free(path);
    return root;
}

/* ---- which ---- */

bool vocabulary_only(const struct deck *d) {
    return is(d->run.mode, "convert") && is(d->convert.what, "tokens");
}

static bool learns_text(const struct deck *d) {
    return is(d->data.kind, "text") && (is(d->run.mode, "train") || is(d->run.mode, "evaluate"));
}

/* The tokenizer of a model's folder, malloc'd, or NULL. */
static char *own_name(const char *folder) {
    if (!folder) return NULL;
    json_t *root = config_of(folder);
    const char *said = json_string_value(json_object_get(root, "mestar_tokenizer"));
    char *name = said && is(said, "bytes")            ? die_strdup(said)
                 : has_file(folder, "tokenizer.json") ? die_strdup(folder)
                                                      : NULL;
    json_decref(root);
    return name;
}

/* A folder stands for its tokenizer.json and the other way round; the folder tells more. */
static char *folder_name(const char *given) {
    const char *slash = strrchr(given, '/'), *file = slash ? slash + 1 : given;
    if (is(file, "tokenizer.json") && !file_is_folder(given))
        return slash ? die_format("%.*s", slash == given ? 1 : (int)(slash - given), given)
                     : die_strdup(".");
    return die_strdup(given);
}

/* ---- opening ---- */

/* eos_token_id of a config.json, the first of a list; -1 without. */
static int32_t end_of_config(const char *folder, int32_t size) {
    json_t *root = folder ? config_of(folder) : NULL;
    const json_t *v = json_object_get(root, "eos_token_id");
    if (json_is_array(v)) v = json_array_get(v, 0);
    int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    json_decref(root);
    return id >= 0 && id < size ? (int32_t)id : -1;
}

static void open_it(struct vocabulary *v, const char *model_folder, const struct deck *d,
                    struct mistakes *m) {
    if (!is(v->name, "bytes") && !file_exists(v->name)) {
        deck_mistake(
            d, m, "model.tokenizer",
            "there is no file or folder %.200s; give bytes, or a folder with tokenizer.json",
            v->name);
        return;
    }
    if (!(v->tokenizer = tokenizer_open(v->name, m))) return;
    int32_t size = tokenizer_size(v->tokenizer);
    v->begin = tokenizer_bos(v->tokenizer);
    v->end = tokenizer_eos(v->tokenizer);
    if (v->end < 0) v->end = end_of_config(v->name, size);
    if (v->end < 0) v->end = end_of_config(model_folder, size);
}

/* One row a rule: the key, the condition that is wrong, and what to say. */
#define RULE(key, condition, ...)                                                                  \
    if (condition) deck_mistake(d, m, key, __VA_ARGS__)

static void check(const struct vocabulary *v, const struct deck *d, struct mistakes *m) {
    bool text = learns_text(d), bytes = v->name && is(v->name, "bytes");
    int64_t words = d->model.vocab_size;
    RULE("model.tokenizer", text && !v->name,
         "data.kind text needs a tokenizer: bytes, or a folder with tokenizer.json");
    RULE("model.tokenizer", vocabulary_only(d) && !v->name,
         "convert.what tokens needs a tokenizer: a folder with tokenizer.json, here or as "
         "model.from");
    if (!v->tokenizer) return;
    int64_t size = tokenizer_size(v->tokenizer);
    RULE("model.vocab_size", text && bytes && words < size,
         "%" PRId64 " is too few for bytes; 257 is the least (256 bytes and the end of a document)",
         words);
    RULE("model.vocab_size", text && !bytes && words < size,
         "%" PRId64 " is too few for the tokenizer %.200s, whose ids end at %" PRId64 "; %" PRId64
         " is the least",
         words, v->name, size - 1, size);
    RULE("model.tokenizer", text && v->end < 0,
         "%.200s does not say which token ends a document; name it as eos_token in a "
         "tokenizer_config.json beside it",
         v->name);
}

/* The folder that a tokenizer is looked for in without model.tokenizer, malloc'd; NULL: none. */
static char *model_folder(const struct config *c, struct deck const *d) {
    char why[WHY_BYTES];
    int64_t bytes;
    const char *from = d->model.from;
    if (c->folder) return die_strdup(c->folder);
    if (!vocabulary_only(d) || !*from) return NULL;
    char *latest = die_format("%s/checkpoints/latest", from), *folder = NULL;
    char *line = file_exists(latest) ? file_text(latest, 4096, &bytes, why) : NULL;
    if (line) line[strcspn(line, "\r\n")] = 0;
    if (line && *line && *line != '.' && !strchr(line, '/'))
        folder = die_format("%s/checkpoints/%s", from, line);
    free(line);
    free(latest);
    return folder ? folder : die_strdup(from);
}

void vocabulary_settle(struct config *c, const struct deck *d, struct mistakes *m) {
    struct vocabulary *v = &c->vocabulary;
    bool generates = is(d->run.mode, "generate"), given = *d->model.tokenizer;
    char *folder = model_folder(c, d), *own = own_name(folder);
    *v = (struct vocabulary){.begin = -1, .end = -1};
    v->name = given ? folder_name(d->model.tokenizer) : own ? die_strdup(own) : NULL;
    v->own = v->name && own && file_same(v->name, own);
    if (v->name && (given || generates || learns_text(d) || vocabulary_only(d))) {
        /* Prompts of ids go without the model's own tokenizer, should that be of a kind that is not
         * built. */
        bool optional = generates && !given && d->generate.prompt_ids.n && !d->generate.stop.n;
        struct mistakes forgiven = {0};
        open_it(v, folder, d, optional ? &forgiven : m);
        mistakes_free(&forgiven);
    }
    check(v, d, m);
    if (v->name) c->keys.tokenizer = v->name;
    free(folder);
    free(own);
}

void vocabulary_free(struct vocabulary *v) {
    tokenizer_close(v->tokenizer);
    free(v->name);
    *v = (struct vocabulary){0};
}

/* ---- saving ---- */

char *vocabulary_file(const struct vocabulary *v, const char *name, const char *weights_folder) {
    bool of_generation = is(name, "generation_config.json"),
         bytes = v->name && is(v->name, "bytes");
    if (!v->name || (v->own && (!bytes || of_generation)))
        return weights_folder ? die_format("%s/%s", weights_folder, name) : NULL;
    /* Another tokenizer than the model had: its own ends of texts would be wrong. */
    if (bytes || of_generation) return NULL;
    if (file_is_folder(v->name)) return die_format("%s/%s", v->name, name);
    return is(name, "tokenizer.json") ? die_strdup(v->name) : NULL;
}
