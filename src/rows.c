#include "src/rows.h"

#include <stdlib.h>

#include "io/corpora.h"
#include "kernels/die.h"

struct rows rows_new(int64_t rows, int64_t length) {
    size_t n = (size_t)(rows * length);
    struct rows r = {.batch = {rows, length, die_alloc(n * sizeof(int32_t)), die_alloc(n * sizeof(int32_t)),
                               die_alloc(n * sizeof(int32_t)), die_alloc(n * sizeof(double))}};
    r.tokens = die_alloc((size_t)(length + 1) * sizeof *r.tokens);
    r.counts = die_alloc((size_t)length * sizeof *r.counts);
    return r;
}

void rows_free(struct rows *r) {
    free(r->batch.ids);
    free(r->batch.start);
    free(r->batch.target);
    free(r->batch.weight);
    free(r->tokens);
    free(r->counts);
    *r = (struct rows){0};
}

int64_t rows_put(struct rows *r, const struct corpus *c, int64_t sample, int64_t row, bool counts) {
    struct host_batch *b = &r->batch;
    int64_t at = row * b->length, counted = 0;
    corpus_sample(c, sample, r->tokens, b->start + at, r->counts);
    for (int64_t t = 0; t < b->length; t++) {
        bool count = counts && r->counts[t];
        b->ids[at + t] = r->tokens[t];
        b->target[at + t] = count ? r->tokens[t + 1] : -1;
        b->weight[at + t] = count;
        counted += count;
    }
    return counted;
}
