/* tokenizer_split: cutting a text into the words that a model then takes one by one.
 *
 * A list of stages.  Each cuts every piece the stage before gave, some change it on the way, and
 * what leaves the last one goes to the caller's `word`.  Pieces go down the stages one at a time,
 * so nothing is stored. */
#ifndef IO_TOKENIZER_SPLIT_H
#define IO_TOKENIZER_SPLIT_H

#include "io/tokenizer_normalise.h"

enum stage_kind {
    STAGE_SPLIT,
    STAGE_BYTES,
    STAGE_DIGITS,
    STAGE_METASPACE,
    STAGE_WHITESPACE,
    STAGE_WHITESPACE_SPLIT,
    STAGE_PUNCTUATION,
    STAGE_WRITE_BYTES
};

/* What becomes of the matches of a stage. */
enum behaviour { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

struct stage {
    enum stage_kind kind;
    enum behaviour behaviour;
    bool invert;
    struct pattern *pattern; /* SPLIT, BYTES with its pattern */
    bool prefix_space;       /* BYTES */
    bool each;               /* METASPACE: its pieces are cut; DIGITS: digit by digit */
    enum { ALWAYS, FIRST, NEVER } prepend;
    uint32_t character; /* METASPACE */
};

enum { MOST_STAGES = 16 };

struct splitter {
    int n;
    struct stage stages[MOST_STAGES];
    bool bytes_last; /* the words are bytes that stand for characters (the last stage is BYTES), not
                        yet written as such */
    bool exact; /* the first stage's pattern is known by hand and keeps all it matches: a text may
                   be cut where known_may_cut() says so */
};

struct split_scratch {
    struct {
        struct finder finder;
        struct utf8_text text;
    } stages[MOST_STAGES];
    struct matcher *matcher; /* borrowed */
    void (*word)(void *to, const char *word, size_t n);
    void *to;
};

/* Looks at the stages once they are all there. */
void splitter_finish(struct splitter *k);

/* Cuts the piece. False: a pattern failed. */
bool split(const struct splitter *k, struct split_scratch *w, struct piece p);

/* Of an exact splitter: the words that begin in [from, to) of the piece, both places where it may
 * be cut. */
bool split_part(const struct splitter *k, struct split_scratch *w, struct piece p, size_t from,
                size_t to);

void split_scratch_free(struct split_scratch *w);
void splitter_free(struct splitter *k);

#endif
