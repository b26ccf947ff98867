/* convert_tokens: texts through the tokenizer and back, a line each.
 *
 * Reads files that have a JSON string in each line, and writes for each a line {"ids": [...],
 * "text": ...}: the ids as the tokenizers package gives them by default, with what the tokenizer
 * puts around every text, and the text that they are decoded to, without special tokens, spelled in
 * ASCII so that no line separator of Unicode cuts a line. Lines are taken in blocks, which the
 * threads of one rank share. */
#ifndef SRC_CONVERT_TOKENS_H
#define SRC_CONVERT_TOKENS_H

#include <stdint.h>

struct deck;
struct mistakes;
struct tokenizer;

struct token_counts {
    int64_t lines, bytes, ids;
};

/* From data.path to convert.to, which appears only when all is well. -1 after telling m, file and
 * line, what is no JSON string. Not collective. */
int convert_tokens(const struct deck *d, const struct tokenizer *t, int threads,
                   struct token_counts *n, struct mistakes *m);

#endif
