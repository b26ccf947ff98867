/* Whose turn it is: against a walk from the first sample on, and the shares it promises; and which
 * documents are held out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "io/corpora_blend.h"
#include "io/corpora_files.h"

enum { MOST = 6, WALK = 5000 };

static const struct {
    int n;
    int64_t weight[MOST];
} blends[] = {
    {1, {7}},
    {2, {1, 1}},
    {2, {1, 999}},
    {3, {5, 3, 2}},
    {3, {700000000, 299999999, 1}},
    {6, {1, 2, 3, 4, 5, 6}},
    {6, {1000000000000000, 1, 1, 1, 1, 1}},
    {5, {1, 1, 1, 1, 1}},
    {4, {30, 1, 30, 1}},
};
enum { BLENDS = sizeof blends / sizeof *blends };

static void test_as_if_walked(void **unused) {
    (void)unused;
    for (int b = 0; b < BLENDS; b++) {
        int n = blends[b].n;
        const int64_t *w = blends[b].weight;
        int64_t had[MOST] = {0}, before;
        for (int64_t i = 0; i < WALK; i++) {
            int next = 0;
            for (int s = 1; s < n; s++)
                if ((__int128)(2 * had[s] + 1) * w[next] < (__int128)(2 * had[next] + 1) * w[s])
                    next = s;
            assert_int_equal(blend_turn(n, w, i, &before), next);
            assert_int_equal(before, had[next]);
            had[next]++;
        }
    }
}

/* After any number of samples, also a great one: all turns are different samples, and nobody is
 * more than a sample or so from his share. */
static void test_shares(void **unused) {
    (void)unused;
    const int64_t far[] = {0, 1000, 123456789, (int64_t)1 << 40, ((int64_t)1 << 62) - 7};
    for (int b = 0; b < BLENDS; b++)
        for (size_t k = 0; k < sizeof far / sizeof *far; k++) {
            int n = blends[b].n;
            const int64_t *w = blends[b].weight;
            int64_t last[MOST], before;
            double total = 0;
            for (int s = 0; s < n; s++) last[s] = -1, total += (double)w[s];
            for (int64_t i = far[k]; i < far[k] + 300; i++) {
                int s = blend_turn(n, w, i, &before);
                if (last[s] >= 0) assert_int_equal(before, last[s] + 1);
                last[s] = before;
                double share = (double)i * ((double)w[s] / total);
                double off = (double)before - share;
                assert_true(off < 2 + 1e-9 * share && off > -2 - 1e-9 * share);
            }
        }
    /* And exactly in the long run: a whole number of rounds gives everyone his weight. */
    const int64_t w[] = {5, 3, 2};
    int64_t count[3] = {0}, before;
    for (int64_t i = 1000000; i < 1001000; i++) count[blend_turn(3, w, i, &before)]++;
    assert_true(count[0] == 500 && count[1] == 300 && count[2] == 200);
}

static void test_split_settles(void **unused) {
    (void)unused;
    assert_true(split_threshold(0) == 0);
    assert_true(split_threshold(0.5) == (uint64_t)1 << 63);
    assert_true(split_settle(100, 5, 900) == 100);
    assert_true(split_settle(3, 5, 900) == 6);
    assert_true(split_settle(5, 5, 900) == 6);
    assert_true(split_settle(901, 5, 900) == 900);
    assert_true(split_settle(900, 5, 900) == 900);
    assert_true(split_settle(100, 7, 7) == 0);
    assert_true(split_settle(0, UINT64_MAX - 1, UINT64_MAX) == UINT64_MAX);
    assert_true(split_settle(100, UINT64_MAX, 0) == 0); /* no documents at all */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_if_walked),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_split_settles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
