/* safetensors: the file format that all tensors come in and go out by.
 *
 * A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}} and the
 * bytes. Nothing in a header is trusted: its length, every offset, shape, overlap and hole is
 * checked against the size of the file before memory is taken by it, and a mistake names file and
 * tensor. */
#ifndef IO_SAFETENSORS_H
#define IO_SAFETENSORS_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/dtype.h"

struct mistakes;

enum { TENSOR_DIMS = 8 };

struct stored_tensor {
    char *name; /* as in the file; owned */
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_DIMS];
    int64_t elements, bytes;
    int file;      /* which file of a checkpoint holds it; 0 for a single file */
    int64_t begin; /* first byte, from the start of the file */
};

struct safetensors {
    char *path;
    int fd;       /* open for reading */
    int64_t size; /* of the file, bytes */
    int64_t data_begin;
    int n;
    struct stored_tensor *tensor; /* in the order of their bytes */
    json_t *metadata;             /* its __metadata__, texts by name; NULL without */
};

/* Opens and checks one file. Returns -1 after telling m; s is then closed. */
int safetensors_open(struct safetensors *s, const char *path, struct mistakes *m);
void safetensors_close(struct safetensors *s);

/* The header text (8 length bytes included, padded so that data begins at a multiple of 64) for
 * these tensors, whose `begin` are filled in, one after the other. metadata: texts by name, or
 * NULL. malloc'd; *length gets its bytes. */
char *safetensors_header(int n, struct stored_tensor *tensor, const json_t *metadata,
                         int64_t *length);

#endif
