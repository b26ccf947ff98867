/* tokenizer_syntax: reading a regular expression in the syntax of Oniguruma (Ruby).
 *
 * Every character, escape and [set] of the pattern becomes a set of code points with a number; the
 * rest (groups, repeats, alternatives, looking ahead and behind) is put in the words of PCRE2, with
 * a mark where each set stands.  What means something else to the two (`{1,3}+` is no possessive
 * repeat to Oniguruma, `(?i)` folds as Unicode does, nested sets, &&) is said so that it means what
 * Oniguruma means.  For tokenizer_pattern.c alone. */
#ifndef IO_TOKENIZER_SYNTAX_H
#define IO_TOKENIZER_SYNTAX_H

#include "io/unicode.h"
#include "io/unicode_table.h"

enum { MAX_SETS = 64, SET_MARK = 1 };

struct set {
    struct range *at; /* ascending, apart */
    size_t n, room;
};

struct syntax {
    struct utf8_text out; /* SET_MARK is followed by the set's number + 1 */
    struct set sets[MAX_SETS];
    int n_sets;
};

/* NULL with a reason in why. */
struct syntax *syntax_read(const char *pattern, size_t n, char *why, size_t n_why);
void syntax_free(struct syntax *s);

/* Sets; `set_of` knows the names of \p{...} and returns false for others. */
void set_add(struct set *s, uint32_t first, uint32_t last); /* any order; set_tidy after */
void set_add_all(struct set *s, const struct set *from);
void set_tidy(struct set *s);
void set_invert(struct set *s);
void set_intersect(struct set *s, const struct set *with);
void set_free(struct set *s);
bool set_of(struct set *s, const char *name, size_t n);

#endif
