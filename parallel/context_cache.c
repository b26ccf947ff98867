#include "parallel/context_cache.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/context_ring.h"

/* ---- places ---- */

static int64_t between(int64_t x, int64_t most) {
    return x < 0 ? 0 : x < most ? x : most;
}

int64_t cache_held(const struct cache_plan *p, int rank, int64_t past) {
    const int64_t C = p->context;
    if (past > p->read) return p->read / C + (past - p->read + C - 1 - rank) / C;
    const int64_t whole = past / p->chunk * p->chunk, left = p->read - whole,
                  piece = (left < p->chunk ? left : p->chunk) / context_pieces(p->context);
    int64_t n = whole / C;
    for (int i = 0; i < context_held(p->context); i++)
        n += between(past - whole - context_piece(p->context, rank, i) * piece, piece);
    return n;
}

int64_t cache_room(int context, int64_t places) {
    return (places + context - 1) / context;
}

int cache_keeper(const struct cache_plan *p, int64_t place) {
    return (int)((place - p->read) % p->context);
}

/* ---- what keys give queries ---- */

/* A message with what one rank's keys give some tokens: their lse, then their o, and nothing
 * up to a whole number of words. */
struct part {
    struct tape *t;
    enum dtype d;
    int64_t heads, q; /* of a token */
};

static int64_t lse_bytes(const struct part *p, int64_t tokens) {
    return tokens * p->heads * (int64_t)dtype_size(p->t->real);
}

static int64_t part_bytes(const struct part *p, int64_t tokens) {
    const int64_t word = 8,
                  bytes = lse_bytes(p, tokens) + tokens * p->q * (int64_t)dtype_size(p->d);
    return (bytes + word - 1) / word * word;
}

static void *behind(const void *p, int64_t bytes) {
    return moved(p, bytes, U8);
}

/* Adds it to o and lse, real numbers. */
static void part_add(const struct part *p, const void *message, int64_t tokens, void *o,
                     void *lse) {
    DEVICE_RUN(p->t->device, attention_merge, p->d, .more = behind(message, lse_bytes(p, tokens)),
               .lse_more = message, .o = o, .lse = lse, .T = tokens, .H = p->heads,
               .D = p->heads ? p->q / p->heads : 0);
}

/* Queries against the keys of a cache; whose and how many they are is left to say. */
static struct attention_block asking_cache(const struct context_cache *c, const void *q,
                                           int64_t heads, int64_t kv, int64_t head_dim) {
    const int64_t k = kv * head_dim;
    return (struct attention_block){.q = q,
                                    .k_past = c->k,
                                    .v_past = c->v,
                                    .start = c->start,
                                    .heads = heads,
                                    .kv = kv,
                                    .head_dim = head_dim,
                                    .ldk = k,
                                    .ldv = k,
                                    .ldp = c->room * k,
                                    .away = 1};
}

/* ---- reading ---- */

void cache_append(struct tape *t, const struct batch *b, struct tensor *k, struct tensor *v,
                  const struct context_cache *c) {
    const int held = context_held(context_group(t)->size); /* a row's pieces are neighbours */
    const struct batch rows = {.rows = b->rows / held, .length = b->length * held};
    past_append(t, &rows, k, c->k, c->tokens, c->room * k->width);
    past_append(t, &rows, v, c->v, c->tokens, c->room * v->width);
}

/* Own queries, and those of others after s turns, meet this rank's cache; what comes of it goes to
 * the rank they are from, and is added there. */
void cache_meet(const struct ring *r, const struct tensor *q, const struct context_cache *c,
                void *o, void *lse) {
    struct tape *t = r->t;
    if (!c->tokens) return; /* the same on all ranks: pieces are equally long */
    const struct part p = {t, r->d, r->heads, r->q};
    const int64_t size = part_bytes(&p, r->tokens),
                  bytes = r->tokens * r->q * (int64_t)dtype_size(r->d);
    int64_t *to = die_alloc(2 * (unsigned long)r->C * sizeof *to), *from = to + r->C;
    struct piece *piece[4];
    void *asking[2];
    for (int i = 0; i < 2; i++) asking[i] = scratch_take(t, (size_t)bytes, &piece[i]);
    void *out = scratch_take(t, (size_t)size, &piece[2]),
         *in = scratch_take(t, (size_t)size, &piece[3]);
    copy_rows(t, r->d, q->data, q->stride, asking[0], r->q, r->tokens, r->q, 0);
    for (int s = 0; s < r->C; s++) {
        const int source = ring_source(r, s), answering = (r->me + s) % r->C;
        struct request turn;
        if (s + 1 < r->C) ring_turn_start(r, &turn, asking[s % 2], asking[(s + 1) % 2], bytes);
        struct attention_block a = asking_cache(c, asking[s % 2], r->heads, r->kv, r->head_dim);
        a.rows = r->rows / r->held;
        a.length = r->held * r->length;
        a.past = c->tokens;
        a.ldq = r->q;
        attention_run(t, r->d, &a, behind(out, lse_bytes(&p, r->tokens)), out, false);
        if (s > 0) {
            to[source] = from[answering] = size;
            context_exchange(t, out, to, in, from);
            to[source] = from[answering] = 0;
        }
        part_add(&p, s > 0 ? in : out, r->tokens, o, lse);
        if (s + 1 < r->C) comm_wait(&turn);
    }
    for (int i = 3; i >= 0; i--) scratch_give(t, piece[i]);
    free(to);
}

/* ---- decoding ---- */

struct step {
    struct part part;
    struct group *g;
    int64_t rows, all, kv, head_dim, k, width;
};

static int64_t rows_of(const struct step *s, int r) {
    return context_dealt(s->g->size, r + 1, s->all) - context_dealt(s->g->size, r, s->all);
}

/* Every rank's rows. */
static void gather(const struct step *s, const struct tensor *own, void *all) {
    const struct part *p = &s->part;
    struct request r;
    int64_t *counts = die_alloc((unsigned long)s->g->size * sizeof *counts);
    for (int i = 0; i < s->g->size; i++) counts[i] = rows_of(s, i) * s->width;
    comm_gather_start(s->g, device_host(p->t->device, own->data), device_host(p->t->device, all),
                      counts, dtype_size(p->d), &r);
    comm_wait(&r);
    free(counts);
}

/* What this rank's keys give all rows; before, the new keys among them. */
static void ask(const struct step *s, const struct context_cache *c, const void *all, void *o,
                void *lse) {
    const struct part *p = &s->part;
    void *const to[] = {c->k, c->v};
    for (int i = 0; c->keeps && i < 2; i++)
        copy_rows(p->t, p->d, moved(all, p->q + i * s->k, p->d), s->width,
                  moved(to[i], c->tokens * s->k, p->d), c->room * s->k, s->all, s->k, 0);
    struct attention_block a = asking_cache(c, all, p->heads, s->kv, s->head_dim);
    a.rows = s->all;
    a.length = 1;
    a.past = c->tokens + c->keeps;
    a.ldq = s->width;
    attention_run(p->t, p->d, &a, o, lse, false);
}

/* Of o and lse of all rows, each rank's to that rank; back come all ranks' of the own rows. */
static void send_home(const struct step *s, const void *o, const void *lse, void *out, void *in) {
    const struct part *p = &s->part;
    const enum dtype real = p->t->real;
    const int C = s->g->size;
    int64_t *to = die_alloc(2 * (unsigned long)C * sizeof *to), *from = to + C, at = 0;
    for (int r = 0; r < C; at += to[r++]) {
        const int64_t rows = rows_of(s, r), first = context_dealt(C, r, s->all),
                      sums = rows * p->heads, n = rows * p->q;
        void *message = behind(out, at);
        to[r] = part_bytes(p, rows);
        from[r] = part_bytes(p, s->rows);
        copy_rows(p->t, real, moved(lse, first * p->heads, real), sums, message, sums, 1, sums, 0);
        copy_rows(p->t, p->d, moved(o, first * p->q, p->d), n, behind(message, lse_bytes(p, rows)),
                  n, 1, n, 0);
    }
    context_exchange(p->t, out, to, in, from);
    free(to);
}

/* The sum of all ranks' parts, in their order. */
static void add_up(const struct step *s, const void *parts, void *o, void *lse) {
    const struct part *p = &s->part;
    const int64_t n = s->rows * p->q, sums = s->rows * p->heads;
    struct device *d = p->t->device;
    DEVICE_RUN(d, fill, p->t->real, .x = o, .T = 1, .W = n, .ld = n, .value = 0);
    DEVICE_RUN(d, fill, p->t->real, .x = lse, .T = 1, .W = sums, .ld = sums, .value = -INFINITY);
    for (int r = 0; r < s->g->size; r++)
        part_add(p, behind(parts, r * part_bytes(p, s->rows)), s->rows, o, lse);
}

struct tensor *cache_attention(struct tape *t, const struct batch *b, struct tensor *qkv,
                               int64_t heads, int64_t kv, int64_t head_dim,
                               const struct context_cache *c) {
    struct layout l = layout_join("cache attention", 1, &qkv);
    const struct step s = {.part = {t, qkv->dtype, heads, heads * head_dim},
                           .g = context_group(t),
                           .rows = b->rows,
                           .all = b->all_rows,
                           .kv = kv,
                           .head_dim = head_dim,
                           .k = kv * head_dim,
                           .width = (heads + 2 * kv) * head_dim};
    op_require(!t->learning && b->dealt && b->length == 1 && qkv->rows == b->rows &&
                   qkv->stride == s.width && qkv->width == s.width,
               "cache attention", qkv, "is not dealt out, or no step of decoding");
    if (l.n_segments) l.n_segments = 1; /* the queries' */
    const enum dtype d = qkv->dtype;
    const size_t real = dtype_size(t->real), stored = dtype_size(d);
    const int64_t q = s.part.q, n = b->rows * q;
    struct tensor *y = tensor_new_of(t, d, "attention", b->rows, q, &l);
    struct piece *piece[7] = {0};
    int64_t out = 0;
    for (int r = 0; r < s.g->size; r++) out += part_bytes(&s.part, rows_of(&s, r));
    void *all = scratch_take(t, (size_t)(s.all * s.width) * stored, &piece[0]),
         *o = scratch_take(t, (size_t)(s.all * q) * stored, &piece[1]),
         *lse = scratch_take(t, (size_t)(s.all * heads) * real, &piece[2]),
         *to = scratch_take(t, (size_t)out, &piece[3]),
         *from = scratch_take(t, (size_t)(s.g->size * part_bytes(&s.part, s.rows)), &piece[4]),
         *sums = scratch_take(t, (size_t)(s.rows * heads) * real, &piece[5]), *sum = y->data;
    if (d != t->real) sum = scratch_take(t, (size_t)n * real, &piece[6]);
    gather(&s, qkv, all);
    ask(&s, c, all, o, lse);
    send_home(&s, o, lse, to, from);
    add_up(&s, from, sum, sums);
    if (d != t->real) DEVICE_RUN(t->device, narrow, d, .x = sum, .y = y->data, .n = n);
    for (int i = 6; i >= 0; i--)
        if (piece[i]) scratch_give(t, piece[i]);
    return y;
}
