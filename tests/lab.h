/* lab: whole small models of all kinds, opened from decks by tests: their parameters moved, so that
 * no bias is zero and no norm one, and batches of tokens by chance. Everything is on one rank. */
#ifndef TESTS_LAB_H
#define TESTS_LAB_H

#include "kernels/mistakes.h"
#include "src/deck_rules.h"
#include "src/engine.h"

enum { LAB_MODELS = 5, LAB_RECIPES = 3, LAB_VOCABULARY = 19 };

/* Decks; what a test takes of them by number is tried with all. */
extern const char *const lab_models[LAB_MODELS];
/* Overrides that set them. */
extern char *const lab_recipes[LAB_RECIPES];

/* A deck's beginning: a model whose pipelines are looked at,
 * without its pattern and its experts. */
#define LAB_PIPELINE_MODEL                                                                         \
    "model:\n"                                                                                     \
    "  vocab_size: 8\n"                                                                            \
    "  hidden_size: 64\n"                                                                          \
    "  num_attention_heads: 4\n"                                                                   \
    "  num_key_value_heads: 2\n"                                                                   \
    "  head_dim: 16\n"                                                                             \
    "  intermediate_size: 384\n"                                                                   \
    "  mamba_num_heads: 8\n"                                                                       \
    "  mamba_head_dim: 16\n"                                                                       \
    "  ssm_state_size: 16\n"                                                                       \
    "  n_groups: 2\n"

struct lab {
    struct deck deck;
    struct config config;
    struct comm comm;
    struct mesh_shape shape;
    struct engine e;
    struct mistakes m;
};

double lab_random(uint64_t *seed); /* in [-1, 1) */

/* A block's numbers; in double only. */
double *lab_values(struct lab *l, const struct param_block *b);
double *lab_grads(struct lab *l, const struct param_block *b);

/* The deck with n overrides, checked; the engine after it; both, and every parameter moved. */
void lab_read(struct lab *l, const char *text, int n, char **overrides);
void lab_read_for(struct lab *l, const char *text, int ranks, int n, char **overrides);
void lab_start(struct lab *l, bool dry);
void lab_open(struct lab *l, const char *text, int n, char **overrides);
void lab_close(struct lab *l);

/* One document a row, all targets counted. */
struct host_batch lab_batch(int64_t rows, int64_t length, uint64_t seed);
void lab_batch_free(struct host_batch *b);
/* n tokens of one row, from `from` on, as a row of their own: what the documents are there, or one.
 */
struct host_batch lab_slice(const struct host_batch *b, int64_t row, int64_t from, int64_t n);
/* Cuts row `row` into documents of these lengths. */
void lab_cut(struct host_batch *b, int64_t row, int n, const int *length);

/* The loss; gradients are in the blocks. All of them in double, one
 * block after the other: malloc'd. */
double lab_gradients(struct lab *l, int n, const struct host_batch *b, int64_t count);
double *lab_all_gradients(struct lab *l, int64_t *n);

/* Within tolerance of the largest number wanted. */
void lab_near(const double *found, const double *want, int64_t n, double tolerance);

#endif
