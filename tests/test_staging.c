/* Stages of a model: counted work adds up to what a whole step does, the balance is of that work,
 * every layer is on one stage, and a rank holds the tensors of its own stages and no others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/deck_rules.h"
#include "src/engine.h"
#include "tests/place.h"

static const char text[] = "model:\n"
                           "  hybrid_override_pattern: \"MEM*EM-MEM*EM-\"\n"
                           "  vocab_size: 211\n"
                           "  hidden_size: 24\n"
                           "  num_attention_heads: 4\n"
                           "  num_key_value_heads: 2\n"
                           "  head_dim: 6\n"
                           "  intermediate_size: 70\n"
                           "  mamba_num_heads: 8\n"
                           "  mamba_head_dim: 4\n"
                           "  ssm_state_size: 5\n"
                           "  n_groups: 2\n"
                           "  n_routed_experts: 4\n"
                           "  num_experts_per_tok: 2\n"
                           "  moe_intermediate_size: 9\n"
                           "  moe_shared_expert_intermediate_size: 11\n"
                           "train: {sequence_length: 40, micro_batch: 2}\n";

struct lab {
    struct deck d;
    struct config c;
    struct mesh_shape shape;
    struct mistakes m;
};

static void open_lab(struct lab *l, int ranks, int n, char **overrides) {
    char path[300];
    memset(l, 0, sizeof *l);
    place_file(path, sizeof path, "staging", text, sizeof text - 1);
    deck_read(&l->d, path, n, overrides, &l->m);
    unlink(path);
    config_settle(&l->c, &l->d, &l->m);
    deck_check(&l->d, &l->m);
    deck_mesh(&l->d, ranks, &l->shape, &l->m);
    if (l->m.n) fail_msg("%s", l->m.text[0]);
}

static void close_lab(struct lab *l) {
    config_free(&l->c);
    deck_free(&l->d);
}

/* A step of one rank, counted on the dry device. */
static double work_of_step(struct lab *l) {
    struct engine e;
    struct comm comm;
    struct host_batch b = {.rows = 2, .length = 40};
    double all = 0;
    comm_init_dry(&comm, 1, 0);
    assert_int_equal(engine_open(&e, &l->d, &l->c, &l->m), 0);
    assert_int_equal(engine_init(&e, &comm, &l->shape, true, true, false, &l->m), 0);
    double before = 0;
    for (int i = 0; i < N_OPS; i++) before += e.device.count[i].work;
    engine_gradients(&e, 1, &b, 1, false);
    for (int i = 0; i < N_OPS; i++) all += e.device.count[i].work;
    all -= before + e.device.count[OP_fill].work + e.device.count[OP_exact_sum].work;
    engine_free(&e);
    comm_end(&comm);
    return all;
}

static void counted(void **state) {
    (void)state;
    for (int full = 0; full < 2; full++) {
        struct lab one, eight;
        char *whole[] = {full ? "memory.recompute=full" : "memory.recompute=none"},
             *cut[] = {whole[0], "parallel.pipeline=8"};
        struct staging s;
        double sum = 0, seconds = 0, most = 0;
        open_lab(&one, 1, 1, whole);
        open_lab(&eight, 8, 2, cut);
        staging_init(&s, &eight.d, &eight.c, &eight.shape);
        assert_int_equal(s.n, 8);
        for (int i = 0; i < s.n; i++) {
            double w = s.work[i].forward.work + s.work[i].input.work + s.work[i].weight.work;
            double took =
                s.work[i].forward.seconds + s.work[i].input.seconds + s.work[i].weight.seconds;
            sum += w;
            seconds += took;
            if (took > most) most = took;
            assert_true(s.work[i].forward.work > 0 && s.forward[i] > 0);
        }
        double step = work_of_step(&one);
        if (sum < 0.999 * step || sum > 1.001 * step)
            fail_msg("stages count %.0f, a step %.0f", sum, step);
        assert_true(most < 2 * seconds / s.n); /* no layer here is larger than that */
        for (int i = 0; i < eight.c.n_layers; i++) {
            struct stage g = staging_stage(&s, staging_of_layer(&s, i));
            assert_true(g.first <= i && i < g.end);
        }
        staging_free(&s);
        close_lab(&one);
        close_lab(&eight);
    }
}

/* Every block is held by the ranks of one coordinate, tied embeddings by those of both ends;
 * all ranks list the same tensors. */
static void held(void **state) {
    (void)state;
    static char *const ways[][4] = {
        {"parallel.pipeline=4", "parallel.schedule=1f1b", NULL, NULL},
        {"parallel.pipeline=4", "parallel.schedule=zbv", "model.tie_word_embeddings=true", NULL},
        {"parallel.pipeline=4", "parallel.schedule=interleaved", "parallel.virtual_stages=3",
         "model.tie_word_embeddings=true"},
        {"parallel.pipeline=4", "parallel.stages='||MEM*EM-MEM*EM-|'", NULL, NULL},
    };
    for (int way = 0; way < 4; way++) {
        struct lab l;
        int n = 0, holders[1024] = {0}, blocks = 0;
        char *given[4];
        for (; n < 4 && ways[way][n]; n++) {
            given[n] = die_strdup(ways[way][n]);
            for (char *c = given[n]; *c; c++) /* as the shell would */
                if (*c == '\'') memmove(c, c + 1, strlen(c));
        }
        open_lab(&l, 4, n, given);
        for (int rank = 0; rank < 4; rank++) {
            struct model m;
            struct staging s;
            staging_init(&s, &l.d, &l.c, &l.shape);
            model_init(&m, &l.c, &l.shape, rank, &s, false);
            blocks = m.params.n_blocks;
            for (int i = 0; i < blocks; i++) {
                const struct param_block *b = &m.params.block[i];
                holders[i] += b->here;
                if (b->here && b->layer >= 0)
                    assert_int_equal(staging_rank(&s, staging_of_layer(&s, b->layer)), rank);
            }
            model_free(&m);
            staging_free(&s);
        }
        for (int i = 0; i < blocks; i++)
            assert_int_equal(holders[i], i == 0 && way == 2 ? 2 : 1); /* zbv: both ends on rank 0 */
        for (int i = 0; i < n; i++) free(given[i]);
        close_lab(&l);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counted),
        cmocka_unit_test(held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
