#include "src/costs.h"

#include <string.h>

#include "src/engine.h"

void costs_read(struct costs *c, const struct engine *e) {
    memcpy(c->op, e->device.count, sizeof c->op);
    c->n_groups = parallel_traffic(&e->parallel, c->group);
    c->n_groups += neighbours_traffic(&e->pipeline.neighbours, c->group + c->n_groups,
                                      TRAFFIC_MOST - c->n_groups);
}

void costs_add(struct costs *to, const struct costs *from, double times) {
    for (int i = 0; i < N_OPS; i++) {
        to->op[i].calls += (int64_t)(times * (double)from->op[i].calls);
        to->op[i].work += times * from->op[i].work;
        to->op[i].bytes += times * from->op[i].bytes;
        to->op[i].least_s += times * from->op[i].least_s;
        to->op[i].spent_s += times * from->op[i].spent_s;
    }
    for (int i = 0; i < to->n_groups; i++) {
        to->group[i].bytes += (int64_t)(times * (double)from->group[i].bytes);
        to->group[i].calls += (int64_t)(times * (double)from->group[i].calls);
    }
}

struct op_count costs_total(const struct costs *c) {
    struct op_count sum = {0};
    for (int i = 0; i < N_OPS; i++) {
        sum.calls += c->op[i].calls;
        sum.work += c->op[i].work;
        sum.bytes += c->op[i].bytes;
        sum.least_s += c->op[i].least_s;
        sum.spent_s += c->op[i].spent_s;
    }
    return sum;
}

int64_t costs_sent(const struct costs *c) {
    int64_t sum = 0;
    for (int i = 0; i < c->n_groups; i++) sum += c->group[i].bytes;
    return sum;
}

void costs_print(const struct costs *c, FILE *f) {
    const struct op_count sum = costs_total(c);
    fprintf(f, "{\"work\": %.0f, \"bytes\": %.0f, \"sent\": {", sum.work, sum.bytes);
    for (int i = 0; i < c->n_groups; i++)
        fprintf(f, "%s\"%s\": %lld", i ? ", " : "", c->group[i].name, (long long)c->group[i].bytes);
    fprintf(f, "}}");
}
