#include "io/tokenizer_known.h"

#include <string.h>

#include "io/unicode.h"

enum { END = 0x80 }; /* behind the last character: of no kind */

static inline unsigned look(const uint8_t *is, const uint8_t *s, size_t n, size_t at, int *bytes) {
    *bytes = 1;
    if (at >= n) return END;
    if (s[at] < 0x80) return is[s[at]];
    return is[utf8_at(s + at, bytes)];
}

/* The end of the run of characters that are of one of these kinds. */
static inline size_t run(const uint8_t *is, const uint8_t *s, size_t n, size_t at, unsigned kinds) {
    for (int bytes; look(is, s, n, at, &bytes) & kinds & 0x7F;) at += (size_t)bytes;
    return at;
}

/* [^\s\p{L}\p{N}]* */
static inline size_t run_other(const uint8_t *is, const uint8_t *s, size_t n, size_t at) {
    for (int bytes; !(look(is, s, n, at, &bytes) & (IS_LETTER | IS_NUMBER | IS_SPACE | END));)
        at += (size_t)bytes;
    return at;
}

/* 's 't 're 've 'm 'll 'd at this place, in capitals too if `fold`; its end, or `at`. */
static inline size_t contraction(const uint8_t *s, size_t n, size_t at, bool fold) {
    if (n - at < 2 || s[at] != '\'') return at;
    uint8_t a = s[at + 1], b = n - at > 2 ? s[at + 2] : 0;
    if (fold) {
        if (a == 0xC5 && b == 0xBF) return at + 3; /* the long s */
        if (a < 0x80) a |= 32;
        if (b < 0x80) b |= 32;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return at + 3;
    return at;
}

/* \s+(?!\S)|\s+, and before it \s*[\r\n]+ if `lines`; there is a space at `at`. */
static size_t spaces(const uint8_t *is, const uint8_t *s, size_t n, size_t at, bool lines) {
    size_t end = at, last = at, line = 0;
    for (int bytes; look(is, s, n, end, &bytes) & IS_SPACE;) {
        last = end;
        end += (size_t)bytes;
        if (s[last] == '\n' || s[last] == '\r') line = end;
    }
    if (lines && line) return line;
    return end == n || last == at ? end : last;
}

static size_t numbers(const struct known *k, const uint8_t *is, const uint8_t *s, size_t n,
                      size_t at) {
    int bytes;
    for (int i = 0; i < k->digits && look(is, s, n, at, &bytes) & IS_NUMBER; i++)
        at += (size_t)bytes;
    return at;
}

static size_t end_gpt2(const struct known *k, const uint8_t *s, size_t n, size_t at) {
    const uint8_t *is = unicode()->is;
    size_t end = contraction(s, n, at, false), from = at + (s[at] == ' ');
    (void)k;
    if (end > at) return end;
    int bytes;
    unsigned kind = look(is, s, n, from, &bytes);
    if (kind & IS_LETTER) return run(is, s, n, from + (size_t)bytes, IS_LETTER);
    if (kind & IS_NUMBER) return run(is, s, n, from + (size_t)bytes, IS_NUMBER);
    if (!(kind & (IS_SPACE | END))) return run_other(is, s, n, from + (size_t)bytes);
    return spaces(is, s, n, at, false);
}

/* \p{N}{1,k}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+, which both families end with. */
static size_t end_common(const struct known *k, const uint8_t *is, const uint8_t *s, size_t n,
                         size_t at) {
    size_t from = at + (s[at] == ' ');
    size_t end = numbers(k, is, s, n, at);
    if (end > at) return end;
    end = run_other(is, s, n, from);
    if (end == from) return spaces(is, s, n, at, true);
    while (end < n && (s[end] == '\r' || s[end] == '\n' || (k->slash && s[end] == '/'))) end++;
    return end;
}

/* Where letters begin behind [^\r\n\p{L}\p{N}]?, if one is there; else `at`. */
static inline size_t behind_prefix(const uint8_t *is, const uint8_t *s, size_t n, size_t at) {
    int bytes;
    unsigned kind = look(is, s, n, at, &bytes);
    return kind & (IS_LETTER | IS_NUMBER) || s[at] == '\r' || s[at] == '\n' ? at
                                                                            : at + (size_t)bytes;
}

static size_t end_cl100k(const struct known *k, const uint8_t *s, size_t n, size_t at) {
    const uint8_t *is = unicode()->is;
    size_t end = contraction(s, n, at, true);
    if (end > at) return end;
    size_t from = behind_prefix(is, s, n, at);
    end = run(is, s, n, from, IS_LETTER);
    return end > from ? end : end_common(k, is, s, n, at);
}

/* [upper]*[lower]+ from `at`, some characters being both: its end, or `at`. */
static size_t upper_lower(const uint8_t *is, const uint8_t *s, size_t n, size_t at) {
    size_t both = at, end = at;
    unsigned kind;
    for (int bytes; (kind = look(is, s, n, end, &bytes)) & IS_UPPER && !(kind & END);) {
        end += (size_t)bytes;
        if (kind & IS_LOWER) both = end;
    }
    return kind & IS_LOWER ? run(is, s, n, end, IS_LOWER) : both;
}

static size_t end_cased(const struct known *k, const uint8_t *s, size_t n, size_t at) {
    const uint8_t *is = unicode()->is;
    size_t from = behind_prefix(is, s, n, at), end = upper_lower(is, s, n, from);
    bool found = end > from;
    if (!found) found = (end = upper_lower(is, s, n, at)) > at;
    if (!found) found = (end = run(is, s, n, from, IS_UPPER)) > from;
    if (!found) return end_common(k, is, s, n, at);
    return k->contraction && end < n ? contraction(s, n, end, true) : end;
}

#define SUFFIX "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define SPACES "\\s+(?!\\S)|\\s+"
#define LINES "\\s*[\\r\\n]+|" SPACES

static const struct known all[] = {
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|" SPACES, end_gpt2, 0,
     false, false},
    {SUFFIX "|" WORD "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LINES, end_cl100k, 3,
     false, false},
    {SUFFIX "|" WORD "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LINES, end_cl100k, 1, false,
     false},
    {WORD UPPER "*" LOWER "+|" WORD UPPER "+" LOWER
                "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LINES,
     end_cased, 1, true, false},
    {WORD UPPER "*" LOWER "+|" WORD UPPER "+" LOWER
                "*|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LINES,
     end_cased, 3, true, false},
    {WORD UPPER "*" LOWER "+" SUFFIX "?|" WORD UPPER "+" LOWER "*" SUFFIX
                "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LINES,
     end_cased, 3, true, true},
};

const struct known *known_find(const char *pattern, size_t n) {
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strlen(all[i].pattern) == n && !memcmp(all[i].pattern, pattern, n)) return &all[i];
    return NULL;
}

int known_all(const struct known **to) {
    *to = all;
    return (int)(sizeof all / sizeof *all);
}
