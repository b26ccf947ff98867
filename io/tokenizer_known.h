/* tokenizer_known: the split patterns that nearly every model uses, written out by hand.
 *
 * GPT-2's, that of Llama 3 and Qwen (cl100k), and that of Mistral's Tekken, Nemotron and GPT-4o,
 * which looks at upper and lower case.  Each matches at every place, so a text is cut by asking
 * again and again where the piece that begins here ends.  They are taken only for exactly the
 * pattern text they stand for, and tests/test_tokenizer.c holds them against the compiled pattern.
 */
#ifndef IO_TOKENIZER_KNOWN_H
#define IO_TOKENIZER_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct known {
    const char *pattern;
    size_t (*end)(const struct known *k, const uint8_t *s, size_t n, size_t at);
    int digits;       /* at most so many in a piece */
    bool slash;       /* punctuation takes slashes behind it along, as it takes line ends */
    bool contraction; /* words take 's, 't, ... along */
};

/* The one for exactly this pattern, or NULL. */
const struct known *known_find(const char *pattern, size_t n);

/* All of them, for the test; returns how many. */
int known_all(const struct known **to);

/* True if pieces begin anew at s[at], whatever is before: a text may be cut here. (A letter after a
 * line end.) */
static inline bool known_may_cut(const uint8_t *s, size_t at) {
    uint8_t low = s[at] | 32;
    return at > 0 && s[at - 1] == '\n' && low >= 'a' && low <= 'z';
}

#endif
