/* corpora: where tokens come from, as a pure function of seed and sample number.
 *
 * A corpus answers one question: the tokens of sample i, with its document starts. `mock` draws
 * them from a seeded process that can be learned but not memorised; `text` reads files, each
 * document closed by a token of its own. The order of samples is a seeded permutation computed
 * without state, and so is the turn of each source where several are blended: neither the mesh nor
 * a restart changes which sample comes when. Bytes are read from the text itself; what a tokenizer
 * makes of it is made once and kept in a cache (io/corpora_cache.h). */
#ifndef IO_CORPORA_H
#define IO_CORPORA_H

#include <stdbool.h>
#include <stdint.h>

struct group;
struct mistakes;
struct token_source;

struct corpus {
    const char *kind; /* "mock" or "text" */
    uint64_t seed;
    int64_t vocabulary;
    int length;          /* tokens of a sample that are inputs; length + 1 are read */
    bool mask_documents; /* false: a sample is one document */
    bool validation;     /* made by corpus_validation */
    int64_t samples;     /* in one pass over the data; mock: endless (INT64_MAX) */
    uint64_t identity;   /* the same number: the same samples, whatever the files are called */
    struct sources *own; /* text; that for validation borrows it */
};

/* mock: seeded tokens below `vocabulary`: a made-up language with common and rare words, a grammar
 * that looks two words back, passages that return, and noise. Token 0 closes a document;
 * mask_documents is true and may be set to false. */
int corpus_mock(struct corpus *c, uint64_t seed, int64_t vocabulary, int length);

struct corpus_text {
    uint64_t seed;
    int length;
    bool mask_documents;
    int n_paths;
    char **paths; /* files, folders (all regular text files below) and patterns */
    int n_weights;
    const double *weights; /* [n_paths] shares of the samples that each path gives; n_weights 0: by
                              size, everything is one source, sorted by path */
    double split; /* share of the documents held out for validation; if > 0, at least one of each
                     source of two or more */
    const struct token_source *tokens;
    const char *cache; /* folder in which caches are made */
    int threads;       /* for making one */
};

/* text: reads what is there; a file is a document, a *.jsonl has one a line. Bytes (and no *.jsonl)
 * need no cache. Returns -1 on every rank after telling m: nothing found, nothing long enough, a
 * path that is not there. Collective over g (rank 0 lists, the others are told; all make tokens).
 * Left out and counted: unreadable, binary (a NUL byte) and empty files, links to folders, hidden
 * folders (.git and the like). */
int corpus_text(struct corpus *c, const struct corpus_text *t, struct group *g, struct mistakes *m);

/* What of c is measured: the documents held out, or all if split is 0, in an order that is always
 * the same, every token once: the last sample of a source is filled up with a document that does
 * not count. Beyond v->samples it begins again. Mock data: endless, samples that training never
 * comes to. Freed before c. */
void corpus_validation(const struct corpus *c, struct corpus *v);

/* Sample number i (any i >= 0; beyond one pass the next pass has another order). tokens: length +
 * 1; start: for each of the length inputs the place of its document's first token (never negative).
 * target t is tokens[t+1]; the token that closes a document is a target, the first token of the
 * next document is not predicted from it: target_counts[t] is false there (with mask_documents). */
void corpus_sample(const struct corpus *c, int64_t i, int32_t *tokens, int32_t *start,
                   bool *target_counts);

/* Where number i of 0..n-1 goes in the order that belongs to this key: a bijection. */
int64_t corpus_permute(uint64_t key, int64_t n, int64_t i);

/* One line for the log: files, bytes, shares, left out. Static buffer. */
const char *corpus_describe(const struct corpus *c);
void corpus_free(struct corpus *c);

#endif
