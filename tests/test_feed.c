/* A step's tokens are the same in all on every mesh, in any order of asking, and validation
 * measures each held-out sample once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/files.h"
#include "kernels/die.h"
#include "kernels/mistakes.h"
#include "src/config.h"
#include "src/engine.h"
#include "src/feed.h"
#include "tests/place.h"

enum { LENGTH = 32, GLOBAL = 12 };

static struct comm comm;
static char *deck_path;

struct fed {
    struct deck deck;
    struct config config;
    struct engine engine;
    struct feed feed;
};

/* What data rank `at` of `data` is fed, with micro-batches of `rows`. */
static void feed_as(struct fed *f, const char *kind, int data, int at, int rows) {
    struct mistakes m = {0};
    char *more[] = {die_format("data.kind=%s", kind), die_format("train.micro_batch=%d", rows)};
    *f = (struct fed){.config.keys.vocab_size = 257};
    deck_read(&f->deck, deck_path, 2, more, &m);
    f->engine.deck = &f->deck;
    f->engine.config = &f->config;
    f->engine.comm = &comm;
    f->engine.shape.data = data;
    f->engine.shape.context = f->engine.shape.tensor = 1;
    f->engine.parallel.at.data = at;
    f->engine.parallel.shape = f->engine.shape;
    f->engine.device.threads = 1;
    int failed = m.n || feed_init(&f->feed, &f->engine, &m);
    mistakes_print(&m, stderr);
    assert_false(failed);
    free(more[0]);
    free(more[1]);
}

static void fed_free(struct fed *f) {
    feed_free(&f->feed);
    deck_free(&f->deck);
}

/* The rows of a step or round, one after the other. */
struct rows {
    int32_t ids[GLOBAL][LENGTH], start[GLOBAL][LENGTH], target[GLOBAL][LENGTH];
    double weight[GLOBAL][LENGTH];
    int64_t counted;
};

static void collect(struct rows *to, const struct feed *f, int64_t counted) {
    int64_t row = f->first;
    for (int i = 0; i < f->micro_batches; i++)
        for (int r = 0; r < f->rows; r++, row++) {
            const struct host_batch *b = &f->batch[i];
            memcpy(to->ids[row], b->ids + r * LENGTH, sizeof *to->ids);
            memcpy(to->start[row], b->start + r * LENGTH, sizeof *to->start);
            memcpy(to->target[row], b->target + r * LENGTH, sizeof *to->target);
            memcpy(to->weight[row], b->weight + r * LENGTH, sizeof *to->weight);
        }
    to->counted += counted;
}

static void all_rows(struct rows *to, const char *kind, int data, int rows, int64_t number,
                     bool validation) {
    memset(to, 0, sizeof *to);
    for (int at = 0; at < data; at++) {
        struct fed f;
        feed_as(&f, kind, data, at, rows);
        /* What was asked before leaves no trace. */
        if (number % 2) feed_step(&f.feed, number + 5);
        collect(to, &f.feed,
                validation ? feed_validation(&f.feed, number) : feed_step(&f.feed, number));
        fed_free(&f);
    }
}

static void test_meshes(void **unused) {
    (void)unused;
    static const struct {
        int data, rows;
    } mesh[] = {{1, 12}, {1, 3}, {2, 1}, {3, 2}, {4, 3}, {12, 1}};
    static struct rows one, other;
    for (int text = 0; text < 2; text++)
        for (int64_t number = 1; number < 100; number += 33)
            for (int validation = 0; validation < 2; validation++) {
                const char *kind = text ? "text" : "mock";
                int64_t which = validation ? number % 5 : number;
                all_rows(&one, kind, 1, 1, which, validation);
                for (size_t i = 0; i < sizeof mesh / sizeof *mesh; i++) {
                    all_rows(&other, kind, mesh[i].data, mesh[i].rows, which, validation);
                    assert_memory_equal(&one, &other, sizeof one);
                }
            }
}

static void test_validation(void **unused) {
    (void)unused;
    static struct rows round;
    for (int text = 0; text < 2; text++) {
        struct fed f;
        feed_as(&f, text ? "text" : "mock", 1, 0, 1);
        int64_t n = f.feed.measured.samples, counted = 0, expected = 0, rows = 0;
        assert_int_equal(f.feed.validation, n < 50 ? n : 50);
        for (int64_t i = 0; i < feed_rounds(&f.feed); i++) {
            memset(&round, 0, sizeof round);
            collect(&round, &f.feed, feed_validation(&f.feed, i));
            int64_t sum = 0;
            for (int r = 0; r < GLOBAL; r++) {
                int64_t of_row = 0;
                for (int t = 0; t < LENGTH; t++) {
                    of_row += round.weight[r][t] == 1;
                    assert_true((round.target[r][t] >= 0) == (round.weight[r][t] == 1));
                    assert_true(round.ids[r][t] >= 0 && round.ids[r][t] < 257);
                    assert_true(round.start[r][t] >= 0 && round.start[r][t] <= t);
                }
                rows += of_row > 0;
                sum += of_row;
            }
            assert_int_equal(sum, round.counted);
            counted += sum;
        }
        int32_t tokens[LENGTH + 1], start[LENGTH];
        bool counts[LENGTH];
        for (int64_t i = 0; i < f.feed.validation; i++) {
            corpus_sample(&f.feed.measured, i, tokens, start, counts);
            for (int t = 0; t < LENGTH; t++) expected += counts[t];
        }
        assert_int_equal(counted, expected);
        assert_int_equal(rows, f.feed.validation);
        fed_free(&f);
    }
}

static void test_steps_of_epochs(void **unused) {
    (void)unused;
    struct fed f;
    feed_as(&f, "text", 1, 0, 1);
    int64_t samples = f.feed.corpus.samples;
    assert_int_equal(feed_steps(&f.feed, 1), (samples + GLOBAL - 1) / GLOBAL);
    assert_int_equal(feed_steps(&f.feed, 0.5), (samples + 2 * GLOBAL - 1) / (2 * GLOBAL));
    assert_int_equal(feed_steps(&f.feed, GLOBAL), samples);
    fed_free(&f);
    feed_as(&f, "mock", 1, 0, 1);
    assert_int_equal(feed_steps(&f.feed, 1), -1);
    fed_free(&f);
}

int main(void) {
    struct mistakes m = {0};
    if (comm_init(&comm, &m) != 0) die("%s", m.text[0]);
    char folder[300];
    place_make(folder, sizeof folder, "feed");
    deck_path = die_format("%s/deck.yaml", folder);
    FILE *f = fopen(deck_path, "w");
    fprintf(f,
            "model:\n  preset: tiny\ntrain:\n  sequence_length: %d\n  global_batch: %d\n"
            "data:\n  path: [src, io]\n  blend: [2, 1]\n  split: 0.1\n  validation: 50\n",
            LENGTH, GLOBAL);
    fclose(f);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meshes),
        cmocka_unit_test(test_validation),
        cmocka_unit_test(test_steps_of_epochs),
    };
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    free(deck_path);
    folder_remove(folder);
    comm_end(&comm);
    return result;
}
