/* config_write: the config.json of a folder that is written. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "src/config.h"
#include "src/config_json.h"
#include "src/deck_table.h"
#include "src/pattern.h"

static bool is_set(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return v && !json_is_null(v);
}

static json_t *words_of(const char *kinds, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_string(pattern_word(kinds[i])));
    return list;
}

static json_t *real_json(double x) {
    if (isfinite(x)) return json_real(x);
    return json_pack("{s:s}", "__float__", x > 0 ? "Infinity" : "-Infinity");
}

/* A row's value as JSON; zeros that stand for "none" become null. */
static json_t *value_json(const struct config *c, const struct deck_key *k, const void *value) {
    int64_t i = k->type == 'i' ? *(const int64_t *)value : 1;
    if (!strcmp(k->name, "time_step_limit"))
        return json_pack("[o, o]", real_json(c->dt_min), real_json(c->dt_max));
    if (!i && (!strcmp(k->name, "moe_latent_size") || !strcmp(k->name, "sliding_window")))
        return json_null();
    switch (k->type) {
    case 'i': return json_integer(i);
    case 'r': return json_real(*(const double *)value);
    case 'b': return json_boolean(*(const bool *)value);
    default: return json_string(*(const char *const *)value);
    }
}

/* Whether what was read says the same, however it is spelled. */
static bool says(const struct config *c, const struct deck_key *k, const json_t *v,
                 const void *value) {
    if (!strcmp(k->name, "time_step_limit")) {
        double lo = 0, hi = INFINITY;
        if (!json_is_null(v) && (!config_json_number(json_array_get(v, 0), &lo) ||
                                 !config_json_number(json_array_get(v, 1), &hi)))
            return false;
        if (lo < 0) lo = 0;
        return lo == c->dt_min && hi == c->dt_max;
    }
    if (json_is_null(v)) {
        char *text = deck_value_text(k, value);
        bool same = !strcmp(text, "0") || !strcmp(text, k->def);
        free(text);
        if (!strcmp(k->name, "num_key_value_heads"))
            same = c->keys.num_key_value_heads == c->keys.num_attention_heads;
        return same;
    }
    switch (k->type) {
    case 'i': return json_is_integer(v) && json_integer_value(v) == *(const int64_t *)value;
    case 'r': return json_is_number(v) && json_number_value(v) == *(const double *)value;
    case 'b': return json_is_boolean(v) && json_is_true(v) == *(const bool *)value;
    default: return json_is_string(v) && !strcmp(json_string_value(v), *(const char *const *)value);
    }
}

static bool is_default(const struct deck_key *k, const void *value) {
    char *text = deck_value_text(k, value);
    double a = strtod(text, NULL), b = strtod(k->def, NULL);
    bool same = !strcmp(text, k->def) || ((k->type == 'r' || k->type == 'i') && a == b);
    free(text);
    return same;
}

static void put_kinds(const struct config *c, json_t *root, bool mtp) {
    const char *list_key = mtp ? "mtp_layers_block_type" : "layers_block_type";
    const char *text_key = mtp ? "mtp_hybrid_override_pattern" : "hybrid_override_pattern";
    int depths = (int)c->keys.num_nextn_predict_layers,
        n = mtp ? (depths ? c->n_mtp / depths : 0) : c->n_layers;
    const char *kinds = mtp ? c->mtp_kinds : c->kinds;
    char *text = die_format("%.*s", n, kinds), *was = NULL;
    struct config_file f = {.root = root};
    free(config_json_kinds(&f, list_key, text_key, &was));
    const char *name = config_json_name(root, list_key);
    bool has_text = is_set(root, text_key);
    bool same = n == 0 || (was && !strcmp(was, text)) || (mtp && !was && !strcmp(text, "*E"));
    if (!c->kept || !same) {
        if (!c->kept || name || !has_text)
            json_object_set_new(root, name ? name : list_key, words_of(kinds, n));
        if (!c->kept || has_text) json_object_set_new(root, text_key, json_string(text));
        if (!mtp && (!c->kept || json_object_get(root, "num_hidden_layers")))
            json_object_set_new(root, "num_hidden_layers", json_integer(n));
    }
    free(text);
    free(was);
}

static void put_rows(const struct config *c, json_t *root) {
    size_t base = offsetof(struct deck, model);
    for (int i = 0; i < deck_table_n; i++) {
        const struct deck_key *k = &deck_table[i];
        const void *value = (const char *)&c->keys + (k->at - base);
        if (strcmp(k->section, "model") || config_json_row(k->name) < 0) continue;
        if (strstr(k->name, "pattern") || strstr(k->name, "layers_block_type") ||
            !strcmp(k->name, "num_hidden_layers"))
            continue;
        const char *name = config_json_name(root, k->name);
        bool limit = !strcmp(k->name, "time_step_limit");
        if (name && says(c, k, json_object_get(root, name), value)) continue;
        if (c->kept && !name && (limit ? c->dt_min <= 0 && isinf(c->dt_max) : is_default(k, value)))
            continue;
        json_object_set_new(root, name ? name : k->name, value_json(c, k, value));
    }
}

static json_t *id_json(int32_t id) {
    return id < 0 ? json_null() : json_integer(id);
}

/* The ids of a tokenizer that the model did not come with. Nothing in the folder would tell later
 * that texts are bytes, so the key mestar_tokenizer does, which other programs keep without reading
 * it. */
static void put_tokenizer(const struct config *c, json_t *root) {
    const struct vocabulary *v = &c->vocabulary;
    bool bytes = !strcmp(c->keys.tokenizer, "bytes");
    bool known = bytes || (v->tokenizer && v->end >= 0);
    if (bytes) json_object_set_new(root, "mestar_tokenizer", json_string("bytes"));
    else json_object_del(root, "mestar_tokenizer");
    if (c->kept && (!known || v->own)) return;
    /* Without a tokenizer, what transformers would assume. */
    json_object_set_new(root, "bos_token_id",
                        bytes   ? json_integer(256)
                        : known ? id_json(v->begin)
                                : json_integer(1));
    json_object_set_new(root, "eos_token_id", json_integer(bytes ? 256 : known ? v->end : 2));
    json_object_set_new(root, "pad_token_id", known ? json_null() : json_integer(0));
}

json_t *config_json(const struct config *c) {
    json_t *root = c->kept ? json_deep_copy(c->kept) : json_object();
    if (!root) die("no memory for a config.json");
    if (!c->kept) {
        json_object_set_new(root, "architectures", json_pack("[s]", "NemotronHForCausalLM"));
        json_object_set_new(root, "model_type", json_string("nemotron_h"));
    }
    const char *dtype = json_object_get(root, "torch_dtype") && !json_object_get(root, "dtype")
                            ? "torch_dtype"
                            : "dtype";
    if (c->dtype) json_object_set_new(root, dtype, json_string(c->dtype));
    put_kinds(c, root, false);
    put_rows(c, root);
    if (c->n_mtp) put_kinds(c, root, true);
    put_tokenizer(c, root);
    if (!c->kept) {
        json_object_set_new(root, "use_cache", json_true());
        /* There always is one; converters of other programs want to read it. */
        if (strchr(c->kinds, 'E')) json_object_set_new(root, "n_shared_experts", json_integer(1));
    }
    return root;
}

char *config_text(const struct config *c) {
    json_t *root = config_json(c);
    char *text = NULL;
    /* The fewest digits that read back as the same numbers. */
    for (size_t digits = 15; digits <= 17 && !text; digits++) {
        json_error_t error;
        text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(digits));
        json_t *again = text ? json_loads(text, 0, &error) : NULL;
        if (!text || (!json_equal(again, root) && digits < 17)) {
            free(text);
            text = NULL;
        }
        json_decref(again);
    }
    json_decref(root);
    if (!text) die("no memory for a config.json");
    char *line = die_format("%s\n", text);
    free(text);
    return line;
}
