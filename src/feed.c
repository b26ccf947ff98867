#include "src/feed.h"

#include <stdlib.h>
#include <string.h>

#include "io/mistakes.h"
#include "kernels/die.h"
#include "src/engine.h"

static int open_corpus(struct feed *f, const struct engine *e, struct mistakes *m) {
    const struct deck *d = e->deck;
    uint64_t seed = (uint64_t)d->run.seed;
    int length = (int)f->length;
    bool text = !strcmp(d->data.kind, "text");
    int bad = text ? corpus_text(&f->corpus, seed, d->data.path.n, d->data.path.v, length,
                                 d->data.mask_documents, e->comm->world, m)
                   : corpus_mock(&f->corpus, seed, e->config->keys.vocab_size, length);
    if (!bad) f->corpus.mask_documents = d->data.mask_documents;
    return bad;
}

int feed_init(struct feed *f, const struct engine *e, struct mistakes *m) {
    const struct deck *d = e->deck;
    *f = (struct feed){.length = d->train.sequence_length,
                       .rows = (int)d->train.micro_batch,
                       .global_batch = d->train.global_batch};
    f->micro_batches = (int)(f->global_batch / (f->rows * e->shape.data));
    f->first = (int64_t)e->parallel.at.data * f->micro_batches * f->rows;
    if (open_corpus(f, e, m)) return -1;
    unsigned long n = (unsigned long)(f->rows * f->length);
    f->batch = die_alloc((unsigned long)f->micro_batches * sizeof *f->batch);
    for (int i = 0; i < f->micro_batches; i++)
        f->batch[i] = (struct host_batch){
            .rows = f->rows,
            .length = f->length,
            .ids = die_alloc(n * sizeof(int32_t)),
            .start = die_alloc(n * sizeof(int32_t)),
            .target = die_alloc(n * sizeof(int32_t)),
            .weight = die_alloc(n * sizeof(double)),
        };
    f->tokens = die_alloc((unsigned long)(f->length + 1) * sizeof *f->tokens);
    f->counts = die_alloc((unsigned long)f->length * sizeof *f->counts);
    return 0;
}

void feed_free(struct feed *f) {
    for (int i = 0; f->batch && i < f->micro_batches; i++) {
        free(f->batch[i].ids);
        free(f->batch[i].start);
        free(f->batch[i].target);
        free(f->batch[i].weight);
    }
    free(f->batch);
    free(f->tokens);
    free(f->counts);
    if (f->corpus.kind) corpus_free(&f->corpus);
    *f = (struct feed){0};
}

/* Puts sample number `sample` in row r of micro-batch b; returns its counted targets. */
static int64_t put_row(struct feed *f, const struct corpus *c, int64_t sample,
                       struct host_batch *b, int r) {
    int64_t at = r * f->length, counted = 0;
    corpus_sample(c, sample, f->tokens, b->start + at, f->counts);
    for (int64_t t = 0; t < f->length; t++) {
        b->ids[at + t] = f->tokens[t];
        b->target[at + t] = f->counts[t] ? f->tokens[t + 1] : -1;
        b->weight[at + t] = f->counts[t];
        counted += f->counts[t];
    }
    return counted;
}

int64_t feed_step(struct feed *f, int64_t step) {
    int64_t counted = 0, sample = (step - 1) * f->global_batch + f->first;
    for (int i = 0; i < f->micro_batches; i++)
        for (int r = 0; r < f->rows; r++)
            counted += put_row(f, &f->corpus, sample++, &f->batch[i], r);
    return counted;
}
