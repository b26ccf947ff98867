/* train: steps of gradients and updates, from a corpus to a saved folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/corpora.h"
#include "io/mistakes.h"
#include "kernels/die.h"
#include "parallel/timer.h"
#include "src/engine.h"
#include "src/modes.h"
#include "src/output.h"
#include "src/show.h"

/* ---- a step's tokens ---- */

struct feed {
    struct corpus corpus;
    int micro_batches, rows;            /* of this rank in a step; sequences of one */
    int64_t length, global_batch;
    int64_t first;                      /* this rank's first sequence within a step */
    struct host_batch *batch;
    int32_t *tokens;
    bool *counts;
};

static int feed_init(struct feed *f, const struct engine *e, struct comm *c, struct mistakes *m) {
    const struct deck *d = e->deck;
    memset(f, 0, sizeof *f);
    f->length = d->train.sequence_length;
    f->rows = (int)d->train.micro_batch;
    f->global_batch = d->train.global_batch;
    f->micro_batches = (int)(f->global_batch / (f->rows * e->shape.data));
    f->first = (int64_t)e->parallel.at.data * f->micro_batches * f->rows;
    uint64_t seed = (uint64_t)d->run.seed;
    int bad = strcmp(d->data.kind, "text")
                  ? corpus_mock(&f->corpus, seed, e->config->keys.vocab_size, (int)f->length)
                  : corpus_text(&f->corpus, seed, d->data.path.n, d->data.path.v, (int)f->length, d->data.mask_documents,
                                c->world, m);
    if (bad) return -1;
    f->corpus.mask_documents = d->data.mask_documents;
    int64_t n = f->rows * f->length;
    f->batch = die_alloc(f->micro_batches * sizeof *f->batch);
    for (int i = 0; i < f->micro_batches; i++) {
        struct host_batch *b = &f->batch[i];
        *b = (struct host_batch){f->rows, f->length, die_alloc(n * sizeof(int32_t)), die_alloc(n * sizeof(int32_t)),
                                 die_alloc(n * sizeof(int32_t)), die_alloc(n * sizeof(double))};
    }
    f->tokens = die_alloc((f->length + 1) * sizeof *f->tokens);
    f->counts = die_alloc(f->length * sizeof *f->counts);
    return 0;
}

static void feed_free(struct feed *f) {
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
}

/* Fills the micro-batches of step number `step` (from 1); returns the counted targets of this rank. Sample numbers
 * depend on the step alone, so the mesh changes only who reads which. */
static int64_t feed_step(struct feed *f, int64_t step) {
    int64_t counted = 0, sample = (step - 1) * f->global_batch + f->first;
    for (int i = 0; i < f->micro_batches; i++)
        for (int r = 0; r < f->rows; r++, sample++) {
            struct host_batch *b = &f->batch[i];
            int64_t at = r * f->length;
            corpus_sample(&f->corpus, sample, f->tokens, b->start + at, f->counts);
            for (int64_t t = 0; t < f->length; t++) {
                b->ids[at + t] = f->tokens[t];
                b->target[at + t] = f->counts[t] ? f->tokens[t + 1] : -1;
                b->weight[at + t] = f->counts[t];
                counted += f->counts[t];
            }
        }
    return counted;
}

static int64_t sum_over_replicas(struct engine *e, int64_t n) {
    struct group *g = e->parallel.replicas;
    struct request r;
    void *scratch = die_alloc(comm_sum_scratch(g, 1, I64));
    comm_sum_start(g, &n, 1, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
    return n;
}

/* ---- steps ---- */

static void save(struct engine *e, const struct output *o, struct show *w, int64_t step) {
    char *name = die_format("step-%08ld", (long)step), *folder = die_format("%s/checkpoints/%s", o->folder, name);
    char *latest = die_format("%s\n", name);
    double began = seconds_now();
    timer_enter(e->comm->timer, RANGE_CHECKPOINT);
    engine_save(e, folder, false);
    output_text(o, "checkpoints/latest", latest);
    timer_leave(e->comm->timer);
    show_did(w, 'c', "%.2f s", seconds_now() - began);
    free(name);
    free(folder);
    free(latest);
}

/* One step; false if loss or norm is not finite. */
static bool train_step(struct engine *e, struct feed *f, struct show *w, int64_t step) {
    const struct deck *d = e->deck;
    struct timer *timer = e->comm->timer;
    double began = seconds_now();
    bool balance = !strcmp(d->moe.balance, "bias");
    struct step_metrics s = {.step = step, .mfu = NAN, .validation = NAN};
    timer_enter(timer, RANGE_DATA);
    int64_t count = sum_over_replicas(e, feed_step(f, step));
    timer_leave(timer);
    s.loss = engine_gradients(e, f->micro_batches, f->batch, count, balance);
    timer_enter(timer, RANGE_OPTIMISER);
    s.grad_norm = optimiser_norm(&e->optimiser, &e->parallel);
    s.learning_rate = optimiser_rate(d, step);
    bool finite = isfinite(s.loss) && isfinite(s.grad_norm);
    if (finite) {
        optimiser_step(&e->optimiser, step, s.learning_rate, s.grad_norm);
        if (balance) optimiser_balance(&e->model, &e->device, &e->parallel, e->real, d->moe.bias_rate);
    }
    timer_leave(timer);
    s.step_seconds = seconds_now() - began;
    s.tokens = step * f->global_batch * f->length;
    s.tokens_per_second = (double)(f->global_batch * f->length) / s.step_seconds;
    s.peak_bytes = comm_max(e->comm->world, engine_peak_bytes(e));
    show_step(w, &s);
    return finite;
}

static int train(struct engine *e, struct feed *f, const struct output *o, struct show *w) {
    const struct deck *d = e->deck;
    int64_t steps = d->train.steps, every = d->checkpoint.interval;
    if (every && !steps) save(e, o, w, 0);
    for (int64_t step = 1; step <= steps; step++) {
        if (!train_step(e, f, w, step)) {
            show_line(w, true);
            say(o, "step %ld: loss or gradient norm is not finite; nothing was updated. A lower optimizer.learning_rate or train.clip may help",
                (long)step);
            return show_end(w, "the loss or the gradient norm was not finite", 4);
        }
        if (every && (step % every == 0 || step == steps)) save(e, o, w, step);
        show_line(w, false);
    }
    return show_end(w, "finished", 0);
}

/* What config.json says of a new model: it has no tensors for multi-token prediction; and its time steps are not
 * limited from below, which transformers would do while running, at the least step that dt_bias was drawn for. */
static void settle_new(struct config *c) {
    c->keys.num_nextn_predict_layers = 0;
    c->keys.time_step_min = 1e-9;
}

int mode_train(struct run *r, struct mistakes *m) {
    struct engine *e = r->engine;
    struct feed feed = {0};
    struct output o;
    struct show show;
    int code = 2;
    if (!show_open(&show, r, m) && !engine_init(e, r->comm, r->shape, false, true, true, m) && !feed_init(&feed, e, r->comm, m)) {
        output_begin(&o, e->deck, r->comm, r->argc, r->argv);
        show_begin(&show, &o, corpus_describe(&feed.corpus), feed.corpus.samples, 1);
        if (!e->has_weights) settle_new(e->config);
        code = train(e, &feed, &o, &show);
        output_end(&o);
    }
    show_free(&show);
    feed_free(&feed);
    return code;
}
