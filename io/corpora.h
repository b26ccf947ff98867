/* corpora: where tokens come from, as a pure function of seed and sample number.
 *
 * A corpus answers one question: the tokens of sample i, with its document starts. `mock` draws
 * them from a seeded process that can be learned but not memorised; `text` reads files as bytes,
 * each file a document closed by token 256. The order of samples is a seeded permutation computed
 * without state, so neither the mesh nor a restart changes which sample comes when. */
#ifndef IO_CORPORA_H
#define IO_CORPORA_H

#include <stdbool.h>
#include <stdint.h>

struct mistakes;
struct group;

struct corpus {
    const char *kind; /* "mock" or "text" */
    uint64_t seed;
    int64_t vocabulary;
    int length;          /* tokens of a sample that are inputs; length + 1 are read */
    bool mask_documents; /* false: a sample is one document */
    int64_t samples;     /* in one pass over the data; mock: endless (INT64_MAX) */
    void *own;
};

/* mock: seeded tokens below `vocabulary`: a made-up language with common and rare words, a grammar
 * that looks two words back, passages that return, and noise. Token 0 closes a document;
 * mask_documents is true and may be set to false. */
int corpus_mock(struct corpus *c, uint64_t seed, int64_t vocabulary, int length);

/* text: files, folders (all regular readable text files below, sorted by path) and globs. Bytes
 * 0..255, token 256 after each file. Returns -1 after telling m: nothing found, nothing long
 * enough, a path that is not there. Same result on every rank; collective over g (rank 0 lists and
 * reads the sizes, the others are told). Left out and counted: unreadable, binary (a NUL byte) and
 * empty files, links to folders, hidden folders (.git and the like). */
int corpus_text(struct corpus *c, uint64_t seed, int n_paths, char **paths, int length,
                bool mask_documents, struct group *g, struct mistakes *m);

/* Sample number i (any i >= 0; beyond one pass the next pass has another order). tokens: length +
 * 1; start: for each of the length inputs the place of its document's first token (never negative).
 * target t is tokens[t+1]; the token that closes a document is a target, the first token of the
 * next document is not predicted from it: target_counts[t] is false there (with mask_documents). */
void corpus_sample(const struct corpus *c, int64_t i, int32_t *tokens, int32_t *start,
                   bool *target_counts);

/* Where number i of 0..n-1 goes in the order that belongs to this key: a bijection. */
int64_t corpus_permute(uint64_t key, int64_t n, int64_t i);

/* One line for the log: files, bytes, left out. Static buffer. */
const char *corpus_describe(const struct corpus *c);
void corpus_free(struct corpus *c);

#endif
