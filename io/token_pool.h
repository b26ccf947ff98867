/* token_pool: a tokenizer as a corpus sees it.
 *
 * A corpus calls its token_source from several threads; a tokenizer wants an encoder for each,
 * which keeps caches. So encoders are kept in a pool: a call takes a free one, or makes another,
 * and puts it back. Documents are encoded without what the tokenizer puts around texts: the corpus
 * closes each with `end`. */
#ifndef IO_TOKEN_POOL_H
#define IO_TOKEN_POOL_H

#include <stdint.h>

#include "io/token_source.h"

struct tokenizer;
struct token_pool;

/* The tokenizer is borrowed; name (copied) is for people; end closes a document. */
struct token_pool *token_pool_make(const struct tokenizer *t, const char *name, int32_t end);
void token_pool_free(struct token_pool *p);

/* Valid as long as the pool. Ids of text on which a pattern of the tokenizer runs wild do not
 * exist: the run ends with the reason. */
const struct token_source *token_pool_source(const struct token_pool *p);

#endif
