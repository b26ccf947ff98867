/* rows: samples of a corpus, made into the arrays of a micro-batch. */
#ifndef SRC_ROWS_H
#define SRC_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "src/engine.h"

struct corpus;

/* A micro-batch in host memory, and what it takes to fill it. */
struct rows {
    struct host_batch batch;
    int32_t *tokens;
    bool *counts;
};

struct rows rows_new(int64_t rows, int64_t length);
void rows_free(struct rows *r);

/* Puts sample number `sample` in row `row`; returns its counted targets, or with counts false takes them all out. */
int64_t rows_put(struct rows *r, const struct corpus *c, int64_t sample, int64_t row, bool counts);

#endif
