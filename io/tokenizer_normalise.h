/* tokenizer_normalise: what is done to a text before it is cut: Unicode normal forms, lower case,
 * replacing, ...
 *
 * A list of steps, each reading one text and writing another.  Beside the text goes one number: how
 * many bytes at its beginning stem from the very first character of the input.  One pre-tokeniser
 * (Metaspace with `first`) treats pieces that begin there differently, and this number is all it
 * takes to know them. */
#ifndef IO_TOKENIZER_NORMALISE_H
#define IO_TOKENIZER_NORMALISE_H

#include <stdbool.h>
#include <stddef.h>

#include "io/tokenizer_pattern.h"

enum step_kind {
    STEP_NFC,
    STEP_NFD,
    STEP_NFKC,
    STEP_NFKD,
    STEP_LOWER,
    STEP_REPLACE,
    STEP_PREPEND,
    STEP_STRIP,
    STEP_STRIP_ACCENTS,
    STEP_BYTES
};

struct step {
    enum step_kind kind;
    struct pattern *pattern;  /* REPLACE */
    struct utf8_text content; /* REPLACE, PREPEND */
    bool left, right;         /* STRIP */
};

struct normaliser {
    int n;
    struct step *steps;
};

/* A text and the bytes at its beginning that stem from the first character of all input. */
struct piece {
    const char *at;
    size_t n, first;
};

struct normalise_scratch {
    struct utf8_text texts[2];
    struct finder finder;
    struct matcher *matcher; /* borrowed */
    int32_t *points;
    size_t n_points, room;
};

/* The piece after all steps; lives in the scratch until the next call (or is `p` itself). False: a
 * pattern failed. */
bool normalise(const struct normaliser *k, struct normalise_scratch *w, struct piece *p);
void normalise_scratch_free(struct normalise_scratch *w);
void normaliser_free(struct normaliser *k);

/* The 256 characters that stand for bytes in byte-level tokenizers: the printable ones of Latin 1
 * for themselves, the rest from U+0100 on.  byte_of gives the byte a character stands for, or -1.
 */
uint32_t byte_character(uint8_t byte);
int byte_of_character(uint32_t c);

/* Adds the text with every byte written as its character. */
void add_byte_characters(struct utf8_text *to, const char *text, size_t n);

#endif
