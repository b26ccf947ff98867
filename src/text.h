/* text: between texts and token ids while prompts are continued, and what is needed to show a text
 * that is still being made.
 *
 * Around the model's tokenizer (src/vocabulary.h, io/tokenizer.h): ids of a prompt, as the
 * tokenizers package would give them; the ids that end an answer; and the text of an answer, token
 * by token. A model without a tokenizer is driven by ids alone. */
#ifndef SRC_TEXT_H
#define SRC_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct config;
struct encoder;
struct mistakes;
struct tokenizer;

struct text {
    const struct tokenizer *tokenizer; /* the model's, borrowed; NULL: none */
    struct encoder *encoder;
    int n_ends;
    int64_t *ends; /* ids that end a document */
};

/* The model's tokenizer, and its ends: 256 with bytes; else eos_token_id of generation_config.json,
 * else of config.json (a number or a list), else what the tokenizer says. -1 after telling m. Every
 * rank on its own. */
int text_init(struct text *x, const struct config *c, struct mistakes *m);
void text_free(struct text *x);

/* Whether texts can be read and written at all. */
bool text_known(const struct text *x);

/* The ids of n bytes of text, malloc'd, with what the tokenizer puts around every text; their
 * number in *n_ids. NULL, and a reason in *why (borrowed), if the tokenizer cannot take this text.
 */
int32_t *text_encode(const struct text *x, const char *s, size_t n, int64_t *n_ids,
                     const char **why);

/* Whether an id ends a document. */
bool text_ends(const struct text *x, int64_t id);

/* n bytes as UTF-8, malloc'd, *n updated: what is no character becomes U+FFFD, as in Python's
 * decode("utf-8", "replace"). */
char *utf8_repair(const char *s, size_t *n);

#endif
