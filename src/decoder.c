#include "src/decoder.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/tensor_parallel.h"

static bool held_here(const struct engine *e, int stage) {
    return stage >= 0 && stage < e->stages.n &&
           staging_rank(&e->stages, stage) == e->parallel.at.pipeline;
}

void decoder_init(struct decoder *d, struct engine *e, int64_t rows, int64_t capacity,
                  int64_t chunk) {
    const struct model *m = &e->model;
    int64_t vocabulary = e->config->keys.vocab_size,
            places = rows * (chunk < capacity ? chunk : capacity);
    *d = (struct decoder){.engine = e, .most_rows = rows, .capacity = capacity, .chunk = chunk};
    d->state = die_alloc((m->config->n_layers + 1) * sizeof *d->state);
    for (int i = 0; i < m->config->n_layers; i++) {
        const struct layer *l = &m->layer[i];
        int64_t n[LAYER_STATES] = {0};
        if (!l->kind->state_size || !held_here(e, staging_of_layer(&e->stages, i))) continue;
        l->kind->state_size(l, capacity, n);
        for (int k = 0; k < LAYER_STATES; k++)
            arena_take(&e->states,
                       (size_t)(rows * n[k]) *
                           dtype_size(l->kind->real_states >> k & 1 ? e->real : e->stored),
                       l->kind->name, &d->state[i].p[k]);
    }
    d->padding = die_alloc(rows * sizeof *d->padding);
    d->ids = die_alloc(places * sizeof *d->ids);
    d->start = die_alloc(places * sizeof *d->start);
    d->words = die_alloc(rows * m->words->rows * dtype_size(e->real) + 1);
    d->all = die_alloc(rows * vocabulary * dtype_size(e->real));
    d->logits = die_alloc(rows * vocabulary * sizeof *d->logits);
}

void decoder_free(struct decoder *d) {
    free(d->state);
    free(d->padding);
    free(d->ids);
    free(d->start);
    free(d->words);
    free(d->all);
    free(d->logits);
    memset(d, 0, sizeof *d);
}

/* The words of all tensor ranks side by side; from the last stage to all. */
static void gather_words(struct decoder *d) {
    struct engine *e = d->engine;
    struct group *g = e->parallel.axis[MESH_TENSOR];
    struct staging *s = &e->stages;
    int64_t vocabulary = e->config->keys.vocab_size, *counts = die_alloc(g->size * sizeof *counts);
    struct request r;
    for (int i = 0; i < g->size; i++)
        counts[i] = d->rows * (part_begin(vocabulary, g->size, i + 1, 1) -
                               part_begin(vocabulary, g->size, i, 1));
    if (engine_has_head(e)) {
        comm_gather_start(g, d->words, d->all, counts, dtype_size(e->real), &r);
        comm_wait(&r);
    }
    comm_broadcast(e->parallel.axis[MESH_PIPELINE], d->all,
                   (size_t)(d->rows * vocabulary) * dtype_size(e->real), staging_rank(s, s->n - 1));
    for (int64_t i = 0, at = 0; i < g->size; at += counts[i++]) {
        int64_t first = part_begin(vocabulary, g->size, (int)i, 1), n = counts[i] / d->rows;
        for (int64_t row = 0; row < d->rows; row++)
            for (int64_t k = 0; k < n; k++) {
                int64_t from = at + row * n + k;
                d->logits[row * vocabulary + first + k] =
                    e->real == F64 ? ((double *)d->all)[from] : (double)((float *)d->all)[from];
            }
    }
    free(counts);
}

/* The stream between two stages on different ranks; `to` or of this one. Ranks before it go on with
 * the next places meanwhile. */
static void pass_on(struct engine *e, struct tensor *x, int stage, bool to) {
    struct neighbours *n = &e->pipeline.neighbours;
    void *memory = device_host(&e->device, x->data);
    size_t bytes = (size_t)tensor_elements(x) * dtype_size(x->dtype);
    struct request r;
    if (to) neighbours_send(n, staging_rank(&e->stages, stage), memory, bytes, &r);
    else neighbours_receive(n, staging_rank(&e->stages, stage), memory, bytes, &r);
    comm_wait(&r);
}

/* Through this rank's stages, in the order of all. Returns the logits on the last stage's ranks. */
static struct tensor *through_stages(struct engine *e, const struct micro_batch *b,
                                     struct pass *pass) {
    struct tape *t = &e->tape;
    struct layout l = model_stream(t);
    struct tensor *x = NULL;
    for (int i = 0; i < e->stages.n; i++) {
        struct stage s = staging_stage(&e->stages, i);
        if (!held_here(e, i)) continue;
        if (!s.embeds && !held_here(e, i - 1)) {
            x = tape_input(t, "received stream", stream_rows(t, b->rows * b->length),
                           e->config->keys.hidden_size, &l);
            pass_on(e, x, i - 1, false);
        }
        x = model_stage(&e->model, t, &s, b, pass, x, END_LOGITS);
        if (s.heads) return x;
        if (held_here(e, i + 1)) continue;
        pass_on(e, x, i + 1, true);
        tensor_drop(t, x);
    }
    return NULL;
}

/* Computes `length` places of every row: d->ids, d->start. */
static void call(struct decoder *d, int64_t length, bool wanted) {
    struct engine *e = d->engine;
    struct micro_batch b = {.rows = d->rows, .length = length};
    struct pass pass = {
        .experts.evenly = e->experts.evenly, .ends_only = true, .state = d->state, .past = d->past, .capacity = d->capacity};
    struct piece *piece[2];
    size_t bytes = (size_t)(d->rows * length) * sizeof(int32_t);
    piece[0] = arena_take(&e->work, bytes, "ids", &b.ids);
    piece[1] = arena_take(&e->work, bytes, "document starts", &b.start);
    device_write(&e->device, b.ids, d->ids, bytes);
    device_write(&e->device, b.start, d->start, bytes);
    struct tensor *y = through_stages(e, &b, &pass);
    if (wanted && y)
        device_read(&e->device, d->words, y->data,
                    (size_t)tensor_elements(y) * dtype_size(e->real));
    tape_clear(&e->tape);
    for (int i = 0; i < 2; i++) arena_give(&e->work, piece[i]);
    d->past += length;
    if (wanted) gather_words(d);
}

void decoder_begin(struct decoder *d, int64_t rows, int32_t *const *ids, const int64_t *n) {
    int64_t longest = 0;
    if (rows < 1 || rows > d->most_rows) bug("a batch of %ld rows", (long)rows);
    for (int64_t i = 0; i < rows; i++) longest = n[i] > longest ? n[i] : longest;
    if (longest > d->capacity) bug("a prompt of %ld tokens", (long)longest);
    d->rows = rows;
    d->past = 0;
    for (int64_t i = 0; i < rows; i++) d->padding[i] = longest - n[i];
    while (d->past < longest) {
        int64_t length = longest - d->past < d->chunk ? longest - d->past : d->chunk;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t t = 0; t < length; t++) {
                int64_t place = d->past + t, padding = d->padding[i];
                d->ids[i * length + t] = place < padding ? 0 : ids[i][place - padding];
                d->start[i * length + t] = (int32_t)((place < padding ? 0 : padding) - d->past);
            }
        call(d, length, d->past + length == longest);
    }
}

void decoder_next(struct decoder *d, const int32_t *ids) {
    if (d->past >= d->capacity) bug("no room for token %ld", (long)d->past);
    for (int64_t i = 0; i < d->rows; i++) {
        d->ids[i] = ids[i];
        d->start[i] = (int32_t)(d->padding[i] - d->past);
    }
    call(d, 1, true);
}
