/* Reading and continuing prompts on meshes of the ranks there are, against a process of its own for
 * every prompt: the logits after the prompt and after every token that is put in. Meshes, ways
 * along context, batches (prompts of one token, data ranks without any, rows of different lengths),
 * chunks and how long each data rank goes on are drawn; models are those of the lab, which have all
 * layers.
 *
 *     mpirun -n N test_decoder_ranks [SEED [DRAWS]] */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/die.h"
#include "kernels/scan_recent.h"
#include "parallel/transport.h"
#include "src/decoder.h"
#include "tests/lab.h"
#include "tests/place.h"

enum { MOST_ROWS = 5, MOST_STEPS = SCAN_RECENT + 4, MOST_PROMPT = 30, KEYS_MOST = 12, KEY = 48 };

static struct comm world;
static uint64_t state = 11;
static int draws = 40;
static bool wrong;

/* The same on every rank. */
static int64_t below(int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)n);
}

/* ---- engines ---- */

/* False where the deck is no legal one. */
static bool read_deck(struct lab *l, int model, int ranks, int n, char key[][KEY]) {
    char path[300], *over[KEYS_MOST];
    for (int i = 0; i < n; i++) over[i] = key[i];
    memset(l, 0, sizeof *l);
    place_file(path, sizeof path, "model", lab_models[model], strlen(lab_models[model]));
    deck_read(&l->deck, path, n, over, &l->m);
    config_settle(&l->config, &l->deck, &l->m);
    deck_check(&l->deck, &l->m);
    deck_mesh(&l->deck, ranks, &l->shape, &l->m);
    unlink(path);
    return !l->m.n;
}

static void open_engine(struct lab *l, struct comm *c) {
    assert_int_equal(engine_open(&l->e, &l->deck, &l->config, &l->m), 0);
    assert_int_equal(engine_init(&l->e, c, &l->shape, false, false, false, &l->m), 0);
}

static void close_lab(struct lab *l) {
    if (l->e.comm) engine_free(&l->e);
    config_free(&l->config);
    deck_free(&l->deck);
    mistakes_free(&l->m);
}

/* ---- batches ---- */

struct prompts {
    int64_t rows, steps, n[MOST_ROWS];
    int32_t ids[MOST_ROWS][MOST_PROMPT + MOST_STEPS];
};

static int64_t longest_of(const struct prompts *p) {
    int64_t longest = 0;
    for (int64_t i = 0; i < p->rows; i++) longest = p->n[i] > longest ? p->n[i] : longest;
    return longest;
}

static void draw_prompts(struct prompts *p, bool some) {
    static const int64_t longest[] = {1, 2, 5, 11, MOST_PROMPT};
    const int64_t most = longest[below(5)];
    p->rows = below(MOST_ROWS + !some) + some;
    p->steps = p->rows ? below(MOST_STEPS + 1) : 0;
    for (int64_t i = 0; i < p->rows; i++) {
        p->n[i] = 1 + below(most);
        for (int k = 0; k < MOST_PROMPT + MOST_STEPS; k++)
            p->ids[i][k] = (int32_t)below(LAB_VOCABULARY);
    }
}

/* Row i of what the decoder has found. */
static void logits_of(const struct decoder *d, int64_t i, double *to) {
    const enum dtype real = d->engine->real;
    dtype_convert(to, F64,
                  (const char *)d->logits + (size_t)(i * LAB_VOCABULARY) * dtype_size(real), real,
                  LAB_VOCABULARY);
}

/* Logits of one row and the tokens that follow it, [1 + steps][vocabulary]. */
static double *alone(struct lab *one, const struct prompts *p, int64_t row) {
    struct decoder d;
    double *all = die_alloc((size_t)(1 + p->steps) * LAB_VOCABULARY * sizeof *all);
    int32_t *ids = (int32_t *)(uintptr_t)p->ids[row];
    decoder_init(&d, &one->e, 1, p->n[row], MOST_STEPS, MOST_PROMPT);
    decoder_begin(&d, 1, &ids, &p->n[row], NULL);
    logits_of(&d, 0, all);
    for (int64_t s = 0; s < p->steps; s++) {
        decoder_next(&d, &ids[p->n[row] + s]);
        logits_of(&d, 0, all + (s + 1) * LAB_VOCABULARY);
    }
    decoder_free(&d);
    return all;
}

/* A rank that finds a mistake goes on, so that no other waits for it. */
static void compare(const struct decoder *d, int64_t rows, double *const *want, int64_t step,
                    double bound, const char *what) {
    double logits[LAB_VOCABULARY];
    for (int64_t i = 0; i < rows && !wrong; i++) {
        logits_of(d, i, logits);
        for (int64_t k = 0; k < LAB_VOCABULARY && !wrong; k++) {
            const double w = want[i][step * LAB_VOCABULARY + k], found = logits[k];
            wrong = !(fabs(found - w) <= bound);
            if (wrong)
                print_error("rank %d, row %d, after %d tokens, word %d: %.17g, want %.17g [%s]\n",
                            world.rank, (int)i, (int)step, (int)k, found, w, what);
        }
    }
}

/* One batch through a decoder that may have seen others. */
static void try_batch(struct decoder *d, struct lab *one, const struct prompts *all, double bound,
                      const char *what) {
    const struct mesh_shape *s = &d->engine->shape;
    const struct prompts *mine = &all[d->engine->parallel.at.data];
    const bool together = mesh_experts_join_data(s);
    double *want[MOST_ROWS];
    int32_t *ids[MOST_ROWS], next[MOST_ROWS];
    struct decoder_rows rows[8];
    int64_t steps = 0;
    for (int i = 0; i < s->data; i++) {
        rows[i] = (struct decoder_rows){all[i].rows, longest_of(&all[i])};
        if (all[i].steps > steps) steps = all[i].steps;
    }
    for (int64_t i = 0; i < mine->rows; i++) {
        want[i] = alone(one, mine, i);
        ids[i] = (int32_t *)(uintptr_t)mine->ids[i];
    }
    if (mine->rows || together) decoder_begin(d, mine->rows, ids, mine->n, rows);
    compare(d, mine->rows, want, 0, bound, what);
    for (int64_t k = 0; k < steps; k++) {
        for (int64_t i = 0; i < mine->rows; i++) next[i] = mine->ids[i][mine->n[i] + k];
        if (k < mine->steps) {
            decoder_next(d, next);
            compare(d, mine->rows, want, k + 1, bound, what);
        } else if (together) decoder_idle(d);
    }
    assert_int_equal(d->engine->work.live, 0);
    for (int64_t i = 0; i < mine->rows; i++) free(want[i]);
}

/* ---- meshes ---- */

static const int64_t divisors[] = {1, 2, 3, 4, 8};

static int64_t divisor_of(int64_t n) {
    for (;;) {
        const int64_t k = divisors[below(5)];
        if (n % k == 0) return k;
    }
}

/* What holds for one rank too, first; then the mesh. */
enum { PLAIN = 2 };

static int draw_keys(char key[][KEY], int64_t ranks) {
    static const char *const recipes[] = {"fp64", "fp64", "fp64", "fp32", "bf16"};
    const int64_t context = divisor_of(ranks), tensor = divisor_of(ranks / context),
                  pipeline = below(3) ? 1 : divisor_of(ranks / context / tensor),
                  stage = ranks / pipeline, expert = divisor_of(stage),
                  parts = divisor_of(stage / expert);
    const int recipe = (int)below(5);
    const bool experts = recipe < 3 && below(4); /* what is rounded may choose other experts */
    int n = 0;
    snprintf(key[n++], KEY, "precision.recipe=%s", recipes[recipe]);
    snprintf(key[n++], KEY,
             experts ? "train.sequence_length=48" : "model.hybrid_override_pattern=M*-*M");
    snprintf(key[n++], KEY, "parallel.context=%d", (int)context);
    snprintf(key[n++], KEY, "parallel.tensor=%d", (int)tensor);
    snprintf(key[n++], KEY, "parallel.pipeline=%d", (int)pipeline);
    if (experts) {
        snprintf(key[n++], KEY, "parallel.expert=%d", (int)expert);
        if (below(2)) snprintf(key[n++], KEY, "parallel.expert_tensor=%d", (int)parts);
    }
    if (tensor > 1 && below(2)) snprintf(key[n++], KEY, "parallel.sequence=true");
    snprintf(key[n++], KEY, "parallel.context_attention=%s", below(2) ? "ring" : "heads");
    snprintf(key[n++], KEY, "parallel.context_mamba=%s", below(2) ? "state" : "heads");
    snprintf(key[n++], KEY, "train.sequence_length=48");
    return n;
}

static bool one_draw(void) {
    char key[KEYS_MOST][KEY], what[KEYS_MOST * KEY] = "";
    struct lab many, one;
    struct prompts all[8];
    struct comm self;
    const int model = (int)below(LAB_MODELS), n = draw_keys(key, world.size);
    if (!read_deck(&many, model, world.size, n, key)) {
        close_lab(&many);
        return false;
    }
    for (int i = 0; i < n; i++) strcat(strcat(what, key[i]), " ");
    comm_init_self(&self);
    if (!read_deck(&one, model, 1, PLAIN, key)) fail_msg("no deck for one rank");
    open_engine(&one, &self);
    open_engine(&many, &world);
    struct decoder d;
    const int64_t chunk = 1 + below(below(2) ? 8 : 40);
    snprintf(what + strlen(what), KEY, "model %d, chunks of %d", model, (int)chunk);
    decoder_init(&d, &many.e, MOST_ROWS, MOST_PROMPT, MOST_STEPS, chunk);
    const double bound = many.e.stored == F64 ? 1e-10 : many.e.stored == F32 ? 1e-4 : 0.2;
    for (int b = 0; b < 2; b++) {
        for (int i = 0; i < many.shape.data; i++) draw_prompts(&all[i], i == 0);
        try_batch(&d, &one, all, bound, what);
    }
    decoder_free(&d);
    close_lab(&many);
    close_lab(&one);
    comm_end(&self);
    return true;
}

static void every_mesh(void **unused) {
    (void)unused;
    for (int tried = 0; tried < draws && !comm_max(world.world, wrong);) tried += one_draw();
    assert_int_equal(comm_max(world.world, wrong), 0);
}

int main(int argc, char **argv) {
    struct mistakes *none = NULL;
    if (comm_init(&world, none)) return 1;
    if (argc > 1) state = strtoull(argv[1], NULL, 10);
    if (argc > 2) draws = atoi(argv[2]);
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_mesh)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_end(&world);
    return failed;
}
