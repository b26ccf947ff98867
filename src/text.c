#include "src/text.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "kernels/mistakes.h"
#include "io/tokenizer.h"
#include "kernels/die.h"
#include "src/config.h"
#include "src/config_json.h"

enum { LARGEST = 16 << 20 };

/* ---- ends ---- */

static void add_end(struct text *x, const json_t *v) {
    if (!json_is_integer(v)) return;
    x->ends = die_realloc(x->ends, (unsigned long)(x->n_ends + 1) * sizeof *x->ends);
    x->ends[x->n_ends++] = json_integer_value(v);
}

static int take_ends(struct text *x, const json_t *v, const char *path, struct mistakes *m) {
    bool good = !v || json_is_null(v) || json_is_integer(v) || json_is_array(v);
    for (size_t i = 0; i < json_array_size(v); i++) {
        good &= json_is_integer(json_array_get(v, i));
        add_end(x, json_array_get(v, i));
    }
    add_end(x, v);
    if (!good) mistake(m, path, 0, "eos_token_id is neither a whole number nor a list of them");
    return good ? 0 : -1;
}

/* eos_token_id of the folder's generation_config.json, if it has that; a reference. */
static int generation_config(const char *folder, json_t **root, char **path, struct mistakes *m) {
    char why[WHY_BYTES];
    int64_t bytes;
    json_error_t error;
    *path = die_format("%s/generation_config.json", folder);
    if (!file_exists(*path)) return 0;
    char *text = file_text(*path, LARGEST, &bytes, why);
    if (!text) mistake(m, *path, 0, "%s", why);
    else if (!(*root = config_json_parse(text, (size_t)bytes, &error)))
        mistake(m, *path, error.line, "is not JSON: %s", error.text);
    free(text);
    return *root ? 0 : -1;
}

static void end_of_tokenizer(struct text *x, const struct vocabulary *v) {
    if (v->end < 0) return;
    x->ends = die_realloc(x->ends, sizeof *x->ends);
    x->ends[x->n_ends++] = v->end;
}

int text_init(struct text *x, const struct config *c, struct mistakes *m) {
    const struct vocabulary *v = &c->vocabulary;
    *x = (struct text){.tokenizer = v->tokenizer};
    if (x->tokenizer) x->encoder = encoder_make(x->tokenizer);
    json_t *root = NULL;
    char *path = NULL;
    int bad = 0;
    if (c->folder && !(v->name && !strcmp(v->name, "bytes"))) {
        bad = generation_config(c->folder, &root, &path, m);
        const json_t *own = json_object_get(root, "eos_token_id");
        if (!bad)
            bad = take_ends(x, own ? own : json_object_get(c->kept, "eos_token_id"), own ? path : c->folder, m);
    }
    if (!x->n_ends) end_of_tokenizer(x, v);
    json_decref(root);
    free(path);
    return bad;
}

void text_free(struct text *x) {
    encoder_free(x->encoder);
    free(x->ends);
    memset(x, 0, sizeof *x);
}

bool text_known(const struct text *x) {
    return x->tokenizer != NULL;
}

bool text_ends(const struct text *x, int64_t id) {
    for (int i = 0; i < x->n_ends; i++)
        if (x->ends[i] == id) return true;
    return false;
}

int32_t *text_encode(const struct text *x, const char *s, size_t n, int64_t *n_ids, const char **why) {
    if (!x->tokenizer) bug("a text without a tokenizer");
    struct ids ids = {0};
    ids_reserve(&ids, 1);
    if (tokenizer_encode(x->encoder, s, n, true, &ids)) {
        *why = encoder_why(x->encoder);
        ids_free(&ids);
        return NULL;
    }
    *n_ids = ids.n;
    return ids.at;
}

/* ---- UTF-8 ---- */

/* Looks at the character that begins at s: its length in *need, 0 if none begins with this byte.
 * Returns how many of its bytes are there and right (Unicode 15, table 3-7). */
static size_t utf8_begin(const unsigned char *s, size_t left, size_t *need) {
    unsigned char c = s[0], low = 0x80, high = 0xbf;
    *need = c < 0x80                 ? 1
            : c >= 0xc2 && c <= 0xdf ? 2
            : c >= 0xe0 && c <= 0xef ? 3
            : c >= 0xf0 && c <= 0xf4 ? 4
                                     : 0;
    if (c == 0xe0) low = 0xa0;
    if (c == 0xed) high = 0x9f;
    if (c == 0xf0) low = 0x90;
    if (c == 0xf4) high = 0x8f;
    size_t n = 1;
    while (n < *need && n < left && s[n] >= low && s[n] <= high) {
        low = 0x80;
        high = 0xbf;
        n++;
    }
    return n;
}

char *utf8_repair(const char *s, size_t *n) {
    char *out = die_alloc(3 * *n + 1);
    size_t to = 0, need;
    for (size_t i = 0; i < *n;) {
        size_t got = utf8_begin((const unsigned char *)s + i, *n - i, &need);
        bool whole = need && got == need;
        memcpy(out + to, whole ? s + i : "\xef\xbf\xbd", whole ? got : 3);
        to += whole ? got : 3;
        i += got;
    }
    *n = to;
    return out;
}
