#include "io/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/files.h"
#include "io/json.h"
#include "kernels/mistakes.h"
#include "io/tokenizer_load.h"
#include "kernels/die.h"

enum { END_OF_BYTES = 256 };

void ids_reserve(struct ids *ids, int64_t more) {
    if (ids->room - ids->n >= more) return;
    ids->room += ids->room / 2 + more + 64;
    ids->at = die_realloc(ids->at, (size_t)ids->room * sizeof *ids->at);
}

void ids_free(struct ids *ids) {
    free(ids->at);
    *ids = (struct ids){0};
}

void ids_add_all(struct ids *to, const struct ids *from) {
    ids_reserve(to, from->n);
    if (from->n) memcpy(to->at + to->n, from->at, (size_t)from->n * sizeof *to->at);
    to->n += from->n;
}

/* --------------------------------------------------------------------------------- opening and asking */
/* What both kinds of file say of a token: "name" or {"content": "name", ...}. */
static void read_special(struct tokenizer *t, const json_t *root, const char *key, int32_t *id) {
    const json_t *v = json_object_get(root, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    if (*id < 0 && json_is_string(v)) *id = tokenizer_id(t, json_string_value(v));
}

static void read_config(struct tokenizer *t, const char *folder, const char *name,
                        struct mistakes *m) {
    char why[WHY_BYTES], *path = die_format("%s/%s", folder, name);
    int64_t n;
    if (file_exists(path)) {
        char *text = file_text(path, 1 << 28, &n, why);
        json_t *root = text ? json_read(text, (size_t)n, why) : NULL;
        if (!root) mistake(m, path, 0, "%s", why);
        read_special(t, root, "bos_token", &t->bos);
        read_special(t, root, "eos_token", &t->eos);
        json_decref(root);
        free(text);
    }
    free(path);
}

/* Ids of both kinds of tokens side by side, and which of them decoding may leave out. */
static void tables_make(struct tokenizer *t) {
    struct strings special = {0};
    t->n_ids = t->bpe.n_ids;
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].id >= t->n_ids) t->n_ids = t->added[i].id + 1;
    t->added_of = die_alloc((size_t)t->n_ids * sizeof *t->added_of);
    t->skipped = die_alloc((size_t)t->n_ids * sizeof *t->skipped);
    for (int i = 0; i < t->n_added; i++) {
        t->added_of[t->added[i].id] = i + 1;
        if (t->added[i].special)
            strings_add(&special, t->added[i].content.at, t->added[i].content.n, 0);
    }
    /* By what is shown, as the package does: a special token that normalisation changes is not left out. */
    for (int i = 0; i < t->n_added; i++)
        t->skipped[t->added[i].id] =
            strings_find(&special, t->added[i].shown.at, t->added[i].shown.n) != NO_ID;
    strings_free(&special);
}

struct tokenizer *tokenizer_open(const char *path, struct mistakes *m) {
    struct tokenizer *t = die_alloc(sizeof *t);
    t->bos = t->eos = -1;
    if (!strcmp(path, "bytes")) {
        t->built_in = true;
        t->n_ids = END_OF_BYTES + 1;
        t->eos = END_OF_BYTES;
        t->chain = (struct chain){.n = 1, .machines[0].kind = MACHINE_BYTES};
        return t;
    }
    struct stat s;
    bool folder = stat(path, &s) == 0 && S_ISDIR(s.st_mode);
    char *file = folder ? die_format("%s/tokenizer.json", path) : die_strdup(path);
    int before = m->n;
    if (tokenizer_load(t, file, m) == 0) {
        tables_make(t);
        if (folder) {
            read_config(t, path, "tokenizer_config.json", m);
            read_config(t, path, "special_tokens_map.json", m);
        }
    }
    free(file);
    if (m->n == before) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    bpe_free(&t->bpe);
    for (int i = 0; i < t->n_added; i++) {
        utf8_text_free(&t->added[i].content);
        utf8_text_free(&t->added[i].shown);
    }
    free(t->added);
    strings_free(&t->names);
    free(t->added_of);
    free(t->skipped);
    words_free(&t->before);
    words_free(&t->after);
    normaliser_free(&t->normaliser);
    splitter_free(&t->splitter);
    chain_free(&t->chain);
    ids_free(&t->ahead);
    ids_free(&t->behind);
    free(t);
}

int32_t tokenizer_size(const struct tokenizer *t) {
    return t->n_ids;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token) {
    int32_t id = strings_find(&t->names, token, strlen(token));
    return id != NO_ID ? id : strings_find(&t->bpe.tokens, token, strlen(token));
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *n) {
    if (id < 0 || id >= t->n_ids || t->built_in) return NULL;
    if (!t->added_of[id]) return bpe_token(&t->bpe, id, n);
    const struct utf8_text *content = &t->added[t->added_of[id] - 1].content;
    *n = content->n;
    return content->at;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    if (t->built_in) return id == END_OF_BYTES;
    return id >= 0 && id < t->n_ids && t->skipped[id];
}

uint64_t tokenizer_hash(const struct tokenizer *t) {
    return t->hash;
}

int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t) {
    return t->eos;
}

/* ----------------------------------------------------------------------------------------- decoding */
struct detokenizer {
    const struct tokenizer *t;
    bool skip_special;
    struct chain_state state;
};

struct detokenizer *detokenizer_make(const struct tokenizer *t, bool skip_special) {
    struct detokenizer *d = die_alloc(sizeof *d);
    d->t = t;
    d->skip_special = skip_special;
    chain_begin(&d->state, &t->chain);
    return d;
}

void detokenizer_push(struct detokenizer *d, int32_t id, struct utf8_text *to) {
    const struct tokenizer *t = d->t;
    if (id < 0 || id >= t->n_ids) return;
    if (t->built_in) {
        char character[4];
        if (id < END_OF_BYTES)
            chain_token(&d->state, character,
                        (size_t)utf8_put(byte_character((uint8_t)id), character), to);
        return;
    }
    if (d->skip_special && t->skipped[id]) return;
    size_t n;
    if (t->added_of[id]) {
        const struct utf8_text *shown_as = &t->added[t->added_of[id] - 1].shown;
        chain_token(&d->state, shown_as->at, shown_as->n, to);
    } else {
        const char *token = bpe_token(&t->bpe, id, &n);
        if (token) chain_token(&d->state, token, n, to);
    }
}

void detokenizer_finish(struct detokenizer *d, struct utf8_text *to) {
    chain_finish(&d->state, to);
}

void detokenizer_free(struct detokenizer *d) {
    if (!d) return;
    chain_state_free(&d->state);
    free(d);
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                      struct utf8_text *to) {
    struct detokenizer *d = detokenizer_make(t, skip_special);
    for (int64_t i = 0; i < n; i++) detokenizer_push(d, ids[i], to);
    detokenizer_finish(d, to);
    detokenizer_free(d);
}
