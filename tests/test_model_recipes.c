/* Whole models by recipe: the gradients of bf16 are those of double but for rounding, masters are
 * kept where they are needed, and the dry device asks for the memory that the real one takes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/exact.h"
#include "kernels/mistakes.h"
#include "tests/lab.h"

/* ---------------------------------------------------------------- bf16 */

/* Gives `from`'s parameters to `to`, whatever the formats. */
static void copy_values(struct lab *to, struct lab *from) {
    for (int i = 0; i < to->e.model.params.n_blocks; i++) {
        struct param_block *a = &to->e.model.params.block[i], *b = &from->e.model.params.block[i];
        dtype_convert(device_host(&to->e.device, a->p.value), a->p.dtype,
                      device_host(&from->e.device, b->p.value), b->p.dtype, a->elements);
    }
}

/* Gradients of the recipe bf16 are those of the same weights in double, up to the rounding of what
 * is stored. Every expert is chosen: a choice among near ties is nobody's error. */
static void low_gradients(void **state) {
    (void)state;
    static char *const all_chosen[LAB_MODELS][2] = {
        {"model.num_experts_per_tok=5", NULL},
        {"model.num_experts_per_tok=6", "model.topk_group=3"},
        {"model.num_experts_per_tok=4", NULL},
        {NULL, NULL},
        {NULL, NULL}};
    for (int i = 0; i < LAB_MODELS; i++) {
        char *overrides[3];
        int n = 0;
        struct lab exact, low;
        struct host_batch t = lab_batch(2, 24, 5);
        for (int k = 0; k < 2 && all_chosen[i][k]; k++) overrides[n++] = all_chosen[i][k];
        lab_open(&exact, lab_models[i], n, overrides);
        overrides[n++] = "precision.recipe=bf16";
        lab_open(&low, lab_models[i], n, overrides);
        copy_values(&exact, &low);
        double loss = lab_gradients(&exact, 1, &t, 48), rounded = lab_gradients(&low, 1, &t, 48);
        assert_true(fabs(rounded - loss) < 0.01 * loss);
        for (int b = 0; b < low.e.model.params.n_blocks; b++) {
            const struct param_block *p = &low.e.model.params.block[b];
            const double *want = lab_grads(&exact, &exact.e.model.params.block[b]);
            const float *got = device_host(&low.e.device, p->p.grad);
            double difference = 0, size = 0;
            if (!p->p.trained) continue;
            for (int64_t k = 0; k < p->elements; k++) {
                difference += (got[k] - want[k]) * (got[k] - want[k]);
                size += want[k] * want[k];
            }
            if (!(sqrt(difference) <= 0.12 * sqrt(size)))
                fail_msg("model %d: gradient of %s is off by %g of it", i, p->p.name,
                         sqrt(difference / size));
        }
        lab_batch_free(&t);
        lab_close(&exact);
        lab_close(&low);
    }
}

/* Weights of products are held low, all others are real; masters are there only where updates need
 * them, and agree with their copies; an update clears the gradients. */
static void masters(void **state) {
    (void)state;
    for (int updates = 0; updates < 2; updates++) {
        char *overrides[] = {"precision.recipe=bf16", "precision.parameters=bf16",
                             "train.freeze=['backbone.layers.0.*']"};
        struct lab l;
        struct host_batch t = lab_batch(2, 9, 3);
        lab_read(&l, lab_models[1], 3, overrides);
        assert_int_equal(comm_init(&l.comm, &l.m), 0);
        assert_int_equal(engine_open(&l.e, &l.deck, &l.config, &l.m), 0);
        assert_int_equal(engine_init(&l.e, &l.comm, &l.shape, false, updates, updates, &l.m), 0);
        struct params *s = &l.e.model.params;
        for (int step = 1; updates && step < 3; step++) {
            lab_gradients(&l, 1, &t, 18);
            optimiser_step(&l.e.optimiser, step, 1e-2,
                           optimiser_norm(&l.e.optimiser, &l.e.parallel));
        }
        for (int i = 0; i < s->n_blocks; i++) {
            const struct param_block *b = &s->block[i];
            bool product = b->row->may & STORED;
            assert_int_equal(b->p.dtype, product ? BF16 : F32);
            assert_int_equal(b->master != NULL, updates && product && b->layer != 0);
            const float *g = device_host(&l.e.device, b->p.grad);
            for (int64_t k = 0; b->p.trained && k < b->elements; k++) assert_true(g[k] == 0);
            if (!b->master) continue;
            uint16_t *copy = die_alloc(b->elements * sizeof *copy);
            dtype_convert(copy, BF16, device_host(&l.e.device, b->master), F32, b->elements);
            assert_memory_equal(copy, device_host(&l.e.device, b->p.value),
                                b->elements * sizeof *copy);
            free(copy);
        }
        lab_batch_free(&t);
        lab_close(&l);
    }
}

/* ---------------------------------------------------------------- memory */

/* What the dry device asks for is what the real one takes, arena by arena; nothing stays. */
static void dry_peaks(void **state) {
    (void)state;
    static char *const recompute[3] = {"memory.recompute=none", "memory.recompute=selective",
                                       "memory.recompute=full"};
    size_t plain = 0;
    for (int i = 0; i < 3 * LAB_RECIPES * LAB_MODELS; i++) {
        char *full[] = {lab_recipes[i / 3 % LAB_RECIPES], recompute[i % 3]};
        const char *model = lab_models[i / (3 * LAB_RECIPES)];
        struct lab real, dry;
        struct host_batch b = lab_batch(2, 9, 3),
                          none = {.rows = 2, .length = 9, .weight = b.weight};
        lab_open(&real, model, 2, full);
        lab_read(&dry, model, 2, full);
        lab_start(&dry, true);
        for (int step = 0; step < 2; step++) {
            lab_gradients(&real, 1, &b, 18);
            lab_gradients(&dry, 1, &none, 18);
            struct arena *a = &real.e.values, *c = &dry.e.values;
            for (int k = 0; k < 5; k++) { /* values, grads, moments, work, scratch */
                assert_int_equal(a[k].peak, c[k].peak);
                assert_int_equal(a[k].live, c[k].live);
            }
            assert_int_equal(real.e.work.live, 0);
            assert_int_equal(real.e.scratch.live, 0);
        }
        if (i % 3 == 0) plain = real.e.work.peak;
        if (i % 3 && real.config.n_layers > 1) assert_true(real.e.work.peak < plain);
        lab_batch_free(&b);
        lab_close(&real);
        lab_close(&dry);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(low_gradients),
        cmocka_unit_test(masters),
        cmocka_unit_test(dry_peaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
