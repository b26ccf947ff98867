#include "parallel/context_attention.h"

#include "parallel/context_ring.h"

enum { Q, K, V, START, LSE };

/* Keys and values of a rank are packed: [2][tokens][kv * head_dim]. So many numbers. */
static int64_t packed(const struct ring *r) {
    return 2 * r->tokens * r->k;
}

static void pack(const struct ring *r, void *to, const struct tensor *k, const struct tensor *v) {
    copy_rows(r->t, r->d, k->data, k->stride, to, r->k, r->tokens, r->k, 0);
    copy_rows(r->t, r->d, v->data, v->stride, moved(to, r->tokens * r->k, r->d), r->k, r->tokens,
              r->k, 0);
}

/* ---- blocks ---- */

/* All own tokens with their own pieces. */
static struct attention_block own_block(const struct ring *r, const void *q, int64_t ldq,
                                        const void *kv) {
    return (struct attention_block){.q = q,
                                    .k = kv,
                                    .v = moved(kv, r->tokens * r->k, r->d),
                                    .start = r->start,
                                    .rows = r->rows,
                                    .length = r->length,
                                    .heads = r->heads,
                                    .kv = r->kv,
                                    .head_dim = r->head_dim,
                                    .ldq = ldq,
                                    .ldk = r->k,
                                    .ldv = r->k};
}

/* One meeting of own queries, row `at` of the batch, with row `from` of rank `source`, whose piece
 * lies before; false where there is no further one. Counts through them by *i. */
struct meeting {
    int64_t at, from, away;
};

static bool next_meeting(const struct ring *r, int source, int64_t *i, struct meeting *m) {
    for (; *i < r->rows * r->held; ++*i) {
        m->at = *i / r->held;
        m->from = *i / (r->held * r->held) * r->held + *i % r->held;
        const int mine = context_piece(r->C, r->me, (int)(m->at % r->held)),
                  theirs = context_piece(r->C, source, (int)(m->from % r->held));
        m->away = (mine - theirs - 1) * r->length + 1;
        if (theirs < mine) {
            ++*i;
            return true;
        }
    }
    return false;
}

static struct attention_block met_block(const struct ring *r, const struct meeting *m,
                                        const void *q, int64_t ldq, const void *kv) {
    const int64_t key = m->from * r->length * r->k;
    return (struct attention_block){.q = moved(q, m->at * r->length * ldq, r->d),
                                    .start = moved(r->start, m->at * r->length, I32),
                                    .k_past = moved(kv, key, r->d),
                                    .v_past = moved(kv, r->tokens * r->k + key, r->d),
                                    .rows = 1,
                                    .length = r->length,
                                    .past = r->length,
                                    .heads = r->heads,
                                    .kv = r->kv,
                                    .head_dim = r->head_dim,
                                    .ldq = ldq,
                                    .ldk = r->k,
                                    .ldv = r->k,
                                    .ldp = r->length * r->k,
                                    .away = m->away};
}

/* ---- forward ---- */

/* Adds what the keys of `source` give to o and lse. part, part_lse: room for a row of the batch. */
static void meet(const struct ring *r, int source, const struct tensor *q, const void *kv, void *o,
                 void *lse, void *part, void *part_lse) {
    struct meeting m;
    for (int64_t i = 0; next_meeting(r, source, &i, &m);) {
        const struct attention_block a = met_block(r, &m, q->data, q->stride, kv);
        ring_meet(r, &a, m.at * r->length, o, lse, part, part_lse);
    }
}

static void forward(const struct ring *r, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct context_cache *cache, struct tensor *o,
                    struct tensor *lse) {
    struct tape *t = r->t;
    struct piece *piece[5] = {0};
    const size_t stored = dtype_size(r->d), real = dtype_size(t->real);
    const int64_t bytes = packed(r) * (int64_t)stored, n = r->tokens * r->q;
    void *kv[2], *sum = o->data;
    for (int i = 0; i < 2; i++) kv[i] = scratch_take(t, (size_t)bytes, &piece[i]);
    void *part = scratch_take(t, (size_t)(r->length * r->q) * stored, &piece[2]),
         *part_lse = scratch_take(t, (size_t)(r->length * r->heads) * real, &piece[3]);
    pack(r, kv[0], k, v);
    if (r->d != t->real) sum = scratch_take(t, (size_t)n * real, &piece[4]);
    for (int s = 0; s < r->C; s++) {
        struct request turn;
        if (s + 1 < r->C) ring_turn_start(r, &turn, kv[s % 2], kv[(s + 1) % 2], bytes);
        if (s == 0) {
            const struct attention_block a = own_block(r, q->data, q->stride, kv[0]);
            attention_run(t, r->d, &a, o->data, lse->data, false);
            comm_progress(t->parallel->comm);
            if (sum != o->data) DEVICE_RUN(t->device, widen, r->d, .x = o->data, .y = sum, .n = n);
        }
        meet(r, ring_source(r, s), q, kv[s % 2], sum, lse->data, part, part_lse);
        if (s + 1 < r->C) comm_wait(&turn);
    }
    if (cache) cache_meet(r, q, cache, sum, lse->data);
    if (sum != o->data) DEVICE_RUN(t->device, narrow, r->d, .x = sum, .y = o->data, .n = n);
    for (int i = 4; i >= 0; i--)
        if (piece[i]) scratch_give(t, piece[i]);
}

/* ---- backward ---- */

/* The gradients of a block, added to sums in real numbers (or put there first). q: queries, k and
 * v: keys that follow each other. */
struct sums {
    void *q, *k, *v;
    int add_q, add_k;
};

static void block_adjoint(const struct ring *r, const struct attention_block *a, const void *o,
                          const void *lse, const void *go, const struct sums *to) {
    struct tape *t = r->t;
    const int past = a->away > 0, real = r->d == t->real;
    const int64_t n[3] = {a->rows * a->length * r->q, a->rows * a->length * r->k,
                          a->rows * a->length * r->k};
    void *const sum[3] = {to->q, to->k, to->v};
    const int add[3] = {to->add_q, to->add_k, to->add_k};
    struct attention_gradients g = {0};
    struct piece *piece[3];
    for (int i = 0; i < 3; i++) {
        const int at = past && i ? i + 2 : i;
        g.p[at] = real ? sum[i] : scratch_take(t, (size_t)n[i] * dtype_size(r->d), &piece[i]);
        g.add[at] = real ? add[i] : 0;
    }
    attention_run_adjoint(t, r->d, a, o, lse, go, &g);
    for (int i = 2; !real && i >= 0; i--) {
        DEVICE_RUN(t->device, widen, r->d, .x = g.p[past && i ? i + 2 : i], .y = sum[i],
                   .y_add = add[i], .n = n[i]);
        scratch_give(t, piece[i]);
    }
    comm_progress(t->parallel->comm);
}

/* What backward reads and makes: packed queries, and sums. */
struct back {
    const void *q, *o, *lse, *go;
    void *dq;
};

/* Gradients of the meetings with `source`: dkv [2][tokens][k] is added to. */
static void meet_adjoint(const struct ring *r, int source, const struct back *w, const void *kv,
                         void *dkv) {
    const enum dtype real = r->t->real;
    struct meeting m;
    for (int64_t i = 0; next_meeting(r, source, &i, &m);) {
        const struct attention_block a = met_block(r, &m, w->q, r->q, kv);
        const int64_t token = m.at * r->length, key = m.from * r->length * r->k;
        const struct sums to = {moved(w->dq, token * r->q, real), moved(dkv, key, real),
                                moved(dkv, r->tokens * r->k + key, real), 1, 1};
        block_adjoint(r, &a, moved(w->o, token * r->q, r->d), moved(w->lse, token * r->heads, real),
                      moved(w->go, token * r->q, r->d), &to);
    }
}

static void zero(const struct ring *r, void *x, int64_t n) {
    DEVICE_RUN(r->t->device, fill, r->t->real, .x = x, .T = 1, .W = n, .ld = n, .value = 0);
}

/* Sums in real numbers to a gradient whose rows are ld apart. */
static void give(const struct ring *r, const void *sum, struct tensor *x, void *to, int add) {
    struct tape *t = r->t;
    struct piece *piece = NULL;
    const int64_t n = r->tokens * x->width;
    void *low = (void *)(uintptr_t)sum;
    if (!to) return;
    if (r->d != t->real) {
        low = scratch_take(t, (size_t)n * dtype_size(r->d), &piece);
        DEVICE_RUN(t->device, narrow, r->d, .x = sum, .y = low, .n = n);
    }
    copy_rows(t, r->d, low, x->width, to, x->stride, r->tokens, x->width, add);
    if (piece) scratch_give(t, piece);
}

/* Own keys' sums are in dkv[0]; those of others are made in dkv[1] and [2] by turns, which the sums
 * of the ranks before, arriving in dkv[3], are added to. */
static void backward(const struct ring *r, const struct back *w, void *const *kv,
                     void *const *dkv) {
    struct tape *t = r->t;
    const int64_t n = packed(r), bytes = n * (int64_t)dtype_size(r->d),
                  sums = n * (int64_t)dtype_size(t->real);
    struct request keys, back = {0};
    for (int s = 0; s < r->C; s++) {
        void *mine = s == 0 ? dkv[0] : dkv[1 + s % 2];
        if (s + 1 < r->C) ring_turn_start(r, &keys, kv[s % 2], kv[(s + 1) % 2], bytes);
        if (s == 0) {
            const struct attention_block a = own_block(r, w->q, r->q, kv[0]);
            const struct sums to = {w->dq, mine, moved(mine, r->tokens * r->k, t->real), 0, 0};
            block_adjoint(r, &a, w->o, w->lse, w->go, &to);
        } else {
            zero(r, mine, n);
        }
        meet_adjoint(r, ring_source(r, s), w, kv[s % 2], mine);
        if (s + 1 < r->C) comm_wait(&keys);
        if (s == 0) continue;
        if (s > 1) {
            comm_wait(&back);
            copy_rows(t, t->real, dkv[3], n, mine, n, 1, n, 1);
        }
        ring_turn_start(r, &back, mine, dkv[3], sums);
    }
    comm_wait(&back);
    copy_rows(t, t->real, dkv[3], n, dkv[0], n, 1, n, 1);
}

static void ring_adjoint(struct tape *t, struct note *n, unsigned mask) {
    struct tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V];
    int add[3];
    void *grad[3];
    for (int i = 0; i < 3; i++) grad[i] = tape_grad_in(t, n, i, mask, &add[i]);
    if (!grad[0] && !grad[1] && !grad[2]) return;
    const struct ring r = ring_of(t, q->dtype, n->size, n->in[START]->data);
    struct piece *piece[8];
    const size_t stored = dtype_size(r.d), real = dtype_size(t->real);
    void *kv[2], *dkv[4];
    void *own = scratch_take(t, (size_t)(r.tokens * r.q) * stored, &piece[0]);
    struct back w = {own, n->out[0]->data, n->in[LSE]->data, tape_grad_out(n, 0), NULL};
    w.dq = scratch_take(t, (size_t)(r.tokens * r.q) * real, &piece[1]);
    for (int i = 0; i < 2; i++) kv[i] = scratch_take(t, (size_t)packed(&r) * stored, &piece[2 + i]);
    for (int i = 0; i < 4; i++) dkv[i] = scratch_take(t, (size_t)packed(&r) * real, &piece[4 + i]);
    copy_rows(t, r.d, q->data, q->stride, own, r.q, r.tokens, r.q, 0);
    pack(&r, kv[0], k, v);
    backward(&r, &w, kv, dkv);
    give(&r, w.dq, q, grad[0], add[0]);
    give(&r, dkv[0], k, grad[1], add[1]);
    give(&r, moved(dkv[0], r.tokens * r.k, t->real), v, grad[2], add[2]);
    for (int i = 7; i >= 0; i--) scratch_give(t, piece[i]);
}
static const struct tape_op op_ring = {"ring attention", ring_adjoint, 31, 1, 0, 0};

struct tensor *context_attention(struct tape *t, const struct batch *b, struct tensor *q,
                                 struct tensor *k, struct tensor *v, int64_t head_dim,
                                 const struct context_cache *cache) {
    struct layout l = attention_layout(b, q, k, v, head_dim, NULL, NULL);
    op_require(l.state[AXIS_CONTEXT] == SPLIT && l.by[AXIS_CONTEXT] == BY_ROWS, "ring attention", q,
               "is not split by tokens along context");
    const int64_t size[] = {b->rows, b->length, q->width / head_dim, k->width / head_dim, head_dim};
    struct tensor *o = tensor_new_of(t, q->dtype, "attention", q->rows, q->width, &l),
                  *lse = tensor_new_real(t, "attention sums", q->rows, size[2], &l);
    const struct ring r = ring_of(t, q->dtype, size, b->start->data);
    op_require(!cache || !t->learning, "ring attention", q, "is cached and learned from");
    forward(&r, q, k, v, cache, o, lse);
    if (cache) cache_append(t, b, k, v, cache);
    struct tensor *in[] = {q, k, v, b->start, lse};
    struct note *n = tape_note(t, &op_ring, 5, in, 1, &o);
    if (n)
        for (int i = 0; i < 5; i++) n->size[i] = size[i];
    tensor_drop(t, lse);
    return o;
}
