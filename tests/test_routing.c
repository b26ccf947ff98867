/* What routing does to a whole model's gradients: the losses of the router, dropped choices and padding,
 * against differences of the loss in double; and what is counted of whom. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "tests/lab.h"

enum { SEQUENCES = 3, LENGTH = 7 };

/* Three sequences: of two documents; of one; and a document and padding. */
static struct host_batch sequences(void) {
    struct host_batch b = lab_batch(SEQUENCES, LENGTH, 5);
    lab_cut(&b, 0, 2, (int[]){3, 4});
    lab_cut(&b, 2, 2, (int[]){5, 2});
    for (int t = 2 * LENGTH + 5; t < 3 * LENGTH; t++) b.weight[t] = 0, b.target[t] = -1;
    return b;
}
static const int64_t counted = SEQUENCES * LENGTH - 2;

static void rules(struct lab *l, double even, double square, bool whole_batch, double capacity) {
    struct engine *e = &l->e;
    e->experts = (struct expert_rules){.capacity = capacity, .whole_batch = whole_batch};
    e->experts.balancing = (struct balancing){.even = even, .square = square, .share = 1.0 / SEQUENCES};
    arena_take(&e->values, sizeof(struct exact), "balance loss", &e->experts.balancing.even_sum);
    arena_take(&e->values, sizeof(struct exact), "z loss", &e->experts.balancing.square_sum);
}

/* All that is minimised. */
static double objective(struct lab *l, const struct host_batch *b) {
    const struct balancing *k = &l->e.experts.balancing;
    double loss = engine_gradients(&l->e, 1, b, counted, true);
    struct router_losses r = engine_router_losses(&l->e);
    return loss + config_count(&l->config, 'E') * (k->even * r.balance + k->square * r.z);
}

static void gradients_are_differences(void **state) {
    (void)state;
    for (int i = 0; i < LAB_MODELS * 4; i++) {
        struct lab l;
        char *recompute[] = {"memory.recompute=full"};
        int model = i / 4, tried = 0;
        if (!strchr(lab_models[model], 'E')) continue;
        struct host_batch b = sequences();
        lab_open(&l, lab_models[model], i % 2, recompute);
        if (!config_count(&l.config, 'E')) {
            lab_batch_free(&b);
            lab_close(&l);
            continue;
        }
        rules(&l, 0.7, 0.2, i % 4 > 1, i % 4 == 3 ? 1 : 0);
        objective(&l, &b);
        int64_t n;
        double *grad = lab_all_gradients(&l, &n), most = 0, step = 1e-6;
        for (int64_t k = 0; k < n; k++) most = fmax(most, fabs(grad[k]));
        const double *at = grad;
        for (int p = 0; p < l.e.model.params.n_blocks; p++) {
            const struct param_block *k = &l.e.model.params.block[p];
            if (!k->p.trained) continue;
            bool gate = strstr(k->p.name, "gate.weight") != NULL;
            for (int64_t j = 0; j < k->elements; j += gate ? 1 : 1 + k->elements / 3) {
                double *w = &lab_values(&l, k)[j], was = *w, side[2];
                for (int s = 0; s < 2; s++) {
                    *w = was + (s ? step : -step);
                    side[s] = objective(&l, &b);
                }
                *w = was;
                double want = (side[1] - side[0]) / (2 * step);
                if (!(fabs(at[j] - want) <= 1e-6 * most + 1e-5 * fabs(want)))
                    fail_msg("model %d, case %d: gradient %d of %s is %.10g, the difference %.10g",
                             model, i % 4, (int)j, k->p.name, at[j], want);
                tried++;
            }
            at += k->elements;
        }
        assert_true(tried > 20);
        free(grad);
        lab_batch_free(&b);
        lab_close(&l);
    }
}

/* Every token that is no padding is counted as often as it chooses, dropped or not. */
static void padding_is_not_counted(void **state) {
    (void)state;
    struct lab l;
    struct host_batch b = sequences();
    lab_open(&l, lab_models[0], 0, NULL);
    rules(&l, 0, 0, false, 1);
    engine_gradients(&l.e, 1, &b, counted, true);
    int64_t n = l.config.keys.n_routed_experts, load[16], sum = 0;
    for (int i = 0; i < l.config.n_layers; i++) {
        if (l.config.kinds[i] != 'E') continue;
        device_read(&l.e.device, load, l.e.model.layer[i].load, (size_t)n * sizeof *load);
        for (int64_t e = 0; e < n; e++) sum += load[e];
    }
    assert_int_equal(sum, counted * l.config.keys.num_experts_per_tok);
    lab_batch_free(&b);
    lab_close(&l);
}

/* A capacity that nobody exceeds drops nothing, to the bit; the least one drops something. */
static void capacity(void **state) {
    (void)state;
    double loss[3];
    for (int i = 0; i < 3; i++) {
        struct lab l;
        struct host_batch b = sequences();
        lab_open(&l, lab_models[0], 0, NULL);
        rules(&l, 0, 0, false, (double[]){0, 100, 1}[i]);
        loss[i] = engine_gradients(&l.e, 1, &b, counted, false);
        lab_batch_free(&b);
        lab_close(&l);
    }
    assert_true(loss[0] == loss[1]);
    assert_true(loss[0] != loss[2] && isfinite(loss[2]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(padding_is_not_counted),
        cmocka_unit_test(capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
