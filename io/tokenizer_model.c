#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/tokenizer_load.h"
#include "kernels/die.h"

static void load_vocabulary(struct loader *l, struct bpe *b, const json_t *vocabulary) {
    const char *token;
    json_t *v;
    if (!json_is_object(vocabulary)) {
        complain(l, "model.vocab", "must be an object of tokens and ids");
        return;
    }
    json_object_foreach((json_t *)vocabulary, token, v) {
        json_int_t id = json_integer_value(v);
        if (!json_is_integer(v) || id < 0 || id >= MOST_IDS) {
            complain(l, "model.vocab", "the id of \"%.60s\" must be a number from 0 to %d", token,
                     MOST_IDS - 1);
            return;
        }
        strings_add(&b->tokens, token, strlen(token), (int32_t)id);
        if (id >= b->n_ids) b->n_ids = (int32_t)id + 1;
    }
    if (!b->tokens.n) {
        complain(l, "model.vocab", "is empty");
        return;
    }
    uint8_t *taken = die_alloc((size_t)b->n_ids);
    for (uint32_t i = 0; i < b->tokens.n && !l->bad; i++) {
        if (taken[b->tokens.entry[i].id]++)
            complain(l, "model.vocab", "two tokens have the id %d", b->tokens.entry[i].id);
    }
    free(taken);
}

/* The two halves of a merge: ["a", "b"] or "a b". */
static bool halves(const json_t *v, struct utf8_text *left, struct utf8_text *right) {
    left->n = right->n = 0;
    if (json_is_array(v)) {
        const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
        if (json_array_size(v) != 2 || !json_is_string(a) || !json_is_string(b)) return false;
        utf8_text_add(left, json_string_value(a), json_string_length(a));
        utf8_text_add(right, json_string_value(b), json_string_length(b));
        return true;
    }
    if (!json_is_string(v)) return false;
    const char *s = json_string_value(v), *space = strchr(s, ' ');
    if (!space || strchr(space + 1, ' ')) return false;
    utf8_text_add(left, s, (size_t)(space - s));
    utf8_text_add(right, space + 1, strlen(space + 1));
    return true;
}

static void load_merges(struct loader *l, struct bpe *b, const json_t *merges) {
    struct utf8_text left = {0}, right = {0};
    size_t n = json_array_size(merges);
    uint32_t rank = 0;
    if (!json_is_array(merges)) {
        complain(l, "model.merges", "must be a list of pairs");
        return;
    }
    bpe_merges_begin(b, n);
    for (size_t i = 0; i < n && !l->bad; i++) {
        const json_t *v = json_array_get(merges, i);
        if (json_is_string(v) && !strncmp(json_string_value(v), "#version", 8)) continue;
        char field[40];
        snprintf(field, sizeof field, "model.merges[%zu]", i);
        if (!halves(v, &left, &right) || right.n < b->prefix.n ||
            json_typeof(v) != json_typeof(json_array_get(merges, n - 1))) {
            complain(l, field, "must be two tokens");
            break;
        }
        int32_t a = strings_find(&b->tokens, left.at, left.n),
                c = strings_find(&b->tokens, right.at, right.n);
        utf8_text_add(&left, right.at + b->prefix.n, right.n - b->prefix.n);
        int32_t made = strings_find(&b->tokens, left.at, left.n);
        if (a == NO_ID || c == NO_ID || made == NO_ID)
            complain(l, field, "names a token that is not in the vocabulary (%.60s)",
                     json_is_string(v) ? json_string_value(v)
                                       : json_string_value(json_array_get(v, a == NO_ID ? 0 : 1)));
        else bpe_merge_add(b, a, c, rank++, made);
    }
    utf8_text_free(&left);
    utf8_text_free(&right);
}

static void optional_string(struct loader *l, const json_t *model, const char *key,
                            struct utf8_text *to) {
    const json_t *v = json_object_get(model, key);
    if (!v || json_is_null(v)) return;
    if (!json_is_string(v)) complain(l, "model", "%s must be a string or null", key);
    else utf8_text_add(to, json_string_value(v), json_string_length(v));
}

static bool optional_bool(struct loader *l, const json_t *model, const char *key) {
    const json_t *v = json_object_get(model, key);
    return v && !json_is_null(v) && take_bool(l, "model", model, key, 0);
}

void load_model(struct loader *l, struct tokenizer *t, const json_t *model) {
    struct bpe *b = &t->bpe;
    const json_t *type = json_object_get(model, "type"),
                 *dropout = json_object_get(model, "dropout");
    struct utf8_text unk = {0};
    /* Old files do not name the type; only BPE has merges. */
    if (!json_is_object(model) ||
        (type ? !json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0
              : !json_object_get(model, "merges"))) {
        complain(l, "model.type", "%.40s is not built, only BPE is",
                 json_is_string(type) ? json_string_value(type) : "what it says");
        return;
    }
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0))
        complain(l, "model.dropout", "must be null: merges are never left out by chance here");
    optional_string(l, model, "unk_token", &unk);
    optional_string(l, model, "continuing_subword_prefix", &b->prefix);
    optional_string(l, model, "end_of_word_suffix", &b->suffix);
    b->fuse_unk = optional_bool(l, model, "fuse_unk");
    b->byte_fallback = optional_bool(l, model, "byte_fallback");
    b->ignore_merges = optional_bool(l, model, "ignore_merges");
    b->bytes = t->splitter.bytes_last;
    load_vocabulary(l, b, json_object_get(model, "vocab"));
    if (!l->bad) load_merges(l, b, json_object_get(model, "merges"));
    if (!l->bad) bpe_finish(b);
    b->unk = unk.n ? strings_find(&b->tokens, unk.at, unk.n) : NO_ID;
    if (!l->bad && unk.n && b->unk == NO_ID) {
        bool needless = b->bytes && b->bytes_known;
        for (int i = 0; b->byte_fallback && i < 256 && !needless; i++) {
            if (b->fallback[i] == NO_ID) break;
            needless = i == 255;
        }
        if (!needless) complain(l, "model.unk_token", "%.60s is not in the vocabulary", unk.at);
    }
    utf8_text_free(&unk);
}

/* ------------------------------------------------------------------------------------- added
 * tokens */
static void load_one(struct loader *l, struct tokenizer *t, const char *field, const json_t *o,
                     int32_t *next, struct normalise_scratch *scratch) {
    size_t n;
    const char *content = take_string(l, field, o, "content", &n);
    struct added a = {.single_word = take_bool(l, field, o, "single_word", -1),
                      .lstrip = take_bool(l, field, o, "lstrip", -1),
                      .rstrip = take_bool(l, field, o, "rstrip", -1)};
    bool normalized = take_bool(l, field, o, "normalized", -1),
         special = take_bool(l, field, o, "special", -1);
    const json_t *id = json_object_get(o, "id");
    if (!json_is_integer(id)) complain(l, field, "id must be a number");
    if (!n || l->bad) return; /* the package passes over empty ones */
    a.id = strings_find(&t->bpe.tokens, content, n);
    if (a.id == NO_ID) a.id = (*next)++;
    /* The package numbers tokens as they come, whatever the file says; a file that says otherwise
     * is misunderstood. */
    if (json_integer_value(id) != a.id)
        complain(l, field, "\"%.60s\" has the id %lld, by its place it has %d", content,
                 (long long)json_integer_value(id), a.id);
    if (!strings_add(&t->names, content, n, a.id))
        complain(l, field, "\"%.60s\" is there twice", content);
    struct piece p = {content, n, 0};
    if (normalized && !normalise(&t->normaliser, scratch, &p))
        complain(l, field, "cannot be normalised");
    if (l->bad) return;
    t->added = die_realloc(t->added, (size_t)(t->n_added + 1) * sizeof *t->added);
    struct added_token *k = &t->added[t->n_added++];
    *k = (struct added_token){.id = a.id, .special = special};
    utf8_text_add(&k->content, content, n);
    utf8_text_add(&k->shown, p.at, p.n);
    if (!words_add(normalized ? &t->after : &t->before, p.at, p.n, a))
        complain(l, field, "\"%.60s\" is empty, or the same as another, once it is normalised",
                 content);
}

void load_added(struct loader *l, struct tokenizer *t, const json_t *list) {
    struct normalise_scratch scratch = {.matcher = matcher_make()};
    int32_t next = (int32_t)t->bpe.tokens.n;
    if (!json_is_array(list)) complain(l, "added_tokens", "must be a list");
    if (json_array_size(list) > MOST_IDS / 2) complain(l, "added_tokens", "are too many");
    for (size_t i = 0; i < json_array_size(list) && !l->bad; i++) {
        char field[40];
        snprintf(field, sizeof field, "added_tokens[%zu]", i);
        load_one(l, t, field, json_array_get(list, i), &next, &scratch);
    }
    matcher_free(scratch.matcher);
    normalise_scratch_free(&scratch);
}

/* -----------------------------------------------------------------------------------
 * post-processor */
static void put_id(struct loader *l, struct ids *to, const json_t *id) {
    json_int_t v = json_integer_value(id);
    if (!json_is_integer(id) || v < 0 || v >= MOST_IDS)
        complain(l, "post_processor", "an id is not one");
    else ids_add(to, (int32_t)v);
}

static void load_template(struct loader *l, struct tokenizer *t, const json_t *post) {
    const json_t *single = json_object_get(post, "single"),
                 *tokens = json_object_get(post, "special_tokens");
    struct ids *to = &t->ahead;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i), *o = json_object_get(piece, "Sequence");
        const char *id = json_string_value(
            json_object_get(o ? o : json_object_get(piece, "SpecialToken"), "id"));
        if (o && id && !strcmp(id, "A") && to == &t->ahead) {
            to = &t->behind;
            continue;
        }
        const json_t *ids = o || !id ? NULL : json_object_get(json_object_get(tokens, id), "ids");
        if (!json_is_array(ids)) {
            complain(l, "post_processor.single", "must be special tokens around one sequence A");
            return;
        }
        for (size_t j = 0; j < json_array_size(ids); j++) put_id(l, to, json_array_get(ids, j));
    }
    if (to == &t->ahead) complain(l, "post_processor.single", "does not hold the sequence A");
}

static bool load_processor(struct loader *l, struct tokenizer *t, const json_t *post, int depth) {
    size_t n;
    const char *type = take_string(l, "post_processor", post, "type", &n);
    if (!strcmp(type, "ByteLevel"))
        return false; /* only moves offsets, which nobody here asks for */
    if (!strcmp(type, "TemplateProcessing")) load_template(l, t, post);
    else if (!strcmp(type, "RobertaProcessing") || !strcmp(type, "BertProcessing")) {
        put_id(l, &t->ahead, json_array_get(json_object_get(post, "cls"), 1));
        put_id(l, &t->behind, json_array_get(json_object_get(post, "sep"), 1));
    } else if (!strcmp(type, "Sequence") && depth < 8) {
        const json_t *list = json_object_get(post, "processors");
        bool any = false;
        if (!json_is_array(list)) complain(l, "post_processor", "processors must be a list");
        for (size_t i = 0; i < json_array_size(list) && !l->bad; i++) {
            bool one = load_processor(l, t, json_array_get(list, i), depth + 1);
            if (any && one)
                complain(l, "post_processor", "more than one that adds tokens is not built");
            any = any || one;
        }
        return any;
    } else
        complain(l, "post_processor",
                 "%.40s is not built (those of this program: TemplateProcessing, ByteLevel, "
                 "RobertaProcessing, BertProcessing, Sequence)",
                 type);
    return true;
}

void load_post(struct loader *l, struct tokenizer *t, const json_t *post) {
    load_processor(l, t, post, 0);
}
