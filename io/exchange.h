/* exchange: how numbers travel between the ranks that hold boxes and the ranks that hold blocks of
 * files.
 *
 *     rank's boxes  --- pack, convert --->  packets  --- comm --->  block in the making  --->  file
 *
 * Files are cut in blocks, numbered through; block b is rank b mod size's. They are worked off in
 * rounds of one block a rank, and a round in windows of a part of each block, so small that what a
 * rank sends or receives at once stays bounded however many ranks there are. For each window a rank
 * finds which pieces of its boxes lie in it, and describes them to the block's rank as runs: so
 * many rows of so many bytes, so far apart. That is three runs a box, not one a row. The same
 * description serves both ways: pushed, the numbers follow their runs; pulled, they come back in
 * the order of the runs. A number belongs to the window in which its first byte lies; foreign files
 * may let it end in the next. Knows nothing of tensors' names or of disks. */
#ifndef IO_EXCHANGE_H
#define IO_EXCHANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "io/checkpoint.h"

/* Most bytes a rank sends or receives in one window; tests lower it. */
extern int64_t exchange_window_bytes;

enum { MOST_BYTES = 8 }; /* of one number */

/* Files, cut. Block b of file f has the number first[f] + b; first[n_files] is how many there are.
 */
struct cut {
    int n_files;
    int64_t *size, *block_bytes, *first;
};
struct block {
    int file;           /* -1: none */
    int64_t begin, end; /* bytes of the file */
};

void cut_init(struct cut *c, int n_files); /* the caller fills size and block_bytes, then: */
void cut_number(struct cut *c);
void cut_free(struct cut *c);
struct block cut_block(const struct cut *c, int64_t number);

/* A box with its place in the files. */
struct place {
    struct box box;
    int file;
    enum dtype stored;
    int64_t begin;  /* first byte of the tensor in its file */
    int64_t lo, hi; /* first byte of the box, and the one after its last */
};

/* Where this box lies; a box that does not fit its tensor, or whose dtype cannot be converted, is a
 * bug. */
struct place place_of(const struct box *b, const struct stored_tensor *t);

/* Rows of bytes in a block. */
struct run {
    int64_t at;                /* of the first row, from the block's begin */
    int64_t bytes, rows, step; /* of a row; how many; from one to the next */
};

struct buffer {
    unsigned char *p;
    int64_t room;
};

struct exchange {
    struct group *g;
    const struct cut *cut;
    int n;
    struct place *place; /* owned; sorted by file and lo */
    int64_t round, window, windows, window_step;
    struct block *block; /* [size]: this round's, by rank */
    int64_t *list_begin; /* [size + 1]: which places meet which block: into list */
    int *list, *active;
    int n_active, next_place;
    int64_t list_room;
    /* This window: with rank r, runs and bytes that I asked or push (mine), and that r did
     * (theirs). */
    int64_t (*mine)[2], (*theirs)[2];
    struct run *their_runs;    /* in the order of ranks */
    unsigned char *their_data; /* after exchange_push: in the order of the runs */
    struct buffer runs_out, runs_in, data_out, data_in;
    int64_t *bytes_out, *bytes_in; /* [size] */
};

/* Takes over `place` (malloc'd). */
void exchange_init(struct exchange *e, struct group *g, const struct cut *cut, int n,
                   struct place *place);
void exchange_free(struct exchange *e);

/* The next round: e->block[g->rank] is this rank's (file -1: none in this round). False after the
 * last. */
bool exchange_round(struct exchange *e);

/* The next window of the round, false after the last. Collective: afterwards the runs of all ranks
 * in this rank's block are known. */
bool exchange_window(struct exchange *e);

/* How many runs ranks have in this rank's block in this window. */
int64_t exchange_asked(const struct exchange *e);

/* Numbers travel to the blocks' ranks: their_data then holds them. Collective. */
void exchange_push(struct exchange *e);

/* Numbers travel from the blocks to the boxes. bytes: this rank's block, from its begin, of which
 * `have` bytes may be read (a few beyond its end: see above). Collective. */
void exchange_pull(struct exchange *e, const unsigned char *bytes, int64_t have);

#endif
