/* bench: how fast this machine is at this deck's model, layer by layer and operation by operation.
 *
 * Each kind of layer of the model is run alone, forward and backward, on a micro-batch as the deck
 * has it; then whole steps. Beside every time stands the time below which no program could be: each
 * operation at the peak of arithmetic or of memory, whichever takes longer. The quotient says where
 * there is something to gain. Collective over the world; rank 0 tells its own times,
 * and of layers that are not in its stages those of the first rank that has them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/die.h"
#include "kernels/ops.h"
#include "parallel/context_parallel.h"
#include "parallel/tensor_parallel.h"
#include "src/costs.h"
#include "src/engine.h"
#include "src/machine.h"
#include "src/modes.h"
#include "src/output.h"

enum { REPEATS = 5, MOST_KINDS = 8 };

/* One thing that was measured: medians of several runs after one that does not count. */
struct measured {
    double seconds;
    struct op_count op; /* of one run */
};

struct bench {
    struct engine *e;
    struct output o;
    struct host_batch host;
    struct pass pass; /* of the layer in hand */
    void *stream;     /* numbers for the stream before a layer, in the format of activations */
    struct piece *piece[2]; /* starts, starts of whole sequences */
    FILE *json;
};

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

/* Alone on one thread, the time that the processor gave us: other programs disturb it less. */
static double now(const struct engine *e) {
    struct timespec t;
    if (e->device.threads > 1 || e->comm->size > 1) return seconds_now();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Counters since `before`. */
static struct op_count since(const struct engine *e, const struct costs *before) {
    struct costs spent;
    costs_read(&spent, e);
    costs_add(&spent, before, -1);
    return costs_total(&spent);
}

/* ---------------------------------------------------------------- the micro-batch */

static void *take(struct bench *b, int i, const void *host, size_t bytes, const char *label) {
    void *p;
    b->piece[i] = arena_take(&b->e->work, bytes, label, &p);
    device_write(&b->e->device, p, host, bytes);
    return p;
}

/* Words at random, and a stream, the same on every rank: what they are makes no difference to the
 * time, that they differ does. */
static void make_batch(struct bench *b) {
    const struct deck_train *k = &b->e->deck->train;
    const int64_t words = b->e->config->keys.vocab_size,
                  whole = k->micro_batch * k->sequence_length;
    struct host_batch *h = &b->host;
    *h = host_batch_make(b->e, k->micro_batch, k->sequence_length);
    const int64_t n = h->rows * h->length;
    for (int64_t i = 0; h->whole_start && i < whole; i++) h->whole_start[i] = 0;
    uint64_t x = 1;
    for (int64_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        h->ids[i] = (int32_t)((x >> 33) % (uint64_t)words);
        h->target[i] = (int32_t)((x >> 20) % (uint64_t)words);
        h->start[i] =
            (int32_t)(-h->length *
                      context_piece(b->e->shape.context, b->e->parallel.at.context,
                                    (int)(i / h->length) % context_held(b->e->shape.context)));
        h->weight[i] = 1;
    }
    const size_t numbers = (size_t)(n * b->e->config->keys.hidden_size);
    float *stream = die_alloc(numbers * sizeof *stream);
    for (size_t i = 0; i < numbers; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        stream[i] = (float)(x >> 40) * 0x1p-23f - 1;
    }
    b->stream = die_alloc(numbers * dtype_size(b->e->stored));
    dtype_convert(b->stream, b->e->stored, stream, F32, numbers);
    free(stream);
}

/* ---------------------------------------------------------------- one layer */

/* The stream as a layer meets it, from whatever is before: numbers at random, with a gradient. */
static struct tensor *stream(struct bench *b) {
    struct engine *e = b->e;
    struct tape *t = &e->tape;
    const int64_t tokens = b->host.rows * b->host.length;
    const size_t bytes = (size_t)tokens * sizeof(int32_t);
    struct micro_batch batch = {.rows = b->host.rows, .length = b->host.length};
    batch.start = take(b, 0, b->host.start, bytes, "document starts");
    b->piece[1] = NULL;
    if (b->host.whole_start)
        batch.whole_start = take(b, 1, b->host.whole_start, bytes * (size_t)e->shape.context,
                                 "whole document starts");
    model_batch(t, &batch, &b->pass);
    const struct layout l = model_stream(t);
    struct tensor *x =
        tape_input(t, "stream", stream_rows(t, tokens), e->config->keys.hidden_size, &l);
    device_write(&e->device, x->data, b->stream, (size_t)tensor_elements(x) * dtype_size(x->dtype));
    return x;
}

/* Forward and backward of one layer, and what they took. Collective over the world, though only
 * those that hold the layer run it. */
static void run_layer(struct bench *b, struct layer *layer, bool mine, struct measured m[2]) {
    struct engine *e = b->e;
    struct tensor *x = NULL, *y = NULL;
    b->pass = (struct pass){.experts.evenly = e->experts.evenly};
    if (mine) {
        params_zero_gradients(&e->model.params, &e->device, e->real);
        x = stream(b);
        layer->pass = &b->pass;
    }
    for (int i = 0; i < 2; i++) {
        struct costs before;
        comm_barrier(e->comm->world);
        if (!mine) continue;
        costs_read(&before, e);
        const double began = now(e);
        if (i == 0) y = layer->kind->forward(&e->tape, layer, x);
        else tape_backward(&e->tape, y, 1e-3, MASK_ALL);
        m[i].seconds = now(e) - began;
        m[i].op = since(e, &before);
    }
    if (!mine) return;
    tape_clear(&e->tape);
    for (int i = 0; i < 2; i++)
        if (b->piece[i]) arena_give(&e->work, b->piece[i]);
}

static void say_measured(const struct bench *b, const char *what, int times,
                         const struct measured *m) {
    say(&b->o, "  %-26s %6d %10.3f %10.2f %10.1f %9.0f", what, times, 1e3 * m->seconds,
        1e-9 * m->op.work, 1e-9 * m->op.work / m->seconds, 100 * m->op.least_s / m->seconds);
}

static void json_measured(const struct bench *b, const char *name, const struct measured *m) {
    char s[32];
    if (!b->json) return;
    fprintf(b->json, "\"%s\": {\"seconds\": %s, \"work\": %.0f, \"least_seconds\": %.6g}", name,
            number_text(m->seconds, s), m->op.work, m->op.least_s);
}

/* What the first rank of a stage measured. */
static void fetch(struct bench *b, int stage, struct measured m[2]) {
    struct comm *c = b->e->comm;
    struct measured *all = die_alloc((size_t)c->size * 2 * sizeof *all);
    int64_t *counts = die_alloc((size_t)c->size * sizeof *counts);
    struct request r;
    for (int i = 0; i < c->size; i++) counts[i] = 2;
    comm_gather_start(c->world, m, all, counts, sizeof *all, &r);
    comm_wait(&r);
    memcpy(m, all + 2 * mesh_rank(&b->e->shape, stage, 0, 0, 0), 2 * sizeof *m);
    free(all);
    free(counts);
}

static void bench_layer(struct bench *b, struct layer *layer, int stage, bool first) {
    struct measured m[2] = {{0}}, one[2] = {{0}};
    double seconds[2][REPEATS];
    const int times = config_count(b->e->config, layer->kind->letter);
    for (int r = -1; r < REPEATS; r++) {
        run_layer(b, layer, b->e->parallel.at.pipeline == stage, one);
        for (int i = 0; i < 2 && r >= 0; i++) seconds[i][r] = one[i].seconds;
    }
    for (int i = 0; i < 2; i++) m[i] = (struct measured){median(seconds[i], REPEATS), one[i].op};
    fetch(b, stage, m);
    for (int i = 0; i < 2; i++) {
        char what[64];
        snprintf(what, sizeof what, "%c %s, %s", layer->kind->letter, layer->kind->name,
                 i ? "backward" : "forward");
        say_measured(b, what, times, &m[i]);
    }
    if (!b->json) return;
    fprintf(b->json, "%s\n    \"%c\": {\"layers\": %d, ", first ? "" : ",", layer->kind->letter,
            times);
    json_measured(b, "forward", &m[0]);
    fprintf(b->json, ", ");
    json_measured(b, "backward", &m[1]);
    fprintf(b->json, "}");
}

static void bench_layers(struct bench *b) {
    char seen[MOST_KINDS + 1] = "";
    say(&b->o, "\n  %-26s %6s %10s %10s %10s %9s", "layer", "layers", "ms each", "GFLOP", "GFLOP/s",
        "% of best");
    if (b->json) fprintf(b->json, "  \"layers\": {");
    for (int i = 0; i < b->e->config->n_layers; i++) {
        struct layer *l = &b->e->model.layer[i];
        const size_t n = strlen(seen);
        if (strchr(seen, l->kind->letter) || n == MOST_KINDS) continue;
        bench_layer(b, l, staging_rank(&b->e->stages, staging_of_layer(&b->e->stages, i)), n == 0);
        seen[n] = l->kind->letter;
        seen[n + 1] = '\0';
    }
    if (b->json) fprintf(b->json, "\n  },\n");
}

/* ---------------------------------------------------------------- whole steps */

static int by_time(const void *a, const void *b) {
    const struct op_count *x = *(const struct op_count *const *)a,
                          *y = *(const struct op_count *const *)b;
    return x->spent_s < y->spent_s ? 1 : x->spent_s > y->spent_s ? -1 : x < y ? -1 : x > y;
}

static void say_ops(const struct bench *b, const struct costs *c, double seconds) {
    const struct op_count *op[N_OPS], all = costs_total(c);
    int n = 0;
    for (int i = 0; i < N_OPS; i++)
        if (c->op[i].calls) op[n++] = &c->op[i];
    qsort(op, (size_t)n, sizeof *op, by_time);
    say(&b->o, "\n  %-26s %6s %10s %10s %10s %9s %9s", "operation in a step", "calls", "ms",
        "GFLOP/s", "GB/s", "% of best", "% of step");
    for (int i = 0; i < n; i++)
        say(&b->o, "  %-26s %6ld %10.3f %10.1f %10.1f %9.0f %9.1f",
            op_row((enum op)(op[i] - c->op))->name, (long)op[i]->calls, 1e3 * op[i]->spent_s,
            1e-9 * op[i]->work / op[i]->spent_s, 1e-9 * op[i]->bytes / op[i]->spent_s,
            100 * op[i]->least_s / op[i]->spent_s, 100 * op[i]->spent_s / seconds);
    say(&b->o, "  %-26s %6s %10.3f %10s %10s %9s %9.1f", "between operations", "",
        1e3 * (seconds - all.spent_s), "", "", "", 100 * (1 - all.spent_s / seconds));
}

static void json_step(const struct bench *b, const struct costs *c, const struct measured *m) {
    bool first = true;
    if (!b->json) return;
    fprintf(b->json, "  ");
    json_measured(b, "step", m);
    fprintf(b->json, ",\n  \"operations\": {");
    for (int i = 0; i < N_OPS; i++) {
        const struct op_count *k = &c->op[i];
        if (!k->calls) continue;
        fprintf(
            b->json,
            "%s\n    \"%s\": {\"calls\": %ld, \"seconds\": %.6g, \"work\": %.0f, \"bytes\": %.0f, "
            "\"least_seconds\": %.6g}",
            first ? "" : ",", op_row((enum op)i)->name, (long)k->calls, k->spent_s, k->work,
            k->bytes, k->least_s);
        first = false;
    }
    fprintf(b->json, "\n  }\n}\n");
}

/* Steps of one micro-batch on every rank, in a pipeline of the deck's, but not more than fill it
 * four times. */
static int64_t micro_batches(const struct engine *e) {
    const struct deck_train *k = &e->deck->train;
    const int64_t all = k->global_batch / (k->micro_batch * e->shape.data), most = 4 * e->stages.n;
    return e->stages.n == 1 || all < 1 ? 1 : all < most ? all : most;
}

static void bench_steps(struct bench *b) {
    struct engine *e = b->e;
    const int64_t n = micro_batches(e);
    const double tokens =
        (double)(n * b->host.rows * b->host.length * e->shape.data * e->shape.context);
    struct host_batch *batches = die_alloc((size_t)n * sizeof *batches);
    for (int64_t i = 0; i < n; i++) batches[i] = b->host;
    double seconds[REPEATS], sorted[REPEATS];
    struct costs before, step[REPEATS], after;
    for (int r = -1; r < REPEATS; r++) {
        comm_barrier(e->comm->world);
        costs_read(&before, e);
        double began = now(e);
        engine_gradients(e, (int)n, batches, (int64_t)tokens, false);
        double norm = optimiser_norm(&e->optimiser, &e->parallel);
        optimiser_step(&e->optimiser, r + 2, 1e-4, norm);
        const double took = now(e) - began;
        costs_read(&after, e);
        costs_add(&after, &before, -1);
        if (r >= 0) sorted[r] = seconds[r] = took, step[r] = after;
    }
    struct measured m = {.seconds = median(sorted, REPEATS)};
    int middle = 0;
    while (seconds[middle] != m.seconds) middle++;
    m.op = costs_total(&step[middle]);
    say_measured(b, "whole step", 1, &m);
    say(&b->o, "  %.0f tokens/s, %ld micro-batch%s of a rank", tokens / m.seconds, (long)n,
        n == 1 ? "" : "es");
    free(batches);
    say_ops(b, &step[middle], m.seconds);
    json_step(b, &step[middle], &m);
}

static void begin(struct bench *b, struct run *r) {
    struct engine *e = b->e;
    const struct comm *c = r->comm;
    const int threads = e->device.threads;
    e->device.speed = machine_speed(e->deck, threads, threads * c->host_ranks, c->host_cores, true);
    e->device.timed = true;
    output_begin(&b->o, e->deck, r->comm, r->argc, r->argv, -1);
    say(&b->o,
        "mestar times layers %s on %d rank%s of %d thread%s, %ld x %ld tokens, %s\n"
        "best here, measured now: %.1f GFLOP/s in fp32, %.1f in bf16, %.1f GB/s of memory "
        "(more in caches: shares may pass 100)",
        e->config->kinds, c->size, c->size == 1 ? "" : "s", threads, threads == 1 ? "" : "s",
        (long)b->host.rows, (long)b->host.length, e->deck->precision.recipe,
        1e-9 * e->device.speed.fp32, 1e-9 * e->device.speed.bf16, 1e-9 * e->device.speed.memory);
    if (!b->o.speaks) return;
    char *path = die_format("%s/bench.json", b->o.folder);
    if (!(b->json = fopen(path, "w"))) die("cannot write %s", path);
    free(path);
    fprintf(b->json,
            "{\n  \"machine\": {\"peak_fp32\": %.4g, \"peak_bf16\": %.4g, \"memory_bandwidth\": "
            "%.4g},\n",
            e->device.speed.fp32, e->device.speed.bf16, e->device.speed.memory);
}

int mode_bench(struct run *r, struct mistakes *m) {
    struct bench b = {.e = r->engine};
    if (engine_init(b.e, r->comm, r->shape, false, true, true, m)) return 2;
    make_batch(&b);
    begin(&b, r);
    bench_layers(&b);
    bench_steps(&b);
    if (b.json && fclose(b.json)) die("cannot write bench.json; is the disk full?");
    output_summary(&b.o, r->comm, "finished", 0, engine_peak_bytes(b.e), NULL);
    output_end(&b.o);
    host_batch_free(&b.host);
    free(b.stream);
    return 0;
}
