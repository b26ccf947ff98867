#include "io/tokenizer_load.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/mistakes.h"
#include "kernels/die.h"

enum { FIELD = 160, DEEPEST = 8, MOST_STEPS = 64 };
static const int64_t most_bytes = (int64_t)1 << 30;

void complain(struct loader *l, const char *field, const char *fmt, ...) {
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    mistake(l->m, l->path, 0, "%s: %s", field, text);
    l->bad = true;
}

bool take_bool(struct loader *l, const char *field, const json_t *o, const char *key, int missing) {
    const json_t *v = json_object_get(o, key);
    if (!v && missing >= 0) return missing;
    if (!json_is_boolean(v)) complain(l, field, "%s must be true or false", key);
    return json_is_true(v);
}

const char *take_string(struct loader *l, const char *field, const json_t *o, const char *key,
                        size_t *n) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v)) complain(l, field, "%s must be a string", key);
    *n = json_is_string(v) ? json_string_length(v) : 0;
    return json_is_string(v) ? json_string_value(v) : "";
}

/* The one character a field must hold. */
static uint32_t take_character(struct loader *l, const char *field, const json_t *o,
                               const char *key) {
    size_t n;
    int bytes = 0;
    const char *s = take_string(l, field, o, key, &n);
    uint32_t c = n ? utf8_at((const uint8_t *)s, &bytes) : 0;
    if ((size_t)bytes != n || !n) complain(l, field, "%s must be one character", key);
    return c;
}

static struct pattern *take_pattern(struct loader *l, const char *field, const json_t *o) {
    const json_t *p = json_object_get(o, "pattern");
    const json_t *literal = json_object_get(p, "String"), *regex = json_object_get(p, "Regex");
    const json_t *v = literal ? literal : regex;
    char why[200];
    if (!json_is_string(v) || json_object_size(p) != 1) {
        complain(l, field, "pattern must be {\"String\": ...} or {\"Regex\": ...}");
        return NULL;
    }
    struct pattern *k =
        pattern_compile(json_string_value(v), json_string_length(v), v == literal, why, sizeof why);
    if (!k) complain(l, field, "pattern %.100s %s", json_string_value(v), why);
    return k;
}

/* The type of one link of a chain. If it is a Sequence, `items` is its list. NULL after a complaint. */
static const char *take_type(struct loader *l, const char *field, const json_t *o, int depth,
                             const char *list_key, const json_t **items) {
    size_t n;
    const char *type = take_string(l, field, o, "type", &n);
    *items = NULL;
    if (depth > DEEPEST) {
        complain(l, field, "is nested too deeply");
        return NULL;
    }
    if (strcmp(type, "Sequence") != 0) return *type ? type : NULL;
    *items = json_object_get(o, list_key);
    if (!json_is_array(*items)) {
        complain(l, field, "%s must be a list", list_key);
        return NULL;
    }
    return type;
}

static int word_in(const char *word, int n, const char *const *words) {
    for (int i = 0; i < n; i++)
        if (!strcmp(words[i], word)) return i;
    return -1;
}

/* ---------------------------------------------------------------------------------------- normaliser */
static void load_normaliser(struct loader *l, struct normaliser *to, const char *field,
                            const json_t *o, int depth) {
    static const char *const kinds[] = {"NFC",     "NFD",     "NFKC",  "NFKD",         "Lowercase",
                                        "Replace", "Prepend", "Strip", "StripAccents", "ByteLevel"};
    const json_t *items;
    const char *type = take_type(l, field, o, depth, "normalizers", &items);
    char inner[FIELD];
    if (!type) return;
    for (size_t i = 0; i < json_array_size(items) && !l->bad; i++) {
        snprintf(inner, sizeof inner, "%.100s[%zu]", field, i);
        load_normaliser(l, to, inner, json_array_get(items, i), depth + 1);
    }
    if (items) return;
    int kind = word_in(type, 10, kinds);
    if (kind < 0) {
        complain(l, field,
                 "the normalizer %.40s is not built (those of this program: NFC, NFD, NFKC, NFKD, "
                 "Lowercase, "
                 "Replace, Prepend, Strip, StripAccents, ByteLevel, Sequence)",
                 type);
        return;
    }
    if (to->n == MOST_STEPS) {
        complain(l, field, "more than %d normalizers", MOST_STEPS);
        return;
    }
    to->steps = die_realloc(to->steps, (size_t)(to->n + 1) * sizeof *to->steps);
    struct step *s = &to->steps[to->n++];
    *s = (struct step){.kind = (enum step_kind)kind};
    if (s->kind == STEP_REPLACE) s->pattern = take_pattern(l, field, o);
    if (s->kind == STEP_REPLACE || s->kind == STEP_PREPEND) {
        size_t n;
        const char *content =
            take_string(l, field, o, s->kind == STEP_REPLACE ? "content" : "prepend", &n);
        utf8_text_add(&s->content, content, n);
    }
    if (s->kind != STEP_STRIP) return;
    s->left = take_bool(l, field, o, "strip_left", -1);
    s->right = take_bool(l, field, o, "strip_right", -1);
}

/* ------------------------------------------------------------------------------------ pre-tokeniser */
static enum behaviour take_behaviour(struct loader *l, const char *field, const json_t *o,
                                     bool needed) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    size_t n;
    if (!needed && !json_object_get(o, "behavior")) return ISOLATED;
    int i = word_in(take_string(l, field, o, "behavior", &n), 5, names);
    if (i < 0)
        complain(
            l, field,
            "behavior must be Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
    return i < 0 ? ISOLATED : (enum behaviour)i;
}

static void take_metaspace(struct loader *l, const char *field, const json_t *o,
                           uint32_t *character, int *prepend) {
    static const char *const schemes[] = {"always", "first", "never"};
    const json_t *scheme = json_object_get(o, "prepend_scheme"),
                 *old = json_object_get(o, "add_prefix_space");
    *character = take_character(l, field, o, "replacement");
    *prepend = scheme ? word_in(json_is_string(scheme) ? json_string_value(scheme) : "", 3, schemes)
                      : ALWAYS;
    if (*prepend < 0) {
        complain(l, field, "prepend_scheme must be always, first or never");
        *prepend = NEVER;
    }
    if (json_is_false(old) && *prepend != NEVER) {
        if (scheme) complain(l, field, "add_prefix_space and prepend_scheme contradict each other");
        else complain(l, field, "add_prefix_space is false without prepend_scheme never");
    }
}

static struct stage *stage_add(struct loader *l, struct splitter *to, const char *field) {
    bool write = to->n > 0 && to->stages[to->n - 1].kind == STAGE_BYTES;
    if (to->n + 1 + write > MOST_STAGES) {
        complain(l, field, "more than %d pre-tokenizers", MOST_STAGES);
        return NULL;
    }
    if (write) to->stages[to->n++] = (struct stage){.kind = STAGE_WRITE_BYTES};
    to->stages[to->n] = (struct stage){0};
    return &to->stages[to->n++];
}

static void load_splitter(struct loader *l, struct splitter *to, const char *field, const json_t *o,
                          int depth) {
    static const char *const kinds[] = {"Split",      "ByteLevel",       "Digits",     "Metaspace",
                                        "Whitespace", "WhitespaceSplit", "Punctuation"};
    static const char gpt2[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    const json_t *items;
    const char *type = take_type(l, field, o, depth, "pretokenizers", &items);
    char inner[FIELD], why[200];
    if (!type) return;
    for (size_t i = 0; i < json_array_size(items) && !l->bad; i++) {
        snprintf(inner, sizeof inner, "%.100s[%zu]", field, i);
        load_splitter(l, to, inner, json_array_get(items, i), depth + 1);
    }
    if (items) return;
    int kind = word_in(type, 7, kinds), prepend = 0;
    if (kind < 0) {
        complain(l, field,
                 "the pre-tokenizer %.40s is not built (those of this program: Split, ByteLevel, "
                 "Digits, "
                 "Metaspace, Whitespace, WhitespaceSplit, Punctuation, Sequence)",
                 type);
        return;
    }
    struct stage *s = stage_add(l, to, field);
    if (!s) return;
    s->kind = (enum stage_kind)kind;
    switch (s->kind) {
    case STAGE_SPLIT:
        s->behaviour = take_behaviour(l, field, o, true);
        s->invert = take_bool(l, field, o, "invert", -1);
        s->pattern = take_pattern(l, field, o);
        break;
    case STAGE_BYTES:
        s->behaviour = ISOLATED;
        s->prefix_space = take_bool(l, field, o, "add_prefix_space", -1);
        if (take_bool(l, field, o, "use_regex", true))
            s->pattern = pattern_compile(gpt2, sizeof gpt2 - 1, false, why, sizeof why);
        break;
    case STAGE_DIGITS: s->each = take_bool(l, field, o, "individual_digits", -1); break;
    case STAGE_PUNCTUATION: s->behaviour = take_behaviour(l, field, o, false); break;
    case STAGE_METASPACE:
        take_metaspace(l, field, o, &s->character, &prepend);
        s->prepend = prepend;
        s->each = take_bool(l, field, o, "split", true);
        break;
    default: break;
    }
}

/* ------------------------------------------------------------------------------------------ decoder */
static int take_count(struct loader *l, const char *field, const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || n > 1000000) {
        complain(l, field, "%s must be a number from 0", key);
        return 0;
    }
    return (int)n;
}

static void load_chain(struct loader *l, struct chain *to, const char *field, const json_t *o,
                       int depth) {
    static const char *const kinds[] = {"",        "ByteLevel", "ByteFallback", "Fuse",
                                        "Replace", "Strip",     "Metaspace",    "BPEDecoder"};
    const json_t *items;
    const char *type = take_type(l, field, o, depth, "decoders", &items), *content;
    char inner[FIELD];
    size_t n;
    int kind, prepend;
    if (!type) return;
    for (size_t i = 0; i < json_array_size(items) && !l->bad; i++) {
        snprintf(inner, sizeof inner, "%.100s[%zu]", field, i);
        load_chain(l, to, inner, json_array_get(items, i), depth + 1);
    }
    if (items) return;
    if ((kind = word_in(type, 8, kinds)) < 0) {
        complain(
            l, field,
            "the decoder %.40s is not built (those of this program: ByteLevel, ByteFallback, Fuse, "
            "Replace, Strip, Metaspace, BPEDecoder, Sequence)",
            type);
        return;
    }
    if (to->n == MOST_MACHINES) {
        complain(l, field, "more than %d decoders", MOST_MACHINES);
        return;
    }
    struct machine *m = &to->machines[to->n++];
    *m = (struct machine){.kind = (enum machine_kind)kind};
    switch (m->kind) {
    case MACHINE_REPLACE:
    case MACHINE_BPE:
        if (m->kind == MACHINE_REPLACE) m->pattern = take_pattern(l, field, o);
        content = take_string(l, field, o, m->kind == MACHINE_REPLACE ? "content" : "suffix", &n);
        utf8_text_add(&m->content, content, n);
        break;
    case MACHINE_STRIP:
        m->character = take_character(l, field, o, "content");
        m->start = take_count(l, field, o, "start");
        m->stop = take_count(l, field, o, "stop");
        break;
    case MACHINE_METASPACE:
        take_metaspace(l, field, o, &m->character, &prepend);
        m->drop_first = prepend != NEVER;
        break;
    default: break;
    }
}

/* ------------------------------------------------------------------------------------------- the file */
static const json_t *part(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return json_is_null(v) ? NULL : v;
}

static void load_parts(struct loader *l, struct tokenizer *t, const json_t *root) {
    const json_t *v;
    if (!json_is_object(root)) {
        complain(l, "the file", "is not an object");
        return;
    }
    if ((v = part(root, "version")) &&
        (!json_is_string(v) || strcmp(json_string_value(v), "1.0") != 0))
        complain(l, "version", "must be 1.0");
    if (part(root, "truncation"))
        complain(l, "truncation", "must be null: texts are never cut short here");
    if (part(root, "padding")) complain(l, "padding", "must be null: texts are never padded here");
    if ((v = part(root, "normalizer"))) load_normaliser(l, &t->normaliser, "normalizer", v, 0);
    if ((v = part(root, "pre_tokenizer"))) load_splitter(l, &t->splitter, "pre_tokenizer", v, 0);
    if ((v = part(root, "decoder"))) load_chain(l, &t->chain, "decoder", v, 0);
    else t->chain = (struct chain){.n = 1, .machines[0].kind = MACHINE_JOIN};
    splitter_finish(&t->splitter);
    load_model(l, t, part(root, "model"));
    if (l->bad) return;
    if ((v = part(root, "added_tokens"))) load_added(l, t, v);
    if (!l->bad && (v = part(root, "post_processor"))) load_post(l, t, v);
}

int tokenizer_load(struct tokenizer *t, const char *path, struct mistakes *m) {
    struct loader l = {path, m, false};
    char why[WHY_BYTES];
    int64_t n;
    char *text = file_text(path, most_bytes, &n, why);
    json_t *root = text ? json_read(text, (size_t)n, why) : NULL;
    if (!root) mistake(m, path, 0, "%s", why);
    else {
        t->hash = XXH3_64bits(text, (size_t)n);
        load_parts(&l, t, root);
    }
    bool bad = !root || l.bad;
    json_decref(root);
    free(text);
    return bad ? -1 : 0;
}
