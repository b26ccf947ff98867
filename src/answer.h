/* answer: the continuation of one prompt while it is being made.
 *
 * Tokens come in one by one. Each may end the answer: by ending the document, by completing a stop
 * text, or by being the last that is allowed. Its text is what the prompt's text goes on with: the
 * detokenizer has seen the prompt, so that a space between them is neither lost nor made, and a
 * character that the prompt left incomplete is completed. What can be shown lags behind: a token
 * may be part of a character, and what looks like the beginning of a stop text may turn out to be
 * one, which is never shown. */
#ifndef SRC_ANSWER_H
#define SRC_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct detokenizer;
struct text;
struct utf8_text;

enum ended { GOING_ON, STOP_END, STOP_TEXT, STOP_LENGTH, STOP_NOT_FINITE };

struct answer {
    int64_t n_ids, n_bytes; /* so far; the bytes end where a stop text begins */
    int32_t *ids;           /* [most] the id that ended the document too */
    char *bytes;
    int64_t room;
    struct detokenizer *detokenizer; /* NULL without a tokenizer */
    struct utf8_text *fresh;         /* text that came and was not taken yet */
    struct utf8_text
        *prompt;   /* the end of the prompt's own text that is still to come; NULL: none */
    int64_t shown; /* bytes that answer_show gave */
    enum ended stop;
};

/* What ends an answer; all is borrowed. */
struct ending {
    const struct text *text;
    int64_t most; /* tokens */
    int n_texts;
    char *const *texts;
};

/* An answer to a prompt of n ids. */
void answer_init(struct answer *a, const struct ending *e, const int32_t *ids, int64_t n);
void answer_free(struct answer *a);

/* Takes the next token; negative: the model gave no number. Sets a->stop. */
void answer_add(struct answer *a, const struct ending *e, int32_t id);

/* Bytes that may be shown now and were not before: their number, and where they begin. */
size_t answer_show(struct answer *a, const struct ending *e, const char **from);

/* "eos", "text", "length", "not finite". */
const char *stop_name(enum ended s);

#endif
