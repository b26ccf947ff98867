/* corpora_cache: text made into tokens once, for all runs that read it.
 *
 * A cache is a folder named by a hash of all that the tokens depend on: tokenizer, files with their
 * sizes and times, share held out. In it lie `000000.tokens` and so on, each made of some megabytes
 * of text, and `index`, written last, which says how long each is: without it there is no cache.
 *
 *     000000.tokens    what it holds (counts, least and greatest hash of a document, checksum) |
 *                      tokens of the training documents | tokens of those held out
 *
 * How the text is cut depends on its size alone, so ranks and threads share the work as they like
 * and what they make is the same. Everything is written under another name, synced and renamed; a
 * builder that is killed leaves whole pieces, which the next one takes over after checking them.
 * One run builds at a time, under a lock that dies with its holder; where the file system has no
 * locks two may do the same work, and one replaces what the other wrote by its like. For corpora*.c
 * alone. */
#ifndef IO_CORPORA_CACHE_H
#define IO_CORPORA_CACHE_H

#include <stdint.h>

#include "io/corpora_stream.h"

struct group;
struct mistakes;
struct text_files;
struct token_source;

struct token_cache {
    char *folder;
    int64_t n;
    char **name;                                     /* [n], files of pieces */
    int64_t documents, held_documents, without_text; /* without_text: lines of *.jsonl */
};

/* Fills two streams with the files' tokens, those for training and those held out (a share `split`
 * of the documents, by their hash; with split > 0 neither is empty if two documents differ). Makes
 * the cache in a folder below `below` if it is not there or damaged; says so on standard error.
 * Collective over g. Returns -1 on all ranks after telling m: no cache can be made there. */
int cache_open(struct token_cache *c, const struct text_files *files,
               const struct token_source *tokens, double split, const char *below, int threads,
               struct group *g, struct mistakes *m, struct token_stream *train,
               struct token_stream *held);
void cache_free(struct token_cache *c);

#endif
