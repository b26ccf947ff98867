/* tokenizing: what the tests of tokenizers share: numbers by chance that are the same in every run,
 * and a tokenizer whose mistakes are printed. */
#ifndef TESTS_TOKENIZING_H
#define TESTS_TOKENIZING_H

#include <stdint.h>

#include "io/tokenizer.h"

/* The next number below `below`. */
uint32_t draw(uint32_t below);

/* NULL, and why on standard error, if the file or folder is refused. */
struct tokenizer *opened(const char *path);

#endif
