/* tokenizer_added: tokens that are found in the text before anything else is done to it.
 *
 * A set of words is looked for from left to right, the longest at each place, by a tree of bytes;
 * two first bytes decide at most places that no word begins there.  Around a match, `lstrip` and
 * `rstrip` swallow the space beside it and `single_word` lets it count only between non-words, in
 * just the way the `tokenizers` package does. */
#ifndef IO_TOKENIZER_ADDED_H
#define IO_TOKENIZER_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added {
    int32_t id;
    bool single_word, lstrip, rstrip;
};

struct words {
    int n_nodes, room;
    struct word_node *nodes; /* nodes[0] is the root */
    uint8_t pair[8192];      /* bit first | second << 8: a word may begin so */
    struct added *added;     /* by the number given to words_add */
    int n_added;
};

/* False if the word is there already (or is empty). */
bool words_add(struct words *w, const char *word, size_t n, struct added a);
void words_free(struct words *w);

/* One pass: pieces of the text between words, and the words, in order. */
struct words_pass {
    const struct words *words;
    const uint8_t *text;
    size_t n, at, done;
    bool waiting; /* a match whose piece before was given first */
    size_t end;
    int32_t id;
};
void words_begin(struct words_pass *p, const struct words *w, const char *text, size_t n);

/* False at the end. *id is -1 for a piece between, which is never empty. */
bool words_next(struct words_pass *p, size_t *start, size_t *end, int32_t *id);

#endif
