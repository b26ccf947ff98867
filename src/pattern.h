/* pattern: the order of a model's layers, one letter a layer.
 *
 *     M Mamba-2    * attention    - MLP    E experts
 *
 * Configurations spell it as a string in one of several dialects or as a list of words; inside the
 * program there are only these four letters. */
#ifndef SRC_PATTERN_H
#define SRC_PATTERN_H

#include <stdbool.h>

enum { PATTERN_LONGEST = 10000 };

/* Reads a pattern string to letters (malloc'd). torchtitan: E is an MLP and O experts, spaces
 * between. Returns NULL, or what is wrong with it (malloc'd), naming the position and what is
 * legal. */
char *pattern_from_text(const char *text, bool torchtitan, char **kinds);

/* The same from a list: linear_attention, full_attention, mlp, moe, or the older mamba and
 * attention. */
char *pattern_from_list(int n, char *const *word, char **kinds);

/* The word that transformers uses for a letter. */
const char *pattern_word(char kind);

#endif
