#include "tests/lab.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "tests/place.h"

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

const char *const lab_models[LAB_MODELS] = {
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
char *const lab_recipes[LAB_RECIPES] = {"precision.recipe=fp64", "precision.recipe=fp32",
                                        "precision.recipe=bf16"};

double lab_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / 4503599627370496.0 - 1;
}

double *lab_values(struct lab *l, const struct param_block *b) {
    return device_host(&l->e.device, b->p.value);
}

double *lab_grads(struct lab *l, const struct param_block *b) {
    return device_host(&l->e.device, b->p.grad);
}

void lab_read_for(struct lab *l, const char *text, int ranks, int n, char **overrides) {
    char path[300];
    memset(l, 0, sizeof *l);
    place_file(path, sizeof path, "model", text, strlen(text));
    deck_read(&l->deck, path, n, overrides, &l->m);
    config_settle(&l->config, &l->deck, &l->m);
    deck_check(&l->deck, &l->m);
    deck_mesh(&l->deck, ranks, &l->shape, &l->m);
    unlink(path);
    mistakes_print(&l->m, stderr);
    assert_int_equal(l->m.n, 0);
}

void lab_read(struct lab *l, const char *text, int n, char **overrides) {
    lab_read_for(l, text, 1, n, overrides);
}

void lab_start(struct lab *l, bool dry) {
    if (dry) comm_init_dry(&l->comm, 1, 0);
    else assert_int_equal(comm_init(&l->comm, &l->m), 0);
    assert_int_equal(engine_open(&l->e, &l->deck, &l->config, &l->m), 0);
    assert_int_equal(engine_init(&l->e, &l->comm, &l->shape, dry, true, false, &l->m), 0);
}

/* A model whose every parameter has been moved, so that no bias is zero and no norm one. */
void lab_open(struct lab *l, const char *text, int n, char **overrides) {
    uint64_t seed = 3;
    lab_read(l, text, n, overrides);
    lab_start(l, false);
    for (int i = 0; i < l->e.model.params.n_blocks; i++) {
        struct param_block *b = &l->e.model.params.block[i];
        char *at = device_host(&l->e.device, b->p.value);
        for (int64_t k = 0; k < b->elements; k++, at += dtype_size(b->p.dtype)) {
            double x;
            dtype_convert(&x, F64, at, b->p.dtype, 1);
            x += 0.3 * lab_random(&seed);
            dtype_convert(at, b->p.dtype, &x, F64, 1);
        }
    }
}

void lab_close(struct lab *l) {
    engine_free(&l->e);
    comm_end(&l->comm);
    config_free(&l->config);
    deck_free(&l->deck);
    mistakes_free(&l->m);
}

/* ---------------------------------------------------------------- tokens */

struct host_batch lab_batch(int64_t rows, int64_t length, uint64_t seed) {
    int64_t n = rows * length;
    struct host_batch b = {.rows = rows,
                           .length = length,
                           .ids = die_alloc(n * 4),
                           .start = die_alloc(n * 4),
                           .target = die_alloc(n * 4),
                           .weight = die_alloc(n * 8)};
    for (int64_t i = 0; i < n; i++) {
        b.ids[i] = (int32_t)((lab_random(&seed) + 1) / 2 * LAB_VOCABULARY) % LAB_VOCABULARY;
        b.target[i] = (int32_t)((lab_random(&seed) + 1) / 2 * LAB_VOCABULARY) % LAB_VOCABULARY;
        b.weight[i] = 1;
    }
    return b;
}

void lab_batch_free(struct host_batch *b) {
    free(b->ids);
    free(b->start);
    free(b->target);
    free(b->weight);
}

/* n tokens of one row, from `from` on, as a row of their own: what the documents are there, or one.
 */
struct host_batch lab_slice(const struct host_batch *b, int64_t row, int64_t from, int64_t n) {
    struct host_batch s = lab_batch(1, n, 1);
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
void lab_cut(struct host_batch *b, int64_t row, int n, const int *length) {
    int32_t at = 0;
    for (int d = 0; d < n; at += length[d++])
        for (int i = 0; i < length[d]; i++) b->start[row * b->length + at + i] = at;
}

double lab_gradients(struct lab *l, int n, const struct host_batch *b, int64_t count) {
    return engine_gradients(&l->e, n, b, count, false);
}

/* All gradients, one block after the other. */
double *lab_all_gradients(struct lab *l, int64_t *n) {
    double *all = NULL;
    *n = 0;
    for (int i = 0; i < l->e.model.params.n_blocks; i++) {
        const struct param_block *b = &l->e.model.params.block[i];
        if (!b->p.trained) continue;
        all = die_realloc(all, (*n + b->elements) * sizeof *all);
        memcpy(all + *n, lab_grads(l, b), b->elements * sizeof *all);
        *n += b->elements;
    }
    return all;
}

void lab_near(const double *found, const double *want, int64_t n, double tolerance) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(want[i]));
    assert_true(most > 0);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(found[i] - want[i]) <= tolerance * most))
            fail_msg("number %d: got %.17g, want %.17g", (int)i, found[i], want[i]);
}
