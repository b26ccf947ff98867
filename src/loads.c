#include "src/loads.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/die.h"
#include "parallel/expert_parallel.h"
#include "src/engine.h"

void loads_init(struct loads *s, const struct engine *e) {
    loads_of_model(s, e->config);
}

void loads_of_model(struct loads *s, const struct config *c) {
    *s = (struct loads){.experts = c->keys.n_routed_experts};
    s->layer = die_alloc((size_t)(c->n_layers + 1) * sizeof *s->layer);
    for (int i = 0; i < c->n_layers; i++)
        if (c->kinds[i] == 'E') s->layer[s->layers++] = i;
    s->n = die_alloc((size_t)(s->layers * s->experts + 1) * sizeof *s->n);
}

void loads_free(struct loads *s) {
    free(s->layer);
    free(s->n);
    *s = (struct loads){0};
}

/* Where experts are at home, all ranks of a tensor group count the
 * same tokens: the first speaks. */
void loads_take(struct loads *s, struct engine *e) {
    struct group *world = e->comm->world;
    bool speaks = !experts_at_home(&e->parallel) || e->parallel.at.tensor == 0;
    int64_t all = s->layers * s->experts;
    size_t bytes = (size_t)s->experts * sizeof *s->n;
    if (!s->layers) return;
    memset(s->n, 0, (size_t)all * sizeof *s->n);
    for (int i = 0; i < s->layers; i++) {
        void *load = e->model.layer[s->layer[i]].load;
        if (!load) continue; /* another stage's */
        if (speaks) device_read(&e->device, s->n + i * s->experts, load, bytes);
        device_zero(&e->device, load, bytes);
    }
    void *scratch = die_alloc(comm_sum_scratch(world, all, I64) + 1);
    struct request r;
    comm_sum_start(world, s->n, all, I64, scratch, &r);
    comm_wait(&r);
    free(scratch);
}

double loads_imbalance_of(const struct loads *s, int i, int groups, int *fullest) {
    const int64_t *n = s->n + i * s->experts, held = s->experts / groups;
    int64_t most = -1, sum = 0;
    for (int g = 0; g < groups; g++) {
        int64_t load = 0;
        for (int64_t e = g * held; e < (g + 1) * held; e++) load += n[e];
        sum += load;
        if (load > most && fullest) *fullest = g;
        if (load > most) most = load;
    }
    return sum ? (double)most * groups / (double)sum : 1;
}

double loads_imbalance(const struct loads *s, int i) {
    return loads_imbalance_of(s, i, (int)s->experts, NULL);
}

double loads_worst(const struct loads *s) {
    double worst = 1;
    for (int i = 0; i < s->layers; i++) {
        double x = loads_imbalance(s, i);
        if (x > worst) worst = x;
    }
    return worst;
}

static const struct param_block *correction_of(const struct layer *l) {
    for (int r = 0; r < l->kind->n_rows; r++)
        if (l->kind->rows[r].may & BUFFER) return (const struct param_block *)l->p[r];
    bug("a layer with experts has no correction bias");
}

void loads_correct(const struct loads *s, struct engine *e, double rate) {
    int64_t n = s->experts;
    size_t bytes = (size_t)n * dtype_size(e->real);
    char *bias = die_alloc(bytes + 1);
    for (int i = 0; i < s->layers; i++) {
        const struct param_block *b = correction_of(&e->model.layer[s->layer[i]]);
        const int64_t *load = s->n + i * n;
        if (!b->here) continue;
        device_read(&e->device, bias, b->p.value, bytes);
        int64_t total = 0; /* load against mean, in whole numbers: n * load against the total */
        for (int64_t k = 0; k < n; k++) total += load[k];
        for (int64_t k = 0; k < n; k++) {
            double move = rate * ((total > n * load[k]) - (total < n * load[k]));
            if (e->real == F32) ((float *)bias)[k] += (float)move;
            else ((double *)bias)[k] += move;
        }
        device_write(&e->device, b->p.value, bias, bytes);
    }
    free(bias);
}
