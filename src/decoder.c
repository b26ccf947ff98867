#include "src/decoder.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/context_parallel.h"
#include "parallel/expert_parallel.h"
#include "parallel/tensor_parallel.h"

static bool held_here(const struct engine *e, int stage) {
    return stage >= 0 && stage < e->stages.n &&
           staging_rank(&e->stages, stage) == e->parallel.at.pipeline;
}

/* n tokens in whole pieces. */
static int64_t in_pieces(const struct decoder *d, int64_t n) {
    const int64_t pieces = context_pieces(d->engine->shape.context);
    return (n + pieces - 1) / pieces * pieces;
}

static void take_states(struct decoder *d) {
    struct engine *e = d->engine;
    const struct model *m = &e->model;
    for (int i = 0; i < m->config->n_layers; i++) {
        const struct layer *l = &m->layer[i];
        int64_t n[LAYER_STATES] = {0};
        if (!l->kind->state_size || !held_here(e, staging_of_layer(&e->stages, i))) continue;
        l->kind->state_size(l, &e->parallel, d->most_rows, d->capacity, n);
        for (int k = 0; k < LAYER_STATES; k++)
            arena_take(&e->states,
                       (size_t)n[k] *
                           dtype_size(l->kind->real_states >> k & 1 ? e->real : e->stored),
                       l->kind->name, &d->state[i].p[k]);
    }
}

void decoder_init(struct decoder *d, struct engine *e, int64_t rows, int64_t longest, int64_t more,
                  int64_t chunk) {
    const size_t logits = (size_t)(rows * e->config->keys.vocab_size) * dtype_size(e->real) + 1;
    *d = (struct decoder){.engine = e, .most_rows = rows};
    d->chunk = in_pieces(d, chunk);
    d->capacity = in_pieces(d, longest) + more;
    d->state = die_alloc((e->config->n_layers + 1) * sizeof *d->state);
    take_states(d);
    d->all = die_alloc((size_t)e->shape.data * sizeof *d->all);
    d->padding = die_alloc((size_t)rows * sizeof *d->padding + 1);
    d->logits = die_alloc(logits);
    d->own = e->shape.context > 1 ? die_alloc(logits) : d->logits;
    d->words = d->own;
    if (e->shape.tensor == 1) return;
    d->words = die_alloc((size_t)(rows * e->model.words->rows) * dtype_size(e->real) + 1);
    d->parts = die_alloc(logits);
}

void decoder_free(struct decoder *d) {
    free(d->state);
    free(d->all);
    free(d->padding);
    if (d->words != d->own) free(d->words);
    if (d->own != d->logits) free(d->own);
    free(d->parts);
    free(d->logits);
    memset(d, 0, sizeof *d);
}

/* ---- the tokens of a call ---- */

enum { IDS, START, WHOLE_START, CACHE_START, TABLES };

/* As this rank has them. */
struct call {
    struct micro_batch batch;
    int64_t ends; /* rows of which the logits are here */
    int32_t *table[TABLES];
    int64_t n[TABLES];
    int64_t generated; /* struct pass: of */
    struct context_cache cache;
    struct token_share *shares; /* [data * context] */
};

static struct cache_plan cache_plan_of(const struct decoder *d) {
    return (struct cache_plan){d->engine->shape.context, d->chunk, d->read};
}

static void make_table(struct call *c, int i, int64_t n) {
    c->table[i] = die_alloc((size_t)n * sizeof *c->table[i] + 1);
    c->n[i] = n;
}

/* dealt: a step of decoding. */
static struct call call_of(const struct decoder *d, int64_t rows, int64_t length, bool dealt) {
    const int context = d->engine->shape.context, me = d->engine->parallel.at.context;
    struct call c = {
        .batch = {.rows = context_rows(context, rows), .length = context_length(context, length)}};
    c.ends = me ? 0 : rows; /* the last piece is rank 0's */
    c.generated = dealt ? d->past - d->read : -1;
    if (dealt && context > 1) {
        c.ends = context_dealt(context, me + 1, rows) - context_dealt(context, me, rows);
        c.batch =
            (struct micro_batch){.rows = c.ends, .length = length, .dealt = true, .all_rows = rows};
    }
    make_table(&c, IDS, c.batch.rows * c.batch.length);
    make_table(&c, START, c.batch.rows * c.batch.length);
    if (host_batch_whole(d->engine)) make_table(&c, WHOLE_START, rows * length);
    c.cache.room = cache_room(context, d->capacity);
    c.shares = die_alloc((size_t)(d->engine->shape.data * context) * sizeof *c.shares);
    return c;
}

static void call_free(struct call *c) {
    for (int i = 0; i < TABLES; i++) free(c->table[i]);
    free(c->shares);
}

/* Where the document begins that place number `place` of a row belongs to. */
static int64_t document_of(const struct decoder *d, int64_t row, int64_t place) {
    return place < d->padding[row] ? 0 : d->padding[row];
}

/* The start of a row's document in this rank's cache: what is hidden lies before. */
static int32_t cache_start(const struct decoder *d, int64_t row, int64_t held) {
    const struct cache_plan p = cache_plan_of(d);
    const int64_t padding = d->padding[row] < d->past ? d->padding[row] : d->past;
    return (int32_t)(cache_held(&p, d->engine->parallel.at.context, padding) - held);
}

/* `length` places of every row's prompt. */
static struct call reading(const struct decoder *d, int32_t *const *ids, int64_t length) {
    const int context = d->engine->shape.context, held = context_held(context),
              me = d->engine->parallel.at.context;
    const struct cache_plan plan = cache_plan_of(d);
    struct call c = call_of(d, d->rows, length, false);
    const int64_t piece = c.batch.length, tokens = c.batch.rows * piece;
    for (int64_t r = 0; r < c.batch.rows; r++) {
        const int64_t row = r / held,
                      first = d->past + context_piece(context, me, (int)(r % held)) * piece;
        for (int64_t t = 0; t < piece; t++) {
            const int64_t place = first + t;
            c.table[IDS][r * piece + t] =
                place < d->padding[row] ? 0 : ids[row][place - d->padding[row]];
            c.table[START][r * piece + t] = (int32_t)(document_of(d, row, place) - first);
        }
    }
    for (int64_t i = 0; c.table[WHOLE_START] && i < d->rows * length; i++)
        c.table[WHOLE_START][i] =
            (int32_t)(document_of(d, i / length, d->past + i % length) - d->past);
    if (context == 1 || !d->past) return c;
    c.cache.tokens = cache_held(&plan, me, d->past); /* the same on all ranks, after whole pieces */
    make_table(&c, CACHE_START, tokens);
    for (int64_t i = 0; i < tokens; i++)
        c.table[CACHE_START][i] = cache_start(d, i / (held * piece), c.cache.tokens);
    return c;
}

/* The next place of every row. */
static struct call decoding(const struct decoder *d, const int32_t *ids) {
    const int context = d->engine->shape.context, me = d->engine->parallel.at.context;
    const struct cache_plan plan = cache_plan_of(d);
    const int64_t first = context_dealt(context, me, d->rows);
    struct call c = call_of(d, d->rows, 1, true);
    for (int64_t i = 0; i < c.batch.rows; i++) {
        c.table[IDS][i] = ids[first + i];
        c.table[START][i] = (int32_t)(d->padding[first + i] - d->past);
    }
    for (int64_t i = 0; c.table[WHOLE_START] && i < d->rows; i++)
        c.table[WHOLE_START][i] = (int32_t)(d->padding[i] - d->past);
    if (context == 1) return c;
    c.cache.tokens = cache_held(&plan, me, d->past);
    c.cache.keeps = cache_keeper(&plan, d->past) == me;
    make_table(&c, CACHE_START, d->rows);
    for (int64_t i = 0; i < d->rows; i++)
        c.table[CACHE_START][i] = cache_start(d, i, c.cache.tokens + c.cache.keeps);
    return c;
}

/* Other ranks' tokens, as a plan wants them: of the call that has so many before the last of
 * reading, or of a step of decoding (-1). */
static int64_t calls_of(const struct decoder *d, int data) {
    const struct decoder_rows *its = &d->all[data];
    return its->rows ? (in_pieces(d, its->longest) + d->chunk - 1) / d->chunk : 0;
}

static void fill_shares(const struct decoder *d, struct call *c, int64_t before_last) {
    const int context = d->engine->shape.context;
    for (int i = 0; i < d->engine->shape.data * context; i++) {
        const struct decoder_rows *its = &d->all[i / context];
        const int64_t n = calls_of(d, i / context) - 1, read = in_pieces(d, its->longest),
                      length = before_last ? d->chunk : read - n * d->chunk;
        struct token_share *s = &c->shares[i];
        *s = (struct token_share){0, 1};
        if (before_last < 0)
            s->tokens = context_dealt(context, i % context + 1, its->rows) -
                        context_dealt(context, i % context, its->rows);
        else if (before_last <= n)
            *s = (struct token_share){its->rows * length / context, length / context};
    }
}

/* ---- a call ---- */

/* The words of all tensor ranks side by side: from d->words to d->own [rows, vocabulary]. */
static void gather_words(struct decoder *d, int64_t rows) {
    struct engine *e = d->engine;
    struct group *g = e->parallel.axis[MESH_TENSOR];
    const size_t real = dtype_size(e->real);
    const int64_t vocabulary = e->config->keys.vocab_size;
    int64_t *counts;
    struct request r;
    if (d->words == d->own) return;
    counts = die_alloc(g->size * sizeof *counts);
    for (int i = 0; i < g->size; i++)
        counts[i] = rows * (part_begin(vocabulary, g->size, i + 1, 1) -
                            part_begin(vocabulary, g->size, i, 1));
    comm_gather_start(g, d->words, d->parts, counts, real, &r);
    comm_wait(&r);
    for (int64_t i = 0, at = 0; rows && i < g->size; at += counts[i++]) {
        const int64_t first = part_begin(vocabulary, g->size, (int)i, 1), n = counts[i] / rows;
        for (int64_t row = 0; row < rows; row++)
            memcpy((char *)d->own + (size_t)(row * vocabulary + first) * real,
                   (const char *)d->parts + (size_t)(at + row * n) * real, (size_t)n * real);
    }
    free(counts);
}

/* The logits of all rows, from the ranks that have them to all. dealt: every rank along context has
 * its own, else the first has all. */
static void gather_logits(struct decoder *d, int64_t ends, bool dealt) {
    struct engine *e = d->engine;
    struct group *g = e->parallel.axis[MESH_CONTEXT];
    const int64_t vocabulary = e->config->keys.vocab_size, n = d->rows * vocabulary;
    struct request r;
    if (engine_has_head(e) && ends) gather_words(d, ends);
    if (engine_has_head(e) && d->own != d->logits) {
        int64_t *counts = die_alloc(g->size * sizeof *counts);
        for (int i = 0; i < g->size; i++)
            counts[i] = vocabulary * (dealt ? context_dealt(g->size, i + 1, d->rows) -
                                                  context_dealt(g->size, i, d->rows)
                                            : (i == 0) * d->rows);
        comm_gather_start(g, d->own, d->logits, counts, dtype_size(e->real), &r);
        comm_wait(&r);
        free(counts);
    }
    comm_broadcast(e->parallel.axis[MESH_PIPELINE], d->logits, (size_t)n * dtype_size(e->real),
                   staging_rank(&e->stages, e->stages.n - 1));
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

/* Computes it; wanted: d->logits. past: places computed before. */
static void run(struct decoder *d, struct call *c, int64_t past, bool wanted) {
    static const char *const label[TABLES] = {"ids", "document starts", "whole document starts",
                                              "starts in the cache"};
    struct engine *e = d->engine;
    struct piece *piece[TABLES] = {0};
    void *at[TABLES] = {0};
    for (int i = 0; i < TABLES; i++) {
        const size_t bytes = (size_t)c->n[i] * sizeof(int32_t);
        if (!c->table[i]) continue;
        piece[i] = arena_take(&e->work, bytes, label[i], &at[i]);
        device_write(&e->device, at[i], c->table[i], bytes);
    }
    c->batch.ids = at[IDS];
    c->batch.start = at[START];
    c->batch.whole_start = at[WHOLE_START];
    c->cache.start = at[CACHE_START];
    struct pass pass = {.experts.evenly = e->experts.evenly,
                        .ends_only = true,
                        .state = d->state,
                        .past = past,
                        .generated = c->generated,
                        .capacity = d->capacity,
                        .cache = c->cache,
                        .shares = c->shares};
    struct tensor *y = through_stages(e, &c->batch, &pass);
    if (wanted && y && c->ends)
        device_read(&e->device, d->words, y->data,
                    (size_t)(c->ends * y->width) * dtype_size(e->real));
    tape_clear(&e->tape);
    for (int i = 0; i < TABLES; i++)
        if (piece[i]) arena_give(&e->work, piece[i]);
    if (wanted) gather_logits(d, c->ends, c->batch.dealt);
    call_free(c);
}

/* Without tokens of its own. */
static void take_part(struct decoder *d, int64_t before_last) {
    struct call c = call_of(d, 0, context_pieces(d->engine->shape.context), before_last < 0);
    c.batch.length = 1;
    fill_shares(d, &c, before_last);
    run(d, &c, 0, false);
}

void decoder_begin(struct decoder *d, int64_t rows, int32_t *const *ids, const int64_t *n,
                   const struct decoder_rows *all) {
    const int me = d->engine->parallel.at.data;
    int64_t longest = 0, calls = 0;
    if (rows > d->most_rows) bug("a batch of %ld rows", (long)rows);
    for (int64_t i = 0; i < rows; i++) longest = n[i] > longest ? n[i] : longest;
    for (int i = 0; i < d->engine->shape.data; i++)
        d->all[i] = all ? all[i] : (struct decoder_rows){rows, longest};
    d->rows = rows;
    d->past = 0;
    d->read = in_pieces(d, longest);
    if (d->read > d->capacity) bug("a prompt of %ld tokens", (long)longest);
    for (int64_t i = 0; i < rows; i++) d->padding[i] = d->read - n[i];
    for (int i = 0; i < d->engine->shape.data; i++)
        if ((i == me || mesh_experts_join_data(&d->engine->shape)) && calls_of(d, i) > calls)
            calls = calls_of(d, i);
    for (; calls > calls_of(d, me); calls--) take_part(d, calls - 1);
    for (; calls > 0; calls--) {
        const int64_t left = d->read - d->past, length = left < d->chunk ? left : d->chunk;
        struct call c = reading(d, ids, length);
        fill_shares(d, &c, calls - 1);
        run(d, &c, d->past, calls == 1);
        d->past += length;
    }
}

void decoder_next(struct decoder *d, const int32_t *ids) {
    if (d->past >= d->capacity) bug("no room for token %ld", (long)d->past);
    struct call c = decoding(d, ids);
    fill_shares(d, &c, -1);
    run(d, &c, d->past, true);
    d->past++;
}

void decoder_idle(struct decoder *d) {
    take_part(d, -1);
}
