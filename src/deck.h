/* deck: the one YAML file that tells a run what to do.
 *
 * src/deck.def lists every key once: section, name, type, default, range or choices, unit, whether
 * a resumed run may change it, and one line of meaning.  Read under different macros the list
 * becomes the struct below, the parser's table, the checks, overrides, did-you-mean, the manual
 * (`mestar keys`, inputs/KEYS.md) and the `used.yaml` that every run leaves, so none of them can
 * disagree.  Rules across keys are rows too (deck_rules.c).  All mistakes of a deck are found and
 * reported together, before any memory is taken. */
#ifndef SRC_DECK_H
#define SRC_DECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct mistakes;

struct deck_texts { /* a list of texts */
    int n;
    char **v;
};
struct deck_reals { /* a list of numbers */
    int n;
    double *v;
};

/* struct deck_run, deck_model, ...: one member per key, made from deck.def.  INT is int64_t, REAL
 * double, BOOL bool, TEXT and CHOICE const char * ("" when not given and without default), TEXTS
 * and REALS lists. */
/* clang-format off */
#define SECTION(s, meaning) struct deck_##s {
#define INT(s, k, def, lo, hi, unit, resume, meaning) int64_t k;
#define REAL(s, k, def, lo, hi, unit, resume, meaning) double k;
#define BOOL(s, k, def, resume, meaning) bool k;
#define TEXT(s, k, def, resume, meaning) const char *k;
#define CHOICE(s, k, def, choices, resume, meaning) const char *k;
#define TEXTS(s, k, def, resume, meaning) struct deck_texts k;
#define REALS(s, k, def, n, lo, hi, unit, resume, meaning) struct deck_reals k;
#define END(s) };
#include "src/deck.def"
#include "src/deck_undef.h"
/* clang-format on */

struct deck {
#define SECTION(s, meaning) struct deck_##s s;
#define INT(...)
#define REAL(...)
#define BOOL(...)
#define TEXT(...)
#define CHOICE(...)
#define TEXTS(...)
#define REALS(...)
#define END(s)
#include "src/deck.def"
#include "src/deck_undef.h"
    struct deck_origin *origin; /* where each key's value came from, by row */
    char *path;                 /* the deck's file */
    bool incomplete;            /* something in it could not be read */
    int n_owned;
    void **owned; /* memory of the texts and lists above */
};

/* Reads the file (with its base files) and the overrides "section.key=value" into d; every mistake
 * goes to m. Host memory only; called by every rank on its own, with the same result. */
void deck_read(struct deck *d, const char *path, int n_overrides, char **overrides,
               struct mistakes *m);

/* The rules across keys that need neither the model's folder nor the ranks (deck_rules.c). Called
 * after config_settle (src/config.h), so that what a preset or folder says is seen. */
void deck_check(const struct deck *d, struct mistakes *m);

/* Whether the person gave this key ("model.hidden_size"), and where: "file:line", "command line";
 * "" if not. */
bool deck_given(const struct deck *d, const char *key);
const char *deck_where(const struct deck *d, const char *key);

/* A mistake about a key, at the place where it was given. Nothing is told about a key that was not
 * given if the deck is incomplete: it may stand in a line that could not be read. */
void deck_mistake(const struct deck *d, struct mistakes *m, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Replaces a value by one that was worked out, noting the origin ("worked out", "preset nano-30b",
 * ...), so that used.yaml shows it. For INT, REAL, BOOL, TEXT and CHOICE keys the value is given
 * as the deck would spell it. */
void deck_set(struct deck *d, const char *key, const char *value, const char *origin);

/* The same for a value that somebody else wrote: returns what is wrong with it (malloc'd; nothing
 * is set then), or NULL. */
char *deck_try(struct deck *d, const char *key, const char *value, const char *origin);

/* "file:line", "command line", "default", or what deck_set was told, of row i of deck_table. */
const char *deck_origin_text(const struct deck *d, int row);

/* Every key with its value and origin; running the written file repeats the run. */
void deck_write_used(const struct deck *d, FILE *f);

/* The manual: all of it, a section, or one key. Returns -1 if there is no such section or key
 * (did-you-mean is printed to standard error). markdown: as inputs/KEYS.md. */
int deck_keys(FILE *f, const char *section_or_key, bool markdown);

/* Walks the rows of one section: name, type letter and address of the value, for code that fills a
 * section from elsewhere (config.json). i counts from 0; returns false past the end. type: 'i' 'r'
 * 'b' 't' 'c' 'T' 'R'. */
bool deck_row(struct deck *d, const char *section, int i, const char **name, char *type,
              void **value);

void deck_free(struct deck *d);

#endif
