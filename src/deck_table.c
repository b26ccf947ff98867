#include "src/deck_table.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mistakes.h"
#include "io/yaml.h"
#include "kernels/die.h"
#include "src/deck.h"

enum { FREE, FIXED };

/* clang-format off */
#define AT(s, k) .section = #s, .name = #k, .at = offsetof(struct deck, s.k)
#define SECTION(s, m)
#define INT(s, k, d, lo, hi, u, r, m) {'i', r, AT(s, k), .def = #d, .int_lo = lo, .int_hi = hi, .unit = u, .meaning = m},
#define REAL(s, k, d, lo, hi, u, r, m) {'r', r, AT(s, k), .def = #d, .real_lo = lo, .real_hi = hi, .unit = u, .meaning = m},
#define BOOL(s, k, d, r, m) {'b', r, AT(s, k), .def = #d, .unit = "", .meaning = m},
#define TEXT(s, k, d, r, m) {'t', r, AT(s, k), .def = d, .unit = "", .meaning = m},
#define CHOICE(s, k, d, c, r, m) {'c', r, AT(s, k), .def = d, .choices = c, .unit = "", .meaning = m},
#define TEXTS(s, k, d, r, m) {'T', r, AT(s, k), .def = d, .unit = "", .meaning = m},
#define REALS(s, k, d, n, lo, hi, u, r, m) {'R', r, AT(s, k), .def = d, .count = n, .real_lo = lo, .real_hi = hi, .unit = u, .meaning = m},
#define END(s)
const struct deck_key deck_table[] = {
#include "src/deck.def"
};
#include "src/deck_undef.h"

#define SECTION(s, m) {#s, m},
#define INT(...)
#define REAL(...)
#define BOOL(...)
#define TEXT(...)
#define CHOICE(...)
#define TEXTS(...)
#define REALS(...)
#define END(s)
const struct deck_section deck_sections[] = {
#include "src/deck.def"
};
#include "src/deck_undef.h"
/* clang-format on */

enum {
    KEYS = sizeof deck_table / sizeof *deck_table,
    SECTIONS = sizeof deck_sections / sizeof *deck_sections
};
const int deck_table_n = KEYS, deck_sections_n = SECTIONS;

int deck_table_find(const char *section, const char *name) {
    for (int i = 0; i < KEYS; i++)
        if (!strcmp(deck_table[i].section, section) && !strcmp(deck_table[i].name, name)) return i;
    return -1;
}

bool deck_section_exists(const char *name) {
    for (int i = 0; i < SECTIONS; i++)
        if (!strcmp(deck_sections[i].name, name)) return true;
    return false;
}

int deck_table_suggest(const char *section, const char *name) {
    const char *names[KEYS], *here[KEYS];
    int n_here = 0;
    for (int i = 0; i < KEYS; i++) {
        if (!strcmp(deck_table[i].name, name)) return i;
        names[i] = deck_table[i].name;
        if (!strcmp(deck_table[i].section, section)) here[n_here++] = names[i];
    }
    /* Of two equally close, the one in the section that was named. */
    const char *two[2];
    int n = 0;
    if ((two[n] = mistakes_nearest(name, n_here, here))) n++;
    if ((two[n] = mistakes_nearest(name, KEYS, names))) n++;
    const char *best = mistakes_nearest(name, n, two);
    for (int i = 0; best && i < KEYS; i++)
        if (names[i] == best &&
            (best != two[0] || n == 1 || !strcmp(deck_table[i].section, section)))
            return i;
    for (int i = 0; best && i < KEYS; i++)
        if (!strcmp(names[i], best)) return i;
    return -1;
}

void *deck_own(struct deck *d, void *p) {
    d->owned = die_realloc(d->owned, (unsigned long)(d->n_owned + 1) * sizeof *d->owned);
    return d->owned[d->n_owned++] = p;
}

/* ---------------------------------------------------------------- reading a value */

static char *outside(const struct deck_key *k, const char *text) {
    char lo[32], hi[32];
    if (k->type == 'i') {
        snprintf(lo, sizeof lo, "%" PRId64, k->int_lo);
        snprintf(hi, sizeof hi, "%" PRId64, k->int_hi);
    } else {
        deck_real_text(k->real_lo, lo);
        deck_real_text(k->real_hi, hi);
    }
    return die_format("%.60s is outside %s to %s%s%s", text, lo, hi, *k->unit ? " " : "", k->unit);
}

/* Decimal digits with a sign at most. No leading zero: YAML 1.1 reads that as octal, other
 * programs do not. */
static bool is_integer(const char *s) {
    if (*s == '-' || *s == '+') s++;
    size_t n = strspn(s, "0123456789");
    return n > 0 && !s[n] && !(n > 1 && s[0] == '0');
}

static bool is_real(const char *s) {
    if (*s == '-' || *s == '+') s++;
    size_t whole = strspn(s, "0123456789"), part = 0;
    if (whole > 1 && s[0] == '0') return false;
    s += whole;
    if (*s == '.') part = strspn(++s, "0123456789"), s += part;
    if (!whole && !part) return false;
    if (*s != 'e' && *s != 'E') return !*s;
    s++;
    if (*s == '-' || *s == '+') s++;
    size_t n = strspn(s, "0123456789");
    return n > 0 && !s[n];
}

static char *read_integer(const struct deck_key *k, const char *text, int64_t *to) {
    if (!is_integer(text))
        return die_format("'%.60s' is not a whole number in decimal digits%s", text,
                          is_real(text) ? "; write it without point and exponent"
                                        : " without suffix");
    errno = 0;
    long long x = strtoll(text, NULL, 10);
    if (errno || x < k->int_lo || x > k->int_hi) return outside(k, text);
    *to = x;
    return NULL;
}

static char *read_real(const struct deck_key *k, const char *text, double *to) {
    if (!is_real(text)) return die_format("'%.60s' is not a decimal number without suffix", text);
    double x = strtod(text, NULL);
    if (!isfinite(x) || x < k->real_lo || x > k->real_hi) return outside(k, text);
    *to = x;
    return NULL;
}

static char *read_choice(const struct deck_key *k, struct deck *keeper, const char *text,
                         const char **to) {
    enum { MOST = 16 };
    const char *word[MOST];
    int n = 0;
    char *list = die_strdup(k->choices), *problem = NULL, *rest = NULL;
    for (char *w = strtok_r(list, "|", &rest); w && n < MOST; w = strtok_r(NULL, "|", &rest))
        word[n++] = w;
    int i = 0;
    while (i < n && strcmp(word[i], text)) i++;
    const char *near = mistakes_nearest(text, n, word);
    if (i < n) *to = deck_own(keeper, die_strdup(text));
    else if (n == 1) problem = die_format("'%.60s' is not built; there is only %s", text, word[0]);
    else
        problem = die_format("'%.60s' is none of %s%s%s%s", text, k->choices,
                             near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    free(list);
    return problem;
}

static char *read_list(const struct deck_key *k, struct deck *keeper, int n, char *const *text,
                       const bool *quoted, void *to) {
    if (k->type == 'T') {
        struct deck_texts list = {n, die_alloc((unsigned long)n * sizeof *list.v)};
        deck_own(keeper, list.v);
        for (int i = 0; i < n; i++) list.v[i] = deck_own(keeper, die_strdup(text[i]));
        *(struct deck_texts *)to = list;
        return NULL;
    }
    if (n && k->count > 0 && n != k->count)
        return die_format("%d number%s given, %d wanted", n, n == 1 ? "" : "s", k->count);
    if (n > -k->count && k->count < 0)
        return die_format("%d numbers given, at most %d wanted", n, -k->count);
    struct deck_reals list = {n, die_alloc((unsigned long)n * sizeof *list.v)};
    deck_own(keeper, list.v);
    for (int i = 0; i < n; i++) {
        if (quoted && quoted[i])
            return die_format("\"%.60s\" is text; write numbers without quotes", text[i]);
        char *problem = read_real(k, text[i], &list.v[i]);
        if (problem) return problem;
    }
    *(struct deck_reals *)to = list;
    return NULL;
}

char *deck_value_read(const struct deck_key *k, struct deck *keeper, int n, char *const *text,
                      const bool *quoted, bool list, void *to) {
    for (int i = 0; i < n; i++)
        if (!(quoted && quoted[i]) && (!strcmp(text[i], "null") || !strcmp(text[i], "~")))
            return die_format("%s is no value; leave the key out instead", text[i]);
    if (k->type == 'T' || k->type == 'R') return read_list(k, keeper, n, text, quoted, to);
    if (list) return die_format("takes one value, not a list");
    bool in_quotes = quoted && quoted[0];
    if (!*text[0] && !in_quotes) return die_format("has no value");
    if (in_quotes && (k->type == 'i' || k->type == 'r' || k->type == 'b'))
        return die_format("\"%.60s\" is text; write it without quotes", text[0]);
    switch (k->type) {
    case 'i': return read_integer(k, text[0], to);
    case 'r': return read_real(k, text[0], to);
    case 'c': return read_choice(k, keeper, text[0], to);
    case 't': *(const char **)to = deck_own(keeper, die_strdup(text[0])); return NULL;
    case 'b':
        if (strcmp(text[0], "true") && strcmp(text[0], "false"))
            return die_format("'%.60s' is not true or false", text[0]);
        *(bool *)to = text[0][0] == 't';
        return NULL;
    default: bug("type %c of %s.%s", k->type, k->section, k->name);
    }
}

/* ---------------------------------------------------------------- writing a value */

void deck_real_text(double x, char text[32]) {
    if (fabs(x) < 1e7 && x == floor(x)) { /* 10 rather than 1e+01 */
        snprintf(text, 32, "%.0f", x);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, x);
        if (strtod(text, NULL) == x) return;
    }
}

bool deck_value_empty(const struct deck_key *k, const void *value) {
    switch (k->type) {
    case 't':
    case 'c': return !**(const char *const *)value;
    case 'T': return ((const struct deck_texts *)value)->n == 0;
    case 'R': return ((const struct deck_reals *)value)->n == 0;
    default: return false;
    }
}

char *deck_value_text(const struct deck_key *k, const void *value) {
    char real[32], *text = NULL;
    size_t size;
    FILE *f;
    switch (k->type) {
    case 'i': return die_format("%" PRId64, *(const int64_t *)value);
    case 'b': return die_strdup(*(const bool *)value ? "true" : "false");
    case 'r': deck_real_text(*(const double *)value, real); return die_strdup(real);
    case 't':
    case 'c': return yaml_deck_quote(*(const char *const *)value);
    default: break;
    }
    if (!(f = open_memstream(&text, &size))) die("no memory for a list of texts");
    const struct deck_texts *texts = value;
    const struct deck_reals *reals = value;
    int n = k->type == 'T' ? texts->n : reals->n;
    fputc('[', f);
    for (int i = 0; i < n; i++) {
        char *one = NULL;
        if (k->type == 'T') one = yaml_deck_quote(texts->v[i]);
        else deck_real_text(reals->v[i], real);
        fprintf(f, "%s%s", i ? ", " : "", one ? one : real);
        free(one);
    }
    fputc(']', f);
    if (fclose(f)) die("no memory for a list of texts");
    return text;
}
