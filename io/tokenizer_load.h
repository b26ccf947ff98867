/* tokenizer_load: a tokenizer.json, read with suspicion.
 *
 * Fills the parts of a tokenizer from the file, each field checked as it is taken.  What the
 * program does not do (another kind of model, a normaliser it lacks, a pattern beyond
 * tokenizer_syntax.h) is a mistake that names the field, never passed over.  For tokenizer.c alone.
 */
#ifndef IO_TOKENIZER_LOAD_H
#define IO_TOKENIZER_LOAD_H

#include "io/tokenizer_added.h"
#include "io/tokenizer_bpe.h"
#include "io/tokenizer_decode.h"
#include "io/tokenizer_split.h"

struct added_token {
    int32_t id;
    bool special;
    struct utf8_text content,
        shown; /* shown: what decoding takes, the normalised form where it is found by that */
};

struct tokenizer {
    bool built_in; /* bytes; nothing below is used */
    struct bpe bpe;
    struct added_token *added;
    int n_added;
    struct strings names; /* of added tokens: id */
    int32_t n_ids;
    int32_t *added_of;          /* [n_ids]: place in `added` + 1, 0: none */
    bool *skipped;              /* [n_ids]: left out by skip_special */
    struct words before, after; /* added tokens looked for before and after normalisation */
    struct normaliser normaliser;
    struct splitter splitter;
    struct chain chain;
    struct ids ahead, behind; /* what add_special puts around a text */
    int32_t bos, eos;
    uint64_t hash; /* of the file */
};

struct loader {
    const char *path;
    struct mistakes *m;
    bool bad;
};
void complain(struct loader *l, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Each reads one part of the file. */
struct json_t;
int tokenizer_load(struct tokenizer *t, const char *path, struct mistakes *m);
void load_model(struct loader *l, struct tokenizer *t, const struct json_t *model);
void load_added(struct loader *l, struct tokenizer *t, const struct json_t *list);
void load_post(struct loader *l, struct tokenizer *t, const struct json_t *post);

/* Fields of an object: with a complaint and something harmless if they are absent or of another
 * type. */
bool take_bool(struct loader *l, const char *field, const struct json_t *o, const char *key,
               int missing);
const char *take_string(struct loader *l, const char *field, const struct json_t *o,
                        const char *key, size_t *n);

#endif
