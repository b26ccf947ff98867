/* tokenizer_encode: the way of a text through the parts of a tokenizer, by one thread or several.
 *
 * Several threads give the same ids as one.  Where the first cut is made by a pattern that is known
 * by hand, the text is divided at places where that pattern begins anew whatever came before, and
 * each part goes its way alone.  Otherwise one thread cuts the text into words, and the others
 * merge them; words that are long are divided where no merge reaches across.  For
 * tokenizer_encode.c and tokenizer_threads.c alone. */
#ifndef IO_TOKENIZER_ENCODE_H
#define IO_TOKENIZER_ENCODE_H

#include "io/tokenizer_load.h"

struct helpers;

struct encoder {
    const struct tokenizer *t;
    struct matcher *matcher;
    struct normalise_scratch normalise;
    struct split_scratch split;
    struct bpe_scratch *bpe;
    struct utf8_text repaired;
    struct ids *to;
    const char *why;
    struct helpers *helpers; /* NULL: works alone */
};

/* As tokenizer_encode, when helpers are set; the last words may still be with them. */
int encoder_run(struct encoder *e, const char *text, size_t n, bool add_special, struct ids *to);

/* What an encoder with helpers does with pieces and with added tokens. False: a pattern failed. */
bool helpers_piece(struct encoder *e, struct piece p);
void helpers_id(struct encoder *e, int32_t id);

#endif
