#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/mesh.h"
#include "parallel/timer.h"
#include "parallel/transport.h"

enum { SLOTS = TRANSPORT_SLOTS, UNIT = 16, SPINS = 2000, THREADS_FROM = 1 << 18 };

size_t transport_slice_bytes =
    8 << 20; /* bounds the scratch, and keeps a slice's pieces in cache */
size_t transport_small_bytes = 64 << 10;

enum kind { GATHER, SUM, SUM_SCATTER, EXCHANGE, MAX, BROADCAST };

struct step_op {
    struct step_op *next;
    struct group *g;
    enum kind kind;
    bool done, doubling, carries;
    int tag, round, root;
    const char *send;
    char *recv, *scratch;
    int64_t n, value, incoming;
    size_t size; /* of an element */
    enum dtype d;
    int64_t *at, *recv_at; /* [group + 1] where each member's part begins, in bytes */
    int room;              /* of at and recv_at */
    struct messages ms;
};

static void post_send(struct step_op *op, int member, const char *buf, size_t bytes) {
    struct group *g = op->g;
    g->bytes_sent += (int64_t)bytes;
    g->comm->bytes_sent += (int64_t)bytes;
    g->comm->transport->send(g, member, op->tag, buf, bytes, &op->ms);
}

static void post_receive(struct step_op *op, int member, char *buf, size_t bytes) {
    op->g->comm->transport->receive(op->g, member, op->tag, buf, bytes, &op->ms);
}

/* NULL stays NULL on dry, where no buffer is there. */
static char *place(const char *base, int64_t offset) {
    return base ? (char *)base + offset : NULL;
}

/* Adds p vectors in group order, starting from member 0's. The slots hold the others' one after the
 * other, with a place for this rank's own if `hole`. out may be own. */
#define ADD(function, T)                                                                           \
    static void function(void *out, const void *own, const void *slots, bool hole, int rank,       \
                         int p, int64_t len) {                                                     \
        enum { BLOCK = 8192 / sizeof(T) };                                                         \
        _Pragma("omp parallel for if (len > THREADS_FROM / p)") for (int64_t b = 0; b < len;       \
                                                                     b += BLOCK) {                 \
            T sum[BLOCK];                                                                          \
            int64_t m = len - b < BLOCK ? len - b : BLOCK;                                         \
            for (int r = 0; r < p; r++) {                                                          \
                const T *from = (const T *)slots + (r > rank && !hole ? r - 1 : r) * len;          \
                if (r == rank) from = own;                                                         \
                if (r == 0) {                                                                      \
                    memcpy(sum, from + b, (size_t)m * sizeof(T));                                  \
                    continue;                                                                      \
                }                                                                                  \
                _Pragma("omp simd") for (int64_t i = 0; i < m; i++) sum[i] += from[b + i];         \
            }                                                                                      \
            memcpy((T *)out + b, sum, (size_t)m * sizeof(T));                                      \
        }                                                                                          \
    }

ADD(add_f32, float)
ADD(add_f64, double)
ADD(add_i32, uint32_t) /* unsigned: integers wrap */
ADD(add_i64, uint64_t)

/* BF16 adds up in float, in the same order, and is rounded once at the end. */
static void add_bf16(void *out, const void *own, const void *slots, bool hole, int rank, int p,
                     int64_t len) {
    enum { BLOCK = 2048 };
#pragma omp parallel for if (len > THREADS_FROM / p)
    for (int64_t b = 0; b < len; b += BLOCK) {
        float sum[BLOCK], term[BLOCK];
        int64_t m = len - b < BLOCK ? len - b : BLOCK;
        for (int r = 0; r < p; r++) {
            const uint16_t *from = (const uint16_t *)slots + (r > rank && !hole ? r - 1 : r) * len;
            if (r == rank) from = own;
            dtype_convert(r ? term : sum, F32, from + b, BF16, (size_t)m);
            if (r == 0) continue;
#pragma omp simd
            for (int64_t i = 0; i < m; i++) sum[i] += term[i];
        }
        dtype_convert((uint16_t *)out + b, BF16, sum, F32, (size_t)m);
    }
}

static void add(const struct step_op *op, char *out, const char *own, const char *slots, bool hole,
                int64_t len) {
    static void (*const adders[N_DTYPES])(void *, const void *, const void *, bool, int, int,
                                          int64_t) = {
        [F32] = add_f32, [F64] = add_f64, [BF16] = add_bf16, [I32] = add_i32, [I64] = add_i64};
    if (!op->g->comm->transport->moves || len <= 0) return;
    adders[op->d](out, own, slots, hole, op->g->rank, op->g->size, len);
}

/* The members' blocks first..first+n-1 (cyclically) to or from one member: one message, or two
 * where they wrap. */
static void post_blocks(struct step_op *op, char *base, int first, int n, int member,
                        bool sending) {
    int p = op->g->size, end[2] = {first + n < p ? first + n : p, first + n - p},
        from[2] = {first, 0};
    for (int i = 0; i < 2 && end[i] > from[i]; i++) {
        size_t bytes = (size_t)(op->at[end[i]] - op->at[from[i]]);
        if (bytes == 0) continue;
        if (sending) post_send(op, member, place(base, op->at[from[i]]), bytes);
        else post_receive(op, member, place(base, op->at[from[i]]), bytes);
    }
}

/* All-gather of the blocks at op->at. Small ones double what a rank holds each round, so that a
 * message is a few bytes longer but a rank sends log2(p) of them; large ones go straight to each.
 * */
static bool gather_round(struct step_op *op, char *base, int round) {
    int p = op->g->size, rank = op->g->rank;
    if (op->doubling) {
        int64_t distance = (int64_t)1 << round;
        if (distance >= p) return true;
        int step = (int)distance, n = step < p - step ? step : p - step;
        int above = (rank + step) % p, below = (rank - step + p) % p;
        post_blocks(op, base, above, n, above, false);
        post_blocks(op, base, rank, n, below, true);
        return false;
    }
    if (round > 0) return true;
    for (int k = 1; k < p; k++) {
        int below = (rank - k + p) % p, above = (rank + k) % p;
        post_blocks(op, base, below, 1, below, false);
        post_blocks(op, base, rank, 1, above, true);
    }
    return false;
}

/* Where member r's piece of slice s of the vector begins, in elements; r may be p: the slice's end.
 * */
static int64_t piece_begin(const struct step_op *op, int64_t s, int r) {
    int64_t most = (int64_t)(transport_slice_bytes / op->size), begin = s * most;
    int64_t len = op->n - begin < most ? op->n - begin : most;
    return begin + part_begin(len, op->g->size, r, UNIT);
}

/* Slices go through the rounds one behind the other: while the sum of one is handed out, the pieces
 * of the next are on their way. */
static bool sum_round(struct step_op *op, int round) {
    struct group *g = op->g;
    int p = g->size, rank = g->rank;
    int64_t most = (int64_t)(transport_slice_bytes / op->size), slices = (op->n + most - 1) / most;
    size_t e = op->size;
    if (op->doubling) {
        if (!gather_round(op, op->scratch, round)) return false;
        add(op, op->recv, place(op->scratch, op->at[rank]), op->scratch, true, op->n);
        return true;
    }
    if (round > slices) return true;
    if (round > 0) {
        int64_t begin = piece_begin(op, round - 1, rank),
                end = piece_begin(op, round - 1, rank + 1);
        char *own = place(op->recv, begin * (int64_t)e);
        add(op, own, own, op->scratch, false, end - begin);
        for (int k = 1; k < p; k++) {
            int below = (rank - k + p) % p, above = (rank + k) % p;
            int64_t b = piece_begin(op, round - 1, below),
                    n = piece_begin(op, round - 1, below + 1) - b;
            if (n > 0) post_receive(op, below, place(op->recv, b * (int64_t)e), (size_t)n * e);
            if (end > begin) post_send(op, above, own, (size_t)(end - begin) * e);
        }
    }
    if (round == slices) return false;
    int64_t held = piece_begin(op, round, rank + 1) - piece_begin(op, round, rank);
    for (int k = 1; k < p; k++) {
        int below = (rank - k + p) % p, above = (rank + k) % p;
        int64_t b = piece_begin(op, round, above), n = piece_begin(op, round, above + 1) - b;
        int64_t slot = (below > rank ? below - 1 : below) * held * (int64_t)e;
        if (held > 0) post_receive(op, below, place(op->scratch, slot), (size_t)held * e);
        if (n > 0) post_send(op, above, place(op->recv, b * (int64_t)e), (size_t)n * e);
    }
    return false;
}

static int64_t scatter_slice(int p, size_t e) {
    int64_t n = (int64_t)(transport_slice_bytes / ((size_t)p * e));
    return n > 0 ? n : 1;
}

/* Elements of slice s that a member with n elements has. */
static int64_t scatter_part(int64_t n, int64_t slice, int64_t s) {
    int64_t left = n - s * slice;
    return left < 0 ? 0 : left < slice ? left : slice;
}

static bool sum_scatter_round(struct step_op *op, int round) {
    struct group *g = op->g;
    int p = g->size, rank = g->rank;
    int64_t e = (int64_t)op->size, slice = scatter_slice(p, op->size),
            own = (op->at[rank + 1] - op->at[rank]) / e;
    if (round > 0) {
        int64_t done = (round - 1) * slice;
        add(op, place(op->recv, done * e), place(op->send, op->at[rank] + done * e), op->scratch,
            false, scatter_part(own, slice, round - 1));
    }
    if (round * slice >= op->n) return true; /* n: the largest count */
    int64_t held = scatter_part(own, slice, round);
    for (int k = 1; k < p; k++) {
        int below = (rank - k + p) % p, above = (rank + k) % p;
        int64_t n = scatter_part((op->at[above + 1] - op->at[above]) / e, slice, round);
        int64_t slot = (below > rank ? below - 1 : below) * held * e;
        if (held > 0) post_receive(op, below, place(op->scratch, slot), (size_t)(held * e));
        if (n > 0)
            post_send(op, above, place(op->send, op->at[above] + round * slice * e),
                      (size_t)(n * e));
    }
    return false;
}

static bool exchange_round(struct step_op *op, int round) {
    int p = op->g->size, rank = op->g->rank;
    if (round > 0) return true;
    for (int k = 1; k < p; k++) {
        int below = (rank - k + p) % p, above = (rank + k) % p;
        size_t in = (size_t)(op->recv_at[below + 1] - op->recv_at[below]);
        size_t out = (size_t)(op->at[above + 1] - op->at[above]);
        if (in > 0) post_receive(op, below, place(op->recv, op->recv_at[below]), in);
        if (out > 0) post_send(op, above, place(op->send, op->at[above]), out);
    }
    return false;
}

/* Each round a rank hears from twice as far below; hearing a value twice does not change the
 * largest. */
static bool max_round(struct step_op *op, int round) {
    int p = op->g->size, rank = op->g->rank;
    int64_t distance = (int64_t)1 << round;
    if (round > 0 && op->incoming > op->value) op->value = op->incoming;
    if (distance >= p) return true;
    int step = (int)distance;
    size_t bytes = op->carries ? sizeof op->value : 0;
    op->incoming = op->value;
    post_receive(op, (rank - step + p) % p, (char *)&op->incoming, bytes);
    post_send(op, (rank + step) % p, (const char *)&op->value, bytes);
    return false;
}

/* A binomial tree: counted from the root, the parent of v is v without its lowest bit. */
static bool broadcast_round(struct step_op *op, int round) {
    int p = op->g->size, v = (op->g->rank - op->root + p) % p;
    if (round == 0) {
        if (v != 0) post_receive(op, ((v & (v - 1)) + op->root) % p, op->recv, (size_t)op->n);
        return false;
    }
    if (round > 1) return true;
    int64_t below = v == 0 ? p : v & -v, bit = 1;
    while (bit * 2 < below) bit *= 2;
    for (; bit > 0; bit /= 2)
        if (bit < below && v + bit < p)
            post_send(op, (int)((v + bit + op->root) % p), op->recv, (size_t)op->n);
    return false;
}

/* Posts what follows when all messages of the round before have arrived and gone; true at the end.
 * */
static bool next_round(struct step_op *op) {
    int round = op->round++;
    switch (op->kind) {
    case GATHER: return gather_round(op, op->recv, round);
    case SUM: return sum_round(op, round);
    case SUM_SCATTER: return sum_scatter_round(op, round);
    case EXCHANGE: return exchange_round(op, round);
    case MAX: return max_round(op, round);
    case BROADCAST: return broadcast_round(op, round);
    }
    return true;
}

static void progress(struct comm *c) {
    for (struct step_op *op = c->under_way; op; op = op->next)
        while (!op->done && c->transport->finished(op->g, &op->ms)) op->done = next_round(op);
}

/* All operations move on while one is waited for; else two ranks that wait in different orders
 * would wait for each other. */
static void wait_until_done(const struct step_op *op) {
    struct comm *c = op->g->comm;
    int spins = 0;
    timer_wait(c->timer);
    while (progress(c), !op->done)
        if (c->yield || ++spins > SPINS) sched_yield();
    timer_waited(c->timer);
}

static struct step_op *op_new(struct group *g, enum kind kind, struct request *r) {
    struct comm *c = g->comm;
    int tag = g->id * SLOTS + g->operations % SLOTS;
    /* A tag is free again when the operation that had it is done. */
    for (struct step_op *other = c->under_way; other; other = other->next)
        if (other->tag == tag) wait_until_done(other);
    struct step_op *op = c->spare;
    if (op) c->spare = op->next;
    else op = die_alloc(sizeof *op);
    if (op->room < g->size + 1) {
        op->room = g->size + 1;
        op->at = die_realloc(op->at, (size_t)op->room * sizeof *op->at);
        op->recv_at = die_realloc(op->recv_at, (size_t)op->room * sizeof *op->recv_at);
    }
    op->g = g;
    op->kind = kind;
    op->done = op->doubling = false;
    op->tag = tag;
    op->round = 0;
    op->send = NULL;
    op->recv = op->scratch = NULL;
    op->next = c->under_way;
    c->under_way = op;
    g->operations++;
    g->under_way++;
    *r = (struct request){g, op};
    return op;
}

static void begin(struct step_op *op) {
    op->done = next_round(op);
}

void steps_wait(struct request *r) {
    struct step_op *op = r->state, **link;
    if (!op) return;
    struct comm *c = op->g->comm;
    wait_until_done(op);
    for (link = &c->under_way; *link != op; link = &(*link)->next) {
    }
    *link = op->next;
    op->next = c->spare;
    c->spare = op;
    op->g->under_way--;
    r->state = NULL;
}

void steps_end(struct comm *c) {
    while (c->spare) {
        struct step_op *op = c->spare;
        c->spare = op->next;
        c->transport->forget(&op->ms);
        free(op->at);
        free(op->recv_at);
        free(op);
    }
}

/* Where each member's part begins, in bytes. Returns the end. */
static int64_t fill_offsets(int64_t *at, const int64_t *counts, int64_t size, int p) {
    at[0] = 0;
    for (int i = 0; i < p; i++) at[i + 1] = at[i] + counts[i] * size;
    return at[p];
}

void steps_gather(struct group *g, const void *send, void *recv, const int64_t *counts, size_t size,
                  struct request *r) {
    struct step_op *op = op_new(g, GATHER, r);
    int64_t end = fill_offsets(op->at, counts, (int64_t)size, g->size);
    op->recv = recv;
    op->doubling = (size_t)end <= transport_small_bytes;
    char *own = place(op->recv, op->at[g->rank]);
    if (g->comm->transport->moves && counts[g->rank] > 0 && own != send)
        memcpy(own, send, (size_t)counts[g->rank] * size);
    begin(op);
}

/* A sum small enough that everyone gathers everything and adds it up: half the rounds. */
static bool sum_is_small(const struct group *g, int64_t n, size_t size) {
    return (size_t)n * size <= transport_small_bytes / (size_t)g->size;
}

void steps_sum(struct group *g, void *buf, int64_t n, enum dtype d, void *scratch,
               struct request *r) {
    struct step_op *op = op_new(g, SUM, r);
    op->recv = buf;
    op->scratch = scratch;
    op->n = n;
    op->d = d;
    op->size = dtype_size(d);
    op->doubling = sum_is_small(g, n, op->size);
    if (op->doubling) {
        int64_t bytes = n * (int64_t)op->size;
        for (int i = 0; i <= g->size; i++) op->at[i] = i * bytes;
        if (g->comm->transport->moves && n > 0)
            memcpy(op->scratch + op->at[g->rank], buf, (size_t)bytes);
    }
    begin(op);
}

size_t steps_sum_scratch(const struct group *g, int64_t n, enum dtype d) {
    size_t e = dtype_size(d);
    if (sum_is_small(g, n, e)) return (size_t)g->size * (size_t)n * e;
    int64_t most = (int64_t)(transport_slice_bytes / e), whole = n < most ? n : most,
            last = n % most;
    int64_t a =
        part_begin(whole, g->size, g->rank + 1, UNIT) - part_begin(whole, g->size, g->rank, UNIT);
    int64_t b =
        part_begin(last, g->size, g->rank + 1, UNIT) - part_begin(last, g->size, g->rank, UNIT);
    return (size_t)(a > b ? a : b) * (size_t)(g->size - 1) * e;
}

void steps_sum_scatter(struct group *g, const void *send, void *recv, const int64_t *counts,
                       enum dtype d, void *scratch, struct request *r) {
    struct step_op *op = op_new(g, SUM_SCATTER, r);
    op->send = send;
    op->recv = recv;
    op->scratch = scratch;
    op->d = d;
    op->size = dtype_size(d);
    fill_offsets(op->at, counts, (int64_t)op->size, g->size);
    op->n = 0;
    for (int i = 0; i < g->size; i++)
        if (counts[i] > op->n) op->n = counts[i];
    begin(op);
}

size_t steps_sum_scatter_scratch(const struct group *g, const int64_t *counts, enum dtype d) {
    size_t e = dtype_size(d);
    int64_t held = scatter_part(counts[g->rank], scatter_slice(g->size, e), 0);
    return (size_t)held * (size_t)(g->size - 1) * e;
}

void steps_exchange(struct group *g, const void *send, const int64_t *send_bytes, void *recv,
                    const int64_t *recv_bytes, struct request *r) {
    struct step_op *op = op_new(g, EXCHANGE, r);
    op->send = send;
    op->recv = recv;
    fill_offsets(op->at, send_bytes, 1, g->size);
    fill_offsets(op->recv_at, recv_bytes, 1, g->size);
    int64_t own = send_bytes[g->rank];
    if (g->comm->transport->moves && own > 0)
        memcpy(op->recv + op->recv_at[g->rank], op->send + op->at[g->rank], (size_t)own);
    begin(op);
}

void steps_max(struct group *g, int64_t value, bool carries, struct request *r) {
    struct step_op *op = op_new(g, MAX, r);
    op->value = value;
    op->carries = carries;
    begin(op);
}

int64_t steps_wait_max(struct request *r) {
    struct step_op *op = r->state;
    wait_until_done(op);
    int64_t value = op->value;
    steps_wait(r);
    return value;
}

void steps_broadcast(struct group *g, void *buf, size_t bytes, int root, struct request *r) {
    struct step_op *op = op_new(g, BROADCAST, r);
    op->recv = buf;
    op->n = (int64_t)bytes;
    op->root = root;
    begin(op);
}
