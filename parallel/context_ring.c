#include "parallel/context_ring.h"

#include <stdlib.h>

#include "kernels/die.h"

struct ring ring_of(struct tape *t, enum dtype d, const int64_t *size, const void *start) {
    struct group *g = context_group(t);
    return (struct ring){.t = t,
                         .g = g,
                         .d = d,
                         .C = g->size,
                         .me = g->rank,
                         .held = context_held(g->size),
                         .rows = size[0],
                         .length = size[1],
                         .tokens = size[0] * size[1],
                         .heads = size[2],
                         .kv = size[3],
                         .head_dim = size[4],
                         .q = size[2] * size[4],
                         .k = size[3] * size[4],
                         .start = start};
}

void ring_turn_start(const struct ring *r, struct request *w, const void *out, void *in,
                     int64_t bytes) {
    int64_t *to = die_alloc(2 * (unsigned long)r->C * sizeof *to), *from = to + r->C;
    to[(r->me + 1) % r->C] = bytes;
    from[(r->me + r->C - 1) % r->C] = bytes;
    comm_exchange_start(r->g, device_host(r->t->device, out), to, device_host(r->t->device, in),
                        from, w);
    free(to);
}

int ring_source(const struct ring *r, int s) {
    return (r->me - s + r->C) % r->C;
}

void ring_meet(const struct ring *r, const struct attention_block *a, int64_t first, void *o,
               void *lse, void *part, void *part_lse) {
    struct tape *t = r->t;
    attention_run(t, r->d, a, part, part_lse, false);
    DEVICE_RUN(t->device, attention_merge, r->d, .more = part, .lse_more = part_lse,
               .o = moved(o, first * r->q, t->real), .lse = moved(lse, first * r->heads, t->real),
               .T = a->rows * a->length, .H = r->heads, .D = r->head_dim);
    comm_progress(t->parallel->comm);
}
