/* unicode_table: what Unicode says of its code points, as the tokenizers that
 * models were trained with see it.
 *
 * The libraries behind those tokenizers froze different versions of Unicode: Oniguruma (split
 * patterns) has 16, Rust's standard library 17, its normalisation 9.  The same text must give the
 * same ids here as there, whatever libraries this machine has, so their view is written down: the
 * categories of version 16, and for the others what they see differently.  Found by asking them
 * about every code point (tests/reference/tokenizing.py, `unicode`). For unicode.c and
 * tokenizer_pattern.c alone. */
#ifndef IO_UNICODE_TABLE_H
#define IO_UNICODE_TABLE_H

#include <stdint.h>

struct range {
    uint32_t first, last;
};

/* Runs of code points of one general category: first << 5 | category (enum
 * category), or 31 for Lu, Ll, Lu, ... */
extern const uint32_t unicode_runs[];
extern const int n_unicode_runs;

#define RANGES(name)                                                                               \
    extern const struct range name[];                                                              \
    extern const int n_##name
RANGES(word_extra);
RANGES(numeric_extra);
RANGES(not_punctuation);
RANGES(not_accent);
RANGES(inert_runs);
RANGES(script_arabic);
RANGES(script_cyrillic);
RANGES(script_devanagari);
RANGES(script_greek);
RANGES(script_han);
RANGES(script_hangul);
RANGES(script_hebrew);
RANGES(script_hiragana);
RANGES(script_katakana);
RANGES(script_latin);
RANGES(script_thai);

#endif
