/* text: between texts and token ids, and what is needed to show a text that is still being made.
 *
 * A model's tokenizer is behind three functions: ids of a text, the bytes of an id, the ids that end a document. There is
 * one tokenizer so far, `bytes`: ids 0 to 255 are bytes, 256 ends a document. A model without one is driven by ids alone.
 *
 * A token may be part of a character. Bytes are therefore collected, and shown up to the last complete character. */
#ifndef SRC_TEXT_H
#define SRC_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct config;
struct mistakes;

struct text {
    bool bytes;                 /* false: no tokenizer */
    int n_ends;
    int64_t *ends;              /* ids that end a document */
};

/* The tokenizer that the model names, and its ends: eos_token_id of generation_config.json, else of config.json (a number or a
 * list). -1 after telling m. Every rank on its own. */
int text_init(struct text *x, const struct config *c, struct mistakes *m);
void text_free(struct text *x);

/* Whether texts can be read and written at all. */
bool text_known(const struct text *x);

/* The ids of n bytes of text, malloc'd; their number in *n_ids. */
int32_t *text_encode(const struct text *x, const char *s, size_t n, int64_t *n_ids);

/* The bytes that an id stands for in the middle of a text, at most TEXT_TOKEN of them; special ids stand for none. */
enum { TEXT_TOKEN = 1024 };
size_t text_decode(const struct text *x, int32_t id, char to[TEXT_TOKEN]);

/* Whether an id ends a document. */
bool text_ends(const struct text *x, int64_t id);

/* How many of n bytes can be shown: all but a character at the end that is not complete yet. */
size_t utf8_complete(const char *s, size_t n);

/* n bytes as UTF-8, malloc'd, *n updated: what is no character becomes U+FFFD, as in Python's decode("utf-8", "replace"). */
char *utf8_repair(const char *s, size_t *n);

#endif
