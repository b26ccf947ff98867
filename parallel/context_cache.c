#include "parallel/context_cache.h"

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

/* ---- reading ---- */

void cache_append(struct tape *t, const struct batch *b, struct tensor *k, struct tensor *v,
                  const struct context_cache *c) {
    const int held = context_held(context_group(t)->size); /* a row's pieces are neighbours */
    const struct batch rows = {.rows = b->rows / held, .length = b->length * held};
    past_append(t, &rows, k, c->k, c->tokens, c->room * k->width);
    past_append(t, &rows, v, c->v, c->tokens, c->room * v->width);
}

/* Tokens of a row that go round at once: as many as the call's own, so that they take as much
 * memory, but not so few that they are all messages. */
static int64_t turn_tokens(const struct ring *r, const struct context_cache *c) {
    enum { LEAST = 256 };
    const int64_t own = r->held * r->length, n = own > LEAST ? own : LEAST;
    return n < c->tokens ? n : c->tokens;
}

/* Own cached keys and values of n tokens of each row, from `first` on: [2][rows][n][k]. */
static void pack(const struct ring *r, const struct context_cache *c, int64_t first, int64_t n,
                 void *to) {
    const int64_t rows = r->rows / r->held, row = c->room * r->k, width = n * r->k;
    const void *const from[] = {c->k, c->v};
    for (int i = 0; i < 2; i++)
        copy_rows(r->t, r->d, moved(from[i], first * r->k, r->d), row,
                  moved(to, i * rows * width, r->d), width, rows, width, 0);
}

void cache_meet(const struct ring *r, const struct tensor *q, const struct context_cache *c,
                void *o, void *lse) {
    struct tape *t = r->t;
    const int64_t rows = r->rows / r->held, most = turn_tokens(r, c);
    const size_t stored = dtype_size(r->d);
    struct piece *piece[4];
    void *kv[2];
    if (!c->tokens) return;
    for (int i = 0; i < 2; i++)
        kv[i] = scratch_take(t, (size_t)(2 * rows * most * r->k) * stored, &piece[i]);
    void *part = scratch_take(t, (size_t)(r->tokens * r->q) * stored, &piece[2]),
         *part_lse =
             scratch_take(t, (size_t)(r->tokens * r->heads) * dtype_size(t->real), &piece[3]);
    for (int64_t first = 0; first < c->tokens; first += most) {
        const int64_t left = c->tokens - first, n = left < most ? left : most,
                      bytes = 2 * rows * n * r->k * (int64_t)stored;
        pack(r, c, first, n, kv[0]);
        for (int s = 0; s < r->C; s++) {
            struct request turn;
            if (s + 1 < r->C) ring_turn_start(r, &turn, kv[s % 2], kv[(s + 1) % 2], bytes);
            const struct attention_block a = {
                .q = q->data,
                .k_past = kv[s % 2],
                .v_past = moved(kv[s % 2], rows * n * r->k, r->d),
                .start = moved(c->start, ring_source(r, s) * r->tokens, I32),
                .rows = rows,
                .length = r->held * r->length,
                .past = n,
                .heads = r->heads,
                .kv = r->kv,
                .head_dim = r->head_dim,
                .ldq = q->stride,
                .ldk = r->k,
                .ldv = r->k,
                .ldp = n * r->k,
                .away = left - n + 1};
            ring_meet(r, &a, 0, o, lse, part, part_lse);
            if (s + 1 < r->C) comm_wait(&turn);
        }
    }
    for (int i = 3; i >= 0; i--) scratch_give(t, piece[i]);
}

/* ---- decoding ---- */

/* A step: sizes, and what is where. A part is what one rank's keys give some rows: their lse, then
 * their o, and nothing up to a whole number of words. */
struct step {
    struct tape *t;
    struct group *g;
    enum dtype d;
    int64_t rows, all, heads, kv, head_dim, q, k, width;
};

static int64_t rows_of(const struct step *s, int r) {
    return context_dealt(s->g->size, r + 1, s->all) - context_dealt(s->g->size, r, s->all);
}

static int64_t lse_bytes(const struct step *s, int64_t rows) {
    return rows * s->heads * (int64_t)dtype_size(s->t->real);
}

static int64_t part_bytes(const struct step *s, int64_t rows) {
    const int64_t word = 8, bytes = lse_bytes(s, rows) + rows * s->q * (int64_t)dtype_size(s->d);
    return (bytes + word - 1) / word * word;
}

static void *behind(const void *p, int64_t bytes) {
    return moved(p, bytes, U8);
}

/* Every rank's rows. */
static void gather(const struct step *s, const struct tensor *own, void *all) {
    struct request r;
    int64_t *counts = die_alloc((unsigned long)s->g->size * sizeof *counts);
    for (int i = 0; i < s->g->size; i++) counts[i] = rows_of(s, i) * s->width;
    comm_gather_start(s->g, device_host(s->t->device, own->data), device_host(s->t->device, all),
                      counts, dtype_size(s->d), &r);
    comm_wait(&r);
    free(counts);
}

/* What this rank's keys give all rows. */
static void ask(const struct step *s, const struct context_cache *c, const void *all, void *o,
                void *lse) {
    int64_t tokens = c->tokens;
    if (c->keeps) {
        void *const to[] = {c->k, c->v};
        for (int i = 0; i < 2; i++)
            copy_rows(s->t, s->d, moved(all, s->q + i * s->k, s->d), s->width,
                      moved(to[i], tokens * s->k, s->d), c->room * s->k, s->all, s->k, 0);
        tokens++;
    }
    const struct attention_block a = {.q = all,
                                      .k_past = c->k,
                                      .v_past = c->v,
                                      .start = c->start,
                                      .rows = s->all,
                                      .length = 1,
                                      .past = tokens,
                                      .heads = s->heads,
                                      .kv = s->kv,
                                      .head_dim = s->head_dim,
                                      .ldq = s->width,
                                      .ldk = s->k,
                                      .ldv = s->k,
                                      .ldp = c->room * s->k,
                                      .away = 1};
    attention_run(s->t, s->d, &a, o, lse, false);
}

/* Of o and lse of all rows, each rank's to that rank; back come all ranks' of the own rows. */
static void send_home(const struct step *s, const void *o, const void *lse, void *out, void *in) {
    const int C = s->g->size;
    int64_t *to = die_alloc(2 * (unsigned long)C * sizeof *to), *from = to + C, at = 0;
    for (int r = 0; r < C; at += to[r++]) {
        const int64_t rows = rows_of(s, r), first = context_dealt(C, r, s->all);
        to[r] = part_bytes(s, rows);
        from[r] = part_bytes(s, s->rows);
        copy_rows(s->t, s->t->real, moved(lse, first * s->heads, s->t->real), rows * s->heads,
                  behind(out, at), rows * s->heads, 1, rows * s->heads, 0);
        copy_rows(s->t, s->d, moved(o, first * s->q, s->d), rows * s->q,
                  behind(out, at + lse_bytes(s, rows)), rows * s->q, 1, rows * s->q, 0);
    }
    context_exchange(s->t, out, to, in, from);
    free(to);
}

/* The sum of the parts, in the order of ranks. */
static void add_up(const struct step *s, const void *parts, void *o, void *lse) {
    struct tape *t = s->t;
    const int64_t n = s->rows * s->q, heads = s->rows * s->heads;
    for (int r = 0; r < s->g->size; r++) {
        const void *its_lse = behind(parts, r * part_bytes(s, s->rows)),
                   *its_o = behind(its_lse, lse_bytes(s, s->rows));
        if (r) {
            DEVICE_RUN(t->device, attention_merge, s->d, .more = its_o, .lse_more = its_lse, .o = o,
                       .lse = lse, .T = s->rows, .H = s->heads, .D = s->head_dim);
            continue;
        }
        copy_rows(t, t->real, its_lse, heads, lse, heads, 1, heads, 0);
        if (s->d == t->real) copy_rows(t, s->d, its_o, n, o, n, 1, n, 0);
        else DEVICE_RUN(t->device, widen, s->d, .x = its_o, .y = o, .n = n);
    }
}

struct tensor *cache_attention(struct tape *t, const struct batch *b, struct tensor *qkv,
                               int64_t heads, int64_t kv, int64_t head_dim,
                               const struct context_cache *c) {
    struct layout l = layout_join("cache attention", 1, &qkv);
    const struct step s = {.t = t,
                           .g = context_group(t),
                           .d = qkv->dtype,
                           .rows = b->rows,
                           .all = b->all_rows,
                           .heads = heads,
                           .kv = kv,
                           .head_dim = head_dim,
                           .q = heads * head_dim,
                           .k = kv * head_dim,
                           .width = (heads + 2 * kv) * head_dim};
    op_require(!t->learning && b->dealt && b->length == 1 && qkv->rows == b->rows &&
                   qkv->stride == s.width && qkv->width == s.width,
               "cache attention", qkv, "is not dealt out, or no step of decoding");
    if (l.n_segments) l.n_segments = 1; /* the queries' */
    const size_t real = dtype_size(t->real), stored = dtype_size(s.d);
    struct tensor *y = tensor_new_of(t, s.d, "attention", b->rows, s.q, &l);
    struct piece *piece[7] = {0};
    int64_t out = 0;
    for (int r = 0; r < s.g->size; r++) out += part_bytes(&s, rows_of(&s, r));
    void *all = scratch_take(t, (size_t)(s.all * s.width) * stored, &piece[0]),
         *o = scratch_take(t, (size_t)(s.all * s.q) * stored, &piece[1]),
         *lse = scratch_take(t, (size_t)(s.all * s.heads) * real, &piece[2]),
         *to = scratch_take(t, (size_t)out, &piece[3]),
         *from = scratch_take(t, (size_t)(s.g->size * part_bytes(&s, s.rows)), &piece[4]),
         *sums = scratch_take(t, (size_t)(s.rows * s.heads) * real, &piece[5]), *sum = y->data;
    gather(&s, qkv, all);
    ask(&s, c, all, o, lse);
    send_home(&s, o, lse, to, from);
    if (s.d != t->real) sum = scratch_take(t, (size_t)(s.rows * s.q) * real, &piece[6]);
    add_up(&s, from, sum, sums);
    if (s.d != t->real)
        DEVICE_RUN(t->device, narrow, s.d, .x = sum, .y = y->data, .n = s.rows * s.q);
    for (int i = 6; i >= 0; i--)
        if (piece[i]) scratch_give(t, piece[i]);
    return y;
}
