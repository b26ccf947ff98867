#include "src/optimiser.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "parallel/groups.h"

void optimiser_init(struct optimiser *o, const struct deck *deck, struct params *s,
                    struct device *d, struct arena *arena, enum dtype real) {
    *o = (struct optimiser){.deck = deck, .params = s, .device = d, .real = real};
    for (int i = 0; i < s->n_blocks; i++) {
        struct param_block *b = &s->block[i];
        size_t bytes = (size_t)b->elements * dtype_size(real);
        if (!b->p.trained || !b->here) continue;
        arena_take(arena, bytes, "first moment", &b->m);
        arena_take(arena, bytes, "second moment", &b->v);
        device_zero(d, b->m, bytes);
        device_zero(d, b->v, bytes);
    }
    arena_take(arena, sizeof(struct exact), "sum of squares", &o->sum);
    int n;
    struct box *boxes = params_boxes(s, real, PART_GRADIENTS, true, &n);
    o->run = die_alloc((n + 1) * sizeof *o->run);
    for (int i = 0; i < n; i++) {
        char *p = boxes[i].memory;
        int64_t count = boxes[i].rows * boxes[i].columns;
        if (o->n_runs &&
            (char *)o->run[o->n_runs - 1].p + o->run[o->n_runs - 1].n * dtype_size(real) == p) {
            o->run[o->n_runs - 1].n += count; /* experts and fused rows follow each other */
            continue;
        }
        o->run[o->n_runs].p = p;
        o->run[o->n_runs++].n = count;
    }
    free(boxes);
}

void optimiser_free(struct optimiser *o) {
    free(o->run);
    memset(o, 0, sizeof *o);
}

double optimiser_norm(struct optimiser *o, struct parallel *p) {
    struct exact sum;
    device_zero(o->device, o->sum, sizeof sum);
    for (int i = 0; i < o->n_runs; i++)
        DEVICE_RUN(o->device, exact_sum, o->real, .x = o->run[i].p, .sum = o->sum, .n = o->run[i].n,
                   .squares = 1);
    device_read(o->device, &sum, o->sum, sizeof sum);
    comm_sum_exact(p->comm->world, &sum);
    return sqrt(exact_value(&sum));
}

void optimiser_step(struct optimiser *o, int64_t step, double rate, double norm) {
    const struct deck_optimizer *k = &o->deck->optimizer;
    double most = o->deck->train.clip, clip = most > 0 && norm > most ? most / norm : 1;
    double c1 = 1 - pow(k->beta1, (double)step), c2 = 1 - pow(k->beta2, (double)step);
    for (int i = 0; i < o->params->n_blocks; i++) {
        struct param_block *b = &o->params->block[i];
        if (!b->p.trained || !b->here) continue;
        DEVICE_RUN(o->device, adamw, b->p.dtype, .w = b->master ? b->master : b->p.value,
                   .g = b->p.grad, .m = b->m, .v = b->v, .low = b->master ? b->p.value : NULL,
                   .n = b->elements, .clear = 1, .clip = clip, .rate = rate * b->rate,
                   .beta1 = k->beta1, .beta2 = k->beta2, .eps = k->epsilon,
                   .decay = b->decay ? k->weight_decay : 0, .c1 = c1, .c2 = c2);
    }
    o->params->cleared = true;
}
