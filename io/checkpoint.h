/* checkpoint: a Hugging Face folder, read and written by all ranks together.
 *
 * A folder holds config.json and safetensors files (one, or shards with an index). Files know only
 * whole, global tensors; ranks hold boxes of them. Between the two stands one exchange: a file is
 * cut in fixed blocks, each block has one rank that reads or writes it, and the bytes travel
 * through comm between that rank and those that hold the numbers. So each byte is read once and
 * written once, in large pieces, whatever the mesh, and any mesh reads what any other wrote.
 *
 * A folder is written under a temporary name, its blocks hashed, synced, and renamed: it is
 * complete or absent. The hashes lie beside the tensors in checksums.json and are verified wherever
 * they are found with a file of the size they were made for; folders of other programs have none.
 * This file knows nothing of models: which tensor is which is the caller's business (src/params.h).
 */
#ifndef IO_CHECKPOINT_H
#define IO_CHECKPOINT_H

#include <stdbool.h>

#include "io/safetensors.h"

struct group;

/* What checksums.json says of one file: the XXH3 (64 bits) of each of its blocks. */
struct checksums {
    int64_t block_bytes, n;
    uint64_t *hash; /* NULL: nothing is known of this file */
};

struct checkpoint {
    char *folder; /* or the path of a single file */
    int n_files;
    struct safetensors *file;
    int n;
    struct stored_tensor *tensor; /* all files' tensors, sorted by name; names owned here */
    char *config;                 /* text of config.json; NULL if there is none */
    struct checksums *checksums;  /* [n_files] */
};

/* Bytes of a block of the files that are written; tests lower it. A multiple of 64. */
extern int64_t checkpoint_block_bytes;

/* Opens a folder (model.safetensors, or *.safetensors with model.safetensors.index.json; the index
 * must agree with the shards) or a single .safetensors file. Only headers are read. Returns -1
 * after telling m: folder or shard absent, damaged header, a tensor in two shards, index naming
 * what is not there. Every rank calls it on its own. */
int checkpoint_open(struct checkpoint *c, const char *path, struct mistakes *m);
void checkpoint_close(struct checkpoint *c);

/* The tensor of that name, or NULL. */
const struct stored_tensor *checkpoint_find(const struct checkpoint *c, const char *name);

/* A box of one stored tensor, seen as a matrix [.., width] that begins at element `first` of the
 * tensor, and where its numbers are in this rank's memory (host-visible). Memory may be F32 or F64,
 * or the stored dtype itself. */
struct box {
    int tensor;           /* number in the table of tensors */
    int64_t first, width; /* the matrix in the file: first element, elements in a row */
    int64_t row, rows, column, columns;
    void *memory;     /* of the box's first number */
    int64_t stride;   /* elements between rows in memory */
    enum dtype dtype; /* in memory */
};

/* Fills the boxes of every rank from the files, converting from the stored dtype. Boxes of
 * different ranks may overlap. Collective over g. Returns -1 on all ranks after telling m (on all
 * ranks alike) if a block's checksum is wrong or a file cannot be read; what was filled is then
 * undefined. */
int checkpoint_read(const struct checkpoint *c, struct group *g, int n, const struct box *boxes,
                    struct mistakes *m);

/* What is to be written: a global tensor, whose numbers come from the boxes of one rank each
 * (together they cover it exactly once), or from an open checkpoint: byte for byte, or real numbers
 * in another real format. */
struct new_tensor {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_DIMS];
    const struct checkpoint *from; /* or NULL */
    int from_tensor;
};
struct new_file { /* a small file beside the tensors: config.json, tokenizer files */
    const char *name;
    const char *text;
    int64_t bytes;
};

/* Writes `path`: a folder, or if it ends in .safetensors a single file. Boxes number the new
 * tensors in the order given, which is the order in the files, except that within a file wider
 * dtypes come first (torch wants numbers aligned). shard_bytes: a new file is begun when one would
 * grow beyond this (0: one file). Collective over g. Dies if the disk is full or a file cannot be
 * written, leaving at most the temporary folder `path`.tmp behind, never touching an older folder.
 * An existing `path` is replaced at the last moment; what else lay in an older folder is kept in
 * `path`.old. A folder that is not empty and holds no checkpoint is not replaced: the run dies
 * before anything is written. The bytes written do not depend on the group. like: a checkpoint
 * whose files' __metadata__ every new file gets, or NULL. */
void checkpoint_write(const char *path, struct group *g, int n_tensors,
                      const struct new_tensor *tensors, int n_boxes, const struct box *boxes,
                      int n_files, const struct new_file *files, int64_t shard_bytes,
                      const struct checkpoint *like);

/* Bytes first to first + n of a stored tensor, verified where checksums are known; on one rank.
 * Zero the cache before the first call, free its bytes after the last. -1 after telling m. */
struct block_cache {
    unsigned char *bytes; /* owned */
    const struct safetensors *of;
    int64_t begin;
};
int checkpoint_copy(const struct checkpoint *c, const struct stored_tensor *t, int64_t first,
                    int64_t n, void *to, struct block_cache *cache, struct mistakes *m);

/* Reads a whole stored tensor into host memory given by the caller (elements * dtype_size bytes),
 * no conversion; for small things, on one rank. Checksums are not looked at. */
int checkpoint_read_whole(const struct checkpoint *c, const struct stored_tensor *t, void *to,
                          struct mistakes *m);

#endif
