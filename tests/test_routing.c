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

static void rules(struct lab *l, double even, double square, enum balance_of of, double capacity) {
    struct engine *e = &l->e;
    e->experts = (struct expert_rules){.capacity = capacity, .of = of};
    e->experts.balancing = (struct balancing){.even = even, .square = square};
    for (int i = 0; of == OF_STEP && i < l->config.n_layers; i++)
        if (l->config.kinds[i] == 'E')
            arena_take(&e->values, (l->config.keys.n_routed_experts + 1) * sizeof(int64_t), "seen",
                       &e->model.layer[i].seen);
    arena_take(&e->values, sizeof(struct exact), "balance loss", &e->experts.balancing.even_sum);
    arena_take(&e->values, sizeof(struct exact), "z loss", &e->experts.balancing.square_sum);
}

/* All that is minimised. */
static double objective(struct lab *l, int n, const struct host_batch *b, int64_t targets) {
    const struct balancing *k = &l->e.experts.balancing;
    double loss = engine_gradients(&l->e, n, b, targets, true);
    struct router_losses r = engine_router_losses(&l->e);
    return loss + config_count(&l->config, 'E') * (k->even * r.balance + k->square * r.z);
}

static void gradients_are_differences(void **state) {
    (void)state;
    for (int i = 0; i < LAB_MODELS * 6; i++) {
        struct lab l;
        char *recompute[] = {"memory.recompute=full"};
        int model = i / 6, way = i % 6, tried = 0;
        if (!strchr(lab_models[model], 'E')) continue;
        struct host_batch b[] = {sequences(), sequences()};
        lab_cut(&b[1], 1, 3, (int[]){1, 4, 2});
        lab_open(&l, lab_models[model], way % 2, recompute);
        rules(&l, 0.7, 0.2, (enum balance_of)(way / 2), way > 2 ? 1 : 0);
        objective(&l, 2, b, 2 * counted);
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
                    side[s] = objective(&l, 2, b, 2 * counted);
                }
                *w = was;
                double want = (side[1] - side[0]) / (2 * step);
                if (!(fabs(at[j] - want) <= 1e-6 * most + 1e-5 * fabs(want)))
                    fail_msg("model %d, case %d: gradient %d of %s is %.10g, the difference %.10g",
                             model, way, (int)j, k->p.name, at[j], want);
                tried++;
            }
            at += k->elements;
        }
        assert_true(tried > 20);
        free(grad);
        lab_batch_free(&b[0]);
        lab_batch_free(&b[1]);
        lab_close(&l);
    }
}

/* The router's losses of batches, with rules of this kind. */
static struct router_losses losses(enum balance_of of, int n, const struct host_batch *b) {
    struct lab l;
    lab_open(&l, lab_models[0], 0, NULL);
    rules(&l, 1, 1, of, 0);
    objective(&l, n, b, counted);
    struct router_losses r = engine_router_losses(&l.e);
    lab_close(&l);
    return r;
}

/* Documents in one sequence have the losses of sequences of their own, and count by their tokens; so a
 * document's does not depend on what it is packed with, nor on padding. */
static void documents_are_sequences(void **state) {
    (void)state;
    static const struct {
        int row, from, n;
    } of[] = {{0, 0, 3}, {0, 3, 4}, {1, 0, LENGTH}, {2, 0, 5}};
    struct host_batch all = sequences();
    struct router_losses packed = losses(OF_DOCUMENTS, 1, &all), alone = {0},
                         together = losses(OF_MICRO_BATCH, 1, &all);
    for (int i = 0; i < 4; i++) {
        struct host_batch one = lab_slice(&all, of[i].row, of[i].from, of[i].n);
        struct router_losses r = losses(OF_DOCUMENTS, 1, &one);
        alone.balance += r.balance * of[i].n / (double)counted;
        alone.z += r.z * of[i].n / (double)counted;
        lab_batch_free(&one);
    }
    assert_true(fabs(packed.balance - alone.balance) <= 1e-13 * alone.balance);
    assert_true(fabs(packed.z - alone.z) <= 1e-13 * alone.z);
    assert_true(fabs(together.z - alone.z) <= 1e-13 * alone.z);
    assert_true(fabs(together.balance - alone.balance) > 1e-3 * alone.balance);
    lab_batch_free(&all);
}

/* Of a step with one micro-batch `global` is `batch`; with more, each micro-batch counts what came
 * before it too. */
static void steps_are_counted_on(void **state) {
    (void)state;
    struct host_batch all = sequences(), part[SEQUENCES];
    for (int i = 0; i < SEQUENCES; i++) {
        part[i] = lab_slice(&all, i, 0, LENGTH);
        for (int t = 0; t < LENGTH; t++) part[i].start[t] = all.start[i * LENGTH + t];
    }
    double batch = losses(OF_MICRO_BATCH, 1, &all).balance, step = losses(OF_STEP, 1, &all).balance,
           by_part = losses(OF_MICRO_BATCH, SEQUENCES, part).balance,
           so_far = losses(OF_STEP, SEQUENCES, part).balance,
           backwards =
               losses(OF_STEP, SEQUENCES, (struct host_batch[]){part[2], part[1], part[0]}).balance;
    assert_true(batch == step);
    assert_true(by_part > batch && so_far > batch && so_far < by_part);
    assert_true(fabs(backwards - so_far) > 1e-6);
    for (int i = 0; i < SEQUENCES; i++) lab_batch_free(&part[i]);
    lab_batch_free(&all);
}

/* Every token that is no padding is counted as often as it chooses, dropped or not. */
static void padding_is_not_counted(void **state) {
    (void)state;
    struct lab l;
    struct host_batch b = sequences();
    lab_open(&l, lab_models[0], 0, NULL);
    rules(&l, 0, 0, OF_DOCUMENTS, 1);
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
        rules(&l, 0, 0, OF_DOCUMENTS, (double[]){0, 100, 1}[i]);
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
        cmocka_unit_test(documents_are_sequences),
        cmocka_unit_test(steps_are_counted_on),
        cmocka_unit_test(padding_is_not_counted),
        cmocka_unit_test(capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
