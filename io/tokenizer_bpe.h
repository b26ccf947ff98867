/* tokenizer_bpe: a vocabulary, and the merges that make tokens of a word.
 *
 * A word begins as one symbol a character (or byte); again and again the pair of neighbours with
 * the lowest rank is made one, the leftmost first, until no pair has a rank.  Short words look
 * through their pairs each time, long ones keep a heap.  Most words of a text were seen before: two
 * small caches a thread, indexed by hash, hold the ids of words of up to 15 and up to 47 bytes and
 * forget by overwriting.  Longer words are first cut where no merge can reach across: between two
 * characters which no merge ever joins (where one stands last in its left part and the other first
 * in its right part), so that text without spaces costs no more than text with them. */
#ifndef IO_TOKENIZER_BPE_H
#define IO_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/tokenizer.h"
#include "io/tokenizer_strings.h"

enum { MOST_IDS = 1 << 24 };

struct merge {
    uint64_t pair; /* left << 32 | right, UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
};

struct bpe {
    struct strings tokens;
    int32_t n_ids;      /* highest id + 1 */
    uint32_t *entry_of; /* [n_ids]: entry + 1 of tokens, 0: no token has this id */
    struct merge *merges;
    uint32_t merge_mask;
    bool fuse_unk, byte_fallback, ignore_merges;
    struct utf8_text prefix, suffix; /* of characters that continue a word, of the last one */
    int32_t unk;                     /* NO_ID: unknown characters vanish */
    bool bytes;                      /* words are bytes that stand for characters */
    bool bytes_known;                /* every such byte is a token */
    int32_t byte_id[4][256];         /* [continues | last << 1] */
    int32_t fallback[256];           /* the tokens <0x00> to <0xFF>, or NO_ID */
    int32_t *character; /* [CODE_POINTS]: id + 1 of the token that is this character, 0: none */
    struct strings raw; /* bytes && ignore_merges: tokens as the bytes they stand for */
    bool cuts;          /* no prefix, no suffix: words may be cut */
    uint8_t joined_bytes[8192]; /* bit left | right << 8 of bytes that a merge joins */
    uint64_t *joined; /* hashed set of left << 32 | right + 1 of characters that a merge joins; 0:
                         empty */
    uint64_t joined_mask;
    uint8_t joined_ascii[2048]; /* the same for ASCII, bit left | right << 7 */
};

/* What one thread needs. */
struct bpe_scratch;
struct bpe_scratch *bpe_scratch_make(void);
void bpe_scratch_free(struct bpe_scratch *w);

/* Adds the ids of one word. */
void bpe_word(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
              struct ids *to);

/* The end of the first part of a word that can be merged alone; n if it cannot be cut. */
size_t bpe_cut(const struct bpe *b, const char *word, size_t n);

/* The token that the word is as a whole by ignore_merges, or NO_ID. Its parts, if it is cut, may
 * not be asked. */
int32_t bpe_whole(const struct bpe *b, const char *word, size_t n);

/* Adds the ids of a word, or part of one, that is no token as a whole. */
void bpe_part(const struct bpe *b, struct bpe_scratch *w, const char *word, size_t n,
              struct ids *to);

/* Builds what is derived, once tokens, merges and the flags are there. */
void bpe_finish(struct bpe *b);
void bpe_merges_begin(struct bpe *b, size_t n);
void bpe_merge_add(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);
void bpe_free(struct bpe *b);

/* The token of an id; NULL if there is none. */
const char *bpe_token(const struct bpe *b, int32_t id, size_t *n);

#endif
