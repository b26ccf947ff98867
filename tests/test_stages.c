/* stages.h: every cut of short lines, tried one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "parallel/stages.h"

enum { MOST = 12 };

static int64_t sum(const int64_t *work, int from, int to) {
    int64_t s = 0;
    for (int i = from; i < to; i++) s += work[i];
    return s;
}

struct value {
    int64_t largest, squares;
};

static struct value value_of(int n, const int64_t *work, int stages, const int *first) {
    struct value v = {0, 0};
    for (int s = 0; s < stages; s++) {
        int64_t w = sum(work, first[s], s + 1 < stages ? first[s + 1] : n);
        if (w > v.largest) v.largest = w;
        v.squares += w * w;
    }
    return v;
}

/* The best of all cuts without empty stages. */
static void try_all(int n, const int64_t *work, int stages, int s, int *first, struct value *best) {
    if (s == stages) {
        struct value v = value_of(n, work, stages, first);
        if (v.largest < best->largest || (v.largest == best->largest && v.squares < best->squares))
            *best = v;
        return;
    }
    for (first[s] = first[s - 1] + 1; first[s] <= n - (stages - s); first[s]++)
        try_all(n, work, stages, s + 1, first, best);
}

static void test_cut(void **state) {
    (void)state;
    uint64_t seed = 1;
    for (int round = 0; round < 300; round++) {
        int n = 1 + round % MOST, first[MOST + 3], other[MOST + 3];
        int64_t work[MOST];
        for (int i = 0; i < n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            work[i] = (int64_t)(seed >> 33) % (round % 3 ? 7 : 1000);
        }
        for (int stages = 1; stages <= n; stages++) {
            int64_t largest = stages_cut(n, work, stages, first);
            struct value v = value_of(n, work, stages, first), best = {INT64_MAX, INT64_MAX};
            other[0] = 0;
            try_all(n, work, stages, 1, other, &best);
            assert_int_equal(largest, best.largest);
            assert_int_equal(v.largest, best.largest);
            assert_int_equal(v.squares, best.squares);
            assert_int_equal(first[0], 0);
            for (int s = 1; s < stages; s++) assert_true(first[s] > first[s - 1] && first[s] < n);
        }
        for (int stages = n + 1; stages <= n + 3; stages++) {
            stages_cut(n, work, stages, first);
            for (int s = 0; s < n - 1; s++) assert_int_equal(first[s], s);
            for (int s = n > 1 ? n - 1 : 1; s < stages; s++)
                assert_int_equal(first[s], n > 1 ? n - 1 : 1);
        }
    }
}

/* Equal work divides evenly, ties fall to the last stages, and sums near the limit do not overflow.
 */
static void test_ties(void **state) {
    (void)state;
    int64_t one[10], big[4] = {(int64_t)1 << 60, 1, (int64_t)1 << 60, (int64_t)1 << 60};
    int first[16];
    for (int i = 0; i < 10; i++) one[i] = 1;
    assert_int_equal(stages_cut(10, one, 4, first), 3);
    assert_true(first[0] == 0 && first[1] == 2 && first[2] == 4 && first[3] == 7);
    assert_int_equal(stages_cut(8, one, 4, first), 2);
    for (int s = 0; s < 4; s++) assert_int_equal(first[s], 2 * s);
    assert_int_equal(stages_cut(4, big, 3, first), ((int64_t)1 << 60) + 1);
    assert_true(first[2] == 3);
    assert_int_equal(stages_cut(0, one, 3, first), 0);
    assert_true(first[0] == 0 && first[2] == 0);
}

static void test_balance(void **state) {
    (void)state;
    int64_t layers[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    int first[16];
    /* An embedding without work and a head worth two layers. */
    assert_int_equal(stages_balance(8, layers, 0, 2, 2, first), 5);
    assert_true(first[0] == 0 && first[1] == 5);
    /* A head worth more than a fair share stands alone: the last stage has no layer. */
    assert_int_equal(stages_balance(8, layers, 0, 9, 3, first), 9);
    assert_true(first[0] == 0 && first[1] == 4 && first[2] == 8);
    /* More stages than there is anything to put in: both ends keep theirs. */
    assert_int_equal(stages_balance(1, layers, 5, 5, 6, first), 5);
    assert_true(first[0] == 0 && first[1] == 0 && first[2] == 1 && first[5] == 1);
    assert_int_equal(stages_balance(0, NULL, 1, 1, 2, first), 1);
    assert_true(first[0] == 0 && first[1] == 0);
    assert_int_equal(stages_balance(8, layers, 1, 1, 1, first), 10);
    assert_int_equal(first[0], 0);
}

static void test_pattern(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *layers;
        int stages, first[6];
    } cases[] = {
        {"M-|M*|-E|", "M-M*-E", 4, {0, 2, 4, 6}},
        {"M-M*", "M-M*", 1, {0}},
        {"|M|", "M", 3, {0, 0, 1}},
        {"M||E", "ME", 3, {0, 1, 1}},
        {"", "", 1, {0}},
        {"||", "", 3, {0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char layers[16];
        int first[6], n = stages_of_pattern(cases[i].pattern, layers, 6, first);
        assert_string_equal(layers, cases[i].layers);
        assert_int_equal(n, cases[i].stages);
        assert_memory_equal(first, cases[i].first, (size_t)n * sizeof *first);
    }
    char layers[16];
    int first[3] = {9, 9, 9};
    assert_int_equal(stages_of_pattern("M|M|M|M", layers, 2, first), 4);
    assert_true(first[0] == 0 && first[1] == 1 && first[2] == 9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_pattern),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
