/* corpora_piece: one file of a token cache, made and checked.
 *
 * What a piece holds is told by eight numbers, which stand at its beginning and again in the
 * cache's index. For corpora_cache.c alone. */
#ifndef IO_CORPORA_PIECE_H
#define IO_CORPORA_PIECE_H

#include <stdbool.h>
#include <stdint.h>

struct progress;
struct text_files;
struct token_source;

enum {
    PIECE_TRAIN, /* tokens for training */
    PIECE_HELD,  /* and held out */
    PIECE_DOCUMENTS,
    PIECE_HELD_DOCUMENTS,
    PIECE_WITHOUT_TEXT, /* lines of *.jsonl */
    PIECE_LEAST,
    PIECE_GREATEST,  /* hash of a document, as unsigned numbers */
    PIECE_THRESHOLD, /* documents below were held out */
    PIECE_FACTS,
    PIECE_HEADER = 8 * (PIECE_FACTS + 5) /* bytes before the tokens */
};

struct text_range { /* of bytes of a file */
    int64_t file, first, last;
};

struct piece_job {
    const struct text_files *files;
    const struct token_source *tokens;
    uint64_t key; /* no other piece has it */
    uint64_t threshold;
    int width;
    const char *name; /* of the file to write */
    int64_t n;
    const struct text_range *range; /* [n] */
    struct progress *progress;
    int64_t progress_factor; /* how much of the work one byte done here stands for */
};

/* Is the file there, whole, and what this job would make? Then facts[PIECE_FACTS] is filled. Reads
 * all of it. */
bool piece_check(const struct piece_job *j, int64_t *facts);

/* Makes it: complete or absent. Dies if it cannot be written. */
void piece_make(const struct piece_job *j, int64_t *facts);

/* Bytes that a file with these facts must have. */
int64_t piece_bytes(const int64_t *facts, int width);

#endif
