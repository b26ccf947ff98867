#include "src/feed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/token_pool.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck_rules.h"
#include "src/engine.h"
#include "src/machine.h"
#include "src/units.h"

static int open_corpus(struct feed *f, const struct engine *e, struct mistakes *m) {
    const struct deck *d = e->deck;
    const struct vocabulary *v = &e->config->vocabulary;
    bool is_text = !strcmp(d->data.kind, "text"), bytes = !v->name || !strcmp(v->name, "bytes");
    if (is_text && !bytes) f->pool = token_pool_make(v->tokenizer, v->name, v->end);
    const struct corpus_text text = {.seed = (uint64_t)d->run.seed,
                                     .length = (int)f->length,
                                     .mask_documents = d->data.mask_documents,
                                     .n_paths = d->data.path.n,
                                     .paths = d->data.path.v,
                                     .n_weights = d->data.blend.n,
                                     .weights = d->data.blend.v,
                                     .split = d->data.split,
                                     .tokens =
                                         f->pool ? token_pool_source(f->pool) : &token_source_bytes,
                                     .cache = d->data.cache,
                                     .threads = e->device.threads};
    int bad = is_text ? corpus_text(&f->corpus, &text, e->comm->world, m)
                      : corpus_mock(&f->corpus, text.seed, e->config->keys.vocab_size, text.length);
    if (bad) return -1;
    f->corpus.mask_documents = d->data.mask_documents;
    corpus_validation(&f->corpus, &f->measured);
    f->validation = f->measured.samples;
    int64_t most = strcmp(d->run.mode, "evaluate") ? d->data.validation : d->evaluate.samples;
    if (most && most < f->validation) f->validation = most;
    return 0;
}

int feed_fits(const struct deck *d, const struct mesh_shape *shape, struct comm *c,
              struct mistakes *m) {
    double token = 3 * sizeof(int32_t) + sizeof(double);
    double bytes = token * (double)d->train.sequence_length * (double)d->train.global_batch /
                   shape->data / shape->context * c->host_ranks;
    int64_t memory = machine_memory();
    char need[UNIT_TEXT], have[UNIT_TEXT];
    if (!comm_max(c->world, bytes > (double)memory)) return 0;
    deck_mistake(
        d, m, "train.global_batch",
        "%ld sequences of %ld tokens: the tokens of a step alone take %s on this host, which "
        "has %s; a smaller batch or more hosts would do",
        (long)d->train.global_batch, (long)d->train.sequence_length, bytes_text(bytes, need),
        bytes_text((double)memory, have));
    return -1;
}

int feed_init(struct feed *f, const struct engine *e, struct mistakes *m) {
    const struct deck *d = e->deck;
    *f = (struct feed){.length = d->train.sequence_length,
                       .rows = (int)d->train.micro_batch,
                       .global_batch = d->train.global_batch,
                       .engine = e};
    f->micro_batches = (int)deck_micro_batches(d, &e->shape);
    f->first = (int64_t)e->parallel.at.data * f->micro_batches * f->rows;
    if (open_corpus(f, e, m)) return -1;
    f->batch = die_alloc((unsigned long)f->micro_batches * sizeof *f->batch);
    for (int i = 0; i < f->micro_batches; i++) f->batch[i] = host_batch_make(e, f->rows, f->length);
    f->tokens = die_alloc((unsigned long)(f->length + 1) * sizeof *f->tokens);
    f->start = die_alloc((unsigned long)f->length * sizeof *f->start);
    f->target = die_alloc((unsigned long)f->length * sizeof *f->target);
    f->weight = die_alloc((unsigned long)f->length * sizeof *f->weight);
    f->counts = die_alloc((unsigned long)f->length * sizeof *f->counts);
    return 0;
}

void feed_free(struct feed *f) {
    for (int i = 0; f->batch && i < f->micro_batches; i++) host_batch_free(&f->batch[i]);
    free(f->batch);
    free(f->tokens);
    free(f->start);
    free(f->target);
    free(f->weight);
    free(f->counts);
    if (f->corpus.kind) corpus_free(&f->corpus);
    token_pool_free(f->pool);
    *f = (struct feed){0};
}

/* Puts sample number `sample` in row r of micro-batch b, as far as it is this rank's; returns its
 * counted targets. blank: none of them counts, as where a round has more room than samples. */
static int64_t put_row(struct feed *f, const struct corpus *c, int64_t sample, struct host_batch *b,
                       int r, bool blank) {
    corpus_sample(c, sample, f->tokens, f->start, f->counts);
    for (int64_t t = 0; t < f->length; t++) {
        const bool counts = f->counts[t] && !blank;
        f->target[t] = counts ? f->tokens[t + 1] : -1;
        f->weight[t] = counts;
    }
    return host_batch_put(f->engine, b, r, f->tokens, f->start, f->target, f->weight);
}

int64_t feed_step(struct feed *f, int64_t step) {
    int64_t counted = 0, sample = (step - 1) * f->global_batch + f->first;
    for (int i = 0; i < f->micro_batches; i++)
        for (int r = 0; r < f->rows; r++)
            counted += put_row(f, &f->corpus, sample++, &f->batch[i], r, false);
    return counted;
}

int64_t feed_rounds(const struct feed *f) {
    return (f->validation + f->global_batch - 1) / f->global_batch;
}

int64_t feed_validation(struct feed *f, int64_t round) {
    int64_t counted = 0, sample = round * f->global_batch + f->first;
    for (int i = 0; i < f->micro_batches; i++)
        for (int r = 0; r < f->rows; r++, sample++)
            counted += put_row(f, &f->measured, sample < f->validation ? sample : 0, &f->batch[i],
                               r, sample >= f->validation);
    return counted;
}

int64_t feed_steps(const struct feed *f, double epochs) {
    if (f->corpus.samples == INT64_MAX) return -1;
    return (int64_t)ceil(epochs * (double)f->corpus.samples / (double)f->global_batch);
}
