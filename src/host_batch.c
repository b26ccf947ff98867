#include "src/host_batch.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/context_parallel.h"
#include "src/documents.h"
#include "src/engine.h"

bool host_batch_whole(const struct engine *e) {
    return e->parallel.attention_heads || e->parallel.mamba_heads;
}

struct host_batch host_batch_shape(const struct engine *e, int64_t rows, int64_t length) {
    const int context = e->shape.context;
    return (struct host_batch){.rows = context_rows(context, rows),
                               .length = context_length(context, length)};
}

struct host_batch host_batch_make(const struct engine *e, int64_t rows, int64_t length) {
    struct host_batch b = host_batch_shape(e, rows, length);
    const unsigned long n = (unsigned long)(b.rows * b.length);
    b.ids = die_alloc(n * sizeof *b.ids);
    b.start = die_alloc(n * sizeof *b.start);
    b.target = die_alloc(n * sizeof *b.target);
    b.weight = die_alloc(n * sizeof *b.weight);
    b.document = die_alloc(n * sizeof *b.document);
    if (host_batch_whole(e))
        b.whole_start = die_alloc((unsigned long)(rows * length) * sizeof *b.whole_start);
    return b;
}

void host_batch_free(struct host_batch *b) {
    free(b->ids);
    free(b->start);
    free(b->target);
    free(b->weight);
    free(b->whole_start);
    free(b->document);
    *b = (struct host_batch){0};
}

int64_t host_batch_documents(const struct engine *e, const struct host_batch *b, int32_t *to) {
    const int64_t n = b->rows * b->length;
    int64_t counted = 0;
    if (b->document) memcpy(to, b->document, (unsigned long)n * sizeof *to);
    for (int64_t i = 0, at = 0; !b->document && i < b->rows; i++, at += b->length)
        documents_number(&e->parallel, b->rows, i, b->length, b->start + at, b->weight + at,
                         to + at);
    for (int64_t t = 0; t < n; t++) counted += to[t] >= 0;
    return counted;
}

int64_t host_batch_put(const struct engine *e, struct host_batch *b, int64_t row,
                       const int32_t *ids, const int32_t *start, const int32_t *target,
                       const double *weight) {
    const int context = e->shape.context, held = context_held(context),
              all = context_pieces(context);
    int64_t counted = 0;
    int32_t *whole = die_alloc((unsigned long)(all * b->length) * sizeof *whole);
    documents_number(&e->parallel, b->rows / held, row, all * b->length, start, weight, whole);
    for (int i = 0; i < held; i++) {
        const int64_t first = context_piece(context, e->parallel.at.context, i) * b->length,
                      to = (row * held + i) * b->length;
        memcpy(b->ids + to, ids + first, (unsigned long)b->length * sizeof *ids);
        memcpy(b->target + to, target + first, (unsigned long)b->length * sizeof *target);
        memcpy(b->document + to, whole + first, (unsigned long)b->length * sizeof *whole);
        memcpy(b->weight + to, weight + first, (unsigned long)b->length * sizeof *weight);
        for (int64_t t = 0; t < b->length; t++) {
            b->start[to + t] = (int32_t)(start[first + t] - first);
            counted += weight[first + t] != 0;
        }
    }
    if (b->whole_start)
        memcpy(b->whole_start + row * all * b->length, start,
               (unsigned long)(all * b->length) * sizeof *start);
    free(whole);
    return counted;
}
