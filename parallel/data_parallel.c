#include "parallel/data_parallel.h"

#include "kernels/die.h"
#include "parallel/groups.h"
#include "parallel/tensor_parallel.h"

static void sum_shared_rows(struct tape *t, struct param *p) {
    int64_t row = 0;
    if (p->layout.state[AXIS_TENSOR] != SPLIT) return;
    for (int i = 0; i < p->layout.n_segments; i++) {
        const struct segment *s = &p->layout.segment[i];
        void *at = (char *)p->grad + row * p->width * dtype_size(t->real);
        if (s->share > 1)
            sum_over(t, parallel_share(t->parallel, s->share), at, s->width * p->width, t->real);
        row += s->width;
    }
}

void data_sum_gradient(struct tape *t, struct param *p) {
    const struct parallel *w = t->parallel;
    const enum state *s = p->layout.state;
    int64_t n = p->rows * p->width;
    if (!p->trained || !p->used) return;
    sum_shared_rows(t, p);
    if (p->layout.factoring == DENSE) {
        if (s[AXIS_TENSOR] == ENTERED) sum_over(t, w->axis[MESH_TENSOR], p->grad, n, t->real);
        if (s[AXIS_DATA] != s[AXIS_CONTEXT])
            bug("parameter %s: tokens are split along data and context alike", p->name);
        if (s[AXIS_DATA] == ENTERED) sum_over(t, w->replicas, p->grad, n, t->real);
    } else {
        if (s[AXIS_EXPERT_TENSOR] == ENTERED)
            sum_over(t, w->axis[MESH_EXPERT_TENSOR], p->grad, n, t->real);
        if (s[AXIS_EXPERT_DATA] == ENTERED)
            sum_over(t, w->axis[MESH_EXPERT_DATA], p->grad, n, t->real);
    }
}
