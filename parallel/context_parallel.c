#include "parallel/context_parallel.h"

#include <stdlib.h>

#include "kernels/die.h"
#include "parallel/groups.h"

int context_held(int context) {
    return context > 1 ? 2 : 1;
}

int context_pieces(int context) {
    return context * context_held(context);
}

int context_piece(int context, int rank, int i) {
    return i == 0 ? rank : 2 * context - 1 - rank;
}

int64_t context_rows(int context, int64_t rows) {
    return rows * context_held(context);
}

int64_t context_length(int context, int64_t length) {
    return length / context_pieces(context);
}

int64_t context_dealt(int context, int rank, int64_t rows) {
    const int64_t more = rows % context;
    return rank * (rows / context) + (rank < more ? rank : more);
}

struct group *context_group(const struct tape *t) {
    return t->parallel->axis[MESH_CONTEXT];
}

void copy_rows(struct tape *t, enum dtype d, const void *from, int64_t ldx, void *to, int64_t ldy,
               int64_t rows, int64_t width, int add) {
    if (rows * width == 0) return;
    DEVICE_RUN(t->device, copy, d, .x = from, .y = to, .y_add = add, .T = rows, .W = width,
               .ldx = ldx, .ldy = ldy);
}

void context_exchange(struct tape *t, const void *send, const int64_t *send_bytes, void *recv,
                      const int64_t *recv_bytes) {
    struct request r;
    comm_exchange_start(context_group(t), device_host(t->device, send), send_bytes,
                        device_host(t->device, recv), recv_bytes, &r);
    comm_wait(&r);
}

struct tensor *context_all_rows(struct tape *t, struct tensor *x) {
    struct group *g = context_group(t);
    struct layout l = x->layout;
    struct request r;
    if (g->size == 1) return x;
    l.state[AXIS_CONTEXT] = ENTERED;
    struct tensor *y = tensor_new_of(t, x->dtype, "all tokens", g->size * x->rows, x->width, &l);
    int64_t *counts = die_alloc((unsigned long)g->size * sizeof *counts);
    for (int i = 0; i < g->size; i++) counts[i] = tensor_elements(x);
    comm_gather_start(g, device_host(t->device, x->data), device_host(t->device, y->data), counts,
                      dtype_size(x->dtype), &r);
    comm_wait(&r);
    free(counts);
    return y;
}
