#include "src/dealing.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/context_parallel.h"
#include "src/engine.h"

/* Tokens of a sequence with what fills it up so that the context ranks can
 * share it: a document of its own. */
static int64_t padded_length(const struct reference *r, const struct engine *e) {
    const int64_t pieces = context_pieces(e->shape.context);
    return (r->length + pieces - 1) / pieces * pieces;
}

/* One sequence, as it is read. */
struct row {
    int32_t *ids, *start, *target;
    double *weight;
};

static void fill_row(const struct reference *r, int64_t row, const struct row *to, int64_t padded,
                     bool counts) {
    const int64_t *ids = r->ids + row * r->length, *labels = r->labels + row * r->length,
                  *mask = r->mask + row * r->length;
    int64_t begin = 0, length = r->length;
    for (int64_t t = 0; t < padded; t++) {
        if (t == length || (t > 0 && t < length && mask[t] != mask[t - 1])) begin = t;
        bool target = counts && t + 1 < length && labels[t + 1] != -100;
        to->ids[t] = t < length ? (int32_t)ids[t] : 0;
        to->start[t] = (int32_t)begin;
        to->target[t] = target ? (int32_t)labels[t + 1] : -1;
        to->weight[t] = target;
    }
}

/* Sequences are dealt out in blocks; a rank without any computes the first one without counting it,
 * so that every rank uses every parameter; and where tokens travel between data ranks all of them
 * go as many times. */
struct dealt dealing_make(const struct reference *r, const struct engine *e) {
    struct dealt w = {0};
    int64_t micro = e->deck->train.micro_batch, length = r->length, padded = padded_length(r, e);
    const struct row one = {
        die_alloc(padded * sizeof *one.ids), die_alloc(padded * sizeof *one.start),
        die_alloc(padded * sizeof *one.target), die_alloc(padded * sizeof *one.weight)};
    w.first = part_begin(r->rows, e->shape.data, e->parallel.at.data, 1);
    w.rows = part_begin(r->rows, e->shape.data, e->parallel.at.data + 1, 1) - w.first;
    for (int64_t b = 0; b < r->rows; b++)
        for (int64_t t = 1; t < length; t++) w.counted += r->labels[b * length + t] != -100;
    int64_t most = (r->rows + e->shape.data - 1) / e->shape.data,
            real = (w.rows + micro - 1) / micro;
    w.n = (int)(mesh_experts_join_data(&e->shape) ? (most + micro - 1) / micro : real ? real : 1);
    w.batch = die_alloc(w.n * sizeof *w.batch);
    for (int i = 0; i < w.n; i++) {
        struct host_batch *b = &w.batch[i];
        int64_t done = i * micro;
        bool any = i < real;
        int64_t rows = !any ? 1 : w.rows - done < micro ? w.rows - done : micro;
        *b = host_batch_make(e, rows, padded);
        w.tokens += b->rows * b->length;
        for (int64_t k = 0; k < rows; k++) {
            fill_row(r, any ? w.first + done + k : 0, &one, padded, any);
            host_batch_put(e, b, k, one.ids, one.start, one.target, one.weight);
        }
    }
    free(one.ids);
    free(one.start);
    free(one.target);
    free(one.weight);
    return w;
}

void dealing_free(struct dealt *w) {
    for (int i = 0; i < w->n; i++) host_batch_free(&w->batch[i]);
    free(w->batch);
}
int64_t dealing_runs(const struct engine *e, const struct dealt *w) {
    return context_rows(e->shape.context, w->rows);
}

struct run_of_tokens dealing_run(const struct reference *r, const struct engine *e,
                                 const struct dealt *w, int64_t i) {
    const int context = e->shape.context, held = context_held(context);
    const int64_t length = context_length(context, padded_length(r, e)),
                  first = context_piece(context, e->parallel.at.context, (int)(i % held)) * length,
                  left = r->length - first;
    return (struct run_of_tokens){(w->first + i / held) * r->length + first, i * length,
                                  left < 0        ? 0
                                  : left < length ? left
                                                  : length};
}

int dealing_boxes(const struct reference *r, const struct engine *e, const struct dealt *w,
                  void *memory, enum dtype d, struct box *boxes) {
    const int64_t words = e->model.words->rows;
    int n = 0;
    for (int64_t i = 0; memory && words && i < dealing_runs(e, w); i++) {
        const struct run_of_tokens run = dealing_run(r, e, w, i);
        if (run.n)
            boxes[n++] =
                (struct box){.tensor = r->logits ? (int)(r->logits - r->file.tensor) : 0,
                             .width = e->config->keys.vocab_size,
                             .row = run.from,
                             .rows = run.n,
                             .column = e->model.first_word,
                             .columns = words,
                             .memory = (char *)memory + (size_t)(run.at * words) * dtype_size(d),
                             .stride = words,
                             .dtype = d};
    }
    return n;
}

int64_t dealing_tokens(const struct reference *r, const struct engine *e, const struct dealt *w) {
    return (w->rows > 0 ? w->rows : 1) * padded_length(r, e) / e->shape.context;
}
