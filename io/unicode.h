/* unicode: UTF-8 text and what kind of character each code point is.
 *
 * Text from outside may be anything; inside, a text is valid UTF-8 because utf8_text_repair() came
 * first.  Questions about code points are answered from one flat table a byte each (1.1 MB, made at
 * first use; a text touches a few pages of it), so that asking costs a load.  Which version of
 * Unicode answers: unicode_table.h. */
#ifndef IO_UNICODE_H
#define IO_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CODE_POINTS = 0x110000 };

/* General categories in the order of unicode_table.c. */
enum category {
    CAT_LU,
    CAT_LL,
    CAT_LT,
    CAT_LM,
    CAT_LO,
    CAT_MN,
    CAT_MC,
    CAT_ME,
    CAT_ND,
    CAT_NL,
    CAT_NO,
    CAT_PC,
    CAT_PD,
    CAT_PS,
    CAT_PE,
    CAT_PI,
    CAT_PF,
    CAT_PO,
    CAT_SM,
    CAT_SC,
    CAT_SK,
    CAT_SO,
    CAT_ZS,
    CAT_ZL,
    CAT_ZP,
    CAT_CC,
    CAT_CF,
    CAT_CS,
    CAT_CO,
    CAT_CN
};

/* Bytes that grow. Not closed by a NUL. */
struct utf8_text {
    char *at;
    size_t n, room;
};

void utf8_text_reserve(struct utf8_text *t, size_t more); /* room for so many more bytes */
void utf8_text_add(struct utf8_text *t, const void *bytes, size_t n);
void utf8_text_add_point(struct utf8_text *t, uint32_t c); /* a code point as UTF-8 */
void utf8_text_free(struct utf8_text *t);

/* True if the bytes are valid UTF-8. Else false, and `to` holds the text with U+FFFD for every
 * broken part: the longest beginnings of sequences that are cut off, single bytes otherwise, as
 * Python's errors='replace' and Rust's lossy conversion do. */
bool utf8_text_repair(const char *bytes, size_t n, struct utf8_text *to);

/* Length of the valid UTF-8 sequence at s[0..n), or 0; then *broken is how many bytes one U+FFFD
 * stands for, and *cut says that more bytes could have made it valid. */
int utf8_check(const uint8_t *s, size_t n, int *broken, bool *cut);

/* The code point at s in valid UTF-8, and its bytes. */
static inline uint32_t utf8_at(const uint8_t *s, int *bytes) {
    if (s[0] < 0x80) {
        *bytes = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *bytes = 2;
        return (uint32_t)(s[0] & 31) << 6 | (s[1] & 63);
    }
    if (s[0] < 0xF0) {
        *bytes = 3;
        return (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
    }
    *bytes = 4;
    return (uint32_t)(s[0] & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 |
           (s[3] & 63);
}

/* Bytes of the sequence that begins with this byte, in valid UTF-8. */
static inline int utf8_length(uint8_t first) {
    return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

int utf8_put(uint32_t c, char to[4]); /* returns the bytes */

/* What the hand-written split patterns ask of a character (tokenizer_known.h). */
enum { IS_LETTER = 1, IS_NUMBER = 2, IS_SPACE = 4, IS_UPPER = 8, IS_LOWER = 16 };

struct unicode {
    uint8_t category[CODE_POINTS];
    uint8_t is[CODE_POINTS]; /* IS_UPPER: Lu Lt Lm Lo M; IS_LOWER: Ll Lm Lo M */
};
const struct unicode *unicode(void);

bool unicode_space(uint32_t c);       /* White_Space */
bool unicode_numeric(uint32_t c);     /* Rust's char::is_numeric */
bool unicode_punctuation(uint32_t c); /* of the pre-tokeniser Punctuation */
bool unicode_word(uint32_t c);        /* \w of Rust's regex */
bool unicode_accent(uint32_t c);      /* what StripAccents removes */
bool unicode_inert(uint32_t c);       /* left alone by normalisation, whatever newer versions say */

/* The lowercase of c: one or two code points; returns how many. */
int unicode_lower(uint32_t c, uint32_t to[2]);

#endif
