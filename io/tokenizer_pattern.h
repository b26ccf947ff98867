/* tokenizer_pattern: finding the pieces a regular expression describes, as Oniguruma finds them.
 *
 * Tokenizer files hold patterns for Oniguruma (syntax of Ruby) and models remember what it made of
 * their text, with its own view of Unicode.  A pattern can only tell characters apart by the sets
 * it mentions, so the alphabet is cut into classes by these sets, a text becomes a string of class
 * numbers, one byte a character, and the pattern becomes one over these bytes, which PCRE2 compiles
 * and runs.  So our own tables decide what \p{L} is, set operations cost nothing, and what we do
 * not know of the syntax is refused by name when the file is read.
 *
 * The few patterns nearly every model uses are also written out by hand (tokenizer_known.h). */
#ifndef IO_TOKENIZER_PATTERN_H
#define IO_TOKENIZER_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/unicode.h"

struct known;
struct matcher;

struct pattern {
    void *code;                /* pcre2_code over classes; NULL for a literal */
    uint8_t *class_of;         /* [CODE_POINTS] */
    const struct known *known; /* the same by hand, or NULL */
    struct utf8_text literal;  /* what to look for, as it is, if code is NULL */
};

/* NULL with a reason in why[n_why]. Literal: the characters themselves. */
struct pattern *pattern_compile(const char *text, size_t n, bool literal, char *why, size_t n_why);
void pattern_free(struct pattern *p);

/* What one thread needs to run patterns. */
struct matcher *matcher_make(void);
void matcher_free(struct matcher *m);

/* One pass over a text; zero it before its first use, finder_free after the last. */
struct finder {
    const struct pattern *pattern;
    struct matcher *matcher;
    const uint8_t *text;
    size_t n;
    struct utf8_text classes; /* the text as class numbers */
    bool ascii;               /* places in classes are places in text */
    size_t from;              /* where to search on, in characters */
    size_t char_at, at;       /* a place known in both */
    size_t last;              /* end of the last match in characters, or SIZE_MAX */
};
void finder_begin(struct finder *f, const struct pattern *p, struct matcher *m, const char *text,
                  size_t n);
void finder_free(struct finder *f);

/* The next match: 1 with its place in bytes, 0 at the end, -1 if the pattern needs more steps or
 * memory than is sane. */
int finder_next(struct finder *f, size_t *start, size_t *end);

#endif
