/* tokenizer: text to the numbers a model was trained on, and back.
 *
 * Reads the tokenizer.json of the Hugging Face hub where its model is BPE, and gives id for id and
 * byte for byte what the `tokenizers` package gives; what it does not know it refuses when the file
 * is read.  A text goes through added tokens (tokenizer_added.h), normalisation (_normalise.h),
 * splitting (_split.h, _pattern.h, _known.h) and merging (_bpe.h); ids go back through a chain of
 * decoders (_decode.h).  The tokenizer itself never changes once it is open and may be shared; each
 * thread has an encoder of its own, which holds caches and scratch.  The built-in kind takes bytes
 * as they are: ids 0 to 255, and 256 ends a document. */
#ifndef IO_TOKENIZER_H
#define IO_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mistakes;
struct utf8_text;
struct tokenizer;
struct encoder;
struct detokenizer;

/* Token ids that grow. */
struct ids {
    int32_t *at;
    int64_t n, room;
};
void ids_reserve(struct ids *ids, int64_t more);
void ids_add_all(struct ids *to, const struct ids *from);
void ids_free(struct ids *ids);
static inline void ids_add(struct ids *ids, int32_t id) {
    if (ids->n == ids->room) ids_reserve(ids, 1);
    ids->at[ids->n++] = id;
}

/* Path: a folder with tokenizer.json, or the file itself; "bytes" is the built-in kind. In a
 * folder, tokenizer_config.json and special_tokens_map.json tell which tokens begin and end a text.
 * NULL after telling m. */
struct tokenizer *tokenizer_open(const char *path, struct mistakes *m);
void tokenizer_close(struct tokenizer *t);

int32_t tokenizer_size(const struct tokenizer *t);                  /* highest id + 1 */
int32_t tokenizer_id(const struct tokenizer *t, const char *token); /* -1: no such token */
const char *tokenizer_token(const struct tokenizer *t, int32_t id,
                            size_t *n); /* NULL: none. Not closed by a NUL */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id); /* left out by skip_special */
int32_t tokenizer_bos(const struct tokenizer *t); /* begins a text, -1: none is named */
int32_t tokenizer_eos(const struct tokenizer *t); /* ends a text (bytes: 256), -1: none is named */

/* Of all that ids depend on, for naming what was made with them. */
uint64_t tokenizer_hash(const struct tokenizer *t);

/* What a thread encodes with; the tokenizer must outlive it. */
struct encoder *encoder_make(const struct tokenizer *t);
void encoder_free(struct encoder *e);

/* Adds the ids of a text. Broken UTF-8 counts as U+FFFD, one for each broken part (not for the
 * built-in kind, which keeps bytes). add_special: with what the file puts around every text.
 * Special tokens that are spelled out in the text become themselves. Returns -1, with some ids
 * added, only if a pattern of the file runs wild on this text; see encoder_why. */
int tokenizer_encode(struct encoder *e, const char *text, size_t n, bool add_special,
                     struct ids *to);
const char *encoder_why(const struct encoder *e);

/* The same ids by several threads, for a large text. */
int tokenizer_encode_threads(const struct tokenizer *t, int threads, const char *text, size_t n,
                             bool add_special, struct ids *to);

/* Adds the text of ids: valid UTF-8, U+FFFD for bytes that are none. Ids that no token has are left
 * out. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                      struct utf8_text *to);

/* The same id by id, for showing text while it is made. What cannot change any more is added to
 * `to`: never half a character. What all pushes and the finish add together is what
 * tokenizer_decode adds. */
struct detokenizer *detokenizer_make(const struct tokenizer *t, bool skip_special);
void detokenizer_push(struct detokenizer *d, int32_t id, struct utf8_text *to);
void detokenizer_finish(struct detokenizer *d, struct utf8_text *to); /* and begins anew */
void detokenizer_free(struct detokenizer *d);

#endif
