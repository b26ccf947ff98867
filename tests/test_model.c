/* Whole models in double: gradients are derivatives of the loss, documents and paddings do not see
 * each other, and the same tokens give the same numbers however they are cut, replayed or walked.
 */
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

/* ---------------------------------------------------------------- derivatives */

static void move(struct lab *l, const struct param_block *b, const double *along, double by) {
    for (int64_t k = 0; k < b->elements; k++) lab_values(l, b)[k] += by * along[k];
}

/* Every trained block along two random directions: the difference quotient of fourth order. */
static void derivatives(void **state) {
    (void)state;
    enum { LENGTH = 7, SEQUENCES = 2 };
    for (int i = 0; i < LAB_MODELS; i++) {
        struct lab l;
        struct host_batch b = lab_batch(SEQUENCES, LENGTH, 5);
        int64_t n;
        uint64_t seed = 77;
        lab_open(&l, lab_models[i], 0, NULL);
        lab_cut(&b, 0, 2, (int[]){4, 3});
        b.target[3] = -1, b.weight[3] = 0;
        lab_gradients(&l, 1, &b, SEQUENCES * LENGTH - 1);
        double *g = lab_all_gradients(&l, &n), *mine = g;
        for (int k = 0; k < l.e.model.params.n_blocks; k++) {
            const struct param_block *p = &l.e.model.params.block[k];
            if (!p->p.trained) continue;
            for (int way = 0; way < 2; way++) {
                double *v = die_alloc(p->elements * sizeof *v), dot = 0, size = 0, f[4];
                static const double at[4] = {2e-4, 1e-4, -1e-4, -2e-4};
                for (int64_t j = 0; j < p->elements; j++) {
                    v[j] = lab_random(&seed);
                    dot += v[j] * mine[j];
                    size += v[j] * v[j] * mine[j] * mine[j];
                }
                for (int q = 0; q < 4; q++) {
                    move(&l, p, v, at[q] - (q ? at[q - 1] : 0));
                    f[q] = lab_gradients(&l, 1, &b, SEQUENCES * LENGTH - 1);
                }
                move(&l, p, v, -at[3]);
                double slope = (8 * (f[1] - f[2]) - (f[0] - f[3])) / 12e-4;
                if (!(fabs(slope - dot) <= 1e-7 * (sqrt(size) + 1e-3)))
                    fail_msg("model %d, %s: difference %.12g, gradient %.12g", i, p->p.name, slope,
                             dot);
                assert_true(size > 0);
                free(v);
            }
            mine += p->elements;
        }
        free(g);
        lab_batch_free(&b);
        lab_close(&l);
    }
}

/* A head of zeros: every word is as likely, whatever the rest. */
static void uniform_loss(void **state) {
    (void)state;
    struct lab l;
    struct host_batch b = lab_batch(2, 5, 5);
    lab_open(&l, lab_models[0], 0, NULL);
    memset(device_host(&l.e.device, l.e.model.words->value), 0,
           l.e.model.words->rows * l.e.model.words->width * sizeof(double));
    assert_true(fabs(lab_gradients(&l, 1, &b, 10) - log(LAB_VOCABULARY)) < 1e-14);
    assert_true(lab_gradients(&l, 1, &b, 0) == 0); /* nothing counted: no loss, no gradient */
    int64_t n;
    double *g = lab_all_gradients(&l, &n);
    for (int64_t i = 0; i < n; i++) assert_true(g[i] == 0);
    free(g);
    lab_batch_free(&b);
    lab_close(&l);
}

/* ---------------------------------------------------------------- documents */

/* A packed row is its documents as rows of their own. */
static void documents_apart(void **state) {
    (void)state;
    static const int length[] = {1, 4, 2, 6};
    for (int i = 0; i < LAB_MODELS; i++) {
        struct lab l;
        struct host_batch packed = lab_batch(1, 13, 8), apart[4];
        int64_t n, from = 0;
        lab_open(&l, lab_models[i], 0, NULL);
        lab_cut(&packed, 0, 4, length);
        for (int d = 0; d < 4; from += length[d++])
            apart[d] = lab_slice(&packed, 0, from, length[d]);
        double loss = lab_gradients(&l, 1, &packed, 13), *g = lab_all_gradients(&l, &n);
        double other = lab_gradients(&l, 4, apart, 13), *h = lab_all_gradients(&l, &n);
        assert_true(fabs(loss - other) < 1e-13);
        lab_near(h, g, n, 1e-12);
        lab_cut(&packed, 0, 1, (int[]){13}); /* and it matters */
        assert_true(fabs(lab_gradients(&l, 1, &packed, 13) - loss) > 1e-6 ||
                    !strcmp(l.config.kinds, "E"));
        free(g), free(h);
        for (int d = 0; d < 4; d++) lab_batch_free(&apart[d]);
        lab_batch_free(&packed);
        lab_close(&l);
    }
}

/* Padding is a document of its own: what stands in it, and on which side, leaves no trace. */
static void padding(void **state) {
    (void)state;
    enum { LENGTH = 6, PADS = 3, WIDE = LENGTH + PADS };
    for (int i = 0; i < LAB_MODELS; i++) {
        struct lab l;
        struct host_batch bare = lab_batch(1, LENGTH, 8);
        int64_t n;
        lab_open(&l, lab_models[i], 0, NULL);
        double loss = lab_gradients(&l, 1, &bare, LENGTH), *g = lab_all_gradients(&l, &n);
        for (int way = 0; way < 4; way++) {
            struct host_batch padded = lab_batch(1, WIDE, 20 + (uint64_t)way);
            int first = way & 1 ? PADS : 0, pad = way & 1 ? 0 : LENGTH;
            for (int t = 0; t < LENGTH; t++) {
                padded.ids[first + t] = bare.ids[t];
                padded.target[first + t] = bare.target[t];
                padded.start[first + t] = first;
            }
            for (int t = 0; t < PADS; t++) {
                padded.start[pad + t] = pad;
                padded.target[pad + t] = way & 2 ? 3 : -1; /* a weight of zero is enough */
                padded.weight[pad + t] = 0;
            }
            double other = lab_gradients(&l, 1, &padded, LENGTH), *h = lab_all_gradients(&l, &n);
            assert_true(fabs(loss - other) < 1e-13);
            lab_near(h, g, n, 1e-12);
            free(h);
            lab_batch_free(&padded);
        }
        free(g);
        lab_batch_free(&bare);
        lab_close(&l);
    }
}

/* What comes later, and what stands in other documents and rows, changes no bit of a logit. */
static void causal(void **state) {
    (void)state;
    enum { SEQUENCES = 2, LENGTH = 6, TOKENS = SEQUENCES * LENGTH };
    for (int i = 0; i < LAB_MODELS; i++) {
        struct lab l;
        struct host_batch b = lab_batch(SEQUENCES, LENGTH, 5);
        static double before[TOKENS * LAB_VOCABULARY], after[TOKENS * LAB_VOCABULARY];
        lab_open(&l, lab_models[i], 0, NULL);
        lab_cut(&b, 0, 2, (int[]){4, 2});
        engine_logits(&l.e, 1, &b, before);
        for (int changed = 0; changed < TOKENS; changed++) {
            int32_t was = b.ids[changed];
            b.ids[changed] = (was + 1) % LAB_VOCABULARY;
            engine_logits(&l.e, 1, &b, after);
            for (int t = 0; t < TOKENS; t++) {
                bool sees = t / LENGTH == changed / LENGTH && changed <= t &&
                            b.start[t] <= changed % LENGTH;
                bool differs = memcmp(before + t * LAB_VOCABULARY, after + t * LAB_VOCABULARY,
                                      LAB_VOCABULARY * sizeof(double)) != 0;
                if (differs && !sees) fail_msg("model %d: token %d sees %d", i, t, changed);
                if (t == changed) assert_true(differs);
            }
            b.ids[changed] = was;
        }
        lab_batch_free(&b);
        lab_close(&l);
    }
}

/* ---------------------------------------------------------------- the same, otherwise */

/* One micro-batch of four rows, or many of fewer; and in another order, to the bit. */
static void micro_batches(void **state) {
    (void)state;
    enum { LENGTH = 5, COUNT = 4 * LENGTH };
    for (int i = 0; i < LAB_MODELS; i++) {
        struct lab l;
        struct host_batch all = lab_batch(4, LENGTH, 6), one[4], turned[4];
        int64_t n;
        lab_open(&l, lab_models[i], 0, NULL);
        lab_cut(&all, 1, 2, (int[]){2, 3});
        for (int r = 0; r < 4; r++) turned[3 - r] = one[r] = lab_slice(&all, r, 0, LENGTH);
        double loss = lab_gradients(&l, 1, &all, COUNT), *g = lab_all_gradients(&l, &n);
        double split = lab_gradients(&l, 4, one, COUNT), *h = lab_all_gradients(&l, &n);
        assert_true(fabs(split - loss) < 1e-13);
        lab_near(h, g, n, 1e-12);
        double back = lab_gradients(&l, 4, turned, COUNT);
        assert_memory_equal(&back, &split, sizeof back);
        double sum = 0, part; /* of parts, each its own mean */
        for (int r = 0; r < 4; r++) part = lab_gradients(&l, 1, &one[r], LENGTH), sum += part / 4;
        assert_true(fabs(sum - loss) < 1e-13);
        free(g), free(h);
        for (int r = 0; r < 4; r++) lab_batch_free(&one[r]);
        lab_batch_free(&all);
        lab_close(&l);
    }
}

/* The losses of a micro-batch on a tape of its own; its memory is given back by the caller. */
struct by_hand {
    struct tape tape;
    struct pass pass;
    struct micro_batch b;
    struct piece *piece[4];
    struct tensor *loss;
};

static void run_by_hand(struct lab *l, struct by_hand *r, const struct host_batch *b) {
    struct engine *e = &l->e;
    size_t n = (size_t)(b->rows * b->length);
    const void *from[] = {b->ids, b->start, b->target, b->weight};
    void **to[] = {&r->b.ids, &r->b.start, &r->b.target, &r->b.weight};
    memset(r, 0, sizeof *r);
    tape_init(&r->tape, &e->device, &e->work, &e->scratch, e->stored, &e->parallel);
    r->b.rows = b->rows;
    r->b.length = b->length;
    for (int i = 0; i < 4; i++) {
        r->piece[i] = arena_take(&e->work, n * (i == 3 ? 8 : 4), "tokens", to[i]);
        device_write(&e->device, *to[i], from[i], n * (i == 3 ? 8 : 4));
    }
    r->loss = model_losses(&e->model, &r->tape, &r->b, &r->pass);
}

static void end_by_hand(struct lab *l, struct by_hand *r) {
    tape_free(&r->tape);
    for (int i = 0; i < 4; i++) arena_give(&l->e.work, r->piece[i]);
    assert_int_equal(l->e.work.live, 0);
}

/* The mean loss is the exact sum of the tokens' losses, rounded once, over their number. */
static void exact_loss(void **state) {
    (void)state;
    enum { SEQUENCES = 3, LENGTH = 7, N = SEQUENCES * LENGTH };
    struct lab l;
    struct by_hand r;
    struct host_batch b = lab_batch(SEQUENCES, LENGTH, 6);
    struct exact sum = {0};
    double losses[N];
    lab_open(&l, lab_models[0], 0, NULL);
    double loss = lab_gradients(&l, 1, &b, N);
    run_by_hand(&l, &r, &b);
    assert_int_equal(r.loss->rows * r.loss->width, N);
    device_read(&l.e.device, losses, r.loss->data, sizeof losses);
    for (int i = N - 1; i >= 0; i--) exact_add(&sum, losses[i]);
    double want = exact_value(&sum) / N;
    assert_memory_equal(&loss, &want, sizeof loss);
    end_by_hand(&l, &r);
    lab_batch_free(&b);
    lab_close(&l);
}

/* Every op that can be run again; and the tests of it: */
#define EVERY_OP                                                                                   \
    "memory.recompute_ops=[rms_norm, relu2, conv, gate_squares, gate_norm, gated_norm, "           \
    "gather_rows, combine_rows, add_bias, widen, scan, attention, linear, grouped_linear]"

/* All micro-batches forward, then the inputs' halves, then the weights': not a bit changes. */
static void split_backward(void **state) {
    (void)state;
    enum { N = 3, LENGTH = 5 };
    for (int i = 0; i < 3 * LAB_MODELS; i++) {
        char *full[] = {i % 3 == 1 ? "memory.recompute=full" : "memory.recompute=selective"};
        struct lab l;
        struct by_hand r[N];
        struct host_batch b[N];
        int64_t n;
        lab_open(&l, lab_models[i / 3], i % 3 > 0, full);
        for (int k = 0; k < N; k++) b[k] = lab_batch(2, LENGTH, 6 + (uint64_t)k);
        lab_gradients(&l, N, b, N * 2 * LENGTH);
        double *g = lab_all_gradients(&l, &n);
        params_zero_gradients(&l.e.model.params, &l.e.device, l.e.real);
        struct pass *keep[N];
        for (int k = 0; k < N; k++) {
            run_by_hand(&l, &r[k], &b[k]);
            keep[k] = &r[k].pass;
        }
        for (int k = 0; k < N; k++) {
            for (int j = 0; j < l.config.n_layers; j++) l.e.model.layer[j].pass = keep[k];
            tape_backward(&r[k].tape, r[k].loss, 1.0 / (N * 2 * LENGTH), MASK_INPUT);
        }
        for (int k = 0; k < N; k++) tape_backward_weights(&r[k].tape);
        double *h = lab_all_gradients(&l, &n);
        assert_memory_equal(h, g, n * sizeof *g);
        for (int k = 0; k < N; k++) tape_clear(&r[k].tape);
        for (int k = 0; k < N; k++) {
            for (int j = 0; j < 4; j++) arena_give(&l.e.work, r[k].piece[j]);
            tape_free(&r[k].tape);
            lab_batch_free(&b[k]);
        }
        assert_int_equal(l.e.work.live, 0);
        free(g), free(h);
        lab_close(&l);
    }
}

/* Several micro-batches under way at once, each replayed with its own tokens, as a pipeline does.
 */
static void replays_of_several(void **state) {
    (void)state;
    enum { N = 2, LENGTH = 5 };
    char *full[] = {"memory.recompute=full"};
    struct lab l;
    struct by_hand r[N];
    struct host_batch b[N];
    int64_t n;
    lab_open(&l, lab_models[0], 1, full);
    for (int k = 0; k < N; k++) b[k] = lab_batch(2, LENGTH, 6 + (uint64_t)k);
    lab_cut(&b[0], 0, 2, (int[]){2, 3});
    lab_gradients(&l, N, b, N * 2 * LENGTH);
    double *g = lab_all_gradients(&l, &n);
    params_zero_gradients(&l.e.model.params, &l.e.device, l.e.real);
    for (int k = 0; k < N; k++) run_by_hand(&l, &r[k], &b[k]);
    for (int k = 0; k < N; k++) {
        tape_backward(&r[k].tape, r[k].loss, 1.0 / (N * 2 * LENGTH), MASK_ALL);
        tape_clear(&r[k].tape);
    }
    double *h = lab_all_gradients(&l, &n);
    for (int k = 0; k < N; k++) {
        for (int j = 0; j < 4; j++) arena_give(&l.e.work, r[k].piece[j]);
        tape_free(&r[k].tape);
        lab_batch_free(&b[k]);
    }
    lab_near(h, g, n, 1e-12);
    free(g), free(h);
    lab_close(&l);
}

/* Recomputing, splitting the stream by tokens (on one rank), other numbers of threads, no debug
 * device: not a bit changes, and experts are counted once. In float too. */
static void not_a_bit(void **state) {
    (void)state;
    static char *const ways[][3] = {{"memory.recompute=full", NULL, NULL},
                                    {"memory.recompute=selective", NULL, NULL},
                                    {"memory.recompute=selective", EVERY_OP, NULL},
                                    {"parallel.sequence=true", "memory.recompute=selective", NULL},
                                    {"parallel.sequence=true", NULL, NULL},
                                    {"parallel.sequence=true", "memory.recompute=full", NULL},
                                    {"run.threads=1", "run.debug=false", "memory.recompute=none"}};
    enum { SEQUENCES = 2, LENGTH = 9, N = 2, WAYS = 8 };
    for (int i = 0; i < LAB_RECIPES * LAB_MODELS; i++) {
        static double grad[WAYS][20000];
        static int64_t load[WAYS][16];
        double loss[WAYS];
        for (int way = 0; way < WAYS; way++) {
            char *overrides[4] = {lab_recipes[i % LAB_RECIPES]};
            struct lab l;
            struct host_batch b[N] = {lab_batch(SEQUENCES, LENGTH, 1), lab_batch(1, LENGTH, 2)};
            int n = 1;
            for (int k = 0; way && k < 3 && ways[way - 1][k]; k++)
                overrides[n++] = ways[way - 1][k];
            lab_cut(&b[0], 1, 2, (int[]){5, 4});
            lab_open(&l, lab_models[i / LAB_RECIPES], n, overrides);
            loss[way] = engine_gradients(&l.e, N, b, 3 * LENGTH, true);
            double *to = grad[way];
            for (int k = 0; k < l.e.model.params.n_blocks; k++) {
                const struct param_block *p = &l.e.model.params.block[k];
                if (!p->p.trained) continue;
                assert_true(to + p->elements <= grad[way] + 20000);
                memcpy(to, lab_grads(&l, p), p->elements * dtype_size(l.e.real));
                to += p->elements;
            }
            memset(load[way], 0, sizeof load[way]);
            for (int k = 0; k < l.config.n_layers; k++) {
                int64_t here[16] = {0}, sum = 0, experts = l.config.keys.n_routed_experts;
                if (l.config.kinds[k] != 'E') continue;
                device_read(&l.e.device, here, l.e.model.layer[k].load, experts * 8);
                for (int e = 0; e < experts; e++) sum += here[e], load[way][e] += here[e] * (k + 1);
                assert_int_equal(sum, 3 * LENGTH * l.config.keys.num_experts_per_tok);
            }
            for (int k = 0; k < N; k++) lab_batch_free(&b[k]);
            lab_close(&l);
            assert_true(isfinite(loss[way]) && loss[way] > 0);
            assert_memory_equal(&loss[way], &loss[0], sizeof *loss);
            assert_memory_equal(grad[way], grad[0], sizeof grad[0]);
            assert_memory_equal(load[way], load[0], sizeof load[0]);
        }
    }
}

/* ---------------------------------------------------------------- tied tables */

static struct param_block *block_named(struct lab *l, const char *name) {
    for (int i = 0; i < l->e.model.params.n_blocks; i++)
        if (!strcmp(l->e.model.params.block[i].p.name, name)) return &l->e.model.params.block[i];
    return NULL;
}

/* The gradient of a table that is also the head is the sum of both uses'. */
static void tied(void **state) {
    (void)state;
    char *untie[] = {"model.tie_word_embeddings=false"};
    struct lab a, b;
    struct host_batch t = lab_batch(2, 6, 9);
    lab_open(&a, lab_models[1], 0, NULL);
    lab_open(&b, lab_models[1], 1, untie);
    assert_int_equal(a.e.model.params.n_blocks + 1, b.e.model.params.n_blocks);
    for (int i = 0; i < b.e.model.params.n_blocks; i++) {
        struct param_block *to = &b.e.model.params.block[i];
        bool head = !strcmp(to->p.name, "lm_head.weight");
        struct param_block *from =
            block_named(&a, head ? "backbone.embeddings.weight" : to->p.name);
        memcpy(lab_values(&b, to), lab_values(&a, from), to->elements * sizeof(double));
    }
    double loss = lab_gradients(&a, 1, &t, 12), other = lab_gradients(&b, 1, &t, 12);
    assert_memory_equal(&loss, &other, sizeof loss);
    for (int i = 0; i < a.e.model.params.n_blocks; i++) {
        struct param_block *p = &a.e.model.params.block[i], *q = block_named(&b, p->p.name),
                           *head = block_named(&b, "lm_head.weight");
        if (!p->p.trained) continue;
        bool table = !strcmp(p->p.name, "backbone.embeddings.weight");
        for (int64_t k = 0; table && k < q->elements; k++)
            lab_grads(&b, q)[k] += lab_grads(&b, head)[k];
        lab_near(lab_grads(&a, p), lab_grads(&b, q), p->elements, 1e-14);
    }
    lab_batch_free(&t);
    lab_close(&a);
    lab_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(derivatives),
        cmocka_unit_test(uniform_loss),
        cmocka_unit_test(documents_apart),
        cmocka_unit_test(padding),
        cmocka_unit_test(causal),
        cmocka_unit_test(micro_batches),
        cmocka_unit_test(exact_loss),
        cmocka_unit_test(split_backward),
        cmocka_unit_test(replays_of_several),
        cmocka_unit_test(not_a_bit),
        cmocka_unit_test(tied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
