/* token_source: what makes token ids of text, as far as a corpus needs to know.
 *
 * A tokenizer fills this struct; the corpus calls `encode` for one document at a time, closes each
 * with `end`, and keeps what came out under the name of `hash`. Bytes, which need no vocabulary,
 * are the simplest. */
#ifndef IO_TOKEN_SOURCE_H
#define IO_TOKEN_SOURCE_H

#include <stdint.h>

struct token_source {
    const char *name;   /* for people: "bytes", or the tokenizer's file; borrowed */
    uint64_t hash;      /* of all that the ids depend on */
    int64_t vocabulary; /* every id is below */
    int32_t end;        /* closes a document; below vocabulary too */
    const void *own;

    /* The ids of n bytes of text, which need not be UTF-8: puts them at *ids, which holds *room of
     * them and is die_realloc'ed if that is too few, and returns how many. Several threads call at
     * once, each with an *ids of its own. */
    int64_t (*encode)(const void *own, const char *text, int64_t n, int32_t **ids, int64_t *room);
};

/* Ids 0 to 255 are bytes, 256 closes a document. */
extern const struct token_source token_source_bytes;

#endif
