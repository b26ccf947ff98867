/* answer: the continuation of one prompt while it is being made.
 *
 * Tokens come in one by one. Each may end the answer: by ending the document, by completing a stop text, or by being the
 * last that is allowed. What can be shown of the text lags behind what is there: a character may be incomplete, and what looks
 * like the beginning of a stop text may turn out to be one, which is never shown. */
#ifndef SRC_ANSWER_H
#define SRC_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text;

enum stop { GOING_ON, STOP_END, STOP_TEXT, STOP_LENGTH, STOP_NOT_FINITE };

struct answer {
    int64_t n_ids, n_bytes;     /* so far; the bytes end where a stop text begins */
    int32_t *ids;               /* [most] the id that ended the document too */
    char *bytes;
    int64_t room;
    int64_t shown;              /* bytes that answer_show gave */
    enum stop stop;
};

/* What ends an answer; all is borrowed. */
struct ending {
    const struct text *text;
    int64_t most;               /* tokens */
    int n_texts;
    char *const *texts;
};

void answer_init(struct answer *a, int64_t most);
void answer_free(struct answer *a);

/* Takes the next token; negative: the model gave no number. Sets a->stop. */
void answer_add(struct answer *a, const struct ending *e, int32_t id);

/* Bytes that may be shown now and were not before: their number, and where they begin. */
size_t answer_show(struct answer *a, const struct ending *e, const char **from);

/* "eos", "text", "length", "not finite". */
const char *stop_name(enum stop s);

#endif
