#include "src/diagnose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/context_parallel.h"
#include "src/engine.h"

enum { TEXT = 512 };

/* First number of an array that is not finite, or -1. */
static int64_t first_bad(const struct engine *e, enum dtype d, const void *device_p, int64_t n) {
    const char *p = device_host(&e->device, device_p);
    for (int64_t i = 0; p && i < n; i++) {
        double x;
        dtype_convert(&x, F64, p + (size_t)i * dtype_size(d), d, 1);
        if (!isfinite(x)) return i;
    }
    return -1;
}

static bool bad_blocks(const struct engine *e, bool gradients, char *text) {
    for (int i = 0; i < e->model.params.n_blocks; i++) {
        const struct param_block *b = &e->model.params.block[i];
        const void *p = gradients ? b->p.grad : b->p.value;
        enum dtype d = gradients ? e->real : b->p.dtype;
        if (!p || (gradients && !b->p.trained) || first_bad(e, d, p, b->elements) < 0) continue;
        snprintf(text, TEXT, "%s %s is not finite (rank %d)",
                 gradients ? "the gradient of" : "the weight", b->p.name, e->comm->rank);
        return true;
    }
    return false;
}

struct watch {
    struct engine *e;
    int64_t row_length, first;
    char *text;
    int place; /* of the first such number: 1 the embedding, 2 layer 0, ...; 0: none */
};

/* Tells of the layer after which the stream first holds a number that is not finite. */
static void after_layer(void *context, int layer, const struct tensor *x) {
    struct watch *w = context;
    if (w->place && w->place <= layer + 2) return;
    int64_t at = first_bad(w->e, x->dtype, x->data, tensor_elements(x));
    if (at < 0) return;
    w->place = layer + 2;
    int64_t token = at / x->width;
    if (layer < 0)
        snprintf(w->text, TEXT, "the embedding gives a number that is not finite (rank %d)",
                 w->e->comm->rank);
    else if (w->e->parallel.sequence) /* a part by tokens: the sequence is not known from here */
        snprintf(w->text, TEXT, "layer %d (%s) gives a number that is not finite (rank %d)", layer,
                 w->e->model.layer[layer].kind->name, w->e->comm->rank);
    else
        snprintf(
            w->text, TEXT,
            "layer %d (%s) gives a number that is not finite (rank %d, sequence %ld of the step)",
            layer, w->e->model.layer[layer].kind->name, w->e->comm->rank,
            (long)(w->first + token / w->row_length));
}

static int bad_layer(struct engine *e, int n, const struct host_batch *batches, int64_t first,
                     char *text) {
    const int held = context_held(e->shape.context);
    struct watch w = {.e = e, .first = first, .text = text};
    e->model.after_layer = after_layer;
    e->model.watcher = &w;
    for (int i = 0; i < n; i++) {
        w.row_length = batches[i].length * held; /* of a sequence, here */
        engine_loss_add(e, 1, &batches[i]);
        w.first += batches[i].rows / held;
    }
    e->model.after_layer = NULL;
    return w.place;
}

char *diagnose(struct engine *e, int n, const struct host_batch *batches, int64_t first_sequence) {
    char *text = die_alloc(TEXT);
    struct comm *c = e->comm;
    int place = 0;
    /* The earliest cause any rank sees is told by the lowest such rank; of layers, the first in the
     * line: what a stage gives away spoils all behind it. */
    for (int stage = 0; stage < 3; stage++) {
        if (stage == 0) place = bad_blocks(e, false, text);
        if (stage == 1) place = bad_layer(e, n, batches, first_sequence, text);
        if (stage == 2) place = bad_blocks(e, true, text);
        int64_t first = comm_max(
            c->world, place ? (int64_t)(INT32_MAX - place) * c->size + c->size - 1 - c->rank : -1);
        if (first < 0) continue;
        comm_broadcast(c->world, text, TEXT, c->size - 1 - (int)(first % c->size));
        return text;
    }
    snprintf(text, TEXT, "no single number is to blame: the sum overflows");
    return text;
}
