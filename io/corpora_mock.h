/* corpora_mock: text in a made-up language, from numbers alone.
 *
 * One rule for each thing that a hybrid model should learn, the easy ones first: words are
 * unequally common (Zipf); what follows depends on the word and on the kind of the one before it;
 * and passages of a document come again, which only looking back can tell. The rest is noise, so
 * nobody learns it by heart. For corpora.c alone. */
#ifndef IO_CORPORA_MOCK_H
#define IO_CORPORA_MOCK_H

#include <stdint.h>

enum { END_OF_MOCK = 0 }; /* the token that closes a document */

/* n tokens below `vocabulary`: sample i. Integers alone, so that every machine draws the same. */
void mock_tokens(uint64_t seed, int64_t i, int64_t vocabulary, int n, int32_t *tokens);

/* Two numbers made into one that looks random. */
uint64_t mock_mix(uint64_t a, uint64_t b);

#endif
