/* What routing does to a whole model's gradients: the losses of the router, dropped choices and
 * padding, against differences of the loss in double; and what is counted of whom. */
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

/* Overrides; for the two that follow them. */
static char *one_normalised[] = {"model.num_experts_per_tok=1", "model.norm_topk_prob=true",
                                 "memory.recompute=full"};

/* One way of a model: `way` chooses recomputing, whose balance it is, and dropping. */
static void compare_differences(const char *model, int way, bool one) {
    struct lab l;
    int tried = 0;
    struct host_batch b[] = {sequences(), sequences()};
    lab_cut(&b[1], 1, 3, (int[]){1, 4, 2});
    lab_open(&l, model, way % 2 + (one ? 2 : 0), one_normalised + (one ? 0 : 2));
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
                fail_msg("case %d%s: gradient %d of %s is %.10g, the difference %.10g; model\n%s",
                         way, one ? ", one expert" : "", (int)j, k->p.name, at[j], want, model);
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

static void gradients_are_differences(void **state) {
    (void)state;
    for (int i = 0; i < LAB_MODELS * 6; i++)
        if (strchr(lab_models[i / 6], 'E')) compare_differences(lab_models[i / 6], i % 6, false);
    for (int way = 0; way < 6; way++) compare_differences(lab_models[2], way, true);
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

/* Documents in one sequence have the losses of sequences of their own, and count by their tokens;
 * so a document's does not depend on what it is packed with, nor on padding. */
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

/* Of a step with one micro-batch `global` is `batch`; with more, each micro-batch
 * counts what came before it too. */
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

/* The loss of one sequence's tokens from..end in a model of one layer, which sees each token by
 * itself. Every token takes the first expert, which has room for the first two of six; without
 * experts: theirs give nothing. */
static double loss_of(int from, int end, double room, bool experts) {
    struct lab l;
    char *all[] = {one_normalised[0], one_normalised[1], "model.n_routed_experts=3",
                   "model.routed_scaling_factor=2.7"};
    struct host_batch b = lab_batch(1, 6, 9);
    for (int t = 0; t < 6; t++)
        if (t < from || t >= end) b.weight[t] = 0;
    lab_open(&l, lab_models[4], 4, all);
    rules(&l, 0, 0, OF_DOCUMENTS, room);
    for (int p = 0; p < l.e.model.params.n_blocks; p++) {
        const struct param_block *k = &l.e.model.params.block[p];
        const char *name = k->p.name;
        bool none = strstr(name, ".experts.") && strstr(name, "down_proj") && !experts;
        if (none) memset(lab_values(&l, k), 0, (size_t)k->elements * sizeof(double));
        if (strstr(name, "correction_bias"))
            lab_values(&l, k)[0] = 1000; /* unlike scores, one choice */
    }
    double loss = lab_gradients(&l, 1, &b, end - from);
    for (int p = 0; p < l.e.model.params.n_blocks; p++) {
        const struct param_block *k = &l.e.model.params.block[p];
        /* What weighs one expert is a constant. */
        for (int64_t i = 0; strstr(k->p.name, "gate.weight") && i < k->elements; i++)
            assert_true(fabs(lab_grads(&l, k)[i]) <= 1e-15);
    }
    lab_batch_free(&b);
    lab_close(&l);
    return loss;
}

/* With one normalised expert a token all weights are equal, so the first tokens get the room,
 * exactly; the others are as if there were no experts. */
static void first_of_equals(void **state) {
    (void)state;
    assert_true(loss_of(0, 2, 1, true) == loss_of(0, 2, 0, true));
    assert_true(loss_of(2, 6, 1, true) == loss_of(2, 6, 0, false));
    assert_true(fabs(loss_of(2, 6, 0, true) - loss_of(2, 6, 0, false)) > 1e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(documents_are_sequences),
        cmocka_unit_test(steps_are_counted_on),
        cmocka_unit_test(padding_is_not_counted),
        cmocka_unit_test(capacity),
        cmocka_unit_test(first_of_equals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
