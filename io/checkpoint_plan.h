/* checkpoint_plan: which bytes of which file each new tensor becomes, before any of them exists.
 *
 * A pure function of the table of tensors, so that all ranks plan the same files without a word:
 * shards are filled in the order given, and within a file wider dtypes come first, which keeps
 * every number aligned to its size. Also the texts that are made of the plan: index and checksums.
 * For checkpoint_write.c alone. */
#ifndef IO_CHECKPOINT_PLAN_H
#define IO_CHECKPOINT_PLAN_H

#include "io/checkpoint.h"

struct planned_file {
    char name[64]; /* in the folder */
    int n;
    struct stored_tensor *tensor; /* in the order of their bytes; names borrowed */
    int *given;                   /* their numbers in the caller's table */
    char *header;
    int64_t header_bytes, size;
};

struct plan {
    int n_files;
    struct planned_file *file;
    int n;
    struct stored_tensor **place; /* by the caller's numbers; borrowed from the files */
    int64_t total_bytes;          /* of all tensors */
};

/* metadata: texts that every file's header gets as its __metadata__; NULL: none of ours. */
void plan_make(struct plan *p, int n, const struct new_tensor *tensors, int64_t shard_bytes,
               const json_t *metadata);
void plan_free(struct plan *p);

/* A number that differs where two ranks plan differently. */
uint64_t plan_fingerprint(const struct plan *p);

/* Texts of model.safetensors.index.json and checksums.json; hash: of all blocks of all files, one
 * after the other. malloc'd. */
char *plan_index(const struct plan *p);
char *plan_checksums(const struct plan *p, int64_t block_bytes, const uint64_t *hash);

#endif
