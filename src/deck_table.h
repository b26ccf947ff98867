/* deck_table: the rows of deck.def as data.
 *
 * Each key of a deck is one row: type, section, name, default, range or choices, unit, meaning,
 * and where in struct deck its value lies.  Whatever works on keys in general (reading, printing,
 * the manual, filling from config.json) walks these rows, so that a new key is one line of
 * deck.def.  Values are read and written here, in one place: whole numbers and reals decimal
 * without suffix, true|false, choices, texts, and lists of texts or reals. */
#ifndef SRC_DECK_TABLE_H
#define SRC_DECK_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct deck;

struct deck_key {
    char
        type; /* 'i' whole number, 'r' real, 'b' bool, 't' text, 'c' choice, 'T' texts, 'R' reals */
    bool fixed; /* may not change when a run is resumed */
    const char *section, *name;
    const char *def;         /* as a deck would spell it; "" none */
    const char *choices;     /* a|b|c */
    int64_t int_lo, int_hi;  /* of 'i' */
    double real_lo, real_hi; /* of 'r' and 'R' */
    int count;               /* of 'R': so many numbers; negative: one up to so many */
    const char *unit, *meaning;
    size_t at; /* in struct deck */
};

struct deck_section {
    const char *name, *meaning;
};

extern const struct deck_key deck_table[];
extern const int deck_table_n;
extern const struct deck_section deck_sections[];
extern const int deck_sections_n;

/* Row number, or -1. */
int deck_table_find(const char *section, const char *name);
bool deck_section_exists(const char *name);

/* The key somebody may have meant by section.name: the same name in another section, a similar
 * name in this one, a similar one anywhere; -1 if none is close. */
int deck_table_suggest(const char *section, const char *name);

/* Reads n texts (n = 1 and list false: a single value) as this key's value to `to`, whose member
 * it is. What the texts of the value need is kept by `keeper`. quoted may be NULL. Returns NULL,
 * or what is wrong with it (malloc'd, without the key's name), and leaves the value alone. */
char *deck_value_read(const struct deck_key *k, struct deck *keeper, int n, char *const *text,
                      const bool *quoted, bool list, void *to);

/* The value as a deck would spell it (malloc'd); reals with the fewest digits that read back
 * equal. */
char *deck_value_text(const struct deck_key *k, const void *value);

/* Whether there is nothing to write: an empty text or list. */
bool deck_value_empty(const struct deck_key *k, const void *value);

/* Notes malloc'd memory to be freed with the deck, and returns it. */
void *deck_own(struct deck *d, void *p);

/* A real as the shortest decimal that reads back equal. */
void deck_real_text(double x, char text[32]);

#endif
