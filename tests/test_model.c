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
#include "src/deck_rules.h"
#include "src/engine.h"

/* ---------------------------------------------------------------- models */

#define SMALL                                                                                      \
    "run: {debug: true, threads: 2}\n"                                                             \
    "precision: {recipe: fp64}\n"                                                                  \
    "model:\n"                                                                                     \
    "  vocab_size: 19\n"                                                                           \
    "  hidden_size: 6\n"                                                                           \
    "  num_attention_heads: 4\n"                                                                   \
    "  head_dim: 3\n"                                                                              \
    "  intermediate_size: 7\n"                                                                     \
    "  mamba_num_heads: 6\n"                                                                       \
    "  mamba_head_dim: 2\n"                                                                        \
    "  ssm_state_size: 3\n"                                                                        \
    "  moe_intermediate_size: 5\n"                                                                 \
    "  moe_shared_expert_intermediate_size: 4\n"                                                   \
    "  initializer_range: 0.4\n"

/* Models of all kinds; each is tried in every test below that takes a number. */
static const char *const models[] = {
    SMALL "  hybrid_override_pattern: \"ME*-\"\n"
          "  num_key_value_heads: 2\n"
          "  n_groups: 3\n"
          "  n_routed_experts: 5\n"
          "  num_experts_per_tok: 2\n"
          "  routed_scaling_factor: 2.5\n",
    SMALL "  hybrid_override_pattern: \"*EM-E\"\n" /* latent experts in groups, all biases, tied */
          "  num_key_value_heads: 1\n"
          "  n_groups: 2\n"
          "  n_routed_experts: 6\n"
          "  num_experts_per_tok: 3\n"
          "  n_group: 3\n"
          "  topk_group: 2\n"
          "  moe_latent_size: 4\n"
          "  attention_bias: true\n"
          "  mlp_bias: true\n"
          "  use_bias: true\n"
          "  tie_word_embeddings: true\n",
    SMALL "  hybrid_override_pattern: \"EM-*M\"\n" /* Megatron's weights, clamped time steps */
          "  initialization: megatron\n"
          "  num_key_value_heads: 4\n"
          "  n_groups: 1\n"
          "  conv_kernel: 2\n"
          "  use_conv_bias: false\n"
          "  time_step_limit: [0.05, 1.5]\n"
          "  n_routed_experts: 4\n"
          "  num_experts_per_tok: 1\n"
          "  norm_topk_prob: false\n"
          "  layer_norm_epsilon: 1e-2\n",
    SMALL "  hybrid_override_pattern: \"M\"\n"
          "  n_groups: 6\n"
          "  conv_kernel: 1\n",
    SMALL "  hybrid_override_pattern: \"E\"\n"
          "  n_routed_experts: 2\n"
          "  num_experts_per_tok: 2\n"
          "  moe_latent_size: 1\n",
};
enum { MODELS = sizeof models / sizeof *models, VOCABULARY = 19 };

static char *const recipes[] = {"precision.recipe=fp64", "precision.recipe=fp32",
                                "precision.recipe=bf16"};
enum { RECIPES = sizeof recipes / sizeof *recipes };

struct lab {
    struct deck deck;
    struct config config;
    struct comm comm;
    struct mesh_shape shape;
    struct engine e;
    struct mistakes m;
};

static double random_number(uint64_t *seed) { /* in [-1, 1) */
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 4503599627370496.0 - 1;
}

static double *values(struct lab *l, const struct param_block *b) {
    return device_host(&l->e.device, b->p.value);
}

static double *grads(struct lab *l, const struct param_block *b) {
    return device_host(&l->e.device, b->p.grad);
}

static void read_deck(struct lab *l, const char *text, int n, char **overrides) {
    char path[] = "/tmp/test_model_XXXXXX";
    memset(l, 0, sizeof *l);
    int file = mkstemp(path);
    assert_true(file >= 0);
    FILE *f = fdopen(file, "w");
    fputs(text, f);
    fclose(f);
    deck_read(&l->deck, path, n, overrides, &l->m);
    config_settle(&l->config, &l->deck, &l->m);
    deck_check(&l->deck, &l->m);
    deck_mesh(&l->deck, 1, &l->shape, &l->m);
    unlink(path);
    mistakes_print(&l->m, stderr);
    assert_int_equal(l->m.n, 0);
}

static void start(struct lab *l, bool dry) {
    if (dry) comm_init_dry(&l->comm, 1, 0);
    else assert_int_equal(comm_init(&l->comm, &l->m), 0);
    assert_int_equal(engine_open(&l->e, &l->deck, &l->config, &l->m), 0);
    assert_int_equal(engine_init(&l->e, &l->comm, &l->shape, dry, true, false, &l->m), 0);
}

/* A model whose every parameter has been moved, so that no bias is zero and no norm one. */
static void open_lab(struct lab *l, const char *text, int n, char **overrides) {
    uint64_t seed = 3;
    read_deck(l, text, n, overrides);
    start(l, false);
    for (int i = 0; i < l->e.model.params.n_blocks; i++) {
        struct param_block *b = &l->e.model.params.block[i];
        char *at = device_host(&l->e.device, b->p.value);
        for (int64_t k = 0; k < b->elements; k++, at += dtype_size(b->p.dtype)) {
            double x;
            dtype_convert(&x, F64, at, b->p.dtype, 1);
            x += 0.3 * random_number(&seed);
            dtype_convert(at, b->p.dtype, &x, F64, 1);
        }
    }
}

static void close_lab(struct lab *l) {
    engine_free(&l->e);
    comm_end(&l->comm);
    config_free(&l->config);
    deck_free(&l->deck);
    mistakes_free(&l->m);
}

/* ---------------------------------------------------------------- tokens */

static struct host_batch make_batch(int64_t rows, int64_t length, uint64_t seed) {
    int64_t n = rows * length;
    struct host_batch b = {
        rows, length, die_alloc(n * 4), die_alloc(n * 4), die_alloc(n * 4), die_alloc(n * 8)};
    for (int64_t i = 0; i < n; i++) {
        b.ids[i] = (int32_t)((random_number(&seed) + 1) / 2 * VOCABULARY) % VOCABULARY;
        b.target[i] = (int32_t)((random_number(&seed) + 1) / 2 * VOCABULARY) % VOCABULARY;
        b.weight[i] = 1;
    }
    return b;
}

static void free_batch(struct host_batch *b) {
    free(b->ids);
    free(b->start);
    free(b->target);
    free(b->weight);
}

/* n tokens of one row, from `from` on, as a row of their own: what the documents are there, or one.
 */
static struct host_batch slice(const struct host_batch *b, int64_t row, int64_t from, int64_t n) {
    struct host_batch s = make_batch(1, n, 1);
    int64_t at = row * b->length + from;
    for (int64_t i = 0; i < n; i++) {
        s.ids[i] = b->ids[at + i];
        s.target[i] = b->target[at + i];
        s.weight[i] = b->weight[at + i];
        s.start[i] = b->start[at + i] > (int32_t)from ? b->start[at + i] - (int32_t)from : 0;
    }
    return s;
}

/* Cuts row `row` into documents of these lengths. */
static void cut(struct host_batch *b, int64_t row, int n, const int *length) {
    int32_t at = 0;
    for (int d = 0; d < n; at += length[d++])
        for (int i = 0; i < length[d]; i++) b->start[row * b->length + at + i] = at;
}

static double gradients(struct lab *l, int n, const struct host_batch *b, int64_t count) {
    return engine_gradients(&l->e, n, b, count, false);
}

/* All gradients, one block after the other. */
static double *all_gradients(struct lab *l, int64_t *n) {
    double *all = NULL;
    *n = 0;
    for (int i = 0; i < l->e.model.params.n_blocks; i++) {
        const struct param_block *b = &l->e.model.params.block[i];
        if (!b->p.trained) continue;
        all = die_realloc(all, (*n + b->elements) * sizeof *all);
        memcpy(all + *n, grads(l, b), b->elements * sizeof *all);
        *n += b->elements;
    }
    return all;
}

static void near(const double *found, const double *want, int64_t n, double tolerance) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(want[i]));
    assert_true(most > 0);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(found[i] - want[i]) <= tolerance * most))
            fail_msg("number %d: got %.17g, want %.17g", (int)i, found[i], want[i]);
}

/* ---------------------------------------------------------------- derivatives */

static void move(struct lab *l, const struct param_block *b, const double *along, double by) {
    for (int64_t k = 0; k < b->elements; k++) values(l, b)[k] += by * along[k];
}

/* Every trained block along two random directions: the difference quotient of fourth order. */
static void derivatives(void **state) {
    (void)state;
    enum { LENGTH = 7, SEQUENCES = 2 };
    for (int i = 0; i < MODELS; i++) {
        struct lab l;
        struct host_batch b = make_batch(SEQUENCES, LENGTH, 5);
        int64_t n;
        uint64_t seed = 77;
        open_lab(&l, models[i], 0, NULL);
        cut(&b, 0, 2, (int[]){4, 3});
        b.target[3] = -1, b.weight[3] = 0;
        gradients(&l, 1, &b, SEQUENCES * LENGTH - 1);
        double *g = all_gradients(&l, &n), *mine = g;
        for (int k = 0; k < l.e.model.params.n_blocks; k++) {
            const struct param_block *p = &l.e.model.params.block[k];
            if (!p->p.trained) continue;
            for (int way = 0; way < 2; way++) {
                double *v = die_alloc(p->elements * sizeof *v), dot = 0, size = 0, f[4];
                static const double at[4] = {2e-4, 1e-4, -1e-4, -2e-4};
                for (int64_t j = 0; j < p->elements; j++) {
                    v[j] = random_number(&seed);
                    dot += v[j] * mine[j];
                    size += v[j] * v[j] * mine[j] * mine[j];
                }
                for (int q = 0; q < 4; q++) {
                    move(&l, p, v, at[q] - (q ? at[q - 1] : 0));
                    f[q] = gradients(&l, 1, &b, SEQUENCES * LENGTH - 1);
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
        free_batch(&b);
        close_lab(&l);
    }
}

/* A head of zeros: every word is as likely, whatever the rest. */
static void uniform_loss(void **state) {
    (void)state;
    struct lab l;
    struct host_batch b = make_batch(2, 5, 5);
    open_lab(&l, models[0], 0, NULL);
    memset(device_host(&l.e.device, l.e.model.words->value), 0,
           l.e.model.words->rows * l.e.model.words->width * sizeof(double));
    assert_true(fabs(gradients(&l, 1, &b, 10) - log(VOCABULARY)) < 1e-14);
    assert_true(gradients(&l, 1, &b, 0) == 0); /* nothing counted: no loss, no gradient */
    int64_t n;
    double *g = all_gradients(&l, &n);
    for (int64_t i = 0; i < n; i++) assert_true(g[i] == 0);
    free(g);
    free_batch(&b);
    close_lab(&l);
}

/* ---------------------------------------------------------------- documents */

/* A packed row is its documents as rows of their own. */
static void documents_apart(void **state) {
    (void)state;
    static const int length[] = {1, 4, 2, 6};
    for (int i = 0; i < MODELS; i++) {
        struct lab l;
        struct host_batch packed = make_batch(1, 13, 8), apart[4];
        int64_t n, from = 0;
        open_lab(&l, models[i], 0, NULL);
        cut(&packed, 0, 4, length);
        for (int d = 0; d < 4; from += length[d++]) apart[d] = slice(&packed, 0, from, length[d]);
        double loss = gradients(&l, 1, &packed, 13), *g = all_gradients(&l, &n);
        double other = gradients(&l, 4, apart, 13), *h = all_gradients(&l, &n);
        assert_true(fabs(loss - other) < 1e-13);
        near(h, g, n, 1e-12);
        cut(&packed, 0, 1, (int[]){13}); /* and it matters */
        assert_true(fabs(gradients(&l, 1, &packed, 13) - loss) > 1e-6 ||
                    !strcmp(l.config.kinds, "E"));
        free(g), free(h);
        for (int d = 0; d < 4; d++) free_batch(&apart[d]);
        free_batch(&packed);
        close_lab(&l);
    }
}

/* Padding is a document of its own: what stands in it, and on which side, leaves no trace. */
static void padding(void **state) {
    (void)state;
    enum { LENGTH = 6, PADS = 3, WIDE = LENGTH + PADS };
    for (int i = 0; i < MODELS; i++) {
        struct lab l;
        struct host_batch bare = make_batch(1, LENGTH, 8);
        int64_t n;
        open_lab(&l, models[i], 0, NULL);
        double loss = gradients(&l, 1, &bare, LENGTH), *g = all_gradients(&l, &n);
        for (int way = 0; way < 4; way++) {
            struct host_batch padded = make_batch(1, WIDE, 20 + (uint64_t)way);
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
            double other = gradients(&l, 1, &padded, LENGTH), *h = all_gradients(&l, &n);
            assert_true(fabs(loss - other) < 1e-13);
            near(h, g, n, 1e-12);
            free(h);
            free_batch(&padded);
        }
        free(g);
        free_batch(&bare);
        close_lab(&l);
    }
}

/* What comes later, and what stands in other documents and rows, changes no bit of a logit. */
static void causal(void **state) {
    (void)state;
    enum { SEQUENCES = 2, LENGTH = 6, TOKENS = SEQUENCES * LENGTH };
    for (int i = 0; i < MODELS; i++) {
        struct lab l;
        struct host_batch b = make_batch(SEQUENCES, LENGTH, 5);
        static double before[TOKENS * VOCABULARY], after[TOKENS * VOCABULARY];
        open_lab(&l, models[i], 0, NULL);
        cut(&b, 0, 2, (int[]){4, 2});
        engine_logits(&l.e, &b, before);
        for (int changed = 0; changed < TOKENS; changed++) {
            int32_t was = b.ids[changed];
            b.ids[changed] = (was + 1) % VOCABULARY;
            engine_logits(&l.e, &b, after);
            for (int t = 0; t < TOKENS; t++) {
                bool sees = t / LENGTH == changed / LENGTH && changed <= t &&
                            b.start[t] <= changed % LENGTH;
                bool differs = memcmp(before + t * VOCABULARY, after + t * VOCABULARY,
                                      VOCABULARY * sizeof(double)) != 0;
                if (differs && !sees) fail_msg("model %d: token %d sees %d", i, t, changed);
                if (t == changed) assert_true(differs);
            }
            b.ids[changed] = was;
        }
        free_batch(&b);
        close_lab(&l);
    }
}

/* ---------------------------------------------------------------- the same, otherwise */

/* One micro-batch of four rows, or many of fewer; and in another order, to the bit. */
static void micro_batches(void **state) {
    (void)state;
    enum { LENGTH = 5, COUNT = 4 * LENGTH };
    for (int i = 0; i < MODELS; i++) {
        struct lab l;
        struct host_batch all = make_batch(4, LENGTH, 6), one[4], turned[4];
        int64_t n;
        open_lab(&l, models[i], 0, NULL);
        cut(&all, 1, 2, (int[]){2, 3});
        for (int r = 0; r < 4; r++) turned[3 - r] = one[r] = slice(&all, r, 0, LENGTH);
        double loss = gradients(&l, 1, &all, COUNT), *g = all_gradients(&l, &n);
        double split = gradients(&l, 4, one, COUNT), *h = all_gradients(&l, &n);
        assert_true(fabs(split - loss) < 1e-13);
        near(h, g, n, 1e-12);
        double back = gradients(&l, 4, turned, COUNT);
        assert_memory_equal(&back, &split, sizeof back);
        double sum = 0, part; /* of parts, each its own mean */
        for (int r = 0; r < 4; r++) part = gradients(&l, 1, &one[r], LENGTH), sum += part / 4;
        assert_true(fabs(sum - loss) < 1e-13);
        free(g), free(h);
        for (int r = 0; r < 4; r++) free_batch(&one[r]);
        free_batch(&all);
        close_lab(&l);
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
    struct host_batch b = make_batch(SEQUENCES, LENGTH, 6);
    struct exact sum = {0};
    double losses[N];
    open_lab(&l, models[0], 0, NULL);
    double loss = gradients(&l, 1, &b, N);
    run_by_hand(&l, &r, &b);
    assert_int_equal(r.loss->rows * r.loss->width, N);
    device_read(&l.e.device, losses, r.loss->data, sizeof losses);
    for (int i = N - 1; i >= 0; i--) exact_add(&sum, losses[i]);
    double want = exact_value(&sum) / N;
    assert_memory_equal(&loss, &want, sizeof loss);
    end_by_hand(&l, &r);
    free_batch(&b);
    close_lab(&l);
}

/* All micro-batches forward, then the inputs' halves, then the weights': not a bit changes. */
static void split_backward(void **state) {
    (void)state;
    enum { N = 3, LENGTH = 5 };
    for (int i = 0; i < 2 * MODELS; i++) {
        char *full[] = {"memory.recompute=full"};
        struct lab l;
        struct by_hand r[N];
        struct host_batch b[N];
        int64_t n;
        open_lab(&l, models[i / 2], i % 2, full);
        for (int k = 0; k < N; k++) b[k] = make_batch(2, LENGTH, 6 + (uint64_t)k);
        gradients(&l, N, b, N * 2 * LENGTH);
        double *g = all_gradients(&l, &n);
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
        double *h = all_gradients(&l, &n);
        assert_memory_equal(h, g, n * sizeof *g);
        for (int k = 0; k < N; k++) tape_clear(&r[k].tape);
        for (int k = 0; k < N; k++) {
            for (int j = 0; j < 4; j++) arena_give(&l.e.work, r[k].piece[j]);
            tape_free(&r[k].tape);
            free_batch(&b[k]);
        }
        assert_int_equal(l.e.work.live, 0);
        free(g), free(h);
        close_lab(&l);
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
    open_lab(&l, models[0], 1, full);
    for (int k = 0; k < N; k++) b[k] = make_batch(2, LENGTH, 6 + (uint64_t)k);
    cut(&b[0], 0, 2, (int[]){2, 3});
    gradients(&l, N, b, N * 2 * LENGTH);
    double *g = all_gradients(&l, &n);
    params_zero_gradients(&l.e.model.params, &l.e.device, l.e.real);
    for (int k = 0; k < N; k++) run_by_hand(&l, &r[k], &b[k]);
    for (int k = 0; k < N; k++) {
        tape_backward(&r[k].tape, r[k].loss, 1.0 / (N * 2 * LENGTH), MASK_ALL);
        tape_clear(&r[k].tape);
    }
    double *h = all_gradients(&l, &n);
    for (int k = 0; k < N; k++) {
        for (int j = 0; j < 4; j++) arena_give(&l.e.work, r[k].piece[j]);
        tape_free(&r[k].tape);
        free_batch(&b[k]);
    }
    near(h, g, n, 1e-12);
    free(g), free(h);
    close_lab(&l);
}

/* Recomputing, splitting the stream by tokens (on one rank), other numbers of threads, no debug
 * device: not a bit changes, and experts are counted once. In float too. */
static void not_a_bit(void **state) {
    (void)state;
    static char *const ways[][3] = {{"memory.recompute=full", NULL, NULL},
                                    {"parallel.sequence=true", NULL, NULL},
                                    {"parallel.sequence=true", "memory.recompute=full", NULL},
                                    {"run.threads=1", "run.debug=false", "memory.recompute=none"}};
    enum { SEQUENCES = 2, LENGTH = 9, N = 2 };
    for (int i = 0; i < RECIPES * MODELS; i++) {
        static double grad[5][20000];
        static int64_t load[5][16];
        double loss[5];
        for (int way = 0; way < 5; way++) {
            char *overrides[4] = {recipes[i % RECIPES]};
            struct lab l;
            struct host_batch b[N] = {make_batch(SEQUENCES, LENGTH, 1), make_batch(1, LENGTH, 2)};
            int n = 1;
            for (int k = 0; way && k < 3 && ways[way - 1][k]; k++)
                overrides[n++] = ways[way - 1][k];
            cut(&b[0], 1, 2, (int[]){5, 4});
            open_lab(&l, models[i / RECIPES], n, overrides);
            loss[way] = engine_gradients(&l.e, N, b, 3 * LENGTH, true);
            double *to = grad[way];
            for (int k = 0; k < l.e.model.params.n_blocks; k++) {
                const struct param_block *p = &l.e.model.params.block[k];
                if (!p->p.trained) continue;
                assert_true(to + p->elements <= grad[way] + 20000);
                memcpy(to, grads(&l, p), p->elements * dtype_size(l.e.real));
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
            for (int k = 0; k < N; k++) free_batch(&b[k]);
            close_lab(&l);
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
    struct host_batch t = make_batch(2, 6, 9);
    open_lab(&a, models[1], 0, NULL);
    open_lab(&b, models[1], 1, untie);
    assert_int_equal(a.e.model.params.n_blocks + 1, b.e.model.params.n_blocks);
    for (int i = 0; i < b.e.model.params.n_blocks; i++) {
        struct param_block *to = &b.e.model.params.block[i];
        bool head = !strcmp(to->p.name, "lm_head.weight");
        struct param_block *from =
            block_named(&a, head ? "backbone.embeddings.weight" : to->p.name);
        memcpy(values(&b, to), values(&a, from), to->elements * sizeof(double));
    }
    double loss = gradients(&a, 1, &t, 12), other = gradients(&b, 1, &t, 12);
    assert_memory_equal(&loss, &other, sizeof loss);
    for (int i = 0; i < a.e.model.params.n_blocks; i++) {
        struct param_block *p = &a.e.model.params.block[i], *q = block_named(&b, p->p.name),
                           *head = block_named(&b, "lm_head.weight");
        if (!p->p.trained) continue;
        bool table = !strcmp(p->p.name, "backbone.embeddings.weight");
        for (int64_t k = 0; table && k < q->elements; k++) grads(&b, q)[k] += grads(&b, head)[k];
        near(grads(&a, p), grads(&b, q), p->elements, 1e-14);
    }
    free_batch(&t);
    close_lab(&a);
    close_lab(&b);
}

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
    static char *const all_chosen[MODELS][2] = {
        {"model.num_experts_per_tok=5", NULL},
        {"model.num_experts_per_tok=6", "model.topk_group=3"},
        {"model.num_experts_per_tok=4", NULL},
        {NULL, NULL},
        {NULL, NULL}};
    for (int i = 0; i < MODELS; i++) {
        char *overrides[3];
        int n = 0;
        struct lab exact, low;
        struct host_batch t = make_batch(2, 24, 5);
        for (int k = 0; k < 2 && all_chosen[i][k]; k++) overrides[n++] = all_chosen[i][k];
        open_lab(&exact, models[i], n, overrides);
        overrides[n++] = "precision.recipe=bf16";
        open_lab(&low, models[i], n, overrides);
        copy_values(&exact, &low);
        double loss = gradients(&exact, 1, &t, 48), rounded = gradients(&low, 1, &t, 48);
        assert_true(fabs(rounded - loss) < 0.01 * loss);
        for (int b = 0; b < low.e.model.params.n_blocks; b++) {
            const struct param_block *p = &low.e.model.params.block[b];
            const double *want = grads(&exact, &exact.e.model.params.block[b]);
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
        free_batch(&t);
        close_lab(&exact);
        close_lab(&low);
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
        struct host_batch t = make_batch(2, 9, 3);
        read_deck(&l, models[1], 3, overrides);
        assert_int_equal(comm_init(&l.comm, &l.m), 0);
        assert_int_equal(engine_open(&l.e, &l.deck, &l.config, &l.m), 0);
        assert_int_equal(engine_init(&l.e, &l.comm, &l.shape, false, updates, updates, &l.m), 0);
        struct params *s = &l.e.model.params;
        for (int step = 1; updates && step < 3; step++) {
            gradients(&l, 1, &t, 18);
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
        free_batch(&t);
        close_lab(&l);
    }
}

/* ---------------------------------------------------------------- memory */

/* What the dry device asks for is what the real one takes, arena by arena; nothing stays. */
static void dry_peaks(void **state) {
    (void)state;
    for (int i = 0; i < 2 * RECIPES * MODELS; i++) {
        char *full[] = {recipes[i / 2 % RECIPES], "memory.recompute=full"};
        const char *model = models[i / (2 * RECIPES)];
        struct lab real, dry;
        struct host_batch b = make_batch(2, 9, 3), none = {2, 9, NULL, NULL, NULL, b.weight};
        open_lab(&real, model, 1 + i % 2, full);
        read_deck(&dry, model, 1 + i % 2, full);
        start(&dry, true);
        for (int step = 0; step < 2; step++) {
            gradients(&real, 1, &b, 18);
            gradients(&dry, 1, &none, 18);
            struct arena *a = &real.e.values, *c = &dry.e.values;
            for (int k = 0; k < 5; k++) { /* values, grads, moments, work, scratch */
                assert_int_equal(a[k].peak, c[k].peak);
                assert_int_equal(a[k].live, c[k].live);
            }
            assert_int_equal(real.e.work.live, 0);
            assert_int_equal(real.e.scratch.live, 0);
        }
        free_batch(&b);
        close_lab(&real);
        close_lab(&dry);
    }
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
        cmocka_unit_test(low_gradients),
        cmocka_unit_test(masters),
        cmocka_unit_test(dry_peaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
